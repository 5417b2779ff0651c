"""What became of each patch, as arrays and as pictures: plain arithmetic, no letters.

F frames; Q steps in time that have tokens, F or, where a token covers several frames, fewer; g x g patches of a frame;
c pixels along the side of a patch as drawn, so that a frame is g c pixels wide.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from everyframe.encoders import Plan

_SIDE = 196  # pixels along the side of a frame as drawn, about
_PAPER = 255
_DARK, _LIGHT = (16, 18, 22), (118, 122, 130)  # between tokens, on light and on dark patches
_DIM = 64  # mean level below which a patch is dark
_FADED = 0.25  # brightness that is left of what was not computed
_EDGE = (255, 200, 40)  # of what was computed
_LINE = 2  # pixels of the line around a token that several frames share
_OUTLINES = (  # unlike each other, also where red and green look alike (after Okabe and Ito)
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (255, 255, 255),
)
OUTLINED = len(_OUTLINES)
_TINT = 0.72  # share of the heat colour; the rest is the frame in grey
_VIRIDIS = (  # 17 of its points, evenly spaced; lightness rises all the way
    "440154",
    "48186a",
    "472d7b",
    "424086",
    "3b528b",
    "33638d",
    "2c728e",
    "26828e",
    "21918c",
    "1fa088",
    "28ae80",
    "3fbc73",
    "5ec962",
    "84d44b",
    "addc30",
    "d8e219",
    "fde725",
)


def patch_owners(sources: Tensor, left: int, *, grid: int, prefix: int) -> np.ndarray:
    """The token that every patch ended in: int64 [Q, g, g], numbered through all sequences; -1 where it was dropped.

    sources: int64 [V, N] of `Tokens`, V sequences that have `left` tokens each in the end; `prefix` tokens stand
    before the patches of each step in time and are left out.
    """
    rows = sources.cpu().numpy()
    numbered = np.where(rows < 0, -1, rows + left * np.arange(len(rows))[:, None])
    return numbered.reshape(-1, prefix + grid * grid)[:, prefix:].reshape(-1, grid, grid)


def patch_means(frames: np.ndarray, grid: int, patch_size: int, tubelet: int = 1) -> np.ndarray:
    """Mean colours: uint8 [F, S, S, 3] -> float64 [F / tubelet, g, g, 3]."""
    side = grid * patch_size
    cells = frames[:, :side, :side].reshape(-1, tubelet, grid, patch_size, grid, patch_size, 3)
    return cells.mean(axis=(1, 3, 5))


def token_colours(means: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Every patch in the mean colour of all patches of its token: [Q, g, g, 3]; dropped ones in the paper's white."""
    flat, count = owners.ravel(), int(owners.max(initial=-1)) + 1
    kept = flat >= 0
    sums = np.zeros((count, 3))
    np.add.at(sums, flat[kept], means.reshape(-1, 3)[kept])
    sizes = np.bincount(flat[kept], minlength=count)
    colours = np.full((len(flat), 3), float(_PAPER))
    colours[kept] = sums[flat[kept]] / sizes[flat[kept], None]
    return colours.reshape(means.shape)


def patches_per_token(owners: np.ndarray) -> np.ndarray:
    """How many patches are in the token that each patch ended in: int64 like `owners`; 0 where it was dropped."""
    kept = owners >= 0
    sizes = np.bincount(owners[kept], minlength=1)
    return np.where(kept, sizes[owners.clip(0)], 0)


def frames_per_token(owners: np.ndarray) -> np.ndarray:
    """Over how many steps in time the token of each patch spreads: int64 like `owners`; 0 where it was dropped."""
    steps = np.broadcast_to(np.arange(len(owners))[:, None, None], owners.shape)
    kept = owners >= 0
    tokens = np.unique(np.stack((owners[kept], steps[kept])), axis=1)[0]
    return np.where(kept, np.bincount(tokens, minlength=1)[owners.clip(0)], 0)


def mass_per_patch(owners: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """A token's mass divided by its number of patches, at each of them: float64 like `owners`; 0 where dropped.

    masses: [all tokens]. 1 is a patch that counts in full, as every one does in ToMe.
    """
    sizes = patches_per_token(owners)
    return np.where(owners >= 0, masses.astype(float)[owners.clip(0)] / sizes.clip(1), 0.0)


def computed_patches(plan: Plan, grid: int) -> np.ndarray:
    """Which patches of each frame a plan computes: bool [F, g, g]. All of an I-frame, none of a copy."""
    masks = np.zeros((len(plan.roles), grid * grid), bool)
    for frame, role in enumerate(plan.roles):
        masks[frame, slice(None) if role == "I" else plan.kept(frame).cpu().numpy()] = True
    return masks.reshape(-1, grid, grid)


def cell_size(grid: int) -> int:
    """c: pixels along the side of a patch as drawn."""
    return max(3, round(_SIDE / grid))


def enlarged(frames: np.ndarray, grid: int, patch_size: int) -> np.ndarray:
    """Frames uint8 [F, S, S, 3] as drawn: [F, g c, g c, 3], without what lies past the last whole patch."""
    inside, side = grid * patch_size, grid * cell_size(grid)
    pixels = torch.from_numpy(frames[:, :inside, :inside].copy()).permute(0, 3, 1, 2)
    if side != inside:
        pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return pixels.permute(0, 2, 3, 1).numpy()


def spread(values: np.ndarray) -> np.ndarray:
    """A value per patch as a value per pixel: [Q, g, g, ...] -> [Q, g c, g c, ...]."""
    size = cell_size(values.shape[1])
    return values.repeat(size, axis=1).repeat(size, axis=2)


def draw_merged(colours: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Patches in their token's colour, with a line of one pixel between patches of different tokens.

    The line is the first row or column of the patch below or to the right; it is lighter on dark patches.
    """
    picture, inside = spread(colours).round().astype(np.uint8), spread(owners)
    line = np.zeros(inside.shape, bool)
    line[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    line[:, :, 1:] |= inside[:, :, 1:] != inside[:, :, :-1]
    dark = picture.mean(axis=3) < _DIM
    picture[line & ~dark] = _DARK
    picture[line & dark] = _LIGHT
    return picture


def draw_joined(colours: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """As `draw_merged`, and around the largest tokens that several frames share a line, each in a colour of its own.

    The same colour in all frames; at most `OUTLINED`, as the eye does not follow more.
    """
    picture, inside = draw_merged(colours, owners), spread(owners)
    tokens, sizes = np.unique(owners[frames_per_token(owners) > 1], return_counts=True)
    reach = range(-_LINE, _LINE + 1)
    padded = np.pad(inside, ((0, 0), (_LINE, _LINE), (_LINE, _LINE)), constant_values=-2)
    height, width = inside.shape[1:]
    edge = np.zeros(inside.shape, bool)
    for down, right in product(reach, reach):
        top, left = _LINE + down, _LINE + right
        edge |= padded[:, top : top + height, left : left + width] != inside
    for token, colour in zip(tokens[np.argsort(-sizes, kind="stable")], _OUTLINES, strict=False):
        picture[edge & (inside == token)] = colour
    return picture


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours of rising lightness, float64 [..., 3]: viridis."""
    points = np.array([[int(colour[at : at + 2], 16) for at in (0, 2, 4)] for colour in _VIRIDIS])
    places = np.linspace(0, 1, len(points))
    return np.stack([np.interp(values, places, points[:, channel]) for channel in range(3)], axis=-1)


def draw_heat(frames: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] per patch, [F, g, g], as colours over the frames (as drawn) in grey."""
    return tint(spread(values), frames.mean(axis=3, keepdims=True))


def tint(values: np.ndarray, grey: np.ndarray | float) -> np.ndarray:
    """Values in [0, 1] as colours over grey levels: uint8 [..., 3]."""
    return (_TINT * heat_colours(values) + (1 - _TINT) * grey).round().astype(np.uint8)


def draw_computed(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames (as drawn) with the patches dark that are not in `masks` bool [F, g, g], and a line around the others."""
    inside = spread(masks)
    picture = (frames * np.where(inside, 1.0, _FADED)[..., None]).round().astype(np.uint8)
    core = inside.copy()  # without the pixels that have a dark one beside them
    core[:, 1:] &= inside[:, :-1]
    core[:, :-1] &= inside[:, 1:]
    core[:, :, 1:] &= inside[:, :, :-1]
    core[:, :, :-1] &= inside[:, :, 1:]
    picture[inside & ~core] = _EDGE
    return picture
