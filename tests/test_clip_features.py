"""TempMe in the product: videos cut into clips, one feature each; searching clips and whole videos."""

from __future__ import annotations

import io
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import checkpoints
import everyframe as ef
from everyframe.cli import app
from everyframe.cli.clip_encoder import parse_clip
from everyframe.pipeline import ClipSampling, Sampling, encode_recipe, encode_videos, forecast, frames_of
from everyframe.pipeline.clips import cut_clips
from everyframe.pipeline.window import Part
from everyframe.training.adapters import Tuning
from everyframe.training.export import load_tempme, save_tempme
from everyframe.video import sample_frames, write_video

SCHEDULE: dict[str, Any] = {"r": 2, "clips": {1: 2, 2: 2, 3: 3}, "remove_cross": 30, "remove_intra": 10}
OPTIONS = ["--r", "2", "--clips", "1:2,2:2,3:3", "--remove-cross", "30", "--remove-intra", "10"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ef.Model:
    return ef.load(checkpoints.light(tmp_path_factory.mktemp("model"), depth=4), device="cpu")


@pytest.fixture(scope="module")
def tempme(model: ef.Model) -> ef.TempMe:
    return ef.TempMe(model, **SCHEDULE)


def render(path: Path, seconds: float, fps: int = 10, seed: int = 0) -> Path:
    """Noise that moves two pixels per frame, so that no two frames are alike."""
    base = np.random.default_rng(seed).integers(0, 255, (96, 600, 3), dtype=np.uint8)
    count = round(seconds * fps)
    write_video(path, (np.ascontiguousarray(base[:, 2 * t : 2 * t + 128]) for t in range(count)), fps=fps)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 seconds at 24 frames per second."""
    return render(tmp_path_factory.mktemp("video") / "seven.mp4", 7, fps=24)


# --- which frames ----------------------------------------------------------------------------------------


def naive(times: list[float], end: float, sampling: ClipSampling) -> list[tuple[float, list[int]]]:
    """(start, frame numbers) of every clip, one number at a time, from the definition in ClipSampling."""
    first, seconds = sampling.start or 0.0, sampling.clip_seconds
    count = max(1, math.floor((end - first) / seconds + 0.5))
    found = []
    for number in range(count):
        begin = first + number * seconds
        past = end if number == count - 1 else begin + seconds
        if not any(begin <= time < past for time in times):
            continue
        rows = []
        for place in range(sampling.frames):
            wanted = begin + (past - begin) * place / sampling.frames
            distances = [round(abs(time - wanted), 6) for time in times]
            rows.append(distances.index(min(distances)))
        found.append((begin, rows))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_clips_hold_the_nearest_frames_whatever_the_frame_times(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = float(rng.choice([0.0, 3.7]))
    times = start + np.cumsum(rng.choice([0.05, 0.3, 0.9, 20.0], size=80, p=[0.3, 0.4, 0.27, 0.03]))
    end = float(times[-1] + rng.uniform(0.01, 3))
    sampling = ClipSampling(clip_seconds=float(rng.choice([1.0, 4.0, 7.5])), frames=6, start=start)
    pixels = torch.arange(80.0)[:, None]  # a frame's only pixel is its number
    sizes = np.diff([0, *sorted(rng.choice(np.arange(1, 80), 9, replace=False)), 80])
    parts = [
        Part(times[past - size : past].tolist(), pixels[past - size : past], None)
        for size, past in zip(sizes, np.cumsum(sizes), strict=True)
    ]
    sampled: Any = SimpleNamespace(last_end_seconds=end, info=SimpleNamespace(path="x.mp4"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chunks = list(cut_clips(parts, sampled, sampling, 3))
    clips = naive(times.tolist(), end, sampling)
    assert [time for chunk in chunks for time in chunk.times] == pytest.approx([begin for begin, _ in clips])
    assert torch.cat([chunk.pixels for chunk in chunks])[..., 0].long().tolist() == [rows for _, rows in clips]
    assert "".join(chunk.plan.roles for chunk in chunks) == "I" * len(clips)
    assert [len(chunk.times) for chunk in chunks[:-1]] == [3] * (len(chunks) - 1)
    full = [begin for begin, _ in clips if begin == start or end - begin >= sampling.clip_seconds]
    few = [begin for begin, rows in clips if len(set(rows)) < 6 and begin in full]
    assert len(caught) == bool(few)  # one warning for all of them
    assert not few or f"x.mp4: the clip at {few[0]:g} s has " in str(caught[0].message)


def test_a_gap_of_years_takes_no_time() -> None:
    times = [0.0, 1.0, 1e12 + 1, 1e12 + 2]
    sampled: Any = SimpleNamespace(last_end_seconds=1e15, info=SimpleNamespace(path="x.mp4"))
    part = Part(times, torch.arange(4.0)[:, None], None)
    with pytest.warns(UserWarning, match="the clip at 0 s has 2 different frames"):
        chunks = list(cut_clips([part], sampled, ClipSampling(clip_seconds=2, frames=4), 8))
    assert [chunk.times for chunk in chunks] == [[0.0, 1e12, 1e12 + 2]]
    assert chunks[0].pixels[..., 0].tolist() == [[0, 0, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]


def test_no_more_is_held_than_a_clip_and_a_half() -> None:
    given = 0

    def parts() -> Any:
        nonlocal given
        for number in range(10_000):
            given += 1
            yield Part([number / 2], torch.zeros(1, 1), None)

    sampled: Any = SimpleNamespace(last_end_seconds=5000.0, info=SimpleNamespace(path="x.mp4"))
    for clips, _ in enumerate(cut_clips(parts(), sampled, ClipSampling(clip_seconds=10, frames=12), 1), start=1):
        if clips == 5:
            break
    assert given <= 2 * (5 * 10 + 5) + 1


def test_features_equal_those_of_frames_picked_by_hand(model: ef.Model, tempme: ef.TempMe, video: Path) -> None:
    feats = ef.encode_video(video, tempme, clip_seconds=2)
    assert feats.times.tolist() == [0, 2, 4, 6]  # 7 s are three and a half clips
    assert feats.frame_ends.tolist() == pytest.approx([2, 4, 6, 7])
    assert feats.roles == "IIII"
    samples = list(sample_frames(video, 6))  # 12 in 2 s
    pixels = model.preprocess(np.stack([sample.pixels for sample in samples[:36]])).unflatten(0, (3, 12))
    np.testing.assert_allclose(feats.embeddings[:3], tempme.encode(pixels).numpy(), atol=1e-5)
    last = list(sample_frames(video, 12, start=6))  # the last second has 12 frames, too
    alone = tempme.encode(model.preprocess(np.stack([sample.pixels for sample in last]))[None])
    np.testing.assert_allclose(feats.embeddings[3:], alone.numpy(), atol=1e-5)
    settings = feats.settings
    assert (settings["encoder"], settings["clip_seconds"], settings["frames"]) == ("tempme", 2.0, 12)
    assert "fps" not in settings
    cost, dense = ef.flops(tempme, 12, rule="all"), ef.flops(ef.DenseEncoder(model), 12, rule="all")
    assert settings["gflops_per_frame"] == pytest.approx(cost.gflops_per_frame, rel=1e-5)
    assert settings["gflops_share"] == pytest.approx(cost.total / dense.total, rel=1e-5)


def test_start_and_end_move_the_clips(tempme: ef.TempMe, video: Path) -> None:
    feats = ef.encode_video(video, tempme, clip_seconds=1, start=2.5, end=5.2)
    assert feats.times.tolist() == [2.5, 3.5, 4.5]
    assert feats.frame_ends[-1] == pytest.approx(5.2)
    with pytest.warns(UserWarning, match="fewer than the 12"):  # however short clips are
        assert ef.encode_video(video, tempme, clip_seconds=1e-7, end=0.1).num_frames == 3
    other = ef.encode_video(video, tempme, clip_seconds=1, start=3.5, end=4.5)
    np.testing.assert_allclose(other.embeddings[0], feats.embeddings[1], atol=1e-5)


def test_features_do_not_depend_on_the_batch_size(model: ef.Model, video: Path) -> None:
    results = [
        ef.encode_video(video, ef.TempMe(model, **SCHEDULE, batch_size=size), clip_seconds=0.7) for size in (1, 3, 16)
    ]
    assert results[0].num_frames == 10
    for other in results[1:]:
        np.testing.assert_allclose(other.embeddings, results[0].embeddings, atol=1e-5)
        assert other.times.tolist() == results[0].times.tolist()
        assert other.settings == results[0].settings


def test_a_video_shorter_than_a_clip_is_read_in_full(model: ef.Model, tempme: ef.TempMe, tmp_path: Path) -> None:
    """12 frames of 1.2 s are enough for a clip of 10 s, as they are for any other."""
    short = render(tmp_path / "short.mp4", 1.2)
    frames = model.preprocess(np.stack([sample.pixels for sample in sample_frames(short, None)]))
    for source in (short, short.read_bytes()):
        feats = ef.encode_video(source, tempme)
        np.testing.assert_allclose(feats.embeddings, tempme.encode(frames[None]).numpy(), atol=1e-5)
    with pytest.warns(UserWarning, match="fewer than the 12 asked for"):  # a stream is opened once
        ef.encode_video(io.BytesIO(short.read_bytes()), tempme)


def test_a_video_with_fewer_frames_than_a_clip_shows_some_twice(
    model: ef.Model, tempme: ef.TempMe, tmp_path: Path
) -> None:
    short = render(tmp_path / "three.mp4", 0.3)
    with pytest.warns(UserWarning, match=r"three.mp4: the clip at 0 s has 3 different frames, fewer than the 12"):
        feats = ef.encode_video(short, tempme)
    frames = model.preprocess(np.stack([sample.pixels for sample in sample_frames(short, None)]))
    # Moments k / 40 s; the frame of 0.1 s is nearer from 0.05 s on, but that moment itself takes the earlier one.
    rows = [0] * 3 + [1] * 4 + [2] * 5
    np.testing.assert_allclose(feats.embeddings, tempme.encode(frames[rows][None]).numpy(), atol=1e-5)


def test_images_are_read_once_each(model: ef.Model, tempme: ef.TempMe, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    for number, picture in enumerate(noise):
        Image.fromarray(picture).save(tmp_path / f"{number:03d}.png")
    feats = ef.encode_video(tmp_path, tempme, clip_seconds=4)
    assert feats.times.tolist() == [0, 4]
    wanted = tempme.encode(model.preprocess(noise).unflatten(0, (2, 12)))
    np.testing.assert_allclose(feats.embeddings, wanted.numpy(), atol=1e-5)


# --- what is refused -------------------------------------------------------------------------------------


def test_arguments_that_make_no_sense(model: ef.Model, tempme: ef.TempMe, video: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps has no meaning with TempMe"):
        ef.encode_video(video, tempme, fps=3)
    with pytest.raises(ValueError, match="clip_seconds has a meaning with TempMe alone, not with DenseEncoder"):
        ef.encode_video(video, ef.DenseEncoder(model), clip_seconds=10)
    with pytest.raises(ValueError, match="cannot join"):
        ef.encode_video(video, tempme, frames=13)
    with pytest.raises(ValueError, match="reads clips of 12 frames, got frames=24"):
        ef.encode_video(video, ef.TempMe(model, **SCHEDULE, positions=tempme.zero_positions(12)), frames=24)
    with pytest.raises(ValueError, match="clip_seconds must be a number of seconds > 0, got 0"):
        ClipSampling(clip_seconds=0)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        ClipSampling(frames=0)
    with pytest.raises(TypeError, match="frames must be a whole number"):
        ClipSampling(frames=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features of clips; keep features"):
        encode_recipe(video, tempme)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass a ClipSampling"):
        next(encode_videos([(video, tmp_path / "x.npz")], tempme, sampling=Sampling()))
    with pytest.raises(ValueError, match="pass a Sampling"):
        next(encode_videos([(video, tmp_path / "x.npz")], ef.DenseEncoder(model), sampling=ClipSampling()))


def test_frames_follow_from_the_encoder(model: ef.Model, tempme: ef.TempMe) -> None:
    assert frames_of(tempme) == 12
    assert frames_of(ef.TempMe(model, **{**SCHEDULE, "clips": {1: 4, 2: 4, 3: 4}})) == 64
    assert frames_of(ef.TempMe(model, **{**SCHEDULE, "clips": {3: 8}})) == 16
    assert frames_of(ef.TempMe(model, **{**SCHEDULE, "clips": {}})) == 12
    assert frames_of(ef.TempMe(model, **SCHEDULE, positions=tempme.zero_positions(24))) == 24


def test_forecast_counts_clips(tempme: ef.TempMe, video: Path) -> None:
    expected = forecast([video, video], tempme, ClipSampling(clip_seconds=2))
    assert expected.num_frames == 8
    assert expected.macs == pytest.approx(8 * ef.flops(tempme, 12).total)


# --- many videos -----------------------------------------------------------------------------------------


def run(model: ef.Model, sources: list[tuple[Path, Path]], **changes: Any) -> list[Any]:
    options = {"clip_seconds": 2.0, **changes}
    return list(encode_videos(sources, ef.TempMe(model, **SCHEDULE), sampling=ClipSampling(**options)))


def test_a_batch_skips_what_is_done_and_goes_on_after_a_bad_file(model: ef.Model, video: Path, tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.mp4", tmp_path / "out"
    bad.write_bytes(video.read_bytes()[:2000])
    sources = [(bad, out / "bad.npz"), (video, out / "seven.npz")]
    first, second = run(model, sources)
    assert (first.status, second.status, second.num_frames) == ("failed", "done", 4)
    assert str(bad) in first.error
    assert not (out / "bad.npz").exists()
    assert [outcome.status for outcome in run(model, sources)] == ["failed", "skipped"]
    # Another clip length, another number of frames, and features of frames are all something else.
    assert run(model, sources[1:], clip_seconds=3.5)[0].status == "done"
    assert run(model, sources[1:], clip_seconds=3.5, frames=24)[0].status == "done"
    dense = ef.DenseEncoder(model)
    assert next(encode_videos(sources[1:], dense, sampling=Sampling(fps=1))).num_frames == 7
    assert run(model, sources[1:])[0].status == "done"
    # So are clips that were read with positions, without masses or within frames: settings that are else left out.
    plain = ef.TempMe(model, **SCHEDULE)
    rows = {block: torch.ones_like(each) for block, each in plain.zero_positions(12).items()}
    for other in ({"positions": rows}, {"proportional": False}, {"temporal": False}):
        clips = {"sampling": ClipSampling(clip_seconds=2.0)}
        assert next(encode_videos(sources[1:], ef.TempMe(model, **SCHEDULE, **other), **clips)).status == "done"
        assert run(model, sources[1:])[0].status == "done"
    # An output that was cut short is made anew.
    (out / "seven.npz").write_bytes((out / "seven.npz").read_bytes()[:500])
    assert run(model, sources[1:])[0].status == "done"
    assert ef.VideoFeatures.load(out / "seven.npz").times.tolist() == [0, 2, 4, 6]


def test_damage_is_kept_on_request(model: ef.Model, tmp_path: Path) -> None:
    damaged = Path(__file__).parents[2] / "shared/data/videos/corrupted.mp4"
    if not damaged.is_file():
        pytest.skip("no shared data here")
    source = [(damaged, tmp_path / "x.npz")]
    assert run(model, source, clip_seconds=2.0, frames=12)[0].status == "failed"
    (outcome,) = run(model, source, clip_seconds=2.0, frames=12, keep_partial=True)
    assert outcome.status == "partial"
    assert f"kept {outcome.num_frames} clips; " in outcome.error


def cli(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_line_from_videos_to_hits(model: ef.Model, video: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for seed, seconds in enumerate((3, 5)):
        render(folder / f"v{seed}.mp4", seconds, seed=seed)
    command = ["encode", folder, "--model", model.folder, *OPTIONS, "--clip", "2s", "--out", out, "--json"]
    result = cli(*command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["done"] == 2
    assert json.loads(cli(*command, "--encoder", "tempme").stdout)["skipped"] == 2
    facts = json.loads(cli("info", out / "v1.npz", "--json").stdout)
    assert (facts["clips"], facts["end_seconds"], facts["settings"]["clip_seconds"]) == (3, 5.0, 2.0)
    hits = json.loads(cli("search", out, "a red circle", "--level", "video", "--json").stdout)
    query = model.encode_text(["a red circle"])[0].numpy()
    wanted = {}
    for name in ("v0", "v1"):
        feats = ef.VideoFeatures.load(out / f"{name}.npz")
        scores = [float(row @ query) for row in feats.embeddings]
        wanted[name] = (max(scores), feats.times[scores.index(max(scores))])
    assert [Path(hit["video"]).stem for hit in hits] == sorted(wanted, key=lambda name: -wanted[name][0])
    for hit in hits:
        score, start = wanted[Path(hit["video"]).stem]
        assert (hit["score"], hit["start"]) == (pytest.approx(score, abs=1e-4), start)
    assert len(json.loads(cli("search", out, "a red circle", "--level", "clip", "--json").stdout)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "tempme", "--fps", "3"], "--fps has no meaning with --encoder tempme: --frames and --clip say"),
        (["--clip", "5", "--interleave", "2"], "--interleave has no meaning with --clip: TempMe reads whole clips"),
        (["--encoder", "tempme", "--recipe"], "--recipe has no meaning with --encoder tempme"),
        (["--encoder", "dense", "--clip", "5"], "--clip has no meaning with --encoder dense: only --encoder tempme"),
        (["--preset", "msrvtt-b32", "--r", "2"], "--preset says all of the schedule; leave out --r"),
        (["--encoder", "tempme", "--preset", "x"], "there is no preset 'x'"),
        (["--encoder", "tempme", "--clip", "1m"], "--clip must be a number of seconds above 0, such as 10s"),
        (["--encoder", "tempme", "--frames", "0"], "frames must be at least 1"),
        (["--encoder", "tempme", "--model", "bundled"], "clips names block 8, but bundled has 4"),
        (["--model", "bundled", *OPTIONS, "--frames", "13"], "cannot join"),
        (["--model", "bundled", *OPTIONS, "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_options_that_contradict_each_other(options: list[str], message: str, video: Path, tmp_path: Path) -> None:
    result = cli("encode", video, "--out", tmp_path, *options)
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_other_commands_name_the_one_that_reads_clips(video: Path) -> None:
    result = cli("ground", video, "a red circle", "--encoder", "tempme", "--model", "bundled")
    assert "it belongs to everyframe encode" in str(result.exception)


@pytest.mark.parametrize(("text", "seconds"), [("10s", 10), ("10", 10), ("2.5 s", 2.5), (" .5s", 0.5)])
def test_seconds_of_a_clip(text: str, seconds: float) -> None:
    assert parse_clip(text) == seconds


@pytest.mark.parametrize("how", ["lora", "adapter"])
def test_a_fine_tuned_folder_brings_its_own_encoder(how: str, video: Path, tmp_path: Path) -> None:
    base = ef.load("bundled", device="cpu")
    tuning = Tuning(base, how)
    rows = {block: torch.randn_like(each) for block, each in ef.TempMe(base, **SCHEDULE).zero_positions(24).items()}
    save_tempme(tmp_path / "tuned", tuning, rows, SCHEDULE, {"recipe": {"frames": 24}})
    command = ["encode", video, "--model", tmp_path / "tuned", "--encoder", "tempme", "--clip", "3", "--out", tmp_path]
    assert cli(*command).exit_code == 0
    feats = ef.VideoFeatures.load(tmp_path / "seven.npz")
    assert feats.settings["frames"] == 24
    wanted = ef.encode_video(video, load_tempme(tmp_path / "tuned", device="cpu"), clip_seconds=3)
    np.testing.assert_allclose(feats.embeddings, wanted.embeddings, atol=1e-5)
    assert "has its own schedule" in str(cli(*command, "--r", "2").exception)
    assert cli("search", tmp_path / "seven.npz", "a red circle", "--level", "video").exit_code == 0


# --- search ----------------------------------------------------------------------------------------------


def features(name: str, rng: np.random.Generator, *, clips: bool = True, count: int = 6) -> ef.VideoFeatures:
    return ef.VideoFeatures(
        times=10.0 * np.arange(count) if clips else np.arange(count) / 3,
        embeddings=rng.normal(size=(count, 4)).astype(np.float32),  # of any length: search normalises
        roles="I" * count,
        video={"path": name},
        model={"id": "tiny"},
        settings={"clip_seconds": 10.0} if clips else {"fps": 3.0},
        end_seconds=count * 10.0 - 3 if clips else count / 3,
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(a * a) * sum(b * b)))


def test_videos_are_ranked_by_their_best_clip() -> None:
    rng = np.random.default_rng(0)
    videos = [features(f"{number}.mp4", rng) for number in range(9)] + [features("none.mp4", rng, count=0)]
    query = rng.normal(size=4)
    wanted = []
    for feats in videos[:-1]:
        scores = [cosine(row, query) for row in feats.embeddings.astype(np.float64)]
        best = scores.index(max(scores))
        wanted.append((max(scores), feats.video["path"], 10.0 * best, min(10.0 * best + 10, 57.0)))
    wanted.sort(reverse=True)
    hits = ef.search(videos, query, level="video", top=20)
    assert [(hit.video, hit.start, hit.end) for hit in hits] == [each[1:] for each in wanted]
    assert [hit.score for hit in hits] == pytest.approx([each[0] for each in wanted], abs=1e-6)
    assert ef.search(videos, query, level="video", top=3) == hits[:3]


def test_clips_are_candidates_of_their_own() -> None:
    rng = np.random.default_rng(1)
    videos, query = [features(f"{number}.mp4", rng) for number in range(5)], rng.normal(size=4)
    wanted = sorted(
        (-cosine(row.astype(np.float64), query), feats.video["path"], 10.0 * number)
        for feats in videos
        for number, row in enumerate(feats.embeddings)
    )
    hits = ef.search(videos, query, level="clip", top=30, per_video=6)
    assert [(hit.video, hit.start) for hit in hits] == [each[1:] for each in wanted]
    assert ef.search(videos, query, top=30, per_video=6) == hits  # moments of such features are clips
    assert max(sum(hit.video == f"{n}.mp4" for hit in ef.search(videos, query, top=30)) for n in range(5)) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_videos_of_frames_are_ranked_by_their_mean(dtype: type) -> None:
    rng = np.random.default_rng(2)
    videos, query = [features(f"{n}.mp4", rng, clips=False, count=50) for n in range(4)], rng.normal(size=4)
    videos = [ef.VideoFeatures(**{**vars(each), "embeddings": each.embeddings.astype(dtype)}) for each in videos]
    wanted = []
    for feats in videos:
        rows = [row / np.sqrt((row * row).sum()) for row in feats.embeddings.astype(np.float64)]
        wanted.append((cosine(sum(rows) / len(rows), query), feats.video["path"], 0.0, 50 / 3))
    wanted.sort(reverse=True)
    hits = ef.search(videos, query, level="video")
    assert [(hit.video, hit.start, hit.end) for hit in hits] == [each[1:] for each in wanted]
    assert [hit.score for hit in hits] == pytest.approx([each[0] for each in wanted], abs=1e-5)


def test_what_search_refuses() -> None:
    rng = np.random.default_rng(3)
    frames, clips = features("f.mp4", rng, clips=False), features("c.mp4", rng)
    query = rng.normal(size=4)
    with pytest.raises(ef.FeaturesError, match=r"the first are of frames, those of c.mp4 of clips"):
        ef.search([frames, clips], query, level="video")
    with pytest.raises(ef.FeaturesError, match=r"features of f.mp4 are of frames, and there are no clips"):
        ef.search([frames], query, level="clip")
    with pytest.raises(ValueError, match="level must be one of moment, clip, video, got 'scene'"):
        ef.search([clips], query, level="scene")  # type: ignore[arg-type]
