"""What people see of a run: the report, the metrics, the log, the progress; from events as the driver sends them."""

import io
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from everyframe import console
from everyframe.cli.cluster_view import Losses, one_line, picture, show_report
from everyframe.scale.events import (
    ChunkDone,
    Event,
    Finished,
    Nodes,
    RoundStarted,
    SegmentFailed,
    Started,
    VideoDone,
    Written,
)
from everyframe.scale.logs import JsonLog
from everyframe.scale.metrics import Metrics, MetricsServer
from everyframe.scale.progress import Progress
from everyframe.scale.report import Audience, Report, ReportBuilder
from everyframe.scale.work import Failure, Price, Usage

STARTED = Started(
    run="r7", listed=8, duplicates=2, missing=1, skipped=1, videos=3, segments=5, seconds=400.0,
    cluster={"address": "auto"},
)  # fmt: skip
CHUNK = ChunkDone(
    source="/v/a.mp4", frames=30, i_frames=5, seconds=10.0, decode_seconds=0.5, encode_seconds=2.0, node="n1"
)
HUNG = SegmentFailed(source="/v/b.mp4", segment=(0, 90), kind="hang", message="silent", attempt=1, again=True)
GONE = Failure(source="/v/gone.mp4", kind="missing", message="/v/gone.mp4: no such file or folder")
POISON = Failure(source="/v/b.mp4", kind="hang", message="/v/b.mp4: the decoder was silent for 120 s", attempts=3)
TORN = Failure(source="/v/c.mp4", kind="video", message="/v/c.mp4: cannot be read from 50 s on")
USAGE = Usage(cpu_hours=2.0, gpu_hours=0.5, node_hours=0.25, wall_seconds=60.0, by_stage={"decode": 7.5, "plan": 1.0})
EVENTS: list[Event] = [
    STARTED,
    VideoDone(source="/v/gone.mp4", key=None, status="failed", failure=GONE),
    Nodes(nodes=2, cpus=4.0, gpus=1.0, decoders=2, encoders=1),
    RoundStarted(number=1, segments=5),
    *[CHUNK] * 10,
    replace(CHUNK, source="/v/b.mp4"),
    HUNG,
    VideoDone(source="/v/a.mp4", key="ka", status="done", output="a.npz", frames=300, seconds=100.0),
    Written(videos=1, frames=300, seconds=0.25),
    RoundStarted(number=2, segments=1),
    replace(HUNG, attempt=3, again=False),
    VideoDone(source="/v/b.mp4", key="kb", status="quarantined", seconds=200.0, failure=POISON),
    *[replace(CHUNK, source="/v/c.mp4")] * 5,
    VideoDone(source="/v/c.mp4", key="kc", status="partial", output="c.npz", frames=150, seconds=50.0, failure=TORN),
    Written(videos=1, frames=150, seconds=0.5),
    VideoDone(source="/v/d.mp4", key="ka", status="duplicate", output="a.npz", frames=300, seconds=100.0),
    Finished(usage=USAGE),
]


def reported(events: list[Event], **options: Price) -> Report:
    builder = ReportBuilder(**options)
    for event in events:
        builder(event)
    return builder.report()


# --- the report ------------------------------------------------------------------------------------------


def test_report_counts_what_was_told() -> None:
    report = reported(EVENTS, price=Price(cpu_hour=0.05, gpu_hour=2.0))
    assert (report.run, report.listed, report.duplicates, report.missing) == ("r7", 8, 2, 1)
    assert report.videos == {
        "done": 1, "partial": 1, "skipped": 1, "adopted": 0, "duplicate": 1, "failed": 1, "quarantined": 1
    }  # fmt: skip
    assert (report.frames, report.hours) == (450, pytest.approx(150 / 3600))
    assert (report.encoded_frames, report.i_frames, report.encoded_hours) == (480, 80, pytest.approx(160 / 3600))
    assert (report.retries, report.rounds, report.tries_failed) == (1, 2, {"hang": 2})
    # What the driver measured itself stands before the sum of what the chunks said (8 s of decoding).
    assert report.stage_seconds == {"decode": 7.5, "encode": 32.0, "gather": 0.0, "write": 0.75, "plan": 1.0}
    assert report.frames_per_second == pytest.approx(480 / 60)
    assert report.times_realtime == pytest.approx(160 / 60)
    assert report.cost == pytest.approx(2 * 0.05 + 0.5 * 2)
    assert report.cost_per_hour == pytest.approx(1.1 / (160 / 3600))
    assert (report.failures, report.damaged) == ((GONE, POISON), (TORN,))
    assert report.failures_by_kind == {"missing": (GONE,), "hang": (POISON,)}
    assert report.cluster == {"address": "auto", "nodes": 2, "cpus": 4.0, "gpus": 1.0, "decoders": 2, "encoders": 1}
    assert not report.good


def test_report_as_json_holds_every_failure() -> None:
    odd = Failure(source="/v/\udcff.mp4", kind="video", message="/v/\udcff.mp4: \u00e4")
    many = [replace(GONE, source=f"/v/{number}.mp4") for number in range(1000)]
    lost = [VideoDone(source=each.source, key=None, status="failed", failure=each) for each in [odd, *many]]
    report = reported([*EVENTS[:1], *lost, EVENTS[-1]])
    text = report.to_json()
    facts = json.loads(text.encode().decode())  # text that can be written, whatever a file is called
    assert facts["failures"][0] == {**vars(odd), "attempts": 1}
    assert [each["source"] for each in facts["failures"][1:]] == [each.source for each in many]
    assert facts["failures_by_kind"] == {"missing": 1000, "video": 1}
    assert [*facts["failures_by_kind"]] == ["missing", "video"]
    assert facts["good"] is False
    began, ended = (datetime.fromisoformat(facts[name]) for name in ("started", "finished"))
    assert began.utcoffset() == timedelta(0)
    assert began <= ended


@pytest.mark.parametrize(
    ("events", "good"),
    [
        ([STARTED, Finished(usage=USAGE)], True),
        ([STARTED, VideoDone(source="a", key="a", status="adopted"), Finished(usage=USAGE)], True),
        ([STARTED, HUNG, Finished(usage=USAGE)], True),
        ([STARTED, Finished(usage=USAGE, interrupted=True)], False),
        ([STARTED, EVENTS[1], Finished(usage=USAGE)], False),
    ],
)
def test_report_is_good_where_nothing_was_lost(events: list[Event], good: bool) -> None:
    assert reported(events).good is good


def test_report_of_nothing_has_no_rates() -> None:
    report = reported([])
    assert (report.frames_per_second, report.times_realtime, report.cost, report.cost_per_hour) == (None, None, 0, None)
    assert json.loads(report.to_json())["frames"] == 0


def test_report_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report = reported(EVENTS, price=Price(cpu_hour=0.05, gpu_hour=2.0))
    show_report(replace(report, warnings=("the log is full",)), "s3://bucket/feats/")
    out, err = capsys.readouterr()
    assert "1 done, 1 partial, 1 skipped, 1 duplicate, 1 failed, 1 quarantined" in " ".join(out.split())
    assert "480 frames, 17% of them I-frames" in out
    assert "0:01:00.0: 8.0 frames/s, 2.7x realtime" in out
    assert "1.1 EUR, 24.75 EUR per hour of video" in out
    assert "silent for 120 s" in " ".join(out.split())
    assert "s3://bucket/feats/.everyframe/report-r7.json" in out
    assert "warning: the log is full" in err
    show_report(reported([STARTED, Finished(usage=Usage())]), "feats")
    assert "lost because" not in capsys.readouterr().out


# --- who listens -----------------------------------------------------------------------------------------


def test_listener_that_raises_is_left_out_and_named() -> None:
    builder, heard = ReportBuilder(), []

    def bad(event: Event) -> None:
        raise OSError(28, "No space left on device")

    tell = Audience([builder, bad, heard.append], builder)
    with pytest.warns(UserWarning, match="bad hears no more of this run .*No space left"):
        tell(STARTED)
    for event in EVENTS[1:]:
        tell(event)
    assert heard == EVENTS
    assert [*builder.report().warnings] == [
        "bad hears no more of this run (OSError: [Errno 28] No space left on device)"
    ]
    assert builder.report().frames == 450


def test_events_from_several_threads_are_all_counted() -> None:
    builder = ReportBuilder()
    tell = Audience([builder])
    threads = [threading.Thread(target=lambda: [tell(CHUNK) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builder.report().encoded_frames == 8 * 500 * 30


# --- progress --------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_progress_counts_down_to_nothing() -> None:
    clock = Clock()
    progress = Progress(clock)
    assert progress.eta_seconds is None
    for event in EVENTS:
        clock.now += 1
        progress(event)
    assert (progress.finished, progress.videos) == (3, 3)  # what is not there was not to do
    # 160 s were encoded; of b, 200 s long, 10 s before it was given up.
    assert progress.seconds_done == 160 + 190
    assert progress.frames == 480
    assert progress.eta_seconds == 0
    assert progress.frames_per_second == pytest.approx(480 / (len(EVENTS) - 1))
    clock.now += 1000
    assert progress.frames_per_second == pytest.approx(480 / (len(EVENTS) - 1))  # the run is over


def test_eta_follows_the_rate_of_late() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress(replace(STARTED, seconds=100_000.0))
    for _ in range(600):  # 10 s of video each second
        clock.now += 1
        progress(CHUNK)
    assert progress.times_realtime == pytest.approx(10)
    assert progress.eta_seconds == pytest.approx((100_000 - 6000) / 10)
    for _ in range(300):  # a node joins: 30 s each second
        clock.now += 1
        for _ in range(3):
            progress(CHUNK)
    assert progress.times_realtime == pytest.approx(30, rel=0.01)
    assert progress.eta_seconds == pytest.approx((100_000 - 15_000) / 30, rel=0.01)
    clock.now += 3600  # all hang
    assert progress.times_realtime < 2


def test_stages_tell_the_slowest() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress(STARTED)
    progress(Nodes(nodes=1, cpus=4, gpus=0, decoders=2, encoders=2))
    for _ in range(10):
        clock.now += 1.25
        progress(CHUNK)
    progress(Written(videos=1, frames=300, seconds=0.5))
    decode, encode, write = (progress.stage(name) for name in ("decode", "encode", "write"))
    assert (decode.frames_per_second, decode.busy) == (60.0, pytest.approx(5 / (2 * 12.5)))
    assert (encode.frames_per_second, encode.busy) == (15.0, pytest.approx(20 / (2 * 12.5)))
    assert (write.frames_per_second, write.busy) == (600.0, pytest.approx(0.5 / 12.5))
    assert Progress(clock).stage("decode").frames_per_second is None


def test_progress_fits_a_terminal() -> None:
    clock = Clock()
    progress = Progress(clock)
    shown = io.StringIO()
    terminal = Console(file=shown, width=80, force_terminal=False)
    terminal.print(picture(progress))
    assert shown.getvalue() == "looking at the videos\n"
    for event in EVENTS[:-1]:
        clock.now += 1
        progress(event)
    shown.truncate(0)
    terminal.print(picture(progress))
    lines = shown.getvalue().strip("\0").splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    assert "3/3 videos" in lines[0]
    assert "1 retried, 1 failed, 1 quarantined, 1 partial" in lines[1]
    assert "2 nodes, 4 CPUs, 1 GPUs; 2 decoders, 1 encoder; round 2" in lines[3]
    line = one_line(progress)
    assert "\n" not in line
    assert "frames/s" in line


def test_without_a_terminal_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    told = threading.Event()
    lines = iter(f"line {number}" for number in range(1_000_000))

    def line() -> str:
        text = next(lines)
        if text == "line 2":
            told.set()
        return text

    with console.Live(lambda: "", line, silent=False, every=0.01):
        assert told.wait(30)
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == ["line 0", "line 1", "line 2"]
    count = len(said)
    with console.Live(lambda: "", line, silent=True, every=0.001):
        pass
    assert capsys.readouterr().err == ""
    assert next(lines) == f"line {count}"  # the last one was said at the end


def test_only_the_first_losses_are_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    losses = Losses()
    for _ in range(100):
        losses(EVENTS[1])
    losses(EVENTS[4])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "failed: /v/gone.mp4: no such file or folder"
    assert len(said) == 21


# --- metrics ---------------------------------------------------------------------------------------------


def scraped(server: MetricsServer) -> dict[tuple[str, str], float]:
    """Values by name and label, from the server as Prometheus would read them."""
    with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = [*text_string_to_metric_families(answer.read().decode())]
    assert all(family.name.startswith("everyframe_") and family.documentation for family in families)
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_as_prometheus_reads_them() -> None:
    clock = Clock()
    progress = Progress(clock)
    metrics = Metrics(progress)
    with MetricsServer(metrics, port=0) as server:
        before = scraped(server)
        assert before["everyframe_videos_total", "quarantined"] == 0  # there before it happens, so that rates see it
        assert before["everyframe_eta_seconds", ""] != before["everyframe_eta_seconds", ""]  # NaN
        for event in EVENTS[:15]:  # ten chunks of a, one of b
            clock.now += 1
            progress(event)
            metrics(event)
        during = scraped(server)
        assert during["everyframe_running", ""] == 1
        assert during["everyframe_videos_left", ""] == 3
        assert during["everyframe_video_seconds_left", ""] == 290
        assert during["everyframe_eta_seconds", ""] == pytest.approx(290 / (110 / 14))
        for event in EVENTS[15:]:
            progress(event)
            metrics(event)
        after = scraped(server)
    wanted = {
        ("frames_total", ""): 480, ("i_frames_total", ""): 80, ("video_seconds_total", ""): 160,
        ("written_frames_total", ""): 450, ("retries_total", ""): 1, ("segment_failures_total", "hang"): 2,
        ("segment_failures_total", "crash"): 0, ("video_failures_total", "missing"): 1,
        ("video_failures_total", "hang"): 1, ("video_failures_total", "video"): 0,
        ("videos_total", "done"): 1, ("videos_total", "skipped"): 1,
        ("videos_total", "duplicate"): 1, ("work_seconds_total", "decode"): 8.0,
        ("work_seconds_total", "encode"): 32.0, ("work_seconds_total", "write"): 0.75, ("nodes", ""): 2,
        ("cpus", ""): 4, ("gpus", ""): 1, ("workers", "decode"): 2, ("workers", "encode"): 1, ("round", ""): 2,
        ("running", ""): 0, ("videos_left", ""): 0, ("eta_seconds", ""): 0, ("run_info", "r7"): 1,
    }  # fmt: skip
    assert {name: after[f"everyframe_{name[0]}", name[1]] for name in wanted} == wanted
    with pytest.raises(urllib.error.URLError):  # the port is free again
        scraped(server)


def test_runs_in_one_process_keep_their_metrics_apart() -> None:
    first, second = Metrics(Progress()), Metrics(Progress())
    with MetricsServer(first, port=0) as one, MetricsServer(second, port=0) as other:
        first(CHUNK)
        assert scraped(one)["everyframe_frames_total", ""] == 30
        assert scraped(other)["everyframe_frames_total", ""] == 0


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_metrics_where_nothing_can_listen_raises(host: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot be served at {host}:0: .*choose another port"):
        MetricsServer(Metrics(Progress()), port=0, host=host)


def test_metrics_on_a_port_that_is_taken_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"127.0.0.1:{port}: Address already in use"):
            MetricsServer(Metrics(Progress()), port=port)
    with pytest.raises(ValueError, match="must lie in 0 to 65535, got 65536"):
        MetricsServer(Metrics(Progress()), port=65536)


# --- the log ---------------------------------------------------------------------------------------------


def test_log_is_a_line_of_json_per_event(tmp_path) -> None:
    file = tmp_path / "logs" / "run.jsonl"
    with JsonLog(file) as log:
        for event in EVENTS:
            log(event)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == [
        "started", "video_done", "nodes", "round_started", "segment_failed", "video_done", "written", "round_started",
        "segment_failed", "video_done", "video_done", "written", "video_done", "finished",
    ]  # fmt: skip
    assert all(line["run"] == "r7" for line in lines)
    assert all(
        datetime.fromisoformat(line["time"].replace("Z", "+00:00")).utcoffset() == timedelta(0) for line in lines
    )
    assert [line["level"] for line in lines if line["event"] == "video_done"] == [
        "warning", "info", "warning", "warning", "info"
    ]  # fmt: skip
    assert lines[9]["failure"] == {**vars(POISON)}
    assert lines[4]["segment"] == [0, 90]
    assert lines[-1]["usage"]["by_stage"] == {"decode": 7.5, "plan": 1.0}
    with JsonLog(file, level="debug") as log:  # the next run goes on in the same file
        log(replace(CHUNK, source="/v/\udcff\u00e4.mp4"))
    more = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert more[:-1] == lines
    assert (more[-1]["event"], more[-1]["source"]) == ("chunk_done", "/v/\udcff\u00e4.mp4")


def test_log_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    JsonLog("-")(STARTED)
    out, err = capsys.readouterr()
    assert (out, json.loads(err)["listed"]) == ("", 8)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_log_on_a_full_disk_ends_no_run() -> None:
    builder = ReportBuilder()
    with JsonLog("/dev/full") as log:
        tell = Audience([builder, log], builder)
        with pytest.warns(UserWarning, match="JsonLog hears no more.*/dev/full cannot be written: No space left"):
            tell(STARTED)
        for event in EVENTS[1:]:
            tell(event)
    report = builder.report()
    assert report.frames == 450
    assert "No space left" in report.warnings[0]


def test_log_that_cannot_be_opened_raises(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write the log .*; choose another"):
        JsonLog(tmp_path / "file" / "run.jsonl")
    with pytest.raises(ValueError, match=r"cannot write the log .*Is a directory"):
        JsonLog(tmp_path)
    with pytest.raises(ValueError, match="must be info or debug, got 'loud'"):
        JsonLog(tmp_path / "run.jsonl", level="loud")
