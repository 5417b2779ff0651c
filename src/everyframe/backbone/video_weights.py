"""What checkpoints of video towers say: their files, their keys, and the configuration in the tensors' shapes.

VideoMAE comes as a folder in Hugging Face format; UMT, vid-TLDR and ViFi-CLIP as one PyTorch file whose names
are those of their authors' code.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyframe.backbone import weights
from everyframe.backbone.hub import ModelError
from everyframe.backbone.video import VideoConfig, sinusoids
from everyframe.backbone.weights import Rule

_NESTED = ("model", "module", "state_dict")
_MOST_FOREIGN = 100  # classes that a file may name beside its weights
# What UMT's training leaves in a checkpoint and nothing here needs: the heads that imitate the CLIP teacher and the
# teacher, decoder and mask token of masked training, the masked-word head, the pooler.
_UNUSED_UMT = re.compile(
    r"(vision_encoder\.)?(clip_decoder\..*|clip_norm\..*|clip_pos_embed|clip_img_pos_embed|mask_token|decoder\..*)"
    r"|clip_teacher\..*|text_(encoder|decoder)\.(bert\.)?(pooler\..*|embeddings\.position_ids)|text_encoder\.cls\..*"
)


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of one weights file: .safetensors, or a PyTorch file with a state dict, plain or under "model",
    "module" or "state_dict", beside which optimizer states and the like are left out. Prefixes "module." are cut.

    Raises ModelError for a file that cannot be read, or that holds no state dict.
    """
    if file.suffix == ".safetensors":
        found = weights.read([file])
    else:
        found = _state(_load(file), file)
    return {key.removeprefix("module."): value for key, value in found.items()}


class _Inert:
    """Stands in for a class that a file names and torch does not know; its objects become empty dicts, which is what
    torch's unpickler lets items be set in.
    """

    def __new__(cls, *values: object, **named: object) -> Any:
        return OrderedDict()


class _Stateless:
    """What NumPy's values become: their state is a tuple, which a dict cannot take."""

    def __setstate__(self, state: object) -> None:
        """Left out."""


class _InertNumpy:
    """The same for NumPy's classes."""

    def __new__(cls, *values: object, **named: object) -> Any:
        return _Stateless()


def _load(file: Path) -> object:
    """What the file holds, by torch's unpickler for weights. It runs no code of the file: where training scripts left
    their configuration beside the weights, each class of theirs is read as `_Inert`.
    """
    unknown: list[Any] = [_Stateless]
    while True:
        try:
            with torch.serialization.safe_globals(unknown):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch and its unpickler raise anything on a bad file
            told = str(error).split("WeightsUnpickler error:")[-1].split("\n\n\nCheck the documentation")[0]
            reason = told.rsplit("\n\n\n")[-1].strip() or type(error).__name__
            foreign = re.search(r"(?:GLOBAL|class) ([\w.]+) was not an allowed", reason)
            if foreign is None or len(unknown) == _MOST_FOREIGN:
                told = reason.splitlines()[0] if " " in reason else "it is empty, cut short or no PyTorch file"
                raise ModelError(f"{file} cannot be read as weights: {told}") from error
            module, _, name = foreign.group(1).rpartition(".")
            kind = _InertNumpy if module.partition(".")[0] == "numpy" else _Inert
            unknown.append(type(name, (kind,), {"__module__": module or "builtins", "__qualname__": name}))


def _state(found: object, file: Path) -> dict[str, Tensor]:
    if isinstance(found, dict):
        inner = next((found[key] for key in _NESTED if isinstance(found.get(key), dict)), found)
        if inner and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in inner.items()):
            return dict(inner)
    raise ModelError(
        f"{file} holds no state dict: expected a dict from names to tensors, or one under the key "
        f"{', '.join(repr(key) for key in _NESTED)}"
    )


def videomae_rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """VideoMAE: one layout for the bare model, the classifier and the pre-training model, whose decoder is dropped.

    On disk the biases are `attention.attention.q_bias`; transformers 5 calls them `query.bias` in memory.
    """
    renamed = {}
    for key, value in tensors.items():
        if key.startswith(("decoder.", "encoder_to_decoder.")) or key in ("mask_token", "position_embeddings"):
            continue
        key = key.removeprefix("videomae.")
        key = key.replace(".attention.attention.q_bias", ".attention.attention.query.bias")
        key = key.replace(".attention.attention.v_bias", ".attention.attention.value.bias")
        renamed[key] = value
    return renamed


def videomae_rules(config: VideoConfig) -> list[Rule]:
    """VideoMAEModel and VideoMAEForVideoClassification, after `videomae_rename` and without the classifier."""
    rules = [*_patch("embeddings.patch_embeddings.projection"), _positions(config)]
    for layer in range(config.depth):
        target, source = f"blocks.{layer}", f"encoder.layer.{layer}"
        attention = f"{source}.attention.attention"
        projections = tuple(f"{attention}.{part}.weight" for part in ("query", "key", "value"))
        rules.append(Rule(f"{target}.qkv.weight", projections))
        if config.qkv_bias:
            rules.append(_keyless(f"{target}.qkv.bias", f"{attention}.query.bias", f"{attention}.value.bias"))
        rules += weights.pairs(f"{target}.proj", f"{source}.attention.output.dense")
        rules += weights.pairs(f"{target}.norm1", f"{source}.layernorm_before")
        rules += weights.pairs(f"{target}.norm2", f"{source}.layernorm_after")
        rules += weights.pairs(f"{target}.mlp.fc1", f"{source}.intermediate.dense")
        rules += weights.pairs(f"{target}.mlp.fc2", f"{source}.output.dense")
    if config.final_norm:
        rules += weights.pairs("norm_post", "layernorm")
    if config.pool_norm:
        rules += weights.pairs("norm_pool", "fc_norm")
    return rules


@dataclass(frozen=True)
class UmtParts:
    """A UMT checkpoint taken apart."""

    vision: dict[str, Tensor]
    """The tower, `encoder.*` and `pool_norm.*`, and `vision_proj.*`."""
    text: dict[str, Tensor]
    """`text_encoder.*`, `text_proj.*`, `itm_head.*` and `text_decoder.*`; empty without a text encoder."""
    temperature: float | None


def umt_parts(tensors: dict[str, Tensor], source: str) -> UmtParts:
    """Sort UMT's keys, whichever of its layouts they have: the vision tower alone (with or without the prefix
    `vision_encoder.`), pre-training (BERT under `text_encoder.bert`), retrieval, or question answering.

    Raises ModelError for keys that are none of these.
    """
    vision, text, unknown = {}, {}, []
    for key, value in tensors.items():
        if key == "temp" or _UNUSED_UMT.fullmatch(key):
            continue
        short = key.removeprefix("vision_encoder.")
        if short.startswith(("encoder.", "pool_norm.")) or key.startswith("vision_proj."):
            vision[short] = value
        elif key.startswith(("text_encoder.", "text_proj.", "itm_head.", "text_decoder.")):
            text[key.replace("text_encoder.bert.", "text_encoder.", 1)] = value
        else:
            unknown.append(key)
    if unknown:
        raise ModelError(f"{source} holds keys that no layout of UMT has: {weights.listed(sorted(unknown))}")
    temp = tensors.get("temp")
    return UmtParts(vision, text, None if temp is None else float(temp.float().reshape(-1)[0]))


def umt_config(
    tensors: dict[str, Tensor], source: str, *, heads: int | None, frames: int, image_size: int
) -> VideoConfig:
    """The tower's configuration, from the shapes of `UmtParts.vision` and what they cannot tell."""
    patch = shape_of(tensors, "encoder.patch_embed.proj.weight", 5, source)
    hidden = shape_of(tensors, "encoder.blocks.0.mlp.fc1.weight", 2, source)
    projection = "vision_proj.weight" in tensors
    width = patch[0]
    return VideoConfig(
        width=width,
        heads=heads_of(width, heads, source),
        mlp_width=hidden[0],
        activation="gelu",
        norm_eps=1e-6,
        qkv_bias="encoder.blocks.0.attn.q_bias" in tensors,
        depth=depth_of(tensors, "encoder.blocks."),
        patch_size=patch[3],
        image_size=image_size,
        frames=frames,
        tubelet=patch[2],
        dim=shape_of(tensors, "vision_proj.weight", 2, source)[0] if projection else width,
        final_norm=True,
        pool_norm="pool_norm.weight" in tensors,
        projection=projection,
    )


def umt_rules(config: VideoConfig) -> list[Rule]:
    """UMT's vision tower after `umt_parts`."""
    rules = [*_patch("encoder.patch_embed.proj"), _positions(config), *weights.pairs("norm_post", "encoder.norm")]
    for layer in range(config.depth):
        target, source = f"blocks.{layer}", f"encoder.blocks.{layer}"
        rules.append(Rule(f"{target}.qkv.weight", (f"{source}.attn.qkv.weight",)))
        if config.qkv_bias:
            rules.append(_keyless(f"{target}.qkv.bias", f"{source}.attn.q_bias", f"{source}.attn.v_bias"))
        rules += weights.pairs(f"{target}.proj", f"{source}.attn.proj")
        for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            rules += weights.pairs(f"{target}.{part}", f"{source}.{part}")
    if config.pool_norm:
        rules += weights.pairs("norm_pool", "pool_norm")
    if config.projection:
        rules += weights.pairs("projection", "vision_proj")
    return rules


def shape_of(tensors: dict[str, Tensor], key: str, axes: int, source: str) -> list[int]:
    """The shape of a tensor that a configuration is read from. Raises ModelError without it."""
    if key not in tensors:
        raise ModelError(f"{source} lacks {key}, so the model's sizes cannot be known")
    shape = list(tensors[key].shape)
    if len(shape) != axes:
        raise ModelError(f"{key} in {source} must have {axes} axes, got {shape}")
    return shape


def depth_of(keys: Iterable[str], prefix: str) -> int:
    """How many layers `<prefix><number>.` there are, counted up to the highest number."""
    numbers = [key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)]
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


def heads_of(width: int, heads: int | None, source: str, name: str = "heads") -> int:
    """The attention heads of a width: those given, else one per 64 channels, which all published models have."""
    if heads is not None:
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
            raise ModelError(f"{name} must divide the width {width} of {source}, got {heads}")
        return heads
    if width % 64:
        raise ModelError(
            f"{source} does not say how many attention heads its layers of width {width} have, and 64 channels per "
            f"head do not divide it: give {name}="
        )
    return width // 64


def _patch(source: str) -> list[Rule]:
    return [
        Rule("patch.weight", (f"{source}.weight",), lambda weight: weight.flatten(1)),
        Rule("patch.bias", (f"{source}.bias",)),
    ]


def _positions(config: VideoConfig) -> Rule:
    count = config.frames // config.tubelet * (config.image_size // config.patch_size) ** 2
    return Rule("positions", (), lambda: sinusoids(count, config.width))


def _keyless(target: str, queries: str, values: str) -> Rule:
    """A fused bias from towers whose keys have none."""
    return Rule(target, (queries, values), lambda q, v: torch.cat((q, torch.zeros_like(q), v)))
