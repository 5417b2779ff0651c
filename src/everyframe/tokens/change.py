"""How much each patch of a frame differs from what it was when its token was last computed.

T frames, P patches in raster order on a g x g grid, p patch side, k cell side in pixels, c = p // k.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CELLS = 4  # along a patch's side, at least: fewer would not see a texture move, more see noise


def cell_pixels(patch_size: int) -> int:
    """Side of the cells whose means are compared: the largest divisor of the patch that leaves 4 cells a side."""
    return next(side for side in range(max(patch_size // _CELLS, 1), 0, -1) if patch_size % side == 0)


def patch_cells(pixels: Tensor, patch_size: int) -> Tensor:
    """Mean colours of the cells of every patch: preprocessed frames [T, 3, S, S] -> float32 [T, P, c * c * 3], CPU.

    Rows and columns past the last whole patch are left out, as they are when patches are cut.
    """
    side = cell_pixels(patch_size)
    grid, cells = pixels.shape[-1] // patch_size, patch_size // side
    inside = pixels[:, :, : grid * patch_size, : grid * patch_size]
    # Rows first: adding whole rows is what memory likes best.
    means = inside.unflatten(2, (-1, side)).float().sum(3).unflatten(3, (-1, side)).sum(4) / side**2
    patches = means.unflatten(3, (grid, cells)).unflatten(2, (grid, cells)).permute(0, 2, 4, 3, 5, 1)
    return patches.flatten(3).flatten(1, 2).cpu()


def patch_change(cells: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of each patch, in squared units of normalised pixels: [P, n], [P, n] -> [P]."""
    return torch.linalg.vector_norm(cells - reference, dim=-1).square_().div_(cells.shape[-1])
