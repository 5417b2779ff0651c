"""Video models against transformers, against `reference.umt`, and against counting by hand; and what `load_video` says
of bad checkpoints.
"""

import json
import math
import os
import shutil
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import checkpoints
import video_checkpoints
from everyframe.backbone import (
    VIDEO_ARCHITECTURES,
    ModelError,
    VideoModel,
    hub,
    load,
    load_video,
    video_skeleton,
)
from everyframe.backbone.bert import clean_text
from everyframe.backbone.video import sinusoids, unfold_tubes
from everyframe.backbone.video_weights import read_checkpoint
from reference import umt as reference
from video_checkpoints import UMT, VIFI

TEXTS = ["A red circle!", "the dog walks in", "cat"]
ANSWERS = ["cat", "dog", "red circle", "red square", "two", "person", "walks in", "yes", "no"]
SHAPES = {key: UMT[key] for key in ("heads", "frames", "image_size")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each checkpoint once; of UMT by layout."""
    root, done = tmp_path_factory.mktemp("video"), {}
    makers: dict[str, Callable[[], Path]] = {
        "videomae": lambda: video_checkpoints.videomae(root / "videomae"),
        "tokenizer": lambda: video_checkpoints.bert_tokenizer(root / "tokenizer"),
        "vifi": lambda: video_checkpoints.vifi(root / "vifi.pth"),
        "clip": lambda: checkpoints.clip(root / "clip"),
    }

    def make(name: str) -> Path:
        if name not in done:
            done[name] = makers[name]() if name in makers else video_checkpoints.umt(root / f"{name}.pth", name)
        return done[name]

    return make


@pytest.fixture(scope="module")
def umt(made: Callable[[str], Path]) -> Callable[[str], VideoModel]:
    """Loads each UMT layout once."""
    loaded: dict[str, VideoModel] = {}

    def get(layout: str) -> VideoModel:
        if layout not in loaded:
            text = layout in ("retrieval", "pretraining", "answers")
            arguments = UMT | {"tokenizer": made("tokenizer")} if text else SHAPES
            loaded[layout] = load_video(made(layout), **arguments)
        return loaded[layout]

    return get


def clips(model: VideoModel, count: int = 2, seed: int = 1) -> Tensor:
    shape = (count, model.frames, 3, model.image_size, model.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens_of(model: VideoModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        tokens = model.vision.start(pixels)
        for block in model.vision.blocks:
            tokens = block(tokens)
        return model.vision.finish(tokens)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=tolerance, rtol=1e-5)


# --- VideoMAE against transformers


@pytest.mark.parametrize("mean_pooling", [True, False])
@pytest.mark.parametrize("tubelet", [1, 2])
def test_videomae_classifier_equals_transformers(tmp_path: Path, mean_pooling: bool, tubelet: int) -> None:
    folder = video_checkpoints.videomae(tmp_path / "model", mean_pooling=mean_pooling, tubelet=tubelet)
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
    model = load_video(folder)
    pixels = clips(model)
    with torch.no_grad():
        close(tokens_of(model, pixels), theirs.videomae(pixels).last_hidden_state)
        features = model.vision(pixels)
        close(model.classify(features), theirs(pixels).logits)
    assert features.shape == (2, model.dim) and features.std() > 0.1
    assert model.vision.num_patches == 4 // tubelet * 16
    assert (model.family, model.joint, model.labels) == ("videomae", False, video_checkpoints.LABELS)
    assert (model.frames, model.image_size) == (4, 32)


def test_layer_norms_have_the_epsilons_they_were_trained_with(umt: Callable[[str], VideoModel], made: Any) -> None:
    """Told apart by tokens so small that the epsilon counts; transformers' fc_norm has another than its layers."""
    model = load_video(made("videomae"))
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(made("videomae")).eval()
    small = 1e-3 * torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        close(model.vision.pool(small), theirs.fc_norm(small.mean(dim=1)))
        close(model.vision.blocks[0](small), theirs.videomae.encoder.layer[0](small))
    norms = [module for module in umt("projected").vision.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 3 + 2 and {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize("kind", ["VideoMAEModel", "VideoMAEForPreTraining"])
@pytest.mark.parametrize("mean_pooling", [True, False])
def test_videomae_without_a_classifier_equals_transformers(tmp_path: Path, kind: str, mean_pooling: bool) -> None:
    folder = video_checkpoints.videomae(tmp_path / "model", kind=kind, mean_pooling=mean_pooling)
    theirs = getattr(transformers, kind).from_pretrained(folder).eval()
    model = load_video(folder)
    pixels = clips(model)
    with torch.no_grad():
        hidden = getattr(theirs, "videomae", theirs)(pixels).last_hidden_state
        close(tokens_of(model, pixels), hidden)
        close(model.vision(pixels), hidden.mean(dim=1))
    assert model.labels is None
    with pytest.raises(ModelError, match="has no classifier"):
        model.classify(torch.zeros(1, model.dim))


def test_videomae_without_biases_equals_transformers(tmp_path: Path) -> None:
    folder = video_checkpoints.videomae(tmp_path / "model", qv_bias=False)
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
    model = load_video(folder)
    with torch.no_grad():
        close(model.classify(model.vision(clips(model))), theirs(clips(model)).logits)


def test_old_and_new_names_of_the_biases_load_alike(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("videomae"), tmp_path / "other"))
    tensors = load_file(folder / "model.safetensors")
    pairs = [("q_bias", "query.bias"), ("v_bias", "value.bias")]
    old = any(key.endswith("q_bias") for key in tensors)
    renamed = {}
    for key, value in tensors.items():
        for first, second in pairs:
            key = (
                key.replace(first, second)
                if old
                else key.replace(f"attention.attention.{second}", f"attention.{first}")
            )
        renamed[key] = value
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors")
    one, other = load_video(made("videomae")), load_video(folder)
    assert torch.equal(one.vision(clips(one)), other.vision(clips(one)))


def test_videomae_preprocessing_equals_transformers(made: Callable[[str], Path]) -> None:
    model = load_video(made("videomae"))
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 70, 3), dtype=np.uint8)
    kind = getattr(transformers, "VideoMAEImageProcessorPil", None) or transformers.VideoMAEImageProcessor
    processor = kind.from_pretrained(made("videomae"))
    theirs = processor(list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
    difference = (model.preprocess(frames) - theirs).abs()
    assert difference.max() < 0.018  # one grey level, where transformers' PIL and torch round apart
    assert difference.mean() < 0.002


def test_videomae_reads_the_settings_of_a_video_processor(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("videomae"), tmp_path / "model"))
    old, new = folder / "preprocessor_config.json", folder / "video_preprocessor_config.json"
    settings = json.loads(old.read_text()) | {"image_mean": [0.5, 0.4, 0.3]}
    settings["video_processor_type"] = "VideoMAEVideoProcessor"
    new.write_text(json.dumps(settings))
    old.unlink()
    assert load_video(folder).preprocess_settings["mean"] == [0.5, 0.4, 0.3]


# --- UMT against the plain reference


@pytest.mark.parametrize("layout", ["projected", "vision", "retrieval", "pretraining"])
def test_umt_tower_equals_the_reference(umt: Callable[[str], VideoModel], made: Any, layout: str) -> None:
    model, tensors = umt(layout), read_checkpoint(made(layout))
    pixels = clips(model)
    tokens, features = tokens_of(model, pixels), model.vision(pixels).detach()
    for clip in range(2):
        expected = reference.tower(tensors, pixels[clip], heads=4)
        close(tokens[clip], expected)
        close(features[clip], reference.pooled(tensors, expected))
    assert model.family == "umt" and model.joint == (layout != "vision")
    assert model.dim == (24 if model.joint else 48)


def test_umt_tubelets_equal_the_reference(tmp_path: Path) -> None:
    file = video_checkpoints.umt(tmp_path / "umt.pth", "projected", tubelet=2, nested=False)
    model = load_video(file, **SHAPES)
    assert model.vision.num_patches == 2 * 16
    expected = reference.tower(torch.load(file), clips(model)[0], heads=4)
    close(tokens_of(model, clips(model))[0], expected)


def test_layouts_of_the_bare_tower_agree(umt: Callable[[str], VideoModel]) -> None:
    pixels = clips(umt("bare"))
    assert torch.equal(umt("bare").vision(pixels), umt("vision").vision(pixels))


def test_a_tower_without_pool_norm_pools_the_plain_mean(umt: Callable[[str], VideoModel]) -> None:
    model = umt("answers")
    tokens = tokens_of(model, clips(model))
    assert torch.equal(model.vision.pool(tokens), tokens.mean(dim=1))
    assert not model.joint


def test_positions_are_the_table_of_sines(umt: Callable[[str], VideoModel]) -> None:
    close(umt("vision").vision.positions, reference.positions(64, 48), 1e-7)
    close(sinusoids(2352, 6)[-1:], reference.positions(2352, 6)[-1:], 1e-7)


def test_pooling_takes_any_number_of_tokens(umt: Callable[[str], VideoModel]) -> None:
    model = umt("projected")
    tokens = tokens_of(model, clips(model))
    tensors = model.vision.state_dict()
    mean = F.layer_norm(tokens[:, :5].mean(1), (48,), tensors["norm_pool.weight"], tensors["norm_pool.bias"], 1e-6)
    close(model.vision.pool(tokens[:, :5]), mean @ tensors["projection.weight"].T + tensors["projection.bias"])


def test_tubes_have_the_order_of_a_convolution() -> None:
    pixels, kernel = torch.randn(2, 6, 3, 19, 16), torch.randn(5, 3, 2, 4, 4)
    expected = F.conv3d(pixels.transpose(1, 2), kernel, stride=(2, 4, 4)).flatten(2).transpose(1, 2)
    close(unfold_tubes(pixels, 2, 4) @ kernel.flatten(1).T, expected)


def test_umt_preprocessing_stretches(umt: Callable[[str], VideoModel]) -> None:
    model = umt("vision")
    frames = np.zeros((1, 40, 90, 3), dtype=np.uint8)
    frames[:, :, 45:] = 255  # a stretch keeps both halves equal, a crop would not tell
    frames[:, :20, :3] = 128
    pixels = model.preprocess(frames)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    close(pixels[0, :, 20, 4], (0 - mean) / std)
    close(pixels[0, :, 5, 28], (1 - mean) / std)
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, 0, 2, 0] > pixels[0, 0, 2, 4] + 1  # the grey edge is still there


# --- UMT's texts


def test_text_layers_equal_berts(umt: Callable[[str], VideoModel], made: Callable[[str], Path]) -> None:
    """The text layers alone are a BertModel of transformers with the same weights."""
    tensors = read_checkpoint(made("retrieval"))
    own = {key.removeprefix("text_encoder."): value for key, value in tensors.items() if "text_encoder" in key}
    kept = {key: value for key, value in own.items() if not any(f"layer.{layer}." in key for layer in (2, 3))}
    config = transformers.BertConfig(
        vocab_size=len(own["embeddings.word_embeddings.weight"]),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict(kept)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made("tokenizer"))
    encoded = tokenizer([clean_text(text) for text in TEXTS], padding="max_length", max_length=20, return_tensors="pt")
    with torch.no_grad():
        states = theirs(encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state[:, 0]
    projected = F.normalize(states @ tensors["text_proj.weight"].T + tensors["text_proj.bias"], dim=1)
    close(umt("retrieval").encode_text(TEXTS), projected)


def test_texts_do_not_depend_on_their_batch(umt: Callable[[str], VideoModel]) -> None:
    model = umt("retrieval")
    together = model.encode_text(TEXTS)
    close(together, torch.cat([model.encode_text([text]) for text in TEXTS]))
    assert model.encode_text([]).shape == (0, 24)


@pytest.mark.parametrize("layout", ["retrieval", "pretraining"])
def test_matching_equals_the_reference(umt: Callable[[str], VideoModel], made: Any, layout: str) -> None:
    model, tensors = umt(layout), read_checkpoint(made(layout))
    root = "text_encoder.bert" if layout == "pretraining" else "text_encoder"
    tokenizer = transformers.AutoTokenizer.from_pretrained(made("tokenizer"))
    tokens = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(2))
    expected = []
    for text, look in zip(TEXTS, tokens, strict=True):
        states = reference.bert(tensors, root, tokenizer(clean_text(text))["input_ids"], range(4), 2, look)
        expected.append(reference.linear(tensors, "itm_head", states[0])[1])
    close(model.match(TEXTS, tokens), torch.stack(expected))
    one = model.match(TEXTS, tokens[:1])
    close(one, model.match(TEXTS, tokens[:1].expand(3, -1, -1)))
    assert torch.stack(expected).std() > 0.01 and one.std() > 0.01


@pytest.mark.parametrize("top", [1, 3, 128])
def test_ranked_answers_equal_scoring_each(umt: Callable[[str], VideoModel], made: Any, top: int) -> None:
    """Against scoring every answer token by token; `top` 128 is all of them."""
    model, tensors = umt("answers"), read_checkpoint(made("answers"))
    questions = ["What is red?", "who walks", "is the dog blue", "what opens the door", "two cats"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(made("tokenizer"))
    tokens = 3 * torch.randn(len(questions), 6, 48, generator=torch.Generator().manual_seed(3))
    expected = []
    for question, look in zip(questions, tokens, strict=True):
        ids = tokenizer(clean_text(question))["input_ids"]
        states = reference.bert(tensors, "text_encoder", ids, range(4), 2, look)
        scores = []
        for place, answer in enumerate(ANSWERS):
            words = [2, *tokenizer(answer, add_special_tokens=False)["input_ids"], 3, 3]
            first, whole = reference.answer_score(tensors, states, words, layers=2, heads=2)
            scores.append((first, -place, whole))
        kept = sorted(scores, reverse=True)[:top]
        expected.append(-max(kept, key=lambda score: score[0] + score[2])[1])
    assert model.rank_answers(questions, tokens, ANSWERS, top=top).tolist() == expected
    assert len(set(expected)) > 1


def test_likelihoods_of_answers_equal_the_reference(umt: Callable[[str], VideoModel], made: Any) -> None:
    """Answers of unlike lengths in one padded batch, against each alone and token by token."""
    model, tensors = umt("answers"), read_checkpoint(made("answers"))
    text = model.text
    look = torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        states, mask = text.read(["what is red?"], 25)
        states = text.fuse(states, mask, look)
        ids, real = text.words([f"{answer} [SEP]" for answer in ANSWERS], 5, look.device)
        logits = text._continue(ids, real, states, mask)[:, :-1].log_softmax(dim=-1)
    logs = (logits.gather(2, ids[:, 1:, None])[..., 0] * real[:, 1:]).sum(dim=1)
    assert ids[3].tolist()[-2:] == [3, 3] and ids[0].tolist()[-3:] == [3, 3, 0]
    expected = [
        reference.answer_score(tensors, states[0], row[mask.bool()].tolist(), layers=2, heads=2)[1]
        for row, mask in zip(ids, real, strict=True)
    ]
    close(logs, torch.tensor(expected), 1e-4)


@pytest.mark.parametrize(("top", "best"), [(3, "red circle"), (1, "blue square")])
def test_the_first_token_of_an_answer_counts_twice(
    umt: Callable[[str], VideoModel], made: Any, monkeypatch: pytest.MonkeyPatch, top: int, best: str
) -> None:
    """By hand: blue square has 0.45 * 0.45 * 0.1 = 0.020, red circle 0.3 * 0.3 * 0.8 = 0.072, green square 0.25 * 0.25
    = 0.0625; were the first token counted once, green square would win with 0.25 over 0.24.
    """
    model = umt("answers")
    word = transformers.AutoTokenizer.from_pretrained(made("tokenizer")).convert_tokens_to_ids
    second = {"red": ("circle", 0.8), "blue": ("square", 0.1), "green": ("square", 1.0)}

    def next_tokens(ids: Tensor, *_: Any) -> Tensor:
        chances = torch.full((*ids.shape, model.text.sizes.vocabulary), 1e-9)
        chances[:, 0, [word("red"), word("blue"), word("green")]] = torch.tensor([0.3, 0.45, 0.25])
        for row in range(len(ids)):
            for first, (then, chance) in second.items():
                if ids.shape[1] > 1 and ids[row, 1] == word(first):
                    chances[row, 1, word(then)], chances[row, 1, 0] = chance, 1 - chance
            chances[row, 2:, word("[SEP]")] = 1.0
        return (chances / chances.sum(dim=-1, keepdim=True)).log()

    monkeypatch.setattr(model.text, "_continue", next_tokens)
    answers = ["blue square", "green square", "red circle"]
    assert answers[int(model.rank_answers(["what"], torch.randn(1, 5, 48), answers, top=top))] == best


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man, in a 'RED' T-shirt!?", "a man in a red t shirt"),
        ('  <person> opens/closes\nthe (door);  *slowly*: #1 ~ "now". ', "person opens closes the door slowly 1 now"),
        ("plain text", "plain text"),
    ],
)
def test_texts_are_cleaned(text: str, expected: str) -> None:
    assert clean_text(text) == expected
    assert clean_text(expected) == expected


def test_long_texts_are_cut_with_a_warning(umt: Callable[[str], VideoModel]) -> None:
    model = umt("retrieval")
    with pytest.warns(UserWarning, match="1 texts were cut to 4 tokens, the first is 'a red circle"):
        cut = model.encode_text(["a red circle on the square", "cat"], max_tokens=4)
    close(cut, model.encode_text(["a red", "cat"]))


# --- ViFi-CLIP


def test_vifi_equals_clip_with_the_same_weights(made: Callable[[str], Path], tmp_path: Path) -> None:
    """A CLIPModel of transformers, written under ViFi-CLIP's names, gives the same features of images and texts."""
    clip = made("clip")
    tensors = load_file(clip / "model.safetensors")
    file = tmp_path / "vifi.pth"
    torch.save({"model": {f"module.{key}": value for key, value in _openai(tensors).items()}}, file)
    model, theirs = load_video(file, **VIFI, tokenizer=clip), load(clip)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        close(model.vision(pixels), theirs.vision(pixels))
    texts = ["a red circle", "the dog walks on the square"]
    close(model.encode_text(texts), theirs.encode_text(texts))
    assert (model.family, model.joint, model.frames, model.dim) == ("vifi-clip", True, 3, 24)
    assert model.logit_scale == pytest.approx(math.exp(2.5))


def test_vifi_uses_its_own_token_embedding_when_it_has_one(made: Callable[[str], Path], tmp_path: Path) -> None:
    clip, tokenizer = made("clip"), tmp_path / "tokenizer"
    tensors = load_file(clip / "model.safetensors")
    own = _openai(tensors) | {
        "text_encoder.token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"]
    }
    torch.save(own, tmp_path / "vifi.pth")
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(clip / name, tokenizer / name)
    model = load_video(tmp_path / "vifi.pth", **VIFI, tokenizer=tokenizer)
    close(model.encode_text(["a red circle"]), load(clip).encode_text(["a red circle"]))
    with pytest.raises(ModelError, match="leave out the token embedding, which tokenizer= must then hold"):
        load_video(made("vifi"), **VIFI, tokenizer=tokenizer).encode_text(["a red circle"])


def _openai(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPModel's tensors, but for the token embedding, under the names and in the shapes of ViFi-CLIP."""
    vision, text = "vision_model", "text_model"
    made = {
        "logit_scale": tensors["logit_scale"],
        "image_encoder.class_embedding": tensors[f"{vision}.embeddings.class_embedding"],
        "image_encoder.conv1.weight": tensors[f"{vision}.embeddings.patch_embedding.weight"],
        "image_encoder.positional_embedding": tensors[f"{vision}.embeddings.position_embedding.weight"],
        "image_encoder.proj": tensors["visual_projection.weight"].T.contiguous(),
        "text_encoder.positional_embedding": tensors[f"{text}.embeddings.position_embedding.weight"],
        "text_encoder.text_projection": tensors["text_projection.weight"].T.contiguous(),
        "prompt_learner.complete_text_embeddings": torch.zeros(2, 16, 32),
    }
    names = {
        "image_encoder.ln_pre": f"{vision}.pre_layrnorm",
        "image_encoder.ln_post": f"{vision}.post_layernorm",
        "text_encoder.ln_final": f"{text}.final_layer_norm",
    }
    for ours, theirs in (("image_encoder", vision), ("text_encoder", text)):
        for layer in range(3):
            block, source = f"{ours}.transformer.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}"
            parts = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            names |= {f"{block}.{new}": f"{source}.{old}" for new, old in parts.items()}
            for part in ("weight", "bias"):
                joined = [tensors[f"{source}.self_attn.{name}_proj.{part}"] for name in "qkv"]
                made[f"{block}.attn.in_proj_{part}"] = torch.cat(joined)
    for new, old in names.items():
        made |= {f"{new}.{part}": tensors[f"{old}.{part}"] for part in ("weight", "bias")}
    return made


def test_vifi_preprocessing(made: Callable[[str], Path]) -> None:
    """Shorter side 8/7 of S, the centre S x S, ImageNet's normalisation; against transformers' processor."""
    model = load_video(made("vifi"), **VIFI)
    frames = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = kind(
        size={"shortest_edge": 36},
        crop_size=32,
        resample=2,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    theirs = processor(list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    difference = (model.preprocess(frames) - theirs).abs()
    assert difference.max() < 0.018  # one grey level, where transformers' PIL and torch round apart
    assert difference.mean() < 0.002


# --- loading


def test_a_file_gives_its_name_and_hash(made: Callable[[str], Path], umt: Callable[[str], VideoModel]) -> None:
    import hashlib

    file = made("vision")
    model = umt("vision")
    assert model.name == os.path.abspath(file)
    assert model.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_safetensors_and_wrapped_files_load(made: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = read_checkpoint(made("projected"))
    save_file(tensors, tmp_path / "umt.safetensors")
    torch.save({"module": {f"module.{key}": value for key, value in tensors.items()}}, tmp_path / "umt.pth")
    models = [
        load_video(file, **SHAPES) for file in (made("projected"), tmp_path / "umt.safetensors", tmp_path / "umt.pth")
    ]
    features = [model.vision(clips(models[0])) for model in models]
    assert torch.equal(features[0], features[1]) and torch.equal(features[0], features[2])


@pytest.mark.parametrize("name", ["videomae", "retrieval", "vifi"])
def test_half_precision_is_near(made: Callable[[str], Path], name: str) -> None:
    arguments: dict[str, Any] = {
        "videomae": {},
        "retrieval": UMT | {"tokenizer": made("tokenizer")},
        "vifi": VIFI | {"tokenizer": made("clip")},
    }[name]
    full, half = load_video(made(name), **arguments), load_video(made(name), dtype="bfloat16", **arguments)
    assert half.dtype == torch.bfloat16
    pixels = clips(full)[0] if name == "vifi" else clips(full)
    with torch.no_grad():
        features = half.vision(pixels)
        assert features.dtype == torch.bfloat16
        assert F.cosine_similarity(full.vision(pixels), features.float()).min() > 0.99
    if name == "videomae":
        assert half.classify(features).dtype == torch.float32
        return
    close(half.encode_text(TEXTS), full.encode_text(TEXTS), 0.1)
    if name == "retrieval":
        tokens = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(1))
        close(half.match(TEXTS, tokens), full.match(TEXTS, tokens), 0.1)


def test_loading_leaves_the_random_numbers_alone(made: Callable[[str], Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_video(made("answers"), **UMT)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("name", "tokens", "parameters"),
    [
        # parameters: blocks 12 (or 24) of 12 W^2 + 13 W, less W for the bias keys lack; patches; norms; projection
        ("umt-b", 2352, 86.0e6),
        ("umt-l", 2352, 304.0e6),
        ("videomae-b", 1568, 86.2e6),
        ("vifi-clip-b16", 196, 86.2e6),
    ],
)
def test_skeletons(name: str, tokens: int, parameters: float) -> None:
    model = video_skeleton(name)
    assert model.vision.num_patches == tokens
    assert model.device.type == "meta"
    assert sum(parameter.numel() for parameter in model.vision.parameters()) == pytest.approx(parameters, rel=0.01)
    assert model.joint == (name != "videomae-b")


def test_skeletons_take_other_numbers_of_frames() -> None:
    model = video_skeleton("umt-b", frames=4)
    assert (model.frames, model.vision.num_patches) == (4, 784)
    assert video_skeleton("vifi-clip-b16", frames=8).frames == 8
    with pytest.raises(ValueError, match="multiple of 2, the frames of one token; got 5"):
        video_skeleton("videomae-b", frames=5)
    with pytest.raises(ModelError, match="known are umt-b, umt-l, videomae-b, vifi-clip-b16"):
        video_skeleton("umt-h")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames must be at least 1"),
        ({"frames": 15}, "multiple of 2"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"dim": 512}, "dim must equal width, got 512 and 768"),
        ({"image_size": 8}, "hold no patch of 16"),
        ({"pooling": "last"}, "pooling must be 'mean' or 'first', got 'last'"),
    ],
)
def test_bad_configurations_raise(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(VIDEO_ARCHITECTURES["videomae-b"], **change)


# --- what is wrong is said


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 3, 32, 32), "clips have 3 frames, fewer than the 4 this model takes"),
        ((1, 5, 3, 32, 32), "clips have 5 frames, more than the 4"),
        ((4, 3, 32, 32), r"pixels must be \[clips, 4, 3, 32, 32\] for this model, got \[4, 3, 32, 32\]"),
        ((1, 4, 3, 32, 31), r"got \[1, 4, 3, 32, 31\]"),
    ],
)
def test_other_pixels_raise(umt: Callable[[str], VideoModel], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        umt("vision").vision(torch.zeros(shape))


def test_missing_parts_raise(umt: Callable[[str], VideoModel], made: Callable[[str], Path]) -> None:
    tokens = torch.randn(1, 5, 48)
    with pytest.raises(ModelError, match="has no text tower"):
        umt("projected").encode_text(["cat"])
    with pytest.raises(ModelError, match="cannot match texts with clips"):
        umt("projected").match(["cat"], tokens)
    with pytest.raises(ModelError, match="cannot answer questions"):
        load_video(made("videomae")).rank_answers(["cat"], tokens, ["dog"])
    with pytest.raises(ModelError, match="no text_decoder"):
        umt("retrieval").rank_answers(["cat"], tokens, ["dog"])
    with pytest.raises(ModelError, match="no text_proj"):
        umt("answers").encode_text(["cat"])
    with pytest.raises(ModelError, match="no itm_head"):
        umt("answers").match(["cat"], tokens)
    with pytest.raises(ModelError, match="has no classifier"):
        umt("projected").classify(torch.zeros(1, 24))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.match(TEXTS, torch.zeros(2, 5, 48)), "3 texts came with the tokens of 2 clips"),
        (lambda model: model.match(TEXTS, torch.zeros(3, 5, 47)), r"tokens must be \[clips, tokens, 48\]"),
        (lambda model: model.match(TEXTS, torch.zeros(3, 0, 48)), r"got \[3, 0, 48\]"),
        (lambda model: model.encode_text(["cat"], max_tokens=41), "between 3 and the model's 40, got 41"),
        (lambda model: model.encode_text(["cat"], max_tokens=2), "got 2"),
        (lambda model: model.encode_text([" "]), "blank"),
        (lambda model: model.encode_text("cat"), r"pass \['cat'\]"),
    ],
)
def test_bad_texts_and_tokens_raise(umt: Callable[[str], VideoModel], call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(umt("retrieval"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["what"], torch.zeros(1, 5, 48), []), "answers is empty"),
        ((["what"], torch.zeros(1, 5, 48), ["cat"], 0), "top must be at least 1, got 0"),
        ((["what"], torch.zeros(2, 5, 48), ["cat"]), "1 texts came with the tokens of 2 clips"),
    ],
)
def test_bad_questions_raise(umt: Callable[[str], VideoModel], arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        umt("answers").rank_answers(*arguments)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("vision_encoder.encoder.norm.bias"), r"missing: encoder.norm.bias"),
        (lambda t: t.pop("vision_encoder.encoder.patch_embed.proj.weight"), "lacks encoder.patch_embed.proj.weight"),
        (lambda t: t.update({"vision_encoder.encoder.blocks.0.gamma_1": torch.ones(48)}), "unexpected: .*gamma_1"),
        (lambda t: t.update({"audio.weight": torch.ones(1)}), "keys that no layout of UMT has: audio.weight"),
        (lambda t: t.update({"vision_proj.bias": torch.ones(3)}), r"wrong shape: vision_proj.bias \[3\]"),
        (lambda t: t.pop("text_encoder.encoder.layer.1.output.dense.bias"), "missing: text_encoder.encoder.layer.1"),
        (lambda t: t.pop("text_encoder.encoder.layer.3.crossattention.self.key.bias"), "missing: .*crossattention"),
        (lambda t: t.pop("text_encoder.embeddings.word_embeddings.weight"), "lacks .*word_embeddings.weight"),
        (lambda t: t.pop("itm_head.bias"), "missing: itm_head.bias"),
        (lambda t: t.update({"text_encoder.extra": torch.ones(1)}), "unexpected: text_encoder.extra"),
    ],
)
def test_spoilt_umt_weights_raise(tmp_path: Path, spoil: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    tensors = video_checkpoints.umt_tensors("retrieval")
    spoil(tensors)
    torch.save(tensors, tmp_path / "umt.pth")
    with pytest.raises(ModelError, match=message):
        load_video(tmp_path / "umt.pth", **UMT)


@pytest.mark.parametrize(
    ("layout", "arguments", "message"),
    [
        ("vision", {}, "layers of width 48 have, and 64 channels per head do not divide it: give heads="),
        ("vision", {"heads": 5}, "heads must divide the width 48 .*, got 5"),
        ("vision", {"heads": 4, "text_heads": 2}, "no text encoder, so it takes neither tokenizer nor text_heads"),
        ("vision", {"heads": 4, "tokenizer": "bert-base-uncased"}, "no text encoder"),
        ("vision", {"heads": 4, "frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ("vision", {"heads": 4, "frames": 2.0}, "got 2.0"),
        ("vision", {"heads": 4, "image_size": 4}, "frames of 4 pixels hold no patch"),
        ("retrieval", {"heads": 4}, "layers of width 32 have.*give text_heads="),
        ("vifi", {"heads": 4, "image_size": 64}, "image_size=64 cannot be used .*: its positions say 32"),
        ("vifi", {}, "give heads="),
        ("videomae", {"frames": 8}, "frames=8 cannot be used with .*: its config.json says 4; leave it out"),
        ("videomae", {"heads": 2}, "heads=2 cannot be used"),
        ("videomae", {"image_size": 64}, "config.json says 32"),
        ("videomae", {"tokenizer": "bert-base-uncased"}, "VideoMAE has no text tower"),
    ],
)
def test_arguments_that_cannot_be_raise(made: Any, layout: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_video(made(layout), **arguments)


def test_arguments_that_agree_with_the_config_are_fine(made: Callable[[str], Path]) -> None:
    assert load_video(made("videomae"), frames=4, heads=4, image_size=32).frames == 4


class _Config(dict):
    """What a training script pickles beside the weights: a dict with attributes."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        setattr(self, key, value)


def _touch(file: str) -> None:
    Path(file).touch()


class _Blocked:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("somewhere",))


def test_modules_that_torch_blocks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "umt.pth"
    torch.save({"model": video_checkpoints.umt_tensors("vision"), "other": _Blocked()}, file)
    with pytest.raises(
        ModelError, match=r"umt.pth cannot be read as weights: .*posix.mkdir whose module posix is blocked"
    ):
        load_video(file, **SHAPES)


class _Bomb:
    """Code that plain unpickling would run."""

    def __reduce__(self) -> Any:
        return (_touch, (self.file,))

    def __init__(self, file: Path) -> None:
        self.file = str(file)


def test_objects_beside_the_weights_are_not_run(tmp_path: Path) -> None:
    file, touched = tmp_path / "umt.pth", tmp_path / "touched"
    config = _Config(depth=3)
    config["inner"] = _Config(width=[1, 2])
    tensors = video_checkpoints.umt_tensors("vision")
    others = {"config": config, "args": Namespace(out=tmp_path), "bomb": _Bomb(touched), "d": defaultdict(list)}
    others["rate"] = np.float64(3)
    torch.save({"model": tensors, **others}, file)
    loaded = load_video(file, **SHAPES)
    torch.save(tensors, tmp_path / "plain.pth")
    pixels = torch.randn(1, loaded.frames, 3, loaded.image_size, loaded.image_size)
    with torch.no_grad():
        assert torch.equal(loaded.vision(pixels), load_video(tmp_path / "plain.pth", **SHAPES).vision(pixels))
    assert not touched.exists()
    torch.load(file, weights_only=False)  # what the bomb would have done
    assert touched.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights", "cannot be read as weights"),
        ({"model": {"a": 1}}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
    ],
)
def test_files_that_are_no_weights_raise(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ModelError, match=message):
        load_video(file)


def test_vifi_with_learned_prompts_raises(made: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = read_checkpoint(made("vifi")) | {"image_encoder.VPT": torch.zeros(4, 32)}
    torch.save(tensors, tmp_path / "vifi.pth")
    with pytest.raises(ModelError, match=r"learned prompts \(image_encoder.VPT\), which are not supported"):
        load_video(tmp_path / "vifi.pth", **VIFI)


def test_other_models_and_folders_raise(made: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model_type 'clip', which is not supported as a video model"):
        load_video(made("clip"))
    with pytest.raises(ModelError, match="holds no weights"):
        (tmp_path / "empty").mkdir()
        load_video(tmp_path / "empty")
    with pytest.raises(ModelError, match="no such file or folder"):
        load_video(tmp_path / "missing.pth")
    with pytest.raises(TypeError, match="name must be"):
        load_video(None)  # type: ignore[arg-type]


def test_spoilt_videomae_folders_raise(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("videomae"), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("classifier.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: classifier.bias"):
        load_video(folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_frames": 5}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config.json cannot be used: frames must be a multiple of 2"):
        load_video(folder)


def test_a_tokenizer_that_cannot_be_had_is_missed_only_by_texts(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = load_video(made("retrieval"), **UMT)
    assert model.vision(clips(model)).shape == (2, 24)
    with pytest.raises(ModelError, match="bert-base-uncased is neither a local folder nor in the hub cache"):
        model.encode_text(["cat"])
    (tmp_path / "nothing").mkdir()
    model = load_video(made("retrieval"), **UMT, tokenizer=tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no tokenizer can be read from .*: give tokenizer="):
        model.encode_text(["cat"])


def test_of_a_tokenizer_on_the_hub_only_its_files_are_fetched(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(name: str, patterns: list[str], *, offline: bool) -> Path:
        asked.append((name, patterns))
        return made("tokenizer")

    monkeypatch.setattr(hub, "_probe", lambda name: None)
    monkeypatch.setattr(hub, "_snapshot", snapshot)
    model = load_video(made("retrieval"), **UMT)
    assert not asked
    close(
        model.encode_text(["the dog"]),
        load_video(made("retrieval"), **UMT, tokenizer=made("tokenizer")).encode_text(["the dog"]),
    )
    assert [name for name, _ in asked] == ["bert-base-uncased"]
    assert "vocab.txt" in asked[0][1] and not any(
        "safetensors" in pattern or ".bin" in pattern for pattern in asked[0][1]
    )


def test_a_tokenizer_of_another_vocabulary_raises(made: Callable[[str], Path], tmp_path: Path) -> None:
    file = video_checkpoints.umt(tmp_path / "umt.pth", vocabulary=20)
    model = load_video(file, **UMT, tokenizer=made("tokenizer"))
    with pytest.raises(ModelError, match="but the weights have 20 tokens: the two do not belong together"):
        model.encode_text(["the dog walks"])


def test_a_model_moves_as_a_whole(umt: Callable[[str], VideoModel]) -> None:
    """No tensor is left on the meta device, where transformers' layers were made."""
    for layout in ("retrieval", "answers"):
        model = umt(layout).to(torch.device("cpu"))
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
