"""Tiny checkpoints in Hugging Face format, with seeded weights in every parameter, for tests without
downloads.

Each function writes a folder that `everyframe.load` and transformers both read, and returns the folder.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

WORDS = ["a", "an", "the", "red", "blue", "green", "circle", "square", "cat", "dog", "person"]
WORDS += ["opens", "door", "in", "on", "of", "and", "walks"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter values that matter: activations stay near 1, nothing is exactly 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("logit_scale"):
                parameter.fill_(2.5)
            elif name.endswith("logit_bias"):
                parameter.fill_(-4.0)
            elif "lambda" in name or ("norm" in name and name.endswith("weight")):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.dim() > 1 and "embedding" not in name and "token" not in name:
                parameter.copy_(1.2 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.4 * noise)


def clip_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer of CLIP's kind, saved in `folder`. Returns the vocabulary's size."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    pieces: dict[str, int] = {}
    for letter in sorted(ByteLevel.alphabet()):
        pieces[letter] = len(pieces)
    for letter in sorted(ByteLevel.alphabet()):
        pieces[f"{letter}</w>"] = len(pieces)
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            joined = parts[0] + parts[1]
            if joined not in pieces:
                pieces[joined] = len(pieces)
                merges.append((parts[0], parts[1]))
            parts[:2] = [joined]
    for special in ("<|startoftext|>", "<|endoftext|>"):
        pieces[special] = len(pieces)
    CLIPTokenizer(vocab=pieces, merges=merges, model_max_length=77).save_pretrained(folder)
    return len(pieces)


def clip(
    folder: Path,
    *,
    seed: int = 0,
    activation: str = "quick_gelu",
    image_size: int = 32,
    patch_size: int = 8,
    dim: int = 24,
    context: int = 16,
    width: int = 32,
    depth: int = 3,
    heads: int = 4,
    old_end_rule: bool = False,
    tokenizer: bool = True,
    **save: Any,
) -> Path:
    """A CLIPModel. `old_end_rule` writes `eos_token_id: 2`, as OpenAI's configurations do."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = clip_tokenizer(folder) if tokenizer else 100
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth}
    sizes |= {"num_attention_heads": heads, "hidden_act": activation}
    config = CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": vocabulary,
            "max_position_embeddings": context,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": 2 if old_end_rule else vocabulary - 1,
        },
        vision_config={**sizes, "image_size": image_size, "patch_size": patch_size},
        projection_dim=dim,
    )
    model = CLIPModel(config)
    randomise(model, seed)
    model.save_pretrained(folder, **save)
    _preprocessor(folder, "CLIPImageProcessor", size={"shortest_edge": image_size}, crop=image_size)
    return folder


def light(folder: Path, *, depth: int = 2) -> Path:
    """As many patches as the bundled model has, a tenth of its work, and a residual tokenizer beside it: for what does
    not depend on the weights.
    """
    from everyframe.backbone import load
    from everyframe.encoders import ResidualTokenizer

    model = load(clip(folder, image_size=112, width=32, depth=depth, heads=2, context=64), device="cpu")
    facts = {"weights_sha256": model.weights_sha256, "drop": 0.85}
    torch.manual_seed(0)
    ResidualTokenizer(model.dim, model.vision.config.width, facts=facts).save(folder / "residual_tokenizer.safetensors")
    return folder


def clip_vision(folder: Path, *, seed: int = 0, projection: bool = True) -> Path:
    """A CLIPVisionModelWithProjection (or a bare CLIPVisionModel), without preprocessor_config.json."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**SIZES, image_size=32, patch_size=8, projection_dim=24, hidden_act="gelu")
    model = CLIPVisionModelWithProjection(config) if projection else CLIPVisionModel(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    return folder


def siglip(folder: Path, *, seed: int = 0, image_size: int = 32, patch_size: int = 8, dim: int = 32) -> Path:
    """A SiglipModel with a tokenizer of Gemma's kind (as fixed-resolution SigLIP2 has): needs no
    sentencepiece.
    """
    from transformers import SiglipConfig, SiglipModel

    folder.mkdir(parents=True, exist_ok=True)
    config = SiglipConfig(
        text_config={**SIZES, **_siglip_text(gemma_tokenizer(folder)), "projection_size": dim},
        vision_config={**SIZES, "image_size": image_size, "patch_size": patch_size},
    )
    model = SiglipModel(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    _preprocessor(folder, "SiglipImageProcessor", size={"height": image_size, "width": image_size}, crop=None)
    return folder


def siglip_vision(folder: Path, *, seed: int = 0) -> Path:
    """A SiglipVisionModel, alone."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=32, patch_size=8))
    randomise(model, seed)
    model.save_pretrained(folder)
    return folder


def siglip2(folder: Path, *, seed: int = 0, grid: int = 4, patch_size: int = 8) -> Path:
    """A Siglip2Model (NaFlex) with a native grid of `grid` x `grid` patches."""
    from transformers import Siglip2Config, Siglip2Model

    folder.mkdir(parents=True, exist_ok=True)
    config = Siglip2Config(
        text_config={**SIZES, **_siglip_text(gemma_tokenizer(folder))},
        vision_config={**SIZES, "num_patches": grid * grid, "patch_size": patch_size},
    )
    model = Siglip2Model(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    settings = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": patch_size}
    settings |= {
        "max_num_patches": grid * grid,
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def dinov2(
    folder: Path,
    *,
    seed: int = 0,
    swiglu: bool = False,
    registers: int = 0,
    crop: int = 28,
    image_size: int = 70,
) -> Path:
    """A Dinov2Model, or with registers; trained at `image_size`, used at `crop`: its positions are
    interpolated.
    """
    import transformers

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    options = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=7,
        use_swiglu_ffn=swiglu,
        **options,
    )
    model = getattr(transformers, f"{kind}Model")(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    size, mean, std = {"shortest_edge": crop + 4}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    _preprocessor(folder, "BitImageProcessor", size=size, crop=crop, image_mean=mean, image_std=std)
    return folder


def gemma_tokenizer(folder: Path) -> int:
    """A BPE tokenizer of SigLIP2's kind, saved in `folder`; it makes no attention mask. Returns its size."""
    from transformers import Siglip2Tokenizer

    pieces = {piece: number for number, piece in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])}
    for letter in "▁abcdefghijklmnopqrstuvwxyz.,!?":
        pieces[letter] = len(pieces)
    merges = []
    for word in WORDS:
        for left, right in pairwise(word):
            if left + right not in pieces:
                pieces[left + right] = len(pieces)
                merges.append((left, right))
    tokenizer = Siglip2Tokenizer(
        vocab=pieces, merges=merges, padding_side="right", model_max_length=16, add_eos_token=True
    )
    tokenizer.model_input_names = ["input_ids"]
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"model_input_names": ["input_ids"]}
    file.write_text(json.dumps(settings), encoding="utf-8")
    return len(pieces)


def _siglip_text(vocabulary: int) -> dict[str, Any]:
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    return {"vocab_size": vocabulary, "max_position_embeddings": 16, **special}


def _preprocessor(folder: Path, kind: str, *, size: dict[str, int], crop: int | None, **more: Any) -> None:
    settings: dict[str, Any] = {"image_processor_type": kind, "do_resize": True, "size": size, "resample": 3}
    settings |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True}
    if crop is not None:
        settings |= {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}}
    if kind == "CLIPImageProcessor":
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        settings |= {"image_mean": mean, "image_std": std}
    elif kind == "SiglipImageProcessor":
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | more), encoding="utf-8")
