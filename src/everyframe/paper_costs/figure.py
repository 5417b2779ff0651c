"""One figure of a paper's table beside ours."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "its schedule is not published"
"""How the note of a figure begins that cannot be derived."""


@dataclass(frozen=True, kw_only=True)
class PaperCost:
    """One figure of a paper. gflops: ours, None where the schedule is not known; published: as printed, in GFLOPs.

    reduce: tokens removed in block 0, 1, ...; schedule: what merges, in words, where that is no such list; tokens: what
    is left in the end, clips x tokens, where the table prints it; digits: printed after the point (default: none of
    whole numbers, else one); note: why ours and theirs differ, or what was guessed.
    """

    table: str
    model: str
    task: str
    method: str
    reduce: tuple[int, ...] = ()
    gflops: float | None
    published: float
    note: str = ""
    schedule: str = ""
    tokens: str = ""
    digits: int | None = None

    @property
    def difference(self) -> float | None:
        """Ours against theirs in percent; None where ours is not known."""
        return None if self.gflops is None else 100 * (self.gflops / self.published - 1)

    @property
    def reproduced(self) -> bool:
        """Do the two agree to the printed digits, by a schedule that was published?"""
        digits = int(self.published != round(self.published)) if self.digits is None else self.digits
        known = self.gflops is not None and not self.note.startswith(UNKNOWN)
        return known and round(self.gflops or 0.0, digits) == self.published
