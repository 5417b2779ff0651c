"""Annotation files as they lie on disk: JSON, JSON lines, tables, lists, and pickles of plain values.

Every reader names the file and the line or entry that it cannot use.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from everyframe.video.find import VIDEO_SUFFIXES


class AnnotationError(ValueError):
    """An annotation file that is missing, broken or not of the expected layout; the message names file and place."""


@dataclass(frozen=True)
class Raw:
    """A file's content before its layout is known."""

    path: Path
    kind: Literal["json", "lines", "pickle"]
    value: Any
    """What JSON or the pickle holds; for "lines" a list of (line number from 1, text), blank lines left out."""
    sha256: str = field(repr=False, default="")
    numbers: tuple[int, ...] = field(repr=False, default=())
    """Of JSON lines: the line of each entry, from 1."""

    @property
    def is_list(self) -> bool:
        return self.kind == "json" and isinstance(self.value, list)

    @property
    def is_dict(self) -> bool:
        return self.kind in ("json", "pickle") and isinstance(self.value, dict)

    @property
    def first(self) -> Any:
        """The first entry of a list or the first value of a dict; the first line of a text; {} of an empty one."""
        if not self.value:
            return {}
        if self.is_dict:
            return next(iter(self.value.values()))
        return self.value[0][1] if self.kind == "lines" else self.value[0]

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The objects of a JSON list, each with the words that name its place."""
        for number, entry in enumerate(self.value, 1):
            where = f"{self.path} line {self.numbers[number - 1]}" if self.numbers else f"{self.path} entry {number}"
            if not isinstance(entry, dict):
                raise AnnotationError(f"{where}: must be an object with keys, got {type(entry).__name__}")
            yield where, entry

    def as_lines(self, key: str) -> Raw:
        """The same, but an object that has `key` as a list of it: JSON lines of a single line."""
        if self.is_dict and key in self.value:
            return replace(self, value=[self.value], numbers=(1,))
        return self

    def wrong(self, why: str) -> AnnotationError:
        """The error that names this file."""
        return AnnotationError(f"{self.path}: {why}")


def read_raw(path: str | os.PathLike[str]) -> Raw:
    """Read a file of any kind. Raises AnnotationError where it is missing, empty, not UTF-8, or not sound JSON."""
    where = Path(path)
    try:
        data = where.read_bytes()
    except FileNotFoundError as error:
        raise AnnotationError(f"{where}: no such file; check the path of the annotations") from error
    except OSError as error:
        raise AnnotationError(f"{where}: cannot be read ({error.strerror or error})") from error
    digest = hashlib.sha256(data).hexdigest()
    if data[:1] == b"\x80" or where.suffix.lower() in (".pkl", ".pickle"):
        return Raw(where, "pickle", _plain_pickle(where, data), digest)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{where} line {line}: is not UTF-8 text; convert the file to UTF-8") from error
    if not text.strip():
        raise AnnotationError(f"{where}: the file is empty")
    if text.lstrip()[0] in "[{":
        value = _json(where, text)
        by_line = text.lstrip()[0] == "{" and isinstance(value, list)
        numbers = tuple(number for number, line in enumerate(text.split("\n"), 1) if line.strip()) if by_line else ()
        return Raw(where, "json", value, digest, numbers)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return Raw(where, "lines", lines, digest)


def table(raw: Raw, *, delimiter: str | None = None) -> list[tuple[str, list[str]]]:
    """Rows of a text file, each with the words that name its place; by default split at what line 1 has most."""
    if raw.kind != "lines":
        raise raw.wrong("must be a table with one row per line")
    delimiter = delimiter or delimiter_of(raw.value[0][1])
    rows = []
    for number, line in raw.value:
        try:
            fields = next(csv.reader(io.StringIO(line), delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise AnnotationError(f"{raw.path} line {number}: {error}") from error
        rows.append((f"{raw.path} line {number}", [field.strip() for field in fields]))
    return rows


def delimiter_of(line: str) -> str:
    """Tab, semicolon or comma: the one that occurs most, tab before semicolon before comma."""
    return max("\t;,", key=line.count)


def text_of(entry: dict[str, Any], keys: tuple[str, ...], where: str) -> str:
    """The text under the first of `keys` that is there; numbers are taken as text. Raises AnnotationError."""
    for key in keys:
        if key in entry:
            value = entry[key]
            if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
                return str(value).strip()
            raise AnnotationError(f"{where}: {key} must be a text, got {value!r}")
    raise AnnotationError(f"{where}: has no {' or '.join(keys)}; its keys are {', '.join(entry) or 'none'}")


def _json(where: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # Not splitlines(): a text may hold other separators than a new line, such as U+2028.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) > 1 and lines[0][1].rstrip().endswith("}"):
            return [_json_line(where, number, line) for number, line in lines]
        raise AnnotationError(f"{where} line {error.lineno}: is not sound JSON ({error.msg})") from error


def _json_line(where: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{where} line {number}: is not sound JSON ({error.msg})") from error


class _Plain(pickle.Unpickler):
    """Lists, dicts, tuples, strings and numbers; a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def _plain_pickle(where: Path, data: bytes) -> Any:
    # Python 2 pickles, such as MSVD's captions, hold byte strings.
    for encoding in ("utf-8", "latin-1"):
        try:
            return _Plain(io.BytesIO(data), encoding=encoding).load()
        except UnicodeDecodeError:
            continue
        except Exception as error:  # whatever the unpickler raises on arbitrary bytes means the same
            raise AnnotationError(
                f"{where}: is not a pickle of plain lists, dicts and texts ({error}); convert it to JSON"
            ) from error
    raise AnnotationError(f"{where}: holds text in an unknown encoding; convert it to JSON")


def spellings(video: str) -> tuple[str, str]:
    """A video's id as it is, and as ActivityNet has it elsewhere: with or without "v_", as the names of its files."""
    return video, video[2:] if video.startswith("v_") else f"v_{video}"


def stem(name: str) -> str:
    """A file name without its extension, if that is a video's: LSMDC's names hold points of their own."""
    base, suffix = os.path.splitext(name)
    return base if suffix.lower() in VIDEO_SUFFIXES else name
