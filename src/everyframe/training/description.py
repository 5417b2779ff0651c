"""Train a `Describer`: the mapping network, and if wished GPT-2, by cross-entropy over the words of narrated clips.

Source: ResidualViT, section 4 (audio descriptions): no pretraining, no earlier descriptions. What it does not say
(learning rate, batch, epochs) are our choices. B examples of a batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from everyframe.backbone.model import parse_device
from everyframe.features import VideoFeatures, check_same_space, space_of
from everyframe.tasks.describer import Describer, DescriberConfig, load_language
from everyframe.tasks.description import Description, Narrated
from everyframe.training.errors import TrainingError
from everyframe.training.finetune_recipe import learning_rate
from everyframe.training.folder import RunFolder

SMALL = "small"
_FORMAT = 1  # of what follows from a seed: first weights, order, dropout


@dataclass(frozen=True, kw_only=True)
class DescribeRecipe:
    """What decides the result, beside language model and data.

    clips, frames, prefix, width, layers, heads, words, blind: of the network, as in `DescriberConfig`. tune_language:
    GPT-2 is trained too; AutoAD keeps a pretrained one frozen, a new one must be trained. batch: examples per step.
    rate: peak learning rate of AdamW; it rises for the first `warm_up` of the steps and falls as half a cosine to 0.
    clip: largest norm of the gradient.
    """

    clips: int = 8
    frames: int = 8
    prefix: int = 10
    width: int = 512
    layers: int = 2
    heads: int = 8
    words: int = 48
    tune_language: bool = False
    blind: bool = False
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-4
    warm_up: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not (0 <= self.warm_up <= 1 and 0 <= self.weight_decay < math.inf and self.seed >= 0):
            raise ValueError(
                "warm_up must be in [0, 1], weight_decay and seed at least 0, got "
                f"{self.warm_up}, {self.weight_decay} and {self.seed}"
            )
        self.config(1)

    def config(self, dim: int) -> DescriberConfig:
        """Of the network for features of width `dim`. Raises ValueError."""
        names = ("clips", "frames", "prefix", "width", "layers", "heads", "words", "blind")
        return DescriberConfig(dim=dim, **{name: getattr(self, name) for name in names})

    @classmethod
    def small(cls, **changes: Any) -> DescribeRecipe:
        """For a small GPT-2 made here and about a thousand clips: minutes on one core."""
        return cls(**{**_SMALL, **changes})


_SMALL: dict[str, Any] = {
    "width": 128,
    "heads": 4,
    "tune_language": True,
    "epochs": 30,
    "batch": 32,
    "rate": 1e-3,
}


@dataclass(frozen=True)
class _Schedule:
    """What `learning_rate` asks for."""

    rate: float
    warm_up: float
    steps: int


def small_language(texts: Sequence[str], *, seed: int = 42, room: int = 128) -> tuple[Any, Any]:
    """A GPT-2 of 2 blocks and width 128 with seeded weights, and a byte-level BPE tokenizer made from `texts`.

    room: tokens that fit, prefix included. It knows no language before it is trained.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # every byte: no text is unknown
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=[end], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=tokenizer.get_vocab_size(),
                n_positions=room,
                n_embd=128,
                n_layer=2,
                n_head=4,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    return language, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end)


def train_describer(
    items: Sequence[Narrated],
    recipe: DescribeRecipe,
    *,
    language: str = SMALL,
    out: str | Path | None = None,
    device: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    step_done: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Describer:
    """Train on narrated videos, whose features all come from one model (`usable` says which descriptions can be used).

    language: "small" (`small_language` of the texts), a hub id, or a folder. out: folder that gets the describer and
    log.csv; a run that was killed goes on there after its last whole epoch, and on a CPU ends with the same bits as one
    that was not. Without it nothing is written. say, step_done: told what happens, and of every (step, steps, loss).

    The features of all videos stay in memory. Raises TrainingError where there is nothing to train on, the texts do not
    fit, `out` holds another run, or the loss is no longer finite; FeaturesError for features of different models.
    """
    if not any(item.descriptions for item in items):
        raise TrainingError("there is no description to train on")
    space = space_of(items[0].features)
    for item in items:
        check_same_space(space, item.features)
    run = _Run(items, recipe, language, parse_device(device), None if out is None else Path(out), say)
    run.train(step_done)
    run.describer.eval()
    if out is not None:
        run.describer.save(out, {"recipe": asdict(recipe), "language": language, **run.facts})
    return run.describer


class _Run:
    """One run: the describer, its optimizer, the step it is at."""

    def __init__(
        self,
        items: Sequence[Narrated],
        recipe: DescribeRecipe,
        language: str,
        device: torch.device,
        out: Path | None,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.say = recipe, say
        self.examples: list[tuple[VideoFeatures, Description]] = [
            (item.features, each) for item in items for each in item.descriptions
        ]
        texts = [each.text for _, each in self.examples]
        if language == SMALL:
            if not recipe.tune_language:
                raise TrainingError("the small language model knows no words yet: it must be trained too")
            model, tokenizer = small_language(texts, seed=recipe.seed, room=recipe.prefix + recipe.words)
        else:
            model, tokenizer = load_language(language)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            config = recipe.config(items[0].features.dim)
            features = items[0].features
            space = {**space_of(features), "fps": features.settings.get("fps")}
            self.describer = Describer(config, model, tokenizer, space=space).to(device)
        if not recipe.tune_language:
            self.describer.language.requires_grad_(False)
        ids = [self.describer.tokens(text) for text in texts]
        cut = sum(len(each) > recipe.words for each in ids)
        self.ids = [[*each[: recipe.words - 1], each[-1]] for each in ids]
        self.parameters = {
            name: parameter for name, parameter in self.describer.named_parameters() if parameter.requires_grad
        }
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=recipe.rate, weight_decay=recipe.weight_decay)
        self.per_epoch = -(-len(self.examples) // recipe.batch)
        self.steps = recipe.epochs * self.per_epoch
        self.step = 0
        fingerprint = _fingerprint(items)
        self.facts = {"videos": len(items), "descriptions": len(texts), "fingerprint": fingerprint}
        self.folder: RunFolder | None = None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            identity = {
                "format": _FORMAT,
                "recipe": asdict(recipe),
                "language": _weights_digest(self.describer.language),
                "data": fingerprint,
            }
            self.folder = RunFolder(out, identity, first=True, say=say)
        self._tell(cut)
        self._resume()

    def _tell(self, cut: int) -> None:
        counts = {"mapping network": self.describer.mapper, "language model": self.describer.language}
        fitted = " and ".join(
            f"{sum(p.numel() for p in part.parameters() if p.requires_grad):,} of the {name}"
            for name, part in counts.items()
        )
        self.say(f"{len(self.ids)} descriptions to train on, {self.steps} steps; fitted: {fitted}")
        if cut:
            self.say(f"{cut} of {len(self.ids)} descriptions are longer than {self.recipe.words} tokens and are cut")

    # --- one step ------------------------------------------------------------------------------------------

    def rows(self, step: int) -> list[int]:
        """The examples of a step: every epoch is a permutation of all, in batches of which the last may be smaller."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.recipe.seed, 53, epoch]).permutation(len(self.examples))
        return [int(row) for row in order[place * self.recipe.batch : (place + 1) * self.recipe.batch]]

    def update(self, step: int) -> float:
        """Take one optimizer step; returns the loss."""
        recipe, describer = self.recipe, self.describer
        describer.train()
        if not recipe.tune_language:
            describer.language.eval()  # no dropout in what does not learn
        rows = self.rows(step)
        chosen = [self.examples[row] for row in rows]
        rng = np.random.default_rng([recipe.seed, 59, step])
        contexts = [describer.context(features, each.start, each.end, rng) for features, each in chosen]
        gpus = [describer.device] if describer.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):  # dropout follows from the step, so a resumed run is the same
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            loss = describer.loss(contexts, [self.ids[row] for row in rows])
        if not bool(loss.isfinite()):
            raise TrainingError(f"the loss is {loss.item()} at step {step + 1}: use a lower learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), recipe.clip)
        schedule = _Schedule(recipe.rate, recipe.warm_up, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule)
        self.optimizer.step()
        return loss.item()

    # --- the run -------------------------------------------------------------------------------------------

    def train(self, step_done: Callable[[int, int, float], None]) -> None:
        losses: list[float] = []
        for step in range(self.step, self.steps):
            losses.append(self.update(step))
            self.step = step + 1
            step_done(self.step, self.steps, losses[-1])
            if self.step % self.per_epoch == 0:
                mean, losses = float(np.mean(losses)), []
                self.say(f"epoch {self.step // self.per_epoch} of {self.recipe.epochs}: loss {mean:.4f}")
                self._save(mean)

    def _save(self, loss: float) -> None:
        if self.folder is None:
            return
        self.folder.log({"step": self.step, "epoch": self.step // self.per_epoch, "loss": loss})
        state = {name: parameter.detach() for name, parameter in self.parameters.items()}
        self.folder.save({"step": self.step, "parameters": state, "optimizer": self.optimizer.state_dict()})

    def _resume(self) -> None:
        state = None if self.folder is None else self.folder.held
        if self.folder is None or state is None:
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.folder.held = None
        self.folder.cut_log(self.step)
        self.say(f"goes on after epoch {self.step // self.per_epoch} of {self.recipe.epochs}")


def _fingerprint(items: Sequence[Narrated]) -> str:
    """Of everything that is learned from: features, spans and words."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(item.features.times.tobytes())
        digest.update(item.features.embeddings.data)
        digest.update(repr([(each.start, each.end, each.text) for each in item.descriptions]).encode())
    return digest.hexdigest()[:16]


def _weights_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
