"""Measures of grounding: against loops written from the definitions, and against stored and published figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from everyframe.evaluation.moment_files import read_moments
from everyframe.evaluation.moment_predictions import match, read_predictions
from everyframe.evaluation.moments import (
    AP_IOUS,
    average_precision,
    first_answer_metrics,
    highlight_metrics,
    moment_metrics,
    saliency_table,
)

ANNOTATIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "annotations"

# --- the definitions, one query and one window at a time -------------------------------------------------


def iou(a, b) -> float:
    inside = min(a[1], b[1]) - max(a[0], b[0])
    if inside <= 0:
        return 0.0
    return inside / (max(a[1], b[1]) - min(a[0], b[0]))


def naive_recall(truth, answers, top, level, strict=False) -> float:
    found = 0
    for windows, given in zip(truth, answers, strict=True):
        values = [iou(answer, window) for answer in given[:top] for window in windows]
        found += any(value > level if strict else value >= level for value in values)
    return 100 * found / len(truth)


def naive_precision(windows, given, level) -> float:
    """Precision and recall after every answer, then the area under the interpolated curve."""
    free = list(range(len(windows)))
    right = []
    for answer in sorted(given.tolist(), key=lambda answer: -answer[2]):
        fitting = [number for number in free if iou(answer, windows[number]) >= level]
        right.append(bool(fitting))
        if fitting:
            best = max(fitting, key=lambda number: (iou(answer, windows[number]), number))
            free.remove(best)
    points = [(sum(right[:n]) / len(windows), sum(right[:n]) / n) for n in range(1, len(right) + 1)]
    area, last = 0.0, 0.0
    for recall, _ in points:
        if recall > last:
            area += (recall - last) * max(precision for other, precision in points if other >= recall)
            last = recall
    return area


def random_queries(seed: int):
    """Truth of one to four windows, some without length; up to 13 answers, some without length, many tied."""
    rng = np.random.default_rng(seed)
    truth, answers = [], []
    for _ in range(40):
        grid = rng.integers(0, 60, (int(rng.integers(1, 5)), 2)).astype(float)
        truth.append(np.sort(grid, axis=1))
        count = int(rng.choice([0, 1, 5, 13]))
        windows = np.sort(rng.integers(0, 60, (count, 2)).astype(float), axis=1)
        if count > 2:
            windows[1] = truth[-1][0]
            windows[2] = 7.0
        answers.append(np.column_stack([windows, rng.choice([0.1, 0.5, 0.9], count)]))
    return truth, answers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strict", [False, True])
def test_recall_and_miou_equal_loops(seed, strict):
    truth, answers = random_queries(seed)
    metrics = moment_metrics(truth, answers, strict=strict)
    for top in (1, 5, 10):
        for level in (0.1, 0.3, 0.5, 0.7):
            expected = naive_recall(truth, answers, top, level, strict)
            assert metrics[f"R{top}@{level:g}"] == pytest.approx(expected, abs=1e-9)
    many = [naive_recall(truth, answers, 1, level, strict) for level in AP_IOUS]
    assert [metrics[f"R1@{level:g}"] for level in AP_IOUS] == pytest.approx(many, abs=1e-9)
    assert metrics["R1@0.5:0.95"] == pytest.approx(np.mean(many))
    pairs = zip(truth, answers, strict=True)
    best = [max(iou(given[0], window) for window in windows) if len(given) else 0 for windows, given in pairs]
    assert metrics["mIoU"] == pytest.approx(100 * np.mean(best))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_the_definition(seed):
    truth, answers = random_queries(seed)
    metrics = moment_metrics(truth, answers)
    for level in AP_IOUS:
        each = [naive_precision(w, given[:10], level) for w, given in zip(truth, answers, strict=True)]
        assert metrics[f"mAP@{level:g}"] == pytest.approx(100 * np.mean(each), abs=1e-9)
    assert metrics["mAP"] == pytest.approx(np.mean([metrics[f"mAP@{level:g}"] for level in AP_IOUS]))
    short = [w[(w[:, 1] - w[:, 0] > 0) & (w[:, 1] - w[:, 0] <= 10)] for w in truth]
    kept = [number for number, windows in enumerate(short) if len(windows)]
    each = [naive_precision(short[number], answers[number][:10], 0.5) for number in kept]
    assert metrics["MR-short-mAP@0.5"] == pytest.approx(100 * np.mean(each), abs=1e-9)
    first = naive_recall([short[number] for number in kept], [answers[number] for number in kept], 1, 0.5)
    assert metrics["MR-short-R1@0.5"] == pytest.approx(first)


def test_by_hand():
    truth = [np.array([[0.0, 10.0]]), np.array([[20.0, 30.0], [50.0, 50.0]])]
    answers = [np.array([[0, 5, 0.9], [0, 10, 0.8]]), np.array([[50, 50, 1.0], [20, 30, 0.5]])]
    metrics = moment_metrics(truth, answers)
    assert (metrics["R1@0.5"], metrics["R1@0.7"], metrics["R5@0.7"]) == (50.0, 0.0, 100.0)
    assert metrics["mIoU"] == 25.0  # a window without length overlaps nothing, not even itself
    # First query: right at 0.5 from rank 1, at 0.75 from rank 2. Second: one of two windows, at rank 2.
    assert metrics["mAP@0.5"] == pytest.approx(100 * (1 + 0.25) / 2)
    assert metrics["mAP@0.75"] == pytest.approx(100 * (0.5 + 0.25) / 2)
    assert moment_metrics(truth, answers, strict=True)["R1@0.5"] == 0.0  # exactly at it is not above it
    assert "MR-long-mAP" not in metrics


def test_answers_without_queries_and_other_bad_arguments():
    one = [np.array([[0.0, 1.0]])]
    assert moment_metrics(one, [np.empty((0, 3))])["mAP"] == 0
    assert average_precision(one[0], np.empty((0, 3))).tolist() == [0.0] * len(AP_IOUS)
    with pytest.raises(ValueError, match="answers of 0 queries but truth of 1"):
        moment_metrics(one, [])
    with pytest.raises(ValueError, match="no queries"):
        moment_metrics([], [])
    with pytest.raises(ValueError, match="query 0 has no window"):
        moment_metrics([np.empty((0, 2))], [np.array([[0.0, 1.0, 1.0]])])
    with pytest.raises(ValueError, match="predictions of 0 queries but saliency of 1"):
        highlight_metrics([np.zeros((3, 3))], [])
    with pytest.raises(ValueError, match="no queries"):
        highlight_metrics([], [])


# --- highlights ------------------------------------------------------------------------------------------


def naive_clip_precision(wanted, scores) -> float:
    """Mean over the recalls that some threshold reaches of the best precision at that recall or above."""
    points = []
    for threshold in set(scores):
        chosen = [w for w, s in zip(wanted, scores, strict=True) if s >= threshold]
        points.append((sum(chosen) / max(sum(wanted), 1), sum(chosen) / len(chosen)))
    recalls = {recall for recall, _ in points if recall > 0}
    return float(np.mean([max(p for r, p in points if r >= recall) for recall in recalls])) if recalls else 0.0


@pytest.mark.parametrize("seed", range(3))
def test_highlights_equal_loops(seed):
    rng = np.random.default_rng(seed)
    saliency = [rng.integers(0, 5, (20, 3)).astype(float) for _ in range(30)]
    saliency[3][:] = 0.0
    saliency[4][:] = 4.0
    predicted = [rng.choice(np.linspace(0.1, 1, 6), int(rng.choice([12, 20, 25]))) for _ in range(30)]
    predicted[5] = None
    metrics = highlight_metrics(saliency, predicted)
    for name, least in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
        hits, precision = [], []
        for table, given in zip(saliency, predicted, strict=True):
            if given is None:
                hits.append(0)
                precision.append(0)
                continue
            best = max(range(len(given)), key=lambda k: (given[k], -k))
            hits.append(best < 20 and any(table[best] >= least))
            padded = [*given[:20], *[0.0] * (20 - len(given))]
            precision.append(np.mean([naive_clip_precision(table[:, k] >= least, padded) for k in range(3)]))
        assert metrics[f"HL-min-{name}-Hit1"] == pytest.approx(100 * np.mean(hits))
        assert metrics[f"HL-min-{name}-mAP"] == pytest.approx(100 * np.mean(precision), abs=1e-9)
    assert metrics["HL-mAP"] == metrics["HL-min-VeryGood-mAP"]


def test_saliency_table():
    table = saliency_table(7.0, (0, 2), ((4, 1, 1), (2, 3, 4)))
    assert table.tolist() == [[4, 1, 1], [0, 0, 0], [2, 3, 4]]


# --- published and stored figures ------------------------------------------------------------------------


def shared(name: str) -> Path:
    path = ANNOTATIONS / name
    if not path.is_file():
        pytest.skip("needs the annotations in ../shared/data")
    return path


def test_moment_detr_values_are_reproduced():
    """All 104 values that its evaluator stored for its sample predictions, to its two decimals."""
    items = read_moments(shared("highlight_val_release.jsonl"))
    answers, faults = match(items, read_predictions(shared("sample_val_preds.jsonl")))
    assert not faults
    moments = moment_metrics([np.array(query.windows) for query in items.queries], [a.windows for a in answers])
    tables = [saliency_table(query.duration, query.clips, query.saliency) for query in items.queries]
    ours = {**moments, **highlight_metrics(tables, [answer.saliency for answer in answers])}

    def named(key: str) -> float:
        """Their flat names are ours, but that all lengths together are "full" there."""
        return round(ours[key.replace("MR-full-", "")], 2)

    stored = json.loads(shared("sample_val_preds_metrics_raw.json").read_text())
    compared = {}
    for key, value in stored["brief"].items():
        compared[key] = (named(key), value)
    for block, parts in stored.items():
        if block.startswith("HL"):
            compared |= {f"{block} {key}": (named(f"{block}{key[2:]}"), value) for key, value in parts.items()}
        elif block != "brief":
            for kind, by_iou in parts.items():
                for level, value in by_iou.items():
                    name = kind[3:] if level == "average" else f"{kind[3:]}@{level}"
                    compared[f"{block} {kind} {level}"] = (named(f"MR-{block}-{name}"), value)
    assert len(compared) == 104
    assert {key: pair for key, pair in compared.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize(
    ("name", "share", "expected"),
    [
        ("charades_test_release.jsonl", (0, 1), (35.00, 0.43, 0.00, 27.13)),
        ("charades_test_release.jsonl", (0, 1 / 3), (42.96, 30.46, 17.31, 29.17)),
        ("activitynet_val_release.jsonl", (0, 1), (42.87, 22.74, 11.39, 32.29)),
    ],
)
def test_floors_are_those_of_the_official_splits(name, share, expected):
    items = read_moments(shared(name))
    lengths = np.array([query.duration for query in items.queries])
    metrics = first_answer_metrics([np.array(q.windows) for q in items.queries], lengths[:, None] * np.array(share))
    found = [metrics[key] for key in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")]
    assert [round(value, 2) for value in found] == list(expected)
