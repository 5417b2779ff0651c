"""Questions about videos and the answers to choose from: MSRVTT-QA, MSVD-QA and their UMT copies."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everyframe.evaluation.reading import AnnotationError, Raw, read_raw, text_of

MOST_FREQUENT = 1500
"""How many answers a list made from training questions has: as ClipBERT and its successors do for MSRVTT-QA."""


@dataclass(frozen=True)
class Question:
    """One question about one video. `video` is a file name, with or without its extension."""

    id: str
    video: str
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """The questions of one split."""

    questions: tuple[Question, ...]
    path: str
    sha256: str

    @property
    def videos(self) -> tuple[str, ...]:
        """Each video once, in the order of the questions."""
        return tuple(dict.fromkeys(question.video for question in self.questions))


def read_questions(path: str | os.PathLike[str], *, names: str | os.PathLike[str] | None = None) -> QuestionSet:
    """Read a list of questions with their answers.

    JSON lists of objects with "question", "answer" and a video: "video" or "image" (UMT, VindLU: a file name), or the
    number "video_id" of the original files, which stands for video<N> in MSRVTT-QA (they have "category_id") and for
    vid<N> in MSVD-QA. names: MSVD's youtube_mapping.txt ("<youtube name> vid<N>" a line), where the files have YouTube
    names. Raises AnnotationError, which names file and entry.
    """
    raw = read_raw(path)
    if not raw.is_list or not raw.value:
        raise raw.wrong("must be a JSON list of questions")
    renamed = {} if names is None else _mapping(names)
    questions = []
    for number, (where, entry) in enumerate(raw.entries()):
        video = _video_of(entry, where)
        if renamed:
            if video not in renamed:
                raise AnnotationError(f"{where}: {os.fspath(names or '')} gives no name for {video}")
            video = renamed[video]
        ids = ("question_id", "id")
        own_id = text_of(entry, ids, where) if any(key in entry for key in ids) else str(number)
        questions.append(
            Question(own_id, video, text_of(entry, ("question",), where), text_of(entry, ("answer",), where))
        )
    return QuestionSet(questions=tuple(questions), path=str(raw.path), sha256=raw.sha256)


def read_answers(path: str | os.PathLike[str] | None, *, most_frequent: int | None = None) -> list[str]:
    """The answers to choose from, without repeats, in the order of the file.

    A JSON list of texts (VindLU's answer lists), a JSON object {answer: index}, or a text file with one a line; or the
    training questions of the benchmark, of which the `most_frequent` (default 1500) answers are taken, the first of
    equals first. Raises AnnotationError, also where there is no file.
    """
    if path is None:
        raise AnnotationError(
            "open-ended questions need the answers to choose from: VindLU publishes them beside its annotations "
            "(msrvtt_qa_answer_list.json, msvd_qa_answer_list.json); pass that file, or the training questions, as "
            "answers (--answers)"
        )
    raw = read_raw(path)
    if raw.is_list and raw.value and isinstance(raw.first, dict):
        return _frequent(raw, MOST_FREQUENT if most_frequent is None else most_frequent)
    if most_frequent is not None:
        raise raw.wrong("is a list of answers, not of training questions, so their frequency is not known")
    if raw.kind == "lines":
        values: list[Any] = [line.strip() for _, line in raw.value]
    elif raw.is_dict:
        values = sorted(raw.value, key=lambda answer: _index(raw, answer))
    else:
        values = raw.value if raw.is_list else []
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise raw.wrong("must list answers as texts, or training questions with their answers")
    return list(dict.fromkeys(value.strip() for value in values))


def _frequent(raw: Raw, most: int) -> list[str]:
    if most < 1:
        raise ValueError(f"most_frequent must be at least 1, got {most}")
    counts = Counter(text_of(entry, ("answer",), where) for where, entry in raw.entries())
    return [answer for answer, _ in counts.most_common(most)]


def _index(raw: Raw, answer: str) -> int:
    index = raw.value[answer]
    if not isinstance(index, int):
        raise AnnotationError(f"{raw.path} key {answer!r}: must hold the answer's number, got {index!r}")
    return index


def _video_of(entry: dict[str, Any], where: str) -> str:
    if "video" in entry or "image" in entry:
        return text_of(entry, ("video", "image"), where)
    name = text_of(entry, ("video_id",), where)
    if not name.isdecimal():
        return name
    return f"video{name}" if "category_id" in entry else f"vid{name}"


def _mapping(path: str | os.PathLike[str]) -> dict[str, str]:
    raw = read_raw(path)
    names: dict[str, str] = {}
    for number, line in raw.value if raw.kind == "lines" else []:
        fields = line.split()
        if len(fields) != 2:
            raise AnnotationError(f'{Path(path)} line {number}: must be "<file name> vid<N>", got {line.strip()!r}')
        names[fields[1]] = fields[0]
    if not names:
        raise raw.wrong('must have lines of "<file name> vid<N>"')
    return names
