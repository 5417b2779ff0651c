"""The driver without a cluster: a made-up one reads at once, so what it decides and writes is seen in milliseconds."""

from __future__ import annotations

import contextlib
import itertools
import random
import types
from pathlib import Path

import numpy as np
import pytest

import everyframe as ef
from everyframe.features.shards import read_shard
from everyframe.pipeline import Sampling
from everyframe.pipeline.decoding import Finished as ReadingFinished
from everyframe.pipeline.segments import WHOLE, Segment, SegmentFeatures, SegmentsError
from everyframe.scale import rows
from everyframe.scale.events import ChunkDone, Finished, Started, VideoDone
from everyframe.scale.gather import Gather, Lost
from everyframe.scale.keys import video_part
from everyframe.scale.listing import Listed, Listing
from everyframe.scale.manifest import Manifest, key_of
from everyframe.scale.places import open_place
from everyframe.scale.rows import Closed, EncodedChunk, Probed
from everyframe.scale.run import Output, Plan, Run
from everyframe.scale.sinks import open_sink
from everyframe.scale.staging import Staging
from everyframe.scale.work import Failure, Limits, Stages, Task
from everyframe.scale.work_list import resumed
from everyframe.scale.writer import GivenUp, Misfit, Part, Writer

FPS = 3.0


class World:
    """Videos by source: (fingerprint, seconds). Reading one answers with its features, of one chunk a segment."""

    def __init__(self, dim: int, **videos: tuple[str, float]) -> None:
        self.dim, self.videos = dim, videos
        self.replaced: dict[str, str] = {}  # fingerprints that reading finds
        self.read: list[Segment] = []

    def identity(self, source: str) -> dict[str, object]:
        return {"size_bytes": 5, "fingerprint": self.videos[source][0]}

    def probe(self, source: str) -> Probed:
        seconds = self.videos[source][1]
        return Probed(source=source, duration_seconds=seconds, fps=25.0, identity=self.identity(source))

    def features(self, source: str, segment: Segment) -> SegmentFeatures:
        fingerprint, seconds = self.videos[source]
        fingerprint = self.replaced.get(source, fingerprint)
        end = round(seconds * FPS) if segment.stop is None else segment.stop
        frames = np.arange(segment.first, end)
        rng = np.random.default_rng(list(fingerprint.encode()))
        facts = {"path": source, "duration_seconds": seconds, "size_bytes": 5, "fingerprint": fingerprint}
        return SegmentFeatures(
            segment=segment,
            times=frames / FPS,
            embeddings=rng.standard_normal((1000, self.dim)).astype(np.float32)[frames],
            roles="".join("IPPPPPPP"[frame % 8] for frame in frames),
            macs=1.0,
            finished=ReadingFinished(video=facts, end_seconds=seconds if segment.stop is None else None),
        )

    def take(self, task: Task) -> list[EncodedChunk | Closed]:
        self.read.append(task.segment)
        part = self.features(task.source, task.segment)
        return [chunk(task, part), Closed(task=task, chunks=1, finished=part.finished)]


def chunk(task: Task, part: SegmentFeatures, number: int = 0) -> EncodedChunk:
    facts = {"times": part.times, "roles": part.roles, "embeddings": part.embeddings, "macs": part.macs}
    work = {"decode_seconds": 0.1, "encode_seconds": 0.1, "decode_node": "n", "encode_node": "n"}
    return EncodedChunk(task=task, number=number, **facts, **work)


class OnePass:
    """Of a cluster: answers a task at a time; killed: the driver is interrupted after so many."""

    ended = True

    def __init__(self, world: World, killed: int | None) -> None:
        self._world, self._left, self._killed = world, [], killed

    def probe(self, groups, limits, pools):
        self._left = [lambda source=source: [self._world.probe(source)] for group in groups for source in group]
        self._killed_at = None

    def encode(self, groups, recipe, pools):
        self._left = [lambda task=task: self._world.take(task) for group in groups for task in group]
        self._killed_at = self._killed

    def take(self, seconds):
        if self._killed_at == 0:
            raise KeyboardInterrupt
        if self._killed_at is not None:
            self._killed_at -= 1
        tables = [self._left.pop(0)()] if self._left else []
        return types.SimpleNamespace(tables=tables, ended=not self._left, error=None, workers=(1, 1))

    def close(self):
        pass


@pytest.fixture
def drive(light, tmp_path, monkeypatch):
    """One run over all videos of a world; its events. before_close: is called before the sink writes its last."""
    monkeypatch.setattr(rows, "results", lambda table: table)
    monkeypatch.setattr(rows, "probes", lambda table: table)
    monkeypatch.setattr(Run, "_recipe", lambda self: None)
    node = types.SimpleNamespace(id="n", cpus=2.0, gpus=0.0)
    cluster = types.SimpleNamespace(
        check_versions=lambda: None, nodes=lambda: [node], pools=lambda *_: None, address="none", gone=False
    )
    numbers = itertools.count()

    def drive(
        world, *, format="npz", segment_seconds=600.0, batch_size=8, killed=None, before_close=None, session_closed=None
    ):
        encoder = ef.ResidualViT(light, batch_size=batch_size)
        plan = Plan(
            encoder=encoder,
            sampling=Sampling(fps=FPS),
            dtype="float32",
            stages=Stages(),
            limits=Limits(),
            attempts=2,
            segment_seconds=segment_seconds,
            stall_seconds=900.0,
        )
        heard, place, name = [], open_place(tmp_path / "out"), f"run{next(numbers)}"
        with Manifest(place, run=name) as manifest:
            sink = open_sink(place, format, manifest=manifest, provenance=plan.provenance)
            close = sink.close
            monkeypatch.setattr(sink, "close", lambda: (before_close and before_close(), close())[1])
            listing = Listing(videos=[Listed(source, source.strip("/")) for source in world.videos])
            output = Output(place=place, manifest=manifest, staging=Staging(place), sink=sink)
            run = Run(name, plan, listing, output, cluster, None, heard.append)
            flow = OnePass(world, killed)
            monkeypatch.setattr(run._session, "flow", lambda: contextlib.nullcontext(flow))
            if session_closed is not None:
                monkeypatch.setattr(run._session, "close", session_closed)
            run.run()
        assert isinstance(heard[-1], Finished)
        return heard

    drive.dim = light.dim
    return drive


def videos_in(folder: Path) -> list[tuple[str, str]]:
    """(path, fingerprint) of all videos in the shards of an output."""
    found = [feats for shard in sorted(folder.glob("*.tar")) for _, feats in read_shard(shard)]
    return [(feats.video["path"], feats.video["fingerprint"]) for feats in found]


def done(heard):
    return {event.source: event.status for event in heard if isinstance(event, VideoDone)}


@pytest.mark.parametrize("segment_seconds", [600.0, 8.0])
def test_a_video_that_is_replaced_between_its_probe_and_its_reading(drive, tmp_path, segment_seconds):
    """Its new content does not pass for the old one, nor is it in the output twice later."""
    world = World(drive.dim, **{"/v/a.mp4": ("old", 60.0), "/v/b.mp4": ("other", 20.0)})
    world.replaced["/v/a.mp4"] = "new"
    heard = drive(world, format="webdataset", segment_seconds=segment_seconds)
    assert done(heard) == {"/v/a.mp4": "failed", "/v/b.mp4": "done"}
    (failure,) = [event.failure for event in heard if isinstance(event, VideoDone) and event.failure]
    assert failure.kind == "output" and "/v/a.mp4: it was changed or removed while the run was at" in failure.message
    assert videos_in(tmp_path / "out") == [("/v/b.mp4", "other")]
    world.videos["/v/a.mp4"] = ("new", 60.0)
    heard = drive(world, format="webdataset", segment_seconds=segment_seconds)
    assert done(heard) == {"/v/a.mp4": "done"}
    assert sorted(videos_in(tmp_path / "out")) == [("/v/a.mp4", "new"), ("/v/b.mp4", "other")]


@pytest.mark.parametrize("second", [{"segment_seconds": 24.0}, {"batch_size": 48}, {"segment_seconds": 600.0}])
def test_another_split_goes_on_with_the_parts_that_are_there(drive, tmp_path, second):
    world = World(drive.dim, **{"/v/a.mp4": ("x", 100.0)})
    drive(world, segment_seconds=16.0, killed=4)
    before, world.read = list(world.read), []
    assert before == [Segment(0, 48), Segment(48, 96), Segment(96, 144), Segment(144, 192)]
    heard = drive(world, **{"segment_seconds": 16.0, **second})
    assert done(heard) == {"/v/a.mp4": "done"} and WHOLE not in world.read
    read = sum(300 - each.first if each.stop is None else each.stop - each.first for each in world.read)
    assert read == 300 - 192  # the rest
    feats = ef.VideoFeatures.load(tmp_path / "out/v/a.mp4.npz")
    assert np.array_equal(feats.embeddings, world.features("/v/a.mp4", WHOLE).embeddings)
    assert not list((tmp_path / "out/.everyframe/parts").rglob("*.segment"))


def test_a_split_that_goes_on_with_others_parts():
    """Whatever is there and asked for: the segments follow each other, from 0 to the end, and use what they can."""
    rng = random.Random(7)
    assert resumed([WHOLE], [Segment(0, 48)]) == [Segment(0, 48), Segment(48, None)]
    halves = [Segment(0, 24), Segment(24, 48), Segment(48, None)]
    assert resumed(halves, [Segment(0, 40)]) == [Segment(0, 40), Segment(40, None)]
    assert resumed(halves, [Segment(24, None)]) == [Segment(0, 24), Segment(24, None)]
    for _ in range(300):
        length = 8 * rng.randint(1, 9)
        firsts = range(0, length * rng.randint(1, 9), length)
        new = [Segment(*each) for each in zip(firsts, [*firsts[1:], None], strict=True)]
        have = []
        for _ in range(rng.randint(1, 5)):
            first = 8 * rng.randint(0, 40)
            have.append(Segment(first, rng.choice([first + 8 * rng.randint(1, 20), None])))
        found = resumed(new, have)
        assert found[0].first == 0 and found[-1].stop is None and set(found) & set(have)
        assert all(one.stop == two.first and one.first < one.stop for one, two in itertools.pairwise(found))


def test_features_that_are_lost_while_they_wait_for_a_shard_are_told(drive, tmp_path):
    world = World(drive.dim, **{"/v/a.mp4": ("a", 20.0), "/v/b.mp4": ("b", 20.0)})

    def damage():
        file = min((tmp_path / "out/.everyframe/pending").iterdir())
        lost.append(ef.VideoFeatures.load(file.rename(tmp_path / "x.npz")).video["path"])
        file.write_bytes((tmp_path / "x.npz").read_bytes()[:100])

    lost: list[str] = []
    heard = drive(world, format="webdataset", before_close=damage)
    assert [event.status for event in heard if isinstance(event, VideoDone)] == ["done", "done", "failed"]
    (failure,) = [event.failure for event in heard if isinstance(event, VideoDone) and event.failure]
    assert [failure.source] == lost and "were damaged before they were in a shard; run again" in failure.message
    with Manifest(open_place(tmp_path / "out")) as manifest:
        assert sorted((each.status, each.kind) for each in manifest.entries()) == [("done", None), ("failed", "output")]
    assert done(drive(world, format="webdataset")) == {lost[0]: "done"}
    assert sorted(videos_in(tmp_path / "out")) == [("/v/a.mp4", "a"), ("/v/b.mp4", "b")]


def test_the_last_write_is_part_of_the_run(drive):
    """It may take minutes, in which the cluster is held: so it is in the time and in the cost."""
    order: list[str] = []
    world = World(drive.dim, **{"/v/a.mp4": ("a", 20.0)})
    drive(world, before_close=lambda: order.append("written"), session_closed=lambda: order.append("closed"))
    assert order == ["written", "closed"]


def test_a_second_run_finds_all_of_it(drive):
    world = World(drive.dim, **{"/v/a.mp4": ("a", 60.0), "/v/b.mp4": ("a", 60.0)})
    heard = drive(world, segment_seconds=16.0)
    assert done(heard) == {"/v/a.mp4": "done", "/v/b.mp4": "duplicate"}
    assert sum(event.frames for event in heard if isinstance(event, ChunkDone)) == 180
    heard = drive(world, segment_seconds=16.0)
    (started,) = [event for event in heard if isinstance(event, Started)]
    assert started.skipped == 2 and not done(heard)


# --- its parts ---------------------------------------------------------------------------------------------


def test_nothing_is_kept_of_a_video_that_was_given_up():
    world, gather = World(4, v=("a", 10.0)), Gather(4)
    tasks = [Task(key="k", source="v", segment=Segment(first, first + 8)) for first in (0, 8)]
    gather.expect(tasks)
    for task in tasks:
        piece = chunk(task, world.features("v", task.segment))
        assert gather.is_news(piece) and gather.add(piece) is None
    lost = Failure(source="v", kind="crash", message="died")
    assert isinstance(gather.add(Closed(task=tasks[0], chunks=1, failure=lost)), Lost)
    gather.drop("k", [task.segment for task in tasks])
    assert not gather._counted and not gather._open and gather.missing() == []
    assert not gather.is_news(piece) and gather.add(piece) is None  # what comes late


@pytest.fixture
def writing(tmp_path):
    """Outcomes of a writer for a list of parts, of a video that never fits together."""

    def write(parts: list[Part], before_last=lambda: None):
        def join(given):
            list(given)
            raise SegmentsError("v: it must be read in one piece")

        place = open_place(tmp_path)
        with Manifest(place) as manifest:
            sink = open_sink(place, "npz", manifest=manifest, provenance={"model": {}, "settings": {}})
            writer = Writer(Staging(place), sink, join)
            for part in parts:
                if part.last:
                    writer.flush()
                    before_last()
                assert writer.put(part, 60.0)
            writer.flush(close=True)
            return list(writer.outcomes())

    return write


def parts_of(segments: list[Segment]) -> list[Part]:
    world = World(4, v=("a", 10.0))
    key = f"{video_part('v', world.identity('v'))}-0123456789ab"
    only = len(segments) == 1
    return [
        Part(key=key, listed=Listed("v", "v"), features=world.features("v", each), only=only, last=each.stop is None)
        for each in segments
    ]


def test_a_video_in_one_piece_that_does_not_fit_together_is_given_up(writing):
    """Instead of being read in one piece again, and again."""
    first, *_ = writing(parts_of([WHOLE]))
    assert isinstance(first, GivenUp) and first.failure.kind == "video"


def test_a_part_that_is_damaged_while_the_run_is_at_work_stops_no_other_video(writing, tmp_path):
    def damage():
        (file,) = (tmp_path / ".everyframe/parts").rglob("*.segment")
        file.write_bytes(b"damaged")

    first, *_ = writing(parts_of([Segment(0, 24), Segment(24, None)]), damage)
    assert isinstance(first, Misfit) and "0-24.segment was damaged or removed meanwhile" in first.message
    assert not list((tmp_path / ".everyframe/parts").rglob("*.segment"))


def test_the_keys_of_a_world_are_those_of_features(drive, tmp_path):
    """What these tests stand on."""
    world = World(drive.dim, **{"/v/a.mp4": ("a", 20.0)})
    heard = drive(world)
    (key,) = [event.key for event in heard if isinstance(event, VideoDone)]
    assert key_of(ef.VideoFeatures.load(tmp_path / "out/v/a.mp4.npz")) == key
