"""How long until something happens, and how much is installed for it.

    python benchmarks/startup.py [--rounds 9] [--out benchmarks/results/startup.json]
    python benchmarks/startup.py --footprint       # also builds the wheel and installs it in a fresh environment

Each command runs in a process of its own, and the commands take turns; beside them a bare interpreter and one that
imports torch, which most commands need, so that every time can be read as a multiple of those. The files are in the
operating system's cache after the first round, which does not count: what a first start after boot takes from disk is
not measured. Bytecode is compiled in that round, too, as by any first start, into a folder of the benchmark's own.

The footprint is that of the wheel without extras: each distribution that pip brings, by the files that it lists. Memory
per hour of video comes from benchmarks/results/memory.json and memory_encode.json, see benchmarks/memory.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from everyframe import cpu
from machine import machine
from ways import START_AIMS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
BUNDLED = ["--model", "bundled", "--device", "cpu"]


def commands(work: Path, clip: Path, features: Path, round_number: int) -> dict[str, list[str]]:
    """What is timed, by name. Every round writes to a folder of its own, where nothing is done yet."""
    everyframe = [str(Path(sys.executable).with_name("everyframe"))]
    out = work / f"features-{round_number}"
    return {
        "python": [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import everyframe": [sys.executable, "-c", "import everyframe"],
        "everyframe --version": [*everyframe, "--version"],
        "everyframe --help": [*everyframe, "--help"],
        "everyframe info": [*everyframe, "info", str(clip)],
        "first feature": [*everyframe, "encode", str(clip), *BUNDLED, "--out", str(out)],
        "everyframe ground": [*everyframe, "ground", str(features), "a red circle"],
    }


def make_clip(path: Path) -> None:
    """4 s of 320x240 at 25 frames/s, H.264."""
    from everyframe.synthetic import SyntheticVideo

    SyntheticVideo(3, seconds=4, fps=25, size=(320, 240), style="pan").write(path)


def measure(rounds: int, work: Path) -> dict[str, Any]:
    clip, features = work / "clip.mp4", work / "features-0" / "clip.npz"
    make_clip(clip)
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(work / "bytecode"), "COLUMNS": "100"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    load = cpu.OtherLoad()
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first fills caches, and makes the features that `ground` reads
        for name, command in commands(work, clip, features, number).items():
            clock = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            if number:
                seconds.setdefault(name, []).append(time.perf_counter() - clock)
    return {"seconds": seconds, **cpu.facts(load)}


# --- footprint -------------------------------------------------------------------------------------------

_SIZES = """
import json
from importlib.metadata import distributions
found = {}
for each in distributions():
    files = [each.locate_file(file) for file in each.files or ()]
    found[each.name] = {"version": each.version, "bytes": sum(f.stat().st_size for f in set(files) if f.is_file())}
print(json.dumps(found))
"""


def footprint(work: Path) -> dict[str, Any]:
    """Bytes of the wheel, and of every distribution in an environment that has nothing but it and what it needs."""
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(work), str(source)], check=True)
    (wheel,) = work.glob("everyframe-*.whl")
    python = work / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(work / "venv")], check=True)
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "--python", str(python), "install", "--no-compile", *pins, str(wheel)], check=True)
    run = subprocess.run([str(python), "-c", _SIZES], check=True, capture_output=True, text=True)
    return {"wheel_bytes": wheel.stat().st_size, "distributions": json.loads(run.stdout)}


# --- the record ------------------------------------------------------------------------------------------


def summary(record: dict[str, Any]) -> list[str]:
    """In words; scripts/render_startup.py makes the tables of the docs."""
    torch = statistics.median(record["seconds"]["import torch"])
    lines = []
    for name, seconds in record["seconds"].items():
        median = statistics.median(seconds)
        aim = f" (aim {START_AIMS[name]} s)" if name in START_AIMS else ""
        lines.append(f"{name}: {median:.3f} s, {median / torch:.2f}x import torch{aim}")
    if "footprint" in record:
        sizes = {name: each["bytes"] for name, each in record["footprint"]["distributions"].items()}
        lines.append(f"wheel: {record['footprint']['wheel_bytes'] / 2**20:.2f} MiB")
        lines.append(
            f"installed: {sum(sizes.values()) / 2**20:.0f} MiB, without torch "
            f"{sum(size for name, size in sizes.items() if name != 'torch') / 2**20:.0f} MiB"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--footprint", action="store_true", help="also measure sizes, which needs a package registry")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        record = {"machine": machine(), **measure(options.rounds, Path(folder))}
        sizes = footprint(Path(folder)) if options.footprint else known.get("footprint")
    if sizes is not None:
        record["footprint"] = sizes
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(summary(record)))


if __name__ == "__main__":
    main()
