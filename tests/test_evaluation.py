"""The ablation on synthetic videos, against the encoders' own path from files and formulas by hand."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoints
import everyframe as ef
from everyframe import cli
from everyframe.encoders.baselines import copy_features, fidelity, interpolate_features
from everyframe.encoders.tokenizer import TOKENIZER_FILE
from everyframe.evaluation.plots import write_plots
from everyframe.evaluation.summary import Ablation, Row, compare, spread
from everyframe.evaluation.synthetic import Video, evaluate_synthetic, rendered_videos
from everyframe.evaluation.tables import caption, markdown, narrow, tables
from everyframe.evaluation.variants import Sweep, read_tokenizers
from everyframe.spans import recall_at

TINY = Sweep(interleaves=(2, 5), drops=(0.7,), selections=("motion",), smooths=(3.0,), ious=(0.5,))
SIZE = {"videos": 2, "seconds": 14.0}


@pytest.fixture(scope="module")
def model() -> ef.Model:
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def files(model: ef.Model, folder: Path) -> dict[str, Path]:
    """Random tokenizers: two trainings of one kind, one fitted for another share."""
    written = {}
    for seed, (name, drop) in enumerate({"first": 0.85, "second": 0.85, "other": 0.7}.items()):
        torch.manual_seed(seed)
        tokenizer = ef.ResidualTokenizer(model.dim, model.vision.config.width, facts={"drop": drop})
        written[name] = folder / f"{name}.safetensors"
        tokenizer.save(written[name])
    return written


@pytest.fixture(scope="module")
def growth() -> list[dict]:
    """What was known after each set."""
    return []


@pytest.fixture(scope="module")
def ablation(model: ef.Model, folder: Path, files: dict[str, Path], growth: list[dict]) -> Ablation:
    return evaluate_synthetic(
        model,
        residuals=[f"A={files['first']}", f"A={files['second']}", f"B={files['other']}"],
        seeds=2,
        sweep=TINY,
        work=folder / "work",
        after_set=lambda ablation: growth.append(ablation.as_dict()),
        **SIZE,
    )


@pytest.fixture(scope="module")
def videos(ablation: Ablation, folder: Path) -> list[Video]:
    """The videos of the first set."""
    return rendered_videos(folder / "work" / "set-901", seed=901, **SIZE)


@pytest.fixture(scope="module")
def dense(model: ef.Model, videos: list[Video]) -> list[ef.VideoFeatures]:
    return [ef.encode_video(video.file, ef.DenseEncoder(model)) for video in videos]


def rows_of(ablation: Ablation, table: str) -> dict[str, Row]:
    return {row.label.partition(". ")[0] if table == "methods" else row.label: row for row in ablation.rows()[table]}


def assert_equals(ablation: Ablation, variant: str, file: int, encoded: list, dense: list, videos: list, model) -> None:
    """What the ablation measured on the first set is what these features give."""
    measured = [result.measures[variant][file] for result in ablation.sets[0]]
    for measure, own, full in zip(measured, encoded, dense, strict=True):
        expected = (own.embeddings.astype(np.float64) * full.embeddings).sum(1)
        np.testing.assert_allclose(measure.fidelity, expected, atol=2e-5)
    answers, truth = [], []
    for feats, video in zip(encoded, videos, strict=True):
        for text, start, end in video.events:
            answers.append(ef.ground(feats, model.encode_text([text])[0], top=1))
            truth.append([(start, end)])
    overlaps = np.concatenate([measure.overlaps[5.0] for measure in measured])
    for iou in (0.3, 0.5, 0.7):
        assert (overlaps >= iou).mean() == pytest.approx(recall_at(answers, truth, k=1, iou=iou))


def test_dense_is_its_own_reference(ablation: Ablation) -> None:
    row = rows_of(ablation, "methods")["a"]
    assert row.fidelity.mean == row.fidelity_5.mean == 1.0
    assert row.fidelity_p is None
    assert row.cost_percent == 100
    assert (row.relative_50.mean, row.relative_50.std, row.relative_50.count) == (100, 0, 2)


def test_rows_equal_encode_video(ablation, dense, videos, model, files) -> None:
    assert_equals(ablation, "dense", 0, dense, dense, videos, model)
    for interleave in (2, 5):
        encoder = ef.ResidualViT(model, interleave, residual=None)
        encoded = [ef.encode_video(video.file, encoder) for video in videos]
        assert_equals(ablation, f"drop motion N={interleave} p=0.85", 0, encoded, dense, videos, model)
    for file, name in enumerate(("first", "second")):
        encoder = ef.ResidualViT(model, residual=files[name])
        encoded = [ef.encode_video(video.file, encoder) for video in videos]
        assert_equals(ablation, "drop motion N=2 p=0.85 + A", file, encoded, dense, videos, model)


def test_token_merging_stands_beside_lower_resolution(ablation, dense, videos, model, files) -> None:
    rows = rows_of(ablation, "reduction")
    assert list(rows) == [
        "drop, motion", "drop, motion + token", "lower resolution", "lower resolution + token", "token merging",
        "token merging + token",
    ]  # fmt: skip
    for name, variant, residual in (
        ("token merging", "merge N=2 p=0.85", None),
        ("token merging + token", "merge N=2 p=0.85 + A", files["first"]),
    ):
        encoder = ef.ResidualViT(model, residual=residual, reduction="merge")
        assert rows[name].gflops_per_frame == pytest.approx(ef.flops(encoder).gflops_per_frame)
        encoded = [ef.encode_video(video.file, encoder) for video in videos]
        assert_equals(ablation, variant, 0, encoded, dense, videos, model)
    # All patches enter the first of four blocks.
    assert rows["token merging"].cost_percent > rows["drop, motion"].cost_percent


def test_reduced_everywhere_equals_p_frames_without_token(ablation: Ablation) -> None:
    """Without a token a P-frame's feature does not depend on the plan around it."""
    for result in ablation.sets[0]:
        reduced = result.measures["reduced motion p=0.85"][0].fidelity
        mixed = result.measures["drop motion N=2 p=0.85"][0].fidelity
        others = np.arange(len(mixed)) % 3 != 0
        np.testing.assert_allclose(reduced[others], mixed[others], atol=1e-5)
        assert (mixed[~others] == 1).all()
        assert reduced[~others].max() < 1


def test_shortcuts_equal_their_formula(ablation, dense, videos, model) -> None:
    for interleave in (2, 5):
        for method in ("copy", "interpolate"):
            encoded = [
                ef.VideoFeatures(
                    times=feats.times,
                    embeddings=copy_features(feats.embeddings, interleave)
                    if method == "copy"
                    else interpolate_features(feats.embeddings, feats.times, interleave),
                    roles=feats.roles,
                    end_seconds=feats.end_seconds,
                )
                for feats in dense
            ]
            assert_equals(ablation, f"{method} N={interleave}", 0, encoded, dense, videos, model)


def test_costs_follow_the_papers_formula(ablation: Ablation) -> None:
    rows = rows_of(ablation, "methods")
    kept = 0.15
    assert rows["b"].cost_percent == pytest.approx(100 * kept, abs=2)
    for letter in "cd":
        assert rows[letter].cost_percent == pytest.approx(100 * (1 + kept * 2) / 3, rel=0.02)
    assert rows["c"].cost_percent < rows["d"].cost_percent
    for label, row in rows_of(ablation, "interleave").items():
        if label.startswith(("copy", "interpolate")):
            assert row.cost_percent == pytest.approx(100 / (row.interleave + 1))
    for label, row in rows_of(ablation, "drop").items():
        assert row.cost_percent == pytest.approx(100 * (1 + (1 - row.drop) * 2) / 3, rel=0.02), label


def test_files_of_one_name_are_pooled_and_others_used_where_they_fit(ablation: Ablation) -> None:
    assert rows_of(ablation, "methods")["d"].fidelity.count == 2 * 2
    assert rows_of(ablation, "methods")["c"].fidelity.count == 2
    assert list(rows_of(ablation, "drop")) == [
        "p = 0.7", "p = 0.7 + token", "p = 0.7 + B, fitted for it", "p = 0.85", "p = 0.85 + token"
    ]  # fmt: skip
    assert list(rows_of(ablation, "residual")) == ["A, motion", "A, random"]
    own = [result.measures["drop motion N=2 p=0.85 + A"] for videos in ablation.sets for result in videos]
    means = [np.concatenate([m[file].fidelity for m in own[k : k + 2]]).mean() for k in (0, 2) for file in (0, 1)]
    row = rows_of(ablation, "methods")["d"]
    assert row.fidelity.mean == pytest.approx(np.mean(means))
    assert row.fidelity.std == pytest.approx(np.std(means, ddof=1))


def test_every_set_is_handed_out(ablation: Ablation, growth: list[dict]) -> None:
    assert [record["sets"] for record in growth] == [1, 2]
    assert growth[-1] == json.loads(json.dumps(ablation.as_dict()))
    assert growth[0]["tables"]["methods"][0]["fidelity"]["std"] is None


def test_rendered_videos_are_found_again(tmp_path: Path, ablation: Ablation, videos: list[Video]) -> None:
    assert [len(video.events) for video in videos] == [result.queries for result in ablation.sets[0]]
    size = {"videos": 1, "seconds": 2.0, "seed": 901}
    first = rendered_videos(tmp_path, **size)
    before = first[0].file.stat().st_mtime_ns
    assert rendered_videos(tmp_path, **size) == first
    assert before == first[0].file.stat().st_mtime_ns
    (tmp_path / "complete.json").unlink()  # as a killed run leaves it
    rendered_videos(tmp_path, **size)
    assert before != first[0].file.stat().st_mtime_ns


# --- figures by hand -------------------------------------------------------------------------------------


def hits(*videos: str) -> list[np.ndarray]:
    return [np.array([letter == "+" for letter in video], dtype=bool) for video in videos]


def test_compare_counts_and_bounds() -> None:
    wins, losses, difference, low, high = compare(
        hits("++-", "+--", "", "---", "---", "---"), hits("+--", "-+-", "", "---", "---", "---")
    )
    assert (wins, losses) == (2, 1)
    assert difference == pytest.approx(100 / 15)
    # Five videos with queries, of +1, 0, 0, 0, 0 of three. Drawing the first k of 5 times is binomial: P(k = 0) is
    # 0.33 and P(k > 3) is 0.007, P(k > 2) is 0.058.
    assert (low, high) == pytest.approx((0, 100 * 3 / 15))


def test_compare_gives_no_interval_of_few_videos() -> None:
    assert compare(hits("++-", "+--", "", "+", "-"), hits("+--", "-+-", "", "+", "-"))[3:] == (None, None)
    with pytest.raises(ValueError, match="at least one query"):
        compare(hits(""), hits(""))


def test_compare_is_seeded_and_says_when_a_difference_is_sure() -> None:
    rng = np.random.default_rng(3)
    first = [rng.random(10) < 0.7 for _ in range(30)]
    second = [rng.random(10) < 0.4 for _ in range(30)]
    result = compare(first, second)
    assert result == compare(first, second)
    assert result != compare(first, second, seed=1)
    assert 0 < result[3] < result[2] < result[4]
    swapped = compare(second, first)
    assert swapped[:3] == (result[1], result[0], pytest.approx(-result[2]))
    assert compare(first, first)[:2] == (0, 0)
    # The normal approximation over videos.
    gains = np.array([a.mean() - b.mean() for a, b in zip(first, second, strict=True)])
    assert result[4] - result[3] == pytest.approx(2 * 1.96 * 100 * gains.std(ddof=1) / 30**0.5, rel=0.15)


def test_spread() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert (found.mean, found.count) == (pytest.approx(7 / 3), 3)
    assert found.std == pytest.approx((((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2) ** 0.5)
    assert spread([2.0]).std is None
    assert spread([]) is None
    assert spread([1.0, None]) is None


def test_fidelity_is_the_cosine() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 5, 8))
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
    np.testing.assert_allclose(fidelity(rows[0], rows[1]), (rows[0] * rows[1]).sum(1), atol=1e-6)
    np.testing.assert_allclose(fidelity(3 * rows[0], rows[1]), fidelity(rows[0], rows[1]), atol=1e-12)
    assert (fidelity(rows[0], rows[0]) == 1).all()


# --- what comes out --------------------------------------------------------------------------------------


def test_tables(ablation: Ablation) -> None:
    record = ablation.as_dict()
    assert caption(record).startswith("bundled: 2 sets of 2 videos of 14 s at 3 frames/s, ")
    found = tables(record)
    assert list(found) == [
        "methods", "interleave", "reduction", "drop", "residual", "pairs", "styles", "styles_fidelity", "grounding"
    ]  # fmt: skip
    for table in found.values():
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert len(narrow(table).rows) == len(table.rows)
    assert {row[-1] for row in found["pairs"].rows} == {"-"}  # of four videos there is no interval
    record["pairs"][0].update(low=-1.26, high=2.0)
    assert tables(record)["pairs"].rows[0][-1] == "-1.3 to +2.0"
    assert "interval" not in caption(ablation.as_dict())
    assert "not that of trainings, and are not corrected" in caption(record)
    first = markdown(found["methods"]).splitlines()[2]
    assert first.startswith("| a. every frame in full | 0.1598 | 100.0 |")
    assert "| 1.000 ± 0.000 | 1.000 ± 0.000 | - |" in first


def test_pairs_agree_with_the_recalls(ablation: Ablation) -> None:
    pairs = {(pair.first, pair.second): pair for pair in ablation.pairs() if pair.iou == 0.5}
    assert list(pairs) == [
        ("d", "c"), ("d", "a"), ("d", "copy"), ("d", "interpolate"),
        ("c", "a"), ("c", "b"), ("c", "copy"), ("c", "interpolate"),
    ]  # fmt: skip
    results = [result for videos in ablation.sets for result in videos]
    found = {
        name: np.concatenate([result.measures[variant][0].overlaps[5.0] >= 0.5 for result in results])
        for name, variant in {"c": "drop motion N=2 p=0.85", "a": "dense"}.items()
    }
    pair = pairs["c", "a"]
    assert pair.difference == pytest.approx(100 * (found["c"].mean() - found["a"].mean()))
    assert pair.wins - pair.losses == found["c"].sum() - found["a"].sum()
    assert pair.queries == len(found["c"])
    assert pairs["d", "c"].queries == 2 * pair.queries  # two tokenizers, each against c


def test_plots_are_written_and_the_same_again(ablation: Ablation, tmp_path: Path) -> None:
    record = json.loads(json.dumps(ablation.as_dict()))
    first, second = write_plots(record, tmp_path / "one"), write_plots(record, tmp_path / "two")
    assert [file.name for file in first] == ["ablation-interleave.svg", "ablation-drop.svg", "ablation-style.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes().startswith(b"<?xml")


def test_plots_draw_every_row(ablation: Ablation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    record = ablation.as_dict()
    write_plots(record, tmp_path)
    # Of each panel: the points of each line, without what None would hide.
    drawn = [
        [{line.get_label(): line[0].get_xydata().tolist() for line in panel.containers} for panel in figure.axes]
        for figure in figures
    ]
    table = record["tables"]["interleave"]
    for panel, key in zip(drawn[0], ("relative_50", "fidelity"), strict=True):
        assert {label: len(points) for label, points in panel.items()} == {
            "ResidualViT, no token": 2, "ResidualViT + token": 2, "copy the I-feature": 2, "interpolate I-features": 2,
            "dense": 1,
        }  # fmt: skip
        wanted = [[row["cost_percent"], row[key]["mean"]] for row in table if row["variant"].startswith("copy")]
        assert panel["copy the I-feature"] == wanted
    for panel in drawn[1]:
        assert {label: [p for p, _ in points] for label, points in panel.items()} == {
            "no token": [0.7, 0.85], "+ token (A)": [0.7, 0.85], "+ token fitted for each p (B)": [0.7]
        }  # fmt: skip
    assert len(drawn[2]) == 4  # N = 2 and N = 5, recall and fidelity
    for panel in drawn[2]:
        assert {len(points) for points in panel.values()} == {2} and len(panel) == 5  # two videos: still and handheld
        assert [round(x) for x, _ in panel["dense"]] == [0, 1]


def test_command_line(folder: Path, ablation: Ablation, capsys, monkeypatch) -> None:
    out = folder / "out"
    options = ["--seeds", "1", "--videos", "2", "--seconds", "14", "--work", str(folder / "work"), "--out", str(out)]
    monkeypatch.setattr(
        sys, "argv", ["everyframe", "evaluate", "synthetic", "--quick", "--residual", "none", "--json", *options]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert "set 1 of 1: 2 videos ready" in printed.err
    assert record == json.loads((out / "ablation.json").read_text())
    assert [row["label"][0] for row in record["tables"]["methods"]] == ["a", "b", "c"]
    assert "residual" not in record["tables"]
    assert len(list(out.glob("*.svg"))) == 3
    # Numbers that do not depend on time or tokenizers are those of the library's call.
    for mine, other in zip(record["tables"]["methods"], ablation.as_dict()["tables"]["methods"], strict=False):
        assert mine["gflops_per_frame"] == other["gflops_per_frame"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"videos": 0}, "videos must be at least 1, got 0"),
        ({"seconds": -1.0}, r"seconds must be finite and > 0, got -1.0"),
        ({"fps": 0}, "fps must be > 0, got 0"),
        ({"seed": 998}, "sets must keep to seeds up to 999"),
        ({"residuals": ["file.safetensors"]}, 'residual must be "auto", "none" or NAME=FILE, got \'file.safetensors\''),
        ({"residuals": ["A="]}, "NAME=FILE, got 'A='"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(model, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_synthetic(model, work=tmp_path / "work", **options)
    assert not (tmp_path / "work").exists()


def test_a_missing_tokenizer_is_named(model: ef.Model) -> None:
    with pytest.raises(FileNotFoundError, match=r"residual tokenizer /nowhere/A.safetensors does not exist"):
        read_tokenizers(model, ["A=/nowhere/A.safetensors"])


def test_auto_is_what_ships_with_the_model(model: ef.Model, files: dict[str, Path], tmp_path: Path) -> None:
    for file in model.folder.iterdir():
        if file.name != TOKENIZER_FILE:
            shutil.copy(file, tmp_path)
    bare = ef.load(tmp_path, device="cpu")
    assert read_tokenizers(bare) == (
        {},
        [f"no residual tokenizer comes with {bare.name}: rows with its token are left out"],
    )
    shutil.copy(files["first"], tmp_path / TOKENIZER_FILE)
    found, notes = read_tokenizers(bare, ["auto", "none", f"B={files['second']}"])
    assert (list(found), notes) == (["shipped", "B"], [])
    assert found["shipped"][0].fingerprint == ef.ResidualTokenizer.load(files["first"], model).fingerprint


def test_a_model_without_text_is_refused(tmp_path: Path) -> None:
    blind = ef.load(checkpoints.clip_vision(tmp_path / "blind"), device="cpu")
    with pytest.raises(ef.ModelError, match="has no text tower"):
        evaluate_synthetic(blind, work=tmp_path / "work")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["everything"], 2, "No such command 'everything'"),
        (["synthetic", "--seeds", "0"], 1, "everyframe: seeds must be at least 1, got 0"),
        (["synthetic", "--residual", "A=/nowhere.safetensors"], 1, "everyframe: residual tokenizer /nowhere"),
    ],
)
def test_command_line_errors(arguments: list[str], code: int, message: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["everyframe", "evaluate", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert message in capsys.readouterr().err
