"""Recipes: what they restore is bit for bit what `encode_video` gives, and what does not fit is said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import everyframe as ef
from everyframe.backbone import Model
from everyframe.encoders import Plan
from everyframe.feature_files import ForeignFileError
from everyframe.pipeline import Recipe, Sampling, encode_recipe, encode_videos, restore
from everyframe.pipeline import restore as restore_function
from everyframe.video import sample_frames, write_video

FPS = 8
ENCODERS = {
    "dense": lambda model: ef.DenseEncoder(model, batch_size=8),
    "residual": lambda model: ef.ResidualViT(model, batch_size=8),
    "residual cuts": lambda model: ef.ResidualViT(model, 5, plan="cuts", residual=None, batch_size=5),
    "reuse": lambda model: ef.ReuseEncoder(model, select="motion", batch_size=8),
    "adaptive": lambda model: ef.ReuseEncoder(model, plan="adaptive", batch_size=8),
}


@pytest.fixture(scope="module")
def model(light: Model) -> Model:
    return light


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 s: a slow pan, a still picture, and from second 4 on another place. Key frames every second, B-frames."""
    file = tmp_path_factory.mktemp("recipe") / "clip.mp4"
    rng = np.random.default_rng(0)
    places = [np.kron(rng.integers(lo, hi, (8, 20, 3)), np.ones((16, 16, 1))) for lo, hi in ((0, 120), (130, 255))]

    def frames():
        for index in range(6 * 2 * FPS):
            left = min(index, 4 * FPS) if index < 8 * FPS else index
            yield places[index >= 8 * FPS][:, left : left + 160].astype(np.uint8)

    write_video(file, frames(), fps=2 * FPS, crf=10, keyframe_every=16)
    return file


@pytest.fixture(scope="module")
def recipe(model: Model, clip: Path) -> Recipe:
    return encode_recipe(clip, ENCODERS["residual"](model), fps=FPS)


def assert_same(actual: ef.VideoFeatures, expected: ef.VideoFeatures) -> None:
    for field in dataclasses.fields(ef.VideoFeatures):
        one, other = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=field.name)
            assert one.dtype == other.dtype
        else:
            assert one == other, field.name


# --- exact -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_restored_features_are_the_same_bits(model: Model, clip: Path, tmp_path: Path, name: str, dtype: str) -> None:
    encoder = ENCODERS[name](model)
    wanted = ef.encode_video(clip, encoder, fps=FPS, dtype=dtype)
    file = encode_recipe(clip, encoder, fps=FPS, dtype=dtype).save(tmp_path / "x.recipe.npz")
    recipe = Recipe.load(file)
    assert len(recipe.i_features) == wanted.roles.count("I")
    assert_same(restore(recipe, model), wanted)
    # Not the caller's batches, those of the recipe.
    encoder.batch_size = 3
    assert_same(restore(recipe, encoder), wanted)
    assert encoder.batch_size == 3
    part = restore(recipe, model, start=2.3, end=4.6)
    assert_same(part, wanted.slice(2.3, 4.6))


def test_a_recipe_survives_its_file(recipe: Recipe, tmp_path: Path) -> None:
    again = Recipe.load(recipe.save(tmp_path / "a.recipe.npz"))
    for name in ("times", "i_features", "chunks"):
        np.testing.assert_array_equal(getattr(again, name), getattr(recipe, name))
    assert torch.equal(again.plan.indices, recipe.plan.indices) and again.plan.roles == recipe.plan.roles
    for name in ("encoder", "video", "model", "settings", "end_seconds"):
        assert getattr(again, name) == getattr(recipe, name)
    with np.load(tmp_path / "a.recipe.npz", allow_pickle=False) as stored:
        assert stored["indices"].dtype == stored["counts"].dtype == np.uint8  # 196 patches
        assert json.loads(str(stored["metadata"]))["format"] == "everyframe-recipe"
    assert [file.name for file in tmp_path.iterdir()] == ["a.recipe.npz"]


def test_many_patches_take_wider_numbers(recipe: Recipe, tmp_path: Path) -> None:
    kept = [torch.tensor([3, 255, 256, 575])] * recipe.roles.count("P")
    wide = dataclasses.replace(recipe, plan=Plan.of(recipe.roles, kept))
    again = Recipe.load(wide.save(tmp_path / "wide.recipe.npz"))
    assert torch.equal(again.plan.indices, wide.plan.indices)
    with np.load(tmp_path / "wide.recipe.npz") as stored:
        assert stored["indices"].dtype == np.uint16


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (0.0, 1.0), (1.0, None), (None, 2.0), (5.8, None), (2.3, 2.4), (3.99, 4.01)]
)
def test_only_the_part_that_is_needed_is_decoded(
    model: Model, clip: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, start: float | None, end: float | None
) -> None:
    decoded: list[Any] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        decoded.append(sample_frames(*arguments, **options))
        return decoded[-1]

    whole = restore(recipe, model)
    monkeypatch.setitem(restore_function.__globals__, "sample_frames", watched)
    part = restore(recipe, model, start=start, end=end)
    rows = (whole.times >= (start or 0)) & (whole.times < (end or 99))
    np.testing.assert_array_equal(part.embeddings, whole.embeddings[rows])
    np.testing.assert_array_equal(part.times, whole.times[rows])
    (sampled,) = decoded
    # Chunks hold 6 of 48 frames; two steps around them, and up to a second back to a key frame.
    chunks = {int(row) // 6 for row in np.flatnonzero(rows)}
    assert sampled.num_frames_decoded <= 2 * 6 * len(chunks) + 2 * 4 + 16


def test_a_part_of_a_video_has_a_recipe_too(model: Model, clip: Path) -> None:
    """Frame rates and ranges whose grid is no round number."""
    encoder = ef.ReuseEncoder(model, 2, batch_size=3)
    options: dict[str, Any] = {"fps": 29.97 / 7, "start": 0.77, "end": 5.13}
    wanted = ef.encode_video(clip, encoder, **options)
    recipe = encode_recipe(clip, encoder, **options)
    assert_same(restore(recipe, model), wanted)
    for start in np.arange(0.8, 4.8, 0.5):
        part = restore(recipe, model, start=float(start), end=float(start) + 0.6)
        rows = (wanted.times >= start) & (wanted.times < start + 0.6)
        np.testing.assert_array_equal(part.embeddings, wanted.embeddings[rows])


def test_frames_at_uneven_times_are_found_again(model: Model, clip: Path, tmp_path: Path) -> None:
    """More frames per second than there are, and a file that cannot be sought in."""
    encoder = ef.ReuseEncoder(model, 3, batch_size=4)
    data = clip.read_bytes()
    with pytest.warns(UserWarning, match="each is given once"):
        wanted = ef.encode_video(data, encoder, fps=50.0)
        recipe = encode_recipe(data, encoder, fps=50.0)
        part = restore(recipe, model, source=data, start=3.0, end=3.5)
    assert_same(part, wanted.slice(3.0, 3.5))
    with pytest.raises(ef.FeaturesError, match="made from bytes; pass them as source="):
        restore(recipe, model)


def test_damaged_videos_restore_what_was_kept(model: Model, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 96, 128, 3), dtype=np.uint8)
    write_video(tmp_path / "whole.mkv", noise, fps=10)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes((tmp_path / "whole.mkv").read_bytes()[: (tmp_path / "whole.mkv").stat().st_size // 2])
    encoder = ef.ReuseEncoder(model, 2, batch_size=3)
    wanted = ef.encode_video(cut, encoder, keep_partial=True)
    recipe = encode_recipe(cut, encoder, keep_partial=True)
    assert recipe.settings["damage"]
    assert_same(restore(recipe, model), wanted)
    assert_same(restore(recipe, model, start=1.0, end=2.0), wanted.slice(1.0, 2.0))


def test_without_p_frames_the_video_is_not_opened(model: Model, clip: Path, tmp_path: Path) -> None:
    moved = tmp_path / "gone.mp4"
    moved.write_bytes(clip.read_bytes())
    encoder = ENCODERS["dense"](model)
    wanted, recipe = ef.encode_video(moved, encoder, fps=FPS), encode_recipe(moved, encoder, fps=FPS)
    moved.unlink()
    assert_same(restore(recipe, model), wanted)
    still = np.full((20, 96, 96, 3), 77, np.uint8)
    write_video(moved, still, fps=10)
    adaptive = encode_recipe(moved, ENCODERS["adaptive"](model), fps=5)
    assert adaptive.roles == "I" + "C" * 9
    moved.unlink()
    assert np.ptp(restore(adaptive, model).embeddings, axis=0).max() == 0


# --- what does not fit -----------------------------------------------------------------------------------


def test_a_moved_video_is_found_where_one_says(model: Model, clip: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.mp4", tmp_path / "there.mp4"
    here.write_bytes(clip.read_bytes())
    recipe = encode_recipe(here, ENCODERS["residual"](model), fps=2)
    wanted = restore(recipe, model)
    here.rename(there)
    with pytest.raises(ef.FeaturesError, match=r"here\.mp4 does not exist; where the video was moved, pass .* source="):
        restore(recipe, model)
    assert_same(restore(recipe, model, source=there), wanted)
    there.write_bytes(clip.read_bytes() + b"\0")
    with pytest.raises(ef.FeaturesError, match=r"there\.mp4 is not the video that the recipe was made from: fingerpr"):
        restore(recipe, model, source=there)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"weights_sha256": "0" * 64}}, "made with other weights .* load the model as it was then"),
        ({"model": {"dtype": "bfloat16"}}, r"made with other dtype \(model \S*light0, dtype bfloat16\) .* \(float32\)"),
        ({"model": {"preprocess": {}}}, "made with other preprocessing"),
        ({"encoder": {"interleave": 7}}, None),  # the plan counts: a model makes any encoder that is asked for
        ({"encoder": {"encoder": "tempme"}}, "made by an encoder named 'tempme'; pass that encoder"),
        ({"encoder": {"novelty": 1}}, "encoder cannot be made: .*novelty"),
        ({"encoder": {"residual": "mine.safetensors:0123"}}, "other settings: residual 0123"),
    ],
)
def test_another_model_or_encoder_is_refused(
    model: Model, recipe: Recipe, changes: dict[str, dict[str, Any]], message: str | None
) -> None:
    other = dataclasses.replace(
        recipe, **{name: {**getattr(recipe, name), **values} for name, values in changes.items()}
    )
    if message is None:
        restore(other, model, end=0.5)
        return
    with pytest.raises(ef.FeaturesError, match=message):
        restore(other, model)


def test_an_encoder_with_other_settings_is_refused(model: Model, recipe: Recipe) -> None:
    with pytest.raises(ef.FeaturesError, match=r"other settings: drop 0\.85 \(here 0\.5\); pass one with the recipe's"):
        with pytest.warns(UserWarning, match="fitted for drop"):
            encoder = ef.ResidualViT(model, drop=0.5)
        restore(recipe, encoder)
    with pytest.raises(ef.FeaturesError, match=r"plan None .here cuts."):
        restore(recipe, ef.ResidualViT(model, plan="cuts"))
    with pytest.raises(TypeError, match="reader must be a model or an encoder, got str"):
        restore(recipe, "bundled")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["residual", "reuse"])
def test_features_that_come_out_otherwise_are_noticed(model: Model, clip: Path, name: str) -> None:
    recipe = encode_recipe(clip, ENCODERS[name](model), fps=2)
    other = dataclasses.replace(recipe, i_features=np.roll(recipe.i_features, 1, axis=0))
    with pytest.raises(ef.FeaturesError, match=r"I-features from .* s on come out with a cosine of .* encode"):
        restore(other, model)
    # Another machine rounds otherwise: what is stored counts, and P-frames are computed.
    noise = np.random.default_rng(0).normal(scale=1e-4, size=recipe.i_features.shape).astype(np.float32)
    near = dataclasses.replace(recipe, i_features=recipe.i_features + noise)
    full = [role == "I" for role in recipe.roles]
    restored = restore(near, model).embeddings
    np.testing.assert_array_equal(restored[full], near.i_features)
    np.testing.assert_allclose(restored, restore(recipe, model).embeddings, atol=5e-3)


def test_frames_that_are_not_there_any_more_are_noticed(model: Model, recipe: Recipe) -> None:
    late = dataclasses.replace(recipe, times=recipe.times + 0.01)
    with pytest.raises(ef.FeaturesError, match=r"no frame is shown at 0\.010 s any more"):
        restore(late, model)


@pytest.mark.parametrize(
    ("start", "end", "error", "message"),
    [
        (6.0, None, ef.FeaturesError, r"no frame from 6 s on; the recipe's frames go from 0\.00 to 5\.88 s"),
        (2.26, 2.3, ef.FeaturesError, r"no frame from 2\.26 s to 2\.3 s"),
        (-1.0, None, ValueError, "start must be a number of seconds >= 0, got -1.0"),
        (2.0, 2.0, ValueError, "end must lie after the start"),
        (float("nan"), None, ValueError, "start must be a number"),
        ("1", None, TypeError, "start must be a number, got '1'"),
    ],
)
def test_ranges_outside_raise(
    model: Model, recipe: Recipe, start: Any, end: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        restore(recipe, model, start=start, end=end)


# --- files -----------------------------------------------------------------------------------------------


def test_files_that_are_no_recipes_raise(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ef.FeaturesError, match=r"x\.npz must be named NAME\.recipe\.npz"):
        recipe.save(tmp_path / "x.npz")
    with pytest.raises(ef.FeaturesError, match=r"cannot be written .*; nothing partial is left"):
        recipe.save(tmp_path / "gone" / "x.recipe.npz")
    with pytest.raises(ef.FeaturesError, match=r"x\.recipe\.npz does not exist"):
        Recipe.load(tmp_path / "x.recipe.npz")
    file = recipe.save(tmp_path / "x.recipe.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ef.FeaturesError, match=r"is damaged or not a recipe .* delete it and encode the video again"):
        Recipe.load(file)
    np.savez(file, mine=np.arange(3))
    with pytest.raises(ForeignFileError, match="is not a recipe that everyframe wrote"):
        Recipe.load(file)
    recipe.save(file)
    with pytest.raises(ForeignFileError, match="is a recipe, not features"):
        ef.VideoFeatures.load(file)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda header, arrays: arrays["i_features"].__setitem__((0, 0), 2), ef.FeaturesError, "match its checksum"),
        (lambda header, arrays: arrays["indices"].__setitem__(0, 7), ef.FeaturesError, "does not match its checksum"),
        (lambda header, arrays: arrays.pop("counts"), ef.FeaturesError, "does not match its checksum"),
        (lambda header, arrays: header["settings"].update(fps=1), ef.FeaturesError, "does not match its checksum"),
        (lambda header, arrays: header.update(version=2), ForeignFileError, "has recipe version 2, this .* reads 1"),
    ],
)
def test_altered_recipes_are_not_read(
    recipe: Recipe, tmp_path: Path, change: Callable[[Any, Any], None], error: type[Exception], message: str
) -> None:
    file = recipe.save(tmp_path / "x.recipe.npz")
    with np.load(file) as stored:
        arrays = dict(stored)
    header = json.loads(str(arrays.pop("metadata")))
    change(header, arrays)
    np.savez(file, metadata=np.array(json.dumps(header)), **arrays)
    with pytest.raises(error, match=message):
        Recipe.load(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"i_features": np.zeros((2, 128), np.float32)}, "i_features must be one row per I-frame"),
        ({"chunks": np.array([0, 1])}, "chunks must begin with the frames 0 and then other I-frames"),
        ({"chunks": np.array([3])}, "chunks must begin"),
        ({"times": np.arange(3.0)}, "times must be one number per frame|roles must be one letter"),
        ({"end_seconds": 0.5}, "end_seconds must not lie before the last frame"),
    ],
)
def test_what_is_no_recipe_raises(recipe: Recipe, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ef.FeaturesError, match=message):
        dataclasses.replace(recipe, **changes)


def test_a_batch_of_recipes_resumes(model: Model, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.recipe.npz"

    def status(name: str = "reuse", dtype: str = "float32") -> str:
        batch = encode_videos([(clip, out)], ENCODERS[name](model), sampling=Sampling(fps=2), dtype=dtype, recipe=True)
        (outcome,) = batch
        assert outcome.num_frames == 12
        return outcome.status

    assert [status(), status(), status("adaptive"), status("adaptive"), status("adaptive", "float16")] == [
        "done", "skipped", "done", "skipped", "done",
    ]  # fmt: skip
    recipe = Recipe.load(out)
    assert_same(restore(recipe, model), ef.encode_video(clip, ENCODERS["adaptive"](model), fps=2, dtype="float16"))
    out.write_bytes(out.read_bytes()[:-30])
    assert status() == "done"
    with pytest.raises(ValueError, match=r"x\.npz: a recipe must be named NAME\.recipe\.npz"):
        encode_videos([(clip, tmp_path / "x.npz")], ENCODERS["reuse"](model), sampling=Sampling(), recipe=True)


def test_features_of_others_are_not_overwritten_by_a_recipe(model: Model, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.recipe.npz"
    np.savez(out, mine=np.arange(3))
    before = out.read_bytes()
    (outcome,) = encode_videos([(clip, out)], ENCODERS["reuse"](model), sampling=Sampling(), recipe=True)
    assert outcome.status == "failed" and "not overwritten" in str(outcome.error)
    assert out.read_bytes() == before
