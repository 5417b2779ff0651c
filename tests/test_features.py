"""VideoFeatures: every format returns what was saved, and no damaged or half-written file passes for it."""

import builtins
import errno
import json
import os
import resource
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from everyframe import feature_files as module
from everyframe.features import SUFFIXES, FeaturesError, ForeignFileError, VideoFeatures, check_same_space, space_of


def make(num_frames=20, dim=8, dtype=np.float32, seed=0, **changes):
    rng = np.random.default_rng(seed)
    values = {
        "times": np.arange(num_frames) / 3 + 0.01,
        "embeddings": rng.normal(size=(num_frames, dim)).astype(dtype),
        "roles": ("IPPC" * num_frames)[:num_frames],
        "video": {"path": "films/été.mp4", "duration_seconds": num_frames / 3, "fps": 29.97},
        "model": {"id": "tiny", "weights_sha256": "ab", "normalised": False, "preprocess": {"size": 32}},
        "settings": {"fps": 3.0, "encoder": "residual", "residual": None, "version": "0"},
    }
    return VideoFeatures(**{**values, **changes})


def assert_same(a, b):
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.times, b.times)
    assert a.embeddings.dtype == b.embeddings.dtype
    for name in ("roles", "video", "model", "settings", "end_seconds"):
        assert getattr(a, name) == getattr(b, name)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("num_frames", [0, 1, 20])
def test_save_and_load_every_format(tmp_path, suffix, dtype, num_frames):
    feats = make(num_frames, dtype=dtype, end_seconds=99.5)
    path = feats.save(tmp_path / f"film.v1{suffix}")
    loaded = VideoFeatures.load(path)
    assert_same(loaded, feats)
    assert loaded.embeddings.flags.writeable
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [f"film.v1{suffix}"] + ["film.v1.npy.json"] * (suffix == ".npy")
    )


def test_files_are_readable_by_other_tools(tmp_path):
    feats = make()
    with np.load(feats.save(tmp_path / "a.npz")) as arrays:
        np.testing.assert_array_equal(arrays["embeddings"], feats.embeddings)
    np.testing.assert_array_equal(np.load(feats.save(tmp_path / "a.npy")), feats.embeddings)
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(feats.save(tmp_path / "a.parquet")).to_pylist()
    assert [row["role"] for row in rows] == list(feats.roles)
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], np.float32), feats.embeddings)
    h5py = pytest.importorskip("h5py")
    with h5py.File(feats.save(tmp_path / "a.h5")) as file:
        np.testing.assert_array_equal(file["times"][:], feats.times)


def test_takes_tensors_lists_and_copies_provenance():
    video = {"path": "a.mp4", "size": (4, 3)}
    feats = VideoFeatures(
        times=[0, 1],
        embeddings=torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True),
        roles="IP",
        video=video,
    )
    video["path"] = "changed"
    assert feats.embeddings.dtype == np.float32
    assert feats.times.dtype == np.float64
    assert feats.video == {"path": "a.mp4", "size": [4, 3]}
    half = VideoFeatures(times=[0], embeddings=torch.ones(1, 3, dtype=torch.float16), roles="I")
    assert half.embeddings.dtype == np.float16
    swapped = VideoFeatures(times=[0], embeddings=np.ones((1, 3), ">f4"), roles="I")
    assert swapped.embeddings.dtype == np.dtype("=f4")


def test_repr_is_short():
    assert repr(make()) == (
        "VideoFeatures(été.mp4: 20 x 8 float32, 0.01 to 6.34 s, roles 'IPPCIPPCIPPC...', model tiny)"
    )
    assert "no frames" in repr(make(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": np.zeros(20, np.float32)}, r"shape \[frames, dim\], got \[20\]"),
        ({"embeddings": np.zeros((20, 0), np.float32)}, "shape"),
        ({"embeddings": np.zeros((20, 8))}, "float32 or float16, got float64"),
        ({"embeddings": np.where(np.arange(160).reshape(20, 8) == 43, np.nan, 0).astype("f4")}, "frame 5 "),
        ({"times": np.arange(19.0)}, r"got shape \[19\]"),
        ({"times": np.full(20, np.nan)}, "times must be finite"),
        ({"times": np.array([*range(19), 17.5])}, r"frame 19 at 17\.5 s follows 18\.0 s"),
        ({"roles": "I"}, "got 1 for 20"),
        ({"roles": ["I"] * 20}, "one letter per frame"),
        ({"roles": "X" * 20}, "letters IPC, got 'X'"),
        ({"video": [1]}, "video must be a dict"),
        ({"settings": {"a": object()}}, "settings must hold only what JSON can"),
        ({"model": {"a": float("nan")}}, "model must hold only"),
        ({"end_seconds": 1.0}, "end_seconds"),
    ],
)
def test_inconsistent_features_raise(changes, message):
    with pytest.raises(FeaturesError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("times", "video", "settings", "end_seconds", "expected"),
    [
        ([0, 1, 3], {"duration_seconds": 3.5}, {}, None, 3.5),
        ([0, 1, 3], {"duration_seconds": 3.0}, {}, None, 4.5),  # a lying header: the median step is 1.5
        ([0, 1, 3], {}, {}, None, 4.5),
        ([0, 1, 3], {"duration_seconds": 9}, {}, 3.25, 3.25),
        ([2], {}, {"fps": 4}, None, 2.25),
        ([2], {}, {}, None, 2.0),
    ],
)
def test_frame_ends(times, video, settings, end_seconds, expected):
    feats = VideoFeatures(
        times=times,
        embeddings=np.ones((len(times), 2), np.float32),
        roles="I" * len(times),
        video=video,
        settings=settings,
        end_seconds=end_seconds,
    )
    assert feats.frame_ends.tolist() == [*times[1:], expected]


def test_frame_ends_of_nothing_and_of_a_wrong_duration():
    assert make(0).frame_ends.shape == (0,)
    with pytest.raises(FeaturesError, match=r'video\["duration_seconds"\] must be a number'):
        make(video={"duration_seconds": "long"}).frame_ends  # noqa: B018


def test_normalised_rows_and_zero_rows():
    feats = make(dtype=np.float16)
    expected = [row / np.sqrt(sum(float(x) ** 2 for x in row)) for row in feats.embeddings.astype(np.float64)]
    np.testing.assert_allclose(feats.normalised(), expected, rtol=1e-6)
    rows = np.ones((20, 8), np.float32)
    rows[7] = 0
    with pytest.raises(FeaturesError, match=r"frame 7 .* all zeros"):
        make(embeddings=rows).normalised()


def test_slice_keeps_absolute_times_and_its_own_end():
    feats = make()
    part = feats.slice(1.0, 2.0)
    inside = [k for k, t in enumerate(feats.times) if 1.0 <= t < 2.0]
    np.testing.assert_array_equal(part.times, feats.times[inside])
    np.testing.assert_array_equal(part.embeddings, feats.embeddings[inside])
    assert part.roles == "".join(feats.roles[k] for k in inside)
    assert part.frame_ends[-1] == 2.0  # cut where the slice ends, not at the end of the video
    assert part.settings["slice_seconds"] == [1.0, 2.0]
    assert feats.slice(0, 100).frame_ends[-1] == feats.frame_ends[-1]
    assert feats.slice(50, 60).num_frames == 0
    with pytest.raises(FeaturesError, match="finite seconds"):
        feats.slice(2, 1)


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 3.0, 7.5])
@pytest.mark.parametrize("how", ["mean", "nearest"])
def test_resample_equals_naive(fps, how):
    rng = np.random.default_rng(3)
    times = np.sort(rng.uniform(0.4, 9, 24))
    feats = make(24, times=times, video={"duration_seconds": 10.0})
    out = feats.resample(fps, how=how)
    k, expected_times, rows = int(times[0] * fps), [], []
    while k / fps < 10.0:
        inside = [i for i, t in enumerate(times) if k / fps <= t < (k + 1) / fps]
        nearest = min(range(24), key=lambda i: (abs(times[i] - k / fps), i))
        chosen = inside if how == "mean" and inside else [nearest]
        rows.append(np.mean([feats.embeddings[i] for i in chosen], axis=0))
        expected_times.append(k / fps)
        k += 1
    np.testing.assert_allclose(out.times, expected_times)
    np.testing.assert_allclose(out.embeddings, rows, atol=1e-6)
    assert out.settings["fps"] == fps
    assert out.settings["resampled"] == {"from_fps": 3.0, "how": how}
    assert out.frame_ends[-1] == 10.0


def test_resample_to_the_same_rate_is_identity_and_keeps_unit_rows():
    feats = make(31, times=np.arange(31) / 3)
    for how in ("mean", "nearest"):
        np.testing.assert_array_equal(feats.resample(3, how=how).embeddings, feats.embeddings)
    unit = replace(feats, embeddings=feats.normalised().astype(np.float16), model={"normalised": True})
    out = unit.resample(1)
    assert out.embeddings.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(out.embeddings.astype(np.float32), axis=1), 1, atol=1e-3)
    assert make(0).resample(1).num_frames == 0
    with pytest.raises(FeaturesError, match="fps must be"):
        feats.resample(0)
    with pytest.raises(FeaturesError, match="how must be"):
        feats.resample(1, how="median")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": {"id": "other", "preprocess": {"size": 32}}}, "model id"),
        (
            {"model": {"id": "tiny", "weights_sha256": "cd", "preprocess": {"size": 32}}},
            "model weights_sha256",
        ),
        ({"model": {"id": "tiny", "weights_sha256": "ab"}}, "model preprocess"),
        ({"dim": 4}, r"dim is 8 .* but 4"),
    ],
)
def test_check_same_space_names_the_field(changes, field):
    space = space_of(make())
    check_same_space(space, make(seed=1, dtype=np.float16, settings={"encoder": "dense"}))
    # The same weights under another name are the same space.
    check_same_space(space, make(model={**make().model, "id": "a/folder"}))
    with pytest.raises(FeaturesError, match=field):
        check_same_space(space, make(**changes))


# Files that must not load


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_truncated_files_raise(tmp_path, suffix, share):
    path = make(200, 16).save(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FeaturesError, match=rf"a{suffix} .*encode"):
        VideoFeatures.load(path)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5", ".parquet"])
def test_flipped_bits_never_load_as_other_features(tmp_path, suffix):
    feats = make(50, 16)
    path = feats.save(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            loaded = VideoFeatures.load(path)
        except FeaturesError:
            refused += 1
        else:  # a bit nobody reads, such as a date in the zip directory
            assert_same(loaded, feats)
    assert refused > 30


def test_sidecar_missing_broken_or_of_another_array(tmp_path):
    path = make().save(tmp_path / "a.npy")
    other = make(seed=1).save(tmp_path / "b.npy")
    side = tmp_path / "a.npy.json"
    text = side.read_text()
    side.write_text(text[:-20])
    with pytest.raises(FeaturesError, match="damaged"):
        VideoFeatures.load(path)
    side.write_text((tmp_path / "b.npy.json").read_text())
    with pytest.raises(FeaturesError, match="checksum"):
        VideoFeatures.load(path)
    side.unlink()
    with pytest.raises(FeaturesError, match=r"a\.npy\.json does not exist; it holds the times"):
        VideoFeatures.load(path)
    assert VideoFeatures.load(other).num_frames == 20


def test_foreign_files_raise(tmp_path):
    np.savez(tmp_path / "foreign.npz", features=np.zeros((3, 4)))
    np.savez(tmp_path / "meta.npz", metadata="[]", times=np.zeros(1), embeddings=np.zeros((1, 2)))
    np.savez(tmp_path / "pickled.npz", metadata=np.array([{}], dtype=object))
    np.save(tmp_path / "array.npy", np.zeros((3, 4)))
    (tmp_path / "array.npz").write_bytes((tmp_path / "array.npy").read_bytes())
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.parquet").write_text("hello")
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "table.parquet")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for file in files:
        with pytest.raises(FeaturesError, match=file.name.replace(".", r"\.")):
            VideoFeatures.load(file)


def test_version_and_content_of_the_header_are_checked(tmp_path):
    path = make().save(tmp_path / "a.npy")
    side = tmp_path / "a.npy.json"
    header = json.loads(side.read_text())
    side.write_text(json.dumps({**header, "version": 2}))
    with pytest.raises(FeaturesError, match="format version 2, this everyframe reads 1"):
        VideoFeatures.load(path)
    side.write_text(json.dumps({**header, "settings": {"fps": 4}}))
    with pytest.raises(FeaturesError, match="checksum"):
        VideoFeatures.load(path)
    times = np.array(header.pop("times"))
    header["roles"] = "I"
    header["sha256"] = module._digest(header, times, make().embeddings)
    side.write_text(json.dumps({**header, "times": times.tolist()}))
    with pytest.raises(FeaturesError, match="inconsistent: roles must be"):
        VideoFeatures.load(path)


def test_missing_file_folder_and_unknown_suffix(tmp_path):
    with pytest.raises(FeaturesError, match=r"a\.npz does not exist"):
        VideoFeatures.load(tmp_path / "a.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FeaturesError, match="cannot be read"):
        VideoFeatures.load(tmp_path / "folder.npz")
    for call in (VideoFeatures.load, make().save):
        with pytest.raises(FeaturesError, match=r"no known format; name it with one of \.npz"):
            call(tmp_path / "a.pt")


def test_missing_extra_is_named(tmp_path, monkeypatch):
    def refuse(name, *, extra):
        raise ImportError(f"pip install 'everyframe[{extra}]'")

    monkeypatch.setattr(module, "require", refuse)
    with pytest.raises(ImportError, match=r"everyframe\[h5\]"):
        make().save(tmp_path / "a.h5")
    with pytest.raises(ImportError, match=r"everyframe\[parquet\]"):
        VideoFeatures.load(tmp_path / "a.parquet")


# Saves that fail


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_real_size_limit_leaves_the_old_file(tmp_path, suffix):
    old, path = make(), tmp_path / f"a{suffix}"
    old.save(path)
    before = sorted(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # as a full disk: the kernel refuses mid-file
    try:
        with pytest.raises(FeaturesError, match=rf"a{suffix} cannot be written .*nothing partial"):
            make(2000, 64).save(path)
        with pytest.raises(FeaturesError, match="cannot be written"):
            make(2000, 64).save(tmp_path / f"new{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.iterdir()) == before
    assert_same(VideoFeatures.load(path), old)


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("calls_before", [0, 1])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FeaturesError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failure_at_any_step_leaves_nothing(tmp_path, monkeypatch, function, suffix, calls_before, error, raised):
    if suffix == ".npz" and calls_before:
        pytest.skip("one file, one call")
    real, calls = getattr(os, function), []

    def fail(*args):
        calls.append(args)
        if len(calls) > calls_before:
            raise error
        return real(*args)

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(raised):
        make().save(tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    real = builtins.open

    def interrupted(path, *args, **kwargs):
        file = real(path, *args, **kwargs)
        if str(path).endswith(".part"):
            file.write(b"half")
            raise KeyboardInterrupt
        return file

    monkeypatch.setattr(builtins, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make().save(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_impossible_folders(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        with pytest.raises(FeaturesError, match=r"a\.npz cannot be written"):
            make().save(tmp_path / folder / "a.npz")
    (tmp_path / "taken.npz").mkdir()
    with pytest.raises(FeaturesError, match="cannot be written"):
        make().save(tmp_path / "taken.npz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken.npz"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(FeaturesError, match="Permission denied"):
            make().save(tmp_path / "a.npz")
    finally:
        tmp_path.chmod(0o755)


def test_an_hour_loads_in_well_under_a_second(tmp_path):
    path = make(3 * 3600, 512).save(tmp_path / "hour.npz")
    start = time.perf_counter()
    VideoFeatures.load(path)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5", ".parquet"])
def test_what_begins_as_no_features_do_is_somebody_elses(tmp_path, suffix):
    """So that `encode` leaves it alone; a file of zeros or a beginning of ours is what a power cut leaves."""
    path = tmp_path / f"notes{suffix}"
    path.write_text("hi\n")
    with pytest.raises(ForeignFileError, match="not an everyframe features file"):
        VideoFeatures.load(path)
    for begin in (bytes(100), b""):
        path.write_bytes(begin)
        with pytest.raises(FeaturesError) as caught:
            VideoFeatures.load(path)
        assert not isinstance(caught.value, ForeignFileError)
