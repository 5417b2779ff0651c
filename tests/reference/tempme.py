"""TempMe written from its description, one clip, one head and one token at a time.

Slow and plain on purpose, in float64: nothing here is shared with the package. Layers are those of
`reference.vidtldr`. A clip is a list of tokens; c of them, at the front, are CLS (and registers) and never merge.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.vidtldr import Layer, attention


@dataclass
class Clip:
    """Tokens [n, W], how many first tokens each is made of, which those are, and how many at the front never merge."""

    x: Tensor
    sizes: list[int]
    holds: list[list[tuple[int, int]]]
    c: int


def match(metric: Tensor, c: int, count: int) -> list[tuple[int, int]]:
    """(source, destination) pairs, the most similar first; positions in the clip. The parity of c says who is what."""
    others = list(range(c, len(metric)))
    sources, targets = (others[0::2], others[1::2]) if c % 2 == 0 else (others[1::2], others[0::2])
    unit = [row / math.sqrt(float(row @ row)) for row in metric]
    pairs = []
    for i in sources:
        similar = [float(unit[i] @ unit[j]) for j in targets]
        best = max(range(len(targets)), key=lambda k: similar[k])
        pairs.append((similar[best], i, targets[best]))
    pairs.sort(key=lambda pair: -pair[0])
    return [(i, j) for _, i, j in pairs[:count]]


def merge(clip: Clip, metric: Tensor, count: int) -> Clip:
    """Size-weighted averages; the order is CLS, sources that stay, targets."""
    if not count:
        return clip
    pairs = match(metric, clip.c, count)
    gone = {i for i, _ in pairs}
    others = list(range(clip.c, len(clip.x)))
    sources, targets = (others[0::2], others[1::2]) if clip.c % 2 == 0 else (others[1::2], others[0::2])
    order = list(range(clip.c)) + [i for i in sources if i not in gone] + targets
    x, sizes, holds = [], [], []
    for j in order:
        parts = [j] + [i for i, into in pairs if into == j]
        size = sum(clip.sizes[i] for i in parts)
        x.append(sum(clip.sizes[i] * clip.x[i] for i in parts) / size)
        sizes.append(size)
        holds.append([held for i in parts for held in clip.holds[i]])
    return Clip(torch.stack(x), sizes, holds, clip.c)


def cross(clips: list[Clip], percent: int, positions: Tensor | None, first: int) -> Clip:
    """Clips side by side, matched by what they are, averaged with their positions added; `first` is their number."""
    rows = [(k, i) for k, clip in enumerate(clips) for i in range(clip.c)]
    rows += [(k, i) for k, clip in enumerate(clips) for i in range(clip.c, len(clip.x))]
    metric = torch.stack([clips[k].x[i] for k, i in rows])
    x = torch.stack([clips[k].x[i] + (0 if positions is None else positions[first + k]) for k, i in rows])
    joined = Clip(
        x,
        [clips[k].sizes[i] for k, i in rows],
        [clips[k].holds[i] for k, i in rows],
        sum(clip.c for clip in clips),
    )
    return merge(joined, metric, min((len(x) - joined.c) // 2, percent * len(x) // 100))


def run(
    layers: list[Layer],
    frames: Tensor,
    *,
    r: int,
    clips: dict[int, int],
    remove_cross: int,
    remove_intra: int,
    positions: dict[int, Tensor] | None = None,
    prefix: int = 1,
    proportional: bool = True,
    temporal: bool = True,
) -> list[Clip]:
    """Tokens [F, N, W] of one video before the first layer -> what is left after the last, per clip."""
    video = [Clip(x, [1] * len(x), [[(f, i)] for i in range(len(x))], prefix) for f, x in enumerate(frames)]
    first = min(clips, default=len(layers))
    for number, layer in enumerate(layers):
        if number in clips:
            group = clips[number] if temporal else 1
            rows = (positions or {}).get(number)
            starts = range(0, len(video), group)
            video = [cross(video[start : start + group], remove_cross, rows, start) for start in starts]
        after = []
        for clip in video:
            queries, keys, values = layer.qkv(clip.x)
            weights = attention(queries, keys, clip.sizes if proportional else None)
            clip = Clip(clip.x + layer.project(weights @ values), clip.sizes, clip.holds, clip.c)
            count = r if number < first else remove_intra * len(clip.x) // 100
            clip = merge(clip, keys.mean(0), min(count, (len(clip.x) - clip.c) // 2))
            after.append(Clip(clip.x + layer.mlp(clip.x), clip.sizes, clip.holds, clip.c))
        video = after
    return video
