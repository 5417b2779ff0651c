"""The way clip-video-encode works, rebuilt: the whole video is read first, then a DataLoader feeds the model.

Read in its sources (github.com/iejMac/clip-video-encode and video2numpy, 2023): a reader takes every n-th frame of a
video, n = int(frames per second of the video / wanted), and resizes it to a shorter side of 224 with a bicubic filter
and a centre crop; the frames of all videos of a chunk become one array in memory; a torch DataLoader with worker
processes takes it from there frame by frame through PIL (ToPILImage, to RGB, ToTensor, Normalize); batches of 256 go
through the model, in half precision on a GPU and in float32 on a CPU.

Different here: OpenCV's reader and resize are replaced by PyAV's and libswscale's (both read through FFmpeg), the
reader is not a process of its own (with one video nothing could overlap anyway), and the DataLoader has as many
workers as there are cores, not 6. Its open_clip model is replaced by transformers' with the same weights as all others.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from everyframe.cpu import affinity
from peers.result import FPS, SIDE, Clip, Clock, Result, to_pixels

BATCH = 256


class LikeClipVideoEncode:
    """Reads all, then preprocesses and encodes."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._clip = Clip(folder, dtype)

    def __call__(self, video: Path, limit: int | None = None) -> Result:
        """Every n-th frame; of the first `limit` of them."""
        clock = Clock()
        with clock.part("decode"):
            frames, times = read_every_nth(video, limit)
        loader = DataLoader(_Frames(frames), batch_size=BATCH, shuffle=False, num_workers=affinity())
        found, batches = [], iter(loader)
        while True:
            with clock.part("preprocess"):  # waiting for the workers
                batch = next(batches, None)
            if batch is None:
                break
            with clock.part("model"):
                found.append(self._clip(batch))
        return Result(np.concatenate(found), times, clock.spent)


class _Frames(Dataset[Tensor]):
    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image

        return to_pixels(np.array(Image.fromarray(self._frames[index]).convert("RGB")))


def read_every_nth(video: Path, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [T, 224, 224, 3] and their times: every n-th frame, resized by libswscale and cropped."""
    kept: list[np.ndarray] = []
    times: list[float] = []
    with av.open(str(video)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "AUTO"
        step = max(1, int(float(stream.average_rate) / FPS))
        for number, frame in enumerate(container.decode(stream)):
            if len(kept) == limit:
                break
            if number % step:
                continue
            scale = SIDE / min(frame.width, frame.height)
            width, height = (max(SIDE, int(side * scale)) for side in (frame.width, frame.height))
            small = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC").to_ndarray()
            top, left = (height - SIDE) // 2, (width - SIDE) // 2
            kept.append(small[top : top + SIDE, left : left + SIDE])
            times.append(frame.time)
    return np.stack(kept), np.array(times)
