"""What binary files of our own share: a position that moves as in any file."""

from __future__ import annotations

import io


class Seekable(io.RawIOBase):
    """Read-only, of a known size. name: what messages call it. Subclasses read at `_position` and move it."""

    def __init__(self, name: str, size: int = 0) -> None:
        super().__init__()
        self.name, self.size = name, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self.name}: cannot seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position
