"""Fewer tokens block by block, without training: vid-TLDR and ToMe.

V clips, F frames of a clip, T frames, N tokens of the first block, n of the last, W width of the transformer, D width
of what is returned.

A video transformer sees a clip's tokens of all frames in one sequence, so tokens merge across frames. An image model,
and a video model that reads frame by frame (ViFi-CLIP), has one sequence per frame, and tokens merge within a frame;
its CLS and register tokens are protected. Without reduction every encoder here is the unmodified model.

Sources: Choi et al., "vid-TLDR: Training Free Token Merging for Light-weight Video Transformer" (CVPR 2024); Bolya et
al., "Token Merging: Your ViT But Faster" (ICLR 2023).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from everyframe.backbone import Block, Model, VideoModel, VisionTransformer
from everyframe.cost import Rule, add_macs, sequence_macs
from everyframe.encoders.dense import AllFull, check_frames, check_plan
from everyframe.encoders.plan import Plan, fixed_roles
from everyframe.encoders.reducers import merge_background, merge_similar, merge_similar_tokens, run_blocks
from everyframe.tokens.merge import Tokens, num_reduced, token_counts

PRESETS = {
    "umt-b/msrvtt-retrieval": (600, 200, 100),
    "umt-b/msvd-retrieval": (450, 250, 200),
    "umt-b/activitynet-retrieval": (500,),
    "umt-b/didemo-retrieval": (250, 150, 150, 150),
    "umt-b/lsmdc-retrieval": (400, 150, 150),
    "umt-b/ssv2-label-retrieval": (200, 200, 200, 100),
    "umt-b/ssv2-template-retrieval": (400, 300),
    "umt-b/msrvtt-qa": (600, 200),
    "umt-b/msvd-qa": (600, 200),
    "umt-l/msrvtt-retrieval": (550, 400),
    "umt-l/msvd-retrieval": (600, 200, 100, 100),
    "umt-l/activitynet-retrieval": (600, 300),
    "umt-l/didemo-retrieval": (800, 100),
    "umt-l/lsmdc-retrieval": (250, 250, 200, 200),
    "umt-l/ssv2-label-retrieval": (450, 250, 100),
    "umt-l/ssv2-template-retrieval": (350, 300, 100, 50),
    "umt-l/msrvtt-qa": (400, 400, 100),
    "umt-l/msvd-qa": (400, 400, 100),
}
"""vid-TLDR's Table A: tokens removed in each block, for 12 frames (2,352 tokens)."""


class ReducingEncoder:
    """What the encoders below share: one pass of a model's own blocks with fewer tokens from block to block.

    model: what `everyframe.load_video` returns (clips in, one feature per clip), or `everyframe.load` (frames in, one
        feature per frame; then it is an encoder like any other).
    reduce: tokens removed in block 0, 1, 2, ...: counts, or shares of the block's tokens below 1. Blocks that are not
        named remove nothing. At most half of a block's tokens can go; more is cut to that with a warning, as published.
    batch_size: clips or frames per forward pass; results do not depend on it. Default: 1 clip, 32 frames.

    Attributes: `counts`, the tokens before each block and after the last. Raises ValueError for a `reduce` that is
    longer than the model is deep, negative, or a fraction above 1.
    """

    name = ""
    plan = "fixed"
    needs_motion = False
    looks_ahead = False
    _matching_width: int | None = None  # channels that matching compares, None where nothing is matched

    def __init__(
        self, model: VideoModel | Model, reduce: Sequence[int | float] = (), *, batch_size: int | None = None
    ) -> None:
        if not isinstance(model, (Model, VideoModel)):
            raise TypeError(
                f"model must be what everyframe.load or everyframe.load_video returns, got {type(model).__name__}"
            )
        self.model: Any = model
        self.reads_clips = isinstance(model, VideoModel)
        self.batch_size = (1 if self.reads_clips else 32) if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        vision = model.vision
        self._frame_wise = isinstance(vision, VisionTransformer)
        # A classifier of VideoMAE without mean pooling reads the first token, which must then stay.
        self.protected = vision.num_prefix or int(vision.config.pooling == "first")
        depth = len(vision.blocks)
        self.reduce = check_reduce(reduce, depth)
        self.counts = token_counts(vision.num_prefix + vision.num_patches, self.reduce, depth, self.protected)
        self._warn_of_halves()

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def group_size(self) -> int:
        """Frames of a clip; 1 for an image model."""
        return self.model.frames if self.reads_clips else 1

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        return {"encoder": self.name, "reduce": list(self.reduce)}

    def planner(self, first_frame: int = 0) -> AllFull:
        """A planner for one video, of an image model."""
        self._check_reads_frames()
        return AllFull()

    def roles(self, num_frames: int) -> str:
        """All frames are read alike: I."""
        return fixed_roles(num_frames, 0)

    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates by part, see `everyframe.cost`; of as many clips as hold that many frames."""
        sequences = num_frames
        if self.reads_clips:
            clips = math.ceil(num_frames / self.group_size)
            sequences = clips * (self.group_size if self._frame_wise else 1)
        return add_macs((sequences, self._sequence_macs(rule)))

    def plan_macs(self, plan: Plan, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of the frames of a plan by part."""
        return self.macs(len(plan.roles), rule)

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tokens:
        """What is left after the last block and the final norm, with masses and origins.

        pixels: preprocessed, [V, F, 3, S, S] for a video model, [T, 3, S, S] for an image model. Returns tokens
        [V, n, W] (n over all frames), masses float32 [V, n] and sources int64 [V, N]. Raises ValueError for other
        shapes.
        """
        batches = self._batches(self._sequences(pixels))  # of nothing one empty batch, so that the result has its shape
        found = Tokens.stacked([self._run(part.to(self.model.device, self.model.dtype)) for part in batches])
        return found.side_by_side(self.group_size) if self.reads_clips and self._frame_wise else found

    @torch.no_grad()
    def pool(self, tokens: Tensor, masses: Tensor | None = None) -> Tensor:
        """The tokens of `tokens` [V, n, W] -> float32 [V, D], L2-normalised where the model has a joint space.

        masses: only SigLIP's attention pooling has a use for them; a mean is taken plainly, as published.
        """
        vision = self.model.vision
        if not self._frame_wise:
            features = vision.pool(tokens)
        else:
            left = self.counts[-1]
            bias = None if masses is None else masses.reshape(-1, left).log()[:, None, None].to(tokens.dtype)
            features = vision.summarise(tokens.reshape(-1, left, tokens.shape[2]), bias).float()
            if self.reads_clips:
                features = features.unflatten(0, (-1, self.group_size)).mean(dim=1)
        joint = not self.reads_clips or self.model.joint
        return F.normalize(features.float(), dim=1) if joint else features.float()

    @torch.no_grad()
    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor:
        """Clips [V, F, 3, S, S] -> float32 [V, D]; for an image model frames [T, 3, S, S] -> float32 [T, D].

        L2-normalised where the model has a joint space. `motion` and `first_frame` are accepted so that encoders are
        interchangeable; neither is used. Raises ValueError for other shapes.
        """
        self._sequences(pixels)
        parts = (self.tokens(part) for part in pixels.split(self.batch_size))
        return torch.cat([self.pool(found.tokens, found.masses) for found in parts])

    @torch.no_grad()
    def encode_planned(self, pixels: Tensor, plan: Plan) -> Tensor:
        """The same for a plan of I-frames alone, of an image model. Raises ValueError for another."""
        self._check_reads_frames()
        check_plan(plan, pixels, self.model)
        if set(plan.roles) - {"I"}:
            raise ValueError(f"{self.name} reads every frame alike, but the plan's roles are {plan.roles[:12]}...")
        return self.encode(pixels)

    def _reducer(self, block: Block, state: Tokens, count: int, protected: int) -> Tokens:
        raise NotImplementedError

    def _run(self, pixels: Tensor) -> Tokens:
        """One batch of sequences through the model, with the final norm."""
        vision = self.model.vision
        state = Tokens.traced(vision.start(pixels))
        state = run_blocks(vision.blocks, state, self.counts, self._reducer, protected=self.protected)
        return state.with_tokens(vision.finish(state.tokens))

    def _sequences(self, pixels: Tensor) -> Tensor:
        """The pixels with one entry per sequence of tokens: clips, or frames where the model reads frame by frame."""
        if not self.reads_clips:
            check_frames(pixels, self.model)
            return pixels
        side, frames = self.model.image_size, self.model.frames
        if not isinstance(pixels, Tensor) or pixels.ndim != 5 or tuple(pixels.shape[2:]) != (3, side, side):
            got = list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ValueError(
                f"pixels must be [V, {frames}, 3, {side}, {side}] for {self.model.name}, got {got}; "
                "model.preprocess(frames) makes [F, 3, S, S] of one clip"
            )
        if not pixels.is_floating_point():
            raise ValueError(f"pixels must be floating point, got {pixels.dtype}; use model.preprocess(frames)")
        if pixels.shape[1] != frames:
            raise ValueError(
                f"{self.model.name} takes clips of {frames} frames, got {pixels.shape[1]}; sample {frames} frames of "
                "the video (a short one repeats its last frame)"
            )
        return pixels.flatten(0, 1) if self._frame_wise else pixels

    def _batches(self, sequences: Tensor) -> Sequence[Tensor]:
        size = self.batch_size * (self.group_size if self._frame_wise and self.reads_clips else 1)
        return sequences.split(size)

    def _sequence_macs(self, rule: Rule) -> dict[str, float]:
        return sequence_macs(
            self.model.vision.config,
            self.counts,
            rule="vid-tldr" if rule == "paper" and self.reads_clips else rule,
            matching=self._matching_width,
            protected=self.protected,
        )

    def _check_reads_frames(self) -> None:
        if self.reads_clips:
            raise TypeError(
                f"{self.model.name} reads clips of {self.group_size} frames and gives one feature for each; features "
                "at a frame rate need an image model (everyframe.load)"
            )

    def _warn_of_halves(self) -> None:
        over = [
            f"block {block} ({asked} of {self.counts[block]})"
            for block, asked in enumerate(self.reduce)
            if num_reduced(self.counts[block], asked, self.protected)
            < (int(self.counts[block] * asked) if asked < 1 else asked)
        ]
        if over:
            more = "" if len(over) < 3 else f" and {len(over) - 2} more"
            warnings.warn(
                f"reduce asks for more than half of the tokens in {', '.join(over[:2])}{more}: half are merged, as the "
                "published code does",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.name}, reduce={list(self.reduce)})"


class VidTLDR(ReducingEncoder):
    """vid-TLDR: background tokens merge away in the first blocks, foreground tokens keep their weight.

    The saliency of a token is how sharp its row of the attention is. A merged token counts by its saliency times its
    mass; below the mean of its clip that is zero, so the background is dropped and the rest averaged. The selection is
    computed in float32, also where the weights are not. Arguments as for `ReducingEncoder`.
    """

    name = "vidtldr"

    def __init__(
        self, model: VideoModel | Model, reduce: Sequence[int | float] = (), *, batch_size: int | None = None
    ) -> None:
        super().__init__(model, reduce, batch_size=batch_size)
        self._matching_width = model.vision.config.width

    @classmethod
    def preset(cls, name: str) -> list[int]:
        """The paper's schedule for a task (Table A), such as "umt-b/msrvtt-retrieval". ValueError for another."""
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; known are {', '.join(PRESETS)}")
        return list(PRESETS[name])

    def _reducer(self, block: Block, state: Tokens, count: int, protected: int) -> Tokens:
        return merge_background(block, state, count, protected)


class ToMe(ReducingEncoder):
    """ToMe: the most similar tokens merge, each counting as many as it was made of; schedules by `tome_schedule`.

    metric: what is compared, "keys" averaged over heads as in the paper, or the "tokens" themselves, which is what
        vid-TLDR's tables call ToMe. Other arguments as for `ReducingEncoder`.
    """

    name = "tome"

    def __init__(
        self,
        model: VideoModel | Model,
        reduce: Sequence[int | float] = (),
        *,
        metric: Literal["keys", "tokens"] = "keys",
        batch_size: int | None = None,
    ) -> None:
        if metric not in ("keys", "tokens"):
            raise ValueError(f'metric must be "keys" or "tokens", got {metric!r}')
        super().__init__(model, reduce, batch_size=batch_size)
        self.metric = metric
        config = model.vision.config
        self._matching_width = config.width // config.heads if metric == "keys" else config.width

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        return {**super().settings, **({} if self.metric == "keys" else {"metric": self.metric})}

    def _reducer(self, block: Block, state: Tokens, count: int, protected: int) -> Tokens:
        step = merge_similar if self.metric == "keys" else merge_similar_tokens
        return step(block, state, count, protected)


def check_reduce(reduce: Sequence[int | float], depth: int) -> tuple[int | float, ...]:
    """The schedule as a tuple. Raises TypeError or ValueError for one that makes no sense for `depth` blocks."""
    if isinstance(reduce, (str, bytes)) or not hasattr(reduce, "__len__"):
        raise TypeError(f"reduce must be a list with a number per block, such as [600, 200, 100], got {reduce!r}")
    if len(reduce) > depth:
        raise ValueError(f"reduce has {len(reduce)} entries, but the model has {depth} blocks; leave the rest out")
    checked: list[int | float] = []
    for block, value in enumerate(reduce):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"reduce[{block}] must be a number, got {value!r}")
        if not value >= 0 or not math.isfinite(value):
            raise ValueError(f"reduce[{block}] must be at least 0, got {value}; 0 removes nothing")
        if value > 1 and value != int(value):
            raise ValueError(
                f"reduce[{block}] must be a whole number of tokens, or a share of them below 1, got {value}"
            )
        checked.append(float(value) if value < 1 and value else int(value))
    return tuple(checked)
