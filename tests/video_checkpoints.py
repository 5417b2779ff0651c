"""Tiny checkpoints of video models, with seeded weights in every tensor, for tests without downloads.

VideoMAE is written by transformers; UMT and ViFi-CLIP as dicts under the names of their authors' files. Each
function writes one checkpoint that `everyframe.load_video` reads, and returns its path:

    load_video(videomae(folder))
    load_video(umt(file), heads=4, text_heads=2, frames=4, image_size=32, tokenizer=bert_tokenizer(folder))
    load_video(vifi(file), heads=4, text_heads=4, frames=3, tokenizer=checkpoints.clip(folder, width=32))

or, for the last two, with `**UMT` and `**VIFI` as the arguments besides the tokenizer.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import WORDS, _preprocessor, randomise

UMT: dict[str, Any] = {"heads": 4, "text_heads": 2, "frames": 4, "image_size": 32}
VIFI: dict[str, Any] = {"heads": 4, "text_heads": 4, "frames": 3}
LABELS = ("opens a door", "walks", "sits down")


def videomae(
    folder: Path,
    *,
    kind: str = "VideoMAEForVideoClassification",
    mean_pooling: bool = True,
    qv_bias: bool = True,
    frames: int = 4,
    tubelet: int = 2,
    image_size: int = 32,
    patch_size: int = 8,
    width: int = 32,
    depth: int = 3,
    heads: int = 4,
    labels: tuple[str, ...] = LABELS,
    seed: int = 0,
) -> Path:
    """A VideoMAEForVideoClassification, VideoMAEForPreTraining or VideoMAEModel folder."""
    import transformers

    config = transformers.VideoMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        image_size=image_size,
        patch_size=patch_size,
        num_frames=frames,
        tubelet_size=tubelet,
        use_mean_pooling=mean_pooling,
        qv_bias=qv_bias,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = getattr(transformers, kind)(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    size, mean, std = {"shortest_edge": image_size}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    _preprocessor(
        folder, "VideoMAEImageProcessor", size=size, crop=image_size, resample=2, image_mean=mean, image_std=std
    )
    return folder


def umt(file: Path, layout: str = "retrieval", *, seed: int = 0, nested: bool = True, **sizes: int) -> Path:
    """A UMT file. `layout`: "retrieval", "pretraining", "answers" (question answering), "projected" (vision tower and
    `vision_proj`), "vision" (the tower alone) or "bare" (the same without the prefix `vision_encoder.`).

    `nested` puts the tensors under "model", beside what training leaves there.
    """
    tensors = umt_tensors(layout, seed=seed, **sizes)
    left: dict[str, Any] = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}, "epoch": 3, "global_step": 7}
    torch.save({"model": tensors, **left} if nested else tensors, file)
    return file


def umt_tensors(
    layout: str = "retrieval",
    *,
    seed: int = 0,
    width: int = 48,
    depth: int = 3,
    patch_size: int = 8,
    tubelet: int = 1,
    dim: int = 24,
    text_width: int = 32,
    text_layers: int = 2,
    fusion_layers: int = 2,
    vocabulary: int = 0,
    context: int = 40,
) -> dict[str, Tensor]:
    """The tensors of `umt`, under UMT's names; `vocabulary` 0 is that of `bert_tokenizer`."""
    draw = _Draw(seed)
    for layer in range(depth):
        block = f"encoder.blocks.{layer}"
        draw.norm(f"{block}.norm1", width)
        draw.add(f"{block}.attn.qkv.weight", 3 * width, width)
        draw.add(f"{block}.attn.q_bias", width)
        draw.add(f"{block}.attn.v_bias", width)
        draw.linear(f"{block}.attn.proj", width, width)
        draw.norm(f"{block}.norm2", width)
        draw.linear(f"{block}.mlp.fc1", 2 * width, width)
        draw.linear(f"{block}.mlp.fc2", width, 2 * width)
    draw.add("encoder.patch_embed.proj.weight", width, 3, tubelet, patch_size, patch_size)
    draw.add("encoder.patch_embed.proj.bias", width)
    draw.norm("encoder.norm", width)
    if layout != "answers":
        draw.norm("pool_norm", width)
    if layout == "bare":
        return draw.tensors
    draw.tensors = {f"vision_encoder.{key}": value for key, value in draw.tensors.items()}
    if layout == "vision":
        return draw.tensors
    if layout != "answers":
        draw.linear("vision_proj", dim, width)
    if layout == "projected":
        return draw.tensors
    vocabulary = vocabulary or len(_pieces())
    root = "text_encoder.bert" if layout == "pretraining" else "text_encoder"
    _bert(draw, root, text_width, vocabulary, context, [0] * text_layers + [width] * fusion_layers)
    if layout == "answers":
        # as in UMT's files, where the vision width is that of the text
        _bert(draw, "text_decoder.bert", text_width, vocabulary, context, [text_width] * fusion_layers)
        _word_head(draw, "text_decoder", text_width, vocabulary)
        return draw.tensors
    draw.linear("text_proj", dim, text_width)
    draw.linear("itm_head", 2, text_width)
    draw.tensors["temp"] = torch.tensor(0.05)
    if layout == "pretraining":
        _word_head(draw, "text_encoder", text_width, vocabulary)
        draw.linear("vision_encoder.clip_decoder.0.head", 16, width)
        draw.norm("vision_encoder.clip_decoder.0.norm", 16)
        draw.add("vision_encoder.clip_pos_embed", 1, 64, width)
        draw.tensors["text_encoder.bert.embeddings.position_ids"] = torch.arange(context)[None]
    return draw.tensors


def vifi(
    file: Path,
    *,
    seed: int = 0,
    wrapped: bool = True,
    embedding: bool = False,
    width: int = 32,
    depth: int = 3,
    patch_size: int = 8,
    image_size: int = 32,
    dim: int = 24,
    context: int = 16,
) -> Path:
    """A ViFi-CLIP file, both towers of one width. As its authors' files, without a token embedding (unless
    `embedding`, a size of the vocabulary, is given), under "model" and with prefixes "module." (`wrapped`).
    """
    draw = _Draw(seed)
    draw.add("image_encoder.class_embedding", width)
    draw.add("image_encoder.positional_embedding", (image_size // patch_size) ** 2 + 1, width)
    draw.add("image_encoder.conv1.weight", width, 3, patch_size, patch_size)
    draw.norm("image_encoder.ln_pre", width)
    draw.norm("image_encoder.ln_post", width)
    draw.add("image_encoder.proj", width, dim)
    draw.add("text_encoder.positional_embedding", context, width)
    draw.norm("text_encoder.ln_final", width)
    draw.add("text_encoder.text_projection", width, dim)
    for root in ("image_encoder", "text_encoder"):
        for layer in range(depth):
            block = f"{root}.transformer.resblocks.{layer}"
            draw.add(f"{block}.attn.in_proj_weight", 3 * width, width)
            draw.add(f"{block}.attn.in_proj_bias", 3 * width)
            draw.linear(f"{block}.attn.out_proj", width, width)
            draw.norm(f"{block}.ln_1", width)
            draw.norm(f"{block}.ln_2", width)
            draw.linear(f"{block}.mlp.c_fc", 2 * width, width)
            draw.linear(f"{block}.mlp.c_proj", width, 2 * width)
    if embedding:
        draw.add("text_encoder.token_embedding.weight", int(embedding), width)
    draw.add("prompt_learner.complete_text_embeddings", 3, context, width)
    draw.tensors["logit_scale"] = torch.tensor(4.0)
    tensors = draw.tensors
    if wrapped:
        tensors = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"model": tensors, "epoch": 10, "max_accuracy": 0.5} if wrapped else tensors, file)
    return file


def bert_tokenizer(folder: Path) -> Path:
    """An uncased WordPiece tokenizer of BERT's kind, as a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in _pieces()), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    return folder


class _Draw:
    """Named random tensors: activations stay near 1, nothing is exactly 0 or 1."""

    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, name: str, *shape: int) -> None:
        noise = torch.randn(shape, generator=self._generator)
        spread = noise[0].numel() ** -0.5 * 1.2 if name.endswith("weight") and "embedding" not in name else 0.4
        self.tensors[name] = spread * noise

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.add(f"{name}.weight", outputs, inputs)
        self.add(f"{name}.bias", outputs)

    def norm(self, name: str, width: int) -> None:
        self.add(f"{name}.bias", width)
        self.tensors[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=self._generator)


def _bert(draw: _Draw, root: str, width: int, vocabulary: int, context: int, crossing: list[int]) -> None:
    """A BERT; `crossing` has for each layer the width of what it looks at besides the text, 0 for nothing."""
    for name, count in (("word", vocabulary), ("position", context), ("token_type", 2)):
        draw.add(f"{root}.embeddings.{name}_embeddings.weight", count, width)
    draw.norm(f"{root}.embeddings.LayerNorm", width)
    for layer, other in enumerate(crossing):
        block = f"{root}.encoder.layer.{layer}"
        for attention, source in (("attention", width), ("crossattention", other)):
            if source:
                draw.linear(f"{block}.{attention}.self.query", width, width)
                draw.linear(f"{block}.{attention}.self.key", width, source)
                draw.linear(f"{block}.{attention}.self.value", width, source)
                draw.linear(f"{block}.{attention}.output.dense", width, width)
                draw.norm(f"{block}.{attention}.output.LayerNorm", width)
        draw.linear(f"{block}.intermediate.dense", 2 * width, width)
        draw.linear(f"{block}.output.dense", width, 2 * width)
        draw.norm(f"{block}.output.LayerNorm", width)


def _word_head(draw: _Draw, root: str, width: int, vocabulary: int) -> None:
    predictions = f"{root}.cls.predictions"
    draw.linear(f"{predictions}.transform.dense", width, width)
    draw.norm(f"{predictions}.transform.LayerNorm", width)
    draw.add(f"{predictions}.bias", vocabulary)
    draw.tensors[f"{predictions}.decoder.weight"] = draw.tensors[f"{root}.bert.embeddings.word_embeddings.weight"]
    draw.tensors[f"{predictions}.decoder.bias"] = draw.tensors[f"{predictions}.bias"]


def _pieces() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [
        *special,
        *WORDS,
        "what",
        "who",
        "is",
        "yes",
        "no",
        "two",
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    return list(dict.fromkeys(pieces))
