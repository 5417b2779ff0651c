"""The loop that people write: PyAV, transformers' CLIPImageProcessor and CLIPModel, one after the other."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch

from peers.result import FPS, Clip, Clock, Result

BATCH = 16


class TransformersLoop:
    """Decodes, preprocesses and encodes in turn in one thread of Python."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from transformers import CLIPImageProcessor

        self._processor = CLIPImageProcessor.from_pretrained(folder)
        self._clip = Clip(folder, dtype)

    def __call__(self, video: Path, limit: int | None = None) -> Result:
        """The frame at or after each third of a second; of the first `limit` of them."""
        clock = Clock()
        found: list[np.ndarray] = []
        times: list[float] = []
        waiting: list[np.ndarray] = []

        def embed() -> None:
            with clock.part("preprocess"):
                pixels = self._processor(images=waiting, return_tensors="pt")["pixel_values"].to(self._clip.dtype)
            with clock.part("model"):
                found.append(self._clip(pixels))
            waiting.clear()

        with av.open(str(video)) as container:
            stream = container.streams.best("video")
            stream.thread_type = "AUTO"
            frames = container.decode(stream)
            while len(times) != limit:
                with clock.part("decode"):
                    frame = next(frames, None)
                    if frame is not None and frame.time + 1e-3 >= len(times) / FPS:
                        waiting.append(frame.to_ndarray(format="rgb24"))
                        times.append(frame.time)
                if frame is None:
                    break
                if len(waiting) == BATCH:
                    embed()
            if waiting:
                embed()
        return Result(np.concatenate(found), np.array(times), clock.spent)
