"""How videos are read: the options that everyframe encode and everyframe index share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, get_type_hints

from everyframe.cli.clip_encoder import ClipChoice, ClipFramesOption, ClipOption, SchedulePresetOption, choose_clips
from everyframe.cli.clips import CrossOption, FrameTokensOption, IntraOption, JoinOption
from everyframe.cli.encoder import (
    CalibrationOption,
    Choice,
    EncoderOption,
    FidelityOption,
    GroupOption,
    PlanOption,
    ReduceOption,
    SelectOption,
    TokenOption,
    ToleranceOption,
    TwoSidedOption,
    choose_encoder,
)
from everyframe.cli.options import (
    BatchOption,
    DeviceOption,
    DropOption,
    DtypeOption,
    FpsOption,
    ModelOption,
    PartialOption,
    ThreadsOption,
    given,
    load_model,
)

if TYPE_CHECKING:
    from everyframe.encoders import Encoder, TempMe
    from everyframe.pipeline import ClipSampling, Sampling

_FRAMES = (
    "plan", "tolerance", "two_sided", "fidelity", "calibration", "interleave", "drop", "select", "residual", "reduce",
)  # fmt: skip
_SCHEDULE = ("preset", "r", "clips", "remove_cross", "remove_intra")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The options as they were set; None where they were not."""

    model: ModelOption = None
    fps: FpsOption = None
    encoder: EncoderOption = None
    plan: PlanOption = None
    tolerance: ToleranceOption = None
    two_sided: TwoSidedOption = None
    fidelity: FidelityOption = None
    calibration: CalibrationOption = None
    interleave: GroupOption = None
    drop: DropOption = None
    select: SelectOption = None
    residual: TokenOption = None
    reduce: ReduceOption = None
    clip: ClipOption = None
    frames: ClipFramesOption = None
    preset: SchedulePresetOption = None
    r: FrameTokensOption = None
    clips: JoinOption = None
    remove_cross: CrossOption = None
    remove_intra: IntraOption = None
    device: DeviceOption = None
    dtype: DtypeOption = None
    batch_size: BatchOption = None
    threads: ThreadsOption = None
    keep_partial: PartialOption = False

    @property
    def settings(self) -> dict[str, Any]:
        """Those that were set of the options that decide the features of a given model."""
        return given(**self._these("fps", "encoder", *_FRAMES, "clip", "frames", *_SCHEDULE))

    def choose(self, *, start: float | None = None, end: float | None = None, recipe: bool = False) -> Reader:
        """What they ask for, to be made later. Raises ValueError, before a model is loaded, where they contradict."""
        from everyframe.pipeline import Sampling

        limits: dict[str, Any] = {"start": start, "end": end, "keep_partial": self.keep_partial}
        encoding = self._these(*_FRAMES)
        clips = choose_clips(
            encoder=self.encoder,
            clip=self.clip,
            frames=self.frames,
            schedule=self._these(*_SCHEDULE),
            limits=limits,
            others={**encoding, "fps": self.fps, "recipe": recipe},
        )
        if clips is not None:
            return Reader(self, clips)
        frames = choose_encoder(encoder=self.encoder, **encoding)
        return Reader(self, (frames, Sampling(**given(fps=self.fps), **limits)))

    def _these(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Reader:
    """An encoder that was chosen, of clips or of frames, whose model is not loaded yet."""

    options: Reading
    choice: ClipChoice | tuple[Choice, Sampling]

    @property
    def frames(self) -> Choice | None:
        """The encoder of frames, if it is none of clips."""
        return None if isinstance(self.choice, ClipChoice) else self.choice[0]

    def make(self, model: str | None = None) -> tuple[Encoder | TempMe, Sampling | ClipSampling]:
        """The encoder, and what it is given. model: by name, where --model names none."""
        one, name = self.options, self.options.model or model
        if isinstance(self.choice, ClipChoice):
            return self.choice.make(name, one.device, one.dtype, one.threads, one.batch_size)
        choice, sampling = self.choice
        return choice.make(load_model(name, one.device, one.dtype, one.threads), one.batch_size, fps=one.fps), sampling


def reads_videos(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer is to see it: in place of its parameter `reading` an option for each field of `Reading`."""
    hints = get_type_hints(Reading, include_extras=True)
    names = [field.name for field in fields(Reading)]
    own = inspect.signature(command, eval_str=True).parameters
    parameters: list[inspect.Parameter] = []
    for parameter in own.values():
        if parameter.name != "reading":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        for field in fields(Reading):
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name]))

    @wraps(command)
    def wrapper(**values: Any) -> None:
        reading = Reading(**{name: values.pop(name) for name in names})
        command(reading=reading, **values)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper
