"""Fitting the residual tokenizer: real videos decoded, one process and two, killed and resumed."""

from __future__ import annotations

import base64
import concurrent.futures
import csv
import http.server
import json
import math
import os
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import metadata
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import checkpoints
from everyframe import cli
from everyframe.backbone import Model, load
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT
from everyframe.synthetic import COLOURS, SHAPES, SyntheticVideo
from everyframe.training import Recipe, TrainingError, distill, open_clips, publish
from everyframe.training.data import load_window
from everyframe.training.distillation import _Run
from everyframe.training.held_out import HeldOut, split
from everyframe.training.losses import LOSSES, distillation_loss
from everyframe.training.ranks import Ranks
from everyframe.training.store import ClipStore, clip_seed, encode_texts
from everyframe.video import VideoError, write_image, write_video
from processes import end_of_ranks, start_ranks

NUM_VIDEOS, SECONDS = 9, 8.0  # two clips of 4 s each: 18, of which 4 are held out
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "clip": lambda folder: checkpoints.clip(folder, image_size=40),  # 5 x 5 patches: floor gives 3, round 4
    "small clip": lambda folder: checkpoints.clip(folder),  # 4 x 4 patches: 2 kept, so that there is much to gain
    "siglip": checkpoints.siglip,
    "siglip2": checkpoints.siglip2,
    "dinov2": checkpoints.dinov2,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and other processes of these tests use one too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos/, captions.csv and prompts.txt."""
    folder = tmp_path_factory.mktemp("distill")
    (folder / "videos").mkdir()
    subjects = [f"{a} {b} {c}" for a, b, c in product(["a", "the"], ["red", "blue", "green"], ["cat", "dog"])]
    rows = ["video,caption"]
    for number in range(NUM_VIDEOS):
        world = SyntheticVideo(700 + number, seconds=SECONDS, fps=6, size=(64, 48))
        world.write(folder / "videos" / f"v{number}.mp4")
        rows += [f"v{number},{subjects[number]} walks in", f"v{number},{subjects[number]} opens a door"]
    (folder / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    actions = ["door", "walks", "and", "square", "in"]
    prompts = [" ".join(words) for words in product(subjects, actions)]
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    @cache
    def model(family: str) -> Model:
        return load(FAMILIES[family](tmp_path_factory.mktemp(family)), device="cpu")

    return model


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    return models("clip")


def options_for(place: Path, loss: str = "text", **more: Any) -> dict[str, Any]:
    """Arguments of `fit`: small and quick."""
    options = {"loss": loss, "batch": 6, "steps": 6, "rate": 1e-2, "report_every": 3, **more}
    options["captions"] = place / "captions.csv" if loss.startswith("text") else None
    options["prompts"] = place / "prompts.txt" if loss == "prompts" else None
    return options


def fit(model: Model, videos: Path, out: Path, *, captions: Path | None = None, **options: Any) -> Any:
    return distill(model, open_clips(videos, captions), out, **options)


def fit_in_a_process(folder: str, videos: Path, out: Path, options: dict[str, Any]) -> None:
    """What a process of its own does, until it is killed."""
    torch.set_num_threads(1)
    fit(load(folder, device="cpu"), videos, out, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "tokenizer.safetensors")


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name] - other[name]).abs().max() <= atol, name


def make_run(model: Model, place: Path, out: Path, loss: str, **options: Any) -> _Run:
    settings = options_for(place, loss, **options)
    del settings["report_every"]
    clips = open_clips(place / "videos", settings.pop("captions"))
    prompts = settings.pop("prompts")
    out.mkdir(exist_ok=True)
    recipe = Recipe.for_data(model, clips, **settings)
    return _Run(model, clips, out, recipe, prompts, [], lambda text: None, Ranks(model.device))


def everyframe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[object, str, str]:
    """The command line in this process: exit code, standard output, standard error."""
    import warnings

    monkeypatch.setattr(sys, "argv", ["everyframe", *map(str, arguments)])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        warnings.simplefilter("default")
        cli.main()
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err


# --- a step ----------------------------------------------------------------------------------------------


def gradient_of(run: _Run) -> torch.Tensor:
    batch = run.store.batch(run.places(0))
    run.gradient(batch, 0)
    return torch.cat([parameter.grad.flatten() for parameter in run.tokenizer.parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_does_not_depend_on_the_micro_batch(model: Model, place: Path, tmp_path: Path, loss: str) -> None:
    found = {}
    for micro_batch in (1, 3, 8):
        run = make_run(model, place, tmp_path / "run", loss, batch=8, micro_batch=micro_batch)
        found[micro_batch] = gradient_of(run)
        run.store.close()
    # The same by autograd alone, over the whole batch; and what averaging the parts' losses would give.
    batch, indices = run.store.batch(run.places(0)), run.kept_indices(0)

    def plain(rows: slice) -> torch.Tensor:
        run.optimizer.zero_grad()
        texts = run.texts if batch.texts is None else batch.texts[rows]
        student = run.student(batch, indices, rows)
        distillation_loss(loss, student, batch.teacher[rows, 1:], texts, model.logit_scale).backward()
        return torch.cat([parameter.grad.flatten() for parameter in run.tokenizer.parameters()])  # type: ignore[union-attr]

    expected = plain(slice(None))
    for gradient in found.values():
        assert (gradient - expected).norm() < 1e-5 * expected.norm()
    if loss == "text":
        naive = sum(plain(slice(row, row + 2)) for row in range(0, 8, 2)) / 4
        assert (naive - expected).norm() > 0.05 * expected.norm()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_moves_the_tokenizer_alone(model: Model, place: Path, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    fit(model, place / "videos", tmp_path, **options_for(place, "mse", steps=2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_p_frames_keep_random_patches_and_the_first_frame_makes_the_token(
    model: Model, place: Path, tmp_path: Path
) -> None:
    run = make_run(model, place, tmp_path / "run", "mse")
    kept = run.kept_indices(4)
    assert kept.shape == (6, 3, math.floor(25 * 0.15))
    assert (kept.diff(dim=2) > 0).all() and kept.min() >= 0 and kept.max() < 25
    rows = [tuple(row) for row in kept.flatten(0, 1).tolist()]
    assert len(set(rows)) > 12 and set(rows) != {tuple(row) for row in run.kept_indices(5).flatten(0, 1).tolist()}
    seen = torch.cat([run.kept_indices(step).flatten() for step in range(60)]).bincount(minlength=25)
    assert seen.min() > 0.6 * seen.float().mean() and seen.max() < 1.5 * seen.float().mean()

    places, clips = run.places(0), open_clips(place / "videos")
    batch = run.store.batch(places)
    features = run.student(batch, kept, slice(0, 2))
    vision = model.vision
    for row, (index, epoch) in enumerate(places[:2]):
        clip = clips.load(index, clip_seed(0, epoch, index))
        assert batch.names[row] == clip.name
        pixels = model.preprocess(clip.frames)
        dense = DenseEncoder(model).encode(pixels)
        torch.testing.assert_close(batch.teacher[row], dense, atol=1e-5, rtol=0)
        token = run.tokenizer(dense[:1])
        for k in range(3):
            patches = vision.embed(vision.patchify(pixels[k + 1 : k + 2]))[:, kept[row, k]]
            sequence = torch.cat([vision.prefix(1), token[:, None], patches], 1)
            expected = F.normalize(vision.encode(sequence), dim=1)[0]
            torch.testing.assert_close(features[row, k], expected, atol=1e-5, rtol=0)
    run.store.close()


def test_clips_and_patches_do_not_depend_on_the_number_of_processes(model: Model, place: Path, tmp_path: Path) -> None:
    run = make_run(model, place, tmp_path / "run", "mse")
    whole = [(run.places(step), run.kept_indices(step)) for step in range(5)]
    parts: list[list[Any]] = [[], []]
    run.ranks.count = 2
    for run.ranks.rank in (0, 1):
        parts[run.ranks.rank] = [(run.places(step), run.kept_indices(step)) for step in range(5)]
    for step, (indices, kept) in enumerate(whole):
        assert indices == parts[0][step][0] + parts[1][step][0]
        assert torch.equal(kept, torch.cat([parts[0][step][1], parts[1][step][1]]))
    listed = [place for places, _ in whole for place in places][:28]
    assert [epoch for _, epoch in listed] == [0] * 14 + [1] * 14
    epochs = [index for index, _ in listed]
    assert sorted(epochs[:14]) == sorted(epochs[14:]) == run.training.tolist() and epochs[:14] != epochs[14:]
    run.store.close()


def test_a_batch_that_cannot_be_shared_is_said() -> None:
    ranks = Ranks(torch.device("cpu"))
    ranks.count = 4
    with pytest.raises(ValueError, match=r"the batch \(6 clips\) must be a multiple of the 4 processes; use --batch 8"):
        ranks.part(6)


# --- it learns -------------------------------------------------------------------------------------------


def spread_texts(self: Model, texts: Sequence[str]) -> torch.Tensor:
    """Each text another direction. A random text tower gives nearly the same for all, and the losses with texts then
    say nothing of the others.
    """
    rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dim) for text in texts]
    return F.normalize(torch.from_numpy(np.stack(rows)).float(), dim=1)


@pytest.mark.parametrize(
    ("family", "loss"),
    [
        *((family, "mse") for family in ("small clip", "siglip", "siglip2", "dinov2")),
        ("small clip", "prompts"),
        ("small clip", "text"),
        ("siglip", "prompts"),
    ],
)
def test_held_out_fidelity_improves(
    models: Callable[[str], Model],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    loss: str,
) -> None:
    monkeypatch.setattr(Model, "encode_text", spread_texts)
    options = options_for(place, loss, steps=160, batch=12, report_every=160, rate=3e-3)
    metrics = fit(models(family), place / "videos", tmp_path, **options).metrics
    assert 1 - metrics["with"] < 0.85 * (1 - metrics["without"])
    untrained, trained = log_of(tmp_path)
    assert float(trained["with"]) == pytest.approx(metrics["with"], abs=1e-4)
    assert float(trained["with"]) > float(untrained["with"])


def test_held_out_fidelity_improves_with_a_real_text_tower(place: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {a} {b}" for a, b in product(COLOURS, SHAPES)))
    options = {"loss": "prompts", "prompts": tmp_path / "prompts.txt", "steps": 40, "batch": 8, "rate": 3e-3}
    metrics = fit(load("bundled", device="cpu"), place / "videos", tmp_path / "out", **options).metrics
    # Against its own first weights: whether 14 clips are enough to beat no token depends on which seconds are drawn.
    assert 1 - metrics["with"] < 0.9 * (1 - float(log_of(tmp_path / "out")[0]["with"]))


# --- killed, resumed -------------------------------------------------------------------------------------


def kill_when(process: Any, log: Path, lines: int, delay: float) -> None:
    """kill -9, `delay` seconds after log.csv has that many lines."""
    process.start()
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if log.is_file() and len(log.read_bytes().splitlines()) >= lines:
            time.sleep(delay)
            break
        time.sleep(0.002)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize(
    ("loss", "more", "moments"),
    [
        ("text", {"steps": 60, "report_every": 10}, [(1, 0.0), (2, 0.03), (2, 0.15), (5, 0.01)]),
        ("mse", {"steps": 12, "report_every": 2, "fresh": True, "layers": 2, "hidden": 9}, [(2, 0.0), (4, 0.05)]),
    ],
    ids=["kept", "fresh"],
)
def test_a_killed_run_ends_with_the_same_bits(
    model: Model, place: Path, tmp_path: Path, forks: Any, loss: str, more: dict[str, Any], moments: list[Any]
) -> None:
    options = options_for(place, loss, **more)
    fit(model, place / "videos", tmp_path / "whole", **options)
    codes = []
    for lines, delay in moments:
        arguments = (str(model.folder), place / "videos", tmp_path / "killed", options)
        process = forks.Process(target=fit_in_a_process, args=arguments)
        kill_when(process, tmp_path / "killed" / "log.csv", lines, delay)
        codes.append(process.exitcode)
    assert codes.count(-signal.SIGKILL) >= 2, codes
    said: list[str] = []
    fit(model, place / "videos", tmp_path / "killed", **options, say=said.append)
    assert any(re.match(r"goes on at step \d+ of", line) for line in said)
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    steps = [int(row["step"]) for row in log_of(tmp_path / "killed")]
    assert steps == list(range(0, more["steps"] + 1, more["report_every"]))
    for one, other in zip(log_of(tmp_path / "killed"), log_of(tmp_path / "whole"), strict=True):
        assert {**one, "frames_per_second": ""} == {**other, "frames_per_second": ""}
    made = {"tokenizer.safetensors", "tokenizer.json", "README.md", "log.csv", "checkpoint.pt"}
    assert {file.name for file in (tmp_path / "killed").iterdir()} == made


def test_log_lines_that_the_checkpoint_does_not_hold_are_written_anew(
    model: Model, place: Path, tmp_path: Path
) -> None:
    options = options_for(place)
    before = tmp_path / "before.pt"

    def keep(step: int, steps: int, loss: float) -> None:
        if step == 4:  # the checkpoint of step 3
            shutil.copyfile(tmp_path / "out" / "checkpoint.pt", before)

    fit(model, place / "videos", tmp_path / "out", **options, step_done=keep)
    made = weights(tmp_path / "out")
    shutil.copyfile(before, tmp_path / "out" / "checkpoint.pt")  # as if killed after a line and before its checkpoint
    fit(model, place / "videos", tmp_path / "out", **options)
    assert [row["step"] for row in log_of(tmp_path / "out")] == ["0", "3", "6"]
    assert_same(weights(tmp_path / "out"), made, atol=1e-5)


def test_a_log_cut_while_it_was_written_is_no_obstacle(model: Model, place: Path, tmp_path: Path) -> None:
    options = options_for(place, "mse")
    fit(model, place / "videos", tmp_path, **options)
    (tmp_path / "log.csv").write_text("")
    fit(model, place / "videos", tmp_path, **{**options, "steps": 9})
    fit(model, place / "videos", tmp_path, **{**options, "steps": 9})


def test_more_steps_go_on_and_fewer_are_refused(model: Model, place: Path, tmp_path: Path) -> None:
    for steps in (4, 4, 9):  # the second has nothing left to do
        fit(model, place / "videos", tmp_path / "twice", **options_for(place, steps=steps))
    fit(model, place / "videos", tmp_path / "once", **options_for(place, steps=9))
    # The clips were decoded again, in other batches, so the teacher's last bits may differ.
    assert_same(weights(tmp_path / "twice"), weights(tmp_path / "once"), atol=1e-5)
    assert [row["step"] for row in log_of(tmp_path / "twice")] == ["0", "3", "4", "6", "9"]
    with pytest.raises(TrainingError, match="holds a run of 9 steps, more than the 5 asked for"):
        fit(model, place / "videos", tmp_path / "twice", **options_for(place, steps=5))


def test_other_settings_in_the_same_folder_are_refused(
    model: Model, place: Path, tmp_path: Path, models: Callable[[str], Model]
) -> None:
    out, videos = tmp_path / "out", place / "videos"
    options = options_for(place, "prompts", steps=2)
    fit(model, videos, out, **options)
    other_model = load(checkpoints.clip(tmp_path / "other", image_size=40, seed=9), device="cpu")
    other_prompts = tmp_path / "prompts.txt"  # as many, but other ones
    other_prompts.write_text((place / "prompts.txt").read_text().replace("cat", "dog"))
    shutil.copytree(videos, tmp_path / "fewer")
    (tmp_path / "fewer" / "v0.mp4").unlink()
    changed: list[tuple[str, Model, Path, dict[str, Any]]] = [
        ("loss 'prompts', now 'mse'", model, videos, {"loss": "mse", "prompts": None}),
        ("drop 0.85, now 0.5", model, videos, {"drop": 0.5}),
        ("seed 0, now 1", model, videos, {"seed": 1}),
        ("layers 1, now 2", model, videos, {"layers": 2}),
        ("batch 6, now 4", model, videos, {"batch": 4}),
        ("prompts '[0-9a-f]{16}', now '", model, videos, {"prompts": other_prompts}),
        ("clips '[0-9a-f]{16}', now '", model, tmp_path / "fewer", {}),
        ("model '[0-9a-f]{64}', now '", other_model, videos, {}),
    ]
    before = (out / "checkpoint.pt").read_bytes()
    for what, other, source, change in changed:
        with pytest.raises(TrainingError, match=rf"out holds a run with other settings \({what}") as caught:
            fit(other, source, out, **{**options, **change})
        assert caught.value.args[0].endswith("choose another folder, or remove it to start anew")
    assert (out / "checkpoint.pt").read_bytes() == before
    fit(model, videos, out, **{**options, "micro_batch": 2, "report_every": 1, "steps": 3})  # these may change


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half"], ids=["empty", "text", "half"])
def test_a_broken_checkpoint_is_said(model: Model, place: Path, tmp_path: Path, content: bytes | str) -> None:
    options = options_for(place, "mse", steps=1)
    fit(model, place / "videos", tmp_path, **options)
    file = tmp_path / "checkpoint.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is not a whole checkpoint of a run .* remove it") as error:
        fit(model, place / "videos", tmp_path, **options)
    assert "\n" not in str(error.value)


# --- clips are kept --------------------------------------------------------------------------------------


class Spied:
    """Clips that count what is decoded; those in `broken` cannot be."""

    def __init__(self, clips: Any, broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self._clips, self._broken = clips, broken
        self.loaded: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clips, name)

    def __len__(self) -> int:
        return len(self._clips)

    def load(self, index: int, seed: int) -> Any:
        self.loaded.append(index)
        if index in self._broken:
            raise VideoError(f"{self._clips.video(index)}: clip {index} is damaged")
        return self._clips.load(index, seed)


class Stop(Exception):
    pass


def test_the_second_epoch_decodes_nothing(model: Model, place: Path, tmp_path: Path) -> None:
    options = options_for(place, batch=7, steps=6)
    clips = Spied(open_clips(place / "videos", options.pop("captions")))
    distill(model, clips, tmp_path / "kept", **options)  # 14 clips: an epoch of two steps
    assert sorted(clips.loaded) == split(clips)[0].tolist()
    assert not list((tmp_path / "kept").glob("clips-*"))
    clips.loaded.clear()
    distill(model, clips, tmp_path / "fresh", **options, fresh=True)
    assert len(clips.loaded) == 6 * 7
    distill(model, clips, tmp_path / "again", **options)
    assert_same(weights(tmp_path / "kept"), weights(tmp_path / "again"), atol=1e-5)
    assert (weights(tmp_path / "kept")["bias"] - weights(tmp_path / "fresh")["bias"]).abs().max() > 1e-4


def make_store(model: Model, clips: Any, folder: Path | None, seed: int = 0) -> ClipStore:
    pool = np.arange(len(clips))
    return ClipStore(
        model, clips, pool=pool, seed=seed, folder=folder, with_texts=False, on_failure=lambda message: None
    )


def test_what_is_read_ahead_holds_no_frames(model: Model, place: Path) -> None:
    alive: list[Any] = []

    class Watched(Spied):
        def load(self, index: int, seed: int) -> Any:
            clip = super().load(index, seed)
            alive.append(weakref.ref(clip.frames))
            return clip

    store = make_store(model, Watched(open_clips(place / "videos")), None)
    store.prefetch([(index, 0) for index in range(4)])
    concurrent.futures.wait(store._ahead.values())
    assert len(alive) == 4 and not any(frames() is not None for frames in alive)
    store.close()


def test_a_kept_clip_has_the_name_it_was_decoded_with(model: Model, place: Path, tmp_path: Path) -> None:
    clips = Spied(open_clips(place / "videos"))
    names = []
    for _ in range(2):
        store = make_store(model, clips, tmp_path / "clips")
        names.append(store.batch([(3, 0), (5, 1)]).names)
        store.close()
    assert names[0] == names[1] and len(clips.loaded) == 2
    assert all(re.fullmatch(r".*/v\d\.mp4 at \d\.\d\d s", name) for name in names[0])


def test_fresh_clips_follow_from_seed_and_epoch_of_each(model: Model, place: Path) -> None:
    clips = open_clips(place / "videos")
    store = make_store(model, clips, None)
    batch = store.batch([(2, 0), (2, 1), (7, 1)])
    expected = [clips.load(index, clip_seed(0, epoch, index)).name for index, epoch in [(2, 0), (2, 1), (7, 1)]]
    assert batch.names == expected and len(set(expected)) == 3
    store.close()
    seeds = {clip_seed(*key) for key in product(range(10), repeat=3)}
    assert len(seeds) == 1000 and all(seed >= 0 for seed in seeds)


def test_clips_that_cannot_be_removed_end_the_run(
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = open_clips(place / "videos")
    make_store(model, clips, tmp_path / "clips").close()

    def stuck(folder: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(shutil, "rmtree", stuck)
    make_store(model, clips, tmp_path / "clips").close()  # the same clips
    with pytest.raises(PermissionError, match="clips"):
        make_store(model, clips, tmp_path / "clips", seed=1)


def test_kept_clips_may_be_deleted_in_between(model: Model, place: Path, tmp_path: Path) -> None:
    options = options_for(place, batch=7, steps=6)
    fit(model, place / "videos", tmp_path / "whole", **options)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise Stop

    threads = threading.active_count()
    with pytest.raises(Stop):
        fit(model, place / "videos", tmp_path / "cut", **options, step_done=stop)
    assert threading.active_count() == threads  # the readers are gone, too
    shutil.rmtree(tmp_path / "cut" / "clips-0")
    fit(model, place / "videos", tmp_path / "cut", **options)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"), atol=1e-5)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_clip_that_fails_is_replaced_and_reported_once(
    model: Model, place: Path, tmp_path: Path, fresh: bool
) -> None:
    options = options_for(place, "mse", batch=7, steps=6, fresh=fresh)
    broken = set(split(open_clips(place / "videos"))[0][[2, 5]].tolist())
    said: list[str] = []
    runs = []
    for name in ("one", "two"):
        clips = Spied(open_clips(place / "videos"), broken)
        result = distill(
            model, clips, tmp_path / name, **{k: v for k, v in options.items() if k != "captions"}, say=said.append
        )
        runs.append(weights(tmp_path / name))
        lines = (tmp_path / name / "failures.txt").read_text().splitlines()
        assert sorted(lines) == sorted(f"{clips.video(index)}: clip {index} is damaged" for index in broken)
        assert result.failures == sorted(lines)
    assert_same(*runs)
    assert len([line for line in said if line.startswith("left out: ")]) == 2 * len(broken)
    if not fresh:
        assert len(clips.loaded) == 14


def test_when_nothing_can_be_read_it_says_so(model: Model, place: Path, tmp_path: Path) -> None:
    clips = Spied(open_clips(place / "videos"), set(range(2 * NUM_VIDEOS)))
    with pytest.raises(TrainingError, match=r"clips of a batch cannot be read, nor any of 50 tried in place of each"):
        distill(model, clips, tmp_path, loss="mse", batch=6, steps=2)


def test_too_little_disk_is_said_before_it_is_full(
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(TrainingError, match=r"keeping the clips while it runs may take .* GiB are free; use --fresh"):
        fit(model, place / "videos", tmp_path, **options_for(place, "mse"))
    fit(model, place / "videos", tmp_path, **options_for(place, "mse", steps=1, fresh=True))


def test_a_loss_that_is_not_a_number_names_step_and_clips(
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = DenseEncoder.encode, []

    def overflowing(self: DenseEncoder, pixels: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        features = encode(self, pixels, *more, **options)
        if len(pixels) == 6 * 4:  # a batch; held-out windows are shorter
            calls.append(len(pixels))
            if len(calls) == 2:
                features[4:8] = math.nan
        return features

    monkeypatch.setattr(DenseEncoder, "encode", overflowing)
    with pytest.raises(TrainingError) as error:
        fit(model, place / "videos", tmp_path, **options_for(place, report_every=1))
    found = re.match(r"the loss is nan at step 2, in the batch of (\S+) at [\d.]+ s; ", str(error.value))
    assert found and Path(found[1]).parent == place / "videos", error.value
    held = torch.load(tmp_path / "checkpoint.pt")
    assert held["step"] == 1 and all(tensor.isfinite().all() for tensor in held["tokenizer"].values())


# --- what is held out ------------------------------------------------------------------------------------


class Listed:
    """Clips by (video, start) alone, each a second long; or by (video, start, end)."""

    def __init__(self, *clips: tuple[Any, ...]) -> None:
        self.clips = clips
        self.names = sorted({video for video, *_ in clips})

    def __len__(self) -> int:
        return len(self.clips)

    def video(self, index: int) -> str:
        return self.clips[index][0]

    def video_number(self, index: int) -> int:
        return self.names.index(self.clips[index][0])

    def start(self, index: int) -> float:
        return self.clips[index][1]

    def end(self, index: int) -> float:
        return self.clips[index][2] if len(self.clips[index]) > 2 else self.start(index) + 1


@pytest.mark.parametrize(("videos", "held_videos"), [(8, 2), (40, 2), (100, 5), (2000, 64)])
def test_whole_videos_are_held_out(videos: int, held_videos: int) -> None:
    clips: Any = Listed(*((f"v{number % videos}", float(number)) for number in range(3 * videos)))
    training, held = split(clips)
    assert sorted([*training, *held]) == list(range(len(clips)))
    names = {clips.video(index) for index in held}
    assert len(names) == held_videos and not names & {clips.video(index) for index in training}
    assert all(np.array_equal(a, b) for a, b in zip(split(clips), (training, held), strict=True))
    assert {clips.video(index) for index in split(clips, seed=1)[1]} != names


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([30], [[27, 28, 29]]), ([25, 12], [[23, 24], [11]]), ([2], [[1]]), ([4, 9, 1], [[], [8], []])],
)
def test_of_few_videos_the_end_is_held_out(lengths: list[int], expected: list[list[int]]) -> None:
    listed = [(f"v{video}", float(place)) for video, length in enumerate(lengths) for place in range(length)]
    order = np.random.default_rng(0).permutation(len(listed))
    clips: Any = Listed(*(listed[place] for place in order))
    training, held = split(clips)
    wanted = {(f"v{video}", float(place)) for video, places in enumerate(expected) for place in places}
    assert {clips.clips[index] for index in held} == wanted
    assert not set(training) & set(held) and len(training) + len(held) == len(clips)


@pytest.mark.parametrize(
    ("clips", "training", "held_out"),
    [
        ([("a", 0, 4), ("a", 4, 7), ("a", 6, 9), ("a", 7, 9)], [0, 1], [3]),  # the third reaches into the last
        ([("a", 0, math.inf)] * 3 + [("b", 0, math.inf)] * 2, [0, 1, 2], [3, 4]),  # whole videos, several captions
        ([("a", 0, 9), ("a", 1, 9), ("a", 8, 9), ("b", 0, 4)], [0, 1, 2], [3]),
    ],
)
def test_nothing_is_both_trained_on_and_held_out(clips: list[Any], training: list[int], held_out: list[int]) -> None:
    found = split(Listed(*clips))  # type: ignore[arg-type]
    assert [part.tolist() for part in found] == [training, held_out]


def test_one_video_whose_clips_all_overlap_is_too_little() -> None:
    with pytest.raises(TrainingError, match="all 3 clips are of one video and reach into the last of them"):
        split(Listed(*[("a", 0, math.inf)] * 3))  # type: ignore[arg-type]


def test_windows_that_are_too_short_are_said(model: Model, place: Path) -> None:
    clips = open_clips(place / "videos")
    options: dict[str, Any] = {"interleave": 2, "drop": 0.5, "select": "motion", "most": 4, "seed": 0}
    said = r"the 2 held-out windows .* less than 2 frames in 0\.007 s, at 1000"
    with pytest.raises(TrainingError, match=said), pytest.warns(UserWarning, match="1000 frames per second were asked"):
        HeldOut(model, clips, np.array([3, 4]), fps=1000, **options)


def test_one_clip_is_too_few() -> None:
    with pytest.raises(TrainingError, match="there is only one clip, and one must be held out"):
        split(Listed(("v", 0.0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("interleave", "select", "fps"), [(2, "motion", 3.0), (1, "residual", 2.0), (3, "center", 3.0)]
)
def test_held_out_scores_equal_encoding_the_windows(
    model: Model, place: Path, interleave: int, select: str, fps: float
) -> None:
    clips = open_clips(place / "videos")
    held = split(clips)[1]
    options = {"interleave": interleave, "drop": 0.7, "select": select}
    scores = HeldOut(model, clips, held, **options, fps=fps, most=32, seed=0)  # type: ignore[arg-type]
    tokenizer = ResidualTokenizer(model.dim, model.vision.config.width)
    cosines: dict[str, list[float]] = {"with": [], "without": [], "copy": [], "interpolate": []}
    step = interleave + 1
    for index in held:
        frames, maps, times = load_window(
            clips.video(index), start=clips.start(index), seconds=(2 * step + 1) / fps, fps=fps, motion=True
        )
        assert len(frames) == 2 * step + 1 or times[-1] > SECONDS - 2 / fps
        pixels = model.preprocess(frames)
        motion = model.preprocess_motion(np.stack(maps), frames.shape[1:3]) if select == "motion" else None  # type: ignore[arg-type]
        dense = DenseEncoder(model).encode(pixels).double().numpy()
        ways = {
            name: ResidualViT(model, residual=residual, **options).encode(pixels, motion).numpy()  # type: ignore[arg-type]
            for name, residual in (("with", tokenizer), ("without", None))
        }
        for row in range(len(frames)):
            if row % step == 0:
                continue
            before, after = row - row % step, row - row % step + step
            for name, way in ways.items():
                cosines[name].append(float(way[row] @ dense[row]))
            cosines["copy"].append(float(dense[before] @ dense[row]))
            between = dense[before]
            if after < len(frames):
                share = (times[row] - times[before]) / (times[after] - times[before])
                between = (1 - share) * dense[before] + share * dense[after]
            cosines["interpolate"].append(float(between @ dense[row]) / float(np.linalg.norm(between)))
    found = scores.scores(tokenizer)
    for name, values in cosines.items():
        assert found[name] == pytest.approx(np.mean(values), abs=1e-6)
        assert found[f"{name}_p5"] == pytest.approx(np.percentile(values, 5), abs=1e-6)


def test_held_out_windows_never_show_what_is_trained_on(model: Model, tmp_path: Path) -> None:
    world = SyntheticVideo(5, seconds=48, fps=3, size=(32, 32))
    world.write(tmp_path / "long.mp4")
    clips = open_clips(tmp_path)
    training, held = split(clips)
    assert len(clips) == 12 and held.tolist() == [11]
    latest = max(clips.start(index) for index in training) + 4.0
    assert clips.start(11) >= latest - 1e-6
    _, _, times = clips.window(11, seconds=7 / 3, fps=3, motion=False)
    assert times[0] >= latest - 0.01


def test_a_folder_of_images_is_enough(model: Model, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    world = SyntheticVideo(3, seconds=6, fps=8, size=(48, 48))
    for number, picture in enumerate(world.frames()):
        write_image(tmp_path / "images" / f"{number:03}.png", picture)
    clips = open_clips(tmp_path / "images")
    assert len(clips) == 12
    _, _, times = clips.window(11, seconds=7 / 3, fps=3.0, motion=False)
    assert times.tolist() == [44.0, 45.0, 46.0]  # the time line of its clips: one image a second
    assert clips.load(11, 0).seconds >= 44
    result = fit(model, tmp_path / "images", tmp_path / "out", loss="mse", batch=4, steps=2)
    assert 0 < result.metrics["without"] < 1


# --- the recipe ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "width", "number", "processes", "batch"),
    [
        ("cuda", 768, 10**6, 1, 2048),
        ("cuda", 1024, 10**6, 1, 1536),
        ("cpu", 768, 10**6, 1, 256),
        ("cpu", 1024, 10**6, 1, 256),
        ("cuda", 768, 1000, 1, 64),
        ("cuda", 1024, 1000, 1, 64),
        ("cuda", 1024, 8 * 1535, 1, 1024),
        ("cpu", 768, 1000, 1, 64),
        ("cuda", 768, 10, 1, 8),
        ("cuda", 1024, 10, 1, 8),
        ("cpu", 768, 10, 1, 8),
        ("cuda", 768, 10**6, 6, 2046),
        ("cuda", 1024, 1000, 3, 63),
        ("cuda", 768, 10, 16, 16),
    ],
)
def test_default_batch(
    monkeypatch: pytest.MonkeyPatch, device: str, width: int, number: int, processes: int, batch: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    vision = SimpleNamespace(config=SimpleNamespace(width=width))
    model: Any = SimpleNamespace(device=torch.device(device), vision=vision, text=None)
    clips: Any = type("Many", (), {"frames": 4, "captioned": False, "__len__": lambda self: number})()
    recipe = Recipe.for_data(model, clips)
    assert recipe.batch == batch and recipe.loss == "mse"
    assert recipe.steps == max(500, math.ceil(5 * number / batch))
    assert recipe.micro_batch == min(batch, 64 if device == "cpu" else 256)
    assert Recipe.for_data(model, clips, batch=7).batch == 7


# --- what is written -------------------------------------------------------------------------------------


def test_what_is_written(model: Model, place: Path, tmp_path: Path) -> None:
    options = options_for(place, drop=0.6, layers=2, hidden=10)
    result = fit(model, place / "videos", tmp_path, **options)
    facts = json.loads((tmp_path / "tokenizer.json").read_text())
    encoder = ResidualViT(model, 2, 0.6, residual=tmp_path)
    assert encoder.tokenizer is not None and encoder.tokenizer.facts == facts == result.tokenizer.facts
    wanted = {"loss": "text", "drop": 0.6, "steps": 6, "batch": 6, "layers": 2, "hidden": 10, "rate": 1e-2, "seed": 0}
    assert wanted.items() <= facts.items()
    assert facts["weights_sha256"] == model.weights_sha256
    assert facts["model"] == model.folder.name  # type: ignore[union-attr]  # nobody else's business where it lay
    assert facts["data"]["clips"] == 18 and facts["data"]["videos"] == 9 and facts["data"]["held_out_windows"] == 4
    card = (tmp_path / "README.md").read_text()
    for name in ("with", "without", "copy", "interpolate"):
        assert f"{facts['fidelity_of_p_frames'][name]:.4f}" in card
    assert (facts["everyframe"], facts["dtype"]) == (metadata.version("everyframe"), "float32")
    assert facts["prompts"] is None and facts["fps"] == 3.0
    assert str(tmp_path) not in card and str(place) not in card
    assert not (tmp_path / "failures.txt").exists() and result.failures == []
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1  # whoever may read one may read all


def test_a_token_that_does_not_help_is_said(model: Model, place: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options = options_for(place, "mse", steps=1, rate=1e-9)
    metrics = fit(model, place / "videos", tmp_path, **options, say=said.append).metrics
    assert metrics["with"] < metrics["without"]  # its first weights are random
    assert said[-1].startswith("on held-out videos P-frames are no better with this token (")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_fits_too(model: Model, place: Path, tmp_path: Path, dtype: str) -> None:
    half = load(model.folder, device="cpu", dtype=dtype)  # type: ignore[arg-type]
    metrics = fit(
        half, place / "videos", tmp_path, **options_for(place, "mse", steps=40, batch=8, report_every=40)
    ).metrics
    untrained, trained = log_of(tmp_path)
    assert float(trained["with"]) > float(untrained["with"]) + 0.002
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}
    assert metrics["with"] == pytest.approx(float(trained["with"]), abs=1e-4)


def test_texts_that_are_too_long_give_one_warning(model: Model) -> None:
    long = [" ".join(["the red cat opens the door"] * count) for count in range(3, 9)]
    with pytest.warns(UserWarning) as caught:
        features = encode_texts(model, ["a cat", *long])
    assert len(caught) == 1
    assert re.search(r"was cut to the model's 16: .*; so were 5 more of 7", str(caught[0].message))
    with pytest.warns(UserWarning):
        assert torch.equal(features, model.encode_text(["a cat", *long]))


# --- several processes -----------------------------------------------------------------------------------


def test_processes_that_find_different_steps_stop(
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for(place, "mse", steps=3)
    fit(model, place / "videos", tmp_path, **options)
    monkeypatch.setattr(Ranks, "gather", lambda self, rows: torch.cat([rows, torch.zeros_like(rows)]))
    with pytest.raises(TrainingError, match=r"different steps \(3, 0\) in .*--out must be a folder that all"):
        fit(model, place / "videos", tmp_path, **options)


def torchrun(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_two_processes_give_the_weights_of_one(model: Model, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    options = options_for(place, steps=5, batch=8, micro_batch=3, report_every=2, rate=1e-3)
    fit(model, place / "videos", tmp_path / "one", **options)
    command = ["-m", "everyframe.cli", "distill", "--videos", place / "videos", "--captions", place / "captions.csv"]
    command += ["--model", model.folder, "--out", tmp_path / "two", "--loss", "text", "--steps", 5, "--batch", 8]
    command += ["--micro-batch", 3, "--report-every", 2, "--lr", 1e-3, "--device", "cpu", "--threads", 1]
    run = torchrun(*command)
    assert run.returncode == 0, run.stderr
    # Adam divides by the gradient's size, so a last bit of a tiny gradient may move a weight by a good part of a step
    # (1e-3 here); the gradients themselves are compared below.
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=1e-4)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two] == ["0", "2", "4", "5"]
    for mine, theirs in zip(one[1:], two[1:], strict=True):
        assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), abs=1e-4)
    said = run.stderr.splitlines()
    assert len([line for line in said if line.startswith("step 5: loss")]) == 1, run.stderr
    assert not [line for line in said if "Traceback" in line or "destroy_process_group" in line], run.stderr


def test_two_processes_give_the_gradient_of_one(model: Model, place: Path, tmp_path: Path, forks: Any) -> None:
    """After the first step AdamW's running mean is 0.1 times the gradient, and the checkpoint holds it."""
    pytest.importorskip("accelerate")
    options = options_for(place, steps=1, batch=8, micro_batch=3)
    shared = str(model.folder), place / "videos", tmp_path / "two", {**options, "micro_batch": 4}
    processes = start_ranks(forks, 2, fit_in_a_process, *shared)
    fit(model, place / "videos", tmp_path / "one", **options)
    assert end_of_ranks(processes) == [0, 0]
    for one, two in zip(*(gradients(tmp_path / name) for name in ("one", "two")), strict=True):
        assert one.abs().max() > 0
        assert (one - two).abs().max() <= 1e-5 * one.abs().max()


def gradients(folder: Path) -> list[torch.Tensor]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]["state"]
    return [10 * state[key]["exp_avg"] for key in sorted(state)]


def test_a_process_that_fails_does_not_leave_the_other_hanging(model: Model, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    script = tmp_path / "fails.py"
    script.write_text(
        """
import os, sys
from everyframe.backbone import load
from everyframe.training import TrainingError, distill, open_clips
from everyframe.training.store import ClipStore

read = ClipStore.batch
def batch(self, places):
    if os.environ["RANK"] == "1":
        raise TrainingError("the second process cannot read its clips")
    return read(self, places)
ClipStore.batch = batch
distill(load(sys.argv[1], device="cpu"), open_clips(sys.argv[2]), sys.argv[3], loss="mse", batch=4, steps=3)
"""
    )
    run = torchrun(script, model.folder, place / "videos", tmp_path / "out")
    assert run.returncode != 0
    assert "TrainingError: the second process cannot read its clips" in run.stderr


def fit_with_a_bad_clip(folder: str, videos: Path, out: Path) -> None:
    """Of the second process the second clip is bad. Writes which that is, and what each process says."""
    read, rank = ClipStore.batch, os.environ["RANK"]

    def batch(self: ClipStore, places: Any) -> Any:
        result = read(self, places)
        if rank == "1":
            result.teacher[1] = float("nan")
            (out / "bad.txt").write_text(result.names[1])
        return result

    ClipStore.batch = batch  # type: ignore[method-assign]
    try:
        distill(load(folder, device="cpu"), open_clips(videos), out, loss="mse", batch=4, steps=3)
    except TrainingError as error:
        (out / f"message{rank}.txt").write_text(str(error))


def test_the_message_of_every_process_names_the_bad_clip(model: Model, place: Path, tmp_path: Path, forks: Any) -> None:
    pytest.importorskip("accelerate")
    processes = start_ranks(forks, 2, fit_with_a_bad_clip, str(model.folder), place / "videos", tmp_path)
    assert end_of_ranks(processes) == [0, 0]
    bad, *messages = ((tmp_path / f"{name}.txt").read_text() for name in ("bad", "message0", "message1"))
    assert messages[0] == messages[1]
    assert f"the loss is nan at step 1, in the batch of {bad}; " in messages[0]


# --- the command line ------------------------------------------------------------------------------------


def test_cli_fits_and_the_tokenizer_is_used(
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model", model.folder, "--device", "cpu", "--drop", 0.7]
    fitting = ["distill", "--videos", place / "videos", "--out", tmp_path / "token", *base, "--steps", 2, "--batch", 6]
    code, out, err = everyframe(monkeypatch, capsys, *fitting, "--loss", "mse")
    assert code == 0, err
    assert f"use it: --residual {tmp_path / 'token'}" in out
    assert "step 2: loss" in err and "held-out fidelity of P-frames" in err
    code, out, err = everyframe(monkeypatch, capsys, *fitting, "--loss", "mse", "--json")
    assert code == 0 and json.loads(out)["weights_sha256"] == model.weights_sha256
    assert json.loads(out)["failures"] == []
    encoding = ["encode", place / "videos" / "v0.mp4", "--out", tmp_path / "features", *base, "--quiet"]
    code, out, err = everyframe(monkeypatch, capsys, *encoding, "--residual", tmp_path / "token")
    assert code == 0 and "warning" not in err, err


def test_cli_leaves_unreadable_videos_out_and_exits_1(
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"\0" * 1000)
    damaged = tmp_path / "videos" / "v3.mp4"  # its header stays, its pictures do not
    content = damaged.read_bytes()
    at = content.index(b"mdat")
    size = int.from_bytes(content[at - 4 : at], "big")
    damaged.write_bytes(content[: at + 4] + b"\xff" * (size - 8) + content[at + size - 4 :])
    command = ["distill", "--videos", tmp_path / "videos", "--out", tmp_path / "out", "--model", model.folder]
    command += ["--device", "cpu", "--loss", "mse", "--steps", 4, "--batch", 8]
    for _ in range(2):  # done already the second time, with the same to say
        code, _, err = everyframe(monkeypatch, capsys, *command)
        assert code == 1, err
        assert (tmp_path / "out" / "tokenizer.safetensors").is_file()
        failures = (tmp_path / "out" / "failures.txt").read_text().splitlines()
        assert len(failures) == len(set(failures))
        assert {Path(line.partition(": ")[0]).name for line in failures} == {"bad.mp4", "v3.mp4"}, failures
        assert f"{len(failures)} could not be used: {tmp_path / 'out' / 'failures.txt'}" in err
        assert err.count("bad.mp4") == 1
    code, out, err = everyframe(monkeypatch, capsys, *command, "--json")
    assert code == 1 and json.loads(out)["failures"] == failures
    assert all(line in err for line in failures), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--videos EMPTY", "EMPTY.* no video"),
        ("--videos EMPTY/none.mp4", "none.mp4"),
        ("--videos GARBAGE", r"bad\.mp4"),
        ("--videos SHORT", "has 2 frames and a clip needs 4"),
        ("--videos LONE", "there is only one clip, and one must be held out: give more or longer videos"),
        ("--loss text", "loss 'text' needs a caption for every video and there are none; pass captions, or use"),
        ("--model DINO --loss text --captions CAPTIONS", "has no text tower, which loss 'text' needs; use loss='mse'"),
        ("--model DINO --loss prompts", "has no text tower, which loss 'prompts' needs; use loss='mse'"),
        ("--loss mse --prompts PROMPTS", "prompts have no meaning with loss 'mse'; use loss='prompts'"),
        ("--loss prompts --prompts EMPTY/p.txt", r"p\.txt: the file of prompts cannot be read"),
        ("--loss hinge", "loss must be one of text, text-one-way, prompts, mse, got 'hinge'"),
        ("--captions EMPTY/none.csv", r"none\.csv: no such file of captions"),
        ("--batch 0", "batch must be at least 1, got 0"),
        ("--micro-batch 0", "micro_batch must be at least 1, got 0"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--lr -1", r"rate must be a positive number, got -1\.0"),
        ("--lr nan", "rate must be a positive number, got nan"),
        ("--seed -1", "seed must be at least 0, got -1"),
        ("--drop 1", "drop"),
        ("--layers 0", "layers must be at least 1, got 0"),
        ("--hidden 4", "hidden is the width between 2 or more layers"),
        ("--interleave 0", "interleave must be at least 1, got 0"),
        ("--select best", "select must be one of"),
        ("--fps 0", r"fps must be a positive number, got 0\.0"),
        ("--push-to token", "a hub repository is written owner/name, got 'token'"),
        ("--push-to https://hub/me/token", "a hub repository is written owner/name, got 'https://hub/me/token'"),
        ("--private", "--private has no meaning without --push-to"),
        ("--report-every 0", "report_every must be at least 1, got 0"),
        ("--frames 1", "frames must be at least 2"),
        ("--out PROMPTS/out", "cannot write to .*; choose another --out"),
        ("--model EMPTY", "EMPTY"),
    ],
)
def test_cli_says_in_one_sentence_what_is_wrong(
    arguments: str,
    message: str,
    models: Callable[[str], Model],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("EMPTY", "GARBAGE", "SHORT", "LONE"):
        (tmp_path / name).mkdir()
    (tmp_path / "GARBAGE" / "bad.mp4").write_bytes(b"\0" * 1000)
    picture = np.zeros((32, 32, 3), np.uint8)
    write_video(tmp_path / "SHORT" / "short.mp4", iter([picture] * 2), fps=5)
    write_video(tmp_path / "LONE" / "lone.mp4", iter([picture] * 20), fps=5)
    words = {"PROMPTS": place / "prompts.txt", "CAPTIONS": place / "captions.csv", "DINO": models("dinov2").folder}
    words |= {name: tmp_path / name for name in ("EMPTY", "GARBAGE", "SHORT", "LONE")}
    given = re.sub("|".join(words), lambda found: str(words[found[0]]), arguments).split()
    defaults = {"--videos": place / "videos", "--out": tmp_path / "out", "--model": models("clip").folder}
    rest = [part for name, value in defaults.items() if name not in given for part in (name, str(value))]
    code, _, err = everyframe(monkeypatch, capsys, "distill", "--steps", 2, *given, *rest, "--device", "cpu")
    assert code == 1, (code, err)
    errors = [line for line in err.splitlines() if line.startswith("everyframe: ") and "left out:" not in line]
    assert len(errors) == 1 and re.search(message, errors[0]), err
    assert "Traceback" not in err and not (tmp_path / "out" / "tokenizer.safetensors").exists()


def test_captions_missing_for_some_warn_and_it_goes_on(
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (place / "captions.csv").read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join(rows[:-2]))
    command = ["distill", "--videos", place / "videos", "--captions", tmp_path / "some.csv", "--out", tmp_path / "out"]
    code, _, err = everyframe(
        monkeypatch, capsys, *command, "--model", model.folder, "--device", "cpu", "--steps", 1, "--batch", 4
    )
    assert code == 0, err
    assert re.search(r"warning: captions are missing for 1 of 9 videos \(first: v8\.mp4\)", err)
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["loss"] == "text"


# --- the hub ---------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs; refuses everything with `refusal`, if that is set."""

    uploaded: dict[str, bytes]
    refusal: int | None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = f"http://{self.headers['Host']}/me/token"
        answer: dict[str, Any] = {"url": address}
        if self.refusal:
            answer = {"error": "no entry"}
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.uploaded[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {"commitUrl": f"{address}/commit/1", "commitOid": "a" * 40, "success": True}
        content = json.dumps(answer).encode()
        self.send_response(self.refusal or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    kind = type("Handler", (Hub,), {"uploaded": {}, "refusal": None})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", kind
        server.shutdown()
        thread.join()


def test_publish_puts_the_files_on_the_hub_or_says_why_not(
    model: Model, place: Path, tmp_path: Path, hub: tuple[str, type[Hub]]
) -> None:
    address, handler = hub
    fit(model, place / "videos", tmp_path / "out", **options_for(place, "mse", steps=1))
    assert 'residual="path/to/this/folder")' in (tmp_path / "out" / "README.md").read_text()
    # One process for all three: importing the client takes longest.
    code = """
import sys, urllib.request
from everyframe.training import TrainingError, publish
folder, told = sys.argv[1], []
print(publish(folder, "me/token"))
for _ in range(2):
    sys.stdin.readline()
    try:
        publish(folder, "me/token")
    except TrainingError as error:
        print(str(error), flush=True)
"""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_TOKEN": "hf_no", "HF_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(tmp_path / "out")],
        env=environment | {"HF_HUB_OFFLINE": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == f"{address}/me/token\n"
    names = {"tokenizer.safetensors", "tokenizer.json", "README.md", "log.csv"}
    assert handler.uploaded == {name: (tmp_path / "out" / name).read_bytes() for name in names}
    assert 'residual="me/token")' in handler.uploaded["README.md"].decode()
    for handler.refusal in (401, 404):
        process.stdin.write("go on\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert re.match(r"the tokenizer in .*out is kept, but could not be put on the hub as me/token \(", line)
        assert str(handler.refusal) in line and line.endswith("check the name, and log in with `hf auth login`\n")
    assert process.wait(30) == 0


def test_an_unfinished_folder_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no tokenizer\.safetensors: run everyframe distill to its end"):
        publish(tmp_path, "me/token")
