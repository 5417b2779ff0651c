"""Annotations and predictions of grounding: the official layouts, and what is said of files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from everyframe.evaluation.moment_files import LAYOUTS, read_durations, read_moments
from everyframe.evaluation.moment_predictions import (
    Answer,
    match,
    read_predictions,
    unsorted,
    write_predictions,
)
from everyframe.evaluation.reading import AnnotationError

ANNOTATIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "annotations"

LINES = [
    {"qid": 7, "query": "a light", "duration": 30.96, "vid": "3MSZA", "relevant_windows": [[24.3, 30.4], [1, 2]]},
    {"qid": "q8", "query": "a door", "duration": 10, "vid": "AO8RW", "relevant_windows": [[0, 12.5]]},
]
HIGHLIGHTS = {
    **LINES[0],
    "duration": 150,
    "relevant_clip_ids": [0, 74],
    "saliency_scores": [[4, 1, 1], [4, 2, 1]],
}
CHARADES = "AO8RW 0.0 6.9##a person is putting a book on a shelf.\n\n3MSZA 24.3 30.4##person turn a light on.\n"
CAPTIONS = {"v_uq": {"duration": 55.15, "timestamps": [[0.28, 55.15], [13.79, 54.32]], "sentences": ["A.", "  The B"]}}
MAD = {"0": {"movie": "2738", "sentence": "He opens.", "movie_duration": 7081.0, "ext_timestamps": [812.1, 815.6]}}


def written(path: Path, content) -> Path:
    """A text as it is, a dict as JSON, a list as JSON lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(line) + "\n" for line in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_lines(tmp_path):
    items = read_moments(written(tmp_path / "charades_test.jsonl", LINES))
    first, second = items.queries
    assert (first.qid, first.video, first.text, first.duration) == ("7", "3MSZA", "a light", 30.96)
    assert (first.windows, second.qid) == (((24.3, 30.4), (1.0, 2.0)), "q8")
    facts = items.facts()
    assert (facts["layout"], facts["split"], facts["queries"], facts["videos"]) == ("lines", "charades_test", 2, 2)
    assert len(facts["sha256"]) == 64
    assert (facts["windows_outside"], facts["windows_clipped"], facts["left_out"]) == (1, 0, [])


def test_one_line_alone_is_lines_too(tmp_path):
    assert len(read_moments(written(tmp_path / "a.jsonl", LINES[:1])).queries) == 1
    answers = read_predictions(written(tmp_path / "p.jsonl", [{"qid": 7, "pred_relevant_windows": [[0, 1, 0.5]]}]))
    assert list(answers.answers) == ["7"]


def test_lines_are_counted_as_an_editor_does(tmp_path):
    """Blank lines count; a text may hold a separator that is none in a file, such as U+2028."""
    odd = json.dumps({**LINES[0], "query": "a light\u2028and a door"}, ensure_ascii=False)
    path = written(tmp_path / "a.jsonl", f"{odd}\n\n{json.dumps(LINES[1])}\n")
    assert read_moments(path).queries[0].text == "a light\u2028and a door"
    path = written(tmp_path / "a.jsonl", f'{odd}\n\n{{"qid": 1, "query": "x", "vid": "y"}}\n')
    with pytest.raises(AnnotationError, match=r"a\.jsonl line 3: relevant_windows must be a list, got None"):
        read_moments(path)


def test_clip_gt_counts_what_it_cuts(tmp_path):
    items = read_moments(written(tmp_path / "a.jsonl", LINES), clip_gt=True)
    assert (items.clipped, items.outside, items.queries[1].windows) == (1, 0, ((0.0, 10.0),))
    assert items.clip().clipped == 1


def test_highlights(tmp_path):
    (query,) = read_moments(written(tmp_path / "highlight_val.jsonl", [HIGHLIGHTS])).queries
    assert (query.clips, query.saliency) == ((0, 74), ((4, 1, 1), (4, 2, 1)))


def test_charades_lines_with_lengths_from_elsewhere(tmp_path):
    path = written(tmp_path / "charades_sta_test.txt", CHARADES)
    items = read_moments(path)
    assert items.layout == "charades"
    assert [(q.qid, q.video, q.text) for q in items.queries] == [
        ("0", "AO8RW", "a person is putting a book on a shelf."),
        ("1", "3MSZA", "person turn a light on."),
    ]
    assert items.without_duration == ("AO8RW", "3MSZA")
    table = written(tmp_path / "Charades_v1_test.csv", 'id,script,length\nAO8RW,"a, b",33.67\n3MSZA,"c",29.00\n')
    lengths = read_durations(table)
    assert lengths == {"AO8RW": 33.67, "3MSZA": 29.0}
    assert read_durations(written(tmp_path / "a.json", {"AO8RW": 33.67})) == {"AO8RW": 33.67}
    assert read_durations(written(tmp_path / "b.json", {"AO8RW": {"duration": 33.67}})) == {"AO8RW": 33.67}
    assert read_durations(written(tmp_path / "c.jsonl", LINES)) == {"3MSZA": 30.96, "AO8RW": 10.0}
    cut = read_moments(path, durations=lengths, clip_gt=True)
    assert (cut.clipped, cut.queries[1].windows, cut.without_duration) == (1, ((24.3, 29.0),), ())


def test_captions_and_movies(tmp_path):
    items = read_moments(written(tmp_path / "val_2.json", CAPTIONS))
    assert [(q.qid, q.video, q.text, q.windows) for q in items.queries] == [
        ("v_uq/0", "v_uq", "A.", ((0.28, 55.15),)),
        ("v_uq/1", "v_uq", "The B", ((13.79, 54.32),)),
    ]
    (query,) = read_moments(written(tmp_path / "MAD_test.json", MAD)).queries
    assert (query.qid, query.video, query.duration, query.windows) == ("0", "2738", 7081.0, ((812.1, 815.6),))


def test_entries_that_mean_nothing_are_listed_and_the_rest_goes_on(tmp_path):
    backwards = {**LINES[0], "qid": 9, "relevant_windows": [[5.0, 3.0]]}
    items = read_moments(written(tmp_path / "a.jsonl", [LINES[0], backwards, LINES[1], LINES[0]]))
    assert [query.qid for query in items.queries] == ["7", "q8"]
    assert [str(fault) for fault in items.faults] == [
        f"{tmp_path}/a.jsonl line 2: window [5, 3] of 3MSZA ends before it starts",
        f"{tmp_path}/a.jsonl line 4: qid 7 occurred before",
    ]
    with pytest.raises(AnnotationError, match=r"a\.jsonl: has no query that can be used: .* line 1: window \[5, 3\]"):
        read_moments(written(tmp_path / "a.jsonl", [backwards]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([LINES[0], {**LINES[1], "relevant_windows": [[0, None]]}], "line 2: a window must be a number of seconds"),
        ([LINES[0], {**LINES[1], "relevant_windows": [[0, 1, 2]]}], r"line 2: a window must be \[start, end\]"),
        ([LINES[0], {**LINES[1], "relevant_windows": [[0, float("nan")]]}], "line 2: a window must be a number"),
        ([LINES[0], {**LINES[1], "relevant_windows": []}], "line 2: .* a split without ground truth cannot be scored"),
        ([LINES[0], {**LINES[1], "relevant_windows": 3}], "line 2: relevant_windows must be a list"),
        ([LINES[0], {**LINES[1], "duration": "long"}], "line 2: duration must be a number of seconds, got 'long'"),
        ([LINES[0], {"qid": 1, "vid": "x", "relevant_windows": [[0, 1]]}], "line 2: has no query; its keys are"),
        ([LINES[0], 5], "is not sound JSON|line 2: must be an object"),
        (json.dumps(LINES[0]) + "\n\n{oops\n", r"a\.txt line 3: is not sound JSON"),
        ([{**HIGHLIGHTS, "relevant_clip_ids": [0, 75]}], "line 1: clip 75 is not one of the 75 clips of 2 s in 150 s"),
        ([{**HIGHLIGHTS, "relevant_clip_ids": [0]}], "line 1: has 1 relevant_clip_ids but 2 saliency_scores"),
        ([{**HIGHLIGHTS, "saliency_scores": [[4, 1, 1], [4]]}], "lists of equally many numbers"),
        ("AO8RW 0.0 6.9##a book\nAO8RW 0.0##a door\n", r"line 2: must read 'VIDEO START END##sentence'"),
        ("AO8RW 0.0 six##a book\n", "line 1: the end must be a number of seconds, got 'six'"),
        ({"v": {"timestamps": [[0, 1]], "sentences": []}}, "key 'v': has 1 timestamps but 0 sentences"),
        ({"v": {"timestamps": [[0, 1]], "sentences": [" "]}}, "key 'v' sentence 1: sentence must be a text"),
        ({"0": {"movie": "1", "sentence": "x"}}, "key '0': ext_timestamps must be"),
        ({"a": 1}, r"has no layout that is known here \(lines, charades, activitynet, mad\)"),
        ("nothing of the kind\n", "has no layout that is known here"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_moments(written(tmp_path / "a.txt", content))


def test_layouts_can_be_named(tmp_path):
    path = written(tmp_path / "a.jsonl", LINES)
    assert read_moments(path, layout="lines").queries
    with pytest.raises(AnnotationError, match="is not a mad file"):
        read_moments(path, layout="mad")
    with pytest.raises(AnnotationError, match="layout must be one of lines, charades"):
        read_moments(path, layout="didemo")
    assert all(len(layout.about) > 20 for layout in LAYOUTS.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,size\na,3\n", "needs a header with a column id or vid"),
        ("id,length\na,3\nb\n", "line 3: has 1 columns where the header has 2"),
        ("id,length\na,x\n", "line 2: length must be a number of seconds"),
        ({"a": {}}, "key 'a': duration must be a number of seconds, got None"),
    ],
)
def test_wrong_lengths_are_named(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_durations(written(tmp_path / "lengths", content))


# --- predictions -----------------------------------------------------------------------------------------

PREDICTION = {"qid": 7, "vid": "3MSZA", "pred_relevant_windows": [[0, 5, 0.1], [24, 30, 0.9]]}


def test_predictions_keep_their_order(tmp_path):
    found = read_predictions(written(tmp_path / "p.jsonl", [{**PREDICTION, "pred_saliency_scores": [0.5, -1]}]))
    answer = found.answers["7"]
    assert answer.windows.tolist() == [[0, 5, 0.1], [24, 30, 0.9]]
    assert (answer.saliency.tolist(), answer.video) == ([0.5, -1.0], "3MSZA")
    assert (found.faults, unsorted([answer, None])) == ((), 1)


def test_unusable_predictions_are_listed_and_count_as_wrong(tmp_path):
    lines = [
        {**PREDICTION, "pred_relevant_windows": [[0, 5, float("nan")], [9, 8, 0.5], [24, 30, 0.9]]},
        {**PREDICTION, "pred_relevant_windows": []},
        {
            **PREDICTION,
            "qid": 8,
            "pred_relevant_windows": [[float("inf"), 5, 1]],
            "pred_saliency_scores": [float("nan")],
        },
    ]
    found = read_predictions(written(tmp_path / "p.jsonl", lines))
    assert found.answers["7"].windows.tolist() == [[0, 0, -np.inf], [0, 0, 0.5], [24, 30, 0.9]]
    assert found.answers["8"].saliency is None
    assert [fault.where[-6:] for fault in found.faults] == ["line 1", "line 1", "line 2", "line 3", "line 3"]
    words = " ".join(fault.why for fault in found.faults)
    for part in ("[0, 5, nan] holds a NaN", "[9, 8, 0.5] ends before it starts", "qid 7 occurred before", "as none"):
        assert part in words


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([PREDICTION, {"qid": 8}], "line 2: pred_relevant_windows must be"),
        (
            [PREDICTION, {"qid": 8, "pred_relevant_windows": [[0, 1]]}],
            r"line 2: a window must be \[start, end, score\]",
        ),
        ([PREDICTION, {"qid": 8, "pred_relevant_windows": [[0, 1, "x"]]}], "line 2: a window must be"),
        ([PREDICTION, {"pred_relevant_windows": []}], "line 2: has no qid"),
        ([{**PREDICTION, "pred_saliency_scores": ["x"]}], "line 1: pred_saliency_scores must be a list of numbers"),
        ("7 0 1\n", "must be JSON lines with qid and pred_relevant_windows"),
        ({"results": {}}, "must be JSON lines with qid"),
        ("[]", "holds no prediction"),
    ],
)
def test_wrong_predictions_are_named(tmp_path, lines, message):
    with pytest.raises(AnnotationError, match=message):
        read_predictions(written(tmp_path / "p.jsonl", lines))


def test_match_names_strangers(tmp_path):
    items = read_moments(written(tmp_path / "a.jsonl", LINES))
    strange = [PREDICTION, {**PREDICTION, "qid": 99}, {**PREDICTION, "qid": "q8", "vid": "other"}]
    answers, faults = match(items, read_predictions(written(tmp_path / "p.jsonl", strange)))
    assert [answer and answer.qid for answer in answers] == ["7", None]
    assert [fault.why for fault in faults] == [
        f"qid 99 is not in {tmp_path}/a.jsonl",
        f"qid q8 is of video other, but of AO8RW in {tmp_path}/a.jsonl",
    ]
    with pytest.raises(AnnotationError, match=r"answers no query of .*a\.jsonl: qid 99 is not in .*of one split\?"):
        match(items, read_predictions(written(tmp_path / "p.jsonl", strange[1:2])))


def test_written_predictions_are_read_back(tmp_path):
    items = read_moments(written(tmp_path / "a.jsonl", LINES))
    windows = np.array([[0.1234, 5.0, 0.25], [1.0, 2.0, -0.5]])
    answers = {"q8": Answer(qid="q8", windows=windows, saliency=np.array([0.5, 0.25]))}
    write_predictions(tmp_path / "p.jsonl", items, answers)
    line = json.loads((tmp_path / "p.jsonl").read_text())
    assert (line["qid"], line["vid"], line["query"]) == ("q8", "AO8RW", "a door")
    found = read_predictions(tmp_path / "p.jsonl").answers["q8"]
    np.testing.assert_allclose(found.windows, windows, atol=5e-4)
    assert found.saliency.tolist() == [0.5, 0.25]
    items = read_moments(written(tmp_path / "b.jsonl", [{**LINES[0], "qid": qid} for qid in ("007", "7", 8)]))
    write_predictions(tmp_path / "p.jsonl", items, {qid: Answer(qid=qid, windows=windows) for qid in ("007", "7", "8")})
    assert list(read_predictions(tmp_path / "p.jsonl").answers) == ["007", "7", "8"]


# --- the real files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "queries", "videos", "outside"),
    [
        ("charades_test_release.jsonl", 3720, 1334, 0),
        ("activitynet_val_release.jsonl", 17505, 4917, 5),
        ("highlight_val_release.jsonl", 1550, 1519, 0),
    ],
)
def test_official_files(name, queries, videos, outside):
    if not (ANNOTATIONS / name).is_file():
        pytest.skip("needs the annotations in ../shared/data")
    items = read_moments(ANNOTATIONS / name)
    assert (len(items.queries), len(items.videos), items.outside) == (queries, videos, outside)
    assert (items.layout, items.faults, items.without_duration) == ("lines", (), ())
