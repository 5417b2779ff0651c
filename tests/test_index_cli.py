"""everyframe index, search, remove, stats and archive on a library: real files, the bundled model, real kills."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import time
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

import everyframe as ef
from everyframe.cli import app
from everyframe.cli.cluster import ClusterOptions
from everyframe.cli.times import parse_date, parse_seconds
from everyframe.features import FeaturesError
from everyframe.indexing import Indexer
from everyframe.library import Library, LibraryError, is_library
from everyframe.pipeline import ClipSampling, Sampling, provenance_of, remake
from everyframe.synthetic import synthesize
from everyframe.video import sample_frames, write_image
from processes import start_command


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three videos of four seconds and a file of another kind."""
    folder = tmp_path_factory.mktemp("films")
    made = synthesize(folder, videos=3, seconds=4, fps=12, size=(128, 96), seed=21)
    for number, video in enumerate(made):
        (folder / f"{video.name}.mp4").rename(folder / f"film{number}.mp4")
    return folder


@pytest.fixture(scope="module")
def made(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of them, not to be changed."""
    path = tmp_path_factory.mktemp("made") / "archive"
    assert run("index", films, "--library", path, "--model", "bundled")[0] == 0
    return path


@pytest.fixture()
def archive(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "archive"))


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and standard output; an error of the user's is raised, as `main` gets it."""
    result = CliRunner().invoke(app, [str(word) for word in arguments], env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def report(*arguments: object, code: int = 0) -> Any:
    """What a command prints with --json."""
    found, out = run(*arguments, "--json")
    assert found == code, out
    return json.loads(out)


def statuses(facts: dict[str, Any]) -> dict[str, str]:
    return {Path(each["source"]).name: each["status"] for each in facts["files"]}


# --- indexing --------------------------------------------------------------------------------------------


def test_index_stores_what_encode_video_computes(made: Path, films: Path, model: ef.Model) -> None:
    with Library(made) as library:
        assert [record.name for record in library.videos()] == ["film0.mp4", "film1.mp4", "film2.mp4"]
        (collection,) = library.collections()
        assert collection.label == "bundled · reuse adaptive · 3 fps"
        stored = library.features(str(films / "film1.mp4"))
        times = library.thumbnails("film1.mp4")
    wanted = ef.encode_video(films / "film1.mp4", ef.ReuseEncoder(model, plan="adaptive"), dtype="float16")
    np.testing.assert_array_equal(stored.times, wanted.times)
    np.testing.assert_array_equal(stored.embeddings, wanted.embeddings)
    assert (stored.roles, stored.video, stored.model) == (wanted.roles, wanted.video, wanted.model)
    assert times and max(np.diff(times, append=4.0)) <= 4.0


def test_what_the_library_has_is_skipped_and_moved_files_are_found(archive: Path, films: Path, tmp_path: Path) -> None:
    again = report("index", films, "--library", archive, "--model", "bundled")
    assert (again["skipped"], again["frames"]) == (3, 0)
    disk = tmp_path / "disk"
    shutil.copytree(films, disk)
    assert report("index", disk, "--library", archive)["skipped"] == 3  # copies of what it has, which are still there
    other = tmp_path / "other"
    assert report("index", disk, "--library", other, "--model", "bundled")["added"] == 3
    (disk / "film0.mp4").rename(disk / "renamed.mp4")
    (disk / "film1.mp4").write_bytes((films / "film2.mp4").read_bytes())  # replaced by a copy of another
    (disk / "film2.mp4").unlink()
    found = report("index", disk, "--library", other)
    assert statuses(found) == {"renamed.mp4": "moved", "film1.mp4": "moved"}
    with Library(other) as library:
        paths = {record.name: record.path for record in library.videos()}
        assert paths["renamed.mp4"] == str(disk / "renamed.mp4")


def test_a_library_is_continued_as_it_was_begun(films: Path, tmp_path: Path, capfd: Any) -> None:
    archive, first, second = tmp_path / "archive", films / "film0.mp4", films / "film1.mp4"
    options = ["--model", "bundled", "--encoder", "dense", "--fps", "1"]
    assert report("index", first, "--library", archive, *options)["added"] == 1
    assert report("index", second, "--library", archive)["added"] == 1  # without a word about how
    result = CliRunner().invoke(app, ["index", str(second), "--library", str(archive), "--fps", "2", "--quiet"])
    assert result.exit_code == 0 and "becomes a collection of its own" in result.output
    with Library(archive) as library:
        sizes = {each.label: each.num_videos for each in library.collections()}
        assert sizes == {"bundled · dense · 1 fps": 2, "bundled · reuse adaptive · 2 fps": 1}
    with pytest.raises(ValueError, match="several collections; choose one with --collection, or say how"):
        run("index", films, "--library", archive)
    with pytest.raises(ValueError, match="leave out --model, --fps"):
        run("index", films, "--library", archive, "--collection", "bundled · dense · 1 fps", "--fps", "1")
    named = report("index", films, "--library", archive, "--collection", "bundled · dense · 1 fps")
    assert (named["added"], named["skipped"]) == (1, 2)


def test_bad_files_are_reported_and_remembered(films: Path, tmp_path: Path) -> None:
    videos, archive = tmp_path / "videos", tmp_path / "archive"
    videos.mkdir()
    bad = videos / "bad.mp4"
    bad.write_bytes(b"\0" * 1000)
    command = ["index", videos, tmp_path / "gone.mp4", "--library", archive, "--model", "bundled"]
    facts = report(*command, code=1)  # nothing but bad files
    assert statuses(facts) == {"bad.mp4": "failed", "gone.mp4": "failed"}
    assert not is_library(archive)
    shutil.copy(films / "film0.mp4", videos / "good.mp4")
    facts = report(*command, code=1)
    assert statuses(facts) == {"bad.mp4": "failed", "good.mp4": "added", "gone.mp4": "failed"}
    errors = {Path(each["source"]).name: each["error"] for each in facts["files"]}
    assert "as in an earlier run; --retry-failed tries again" in errors["bad.mp4"]
    errors = {Path(each["source"]).name: each["error"] for each in report(*command, "--retry-failed", code=1)["files"]}
    assert "--retry-failed" not in errors["bad.mp4"]
    shutil.copy(films / "film1.mp4", bad)
    assert statuses(report(*command, code=1)) == {"bad.mp4": "added", "good.mp4": "skipped", "gone.mp4": "failed"}


def test_a_part_is_not_the_whole(films: Path, tmp_path: Path, model: ef.Model) -> None:
    """Features of some seconds, or of what was left of a damaged file, do not count as the video."""
    archive = tmp_path / "archive"
    part = ef.encode_video(films / "film0.mp4", ef.ReuseEncoder(model, plan="adaptive"), start=1.0, end=2.0)
    damaged = tmp_path / "damaged.mp4"
    content = bytearray((films / "film1.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    damaged.write_bytes(content)
    with Library(archive) as library:
        library.add(part)
    assert report("index", films / "film0.mp4", "--library", archive)["replaced"] == 1
    kept = report("index", damaged, "--library", archive, "--keep-partial")["files"][0]
    assert kept["status"] == "added" and "kept" in kept["error"]
    assert report("index", damaged, "--library", archive, "--keep-partial")["skipped"] == 1
    assert report("index", damaged, "--library", archive, "--retry-failed", code=1)["failed"] == 1
    again = report("index", damaged, "--library", archive)  # known: more cannot be had
    assert again["skipped"] == 1 and "the library has a part of it" in again["files"][0]["error"]
    with Library(archive) as library:
        assert len(library.videos()) == 2  # what was kept stays


def test_feature_files_are_imported(films: Path, tmp_path: Path, model: ef.Model) -> None:
    features, archive = tmp_path / "features", tmp_path / "archive"
    features.mkdir()
    for name in ("film0", "film1"):
        ef.encode_video(films / f"{name}.mp4", ef.DenseEncoder(model)).save(features / f"{name}.npz")
    assert statuses(report("index", features, "--library", archive)) == {"film0.npz": "added", "film1.npz": "added"}
    (features / "film1.npz").write_bytes(b"nothing")
    facts = report("index", features / "film0.npz", features / "film1.npz", "--library", archive, code=1)
    assert statuses(facts) == {"film0.npz": "skipped", "film1.npz": "failed"}
    with pytest.raises(ValueError, match="is encoded already"):
        run("index", features, "--library", archive, "--fps", "2")
    with pytest.raises(ValueError, match="--watch looks for videos"):
        run("index", features, "--library", archive, "--watch")
    # Beside videos, feature files are left alone: they are of the same videos, or of anything.
    shutil.copy(films / "film2.mp4", features / "film2.mp4")
    assert statuses(report("index", features, "--library", archive)) == {"film2.mp4": "added"}


def test_missing_files_are_reported_or_removed(archive: Path, films: Path, tmp_path: Path) -> None:
    disk, other = tmp_path / "disk", tmp_path / "other"
    shutil.copytree(films, disk)
    run("index", disk, "--library", other, "--model", "bundled")
    (disk / "film1.mp4").unlink()
    facts = report("index", disk, "--library", other)
    assert statuses(facts)["film1.mp4"] == "missing" and facts["missing"] == 1
    assert report("stats", "--library", other, "--check", code=1)["missing"] == [str(disk / "film1.mp4")]
    assert report("index", disk, "--library", other, "--remove-missing")["removed"] == 1
    assert report("stats", "--library", other, "--check")["videos"] == 2


def test_not_every_video_is_removed_at_once(archive: Path, films: Path, model: ef.Model) -> None:
    """Each below a folder of its own, of which none can be told from one whose disk is not mounted."""
    with Library(archive) as library:
        indexer = Indexer(library, ef.ReuseEncoder(model, plan="adaptive"), Sampling())
        places = [films / f"film{number}.mp4" for number in range(3)]
        assert indexer.gone(places, remove=True) == []  # they are there
        for place in places:
            place.rename(place.with_suffix(".away"))
        try:
            refused = indexer.gone(places, remove=True)
            assert {each.status for each in indexer.gone(places, remove=False)} == {"missing"}
            assert [each.status for each in indexer.gone(places[:2], remove=True)] == ["removed"] * 2
        finally:
            for place in places:
                place.with_suffix(".away").rename(place)
        assert [each.status for each in refused] == ["failed"] * 3
        assert str(refused[0].error).startswith(f"{refused[0].source}: is gone like every video of the library")
        assert len(library.videos()) == 1


def test_an_empty_folder_in_a_folder_makes_nothing_missing(archive: Path, films: Path, tmp_path: Path) -> None:
    """As a mount point; said once, with the exit code of a run in which nothing failed."""
    root = tmp_path / "videos"
    for number in range(2):
        (root / f"disk{number}").mkdir(parents=True)
        shutil.copy(films / "film0.mp4", root / f"disk{number}" / "film.mp4")
        with (root / f"disk{number}" / "film.mp4").open("ab") as file:
            file.write(bytes([0, 0, 0, 8]) + b"free" * (number + 1))
    words = ["index", str(root), "--library", str(archive), "--remove-missing"]
    assert report(*words)["added"] == 2
    (root / "disk0" / "film.mp4").unlink()
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and result.output.count("disk0 is empty now; is its disk mounted?") == 1
    (root / "disk0").rmdir()
    assert report(*words)["removed"] == 1


def test_a_file_that_changes_while_it_is_read_is_not_added(films: Path, tmp_path: Path, model: ef.Model) -> None:
    video = Path(shutil.copy(films / "film0.mp4", tmp_path / "video.mp4"))
    with Library(tmp_path / "archive") as library:
        indexer = Indexer(library, ef.DenseEncoder(model), Sampling())
        (outcome,) = indexer.encode([video], lambda *_: os.utime(video, (1, 1)))
        assert outcome.status == "failed" and outcome.changed and "was changed" in str(outcome.error)
        assert library.videos() == []
        (outcome,) = indexer.encode([video])
        assert outcome.status == "added"


def test_a_killed_run_goes_on_where_it_was(films: Path, tmp_path: Path, forks: Any) -> None:
    """Killed as soon as something is in the library; what is there is whole, and the same command does the rest."""
    videos, archive = tmp_path / "videos", tmp_path / "archive"
    videos.mkdir()
    for number in range(3):
        for copy in range(4):  # the same pictures under twelve fingerprints
            content = (films / f"film{number}.mp4").read_bytes()
            (videos / f"v{copy}{number}.mp4").write_bytes(content + b"\0\0\0\x08free" * copy)
    command = ["index", str(videos), "--library", str(archive), "--model", "bundled", "--batch-size", "1"]
    process = start_command(forks, tmp_path / "err", *command)
    deadline = time.monotonic() + 60
    journal = archive / "everyframe.jsonl"
    while time.monotonic() < deadline and process.is_alive() and not journal.is_file():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    told = [json.loads(line)["source"] for line in journal.read_text().splitlines()]
    with Library(archive) as library:
        whole = {record.path: library.features(record.id).num_frames for record in library.videos()}
    assert set(told) <= set(whole) and 0 < len(whole) < 12
    assert set(whole.values()) == {12}
    facts = report(*command)
    assert (facts["skipped"], facts["added"]) == (len(whole), 12 - len(whole))
    with Library(archive) as library:
        assert {library.features(record.id).num_frames for record in library.videos()} == {12}
        assert len(library.videos()) == 12


def test_a_full_disk_stops_the_run_and_loses_nothing(archive: Path, films: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write really fails."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (videos / name).write_bytes((films / "film0.mp4").read_bytes() + name.encode())
    words = [str(word) for word in ("index", videos, "--library", archive, "--fps", "12", "--encoder", "dense")]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        stopped = CliRunner().invoke(app, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(stopped.exception, LibraryError)
    assert re.search("disk is full|larger than the system allows", str(stopped.exception))
    with Library(archive) as library:
        assert len(library.videos()) == 3
    assert report(*words)["added"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("index EMPTY --model bundled", "no video"),
        ("index FILMS --every 2s", "--every has a meaning with --watch alone"),
        ("index FILMS --watch --every soon", "--every must be a duration"),
        ("index FILMS --watch --every 0", "--every must be at least 0.1 s"),
        ("index FILMS --library FILMS", "is no library: it holds other things"),
        ("index FILMS --encoder dense --tolerance 2 --library EMPTY", "--tolerance has no meaning"),
        ("index FILMS --watch --every 9999999999999d", "--every must be a duration of at most 100 years"),
        ("index http://localhost/a.mp4 --watch --library EMPTY", "a.mp4 is an address, read once"),
        ("index FILMS --collection nothing --library EMPTY", "holds no videos yet"),
        ("index FILMS --collection nothing --library MADE", "holds no collection nothing; it holds bundled"),
        ("index MADE --library MADE", "no video"),
        ("search EMPTY a", "holds no features"),
        ("search nowhere a", "nowhere: there is no library or folder of features there"),
        ("search MADE \udcff\udcfe", "the query is no text in UTF-8"),
        ("search MADE", "there is no query"),
        ("search MADE --without circle", "only what to stay away from"),
        ("search MADE ring --after soon", "--after must be a date"),
        ("search MADE ring --after 2024 --before 2023", "swap them"),
        ("search MADE ring --min-duration long", "--min-duration must be a duration"),
        ("search MADE ring --collection x", "holds no collection x; it holds bundled"),
        ("search MADE ring --level shot", "--level must be one of"),
        ("search MADE ring --level clip", "clip"),
        ("search MADE ring --top 0", "top"),
        ("search MADE --like nothing.png", "nothing.png"),
        ("search MADE --like nothing.mp4@3", "nothing.mp4"),
        ("search MADE --like film0.mp4@late", "the time in --like film0.mp4@late"),
        ("search FILMS ring --exact", "--exact has a meaning with a library alone"),
        ("remove --library MADE", "name the videos to remove"),
        ("remove --library MADE nothing.mp4", "holds no video nothing.mp4"),
        ("remove --library EMPTY x", "is no library"),
        ("remove --library MADE --all", "say which with --collection"),
        ("remove --library MADE film0.mp4 --collection dense", "holds no collection dense"),
        ("stats --library EMPTY", "is no library; everyframe index makes one"),
        ("stats --library FILMS", "is no library; everyframe index makes one"),
        ("archive export --library MADE --collection all --video film0.mp4", "leave out --video"),
        ("archive export --library MADE --format xml", "--format must be one of"),
        ("archive export --library MADE --collection x", "holds no collection x; it holds bundled"),
        ("archive vacuum --library MADE --older-than long", "--older-than must be a duration"),
        ("archive vacuum --library MADE --older-than 9999999999d", "--older-than must be a duration of at most"),
        ("archive relink nowhere --library MADE", "does not exist"),
    ],
)
def test_bad_input_is_told_in_one_sentence(made: Path, films: Path, tmp_path: Path, words: str, message: str) -> None:
    places = {"MADE": str(made), "FILMS": str(films), "EMPTY": str(tmp_path)}
    with pytest.raises((ValueError, OSError), match=re.escape(message)) as error:
        run(*(places.get(word, word) for word in words.split()))
    assert "\n" not in str(error.value)


# --- searching -------------------------------------------------------------------------------------------


def test_search_gives_what_search_over_features_gives(made: Path, tmp_path: Path) -> None:
    run("archive", "export", "--library", made, "--out", tmp_path)
    for words in (["a red ring"], ["a red ring", "a blue square"], ["a ring", "-red"], ["a ring -red"]):
        found = report("search", made, *words, "--top", 4)
        other = report("search", tmp_path, *words, "--top", 4)
        assert [row["video"] for row in found] == [row["video"] for row in other]
        for row, twin in zip(found, other, strict=True):
            assert row["score"] == pytest.approx(twin["score"], abs=2e-4)
            assert (row["start"], row["end"]) == (pytest.approx(twin["start"]), pytest.approx(twin["end"]))
            assert row["start"] <= row["peak"] < row["end"] and row["id"].isdigit()


def test_negatives_survive_the_shell(made: Path) -> None:
    plain = report("search", made, "a ring -red", "--level", "video")
    assert plain == report("search", made, "a ring", "-red", "--level", "video")
    assert plain == report("search", made, "a ring", "--without", "red", "--level", "video")
    whole = report("search", made, "a ring", "-a red square", "--level", "video")
    assert whole == report("search", made, "a ring", "--without", "a red square", "--level", "video")
    assert whole != report("search", made, "a ring", "-a", "red square", "--level", "video")
    assert plain != report("search", made, "a ring", "--level", "video")
    result = CliRunner().invoke(app, ["search", str(made), "a ring", "--tpo", "3"])
    assert result.exit_code == 2 and "No such option: --tpo" in result.output


def test_search_filters(made: Path, films: Path) -> None:
    def names(*options: object) -> set[str]:
        return {Path(row["video"]).name for row in report("search", made, "a ring", "--level", "video", *options)}

    every = {"film0.mp4", "film1.mp4", "film2.mp4"}
    today = datetime.fromtimestamp((films / "film0.mp4").stat().st_mtime, timezone.utc)
    day = today.date()
    assert names() == names("--exact") == names("--path", films) == every
    assert names("--path", "*1.mp4", "--path", "FILM2*") == {"film1.mp4", "film2.mp4"}
    assert names("--after", day - timedelta(days=2), "--before", day + timedelta(days=2)) == every
    assert names("--after", day + timedelta(days=2)) == names("--before", day - timedelta(days=2)) == set()
    assert names("--min-duration", "3s", "--max-duration", "0:05") == every
    assert names("--min-duration", "1m") == set()
    none = "none of the 3 videos passes the filters\n"
    assert run("search", made, "a ring", "--min-duration", "1m") == (0, none)
    assert len(report("search", made, "a ring", "--per-video", 1)) == 3


def test_the_table_is_headed_by_the_query_and_the_place(made: Path, films: Path) -> None:
    code, out = run("search", made, "a ring " * 20)
    heading = "".join(out[: out.index("┏")].split())  # long paths are wrapped
    assert code == 0 and f'"{"aring" * 10}' in heading and heading.endswith(f"...in{made}")
    assert f"videos in {films}" in " ".join(out.split())


def test_search_for_a_picture(made: Path, films: Path, tmp_path: Path) -> None:
    with sample_frames(films / "film2.mp4", 3.0) as frames:
        sample = list(frames)[4]
    write_image(tmp_path / "me@home.png", sample.pixels)
    ways = [tmp_path / "me@home.png", f"film2.mp4@{sample.time}", f"{films / 'film2.mp4'}@0:01.4"]
    copy = shutil.copy(films / "film2.mp4", tmp_path / "not-in-it.mp4")
    for like in (*ways, f"{copy}@1.4s"):
        best = report("search", made, "--like", like, "--top", 1)[0]
        assert Path(best["video"]).name == "film2.mp4" and best["score"] > 0.9
        assert best["start"] <= sample.time < best["end"]
    both = report("search", made, "a ring", "--like", ways[0], "--like", ways[1], "--top", 1)[0]
    assert Path(both["video"]).name == "film2.mp4"


def test_search_asks_which_collection(archive: Path, films: Path) -> None:
    run("index", films, "--library", archive, "--encoder", "dense", "--fps", "2", "--quiet")
    with pytest.raises(ValueError, match=r"choose one with --collection: bundled · reuse adaptive · 3 fps \("):
        run("search", archive, "a ring")
    assert len(report("search", archive, "a ring", "--collection", "bundled · dense · 2 fps", "--level", "video")) == 3
    assert len(report("search", archive, "a ring", "--collection", "DENSE", "--level", "video")) == 3  # a part of it
    with pytest.raises(LibraryError, match="fps means several collections"):
        run("search", archive, "a ring", "--collection", "fps")
    with pytest.raises(LibraryError, match="holds no videos yet"):
        for name in ("film0.mp4", "film1.mp4", "film2.mp4"):
            run("remove", "--library", archive, name)
        run("search", archive, "a ring")


# --- the rest --------------------------------------------------------------------------------------------


def test_remove(archive: Path, films: Path) -> None:
    with Library(archive) as library:
        ident = library.video("film2.mp4").id
    dry = report("remove", "--library", archive, films / "film0.mp4", ident, "--dry-run")
    assert {Path(row["path"]).name for row in dry["would_remove"]} == {"film0.mp4", "film2.mp4"} and not dry["removed"]
    assert report("stats", "--library", archive)["videos"] == 3
    code, out = run("remove", "--library", archive, films / "film0.mp4", ident)
    assert code == 0 and out.count("removed:") == 2
    assert report("stats", "--library", archive)["videos"] == 1
    assert run("remove", "--library", archive, "--missing") == (0, "nothing to remove\n")
    assert (films / "film0.mp4").exists()


def test_a_video_in_two_collections_is_counted_and_removed_once(archive: Path, films: Path, tmp_path: Path) -> None:
    run("index", films, "--library", archive, "--encoder", "dense", "--fps", "2", "--quiet", "--no-thumbnails")
    facts = report("stats", "--library", archive)
    assert (facts["videos"], facts["hours"]) == (3, pytest.approx(12 / 3600, rel=0.05))
    assert [one["videos"] for one in facts["collections"]] == [3, 3]

    out = tmp_path / "out"
    assert "6 feature files" in run("archive", "export", "--library", archive, "--out", out, "--collection", "all")[1]
    first, second = sorted(out.iterdir())
    assert "dense-2-fps" in first.name and "reuse-adaptive-3-fps" in second.name
    again = ["archive", "export", "--library", archive, "--collection"]
    before = (first / "film0.npz").read_bytes()
    assert run(*again, "adaptive", "--out", second)[0] == 0  # its own
    refused = CliRunner().invoke(app, [*map(str, again), "adaptive", "--out", str(first)])
    assert refused.exit_code == 1 and refused.output.count("choose another folder (--out)") == 3
    assert (first / "film0.npz").read_bytes() == before

    moved = films.parent / "film0-moved.mp4"
    (films / "film0.mp4").rename(moved)
    try:
        assert run("remove", "--library", archive, "--missing", "--dry-run")[1].count("would remove") == 2
        told = run("archive", "relink", moved, "--library", archive)[1]
        assert told == f"{films / 'film0.mp4'} is now {moved}\n1 found again, 0 still missing\n"
    finally:
        moved.rename(films / "film0.mp4")
    code, told = run("remove", "--library", archive, "film1.mp4", "--collection", "dense")
    assert (code, told) == (0, f"removed: {films / 'film1.mp4'} (bundled · dense · 2 fps)\n")
    assert len(report("remove", "--library", archive, "--collection", "dense", "--all")["removed"]) == 2
    with Library(archive) as library:
        assert [(each.label, each.num_videos) for each in library.collections()] == [
            ("bundled · reuse adaptive · 3 fps", 3)
        ]


def test_remove_missing_does_not_fall_for_a_disk_that_is_not_mounted(films: Path, tmp_path: Path) -> None:
    disk, archive = tmp_path / "disk", tmp_path / "archive"
    shutil.copytree(films, disk)
    run("index", disk, "--library", archive, "--model", "bundled", "--no-thumbnails")
    assert report("stats", "--library", archive)["thumbnails"] == 0
    (disk / "film1.mp4").rename(tmp_path / "found.mp4")
    code, out = run("archive", "relink", tmp_path, "--library", archive)
    assert code == 0 and out.endswith("1 found again, 0 still missing\n")
    (tmp_path / "found.mp4").unlink()
    assert len(report("remove", "--library", archive, "--missing")["removed"]) == 1
    shutil.rmtree(disk)
    with pytest.raises(LibraryError, match="is a disk not mounted"):
        run("remove", "--library", archive, "--missing")


def test_stats_and_history(archive: Path) -> None:
    facts = report("stats", "--library", archive)
    assert (facts["videos"], facts["frames"], facts["hours"]) == (3, 36, pytest.approx(12 / 3600, rel=0.05))
    (collection,) = facts["collections"]
    assert collection["index"] == {"kind": "exact", "indexed": 0, "building": False} and collection["dim"] == 128
    code, out = run("stats", "--library", archive, "--check")
    assert code == 0 and "3 videos" in out and "all files are there" in out
    versions = report("archive", "history", "--library", archive)
    assert versions and versions == sorted(versions, key=lambda one: one["version"])


def test_a_file_that_cannot_be_looked_at_is_not_missing(archive: Path, films: Path, tmp_path: Path) -> None:
    """A link that leads to itself stands in for a folder that may not be read, which nothing keeps root from."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with Library(archive) as library:
        record = replace(library.video("film0.mp4"), path=str(loop / "film0.mp4"))
        assert record.available and not replace(record, path=str(tmp_path / "film0.mp4")).available
        assert not replace(record, path=str(films / "film0.mp4" / "film0.mp4")).available
    place = tmp_path / "place"
    place.mkdir()
    shutil.copy(films / "film1.mp4", place / "film.mp4")
    with (place / "film.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")
    run("index", place, "--library", archive, "--quiet")
    shutil.rmtree(place)
    place.symlink_to(place)
    facts = report("stats", "--library", archive, "--check", code=1)
    assert (facts["unreadable"], facts["missing"], facts["changed"]) == ([str(place / "film.mp4")], [], [])
    assert run("remove", "--library", archive, "--missing") == (0, "nothing to remove\n")


def test_archive_compact_and_vacuum_keep_what_counts(archive: Path) -> None:
    before = report("search", archive, "a ring")
    assert "compacted" in run("archive", "compact", "--library", archive)[1]
    assert "freed" in run("archive", "vacuum", "--library", archive, "--older-than", "0s")[1]
    assert report("search", archive, "a ring") == before


@pytest.mark.parametrize("format", ["npz", "npy", "h5", "parquet"])
def test_export_and_import_give_the_same_back(made: Path, tmp_path: Path, format: str) -> None:
    out, twin = tmp_path / "out", tmp_path / "twin"
    code, said = run("archive", "export", "--library", made, "--out", out, "--format", format, "--video", "film1.mp4")
    assert code == 0 and said.endswith("1 feature file\n")
    assert run("archive", "import", out, "--library", twin)[1] == "1 added\n"
    with Library(made) as one, Library(twin) as other:
        np.testing.assert_array_equal(one.features("film1.mp4").embeddings, other.features("film1.mp4").embeddings)


# --- parts -----------------------------------------------------------------------------------------------


def test_index_reads_as_encode_does() -> None:
    """The options of reading are the same ones, said once."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {
        name: {p.name: p.help for p in commands[name].params if isinstance(p, click.Option) or hasattr(p, "help")}
        for name in ("encode", "index")
    }
    cluster = {option.name for option in fields(ClusterOptions)}
    own = {"encode": {"out", "format", "recipe", "store", "start", "end", "column"} | cluster}
    own["index"] = {"library", "collection", "watch", "every", "remove_missing", "thumbnails", "refresh"}
    shared = {name: {k: v for k, v in options[name].items() if k not in own[name] | {"paths"}} for name in options}
    assert shared["encode"] == shared["index"] and len(shared["index"]) > 25


@pytest.mark.parametrize(
    "make",
    [
        lambda model: ef.DenseEncoder(model),
        lambda model: ef.ReuseEncoder(model, plan="adaptive", tolerance=0.5, drop=0.7),
        lambda model: ef.ReuseEncoder(model, 3, two_sided=True),
        lambda model: ef.ResidualViT(model, residual=None, select="center"),
        lambda model: ef.VidTLDR(model, reduce=[2, 2]),
        lambda model: ef.ToMe(model, reduce=[0.1, 3]),
        lambda model: ef.TempMe(model, r=1, clips={2: 2}, remove_cross=1, remove_intra=1),
    ],
)
def test_remake_gives_the_encoder_of_given_settings(model: ef.Model, make: Any) -> None:
    encoder = make(model)
    sampling = ClipSampling(clip_seconds=5, frames=4) if isinstance(encoder, ef.TempMe) else Sampling(fps=2.5)
    settings = {**encoder.settings, **sampling.settings}
    recorded = {key: value for key, value in json.loads(json.dumps(settings)).items() if key not in ("start", "end")}
    again, how = remake(recorded, model, batch_size=2)
    assert type(again) is type(encoder) and again.batch_size == 2 and how == sampling
    assert provenance_of(again, how, "float16") == provenance_of(encoder, sampling, "float16")
    with pytest.raises(FeaturesError, match="cannot be made"):
        remake({**recorded, "resampled": {"from_fps": 3}}, model)
    with pytest.raises(FeaturesError, match="cannot be made"):
        remake({key: value for key, value in recorded.items() if key not in ("fps", "clip_seconds")}, model)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), (" 1.5 m ", 90), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("1h 30min 5s", 5405),
        ("2d", 172800), ("250ms", 0.25), ("1:30", 90), ("01:05:30.5", 3930.5), (".5", 0.5), ("0", 0),
    ],
)  # fmt: skip
def test_parse_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text, "--x") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-5", "5 apples", "1:75", "1:2", "5m3", "nan", "inf", "1e9", "1:75:00"])
def test_parse_seconds_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="--x must be a duration"):
        parse_seconds(text, "--x")


@pytest.mark.parametrize("text", ["9999999999d", "4000000000", "9" * 400, f"{'9' * 5000}:00:00", "1:999999999999:00"])
def test_parse_seconds_is_bounded(text: str) -> None:
    assert parse_seconds("36500d", "--x") == 36500 * 86400
    with pytest.raises(ValueError, match="--x must be a duration"):
        parse_seconds(text, "--x")


def test_parse_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # nine hours ahead all year
    time.tzset()
    try:
        expected = {
            "2024": "2023-12-31T15:00:00+00:00",
            "2024-05": "2024-04-30T15:00:00+00:00",
            "2024-05-31": "2024-05-30T15:00:00+00:00",
            "2024-05-31T18:30": "2024-05-31T09:30:00+00:00",
            "2024-05-31 18:30:05Z": "2024-05-31T18:30:05+00:00",
            "2024-05-31T18:30+02:00": "2024-05-31T16:30:00+00:00",
        }
        assert {text: parse_date(text, "--x").isoformat() for text in expected} == expected
    finally:
        monkeypatch.undo()
        time.tzset()
    for text in ("", "yesterday", "2024-13", "2024-02-30", "31.05.2024", "99999"):
        with pytest.raises(ValueError, match="--x must be a date"):
            parse_date(text, "--x")
