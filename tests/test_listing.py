"""What is to be encoded: every kind of list, every way a row can be wrong, and a name of its own for each video."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everyframe.scale.listing import Listing, list_videos
from everyframe.video import VideoError, find_videos
from object_store import s3_server


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty files with the names of videos: listing looks at names alone."""
    monkeypatch.chdir(tmp_path)
    for name in (
        *("clips/tom.mp4", "clips/cats/tom.mp4", "clips/cats/tom.mkv", "clips/cats/Größe 2.mp4"),
        *("clips/.hidden.mp4", "clips/.trash/x.mp4", "clips/notes.doc"),
        *("clips/frames/f_001.jpg", "clips/frames/f_002.jpg", "clips/cats/10.mp4", "clips/cats/9.mp4"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with s3_server() as client:
        client.create_bucket(Bucket="bucket")
        yield client


def sources(listing: Listing, root: Path) -> list[str]:
    """Paths below a root; other sources as they are."""
    return [video.source.removeprefix(f"{root}/") for video in listing.videos]


def names(listing: Listing) -> list[str]:
    return [video.name for video in listing.videos]


def reasons(listing: Listing) -> list[str]:
    return [failure.message for failure in listing.missing]


def test_a_folder_keeps_its_folders_in_names(here: Path) -> None:
    listing = list_videos(["clips"])
    assert sources(listing, here) == [
        *("clips/tom.mp4", "clips/cats/9.mp4", "clips/cats/10.mp4", "clips/cats/Größe 2.mp4"),
        *("clips/cats/tom.mkv", "clips/cats/tom.mp4", "clips/frames"),
    ]
    assert names(listing) == [
        *("tom", "cats/9", "cats/10", "cats/Größe 2", "cats/tom.mkv", "cats/tom.mp4", "frames"),
    ]
    assert not listing.duplicates
    assert not listing.missing
    assert {video.source for video in listing.videos} == {str(here / path) for path in find_videos(["clips"])}
    assert names(list_videos(["clips/frames"])) == ["frames"]


def test_files_patterns_and_what_is_named_twice(here: Path) -> None:
    given = ["./clips/tom.mp4", "clips/*.mp4", f"file://{here}/clips/tom.mp4", "clips/cats/tom.mp4", "clips/../clips"]
    listing = list_videos(given)
    assert sources(listing, here)[:2] == ["clips/tom.mp4", "clips/cats/tom.mp4"]
    assert listing.duplicates == [f"{here}/clips/tom.mp4"] * 3 + [f"{here}/clips/cats/tom.mp4"]
    assert len(set(names(listing))) == len(listing.videos) == 7


def test_what_is_not_there_is_counted_and_the_rest_goes_on(here: Path) -> None:
    (here / "nothing").mkdir()
    listing = list_videos(["gone.mp4", "nothing", "no/*.mp4", "clips/tom.mp4", "~nobody/x.mp4"])
    assert sources(listing, here) == ["clips/tom.mp4"]
    assert [failure.kind for failure in listing.missing] == ["missing"] * 4
    for message, part in zip(
        reasons(listing), ("no such file", "no video in this folder", "matches no", "no such file"), strict=True
    ):
        assert part in message
    assert list_videos(["gone.mp4"]).videos == []


def test_a_folder_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # not below pytest's own, which only its owner may enter
        root = Path(os.path.realpath(name))
        for folder in ("clips/open", "clips/closed"):
            (root / folder).mkdir(parents=True)
            (root / folder / "x.mp4").touch()
        (root / "clips/closed").chmod(0)
        (root / "clips").chmod(0o755)
        root.chmod(0o755)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            listing = list_videos([str(root / "clips"), str(root / "clips/closed/x.mp4")])
        finally:
            os.seteuid(user)
            (root / "clips/closed").chmod(0o755)
        assert sources(listing, root) == ["clips/open/x.mp4"]
        closed = root / "clips/closed"
        assert reasons(listing) == [
            f"{closed}: cannot be searched for videos (Permission denied)",
            f"{closed}/x.mp4: cannot be read (Permission denied)",
        ]


ROWS = ["clips/tom.mp4", "clips/cats/Größe 2.mp4", "s3://bucket/a, b.mp4", "https://example.org/v/c.mp4?x=1#2"]


def write(kind: str, place: Path, rows: list[str]) -> Path:
    path = place / f"list{kind}"
    if kind == ".txt":
        path.write_text("# videos\n\n" + "\n".join(rows) + "\n", encoding="utf-8")
    elif kind == ".csv":
        quoted = "".join(f'"a ""caption"", of two\r\nlines","{row}"\r\n' for row in rows)
        path.write_bytes(b"\xef\xbb\xbf" + f"caption,Path\r\n{quoted}".encode())
    elif kind == ".tsv":
        path.write_text("caption\tvideo\n" + "".join(f"x\t{row}\n" for row in rows), encoding="utf-8")
    elif kind == ".jsonl":
        lines = [json.dumps({"caption": "x", "filename": row}, ensure_ascii=len(row) % 2 == 0) for row in rows[:-1]]
        path.write_text("\n".join([*lines, json.dumps(rows[-1])]), encoding="utf-8")
    else:
        pq.write_table(pa.table({"n": range(len(rows)), "uri": rows}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("kind", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_list(here: Path, kind: str) -> None:
    listing = list_videos([str(write(kind, here, ROWS))])
    assert sources(listing, here) == ROWS
    assert names(listing) == ["tom", "Größe 2", "a, b", "c"]
    assert not listing.duplicates
    assert not listing.missing
    # From another folder, where the rows are relative to the list alone.
    os.chdir(here / "clips")
    assert list_videos([f"../list{kind}"]) == listing


@pytest.mark.parametrize("kind", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_bad_rows_are_counted_and_the_rest_goes_on(here: Path, kind: str) -> None:
    (here / "other.csv").write_text("path\nx.mp4\n")
    bad = [" ", "gone.mp4", "other.csv", "s3://bucket/list.txt", "clips/none/*.mp4", "./clips/tom.mp4", "a\0b.mp4"]
    listing = list_videos([str(write(kind, here, ["clips/tom.mp4", *bad, "clips/cats/"]))])
    assert sources(listing, here)[0] == "clips/tom.mp4"
    assert len(listing.videos) == 6
    assert listing.duplicates == [f"{here}/clips/tom.mp4"]
    parts = ["names no video", "no such file", "list in a list", "list in a list", "matches no video", "cannot be read"]
    messages = reasons(listing)
    if kind == ".txt":
        del parts[0]  # a blank line says nothing
    assert len(messages) == len(parts)
    assert all(part in message for message, part in zip(messages, parts, strict=True)), messages
    assert any("gone.mp4: no such file" in message and f"list{kind}, " in message for message in messages)


def test_columns_are_found_or_named(here: Path) -> None:
    table = here / "t.csv"

    def listed(header: str, row: str, **how: Any) -> list[str]:
        table.write_text(f"{header}\n{row}\n")
        return sources(list_videos([str(table)], **how), here)

    assert listed("video,path", "9,clips/tom.mp4") == ["clips/tom.mp4"]  # in the order of the documentation
    assert listed("clip", "clips/tom.mp4") == ["clips/tom.mp4"]  # the only one
    assert listed("clips/cats/9.mp4", "clips/tom.mp4") == ["clips/cats/9.mp4", "clips/tom.mp4"]  # no header
    assert listed("a,b", "clips/tom.mp4,clips/cats/9.mp4", column="B") == ["clips/cats/9.mp4"]
    assert listed("path,", "clips/tom.mp4,") == ["clips/tom.mp4"]
    for header, how, said in (
        ("a,b", {}, "which column holds the paths?.*'a', 'b'"),
        ("a,b", {"column": "c"}, "has no column 'c'; it has 'a', 'b'"),
        ("path,b", {"id_column": "c"}, "has no column 'c'"),
        ("x.mp4,b", {}, "first line must name the columns"),
        ("path;b", {}, "separated by semicolons"),
    ):
        with pytest.raises(ValueError, match=rf"t\.csv: .*{said}"):
            listed(header, "clips/tom.mp4,x", **how)
    jsonl = here / "t.jsonl"
    jsonl.write_text('{"a": 1, "b": 2}\n')
    with pytest.raises(ValueError, match="which column"):
        list_videos([str(jsonl)])
    pq.write_table(pa.table({"a": ["clips/tom.mp4"], "b": [1]}), here / "t.parquet")
    with pytest.raises(ValueError, match="which column"):
        list_videos([str(here / "t.parquet")])
    assert sources(list_videos([str(here / "t.parquet")], column="a"), here) == ["clips/tom.mp4"]


def test_rows_that_are_no_row(here: Path) -> None:
    jsonl = here / "t.jsonl"
    jsonl.write_text('{"path": "clips/tom.mp4"}\n{"path": \n[1]\n{"b": 1}\n\n{"path": null}\n{"path": NaN}\n')
    listing = list_videos([str(jsonl)])
    assert sources(listing, here) == ["clips/tom.mp4"]
    found = [message.partition("t.jsonl, ")[2] for message in reasons(listing)]
    assert [message[:6] for message in found] == ["line 2", "line 3", "line 4", "line 6", "line 7"]
    assert "is not JSON" in found[0]
    assert "neither a path nor a JSON object" in found[1]
    table = here / "t.csv"
    table.write_text("n,path\n1\n2,clips/tom.mp4,more\n\n")
    listing = list_videos([str(table)])
    assert sources(listing, here) == ["clips/tom.mp4"]
    assert reasons(listing) == [f"{table}, line 2: names no video"]
    for empty in ("path\n", ""):
        table.write_text(empty)
        assert reasons(list_videos([str(table)])) == [f"{table}: the list names no video"]


def test_lists_that_cannot_be_read(here: Path) -> None:
    for name, data, said in (
        ("u.csv", "path\nGröße.mp4\n".encode("utf-16"), "not a list in UTF-8"),
        ("p.parquet", b"PAR1 and nothing", "not a readable Parquet file"),
        ("b.csv", b'path\n"' + b"x" * 200_000 + b'"\n', "cannot be read as a table"),
    ):
        (here / name).write_bytes(data)
        with pytest.raises(VideoError, match=rf"{name}: .*{said}"):
            list_videos([name])
    (here / "d.txt").mkdir()
    assert "no video in this folder" in reasons(list_videos(["d.txt"]))[0]
    for paths, said in (
        (["gone.csv"], r"gone\.csv: the list cannot be read \(No such file"),
        ([], "no video given"),
        ([" "], "an empty path"),
        (["https://example.org/list.csv"], "not read over the web"),
    ):
        with pytest.raises(ValueError, match=said):
            list_videos(paths)
    (here / "t.txt").write_text("clips/tom.mp4\n")
    with pytest.raises(ValueError, match="a text file has no columns"):
        list_videos(["t.txt"], column="path")
    (here / "w.txt").write_bytes(b"clips/tom.mp4\r\nclips/cats/9.mp4\r\n")
    assert len(list_videos(["?.txt"]).videos) == 2  # a pattern of lists
    assert "matches no list" in reasons(list_videos(["none*.txt"]))[0]


def test_names_are_unique_and_stay_below_the_folder(here: Path) -> None:
    rows = [f"s3://bucket/{key}" for key in ("a/x.mp4", "b/x.mp4", "x.mkv", "y.mp4", "y.mp4.mkv", "..", ".z.mp4")]
    rows += ["s3://bucket/" + "ü" * 150 + ".mp4", "https://h/w.mp4?v=1", "https://h/w.mp4?v=2"]
    listing = list_videos([str(write(".txt", here, rows))])
    found = names(listing)
    assert found[0].startswith("x.mp4-")
    assert found[1].startswith("x.mp4-")
    assert found[2:7] == ["x.mkv", "y", "y.mp4.mkv", "video", "_z"]
    assert len(set(found)) == len(rows)
    assert all(len(part.encode()) < 200 for name in found for part in name.split("/"))
    assert names(list_videos([str(here / "list.txt")])) == found


def test_ids_name_the_features(here: Path) -> None:
    rows = [
        ("clips/tom.mp4", "id 1"),
        ("clips/cats/tom.mp4", "id 1"),
        ("clips/cats/9.mp4", "../../etc/x.y"),
        ("clips/cats/10.mp4", ""),
    ]
    (here / "t.csv").write_text("video_id,path\n" + "".join(f"{each},{path}\n" for path, each in rows))
    listing = list_videos(["t.csv"], id_column="video_id")
    assert [video.video for video in listing.videos] == ["id 1", "id 1", "../../etc/x.y", None]
    assert all(name.startswith("id 1-") for name in names(listing)[:2])
    assert names(listing)[2:] == ["etc/x.y", "10"]
    assert len(set(names(listing))) == 4
    (here / "t.parquet").mkdir()  # in parts, as Spark writes it
    for part in (0, 1):
        table = pa.table({"path": [path for path, _ in rows[2 * part :][:2]], "n": [[7, 8], [9, None]][part]})
        pq.write_table(table, here / f"t.parquet/part-{part}.snappy.parquet")
    (here / "t.parquet/_SUCCESS").touch()
    assert names(list_videos(["t.parquet"], id_column="n")) == ["7", "8", "9", "10"]


def test_a_name_that_is_no_text_is_refused(here: Path) -> None:
    (here / "clips" / os.fsdecode(b"\xff.mp4")).touch()
    listing = list_videos(["clips"])
    assert len(listing.videos) == 7
    assert "is no text in UTF-8" in reasons(listing)[0]
    reasons(listing)[0].encode()


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_hundred_thousand_rows(here: Path, kind: str) -> None:
    rows = [f"s3://bucket/{number // 1000}/{number % 70_000}.mp4" for number in range(100_000)]
    path = here / f"t{kind}"
    if kind == ".csv":
        path.write_text("path,caption\n" + "".join(f'{row},"a, b"\n' for row in [*rows, *rows[:5]]))
    else:
        pq.write_table(pa.table({"path": [*rows, *rows[:5]]}), path)
    listing = list_videos([str(path)])
    assert [video.source for video in listing.videos] == rows
    assert len(set(names(listing))) == len(rows)
    assert names(listing)[40_000] == "40000"
    assert listing.duplicates == rows[:5]


def test_buckets_and_lists_on_them(store: Any, here: Path) -> None:
    for key in ("v/a/one.mp4", "v/a/two 2.mp4", "v/b/one.mp4", "v/.x.mp4", "v/readme.md"):
        store.put_object(Bucket="bucket", Key=key, Body=b"")
    listing = list_videos(["s3://bucket/v/", "s3://bucket/v/b/one.mp4", "s3a://bucket/v/a/one.mp4", "s3://bucket/w"])
    assert sources(listing, here) == [f"s3://bucket/v/{name}.mp4" for name in ("a/one", "a/two 2", "b/one")]
    assert names(listing) == ["a/one", "a/two 2", "b/one"]
    assert listing.duplicates == ["s3://bucket/v/b/one.mp4", "s3a://bucket/v/a/one.mp4"]
    assert reasons(listing) == ["s3://bucket/w: no video there; check the address"]
    rows = ["a/one.mp4", "../v/b/one.mp4", "s3://bucket/v/a/*2.mp4", "s3://bucket/v/b/", "gone.mp4", "s3://none/x/"]
    for kind in (".txt", ".csv", ".parquet"):
        store.upload_file(str(write(kind, here, rows)), "bucket", f"v/list{kind}")
        listing = list_videos([f"s3://bucket/v/list{kind}"])
        ends = ["a/one.mp4", "b/one.mp4", "a/two 2.mp4", "gone.mp4"]  # whether they are there is found out later
        assert sources(listing, here) == [f"s3://bucket/v/{end}" for end in ends]
        assert listing.duplicates == ["s3://bucket/v/b/one.mp4"]
        assert reasons(listing) == ["s3://none/x/: no such bucket; check the address"]
    assert len(list_videos(["s3://bucket/v/*.csv"]).videos) == 4
    listing = list_videos(["s3a://bucket/v/*.txt"])  # relative rows are of the address as it was given
    assert sources(listing, here)[:2] == ["s3a://bucket/v/a/one.mp4", "s3a://bucket/v/b/one.mp4"]
    with pytest.raises(VideoError, match=r"s3://bucket/v/gone\.csv: no such file"):
        list_videos(["s3://bucket/v/gone.csv"])
    assert [failure.source for failure in list_videos(["s3://none/v/"]).missing] == ["s3://none/v/"]


def test_a_store_that_does_not_answer(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name, value in (("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), ("AWS_MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        listing = list_videos(["s3://bucket/v/", "clips/tom.mp4"])
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert sources(listing, here) == ["clips/tom.mp4"]
    assert [failure.kind for failure in listing.missing] == ["unreachable"]
