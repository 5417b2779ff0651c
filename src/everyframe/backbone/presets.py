"""Architectures without weights: their cost can be counted, nothing else."""

from __future__ import annotations

from pathlib import Path

import torch

from everyframe.backbone import hub
from everyframe.backbone.families import read_towers
from everyframe.backbone.hub import ModelError
from everyframe.backbone.model import Model
from everyframe.backbone.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from everyframe.backbone.vit import VisionConfig, VisionTransformer


def _clip(width: int, depth: int, patch_size: int, image_size: int, dim: int) -> VisionConfig:
    return VisionConfig(
        width=width,
        heads=width // 64,
        mlp_width=4 * width,
        activation="quick_gelu",
        norm_eps=1e-5,
        depth=depth,
        patch_size=patch_size,
        image_size=image_size,
        dim=dim,
        patch_bias=False,
        pre_norm=True,
        projection=True,
    )


# Vision towers of OpenAI's CLIP (Radford et al. 2021, table 20).
ARCHITECTURES = {
    "ViT-B/32": _clip(768, 12, 32, 224, 512),
    "ViT-B/16": _clip(768, 12, 16, 224, 512),
    "ViT-L/14": _clip(1024, 24, 14, 224, 768),
    "ViT-L/14@336": _clip(1024, 24, 14, 336, 768),
}


def skeleton(name: str | Path) -> Model:
    """A vision tower without weights (on torch's meta device), for counting its cost.

    name: one of ARCHITECTURES, or what `load` takes; of a folder only config.json is read. Raises ModelError.
    """
    if str(name) in ARCHITECTURES:
        config = ARCHITECTURES[str(name)]
        preprocessing = Preprocess(size=config.image_size, shorter_side=config.image_size, mean=CLIP_MEAN, std=CLIP_STD)
        family = "clip"
    else:
        try:
            folder = hub.find_folder(name, config_only=True)
        except ModelError as error:
            known = ", ".join(ARCHITECTURES)
            raise ModelError(f"{error}; known without a checkpoint are {known}") from error
        towers = read_towers(folder)
        config, preprocessing, family = towers.vision, towers.preprocessing, towers.family
    with torch.device("meta"):
        vision = VisionTransformer(config)
    return Model(
        name=str(name),
        family=family,
        vision=vision,
        text=None,
        tokenizer=None,
        preprocessing=preprocessing,
        logit_scale=1.0,
        logit_bias=0.0,
        weights_sha256="",
    )
