"""Clips joined into longer ones, and how many tokens TempMe's schedule leaves in each block.

A *clip* is a sequence of tokens of one or more successive frames; before the first block every frame is one. S clips, n
tokens of each, g clips that become one, c tokens at the front of a clip that never merge (CLS and registers of each of
its frames).

Source: Shen et al., "TempMe: Video Temporal Token Merging for Efficient Text-Video Retrieval" (ICLR 2025), section 3.2,
with the rounding and the layout of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from everyframe.tokens.merge import Tokens


@dataclass(frozen=True)
class LayerCounts:
    """Tokens of one video around one block.

    clips_before x before: what comes in; clips x gathered: the same, side by side in longer clips; clips x attended:
    after merging across clips, what attention sees; clips x after: after merging within a clip, what the MLP sees.
    protected: tokens of a clip that never merge.
    """

    clips_before: int
    before: int
    clips: int
    gathered: int
    attended: int
    after: int
    protected: int


@dataclass(frozen=True, kw_only=True)
class ClipSchedule:
    """What merges in which block; blocks are counted from 0.

    r: tokens that merge within a frame, in every block before the first of `clips`.
    clips: {block: how many clips it joins}, ascending.
    remove_cross, remove_intra: percent of a clip's tokens, whole numbers, that merge when clips are joined, and in
        every block from the first of `clips` on.
    temporal: False joins nothing: those blocks merge as many percent within each frame (Table 9, Token Reduction).

    Raises TypeError or ValueError for what makes no sense; `check_depth` for blocks that a model does not have.
    """

    r: int
    clips: Mapping[int, int]
    remove_cross: int
    remove_intra: int
    temporal: bool = True

    def __post_init__(self) -> None:
        _check_whole("r", self.r)
        if self.r < 0:
            raise ValueError(f"r must be at least 0, got {self.r}; 0 merges nothing within frames")
        for name in ("remove_cross", "remove_intra"):
            percent = getattr(self, name)
            _check_whole(name, percent, "percent")
            if not 0 <= percent < 100:
                raise ValueError(f"{name} must be a percentage from 0 to 99, got {percent}; 0 removes nothing")
        if not isinstance(self.clips, Mapping):
            raise TypeError(f"clips must be a dict such as {{8: 2, 9: 2, 10: 3}}, got {self.clips!r}")
        for block, count in self.clips.items():
            _check_whole("a block in clips", block)
            _check_whole(f"clips[{block}]", count)
            if count < 2:
                raise ValueError(f"clips[{block}] must be at least 2, the clips that become one, got {count}")
        if list(self.clips) != sorted(self.clips):
            raise ValueError(f"clips must name its blocks in ascending order, got {list(self.clips)}")

    def check_depth(self, depth: int, model: str) -> None:
        """Raise ValueError unless all blocks of `clips` are among the `depth` of the model."""
        for block in self.clips:
            if not 0 <= block < depth:
                raise ValueError(
                    f"clips names block {block}, but {model} has {depth}, counted from 0 to {depth - 1}; pass a "
                    "schedule for them"
                )

    @property
    def first(self) -> float:
        """The first block that merges clips; infinite where none does."""
        return min(self.clips, default=math.inf)

    @property
    def span(self) -> int:
        """Frames of a final clip: a video's must be a multiple of it."""
        return math.prod(self.clips.values()) if self.temporal else 1

    def group(self, block: int) -> int:
        """How many clips become one in a block."""
        return self.clips.get(block, 1) if self.temporal else 1

    def frames_before(self, block: int) -> int:
        """Frames of a clip as it comes to a block."""
        return math.prod(self.group(earlier) for earlier in self.clips if earlier < block)

    def across(self, block: int, gathered: int, protected: int) -> int:
        """Tokens that merge before a block's attention, of a clip of `gathered` tokens."""
        return _share(gathered, self.remove_cross, protected) if block in self.clips else 0

    def within(self, block: int, attended: int, protected: int) -> int:
        """Tokens that merge between a block's attention and its MLP, of a clip of `attended` tokens."""
        if block < self.first:
            return max(0, min(self.r, (attended - protected) // 2))
        return _share(attended, self.remove_intra, protected)

    def counts(self, num_tokens: int, frames: int, depth: int, protected: int) -> list[LayerCounts]:
        """Tokens of a video of `frames` frames, of `num_tokens` each, `protected` of which never merge; per block."""
        found = []
        clips, count = frames, num_tokens
        for block in range(depth):
            clips_before, before, group = clips, count, self.group(block)
            clips, gathered, protected = clips // group, count * group, protected * group
            attended = gathered - self.across(block, gathered, protected)
            count = attended - self.within(block, attended, protected)
            found.append(LayerCounts(clips_before, before, clips, gathered, attended, count, protected))
        return found

    def halved(self, num_tokens: int, depth: int, protected: int) -> list[int]:
        """The blocks in which more than half of the tokens are asked for, so that half merge."""
        blocks = []
        for block, step in enumerate(self.counts(num_tokens, self.span, depth, protected)):
            asked = self.r if block < self.first else step.attended * self.remove_intra // 100
            across = step.gathered * self.remove_cross // 100 if block in self.clips else 0
            if asked > step.attended - step.after or across > step.gathered - step.attended:
                blocks.append(block)
        return blocks


def join_clips(state: Tokens, group: int, protected: int) -> Tokens:
    """[S, n, W] -> [S / g, g n, W]: the protected tokens of all g clips in order, then the others of all in order.

    S counts the clips of a video one after the other, and the videos. Sources follow: [S, M] -> [S / g, g M].
    """
    if group == 1:
        return state
    masses = None if state.masses is None else side_by_side(state.masses, group, protected)
    sources = state.sources
    if sources is not None:
        num_tokens = state.tokens.shape[1]
        old = torch.arange(group * num_tokens, device=sources.device).view(group, num_tokens)
        where = torch.empty_like(old)
        where.view(-1)[side_by_side(old, group, protected)[0]] = torch.arange(old.numel(), device=old.device)
        clip = torch.arange(group, device=sources.device)[:, None]
        sources = where[clip, sources.unflatten(0, (-1, group))].flatten(1, 2)
    return Tokens(side_by_side(state.tokens, group, protected), masses, sources)


def side_by_side(values: Tensor, group: int, protected: int) -> Tensor:
    """[S, n, ...] -> [S / g, g n, ...] in the order of `join_clips`."""
    values = values.unflatten(0, (-1, group))
    return torch.cat((values[:, :, :protected].flatten(1, 2), values[:, :, protected:].flatten(1, 2)), dim=1)


def _share(num_tokens: int, percent: int, protected: int) -> int:
    """Whole percents, so that no rounding error of a binary fraction decides whether a token stays."""
    return max(0, min(num_tokens * percent // 100, (num_tokens - protected) // 2))


def _check_whole(name: str, value: object, unit: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        rule = f"a whole number{f' of {unit}' if unit else ''}"
        more = "; 30 removes 30 percent" if unit else ""
        raise TypeError(f"{name} must be {rule}, got {value!r}{more}")
