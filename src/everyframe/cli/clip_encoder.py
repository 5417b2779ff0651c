"""What the options of everyframe encode make of --encoder tempme: one feature per clip."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe.cli.clips import is_tuned, load_tuned, tuned_frames
from everyframe.cli.finetune import make_schedule
from everyframe.cli.options import given, load_model, set_threads

if TYPE_CHECKING:
    from everyframe.encoders import TempMe
    from everyframe.pipeline import ClipSampling

ClipOption = Annotated[
    str | None, typer.Option("--clip", help="TempMe: seconds of a clip, such as 10s. (default: 10s)")
]
ClipFramesOption = Annotated[
    int | None, typer.Option("--frames", help="TempMe: frames of a clip. (default: what it was made for, or 12)")
]
SchedulePresetOption = Annotated[
    str | None, typer.Option("--preset", help="TempMe: a schedule of the paper, such as msrvtt-b32.")
]

_WHY = {
    "fps": "--frames and --clip say which frames it reads",
    "recipe": "a recipe keeps the features of I-frames",
}


@dataclass(frozen=True, kw_only=True)
class ClipChoice:
    """TempMe with a schedule; with an empty one that of the fine-tuned folder, or else of its constructor."""

    schedule: dict[str, Any]
    sampling: ClipSampling
    frames: int | None

    def make(
        self, model: str | None, device: str | None, dtype: str | None, threads: int | None, batch_size: int | None
    ) -> tuple[TempMe, ClipSampling]:
        """The encoder, and which frames it is given. Raises ValueError where the two do not go together."""
        from everyframe.encoders import TempMe
        from everyframe.pipeline import frames_of

        if batch_size is not None and batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
        tuned = model if model is not None and is_tuned(model) else None
        if tuned is not None and self.schedule:
            raise ValueError(f"{model} has its own schedule; leave out --preset, --r, --clips and --remove-...")
        if tuned is None:
            encoder = TempMe(load_model(model, device, dtype, threads), **self.schedule, **given(batch_size=batch_size))
        else:
            set_threads(threads)
            encoder = load_tuned(tuned, device, dtype)
            encoder.batch_size = batch_size or encoder.batch_size
        frames = self.frames or (tuned and tuned_frames(tuned)) or frames_of(encoder)
        return encoder, replace(self.sampling, frames=frames)


def choose_clips(
    *,
    encoder: str | None,
    clip: str | None,
    frames: int | None,
    schedule: dict[str, Any],
    limits: dict[str, Any],
    others: dict[str, Any],
) -> ClipChoice | None:
    """TempMe, if it is asked for by name or by an option that it alone has; None if another encoder is.

    schedule: --preset, --r, --clips, --remove-cross, --remove-intra. limits: start, end, keep_partial. others: options
    of other encoders. None and False are options that were not given. Raises ValueError, before a model is loaded, for
    options that contradict each other.
    """
    from everyframe.pipeline import ClipSampling

    own = {"clip": clip, "frames": frames, **schedule}
    first = next(iter(given(**own)), None)
    if encoder != "tempme":
        if first is not None and encoder is not None:
            raise ValueError(
                f"{_flag(first)} has no meaning with --encoder {encoder}: only --encoder tempme reads clips"
            )
        if first is None:
            return None
    who = _flag(first or "") if encoder is None else "--encoder tempme"
    for name, value in others.items():
        if value is not None and value is not False:
            raise ValueError(f"{_flag(name)} has no meaning with {who}: {_WHY.get(name, 'TempMe reads whole clips')}")
    seconds = None if clip is None else parse_clip(clip)
    return ClipChoice(
        schedule=make_schedule(**schedule) if given(**schedule) else {},
        sampling=ClipSampling(**given(clip_seconds=seconds, frames=frames), **limits),
        frames=frames,
    )


def parse_clip(text: str) -> float:
    """Seconds of "10", "10s" or "2.5 s". Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*s?\s*", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"--clip must be a number of seconds above 0, such as 10s, got {text!r}")
    return float(match[1])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
