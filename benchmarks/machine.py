"""What a benchmark says of the machine it ran on (processor, instructions, cores, threads, versions), and where."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from everyframe import cpu

RESULTS = Path(__file__).parent / "results"
FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm"),
)
"""Instructions that decide how fast a product of matrices is; others are not reported."""


def machine() -> dict[str, Any]:
    """Facts for a record. Threads are those that torch uses in this process."""
    import av
    import torch

    known = _cpuinfo()
    flags = known.get("flags", known.get("Features", "")).split()
    return {
        "processor": known.get("model name", platform.processor() or platform.machine()),
        "family": known.get("cpu family", ""),
        "flags": [flag for flag in FLAGS if flag in flags],
        **cpu.facts(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": av.__version__,
    }


def save(record: dict[str, Any], out: Path | None, *, quick: bool) -> None:
    """Write a record to `out`; by default to benchmarks/results by its own name, unless it is of a quick run."""
    file = out or (None if quick else RESULTS / f"{record['benchmark']}.json")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n")


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
