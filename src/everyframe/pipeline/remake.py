"""An encoder as the one that made given features, from what they recorded."""

from __future__ import annotations

from typing import Any

from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, Encoder, ResidualViT, ReuseEncoder, TempMe, ToMe, VidTLDR
from everyframe.encoders.tokenizer import shipped_tokenizer
from everyframe.features import FeaturesError
from everyframe.pipeline.sampling import ClipSampling, Sampling

_SAMPLED = ("fps", "clip_seconds", "frames")


def make_encoder(settings: dict[str, Any], model: Model, **more: Any) -> Encoder | TempMe:
    """The encoder of these settings (`encoder.settings`), with `more` arguments, such as batch_size.

    Raises TypeError or ValueError for settings that no encoder has, FeaturesError for those of an encoder that
    cannot be made from its settings alone.
    """
    options = {**settings, **more}
    kind = options.pop("encoder", None)
    if kind == "dense":
        return DenseEncoder(model, **options)
    if kind == "reuse":
        return ReuseEncoder(model, **options)
    if kind == "residual":
        # Another tokenizer than that of the settings shows when settings are compared.
        return ResidualViT(model, **{**options, "residual": options.get("residual") and shipped_tokenizer(model)})
    if kind in ("tome", "vidtldr"):
        return (ToMe if kind == "tome" else VidTLDR)(model, **options)
    if kind == "tempme" and "positions" not in options:
        clips = {int(block): count for block, count in options.pop("clips", {}).items()}
        return TempMe(model, clips=clips, **options)
    raise FeaturesError(f"an encoder named {kind!r} cannot be made from its settings alone")


def remake(
    settings: dict[str, Any], model: Model, *, batch_size: int | None = None, keep_partial: bool = False
) -> tuple[Encoder | TempMe, Sampling | ClipSampling]:
    """The encoder and the sampling whose features have these settings: those of a collection of a library.

    Raises FeaturesError where they cannot be had from the settings and this model.
    """
    own = {key: value for key, value in settings.items() if key not in _SAMPLED}
    try:
        encoder = make_encoder(own, model, **({} if batch_size is None else {"batch_size": batch_size}))
        if not isinstance(encoder, TempMe):
            sampling: Sampling | ClipSampling = Sampling(fps=settings["fps"], keep_partial=keep_partial)
        else:
            sampling = ClipSampling(
                clip_seconds=settings["clip_seconds"], frames=settings["frames"], keep_partial=keep_partial
            )
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise FeaturesError(f"an encoder with the recorded settings cannot be made: {what}") from error
    differing = [key for key, value in _comparable(encoder.settings).items() if _comparable(own).get(key) != value]
    differing += [key for key in own if key not in encoder.settings]
    if differing:
        raise FeaturesError(
            f"an encoder with the recorded settings cannot be made from the model alone: {', '.join(differing)} would "
            "be another"
        )
    return encoder, sampling


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the name of the tokenizer's file before its fingerprint."""
    residual = settings.get("residual")
    return {**settings, "residual": residual.rpartition(":")[2]} if isinstance(residual, str) else settings
