"""The model card that goes with a residual tokenizer."""

from __future__ import annotations

from typing import Any

FACTS, CARD = "tokenizer.json", "README.md"


def model_card(facts: dict[str, Any], repository: str | None = None) -> str:
    """README.md in the hub's format, from `ResidualTokenizer.facts`: what it is, how it was made, what it reaches.

    repository: where on the hub it lies, "owner/name", for the code that loads it.
    """
    source = repository or "path/to/this/folder"
    scores, data = facts["fidelity_of_p_frames"], facts["data"]
    hub_id = facts["model"] if facts["model"].count("/") == 1 else None
    head = ["---", "library_name: everyframe", "tags: [residualvit, video, feature-extraction]"]
    head += [f"base_model: {hub_id}"] if hub_id else []
    rows = [
        ("P-features with this token", "with"),
        ("without a token", "without"),
        ("copy of the I-feature", "copy"),
        ("interpolation of two I-features", "interpolate"),
    ]
    table = [f"| {label} | {scores[name]:.4f} | {scores[f'{name}_p5']:.4f} |" for label, name in rows]
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# Residual tokenizer for {facts['model']}",
            "",
            "Makes the residual token of ResidualViT (Soldan et al.) from the feature of the last I-frame, so that the",
            f"frames between need only {100 * (1 - facts['drop']):.0f} % of their patches. Fitted with everyframe.",
            "",
            "```python",
            "import everyframe as ef",
            "",
            f'model = ef.load("{facts["model"]}")',
            f"encoder = ef.ResidualViT(model, interleave={facts['interleave']}, drop={facts['drop']:g}, "
            f'select="{facts["select"]}", residual="{source}")',
            "```",
            "",
            f"It belongs to the weights with SHA-256 `{facts['weights_sha256']}` and is refused by any other.",
            "",
            "## Training",
            "",
            f"Loss `{facts['loss']}`, {facts['steps']} steps of {facts['batch']} clips of {data['frames_per_clip']} "
            f"frames, random patches, AdamW at {facts['rate']:g}, {facts['layers']} layer(s), seed {facts['seed']}.",
            f"Data: {data['clips']} clips of {data['videos']} videos (fingerprint `{data['fingerprint']}`).",
            "",
            "## Held-out fidelity",
            "",
            f"Cosine of P-features to the full features of the same frames, on {data['held_out_windows']} windows that",
            f"were not trained on, at {facts['fps']:g} frames per second, N = {facts['interleave']}, patches chosen by "
            f"{facts['select']}:",
            "",
            "| | mean | 5th percentile |",
            "| --- | --- | --- |",
            *table,
            "",
            "It says nothing about footage unlike that data: `everyframe audit` measures it on yours.",
            "",
        ]
    )
