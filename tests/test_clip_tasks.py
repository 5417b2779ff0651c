"""vid-TLDR's tasks end to end: tiny seeded checkpoints, really encoded videos, numbers recomputed by brute force."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import checkpoints
import video_checkpoints
from everyframe.backbone import ModelError, load, load_video, video_skeleton
from everyframe.cli import app
from everyframe.encoders import DenseEncoder, TempMe, ToMe, VidTLDR
from everyframe.evaluation.action_files import ActionSet, read_actions
from everyframe.evaluation.annotations import read_retrieval
from everyframe.evaluation.clips import Sampling
from everyframe.evaluation.frame_reader import FrameReader
from everyframe.evaluation.outcome import Outcome, architecture_of, facts_of, gflops_of
from everyframe.evaluation.question_files import read_questions
from everyframe.evaluation.questions import evaluate_questions
from everyframe.evaluation.recognition import SAMPLINGS, evaluate_base_to_novel, evaluate_recognition
from everyframe.evaluation.retrieval import TokenStore, evaluate_retrieval
from everyframe.tasks.ranking import UNRANKED, ranking, retrieval
from everyframe.training.adapters import Tuning
from everyframe.training.export import save_tempme
from everyframe.video import middle_frames, sample_frames, second_frames, spread_frames, write_video

REDUCE = [20, 10]
TEXTS = [
    "a red cat",
    "the dog walks",
    "a person opens the door",
    "a blue circle",
    "green square and a cat",
    "dog in a door",
]
SIZES = [(40, 56), (56, 40), (32, 48), (48, 48), (64, 36)]
NAMES = ["v0", "v1", "v2", "v3", "v4"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Five videos of 9 to 33 frames, of several sizes and shapes, one in a folder of its own."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (9 + 6 * index, height // 4, width // 4, 3), dtype=np.uint8)
        path = folder / ("more/v4.mkv" if index == 4 else f"v{index}.mp4")
        frames = coarse.repeat(4, axis=1).repeat(4, axis=2)
        write_video(path, list(frames), fps=10, options={"preset": "ultrafast"})
    return folder


def all_frames(videos: Path, name: str) -> np.ndarray:
    path = next(path for path in videos.rglob("*") if path.stem == name)
    return np.stack([sample.pixels for sample in sample_frames(path, None)])


@pytest.fixture(scope="module")
def umt_file(tmp_path_factory) -> Path:
    return video_checkpoints.umt(tmp_path_factory.mktemp("umt") / "retrieval.pth")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return video_checkpoints.bert_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def umt(umt_file, words):
    return load_video(umt_file, tokenizer=words, device="cpu", **video_checkpoints.UMT)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Five videos, the second with two texts."""
    captions = [TEXTS[0], [TEXTS[1], TEXTS[2]], TEXTS[3], TEXTS[4], TEXTS[5]]
    path = tmp_path_factory.mktemp("annotations") / "pairs.json"
    entries = [{"video": f"{name}.mp4", "caption": text} for name, text in zip(NAMES, captions, strict=True)]
    path.write_text(json.dumps(entries))
    return path


class Counting:
    """A reader that counts the clips it read, and can be killed."""

    def __init__(self, reader, *, kill_after: int | None = None):
        self.reader = reader
        self.model = reader.model
        self.settings = reader.settings
        self.pool = reader.pool
        self.read = 0
        self._kill_after = kill_after

    def tokens(self, pixels):
        if self.read == self._kill_after:
            raise KeyboardInterrupt
        self.read += 1
        return self.reader.tokens(pixels)

    def encode(self, pixels):
        return self.pool(self.tokens(pixels).tokens)


# --- retrieval -------------------------------------------------------------------------------------------


def recalls(scores, right, k) -> float:
    """Share of rows with a right answer among the k best, by sorting."""
    order = np.argsort(-np.asarray(scores), axis=1, kind="stable")
    return 100 * float(np.mean([bool(set(row[:k].tolist()) & set(a)) for row, a in zip(order, right, strict=True)]))


@pytest.fixture(scope="module")
def by_hand(umt, videos):
    """Tokens of each video and the similarities of all pairs."""
    reader = VidTLDR(umt, REDUCE)
    tokens = []
    for name in NAMES:
        frames = all_frames(videos, name)
        clip = umt.preprocess(frames[middle_frames(len(frames), umt.frames)])
        tokens.append(reader.tokens(clip[None]).tokens)
    features = torch.cat([reader.pool(token) for token in tokens])
    return torch.cat(tokens), (umt.encode_text(TEXTS) @ features.T).numpy()


VIDEOS_OF_TEXT = [[0], [1], [1], [2], [3], [4]]
TEXTS_OF_VIDEO = [[0], [1, 2], [3], [4], [5]]


def assert_recalls(metrics, t2v, v2t):
    for k in (1, 5, 10):
        expected = recalls(t2v, VIDEOS_OF_TEXT, k), recalls(v2t, TEXTS_OF_VIDEO, k)
        assert (metrics[f"T2V R@{k}"], metrics[f"V2T R@{k}"]) == pytest.approx(expected)
        assert metrics[f"mean R@{k}"] == pytest.approx(sum(expected) / 2)
    ranks = [list(np.argsort(-row)).index(video) + 1 for row, (video,) in zip(t2v, VIDEOS_OF_TEXT, strict=True)]
    assert metrics["T2V MnR"] == pytest.approx(np.mean(ranks))
    assert metrics["T2V MdR"] == np.median(ranks)


def test_dual_encoder_equals_brute_force(umt, videos, pairs, by_hand):
    result = evaluate_retrieval(VidTLDR(umt, REDUCE), read_retrieval(pairs), videos, rerank=0)
    assert list(result.metrics) == ["dual encoder"]
    assert_recalls(result.metrics["dual encoder"], by_hand[1], by_hand[1].T)
    assert (result.videos, result.wanted, result.queries, result.partial) == (5, 5, 6, False)
    assert (result.method, result.architecture) == ("vidtldr", None)
    assert result.settings["reader"] == {"encoder": "vidtldr", "reduce": REDUCE}


@pytest.mark.parametrize("rerank", [2, 128])
def test_reranking_equals_brute_force(umt, videos, pairs, by_hand, rerank):
    tokens, similarity = by_hand
    scores = torch.stack([umt.match(TEXTS, token[None]) for token in tokens], dim=1).numpy()
    one_by_one = umt.match([TEXTS[3]], tokens[2:3]).item()
    assert scores[3, 2] == pytest.approx(one_by_one, abs=1e-5)
    t2v, v2t = np.full((6, 5), UNRANKED), np.full((5, 6), UNRANKED)
    for text in range(6):
        best = np.argsort(-similarity[text])[:rerank]
        t2v[text, best] = scores[text, best]
    for video in range(5):
        best = np.argsort(-similarity[:, video])[:rerank]
        v2t[video, best] = scores[best, video]
    result = evaluate_retrieval(VidTLDR(umt, REDUCE), read_retrieval(pairs), videos, rerank=rerank)
    assert list(result.metrics) == ["re-ranked", "dual encoder"]
    assert_recalls(result.metrics["dual encoder"], similarity, similarity.T)
    metrics = result.metrics["re-ranked"]
    for k in (1,) if rerank == 2 else (1, 5, 10):  # beyond the candidates sorting and counting break ties apart
        assert metrics[f"T2V R@{k}"] == pytest.approx(recalls(t2v, VIDEOS_OF_TEXT, k))
        assert metrics[f"V2T R@{k}"] == pytest.approx(recalls(v2t, TEXTS_OF_VIDEO, k))
    rank = [
        1 + sum(row > row[v]) + sum(np.delete(row, v) == row[v]) / 2
        for row, (v,) in zip(t2v, VIDEOS_OF_TEXT, strict=True)
    ]
    assert metrics["T2V MnR"] == pytest.approx(np.mean(rank))


def test_reranking_scores_each_wanted_pair_once(umt, videos, pairs, monkeypatch):
    asked = []
    own = type(umt).match

    def match(self, texts, tokens, **options):
        asked.extend(texts)
        return own(self, texts, tokens, **options)

    monkeypatch.setattr(type(umt), "match", match)
    evaluate_retrieval(VidTLDR(umt), read_retrieval(pairs), videos, rerank=128)
    assert len(asked) == 1 + 6 * 5  # the first asks whether there is a cross-encoder at all


def test_tome_and_the_unmodified_model_are_readers_too(umt, videos, pairs):
    items = read_retrieval(pairs)
    plain = evaluate_retrieval(VidTLDR(umt), items, videos, rerank=0)
    merged = evaluate_retrieval(ToMe(umt, [20, 10]), items, videos, rerank=0)
    assert (plain.method, merged.method) == ("none", "tome")
    assert merged.gflops < plain.gflops


def test_the_first_seconds_of_a_video(umt, videos, pairs):
    items = dataclasses.replace(read_retrieval(pairs), end_seconds=0.8)
    seen = []

    class Watching(Counting):
        def tokens(self, pixels):
            seen.append(pixels)
            return super().tokens(pixels)

    evaluate_retrieval(Watching(VidTLDR(umt)), items, videos, rerank=0)
    for name, clip in zip(NAMES, seen, strict=True):
        frames = all_frames(videos, name)[:8]
        torch.testing.assert_close(clip[0], umt.preprocess(frames[middle_frames(8, 4)]))


def test_a_killed_run_goes_on_from_its_cache(umt, videos, pairs, tmp_path):
    items, cache = read_retrieval(pairs), tmp_path / "cache"
    killed = Counting(VidTLDR(umt, REDUCE), kill_after=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate_retrieval(killed, items, videos, cache=cache)
    kept = sorted(cache.glob("*.npz"))
    assert len(kept) == 3
    assert not [path for path in cache.iterdir() if path not in kept]  # neither halves nor token files
    kept[0].write_bytes(kept[0].read_bytes()[:-200])  # damage counts as absent
    resumed = Counting(VidTLDR(umt, REDUCE))
    result = evaluate_retrieval(resumed, items, videos, cache=cache)
    assert resumed.read == 3
    again = Counting(VidTLDR(umt, REDUCE))
    assert evaluate_retrieval(again, items, videos, cache=cache).metrics == result.metrics
    assert again.read == 0
    fresh = evaluate_retrieval(VidTLDR(umt, REDUCE), items, videos)
    assert fresh.metrics == result.metrics
    other = Counting(VidTLDR(umt, [5]))
    evaluate_retrieval(other, items, videos, cache=cache)
    assert other.read == 5


def test_names_that_fit_several_files_fail_before_anything_is_read(umt, videos, pairs, tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "v4.mp4").write_bytes(b"")
    reader = Counting(VidTLDR(umt))
    with pytest.raises(ValueError, match=r"v4\.mp4 could be .*a/v4\.mp4 or .*b/v4\.mp4"):
        evaluate_retrieval(reader, read_retrieval(pairs), tmp_path)
    assert reader.read == 0


def test_the_cache_notices_another_file(umt, videos, pairs, tmp_path):
    for name in NAMES[:4]:
        (tmp_path / f"{name}.mp4").write_bytes((videos / f"{name}.mp4").read_bytes())
    items, cache = read_retrieval(pairs).only([True] * 4 + [False]), tmp_path / "cache"
    evaluate_retrieval(VidTLDR(umt), items, tmp_path, rerank=0, cache=cache)
    (tmp_path / "v0.mp4").write_bytes((videos / "more" / "v4.mkv").read_bytes())
    changed = Counting(VidTLDR(umt))
    evaluate_retrieval(changed, items, tmp_path, rerank=0, cache=cache)
    assert changed.read == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_token_store_keeps_every_dtype(tmp_path, dtype):
    tokens = [torch.randn(3, 4).to(dtype) for _ in range(2)]
    with TokenStore(tmp_path / "here") as store:
        for token in tokens:
            store.add(token, 5)
        for number, token in enumerate(tokens):
            torch.testing.assert_close(store[number], token, rtol=0, atol=0)
        with pytest.raises(IndexError):
            store[2]
    assert not list((tmp_path / "here").iterdir())


def test_missing_and_damaged_videos_are_left_out(umt, videos, pairs, tmp_path):
    for name in ("v0", "v1", "v3"):
        (tmp_path / f"{name}.mp4").write_bytes((videos / f"{name}.mp4").read_bytes())
    (tmp_path / "v2.mp4").write_bytes(b"no video at all, just some bytes")
    result = evaluate_retrieval(VidTLDR(umt, REDUCE), read_retrieval(pairs), tmp_path, rerank=0)
    assert [(failure.video, failure.kind) for failure in result.failures] == [
        ("v2.mp4", "unreadable"),
        ("v4.mp4", "missing"),
    ]
    assert (result.videos, result.wanted, result.queries, result.partial) == (3, 5, 4, True)
    whole = read_retrieval(pairs).only([True, True, False, True, False])
    expected = evaluate_retrieval(VidTLDR(umt, REDUCE), whole, videos, rerank=0)
    assert result.metrics == expected.metrics
    with pytest.raises(ValueError, match=r"none of the 5 videos can be used: v0\.mp4: is not in"):
        (tmp_path / "empty").mkdir()
        evaluate_retrieval(VidTLDR(umt), read_retrieval(pairs), tmp_path / "empty", rerank=0)


def test_models_without_the_parts_fail_at_once(videos, pairs, words, tmp_path, umt):
    projected = load_video(
        video_checkpoints.umt(tmp_path / "vision.pth", "projected"), device="cpu",
        heads=4, frames=4, image_size=32,
    )  # fmt: skip
    with pytest.raises(ModelError, match="no text tower"):
        evaluate_retrieval(VidTLDR(projected), read_retrieval(pairs), videos)
    clip = checkpoints.clip(tmp_path / "clip", width=32)
    vifi = load_video(
        video_checkpoints.vifi(tmp_path / "vifi.pth"), tokenizer=clip, device="cpu", **video_checkpoints.VIFI
    )
    with pytest.raises(ModelError, match=r"cannot match texts.*--rerank 0\) reports the dual encoder alone"):
        evaluate_retrieval(VidTLDR(vifi), read_retrieval(pairs), videos)
    assert evaluate_retrieval(VidTLDR(vifi), read_retrieval(pairs), videos, rerank=0).videos == 5
    with pytest.raises(ValueError, match="max_tokens has no meaning with"):
        evaluate_retrieval(VidTLDR(vifi), read_retrieval(pairs), videos, rerank=0, max_tokens=32)
    with pytest.raises(ValueError, match="rerank must be at least 0, got -1"):
        evaluate_retrieval(VidTLDR(umt), read_retrieval(pairs), videos, rerank=-1)


def test_texts_that_are_cut_are_said_once(umt, videos, pairs):
    with pytest.warns(
        UserWarning, match=r"texts are longer than the model is told to take: .* cut to 4 tokens"
    ) as caught:
        evaluate_retrieval(VidTLDR(umt), read_retrieval(pairs), videos, max_tokens=4)
    assert len([entry for entry in caught if "cut to" in str(entry.message)]) == 1


# --- retrieval with models of single frames -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "count", "fps", "expected"),
    [
        (100, 4, 10.0, [0, 30, 60, 90]),  # seconds 0, 10, .., 90: ten, of which 0, 3, 6 and 9
        (95, 4, 10.0, [0, 30, 60, 90]),
        (40, 4, 10.0, [0, 10, 20, 30]),  # as many as asked for
        (31, 4, 10.2, [0, 10, 20, 30]),
        (30, 4, 10.0, [0, 9, 19, 29]),  # three seconds: all frames count instead
        (2, 4, 10.0, [0, 0, 0, 1]),
        (9, 3, None, [0, 4, 8]),
        (9, 3, 0.3, [0, 4, 8]),
        (300, 3, 29.97, [0, 120, 270]),  # ten seconds, of which 0, int(4.5) and 9
        (1, 1, 25.0, [0]),
    ],
)
def test_second_frames_by_hand(num_frames, count, fps, expected):
    assert second_frames(num_frames, count, fps=fps) == expected


def test_second_frames_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="fps must be finite and > 0, or None where it is not known, got 0"):
        second_frames(10, 2, fps=0)
    with pytest.raises(ValueError, match="num_frames and count must be at least 1, got 0 and 2"):
        second_frames(0, 2, fps=1)


@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_sums_and_ranks_of_many_captions_equal_counting_pair_by_pair(levels):
    """MSVD: several captions of a video, ties everywhere; an implementation of its own, with plain loops."""
    rng = np.random.default_rng(levels)
    videos_of_text = [[int(video)] for video in rng.integers(0, 12, 40)] + [[video] for video in range(12)]
    scores = rng.integers(0, levels, (52, 12)) / levels
    texts_of_video = [[text for text, videos in enumerate(videos_of_text) if video in videos] for video in range(12)]
    with (
        pytest.warns(UserWarning, match="exactly the score of the right one")
        if levels < 1000
        else contextlib.nullcontext()
    ):
        found = retrieval(scores, scores.T, videos_of_text)
    for one, table, right in ((found.t2v, scores, videos_of_text), (found.v2t, scores.T, texts_of_video)):
        ranks = []
        for row, answers in zip(table.tolist(), right, strict=True):
            best = max(row[answer] for answer in answers)
            wrong = [value for place, value in enumerate(row) if place not in answers]
            ranks.append(1 + sum(value > best for value in wrong) + sum(value == best for value in wrong) / 2)
        shares = [100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)]
        assert one.r_sum == pytest.approx(sum(shares))
        assert one.mean_rank == pytest.approx(sum(ranks) / len(ranks))
        low, high = sorted(ranks)[len(ranks) // 2 - 1 : len(ranks) // 2 + 1]  # both are even numbers of queries
        assert one.median_rank == (low + high) / 2
    assert ranking(np.array([1.0, 3.0, 7.0, 40.0])).r_sum == 25 + 50 + 75


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory):
    return load(checkpoints.clip(tmp_path_factory.mktemp("frames"), width=32), device="cpu")


def of_frames(model, encoder, videos, names, count) -> torch.Tensor:
    """Features of videos, frame by frame from a plain decode: the frames are 10 a second, so that all count."""
    rows = []
    for name in names:
        frames = all_frames(videos, name)
        numbers = np.linspace(0, len(frames) - 1, count).astype(int)
        pixels = model.preprocess(np.ascontiguousarray(frames[numbers]))
        each = torch.cat([encoder.encode(frame[None]) for frame in pixels])
        rows.append(torch.nn.functional.normalize(each.mean(dim=0), dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["mean", "tome", "tempme"])
def test_an_image_model_is_evaluated_by_its_frames(clip_model, videos, pairs, method):
    encoder = {
        "mean": lambda: DenseEncoder(clip_model),
        "tome": lambda: ToMe(clip_model, [2, 1]),
        "tempme": lambda: TempMe(clip_model, r=1, clips={1: 2}, remove_cross=20, remove_intra=10),
    }[method]()
    reader = FrameReader(encoder, frames=6)
    result = evaluate_retrieval(reader, read_retrieval(pairs), videos)
    if method == "tempme":
        clips = [Sampling(kind="seconds").clips(next(videos.rglob(f"{name}.*")), reader.model) for name in NAMES]
        features = torch.cat([encoder.encode(clip) for clip in clips])
    else:
        features = of_frames(clip_model, encoder, videos, NAMES, 6)
    similarity = (clip_model.encode_text(TEXTS) @ features.T).numpy()
    assert list(result.metrics) == ["dual encoder"]
    metrics = result.metrics["dual encoder"]
    assert_recalls(metrics, similarity, similarity.T)
    assert metrics["T2V R-Sum"] == pytest.approx(sum(metrics[f"T2V R@{k}"] for k in (1, 5, 10)))
    assert (result.method, result.settings["sampling"]["kind"], result.settings["frames"]) == (method, "seconds", 6)
    assert result.gflops == pytest.approx(sum(encoder.macs(6, "all").values()) / 1e9)


def test_tempme_that_merges_and_joins_nothing_is_the_mean(clip_model, videos, pairs):
    items = read_retrieval(pairs)
    mean, nothing = (
        evaluate_retrieval(FrameReader(encoder, frames=6), items, videos).metrics
        for encoder in (DenseEncoder(clip_model), TempMe(clip_model, r=0, clips={}, remove_cross=0, remove_intra=0))
    )
    assert mean == nothing


def test_texts_of_a_clip_model_can_be_cut(clip_model):
    model = FrameReader(DenseEncoder(clip_model), frames=2).model
    words = model.text(model._tokenizer([TEXTS[2]])[0]).float()
    torch.testing.assert_close(
        model.encode_text([TEXTS[2]], max_tokens=77), torch.nn.functional.normalize(words, dim=1), atol=1e-6, rtol=0
    )
    ids = model._tokenizer([TEXTS[2]])[0]
    cut = torch.cat((ids[:, :3], ids[:, -1:]), dim=1)
    expected = torch.nn.functional.normalize(model.text(cut).float(), dim=1)
    torch.testing.assert_close(model.encode_text([TEXTS[2]], max_tokens=4), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="max_tokens must be at least 3"):
        model.encode_text(TEXTS, max_tokens=2)


def test_the_training_videos_of_msrvtt_1k_a_come_from_all_splits(tmp_path):
    known = [
        {"video_id": f"video{number}", "split": split} for number, split in enumerate(["train", "test", "validate"])
    ]
    sentences = [{"video_id": entry["video_id"], "caption": f"text {k}"} for entry in known for k in range(2)]
    (tmp_path / "all.json").write_text(json.dumps({"videos": known, "sentences": sentences}))
    (tmp_path / "train.9k.csv").write_text("video_id\nvideo0\nvideo1\n")
    (tmp_path / "keys.csv").write_text('key,video_id,sentence\nret0,video2,"a, b"\n')
    for name, videos in (("train.9k.csv", ("video0", "video1")), ("keys.csv", ("video2",))):
        found = read_retrieval(tmp_path / "all.json", split="all", only=tmp_path / name)
        assert (found.videos, len(found.texts)) == (videos, 2 * len(videos))
    assert read_retrieval(tmp_path / "all.json", split="test").videos == ("video1",)
    with pytest.raises(ValueError, match="has no split 'val'; its splits are test, train, validate, or all"):
        read_retrieval(tmp_path / "all.json", split="val")


def test_short_videos_are_said_and_used(clip_model, videos, pairs):
    items = read_retrieval(pairs).only([True, False, False, False, True])
    with pytest.warns(UserWarning, match=r"v0\.mp4: shows 9 frames, fewer than the 12 asked for: some are read twice"):
        result = evaluate_retrieval(FrameReader(DenseEncoder(clip_model)), items, videos)
    assert result.videos == 2


def test_frame_readers_refuse_what_makes_no_sense(umt, clip_model, videos, pairs):
    with pytest.raises(TypeError, match="encoder must be one of an image model"):
        FrameReader(VidTLDR(umt))
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        FrameReader(DenseEncoder(clip_model), frames=0)
    with pytest.raises(ModelError, match=r"has no cross-encoder.*--rerank 0"):
        evaluate_retrieval(FrameReader(DenseEncoder(clip_model)), read_retrieval(pairs), videos, rerank=5)
    with pytest.raises(TypeError, match=r"reads single frames; FrameReader"):
        evaluate_retrieval(VidTLDR(clip_model), read_retrieval(pairs), videos)
    with pytest.raises(ValueError, match=r"pixels must be \[V, 12, 3"):
        FrameReader(DenseEncoder(clip_model)).encode(torch.zeros(1, 3, 3, 32, 32))


# --- questions -------------------------------------------------------------------------------------------

ANSWERS = ["cat", "dog", "a door", "red", "yes", "no", "two"]
QUESTIONS = [
    ("v0", "what is in the door?", "cat"),
    ("v0", "who walks", "dog"),
    ("v3", "what walks", "red"),
    ("v1", "is the cat red?", "yes"),
    ("v4", "what is the square", "a bicycle"),
    ("v0", "what is blue", "no"),
]


@pytest.fixture(scope="module")
def answering_file(tmp_path_factory) -> Path:
    return video_checkpoints.umt(tmp_path_factory.mktemp("qa") / "answers.pth", "answers")


@pytest.fixture(scope="module")
def answering(answering_file, words):
    return load_video(answering_file, tokenizer=words, device="cpu", **video_checkpoints.UMT)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "qa_test.json"
    path.write_text(json.dumps([{"video": v, "question": q, "answer": a} for v, q, a in QUESTIONS]))
    return path


def test_questions_equal_asking_one_by_one(answering, asked, videos):
    reader = VidTLDR(answering, REDUCE)
    expected = []
    for name, question, _ in QUESTIONS:
        frames = all_frames(videos, name)
        clip = answering.preprocess(frames[middle_frames(len(frames), 4)])
        tokens = reader.tokens(clip[None]).tokens
        expected.append(ANSWERS[answering.rank_answers([question], tokens, ANSWERS, top=3).item()])
    result = evaluate_questions(reader, read_questions(asked), ANSWERS, videos, top=3)
    assert [result.details["given"][str(number)] for number in range(6)] == expected
    correct = [own == right for own, (_, _, right) in zip(expected, QUESTIONS, strict=True)]
    assert result.metrics["answers"]["accuracy"] == pytest.approx(100 * np.mean(correct))
    assert result.metrics["answers"]["accuracy what"] == pytest.approx(100 * np.mean(np.take(correct, [0, 2, 4, 5])))
    assert result.details["questions_by_type"] == {"what": 4, "who": 1, "other": 1}
    assert result.details["questions_without_a_listed_answer"] == 1
    assert (result.videos, result.queries) == (4, 6)


def test_right_answers_are_counted(answering, asked, videos, tmp_path):
    """With what the model says as the truth, all is right; with one changed, five of six."""
    items = read_questions(asked)
    given = evaluate_questions(VidTLDR(answering), items, ANSWERS, videos).details["given"]
    agreeing = [
        dataclasses.replace(question, answer=given[str(number)]) for number, question in enumerate(items.questions)
    ]
    same = dataclasses.replace(items, questions=tuple(agreeing))
    assert evaluate_questions(VidTLDR(answering), same, ANSWERS, videos).metrics["answers"]["accuracy"] == 100
    agreeing[2] = dataclasses.replace(agreeing[2], answer="never said")
    changed = dataclasses.replace(items, questions=tuple(agreeing))
    result = evaluate_questions(VidTLDR(answering), changed, ANSWERS, videos)
    assert result.metrics["answers"]["accuracy"] == pytest.approx(500 / 6)


def test_cut_questions_and_answers_are_said_once_each(answering, asked, videos):
    items = read_questions(asked)
    long = [dataclasses.replace(question, question="what is " * 30) for question in items.questions]
    answers = [*ANSWERS, "a red cat and a dog in the door"]
    with pytest.warns(UserWarning, match="texts are longer than") as caught:
        evaluate_questions(VidTLDR(answering), dataclasses.replace(items, questions=tuple(long)), answers, videos)
    limits = sorted(int(str(entry.message).split("cut to ")[1].split()[0]) for entry in caught)
    assert limits == [5, 25]


def test_questions_go_on_from_their_cache(answering, asked, videos, tmp_path):
    items = read_questions(asked)
    with pytest.raises(KeyboardInterrupt):
        killed = Counting(VidTLDR(answering), kill_after=2)
        evaluate_questions(killed, items, ANSWERS, videos, cache=tmp_path)
    resumed = Counting(VidTLDR(answering))
    result = evaluate_questions(resumed, items, ANSWERS, videos, cache=tmp_path)
    assert resumed.read == 2
    assert result.details == evaluate_questions(VidTLDR(answering), items, ANSWERS, videos).details
    other = Counting(VidTLDR(answering))
    evaluate_questions(other, items, ANSWERS[:5], videos, cache=tmp_path)  # other answers, other choices
    assert other.read == 4


def test_questions_of_missing_videos_are_left_out(answering, asked, videos, tmp_path):
    (tmp_path / "v0.mp4").write_bytes((videos / "v0.mp4").read_bytes())
    result = evaluate_questions(VidTLDR(answering), read_questions(asked), ANSWERS, tmp_path)
    assert [failure.video for failure in result.failures] == ["v3", "v1", "v4"]
    assert (result.videos, result.wanted, result.queries) == (1, 4, 3)


def test_answering_needs_a_decoder(umt, asked, videos):
    with pytest.raises(ModelError, match="no text_decoder"):
        evaluate_questions(VidTLDR(umt), read_questions(asked), ANSWERS, videos)
    with pytest.raises(ValueError, match="answers is empty"):
        evaluate_questions(VidTLDR(umt), read_questions(asked), [], videos)


# --- recognition -----------------------------------------------------------------------------------------

LABELS = ["walks", "opens_a_door", "Sits Down"]


@pytest.fixture(scope="module")
def videomae_folder(tmp_path_factory) -> Path:
    return video_checkpoints.videomae(tmp_path_factory.mktemp("videomae"))


@pytest.fixture(scope="module")
def videomae(videomae_folder):
    return load_video(videomae_folder, device="cpu")


def split(tmp_path: Path, names=NAMES) -> Path:
    path = tmp_path / "test.csv"
    path.write_text("".join(f"{name}.mp4 {number % 3}\n" for number, name in enumerate(names)))
    return path


def squares(frames: np.ndarray) -> list[np.ndarray]:
    """Left or top, middle, right or bottom."""
    _, height, width, _ = frames.shape
    side = min(height, width)
    starts = [0, (max(height, width) - side) // 2, max(height, width) - side]
    if height > width:
        return [frames[:, start : start + side] for start in starts]
    return [frames[:, :, start : start + side] for start in starts]


@pytest.mark.parametrize("dataset", ["ucf101", "ssv2"])
def test_recognition_equals_transformers_view_by_view(videomae, videomae_folder, videos, tmp_path, dataset):
    import transformers

    reference = transformers.VideoMAEForVideoClassification.from_pretrained(videomae_folder).eval()
    expected = []
    for name in NAMES:
        frames = all_frames(videos, name)
        if dataset == "ucf101":  # every 4th frame, five windows of four
            grid = frames[::4]
            grid = np.concatenate([grid, np.repeat(grid[-1:], max(0, 4 - len(grid)), axis=0)])
            step = (len(grid) - 4) / 4
            views = [grid[int(view * step) : int(view * step) + 4] for view in range(5)]
        else:
            tick = len(frames) / 4
            both = np.sort([int(tick / 2 + tick * k) for k in range(4)] + [int(tick * k) for k in range(4)])
            views = [frames[both[0::2]], frames[both[1::2]]]
        probabilities = []
        for view in views:
            for square in squares(view):
                with torch.no_grad():
                    logits = reference(pixel_values=videomae.preprocess(square)[None]).logits
                probabilities.append(logits.softmax(dim=-1)[0])
        expected.append(torch.stack(probabilities).mean(dim=0))
    labels = [0, 1, 2, 0, 1]
    best = torch.stack(expected).argmax(dim=1).tolist()
    items = read_actions(split(tmp_path))
    result = evaluate_recognition(VidTLDR(videomae), items, videos, dataset=dataset)
    assert result.metrics["views averaged"]["top-1"] == pytest.approx(
        100 * np.mean([own == label for own, label in zip(best, labels, strict=True)])
    )
    assert result.metrics["views averaged"]["top-5"] == 100
    assert result.details["views"] == (15 if dataset == "ucf101" else 6)
    agreeing = dataclasses.replace(items, labels=tuple(best))
    assert evaluate_recognition(VidTLDR(videomae), agreeing, videos, dataset=dataset).metrics == {
        "views averaged": {"top-1": 100, "top-5": 100}
    }


def test_classes_are_matched_by_name(videomae, videos, tmp_path):
    """The dataset's order is not the model's: opens a door, walks, sits down."""
    by_name = ActionSet(videos=tuple(NAMES), labels=(0, 1, 2, 0, 1), classes=tuple(LABELS), path="x", sha256="")
    by_number = dataclasses.replace(by_name, labels=(1, 0, 2, 1, 0), classes=None)
    reader = VidTLDR(videomae, [8])
    named, numbered = (evaluate_recognition(reader, items, videos) for items in (by_name, by_number))
    assert named.metrics == numbered.metrics
    with pytest.raises(ValueError, match="class 'jumps' is none of the model's 3 labels"):
        evaluate_recognition(reader, dataclasses.replace(by_name, classes=("walks", "jumps", "sits")), videos)
    with pytest.raises(ValueError, match=r"has label 3 but .* has 3 classes, numbered from 0"):
        evaluate_recognition(reader, dataclasses.replace(by_number, labels=(3, 0, 0, 0, 0)), videos)


def test_recognition_needs_a_classifier(umt, videos, tmp_path):
    with pytest.raises(ModelError, match="has no classifier"):
        evaluate_recognition(VidTLDR(umt), read_actions(split(tmp_path)), videos)


def test_recognition_goes_on_from_its_cache(videomae, videos, tmp_path):
    items = read_actions(split(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        evaluate_recognition(Counting(VidTLDR(videomae), kill_after=2), items, videos, cache=tmp_path / "cache")
    resumed = Counting(VidTLDR(videomae))
    result = evaluate_recognition(resumed, items, videos, cache=tmp_path / "cache")
    assert resumed.read == 3
    assert result.metrics == evaluate_recognition(VidTLDR(videomae), items, videos).metrics


def test_crops_of_a_share_of_the_picture(videomae, videos):
    frames = all_frames(videos, "v0")  # 40 high, 56 wide
    sampling = Sampling(kind="spread", crops=1, crop_share=0.8)
    clips = sampling.clips(videos / "v0.mp4", videomae)
    expected = frames[spread_frames(len(frames), 4)][:, 4:36, 12:44]
    torch.testing.assert_close(clips[0], videomae.preprocess(np.ascontiguousarray(expected)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0}, "views and crops must be at least 1, got 0 and None"),
        ({"views": 2}, "'middle' sampling makes one view"),
        ({"crop_share": 0.0}, r"crop_share must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_sampling_raises(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_retrieval_and_questions_read_one_clip(umt, answering, pairs, asked, videos):
    with pytest.raises(ValueError, match="this task reads one clip per video, got 5 views of 3 crops"):
        evaluate_retrieval(VidTLDR(umt), read_retrieval(pairs), videos, sampling=SAMPLINGS["ucf101"])
    with pytest.raises(ValueError, match="this task reads one clip per video, got 1 views of 2 crops"):
        evaluate_questions(VidTLDR(answering), read_questions(asked), ANSWERS, videos, sampling=Sampling(crops=2))


def test_videomaes_protocols():
    assert SAMPLINGS["ucf101"] == Sampling(kind="strided", views=5, stride=4, crops=3)
    assert SAMPLINGS["ssv2"] == Sampling(kind="alternate", views=2, crops=3)


# --- base to novel ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return checkpoints.clip(tmp_path_factory.mktemp("clip"), width=32)


@pytest.fixture(scope="module")
def vifi_file(tmp_path_factory) -> Path:
    return video_checkpoints.vifi(tmp_path_factory.mktemp("vifi") / "vifi.pth")


@pytest.fixture(scope="module")
def vifi(vifi_file, clip_folder):
    return load_video(vifi_file, tokenizer=clip_folder, device="cpu", **video_checkpoints.VIFI)


BASE, NOVEL = ["red cat", "dog", "door"], ["circle", "green square"]


def test_base_to_novel_equals_clip_frame_by_frame(vifi, videos):
    best = {}
    for split_name, names, classes in (("base", NAMES[:3], BASE), ("novel", NAMES[3:], NOVEL)):
        texts = vifi.encode_text([f"a photo of a {name}." for name in classes])
        best[split_name] = []
        for name in names:
            frames = all_frames(videos, name)
            with torch.no_grad():
                features = vifi.vision(vifi.preprocess(frames[spread_frames(len(frames), 3)])).mean(dim=0)
            best[split_name].append(int((texts @ (features / features.norm())).argmax()))
    base = ActionSet(videos=tuple(NAMES[:3]), labels=(0, 1, 2), classes=tuple(BASE), path="base", sha256="")
    novel = ActionSet(videos=tuple(NAMES[3:]), labels=(0, 1), classes=tuple(NOVEL), path="novel", sha256="")
    result = evaluate_base_to_novel(VidTLDR(vifi), base, novel, videos)
    tops = [
        100 * np.mean(np.array(best[name]) == np.array(items.labels))
        for name, items in (("base", base), ("novel", novel))
    ]
    hm = 2 * tops[0] * tops[1] / sum(tops) if sum(tops) else 0
    assert result.metrics["class names"] == pytest.approx({"base": tops[0], "novel": tops[1], "HM": hm})
    agreeing = [
        dataclasses.replace(items, labels=tuple(best[name])) for name, items in (("base", base), ("novel", novel))
    ]
    result = evaluate_base_to_novel(VidTLDR(vifi), *agreeing, videos)
    assert result.metrics["class names"] == {"base": 100, "novel": 100, "HM": 100}
    assert (result.videos, result.wanted, len(result.annotations)) == (5, 5, 2)


def test_base_to_novel_bad_input(vifi, videomae, videos):
    named = ActionSet(videos=("v0",), labels=(0,), classes=("dog", "cat"), path="base.txt", sha256="")
    with pytest.raises(ValueError, match=r"base\.txt: the novel classes have no names"):
        evaluate_base_to_novel(VidTLDR(vifi), named, dataclasses.replace(named, classes=None), videos)
    with pytest.raises(ValueError, match=r'prompt must hold "\{\}"'):
        evaluate_base_to_novel(VidTLDR(vifi), named, named, videos, prompt="a photo")
    with pytest.raises(ModelError, match="has no text side"):
        evaluate_base_to_novel(VidTLDR(videomae), named, named, videos)


# --- published -------------------------------------------------------------------------------------------


def test_ours_beside_the_papers():
    reader = VidTLDR(video_skeleton("umt-b"), VidTLDR.preset("umt-b/msrvtt-retrieval"))
    gflops = gflops_of(reader)
    assert gflops == pytest.approx(177.984, abs=1e-3)
    outcome = Outcome(
        task="retrieval",
        dataset="msrvtt",
        metrics={"re-ranked": {"T2V R@1": 52.0, "T2V MdR": 1.0}, "dual encoder": {"T2V R@1": 40.0}},
        videos=10,
        wanted=10,
        queries=10,
        gflops=gflops,
        settings={},
        annotations=[],
        architecture=architecture_of(reader.model),
        method="vidtldr",
    )
    assert outcome.rows() == [
        ("re-ranked", "T2V R@1", 52.0, 50.9),
        ("re-ranked", "T2V MdR", 1.0, None),
        ("dual encoder", "T2V R@1", 40.0, None),
        ("", "GFLOPs", gflops, 178.0),
    ]
    record = outcome.as_dict()
    assert record["difference"] == pytest.approx({"GFLOPs": gflops - 178.0, "T2V R@1": 1.1})
    alone = dataclasses.replace(outcome, metrics={"dual encoder": {"T2V R@1": 40.0}})
    assert alone.published() == {"GFLOPs": 178.0}


@pytest.mark.parametrize(
    ("model", "frames", "task", "make", "reduce", "stands"),
    [
        ("umt-b", 12, "msrvtt-retrieval", VidTLDR, [600, 200, 100], True),
        ("umt-b", 12, "msrvtt-retrieval", VidTLDR, [600, 200, 90], True),  # costs the same to a percent
        ("umt-b", 12, "msrvtt-retrieval", VidTLDR, [1], False),
        ("umt-b", 4, "msrvtt-retrieval", VidTLDR, [100, 100, 100], False),
        ("umt-l", 12, "msrvtt-retrieval", VidTLDR, [550, 400], True),  # Table A's, though its printed cost is another's
        ("umt-l", 12, "lsmdc-retrieval", VidTLDR, [600, 200, 100], False),
        ("umt-b", 12, "msvd-retrieval", functools.partial(ToMe, metric="tokens"), [100] * 12, True),
        ("umt-b", 12, "msvd-retrieval", ToMe, [100] * 12, False),  # by keys, which the tables do not count
        ("umt-b", 12, "msvd-retrieval", ToMe, [50] * 12, False),
        ("umt-b", 12, "msvd-retrieval", VidTLDR, [], True),
        ("videomae-b", 16, "ucf101-recognition", VidTLDR, [650, 200, 150, 150], True),
    ],
)
def test_published_figures_stand_beside_their_own_schedule_alone(model, frames, task, make, reduce, stands):
    reader = make(video_skeleton(model, frames=frames), reduce)
    dataset, _, kind = task.rpartition("-")
    outcome = Outcome(
        task=kind,
        dataset=dataset,
        metrics={"re-ranked" if kind == "retrieval" else "views": {"T2V R@1": 50.0}},
        videos=1,
        wanted=1,
        queries=1,
        settings={"reader": reader.settings},
        annotations=[],
        **facts_of(reader),
    )
    assert bool(outcome.published()) == stands


@pytest.mark.parametrize(
    ("name", "expected"), [("umt-l", "umt-l"), ("videomae-b", "videomae-b"), ("vifi-clip-b16",) * 2]
)
def test_architectures_are_known(name, expected):
    assert architecture_of(video_skeleton(name)) == expected


# --- the command line ------------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and error; an error of the user's is raised, as `main` gets it."""
    result = CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def umt_options(umt_file, words) -> list[object]:
    sizes = video_checkpoints.UMT
    return [
        "--model", umt_file, "--tokenizer", words, "--heads", sizes["heads"], "--text-heads", sizes["text_heads"],
        "--frames", sizes["frames"], "--image-size", sizes["image_size"], "--device", "cpu",
    ]  # fmt: skip


def test_cli_retrieval(umt, umt_options, pairs, videos, tmp_path):
    out = tmp_path / "result.json"
    common = ["--annotations", pairs, "--videos", videos, "--reduce", "20,10", "--rerank", 2, "--out", out]
    code, text, _ = run("retrieval", *umt_options, *common, "--dataset", "msrvtt")
    assert code == 0
    assert "msrvtt retrieval: 6 queries, 5 videos" in text and "re-ranked" in text and "GFLOPs" in text
    record = json.loads(out.read_text())
    expected = evaluate_retrieval(VidTLDR(umt, REDUCE), read_retrieval(pairs), videos, rerank=2, max_tokens=32)
    assert record["metrics"] == expected.metrics
    assert record["settings"]["max_tokens"] == 32
    assert (record["partial"], record["failures"], record["published"]) == (False, [], {})
    code, text, _ = run("retrieval", *umt_options, *common, "--json", "--quiet")
    assert code == 0 and json.loads(text)["metrics"] == expected.metrics


def test_cli_prints_ours_published_and_difference(umt_options, pairs, videos, tmp_path, monkeypatch):
    monkeypatch.setattr("everyframe.evaluation.outcome.architecture_of", lambda model: "umt-b")
    monkeypatch.setattr("everyframe.evaluation.outcome.is_published_schedule", lambda *row: True)
    arguments = ["retrieval", *umt_options, "--annotations", pairs, "--videos", videos, "--reduce", "20,10"]
    arguments += ["--max-tokens", 32]
    _, text, _ = run(*arguments, "--dataset", "lsmdc", "--rerank", 2, "--out", tmp_path / "r.json", "--quiet")
    assert text == ""
    record = json.loads((tmp_path / "r.json").read_text())
    ours = record["metrics"]["re-ranked"]["V2T R@10"]
    assert record["difference"]["V2T R@10"] == pytest.approx(ours - 63.1)
    _, text, _ = run(*arguments, "--dataset", "lsmdc", "--rerank", 2)
    rows = [line.split() for line in text.splitlines()]
    assert ["V2T", "R@10", f"{ours:.2f}", "63.1", f"{ours - 63.1:+.1f}"] in rows
    assert ["mean", "R@10", f"{record['metrics']['dual encoder']['mean R@10']:.2f}"] in rows  # the paper re-ranks
    assert any(row[:1] == ["GFLOPs"] and row[2] == "206.2" for row in rows)


def test_cli_knows_how_a_dataset_is_evaluated(umt_options, pairs, videos):
    arguments = ["retrieval", *umt_options, "--annotations", pairs, "--videos", videos, "--max-tokens", 32, "--json"]
    record = json.loads(run(*arguments, "--rerank", 0, "--dataset", "didemo")[1])
    assert record["settings"]["sampling"]["end_seconds"] == 30
    assert record["queries"] == 5  # a video's texts are one
    record = json.loads(run(*arguments, "--rerank", 0, "--dataset", "didemo", "--no-paragraph", "--seconds", 0.5)[1])
    assert (record["settings"]["sampling"]["end_seconds"], record["queries"]) == (0.5, 6)


def test_cli_says_what_is_missing_and_fails(umt_options, pairs, videos, tmp_path):
    (tmp_path / "v0.mp4").write_bytes((videos / "v0.mp4").read_bytes())
    code, text, errors = run("retrieval", *umt_options, "--annotations", pairs, "--videos", tmp_path, "--rerank", 0)
    assert code == 1
    assert "partial: 4 of 5 videos are left out" in text
    assert f"everyframe: missing: v3.mp4: is not in {tmp_path}" in errors
    code, text, errors = run(
        "retrieval", *umt_options, "--annotations", pairs, "--videos", tmp_path, "--rerank", 0, "--json"
    )
    record = json.loads(text)
    assert code == 1 and record["partial"] and len(record["failures"]) == 4


def test_cli_retrieval_of_an_image_model(clip_folder, pairs, videos, tmp_path):
    model = load(clip_folder, device="cpu")
    common = ["retrieval", "--model", clip_folder, "--annotations", pairs, "--videos", videos, "--device", "cpu"]
    common += ["--frames", 6, "--json"]
    schedule = {"r": 1, "clips": {1: 3}, "remove_cross": 20, "remove_intra": 10}
    for arguments, encoder in (
        ([], DenseEncoder(model)),
        (["--reduce", "2,1"], ToMe(model, [2, 1])),
        (["--clips", "1:3", "--r", 1, "--remove-cross", 20, "--remove-intra", 10], TempMe(model, **schedule)),
    ):
        record = json.loads(run(*common, *arguments)[1])
        expected = evaluate_retrieval(FrameReader(encoder, frames=6), read_retrieval(pairs), videos)
        assert record["metrics"] == expected.metrics
        assert record["settings"]["reader"] == json.loads(json.dumps(expected.settings["reader"]))
        assert record["gflops_per_clip"] == pytest.approx(expected.gflops)
    record = json.loads(run(*common, "--dataset", "msrvtt")[1])
    assert (record["settings"]["max_tokens"], record["settings"]["frames"]) == (32, 6)


def test_cli_retrieval_of_a_fine_tuned_folder(clip_folder, pairs, videos, tmp_path):
    """The schedule, the positions and the number of frames are the folder's own."""
    schedule = {"r": 1, "clips": {1: 2}, "remove_cross": 20, "remove_intra": 10}
    positions = {1: torch.randn(6, 32, generator=torch.Generator().manual_seed(0))}
    tuning = Tuning(load(clip_folder, device="cpu"), "full")
    save_tempme(tmp_path / "tuned", tuning, positions, schedule, {"recipe": {"frames": 6}})
    common = ["retrieval", "--model", tmp_path / "tuned", "--annotations", pairs, "--videos", videos, "--device", "cpu"]
    record = json.loads(run(*common, "--json")[1])
    encoder = TempMe(load(clip_folder, device="cpu"), **schedule, positions=positions)
    expected = evaluate_retrieval(FrameReader(encoder, frames=6), read_retrieval(pairs), videos)
    assert record["metrics"] == expected.metrics
    assert record["settings"]["reader"]["positions"] == expected.settings["reader"]["positions"]
    mean = json.loads(run(*common, "--json", "--method", "mean")[1])
    assert (mean["settings"]["reader"]["encoder"], mean["settings"]["frames"]) == ("mean", 6)
    with pytest.raises(ValueError, match="has its own schedule; leave out --preset"):
        run(*common, "--clips", "1:3")
    with pytest.raises(ValueError, match="--dtype bfloat16 has no meaning with a fine-tuned folder"):
        run(*common, "--dtype", "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "vidtldr"], "--method must be one of mean, tome, tempme for an image model, got 'vidtldr'"),
        (["--method", "tempme"], "--method tempme needs --preset, or --clips"),
        (["--method", "tome"], "--method tome needs --reduce"),
        (["--method", "mean", "--r", 2], "--r belongs to --method tempme"),
        (["--reduce", "2", "--clips", "1:2", "--method", "tempme"], "--reduce belongs to --method tome"),
        (["--preset", "msrvtt-b32", "--clips", "1:2"], "--preset says all of the schedule; leave out --clips"),
        (["--preset", "msrvtt-b32"], "clips names block"),
        (["--preset", "msrvtt-b32", "--dataset", "cats"], "--dataset must be one of msrvtt"),
        (["--heads", 2], "--heads has no meaning with a CLIP model"),
        (["--metric", "keys"], "--metric belongs to --method tome"),
        (["--clips", "1:5"], "12 frames, which clips=.* cannot join"),
    ],
)
def test_cli_says_what_an_image_model_cannot_do(clip_folder, pairs, videos, arguments, message):
    common = ["retrieval", "--model", clip_folder, "--annotations", pairs, "--videos", videos, "--device", "cpu"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of short videos
        with pytest.raises(ValueError, match=message):
            run(*common, *arguments)


def test_cli_options_of_tempme_have_no_meaning_with_a_video_model(umt_options, pairs, videos):
    with pytest.raises(ValueError, match="--clips has no meaning with a video model"):
        run("retrieval", *umt_options, "--annotations", pairs, "--videos", videos, "--clips", "1:2")


def test_cli_questions(umt_options, answering_file, asked, videos, tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    options = ["--model", answering_file, *umt_options[2:], "--annotations", asked, "--videos", videos]
    code, text, _ = run("questions", *options, "--answers", tmp_path / "answers.json", "--dataset", "msvd")
    assert code == 0
    assert "msvd qa: 6 queries, 4 videos" in text and "accuracy what" in text
    assert "1 of 6 questions have an answer that is not in the list" in text
    with pytest.raises(ValueError, match="open-ended questions need the answers to choose from"):
        run("questions", *options)


def test_cli_recognition(videomae, videomae_folder, videos, tmp_path):
    options = ["--model", videomae_folder, "--annotations", split(tmp_path), "--videos", videos, "--device", "cpu"]
    code, text, _ = run("recognition", *options, "--dataset", "ssv2", "--method", "tome", "--reduce", "4x3", "--json")
    record = json.loads(text)
    assert code == 0 and record["settings"]["reader"] == {"encoder": "tome", "reduce": [4, 4, 4]}
    assert record["details"]["views"] == 6
    expected = evaluate_recognition(ToMe(videomae, [4, 4, 4]), read_actions(split(tmp_path)), videos, dataset="ssv2")
    assert record["metrics"] == expected.metrics
    code, text, _ = run("recognition", *options, "--views", 1, "--crops", 1)
    assert code == 0 and "recognition: 5 queries, 5 videos" in text and "top-1" in text


def test_cli_base_to_novel(vifi_file, clip_folder, videos, tmp_path):
    files = []
    for name, names, classes in (("base", NAMES[:3], BASE), ("novel", NAMES[3:], NOVEL)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{video}.avi {k}\n" for k, video in enumerate(names)))
        rows = "".join(f"{number},{label}\n" for number, label in enumerate(classes))
        (tmp_path / f"{name}.csv").write_text(f"id,name\n{rows}")
        files += [f"--{name}", tmp_path / f"{name}.txt", f"--{name}-classes", tmp_path / f"{name}.csv"]
    code, text, _ = run(
        "base-to-novel", "--model", vifi_file, "--tokenizer", clip_folder, "--heads", 4, "--text-heads", 4,
        "--frames", 3, "--videos", videos, "--reduce", "3", *files,
    )  # fmt: skip
    assert code == 0 and "base-to-novel: 5 queries, 5 videos" in text and "HM" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reduce", "5", "--preset", "umt-b/msrvtt-retrieval"], "--reduce and --preset both say"),
        (["--method", "none", "--reduce", "5"], "--method none keeps every token"),
        (["--method", "tome"], "--method tome needs --reduce"),
        (["--method", "tome", "--preset", "umt-b/msrvtt-retrieval"], "--preset is a schedule of vid-TLDR"),
        (["--method", "evict"], "--method must be one of vidtldr, tome, none, got 'evict'"),
        (["--reduce", "5;6"], "--reduce must be numbers separated by commas, such as 600,200,100, or 8x"),
        (["--metric", "keys"], "--metric belongs to --method tome"),
        (["--preset", "umt-b/msrvtt-qa"], "--preset umt-b/msrvtt-qa is no schedule for this task"),
        (["--preset", "umt-b/none-retrieval"], "--dataset must be one of msrvtt"),
        (["--preset", "umt-x/msrvtt-retrieval"], "there is no preset 'umt-x/msrvtt-retrieval'"),
        (["--dataset", "kinetics"], "--dataset must be one of msrvtt, msvd, .*, got 'kinetics'"),
        (["--out", "."], "--out must be a file such as result.json, but . is a folder"),
        (["--videos", "nowhere"], "nowhere is not a folder; give the one that holds the videos"),
        (["--annotations", "none.json"], "none.json: no such file; check the path of the annotations"),
        (["--rerank", "-1"], "rerank must be at least 0, got -1"),
    ],
)
def test_cli_says_what_is_wrong_in_one_line(umt_options, pairs, videos, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    options = {"--annotations": pairs, "--videos": videos}
    options |= {name: value for name, value in zip(arguments[::2], arguments[1::2], strict=True) if name in options}
    rest = [
        argument for name, value in zip(arguments[::2], arguments[1::2], strict=True) if name not in options
        for argument in (name, value)
    ]  # fmt: skip
    with pytest.raises(ValueError, match=message) as caught:
        run("retrieval", *umt_options, *(part for pair in options.items() for part in pair), *rest)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
