"""What every way of working returns, and the model and the PIL preprocessing that some of them share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FPS = 3.0
SIDE = 224
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


@dataclass
class Result:
    """features float32 [T, D], unit rows; times [T], seconds of the source's frames they show, NaN where the way of
    working loses them; spent, seconds by part.
    """

    features: np.ndarray
    times: np.ndarray
    spent: dict[str, float]


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.spent = {"decode": 0.0, "preprocess": 0.0, "model": 0.0}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - begin


class Clip:
    """transformers' CLIPModel, of which only the image side is used."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from transformers import CLIPModel

        self.dtype = dtype
        self._model = CLIPModel.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> np.ndarray:
        """Pixels [T, 3, 224, 224] -> unit rows, float32 [T, D]."""
        features = self._model.get_image_features(pixel_values=pixels.to(self.dtype))
        features = getattr(features, "pooler_output", features).float()
        return (features / features.norm(dim=1, keepdim=True)).numpy()


def to_pixels(frame: np.ndarray) -> Tensor:
    """uint8 [224, 224, 3] -> normalised float32 [3, 224, 224], what torchvision's ToTensor and Normalize make."""
    return (torch.from_numpy(frame).permute(2, 0, 1).float().div_(255) - MEAN) / STD


def resize_with_pil(frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> [224, 224, 3]: shorter side by Pillow's bicubic filter, centre cut out."""
    from PIL import Image

    image = Image.fromarray(frame)
    scale = SIDE / min(image.size)
    width, height = (max(SIDE, int(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return np.array(image.crop((left, top, left + SIDE, top + SIDE)))
