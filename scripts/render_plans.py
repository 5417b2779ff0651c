"""Tables of docs/how-it-decides.md from benchmarks/results: reuse, cuts, adaptive plans, fidelity, real footage."""

from __future__ import annotations

from typing import Any

from records import read, table

SPLITS = ("lecture", "still", "talking_head", "handheld", "pan", "action", "cuts")


def _variant(family: str, name: str, interleave: int) -> dict[str, Any]:
    found = [
        result
        for result in read("reuse_variants")["results"]
        if (result["family"], result["variant"], result["interleave"]) == (family, name, interleave)
    ]
    if len(found) != 1:
        raise SystemExit(f"reuse_variants.json has {len(found)} results for {family}, {name}, N={interleave}")
    return found[0]


def _fidelity(result: dict[str, Any]) -> str:
    return f"{result['fidelity'][0]:.3f} ({result['fidelity'][1]:.2f})"


def reuse_select() -> str:
    record = read("reuse_variants")
    rows = []
    for name, label in (
        ("change", "**change**: pixels, against the patch's last refresh"),
        ("change, full resolution", "the same without small cells"),
        ("motion, summed", "motion (codec), added up since the patch's last refresh"),
        ("motion", "motion since the frame before, as ResidualViT"),
        ("keys of block 1", "keys of the first block, against those of the last refresh"),
        ("keys after 2 blocks", "keys after two blocks, the same"),
        ("random", "random"),
        ("uniform", "uniform"),
    ):
        two, five = _variant("A", name, 2), _variant("A", name, 5)
        rows.append([label, f"{five['cost']['linear']:.2f}", _fidelity(two), _fidelity(five)])
    for name in ("copy", "interpolate"):
        two, five = _variant("A", name, 2), _variant("A", name, 5)
        rows.append([f"({name}, nothing is computed)", "0", _fidelity(two), _fidelity(five)])
    head = (
        f"P-frames that refresh {record['kept']} of {record['patches']} patches, fixed plan: mean cosine to dense "
        f"(5th percentile), {record['videos_per_style']} videos of {record['seconds_per_video']:g} s of each of six "
        "kinds."
    )
    return head + "\n\n" + table(["refreshed by", "cost of a P-frame, linear layers", "N=2", "N=5"], rows)


def reuse_variants() -> str:
    rows = []
    for family, label, base, variants in (
        ("B", "a few of the patches in turn, the stalest first", "reuse", ("2 in turn", "8 in turn")),
        ("C", "with ResidualViT's residual token", "reuse", ("residual token",)),
        ("D", "mixed with interpolation between I-features", "reuse", ("0.25 interpolate", "0.5 interpolate")),
        ("E", "two-sided: from the last refresh or the next I-frame", "reuse", ("two-sided",)),
        ("F", "the other patches' attention branch renewed too, not their MLP", "reuse", ("all blocks, stale MLP",)),
        ("G", "the state shifted with the camera (pan and action only)", "reuse", ("shifted",)),
    ):
        plain = _variant(family, base, 5)
        for name in variants:
            result = _variant(family, name, 5)
            gain = result["gain"]
            rows.append(
                [
                    label,
                    name,
                    f"{result['cost']['linear']:.2f}",
                    _fidelity(plain),
                    _fidelity(result),
                    f"{gain['mean']:+.4f} ± {gain['standard_error']:.4f}",
                    f"{gain['videos_better']} of {gain['videos']}",
                ]
            )
    first = table(
        ["idea", "variant", "cost of a P-frame", "without", "with", "gain ± standard error", "videos better"], rows
    )
    names = {"reuse": "reuse", "two-sided": "two-sided reuse", "interpolate": "interpolate"}
    sides = [[label, *(_fidelity(_variant("E", name, n)) for n in (2, 3, 5, 7, 10))] for name, label in names.items()]
    for name, label in (("ResidualViT random", "ResidualViT, token of the last I-feature"),
                        ("ResidualViT random, mixed", "the same, token of both I-features interpolated")):  # fmt: skip
        sides.append([label, *(_fidelity(_variant("E", name, n)) for n in (2, 3, 5, 7, 10))])
    more = table(["two-sided, by N", "N=2", "N=3", "N=5", "N=7", "N=10"], sides)
    return f"At N=5, P-frames alone:\n\n{first}\n\n{more}"


def cuts() -> str:
    record = read("cuts")
    names = ("CutDetector", "ContentDetector", "AdaptiveDetector")
    labels = {
        "synthetic": "synthetic, four styles",
        "synthetic cuts": "synthetic, fast cutting",
        "splices": "synthetic pieces spliced",
        "real": "real pieces spliced",
        "reframed": "real, cut to another crop of the same scene",
        "hard": "hard: flashes, fast pans and zooms, noise, dips",
        "soft": "dissolves and fades",
        "all but soft": "**all but dissolves and fades**",
    }
    rows = []
    for key, label in labels.items():
        found = record["sets"][key]
        cells = [f"{found[n]['precision']:.2f} / {found[n]['recall']:.2f} / {found[n]['f1']:.3f}" for n in names]
        rows.append([label, str(found[names[0]]["cuts"]), *cells])
    header = ["videos", "cuts", "ours, at 3 frames/s: precision / recall / F1", "PySceneDetect content", "and adaptive"]
    return table(header, rows)


def _pooled(row: dict[str, Any], key: str, digits: int) -> str:
    value = row[key]
    if value is None or value[0] is None:
        return ""
    return f"{value[0]:.{digits}f} ({value[1]:.{digits}f} to {value[2]:.{digits}f})"


def adaptive_methods() -> str:
    run = read("adaptive")["runs"][0]
    facts = run["facts"]["all"]
    rows = []
    for row in run["splits"]["all"]:
        rows.append(
            [
                row["method"],
                f"{row['share'][0]:.1f}",
                _pooled(row, "fidelity", 3),
                f"{row['fidelity_5'][0]:.3f}",
                f"{row['cut'][0]:.3f}",
                _pooled(row, "kept_0.5", 1),
                _pooled(row, "kept_0.7", 1),
            ]
        )
    head = (
        f"{facts['videos']} videos, {facts['queries']} queries, {facts['cuts']} cuts; in brackets the smallest and the "
        "largest of three sets. p is `drop`, t `tolerance`."
    )
    header = ["method", "GFLOPs, % of dense", "fidelity", "5th percentile", "first frame after a cut",
              "R@1 IoU .5, % of dense", "IoU .7"]  # fmt: skip
    return head + "\n\n" + table(header, rows)


def adaptive_splits() -> str:
    run = read("adaptive")["runs"][0]
    wanted = ("ResidualViT + token N=2", "reuse N=5", "adaptive p=0.85 t=1")
    rows = []
    for split in SPLITS:
        facts = run["facts"][split]
        found = {row["method"]: row for row in run["splits"][split]}
        cells = [f"{found[n]['share'][0]:.0f} %, {found[n]['fidelity'][0]:.3f}" for n in wanted if n in found]
        adaptive = found[wanted[-1]]
        rows.append(
            [
                split.replace("_", " "),
                f"{facts['moving_percent']:.0f} %",
                *cells,
                f"{adaptive['fidelity_5'][0]:.3f}",
                f"{adaptive['kept_0.5'][0]:.0f} / {adaptive['kept_0.7'][0]:.0f}",
            ]
        )
    header = ["kind", "patches moving", *(f"{name}: cost, fidelity" for name in wanted), "its 5th percentile",
              "its R@1 IoU .5 / .7, % of dense"]  # fmt: skip
    return table(header, rows)


def adaptive_claim() -> str:
    rows = {row["method"]: row for row in read("adaptive")["runs"][0]["splits"]["all"]}
    row = rows["adaptive p=0.85 t=1"]
    return (
        f"{100 - row['share'][0]:.0f} % less compute, at a mean cosine of {row['fidelity'][0]:.3f} to the features of "
        f"full passes and {row['kept_0.5'][0]:.0f} % of their grounding accuracy (R@1 at IoU 0.5; 95 % interval "
        f"{row['interval_0.5']['kept'][0]:.0f} to {row['interval_0.5']['kept'][1]:.0f} %)"
    )


def adaptive_aims() -> str:
    run = read("adaptive")["runs"][0]
    lines = [
        f"- {verdict['aim']}: **{'met' if verdict['met'] else 'not met'}**. {verdict['text']}."
        for verdict in run["verdicts"]
    ]
    rows = {row["method"]: row for row in run["splits"]["all"]}
    fixed, two = rows["reuse N=2"], rows["two-sided adaptive p=0.85 t=2.8"]
    lines.append(
        f"- The second once more, two-sided: adaptive p=0.85 t=2.8 reaches {two['fidelity'][0]:.4f} at "
        f"{two['share'][0]:.1f} % of dense, {two['share'][0] / fixed['share'][0]:.2f} of what reuse N=2 takes for "
        f"{fixed['fidelity'][0]:.4f}."
    )
    return "\n".join(lines)


def real_change() -> str:
    rows = []
    for result in read("real_change")["results"]:
        for row in result["rows"]:
            if row["setting"].startswith("adaptive") or (row["setting"] == "N=5" and row["drop"] in (0.85, 0.5)):
                won = "" if row["loss_of_copy"] is None else f"{1 - (1 - row['fidelity']) / row['loss_of_copy']:.0%}"
                rows.append(
                    [
                        f"{result['video']} ({result['moving_share']:.0%} moving)",
                        row["setting"] + (f", drop {row['drop']:g}" if row["setting"] == "N=5" else ""),
                        f"{row['cost']:.0%}",
                        f"{row['change_covered']:.0%}",
                        won,
                        f"{row['fidelity']:.3f} ({row['fidelity_p5']:.2f})",
                    ]
                )
    header = ["clip", "plan", "cost, of dense", "change held", "loss won back", "fidelity (5th percentile)"]
    return table(header, rows)


def fidelity() -> str:
    record = read("fidelity")
    rows = []
    for entry in record["synthetic"]:
        pooled = entry["pooled"]
        splits = [entry["splits"][split]["fidelity"] for split in SPLITS]
        rows.append(
            [
                f"{entry['target']:.2f}",
                f"{pooled['fidelity']:.4f}",
                f"{pooled['predicted']:.4f}",
                f"{pooled['cost']:.0%}",
                f"{min(splits):.3f} to {max(splits):.3f}",
                f"{min(entry['splits'][split]['fidelity_p5'] for split in SPLITS):.3f}",
            ]
        )
    header = ["asked", "measured", "predicted from the plan", "cost, of dense", "kinds: lowest to highest",
              "lowest 5th percentile of a kind"]  # fmt: skip
    text = "Synthetic, all kinds together:\n\n" + table(header, rows)
    if record["real"]:
        clips = list(dict.fromkeys(row["clip"] for row in record["real"]))
        targets = sorted({row["target"] for row in record["real"]})
        found = {(row["clip"], row["target"]): row for row in record["real"]}
        real = [
            [clip, *(f"{found[clip, t]['fidelity']:.3f} at {found[clip, t]['cost']:.0%}" for t in targets)]
            for clip in clips
        ]
        text += "\n\nReal clips, each with a calibration on the four others:\n\n"
        text += table(["clip", *(f"asked {target:.2f}" for target in targets)], real)
    return text


def recipe() -> str:
    record = read("recipe")
    rows = [
        [
            each["encoder"],
            f"{each['features_kb']:.1f} kB",
            f"{each['recipe_kb']:.1f} kB",
            "yes" if each["exact"] else "no",
        ]
        for each in record["results"]
    ]
    head = f"`python benchmarks/recipe.py`: {record['videos']} synthetic videos of a minute, bundled model, float16:"
    return head + "\n\n" + table(["encoder", "features, per video", "recipe", "restored bit for bit"], rows)


def adaptive_speed() -> str:
    record = read("adaptive_speed")
    rows = []
    for dtype, result in record["results"].items():
        for name, found in result["all"]["methods"].items():
            low, high = found["time_over_cost_rounds"]
            planner = found.get("planner_share")
            rows.append(
                [
                    dtype,
                    name,
                    f"{found['cost']:.3f}",
                    f"{found['time']:.3f}",
                    f"{found['time_over_cost']:.2f} ({low:.2f} to {high:.2f})",
                    "" if planner is None else f"{planner:.1%}",
                    "" if "padding" not in found else f"{found['padding']:.1%}",
                ]
            )
    frames = next(iter(record["results"].values()))["all"]["frames"]
    head = (
        f"`python benchmarks/adaptive_speed.py`: {record['settings']['model']}, {frames} frames of four real clips at "
        f"{record['settings']['fps']:g} per second, {record['settings']['rounds']} rounds; the model's time alone, "
        "preprocessed frames to features, with planning. Random weights say nothing about fidelity."
    )
    header = ["dtype", "encoder", "GFLOPs, of dense", "time, of dense", "time over GFLOPs (rounds)", "planning",
              "queries that are padding"]  # fmt: skip
    return head + "\n\n" + table(header, rows)


RENDERERS = {
    "adaptive_speed": adaptive_speed,
    "recipe": recipe,
    "reuse_select": reuse_select,
    "reuse_variants": reuse_variants,
    "cuts": cuts,
    "adaptive_methods": adaptive_methods,
    "adaptive_splits": adaptive_splits,
    "adaptive_aims": adaptive_aims,
    "adaptive_claim": adaptive_claim,
    "real_change": real_change,
    "fidelity": fidelity,
}
