"""Collect what the runs of scripts/train_bundled_tokenizer.py reached, from their logs.

    python benchmarks/token_training.py [--work work/tokenizer] [--out benchmarks/results/tokenizers.json]

Each folder with a tokenizer.json is a run; its log.csv holds the held-out fidelity of P-frames while it trained.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/tokenizer"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tokenizers.json")
    options = parser.parse_args()
    runs = []
    for file in sorted(options.work.glob("*/tokenizer.json")):
        facts = json.loads(file.read_text(encoding="utf-8"))
        with (file.parent / "log.csv").open(newline="", encoding="utf-8") as stream:
            log = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
        names = ("step", "with", "with_p5", "without", "without_p5", "copy", "interpolate")
        curve = [{name: line[name] for name in names} for line in log]
        kept = {name: facts[name] for name in ("loss", "layers", "rate", "batch", "steps", "drop", "seed", "data")}
        runs.append({**kept, "curve": curve})
        last = curve[-1]
        print(
            f"{file.parent.name}: loss {facts['loss']}, {facts['layers']} layers, rate {facts['rate']:g}, "
            f"{facts['steps']} steps: {last['with']:.4f} (5th percentile {last['with_p5']:.3f}), "
            f"without {last['without']:.4f}"
        )
    options.out.write_text(json.dumps({"benchmark": "tokenizers", "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
