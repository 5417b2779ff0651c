"""Which sampled frame is read in full (I) and which from what changed (P)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """What happens to each of T frames of a video, or of a part of it.

    roles: I (read in full), P (refreshes some patches) or C (copies the feature of the frame before).
    counts: int64 [T], patches that each P-frame refreshes; 0 for I and C. indices: int64 [sum of counts], those
    patches in raster numbering, sorted within a frame, one frame after the other.
    lent_counts, lent: the same for the patches whose keys and values are from then on those of the *next* I-frame
        (two-sided plans); none where they are not given.
    """

    roles: str
    counts: Tensor
    indices: Tensor
    lent_counts: Tensor = None  # type: ignore[assignment]
    lent: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.lent_counts is None or self.lent is None:
            object.__setattr__(self, "lent_counts", torch.zeros(len(self.roles), dtype=torch.int64))
            object.__setattr__(self, "lent", torch.empty(0, dtype=torch.int64))
        if len(self.lent_counts) != len(self.roles) or int(self.lent_counts.sum()) != len(self.lent):
            raise ValueError(
                f"a plan needs one lent count per frame and as many lent patches, got {len(self.lent_counts)} counts "
                f"for {len(self.roles)} frames and {len(self.lent)} patches for {int(self.lent_counts.sum())}"
            )
        if any(count and role != "P" for role, count in zip(self.roles, self.lent_counts.tolist(), strict=True)):
            raise ValueError(
                f"only P-frames take patches from the next I-frame, got roles {self.roles!r} with lent counts "
                f"{self.lent_counts.tolist()}"
            )
        if len(self.counts) != len(self.roles) or int(self.counts.sum()) != len(self.indices):
            raise ValueError(
                f"a plan needs one count per frame and as many indices as they sum to, got {len(self.counts)} counts "
                f"for {len(self.roles)} frames and {len(self.indices)} indices for {int(self.counts.sum())}"
            )
        if set(self.roles) - set("IPC") or [role == "P" for role in self.roles] != (self.counts > 0).tolist():
            raise ValueError(
                f"a plan's roles must be I, P or C, of which P alone refreshes patches, got {self.roles!r} with "
                f"counts {self.counts.tolist()}"
            )

    def __getitem__(self, frames: slice) -> Plan:
        """The part for frames[first:last]."""
        first, last, _ = frames.indices(len(self.roles))
        patches = slice(self.offsets[first], self.offsets[last])
        lent = slice(self.lent_offsets[first], self.lent_offsets[last])
        return Plan(
            self.roles[first:last],
            self.counts[first:last],
            self.indices[patches],
            self.lent_counts[first:last],
            self.lent[lent],
        )

    def __add__(self, other: Plan) -> Plan:
        """This and then the other."""
        return Plan(
            self.roles + other.roles,
            torch.cat((self.counts, other.counts)),
            torch.cat((self.indices, other.indices)),
            torch.cat((self.lent_counts, other.lent_counts)),
            torch.cat((self.lent, other.lent)),
        )

    @staticmethod
    def joined(plans: Sequence[Plan]) -> Plan:
        """One plan of many parts, joined in pairs: one after the other would copy the first ones over and over."""
        plans = list(plans) or [Plan.of("", [])]
        while len(plans) > 1:
            pairs = [first + second for first, second in zip(plans[::2], plans[1::2], strict=False)]
            plans = pairs + plans[2 * len(pairs) :]
        return plans[0]

    @classmethod
    def of(cls, roles: str, kept: Sequence[Tensor], lent: Sequence[Tensor] | None = None) -> Plan:
        """From the roles and the patches of every P-frame, in order."""
        for patches in (kept, kept if lent is None else lent):
            if len(patches) != roles.count("P"):
                raise ValueError(
                    f"a plan needs the patches of its {roles.count('P')} P-frames, got {len(patches)} tensors"
                )
        return cls(roles, *_ragged(roles, kept), *(_ragged(roles, lent) if lent is not None else (None, None)))

    @cached_property
    def offsets(self) -> list[int]:
        """Frame t's patches are indices[offsets[t] : offsets[t + 1]]."""
        return [0, *self.counts.cumsum(0).tolist()]

    @cached_property
    def lent_offsets(self) -> list[int]:
        """The same for `lent`."""
        return [0, *self.lent_counts.cumsum(0).tolist()]

    @property
    def is_two_sided(self) -> bool:
        """Does a frame look at the next I-frame?"""
        return len(self.lent) > 0

    @cached_property
    def sources(self) -> list[int]:
        """The frame whose feature each frame gets: itself, or for a copy the last one before that is none."""
        sources: list[int] = []
        for frame, role in enumerate(self.roles):
            sources.append(sources[-1] if role == "C" else frame)
        return sources

    def groups(self) -> list[list[int]]:
        """The frames that are computed: each I-frame with the P-frames up to the next."""
        groups: list[list[int]] = []
        for frame, role in enumerate(self.roles):
            if role == "I":
                groups.append([frame])
            elif role == "P":
                groups[-1].append(frame)
        return groups

    def kept(self, frame: int) -> Tensor:
        """The patches that a frame refreshes: int64 [n]."""
        return self.indices[self.offsets[frame] : self.offsets[frame + 1]]

    def lent_by(self, frame: int) -> Tensor:
        """The patches that a frame takes from the next I-frame: int64 [n]."""
        return self.lent[self.lent_offsets[frame] : self.lent_offsets[frame + 1]]


def _ragged(roles: str, patches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Counts of all frames and indices, from the patches of the P-frames alone."""
    counts = torch.zeros(len(roles), dtype=torch.int64)
    places = [frame for frame, role in enumerate(roles) if role == "P"]
    counts[places] = torch.tensor([len(each) for each in patches], dtype=torch.int64)
    return counts, torch.cat([torch.empty(0, dtype=torch.int64), *patches])


def check_interleave(interleave: int) -> int:
    """Validate the number of P-frames after each I-frame; raises TypeError or ValueError."""
    if isinstance(interleave, bool) or not isinstance(interleave, int):
        raise TypeError(f"interleave must be an int, got {interleave!r}")
    if interleave < 0:
        raise ValueError(f"interleave must be 0 or more P-frames per I-frame, got {interleave}")
    return interleave


def check_fixed(plan: str, what: str) -> None:
    """Raise ValueError where `what` ("its cost") cannot be told without the video."""
    if plan != "fixed":
        raise ValueError(
            f"with plan={plan!r} {what} depends on the video; everyframe plan VIDEO shows it, "
            "and encoder.planner() makes the plan"
        )


def fixed_roles(num_frames: int, interleave: int) -> str:
    """The papers' plan: frame t is an I-frame when t mod (interleave + 1) = 0. "IPPIPP..." """
    if num_frames < 0:
        raise ValueError(f"num_frames must be 0 or more, got {num_frames}")
    group = "I" + "P" * interleave
    return (group * (num_frames // len(group) + 1))[:num_frames]
