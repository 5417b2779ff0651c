"""Many videos: several are decoded at a time, one model encodes, what is done is skipped, what failed is said.

Each decoding thread reads, resizes, normalises and plans one file after the other; the caller's thread encodes and
writes, taking the chunks as they come. Few chunks wait per thread, so memory grows neither with a video's length nor
with their number, and files are opened while others are still being encoded. A chunk is encoded alone, whatever else
is being read: features do not depend on how many files are read at a time.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from everyframe import cpu
from everyframe.encoders import Encoder, TempMe
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.pipeline.clips import driven
from everyframe.pipeline.decoding import Finished, read_chunks
from everyframe.pipeline.encode import (
    CHUNKS_AHEAD,
    Encoding,
    Progress,
    check_dtype,
    check_encoder,
    check_recipe,
    consume,
    provenance_of,
    silent,
)
from everyframe.pipeline.gather import AllFeatures, Gatherer, PlanAndIFeatures
from everyframe.pipeline.recipe import RECIPE_SUFFIX, Recipe
from everyframe.pipeline.resume import Journal, is_done
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.pipeline.together import read_together
from everyframe.pipeline.transfers import ahead_on, arrived, link_to, sent
from everyframe.pipeline.window import Chunk
from everyframe.version import package_version
from everyframe.video import VideoError
from everyframe.video.errors import UnreachableError

Status = Literal["done", "partial", "skipped", "failed"]
Job = tuple[str | Path, Path]  # a video, and the file for its features

_MOST_DECODERS = 4  # by default: each holds a file's frames and chunks in memory


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one video in a batch. `error` says why it failed, or what a partial one lost.

    num_frames: of features, which are those of clips with TempMe. gflops_per_frame, gflops_share: of a video encoded
    now, what it took and as a share of dense.
    """

    source: str
    output: Path | None
    status: Status
    num_frames: int = 0
    seconds: float = 0.0
    error: str | None = None
    gflops_per_frame: float | None = None
    gflops_share: float | None = None


def default_decoders() -> int:
    """Files that `encode_videos` decodes at a time unless told: one per core that this process may use, at most 4."""
    return min(cpu.count(), _MOST_DECODERS)


def encode_videos(
    sources: Sequence[Job],
    encoder: Encoder | TempMe,
    *,
    sampling: Sampling | ClipSampling,
    dtype: str = "float32",
    progress: Progress | None = None,
    journal_file: Path | None = None,
    retry_failed: bool = False,
    recipe: bool = False,
    decoders: int | None = None,
) -> Iterator[Outcome]:
    """Encode many videos to feature files; one `Outcome` per video, in order. A bad video never stops the rest.

    sources: (video, output file) pairs. An output that already holds the same video with the same model and
    settings is skipped; one that is damaged or was made with others is made anew; one that everyframe did not
    write is left alone, and the video fails. Outputs appear whole or not at all.
    progress: told of one video after the other, in order.
    journal_file: where outcomes are appended; a file that could not be read before, and has not changed, is not
    tried again unless `retry_failed`.
    sampling: for TempMe a `ClipSampling`, for all other encoders a `Sampling`.
    recipe: write recipes (see `encode_recipe`) instead of features, to output files named NAME.recipe.npz.
    decoders: files that are decoded at a time, `default_decoders()` unless given; memory grows with them, features do
    not depend on them. While a long video is being encoded the ones behind it may be written before it is.
    Raises ValueError for bad arguments before any work.
    """
    check_dtype(dtype)
    check_encoder(encoder)
    if recipe:
        check_recipe(encoder)
    for _, output in sources if recipe else ():
        if not output.name.endswith(RECIPE_SUFFIX):
            raise ValueError(f"{output}: a recipe must be named NAME{RECIPE_SUFFIX}, to be told from features")
    twice = [output for output, count in Counter(output for _, output in sources).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is the output of several videos; give each one of its own")
    if decoders is not None and decoders < 1:
        raise ValueError(f"decoders must be at least 1, got {decoders}")
    work = _Work(driven(encoder, sampling), sampling, dtype, Journal(journal_file), retry_failed, recipe)
    return _encode_all(sources, work, progress or silent, decoders or default_decoders())


def encode_each(
    sources: Sequence[str | Path],
    encoder: Encoder | TempMe,
    *,
    sampling: Sampling | ClipSampling,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Iterator[VideoFeatures | VideoError]:
    """The features of many videos, one item per video in order, without files; for one that cannot be read, why.

    Decoding runs ahead into the next video, but one file is decoded at a time: one video's features are in memory.
    Arguments are those of `encode_videos`. Raises ValueError for bad arguments before any work.
    """
    check_dtype(dtype)
    check_encoder(encoder)
    work = _Work(driven(encoder, sampling), sampling, dtype, Journal(None), False, False)
    return _features_of_each(sources, work, progress or silent)


def _features_of_each(
    sources: Sequence[str | Path], work: _Work, progress: Progress
) -> Iterator[VideoFeatures | VideoError]:
    chunks = chain.from_iterable(map(work.chunks, sources))
    ahead = ahead_on(work.encoder.model.device, chunks, CHUNKS_AHEAD)
    try:
        for source in sources:
            report = partial(progress, str(source))
            gatherer = AllFeatures(work.encoder, work.dtype)
            try:
                yield consume(ahead, Encoding(work.encoder, work.sampling, work.dtype, report, gatherer))
            except VideoError as error:
                yield error
    finally:
        ahead.close()


def _encode_all(sources: Sequence[Job], work: _Work, progress: Progress, decoders: int) -> Iterator[Outcome]:
    link = link_to(work.encoder.model.device)
    ahead = read_together(sources, lambda job: sent(work.items(job), link), files=decoders, items_ahead=CHUNKS_AHEAD)
    turns = _Turns(sources, progress)
    open_files: dict[int, Encoding[Recipe | VideoFeatures]] = {}
    outcomes: dict[int, Outcome] = {}  # of videos whose turn has not come
    try:
        for number, read in ahead:
            item = arrived(read, link)
            if isinstance(item, Outcome):
                outcomes[number] = item
            else:
                if number not in open_files:
                    open_files[number] = work.encoding(partial(turns.report, number))
                if isinstance(item, Finished):
                    outcomes[number] = _settle(sources[number], open_files.pop(number), item, work)
                else:
                    open_files[number].add(item)
            while turns.now in outcomes:
                yield outcomes.pop(turns.now)
                turns.next()
    finally:
        ahead.close()


def _settle(job: Job, encoding: Encoding[Recipe | VideoFeatures], finished: Finished, work: _Work) -> Outcome:
    """What became of a video that was read to its end, or to where it broke off."""
    source, output = job
    outcome, cause = _write(encoding, finished, str(source), output, work)
    if cause not in ("output", "way"):  # a full disk says nothing about the video, nor does the network
        try:
            work.journal.add(source, work.journal_settings, outcome.status, outcome.error)
        except OSError as error:  # the features count; without its line a failed file is only tried again
            warnings.warn(f"{work.journal.path} cannot be written ({error.strerror or error})", stacklevel=3)
    return outcome


class _Turns:
    """Tells of the progress of one video after the other, though several are encoded at a time."""

    def __init__(self, sources: Sequence[Job], progress: Progress) -> None:
        self.now = 0
        """Number of the video whose turn it is."""
        self._sources, self._progress = sources, progress
        self._held: dict[int, tuple[int, float]] = {}

    def report(self, number: int, num_frames: int, seconds: float) -> None:
        """Of any video, so far; passed on when its turn has come."""
        if number == self.now:
            self._progress(str(self._sources[number][0]), num_frames, seconds)
        else:
            self._held[number] = (num_frames, seconds)

    def next(self) -> None:
        """It is the next video's turn."""
        self.now += 1
        held = self._held.pop(self.now, None)
        if held is not None:
            self.report(self.now, *held)


@dataclass(frozen=True)
class _Work:
    """What a batch does with every video."""

    encoder: Encoder
    sampling: Sampling | ClipSampling
    dtype: str
    journal: Journal
    retry_failed: bool
    recipe: bool

    @property
    def journal_settings(self) -> dict[str, Any]:
        return {**self.sampling.settings, "keep_partial": self.sampling.keep_partial, "version": package_version()}

    def items(self, job: Job) -> Iterator[Chunk | Finished | Outcome]:
        """Of one video either an `Outcome`, when there is nothing to do, or its chunks and a `Finished`."""
        outcome = self._settled(*job)
        if outcome is None:
            yield from self.chunks(job[0])
        else:
            yield outcome

    def chunks(self, source: str | Path) -> Iterator[Chunk | Finished]:
        """The chunks of one video and a `Finished`, whatever happens."""
        try:
            yield from read_chunks(source, self.encoder, self.sampling)
        except Exception as error:  # unforeseen; ending here would leave the videos after it without an answer
            yield Finished(error=VideoError(f"{source}: cannot be read ({type(error).__name__}: {error})"))

    def encoding(self, report: Any) -> Encoding[Recipe | VideoFeatures]:
        """Where the chunks of one more video go. report: told (features so far, seconds so far)."""
        gather = PlanAndIFeatures if self.recipe else AllFeatures
        gatherer: Gatherer[Recipe | VideoFeatures] = gather(self.encoder, self.dtype)
        return Encoding(self.encoder, self.sampling, self.dtype, report, gatherer)

    def _settled(self, source: str | Path, output: Path) -> Outcome | None:
        facts = provenance_of(self.encoder, self.sampling, self.dtype)
        wanted = {
            "model": {key: facts["model"][key] for key in ("weights_sha256", "dtype", "preprocess")},
            "settings": {key: value for key, value in facts["settings"].items() if key != "version"},
        }
        try:
            load = Recipe.load if self.recipe else VideoFeatures.load
            frames = is_done(source, output, wanted, keep_partial=self.sampling.keep_partial, load=load)
            if frames is not None:
                return Outcome(source=str(source), output=output, status="skipped", num_frames=frames)
            failure = None if self.retry_failed else self.journal.failed_before(source, self.journal_settings)
        except (FeaturesError, OSError) as error:
            return Outcome(source=str(source), output=output, status="failed", error=str(error))
        if failure is not None:
            message = f"{failure} (as in an earlier run; --retry-failed tries again)"
            return Outcome(source=str(source), output=output, status="failed", error=message)
        return None


def _write(
    encoding: Encoding[Recipe | VideoFeatures], finished: Finished, source: str, output: Path, work: _Work
) -> tuple[Outcome, Literal["video", "way", "output"] | None]:
    """Save what came of a video; with a failure, whether its cause was the video, the way to it or the output."""
    try:
        feats = encoding.finish(finished)
    except VideoError as error:
        failed = Outcome(source=source, output=output, status="failed", error=str(error))
        return failed, "way" if isinstance(error, UnreachableError) else "video"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        feats.save(output)
    except (FeaturesError, OSError) as error:
        return Outcome(source=source, output=output, status="failed", error=str(error)), "output"
    damage = feats.settings.get("damage")
    kept = f"{feats.num_frames} {'clips' if isinstance(work.sampling, ClipSampling) else 'frames'}"
    outcome = Outcome(
        source=source,
        output=output,
        status="partial" if damage else "done",
        num_frames=feats.num_frames,
        seconds=float(feats.frame_ends[-1] - feats.times[0]),
        error=f"{source}: kept {kept}; {'; '.join(damage)}" if damage else None,
        gflops_per_frame=feats.settings["gflops_per_frame"],
        gflops_share=feats.settings["gflops_share"],
    )
    return outcome, None
