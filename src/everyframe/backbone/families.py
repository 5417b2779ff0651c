"""What each supported family looks like: config.json as our configurations, defaults, key names."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from everyframe.backbone import weights
from everyframe.backbone.hub import ModelError
from everyframe.backbone.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    from_settings,
    read_settings,
)
from everyframe.backbone.text import TextConfig
from everyframe.backbone.video import VideoConfig
from everyframe.backbone.vit import VisionConfig

_CONFIG_CLASSES = {
    "clip": "CLIPConfig",
    "clip_vision_model": "CLIPVisionConfig",
    "siglip": "SiglipConfig",
    "siglip_vision_model": "SiglipVisionConfig",
    "siglip2": "Siglip2Config",
    "siglip2_vision_model": "Siglip2VisionConfig",
    "dinov2": "Dinov2Config",
    "dinov2_with_registers": "Dinov2WithRegistersConfig",
}
_ARCHITECTURES = {
    "CLIPModel": "clip",
    "CLIPVisionModel": "clip_vision_model",
    "CLIPVisionModelWithProjection": "clip_vision_model",
    "SiglipModel": "siglip",
    "SiglipVisionModel": "siglip_vision_model",
    "Siglip2Model": "siglip2",
    "Siglip2VisionModel": "siglip2_vision_model",
    "Dinov2Model": "dinov2",
    "Dinov2WithRegistersModel": "dinov2_with_registers",
}
_OF_A_TOWER: dict[str, type] = {
    "hidden_size": int,
    "intermediate_size": int,
    "num_attention_heads": int,
    "num_hidden_layers": int,
    "hidden_act": str,
    "layer_norm_eps": float,
}
_OF_IMAGES = {**_OF_A_TOWER, "image_size": int, "patch_size": int}
_OF_TEXTS = {**_OF_A_TOWER, "vocab_size": int, "max_position_embeddings": int, "eos_token_id": int}
SUPPORTED = (
    "CLIP (model_type clip, clip_vision_model), SigLIP and SigLIP2 (siglip, siglip2, siglip_vision_model, "
    "siglip2_vision_model), DINOv2 (dinov2, dinov2_with_registers)"
)


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Everything `load` needs to know before it reads the weights."""

    family: str
    vision: VisionConfig
    text: TextConfig | None
    preprocessing: Preprocess
    vision_rules: Callable[[VisionConfig], list[weights.Rule]]
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """Brings the keys of all known layouts to one, and drops what is not used."""
    scalars: frozenset[str] = field(default_factory=frozenset)
    """Scalars that a checkpoint with a text tower must hold."""


def read_towers(folder: Path) -> Towers:
    """Read config.json and the preprocessor's settings. Raises ModelError for what is missing or not
    supported.
    """
    raw = _read_config(folder / "config.json")
    kind = raw.get("model_type") or _ARCHITECTURES.get((raw.get("architectures") or [""])[0])
    if kind not in _CONFIG_CLASSES:
        raise ModelError(
            f"{folder} has model_type {kind!r}, which is not supported as an image model; supported are {SUPPORTED}"
        )
    try:
        config = _as_written(raw, kind) or _with_defaults(raw, kind)
        if kind.startswith("clip"):
            return _clip(config, kind, folder)
        if kind.startswith("siglip"):
            return _siglip(config, kind, folder)
        return _dinov2(config, kind, folder)
    except ModelError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be used: {error}") from error


def _as_written(raw: dict[str, Any], kind: str) -> Any | None:
    """The config of a CLIP that leaves nothing we read to defaults, as it stands; None for any other.

    Asking transformers would give the same, but importing it takes longer than the rest of loading a small model.
    """
    if kind not in ("clip", "clip_vision_model") or type(raw.get("projection_dim")) is not int:
        return None
    both = kind == "clip"
    towers = (
        [(raw.get("vision_config"), _OF_IMAGES), (raw.get("text_config"), _OF_TEXTS)] if both else [(raw, _OF_IMAGES)]
    )
    for tower, known in towers:
        if not isinstance(tower, dict) or any(type(tower.get(name)) is not kind for name, kind in known.items()):
            return None
        if tower["num_attention_heads"] < 1 or tower["hidden_size"] % tower["num_attention_heads"]:
            return None
    if raw.get("vision_config_dict") or raw.get("text_config_dict"):  # of old files; they win over the others
        return None
    parts = {name: SimpleNamespace(**raw[name]) for name in ("vision_config", "text_config") if both}
    return SimpleNamespace(**{"architectures": None, **raw, **parts})


def _with_defaults(raw: dict[str, Any], kind: str) -> Any:
    """The config with transformers' own defaults and checks. Raises what those raise, or ValueError."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        return getattr(transformers, _CONFIG_CLASSES[kind]).from_dict(raw)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error


def read_videomae(folder: Path, tensors: dict[str, Tensor]) -> tuple[VideoConfig, tuple[str, ...] | None, Preprocess]:
    """A VideoMAE folder's tower, its classes (None without a classifier among `tensors`, which have the names that
    `videomae_rename` gives them) and its preprocessing. Raises ModelError as `read_towers` does.
    """
    raw = _read_config(folder / "config.json")
    if raw.get("model_type") != "videomae":
        raise ModelError(
            f"{folder} has model_type {raw.get('model_type')!r}, which is not supported as a video model; supported "
            "are VideoMAE (videomae) in Hugging Face format, UMT and ViFi-CLIP as their authors' weights files"
        )
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    classifies = "classifier.weight" in tensors or "Classification" in (raw.get("architectures") or [""])[0]
    try:
        config = transformers.VideoMAEConfig.from_dict(raw)
        size = _side(config.image_size, "image_size")
        tower = VideoConfig(
            **_block(config),
            qkv_bias=config.qv_bias,
            depth=config.num_hidden_layers,
            patch_size=_side(config.patch_size, "patch_size"),
            image_size=size,
            frames=config.num_frames,
            tubelet=config.tubelet_size,
            dim=config.hidden_size,
            final_norm=not config.use_mean_pooling,
            pool_norm=classifies and config.use_mean_pooling,
            projection=False,
            pool_norm_eps=1e-5,  # transformers' fc_norm has the default of torch, not layer_norm_eps
            pooling="first" if classifies and not config.use_mean_pooling else "mean",
        )
        if config.num_channels != 3:
            raise ModelError(f"{folder} takes frames of {config.num_channels} channels; supported are 3")
        labels = tuple(str(config.id2label[number]) for number in range(config.num_labels)) if classifies else None
    except ModelError:
        raise
    except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be used: {error}") from error
    defaults = _defaults(size={"shortest_edge": size}, crop=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=2)
    return tower, labels, _preprocessing(folder, defaults, size)


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file.parent} holds no config.json: it is not a model folder in Hugging Face format")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{file} must hold a JSON object")
    return raw


def _clip(config: Any, kind: str, folder: Path) -> Towers:
    both = kind == "clip"
    vision, text = (config.vision_config, config.text_config) if both else (config, None)
    size = _side(vision.image_size, "image_size")
    projected = both or "CLIPVisionModel" not in (config.architectures or [])
    tower = VisionConfig(
        **_block(vision),
        depth=vision.num_hidden_layers,
        patch_size=_side(vision.patch_size, "patch_size"),
        image_size=size,
        dim=config.projection_dim if projected else vision.hidden_size,
        patch_bias=False,
        pre_norm=True,
        projection=projected,
    )
    defaults = _defaults(size={"shortest_edge": size}, crop=size, mean=CLIP_MEAN, std=CLIP_STD)
    return Towers(
        family="clip",
        vision=tower,
        text=_clip_text(config, text) if text is not None else None,
        preprocessing=_preprocessing(folder, defaults, size),
        vision_rules=weights.clip_vision_rules,
        rename=_rename_towers,
        scalars=frozenset({"logit_scale"}),
    )


def _clip_text(config: Any, text: Any) -> TextConfig:
    end = text.eos_token_id
    if not isinstance(end, int):
        raise ModelError(f"eos_token_id of the text tower must be one token, got {end}")
    return TextConfig(
        **_block(text),
        depth=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings,
        dim=config.projection_dim,
        causal=True,
        end_token=end,
        end_is_highest=end == 2,
    )


def _siglip(config: Any, kind: str, folder: Path) -> Towers:
    both, naflex = not kind.endswith("_vision_model"), kind.startswith("siglip2")
    vision, text = (config.vision_config, config.text_config) if both else (config, None)
    if not vision.vision_use_head:
        raise ModelError(f"{folder} has no pooling head (vision_use_head is false), so it gives no image features")
    patch = _side(vision.patch_size, "patch_size")
    size = math.isqrt(vision.num_patches) * patch if naflex else _side(vision.image_size, "image_size")
    tower = VisionConfig(
        **_block(vision),
        depth=vision.num_hidden_layers,
        patch_size=patch,
        image_size=size,
        dim=vision.hidden_size,
        cls_token=False,
        pooling="attention",
    )
    stretched = {"height": size, "width": size}
    defaults = _defaults(size=stretched, crop=None, mean=HALF, std=HALF, resample=2 if naflex else 3)
    words = None
    if text is not None:
        if text.projection_size != vision.hidden_size:
            raise ModelError(
                f"{folder} has text features of width {text.projection_size} and image features of width "
                f"{vision.hidden_size}; in a joint space they must be equal"
            )
        words = TextConfig(
            **_block(text),
            depth=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            context=text.max_position_embeddings,
            dim=text.projection_size,
            causal=False,
            head_bias=True,
        )
    return Towers(
        family="siglip2" if naflex else "siglip",
        vision=tower,
        text=words,
        preprocessing=_preprocessing(folder, defaults, size, fixed=("size",) if naflex else ()),
        vision_rules=weights.siglip_vision_rules,
        rename=_rename_towers,
        scalars=frozenset({"logit_scale", "logit_bias"}),
    )


def _dinov2(config: Any, kind: str, folder: Path) -> Towers:
    registers = kind == "dinov2_with_registers"
    hidden = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:  # two thirds, rounded up to a multiple of 8, so that the cost stays that of the plain MLP
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    defaults = _defaults(size={"shortest_edge": 256}, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    preprocessing = _preprocessing(folder, defaults, None)
    tower = VisionConfig(
        width=config.hidden_size,
        heads=config.num_attention_heads,
        mlp_width=hidden,
        activation="silu" if config.use_swiglu_ffn else config.hidden_act,
        norm_eps=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
        gated_mlp=config.use_swiglu_ffn,
        layer_scale=True,
        depth=config.num_hidden_layers,
        patch_size=_side(config.patch_size, "patch_size"),
        image_size=preprocessing.size,
        dim=config.hidden_size,
        registers=config.num_register_tokens if registers else 0,
    )
    return Towers(
        family="dinov2",
        vision=tower,
        text=None,
        preprocessing=preprocessing,
        vision_rules=lambda vision: weights.dinov2_rules(vision, antialias=registers),
        rename=_rename_dinov2,
    )


def _block(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "activation": config.hidden_act,
        "norm_eps": config.layer_norm_eps,
    }


def _side(value: Any, name: str) -> int:
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if not sides or any(side != sides[0] or not isinstance(side, int) for side in sides):
        raise ModelError(f"{name} must be a square, got {value}")
    return sides[0]


def _defaults(*, size: Any, crop: int | None, mean: Any, std: Any, resample: int = 3) -> dict[str, Any]:
    """A family's image settings, under the names of preprocessor_config.json."""
    return {
        "do_resize": True,
        "size": size,
        "resample": resample,
        "do_center_crop": crop is not None,
        "crop_size": crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _preprocessing(
    folder: Path, defaults: dict[str, Any], image_size: int | None, fixed: tuple[str, ...] = ()
) -> Preprocess:
    given = read_settings(folder)
    if given is not None:
        given = {key: value for key, value in given.items() if key not in fixed}
    preprocessing = from_settings(given, defaults, f"{folder}/preprocessor_config.json")
    if image_size is not None and preprocessing.size != image_size:
        raise ModelError(
            f"{folder}: preprocessor_config.json makes images of {preprocessing.size} pixels, but the model "
            f"of config.json takes {image_size}"
        )
    return preprocessing


def _rename_towers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP and SigLIP: drop old position-id buffers; a lone vision tower may be stored without its prefix."""
    kept = {key: value for key, value in tensors.items() if not key.endswith(".position_ids")}
    if any(key.startswith("vision_model.") for key in kept):
        return kept
    return {key if key.startswith("visual_projection") else f"vision_model.{key}": value for key, value in kept.items()}


def _rename_dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2: the mask token serves pre-training only; a classifier puts a prefix before the tower's keys."""
    renamed = {}
    for key, value in tensors.items():
        key = key.removeprefix("dinov2.").removeprefix("dinov2_with_registers.")
        if key != "embeddings.mask_token" and not key.startswith("classifier."):
            renamed[key] = value
    return renamed
