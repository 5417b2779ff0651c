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

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

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
        """Raises nothing that a video is the cause of: a segment that fails closes with its `Failure`."""
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
        except (VideoError, Poisoned, ChildNotStarted) as error:
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

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Raises nothing that a chunk is the cause of: its segment gets a row with the `Failure`."""
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
            return [rows.encoded_row(chunk) for chunk in self._call(chunks)]
        except Exception as error:
            if len(chunks) == 1:
                task, first = chunks[0].task, float(chunks[0].chunk.times[0])
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
                message = f"{task.source}: the model failed on the frames from {first:.2f} s on ({reason})"
                failure = Failure(source=task.source, kind="encode", message=message, attempts=task.attempt)
                return [rows.failure_row(task, failure, self._node)]
        if self._encoder.model.device.type == "cuda":
            torch.cuda.empty_cache()  # it may have been the memory
        return [row for chunk in chunks for row in self._encode([chunk])]

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
        except (VideoError, Poisoned, ChildNotStarted) as error:
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
    elif isinstance(error, ChildNotStarted):
        kind = "lost"
    return Failure(source=source, kind=kind, message=message, attempts=attempt)
