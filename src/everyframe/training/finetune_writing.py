"""What fine-tuning leaves in its folder: the encoder, its facts and a card."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from everyframe.training.adapters import Tuning
from everyframe.training.card import CARD
from everyframe.training.export import save_tempme
from everyframe.training.finetune_recipe import FinetuneRecipe
from everyframe.training.finetune_validation import Scores
from everyframe.version import package_version


def write_encoder(
    folder: Path,
    tuning: Tuning,
    positions: dict[int, Tensor],
    recipe: FinetuneRecipe,
    scores: Scores,
    *,
    best_step: int,
    data: dict[str, Any],
) -> None:
    """Merge, and write the checkpoint, tempme.json and README.md."""
    model = tuning.model
    name = model.name if not os.path.exists(model.name) else Path(model.name).resolve().name
    facts = {
        "model": name,
        "weights_sha256": model.weights_sha256,
        "fitted": fitted(tuning, positions),
        "recipe": {key: value for key, value in recipe.identity().items() if key != "schedule"},
        "best_step": best_step,
        "validation": {"r_sum": round(scores.r_sum, 3)} | {key: round(v, 3) for key, v in asdict(scores).items()},
        "data": data,
        "everyframe": package_version(),
    }
    save_tempme(folder, tuning, positions, recipe.schedule, facts)
    (folder / CARD).write_text(card(facts | {"schedule": recipe.schedule, "tune": tuning.how}), encoding="utf-8")


def fitted(tuning: Tuning, positions: dict[int, Tensor]) -> dict[str, int]:
    """How many numbers were fitted, by kind."""
    return {tuning.how: tuning.count(), "positions": sum(tensor.numel() for tensor in positions.values())}


def _unpublished(recipe: dict[str, Any]) -> list[str]:
    """A line on what the paper's recipe does not have, where it was used."""
    used = []
    if recipe["together"]:
        used.append("pairs that make a couple meet in one batch (`--together`)")
    if recipe["positions_rate"] is not None:
        used.append(
            f"clip positions have a learning rate of their own, {recipe['positions_rate']:g} (`--positions-rate`)"
        )
    return [f"Not in the paper's recipe: {'; '.join(used)}."] if used else []


def card(facts: dict[str, Any]) -> str:
    """README.md in the hub's format: what it is, how it was made, what it reaches."""
    scores, recipe, data, schedule = facts["validation"], facts["recipe"], facts["data"], facts["schedule"]
    hub_id = facts["model"] if facts["model"].count("/") == 1 else None
    head = ["---", "library_name: everyframe", "tags: [tempme, clip, video-text-retrieval]"]
    head += [f"base_model: {hub_id}"] if hub_id else []
    merging = ", ".join(f"{name}={value}" for name, value in schedule.items())
    how = ", ".join(f"{count:,} of {name}" for name, count in facts["fitted"].items())
    plain = facts["tune"] in ("lora", "full")
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {facts['model']} fine-tuned for text-video retrieval with TempMe",
            "",
            f"Reads {recipe['frames']} frames of a video and merges their tokens ({merging}).",
            "",
            "```python",
            "from everyframe.training import load_tempme",
            "",
            'encoder = load_tempme("path/to/this/folder")',
            f"encoder.encode(pixels)  # [V, {recipe['frames']}, 3, S, S] -> [V, dim]",
            'encoder.model.encode_text(["someone opens a door"])',
            "```",
            "",
            "The weights are those of an ordinary CLIP model, which `everyframe.load` and transformers read too."
            if plain
            else f"It holds what was added to {facts['model']} (SHA-256 `{facts['weights_sha256']}`), which it needs.",
            "",
            "## Training",
            "",
            f"Fitted: {how}. {recipe['epochs']} epochs of {recipe['steps_per_epoch']} steps of {recipe['batch']} "
            f"pairs, AdamW at {recipe['rate']:g} (warm-up {recipe['warm_up']:g}, half-cosine), weight decay "
            f"{recipe['weight_decay']:g}, gradient norm {recipe['clip']:g}, {recipe['precision']}, seed "
            f"{recipe['seed']}.",
            *_unpublished(recipe),
            f"Data: {data['captions']} captions of {data['videos']} videos (fingerprint `{data['fingerprint']}`); "
            f"best of all validations at step {facts['best_step']}.",
            "",
            f"## Validation, {data['validation_captions']} captions of {data['validation_videos']} videos",
            "",
            "| | R@1 | R@5 | R@10 | mean rank |",
            "| --- | --- | --- | --- | --- |",
            f"| text to video | {scores['r1']:.1f} | {scores['r5']:.1f} | {scores['r10']:.1f} | "
            f"{scores['mean_rank']:.1f} |",
            f"| video to text | {scores['v2t_r1']:.1f} | {scores['v2t_r5']:.1f} | {scores['v2t_r10']:.1f} | "
            f"{scores['v2t_mean_rank']:.1f} |",
            "",
            "The best step was chosen by these numbers, so they flatter; a test set says what the model is worth.",
            "",
        ]
    )
