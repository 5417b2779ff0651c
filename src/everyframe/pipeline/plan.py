"""What a batch will cost, before it runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from everyframe.cost import flops
from everyframe.encoders import Encoder
from everyframe.pipeline.decoding import Sampling
from everyframe.video import VideoError, probe

_PROBED = 200  # of more videos only so many are opened beforehand


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Estimates from the files' headers: `seconds` per video in order, frames to encode, multiply-accumulates.

    macs: None where they depend on what the videos show, as with every plan but "fixed".
    """

    seconds: list[float]
    num_frames: int
    macs: float | None

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds)


def forecast(sources: Sequence[str | Path], encoder: Encoder, sampling: Sampling) -> Forecast:
    """Look at the headers of (at most 200 of) the videos. One that cannot be opened counts as zero seconds."""
    # Chosen at random but always the same: every n-th would be misled by folders with a rhythm.
    chosen = random.Random(0).sample(range(len(sources)), min(len(sources), _PROBED))
    known = {index: _expect(sources[index], sampling) for index in chosen}
    count = max(len(known), 1)
    average = (sum(seconds for seconds, _ in known.values()) / count, sum(n for _, n in known.values()) / count)
    expected = [known.get(index, average) for index in range(len(sources))]
    seconds = [each for each, _ in expected]
    frames = round(sum(number for _, number in expected))
    macs = frames * flops(encoder).per_frame if encoder.plan == "fixed" else None
    return Forecast(seconds=seconds, num_frames=frames, macs=macs)


def _expect(source: str | Path, sampling: Sampling) -> tuple[float, float]:
    """Seconds and frames to encode; never more frames than the video has."""
    try:
        info = probe(source)
    except VideoError:
        return 0.0, 0.0  # reported when its turn comes
    duration = info.duration_seconds or 0.0
    end = duration if sampling.end is None else min(sampling.end, duration)
    seconds = max(end - (sampling.start or 0.0), 0.0)
    return seconds, seconds * min(sampling.fps, info.average_fps or sampling.fps)
