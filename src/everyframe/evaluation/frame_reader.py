"""A CLIP model that reads single frames, as a reader of videos: one feature for each.

V videos, F frames of a video, S side of the model's picture, D width of the joint space
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from everyframe.backbone import Model, ModelError
from everyframe.cost import Rule

FRAMES = 12
"""TempMe's number for MSR-VTT, MSVD and LSMDC; 64 for ActivityNet and DiDeMo."""


class FrameReader:
    """One feature of a video from an image model: the mean over its frames, or TempMe's.

    encoder: `DenseEncoder` is mean-pooled CLIP, `ToMe` and its kind are the same with fewer tokens in each frame;
        `TempMe` reads all frames at once. frames: F, spread over the video as in TempMe's evaluation.

    Features of frames are L2-normalised, averaged, and normalised again, as CLIP4Clip does it. Raises TypeError for an
    encoder whose model is not what everyframe.load returns, ValueError for frames below 1.
    """

    sampling: Literal["seconds"] = "seconds"
    cost_rule: Rule = "all"

    def __init__(self, encoder: Any, *, frames: int = FRAMES) -> None:
        model = getattr(encoder, "model", None)
        if not isinstance(model, Model):
            raise TypeError(f"encoder must be one of an image model (everyframe.load), got {type(encoder).__name__}")
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        self.encoder = encoder
        self.frames = frames
        self.model = FramedModel(model, frames)
        self._joins_frames = encoder.name == "tempme"

    @property
    def group_size(self) -> int:
        """Frames of a video."""
        return self.frames

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        settings = self.encoder.settings
        if not self._joins_frames:
            settings = {**settings, "frame_features": "mean"}
            return settings | ({"encoder": "mean"} if settings["encoder"] == "dense" else {})
        return {**settings, "frame_features": "joined"}

    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates by part, see `everyframe.cost`."""
        return self.encoder.macs(num_frames, rule)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """[V, F, 3, S, S] -> float32 [V, D], unit rows. Raises ValueError for other shapes."""
        if pixels.ndim != 5 or pixels.shape[1] != self.frames:
            raise ValueError(
                f"pixels must be [V, {self.frames}, 3, {self.model.image_size}, {self.model.image_size}], "
                f"got {list(pixels.shape)}"
            )
        if self._joins_frames:
            return self.encoder.encode(pixels)
        features = self.encoder.encode(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        return F.normalize(features.mean(dim=1), dim=1)

    def tokens(self, pixels: Tensor) -> Any:
        """Raises ModelError: nothing but a cross-encoder asks for tokens, and image models have none."""
        raise ModelError(f"{self.model.name} has no cross-encoder that its tokens could be for")

    def pool(self, tokens: Tensor) -> Tensor:
        """Raises ModelError, as `tokens` does."""
        raise ModelError(f"{self.model.name} has no cross-encoder that its tokens could be for")


class FramedModel:
    """An image `Model` with a number of frames, and with texts that can be cut; all else is the model's own."""

    def __init__(self, model: Model, frames: int) -> None:
        self._model = model
        self.frames = frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], *, max_tokens: int | None = None) -> Tensor:
        """Texts -> float32 [n, D], unit rows. max_tokens: cut longer texts, of a CLIP model, as TempMe does.

        What is beyond is dropped and the end-of-text token put in its place.
        """
        if max_tokens is None:
            return self._model.encode_text(texts)
        if max_tokens < 3:
            raise ValueError(f"max_tokens must be at least 3, with those that begin and end a text, got {max_tokens}")
        if self._model.text is None or self._model.family != "clip":
            raise ModelError(f"{self._model.name} is no CLIP model with a text tower, so its texts cannot be cut")
        from everyframe.training.pairs import token_ids

        ids, _ = token_ids(self._model, texts, max_tokens)
        parts = [self._model.text(part.long().to(self._model.device)).float() for part in ids.split(256)]
        return F.normalize(torch.cat(parts), dim=1)
