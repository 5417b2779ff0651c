"""Videos that differ in the order of their frames: the captions against the pixels, and that order is needed."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import everyframe as ef
from everyframe.backbone.text import Tokenizer
from everyframe.cli import app
from everyframe.encoders import DenseEncoder, TempMe
from everyframe.evaluation.annotations import read_retrieval
from everyframe.evaluation.clips import Sampling
from everyframe.evaluation.frame_reader import FrameReader
from everyframe.evaluation.retrieval import evaluate_retrieval
from everyframe.synthetic import CHANGES, COLOURS, PATTERNS, SHAPES, Entity, SequenceVideo, synthesize_sequences
from everyframe.synthetic.sequences import draw_pairs
from everyframe.video import second_frames

SMALL = {"size": (64, 48), "noise": 0.0}


@pytest.fixture(scope="module")
def model():
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven pairs, one of each change, and as many for the test."""
    out = tmp_path_factory.mktemp("sequences")
    videos = list(synthesize_sequences(out, train=14, test=14, seed=3, size=(64, 48)))
    assert len(videos) == 28
    return out


def ink(video, t):
    """Where the objects are: bool [H, W], by the difference from the background alone."""
    picture = video.frame(round(t * (video.num_frames - 1))).astype(float)
    return np.abs(picture - np.clip(video._still, 0, 255)).max(axis=2) > 8


def middle(mask):
    """Mean (x, y) of the set pixels."""
    return np.argwhere(mask).mean(axis=0)[::-1]


# --- one video -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_a_partner_is_the_exact_reversal(change):
    for seed in range(3):
        video = SequenceVideo(seed, change=change, size=(64, 48), noise=3.0)
        forth, back = np.stack(list(video.frames())), np.stack(list(video.partner.frames()))
        np.testing.assert_array_equal(back, forth[::-1])
        assert not np.array_equal(back, forth)
        assert video.caption != video.partner.caption
        assert video.partner.partner == video and video.name != video.partner.name


def test_a_seed_decides_everything():
    one, same, other = (SequenceVideo(seed, **SMALL) for seed in (5, 5, 5 + len(CHANGES)))
    assert one.caption == same.caption
    np.testing.assert_array_equal(one.frame(40), same.frame(40))
    assert not np.array_equal(one.frame(40), other.frame(40))
    assert [SequenceVideo(seed, **SMALL).change for seed in range(7)] == list(CHANGES)


@pytest.mark.parametrize("seed", range(4))
def test_captions_say_what_happens(seed):
    def video(change):
        found = SequenceVideo(seed, change=change, **SMALL)
        return found, found.caption

    shown, caption = video("sideways")
    assert caption.endswith("moves left") and middle(ink(shown, 0))[0] - middle(ink(shown, 1))[0] > 15
    shown, caption = video("upright")
    assert caption.endswith("moves up") and middle(ink(shown, 0))[1] - middle(ink(shown, 1))[1] > 15
    shown, caption = video("size")
    assert caption.endswith("grows") and ink(shown, 1).sum() > 4 * ink(shown, 0).sum()
    shown, caption = video("presence")
    assert caption.endswith(" appears") and not ink(shown, 0).any() and ink(shown, 1).sum() > 60
    shown, caption = video("order")
    first, second = (act.entity for act in shown.story.acts)
    assert caption == f"{first.caption(size=False)}, then {second.caption(size=False)}"
    shown, caption = video("exchange")
    entering, leaving = (act.entity for act in shown.story.acts)
    assert caption == f"{entering.caption(size=False)} enters, then {leaving.caption(size=False)} leaves"
    assert shown.partner.caption.startswith(f"{leaving.caption(size=False)} enters")
    assert ink(shown, 0.5).sum() > max(ink(shown, 0).sum(), ink(shown, 1).sum())  # both are there


@pytest.mark.parametrize("seed", range(4))
def test_colours_and_order_are_on_screen_when_the_caption_says(seed):
    video = SequenceVideo(seed, change="colour", **SMALL)
    words = video.caption.split(" turns from ")[1].split(" to ")
    for t, word in ((0, words[0]), (1, words[1])):
        assert (np.abs(video.frame(round(77 * t)).astype(int) - COLOURS[word]).max(axis=2) <= 1).sum() > 30
    video = SequenceVideo(seed, change="order", **SMALL)
    for t, act in zip((0, 1), video.story.acts, strict=True):
        colour = COLOURS[act.entity.colour]
        seen = (np.abs(video.frame(77 * t).astype(int) - colour).max(axis=2) <= 1).sum()
        assert seen > 30
        assert [other.scale(t) for other in video.story.acts if other is not act] == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 1}, r"num_frames must be at least 2, fps finite and > 0 and size .*, got 1, 12\.0"),
        ({"fps": 0.0}, "fps finite and > 0"),
        ({"size": (0, 4)}, "size \\(width, height\\) in pixels"),
        ({"change": "dances"}, "change must be one of sideways, .*, got 'dances'"),
        ({"combinations": "some"}, "combinations must be seen, unseen or any, got 'some'"),
    ],
)
def test_bad_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        SequenceVideo(1, **options)


def test_frames_outside_the_video_raise():
    with pytest.raises(ValueError, match="index must be from 0 to 77, got 78"):
        SequenceVideo(1, **SMALL).frame(78)


# --- the splits ------------------------------------------------------------------------------------------


def objects_of(video):
    """(colour, pattern, shape) of all objects."""
    acts = video.story.acts
    return {(colour, act.entity.pattern, act.entity.shape) for act in acts for colour in act.colours}


def test_test_objects_are_none_of_the_trainings():
    held = {
        (colour, pattern, shape)
        for colour, pattern, shape in itertools.product(COLOURS, PATTERNS, SHAPES)
        if Entity(colour, pattern, shape, "").is_held_out
    }
    for video in draw_pairs(70, 0, "seen", **SMALL):
        assert not objects_of(video) & held
    for video in draw_pairs(70, 0, "unseen", **SMALL):
        shown = objects_of(video)
        assert len(shown & held) == (1 if video.change == "colour" and len(shown - held) else len(shown))


def test_captions_of_a_split_all_differ():
    videos = draw_pairs(70, 7, "unseen", **SMALL)
    captions = [caption for video in videos for caption in (video.caption, video.partner.caption)]
    assert len(set(captions)) == 140
    assert [video.change for video in videos[:8]] == [*CHANGES, "sideways"]
    with pytest.raises(ValueError, match="there are no 45 different captions to draw"):
        draw_pairs(45, 0, "unseen", change="size", size=(8, 6))


def test_every_caption_fits_the_bundled_model(model):
    captions = [video.caption for seed in range(140) for video in [SequenceVideo(seed, size=(8, 6))]]
    ids, _ = Tokenizer(model.folder, model.text.config)(captions)  # a warning of a cut text would be an error
    assert ids.shape[1] < model.text.config.context
    assert len({tuple(row) for row in ids.tolist()}) == len(set(captions))


def test_files_are_what_the_annotations_say(folder):
    for split in ("train", "test"):
        lines = json.loads((folder / f"{split}.json").read_text())
        items = read_retrieval(folder / f"{split}.json")
        assert items.layout == "umt" and len(items.videos) == len(items.texts) == 14
        by_name = {line["video"]: line for line in lines}
        for line in lines:
            assert (folder / line["video"]).is_file()
            partner = by_name[line["partner"]]
            assert partner["partner"] == line["video"] and partner["change"] == line["change"]
        assert [line["change"] for line in lines[::2]] == list(CHANGES)
    assert len(list(folder.glob("*.mp4"))) == 28


@pytest.mark.parametrize(
    ("options", "message"),
    [({"train": 3}, "train must be an even number of videos, .*, got 3"), ({"test": -2}, "got -2"),
     ({"train": 0, "test": 0}, "train and test are both 0")],
)  # fmt: skip
def test_odd_numbers_raise_at_once(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        synthesize_sequences(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_renders_both_splits(tmp_path):
    arguments = ["synthesize", "--sequences", "--out", str(tmp_path), "--seed", "2"]
    result = CliRunner().invoke(app, [*arguments, "--videos", "2", "--test", "2", "--seconds", "1"])
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "train.json").read_text())) == 2
    assert ef.probe(tmp_path / json.loads((tmp_path / "test.json").read_text())[0]["video"]).duration_seconds == 1
    for more, message in (
        (["--style", "pan"], "--style has no meaning with --sequences"),
        (["--seconds", "0"], "--seconds must be from 0.25 to 600"),
    ):
        with pytest.raises(ValueError, match=message):
            raise CliRunner().invoke(app, [*arguments, *more]).exception
    with pytest.raises(ValueError, match="--test belongs to --sequences"):
        raise CliRunner().invoke(app, ["synthesize", "--out", str(tmp_path), "--test", "2"]).exception


# --- order is needed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [8, 12])
def test_sampled_frames_of_a_partner_are_the_same_in_reverse(frames):
    numbers = second_frames(78, frames, fps=12)
    assert [77 - number for number in reversed(numbers)] == numbers and len(set(numbers)) == frames


def test_frames_read_one_by_one_cannot_choose_and_joined_clips_can(model):
    """The mean over frames, and the best frame for a caption, are the same for both directions of all 14 videos."""
    videos = [video for pair in draw_pairs(7, 50, "seen", size=(56, 56)) for video in (pair, pair.partner)]
    pixels = torch.stack([
        model.preprocess(np.stack([video.frame(number) for number in second_frames(78, 8, fps=12)]))
        for video in videos
    ])  # fmt: skip
    texts = model.encode_text([video.caption for video in videos])
    by_frame = DenseEncoder(model).encode(pixels.flatten(0, 1)).unflatten(0, (14, 8))
    best = torch.einsum("td,vfd->tvf", texts, by_frame).amax(dim=2)
    mean = texts @ FrameReader(DenseEncoder(model), frames=8).encode(pixels).T
    own, other = torch.arange(14), torch.arange(14) ^ 1
    for similarity in (best, mean):
        torch.testing.assert_close(similarity[own, own], similarity[own, other], atol=2e-6, rtol=0)
    positions = {1: torch.randn(8, 128, generator=torch.Generator().manual_seed(0))}
    tempme = TempMe(model, r=0, clips={1: 2}, remove_cross=0, remove_intra=0, positions=positions)
    joined = texts @ tempme.encode(pixels).T
    assert (joined[own, own] - joined[own, other]).abs().median() > 1e-3  # 500 times what rounding makes of the others


def test_real_files_through_the_evaluation_are_blind_to_order_too(model, folder):
    """Lossy coding differs a little in the two directions; nothing is as near to a video as its partner."""
    sampling = Sampling(kind="seconds")
    reader = FrameReader(DenseEncoder(model), frames=8)
    lines = json.loads((folder / "test.json").read_text())
    features = torch.cat([reader.encode(sampling.clips(folder / line["video"], reader.model)) for line in lines])
    nearest = (features @ features.T - 2 * torch.eye(14)).argmax(dim=1)
    assert nearest.tolist() == [number ^ 1 for number in range(14)]
    result = evaluate_retrieval(reader, read_retrieval(folder / "test.json"), folder)
    expected = model.encode_text([line["caption"] for line in lines]) @ features.T
    hits = 100 * float((expected.argmax(dim=1) == torch.arange(14)).float().mean())
    assert result.metrics["dual encoder"]["T2V R@1"] == pytest.approx(hits, abs=1e-4)
