"""Which library, and which collection of it, a command means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from everyframe.library import Collection, Library

LibraryOption = Annotated[str, typer.Option("--library", help="Folder of the library, or its address (s3://, gs://).")]


def chosen_collection(library: Library, wanted: str | None) -> Collection:
    """The one that --collection names, or the only one. Raises ValueError, naming those there are."""
    held = library.collections()
    if wanted is None and len(held) > 1:
        raise ValueError(f"the library holds several collections; choose one with --collection: {named(held)}")
    return library.collection(wanted)


def named(held: Sequence[Collection]) -> str:
    """Labels and ids, for messages."""
    return "; ".join(f"{each.label} ({each.id})" for each in held)
