"""Which library, and which collection of it, a command means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from everyframe.library import Collection

LibraryOption = Annotated[str, typer.Option("--library", help="Folder of the library, or its address (s3://, gs://).")]


def choose_collection(held: Sequence[Collection], wanted: str | None) -> Collection:
    """By label or the beginning of the id; the only one for None. Raises ValueError, naming those there are."""
    if wanted is None and len(held) == 1:
        return held[0]
    if wanted is None:
        raise ValueError(f"the library holds several collections; choose one with --collection: {named(held)}")
    fitting = [each for each in held if each.label == wanted] or [each for each in held if each.id.startswith(wanted)]
    if len(fitting) != 1:
        what = "several collections" if fitting else "no collection"
        raise ValueError(
            f"--collection {wanted} means {what} of this library, which holds: {named(held) or 'nothing yet'}"
        )
    return fitting[0]


def named(held: Sequence[Collection]) -> str:
    """Labels and ids, for messages."""
    return "; ".join(f"{each.label} ({each.id})" for each in held)
