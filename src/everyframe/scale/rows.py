"""What Ray Data moves between the stages: Arrow tables, here made and read. Column by column:

tasks       task (JSON)
decoded     task, number (of the chunk in its segment), closing, more (chunks follow it), node, head, pixels
encoded     task, number, closing, node, head: a chunk's features, or what closed its segment
sources     source;  probed: probe (JSON)

A segment has one row per chunk and one that closes it, with what is known of it or why it failed; its number is that of
chunks. What workers write into `head` and `pixels` is `wire`'s.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from everyframe.extras import require
from everyframe.pipeline.decoding import Finished
from everyframe.pipeline.segments import Segment
from everyframe.scale.wire import Buffer, Ended, PackedChunk, finished_facts, pack, unpack
from everyframe.scale.work import Failure, Task

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedChunk:
    """The features of chunk `number` of a task's segment.

    times: float64 [T], seconds. roles: one letter per frame. embeddings: float32 [T, D], read-only. macs: summed over
    parts. decode_seconds, encode_seconds: of work; a call's are shared out by frames.
    """

    task: Task
    number: int
    times: np.ndarray
    roles: str
    embeddings: np.ndarray
    macs: float
    decode_seconds: float
    encode_seconds: float
    decode_node: str
    encode_node: str


@dataclass(frozen=True, kw_only=True)
class Closed:
    """A segment is read to its end, of so many chunks, or failed. An encoder that failed adds one without `chunks`."""

    task: Task
    chunks: int | None
    finished: Finished | None = None
    failure: Failure | None = None
    warnings: list[str] = field(default_factory=list)
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What is known of a source before it is read, or why nothing is. identity: see `everyframe.video.identity`."""

    source: str
    duration_seconds: float | None = None
    fps: float | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class DecodedRow:
    """A chunk before it is encoded."""

    task: Task
    number: int
    more: bool
    node: str
    chunk: PackedChunk


def task_row(task: Task) -> dict[str, bytes]:
    """A row of the table that `DecodeStage` takes."""
    facts = {**dataclasses.asdict(task), "segment": [task.segment.first, task.segment.stop]}
    return {"task": json.dumps(facts).encode()}


def source_row(source: str) -> dict[str, bytes]:
    """A row of the table that `ProbeStage` takes; bytes, since a path need not be text."""
    return {"source": os.fsencode(source)}


def tasks(table: pa.Table) -> list[Task]:
    """Of the rows that `task_row` made, or of any with a task."""
    return [] if not table.num_rows else [_task(row) for row in table.column("task").to_pylist()]


def sources(table: pa.Table) -> list[str]:
    """Of the rows that `source_row` made."""
    return [] if not table.num_rows else [os.fsdecode(row) for row in table.column("source").to_pylist()]


def decoded_table(task: Task, number: int, chunk: PackedChunk, *, more: bool, node: str) -> pa.Table:
    """One chunk, whose pixels are not copied."""
    return _decoded(task, number, closing=False, more=more, node=node, head=chunk.head, pixels=chunk.pixels)


def closing_table(closed: Closed) -> pa.Table:
    """What closes a segment, as `DecodeStage` gives it."""
    return _decoded(
        closed.task, closed.chunks or 0, closing=True, more=False, node=closed.node, head=_closing(closed), pixels=b""
    )


def decoded_rows(table: pa.Table) -> Iterator[DecodedRow | dict[str, Any]]:
    """The chunks of a table of `DecodeStage`, without copying pixels; of a closing row what `encoded_table` takes."""
    names = ("task", "number", "closing", "more", "node", "head") if table.num_rows else ()  # Ray's may lack columns
    for index, row in enumerate(zip(*(table.column(name).to_pylist() for name in names), strict=True)):
        task, number, closing, more, node, head = row
        if closing:
            yield {"task": task, "number": number, "closing": True, "node": node, "head": head}
            continue
        pixels = memoryview(table.column("pixels")[index].as_buffer())
        yield DecodedRow(
            task=_task(task), number=number, more=more, node=node, chunk=PackedChunk(head=head, pixels=pixels)
        )


def encoded_row(chunk: EncodedChunk) -> dict[str, Any]:
    facts = {
        "roles": chunk.roles,
        "macs": chunk.macs,
        "decode_seconds": chunk.decode_seconds,
        "encode_seconds": chunk.encode_seconds,
        "decode_node": chunk.decode_node,
    }
    head = pack(facts, {"times": chunk.times, "embeddings": chunk.embeddings})
    row = {"number": chunk.number, "closing": False, "node": chunk.encode_node, "head": head}
    return {**task_row(chunk.task), **row}


def failure_row(task: Task, failure: Failure, node: str) -> dict[str, Any]:
    """An encoder failed on a chunk of the task."""
    closed = Closed(task=task, chunks=None, failure=failure, node=node)
    return {**task_row(task), "number": -1, "closing": True, "node": node, "head": _closing(closed)}


def encoded_table(rows: list[dict[str, Any]]) -> pa.Table:
    """What `EncodeStage` gives."""
    pa = require("pyarrow", extra="scale")
    kinds = [("task", pa.binary()), ("number", pa.int64()), ("closing", pa.bool_()), ("node", pa.string())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*kinds, ("head", pa.large_binary())]))


def results(table: pa.Table) -> Iterator[EncodedChunk | Closed]:
    """What the tables of `EncodeStage` hold, for the driver; also of what goes round it, closing rows of a decoder."""
    names = ("task", "number", "closing", "node", "head") if table.num_rows else ()
    for row in zip(*(table.column(name).to_pylist() for name in names), strict=True):
        task, number, closing, node, head = row
        if closing:
            yield _closed(_task(task), number, node, head)
            continue
        facts, arrays = unpack(head)
        chunk: dict[str, Any] = {**facts, **arrays}
        yield EncodedChunk(task=_task(task), number=number, encode_node=node, **chunk)


def probed_table(probed: list[Probed]) -> pa.Table:
    """What `ProbeStage` gives."""
    pa = require("pyarrow", extra="scale")
    rows = [json.dumps(dataclasses.asdict(each)).encode() for each in probed]
    return pa.table({"probe": pa.array(rows, pa.binary())})


def probes(table: pa.Table) -> Iterator[Probed]:
    """What the tables of `ProbeStage` hold."""
    for row in table.column("probe").to_pylist() if table.num_rows else ():
        facts = json.loads(row)
        failure = facts.pop("failure")
        yield Probed(**facts, failure=failure and Failure(**failure))


def _task(row: bytes) -> Task:
    facts = json.loads(row)
    return Task(**{**facts, "segment": Segment(*facts["segment"])})


def _closing(closed: Closed) -> bytes:
    return pack(
        {
            "finished": closed.finished and finished_facts(closed.finished),
            "failure": closed.failure and dataclasses.asdict(closed.failure),
            "warnings": closed.warnings,
        }
    )


def _closed(task: Task, number: int, node: str, head: bytes) -> Closed:
    facts, _ = unpack(head)
    return Closed(
        task=task,
        chunks=None if number < 0 else number,
        finished=facts["finished"] and Finished(**facts["finished"]),
        failure=facts["failure"] and Failure(**facts["failure"]),
        warnings=facts["warnings"],
        node=node,
    )


def closed_by(task: Task, chunks: int, ended: Ended, node: str) -> Closed:
    """A segment that was read to its end."""
    return Closed(task=task, chunks=chunks, finished=ended.finished, warnings=ended.warnings, node=node)


def _decoded(
    task: Task, number: int, *, closing: bool, more: bool, node: str, head: Buffer, pixels: Buffer
) -> pa.Table:
    arrow: Any = require("pyarrow", extra="scale")
    columns = {
        "task": arrow.array([task_row(task)["task"]], arrow.binary()),
        "number": arrow.array([number], arrow.int64()),
        "closing": arrow.array([closing]),
        "more": arrow.array([more]),
        "node": arrow.array([node], arrow.string()),
        "head": _one(arrow, head),
        "pixels": _one(arrow, pixels),
    }
    return arrow.table(columns)


def _one(pa: Any, data: Buffer) -> Any:
    """One value of large_binary, around memory that is there already."""
    ends = pa.py_buffer(np.array([0, len(data)], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(data)])
