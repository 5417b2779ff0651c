"""The rows of a list of videos: text, CSV, TSV, JSON lines, Parquet; a file here or on an object store."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from everyframe.extras import require
from everyframe.video import VideoError
from everyframe.video.find import VIDEO_SUFFIXES
from everyframe.video.remote import is_remote, open_remote

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".jsonl", ".parquet"})
COLUMNS = ("path", "video", "video_path", "file", "filename", "url", "uri")


class Row(NamedTuple):
    """A row as written: its line (Parquet: row) from 1 on, the path ("" where blank), the id; or what is wrong."""

    number: int
    path: str
    video: str | None = None
    problem: str | None = None


def is_list(place: str) -> bool:
    """Does a path or an address end like a list?"""
    return os.path.splitext(place)[1].lower() in LIST_SUFFIXES


def read_rows(place: str, column: str | None, id_column: str | None) -> Iterator[Row]:
    """The rows of a list as they stream from it; blank and broken ones too.

    column, id_column: as for `list_videos`. Raises VideoError where the list cannot be read, ValueError where it has
    no such column; both name it.
    """
    kind = os.path.splitext(place)[1].lower()
    if kind == ".txt" and (column or id_column):
        raise ValueError(f"{place}: a text file has no columns; --column and --id-column are for tables")
    reader = {".txt": _lines, ".jsonl": _json_lines, ".parquet": _parquet}.get(kind, _separated)
    try:
        with _open(place) as file:
            yield from reader(place, file, column, id_column)
    except UnicodeDecodeError as error:
        raise VideoError(f"{place}: is not a list in UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise VideoError(f"{place}: cannot be read as a table ({error})") from error
    except OSError as error:
        raise VideoError(f"{place}: the list cannot be read ({error.strerror or error})") from error


def choose_column(place: str, names: Sequence[str], wanted: str | None) -> str:
    """The column of a table that holds paths. Raises ValueError, which says what columns there are."""
    if wanted is not None:
        exact = [name for name in names if name == wanted]
        found = exact or [name for name in names if _plain(name) == _plain(wanted)]
        if not found:
            raise ValueError(f"{place}: has no column {wanted!r}; it has {_named(names)}")
        return found[0]
    for known in COLUMNS:
        for name in names:
            if _plain(name) == known:
                return name
    if len(names) == 1:
        return names[0]
    raise ValueError(
        f"{place}: which column holds the paths? Call it {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}, "
        f"or name it with --column; it has {_named(names)}"
    )


def _lines(place: str, file: BinaryIO, column: str | None, id_column: str | None) -> Iterator[Row]:
    """As `find_videos` reads them: # starts a comment, and blank lines say nothing."""
    for number, line in enumerate(_text(file), 1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield Row(number, entry)


def _separated(place: str, file: BinaryIO, column: str | None, id_column: str | None) -> Iterator[Row]:
    rows = csv.reader(_text(file, newline=""), delimiter="\t" if place.lower().endswith(".tsv") else ",")
    header = next((row for row in rows if any(cell.strip() for cell in row)), None)
    if header is None:
        return
    if len(header) == 1 and ";" in header[0]:
        raise ValueError(f"{place}: its columns are separated by semicolons; save it with commas")
    at, video_at = 0, None
    if column is None and any(_looks_like_video(cell) for cell in header):
        if len(header) > 1 or id_column:
            raise ValueError(f"{place}: its first line must name the columns, and is {_named(header)}")
        yield Row(rows.line_num, header[0].strip())
    else:
        at = header.index(choose_column(place, header, column))
        video_at = None if id_column is None else header.index(choose_column(place, header, id_column))
    for row in rows:
        if not row:
            continue
        path = row[at].strip() if at < len(row) else ""
        video = row[video_at].strip() if video_at is not None and video_at < len(row) else None
        yield Row(rows.line_num, path, video or None)


def _json_lines(place: str, file: BinaryIO, column: str | None, id_column: str | None) -> Iterator[Row]:
    named = video_named = None
    for number, line in enumerate(_text(file), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            yield Row(number, "", problem=f"is not JSON ({error})")
            continue
        if isinstance(record, str):
            yield Row(number, record.strip())
        elif not isinstance(record, dict):
            yield Row(number, "", problem=f"is neither a path nor a JSON object, but {json.dumps(record)[:40]}")
        else:
            if named is None:
                named = choose_column(place, list(record), column)
                video_named = None if id_column is None else choose_column(place, list(record), id_column)
            video = record.get(video_named) if video_named is not None else None
            yield Row(number, _cell(record.get(named)), _cell(video) or None)


def _parquet(place: str, file: BinaryIO, column: str | None, id_column: str | None) -> Iterator[Row]:
    parquet, arrow = require("pyarrow.parquet", extra="parquet"), require("pyarrow", extra="parquet")
    try:
        with parquet.ParquetFile(file) as table:
            names = list(table.schema_arrow.names)
            chosen = [choose_column(place, names, column)]
            if id_column is not None:
                chosen.append(choose_column(place, names, id_column))
            number = 0
            for batch in table.iter_batches(columns=list(dict.fromkeys(chosen)), batch_size=1 << 16):
                cells = [batch.column(name).to_pylist() for name in chosen]
                for path, video in zip(cells[0], cells[-1] if id_column else [None] * len(cells[0]), strict=True):
                    number += 1
                    yield Row(number, _cell(path), _cell(video) or None)
    except arrow.ArrowException as error:
        raise VideoError(f"{place}: not a readable Parquet file ({error})") from error


def _open(place: str) -> BinaryIO:
    if is_remote(place):
        return io.BufferedReader(open_remote(place), 1 << 18)  # type: ignore[return-value]
    return open(place, "rb")


def _text(file: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)


def _cell(value: Any) -> str:
    """A cell as text; None, NaN (what pandas writes for nothing) and blanks are ""."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():  # an id column with gaps, as pandas writes it
        return str(int(value))
    return value.decode(errors="replace").strip() if isinstance(value, bytes) else str(value)


def _looks_like_video(cell: str) -> bool:
    return "://" in cell or os.path.splitext(cell.strip())[1].lower() in VIDEO_SUFFIXES


def _plain(name: str) -> str:
    return name.strip().lower()


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "none"
