"""Fit the residual tokenizer A of a model; everything else stays frozen.

Source: ResidualViT, section 3.2 and its appendix on training; where the authors' code differs, losses.py says so.
A clip is F = 4 frames, 1 second apart. Frame 0 is the I-frame: its feature makes the residual token of the K = 3
frames after it, which run on a random 15 % of their patches. Gradients reach A through those short sequences alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model
from everyframe.backbone.quantize import is_quantized
from everyframe.encoders import ResidualTokenizer, ResidualViT
from everyframe.encoders.tokenizer import PUBLISHED_FILE
from everyframe.tokens.drop import num_kept, random_indices
from everyframe.training.card import CARD, FACTS, model_card
from everyframe.training.data import Clips
from everyframe.training.errors import TrainingError
from everyframe.training.folder import RunFolder
from everyframe.training.held_out import HeldOut, split, video_numbers
from everyframe.training.losses import LOSSES, loss_and_gradient
from everyframe.training.prompts import prompt_bank
from everyframe.training.ranks import Ranks, number_of_processes
from everyframe.training.store import Batch, ClipStore, Place, bytes_per_clip, encode_texts
from everyframe.version import package_version
from everyframe.video import VideoError

_FORMAT = 2  # of what follows from a seed: the split, the clips' starts


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the result, beside model and data; `Recipe.for_data` fills in what was not given.

    loss: one of LOSSES. drop: share of patches dropped. layers, hidden: of the tokenizer. batch: clips per step, over
    which the softmax runs. steps: optimizer steps. rate: learning rate, constant. micro_batch: clips per backward
    pass; changes memory and time, not the result. interleave, select, fps: how the held-out fidelity is measured.
    fresh: new random starts in every epoch, as the paper trains, instead of decoding each clip once.
    """

    loss: str
    batch: int
    steps: int
    micro_batch: int
    drop: float = 0.85
    layers: int = 1
    hidden: int | None = None
    rate: float = 5e-4
    seed: int = 0
    interleave: int = 2
    select: str = "motion"
    fps: float = 3.0
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("batch", "steps", "micro_batch", "layers", "interleave"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        for name in ("rate", "fps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")

    @classmethod
    def for_data(cls, model: Model, clips: Clips, **given: Any) -> Recipe:
        """The paper's recipe, scaled to the data and the machine.

        loss: "text" (both directions) for captioned clips, else "prompts", without a text tower "mse".
        batch: the paper's 2048 (1536 from width 1024 on), on a CPU at most 256. Of fewer than 8 times as many clips,
            the largest power of two that is no more than an eighth of them, but at least 8. In any case a multiple
            of the number of processes.
        steps: the paper's 5 epochs, at least 500.
        """
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown:
            raise TypeError(f"distill has no option {', '.join(sorted(unknown))}")
        options = {name: value for name, value in given.items() if value is not None}
        small = model.device.type == "cpu"
        if "batch" not in options:
            batch = 256 if small else 1536 if model.vision.config.width >= 1024 else 2048
            if len(clips) // 8 < batch:
                batch = 2 ** int(math.log2(max(len(clips) // 8, 8)))
            processes = number_of_processes()
            options["batch"] = max(batch // processes, 1) * processes
        batch = options["batch"]
        options.setdefault("steps", max(500, math.ceil(5 * len(clips) / max(batch, 1))))
        options.setdefault("micro_batch", min(batch, 64 if small else 256))
        if "loss" not in options:
            options["loss"] = "mse" if model.text is None else "text" if clips.captioned else "prompts"
        if clips.frames < 2:
            raise ValueError(f"frames must be at least 2, an I-frame and a P-frame, got {clips.frames}")
        recipe = cls(**options)
        if recipe.loss != "mse" and model.text is None:
            raise TrainingError(f"{model.name} has no text tower, which loss {recipe.loss!r} needs; use loss='mse'")
        if recipe.loss.startswith("text") and not clips.captioned:
            raise TrainingError(
                f"loss {recipe.loss!r} needs a caption for every video and there are none; pass captions, or use "
                "loss='prompts', which needs no captions, or loss='mse', which needs no text"
            )
        return recipe


@dataclass(frozen=True)
class Distilled:
    """What `distill` made: the tokenizer, the folder it lies in, the held-out fidelity at the end, and the lines of
    failures.txt: the videos that could not be read.
    """

    tokenizer: ResidualTokenizer
    folder: Path
    metrics: dict[str, float]
    failures: list[str]


def distill(
    model: Model,
    clips: Clips,
    out: str | Path,
    *,
    prompts: str | Path | None = None,
    report_every: int = 100,
    failures: Sequence[VideoError] = (),
    say: Callable[[str], None] = lambda text: None,
    step_done: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    **options: Any,
) -> Distilled:
    """Fit the residual tokenizer of `model` to `clips` (`training.open_clips`) and write it to the folder `out`.

    options: fields of `Recipe`; what is left out follows the paper, scaled to the data and the machine.
    prompts: a file of texts, one per line, for loss="prompts"; default is the bank that ships (`prompt_bank`).
    failures: what `open_clips` left out, for failures.txt.
    say, step_done: told what happens, in words, and of every (step, steps, loss).
    report_every: steps between lines of log.csv with held-out fidelity, and between checkpoints.

    Writes tokenizer.safetensors (for `ResidualViT(residual=out)`), tokenizer.json, README.md (a model card), log.csv
    and failures.txt. A run that was interrupted goes on from checkpoint.pt when called with the same arguments, and
    on a CPU ends with the same weights as one that was not. Under torchrun all processes share each batch.

    Raises TrainingError when the data is too small or unreadable, `out` holds a run with other settings, or the loss
    is no longer finite; ValueError for a bad option.
    """
    if report_every < 1:
        raise ValueError(f"report_every must be at least 1, got {report_every}")
    recipe = Recipe.for_data(model, clips, **options)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = Ranks(model.device)
    try:
        run = _Run(model, clips, folder, recipe, prompts, [str(error) for error in failures], say, ranks)
        try:
            run.resume()
            run.train(report_every, step_done)
            return run.finish()
        finally:
            run.store.close()
    finally:
        ranks.close()


class _Run:
    """One run: the tokenizer, its optimizer and the step it is at."""

    def __init__(
        self,
        model: Model,
        clips: Clips,
        folder: Path,
        recipe: Recipe,
        prompts: str | Path | None,
        failures: list[str],
        say: Callable[[str], None],
        ranks: Ranks,
    ) -> None:
        self.model, self.clips, self.recipe = model, clips, recipe
        self.ranks = ranks
        self.say = say if ranks.first else lambda text: None
        ranks.part(recipe.batch)
        if is_quantized(model.vision):
            raise ValueError("gradients cannot pass an int8 model; load it with dtype='float32' or 'bfloat16'")
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as they would
            torch.manual_seed(recipe.seed)
            self.tokenizer = ResidualTokenizer(
                model.dim, model.vision.config.width, layers=recipe.layers, hidden=recipe.hidden
            ).to(model.device)
        self.encoder = ResidualViT(model, recipe.interleave, recipe.drop, recipe.select, self.tokenizer)
        # The paper's eps is meant for gradients of its loss; those of a mean over D elements are D times smaller.
        eps = 1e-6 / model.dim if recipe.loss == "mse" else 1e-6
        self.optimizer = torch.optim.AdamW(
            self.tokenizer.parameters(), lr=recipe.rate, betas=(0.9, 0.98), eps=eps, weight_decay=0.0
        )
        # Gradients in float16 underflow without a scale; this finds one and skips the steps that overflow.
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)
        bank = _bank(recipe, prompts)
        self.texts = encode_texts(model, bank) if bank else None
        self.training, held_out = split(clips, seed=recipe.seed)
        self.order = lru_cache(maxsize=2)(self._order)  # every step asks for its epoch's twice
        self.identity = _identity(model, clips, recipe, bank)
        self.folder = RunFolder(folder, self.identity, first=ranks.first, say=self.say)
        self.step = 0
        for message in failures if ranks.first else []:
            self.folder.failed(message, aloud=False)
        self.held_out = HeldOut(
            model,
            clips,
            held_out,
            interleave=recipe.interleave,
            drop=recipe.drop,
            select=recipe.select,
            fps=recipe.fps,
            most=32 if model.device.type == "cpu" else 128,
            seed=recipe.seed,
            on_failure=self.folder.failed if ranks.first else lambda message: None,
        )
        self.kept_clips = None if recipe.fresh else folder / f"clips-{ranks.node}"
        if not ranks.first_of_node:
            ranks.wait()  # the first process of a node makes the files that its others share
        self.store = ClipStore(
            model,
            clips,
            pool=self.training,
            seed=recipe.seed,
            folder=self.kept_clips,
            with_texts=recipe.loss.startswith("text"),
            on_failure=self.folder.failed,
        )
        if ranks.first_of_node:
            ranks.wait()

    # --- one step ----------------------------------------------------------------------------------------

    def places(self, step: int) -> list[Place]:
        """This process's clips of a step, each with its epoch: every epoch is a permutation of all clips."""
        count, rows = len(self.training), self.ranks.part(self.recipe.batch)
        first = step * self.recipe.batch
        found = (divmod(place, count) for place in range(first + rows.start, first + rows.stop))
        return [(int(self.training[self.order(epoch)[place]]), epoch) for epoch, place in found]

    def _order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch."""
        return np.random.default_rng([self.recipe.seed, 41, epoch]).permutation(len(self.training))

    def update(self, step: int) -> float:
        """Take one optimizer step; returns the loss."""
        batch = self.store.batch(self.places(step))
        if step + 1 < self.recipe.steps:
            self.store.prefetch(self.places(step + 1))
        loss = self.gradient(batch, step)
        # With a scale, infinite gradients are expected now and then, and their steps are skipped.
        gradients = [parameter.grad.isfinite().all() for parameter in self.tokenizer.parameters()]  # type: ignore[union-attr]
        if not math.isfinite(loss) or not (self.scaler.is_enabled() or all(gradients)):
            what = "gradient is not finite" if math.isfinite(loss) else f"loss is {loss}"
            # Loss and gradient are those of the whole batch, so all processes are here and may ask each other.
            bad = (~batch.teacher.isfinite()).flatten(1).any(1).tolist()
            names = self.ranks.gather_names([name for name, is_bad in zip(batch.names, bad, strict=True) if is_bad])
            names = names or self.ranks.gather_names(batch.names)
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise TrainingError(
                f"the {what} at step {step + 1}, in the batch of {listed}; {self.folder.path} keeps the checkpoint "
                "before it, if there was one: leave these clips out, or use --dtype float32 or bfloat16, or a lower "
                "--lr, with another --out"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def gradient(self, batch: Batch, step: int) -> float:
        """Put the gradient of the whole batch's loss on the tokenizer; returns the loss.

        The features of all parts on all processes come first, then the loss over all of them, then each part
        backwards with its rows of the loss's gradient. One part keeps its graph; several are run once more.
        """
        recipe, ranks = self.recipe, self.ranks
        indices = self.kept_indices(step)
        parts = [slice(at, at + recipe.micro_batch) for at in range(0, len(batch.names), recipe.micro_batch)]
        with torch.set_grad_enabled(len(parts) == 1):
            forward = [self.student(batch, indices, part) for part in parts]
        texts = self.texts if batch.texts is None else ranks.gather(batch.texts)
        loss, gradient = loss_and_gradient(
            recipe.loss,
            ranks.gather(torch.cat(forward).detach()),
            ranks.gather(batch.teacher[:, 1:]),
            texts,
            self.model.logit_scale,
        )
        own = gradient[ranks.part(recipe.batch)]
        self.optimizer.zero_grad(set_to_none=True)
        for place, part in enumerate(parts):
            features = forward[0] if len(parts) == 1 else self.student(batch, indices, parts[place])
            features.backward(self.scaler.scale(own[part]))
        for parameter in self.tokenizer.parameters():
            parameter.grad = ranks.sum(parameter.grad)  # type: ignore[arg-type]
        return loss.item()

    def kept_indices(self, step: int) -> Tensor:
        """Random patches of this process's P-frames: int64 [b, K, n]; floor(P (1 - p)) of them, as the authors train.

        They follow from the seed, the step and the place in the batch, not from the number of processes.
        """
        patches = self.model.vision.num_patches
        kept = max(1, min(int(patches * (1 - self.recipe.drop) + 1e-9), num_kept(patches, self.recipe.drop)))
        count, rows = self.clips.frames - 1, self.ranks.part(self.recipe.batch)
        first = step * self.recipe.batch
        frames = range((first + rows.start) * count, (first + rows.stop) * count)
        chosen = random_indices(patches, kept, frames=frames, seed=self.recipe.seed + 1)
        return chosen.view(-1, count, kept)

    def student(self, batch: Batch, indices: Tensor, part: slice) -> Tensor:
        """P-features of some clips: float32 [b, K, D], unit rows."""
        frames = batch.frames[part].to(self.model.device)
        sources = batch.teacher[part, :1].expand(-1, frames.shape[1], -1)
        pixels = self.model.unpack(frames.flatten(0, 1))
        features = self.encoder.p_features(pixels, sources.flatten(0, 1), indices[part].flatten(0, 1))
        return features.view(len(frames), frames.shape[1], -1)

    # --- the run -----------------------------------------------------------------------------------------

    def train(self, report_every: int, step_done: Callable[[int, int, float], None]) -> None:
        recipe = self.recipe
        size = 0 if recipe.fresh else bytes_per_clip(self.model, self.clips.frames) * len(self.clips) / 2**30
        self.say(
            f"{len(self.training)} clips to train on, {len(self.held_out)} windows held out; loss {recipe.loss}, "
            f"batch {recipe.batch}, {recipe.steps} steps"
            + (f"; clips are kept on disk while it runs, up to {size:.2g} GiB" if size >= 0.1 else "")
        )
        if self.step == 0:
            self._log(math.nan, math.nan)
        started, losses = time.monotonic(), []
        for step in range(self.step, recipe.steps):
            losses.append(self.update(step))
            self.step = step + 1
            step_done(self.step, recipe.steps, losses[-1])
            if self.step % report_every == 0 or self.step == recipe.steps:
                frames = len(losses) * recipe.batch * (self.clips.frames - 1)
                self._log(float(np.mean(losses)), frames / (time.monotonic() - started))
                self.save()
                started, losses = time.monotonic(), []

    def finish(self) -> Distilled:
        """Write the tokenizer and what is to be known of it."""
        metrics = {name: round(value, 5) for name, value in self.held_out.scores(self.tokenizer).items()}
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "micro_batch"}
        name = self.model.name if not os.path.exists(self.model.name) else Path(self.model.name).resolve().name
        self.tokenizer.facts = {
            "model": name,
            "weights_sha256": self.model.weights_sha256,
            **recipe,
            "select_in_training": "random",
            "dtype": self.identity["dtype"],
            "prompts": self.identity["prompts"],
            "everyframe": package_version(),
            "data": {
                "clips": len(self.clips),
                "videos": len(np.unique(video_numbers(self.clips))),
                "frames_per_clip": self.clips.frames,
                "held_out_windows": len(self.held_out),
                "fingerprint": self.clips.fingerprint,
            },
            "fidelity_of_p_frames": metrics,
        }
        if metrics["with"] <= metrics["without"]:
            self.say(
                f"on held-out videos P-frames are no better with this token ({metrics['with']:.4f}) than without one "
                f"({metrics['without']:.4f}): take more steps, more clips, another learning rate or another loss"
            )
        if self.ranks.first:
            folder = self.folder.path
            temporary = folder / f"{PUBLISHED_FILE}.tmp"
            self.tokenizer.save(temporary)
            os.replace(temporary, folder / PUBLISHED_FILE)
            (folder / FACTS).write_text(json.dumps(self.tokenizer.facts, indent=2) + "\n", encoding="utf-8")
            (folder / CARD).write_text(model_card(self.tokenizer.facts), encoding="utf-8")
        self.ranks.wait()
        if self.kept_clips is not None and self.ranks.first_of_node:
            shutil.rmtree(self.kept_clips, ignore_errors=True)
        return Distilled(self.tokenizer, self.folder.path, metrics, self.folder.failures())

    def save(self) -> None:
        """Write the checkpoint."""
        self.folder.save(
            {
                "step": self.step,
                "tokenizer": self.tokenizer.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
        )

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""
        state = self.folder.shared(self.ranks, self.model.device)
        if state is None:
            return
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.folder.held = None
        self.step = state["step"]
        if self.step > self.recipe.steps:
            raise TrainingError(
                f"{self.folder.path} holds a run of {self.step} steps, more than the {self.recipe.steps} asked for; "
                "choose another folder, or as many steps"
            )
        self.folder.cut_log(self.step)
        self.say(f"goes on at step {self.step} of {self.recipe.steps}")

    def _log(self, loss: float, speed: float) -> None:
        """One line of log.csv, and the same in words."""
        if not self.ranks.first:
            return
        scores = self.held_out.scores(self.tokenizer)
        self.folder.log({"step": self.step, "loss": loss, "frames_per_second": speed, **scores})
        self.say(
            f"step {self.step}: "
            + (f"loss {loss:.4f}, {speed:.0f} P-frames/s; " if math.isfinite(loss) else "")
            + f"held-out fidelity of P-frames {scores['with']:.4f} with the token, {scores['without']:.4f} without, "
            f"copy {scores['copy']:.4f}, interpolate {scores['interpolate']:.4f}"
        )


def _bank(recipe: Recipe, prompts: str | Path | None) -> list[str]:
    """The texts of loss "prompts"; none for the others."""
    if recipe.loss == "prompts":
        return prompt_bank(prompts)
    if prompts is not None:
        raise ValueError(f"prompts have no meaning with loss {recipe.loss!r}; use loss='prompts'")
    return []


def _identity(model: Model, clips: Clips, recipe: Recipe, bank: list[str]) -> dict[str, Any]:
    """Everything that decides the result: a run goes on only where all of it is the same."""
    return {
        **{name: value for name, value in asdict(recipe).items() if name not in ("steps", "micro_batch")},
        "format": _FORMAT,
        "model": model.weights_sha256,
        "dtype": model.precision,
        "clips": clips.fingerprint,
        "prompts": hashlib.sha256("\n".join(bank).encode()).hexdigest()[:16] if bank else None,
    }
