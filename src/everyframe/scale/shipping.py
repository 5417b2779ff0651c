"""An encoder by value: what a worker needs of it, as bytes, so that it reads no file and no hub.

Two payloads. `planning` is for those who decode: every weight is on torch's "meta" device, which has shapes and no
values; it still preprocesses, plans, and counts what a plan costs. `full` is for those who encode. Neither has the
text tower: a stand-in says that there is one.
"""

from __future__ import annotations

import copyreg
import io
import json
import pickle
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from everyframe.backbone import Model, VideoModel
from everyframe.backbone.model import parse_device
from everyframe.backbone.quantize import check_int8, is_quantized
from everyframe.encoders import Encoder, ResidualTokenizer
from everyframe.version import package_version

Bytes = bytes | bytearray | memoryview | np.ndarray
Payload = Bytes | Callable[[], Bytes]
"""What `ship` made, or what fetches it: a function without arguments."""

_PACKAGES = ("torch", "av")  # those whose versions decide features


class VersionMismatch(RuntimeError):
    """A node has other versions than the driver; its features would differ."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """An encoder as bytes. planning: without weights, a few kilobytes; full: with them."""

    planning: bytes
    full: bytes


@cache
def versions() -> dict[str, str]:
    """What this process would compute features with."""
    found = {"everyframe": package_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]  # "2.9.0+cpu" decodes for "2.9.0+cu128"
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def check_versions(wanted: dict[str, str]) -> None:
    """Raise VersionMismatch, which names this node and what differs, unless this process has those versions."""
    own = versions()
    other = [f"{name} {own.get(name, 'missing')} (driver: {value})" for name, value in wanted.items()]
    differ = [text for text, (name, value) in zip(other, wanted.items(), strict=True) if own.get(name) != value]
    if differ:
        raise VersionMismatch(
            f"node {node_name()} has {', '.join(differ)}: its features would differ; install the same on every node"
        )


def node_name() -> str:
    """The host, and where several nodes of a cluster share one, which of them."""
    host = socket.gethostname()
    ray: Any = sys.modules.get("ray")  # not imported for this: outside of a worker there is no node
    if ray is None or not ray.is_initialized():
        return host
    return f"{host}/{ray.get_runtime_context().get_node_id()[:8]}"


def ship(encoder: Encoder) -> Shipped:
    """The encoder as the pipeline drives it (`pipeline.clips.driven`), as bytes; itself unchanged, on any device.

    Raises TypeError for one of a class that workers cannot import.
    """
    if type(encoder).__module__ == "__main__":
        raise TypeError(f"{type(encoder).__name__} is defined in a script; move it to a module that workers can import")
    try:
        return Shipped(planning=_pickled(encoder, planning=True), full=_pickled(encoder, planning=False))
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"{type(encoder).__name__} cannot be sent to workers: {error}") from error


def arrive(payload: Payload, *, device: str | torch.device | None = None, threads: int | None = None) -> Encoder:
    """The encoder that was shipped. Its float32 features are bit for bit those before, on the same kind of processor.

    device: for a full payload, default: CUDA where this process sees a device, else the CPU. threads: of torch, in
    this process from now on. Raises VersionMismatch, and ValueError for a device that is not there.
    """
    data = memoryview(cast(Any, payload() if callable(payload) else payload)).cast("B")
    end = int.from_bytes(data[:4], "big") + 4
    envelope = json.loads(bytes(data[4:end]))
    check_versions(envelope["versions"])
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device("cpu") if envelope["planning"] else parse_device(device)
    with place:  # `_tensor` puts what it makes there
        encoder = cast(Encoder, pickle.loads(data[end:]))
    if not envelope["planning"] and is_quantized(encoder.model.vision):
        check_int8(place)
    return encoder


def _pickled(encoder: Encoder, *, planning: bool) -> bytes:
    envelope = json.dumps({"versions": versions(), "planning": planning}).encode()
    file = io.BytesIO()
    file.write(len(envelope).to_bytes(4, "big") + envelope)
    _Pickler(file, encoder.model if planning else None).dump(encoder)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors as bytes, or, of the model `hollow`, as shapes alone; models without their text tower."""

    def __init__(self, file: io.BytesIO, hollow: nn.Module | None) -> None:
        super().__init__(file, protocol=5)
        self._planning = hollow is not None
        weights = [] if hollow is None else [*hollow.parameters(), *hollow.buffers()]
        self._hollow = {id(tensor) for tensor in weights}

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Tensor):
            facts = (tuple(value.shape), value.dtype, isinstance(value, nn.Parameter), value.requires_grad)
            return (_meta, facts) if id(value) in self._hollow else (_tensor, (_raw(value), *facts))
        if isinstance(value, ResidualTokenizer) and self._planning:
            return _KnownTokenizer, (value.fingerprint, value.macs)
        if isinstance(value, (Model, VideoModel)):
            return copyreg.__newobj__, (type(value),), _without_text(value)  # type: ignore[attr-defined]
        return NotImplemented


@dataclass(frozen=True)
class _KnownTokenizer:
    """What planning, provenance and costs ask of a residual tokenizer."""

    fingerprint: str
    macs: int


def _without_text(model: Model | VideoModel) -> dict[str, Any]:
    state = dict(vars(model))
    state["_modules"] = dict(state["_modules"])
    for names in (state, state["_modules"]):
        if names.get("text") is not None:
            names["text"] = nn.Module()  # provenance says whether there is one
        if names.get("_tokenizer") is not None:
            names["_tokenizer"] = None
    return state


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(raw: bytes, shape: tuple[int, ...], dtype: torch.dtype, is_parameter: bool, learns: bool) -> Tensor:
    # Through memory of torch's own: its alignment decides which kernels run, and with them the last bits.
    memory = torch.empty(len(raw), dtype=torch.uint8, device="cpu")
    memory.numpy()[:] = np.frombuffer(raw, np.uint8)
    values = memory.view(dtype).view(shape).to(torch.get_default_device())
    return nn.Parameter(values, requires_grad=learns) if is_parameter else values.requires_grad_(learns)


def _meta(shape: tuple[int, ...], dtype: torch.dtype, is_parameter: bool, learns: bool) -> Tensor:
    values = torch.empty(shape, dtype=dtype, device="meta")
    return nn.Parameter(values, requires_grad=learns) if is_parameter else values
