"""What a server is told when it starts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child process may take; it sets these on itself before it opens anything.

    memory_bytes: of its data (heap and other private pages), not of mapped files. cpu_seconds: None for no limit.
    file_bytes: of the largest file it writes.
    """

    memory_bytes: int
    cpu_seconds: int | None
    file_bytes: int
    open_files: int = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the server listens, what it serves, and how much it takes. Checked on construction: ValueError.

    library: a folder, or an address such as s3://bucket/archive. port: 0 lets the system choose.
    token: needed from every client where given; made up where `host` is not this machine alone.
    allow_hosts: further names under which clients may reach the server.
    videos: folders from which POST /api/encode takes paths.
    model, device: that of texts and of videos that are added; None: what the library recorded, or the default.
    collection: the one that is searched where a request names none.
    encoder, fps: how added videos are read; None: as those of the collection.
    max_upload: bytes. jobs_at_once, jobs_waiting: of videos that are being added.
    stall_seconds: a child process that says nothing for so long is ended.
    query_cache, answer_cache: how many vectors of texts, and answers while the library stays as it is, are remembered.
    preview_bytes: how much the folder of converted videos may hold.
    """

    library: str
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    allow_hosts: tuple[str, ...] = ()
    videos: tuple[Path, ...] = ()
    model: str | None = None
    device: str | None = None
    collection: str | None = None
    encoder: str | None = None
    fps: float | None = None
    max_upload: int = 2 * 10**9
    jobs_at_once: int = 1
    jobs_waiting: int = 20
    stall_seconds: float = 120.0
    preview_bytes: int = 5 * 10**9
    search_threads: int = 4
    query_cache: int = 4096
    answer_cache: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must be from 0 to 65535, got {self.port}")
        if self.token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{12,200}", self.token):
            raise ValueError(
                "--token must be 12 to 200 letters, digits, dots, dashes, underscores or tildes; leave it out and one "
                "is made up where it is needed"
            )
        for name in ("max_upload", "jobs_at_once", "stall_seconds", "preview_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(self, name)}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"--fps must be more than 0, got {self.fps}")
        for folder in self.videos:
            if not folder.is_dir():
                raise ValueError(f"--videos {folder}: is not a folder")

    @property
    def is_local(self) -> bool:
        """Is the library a folder of this machine?"""
        return "://" not in self.library

    @property
    def open_to_others(self) -> bool:
        """Can other machines reach the server?"""
        return self.host not in ("127.0.0.1", "localhost", "::1")


def memory_for_jobs() -> int:
    """Bytes that encoding one video may take: three quarters of the machine's memory."""
    return int(0.75 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def parse_size(text: str) -> int:
    """ "2GB", "500 MB", "1000" -> bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)?\s*", text.upper())
    if match is None:
        raise ValueError(f"--max-upload must be a size such as 500MB or 2GB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""])
