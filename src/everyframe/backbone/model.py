"""`load`: a checkpoint in Hugging Face format as one `Model`, whatever its family."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone import hub, weights
from everyframe.backbone.compiling import Backend, Compiled
from everyframe.backbone.families import Towers, read_towers
from everyframe.backbone.hub import ModelError
from everyframe.backbone.preprocess import Preprocess
from everyframe.backbone.quantize import check_int8, float_beside_int8, is_quantized, quantize
from everyframe.backbone.text import TextTransformer, Tokenizer, check_texts
from everyframe.backbone.vit import VisionTransformer

M = TypeVar("M", bound=nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8"
_TEXT_BATCH = 256


class Model(nn.Module):
    """An image tower, its text tower if it has one, and the preprocessing that belongs to them. Made by
    `load`.

    Attributes: `name` as given to `load` (of a folder its absolute path); `family` "clip", "siglip",
    "siglip2" or "dinov2"; `dim`, width of the joint space; `image_size` S; `vision` and `text` (None
    without a text tower); `logit_scale` (already exponentiated) and `logit_bias`, which turn a cosine
    similarity into the logit of training; `weights_sha256`, the hash of the weights files, the same for
    the same bytes; `folder`, where they lie; `preprocess_settings`, a dict that survives JSON. Parameters
    are frozen; gradients still flow through to whatever a caller adds.
    """

    def __init__(
        self,
        *,
        name: str,
        family: str,
        vision: VisionTransformer,
        text: TextTransformer | None,
        tokenizer: Tokenizer | None,
        preprocessing: Preprocess,
        logit_scale: float,
        logit_bias: float,
        weights_sha256: str,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.family = family
        self.vision = vision
        self.text = text
        self.dim = vision.config.dim
        self.image_size = vision.config.image_size
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.weights_sha256 = weights_sha256
        self.folder = folder
        self.preprocess_settings = preprocessing.settings()
        self._preprocessing = preprocessing
        self._tokenizer = tokenizer
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vision.positions.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; of an int8 model that of everything but the linear layers of its image blocks."""
        return self.vision.positions.dtype

    @property
    def precision(self) -> str:
        """What images are computed in, as features record it and `load` takes it for `dtype`: "float32", "bfloat16",
        "float16", or "int8+" and the dtype of what is not int8.
        """
        name = str(self.dtype).removeprefix("torch.")
        return f"{INT8}+{name}" if is_quantized(self.vision) else name

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 [n, dim] on the model's device, each row of length 1.

        A text longer than the model's context is cut, with a UserWarning that names it. Raises ModelError
        when the model has no text tower or its folder no tokenizer, TypeError for a single str, ValueError
        for a blank text.
        """
        texts = check_texts(texts)
        if self.text is None or self._tokenizer is None:
            raise ModelError(f"{self.name} has no text tower, so it cannot encode text: load a CLIP or SigLIP model")
        features = [torch.empty(0, self.dim, device=self.device)]
        for start in range(0, len(texts), _TEXT_BATCH):
            ids, mask = self._tokenizer(texts[start : start + _TEXT_BATCH])
            mask = None if mask is None else mask.to(self.device)
            features.append(F.normalize(self.text(ids.to(self.device), mask).float(), dim=-1))
        return torch.cat(features)

    @torch.no_grad()
    def text_states(self, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """What CLIP's text tower makes of each text, for trainers that read tokens: states and feature, on the CPU.

        states: float32 [L, W], each token's output after the last norm and before the projection, from the start token
        to the end token (transformers' last_hidden_state without padding). feature: float32 [dim], that of
        `encode_text` before it is normalised. Texts are cut, and errors raised, as there; a ModelError also for a tower
        that is not causal (SigLIP), whose padding is part of what it reads.
        """
        texts = check_texts(texts)
        if self.text is None or self._tokenizer is None or not self.text.config.causal:
            raise ModelError(f"{self.name} has no causal text tower, so texts have no token states: load a CLIP model")
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(texts), _TEXT_BATCH):
            ids, _ = self._tokenizer(texts[start : start + _TEXT_BATCH])
            states, features = self.text.states(ids.to(self.device))
            states, features, ends = states.float().cpu(), features.float().cpu(), self.text.ends(ids)
            found += [(own[: end + 1], feature) for own, feature, end in zip(states, features, ends, strict=True)]
        return found

    @torch.no_grad()
    def preprocess(self, frames: np.ndarray | Tensor) -> Tensor:
        """Frames uint8 [T, H, W, 3] RGB, NumPy or torch -> float32 [T, 3, S, S], as the model was trained.

        The result stays on the frames' device (the CPU for NumPy). CLIP: shorter side to S, bicubic, centre
        crop; SigLIP: stretched to S x S; DINOv2: shorter side to 256, centre crop of 224; each as the model's
        own preprocessor_config.json says. NaFlex SigLIP2 models are used at their square native grid: frames
        are stretched to S x S, where transformers would keep the aspect ratio. Raises TypeError for anything
        but uint8 arrays, ValueError for another shape.
        """
        return self._preprocessing(frames)

    @torch.no_grad()
    def preprocess_motion(self, maps: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
        """Maps float [T, h, w], each covering a whole frame of `size` (H, W), -> float32 [T, S, S].

        The same resize (linear) and crop as `preprocess`, so that a value lies on the pixels it belongs to;
        values keep their unit, and what `preprocess` fills with black is 0. Raises ValueError for another
        shape.
        """
        return self._preprocessing.motion(maps, size)

    def pack(self, pixels: Tensor) -> Tensor:
        """What `preprocess` returned, float [T, 3, S, S], as the bytes it came from: uint8, a quarter of the size.

        Exact: resized frames are rounded to bytes before they are normalised, as transformers rounds them.
        """
        return self._preprocessing.pack(pixels)

    def unpack(self, packed: Tensor) -> Tensor:
        """Frames uint8 [T, 3, S, S] of `pack` -> float32 pixels, equal to those packed."""
        return self._preprocessing.unpack(packed)

    def compile(self, *, mode: str | None = None, backend: str | Backend = "inductor") -> None:
        """Compile the image tower with torch.compile, for whole batches of I-frames and of P-frames: `compiling.py`.

        mode and backend are those of torch.compile. The first batch of each shape takes up to a minute; features stay
        the same within the rounding of the dtype. Raises ValueError for an unknown mode or backend, or an int8 model.
        """
        if is_quantized(self.vision):
            raise ValueError("an int8 model cannot be compiled; load it with dtype='float32' or 'bfloat16'")
        self.vision.compiled = Compiled(self.vision.layers, mode=mode, backend=backend)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.family}, dim={self.dim}, image_size={self.image_size}, {self.precision}"


def load(name: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "float32") -> Model:
    """Load a model: "bundled", a folder in Hugging Face format, or a hub id.

    Supported are CLIP (OpenAI, LAION, MetaCLIP, TinyCLIP, ...), SigLIP, SigLIP2, DINOv2 and DINOv2 with
    registers; also checkpoints with only the vision tower of the first three. `device` defaults to cuda where
    there is one, else cpu. `dtype` is "float32", "bfloat16" or "float16", or the torch dtype; or "int8", for CPUs: the
    linear layers of the image tower's blocks in int8 (see `quantize.py`), all else, and the text tower, in bfloat16
    where the processor multiplies that itself, otherwise in float32. "int8+bfloat16" and "int8+float32" ask for one of
    them. An int8 model cannot be trained through.

    Raises ModelError when there is no such model, its architecture is not supported, or its weights do not
    match its configuration (no model is ever half loaded); ValueError for an unknown device or dtype, or int8 where
    this machine cannot have it.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f'name must be "bundled", a hub id or a folder, got {type(name).__name__}')
    torch_device = parse_device(device)
    precision = parse_precision(dtype, torch_device)
    folder = hub.find_folder(name)
    towers = read_towers(folder)
    files = hub.weights_files(folder)
    # The whole numbers are made of the weights as they are, not of what bfloat16 leaves of them.
    read_as = torch.float32 if precision.int8 else precision.dtype
    vision, text, scalars = _build(towers, weights.read(files), read_as, str(folder))
    if precision.int8:
        quantize(vision.blocks)
    model = Model(
        # A folder's name goes into features, which outlive the current directory.
        name=os.path.abspath(folder) if name != hub.BUNDLED and Path(name).expanduser().is_dir() else str(name),
        family=towers.family,
        vision=vision,
        text=text,
        tokenizer=None if text is None else Tokenizer(folder, text.config),
        preprocessing=towers.preprocessing,
        logit_scale=math.exp(scalars["logit_scale"]) if "logit_scale" in scalars else 1.0,
        logit_bias=scalars.get("logit_bias", 0.0),
        weights_sha256=hub.sha256(files),
        folder=folder,
    )
    return put_on(model.to(precision.dtype), torch_device)


def _build(
    towers: Towers, tensors: dict[str, Tensor], dtype: torch.dtype, source: str
) -> tuple[VisionTransformer, TextTransformer | None, dict[str, float]]:
    """The towers with their weights, and the scalars; every tensor of the checkpoint is accounted for."""
    tensors = towers.rename(tensors)
    has_text = towers.text is not None and any(key.startswith("text_") for key in tensors)
    scalars = {key: tensors.pop(key) for key in ("logit_scale", "logit_bias") if key in tensors}
    if has_text and not scalars.keys() >= towers.scalars:
        raise ModelError(f"the weights in {source} lack {', '.join(sorted(towers.scalars - scalars.keys()))}")
    of_text = {key: tensors.pop(key) for key in list(tensors) if has_text and key.startswith("text_")}
    try:
        with torch.device("meta"):
            vision = VisionTransformer(towers.vision)
            text = TextTransformer(towers.text) if has_text and towers.text is not None else None
    except RuntimeError as error:
        raise ModelError(f"no model can be made from the sizes in {source}/config.json: {error}") from error
    weights.fill(vision, towers.vision_rules(towers.vision), tensors, dtype, source)
    if text is not None:
        weights.fill(text, weights.text_rules(text.config), of_text, dtype, source)
    return vision, text, {key: float(value.float().reshape(-1)[0]) for key, value in scalars.items()}


def put_on(model: M, device: torch.device) -> M:
    """The model on a device. Raises ValueError where this machine has none such."""
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch knows the device, this machine or this build does not
        reason = str(error).splitlines()[0]
        raise ValueError(f"the model cannot be put on device {str(device)!r} ({reason}); use 'cpu'") from error


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    parsed = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if parsed is None or parsed not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return parsed


class Precision(NamedTuple):
    """int8: are linear layers quantised? dtype: of everything else."""

    int8: bool
    dtype: torch.dtype


def parse_precision(dtype: str | torch.dtype, device: torch.device) -> Precision:
    """What `load` takes for `dtype`. Raises ValueError for another, and for int8 where it cannot be had."""
    beside = {INT8: None, f"{INT8}+float32": torch.float32, f"{INT8}+bfloat16": torch.bfloat16}
    if isinstance(dtype, str) and dtype in beside:
        check_int8(device)
        return Precision(True, beside[dtype] or float_beside_int8())
    parsed = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if parsed is None or parsed not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, {INT8}, got {dtype!r}")
    return Precision(False, parsed)


def parse_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known to torch: {str(error).splitlines()[0]}") from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(parsed)!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    return parsed
