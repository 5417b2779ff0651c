"""TempMe's clip positions as files: {block: [clips, W]}, a learned row for each clip that comes to a block.

Named "positions.8" and so on in a .safetensors file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def read_positions(file: str | Path) -> dict[int, Tensor]:
    """Clip positions of a .safetensors file: {block: float32 [clips, W]}.

    The number at the end of a tensor's name is its block ("positions.8", "8"). Raises ValueError for a file that is
    none, or another name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        named = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as clip positions, a .safetensors file: {error}") from error
    found: dict[int, Tensor] = {}
    for name, tensor in named.items():
        number = re.fullmatch(r"(?:.*\D)?(\d+)", name)
        if number is None or int(number[1]) in found:
            raise ValueError(f"{file} holds {name!r}; clip positions are named by their block, such as 'positions.8'")
        found[int(number[1])] = tensor
    return dict(sorted(found.items()))


def named_positions(positions: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Clip positions as their file holds them, in float32."""
    return {f"positions.{block}": rows.detach().float().cpu().contiguous() for block, rows in positions.items()}


def write_positions(file: str | Path, positions: Mapping[int, Tensor]) -> None:
    """Write what `read_positions` reads, in float32."""
    from safetensors.torch import save_file

    save_file(named_positions(positions), str(file), {"format": "pt"})


def hash_positions(positions: Mapping[int, Tensor]) -> str:
    """SHA-256 of the values and their blocks."""
    digest = hashlib.sha256()
    for block, rows in positions.items():
        digest.update(f"{block} {list(rows.shape)} ".encode())
        digest.update(rows.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
