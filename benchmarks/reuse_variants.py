"""What could make reuse (`encoders/packed.py`) better? One idea per family, each against the plain method in one run.

    OMP_NUM_THREADS=1 python benchmarks/reuse_variants.py                       # 2 videos of 30 s per style
    OMP_NUM_THREADS=1 python benchmarks/reuse_variants.py --videos 3 --seconds 40 --out benchmarks/results/...json
    ... --families A E                                                          # only some

Families: A what selects the patches; B turns for the stalest; C the residual token on top; D interpolation on top;
E two-sided reuse and two-sided ResidualViT; F unmoved tokens without their MLP; G reuse that follows the camera.
Plain reuse refreshes 29 of the bundled model's 196 patches (15 %): those that changed most.

Synthetic videos with unseen combinations from seeds 800-899, at 3 frames a second. "exact" is a still picture over
which a window moves by exactly one patch per sample; no figure of all styles includes it. Figures are the cosine of
P-frames with their dense features: mean and 5th percentile. "gain" is the mean difference to the family's reference,
with its standard error over videos and in how many videos it is positive. cost: of a P-frame, and (mean) of a frame
with the I-frames, in dense frames, counting linear layers ("linear") or attention's products as well ("all").
seconds: processor time of a P-frame in dense frames, in this run, with the choice of patches; left out where the
variant is simulated (signals read off a dense pass, features mixed afterwards).

The loop here goes frame by frame (all groups of a video at once) and is compared with `packed_features` first.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import everyframe as ef
from everyframe.backbone import Model
from everyframe.cost import frame_macs
from everyframe.encoders import ResidualViT
from everyframe.encoders.baselines import copy_features, fidelity, interpolate_features
from everyframe.encoders.dense import encode_full
from everyframe.encoders.packed import packed_features
from everyframe.encoders.plan import Plan, fixed_roles
from everyframe.encoders.tokenizer import ResidualTokenizer, shipped_tokenizer
from everyframe.pipeline import read_window
from everyframe.synthetic import SyntheticVideo
from everyframe.tokens.drop import patch_sums, uniform_indices

FPS = 3.0
KEPT = 29
STYLES = ("still", "handheld", "pan", "action", "talking_head", "cuts")
CALIBRATION = ("handheld", "pan", "action")  # where the mean keys and values of each position come from
MIXES = (0.1, 0.25, 0.5)
LENGTHS = (2, 3, 5, 7, 10)


# ---------------------------------------------------------------------------------------------------- videos


@dataclass
class Clip:
    """One video and its dense pass. T frames, P patches, L tokens, W width, D width of the joint space."""

    style: str
    times: np.ndarray
    pixels: Tensor  # [T, 3, S, S]
    motion: Tensor  # [T, P]
    dense: Tensor  # [T, D], unit rows
    pairs: list[Tensor]  # per block the keys and values of every frame: [T, L, 2 W]
    dense_seconds: float  # of encode_full
    model: Model = field(repr=False)
    signals: dict[str, Tensor] = field(default_factory=dict, repr=False)
    signal_seconds: dict[str, float] = field(default_factory=dict)
    shifts: tuple[Tensor, float] | None = None

    def signal(self, name: str) -> Tensor:
        """What each patch shows, in the terms of one signal: [T, P, C]."""
        if name not in self.signals:
            begin = time.process_time()
            self.signals[name] = self._make(name)
            self.signal_seconds[name] = time.process_time() - begin
        return self.signals[name]

    def _make(self, name: str) -> Tensor:
        vision = self.model.vision
        width, prefix = vision.config.width, vision.num_prefix
        if name == "change":
            return cells(self.pixels, vision.config.patch_size, 2)
        if name == "change, full resolution":
            return cells(self.pixels, vision.config.patch_size, 1)
        if name == "embedded patch":
            return vision.pre(vision.embed(vision.patchify(self.pixels)))
        if name == "keys of block 1":
            return self.pairs[0][:, prefix:, :width].contiguous()
        if name == "keys after 2 blocks":
            return self.pairs[2][:, prefix:, :width].contiguous()
        raise ValueError(name)

    def camera(self) -> Tensor:
        """Global shift of each frame against the one before, in pixels: [T, 2]."""
        if self.shifts is None:
            begin = time.process_time()
            steps = torch.zeros(len(self.pixels), 2)
            steps[1:] = global_shift(self.pixels[1:], self.pixels[:-1])
            self.shifts = steps, time.process_time() - begin
        return self.shifts[0]


def cells(pixels: Tensor, patch: int, side: int) -> Tensor:
    """Means over `side` x `side` pixels, by patch: [T, 3, S, S] -> [T, P, C]."""
    small = F.avg_pool2d(pixels, side) if side > 1 else pixels
    inside, count = patch // side, pixels.shape[-1] // patch
    cut = small[..., : count * inside, : count * inside].unflatten(3, (count, inside)).unflatten(2, (count, inside))
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), count * count, -1)


def global_shift(now: Tensor, before: Tensor) -> Tensor:
    """By how many pixels the picture moved (down, right), by phase correlation of luma: [T, 3, S, S] twice -> [T, 2]"""
    side = now.shape[-1]
    window = torch.hann_window(side, periodic=False)
    window = window[:, None] * window

    def spectrum(pixels: Tensor) -> Tensor:
        luma = pixels.mean(1)
        return torch.fft.rfft2((luma - luma.mean((1, 2), keepdim=True)) * window)

    cross = spectrum(now) * spectrum(before).conj()
    peaks = torch.fft.irfft2(cross / (cross.abs() + 1e-6), s=(side, side)).flatten(1).argmax(1)
    shift = torch.stack((peaks // side, peaks % side), dim=1)
    return torch.where(shift > side // 2, shift - side, shift).float()


@torch.no_grad()
def dense_pass(model: Model, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Features [T, D] and every block's keys and values [T, L, 2 W]."""
    vision = model.vision
    x = vision.pre(torch.cat((vision.prefix(len(pixels)), vision.embed(vision.patchify(pixels))), dim=1))
    pairs = []
    for block in vision.blocks:
        pairs.append(block.qkv(block.norm1(x))[..., x.shape[2] :].contiguous())
        x = block(x)
    return F.normalize(vision.pool(x).float(), dim=1), pairs


def make_clip(model: Model, style: str, pixels: Tensor, times: np.ndarray, motion: Tensor) -> Clip:
    encode_full(model, pixels[:32], 32)
    begin = time.process_time()
    with torch.no_grad():
        encode_full(model, pixels, 32)
    seconds = time.process_time() - begin
    dense, pairs = dense_pass(model, pixels)
    return Clip(style, times, pixels, motion, dense, pairs, seconds, model)


def render(model: Model, style: str, seed: int, seconds: float, folder: Path) -> Clip:
    path = folder / "video.mp4"
    SyntheticVideo(seed, style=style, seconds=seconds, combinations="unseen").write(path)  # type: ignore[arg-type]
    window = read_window(path, model, fps=FPS)
    assert window.motion is not None  # noqa: S101
    return make_clip(
        model, style, window.pixels, window.times, patch_sums(window.motion, model.vision.config.patch_size)
    )


def exact_pan(model: Model, seed: int, seconds: float) -> Clip:
    """A window as large as the model's input that moves to the right by one patch per sample over one picture."""
    side, step = model.image_size, model.vision.config.patch_size
    count = min(round(seconds * FPS), 60)
    wide = SyntheticVideo(
        seed, style="still", seconds=40, size=(side + step * (count - 1), side), combinations="unseen"
    )
    picture = wide.frame(20.0)
    frames = np.stack([picture[:, left : left + side] for left in range(0, step * count, step)])
    pixels = model.preprocess(frames)
    return make_clip(model, "exact", pixels, np.arange(count) / FPS, torch.zeros(count, model.vision.num_patches))


# ---------------------------------------------------------------------------------------------------- reuse


@dataclass
class Outcome:
    features: Tensor  # [T, D]
    seconds: float = 0.0  # of all P-frames; 0 where it is not a fair figure
    ends: Tensor | None = None  # [G', D], the P-features of the next I-frames, where they were asked for


def p_frame(
    model: Model,
    patches: Tensor,
    chosen: Tensor,
    state: list[Tensor],
    *,
    extra: Tensor | None = None,
    others: Sequence[list[Tensor]] = (),
    source: Tensor | None = None,
) -> Tensor:
    """One P-frame of g groups: chosen patches [g, n, 3 p p] at places [g, n] -> unit features [g, D].

    Writes their keys and values into the state (per block [g, L, 2 W]). extra [g, m, W]: tokens of this frame alone.
    others, source [g, L]: further states; a token with source 1 is looked up in the first of them, and so on.
    """
    vision = model.vision
    width, prefix, groups = vision.config.width, vision.num_prefix, len(chosen)
    first = [vision.prefix(groups)] if extra is None else [vision.prefix(groups), extra]
    x = vision.pre(torch.cat([*first, vision.embed(patches, chosen)], dim=1))
    added = 0 if extra is None else extra.shape[1]
    rows = torch.cat((torch.arange(prefix).expand(groups, -1), chosen + prefix), dim=1)
    where = rows[..., None].expand(-1, -1, 2 * width)
    for layer, block in enumerate(vision.blocks):
        qkv = block.qkv(block.norm1(x))
        pairs = qkv[..., width:]
        own = pairs if not added else torch.cat((pairs[:, :prefix], pairs[:, prefix + added :]), dim=1)
        state[layer].scatter_(1, where, own)
        seen = state[layer]
        for number, other in enumerate(others, 1):
            seen = torch.where((source == number)[..., None], other[layer], seen)
        if added:
            seen = torch.cat((seen, pairs[:, prefix : prefix + added]), dim=1)
        x = x + look(block, qkv[..., :width], seen)
        x = x + block.feed(x)
    return F.normalize(vision.pool(x).float(), dim=1)


def look(block: Any, queries: Tensor, pairs: Tensor) -> Tensor:
    """The attention branch from queries [g, n, W] and keys and values [g, m, 2 W]."""
    width = queries.shape[2]
    q, k, v = (
        part.unflatten(2, (block.heads, -1)).transpose(1, 2)
        for part in (queries, pairs[..., :width], pairs[..., width:])
    )
    return block.output(F.scaled_dot_product_attention(q, k, v))


@torch.no_grad()
def reuse(
    clip: Clip,
    interleave: int,
    *,
    kept: int = KEPT,
    select: str = "change",
    turns: int = 0,
    token: Callable[[Tensor], Tensor] | None = None,
    own: bool = False,
    following: bool = False,
    to_end: bool = False,
    record: list[Tensor] | None = None,
) -> Outcome:
    """Reuse with one set of options.

    turns: of the kept patches so many go to the stalest. token: makes the P-frames' extra token of the I-features.
    own, following: unmoved patches may also be looked up in the group's I-frame, in the next I-frame. to_end: also
    the features that the next I-frames would have as P-frames. record: gets the patches of each step.
    """
    model, total = clip.model, len(clip.pixels)
    vision, patches = model.vision, clip.model.vision.num_patches
    generator = torch.Generator().manual_seed(0)
    cut = vision.patchify(clip.pixels)
    signal = None if select in ("random", "uniform", "motion", "motion, summed") else clip.signal(select)
    begin = time.process_time()
    firsts = torch.arange(0, total, interleave + 1)
    features = clip.dense.clone()
    state = [pairs[firsts] for pairs in clip.pairs]
    last = None if signal is None else signal[firsts]  # what each patch showed when last refreshed
    nexts = torch.where(firsts + interleave + 1 < total, firsts + interleave + 1, firsts)
    places = ([firsts] if own else []) + ([nexts] if following else [])
    others = [[pairs[place] for pairs in clip.pairs] for place in places]
    shown = [signal[place] for place in places] if signal is not None else []
    moved = torch.zeros(len(firsts), patches)
    age = torch.zeros(len(firsts), patches)
    ends = None
    for k in range(1, interleave + 1 + to_end):
        frames = firsts + k
        frames = frames[frames < total]
        groups = len(frames)
        noise = torch.rand(groups, patches, generator=generator)
        source = None
        moved[:groups] += clip.motion[frames]
        age += 1
        if signal is not None and last is not None:
            apart = torch.stack([(signal[frames] - part[:groups]).square().mean(2) for part in (last, *shown)])
            score, source = apart.min(0)
        elif select == "random":
            score = noise
        elif select == "uniform":
            score = torch.zeros(groups, patches)
            score[:, uniform_indices(patches, kept)] = 1
        else:
            score = (clip.motion[frames] if select == "motion" else moved[:groups]) + 1e-6 * noise
        chosen = score.topk(kept - turns, dim=1).indices
        if turns:
            stale = (age[:groups] + 1e-3 * noise).scatter(1, chosen, -1.0)
            chosen = torch.cat((chosen, stale.topk(turns, dim=1).indices), dim=1)
        chosen = chosen.sort(dim=1).values
        if record is not None:
            record.append(chosen)
        moved[:groups].scatter_(1, chosen, 0.0)
        age[:groups].scatter_(1, chosen, 0.0)
        if last is not None and signal is not None:
            where = chosen[..., None].expand(-1, -1, signal.shape[2])
            last[:groups].scatter_(1, where, signal[frames].gather(1, where))
        if source is not None and others:
            source = F.pad(source.scatter(1, chosen, 0), (vision.num_prefix, 0))
        found = p_frame(
            model,
            cut[frames].gather(1, chosen[..., None].expand(-1, -1, cut.shape[2])),
            chosen,
            [part[:groups] for part in state],
            extra=None if token is None else token(clip.dense[firsts[:groups]])[:, None],
            others=[[part[:groups] for part in other] for other in others],
            source=source,
        )
        if k <= interleave:
            features[frames] = found
        else:
            ends = found
    seconds = time.process_time() - begin
    # Only change is read off the pixels as a user would; the deeper signals come out of a dense pass.
    if select == "change":
        seconds += clip.signal_seconds[select]
    elif signal is not None:
        seconds = 0.0
    return Outcome(features, seconds, ends)


@torch.no_grad()
def without_mlp(clip: Clip, interleave: int, depth: int, *, stale: bool = True) -> Outcome:
    """All tokens pass the attention branch of the first `depth` blocks; the MLP is for CLS and the changed patches.

    An unmoved token adds what its MLP gave when it was last computed (stale), or nothing.
    """
    model, total = clip.model, len(clip.pixels)
    vision, signal = model.vision, clip.signal("change")
    width, prefix = vision.config.width, vision.num_prefix
    cut = vision.patchify(clip.pixels)
    firsts = torch.arange(0, total, interleave + 1)
    features = clip.dense.clone()
    # What a full implementation would keep from the I-frames: not counted, as their pass makes it anyway.
    tokens = vision.pre(torch.cat((vision.prefix(len(firsts)), vision.embed(cut[firsts])), dim=1))
    memory, x = [], tokens
    for block in vision.blocks:
        x = x + block.attend(x)
        memory.append(block.feed(x) if stale else torch.zeros_like(x))
        x = x + block.feed(x)
    state = [pairs[firsts] for pairs in clip.pairs]
    last = signal[firsts]
    begin = time.process_time()
    for k in range(1, interleave + 1):
        frames = firsts + k
        frames = frames[frames < total]
        groups = len(frames)
        chosen = (signal[frames] - last[:groups]).square().mean(2).topk(KEPT, dim=1).indices.sort(dim=1).values
        where = chosen[..., None].expand(-1, -1, signal.shape[2])
        last[:groups].scatter_(1, where, signal[frames].gather(1, where))
        new = vision.embed(cut[frames].gather(1, chosen[..., None].expand(-1, -1, cut.shape[2])), chosen)
        rows = torch.cat((torch.arange(prefix).expand(groups, -1), chosen + prefix), dim=1)[..., None]
        rows_w, rows_2w = rows.expand(-1, -1, width), rows.expand(-1, -1, 2 * width)
        tokens[:groups].scatter_(1, rows_w, vision.pre(torch.cat((vision.prefix(groups), new), dim=1)))
        x = tokens[:groups]
        for layer, block in enumerate(vision.blocks):
            if layer == depth:
                x = x.gather(1, rows_w)
            if layer < depth:
                x = x + block.attend(x)
                memory[layer][:groups].scatter_(1, rows_w, block.feed(x.gather(1, rows_w)))
                fed = memory[layer][:groups]
                x = x + (fed if stale else torch.zeros_like(x).scatter(1, rows_w, fed.gather(1, rows_w)))
            else:
                qkv = block.qkv(block.norm1(x))
                state[layer][:groups].scatter_(1, rows_2w, qkv[..., width:])
                x = x + look(block, qkv[..., :width], state[layer][:groups])
                x = x + block.feed(x)
        features[frames] = F.normalize(vision.pool(x).float(), dim=1)
    return Outcome(features, time.process_time() - begin + clip.signal_seconds["change"])


@torch.no_grad()
def follow_camera(clip: Clip, interleave: int, means: list[Tensor], *, positions: str = "none") -> Outcome:
    """Reuse whose state moves with the picture, by whole patches.

    Where the picture has gone follows from the shifts between samples, added up, or from one against the I-frame:
    whichever leaves less change, or no shift at all. Patches that came in count as changed until refreshed.
    positions: "none", the state moves as it is; "means", the mean keys and values of the old place (over other
    videos) are taken off and those of the new place added; "embedded", the first block's are computed anew from the
    moved patches with their new positions.
    """
    model, total = clip.model, len(clip.pixels)
    vision, signal = model.vision, clip.signal("change")
    width, prefix, grid = vision.config.width, vision.num_prefix, vision.grid
    size, patches = vision.config.patch_size, vision.num_patches
    cut, steps = vision.patchify(clip.pixels), clip.camera()
    begin = time.process_time()
    firsts = torch.arange(0, total, interleave + 1)
    features = clip.dense.clone()
    state = [pairs[firsts] for pairs in clip.pairs]
    last = signal[firsts]
    raw = vision.patch(cut[firsts]) if positions == "embedded" else None
    missing = torch.zeros(len(firsts), patches, dtype=torch.bool)
    gone, done = torch.zeros(len(firsts), 2), torch.zeros(len(firsts), 2, dtype=torch.int64)
    place = torch.stack((torch.arange(patches) // grid, torch.arange(patches) % grid), dim=1)
    for k in range(1, interleave + 1):
        frames = firsts + k
        frames = frames[frames < total]
        groups = len(frames)
        gone[:groups] += steps[frames]
        direct = global_shift(clip.pixels[frames], clip.pixels[frames - k])
        still = (signal[frames] - last[:groups]).square().mean(2)
        plans = []
        for guess in (None, gone[:groups], direct):
            by = torch.zeros_like(done[:groups]) if guess is None else (guess / size).round().long() - done[:groups]
            origin = place - by[:, None]
            outside = ((origin < 0) | (origin >= grid)).any(2)
            origin = origin.clamp(0, grid - 1)
            origin = origin[..., 0] * grid + origin[..., 1]
            before = last[:groups].gather(1, origin[..., None].expand(-1, -1, last.shape[2]))
            change = (signal[frames] - before).square().mean(2)
            # A patch that came in says nothing about the guess: it counts as without a shift.
            plans.append((torch.where(outside, still, change).sqrt().mean(1), by, origin, outside, change))
        best = torch.stack([plan[0] for plan in plans]).argmin(0)
        every = torch.arange(groups)
        by, origin, outside, change = (torch.stack([plan[i] for plan in plans])[best, every] for i in range(1, 5))
        done[:groups] += by
        if bool((by != 0).any()):
            last[:groups] = last[:groups].gather(1, origin[..., None].expand(-1, -1, last.shape[2]))
            missing[:groups] = missing[:groups].gather(1, origin) | outside
            rows = F.pad(origin + prefix, (prefix, 0))
            rows[:, :prefix] = torch.arange(prefix)
            for layer, part in enumerate(state):
                moved = part[:groups].gather(1, rows[..., None].expand(-1, -1, 2 * width))
                if positions == "means":
                    moved = moved + means[layer] - means[layer][rows]
                part[:groups] = moved
            if raw is not None:
                raw[:groups] = raw[:groups].gather(1, origin[..., None].expand(-1, -1, width))
                block = vision.blocks[0]
                anew = block.qkv(block.norm1(vision.pre(raw[:groups] + vision.positions)))[..., width:]
                shifted = (by != 0).any(1)
                state[0][:groups][shifted, prefix:] = anew[shifted]
        change = change.masked_fill(missing[:groups], float("inf"))
        chosen = change.topk(KEPT, dim=1).indices.sort(dim=1).values
        missing[:groups].scatter_(1, chosen, False)
        where = chosen[..., None].expand(-1, -1, signal.shape[2])
        last[:groups].scatter_(1, where, signal[frames].gather(1, where))
        picked = cut[frames].gather(1, chosen[..., None].expand(-1, -1, cut.shape[2]))
        if raw is not None:
            raw[:groups].scatter_(1, chosen[..., None].expand(-1, -1, width), vision.patch(picked))
        features[frames] = p_frame(model, picked, chosen, [part[:groups] for part in state])
    assert clip.shifts is not None  # noqa: S101
    spent = time.process_time() - begin + clip.shifts[1] + clip.signal_seconds["change"]
    return Outcome(features, spent if positions != "embedded" else 0.0)


@torch.no_grad()
def residual_vit(clip: Clip, interleave: int, select: str, tokens: str, tokenizer: ResidualTokenizer) -> Outcome:
    """ResidualViT whose tokens are made of the I-feature before ("one"), both interpolated ("mixed"), both ("two")."""
    encoder = ResidualViT(clip.model, interleave, select=select, residual=tokenizer)
    vision = clip.model.vision
    rows = torch.arange(len(clip.pixels))
    rows = rows[rows % (interleave + 1) != 0]
    before = rows - rows % (interleave + 1)
    after = torch.where(before + interleave + 1 < len(clip.pixels), before + interleave + 1, before)
    begin = time.process_time()
    if select == "motion":
        noise = 1e-6 * torch.rand(len(rows), vision.num_patches, generator=torch.Generator().manual_seed(0))
        chosen = (clip.motion[rows] + noise).topk(KEPT, dim=1).indices.sort(dim=1).values
    else:
        chosen = encoder.kept_indices(clip.pixels, None, rows)
    sources = [clip.dense[before]]
    if tokens == "mixed":
        sources = [torch.from_numpy(interpolate_features(clip.dense.numpy(), clip.times, interleave))[rows]]
    elif tokens == "two":
        sources.append(clip.dense[after])
    made = torch.stack([tokenizer(source) for source in sources], dim=1)
    patches = vision.patchify(clip.pixels[rows])
    patches = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[2]))
    x = torch.cat((vision.prefix(len(rows)), made, vision.embed(patches, chosen)), dim=1)
    features = clip.dense.clone()
    features[rows] = F.normalize(vision.encode(x).float(), dim=1)
    return Outcome(features, time.process_time() - begin)


# ---------------------------------------------------------------------------------------------------- costs


class Costs:
    """Multiply-accumulates of a P-frame in dense frames, by both rules: {"linear": ..., "all": ...}."""

    def __init__(self, model: Model) -> None:
        self.config, self.vision = model.vision.config, model.vision
        self.tokens = self.vision.num_prefix + self.vision.num_patches
        parts = frame_macs(self.config, "all", patches=self.vision.num_patches, tokens=self.tokens)
        self.full = {"linear": sum(parts.values()) - parts["attention"], "all": sum(parts.values())}
        self.square = self.config.width**2
        self.mlp = 2 * self.config.width * self.config.mlp_width

    def relative(self, linear: float, attention: float) -> dict[str, float]:
        return {"linear": linear / self.full["linear"], "all": (linear + attention) / self.full["all"]}

    def reuse(
        self, kept: int = KEPT, *, extra: int = 0, sees: int | None = None, more: float = 0.0
    ) -> dict[str, float]:
        """`kept` patches refreshed that see all tokens (or `sees`), `extra` tokens, `more` linear work."""
        own = self.vision.num_prefix + kept + extra
        parts = frame_macs(self.config, "paper", patches=kept, tokens=own)
        keys = (self.tokens if sees is None else sees) + extra
        return self.relative(sum(parts.values()) + more, self.config.depth * 2 * own * keys * self.config.width)

    def signal(self, select: str) -> dict[str, float]:
        """Reuse by a signal that has to be computed for all patches first; what it computes is not used twice."""
        patches, width = self.vision.num_patches, self.config.width
        embed = patches * 3 * self.config.patch_size**2 * width
        blocks = 2 * self.tokens * (4 * self.square + self.mlp)
        more = {
            "embedded patch": embed,
            "keys of block 1": embed + patches * self.square,
            "keys after 2 blocks": embed + blocks + patches * self.square,
        }.get(select, 0)
        cost = self.reuse(more=float(more))
        if select == "keys after 2 blocks":
            cost["all"] += 2 * 2 * self.tokens**2 * width / self.full["all"]
        return cost

    def without_mlp(self, depth: int) -> dict[str, float]:
        own = self.vision.num_prefix + KEPT
        parts = frame_macs(self.config, "paper", patches=KEPT, tokens=own)
        rest = self.tokens - own
        linear = sum(parts.values()) + depth * rest * 4 * self.square
        deep = self.config.depth - depth
        attention = 2 * self.config.width * self.tokens * (depth * self.tokens + deep * own)
        return self.relative(linear, attention)


# ---------------------------------------------------------------------------------------------------- the table


@dataclass
class Row:
    """One variant over all videos."""

    family: str
    name: str
    interleave: int
    reference: str
    cost: dict[str, float]
    found: list[tuple[str, np.ndarray]] = field(default_factory=list)  # style and P-frames' fidelity, per video
    seconds: list[float] = field(default_factory=list)  # of a P-frame in dense frames, per video


class Table:
    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int], Row] = {}

    def add(
        self,
        clip: Clip,
        family: str,
        name: str,
        interleave: int,
        features: Tensor | np.ndarray,
        cost: dict[str, float],
        *,
        seconds: float = 0.0,
        reference: str = "reuse",
    ) -> None:
        rows = np.arange(len(clip.dense)) % (interleave + 1) != 0
        key = family, name, interleave
        row = self.rows.setdefault(key, Row(family, name, interleave, reference, cost))
        row.found.append((clip.style, fidelity(np.asarray(features), clip.dense.numpy())[rows]))
        if seconds and clip.style != "exact":
            row.seconds.append(seconds / rows.sum() / (clip.dense_seconds / len(rows)))

    def results(self) -> list[dict[str, Any]]:
        return [self._result(row) for row in self.rows.values()]

    def _result(self, row: Row) -> dict[str, Any]:
        styles: dict[str, list[np.ndarray]] = {}
        for style, values in row.found:
            styles.setdefault(style, []).append(values)
        usual = [values for style, values in row.found if style != "exact"]
        result: dict[str, Any] = {"family": row.family, "variant": row.name, "interleave": row.interleave}
        if usual:
            result["fidelity"] = _both(usual)
        result["styles"] = {style: _both(values) for style, values in styles.items()}
        reference = self.rows.get((row.family, row.reference, row.interleave))
        if reference is not None and reference is not row:
            gains: dict[str, list[float]] = {}
            for (style, own), (_, other) in zip(row.found, reference.found, strict=True):
                gains.setdefault("exact" if style == "exact" else "all", []).append(float(own.mean() - other.mean()))
            for name, values in gains.items():
                error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
                result["gain" if name == "all" else "gain_exact"] = {
                    "over": row.reference,
                    "mean": round(float(np.mean(values)), 5),
                    "standard_error": round(error, 5),
                    "videos_better": sum(value > 0 for value in values),
                    "videos": len(values),
                }
        share = row.interleave / (row.interleave + 1)
        result["cost"] = {rule: round(value, 4) for rule, value in row.cost.items()}
        result["mean_cost"] = {rule: round(1 - share + share * value, 4) for rule, value in row.cost.items()}
        result["seconds"] = round(float(np.median(row.seconds)), 3) if row.seconds else None
        return result


def _both(values: list[np.ndarray]) -> list[float]:
    """Mean and 5th percentile."""
    joined = np.concatenate(values)
    return [round(float(joined.mean()), 4), round(float(np.percentile(joined, 5)), 4)]


def show(results: list[dict[str, Any]]) -> None:
    family = ""
    for result in results:
        if result["family"] != family:
            family = result["family"]
            print(
                f"\n{family}  {'variant':<38} N   mean     p5   gain (se, better)         P-cost lin/all  mean  sec   "
                "styles: mean (p5)"
            )
        mean, low = result.get("fidelity", [float("nan")] * 2)
        gain = result.get("gain") or result.get("gain_exact")
        text = "" if gain is None else "{mean:+.4f} ({standard_error:.4f}, {videos_better}/{videos})".format(**gain)
        seconds = "   - " if result["seconds"] is None else f"{result['seconds']:.3f}"
        styles = "  ".join(f"{style} {a:.4f} ({b:.3f})" for style, (a, b) in result["styles"].items())
        cost = result["cost"]
        print(
            f"   {result['variant']:<38} {result['interleave']:>2} {mean:.4f} {low:.4f} {text:<26}"
            f"{cost['linear']:.3f}/{cost['all']:.3f} {result['mean_cost']['linear']:.3f} {seconds}  {styles}"
        )


# ---------------------------------------------------------------------------------------------------- families


FREE = {"linear": 0.0, "all": 0.0}
PIXEL_SIGNALS = ("random", "uniform", "motion", "motion, summed", "change", "change, full resolution")
DEEP_SIGNALS = ("embedded patch", "keys of block 1", "keys after 2 blocks")


def mixed(features: Tensor, other: np.ndarray, share: float | Tensor) -> Tensor:
    return F.normalize((1 - share) * features + share * torch.from_numpy(other), dim=1)


def baselines(clip: Clip, interleave: int) -> dict[str, np.ndarray]:
    dense = clip.dense.numpy()
    return {
        "copy": copy_features(dense, interleave),
        "interpolate": interpolate_features(dense, clip.times, interleave),
    }


def run_a(clip: Clip, table: Table, costs: Costs, tokenizer: ResidualTokenizer) -> None:
    for n in (5, 2):
        for select in (*PIXEL_SIGNALS, *DEEP_SIGNALS):
            outcome = reuse(clip, n, select=select)
            table.add(
                clip,
                "A",
                select,
                n,
                outcome.features,
                costs.signal(select),
                seconds=outcome.seconds,
                reference="change",
            )
        # What the two dearest signals cost buys this many patches.
        for dear in DEEP_SIGNALS[1:]:
            more = round(KEPT * costs.signal(dear)["linear"] / costs.reuse()["linear"])
            outcome = reuse(clip, n, kept=more)
            table.add(
                clip,
                "A",
                f"change, {more} patches",
                n,
                outcome.features,
                costs.reuse(more),
                seconds=outcome.seconds,
                reference="change",
            )
        for name, features in baselines(clip, n).items():
            table.add(clip, "A", name, n, features, FREE, reference="change")


def run_b(clip: Clip, table: Table, costs: Costs, tokenizer: ResidualTokenizer) -> None:
    for n in (5, 10):
        for turns in (0, 2, 4, 8):
            outcome = reuse(clip, n, turns=turns)
            name = f"{turns} in turn" if turns else "reuse"
            table.add(clip, "B", name, n, outcome.features, costs.reuse(), seconds=outcome.seconds)


def run_c(clip: Clip, table: Table, costs: Costs, tokenizer: ResidualTokenizer) -> None:
    for n in (2, 5, 10):
        table.add(clip, "C", "reuse", n, reuse(clip, n).features, costs.reuse())
        outcome = reuse(clip, n, token=tokenizer)
        cost = costs.reuse(extra=1, more=tokenizer.macs)
        table.add(clip, "C", "residual token", n, outcome.features, cost, seconds=outcome.seconds)


def run_d(clip: Clip, table: Table, costs: Costs, tokenizer: ResidualTokenizer) -> None:
    for n in (2, 5, 10):
        plain = reuse(clip, n, to_end=True)
        table.add(clip, "D", "reuse", n, plain.features, costs.reuse())
        for name, other in baselines(clip, n).items():
            table.add(clip, "D", name, n, other, FREE)
            for share in MIXES:
                table.add(clip, "D", f"{share} {name}", n, mixed(plain.features, other, share), costs.reuse())
        once_more = {rule: value * (n + 1) / n for rule, value in costs.reuse().items()}
        corrected = correct(clip, n, plain)
        table.add(clip, "D", "error at next I spread back", n, corrected, once_more)
        for share in (0.1, 0.25):
            both = mixed(corrected, baselines(clip, n)["interpolate"], share)
            table.add(clip, "D", f"error spread back, {share} interpolate", n, both, once_more)


def correct(clip: Clip, interleave: int, plain: Outcome) -> Tensor:
    """What the next I-feature is off its P-feature is added to the frames before, growing with time."""
    features = plain.features.clone()
    assert plain.ends is not None  # noqa: S101
    times = torch.from_numpy(clip.times)
    for group, end in enumerate(plain.ends):
        first = group * (interleave + 1)
        after = first + interleave + 1
        rows = torch.arange(first + 1, after)
        share = ((times[rows] - times[first]) / (times[after] - times[first])).float()[:, None]
        features[rows] = F.normalize(features[rows] + share * (clip.dense[after] - end), dim=1)
    return features


def run_e(clip: Clip, table: Table, costs: Costs, tokenizer: ResidualTokenizer) -> None:
    kinds = {
        "reuse": {},
        "last or own I-frame": {"own": True},
        "two-sided": {"following": True},
        "two-sided, own I-frame": {"own": True, "following": True},
    }
    for n in LENGTHS:
        interpolated = baselines(clip, n)["interpolate"]
        table.add(clip, "E", "interpolate", n, interpolated, FREE)
        for name, options in kinds.items():
            outcome = reuse(clip, n, **options)  # type: ignore[arg-type]
            table.add(clip, "E", name, n, outcome.features, costs.reuse(), seconds=outcome.seconds)
            if "two" in name or not options:
                for share in MIXES if options else MIXES[1:2]:
                    both = mixed(outcome.features, interpolated, share)
                    table.add(clip, "E", f"{name}, {share} interpolate", n, both, costs.reuse())
    for n in LENGTHS:
        interpolated = baselines(clip, n)["interpolate"]
        for select in ("random", "motion"):
            reference = f"ResidualViT {select}"
            for tokens in ("one", "mixed", "two"):
                outcome = residual_vit(clip, n, select, tokens, tokenizer)
                extra = 2 if tokens == "two" else 1
                name = reference if tokens == "one" else f"{reference}, {tokens}"
                cost = costs.reuse(extra=extra, sees=1 + KEPT, more=extra * tokenizer.macs)
                table.add(clip, "E", name, n, outcome.features, cost, seconds=outcome.seconds, reference=reference)
                for share in (0.5,) if tokens != "two" else ():
                    both = mixed(outcome.features, interpolated, share)
                    table.add(clip, "E", f"{name}, {share} interpolate", n, both, cost, reference=reference)


def run_f(clip: Clip, table: Table, costs: Costs, tokenizer: ResidualTokenizer) -> None:
    depth = clip.model.vision.config.depth
    for n in (2, 5):
        outcome = reuse(clip, n)
        table.add(clip, "F", "reuse", n, outcome.features, costs.reuse(), seconds=outcome.seconds)
        for name, blocks in (("all blocks", depth), ("first half", depth // 2)):
            cost = costs.without_mlp(blocks)
            for stale in (True, False):
                outcome = without_mlp(clip, n, blocks, stale=stale)
                label = f"{name}, {'stale' if stale else 'no'} MLP"
                table.add(clip, "F", label, n, outcome.features, cost, seconds=outcome.seconds)
            more = round(KEPT * cost["linear"] / costs.reuse()["linear"])
            outcome = reuse(clip, n, kept=more)
            label = f"reuse, {more} patches"
            table.add(clip, "F", label, n, outcome.features, costs.reuse(more), seconds=outcome.seconds)


def run_g(clip: Clip, table: Table, costs: Costs, tokenizer: ResidualTokenizer, means: list[Tensor]) -> None:
    vision = clip.model.vision
    for n in (2, 5):
        outcome = reuse(clip, n)
        table.add(clip, "G", "reuse", n, outcome.features, costs.reuse(), seconds=outcome.seconds)
        # At worst, when every P-frame shifts.
        anew = 2.0 * vision.num_patches * vision.config.width**2
        for positions, more in (("none", 0.0), ("means", 0.0), ("embedded", anew)):
            outcome = follow_camera(clip, n, means, positions=positions)
            name = {"none": "shifted", "means": "shifted, mean positions", "embedded": "shifted, first block anew"}
            table.add(clip, "G", name[positions], n, outcome.features, costs.reuse(more=more), seconds=outcome.seconds)
        for name, features in baselines(clip, n).items():
            table.add(clip, "G", name, n, features, FREE)


FAMILIES = {"A": run_a, "B": run_b, "C": run_c, "D": run_d, "E": run_e, "F": run_f}


def check(clip: Clip) -> float:
    """Largest difference of the loop here to `packed_features`, over all styles of selection that differ in form."""
    worst = 0.0
    for select, n in (("change", 5), ("random", 2)):
        record: list[Tensor] = []
        features = reuse(clip, n, select=select, record=record).features
        roles = fixed_roles(len(clip.pixels), n)
        kept = [record[t % (n + 1) - 1][t // (n + 1)] for t, role in enumerate(roles) if role == "P"]
        with torch.no_grad():
            packed = packed_features(clip.model, clip.pixels, Plan.of(roles, kept))
        worst = max(worst, float((packed - features).abs().max()))
    if worst > 1e-4:
        raise SystemExit(f"the loop here is off packed_features by {worst:.2g}, more than 1e-4")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2, help="per style (default 2, at most 10)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each video (default 30)")
    parser.add_argument("--families", nargs="+", choices=[*FAMILIES, "G"], default=[*FAMILIES, "G"])
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    model = ef.load("bundled", device="cpu")
    file = shipped_tokenizer(model)
    assert file is not None  # noqa: S101
    tokenizer = ResidualTokenizer.load(file, model).requires_grad_(False)
    table, costs = Table(), Costs(model)
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        means: list[Tensor] = []
        if "G" in arguments.families:
            others = [render(model, style, 890 + i, 20.0, folder) for i, style in enumerate(CALIBRATION)]
            means = [torch.cat(layers).mean(0) for layers in zip(*(other.pairs for other in others), strict=True)]
        for video in range(arguments.videos):
            for number, style in enumerate(STYLES):
                clip = render(model, style, 800 + 10 * number + video, arguments.seconds, folder)
                worst = max(worst, check(clip)) if not video else worst
                for family in arguments.families:
                    if family != "G":
                        FAMILIES[family](clip, table, costs, tokenizer)
                    elif style in ("pan", "action"):
                        run_g(clip, table, costs, tokenizer, means)
            if "G" in arguments.families:
                run_g(exact_pan(model, 860 + video, arguments.seconds), table, costs, tokenizer, means)
            if arguments.out is not None:
                document = {
                    "benchmark": "reuse variants",
                    "videos_per_style": video + 1,
                    "seconds_per_video": arguments.seconds,
                    "sampled_fps": FPS,
                    "kept": KEPT,
                    "patches": model.vision.num_patches,
                    "off_packed_features": worst,
                    "results": sorted(table.results(), key=lambda result: result["family"]),
                    "run_seconds": round(time.perf_counter() - begin, 1),
                    "torch": torch.__version__,
                    "machine": platform.machine(),
                }
                arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    show(sorted(table.results(), key=lambda result: result["family"]))
    print(f"\nlargest difference to packed_features {worst:.2g}; {time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
