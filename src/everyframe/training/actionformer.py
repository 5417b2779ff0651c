"""A compact ActionFormer: one pass over a video's features gives, for every moment of a pyramid, class and extent.

After Zhang, Wu and Li, "ActionFormer: Localizing Moments of Actions with Transformers" (ECCV 2022): convolutions that
project, transformer blocks with attention in a local window, a pyramid by strided blocks, and two heads that all levels
share. A point of level l stands for row j * 2^l and is asked for activities of that level's lengths alone.

Three things differ from the authors' code: queries, keys and values come from one depthwise convolution, not three;
distances pass through a softplus, whose gradient does not vanish as a ReLU's does; and the coarsest level attends
within the window too, where theirs for ActivityNet sees the whole video.

    B videos, C channels, T rows, H heads, P points of all levels, K classes, N segments of a video
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_KERNEL = 3
_BLOCK = 16  # queries that attend together: shorter blocks waste less, longer ones need fewer calls


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of the network. classes: 1 for foreground alone. window: rows that attend to each other, odd."""

    dim: int
    classes: int
    width: int = 128
    heads: int = 4
    window: int = 9
    projections: int = 2
    stem: int = 2
    levels: int = 6
    head_layers: int = 2
    positions: bool = True
    drop_path: float = 0.1
    drop_input: float = 0.1

    def __post_init__(self) -> None:
        for name in ("dim", "classes", "width", "heads", "projections", "stem", "levels", "head_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads, got {self.width} and {self.heads}")
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"window must be an odd number from 3, got {self.window}")
        if not (0 <= self.drop_path < 1 and 0 <= self.drop_input < 1):
            raise ValueError(f"drop_path and drop_input must be in [0, 1), got {self.drop_path}, {self.drop_input}")


@dataclass(frozen=True)
class Output:
    """logits [B, P, K]; distances [B, P, 2] to start and end in strides of the level; valid bool [B, P]."""

    logits: Tensor
    distances: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Points:
    """The points of all levels, each [P]: position in rows, stride, shortest and longest distance in rows."""

    position: Tensor
    stride: Tensor
    shortest: Tensor
    longest: Tensor


class ActionFormer(nn.Module):
    """rows [B, T, dim], valid bool [B, T] -> `Output`. T is padded inside to what the pyramid needs."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = one = architecture
        inner = [_Conv(one.dim if index == 0 else one.width, one.width) for index in range(one.projections)]
        self.project = nn.ModuleList(inner)
        blocks = one.stem + one.levels - 1
        rates = [one.drop_path * index / max(blocks - 1, 1) for index in range(blocks)]
        self.stem = nn.ModuleList(_Block(one, 1, rates[index]) for index in range(one.stem))
        self.branch = nn.ModuleList(_Block(one, 2, rates[one.stem + index]) for index in range(one.levels - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(one.width) for _ in range(one.levels))
        self.classify = _Head(one, one.classes)
        self.regress = _Head(one, 2)
        self.scales = nn.Parameter(torch.ones(one.levels))
        # Focal loss starts stable when everything is first taken for background, with a probability of 0.99.
        nn.init.constant_(self.classify.last.bias, -math.log(99.0))  # type: ignore[arg-type]

    def forward(self, rows: Tensor, valid: Tensor) -> Output:
        one = self.architecture
        missing = -rows.shape[1] % 2 ** (one.levels - 1)
        rows, valid = F.pad(rows, (0, 0, 0, missing)), F.pad(valid, (0, missing))
        x = F.dropout(rows * valid[..., None], one.drop_input, self.training)
        for layer in self.project:
            x = F.relu(layer(x, valid))
        if one.positions:
            x = (x + sinusoids(x.shape[1], one.width, x.device) / math.sqrt(one.width)) * valid[..., None]
        for layer in self.stem:
            x = layer(x, valid)
        levels, masks = [x], [valid]
        for layer in self.branch:
            x = layer(x, valid)
            valid = valid[:, ::2]
            levels.append(x)
            masks.append(valid)
        # A norm's bias would fill the padding, and the heads would see it beyond the last row.
        levels = [norm(x) * mask[..., None] for norm, x, mask in zip(self.norms, levels, masks, strict=True)]
        logits = [self.classify(level, mask) for level, mask in zip(levels, masks, strict=True)]
        distances = [
            F.softplus(self.regress(level, mask) * scale)
            for level, mask, scale in zip(levels, masks, self.scales, strict=True)
        ]
        return Output(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(masks, 1))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scales.device

    def points(self, rows: int) -> Points:
        """The points that `forward` answers for, given T rows; row k has its centre at k + 0.5."""
        levels = self.architecture.levels
        rows += -rows % 2 ** (levels - 1)
        strides = torch.cat([torch.full((rows >> level,), 2**level) for level in range(levels)]).float()
        places = torch.cat([torch.arange(rows >> level) for level in range(levels)])
        level = torch.log2(strides)
        shortest = torch.where(level == 0, 0.0, 2 * strides)
        longest = torch.where(level == levels - 1, math.inf, 4 * strides)
        return Points(places * strides + 0.5, strides, shortest, longest)


def sinusoids(rows: int, width: int, device: torch.device) -> Tensor:
    """The transformer's position encoding: float32 [rows, width]."""
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angles = torch.arange(rows, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def local_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, window: int) -> Tensor:
    """Attention of every row to those at most window // 2 away.

    q, k, v: [B, H, T, D]; valid: bool [B, T], which rows may be seen. Returns [B, H, T, D]. Rows are taken in blocks
    with their neighbours, so memory grows with T and not with its square. Every row sees itself.
    """
    batch, heads, rows, width = q.shape
    half = window // 2
    block = min(max(half, _BLOCK), rows)
    missing = -rows % block
    blocks = (rows + missing) // block
    q = F.pad(q, (0, 0, 0, missing)).unflatten(2, (blocks, block))
    k, v = (F.pad(x, (0, 0, half, half + missing)).unfold(2, block + 2 * half, block).mT for x in (k, v))
    seen = F.pad(valid, (half, half + missing)).unfold(1, block + 2 * half, block)
    place = torch.arange(block, device=q.device)[:, None] + half
    key = torch.arange(block + 2 * half, device=q.device)[None, :]
    allowed = ((key - place).abs() <= half) & seen[:, :, None, :] | (key == place)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None])
    return out.flatten(2, 3)[:, :, :rows].reshape(batch, heads, rows, width)


class _Conv(nn.Module):
    """A convolution over time with a norm behind it; what is padding stays zero."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, outer, _KERNEL, padding=_KERNEL // 2, bias=False)
        self.norm = nn.LayerNorm(outer)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.norm(self.conv(x.mT).mT) * valid[..., None]


class _Block(nn.Module):
    """Pre-norm transformer block with local attention; with stride 2 it gives every second row."""

    def __init__(self, one: Architecture, stride: int, drop: float) -> None:
        super().__init__()
        width = one.width
        self.heads, self.window, self.stride, self.drop = one.heads, one.window, stride, drop
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, _KERNEL, stride, _KERNEL // 2, groups=width, bias=False)
        self.mix_norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        mixed = self.mix((self.norm1(x) * valid[..., None]).mT).mT
        if self.stride > 1:  # the largest of three neighbours, as in the paper's shortcut
            x = F.max_pool1d(x.mT, _KERNEL, self.stride, _KERNEL // 2).mT
            valid = valid[:, :: self.stride]
        q, k, v = self.qkv(self.mix_norm(mixed)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = local_attention(q, k, v, valid, self.window).transpose(1, 2).flatten(2)
        x = x + self._path(self.proj(attended))
        return (x + self._path(self.mlp(self.norm2(x)))) * valid[..., None]

    def _path(self, x: Tensor) -> Tensor:
        """Stochastic depth: for some videos the branch is left out, for the rest it counts the more."""
        if not self.training or not self.drop:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop
        return x * kept / (1 - self.drop)


class _Head(nn.Module):
    """The convolutions that every level shares."""

    def __init__(self, one: Architecture, outer: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Conv(one.width, one.width) for _ in range(one.head_layers))
        self.last = nn.Conv1d(one.width, outer, _KERNEL, padding=_KERNEL // 2)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x, valid))
        return self.last(x.mT).mT


def targets(points: Points, segments: Tensor, labels: Tensor, classes: int, radius: float) -> tuple[Tensor, Tensor]:
    """What every point should say of one video: classes [P, K] of 0 and 1, distances [P, 2] in strides.

    segments: [N, 2] in rows. labels: int64 [N]. A point answers for a segment when it lies inside, at most `radius`
    strides from its centre, and the farther of both ends is as far as its level asks; of several the shortest, and
    the classes of all that are as short to 0.001 rows. Points that answer for none have zeros.
    """
    count = len(points.position)
    if not len(segments):
        return torch.zeros(count, classes), torch.zeros(count, 2)
    place, stride = points.position[:, None], points.stride[:, None]
    distances = torch.stack([place - segments[:, 0], segments[:, 1] - place], dim=-1)
    from_centre = (place - segments.mean(dim=1)).abs()
    inside = (distances.amin(-1) > 0) & (from_centre < radius * stride)
    farthest = distances.amax(-1)
    asked = (farthest >= points.shortest[:, None]) & (farthest <= points.longest[:, None])
    lengths = (segments[:, 1] - segments[:, 0]).expand(count, -1).masked_fill(~(inside & asked), math.inf)
    shortest, which = lengths.min(dim=1)
    chosen = (lengths <= shortest[:, None] + 1e-3) & lengths.isfinite()
    found = (chosen.float() @ F.one_hot(labels, classes).float()).clamp(max=1.0)
    own = distances[torch.arange(count), which] / stride
    return found, torch.where(shortest.isfinite()[:, None], own, 0.0)


def focal_loss(logits: Tensor, wanted: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss of every element (Lin et al. 2017, equation 5); wanted in [0, 1] may be smoothed."""
    share = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = share * wanted + (1 - share) * (1 - wanted)
    return (alpha * wanted + (1 - alpha) * (1 - wanted)) * (1 - right) ** gamma * entropy


def diou_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - IoU + (distance of the centres / length of the hull)^2 for segments around one point (Zheng et al. 2020).

    found, wanted: distances to start and end, not negative, [..., 2] in any unit; returns [...].
    """
    overlap = torch.minimum(found, wanted).sum(-1)
    union = found.sum(-1) + wanted.sum(-1) - overlap
    hull = torch.maximum(found, wanted).sum(-1).clamp(min=1e-8)
    centres = ((found[..., 1] - found[..., 0]) - (wanted[..., 1] - wanted[..., 0])) / 2
    return 1 - overlap / union.clamp(min=1e-8) + (centres / hull) ** 2
