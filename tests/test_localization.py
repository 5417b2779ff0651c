"""Temporal activity localization: rows, Soft-NMS and fusion by hand, the network against loops, what it learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from everyframe.cli import app
from everyframe.evaluation.feature_folder import FeatureFolder
from everyframe.evaluation.localization import (
    evaluate_localization,
    without_content,
    zero_shot_localization,
)
from everyframe.evaluation.segment_files import Activities, ActivityVideo
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.tasks.localization import (
    Detection,
    Segment,
    duration_of,
    feature_rows,
    fuse_classes,
    localize_zero_shot,
    soft_nms,
    vote,
)
from everyframe.training import TrainingError
from everyframe.training.actionformer import (
    ActionFormer,
    Architecture,
    diou_loss,
    focal_loss,
    local_attention,
    targets,
)
from everyframe.training.localization_training import train_localizer
from everyframe.training.localizer import Localizer, LocalizerSettings

DIM = 8
LABELS = ("jump", "run")
TINY = LocalizerSettings(
    rows=64, width=16, heads=2, window=5, stem=1, levels=4, head_layers=1, projections=1, epochs=26, warmup_epochs=2,
    batch=4, rate=4e-3, average=0.9, positives=20.0, smoothing=0.0, crop=(0.7, 1.0), drop_path=0.0, drop_input=0.0,
    regression=1.0, voting=None,
)  # fmt: skip


def make_video(seed, fps=2.0, seconds=32.0, model="toy"):
    """Features in which every class is a direction, added to noise while it goes on; and its segments."""
    rng = np.random.default_rng(seed)
    times = np.arange(int(seconds * fps)) / fps
    rows = 0.3 * rng.standard_normal((len(times), DIM))
    segments, clock = [], rng.uniform(0, 6)
    while clock < seconds - 5:
        start, end = clock, min(clock + rng.uniform(3, 9), seconds)
        number = int(rng.integers(len(LABELS)))
        rows[(times >= start) & (times < end), number] += 1.5
        segments.append(Segment(float(start), float(end), LABELS[number]))
        clock = end + rng.uniform(2, 8)
    feats = VideoFeatures(
        times=times,
        embeddings=rows.astype(np.float32),
        roles="I" * len(times),
        video={"path": f"/videos/v_{seed:03d}.mp4", "duration_seconds": seconds},
        model={"id": model},
        settings={"fps": fps},
    )
    return feats, tuple(segments)


def make_set(numbers, subset):
    made = {f"{number:03d}": make_video(number) for number in numbers}
    videos = {video: ActivityVideo(subset, 32.0, segments) for video, (_, segments) in made.items()}
    return {video: feats for video, (feats, _) in made.items()}, Activities(videos=videos)


@pytest.fixture(scope="module")
def data():
    train, learned = make_set(range(12), "training")
    test, asked = make_set(range(100, 108), "validation")
    return train, test, learned | asked


# --- rows of features ------------------------------------------------------------------------------------


def test_rows_are_the_mean_of_the_joined_curve():
    rng = np.random.default_rng(3)
    times = np.sort(rng.uniform(0.2, 9.0, size=17))
    feats = VideoFeatures(
        times=times, embeddings=rng.standard_normal((17, 3)).astype(np.float32), roles="I" * 17, end_seconds=9.5
    )
    for rows, start, end in ((5, 0.0, None), (40, 0.0, None), (7, 2.3, 6.1)):
        made = feature_rows(feats, rows, start=start, end=end)
        fine = np.linspace(start, 9.5 if end is None else end, rows * 4000 + 1)
        middle = (fine[1:] + fine[:-1]) / 2
        for column in range(3):
            curve = np.interp(middle, times, feats.embeddings[:, column].astype(np.float64))
            assert np.abs(made[:, column] - curve.reshape(rows, -1).mean(axis=1)).max() < 2e-5
    assert made.dtype == np.float32


def test_rows_do_not_depend_on_the_rate_of_a_smooth_curve():
    def at(fps):
        times = np.arange(int(20 * fps)) / fps
        rows = np.stack([np.sin(times), np.cos(times / 3)], axis=1).astype(np.float32)
        return VideoFeatures(times=times, embeddings=rows, roles="I" * len(times), video={"duration_seconds": 20.0})

    assert np.abs(feature_rows(at(3.0), 32) - feature_rows(at(25.0), 32))[:-2].max() < 0.02


def test_rows_of_one_frame_and_of_none():
    one = VideoFeatures(times=np.zeros(1), embeddings=np.ones((1, 2), np.float32), roles="I", settings={"fps": 1.0})
    assert (feature_rows(one, 4) == 1).all()
    assert duration_of(one) == 1.0
    none = VideoFeatures(times=np.zeros(0), embeddings=np.ones((0, 2), np.float32), roles="")
    with pytest.raises(ValueError, match="no frames"):
        feature_rows(none, 4, end=1.0)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        feature_rows(one, 0)


# --- Soft-NMS, voting, fusion ----------------------------------------------------------------------------


def test_soft_nms_is_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        starts = rng.integers(0, 12, size=15).astype(float)
        windows = np.stack([starts, starts + rng.integers(1, 6, size=15)], axis=1)
        scores = rng.uniform(0, 1, size=15)
        left = [(float(score), tuple(window)) for score, window in zip(scores, windows, strict=True)]
        expected = []
        while left and len(expected) < 9:
            score, window = max(left, key=lambda item: item[0])
            if score < 0.05:
                break
            expected.append((score, window))
            left.remove((score, window))
            decayed = []
            for other, span in left:
                inter = max(0.0, min(window[1], span[1]) - max(window[0], span[0]))
                iou = inter / (window[1] - window[0] + span[1] - span[0] - inter)
                decayed.append((other * math.exp(-iou * iou / 0.4), span))
            left = decayed
        kept, values = soft_nms(windows, scores, sigma=0.4, min_score=0.05, top=9)
        assert values == pytest.approx([score for score, _ in expected])
        assert [tuple(windows[index]) for index in kept] == [window for _, window in expected]
    assert len(soft_nms(np.zeros((0, 2)), np.zeros(0))[0]) == 0
    with pytest.raises(ValueError, match="sigma must be > 0"):
        soft_nms(windows, scores, sigma=0)


def test_voting_is_the_weighted_mean_of_near_windows():
    windows = np.array([[0.0, 10.0], [1.0, 11.0], [40.0, 50.0]])
    scores = np.array([0.6, 0.2, 0.9])
    voted = vote(windows[:1], windows, scores, iou=0.7)
    assert voted == pytest.approx(np.array([[0.25, 10.25]]))  # (0.6 * 0 + 0.2 * 1) / 0.8
    assert vote(windows, windows, scores, iou=1.0) == pytest.approx(windows)


def test_fusion_names_every_segment_with_the_likeliest_classes():
    found = [Detection(0, 2, "activity", 0.64), Detection(3, 4, "activity", 0.16)]
    fused = fuse_classes(found, {"run": 0.25, "sit": 0.05, "jump": 0.81}, top=2)
    assert [(one.label, one.start, pytest.approx(one.score)) for one in fused] == [
        ("jump", 0, 0.8 * 0.9),
        ("run", 0, 0.8 * 0.5),
        ("jump", 3, 0.4 * 0.9),
        ("run", 3, 0.4 * 0.5),
    ]
    assert fuse_classes(found, {}) == []


# --- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "window"), [(7, 3), (50, 9), (64, 41), (33, 101)])
def test_local_attention_is_masked_attention(rows, window):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, rows, 6, dtype=torch.float64)
    valid = torch.rand(2, rows) < 0.7
    place = torch.arange(rows)
    near = (place[:, None] - place[None, :]).abs() <= window // 2
    allowed = near & valid[:, None, :] | torch.eye(rows, dtype=torch.bool)
    weights = (q @ k.mT / math.sqrt(6)).masked_fill(~allowed[:, None], -math.inf).softmax(-1)
    assert torch.allclose(local_attention(q, k, v, valid, window), weights @ v, atol=1e-12)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    network = ActionFormer(Architecture(dim=DIM, classes=3, width=16, heads=2, levels=4)).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # as after training: no bias is 0
            parameter.add_(0.2 * torch.randn_like(parameter))
    rows = torch.randn(1, 37, DIM)
    alone = network(rows, torch.ones(1, 37, dtype=torch.bool))
    padded = network(F.pad(rows, (0, 0, 0, 27), value=9.0), torch.arange(64)[None] < 37)
    for name in ("logits", "distances"):
        one, other = getattr(alone, name)[alone.valid], getattr(padded, name)[padded.valid]
        assert torch.allclose(one, other, atol=1e-5)
    counts = [padded.valid[0, a:b].sum().item() for a, b in ((0, 64), (64, 96), (96, 112), (112, 120))]
    assert counts == [37, 19, 10, 5]  # every second row of the level below


def test_targets_are_the_rule_in_a_loop():
    network = ActionFormer(Architecture(dim=DIM, classes=3, width=16, heads=2, levels=4))
    points = network.points(60)
    rng = np.random.default_rng(1)
    starts = rng.uniform(0, 50, size=9)
    segments = torch.tensor(np.stack([starts, starts + rng.uniform(0.5, 30, size=9)], axis=1), dtype=torch.float32)
    labels = torch.tensor(rng.integers(0, 3, size=9))
    classes, distances = targets(points, segments, labels, 3, 1.5)
    assert len(points.position) == 64 + 32 + 16 + 8
    positives = 0
    for index, (place, stride) in enumerate(zip(points.position.tolist(), points.stride.tolist(), strict=True)):
        low, high = {1: (0, 4), 2: (4, 8), 4: (8, 16), 8: (16, math.inf)}[int(stride)]
        candidates = []
        for (start, end), label in zip(segments.tolist(), labels.tolist(), strict=True):
            left, right = place - start, end - place
            central = abs(place - (start + end) / 2) < 1.5 * stride
            if left > 0 and right > 0 and central and low <= max(left, right) <= high:
                candidates.append((end - start, label, left / stride, right / stride))
        expected = [0.0, 0.0, 0.0]
        if candidates:
            positives += 1
            shortest = min(candidates)
            expected[shortest[1]] = 1.0
            assert distances[index].tolist() == pytest.approx(shortest[2:], abs=1e-4)
        assert classes[index].tolist() == expected
    assert positives > 10
    assert not targets(points, torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 3, 1.5)[0].any()


def test_losses_are_their_formulas():
    logits, wanted = torch.tensor([0.3, -2.0, 1.5]), torch.tensor([1.0, 0.0, 0.0])
    expected = []
    for x, y in zip(logits.tolist(), wanted.tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        right, weight = (p, 0.25) if y else (1 - p, 0.75)
        expected.append(-weight * (1 - right) ** 2 * math.log(right))
    assert focal_loss(logits, wanted).tolist() == pytest.approx(expected, rel=1e-5)
    # around the point 10: found [8, 11], wanted [7, 13]
    loss = diou_loss(torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 3.0]]))
    assert loss.item() == pytest.approx(1 - 3 / 6 + ((9.5 - 10) / 6) ** 2)
    assert diou_loss(torch.zeros(1, 2), torch.zeros(1, 2)).item() == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": None}, "give either rows"),
        ({"fps": 2.0}, "give either rows"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"warmup_epochs": 99}, "warmup_epochs must be from 0 to epochs"),
        ({"crop": (0.9, 0.5)}, "crop must be two shares"),
        ({"window": 4}, "window must be an odd number"),
        ({"width": 30}, "multiple of heads"),
        ({"rate": 0.0}, "rate must be a finite number > 0"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\)"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LocalizerSettings(**changes)


# --- training --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    train, test, activities = data
    folder = tmp_path_factory.mktemp("localizer")
    state = torch.random.get_rng_state()
    outcome = evaluate_localization(train, test, activities, settings=TINY, folder=folder)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's
    return outcome, folder


def test_it_learns_what_the_features_show(trained, data):
    outcome, _ = trained
    train, test, activities = data
    assert outcome.metrics["mAP@0.5"] > 75
    assert outcome.metrics["mAP"] > 45
    assert outcome.failures == ()
    blind = evaluate_localization(
        without_content(train), without_content(test, seed=1), activities, settings=replace(TINY, epochs=6)
    )
    assert blind.metrics["mAP@0.5"] < 35
    for found in outcome.predictions.values():
        assert all(0 <= one.start <= one.end <= 32.0 for one in found)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_zero_shot_is_a_floor(data):
    _, test, activities = data
    text = {label: np.eye(DIM)[number] for number, label in enumerate(LABELS)}
    outcome = zero_shot_localization(test, activities, text)
    assert 5 < outcome.metrics["mAP@0.5"] < 100
    assert list(outcome.blocks) == ["zero-shot"]
    found = localize_zero_shot(test["100"], text)
    assert {one.label for one in found} <= set(LABELS)


def test_same_seed_same_weights_and_a_killed_run_goes_on(data, tmp_path):
    train, _, activities = data
    segments = {video: one.segments for video, one in activities.subset("training").items()}
    short = replace(TINY, epochs=3, drop_path=0.2, drop_input=0.2)

    class Killed(Exception):
        pass

    def kill(epoch, epochs, loss):
        if epoch == 2:
            raise Killed

    whole = train_localizer(train, segments, LABELS, short)
    again = train_localizer(train, segments, LABELS, short, folder=tmp_path / "whole")
    with pytest.raises(Killed):
        train_localizer(train, segments, LABELS, short, folder=tmp_path / "killed", epoch_done=kill)
    said = []
    resumed = train_localizer(train, segments, LABELS, short, folder=tmp_path / "killed", say=said.append)
    other = train_localizer(train, segments, LABELS, replace(short, seed=1))
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])
        assert torch.equal(tensor, resumed.network.state_dict()[name])
    assert said == ["goes on after epoch 2 of 3"]
    assert not torch.equal(whole.network.scales, other.network.scales)
    with pytest.raises(TrainingError, match="other settings"):
        train_localizer(train, segments, LABELS, replace(short, rate=1e-3), folder=tmp_path / "killed")


def test_a_finished_run_only_predicts(trained, data):
    outcome, folder = trained
    train, test, activities = data
    epochs = []
    again = evaluate_localization(
        train, test, activities, settings=TINY, folder=folder, epoch_done=lambda *facts: epochs.append(facts)
    )
    assert epochs == []
    assert again.predictions == outcome.predictions
    loaded = Localizer.load(folder)
    assert loaded.labels == LABELS
    assert loaded.settings == TINY
    assert tuple(loaded.predict(test["100"])) == outcome.predictions["100"]
    config = json.loads((folder / "localizer.json").read_text(encoding="utf-8"))
    assert config["facts"]["videos"] == 12
    (folder / "copy").mkdir()
    (folder / "copy" / "localizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TrainingError, match="damaged"):
        Localizer.load(folder / "copy")
    with pytest.raises(TrainingError, match=r"localizer\.json is missing"):
        Localizer.load(folder / "nowhere")


def test_a_classifier_names_what_one_class_finds(data):
    train, test, activities = data
    scores = {}
    for video, one in activities.subset("validation").items():
        seconds = {label: sum(s.end - s.start for s in one.segments if s.label == label) for label in LABELS}
        scores[video] = {label: value / 32.0 for label, value in seconds.items()}
    del scores["107"]
    settings = replace(TINY, epochs=12, voting=0.9)
    outcome = evaluate_localization(train, test, activities, settings=settings, class_scores=scores)
    assert outcome.localizer.labels == ("activity",)
    assert {one.label for found in outcome.predictions.values() for one in found} == set(LABELS)
    assert outcome.predictions["107"] == ()
    assert any("1 videos have no class scores (107)" in note for note in outcome.notes)
    with pytest.raises(ValueError, match="finds activities of no class: give the class scores"):
        evaluate_localization(train, test, activities, localizer=outcome.localizer)
    assert outcome.metrics["mAP@0.5"] > 18  # half of the names are wrong, as every segment gets both


def test_rows_at_a_rate_for_videos_of_any_length(data):
    train, test, activities = data
    settings = replace(TINY, rows=None, fps=2.0, max_rows=40, epochs=16, positions=False)
    short = replace(train["000"].slice(0.0, 20.0), video={"duration_seconds": 20.0})
    train = {**train, "000": short}  # lengths differ, so batches are padded
    outcome = evaluate_localization(train, test, activities, settings=settings)
    assert outcome.metrics["mAP@0.5"] > 40


def test_what_cannot_work_is_said_before_training(data):
    train, test, activities = data

    def trained(*facts):
        pytest.fail("trained")

    for features, changes, message in (
        ({}, {}, "none of the 8 videos of 'validation' has features, such as 100, 101, 102 and 5 more"),
        (test, {"blocked": frozenset(test)}, "no video of 'validation' that counts has a segment"),
        (test, {"tious": (0.5, 1.5)}, r"must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_localization(train, features, activities, settings=TINY, epoch_done=trained, **changes)


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(data):
    train, test, activities = data
    broken = {
        **{video: feats for video, feats in test.items() if video != "101"},
        "102": make_video(102, model="another")[0],
        "103": make_video(103, fps=5.0)[0],
        "104": make_video(104, seconds=20.0)[0],
    }
    settings = replace(TINY, epochs=1, warmup_epochs=0)
    learned = {**train, "005": make_video(5, model="another")[0]}
    outcome = evaluate_localization(learned, broken, activities, settings=settings)
    assert [(failure.video, failure.kind) for failure in outcome.failures] == [
        ("005", "unreadable"),
        ("101", "missing"),
        ("102", "unreadable"),
    ]
    assert "model id is 'toy'" in outcome.failures[2].error
    assert outcome.as_dict()["partial"]
    assert any(
        "1 videos are of another length than annotated: 104 (20.0 s, annotated 32.0 s)" in n for n in outcome.notes
    )
    assert any("different rates: 5 at 2/s, 1 at 5/s" in note for note in outcome.notes)
    segments = {video: one.segments for video, one in activities.subset("training").items()}
    with pytest.raises(TrainingError, match="none of the 12 videos has a segment"):
        train_localizer(train, {}, LABELS, settings)
    with pytest.raises(FeaturesError, match="different origin"):
        train_localizer({**train, "x": make_video(1, model="another")[0]}, segments, LABELS, settings)
    fewer = {video: feats for video, feats in train.items() if video != "000"}
    with pytest.raises(ValueError, match=r"none of the 1 videos can be used: 100: .* model id is 'toy'"):
        unusable = {"100": make_video(100, model="another")[0]}
        evaluate_localization(fewer, unusable, activities, settings=settings, blocked=frozenset(test) - {"100"})
    zeros = replace(test["100"], embeddings=np.zeros_like(test["100"].embeddings))
    text = {label: np.eye(DIM)[number] for number, label in enumerate(LABELS)}
    floor = zero_shot_localization({**test, "100": zeros}, activities, text)
    assert [(failure.video, failure.kind) for failure in floor.failures] == [("100", "unreadable")]


# --- the command -----------------------------------------------------------------------------------------


def test_command_trains_predicts_and_scores_its_own_predictions(data, tmp_path):
    train, test, activities = data
    for folder, features in (("train", train), ("test", test)):
        (tmp_path / folder).mkdir()
        for video, feats in features.items():
            if video != "104":
                feats.save(tmp_path / folder / f"v_{video}.npz")
    (tmp_path / "test" / "v_105.npz").write_bytes(b"nothing")
    (tmp_path / "test" / "more").mkdir()
    test["100"].save(tmp_path / "test" / "more" / "100.npz")
    annotations = activities.write(tmp_path / "anet.json")
    command = ["evaluate", "localization", "--annotations", str(annotations)]
    features = ["--features", str(tmp_path / "test")]
    training = ["--train-features", str(tmp_path / "train"), "--preset", "synthetic", "--epochs", "2"]
    out = tmp_path / "out"
    run = CliRunner().invoke(app, [*command, *features, *training, "--out", str(out), "--json"])
    assert run.exit_code == 1  # a video has no features, one has none that can be read, one has two files
    assert "missing: 104: has no features" in run.stderr
    record = json.loads(run.stdout)
    assert [failure["video"] for failure in record["failures"]] == ["104", "105", "100"]
    assert record == json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert {file.name for file in out.iterdir()} >= {
        "localizer.safetensors", "localizer.json", "predictions.json", "metrics.json", "log.csv",
    }  # fmt: skip
    scored = CliRunner().invoke(app, [*command, "--predictions", str(out / "predictions.json"), "--json"])
    assert json.loads(scored.stdout)["mAP"] == pytest.approx(record["mAP"])
    loaded = CliRunner().invoke(app, [*command, *features, "--checkpoint", str(out), "--json"])
    assert json.loads(loaded.stdout)["mAP"] == record["mAP"]
    for arguments, message in (
        (["--predictions", "p.json", *features], "--features has no meaning with --predictions"),
        (["--predictions", "p.json", "--baselines"], "--baselines has no meaning with --predictions"),
        ([*features, "--checkpoint", str(out), "--epochs", "3"], "--epochs has no meaning with --checkpoint"),
    ):
        assert message in str(CliRunner().invoke(app, [*command, *arguments]).exception)


def test_a_folder_of_features_reads_each_file_once_and_names_doubles(data, tmp_path):
    train, _, _ = data
    train["000"].save(tmp_path / "v_000.npz")
    train["001"].save(tmp_path / "001.npz")
    (tmp_path / "deeper").mkdir()
    train["000"].save(tmp_path / "deeper" / "000.npz")
    folder = FeatureFolder(tmp_path)
    assert sorted(folder) == ["000", "001"]
    assert folder["001"] is folder["001"]
    assert len(folder.failures) == 1
    assert "has features of 000 already" in folder.failures[0].error
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FeaturesError, match="holds no features"):
        FeatureFolder(empty)
