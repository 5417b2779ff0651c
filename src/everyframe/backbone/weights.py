"""From a checkpoint in Hugging Face format to the state of our towers: read, rename, fuse, check.

A conversion is a list of `Rule`s, each making one of our tensors from one or more of theirs. Because the list
is complete, missing and unexpected tensors are known by name before anything is loaded.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from everyframe.backbone.hub import ModelError
from everyframe.backbone.text import TextConfig
from everyframe.backbone.vit import VisionConfig, resize_positions


@dataclass(frozen=True)
class Rule:
    """One tensor of ours, made from theirs. The default conversion joins them along the first axis."""

    target: str
    sources: tuple[str, ...]
    convert: Callable[..., Tensor] = lambda *tensors: tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def read(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of the weights files, on the CPU in their own dtype. Raises ModelError for an unreadable
    file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                tensors.update(load_file(file))
            else:
                tensors.update(torch.load(file, map_location="cpu", weights_only=True))
        except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, TypeError) as error:
            raise ModelError(f"{file} cannot be read as weights: {error}") from error
        except Exception as error:
            if type(error).__name__ != "UnpicklingError":
                raise
            raise ModelError(f"{file} cannot be read as weights: {error}") from error
    return tensors


def fill(
    module: nn.Module,
    rules: list[Rule],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    source: str,
    config: str = "its config.json",
) -> None:
    """Load `module` (made on the meta device) from `tensors`, all or nothing; `tensors` must hold just what
    the rules name. Raises ModelError naming what is missing, unexpected, or of another shape than the
    configuration says; `config` is what the message calls that.
    """
    named = {name for rule in rules for name in rule.sources}
    problems = []
    if missing := sorted(named - tensors.keys()):
        problems.append(f"missing: {listed(missing)}")
    if unexpected := sorted(tensors.keys() - named):
        problems.append(f"unexpected: {listed(unexpected)}")
    if problems:
        raise ModelError(f"the weights in {source} do not match {config}; {'; '.join(problems)}")
    expected = module.state_dict()
    state: dict[str, Tensor] = {}
    for rule in rules:
        theirs = [tensors[name] for name in rule.sources]
        try:
            tensor = rule.convert(*theirs)
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in rule.sources)
            problems.append(f"{shapes} ({str(error).splitlines()[0]})")
            continue
        if tensor.shape != expected[rule.target].shape:
            shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in rule.sources)
            problems.append(f"{shapes}, where {rule.target} needs {list(expected[rule.target].shape)} in all")
        # a copy, so that the weights are aligned in memory and live on when their file is replaced
        state[rule.target] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if problems:
        raise ModelError(f"the weights in {source} do not fit {config}; wrong shape: {listed(problems)}")
    module.load_state_dict(state, strict=True, assign=True)


def listed(names: list[str], limit: int = 8) -> str:
    """Names for a message, cut after `limit`."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, and {len(names) - limit} more"


def pairs(target: str, source: str, *, bias: bool = True) -> list[Rule]:
    """The weight and the bias of a layer that only changes its name."""
    parts = ("weight", "bias") if bias else ("weight",)
    return [Rule(f"{target}.{part}", (f"{source}.{part}",)) for part in parts]


def _fused(target: str, sources: Iterable[str], *, bias: bool = True) -> list[Rule]:
    parts = ("weight", "bias") if bias else ("weight",)
    return [Rule(f"{target}.{part}", tuple(f"{source}.{part}" for source in sources)) for part in parts]


def _clip_block(target: str, source: str) -> list[Rule]:
    attention = f"{source}.self_attn"
    return [
        *pairs(f"{target}.norm1", f"{source}.layer_norm1"),
        *_fused(f"{target}.qkv", [f"{attention}.{part}_proj" for part in "qkv"]),
        *pairs(f"{target}.proj", f"{attention}.out_proj"),
        *pairs(f"{target}.norm2", f"{source}.layer_norm2"),
        *pairs(f"{target}.mlp.fc1", f"{source}.mlp.fc1"),
        *pairs(f"{target}.mlp.fc2", f"{source}.mlp.fc2"),
    ]


def _patch_rule(source: str, patch_size: int) -> Rule:
    def flatten(weight: Tensor) -> Tensor:
        if weight.dim() == 4:  # a convolution [W, 3, p, p]
            return weight.flatten(1)
        # NaFlex SigLIP2: a linear layer over (row, column, channel); ours is over (channel, row, column)
        return weight.unflatten(1, (patch_size, patch_size, 3)).permute(0, 3, 1, 2).flatten(1)

    return Rule("patch.weight", (source,), flatten)


def clip_vision_rules(config: VisionConfig) -> list[Rule]:
    """CLIPModel and CLIPVisionModel(WithProjection); "pre_layrnorm" is how their key is spelled."""
    root, embeddings = "vision_model", "vision_model.embeddings"
    rules = [
        _patch_rule(f"{embeddings}.patch_embedding.weight", config.patch_size),
        Rule(
            "prefix_tokens",
            (f"{embeddings}.class_embedding", f"{embeddings}.position_embedding.weight"),
            lambda token, positions: (token.float() + positions[0].float())[None],
        ),
        Rule("positions", (f"{embeddings}.position_embedding.weight",), lambda positions: positions[1:]),
        *pairs("norm_pre", f"{root}.pre_layrnorm"),
        *pairs("norm_post", f"{root}.post_layernorm"),
    ]
    for layer in range(config.depth):
        rules += _clip_block(f"blocks.{layer}", f"{root}.encoder.layers.{layer}")
    if config.projection:
        rules += pairs("projection", "visual_projection", bias=False)
    return rules


def siglip_vision_rules(config: VisionConfig) -> list[Rule]:
    """SiglipModel, SiglipVisionModel and their SigLIP2 counterparts."""
    root, embeddings, head = "vision_model", "vision_model.embeddings", "vision_model.head"
    rules = [
        _patch_rule(f"{embeddings}.patch_embedding.weight", config.patch_size),
        Rule("patch.bias", (f"{embeddings}.patch_embedding.bias",)),
        Rule("prefix_tokens", (), lambda: torch.zeros(0, config.width)),
        Rule("positions", (f"{embeddings}.position_embedding.weight",)),
        *pairs("norm_post", f"{root}.post_layernorm"),
        Rule("head.probe", (f"{head}.probe",), lambda probe: probe.flatten()),
        *pairs("head.proj", f"{head}.attention.out_proj"),
        *pairs("head.norm", f"{head}.layernorm"),
        *pairs("head.mlp.fc1", f"{head}.mlp.fc1"),
        *pairs("head.mlp.fc2", f"{head}.mlp.fc2"),
    ]
    for part in ("weight", "bias"):
        fused = (f"{head}.attention.in_proj_{part}",)
        rules.append(Rule(f"head.query.{part}", fused, lambda tensor: tensor[: config.width]))
        rules.append(Rule(f"head.keys_values.{part}", fused, lambda tensor: tensor[config.width :]))
    for layer in range(config.depth):
        rules += _clip_block(f"blocks.{layer}", f"{root}.encoder.layers.{layer}")
    return rules


def dinov2_rules(config: VisionConfig, *, antialias: bool) -> list[Rule]:
    """Dinov2Model and Dinov2WithRegistersModel; the order of the prefix is CLS, registers."""
    grid = config.image_size // config.patch_size
    positions = "embeddings.position_embeddings"
    prefix = ["embeddings.cls_token", positions] + ["embeddings.register_tokens"] * bool(config.registers)

    def join_prefix(token: Tensor, places: Tensor, *registers: Tensor) -> Tensor:
        cls = token[0].float() + places[0, :1].float()
        return torch.cat([cls, *(tokens[0].float() for tokens in registers)])

    rules = [
        _patch_rule("embeddings.patch_embeddings.projection.weight", config.patch_size),
        Rule("patch.bias", ("embeddings.patch_embeddings.projection.bias",)),
        Rule("prefix_tokens", tuple(prefix), join_prefix),
        Rule(
            "positions",
            (positions,),
            lambda places: resize_positions(places[0, 1:], grid, antialias=antialias),
        ),
        *pairs("norm_post", "layernorm"),
    ]
    for layer in range(config.depth):
        target, source = f"blocks.{layer}", f"encoder.layer.{layer}"
        attention = f"{source}.attention.attention"
        rules += [
            *pairs(f"{target}.norm1", f"{source}.norm1"),
            *_fused(
                f"{target}.qkv",
                [f"{attention}.{part}" for part in ("query", "key", "value")],
                bias=config.qkv_bias,
            ),
            *pairs(f"{target}.proj", f"{source}.attention.output.dense"),
            Rule(f"{target}.scale1", (f"{source}.layer_scale1.lambda1",)),
            *pairs(f"{target}.norm2", f"{source}.norm2"),
            *pairs(f"{target}.mlp.fc1", f"{source}.mlp.{'weights_in' if config.gated_mlp else 'fc1'}"),
            *pairs(f"{target}.mlp.fc2", f"{source}.mlp.{'weights_out' if config.gated_mlp else 'fc2'}"),
            Rule(f"{target}.scale2", (f"{source}.layer_scale2.lambda1",)),
        ]
    return rules


def text_rules(config: TextConfig) -> list[Rule]:
    """The text tower of CLIPModel ("text_projection"), or of SiglipModel ("text_model.head", with a bias)."""
    root, embeddings = "text_model", "text_model.embeddings"
    rules = [
        Rule("tokens.weight", (f"{embeddings}.token_embedding.weight",)),
        Rule("positions", (f"{embeddings}.position_embedding.weight",)),
        *pairs("norm_post", f"{root}.final_layer_norm"),
    ]
    for layer in range(config.depth):
        rules += _clip_block(f"blocks.{layer}", f"{root}.encoder.layers.{layer}")
    if config.head_bias:
        return rules + pairs("projection", f"{root}.head")
    return rules + pairs("projection", "text_projection", bias=False)
