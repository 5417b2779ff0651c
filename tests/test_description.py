"""Audio description: context, network, training, files, commands."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from everyframe.cli import app
from everyframe.evaluation.description_files import narrated_events, read_narrations
from everyframe.evaluation.reading import AnnotationError
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.synthetic.narrations import narrate
from everyframe.tasks.describer import Describer, DescriberConfig, load_describer
from everyframe.tasks.description import (
    Description,
    Narrated,
    as_srt,
    as_vtt,
    cut,
    usable,
    visual_context,
    write_descriptions,
)
from everyframe.training import TrainingError
from everyframe.training.description import DescribeRecipe, small_language, train_describer

DIM = 12
TEXTS = ["a red circle appears", "two dogs run home", "nothing is to be seen", "the moon leaves the sky"]


def features(embeddings, fps=2.0, *, name="x", start=0.0, sha="w1", **settings):
    times = start + np.arange(len(embeddings)) / fps
    return VideoFeatures(
        times=times,
        embeddings=np.asarray(embeddings, np.float32),
        roles="I" * len(times),
        video={"path": f"/videos/{name}.mp4"},
        model={"id": "bundled", "weights_sha256": sha},
        settings={"fps": fps, **settings},
        end_seconds=float(times[-1] + 1 / fps),
    )


def world(videos=6, seed=0):
    """Videos in which every 4 s show one of four things; what is said of them follows from what they show."""
    rng = np.random.default_rng(seed)
    kinds = rng.permuted(np.tile(np.arange(4), (videos, 2)), axis=1)
    items = []
    for number, row in enumerate(kinds):
        rows = np.eye(DIM)[np.repeat(row, 8)] + 0.1 * rng.normal(size=(64, DIM))
        said = tuple(Description(start=4.0 * k, end=4.0 * k + 4, text=TEXTS[kind]) for k, kind in enumerate(row))
        name = f"video-{number}"
        items.append(Narrated(video=name, features=features(rows, name=name), descriptions=said))
    return items


TINY = {"clips": 3, "frames": 2, "prefix": 2, "width": 32, "heads": 2, "layers": 1, "words": 12, "batch": 8}


def tiny_recipe(**changes):
    return DescribeRecipe.small(**{**TINY, "epochs": 24, **changes})


def tiny_describer(seed=1, **changes):
    config = DescriberConfig(dim=DIM, **{**{name: TINY[name] for name in TINY if name != "batch"}, **changes})
    language, tokenizer = small_language(TEXTS, seed=seed, room=32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Describer(config, language, tokenizer).eval()


# --- what is seen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(6.0, 8.0), (0.0, 3.0), (9.3, 11.0), (2.2, 2.3), (-1.0, 1.0), (0.0, 11.0)])
@pytest.mark.parametrize(("clips", "frames"), [(8, 8), (3, 2), (1, 1)])
def test_context_equals_a_loop(start, end, clips, frames):
    rng = np.random.default_rng(4)
    feats = features(rng.normal(size=(22, DIM)), start=0.25)
    found = visual_context(feats, start, end, clips=clips, frames=frames)
    assert found.frames.shape == (clips, frames, DIM) and found.frames.dtype == np.float32
    for clip in range(clips):
        first = start + (end - start) * (clip - clips // 2)
        there = first < 11.25 and first + (end - start) > 0.25
        assert found.present[clip] == there
        for frame in range(frames):
            when = min(max(first + (end - start) * (frame + 0.5) / frames, 0.25), 11.25)
            row = feats.embeddings[np.argmin(np.round(np.abs(feats.times - when), 9))]
            expected = row / np.linalg.norm(row) if there else np.zeros(DIM)
            np.testing.assert_allclose(found.frames[clip, frame], expected, atol=1e-6)
    assert found.present[clips // 2]


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (11.0, 12.0, "11 to 12 s lies outside the video, which goes from 0 to 11 s"),
        (-3.0, 0.0, "-3 to 0 s lies outside"),
        (4.0, 4.0, "must end after it starts, got 4 to 4 s"),
        (5.0, float("nan"), "must end after it starts"),
    ],
)
def test_context_outside_the_video_is_refused(start, end, message):
    with pytest.raises(ValueError, match=message):
        visual_context(features(np.ones((22, DIM))), start, end)


def test_usable_lists_what_cannot_be_seen():
    said = [Description(start=s, end=s + 1, text=t) for s, t in ((1, "seen"), (40, "late"), (2, "  "))]
    kept, left_out = usable([Narrated(video="x", features=features(np.ones((22, DIM))), descriptions=tuple(said))])
    assert [each.text for each in kept[0].descriptions] == ["seen"]
    assert left_out == [
        "x: 40 to 41 s lies outside the video, which goes from 0 to 11 s",
        "x: 2 to 3 s: the description is empty",
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (4.0, [(1, 5), (5, 9), (9, 12)]),
        (5.0, [(1, 6), (6, 12)]),
        (30.0, [(1, 12)]),
    ],
)
def test_cut_covers_the_video(seconds, expected):
    assert cut(features(np.ones((22, DIM)), start=1.0), seconds) == expected


def test_cut_needs_a_length():
    with pytest.raises(ValueError, match="a clip must be longer than 0 seconds, got 0"):
        cut(features(np.ones((2, DIM))), 0)


# --- files -----------------------------------------------------------------------------------------------

CUES = [
    Description(start=0, end=1.5, text="One <b> & two\n  --> three"),
    Description(start=3661.0004, end=3661.0005, text="späte Sonne"),
    Description(start=4000, end=4001, text=""),
]


def test_subtitles():
    assert as_vtt(CUES) == (
        "WEBVTT - audio descriptions\n\n"
        "00:00:00.000 --> 00:00:01.500\nOne &lt;b&gt; &amp; two --&gt; three\n\n"
        "01:01:01.000 --> 01:01:01.001\nspäte Sonne\n"
    )
    assert as_srt(CUES) == (
        "1\n00:00:00,000 --> 00:00:01,500\nOne <b> & two -> three\n\n2\n01:01:01,000 --> 01:01:01,001\nspäte Sonne\n"
    )


def test_descriptions_are_written_and_read_again(tmp_path):
    for name in ("a.jsonl", "a.vtt", "a.SRT"):
        write_descriptions(tmp_path / name, CUES)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert [Description(**line) for line in lines] == CUES
    with pytest.raises(ValueError, match=r"descriptions are written to \.jsonl, \.vtt, \.srt, got .*a\.txt"):
        write_descriptions(tmp_path / "a.txt", CUES)


@pytest.mark.parametrize(("start", "end"), [(2, 2), (3, 1), (0, float("inf"))])
def test_a_description_lasts(start, end):
    with pytest.raises(ValueError, match="must end after it starts"):
        Description(start=start, end=end, text="x")


# --- narrations of the synthetic world -------------------------------------------------------------------


def test_narrations_say_who_is_there_and_what_happens_first():
    events = [
        ("a red circle", 0.0, 5.0),
        ("an orange star", 2.0, 9.0),
        ("a blue ring", 4.0, 6.0),
        ("a moon", 20.0, 25.0),
    ]
    found = narrate(events, video="synthetic-00001")
    assert found == narrate(events, video="synthetic-00001")
    variants = {text for number in range(40) for text in narrate(events, video=f"synthetic-{number}")}
    assert len(variants) > 12
    for text in (narrate(events, video=f"v{number}") for number in range(20)):
        opening, joined, third, alone = text
        assert "a red circle" in opening and "an orange star" in opening.lower()  # which follows
        assert opening.startswith(("The scene opens on a red circle.", "At first there is a red circle."))
        assert "a red circle" in joined.lower() and "an orange star" in joined.lower()
        assert "a blue ring" in joined.split(". ")[1].lower()  # at 4 s, before the circle goes at 5 s
        assert "a red circle and an orange star" in third.lower()
        assert "a red circle" in third.split(". ")[1].lower()  # leaves at 5 s
        assert alone.count(".") == 1 and "a moon" in alone.lower()


@pytest.mark.parametrize("event", [("", 0, 1), ("a star", 2, 2)])
def test_narrations_need_sound_events(event):
    with pytest.raises(ValueError, match="needs a caption and must end after it starts"):
        narrate([event], video="x")


# --- the network -----------------------------------------------------------------------------------------


def contexts_of(describer, count=5, seed=2):
    feats = features(np.random.default_rng(seed).normal(size=(40, DIM)))
    return [describer.context(feats, 3.0 * k, 3.0 * k + 2) for k in range(count)]


def test_absent_clips_are_not_seen():
    describer = tiny_describer()
    (first, *_) = contexts_of(describer)
    assert list(first.present) == [False, True, True]
    other = replace_frames(first, 0, 7.0)
    torch.testing.assert_close(describer.prefix([first]), describer.prefix([other]))
    assert not torch.allclose(describer.prefix([first]), describer.prefix([replace_frames(first, 1, 7.0)]))


def replace_frames(context, clip, value):
    frames = context.frames.copy()
    frames[clip] = value
    return context._replace(frames=frames)


def test_blind_sees_nothing():
    describer = tiny_describer(blind=True)
    prefixes = describer.prefix(contexts_of(describer, 3)[1:])
    torch.testing.assert_close(prefixes[0], prefixes[1])


def test_loss_equals_that_of_transformers_text_by_text():
    describer = tiny_describer()
    contexts = contexts_of(describer, 4)
    ids = [describer.tokens(text) for text in TEXTS]
    assert len({len(each) for each in ids}) > 1
    total = 0.0
    with torch.no_grad():
        for context, each in zip(contexts, ids, strict=True):
            prefix = describer.prefix([context])
            words = describer.language.transformer.wte(torch.tensor([each]))
            labels = torch.tensor([[-100] * prefix.shape[1] + each])
            out = describer.language(inputs_embeds=torch.cat([prefix, words], dim=1), labels=labels)
            total += out.loss.item() * len(each)
        found = describer.loss(contexts, ids).item()
    assert found == pytest.approx(total / sum(map(len, ids)), rel=1e-5)


@pytest.mark.parametrize("beam", [1, 3])
def test_generated_text_does_not_depend_on_the_batch_and_greedy_is_a_loop(beam):
    describer = tiny_describer()
    contexts = contexts_of(describer, 5)
    together = describer.generate(contexts, beam=beam)
    assert together == [describer.generate([context], beam=beam)[0] for context in contexts]
    if beam > 1:
        return
    for context, text in zip(contexts, together, strict=True):
        with torch.no_grad():
            embeds, tokens = describer.prefix([context]), []
            while len(tokens) < 12:
                token = int(describer.language(inputs_embeds=embeds).logits[0, -1].argmax())
                if token == describer.tokenizer.eos_token_id:
                    break
                tokens.append(token)
                embeds = torch.cat([embeds, describer.language.transformer.wte(torch.tensor([[token]]))], dim=1)
        assert text == " ".join(describer.tokenizer.decode(tokens).split())


def test_features_of_another_model_are_refused():
    describer = tiny_describer()
    describer.space = {"model id": "clip", "model weights_sha256": "w2"}
    with pytest.raises(FeaturesError, match=r"trained on features of clip, those of .*x\.mp4 are of bundled"):
        describer.describe(features(np.ones((9, DIM))), [(0, 1)])
    with pytest.raises(FeaturesError, match=r"reads features of width 12, those of .* have 5"):
        describer.describe(features(np.ones((9, 5))), [(0, 1)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": 0}, "clips must be at least 1, got 0"),
        ({"width": 30, "heads": 4}, "width must be a multiple of heads, got 30 and 4"),
        ({"words": 60}, "the language model has 32 positions, fewer than a prefix of 2 and 60 words take"),
    ],
)
def test_sizes_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_describer(**changes)


# --- training --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A describer of the small world, the folder it was written to, and its losses."""
    folder, losses = tmp_path_factory.mktemp("run"), []
    describer = train_describer(
        world(), tiny_recipe(), out=folder, step_done=lambda step, steps, loss: losses.append(loss)
    )
    return describer, folder, losses


def test_it_learns_what_is_to_be_seen_and_blind_it_does_not(trained):
    describer, _, losses = trained
    unseen = world(videos=2, seed=77)
    right = {}
    for name, model in (("sees", describer), ("blind", train_describer(world(), tiny_recipe(blind=True, epochs=6)))):
        found = [model.describe(item.features, [(d.start, d.end) for d in item.descriptions]) for item in unseen]
        pairs = [
            (a.text, b.text)
            for item, own in zip(unseen, found, strict=True)
            for a, b in zip(item.descriptions, own, strict=True)
        ]
        right[name] = np.mean([a == b for a, b in pairs])
        times = [(each.start, each.end) for each in found[0]]
        assert times == [(d.start, d.end) for d in unseen[0].descriptions]
    assert right["sees"] == 1 and right["blind"] <= 0.25
    assert losses[-1] < 0.3 < losses[0]


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path, trained):
    describer, folder, losses = trained

    def stop(step, steps, loss):
        if step == 20:
            raise Killed

    said, later = [], []
    with pytest.raises(Killed):
        train_describer(world(), tiny_recipe(), out=tmp_path, step_done=stop)
    again = train_describer(
        world(), tiny_recipe(), out=tmp_path, say=said.append, step_done=lambda *step: later.append(step)
    )
    assert "goes on after epoch 3 of 24" in said
    assert later[0][0] == 19 and [loss for *_, loss in later] == losses[18:]
    for name, tensor in describer.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert (tmp_path / "log.csv").read_text() == (folder / "log.csv").read_text()


def test_a_run_with_other_settings_or_data_is_not_gone_on_with(trained):
    _, folder, _ = trained
    with pytest.raises(TrainingError, match=r"holds a run with other settings .*recipe"):
        train_describer(world(), tiny_recipe(seed=9), out=folder)
    with pytest.raises(TrainingError, match=r"holds a run with other settings .*data"):
        train_describer(world(seed=3), tiny_recipe(), out=folder)


def test_what_was_saved_says_the_same(trained):
    describer, folder, _ = trained
    item = world(videos=1, seed=5)[0]
    spans = cut(item.features, 3.3)
    again = load_describer(folder)
    assert again.describe(item.features, spans) == describer.describe(item.features, spans)
    assert json.loads((folder / "describer.json").read_text())["training"]["descriptions"] == 48


def test_a_folder_without_a_whole_describer_is_named(tmp_path, trained):
    with pytest.raises(ValueError, match="is not a folder; give one that everyframe evaluate description"):
        load_describer(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no whole describer \(describer.json is missing\)"):
        load_describer(tmp_path)
    describer, _, _ = trained
    describer.save(tmp_path)
    (tmp_path / "mapper.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds a damaged describer"):
        load_describer(tmp_path)


def test_a_frozen_language_model_stays_as_it_is(tmp_path):
    language, tokenizer = small_language(TEXTS, room=64)
    language.save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    recipe = tiny_recipe(tune_language=False, epochs=1)
    describer = train_describer(world(2), recipe, language=str(tmp_path / "gpt"))
    for name, tensor in language.state_dict().items():
        assert torch.equal(tensor, describer.language.state_dict()[name]), name
    with pytest.raises(ValueError, match="no GPT-2 can be loaded from /nowhere"):
        train_describer(world(2), recipe, language="/nowhere")
    with pytest.raises(TrainingError, match="the small language model knows no words yet"):
        train_describer(world(2), recipe)


def test_training_needs_descriptions_of_one_model():
    with pytest.raises(TrainingError, match="there is no description to train on"):
        train_describer([], tiny_recipe())
    first, second = world(2)
    second = replace(second, features=replace(second.features, model={"id": "other", "weights_sha256": "w9"}))
    with pytest.raises(FeaturesError, match="features of different origin cannot be mixed"):
        train_describer([first, second], tiny_recipe())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"rate": -1}, "rate must be a positive"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_recipes_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        DescribeRecipe(**changes)


# --- annotation files ------------------------------------------------------------------------------------


def read(tmp_path, text, name="a.jsonl", **options):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return read_narrations(file, **options)


FIRST, SECOND = Description(start=1, end=2.5, text="He runs."), Description(start=3, end=4, text="She, too.")


@pytest.mark.parametrize(
    ("name", "text", "layout"),
    [
        (
            "a.jsonl",
            '{"vid": "m", "start": 1, "end": 2.5, "text": "He runs."}\n'
            '{"vid": "m", "start": "3", "end": 4, "text": "She, too."}',
            "descriptions",
        ),
        (
            "a.json",
            '[{"id": 1, "movie": "m", "imdb": "tt1", "start": 1.0, "end": 2.5, "sentence": "He runs."},'
            '{"id": 2, "movie": "m", "imdb": "tt1", "start": 3.0, "end": 4.0, "sentence": "She, too."}]',
            "descriptions",
        ),
        ("a.csv", 'movie,imdbid,text,start,end\nm,tt1,He runs.,1,2.5\nm,tt1,"She, too.",3,4\n', "table"),
        ("a.tsv", "Start\tEnd\tVideo\tSentence\n1\t2.5\tm\tHe runs.\n3\t4\tm\tShe, too.\n", "table"),
        (
            "a.json",
            '{"0": {"movie": "m", "sentence": "He runs.", "movie_duration": 9.0, "ext_timestamps": [1, 2.5]},'
            ' "1": {"movie": "m", "sentence": "She, too.", "movie_duration": 9.0, "ext_timestamps": [3, 4]}}',
            "mad",
        ),
        (
            "a.json",
            '{"m": {"duration": 9, "timestamps": [[1, 2.5], [3, 4]], "sentences": ["He runs.", " She, too."]}}',
            None,
        ),
    ],
)
def test_layouts(tmp_path, name, text, layout):
    found = read(tmp_path, text, name)
    assert found.by_video == {"m": (FIRST, SECOND)}
    assert layout in (None, found.layout) and found.left_out == () and found.count == 2


def test_synthetic_annotations_are_narrated(tmp_path):
    events = [("a red circle", 0.0, 5.0), ("an orange star", 2.0, 9.0)]
    lines = [
        {"qid": k, "query": c, "duration": 9.0, "vid": "synthetic-00001", "relevant_windows": [[s, e]]}
        for k, (c, s, e) in enumerate(events)
    ]
    text = "\n".join(map(json.dumps, lines))
    item = narrated_events(features(np.ones((18, DIM))), events, video="synthetic-00001")
    assert read(tmp_path, text).by_video == {"synthetic-00001": item.descriptions}
    assert read(tmp_path, text).layout == "synthetic"
    other = read(tmp_path, text.replace("synthetic-00001", "AO8RW"))
    assert [each.text for each in other.by_video["AO8RW"]] == ["a red circle", "an orange star"]


def test_entries_that_say_nothing_are_listed(tmp_path):
    lines = [
        {"vid": "m", "start": 1, "end": 2.5, "text": "He runs."},
        {"vid": "m", "start": 5, "end": 4, "text": "Backwards."},
        {"vid": "m", "start": 5, "end": 5, "text": "At once."},
        {"vid": "m", "start": 6, "end": 7, "text": "  "},
        {"vid": "m", "start": 6, "end": 7},
        {"vid": "m", "start": 1, "end": 2.5, "text": "He  runs."},
        {"vid": "m", "start": 1, "end": 2.5, "text": "He hurries."},
    ]
    found = read(tmp_path, "\n".join(map(json.dumps, lines)))
    assert [each.text for each in found.by_video["m"]] == ["He runs.", "He hurries."]
    place = tmp_path / "a.jsonl"
    assert found.left_out == (
        f"{place} line 2: a description must end after it starts, got 5 to 4 s",
        f"{place} line 3: a description must end after it starts, got 5 to 5 s",
        f"{place} line 4: has no words",
        f"{place} line 5: has no words",
        f"{place} line 6: says again what was said of m from 1 to 2.5 s",
    )


@pytest.mark.parametrize(
    ("name", "text", "layout", "message"),
    [
        (
            "a.jsonl",
            '{"vid": "m", "start": "x", "end": 1, "text": "t"}',
            None,
            "line 1: start must be a number of seconds, got 'x'",
        ),
        ("a.jsonl", '{"start": 0, "end": 1, "text": "t"}', None, "line 1: has no vid or movie"),
        (
            "a.jsonl",
            '{"vid": "m", "start": 0, "end": 1, "text": 7}',
            None,
            "line 1: what is said must be a text, got 7",
        ),
        ("a.jsonl", '{"vid": "m", "start": 2, "end": 1, "text": "t"}', None, "holds no description that can be used: "),
        ("a.csv", "movie,start,end,text\nm,1\n", None, "line 2: has 2 columns where the header has 4"),
        ("a.csv", "movie,start,end\nm,1,2\n", "table", "line 1: has no column text or sentence"),
        ("a.json", '{"a": 1}', "descriptions", "must hold objects with vid"),
        ("a.json", "[]", "comics", "layout must be one of descriptions, table, synthetic, .*, got 'comics'"),
        ("a.txt", "nothing known", None, "has no layout that is known here"),
    ],
)
def test_broken_files_are_named(tmp_path, name, text, layout, message):
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path, text, name, layout=layout)


# --- commands --------------------------------------------------------------------------------------------

pycocoevalcap = pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap")


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result, result.output + (result.stderr or "")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Annotations and feature files of videos to train on and of others."""
    folder = tmp_path_factory.mktemp("files")
    for name, items in (("train", world()), ("test", world(videos=2, seed=77))):
        (folder / name).mkdir()
        lines = [
            {"vid": item.video, "start": each.start, "end": each.end, "text": each.text}
            for item in items
            for each in item.descriptions
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for item in items:
            item.features.save(folder / name / f"{item.video}.npz")
    return folder


@pycocoevalcap
def test_evaluate_description_trains_scores_and_leaves_files(files, tmp_path):
    out = tmp_path / "run"
    training = ("--train", files / "train.jsonl", "--train-features", files / "train", "--language", "small")
    sizes = ("--clips", 3, "--frames", 2, "--words", 12, "--epochs", 3, "--baseline")
    metrics = ("--metric", "ROUGE-L", "--metric", "CIDEr")
    test = ("--annotations", files / "test.jsonl", "--features", files / "test")
    result, said = run("evaluate", "description", *test, *training, *sizes, *metrics, "--out", out, "--json")
    assert result.exit_code == 0, said
    record = json.loads(result.stdout)
    assert record == json.loads((out / "metrics.json").read_text())
    assert record["clips"] == 16 and record["videos"] == record["videos_wanted"] == 2
    assert set(record["metrics"]) == set(record["baseline"]) == {"ROUGE-L", "CIDEr"}
    assert [each["descriptions"] for each in record["annotations"]] == [16, 48]
    predictions = read_narrations(out / "predictions.jsonl")
    assert predictions.count == 16

    # The predictions score the same, and so does the describer that was written.
    for again in (("--predictions", out / "predictions.jsonl"), (*test[2:], "--checkpoint", out / "describer")):
        result, said = run("evaluate", "description", *test[:2], *again, *metrics, "--json")
        assert result.exit_code == 0, said
        assert json.loads(result.stdout)["metrics"] == pytest.approx(record["metrics"])
    result, said = run("evaluate", "description", *test[:2], "--predictions", out / "predictions.jsonl", *metrics)
    assert result.exit_code == 0 and "audio description: 16 clips of 2 videos" in said and "ROUGE-L" in said


@pycocoevalcap
def test_what_is_missing_is_named_and_the_rest_goes_on(files, tmp_path, trained):
    lines = (files / "test.jsonl").read_text().splitlines()
    lines += [
        json.dumps({"vid": "gone", "start": 0, "end": 1, "text": "x"}),
        json.dumps({"vid": "video-0", "start": 99, "end": 100, "text": "late"}),
        json.dumps({"vid": "bad", "start": 0, "end": 1, "text": "x"}),
    ]
    annotations, folder = tmp_path / "a.jsonl", tmp_path / "features"
    annotations.write_text("\n".join(lines))
    folder.mkdir()
    for file in (files / "test").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "bad.npz").write_bytes(b"bad")
    arguments = ("--annotations", annotations, "--features", folder, "--checkpoint", trained[1], "--metric", "ROUGE-L")
    result, said = run("evaluate", "description", *arguments)
    assert result.exit_code == 1
    assert "missing: gone: has no features in" in said and "unreadable:" in said
    assert "left out: video-0: 99 to 100 s lies outside the video" in said
    assert "ROUGE-L  100.00" in said and "partial: 2 of the videos and 1 of the descriptions" in said

    predictions = tmp_path / "p.jsonl"
    predictions.write_text(
        "\n".join([*lines[1:16], lines[1], json.dumps({"vid": "z", "start": 0, "end": 1, "text": "x"})])
    )
    result, said = run(
        "evaluate",
        "description",
        "--annotations",
        files / "test.jsonl",
        "--predictions",
        predictions,
        "--metric",
        "ROUGE-L",
    )
    assert result.exit_code == 1
    assert "says again what was said of video-0" in said
    assert "describes z 0.000 to 1.000 s, which the annotations do not have" in said
    assert "does not describe video-0 0.000 to 4.000 s" in said
    assert f"ROUGE-L  {100 * 15 / 16:.2f}" in said


def test_describe_writes_subtitles(files, tmp_path, trained):
    source, out = files / "test" / "video-0.npz", tmp_path / "ad.vtt"
    result, said = run("describe", source, "--checkpoint", trained[1], "--clip", "4s", "--out", out)
    assert result.exit_code == 0, said
    item = world(videos=2, seed=77)[0]
    assert out.read_text() == as_vtt(item.descriptions)
    assert f"0:00:00.0 to 0:00:04.0  {item.descriptions[0].text}" in said
    spans = tmp_path / "spans.jsonl"
    spans.write_text("\n".join((files / "test.jsonl").read_text().splitlines()[2:4]))
    result, said = run("describe", source, "--checkpoint", trained[1], "--annotations", spans, "--json")
    assert result.exit_code == 0, said
    assert [Description(**each) for each in json.loads(result.stdout)] == list(item.descriptions[2:4])


def test_describe_encodes_at_the_rate_of_the_training(monkeypatch, trained):
    asked = {}
    monkeypatch.setattr("everyframe.cli.describe.load_model", lambda *_: None)
    monkeypatch.setattr("everyframe.cli.encoder.Choice.make", lambda *_, **__: None)

    def encode(source, encoder, **options):
        asked.update(options)
        return world(videos=1)[0].features

    monkeypatch.setattr("everyframe.pipeline.encode_video", encode)
    result, said = run("describe", "v.mp4", "--checkpoint", trained[1])
    assert result.exit_code == 0, said
    assert asked["fps"] == 2.0
    run("describe", "v.mp4", "--checkpoint", trained[1], "--fps", 4)
    assert asked["fps"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "description", "--annotations", "a"], "give one of --train .* got none"),
        (
            ["evaluate", "description", "--annotations", "a", "--train", "t", "--checkpoint", "c"],
            "got --train and --checkpoint",
        ),
        (["evaluate", "description", "--annotations", "a", "--train", "t"], "--features is needed"),
        (
            ["evaluate", "description", "--annotations", "a", "--checkpoint", "c", "--features", "f", "--lr", "1"],
            "--lr has no meaning without --train",
        ),
        (
            ["evaluate", "description", "--annotations", "a", "--predictions", "p", "--baseline"],
            "--baseline has no meaning without --train",
        ),
        (["describe", "v", "--checkpoint", "c", "--clip", "5s", "--annotations", "a"], "give one of them"),
        (["describe", "v", "--checkpoint", "c", "--clip", "none"], "--clip must be a number of seconds"),
        (["describe", "v", "--checkpoint", "c", "--out", "x.txt"], "descriptions are written to"),
        (["describe", "v", "--checkpoint", "c"], "c is not a folder"),
    ],
)
def test_options_that_contradict_each_other(arguments, message):
    result, _ = run(*arguments)
    assert isinstance(result.exception, ValueError)
    with pytest.raises(ValueError, match=message):
        raise result.exception


@pycocoevalcap
def test_what_cannot_work_is_said_before_training(files, monkeypatch):
    from everyframe.evaluation import description
    from everyframe.evaluation.description import evaluate_description

    monkeypatch.setattr(description, "train_describer", lambda *_, **__: pytest.fail("trained"))
    items = world(2)
    other = [replace(item, features=features(np.ones((64, DIM)), sha="w2")) for item in items]
    with pytest.raises(FeaturesError, match="features of different origin cannot be mixed"):
        evaluate_description(items, other)
    with pytest.raises(ValueError, match="no model for BERTScore can be loaded from /nowhere"):
        evaluate_description(items, items, metrics=["BERTScore"], bert="/nowhere")
    with pytest.raises(ValueError, match=r"there is nothing to describe: video-0: 90 to 91 s lies outside"):
        late = (Description(start=90, end=91, text="late"),)
        evaluate_description(items, [replace(items[0], descriptions=late)])
    with pytest.raises(ValueError, match="give either videos to train on, or a describer"):
        evaluate_description(None, items)
    with pytest.raises(FeaturesError, match=r"made with fps=4.0, but others with 2.0"):
        (files / "mixed").mkdir()
        items[0].features.save(files / "mixed" / "video-0.npz")
        features(np.ones((64, DIM)), fps=4.0, name="video-1").save(files / "mixed" / "video-1.npz")
        description.read_narrated(read_narrations(files / "test.jsonl"), files / "mixed")


def test_options_of_encoding_with_a_feature_file(files, trained):
    result, _ = run("describe", files / "test" / "video-0.npz", "--checkpoint", trained[1], "--fps", 2)
    assert "is encoded already" in str(result.exception)
