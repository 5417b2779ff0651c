"""Bytes per video of features, and of recipes that give the same features back.

    python benchmarks/recipe.py [--videos 4] [--out benchmarks/results/recipe.json]

Synthetic videos of a minute, one of each of the four styles, the bundled model (128 numbers per feature; a CLIP has
512 or more, so that its features weigh more and plans about the same). Every recipe is restored and compared bit for
bit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import everyframe as ef
from everyframe.encoders import Encoder
from everyframe.pipeline import Recipe, encode_recipe, restore
from everyframe.synthetic import synthesize
from everyframe.version import package_version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recipe.json"))
    arguments = parser.parse_args()
    model = ef.load("bundled", device="cpu")
    encoders: dict[str, Encoder] = {
        "dense": ef.DenseEncoder(model),
        "ResidualViT N=2": ef.ResidualViT(model),
        "reuse N=5": ef.ReuseEncoder(model),
        "reuse adaptive": ef.ReuseEncoder(model, plan="adaptive"),
    }
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        list(synthesize(folder, videos=arguments.videos, seed=940))
        files = sorted(Path(folder).glob("*.mp4"))
        for name, encoder in encoders.items():
            sizes, exact = np.zeros(2), True
            for file in files:
                feats = ef.encode_video(file, encoder, dtype="float16")
                recipe = encode_recipe(file, encoder, dtype="float16")
                sizes += [feats.save(file.with_suffix(".npz")).stat().st_size,
                          recipe.save(file.with_suffix(".recipe.npz")).stat().st_size]  # fmt: skip
                again = restore(Recipe.load(file.with_suffix(".recipe.npz")), model)
                exact = exact and np.array_equal(again.embeddings, feats.embeddings)
            per_video = (sizes / len(files) / 1000).tolist()
            results.append({"encoder": name, "features_kb": per_video[0], "recipe_kb": per_video[1], "exact": exact})
            print(f"{name:16} {per_video[0]:6.1f} kB, recipe {per_video[1]:5.1f} kB, the same again: {exact}")
    record = {"version": package_version(), "videos": arguments.videos, "seconds": 60.0, "results": results}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
