"""Several files decoded at a time: the same features in the same order, bounded, and a bad one stops nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import everyframe as ef
from command import everyframe
from everyframe import cpu
from everyframe.pipeline import JOURNAL, Outcome, Sampling, batch, default_decoders, encode_videos
from everyframe.pipeline.together import read_together
from everyframe.video import write_video

SECONDS = (3, 1, 2, 1)


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four short H.264 videos whose pictures move."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    files = []
    for index, seconds in enumerate(SECONDS):
        base = rng.integers(0, 255, (48, 200, 3), dtype=np.uint8)
        frames = (np.ascontiguousarray(base[:, 2 * t : 2 * t + 64]) for t in range(10 * seconds))
        files.append(folder / f"clip{index}.mp4")
        write_video(files[-1], frames, fps=10)
    return files


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("everyframe-decode")]


def ends(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(timeout=20)
    return not any(thread.is_alive() for thread in threads)


# --- reading several sources -----------------------------------------------------------------------------


class Sources:
    """Sources of numbered items that count what is open and what was given."""

    def __init__(self, items: int, wait: threading.Event | None = None) -> None:
        self.items, self.wait = items, wait
        self.open = self.most_open = self.given = 0
        self.begun: list[int] = []
        self.closed: list[int] = []
        self._lock = threading.Lock()

    def of(self, source: int) -> Iterator[tuple[int, int]]:
        with self._lock:
            self.begun.append(source)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            for item in range(self.items):
                if self.wait is not None:
                    self.wait.wait(20)
                with self._lock:
                    self.given += 1
                yield source, item
        finally:
            with self._lock:
                self.open -= 1
                self.closed.append(source)


@pytest.mark.parametrize(("files", "items_ahead"), [(1, 1), (2, 2), (3, 1), (50, 2)])
def test_read_together_gives_every_item_of_every_source(files: int, items_ahead: int) -> None:
    sources = Sources(items=5)
    found = list(read_together(range(7), sources.of, files=files, items_ahead=items_ahead))
    assert sorted(found) == [(source, (source, item)) for source in range(7) for item in range(5)]
    for source in range(7):  # those of one in order
        assert [item for number, (_, item) in found if number == source] == list(range(5))
    assert sorted(sources.begun) == sorted(sources.closed) == list(range(7))
    assert sources.most_open <= files
    if files == 1:
        assert found == sorted(found) and sources.begun == list(range(7))


def test_read_together_reads_no_more_than_it_may() -> None:
    sources = Sources(items=100)
    ahead = read_together(range(9), sources.of, files=3, items_ahead=2)
    for taken in range(1, 40):
        next(ahead)
        until = time.monotonic() + 20
        # As many as may wait, and one in the hand of each thread; then no more however long nobody takes any.
        while sources.given < taken + 9 and time.monotonic() < until:
            time.sleep(0.001)
        assert sources.given == taken + 9
    assert sorted(sources.begun) == [0, 1, 2]
    ahead.close()
    assert sorted(sources.closed) == [0, 1, 2] and not decoding_threads()
    with pytest.raises(StopIteration):
        next(ahead)


def test_read_together_without_sources() -> None:
    assert list(read_together([], Sources(items=1).of, files=2, items_ahead=2)) == []


def test_read_together_raises_what_a_source_raises() -> None:
    def items(source: int) -> Iterator[int]:
        yield source
        if source == 1:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(read_together(range(5), items, files=2, items_ahead=1))
    assert not decoding_threads()
    with pytest.raises(ValueError, match="files must be at least 1, got 0"):
        read_together(range(5), items, files=0, items_ahead=1)


def test_read_together_ends_when_it_is_dropped() -> None:
    sources = Sources(items=1000)
    ahead = read_together(range(3), sources.of, files=2, items_ahead=1)
    next(ahead)
    threads = decoding_threads()
    assert len(threads) == 2
    del ahead
    assert ends(threads) and sources.open == 0


# --- a batch ---------------------------------------------------------------------------------------------


def encoders(model: ef.Model, name: str) -> object:
    if name == "residual":
        return ef.ResidualViT(model, interleave=2, residual=None, batch_size=4)
    return ef.ReuseEncoder(model, plan="adaptive", batch_size=4)


def run(clips: list[Path], out: Path, encoder: object, decoders: int, **options: object) -> list[Outcome]:
    sources = [(clip, out / f"{clip.stem}.npz") for clip in clips]
    sampling = Sampling(fps=5)
    return list(encode_videos(sources, encoder, sampling=sampling, decoders=decoders, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["residual", "reuse"])
def test_features_do_not_depend_on_the_number_of_decoders(
    model: ef.Model, clips: list[Path], tmp_path: Path, name: str
) -> None:
    encoder = encoders(model, name)
    alone = [ef.encode_video(clip, encoder, fps=5) for clip in clips]
    for decoders in (1, 2, 7):
        outcomes = run(clips, tmp_path / str(decoders), encoder, decoders)
        assert [outcome.source for outcome in outcomes] == list(map(str, clips))
        for outcome, expected in zip(outcomes, alone, strict=True):
            assert outcome.status == "done" and outcome.output is not None
            feats = ef.VideoFeatures.load(outcome.output)
            np.testing.assert_array_equal(feats.embeddings, expected.embeddings)
            np.testing.assert_array_equal(feats.times, expected.times)
            assert (feats.roles, feats.settings, feats.video) == (expected.roles, expected.settings, expected.video)


def test_bad_files_and_what_is_done_keep_their_places(model: ef.Model, clips: list[Path], tmp_path: Path) -> None:
    encoder, out = encoders(model, "residual"), tmp_path / "out"
    broken, missing = tmp_path / "broken.mp4", tmp_path / "missing.mp4"
    broken.write_bytes(b"no video")
    run(clips[2:3], out, encoder, 1)
    everything = [broken, clips[0], missing, clips[1], clips[2], clips[3]]
    options = {"journal_file": out / JOURNAL}
    outcomes = run(everything, out, encoder, 3, **options)
    assert [outcome.source for outcome in outcomes] == list(map(str, everything))
    assert [outcome.status for outcome in outcomes] == ["failed", "done", "failed", "done", "skipped", "done"]
    assert "no such file" in str(outcomes[2].error)
    again = run(everything, out, encoder, 3, **options)
    assert [outcome.status for outcome in again] == ["failed", "skipped", "failed", *["skipped"] * 3]
    assert "as in an earlier run" in str(again[0].error)


class Gate:
    """`read_chunks` that keeps back the first video after its first chunk until it is told to go on."""

    def __init__(self, first: Path) -> None:
        self.go, self._first, self._read = threading.Event(), first, batch.read_chunks
        self.begun: list[Path] = []

    def __call__(self, source: Path, *others: object) -> Iterator[object]:
        self.begun.append(source)
        items = self._read(source, *others)  # type: ignore[arg-type]
        yield next(items)
        if source == self._first and not self.go.wait(20):
            raise TimeoutError("nobody went on")
        yield from items


def test_outcomes_wait_for_their_turn(
    model: ef.Model, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other videos are encoded and written while the first is still being read; then all come in order."""
    gate, told = Gate(clips[0]), []

    def progress(name: str, num_frames: int, seconds: float) -> None:
        told.append((name, num_frames, seconds))

    saved = ef.VideoFeatures.save

    def save(feats: ef.VideoFeatures, path: Path) -> None:
        saved(feats, path)
        if Path(path).stem == clips[3].stem:
            gate.go.set()

    monkeypatch.setattr(batch, "read_chunks", gate)
    monkeypatch.setattr(ef.VideoFeatures, "save", save)
    outcomes = run(clips, tmp_path, encoders(model, "residual"), 2, progress=progress)
    assert [outcome.source for outcome in outcomes] == list(map(str, clips))
    assert [outcome.status for outcome in outcomes] == ["done"] * 4
    assert sorted(gate.begun) == clips
    names = [name for name, *_ in told]
    assert list(dict.fromkeys(names)) == list(map(str, clips)) and names == sorted(names)  # one after the other
    last = {name: (count, seconds) for name, count, seconds in told}
    assert last == {
        outcome.source: (outcome.num_frames, pytest.approx(outcome.seconds, abs=0.11)) for outcome in outcomes
    }


def test_one_decoder_reads_one_file_after_the_other(
    model: ef.Model, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(clips[0])
    monkeypatch.setattr(batch, "read_chunks", gate)
    sources = [(clip, tmp_path / f"{clip.stem}.npz") for clip in clips]
    with_one = encode_videos(sources, encoders(model, "residual"), sampling=Sampling(), decoders=1)  # type: ignore[arg-type]
    threading.Timer(0.2, gate.go.set).start()
    next(with_one)
    assert (tmp_path / f"{clips[0].stem}.npz").exists() and gate.begun[0] == clips[0]
    with_one.close()  # type: ignore[attr-defined]
    assert not decoding_threads()


def test_interrupted_between_two_files(model: ef.Model, clips: list[Path], tmp_path: Path) -> None:
    """Ctrl-C arrives in the thread that encodes: what is written stays, threads end, the next run goes on."""
    encoder = encoders(model, "residual")

    def interrupt(name: str, num_frames: int, seconds: float) -> None:
        if name == str(clips[2]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(clips, tmp_path, encoder, 2, progress=interrupt)
    assert ends(decoding_threads())
    there = {path.stem for path in tmp_path.glob("*.npz")}
    assert {clips[0].stem, clips[1].stem} <= there  # their turn was over
    outcomes = run(clips, tmp_path, encoder, 2)
    assert [outcome.status == "skipped" for outcome in outcomes] == [clip.stem in there for clip in clips]
    assert {outcome.status for outcome in outcomes} == {"skipped", "done"}


def test_an_encoder_that_breaks_ends_the_batch(
    model: ef.Model, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ef.DenseEncoder(model)

    def broken(*arguments: object) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(encoder, "encode_planned", broken)
    with pytest.raises(RuntimeError, match="not enough memory"):
        run(clips, tmp_path, encoder, 2)
    assert ends(decoding_threads()) and not list(tmp_path.glob("*.npz"))


def test_decoders_are_checked_before_any_work(model: ef.Model, clips: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decoders must be at least 1, got 0"):
        encode_videos([(clips[0], tmp_path / "x.npz")], ef.DenseEncoder(model), sampling=Sampling(), decoders=0)
    same = [(clip, tmp_path / "x.npz") for clip in clips[:2]]
    with pytest.raises(ValueError, match=r"x\.npz is the output of several videos"):
        encode_videos(same, ef.DenseEncoder(model), sampling=Sampling())


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (64, 4)])
def test_default_decoders_follow_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, expected: int) -> None:
    monkeypatch.setattr(cpu, "count", lambda: cores)
    assert default_decoders() == expected


def test_decoders_on_the_command_line(clips: list[Path], tmp_path: Path) -> None:
    common = ["encode", *clips[1:], "--model", "bundled", "--device", "cpu", "--fps", 2, "-q"]
    outs = [tmp_path / str(decoders) for decoders in (1, 3)]
    for decoders, out in zip((1, 3), outs, strict=True):
        result = everyframe(*common, "--decoders", decoders, "--out", out)
        assert result.returncode == 0, result.stderr
    for clip in clips[1:]:
        one, other = (ef.VideoFeatures.load(out / f"{clip.stem}.npz") for out in outs)
        np.testing.assert_array_equal(one.embeddings, other.embeddings)
    for wrong in ("0", "2:4", "two"):
        result = everyframe(*common, "--decoders", wrong, "--out", tmp_path / "x")
        assert result.returncode == 1
        assert f"--decoders must be a number from 1 on without --cluster, got '{wrong}'" in " ".join(
            result.stderr.split()
        )
    assert not (tmp_path / "x").exists()
