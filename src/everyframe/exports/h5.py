"""One HDF5 file with a dataset per video or text, as MAD's are; it appears when it is whole."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from everyframe.extras import require

_WEIGHTS = "weights_sha256"


class H5File:
    """Written beside its final name, since all of it does not fit into memory; `finish` moves it into place.

    What a file of that name holds stays, but for datasets that are written again. weights: hash of the model that makes
    them, kept as an attribute. Raises ValueError where the file is of another model's.
    """

    def __init__(self, path: Path, weights: str | None = None) -> None:
        h5py = require("h5py", extra="h5")
        self.path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            if path.exists():
                shutil.copyfile(path, self._part)
            self._file = h5py.File(self._part, "a", libver="latest")
            self._own(weights)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise

    def _own(self, weights: str | None) -> None:
        held = self._file.attrs.get(_WEIGHTS)
        if weights is not None and held not in (None, weights):
            self._file.close()
            raise ValueError(f"{self.path} was made with another model; choose another --out")
        if weights is not None:
            self._file.attrs[_WEIGHTS] = weights

    def add(self, name: str, values: NDArray[Any]) -> None:
        """A dataset at the root. Raises OSError (full disk)."""
        if name in self._file:
            del self._file[name]
        self._file.create_dataset(name, data=values)

    def finish(self) -> None:
        """Close the file and give it its name."""
        self._file.close()
        with open(self._part, "rb+") as file:
            os.fsync(file.fileno())  # content before name, as `write_whole` does
        os.replace(self._part, self.path)

    def close(self) -> None:
        """Nothing after `finish`; before it, what was written goes."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def h5_name(model: dict[str, Any], what: str) -> str:
    """MAD's names: CLIP_B32_frames_features_5fps.h5 for a ViT-B/32, the model's own name where it says no size."""
    name = str(model.get("id", "model")).rstrip("/").rpartition("/")[2]
    size = re.search(r"vit-?([a-z])\w*-(?:patch)?-?(\d+)", name.lower())
    tag = f"{size[1].upper()}{size[2]}" if size else re.sub(r"[^A-Za-z0-9.-]", "-", name)
    return f"CLIP_{tag}_{what}.h5"
