"""From class names to text features: what is written around a name, and how the sentences become one feature.

C classes, D width of the joint space. Source: Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision" (CLIP); the sentences are those its authors published for Kinetics and UCF101, "a example" too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from everyframe.backbone import ModelError
from everyframe.evaluation.reading import AnnotationError, read_raw

_PICTURES = ("photo", "video", "example", "demonstration")
_DOING = ("", "using ", "doing ", "during ", "performing ", "practicing ")

KINETICS = tuple(
    f"a {picture} of {who}{{}}." for picture in _PICTURES for who in ("", *(f"a person {doing}" for doing in _DOING))
)
"""CLIP's 28 sentences for Kinetics."""
UCF101 = tuple(
    f"a {picture} of {person} person {doing}{{}}."
    for doing in _DOING
    for person in ("a", "the")
    for picture in _PICTURES
)
"""CLIP's 48 sentences for UCF101."""
TEMPLATES: dict[str, tuple[str, ...]] = {
    "kinetics": KINETICS,
    "ucf101": UCF101,
    "photo": ("a photo of {}.",),
    "name": ("{}",),
}
_BATCH = 256


def read_templates(name: str | os.PathLike[str]) -> tuple[str, ...]:
    """The sentences of a name in `TEMPLATES`, or of a file with one a line, each with "{}" where the class goes.

    Raises AnnotationError where there is no such file, or a line has no place for the class.
    """
    if str(name) in TEMPLATES:
        return TEMPLATES[str(name)]
    if not Path(name).is_file():
        raise AnnotationError(f"{name} is neither a file of templates nor one of {', '.join(TEMPLATES)} (--templates)")
    raw = read_raw(name)
    if raw.kind != "lines":
        raise raw.wrong('must have one sentence a line, with "{}" where the class goes')
    for number, line in raw.value:
        _check(line, f"{raw.path} line {number}: a template")
    return tuple(line.strip() for _, line in raw.value)


def spoken(name: str) -> str:
    """A class name as words: "ApplyEyeMakeup" -> "Apply Eye Makeup", "air_drumming" -> "air drumming".

    A name that has spaces already is left as it is.
    """
    if " " in name.strip():
        return name.strip()
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name.replace("_", " ")).strip()


@torch.no_grad()
def class_features(model: Any, classes: Sequence[str], templates: Sequence[str] = KINETICS) -> Tensor:
    """One feature per class: float32 [C, D] on the CPU, unit rows.

    Every sentence is encoded and L2-normalised, the mean over the sentences of a class is normalised again.
    Raises ModelError without a text tower, ValueError without classes or for a template without "{}".
    """
    if model.text is None:
        raise ModelError(f"{model.name} has no text tower, so class names mean nothing to it: load a CLIP or SigLIP")
    if not classes or not templates:
        raise ValueError(f"classes and templates must not be empty, got {len(classes)} and {len(templates)}")
    for template in templates:
        _check(template, "a template")
    texts = [template.replace("{}", spoken(name)) for name in classes for template in templates]
    rows = torch.cat(
        [model.encode_text(texts[start : start + _BATCH]).float().cpu() for start in range(0, len(texts), _BATCH)]
    )
    return F.normalize(rows.unflatten(0, (len(classes), len(templates))).mean(dim=1), dim=1)


def _check(template: str, what: str) -> None:
    if template.count("{}") != 1:
        raise AnnotationError(f'{what} must hold "{{}}" once, where the class goes, got {template!r}')
