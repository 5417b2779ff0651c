"""Fit the bundled model's residual tokenizer on the synthetic world, as a user would on videos of their own.

    python scripts/train_bundled_tokenizer.py --work work/tokenizer --out src/everyframe/assets/bundled

Renders videos of combinations that the bundled model's training showed (other videos than its own), writes a table of
captioned segments, and calls `everyframe.training.distill`. Everything is seeded; a killed run goes on with the
same command. --loss, --layers and --seed make the others that docs/ablation.md compares.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import torch

import everyframe as ef
from everyframe.encoders.tokenizer import PUBLISHED_FILE, TOKENIZER_FILE
from everyframe.synthetic import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, Entity, synthesize
from everyframe.training import distill, open_clips

FIRST_SEED = 2000  # times 1000: held-out videos use seeds below 1,000,000, the bundled model's training those above
SECONDS, SEGMENT = 60.0, 4.0


def render(folder: Path, videos: int, workers: int) -> Path:
    """Render the training videos once and the table of their captioned segments; returns the table."""
    table = folder / "captions.csv"
    if table.exists():
        return table
    rows = []
    for world in synthesize(
        folder,
        videos=videos,
        seconds=SECONDS,
        seed=FIRST_SEED,
        fps=6.0,
        size=(192, 144),
        combinations="seen",
        workers=workers,
    ):
        for start in range(0, int(SECONDS), int(SEGMENT)):
            middle = start + SEGMENT / 2
            rows.append([f"{world.name}.mp4", world.caption(middle), start, start + SEGMENT])
        if len(rows) % 1500 == 0:
            print(f"rendered {len(rows) * SEGMENT / SECONDS:.0f} of {videos} videos", flush=True)
    with table.with_suffix(".tmp").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["video", "caption", "start", "end"], *rows])
    table.with_suffix(".tmp").replace(table)
    return table


def world_prompts(file: Path, count: int = 2000) -> Path:
    """A bank for --loss prompts: what can be said of this world, drawn without looking at the training videos."""
    rng = np.random.default_rng(5)

    def thing() -> Entity:
        while True:
            words = (rng.choice(list(each)) for each in (COLOURS, PATTERNS, SHAPES, SIZES))
            entity = Entity(*(str(word) for word in words))
            if not entity.is_held_out:  # the evaluation is made of those
                return entity

    texts: dict[str, None] = {}
    while len(texts) < count:
        things = [thing() for _ in range(rng.integers(0, 4))]
        background = str(rng.choice(BACKGROUNDS))
        said = " and ".join(each.caption(size=bool(rng.random() < 0.5)) for each in things)
        texts[f"{said} over {background}" if said else background] = None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/tokenizer"), help="videos and runs")
    parser.add_argument("--out", type=Path, help="model folder to put the tokenizer into; without, only --work")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--videos", type=int, default=400)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--loss", default="prompts")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--drop", type=float, default=0.85)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=Path, help="texts for --loss prompts; default: about this world")
    parser.add_argument("--name", help="of the run's folder in --work; default from loss, layers, drop and seed")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--threads", type=int, default=1, help="threads that train")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    videos = options.work / "videos"
    table = render(videos, options.videos, options.workers)
    prompts = options.prompts
    if options.loss == "prompts" and prompts is None:
        prompts = world_prompts(options.work / "prompts.txt")
    run = options.work / (options.name or f"{options.loss}-{options.layers}-{options.drop:g}-{options.seed}")
    result = distill(
        ef.load(options.model, device="cpu"),
        open_clips(videos, table),
        run,
        prompts=prompts,
        loss=options.loss,
        layers=options.layers,
        drop=options.drop,
        rate=options.rate,
        batch=options.batch,
        steps=options.steps,
        seed=options.seed,
        say=lambda text: print(text, flush=True),
    )
    print(json.dumps(result.metrics))
    if options.out is not None:
        shutil.copyfile(run / PUBLISHED_FILE, options.out / TOKENIZER_FILE)
        print(f"tokenizer: {options.out / TOKENIZER_FILE}")


if __name__ == "__main__":
    main()
