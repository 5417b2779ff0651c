"""The page of results: every task for every way to encode, against loops written from the definitions."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import checkpoints
import everyframe as ef
from everyframe.backbone import ModelError
from everyframe.cli import app
from everyframe.encoders import DenseEncoder, ResidualViT, ReuseEncoder
from everyframe.evaluation import results, trained_tasks
from everyframe.evaluation.results import TASKS, Scale, evaluate_tasks
from everyframe.evaluation.results_tables import result_markdown, result_tables, write_result_plot
from everyframe.evaluation.synthetic_tasks import (
    CLASSES,
    Scene,
    Texts,
    fits,
    grounding,
    lone_clips,
    recognition,
    retrieval,
    whole_video,
)
from everyframe.evaluation.ways import ways
from everyframe.features import VideoFeatures
from everyframe.pipeline import read_window
from everyframe.spans import recall_at
from everyframe.synthetic import COLOURS, PATTERNS, SHAPES, SIZES, Entity, SyntheticVideo
from everyframe.tasks.grounding import ground
from everyframe.tasks.retrieval import search

SECONDS = 40.0
TINY = Scale(videos=2, known_videos=2, train_videos=2, seconds=18.0, fps=2.0, epochs=1)


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def texts(model) -> Texts:
    return Texts(model)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Three worlds that nobody rendered."""
    worlds = [SyntheticVideo(seed, seconds=SECONDS, style="still", combinations="seen") for seed in (7001, 7002, 7003)]
    return [
        Scene(id=world.name, file=Path(f"/v/{world.name}.mp4"), seconds=SECONDS, events=tuple(world.events))
        for world in worlds
    ]


@pytest.fixture(scope="module")
def feats(scenes, texts) -> dict[str, VideoFeatures]:
    """Features that know a little: noise, and the names of what is on screen."""
    rng = np.random.default_rng(3)
    times = np.arange(0, SECONDS, 0.5)
    found = {}
    for scene in scenes:
        rows = 0.25 * rng.standard_normal((len(times), 128)).astype(np.float32)
        for event in scene.events:
            name = Entity(event.entity.colour, "plain", event.entity.shape, "medium").caption()
            rows[(times >= event.start) & (times < event.end)] += texts([name])[0]
        found[scene.id] = VideoFeatures(
            times=times, embeddings=rows, roles="I" * len(times), end_seconds=SECONDS, video={"path": str(scene.file)}
        )
    return found


# --- what is right ---------------------------------------------------------------------------------------


def test_lone_clips_equal_looking_at_every_moment(scenes):
    for scene in scenes:
        world = SyntheticVideo(int(scene.id.rpartition("-")[2]), seconds=SECONDS, style="still", combinations="seen")
        clips = lone_clips(scene)
        covered = np.zeros(int(SECONDS * 20), bool)
        for clip in clips:
            assert clip.end - clip.start >= 2
            covered[int(np.ceil(clip.start * 20)) : int(clip.end * 20)] = True
            (seen,) = world.visible((clip.start + clip.end) / 2)
            assert CLASSES[clip.label] == (seen.colour, seen.shape)
        alone = np.array([len(world.visible(step / 20)) == 1 for step in range(len(covered))])
        assert not (covered & ~alone).any()
        runs = [len(list(group)) for lone, group in itertools.groupby(alone & ~covered) if lone]
        assert all(length <= 2 * 20 + 1 for length in runs)  # what is left out is shorter than 2 s


def test_fits_is_what_the_words_say():
    every = [Entity(*parts) for parts in itertools.product(COLOURS, PATTERNS, SHAPES, SIZES)]
    rng = np.random.default_rng(0)
    wanted = [every[index] for index in rng.integers(len(every), size=40)]
    for query in wanted:
        said = set(query.caption().split()) - {"a", "an"}
        for entity in every:
            words = {entity.colour, entity.pattern, entity.shape, entity.size}
            assert fits(entity, query) == (said <= words)


# --- the training-free tasks -----------------------------------------------------------------------------


def test_grounding_equals_recall_over_all_queries(scenes, feats, texts):
    found = grounding(feats, scenes, texts)
    answers = [ground(feats[scene.id], texts([event.caption])[0], top=5) for scene in scenes for event in scene.events]
    truth = [[(event.start, event.end)] for scene in scenes for event in scene.events]
    for name, k, iou in (("R@1 IoU 0.5", 1, 0.5), ("R@1 IoU 0.7", 1, 0.7), ("R@5 IoU 0.5", 5, 0.5)):
        assert found.metrics[name] == pytest.approx(100 * recall_at(answers, truth, k=k, iou=iou))
        assert [len(row) for row in found.hits[name]] == [len(scene.events) for scene in scenes]
    overlaps = []
    for (first, *_), ((start, end),) in zip(answers, truth, strict=True):
        inside = max(0.0, min(first.end, end) - max(first.start, start))
        overlaps.append(inside / (first.duration + end - start - inside))
    assert found.metrics["mIoU"] == pytest.approx(100 * np.mean(overlaps))
    assert found.queries == len(truth) and 0 < found.metrics["R@1 IoU 0.5"] <= 100
    assert found.floor == ("the whole video", whole_video(scenes))


def test_the_floor_of_grounding_by_hand(scenes):
    shares = [(event.end - event.start) / SECONDS for scene in scenes for event in scene.events]
    floor = whole_video(scenes)
    assert floor["mIoU"] == pytest.approx(100 * np.mean(shares))
    assert floor["R@1 IoU 0.5"] == pytest.approx(100 * np.mean([share >= 0.5 for share in shares]))


def test_retrieval_equals_loops_over_videos_and_moments(scenes, feats, texts):
    found = retrieval(feats, scenes, texts)
    captions = list(dict.fromkeys(event.entity.caption() for scene in scenes for event in scene.events))
    video_ranks, moment_places = [], []
    for caption in captions:
        words = set(caption.split()) - {"a", "an"}
        query = texts([caption])[0]
        right = {
            scene.id: [
                (event.start, event.end)
                for event in scene.events
                if words <= {event.entity.colour, event.entity.pattern, event.entity.shape, event.entity.size}
            ]
            for scene in scenes
        }
        scores = {}
        for scene in scenes:
            mean = np.mean([row / np.linalg.norm(row) for row in feats[scene.id].embeddings], axis=0)
            scores[scene.id] = float(query @ mean / np.linalg.norm(mean))
        best = max(score for video, score in scores.items() if right[video])
        video_ranks.append(1 + sum(score > best for video, score in scores.items() if not right[video]))
        place = 99
        for number, hit in enumerate(search(list(feats.values()), query, top=5), 1):
            for start, end in right[Path(hit.video).stem]:
                inside = max(0.0, min(hit.end, end) - max(hit.start, start))
                if inside / (hit.end - hit.start + end - start - inside) >= 0.5:
                    place = min(place, number)
        moment_places.append(place)
    assert found.queries == len(captions)
    assert found.metrics["video R@1"] == pytest.approx(100 * np.mean(np.array(video_ranks) <= 1))
    assert found.metrics["video MdR"] == np.median(video_ranks)
    assert found.metrics["moment R@1"] == pytest.approx(100 * np.mean(np.array(moment_places) <= 1))
    assert found.metrics["moment R@5"] == pytest.approx(100 * np.mean(np.array(moment_places) <= 5))
    assert found.metrics["moment R@1"] > 0


def test_recognition_equals_a_loop_over_clips(scenes, feats, texts):
    found = recognition(feats, scenes, texts)
    first = top5 = count = 0
    for scene in scenes:
        for clip in lone_clips(scene):
            inside = (feats[scene.id].times >= clip.start) & (feats[scene.id].times < clip.end)
            rows = feats[scene.id].embeddings[inside]
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            scores = {}
            for number, (colour, shape) in enumerate(CLASSES):
                article = "an" if colour[0] in "aeiou" else "a"
                scores[number] = float(rows.mean(axis=0) @ texts([f"{article} {colour} {shape}"])[0])
            order = sorted(scores, key=lambda number: -scores[number])
            first, top5, count = first + (order[0] == clip.label), top5 + (clip.label in order[:5]), count + 1
    assert found.queries == count > 3
    assert found.metrics == {"top-1": pytest.approx(100 * first / count), "top-5": pytest.approx(100 * top5 / count)}
    assert sum(len(row) for row in found.hits["top-1"]) == count and first > 0
    assert found.floor == ("chance", {"top-1": 1.5625, "top-5": 7.8125})


def test_recognition_needs_clips(scenes, feats, texts):

    empty = [dataclasses.replace(scene, events=()) for scene in scenes]
    with pytest.raises(ValueError, match="no object is alone on screen for 2 s in any video"):
        recognition(feats, empty, texts)


# --- the ways --------------------------------------------------------------------------------------------


def test_ways_are_the_encoders(model, tmp_path):
    world = SyntheticVideo(7005, seconds=4.0, size=(128, 96), style="pan")
    world.write(tmp_path / "v.mp4")
    window = read_window(tmp_path / "v.mp4", model, fps=3.0)
    dense = DenseEncoder(model).encode(window.pixels).numpy()
    found = {way.name: way.run(window, dense) for way in ways(model)}
    assert next(iter(found)) == "dense" and len(found) == 11
    one = sum(DenseEncoder(model).macs(1, "all").values())
    for name, encoder in (
        ("residual-2", ResidualViT(model, 2)),
        ("reuse-5", ReuseEncoder(model, 5)),
        ("reuse-adaptive", ReuseEncoder(model, plan="adaptive")),
    ):
        feats = ef.encode_video(tmp_path / "v.mp4", encoder)
        np.testing.assert_allclose(found[name].features, feats.embeddings, atol=1e-5)
        assert found[name].roles == feats.roles
        share = found[name].macs / (one * len(dense))
        assert share == pytest.approx(feats.settings["gflops_share"], rel=1e-4)
    assert found["copy-2"].roles.startswith("ICCICC") and found["copy-5"].macs == one * 2
    np.testing.assert_array_equal(found["copy-2"].features[:3], np.repeat(dense[:1], 3, axis=0))
    np.testing.assert_array_equal(found["dense"].features, dense)
    labels = [way.label for way in ways(model, residual="none")]
    assert "ResidualViT N=2" in labels and not any("token" in label for label in labels)


# --- the run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ways():
    """Fewer ways, for time: dense and copying."""
    patch = pytest.MonkeyPatch()
    patch.setattr(results, "ways", lambda model, residual="auto": [ways(model)[0], ways(model)[7]])
    yield
    patch.undo()


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def record(model, two_ways, work) -> dict:
    """All tasks; killed twice on the way, once while encoding and once between tasks."""
    killed = pytest.MonkeyPatch()
    original, calls = results.read_window, []

    def dying(*arguments, **options):
        calls.append(arguments[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    killed.setattr(results, "read_window", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(model, scale=TINY, work=work)
    killed.undo()

    def stop(so_far: dict) -> None:
        if len(so_far["tasks"]) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(model, scale=TINY, work=work, after_task=stop)
    return evaluate_tasks(model, scale=TINY, work=work)


def test_every_task_has_every_way(record):
    assert list(record["tasks"]) == [task.name for task in TASKS]
    assert [way["name"] for way in record["ways"]] == ["dense", "copy-2"]
    assert record["notes"] == [] and record["seconds"] is None  # it was resumed
    dense, copied = record["ways"]
    assert (dense["gflops_share"], dense["fidelity"], dense["roles"]["I"]) == (1, 1, 1)
    assert copied["gflops_share"] == pytest.approx(1 / 3) and copied["fidelity"] < 1
    for name, task in record["tasks"].items():
        assert [row["way"] for row in task["rows"]] == ["dense", "copy-2"]
        assert set(task["metrics"]) <= set(task["rows"][0]["metrics"])
        assert task["count"] > 0 and (task["floor"] is None) == (name == "retrieval")
    json.dumps(record, allow_nan=False)


def test_a_finished_run_is_not_done_again(model, two_ways, work, record, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(results, "read_window", never)
    monkeypatch.setattr(trained_tasks, "evaluate_localization", never)
    monkeypatch.setattr(trained_tasks, "evaluate_description", never)
    again = evaluate_tasks(model, scale=TINY, work=work)
    assert again == record
    (file,) = work.glob("features-*/copy-2/test/synthetic-901001.npz")
    file.write_bytes(file.read_bytes()[:100])
    monkeypatch.undo()
    mended = evaluate_tasks(model, scale=TINY, tasks=["grounding"], work=work)
    assert mended["tasks"]["grounding"] == record["tasks"]["grounding"]
    assert VideoFeatures.load(file).num_frames == 36


def test_without_the_metrics_package_the_rest_goes_on(model, two_ways, work, record, monkeypatch):
    def missing(name: str, extra: str) -> None:
        raise ImportError(f"needs {name}: pip install 'everyframe[{extra}]'")

    monkeypatch.setattr(trained_tasks, "require", missing)
    for file in work.glob("results-*/description-*.json"):
        file.unlink()
    left = evaluate_tasks(model, scale=TINY, work=work, tasks=["recognition", "description"])
    assert list(left["tasks"]) == ["recognition"]
    assert left["notes"] == ["description is left out: needs pycocoevalcap: pip install 'everyframe[describe]'"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["cooking"]}, "task must be one of grounding, retrieval, recognition, .*, got 'cooking'"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_bad_arguments_raise(model, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(model, scale=TINY, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"videos": 0}, "videos must be at least 1, got 0"),
        ({"seed": 950}, "seed must be from 101 to 940 and a set hold 1000 videos at most, got 950"),
        ({"seconds": 0.0}, "seconds must be finite and > 0, got 0.0"),
        ({"fps": -1.0}, "fps must be > 0"),
    ],
)
def test_bad_scales_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Scale(**options)


def test_a_model_without_words_is_refused(tmp_path):
    blind = ef.load(checkpoints.clip_vision(tmp_path / "vision"), device="cpu")
    with pytest.raises(ModelError, match="has no text tower, so nothing can be asked for"):
        evaluate_tasks(blind, scale=TINY, work=tmp_path)


# --- tables, picture, command line -----------------------------------------------------------------------


def test_tables_show_what_the_record_says(record):
    tables = result_tables(record)
    assert list(tables) == ["summary", *record["tasks"]]
    summary = tables["summary"]
    assert summary.header[:4] == ["encoder", "GFLOPs/frame", "% of dense", "fidelity"]
    assert summary.header[4:] == ["NLTVG R@1 IoU 0.5", "Retrieval moment R@1", "AR top-1", "TAL mAP", "AD CIDEr"]
    first = record["tasks"]["grounding"]["rows"][1]["metrics"]["R@1 IoU 0.5"]
    assert summary.rows[1][:5] == ["copy N=2", f"{record['ways'][0]['gflops_per_frame'] / 3:.4f}", "33.3",
                                   f"{record['ways'][1]['fidelity']:.3f}", f"{first:.1f}"]  # fmt: skip
    assert tables["grounding"].rows[-1][0] == "the whole video"
    assert all(len(row) == len(table.header) for table in tables.values() for row in table.rows)
    text = result_markdown(record)
    assert text.startswith("# Results on the synthetic benchmark\n") and "| copy N=2 |" in text
    changed = copy.deepcopy(record)
    changed["tasks"]["grounding"]["rows"][1]["differences"]["R@1 IoU 0.5"] = {"points": -2.5, "low": -5.0, "high": 1.0}
    assert result_tables(changed)["grounding"].rows[1][-1] == "-2.5 (-5.0 to +1.0)"


def test_the_picture_follows_from_the_record(record, tmp_path):
    pytest.importorskip("matplotlib")
    files = [write_result_plot(record, tmp_path / name / "results.svg") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    text = files[0].read_text()
    assert "Action recognition (AR)" in text or text.count("<g id=") > 50


def test_cli_writes_and_shows(model, two_ways, work, record, tmp_path):
    options = ["evaluate", "synthetic", "--all", "--quick", "--videos", "2", "--seconds", "20", "--fps", "2"]
    result = CliRunner().invoke(app, [*options, "--seeds", "2"])
    assert isinstance(result.exception, ValueError) and "--seeds has no meaning with --all" in str(result.exception)
    result = CliRunner().invoke(app, [*options, "--residual", "a", "--residual", "b"])
    assert isinstance(result.exception, ValueError) and "--residual is one tokenizer with --all" in str(
        result.exception
    )


def test_cli_runs_a_finished_run_again(two_ways, work, record, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "QUICK", TINY)
    options = ["evaluate", "synthetic", "--all", "--quick", "--work", str(work), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.exception
    assert "bundled, 2 frames/s, videos of 18 s: 2 of unseen combinations" in result.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tasks"].keys() == record["tasks"].keys()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "results.md", "results.png"}
