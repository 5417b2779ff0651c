"""Durations and dates as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_MOST = 100 * 366 * 86400.0  # what clocks and calendars can count
_PART = r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|m|h|d)"


def parse_seconds(text: str, option: str) -> float:
    """Seconds of "90", "90s", "1.5m", "1h30m", "1:30" or "1:05:30.5". Raises ValueError that names the option."""
    seconds = _seconds(text.strip().lower())
    if seconds is None:
        raise ValueError(f"{option} must be a duration such as 90, 90s, 5m, 1h30m or 1:30, got {text.strip()!r}")
    if seconds > _MOST:
        raise ValueError(f"{option} must be a duration of at most 100 years, got {text.strip()!r}")
    return seconds


def _seconds(text: str) -> float | None:
    """None where it is no duration."""
    if re.fullmatch(r"\d+(?:\.\d*)?|\.\d+", text):
        return float(text)
    clock = re.fullmatch(r"(?:(\d+):)?(\d+):(\d{2}(?:\.\d*)?)", text)
    if clock is not None and float(clock[3]) < 60 and (clock[1] is None or float(clock[2]) < 60):
        return float(clock[1] or 0) * 3600 + float(clock[2]) * 60 + float(clock[3])
    if re.fullmatch(rf"(?:{_PART}\s*)+", text):
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
    return None


def parse_date(text: str, option: str) -> datetime:
    """The beginning of "2024", "2024-05", "2024-05-31" or "2024-05-31T18:30"; without a zone the local one is meant.

    Raises ValueError that names the option.
    """
    text = text.strip()
    parts = re.fullmatch(r"(\d{4})(?:-(\d{2}))?", text)
    try:
        if parts is not None:
            date = datetime(int(parts[1]), int(parts[2] or 1), 1)
        else:
            date = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
        return date.astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{option} must be a date such as 2024, 2024-05, 2024-05-31 or 2024-05-31T18:30, got {text!r}"
        ) from error
