"""The stages as Ray Data runs them: callables that take and give Arrow tables. They need no Ray.

DecodeStage gives a table per chunk, so what is in memory does not grow with a video. EncodeStage mixes chunks of many
videos in one call; ProbeStage asks what is known of videos before they are read.

Exactness. A chunk is encoded alone, by the very call that `encode_video` makes, if others of its segment follow it, or
if it has no room for another group: its features are then bit for bit those of one machine with the same processor
and threads. What is left is mixed. The arithmetic of a frame is the same in a longer call, but libraries choose their
kernels by the shapes, so mixed features agree to rounding: within 1e-5 of a unit vector in float32. (With ToMe and its
like, which compare tokens, two that are alike to the last bit may merge the other way round.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from everyframe.encoders import Encoder, Plan
from everyframe.pipeline import ClipSampling, Sampling
from everyframe.pipeline.clips import ClipEncoder
from everyframe.scale import rows
from everyframe.scale.isolation import ChildNotStarted, DecodeChild, Poisoned
from everyframe.scale.rows import Closed, DecodedRow, EncodedChunk, Probed
from everyframe.scale.shipping import Payload, arrive, node_name
from everyframe.scale.wire import PackedChunk, unpacked
from everyframe.scale.work import Failure, FailureKind, Limits, Task
from everyframe.video import VideoError
from everyframe.video.errors import MissingVideoError, UnreachableError

if TYPE_CHECKING:
    import pyarrow as pa


class WorkerUnfit(RuntimeError):
    """This process, or what it runs on, can do no more work, whatever the video: it is to be replaced."""


class DecodeStage:
    """Tasks -> their chunks, packed, one table each, and a closing row per segment; see `rows`.

    planning: of `ship`. limits: of one decoding. threads: of the decoder, and of resizing.
    Raises VersionMismatch and ChildNotStarted.
    """

    def __init__(
        self, planning: Payload, sampling: Sampling | ClipSampling, limits: Limits, *, threads: int = 1
    ) -> None:
        data = planning() if callable(planning) else planning
        arrive(data)  # for its check of versions, which the child could not report as well
        self._sampling = sampling
        self._child = DecodeChild(data, limits, threads=threads)
        self._node = node_name()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Raises nothing that a video is the cause of: a segment that fails closes with its `Failure`.

        Where no process can be started any more this one is over: see `_leave`.
        """
        for task in rows.tasks(table):
            yield from self._read(task)

    def close(self) -> None:
        """End the process that decodes."""
        self._child.close()

    def _read(self, task: Task) -> Iterator[pa.Table]:
        number, held = 0, None
        try:
            for item in self._child.read(task.source, self._sampling, task.segment):
                if held is not None:
                    more = isinstance(item, PackedChunk)
                    yield rows.decoded_table(task, number, held, more=more, node=self._node)
                    number += 1
                if isinstance(item, PackedChunk):
                    held = item
                else:
                    yield rows.closing_table(rows.closed_by(task, number, item, self._node))
        except ChildNotStarted as error:
            _leave(error)
        except (VideoError, Poisoned) as error:
            failure = _failure(task.source, error, task.attempt, self._node)
            yield rows.closing_table(Closed(task=task, chunks=number, failure=failure, node=self._node))


class EncodeStage:
    """Tables of `DecodeStage` -> the features of their chunks, a row each; closing rows pass through, last.

    full: of `ship`. device: default CUDA where this process sees one. threads: of torch, default as they are.
    Raises VersionMismatch, ValueError for a device that is not there.
    """

    def __init__(self, full: Payload, *, device: str | None = None, threads: int | None = None) -> None:
        self._encoder = arrive(full, device=device, threads=threads)
        self._node = node_name()
        self._worked: DecodedRow | None = None

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Raises nothing that a chunk is the cause of: its segment gets a row with the `Failure`.

        After some errors of a GPU whatever is asked of it by the same process fails. Then no chunk is to blame, and the
        process is over: see `_leave`.
        """
        chunks: list[DecodedRow] = []
        closing = []
        for row in rows.decoded_rows(table):
            if isinstance(row, DecodedRow):
                chunks.append(row)
            else:
                closing.append(row)
        encoded = []
        for call in mixed(chunks, self._encoder):
            encoded += self._encode([chunks[index] for index in call])
        yield rows.encoded_table(encoded + closing)

    def _encode(self, chunks: list[DecodedRow]) -> list[dict[str, object]]:
        try:
            found = [rows.encoded_row(chunk) for chunk in self._call(chunks)]
            if self._worked is None:
                self._worked = _kept(chunks[0])
            return found
        except Exception as error:
            if len(chunks) == 1:
                self._check_fit(error)
                task, first = chunks[0].task, float(chunks[0].chunk.times[0])
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
                message = f"{task.source}: the model failed on the frames from {first:.2f} s on ({reason})"
                failure = Failure(source=task.source, kind="encode", message=message, attempts=task.attempt)
                return [rows.failure_row(task, failure, self._node)]
        if self._encoder.model.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # a device that fails for good: the next call tells
                torch.cuda.empty_cache()  # it may have been the memory
        return [row for chunk in chunks for row in self._encode([chunk])]

    def _check_fit(self, error: Exception) -> None:
        """Leave unless the device answers, and the encoder does once more what it did before."""
        device = self._encoder.model.device
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.ones(1, device=device).item()
            if self._worked is not None:
                self._call([self._worked])
        except Exception as again:
            said = f"{type(error).__name__}: {error}, then {type(again).__name__}: {again}"
            _leave(WorkerUnfit(f"node {self._node}: the encoder on {device} failed and does so from now on ({said})"))

    def _call(self, chunks: list[DecodedRow]) -> list[EncodedChunk]:
        began = time.monotonic()
        packed = [each.chunk for each in chunks]
        plan = Plan.joined([each.plan for each in packed])
        features = self._encoder.encode_planned(unpacked(packed, self._encoder.model), plan).float().cpu().numpy()
        seconds = time.monotonic() - began
        found, first = [], 0
        for each in chunks:
            count, seen = len(each.chunk.times), len(each.chunk.roles)
            found.append(
                EncodedChunk(
                    task=each.task,
                    number=each.number,
                    times=each.chunk.times,
                    roles=each.chunk.roles[:count],
                    embeddings=features[first : first + count],
                    macs=sum(self._encoder.plan_macs(each.chunk.plan, "all").values()),
                    decode_seconds=each.chunk.seconds,
                    encode_seconds=seconds * seen / len(plan.roles),
                    decode_node=each.node,
                    encode_node=self._node,
                )
            )
            first += seen
        return found


class ProbeStage:
    """Sources -> what is known of each before it is read, or its failure; see `rows`."""

    def __init__(self, limits: Limits) -> None:
        self._child = DecodeChild(None, limits)
        self._node = node_name()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Raises nothing that a video is the cause of."""
        yield rows.probed_table([self._probe(source) for source in rows.sources(table)])

    def close(self) -> None:
        """End the process that probes."""
        self._child.close()

    def _probe(self, source: str) -> Probed:
        try:
            known = self._child.probe(source)
        except ChildNotStarted as error:
            _leave(error)
        except (VideoError, Poisoned) as error:
            return Probed(source=source, failure=_failure(source, error, 1, self._node), node=self._node)
        return Probed(
            source=source,
            duration_seconds=known.duration_seconds,
            fps=known.fps,
            identity=known.identity,
            node=self._node,
        )


def mixed(chunks: Sequence[DecodedRow], encoder: Encoder) -> list[list[int]]:
    """Which chunks share a call of up to `batch_size` frames: their places, in order; the same for the same chunks.

    Each goes into the first call with room for it. Alone are those that `encode_video` would not have joined with more
    of their video either (see above), clips, and all where the encoder looks ahead: the frame that ends such a chunk
    is not its own.
    """
    least = encoder.group_size if encoder.plan == "fixed" else 1
    calls: list[list[int]] = []
    room: list[int] = []
    for index, each in enumerate(chunks):
        frames = len(each.chunk.roles)
        left = encoder.batch_size - frames
        alone = each.more or left < least or encoder.looks_ahead or isinstance(encoder, ClipEncoder)
        call = next((place for place, free in enumerate(room) if free >= frames), None)
        if alone or call is None:
            calls.append([index])
            room.append(0 if alone else left)
        else:
            calls[call].append(index)
            room[call] -= frames
    return calls


def _kept(row: DecodedRow) -> DecodedRow:
    """Itself, in memory of its own."""
    return dataclasses.replace(row, chunk=PackedChunk(head=bytes(row.chunk.head), pixels=bytes(row.chunk.pixels)))


def _leave(error: Exception) -> NoReturn:
    """End this process if it is a worker of Ray, which then starts another and does the block again; else raise.

    An exception would lose the block alone. The worker would live, fail faster than others work, and so draw most of
    what there is to do.
    """
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        print(f"everyframe: this worker ends itself: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    raise error


def _failure(source: str, error: Exception, attempt: int, node: str) -> Failure:
    kind: FailureKind = "video"
    message = str(error)
    if isinstance(error, Poisoned):
        kind = error.kind
    elif isinstance(error, MissingVideoError):
        kind = "missing"
        message += f" (on node {node})"  # others may see it
    elif isinstance(error, UnreachableError):
        kind = "unreachable"
    return Failure(source=source, kind=kind, message=message, attempts=attempt)
