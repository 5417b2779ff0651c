"""Exports read back by readers written from the descriptions of the trainers' loaders, and what is said of bad input.

A feature is a unit vector whose angle is its time, so that a row tells which second it shows.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import checkpoints
from everyframe.backbone import ModelError, load
from everyframe.cli import app
from everyframe.encoders import DenseEncoder
from everyframe.exports import TARGETS, Query, export, export_texts, verify
from everyframe.exports.configs import opentad_grid
from everyframe.exports.h5 import H5File, h5_name
from everyframe.exports.record import RECORD
from everyframe.exports.rows import count_rows, on_grid
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.pipeline import encode_video
from everyframe.video import sample_frames, write_video

SHARED = Path(__file__).parents[2] / "shared" / "data" / "annotations"
TURN = 0.01  # radians per second
MODEL = {"id": "openai/clip-vit-base-patch32", "weights_sha256": "ab", "projected": True, "normalised": True}


def clock(times, dim=6):
    """Unit vectors that tell the time."""
    values = np.zeros((len(times), dim), dtype=np.float32)
    values[:, 0], values[:, 1] = np.cos(TURN * np.asarray(times)), np.sin(TURN * np.asarray(times))
    return values


def told(rows):
    """The seconds that rows show, whatever their length."""
    return np.arctan2(rows[..., 1], rows[..., 0]) / TURN


def make(name="abc.mp4", seconds=40.0, fps=3.0, jitter=0.0, **settings):
    times = np.arange(int(np.ceil(seconds * fps - 1e-9))) / fps
    if jitter:
        times[1:] += np.random.default_rng(0).uniform(-jitter, jitter, len(times) - 1)
    return VideoFeatures(
        times=times,
        embeddings=clock(times),
        roles="I" * len(times),
        video={"path": f"/films/{name}", "duration_seconds": seconds},
        model=MODEL,
        settings={"fps": fps, "start": None, "end": None, "encoder": "dense", **settings},
    )


def cli(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


# --- the grid ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["start", "middle"])
@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0, 5.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_equal_a_naive_loop(phase, rate, dtype):
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, 30, 70))
    feats = VideoFeatures(
        times=times,
        embeddings=rng.normal(size=(70, 5)).astype(dtype),
        roles="I" * 70,
        video={"path": "a.mp4", "duration_seconds": 31.3},
    )
    nearest, mean = (on_grid(feats, rate, phase, how) for how in ("nearest", "mean"))
    wanted = []
    k = 0
    while (k + 0.5) / rate <= 31.3 if phase == "middle" else k / rate < 31.3:
        wanted.append((k + 0.5) / rate if phase == "middle" else k / rate)
        k += 1
    np.testing.assert_allclose(nearest.times, wanted)
    far = []
    for k, time in enumerate(wanted):
        best = min(range(70), key=lambda i, time=time: abs(times[i] - time))
        far.append(abs(times[best] - time))
        np.testing.assert_array_equal(nearest.values[k], feats.embeddings[best].astype(np.float32))
        inside = [i for i in range(70) if time - 0.5 / rate <= times[i] < time + 0.5 / rate] or [best]
        expected = feats.embeddings[inside].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(mean.values[k], expected, atol=1e-6)
    assert nearest.furthest == pytest.approx(max(far))


def test_stored_rate_gives_the_stored_rows_back():
    feats = make(seconds=17.4, jitter=0.02)
    rows = on_grid(feats, 3.0, "start", "nearest")
    np.testing.assert_array_equal(rows.values, feats.embeddings)
    np.testing.assert_allclose(on_grid(feats, 3.0, "start", "mean").values, feats.embeddings, atol=1e-6)


@pytest.mark.parametrize(
    ("seconds", "rate", "phase", "count"),
    [
        (150.0, 0.5, "middle", 75),
        (149.97, 0.5, "middle", 75),
        (5.0, 0.5, "middle", 3),
        (4.9, 0.5, "middle", 2),
        (0.4, 0.5, "middle", 1),
        (10.0, 3.0, "start", 30),
        (10.1, 3.0, "start", 31),
    ],
)
def test_number_of_rows(seconds, rate, phase, count):
    """Middles: round(duration * rate), as FFmpeg's fps filter gives."""
    assert count_rows(seconds, rate, phase) == count


def test_means_of_unit_vectors_are_unit_vectors():
    feats = make()
    rows = on_grid(feats, 0.5, "middle", "mean")
    np.testing.assert_allclose(np.linalg.norm(rows.values, axis=1), 1, atol=1e-6)
    # The frames of a row begin at 0, 1/3, ... 5/3 of its 2 s.
    np.testing.assert_allclose(told(rows.values), 2 * np.arange(20) + 5 / 6, atol=1e-3)


def test_clips_are_taken_where_a_row_lies_in_them():
    times = np.array([0.0, 10.0, 20.0])
    feats = VideoFeatures(
        times=times,
        embeddings=clock(times + 5),
        roles="III",
        video={"path": "a.mp4", "duration_seconds": 33.0},
        settings={"clip_seconds": 10.0},
        end_seconds=33.0,
    )
    rows = on_grid(feats, 0.5, "middle", "nearest")
    np.testing.assert_allclose(told(rows.values), [5] * 5 + [15] * 5 + [25] * 7, atol=1e-4)
    np.testing.assert_allclose(told(on_grid(feats, 0.1, "middle", "mean").values), [5, 15, 25], atol=1e-4)


def test_clips_stand_for_their_middles_by_default(tmp_path):
    feats = make(seconds=30.0, fps=0.1)
    feats = replace(feats, settings={"clip_seconds": 10.0})
    made = export([feats], "actionformer", tmp_path)
    assert "default_fps: 0.1" in made.config.lines
    assert next(line for line in made.config.lines if line.startswith("num_frames")).startswith("num_frames: 1")
    (note,) = export([feats], "moment-detr", tmp_path / "more").notes  # long clips are no gaps
    assert note == "1 video: encoded at 0.1 features per second, fewer than 0.5: rows repeat"


@pytest.mark.parametrize(
    ("feats", "message"),
    [
        (make(start=4.0), "cover only"),
        (replace(make(), settings={"fps": 3.0, "slice_seconds": [0, 9]}), "cover only"),
        (replace(make(seconds=20.0, end=20.0), video={"duration_seconds": 40.0}, end_seconds=20.0), "0.00 to 20.00 s"),
        (make().slice(50, 60), "hold no frames"),
    ],
)
def test_part_of_a_video_is_refused(feats, message):
    with pytest.raises(FeaturesError, match=message):
        on_grid(feats, 1.0, "middle", "nearest")


# --- Moment-DETR and lighthouse ----------------------------------------------------------------------------


def unit(x):
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-5)


def read_moment_detr(folder, vid, max_v_l=75):
    """[T, D + 2]: normalised rows with the share of the video where each begins and ends."""
    rows = unit(np.load(folder / f"{vid}.npz")["features"][:max_v_l].astype(np.float32))
    starts = np.arange(len(rows)) / len(rows)
    return np.concatenate([rows, starts[:, None], starts[:, None] + 1 / len(rows)], axis=1)


@pytest.mark.parametrize("target", ["moment-detr", "lighthouse"])
@pytest.mark.parametrize("how", ["nearest", "mean"])
def test_moment_detr_rows_are_clip_middles(tmp_path, target, how):
    vid = "NUsG9BgSes0_210.0_360.0"
    made = export([make(f"{vid}.mp4", seconds=150.0, jitter=0.01)], target, tmp_path, how=how)
    rows = read_moment_detr(tmp_path / "clip", vid)
    assert rows.shape == (75, 6 + 2)
    middles = 2 * np.arange(75) + 1
    np.testing.assert_allclose(told(rows), middles, atol=0.02 if how == "nearest" else 0.18)
    np.testing.assert_allclose((rows[:, -2] + rows[:, -1]) / 2 * 150, middles)
    assert np.load(tmp_path / "clip" / f"{vid}.npz").files == ["features"]
    assert made.videos[vid]["rows"] == 75
    dim = "v_feat_dim: 8" if target == "lighthouse" else "--v_feat_dim 6"
    assert any(line.startswith(dim) for line in made.config.lines)
    assert any("clip_length" in line and line.split()[-1] == "2" for line in made.config.lines)


def test_longer_videos_change_max_v_l(tmp_path):
    """75 rows is what the loader reads; Charades has a row per second."""
    made = export([make(seconds=80.0)], "lighthouse", tmp_path, rate=1.0)
    assert len(read_moment_detr(tmp_path / "clip", "abc", max_v_l=80)) == 80
    assert any(line.startswith("max_v_l: 80") for line in made.config.lines)
    assert "clip_length: 1" in made.config.lines


def test_max_rows_cuts_and_says_so(tmp_path):
    made = export([make(seconds=80.0)], "moment-detr", tmp_path, rate=1.0, max_rows=75)
    assert made.videos["abc"]["rows"] == 75
    assert made.notes == ("1 video: cut after 75 rows",)
    with pytest.raises(ValueError, match="max_rows has no meaning for vslnet"):
        export([make()], "vslnet", tmp_path / "v", max_rows=5)


# --- OpenTAD and ActionFormer ------------------------------------------------------------------------------


def activitynet(path, durations, segments=()):
    database = {
        video: {
            "duration": seconds,
            "subset": "training",
            "annotations": [{"segment": segment, "label": "Archery"} for segment in segments],
        }
        for video, seconds in durations.items()
    }
    path.write_text(json.dumps({"version": "1", "taxonomy": [], "database": database}))
    return path


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0, 2.5, 29.97])
@pytest.mark.parametrize("phase", ["start", "middle"])
def test_opentad_integers_give_the_row_times(rate, phase):
    grid = opentad_grid(rate, phase)
    assert all(isinstance(value, int) for value in grid.values())
    x = np.arange(100)
    seconds = (x * grid["feature_stride"] * grid["sample_stride"] + grid["offset_frames"]) / grid["fps"]
    np.testing.assert_allclose(seconds, (x + (0.5 if phase == "middle" else 0)) / rate)


def test_opentad_integers_of_an_odd_rate(tmp_path):
    assert opentad_grid(3.0, "middle") == {"fps": 6, "feature_stride": 2, "sample_stride": 1, "offset_frames": 1}
    with pytest.raises(ValueError, match=r"no ratio of small numbers"):
        export([make()], "opentad", tmp_path, rate=0.0003)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("phase", ["start", "middle"])
def test_opentad_reads_what_was_written(tmp_path, phase):
    """LoadFeats, the block list, and both modes: events lie where the rows that show them are."""
    out = tmp_path / "tad"
    queries = [Query(id=video, video=video, windows=((12.0, 18.0),)) for video in ("abc", "def", "v_x23456789")]
    files = [make("v_abc.mp4"), make("v_x23456789.mp4", seconds=20.0)]
    made = export(files, "opentad", out, queries=queries, phase=phase, rate=1.0 if phase == "middle" else None)
    assert (out / "missing_files.txt").read_text().splitlines() == ["def"] == list(made.missing)
    assert sorted(made.videos) == ["abc", "v_x23456789"]  # an id that begins with v_ itself is no prefix
    config = {}
    exec((out / "opentad_actionformer_pad.py").read_text(), config)
    train = config["dataset"]["train"]
    assert train["block_list"] == f"{out}/missing_files.txt"
    assert config["model"]["projection"]["in_channels"] == 6
    rows = np.load(Path(train["data_path"]) / "v_abc.npy").astype(np.float32)
    assert len(np.load(out / "v_v_x23456789.npy")) == (20 if phase == "middle" else 60)
    for x, second in enumerate(told(rows)):
        assert (x * train["feature_stride"] + train["offset_frames"]) / train["fps"] == pytest.approx(second, abs=0.17)
    # Resized to 192 rows over the whole duration, of which row x covers [x, x + 1) / 192.
    resized = torch.nn.functional.interpolate(torch.from_numpy(rows).T[None], size=192, mode="linear")[0].T.numpy()
    middles = (np.arange(192) + 0.5) / 192 * 40
    np.testing.assert_allclose(told(resized)[5:-5], middles[5:-5], atol=0.34 if phase == "start" else 0.17)
    whole = {}
    exec((out / "opentad_actionformer_resize.py").read_text(), whole)
    assert "pipeline" not in whole["dataset"]["train"]


def test_opentad_pipelines_with_another_prefix(tmp_path):
    export([make("abc.mp4")], "opentad", tmp_path, prefix="")
    assert (tmp_path / "abc.npy").exists()
    config = {}
    exec((tmp_path / "opentad_actionformer_resize.py").read_text(), config)
    for split in ("train", "val", "test"):
        pipeline = config["dataset"][split]["pipeline"]
        assert pipeline[0] == {"type": "LoadFeats", "feat_format": "npy", "prefix": ""}
        assert [step["type"] for step in pipeline].count("RandomTrunc") == (split == "train")
        assert ("gt_segments" in pipeline[-1]["keys"]) == (split != "test")
    assert config["block_list"] is None


@pytest.mark.parametrize(("phase", "rate"), [("start", 3.0), ("middle", 1.5), ("middle", 1.0)])
def test_actionformer_grid(tmp_path, phase, rate):
    yaml = pytest.importorskip("yaml")
    export([make("v_abc.mp4", seconds=60.0)], "actionformer", tmp_path, phase=phase, rate=rate)
    config = yaml.safe_load((tmp_path / "actionformer_anet.yaml").read_text())
    own = config["dataset"]
    path = Path(own["feat_folder"]) / f"{own['file_prefix']}abc{own['file_ext']}"
    rows = np.load(path)
    assert rows.shape[1] == own["input_dim"] and rows.dtype == np.float32
    for k, second in enumerate(told(rows)):
        grid = second * own["default_fps"] / own["feat_stride"] - 0.5 * own["num_frames"] / own["feat_stride"]
        assert grid == pytest.approx(k, abs=0.5 * rate / 3 + 1e-3)  # half a stored frame
    assert config["model"]["n_mha_win_size"] == [25, 25, 25, 25, 25, -1]
    assert config["train_cfg"]["init_loss_norm"] == 400


# --- MAD, VSLNet, TFVTG ------------------------------------------------------------------------------------


def test_mad_in_two_parts(tmp_path):
    h5py = pytest.importorskip("h5py")
    export([make("2738.mp4", fps=5.0)], "mad", tmp_path)
    export([make("9999.mkv", fps=5.0, seconds=10.0)], "mad", tmp_path)
    made = export([make("2738.mp4", fps=5.0)], "mad", tmp_path)  # again: replaced, the other stays
    with h5py.File(tmp_path / "CLIP_B32_frames_features_5fps.h5") as file:
        assert sorted(file) == ["2738", "9999"]
        rows = file["2738"][:]
    assert rows.shape == (200, 6) and rows.dtype == np.float32
    for moment in (0.0, 3.4, 39.7):
        assert told(rows[round(moment * 5)]) == pytest.approx(moment, abs=0.11)
    assert list(made.videos) == ["2738"]
    assert verify("mad", tmp_path, []).videos == 2


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai/clip-vit-base-patch32", "CLIP_B32_x.h5"),
        ("/models/clip-vit-large-patch14/", "CLIP_L14_x.h5"),
        ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "CLIP_B16_x.h5"),
        ("bundled", "CLIP_bundled_x.h5"),
    ],
)
def test_h5_names(model, name):
    assert h5_name({"id": model}, "x") == name


def test_h5_appears_whole_or_not_at_all(tmp_path):
    pytest.importorskip("h5py")
    file = H5File(tmp_path / "a.h5")
    file.add("x", np.zeros(3))
    file.close()
    assert not list(tmp_path.iterdir())


def test_vslnet(tmp_path):
    made = export([make("AO8RW.mp4"), make("a.b.mp4"), make("3MSZA.mkv", seconds=30.5)], "vslnet", tmp_path)
    assert [why for _, why in made.failures] == [
        "/films/a.b.mp4: VSLNet cuts a name at its first point, so it would not find 'a.b'; rename the video"
    ]
    read = {path.name.split(".")[0]: np.load(path) for path in tmp_path.glob("*.npy")}
    lengths = json.loads((tmp_path / "feature_shapes.json").read_text())
    assert lengths == {video: len(rows) for video, rows in read.items()} == {"AO8RW": 120, "3MSZA": 92}
    rows = read["AO8RW"]
    starts, ends = np.arange(120) / 120 * 40, np.arange(1, 121) / 120 * 40
    first, last = int(np.argmin(np.abs(starts - 12))), int(np.argmin(np.abs(ends - 18)))  # best overlap with [12, 18]
    np.testing.assert_allclose(told(rows[[first, last]]), [12, 18], atol=0.34)


def test_tfvtg(tmp_path):
    made = export([make("v_abc.mp4", seconds=30.0)], "tfvtg", tmp_path)
    rows = np.load(tmp_path / "v_abc.npy")
    assert rows.shape == (90, 1, 6) and rows.dtype == np.float16
    scores = np.einsum("md,npd->mnp", clock([20.0]), unit(rows.astype(np.float32))).max(axis=-1)[0]
    assert int(np.argmax(scores)) / 90 * 30 == pytest.approx(20, abs=0.34)
    assert made.videos["v_abc"]["rows"] == 90


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtype_is_what_was_asked_for(tmp_path, target, dtype):
    pytest.importorskip("h5py")
    made = export([make()], target, tmp_path, dtype=dtype, normalise=True)
    file = next(path for path in made.folder.iterdir() if path.suffix in (".npy", ".npz", ".h5"))
    if file.suffix == ".h5":
        import h5py

        with h5py.File(file) as content:
            stored = content["abc"].dtype
    else:
        array = np.load(file)
        stored = array["features"].dtype if file.suffix == ".npz" else array.dtype
    assert stored == np.dtype(dtype)
    assert verify(target, tmp_path, []).videos == 1


# --- texts -------------------------------------------------------------------------------------------------

TEXTS = ["a red circle", "the dog walks", "a cat on the square opens a door and the person opens the door"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return checkpoints.clip(tmp_path_factory.mktemp("clip"), context=24)


@pytest.mark.parametrize("old_end_rule", [False, True])
def test_text_states_equal_transformers(tmp_path, old_end_rule):
    folder = checkpoints.clip(tmp_path, context=24, old_end_rule=old_end_rule)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    found = load(folder, device="cpu").text_states(TEXTS)
    for text, (states, feature) in zip(TEXTS, found, strict=True):
        tokens = tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            expected = theirs.text_model(**tokens)
            projected = theirs.text_projection(expected.pooler_output)
        assert states.shape == expected.last_hidden_state.shape[1:]
        torch.testing.assert_close(states, expected.last_hidden_state[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(feature, projected[0], atol=1e-5, rtol=0)


def test_text_states_agree_with_encode_text(clip):
    model = load(clip, device="cpu")
    features = torch.stack([feature for _, feature in model.text_states(TEXTS)])
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), model.encode_text(TEXTS))
    assert model.text_states([]) == []


def test_text_states_need_a_causal_tower(tmp_path):
    with pytest.raises(ModelError, match="no causal text tower"):
        load(checkpoints.siglip(tmp_path), device="cpu").text_states(["a cat"])


def test_texts_as_lighthouse_reads_them(tmp_path, clip):
    model = load(clip, device="cpu")
    queries = [Query(id=str(number), video="abc", text=text) for number, text in enumerate(TEXTS)]
    queries += [Query(id="1", video="abc", text="again"), Query(id="7", video="abc", text=" ")]
    made = export_texts(model, queries, "lighthouse", tmp_path, max_tokens=8)
    assert (made.count, made.cut, made.width) == (3, 1, 32)
    assert [why for _, why in made.failures] == [
        "query 1 occurs twice; the first is written",
        "query 7 of abc is blank",
    ]
    for number, (states, feature) in enumerate(model.text_states(TEXTS)):
        read = np.load(tmp_path / "clip_text" / f"qid{number}.npz")
        assert sorted(read.files) == ["last_hidden_state", "pooler_output"]
        np.testing.assert_array_equal(read["last_hidden_state"], states[:8])
        np.testing.assert_array_equal(read["pooler_output"], feature)
    tacos = export_texts(model, queries[:1], "lighthouse", tmp_path / "tacos", prefix="")
    assert tacos.files == (tmp_path / "tacos" / "clip_text" / "0.npz",)


def test_texts_of_mad(tmp_path, clip):
    h5py = pytest.importorskip("h5py")
    model = load(clip, device="cpu")
    found = model.text_states(TEXTS)
    export([make(fps=5.0)], "mad", tmp_path)
    for split, some in (("MAD_train", [0, 1]), ("MAD_test", [2])):
        export_texts(model, [Query(id=str(i), video="m", text=TEXTS[i]) for i in some], "mad", tmp_path, split=split)
    names = sorted(path.name for path in tmp_path.glob("*language*.h5"))
    assert [name.partition("language_")[2] for name in names] == [
        "features_MAD_test.h5", "features_MAD_train.h5", "tokens_features.h5",
    ]  # fmt: skip
    with h5py.File(tmp_path / names[0]) as whole, h5py.File(tmp_path / names[2]) as tokens:
        assert list(whole) == ["2"] and sorted(tokens) == ["0", "1", "2"]
        np.testing.assert_allclose(whole["2"][:], found[2][1], atol=1e-5)
        np.testing.assert_allclose(tokens["2"][:], found[2][0], atol=1e-5)  # not cut
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    model.weights_sha256 = "another"
    with pytest.raises(ValueError, match=r"CLIP_.*\.h5 was made with another model; choose another --out"):
        export_texts(model, [Query(id="3", video="m", text="a cat")], "mad", tmp_path, split="MAD_test")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_texts_are_refused_where_none_are_read(clip, tmp_path):
    model = load(clip, device="cpu")
    with pytest.raises(ValueError, match="opentad reads no text features"):
        export_texts(model, [Query(id="0", video="a", text="a cat")], "opentad", tmp_path)
    with pytest.raises(ValueError, match="the annotations have no texts"):
        export_texts(model, [Query(id="0", video="a")], "mad", tmp_path)
    assert not list(tmp_path.iterdir())


# --- what cannot be used -----------------------------------------------------------------------------------


def test_bad_files_are_named_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    other = {**MODEL, "weights_sha256": "cd", "id": "other"}
    for name, feats in {
        "a": make("a.mp4"),
        "b": make("b.mp4", fps=1.0),
        "c": make("sub/a.mkv"),
        "d": replace(make("d.mp4"), model=other),
        "e": make("e.mp4", start=3.0),
        "f": make("f.mp4"),
        "h": replace(make("h.mp4"), video={}),
    }.items():
        feats.save(folder / f"{name}.npz")
    (folder / "g.npz").write_bytes((folder / "a.npz").read_bytes()[:900])
    made = export(folder, "opentad", tmp_path / "out")
    assert sorted(made.videos) == ["a", "f"]
    assert {Path(name).stem: why for name, why in made.failures}.keys() == set("bcdegh")
    words = {
        "b": "encoded at 1 features per second, those before at 3",
        "c": "is of video 'a', which",
        "d": "model weights_sha256|model id is 'openai",
        "e": "cover only",
        "g": "damaged|cannot|not",
        "h": "do not say which video",
    }
    for name, why in made.failures:
        assert name in why
        assert any(word in why for word in words[Path(name).stem].split("|")), why
    result = cli(folder, "--to", "opentad", "--out", tmp_path / "again")
    assert result.exit_code == 1
    assert sorted(path.name for path in (tmp_path / "again").glob("*.npy")) == ["v_a.npy", "v_f.npy"]
    assert result.stderr.count("everyframe: ") == 6


def test_another_video_of_a_name_that_is_there(tmp_path):
    export([make("a.mp4")], "vslnet", tmp_path)
    assert export([make("a.mp4", seconds=20.0)], "vslnet", tmp_path).videos["a"]["rows"] == 60  # encoded anew
    made = export([make("other/a.mp4"), make("b.mp4")], "vslnet", tmp_path)
    assert "holds 'a' already, of another video (/films/a.mp4)" in made.failures[0][1]
    assert len(np.load(tmp_path / "a.npy")) == 60 and list(made.videos) == ["b"]


def test_rate_brings_files_together(tmp_path):
    made = export([make("a.mp4"), make("b.mp4", fps=1.0)], "actionformer", tmp_path, rate=2.0)
    assert {video: entry["rows"] for video, entry in made.videos.items()} == {"a": 80, "b": 80}
    assert made.notes == ("1 video: encoded at 1 features per second, fewer than 2: rows repeat",)
    assert not made.failures
    header, *videos = [json.loads(line) for line in (tmp_path / RECORD).read_text().splitlines() if line]
    assert (header["rate"], header["how"], header["phase"]) == (2.0, "nearest", "start")
    assert [(entry["id"], entry["stored_rate"]) for entry in videos] == [("a", 3.0), ("b", 1.0)]


def test_gaps_are_noted(tmp_path):
    feats = make(seconds=60.0)
    keep = (feats.times < 10) | (feats.times > 30)
    gap = replace(feats, times=feats.times[keep], embeddings=feats.embeddings[keep], roles="I" * int(keep.sum()))
    assert export([gap], "moment-detr", tmp_path).notes[0].startswith("1 video: have gaps")


def test_values_too_large_for_float16(tmp_path):
    feats = make()
    large = replace(feats, embeddings=feats.embeddings * 1e5)
    assert "too large for float16" in export([large], "tfvtg", tmp_path).failures[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "coin"}, "the target must be one of moment-detr, lighthouse"),
        ({"rate": 0.0}, "rate must be a positive number"),
        ({"rate": float("nan")}, "rate must be a positive number"),
        ({"phase": "end"}, "phase must be start or middle, got 'end'"),
        ({"how": "sum"}, "how must be nearest or mean"),
        ({"dtype": "int8"}, "dtype must be float32 or float16"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"prefix": "a/b"}, "must hold no slash"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export([make()], **{"target": "moment-detr", "out": tmp_path, **options})


def test_what_others_wrote_is_left_alone(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "abc.npz").write_text("mine")
    with pytest.raises(ValueError, match="holds files that everyframe export did not write"):
        export([make()], "moment-detr", tmp_path)
    assert (tmp_path / "clip" / "abc.npz").read_text() == "mine"
    (tmp_path / "slowfast").mkdir()  # beside the folder of the target there may be anything
    export([make()], "moment-detr", tmp_path / "new")
    with pytest.raises(ValueError, match=r"holds an export with rate 0.5, not 1.0; choose another --out"):
        export([make()], "moment-detr", tmp_path / "new", rate=1.0)
    with pytest.raises(ValueError, match="model weights_sha256"):
        export([replace(make(), model={**MODEL, "weights_sha256": "cd"})], "moment-detr", tmp_path / "new")


def test_parts_add_up_after_a_killed_run(tmp_path):
    export([make("a.mp4")], "vslnet", tmp_path)
    with open(tmp_path / RECORD, "a") as file:
        file.write('\n{"id": "b", "fi')
    export([make("c.mp4")], "vslnet", tmp_path)
    assert json.loads((tmp_path / "feature_shapes.json").read_text()) == {"a": 120, "c": 120}
    assert verify("vslnet", tmp_path, []).videos == 2


def test_ids(tmp_path):
    features = [make("v_abc.mp4"), make("def.mkv"), make("img_1.0_2.0", seconds=3.0)]
    assert set(export(features, "lighthouse", tmp_path / "a").videos) == {"v_abc", "def", "img_1.0_2.0"}
    assert set(export(features, "lighthouse", tmp_path / "b", strip="v_").videos) == {"abc", "def", "img_1.0_2.0"}
    prefixed = export(features, "lighthouse", tmp_path / "c", prefix="v_")
    assert set(prefixed.videos) == {"v_abc", "v_def", "v_img_1.0_2.0"}
    known = [Query(id="0", video="v_abc")]  # names with the prefix, as lighthouse's ActivityNet has
    assert "v_abc" in export(features, "lighthouse", tmp_path / "e", prefix="v_", queries=known).videos
    bare = export(features, "opentad", tmp_path / "d")
    assert {video: entry["file"] for video, entry in bare.videos.items()} == {
        "abc": "v_abc.npy", "def": "v_def.npy", "img_1.0_2.0": "v_img_1.0_2.0.npy",
    }  # fmt: skip


# --- verify ------------------------------------------------------------------------------------------------


def test_every_window_is_counted_once(tmp_path):
    export([make("a.mp4"), make("v_b.mp4")], "lighthouse", tmp_path)
    queries = [
        Query(id="0", video="a", windows=((10.0, 15.0), (0.2, 0.8)), duration=40.0),  # rows 5, 6; between
        Query(id="1", video="a", windows=((38.0, 60.0), (40.0, 50.0), (-3.0, 0.0)), duration=40.0),
        Query(id="2", video="a", windows=((9.0, 9.0), (9.0, 8.0)), duration=40.0),
        Query(id="3", video="b", windows=((0.0, 4.0),), duration=55.0),
        Query(id="4", video="v_b", windows=((0.0, 4.0),), duration=55.0),
    ]
    found = verify("lighthouse", tmp_path, queries)
    assert (found.videos, found.windows) == (2, 9)
    assert (found.on_rows, found.between_rows, found.outside, found.empty, found.without_features) == (3, 1, 2, 2, 1)
    assert found.beyond_end == 1
    assert found.missing == found.misnamed == ("b",)
    assert found.durations == (("v_b", 55.0, 40.0),)
    assert [(one.first, one.past) for one in found.examples] == [(5, 7), (19, 20), (0, 2)]


@pytest.mark.parametrize("target", list(TARGETS))
def test_mapped_rows_are_those_that_show_the_window(tmp_path, target):
    """Against the rows themselves: each tells its time."""
    pytest.importorskip("h5py")
    made = export([make("a.mp4", seconds=60.0, fps=5.0)], target, tmp_path)
    rng = np.random.default_rng(3)
    windows = [tuple(sorted(rng.uniform(0, 60, 2))) for _ in range(5)]
    queries = [Query(id=str(number), video="a", windows=(w,), duration=60.0) for number, w in enumerate(windows)]
    found = verify(target, tmp_path, queries)
    if target == "mad":
        import h5py

        with h5py.File(made.folder / "CLIP_B32_frames_features_5fps.h5") as file:
            rows = file["a"][:]
    else:
        rows = np.load(made.folder / made.videos["a"]["file"])
        rows = (rows["features"] if made.folder.name == "clip" else rows).reshape(-1, 6)
    shown = told(rows.astype(np.float32))
    for one in found.examples:
        inside = (shown >= one.start - 0.15) & (shown < one.end + 0.15)
        assert inside[one.first : one.past].all()
        sure = np.flatnonzero((shown >= one.start + 0.15) & (shown < one.end - 0.15))
        assert set(sure) <= set(range(one.first, one.past))
    assert len(found.examples) == found.on_rows


def test_verify_finds_files_that_changed(tmp_path):
    export([make("a.mp4"), make("b.mp4"), make("c.mp4")], "vslnet", tmp_path)
    (tmp_path / "a.npy").unlink()
    np.save(tmp_path / "b.npy", np.zeros((7, 6)))
    found = verify("vslnet", tmp_path, [Query(id="0", video="a", windows=((0, 5),))])
    assert found.videos == 1 and found.without_features == 1
    assert [video for video, _ in found.failures] == ["a", "b"]
    assert "has shape [7, 6], the record says 120 rows of 6" in found.failures[1][1]
    with pytest.raises(FeaturesError, match="holds no export"):
        verify("vslnet", tmp_path / "nowhere", [])
    with pytest.raises(ValueError, match="holds an export to vslnet, not to opentad"):
        verify("opentad", tmp_path, [])


# --- the command line --------------------------------------------------------------------------------------


def with_model(feats, folder):
    model = load(folder, device="cpu")
    return replace(feats, model={**MODEL, "id": str(folder), "weights_sha256": model.weights_sha256})


def test_cli_moment_detr(tmp_path, clip):
    folder = tmp_path / "features"
    folder.mkdir()
    with_model(make("vid.mp4"), clip).save(folder / "vid.npz")
    annotations = lines(
        tmp_path / "a.jsonl",
        [
            {"qid": 5, "query": "a cat", "vid": "vid", "duration": 40, "relevant_windows": [[3, 9]]},
            {"qid": 6, "query": "a dog", "vid": "other", "duration": 40, "relevant_windows": [[3, 9]]},
            {"qid": 7, "query": "the door", "vid": "vid", "duration": 40, "relevant_windows": [[9, 3]]},
        ],
    )
    arguments = ("--to", "moment-detr", "--out", tmp_path / "out", "--annotations", annotations, "--verify")
    result = cli(folder, *arguments, "--json")
    assert result.exit_code == 1  # one window is reversed
    facts = json.loads(result.stdout)
    assert facts["texts"] == {"count": 2, "cut": 0, "width": 32}
    assert facts["export"]["missing"] == ["other"]
    assert facts["verify"]["on_rows"] == 1 and facts["verify"]["without_features"] == 1
    assert "window [9, 3] of vid ends before it starts" in facts["failures"][0]
    assert sorted(path.name for path in (tmp_path / "out" / "clip_text").glob("*.npz")) == ["qid5.npz", "qid6.npz"]
    elsewhere = lines(
        tmp_path / "b.jsonl", [{"qid": 1, "query": "a", "vid": "v_vid", "duration": 4, "relevant_windows": [[0, 3]]}]
    )
    wrong = cli("--to", "moment-detr", "--out", tmp_path / "out", "--annotations", elsewhere, "--verify")
    assert wrong.exit_code == 1
    assert "but for a v_, 1 of these are there" in wrong.stdout
    only = cli(*arguments)  # without features: verify alone
    assert "verify: 1 of 2 windows on at least one row (50.0%)" in only.stdout
    assert "5: 3 to 9 s of vid are rows 1 to 3" in only.stdout


def test_a_video_from_file_to_trainer(tmp_path, clip):
    """Row k is the feature of the frame shown at the middle of clip k."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (61, 8, 8, 3), dtype=np.uint8).repeat(5, axis=1).repeat(5, axis=2)
    video = tmp_path / "RoripwjYFp8_360.0_510.0.mp4"
    write_video(video, list(frames), fps=10)
    model = load(clip, device="cpu")
    encode_video(video, DenseEncoder(model), fps=2.0).save(tmp_path / "f.npz")
    result = cli(tmp_path / "f.npz", "--to", "lighthouse", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = read_moment_detr(tmp_path / "out" / "clip", video.stem)[:, :-2]
    shown = [sample.pixels for sample in sample_frames(video, None)][10::20]  # at 1, 3 and 5 s
    expected = DenseEncoder(model).encode(model.preprocess(np.stack(shown)))
    np.testing.assert_allclose(rows, unit(expected.numpy()), atol=1e-5)


def test_cli_opentad_with_activitynet(tmp_path):
    for name in ("v_abc", "v_def"):
        make(f"{name}.mp4").save(tmp_path / f"{name}.npz")
    annotations = activitynet(tmp_path / "anet.json", {"abc": 40.0, "def": 44.0, "ghi": 9.0}, [[3.0, 8.0]])
    out = tmp_path / "out"
    result = cli(
        tmp_path / "v_abc.npz", tmp_path / "v_def.npz", "--to", "opentad", "--out", out,
        "--annotations", annotations, "--verify",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (out / "missing_files.txt").read_text() == "ghi\n"
    assert "padding: fps=3, feature_stride=1, sample_stride=1, offset_frames=0" in result.stdout
    assert "verify: 2 of 3 windows" in result.stdout
    assert "1 video of another length than annotated, by more than a row; most: def, 44 s annotated" in result.stdout


def test_cli_texts_of_a_test_split(tmp_path, clip):
    """Test splits have no windows; their texts are wanted all the same."""
    with_model(make("vid.mp4"), clip).save(tmp_path / "vid.npz")
    annotations = lines(tmp_path / "a.jsonl", [{"qid": 5, "query": "a cat", "vid": "vid", "duration": 40}])
    result = cli(tmp_path / "vid.npz", "--to", "lighthouse", "--out", tmp_path / "out", "--annotations", annotations)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "clip_text" / "qid5.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "mad"], "nothing to export"),
        (["x.npz", "--to", "mad", "--verify"], "--verify needs --annotations"),
        (["x.npz", "--to", "vslnet", "--text"], "--text has no meaning with --to vslnet"),
        (["x.npz", "--to", "mad", "--text"], "--text needs --annotations"),
        (["x.npz", "--to", "coin"], "the target must be one of"),
        (["--to", "mad", "--verify", "--annotations", "a", "--rate", "3"], "--rate has no meaning with --verify alone"),
        (["x.npz", "--to", "mad", "--max-tokens", "3"], "--max-tokens has no meaning with an export without text"),
        (["x.npz", "--to", "mad", "--annotations", "a", "--text-prefix", ""], "--text-prefix has no meaning with --to"),
    ],
)
def test_cli_bad_options(tmp_path, arguments, message):
    result = cli(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_cli_keeps_the_videos_where_the_text_model_is_gone(tmp_path):
    gone = replace(make("vid.mp4"), model={**MODEL, "id": str(tmp_path / "gone")})
    gone.save(tmp_path / "vid.npz")
    annotations = lines(tmp_path / "a.jsonl", [{"qid": 5, "query": "a cat", "vid": "vid", "duration": 40}])
    result = cli(tmp_path / "vid.npz", "--to", "lighthouse", "--out", tmp_path / "out", "--annotations", annotations)
    assert result.exit_code == 1
    assert "no text features: " in result.stderr and "gone" in result.stderr
    assert "v_feat_dim: 8" in result.stdout
    assert (tmp_path / "out" / "clip" / "vid.npz").exists()


def test_cli_missing_file_fails(tmp_path):
    result = cli(tmp_path / "x.npz", "--to", "mad", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "x.npz does not exist" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared annotations")
@pytest.mark.parametrize(
    ("name", "target", "rate"),
    [("highlight_val_release.jsonl", "moment-detr", 0.5), ("charades_test_release.jsonl", "lighthouse", 1.0)],
)
def test_official_annotations_meet_rows(tmp_path, name, target, rate):
    """Of videos of the annotated length every window but the shortest lies on a row."""
    entries = [json.loads(line) for line in (SHARED / name).read_text().splitlines()[:60]]
    videos = {entry["vid"]: entry["duration"] for entry in entries}
    export([make(f"{vid}.mp4", seconds=float(seconds)) for vid, seconds in videos.items()], target, tmp_path, rate=rate)
    annotations = lines(tmp_path / "some.jsonl", entries)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = cli("--to", target, "--out", tmp_path, "--annotations", annotations, "--verify", "--json")
    found = json.loads(result.stdout)["verify"]
    assert found["on_rows"] == found["windows"] == sum(len(entry["relevant_windows"]) for entry in entries)
    assert not found["durations"]
