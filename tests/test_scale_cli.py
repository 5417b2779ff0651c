"""everyframe encode on a list and on a cluster: options, what is shown, exit codes."""

import csv
import json
import shutil
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
import everyframe as ef
import everyframe.scale
from command import everyframe as command
from everyframe.cli.cluster import parse_bytes, parse_range
from everyframe.scale.events import ChunkDone, Finished, Nodes, RoundStarted, Started, VideoDone, Written
from everyframe.scale.report import Report, ReportBuilder
from everyframe.scale.work import Failure, Limits, Price, Stages, Usage
from everyframe.synthetic import synthesize


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.light(tmp_path_factory.mktemp("light"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three videos of four seconds: a, b, inner/a."""
    folder = tmp_path_factory.mktemp("clips")
    made = [f"{video.name}.mp4" for video in synthesize(folder, videos=3, seconds=4, fps=6, size=(96, 64), seed=5)]
    (folder / "inner").mkdir()
    for name, place in zip(made, ("a.mp4", "b.mp4", "inner/a.mp4"), strict=True):
        (folder / name).rename(folder / place)
    (folder / "annotations.jsonl").unlink(missing_ok=True)
    return folder


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--attempts 2", "--attempts has a meaning with --cluster alone"),
        ("--decode-memory 2G", "--decode-memory has a meaning with --cluster alone"),
        ("--dry-run", "--dry-run has a meaning with --cluster alone"),
        ("--log -", "--log has a meaning with --cluster alone"),
        ("--format webdataset", "--format webdataset has a meaning with --cluster alone; everyframe export"),
        ("--format library", "--format library has a meaning with --cluster alone; everyframe index"),
        ("--out s3://bucket/feats", "is an address, and only --cluster writes to one"),
        ("--column path", "--column has a meaning with tables alone"),
        ("--cluster auto --recipe", "--recipe has no meaning with --cluster"),
        ("--cluster auto --format zip", "--format must be one of npz, npy, h5, parquet, webdataset, library"),
        ("--cluster auto --store int8", "--store must be float32 or float16, got 'int8'"),
        ("--cluster auto --decoders 0:4", "--decoders must be fewest:most, such as 2:16, 2: or 4, got '0:4'"),
        ("--cluster auto --encoders 4:2", "--encoders must be fewest:most"),
        ("--cluster auto --decode-memory 2", "--decode-memory must be a size such as 512M or 2G, got '2'"),
        ("--cluster auto --decode-memory 1M", "decode_memory must be at least 256 MiB"),
        ("--cluster auto --decode-timeout 0", "decode_timeout must be a number of seconds > 0"),
        ("--cluster auto --gpus-per-encoder=-1", "gpus_per_encoder must be 0 or more"),
        ("--cluster auto --price-cpu-hour nan", "--price-cpu-hour must be a number of euros >= 0"),
        ("--cluster auto --metrics-host 0.0.0.0", "--metrics-host has no meaning without --metrics-port"),
        ("--cluster auto --log-level debug", "--log-level has no meaning without --log"),
        ("--cluster auto --encoder tempme --fps 3", "--fps has no meaning with --encoder tempme"),
    ],
)
def test_options_that_contradict_raise(clips: Path, tmp_path: Path, options: str, message: str) -> None:
    words = options.split()
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    result = command("encode", clips, *words)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"), [("2:16", (2, 16)), (" 2 : 16 ", (2, 16)), ("3:", (3, None)), ("4", (4, 4)), ("1:1", (1, 1))]
)
def test_range_of_workers(text: str, expected: tuple[int, int | None]) -> None:
    assert parse_range(text, "--decoders") == expected


@pytest.mark.parametrize("text", ["", ":4", "a", "2-4", "-1", "1:2:3", "1.5"])
def test_range_of_workers_that_is_none_raises(text: str) -> None:
    with pytest.raises(ValueError, match="--decoders must be fewest:most"):
        parse_range(text, "--decoders")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512M", 512 << 20), ("2G", 2 << 30), ("1.5 GiB", 3 << 29), ("2gb", 2 << 30), ("1t", 1 << 40), ("9K", 9 << 10)],
)  # fmt: skip
def test_sizes_in_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text, "--decode-memory") == expected


# --- lists on one machine --------------------------------------------------------------------------------


def test_table_on_one_machine(clips: Path, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["n", "clip"], [1, clips / "a.mp4"], [2, clips / "gone.mp4"], [3, clips / "b.mp4"]])
    options = ("--out", tmp_path / "out", "--model", model, "--encoder", "dense", "--fps", 2, "--quiet")
    result = command("encode", table, *options, "--column", "clip")
    assert result.returncode == 1  # one is not there, the others are done
    assert f"{clips / 'gone.mp4'}: no such file" in result.stderr
    assert sorted(file.name for file in (tmp_path / "out").glob("*.npz")) == ["a.npz", "b.npz"]
    feats = ef.VideoFeatures.load(tmp_path / "out" / "a.npz")
    alone = ef.encode_video(clips / "a.mp4", ef.DenseEncoder(ef.load(model, device="cpu")), fps=2)
    np.testing.assert_array_equal(feats.embeddings, alone.embeddings)
    listed = tmp_path / "list.txt"  # of addresses
    listed.write_text(f"file://{clips}/inner/a.mp4\n{clips}/b.mp4\n")
    result = command("encode", listed, *options[2:], "--out", tmp_path / "other")
    assert result.returncode == 0, result.stderr
    assert sorted(file.name for file in (tmp_path / "other").glob("*.npz")) == ["a.npz", "b.npz"]
    result = command("encode", table, *options, "--column", "nothing")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "nothing" in result.stderr


# --- before it starts ------------------------------------------------------------------------------------


def test_dry_run_says_what_there_is_to_do(clips: Path, model: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    lines = [
        clips / "a.mp4",
        clips / "b.mp4",
        clips / "inner" / ".." / "a.mp4",
        clips / "gone.mp4",
        "s3://bucket/c.mp4",
    ]
    listed.write_text("".join(f"{line}\n" for line in lines))
    options = ("--cluster", "10.255.255.1:6379", "--dry-run", "--model", model, "--encoder", "dense", "--fps", 2)
    result = command("encode", listed, *options, "--out", tmp_path / "out", "--json")
    facts = json.loads(result.stdout)
    assert result.returncode == 1
    assert (facts["videos"], facts["duplicates"], facts["missing"]) == (3, 1, 1)
    assert facts["failures"][0]["source"] == str(clips / "gone.mp4")
    assert facts["seconds"] == pytest.approx(3 * 4, abs=0.5)  # the remote one is taken to be as long as the others
    assert facts["frames"] == pytest.approx(3 * 8, abs=2)
    dense = ef.flops(ef.DenseEncoder(ef.load(model, device="cpu"))).per_frame
    assert facts["tflops"] == pytest.approx(facts["frames"] * dense / 1e12, rel=0.02)
    assert not (tmp_path / "out").exists()
    result = command("encode", clips, *options, "--out", tmp_path / "out")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    assert "3; 0 listed again, 0 not there" in text
    assert "up to 24" in text


def test_dry_run_of_what_is_elsewhere_opens_nothing(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("s3://no-such-bucket/a.mp4\n")
    result = command("encode", listed, "--cluster", "auto", "--dry-run", "--model", tmp_path / "no model")
    assert result.returncode == 0
    assert "unknown: none of them is on this machine" in result.stdout


# --- with a driver that plays what was recorded ----------------------------------------------------------

LOST = Failure(source="/v/b.mp4", kind="crash", message="/v/b.mp4: the decoder died (signal 11)", attempts=3)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Puts a stand-in in place of the driver; gives what it was called with."""

    def install(*, lost: bool = False, interrupted: bool = False, during: Callable[[], None] = lambda: None) -> dict:
        called: dict[str, Any] = {}

        def encode(paths: list[str], encoder: Any, **options: Any) -> Report:
            called.update(options, paths=paths, encoder=encoder)
            builder = ReportBuilder(price=options["price"])
            listeners = [builder, *options["listeners"]]
            events = [
                Started(run="r1", listed=2, duplicates=0, missing=0, skipped=0, videos=2, segments=2, seconds=8.0),
                Nodes(nodes=1, cpus=2, gpus=0, decoders=1, encoders=1),
                RoundStarted(number=1, segments=2),
                ChunkDone(
                    source="/v/a.mp4", frames=12, i_frames=2, seconds=4.0, decode_seconds=0.1, encode_seconds=0.2,
                    node="n",
                ),
                VideoDone(source="/v/a.mp4", key="a", status="done", output="a.npz", frames=12, seconds=4.0),
                Written(videos=1, frames=12, seconds=0.01),
                *([VideoDone(source="/v/b.mp4", key="b", status="quarantined", failure=LOST)] if lost else []),
                Finished(usage=Usage(cpu_hours=1.0, wall_seconds=2.0), interrupted=interrupted),
            ]  # fmt: skip
            for place, event in enumerate(events):
                if place == 4:
                    during()
                for listener in listeners:
                    listener(event)
            return builder.report()

        monkeypatch.setattr(everyframe.scale, "encode", encode, raising=False)
        return called

    return install


def test_options_reach_the_driver(clips: Path, model: Path, tmp_path: Path, driver) -> None:
    called = driver()
    result = command(
        "encode", clips, "--cluster", "ray://head:10001", "--out", "s3://bucket/feats", "--format", "webdataset",
        "--model", model, "--encoder", "dense", "--fps", 2, "--store", "float16", "--start", 1, "--keep-partial",
        "--attempts", 5, "--segment-seconds", 60, "--decode-timeout", 7, "--decode-memory", "1G", "--decoders", "2:8",
        "--encoders", 3, "--gpus-per-encoder", 0.5, "--cpus-per-encoder", 1, "--price-cpu-hour", 0.04,
        "--price-gpu-hour", 1.5, "--column", "path", "--id-column", "id", "--retry-failed",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert called["paths"] == [str(clips)]
    wanted = {
        "cluster": "ray://head:10001",
        "out": "s3://bucket/feats",
        "format": "webdataset",
        "dtype": "float16",
        "attempts": 5,
        "segment_seconds": 60.0,
        "column": "path",
        "id_column": "id",
        "retry_failed": True,
        "limits": Limits(seconds=7.0, memory_bytes=1 << 30),
        "stages": Stages(decoders=(2, 8), encoders=(3, 3), cpus_per_encoder=1.0, gpus_per_encoder=0.5),
        "price": Price(cpu_hour=0.04, gpu_hour=1.5),
    }
    assert {name: called[name] for name in wanted} == wanted
    sampling = called["sampling"]
    assert (sampling.fps, sampling.start, sampling.keep_partial) == (2.0, 1.0, True)
    assert isinstance(called["encoder"], ef.DenseEncoder)
    assert "1 done" in result.stdout
    assert "0.04 EUR" in result.stdout


def test_unset_options_leave_the_drivers_own(clips: Path, model: Path, tmp_path: Path, driver) -> None:
    called = driver()
    result = command("encode", clips, "--cluster", "auto", "--out", tmp_path, "--model", model, "--encoder", "dense")
    assert result.returncode == 0, result.stderr
    assert not {"attempts", "segment_seconds"} & called.keys()
    assert (called["limits"], called["stages"], called["price"]) == (Limits(), Stages(), Price())
    assert "1 done" in result.stdout
    assert "1/2 videos" in result.stderr  # there is no terminal: a line of progress at the end


def test_lost_videos_are_told_and_exit_with_1(clips: Path, model: Path, tmp_path: Path, driver) -> None:
    driver(lost=True)
    options = ("--cluster", "auto", "--out", tmp_path, "--model", model, "--encoder", "dense")
    result = command("encode", clips, *options)
    assert result.returncode == 1
    assert "quarantined: /v/b.mp4: the decoder died (signal 11)" in result.stderr
    assert "crash" in result.stdout
    result = command("encode", clips, *options, "--json")
    assert result.returncode == 1
    facts = json.loads(result.stdout)
    assert facts["videos"]["quarantined"] == 1
    assert facts["failures"][0]["kind"] == "crash"
    assert result.stderr == "everyframe: /v/b.mp4: the decoder died (signal 11)\n"
    result = command("encode", clips, *options, "--quiet")
    assert (result.returncode, result.stdout) == (1, "")


def test_interrupted_run_shows_its_report_and_exits_with_130(clips: Path, model: Path, tmp_path: Path, driver) -> None:
    driver(interrupted=True)
    result = command("encode", clips, "--cluster", "auto", "--out", tmp_path, "--model", model, "--encoder", "dense")
    assert result.returncode == 130
    assert "1 done" in result.stdout
    assert "interrupted" in result.stderr


def test_metrics_and_log_of_a_run(clips: Path, model: Path, tmp_path: Path, driver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pages: list[str] = []

    def scrape() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            pages.append(answer.read().decode())

    driver(during=scrape)
    options = ("--cluster", "auto", "--out", tmp_path, "--model", model, "--encoder", "dense")
    log = tmp_path / "run.jsonl"
    result = command("encode", clips, *options, "--metrics-port", port, "--log", log, "--log-level", "debug")
    assert result.returncode == 0, result.stderr
    assert f"metrics: http://127.0.0.1:{port}/metrics" in result.stderr
    assert "everyframe_frames_total 12.0" in pages[0].splitlines()
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == [
        "metrics", "started", "nodes", "round_started", "chunk_done", "video_done", "written", "finished"
    ]  # fmt: skip
    driver()
    result = command("encode", clips, *options, "--log", "-")
    assert len([json.loads(line) for line in result.stderr.splitlines()]) == 6  # nothing else is there
    with socket.create_server(("127.0.0.1", port)):
        result = command("encode", clips, *options, "--metrics-port", port)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"127.0.0.1:{port}: Address already in use" in result.stderr


def test_out_that_cannot_be_written_fails_before_the_work(clips: Path, model: Path, tmp_path: Path, driver) -> None:
    called = driver()
    (tmp_path / "file").write_text("")
    result = command("encode", clips, "--cluster", "auto", "--out", tmp_path / "file", "--model", model)
    assert result.returncode == 1
    assert "choose another --out" in result.stderr
    assert not called


# --- with Ray --------------------------------------------------------------------------------------------


def test_encode_on_a_cluster_from_the_command_line(clips: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "in")
    (tmp_path / "in" / "broken.mp4").write_bytes(b"this is no video")
    table = tmp_path / "list.csv"
    names = ["a.mp4", "b.mp4", "inner/a.mp4", "broken.mp4", "gone.mp4", "b.mp4"]
    table.write_text("\n".join(["path", *(f"{tmp_path}/in/{name}" for name in names)]) + "\n")
    out, log = tmp_path / "out", tmp_path / "run.jsonl"
    options = ("--cluster", "local", "--out", out, "--model", model, "--encoder", "dense", "--fps", 2)
    result = command("encode", table, *options, "--log", log, "--price-cpu-hour", 0.05, "--threads", 1)
    assert result.returncode == 1, result.stderr  # two were lost
    shown = " ".join(result.stdout.split())
    assert "3 done, 2 failed" in shown
    assert "6 listed, 1 listed again, 1 not there" in shown
    assert "EUR per hour of video" in shown
    assert "broken.mp4" in result.stderr
    assert "3/3 videos" in result.stderr
    (written,) = (out / ".everyframe").glob("report-*.json")
    facts = json.loads(written.read_text())
    assert facts["frames"] == facts["encoded_frames"] == facts["i_frames"] == 24
    assert facts["hours"] == pytest.approx(12 / 3600, rel=0.1)
    assert facts["failures_by_kind"] == {"missing": 1, "video": 1}
    assert facts["usage"]["wall_seconds"] > 0
    assert facts["cost_euros"] == pytest.approx(facts["usage"]["cpu_hours"] * 0.05)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events].count("finished") == 1
    assert sum(event.get("frames", 0) for event in events if event["event"] == "video_done") == 24
    made = {file.relative_to(out): file for file in out.rglob("*.npz") if ".everyframe" not in file.parts}
    assert len(made) == 3
    for file in made.values():
        feats = ef.VideoFeatures.load(file)
        assert isinstance(feats.video["path"], str)
        alone = ef.encode_video(feats.video["path"], ef.DenseEncoder(ef.load(model, device="cpu")), fps=2)
        np.testing.assert_array_equal(feats.embeddings, alone.embeddings)
