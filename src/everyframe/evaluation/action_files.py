"""Which action a video shows: the split and class files of Kinetics, UCF101, Something-Something v2, VideoMAE and
ViFi-CLIP.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from everyframe.evaluation.annotations import plain_template
from everyframe.evaluation.reading import AnnotationError, Raw, delimiter_of, read_raw, table, text_of


@dataclass(frozen=True, kw_only=True)
class ActionSet:
    """Videos with the number of the class each shows, from 0."""

    videos: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] | None
    """Names in the order of the labels, where a class file was given."""
    path: str
    sha256: str

    def only(self, kept: Sequence[bool]) -> ActionSet:
        """The videos for which `kept` holds."""
        pairs = [pair for pair, keep in zip(zip(self.videos, self.labels, strict=True), kept, strict=True) if keep]
        return ActionSet(
            videos=tuple(video for video, _ in pairs),
            labels=tuple(label for _, label in pairs),
            classes=self.classes,
            path=self.path,
            sha256=self.sha256,
        )


def read_classes(path: str | os.PathLike[str]) -> dict[str, str]:
    """Class names by id, in the order of the ids.

    "1 ApplyEyeMakeup" a line (UCF101's classInd.txt), a table id,name with or without that header (ViFi-CLIP, X-CLIP),
    {"Approaching something": "0"} (SSv2's labels.json), or one name a line (ids from 0). Raises AnnotationError.
    """
    raw = read_raw(path)
    if raw.is_dict:
        found = {str(number): plain_template(str(name)) for name, number in raw.value.items()}
    elif raw.is_list:
        found = {str(number): str(name) for number, name in enumerate(raw.value)}
    else:
        found = _class_lines(raw)
    if any(not number.isdecimal() for number in found) or not found:
        raise raw.wrong("must give each class a whole number as its id")
    ordered = sorted(found, key=int)
    if [int(number) for number in ordered] != list(range(int(ordered[0]), int(ordered[0]) + len(ordered))):
        raise raw.wrong(f"ids must follow one another from 0 or 1, got {', '.join(ordered[:5])}, ...")
    if int(ordered[0]) > 1:
        raise raw.wrong(f"ids must start at 0 or 1, got {ordered[0]}")
    return {number: found[number] for number in ordered}


def read_actions(
    path: str | os.PathLike[str], *, classes: str | os.PathLike[str] | None = None, split: str | None = None
) -> ActionSet:
    """Read a split of an action recognition benchmark.

    A Kinetics table (label, youtube_id, time_start, time_end, split), whose videos are named
    <youtube_id>_<start>_<end> with six digits each; its classes are the labels in it, sorted, unless `classes` is
    given. split: which of its rows, by that column; all by default. No other layout names splits.

    Or lines of "path label", separated by spaces or by comma, semicolon or tab (VideoMAE's test.csv, ViFi-CLIP's
    splits, UCF101's trainlist); lines of a path alone, whose folder is the class (UCF101's testlist, needs `classes`);
    or JSON lists of {id, template} (Something-Something v2, needs `classes`: labels.json). A label is an id of the
    class file, so UCF101's count from 1; without a class file labels count from 0.

    Raises AnnotationError, which names file and line.
    """
    raw = read_raw(path)
    if _is_kinetics(raw):
        return _kinetics(raw, None if classes is None else tuple(read_classes(classes).values()), split)
    if split is not None:
        raise raw.wrong(f"has no column named split, so there is no split {split!r} to choose; leave out --split")
    ids = None if classes is None else read_classes(classes)
    numbers = None if ids is None else {name: index for index, name in enumerate(ids.values())}
    if raw.is_list:
        pairs = [_ssv2_entry(where, entry, numbers) for where, entry in raw.entries()]
    elif raw.kind == "lines":
        by_id = None if ids is None else {number: index for index, number in enumerate(ids)}
        pairs = [_line(raw, number, line, by_id, numbers) for number, line in raw.value]
    else:
        raise raw.wrong('must have lines of "path label" or be a JSON list of {id, template}')
    return _action_set(raw, pairs, None if ids is None else tuple(ids.values()))


def _action_set(raw: Raw, pairs: Sequence[tuple[str, int]], classes: tuple[str, ...] | None) -> ActionSet:
    if not pairs:
        raise AnnotationError(f"{raw.path}: names no video")
    seen: dict[str, int] = {}
    for video, label in pairs:
        if seen.setdefault(video, label) != label:
            raise AnnotationError(f"{raw.path}: {video} has two labels; each video has one")
    return ActionSet(
        videos=tuple(video for video, _ in pairs),
        labels=tuple(label for _, label in pairs),
        classes=classes,
        path=str(raw.path),
        sha256=raw.sha256,
    )


def match_labels(classes: Sequence[str] | None, labels: Sequence[str] | None) -> list[int] | None:
    """For each class of a dataset the model's output that means it; None: numbers mean the same on both sides.

    classes: the dataset's names, None where it has numbers alone. labels: the model's names. Names are compared by
    their letters and digits. A model whose labels are only numbered (LABEL_0) goes by number. Raises ValueError where
    the two name different things.
    """
    if classes is None or labels is None or all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        return None
    places = {_letters(label): index for index, label in enumerate(labels)}
    unknown = [name for name in classes if _letters(name) not in places]
    if unknown:
        raise ValueError(
            f"class {unknown[0]!r} is none of the model's {len(labels)} labels ({labels[0]!r}, ...); pass a class file "
            "in the model's words, or none if the label numbers of the annotations are the model's"
        )
    return [places[_letters(name)] for name in classes]


def _is_kinetics(raw: Raw) -> bool:
    return raw.kind == "lines" and {"youtube_id", "time_start", "time_end"} <= set(re.split(r"\W+", str(raw.first)))


def _kinetics(raw: Raw, classes: tuple[str, ...] | None, split: str | None) -> ActionSet:
    """The rows of one split. Raises AnnotationError."""
    (_, header), *rows = table(raw)
    if "label" not in header or (split is not None and "split" not in header):
        missing = "label" if "label" not in header else "split"
        raise raw.wrong(f"has no column {missing}; its columns are {', '.join(header)}")
    entries = []
    for where, row in rows:
        if len(row) != len(header):
            raise AnnotationError(f"{where}: must have {len(header)} fields like the header, got {len(row)}")
        entries.append((where, dict(zip(header, row, strict=True))))
    names = classes or tuple(sorted({entry["label"] for _, entry in entries}))
    numbers = {_letters(name): number for number, name in enumerate(names)}
    pairs = []
    for where, entry in entries:
        if split is not None and entry["split"] != split:
            continue
        if _letters(entry["label"]) not in numbers:
            raise AnnotationError(f"{where}: label {entry['label']!r} is not in the class file")
        pairs.append((_kinetics_name(where, entry), numbers[_letters(entry["label"])]))
    if not pairs and split is not None:
        known = sorted({entry["split"] for _, entry in entries})
        raise raw.wrong(f"has no video of the split {split!r}; its splits are {', '.join(known) or 'none'}")
    return _action_set(raw, list(dict.fromkeys(pairs)), names)


def _kinetics_name(where: str, entry: dict[str, str]) -> str:
    try:
        start, end = round(float(entry["time_start"])), round(float(entry["time_end"]))
    except ValueError as error:
        raise AnnotationError(f"{where}: time_start and time_end must be seconds ({error})") from error
    if not entry["youtube_id"] or not entry["label"]:
        raise AnnotationError(f"{where}: youtube_id and label must not be empty")
    return f"{entry['youtube_id']}_{start:06d}_{end:06d}"


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _class_lines(raw: Raw) -> dict[str, str]:
    first = raw.first
    if re.match(r"\s*\d+\s+\S", first):
        fields = [(f"{raw.path} line {number}", line.split(maxsplit=1)) for number, line in raw.value]
    elif first.count(delimiter_of(first)):
        fields = table(raw)
        if not fields[0][1][0].isdecimal():  # a header
            fields = fields[1:]
    else:
        return {str(index): line.strip() for index, (_, line) in enumerate(raw.value)}
    found: dict[str, str] = {}
    for where, row in fields:
        if len(row) < 2 or not row[0].isdecimal() or not row[1].strip():
            raise AnnotationError(f"{where}: must be an id and a name, got {' '.join(row)!r}")
        if row[0] in found:
            raise AnnotationError(f"{where}: gives id {row[0]} again")
        found[row[0]] = row[1].strip()
    return found


def _line(
    raw: Raw, number: int, line: str, by_id: dict[str, int] | None, by_name: dict[str, int] | None
) -> tuple[str, int]:
    """One line of a split. Paths may hold spaces: the label is what stands last."""
    where = f"{raw.path} line {number}"
    text = line.strip()
    match = re.fullmatch(r"(.+?)(?:\s*[,;]\s*|\s+)(-?\d+)", text)
    if match is None:
        return _by_folder(where, text.strip('"'), by_name)
    path, label = match[1].strip('"'), match[2]
    if label.startswith("-"):
        raise AnnotationError(f"{where}: the label must be at least 0, got {label}")
    if by_id is None:
        return path, int(label)
    if label not in by_id:
        raise AnnotationError(f"{where}: label {label} is not in the class file, whose ids are {_span(by_id)}")
    return path, by_id[label]


def _span(by_id: dict[str, int]) -> str:
    ids = list(by_id)
    return f"{ids[0]} to {ids[-1]}"


def _by_folder(where: str, path: str, by_name: dict[str, int] | None) -> tuple[str, int]:
    folder = os.path.basename(os.path.dirname(path))
    if by_name is None:
        raise AnnotationError(
            f"{where}: has no label after {path!r}; if its folder is the class, pass the class file (--classes, such "
            "as classInd.txt)"
        )
    if folder not in by_name:
        raise AnnotationError(f"{where}: must end with a label or lie in a folder named like its class, got {path!r}")
    return path, by_name[folder]


def _ssv2_entry(where: str, entry: dict[str, object], numbers: dict[str, int] | None) -> tuple[str, int]:
    video = text_of(entry, ("id",), where)
    name = plain_template(text_of(entry, ("template",), where))
    if numbers is None:
        raise AnnotationError(f"{where}: gives a template; pass labels.json as the class file (--classes)")
    if name not in numbers:
        raise AnnotationError(f"{where}: template {name!r} is not in the class file")
    return video, numbers[name]
