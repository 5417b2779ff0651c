"""What an export folder holds, in a file of its own: a header line, then a line per video, appended as it happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from everyframe.feature_files import write_whole
from everyframe.features import FeaturesError

RECORD = "everyframe-export.jsonl"
_FORMAT = "everyframe-export"
_VERSION = 1


class Record:
    """The record of one folder. A killed run leaves a sound one; a last line that was cut short is passed over."""

    def __init__(self, folder: Path, header: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.header = header
        self.entries = entries
        """By the id annotations use: file, rows, duration_seconds, ..."""

    @classmethod
    def begin(cls, folder: Path, header: dict[str, Any]) -> Record:
        """The record to go on with: that of the same export, or a new one in a new or empty folder.

        Raises ValueError where the folder holds files of others, or an export with other settings or another model.
        """
        header = {"format": _FORMAT, "version": _VERSION, **header}
        if (folder / RECORD).exists():
            record = cls.read(folder)
            for key in (*record.header, *header):
                if record.header.get(key) != header.get(key):
                    raise ValueError(
                        f"{folder} holds an export with {key} {_short(record.header.get(key))}, not "
                        f"{_short(header.get(key))}; choose another --out, or delete it"
                    )
            return record
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds files that everyframe export did not write; choose another --out")
        record = cls(folder, header, {})
        record.write()
        return record

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Raises FeaturesError where the folder holds no record that can be read."""
        path = folder / RECORD
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise FeaturesError(f"{folder} holds no export ({RECORD} cannot be read); export to it first") from error
        values = [value for line in lines if isinstance(value := _parse(line), dict)]
        if not values or values[0].get("format") != _FORMAT or values[0].get("version") != _VERSION:
            raise FeaturesError(f"{path} is not the record of an export that this everyframe reads; export again")
        return cls(folder, values[0], {value["id"]: value for value in values[1:] if "id" in value})

    def add(self, entry: dict[str, Any]) -> None:
        """Append a video whose file is in place; the last line of an id counts."""
        self.entries[entry["id"]] = entry
        with (self.folder / RECORD).open("a", encoding="utf-8") as file:
            # The first line break ends a line that a killed run cut short; blank lines are passed over.
            file.write(f"\n{json.dumps(entry)}\n")

    def write(self) -> None:
        """The whole record anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{json.dumps(value)}\n" for value in (self.header, *self.entries.values()))
        path = self.folder / RECORD
        write_whole([(path, text.encode())], path)


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
