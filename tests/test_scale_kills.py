"""Workers, nodes and drivers that are really killed: nothing is lost, nothing is there twice, nothing is done again."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import everyframe as ef
import scale_cases as cases
from everyframe import scale
from everyframe.scale.events import ChunkDone, Started

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    started = cases.LocalCluster(nodes=2)
    yield started
    started.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import checkpoints

    return checkpoints.light(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(model):
    return ef.ResidualViT(ef.load(model, device="cpu"), batch_size=8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A long video and many short ones."""
    return cases.videos(tmp_path_factory.mktemp("clips"), "video", [40, *(3 + 0.25 * index for index in range(16))])


def check(out: Path, clips: list[Path], encoder: ef.ResidualViT) -> None:
    """Every video is there, once, with the features of one machine, and nothing else is left."""
    done = [line for line in cases.manifest_lines(out) if line.get("status") == "done"]
    assert Counter(line["source"] for line in done) == Counter(map(str, clips))
    assert sorted(path.name for path in out.glob("*") if path.name != ".everyframe") == sorted(
        f"{clip.stem}.npz" for clip in clips
    )
    for clip in clips:
        alone = ef.encode_video(clip, encoder, fps=cases.FPS)
        feats = ef.VideoFeatures.load(out / f"{clip.stem}.npz")
        assert np.array_equal(feats.times, alone.times) and feats.settings == alone.settings
        np.testing.assert_allclose(feats.embeddings, alone.embeddings, atol=1e-5)
    assert not [path for path in (out / ".everyframe" / "parts").rglob("*") if path.is_file()]


def test_workers_and_a_node_are_killed(cluster, clips, encoder, tmp_path):
    killed: list[int] = []
    lost: list[object] = []
    at = [0.0]

    def act(event):
        if not isinstance(event, ChunkDone):
            return
        if not killed:
            killed.extend(cluster.workers("DecodeStage") + cluster.workers("EncodeStage"))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            at[0] = time.monotonic()
        elif not lost and time.monotonic() - at[0] > 2:  # what was under way has come: this is of a worker that is new
            lost.append(cluster.node(event.node.rpartition("/")[2]))
            cluster.remove(lost[0])

    heard = cases.Heard(act)
    report = scale.encode(
        clips,
        encoder,
        out=tmp_path,
        cluster=cluster.address,
        segment_seconds=8,
        stages=scale.Stages(decoders=(1, 2), encoders=(1, 2)),
        listeners=[heard],
    )
    cluster.add()
    assert len(killed) >= 2 and lost
    assert report.good and report.videos["done"] == len(clips)
    check(tmp_path, clips, encoder)


def test_the_driver_is_killed_and_another_goes_on(cluster, clips, model, encoder, tmp_path, forks):
    out, told = tmp_path / "out", tmp_path / "told"
    settings = {"segment_seconds": 8, "stages": scale.Stages(decoders=(1, 1), encoders=(1, 1))}
    names = list(map(str, clips))
    driver = forks.Process(target=cases.drive, args=(str(model), names, str(out), cluster.address, str(told), settings))
    driver.start()
    cases.wait_for(lambda: driver.exitcode is not None or (told.exists() and "Written" in told.read_text()), 300)
    driver.kill()
    driver.join()
    assert "Finished" not in told.read_text()
    before = {line["source"]: line for line in cases.manifest_lines(out)}
    assert before
    written = {line["name"]: (out / line["output"]).stat().st_mtime_ns for line in before.values()}

    heard = cases.Heard()
    report = scale.encode(names, encoder, out=out, cluster=cluster.client, listeners=[heard], **settings)
    assert report.good and heard.of(Started)[0].skipped >= len(before)
    assert not set(heard.encoded()) & {Path(source).name for source in before}
    assert {name: (out / f"{name}.npz").stat().st_mtime_ns for name in written} == written
    check(out, clips, encoder)
