"""Write the measured figures of benchmarks/results/*.json into README.md and docs/, between their markers.

    python scripts/render_results.py           # rewrite, and redraw the ablation's pictures in docs/images
    python scripts/render_results.py --check   # exit 1 if a file does not show what the JSON says

A place looks like <!-- result:NAME --> ... <!-- /result -->.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from functools import partial
from typing import Any

import render_decode
import render_merging
import render_paths
import render_performance
import render_plans
import render_scale
import render_search
import render_startup
import render_tasks
import render_tempme
from everyframe.evaluation.plots import write_plots
from everyframe.evaluation.tables import caption, markdown, tables
from records import ROOT, read

PLACE = re.compile(r"(<!-- result:(?P<name>\w+) -->)(?P<body>.*?)(<!-- /result -->)", re.S)
VARIANTS = {
    "a": "PyAV + transformers, float32 (today's loop)",
    "b": "PyAV + transformers, bfloat16",
    "c": "everyframe dense, bfloat16",
    "d": "everyframe ResidualViT N=2, bfloat16",
}


def ratios(runs: dict[str, Any], variant: str) -> list[float]:
    """Speed of d over `variant`, round by round."""
    return [
        d["frames_per_second"] / other["frames_per_second"] for d, other in zip(runs["d"], runs[variant], strict=True)
    ]


def encode_claim() -> str:
    runs = read("encode")["results"]["ViT-B/16"]["runs"]
    over_loop, over_bf16 = (statistics.median(ratios(runs, variant)) for variant in "ab")
    return (
        f"and, measured from file to features with a ViT-B/16 on a CPU, {over_loop:.1f} times the speed of the usual "
        f"PyAV + transformers loop in float32 ({over_bf16:.1f} times the same loop in bfloat16)"
    )


def encode_tables() -> str:
    lines: list[str] = []
    record = read("encode")
    for name, result in record["results"].items():
        runs = result["runs"]
        lines += [
            f"**{name}**, random weights, {runs['a'][0]['frames']} features of {record['video']} at 3 per second, "
            f"{len(runs['a'])} rounds on {record['machine']['cores']} cores:",
            "",
            "| | frames/s (min to max) | decode | preprocess | model, ms per frame | peak MB | d is faster by |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for variant, title in VARIANTS.items():
            own = runs[variant]
            speeds = [run["frames_per_second"] for run in own]
            parts = [
                statistics.median(run["ms_per_frame"][part] for run in own)
                for part in ("decode", "preprocess", "model")
            ]
            faster = "" if variant == "d" else f"{statistics.median(ratios(runs, variant)):.2f}x"
            cells = [
                f"{variant}. {title}",
                f"{statistics.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})",
                *(f"{part:.1f}" for part in parts),
                f"{statistics.median(run['peak_mb'] for run in own):.0f}",
                faster,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"Mean cosine of c's features to b's: {result['cosine_of_c_to_b']:.4f}.", ""]
    return "\n".join(lines).strip()


def demo_table() -> str:
    record = read("demo")
    lines = [
        "| encoder | time | x realtime | GFLOPs/frame | speed-up | fidelity mean / 5th pct | R@1 IoU 0.5 / 0.7 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['encoder']} | {row['seconds']:.1f} s | {row['times_realtime']:.0f} | "
            f"{row['gflops_per_frame']:.3f} | {row['speed_up']:.2f} | "
            f"{row['fidelity_mean']:.3f} / {row['fidelity_p5']:.3f} | "
            f"{100 * row['recall_50']:.1f} / {100 * row['recall_70']:.1f} |"
        )
    return "\n".join(lines)


def bundled_table() -> str:
    record = read("bundled")
    top = record["frame_to_caption_among_100"]
    lines = [
        f"Frame to caption among 100: {100 * top['mean']:.1f} % (standard deviation over draws "
        f"{100 * top['std']:.1f}). Grounding:",
        "",
        "| encoder | videos | queries | R@1 IoU 0.5 | R@1 IoU 0.7 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for encoder, groups in record["grounding"].items():
        for group, row in groups.items():
            lines.append(
                f"| {encoder} | {group} | {row['queries']} | {100 * row['iou_0.5']:.1f} | {100 * row['iou_0.7']:.1f} |"
            )
    for encoder, values in record["fidelity"].items():
        lines += ["", f"Fidelity of {encoder}: mean {values['mean']:.3f}, 5th percentile {values['p5']:.3f}."]
    lines += ["", "| style | share of moving patches |", "| --- | --- |"]
    lines += [f"| {style} | {min(v):.2f} to {max(v):.2f} |" for style, v in record["moving_share"].items()]
    return "\n".join(lines)


def memory_table() -> str:
    lines = [
        "| what runs | container | short | long | peak MiB short / long | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in (("memory", "sample_frames"), ("memory_encode", "encode_video")):
        for row in read(name)["results"]:
            short, long = row["short"], row["long"]
            lines.append(
                f"| {title} | {row['container']} | {short['minutes']:g} min | {long['minutes']:g} min | "
                f"{short['peak_rss_mib']:.1f} / {long['peak_rss_mib']:.1f} | {row['ratio']:.3f} |"
            )
    return "\n".join(lines)


def distill_table() -> str:
    record = read("distill")
    machine = f"{record['threads']} threads of a {record['device']}"
    lines = [
        f"{record['dtype']}, {machine}, {record['clips']} clips per backward pass:",
        "",
        "| model | fitted | teacher, s per clip, once | step, s per clip and epoch | P-frames/s | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        cells = [
            row["architecture"],
            f"{row['parameters_fitted'] / 1e6:.2f} M",
            f"{row['teacher_ms_per_clip'] / 1e3:.2f}",
            f"{row['step_ms_per_clip'] / 1e3:.2f}",
            f"{row['p_frames_per_second']:.1f}",
            f"{row['peak_mb'] / 1e3:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tokenizers_table() -> str:
    runs = read("tokenizers")["runs"]
    runs.sort(key=lambda run: -run["curve"][-1]["with"])
    first = runs[0]["curve"][-1]
    steps = sorted({int(line["step"]) for run in runs for line in run["curve"]})
    lines = [
        f"Without a token {first['without']:.3f} (5th percentile {first['without_p5']:.3f}), copy {first['copy']:.3f}, "
        f"interpolate {first['interpolate']:.3f}. With a token, after so many steps of {runs[0]['batch']} clips:",
        "",
        f"| loss | layers | learning rate | {' | '.join(map(str, steps))} | 5th percentile at the end |",
        f"| --- | --- | --- |{' --- |' * (len(steps) + 1)}",
    ]
    for run in runs:
        found = {int(line["step"]): line["with"] for line in run["curve"]}
        cells = [f"{found[step]:.3f}" if step in found else "" for step in steps]
        cells = [run["loss"], str(run["layers"]), f"{run['rate']:g}", *cells, f"{run['curve'][-1]['with_p5']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


ABLATION_TABLES = (
    "methods", "interleave", "reduction", "drop", "residual", "pairs", "styles", "styles_fidelity", "grounding"
)  # fmt: skip


def ablation_table(name: str, file: str = "ablation") -> str:
    return markdown(tables(read(file))[name])


def ablation_caption() -> str:
    return f"{caption(read('ablation'))}."


RENDERERS = {
    "ablation": ablation_caption,
    **{f"ablation_{name}": partial(ablation_table, name) for name in ABLATION_TABLES},
    "ablation_slow_interleave": partial(ablation_table, "interleave", "ablation_1fps"),
    "ablation_slow_pairs": partial(ablation_table, "pairs", "ablation_1fps"),
    "claim": encode_claim,
    "encode": encode_tables,
    "demo": demo_table,
    "distill": distill_table,
    "tokenizers": tokenizers_table,
    "bundled": bundled_table,
    "memory": memory_table,
    **render_decode.RENDERERS,
    **render_merging.RENDERERS,
    **render_paths.RENDERERS,
    **render_performance.RENDERERS,
    **render_plans.RENDERERS,
    **render_scale.RENDERERS,
    **render_search.RENDERERS,
    **render_startup.RENDERERS,
    **render_tasks.RENDERERS,
    **render_tempme.RENDERERS,
}


def render(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        body = RENDERERS[match["name"]]()
        inline = "\n" not in match["body"] and "\n" not in body
        return f"{match[1]}{body}{match[4]}" if inline else f"{match[1]}\n\n{body}\n\n{match[4]}"

    return PLACE.sub(fill, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text(encoding="utf-8")
        rendered = render(text)
        if rendered != text:
            stale.append(file)
            if not options.check:
                file.write_text(rendered, encoding="utf-8")
    if not options.check:
        write_plots(read("ablation"), ROOT / "docs" / "images")
        render_tasks.draw()
        render_performance.draw()
    if options.check and stale:
        names = ", ".join(str(file.relative_to(ROOT)) for file in stale)
        sys.exit(f"{names}: not what benchmarks/results says; run python scripts/render_results.py")


if __name__ == "__main__":
    main()
