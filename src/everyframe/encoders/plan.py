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
    """

    roles: str
    counts: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.roles) or int(self.counts.sum()) != len(self.indices):
            raise ValueError(
                f"a plan needs one count per frame and as many indices as they sum to, got {len(self.counts)} counts "
                f"for {len(self.roles)} frames and {len(self.indices)} indices for {int(self.counts.sum())}"
            )

    def __getitem__(self, frames: slice) -> Plan:
        """The part for frames[first:last]."""
        first, last, _ = frames.indices(len(self.roles))
        patches = slice(self.offsets[first], self.offsets[last])
        return Plan(self.roles[first:last], self.counts[first:last], self.indices[patches])

    def __add__(self, other: Plan) -> Plan:
        """This and then the other."""
        return Plan(
            self.roles + other.roles,
            torch.cat((self.counts, other.counts)),
            torch.cat((self.indices, other.indices)),
        )

    @classmethod
    def of(cls, roles: str, kept: Sequence[Tensor]) -> Plan:
        """From the roles and the patches of every P-frame, in order."""
        counts = torch.zeros(len(roles), dtype=torch.int64)
        counts[[frame for frame, role in enumerate(roles) if role == "P"]] = torch.tensor(
            [len(patches) for patches in kept], dtype=torch.int64
        )
        return cls(roles, counts, torch.cat([torch.empty(0, dtype=torch.int64), *kept]))

    @cached_property
    def offsets(self) -> list[int]:
        """Frame t's patches are indices[offsets[t] : offsets[t + 1]]."""
        return [0, *self.counts.cumsum(0).tolist()]

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


def check_interleave(interleave: int) -> int:
    """Validate the number of P-frames after each I-frame; raises TypeError or ValueError."""
    if isinstance(interleave, bool) or not isinstance(interleave, int):
        raise TypeError(f"interleave must be an int, got {interleave!r}")
    if interleave < 0:
        raise ValueError(f"interleave must be 0 or more P-frames per I-frame, got {interleave}")
    return interleave


def fixed_roles(num_frames: int, interleave: int) -> str:
    """The papers' plan: frame t is an I-frame when t mod (interleave + 1) = 0. "IPPIPP..." """
    if num_frames < 0:
        raise ValueError(f"num_frames must be 0 or more, got {num_frames}")
    group = "I" + "P" * interleave
    return (group * (num_frames // len(group) + 1))[:num_frames]
