"""How videos are read: the options that commands share which encode them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

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

_SCHEDULE = ("preset", "r", "clips", "remove_cross", "remove_intra")


@dataclass(frozen=True, kw_only=True)
class FrameEncoding:
    """How frames are encoded: the options as they were set; None where they were not."""

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

    @property
    def options(self) -> dict[str, Any]:
        """All of them by name, as `choose_encoder` takes them."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    @property
    def asked(self) -> dict[str, Any]:
        """Those that were set."""
        return given(**self.options)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The options as they were set; None where they were not."""

    model: ModelOption = None
    fps: FpsOption = None
    encoding: FrameEncoding = field(default_factory=FrameEncoding)
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
        return given(fps=self.fps, **self.encoding.options, **self._these("clip", "frames", *_SCHEDULE))

    def choose(self, *, start: float | None = None, end: float | None = None, recipe: bool = False) -> Reader:
        """What they ask for, to be made later. Raises ValueError, before a model is loaded, where they contradict."""
        from everyframe.pipeline import Sampling

        limits: dict[str, Any] = {"start": start, "end": end, "keep_partial": self.keep_partial}
        options = self.encoding.options
        encoder = options.pop("encoder")
        clips = choose_clips(
            encoder=encoder,
            clip=self.clip,
            frames=self.frames,
            schedule=self._these(*_SCHEDULE),
            limits=limits,
            others={**options, "fps": self.fps, "recipe": recipe},
        )
        if clips is not None:
            return Reader(self, clips)
        frames = choose_encoder(encoder=encoder, **options)
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
