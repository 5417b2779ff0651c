"""The backbone against transformers: same features, same pixels; and what it says of a bad checkpoint."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
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
from everyframe.backbone import Block, BlockConfig, Model, ModelError, Preprocess, load
from everyframe.backbone.preprocess import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD

TEXTS = ["a red circle", "The dog walks", "a cat on the square"]
VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "videos"

FAMILIES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "clip": ("clip", checkpoints.clip),
    "clip-gelu": ("clip", lambda path: checkpoints.clip(path, activation="gelu", old_end_rule=True)),
    "clip-uneven": (
        "clip",
        lambda path: checkpoints.clip(path, patch_size=10, image_size=32, width=48, heads=3),
    ),
    "clip-vision": ("clip", checkpoints.clip_vision),
    "clip-bare": ("clip", lambda path: checkpoints.clip_vision(path, projection=False)),
    "siglip": ("siglip", checkpoints.siglip),
    "siglip-uneven": ("siglip", lambda path: checkpoints.siglip(path, patch_size=9)),
    "siglip-vision": ("siglip", checkpoints.siglip_vision),
    "siglip2": ("siglip2", checkpoints.siglip2),
    "dinov2": ("dinov2", checkpoints.dinov2),
    "dinov2-native": ("dinov2", lambda path: checkpoints.dinov2(path, crop=28, image_size=28)),
    "dinov2-swiglu": ("dinov2", lambda path: checkpoints.dinov2(path, swiglu=True)),
    "dinov2-registers": ("dinov2", lambda path: checkpoints.dinov2(path, registers=3)),
}
WITH_TEXT = ("clip", "clip-gelu", "clip-uneven", "siglip", "siglip2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each family's checkpoint once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = FAMILIES[name][1](tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture
def copy(folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's checkpoint that a test may spoil."""
    return lambda name: Path(shutil.copytree(folder(name), tmp_path / name))


def reference(path: Path) -> Any:
    """The same checkpoint as transformers' own model."""
    architecture = json.loads((path / "config.json").read_text())["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(path).eval()


def reference_features(model: Any, pixels: Tensor, patch_size: int) -> Tensor:
    """Image features as transformers computes them, whatever the model calls them."""
    if isinstance(model, transformers.Siglip2Model):
        grid = pixels.shape[-1] // patch_size
        cells = pixels.unflatten(3, (grid, patch_size)).unflatten(2, (grid, patch_size))
        patches = cells.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), grid * grid, -1)
        shapes = torch.tensor([[grid, grid]] * len(pixels))
        mask = torch.ones(patches.shape[:2], dtype=torch.long)
        return model.get_image_features(patches, pixel_attention_mask=mask, spatial_shapes=shapes).pooler_output
    if hasattr(model, "get_image_features"):
        return model.get_image_features(pixels).pooler_output
    output = model(pixels)
    return output.image_embeds if "image_embeds" in output else output.pooler_output


def pixels_for(model: Model, count: int = 3, seed: int = 1) -> Tensor:
    side = model.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def photos(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames with structure at all scales, as photographs have it: uint8 [count, height, width, 3]."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, 3, height, width)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        coarse = torch.rand(count, 3, min(cells, height), min(cells, width), generator=generator)
        image += F.interpolate(coarse, size=(height, width), mode="bilinear") / cells**0.5
    image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-6) * 255
    image += 4 * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def pil_processor(kind: str, **settings: Any) -> Any:
    """transformers' image processor with its PIL backend, under the name of this release or of older ones."""
    return (getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind))(**settings)


def processed(processor: Any, frames: np.ndarray) -> Tensor:
    return processor(list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"]


# --- features


@pytest.mark.parametrize("name", FAMILIES)
def test_image_features_equal_transformers(name: str, folder: Callable[[str], Path]) -> None:
    model, theirs = load(folder(name)), reference(folder(name))
    pixels = pixels_for(model)
    with torch.no_grad():
        ours = F.normalize(model.vision(pixels), dim=-1)
        expected = F.normalize(reference_features(theirs, pixels, model.vision.config.patch_size), dim=-1)
    assert model.family == FAMILIES[name][0]
    assert ours.shape == (3, model.dim)
    assert (ours[0] - ours[1]).abs().max() > 0.01  # the checkpoint tells images apart, so equality means something
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_features_equal_transformers(name: str, folder: Callable[[str], Path]) -> None:
    model, theirs = load(folder(name)), reference(folder(name))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder(name))
    tokens = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = F.normalize(theirs.get_text_features(**tokens).pooler_output, dim=-1)
        ours = model.encode_text(TEXTS)
    assert ours.dtype == torch.float32
    assert (ours[0] - ours[1]).abs().max() > 0.01
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2-swiglu"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(name: str, dtype: str, folder: Callable[[str], Path]) -> None:
    full, half = load(folder(name)), load(folder(name), dtype=dtype)
    assert half.dtype == getattr(torch, dtype)
    pixels = pixels_for(full)
    with torch.no_grad():
        assert half.vision(pixels).dtype == half.dtype
        assert F.cosine_similarity(half.vision(pixels).float(), full.vision(pixels)).min() > 0.999
    if full.text is not None:
        texts = half.encode_text(TEXTS)
        assert texts.dtype == torch.float32
        torch.testing.assert_close(texts.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)
        assert (texts * full.encode_text(TEXTS)).sum(1).min() > 0.999


def test_logit_scale_and_bias_are_those_of_training(folder: Callable[[str], Path]) -> None:
    clip, siglip = load(folder("clip")), load(folder("siglip"))
    assert clip.logit_scale == pytest.approx(np.exp(2.5))
    assert clip.logit_bias == 0
    assert (siglip.logit_scale, siglip.logit_bias) == pytest.approx((np.exp(2.5), -4.0))


# --- the vision transformer, taken apart


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2-registers"])
def test_embedding_a_subset_gives_rows_of_the_whole(name: str, folder: Callable[[str], Path]) -> None:
    vision = load(folder(name)).vision
    patches = vision.patchify(pixels_for(load(folder(name)), 2))
    whole = vision.embed(patches)
    kept = torch.tensor([[3, 0, 7], [15, 2, 9]])
    rows = kept[..., None].expand(-1, -1, patches.shape[2])
    some = vision.embed(patches.gather(1, rows), kept)
    torch.testing.assert_close(some, whole.gather(1, kept[..., None].expand(-1, -1, whole.shape[2])))
    torch.testing.assert_close(vision.embed(patches[:, kept[0]], kept[0]), whole[:, kept[0]])
    with pytest.raises(ValueError, match="3 patches came without indices, but the image has 16"):
        vision.embed(patches[:, :3])


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2-registers"])
def test_forward_is_its_parts(name: str, folder: Callable[[str], Path]) -> None:
    model = load(folder(name))
    vision, pixels = model.vision, pixels_for(model)
    tokens = torch.cat((vision.prefix(3), vision.embed(vision.patchify(pixels))), dim=1)
    assert vision.num_prefix == {"clip": 1, "siglip": 0, "dinov2-registers": 4}[name]
    assert tokens.shape == (3, vision.num_prefix + vision.num_patches, vision.config.width)
    assert vision.num_patches == vision.grid**2 == 16
    torch.testing.assert_close(vision.encode(tokens), vision(pixels))
    tokens = vision.pre(tokens)
    for block in vision.blocks:
        tokens = tokens + block.attend(tokens)
        tokens = tokens + block.feed(tokens)
    torch.testing.assert_close(vision.pool(tokens), vision(pixels))


def test_patches_are_in_raster_order(folder: Callable[[str], Path]) -> None:
    vision = load(folder("clip")).vision
    pixels = torch.arange(3 * 32 * 32.0).view(1, 3, 32, 32)
    patches = vision.patchify(pixels)
    torch.testing.assert_close(patches[0, 5], pixels[0, :, 8:16, 8:16].flatten())
    with pytest.raises(ValueError, match=r"\[batch, 3, 32, 32\] for this model, got \[1, 3, 16, 16\]"):
        vision.patchify(pixels[:, :, :16, :16])


def test_gradients_reach_an_extra_token_through_frozen_weights(folder: Callable[[str], Path]) -> None:
    model = load(folder("clip"))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    extra = torch.zeros(2, 1, model.vision.config.width, requires_grad=True)
    tokens = torch.cat(
        (model.vision.prefix(2), extra, model.vision.embed(model.vision.patchify(pixels_for(model, 2)))), 1
    )
    model.vision.encode(tokens).square().sum().backward()
    assert extra.grad is not None
    assert extra.grad.abs().min() > 0


def test_block_is_causal_when_asked_and_takes_a_bias() -> None:
    torch.manual_seed(0)
    block = Block(BlockConfig(width=16, heads=2, mlp_width=32, activation="gelu", norm_eps=1e-5))
    x = torch.randn(2, 6, 16)
    changed = x.clone()
    changed[:, 4:] = torch.randn(2, 2, 16)
    torch.testing.assert_close(block(x, causal=True)[:, :4], block(changed, causal=True)[:, :4])
    assert not torch.allclose(block(x)[:, :4], block(changed)[:, :4])
    torch.testing.assert_close(block(x, bias=torch.zeros(2, 1, 1, 6)), block(x))
    # a token of mass 2 counts as two equal tokens
    mass = torch.tensor([1.0, 1, 1, 1, 1, 2]).log().view(1, 1, 1, 6)
    doubled = block(torch.cat((x, x[:, 5:]), dim=1))[:, :6]
    torch.testing.assert_close(block(x, bias=mass), doubled)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("heads", 3, "16 cannot be split"),
        ("activation", "tanh", "'tanh' is not known"),
        ("width", 0, "at least 1"),
    ],
)
def test_block_config_refuses(field: str, value: Any, message: str) -> None:
    settings = {"width": 16, "heads": 2, "mlp_width": 32, "activation": "gelu", "norm_eps": 1e-5}
    with pytest.raises(ValueError, match=message):
        BlockConfig(**(settings | {field: value}))


# --- text


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_features_do_not_depend_on_the_batch(name: str, folder: Callable[[str], Path]) -> None:
    model = load(folder(name))
    texts = ["a cat", "the red dog walks on a circle", "door"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together, alone = model.encode_text(texts), torch.cat([model.encode_text([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert model.encode_text([]).shape == (0, model.dim)


def test_many_texts_are_encoded_in_batches(folder: Callable[[str], Path]) -> None:
    model = load(folder("clip"))
    many = model.encode_text(TEXTS * 100)
    assert many.shape == (300, model.dim)
    torch.testing.assert_close(many[297:], model.encode_text(TEXTS), atol=1e-6, rtol=0)


def test_siglip_tokenizer_with_mask_is_masked_as_transformers_masks(copy: Callable[[str], Path]) -> None:
    path = copy("siglip")
    file = path / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    tokenizer, theirs = transformers.AutoTokenizer.from_pretrained(path), reference(path)
    tokens = tokenizer(TEXTS[:2], padding="max_length", max_length=16, return_tensors="pt")
    assert "attention_mask" in tokens
    with torch.no_grad():
        expected = F.normalize(theirs.get_text_features(**tokens).pooler_output, dim=-1)
    torch.testing.assert_close(load(path).encode_text(TEXTS[:2]), expected, atol=1e-5, rtol=0)


def test_siglip_with_its_sentencepiece_tokenizer(copy: Callable[[str], Path]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    path = copy("siglip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    lines = path / "lines.txt"
    lines.write_text("\n".join([*TEXTS, " ".join(checkpoints.WORDS)] * 4).lower())
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(path / "spiece"), vocab_size=30, eos_id=1, unk_id=2, bos_id=-1
    )
    settings = {
        "tokenizer_class": "SiglipTokenizer",
        "model_input_names": ["input_ids"],
        "do_lower_case": True,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 16}))
    tokenizer, theirs = transformers.AutoTokenizer.from_pretrained(path), reference(path)
    texts = ["a red circle!", "The dog"]
    tokens = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = F.normalize(theirs.get_text_features(**tokens).pooler_output, dim=-1)
        torch.testing.assert_close(load(path).encode_text(texts), expected, atol=1e-5, rtol=0)


def test_long_text_is_cut_with_a_warning(folder: Callable[[str], Path]) -> None:
    model = load(folder("clip"))
    long = "dog " * 30
    with pytest.warns(UserWarning, match=r"a text of 32 tokens was cut to the model's 16: 'dog dog") as caught:
        feature = model.encode_text([long])
    assert caught[0].filename == __file__
    torch.testing.assert_close(feature, model.encode_text(["dog " * 14]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("a cat", TypeError, r"got one str; pass \['a cat'\]"),
        (["a cat", ""], ValueError, r"texts\[1\] is blank"),
        (["  \n"], ValueError, r"texts\[0\] is blank"),
        ([3], TypeError, r"texts\[0\] must be a str, got int"),
    ],
)
def test_encode_text_refuses(texts: Any, error: type, message: str, folder: Callable[[str], Path]) -> None:
    with pytest.raises(error, match=message):
        load(folder("clip")).encode_text(texts)


@pytest.mark.parametrize("name", ["clip-vision", "siglip-vision", "dinov2"])
def test_encode_text_without_a_text_tower_raises(name: str, folder: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="has no text tower"):
        load(folder(name)).encode_text(["a cat"])


def test_vision_tower_of_a_whole_model_loads_alone(copy: Callable[[str], Path]) -> None:
    path = copy("clip")
    whole, pixels = load(path), torch.randn(1, 3, 32, 32)
    tensors = load_file(path / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k.startswith("vis")}, path / "model.safetensors")
    alone = load(path)
    assert alone.text is None
    torch.testing.assert_close(alone.vision(pixels), whole.vision(pixels))


def test_missing_tokenizer_is_named_when_text_comes(copy: Callable[[str], Path]) -> None:
    path = copy("clip")
    for file in path.glob("*token*"):
        file.unlink()
    model = load(path)
    with pytest.raises(ModelError, match=r"holds no tokenizer.*tokenizer\.json, tokenizer_config\.json"):
        model.encode_text(["a cat"])


def test_broken_tokenizer_raises_model_error(copy: Callable[[str], Path]) -> None:
    path = copy("clip")
    (path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelError, match=r"tokenizer files in .* cannot be read"):
        load(path).encode_text(["a cat"])


def test_foreign_tokenizer_raises_model_error(copy: Callable[[str], Path], folder: Callable[[str], Path]) -> None:
    path = copy("clip")
    for file in folder("siglip").glob("*token*"):
        shutil.copy(file, path)
    with pytest.raises(ModelError, match="does not end a text with token"):
        load(path).encode_text(["a cat"])
    small = copy("siglip")
    for file in folder("clip").glob("*token*"):
        shutil.copy(file, small)
    with pytest.raises(ModelError, match="the weights have"):
        load(small).encode_text(["a cat"])


# --- files


@pytest.mark.parametrize("layout", ["sharded", "bin", "sharded-bin", "float16", "old-buffers"])
def test_every_layout_of_weights_gives_the_same_model(layout: str, copy: Callable[[str], Path]) -> None:
    path = copy("clip")
    expected, pixels = load(path), torch.randn(2, 3, 32, 32)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names, dtype = sorted(tensors), "float32"
    halves = ({k: tensors[k] for k in names[::2]}, {k: tensors[k] for k in names[1::2]})
    if layout.startswith("sharded"):
        stem, suffix = ("model", "safetensors") if layout == "sharded" else ("pytorch_model", "bin")
        shards = [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
        for half, shard in zip(halves, shards, strict=True):
            (save_file if suffix == "safetensors" else torch.save)(half, path / shard)
        index = {"weight_map": {k: shard for half, shard in zip(halves, shards, strict=True) for k in half}}
        (path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    elif layout == "bin":
        torch.save(tensors, path / "pytorch_model.bin")
    elif layout == "float16":
        save_file({k: v.half() for k, v in tensors.items()}, path / "model.safetensors")
    else:
        buffer = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
        save_file(tensors | buffer, path / "model.safetensors")
    model = load(path, dtype=dtype)
    assert model.dtype == torch.float32
    torch.testing.assert_close(
        model.vision(pixels), expected.vision(pixels), atol=0.05 if layout == "float16" else 1e-6, rtol=0
    )
    assert len(model.weights_sha256) == 64


def test_weights_hash_is_that_of_the_file(folder: Callable[[str], Path]) -> None:
    file = folder("clip") / "model.safetensors"
    assert load(folder("clip")).weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_config_without_model_type_or_towers_takes_transformers_defaults(copy: Callable[[str], Path]) -> None:
    path = copy("clip")
    config = json.loads((path / "config.json").read_text())
    del config["model_type"], config["vision_config"]["layer_norm_eps"], config["vision_config"]["hidden_act"]
    (path / "config.json").write_text(json.dumps(config))
    model = load(path)
    assert (model.vision.config.norm_eps, model.vision.config.activation) == (1e-5, "quick_gelu")


def spoil_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def spoil_config(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    (
        "missing tensor",
        lambda path: spoil_tensors(path, lambda tensors: tensors.pop("vision_model.post_layernorm.weight")),
        r"missing: vision_model\.post_layernorm\.weight",
    ),
    (
        "missing text tensor",
        lambda path: spoil_tensors(path, lambda tensors: tensors.pop("text_projection.weight")),
        r"missing: text_projection\.weight",
    ),
    (
        "missing scale",
        lambda path: spoil_tensors(path, lambda tensors: tensors.pop("logit_scale")),
        "logit_scale",
    ),
    (
        "unexpected tensor",
        lambda path: spoil_tensors(path, lambda tensors: tensors.update(extra=torch.ones(2))),
        "unexpected: .*extra",
    ),
    (
        "deeper config",
        lambda path: spoil_config(path, lambda config: config["vision_config"].update(num_hidden_layers=4)),
        r"missing: vision_model\.encoder\.layers\.3",
    ),
    (
        "shallower config",
        lambda path: spoil_config(path, lambda config: config["vision_config"].update(num_hidden_layers=2)),
        r"unexpected: vision_model\.encoder\.layers\.2",
    ),
    (
        "wider config",
        lambda path: spoil_config(path, lambda config: config["vision_config"].update(intermediate_size=65)),
        r"wrong shape: .*mlp\.fc1\.weight \[64, 32\], where .* needs \[65, 32\]",
    ),
    (
        "odd shape",
        lambda path: spoil_tensors(
            path,
            lambda t: t.update({"vision_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(32, 9)}),
        ),
        r"wrong shape: .*q_proj\.weight \[32, 9\]",
    ),
    (
        "heads",
        lambda path: spoil_config(path, lambda config: config["vision_config"].update(num_attention_heads=5)),
        "config.json cannot be used",
    ),
    (
        "activation",
        lambda path: spoil_config(path, lambda config: config["vision_config"].update(hidden_act="mish")),
        "activation 'mish' is not known",
    ),
    (
        "architecture",
        lambda path: spoil_config(path, lambda config: config.update(model_type="bert")),
        r"model_type 'bert', which is not supported.*CLIP.*SigLIP.*DINOv2",
    ),
    ("no config", lambda path: (path / "config.json").unlink(), "holds no config.json"),
    ("config not JSON", lambda path: (path / "config.json").write_text("{"), "config.json is not JSON"),
    ("no weights", lambda path: (path / "model.safetensors").unlink(), "holds no weights"),
    (
        "cut weights",
        lambda path: (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:5000]),
        "cannot be read as weights",
    ),
    (
        "not a bin",
        lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"),
        "cannot be read as weights",
    ),
    (
        "shard gone",
        lambda path: (
            (path / "model.safetensors").rename(path / "other"),
            (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}'),
        ),
        r"shards that are not there: model-1-of-1\.safetensors",
    ),
    (
        "crop of another size",
        lambda path: (path / "preprocessor_config.json").write_text('{"crop_size": 30, "size": 30}'),
        "makes images of 30 pixels, but the model of config.json takes 32",
    ),
    (
        "filter",
        lambda path: (path / "preprocessor_config.json").write_text('{"resample": 1}'),
        r"resample 1; supported are 2 \(bilinear\), 3 \(bicubic\)",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_folder_raises_model_error(spoil: Callable[[Path], Any], message: str, copy: Callable[[str], Path]) -> None:
    path = copy("clip")
    spoil(path)
    with pytest.raises(ModelError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, int8, got 'int4'"),
        ({"dtype": torch.float64}, "dtype must be one of"),
        ({"device": "toaster"}, "device 'toaster' is not known"),
    ],
)
def test_load_refuses_arguments(arguments: Any, message: str, folder: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=message):
        load(folder("clip"), **arguments)


def test_names_that_are_no_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, message in [
        (tmp_path / "none", "nor a folder that exists"),
        ("./none", "nor a folder that exists"),
        (str(tmp_path / "file"), "is a file: give the folder"),
    ]:
        with pytest.raises(ModelError, match=message):
            load(name)


def run_python(code: str, **environment: str) -> str:
    quiet = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=quiet | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_hub_id_loads_from_the_cache_when_offline(folder: Callable[[str], Path], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--tiny--clip"
    shutil.copytree(folder("clip"), repository / "snapshots" / ("c" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    code = """
import everyframe.backbone as backbone
model = backbone.load("tiny/clip", device="cpu")
print(model.name, model.dim, tuple(model.encode_text(["a cat"]).shape))
try:
    backbone.load("tiny/other")
except backbone.ModelError as error:
    print(error)
"""
    output = run_python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1").splitlines()
    assert output[0] == "tiny/clip 24 (1, 24)"
    assert "tiny/other is neither a local folder nor in the hub cache, and HF_HUB_OFFLINE forbids" in output[1]


def test_unreachable_hub_is_an_error_at_once_and_the_cache_still_serves(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--tiny--clip"
    shutil.copytree(folder("clip"), repository / "snapshots" / ("c" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    code = """
import socket, time
import everyframe.backbone as backbone
start = time.monotonic()
print(backbone.load("tiny/clip", device="cpu").dim)
try:
    backbone.load("tiny/other")
except backbone.ModelError as error:
    print(error)
print(time.monotonic() - start)
"""
    output = run_python(
        code,
        HF_HOME=str(tmp_path),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE="0",
        HF_HUB_ETAG_TIMEOUT="1",
    ).splitlines()
    assert output[0] == "24"
    assert "tiny/other is neither a local folder nor in the hub cache, and the hub cannot be reached" in output[1]
    assert float(output[2]) < 15


def test_import_is_light() -> None:
    heavy = "('transformers', 'huggingface_hub', 'PIL')"
    code = f"import sys, everyframe.backbone; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


# --- preprocessing

SIZES = [
    (360, 480),
    (720, 1280),
    (1280, 720),
    (224, 224),
    (100, 130),
    (241, 319),
    (50, 400),
    (400, 3),
    (2, 300),
    (1, 1),
]
PROCESSORS: dict[str, tuple[Preprocess, str, dict[str, Any]]] = {
    "clip": (Preprocess(size=224, shorter_side=224, mean=CLIP_MEAN, std=CLIP_STD), "CLIPImageProcessor", {}),
    "dinov2": (
        Preprocess(size=224, shorter_side=256, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        "BitImageProcessor",
        {"size": {"shortest_edge": 256}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    ),
    "siglip": (
        Preprocess(size=224, stretch=224, crop=False, mean=HALF, std=HALF, resample="bilinear"),
        "SiglipImageProcessor",
        {"resample": 2},
    ),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", PROCESSORS)
def test_pixels_equal_transformers(family: str, size: tuple[int, int]) -> None:
    ours, kind, settings = PROCESSORS[family]
    frames = photos(2, *size)
    pixels, expected = ours(frames), processed(pil_processor(kind, **settings), frames)
    assert pixels.shape == expected.shape == (2, 3, 224, 224)
    difference = (pixels - expected).abs()
    assert difference.mean() < 0.002  # a grey level is 0.008 (SigLIP) to 0.018 (DINOv2) of these pixels
    assert difference.max() < 0.06


@pytest.mark.parametrize("name", ["v_GGSY1Qvo990.mp4", "flipping_a_pancake.mkv", "vid1.mp4", "video_90.mov"])
def test_pixels_of_real_frames_equal_transformers(name: str) -> None:
    if not (VIDEOS / name).is_file():
        pytest.skip("the test videos are not here")
    import av

    with av.open(str(VIDEOS / name)) as container:
        decoded = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(2), strict=False)
        ]
    frames = np.stack(decoded)
    for ours, kind, settings in PROCESSORS.values():
        difference = (ours(frames) - processed(pil_processor(kind, **settings), frames)).abs()
        assert difference.mean() < 0.002
        assert difference.max() < 0.06


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_model_follows_its_preprocessor_config(name: str, folder: Callable[[str], Path]) -> None:
    model, frames = load(folder(name)), photos(2, 60, 90)
    settings = json.loads((folder(name) / "preprocessor_config.json").read_text())
    expected = processed(pil_processor(settings.pop("image_processor_type"), **settings), frames)
    torch.testing.assert_close(model.preprocess(frames), expected, atol=0.06, rtol=0)
    assert json.loads(json.dumps(model.preprocess_settings)) == model.preprocess_settings


def test_naflex_pixels_equal_transformers_on_square_frames(folder: Callable[[str], Path]) -> None:
    model, frames = load(folder("siglip2")), photos(2, 80, 80)
    settings = json.loads((folder("siglip2") / "preprocessor_config.json").read_text())
    expected = processed(pil_processor(settings.pop("image_processor_type"), **settings), frames)
    patches = model.preprocess(frames).unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 3, 5, 1)
    torch.testing.assert_close(patches.reshape(2, 16, -1), expected, atol=0.02, rtol=0)
    assert model.preprocess(photos(1, 40, 90)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_resize": False, "do_normalize": False, "do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 2},
        {"size": {"shortest_edge": 20}},
        {"size": {"height": 50, "width": 50}},
        {"size": 40, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(60, 90), (20, 24), (21, 70)], ids=str)
def test_preprocessor_flags_are_honoured(
    settings: dict[str, Any], size: tuple[int, int], copy: Callable[[str], Path]
) -> None:
    path = copy("clip")
    file = path / "preprocessor_config.json"
    full = json.loads(file.read_text()) | settings
    file.write_text(json.dumps(full))
    frames = photos(2, *size)
    expected = processed(pil_processor(full.pop("image_processor_type"), **full), frames)
    atol = 2.1 * full["rescale_factor"] ** full["do_rescale"] / (min(full["image_std"]) if full["do_normalize"] else 1)
    torch.testing.assert_close(load(path).preprocess(frames), expected.float(), atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_preprocessing_has_family_defaults_and_reads_processor_config(name: str, copy: Callable[[str], Path]) -> None:
    path, frames = copy(name), photos(1, 50, 70)
    expected = load(path).preprocess(frames)
    file = path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.unlink()
    torch.testing.assert_close(load(path).preprocess(frames), expected)
    nested = {"image_processor": settings | {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}}
    (path / "processor_config.json").write_text(json.dumps(nested))
    assert load(path).preprocess(frames).min() >= 0


def test_pixels_do_not_depend_on_batch_or_memory_layout(folder: Callable[[str], Path]) -> None:
    ours, frames = PROCESSORS["clip"][0], photos(5, 300, 500)
    expected = ours(frames)
    torch.testing.assert_close(torch.cat([ours(frames[n : n + 1]) for n in range(5)]), expected)
    torch.testing.assert_close(ours(torch.from_numpy(frames)), expected)
    torch.testing.assert_close(ours(np.asfortranarray(frames)), expected)
    frozen = frames.copy()
    frozen.flags.writeable = False
    torch.testing.assert_close(ours(frozen), expected)
    torch.testing.assert_close(ours(frames[:, ::-1, :, ::-1]), ours(frames[:, ::-1, :, ::-1].copy()))
    assert ours(frames[:0]).shape == (0, 3, 224, 224)
    assert expected.dtype == torch.float32
    assert expected.is_contiguous()


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (np.zeros((4, 9, 9, 3)), TypeError, "must be uint8 .* got float64"),
        (np.zeros((9, 9, 3), np.uint8), ValueError, r"got one frame \[9, 9, 3\]; pass frames\[None\]"),
        (np.zeros((4, 3, 9, 9), np.uint8), ValueError, r"must be \[T, H, W, 3\]"),
        (np.zeros((4, 0, 9, 3), np.uint8), ValueError, "H and W at least 1"),
        ([np.zeros((9, 9, 3), np.uint8)], TypeError, "got list; stack a list of frames with numpy.stack"),
    ],
)
def test_preprocess_refuses(frames: Any, error: type, message: str, folder: Callable[[str], Path]) -> None:
    with pytest.raises(error, match=message):
        load(folder("clip")).preprocess(frames)


@pytest.mark.parametrize("size", [(120, 200), (200, 120), (88, 88), (40, 400)], ids=str)
@pytest.mark.parametrize("family", PROCESSORS)
def test_motion_lies_where_the_pixels_lie(family: str, size: tuple[int, int]) -> None:
    ours = PROCESSORS[family][0]
    # a bright box in the frame; the map holds the share of each 4 x 4 cell that the box covers
    height, width = size
    top, left = height // 2 - 8, width // 2 - 4
    frame = np.zeros((1, height, width, 3), np.uint8)
    frame[:, top : top + 12, left : left + 20] = 255
    cells = frame[..., 0].reshape(1, height // 4, 4, width // 4, 4).mean((2, 4)) / 255
    motion = ours.motion(cells, size)[0]
    shown = (ours(frame)[0, 0] > 0).float()
    assert motion.shape == (224, 224)
    for axis in (0, 1):
        places = torch.arange(224.0)
        centre = [(image.sum(1 - axis) * places).sum() / image.sum() for image in (motion, shown)]
        assert abs(centre[0] - centre[1]) < 0.02 * 224
    assert motion.sum() == pytest.approx(shown.sum().item(), rel=0.1)


def test_motion_equals_an_antialiased_resize_and_crop() -> None:
    ours = PROCESSORS["clip"][0]
    maps = np.random.default_rng(0).random((2, 45, 80))
    resized = F.interpolate(torch.from_numpy(maps).float()[None], size=(224, 398), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(ours.motion(maps, (720, 1280)), resized[:, :, 87 : 87 + 224], atol=1e-5, rtol=0)
    fine = torch.rand(1, 720, 1280)
    resized = F.interpolate(fine[None], size=(224, 398), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(ours.motion(fine, (720, 1280)), resized[:, :, 87 : 87 + 224], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.motion(torch.ones(1, 1, 1), (5, 9)), torch.ones(1, 224, 224))


def test_motion_of_padding_is_zero_and_bad_maps_are_refused() -> None:
    small = Preprocess(size=32, crop=True, mean=HALF, std=HALF)
    motion = small.motion(np.ones((1, 4, 4)), (16, 40))
    assert motion[0, 8:24].min() == pytest.approx(1)
    assert motion.sum() == pytest.approx(16 * 32)
    for maps, size, message in [
        (np.ones((4, 4)), (16, 16), r"must be \[T, h, w\]"),
        (np.ones((1, 4, 4)), (0, 16), "size must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            small.motion(maps, size)
    with pytest.raises(TypeError, match="got list"):
        small.motion([[1.0]], (16, 16))
