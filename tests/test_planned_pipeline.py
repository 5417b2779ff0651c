"""Encoding by plan: the pipeline gives what each encoder gives for the whole video, however it is cut into chunks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import everyframe as ef
from everyframe.backbone import Model
from everyframe.console import show_forecast
from everyframe.cost import frame_macs
from everyframe.encoders import Encoder, Plan
from everyframe.pipeline import Sampling, encode_videos, forecast, read_window
from everyframe.pipeline.window import Part, planned
from everyframe.video import write_video

FPS = 6
ENCODERS = {
    "dense": lambda model, **more: ef.DenseEncoder(model, **more),
    "residual": lambda model, **more: ef.ResidualViT(model, **more),
    "residual differences": lambda model, **more: ef.ResidualViT(model, 5, select="residual", **more),
    "residual cuts": lambda model, **more: ef.ResidualViT(model, 6, plan="cuts", **more),
    "resize": lambda model, **more: ef.ResidualViT(model, reduction="resize", residual=None, **more),
    "reuse": lambda model, **more: ef.ReuseEncoder(model, **more),
    "reuse cuts": lambda model, **more: ef.ReuseEncoder(model, 6, select="motion", plan="cuts", **more),
    "adaptive": lambda model, **more: ef.ReuseEncoder(model, plan="adaptive", **more),
}


@pytest.fixture(scope="module")
def model(light: Model) -> Model:
    return light


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of a slow pan, 2 s of a still picture, and from second 4 on 2.5 s of another place."""
    file = tmp_path_factory.mktemp("planned") / "clip.mp4"
    rng = np.random.default_rng(0)
    places = [np.kron(rng.integers(lo, hi, (8, 20, 3)), np.ones((16, 16, 1))) for lo, hi in ((0, 120), (130, 255))]

    def frames():
        for index in range(round(6.5 * FPS)):
            left = min(index, 2 * FPS) if index < 4 * FPS else 2 * index
            yield places[index >= 4 * FPS][:, left : left + 160].astype(np.uint8)

    write_video(file, frames(), fps=FPS, crf=10)
    return file


def gaps(roles: str) -> list[int]:
    """Frames of each group."""
    return [len(group) for group in roles.replace("I", " I").split()]


# --- the pipeline ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ENCODERS))
def test_features_and_roles_are_those_of_the_whole_video(model: Model, clip: Path, name: str) -> None:
    encoder = ENCODERS[name](model)
    window = read_window(clip, model, fps=FPS, motion=encoder.needs_motion)
    plan = encoder.planner().add(window.pixels, window.motion)
    whole = encoder.encode(window.pixels, window.motion).numpy()
    for size in (1, 8, 64):
        feats = ef.encode_video(clip, ENCODERS[name](model, batch_size=size), fps=FPS)
        np.testing.assert_array_equal(feats.times, window.times)
        assert feats.roles == plan.roles
        np.testing.assert_allclose(feats.embeddings, whole, atol=1e-5)


def test_cuts_begin_groups(model: Model, clip: Path) -> None:
    feats = ef.encode_video(clip, ENCODERS["residual cuts"](model), fps=FPS)
    fixed = ef.ResidualViT(model, 6).roles(39)
    assert fixed[24] == "P"  # the cut at second 4, where the papers' plan has no I-frame
    assert feats.roles == fixed[:24] + fixed[:15]
    assert feats.settings["plan"] == "cuts"
    assert ef.encode_video(clip, ENCODERS["reuse cuts"](model), fps=FPS).roles == feats.roles


def test_an_adaptive_plan_copies_what_stands_still_and_begins_anew_at_a_cut(model: Model, clip: Path) -> None:
    roles = ef.encode_video(clip, ENCODERS["adaptive"](model), fps=FPS).roles
    assert "C" in roles[2 * FPS + 1 : 4 * FPS] and "P" in roles[: 2 * FPS]
    assert roles[4 * FPS] == "I"


@pytest.mark.parametrize(
    ("roles", "size", "expected"),
    [
        ("IPPIPPIPP", 1, [3, 3, 3]),  # a group is never split
        ("IPPIPPIPPI", 6, [6, 4]),
        ("IPPIPPIPPI", 7, [6, 4]),
        ("IPPPPPPPII", 4, [8, 2]),
        ("IIIIIIIIII", 4, [4, 4, 2]),
        ("ICCCIPCPCIC", 5, [4, 5, 2]),
        ("IPPPPPPPPP", 3, [10]),
        ("I", 3, [1]),
        ("", 3, []),
    ],
)
@pytest.mark.parametrize("per_part", [1, 4, 16])
def test_chunks_hold_as_many_whole_groups_as_fit(roles: str, size: int, expected: list[int], per_part: int) -> None:
    pixels = torch.arange(len(roles), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    class Known:
        def add(self, pixels: torch.Tensor, motion: torch.Tensor | None = None) -> Plan:
            part = [roles[int(number)] for number in pixels[:, 0, 0, 0]]
            return Plan.of("".join(part), [torch.tensor([1, 2])] * part.count("P"))

        def finish(self) -> Plan:
            return Plan.of("", [])

    starts = range(0, len(roles), per_part)
    parts = [
        Part([float(t) for t in range(a, min(a + per_part, len(roles)))], pixels[a : a + per_part], None)
        for a in starts
    ]
    chunks = list(planned(parts, Known(), size))
    assert [len(chunk.times) for chunk in chunks] == expected
    assert "".join(chunk.plan.roles for chunk in chunks) == roles
    for chunk in chunks:
        assert chunk.pixels[:, 0, 0, 0].tolist() == chunk.times
        assert chunk.plan.roles[0] == "I" and len(chunk.plan.indices) == 2 * chunk.plan.roles.count("P")

    class Lagging(Known):
        """What is decided are the groups whose next I-frame is there, and that I-frame."""

        def __init__(self) -> None:
            self.seen, self.told = Plan.of("", []), 0

        def add(self, pixels: torch.Tensor, motion: torch.Tensor | None = None) -> Plan:
            self.seen += super().add(pixels)
            first, self.told = self.told, max(self.told, self.seen.roles.rfind("I") + 1)
            return self.seen[first : self.told]

        def finish(self) -> Plan:
            return self.seen[self.told :]

    ahead = list(planned(parts, Lagging(), size, look_ahead=True))
    assert [len(chunk.times) for chunk in ahead] == expected
    for place, (chunk, alone) in enumerate(zip(ahead, chunks, strict=True)):
        more = place + 1 < len(expected)
        assert chunk.plan.roles == alone.plan.roles + "I" * more
        assert chunk.pixels[:, 0, 0, 0].tolist() == alone.times + chunks[place + 1].times[:1] if more else alone.times


def test_settings_say_what_was_computed(model: Model, clip: Path) -> None:
    config, patches = model.vision.config, model.vision.num_patches

    def gmacs(patches: float, tokens: float, keys: float | None = None) -> float:
        return sum(frame_macs(config, "all", patches=patches, tokens=tokens, keys=keys).values()) / 1e9

    full = gmacs(patches, patches + 1)
    dense = ef.encode_video(clip, ef.DenseEncoder(model), fps=FPS).settings
    assert dense["gflops_per_frame"] == pytest.approx(full, rel=1e-5) and dense["gflops_share"] == 1
    feats = ef.encode_video(clip, ENCODERS["residual cuts"](model), fps=FPS)
    token = model.dim * config.width / 1e9
    reduced = gmacs(29, 31) + token  # CLS and the residual token
    share = feats.roles.count("I") / 39
    assert feats.settings["gflops_per_frame"] == pytest.approx(share * full + (1 - share) * reduced, rel=1e-5)
    fixed = ef.encode_video(clip, ef.ReuseEncoder(model), fps=FPS)
    assert fixed.settings["gflops_per_frame"] == pytest.approx(
        ef.flops(ef.ReuseEncoder(model), 39, rule="all").gflops_per_frame, rel=1e-5
    )
    encoder = ENCODERS["adaptive"](model)
    window = read_window(clip, model, fps=FPS, motion=False)
    plan = encoder.planner().add(window.pixels)
    own = {"I": full, "C": 0.0}
    counts = zip(plan.roles, plan.counts.tolist(), strict=True)
    total = sum(own[role] if role in own else gmacs(count, count + 1, patches + 1) for role, count in counts)
    adaptive = ef.encode_video(clip, encoder, fps=FPS).settings
    assert adaptive["gflops_per_frame"] == pytest.approx(total / 39, rel=1e-5)
    assert adaptive["gflops_share"] == pytest.approx(total / 39 / full, rel=1e-5)


@pytest.mark.parametrize("name", ["residual", "residual cuts", "adaptive"])
def test_what_is_done_is_skipped_under_every_plan(model: Model, clip: Path, tmp_path: Path, name: str) -> None:
    def status(name: str) -> str:
        work = [(clip, tmp_path / "x.npz")]
        return next(encode_videos(work, ENCODERS[name](model), sampling=Sampling(fps=1))).status

    assert [status(name), status(name), status("dense"), status(name)] == ["done", "skipped", "done", "done"]


def test_settings_of_the_fixed_plan_stay_as_they_were(model: Model) -> None:
    assert "plan" not in ef.ResidualViT(model).settings
    with_cuts = ENCODERS["residual cuts"](model)
    assert with_cuts.settings == {**ef.ResidualViT(model, 6).settings, "plan": "cuts"}


def test_a_forecast_knows_no_cost_of_what_depends_on_the_video(
    model: Model, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("residual cuts", "adaptive"):
        expected = forecast([clip], ENCODERS[name](model), Sampling(fps=4))
        assert expected.macs is None and expected.num_frames == 26
    show_forecast(expected)
    assert "up to 26 features, the cost depends on what they show" in capsys.readouterr().err
    show_forecast(forecast([clip], ef.DenseEncoder(model), Sampling(fps=4)))
    assert "TFLOPs" in capsys.readouterr().err


# --- one protocol ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_motion", [True, False], ids=["motion", "no motion"])
@pytest.mark.parametrize("select", ["motion", "residual", "random", "center", "uniform"])
@pytest.mark.parametrize("plan", ["fixed", "cuts"])
def test_residual_plans_do_not_depend_on_the_calls(
    model: Model, clip: Path, plan: str, select: str, with_motion: bool
) -> None:
    window = read_window(clip, model, fps=FPS)
    motion = window.motion if with_motion else None
    encoder = ef.ResidualViT(model, 4, select=select, residual=None, plan=plan, seed=2)
    whole = encoder.planner(10).add(window.pixels, motion)
    assert gaps(whole.roles) == ([5] * 7 + [4] if plan == "fixed" else [5] * 4 + [4] + [5] * 3)
    rows = torch.tensor([row for row, role in enumerate(whole.roles) if role == "P"])
    kept = encoder.kept_indices(window.pixels, motion, rows, 10)
    assert torch.equal(whole.indices.view(-1, 29), kept)
    for step in (1, 3, 17):
        planner, parts = encoder.planner(10), Plan.of("", [])
        for pixels, maps in zip(window.pixels.split(step), window.motion.split(step), strict=True):
            parts += planner.add(pixels, maps if with_motion else None)
        assert parts.roles == whole.roles and torch.equal(parts.indices, whole.indices)


def test_a_residual_plan_of_uneven_groups_is_the_groups_one_by_one(model: Model, clip: Path) -> None:
    window = read_window(clip, model, fps=FPS)
    pixels, motion = window.pixels[20:32], window.motion[20:32]
    encoder = ef.ResidualViT(model, 6, plan="cuts", batch_size=2)
    plan = encoder.planner().add(pixels, motion)
    assert plan.roles == "IPPPIPPPPPPI"  # the cut lies at 24
    whole = encoder.encode_planned(pixels, plan)
    dense = ef.DenseEncoder(model).encode(pixels)
    rows, sources = torch.tensor([1, 2, 3, 5, 6, 7, 8, 9, 10]), [0, 0, 0, 4, 4, 4, 4, 4, 4]
    own = encoder.encode_p(pixels, motion, rows, dense[sources])
    torch.testing.assert_close(whole[rows], own, atol=1e-5, rtol=0)
    full = [0, 4, 11]
    torch.testing.assert_close(whole[full], dense[full], atol=1e-5, rtol=0)
    again = encoder.encode_planned(pixels, plan, i_features=whole[full])
    torch.testing.assert_close(again, whole, atol=1e-6, rtol=0)
    other = encoder.encode_planned(pixels, plan, i_features=whole[[4, 0, 11]])
    assert float((other - whole).abs().amax(1).min()) == 0.0  # only frame 11 is as before
    assert (other[:11] - whole[:11]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("name", list(ENCODERS))
def test_no_frames_make_an_empty_plan(model: Model, name: str) -> None:
    encoder: Encoder = ENCODERS[name](model)
    nothing = torch.zeros(0, 3, 112, 112)
    plan = encoder.planner().add(nothing, torch.zeros(0, 112, 112) if encoder.needs_motion else None)
    assert plan.roles == "" and encoder.encode_planned(nothing, plan).shape == (0, model.dim)
    assert sum(encoder.plan_macs(plan, "all").values()) == 0


@pytest.mark.parametrize("rule", ["paper", "all"])
@pytest.mark.parametrize("name", ["dense", "residual", "resize", "reuse"])
def test_a_fixed_plan_costs_what_was_announced(model: Model, name: str, rule: str) -> None:
    encoder = ENCODERS[name](model)
    plan = encoder.planner().add(torch.randn(11, 3, 112, 112), torch.rand(11, 112, 112))
    assert plan.roles == encoder.roles(11)
    if name == "reuse" and rule == "paper":  # announced with shares of patches, not whole ones
        assert encoder.plan_macs(plan, rule) == pytest.approx(encoder.macs(11, rule), rel=0.01)
    else:
        assert encoder.plan_macs(plan, rule) == pytest.approx(encoder.macs(11, rule))


def test_what_is_no_plan_raises(model: Model) -> None:
    with pytest.raises(ValueError, match="plan must be one of fixed, cuts, got 'adaptive'; adaptive plans are ReuseE"):
        ef.ResidualViT(model, plan="adaptive")
    encoder = ENCODERS["residual cuts"](model)
    for call in (lambda: encoder.roles(3), lambda: encoder.macs(3, "all"), lambda: ef.flops(encoder)):
        with pytest.raises(ValueError, match=r"with plan='cuts' its (roles|cost) depends on the video"):
            call()
    pixels = torch.zeros(3, 3, 112, 112)
    kept = torch.arange(29)
    for roles, patches in (("PIP", [kept, kept]), ("IPC", [kept]), ("IPP", [kept, kept[:5]])):
        with pytest.raises(ValueError, match="begins with I and keeps 29 patches of each P-frame"):
            encoder.encode_planned(pixels, Plan.of(roles, patches))
    with pytest.raises(ValueError, match=r"patches from 0 to 195, those of .*light0, got 170 to 198"):
        encoder.encode_planned(pixels, Plan.of("IIP", [kept + 170]))
    with pytest.raises(ValueError, match="the plan is for 2 frames, but there are 3"):
        encoder.encode_planned(pixels, Plan.of("II", []))
    with pytest.raises(ValueError, match="reads every frame in full, but the plan's roles are IPI"):
        ef.DenseEncoder(model).encode_planned(pixels, Plan.of("IPI", [kept]))
    with pytest.raises(ValueError, match="first_frame must be a multiple of 3, got 4"):
        ef.ResidualViT(model).planner(4)


def test_every_encoder_keeps_the_protocol(model: Model) -> None:
    wanted = [name for name in dir(Encoder) if not name.startswith("_")]
    assert {"planner", "encode_planned", "plan_macs"} <= set(wanted)
    for make in ENCODERS.values():
        assert not [name for name in wanted if not hasattr(make(model), name)]
    assert dataclasses.is_dataclass(Plan)
