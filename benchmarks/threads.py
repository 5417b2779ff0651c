"""Threads beside another busy process: how fast is a model with one thread per core, and with fewer?

    python benchmarks/threads.py [--rounds 5] [--out benchmarks/results/threads.json]

ViT-B/32 with random weights in bfloat16, and the bundled model, whose layers are small, encode batches of 16 frames,
alone and while another process of the same priority keeps one core busy. Every way is a process of its own, and they
take turns:

    one        one thread
    all        a thread per core, what torch does
    passive    the same with OMP_WAIT_POLICY=passive: threads that wait for others sleep instead of spinning
    brief      the same with GOMP_SPINCOUNT=10000: they spin for a tenth of a millisecond or so, then sleep

It needs at least two cores to itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from everyframe import cpu
from machine import machine
from turns import Player, serve

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = {"one": {}, "all": {}, "passive": {"OMP_WAIT_POLICY": "passive"}, "brief": {"GOMP_SPINCOUNT": "10000"}}
FRAMES, SECONDS = 16, 2.0


def way(name: str, model: str) -> None:
    """In a process of its own: measure whenever asked."""
    import torch

    import everyframe as ef

    cpu.use_threads(1 if name == "one" else None)
    encoder = ef.DenseEncoder(
        ef.load(model, device="cpu", dtype="float32" if model == "bundled" else "bfloat16"), batch_size=FRAMES
    )
    size = encoder.model.image_size
    pixels = torch.randn(FRAMES, 3, size, size, generator=torch.Generator().manual_seed(0))
    encoder.encode(pixels)

    def turn() -> dict[str, Any]:
        count, clock = 0, time.perf_counter()
        while time.perf_counter() - clock < SECONDS:
            encoder.encode(pixels)
            count += FRAMES
        return {"frames_per_second": count / (time.perf_counter() - clock), "threads": torch.get_num_threads()}

    serve(turn)


@contextmanager
def busy(core: int) -> Iterator[None]:
    """A process that keeps one core busy."""
    code = f"import os\nif hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        time.sleep(0.3)
        try:
            yield
        finally:
            process.kill()


def measure(rounds: int, model: str) -> dict[str, Any]:
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    speeds: dict[str, dict[str, list[float]]] = {place: {name: [] for name in WAYS} for place in ("alone", "beside")}
    threads: dict[str, int] = {}
    load = cpu.OtherLoad()
    with ExitStack() as stack:
        players = []
        for name, variables in WAYS.items():
            environment = [f"{key}={value}" for key, value in variables.items()]
            command = ["env", *environment, sys.executable, __file__, "--way", name, "--model", model]
            players.append(stack.enter_context(Player(name, command)))
        for _ in range(rounds):
            for place, found in speeds.items():
                with busy(core) if place == "beside" else ExitStack():
                    for player in players:
                        result = player.turn()
                        found[player.name].append(result["frames_per_second"])
                        threads[player.name] = result["threads"]
    # Players are waited for and count as ours; the busy process does too, so this is the load of all others.
    return {"threads": threads, "frames_per_second": speeds, **cpu.facts(load)}


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for model, result in record["models"].items():
        for place, found in result["frames_per_second"].items():
            for name, speeds in found.items():
                ratio = statistics.median(own / one for own, one in zip(speeds, found["one"], strict=True))
                speed = statistics.median(speeds)
                lines.append(f"{model}, {place}, {name}: {speed:.1f} frames/s, {ratio:.2f}x one thread")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "threads.json")
    for name in ("--way", "--model"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        way(options.way, options.model)
        return
    if cpu.count() < 2:
        parser.error("this needs two cores")
    from encode import make_model

    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), patch_size=32, text=False)
        models = {"ViT-B/32": measure(options.rounds, folder), "bundled": measure(options.rounds, "bundled")}
    record = {"machine": machine(), "rounds": options.rounds, "models": models}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(summary(record)))


if __name__ == "__main__":
    main()
