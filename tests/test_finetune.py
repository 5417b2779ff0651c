"""Fine-tuning for retrieval: what is fitted, its gradient, real videos decoded, killed and resumed, exported."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import checkpoints
from everyframe.backbone import ARCHITECTURES, Model, ModelError, TextConfig, TextTransformer, VisionTransformer, load
from everyframe.backbone.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from everyframe.cli import app
from everyframe.cli.finetune import make_schedule, parse_clips, read_pairs
from everyframe.encoders import TempMe
from everyframe.training import FinetuneRecipe, Pair, TrainingError, augment, finetune, load_tempme
from everyframe.training.adapters import Tuning
from everyframe.training.contrastive import contrastive_gradients, contrastive_loss
from everyframe.training.export import clip_state
from everyframe.training.finetune import _Run
from everyframe.training.finetune_recipe import learning_rate
from everyframe.training.finetune_validation import Scores, Validation
from everyframe.training.pairs import FrameStore, Pairs, Segment, hold_out, shuffled, token_ids, usable_pairs
from everyframe.training.ranks import Ranks
from everyframe.video import sample_frames, second_frames, write_video
from processes import end_of_ranks, start_ranks

SCHEDULE = {"r": 1, "clips": {1: 2, 2: 2}, "remove_cross": 30, "remove_intra": 10}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 230), "white": (240, 240, 240)}
NUM_VIDEOS = 10


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of 6 to 15 frames at 2 per second: a coarse pattern of their own that moves."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(5)
    for number in range(NUM_VIDEOS):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        frames = [np.roll(coarse, 3 * frame, axis=1) for frame in range(6 + number)]
        write_video(folder / f"v{number}.mp4", frames, fps=2, options={"preset": "ultrafast"})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(checkpoints.clip(tmp_path_factory.mktemp("clip")), device="cpu")


@pytest.fixture(scope="module")
def pairs(videos: Path) -> list[Pair]:
    """Two captions of each video."""
    subjects = ["red cat", "blue dog", "green circle", "red square", "blue person", "green door", "red dog", "cat"]
    subjects += ["blue circle", "dog in the door"]
    rows = [(number, f"{start} {subjects[number]}") for number in range(NUM_VIDEOS) for start in ("a", "the")]
    return [Pair(videos / f"v{number}.mp4", caption) for number, caption in rows]


def options_for(**more: Any) -> dict[str, Any]:
    return {"schedule": SCHEDULE, "batch": 4, "epochs": 2, "rate": 1e-2, "report_every": 2, **more}


def make_run(model: Model, pairs: list[Pair], out: Path, *, count: int = 1, **more: Any) -> _Run:
    """All pairs train, and the first six validate."""
    out.mkdir(exist_ok=True)
    recipe = FinetuneRecipe.for_data(model, len(pairs), count, **options_for(**more))
    ranks = Ranks(model.device)
    return _Run(model, Pairs(pairs), Pairs(pairs[:6]), out, recipe, [], False, lambda text: None, ranks)


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gradients_of(run: _Run) -> torch.Tensor:
    frames, ids, _ = run.batch(0)
    run.gradient(frames, ids)
    return torch.cat([parameter.grad.flatten() for parameter in run.parameters.values()])  # type: ignore[union-attr]


# --- what is fitted --------------------------------------------------------------------------------------


def b32() -> Model:
    """CLIP ViT-B/32 with both towers, in memory that is never touched."""
    vision = ARCHITECTURES["ViT-B/32"]
    words = TextConfig(
        width=512, heads=8, mlp_width=2048, activation="quick_gelu", norm_eps=1e-5, depth=12, vocabulary=49408,
        context=77, dim=512, causal=True, end_token=49407,
    )  # fmt: skip
    with torch.device("meta"):
        towers = VisionTransformer(vision), TextTransformer(words)
    preprocessing = Preprocess(size=224, shorter_side=224, mean=CLIP_MEAN, std=CLIP_STD)
    return Model(
        name="ViT-B/32", family="clip", vision=towers[0].to_empty(device="cpu"), text=towers[1].to_empty(device="cpu"),
        tokenizer=None, preprocessing=preprocessing, logit_scale=100.0, logit_bias=0.0, weights_sha256="",
    )  # fmt: skip


def test_the_papers_counts_of_parameters() -> None:
    model = b32()
    tuning = Tuning(model, "lora")
    assert tuning.count() == 491_520
    of_vision = sum(p.numel() for name, p in tuning.parameters.items() if "vision" in name)
    assert of_vision == 12 * (8 * 768 + 2304 * 8) == 294_912
    fitted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(fitted) == 48 and all("qkv.lora_" in name for name in fitted)
    for preset, frames, count in (("msrvtt-b32", 12, 16_128), ("activitynet-b32", 64, 64_512)):
        positions = TempMe(model, **TempMe.preset(preset)).zero_positions(frames)
        assert sum(rows.numel() for rows in positions.values()) == count


def test_other_ways_count_what_their_formulas_say() -> None:
    adapter = sum(12 * (2 * 64 * width + 64 + width) for width in (768, 512))
    for how, count in (("adapter", adapter), ("prompt", 8 * (768 + 512))):
        assert Tuning(b32(), how).count() == count  # type: ignore[arg-type]
    assert Tuning(b32(), "full").count() == sum(parameter.numel() for parameter in b32().parameters())


def test_lora_is_one_low_rank_update_of_all_three(model: Model, tmp_path: Path) -> None:
    own = load(str(model.folder), device="cpu")
    tuning = Tuning(own, "lora", seed=3)
    down = tuning.parameters["vision.blocks.1.qkv.lora_A.default.weight"]
    up = tuning.parameters["vision.blocks.1.qkv.lora_B.default.weight"]
    assert down.shape == (8, 32) and up.shape == (96, 8)
    assert not up.any() and 0.8 < down.abs().max() * math.sqrt(32) <= 1
    with torch.no_grad():
        up.normal_()
    plain = model.vision.blocks[1].qkv
    x = torch.randn(2, 5, 32)
    expected = x @ plain.weight.T + plain.bias + (x @ down.T) @ up.T
    torch.testing.assert_close(own.vision.blocks[1].qkv(x), expected)
    other = Tuning(load(str(model.folder), device="cpu"), "lora", seed=4).parameters
    again = Tuning(load(str(model.folder), device="cpu"), "lora", seed=3).parameters
    name = "text.blocks.0.qkv.lora_A.default.weight"
    assert torch.equal(again[name], tuning.parameters[name]) and not torch.equal(again[name], other[name])


@pytest.mark.parametrize("how", ["lora", "adapter", "full"])
def test_before_training_nothing_has_changed(model: Model, how: Any) -> None:
    pixels = torch.randn(2, 4, 3, 32, 32)
    own = load(str(model.folder), device="cpu")
    Tuning(own, how)
    torch.testing.assert_close(TempMe(own, **SCHEDULE).encode(pixels), TempMe(model, **SCHEDULE).encode(pixels))
    texts = ["a red cat", "the dog"]
    torch.testing.assert_close(own.encode_text(texts), model.encode_text(texts))


def test_prompts_join_both_sequences(model: Model) -> None:
    """By hand: the patches' sequence is longer by them; a text's begins with them and is pooled where it ended."""
    own = load(str(model.folder), device="cpu")
    tuning = Tuning(own, "prompt", size=3)
    prompts = tuning.parameters["vision.prompts"]
    pixels = torch.randn(2, 3, 32, 32)
    start = model.vision.start(pixels)
    tokens = torch.cat([start, prompts.expand(2, -1, -1)], dim=1)
    for block in model.vision.blocks:
        tokens = block(tokens)
    with torch.no_grad():
        torch.testing.assert_close(own.vision(pixels), model.vision.pool(tokens))
    ids = torch.tensor([[5, 6, 7, model.text.config.end_token]])  # type: ignore[union-attr]
    tower = model.text
    assert tower is not None and own.text is not None
    x = torch.cat([tuning.parameters["text.prompts"][None], tower.tokens(ids) + tower.positions[:4]], dim=1)
    for block in tower.blocks:
        x = block(x, causal=True)
    with torch.no_grad():
        torch.testing.assert_close(own.text(ids), tower.projection(tower.norm_post(x[:, -1])))


def test_models_that_cannot_be_fitted_are_refused(model: Model, tmp_path: Path, videos: Path) -> None:
    pairs = [(videos / "v0.mp4", "a cat")] * 4
    siglip = load(checkpoints.siglip(tmp_path / "siglip"), device="cpu")
    with pytest.raises(TrainingError, match="is no CLIP model with a text tower"):
        finetune(siglip, pairs, tmp_path / "out", validation=pairs, batch=2)
    half = load(str(model.folder), device="cpu", dtype="bfloat16")
    with pytest.raises(ValueError, match="must be loaded in float32 to be fitted, got bfloat16; precision="):
        finetune(half, pairs, tmp_path / "out", validation=pairs, batch=2)


# --- loss, schedule, gradient ----------------------------------------------------------------------------


def test_loss_is_the_mean_of_both_directions() -> None:
    rng = np.random.default_rng(0)
    videos, texts = (rng.standard_normal((5, 7)) for _ in range(2))
    logits = 3.0 * texts @ videos.T
    rows = sum(-logits[i, i] + math.log(sum(math.exp(logits[i, j]) for j in range(5))) for i in range(5)) / 5
    columns = sum(-logits[i, i] + math.log(sum(math.exp(logits[j, i]) for j in range(5))) for i in range(5)) / 5
    loss = contrastive_loss(torch.from_numpy(videos), torch.from_numpy(texts), 3.0)
    assert loss.item() == pytest.approx((rows + columns) / 2)


def test_learning_rate_is_that_of_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup

    recipe = FinetuneRecipe(steps_per_epoch=23, batch=2, rate=6e-4, micro_batch=2, epochs=2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=6e-4)
    theirs = get_cosine_schedule_with_warmup(optimizer, int(0.1 * 46), 46)
    for step in range(46):
        assert learning_rate(step, recipe) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert learning_rate(0, recipe) == 0 and learning_rate(4, recipe) == 6e-4


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_gradient_does_not_depend_on_parts_or_checkpointing(
    model: Model, pairs: list[Pair], tmp_path: Path, tune: str
) -> None:
    found = []
    for micro_batch, checkpointing in ((8, False), (3, False), (8, True), (1, True)):
        run = make_run(model, pairs, tmp_path, tune=tune, batch=8, micro_batch=micro_batch, checkpointing=checkpointing)
        with torch.no_grad():  # B = 0 would leave A without a gradient
            for parameter in run.parameters.values():
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        found.append(gradients_of(run))
        if not checkpointing:
            plain = run
        run.close()
    # The same by autograd alone over the whole batch.
    frames, ids, _ = plain.batch(0)
    pixels = model.unpack(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    plain.optimizer.zero_grad()
    videos, texts = plain.encoder.features(pixels), F.normalize(plain.model.text(ids.long()), dim=1)  # type: ignore[misc]
    contrastive_loss(videos, texts, model.logit_scale).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in plain.parameters.values()])  # type: ignore[union-attr]
    assert (expected != 0).float().mean() > 0.7
    for gradient in found:
        assert (gradient - expected).norm() < 1e-4 * expected.norm()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parts_of_a_loss_cannot_simply_be_averaged() -> None:
    """Otherwise the test above could not fail."""
    videos, texts = (F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(s)), dim=1) for s in (1, 2))
    _, whole, _ = contrastive_gradients(videos, texts, 10.0)
    _, half, _ = contrastive_gradients(videos[:4], texts[:4], 10.0)
    assert (half / 2 - whole[:4]).norm() > 0.1 * whole[:4].norm()


def test_a_step_fits_what_it_should_and_nothing_else(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    """Against AdamW written out, with its decay on everything and the gradient's norm cut."""
    run = make_run(model, pairs, tmp_path, warm_up=0.0, clip=0.1)
    frozen = {name: p.clone() for name, p in run.model.named_parameters() if name not in run.parameters}
    before = {name: parameter.detach().clone() for name, parameter in run.parameters.items()}
    gradient = gradients_of(run)
    assert gradient.norm() > 0.2
    loss = run.update(0)
    assert math.isfinite(loss)
    factor, place = 0.1 / (gradient.norm() + 1e-6), 0
    for name, parameter in run.parameters.items():
        part = factor * gradient[place : place + parameter.numel()].view_as(parameter)
        place += parameter.numel()
        expected = before[name] * (1 - 1e-2 * 0.2) - 1e-2 * part / (part.abs() + 1e-6)
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=1e-3)
    for name, parameter in run.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
    assert {"positions.1", "positions.2"} < set(run.parameters)
    run.close()


def test_every_epoch_is_a_permutation_shared_out(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    run = make_run(model, pairs, tmp_path, batch=6)
    assert run.recipe.steps_per_epoch == 3  # of 20 pairs, 2 are left over in every epoch
    whole = [run.rows(step) for step in range(6)]
    run.ranks.count = 2
    parts = []
    for run.ranks.rank in (0, 1):
        parts.append([run.rows(step) for step in range(6)])
    assert whole == [one + two for one, two in zip(*parts, strict=True)]
    epochs = [[pair for rows in whole[first : first + 3] for pair, _ in rows] for first in (0, 3)]
    assert all(len(set(epoch)) == 18 for epoch in epochs) and epochs[0] != epochs[1]
    run.ranks.count, run.ranks.rank = 1, 0
    run.close()


def test_couples_meet_in_every_batch(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    run = make_run(model, pairs, tmp_path, batch=6, together=True)
    whole = [[pair for pair, _ in run.rows(step)] for step in range(6)]
    for rows in whole:
        assert {pair ^ 1 for pair in rows} == set(rows) and len(set(rows)) == 6
    epochs = [[pair for rows in whole[first : first + 3] for pair in rows] for first in (0, 3)]
    assert all(len(set(epoch)) == 18 for epoch in epochs) and epochs[0] != epochs[1]
    run.ranks.count = 2  # of 3 pairs each: a couple may be shared out, but it is in the batch
    parts = []
    for run.ranks.rank in (0, 1):
        parts.append([[pair for pair, _ in run.rows(step)] for step in range(6)])
    assert whole == [one + two for one, two in zip(*parts, strict=True)]
    run.ranks.count, run.ranks.rank = 1, 0
    run.close()
    again = make_run(model, pairs, tmp_path / "again", batch=6, together=True)
    other = make_run(model, pairs, tmp_path / "other", batch=6, together=True, seed=1)
    apart = make_run(model, pairs, tmp_path / "apart", batch=6)
    assert [[pair for pair, _ in again.rows(step)] for step in range(6)] == whole
    assert [[pair for pair, _ in other.rows(step)] for step in range(6)] != whole
    assert any({pair ^ 1 for pair, _ in rows} != {pair for pair, _ in rows} for rows in map(apart.rows, range(6)))
    for made in (again, other, apart):
        made.close()


@pytest.mark.parametrize("count", [2, 8, 31 * 2])
def test_couples_are_shuffled_whole_and_all_orders_occur(count: int) -> None:
    order = shuffled(count, np.random.default_rng(0), together=True)
    assert sorted(order) == list(range(count)) and (order[1::2] == order[::2] + 1).all() and not (order[::2] % 2).any()
    firsts = {int(shuffled(count, np.random.default_rng(seed), together=True)[0]) for seed in range(40 * count)}
    assert firsts == set(range(0, count, 2))


def test_clip_positions_have_a_rate_of_their_own(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    """Rates by the formula over 10 steps, 2 of them warm-up; then one step against AdamW written out."""
    run = make_run(model, pairs, tmp_path, positions_rate=0.3, warm_up=0.2, clip=0.1)
    assert [len(group["params"]) for group in run.optimizer.param_groups] == [len(run.parameters) - 2, 2]
    assert run.recipe.steps == 10
    for step, share in ((0, 0.0), (1, 0.5), (2, 1.0), (6, 0.5), (8, (1 - math.sqrt(0.5)) / 2)):
        before = {name: parameter.detach().clone() for name, parameter in run.parameters.items()}
        run.optimizer.state.clear()
        run.update(step)
        rates = [group["lr"] for group in run.optimizer.param_groups]
        assert rates == pytest.approx([1e-2 * share, 0.3 * share], abs=1e-12)
        for name, parameter in run.parameters.items():
            rate = (0.3 if name.startswith("positions.") else 1e-2) * share
            gradient = parameter.grad  # cut already; the first step of AdamW divides it by its own size
            assert gradient is not None and (gradient.any() or name.split(".")[-3] == "lora_A")
            expected = before[name] * (1 - rate * 0.2) - rate * gradient / (gradient.abs() + 1e-6)
            torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-4)
    run.close()
    plain = make_run(model, pairs, tmp_path / "plain")
    assert len(plain.optimizer.param_groups) == 1
    plain.close()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_gives_nearly_the_same(model: Model, pairs: list[Pair], tmp_path: Path, precision: str) -> None:
    losses = []
    for name in ("float32", precision):
        run = make_run(model, pairs, tmp_path / name, precision=name, warm_up=0.0)
        losses.append(run.update(0))
        moved = [parameter for name, parameter in run.parameters.items() if "lora_B" in name]
        assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in moved)
        assert any(parameter.any() for parameter in moved)
        run.close()
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]


# --- data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "count", "fps", "expected"),
    [
        (300, 5, 30.0, [0, 60, 120, 180, 270]),  # 10 seconds; places 0, 2.25, 4.5, 6.75, 9 of them
        (301, 3, 29.97, [0, 150, 300]),  # 11 seconds, the last one frame long
        (90, 4, 30.0, [0, 29, 59, 89]),  # 3 seconds are too few: all frames
        (90, 3, 30.0, [0, 30, 60]),
        (3, 6, 25.0, [0, 0, 0, 1, 1, 2]),
        (10, 4, None, [0, 3, 6, 9]),
        (10, 4, 0.2, [0, 3, 6, 9]),
    ],
)
def test_frames_are_taken_as_published(num_frames: int, count: int, fps: float | None, expected: list[int]) -> None:
    assert second_frames(num_frames, count, fps=fps) == expected


def test_the_store_keeps_what_the_model_sees(model: Model, videos: Path, tmp_path: Path) -> None:
    segments = [Segment(str(videos / "v3.mp4")), Segment(str(videos / "v8.mp4"), 1.0, 4.0)]
    short: list[str] = []
    for _ in range(2):  # decoded, then from disk
        store = FrameStore(
            model, segments, 4, folder=tmp_path / "kept", fingerprint="x", on_failure=print, on_short=short.append
        )
        found = store.read([0, 1])
        store.close()
        for number, (segment, taken) in enumerate(zip(segments, ([0, 2, 4, 8], [2, 3, 5, 7]), strict=True)):
            frames = np.stack([sample.pixels for sample in sample_frames(segment.video, None)])
            expected = model.preprocess(frames[taken])
            torch.testing.assert_close(model.unpack(torch.from_numpy(found[number])), expected, atol=1e-6, rtol=0)
    assert not short
    few = FrameStore(model, segments[:1], 12, folder=None, fingerprint="", on_failure=print, on_short=short.append)
    assert few.read([0])[0].shape == (12, 3, 32, 32) and short == [segments[0].video]
    few.close()


def test_captions_are_cut_as_published(model: Model) -> None:
    long = "the red cat walks and the blue dog opens the green door and walks"
    ids, cut = token_ids(model, ["a cat", long], 6)
    tokenizer = model._tokenizer
    assert tokenizer is not None and cut == 1 and ids.shape == (2, 6)
    with pytest.warns(UserWarning, match="was cut to the model's 16"):
        whole = tokenizer([long])[0][0].tolist()
    end = model.text.config.end_token  # type: ignore[union-attr]
    assert ids[1].tolist() == [*whole[:5], end] and ids[0].tolist().index(end) == 3
    with torch.no_grad():
        features = F.normalize(model.text(ids[:1].long()), dim=1)  # type: ignore[misc]
    torch.testing.assert_close(features, model.encode_text(["a cat"]))
    assert token_ids(model, ["a cat"], 6)[0].shape == (1, 4)


def test_changes_are_those_of_pillow() -> None:
    """Exactly, where pixels stay in place; bicubic moves differ by a few levels, as Pillow's curve is another."""
    from PIL import Image, ImageEnhance, ImageOps

    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray((np.array(Image.fromarray(coarse).resize((40, 30))) * 0.6 + 30).astype(np.uint8))
    frames = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]

    def difference(ours: torch.Tensor, theirs: Any) -> np.ndarray:
        assert ours.dtype == torch.uint8
        return np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - np.array(theirs).astype(int))

    kept: list[tuple[torch.Tensor, Any]] = [
        (augment.autocontrast(frames), ImageOps.autocontrast(image)),
        (augment.equalize(frames), ImageOps.equalize(image)),
        (augment.CHANGES["invert"](frames, 0.7, 1), ImageOps.invert(image)),
        (augment.posterize(frames, 2), ImageOps.posterize(image, 2)),
        (augment.solarize(frames, 90), ImageOps.solarize(image, 90)),
    ]
    for factor in (0.4, 1.6):
        kept.append((augment.colour(frames, factor), ImageEnhance.Color(image).enhance(factor)))
        kept.append((augment.contrast(frames, factor), ImageEnhance.Contrast(image).enhance(factor)))
        kept.append((augment.brightness(frames, factor), ImageEnhance.Brightness(image).enhance(factor)))
        kept.append((augment.sharpness(frames, factor), ImageEnhance.Sharpness(image).enhance(factor)))
    for ours, theirs in kept:
        assert difference(ours, theirs).max() == 0
        assert difference(ours, image).max() > 0
    options: dict[str, Any] = {"resample": Image.Resampling.BICUBIC, "fillcolor": (128, 128, 128)}
    moved = [(augment.rotate(frames, degrees), image.rotate(degrees, **options)) for degrees in (17.0, -25.0)]
    for matrix in ((1, 0.2, 0, 0, 1, 0), (1, 0, 7.3, 0, 1, 0), (1, 0, 0, -0.2, 1, 0)):
        theirs = image.transform(image.size, Image.Transform.AFFINE, matrix, **options)
        moved.append((augment.affine(frames, matrix), theirs))
    for ours, theirs in moved:
        assert difference(ours, theirs).max() <= 4 and difference(ours, image).max() > 20


def test_all_frames_of_a_video_change_alike_and_as_the_seed_says() -> None:
    frame = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video, same = frame.expand(4, -1, -1, -1), 0
    for seed in range(40):
        changed = augment.augment(video, np.random.default_rng(seed))
        assert changed.dtype == torch.uint8 and all(torch.equal(changed[0], other) for other in changed)
        assert torch.equal(changed, augment.augment(video, np.random.default_rng(seed)))
        same += torch.equal(changed, video)
    assert 0 <= same <= 8  # (1/2)^4 of 40 draw nothing at all


def test_augmented_batches_follow_from_seed_and_epoch(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    runs = [make_run(model, pairs, tmp_path / str(on), augment=on, seed=1) for on in (False, True)]
    plain, changed = (run.batch(0) for run in runs)
    again = runs[1].batch(0)
    assert torch.equal(changed[0], again[0]) and torch.equal(plain[1], changed[1])
    assert not torch.equal(plain[0], changed[0])
    for run in runs:
        run.close()


@pytest.mark.parametrize(("videos", "held"), [(4, 2), (12, 3), (100, 8), (400, 20)])
def test_whole_videos_are_held_out(videos: int, held: int) -> None:
    pairs = [Pair(f"v{number}", f"{number} {word}") for number in range(videos) for word in ("a", "b")]
    training, others = hold_out(pairs, 7)
    assert len({pair.video for pair in others}) == held and len(training) + len(others) == len(pairs)
    assert not {pair.video for pair in training} & {pair.video for pair in others}


def test_too_few_videos_to_hold_some_out() -> None:
    with pytest.raises(TrainingError, match=r"3 videos are too few to hold some out: give at least 4, or captioned"):
        hold_out([Pair(f"v{number}", "a") for number in range(3)], 0)


def test_couples_are_held_out_whole() -> None:
    pairs = [Pair(f"v{number}", f"{number}") for number in range(60)] + [Pair("v0", "again"), Pair("v9", "again")]
    training, others = hold_out(pairs, 7, together=True)
    assert 8 <= len({pair.video for pair in others}) <= 11 and len(training) + len(others) == len(pairs)
    assert not {pair.video for pair in training} & {pair.video for pair in others}
    couples = set(zip(pairs[::2], pairs[1::2], strict=True))
    for side in (training, others):
        assert set(zip(side[::2], side[1::2], strict=True)) <= couples
    parted = hold_out(pairs, 7)[1]  # or this could not fail
    assert not set(zip(parted[::2], parted[1::2], strict=False)) <= couples
    chain = [Pair(f"v{number}", "a") for number in (0, 1, 1, 2, 2, 3, 3, 4)]
    with pytest.raises(TrainingError, match="couples tie all 5 videos to each other, so none can be held out: give"):
        hold_out(chain, 0, together=True)


def test_a_pair_that_cannot_be_used_takes_its_partner_along(videos: Path, tmp_path: Path) -> None:
    names = ["v0", "v1", "gone", "v2", "v3", "v4", "v5", "v6"]
    given = [Pair(videos / f"{name}.mp4", "" if name == "v4" else f"of {name}") for name in names]
    failed: list[str] = []
    kept = usable_pairs(given, failed.append, together=True)
    assert [pair.caption for pair in kept] == ["of v0", "of v1", "of v5", "of v6"]
    assert [re.sub(r".*/", "", line) for line in failed] == [
        "gone.mp4: no such file",
        "v4.mp4: has an empty caption",
        "v2.mp4: 'of v2' is left out, as the other of its couple cannot be used",
        "v3.mp4: 'of v3' is left out, as the other of its couple cannot be used",
    ]
    assert len(usable_pairs(given, failed.append)) == 6
    with pytest.raises(TrainingError, match=r"needs an even number of captioned videos, .*, got 7: add the partner"):
        usable_pairs(given[:7], failed.append, together=True)
    table, missing = tmp_path / "train.csv", []
    table.write_text("\n".join(["video,caption", *(f"{name},of {name}" for name in names)]))
    found = read_pairs(videos, table, None, "train", missing, together=True)
    assert [pair.caption for pair in found] == ["of v0", "of v1", "of v3", "of v4", "of v5", "of v6"]
    assert len(missing) == 2 and missing[1].endswith(
        "v2.mp4: 'of v2' is left out, as the other of its couple cannot be used"
    )
    official, missing = tmp_path / "train.json", []
    official.write_text(json.dumps([{"video": f"v{n}", "caption": "" if n == 1 else f"of v{n}"} for n in range(4)]))
    assert [pair.caption for pair in read_pairs(videos, official, None, "train", missing)] == [
        "of v0",
        "of v2",
        "of v3",
    ]
    assert missing == [f"{official} entry 2: caption is empty"]
    with pytest.raises(ValueError, match=r"entry 2: caption is empty; --together needs every text"):
        read_pairs(videos, official, None, "train", missing, together=True)


def test_validation_counts_ranks_of_what_can_be_read() -> None:
    """Four videos, the third unreadable; two captions read the same. By hand: text features are one-hot."""
    pairs = Pairs([Pair("a", "x"), Pair("b", "y"), Pair("c", "z"), Pair("d", "y"), Pair("d", "w")])
    axes = {"x": 0, "y": 1, "z": 2, "w": 3}
    ids = torch.tensor([[axes[caption]] for caption in pairs.captions])
    features = torch.tensor([[0.9, 0.2, 0, 0.8], [0.95, 0.5, 0, 0.1], [9, 9, 9, 9], [0.0, 0.1, 0, 0.3]])
    store = SimpleNamespace(read=lambda rows: {row: np.array(row) for row in rows if row != 2})
    ranks = SimpleNamespace(count=1, rank=0, gather=lambda rows: rows)
    validation = Validation(pairs, ids, store, ranks, 2)  # type: ignore[arg-type]
    scores = validation.scores(lambda rows: features[rows], lambda ids: torch.eye(4)[ids[:, 0]])
    # x: a 0.9 behind b 0.95: 2. y, right are b and d: 1. w: d 0.3 behind a 0.8: 2. z has no video left.
    assert scores.r1 == pytest.approx(100 / 3) and scores.mean_rank == pytest.approx(5 / 3)
    # a: x 0.9 is first. b: y 0.5 behind x 0.95: 2. d: w 0.3 is first.
    assert scores.v2t_r1 == pytest.approx(200 / 3) and scores.r_sum == pytest.approx(100 / 3 + 200)


def test_better_is_a_higher_sum_then_a_lower_rank() -> None:
    def scores(r1: float, mean_rank: float) -> Scores:
        rest = {"r5": 50.0, "r10": 60.0, "v2t_r1": 0.0, "v2t_r5": 0.0, "v2t_r10": 0.0, "v2t_mean_rank": 1.0}
        return Scores(r1=r1, mean_rank=mean_rank, **rest)

    assert scores(31, 9).better_than(scores(30, 2)) and scores(30, 2).better_than(scores(30, 3))
    assert not scores(30, 2).better_than(scores(30, 2)) and not scores(29, 1).better_than(scores(30, 2))


# --- a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["lora", "adapter", "prompt", "full"])
def test_it_learns_and_what_is_written_is_what_was_fitted(
    model: Model, tmp_path: Path, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four colours; trained on and validated with the same videos, so it must come to know them."""
    rng = np.random.default_rng(3)
    pairs = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        frames = rng.integers(-10, 10, (6, 24, 24, 3)) + np.array(colour)
        write_video(tmp_path / f"{name}.mp4", list(frames.clip(0, 255).astype(np.uint8)), fps=2)
        pairs.append((tmp_path / f"{name}.mp4", ["a red cat", "the green door", "blue dog walks", "person"][number]))
    finish = _Run.finish
    seen: dict[str, torch.Tensor] = {}
    pixels, texts = torch.randn(3, 4, 3, 32, 32), [caption for _, caption in pairs]

    def finish_and_look(self: _Run) -> Any:
        self.put(self.best["parameters"])
        with torch.no_grad():
            seen["videos"], seen["texts"] = self.encoder.features(pixels), self.model.encode_text(texts)
        return finish(self)

    monkeypatch.setattr(_Run, "finish", finish_and_look)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    options = options_for(epochs=40, tune=tune, report_every=20, rate=5e-3)
    made = finetune(model, pairs, tmp_path / "out", validation=pairs, **options)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    first, *_, last = log_of(tmp_path / "out")
    assert float(last["loss"]) < 0.7 and float(first["r1"]) <= 50 < made.metrics["r1"], (first, last)
    again = load_tempme(tmp_path / "out", device="cpu")
    for encoder in (made.encoder, again):
        torch.testing.assert_close(encoder.encode(pixels), seen["videos"], atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder.model.encode_text(texts), seen["texts"], atol=1e-5, rtol=0)
    changed = TempMe(model, **SCHEDULE).encode(pixels)
    assert (changed - seen["videos"]).abs().max() > 1e-2
    assert made.fitted == {tune: made.fitted[tune], "positions": 6 * 32} and not made.failures
    assert again.model.weights_sha256 != model.weights_sha256 and again.settings["clips"] == {"1": 2, "2": 2}
    assert not (tmp_path / "out" / "frames-0").exists()


def test_what_is_exported_is_a_clip_model_for_everyone(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    """Transformers reads it and gives the same features; no trace of LoRA is left in the modules or their cost."""
    from transformers import CLIPModel

    made = finetune(model, pairs, tmp_path, **options_for(epochs=1), validation=pairs[:6])
    theirs = CLIPModel.from_pretrained(tmp_path).eval()
    ours = load(tmp_path, device="cpu")
    pixels = torch.randn(3, 3, 32, 32)
    ids = torch.tensor([[3, 9, 12, ours.text.config.end_token]])  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(ours.vision(pixels), theirs.get_image_features(pixels).pooler_output)
        torch.testing.assert_close(ours.text(ids), theirs.get_text_features(ids).pooler_output)  # type: ignore[misc]
        assert float(theirs.logit_scale.exp()) == pytest.approx(ours.logit_scale)
    assert {type(module) for module in made.encoder.model.modules()} == {type(m) for m in model.modules()}
    assert ours.preprocess_settings == model.preprocess_settings
    card, facts = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "tempme.json").read_text())
    assert "of lora, 192 of positions" in card and facts["fitted"]["positions"] == 192
    assert "Not in the paper's recipe" not in card
    assert facts["schedule"]["clips"] == {"1": 2, "2": 2} and facts["validation"]["r_sum"] >= 0


def test_clip_state_is_the_inverse_of_loading(model: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    theirs, ours = load_file(model.folder / "model.safetensors"), clip_state(model)  # type: ignore[operator]
    assert theirs.keys() == ours.keys()
    moved = {f"vision_model.embeddings.{name}" for name in ("class_embedding", "position_embedding.weight")}
    for name in theirs.keys() - moved:
        assert torch.equal(theirs[name], ours[name]), name
    (cls, table), (own_cls, own_table) = ([state[name] for name in sorted(moved)] for state in (theirs, ours))
    assert torch.equal(own_cls + own_table[0], cls + table[0]) and torch.equal(own_table[1:], table[1:])


def test_the_best_is_kept_not_the_last(
    model: Model, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = iter([10.0, 30.0, 20.0, 30.0, 5.0])
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def scores(self: Validation, *encode: Any) -> Scores:
        rest = dict.fromkeys(("r5", "r10", "mean_rank", "v2t_r1", "v2t_r5", "v2t_r10", "v2t_mean_rank"), 0.0)
        return Scores(r1=next(sums), **rest)

    monkeypatch.setattr(Validation, "scores", scores)
    report = _Run.report

    def remember(self: _Run, loss: float, speed: float) -> None:
        kept[self.step] = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        report(self, loss, speed)

    monkeypatch.setattr(_Run, "report", remember)
    made = finetune(model, pairs, tmp_path, **options_for(epochs=2, batch=5, report_every=4), validation=pairs[:6])
    assert sorted(kept) == [0, 4, 8] and made.metrics["r1"] == 30
    assert json.loads((tmp_path / "tempme.json").read_text())["best_step"] == 4
    for layer, rows in made.encoder.positions.items():
        assert torch.equal(rows, kept[4][f"positions.{layer}"])
        assert not torch.equal(rows, kept[8][f"positions.{layer}"])


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(
    model: Model, pairs: list[Pair], videos: Path, tmp_path: Path
) -> None:
    bad, gone = tmp_path / "bad.mp4", tmp_path / "gone.mp4"
    bad.write_bytes(b"this is no video" * 40)
    more = [*pairs, Pair(bad, "a red dog"), Pair(gone, "a cat"), Pair(videos / "v0.mp4", "  ")]
    said: list[str] = []
    made = finetune(model, more, tmp_path / "out", **options_for(batch=21, epochs=1), validation=pairs, say=said.append)
    assert len(made.failures) == 3 == len((tmp_path / "out" / "failures.txt").read_text().splitlines())
    text = "\n".join(made.failures)
    assert "bad.mp4" in text and f"{gone}: no such file" in text and "v0.mp4: has an empty caption" in text
    assert (tmp_path / "out" / "model.safetensors").is_file() and any("left out" in line for line in said)


def test_bad_options_are_one_sentence(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    for options, message in (
        ({"tune": "lore"}, "tune must be one of lora, adapter, prompt, full, got 'lore'"),
        ({"precision": "float8"}, "precision must be one of float32, bfloat16, float16, got 'float8'"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"batch": 99}, "captioned videos do not fill one batch of 99: give more, or a smaller batch"),
        ({"frames": 6}, "6 frames, which clips=.* cannot join: it takes a multiple of 4"),
        ({"schedule": {"r": 1}}, "schedule must hold r and clips, and may hold proportional, remove_cross"),
        ({"rate": 0.0}, "rate must be a positive number, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"together": True, "batch": 5}, "together needs an even batch, got 5: .*; use 6 or 4"),
        ({"together": 2}, "together must be True or False, got 2"),
        ({"positions_rate": 0.0}, "positions_rate must be a positive number, got 0"),
        ({"positions_rate": math.nan}, "positions_rate must be a positive number, got nan"),
        (
            {"positions_rate": 1e-3, "schedule": {"r": 1, "clips": {}}},
            r"got 0\.001, but there are none, as the schedule",
        ),
        ({"positions_rate": 1e-3, "schedule": SCHEDULE | {"temporal": False}}, "schedule joins no clips .*: leave it"),
        ({"words": 2}, "words must be at least 3"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(model, pairs, tmp_path / "out", **options_for(**options))
    with pytest.raises(TypeError, match="finetune has no option colour"):
        finetune(model, pairs, tmp_path / "out", colour=1)
    with pytest.raises(TypeError, match=r"pairs\[1\] must be \(video, caption\) or a Pair, got 'v0.mp4'"):
        finetune(model, [pairs[0], "v0.mp4"], tmp_path / "out")  # type: ignore[list-item]


def test_other_settings_in_the_same_folder_are_refused(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    finetune(model, pairs, tmp_path, **options_for(epochs=1))
    finetune(model, pairs, tmp_path, **options_for(epochs=1, micro_batch=2))  # nothing left to do
    for change, message in (({"rate": 1e-3}, "rate 0.01, now 0.001"), ({"epochs": 3}, "epochs 1, now 3")):
        with pytest.raises(TrainingError, match=f"holds a run with other settings .*{message}"):
            finetune(model, pairs, tmp_path, **options_for(**{"epochs": 1, **change}))
    with pytest.raises(TrainingError, match="pairs '"):
        finetune(model, pairs[2:], tmp_path, **options_for(epochs=1))


def test_defaults_follow_paper_data_and_schedule(model: Model) -> None:
    recipe = FinetuneRecipe.for_data(model, 180_000, 4, schedule=TempMe.preset("msrvtt-b32"))
    assert (recipe.batch, recipe.steps_per_epoch, recipe.steps) == (128, 1406, 7030)
    assert int(recipe.warm_up * recipe.steps) == 703
    assert (recipe.frames, recipe.words, recipe.rate, recipe.weight_decay) == (12, 32, 6e-4, 0.2)
    assert (recipe.clip, recipe.epochs, recipe.seed, recipe.tune) == (1.0, 5, 42, "lora")
    long = FinetuneRecipe.for_data(model, 9000, 1, schedule=TempMe.preset("didemo-b32"))
    assert (long.frames, long.words) == (64, 64)
    assert FinetuneRecipe.for_data(model, 100, 1).batch == 16 and FinetuneRecipe.for_data(model, 100, 3).batch == 15
    assert FinetuneRecipe.for_data(model, 100, 3, together=True).batch == 12


# --- killed, resumed, several processes ------------------------------------------------------------------


def fit_in_a_process(folder: str, pairs: list[Pair], out: Path, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    finetune(load(folder, device="cpu"), pairs, out, **options)


@pytest.mark.parametrize("more", [{}, {"together": True, "positions_rate": 0.1}], ids=["plain", "couples"])
def test_a_killed_run_ends_with_the_same_bits(
    model: Model, pairs: list[Pair], tmp_path: Path, forks: Any, more: dict[str, Any]
) -> None:
    from safetensors.torch import load_file

    options = options_for(epochs=12, batch=4, micro_batch=2, **more)
    finetune(model, pairs, tmp_path / "whole", **options)
    log, codes = tmp_path / "killed" / "log.csv", []
    for lines, delay in ((3, 0.0), (6, 0.02)):
        arguments = (str(model.folder), pairs, tmp_path / "killed", options)
        process = forks.Process(target=fit_in_a_process, args=arguments)
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if log.is_file() and len(log.read_bytes().splitlines()) >= lines:
                time.sleep(delay)
                os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
                break
            time.sleep(0.002)
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * 2
    said: list[str] = []
    finetune(model, pairs, tmp_path / "killed", **options, say=said.append)
    assert any(re.match(r"goes on at step \d+ of", line) for line in said)
    for name in ("model.safetensors", "tempme.safetensors"):
        one, two = load_file(tmp_path / "killed" / name), load_file(tmp_path / "whole" / name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    for one, two in zip(log_of(tmp_path / "killed"), log_of(tmp_path / "whole"), strict=True):
        assert {**one, "videos_per_second": ""} == {**two, "videos_per_second": ""}
    ends = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("killed", "whole")]
    for name, tensor in ends[0]["parameters"].items():
        assert torch.equal(tensor, ends[1]["parameters"][name])


PLAIN_GRADIENT = _Run.gradient


def gradient_at_start(run: _Run, frames: torch.Tensor, ids: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """Of weights that are the same everywhere, and not zero, so that every parameter has a gradient."""

    def started(name: str, tensor: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        return tensor.detach() + 0.05 * torch.randn(tensor.shape, generator=generator)

    run.put({name: started(name, tensor) for name, tensor in run.parameters.items()})
    loss = PLAIN_GRADIENT(run, frames, ids)
    return loss, {name: parameter.grad.clone() for name, parameter in run.parameters.items()}  # type: ignore[union-attr]


def fit_and_keep_the_gradient(folder: str, pairs: list[Pair], out: Path) -> None:
    """One process, or one of several."""
    rank = os.environ.get("RANK", "0")

    def keep(run: _Run, frames: torch.Tensor, ids: torch.Tensor) -> float:
        if run.step:
            return PLAIN_GRADIENT(run, frames, ids)
        loss, found = gradient_at_start(run, frames, ids)
        torch.save(found, out / f"gradient{rank}.pt")
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "gradient", keep)
        options = options_for(batch=8, micro_batch=3)
        finetune(load(folder, device="cpu"), pairs, out, validation=pairs[:7], **options)


def test_two_processes_give_the_gradient_of_one(model: Model, pairs: list[Pair], tmp_path: Path, forks: Any) -> None:
    """The first step's, parameter by parameter; then a whole run of 4 steps."""
    pytest.importorskip("accelerate")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    processes = start_ranks(forks, 2, fit_and_keep_the_gradient, str(model.folder), pairs, tmp_path / "two")
    fit_and_keep_the_gradient(str(model.folder), pairs, tmp_path / "one")
    assert end_of_ranks(processes) == [0, 0]
    one = torch.load(tmp_path / "one" / "gradient0.pt")
    for rank in (0, 1):
        found = torch.load(tmp_path / "two" / f"gradient{rank}.pt")
        assert found.keys() == one.keys()
        for name, tensor in one.items():
            assert tensor.abs().max() > 0
            assert (found[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max(), name
    logs = [log_of(tmp_path / name) for name in ("one", "two")]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]] == ["0", "2", "4"]
    for mine, theirs in zip(*logs, strict=True):
        assert float(mine["r_sum"]) == pytest.approx(float(theirs["r_sum"]))
        assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), abs=1e-3, nan_ok=True)


# --- the command -----------------------------------------------------------------------------------------


def test_schedules_of_the_command_line() -> None:
    assert make_schedule("msrvtt-b32", None, None, None, None) == TempMe.preset("msrvtt-b32")
    assert make_schedule(None, None, None, None, None) == {"r": 0, "clips": {}}
    assert make_schedule(None, 2, "8:2, 9:3", 40, None) == {"r": 2, "clips": {8: 2, 9: 3}, "remove_cross": 40}
    assert parse_clips("none") == {}
    for text in ("8", "8:2,8:3", "a:b", ""):
        with pytest.raises(ValueError, match="--clips must be layer:clips pairs with each layer once"):
            parse_clips(text)
    with pytest.raises(ValueError, match="--preset says all of the schedule; leave out --remove-cross"):
        make_schedule("msrvtt-b32", None, None, 30, None)
    with pytest.raises(ValueError, match="--remove-cross and --remove-intra belong to --clips"):
        make_schedule(None, 2, None, 30, None)


def test_captions_are_read_from_official_files_and_tables(videos: Path, tmp_path: Path) -> None:
    official = tmp_path / "train.json"
    entries = [{"video_id": f"v{n}", "split": "train" if n < 3 else "validate"} for n in range(5)]
    sentences = [{"video_id": f"v{n}", "caption": f"text {n} {k}", "sen_id": n} for n in range(5) for k in range(2)]
    official.write_text(json.dumps({"videos": entries, "sentences": sentences}))
    missing: list[str] = []
    found = read_pairs(videos, official, None, "train", missing)
    assert [pair.caption for pair in found] == [f"text {n} {k}" for n in range(3) for k in range(2)] and not missing
    table = tmp_path / "train.csv"
    table.write_text("video,caption,start,end\nv1,a cat,,\nnone,a dog,,\nv2.mp4,,1,2.5\nnone,again,,\n")
    found = read_pairs(videos, table, None, "train", missing)
    assert found == [Pair(videos / "v1.mp4", "a cat"), Pair(videos / "v2.mp4", "", 1.0, 2.5)]
    assert missing == [f"none: is not in {videos}"]


def test_the_command_fits_names_what_is_missing_and_exits_1(
    model: Model, pairs: list[Pair], videos: Path, tmp_path: Path
) -> None:
    shutil.copytree(videos, tmp_path / "videos")
    (tmp_path / "videos" / "v9.mp4").write_bytes(b"no video")
    table = tmp_path / "train.csv"
    rows = [f"{Path(pair.video).stem},{pair.caption}" for pair in pairs]
    table.write_text("\n".join(["video,caption", *rows, "nowhere,a cat", "v2,a dog", "v1,", "v3,a dog"]))
    arguments = ["finetune", "--videos", tmp_path / "videos", "--annotations", table, "--model", model.folder]
    (tmp_path / "val.csv").write_text("\n".join(["video,caption", *rows[:6]]))
    arguments += ["--validation", tmp_path / "val.csv", "--out", tmp_path / "out", "--merge", 1, "--clips", "1:2,2:2"]
    arguments += ["--epochs", 2, "--batch", 4, "--together", "--positions-rate", 0.02]
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--json"])
    assert result.exit_code == 1, result.output
    assert result.stdout, repr(result.exception)
    facts = json.loads(result.stdout[: result.stdout.rindex("}") + 1])
    assert facts["fitted"]["lora"] == 2 * 3 * 8 * (32 + 96) and facts["recipe"]["frames"] == 4
    text = "\n".join(facts["failures"])
    assert "nowhere: is not in" in text and "v9.mp4" in text and "v1.mp4: has an empty caption" in text
    assert all(f"{name}.mp4: 'a dog' is left out, as the other of its couple" in text for name in ("v2", "v3"))
    assert len(facts["failures"]) == 5 and facts["data"]["captions"] == len(pairs)
    assert facts["recipe"]["together"] is True and facts["recipe"]["positions_rate"] == 0.02
    (more,) = [line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if "Not in the paper" in line]
    assert "(`--together`)" in more and "0.02 (`--positions-rate`)" in more
    assert load_tempme(tmp_path / "out").schedule.clips == {1: 2, 2: 2}


def test_folders_that_are_none_are_said(model: Model, pairs: list[Pair], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no tempme.json: give the --out folder of everyframe finetune"):
        load_tempme(tmp_path)
    finetune(model, pairs, tmp_path / "out", **options_for(epochs=1, tune="adapter"))
    assert not (tmp_path / "out" / "model.safetensors").exists()  # `load` must not take it for the fitted model
    other = load(checkpoints.clip(tmp_path / "other", seed=5), device="cpu")
    with pytest.raises(ModelError, match=r"was fitted to .* with other weights than"):
        load_tempme(tmp_path / "out", model=other)
    (tmp_path / "out" / "adapters.safetensors").unlink()
    with pytest.raises(ModelError, match="is not a whole folder of everyframe finetune"):
        load_tempme(tmp_path / "out")
