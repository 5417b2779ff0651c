"""How long a workload takes on given machines, and what that costs: arithmetic on rates that were measured.

An hour of video asks each stage for a number of units: source frames to decode, sampled frames to resize and plan,
multiply-accumulates of I-frames and of P-frames, features to gather and to write. A stage's rate is units per second
of one core, one GPU, one gigabit per second, or of the one driver. Stages that use the same resource add up, because
they take turns on it; different resources work at the same time, so the busiest one decides:

    seconds(stage)   = units / (rate * speed of the resource)
    hours(resource)  = sum of its stages / (how many of it a machine has * machines)
    hours            = max over resources

The driver gathers and writes in one process whatever the number of machines, so it bounds what more machines can do.
Every rate carries where it comes from. Start-up, retries, and machines that are lost are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from everyframe.cost import Countable

Resource = Literal["cores", "gpus", "network", "driver"]
STAGES = ("read", "probe", "decode", "resize and plan", "I-frames", "P-frames", "gather", "write")
_HOUR = 3600.0


class CapacityError(ValueError):
    """What was asked for cannot be reached, or cannot be worked out from the rates given."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Units per second of one core, GPU or driver, and where that comes from: "measured: ...", "assumed: ..."."""

    value: float
    unit: str
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise CapacityError(f"a rate must be a number > 0, got {self.value} {self.unit}/s ({self.source})")

    @property
    def measured(self) -> bool:
        return self.source.startswith("measured")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be encoded.

    hours: of video. width, height: of its pictures in pixels; source_fps: pictures a second; fps: those sampled.
    interleave: P-frames after each I-frame. i_macs, p_macs: multiply-accumulates of an I-frame and of a P-frame, all
    of them (rule "all" of `everyframe.cost`). dim: of a feature. video_minutes: mean length of a file, for opening
    them. mbits: mean bit rate of the files in Mbit/s, for reading them. format: of the output.
    """

    hours: float
    width: int = 1280
    height: int = 720
    source_fps: float = 30.0
    fps: float = 3.0
    interleave: int = 5
    i_macs: float
    p_macs: float
    dim: int = 512
    video_minutes: float = 10.0
    mbits: float = 3.0
    format: str = "npz"

    def __post_init__(self) -> None:
        for name in ("hours", "width", "height", "source_fps", "fps", "i_macs", "dim", "video_minutes", "mbits"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number > 0, got {getattr(self, name)}")
        if self.interleave < 0:
            raise ValueError(f"interleave must be 0 or more, got {self.interleave}")
        if not 0 <= self.p_macs < math.inf or (self.interleave and not self.p_macs):
            raise ValueError(f"p_macs must be a number > 0 where there are P-frames, got {self.p_macs}")

    @classmethod
    def of(cls, encoder: Countable, *, hours: float, **facts: Any) -> Workload:
        """With the cost of an encoder (weights are not needed, see `backbone.skeleton`); facts: the other fields.

        Raises ValueError where the plan depends on the videos: then give i_macs, p_macs and a mean interleave.
        """
        first = sum(encoder.macs(1, "all").values())
        others = encoder.group_size - 1
        rest = sum(encoder.macs(1 + others, "all").values()) - first
        return cls(hours=hours, interleave=others, i_macs=first, p_macs=rest / others if others else 0.0, **facts)

    @property
    def pixels(self) -> int:
        """Of a source picture."""
        return self.width * self.height

    @property
    def frames(self) -> float:
        """Features per hour of video; no more than it has pictures."""
        return _HOUR * min(self.fps, self.source_fps)

    @property
    def macs(self) -> float:
        """Multiply-accumulates per hour of video."""
        return self.frames * (self.i_macs + self.interleave * self.p_macs) / (self.interleave + 1)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware that is rented by the hour; all of it is what the caller says, none of it is measured here.

    cores: that may work, physical ones (clouds sell hyperthreads, two to a core). core_speed: of one of them, relative
    to the core of the measurement. gpu_tflops: peak of one GPU in the model's dtype, as data sheets give it (a
    multiply-accumulate is two operations); gpu_achieved: the share of it that the model reaches, 0 to 1.
    network_gbits: what the machine reads from storage, in Gbit/s; None where that bounds nothing.
    """

    name: str
    cores: float
    euros_per_hour: float
    core_speed: float = 1.0
    gpus: float = 0
    gpu_tflops: float = 0.0
    gpu_achieved: float = 0.3
    network_gbits: float | None = None

    def __post_init__(self) -> None:
        if self.cores <= 0 or self.core_speed <= 0 or self.gpus < 0 or self.euros_per_hour < 0:
            raise ValueError(f"{self.name}: cores and core_speed must be > 0, gpus and euros_per_hour 0 or more")
        if self.gpus and not (self.gpu_tflops > 0 and 0 < self.gpu_achieved <= 1):
            raise ValueError(f"{self.name}: a GPU needs gpu_tflops > 0 and gpu_achieved in (0, 1]")
        if self.network_gbits is not None and self.network_gbits <= 0:
            raise ValueError(f"{self.name}: network_gbits must be > 0 or None, got {self.network_gbits}")


def together(name: str, parts: Sequence[tuple[Machine, int]]) -> Machine:
    """Machines that are rented as one unit, such as a GPU machine and the CPU machines that decode for it.

    Raises ValueError for GPUs of different kinds: their shares of the work are then not those of one kind.
    """
    if not parts or any(count < 1 for _, count in parts):
        raise ValueError(f"{name}: give at least one machine, and of each at least one")
    kinds = {(part.gpu_tflops, part.gpu_achieved) for part, _ in parts if part.gpus}
    if len(kinds) > 1:
        raise ValueError(f"{name}: GPUs of different speed; make a prediction for each kind")
    tflops, achieved = kinds.pop() if kinds else (0.0, Machine.gpu_achieved)
    known = [part.network_gbits * count for part, count in parts if part.network_gbits is not None]
    return Machine(
        name=name,
        cores=sum(part.cores * part.core_speed * count for part, count in parts),
        euros_per_hour=sum(part.euros_per_hour * count for part, count in parts),
        gpus=sum(part.gpus * count for part, count in parts),
        gpu_tflops=tflops,
        gpu_achieved=achieved,
        network_gbits=sum(known) if len(known) == len(parts) else None,
    )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one core does, and the driver. decode, prepare: by the pixels of a source picture, in rising order.

    probe: videos. decode: source frames. prepare: sampled frames resized and planned. i_macs, p_macs:
    multiply-accumulates. gather: values (features times their dimension). write: values, by format. efficiency: the
    share of what its stages alone would give that a core reaches in the whole pipeline, 0 to 1.
    """

    probe: Rate
    decode: tuple[tuple[int, Rate], ...]
    prepare: tuple[tuple[int, Rate], ...]
    i_macs: Rate
    p_macs: Rate
    gather: Rate
    write: Mapping[str, Rate]
    efficiency: Rate

    def __post_init__(self) -> None:
        for name in ("decode", "prepare"):
            sizes = [pixels for pixels, _ in getattr(self, name)]
            if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 1:
                raise CapacityError(f"{name} must have a rate for one or more sizes in rising order, got {sizes}")
        if self.efficiency.value > 1.5:
            raise CapacityError(f"efficiency is a share of 1, got {self.efficiency.value}")

    @classmethod
    def of_record(cls, record: Mapping[str, Any], model: str, pipeline: str | None = None) -> Rates:
        """Those of benchmarks/results/scale.json, for one of its models.

        pipeline: which of its runs of the whole pipeline gives the efficiency; None takes 1, the parts alone.
        """
        try:
            return _read_record(record, model, pipeline)
        except KeyError as error:
            known = ", ".join(record.get("encode", {}))
            raise CapacityError(f"the record has no {error} (model {model!r}; it knows {known})") from error


def _read_record(record: Mapping[str, Any], model: str, pipeline: str | None) -> Rates:
    where = f"measured: one core of {record['machine']['processor']}"

    def rate(stated: Mapping[str, Any], unit: str, times: float = 1.0, what: str = "") -> Rate:
        return Rate(value=stated["median"] * times, unit=unit, source=f"{where}{what}")

    def by_size(sizes: Mapping[str, Any], unit: str) -> tuple[tuple[int, Rate], ...]:
        rates = (
            (int(math.prod(map(int, size.split("x")))), rate(row["per_second"], unit, what=f", {size}"))
            for size, row in sizes.items()
        )
        return tuple(sorted(rates, key=lambda each: each[0]))

    encode = record["encode"][model]
    macs = {
        role: rate(encode[role]["frames_per_second"], "MACs", encode[role]["macs_per_frame"], f", {model}")
        for role in ("i", "p")
    }
    whole = Rate(value=1.0, unit="share", source="assumed: the stages lose nothing to each other")
    if pipeline is not None:
        run = record["pipeline"][pipeline]
        whole = Rate(value=run["share_of_predicted"], unit="share", source=f"measured: pipeline, {pipeline}")
    return Rates(
        probe=rate(record["probe"]["videos_per_second"], "videos"),
        decode=by_size(record["decode"], "frames"),
        prepare=by_size(record["prepare"][model], "frames"),
        i_macs=macs["i"],
        p_macs=macs["p"],
        gather=rate(record["gather"]["rows_per_second"], "values", record["gather"]["dim"]),
        write={name: rate(row["rows_per_second"], "values", row["dim"]) for name, row in record["write"].items()},
        efficiency=whole,
    )


@dataclass(frozen=True, kw_only=True)
class StageLoad:
    """A stage in a prediction. seconds: of one core, GPU, Gbit/s or driver per hour of video.

    busy: the share of the whole time for which all of the resource is taken by this stage.
    """

    name: str
    resource: Resource
    seconds: float
    busy: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What to expect. hours: of wall time; euros: of the machines for that time.

    bottleneck: the stage that takes most of the resource that decides. by_resource: hours that each resource needs
    with that many machines; `hours` is the largest, and never more than their sum. assumptions: what was not measured.
    """

    workload: Workload
    machine: Machine
    machines: int
    hours: float
    euros: float
    bottleneck: str
    by_resource: dict[Resource, float]
    stages: tuple[StageLoad, ...]
    assumptions: tuple[str, ...]

    @property
    def times_realtime(self) -> float:
        return self.workload.hours / self.hours

    @property
    def frames_per_second(self) -> float:
        """Features per second of wall time."""
        return self.workload.frames * self.workload.hours / (self.hours * _HOUR)

    @property
    def euros_per_thousand_hours(self) -> float:
        return 1000 * self.euros / self.workload.hours


def predict(
    workload: Workload,
    machine: Machine,
    rates: Rates,
    *,
    machines: int | None = None,
    deadline_hours: float | None = None,
) -> Prediction:
    """Hours and euros with so many machines, or the fewest that end within `deadline_hours`: one of the two is given.

    Raises CapacityError where no number of machines meets the deadline, because the driver alone takes longer, or
    where a rate is missing; ValueError for bad arguments.
    """
    if (machines is None) == (deadline_hours is None):
        raise ValueError("give machines or deadline_hours, one of the two")
    if machines is not None and machines < 1:
        raise ValueError(f"machines must be at least 1, got {machines}")
    loads = _loads(workload, machine, rates)
    if machines is None:
        machines = _fewest(loads, workload, machine, float(deadline_hours or 0.0))
    by_resource = _hours(loads, workload, machine, machines)
    hours = max(by_resource.values())
    decisive = max(by_resource, key=lambda resource: by_resource[resource])
    shares = {
        stage.name: stage.seconds * workload.hours / (_amount(machine, stage.resource, machines) * hours * _HOUR)
        for stage in loads
    }
    return Prediction(
        workload=workload,
        machine=machine,
        machines=machines,
        hours=hours,
        euros=hours * machines * machine.euros_per_hour,
        bottleneck=max((each for each in loads if each.resource == decisive), key=lambda each: each.seconds).name,
        by_resource=by_resource,
        stages=tuple(replace(stage, busy=shares[stage.name]) for stage in loads),
        assumptions=_assumptions(loads, machine, rates),
    )


def cores_per_gpu(workload: Workload, machine: Machine, rates: Rates) -> float:
    """Cores like the machine's that it takes to keep one of its GPUs busy. Raises ValueError without a GPU."""
    if not machine.gpus:
        raise ValueError(f"{machine.name} has no GPU")
    needed: dict[Resource, float] = dict.fromkeys(("cores", "gpus"), 0.0)
    for stage in _loads(workload, machine, rates):
        if stage.resource in needed:
            needed[stage.resource] += stage.seconds
    return needed["cores"] / needed["gpus"]


def _assumptions(loads: Sequence[StageLoad], machine: Machine, rates: Rates) -> tuple[str, ...]:
    sources = [*(stage.source for stage in loads), rates.efficiency.source]
    if machine.core_speed != 1:
        sources.append(f"assumed: a core of {machine.name} at {machine.core_speed:g} of the speed of the measured one")
    return tuple(dict.fromkeys(source for source in sources if not source.startswith("measured")))


def _loads(workload: Workload, machine: Machine, rates: Rates) -> list[StageLoad]:
    """What an hour of video asks of each stage; `busy` is filled in later."""
    if workload.format not in rates.write:
        raise CapacityError(f"no rate for writing {workload.format!r}; there are {', '.join(sorted(rates.write))}")
    found: list[StageLoad] = []

    def add(name: str, resource: Resource, seconds: float, source: str) -> None:
        if resource == "cores":
            seconds /= machine.core_speed * rates.efficiency.value
        found.append(StageLoad(name=name, resource=resource, seconds=seconds, busy=0.0, source=source))

    source_frames, frames = _HOUR * workload.source_fps, workload.frames
    if machine.network_gbits is not None:
        add("read", "network", _HOUR * workload.mbits / 1000, "assumed: bit rate of the files, network of the machine")
    add("probe", "cores", 60 / workload.video_minutes / rates.probe.value, rates.probe.source)
    seconds, source = _at(rates.decode, workload.pixels)
    add("decode", "cores", source_frames * seconds, source)
    seconds, source = _at(rates.prepare, workload.pixels)
    add("resize and plan", "cores", frames * seconds, source)
    kinds = [("I-frames", workload.i_macs, rates.i_macs)]
    if workload.interleave:
        kinds.append(("P-frames", workload.interleave * workload.p_macs, rates.p_macs))
    for name, macs, rate in kinds:
        macs *= frames / (workload.interleave + 1)
        if machine.gpus:  # then they encode, and the cores do not
            achieved = machine.gpu_tflops * 1e12 * machine.gpu_achieved / 2
            add(name, "gpus", macs / achieved, f"assumed: {machine.gpu_achieved:.0%} of {machine.gpu_tflops:g} TFLOP/s")
        else:
            add(name, "cores", macs / rate.value, rate.source)
    write = rates.write[workload.format]
    add("gather", "driver", frames * workload.dim / rates.gather.value, rates.gather.source)
    add("write", "driver", frames * workload.dim / write.value, write.source)
    return found


def _at(rates: Sequence[tuple[int, Rate]], pixels: int) -> tuple[float, str]:
    """Seconds per frame at a size: between two that were measured on the line through them, beyond in proportion."""
    smaller = [each for each in rates if each[0] <= pixels]
    larger = [each for each in rates if each[0] >= pixels]
    if not smaller or not larger:
        size, rate = rates[0] if not smaller else rates[-1]
        return pixels / size / rate.value, f"assumed: in proportion to pixels; {rate.source}"
    (low, slower), (high, faster) = smaller[-1], larger[0]
    if low == high:
        return 1 / slower.value, slower.source
    between = (pixels - low) / (high - low)
    return (1 - between) / slower.value + between / faster.value, f"{slower.source} and the next size, in between"


def _amount(machine: Machine, resource: Resource, machines: int) -> float:
    if resource == "driver":
        return 1.0
    each = {"cores": machine.cores, "gpus": machine.gpus, "network": machine.network_gbits or 0.0}[resource]
    return each * machines


def _hours(loads: Sequence[StageLoad], workload: Workload, machine: Machine, machines: int) -> dict[Resource, float]:
    """Hours that each resource needs for the whole workload."""
    found: dict[Resource, float] = {}
    for stage in loads:
        seconds = stage.seconds * workload.hours / _amount(machine, stage.resource, machines)
        found[stage.resource] = found.get(stage.resource, 0.0) + seconds / _HOUR
    return found


def _fewest(loads: Sequence[StageLoad], workload: Workload, machine: Machine, deadline: float) -> int:
    if not 0 < deadline < math.inf:
        raise ValueError(f"deadline_hours must be a number > 0, got {deadline}")
    alone = _hours(loads, workload, machine, 1)
    driver = alone.pop("driver", 0.0)
    if driver > deadline:
        raise CapacityError(
            f"no number of machines ends within {deadline:g} hours: the driver gathers and writes for {driver:.3g}; "
            f"split the list over {math.ceil(driver / deadline)} runs with outputs of their own"
        )
    # Rounding may not cost a machine: 100 h on 10 machines are 10 h, not 10 h and a bit.
    return max(math.ceil(max(alone.values()) / deadline * (1 - 1e-12)), 1)
