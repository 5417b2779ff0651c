"""Features in tar shards: what webdataset reads, what damage does, and the export that makes them."""

import io
import json
import multiprocessing
import os
import resource
import signal
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from command import everyframe
from everyframe import Library
from everyframe.exports import export_shards
from everyframe.features import FeaturesError, ForeignFileError, VideoFeatures
from everyframe.features.shards import Shard, key_of, read_index, read_shard
from everyframe.features.sources import find_sources

wds = pytest.importorskip("webdataset")


def make(number=0, frames=12, dim=6, dtype=np.float32, **changes):
    rng = np.random.default_rng(number)
    values = {
        "times": np.arange(frames) / 3 + 0.01,
        "embeddings": rng.normal(size=(frames, dim)).astype(dtype),
        "roles": ("IPPC" * frames)[:frames],
        "video": {"path": f"films/{number}.mp4", "duration_seconds": frames / 3, "fingerprint": f"f{number}"},
        "model": {"id": "tiny", "weights_sha256": "ab", "normalised": False, "preprocess": {"size": 32}},
        "settings": {"fps": 3.0, "encoder": "dense", "version": "0"},
    }
    return VideoFeatures(**{**values, **changes})


def assert_same(a, b):
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.times, b.times)
    assert a.embeddings.dtype == b.embeddings.dtype
    assert a.header() == b.header()


def pack(path, named, **options):
    with Shard() as shard:
        for name, feats in named.items():
            shard.add(name, feats, **options)
        return shard.save(path)


@pytest.fixture
def named():
    return {
        "kitchen/a1": make(1),
        "kitchen/été 2.1": make(2, dtype=np.float16, end_seconds=99.0),
        "empty": make(3, frames=0),
        "x" * 300: make(4, frames=1),
    }


def test_webdataset_reads_what_is_written(tmp_path, named):
    path = pack(tmp_path / "features-000000.tar", named)
    samples = list(wds.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [key_of(name) for name in named]
    for sample, feats in zip(samples, named.values(), strict=True):
        assert {name for name in sample if not name.startswith("__")} == {"npy", "times.npy", "json"}
        np.testing.assert_array_equal(sample["npy"], feats.embeddings)
        np.testing.assert_array_equal(sample["times.npy"], feats.times)
        assert sample["npy"].dtype == feats.embeddings.dtype
        assert {key: sample["json"][key] for key in feats.header()} == feats.header()


def test_what_webdataset_writes_is_read(tmp_path, named):
    path = tmp_path / "theirs.tar"
    with wds.TarWriter(str(path)) as writer:
        for sample in wds.WebDataset(str(pack(tmp_path / "ours.tar", named)), shardshuffle=False).decode():
            fields = {name: value for name, value in sample.items() if not name.startswith("__")}
            writer.write({"__key__": sample["__key__"], **fields, "txt": "a caption of theirs"})
    for (key, feats), (name, expected) in zip(read_shard(path), named.items(), strict=True):
        assert key == key_of(name)
        assert_same(feats, expected)
    with pytest.raises(ForeignFileError, match="has no index of everyframe"):
        read_index(path)


def test_equal_content_is_equal_bytes(tmp_path, named):
    first, second = pack(tmp_path / "a.tar", named), pack(tmp_path / "b.tar", named)
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) % tarfile.RECORDSIZE == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_the_index_is_read_from_the_first_bytes(tmp_path, named):
    path = pack(tmp_path / "a.tar", named, note={"run": 7})
    path.write_bytes(path.read_bytes()[: 8 * tarfile.BLOCKSIZE])
    videos = read_index(path)
    assert [(video.name, video.frames, video.dim, video.note) for video in videos] == [
        (name, feats.num_frames, 6, {"run": 7}) for name, feats in named.items()
    ]
    kitchen = make(1).save(tmp_path / "a.npz")
    with np.load(kitchen) as arrays:  # one checksum, whatever file the features are in
        assert videos[0].sha256 == json.loads(str(arrays["metadata"]))["sha256"]


def test_shares_are_disjoint_and_complete(tmp_path):
    path = pack(tmp_path / "a.tar", {f"v{number}": make(number) for number in range(7)})
    shares = [[key for key, _ in read_shard(path, share=(which, 3))] for which in range(3)]
    assert shares == [["v0", "v3", "v6"], ["v1", "v4"], ["v2", "v5"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b-1_x", "a/b-1_x"),
        ("/a//./b", "a/b-"),
        ("../../etc/passwd", "etc/passwd-"),
        ("v1.5", "v1_5-"),
        ("..", "video-"),
        ("y" * 500, "y" * 159 + "-"),
    ],
)
def test_keys(name, expected):
    key = key_of(name)
    assert key == expected or (expected.endswith("-") and key.startswith(expected) and len(key) == len(expected) + 10)


def test_different_names_have_different_keys():
    names = [
        "a.b",
        "a_b",
        "a b",
        "a.b/c",
        "a_b/c",
        "A_b",
        "a/b",
        "/a/b",
        "a//b",
        "",
        "é",
        "e\u0301",
        "x" * 200,
        "x" * 201,
    ]
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all("." not in key for key in keys)
    assert [key_of(key) for key in keys] == keys


def test_a_name_twice_is_refused(tmp_path):
    with Shard() as shard:
        shard.add("a", make(1))
        with pytest.raises(FeaturesError, match="a is in this shard already"):
            shard.add("a", make(2))
        shard.add("b", make(3))
        path = shard.save(tmp_path / "a.tar")
    assert [key for key, _ in read_shard(path)] == ["a", "b"]


def test_a_full_disk_leaves_nothing_and_the_shard_usable(tmp_path, monkeypatch):
    with Shard() as shard:
        shard.add("a", make(1))

        def full(*args):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(FeaturesError, match=r"a\.tar cannot be written \(No space left on device\)"):
                shard.save(tmp_path / "a.tar")
        assert not list(tmp_path.iterdir())
        shard.add("b", make(2))
        path = shard.save(tmp_path / "a.tar")
    assert [key for key, _ in read_shard(path)] == ["a", "b"]
    with Shard() as shard, pytest.raises(FeaturesError, match="cannot be written"):
        shard.save(tmp_path / "missing" / "a.tar")


def test_a_video_that_does_not_fit_leaves_those_before(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Shard() as shard:
        shard.add("a", make(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(FeaturesError, match=r"b cannot be added to the shard \(File too large\)"):
                shard.add("b", make(2, frames=2000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        shard.add("c", make(3))
        path = shard.save(tmp_path / "a.tar")
    assert [key for key, _ in read_shard(path)] == ["a", "c"]


# --- damage ------------------------------------------------------------------------------------------------


def readable(path):
    """What can be read of a shard, and what is said of the rest."""
    errors = []
    return dict(read_shard(path, failed=errors.append)), errors


def test_cut_short_at_any_place_is_told(tmp_path):
    named = {f"v{number}": make(number) for number in range(3)}
    data = pack(tmp_path / "a.tar", named).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        content = max(member.offset_data + member.size for member in tar)
    path = tmp_path / "cut.tar"
    for length in [0, 1, 511, *range(512, content, 512), content - 1]:  # every boundary of blocks
        path.write_bytes(data[:length])
        found, errors = readable(path)
        assert len(errors) == 1, length
        assert isinstance(errors[0], FeaturesError)
        assert str(path) in str(errors[0])
        for key, feats in found.items():
            assert_same(feats, named[key])
        with pytest.raises(FeaturesError):
            list(read_shard(path))


def test_flipped_bits_never_give_other_features(tmp_path):
    named = {f"v{number}": make(number, frames=3) for number in range(3)}
    data = pack(tmp_path / "a.tar", named).read_bytes()
    path = tmp_path / "flipped.tar"
    rng = np.random.default_rng(0)
    told = 0
    for place in rng.choice(len(data), 300, replace=False):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        found, errors = readable(path)
        for key, feats in found.items():
            assert_same(feats, named[key])
        assert errors or len(found) == 3  # padding carries nothing
        told += bool(errors)
    assert told > 100


def test_one_damaged_video_leaves_the_others(tmp_path):
    named = {f"v{number}": make(number) for number in range(3)}
    path = pack(tmp_path / "a.tar", named)
    with tarfile.open(path) as tar:
        place = tar.getmember("v1.npy").offset_data + 200
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    found, errors = readable(path)
    assert list(found) == ["v0", "v2"]
    assert [str(error) for error in errors] == [
        f"{path}#v1 does not match its checksum; delete it and encode the video again"
    ]
    with pytest.raises(FeaturesError, match="#v1 does not match"):
        list(read_shard(path))


def tar_of(path, **members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_foreign_files_are_named(tmp_path):
    pictures = tar_of(tmp_path / "pictures.tar", a__jpg=b"...", a__txt=b"a dog")
    (tmp_path / "noise.tar").write_bytes(os.urandom(5000))
    (tmp_path / "none.tar").write_bytes(b"")
    cases = [
        (pictures, ForeignFileError, r"pictures\.tar#a has no \.npy"),
        (tar_of(tmp_path / "empty.tar"), ForeignFileError, "holds no features"),
        (tar_of(tmp_path / "other.tar", a__npy=b"1", a__json=b"{}"), ForeignFileError, r"has no \.times\.npy"),
        (tmp_path / "noise.tar", FeaturesError, "damaged or no tar file"),
        (tmp_path / "none.tar", FeaturesError, "damaged or no tar file"),
        (tmp_path / "gone.tar", FeaturesError, "does not exist"),
        (tmp_path, FeaturesError, "cannot be read: Is a directory"),
    ]
    for path, kind, message in cases:
        with pytest.raises(kind, match=message):
            list(read_shard(path))
        with pytest.raises(FeaturesError):
            read_index(path)


def test_a_sparse_member_is_refused(tmp_path):
    """GNU tar writes a file with holes so; a few KB would be read as terabytes of zeros."""
    path = pack(tmp_path / "a.tar", {"v0": make(0)})
    for name in ("v1.npy", "__index__"):
        info = tarfile.TarInfo(name)
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
        head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        head[386:410] = b"00000000000\0" + b"00000001000\0"  # 512 bytes at 0
        head[483:495] = (1 << 44).to_bytes(12, "big")
        head[483] |= 0x80  # of 16 TiB
        head[148:156] = b" " * 8
        head[148:156] = f"{sum(head):06o}\0 ".encode()
        sparse = tmp_path / "sparse.tar"
        sparse.write_bytes(bytes(head) + bytes(512) + path.read_bytes())
        with pytest.raises(ForeignFileError, match=rf"sparse\.tar: {name} is stored as a sparse file"):
            list(read_shard(sparse))


def test_what_else_is_in_a_sample_is_not_read(tmp_path):
    """Others pack videos beside their features; only what is needed may come into memory."""
    path, feats = tmp_path / "theirs.tar", make(0)
    with wds.TarWriter(str(path)) as writer:
        sample = next(iter(wds.WebDataset(str(pack(tmp_path / "ours.tar", {"v0": feats})), shardshuffle=False)))
        needed = {key: sample[key] for key in ("npy", "times.npy", "json")}
        writer.write({"__key__": "v0", "mp4": bytes(64 << 20), **needed})
        writer.write({"__key__": "v1", "mp4": b"a video alone"})
    errors = []
    tracemalloc.start()
    found = dict(read_shard(path, failed=errors.append))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert list(found) == ["v0"]
    assert_same(found["v0"], feats)
    assert [str(error) for error in errors] == [
        f"{path}#v1 has no .npy, which features in a shard have; is it one of features?"
    ]


# --- what stands for what ----------------------------------------------------------------------------------


def test_sources(tmp_path, named):
    for name in ("b.npz", "a.h5", ".hidden/part.npz", "deep/c.npy", ".d.npz"):
        (tmp_path / "single" / name).parent.mkdir(exist_ok=True, parents=True)
        make().save(tmp_path / "single" / name)
    (tmp_path / "single" / "x.recipe.npz").write_bytes(b"")
    (tmp_path / "shards").mkdir()
    for number in range(8, 12):
        pack(tmp_path / "shards" / f"s-{number:03d}.tar", named)

    def names(*paths):
        return [os.path.relpath(source, tmp_path) for source in find_sources([tmp_path / path for path in paths])]

    assert names("single") == ["single/a.h5", "single/b.npz", "single/deep/c.npy"]
    assert names("single/*.npz") == ["single/b.npz"]
    assert names("shards/s-{009..011}.tar", "single/b.npz", "single") == [
        "shards/s-009.tar", "shards/s-010.tar", "shards/s-011.tar",
        "single/b.npz", "single/a.h5", "single/deep/c.npy",
    ]  # fmt: skip
    assert names("shards/s-{008,010}.tar") == ["shards/s-008.tar", "shards/s-010.tar"]
    assert len(names("shards/s-0?[01].tar")) == 2
    assert find_sources(f"file://{tmp_path}/shards/s-*.tar") == [
        str(path) for path in sorted((tmp_path / "shards").iterdir())
    ]


def test_sources_that_cannot_be_meant(tmp_path, named):
    make().save(tmp_path / "a.npz")
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "both.tar", named)
    cases = [
        ([], "no paths"),
        (tmp_path, "holds both shards"),
        (tmp_path / "packed", "holds no features"),
        (tmp_path / "no-*.npz", "holds no features"),
        (tmp_path / "gone.npz", "does not exist"),
        (tmp_path / "s-{000..001}.tar", r"s-000\.tar does not exist"),
        (tmp_path / "s-{5..1}.tar", "counts backwards"),
    ]
    for name, message in (("a.tar.gz", "is compressed"), ("a.mp4", "is not a file of features")):
        (tmp_path / name).write_bytes(b"")
        cases.append((tmp_path / name, message))
    for path, message in cases:
        with pytest.raises(FeaturesError, match=message):
            find_sources(path)


# --- export ------------------------------------------------------------------------------------------------


def contents(folder):
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        for key, feats in read_shard(shard):
            assert key not in found
            found[key] = feats
    return found


@pytest.fixture
def files(tmp_path):
    feats = {f"kitchen/v{number}" if number % 2 else f"v{number}": make(number) for number in range(9)}
    for number, (name, each) in enumerate(feats.items()):
        path = tmp_path / "features" / f"{name}{('.npz', '.npy', '.h5', '.parquet')[number % 4]}"
        path.parent.mkdir(exist_ok=True, parents=True)
        each.save(path)
    return feats


def test_export_and_again(tmp_path, files):
    out = tmp_path / "out"
    code = everyframe("export", "--webdataset", tmp_path / "features", "--out", out)
    assert code.returncode == 0, code.stderr
    assert "9 videos, 108 rows of 6 in 1 shard" in code.stdout
    found = contents(out)
    assert found.keys() == files.keys()
    for key, feats in found.items():
        assert_same(feats, files[key])
    before = (out / "features-000000.tar").read_bytes()
    make(20).save(tmp_path / "features" / "later.npz")
    again = everyframe("export", "--to", "webdataset", tmp_path / "features", "--out", out, "--json")
    facts = json.loads(again.stdout)
    assert (facts["videos"], facts["there"], facts["failures"]) == (1, 9, [])
    assert (out / "features-000000.tar").read_bytes() == before
    assert contents(out).keys() == files.keys() | {"later"}
    assert sorted(file.name for file in out.iterdir()) == ["features-000000.tar", "features-000001.tar"]


def test_shards_have_their_size_and_can_be_exported_again(tmp_path, files):
    made = export_shards(tmp_path / "features", tmp_path / "small", shard_bytes=4 * 2560, dtype="float16")
    assert len(made.shards) > 2
    assert made.videos == 9
    for key, feats in contents(tmp_path / "small").items():
        np.testing.assert_array_equal(feats.embeddings, files[key].embeddings.astype(np.float16))
        assert feats.settings["stored_dtype"] == "float16"
    whole = export_shards(tmp_path / "small", tmp_path / "whole")
    assert len(whole.shards) == 1
    assert contents(tmp_path / "whole").keys() == files.keys()


def test_a_killed_export_goes_on(tmp_path, files):
    """Killed at each of its steps, and then let through: every video once, and no half shard."""
    context = multiprocessing.get_context("fork")

    def doomed(out, at):
        def progress(done, of):
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)

        export_shards(tmp_path / "features", out, shard_bytes=5000, progress=progress)

    for at in range(1, 10):
        out = tmp_path / f"out-{at}"
        process = context.Process(target=doomed, args=(out, at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        before = contents(out) if out.exists() else {}
        made = export_shards(tmp_path / "features", out)
        assert (made.there, made.videos, made.failures) == (len(before), 9 - len(before), ())
        assert contents(out).keys() == files.keys()
    assert len(before) >= 8


def test_a_library_is_exported(tmp_path, files):
    with Library(tmp_path / "library") as library:
        list(library.add_all(files.values()))
    run = everyframe("export", "--webdataset", tmp_path / "library", "--out", tmp_path / "out", "--quiet")
    assert (run.returncode, run.stdout) == (0, "")
    found = contents(tmp_path / "out")
    assert found.keys() == {str(number) for number in range(9)}
    np.testing.assert_array_equal(found["3"].embeddings, files["kitchen/v3"].embeddings.astype(np.float16))
    with Library(tmp_path / "library") as library:
        library.add(make(1, model={**make().model, "id": "other", "weights_sha256": "cd"}))
    both = everyframe("export", "--webdataset", tmp_path / "library", "--out", tmp_path / "other")
    assert both.returncode == 1
    assert "holds several collections" in " ".join(both.stderr.split())
    made = export_shards(tmp_path / "library", tmp_path / "chosen", collection="other")
    assert (made.videos, made.failures) == (1, ())


def test_a_folder_gives_the_same_names_however_it_is_spelled(tmp_path, monkeypatch):
    expected = {"p/same", "q/same"}
    for name in expected:
        (tmp_path / "feats" / name).parent.mkdir(parents=True)
        make(ord(name[0])).save(tmp_path / "feats" / f"{name}.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = [
        "feats", "./feats/", f"{tmp_path}//feats", "feats/../feats", "~/feats", f"file://{tmp_path}/feats",
        "feats/*/*.npz", "./feats/**/*.npz", "~/feats/{p,q}*/same.npz",
    ]  # fmt: skip
    for given in spellings:
        made = export_shards(given, tmp_path / "out")
        assert made.failures == (), given
        assert (made.videos, made.there) == ((2, 0) if given == "feats" else (0, 2)), given
    assert contents(tmp_path / "out").keys() == expected
    monkeypatch.chdir(tmp_path / "feats")
    for given in (".", "*/same.npz", Path("p", "..")):
        assert export_shards(given, tmp_path / "out").there == 2
    assert export_shards("p/../p/same.npz", tmp_path / "file").videos == 1
    assert contents(tmp_path / "file").keys() == {"same"}
    with Library(tmp_path / "library") as library:
        library.add(make(1))
    assert export_shards("~/library", tmp_path / "of-library").videos == 1


def test_what_cannot_be_exported_is_named_and_the_rest_goes_on(tmp_path, files):
    folder = tmp_path / "features"
    (folder / "broken.npz").write_bytes(b"PK")
    make(30, dim=5).save(folder / "wide.npz")
    make(31).save(folder / "v0.h5")  # v0.npz came before
    run = everyframe(
        "export", "--webdataset", folder, tmp_path / "gone.npz", tmp_path / "gone-*.tar", "--out", tmp_path / "out"
    )
    assert run.returncode == 1
    assert contents(tmp_path / "out").keys() == files.keys()
    for message in (
        "broken.npz is damaged",
        "dim is 6",
        "the name v0 came before",
        "gone.npz does not exist",
        "gone-*",
    ):
        assert message in " ".join(run.stderr.split())
    huge = replace(make(1), embeddings=np.full((12, 6), 1e6, np.float32))
    made = export_shards(huge.save(tmp_path / "huge.npz"), tmp_path / "huge", dtype="float16")
    assert "too large for float16" in made.failures[0][1]
    assert not (tmp_path / "huge").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.npz"], "say in which layout"),
        (["--webdataset"], "nothing to export"),
        (["--webdataset", "--to", "mad", "a.npz"], "two layouts"),
        (["--webdataset", "a.npz", "--rate", "2"], "--rate has no meaning with --to webdataset"),
        (["--webdataset", "a.npz", "--verify"], "--verify has no meaning"),
        (["--webdataset", "a.npz", "--dtype", "int8"], "dtype must be float32 or float16"),
        (["--to", "mad", "a.npz", "--shard-mb", "3"], "--shard-mb has no meaning with --to mad"),
        (["--to", "mad", "a.npz", "--collection", "x"], "--collection has no meaning with --to mad"),
        (["--to", "nothing", "a.npz"], "must be one of"),
    ],
)
def test_options_that_have_no_meaning(tmp_path, arguments, message):
    run = everyframe("export", *arguments, "--out", tmp_path / "out")
    assert run.returncode != 0
    assert message in " ".join(run.stderr.split())


def test_what_others_wrote_is_left_alone(tmp_path, files):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt"):
        export_shards(tmp_path / "features", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").rename(tmp_path / "out" / "features-000000.tar")
    with pytest.raises(FeaturesError, match="damaged or no tar file"):
        export_shards(tmp_path / "features", tmp_path / "out")
    with pytest.raises(ValueError, match="s3://bucket/out is an address"):
        export_shards(tmp_path / "features", "s3://bucket/out")
    with pytest.raises(ValueError, match="is a file"):
        export_shards(tmp_path / "features", tmp_path / "out" / "features-000000.tar")


def test_other_features_of_a_name_that_is_there(tmp_path):
    export_shards(make(1).save(tmp_path / "a.npz"), tmp_path / "out")
    made = export_shards(make(2).save(tmp_path / "a.npz"), tmp_path / "out")
    assert "holds other features named a" in made.failures[0][1]
    other = make(3, model={**make().model, "weights_sha256": "cd", "id": "other"})
    made = export_shards(other.save(tmp_path / "b.npz"), tmp_path / "out")
    assert "model id is 'tiny' for the first video of" in made.failures[0][1]
