"""Localization and description of videos that the command encodes: what it costs, one row per encoder, files."""

from __future__ import annotations

import csv
import io
import json
from importlib.util import find_spec

import numpy as np
import pytest
from typer.testing import CliRunner

from everyframe.cli import app
from everyframe.evaluation.feature_folder import encoded_files
from everyframe.evaluation.frame_features import Costs, EncodedVideos
from everyframe.evaluation.writing import csv_bytes, file_name
from everyframe.features import VideoFeatures
from everyframe.pipeline import Sampling
from everyframe.synthetic import synthesize

NAMES = ["dense", "ResidualViT N=2 + residual token", "reuse adaptive"]
FOLDERS = ["dense", "residualvit-n2-residual-token", "reuse-adaptive"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Two videos of 8 s to train on and two others, with their annotations."""
    folder = tmp_path_factory.mktemp("worlds")
    for name, seed in (("train", 801), ("test", 901)):
        list(synthesize(folder / name, videos=2, seconds=8, seed=seed))
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    problem = result.exception if isinstance(result.exception, Exception) else None
    assert result.exit_code == code, (result.output, problem)
    return result


def feats_of(frames, seconds, **settings):
    times = np.arange(frames) * seconds / frames
    return VideoFeatures(
        times=times, embeddings=np.ones((frames, 2), np.float32), roles="I" * frames, settings=settings,
        end_seconds=float(seconds) if frames else None,
    )  # fmt: skip


def recorded(folder):
    """Cost per second and share of dense of the feature files in a folder, from the definition."""
    gflops = seconds = dense = 0.0
    for file in folder.glob("*.npz"):
        feats = VideoFeatures.load(file)
        own = feats.num_frames * feats.settings["gflops_per_frame"]
        gflops, dense = gflops + own, dense + own / feats.settings["gflops_share"]
        seconds += feats.frame_ends[-1] - feats.times[0]
    return {"gflops_per_second": pytest.approx(gflops / seconds), "gflops_share": pytest.approx(gflops / dense)}


def test_costs_are_means_over_what_was_encoded():
    costs = Costs()
    assert costs.as_dict() == {"gflops_per_second": None, "gflops_share": None}
    costs.add(feats_of(4, 2.0, gflops_per_frame=3.0, gflops_share=0.5))
    costs.add(feats_of(6, 2.0, gflops_per_frame=6.0, gflops_share=1.0))
    costs.add(feats_of(0, 0.0))
    assert costs.gflops_per_second == pytest.approx((4 * 3 + 6 * 6) / 4)
    assert costs.gflops_share == pytest.approx((4 * 0.5 + 6 * 1.0) / 10)  # dense takes 6 for every frame
    costs.add(feats_of(1, 1.0, gflops_per_frame=6.0))
    assert costs.as_dict() == {"gflops_per_second": None, "gflops_share": None}


def test_csv_has_the_columns_of_all_rows():
    text = csv_bytes([{"a": "x, y", "b": None}, {"a": "é", "c": 1.5}]).decode()
    assert text.splitlines() == ["a,b,c", '"x, y",,', "é,,1.5"]
    assert [file_name(name) for name in NAMES] == FOLDERS


def test_feature_files_stay_only_in_a_cache(tmp_path):
    source = EncodedVideos(encoder=None, folder=tmp_path, sampling=Sampling())  # no encoder is asked
    with pytest.raises(ValueError, match="feature files stay only in a cache"):
        encoded_files(source, ["a"])


def check_files(out, record):
    """metrics.json, metrics.csv and the folder of each encoder say what was printed."""
    assert record == json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    lines = csv.DictReader(io.StringIO((out / "metrics.csv").read_text(encoding="utf-8")))
    for line, row in zip(lines, record["rows"], strict=True):
        assert {name: value for name, value in line.items() if value} == {
            name: str(value) for name, value in row.items() if value is not None
        }
    for name, folder in zip(NAMES, FOLDERS, strict=True):
        own = json.loads((out / folder / "metrics.json").read_text(encoding="utf-8"))
        assert own == {key: value for key, value in record["encoders"][name].items() if key != "encoded"}
        (cache,) = (out / "features").glob(f"{folder.split('-')[0].replace('vit', '')}-*")
        assert {key: own[key] for key in ("gflops_per_second", "gflops_share")} == recorded(cache)
        assert (out / folder / "metrics.csv").is_file()


def test_localization_trains_on_each_encoder(worlds, tmp_path):
    out = tmp_path / "out"
    annotations = ("localization", "--annotations", worlds / "test", "--train-annotations", worlds / "train")
    arguments = (*annotations, "--videos", worlds / "test", "--train-videos", worlds / "train", "--model", "bundled")
    record = json.loads(run(*arguments, "--compare", "--epochs", 1, "--out", out, "--json").stdout)
    assert [row["encoder"] for row in record["rows"]] == NAMES and not record["partial"]
    check_files(out, record)
    stored = {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.npz")}
    assert len(stored) == 3 * 4
    again = run(*arguments, "--compare", "--epochs", 1, "--out", out).output
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert "GFLOPs/s" in again and "reuse adaptive" in again and "no features" not in again

    # The same features as files: the same network, the same numbers, and their cost.
    (test,), (train,) = (out / "features").glob("dense-*"), (out / "features" / "train").glob("dense-*")
    files = ("--features", test, "--train-features", train, "--epochs", 1, "--out", tmp_path / "files", "--json")
    own = json.loads(run(*annotations, *files).stdout)
    dense = record["encoders"]["dense"]
    assert {**own, "encoded": dense["encoded"]} == dense
    (row,) = csv.DictReader(io.StringIO((tmp_path / "files" / "metrics.csv").read_text(encoding="utf-8")))
    assert (row["name"], float(row["gflops_share"])) == ("ActionFormer", 1.0)

    # A lost video is named with its reason; nothing is trained beside a checkpoint.
    lost = tmp_path / "lost"
    lost.mkdir()
    kept, gone = sorted((worlds / "test").glob("*.mp4"))
    (lost / kept.name).write_bytes(kept.read_bytes())
    loaded = ("--videos", lost, "--model", "bundled", "--encoder", "dense", "--checkpoint", out / "dense")
    result = run(*annotations, *loaded, "--json", code=1)
    (failure,) = json.loads(result.stdout)["encoders"]["dense"]["failures"]
    assert failure == {"video": gone.stem, "kind": "missing", "error": f"{gone.stem}: is not in {lost}"}
    assert f"missing: {gone.stem}: is not in {lost}" in result.stderr


@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap")
def test_description_trains_on_each_encoder(worlds, tmp_path):
    out = tmp_path / "out"
    lines = worlds / "test" / "annotations.jsonl"
    training = ("--train", worlds / "train" / "annotations.jsonl", "--train-videos", worlds / "train")
    sizes = ("--language", "small", "--epochs", 1, "--words", 8, "--clips", 2, "--frames", 2, "--beam", 1)
    arguments = ("description", "--annotations", lines, "--metric", "ROUGE-L", "--model", "bundled")
    test = ("--videos", worlds / "test", *training, *sizes)
    record = json.loads(run(*arguments, *test, "--compare", "--baseline", "--out", out, "--json").stdout)
    assert [(row["encoder"], row["name"]) for row in record["rows"]] == [
        (name, kind) for name in NAMES for kind in ("describer", "without sight")
    ]
    check_files(out, record)

    broken = tmp_path / "broken"
    broken.mkdir()
    kept, gone = sorted((worlds / "test").glob("*.mp4"))
    (broken / kept.name).write_bytes(kept.read_bytes())
    (broken / gone.name).write_bytes(b"no video")
    describer = ("--checkpoint", out / "dense" / "describer", "--beam", 1)
    result = run(*arguments, "--videos", broken, "--encoder", "dense", *describer, code=1)
    assert f"{gone.name}: not a video" in result.stderr
    assert "partial: 1 of the videos" in result.output and "% of dense   100.0" in result.output
    shown = run(*arguments, "--videos", worlds / "test", "--compare", *describer).output
    assert shown.count("audio description:") == 1 and "ResidualViT N=2" in shown


@pytest.mark.parametrize("task", ["localization", "description"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--features", "f", "--videos", "v", "--checkpoint", "c"],
            "give one of --features|--videos has",
        ),
        (["--features", "f", "--checkpoint", "c", "--compare"], "--compare has no meaning with --features"),
        (["--predictions", "p", "--fps", "2"], "--fps has no meaning with --predictions"),
        (
            ["--videos", "v", "--checkpoint", "c", "--compare", "--encoder", "dense"],
            "--encoder has no meaning with --com",
        ),
        (["--videos", "v", "--checkpoint", "c", "--train-videos", "t"], "--train-videos has no meaning with"),
        (["--videos", "v", "--checkpoint", "c", "--encoder", "best"], "--encoder must be one of"),
    ],
)
def test_options_that_contradict_each_other(task, arguments, message):
    result = CliRunner().invoke(app, ["evaluate", task, "--annotations", "a", *arguments])
    assert isinstance(result.exception, ValueError)
    with pytest.raises(ValueError, match=message):
        raise result.exception
