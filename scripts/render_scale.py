"""The places of docs/scale.md that benchmarks/scale.py and scale_chaos.py fill; called by render_results.py.

The predictions are made here, by `everyframe.scale.capacity` from the measured rates and the assumptions below.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from everyframe import DenseEncoder, ReuseEncoder
from everyframe.backbone.presets import skeleton
from everyframe.scale.capacity import Machine, Rates, Workload, cores_per_gpu, predict, together
from records import read, table

HOURS, DAYS = 1_000_000, 30

# Assumptions, all of them: sizes like those that clouds rent, in physical cores as fast as the measured one, at round
# prices; peaks of dense bfloat16 from data sheets.
CPU = Machine(name="CPU machine, 32 cores", cores=32, euros_per_hour=1.3)
SMALL_GPU = Machine(name="small GPU (121 TFLOP/s), 8 cores", cores=8, euros_per_hour=0.8, gpus=1, gpu_tflops=121)
LARGE_GPU = Machine(name="large GPU (989 TFLOP/s), 16 cores", cores=16, euros_per_hour=3.0, gpus=1, gpu_tflops=989)
ACHIEVED = (0.15, 0.3, 0.5)


def number(value: float) -> str:
    """Three digits, thousands with commas."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def stated(spread: dict[str, float], times: float = 1.0) -> str:
    low, middle, high = (number(spread[name] * times) for name in ("p25", "median", "p75"))
    return f"{middle} ({low} to {high})"


def heading(record: dict[str, Any]) -> str:
    machine = record["machine"]
    text = f"{machine['cores']} cores ({machine['processor']}), load {record['load_before']:.1f} before"
    return f"**Of a --quick run: short videos and few rounds, so rough.** {text}" if record["quick"] else text


def stages_table() -> str:
    record = read("scale")
    rows = []
    for size, row in record["decode"].items():
        what = f"decode {size}, H.264 at {row['mbits']:.1f} Mbit/s"
        rows.append([what, "source frames", stated(row["per_second"])])
    for row in record["decode_others"].values():
        what = f"decode 1280x720, {row['codec']} at {row['mbits']:.1f} Mbit/s"
        rows.append([what, "source frames", stated(row["per_second"])])
    for model, sizes in record["prepare"].items():
        side = record["encode"][model]["side"]
        rows += [
            [f"resize {size} to {side} and plan ({model})", "sampled frames", stated(row["per_second"])]
            for size, row in sizes.items()
        ]
    for model, row in record["encode"].items():
        for role, name in (("i", "I-frames"), ("p", "P-frames")):
            spread = row[role]["frames_per_second"]
            macs = row[role]["macs_per_frame"] * spread["median"] / 1e9
            rows.append([f"{name}, {model}, {row['dtype']} ({macs:.0f} GMAC/s)", "frames", stated(spread)])
    rows.append(["probe", "files", stated(record["probe"]["videos_per_second"])])
    gather = record["gather"]
    rows.append([f"gather, {gather['dim']} dimensions", "features", stated(gather["rows_per_second"])])
    for name, row in record["write"].items():
        rows.append([f"write {name}, {row['dim']} dimensions", "features", stated(row["rows_per_second"])])
    for name, row in record["stream"].items():
        rows.append([f"stream float16 {name}, 512 dimensions", "features", stated(row["rows_per_second"])])
    head = ["stage", "unit", "per second and core, median (quartiles)"]
    return f"{heading(record)}; one core, one thread:\n\n{table(head, rows)}"


def pipeline_table() -> str:
    record = read("scale")
    rows = []
    for name, found in record["pipeline"].items():
        for workers, rate in found["frames_per_second"].items():
            expected = found["predicted"][workers]
            busy = found["runs"][workers][0]["cores_busy"]
            both = f"{found['efficiency']:.2f}" if workers == "2" else ""
            rows.append([
                name, workers, number(rate), number(expected), f"{rate / expected:.2f}", f"{busy:.2f}", both,
            ])  # fmt: skip
    head = ["", "cores", "features/s", "predicted", "share", "cores busy", "speed over twice that of one"]
    return f"{heading(record)}:\n\n{table(head, rows)}"


def workload(name: str, record: dict[str, Any], **facts: Any) -> Workload:
    """720p at 3 frames/s in ReuseEncoder's fixed plan, as it was measured."""
    settings = record["settings"]
    encoder = ReuseEncoder(skeleton(name), interleave=settings["interleave"], drop=settings["drop"])
    return Workload.of(encoder, hours=HOURS, format="npz", dim=encoder.dim, mbits=2.5, **facts)


def rates_of(record: dict[str, Any]) -> Rates:
    return Rates.of_record(record, "ViT-B/32", "ViT-B/32 1280x720")


def beside(machine: Machine, work: Workload, rates: Rates) -> Machine:
    """The machine with as many CPU machines as keep its GPU busy."""
    missing = cores_per_gpu(work, machine, rates) * machine.gpus - machine.cores
    count = math.ceil(missing / CPU.cores)
    if count < 1:
        return machine
    return together(f"{machine.name}, and {count} x {CPU.name}", [(machine, 1), (CPU, count)])


def machines_table() -> str:
    record = read("scale")
    rates = rates_of(record)
    rows = []
    for name in ("ViT-B/32", "ViT-L/14"):
        work = workload(name, record)
        for machine in (CPU, SMALL_GPU, beside(SMALL_GPU, work, rates), beside(LARGE_GPU, work, rates)):
            found = predict(work, machine, rates, deadline_hours=24.0 * DAYS)
            rows.append([
                name, machine.name, str(found.machines), f"{found.hours / 24:.1f} days", found.bottleneck,
                number(found.euros), f"{found.euros_per_thousand_hours:.2f}",
            ])  # fmt: skip
    head = ["model", "unit", "units", "time", "bottleneck", "euros", "euros per 1,000 h"]
    work = workload("ViT-B/32", record)
    features = work.frames * work.hours
    rows_text = f"{features / 1e9:.1f} billion features, {features * work.dim * 4 / 1e12:.0f} TB in float32"
    return (
        f"{HOURS:,} hours of 720p at 30 frames/s, 3 sampled a second, interleave {work.interleave} and drop "
        f"{record['settings']['drop']}; {rows_text} of {work.dim} dimensions, in npz files; the fewest units that end "
        f"within {DAYS} days. GPUs reach {SMALL_GPU.gpu_achieved:.0%} of peak (assumed):\n\n{table(head, rows)}\n\n"
        f"The driver alone gathers and writes for "
        f"{predict(work, CPU, rates, machines=1).by_resource['driver'] / 24:.1f} days of that, whatever the number "
        f"of machines. Of a core {rates.efficiency.value:.0%} of what its stages promise is counted "
        f"({rates.efficiency.source})."
    )


def hours_table() -> str:
    """Core seconds per hour of video, stage by stage."""
    record = read("scale")
    rates = rates_of(record)
    rows = []
    for size in ((640, 360), (1280, 720), (1920, 1080)):
        work = dataclasses.replace(workload("ViT-B/32", record), width=size[0], height=size[1])
        found = {stage.name: stage for stage in predict(work, CPU, rates, machines=1).stages}
        names = ("decode", "resize and plan", "I-frames", "P-frames", "gather", "write")
        rows.append([f"{size[0]}x{size[1]}", *(number(found[name].seconds) for name in names)])
    head = ["", "decode", "resize and plan", "I-frames", "P-frames", "gather (driver)", "write (driver)"]
    return table(head, rows)


def gpu_table() -> str:
    """What a GPU does under several assumptions, and the cores that it takes to feed it."""
    record = read("scale")
    rates = rates_of(record)
    rows = []
    for name in ("ViT-B/32", "ViT-L/14"):
        model = skeleton(name)
        for machine in (SMALL_GPU, LARGE_GPU):
            for share in ACHIEVED:
                own = dataclasses.replace(machine, gpu_achieved=share)
                work = workload(name, record)
                stages = predict(work, own, rates, machines=1).stages
                busy = sum(stage.seconds for stage in stages if stage.resource == "gpus")
                dense = Workload.of(DenseEncoder(model), hours=1)
                rows.append([
                    name, f"{machine.gpu_tflops:g}", f"{share:.0%}",
                    number(own.gpu_tflops * 1e12 * share / 2 / dense.i_macs),
                    number(3600 / busy), number(cores_per_gpu(work, own, rates)),
                ])  # fmt: skip
    head = ["model", "peak TFLOP/s", "achieved", "I-frames/s", "times real time", "cores to decode 720p for it"]
    return table(head, rows)


def chaos_table() -> str:
    record = read("scale_chaos")
    kills, seconds = record["kills"], record["seconds_per_trial"]
    kinds = [f"{kills[kind]} of a {kind}" for kind in ("worker", "child", "node", "driver")]
    rows = [
        ["kills", f"{kills['all']}: {', '.join(kinds)}"],
        ["trials", f"{record['trials']}, of {record['settings']['videos']} videos each, a long one among them"],
        ["time of a trial", f"median {seconds['median']:.0f} s, longest {seconds['most']:.0f} s"],
        *([what, str(record[what])] for what in ("lost", "doubled", "wrong")),
    ]
    return table(["", ""], rows)


RENDERERS = {
    "scale_stages": stages_table,
    "scale_pipeline": pipeline_table,
    "scale_machines": machines_table,
    "scale_hours": hours_table,
    "scale_gpu": gpu_table,
    "scale_chaos": chaos_table,
}
