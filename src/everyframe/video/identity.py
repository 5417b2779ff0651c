"""Which file is which video, wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from everyframe.video.opening import Source

_END_BYTES = 1 << 18


def identity(source: Source) -> dict[str, Any]:
    """Size and a hash of both ends of a file: enough to notice that it was replaced, cheap on any disk.

    {"size_bytes", "fingerprint"}; of a folder of images its names and sizes count. {} for what is no file here.
    """
    if isinstance(source, bytes):
        return {"size_bytes": len(source), "fingerprint": hashlib.sha256(source).hexdigest()[:32]}
    if not isinstance(source, (str, Path)) or is_address(source):
        return {}
    path = Path(source)
    if path.is_dir():
        names = sorted(f"{file.name}:{file.stat().st_size}" for file in path.iterdir() if file.is_file())
        return {"size_bytes": None, "fingerprint": hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]}
    if not path.is_file():
        return {}
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(size - _END_BYTES, 0))
        digest.update(file.read())
    return {"size_bytes": size, "fingerprint": digest.hexdigest()[:32]}


def is_address(source: object) -> bool:
    """Is it a URL for FFmpeg, not a path?"""
    return isinstance(source, str) and "://" in source
