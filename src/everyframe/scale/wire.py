"""How chunks and what is known of a segment become bytes: JSON and raw arrays, so that no reader has to trust a writer.

Decoding runs in a process that a broken file may take over; nothing that comes from there is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model, VideoModel
from everyframe.backbone.preprocess import Preprocess
from everyframe.encoders import Plan
from everyframe.pipeline.decoding import Finished
from everyframe.pipeline.window import Chunk

Buffer = bytes | bytearray | memoryview


def pack(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Plain values and named arrays as one string of bytes."""
    arrays = {name: np.asarray(array) for name, array in (arrays or {}).items()}
    shapes = {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}
    head = json.dumps({"facts": dict(facts), "arrays": shapes}).encode()
    return b"".join([len(head).to_bytes(4, "big"), head, *(array.tobytes() for array in arrays.values())])


def unpack(data: Buffer) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What was packed; the arrays are read-only views. Raises ValueError for bytes that make no sense."""
    view = memoryview(data)
    start = 4 + int.from_bytes(view[:4], "big")
    head = json.loads(bytes(view[4:start]))
    arrays = {}
    for name, (dtype, *shape) in head["arrays"].items():
        kind, count = np.dtype(dtype), math.prod(shape)
        if kind.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"array {name} of {dtype} {shape}")
        arrays[name] = np.frombuffer(view, kind, count, start).reshape(shape)
        start += count * kind.itemsize
    return head["facts"], arrays


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedChunk:
    """A `Chunk` on its way: head, its times and its plan; pixels, uint8 as `Preprocess.pack` makes them."""

    head: Buffer
    pixels: Buffer

    @classmethod
    def of(cls, chunk: Chunk, model: Model | VideoModel, seconds: float) -> PackedChunk:
        """seconds: that reading it took."""
        packed = Preprocess(**model.preprocess_settings).pack(chunk.pixels).contiguous()
        plan = chunk.plan
        facts = {"roles": plan.roles, "shape": list(packed.shape), "seconds": seconds}
        arrays = {name: _array(getattr(plan, name)) for name in ("counts", "indices", "lent_counts", "lent")}
        head = pack(facts, {"times": np.array(chunk.times, np.float64), **arrays})
        return cls(head=head, pixels=packed.numpy().reshape(-1).data)

    @cached_property
    def _head(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return unpack(self.head)

    @property
    def times(self) -> np.ndarray:
        """float64 [T], seconds; of clips [V], where they begin."""
        return self._head[1]["times"]

    @property
    def roles(self) -> str:
        """One letter for each of `times`, and where the encoder looks ahead one more."""
        return str(self._head[0]["roles"])

    @property
    def seconds(self) -> float:
        """That reading it took, of one decoder."""
        return float(self._head[0]["seconds"])

    @cached_property
    def plan(self) -> Plan:
        arrays = self._head[1]
        names = ("counts", "indices", "lent_counts", "lent")
        counts, indices, lent_counts, lent = (torch.from_numpy(arrays[name].astype(np.int64)) for name in names)
        return Plan(self.roles, counts, indices, lent_counts, lent)

    def check(self) -> PackedChunk:
        """Itself, if it holds together; raises ValueError for what no sender in its right mind sends."""
        try:
            shape, frames = [int(size) for size in self._head[0]["shape"]], len(self.plan.roles)
            sound = shape[0] == frames and math.prod(shape) == len(self.pixels) and min(shape) > 0 and self.seconds >= 0
            times = self.times
            sound = sound and times.shape in ((frames,), (frames - 1,)) and bool(np.isfinite(times).all())
        except (KeyError, TypeError, IndexError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not sound:
            raise ValueError(f"pixels {shape} of {len(self.pixels)} bytes, {frames} roles, times {list(times.shape)}")
        return self

    def packed(self) -> Tensor:
        """uint8 [T, 3, S, S] (of clips [V, F, 3, S, S]) on the CPU, in memory of its own."""
        packed = torch.empty(self._head[0]["shape"], dtype=torch.uint8)
        packed.numpy().reshape(-1)[:] = np.frombuffer(self.pixels, np.uint8)
        return packed


def unpacked(chunks: list[PackedChunk], model: Model | VideoModel) -> Tensor:
    """The pixels of several chunks one after the other, float32 on the model's device, exactly as they were."""
    packed = torch.cat([chunk.packed() for chunk in chunks]) if len(chunks) > 1 else chunks[0].packed()
    return Preprocess(**model.preprocess_settings).unpack(packed.to(model.device))


@dataclass(frozen=True, kw_only=True)
class Ended:
    """After a segment's last chunk: its `Finished`, and the warnings that reading it gave."""

    finished: Finished
    warnings: list[str] = field(default_factory=list)


def finished_facts(finished: Finished) -> dict[str, Any]:
    """A `Finished` without error as JSON takes it."""
    return {each.name: getattr(finished, each.name) for each in dataclasses.fields(finished) if each.name != "error"}


def _array(values: Tensor) -> np.ndarray:
    return values.numpy().astype(np.int32)
