"""From decoded frames to the pixels a model was trained on: resize, centre crop, normalise.

The reference is transformers' own image processor with its PIL backend. Torch's uint8 resize is a port of
Pillow's arithmetic and several times faster; only the part of a frame that the crop keeps is resized.

Legend: T frames, H x W a frame as decoded, S side of the model's input.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from everyframe.backbone.hub import ModelError
from everyframe.backbone.resizing import resize_window

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

_FILTERS = {2: "bilinear", 3: "bicubic"}
_RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """One model's geometry and normalisation. Calling it turns frames into pixels."""

    size: int
    """S, the side of the square that comes out."""
    shorter_side: int | None = None
    """Resize the shorter side to this and keep the aspect ratio (CLIP, DINOv2)."""
    stretch: int | None = None
    """Resize to this square whatever the aspect ratio (SigLIP). Not together with `shorter_side`."""
    crop: bool = True
    """Cut the S x S centre out; what a smaller frame lacks is black."""
    resample: str = "bicubic"
    rescale: float = 1 / 255
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.resample not in _RADIUS:
            raise ValueError(f"resample must be one of {', '.join(_RADIUS)}, got {self.resample!r}")
        if self.shorter_side is not None and self.stretch is not None:
            raise ValueError("shorter_side and stretch exclude each other")
        if len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            raise ValueError(f"mean and std must be three numbers, std without 0; got {self.mean}, {self.std}")
        if min(self.size, self.shorter_side or 1, self.stretch or 1) < 1:
            raise ValueError("sizes must be at least 1 pixel")

    def settings(self) -> dict[str, Any]:
        """The fields as a dict that survives JSON, to be kept with features as provenance."""
        return json.loads(json.dumps(asdict(self)))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a frame after the resize, before the crop; rounded as transformers rounds."""
        if self.stretch is not None:
            return self.stretch, self.stretch
        if self.shorter_side is None:
            return height, width
        longer = int(self.shorter_side * max(height, width) / min(height, width))
        return (longer, self.shorter_side) if width <= height else (self.shorter_side, longer)

    def __call__(self, frames: np.ndarray | Tensor) -> Tensor:
        """Frames uint8 [T, H, W, 3] RGB -> pixels float32 [T, 3, S, S], on the device of the frames (NumPy:
        CPU).

        Raises TypeError for anything but uint8 arrays, ValueError for another shape.
        """
        images = _check_frames(frames).permute(0, 3, 1, 2)
        count, _, height, width = images.shape
        new_height, new_width = self.resized(height, width)
        if not self.crop and (new_height, new_width) != (self.size, self.size):
            raise ValueError(
                f"frames of {height} x {width} come out as {new_height} x {new_width}, but the model takes "
                f"{self.size} x {self.size} and its preprocessor_config.json neither stretches nor crops"
            )
        rows, columns = _Window.centred(new_height, self.size), _Window.centred(new_width, self.size)
        scale, shift = self._affine(images.device)
        pixels = torch.empty((count, 3, self.size, self.size), device=images.device)
        if rows.pads or columns.pads:
            pixels.copy_(shift)
        step = max(1, _CHUNK_BYTES // max(1, height * width * 3))
        for start in range(0, count, step):
            part = _resize(images[start : start + step], (new_height, new_width), rows, columns, self.resample)
            target = pixels[start : start + step, :, rows.inside, columns.inside]
            target.copy_(part).mul_(scale).add_(shift)
        return pixels

    def _affine(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rescaling and normalising as one `byte * scale + shift`, each [3, 1, 1]."""
        scale = [self.rescale / std for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        factors = torch.tensor([scale, shift], device=device).view(2, 3, 1, 1)
        return factors[0], factors[1]

    def pack(self, pixels: Tensor) -> Tensor:
        """The bytes that `__call__` normalised: float [T, 3, S, S] -> uint8, exactly."""
        scale, shift = self._affine(pixels.device)
        return ((pixels.float() - shift) / scale).round_().clamp_(0, 255).to(torch.uint8)

    def unpack(self, packed: Tensor) -> Tensor:
        """What `__call__` returned, from the bytes of `pack`: uint8 [T, 3, S, S] -> float32."""
        scale, shift = self._affine(packed.device)
        return packed.float().mul_(scale).add_(shift)

    def motion(self, maps: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
        """Maps float [T, h, w], each covering a whole frame of `size` (H, W), -> float32 [T, S, S] where
        `__call__` puts the same places. Values are averaged or interpolated (triangle filter) and otherwise
        kept; padding is 0.
        """
        if not isinstance(maps, (np.ndarray, Tensor)):
            raise TypeError(f"motion maps must be a NumPy array or a tensor, got {type(maps).__name__}")
        values = torch.as_tensor(maps)
        if values.dim() != 3 or 0 in values.shape[1:]:
            raise ValueError(f"motion maps must be [T, h, w] with h and w at least 1, got {list(values.shape)}")
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (height, width) of the frame, got {size}")
        values = values.float()
        height, width = self.resized(*size)
        side = self.size
        rows = _triangle(values.shape[1], height, (height - side) // 2, side).to(values.device)
        columns = _triangle(values.shape[2], width, (width - side) // 2, side).to(values.device)
        return rows @ (values @ columns.T)


@dataclass(frozen=True)
class _Window:
    """The part of one axis that a centred crop keeps."""

    start: int
    """First kept pixel of the resized frame."""
    count: int
    """Kept pixels."""
    inside: slice
    """Where they go in the output."""
    pads: bool

    @classmethod
    def centred(cls, length: int, side: int) -> "_Window":
        offset = (length - side) // 2
        if length >= side:
            return cls(offset, side, slice(0, side), False)
        return cls(0, length, slice(-offset, length - offset), True)


def _check_frames(frames: np.ndarray | Tensor) -> Tensor:
    if not isinstance(frames, (np.ndarray, Tensor)):
        raise TypeError(
            f"frames must be one uint8 array [T, H, W, 3], got {type(frames).__name__}; "
            "stack a list of frames with numpy.stack"
        )
    if frames.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"frames must be uint8 with values 0 to 255, got {frames.dtype}")
    if frames.ndim == 3 and frames.shape[-1] == 3:
        raise ValueError(f"frames must be [T, H, W, 3], got one frame {list(frames.shape)}; pass frames[None]")
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape[1:3]:
        raise ValueError(f"frames must be [T, H, W, 3] with H and W at least 1, got {list(frames.shape)}")
    if isinstance(frames, Tensor):
        return frames
    if not frames.flags.writeable or any(stride < 0 for stride in frames.strides):
        frames = frames.copy()  # torch takes neither read-only nor mirrored arrays as they are
    return torch.from_numpy(frames)


def _resize(images: Tensor, size: tuple[int, int], rows: _Window, columns: _Window, mode: str) -> Tensor:
    """Resize uint8 [T, 3, H, W] to `size` and return only the windows' part, in the images' dtype."""
    height, width = images.shape[2:]
    if (height, width) == size:
        return images[:, :, rows.start : rows.start + rows.count, columns.start : columns.start + columns.count]
    if images.device.type != "cpu":
        return resize_window(images, size, (rows.start, rows.count), (columns.start, columns.count), mode)
    top, bottom, skipped_rows = _needed(height, size[0], rows, mode)
    left, right, skipped_columns = _needed(width, size[1], columns, mode)
    images = images[:, :, top:bottom, left:right]
    # half a thousandth of a pixel more, so that rounding down cannot lose the last row or column
    factors = ((size[0] + 5e-4) / height, (size[1] + 5e-4) / width)
    resized = F.interpolate(images, scale_factor=factors, mode=mode, antialias=True)
    y, x = rows.start - skipped_rows, columns.start - skipped_columns
    return resized[:, :, y : y + rows.count, x : x + columns.count]


def _needed(length: int, new_length: int, window: _Window, mode: str) -> tuple[int, int, int]:
    """The source pixels [start, stop) that a window of the resized axis depends on, and the resized pixels
    before it.

    A resize counts from the first pixel it is given, so `start` is one whose place in the resized axis is a
    whole number, to a few thousandths; the whole axis is kept where there is none or little to gain.
    """
    factor = new_length / length
    support = _RADIUS[mode] * max(1.0, 1 / factor) + 2
    latest = math.floor(window.start / factor - support)
    stop = min(length, math.ceil((window.start + window.count) / factor + support))
    if latest < length // 16:
        return 0, length, 0
    candidates = np.arange(max(0, latest - 63), latest + 1)
    places = candidates * factor
    best = int(np.abs(places - np.rint(places)).argmin())
    if abs(places[best] - round(places[best])) > 0.02:
        return 0, length, 0
    return int(candidates[best]), stop, round(float(places[best]))


def _triangle(length: int, new_length: int, start: int, count: int) -> Tensor:
    """Weights [count, length] of a linear, antialiased resize of an axis to `new_length`, rows `start`
    onward.
    """
    places = torch.arange(start, start + count, dtype=torch.float64)
    scale = length / new_length
    centres = (places + 0.5) * scale - 0.5
    distance = (torch.arange(length, dtype=torch.float64) - centres[:, None]).abs() / max(scale, 1.0)
    weights = (1 - distance).clamp_min(0)
    weights /= weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
    weights[(places < 0) | (places >= new_length)] = 0
    return weights.float()


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What the folder's preprocessor_config.json says, or the image part of processor_config.json, or its
    video_preprocessor_config.json; None without.
    """
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{file} is not JSON: {error}") from error
        if name == "processor_config.json" and isinstance(settings, dict):
            settings = settings.get("image_processor")
        if isinstance(settings, dict):
            return settings
    return None


def from_settings(given: dict[str, Any] | None, defaults: dict[str, Any], source: str) -> Preprocess:
    """A `Preprocess` from an image processor's JSON; what it leaves out comes from the family's `defaults`,
    which has the same keys. Raises ModelError for a geometry that cannot be followed.
    """
    settings = {**defaults, **{key: value for key, value in (given or {}).items() if value is not None}}
    resize, crop = bool(settings["do_resize"]), bool(settings["do_center_crop"])
    shorter, stretch = _resize_sizes(settings["size"], source) if resize else (None, None)
    side = _square(settings["crop_size"], "crop_size", source) if crop else (stretch or shorter)
    if side is None:
        side = _square(defaults["crop_size"], "crop_size", source)
    if settings["resample"] not in _FILTERS:
        raise ModelError(f"{source} asks for resample {settings['resample']}; supported are 2 (bilinear), 3 (bicubic)")
    normalise = bool(settings["do_normalize"])
    try:
        return Preprocess(
            size=side,
            shorter_side=shorter,
            stretch=stretch,
            crop=crop,
            resample=_FILTERS[settings["resample"]],
            rescale=float(settings["rescale_factor"]) if settings["do_rescale"] else 1.0,
            mean=tuple(settings["image_mean"]) if normalise else (0.0, 0.0, 0.0),
            std=tuple(settings["image_std"]) if normalise else (1.0, 1.0, 1.0),
        )
    except (ValueError, TypeError) as error:
        raise ModelError(f"the image settings of {source} cannot be used: {error}") from error


def _resize_sizes(size: Any, source: str) -> tuple[int | None, int | None]:
    if isinstance(size, int):
        return size, None
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"]), None
    return None, _square(size, "size", source)


def _square(size: Any, name: str, source: str) -> int:
    if isinstance(size, int):
        return size
    if isinstance(size, dict) and size.keys() >= {"height", "width"} and size["height"] == size["width"]:
        return int(size["height"])
    raise ModelError(f"{source} has {name} {size}; supported are a square, and for size also the shortest edge")
