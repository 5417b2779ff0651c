"""The model that features were made by, for encoding what they are searched with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everyframe.backbone import Model, load
from everyframe.features import FeaturesError
from everyframe.training.export import load_tempme


def model_recorded(facts: Mapping[str, Any], name: str | None, device: str | None) -> Model:
    """The model of these facts, which features keep, or the one named if its weights are the same.

    Raises FeaturesError where no model is recorded or the named one has other weights, ModelError where it cannot be
    had.
    """
    recorded = facts.get("id")
    if name is None and not isinstance(recorded, str):
        raise FeaturesError("the features do not say which model made them; pass --model")
    model = _text_model(str(name or recorded), device)
    if facts.get("weights_sha256") not in (None, model.weights_sha256):
        raise FeaturesError(
            f"the features were made by other weights than those of {model.name} "
            f"(recorded model: {recorded}); pass the model that made them as --model"
        )
    return model


def _text_model(name: str, device: str | None) -> Model:
    """By name; what everyframe finetune wrote may hold adapters alone, and then names the model they belong to."""
    folder = Path(name).expanduser()
    if (folder / "tempme.json").is_file() and not (folder / "config.json").is_file():
        return load_tempme(folder, device=device).model
    return load(name) if device is None else load(name, device=device)
