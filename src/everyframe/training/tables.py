"""Tables of captions: CSV, TSV, JSON lines and Parquet, one (video, caption, start, end) per row."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from everyframe.extras import require

VIDEO_COLUMNS = ("video", "path", "file", "name", "videoid", "vid")
CAPTION_COLUMNS = ("caption", "text", "sentence", "query", "description")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

Row = tuple[str, str, float, float]
"""Video as written, caption ("" where it is blank), start (0 where none is given) and end (NaN) in seconds."""


def read_table(path: str | Path) -> Iterator[Row]:
    """The rows of a table, as they stream from the file.

    The first of the columns video, path, file, name, videoid, vid names the video, the first of caption, text,
    sentence, query, description what is said of it; `start` and `end` (seconds, may be blank) make it a segment.
    WebVid's own files have their caption in `name`, beside `videoid`: without a caption column that is taken.
    JSON lines may hold Lighthouse's `relevant_windows`, [[start, end], ...], or several captions in a list: one row for
    each.

    Raises ValueError, naming the file, when it is missing, of another kind, damaged or without these columns; and
    the line, for a start or end that is no number or an empty segment.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"{path}: captions must be a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file")
    if not path.is_file():
        raise ValueError(f"{path}: no such file of captions")
    records = {".jsonl": _json_lines, ".parquet": _parquet}.get(suffix, _separated)(path)
    names: tuple[str, str] | None = None
    for number, record in records:
        fields = {str(key).strip().lower(): value for key, value in record.items() if key is not None}
        # The rows of JSON lines may differ from each other; a header holds for all.
        if names is None or suffix == ".jsonl":
            names = _columns(path, fields)
        video = fields.get(names[0])
        caption = fields.get(names[1])
        for text in caption if isinstance(caption, list) else [caption]:
            for start, end in _windows(path, number, fields):
                yield _text(video), _text(text), start, end
    if names is None:
        raise ValueError(f"{path}: holds no rows of captions")


def _columns(path: Path, fields: Iterable[str]) -> tuple[str, str]:
    there = set(fields)
    video = next((name for name in VIDEO_COLUMNS if name in there), None)
    caption = next((name for name in CAPTION_COLUMNS if name in there), None)
    if caption is None and "name" in there:
        other = next((name for name in VIDEO_COLUMNS if name in there and name != "name"), None)
        if other is not None:
            video, caption = other, "name"
    for what, found, wanted in (("video", video, VIDEO_COLUMNS), ("caption", caption, CAPTION_COLUMNS)):
        if found is None:
            raise ValueError(
                f"{path}: no column names the {what}; call it {', '.join(wanted[:-1])} or {wanted[-1]} "
                f"(found: {', '.join(sorted(there)) or 'none'})"
            )
    return video or "", caption or ""


def _windows(path: Path, number: int, fields: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    pairs = fields.get("relevant_windows")
    if pairs is None:
        pairs = [(fields.get("start"), fields.get("end"))]
    try:
        for start, end in pairs:
            low = 0.0 if _blank(start) else float(start)
            high = math.nan if _blank(end) else float(end)
            if not (math.isfinite(low) and low >= 0 and (math.isnan(high) or low < high < math.inf)):
                raise ValueError
            yield low, high
    except (TypeError, ValueError):
        given = fields.get("relevant_windows") or [fields.get("start"), fields.get("end")]
        raise ValueError(
            f"{path}, row {number}: start and end must be seconds with 0 <= start < end, got {given}"
        ) from None


def _blank(value: Any) -> bool:
    """None, "" and NaN in any spelling, which is what pandas writes for nothing."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    """One line of text; None and NaN are blank, but "nan" may be a name."""
    if not isinstance(value, str) and _blank(value):
        return ""
    return " ".join(str(value).split())


def _separated(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            if rows.fieldnames:
                _columns(path, [name.strip().lower() for name in rows.fieldnames])
            yield from enumerate(rows, 1)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table in UTF-8 ({error})") from error


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, row {number}: is not JSON ({error})") from error
                if not isinstance(record, dict):
                    raise ValueError(f"{path}, row {number}: must be a JSON object, got {type(record).__name__}")
                yield number, record
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as text in UTF-8 ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    parquet = require("pyarrow.parquet", extra="parquet")
    known = {*VIDEO_COLUMNS, *CAPTION_COLUMNS, "start", "end", "relevant_windows"}
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _columns(path, [name.strip().lower() for name in names])
            wanted = [name for name in names if name.strip().lower() in known]
            for batch in file.iter_batches(columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (OSError, require("pyarrow", extra="parquet").ArrowException) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from error
