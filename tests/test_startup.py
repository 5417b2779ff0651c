"""What a command loads, by the names of modules: the time until something happens is made of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import everyframe as ef
from everyframe.video import write_video

HEAVY = {"torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "av", "numpy", "everyframe.pipeline"}
DEFERRED = {
    "transformers",
    "huggingface_hub",
    "tokenizers",
    "matplotlib",
    "h5py",
    "pyarrow",
    "lancedb",
    "ray",
    "fsspec",
    "torch._dynamo",
    "torch._inductor",
    "everyframe.training",
    "everyframe.evaluation",
    "everyframe.audit",
    "everyframe.scale",
    "everyframe.library",
    "everyframe.serve",
    "everyframe.synthetic",
    "everyframe.demo",
}


def loaded(arguments: list[object], watched: set[str], tmp_path: Path) -> list[str]:
    """Those of the modules that `everyframe ARGUMENTS`, in a process of its own, has loaded when it ends."""
    code = (
        "import sys\n"
        f"sys.argv = {['everyframe', *map(str, arguments)]!r}\n"
        "from everyframe.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('\\n' + repr(sorted(set({sorted(watched)!r}) & set(sys.modules))))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    return ast.literal_eval(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(file, rng.integers(0, 255, (10, 48, 64, 3), dtype=np.uint8), fps=5)
    return file


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["encode", "--help"], ["flops", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[object], tmp_path: Path) -> None:
    assert loaded(arguments, HEAVY, tmp_path) == []


def test_the_first_feature_loads_no_more_than_it_needs(clip: Path, tmp_path: Path) -> None:
    """The default encoder with the bundled model, from a file to a feature file."""
    command = ["encode", clip, "--model", "bundled", "--device", "cpu", "--out", tmp_path / "features", "-q"]
    assert loaded(command, DEFERRED | {"torch", "av"}, tmp_path) == ["av", "torch"]
    assert ef.VideoFeatures.load(tmp_path / "features" / "clip.npz").num_frames > 0


def test_info_of_a_video_loads_no_torch(clip: Path, tmp_path: Path) -> None:
    assert loaded(["info", clip], DEFERRED | {"torch", "av"}, tmp_path) == ["av"]
