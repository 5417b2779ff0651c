"""The places of docs/tempme.md that benchmarks/sequences.py and benchmarks/retrieval.py fill; called by
render_results.py."""

from __future__ import annotations

from typing import Any

from records import read, table

_LABELS = {"mean": "mean pooling", "ToMe": "ToMe", "TempMe": "TempMe"}


def sequences_table() -> str:
    """Without the seconds of fitting: they are measured while other rows run."""
    record = read("sequences")
    rows = record["rows"]
    names = [row["name"] for row in rows]
    found = [
        [
            row["name"],
            f"{row['gflops_per_video']:.3f}",
            f"{row['t2v_r1']:.1f} ({row['untrained']['t2v_r1']:.1f})",
            f"{row['t2v_r_sum']:.1f}",
            f"{row['v2t_r1']:.1f} ({row['untrained']['v2t_r1']:.1f})",
            f"{row['pairs']:.1f} ({row['untrained']['pairs']:.1f})",
        ]
        for row in rows
    ]
    kinds = list(rows[0]["pairs_by_change"])
    by_kind = [
        [name, *(f"{row['pairs_by_change'][kind]:.0f}" for kind in kinds)]
        for name, row in zip(names, rows, strict=True)
    ]
    head = ["", "GFLOPs", "text to video R@1", "R-Sum", "video to text R@1", "pairs told apart, %"]
    settings = record["settings"]
    return (
        f"{table(head, found)}\n\nIn brackets: before fine-tuning. {settings['train']} training and {settings['test']} "
        f"test videos of {settings['frames']} frames at {record['image_size']} pixels, {settings['epochs']} epochs, "
        f"batches of {record['batch']}, {settings['precision']}, seed {settings['seed']}. Pairs told apart, %, by what "
        f"changes:\n\n{table(['', *kinds], by_kind)}"
    )


def encoding_table() -> str:
    record = read("retrieval")
    printed = record["published"]["videos_per_second"]
    rows = []
    for dtype, sizes in record["encoding"].items():
        for size, result in sizes.items():
            for name, own in result["methods"].items():
                paper = size == "ViT-B/16"
                rows.append(
                    [
                        f"{size}, {dtype}",
                        _LABELS[name],
                        f"{own['gflops_per_video']:.1f}",
                        _spread(own["videos_per_second"]),
                        "1" if name == "mean" else _spread(own["speedup"]),
                        f"{own['flops_ratio']:.2f}",
                        f"{printed[name]} ({printed[name] / printed['mean']:.2f})" if paper else "",
                    ]
                )
    head = ["model", "method", "GFLOPs", "videos/s", "times mean pooling", "by GFLOPs", "published, A100 (times)"]
    settings, threads = record["settings"], record["machine"]["threads"]
    return (
        f"{table(head, rows)}\n\n{settings['frames']} frames, {settings['videos']} videos at a time, {threads} CPU "
        f"threads: median (quartiles) of {settings['rounds']} rounds."
    )


def training_table() -> str:
    record = read("retrieval")
    speed, memory = record["published"]["training_speed"], record["published"]["training_memory_gb"]
    rows = []
    for size, result in record["training"].items():
        for name, own in result["methods"].items():
            paper = size == "ViT-B/16"
            rows.append(
                [
                    size,
                    _LABELS[name],
                    _spread(own["seconds_per_step"]),
                    "1" if name == "mean" else _spread(own["speedup"]),
                    f"{speed[name]:.2f}" if paper else "",
                    f"{own['before_mib']} / {own['peak_mib']}",
                    f"{own['peak_ratio']:.2f}",
                    f"{own['added_ratio']:.2f}",
                    f"{memory[name] / memory['mean']:.2f}" if paper else "",
                ]
            )
    head = ["model", "method", "s per step", "times mean pooling", "published", "MiB before / at most"]
    head += ["peak, ratio", "what a step adds, ratio", "published"]
    settings, threads = record["settings"], record["machine"]["threads"]
    return (
        f"{table(head, rows)}\n\n{settings['train_videos']} videos of {settings['frames']} frames and captions of "
        f"{settings['words']} tokens a step, float32, {threads} threads: median (quartiles) of {settings['steps']} "
        "steps. The published ratios are of a GPU and batches of 128."
    )


def _spread(values: dict[str, Any]) -> str:
    return f"{values['median']:.2f} ({values['p25']:.2f} to {values['p75']:.2f})"


RENDERERS = {"sequences": sequences_table, "retrieval_encoding": encoding_table, "retrieval_training": training_table}
