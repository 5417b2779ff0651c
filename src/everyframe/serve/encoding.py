"""How videos that are added are read: as those of the collection were."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everyframe.encoders import Encoder, TempMe

ENCODERS = ("reuse", "residual", "dense")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A model and an encoder, as plain values that travel to a child process.

    model: hub id or folder, None for the recorded one. facts: of the model, as features record them, or its id alone
    where there is no collection yet. settings: of a collection; without them the encoder `name` with its defaults.
    """

    facts: dict[str, Any]
    model: str | None = None
    device: str | None = None
    name: str = "reuse"
    fps: float | None = None
    settings: dict[str, Any] | None = field(default=None)

    def make(self) -> tuple[Encoder | TempMe, dict[str, Any]]:
        """Load the model and make the encoder: it, and which frames `encode_video` has to give it.

        Raises ModelError where the model cannot be had, FeaturesError where it is another than the collection's, or
        the encoder cannot be made from it.
        """
        from everyframe.encoders import DenseEncoder, ResidualViT, ReuseEncoder
        from everyframe.pipeline import ClipSampling, remake
        from everyframe.training.recorded import model_recorded

        model = model_recorded(self.facts, self.model, self.device)
        if self.settings is None:
            sampled = {} if self.fps is None else {"fps": self.fps}
            if self.name == "reuse":
                return ReuseEncoder(model, plan="adaptive"), sampled
            return ResidualViT(model) if self.name == "residual" else DenseEncoder(model), sampled
        encoder, sampling = remake(self.settings, model)
        if isinstance(sampling, ClipSampling):
            return encoder, {"clip_seconds": sampling.clip_seconds, "frames": sampling.frames}
        return encoder, {"fps": sampling.fps}
