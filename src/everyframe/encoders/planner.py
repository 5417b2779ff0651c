"""Decides frame by frame what is read in full (I), refreshed in part (P) or copied (C), while the video streams.

P patches, n patches a P-frame refreshes. A plan is made from the pixels that the encoder gets and, where they choose
the patches, from motion maps: never from features, so planning runs ahead of the model and costs next to nothing.

fixed      I, then `interleave` P-frames, whatever happens: the papers' plan.
cuts       the same, but a shot that begins (`cuts.py`) begins with an I-frame.
adaptive   - A patch has changed when its content differs from what it was when its token was last computed by more
             than noise does. A P-frame refreshes what changed, the most changed first, at most n patches; where
             nothing did, the frame is a copy.
           - What is left out is a debt: the root mean squared change of the patches that are not refreshed, averaged
             over all patches; and, at 30 %, how far the state has moved from the I-frame in the same unit, because
             a state that is patched together goes stale where nothing moves too. Every frame adds its own. When the
             sum passes `tolerance`, and where a shot begins, the next I-frame clears it. That is the rule for
             renting skis: pay for the I-frame once going without has cost as much. A still scene gets there slowly,
             a pan in a few frames, a cut at once.

A two-sided plan also looks at the I-frame that comes next (the codec's B-frame). A patch that has changed, and is
closer to what it will be there than to what it was, is taken from there; what a P-frame refreshes is then what neither
side has. I-frames lie where they would without. The P-frames of a group are planned when it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everyframe.backbone import VisionTransformer
from everyframe.encoders.cuts import CutDetector
from everyframe.encoders.plan import Plan
from everyframe.tokens.change import patch_cells, patch_change
from everyframe.tokens.drop import (
    center_indices,
    frame_residual,
    patch_sums,
    random_indices,
    top_indices,
    uniform_indices,
)

PLANS = ("fixed", "cuts", "adaptive")
LONGEST_GROUP = 48
"""Frames from one I-frame to the next under "adaptive", at most: bounds the memory of a pass and any drift."""
STALE = 0.3
"""What a patch that was refreshed since the I-frame adds to the debt, as a share of what one left out would."""
NOISE = 0.01
"""Squared change of a patch, in normalised units, that counts as none: about 7 grey levels per cell."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a planner goes by. select and num_kept: how a P-frame's patches are chosen, and how many at most."""

    plan: str
    interleave: int
    select: str
    num_kept: int
    tolerance: float
    seed: int
    two_sided: bool = False

    def __post_init__(self) -> None:
        if self.plan not in PLANS:
            raise ValueError(f"plan must be one of {', '.join(PLANS)}, got {self.plan!r}")
        if self.plan == "adaptive" and self.select != "change":
            raise ValueError(f"an adaptive plan selects by change, got select={self.select!r}")
        if self.two_sided and self.select != "change":
            raise ValueError(f"two_sided compares contents and selects by change, got select={self.select!r}")
        if not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"tolerance must be a finite number >= 0, got {self.tolerance}")

    @property
    def settings(self) -> dict[str, Any]:
        """The part of it that decides anything."""
        if self.plan == "adaptive":
            facts = {"plan": self.plan, "tolerance": self.tolerance}
        else:
            facts = {"plan": self.plan, "interleave": self.interleave, "select": self.select, "seed": self.seed}
        return {**facts, "two_sided": True} if self.two_sided else facts


class Planner:
    """Plans one video; frames go in in order, in calls of any size, with the same result for all of them.

    left_out: float [T], what every frame so far adds to the debt, in the unit of `tolerance`; kept for "change" only.
        Of a two-sided plan it is what one side would leave out: that is what places I-frames.
    """

    def __init__(self, vision: VisionTransformer, policy: Policy, first_frame: int = 0) -> None:
        self._patch_size = vision.config.patch_size
        self._grid, self._patches = vision.grid, vision.num_patches
        self._policy = policy
        self._detector = CutDetector() if policy.plan != "fixed" else None
        self._frame = first_frame
        self._since = -1  # frames since the last I-frame; -1 before the first
        self._debt = 0.0
        self._cells: Tensor | None = None  # what each patch was when last refreshed
        self._full: Tensor | None = None  # what each was in the I-frame
        self._scores = torch.zeros(self._patches)  # what it has moved since then
        self._last: Tensor | None = None  # the frame before, where selection looks at differences
        self._group: list[Tensor] = []  # the cells of a two-sided group's frames, until its next I-frame is there
        self.left_out: list[float] = []

    @torch.no_grad()
    def add(self, pixels: Tensor, motion: Tensor | None = None) -> Plan:
        """The next frames [T, 3, S, S] (and motion maps [T, S, S] or None) -> what is decided now, in order.

        That is their part of the plan; of a two-sided plan everything up to the last I-frame.
        """
        policy = self._policy
        cuts = self._detector.add(pixels) if self._detector is not None else [False] * len(pixels)
        cells = patch_cells(pixels, self._patch_size) if policy.select == "change" else None
        scores = self._motion(pixels, motion)
        decided = _Decided()
        for row in range(len(pixels)):
            own = None if cells is None else cells[row]
            role, chosen = self._step(bool(cuts[row]), own, None if scores is None else scores[row])
            if policy.two_sided and own is not None:
                if role == "I":
                    self._close(decided, own)
                    decided.add("I", chosen)
                self._group.append(own.clone())
            else:
                decided.add(role, chosen)
            self._frame += 1
        return decided.plan()

    @torch.no_grad()
    def finish(self) -> Plan:
        """What is left when the video is over: of a two-sided plan the last P-frames, which have one side only."""
        decided = _Decided()
        self._close(decided, None)
        return decided.plan()

    def _close(self, decided: _Decided, after: Tensor | None) -> None:
        """Plan the frames of a two-sided group, whose next I-frame has the cells `after`."""
        if not self._group:
            return
        adaptive, nothing = self._policy.plan == "adaptive", torch.empty(0, dtype=torch.int64)
        reference, *others = self._group
        for place, cells in enumerate(others):
            change, lent = patch_change(cells, reference), nothing
            if after is not None:
                ahead = patch_change(cells, after)
                take = (change > NOISE) & (ahead < change)
                lent = take.nonzero().flatten()
                reference[lent] = after[lent]
                change = torch.where(take, ahead, change)
            count = self._policy.num_kept
            if adaptive:
                count = min(count, int((change > NOISE).sum()))
                if not count and not len(lent):
                    decided.add("C", nothing)
                    continue
            frame = self._frame - len(others) + place
            chosen = top_indices(change[None], max(count, 1), frames=[frame], seed=self._policy.seed)[0]
            reference[chosen] = cells[chosen]
            decided.add("P", chosen, lent[~torch.isin(lent, chosen)])
        self._group = []

    def _motion(self, pixels: Tensor, motion: Tensor | None) -> Tensor | None:
        """How far each patch moved since the frame before: [T, P], where that is what selection looks at."""
        if self._policy.select not in ("motion", "residual"):
            return None
        maps = motion if self._policy.select == "motion" else None
        if maps is None:
            together = pixels if self._last is None else torch.cat((self._last, pixels))
            maps = frame_residual(together)[len(together) - len(pixels) :]
            self._last = together[-1:].clone()
        return patch_sums(maps, self._patch_size).cpu()

    def _step(self, cut: bool, cells: Tensor | None, moved: Tensor | None) -> tuple[str, Tensor]:
        change = left = None
        count = self._policy.num_kept
        if cells is not None and self._cells is not None:
            change = patch_change(cells, self._cells)
            if self._policy.plan == "adaptive":
                count = min(count, int((change > NOISE).sum()))
            left = self._leftover(change, count) + STALE * self._moved_on()
        if self._is_full(cut, left):
            self._since, self._debt = 0, 0.0
            self._cells = None if cells is None else cells.clone()
            self._full = None if cells is None else cells.clone()
            self._scores.zero_()
            if cells is not None:
                self.left_out.append(0.0)
            return "I", torch.empty(0, dtype=torch.int64)
        self._since += 1
        if left is not None:
            self._debt += left
            self.left_out.append(left)
        if not count:
            return "C", torch.empty(0, dtype=torch.int64)
        chosen = self._choose(count, change, moved)
        if cells is not None and self._cells is not None:
            self._cells[chosen] = cells[chosen]
        return "P", chosen

    def _leftover(self, change: Tensor, count: int) -> float:
        if count >= self._patches:
            return 0.0
        return float(change.topk(self._patches - count, largest=False).values.sqrt().sum()) / self._patches

    def _moved_on(self) -> float:
        """How far the state is from the I-frame, in the unit of the debt."""
        if self._cells is None or self._full is None:
            return 0.0
        return float(patch_change(self._cells, self._full).sqrt().sum()) / self._patches

    def _is_full(self, cut: bool, left: float | None) -> bool:
        if self._since < 0 or cut:
            return True
        if self._policy.plan != "adaptive":
            return self._since >= self._policy.interleave
        return self._since + 1 >= LONGEST_GROUP or self._debt + (left or 0.0) > self._policy.tolerance

    def _choose(self, count: int, change: Tensor | None, moved: Tensor | None) -> Tensor:
        """The `count` patches that a P-frame refreshes: int64, sorted."""
        select, seed = self._policy.select, self._policy.seed
        if count == self._patches or select == "uniform":
            return uniform_indices(self._patches, count)
        if select == "center":
            return center_indices(self._grid, count)
        if select == "random":
            return random_indices(self._patches, count, frames=[self._frame], seed=seed)[0]
        if moved is not None:  # motion adds up until a patch is refreshed
            self._scores += moved
        scores = self._scores if change is None else change
        chosen = top_indices(scores[None], count, frames=[self._frame], seed=seed)[0]
        self._scores[chosen] = 0
        return chosen


class _Decided:
    """Frames whose part in the plan is settled."""

    def __init__(self) -> None:
        self._roles = ""
        self._kept: list[Tensor] = []
        self._lent: list[Tensor] = []

    def add(self, role: str, kept: Tensor, lent: Tensor | None = None) -> None:
        self._roles += role
        if role == "P":
            self._kept.append(kept)
            self._lent.append(kept[:0] if lent is None else lent)

    def plan(self) -> Plan:
        return Plan.of(self._roles, self._kept, self._lent)


def debts(roles: str, left_out: Sequence[float]) -> list[float]:
    """The debt after each frame: the sum of what was left out since the last I-frame."""
    sums: list[float] = []
    for role, left in zip(roles, left_out, strict=True):
        sums.append(0.0 if role == "I" else (sums[-1] if sums else 0.0) + left)
    return sums
