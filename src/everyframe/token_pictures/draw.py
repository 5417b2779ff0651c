"""From a video and an encoder to a figure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model, VideoModel
from everyframe.backbone.preprocess import Preprocess
from everyframe.encoders import ResidualViT, ReuseEncoder
from everyframe.encoders.merging import ReducingEncoder
from everyframe.extras import require
from everyframe.pipeline.window import preprocessed
from everyframe.token_pictures.figure import Words, draw_figure
from everyframe.token_pictures.patches import (
    computed_patches,
    draw_computed,
    draw_heat,
    draw_merged,
    enlarged,
    mass_per_patch,
    patch_means,
    patch_owners,
    patches_per_token,
    token_colours,
)
from everyframe.tokens.merge import Tokens, tome_schedule
from everyframe.video import Source, sample_clip, sample_frames, write_image

FRAMES = 12
"""Frames of an image model that are drawn, unless told otherwise."""
_LONGEST = 32  # letters of a video's name that are written
_METHODS = {"vidtldr": "vid-TLDR", "tome": "ToMe", "residual": "ResidualViT", "reuse": "Reuse"}


@dataclass(frozen=True)
class TokenPicture:
    """A figure and what it shows. picture: uint8 [H, W, 3]; facts: plain values, as `--json` prints them."""

    picture: np.ndarray
    facts: dict[str, Any]

    def write(self, path: str | Path) -> None:
        """As a PNG; the file appears under its name when it is complete."""
        write_image(path, self.picture, format="png")


def usual_schedule(name: str, model: Model | VideoModel) -> list[int]:
    """Where no schedule is given: half of the patches go, for "vidtldr" an eighth in each of the first four blocks,
    for "tome" the same number in every block."""
    patches, depth = model.vision.num_patches, model.vision.config.depth
    if name == "vidtldr":
        return [patches // 8] * min(4, depth)
    return tome_schedule(patches // (2 * depth), depth)


def draw_tokens(
    source: Source,
    encoder: ReducingEncoder | ResidualViT | ReuseEncoder,
    *,
    fps: float | None = None,
    frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    keep_partial: bool = False,
) -> TokenPicture:
    """What an encoder makes of the patches of a video.

    VidTLDR, ToMe: the frames, the same with every patch in the mean colour of its token, and the mass of the tokens
    (for ToMe, in which all patches count alike, their sizes). ResidualViT, ReuseEncoder: the frames, and what is
    computed of them.

    A video model gets one clip of [start, end): the middle frames of equal parts. Of an image model the first
    `frames` (12) frames at `fps` (3) per second are drawn, from `start` on. Raises VideoError for what cannot be
    read, ValueError for arguments that make no sense, ImportError without matplotlib.
    """
    require("matplotlib", extra="plot")  # before the work, not after it
    if not isinstance(encoder, (ReducingEncoder, ResidualViT, ReuseEncoder)):
        raise TypeError(f"encoder must be a VidTLDR, ToMe, ResidualViT or ReuseEncoder, got {type(encoder).__name__}")
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    on_damage: Literal["skip", "raise"] = "skip" if keep_partial else "raise"
    model: Model | VideoModel = encoder.model
    motion = None
    if isinstance(model, VideoModel):
        for name, value in (("fps", fps), ("frames", frames)):
            if value is not None:
                raise ValueError(f"{name} has no meaning here: {model.name} takes clips of {model.frames} frames")
        clip = sample_clip(source, model.frames, start=start, end=end, on_damage=on_damage)
        times, pixels = clip.times.tolist(), model.preprocess(clip.frames)
    else:
        moves, rate = encoder.needs_motion, 3.0 if fps is None else fps
        with sample_frames(source, rate, start=start, end=end, motion=moves, on_damage=on_damage) as sampled:
            parts = list(preprocessed(islice(sampled, frames or FRAMES), model, motion=moves))
        times, pixels = [time for part in parts for time in part.times], torch.cat([part.pixels for part in parts])
        if moves:
            motion = torch.cat([part.motion for part in parts if part.motion is not None])
    seen = Preprocess(**model.preprocess_settings).pack(pixels).permute(0, 2, 3, 1).cpu().numpy()
    shown = _Shown(_name_of(source), times, seen, pixels)
    if isinstance(encoder, ReducingEncoder):
        return _merging_figure(encoder, shown)
    return _plan_figure(encoder, shown, motion)


@dataclass(frozen=True)
class _Shown:
    """Frames of one video: seconds, as bytes [F, S, S, 3], as the model takes them [F, 3, S, S]."""

    name: str
    times: list[float]
    frames: np.ndarray
    pixels: Tensor

    def facts(self, encoder: ReducingEncoder | ResidualViT | ReuseEncoder) -> dict[str, Any]:
        return {"video": self.name, "model": encoder.model.name, "settings": encoder.settings, "times": self.times}


def _merging_figure(encoder: ReducingEncoder, shown: _Shown) -> TokenPicture:
    vision = encoder.model.vision
    found = encoder.tokens(shown.pixels[None] if encoder.reads_clips else shown.pixels)
    owners = patch_owners(
        cast(Tensor, found.sources), found.tokens.shape[1], grid=vision.grid, prefix=vision.num_prefix
    )
    tubelet = len(shown.frames) // len(owners)
    means = patch_means(shown.frames, vision.grid, vision.config.patch_size, tubelet)
    frames = enlarged(shown.frames, vision.grid, vision.config.patch_size)
    heat = _mass(owners, found) if encoder.name != "tome" else _sizes(owners)
    rows = [
        frames,
        draw_merged(token_colours(means, owners), owners).repeat(tubelet, axis=0),
        draw_heat(frames, heat.values.repeat(tubelet, axis=0)),
    ]
    # The prefix is no patch and never goes, so what has gone is patches.
    before = vision.num_patches
    after = before - (encoder.counts[0] - encoder.counts[-1])
    in_clips = before > vision.grid**2
    per = f"a clip of {len(shown.frames)} frames" if in_clips else "a frame"
    words = Words(
        title=f"{_METHODS.get(encoder.name, encoder.name)}: {before} patches of {per} become {after} tokens",
        subtitle=f"{shown.name}, {_model_name(encoder)}; tokens that go in each block: {_listed(removed(encoder))}",
        rows=("frames", "merged tokens", heat.name),
        captions=[f"{time:.2f} s" for time in shown.times],
        notes=("Merged tokens: patches of one token have their mean colour, lines part tokens.", heat.note),
        scale=heat.scale,
    )
    facts = {
        **shown.facts(encoder),
        "tokens_before": before,
        "tokens_after": after,
        "removed": removed(encoder),
        "tokens_per": "clip" if in_clips else "frame",
        "share": after / before,
        "largest_token": int(patches_per_token(owners).max()),
    }
    return TokenPicture(draw_figure(rows, words), facts)


@dataclass(frozen=True)
class _Heat:
    """The third row. values: [Q, g, g] in [0, 1]; scale: what they mean, at 0, at 1."""

    name: str
    values: np.ndarray
    scale: tuple[str, str, str]
    note: str


def _mass(owners: np.ndarray, found: Tokens) -> _Heat:
    values = mass_per_patch(owners, found.all_masses().float().cpu().numpy().ravel())
    note = "Mass: how much a token counts, for each patch in it; background that was merged away counts little."
    return _Heat("mass", values, ("mass per patch", "0", "1"), note)


def _sizes(owners: np.ndarray) -> _Heat:
    sizes = patches_per_token(owners)
    most = int(sizes.max())
    values = np.log(sizes.clip(1)) / (np.log(most) if most > 1 else 1.0)
    note = "Size: how many patches a token is made of; all of them count alike."
    return _Heat("size", values, ("patches in the token (logarithmic)", "1", str(most)), note)


def _plan_figure(encoder: ResidualViT | ReuseEncoder, shown: _Shown, motion: Tensor | None) -> TokenPicture:
    vision = encoder.model.vision
    planner = encoder.planner()
    plan = planner.add(shown.pixels, motion) + planner.finish()
    masks = computed_patches(plan, vision.grid)
    frames = enlarged(shown.frames, vision.grid, vision.config.patch_size)
    computed = int(masks.sum())
    reuses = isinstance(encoder, ReuseEncoder)
    settings = {key: encoder.settings.get(key) for key in ("plan", "tolerance", "interleave", "select", "drop")}
    note = f"I: computed in full; P: in part, dark patches are {'reused from before' if reuses else 'dropped'}"
    copies = "; C: nothing has changed, the feature before is copied" if "C" in plan.roles else ""
    words = Words(
        title=f"{_METHODS[encoder.name]}: {computed} of {masks.size} patches are computed",
        subtitle=f"{shown.name}, {_model_name(encoder)}; "
        + ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None),
        rows=("frames", "computed"),
        captions=[f"{time:.2f} s   {role}" for time, role in zip(shown.times, plan.roles, strict=True)],
        notes=(f"{note}{copies}.",),
    )
    facts = {
        **shown.facts(encoder),
        "plan": plan.roles,
        "roles": {role: plan.roles.count(role) for role in "IPC"},
        "tokens_before": masks.size,
        "tokens_after": computed,
        "tokens_per": "video",
        "share": computed / masks.size,
    }
    return TokenPicture(draw_figure([frames, draw_computed(frames, masks)], words), facts)


def _name_of(source: Source) -> str:
    if not isinstance(source, (str, os.PathLike)):
        return "video"
    name = os.path.basename(os.fspath(source).rstrip("/"))
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _model_name(encoder: ReducingEncoder | ResidualViT | ReuseEncoder) -> str:
    """Short: of a file or a folder its last part, of a hub id all of it."""
    name = str(encoder.model.name)
    return Path(name).name if os.path.isabs(name) else name


def removed(encoder: ReducingEncoder) -> list[int]:
    """Tokens that really go in each block, up to the last one where any do."""
    gone = [before - after for before, after in pairwise(encoder.counts)]
    while gone and not gone[-1]:
        gone.pop()
    return gone


def _listed(gone: Sequence[int]) -> str:
    if len(gone) > 4 and len(set(gone)) == 1:
        return f"{gone[0]} in each of {len(gone)}"
    return ", ".join(map(str, gone)) or "none"
