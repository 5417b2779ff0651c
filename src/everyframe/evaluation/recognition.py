"""Action recognition with a classifier over several views, and with class names from base to novel classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import ModelError
from everyframe.evaluation.action_files import ActionSet, match_labels
from everyframe.evaluation.clips import Failure, Found, Progress, Reader, Sampling, read_videos, reader_settings
from everyframe.evaluation.outcome import Outcome, check_some_left, facts_of
from everyframe.tasks.recognition import Accuracy, accuracy, harmonic_mean, mean_of_views

SAMPLINGS = {
    "ucf101": Sampling(kind="strided", views=5, stride=4, crops=3),
    "ssv2": Sampling(kind="alternate", views=2, crops=3),
}
"""VideoMAE's test protocols: 5 clips of 16 frames, 4 apart, and 2 clips over the whole video; 3 crops each."""
PROMPT = "a photo of a {}."
"""What ViFi-CLIP writes around a class name."""


def evaluate_recognition(
    reader: Reader,
    items: ActionSet,
    folder: str | os.PathLike[str],
    *,
    sampling: Sampling | None = None,
    dataset: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep_partial: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Top-1 and top-5 of the model's classifier, its probabilities averaged over the views of a video.

    sampling: default that of the dataset in `SAMPLINGS`, else UCF101's. Where both sides have class names they are
    matched by name, else by number. Videos that are missing or unreadable are left out. Raises ModelError without a
    classifier, ValueError where names or numbers of classes do not fit or no video is left.
    """
    model = reader.model
    sampling = sampling or SAMPLINGS.get(dataset or "", SAMPLINGS["ucf101"])
    num_classes = model.classify(torch.zeros(1, model.dim, device=model.device)).shape[1]
    order = match_labels(items.classes, model.labels)
    labels = [label if order is None else order[label] for label in items.labels]
    if max(labels) >= num_classes:
        raise ValueError(
            f"{items.path} has label {max(labels)} but {model.name} has {num_classes} classes, numbered from 0; pass "
            "the class file that numbers them, or another model"
        )

    def compute(number: int, clips: Tensor) -> Found:
        return {"logits": model.classify(reader.encode(clips)).float()}

    left, found, failures = _read(
        reader, items, folder, sampling, compute, "logits", cache=cache, keep_partial=keep_partial, progress=progress
    )
    scores = np.stack([mean_of_views(logits.numpy()) for logits in found])
    result = accuracy(scores, [label for label, keep in zip(labels, left, strict=True) if keep])
    return Outcome(
        task="recognition",
        dataset=dataset,
        metrics={"views averaged": {"top-1": result.top1, "top-5": result.top5}},
        videos=result.videos,
        wanted=len(items.videos),
        queries=result.videos,
        settings=reader_settings(reader, sampling),
        annotations=[_source(items)],
        failures=tuple(failures),
        details={"views": len(found[0])},
        **facts_of(reader),
    )


def evaluate_base_to_novel(
    reader: Reader,
    base: ActionSet,
    novel: ActionSet,
    folder: str | os.PathLike[str],
    *,
    prompt: str = PROMPT,
    sampling: Sampling | None = None,
    dataset: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep_partial: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Top-1 among the base classes and among the novel ones, by comparing videos with class names; and their
    harmonic mean.

    base, novel: splits with their class names; each is evaluated against its own classes alone. prompt: "{}" stands for
    the name. sampling: default one view of frames spread over the video. Raises ModelError without a text tower,
    ValueError for classes without names or where no video is left.
    """
    model = reader.model
    sampling = sampling or Sampling(kind="spread")
    if "{}" not in prompt:
        raise ValueError(f'prompt must hold "{{}}" where the class name goes, got {prompt!r}')
    if not model.joint:
        raise ModelError(
            f"{model.name} has no text side, so class names mean nothing to it: load a ViFi-CLIP checkpoint"
        )
    results: dict[str, Accuracy] = {}
    failures: list[Failure] = []

    def compute(number: int, clips: Tensor) -> Found:
        return {"features": reader.encode(clips)}

    for name, items in (("base", base), ("novel", novel)):
        if items.classes is None:
            raise ValueError(f"{items.path}: the {name} classes have no names; pass their class file")
        texts = model.encode_text([prompt.replace("{}", label) for label in items.classes]).float().cpu()
        left, found, lost = _read(
            reader, items, folder, sampling, compute, "features",
            cache=cache, keep_partial=keep_partial, progress=progress,
        )  # fmt: skip
        failures += lost
        scores = torch.stack([(features.float() @ texts.T).mean(dim=0) for features in found]).numpy()
        results[name] = accuracy(scores, [label for label, keep in zip(items.labels, left, strict=True) if keep])
    tops = {name: result.top1 for name, result in results.items()}
    return Outcome(
        task="base-to-novel",
        dataset=dataset,
        metrics={"class names": {**tops, "HM": harmonic_mean(tops["base"], tops["novel"])}},
        videos=sum(result.videos for result in results.values()),
        wanted=len(base.videos) + len(novel.videos),
        queries=sum(result.videos for result in results.values()),
        settings={**reader_settings(reader, sampling), "prompt": prompt},
        annotations=[_source(base), _source(novel)],
        failures=tuple(failures),
        **facts_of(reader),
    )


def _read(
    reader: Reader, items: ActionSet, folder: str | os.PathLike[str], sampling: Sampling, compute: Any, name: str,
    **options: Any,
) -> tuple[Sequence[bool], list[Tensor], list[Failure]]:  # fmt: skip
    """Which videos could be read, what was computed of them, and the others."""
    kept = [False] * len(items.videos)
    found: list[Tensor] = []
    failures: list[Failure] = []
    for number, result in read_videos(reader, items.videos, folder, sampling, compute, names=(name,), **options):
        if isinstance(result, Failure):
            failures.append(result)
        else:
            kept[number] = True
            found.append(result[name])
    check_some_left(found, failures)
    return kept, found, failures


def _source(items: ActionSet) -> dict[str, Any]:
    return {"path": items.path, "sha256": items.sha256}
