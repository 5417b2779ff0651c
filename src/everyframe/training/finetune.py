"""Fine-tune a CLIP model for text-video retrieval, with TempMe reading the videos.

Source: TempMe (ICLR 2025), section 4 and its authors' code. Both towers learn through low-rank updates and TempMe
through its clip positions, from the contrastive loss over a batch; the rest stays frozen.
B pairs of a batch, F frames of a video, D width of the joint space.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone import Model
from everyframe.training.adapters import Tuning, recompute, tempme_of
from everyframe.training.augment import augment
from everyframe.training.contrastive import contrastive_gradients
from everyframe.training.errors import TrainingError
from everyframe.training.export import load_tempme
from everyframe.training.finetune_recipe import FineTuned, FinetuneRecipe, learning_rate
from everyframe.training.finetune_validation import Scores, Validation
from everyframe.training.finetune_writing import fitted, write_encoder
from everyframe.training.folder import RunFolder
from everyframe.training.pairs import FrameStore, Pair, Pairs, hold_out, shuffled, token_ids, usable_pairs
from everyframe.training.ranks import Ranks

_FORMAT = 1  # of what follows from a seed: the split, the order, the first weights
_MAX_REPLACEMENTS = 50
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def finetune(
    model: Model,
    pairs: Iterable[Pair | tuple[str | Path, str]],
    out: str | Path,
    *,
    validation: Iterable[Pair | tuple[str | Path, str]] | None = None,
    failures: Sequence[str] = (),
    fresh: bool = False,
    say: Callable[[str], None] = lambda text: None,
    step_done: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    **options: Any,
) -> FineTuned:
    """Fine-tune `model`, loaded in float32, on captioned videos; write the best encoder to the folder `out`.

    pairs: (video, caption) each, or `Pair`s of a part of a video. validation: others to choose the best weights by;
    default is a twentieth of the videos. failures: what the caller left out already, for failures.txt.
    fresh: keep no decoded frames on disk. options: fields of `FinetuneRecipe`; defaults are the paper's.
    say, step_done: told what happens, in words, and of every (step, steps, loss).

    `model` itself stays as it is. `out` gets a CLIP checkpoint with everything merged in, the positions and schedule
    (`load_tempme` reads them), log.csv, README.md and failures.txt. A run that was interrupted goes on from
    checkpoint.pt when called with the same arguments, and on a CPU ends with the same bits as one that was not. Under
    torchrun all processes share each batch.

    Raises TrainingError when data or model cannot be used, `out` holds a run with other settings, or the loss is no
    longer finite; ValueError for a bad option.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = Ranks(model.device)
    try:
        failed = list(failures)
        together = bool(options.get("together"))
        own = usable_pairs(pairs, failed.append, together=together)
        others = None if validation is None else usable_pairs(validation, failed.append)
        if others is None:
            seed = options.get("seed")
            own, others = hold_out(own, FinetuneRecipe.seed if seed is None else seed, together=together)
        recipe = FinetuneRecipe.for_data(model, len(own), ranks.count, **options)
        run = _Run(model, Pairs(own), Pairs(others), folder, recipe, failed, fresh, say, ranks)
        try:
            run.resume()
            run.train(step_done)
            return run.finish()
        finally:
            run.close()
    finally:
        ranks.close()


class _Run:
    """One run: the encoder that is fitted, its optimizer and the step it is at."""

    def __init__(
        self,
        model: Model,
        pairs: Pairs,
        validation: Pairs,
        folder: Path,
        recipe: FinetuneRecipe,
        failures: list[str],
        fresh: bool,
        say: Callable[[str], None],
        ranks: Ranks,
    ) -> None:
        self.pairs, self.recipe, self.ranks = pairs, recipe, ranks
        self.say = say if ranks.first else lambda text: None
        ranks.part(recipe.batch)
        self.tuning = Tuning(copy.deepcopy(model), recipe.tune, size=recipe.size, seed=recipe.seed)
        self.model = self.tuning.model
        self.encoder = tempme_of(self.model, recipe.schedule, recipe.frames)
        self.parameters: dict[str, Tensor] = dict(self.tuning.parameters)
        for layer, positions in self.encoder.positions.items():
            self.parameters[f"positions.{layer}"] = positions.requires_grad_(True)
        if recipe.checkpointing and self.model.text is not None:
            recompute(self.model.text)
        groups, self.peaks = [{"params": list(self.parameters.values())}], [recipe.rate]
        if recipe.positions_rate is not None:
            groups = [{"params": list(own.values())} for own in (self.tuning.parameters, self.encoder.positions)]
            self.peaks.append(recipe.positions_rate)
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.rate, betas=(0.9, 0.999), eps=1e-6, weight_decay=recipe.weight_decay
        )
        # Gradients in float16 underflow without a scale; this finds one and skips the steps that overflow.
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=recipe.precision == "float16")
        self.ids, cut = token_ids(self.model, pairs.captions, recipe.words)
        identity = recipe.identity() | {
            "format": _FORMAT,
            "together": recipe.together or None,  # missing from checkpoints that are older than it
            "model": model.weights_sha256,
            "pairs": pairs.fingerprint,
            "validation": validation.fingerprint,
        }
        self.folder = RunFolder(folder, identity, first=ranks.first, say=self.say)
        for message in failures if ranks.first else []:
            self.folder.failed(message, aloud=False)
        self.step = 0
        self.best: dict[str, Any] = {}
        self.short: set[str] = set()
        self.kept = None if fresh else folder / f"frames-{ranks.node}"
        self.store = self._store("training", pairs)
        self.validation_pairs = validation
        self.validation = Validation(
            validation,
            token_ids(self.model, validation.captions, recipe.words)[0],
            self._store("validation", validation),
            ranks,
            recipe.micro_batch,
        )
        self._tell(cut, validation)

    def _store(self, name: str, pairs: Pairs) -> FrameStore:
        """The frames of some videos; the first process of a node makes the files that its others share."""
        if not self.ranks.first_of_node:
            self.ranks.wait()
        store = FrameStore(
            self.model,
            pairs.segments,
            self.recipe.frames,
            folder=None if self.kept is None else self.kept / name,
            fingerprint=pairs.fingerprint,
            on_failure=self.folder.failed,
            on_short=self.short.add,
        )
        if self.ranks.first_of_node:
            self.ranks.wait()
        return store

    def _tell(self, cut: int, validation: Pairs) -> None:
        recipe, positions = self.recipe, sum(tensor.numel() for tensor in self.encoder.positions.values())
        self.say(
            f"fitted: {self.tuning.count():,} parameters of {recipe.tune}"
            + (f" and {positions:,} of clip positions" if positions else "")
        )
        self.say(
            f"{len(self.pairs)} captions of {len(self.pairs.segments)} videos to train on, {len(validation)} of "
            f"{len(validation.segments)} to validate with; batch {recipe.batch}, {recipe.steps} steps"
        )
        if cut:
            self.say(f"{cut} of {len(self.pairs)} captions are longer than {recipe.words} tokens and are cut")

    def close(self) -> None:
        """Stop the threads that decode."""
        self.store.close()
        self.validation.store.close()

    # --- one step ------------------------------------------------------------------------------------------

    def rows(self, step: int) -> list[tuple[int, int]]:
        """This process's pairs of a step, each with its epoch: a permutation, less what does not fill a batch."""
        epoch, place = divmod(step, self.recipe.steps_per_epoch)
        rng = np.random.default_rng([self.recipe.seed, 41, epoch])
        order = shuffled(len(self.pairs), rng, together=self.recipe.together)
        own = self.ranks.part(self.recipe.batch)
        first = place * self.recipe.batch
        return [(int(pair), epoch) for pair in order[first + own.start : first + own.stop]]

    def batch(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        """uint8 [b, F, 3, S, S], token ids [b, L] and names of this process's pairs.

        A pair whose video cannot be read is replaced by another, chosen from the seed, without that one's partner.
        Raises TrainingError where nothing can be read.
        """
        wanted = self.rows(step)
        found: dict[int, np.ndarray] = {}
        for attempt in range(_MAX_REPLACEMENTS):
            found |= self.store.read({int(self.pairs.of[pair]) for pair, _ in wanted} - set(found))
            missing = [row for row, (pair, _) in enumerate(wanted) if int(self.pairs.of[pair]) not in found]
            if not missing:
                break
            for row in missing:
                pair, epoch = wanted[row]
                rng = np.random.default_rng([self.recipe.seed, 43, epoch, pair, attempt])
                wanted[row] = int(rng.integers(len(self.pairs))), epoch
        else:
            raise TrainingError(
                f"{len(missing)} videos of a batch cannot be read, nor any of {_MAX_REPLACEMENTS} tried in place of "
                "each; failures.txt lists why: check the videos with everyframe info"
            )
        chosen = [pair for pair, _ in wanted]
        numbers = [int(self.pairs.of[pair]) for pair in chosen]
        frames = torch.from_numpy(np.stack([found[number] for number in numbers])).to(self.model.device)
        if self.recipe.augment:
            seeds = [[self.recipe.seed, 47, epoch, pair] for pair, epoch in wanted]
            frames = torch.stack([augment(f, np.random.default_rng(s)) for f, s in zip(frames, seeds, strict=True)])
        return frames, self.ids[chosen], [self.pairs.segments[number].video for number in numbers]

    def features(self, frames: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder makes of some pairs: float32 [b, D] of the videos and of the texts, unit rows."""
        return self.videos(frames), self.texts(ids)

    def videos(self, frames: Tensor) -> Tensor:
        """Frames uint8 [b, F, 3, S, S] -> float32 [b, D], unit rows."""
        device, dtype = self.model.device, _PRECISIONS[self.recipe.precision]
        pixels = self.model.unpack(frames.flatten(0, 1).to(device)).unflatten(0, frames.shape[:2])
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return self.encoder.features(pixels, checkpoint=self.recipe.checkpointing).float()

    def texts(self, ids: Tensor) -> Tensor:
        """Token ids [b, L] -> float32 [b, D], unit rows."""
        device, dtype = self.model.device, _PRECISIONS[self.recipe.precision]
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return F.normalize(self.model.text(ids.long().to(device)).float(), dim=1)  # type: ignore[misc]

    def gradient(self, frames: Tensor, ids: Tensor) -> float:
        """Put the gradient of the whole batch's loss on the parameters, on every process the same; returns the loss.

        All features come first, those of all processes, then the loss over them, then each part backwards with its
        rows of the loss's gradient. The parts' gradients are summed, not averaged: the result is that of one process
        with the whole batch. (The authors' is 1 / processes of it, so their clipping at 1 with 4 GPUs is one at 4.)
        """
        recipe, ranks = self.recipe, self.ranks
        parts = [slice(at, at + recipe.micro_batch) for at in range(0, len(frames), recipe.micro_batch)]
        with torch.set_grad_enabled(len(parts) == 1):
            forward = [self.features(frames[part], ids[part]) for part in parts]
        videos, texts = (torch.cat(side) for side in zip(*forward, strict=True))
        loss, *sides = contrastive_gradients(
            ranks.gather(videos.detach()), ranks.gather(texts.detach()), self.model.logit_scale
        )
        own = [self.scaler.scale(side[ranks.part(recipe.batch)]) for side in sides]
        self.optimizer.zero_grad(set_to_none=True)
        for place, part in enumerate(parts):
            features = forward[0] if len(parts) == 1 else self.features(frames[part], ids[part])
            torch.autograd.backward(features, [side[part] for side in own])
            if len(parts) > 1:
                forward[place] = features[0].detach(), features[1].detach()  # drops the graph
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad = ranks.sum(parameter.grad)
        return loss.item()

    def update(self, step: int) -> float:
        """Take one optimizer step; returns the loss."""
        frames, ids, names = self.batch(step)
        if step + 1 < self.recipe.steps:
            self.store.prefetch(int(self.pairs.of[pair]) for pair, _ in self.rows(step + 1))
        loss = self.gradient(frames, ids)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = learning_rate(step, self.recipe, peak)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        if not math.isfinite(loss) or not (self.scaler.is_enabled() or bool(norm.isfinite())):
            what = "gradient is not finite" if math.isfinite(loss) else f"loss is {loss}"
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise TrainingError(
                f"the {what} at step {step + 1}, in the batch of {listed}; {self.folder.path} keeps the checkpoint "
                "before it, if there was one: use another --precision or a lower --lr, with another --out"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    # --- the run -------------------------------------------------------------------------------------------

    def train(self, step_done: Callable[[int, int, float], None]) -> None:
        recipe = self.recipe
        if self.step == 0:
            self.report(math.nan, math.nan)
        started, losses = time.monotonic(), []
        for step in range(self.step, recipe.steps):
            losses.append(self.update(step))
            self.step = step + 1
            step_done(self.step, recipe.steps, losses[-1])
            if self.step % recipe.report_every == 0 or self.step % recipe.steps_per_epoch == 0:
                seconds = time.monotonic() - started
                self.report(float(np.mean(losses)), len(losses) * recipe.batch / seconds)
                self.save()
                started, losses = time.monotonic(), []

    def report(self, loss: float, speed: float) -> None:
        """Validate, keep what is best so far, and write a line of log.csv."""
        scores = self.validation.scores(self.videos, self.texts)
        if not self.best or scores.better_than(Scores(**self.best["scores"])):
            state = {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}
            self.best = {"step": self.step, "scores": asdict(scores), "parameters": state}
        row = {"step": self.step, "loss": loss, "videos_per_second": speed, "r_sum": scores.r_sum, **asdict(scores)}
        self.folder.log(row)
        self.say(
            f"step {self.step}: "
            + (f"loss {loss:.4f}, {speed:.1f} videos/s; " if math.isfinite(loss) else "")
            + f"validation R-Sum {scores.r_sum:.1f} (text to video R@1 {scores.r1:.1f}, R@5 {scores.r5:.1f}, "
            f"R@10 {scores.r10:.1f}, mean rank {scores.mean_rank:.1f})"
        )

    def save(self) -> None:
        """Write the checkpoint."""
        self.folder.save(
            {
                "step": self.step,
                "parameters": {name: tensor.detach() for name, tensor in self.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
            }
        )

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""
        state = self.folder.shared(self.ranks, self.model.device)
        if state is None:
            return
        self.put(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.step = state["best"], state["step"]
        self.folder.held = None
        self.folder.cut_log(self.step)
        self.say(f"goes on at step {self.step} of {self.recipe.steps}")

    def put(self, state: dict[str, Tensor]) -> None:
        """Set the parameters to copies of these."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def finish(self) -> FineTuned:
        """Write the best encoder and what is to be known of it."""
        self.put(self.best["parameters"])
        scores = Scores(**self.best["scores"])
        self.say(f"best on validation: step {self.best['step']}, R-Sum {scores.r_sum:.1f}")
        if self.best["step"] == 0:
            self.say(
                "nothing was better on validation than the model as it came: take more epochs, more videos or another "
                "learning rate"
            )
        if self.short:
            self.say(
                f"{len(self.short)} videos show fewer than {self.recipe.frames} frames, some of which were read twice: "
                + ", ".join(sorted(self.short)[:3])
            )
        data = {
            "captions": len(self.pairs),
            "videos": len(self.pairs.segments),
            "fingerprint": self.pairs.fingerprint,
            "validation_captions": len(self.validation_pairs),
            "validation_videos": len(self.validation_pairs.segments),
        }
        positions = {layer: tensor.detach() for layer, tensor in self.encoder.positions.items()}
        counts, folder = fitted(self.tuning, positions), self.folder.path
        if self.ranks.first:
            step = self.best["step"]
            write_encoder(folder, self.tuning, positions, self.recipe, scores, best_step=step, data=data)
        self.ranks.wait()
        if self.kept is not None and self.ranks.first_of_node:
            shutil.rmtree(self.kept, ignore_errors=True)
        return FineTuned(
            encoder=load_tempme(folder, device=str(self.model.device)),
            folder=folder,
            metrics={"r_sum": scores.r_sum, **asdict(scores)},
            fitted=counts,
            failures=self.folder.failures(),
        )
