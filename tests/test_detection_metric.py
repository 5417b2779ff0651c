"""mAP of temporal detections against a loop written from the definition, on random inputs with ties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from everyframe.cli import app
from everyframe.evaluation.detection import TIOUS, detection_map
from everyframe.evaluation.localization import score_predictions
from everyframe.evaluation.reading import AnnotationError
from everyframe.evaluation.segment_files import (
    activities_of_events,
    plain_id,
    read_activities,
    read_blocked,
    read_class_scores,
    read_predictions,
    write_predictions,
)
from everyframe.synthetic import SyntheticVideo
from everyframe.tasks.localization import Detection, Segment


def naive_iou(a, b):
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union > 0 else 0.0


def naive_map(truth, predictions, tious, blocked=()):
    """ActivityNet's evaluation, one prediction, one ground truth and one threshold at a time."""
    truth = {video: own for video, own in truth.items() if video not in blocked}
    clean = []
    for video, segments in truth.items():
        kept = []
        for s in segments:
            if s.end - s.start <= 0:
                continue
            if any(s.label == k.label and abs(s.start - k.start) <= 1e-3 and abs(s.end - k.end) <= 1e-3 for k in kept):
                continue
            kept.append(s)
        clean += [(video, s) for s in kept]
    labels = []
    for _, s in clean:
        if s.label not in labels:
            labels.append(s.label)
    result = {}
    for t in tious:
        aps = []
        for label in labels:
            wanted = [(video, s) for video, s in clean if s.label == label]
            ranked = [
                (d.score, number, video, d)
                for number, (video, d) in enumerate(
                    (video, d)
                    for video, own in predictions.items()
                    if video not in blocked
                    for d in own
                    if d.label == label
                )
            ]
            ranked.sort(key=lambda item: (-item[0], -item[1]))
            used, curve, right = set(), [], 0
            for place, (_, _, video, d) in enumerate(ranked, 1):
                best, best_iou = None, -1.0
                for index, (other, s) in enumerate(wanted):
                    if other != video or index in used:
                        continue
                    iou = naive_iou((d.start, d.end), (s.start, s.end))
                    if iou >= t and iou >= best_iou:
                        best, best_iou = index, iou
                if best is not None:
                    used.add(best)
                    right += 1
                curve.append((right / len(wanted), right / place))
            area, last = 0.0, 0.0
            for index, (recall, _) in enumerate(curve):
                if recall != last:
                    area += (recall - last) * max(p for _, p in curve[index:])
                    last = recall
            aps.append(area)
        result[t] = float(np.mean(aps))
    return result


def random_case(seed):
    """Times on a coarse grid and scores with few values, so that everything ties; also what should not be there."""
    rng = np.random.default_rng(seed)
    truth, predictions = {}, {}
    for video in range(6):
        truth[f"v{video}"] = [
            Segment(float(start), float(start + rng.integers(0, 8)), str(rng.choice(["a", "b", "c"])))
            for start in rng.integers(0, 20, size=rng.integers(0, 7))
        ]
        if rng.random() < 0.3 and truth[f"v{video}"]:
            first = truth[f"v{video}"][0]
            truth[f"v{video}"].append(Segment(first.start + 5e-4, first.end, first.label))
    for video in range(8):
        if rng.random() < 0.2:
            continue
        predictions[f"v{video}"] = [
            Detection(
                float(start),
                float(start + rng.integers(-2, 8)),
                str(rng.choice(["a", "b", "d"])),
                float(rng.integers(0, 4) / 4),
            )
            for start in rng.integers(0, 20, size=rng.integers(0, 12))
        ]
    return truth, predictions


@pytest.mark.parametrize("seed", range(25))
def test_map_is_the_definition(seed):
    truth, predictions = random_case(seed)
    tious = (0.1, 0.3, 0.5, 0.75, 0.95, 1.0)
    blocked = {"v1"} if seed % 3 == 0 else set()
    expected = naive_map(truth, predictions, tious, blocked)
    score = detection_map(truth, predictions, tious=tious, blocked=blocked)
    assert score.at == pytest.approx(expected, abs=1e-12)
    assert score.mean == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
    assert score.mean == pytest.approx(np.mean(list(score.by_class.values())), abs=1e-12)


def test_counts_say_what_was_met():
    truth = {
        "x": [Segment(0, 4, "a"), Segment(0.0005, 4, "a"), Segment(0, 4, "b"), Segment(5, 5, "a"), Segment(7, 6, "a")],
        "y": [Segment(1, 2, "a")],
    }
    predictions = {
        "x": [Detection(0, 4, "a", 0.9), Detection(4, 0, "a", 0.5), Detection(0, 4, "zebra", 1.0)],
        "z": [Detection(0, 4, "a", 0.8)],
    }
    score = detection_map(truth, predictions, blocked={"y"})
    assert (score.videos, score.segments, score.repeated, score.empty) == (1, 2, 1, 2)
    counts = score.counts()
    assert counts["unknown_videos"] == 1
    assert counts["unknown_labels"] == 1
    assert counts["reversed"] == 1
    assert score.by_class == {"a": 1.0, "b": 0.0}  # the false positives come behind the only hit
    assert score.metrics() == {"mAP": 50.0, "mAP@0.5": 50.0, "mAP@0.75": 50.0, "mAP@0.95": 50.0}


def test_no_predictions_find_nothing_and_no_truth_is_an_error():
    truth = {"x": [Segment(0, 4, "a")]}
    assert detection_map(truth, {}).metrics()["mAP"] == 0.0
    assert detection_map(truth, {"x": []}).mean == 0.0
    assert tuple(detection_map(truth, {}).at) == TIOUS == tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
    with pytest.raises(ValueError, match="no segments"):
        detection_map({"x": [Segment(3, 3, "a")]}, {})
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        detection_map(truth, {}, tious=[0.0])


# --- files -----------------------------------------------------------------------------------------------


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def activitynet(tmp_path, **videos):
    return write(tmp_path / "anet.json", {"version": "VERSION 1.3", "taxonomy": [], "database": videos})


def video(segments, subset="validation", duration=10.0):
    annotations = [{"segment": [start, end], "label": label} for start, end, label in segments]
    return {"duration": duration, "subset": subset, "resolution": "320x240", "url": "", "annotations": annotations}


def test_activitynet_is_read_and_its_odd_segments_are_told_of(tmp_path):
    path = activitynet(
        tmp_path,
        a=video([(0, 4, "run"), (3, 3, "run"), (8, 12.5, "jump")]),
        v_b=video([(1, 2, "run")], "training"),
        c={"subset": "testing", "annotations": []},
    )
    read = read_activities(path)
    assert list(read.videos) == ["a", "b", "c"]
    assert read.videos["a"].segments[2] == Segment(8.0, 12.5, "jump")
    assert read.videos["c"].duration is None
    assert list(read.subset("Validation")) == ["a"]  # THUMOS14 writes its subsets with capitals
    assert any("1 annotated segments reach outside their video" in note and ": a" in note for note in read.notes)
    assert any("1 annotated segments end where or before they start" in note for note in read.notes)
    with pytest.raises(AnnotationError, match=r"no video of subset 'test'; there are: testing, training, validation"):
        read.subset("test")
    again = read_activities(read.write(tmp_path / "again.json"))
    assert again.videos == read.videos


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"database": {"a": {"annotations": []}}}, "anet.json a: must be an object with a subset"),
        ({"database": {"a": video([(0, "x", "run")])}}, "anet.json a entry 1: segment must be a finite number"),
        ({"database": {"a": {"subset": "x", "annotations": [{"label": "run"}]}}}, "a entry 1: must be an object with"),
        ({"database": {"a": {"subset": "x", "annotations": {}}}}, "anet.json a: annotations must be a list"),
        ({"database": {"a": video([]), "v_a": video([])}}, "a is there twice, with and without v_"),
        ({"database": {}}, "has no videos"),
        ({"results": {}}, "is neither ActivityNet-1.3"),
        ([1, 2], "is neither ActivityNet-1.3"),
    ],
)
def test_broken_annotations_name_file_and_entry(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_activities(write(tmp_path / "anet.json", content))


def test_synthesized_events_become_classes_and_an_activitynet_file(tmp_path):
    world = SyntheticVideo(901_003, seconds=60.0)
    lines = [
        {"qid": n, "query": e.caption, "duration": 60.0, "vid": world.name, "relevant_windows": [[e.start, e.end]]}
        for n, e in enumerate(world.events)
    ]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for by, part in (("shape", "shape"), ("colour", "colour")):
        read = read_activities(tmp_path, subset="validation", by=by)  # the folder
        own = read.videos[world.name]
        assert [segment.label for segment in own.segments] == [getattr(event.entity, part) for event in world.events]
        assert [segment.start for segment in own.segments] == [event.start for event in world.events]
    assert len({segment.label for segment in own.segments}) < len(world.events)  # several captions share a class
    written = read_activities(read.write(tmp_path / "anet.json"))
    assert written.videos == read.videos
    assert not written.synthesized
    with pytest.raises(AnnotationError, match="annotated twice"):
        read | written
    with pytest.raises(AnnotationError, match="'someone opens a door' names no colour"):
        activities_of_events({"x": (5.0, [("someone opens a door", 0.0, 1.0)])})


def test_predictions_are_read_scored_and_nothing_is_dropped_in_silence(tmp_path):
    annotations = activitynet(
        tmp_path, a=video([(0, 4, "run"), (5, 9, "jump")]), b=video([(2, 6, "run")]), c=video([(0, 9, "jump")])
    )
    predictions = {
        "version": "x",
        "results": {
            "v_a": [
                {"segment": [0, 4], "label": "run", "score": 0.9},
                {"segment": [5, 30], "label": "jump", "score": 0.8},
                {"segment": [4, 2], "label": "run", "score": 0.1},
            ],
            "b": [{"segment": [2, 6], "label": "sit", "score": 0.9}],
            "elsewhere": [{"segment": [2, 6], "label": "run", "score": 0.95}],
        },
    }
    activities = read_activities(annotations)
    read = read_predictions(write(tmp_path / "p.json", predictions), activities)
    outcome = score_predictions(read, activities)
    # run: a false positive of an unknown video, a hit, a false positive: AP = 1/2 of 2 segments; jump: nothing fits.
    assert outcome.metrics["mAP@0.5"] == pytest.approx(100 * (0.5 * 0.5 + 0) / 2)
    notes = " | ".join(outcome.notes)
    for said in (
        "1 predicted segments reach outside their video",
        "1 predicted segments end before they start",
        "1 predictions are of videos that subset 'validation' does not have, elsewhere:",
        "1 predictions have labels that subset 'validation' does not have, sit:",
        "1 videos have no predictions, c",
    ):
        assert said in notes
    again = read_predictions(write_predictions(tmp_path / "again.json", read.videos))
    assert again.videos == read.videos
    blocked = read_blocked(write(tmp_path / "blocked.json", ["v_b", "c"]))
    alone = score_predictions(read, activities, blocked=blocked)
    assert alone.wanted == 1
    assert alone.metrics["mAP@0.5"] == pytest.approx(100 * (0.5 + 0) / 2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"segment": [0, 1], "label": "run"}, "p.json a entry 1: has no score"),
        ({"segment": [0, 1], "label": "run", "score": "high"}, "score must be a finite number, got 'high'"),
        ({"segment": [0, 1, 2], "label": "run", "score": 1}, r"segment must be \[start, end\]"),
        ({"label": "run", "score": 1}, "must be an object with segment and label"),
    ],
)
def test_broken_predictions_name_file_and_entry(tmp_path, entry, message):
    with pytest.raises(AnnotationError, match=message):
        read_predictions(write(tmp_path / "p.json", {"results": {"a": [entry]}}))
    with pytest.raises(AnnotationError, match="a is there twice"):
        read_predictions(write(tmp_path / "p.json", {"results": {"a": [], "v_a": []}}))
    with pytest.raises(AnnotationError, match="must be"):
        read_predictions(write(tmp_path / "p.json", {"predictions": {}}))


def test_class_scores_in_both_layouts(tmp_path):
    plain = {"v_a": {"run": 0.7, "jump": 0.3}}
    cuhk = {"results": {"a": [0.7, 0.3]}, "class": ["run", "jump"]}
    expected = {"a": {"run": 0.7, "jump": 0.3}}
    assert read_class_scores(write(tmp_path / "plain.json", plain)) == expected
    assert read_class_scores(write(tmp_path / "cuhk.json", cuhk)) == expected
    for broken, message in (
        ({"results": {"a": [0.7]}, "class": ["run", "jump"]}, "a: has 1 scores for 2 classes"),
        ({"a": [0.7]}, "no list of labels under class"),
        ({"a": {"run": None}}, "score of run must be a finite number"),
        ({"a": 3}, "must be scores by label"),
    ):
        with pytest.raises(AnnotationError, match=message):
            read_class_scores(write(tmp_path / "broken.json", broken))


def test_ids_lose_folder_suffix_and_prefix():
    assert [plain_id(name) for name in ("v_x", "x", "videos/v_x.mp4", "x.y")] == ["x", "x", "x", "x.y"]


def test_command_scores_predictions(tmp_path):
    annotations = activitynet(tmp_path, a=video([(0, 4, "run")]), b=video([(2, 6, "run")]))
    results = {"results": {"a": [{"segment": [0, 3], "label": "run", "score": 0.5}]}}
    predictions = write(tmp_path / "p.json", results)
    command = ["evaluate", "localization", "--annotations", str(annotations), "--predictions", str(predictions)]
    run = CliRunner().invoke(app, [*command, "--json", "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    record = json.loads(run.stdout)
    assert record["mAP@0.5"] == record["mAP@0.75"] == 50.0
    assert record["mAP@0.95"] == 0.0
    assert record["mAP"] == pytest.approx(50 * 6 / 10)  # IoU 0.75 reaches 0.5 to 0.75
    assert record == json.loads(Path(tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    run = CliRunner().invoke(app, [*command, "--tiou", "0.3,0.8"])
    assert "mAP@0.3" in run.output
    run = CliRunner().invoke(app, ["evaluate", "localization", "--annotations", str(annotations)])
    assert isinstance(run.exception, ValueError)
    assert "give one of --features" in str(run.exception)
