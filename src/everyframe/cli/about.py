"""everyframe info, everyframe flops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import DropOption, FpsOption, InterleaveOption, JsonOption, given


@app.command()
def info(
    path: Annotated[
        str, typer.Argument(help="A video, a feature file, a recipe, or a model (folder, hub id, 'bundled').")
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what a video, a feature file, a recipe or a model is."""
    from everyframe.features import SUFFIXES, VideoFeatures, is_of_clips

    file = Path(path)
    facts: dict[str, Any]
    if file.name.endswith(".recipe.npz"):
        facts = _recipe_info(file)
    elif file.suffix.lower() in SUFFIXES:
        feats = VideoFeatures.load(file)
        facts = {
            "clips" if is_of_clips(feats) else "frames": feats.num_frames,
            "dim": feats.dim,
            "dtype": str(feats.embeddings.dtype),
            "first_seconds": float(feats.times[0]) if feats.num_frames else None,
            "last_seconds": float(feats.times[-1]) if feats.num_frames else None,
            "end_seconds": float(feats.frame_ends[-1]) if feats.num_frames else None,
            "roles": {role: feats.roles.count(role) for role in sorted(set(feats.roles))},
            "video": feats.video,
            "model": feats.model,
            "settings": feats.settings,
        }
    elif path == "bundled" or (file.is_dir() and (file / "config.json").is_file()) or not _looks_local(path):
        facts = _model_info(path)
    else:
        from dataclasses import asdict

        from everyframe.video import probe

        facts = asdict(probe(path, scan=True))
    console.show_facts(facts, as_json)


@app.command()
def flops(
    model: Annotated[
        str | None,
        typer.Option("--model", help="ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336, or any model. (default: ViT-L/14)"),
    ] = None,
    interleave: InterleaveOption = None,
    drop: DropOption = None,
    fps: FpsOption = None,
    paper: Annotated[
        str | None, typer.Option("--paper", help="Instead, a paper's figures beside ours: vid-tldr or tempme.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Cost of the encoders, by the paper's counting rule and with attention (multiply-accumulates)."""
    if paper is not None:
        if given(model=model, interleave=interleave, drop=drop, fps=fps):
            raise ValueError("--paper prints a paper's own models and settings; leave out the other options")
        _paper_flops(paper, as_json)
        return
    model = model or "ViT-L/14"
    from everyframe.report import cost_table, state_bytes

    rows = cost_table(model, **given(interleave=interleave, drop=drop, fps=fps))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table(title=f"{model}: GFLOPs (multiply-accumulates)")
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    console.show(table)
    console.say(f"ReuseEncoder keeps {state_bytes(model) / 1e6:.3g} MB of keys and values per group, in float32")


def _paper_flops(paper: str, as_json: bool) -> None:
    from dataclasses import asdict

    from everyframe.paper_costs import paper_costs

    rows = paper_costs(paper)
    if as_json:
        print(json.dumps([asdict(r) | {"difference_percent": r.difference, "reproduced": r.reproduced} for r in rows]))
        return
    from rich import box
    from rich.table import Table

    for name in dict.fromkeys(row.table for row in rows):
        table = Table(
            title=f"{paper}, Table {name}: GFLOPs of one {'video' if paper == 'tempme' else 'clip'}",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        shown = [row for row in rows if row.table == name]
        tokens = any(row.tokens for row in shown)
        for column in ("model", "task", "method", "merged" if tokens else "removed per block"):
            table.add_column(column, overflow="fold")
        for column in [*(["tokens left"] if tokens else []), "ours", "published", "difference"]:
            table.add_column(column, justify="right", no_wrap=True)
        for row in shown:
            table.add_row(
                row.model,
                row.task,
                row.method + (" (*)" if row.note else ""),
                row.schedule or _removed(row.reduce),
                *([row.tokens] if tokens else []),
                "?" if row.gflops is None else f"{row.gflops:.2f}",
                f"{row.published:g}" if row.digits is None else f"{row.published:.{row.digits}f}",
                "" if row.difference is None else f"{row.difference:+.2f} %",
            )
        console.show(table)
        for note in dict.fromkeys(
            f"(*) {r.model}, {r.task}, {r.method}: {r.note}" for r in rows if r.table == name and r.note
        ):
            console.say(note)
    console.say(f"{sum(row.reproduced for row in rows)} of {len(rows)} figures agree to the printed digits")


def _removed(reduce: tuple[int, ...]) -> str:
    if len(reduce) > 1 and len(set(reduce)) == 1:
        return f"{reduce[0]} in each of {len(reduce)}"
    return ", ".join(map(str, reduce))


def _recipe_info(file: Path) -> dict[str, Any]:
    from everyframe.pipeline import Recipe

    recipe = Recipe.load(file)
    return {
        "frames": recipe.num_frames,
        "kept": len(recipe.i_features),
        "dim": recipe.i_features.shape[1],
        "dtype": str(recipe.i_features.dtype),
        "first_seconds": float(recipe.times[0]),
        "end_seconds": float(recipe.frame_ends[-1]),
        "roles": {role: recipe.roles.count(role) for role in sorted(set(recipe.roles))},
        "encoder": recipe.encoder,
        "video": recipe.video,
        "model": recipe.model,
        "settings": recipe.settings,
    }


def _looks_local(path: str) -> bool:
    return Path(path).exists() or Path(path).suffix != "" or path.count("/") != 1


def _model_info(name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from everyframe.backbone import load
    from everyframe.encoders import ReuseEncoder

    model = load(name)
    return {
        "model": model.name,
        "family": model.family,
        "dim": model.dim,
        "text": model.text is not None,
        "image_size": model.image_size,
        "patches": model.vision.num_patches,
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes_per_group": ReuseEncoder(model).state_bytes,
        "weights_sha256": model.weights_sha256,
        "vision": asdict(model.vision.config),
        "preprocess": model.preprocess_settings,
    }
