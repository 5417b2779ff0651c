"""TempMe: one feature per video, with tokens that merge within frames first, then across frames.

V videos, F frames, S clips (sequences of tokens of one or more frames), n tokens of each, W width, D width of the
feature. Every frame starts as a clip of its own. In the first blocks similar tokens of a frame merge (ImgMe); then
clips are joined, block by block, into longer ones, and their tokens merge across and within clips (ClipMe), so that
attention comes to see all frames at once. CLS tokens never merge: all F are projected, normalised and averaged.

Source: Shen et al., "TempMe: Video Temporal Token Merging for Efficient Text-Video Retrieval" (ICLR 2025), and, where
it is silent, what the authors' code computes: averages weighted by size, proportional attention, matching across clips
by the block's input before clip positions are added.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from everyframe.backbone import Block, Model, VideoModel, VideoTransformer
from everyframe.backbone.pieces import attention
from everyframe.cost import Rule, clip_macs
from everyframe.encoders.clip_positions import hash_positions, read_positions, write_positions
from everyframe.tokens.clips import ClipSchedule, LayerCounts, join_clips, side_by_side
from everyframe.tokens.merge import Tokens, bipartite_match, merge_tokens

_SHORT, _LONG = MappingProxyType({8: 2, 9: 2, 10: 3}), MappingProxyType({8: 4, 9: 4, 10: 4})
_DATASETS = {"msrvtt": _SHORT, "lsmdc": _SHORT, "activitynet": _LONG, "didemo": _LONG}
_SIZES = {
    "b32": {"r": 2, "remove_cross": 30, "remove_intra": 10},
    "b16": {"r": 10, "remove_cross": 40, "remove_intra": 20},
}
PRESETS = {
    f"{dataset}-{size}": {**rates, "clips": clips}
    for dataset, clips in _DATASETS.items()
    for size, rates in _SIZES.items()
}
"""The paper's schedules: 12 frames for MSR-VTT and LSMDC, 64 for ActivityNet and DiDeMo. It reports 64 frames for
ViT-B/32 alone; with B/16 they put both of its settings together."""


class TempMe:
    """Videos of F frames in, one feature each out, with fewer and fewer tokens.

    model: what `everyframe.load` returns, or a UMT of `everyframe.load_video`, whose frames are then read one by one
        (the paper's UMT4Clip; every token keeps its place in time from UMT's own table).
    r: tokens that merge within a frame in each block before the first of `clips`.
    clips: {block, counted from 0: how many clips it joins}; {} is ToMe, `r` tokens in every block.
    remove_cross, remove_intra: percent of the tokens, whole numbers, that merge when clips are joined, and between
        attention and MLP of every block from the first of `clips` on; 0 merges nothing. At most half can go.
    positions: clip positions, {block: [clips before joining, W]} for every block of `clips`, or a .safetensors file of
        them (`save_positions`); None is zeros. Tensors are used as they are, so that parameters learn.
    temporal: False joins no clips and merges the same percents within each frame (Table 9's Token Reduction).
    proportional: whether a token weighs in attention as many as it was made of.
    batch_size: videos per forward pass of `encode`; results do not depend on it.

    Towers with CLS read all F of them: each through final norm and projection, normalised, averaged. SigLIP has none:
    nothing is protected, its pooling head looks at the tokens of each final clip, weighted by their sizes, and the
    clips' features are normalised and averaged. UMT, too, protects nothing and takes the plain mean of the tokens of
    each final clip. Both are our definitions; the paper gives none.

    Raises TypeError or ValueError for arguments that make no sense, or not with each other.
    """

    name = "tempme"
    plan = "fixed"
    needs_motion = False
    looks_ahead = False
    reads_clips = True

    def __init__(
        self,
        model: Model | VideoModel,
        r: int = 2,
        clips: Mapping[int, int] = _SHORT,
        remove_cross: int = 30,
        remove_intra: int = 10,
        positions: Mapping[int, Tensor] | str | Path | None = None,
        *,
        temporal: bool = True,
        proportional: bool = True,
        batch_size: int = 4,
    ) -> None:
        self.model: Any = _checked_model(model)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.proportional = proportional
        self.schedule = ClipSchedule(
            r=r,
            clips=dict(clips) if isinstance(clips, Mapping) else clips,
            remove_cross=remove_cross,
            remove_intra=remove_intra,
            temporal=temporal,
        )
        vision = model.vision
        self._depth = len(vision.blocks)
        self.schedule.check_depth(self._depth, model.name)
        self._frame_tokens = vision.num_patches + vision.num_prefix
        if isinstance(vision, VideoTransformer):
            self._frame_tokens = vision.grid**2
            self._check_span(vision.config.frames, f"{model.name} reads")
        self.protected = vision.num_prefix
        given = read_positions(positions) if isinstance(positions, (str, Path)) else positions
        self.positions: dict[int, Tensor] = dict(given or {})
        self.frames = self._frames_of(self.positions)
        halved = self.schedule.halved(self._frame_tokens, self._depth, self.protected)
        if halved:
            warnings.warn(
                f"the schedule asks for more than half of the tokens in block {', '.join(map(str, halved))}: half are "
                "merged",
                stacklevel=2,
            )

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        """Arguments for a data set and a size, such as "msrvtt-b32": r, clips, remove_cross, remove_intra.

        Raises ValueError for another name; all are in `PRESETS`.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; known are {', '.join(PRESETS)}")
        return {**PRESETS[name], "clips": dict(cast(Mapping[int, int], PRESETS[name]["clips"]))}

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def group_size(self) -> int:
        """Frames of the shortest video: those of one final clip, or as many as the positions or the model are for."""
        return self.frames or self.schedule.span

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance; positions by the hash of their values."""
        schedule = self.schedule
        more: dict[str, Any] = {} if schedule.temporal else {"temporal": False}
        if not self.proportional:
            more["proportional"] = False
        if self.positions:
            more["positions"] = hash_positions(self.positions)
        return {
            "encoder": self.name,
            "r": schedule.r,
            "clips": {str(block): count for block, count in schedule.clips.items()},
            "remove_cross": schedule.remove_cross,
            "remove_intra": schedule.remove_intra,
            **more,
        }

    def counts(self, frames: int | None = None) -> list[LayerCounts]:
        """Tokens of one video around each block. frames: default `group_size`; ValueError if they cannot be joined."""
        frames = self.group_size if frames is None else frames
        self._check_span(frames, "the video has")
        return self.schedule.counts(self._frame_tokens, frames, self._depth, self.protected)

    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates by part of videos of that many frames in all, see `everyframe.cost`."""
        return clip_macs(self.model.vision.config, self.counts(num_frames), rule, protected=self.protected)

    def zero_positions(self, frames: int) -> dict[int, Tensor]:
        """Clip positions to start training from, for videos of `frames` frames: {block: zeros [clips, W]}, float32."""
        self._check_span(frames, "the video has")
        width, blocks = self.model.vision.config.width, self.schedule.clips if self.schedule.temporal else ()
        rows = {block: frames // self.schedule.frames_before(block) for block in blocks}
        return {block: torch.zeros(count, width, device=self.model.device) for block, count in rows.items()}

    def planner(self, first_frame: int = 0) -> NoReturn:
        """There are no features at a frame rate. Raises TypeError."""
        raise TypeError(
            "TempMe gives one feature per video, not one per frame; encode whole clips, or use DenseEncoder"
        )

    @torch.no_grad()
    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor:
        """Preprocessed videos [V, F, 3, S, S] -> float32 [V, D], L2-normalised, without gradients.

        `motion` and `first_frame` are accepted so that encoders are interchangeable; neither is used. Raises TypeError
        or ValueError for other shapes, or F frames that the schedule cannot join.
        """
        self._check_pixels(pixels)
        features = [self.features(part) for part in pixels.split(self.batch_size)] if len(pixels) else []
        return torch.cat(features) if features else torch.empty(0, self.dim, device=self.model.device)

    def features(self, pixels: Tensor, *, checkpoint: bool = False) -> Tensor:
        """The same in one pass and with gradients, for training. Who merges with whom is decided without them.

        checkpoint: keep the input of each block alone and compute it again going back: less memory, more time. Raises
        as `encode`, and ValueError for no videos.
        """
        self._check_pixels(pixels)
        if not len(pixels):
            raise ValueError("pixels must hold at least one video to fit to, got none")
        state = self._run(pixels, checkpoint=checkpoint)
        features = self._pool(state)
        return F.normalize(features.unflatten(0, (len(pixels), -1)).mean(dim=1), dim=1)

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tokens:
        """What is left after the last block and the final norm, with sizes and origins.

        pixels: [V, F, 3, S, S]. Returns tokens [V, n, W] (n over all final clips), masses float32 [V, n] and sources
        int64 [V, N]: for each of the N tokens of all frames (frame by frame, CLS and registers first), the token that
        holds it now.
        """
        self._check_pixels(pixels)
        if not len(pixels):
            raise ValueError("pixels must hold at least one video to take tokens of, got none")
        found = Tokens.stacked([self._run(part, trace=True) for part in pixels.split(self.batch_size)])
        return found.side_by_side(len(found.tokens) // len(pixels))

    def save_positions(self, file: str | Path) -> None:
        """Write the clip positions so that `positions=file` reads them. Raises ValueError where there are none."""
        if not self.positions:
            raise ValueError("there are no positions to save: this TempMe was made with positions=None")
        write_positions(file, self.positions)

    # --- the pass --------------------------------------------------------------------------------------------

    def _run(self, pixels: Tensor, *, trace: bool = False, checkpoint: bool = False) -> Tokens:
        """One batch of videos through all blocks and the final norm: tokens [V * final clips, n, W]."""
        vision = self.model.vision
        pixels = pixels.to(self.model.device, self.model.dtype)
        if isinstance(vision, VideoTransformer):
            start = vision.start(pixels).unflatten(1, (pixels.shape[1], -1)).flatten(0, 1)
        else:
            start = vision.start(pixels.flatten(0, 1))
        # Traced by count, not by the model's sizes: training may have added tokens to every frame.
        state = Tokens.traced(start) if trace else Tokens(start)
        for number, block in enumerate(vision.blocks):
            if checkpoint:
                state = recomputed(self._block, number, block, state, use_reentrant=False)
            else:
                state = self._block(number, block, state)
        return state.with_tokens(vision.finish(state.tokens))

    def _block(self, number: int, block: Block, state: Tokens) -> Tokens:
        """One block, with what merges before its attention and before its MLP."""
        schedule = self.schedule
        protected = self.protected * schedule.frames_before(number)
        if number in schedule.clips:
            state = self._across(number, state, protected)
            protected *= schedule.group(number)
        queries, keys, values = block.heads_of(state.tokens)
        bias = state.mass_bias() if self.proportional else None
        bias = None if bias is None else bias.to(queries.dtype)
        attended = attention(queries, keys, values, bias=bias)
        state = state.with_tokens(state.tokens + block.output(attended))
        count = schedule.within(number, state.tokens.shape[1], protected)
        if count:
            metric = keys.detach().float().mean(dim=1)
            state = merge_tokens(state, bipartite_match(metric, count, protected=protected))
        return state.with_tokens(state.tokens + block.feed(state.tokens))

    def _across(self, number: int, state: Tokens, protected: int) -> Tokens:
        """Join clips, add their positions, and merge: the step before attention."""
        group = self.schedule.group(number)
        joined = join_clips(state, group, protected)
        metric = joined.tokens
        positions = self.positions.get(number)
        if positions is not None:
            rows = positions.to(state.tokens).repeat(len(state.tokens) // len(positions), 1)
            spread = rows[:, None].expand_as(state.tokens)
            joined = joined.with_tokens(joined.tokens + side_by_side(spread, group, protected))
        protected *= group
        count = self.schedule.across(number, metric.shape[1], protected)
        if not count:
            return joined
        return merge_tokens(joined, bipartite_match(metric, count, protected=protected))

    def _pool(self, state: Tokens) -> Tensor:
        """Tokens after the final norm -> float32 [V * f, D], unit rows: f frames of a video, or final clips of it."""
        vision = self.model.vision
        if isinstance(vision, VideoTransformer):
            features = vision.pool(state.tokens)
        elif self.protected and vision.head is None:
            frames = self.schedule.span
            cls = state.tokens[:, : frames * self.protected : self.protected]
            features = vision.summarise(cls.flatten(0, 1)[:, None])
        else:
            features = vision.summarise(state.tokens, state.mass_bias())
        return F.normalize(features.float(), dim=1)

    # --- checks ----------------------------------------------------------------------------------------------

    def _frames_of(self, positions: dict[int, Tensor]) -> int | None:
        """The frames of a video that positions, or a UMT, fix; None where neither does."""
        vision, schedule = self.model.vision, self.schedule
        frames: int | None = vision.config.frames if isinstance(vision, VideoTransformer) else None
        if not positions:
            return frames
        if not schedule.temporal:
            raise ValueError("positions have no meaning with temporal=False, where no clips are joined; leave them out")
        if sorted(positions) != list(schedule.clips):
            raise ValueError(
                f"positions must be for the blocks that join clips, {list(schedule.clips)}, got {sorted(positions)}"
            )
        width = vision.config.width
        for block in schedule.clips:
            rows = positions[block]
            if not isinstance(rows, Tensor):
                raise TypeError(f"positions[{block}] must be a tensor, got {type(rows).__name__}")
            if rows.ndim != 2 or rows.shape[1] != width:
                raise ValueError(f"positions[{block}] must be [clips, {width}], got {list(rows.shape)}")
            counted = len(rows) * schedule.frames_before(block)
            frames = counted if frames is None else frames
            if counted != frames:
                raise ValueError(
                    f"positions[{block}] has {len(rows)} rows, but videos of {frames} frames come to block {block} as "
                    f"{frames / schedule.frames_before(block):g} clips"
                )
        self._check_span(frames or 0, "the positions are for")
        return frames

    def _check_pixels(self, pixels: Tensor) -> None:
        """Raise unless these are preprocessed videos whose frames the schedule can join."""
        if not isinstance(pixels, Tensor):
            raise TypeError(
                f"pixels must be a tensor, got {type(pixels).__name__}; model.preprocess(frames) makes [F, 3, S, S]"
            )
        side = self.model.image_size
        if pixels.ndim != 5 or tuple(pixels.shape[2:]) != (3, side, side):
            raise ValueError(
                f"pixels must be [V, F, 3, {side}, {side}] for {self.model.name}, got {list(pixels.shape)}; "
                "model.preprocess(frames) makes [F, 3, S, S] of one video"
            )
        if not pixels.is_floating_point():
            raise ValueError(f"pixels must be floating point, got {pixels.dtype}; use model.preprocess(frames)")
        if self.frames is not None and pixels.shape[1] != self.frames:
            what = "its positions are" if self.positions else "its model is"
            raise ValueError(
                f"the videos have {pixels.shape[1]} frames, but {what} for {self.frames}; sample {self.frames} frames "
                "per video (a short one repeats frames)"
            )
        self._check_span(pixels.shape[1], "the videos have")

    def _check_span(self, frames: int, subject: str) -> None:
        span = self.schedule.span
        if frames < 1 or frames % span:
            raise ValueError(
                f"{subject} {frames} frames, which clips={dict(self.schedule.clips)} cannot join: it takes a multiple "
                f"of {span}; sample as many, or pass another schedule"
            )

    def __repr__(self) -> str:
        schedule = self.schedule
        return (
            f"TempMe({self.model.name}, r={schedule.r}, clips={dict(schedule.clips)}, "
            f"remove_cross={schedule.remove_cross}, remove_intra={schedule.remove_intra})"
        )


def _checked_model(model: Model | VideoModel) -> Model | VideoModel:
    if isinstance(model, Model) or (isinstance(model, VideoModel) and model.family == "umt"):
        return model
    if not isinstance(model, VideoModel):
        raise TypeError(
            f"model must be what everyframe.load returns, or a UMT of everyframe.load_video, got {type(model).__name__}"
        )
    why = (
        "averages its frames itself: load the CLIP it came from"
        if model.family == "vifi-clip"
        else "has tokens that cover several frames, so it cannot be read frame by frame"
    )
    raise TypeError(f"{model.name} cannot be read by TempMe: a {model.family} model {why}")
