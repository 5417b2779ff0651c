"""From a recipe and its video to the features, of all of it or of the part that is needed.

T frames, D width of the joint space.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from everyframe.backbone import Model
from everyframe.encoders import Encoder, Plan, ResidualViT
from everyframe.encoders.baselines import fidelity
from everyframe.encoders.dense import encode_full
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.pipeline.decoding import model_facts
from everyframe.pipeline.recipe import Recipe
from everyframe.pipeline.remake import make_encoder
from everyframe.pipeline.resume import identity, is_address, source_name
from everyframe.pipeline.sampling import Sampling
from everyframe.pipeline.window import Chunk, preprocessed, regrouped
from everyframe.video import Sample, Source, VideoError, decode_ahead, sample_frames

_CHUNKS_AHEAD = 2
_TOLERANCE = 1e-3  # of the cosine of I-features, stored and computed again: another machine rounds otherwise


def restore(
    recipe: Recipe,
    reader: Model | Encoder,
    *,
    source: Source | None = None,
    start: float | None = None,
    end: float | None = None,
) -> VideoFeatures:
    """The features of the frames in [start, end) seconds, as `encode_video` gave them when the recipe was made.

    On the machine that made it, with the same number of threads, they are the same bit for bit; elsewhere they differ
    by what rounding does. Only chunks with such frames are decoded (seeking to them where the file can) and encoded,
    and no motion is read. Where these hold no P-frames the video is not opened at all.
    reader: the model, or an encoder with the recipe's settings; needed where its residual tokenizer is not the one
        that ships with the model. Its batch_size has no meaning here: the recipe's is taken.
    source: the video, where it is no longer at the path that the recipe names; bytes for a recipe made from bytes.
    Raises FeaturesError where the video is missing or another one, the model or the encoder has other weights, another
    dtype or other settings, no frame lies in the range, or I-features come out other than stored; VideoError where
    the video cannot be read; ValueError or TypeError for bad arguments.
    """
    Sampling(start=start, end=end)  # raises for what is no range
    encoder = _encoder(recipe, reader)
    first, past = _frames_in(recipe, start, end)
    bounds = [*recipe.chunks.tolist(), recipe.num_frames]
    begin, finish = bisect_right(bounds, first) - 1, bisect_left(bounds, past)
    plans = [recipe.plan[a:b] for a, b in pairwise(bounds[begin : finish + 1])]
    done = bounds[begin]
    row = recipe.roles[:done].count("I")
    parts = []
    with decode_ahead(_chunks(recipe, encoder.model, source, done, plans), _CHUNKS_AHEAD) as ahead:
        for chunk in ahead:
            stored = recipe.i_features[row : row + chunk.plan.roles.count("I")]
            parts.append(_features(encoder, chunk, stored, str(recipe.settings["stored_dtype"])))
            row += len(stored)
    return VideoFeatures(
        times=recipe.times[first:past],
        embeddings=np.concatenate(parts)[first - done : past - done],
        roles=recipe.roles[first:past],
        video=recipe.video,
        model=recipe.model,
        **_cut(recipe, past, start, end),
    )


def _frames_in(recipe: Recipe, start: float | None, end: float | None) -> tuple[int, int]:
    first = 0 if start is None else int(np.searchsorted(recipe.times, start))
    past = recipe.num_frames if end is None else int(np.searchsorted(recipe.times, end))
    if first >= past:
        raise FeaturesError(
            f"no frame from {start or 0:g} s {'on' if end is None else f'to {end:g} s'}; "
            f"the recipe's frames go from {recipe.times[0]:.2f} to {recipe.times[-1]:.2f} s"
        )
    return first, past


def _cut(recipe: Recipe, past: int, start: float | None, end: float | None) -> dict[str, Any]:
    """Settings and end_seconds, as `VideoFeatures.slice` gives them where a part was asked for."""
    if start is None and end is None:
        return {"settings": recipe.settings, "end_seconds": recipe.end_seconds}
    last = float(recipe.frame_ends[past - 1])
    last = last if end is None else min(last, float(end))
    record = [float(start or 0.0), last if end is None else float(end)]
    return {"settings": {**recipe.settings, "slice_seconds": record}, "end_seconds": last}


# --- the encoder -----------------------------------------------------------------------------------------


def _encoder(recipe: Recipe, reader: Model | Encoder) -> Encoder:
    """An encoder as the one that made the recipe. Raises FeaturesError where `reader` is, or makes, none."""
    model = reader if isinstance(reader, Model) else getattr(reader, "model", None)
    if not isinstance(model, Model):
        raise TypeError(f"reader must be a model or an encoder, got {type(reader).__name__}")
    facts = model_facts(model)
    for key, what in (("weights_sha256", "weights"), ("dtype", "dtype"), ("preprocess", "preprocessing")):
        if recipe.model.get(key) != facts[key]:
            raise FeaturesError(
                f"the recipe was made with other {what} (model {recipe.model.get('id')}, {key} "
                f"{recipe.model.get(key)}) than {model.name} has ({facts[key]}); load the model as it was then"
            )
    encoder = _made(recipe, model) if isinstance(reader, Model) else copy.copy(reader)
    wanted, found = _comparable(recipe.encoder), _comparable({**encoder.settings, "batch_size": None})
    differing = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
    if differing:
        shown = ", ".join(f"{key} {wanted.get(key)} (here {found.get(key)})" for key in differing)
        raise FeaturesError(
            f"the recipe was made by an encoder with other settings: {shown}; pass one with the recipe's"
        )
    encoder.batch_size = int(recipe.encoder["batch_size"])
    return encoder


def _made(recipe: Recipe, model: Model) -> Encoder:
    kind = recipe.encoder.get("encoder")
    if kind not in ("dense", "reuse", "residual"):
        raise FeaturesError(f"the recipe was made by an encoder named {kind!r}; pass that encoder instead of the model")
    try:
        return cast(Encoder, make_encoder(recipe.encoder, model))
    except (TypeError, ValueError) as error:
        raise FeaturesError(f"the recipe's encoder cannot be made: {error}; pass it instead of the model") from error


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what need not agree: the batch size, and the name of the tokenizer's file before its fingerprint."""
    settings = {key: value for key, value in settings.items() if key != "batch_size"}
    if isinstance(settings.get("residual"), str):
        settings["residual"] = settings["residual"].rpartition(":")[2]
    return settings


@torch.no_grad()
def _features(encoder: Encoder, chunk: Chunk, stored: np.ndarray, dtype: str) -> np.ndarray:
    """Features of a chunk in the dtype of what is restored: [T, D]. I-frames, and their copies, get what is stored."""
    plan = chunk.plan
    full = [frame for frame, role in enumerate(plan.roles) if role == "I"]
    features = np.empty((len(plan.roles), encoder.dim), dtype)
    if "P" in plan.roles:
        if isinstance(encoder, ResidualViT):  # computes P-frames from I-features alone; one I-frame is enough to check
            again = encode_full(encoder.model, chunk.pixels[:1], 1).cpu().numpy()
            computed = encoder.encode_planned(chunk.pixels, plan, i_features=torch.from_numpy(stored))
            features[:] = computed.cpu().numpy()
        else:
            computed = encoder.encode_planned(chunk.pixels, plan)
            again = computed[full].cpu().numpy()
            features[:] = computed.cpu().numpy()
        _check(again, stored[: len(again)], chunk.times)
    row_of = {frame: row for row, frame in enumerate(full)}
    for frame, origin in enumerate(plan.sources):
        if origin in row_of:
            features[frame] = stored[row_of[origin]]
    return features


def _check(computed: np.ndarray, stored: np.ndarray, times: list[float]) -> None:
    cosine = float(fidelity(computed, stored).min())
    if not cosine > 1 - _TOLERANCE:
        raise FeaturesError(
            f"I-features from {times[0]:.2f} s on come out with a cosine of {cosine:.4f} to the stored ones: the "
            "video, the model, or how this machine decodes or computes, is not what the recipe was made with (the same "
            f"machine gives the same bits, others 1 within {_TOLERANCE:g}); encode the video again"
        )


# --- the video -------------------------------------------------------------------------------------------


def _video(recipe: Recipe, source: Source | None) -> Source:
    """The video, known to be the recipe's as far as files can be told apart. Raises FeaturesError."""
    if source is None:
        source = str(recipe.video.get("path"))
        if source == "<bytes>":
            raise FeaturesError("the recipe was made from bytes; pass them as source=")
    name = source_name(source)
    if isinstance(source, (str, Path)) and not is_address(source) and not Path(source).exists():
        raise FeaturesError(f"{name} does not exist; where the video was moved, pass its path as source=")
    found = identity(source)
    recorded = {key: recipe.video.get(key) for key in found}
    if found != recorded and recipe.video.get("fingerprint") is not None:
        raise FeaturesError(
            f"{name} is not the video that the recipe was made from: fingerprint {found['fingerprint']}, "
            f"recorded {recipe.video['fingerprint']}; pass the original as source=, or encode this one"
        )
    return source


def _chunks(recipe: Recipe, model: Model, source: Source | None, first: int, plans: list[Plan]) -> Iterator[Chunk]:
    """The chunks of these plans, of which the first begins with frame `first`; without pixels where none has P."""
    if not any("P" in plan.roles for plan in plans):
        for plan in plans:
            yield Chunk([], torch.empty(0), plan)
        return
    frames = _frames(recipe, _video(recipe, source), first, first + sum(len(plan.roles) for plan in plans))
    yield from regrouped(preprocessed(frames, model, motion=False), plans)


def _frames(recipe: Recipe, source: Source, first: int, past: int) -> Iterator[Sample]:
    """The frames `first` to `past` of the recipe, recognised by their times."""
    fps, begin, limit = (recipe.settings[name] for name in ("fps", "start", "end"))
    damaged = bool(recipe.settings.get("damage"))
    # From a moment of the sampling's own grid, a step before the first frame, where deinterlacing may look; where that
    # does not lead to the same frames (odd clocks, damage), sampled from the start as it was then.
    steps = max(int((recipe.times[first] - (begin or 0.0)) * fps) - 1, 0)
    starts = [begin] if damaged or not steps else [(begin or 0.0) + steps / fps, begin]
    # The targets a frame is nearest to begin at most one step behind it.
    end = float(recipe.times[past - 1]) + 2 / fps
    end = end if limit is None else min(end, limit)
    position = first
    for start in starts:
        try:
            with sample_frames(source, fps, start=start, end=end, on_damage="skip" if damaged else "raise") as sampled:
                for sample in sampled:
                    if sample.time > recipe.times[position]:
                        break
                    if sample.time == recipe.times[position]:
                        yield sample
                        position += 1
                        if position == past:
                            return
        except VideoError:
            if start == begin:
                raise
    raise FeaturesError(
        f"{recipe.video.get('path')}: no frame is shown at {recipe.times[position]:.3f} s any more; "
        "the video, or how this machine decodes it, is not what the recipe was made with: encode it again"
    )
