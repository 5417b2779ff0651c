"""`load_video`: a checkpoint of a video model as one `VideoModel`, whatever its family."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everyframe.backbone import hub, weights
from everyframe.backbone.bert import UmtText, load_umt_text
from everyframe.backbone.families import read_videomae
from everyframe.backbone.hub import ModelError
from everyframe.backbone.model import parse_device, parse_dtype, put_on
from everyframe.backbone.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from everyframe.backbone.presets import ARCHITECTURES
from everyframe.backbone.text import check_texts
from everyframe.backbone.video import VIDEO_ARCHITECTURES, VideoConfig, VideoTransformer
from everyframe.backbone.video_weights import (
    read_checkpoint,
    umt_config,
    umt_parts,
    umt_rules,
    videomae_rename,
    videomae_rules,
)
from everyframe.backbone.vifi import ViFiText, is_vifi, load_vifi, vifi_preprocess
from everyframe.backbone.vit import VisionTransformer

_SHAPES = "the shapes of its own tensors"
_WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_VIFI_FRAMES = {"vifi-clip-b16": ("ViT-B/16", 32)}


class VideoModel(nn.Module):
    """A video tower, what belongs to it, and its preprocessing. Made by `load_video`.

    Attributes: `name` as given to `load_video` (of a file or a folder its absolute path); `family` "videomae",
    "umt" or "vifi-clip"; `vision`, a VideoTransformer, for ViFi-CLIP the VisionTransformer that reads each frame;
    `frames` F of a clip; `image_size` S; `dim`, width of the pooled feature; `joint`, whether that is a space
    shared with text, in which features are compared at length 1; `labels`, the classes in order, or None
    without a classifier; `logit_scale`, which turns a cosine similarity into the logit of training;
    `weights_sha256`, the hash of the weights files; `preprocess_settings`, a dict that survives JSON.
    Parameters are frozen; gradients still flow through to whatever a caller adds.
    """

    def __init__(
        self,
        *,
        name: str,
        family: str,
        vision: VideoTransformer | VisionTransformer,
        frames: int,
        preprocessing: Preprocess,
        text: UmtText | ViFiText | None = None,
        classifier: nn.Linear | None = None,
        labels: tuple[str, ...] | None = None,
        logit_scale: float = 1.0,
        weights_sha256: str = "",
    ) -> None:
        super().__init__()
        self.name = name
        self.family = family
        self.vision = vision
        self.frames = frames
        self.image_size = vision.config.image_size
        self.dim = vision.config.dim
        self.joint = family != "videomae" and vision.config.projection
        self.text = text
        self.classifier = classifier
        self.labels = labels
        self.logit_scale = logit_scale
        self.weights_sha256 = weights_sha256
        self.preprocess_settings = preprocessing.settings()
        self._preprocessing = preprocessing
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vision.positions.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.vision.positions.dtype

    @property
    def precision(self) -> str:
        """What clips are computed in, as features record it."""
        return str(self.dtype).removeprefix("torch.")

    @torch.no_grad()
    def preprocess(self, frames: np.ndarray | Tensor) -> Tensor:
        """Frames uint8 [F, H, W, 3] RGB -> float32 [F, 3, S, S] with the mean and deviation of ImageNet, on the
        frames' device (NumPy: the CPU).

        VideoMAE: as its preprocessor_config.json says (shorter side, centre crop). UMT: stretched to S x S,
        bicubic. ViFi-CLIP: shorter side to S * 256 // 224, bilinear, centre crop. The authors of the last two
        resize without antialiasing (UMT: as far as known, through torchvision 0.13); here every resize is
        antialiased, as Pillow does it, so pixels differ where frames are much larger than S. Raises TypeError
        for anything but uint8 arrays, ValueError for another shape.
        """
        return self._preprocessing(frames)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], *, max_tokens: int | None = None) -> Tensor:
        """Texts -> float32 [n, D] on the model's device, each row of length 1.

        UMT: texts are cleaned (`clean_text`) and cut to `max_tokens` (32 by default), with a UserWarning. Raises
        ModelError when the model has no text tower or its tokenizer cannot be had, TypeError for a single str,
        ValueError for a blank text, or for `max_tokens` with another family.
        """
        texts = check_texts(texts)
        if self.text is None:
            raise ModelError(
                f"{self.name} has no text tower, so it cannot encode text: load a UMT retrieval checkpoint or ViFi-CLIP"
            )
        if max_tokens is None:
            return self.text.encode(texts)
        if not isinstance(self.text, UmtText):
            raise ValueError(f"max_tokens is for UMT; the texts of {self.name} are cut at its context: leave it out")
        return self.text.encode(texts, max_tokens=max_tokens)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Pooled features [V, D] -> logits float32 [V, classes]. Raises ModelError without a classifier."""
        if self.classifier is None:
            raise ModelError(
                f"{self.name} has no classifier: load a VideoMAE checkpoint fine-tuned for classification, or compare "
                "features with texts"
            )
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features must be [clips, {self.dim}] as pooled, got {list(features.shape)}")
        return self.classifier(features.to(self.dtype)).float()

    @torch.no_grad()
    def match(self, texts: Sequence[str], tokens: Tensor, *, max_tokens: int = 32) -> Tensor:
        """How well texts describe clips, by UMT's cross-encoder: n texts and tokens [n, N', W] after `finish`, one
        clip per text, or [1, N', W], one clip for all texts -> float32 [n], the higher the better.

        Raises ModelError when the checkpoint has no cross-encoder, otherwise as `encode_text`.
        """
        return self._umt_text("match texts with clips").match(check_texts(texts), tokens, max_tokens=max_tokens)

    @torch.no_grad()
    def rank_answers(self, questions: Sequence[str], tokens: Tensor, answers: Sequence[str], top: int = 128) -> Tensor:
        """The best of `answers` for each question about a clip: n questions and tokens [n, N', W] after `finish`
        -> int64 [n], places in `answers`.

        As UMT does it: the `top` answers by the probability of their first token are scored in full. Raises
        ModelError when the checkpoint has no answer decoder, otherwise as `encode_text`.
        """
        text = self._umt_text("answer questions")
        return text.rank_answers(check_texts(questions), tokens, check_texts(answers), top=top)

    def _umt_text(self, what: str) -> UmtText:
        if not isinstance(self.text, UmtText):
            raise ModelError(f"{self.name} cannot {what}: that takes a UMT checkpoint with its BERT layers")
        return self.text

    def extra_repr(self) -> str:
        return (
            f"{self.name}, {self.family}, dim={self.dim}, frames={self.frames}, image_size={self.image_size}, "
            f"dtype={self.dtype}"
        )


def load_video(
    name: str | Path,
    *,
    heads: int | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    text_heads: int | None = None,
) -> VideoModel:
    """Load a video model: a VideoMAE folder or hub id, or a UMT or ViFi-CLIP weights file of their authors.

    Of a weights file, what its tensors do not tell is given: `heads` (and `text_heads`) of attention, by default
    one per 64 channels; `frames` of a clip, by default 12 (UMT) or 32 (ViFi-CLIP); `image_size`, by default 224
    (UMT); `tokenizer`, folder or hub id, by default bert-base-uncased or bert-large-uncased (UMT) or
    openai/clip-vit-base-patch16 (ViFi-CLIP; also the source of the token embeddings, which its authors' files
    leave out). Tokenizers are loaded when they are first needed. `device` and `dtype` are those of `load`.

    Raises ModelError when there is no such model, its architecture is not supported, its weights do not match,
    or an argument contradicts config.json; ValueError for an unknown device or dtype.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"name must be a hub id, a folder or a weights file, got {type(name).__name__}")
    for label, value in (("frames", frames), ("image_size", image_size)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{label} must be a whole number of at least 1, got {value!r}")
    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    given = {"heads": heads, "text_heads": text_heads, "frames": frames, "image_size": image_size}
    file = Path(name).expanduser()
    if not file.exists() and (file.suffix.lower() in _WEIGHTS or file.is_absolute()):
        raise ModelError(f"{name}: no such file or folder; give a weights file, a VideoMAE folder or a hub id")
    if file.is_file():
        model = _load_file(file, torch_dtype, tokenizer, given)
    else:
        model = _load_videomae(name, torch_dtype, given | {"tokenizer": tokenizer})
    return put_on(model, torch_device)


def video_skeleton(name: str, frames: int | None = None) -> VideoModel:
    """A video model without weights (on torch's meta device), for counting its cost.

    name: one of VIDEO_ARCHITECTURES, or "vifi-clip-b16"; `frames` other than its own. Raises ModelError for
    another name, ValueError for frames the model cannot take.
    """
    vision: VideoTransformer | VisionTransformer
    if name in VIDEO_ARCHITECTURES:
        config = VIDEO_ARCHITECTURES[name]
        config = config if frames is None else replace(config, frames=frames)
        with torch.device("meta"):
            vision = VideoTransformer(config)
        preprocessing = _umt_preprocess(config.image_size)
        return VideoModel(
            name=name, family=name.split("-")[0], vision=vision, frames=config.frames, preprocessing=preprocessing
        )
    if name in _VIFI_FRAMES:
        architecture, default = _VIFI_FRAMES[name]
        if frames is not None and frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        with torch.device("meta"):
            vision = VisionTransformer(ARCHITECTURES[architecture])
        return VideoModel(
            name=name,
            family="vifi-clip",
            vision=vision,
            frames=default if frames is None else frames,
            preprocessing=vifi_preprocess(vision.config.image_size),
        )
    known = ", ".join([*VIDEO_ARCHITECTURES, *_VIFI_FRAMES])
    raise ModelError(f"{name!r} is no video architecture known without a checkpoint; known are {known}")


def _load_videomae(name: str | Path, dtype: torch.dtype, given: dict[str, Any]) -> VideoModel:
    folder = hub.find_folder(name)
    files = hub.weights_files(folder)
    tensors = videomae_rename(weights.read(files))
    config, labels, preprocessing = read_videomae(folder, tensors)
    fixed = {"heads": config.heads, "frames": config.frames, "image_size": config.image_size}
    for field, value in given.items():
        if value is not None and value != fixed.get(field):
            why = f"its config.json says {fixed[field]}" if field in fixed else "VideoMAE has no text tower"
            raise ModelError(f"{field}={value} cannot be used with {folder}: {why}; leave it out")
    head = {key: tensors.pop(key) for key in list(tensors) if key.startswith("classifier.")}
    vision = _tower(config, str(folder))
    weights.fill(vision, videomae_rules(config), tensors, dtype, str(folder))
    classifier = None
    if labels is not None:
        with torch.device("meta"):
            classifier = nn.Linear(config.width, len(labels))
        rules = [weights.Rule(part, (f"classifier.{part}",)) for part in ("weight", "bias")]
        weights.fill(classifier, rules, head, dtype, str(folder))
    return VideoModel(
        name=os.path.abspath(folder) if Path(name).expanduser().is_dir() else str(name),
        family="videomae",
        vision=vision,
        frames=config.frames,
        preprocessing=preprocessing,
        classifier=classifier,
        labels=labels,
        weights_sha256=hub.sha256(files),
    )


def _load_file(
    file: Path, dtype: torch.dtype, tokenizer: str | Path | None, given: dict[str, int | None]
) -> VideoModel:
    tensors, source = read_checkpoint(file), str(file)
    common: dict[str, Any] = {"name": os.path.abspath(file), "weights_sha256": hub.sha256([file])}
    if is_vifi(tensors):
        tower, vifi_text, scale = load_vifi(tensors, source, dtype, tokenizer, given)
        return VideoModel(
            family="vifi-clip",
            vision=tower,
            frames=given["frames"] or _VIFI_FRAMES["vifi-clip-b16"][1],
            preprocessing=vifi_preprocess(tower.config.image_size),
            text=vifi_text,
            logit_scale=scale,
            **common,
        )
    parts = umt_parts(tensors, source)
    sizes = {"frames": given["frames"] or 12, "image_size": given["image_size"] or 224}
    try:
        config = umt_config(parts.vision, source, heads=given["heads"], **sizes)
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{source} cannot be used: {error}") from error
    vision = _tower(config, source)
    weights.fill(vision, umt_rules(config), parts.vision, dtype, source, _SHAPES)
    text = None
    if parts.text:
        text = load_umt_text(parts.text, source, dtype, config.width, given["text_heads"], tokenizer)
    elif tokenizer is not None or given["text_heads"] is not None:
        raise ModelError(f"{source} has no text encoder, so it takes neither tokenizer nor text_heads; leave them out")
    return VideoModel(
        family="umt",
        vision=vision,
        frames=config.frames,
        preprocessing=_umt_preprocess(config.image_size),
        text=text,
        logit_scale=1.0 if not parts.temperature else 1 / parts.temperature,
        **common,
    )


def _tower(config: VideoConfig, source: str) -> VideoTransformer:
    try:
        with torch.device("meta"):
            return VideoTransformer(config)
    except RuntimeError as error:
        raise ModelError(f"no model can be made from the sizes in {source}: {error}") from error


def _umt_preprocess(side: int) -> Preprocess:
    return Preprocess(size=side, stretch=side, crop=False, resample="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)
