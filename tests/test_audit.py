"""The audit: its figures against independent computations, its advice on hand-made rows, its page, its sentences."""

from __future__ import annotations

import json
import re
import shlex
import time
import warnings
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import checkpoints
import everyframe as ef
from command import everyframe
from everyframe.audit import Advice, Audit, Row, Setting, VideoAudit, audit_page
from everyframe.audit import audit_videos as audit_with_auto
from everyframe.audit.advice import Inputs, advise, choose
from everyframe.audit.pictures import mark_kept, visible
from everyframe.audit.queries import Queries
from everyframe.audit.windows import spread
from everyframe.cli import app
from everyframe.cli.encoder import choose_encoder
from everyframe.features import VideoFeatures
from everyframe.pipeline import Window, read_window
from everyframe.video import VideoError, write_video

# What ships with the bundled model decides nothing here: no token unless a test gives one.
audit_videos = partial(audit_with_auto, residual=None)
DENSE = Setting("dense")
MOTION = Setting("interleaved", 2, "motion")
ADAPTIVE = Setting("reuse", tolerance=1.0)


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two H.264 videos of a moving texture, the second twice as long and with a cut, and a broken one."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for index, seconds in enumerate((5, 10)):
        base = rng.integers(0, 255, (2, 12, 60, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        frames = (
            np.ascontiguousarray(base[int(t > 50)][:, 2 * (t % 100) : 2 * (t % 100) + 128]) for t in range(10 * seconds)
        )
        write_video(folder / f"clip{index}.mp4", frames, fps=10)
    data = (folder / "clip0.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(data[: len(data) // 3])
    return folder


@pytest.fixture(scope="module")
def audit(model: ef.Model, clips: Path) -> Audit:
    """Both good videos whole, and the broken one between them."""
    paths = [clips / "clip0.mp4", clips / "broken.mp4", clips / "clip1.mp4"]
    return audit_videos(paths, model, interleaves=(1, 2), target=0.9)


def cosines(a: VideoFeatures, b: VideoFeatures) -> np.ndarray:
    return (a.normalised() * b.normalised()).sum(1)


# --- figures ---------------------------------------------------------------------------------------------


def test_fidelity_equals_that_of_whole_encodes(model: ef.Model, clips: Path, audit: Audit) -> None:
    """The window covers the video: `encode_video` must give the same cosines, motion and seeds included."""
    pooled = []
    for video, name in zip(audit.videos, ("clip0.mp4", "clip1.mp4"), strict=True):
        dense = ef.encode_video(clips / name, ef.DenseEncoder(model))
        for setting in (row.setting for row in video.rows if row.setting.kind == "interleaved"):
            encoder = ef.ResidualViT(model, setting.interleave, select=str(setting.select), residual=None)
            own = ef.encode_video(clips / name, encoder)
            np.testing.assert_allclose(video.cosines[setting], cosines(dense, own), atol=2e-5)
            np.testing.assert_allclose(video.times, own.times)
            row, wanted = video.row(setting), cosines(dense, own)
            of_p = wanted[[role == "P" for role in own.roles]]
            figures = [row.fidelity_mean, row.fidelity_min, row.p_mean, row.p_p5, row.p_min]
            by_hand = [wanted.mean(), wanted.min(), of_p.mean(), np.percentile(of_p, 5), of_p.min()]
            np.testing.assert_allclose(figures, by_hand, atol=2e-5)
            assert (row.frames, row.p_frames) == (len(wanted), len(of_p))
            if setting == MOTION:
                pooled.append(wanted)
    over_all = next(row for row in audit.rows if row.setting == MOTION)
    assert over_all.fidelity_mean == pytest.approx(np.concatenate(pooled).mean(), abs=2e-5)
    assert over_all.frames == sum(map(len, pooled)) == audit.frames == 45
    assert {video.motion_source for video in audit.videos} == {"codec"}


def test_baselines_equal_their_formula(model: ef.Model, clips: Path, audit: Audit) -> None:
    dense = ef.encode_video(clips / "clip1.mp4", ef.DenseEncoder(model))
    rows = dense.normalised().astype(np.float64)
    copied, between = [], []
    for t in range(len(rows)):
        before = t - t % 3
        after = before + 3 if before + 3 < len(rows) else before
        share = (dense.times[t] - dense.times[before]) / max(dense.times[after] - dense.times[before], 1e-9)
        mixed = (1 - share) * rows[before] + share * rows[after]
        copied.append(rows[t] @ rows[before])
        between.append(rows[t] @ mixed / np.linalg.norm(mixed))
    video = audit.videos[1]
    np.testing.assert_allclose(video.cosines[Setting("copy", 2)], copied, atol=2e-5)
    np.testing.assert_allclose(video.cosines[Setting("interpolate", 2)], between, atol=2e-5)


def test_costs_are_those_of_the_encoders(model: ef.Model, audit: Audit) -> None:
    lengths = [len(video.times) for video in audit.videos]
    dense = ef.flops(ef.DenseEncoder(model)).gflops_per_frame
    encoder = ef.ResidualViT(model, residual=None)
    of_motion = sum(ef.flops(encoder, frames).total for frames in lengths) / sum(lengths) / 1e9
    by_setting = {row.setting: row for row in audit.rows}
    assert by_setting[DENSE].gflops_per_frame == pytest.approx(dense)
    assert by_setting[MOTION].gflops_per_frame == pytest.approx(of_motion)
    of_full = sum(-(-frames // 3) for frames in lengths) / sum(lengths)
    copy = by_setting[Setting("copy", 2)]
    assert copy.gflops_per_frame == pytest.approx(dense * of_full)
    assert copy.encode_speed_up == pytest.approx(1 / of_full, rel=1e-6)
    for row in audit.rows:  # no claim about how fast, only that the figures hang together
        assert row.encode_ms_per_frame * row.encode_speed_up == pytest.approx(by_setting[DENSE].encode_ms_per_frame)
        whole = by_setting[DENSE].encode_ms_per_frame + audit.reading_ms_per_frame
        assert row.total_speed_up == pytest.approx(whole / (row.encode_ms_per_frame + row.reading_ms_per_frame))


def test_reuse_is_measured_as_it_encodes(light: ef.Model, clips: Path, tmp_path: Path) -> None:
    """Against whole encodes with the settings written out, and a cost counted by hand from the plan."""
    base = np.random.default_rng(1).integers(0, 255, (12, 60, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    places = [0] * 30 + list(range(30))  # still, then moving: copies, then P-frames
    write_video(tmp_path / "halt.mp4", (np.ascontiguousarray(base[:, x : x + 128]) for x in places), fps=10)
    paths = [clips / "clip1.mp4", tmp_path / "halt.mp4"]
    audit = audit_videos(paths, light, interleaves=(2,), selects=("center",))
    vision = light.vision
    width, depth = 32, 2
    for setting, encoder in {
        Setting("reuse", tolerance=3.0): ef.ReuseEncoder(light, plan="adaptive", tolerance=3.0),
        Setting("reuse", 2): ef.ReuseEncoder(light, 2),
    }.items():
        macs = frames = 0.0
        pooled = []
        for video, path in zip(audit.videos, paths, strict=True):
            dense, own = (ef.encode_video(path, e) for e in (ef.DenseEncoder(light), encoder))
            assert ("C" in own.roles) == (path.name == "halt.mp4" and setting.adaptive) and "P" in own.roles
            np.testing.assert_allclose(video.cosines[setting], cosines(dense, own), atol=2e-5)
            np.testing.assert_array_equal(video.reduced[setting], [role != "I" for role in own.roles])
            assert 0 < video.row(setting).p_frames < len(own.times)
            pooled.append(cosines(dense, own))
            counts = encoder.planner().add(read_window(path, light, motion=False).pixels).counts.tolist()
            for role, count in zip(own.roles, counts, strict=True):
                if role == "C":
                    continue
                share = 196 * 0.15 if role == "P" and not setting.adaptive else count
                patches = 196 if role == "I" else share
                blocks = depth * (patches + vision.num_prefix) * (4 + 2 * 2) * width**2
                macs += patches * 3 * 8**2 * width + blocks + width * light.dim
            frames += len(own.times)
        row = next(row for row in audit.rows if row.setting == setting)
        assert row.gflops_per_frame == pytest.approx(macs / frames / 1e9)
        assert row.fidelity_mean == pytest.approx(np.concatenate(pooled).mean(), abs=2e-5)
        assert row.encode_ms_per_frame > 0 and not row.reads_motion


def test_reuse_windows_stand_alone(light: ef.Model, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several windows begins with an I-frame and is planned without the others."""
    monkeypatch.setattr("everyframe.audit.windows._SECONDS", 3.0)
    options: dict[str, Any] = {"interleaves": (1,), "selects": ("center",), "tolerances": (3.0,)}
    result = audit_videos(clips / "clip1.mp4", light, fps=10, sample_seconds=9.0, **options)
    (video,) = result.videos
    shown = Setting("reuse", tolerance=3.0)
    encoder = ef.ReuseEncoder(light, plan="adaptive", tolerance=3.0)
    parts = spread(10.0, 9.0, 10)
    assert len(parts) == len(video.windows) == 3
    for (start, end), window in zip(parts, video.windows, strict=True):
        part = ef.encode_video(clips / "clip1.mp4", encoder, fps=10, start=start, end=end)
        reduced = video.reduced[shown][window.first : window.past]
        np.testing.assert_array_equal(reduced, [role != "I" for role in part.roles])


def test_reading_is_charged_with_motion_only_where_it_is_needed(
    light: ef.Model, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[bool] = []

    def slow(*arguments: Any, motion: bool, **options: Any) -> Window:
        reads.append(motion)
        window = read_window(*arguments, motion=motion, **options)
        time.sleep(0.5 * motion)
        return window

    monkeypatch.setattr("everyframe.audit.run.read_window", slow)
    options: dict[str, Any] = {"interleaves": (2,), "sample_seconds": 2.0}
    result = audit_videos([clips / "clip0.mp4", clips / "clip1.mp4"], light, selects=("motion", "residual"), **options)
    for row in result.rows:
        assert row.reads_motion == (row.setting.select == "motion")
        assert (row.reading_ms_per_frame > 500 / 7) == row.reads_motion  # six or seven frames of each
    assert f"({result.rows[1].reading_ms_per_frame:.1f} with motion)" in result.summary()
    assert reads == [False, True, False, False, True]  # one for warming up, then in turns
    reads.clear()
    result = audit_videos(clips / "clip0.mp4", light, selects=("center",), **options)
    assert reads == [False, False] and result.videos[0].motion_source is None
    assert "with motion" not in result.summary()


@pytest.mark.parametrize("changes", [{"drop": 0.0, "interleaves": (2,)}, {"interleaves": (0,)}])
def test_nothing_is_lost_where_nothing_is_left_out(model: ef.Model, clips: Path, changes: dict[str, object]) -> None:
    result = audit_videos(clips / "clip1.mp4", model, selects=("motion",), tolerances=(), **changes)  # type: ignore[arg-type]
    row = next(row for row in result.rows if row.setting.kind == "interleaved")
    assert row.fidelity_min == pytest.approx(1.0, abs=1e-5)
    assert (row.moments, row.moment_iou, row.moment_share) == (6, pytest.approx(1.0), 1.0)
    assert not result.advice.reached  # it saves nothing either
    assert "gives" in result.advice.sentence or "give" in result.advice.sentence


def test_moments_equal_those_of_ground(light: ef.Model, clips: Path) -> None:
    query = "a large red striped circle"
    result = audit_videos(clips / "clip1.mp4", light, queries=[query], interleaves=(2,), selects=("center",))
    setting = Setting("interleaved", 2, "center")
    vector = light.encode_text([query])[0]
    encoders = (ef.DenseEncoder(light), ef.ResidualViT(light, select="center", residual=None))
    dense, own = (ef.ground(ef.encode_video(clips / "clip1.mp4", e), vector, top=1)[0] for e in encoders)
    (answer,) = result.videos[0].answers
    assert (answer.query, answer.dense.start, answer.dense.end) == (query, dense.start, pytest.approx(dense.end))
    assert answer.found[setting].start == own.start
    overlap = max(0.0, min(dense.end, own.end) - max(dense.start, own.start))
    union = dense.duration + own.duration - overlap
    assert result.videos[0].row(setting).moment_iou == pytest.approx(overlap / union, abs=1e-3)


def test_residual_token_adds_rows(light: ef.Model, clips: Path) -> None:
    tokenizer = ef.ResidualTokenizer(light.dim, light.vision.config.width)
    result = audit_videos(
        clips / "clip0.mp4",
        light,
        residual=tokenizer,
        interleaves=(2,),
        selects=("motion",),
        tolerances=(),
        target=0.01,
    )
    with_token = Setting("interleaved", 2, "motion", token=True)
    own = ef.encode_video(clips / "clip0.mp4", ef.ResidualViT(light, residual=tokenizer))
    dense = ef.encode_video(clips / "clip0.mp4", ef.DenseEncoder(light))
    np.testing.assert_allclose(result.videos[0].cosines[with_token], cosines(dense, own), atol=2e-5)
    assert not any("training-free" in note for note in result.notes)
    assert [row.setting.label for row in result.rows] == ["dense", "motion", "motion + token", "copy", "interpolate"]


def test_the_tokenizer_is_resolved_once_and_named_as_given(
    light: ef.Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token.safetensors"
    ef.ResidualTokenizer(light.dim, light.vision.config.width, facts={"drop": 0.5}).save(file)
    loads: list[object] = []
    load = ef.ResidualTokenizer.load
    monkeypatch.setattr(ef.ResidualTokenizer, "load", lambda source, model: loads.append(source) or load(source, model))
    inputs: list[Inputs] = []

    def keep(rows: list[Row], videos: list[VideoAudit], target: float, given: Inputs) -> Advice:
        inputs.append(given)
        return advise(rows, videos, target, given)

    monkeypatch.setattr("everyframe.audit.run.advise", keep)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = audit_videos(clips / "clip0.mp4", light, residual=str(file), interleaves=(1, 2))
    assert loads == [str(file)] == [inputs[0].residual]
    (warning,) = caught
    assert "token.safetensors was fitted for drop=0.5 and is used with drop=0.85" in str(warning.message)
    assert sum(row.setting.token for row in result.rows) == 6


def test_grid_of_settings(light: ef.Model, clips: Path, audit: Audit) -> None:
    labels = [row.setting.title for row in audit.rows]
    assert labels[:4] == ["dense", "N=1 motion", "N=1 copy", "N=1 interpolate"]
    names = ("motion", "residual", "center", "uniform", "random", "reuse", "copy", "interpolate")
    assert labels[4:12] == [f"N=2 {name}" for name in names]
    assert labels[12:] == [f"adaptive reuse at tolerance {tolerance}" for tolerance in ("0.3", "1", "3")]
    assert [row.cells()[:2] for row in audit.rows[-2:]] == [["-", "reuse, tol 1"], ["-", "reuse, tol 3"]]
    full = audit_videos(clips / "clip0.mp4", light, interleaves=(5, 1), selects=("motion", "center"), full_grid=True)
    kinds = [row.setting.title for row in full.rows if row.setting.kind == "interleaved"]
    assert kinds == ["N=1 motion", "N=1 center", "N=5 motion", "N=5 center"]
    assert [row.setting.interleave for row in full.rows if row.setting.kind == "reuse"] == [1, 5, 0, 0, 0]


def test_vision_only_models_and_texts(clips: Path, tmp_path: Path) -> None:
    vision_only = ef.load(checkpoints.dinov2(tmp_path / "dino"), device="cpu")
    result = audit_videos(clips / "clip0.mp4", vision_only, interleaves=(2,), selects=("motion",))
    assert result.videos[0].answers[0].query.startswith("like the frame at")
    with pytest.raises(ef.ModelError, match="no text tower"):
        audit_videos(clips / "clip0.mp4", vision_only, queries=["a dog"])


def test_generated_queries_come_from_the_prompt_bank(clips: Path, tmp_path: Path) -> None:
    from everyframe.training.prompts import prompt_bank

    dual = ef.load(checkpoints.clip(tmp_path / "clip"), device="cpu")
    asked = Queries(dual, None)
    dense = ef.encode_video(clips / "clip1.mp4", ef.DenseEncoder(dual))
    chosen = asked.of_window(dense, 3)
    assert 1 <= len(chosen) <= 3
    assert {query.text for query in chosen} <= set(prompt_bank())
    peaks = []
    for query in chosen:  # peaks apart from each other
        curve = (dense.normalised() @ query.vector).astype(np.float64)
        near = np.abs(dense.times[:, None] - dense.times) <= 2.5 + 1e-6
        peaks.append(dense.times[((near * curve).sum(1) / near.sum(1)).argmax()])
    assert all(abs(a - b) > 2.4 for n, a in enumerate(peaks) for b in peaks[:n])


# --- windows ---------------------------------------------------------------------------------------------


def test_windows() -> None:
    assert spread(45.0, 60.0, 3.0) == [(None, None)]
    assert spread(None, 60.0, 3.0) == [(None, 60.0)]
    assert spread(600.0, 60.0, 3.0) == [(90.0, 110.0), (290.0, 310.0), (490.0, 510.0)]
    assert spread(100.0, 4.0, 3.0) == [(48.0, 52.0)]
    whole = spread(300.0, 400.0, 3.0)  # whole, but never more than 240 frames at once
    assert whole[0] == (None, 75.0) and whole[-1] == (225.0, None) and len(whole) == 4
    for duration in (30.0, 61.0, 7200.0):
        for fps in (1.0, 3.0, 30.0):
            parts = spread(duration, 60.0, fps)
            edges = [(start or 0.0, duration if end is None else end) for start, end in parts]
            assert all(0 <= start < end <= duration for start, end in edges)
            assert all(end - start <= 240 / fps + 1e-3 for start, end in edges)
            assert all(a[1] <= b[0] + 1e-3 for a, b in pairwise(edges))
            assert sum(end - start for start, end in edges) == pytest.approx(min(60.0, duration), abs=0.01)


def test_a_long_video_is_sampled(light: ef.Model, clips: Path) -> None:
    result = audit_videos(clips / "clip1.mp4", light, interleaves=(2,), selects=("motion",), sample_seconds=4.0)
    part = ef.encode_video(clips / "clip1.mp4", ef.ResidualViT(light, residual=None), start=3.0, end=7.0)
    dense = ef.encode_video(clips / "clip1.mp4", ef.DenseEncoder(light), start=3.0, end=7.0)
    np.testing.assert_allclose(result.videos[0].cosines[MOTION], cosines(dense, part), atol=2e-5)
    (window,) = result.videos[0].windows
    assert (window.start, window.end) == (pytest.approx(3.0), pytest.approx(part.frame_ends[-1]))


# --- advice ----------------------------------------------------------------------------------------------


def a_row(setting: Setting, fidelity: float, gflops: float, p_frames: int = 60) -> Row:
    return Row(
        setting=setting,
        frames=90,
        p_frames=p_frames,
        fidelity_mean=fidelity,
        fidelity_p5=fidelity - 0.1,
        fidelity_min=fidelity - 0.2,
        p_mean=fidelity - 0.05,
        p_p5=fidelity - 0.1,
        p_min=fidelity - 0.2,
        moments=0,
        moment_iou=None,
        moment_share=None,
        gflops_per_frame=gflops,
        encode_ms_per_frame=gflops,
        encode_speed_up=10 / gflops,
        reads_motion=setting.select == "motion",
        reading_ms_per_frame=1.0,
        total_speed_up=5 / gflops,
    )


ROWS = [
    a_row(DENSE, 1.0, 10.0, 0),
    a_row(Setting("interleaved", 1, "motion"), 0.99, 6.0),
    a_row(MOTION, 0.97, 4.5),
    a_row(Setting("interleaved", 2, "center"), 0.98, 4.5),
    a_row(Setting("interleaved", 5, "motion", token=True), 0.93, 3.0),
    a_row(Setting("copy", 1), 0.96, 5.0),
    a_row(Setting("copy", 2), 0.90, 3.4),
    a_row(Setting("interpolate", 2), 0.94, 3.4),
]
INPUTS = Inputs(
    paths=["my videos", "b.mp4"], example="b.mp4", model="m", dtype="bfloat16", fps=3.0, drop=0.85, residual="auto"
)


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        (0.9, Setting("interleaved", 5, "motion", token=True)),
        (0.93, Setting("interleaved", 5, "motion", token=True)),  # reached exactly
        (0.97, Setting("interleaved", 2, "center")),  # of equal cost the closer one
        (0.985, Setting("interleaved", 1, "motion")),
        (0.995, None),
    ],
)
def test_the_cheapest_that_reaches_the_target_is_chosen(target: float, chosen: Setting | None) -> None:
    row = choose(ROWS, target)
    assert (row and row.setting) == chosen
    assert choose(ROWS[::-1], target) == row
    assert advise(ROWS, [], target, INPUTS).setting == chosen


def test_advice_gives_a_command_and_code() -> None:
    advice = advise(ROWS, [], 0.97, INPUTS)
    assert advice.command == (
        "everyframe encode 'my videos' b.mp4 --out features --model m --fps 3 --interleave 2 --drop 0.85 "
        "--select center --residual none --dtype bfloat16"
    )
    assert advice.code is not None
    assert 'ef.ResidualViT(model, interleave=2, drop=0.85, select="center", residual=None)' in advice.code
    assert "0.980" in advice.sentence and "55 % less compute" in advice.sentence
    assert "not tried at every N" in advice.sentence
    with_token = advise(ROWS, [], 0.9, INPUTS)
    assert with_token.command is not None and "--residual auto" in with_token.command
    compile(str(with_token.code), "advice", "exec")


@pytest.mark.parametrize(
    ("setting", "made", "code"),
    [
        (
            Setting("reuse", tolerance=0.3),
            {"plan": "adaptive", "tolerance": 0.3, "drop": 0.85},
            'ef.ReuseEncoder(model, drop=0.85, plan="adaptive", tolerance=0.3)',
        ),
        (
            Setting("reuse", 5),
            {"plan": "fixed", "interleave": 5, "drop": 0.85},
            "ef.ReuseEncoder(model, interleave=5, drop=0.85)",
        ),
    ],
)
def test_reuse_is_advised_where_it_is_cheapest(
    model: ef.Model, setting: Setting, made: dict[str, object], code: str
) -> None:
    """And what is printed makes that encoder, on the command line and in Python."""
    dearer, too_far = (
        a_row(Setting("reuse", tolerance=0.1), 0.99, 5.0),
        a_row(Setting("reuse", tolerance=3.0), 0.9, 1.0),
    )
    advice = advise([*ROWS, dearer, a_row(setting, 0.97, 2.0), too_far], [], 0.97, INPUTS)
    assert advice.setting == setting and setting.title in advice.sentence
    assert "80 % less compute" in advice.sentence
    assert ("Reuse was not tried at every N: --all does." in advice.sentence) == (not setting.adaptive)
    words = shlex.split(str(advice.command))
    assert words[:4] == ["everyframe", "encode", "my videos", "b.mp4"]
    options = {name.removeprefix("--"): value for name, value in zip(words[4::2], words[5::2], strict=True)}
    chosen: dict[str, Any] = {
        name: kind(options[name])
        for name, kind in (("tolerance", float), ("interleave", int), ("drop", float))
        if name in options
    }
    assert set(options) - set(chosen) == {"out", "model", "fps", "dtype"}
    choice = choose_encoder(**chosen)
    assert (choice.name, choice.arguments | {"plan": choice.arguments.get("plan", "adaptive")}) == ("reuse", made)
    assert code in str(advice.code)
    assert eval(code, {"ef": ef, "model": model}).settings == choice.make(model).settings
    assert advise([*ROWS, a_row(setting, 0.97, 4.6)], [], 0.97, INPUTS).setting == Setting("interleaved", 2, "center")


def test_a_smaller_tolerance_is_what_to_try() -> None:
    best = a_row(Setting("reuse", tolerance=0.3), 0.994, 5.0)
    sentence = advise([*ROWS, best], [], 0.995, INPUTS).sentence
    assert "adaptive reuse at tolerance 0.3 with 0.994" in sentence and "--tolerance 0.1, --drop 0.6" in sentence


def test_advice_says_plainly_that_nothing_reaches_the_target() -> None:
    advice = advise(ROWS, [], 0.995, INPUTS)
    assert (advice.reached, advice.command, advice.code, advice.remark) == (False, None, None, None)
    assert "Nothing cheaper than dense reaches a mean fidelity of 0.995" in advice.sentence
    assert "N=1 motion with 0.990" in advice.sentence and "everyframe distill" in advice.sentence
    assert "--drop 0.6" in advice.sentence and "--interleave" not in advice.sentence
    worse = [replace(row, fidelity_mean=0.5) if row.setting.kind == "interleaved" else row for row in ROWS]
    assert "Without looking at P-frames at all, N=1 copy has 0.960" in advise(worse, [], 0.995, INPUTS).sentence
    single = [replace(row, p_frames=0) for row in ROWS]
    assert "no P-frame" in advise(single, [], 0.5, INPUTS).sentence


def test_baselines_are_only_remarked_on() -> None:
    advice = advise(ROWS, [], 0.94, INPUTS)
    assert advice.setting == Setting("interleaved", 2, "center")
    assert advice.remark is not None and "Interpolating between I-features reaches 0.940 at N=2" in advice.remark
    assert "np.interp" in str(advice.remark_code) and "fps=1)" in str(advice.remark_code)
    assert "cheaper than the setting above" not in advice.remark
    assert advise(ROWS, [], 0.97, INPUTS).remark is None


@pytest.mark.parametrize("kind", ["copy", "interpolate"])
def test_the_code_of_a_remark_does_what_it_says(model: ef.Model, clips: Path, audit: Audit, kind: str) -> None:
    """Run it: its features must be as close to dense as the audit measured."""
    rows = [row for row in audit.rows if row.setting in (DENSE, Setting(kind, 2))]  # type: ignore[arg-type]
    path = str(clips / "clip0.mp4")
    inputs = replace(INPUTS, example=path, model="bundled", dtype="float32")
    advice = advise(rows, [], 0.01, inputs)
    assert advice.remark is not None and advice.remark_code is not None
    names: dict[str, object] = {}
    exec(advice.remark_code, names)
    dense = ef.encode_video(path, ef.DenseEncoder(model))
    measured = audit.videos[0].row(Setting(kind, 2)).fidelity_mean  # type: ignore[arg-type]
    # Interpolated at the grid's times, where the audit had the true ones: off by up to 0.05 s here.
    assert names["rows"].shape == dense.embeddings.shape  # type: ignore[attr-defined]
    assert (dense.normalised() * names["rows"]).sum(1).mean() == pytest.approx(
        measured, abs=1e-4 if kind == "copy" else 3e-3
    )


# --- pictures and the page -------------------------------------------------------------------------------


def test_pictures_show_what_the_model_saw(model: ef.Model, clips: Path) -> None:
    window = read_window(clips / "clip0.mp4", model)
    frame = visible(window.pixels[1], model)
    assert frame.dtype == np.uint8 and frame.shape == (model.image_size, model.image_size, 3)
    # Normalising it again gives the pixels back, to half a grey level.
    again = model.preprocess(frame[None])[0]
    assert float((again - window.pixels[1]).abs().max()) < 0.02
    mask = np.zeros((14, 14), bool)
    mask[3:6, 4:8] = True
    picture = mark_kept(frame, mask, 8)
    assert picture.shape == (224, 224, 3)
    inside = picture[2 * 24 + 4 : 2 * 48 - 4, 2 * 32 + 4 : 2 * 64 - 4]
    np.testing.assert_array_equal(inside, frame.repeat(2, 0).repeat(2, 1)[52:92, 68:124])
    outside = picture[:40].astype(int)
    assert outside.min() > 150 and (outside.max(2) == outside.min(2)).all()  # faded and grey


def test_worst_frames_are_the_worst(audit: Audit) -> None:
    video = audit.videos[1]
    frames = video.worst[MOTION]
    of_p = video.cosines[MOTION][video.reduced[MOTION]]
    assert len(frames) == 3 and frames[0].cosine == pytest.approx(of_p.min())
    assert [frame.cosine for frame in frames] == sorted(frame.cosine for frame in frames)
    assert len({frame.i_time for frame in frames}) == 3  # of three groups
    for frame in frames:
        row = int(np.argmin(np.abs(video.times - frame.time)))
        assert video.cosines[MOTION][row] == pytest.approx(frame.cosine)
        assert video.times[row - row % 3] == pytest.approx(frame.i_time)
        assert frame.picture[:2] == frame.i_picture[:2] == b"\xff\xd8"


def test_worst_frames_of_reuse_lean_on_the_i_frames_of_its_plan(audit: Audit) -> None:
    for video in audit.videos:
        reduced, rows = video.reduced[ADAPTIVE], video.cosines[ADAPTIVE]
        frames = video.worst[ADAPTIVE]
        assert frames and frames[0].cosine == pytest.approx(rows[reduced].min())
        for frame in frames:
            row = int(np.argmin(np.abs(video.times - frame.time)))
            assert reduced[row] and frame.i_time == video.times[np.flatnonzero(~reduced[:row])[-1]]


def test_page_is_self_contained_and_complete(audit: Audit) -> None:
    audit = replace(audit, advice=replace(audit.advice, setting=MOTION))
    page = audit_page(audit)
    assert audit.advice.sentence.replace("'", "&#x27;") in page
    for row in audit.rows:
        assert all(f"<td>{cell}</td>" in page for cell in row.cells())
    for name in ("clip0.mp4", "clip1.mp4", "broken.mp4", "synthetic world", "training-free"):
        assert name in page
    assert page.count("<svg") == 2 and page.count("<polyline") == 6
    assert page.count("data:image/jpeg;base64,") == 2 * 3 * 2
    assert "http" not in page.replace("http-equiv", "") and "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()
    adaptive = audit_page(replace(audit, advice=replace(audit.advice, setting=ADAPTIVE)))
    assert "adaptive reuse at tolerance 1 over time" in adaptive
    assert adaptive.count("<polyline") == 2 and "data:image/jpeg;base64," in adaptive  # no baseline has its I-frames
    undecided = replace(audit, advice=replace(audit.advice, setting=None))
    assert undecided.shown == ADAPTIVE


def test_everything_goes_into_json(audit: Audit) -> None:
    facts = json.loads(json.dumps(audit.as_dict(), allow_nan=False))
    assert [(row["kind"], row["tolerance"]) for row in facts["rows"][-2:]] == [("reuse", 1.0), ("reuse", 3.0)]
    assert len(facts["rows"]) == len(audit.rows) == len(audit.cells())
    assert facts["rows"][1]["select"] == "motion" and facts["rows"][0]["p_mean"] is None
    assert [Path(video["path"]).name for video in facts["videos"]] == ["clip0.mp4", "clip1.mp4"]
    assert len(facts["failures"]) == 1 and "broken.mp4" in facts["failures"][0]


# --- what can go wrong -----------------------------------------------------------------------------------


def test_a_single_frame(light: ef.Model, tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", [np.zeros((64, 64, 3), np.uint8)], fps=10)
    result = audit_videos(tmp_path / "one.mp4", light)
    assert result.frames == 1 and not result.advice.reached
    assert {row.p_p5 for row in result.rows} == {None} and result.videos[0].answers == []
    assert "too short" in audit_page(result)
    json.dumps(result.as_dict(), allow_nan=False)


def test_many_videos_keep_few_pictures(
    light: ef.Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everyframe.audit.run.WITH_PICTURES", 1)
    result = audit_videos([clips / "clip0.mp4", clips / "clip1.mp4"], light, interleaves=(1, 2, 5), target=0.001)
    # Whichever is recommended, of two videos the worse one with it has pictures.
    settings = [row.setting for row in result.rows if row.setting.kind == "interleaved"]
    for setting in settings:
        best, worst = sorted(result.videos, key=lambda video: -video.row(setting).fidelity_mean)
        assert setting not in best.worst and len(worst.worst[setting]) == 3
    assert len({next(v.path for v in result.videos if setting in v.worst) for setting in settings}) == 2
    page = audit_page(result)
    assert "1 of 2 videos with the lowest fidelity" in page and "data:image/jpeg" in page


def test_a_video_named_twice_is_looked_at_once(
    light: ef.Model, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips)
    listed = tmp_path / "list.txt"
    listed.write_text(f"{clips / 'clip0.mp4'}\n")
    result = audit_videos(["clip0.mp4", clips / "clip0.mp4", listed], light, interleaves=(2,), selects=("motion",))
    assert [video.path for video in result.videos] == ["clip0.mp4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 1.5}, "target fidelity must be in"),
        ({"target": float("nan")}, "target fidelity must be in"),
        ({"fps": 0}, "fps must be > 0"),
        ({"interleaves": (2, -1)}, "interleave must be 0 or more"),
        ({"interleaves": ()}, "at least one interleave"),
        ({"selects": ("motion", "luck")}, "select must be one of"),
        ({"tolerances": (1.0, -1.0)}, "tolerance must be a finite number >= 0, got -1"),
        ({"drop": 1.0}, "drop must be in"),
        ({"sample_seconds": 0.0}, "seconds to sample"),
        ({"queries": [" "]}, "none of them empty"),
        ({"residual": "missing.safetensors"}, r"missing\.safetensors does not exist"),
    ],
)
def test_bad_arguments_are_named(model: ef.Model, clips: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        audit_videos(clips / "clip0.mp4", model, **changes)  # type: ignore[arg-type]


def test_no_usable_video(model: ef.Model, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"gone\.mp4: no such file or folder \(and 1 more could not be read\)"):
        audit_videos([tmp_path / "gone.mp4", tmp_path / "text.mp4"], model)
    with pytest.raises(VideoError, match="no video given"):
        audit_videos([], model)


# --- the command -----------------------------------------------------------------------------------------


def test_cli_reports_and_exits_1_for_a_bad_file(light: ef.Model, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("a red circle\n\na blue ring\n")
    common = ["--model", light.folder, "--device", "cpu", "--residual", "none", "--interleave", 2]
    common += ["--tolerance", 0.5, "--queries", tmp_path / "queries.txt"]
    out = tmp_path / "new" / "report.html"
    run = everyframe("audit", clips / "clip0.mp4", clips / "broken.mp4", *common, "--out", out, "--json")
    assert run.returncode == 1, run.stderr
    facts = json.loads(run.stdout)
    kinds = ["dense"] + ["interleaved"] * 5 + ["reuse", "copy", "interpolate", "reuse"]
    assert [row["kind"] for row in facts["rows"]] == kinds and facts["rows"][-1]["tolerance"] == 0.5
    assert [query["query"] for query in facts["videos"][0]["queries"]] == ["a red circle", "a blue ring"]
    assert facts["report"] == str(out) and "everyframe audit" in out.read_text(encoding="utf-8")
    assert "broken.mp4" in run.stderr and "Traceback" not in run.stderr


def test_cli_prints_table_and_advice(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit.html"
    run = everyframe(
        "audit",
        clips / "clip0.mp4",
        "--model",
        "bundled",
        "--fidelity",
        0.05,
        "--interleave",
        5,
        "--seconds",
        3,
        "--out",
        out,
    )
    assert run.returncode == 0, run.stderr
    assert "Use N=5 " in run.stdout and "--interleave 5" in run.stdout and str(out) in run.stdout
    assert all(len(line) <= 80 for line in run.stdout.splitlines() if re.match(r" [0-9-] ", line))
    assert "1/1 clip0.mp4: 9 frames, fidelity" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fidelity", "0"], "the target fidelity must be in (0, 1], got 0"),
        (["--queries", "none.txt"], "--queries none.txt cannot be read: No such file or directory"),
        (["--out", "."], "--out must be a file such as audit.html, but . is a folder"),
    ],
)
def test_cli_says_what_is_wrong_in_one_line(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["audit", str(clips / "clip0.mp4"), "--model", "bundled", *arguments])
    assert isinstance(result.exception, ValueError) and str(result.exception) == message  # `main` prints it
    assert not list(tmp_path.iterdir())
