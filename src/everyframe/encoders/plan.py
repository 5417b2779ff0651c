"""Which sampled frame is read in full (I) and which from what changed (P)."""

from __future__ import annotations


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
