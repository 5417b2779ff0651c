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

Pair = tuple[Sequence[str], str]
"""The videos that a text describes (nearly always one), and the text."""


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

    def __post_init__(self) -> None:
        if not self.texts:
            raise AnnotationError(f"{self.path}: names no text of a video")

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
    pairs: Callable[[Raw, str], Iterable[Pair]]
    """(file, split) -> pairs"""
    end_seconds: float | None = None


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
    separate queries.

    Raises AnnotationError, which names file and place, for a file that cannot be used or whose layout must be said.
    """
    raw = read_raw(path)
    name = layout or guess_layout(raw)
    if name not in LAYOUTS:
        raise AnnotationError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    chosen = LAYOUTS[name]
    try:
        pairs = list(chosen.pairs(raw, split))
    except (AttributeError, KeyError, TypeError) as error:  # a file of another layout than the one that was named
        raise AnnotationError(f"{raw.path}: is not a {name} file ({chosen.about}); leave out the layout") from error
    if only is not None:
        pairs = _restrict(pairs, read_names(only), os.fspath(only))
    if paragraph:
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


def texts_under(entry: dict[str, Any], key: str, where: str) -> list[str]:
    """One text or a list of them."""
    value = entry.get(key)
    texts = value if isinstance(value, list) else [value]
    found = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if not found or len(found) != len(texts):
        raise AnnotationError(f"{where}: {key} must be a text or a list of texts, got {value!r}")
    return found


def _umt(raw: Raw, split: str) -> Iterator[Pair]:
    for where, entry in raw.entries():
        key = "video" if "video" in entry else "image"
        videos = texts_under(entry, key, where)
        for text in texts_under(entry, "caption", where):
            yield videos, text


def _msrvtt_csv(raw: Raw, split: str) -> Iterator[Pair]:
    (_, header), *rows = table(raw)
    video, sentence = header.index("video_id"), header.index("sentence")
    for where, fields in rows:
        if len(fields) != len(header):
            raise AnnotationError(
                f"{where}: has {len(fields)} columns where the header has {len(header)} ({', '.join(header)}); "
                "put texts that hold the separator in quotes"
            )
        row = dict(enumerate(fields))
        if not row[video] or not row[sentence]:
            raise AnnotationError(f"{where}: video_id and sentence must not be empty")
        yield [row[video]], row[sentence]


def _msrvtt_json(raw: Raw, split: str) -> Iterator[Pair]:
    splits = {entry["video_id"]: entry.get("split") for entry in raw.value["videos"]}
    if split not in (*splits.values(), ALL):
        known = sorted({str(name) for name in splits.values()})
        raise raw.wrong(f"has no split {split!r}; its splits are {', '.join(known)}, or {ALL}")
    for number, entry in enumerate(raw.value["sentences"], 1):
        where = f"{raw.path} sentence {number}"
        video = text_of(entry, ("video_id",), where)
        if split == ALL or splits.get(video) == split:
            yield [video], text_of(entry, ("caption",), where)


def _frozen(raw: Raw, split: str) -> Iterator[Pair]:
    for number, entry in enumerate(raw.value["annotations"], 1):
        where = f"{raw.path} annotation {number}"
        yield [text_of(entry, ("image_id", "video_id"), where)], text_of(entry, ("caption",), where)


def _msvd(raw: Raw, split: str) -> Iterator[Pair]:
    for video, captions in raw.value.items():
        if not isinstance(captions, list) or not captions:
            raise AnnotationError(f"{raw.path} key {video!r}: must hold a list of captions, got {captions!r}")
        for caption in captions:
            text = caption if isinstance(caption, str) else " ".join(str(token) for token in caption)
            if not text.strip():
                raise AnnotationError(f"{raw.path} key {video!r}: has an empty caption")
            yield [str(video)], text.strip()


def _activitynet(raw: Raw, split: str) -> Iterator[Pair]:
    for video, entry in raw.value.items():
        yield [video], " ".join(texts_under(entry, "sentences", f"{raw.path} key {video!r}"))


def _didemo(raw: Raw, split: str) -> Iterator[Pair]:
    pairs = [
        ([text_of(entry, ("video",), where)], text_of(entry, ("description",), where)) for where, entry in raw.entries()
    ]
    return iter(_paragraphs(pairs))


def _lsmdc(raw: Raw, split: str) -> Iterator[Pair]:
    for where, fields in _unquoted(raw):
        if len(fields) < 2 or not fields[0] or not fields[-1]:
            raise AnnotationError(f"{where}: must have a clip name first and its sentence last, separated by tabs")
        yield [fields[0]], fields[-1]


def _unquoted(raw: Raw) -> Iterator[tuple[str, list[str]]]:
    """LSMDC's sentences hold bare quotation marks, so its tabs are plain."""
    for number, line in raw.value:
        yield f"{raw.path} line {number}", [field.strip() for field in line.split("\t")]


def _ssv2(key: str) -> Callable[[Raw, str], Iterator[Pair]]:
    def pairs(raw: Raw, split: str) -> Iterator[Pair]:
        videos: dict[str, list[str]] = {}
        for where, entry in raw.entries():
            text = plain_template(text_of(entry, (key,), where))
            videos.setdefault(text, []).append(text_of(entry, ("id",), where))
        for text, names in videos.items():
            yield names, text

    return pairs


def plain_template(text: str) -> str:
    """SSv2's "Putting [something] on [something]" without its brackets, as labels.json has it."""
    return re.sub(r"[\[\]]", "", text).strip()


def _paragraphs(pairs: Iterable[Pair]) -> list[Pair]:
    """One pair per video, its texts joined by spaces in their order."""
    joined: dict[tuple[str, ...], list[str]] = {}
    for videos, text in pairs:
        joined.setdefault(tuple(videos), []).append(text)
    return [(videos, " ".join(texts)) for videos, texts in joined.items()]


def _restrict(pairs: list[Pair], names: list[str], source: str) -> list[Pair]:
    wanted = {stem(name) for name in names}
    kept = [pair for pair in pairs if any(stem(video) in wanted for video in pair[0])]
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
    ),
    "didemo": Layout(
        "DiDeMo: [{video, description, times}]; a video's descriptions are joined, its first 30 s count",
        lambda raw: _has(raw, "video", "description"),
        _didemo,
        end_seconds=30.0,
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
