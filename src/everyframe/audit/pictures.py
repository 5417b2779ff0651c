"""Pictures of P-frames: what was kept of them, and the I-frame they lean on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from everyframe.audit.result import WorstFrame
from everyframe.backbone import Model
from everyframe.encoders import Plan
from everyframe.pipeline import Window
from everyframe.video import write_image

_SIDE = 224  # pixels a picture has at least, so that the edges of kept patches can be seen
_PAPER = 236.0  # grey level that dropped patches fade to
_INK = (207, 34, 46)  # edge of what was kept


def draw_worst(model: Model, plan: Plan, window: Window, rows: Sequence[int], cosines: np.ndarray) -> list[WorstFrame]:
    """Pictures of the frames `rows`, none of them an I-frame, of a window that begins with one."""
    vision = model.vision
    drawn = []
    for row in rows:
        i_row = plan.roles.rindex("I", 0, row)
        flat = np.zeros(vision.num_patches, bool)
        flat[plan.kept(row).cpu().numpy()] = True
        mask = flat.reshape(vision.grid, vision.grid)
        frame = visible(window.pixels[row], model)
        drawn.append(
            WorstFrame(
                time=float(window.times[row]),
                i_time=float(window.times[i_row]),
                cosine=float(cosines[row]),
                picture=_jpeg(mark_kept(frame, mask, vision.config.patch_size)),
                i_picture=_jpeg(_enlarged(visible(window.pixels[i_row], model))),
            )
        )
    return drawn


def visible(pixels: Tensor, model: Model) -> np.ndarray:
    """Undo the model's normalisation: float32 [3, S, S] -> uint8 [S, S, 3]."""
    settings = model.preprocess_settings
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    levels = (pixels.cpu() * std + mean) / settings["rescale"]
    return levels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def mark_kept(frame: np.ndarray, mask: np.ndarray, patch_size: int) -> np.ndarray:
    """Fade what was dropped and draw a line around what was kept.

    frame uint8 [S, S, 3]; mask bool [g, g], True where a patch is kept -> uint8 [zS, zS, 3], enlarged z times.
    """
    zoom = _zoom(len(frame))
    inside = np.kron(mask, np.ones((patch_size, patch_size), bool))
    side = len(frame)
    inside = np.pad(inside, ((0, side - len(inside)), (0, side - len(inside))))  # past the last whole patch: dropped
    inside = np.kron(inside, np.ones((zoom, zoom), bool))
    picture = _enlarged(frame).astype(np.float32)
    grey = picture.mean(axis=2, keepdims=True)
    picture = np.where(inside[..., None], picture, 0.3 * grey + 0.7 * _PAPER)
    shrunk = inside.copy()  # what lies two pixels inside; the rest of what was kept is its edge
    for axis in (0, 1):
        for step in (-2, 2):
            moved = np.roll(inside, step, axis)
            shrunk &= moved
    picture[inside & ~shrunk] = _INK
    return picture.round().astype(np.uint8)


def _zoom(side: int) -> int:
    return -(-_SIDE // side)


def _enlarged(frame: np.ndarray) -> np.ndarray:
    zoom = _zoom(len(frame))
    return np.repeat(np.repeat(frame, zoom, axis=0), zoom, axis=1)


def _jpeg(picture: np.ndarray) -> bytes:
    height, width = picture.shape[:2]
    return write_image(None, picture[: height - height % 2, : width - width % 2], format="jpeg", quality=85)
