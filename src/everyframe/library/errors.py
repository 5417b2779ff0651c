"""What can go wrong with a library, as one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from everyframe.features import FeaturesError

_KINDS = (
    (
        r"no space left|os error 28\b|disk quota|os error 122\b",
        "the disk is full (what was added before is safe)",
    ),
    (r"file too large|os error 27\b", "a file would be larger than the system allows (ulimit -f, or the disk is full)"),
    (r"permission denied|os error 13\b|read-only file system|os error 30\b", "permission denied"),
    (r"too many open files|os error 24\b", "too many open files; raise the limit with ulimit -n"),
    (
        r"access ?denied|forbidden|\b403\b|invalidaccesskey|signaturedoesnotmatch|credential|unauthenticated",
        "the object store refuses these credentials; check the environment or storage_options",
    ),
    (r"nosuchbucket|bucket .*not exist", "there is no such bucket; check the address"),
    (
        r"retries:|connect error|dns error|timed? ?out|error sending request",
        "the object store does not answer; check the address, the region and the network",
    ),
    (r"resolve region", "there is no such bucket, or no network; check the address"),
    (r"no object store provider", "no such kind of address; use a folder, s3://bucket/path or gs://bucket/path"),
    (r"commit conflict|too many concurrent writers|retryable", "other writers kept changing it; try again"),
)


class LibraryError(ValueError):
    """A library that cannot be opened, read or written, or that does not hold what was asked for."""


class LockedError(LibraryError):
    """Another process or thread has been writing for longer than one was willing to wait."""


class UnusableVideoError(LibraryError):
    """Features of one video that a library cannot take; the library is as it was, and others can be added."""


@contextmanager
def translated(place: str, action: str) -> Iterator[None]:
    """Turn what LanceDB raises inside into a LibraryError: "PLACE cannot be ACTION: reason"."""
    try:
        yield
    except (LibraryError, FeaturesError):
        raise
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise LibraryError(sentence(place, action, error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a panic in Lance becomes; bytes it did not expect
            raise
        raise LibraryError(sentence(place, action, error)) from error


def sentence(place: str, action: str, error: BaseException) -> str:
    """One sentence for an error of LanceDB, whose own texts are paragraphs with places in its sources."""
    text = str(error)
    for pattern, reason in _KINDS:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{place} cannot be {action}: {reason}"
    first = re.split(r"[\r\n]|, /[^ ]*\.rs:|, loc: | at /", text.strip())[0].rstrip(" .")
    if "://" in place:
        return f"{place} cannot be {action}: {first[:300]}"
    if missing := re.search(r"not found: .*/([^/\s]+\.\w+)", first, re.IGNORECASE):
        first = f"{missing[1]} is missing; where an old version was being read, vacuum has removed it"
    return (
        f"{place} cannot be {action}: its files are damaged or incomplete ({first[:300] or type(error).__name__}); "
        "restore them from a copy, or index the videos into a new library"
    )
