"""Does TempMe learn what needs several frames? Captions of order and change, fine-tuned from the bundled model.

    python benchmarks/sequences.py [--train 1024] [--test 112] [--epochs 12] [--frames 8] [--work DIR] [--out FILE]

Every test video has a partner with the same frames in reverse order and the opposite caption ("... moves left", "...
moves right"), so a mean over frames cannot choose between the two: 50 % of pairs are right, and R@1 is at most 50. The
rows are those of the paper's Tables 8 and 9; all are fitted alike, each in one process on one core:

    mean pooling         LoRA; frames read one by one, their features averaged (CLIP4Clip)
    + ImgMe              tokens of a frame merge
    + ClipMe (TempMe)    ... and clips are joined, with clip positions, so that attention sees several frames
    temporal modelling   clips are joined, nothing merges
    token reduction      as TempMe, but clips are not joined

The bundled model reads 112 pixels; here it reads 64, its positions interpolated, so that a row takes minutes. A few
hundred steps in place of the paper's 7,030 need two things that the paper does not have: partners in one batch (a batch
drawn at random seldom holds two videos that differ in order alone, so nothing asks for it), and clip positions that
learn `--positions-rate` times as fast as LoRA (they start from zero, and until they have grown there is no order to
learn from).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import everyframe as ef
from everyframe.backbone import Model
from everyframe.backbone.hub import find_folder
from everyframe.backbone.vit import resize_positions
from everyframe.encoders import TempMe
from everyframe.evaluation.clips import Sampling
from everyframe.evaluation.frame_reader import FramedModel
from everyframe.synthetic import synthesize_sequences
from everyframe.tasks.ranking import retrieval
from everyframe.version import package_version

RESULTS = Path(__file__).parent / "results" / "sequences.json"
SIZE = 64
VALIDATION = 64
BATCH, RATE = 32, 5e-3
MERGING = {"r": 4, "remove_cross": 30, "remove_intra": 10}
NOTHING = {"r": 0, "remove_cross": 0, "remove_intra": 0}
SCHEDULES = {8: {1: 2, 2: 2, 3: 2}, 12: {1: 2, 2: 2, 3: 3}}


def variants(frames: int) -> dict[str, dict[str, Any]]:
    """Arguments of `TempMe` by the name of the row."""
    clips = SCHEDULES[frames]
    return {
        "mean pooling": {**NOTHING, "clips": {}},
        "+ ImgMe": {**MERGING, "clips": {}},
        "+ ClipMe (TempMe)": {**MERGING, "clips": clips},
        "temporal modelling": {**NOTHING, "clips": clips},
        "token reduction": {**MERGING, "clips": clips, "temporal": False},
    }


def small_model(folder: Path) -> Path:
    """The bundled model for pictures of SIZE pixels, its positions interpolated."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in find_folder("bundled").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = "vision_model.embeddings.position_embedding.weight"
    of_class, of_patches = tensors[name][:1], tensors[name][1:]
    tensors[name] = torch.cat((of_class, resize_positions(of_patches, SIZE // 8)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = SIZE
    (folder / "config.json").write_text(json.dumps(config))
    preprocessing = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessing |= {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def fit(model: Model, entries: list[dict[str, str]], videos: Path, out: Path, **options: Any) -> dict[str, Any]:
    """`everyframe.training.finetune` on pairs that stay together; returns what `FineTuned` says."""
    from everyframe.training import finetune

    pairs = [(videos / entry["video"], entry["caption"]) for entry in entries]
    result = finetune(
        model,
        pairs[:-VALIDATION],
        out,
        validation=pairs[-VALIDATION:],
        say=_say,
        together=True,
        **options,
    )
    return {"fitted": result.fitted, "validation": result.metrics}


def _say(text: str) -> None:
    print(text, flush=True)


def measure(encoder: TempMe, pixels: torch.Tensor, entries: list[dict[str, str]], frames: int) -> dict[str, Any]:
    """Recalls on the test split, and how often a caption is nearer to its video than to the partner."""
    texts = FramedModel(encoder.model, frames).encode_text([entry["caption"] for entry in entries], max_tokens=32)
    similarity = (texts @ encoder.encode(pixels).T).numpy()
    # What differs by rounding alone is a tie: the mean of the same frames in another order.
    similarity = similarity.round(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ties are the point
        found = retrieval(similarity, similarity.T, [[number] for number in range(len(entries))])
    numbers = {entry["video"]: number for number, entry in enumerate(entries)}
    partner = np.array([numbers[entry["partner"]] for entry in entries])
    own = similarity.diagonal()
    other = similarity[np.arange(len(entries)), partner]
    right = (own > other) + 0.5 * (own == other)
    kinds = np.array([entry["change"] for entry in entries])
    return {
        "t2v_r1": found.t2v.r1,
        "v2t_r1": found.v2t.r1,
        "t2v_r_sum": found.t2v.r_sum,
        "v2t_r_sum": found.v2t.r_sum,
        "pairs": 100 * float(right.mean()),
        "pairs_by_change": {kind: 100 * float(right[kinds == kind].mean()) for kind in dict.fromkeys(kinds.tolist())},
        "gflops_per_video": sum(encoder.macs(frames, "all").values()) / 1e9,
    }


def one(name: str, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row, fitted and measured."""
    torch.set_num_threads(1)
    model = ef.load(small_model(work / "model"), device="cpu")
    train, test = (json.loads((work / f"{split}.json").read_text()) for split in ("train", "test"))
    schedule = variants(arguments.frames)[name]
    framed, sampling = FramedModel(model, arguments.frames), Sampling(kind="seconds")
    pixels = torch.cat([sampling.clips(work / entry["video"], framed) for entry in test])
    before = measure(TempMe(model, **schedule), pixels, test, arguments.frames)
    started = time.monotonic()
    out = work / f"fit-{list(variants(arguments.frames)).index(name)}"
    joined = bool(schedule["clips"]) and schedule.get("temporal", True)
    facts = fit(
        model, train, work, out, schedule=schedule, frames=arguments.frames, batch=BATCH, micro_batch=BATCH,
        rate=arguments.rate, weight_decay=0.01, epochs=arguments.epochs, precision=arguments.precision,
        seed=arguments.seed, positions_rate=arguments.positions_rate * arguments.rate if joined else None,
        report_every=10**6,
    )  # fmt: skip
    seconds = time.monotonic() - started
    from everyframe.training import load_tempme

    after = measure(load_tempme(out, device="cpu"), pixels, test, arguments.frames)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"name": name, **after, "untrained": before, "seconds": seconds, "peak_gib": peak, **facts}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as in the paper, and the accuracy on pairs by kind of change."""
    lines = ["| | GFLOPs | text to video R@1 | R-Sum | video to text R@1 | pairs told apart | fitting, s |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    lines += [
        f"| {row['name']} | {row['gflops_per_video']:.3f} | {row['t2v_r1']:.1f} | {row['t2v_r_sum']:.1f} | "
        f"{row['v2t_r1']:.1f} | {row['pairs']:.1f} % | {row['seconds']:.0f} |"
        for row in rows
    ]
    kinds = list(rows[0]["pairs_by_change"])
    lines += ["", f"| pairs told apart, % | {' | '.join(kinds)} |", "| --- |" + " --- |" * len(kinds)]
    for row in rows:
        lines.append(f"| {row['name']} | " + " | ".join(f"{row['pairs_by_change'][kind]:.0f}" for kind in kinds) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1024, help="videos, of which the last 64 choose the weights")
    parser.add_argument("--test", type=int, default=112)
    parser.add_argument("--frames", type=int, default=8, choices=list(SCHEDULES))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--positions-rate", type=float, default=10.0)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", default="", help="names of rows, separated by semicolons (default: all)")
    parser.add_argument("--work", type=Path, help="where videos and fitted models are kept (default: nowhere)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        arguments.out.write_text(json.dumps(one(arguments.row, arguments.work, arguments)))
        return
    with tempfile.TemporaryDirectory() as nowhere:
        work = arguments.work or Path(nowhere)
        if not (work / "test.json").is_file():
            options = {"train": arguments.train, "test": arguments.test, "size": (88, SIZE)}
            for _ in synthesize_sequences(work, seed=arguments.seed, **options):
                pass
        names = arguments.rows.split(";") if arguments.rows else list(variants(arguments.frames))
        rows = []
        for name in names:
            part = arguments.out.with_suffix(".part")
            # A process of its own, so that time and memory are its own.
            command = [sys.executable, __file__, *sys.argv[1:], "--work", str(work), "--out", str(part), "--row", name]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            rows.append(json.loads(part.read_text()))
            record = {
                "rows": rows,
                "settings": {key: value for key, value in vars(arguments).items() if key not in ("work", "out", "row")},
                "batch": BATCH,
                "image_size": SIZE,
                "schedules": {name: {**each, "clips": {str(k): v for k, v in each["clips"].items()}}
                              for name, each in variants(arguments.frames).items()},
                "hardware": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "everyframe": package_version(),
            }  # fmt: skip
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
            arguments.out.with_suffix(".md").write_text(markdown(rows) + "\n")
            print(markdown(rows), flush=True)


if __name__ == "__main__":
    main()
