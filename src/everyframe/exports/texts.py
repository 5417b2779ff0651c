"""Text features as Moment-DETR, lighthouse and MAD read them: every token, and the whole text.

L tokens, W width of the text tower, D of the joint space.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everyframe.exports.h5 import H5File, h5_name
from everyframe.exports.record import RECORD, Record
from everyframe.exports.targets import Query, find_target
from everyframe.feature_files import write_whole

if TYPE_CHECKING:
    from everyframe.backbone import Model

MAX_TOKENS = 32  # lighthouse and Moment-DETR read no more
_BATCH = 256
_Text = tuple[str, "NDArray[Any]", "NDArray[Any]"]


@dataclass(frozen=True, kw_only=True)
class ExportedTexts:
    """What one call wrote. cut: texts with more tokens than were kept. width: of a token, W."""

    files: tuple[Path, ...]
    count: int
    cut: int
    width: int
    failures: tuple[tuple[str, str], ...]


def export_texts(
    model: Model,
    queries: Iterable[Query],
    target: str,
    out: str | os.PathLike[str],
    *,
    max_tokens: int | None = None,
    prefix: str = "qid",
    split: str = "test",
    progress: Callable[[int, int], None] | None = None,
) -> ExportedTexts:
    """Write the features of all queries with a text, float32, not normalised (the trainers do that themselves).

    moment-detr, lighthouse: OUT/clip_text/<prefix><id>.npz with `last_hidden_state` [L, W], the tokens from start to
    end before the projection, at most `max_tokens` (32) of them, and `pooler_output` [D], the text after the
    projection. lighthouse's TACoS has no prefix. mad: two HDF5 files keyed by id, [D] texts, whose name ends in
    `split`, and [L, W] tokens, of all splits together.

    A text that is blank, or an id that came before, is in `failures`, and the rest goes on. Raises ValueError for a
    target without text features, no texts, or bad arguments; ModelError for a model without CLIP's text tower.
    """
    kind = find_target(target)
    if kind.texts is None:
        raise ValueError(f"{target} reads no text features; leave them out")
    if max_tokens is None and kind.texts == "npz":
        max_tokens = MAX_TOKENS
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    usable, failures = _usable(queries, kind.texts == "npz")
    if not usable:
        raise ValueError("the annotations have no texts" + (f": {failures[0][1]}" if failures else ""))
    seen = _Seen(max_tokens)
    texts = seen.watch(_encode(model, usable, progress))
    if kind.texts == "h5":
        files = _write_h5(texts, Path(out), model, split)
    else:
        header = {"model weights_sha256": model.weights_sha256, "max_tokens": max_tokens, "prefix": prefix}
        files = _write_npz(texts, Path(out) / "clip_text", header)
    return ExportedTexts(files=files, count=len(usable), cut=seen.cut, width=seen.width, failures=tuple(failures))


class _Seen:
    """Cuts texts to so many tokens, and counts."""

    def __init__(self, max_tokens: int | None) -> None:
        self.max_tokens = max_tokens
        self.cut = 0
        self.width = 0

    def watch(self, texts: Iterable[_Text]) -> Iterator[_Text]:
        for name, states, feature in texts:
            self.cut += self.max_tokens is not None and len(states) > self.max_tokens
            self.width = states.shape[1]
            yield name, states[: self.max_tokens], feature


def _usable(queries: Iterable[Query], in_files: bool) -> tuple[list[Query], list[tuple[str, str]]]:
    found: dict[str, Query] = {}
    failures: list[tuple[str, str]] = []
    for query in queries:
        if query.text is None:
            continue
        if not query.text.strip():
            failures.append((query.id, f"query {query.id} of {query.video} is blank"))
        elif query.id in found:
            failures.append((query.id, f"query {query.id} occurs twice; the first is written"))
        elif in_files and "/" in query.id:
            failures.append((query.id, f"query {query.id} cannot name a file; take annotations with plain qids"))
        else:
            found[query.id] = query
    return list(found.values()), failures


def _encode(model: Model, queries: Sequence[Query], progress: Callable[[int, int], None] | None) -> Iterator[_Text]:
    for first in range(0, len(queries), _BATCH):
        some = queries[first : first + _BATCH]
        for query, (states, feature) in zip(some, model.text_states([str(query.text) for query in some]), strict=True):
            yield query.id, states.numpy(), feature.numpy()
        if progress is not None:
            progress(first + len(some), len(queries))


def _write_npz(texts: Iterable[_Text], folder: Path, header: dict[str, Any]) -> tuple[Path, ...]:
    Record.begin(folder, header)
    files = []
    for name, states, feature in texts:
        path = folder / f"{header['prefix']}{name}.npz"
        buffer = io.BytesIO()
        np.savez(buffer, last_hidden_state=states, pooler_output=feature)
        write_whole([(path, buffer.getbuffer())], path)
        files.append(path)
    return tuple(files)


def _write_h5(texts: Iterable[_Text], out: Path, model: Model, split: str) -> tuple[Path, ...]:
    kinds = (f"language_features_{split}", "language_tokens_features")
    paths = [out / h5_name({"id": model.name}, what) for what in kinds]
    for path in paths:
        if path.exists() and not (out / RECORD).exists():
            raise ValueError(f"{path} was not written by everyframe export; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        whole, tokens = (stack.enter_context(closing(H5File(path, model.weights_sha256))) for path in paths)
        for name, states, feature in texts:
            whole.add(name, feature)
            tokens.add(name, states)
        whole.finish()
        tokens.finish()
    return whole.path, tokens.path
