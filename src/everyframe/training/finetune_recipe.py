"""What decides the result of fine-tuning, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from everyframe.backbone import Model
from everyframe.encoders import TempMe
from everyframe.training.adapters import RATES, TUNES, Tune
from everyframe.training.errors import TrainingError

_NOT_DECISIVE = ("micro_batch", "checkpointing")
_SCHEDULE = {"r", "clips", "remove_cross", "remove_intra", "temporal", "proportional"}
_PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """What decides the result, beside model and data; `FinetuneRecipe.for_data` fills in what was not given.

    schedule: arguments of `TempMe`: r, clips, remove_cross, remove_intra, ...; r=0 and clips={} average the frames.
    frames: F of a video. words: longest text in tokens. tune, size: what is fitted (`training.adapters.Tuning`).
    batch: pairs per step, over which the softmax runs. rate: peak learning rate; it rises for the first `warm_up` of
    the steps and falls as half a cosine to 0. clip: largest norm of the gradient. precision: "float32", or "bfloat16"
    or "float16" for mixed precision. steps_per_epoch: whole batches of an epoch. report_every: steps between
    validations and checkpoints, which every epoch ends with too.
    together: pairs 2k and 2k + 1 of the data always meet in one batch, as each other's hard negatives: an epoch is a
    permutation of couples, not of pairs. The paper has no such thing. batch is even then.
    positions_rate: peak learning rate of the clip positions, with the same schedule and decay; None for that of the
    rest, as in the paper.
    augment: change frames by RandAugment (`training.augment`), as the authors' code does; their paper does not say so.
    micro_batch: pairs per backward pass; checkpointing: compute activations twice instead of keeping them. Both
    change memory and time, not the result.
    """

    steps_per_epoch: int
    batch: int
    rate: float
    micro_batch: int
    schedule: dict[str, Any] = field(default_factory=lambda: {"r": 0, "clips": {}})
    frames: int = 12
    words: int = 32
    tune: Tune = "lora"
    size: int | None = None
    epochs: int = 5
    warm_up: float = 0.1
    weight_decay: float = 0.2
    clip: float = 1.0
    precision: str = "float32"
    checkpointing: bool = False
    augment: bool = False
    together: bool = False
    positions_rate: float | None = None
    seed: int = 42
    report_every: int = 150

    def __post_init__(self) -> None:
        if self.tune not in TUNES:
            raise ValueError(f"tune must be one of {', '.join(TUNES)}, got {self.tune!r}")
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {self.precision!r}")
        for name in ("batch", "micro_batch", "frames", "epochs", "report_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch < 2:
            raise ValueError("batch must be at least 2: a pair needs others to be told from")
        if self.words < 3:
            raise ValueError(f"words must be at least 3, with the tokens that begin and end a text, got {self.words}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        for name in ("rate", "clip", "positions_rate"):
            value = getattr(self, name)
            if not (name == "positions_rate" and value is None) and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value}")
        if self.together not in (False, True):
            raise ValueError(f"together must be True or False, got {self.together!r}")
        if self.together and self.batch % 2:
            raise ValueError(
                f"together needs an even batch, got {self.batch}: two pairs that belong together would be parted; use "
                f"{self.batch + 1} or {self.batch - 1}"
            )
        if not (0 <= self.warm_up <= 1 and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                f"warm_up must be in [0, 1] and weight_decay at least 0, got {self.warm_up} and {self.weight_decay}"
            )
        named = set(self.schedule)
        if not {"r", "clips"} <= named <= _SCHEDULE or not isinstance(self.schedule["clips"], dict):
            raise ValueError(
                f"schedule must hold r and clips, and may hold {', '.join(sorted(_SCHEDULE - {'r', 'clips'}))}, as "
                f"TempMe takes them, got {self.schedule}"
            )
        if self.positions_rate is not None and not (self.schedule["clips"] and self.schedule.get("temporal", True)):
            raise ValueError(
                f"positions_rate is that of clip positions, got {self.positions_rate}, but there are none, as the "
                f"schedule joins no clips ({self.schedule}): leave it out, or say where clips are joined"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    @classmethod
    def for_data(cls, model: Model, num_pairs: int, processes: int, **given: Any) -> FinetuneRecipe:
        """The paper's recipe for so many pairs on so many processes.

        batch: 128. Of fewer than 4 times as many pairs, the largest power of two that is no more than a quarter of
            them, but at least 4. In any case a multiple of the number of processes, and even with together=True.
        frames: 12, or as many as the schedule joins. words: 32, with 64 frames 64.
        micro_batch: 8 on a CPU, 32 elsewhere. rate: `adapters.RATES`.
        """
        unknown = set(given) - {each.name for each in fields(cls)} | {"steps_per_epoch"} & set(given)
        if unknown:
            raise TypeError(f"finetune has no option {', '.join(sorted(unknown))}")
        if model.precision != "float32":
            raise ValueError(
                f"the model must be loaded in float32 to be fitted, got {model.precision}; "
                "precision='bfloat16' computes in bfloat16"
            )
        if model.family != "clip" or model.text is None:
            raise TrainingError(f"{model.name} is no CLIP model with a text tower, which fine-tuning needs")
        options = {name: value for name, value in given.items() if value is not None}
        if "batch" not in options:
            batch = 128 if num_pairs >= 512 else 2 ** int(math.log2(max(num_pairs // 4, 4)))
            unit = math.lcm(processes, 2) if options.get("together") else processes
            options["batch"] = max(batch // unit, 1) * unit
        if num_pairs < options["batch"]:
            raise TrainingError(
                f"{num_pairs} captioned videos do not fill one batch of {options['batch']}: give more, or a smaller "
                "batch"
            )
        clips = options.get("schedule", {}).get("clips", {})
        if "frames" not in options and isinstance(clips, dict) and clips:
            options["frames"] = math.prod(clips.values())
        options.setdefault("words", 64 if options.get("frames") == 64 else 32)
        small = model.device.type == "cpu"
        options.setdefault("micro_batch", max(1, min(options["batch"] // processes, 8 if small else 32)))
        options.setdefault("rate", RATES.get(options.get("tune", "lora"), 1.0))
        return cls(steps_per_epoch=num_pairs // max(1, options["batch"]), **options)

    def identity(self) -> dict[str, Any]:
        """Everything here that decides the result."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_DECISIVE}


@dataclass(frozen=True)
class FineTuned:
    """What `finetune` made: the encoder with the best weights, merged; the folder; validation scores of the best step;
    how many parameters were fitted, by kind; and the lines of failures.txt.
    """

    encoder: TempMe
    folder: Path
    metrics: dict[str, float]
    fitted: dict[str, int]
    failures: list[str]


class Schedule(Protocol):
    """What `learning_rate` asks of a recipe."""

    @property
    def rate(self) -> float: ...

    @property
    def warm_up(self) -> float: ...

    @property
    def steps(self) -> int: ...


def learning_rate(step: int, recipe: Schedule, peak: float | None = None) -> float:
    """Of a step, counted from 0: a line up from 0 to the peak (default `recipe.rate`), then half a cosine down to 0."""
    warm, peak = int(recipe.warm_up * recipe.steps), recipe.rate if peak is None else peak
    if step < warm:
        return peak * step / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))
