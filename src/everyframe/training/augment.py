"""RandAugment for videos: a few random changes of colour and shape, the same for all frames of a video.

Sources: Cubuk et al., "RandAugment" (CVPR 2020 workshops); the settings are those of TempMe's code (its paper does not
mention them): 4 of 15 changes, drawn with replacement, each applied with probability 1/2 at a strength of N(7, 0.5) of
10. There frames are changed at full size; here as the model sees them, resized and cropped, which costs less and lets
decoded frames be kept. F frames, H, W pixels; all tensors uint8 [F, 3, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_DRAWN, _PROBABILITY, _STRENGTH, _SPREAD = 4, 0.5, 7.0, 0.5
_FILL = 128.0
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow has it


def augment(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Frames of one video, changed as `rng` decides. uint8 [F, 3, H, W] -> the same."""
    for name in rng.choice(sorted(CHANGES), size=_DRAWN):
        applied = rng.random() < _PROBABILITY
        strength = float(np.clip(rng.normal(_STRENGTH, _SPREAD), 0, 10)) / 10
        sign = 1 if rng.random() < 0.5 else -1
        if applied:
            frames = CHANGES[name](frames, strength, sign)
    return frames


def autocontrast(frames: Tensor) -> Tensor:
    """Stretch each channel of each frame to 0..255."""
    low = frames.amin((2, 3), keepdim=True).float()
    high = frames.amax((2, 3), keepdim=True).float()
    stretched = (frames.float() - low) * (255 / (high - low).clamp(min=1))
    return torch.where(high > low, stretched, frames.float()).clamp(0, 255).to(torch.uint8)


def equalize(frames: Tensor) -> Tensor:
    """Spread each channel's values so that all are about as frequent."""
    planes = frames.flatten(2).flatten(0, 1).long()  # [F * 3, H * W]
    counts = torch.zeros(len(planes), 256, dtype=torch.long, device=frames.device)
    counts.scatter_add_(1, planes, torch.ones_like(planes))
    highest = 255 - (counts.flip(1) > 0).int().argmax(1)
    step = (planes.shape[1] - counts.gather(1, highest[:, None])[:, 0]) // 255
    before = counts.cumsum(1) - counts
    table = ((before + (step // 2)[:, None]) // step.clamp(min=1)[:, None]).clamp(max=255)
    table = torch.where((step > 0)[:, None], table, torch.arange(256, device=frames.device))
    return table.gather(1, planes).view(frames.shape).to(torch.uint8)


def posterize(frames: Tensor, bits: int) -> Tensor:
    """Keep the highest bits of every value."""
    return frames & (0xFF & ~(2 ** (8 - bits) - 1))


def solarize(frames: Tensor, threshold: int) -> Tensor:
    """Invert what is at least that bright."""
    return torch.where(frames.int() >= threshold, 255 - frames, frames)


def solarize_add(frames: Tensor, amount: int) -> Tensor:
    """Brighten the darker half of the values."""
    return torch.where(frames < 128, (frames.int() + amount).clamp(max=255).to(torch.uint8), frames)


def colour(frames: Tensor, factor: float) -> Tensor:
    """Saturation: 0 is grey, 1 changes nothing."""
    return _blend(_grey(frames).expand_as(frames), frames, factor)


def contrast(frames: Tensor, factor: float) -> Tensor:
    """Distance from the mean brightness of each frame."""
    return _blend((_grey(frames).mean((2, 3), keepdim=True) + 0.5).floor().expand(frames.shape), frames, factor)


def brightness(frames: Tensor, factor: float) -> Tensor:
    """Distance from black."""
    return _blend(torch.zeros_like(frames, dtype=torch.float32), frames, factor)


def sharpness(frames: Tensor, factor: float) -> Tensor:
    """Distance from the smoothed frame; its border stays as it is."""
    kernel = torch.ones(3, 3, device=frames.device)
    kernel[1, 1] = 5
    kernel = (kernel / 13).expand(3, 1, 3, 3)
    smooth = frames.float()
    if min(frames.shape[2:]) > 2:
        smooth = smooth.clone()
        smooth[..., 1:-1, 1:-1] = F.conv2d(frames.float(), kernel, groups=3).round().clamp(0, 255)
    return _blend(smooth, frames, factor)


def affine(frames: Tensor, matrix: tuple[float, float, float, float, float, float]) -> Tensor:
    """Each pixel (x, y) of the result from (a x + b y + c, d x + e y + f), bicubic; what is outside is grey."""
    height, width = frames.shape[2:]
    a, b, c, d, e, f = matrix
    y, x = torch.meshgrid(
        torch.arange(height, device=frames.device) + 0.5, torch.arange(width, device=frames.device) + 0.5, indexing="ij"
    )
    places = torch.stack(((a * x + b * y + c) / width, (d * x + e * y + f) / height), dim=-1)
    grid = (2 * places - 1).expand(len(frames), -1, -1, -1)
    inside = ((places >= 0) & (places < 1)).all(dim=-1)
    moved = F.grid_sample(frames.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)
    return torch.where(inside, moved.round().clamp(0, 255), _FILL).to(torch.uint8)


def rotate(frames: Tensor, degrees: float) -> Tensor:
    """About the centre, anticlockwise."""
    height, width = frames.shape[2:]
    cos, sin = math.cos(math.radians(-degrees)), math.sin(math.radians(-degrees))
    cx, cy = width / 2, height / 2
    return affine(frames, (cos, sin, cx - cos * cx - sin * cy, -sin, cos, cy + sin * cx - cos * cy))


def _translate(frames: Tensor, across: float, down: float) -> Tensor:
    """By shares of the width and of the height."""
    return affine(frames, (1, 0, across * frames.shape[3], 0, 1, down * frames.shape[2]))


def _grey(frames: Tensor) -> Tensor:
    """float32 [F, 1, H, W], whole numbers."""
    weights = torch.tensor(_GREY, device=frames.device).view(1, 3, 1, 1)
    return (frames.float() * weights).sum(1, keepdim=True).add(0.5).floor()


def _blend(plain: Tensor, frames: Tensor, factor: float) -> Tensor:
    return (plain + factor * (frames.float() - plain)).clamp(0, 255).to(torch.uint8)


Change = Callable[[Tensor, float, int], Tensor]
CHANGES: dict[str, Change] = {
    "autocontrast": lambda frames, strength, sign: autocontrast(frames),
    "equalize": lambda frames, strength, sign: equalize(frames),
    "invert": lambda frames, strength, sign: 255 - frames,
    "rotate": lambda frames, strength, sign: rotate(frames, 30 * strength * sign),
    "posterize": lambda frames, strength, sign: posterize(frames, 4 - int(4 * strength)),
    "solarize": lambda frames, strength, sign: solarize(frames, 256 - int(256 * strength)),
    "solarize_add": lambda frames, strength, sign: solarize_add(frames, int(110 * strength)),
    "colour": lambda frames, strength, sign: colour(frames, 1 + 0.9 * strength * sign),
    "contrast": lambda frames, strength, sign: contrast(frames, 1 + 0.9 * strength * sign),
    "brightness": lambda frames, strength, sign: brightness(frames, 1 + 0.9 * strength * sign),
    "sharpness": lambda frames, strength, sign: sharpness(frames, 1 + 0.9 * strength * sign),
    "shear_x": lambda frames, strength, sign: affine(frames, (1, 0.3 * strength * sign, 0, 0, 1, 0)),
    "shear_y": lambda frames, strength, sign: affine(frames, (1, 0, 0, 0.3 * strength * sign, 1, 0)),
    "translate_x": lambda frames, strength, sign: _translate(frames, 0.45 * strength * sign, 0),
    "translate_y": lambda frames, strength, sign: _translate(frames, 0, 0.45 * strength * sign),
}
"""The 15 changes by (frames, strength in 0..1, direction +1 or -1)."""
