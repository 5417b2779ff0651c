"""One pass of the transformer over many frames of which some only refresh the tokens that changed.

T frames, G groups (an I-frame and the P-frames after it), L tokens of a full frame (prefix and P patches), n_t
tokens that frame t computes, M the sum of them, W width of the transformer, D width of the joint space.

A P-frame computes its prefix (CLS, registers) and its refreshed patches; they attend to the keys and values of
*all* L tokens. Those of the other patches are what they were when last computed, in an earlier P-frame or in the
I-frame. Later frames see the refreshed ones.

The pass goes layer by layer over all frames at once. Nothing in a layer asks for more than that layer's keys and
values, so the linear layers see one matrix [M, W] whatever the frames' counts (no padding), and the state is one
layer's: the rows of the I-frames in the `qkv` product, into which each P-frame's rows are written before it attends
and the next P-frame of its group follows. Nothing is concatenated or copied per frame.

In a two-sided plan a P-frame may take some patches from the next I-frame, whose keys and values are at hand in the same
pass: they are written into the state like refreshed ones and cost no more than that. The state is then a copy, because
an I-frame must still be there as it was when the group before it looks ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from everyframe.backbone import Block, Model, VisionTransformer
from everyframe.backbone.pieces import attention
from everyframe.encoders.plan import Plan

_NONE = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class _Step:
    """The k-th P-frames of the first `groups` groups: their rows, where in the state they go, how they are padded."""

    first: int
    last: int
    slots: Tensor  # int64 [last - first], rows of the state [G * L]
    lent: Tensor  # int64, rows of the state that the next I-frames lend,
    lenders: Tensor  # int64, and their rows there [G * L]
    groups: int
    longest: int
    padded: Tensor | None  # int64 [last - first], rows of [groups * longest]; None where no padding is needed


class _Layout:
    """Which row of [M, W] is what. Groups are sorted by length, so that those still going are always the first."""

    def __init__(self, plan: Plan, vision: VisionTransformer, device: torch.device) -> None:
        prefix, tokens = vision.num_prefix, vision.num_prefix + vision.num_patches
        in_time = plan.groups()
        order = sorted(range(len(in_time)), key=lambda number: -len(in_time[number]))
        groups = [in_time[number] for number in order]
        place_of = {number: place for place, number in enumerate(order)}
        self.is_two_sided = plan.is_two_sided
        self.full = [group[0] for group in groups]
        self.reduced: list[int] = []
        self.steps: list[_Step] = []
        starts = plan.offsets
        row = len(groups) * tokens
        first_rows, prefix_rows, patch_rows, patches = list(range(0, row, tokens)), [], [], []
        for k in range(1, max(map(len, groups), default=1)):
            frames = [group[k] for group in groups if len(group) > k]
            counts = [prefix + int(starts[frame + 1] - starts[frame]) for frame in frames]
            longest, begin = max(counts), row
            slots, padded = [], []
            lent, lenders = [_NONE], [_NONE]
            for place, (frame, count) in enumerate(zip(frames, counts, strict=True)):
                chosen = plan.indices[starts[frame] : starts[frame + 1]]
                slots += [torch.arange(prefix) + place * tokens, chosen + prefix + place * tokens]
                padded.append(torch.arange(count) + place * longest)
                if self.is_two_sided:
                    taken = plan.lent_by(frame)
                    lent.append(taken + prefix + place * tokens)
                    lenders.append(taken + prefix + place_of.get(order[place] + 1, 0) * tokens)
                prefix_rows.append(torch.arange(prefix) + row)
                patch_rows.append(torch.arange(prefix, count) + row)
                patches.append(chosen)
                first_rows.append(row)
                row += count
            uneven = min(counts) < longest
            self.steps.append(
                _Step(
                    begin,
                    row,
                    torch.cat(slots).to(device),
                    torch.cat(lent).to(device),
                    torch.cat(lenders).to(device),
                    len(frames),
                    longest,
                    torch.cat(padded).to(device) if uneven else None,
                )
            )
            self.reduced += frames
        self.rows = row
        self.first_rows = torch.tensor(first_rows, device=device)
        self.patch_counts = [len(chosen) for chosen in patches]
        self.prefix_rows = torch.cat([_NONE, *prefix_rows]).to(device)
        self.patch_rows = torch.cat([_NONE, *patch_rows]).to(device)
        self.patches = torch.cat([_NONE, *patches])


@torch.no_grad()
def packed_features(model: Model, pixels: Tensor, plan: Plan) -> Tensor:
    """Preprocessed frames [T, 3, S, S] and their plan -> float32 [T, D], unit rows; all of it in one pass.

    Frame 0 must be an I-frame. A frame with role C gets the feature of the frame before it.
    """
    vision = model.vision
    layout = _Layout(plan, vision, model.device)
    x = _embed(model, pixels, layout)
    tokens, groups = vision.num_prefix + vision.num_patches, len(layout.full)
    # The same memory for every block: asking the system for as much each time would cost more than the sums do.
    qkv, attended = x.new_empty(len(x), 3 * x.shape[1]), torch.empty_like(x)
    for block in cast("list[Block]", vision.blocks):
        block.write_qkv(x, qkv)
        _attend(block.heads, qkv, attended, layout, groups, tokens)
        block.add_attended(x, attended)
        block.add_fed(x)
    computed = F.normalize(_pool(vision, x, layout, groups, tokens).float(), dim=1)
    order = torch.tensor(layout.full + layout.reduced, device=model.device)
    row_of = torch.empty(len(plan.roles), dtype=torch.int64, device=model.device)
    row_of[order] = torch.arange(len(order), device=model.device)
    sources = torch.tensor(plan.sources, device=model.device)
    return computed[row_of[sources]]


def _embed(model: Model, pixels: Tensor, layout: _Layout) -> Tensor:
    """Tokens before the first block, packed: [M, W]."""
    vision = model.vision
    full = vision.with_prefix(vision.embed(vision.patchify(pixels[layout.full]).to(model.device, model.dtype)))
    x = full.new_empty(layout.rows, full.shape[2])
    x[: full.shape[0] * full.shape[1]] = full.flatten(0, 1)
    if layout.reduced:
        frames = torch.repeat_interleave(torch.tensor(layout.reduced), torch.tensor(layout.patch_counts))
        chosen = vision.patches_at(pixels, frames, layout.patches).to(model.device, model.dtype)
        x[layout.patch_rows] = vision.embed(chosen, layout.patches.to(model.device))
        x[layout.prefix_rows] = vision.prefix(len(layout.reduced)).flatten(0, 1)
    return vision.pre(x)


class _State:
    """Keys and values [G * L, 2 W] of one layer, brought up to date in place."""

    def __init__(self, full: Tensor, two_sided: bool) -> None:
        self._full = full
        self.pairs = full.clone() if two_sided else full

    def refresh(self, step: _Step, rows: Tensor) -> None:
        """The frames of a step take what they are lent, and bring their own rows."""
        if len(step.lent):
            self.pairs.index_copy_(0, step.lent, self._full[step.lenders])
        self.pairs.index_copy_(0, step.slots, rows)


def _attend(heads: int, qkv: Tensor, attended: Tensor, layout: _Layout, groups: int, tokens: int) -> None:
    """The attention of one block on packed tokens: [M, 3 W] -> into `attended` [M, W]."""
    width = attended.shape[1]
    full = qkv[: groups * tokens]
    queries, keys, values = (_heads(part, groups, heads) for part in full.split(width, dim=1))
    whole = attention(queries, keys, values)
    attended[: groups * tokens] = whole.transpose(1, 2).reshape(-1, width)
    state = _State(full[:, width:], layout.is_two_sided)
    keys, values = (_heads(part, groups, heads) for part in state.pairs.split(width, dim=1))
    for step in layout.steps:
        rows = qkv[step.first : step.last]
        state.refresh(step, rows[:, width:])
        wide = rows[:, :width]
        if step.padded is not None:
            wide = rows.new_zeros(step.groups * step.longest, width).index_copy_(0, step.padded, wide)
        out = attention(_heads(wide, step.groups, heads), keys[: step.groups], values[: step.groups])
        out = out.transpose(1, 2).reshape(-1, width)
        attended[step.first : step.last] = out if step.padded is None else out[step.padded]


def _pool(vision: VisionTransformer, x: Tensor, layout: _Layout, groups: int, tokens: int) -> Tensor:
    """Features [G + P-frames, D] in the order of `layout.full + layout.reduced`."""
    if vision.head is None:
        return vision.pool(x[layout.first_rows, None])
    # Attention pooling looks at every token, so it has a state of its own.
    pairs = vision.head.keys_values(vision.norm_post(x))
    pooled = [vision.head.look(pairs[: groups * tokens].view(groups, tokens, -1))]
    state = _State(pairs[: groups * tokens], layout.is_two_sided)
    for step in layout.steps:
        state.refresh(step, pairs[step.first : step.last])
        pooled.append(vision.head.look(state.pairs[: step.groups * tokens].view(step.groups, tokens, -1)))
    features = torch.cat(pooled)
    return features if vision.projection is None else vision.projection(features)


def _heads(rows: Tensor, batch: int, heads: int) -> Tensor:
    """Rows [batch * n, W] -> a view [batch, h, n, d]."""
    return rows.view(batch, -1, heads, rows.shape[1] // heads).transpose(1, 2)
