"""What the benchmarks compare and what they are to reach, for those that measure and those that write it down."""

from __future__ import annotations

from typing import Any

VARIANTS = {
    "a": "PyAV + transformers, float32",
    "b": "PyAV + transformers, bfloat16",
    "c": "everyframe dense, bfloat16",
    "d": "everyframe ResidualViT N=2, bfloat16",
    "e": "everyframe ReuseEncoder N=5, bfloat16",
    "f": "everyframe dense, int8",
    "g": "everyframe ResidualViT N=2, int8",
}
"""Of encode.py."""
SPEED_AIMS = {("d", "c"): 2.2, ("d", "a"): 4.5, ("d", "b"): 2.3, ("e", "c"): 3.0, ("f", "c"): 1.5}
"""How many times as fast the first is to be as the second, with ViT-B/16."""
WAYS = {
    "loop": ("PyAV + transformers loop", "float32"),
    "loop16": ("PyAV + transformers loop", "bfloat16"),
    "whole": ("the way of clip-video-encode", "float32"),
    "reencode": ("the way of video_features", "float32"),
    "dense": ("everyframe dense", "float32"),
    "dense16": ("everyframe dense", "bfloat16"),
    "residual": ("everyframe ResidualViT N=2", "bfloat16"),
}
"""Of compare_peers.py: how they are called, and the dtype of their model."""
START_AIMS = {"everyframe --help": 0.3, "first feature": 2.0}
"""Of startup.py, in seconds."""


def bound(result: dict[str, Any]) -> float:
    """Seconds that no overlap can beat: the longer stage, or the processor time of both shared among the cores.

    result: one of parallel_files.py.
    """
    stages = result["stages"]
    both = stages["read_cpu_seconds"] + stages["model_cpu_seconds"]
    cores = min(result["cores"], result["quota"] or result["cores"])
    return max(stages["read_seconds"], stages["model_seconds"], both / cores)
