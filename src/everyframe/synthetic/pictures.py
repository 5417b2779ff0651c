"""Textures, shapes and patterns of the synthetic world, as plain arrays."""

from __future__ import annotations

import numpy as np

TEXTURE_SIDE = 384  # side of the periodic background texture
TEXTURE_SPAN = 200.0  # texture pixels across one frame height at zoom 1


def _noise_texture(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """Periodic noise in [-1, 1] whose spectrum falls as frequency^-exponent."""
    spectrum = np.fft.rfft2(rng.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE)))
    fy, fx = np.fft.fftfreq(TEXTURE_SIDE)[:, None], np.fft.rfftfreq(TEXTURE_SIDE)[None]
    frequency = np.sqrt(fx * fx + fy * fy)
    frequency[0, 0] = 1.0
    spectrum /= frequency**exponent
    spectrum[0, 0] = 0.0
    values = np.fft.irfft2(spectrum, s=(TEXTURE_SIDE, TEXTURE_SIDE))
    return np.clip(values / (2.5 * values.std()), -1, 1)


def texture(rng: np.random.Generator, word: str) -> np.ndarray:
    """A periodic background: float32 [TEXTURE_SIDE, TEXTURE_SIDE, 3], muted so that objects stand out."""
    y, x = np.mgrid[0:TEXTURE_SIDE, 0:TEXTURE_SIDE].astype(np.float32)
    if word == "clouds":
        value = _noise_texture(rng, 1.7)
    elif word == "sand":
        value = 0.55 * _noise_texture(rng, 0.2) + 0.45 * _noise_texture(rng, 1.5)
    elif word == "leaves":
        value = np.tanh(6 * _noise_texture(rng, 1.2)) * 0.8
    elif word == "waves":
        bend = 3 * np.sin(2 * np.pi * x / 96) + 4 * _noise_texture(rng, 1.7)
        value = np.sin(2 * np.pi * (y + bend) / 32) * 0.8
    elif word == "tiles":
        value = np.where(((x // 32).astype(int) + (y // 32).astype(int)) % 2, 0.7, -0.7)
        value = value + 0.2 * _noise_texture(rng, 1.0)
    else:  # bricks
        row = (y // 24).astype(int)
        column = ((x + 24 * (row % 2)) // 48).astype(int) % 8
        value = rng.uniform(-0.5, 0.9, (16, 8))[row % 16, column]
        mortar = (y % 24 < 4) | ((x + 24 * (row % 2)) % 48 < 4)
        value = np.where(mortar, -1.0, value)
    base = rng.uniform(95, 160) + rng.uniform(-26, 26, 3)
    contrast = rng.uniform(0.4, 1.2) * 50 * (1 + rng.uniform(-0.25, 0.25, 3))
    return (base + value[..., None] * contrast).astype(np.float32)


def lerp(texture: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Sample a periodic texture at fractional `positions` along `axis`."""
    low = np.floor(positions).astype(int)
    share = (positions - low).astype(np.float32)
    share = share[:, None, None] if axis == 0 else share[None, :, None]
    first = np.take(texture, low % texture.shape[axis], axis=axis)
    second = np.take(texture, (low + 1) % texture.shape[axis], axis=axis)
    second -= first
    second *= share
    first += second
    return first


def distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Approximate signed distance to a shape of radius 1 (negative inside), v pointing down."""
    if shape == "circle":
        return np.hypot(u, v) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72) - 0.23
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82
    if shape == "triangle":
        return np.maximum(v - 0.65, 0.866 * np.abs(u) - 0.5 * v - 0.5)
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 0.95, b - 0.3), np.maximum(a - 0.3, b - 0.95))
    if shape == "moon":
        return np.maximum(np.hypot(u, v) - 0.95, 0.82 - np.hypot(u - 0.5, v + 0.15))
    if shape == "star":
        fold = np.abs(np.mod(np.arctan2(u, -v), 2 * np.pi / 5) - np.pi / 5) / (np.pi / 5)
        return np.hypot(u, v) - 1.0 / (1.0 / 0.4 + fold * (1.0 / 1.05 - 1.0 / 0.4))
    lobes = np.minimum(np.hypot(u - 0.45, v + 0.3), np.hypot(u + 0.45, v + 0.3)) - 0.5  # heart
    tip = np.maximum(0.74 * np.abs(u) + 0.67 * v - 0.5, -v - 0.3)
    return np.minimum(lobes, tip)


def pattern_share(pattern: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Share of the second tone in [0, 1] at each point."""
    if pattern == "striped":
        return np.clip(0.5 + 2.5 * np.sin(2 * np.pi * 1.5 * (u + 0.25 * v)), 0, 1)
    if pattern == "checkered":
        return np.clip(0.5 + 4 * np.sin(2 * np.pi * 0.95 * u) * np.sin(2 * np.pi * 0.95 * v), 0, 1)
    if pattern == "dotted":
        near = np.hypot(np.mod(u * 1.6 + 0.5, 1) - 0.5, np.mod(v * 1.6 + 0.5, 1) - 0.5)
        return np.clip((0.3 - near) * 8, 0, 1)
    return np.zeros(np.broadcast_shapes(u.shape, v.shape))


def paint_shape(
    picture: np.ndarray,
    centre: tuple[float, float],
    radius: float,
    *,
    shape: str,
    pattern: str,
    colour: tuple[int, int, int],
    tilt: float = 0.0,
) -> None:
    """Paint an object in place on a float32 picture [H, W, 3]; centre (x, y) and radius in pixels, tilt in radians.

    The second tone of a pattern is a darker one of the same colour, or a lighter one where the colour is dark. What
    lies outside the picture is left out, and below one pixel nothing is painted.
    """
    if radius < 1:
        return
    (centre_x, centre_y), (height, width) = centre, picture.shape[:2]
    reach = 1.15 * radius
    x0, x1 = max(int(centre_x - reach), 0), min(int(centre_x + reach) + 2, width)
    y0, y1 = max(int(centre_y - reach), 0), min(int(centre_y + reach) + 2, height)
    if x0 >= x1 or y0 >= y1:
        return
    u = ((np.arange(x0, x1) + 0.5 - centre_x) / radius)[None, :]
    v = ((np.arange(y0, y1) + 0.5 - centre_y) / radius)[:, None]
    cos, sin = np.cos(tilt), np.sin(tilt)
    u, v = cos * u + sin * v, cos * v - sin * u
    alpha = np.clip(0.5 - distance(shape, u, v) * radius, 0, 1)[..., None]
    main = np.array(colour, np.float32)
    other = main * 0.42 if main.max() > 60 else main + 95
    share = pattern_share(pattern, u, v)[..., None]
    region = picture[y0:y1, x0:x1]
    region += alpha.astype(np.float32) * (main + share.astype(np.float32) * (other - main) - region)


def paint_oval(
    picture: np.ndarray, centre: tuple[float, float], radii: tuple[float, float], colour: np.ndarray
) -> None:
    """Paint an oval in place on a float picture [H, W, 3]; centre and radii (x, y) in pixels.

    colour: [3], or [H, W, 3] for one that changes over the picture.
    """
    (x, y), (wide, high) = centre, radii
    height, width = picture.shape[:2]
    soft = 0.5 / min(radii)  # share of the radii over which the edge fades out
    x0, x1 = (int(np.clip(x + side * wide * (1 + soft) + side, 0, width)) for side in (-1, 1))
    y0, y1 = (int(np.clip(y + side * high * (1 + soft) + side, 0, height)) for side in (-1, 1))
    u = ((np.arange(x0, x1) + 0.5 - x) / wide)[None, :]
    v = ((np.arange(y0, y1) + 0.5 - y) / high)[:, None]
    alpha = np.clip(0.5 + (1 - np.hypot(u, v)) / (2 * soft), 0, 1)[..., None]
    region = picture[y0:y1, x0:x1]
    region += alpha.astype(np.float32) * (np.broadcast_to(colour, picture.shape)[y0:y1, x0:x1] - region)
