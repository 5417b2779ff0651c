"""Zero-shot recognition: class names against frame features, recomputed through transformers frame by frame."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import checkpoints
import everyframe as ef
from everyframe.backbone import ModelError, load
from everyframe.cli import app
from everyframe.encoders import DenseEncoder, ResidualViT, ReuseEncoder
from everyframe.evaluation.action_files import ActionSet, read_actions
from everyframe.evaluation.class_prompts import KINETICS, TEMPLATES, UCF101, class_features, read_templates, spoken
from everyframe.evaluation.frame_features import EncodedVideos, StoredFeatures
from everyframe.evaluation.reading import AnnotationError
from everyframe.evaluation.zero_shot import class_scores, evaluate_zero_shot
from everyframe.pipeline import Sampling
from everyframe.video import sample_frames, write_video

CLASSES = ("red circle", "green square", "OpensDoor", "dog_walks", "a cat", "blue person", "the door in the square")
NAMES = ("v0_000000_000002", "v1_000000_000002", "v2_000000_000002", "v3_000000_000002")
FPS = 5.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Four videos of 2 s, one in a folder of its own."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        coarse = rng.integers(0, 256, (20, 10, 12, 3), dtype=np.uint8)
        path = folder / ("more" if index == 3 else ".") / f"{name}.mp4"
        write_video(path, list(coarse.repeat(4, axis=1).repeat(4, axis=2)), fps=10, options={"preset": "ultrafast"})
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return checkpoints.clip(tmp_path_factory.mktemp("clip"), context=77)


@pytest.fixture(scope="module")
def model(clip_folder) -> ef.Model:
    return load(clip_folder, device="cpu")


@pytest.fixture(scope="module")
def naive_texts(clip_folder) -> torch.Tensor:
    """One sentence at a time: unit length each, averaged, unit length again."""
    import transformers

    reference = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    words = ["red circle", "green square", "Opens Door", "dog walks", "a cat", "blue person", "the door in the square"]
    rows = []
    for name in words:
        total = torch.zeros(24)
        for template in KINETICS:
            ids = tokenizer(template.format(name), return_tensors="pt")
            with torch.no_grad():
                output = reference.get_text_features(**ids)
            feature = getattr(output, "pooler_output", output)[0]
            total += feature / feature.norm()
        mean = total / len(KINETICS)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.fixture(scope="module")
def naive_scores(clip_folder, model, videos, naive_texts) -> np.ndarray:
    """[V, C]: every sampled frame alone through CLIPModel, then the mean over frames."""
    import transformers

    reference = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    rows = []
    for name in NAMES:
        path = next(videos.rglob(f"{name}.mp4"))
        features = []
        for sample in sample_frames(path, FPS):
            pixels = model.preprocess(sample.pixels[None])
            with torch.no_grad():
                output = reference.get_image_features(pixel_values=pixels)
            feature = getattr(output, "pooler_output", output)[0]
            features.append(feature / feature.norm())
        assert len(features) == 10
        rows.append((torch.stack(features).mean(dim=0) @ naive_texts.T).numpy())
    return np.stack(rows)


@pytest.fixture
def items(tmp_path, naive_scores) -> ActionSet:
    """Labels are what the reference puts first, second, sixth and last."""
    order = np.argsort(-naive_scores, axis=1)
    labels = tuple(int(order[row, place]) for row, place in enumerate((0, 1, 5, 6)))
    return ActionSet(videos=NAMES, labels=labels, classes=CLASSES, path="x", sha256="")


# --- sentences -------------------------------------------------------------------------------------------


def test_templates_are_clips():
    assert (len(KINETICS), len(set(KINETICS)), len(UCF101), len(set(UCF101))) == (28, 28, 48, 48)
    assert KINETICS[0] == "a photo of {}." and KINETICS[-1] == "a demonstration of a person practicing {}."
    assert "a example of a person using {}." in KINETICS
    assert UCF101[0] == "a photo of a person {}." and UCF101[-1] == "a demonstration of the person practicing {}."
    assert "a video of the person during {}." in UCF101


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("YoYo", "Yo Yo"),
        ("BMXRiding", "BMX Riding"),
        ("air_drumming", "air drumming"),
        ("playing the McGuffin", "playing the McGuffin"),
    ],
)
def test_class_names_become_words(name, words):
    assert spoken(name) == words


def test_templates_from_a_file(tmp_path):
    (tmp_path / "own.txt").write_text("a clip of {}.\n\n{} happens\n")
    assert read_templates(tmp_path / "own.txt") == ("a clip of {}.", "{} happens")
    assert read_templates("kinetics") == TEMPLATES["kinetics"]
    (tmp_path / "bad.txt").write_text("a clip of {}.\nno place\n")
    with pytest.raises(AnnotationError, match=r'bad.txt line 2: a template must hold "{}" once'):
        read_templates(tmp_path / "bad.txt")
    with pytest.raises(AnnotationError, match="neither a file of templates nor one of kinetics, ucf101, photo, name"):
        read_templates("imagenet")


def test_class_features_equal_transformers_sentence_by_sentence(model, naive_texts):
    found = class_features(model, CLASSES)
    torch.testing.assert_close(found, naive_texts, atol=1e-5, rtol=0)


def test_class_features_need_words(model, tmp_path):
    blind = load(checkpoints.clip_vision(tmp_path / "vision"), device="cpu")
    with pytest.raises(ModelError, match="has no text tower"):
        class_features(blind, CLASSES)
    with pytest.raises(ValueError, match="classes and templates must not be empty, got 0 and 28"):
        class_features(model, [])


# --- annotation files ------------------------------------------------------------------------------------

KINETICS_CSV = """label,youtube_id,time_start,time_end,split,is_cc
"air drumming",_dbcJuKJQNs,40,50,val,0
abseiling,-a b,3,13,val,0
"zumba, slow",xyz,100,110,train,1
"""


def test_kinetics_tables(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text(KINETICS_CSV)
    items = read_actions(path)
    assert items.videos == ("_dbcJuKJQNs_000040_000050", "-a b_000003_000013", "xyz_000100_000110")
    assert items.classes == ("abseiling", "air drumming", "zumba, slow")
    assert items.labels == (1, 0, 2)
    assert read_actions(path, split="val").labels == (1, 0)
    (tmp_path / "classes.csv").write_text("id,name\n0,zumba slow\n1,air_drumming\n2,abseiling\n3,yoga\n")
    named = read_actions(path, classes=tmp_path / "classes.csv")
    assert (named.labels, len(named.classes or ())) == ((1, 2, 0), 4)


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        (KINETICS_CSV, "test", r"no video of the split 'test'; its splits are train, val"),
        ("youtube_id,time_start,time_end\na,1,2\n", None, "has no column label; its columns are youtube_id"),
        ("label,youtube_id,time_start,time_end\nyoga,a,1,2\n", "val", "has no column split"),
        ("label,youtube_id,time_start,time_end\nyoga,a,x,2\n", None, "line 2: time_start and time_end must be seconds"),
        ("label,youtube_id,time_start,time_end\nyoga,a,1\n", None, "line 2: must have 4 fields like the header, got 3"),
        ("label,youtube_id,time_start,time_end\nyoga,,1,2\n", None, "line 2: youtube_id and label must not be empty"),
        (
            "label,youtube_id,time_start,time_end\nyoga,a,1,2\nzumba,a,1,2\n",
            None,
            "a_000001_000002 has two labels; each video has one",
        ),
        ("a.mp4 0\n", "val", "has no column named split, so there is no split 'val' to choose; leave out --split"),
    ],
)
def test_bad_kinetics_tables_name_their_place(tmp_path, content, split, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(AnnotationError, match=message):
        read_actions(tmp_path / "t.csv", split=split)


# --- the numbers -----------------------------------------------------------------------------------------


def source(encoder, videos, **options) -> EncodedVideos:
    return EncodedVideos(encoder=encoder, folder=videos, sampling=Sampling(fps=FPS), **options)


def test_scores_equal_transformers_frame_by_frame(model, videos, naive_scores):
    texts = class_features(model, CLASSES).numpy()
    found = dict(source(DenseEncoder(model), videos).read(NAMES))
    scores = np.stack([class_scores(found[number], texts) for number in range(len(NAMES))])
    np.testing.assert_allclose(scores, naive_scores, atol=1e-5)


def test_top_1_and_top_5(model, videos, items):
    result = evaluate_zero_shot(model, {"dense": source(DenseEncoder(model), videos)}, items)
    (row,) = result.rows
    assert (row.top1, row.top5, row.videos) == (25.0, 50.0, 4)
    assert not result.failures and result.classes == 7
    macs = DenseEncoder(model).macs(1, "all")
    assert row.gflops_per_second == pytest.approx(FPS * sum(macs.values()) / 1e9)
    assert row.gflops_share == 1


@pytest.mark.parametrize("make", [ResidualViT, ReuseEncoder], ids=["residual", "reuse"])
def test_any_encoder_is_read_as_encode_video_does(model, videos, naive_texts, make):
    encoder = make(model, 2, 0.5, residual=None) if make is ResidualViT else make(model, plan="adaptive")
    texts = naive_texts.numpy()
    expected = []
    for name in NAMES:
        feats = ef.encode_video(next(videos.rglob(f"{name}.mp4")), encoder, fps=FPS)
        rows = feats.embeddings / np.linalg.norm(feats.embeddings, axis=1, keepdims=True)
        expected.append(int((rows @ texts.T).mean(axis=0).argmax()))
    agreeing = ActionSet(videos=NAMES, labels=tuple(expected), classes=CLASSES, path="x", sha256="")
    (row,) = evaluate_zero_shot(model, {"own": source(encoder, videos)}, agreeing).rows
    assert row.top1 == 100
    assert row.gflops_share is not None and 0 < row.gflops_share <= 1


def test_missing_and_damaged_videos_are_left_out(model, videos, items, tmp_path):
    for name in NAMES[:2]:
        (tmp_path / f"{name}.mp4").write_bytes((videos / f"{name}.mp4").read_bytes())
    (tmp_path / f"{NAMES[2]}.mp4").write_bytes(b"no video")
    result = evaluate_zero_shot(model, {"dense": source(DenseEncoder(model), tmp_path)}, items)
    assert {(failure.video, failure.kind) for failure in result.failures} == {
        (NAMES[2], "unreadable"),
        (NAMES[3], "missing"),
    }
    assert (result.rows[0].videos, result.rows[0].top1, result.as_dict()["partial"]) == (2, 50.0, True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"none of the 4 videos can be used: v0_000000_000002: is not in"):
        evaluate_zero_shot(model, {"dense": source(DenseEncoder(model), tmp_path / "empty")}, items)


def test_a_second_run_goes_on_from_the_cache(model, videos, items, tmp_path, monkeypatch):
    cached = source(DenseEncoder(model), videos, cache=tmp_path / "cache")
    first = []
    for number, _ in cached.read(NAMES):  # killed after two
        first.append(number)
        if len(first) == 2:
            break
    read = []
    original = DenseEncoder.encode_planned
    monkeypatch.setattr(DenseEncoder, "encode_planned", lambda self, *rest: read.append(1) or original(self, *rest))
    result = evaluate_zero_shot(model, {"dense": cached}, items)
    assert (len(read), result.rows[0].top5) == (2, 50.0)
    again = evaluate_zero_shot(model, {"dense": cached}, items)
    assert len(read) == 2 and again.as_table() == result.as_table()
    (folder,) = (tmp_path / "cache").iterdir()
    stored = evaluate_zero_shot(model, {"dense": StoredFeatures(folder=folder, model=model)}, items)
    assert stored.as_table() == result.as_table()


def test_stored_features_must_fit(model, videos, items, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for name, fps in ((NAMES[0], 5.0), (NAMES[1], 2.0)):
        ef.encode_video(next(videos.rglob(f"{name}.mp4")), DenseEncoder(model), fps=fps).save(folder / f"{name}.npz")
    stored = StoredFeatures(folder=folder, model=model)
    left_out = evaluate_zero_shot(model, {"stored": stored}, items).failures
    assert [failure.kind for failure in left_out] == ["unreadable", "missing", "missing"]
    assert f"{NAMES[1]}.npz was made with fps=2.0, but others with 5.0" in left_out[0].error
    other = load(checkpoints.clip(tmp_path / "other", seed=1, context=77), device="cpu")
    with pytest.raises(ValueError, match=r"none of the 4 videos can be used: .*made by other weights than those of"):
        evaluate_zero_shot(other, {"stored": StoredFeatures(folder=folder, model=other)}, items)
    with pytest.raises(AnnotationError, match="is not a folder; give the one that holds feature files"):
        list(StoredFeatures(folder=tmp_path / "none", model=model).read(NAMES))
    (folder / f"{NAMES[1]}.npz").write_bytes(b"cut short")
    result = evaluate_zero_shot(model, {"stored": stored}, items)
    assert [failure.kind for failure in result.failures] == ["unreadable", "missing", "missing"]


def test_features_without_length_are_left_out(model, videos, items, tmp_path):
    for name in NAMES:
        feats = ef.encode_video(next(videos.rglob(f"{name}.mp4")), DenseEncoder(model), fps=FPS)
        blank = np.zeros_like(feats.embeddings) if name == NAMES[1] else feats.embeddings
        dataclasses.replace(feats, embeddings=blank).save(tmp_path / f"{name}.npz")
    result = evaluate_zero_shot(model, {"stored": StoredFeatures(folder=tmp_path, model=model)}, items)
    assert [(failure.video, failure.kind) for failure in result.failures] == [(NAMES[1], "unreadable")]
    assert result.rows[0].videos == 3


def test_classes_need_names(model, videos, items):
    with pytest.raises(ValueError, match=r"x numbers its classes but does not name them; pass their names"):
        evaluate_zero_shot(
            model, {"dense": source(DenseEncoder(model), videos)}, dataclasses.replace(items, classes=None)
        )


# --- the command line ------------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and error; an error of the user's is raised, as `main` gets it."""
    result = CliRunner().invoke(app, ["evaluate", "recognition", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def table(tmp_path, items) -> Path:
    """The items as a Kinetics table, and the classes it names."""
    path = tmp_path / "val.csv"
    rows = [f'"{CLASSES[label]}",v{number},0,2,val' for number, label in enumerate(items.labels)]
    path.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return path


def test_cli_compares_encoders(clip_folder, table, videos, tmp_path):
    out = tmp_path / "out" / "result.json"
    common = ["--model", clip_folder, "--annotations", table, "--classes", tmp_path / "classes.txt", "--device", "cpu"]
    common += ["--videos", videos, "--fps", FPS, "--split", "val", "--residual", "none", "--compare"]
    code, text, _ = run(*common, "--out", out, "--dataset", "kinetics400")
    assert code == 0 and "kinetics400 recognition, zero-shot: 7 classes, 28 templates" in text
    record = json.loads(out.read_text())
    assert [row["encoder"] for row in record["rows"]] == ["dense", "ResidualViT N=2", "reuse adaptive"]
    assert (record["rows"][0]["top1"], record["rows"][0]["top5"]) == (25.0, 50.0)
    lines = out.with_suffix(".csv").read_text().splitlines()
    assert lines[0] == "encoder,videos,top1,top5,gflops_per_second,gflops_share"
    assert lines[1].startswith("dense,4,25.0,50.0,") and len(lines) == 4
    assert record["rows"][1]["settings"]["encoder"]["interleave"] == 2


def test_cli_says_what_is_missing_and_fails(clip_folder, table, videos, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / f"{NAMES[0]}.mp4").write_bytes((videos / f"{NAMES[0]}.mp4").read_bytes())
    common = ["--model", clip_folder, "--annotations", table, "--videos", tmp_path / "one", "--device", "cpu"]
    code, text, errors = run(*common, "--encoder", "dense", "--templates", "name")
    assert code == 1 and "partial: 3 of 4 videos are left out" in text
    assert f"everyframe: missing: v3_000000_000002: is not in {tmp_path / 'one'}" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "v", "--features", "f"], "give either --videos, a folder of videos, or --features"),
        ([], "give either --videos, a folder of videos, or --features"),
        (["--features", "f", "--encoder", "dense"], "--encoder has no meaning with --features"),
        (["--features", "f", "--compare"], "--compare has no meaning with --features"),
        (["--videos", "v", "--compare", "--interleave", 3], "--interleave has no meaning with --compare"),
        (["--videos", "v", "--views", 2], "--views has no meaning with an image model"),
        (["--videos", "v", "--method", "tome"], "--method has no meaning with an image model"),
        (["--videos", "v", "--dataset", "ssv2"], "--dataset must be one of kinetics400, ucf101, got 'ssv2'"),
        (["--videos", "v", "--templates", "none.txt"], "none.txt is neither a file of templates nor one of"),
        (["--videos", "v", "--encoder", "dense", "--fps", 0], "fps must be > 0"),
        (["--videos", "v", "--out", "r.csv"], "--out must be a JSON file, whose table is written beside it as a CSV"),
        (["--videos", "nowhere"], "nowhere is not a folder; give the one that holds the videos"),
    ],
)
def test_cli_says_what_makes_no_sense(clip_folder, table, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        run("--model", clip_folder, "--annotations", table, "--device", "cpu", *arguments)
    assert "\n" not in str(caught.value)


def test_cli_options_of_frames_have_no_meaning_with_clips(table, videos, tmp_path):
    config = tmp_path / "videomae"
    config.mkdir()
    (config / "config.json").write_text('{"model_type": "videomae"}')
    for option, value in (("--templates", "name"), ("--encoder", "dense"), ("--fps", 3), ("--split", "val")):
        with pytest.raises(ValueError, match=f"{option} has no meaning with a video model, which reads clips"):
            run("--model", config, "--annotations", table, "--videos", videos, option, value)
    with pytest.raises(ValueError, match="--videos is needed"):
        run("--model", config, "--annotations", table)
