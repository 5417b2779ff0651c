"""The stages of a cluster without the cluster: encoders by value, decoding in a process that may die, encoding mixed.

The processes are real, and so is what ends them: a decoder that waits for ever, a signal, memory that runs out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import types
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints
import everyframe as ef
import video_checkpoints
from everyframe.encoders import Encoder, Plan, Pruning
from everyframe.pipeline import ClipSampling, Sampling, encode_video
from everyframe.pipeline.clips import driven
from everyframe.pipeline.decoding import Finished
from everyframe.pipeline.segments import WHOLE, Segment, SegmentFeatures, join, segment_frames, split
from everyframe.pipeline.window import Chunk
from everyframe.scale import rows
from everyframe.scale.isolation import ChildNotStarted, DecodeChild, Poisoned
from everyframe.scale.rows import Closed, EncodedChunk
from everyframe.scale.shipping import Shipped, VersionMismatch, arrive, ship, versions
from everyframe.scale.stages import DecodeStage, EncodeStage, ProbeStage, WorkerUnfit, mixed
from everyframe.scale.wire import Ended, PackedChunk, pack, unpack, unpacked
from everyframe.scale.work import Limits, Task
from everyframe.video import VideoError, write_video

pa = pytest.importorskip("pyarrow")

FPS = 5
SAMPLING = Sampling(fps=FPS)
LIMITS = Limits(seconds=60)
SCHEDULE: dict[str, Any] = {"r": 2, "clips": {1: 2, 2: 2, 3: 3}, "remove_cross": 30, "remove_intra": 10}
ENCODERS = {
    "dense": ef.DenseEncoder,
    "residual": partial(ef.ResidualViT, batch_size=8),
    "residual cuts": partial(ef.ResidualViT, interleave=4, plan="cuts", batch_size=8),
    "merge": partial(ef.ResidualViT, reduction="merge", residual=None),
    "reuse": partial(ef.ReuseEncoder, batch_size=8),
    "adaptive": partial(ef.ReuseEncoder, plan="adaptive", batch_size=8),
    "two-sided": partial(ef.ReuseEncoder, two_sided=True, batch_size=6),
    "tome": partial(ef.ToMe, reduce=[4, 4]),
    "vidtldr": partial(ef.VidTLDR, reduce=[4]),
    "pruning": partial(Pruning, reduce=[4]),
}


@pytest.fixture(scope="module")
def model(light: ef.Model) -> ef.Model:
    return light


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """9 s, 3.4 s and 1 s of noise that moves, with a cut in the first."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    places = rng.integers(0, 255, (2, 96, 600, 3), dtype=np.uint8)
    for name, seconds in (("long", 9), ("short", 3.4), ("tiny", 1)):
        frames = (np.roll(places[t // 45], -3 * t, axis=1)[:, :128].copy() for t in range(round(10 * seconds)))
        write_video(folder / f"{name}.mp4", frames, fps=10)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def shipped(model: ef.Model) -> Shipped:
    return ship(ef.ResidualViT(model, batch_size=8))


@pytest.fixture(scope="module")
def stage(shipped: Shipped) -> Iterator[DecodeStage]:
    """One for many tests: starting a process takes longer than reading a video."""
    stage = DecodeStage(shipped.planning, SAMPLING, LIMITS)
    yield stage
    stage.close()


@pytest.fixture
def child(stage: DecodeStage) -> DecodeChild:
    """Its child, which runs."""
    stage._child._ready()
    return stage._child


def named(clips: list[Path], name: str) -> str:
    return next(str(clip) for clip in clips if clip.stem == name)


def decode(encoder: Encoder, sources: list[str], sampling: Any = SAMPLING) -> dict[str, list[Any]]:
    """The tables of each video."""
    stage = DecodeStage(ship(encoder).planning, sampling, LIMITS)
    try:
        return {each: list(stage(task_table([Task(key=each, source=each, segment=WHOLE)]))) for each in sources}
    finally:
        stage.close()


def encode(encoder: Encoder, tables: list[Any]) -> list[EncodedChunk | Closed]:
    """What the driver gets where all these rows come to the encoder together."""
    stage = EncodeStage(ship(encoder).full, device="cpu")
    return [found for table in stage(pa.concat_tables(tables)) for found in rows.results(table)]


def task_table(tasks: list[Task]) -> Any:
    return pa.Table.from_pylist([rows.task_row(task) for task in tasks])


def features(results: list[EncodedChunk | Closed], encoder: Encoder, sampling: Any = SAMPLING) -> ef.VideoFeatures:
    """Of one video, from the results of all its segments, in any order."""
    parts = []
    for closed in sorted((each for each in results if isinstance(each, Closed)), key=lambda each: each.task.segment):
        own = [each for each in results if isinstance(each, EncodedChunk) and each.task == closed.task]
        own.sort(key=lambda each: each.number)
        assert closed.failure is None and isinstance(closed.finished, Finished)
        assert [each.number for each in own] == list(range(closed.chunks or 0))
        part = SegmentFeatures(
            segment=closed.task.segment,
            times=np.concatenate([each.times for each in own]),
            embeddings=np.concatenate([each.embeddings for each in own]),
            roles="".join(each.roles for each in own),
            macs=sum(each.macs for each in own),
            finished=closed.finished,
        )
        parts.append(part)
    return join(parts, encoder, sampling, "float32")


def assert_equal(actual: ef.VideoFeatures, expected: ef.VideoFeatures) -> None:
    for name in ("times", "embeddings"):
        assert np.array_equal(getattr(actual, name), getattr(expected, name)), name
    for name in ("roles", "settings", "video", "model"):
        assert getattr(actual, name) == getattr(expected, name)


# --- an encoder by value ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_that_was_shipped_plans_and_encodes_as_before(model, name):
    encoder = ENCODERS[name](model)
    sent = ship(encoder)
    assert len(sent.planning) < 1 << 15 < len(sent.full)
    twin, other = arrive(sent.planning), arrive(sent.full, device="cpu")
    assert twin.model.device.type == "meta" and other.model.device.type == "cpu"
    pixels = torch.randn(13, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    planner, own = twin.planner(), encoder.planner()
    plan, expected = planner.add(pixels) + planner.finish(), own.add(pixels) + own.finish()
    assert plan.roles == expected.roles and torch.equal(plan.indices, expected.indices)
    for arrived in (twin, other):
        assert arrived.settings == encoder.settings and arrived.model.name == model.name
        assert arrived.plan_macs(plan, "all") == encoder.plan_macs(plan, "all")
        names = ("batch_size", "group_size", "looks_ahead", "needs_motion", "plan", "dim")
        assert [getattr(arrived, each) for each in names] == [getattr(encoder, each) for each in names]
    assert torch.equal(other.encode_planned(pixels, plan), encoder.encode_planned(pixels, plan))
    frames = np.random.default_rng(0).integers(0, 255, (2, 90, 120, 3), dtype=np.uint8)
    assert torch.equal(twin.model.preprocess(frames), model.preprocess(frames))


def test_the_text_tower_stays_behind_and_provenance_does_not_notice(model):
    sent = ship(ef.DenseEncoder(model))
    for payload in (sent.planning, sent.full):
        arrived = arrive(payload, device="cpu").model
        assert arrived.text is not None and not list(arrived.text.parameters())
    vision = sum(weight.numel() for weight in model.vision.parameters())
    assert 4 * vision < len(sent.full) < 4 * vision + (1 << 16)
    assert model.text is not None and model.encode_text(["a red circle"]).shape == (
        1,
        model.dim,
    )  # the sender's is whole


def test_an_encoder_in_bfloat16_arrives_in_bfloat16(tmp_path):
    model = ef.load(checkpoints.light(tmp_path), device="cpu", dtype="bfloat16")
    encoder = ef.DenseEncoder(model)
    arrived = arrive(ship(encoder).full, device="cpu")
    pixels = torch.randn(3, 3, model.image_size, model.image_size)
    assert arrived.model.dtype == torch.bfloat16
    assert torch.equal(arrived.encode(pixels), encoder.encode(pixels))


def test_payloads_may_be_fetched_and_may_be_arrays(model):
    full = ship(ef.DenseEncoder(model)).full
    for payload in (lambda: full, np.frombuffer(full, np.uint8), memoryview(full)):
        assert torch.equal(arrive(payload, device="cpu").model.vision.positions, model.vision.positions)


def test_other_versions_are_refused_before_anything_is_unpickled(shipped):
    own = json.dumps({"versions": versions(), "planning": True}).encode()
    assert shipped.planning[4:].startswith(own)
    other = json.dumps({"versions": {**versions(), "torch": "1.2.3"}, "planning": True}).encode()
    payload = len(other).to_bytes(4, "big") + other + b"not a pickle"
    for make in (partial(DecodeStage, sampling=SAMPLING, limits=LIMITS), EncodeStage):
        with pytest.raises(VersionMismatch, match=rf"node \S+ has torch {versions()['torch']} \(driver: 1\.2\.3\)"):
            make(payload)


def test_a_class_of_a_script_is_refused(model, monkeypatch):
    class Own(ef.DenseEncoder):
        pass

    with pytest.raises(TypeError, match="Own cannot be sent"):
        ship(Own(model))
    monkeypatch.setattr(Own, "__module__", "__main__")
    with pytest.raises(TypeError, match="Own is defined in a script; move it to a module"):
        ship(Own(model))


def test_facts_and_arrays_survive_the_wire():
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "none": np.empty((0, 4)), "one": np.float64(0.1)}
    facts, back = unpack(pack({"x": 0.1, "text": "\udce9 ü", "nothing": None}, arrays))
    assert facts == {"x": 0.1, "text": "\udce9 ü", "nothing": None}
    for name, array in arrays.items():
        assert np.array_equal(back[name], array) and back[name].shape == np.shape(array)
    with pytest.raises(ValueError, match=r"array x of \|O8"):
        unpack(pack({}, {"x": np.zeros(1, np.int64)}).replace(b"<i8", b"|O8"))


# --- the same features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "residual", "residual cuts", "adaptive", "two-sided"])
def test_videos_through_the_stages_are_those_of_encode_video(model, clips, name):
    encoder = ENCODERS[name](model)
    sources = [str(clip) for clip in clips]
    tables = decode(encoder, sources)
    expected = {source: encode_video(source, encoder, fps=FPS) for source in sources}
    for source in sources:
        assert_equal(features(encode(encoder, tables[source]), encoder), expected[source])
    together = encode(encoder, [each for source in sources for each in tables[source]])
    for source in sources:
        actual = features([each for each in together if each.task.source == source], encoder)
        assert actual.roles == expected[source].roles and actual.settings == expected[source].settings
        np.testing.assert_allclose(actual.embeddings, expected[source].embeddings, rtol=0, atol=1e-5)


def test_motion_travels_with_the_plan(model, clips):
    encoder, source = ef.ReuseEncoder(model, select="motion", batch_size=12), named(clips, "short")
    expected = encode_video(source, encoder, fps=FPS)
    assert expected.settings["motion_source"] == "codec"
    assert_equal(features(encode(encoder, decode(encoder, [source])[source]), encoder), expected)


def test_clips_of_tempme_through_the_stages(tmp_path, clips):
    model = ef.load(checkpoints.light(tmp_path, depth=4), device="cpu")
    positions = {1: 12, 2: 6, 3: 3}
    given = {block: torch.randn(count, 32) for block, count in positions.items()}
    sampling = ClipSampling(clip_seconds=1.5, frames=12)
    encoder = driven(ef.TempMe(model, **SCHEDULE, positions=given), sampling)
    source = named(clips, "long")
    expected = encode_video(source, ef.TempMe(model, **SCHEDULE, positions=given), clip_seconds=1.5, frames=12)
    assert expected.num_frames == 6
    tables = decode(encoder, [source], sampling)[source]
    assert_equal(features(encode(encoder, tables), encoder, sampling), expected)


def test_a_video_model_can_be_shipped(tmp_path, clips):
    file = video_checkpoints.umt(tmp_path / "umt.pth")
    more = {**video_checkpoints.UMT, "tokenizer": video_checkpoints.bert_tokenizer(tmp_path)}
    tempme = ef.TempMe(ef.load_video(file, device="cpu", **more), r=1, clips={1: 2}, remove_cross=20, remove_intra=10)
    sampling = ClipSampling(clip_seconds=1, frames=tempme.group_size)
    encoder = driven(tempme, sampling)
    sent = ship(encoder)
    pixels = torch.randn(2, tempme.group_size, 3, tempme.model.image_size, tempme.model.image_size)
    plan = Plan.of("II", [])
    assert torch.equal(
        arrive(sent.full, device="cpu").encode_planned(pixels, plan), encoder.encode_planned(pixels, plan)
    )
    packed = tempme.model.preprocess(np.random.default_rng(0).integers(0, 255, (4, 50, 70, 3), dtype=np.uint8))
    chunk = PackedChunk.of(Chunk([0.0], packed[None], Plan.of("I", [])), tempme.model, 0.0)
    assert torch.equal(unpacked([chunk], tempme.model), packed[None])


def test_segments_in_any_order_are_encode_video(model, stage, clips):
    encoder, source = ENCODERS["residual"](model), named(clips, "long")
    segments = split(9.0, encoder, SAMPLING, segment_frames(encoder, SAMPLING, 2.0) / FPS)
    assert len(segments) > 2
    tasks = [Task(key="k", source=source, segment=segment) for segment in reversed(segments)]
    tables = list(stage(task_table(tasks)))
    results = [found for table in reversed(tables) for found in encode(encoder, [table])]
    assert_equal(features(results, encoder), encode_video(source, encoder, fps=FPS))


# --- mixed calls -----------------------------------------------------------------------------------------


class Shape:
    """What `mixed` looks at."""

    def __init__(self, frames: int, more: bool = False) -> None:
        self.chunk = type("", (), {"roles": "I" * frames})
        self.more = more


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("residual", [Shape(6, True), Shape(2), Shape(3), Shape(3)], [[0], [1, 2, 3]]),
        ("residual", [Shape(6), Shape(2), Shape(5), Shape(1)], [[0], [1, 2, 3]]),  # no room for one more group of 3
        ("residual", [Shape(5), Shape(5), Shape(3), Shape(3)], [[0, 2], [1, 3]]),
        ("residual", [Shape(2, True), Shape(2)], [[0], [1]]),
        ("adaptive", [Shape(6), Shape(2), Shape(8), Shape(12), Shape(1)], [[0, 1], [2], [3], [4]]),
        ("two-sided", [Shape(2), Shape(2)], [[0], [1]]),
        ("dense", [], []),
    ],
)
def test_what_shares_a_call(model, name, given, expected):
    assert mixed(given, ENCODERS[name](model)) == expected


def twice(stage: DecodeStage, source: str) -> list[Any]:
    """A short video as two tasks, "a" and "b": tables of a chunk and a closing row each."""
    return list(stage(task_table([Task(key=key, source=source, segment=WHOLE) for key in "ab"])))


def test_the_time_of_a_call_is_shared_out(model, stage, clips):
    tables = twice(stage, named(clips, "tiny"))
    first, second, *closing = encode(ef.ResidualViT(model), tables)
    assert first.encode_seconds == second.encode_seconds > 0 and [each.task.key for each in closing] == ["a", "b"]
    assert min(first.decode_seconds, second.decode_seconds) > 0 and first.decode_seconds != second.decode_seconds
    assert np.array_equal(first.times, second.times) and first.macs == second.macs


def test_a_chunk_that_the_model_fails_on_takes_no_other_along(model, stage, clips):
    encoder, source = ef.ResidualViT(model), named(clips, "tiny")
    first, *others = twice(stage, source)
    (row,) = rows.decoded_rows(first)
    facts, arrays = unpack(row.chunk.head)
    facts["roles"] = "C" + facts["roles"][1:]  # a plan that begins within a group
    bad = PackedChunk(head=pack(facts, arrays), pixels=row.chunk.pixels)
    results = encode(encoder, [rows.decoded_table(row.task, 0, bad, more=False, node="n"), *others])
    (failed,) = [each for each in results if isinstance(each, Closed) and each.failure]
    assert failed.task.key == "a" and failed.chunks is None and failed.failure.kind == "encode"
    expected = f"{source}: the model failed on the frames from 0.00 s on (ValueError: a plan for this encoder begins"
    assert failed.failure.message.startswith(expected)
    assert [each.task.key for each in results if isinstance(each, EncodedChunk)] == ["b"]
    good = [each for each in results if each.task.key == "b"]
    assert_equal(features(good, encoder), encode_video(source, encoder, fps=FPS))


class AsRay:
    """Of Ray what a stage asks: is this process a worker?"""

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> AsRay:
        return self

    def get_actor_id(self) -> str:
        return "actor"

    def get_node_id(self) -> str:
        return "0123456789"


def test_an_encoder_that_fails_for_good_blames_no_video(model, stage, clips, monkeypatch, capfd):
    """As after a CUDA error that stays; simulated: a model that fails from some call on, and what is asked of Ray."""
    encoder = EncodeStage(ship(ef.ResidualViT(model)).full, device="cpu")
    tables = twice(stage, named(clips, "tiny"))
    sick = [False]
    encode_planned = encoder._encoder.encode_planned

    def fails(pixels: Any, plan: Plan) -> Any:
        if sick[0]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return encode_planned(pixels, plan)

    monkeypatch.setattr(encoder._encoder, "encode_planned", fails)
    together = pa.concat_tables(tables)
    (first,) = encoder(together)
    sick[0] = True
    with pytest.raises(WorkerUnfit, match=r"the encoder on cpu failed and does so from now on .*CUDA error"):
        list(encoder(together))

    left: list[int] = []

    def leave(code: int) -> None:
        left.append(code)
        raise SystemExit

    monkeypatch.setattr("everyframe.scale.stages.os", types.SimpleNamespace(_exit=leave))
    monkeypatch.setitem(sys.modules, "ray", AsRay())
    with pytest.raises(SystemExit):
        list(encoder(together))
    assert left == [1] and "this worker ends itself: node" in capfd.readouterr().err
    sick[0] = False
    (again,) = encoder(together)
    assert [each.task for each in rows.results(again)] == [each.task for each in rows.results(first)]


def test_a_chunk_that_fails_alone_is_to_blame(model, stage, clips, monkeypatch):
    """The encoder still does what it did before."""
    encoder = EncodeStage(ship(ef.ResidualViT(model)).full, device="cpu")
    encode_planned, calls = encoder._encoder.encode_planned, []

    def fails(pixels: Any, plan: Plan) -> Any:
        calls.append(len(plan.roles))
        if len(calls) == 2:
            raise RuntimeError("no")
        return encode_planned(pixels, plan)

    monkeypatch.setattr(encoder._encoder, "encode_planned", fails)
    chunk, *_ = twice(stage, named(clips, "tiny"))
    list(encoder(chunk))
    (table,) = encoder(chunk)
    (failed,) = rows.results(table)
    assert isinstance(failed, Closed) and failed.failure.kind == "encode" and calls == [5, 5, 5]


# --- what cannot be read ---------------------------------------------------------------------------------


def read(child: DecodeChild, source: object, sampling: Any = SAMPLING, segment: Segment = WHOLE) -> int:
    """Frames of a segment that is read to its end."""
    found = list(child.read(str(source), sampling, segment))
    assert isinstance(found[-1], Ended)
    return sum(len(each.times) for each in found if isinstance(each, PackedChunk))


def test_a_file_that_is_no_video_or_damaged_leaves_the_child_alone(child, clips, tmp_path):
    pid, cut = child.pid, tmp_path / "cut.avi"
    frames = np.random.default_rng(1).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "whole.avi", frames, fps=10)
    cut.write_bytes((tmp_path / "whole.avi").read_bytes()[:60_000])
    for source in (__file__, tmp_path / "none.mp4", cut):
        with pytest.raises(VideoError) as expected:
            encode_video(str(source), ef.DenseEncoder(ef.load("bundled", device="cpu")), fps=FPS)
        with pytest.raises(VideoError) as error:
            read(child, source)
        # Where damage is noticed depends on the decoder's threads, which are one here.
        said, wanted = (re.sub(r"near [\d.]+ s", "", str(each.value)) for each in (error, expected))
        assert said == wanted and type(error.value) is type(expected.value)
    *chunks, ended = child.read(str(cut), dataclasses.replace(SAMPLING, keep_partial=True), WHOLE)
    assert chunks and isinstance(ended, Ended) and ended.finished.damage
    assert read(child, named(clips, "long")) == 45 and child.pid == pid


def test_what_the_stage_says_of_them(stage, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    sources = [str(tmp_path / name) for name in ("text.mp4", "none.mp4")]
    closed = [
        found
        for table in stage(task_table([Task(key="k", source=each, segment=WHOLE, attempt=2) for each in sources]))
        for found in rows.results(table)
    ]
    assert [each.failure.kind for each in closed] == ["video", "missing"]
    assert [each.failure.attempts for each in closed] == [2, 2]
    assert [each.chunks for each in closed] == [0, 0]
    assert "none.mp4: no such file (on node " in closed[1].failure.message


def test_warnings_come_back_with_the_segment(child, clips):
    *_, ended = child.read(named(clips, "tiny"), Sampling(fps=30), WHOLE)
    assert len(ended.warnings) == 1 and "30 frames per second were asked for" in ended.warnings[0]


def test_a_read_that_nobody_finishes(child, clips):
    pid, reading = child.pid, child.read(named(clips, "long"), SAMPLING, WHOLE)
    next(reading)
    reading.close()
    assert not Path(f"/proc/{pid}").exists()
    assert read(child, named(clips, "tiny")) == 5


# --- poison ----------------------------------------------------------------------------------------------


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A script of cuts that names a pipe nobody writes to: FFmpeg waits for ever."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "endless.ffconcat").write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    return tmp_path / "endless.ffconcat"


def test_a_decoder_that_hangs_is_ended(shipped, clips, endless):
    with DecodeChild(shipped.planning, Limits(seconds=1.5)) as child:
        pid = child.pid
        with pytest.raises(Poisoned, match=r"endless\.ffconcat: the decoder made no progress for 1\.5 s") as error:
            read(child, endless)
        assert error.value.kind == "hang" and not Path(f"/proc/{pid}").exists()


def test_a_decoder_that_crashes_halfway(stage, clips):
    long, tiny = (Task(key=name, source=named(clips, name), segment=WHOLE) for name in ("long", "tiny"))
    tables = stage(task_table([long, tiny]))
    next(tables)
    os.kill(stage._child.pid, signal.SIGSEGV)
    failed, *good = (found for table in tables for found in rows.results(table.slice(0, table["closing"][0].as_py())))
    assert failed.task == long and failed.failure.kind == "crash"
    assert failed.failure.message == f"{long.source}: the decoder crashed (SIGSEGV)"
    assert [(each.task, each.failure, each.chunks) for each in good] == [(tiny, None, 1)]


def test_a_child_that_dies_between_requests_is_nobodys_fault(child, clips):
    pid = child.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert read(child, named(clips, "tiny")) == 5 and child.pid != pid
    reading = child.read(named(clips, "long"), SAMPLING, WHOLE)
    next(reading)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(Poisoned, match=r"long\.mp4: the decoder's process was killed") as error:
        list(reading)
    assert error.value.kind == "crash" and child.pid is None


def test_a_child_that_has_grown_makes_room_for_another(clips):
    with DecodeChild(None, LIMITS) as child:
        pid = child.pid
        assert child.probe(named(clips, "tiny")).fps == 10 and child.pid == pid
        child._process.bytes_at_first = -LIMITS.memory_bytes
        assert child.probe(named(clips, "tiny")).fps == 10 and child.pid != pid


def grey_png(file: Path, width: int, height: int) -> Path:
    """One huge picture in few bytes."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows_of_black = b"".join([*(packer.compress(bytes(1 + width)) for _ in range(height)), packer.flush()])
    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", rows_of_black) + part(b"IEND", b""))
    return file


def test_a_picture_that_takes_all_memory(shipped, tmp_path):
    huge = grey_png(tmp_path / "huge.png", 16000, 16000)
    with DecodeChild(shipped.planning, Limits(memory_bytes=384 << 20)) as child:
        with pytest.raises(Poisoned, match=r"huge\.png: decoding it takes more than the 0\.375 GiB") as error:
            read(child, huge)
        assert error.value.kind == "memory" and child.pid is None
    # Where the system does not enforce the limit, the worker sees it.
    with DecodeChild(None, Limits(memory_bytes=8 << 30)) as child:
        child._process._limits = Limits(memory_bytes=256 << 20)
        with pytest.raises(Poisoned) as error:
            child.probe(str(huge))
        assert error.value.kind == "memory" and child.pid is None


def test_a_slow_decoder_is_not_one_that_hangs(model, tmp_path):
    """No chunk is full for longer than the limit; pictures are decoded all the while."""
    folder = tmp_path / "slow"
    folder.mkdir()
    grey_png(folder / "0.png", 2500, 2500)
    for number in range(1, 60):
        os.link(folder / "0.png", folder / f"{number}.png")
    with DecodeChild(ship(ef.DenseEncoder(model, batch_size=64)).planning, Limits(seconds=3)) as child:
        found = list(child.read(str(folder), Sampling(fps=1), WHOLE))
        assert len(found) == 2 and isinstance(found[0], PackedChunk) and len(found[0].times) == 60


def test_no_child_is_left_where_its_worker_is_killed(endless, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, threading\n"
        "from everyframe.scale.isolation import DecodeChild\n"
        "from everyframe.scale.work import Limits\n"
        "child = DecodeChild(None, Limits(seconds=600))\n"
        "threading.Timer(0.3, print, [child.pid], {'flush': True}).start()\n"
        "child.probe(sys.argv[1])\n"
    )
    command = [sys.executable, str(script), str(endless)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        pid = int(worker.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        worker.kill()
    wait_until_gone(pid)


def wait_until_gone(pid: int) -> None:
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":  # nobody has asked yet how it ended
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} goes on")


HEAD = pack({"roles": "I", "shape": [1, 3, 2, 2], "seconds": 0.1}, {"times": np.zeros(1), **{
    name: np.zeros(count, np.int32) for name, count in (("counts", 1), ("indices", 0), ("lent_counts", 1), ("lent", 0))
}})  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "head", "body"),
    [
        (b"C", b"garbage", b""),
        (b"C", HEAD, bytes(11)),
        (b"C", HEAD.replace(b"[1, 3, 2, 2]", b"[1, 3, 2, -2]"), bytes(12)),
        (b"C", HEAD.replace(b'"I"', b'"P"'), bytes(12)),
        (b"F", b"[]", b""),
        (b"F", b'{"finished": {"what": 1}, "warnings": []}', b""),
        (b"P", b"{}", b""),
        (b"E", b'{"kind": "done", "message": ""}', b""),
        (b"?", b"", b""),
        (b"C", HEAD, b"many"),
    ],
)
def test_a_process_that_talks_nonsense_is_a_crash(shipped, monkeypatch, tmp_path, tag, head, body):
    """What a decoder that has overwritten its own process might say."""
    size = 1 << 40 if body == b"many" else len(body)
    said = struct.pack(">cIQ", b"R", 0, 0) + struct.pack(">cIQ", tag, len(head), size) + head + body
    (tmp_path / "said").write_bytes(said)
    (tmp_path / "python").write_text(f"#!/bin/sh\ncat {tmp_path}/said\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    child = DecodeChild(shipped.planning, Limits(seconds=20))
    pid = child.pid
    with pytest.raises(Poisoned, match="film: the decoder's process said something that makes no sense") as error:
        read(child, "film")
    assert error.value.kind == "crash" and child.pid is None and not Path(f"/proc/{pid}").exists()


def test_what_cannot_start_is_no_fault_of_a_video(shipped, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ChildNotStarted, match="no process can be started here"):
        DecodeChild(shipped.planning, LIMITS)
    monkeypatch.undo()
    with pytest.raises(ChildNotStarted, match=r"UnpicklingError.* \(it may take 4 GiB of memory\)"):
        DecodeChild(shipped.planning[:-9], LIMITS)


def test_a_worker_that_can_start_no_child_is_over(shipped, clips, monkeypatch, tmp_path):
    """It would call what it is given lost, faster than others work."""
    decoder, prober = DecodeStage(shipped.planning, SAMPLING, LIMITS), ProbeStage(LIMITS)
    source = named(clips, "tiny")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    decoder.close()
    prober.close()
    with pytest.raises(ChildNotStarted):
        list(decoder(task_table([Task(key="k", source=source, segment=WHOLE)])))
    with pytest.raises(ChildNotStarted):
        list(prober(pa.Table.from_pylist([rows.source_row(source)])))


def test_what_a_name_says_is_not_why(child, clips, tmp_path):
    """Of files, folders, and images in them."""
    pid, folder = child.pid, tmp_path / "bad_alloc"
    folder.mkdir()
    for name in ("MemoryError-1.jpg", "MemoryError-2.jpg"):
        (folder / name).write_bytes(b"no image")
    (folder / "Cannot allocate memory.mp4").write_bytes(b"no video")
    for source in (folder, folder / "Cannot allocate memory.mp4", folder / "MemoryError.mp4"):
        with pytest.raises(VideoError):
            read(child, source)
        with pytest.raises(VideoError):
            read(child, f"file://{source}")
    assert child.pid == pid


def test_what_was_said_of_an_earlier_video_is_not_why(child, clips):
    Path(f"/proc/{child.pid}/fd/2").write_text("std::bad_alloc\n")  # what a library prints and goes on
    assert read(child, named(clips, "tiny")) == 5
    reading = child.read(named(clips, "long"), SAMPLING, WHOLE)
    next(reading)
    os.kill(child.pid, signal.SIGSEGV)
    with pytest.raises(Poisoned, match=r"the decoder crashed \(SIGSEGV\)") as error:
        list(reading)
    assert error.value.kind == "crash"


@pytest.mark.parametrize("comes", [True, False])
def test_a_large_answer_takes_memory_as_it_comes(shipped, monkeypatch, tmp_path, comes):
    size = 3 * 3200 * 3200
    head = HEAD.replace(b"[1, 3, 2, 2]", b"[1, 3, 3200, 3200]")
    head = (int.from_bytes(head[:4], "big") + len(head) - len(HEAD)).to_bytes(4, "big") + head[4:]
    body = np.random.default_rng(0).bytes(size)
    said = struct.pack(">cIQ", b"R", 0, 0) + struct.pack(">cIQ", b"C", len(head), size if comes else 3 << 30) + head
    (tmp_path / "said").write_bytes(said + (body if comes else b"little"))
    (tmp_path / "python").write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with DecodeChild(shipped.planning, Limits(seconds=20)) as child:
        tracemalloc.start()
        try:
            reading = child.read("film", SAMPLING, WHOLE)
            if comes:
                assert bytes(next(reading).pixels) == body
            with pytest.raises(Poisoned, match="film: the decoder's process ended with code 0"):
                next(reading)
            assert tracemalloc.get_traced_memory()[1] < (5 * size if comes else 64 << 20)
        finally:
            tracemalloc.stop()


# --- probing ---------------------------------------------------------------------------------------------


def test_tables_without_rows(stage, model):
    """Ray's have no columns either."""
    nothing = pa.table({})
    assert list(stage(nothing)) == []
    (encoded,) = EncodeStage(ship(ef.DenseEncoder(model)).full, device="cpu")(nothing)
    assert encoded.num_rows == 0 and list(rows.results(encoded)) == []


def test_probing(clips, endless, tmp_path):
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.mp4")
    os.link(named(clips, "tiny"), strange)
    (tmp_path / "text.mp4").write_text("no video")
    sources = [named(clips, "long"), str(tmp_path / "text.mp4"), str(endless), str(tmp_path / "none.mp4"), strange]
    stage = ProbeStage(Limits(seconds=1.5))
    (table,) = stage(pa.Table.from_pylist([rows.source_row(source) for source in sources]))
    stage.close()
    found = list(rows.probes(table))
    assert [each.source for each in found] == sources
    kinds = [each.failure and each.failure.kind for each in found]
    assert kinds == [None, "video", "hang", "missing", None]
    assert (found[0].duration_seconds, found[0].fps) == (9.0, 10.0)
    expected = encode_video(sources[0], ef.DenseEncoder(ef.load("bundled", device="cpu")), fps=1).video
    assert found[0].identity == {name: expected[name] for name in ("size_bytes", "fingerprint")}
    assert found[4].identity["size_bytes"] == os.path.getsize(strange)
    assert pickle.loads(pickle.dumps(found)) == found
