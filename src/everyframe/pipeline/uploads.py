"""Raw frames on their way to a GPU that resizes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model


def upload_device(model: Model) -> torch.device | None:
    """Where raw frames go to be resized: the model's CUDA device; None where they stay on the CPU."""
    return model.device if model.device.type == "cuda" else None


def stacked(arrays: Sequence[np.ndarray], device: torch.device | None = None) -> Tensor:
    """Arrays of one shape as one tensor [T, ...]: on `device`, through pinned memory, or on the CPU where it is None.

    The copy to a CUDA device is underway when this returns, on the current stream of the calling thread. Torch keeps
    the pinned memory until it is over, and then for the next copy.
    """
    if device is None:
        return torch.from_numpy(np.stack(arrays))
    dtype = torch.from_numpy(arrays[0]).dtype
    buffer = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=device.type == "cuda")
    np.stack(arrays, out=buffer.numpy())
    return buffer.to(device, non_blocking=True)
