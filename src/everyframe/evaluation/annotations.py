"""Which text describes which video: the official annotation files of video-text retrieval.

`read_retrieval` guesses the layout from the content; `LAYOUTS` lists them all. A new one is a function and a line.

    T texts, V videos
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from everyframe.evaluation.reading import AnnotationError, Raw, read_raw, stem, table, text_of

ALL = "all"
"""In place of a split: the whole file."""


@dataclass(frozen=True, kw_only=True)
class NoText:
    """A place in a file where a text of a video should be and none is."""

    video: str
    why: str
    """File, place and what is missing, in one sentence."""


Pair = tuple[Sequence[str], str]
"""The videos that a text describes (nearly always one), and the text."""
Entry = Pair | NoText


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Texts and videos of one split, with what belongs together."""

    videos: tuple[str, ...]
    """V names as the file has them; the extension may be missing."""
    texts: tuple[str, ...]
    """T queries as the file has them."""
    videos_of_text: tuple[tuple[int, ...], ...]
    """For each text the videos that it describes, at least one."""
    layout: str
    path: str
    sha256: str
    end_seconds: float | None = None
    """How much of each video counts, from its beginning; None for all of it."""
    skipped: tuple[NoText, ...] = ()
    """Texts that are missing or empty. A video that has no other is not in `videos`."""

    @property
    def num_named(self) -> int:
        """Videos that the file names, with those that have no text."""
        return len({*self.videos, *(each.video for each in self.skipped)})

    def __post_init__(self) -> None:
        if not self.texts:
            more = f"; the first of {len(self.skipped)} that are empty: {self.skipped[0].why}" if self.skipped else ""
            raise AnnotationError(f"{self.path}: names no text of a video{more}")

    def only(self, kept: Sequence[bool]) -> RetrievalSet:
        """The videos for which `kept` [V] holds, and the texts that still have one."""
        number = {old: new for new, old in enumerate(video for video, keep in enumerate(kept) if keep)}
        left = [
            (text, tuple(number[video] for video in videos if video in number))
            for text, videos in zip(self.texts, self.videos_of_text, strict=True)
        ]
        left = [(text, videos) for text, videos in left if videos]
        return replace(
            self,
            videos=tuple(self.videos[old] for old in number),
            texts=tuple(text for text, _ in left),
            videos_of_text=tuple(videos for _, videos in left),
        )


@dataclass(frozen=True)
class Layout:
    """One kind of annotation file."""

    about: str
    recognises: Callable[[Raw], bool]
    entries: Callable[[Raw, str], Iterable[Entry]]  # of (file, split)
    end_seconds: float | None = None
    joined: bool = False
    """Whether the texts of a video are always one query."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How a dataset is evaluated: longest text in tokens (UMT), texts of a video joined or not, seconds that count."""

    max_tokens: int
    paragraph: bool = False
    end_seconds: float | None = None
    frames: int = 12
    """Of a video, where TempMe or a mean over frames reads it; a model that reads clips has its own number."""
    words: int = 32
    """Longest text in tokens beside them."""


BENCHMARKS = {
    "msrvtt": Benchmark(max_tokens=32),
    "msvd": Benchmark(max_tokens=64),
    "activitynet": Benchmark(max_tokens=150, paragraph=True, frames=64, words=64),
    "didemo": Benchmark(max_tokens=64, paragraph=True, end_seconds=30.0, frames=64, words=64),
    "lsmdc": Benchmark(max_tokens=96),
    "ssv2-label": Benchmark(max_tokens=25),
    "ssv2-template": Benchmark(max_tokens=25),
}


def read_retrieval(
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    split: str = "test",
    paragraph: bool = False,
    only: str | os.PathLike[str] | None = None,
) -> RetrievalSet:
    """Read the texts and videos of a retrieval benchmark.

    layout: one of `LAYOUTS`; guessed from the content where it can be. split: of files that hold several (MSR-VTT's
    videodatainfo), "all" for the whole file: the 9,000 training videos of 1k-A come from all three splits. paragraph:
    join all texts of a video into one query (the UMT files of ActivityNet and DiDeMo; their original files are always
    joined). only: a list of video names, one a line or in the column video_id, where the file holds more than the
    split (MSVD's test_list.txt, MSRVTT_train.9k.csv). A video that occurs again is the same video; equal texts stay
    separate queries. Texts that are missing or empty are left out, and `skipped` says where.

    Raises AnnotationError, which names file and place, for a file that cannot be used or whose layout must be said.
    """
    raw = read_raw(path)
    name = layout or guess_layout(raw)
    if name not in LAYOUTS:
        raise AnnotationError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    chosen = LAYOUTS[name]
    try:
        entries = list(chosen.entries(raw, split))
    except (AttributeError, KeyError, TypeError) as error:  # a file of another layout than the one that was named
        raise AnnotationError(f"{raw.path}: is not a {name} file ({chosen.about}); leave out the layout") from error
    if only is not None:
        entries = _restrict(entries, read_names(only), os.fspath(only))
    pairs = [entry for entry in entries if not isinstance(entry, NoText)]
    if paragraph or chosen.joined:
        pairs = _paragraphs(pairs)
    numbers: dict[str, int] = {}
    found = [
        (text, tuple(dict.fromkeys(numbers.setdefault(video, len(numbers)) for video in videos)))
        for videos, text in pairs
    ]
    return RetrievalSet(
        videos=tuple(numbers),
        texts=tuple(text for text, _ in found),
        videos_of_text=tuple(videos for _, videos in found),
        layout=name,
        path=str(raw.path),
        sha256=raw.sha256,
        end_seconds=chosen.end_seconds,
        skipped=tuple(entry for entry in entries if isinstance(entry, NoText)),
    )


def guess_layout(raw: Raw) -> str:
    """The layout of a retrieval file from its content. Raises AnnotationError where none or several fit."""
    fitting = [name for name, layout in LAYOUTS.items() if layout.recognises(raw)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise raw.wrong(f"can be read as {' or '.join(fitting)}; say which with layout (--layout)")
    raise raw.wrong(f"has no layout that is known here ({', '.join(LAYOUTS)})")


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Video names from a list with one a line, the column video_id of a table, or a JSON list."""
    raw = read_raw(path)
    if "video_id" in _header(raw):
        (_, header), *rows = table(raw)
        if "video_id" in header:
            column = header.index("video_id")
            return [fields[column] for _, fields in rows if len(fields) > column]
    if raw.kind == "lines":
        return [line.strip() for _, line in raw.value]
    if raw.is_list and all(isinstance(item, str) for item in raw.value):
        return list(raw.value)
    raise raw.wrong("must be a list of video names, one a line")


def _names_under(entry: dict[str, Any], key: str, where: str) -> list[str]:
    """One name or a list of them."""
    value = entry.get(key)
    names = value if isinstance(value, list) else [value]
    found = [name.strip() for name in names if isinstance(name, str) and name.strip()]
    if not found or len(found) != len(names):
        raise AnnotationError(f"{where}: {key} must be a text or a list of texts, got {value!r}")
    return found


def _texts_under(entry: dict[str, Any], key: str, videos: Sequence[str], where: str) -> Iterator[Entry]:
    """A pair for one text or for each of a list."""
    value = entry.get(key)
    texts = value if isinstance(value, list) else [value]
    if not texts:
        yield NoText(video=videos[0], why=f"{where}: has no {key}")
    for number, text in enumerate(texts, 1):
        if _is_missing(text):
            yield NoText(video=videos[0], why=f"{where}: {key}{f' {number}' if len(texts) > 1 else ''} is empty")
        elif isinstance(text, str):
            yield videos, text.strip()
        else:
            raise AnnotationError(f"{where}: {key} must be a text or a list of texts, got {value!r}")


def _text_under(entry: dict[str, Any], key: str, video: str, where: str) -> Entry:
    """A pair for the one text of an entry."""
    if _is_missing(entry.get(key)):
        return NoText(video=video, why=f"{where}: {key} is empty")
    return [video], text_of(entry, (key,), where)


def _is_missing(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def _umt(raw: Raw, split: str) -> Iterator[Entry]:
    for where, entry in raw.entries():
        videos = _names_under(entry, "video" if "video" in entry else "image", where)
        yield from _texts_under(entry, "caption", videos, where)


def _msrvtt_csv(raw: Raw, split: str) -> Iterator[Entry]:
    (_, header), *rows = table(raw)
    video, sentence = header.index("video_id"), header.index("sentence")
    for where, fields in rows:
        if len(fields) != len(header):
            raise AnnotationError(
                f"{where}: has {len(fields)} columns where the header has {len(header)} ({', '.join(header)}); "
                "put texts that hold the separator in quotes"
            )
        if not fields[video]:
            raise AnnotationError(f"{where}: video_id must not be empty")
        yield _text_under({"sentence": fields[sentence]}, "sentence", fields[video], where)


def _msrvtt_json(raw: Raw, split: str) -> Iterator[Entry]:
    splits = {entry["video_id"]: entry.get("split") for entry in raw.value["videos"]}
    if split not in (*splits.values(), ALL):
        known = sorted({str(name) for name in splits.values()})
        raise raw.wrong(f"has no split {split!r}; its splits are {', '.join(known)}, or {ALL}")
    for number, entry in enumerate(raw.value["sentences"], 1):
        where = f"{raw.path} sentence {number}"
        video = text_of(entry, ("video_id",), where)
        if split == ALL or splits.get(video) == split:
            yield _text_under(entry, "caption", video, where)


def _frozen(raw: Raw, split: str) -> Iterator[Entry]:
    for number, entry in enumerate(raw.value["annotations"], 1):
        where = f"{raw.path} annotation {number}"
        yield _text_under(entry, "caption", text_of(entry, ("image_id", "video_id"), where), where)


def _msvd(raw: Raw, split: str) -> Iterator[Entry]:
    for video, captions in raw.value.items():
        where = f"{raw.path} key {video!r}"
        if not isinstance(captions, list):
            raise AnnotationError(f"{where}: must hold a list of captions, got {captions!r}")
        texts = [" ".join(map(str, text)) if isinstance(text, (list, tuple)) else text for text in captions]
        yield from _texts_under({"caption": texts}, "caption", [str(video)], where)


def _activitynet(raw: Raw, split: str) -> Iterator[Entry]:
    for video, entry in raw.value.items():
        yield from _texts_under(entry, "sentences", [video], f"{raw.path} key {video!r}")


def _didemo(raw: Raw, split: str) -> Iterator[Entry]:
    for where, entry in raw.entries():
        yield _text_under(entry, "description", text_of(entry, ("video",), where), where)


def _lsmdc(raw: Raw, split: str) -> Iterator[Entry]:
    for where, fields in _unquoted(raw):
        if len(fields) < 2 or not fields[0]:
            raise AnnotationError(f"{where}: must have a clip name first and its sentence last, separated by tabs")
        yield _text_under({"sentence": fields[-1]}, "sentence", fields[0], where)


def _unquoted(raw: Raw) -> Iterator[tuple[str, list[str]]]:
    """LSMDC's sentences hold bare quotation marks, so its tabs are plain."""
    for number, line in raw.value:
        yield f"{raw.path} line {number}", [field.strip() for field in line.split("\t")]


def _ssv2(key: str) -> Callable[[Raw, str], Iterator[Entry]]:
    def entries(raw: Raw, split: str) -> Iterator[Entry]:
        videos: dict[str, list[str]] = {}
        for where, entry in raw.entries():
            found = _text_under(entry, key, text_of(entry, ("id",), where), where)
            if isinstance(found, NoText):
                yield found
            else:
                videos.setdefault(plain_template(found[1]), []).extend(found[0])
        for text, names in videos.items():
            yield names, text

    return entries


def plain_template(text: str) -> str:
    """SSv2's "Putting [something] on [something]" without its brackets, as labels.json has it."""
    return re.sub(r"[\[\]]", "", text).strip()


def _paragraphs(pairs: Iterable[Pair]) -> list[Pair]:
    """One pair per video, its texts joined by spaces in their order."""
    joined: dict[tuple[str, ...], list[str]] = {}
    for videos, text in pairs:
        joined.setdefault(tuple(videos), []).append(text)
    return [(videos, " ".join(texts)) for videos, texts in joined.items()]


def _restrict(entries: list[Entry], names: list[str], source: str) -> list[Entry]:
    wanted = {stem(name) for name in names}

    def named(entry: Entry) -> bool:
        return any(stem(video) in wanted for video in ([entry.video] if isinstance(entry, NoText) else entry[0]))

    kept = [entry for entry in entries if named(entry)]
    if not kept:
        raise AnnotationError(f"{source}: names none of the videos of the annotations; check that they belong together")
    return kept


def _has(raw: Raw, *keys: str) -> bool:
    """A JSON list whose first entry has these keys."""
    return raw.is_list and isinstance(raw.first, dict) and all(key in raw.first for key in keys)


def _header(raw: Raw) -> str:
    return raw.first if raw.kind == "lines" else ""


LAYOUTS: dict[str, Layout] = {
    "umt": Layout(
        'UMT and VindLU: [{"video": "video7020.mp4", "caption": "..." or [...]}], several videos of a text as a list',
        lambda raw: _has(raw, "caption") and ("video" in raw.first or "image" in raw.first),
        _umt,
    ),
    "msrvtt-csv": Layout(
        "MSR-VTT 1k-A (JSFUSION): a table with the columns video_id and sentence",
        lambda raw: "video_id" in _header(raw) and "sentence" in _header(raw),
        _msrvtt_csv,
    ),
    "msrvtt-json": Layout(
        "MSR-VTT videodatainfo: videos with their split, and sentences",
        lambda raw: raw.kind == "json" and raw.is_dict and {"videos", "sentences"} <= set(raw.value),
        _msrvtt_json,
    ),
    "frozen": Layout(
        "MSR_VTT.json of Frozen in Time: annotations with image_id and caption",
        lambda raw: raw.kind == "json" and raw.is_dict and "annotations" in raw.value and "videos" not in raw.value,
        _frozen,
    ),
    "msvd": Layout(
        "MSVD: {video: [captions]}, texts or lists of words, as JSON or as raw-captions.pkl",
        lambda raw: raw.is_dict and isinstance(raw.first, list) and not {"videos", "annotations"} & set(raw.value),
        _msvd,
    ),
    "activitynet": Layout(
        "ActivityNet Captions: {video: {sentences, timestamps, duration}}; a video's sentences are joined",
        lambda raw: raw.is_dict and isinstance(raw.first, dict) and "sentences" in raw.first,
        _activitynet,
        joined=True,
    ),
    "didemo": Layout(
        "DiDeMo: [{video, description, times}]; a video's descriptions are joined, its first 30 s count",
        lambda raw: _has(raw, "video", "description"),
        _didemo,
        end_seconds=30.0,
        joined=True,
    ),
    "lsmdc": Layout(
        "LSMDC: clip name, times and sentence, separated by tabs",
        lambda raw: "\t" in _header(raw) and "video_id" not in _header(raw),
        _lsmdc,
    ),
    "ssv2-label": Layout(
        "Something-Something v2: the label of each video; a text may have several videos",
        lambda raw: _has(raw, "id", "label"),
        _ssv2("label"),
    ),
    "ssv2-template": Layout(
        "Something-Something v2: the template of each video, without its brackets",
        lambda raw: _has(raw, "id", "template"),
        _ssv2("template"),
    ),
}
