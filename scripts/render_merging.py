"""The places that benchmarks/merging.py and benchmarks/merging_quality.py fill; called by render_results.py."""

from __future__ import annotations

import statistics

from records import read, table


def merging_table() -> str:
    record = read("merging")
    rows = []
    for dtype, models in record["results"].items():
        for name, result in models.items():
            for way, own in result["methods"].items():
                low, high = own["speedup_rounds"]
                rows.append(
                    [
                        f"{name}, {dtype}",
                        way,
                        f"{own['gflops']:.1f}",
                        f"{statistics.median(own['seconds']):.2f}",
                        f"{own['speedup']:.2f} ({low:.2f} to {high:.2f})",
                        f"{own['flops_ratio']:.2f}",
                        f"{100 * own['kept']:.0f} %",
                    ]
                )
    head = ["model", "method", "GFLOPs", "s per clip", "speed-up (rounds)", "FLOPs ratio", "of it reached"]
    memory, threads = record["memory"], record["machine"]["threads"]
    plain, merged = memory["processes"]["unmodified"], memory["processes"]["vid-TLDR msrvtt"]
    return (
        f"{table(head, rows)}\n\n{record['settings']['rounds']} rounds on {threads} cores; the unmodified model "
        f"runs fused attention. Aim: {100 * record['settings']['aims']['kept']:.0f} % of the FLOPs ratio. Peak memory "
        f"of a process that encodes one clip of 2,352 tokens with UMT-L: {plain['peak_mib']} MiB unmodified, "
        f"{merged['peak_mib']} MiB with vid-TLDR ({memory['peak_ratio']:.2f}; of what encoding adds to the loaded "
        f"model, {memory['added_ratio']:.2f})."
    )


def quality_table() -> str:
    record = read("merging_quality")
    rows = []
    for row in record["splits"]["all"]:
        spans = [row[f"interval_{iou}"]["kept"] for iou in ("0.5", "0.7")]
        rows.append(
            [
                row["method"],
                f"{row['share'][0]:.1f}",
                f"{row['fidelity'][0]:.3f}",
                f"{row['fidelity_5'][0]:.3f}",
                *(
                    f"{row[f'kept_{iou}'][0]:.1f} ({low:.0f} to {high:.0f})"
                    for iou, (low, high) in zip(("0.5", "0.7"), spans, strict=True)
                ),
            ]
        )
    facts, reduce = record["facts"], record["settings"]["reduce"]
    head = ["method", "GFLOPs, % of dense", "fidelity", "5th pct", "R@1 IoU .5, % of dense (95 %)", ".7"]
    return (
        f"{table(head, rows)}\n\n{facts['videos']} videos of seven kinds, {facts['queries']} queries; cost with "
        f"attention. early: {reduce['early']} tokens in the 4 blocks, everywhere: {reduce['everywhere']}, of 197."
    )


RENDERERS = {"merging": merging_table, "merging_quality": quality_table}
