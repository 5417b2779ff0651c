"""What a batch will cost, before it runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from everyframe.cost import flops
from everyframe.encoders import Encoder, TempMe
from everyframe.pipeline.clips import driven
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.video import VideoError, probe

_PROBED = 200  # of more videos only so many are opened beforehand


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Estimates from the files' headers: `seconds` per video in order, features to come, multiply-accumulates.

    num_frames: features, which with TempMe are those of clips. macs: None where they depend on what the videos show, as
    with every plan but "fixed".
    """

    seconds: list[float]
    num_frames: int
    macs: float | None

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds)


def forecast(sources: Sequence[str | Path], encoder: Encoder | TempMe, sampling: Sampling | ClipSampling) -> Forecast:
    """Look at the headers of (at most 200 of) the videos. One that cannot be opened counts as zero seconds."""
    encoder = driven(encoder, sampling)
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


def _expect(source: str | Path, sampling: Sampling | ClipSampling) -> tuple[float, float]:
    """Seconds to encode, and features."""
    try:
        info = probe(source)
    except VideoError:
        return 0.0, 0.0  # reported when its turn comes
    duration = info.duration_seconds or 0.0
    end = duration if sampling.end is None else min(sampling.end, duration)
    seconds = max(end - (sampling.start or 0.0), 0.0)
    return seconds, sampling.num_rows(seconds, info.average_fps)
