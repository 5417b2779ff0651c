"""everyframe search, everyframe ground."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.encoder import choose_encoder
from everyframe.cli.groups import option_groups
from everyframe.cli.libraries import chosen_collection
from everyframe.cli.options import (
    DeviceOption,
    DtypeOption,
    FpsOption,
    JsonOption,
    ModelOption,
    PartialOption,
    check_query,
    given,
    load_model,
    model_of,
    model_recorded,
)
from everyframe.cli.reading import FrameEncoding
from everyframe.cli.times import parse_date, parse_seconds

if TYPE_CHECKING:
    from everyframe.backbone import Model
    from everyframe.features import FeaturesError
    from everyframe.tasks.retrieval import Hit


@app.command(context_settings={"ignore_unknown_options": True})
def search(
    place: Annotated[str, typer.Argument(help="A library, a folder of feature files, or one feature file.")],
    queries: Annotated[
        list[str] | None,
        typer.Argument(help='What to look for; several combine. "-people" is what to stay away from, as is --without.'),
    ] = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="What to stay away from, as a text.")] = None,
    like: Annotated[
        list[str] | None, typer.Option("--like", help="An image, or a frame: VIDEO@SECONDS, such as movie.mp4@1:30.")
    ] = None,
    level: Annotated[
        str,
        typer.Option("--level", help="moment, clip (of --encoder tempme) or video: what a hit is."),
    ] = "moment",
    top: Annotated[int, typer.Option("--top", help="Hits to show.")] = 10,
    per_video: Annotated[
        int | None, typer.Option("--per-video", help="The most hits that one video may take. (default: 3)")
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", help="Of a library with several: one's label or part of it, or its id's beginning."
        ),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", help="Only videos in this folder, or whose name or path fits a pattern such as *2024*."),
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", help="Only videos changed on this date (2024-05-31, 2024-05) or later.")
    ] = None,
    before: Annotated[str | None, typer.Option("--before", help="Only videos changed before this date.")] = None,
    min_duration: Annotated[
        str | None, typer.Option("--min-duration", help="Only videos at least so long: 90, 90s, 5m, 1h30m.")
    ] = None,
    max_duration: Annotated[str | None, typer.Option("--max-duration", help="Only videos at most so long.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Of a library look at every frame.")] = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best moments, clips or videos for texts and pictures, in a library or a folder of features."""
    from everyframe.library import is_library
    from everyframe.tasks.retrieval import LEVELS

    asked = Asked.of(queries or (), without or (), like or ())
    chosen = next((each for each in LEVELS if each == level), None)
    if chosen is None:
        raise ValueError(f"--level must be one of {', '.join(LEVELS)}, got {level!r}")
    options: dict[str, Any] = {"level": chosen, "top": top, **given(per_video=per_video)}
    conditions = given(
        collection=collection,
        path=path,
        after=after,
        before=before,
        min_duration=min_duration,
        max_duration=max_duration,
        exact=exact or None,
    )
    failures: list[tuple[Path, FeaturesError]] = []
    nothing = "nothing found"
    if is_library(place):
        rows, nothing = _search_library(place, asked, conditions, options, model, device)
        if not as_json:  # ids are long, and no row is wide
            rows = [{name: row[name] for name in ("video", "start", "end", "score")} for row in rows]
    else:
        for name in conditions:
            raise ValueError(
                f"--{name.replace('_', '-')} has a meaning with a library alone, and {place} is none; everyframe index "
                "makes one"
            )
        if not Path(place).exists():
            raise ValueError(f"{place}: there is no library or folder of features there")
        rows, failures = _search_features(Path(place), asked, options, model, device)
    console.show_moments(rows, asked.title, as_json, place=place, nothing=nothing)
    for _, error in failures:
        console.say(f"everyframe: {error}", style="red", error=True)
    if failures:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Asked:
    """What a search is for, before a model is loaded. likes: images and frames, as they were named."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    likes: tuple[str, ...]

    @classmethod
    def of(cls, queries: Sequence[str], without: Sequence[str], likes: Sequence[str]) -> Asked:
        """Raises ValueError where nothing is asked for, and a usage error for a misspelt option."""
        from everyframe.library.query import parse_query

        for query in (*queries, *without):
            if query.startswith("--"):
                raise typer.BadParameter(f"No such option: {query}")
            check_query(query)
        whole = [query for query in queries if re.match(r'-[^\s"]', query)]  # the shell has taken the quotes
        said = parse_query(*(query for query in queries if query not in whole))
        negative = (*said.negative, *(query[1:].strip() for query in whole), *without)
        asked = cls(said.positive, negative, tuple(likes))
        if not asked.positive and not asked.likes:
            what = "there is only what to stay away from" if asked.negative else "there is no query"
            raise ValueError(f"{what}; say what to look for, as a text or with --like")
        return asked

    @property
    def title(self) -> str:
        wanted = [f'"{text}"' for text in self.positive] + [f"like {name}" for name in self.likes]
        away = [f'"{text}"' for text in self.negative]
        return ", ".join(wanted) + (f" without {', '.join(away)}" if away else "")

    def vectors(self, model: Model, frame: Callable[[str, float], Any | None]) -> Any:
        """One vector, or a `Query` of several. frame: the vector at a time of a video that is encoded, if it is one."""
        from everyframe.library.query import Query

        positive: list[Any] = [*model.encode_text(list(self.positive))] if self.positive else []
        positive += [_vector_like(name, model, frame) for name in self.likes]
        negative = [*model.encode_text(list(self.negative))] if self.negative else []
        return positive[0] if len(positive) == 1 and not negative else Query(tuple(positive), tuple(negative))


def _vector_like(name: str, model: Model, frame: Callable[[str, float], Any | None]) -> Any:
    """[dim], of an image, or of the frame of a video at a time."""
    from everyframe.encoders import DenseEncoder
    from everyframe.pipeline import encode_video

    video, at, seconds = name.rpartition("@")
    encoder = DenseEncoder(model)
    if not at or Path(name).exists():
        return encode_video(name, encoder).embeddings[0]
    time = parse_seconds(seconds, f"the time in --like {name}")
    known = frame(video, time)
    if known is not None:
        return known
    around = encode_video(video, encoder, start=max(time - 1.0, 0.0), end=time + 1.0)
    return around.embeddings[int(abs(around.times - time).argmin())]


def _search_library(
    place: str, asked: Asked, conditions: dict[str, Any], options: dict[str, Any], model: str | None, device: str | None
) -> tuple[list[dict[str, Any]], str]:
    """Rows, and what to say where there are none."""
    from everyframe.library import Library, LibraryError
    from everyframe.library.filters import Filter

    limits: dict[str, Any] = {
        name: parse_date(conditions[name], f"--{name}") for name in ("after", "before") if name in conditions
    }
    for end in ("min", "max"):
        if f"{end}_duration" in conditions:
            limits[f"{end}_seconds"] = parse_seconds(conditions[f"{end}_duration"], f"--{end}-duration")
    where = Filter(paths=tuple(conditions.get("path", ())), **limits)
    with Library(place) as library:
        if not library.collections():
            raise LibraryError(f"{place} holds no videos yet; everyframe index adds some")
        collection = chosen_collection(library, conditions.get("collection"))

        def frame(video: str, seconds: float) -> Any | None:
            try:
                return library.frame(video, seconds, collection.id)
            except LibraryError:
                if not Path(video).exists():
                    raise
                return None

        query = asked.vectors(model_recorded(collection.model, model, device), frame)
        hits = library.search(query, collection=collection.id, where=where, exact="exact" in conditions, **options)
        nothing = "nothing found"
        if not hits and collection.num_videos and not library.videos(collection.id, where):
            count = collection.num_videos
            nothing = f"none of the {count} videos passes the filters" if count > 1 else "its one video is filtered out"
    return [{**_row(hit), "peak": hit.peak, "id": str(hit.id)} for hit in hits], nothing


def _search_features(
    folder: Path, asked: Asked, options: dict[str, Any], model: str | None, device: str | None
) -> tuple[list[dict[str, Any]], list[tuple[Path, FeaturesError]]]:
    from everyframe.features import FeaturesError, VideoFeatures
    from everyframe.library.query import direction
    from everyframe.tasks.retrieval import load_folder
    from everyframe.tasks.retrieval import search as search_features

    failures: list[tuple[Path, FeaturesError]] = []
    videos = iter([VideoFeatures.load(folder)]) if folder.is_file() else load_folder(folder, failures=failures)
    first = next(videos, None)
    if first is None:
        raise FeaturesError(f"none of the feature files in {folder} can be read: {failures[0][1]}")
    text_model = model_of(first, model, device)
    query = direction(asked.vectors(text_model, lambda video, seconds: None), first.dim, text_model.name)

    def all_videos() -> Iterator[VideoFeatures]:
        yield first
        yield from videos

    hits = search_features(all_videos(), query.unit, **options)
    return [_row(replace(hit, score=hit.score * query.length)) for hit in hits], failures


def _row(hit: Hit) -> dict[str, Any]:
    return {"video": hit.video, "start": hit.start, "end": hit.end, "score": round(hit.score, 4)}


@app.command()
@option_groups
def ground(
    source: Annotated[str, typer.Argument(help="A video, or its feature file.")],
    query: Annotated[str, typer.Argument(help="The sentence to find.")],
    top: Annotated[int, typer.Option("--top", help="Moments to show.")] = 5,
    smooth: Annotated[float | None, typer.Option("--smooth", help="Moving average, seconds. (default: 5)")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Level as a multiple of the mean. (default: 1)")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Largest IoU of two moments; 0 keeps them apart. (default: 0.5)")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="watershed, half-height, contrast or whole. (default: watershed)")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw curve, moments and thumbnails to this .png/.svg/.pdf.")
    ] = None,
    model: ModelOption = None,
    fps: FpsOption = None,
    *,
    encoding: FrameEncoding,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find when a sentence happens in one video."""
    from everyframe.extras import require
    from everyframe.features import SUFFIXES, VideoFeatures
    from everyframe.pipeline import encode_video
    from everyframe.tasks.grounding import ground as ground_features

    check_query(query)
    if plot is not None:
        require("matplotlib", extra="plot")  # before the work, not after it
        if plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot must end in .png, .svg or .pdf, got {plot}")
    if Path(source).suffix.lower() in SUFFIXES:
        if encoding.asked or fps is not None or dtype is not None or keep_partial:
            raise ValueError(f"{source} is encoded already: options of encoding have no meaning with a feature file")
        feats = VideoFeatures.load(source)
        text_model = model_of(feats, model, device)
    else:
        choice = choose_encoder(**encoding.options)
        text_model = load_model(model, device, dtype, None)
        reader = choice.make(text_model, fps=fps)
        feats = encode_video(source, reader, **given(fps=fps), keep_partial=keep_partial)
    vector = text_model.encode_text([query])[0]
    options: dict[str, Any] = given(smooth=smooth, threshold=threshold, method=method, overlap=overlap)
    moments = ground_features(feats, vector, top=top, **options)
    rows = [{"start": round(m.start, 3), "end": round(m.end, 3), "score": round(m.score, 4)} for m in moments]
    console.show_moments(rows, f'"{query}" in {Path(str(feats.video.get("path"))).name}', as_json)
    if plot is not None:
        from everyframe.report import plot_grounding

        plot_grounding(feats, vector, moments, plot, title=query, **given(smooth=smooth))
