"""ViFi-CLIP: CLIP fine-tuned on videos, in its authors' files.

Every frame goes through CLIP's image tower alone; the frames' features are averaged, and then normalised. The
files have the names of OpenAI's CLIP, under `image_encoder.` and `text_encoder.`; what they leave out is the
token embedding, which was not trained and is CLIP's own.

Source: Rasheed et al., "Fine-tuned CLIP Models are Efficient Video Learners" (CVPR 2023).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone import hub, weights
from everyframe.backbone.hub import ModelError
from everyframe.backbone.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from everyframe.backbone.text import TextConfig, TextTransformer, Tokenizer
from everyframe.backbone.video_weights import depth_of, heads_of, shape_of
from everyframe.backbone.vit import VisionConfig, VisionTransformer
from everyframe.backbone.weights import Rule

DEFAULT_TOKENIZER = "openai/clip-vit-base-patch16"
_TEXT_BATCH = 256
_CLIP_EMBEDDING = "text_model.embeddings.token_embedding.weight"
_SHAPES = "the shapes of its own tensors"
_EMBEDDINGS = ("text_encoder.token_embedding.weight", "token_embedding.weight")
# The class prompts of the training run, as embeddings.
_UNUSED = re.compile(r"prompt_learner\.(token_prefix|token_suffix|complete_text_embeddings)")


class ViFiText(nn.Module):
    """CLIP's text tower as ViFi-CLIP tuned it, with tokenizer and token embedding fetched when first needed."""

    def __init__(self, tower: TextTransformer, tokenizer: str | Path, complete: bool) -> None:
        super().__init__()
        self.tower = tower
        self._name = tokenizer
        self._complete = complete
        self._tokenizer: Tokenizer | None = None

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 [n, D], each row of length 1."""
        tokenizer = self._prepare()
        place = self.tower.positions
        features = [torch.empty(0, self.tower.config.dim, device=place.device)]
        for start in range(0, len(texts), _TEXT_BATCH):
            ids, _ = tokenizer(texts[start : start + _TEXT_BATCH])
            features.append(F.normalize(self.tower(ids.to(place.device)).float(), dim=-1))
        return torch.cat(features)

    def _prepare(self) -> Tokenizer:
        if not self._complete:
            embedding = _token_embedding(self._name, self.tower.config.width)
            embedding = embedding.to(self.tower.positions.device, self.tower.positions.dtype)
            self.tower.tokens = nn.Embedding.from_pretrained(embedding)
            self.tower.config = replace(self.tower.config, vocabulary=len(embedding))
            self._complete = True
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(hub.find_tokenizer(self._name), self.tower.config)
        return self._tokenizer


def _token_embedding(name: str | Path, width: int) -> Tensor:
    """The token embedding of a CLIP model in Hugging Face format."""
    folder = hub.find_folder(name)
    try:
        found = weights.read(hub.weights_files(folder)).get(_CLIP_EMBEDDING)
    except ModelError as error:
        raise ModelError(
            f"ViFi-CLIP's files leave out the token embedding, which tokenizer= must then hold as well: {error}"
        ) from error
    if found is None or found.dim() != 2 or found.shape[1] != width:
        what = "no token embedding" if found is None else f"a token embedding of shape {list(found.shape)}"
        raise ModelError(
            f"{folder} holds {what}, but this ViFi-CLIP's text tower has width {width}: give the CLIP model it was "
            "made from as tokenizer="
        )
    return found


def is_vifi(tensors: dict[str, Tensor]) -> bool:
    """Whether these are the keys of ViFi-CLIP."""
    return any(key.startswith("image_encoder.") for key in tensors)


def vifi_preprocess(side: int) -> Preprocess:
    """Shorter side to 8/7 of S, bilinear, centre crop, ImageNet's mean and deviation (not CLIP's)."""
    return Preprocess(
        size=side, shorter_side=int(256 / 224 * side), resample="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def load_vifi(
    tensors: dict[str, Tensor],
    source: str,
    dtype: torch.dtype,
    tokenizer: str | Path | None,
    given: dict[str, int | None],
) -> tuple[VisionTransformer, ViFiText | None, float]:
    """The image tower, the text tower (None without `text_encoder.*`) and the logit scale, exponentiated.

    Raises ModelError for learned prompts, which are not supported, and when the weights are not complete.
    """
    if prompts := [key for key in tensors if "VPT" in key or key == "prompt_learner.ctx"]:
        raise ModelError(f"{source} has learned prompts ({weights.listed(prompts)}), which are not supported")
    tensors = {key: value for key, value in tensors.items() if not _UNUSED.fullmatch(key)}
    scale = tensors.pop("logit_scale", None)
    image = {key: tensors.pop(key) for key in list(tensors) if key.startswith("image_encoder.")}
    config = _vision_config(image, source, given)
    with torch.device("meta"):
        vision = VisionTransformer(config)
    weights.fill(vision, _vision_rules(config), image, dtype, source, _SHAPES)
    text = None
    if tensors:
        text = _load_text(tensors, source, dtype, config.dim, tokenizer, given["text_heads"])
    return vision, text, 1.0 if scale is None else math.exp(float(scale.float().reshape(-1)[0]))


def _vision_config(tensors: dict[str, Tensor], source: str, given: dict[str, int | None]) -> VisionConfig:
    width, _, patch, _ = shape_of(tensors, "image_encoder.conv1.weight", 4, source)
    places = shape_of(tensors, "image_encoder.positional_embedding", 2, source)[0] - 1
    grid = math.isqrt(max(places, 0))
    if grid < 1 or grid * grid != places:
        raise ModelError(f"image_encoder.positional_embedding in {source} has {places} places, which are no square")
    if given["image_size"] not in (None, grid * patch):
        raise ModelError(
            f"image_size={given['image_size']} cannot be used with {source}: its positions say {grid * patch}; "
            "leave it out"
        )
    return VisionConfig(
        width=width,
        heads=heads_of(width, given["heads"], source),
        mlp_width=shape_of(tensors, "image_encoder.transformer.resblocks.0.mlp.c_fc.weight", 2, source)[0],
        activation="quick_gelu",
        norm_eps=1e-5,
        depth=depth_of(tensors, "image_encoder.transformer.resblocks."),
        patch_size=patch,
        image_size=grid * patch,
        dim=shape_of(tensors, "image_encoder.proj", 2, source)[1],
        patch_bias=False,
        pre_norm=True,
        projection=True,
    )


def _vision_rules(config: VisionConfig) -> list[Rule]:
    root = "image_encoder"
    return [
        Rule("patch.weight", (f"{root}.conv1.weight",), lambda weight: weight.flatten(1)),
        Rule(
            "prefix_tokens",
            (f"{root}.class_embedding", f"{root}.positional_embedding"),
            lambda token, places: (token.float() + places[0].float())[None],
        ),
        Rule("positions", (f"{root}.positional_embedding",), lambda places: places[1:]),
        *weights.pairs("norm_pre", f"{root}.ln_pre"),
        *weights.pairs("norm_post", f"{root}.ln_post"),
        Rule("projection.weight", (f"{root}.proj",), lambda weight: weight.T),
        *_block_rules(root, config.depth),
    ]


def _block_rules(root: str, depth: int) -> list[Rule]:
    rules = []
    for layer in range(depth):
        target, source = f"blocks.{layer}", f"{root}.transformer.resblocks.{layer}"
        rules += [Rule(f"{target}.qkv.{part}", (f"{source}.attn.in_proj_{part}",)) for part in ("weight", "bias")]
        rules += weights.pairs(f"{target}.proj", f"{source}.attn.out_proj")
        rules += weights.pairs(f"{target}.norm1", f"{source}.ln_1") + weights.pairs(f"{target}.norm2", f"{source}.ln_2")
        rules += weights.pairs(f"{target}.mlp.fc1", f"{source}.mlp.c_fc")
        rules += weights.pairs(f"{target}.mlp.fc2", f"{source}.mlp.c_proj")
    return rules


def _load_text(
    tensors: dict[str, Tensor],
    source: str,
    dtype: torch.dtype,
    dim: int,
    tokenizer: str | Path | None,
    heads: int | None,
) -> ViFiText:
    root = "text_encoder"
    context, width = shape_of(tensors, f"{root}.positional_embedding", 2, source)
    embedding = next((key for key in _EMBEDDINGS if key in tensors), None)
    config = TextConfig(
        width=width,
        heads=heads_of(width, heads, source, "text_heads"),
        mlp_width=shape_of(tensors, f"{root}.transformer.resblocks.0.mlp.c_fc.weight", 2, source)[0],
        activation="quick_gelu",
        norm_eps=1e-5,
        depth=depth_of(tensors, f"{root}.transformer.resblocks."),
        vocabulary=1 if embedding is None else len(tensors[embedding]),
        context=context,
        dim=dim,
        causal=True,
        end_is_highest=True,
    )
    # Without an embedding a row of zeros stands in for it until `ViFiText` fetches CLIP's.
    tokens = Rule("tokens.weight", (), lambda: torch.zeros(1, width))
    rules = [
        tokens if embedding is None else Rule("tokens.weight", (embedding,)),
        Rule("positions", (f"{root}.positional_embedding",)),
        *weights.pairs("norm_post", f"{root}.ln_final"),
        Rule("projection.weight", (f"{root}.text_projection",), lambda weight: weight.T),
        *_block_rules(root, config.depth),
    ]
    with torch.device("meta"):
        tower = TextTransformer(config)
    weights.fill(tower, rules, tensors, dtype, source, _SHAPES)
    return ViFiText(tower, DEFAULT_TOKENIZER if tokenizer is None else tokenizer, embedding is not None)
