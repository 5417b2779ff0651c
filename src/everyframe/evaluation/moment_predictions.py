"""Somebody's answers in the layout that Moment-DETR and Lighthouse submit, and everyframe writes."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everyframe.evaluation.moment_files import Fault, MomentSet
from everyframe.evaluation.reading import AnnotationError, read_raw, text_of
from everyframe.feature_files import write_whole

_NUMBER = re.compile(r"0|[1-9][0-9]*")  # not 007, which would come back as another qid


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What somebody answered to one query.

    windows: float64 [P, 3], (start, end, score) in the order given; one that cannot be used keeps its place as a window
    without length, which overlaps nothing. saliency: float64 [clips] or None.
    """

    qid: str
    windows: NDArray[np.float64]
    saliency: NDArray[np.float64] | None = None
    video: str | None = None


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers by qid, and what in the file could not be used."""

    path: str
    sha256: str
    answers: Mapping[str, Answer]
    faults: tuple[Fault, ...] = ()


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read JSON lines with qid, pred_relevant_windows [[start, end, score], ...], and maybe vid, pred_saliency_scores.

    A window that ends before it starts or holds a NaN counts as wrong, a NaN saliency as none, a qid that occurs again
    is passed over: all of it is listed in `faults`. Raises AnnotationError, with file and line, for anything else.
    """
    raw = read_raw(path).as_lines("qid")
    if not raw.is_list:
        raise raw.wrong("must be JSON lines with qid and pred_relevant_windows [[start, end, score], ...]")
    answers: dict[str, Answer] = {}
    faults: list[Fault] = []
    for where, entry in raw.entries():
        qid = text_of(entry, ("qid",), where)
        if qid in answers:
            faults.append(Fault(where, f"qid {qid} occurred before; the first counts"))
            continue
        video = text_of(entry, ("vid",), where) if "vid" in entry else None
        windows = _windows(entry, where, faults)
        answers[qid] = Answer(qid=qid, windows=windows, saliency=_saliency(entry, where, faults), video=video)
    if not answers:
        raise raw.wrong("holds no prediction")
    return Predictions(path=str(raw.path), sha256=raw.sha256, answers=answers, faults=tuple(faults))


def write_predictions(path: str | os.PathLike[str], items: MomentSet, answers: Mapping[str, Answer]) -> None:
    """Write answers as `read_predictions` reads them, whole or not at all; seconds to thousandths."""
    lines = []
    for query in items.queries:
        answer = answers.get(query.qid)
        if answer is None:
            continue
        windows = [[round(start, 3), round(end, 3), round(score, 6)] for start, end, score in answer.windows.tolist()]
        line: dict[str, Any] = {
            "qid": int(query.qid) if _NUMBER.fullmatch(query.qid) else query.qid,
            "query": query.text,
            "vid": query.video,
            "pred_relevant_windows": windows,
        }
        if answer.saliency is not None:
            line["pred_saliency_scores"] = [round(score, 6) for score in answer.saliency.tolist()]
        lines.append(json.dumps(line) + "\n")
    write_whole([(Path(path), "".join(lines).encode())], Path(path))


def match(items: MomentSet, predictions: Predictions) -> tuple[list[Answer | None], list[Fault]]:
    """The answer to each query, in the order of the queries, and the answers that belong to none.

    Raises AnnotationError where no answer belongs to any query.
    """
    known = {query.qid: query for query in items.queries}
    faults = []
    usable: dict[str, Answer] = {}
    for qid, answer in predictions.answers.items():
        query = known.get(qid)
        if query is None:
            faults.append(Fault(predictions.path, f"qid {qid} is not in {items.path}"))
        elif answer.video is not None and answer.video.removeprefix("v_") != query.video.removeprefix("v_"):
            faults.append(
                Fault(predictions.path, f"qid {qid} is of video {answer.video}, but of {query.video} in {items.path}")
            )
        else:
            usable[qid] = answer
    if not usable:
        first = f": {faults[0].why}" if faults else ""
        raise AnnotationError(f"{predictions.path}: answers no query of {items.path}{first}; are they of one split?")
    return [usable.get(query.qid) for query in items.queries], faults


def _windows(entry: dict[str, Any], where: str, faults: list[Fault]) -> NDArray[np.float64]:
    given = entry.get("pred_relevant_windows")
    if not isinstance(given, list):
        raise AnnotationError(f"{where}: pred_relevant_windows must be [[start, end, score], ...], got {given!r}")
    windows = np.zeros((len(given), 3))
    for number, window in enumerate(given):
        if not isinstance(window, list) or len(window) != 3 or not all(_is_number(value) for value in window):
            raise AnnotationError(f"{where}: a window must be [start, end, score], three numbers, got {window!r}")
        start, end, score = map(float, window)
        if not math.isfinite(start + end) or end < start or math.isnan(score):
            why = "holds a NaN or an infinity" if not math.isfinite(start + end + score) else "ends before it starts"
            faults.append(Fault(where, f"window {window} {why}; it counts as wrong"))
            start, end, score = 0.0, 0.0, score if not math.isnan(score) else -math.inf
        windows[number] = start, end, score
    return windows


def _saliency(entry: dict[str, Any], where: str, faults: list[Fault]) -> NDArray[np.float64] | None:
    given = entry.get("pred_saliency_scores")
    if given is None:
        return None
    if not isinstance(given, list) or not all(_is_number(value) for value in given):
        raise AnnotationError(f"{where}: pred_saliency_scores must be a list of numbers")
    scores = np.asarray(given, dtype=np.float64)
    if not np.isfinite(scores).all():
        faults.append(Fault(where, "pred_saliency_scores hold a NaN or an infinity; they count as none"))
        return None
    return scores


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def unsorted(answers: Iterable[Answer | None]) -> int:
    """How many answers do not put the highest score first; recall takes them in the given order all the same."""
    return sum(
        answer is not None and len(answer.windows) > 1 and bool(answer.windows[0, 2] < answer.windows[:, 2].max())
        for answer in answers
    )
