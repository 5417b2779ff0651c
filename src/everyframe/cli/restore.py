"""everyframe restore."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import (
    DeviceOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    check_format,
    check_writable,
    load_model,
)

if TYPE_CHECKING:
    from everyframe.backbone import Model
    from everyframe.encoders import Encoder
    from everyframe.pipeline import Recipe


@app.command()
def restore(
    recipes: Annotated[list[Path], typer.Argument(help="Files NAME.recipe.npz, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the feature files.")] = Path("features"),
    format: Annotated[str, typer.Option("--format", help="npz, npy, h5 or parquet.")] = "npz",
    video: Annotated[
        Path | None, typer.Option("--video", help="The video, where it is no longer at the path of its recipe.")
    ] = None,
    start: Annotated[float | None, typer.Option("--start", help="First second to restore.")] = None,
    end: Annotated[float | None, typer.Option("--end", help="Second to stop at.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="As for encode. (default: as recorded)")] = None,
    residual: Annotated[
        str | None,
        typer.Option("--residual", help="ResidualViT's tokenizer file, where none ships with the model."),
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute the features that encode --recipe left out: P-frames, of a whole video or of the part that is needed."""
    from everyframe.pipeline import Recipe, Sampling
    from everyframe.pipeline import restore as restore_features

    check_format(format)
    Sampling(start=start, end=end)  # what is no range is no fault of any file
    files = _files(recipes, out, format)
    if video is not None and len(files) != 1:
        raise ValueError(f"--video names the video of one recipe, but there are {len(files)}")
    check_writable(out)
    models: dict[tuple[str, str], Model] = {}
    rows: list[dict[str, Any]] = []
    for file, target in files:
        began = time.monotonic()
        row: dict[str, Any] = {"recipe": str(file), "output": str(target), "frames": 0, "error": None}
        try:
            recipe = Recipe.load(file)
            _check_free(target, recipe, partial=start is not None or end is not None)
            name = (model or _recorded(recipe, file), str(recipe.model.get("dtype", "float32")))
            if name not in models:
                models[name] = load_model(name[0], device, name[1], threads)
            feats = restore_features(
                recipe, _reader(recipe, models[name], residual), source=video, start=start, end=end
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            feats.save(target)
            row["frames"] = feats.num_frames
        except (ValueError, OSError) as error:  # of the file, the video or the model: each is a ValueError
            row.update(output=None, error=str(error) if str(file) in str(error) else f"{file}: {error}")
            console.say(f"everyframe: failed: {row['error']}", style="red", error=True)
        rows.append(row)
        if not (as_json or quiet or row["error"]):
            console.say(f"{target}: {row['frames']} frames in {time.monotonic() - began:.1f} s")
    if as_json:
        print(json.dumps(rows, indent=2))
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


def _files(given: list[Path], out: Path, format: str) -> list[tuple[Path, Path]]:
    """Each recipe and where its features go; folders are kept."""
    from everyframe.pipeline import RECIPE_SUFFIX

    files: dict[Path, Path] = {}
    for path in given:
        found = sorted(path.rglob(f"*{RECIPE_SUFFIX}")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} holds no recipe (NAME{RECIPE_SUFFIX}); everyframe encode --recipe makes them")
        for file in found:
            inside = file.relative_to(path) if path.is_dir() else Path(file.name)
            name = inside.name.removesuffix(RECIPE_SUFFIX) if inside.name.endswith(RECIPE_SUFFIX) else inside.stem
            target = out / inside.with_name(f"{name}.{format}")
            other = next((other for other, taken in files.items() if taken == target and other != file), None)
            if other is not None:
                raise ValueError(f"{file} and {other} would both become {target}; restore them to different --out")
            files[file] = target
    return list(files.items())


def _recorded(recipe: Recipe, file: Path) -> str:
    from everyframe.features import FeaturesError

    if not isinstance(recipe.model.get("id"), str):
        raise FeaturesError(f"{file} does not say which model made it; pass --model")
    return str(recipe.model["id"])


def _reader(recipe: Recipe, model: Model, residual: str | None) -> Model | Encoder:
    """The model, or where a tokenizer is named, ResidualViT with it."""
    from everyframe.encoders import ResidualViT

    if residual is None:
        return model
    options = {name: value for name, value in recipe.encoder.items() if name not in ("encoder", "residual")}
    if recipe.encoder.get("encoder") != "residual":
        raise ValueError(f"--residual has no meaning for a recipe of --encoder {recipe.encoder.get('encoder')}")
    return ResidualViT(model, **options, residual=residual)


def _check_free(target: Path, recipe: Recipe, *, partial: bool) -> None:
    """Raise FeaturesError where the file is not of everyframe, of another video, or more than a part of this one."""
    from everyframe.feature_files import ForeignFileError
    from everyframe.features import FeaturesError, VideoFeatures

    if not target.exists():
        return
    try:
        there = VideoFeatures.load(target)
    except ForeignFileError as error:
        raise FeaturesError(f"{error}; it is not overwritten: choose another --out") from error
    except FeaturesError:
        return  # cut short
    if any(there.video.get(key) != recipe.video.get(key) for key in ("path", "fingerprint")):
        raise FeaturesError(f"{target} holds the features of {there.video.get('path')}; choose another --out")
    if partial and "slice_seconds" not in there.settings:
        raise FeaturesError(f"{target} holds the whole video; choose another --out for a part of it")
