"""What is asked of the features: the user's queries, or some that have an answer in the video."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from everyframe.audit.result import Answer, Setting
from everyframe.backbone import Model
from everyframe.features import VideoFeatures
from everyframe.spans import temporal_iou
from everyframe.tasks.grounding import ground, smoothed_similarity

PER_VIDEO = 6  # generated queries, shared out among a video's windows
_PROMPTS = 256  # of the prompt bank: encoding all of it would take longer than most audits
_APART = 2.5  # seconds between the peaks of two generated queries, half the smoothing of `ground`


@dataclass(frozen=True)
class Query:
    """text: as shown. vector: float32 [D]."""

    text: str
    vector: np.ndarray


class Queries:
    """Where queries come from: given ones are asked in every window, generated ones in the window they fit.

    Generated are prompts whose similarity over a window's dense features is most peaked; for models that cannot read
    the prompts (no text tower, the bundled model) the dense features of frames spread over the window.
    Raises ValueError for a blank query, ModelError for texts and a model without text tower.
    """

    def __init__(self, model: Model, given: Sequence[str] | None) -> None:
        self.given = _encode(model, given) if given else None
        self.by_example = self.given is None and (model.text is None or model.name == "bundled")
        # Before the first video: a tokenizer that does not fit should not be noticed after the work.
        self._bank = _prompts(model) if self.given is None and not self.by_example else []

    def of_window(self, dense: VideoFeatures, count: int) -> list[Query]:
        """The queries to ask of a window; at most `count` generated ones."""
        if self.given is not None:
            return self.given
        if dense.num_frames < 3:  # everything is one moment
            return []
        if self.by_example:
            rows = [int((k + 0.5) / count * dense.num_frames) for k in range(min(count, dense.num_frames))]
            return [Query(f"like the frame at {dense.times[row]:.1f} s", dense.embeddings[row]) for row in rows]
        return _most_peaked(dense, self._bank, count)


def compare(queries: Sequence[Query], dense: VideoFeatures, others: dict[Setting, VideoFeatures]) -> list[Answer]:
    """Ground every query in a window's dense features and in those of every setting."""
    answers = []
    for query in queries:
        (reference,) = ground(dense, query.vector, top=1)
        found = {setting: ground(feats, query.vector, top=1)[0] for setting, feats in others.items()}
        ious = {setting: float(temporal_iou(reference, moment)) for setting, moment in found.items()}
        answers.append(Answer(query=query.text, dense=reference, found=found, ious=ious))
    return answers


def _prompts(model: Model) -> list[Query]:
    """A part of the prompt bank, always the same."""
    from everyframe.training.prompts import prompt_bank

    bank = prompt_bank()
    with warnings.catch_warnings():  # a model with a short context still ranks what it is given
        warnings.simplefilter("ignore", UserWarning)
        return _encode(model, random.Random(0).sample(bank, min(_PROMPTS, len(bank))))


def _encode(model: Model, texts: Sequence[str]) -> list[Query]:
    vectors = model.encode_text(texts).cpu().numpy()
    return [Query(text, vector) for text, vector in zip(texts, vectors, strict=True)]


def _most_peaked(dense: VideoFeatures, prompts: Sequence[Query], count: int) -> list[Query]:
    """Prompts by how far their smoothed curve's peak stands out of it, each with a peak of its own."""
    ranked = []
    for prompt in prompts:
        curve = smoothed_similarity(dense, prompt.vector).astype(np.float64)
        deviation = curve.std()
        if deviation > 1e-6:
            ranked.append(((curve.max() - curve.mean()) / deviation, dense.times[curve.argmax()], prompt))
    ranked.sort(key=lambda entry: -entry[0])
    chosen: list[tuple[float, Query]] = []
    for _, peak, prompt in ranked:
        if len(chosen) < count and all(abs(peak - other) > _APART for other, _ in chosen):
            chosen.append((peak, prompt))
    return [prompt for _, prompt in chosen]
