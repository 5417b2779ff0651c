"""Which patches of a frame to keep, before any of them is embedded.

T frames, P patches in raster order on a g x g grid, n kept patches, S image side in pixels.
Source: ResidualViT, section 3.1 (the reduction module R) and its ablation of dropping strategies.
All indices come back sorted, int64, on the CPU or on the device of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SELECTIONS = ("motion", "center", "uniform", "random", "residual")


def num_kept(num_patches: int, drop: float) -> int:
    """Patches kept of `num_patches` when a share `drop` in [0, 1) is dropped: max(1, round(P (1 - p)))."""
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be in [0, 1), got {drop}; to keep every token use 0")
    return max(1, round(num_patches * (1 - drop)))


def uniform_indices(num_patches: int, kept: int) -> Tensor:
    """floor(linspace(0, P - 1, n)), [n]; in integers, so that no rounding shifts a patch."""
    _check_kept(num_patches, kept)
    steps = torch.arange(kept, dtype=torch.int64)
    return steps * (num_patches - 1) // max(kept - 1, 1)


def center_indices(grid: int, kept: int) -> Tensor:
    """The n patches whose centres are closest to the grid's centre, [n] in raster order.

    Of patches at the same distance the first in raster order are kept.
    """
    _check_kept(grid * grid, kept)
    offset = 2 * torch.arange(grid, dtype=torch.int64) - (grid - 1)
    distance = (offset[:, None] ** 2 + offset[None, :] ** 2).flatten()
    return distance.argsort(stable=True)[:kept].sort().values


def random_indices(num_patches: int, kept: int, *, frames: Sequence[int], seed: int) -> Tensor:
    """n patches uniformly at random for each frame, [T, n].

    A frame's choice depends on `seed` and its number in the video alone, not on what it is batched with.
    """
    _check_kept(num_patches, kept)
    orders = _random_orders(num_patches, frames, seed)
    return orders[:, :kept].sort(dim=1).values


def top_indices(scores: Tensor, kept: int, *, frames: Sequence[int], seed: int) -> Tensor:
    """The n patches with the largest scores of each frame, [T, P] -> [T, n].

    Equal scores (still areas) are taken in a random order that depends on `seed` and the frame's number.
    """
    _check_kept(scores.shape[1], kept)
    orders = _random_orders(scores.shape[1], frames, seed).to(scores.device)
    shuffled = scores.gather(1, orders)
    ranks = shuffled.argsort(dim=1, descending=True, stable=True)[:, :kept]
    return orders.gather(1, ranks).sort(dim=1).values


def patch_sums(maps: Tensor, patch_size: int) -> Tensor:
    """Sum a map over the pixels of every patch: [T, S, S] -> float32 [T, P].

    Rows and columns past the last whole patch are left out, as they are when patches are cut.
    """
    if maps.ndim != 3:
        raise ValueError(f"maps must be [T, S, S], got shape {list(maps.shape)}")
    sums = F.avg_pool2d(maps[:, None].float(), patch_size, divisor_override=1)
    return sums.flatten(1)


def frame_residual(pixels: Tensor) -> Tensor:
    """Absolute difference of each frame to the one before it, summed over channels.

    pixels [T, 3, S, S], preprocessed -> float32 [T, S, S]; the first frame's map is zero.
    """
    maps = torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.float32, device=pixels.device)
    if len(pixels) > 1:
        maps[1:] = (pixels[1:].float() - pixels[:-1].float()).abs().sum(1)
    return maps


def _random_orders(num_patches: int, frames: Sequence[int], seed: int) -> Tensor:
    orders = torch.empty(len(frames), num_patches, dtype=torch.int64)
    generator = torch.Generator()
    for row, frame in enumerate(frames):
        # An odd multiplier keeps the streams of neighbouring seeds and frames apart.
        generator.manual_seed((seed * 0x9E3779B1 + frame * 0x85EBCA77) % 2**63)
        orders[row] = torch.randperm(num_patches, generator=generator)
    return orders


def _check_kept(num_patches: int, kept: int) -> None:
    if not 1 <= kept <= num_patches:
        raise ValueError(f"kept must be between 1 and the {num_patches} patches, got {kept}")
