"""Texts longer than the model takes: said once, not for every batch of every video."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_CUT = re.compile(r"(?:were cut to|was cut to the model's) (\d+)")


class CutTexts:
    """Collects what the text side says about cut texts; one sentence per limit is left."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within this block such warnings are collected; all others pass."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for entry in caught:
            cut = _CUT.search(str(entry.message))
            if cut is None:
                warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
            else:
                self._first.setdefault(cut[1], str(entry.message))

    def say(self) -> None:
        """One UserWarning for each limit that some text exceeded."""
        for message in self._first.values():
            warnings.warn(f"texts are longer than the model is told to take: {message}", stacklevel=3)
