"""everyframe export."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.clips import ClipProgress, check_none
from everyframe.cli.options import DeviceOption, JsonOption, QuietOption, given, model_recorded

if TYPE_CHECKING:
    from everyframe.exports import Exported, ExportedTexts, Query, Verified

_FEW = 5  # names shown of a list; all of them are in --json and in the files


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="Folder of the export: new, empty, or to be added to.")],
    features: Annotated[
        list[str] | None,
        typer.Argument(help="Feature files, or folders of them. For webdataset also shards, libraries, addresses."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", help="moment-detr, lighthouse, opentad, actionformer, mad, vslnet, tfvtg or webdataset."),
    ] = None,
    webdataset: Annotated[bool, typer.Option("--webdataset", help="The same as --to webdataset: tar shards.")] = False,
    shard_mb: Annotated[
        int | None, typer.Option("--shard-mb", help="Size of a webdataset shard, in MB. (default: 256)", min=1)
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", help="Of a library that has several, for webdataset.")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", help="Of the data set: which videos it has, texts to encode, windows to verify."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            help="Rows per second. (default: 0.5 for moment-detr and lighthouse, 5 for mad, 3 for "
            "tfvtg, else that of the features)",
        ),
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(
            "--phase",
            help="Row k stands for k/rate (start) or (k + 0.5)/rate (middle). (default: middle for "
            "moment-detr and lighthouse, else start)",
        ),
    ] = None,
    how: Annotated[
        str | None, typer.Option("--how", help="A row is the nearest stored frame, or their mean. (default: nearest)")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="float32 or float16. (default: float32; float16 for tfvtg; as stored for webdataset)"
        ),
    ] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Make every row a unit vector.")] = False,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", help="Before a video's name in its file. (default: v_ for opentad and actionformer)"),
    ] = None,
    strip: Annotated[str | None, typer.Option("--strip", help="Taken off the beginning of a video's name.")] = None,
    max_rows: Annotated[int | None, typer.Option("--max-rows", help="Cut a video after so many rows.")] = None,
    text: Annotated[
        bool | None,
        typer.Option(
            "--text/--no-text", help="Text features of the annotations. (default: where the trainer reads any)"
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Tokens kept of a text. (default: 32; all for mad)")
    ] = None,
    text_prefix: Annotated[
        str | None, typer.Option("--text-prefix", help="Before the qid in a text's file; '' for TACoS. (default: qid)")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the files back and map the annotated windows to rows.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", help="For texts. (default: as recorded)")] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write features, and texts, in the layout of another trainer, with the lines its configuration needs.

    Or as webdataset shards. Without FEATURES, --verify checks an export made before.
    """
    to = _target(to, webdataset)
    of_texts = given(max_tokens=max_tokens, text_prefix=text_prefix)
    if to == "webdataset":
        others = given(
            rate=rate, phase=phase, how=how, prefix=prefix, strip=strip, max_rows=max_rows, annotations=annotations,
            normalise=normalise or None, text=text, verify=verify or None, model=model, device=device,
        )  # fmt: skip
        check_none("--to webdataset, which keeps features as they are", others | of_texts)
        _shards(features, out, shard_mb, given(dtype=dtype, collection=collection), as_json=as_json, quiet=quiet)
        return
    check_none(f"--to {to}", given(shard_mb=shard_mb, collection=collection))
    from everyframe.exports import TARGETS
    from everyframe.exports import export as export_features
    from everyframe.exports import verify as verify_export
    from everyframe.exports.targets import find_target

    find_target(to)
    options: dict[str, Any] = given(
        rate=rate, phase=phase, how=how, dtype=dtype, prefix=prefix, strip=strip, max_rows=max_rows,
        normalise=normalise or None,
    )  # fmt: skip
    _check(features, to, annotations, options, of_texts, text=text, verify=verify)
    queries, faults = ([], []) if annotations is None else _read(annotations)
    silent = as_json or quiet
    exported: Exported | None = None
    texts: ExportedTexts | None = None
    failures = list(faults)
    if features:
        with ClipProgress(silent=silent) as progress:
            exported = export_features(
                list(features), to, out, queries=queries, progress=partial(progress, "videos"), **options
            )
        failures += exported.failures
        if exported.videos and annotations is not None and TARGETS[to].texts is not None and text is not False:
            try:
                texts = _texts(exported, queries, to, out, annotations, model, device, silent, max_tokens, text_prefix)
                failures += texts.failures
            except ValueError as error:  # of the model or the texts; the videos are there all the same
                failures.append(("texts", f"no text features: {error}"))
    checked = verify_export(to, out, queries) if verify and (exported is None or exported.videos) else None
    failures += checked.failures if checked else ()
    if as_json:
        print(json.dumps(_facts(exported, texts, checked, failures), indent=2))
    elif not quiet:
        _show(exported, texts, checked)
    for _, why in failures:
        console.say(f"everyframe: {why}", style="red", error=True)
    nothing_met = checked is not None and checked.windows > 0 and not checked.on_rows
    if failures or nothing_met or (exported is not None and not exported.videos):
        raise typer.Exit(1)


def _target(to: str | None, webdataset: bool) -> str:
    if webdataset and to not in (None, "webdataset"):
        raise ValueError(f"--webdataset and --to {to} are two layouts; give one")
    if to is None and not webdataset:
        raise ValueError("say in which layout: --to, or --webdataset")
    return to or "webdataset"


def _shards(
    features: list[str] | None, out: Path, shard_mb: int | None, options: dict[str, Any], *, as_json: bool, quiet: bool
) -> None:
    from everyframe.exports import export_shards

    if not features:
        raise ValueError("nothing to export: give feature files, or folders, shards, libraries of features")
    with ClipProgress(silent=as_json or quiet) as progress:
        size = given(shard_bytes=None if shard_mb is None else shard_mb * 1_000_000)
        made = export_shards(features, out, progress=partial(progress, "sources"), **size, **options)
    if as_json:
        facts = {**dataclasses.asdict(made), "target": "webdataset", "failures": [why for _, why in made.failures]}
        print(json.dumps(facts, indent=2, default=str))
    elif not quiet:
        there = f", {_count(made.there, 'video')} there before" if made.there else ""
        console.say(
            f"{made.folder}: {_count(made.videos, 'video')}, {made.frames} rows of {made.dim or 0} in "
            f"{_count(len(made.shards), 'shard')}{there}"
        )
    for _, why in made.failures:
        console.say(f"everyframe: {why}", style="red", error=True)
    if made.failures:
        raise typer.Exit(1)


def _check(
    features: list[str] | None,
    to: str,
    annotations: Path | None,
    options: dict[str, Any],
    of_texts: dict[str, Any],
    *,
    text: bool | None,
    verify: bool,
) -> None:
    """Only options that have a meaning with each other. Raises ValueError."""
    from everyframe.exports import TARGETS

    layout = TARGETS[to].texts
    if not features and not verify:
        raise ValueError("nothing to export: give feature files or folders, or --verify for an export made before")
    if verify and annotations is None:
        raise ValueError("--verify needs --annotations, whose windows it maps to rows")
    if text and layout is None:
        raise ValueError(f"--text has no meaning with --to {to}, which makes its own text features")
    if text and (annotations is None or not features):
        raise ValueError("--text needs --annotations with the texts, and the features whose model encodes them")
    if not features:
        check_none("--verify alone, which checks an export as it is", options | of_texts)
    if layout is None or text is False or annotations is None:
        check_none("an export without text features", of_texts)
    if layout == "h5":
        check_none(f"--to {to}, whose texts have no files of their own", given(text_prefix=of_texts.get("text_prefix")))


def _read(path: Path) -> tuple[list[Query], list[tuple[str, str]]]:
    """The queries of an annotation file of any kind, and the entries that cannot be used."""
    from everyframe.evaluation.moment_files import read_moments
    from everyframe.evaluation.reading import read_raw, text_of
    from everyframe.evaluation.segment_files import plain_id, read_activities
    from everyframe.exports import Query

    raw = read_raw(path)
    if raw.is_dict and "database" in raw.value:
        activities = read_activities(path)
        names = {plain_id(name): name for name in raw.value["database"]}
        return [
            Query(
                id=names[video],
                video=names[video],
                windows=tuple((one.start, one.end) for one in own.segments),
                duration=own.duration,
            )
            for video, own in activities.videos.items()
        ], []
    raw = raw.as_lines("qid")
    if raw.is_list and isinstance(raw.first, dict) and "qid" in raw.first and "relevant_windows" not in raw.first:
        # A test split: texts without windows.
        return [
            Query(
                id=text_of(entry, ("qid",), where),
                video=text_of(entry, ("vid",), where),
                text=text_of(entry, ("query",), where),
            )
            for where, entry in raw.entries()
        ], []
    moments = read_moments(path)
    queries = [
        Query(id=one.qid, video=one.video, text=one.text, windows=one.windows, duration=one.duration)
        for one in moments.queries
    ]
    return queries, [(str(path), str(fault)) for fault in moments.faults]


def _texts(
    exported: Exported,
    queries: list[Query],
    to: str,
    out: Path,
    annotations: Path,
    model: str | None,
    device: str | None,
    silent: bool,
    max_tokens: int | None,
    prefix: str | None,
) -> ExportedTexts:
    from everyframe.exports import export_texts

    encoder = model_recorded(exported.model, model, device)
    with ClipProgress(silent=silent) as progress:
        return export_texts(
            encoder, queries, to, out, split=annotations.stem, progress=partial(progress, "texts"),
            **given(max_tokens=max_tokens, prefix=prefix),
        )  # fmt: skip


def _facts(
    exported: Exported | None, texts: ExportedTexts | None, checked: Verified | None, failures: list[tuple[str, str]]
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if exported is not None:
        facts["export"] = {
            "target": exported.target,
            "folder": str(exported.folder),
            "rate": exported.rate,
            "dim": exported.dim,
            "videos": exported.videos,
            "missing": exported.missing,
            "notes": exported.notes,
            "config": exported.config.lines if exported.config else [],
            "config_files": list(exported.config.files) if exported.config else [],
        }
    if texts is not None:
        facts["texts"] = {"count": texts.count, "cut": texts.cut, "width": texts.width}
    if checked is not None:
        facts["verify"] = dataclasses.asdict(checked)
    facts["failures"] = [why for _, why in failures]
    return facts


def _show(exported: Exported | None, texts: ExportedTexts | None, checked: Verified | None) -> None:
    if exported is not None and exported.videos:
        rows = sum(entry["rows"] for entry in exported.videos.values())
        console.say(
            f"{exported.folder}: {_count(len(exported.videos), 'video')}, {rows} rows of {exported.dim}, "
            f"{exported.rate:g} per second"
        )
        for note in exported.notes:
            console.say(f"  {note}", style="yellow")
        if exported.missing:
            console.say(
                f"  no features of {_count(len(exported.missing), 'annotated video')}: {_some(exported.missing)}"
            )
    if texts is not None:
        cut = f", {texts.cut} cut" if texts.cut else ""
        console.say(f"{texts.files[0].parent}: {_count(texts.count, 'text')}, tokens of {texts.width}{cut}")
    if exported is not None and exported.config is not None:
        console.say(f"for {exported.target}, also in {', '.join(exported.config.files)}:")
        for line in exported.config.lines:
            console.say(f"  {line}")
    if checked is not None:
        _show_check(checked)


def _show_check(checked: Verified) -> None:
    share = f" ({checked.on_rows / checked.windows:.1%})" if checked.windows else ""
    console.say(f"verify: {checked.on_rows} of {checked.windows} windows on at least one row{share}")
    for count, what in (
        (checked.without_features, f"of {len(checked.missing)} videos without features: {_some(checked.missing)}"),
        (checked.between_rows, "shorter than a row and between two"),
        (checked.outside, "outside their video's rows"),
        (checked.empty, "that end where or before they start"),
        (checked.beyond_end, "(of those on rows) that end more than a row after the last"),
    ):
        if count:
            console.say(f"  {_count(count, 'window')} {what}", style="yellow")
    if checked.misnamed:
        console.say(
            f"  but for a v_, {len(checked.misnamed)} of these are there: --prefix v_ puts it before a name, "
            "--strip v_ takes it off",
            style="yellow",
        )
    if checked.durations:
        video, annotated, exported = max(checked.durations, key=lambda each: abs(each[1] - each[2]))
        console.say(
            f"  {_count(len(checked.durations), 'video')} of another length than annotated, by more than a row; most: "
            f"{video}, {annotated:g} s annotated, {exported:g} s encoded",
            style="yellow",
        )
    for one in checked.examples:
        console.say(
            f"  {one.query}: {one.start:g} to {one.end:g} s of {one.video} are rows {one.first} to {one.past - 1}"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
