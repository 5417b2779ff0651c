"""Open-ended video question answering: UMT's decoder ranks a fixed list of answers, the best one must be exact."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from everyframe.evaluation.clips import Failure, Found, Progress, Reader, Sampling, read_videos, reader_settings
from everyframe.evaluation.cuts import CutTexts
from everyframe.evaluation.outcome import Outcome, check_some_left, facts_of
from everyframe.evaluation.question_files import Question, QuestionSet
from everyframe.tasks.recognition import answer_accuracy

TOP = 128
"""Answers per question that are scored in full, in UMT's evaluation."""


def evaluate_questions(
    reader: Reader,
    items: QuestionSet,
    answers: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    top: int = TOP,
    sampling: Sampling | None = None,
    dataset: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep_partial: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Share of questions answered exactly, overall and by the question's first word.

    answers: what to choose from; a question whose answer is not among them cannot be right, and the result says how
    many those are. top: how many answers are scored in full. The decoder sees the reduced tokens. cache: a folder for
    the answers given, so that a killed run goes on where it was.

    Videos that are missing or unreadable are left out with their questions. Raises ModelError where the model has no
    answer decoder, ValueError where no video is left.
    """
    if not answers:
        raise ValueError("answers is empty; give at least one answer to choose from")
    sampling = sampling or Sampling()
    sampling.check_one_clip()
    videos = items.videos
    answered, given, failures = _ask(
        reader, items, answers, folder, sampling, top, cache=cache, keep_partial=keep_partial, progress=progress
    )
    expected = [question.answer for question in answered]
    score = answer_accuracy(given, expected, [question.question for question in answered])
    known = set(answers)
    by_type = {f"accuracy {kind}": value for kind, (value, _) in score.by_type.items()}
    return Outcome(
        task="qa",
        dataset=dataset,
        metrics={"answers": {"accuracy": score.overall, **by_type}},
        videos=len(videos) - len(failures),
        wanted=len(videos),
        queries=len(answered),
        settings={**reader_settings(reader, sampling), "top": top, "answers": len(answers)},
        annotations=[{"path": items.path, "sha256": items.sha256}],
        failures=tuple(failures),
        details={
            "questions_by_type": {kind: count for kind, (_, count) in score.by_type.items()},
            "questions_without_a_listed_answer": sum(answer not in known for answer in expected),
            "given": {question.id: answer for question, answer in zip(answered, given, strict=True)},
        },
        **facts_of(reader),
    )


def _ask(
    reader: Reader,
    items: QuestionSet,
    answers: Sequence[str],
    folder: str | os.PathLike[str],
    sampling: Sampling,
    top: int,
    **options: Any,
) -> tuple[list[Question], list[str], list[Failure]]:
    """The questions that could be asked, video by video, the answers given, and the videos left out."""
    videos = items.videos
    asked: dict[str, list[Question]] = {video: [] for video in videos}
    for question in items.questions:
        asked[question.video].append(question)
    answered: list[Question] = []
    given: list[str] = []
    failures: list[Failure] = []
    cuts = CutTexts()

    def compute(number: int, clips: Tensor) -> Found:
        tokens = reader.tokens(clips).tokens
        texts = [question.question for question in asked[videos[number]]]
        with cuts.heard():
            return {"answers": reader.model.rank_answers(texts, tokens, answers, top=top).to(torch.int64)}

    text = json.dumps([[[question.video, question.question] for question in items.questions], list(answers), top])
    decides = {"questions": hashlib.sha256(text.encode()).hexdigest()}
    found = read_videos(reader, videos, folder, sampling, compute, names=("answers",), depends=decides, **options)
    for number, result in found:
        if isinstance(result, Failure):
            failures.append(result)
            continue
        answered += asked[videos[number]]
        given += [answers[place] for place in result["answers"].tolist()]
    cuts.say()
    check_some_left(answered, failures)
    return answered, given, failures
