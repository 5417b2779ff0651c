"""Counts of operations and bytes against formulas of their own, and what docs/performance.md says of records."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import everyframe as ef
from checkpoints import clip
from everyframe.backbone import skeleton
from everyframe.backbone.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from everyframe.synthetic import SyntheticVideo

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="only in a checkout with benchmarks/")
for _folder in ("benchmarks", "scripts"):
    sys.path.insert(0, str(ROOT / _folder))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """render_performance, reading records from a folder that `write` fills."""
    import records
    import render_performance

    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return render_performance


# --- counting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "published"), [("ViT-B/16", 17.564), ("ViT-B/32", 4.409)])
def test_models_have_their_published_operations(name, published):
    """What torchvision lists for them at 224 px with a head of 1000 classes, in GMAC."""
    macs = ef.DenseEncoder(skeleton(name)).macs(1, "all")
    head = 768 * 1000 - 768 * 512  # classes in place of CLIP's projection
    assert (sum(macs.values()) + head) / 1e9 == pytest.approx(published, abs=0.002)


def test_with_norms_vit_b16_has_the_other_published_number():
    """17.58 GMAC: the same with 5 operations per element of a LayerNorm, as the tool fvcore counts."""
    macs = sum(ef.DenseEncoder(skeleton("ViT-B/16")).macs(1, "all").values()) + 768 * 488
    assert (macs + 5 * 25 * 197 * 768) / 1e9 == pytest.approx(17.58, abs=0.005)


def test_a_roofline_binds_by_what_takes_longer():
    from counting import Work, bound

    assert bound(Work(1e9, 1e6), operations_per_second=1e9, bytes_per_second=1e9) == ("compute", 1.0)
    assert bound(Work(1e6, 2e9), operations_per_second=1e9, bytes_per_second=1e9) == ("bandwidth", 2.0)
    assert Work(1, 2).times(3) + Work(1, 1) == Work(4, 7)


def test_bytes_of_a_tower_are_those_of_its_operations_one_by_one():
    from counting import tower_bytes

    config = skeleton("ViT-B/32").vision.config
    width, hidden, depth, tokens, frames, size = 768, 3072, 12, 50, 3, 2
    rows = frames * tokens
    moved = 0
    for _ in range(depth):
        for read, written in (
            (width, width), (width, 3 * width), (width, width), (width, width), (2 * width, width),  # attention
            (width, width), (width, hidden), (hidden, hidden), (hidden, width), (2 * width, width),  # MLP
        ):  # fmt: skip
            moved += rows * (read + written) * size
        moved += rows * 2 * width * size  # keys and values
        moved += (4 * width**2 + 2 * width * hidden) * size
    moved += 3 * 32**2 * width * size + width * 512 * size  # weights of the patches and of the projection
    moved += frames * 49 * (width * size + 3 * 32**2 * 4) + frames * 512 * size
    assert moved == tower_bytes(
        config,
        patches=frames * 49,
        tokens=rows,
        keys=rows,
        features=frames,
        passes=1,
        weight_bytes=size,
        value_bytes=size,
    )


def test_weights_count_once_per_pass():
    from counting import tower_bytes

    config = skeleton("ViT-B/16").vision.config
    nothing = {"patches": 0, "tokens": 0, "keys": 0, "features": 0, "value_bytes": 4}
    weights = sum(
        layer.weight.numel() for layer in skeleton("ViT-B/16").vision.modules() if isinstance(layer, nn.Linear)
    )
    assert tower_bytes(config, **nothing, passes=2, weight_bytes=2) == 4 * weights


@pytest.mark.parametrize("size", [(448, 448), (640, 480), (224, 224)])
def test_operations_of_a_resize_are_those_of_its_two_matrices(size):
    """A pass is a product with a matrix [out, in] of which each row has as many values as the filter is wide."""
    from counting import resize_work

    width, height = size
    preprocess = Preprocess(size=224, shorter_side=224, mean=CLIP_MEAN, std=CLIP_STD)
    scale = min(width, height) / 224
    taps = int(np.ceil(4 * max(1.0, scale)))
    rows, columns = min(height, 224 * scale), min(width, 224 * scale)
    macs = 3 * rows * 224 * taps + 3 * 224 * 224 * taps + 3 * 224 * 224
    work = resize_work(width, height, preprocess.settings())
    assert work.operations == pytest.approx(2 * macs)
    assert work.bytes == pytest.approx(3 * rows * columns + 2 * 3 * rows * 224 + 6 * 3 * 224**2)


def test_a_fit_finds_where_growth_stops_to_be_linear():
    from scaling import fit

    straight = fit([1, 2, 4, 8], [12, 14, 18, 26])
    assert straight["start"] == pytest.approx(10) and straight["slope"] == pytest.approx(2)
    assert straight["all_linear"] and straight["largest_error"] < 1e-9
    bent = fit([1, 2, 4, 8, 16], [1, 2, 4, 8, 40])
    assert not bent["all_linear"] and bent["linear_to"] == 8
    assert fit([1, 2, 4], [3, 12, 48])["exponent"] == pytest.approx(2)


def test_limits_keep_the_higher_of_two_measurements():
    from performance import highest

    first = {"matmul": {"float32": {"model": 1.0}, "int8": {"model": 9.0}}, "copy": {"memory": 5.0}}
    last = {"matmul": {"float32": {"model": 2.0}}, "copy": {"memory": 4.0}}
    assert highest(first, last) == {"matmul": {"float32": {"model": 2.0}}, "copy": {"memory": 5.0}}


# --- peers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP at 224 px and a video of two seconds with 24 frames per second."""
    folder = tmp_path_factory.mktemp("peers")
    clip(folder / "model", image_size=224, patch_size=56, dim=16, depth=1, tokenizer=False)
    SyntheticVideo(3, seconds=2, fps=24, size=(160, 120), style="pan").write(folder / "video.mp4")
    return folder


def test_all_ways_see_the_same_frames_and_agree(clip_folder):
    from peers.like_clip_video_encode import LikeClipVideoEncode
    from peers.transformers_loop import TransformersLoop

    video, model = clip_folder / "video.mp4", clip_folder / "model"
    ours = ef.encode_video(video, ef.DenseEncoder(ef.load(model, device="cpu")), fps=3.0)
    for peer, closeness in ((TransformersLoop, 1e-4), (LikeClipVideoEncode, 0.02)):
        result = peer(model, torch.float32)(video)
        assert result.times == pytest.approx(ours.times, abs=1e-6)
        assert (result.features * ours.embeddings).sum(1) == pytest.approx(np.ones(6), abs=closeness)


def test_the_way_of_video_features_has_as_many_rows(clip_folder):
    from peers.like_video_features import LikeVideoFeatures

    result = LikeVideoFeatures(clip_folder / "model", torch.float32)(clip_folder / "video.mp4")
    assert result.features.shape == (6, 16) and np.isnan(result.times).all()
    assert np.linalg.norm(result.features, axis=1) == pytest.approx(np.ones(6), abs=1e-5)


def test_a_way_with_other_frames_has_no_cosine(tmp_path):
    from compare_peers import cosine

    reference = {"features": np.eye(3), "times": np.array([0.0, 1.0, 2.0])}
    np.savez(tmp_path / "same.npz", features=np.eye(3)[[0, 1]], times=np.array([0.0, 2.0]))
    np.savez(tmp_path / "none.npz", features=np.eye(3), times=np.full(3, np.nan))
    assert cosine(tmp_path / "same.npz", reference) == {"frames": 2, "mean": 0.5}
    assert cosine(tmp_path / "none.npz", reference) == {"frames": 0, "mean": None}


# --- the page --------------------------------------------------------------------------------------------


def encode_record(**speeds: float) -> dict[str, Any]:
    """Frames per second by variant; two rounds, the second twice as fast for all."""

    def run(speed: float) -> dict[str, Any]:
        parts = {"decode": 1.0, "preprocess": 1.0, "model": 10.0}
        return {"frames": 72, "frames_per_second": speed, "ms_per_frame": parts, "peak_mb": 900.0, "other_load": 0.01}

    runs = {variant: [run(speed), run(2 * speed)] for variant, speed in speeds.items()}
    result = {"runs": runs, "skipped": {}, "cosine_of_c_to_b": 0.9999, "cosine_to_a": {"b": 0.9998, "f": 0.995}}
    return {"benchmark": "encode", "results": {"ViT-B/16": result}, "machine": {"cores": 2}, "video": "x.mp4"}


def stage(name: str, operations: float, seconds: float, share: float) -> dict[str, Any]:
    return {
        "stage": name, "model": "ViT-B/16", "dtype": "bfloat16", "unit": "frame", "count": 10, "seconds": [seconds] * 2,
        "per_second": 10 / seconds, "other_load": 0.0, "operations": operations, "bytes": operations / 100,
        "binds": "compute", "share": share, "share_of_model_shapes": 1.1 * share,
    }  # fmt: skip


def performance_record() -> dict[str, Any]:
    limits = {
        "matmul": {"bfloat16": {"model": 380e9, "square 2048": 400e9}, "float32": {"model": 190e9}},
        "copy": {"memory": 20e9, "cache": 80e9},
        "decode": {"one": 1000.0, "all": 1900.0},
    }
    side = {"seconds": 1.0, "cpu_seconds": 1.5}
    turn = {"total": {"seconds": 1.04, "cpu_seconds": 2.0}, "decoding side": side, "model side": side}
    overlap = {
        "model": "ViT-B/16", "dtype": "bfloat16", "encoder": "dense", "total_over_longest": 1.04,
        "total_over_work": 0.7,
        "rounds": [{**turn, "frames": 60, "other_load": 0.02}],
    }  # fmt: skip
    decode = {"stage": "decode", "model": "", "dtype": "", "unit": "source frame", "count": 500, "seconds": [0.5, 0.5],
              "per_second": 1000.0, "other_load": None, "binds": "decode", "share": 0.95}  # fmt: skip
    return {
        "benchmark": "performance",
        "limits": {"first": limits, "last": limits, "highest": limits},
        "stages": [
            decode,
            stage("model, I-frames", 360e9, 1.0, 0.9),
            stage("model, P-frames (residual)", 72e9, 0.25, 0.72),
            stage("model, P-frames (reuse)", 72e9, 0.2, 0.9),
        ],
        "overlap": [overlap],
        "skipped": {"ViT-B/16 int8": "no such dtype"},
        "machine": {
            "processor": "P",
            "family": "26",
            "flags": ["avx2"],
            "cores": 2,
            "quota": None,
            "threads": 2,
            "torch": "2",
            "av": "18",
            "python": "3",
            "other_load": 0.01,
        },
    }


def scaling_record() -> dict[str, Any]:
    from scaling import fit

    def line(xs: list[float], ys: list[float], **known: Any) -> dict[str, Any]:
        points = [{"x": x, "seconds": y, **known} for x, y in zip(xs, ys, strict=True)]
        return {"points": points, "fit": fit(xs, ys)}

    def costs(*points: tuple[int, float, float, float]) -> dict[str, Any]:
        return {"points": [{"N": n, "p": p, "x": x, "time": t, "time_over_cost": t / x} for n, p, x, t in points]}

    return {
        "benchmark": "scaling",
        "axes": {
            "length": {"file to features": line([15, 30, 60], [1, 2, 4], peak_mb=300.0)},
            "resolution": {
                "file to features": line([0.1, 0.5, 2], [1, 2, 4]),
                "decoding alone": line([0.1, 0.5], [1, 2]),
            },
            "fps": {"file to features": line([1, 2, 4], [1, 2, 9])},
            "model": {"dense": line([4, 17, 81], [1, 4, 20], model="M", frames=12)},
            "cost": {
                "dense": costs((0, 0.0, 1.0, 1.0)),
                "ResidualViT": costs((1, 0.85, 0.57, 0.6), (2, 0.85, 0.43, 0.47), (2, 0.5, 0.66, 0.7)),
                "ReuseEncoder": costs((2, 0.85, 0.43, 0.5), (5, 0.85, 0.28, 0.33)),
            },
        },
        "machine": {"other_load": 0.0},
    }  # fmt: skip


def write(folder: Path, **records: dict[str, Any]) -> None:
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")


def test_aims_are_judged_by_the_records(page, tmp_path):
    write(tmp_path, performance=performance_record(), encode=encode_record(a=4, b=8, c=8, d=17.6, e=20, f=13))
    verdicts = {aim.text: (aim.measured, aim.verdict) for aim in page.aims()}
    assert verdicts["the same, the model alone"] == (0.9, "met")
    measured, _ = verdicts["dense, FLOP/s over the highest matmul rate: file to features"]
    assert measured == pytest.approx(0.9 * (60 / 1.04) / 10)  # 60 frames in 1.04 s; the model alone 10 in 1 s
    assert verdicts["start-up, first feature, seconds"] == (None, "not measured")
    measured, verdict = verdicts["P-frames of ResidualViT, FLOP/s over that of dense"]
    assert measured == pytest.approx(0.8) and verdict == "**not met**"
    assert verdicts["P-frames of ReuseEncoder, FLOP/s over that of dense"][1] == "met"
    d, c = page.VARIANTS["d"], page.VARIANTS["c"]
    measured, verdict = verdicts[f"{d}, frames/s over {c}"]
    assert measured == pytest.approx(2.2) and verdict == "met"
    assert verdicts[f"{d}, frames/s over {page.VARIANTS['a']}"][1] == "**not met**"  # 4.4 of 4.5
    assert verdicts[f"{page.VARIANTS['e']}, frames/s over {c}"][1] == "**not met**"  # 2.5 of 3
    assert verdicts["dense int8, cosine to float32"] == (0.995, "met")
    assert verdicts["dense, file to features over its longer side"] == (1.04, "met")
    assert "met." in page.aims_table().splitlines()[0]


def test_what_was_left_out_is_not_judged(page, tmp_path):
    record = encode_record(a=4, b=8, c=8, d=18, e=24)
    record["results"]["ViT-B/16"]["skipped"] = {"f": "dtype must be one of float32, bfloat16"}
    write(tmp_path, performance=performance_record(), encode=record)
    f = page.VARIANTS["f"]
    assert {aim.text: aim.verdict for aim in page.aims()}[f"{f}, frames/s over {page.VARIANTS['c']}"] == "not measured"
    assert f"f ({f}): dtype must be one of" in page.encode_table()


def test_every_place_of_the_page_is_filled(page, tmp_path):
    peers = {"results": {}, "video": {"seconds": 16, "fps": 24, "size": "640x480"}}
    runs = encode_record(**dict.fromkeys("abcdefg", 5.0))["results"]["ViT-B/16"]["runs"]
    runs = dict(zip(page.WAYS, runs.values(), strict=True))
    same = {way: {"frames": 6, "mean": None if way == "reencode" else 0.999} for way in page.WAYS}
    peers["results"]["ViT-B/32"] = {"runs": runs, "cosine": same}
    write(
        tmp_path, performance=performance_record(), encode=encode_record(**dict.fromkeys("abcdefg", 5.0)), peers=peers,
        scaling=scaling_record(),
    )  # fmt: skip
    texts = {name: render() for name, render in page.RENDERERS.items()}
    for name, text in texts.items():
        rows = [line for line in text.splitlines() if line.startswith("|")]
        widths = {line.count("|") for line in rows} if name not in ("performance_encode", "performance_peers") else {1}
        assert text.strip() and len(widths) <= 1, name
    assert "| to 2 per second |" in texts["performance_scaling"]
    assert "other frames" in texts["performance_peers"]
    assert "no such dtype" in texts["performance_stages"]
    marks = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in page.RENDERERS:
        assert f"<!-- result:{name} -->" in marks


def test_a_missing_record_says_which(page):
    with pytest.raises(SystemExit, match=r"results/performance\.json does not exist"):
        page.limits_table()


def test_pictures_are_the_same_bytes_every_time(page, tmp_path):
    pytest.importorskip("matplotlib")
    write(tmp_path, performance=performance_record(), encode=encode_record(a=4, c=8, d=18), scaling=scaling_record())
    drawn = {file.name: file.read_bytes() for file in page.draw(tmp_path / "first")}
    (again,) = page.draw(tmp_path / "again", names=["performance-cost"])
    assert again.read_bytes() == drawn[again.name]
    assert all(b"<svg" in picture and b"<dc:date>" not in picture for picture in drawn.values())
    named = {f"images/{name}" for name in drawn}
    page_text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert named == {part.split(")")[0] for part in page_text.split("](") if part.startswith("images/")}


def test_published_fast_paths_keep_the_accuracy():
    """What benchmarks/paths.py measured last, of every path with every encoder: within half a point and 0.99."""
    record = json.loads((Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "paths.json").read_text())
    fast = [row for row in record["bundled"] if row["fidelity"] is not None]
    assert {row["path"] for row in fast} >= {"bfloat16", "int8"}
    assert min(each["points"] for row in fast for each in row["accuracy"]) >= -0.5
    assert min(row["mean"] for row in record["random"]) >= 0.99
    assert min(row["fidelity"]["mean"] for row in fast) >= 0.99
