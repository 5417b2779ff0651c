"""From a video and an encoder to a figure."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model, VideoModel
from everyframe.backbone.preprocess import Preprocess
from everyframe.encoders import ResidualViT, ReuseEncoder, TempMe
from everyframe.encoders.merging import ReducingEncoder
from everyframe.extras import require
from everyframe.pipeline.window import preprocessed
from everyframe.token_pictures.figure import Words, draw_figure
from everyframe.token_pictures.patches import (
    OUTLINED,
    computed_patches,
    draw_computed,
    draw_heat,
    draw_joined,
    draw_merged,
    enlarged,
    frames_per_token,
    mass_per_patch,
    patch_means,
    patch_owners,
    patches_per_token,
    token_colours,
)
from everyframe.tokens.merge import Tokens, tome_schedule
from everyframe.video import Clip, Source, probe, sample_clip, sample_frames, second_frames, write_image

FRAMES = 12
"""Frames of an image model that are drawn, unless told otherwise."""
AnyEncoder = ReducingEncoder | ResidualViT | ReuseEncoder | TempMe
_LONGEST = 32  # letters of a video's name that are written
_METHODS = {"vidtldr": "vid-TLDR", "tome": "ToMe", "residual": "ResidualViT", "reuse": "Reuse"}
_JOINED = (2, 2, 3)  # clips that become one, in TempMe's blocks for 12 frames


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


def usual_clips(model: Model) -> dict[str, Any]:
    """The same for TempMe, as its arguments, to merge 12 frames: the paper's for ViT-B/32 and B/16 (section 4.1).

    For others in their manner: clips are joined in three of the last blocks, two fifths of the patches merge before,
    and the larger percents are for many patches.
    """
    patches, depth = model.vision.num_patches, model.vision.config.depth
    first = max(0, min(2 * depth // 3, depth - len(_JOINED)))
    clips = dict(zip(range(first, depth), _JOINED, strict=False))
    cross, intra = (40, 20) if patches >= 100 else (30, 10)
    return {"r": round(0.4 * patches / max(first, 8)), "clips": clips, "remove_cross": cross, "remove_intra": intra}


def draw_tokens(
    source: Source,
    encoder: AnyEncoder,
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
    computed of them. TempMe: the frames, the merged tokens with lines around those that several frames share, and how
    many frames the tokens spread over.

    A video model gets one clip of [start, end): the middle frames of equal parts. TempMe with an image model gets
    `frames` (12, or as many as it joins) of [start, end), as in its evaluation. Of other image models the first
    `frames` (12) frames at `fps` (3) per second are drawn, from `start` on. Raises VideoError for what cannot be
    read, ValueError for arguments that make no sense, ImportError without matplotlib.
    """
    require("matplotlib", extra="plot")  # before the work, not after it
    if not isinstance(encoder, AnyEncoder):
        raise TypeError(
            f"encoder must be a VidTLDR, ToMe, TempMe, ResidualViT or ReuseEncoder, got {type(encoder).__name__}"
        )
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
    elif isinstance(encoder, TempMe):
        if fps is not None:
            raise ValueError("fps has no meaning with TempMe: its frames are spread over the video")
        clip = _joined_clip(source, encoder, frames, start=start, end=end, on_damage=on_damage)
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
    if isinstance(encoder, TempMe):
        return _joining_figure(encoder, shown)
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

    def facts(self, encoder: AnyEncoder) -> dict[str, Any]:
        return {"video": self.name, "model": encoder.model.name, "settings": encoder.settings, "times": self.times}


def _joined_clip(source: Source, encoder: TempMe, frames: int | None, **options: Any) -> Clip:
    """The frames that TempMe reads of a video. Raises ValueError for a number that cannot be joined."""
    span = encoder.schedule.span
    count = frames or encoder.frames or (span if FRAMES % span else FRAMES)
    encoder.counts(count)  # fails before the video is read
    clip = sample_clip(source, count, choose=partial(second_frames, fps=probe(source).average_fps), **options)
    if clip.num_frames < count:
        warnings.warn(
            f"{_name_of(source)} shows {clip.num_frames} frames, fewer than {count}: some are drawn twice",
            stacklevel=3,
        )
    return clip


def _joining_figure(encoder: TempMe, shown: _Shown) -> TokenPicture:
    vision, schedule = encoder.model.vision, encoder.schedule
    found = encoder.tokens(shown.pixels[None])
    prefix = vision.num_prefix
    owners = patch_owners(cast(Tensor, found.sources), found.tokens.shape[1], grid=vision.grid, prefix=prefix)
    means = patch_means(shown.frames, vision.grid, vision.config.patch_size)
    frames = enlarged(shown.frames, vision.grid, vision.config.patch_size)
    across = frames_per_token(owners)
    heat = _spread(across, schedule.span) if schedule.span > 1 else _sizes(owners)
    rows = [frames, draw_joined(token_colours(means, owners), owners), draw_heat(frames, heat.values)]
    before, after = owners.size, len(np.unique(owners))
    joined = " ".join(f"{block}:{count}" for block, count in schedule.clips.items()) or "none"
    percents = f", {schedule.remove_cross} and {schedule.remove_intra} %" if schedule.clips else ""
    words = Words(
        title=f"TempMe: {before} patches of {len(frames)} frames become {after} tokens",
        subtitle=f"{shown.name}, {_model_name(encoder)}; r={schedule.r}, clips {joined}{percents}"
        + ("" if schedule.temporal else ", within frames"),
        rows=("frames", "merged tokens", heat.name),
        captions=[f"{time:.2f} s" for time in shown.times],
        notes=(
            "Merged tokens: patches of one token have their mean colour, lines part tokens.",
            f"The largest tokens of several frames, at most {OUTLINED}, have a line of one colour in all of them.",
            heat.note,
        ),
        scale=heat.scale,
    )
    facts = {
        **shown.facts(encoder),
        "frames": len(frames),
        "tokens_before": before,
        "tokens_after": after,
        "tokens_per": "video",
        "share": after / before,
        "largest_token": int(patches_per_token(owners).max()),
        "tokens_of_several_frames": len(np.unique(owners[across > 1])),
        "most_frames_of_a_token": int(across.max()),
    }
    return TokenPicture(draw_figure(rows, words), facts)


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


def _spread(across: np.ndarray, span: int) -> _Heat:
    values = (across - 1) / (span - 1)
    note = "Frames per token: over how many the token of a patch spreads."
    return _Heat("frames per token", values, ("frames that the token spreads over", "1", str(span)), note)


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


def _model_name(encoder: AnyEncoder) -> str:
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
