"""ResidualViT: I-frames in full; P-frames from a few patches and a residual token made of the I-feature.

Source: Soldan et al., "ResidualViT for Efficient Temporally Dense Video Encoding", sections 3.1 and 4.
T frames, P patches, n kept patches, W width of the transformer, D width of the joint space.

A P-frame runs the *same frozen weights* on the sequence [prefix, r, kept patches]:
- prefix: CLS (CLIP), CLS and registers (DINOv2), nothing (SigLIP);
- r = A(f_I): the residual tokenizer (`tokenizer.py`) fed the L2-normalised I-feature. It carries no positional
  embedding;
- kept patches: chosen first and embedded after, so that a dropped patch costs nothing.
f_I is whatever the encoder returns for an I-frame: CLIP's projected CLS, SigLIP's attention-pooled feature
(so its pooling head attends to r as to any token), DINOv2's CLS after the final norm.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from everyframe.backbone import Block, Model, resize_positions, unfold_patches
from everyframe.cost import Rule, add_macs, frame_macs, sequence_macs
from everyframe.encoders.cuts import CutDetector
from everyframe.encoders.dense import (
    check_frames,
    check_model,
    check_motion,
    check_plan,
    encode_full,
    full_frame_macs,
)
from everyframe.encoders.plan import Plan, check_fixed, check_interleave, fixed_roles
from everyframe.encoders.reducers import merge_similar, run_blocks
from everyframe.encoders.tokenizer import ResidualTokenizer, resolve_tokenizer
from everyframe.tokens.drop import (
    SELECTIONS,
    center_indices,
    frame_residual,
    num_kept,
    patch_sums,
    random_indices,
    top_indices,
    uniform_indices,
)
from everyframe.tokens.merge import Tokens, token_counts

REDUCTIONS = ("drop", "resize", "merge")
PLANS = ("fixed", "cuts")


class ResidualViT:
    """Interleaved encoding: after each I-frame, `interleave` P-frames keep a share 1 - `drop` of their patches.

    select: how patches are kept: "motion" (most motion, the paper's best), "center", "uniform", "random", or
        "residual" (largest absolute difference to the frame before).
    residual: None (training-free), a tokenizer file ("weight" [W, D], "bias" [W]), a folder or hub repository that
        `everyframe distill` made, a `ResidualTokenizer`, or "auto": the one that ships with the model, else None
        with a warning.
    reduction: "drop", or "resize", the paper's comparator: P-frames are shrunk to about as many patches as "drop"
        keeps (a square grid, positional embeddings interpolated), and `select` has no meaning. Its plans name all
        patches of the small frame. Or "merge", the other comparator: P-frames start with all patches, and each block
        merges the `merge` most similar pairs (ToMe by keys, sizes tracked); CLS, registers and the residual token are
        protected, and `select` has no meaning.
    merge: tokens merged away in each block, with reduction="merge" alone, at most half of those there are; None takes
        the number at which a P-frame costs closest to what "drop" would cost. Merging must embed and attend to all
        patches in the first block, so that in a shallow model it stays dearer.
    plan: "fixed" (`interleave` P-frames after each I-frame, the paper's), or "cuts" (the same, but a shot begins
        with an I-frame, see `cuts.py`).
    seed: decides "random" and the order of equal scores; a frame's choice also depends on its number in the
        video, never on batching.
    batch_size: I-frames per forward pass; P-frames are batched to about as many tokens.
    """

    name = "residual"
    looks_ahead = False

    def __init__(
        self,
        model: Model,
        interleave: int = 2,
        drop: float = 0.85,
        select: str = "motion",
        residual: str | Path | ResidualTokenizer | None = "auto",
        *,
        reduction: str = "drop",
        merge: int | None = None,
        plan: str = "fixed",
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        if select not in SELECTIONS:
            raise ValueError(f"select must be one of {', '.join(SELECTIONS)}, got {select!r}")
        if plan not in PLANS:
            raise ValueError(f"plan must be one of {', '.join(PLANS)}, got {plan!r}; adaptive plans are ReuseEncoder's")
        if merge is not None and reduction != "merge":
            raise ValueError(f'merge has a meaning only with reduction="merge", not with {reduction!r}')
        if merge is not None and (isinstance(merge, bool) or not isinstance(merge, int) or merge < 0):
            raise ValueError(f"merge must be a number of tokens, 0 or more, got {merge!r}")
        check_model(model, batch_size)
        self.model = model
        self.plan = plan
        self.interleave = check_interleave(interleave)
        self.drop = float(drop)
        self.num_kept = num_kept(model.vision.num_patches, self.drop)
        self.reduction = reduction
        if reduction == "resize":
            # round, not floor: 5 x 5 stands for the 29 of 14 x 14 patches that 85 % leaves.
            self.num_kept = max(1, round(model.vision.grid * (1 - self.drop) ** 0.5)) ** 2
        self.select = select
        self.seed = seed
        self.batch_size = batch_size
        self.tokenizer, self._residual_name = resolve_tokenizer(residual, model, self.drop)
        self.merge = merge
        if reduction == "merge":
            self.merge = self._matching_merge() if merge is None else merge
            self.num_kept = model.vision.num_patches

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def group_size(self) -> int:
        """Frames from one I-frame to the next, at most; encoding may be split between groups but not inside one."""
        return self.interleave + 1

    @property
    def needs_motion(self) -> bool:
        """Does `encode` use motion maps with these settings?"""
        some_go = self.reduction == "drop" and self.num_kept < self.model.vision.num_patches
        return self.select == "motion" and self.interleave > 0 and some_go

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        settings = {
            "encoder": self.name,
            "interleave": self.interleave,
            "drop": self.drop,
            "select": self.select,
            "residual": self.tokenizer and f"{self._residual_name}:{self.tokenizer.fingerprint}",
            "seed": self.seed,
        }
        # Left out where it is the usual one: features made before there was a choice stay comparable.
        if self.reduction != "drop":
            settings["reduction"] = self.reduction
        if self.merge is not None:
            settings["merge"] = self.merge
        if self.plan != "fixed":
            settings["plan"] = self.plan
        return settings

    def planner(self, first_frame: int = 0) -> KeptPlanner:
        """A planner for one video, or for its part from `first_frame` on, an I-frame.

        Raises ValueError where `first_frame` cannot be one.
        """
        if self.plan == "fixed" and first_frame % self.group_size:
            raise ValueError(f"first_frame must be a multiple of {self.group_size}, got {first_frame}")
        return KeptPlanner(self, first_frame)

    def roles(self, num_frames: int) -> str:
        """ "IPPIPP..." for that many frames. Raises ValueError where the plan depends on the video."""
        check_fixed(self.plan, "its roles")
        return fixed_roles(num_frames, self.interleave)

    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of that many frames by part, see `everyframe.cost`.

        Raises ValueError where they depend on the video.
        """
        check_fixed(self.plan, "its cost")
        full = fixed_roles(num_frames, self.interleave).count("I")
        return self._macs(full, num_frames - full, rule)

    def plan_macs(self, plan: Plan, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of the frames of a plan by part."""
        return self._macs(plan.roles.count("I"), plan.roles.count("P"), rule)

    def _macs(self, full: int, others: int, rule: Rule) -> dict[str, float]:
        if self.merge is not None:
            reduced = self._merged_macs(rule)
        else:
            reduced = self._dropped_macs(rule)
        if self.tokenizer is not None:
            reduced["residual token"] = float(self.tokenizer.macs)
        return add_macs((full, full_frame_macs(self.model, rule)), (others, reduced))

    def _dropped_macs(self, rule: Rule) -> dict[str, float]:
        vision = self.model.vision
        exact = rule == "all" or self.reduction == "resize"
        patches = self.num_kept if exact else vision.num_patches * (1 - self.drop)
        tokens = vision.num_prefix + patches + (self.tokenizer is not None)
        return frame_macs(vision.config, rule, patches=patches, tokens=tokens)

    def _merged_macs(self, rule: Rule) -> dict[str, float]:
        config = self.model.vision.config
        parts = sequence_macs(
            config, self._merged_counts(), rule, matching=config.width // config.heads, protected=self._protected
        )
        # The residual token is no patch, though it is counted among the tokens.
        parts["patches"] *= self.model.vision.num_patches / (self._merged_counts()[0] - self.model.vision.num_prefix)
        return parts

    @property
    def _protected(self) -> int:
        """Tokens that never merge: the prefix and the residual token."""
        return self.model.vision.num_prefix + (self.tokenizer is not None)

    def _merged_counts(self, merge: int | None = None) -> list[int]:
        """Tokens before each block of a P-frame, and after the last."""
        vision, depth = self.model.vision, self.model.vision.config.depth
        rate = self.merge if merge is None else merge
        return token_counts(self._protected + vision.num_patches, [rate or 0] * depth, depth, self._protected)

    def _matching_merge(self) -> int:
        """The tokens per block at which merging costs closest to dropping, by the linear layers of the blocks."""
        config = self.model.vision.config
        wanted = self._dropped_macs("paper")["blocks"]

        def distance(merge: int) -> float:
            return abs(sequence_macs(config, self._merged_counts(merge), "paper")["blocks"] - wanted)

        return min(range(self.model.vision.num_patches // 2 + 1), key=distance)

    @torch.no_grad()
    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor:
        """Preprocessed frames [T, 3, S, S] -> float32 [T, dim], L2-normalised. Frame 0 is an I-frame.

        motion: magnitude of motion since the sampled frame before, [T, S, S] or None. With select="motion" and
            no maps, the absolute difference to the frame before takes their place, as it does for videos whose
            codec stores no motion.
        first_frame: number of `pixels[0]` in its video, with plan="fixed" a multiple of `group_size`; it only enters
            the seeds.
        Raises ValueError for other shapes.
        """
        check_frames(pixels, self.model)
        check_motion(motion, pixels)
        return self.encode_planned(pixels, self.planner(first_frame).add(pixels, motion))

    @torch.no_grad()
    def encode_planned(self, pixels: Tensor, plan: Plan, *, i_features: Tensor | None = None) -> Tensor:
        """The same for a plan that is known already, which must begin with an I-frame.

        i_features: float32 [number of I-frames, D], where they are known too; then only P-frames are computed.
        Raises ValueError for a plan that `planner` does not make.
        """
        check_frames(pixels, self.model)
        check_plan(plan, pixels, self.model)
        counts = [self.num_kept if role == "P" else 0 for role in plan.roles]
        if "C" in plan.roles or plan.roles[:1] == "P" or plan.counts.tolist() != counts:
            raise ValueError(
                f"a plan for this encoder begins with I and keeps {self.num_kept} patches of each P-frame, without "
                f"copies; got roles {plan.roles[:12]!r} and counts {plan.counts[:12].tolist()}"
            )
        is_full = torch.tensor([role == "I" for role in plan.roles], dtype=torch.bool)
        full, others = is_full.nonzero()[:, 0], (~is_full).nonzero()[:, 0]
        if i_features is None:
            i_features = encode_full(self.model, pixels[full], self.batch_size)
        features = torch.empty(len(pixels), self.dim, device=self.model.device)
        features[full] = i_features.to(features.device)
        sources = features[full[is_full.cumsum(0)[others] - 1]]
        features[others] = self._reduced(pixels, others, sources, plan.indices.view(-1, self.num_kept))
        return features

    @torch.no_grad()
    def encode_p(
        self, pixels: Tensor, motion: Tensor | None, rows: Tensor, i_features: Tensor, first_frame: int = 0
    ) -> Tensor:
        """The frames `rows` as P-frames, in batches: float32 [len(rows), D], unit rows.

        pixels, motion, first_frame: as for `encode`. i_features [len(rows), D]: of the I-frame each one leans on.
        """
        if not len(rows):
            return torch.empty(0, self.dim, device=self.model.device)
        return self._reduced(pixels, rows, i_features, self.kept_indices(pixels, motion, rows, first_frame))

    def _reduced(self, pixels: Tensor, rows: Tensor, i_features: Tensor, kept: Tensor) -> Tensor:
        """P-frames `rows` with the patches [len(rows), n] they keep, in batches."""
        if not len(rows):
            return torch.empty(0, self.dim, device=self.model.device)
        # A P-frame has a fraction of the tokens; larger batches keep the matrix products as large.
        most = max(self.batch_size * self.model.vision.num_patches // self.num_kept, 1)
        # Of equal size: a rest of one frame would take longer than its share.
        batch = math.ceil(len(rows) / math.ceil(len(rows) / most))
        parts = zip(rows.split(batch), i_features.split(batch), kept.split(batch), strict=True)
        return torch.cat([self.p_features(pixels, sources, indices, some) for some, sources, indices in parts])

    def kept_indices(self, pixels: Tensor, motion: Tensor | None, rows: Tensor, first_frame: int = 0) -> Tensor:
        """The patches each frame in `rows` keeps: int64 [len(rows), n], sorted, in raster numbering.

        With reduction="resize" all n patches of the shrunk frame.
        """
        vision, kept = self.model.vision, self.num_kept
        if self.reduction == "resize":
            return torch.arange(kept).expand(len(rows), -1)
        if kept == vision.num_patches or self.select == "uniform":
            return uniform_indices(vision.num_patches, kept).expand(len(rows), -1)
        if self.select == "center":
            return center_indices(vision.grid, kept).expand(len(rows), -1)
        frames = [first_frame + int(row) for row in rows]
        if self.select == "random":
            return random_indices(vision.num_patches, kept, frames=frames, seed=self.seed)
        maps = motion if self.select == "motion" and motion is not None else frame_residual(pixels)
        scores = patch_sums(maps[rows.to(maps.device)], vision.config.patch_size)
        return top_indices(scores, kept, frames=frames, seed=self.seed)

    def p_features(self, pixels: Tensor, i_features: Tensor, indices: Tensor, rows: Tensor | None = None) -> Tensor:
        """P-frames [B, 3, S, S], their I-features [B, D] and kept patches [B, n] -> float32 [B, D], unit rows.

        rows: int64 [B], where `pixels` has other frames too: the numbers of these.
        Differentiable, so that the residual tokenizer can be trained through it.
        """
        vision, model = self.model.vision, self.model
        if self.reduction == "resize":
            tokens = self._embed_small(pixels if rows is None else pixels[rows])
        else:
            frames = torch.arange(len(pixels)) if rows is None else rows
            patches = vision.patches_at(pixels, frames.to(pixels.device)[:, None], indices.to(pixels.device))
            tokens = vision.embed(patches.to(model.device, model.dtype), indices.to(model.device))
        parts = [vision.prefix(len(tokens)), tokens]
        if self.tokenizer is not None:
            parts.insert(1, self.tokenizer(i_features.to(self.tokenizer.dtype))[:, None].to(model.dtype))
        tokens = torch.cat(parts, 1)
        features = vision.encode(tokens) if self.merge is None else self._encode_merging(tokens)
        return F.normalize(features.float(), dim=1)

    def _encode_merging(self, tokens: Tensor) -> Tensor:
        """What `vision.encode` does, with `merge` pairs merged in each block: [B, n, W] -> [B, D]."""
        vision, state = self.model.vision, Tokens(self.model.vision.pre(tokens))
        blocks = cast("list[Block]", list(vision.blocks))
        state = run_blocks(blocks, state, self._merged_counts(), merge_similar, protected=self._protected)
        return vision.pool(state.tokens, state.mass_bias())

    def _embed_small(self, pixels: Tensor) -> Tensor:
        """All patches of frames shrunk to a coarser grid: [B, 3, S, S] -> tokens [B, n, W]."""
        vision = self.model.vision
        grid, size = round(self.num_kept**0.5), vision.config.patch_size
        small = F.interpolate(pixels.float(), size=(grid * size, grid * size), mode="bilinear", antialias=True)
        patches = unfold_patches(small, size).to(vision.patch.weight.device, vision.patch.weight.dtype)
        return vision.patch(patches) + resize_positions(vision.positions, grid)


class KeptPlanner:
    """Plans one video for a `ResidualViT`; frames go in in order, in calls of any size, with the same result.

    Which patches a P-frame keeps is `ResidualViT.kept_indices`: motion since the frame before decides, whatever that
    frame was. (`planner.Planner` adds it up until a patch is refreshed; here nothing is ever refreshed.)
    """

    def __init__(self, encoder: ResidualViT, first_frame: int) -> None:
        self._encoder = encoder
        self._detector = CutDetector() if encoder.plan == "cuts" else None
        self._frame = first_frame
        self._since = encoder.interleave  # P-frames since the last I-frame
        self._last: Tensor | None = None  # the frame before, where selection may look at differences

    @torch.no_grad()
    def add(self, pixels: Tensor, motion: Tensor | None = None) -> Plan:
        """The next frames [T, 3, S, S] (and motion maps [T, S, S] or None) -> their part of the plan."""
        roles = self._roles(pixels)
        rows = torch.tensor([row for row, role in enumerate(roles) if role == "P"], dtype=torch.int64)
        kept = list(self._kept(pixels, motion, rows)) if len(rows) else []
        self._frame += len(pixels)
        if len(pixels) and self._encoder.select in ("motion", "residual"):
            self._last = pixels[-1:].clone()
        return Plan.of(roles, kept)

    def finish(self) -> Plan:
        """Nothing is left over."""
        return Plan.of("", [])

    def _roles(self, pixels: Tensor) -> str:
        if self._detector is None:
            cuts = [False] * len(pixels)
        else:
            cuts = self._detector.add(pixels).tolist()
        roles = ""
        for cut in cuts:
            full = cut or self._since >= self._encoder.interleave
            self._since = 0 if full else self._since + 1
            roles += "I" if full else "P"
        return roles

    def _kept(self, pixels: Tensor, motion: Tensor | None, rows: Tensor) -> Tensor:
        maps = motion if self._encoder.select == "motion" else None
        if maps is None and self._last is not None:  # differences reach back into the call before
            together = torch.cat((self._last, pixels))
            return self._encoder.kept_indices(together, None, rows + 1, self._frame - 1).cpu()
        return self._encoder.kept_indices(pixels, maps, rows, self._frame).cpu()
