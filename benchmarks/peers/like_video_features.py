"""The way video_features works, rebuilt: the video is re-encoded at the wanted rate first, then read frame by frame.

Read in its sources (github.com/v-iashin/video_features, 2024): with `extraction_fps` set, the command line of FFmpeg
writes a temporary video through the filter fps (H.264 at its defaults: x264, crf 23, preset medium); OpenCV reads that
one frame at a time; each goes through torchvision on a PIL image (Resize bicubic, CenterCrop, ToTensor, Normalize) and
waits for its batch; the model runs in float32 on a CPU.

Different here: there is no command line of FFmpeg, so the same filter and encoder are driven through PyAV in this
process; OpenCV's reader is replaced by PyAV's; batches of 16, where its default is 1. Its model is OpenAI's code, here
transformers' with the same weights as all others.

The filter picks the frame before the middle of each third of a second, and what is read back has been compressed again:
neither the frames nor their pixels are those of the others, so there is nothing to compare its features with.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import av
import av.filter
import numpy as np
import torch
from torch import Tensor

from peers.result import FPS, Clip, Clock, Result, resize_with_pil, to_pixels

BATCH = 16


class LikeVideoFeatures:
    """Writes a slower copy of the video, then decodes, preprocesses and encodes that in turn."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._clip = Clip(folder, dtype)

    def __call__(self, video: Path, limit: int | None = None) -> Result:
        """A frame of each third of a second; of the first `limit` of them."""
        clock = Clock()
        found: list[np.ndarray] = []
        waiting: list[Tensor] = []
        count = 0

        def embed() -> None:
            with clock.part("model"):
                found.append(self._clip(torch.stack(waiting)))
            waiting.clear()

        with tempfile.TemporaryDirectory() as folder:
            slower = Path(folder) / "slower.mp4"
            with clock.part("decode"):
                reencode(video, slower, seconds=None if limit is None else limit / FPS)
            with av.open(str(slower)) as container:
                frames = container.decode(video=0)
                while True:
                    with clock.part("decode"):
                        frame = next(frames, None)
                        pixels = None if frame is None else frame.to_ndarray(format="rgb24")
                    if pixels is None:
                        break
                    with clock.part("preprocess"):
                        waiting.append(to_pixels(resize_with_pil(pixels)))
                    count += 1
                    if len(waiting) == BATCH:
                        embed()
                if waiting:
                    embed()
        return Result(np.concatenate(found), np.full(count, math.nan), clock.spent)


def reencode(video: Path, out: Path, seconds: float | None = None) -> None:
    """Write the video at `FPS` frames per second, as `ffmpeg -i VIDEO -filter:v fps=fps=3 OUT` does, without sound."""
    with av.open(str(video)) as source, av.open(str(out), "w") as target:
        stream = source.streams.best("video")
        stream.thread_type = "AUTO"
        graph = av.filter.Graph()
        first = graph.add_buffer(template=stream)
        rate = graph.add("fps", f"fps={FPS:g}")
        last = graph.add("buffersink")
        first.link_to(rate)
        rate.link_to(last)
        graph.configure()
        coded = target.add_stream("libx264", rate=round(FPS), options={"crf": "23", "preset": "medium"})
        coded.width, coded.height, coded.pix_fmt = stream.width, stream.height, "yuv420p"

        def drain() -> None:
            while True:
                try:
                    frame = last.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    return
                frame.pict_type = 0  # the encoder decides, not the source
                target.mux(coded.encode(frame))

        for frame in source.decode(stream):
            if seconds is not None and frame.time >= seconds:
                break
            first.push(frame)
            drain()
        first.push(None)
        drain()
        target.mux(coded.encode(None))
