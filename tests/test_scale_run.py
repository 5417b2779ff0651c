"""The driver on a real cluster of two nodes: the same features, every video once, whatever is in the list."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import everyframe as ef
import scale_cases as cases
from everyframe import scale
from everyframe.cli.cluster_view import one_line, picture
from everyframe.pipeline import ClipSampling
from everyframe.pipeline.decoding import Finished as ReadingFinished
from everyframe.pipeline.segments import WHOLE, Segment
from everyframe.scale.cluster import Node, fits, pools_for
from everyframe.scale.events import Finished, Nodes, Probing, RoundStarted, SegmentFailed, Started, VideoDone
from everyframe.scale.gather import Gather, Lost, Whole
from everyframe.scale.listing import Listed
from everyframe.scale.progress import Progress
from everyframe.scale.rows import Closed, EncodedChunk
from everyframe.scale.session import Session
from everyframe.scale.work import Failure, Task
from everyframe.scale.work_list import Video, WorkList, limit

pytest.importorskip("ray")

STAGES = scale.Stages(decoders=(1, 2), encoders=(1, 1))  # a worker more takes seconds to start and has nothing to do


@pytest.fixture(scope="module")
def cluster():
    started = cases.LocalCluster(nodes=2)
    yield started
    started.close()


@pytest.fixture(scope="module")
def encoder(light):
    return ef.ResidualViT(light, batch_size=8)


@pytest.fixture(scope="module")
def mixed(cluster, encoder, tmp_path_factory):
    """One run over all kinds of videos and of trouble, and what it said."""
    folder = tmp_path_factory.mktemp("mixed")
    good = cases.videos(folder / "good", "video", [41, 4, 3.3, 2, 0.5, 8])
    crash, hang = cases.videos(folder, "poison", [11, 11], size=(480, 640))  # a segment each
    (folder / "good" / "copy.mp4").write_bytes(good[1].read_bytes())
    damaged = folder / "damaged.mp4"
    damaged.write_bytes(good[0].read_bytes()[:4000])
    rows = ["path", str(crash), str(hang), str(damaged), str(folder / "gone.mp4"), str(good[1]), ""]
    rows += ["s3://nobodys-bucket-of-everyframe/a.mp4"]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    with cases.Poison({crash: signal.SIGSEGV, hang: signal.SIGSTOP}) as poison:
        heard = cases.Heard(
            cases.once(lambda: setattr(poison, "armed", True), lambda event: isinstance(event, Started))
        )
        report = scale.encode(
            [folder / "good", folder / "list.csv"],
            encoder,
            out=folder / "out",
            cluster=cluster.address,
            segment_seconds=8,
            attempts=2,
            stages=STAGES,
            limits=scale.Limits(seconds=20),
            listeners=[heard],
        )
    return folder, good, heard, report, poison


def test_features_are_those_of_one_machine(mixed, encoder):
    folder, good, heard, _, _ = mixed
    done = [event for event in heard.of(VideoDone) if event.status == "done"]
    assert len(done) == len(good)
    for event in done:
        alone = ef.encode_video(event.source, encoder, fps=cases.FPS)
        feats = ef.VideoFeatures.load(folder / "out" / event.output)
        assert np.array_equal(feats.times, alone.times) and feats.roles == alone.roles
        assert feats.video == alone.video and feats.model == alone.model and feats.settings == alone.settings
        np.testing.assert_allclose(feats.embeddings, alone.embeddings, atol=1e-5)
    assert heard.encoded()["video0.mp4"] == 123


def test_a_long_video_is_read_in_segments_by_both_nodes_bit_for_bit(mixed, encoder):
    folder, good, heard, _, _ = mixed
    started = heard.of(Started)[0]
    assert started.segments > started.videos
    # What has more of its video after it is encoded alone: all of this one but its last chunk.
    alone = ef.encode_video(good[0], encoder, fps=cases.FPS)
    feats = ef.VideoFeatures.load(folder / "out" / "video0.npz")
    assert np.array_equal(feats.embeddings[:112], alone.embeddings[:112])


def test_poison_is_given_up_with_its_reason_and_the_rest_goes_on(mixed):
    _, good, heard, report, poison = mixed
    status = heard.status()
    assert sorted([status.pop("copy.mp4"), status.pop("video1.mp4")]) == ["done", "duplicate"]
    assert status == {
        **{path.name: "done" for path in good if path.name != "video1.mp4"},
        "damaged.mp4": "failed",
        "gone.mp4": "failed",
        "a.mp4": "failed",
        "poison0.mp4": "quarantined",
        "poison1.mp4": "quarantined",
    }
    lost = {event.source: event for event in heard.of(VideoDone) if "poison" in event.source}
    assert [event.status for event in lost.values()] == ["quarantined", "quarantined"]
    assert {event.failure.kind for event in lost.values()} == {"crash", "hang"}
    assert all(event.failure.attempts == 2 and event.source in event.failure.message for event in lost.values())
    assert len(poison.sent) >= 4  # each video was tried twice, each time in a process of its own
    tries = [(event.attempt, event.again) for event in heard.of(SegmentFailed) if event.source in lost]
    assert sorted(tries) == [(1, True), (1, True), (2, False), (2, False)]
    # A machine with much else to do may take others for stuck, too, once.
    assert report.tries_failed["crash"] == 2 and report.tries_failed["hang"] >= 2 and not report.good
    numbers = [event.number for event in heard.of(RoundStarted)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 2


def test_bad_rows_are_counted_and_told(mixed):
    folder, _, heard, report, _ = mixed
    started = heard.of(Started)[0]
    assert (started.duplicates, started.missing) == (1, 2)  # video1 twice; gone.mp4, and no credentials for the bucket
    told = {Path(event.source).name: event.failure for event in heard.of(VideoDone) if event.failure}
    assert told["gone.mp4"].kind == told["a.mp4"].kind == "missing"
    assert "credentials" in told["a.mp4"].message and "AWS_ACCESS_KEY_ID" in told["a.mp4"].message
    assert told["damaged.mp4"].kind == "video" and told["damaged.mp4"].attempts == 1
    assert isinstance(heard.events[0], Probing) and isinstance(heard.events[1], Nodes)
    looked = heard.of(Probing)
    assert len({(event.run, event.total) for event in looked}) == 1 and looked[0].run == started.run
    assert (looked[0].done, looked[-1].done) == (0, looked[0].total) and looked[0].total >= 10
    assert isinstance(heard.events[-1], Finished) and not heard.events[-1].interrupted
    assert report.videos == {
        "done": 6,
        "partial": 0,
        "skipped": 0,
        "adopted": 0,
        "duplicate": 1,
        "failed": 3,
        "quarantined": 2,
    }
    assert (folder / "out" / ".everyframe" / report.file_name).read_text() == report.to_json()


def test_the_content_of_a_copy_is_there_once(mixed):
    folder, _, _, _, _ = mixed
    assert (folder / "out" / "copy.npz").exists() != (folder / "out" / "video1.npz").exists()
    lines = [line for line in cases.manifest_lines(folder / "out") if line.get("status") == "duplicate"]
    assert len(lines) == 1 and (folder / "out" / lines[0]["output"]).is_file()


def test_a_second_run_has_nothing_to_do_and_says_what_was_given_up(mixed, cluster, encoder):
    folder, _, _, _, _ = mixed
    heard = cases.Heard()
    report = scale.encode(
        [folder / "good", folder / "list.csv"],
        encoder,
        out=folder / "out",
        cluster=cluster.address,
        segment_seconds=8,
        attempts=2,
        listeners=[heard],
    )
    assert report.videos["skipped"] == 7 and not heard.encoded() and not heard.of(RoundStarted)
    again = {Path(event.source).name: event for event in heard.of(VideoDone)}
    assert set(again) == {"poison0.mp4", "poison1.mp4", "damaged.mp4", "gone.mp4", "a.mp4"}
    assert (
        "as in an earlier run" in again["poison0.mp4"].failure.message and again["poison0.mp4"].status == "quarantined"
    )


def test_sigterm_ends_in_order_and_what_is_durable_stays(cluster, light, tmp_path):
    clips = cases.videos(tmp_path / "in", "video", [2 + 0.5 * index for index in range(12)])
    stop = cases.once(lambda: os.kill(os.getpid(), signal.SIGTERM), lambda event: isinstance(event, VideoDone))
    heard = cases.Heard(stop)
    stages = scale.Stages(decoders=(1, 1), encoders=(1, 1))
    encoder = ef.DenseEncoder(light)
    report = scale.encode(
        clips, encoder, out=tmp_path / "out", cluster=cluster.address, stages=stages, listeners=[heard]
    )
    assert report.interrupted and heard.events[-1].interrupted
    done = {Path(event.source).stem for event in heard.of(VideoDone) if event.status == "done"}
    assert done == {path.stem for path in (tmp_path / "out").glob("*.npz")}


def test_nodes_with_another_version_are_named_before_any_work(cluster, encoder, tmp_path):
    clips = cases.videos(tmp_path / "in", "video", [2])
    other = tmp_path / "site"
    shutil.copytree(
        Path(ef.__file__).parent, other / "everyframe", ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    (other / "everyframe-9.9.9.dist-info").mkdir()
    (other / "everyframe-9.9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: everyframe\nVersion: 9.9.9\n"
    )
    node = cluster.add(env_vars={"PYTHONPATH": str(other)})
    try:
        with pytest.raises(scale.ClusterError, match=rf"{node.node_id[:8]} has everyframe 9\.9\.9 \(here "):
            scale.encode(clips, encoder, out=tmp_path / "out", cluster=cluster.address)
        assert not list((tmp_path / "out").glob("*.npz"))
    finally:
        cluster.remove(node)


# --- clusters that are not there -------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path):
    return cases.videos(tmp_path / "in", "video", [1])[0]


def test_nobody_answers(clip, encoder, tmp_path):
    began = time.monotonic()
    for cluster in (f"127.0.0.1:{cases.free_port()}", f"ray://127.0.0.1:{cases.free_port()}"):
        with pytest.raises(scale.ClusterError, match="cannot be reached"):
            scale.encode([clip], encoder, out=tmp_path / "out", cluster=cluster)
    assert time.monotonic() - began < 30 and not (tmp_path / "out").exists()


def test_somebody_else_answers(clip, encoder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(scale.ClusterError, match="is not the head node of a Ray cluster"):
            scale.encode([clip], encoder, out=tmp_path / "out", cluster=f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"cluster": "somewhere"}, ValueError, "cluster must be"),
        ({"dtype": "float64"}, ValueError, "dtype"),
        ({"attempts": 0}, ValueError, "attempts must be"),
        ({"segment_seconds": 0}, ValueError, "segment_seconds must be"),
        ({"fps": 2, "sampling": ClipSampling()}, ValueError, "give either sampling"),
        ({"sampling": ClipSampling()}, ValueError, "clips are read by TempMe alone"),
    ],
)
def test_bad_arguments(clip, encoder, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        scale.encode([clip], encoder, out=tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


# --- without a cluster -----------------------------------------------------------------------------------


def _chunk(task: Task, number: int, frames: int = 2) -> EncodedChunk:
    facts = {"macs": 1.0, "decode_seconds": 0.0, "encode_seconds": 0.0, "decode_node": "a", "encode_node": "a"}
    times = np.arange(frames) + 10.0 * number
    rows = np.full((frames, 3), number, np.float32)
    return EncodedChunk(task=task, number=number, times=times, roles="I" * frames, embeddings=rows, **facts)


def test_chunks_in_any_order_and_twice_make_a_segment_once():
    task = Task(key="k", source="s", segment=WHOLE)
    gather = Gather(3)
    gather.expect([task])
    closed = Closed(task=task, chunks=3, finished=ReadingFinished())
    results = [_chunk(task, 2), closed, _chunk(task, 0), _chunk(task, 2), closed]
    assert [gather.add(each) for each in results] == [None] * 5
    whole = gather.add(_chunk(task, 1, frames=1))
    assert isinstance(whole, Whole) and whole.features.times.tolist() == [0, 1, 10, 20, 21]
    assert whole.features.macs == 3 and whole.features.embeddings[:, 0].tolist() == [0, 0, 1, 2, 2]
    assert gather.add(_chunk(task, 1)) is None and gather.add(closed) is None and not gather.missing()


def test_what_comes_late_of_an_earlier_try_is_not_taken():
    first, second = (Task(key="k", source="s", segment=WHOLE, attempt=attempt) for attempt in (1, 2))
    gather = Gather(3)
    gather.expect([first])
    assert gather.is_news(_chunk(first, 0)) and gather.add(_chunk(first, 0)) is None
    failure = Failure(source="s", kind="crash", message="s: it crashed")
    lost = gather.add(Closed(task=first, chunks=1, failure=failure))
    assert isinstance(lost, Lost) and lost.failure == failure
    gather.expect([second])
    assert not gather.is_news(_chunk(second, 0))  # that part of the video was counted before
    assert gather.add(_chunk(first, 1)) is None
    gather.add(_chunk(second, 0))
    whole = gather.add(Closed(task=second, chunks=1, finished=ReadingFinished()))
    assert isinstance(whole, Whole) and len(whole.features.times) == 2


def test_an_empty_segment_is_whole():
    task = Task(key="k", source="s", segment=Segment(30, None))
    gather = Gather(3)
    gather.expect([task])
    whole = gather.add(Closed(task=task, chunks=0, finished=ReadingFinished()))
    assert isinstance(whole, Whole) and whole.features.embeddings.shape == (0, 3)


def _video(index: int, seconds: float, segments: set[Segment]) -> Video:
    listed = Listed(source=f"/v{index}", name=f"v{index}")
    return Video(f"k{index}", listed, seconds=seconds, segments=segments, left=set(segments))


def test_short_videos_share_a_group_and_what_failed_is_alone():
    work = WorkList(calls_per_second=0.1, fps=3.0)
    for index in range(40):
        work.add(_video(index, 10.0, {WHOLE}))  # a call each
    work.add(_video(40, 100.0, {Segment(0, 150), Segment(150, None)}))  # five calls each
    groups = work.groups(workers=2)
    assert [len(group) for group in groups] == [4] * 10 + [1, 1]
    assert [task.segment.first for group in groups[-2:] for task in group] == [0, 150]
    assert not work
    for key in ("k3", "k4"):
        work[key].failed(WHOLE, "crash")
        work.again(work[key], WHOLE)
    assert [[(task.key, task.attempt) for task in group] for group in work.groups(1)] == [[("k3", 2)], [("k4", 2)]]


def test_how_far_the_look_at_the_videos_is():
    progress = Progress()
    assert one_line(progress) == "looking at the videos"
    progress(Probing(run="r", done=120, total=4000))
    assert one_line(progress) == str(picture(progress)) == "looked at 120 of 4,000 videos"
    progress(Started(run="r", listed=1, duplicates=0, missing=0, skipped=0, videos=1, segments=1, seconds=8.0))
    assert one_line(progress).startswith("0/1 videos")


class Limping:
    """A cluster as the session sees it, whose nodes are these."""

    gone = False

    def __init__(self, names: str) -> None:
        self.names = names

    def nodes(self) -> list[Node]:
        return [Node(id=name, address="a", cpus=2, gpus=0) for name in self.names]


def test_after_the_loss_of_a_node_a_pass_is_ended_sooner_where_workers_do_not_come_back(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("everyframe.scale.session.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(
        "everyframe.scale.session.Pass", lambda cluster: SimpleNamespace(ended=True, close=lambda: None)
    )
    cluster = Limping("abc")
    session = Session(cluster, scale.Stages(), scale.Limits(seconds=120), 900.0, lambda event: None)
    session.tick()

    def patience() -> int:
        """Seconds, to the next ten."""
        return next(seconds for seconds in range(0, 2000, 10) if session.is_stalled(clock[0] - seconds - 1))

    with session.flow():
        session.workers = (3, 2)
        assert patience() == 900
        clock[0] += 10
        cluster.names = "ab"
        session.tick()
        assert patience() == 150 and session.lost_node
        session.workers = (3, 1)  # an encoder that finds no room
        assert patience() == 60
    clock[0] += 1
    with session.flow():
        session.workers = (1, 1)
        assert patience() == 900 and not session.lost_node
        cluster.names = ""
        clock[0] += 10
        session.tick()
    clock[0] += 3600
    session.close()
    assert session.usage.node_hours == pytest.approx((3 * 10 + 2 * 11) / 3600) and session.usage.wall_seconds == 3621


def test_what_is_settled_waits_no_longer():
    work = WorkList(calls_per_second=0.1, fps=3.0)
    for index in range(3):
        work.add(_video(index, 10.0, {WHOLE}))
    work.drop("k0")
    work["k1"].left.clear()
    assert len(work) == 1 and [task.key for group in work.groups(1) for task in group] == ["k2"]
    work.whole(work["k2"])
    assert work
    work.drop("k2")
    assert not work


def test_what_a_worker_takes_down_with_it_has_more_tries():
    assert [limit(kind, 3) for kind in ("missing", "video", "crash", "hang", "lost")] == [1, 1, 3, 3, 6]


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([(2, 0)], 1, 0, True),
        ([(0, 0), (16, 0), (16, 0)], 2, 0, True),
        ([(16, 0), (2, 0)], 1, 0, True),
        ([(32, 0), (8, 4)], 1, 1, True),
        ([(1, 0)], 1, 0, False),
        ([], 1, 0, False),
    ],
)
def test_sizes_follow_what_the_cluster_has(nodes, cpus, gpus, room):
    found = [Node(id=str(index), address="a", cpus=each[0], gpus=each[1]) for index, each in enumerate(nodes)]
    pools = pools_for(scale.Stages(), found)
    assert (pools.encoders.cpus, pools.encoders.gpus, fits(pools, found)) == (cpus, gpus, room)
