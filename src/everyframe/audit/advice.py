"""From the table to a recommendation, in words, as a command and as code."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from everyframe.audit.result import Advice, Row, VideoAudit

_ROUNDING = 1e-6  # the cosine of a vector with itself is not exactly 1 in float32


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the user gave, to be repeated in the command. residual: as for --residual where a token is used.
    example: one of the videos, for code that encodes one.
    """

    paths: Sequence[str]
    example: str
    model: str
    dtype: str
    fps: float
    drop: float
    residual: str


def choose(rows: Sequence[Row], target: float) -> Row | None:
    """The row of an encoder with the fewest GFLOPs of those whose mean fidelity reaches `target`.

    Equal GFLOPs go to the higher fidelity. Rows without P-frames say nothing and rows that cost as much as dense
    save nothing: neither is chosen. None where none reaches it. `rows` hold dense.
    """
    dense = next(row for row in rows if row.setting.kind == "dense")
    good = [row for row in _cheaper(rows, dense) if row.fidelity_mean >= target - _ROUNDING]
    return min(good, key=lambda row: (round(row.gflops_per_frame, 9), -row.fidelity_mean), default=None)


def advise(rows: Sequence[Row], videos: Sequence[VideoAudit], target: float, inputs: Inputs) -> Advice:
    """What to use for a mean fidelity of `target` over all frames."""
    dense = next(row for row in rows if row.setting.kind == "dense")
    chosen = choose(rows, target)
    remark, remark_code = _remark(rows, chosen, target, inputs)
    if chosen is None:
        sentence = _nothing(rows, _cheaper(rows, dense), target, inputs)
        return Advice(setting=None, sentence=sentence, remark=remark, remark_code=remark_code)
    saved = 1 - chosen.gflops_per_frame / dense.gflops_per_frame
    sentence = (
        f"Use {chosen.setting.title}: the cheapest setting whose mean fidelity over all frames reaches {target:g}. "
        f"It has {chosen.fidelity_mean:.3f} (5th percentile of its P-frames {chosen.p_p5:.3f}) with "
        f"{100 * saved:.0f} % less compute; measured, the model ran {chosen.encode_speed_up:.2f} times as fast, "
        f"reading included {chosen.total_speed_up:.2f} times."
    )
    of_videos = [(video.path, video.row(chosen.setting).fidelity_mean) for video in videos]
    low = sorted((fidelity, path) for path, fidelity in of_videos if fidelity < target - _ROUNDING)
    steps = {row.setting.interleave for row in _cheaper(rows, dense) if row.setting.has_interleave}
    alike = [row.setting for row in rows if _method(row) == _method(chosen)]
    if not chosen.setting.adaptive and steps - {setting.interleave for setting in alike if not setting.adaptive}:
        method = chosen.setting.select or chosen.setting.kind
        sentence += f" {method.capitalize()} was not tried at every N: --all does."
    if low:
        named = ", ".join(f"{Path(path).name} ({fidelity:.3f})" for fidelity, path in low[:3])
        more = f" and {len(low) - 3} more" if len(low) > 3 else ""
        stay = "stays" if len(low) == 1 else "stay"
        sentence += f" {len(low)} of {len(videos)} videos {stay} below the target with it: {named}{more}."
    return Advice(
        setting=chosen.setting,
        sentence=sentence,
        command=_command(chosen, inputs),
        code=_code(chosen, inputs),
        remark=remark,
        remark_code=remark_code,
    )


def _cheaper(rows: Sequence[Row], dense: Row) -> list[Row]:
    """Encoders that have P-frames and save something."""
    return [
        row
        for row in rows
        if row.setting.kind in ("interleaved", "reuse")
        and row.p_frames
        and row.gflops_per_frame < dense.gflops_per_frame
    ]


def _method(row: Row) -> tuple[str, str | None]:
    return row.setting.kind, row.setting.select


def _nothing(rows: Sequence[Row], candidates: Sequence[Row], target: float, inputs: Inputs) -> str:
    if not candidates:
        return (
            f"Nothing can be recommended: at {inputs.fps:g} frames per second these videos give no P-frame that "
            "saves anything; use a higher --fps, longer videos, or an --interleave and --drop above 0."
        )
    best = max(candidates, key=lambda row: row.fidelity_mean)
    tries = []
    tried = {(row.setting.interleave, *_method(row)) for row in candidates}
    fewer = best.setting.interleave - 1
    if best.setting.tolerance:
        tries.append(f"--tolerance {best.setting.tolerance / 3:.1g}")
    elif fewer >= 1 and (fewer, *_method(best)) not in tried:
        tries.append(f"--interleave {fewer}{'' if best.setting.select == 'motion' else ' --all'}")
    if inputs.drop > 0.3:
        tries.append(f"--drop {inputs.drop - 0.25:.2g}")
    tries.append("a residual tokenizer trained on your own videos (everyframe distill)")
    return (
        f"Nothing cheaper than dense reaches a mean fidelity of {target:g} on these videos. The best is "
        f"{best.setting.title} with {best.fidelity_mean:.3f} (5th percentile of its P-frames {best.p_p5:.3f}). "
        f"Try {', '.join(tries)}; or encode dense.{_better_for_nothing(rows, best)}"
    )


def _better_for_nothing(rows: Sequence[Row], best: Row) -> str:
    """Say so where not looking at P-frames at all does better than the best way to look at them."""
    baselines = [row for row in rows if row.setting.kind in ("copy", "interpolate") and row.p_frames]
    free = max(baselines, key=lambda row: row.fidelity_mean, default=None)
    if free is None or free.fidelity_mean <= best.fidelity_mean:
        return ""
    return f" Without looking at P-frames at all, {free.setting.title} has {free.fidelity_mean:.3f}."


def _remark(rows: Sequence[Row], chosen: Row | None, target: float, inputs: Inputs) -> tuple[str | None, str | None]:
    """The cheapest baseline that reaches the target for no more than what is recommended costs."""
    good = [
        row
        for row in rows
        if row.setting.kind in ("copy", "interpolate")
        and row.p_frames
        and row.fidelity_mean >= target - _ROUNDING
        and (chosen is None or row.gflops_per_frame < chosen.gflops_per_frame)
    ]
    # Of equal cost, copying is simpler and needs no frame of the future.
    row = min(good, key=lambda row: (round(row.gflops_per_frame, 9), row.setting.kind != "copy"), default=None)
    if row is None:
        return None, None
    how = "Copying the I-feature" if row.setting.kind == "copy" else "Interpolating between I-features"
    rate = inputs.fps / (row.setting.interleave + 1)
    remark = (
        f"{how} reaches {row.fidelity_mean:.3f} at N={row.setting.interleave} without looking at P-frames at all: for "
        "this target these videos move little."
    )
    if chosen is not None and row.fidelity_mean >= chosen.fidelity_mean:
        remark += " That is cheaper than the setting above and, on average, no farther from dense."
    if Path(inputs.example).is_dir():  # images are taken as they come, whatever the rate
        return remark, None
    remark += f" Encode dense with --fps {rate:.6g} and fill in the rest:"
    lines = [
        "import numpy as np",
        *_load(inputs),
        f"feats = ef.encode_video({inputs.example!r}, ef.DenseEncoder(model), fps={rate:.6g})",
        f"times = np.arange(feats.times[0], feats.frame_ends[-1], 1 / {inputs.fps:g})",
    ]
    if row.setting.kind == "copy":
        # Not `resample(how="nearest")`, which looks ahead too: this is what was measured. Half a step, because true
        # times lie off the grid.
        lines += [
            f"last = np.searchsorted(feats.times, times + 0.5 / {inputs.fps:g}) - 1",
            "rows = feats.embeddings[last]",
        ]
    else:
        lines += [
            "rows = np.stack([np.interp(times, feats.times, column) for column in feats.embeddings.T], axis=1)",
            "rows /= np.linalg.norm(rows, axis=1, keepdims=True)",
        ]
    return remark, "\n".join(lines)


def _command(row: Row, inputs: Inputs) -> str:
    options = {
        "--out": "features",
        "--model": inputs.model,
        "--fps": f"{inputs.fps:g}",
    }
    if row.setting.adaptive:
        options["--tolerance"] = f"{row.setting.tolerance:g}"
    else:
        options["--interleave"] = str(row.setting.interleave)
    options["--drop"] = f"{inputs.drop:g}"
    if row.setting.kind == "interleaved":
        options["--select"] = str(row.setting.select)
        options["--residual"] = inputs.residual if row.setting.token else "none"
    if inputs.dtype != "float32":
        options["--dtype"] = inputs.dtype
    words = [word for option in options.items() for word in option]
    return shlex.join(["everyframe", "encode", *inputs.paths, *words])


def _code(row: Row, inputs: Inputs) -> str:
    residual = repr(inputs.residual) if row.setting.token else "None"
    if row.setting.adaptive:
        encoder = f'ef.ReuseEncoder(model, drop={inputs.drop:g}, plan="adaptive", tolerance={row.setting.tolerance:g})'
    elif row.setting.kind == "reuse":
        encoder = f"ef.ReuseEncoder(model, interleave={row.setting.interleave}, drop={inputs.drop:g})"
    else:
        encoder = (
            f"ef.ResidualViT(model, interleave={row.setting.interleave}, drop={inputs.drop:g}, "
            f'select="{row.setting.select}", residual={residual})'
        )
    return "\n".join(
        [
            *_load(inputs),
            f"encoder = {encoder}",
            f"feats = ef.encode_video({inputs.example!r}, encoder, fps={inputs.fps:g})",
        ]
    )


def _load(inputs: Inputs) -> list[str]:
    dtype = "" if inputs.dtype == "float32" else f', dtype="{inputs.dtype}"'
    return ["import everyframe as ef", "", f"model = ef.load({inputs.model!r}{dtype})"]
