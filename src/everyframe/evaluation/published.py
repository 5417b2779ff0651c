"""What the vid-TLDR paper reports, to print beside what is measured here. Nothing here is a claim of ours.

Retrieval: T2V and V2T from Table B, their means as Table 2 prints them (some differ from the mean of Table B's by more
than rounding); all re-ranked by the cross-encoder. Question answering: Table 4. Recognition: Table 5. Base to novel:
Table 6. UMT models fine-tuned on each dataset, 12 frames. ToMe on DiDeMo is 241.4 GFLOPs (UMT-B) in Table 2 and 218.7
in Table B.

Source: Choi et al., "vid-TLDR: Training Free Token Merging for Light-weight Video Transformer" (CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everyframe.encoders.merging import PRESETS

METHODS = ("none", "tome", "vidtldr")
"""The tables' columns Base, ToMe and Ours."""

# UMT-B base, ToMe, vid-TLDR; UMT-L base, ToMe, vid-TLDR
_RETRIEVAL = """
msrvtt        | GFLOPs    | 303.3 231.4 178.0 984.6 529.7 563.1
msrvtt        | T2V R@1   | 51.0 46.6 50.9 58.8 55.6 58.1
msrvtt        | V2T R@1   | 49.0 47.4 50.7 58.6 56.0 58.7
msrvtt        | mean R@1  | 50.0 47.0 50.8 58.7 55.8 58.5
msrvtt        | T2V R@5   | 76.5 71.8 75.8 81.0 79.7 81.0
msrvtt        | V2T R@5   | 77.0 74.6 75.5 81.6 79.4 81.6
msrvtt        | mean R@5  | 76.8 73.2 75.7 81.3 79.6 81.3
msrvtt        | T2V R@10  | 84.2 80.9 83.9 87.1 85.3 86.8
msrvtt        | V2T R@10  | 84.7 83.2 83.9 86.5 86.8 86.9
msrvtt        | mean R@10 | 83.9 82.1 83.8 86.8 86.1 86.9
msvd          | GFLOPs    | 303.3 218.7 181.3 984.6 574.5 563.1
msvd          | T2V R@1   | 50.8 47.8 50.5 58.2 57.1 57.9
msvd          | V2T R@1   | 73.3 71.3 74.9 82.4 81.9 82.7
msvd          | mean R@1  | 62.1 59.6 62.7 70.3 69.5 70.4
msvd          | T2V R@5   | 79.7 78.2 79.7 83.9 83.6 83.8
msvd          | V2T R@5   | 88.8 89.4 90.0 94.6 93.9 94.5
msvd          | mean R@5  | 84.7 83.8 84.8 89.3 88.7 90.5
msvd          | T2V R@10  | 85.7 85.5 86.3 89.6 89.4 89.4
msvd          | V2T R@10  | 93.7 92.5 93.3 96.7 96.0 96.3
msvd          | mean R@10 | 90.0 89.0 89.8 93.2 92.7 94.0
activitynet   | GFLOPs    | 303.3 236.8 227.6 984.6 574.5 572.9
activitynet   | T2V R@1   | 58.3 51.9 57.8 66.8 63.3 66.7
activitynet   | V2T R@1   | 56.0 51.4 55.4 64.4 61.7 63.9
activitynet   | mean R@1  | 57.2 51.7 56.6 65.6 62.5 65.2
activitynet   | T2V R@5   | 83.9 80.8 83.7 89.1 87.3 88.6
activitynet   | V2T R@5   | 83.5 80.6 83.2 89.1 86.5 88.7
activitynet   | mean R@5  | 83.7 80.7 83.4 89.1 86.9 88.7
activitynet   | T2V R@10  | 91.5 89.4 91.5 94.9 93.6 94.4
activitynet   | V2T R@10  | 91.7 89.9 91.1 94.8 93.6 94.5
activitynet   | mean R@10 | 91.6 89.6 91.3 94.9 93.6 94.5
didemo        | GFLOPs    | 303.3 241.4 212.8 984.6 574.5 559.0
didemo        | T2V R@1   | 63.7 56.4 64.1 72.5 68.7 72.3
didemo        | V2T R@1   | 60.5 58.2 60.8 69.2 67.3 68.5
didemo        | mean R@1  | 62.1 57.3 62.4 70.8 68.0 70.4
didemo        | T2V R@5   | 87.8 82.3 87.2 91.2 89.5 91.2
didemo        | V2T R@5   | 85.7 82.8 85.1 89.9 89.2 89.8
didemo        | mean R@5  | 86.8 82.6 86.2 90.6 89.4 90.5
didemo        | T2V R@10  | 93.5 89.0 92.7 94.8 94.6 94.2
didemo        | V2T R@10  | 90.7 89.5 90.4 94.1 92.9 93.8
didemo        | mean R@10 | 92.1 89.3 91.6 94.5 93.8 94.0
lsmdc         | GFLOPs    | 303.3 223.2 206.2 984.6 574.5 583.7
lsmdc         | T2V R@1   | 32.7 25.6 32.9 43.0 39.7 43.1
lsmdc         | V2T R@1   | 32.7 29.0 31.8 41.4 38.7 40.7
lsmdc         | mean R@1  | 32.7 27.3 32.4 42.2 39.2 41.9
lsmdc         | T2V R@5   | 54.7 47.6 53.6 65.5 61.8 64.5
lsmdc         | V2T R@5   | 53.5 50.5 52.9 64.3 61.4 63.6
lsmdc         | mean R@5  | 54.1 49.1 53.3 64.9 61.6 64.1
lsmdc         | T2V R@10  | 63.4 57.6 63.3 73.0 61.8 71.4
lsmdc         | V2T R@10  | 63.2 57.0 63.1 71.5 67.9 70.2
lsmdc         | mean R@10 | 63.3 57.3 63.2 72.3 68.7 70.8
ssv2-label    | GFLOPs    | 303.3 232.2 212.9 984.6 627.2 610.9
ssv2-label    | T2V R@1   | 64.1 58.7 64.3 73.3 69.4 73.1
ssv2-label    | V2T R@1   | 63.8 61.7 63.3 71.5 70.3 71.1
ssv2-label    | mean R@1  | 64.0 60.2 63.8 72.4 69.9 72.1
ssv2-label    | T2V R@5   | 88.2 84.9 88.0 93.7 92.1 93.3
ssv2-label    | V2T R@5   | 88.3 87.2 87.4 93.1 92.3 92.7
ssv2-label    | mean R@5  | 88.3 86.1 87.7 93.4 92.2 93.0
ssv2-label    | T2V R@10  | 92.7 90.8 92.6 96.6 95.8 96.6
ssv2-label    | V2T R@10  | 93.2 92.4 92.9 96.7 95.8 96.4
ssv2-label    | mean R@10 | 92.9 91.6 92.7 96.7 95.8 96.5
ssv2-template | GFLOPs    | 303.3 241.4 203.7 984.6 627.2 572.9
ssv2-template | T2V R@1   | 87.9 85.1 87.4 90.8 88.5 90.2
ssv2-template | V2T R@1   | 61.3 59.5 60.6 66.1 65.5 66.0
ssv2-template | mean R@1  | 74.6 71.8 74.0 78.4 77.0 78.1
ssv2-template | T2V R@5   | 99.4 100.0 99.4 99.4 98.9 100.0
ssv2-template | V2T R@5   | 88.5 87.9 87.4 92.3 91.4 91.7
ssv2-template | mean R@5  | 93.9 93.9 93.4 95.9 95.1 95.8
ssv2-template | T2V R@10  | 100.0 100.0 100.0 100.0 100.0 100.0
ssv2-template | V2T R@10  | 93.7 93.1 92.6 95.6 95.5 95.8
ssv2-template | mean R@10 | 96.8 96.6 96.3 97.8 97.7 97.9
"""

# GFLOPs and what they buy; ToMe is not in Table 4.
_OTHER: dict[tuple[str, str, str], dict[str, float]] = {
    ("umt-b", "msrvtt-qa", "none"): {"GFLOPs": 303.3, "accuracy": 44.9},
    ("umt-b", "msrvtt-qa", "vidtldr"): {"GFLOPs": 188.5, "accuracy": 44.8},
    ("umt-l", "msrvtt-qa", "none"): {"GFLOPs": 984.6, "accuracy": 47.1},
    ("umt-l", "msrvtt-qa", "vidtldr"): {"GFLOPs": 569.8, "accuracy": 47.0},
    ("umt-b", "msvd-qa", "none"): {"GFLOPs": 303.3, "accuracy": 49.5},
    ("umt-b", "msvd-qa", "vidtldr"): {"GFLOPs": 188.5, "accuracy": 49.4},
    ("umt-l", "msvd-qa", "none"): {"GFLOPs": 984.6, "accuracy": 55.2},
    ("umt-l", "msvd-qa", "vidtldr"): {"GFLOPs": 569.8, "accuracy": 54.9},
    ("videomae-b", "ucf101-recognition", "none"): {"GFLOPs": 180.5, "top-1": 91.3},
    ("videomae-b", "ucf101-recognition", "tome"): {"GFLOPs": 58.4, "top-1": 75.7},
    ("videomae-b", "ucf101-recognition", "vidtldr"): {"GFLOPs": 56.1, "top-1": 90.1},
    ("videomae-b", "ssv2-recognition", "none"): {"GFLOPs": 180.5, "top-1": 70.8},
    ("videomae-b", "ssv2-recognition", "tome"): {"GFLOPs": 58.4, "top-1": 58.5},
    ("videomae-b", "ssv2-recognition", "vidtldr"): {"GFLOPs": 56.6, "top-1": 69.6},
    ("vifi-clip-b16", "ucf101-base-to-novel", "none"): {"GFLOPs": 563.0, "base": 92.9, "novel": 67.7, "HM": 78.3},
    ("vifi-clip-b16", "ucf101-base-to-novel", "tome"): {"GFLOPs": 279.0, "base": 72.0, "novel": 44.8, "HM": 55.3},
    ("vifi-clip-b16", "ucf101-base-to-novel", "vidtldr"): {"GFLOPs": 279.0, "base": 91.3, "novel": 63.2, "HM": 74.7},
}


def published(model: str | None, task: str | None, method: str) -> dict[str, float]:
    """The paper's numbers by metric, and "GFLOPs"; empty where it has none.

    model: "umt-b", "umt-l", "videomae-b" or "vifi-clip-b16"; task: such as "msrvtt-retrieval", "msvd-qa",
    "ucf101-recognition"; method: one of `METHODS`.
    """
    if model is None or task is None:
        return {}
    if not task.endswith("-retrieval"):
        return dict(_OTHER.get((model, task, method), {}))
    if model not in ("umt-b", "umt-l") or method not in METHODS:
        return {}
    column = METHODS.index(method) + (3 if model == "umt-l" else 0)
    rows = (line.split("|") for line in _RETRIEVAL.strip().splitlines())
    return {
        metric.strip(): float(values.split()[column])
        for dataset, metric, values in rows
        if f"{dataset.strip()}-retrieval" == task
    }


def tasks_of(kind: str) -> list[str]:
    """The datasets the paper has for "retrieval", "qa", "recognition" or "base-to-novel"."""
    names = [line.split("|")[0].strip() + "-retrieval" for line in _RETRIEVAL.strip().splitlines()]
    names += [task for _, task, _ in _OTHER]
    return list(dict.fromkeys(name.removesuffix(f"-{kind}") for name in names if name.endswith(f"-{kind}")))


def architecture_of(model: Any) -> str | None:
    """The name that the tables have for a video model of that size, reading as many frames; None for any other."""
    config = model.vision.config
    sizes = {
        ("umt", 768, 12, 12): "umt-b",
        ("umt", 1024, 24, 12): "umt-l",
        ("videomae", 768, 12, 16): "videomae-b",
        ("vifi-clip", 768, 12, 32): "vifi-clip-b16",
    }
    name = sizes.get((model.family, config.width, config.depth, model.frames))
    return name if (config.patch_size, config.image_size) == (16, 224) else None


def is_published_schedule(model: str, task: str, method: str, reduce: Sequence[int | float], gflops: float) -> bool:
    """Does a run stand for the paper's row: by Table A's schedule, or by costing what the row costs, to 1 %?"""
    if method == "vidtldr" and tuple(reduce) == PRESETS.get(f"{model}/{task}"):
        return True
    wanted = published(model, task, method).get("GFLOPs")
    return wanted is not None and abs(gflops / wanted - 1) < 0.01
