"""Which encoder the options of a command ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.options import given

if TYPE_CHECKING:
    from everyframe.backbone import Model
    from everyframe.encoders import Encoder

MERGING = ("tome", "vidtldr")
ENCODERS = ("reuse", "residual", "dense", *MERGING)
PLANS = ("fixed", "cuts", "adaptive")

EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="reuse, residual (ResidualViT), dense, or tome or vidtldr: every frame, its tokens merged from block to "
        "block; everyframe encode also has tempme, one feature per clip. (default: reuse; residual with --residual, "
        "vidtldr with --reduce)",
    ),
]
ReduceOption = Annotated[
    str | None,
    typer.Option(
        "--reduce",
        help="With tome and vidtldr: tokens that go in each block, such as 24,24,24, twelve times 8, 8x12, or 8 in "
        "every block, 8x. Below 1: a share of the block's tokens.",
    ),
]
PlanOption = Annotated[
    str | None,
    typer.Option(
        "--plan",
        help="Where I-frames are: fixed (after every N P-frames), cuts (also where a shot begins) or adaptive (where "
        "enough has changed). (default: adaptive; fixed with --interleave, --select or --encoder residual)",
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        help="How much change an adaptive plan leaves out before the next I-frame; less is closer to dense and dearer. "
        "(default: 1)",
    ),
]
FidelityOption = Annotated[
    float | None,
    typer.Option(
        "--fidelity", help="Mean cosine to dense features to reach; a calibration says which --drop and --tolerance."
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        help="For --fidelity: a file of everyframe calibrate, or auto: what comes with the model. (default: auto)",
    ),
]
TwoSidedOption = Annotated[
    bool | None,
    typer.Option("--two-sided", help="P-frames also reuse from the next I-frame; closer to dense, a little later."),
]
GroupOption = Annotated[
    int | None,
    typer.Option("--interleave", help="N, P-frames after each I-frame. (default: 5; 2 with --encoder residual)"),
]
SelectOption = Annotated[
    str | None,
    typer.Option(
        "--select",
        help="Which patches P-frames compute: change (reuse alone), motion, residual, center, uniform or random. "
        "(default: change; motion with --encoder residual)",
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--residual",
        help="ResidualViT's tokenizer: auto, none, or a file; means --encoder residual. (default: auto)",
    ),
]

_WHY = {
    "two_sided": "only --encoder reuse looks ahead",
    "plan": "every frame is an I-frame",
    "interleave": "it sets I-frames where the video changes; --plan fixed has a number of P-frames",
    "tolerance": "only --plan adaptive has one",
    "fidelity": "only --encoder reuse --plan adaptive is calibrated",
    "calibration": "only --encoder reuse --plan adaptive is calibrated",
    "residual": "only --encoder residual has a residual token",
    "reduce": "only --encoder tome and vidtldr merge tokens",
}
_WHY_MERGING = {
    "interleave": "every frame is read alike, there are no P-frames",
    "drop": "it merges patches and drops none; --reduce says how many go",
    "select": "which tokens merge follows from the tokens",
}


@dataclass(frozen=True)
class Schedule:
    """Tokens that go in each block, as a command line has them. everywhere: the one number, in every block."""

    numbers: tuple[int | float, ...]
    everywhere: bool = False

    def of(self, depth: int) -> list[int | float]:
        """A number per block of a model of that depth, as far as any were given."""
        return list(self.numbers * depth if self.everywhere else self.numbers)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An encoder by name, and the arguments of its constructor, or, with "fidelity", of `at_fidelity`."""

    name: str
    arguments: dict[str, Any]

    @property
    def adaptive(self) -> bool:
        return self.name == "reuse" and self.arguments.get("plan", "adaptive") == "adaptive"

    @property
    def calibrated(self) -> bool:
        """Is it of the kind that calibrations are measured with?"""
        return self.adaptive and not self.arguments.get("two_sided")

    def make(self, model: Model, batch_size: int | None = None, *, fps: float | None = None) -> Encoder:
        """fps: at which frames will be sampled; a calibration measured at another is used with a word of warning."""
        from everyframe.encoders import DenseEncoder, ResidualViT, ReuseEncoder, ToMe, VidTLDR
        from everyframe.encoders.calibration import resolve_calibration
        from everyframe.pipeline import Sampling

        arguments = {**self.arguments, **given(batch_size=batch_size)}
        if self.name in MERGING:
            arguments["reduce"] = self.arguments["reduce"].of(model.vision.config.depth)
            return (ToMe if self.name == "tome" else VidTLDR)(model, **arguments)
        if "fidelity" in arguments:
            calibration = resolve_calibration(arguments.pop("calibration", "auto"), model)
            measured, asked = calibration.facts.get("fps"), fps or Sampling.fps
            if measured is not None and measured != asked:
                console.say(
                    f"the calibration was measured at {measured:g} frames per second, not at {asked:g}: --fidelity may "
                    "be missed; calibrate with the same --fps",
                    style="yellow",
                    error=True,
                )
            return ReuseEncoder.at_fidelity(model, calibration=calibration, **arguments)
        if self.name == "reuse":
            return ReuseEncoder(model, **arguments)
        return ResidualViT(model, **arguments) if self.name == "residual" else DenseEncoder(model, **arguments)


def choose_encoder(**options: Any) -> Choice:
    """From the options that were set; ValueError, before a model is loaded, where they contradict each other."""
    asked = given(**options)
    implied = "residual" if "residual" in asked else "vidtldr" if "reduce" in asked else "reuse"
    name = asked.pop("encoder", implied)
    if name == "tempme":
        raise ValueError("--encoder tempme reads clips, not single frames: it belongs to everyframe encode")
    if name not in ENCODERS:
        raise ValueError(f"--encoder must be one of {', '.join(ENCODERS)}, got {name!r}")
    if asked.get("plan") not in (None, *PLANS):
        raise ValueError(f"--plan must be fixed, cuts or adaptive, got {asked['plan']!r}")
    who = "--reduce" if implied == "vidtldr" else "--residual"
    if options.get("encoder") is not None:
        who = f"--encoder {name}"
    if name in MERGING:
        return _merging(name, asked, who)
    if name == "reuse":
        return _reuse(asked, who)
    if name == "residual":
        return _residual(asked, who)
    _refuse(asked, asked, who)
    return Choice(name="dense", arguments={})


def compared(residual: str | None) -> list[Choice]:
    """What --compare sets side by side: dense, ResidualViT N=2 and adaptive reuse. residual: of ResidualViT."""
    return [
        choose_encoder(encoder="dense"),
        choose_encoder(encoder="residual", residual=residual),
        choose_encoder(encoder="reuse"),
    ]


def parse_reduce(text: str) -> Schedule:
    """ "600,200,100", "200x12" or "8x": counts, or shares below 1. Raises ValueError for anything else."""
    number = r"(\d+|\d*\.\d+)"
    every = re.fullmatch(rf"\s*{number}\s*x\s*", text)
    if every is not None:
        return Schedule((_count(every[1]),), everywhere=True)
    numbers: list[int | float] = []
    for part in text.split(","):
        match = re.fullmatch(rf"\s*{number}\s*(?:x\s*(\d+)\s*)?", part)
        if match is None:
            raise ValueError(
                f"--reduce must be numbers separated by commas, such as 600,200,100, or 8x for 8 in every block, "
                f"got {text!r}"
            )
        numbers += [_count(match[1])] * int(match[2] or 1)
    return Schedule(tuple(numbers))


def _count(digits: str) -> int | float:
    return float(digits) if "." in digits else int(digits)


def _merging(name: str, asked: dict[str, Any], who: str) -> Choice:
    for option, why in _WHY_MERGING.items():
        if option in asked:
            raise ValueError(f"--{option} has no meaning with {who}: {why}")
    _refuse(asked, (option for option in asked if option != "reduce"), who)
    if "reduce" not in asked:
        raise ValueError(f"{who} needs --reduce, how many tokens go in each block: 24,24,24, or 8x for 8 in every one")
    return Choice(name=name, arguments={"reduce": parse_reduce(asked["reduce"])})


def _residual(asked: dict[str, Any], who: str) -> Choice:
    _refuse(asked, ("two_sided", "tolerance", "fidelity", "calibration", "reduce"), who)
    if asked.get("plan") == "adaptive":
        raise ValueError(f"--plan adaptive has no meaning with {who}: only --encoder reuse has adaptive plans")
    if asked.get("residual") == "none":
        asked["residual"] = None
    return Choice(name="residual", arguments=asked)


def _reuse(asked: dict[str, Any], who: str) -> Choice:
    _refuse(asked, ("residual", "reduce"), who)
    fixed = "interleave" in asked or asked.get("select", "change") != "change"
    implied = "fixed" if fixed else "adaptive"
    by = "--interleave" if "interleave" in asked else f"--select {asked.get('select')}"
    who = f"--plan {asked['plan']}" if "plan" in asked else by
    if asked.setdefault("plan", implied) != "adaptive":
        _refuse(asked, ("tolerance", "fidelity", "calibration"), who)
        return Choice(name="reuse", arguments=asked)
    _refuse(asked, ("interleave",), who)
    if asked.pop("select", "change") != "change":
        raise ValueError("--select has no meaning with --plan adaptive: it computes the patches that changed")
    if "fidelity" not in asked:
        if "calibration" in asked:
            raise ValueError("--calibration has no meaning without --fidelity, which chooses from it")
        return Choice(name="reuse", arguments=asked)
    for name in ("drop", "tolerance"):
        if name in asked:
            raise ValueError(f"--{name} has no meaning with --fidelity: the calibration says which --{name} reaches it")
    if "two_sided" in asked:
        raise ValueError("--two-sided has no meaning with --fidelity: calibrations are measured without")
    del asked["plan"]
    return Choice(name="reuse", arguments=asked)


def _refuse(asked: dict[str, Any], names: Iterable[str], who: str) -> None:
    for name in names:
        if name in asked:
            why = f": {_WHY[name]}" if name in _WHY else ""
            raise ValueError(f"--{name.replace('_', '-')} has no meaning with {who}{why}")
