"""everyframe evaluate grounding: really encoded videos, answers and scores recomputed one query at a time."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import everyframe as ef
from everyframe.backbone import skeleton
from everyframe.cli import app
from everyframe.cli.evaluate import evaluate
from everyframe.cli.evaluate_list import TASKS
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT, ReuseEncoder
from everyframe.evaluation.frame_features import EncodedVideos, StoredFeatures, label
from everyframe.evaluation.grounding import Grounding, evaluate_grounding, score_predictions
from everyframe.evaluation.moment_files import read_moments
from everyframe.evaluation.moment_predictions import read_predictions
from everyframe.evaluation.published_grounding import published
from everyframe.evaluation.reading import AnnotationError
from everyframe.pipeline import Sampling
from everyframe.video import write_video

QUERIES = ("a red circle", "a blue square moves left", "a green triangle")
SECONDS = 8


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three videos of 8 s, one in a folder of its own and named as ActivityNet does."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "more/v_c"):
        scenes = rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8).repeat(SECONDS * 10 // 4, axis=0)
        frames = scenes.repeat(8, axis=1).repeat(8, axis=2)
        write_video(folder / f"{name}.mp4", list(frames), fps=10, options={"preset": "ultrafast"})
    return folder


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    """Nine queries; those of b have saliency, those of c no duration."""
    found = []
    for place, video in enumerate(("a", "b", "c")):
        for number, text in enumerate(QUERIES):
            line = {"qid": 10 * place + number, "query": text, "vid": video, "duration": float(SECONDS)}
            line["relevant_windows"] = [[2.0 * number, 2.0 * number + 2.0], [6.0, 9.0]]
            if video == "b":
                line |= {"relevant_clip_ids": [0, 3], "saliency_scores": [[4, 2, 4], [1, 4, 0]]}
            if video == "c":
                del line["duration"]
            found.append(line)
    return found


def written(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def annotations(tmp_path_factory, lines) -> Path:
    return written(tmp_path_factory.mktemp("annotations") / "tiny_val.jsonl", lines)


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["evaluate", "grounding", *map(str, arguments)])
    problem = result.exception if isinstance(result.exception, Exception) else None
    assert result.exit_code == code, (result.output, problem)
    return result


def overlap(a, b) -> float:
    inside = min(a[1], b[1]) - max(a[0], b[0])
    return max(inside, 0) / (max(a[1], b[1]) - min(a[0], b[0]))


# --- a model's own answers -------------------------------------------------------------------------------


def test_compare_encodes_caches_and_writes(annotations, videos, lines, model, tmp_path):
    arguments = ("--annotations", annotations, "--videos", videos, "--model", "bundled", "--compare", "--clip-gt")
    record = json.loads(run(*arguments, "--out", tmp_path / "out", "--json").stdout)
    assert [row["encoder"] for row in record["rows"]] == [
        "dense",
        "ResidualViT N=2 + residual token",
        "reuse adaptive",
    ]
    assert (record["queries"], record["videos"], record["partial"]) == (9, 3, False)
    assert (record["annotations"]["split"], record["annotations"]["windows_clipped"]) == ("tiny_val", 9)
    dense, residual, reuse = record["rows"]
    assert dense["share_of_dense"] == 1.0 and residual["share_of_dense"] < 0.5
    assert reuse["gflops_per_second"] == pytest.approx(dense["gflops_per_second"] * reuse["share_of_dense"])
    assert dense["gflops_per_second"] == pytest.approx(3 * ef.flops(DenseEncoder(model)).gflops_per_frame)
    assert set(record["floors"]) == {"whole video", "first third", "centre half"}
    # Whole video: each query has windows of 2 s; cut to the video, both are a quarter of it.
    assert record["floors"]["whole video"] == {
        "R1@0.1": 100.0, "R1@0.3": 0.0, "R1@0.5": 0.0, "R1@0.7": 0.0, "mIoU": pytest.approx(25.0)
    }  # fmt: skip

    # One query at a time, through the public functions.
    best = []
    for line in lines:
        path = next(path for path in videos.rglob("*.mp4") if path.stem.removeprefix("v_") == line["vid"])
        feats = ef.encode_video(path, DenseEncoder(model), fps=3.0)
        first = ef.ground(feats, model.encode_text([line["query"]])[0], top=10)[0]
        windows = [[start, min(end, SECONDS)] for start, end in line["relevant_windows"]]
        best.append(max(overlap((first.start, first.end), window) for window in windows))
    assert dense["metrics"]["mIoU"] == pytest.approx(100 * np.mean(best), abs=0.01)
    for level in (0.1, 0.3, 0.5, 0.7):
        assert dense["metrics"][f"R1@{level}"] == pytest.approx(100 * np.mean(np.array(best) >= level))

    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "features").rglob("*.npz")}
    assert len(stored) == 9
    again = run(*arguments, "--out", tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    for words in ("tiny_val: 9 queries, 3 videos", "9 windows cut", "published: none", "centre half", "reuse adaptive"):
        assert words in again.output
    rows = list(csv.DictReader((tmp_path / "out" / "grounding.csv").open()))
    (row,) = [row for row in rows if (row["encoder"], row["metric"]) == ("dense", "mIoU")]
    assert float(row["ours"]) == pytest.approx(dense["metrics"]["mIoU"], abs=1e-4)

    # What was written is scored like anybody's predictions; and the features are read by themselves.
    predictions = tmp_path / "out" / "predictions-dense.jsonl"
    alone = [line for line in lines if "duration" in line]
    scored = json.loads(run("--annotations", annotations, "--predictions", predictions, "--clip-gt", "--json").stdout)
    for name in ("R1@0.1", "R5@0.3", "R10@0.3", "HL-mAP", "HL-Hit1"):
        assert len(alone) == 6 and scored[name] == pytest.approx(dense["metrics"][name], abs=1e-6)
    (folder,) = (tmp_path / "out" / "features").glob("dense-*")
    own = json.loads(run("--annotations", annotations, "--features", folder, "--clip-gt", "--json").stdout)
    assert own["rows"][0]["metrics"] == dense["metrics"]
    assert own["rows"][0]["gflops_per_second"] > 0


def test_lost_videos_are_named_and_the_rest_is_scored(annotations, videos, lines, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes((videos / "a.mp4").read_bytes())
    (folder / "b.mp4").write_bytes(b"no video")
    arguments = ("--videos", folder, "--model", "bundled", "--encoder", "dense", "--fps", "2", "--dataset", "charades")
    result = run("--annotations", annotations, *arguments, "--json", code=1)
    record = json.loads(result.stdout)
    assert (record["queries"], record["queries_wanted"], record["videos_wanted"], record["partial"]) == (3, 9, 3, True)
    assert [(failure["video"], failure["kind"]) for failure in record["failures"]] == [
        ("b", "unreadable"),
        ("c", "missing"),
    ]
    assert "missing: c: is not in" in result.stderr
    only = run("--annotations", written(tmp_path / "a.jsonl", lines[:3]), *arguments, "--json")
    assert json.loads(only.stdout)["rows"][0]["metrics"] == record["rows"][0]["metrics"]
    shown = run("--annotations", annotations, *arguments, code=1)
    assert "partial: 2 of 3 videos are left out with 6 queries" in shown.output
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    command = ["evaluate", "grounding", "--annotations", annotations, "--videos", nothing, "--model", "bundled"]
    refused = CliRunner().invoke(app, list(map(str, command)))
    assert "none of the 3 videos can be used: a: is not in" in str(refused.exception)


def test_features_of_another_rate_are_named(annotations, videos, model, tmp_path):
    for name, fps in (("a", 3.0), ("b", 2.0)):
        ef.encode_video(videos / f"{name}.mp4", DenseEncoder(model), fps=fps).save(tmp_path / f"{name}.npz")
    items = read_moments(annotations)
    result = evaluate_grounding(items, {"stored": StoredFeatures(folder=tmp_path, model=model)})
    assert [failure.video for failure in result.failures] == ["b", "c"]
    assert "was made with fps=2.0, but others with 3.0" in result.failures[0].error
    result = evaluate_grounding(items, {"stored": StoredFeatures(folder=tmp_path, model=model, fps=2.0)})
    assert [failure.video for failure in result.failures] == ["a", "c"]
    assert "a.npz has 3 features per second, not 2; encode the video again" in result.failures[0].error


def test_a_row_of_zeros_costs_its_video_and_nothing_else(annotations, videos, model, tmp_path):
    for name in ("a", "b"):
        feats = ef.encode_video(videos / f"{name}.mp4", DenseEncoder(model), fps=2.0)
        feats.embeddings[3] *= name != "b"
        feats.save(tmp_path / f"{name}.npz")
    result = evaluate_grounding(read_moments(annotations), {"stored": StoredFeatures(folder=tmp_path, model=model)})
    assert [failure.video for failure in result.failures] == ["b", "c"]
    assert "b.npz: frame 3 (1.5 s) is all zeros" in result.failures[0].error


@pytest.mark.parametrize("method", ["contrast", "half-height", "whole"])
def test_other_methods(annotations, videos, model, method):
    source = EncodedVideos(encoder=DenseEncoder(model), folder=videos, sampling=Sampling(fps=2.0))
    row = evaluate_grounding(read_moments(annotations), {"dense": source}, how=Grounding(method=method)).rows[0]
    for answer in row.answers.values():
        assert 1 <= len(answer.windows) <= 10
        assert (answer.windows[:, 0] >= 0).all() and (answer.windows[:, 1] <= SECONDS + 0.2).all()
    saliency = row.answers["10"].saliency
    feats = next(feats for number, feats in source.read(["b"]))
    curve = feats.normalised() @ model.encode_text([QUERIES[0]])[0].numpy()
    naive = [np.mean([c for c, t in zip(curve, feats.times, strict=True) if 2 * k <= t < 2 * k + 2]) for k in range(4)]
    np.testing.assert_allclose(saliency, naive, atol=1e-5)
    assert row.answers["0"].saliency is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --predictions"),
        (("--videos", ".", "--features", "."), "give one of --predictions"),
        (("--predictions", "p", "--encoder", "dense"), "--encoder has no meaning with --predictions"),
        (("--predictions", "p", "--fps", "3"), "--fps has no meaning with --predictions"),
        (("--features", ".", "--compare"), "--compare has no meaning with --features"),
        (("--videos", ".", "--floors"), "--floors belongs to --predictions"),
        (("--videos", ".", "--compare", "--interleave", "3"), "--interleave has no meaning with --compare"),
        (("--videos", ".", "--dataset", "didemo"), "--dataset must be one of charades, activitynet"),
        (("--videos", ".", "--method", "magic"), "method must be one of watershed, contrast, whole, half-height"),
        (("--videos", ".", "--smooth", "-1"), "smooth must be a number of seconds"),
        (("--videos", "nowhere", "--model", "bundled"), "nowhere is not a folder"),
        (("--features", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_options_that_contradict_each_other(annotations, arguments, message):
    result = CliRunner().invoke(app, ["evaluate", "grounding", "--annotations", str(annotations), *arguments])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


# --- published figures -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> ef.Model:
    return skeleton("ViT-L/14")


def test_published_figures_stand_beside_their_own_setting_only(large, model):
    paper_rule = Grounding().options
    token = ResidualTokenizer(large.dim, large.vision.config.width)
    paper = ResidualViT(large, interleave=2, drop=0.85, select="motion", residual=token)
    plain = ResidualViT(large, interleave=2, drop=0.85, select="motion", residual=None)
    assert published("charades", DenseEncoder(large), 3.0, paper_rule) == {
        "R1@0.5": 42.9,
        "R1@0.7": 24.1,
        "GFLOPs/s": 233.4,
    }
    assert published("charades", paper, 3.0, paper_rule)["R1@0.5"] == 41.5
    assert published("charades", plain, 3.0, paper_rule)["R1@0.7"] == 22.8
    assert published("mad", paper, 5.0, paper_rule) == {"R1@0.3": 7.3, "R1@0.5": 4.3}
    assert published("activitynet", paper, 1.0, paper_rule) == {"R1@0.5": 28.3}
    others = [
        ("charades", paper, 2.0, paper_rule),
        ("charades", paper, 3.0, Grounding(method="half-height").options),
        ("qvhighlights", paper, 3.0, paper_rule),
        (None, paper, 3.0, paper_rule),
        ("charades", ResidualViT(large, interleave=3, residual=None), 3.0, paper_rule),
        ("charades", ResidualViT(large, interleave=2, drop=0.5, residual=None), 3.0, paper_rule),
        ("charades", ResidualViT(large, interleave=2, select="random", residual=None), 3.0, paper_rule),
        ("charades", paper, 3.0, Grounding(smooth=3.0).options),
        ("charades", ReuseEncoder(large), 3.0, paper_rule),
        ("charades", DenseEncoder(model), 3.0, paper_rule),
        ("charades", DenseEncoder(skeleton("ViT-B/16")), 3.0, paper_rule),
    ]
    assert [published(*other) for other in others] == [{}] * len(others)
    # The rule that the cost of a row is counted by is the paper's.
    assert 3 * ef.flops(DenseEncoder(large)).gflops_per_frame == pytest.approx(233.4, abs=0.2)
    assert 3 * ef.flops(paper).gflops_per_frame == pytest.approx(102.6, abs=0.4)
    assert (label(paper), label(plain)) == ("ResidualViT N=2 + residual token", "ResidualViT N=2")


# --- anybody's predictions -------------------------------------------------------------------------------


def test_predictions_are_scored_with_floors(annotations, lines, tmp_path):
    answers = [
        {"qid": line["qid"], "vid": line["vid"], "pred_relevant_windows": [[6.0, 9.0, 0.9], [0.0, 2.0, 0.1]]}
        for line in lines
    ]
    path = written(tmp_path / "p.jsonl", answers)
    lengths = tmp_path / "lengths.json"
    lengths.write_text(json.dumps({"c": SECONDS}))
    arguments = ("--annotations", annotations, "--predictions", path)
    record = json.loads(run(*arguments, "--durations", lengths, "--floors", "--json").stdout)
    assert (record["R1@0.7"], record["mIoU"], record["mAP@0.5"]) == (
        100.0,
        100.0,
        pytest.approx(100 * (1 + 0.5 + 0.5) / 3),
    )
    assert record["floors"]["whole video"]["R1@0.1"] == 100.0
    assert (record["missed"], record["faults"], record["annotations"]["queries"]) == ([], [], 9)
    assert "HL-mAP" not in record
    shown = run(*arguments, "--durations", lengths, "--floors")
    assert "whole video, R@1" in shown.output and "9 windows reach beyond their video" in shown.output
    with pytest.raises(AnnotationError, match="floors need the length of every video, but that of c is not known"):
        score_predictions(read_moments(annotations), read_predictions(path), with_floors=True)


def test_missing_and_strange_predictions_are_counted(annotations, lines, tmp_path):
    right = [{"qid": line["qid"], "pred_relevant_windows": [[6.0, 9.0, 0.9]]} for line in lines]
    right[1]["pred_relevant_windows"] = [[6.0, 9.0, 0.2], [6.0, float("nan"), 0.9]]
    path = written(tmp_path / "p.jsonl", [*right[:6], {**right[6], "qid": 999}])
    result = run("--annotations", annotations, "--predictions", path, "--json", code=1)
    record = json.loads(result.stdout)
    assert record["R1@0.5"] == pytest.approx(100 * 6 / 9)
    assert record["missed"] == ["20", "21", "22"]
    assert record["predictions"]["queries_missed"] == 3
    assert "3 of 9 queries have no prediction and count as missed (qid 20, 21, 22)" in result.stderr
    assert "qid 999 is not in" in result.stderr
    assert "line 2: window [6.0, nan, 0.9] holds a NaN" in result.stderr
    assert "line 2" in record["faults"][0] and len(record["faults"]) == 2
    out = tmp_path / "out"
    run("--annotations", annotations, "--predictions", path, "--out", out, "--quiet", code=1)
    assert json.loads((out / "grounding.json").read_text()) == record
    strict = run("--annotations", annotations, "--predictions", path, "--dataset", "mad", "--strict", "--json", code=1)
    assert json.loads(strict.stdout)["R100@0.7"] == pytest.approx(100 * 6 / 9)


def test_any_number_of_annotators_scores_highlights(lines, tmp_path):
    two = [{**lines[3], "saliency_scores": [[4, 2], [1, 4]]}]  # clips 0 and 3 of 4
    items = read_moments(written(tmp_path / "two.jsonl", two))
    answer = {"qid": 10, "pred_relevant_windows": [[0, 2, 1]], "pred_saliency_scores": [0.9, 0.1, 0.2, 0.8]}
    metrics = score_predictions(items, read_predictions(written(tmp_path / "p.jsonl", [answer]))).metrics
    assert (metrics["HL-Hit1"], metrics["HL-mAP"]) == (100.0, 75.0)  # the second annotator's clip comes second


def test_order_is_kept_and_said(annotations, lines, tmp_path):
    answers = [{"qid": line["qid"], "pred_relevant_windows": [[0, 0.5, 0.1], [6, 9, 0.9]]} for line in lines]
    result = run("--annotations", annotations, "--predictions", written(tmp_path / "p.jsonl", answers), "--json")
    assert json.loads(result.stdout)["R1@0.5"] == 0.0
    assert "9 queries do not have their best score first; R@K takes the given order" in result.stderr


def test_every_task_is_listed():
    result = CliRunner().invoke(app, ["evaluate", "--list"])
    assert result.exit_code == 0
    for task in TASKS:
        assert task.name in result.output
    commands = {command.name or command.callback.__name__ for command in evaluate.registered_commands}
    assert commands == {task.name for task in TASKS}
