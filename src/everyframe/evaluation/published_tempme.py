"""What the TempMe paper reports of retrieval, to print beside what is measured here. Nothing here is a claim of ours.

CLIP models fine-tuned on each dataset, the dual encoder alone. Text to video: Tables 2 and 3; video to text: Tables 11
and 12; R-Sum of ActivityNet, and LoRA and ToMe with ViT-B/16: Table 1 (R@1 and R-Sum alone). GFLOPs: Table 1, by number
of frames; its column for 64 frames contradicts itself (docs/tempme.md). The paper's "LoRA" is the mean over frames.

Source: Shen et al., "TempMe: Video Temporal Token Merging for Efficient Text-Video Retrieval" (ICLR 2025).
"""

from __future__ import annotations

from typing import Any

from everyframe.encoders import TempMe

METHODS = ("mean", "tome", "tempme")
"""The tables' rows LoRA, ToMe and TempMe."""
FROM = "published: TempMe (ICLR 2025), {}; CLIP fine-tuned with LoRA on this dataset"
_FRAMES = {"msrvtt": 12, "lsmdc": 12, "activitynet": 64, "didemo": 64}

# LoRA, ToMe, TempMe
_RETRIEVAL = """
clip-b32 | msrvtt      | GFLOPs    | 53.0 40.2 34.8
clip-b32 | msrvtt      | T2V R@1   | 43.7 42.9 46.1
clip-b32 | msrvtt      | T2V R@5   | 68.9 68.3 71.8
clip-b32 | msrvtt      | T2V R@10  | 80.4 80.2 80.7
clip-b32 | msrvtt      | T2V R-Sum | 193.0 191.4 198.6
clip-b32 | msrvtt      | T2V MnR   | 16.0 16.2 14.8
clip-b32 | msrvtt      | V2T R@1   | 43.0 42.5 45.6
clip-b32 | msrvtt      | V2T R@5   | 70.2 69.1 72.4
clip-b32 | msrvtt      | V2T R@10  | 82.2 80.6 81.2
clip-b32 | msrvtt      | V2T R-Sum | 195.4 192.2 199.2
clip-b32 | msrvtt      | V2T MnR   | 12.0 12.5 10.2
clip-b32 | activitynet | GFLOPs    | 276.7 208.5 180.3
clip-b32 | activitynet | T2V R@1   | 38.7 38.6 44.9
clip-b32 | activitynet | T2V R@5   | 70.6 69.8 75.2
clip-b32 | activitynet | T2V R@10  | 82.2 81.2 85.5
clip-b32 | activitynet | T2V R-Sum | 191.5 189.6 205.6
clip-b32 | activitynet | T2V MnR   | 8.7 9.1 6.8
clip-b32 | activitynet | V2T R@1   | 40.0 39.7 45.3
clip-b32 | activitynet | V2T R@5   | 71.4 70.2 74.7
clip-b32 | activitynet | V2T R@10  | 82.9 82.4 86.2
clip-b32 | activitynet | V2T MnR   | 7.9 8.3 6.4
clip-b32 | didemo      | GFLOPs    | 276.7 208.5 180.3
clip-b32 | didemo      | T2V R@1   | 41.6 40.5 48.0
clip-b32 | didemo      | T2V R@5   | 68.8 68.6 72.4
clip-b32 | didemo      | T2V R@10  | 78.6 77.8 81.8
clip-b32 | didemo      | T2V MnR   | 20.8 20.9 13.7
clip-b32 | didemo      | V2T R@1   | 41.2 40.1 48.4
clip-b32 | didemo      | V2T R@5   | 69.0 68.5 75.4
clip-b32 | didemo      | V2T R@10  | 79.2 78.9 83.6
clip-b32 | didemo      | V2T MnR   | 12.5 12.9 9.1
clip-b32 | lsmdc       | GFLOPs    | 53.0 40.2 34.8
clip-b32 | lsmdc       | T2V R@1   | 20.7 20.5 23.5
clip-b32 | lsmdc       | T2V R@5   | 39.5 38.8 41.7
clip-b32 | lsmdc       | T2V R@10  | 47.4 46.8 51.8
clip-b32 | lsmdc       | T2V MnR   | 68.3 67.8 53.5
clip-b32 | lsmdc       | V2T R@1   | 20.4 20.2 22.2
clip-b32 | lsmdc       | V2T R@5   | 37.3 37.4 41.5
clip-b32 | lsmdc       | V2T R@10  | 47.1 46.3 51.5
clip-b32 | lsmdc       | V2T MnR   | 59.7 60.2 48.0
clip-b16 | msrvtt      | GFLOPs    | 211.3 144.4 121.4
clip-b16 | msrvtt      | T2V R@1   | 47.3 46.2 49.0
clip-b16 | msrvtt      | T2V R@5   | - - 74.4
clip-b16 | msrvtt      | T2V R@10  | - - 83.3
clip-b16 | msrvtt      | T2V R-Sum | 201.4 200.6 206.7
clip-b16 | msrvtt      | T2V MnR   | - - 11.9
clip-b16 | msrvtt      | V2T R@1   | - - 47.6
clip-b16 | msrvtt      | V2T R@5   | - - 75.3
clip-b16 | msrvtt      | V2T R@10  | - - 85.4
clip-b16 | msrvtt      | V2T R-Sum | - - 208.3
clip-b16 | msrvtt      | V2T MnR   | - - 9.0
"""


def published_retrieval(architecture: str | None, dataset: str | None, method: str) -> dict[str, float]:
    """The paper's numbers by metric, and "GFLOPs"; empty where it has none.

    architecture: "clip-b32" or "clip-b16"; dataset: such as "msrvtt"; method: one of `METHODS`.
    """
    if method not in METHODS:
        return {}
    rows = ([part.strip() for part in line.split("|")] for line in _RETRIEVAL.strip().splitlines())
    figures = {
        metric: values.split()[METHODS.index(method)]
        for size, name, metric, values in rows
        if (size, name) == (architecture, dataset)
    }
    return {metric: float(figure) for metric, figure in figures.items() if figure != "-"}


def published_for(architecture: str | None, dataset: str | None, settings: dict[str, Any]) -> dict[str, float]:
    """The same for a run with these settings (`Outcome.settings`); empty unless frames and schedule are the paper's."""
    reader = settings.get("reader", {})
    found = published_retrieval(architecture, dataset, str(reader.get("encoder")))
    if not found or settings.get("frames") != _FRAMES[str(dataset)]:
        return {}
    schedule = TempMe.preset(f"{dataset}-{str(architecture).removeprefix('clip-')}")
    if reader["encoder"] == "mean":
        expected: dict[str, Any] = {"frame_features": "mean"}
    elif reader["encoder"] == "tome":
        expected = {"frame_features": "mean", "reduce": [schedule["r"]] * 12}
    else:
        clips = {str(block): count for block, count in schedule["clips"].items()}
        expected = {"frame_features": "joined", **schedule, "clips": clips}
    # Positions are learned: any, or none. Whatever else is set (another metric, no masses) is another method.
    same = {name: value for name, value in reader.items() if name not in ("encoder", "positions")} == expected
    return found if same else {}


def tables_of(architecture: str | None, dataset: str | None, method: str) -> str:
    """Where in the paper `published_retrieval` found its numbers."""
    if architecture == "clip-b16" and method != "tempme":
        return "Table 1"
    if dataset == "msrvtt":
        return "Tables 1, 2 and 11"
    return "Tables 1, 3 and 12"


def clip_architecture(model: Any) -> str | None:
    """ "clip-b32" or "clip-b16" for a CLIP of the published size, at 224 pixels; None for any other model."""
    config = model.vision.config
    if model.family != "clip" or (config.width, config.depth, config.image_size, model.dim) != (768, 12, 224, 512):
        return None
    return {32: "clip-b32", 16: "clip-b16"}.get(config.patch_size)
