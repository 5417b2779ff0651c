"""The papers' columns of GFLOPs, computed from the encoders here and set beside what was printed."""

from __future__ import annotations

from everyframe.paper_costs.figure import PaperCost
from everyframe.paper_costs.tempme import tempme_costs
from everyframe.paper_costs.vid_tldr import vid_tldr_costs

PAPERS = ("vid-tldr", "tempme")

__all__ = ["PAPERS", "PaperCost", "paper_costs"]


def paper_costs(paper: str) -> list[PaperCost]:
    """Every figure of GFLOPs in a paper's tables that our methods are about, in the paper's order.

    Raises ValueError for a paper that is not in PAPERS.
    """
    if paper not in PAPERS:
        raise ValueError(f"paper must be one of {', '.join(PAPERS)}, got {paper!r}")
    return vid_tldr_costs() if paper == "vid-tldr" else tempme_costs()
