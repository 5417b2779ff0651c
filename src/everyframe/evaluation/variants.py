"""The ways to encode a video that the ablation compares, and the tables they stand in.

T frames, D width of the joint space. Sources: ResidualViT, table 1 (rows a to d), figure 4 (the interleave), its
ablations of token reduction and of the share dropped.

The I-features of every variant are rows of the dense features, so each is computed once per video: a variant's
`encode` does what comes on top.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model
from everyframe.cost import flops, frame_macs
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT
from everyframe.encoders.baselines import copy_features, interpolate_features
from everyframe.encoders.plan import fixed_roles
from everyframe.encoders.tokenizer import shipped_tokenizer
from everyframe.pipeline import Window

INTERLEAVE, DROP = 2, 0.85  # the paper's choice, at which methods are compared
_SHIPPED = "shipped"  # the name of the tokenizer that comes with the model


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which settings are tried. interleaves and drops hold 2 and 0.85 whether they are named or not.

    resize, merge: does the reduction table have the paper's comparators, lower resolution and token merging? smooths:
    windows of the moving average in seconds, ious: what counts as found; both for the main methods.
    """

    interleaves: tuple[int, ...] = (1, 2, 3, 5, 10)
    drops: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
    selections: tuple[str, ...] = ("random", "uniform", "center", "motion", "residual")
    resize: bool = True
    merge: bool = True
    smooths: tuple[float, ...] = (1.0, 3.0, 5.0, 8.0)
    ious: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)

    @property
    def main_interleaves(self) -> tuple[int, ...]:
        """Where the main methods are compared by style and grounding: N=2, and N=5 where it is tried."""
        return tuple(n for n in (INTERLEAVE, 5) if n == INTERLEAVE or n in self.interleaves)


QUICK = Sweep(interleaves=(2, 5), drops=(0.7, 0.85, 0.95), selections=("random", "motion"), smooths=(3.0, 5.0))


@dataclass(frozen=True, kw_only=True)
class Frames(Window):
    """One video, decoded and preprocessed. dense: float32 [T, D], every frame's feature in full."""

    dense: np.ndarray


Encode = Callable[[Frames], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to encode: `encodes` holds a function per tokenizer file of the same name, Frames -> float32 [T, D].

    full_share: share of frames that go through the whole transformer; `encode` takes them from `Frames.dense`.
    gflops: per frame, the paper's rule. roles: frames -> "IPP...".
    """

    name: str
    method: str  # dense, reduced, drop, resize, merge, copy or interpolate
    encodes: tuple[Encode, ...]
    gflops: float
    interleave: int = 0
    drop: float | None = None
    select: str | None = None
    residual: str | None = None

    def roles(self, num_frames: int) -> str:
        return "P" * num_frames if self.method == "reduced" else fixed_roles(num_frames, self.interleave)

    def full_share(self, num_frames: int) -> float:
        return self.roles(num_frames).count("I") / num_frames


@dataclass(frozen=True)
class Place:
    """A variant's line in a table. key: what `Ablation.pairs` calls it, if it is one of those compared there."""

    table: str
    label: str
    variant: Variant
    key: str | None = None


Tokenizers = dict[str, list[ResidualTokenizer]]


def read_tokenizers(model: Model, residuals: Sequence[str] = ("auto",)) -> tuple[Tokenizers, list[str]]:
    """The tokenizers named by "auto" (what ships with the model), "none" or "NAME=FILE", and what to say of them.

    A NAME given several times, with files of several trainings, holds them all. FILE: whatever
    `ResidualTokenizer.load` reads. The first name is the A of all tables. Raises ValueError for another form,
    and what `load` raises.
    """
    found: Tokenizers = {}
    notes: list[str] = []
    for residual in residuals:
        name, equals, file = residual.partition("=")
        if residual == "none":
            continue
        if residual == "auto":
            shipped = shipped_tokenizer(model)
            name, file = _SHIPPED, str(shipped)
            if shipped is None:
                notes.append(f"no residual tokenizer comes with {model.name}: rows with its token are left out")
                continue
        elif not (equals and name.strip() and file.strip()):
            raise ValueError(f'residual must be "auto", "none" or NAME=FILE, got {residual!r}')
        found.setdefault(name.strip(), []).append(ResidualTokenizer.load(file.strip(), model).to(model.device))
    return found, notes


def main_methods(places: Sequence[Place], sweep: Sweep) -> list[Place]:
    """Those compared by style and grounding parameters: dense, and the others at N=2 and N=5."""

    def is_main(place: Place) -> bool:
        return place.table == "interleave" and place.variant.interleave in sweep.main_interleaves

    return [place for place in places if place.variant.method == "dense" or is_main(place)]


def places(model: Model, tokenizers: Tokenizers, sweep: Sweep) -> list[Place]:
    """Every line of every table. A new way to reduce tokens is one more line in "reduction"."""
    make = _Maker(model, tokenizers)
    first = next(iter(tokenizers), None)
    tokens = [None] if first is None else [None, first]
    lines: list[Place] = []

    def put(table: str, label: str, variant: Variant, key: str | None = None) -> None:
        lines.append(Place(table, label, variant, key))

    def with_token(label: str, name: str | None) -> str:
        return label if name is None else f"{label} + token"

    put("methods", "a. every frame in full", make.dense(), "a")
    put("methods", "b. every frame reduced", make.reduced(), "b")
    put("methods", f"c. interleave N={INTERLEAVE}", make.interleaved(), "c")
    if first is not None:
        label = f"d. interleave N={INTERLEAVE} + residual token"
        put("methods", label, make.interleaved(residual=first), "d")
    for interleave in sorted({*sweep.interleaves, INTERLEAVE}):
        for name in tokens:
            variant = make.interleaved(interleave, residual=name)
            put("interleave", with_token(f"ResidualViT N={interleave}", name), variant)
        for method in ("copy", "interpolate"):
            key = method if interleave == INTERLEAVE else None
            put("interleave", f"{method} N={interleave}", make.shortcut(method, interleave), key)
    for select in sweep.selections:
        for name in tokens:
            put("reduction", with_token(f"drop, {select}", name), make.interleaved(select=select, residual=name))
    for label, reduction, tried in (
        ("lower resolution", "resize", sweep.resize),
        ("token merging", "merge", sweep.merge),
    ):
        for name in tokens if tried else ():
            put("reduction", with_token(label, name), make.interleaved(reduction=reduction, residual=name))
    for drop in sorted({*sweep.drops, DROP}):
        for name in tokens:
            put("drop", with_token(f"p = {drop:g}", name), make.interleaved(drop=drop, residual=name))
        for name in tokenizers:
            if drop != DROP and make.has(name, drop):
                put(
                    "drop",
                    f"p = {drop:g} + {name}, fitted for it",
                    make.interleaved(drop=drop, residual=name, fitted=drop),
                )
    for name in tokenizers:
        for select in ("motion", "random"):
            if name == first or make.has(name, DROP):
                put("residual", f"{name}, {select}", make.interleaved(select=select, residual=name))
    return lines


class _Maker:
    """Makes each variant once, in however many tables it stands."""

    def __init__(self, model: Model, tokenizers: Tokenizers) -> None:
        self._model = model
        self._tokenizers = tokenizers
        self._made: dict[str, Variant] = {}

    def dense(self) -> Variant:
        gflops = flops(DenseEncoder(self._model)).gflops_per_frame
        return self._keep(Variant(name="dense", method="dense", encodes=(_dense,), gflops=gflops))

    def reduced(self) -> Variant:
        """Row b: all frames as P-frames without a token."""
        encoder = ResidualViT(self._model, drop=DROP, residual=None)
        vision = self._model.vision
        patches = vision.num_patches * (1 - DROP)  # not rounded, as the paper counts
        macs = frame_macs(vision.config, "paper", patches=patches, tokens=vision.num_prefix + patches)

        def encode(frames: Frames) -> np.ndarray:
            return _reduced(encoder, frames, torch.arange(len(frames.pixels)))

        gflops = sum(macs.values()) / 1e9
        name = f"reduced motion p={DROP:g}"
        return self._keep(
            Variant(name=name, method="reduced", encodes=(encode,), gflops=gflops, drop=DROP, select="motion")
        )

    def interleaved(
        self,
        interleave: int = INTERLEAVE,
        *,
        drop: float = DROP,
        select: str = "motion",
        reduction: str = "drop",
        residual: str | None = None,
        fitted: float = DROP,
    ) -> Variant:
        """ResidualViT. residual: a name, of which those files are used that were fitted for `fitted`."""
        how = f"drop {select}" if reduction == "drop" else reduction
        name = f"{how} N={interleave} p={drop:g}" + (f" + {residual}" if residual else "")
        if fitted != DROP:
            name += f" (fitted for p={fitted:g})"
        if name in self._made:
            return self._made[name]
        tokenizers = [None] if residual is None else self._files(residual, fitted)
        encoders = [
            _residual_vit(self._model, interleave, drop, select, tokenizer, reduction) for tokenizer in tokenizers
        ]
        return self._keep(
            Variant(
                name=name,
                method=reduction,
                encodes=tuple(_interleaved(encoder) for encoder in encoders),
                gflops=float(np.mean([flops(encoder).gflops_per_frame for encoder in encoders])),
                interleave=interleave,
                drop=drop,
                select=select if reduction == "drop" else None,
                residual=residual,
            )
        )

    def has(self, residual: str, drop: float) -> bool:
        """Was a file of that name fitted for this share? One that does not say counts as fitted for 0.85."""
        return any(_fitted_for(file) == drop for file in self._tokenizers[residual])

    def _files(self, residual: str, drop: float) -> list[ResidualTokenizer]:
        files = self._tokenizers[residual]
        return [file for file in files if _fitted_for(file) == drop] or files

    def shortcut(self, method: str, interleave: int) -> Variant:
        """P-features at no cost, from the I-features."""

        def encode(frames: Frames) -> np.ndarray:
            if method == "copy":
                return copy_features(frames.dense, interleave)
            return interpolate_features(frames.dense, frames.times, interleave)

        gflops = self.dense().gflops / (interleave + 1)
        name = f"{method} N={interleave}"
        return self._keep(Variant(name=name, method=method, encodes=(encode,), gflops=gflops, interleave=interleave))

    def _keep(self, variant: Variant) -> Variant:
        return self._made.setdefault(variant.name, variant)


def _fitted_for(tokenizer: ResidualTokenizer) -> float:
    return round(float(tokenizer.facts.get("drop", DROP)), 6)


def _residual_vit(
    model: Model, interleave: int, drop: float, select: str, tokenizer: ResidualTokenizer | None, reduction: str
) -> ResidualViT:
    with warnings.catch_warnings():
        # Using a tokenizer away from the share it was fitted for is what the sweep is about.
        warnings.filterwarnings("ignore", message=".*was fitted for drop=", category=UserWarning)
        return ResidualViT(model, interleave, drop, select, tokenizer, reduction=reduction)


def _dense(frames: Frames) -> np.ndarray:
    return frames.dense


def _interleaved(encoder: ResidualViT) -> Encode:
    def encode(frames: Frames) -> np.ndarray:
        rows = torch.arange(len(frames.pixels))
        rows = rows[rows % encoder.group_size != 0]
        features = frames.dense.copy()
        features[rows.numpy()] = _reduced(encoder, frames, rows)
        return features

    return encode


def _reduced(encoder: ResidualViT, frames: Frames, rows: Tensor) -> np.ndarray:
    """Features of `rows` as P-frames: float32 [len(rows), D]."""
    sources = torch.from_numpy(frames.dense[(rows // encoder.group_size * encoder.group_size).numpy()])
    features = encoder.encode_p(frames.pixels, frames.motion, rows, sources.to(encoder.model.device))
    return features.cpu().numpy()
