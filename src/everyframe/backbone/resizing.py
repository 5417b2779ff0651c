"""Pillow's resize as two products of matrices: for frames that lie on a GPU.

On the CPU torch's own uint8 resize is a port of Pillow's arithmetic and faster; elsewhere torch resizes in floating
point, both axes at once, and in between neither rounds nor clips. Pillow, and so transformers' image processor, goes
along the rows first, rounds and clips to bytes, and then along the columns; so does this.

Legend: T frames, H x W a frame as decoded, h x w the part of the resized frame that is wanted.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_CUBIC = -0.5  # of the family of cubic filters, the one that Pillow takes


def resize_window(
    images: Tensor, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], mode: str
) -> Tensor:
    """Resize uint8 [T, 3, H, W] to `size` and return a part: whole numbers 0 to 255 as float32 [T, 3, h, w].

    rows, columns: (first, how many) of the resized frame. mode: "bilinear" or "bicubic", antialiased as in Pillow.
    At most 1 grey level from Pillow's result, where it makes both axes longer or both shorter.
    """
    height, width = images.shape[2:]
    down, top, bottom = _part(height, size[0], rows, mode, images.device)
    across, left, right = _part(width, size[1], columns, mode, images.device)
    needed = images[:, :, top:bottom, left:right].to(torch.float32, memory_format=torch.contiguous_format)
    return _to_bytes(down @ _to_bytes(needed @ across.T))


def _to_bytes(values: Tensor) -> Tensor:
    """Rounded, halves up as Pillow rounds them, and clipped; in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)


@lru_cache(maxsize=64)
def _part(
    length: int, new_length: int, wanted: tuple[int, int], mode: str, device: torch.device
) -> tuple[Tensor, int, int]:
    """The weights of the wanted pixels, and the source pixels [start, stop) that they are for."""
    weights = resize_weights(length, new_length, mode)[wanted[0] : wanted[0] + wanted[1]]
    used = weights.any(0).nonzero().flatten()
    start, stop = int(used[0]), int(used[-1]) + 1
    # A copy that waits: what is kept may be used by another stream than the one it was made on.
    return weights[:, start:stop].contiguous().to(device), start, stop


def resize_weights(length: int, new_length: int, mode: str) -> Tensor:
    """What each resized pixel of an axis takes of each source pixel: float32 [new_length, length], rows sum to 1."""
    scale = length / new_length
    stretch = max(scale, 1.0)  # the filter grows where pixels become fewer
    centres = (torch.arange(new_length, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(length, dtype=torch.float64) + 0.5
    weights = _filter((places - centres[:, None]).abs() / stretch, mode)
    return (weights / weights.sum(1, keepdim=True)).float()


def _filter(distance: Tensor, mode: str) -> Tensor:
    if mode == "bilinear":
        return (1 - distance).clamp_min(0)
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _CUBIC
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
