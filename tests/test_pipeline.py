"""The main job end to end: real files decoded, encoded, written, resumed and interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import everyframe as ef
from command import everyframe
from everyframe import cli
from everyframe.encoders import Plan
from everyframe.pipeline import Sampling, encode_videos, forecast, output_paths, read_window
from everyframe.video import VideoError, write_video
from processes import start_command


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short H.264 videos of moving gradients, and their folder."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (3, 96, 400, 3), dtype=np.uint8)
    for index, seconds in enumerate((5, 4, 3)):
        frames = (np.ascontiguousarray(base[index][:, 2 * t : 2 * t + 128]) for t in range(10 * seconds))
        write_video(folder / f"clip{index}.mp4", frames, fps=10)
    return folder


def decoded_at(path: Path, times: list[float]) -> np.ndarray:
    """The frames nearest to `times`, decoded independently of everyframe.video."""
    with av.open(str(path)) as container:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return np.stack([min(frames, key=lambda frame: abs(frame[0] - t))[1] for t in times])


def test_encode_video_equals_frames_decoded_by_hand(model: ef.Model, clips: Path) -> None:
    feats = ef.encode_video(clips / "clip0.mp4", ef.DenseEncoder(model), fps=2.5)
    wanted = [k / 2.5 for k in range(13)]  # 5 s
    np.testing.assert_allclose(feats.times, wanted, atol=0.051)
    by_hand = ef.DenseEncoder(model).encode(model.preprocess(decoded_at(clips / "clip0.mp4", list(feats.times))))
    # Two conversions from YUV may differ by a grey level.
    assert (feats.embeddings * by_hand.numpy()).sum(1).min() > 0.999
    assert feats.roles == "I" * 13
    assert feats.video["duration_seconds"] == pytest.approx(5.0, abs=0.11)
    assert feats.frame_ends[-1] == pytest.approx(5.0, abs=0.01)
    assert feats.model["weights_sha256"] == model.weights_sha256


@pytest.mark.parametrize("select", ["motion", "residual", "random"])
def test_encode_video_does_not_depend_on_batching(model: ef.Model, clips: Path, select: str) -> None:
    results = [
        ef.encode_video(
            clips / "clip0.mp4",
            ef.ResidualViT(model, interleave=2, select=select, residual=None, batch_size=size),
            fps=5,
        )
        for size in (1, 2, 32)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.embeddings, results[0].embeddings, atol=1e-5)
        assert other.roles == results[0].roles == ("IPP" * 9)[:25]


def test_encode_video_uses_the_codecs_motion(model: ef.Model, clips: Path) -> None:
    fast = ef.ResidualViT(model, residual=None)
    assert ef.encode_video(clips / "clip0.mp4", fast).settings["motion_source"] == "codec"
    still = ef.encode_video(clips / "clip0.mp4", ef.DenseEncoder(model))
    assert "motion_source" not in still.settings


def test_encode_video_takes_bytes_and_a_range(model: ef.Model, clips: Path) -> None:
    dense = ef.DenseEncoder(model)
    whole = ef.encode_video(clips / "clip0.mp4", dense, fps=5)
    data = ef.encode_video((clips / "clip0.mp4").read_bytes(), dense, fps=5)
    np.testing.assert_array_equal(data.embeddings, whole.embeddings)
    assert data.video["path"] == "<bytes>"
    part = ef.encode_video(clips / "clip0.mp4", dense, fps=5, start=2.0, end=3.0)
    np.testing.assert_allclose(part.times, whole.times[10:15])
    np.testing.assert_allclose(part.embeddings, whole.embeddings[10:15], atol=1e-5)
    assert part.frame_ends[-1] == pytest.approx(3.0)


@pytest.mark.parametrize(("start", "end"), [(None, None), (1.0, 3.0)])
def test_read_window_reads_what_encode_video_reads(
    model: ef.Model, clips: Path, start: float | None, end: float | None
) -> None:
    encoder = ef.ResidualViT(model, residual=None, batch_size=3)
    wanted = ef.encode_video(clips / "clip0.mp4", encoder, start=start, end=end)
    window = read_window(clips / "clip0.mp4", model, start=start, end=end)
    np.testing.assert_array_equal(window.times, wanted.times)
    np.testing.assert_allclose(encoder.encode(window.pixels, window.motion).numpy(), wanted.embeddings, atol=1e-5)
    assert window.end_seconds == wanted.frame_ends[-1]
    assert window.motion_source == wanted.settings["motion_source"] == "codec"
    plain = read_window(clips / "clip0.mp4", model, start=start, end=end, motion=False)
    assert torch.equal(plain.pixels, window.pixels)
    assert (plain.motion, plain.motion_source) == (None, None)


def test_read_window_says_what_it_cannot_read(model: ef.Model, clips: Path) -> None:
    with pytest.raises(VideoError, match="no frame from 1000 s"):
        read_window(clips / "clip0.mp4", model, start=1000.0)


def test_encode_video_rejects_what_it_cannot_do(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    dense = ef.DenseEncoder(model)
    with pytest.raises(ValueError, match="fps must be"):
        ef.encode_video(clips / "clip0.mp4", dense, fps=0)
    with pytest.raises(ValueError, match="float64"):
        ef.encode_video(clips / "clip0.mp4", dense, dtype="float64")
    with pytest.raises(VideoError, match=r"missing\.mp4"):
        ef.encode_video(tmp_path / "missing.mp4", dense)
    with pytest.warns(UserWarning, match="10"):  # never invents frames
        feats = ef.encode_video(clips / "clip2.mp4", dense, fps=60)
    assert feats.num_frames == 30


def run_batch(clips: Path, out: Path, model: ef.Model, **changes: object) -> dict[str, str]:
    options = {"interleave": 2, **changes}
    encoder = ef.ResidualViT(model, residual=None, **options)  # type: ignore[arg-type]
    sources = output_paths([(clips, sorted(clips.glob("*.mp4")))], out, ".npz")
    outcomes = list(encode_videos(sources, encoder, sampling=Sampling(fps=3)))
    return {Path(outcome.source).name: outcome.status for outcome in outcomes}


def test_encode_videos_skips_what_is_done_and_redoes_what_changed(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for clip in clips.iterdir():
        (videos / clip.name).write_bytes(clip.read_bytes())
    out = tmp_path / "out"
    assert set(run_batch(videos, out, model).values()) == {"done"}
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert set(run_batch(videos, out, model).values()) == {"skipped"}
    assert before == {file.name: file.stat().st_mtime_ns for file in out.iterdir()}

    cut = out / "clip0.npz"
    cut.write_bytes(cut.read_bytes()[:-100])
    (videos / "clip1.mp4").write_bytes((clips / "clip2.mp4").read_bytes())
    assert run_batch(videos, out, model) == {"clip0.mp4": "done", "clip1.mp4": "done", "clip2.mp4": "skipped"}
    assert ef.VideoFeatures.load(out / "clip1.npz").num_frames == 9
    assert set(run_batch(videos, out, model, interleave=1).values()) == {"done"}


def test_encode_videos_never_overwrites_another_videos_features(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    dense = ef.DenseEncoder(model)
    out = tmp_path / "x.npz"
    assert next(encode_videos([(clips / "clip0.mp4", out)], dense, sampling=Sampling())).status == "done"
    outcome = next(encode_videos([(clips / "clip1.mp4", out)], dense, sampling=Sampling()))
    assert outcome.status == "failed" and "clip0.mp4" in str(outcome.error)
    assert ef.VideoFeatures.load(out).video["path"].endswith("clip0.mp4")


def test_encode_videos_goes_on_after_bad_files(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video")
    whole = (clips / "clip0.mp4").read_bytes()
    names = ["empty.mp4", "text.mp4", "gone.mp4", "good.mp4"]
    (tmp_path / "good.mp4").write_bytes(whole)
    sources = [(tmp_path / name, tmp_path / f"{name}.npz") for name in names]
    outcomes = list(encode_videos(sources, ef.DenseEncoder(model), sampling=Sampling()))
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "failed", "done"]
    for name, outcome in zip(names[:3], outcomes, strict=False):
        assert name in str(outcome.error) and "\n" not in str(outcome.error)
    assert [path.name for path in tmp_path.glob("*.npz")] == ["good.mp4.npz"]


def test_encode_videos_goes_on_after_an_error_nobody_foresaw(
    model: ef.Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, calls = model.preprocess, []

    def broken_once(frames: np.ndarray) -> torch.Tensor:
        calls.append(len(frames))
        if len(calls) == 1:
            raise PermissionError("not today")
        return prepare(frames)

    monkeypatch.setattr(model, "preprocess", broken_once)
    sources = [(clips / f"clip{index}.mp4", tmp_path / f"{index}.npz") for index in range(3)]
    outcomes = list(encode_videos(sources, ef.DenseEncoder(model), sampling=Sampling(), decoders=1))
    assert [outcome.status for outcome in outcomes] == ["failed", "done", "done"]
    assert "clip0.mp4" in str(outcomes[0].error) and "not today" in str(outcomes[0].error)
    assert ef.VideoFeatures.load(tmp_path / "2.npz").video["path"].endswith("clip2.mp4")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5", ".parquet"])
def test_encode_videos_leaves_files_of_others_alone(model: ef.Model, clips: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(out, mine=np.arange(3))
    elif suffix == ".npy":
        np.save(out, np.arange(3))
    elif suffix == ".h5":
        with pytest.importorskip("h5py").File(out, "w") as file:
            file["mine"] = np.arange(3)
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"mine": [1, 2]}), out)
    before = out.read_bytes()
    outcome = next(encode_videos([(clips / "clip2.mp4", out)], ef.DenseEncoder(model), sampling=Sampling()))
    assert outcome.status == "failed" and "not overwritten" in str(outcome.error)
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_encode_videos_keeps_what_was_partial_when_that_is_wanted(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (100, 96, 128, 3), dtype=np.uint8)
    write_video(tmp_path / "whole.mkv", noise, fps=10)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes((tmp_path / "whole.mkv").read_bytes()[: (tmp_path / "whole.mkv").stat().st_size // 2])

    def status(keep_partial: bool) -> str:
        sampling = Sampling(keep_partial=keep_partial)
        return next(encode_videos([(cut, tmp_path / "cut.npz")], ef.DenseEncoder(model), sampling=sampling)).status

    assert [status(False), status(True), status(True), status(False)] == ["failed", "partial", "skipped", "failed"]
    assert ef.VideoFeatures.load(tmp_path / "cut.npz").settings["damage"]


def test_output_paths_leave_each_video_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [Path("x.mp4"), Path("x.mov"), Path("x.mp4.mkv")]
    names = [path.name for _, path in output_paths([(None, videos)], Path("out"), ".npz")]
    assert names == ["x.mp4.npz", "x.mov.npz", "x.mp4.mkv.npz"]
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path / "pictures")
    assert output_paths([(Path("."), [Path(".")])], Path("out"), ".npz") == [(Path("."), Path("out/pictures.npz"))]


def test_output_paths_are_distinct() -> None:
    roots = [
        (Path("a"), [Path("a/x.mp4"), Path("a/x.mkv"), Path("a/deep/y.mp4")]),
        (None, [Path("b/z.mp4"), Path("c/z.mp4")]),
    ]
    names = [str(path) for _, path in output_paths(roots, Path("out"), ".npz")]
    assert names[:3] == ["out/x.mp4.npz", "out/x.mkv.npz", "out/deep/y.npz"]
    assert len(set(names)) == 5 and all(name.startswith("out/z.mp4-") for name in names[3:])


# --- the command line ------------------------------------------------------------------------------------


def encode_command(clips: Path, out: Path, *more: str) -> list[str]:
    return ["encode", str(clips), "--model", "bundled", "--residual", "none", "--out", str(out), *more]


def test_cli_encode_search_ground_info_agree_with_the_library(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    run = everyframe(*encode_command(clips, out, "--json"))
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["done"] == 3 and report["frames"] == 15 + 12 + 9
    again = json.loads(everyframe(*encode_command(clips, out, "--json")).stdout)
    assert again["skipped"] == 3 and again["frames"] == 0

    feats = ef.VideoFeatures.load(out / "clip0.npz")
    library = ef.encode_video(clips / "clip0.mp4", ef.ResidualViT(model, residual=None))
    np.testing.assert_allclose(feats.embeddings, library.embeddings, atol=1e-5)

    query = model.encode_text(["a red circle"])[0]
    moments = ef.ground(feats, query)
    picture = tmp_path / "curve.png"
    found = json.loads(everyframe("ground", out / "clip0.npz", "a red circle", "--json", "--plot", picture).stdout)
    assert [(m["start"], m["end"]) for m in found] == [(round(m.start, 3), round(m.end, 3)) for m in moments]
    with av.open(str(picture)) as image:
        pixels = next(image.decode(video=0)).to_ndarray(format="rgb24")
    assert pixels.shape[1] > 800 and pixels.std() > 10
    direct = json.loads(
        everyframe(
            "ground", clips / "clip0.mp4", "a red circle", "--model", "bundled", "--residual", "none", "--json"
        ).stdout
    )
    assert direct == found

    hits = json.loads(everyframe("search", out, "a red circle", "--top", "2", "--json").stdout)
    assert len(hits) == 2 and hits[0]["score"] >= hits[1]["score"]
    facts = json.loads(everyframe("info", out / "clip0.npz", "--json").stdout)
    assert facts["frames"] == 15 and facts["roles"] == {"I": 5, "P": 10}
    assert json.loads(everyframe("info", clips / "clip0.mp4", "--json").stdout)["codec"] == "h264"
    assert json.loads(everyframe("info", "bundled", "--json").stdout)["patches"] == 196


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "CLIPS", "--model", "bundled", "--drop", "1"], r"drop must be in \[0, 1\), got 1.0"),
        (["encode", "CLIPS", "--model", "bundled", "--interleave", "-1"], "interleave must be 0 or more"),
        (["encode", "CLIPS", "--model", "bundled", "--fps", "0"], "fps must be"),
        (["encode", "CLIPS", "--model", "bundled", "--format", "xml"], "--format must be one of"),
        (
            ["encode", "CLIPS", "--model", "bundled", "--encoder", "none"],
            "--encoder must be one of reuse, residual, dense",
        ),
        (["encode", "CLIPS", "--model", "no/such/model"], "no/such/model"),
        (["encode", "CLIPS", "--model", "bundled", "--residual", "gone.safetensors"], "gone.safetensors"),
        (["encode", "EMPTY", "--model", "bundled"], "no video"),
        (["encode", "gone.mp4", "--model", "bundled"], "gone.mp4"),
        (["search", "EMPTY", "a cat"], "holds no features"),
        (["search", "CLIPS", "   "], "the query is empty"),
        (["ground", "CLIPS/clip0.mp4", "", "--model", "bundled"], "the query is empty"),
        (["info", "gone.mp4"], "gone.mp4"),
        (["encode", "EMPTY/../list.txt", "--model", "bundled"], "list.txt: is not a list of paths in UTF-8"),
        (["encode", "CLIPS", "--model", "bundled", "--device", "xpu"], "device 'xpu'"),
        (["ground", "x.npz", "a cat", "--fps", "5"], "x.npz is encoded already"),
    ],
)
def test_cli_says_what_is_wrong_in_one_line(
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x80")
    filled = [text.replace("CLIPS", str(clips)).replace("EMPTY", str(tmp_path / "empty")) for text in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["everyframe", *filled])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 1
    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert len([line for line in errors.splitlines() if line.startswith("everyframe:")]) == 1


@pytest.mark.parametrize("command", [["encode"], ["audit"], ["evaluate", "synthetic"]])
def test_running_out_of_memory_is_said_in_words_that_fit_every_command(
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    def load(*_: object, **__: object) -> ef.Model:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("everyframe.backbone.load", load)
    monkeypatch.chdir(tmp_path)
    videos = [] if command[0] == "evaluate" else [str(clips)]
    monkeypatch.setattr(sys, "argv", ["everyframe", *command, *videos])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "the device ran out of memory; use a smaller model, another --device or, where this command has" in printed


def test_cli_encode_reports_bad_files_and_exits_1(clips: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "bad.mp4").write_bytes(b"\0" * 1000)
    (videos / "good.mp4").write_bytes((clips / "clip2.mp4").read_bytes())
    run = everyframe(*encode_command(videos, tmp_path / "out"))
    assert run.returncode == 1
    assert "bad.mp4" in run.stderr
    assert "1 done, 1 failed" in run.stdout
    assert ef.VideoFeatures.load(tmp_path / "out" / "good.npz").num_frames == 9


def test_cli_encode_full_disk_leaves_nothing_partial(clips: Path, tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: the write really fails half way."""
    out = tmp_path / "out"
    command = " ".join([sys.executable, "-m", "everyframe.cli", *encode_command(clips, out)])
    run = subprocess.run(["bash", "-c", f"ulimit -f 4; {command}"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "clip0.npz" in run.stderr
    assert list(out.iterdir()) == []


@pytest.fixture(scope="module")
def six_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six videos of 60 frames of noise: each is many batches of the command below."""
    folder = tmp_path_factory.mktemp("six")
    noise = np.random.default_rng(1).integers(0, 255, (30, 96, 128, 3), dtype=np.uint8)
    for index in range(6):
        write_video(folder / f"v{index}.mp4", (noise[(t + index) % 30] for t in range(60)), fps=10)
    return folder


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_cli_encode_interrupted_resumes(six_videos: Path, tmp_path: Path, forks: Any, how: signal.Signals) -> None:
    """Stopped in the middle of a batch: every file that is there is whole, and the same command finishes."""
    videos, out = six_videos, tmp_path / "out"
    process = start_command(forks, tmp_path / "err", *encode_command(videos, out, "--fps", "10", "--batch-size", "4"))
    deadline = time.monotonic() + 60
    while not list(out.glob("v*.npz")) and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.02)
    os.kill(process.pid, how)
    process.join(30)
    assert process.exitcode not in (None, 0)
    errors = (tmp_path / "err").read_text()
    finished = sorted(out.glob("v*.npz"))
    assert 0 < len(finished) < 6
    for file in finished:
        assert ef.VideoFeatures.load(file).num_frames == 60
    if how is signal.SIGINT:
        assert process.exitcode == 130 and "Traceback" not in errors
        assert "finished files are kept" in errors
        assert sorted(file for file in out.iterdir() if file.suffix != ".jsonl") == finished
    report = json.loads(everyframe(*encode_command(videos, out, "--fps", "10", "--json")).stdout)
    assert report["skipped"] == len(finished) and report["done"] == 6 - len(finished)


def test_cli_flops_prints_table_1() -> None:
    run = everyframe("flops", "--json")
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)
    published = [233.4, 35.7, 102.0, 102.6]  # ResidualViT, table 1, GFLOPs per second at 3 frames/s
    for row, value in zip(rows[:4], published, strict=True):
        assert row["per second, linear layers"] == pytest.approx(value, rel=0.01)
    # In linear layers reusing costs what dropping does: of N + 1 frames one in full, the others in part.
    for row, interleave in zip(rows[4:], (2, 5), strict=True):
        assert row["encoder"].endswith(f"reuse N={interleave}")
        assert row["per second, linear layers"] == pytest.approx(
            (233.4 + interleave * 35.7) / (interleave + 1), rel=0.01
        )


def test_import_is_fast_and_lazy() -> None:
    code = "import sys, everyframe; print(sorted({'torch', 'transformers', 'av', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_encode_video_frees_its_thread_when_the_encoder_fails(model: ef.Model, clips: Path) -> None:
    import threading

    class Broken(ef.DenseEncoder):
        def encode_planned(self, pixels: torch.Tensor, plan: Plan) -> torch.Tensor:
            raise RuntimeError("the encoder broke")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the encoder broke"):
        ef.encode_video(clips / "clip0.mp4", Broken(model, batch_size=1))
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_model_folder_is_recorded_by_its_absolute_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features outlive the current directory, and "model" and "./model" are one model."""
    folder = Path(ef.__file__).parent / "assets" / "bundled"
    monkeypatch.chdir(folder.parent)
    assert {ef.load(name, device="cpu").name for name in ("./bundled", folder)} == {str(folder)}


def test_cli_encode_remembers_what_cannot_be_read(clips: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    bad = videos / "bad.mp4"
    bad.write_bytes(b"\0" * 1000)

    def errors(*more: str) -> list[str]:
        run = everyframe(*encode_command(videos, out, "--json", *more))
        assert run.returncode == 1
        return [file["error"] for file in json.loads(run.stdout)["files"]]

    assert "--retry-failed" not in errors()[0]
    assert "--retry-failed tries again" in errors()[0]
    assert "--retry-failed" not in errors("--retry-failed")[0]
    assert "--retry-failed" not in errors("--fps", "2")[0]  # other settings may succeed
    bad.write_bytes((clips / "clip2.mp4").read_bytes())  # another file now
    assert everyframe(*encode_command(videos, out)).returncode == 0
    lines = [json.loads(line) for line in (out / "everyframe.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["failed"] * 3 + ["done"]


def test_journal_survives_a_line_cut_short(tmp_path: Path) -> None:
    from everyframe.pipeline.resume import Journal

    video = tmp_path / "a.mp4"
    video.write_bytes(b"abc")
    Journal(tmp_path / "j.jsonl").add(video, {"fps": 3}, "failed", "why")
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"source": "x", "stat')
    again = Journal(tmp_path / "j.jsonl")
    assert again.failed_before(video, {"fps": 3}) == "why"
    assert again.failed_before(video, {"fps": 2}) is None
    video.write_bytes(b"abcd")
    assert again.failed_before(video, {"fps": 3}) is None


def test_forecast_adds_up_what_the_headers_say(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    dense = ef.DenseEncoder(model)
    videos = [*sorted(clips.glob("*.mp4")), tmp_path / "gone.mp4"]
    expected = forecast(videos, dense, Sampling(fps=2.0))
    assert expected.seconds == pytest.approx([5.0, 4.0, 3.0, 0.0], abs=0.11)
    assert expected.num_frames == pytest.approx(24, abs=1)
    assert expected.macs == expected.num_frames * ef.flops(dense).per_frame
    part = forecast(videos[:1], dense, Sampling(fps=2.0, start=1.0, end=2.5))
    assert part.seconds == pytest.approx([1.5])
    many = forecast(videos[:2] * 200, dense, Sampling())  # only some are opened
    assert many.total_seconds == pytest.approx(1800, rel=0.03)


def test_features_record_the_duration_that_was_read(model: ef.Model) -> None:
    video = Path(__file__).resolve().parents[2] / "shared" / "data" / "videos" / "vfr.mp4"
    if not video.exists():
        pytest.skip("needs the real videos in ../shared/data")
    feats = ef.encode_video(video, ef.DenseEncoder(model), fps=1)
    # 205 frames, the last one at 12.946 s for 1/15 s; the header says 12.913 s.
    assert feats.video["duration_seconds"] == pytest.approx(13.013, abs=0.001)
    assert feats.frame_ends[-1] == pytest.approx(13.013, abs=0.001)


def test_search_counts_a_video_once(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    for fps in (2, 3):
        ef.encode_video(clips / "clip0.mp4", ef.DenseEncoder(model), fps=fps).save(tmp_path / f"{fps}.npz")
    query = model.encode_text(["a red circle"])[0]
    with pytest.warns(UserWarning, match="1 of the features are of videos that others cover too"):
        hits = ef.search(tmp_path, query)
    assert hits == ef.search([ef.VideoFeatures.load(tmp_path / "2.npz")], query)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, clip: ef.encode_video(clip, model), "encoder must be one such as .* got Model"),
        (lambda model, clip: ef.encode_video(clip, "bundled"), "encoder must be one such as .* got str"),
        (lambda model, clip: ef.encode_video(clip, ef.DenseEncoder(model), fps="3"), "fps must be a number, got '3'"),
        (lambda model, clip: ef.ResidualViT("bundled"), r"model must be what everyframe\.load returns, got str"),
        (lambda model, clip: ef.DenseEncoder(None), r"model must be what everyframe\.load returns, got NoneType"),
        (lambda model, clip: ef.DenseEncoder(model).encode(np.zeros((1, 3, 112, 112))), "pixels must be a tensor"),
        (lambda model, clip: ef.ground(np.zeros((3, 128)), np.ones(128)), "feats must be VideoFeatures, got ndarray"),
        (lambda model, clip: ef.flops("ViT-L/14"), "encoder must be an encoder"),
        (lambda model, clip: ef.load(None), "name must be"),
    ],
)
def test_wrong_kinds_of_argument_are_named(model: ef.Model, clips: Path, call: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(model, clips / "clip0.mp4")  # type: ignore[operator]


def test_ground_says_that_a_query_must_be_encoded(model: ef.Model, clips: Path) -> None:
    feats = ef.encode_video(clips / "clip2.mp4", ef.DenseEncoder(model))
    with pytest.raises(TypeError, match="query must be a vector, got 'a door'"):
        ef.ground(feats, "a door")


def test_a_journal_that_cannot_be_written_stops_nothing(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    sources = [(clips / f"clip{index}.mp4", tmp_path / f"{index}.npz") for index in (1, 2)]
    (tmp_path / "journal").mkdir()  # a folder stands where the file should go
    batch = encode_videos(sources, ef.DenseEncoder(model), sampling=Sampling(), journal_file=tmp_path / "journal")
    with pytest.warns(UserWarning, match="journal cannot be written"):
        assert [outcome.status for outcome in batch] == ["done", "done"]
