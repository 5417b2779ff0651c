"""ResidualViT: I-frames in full; P-frames from a few patches and a residual token made of the I-feature.

Source: Soldan et al., "ResidualViT for Efficient Temporally Dense Video Encoding", sections 3.1 and 4.
T frames, P patches, n kept patches, W width of the transformer, D width of the joint space.

A P-frame runs the *same frozen weights* on the sequence [prefix, r, kept patches]:
- prefix: CLS (CLIP), CLS and registers (DINOv2), nothing (SigLIP);
- r = A(f_I): a linear layer fed the L2-normalised I-feature. It carries no positional embedding;
- kept patches: chosen first and embedded after, so that a dropped patch costs nothing.
f_I is whatever the encoder returns for an I-frame: CLIP's projected CLS, SigLIP's attention-pooled feature
(so its pooling head attends to r as to any token), DINOv2's CLS after the final norm.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone import Model
from everyframe.cost import Rule, add_macs, frame_macs
from everyframe.encoders.dense import check_frames, check_model, encode_full, full_frame_macs
from everyframe.encoders.plan import check_interleave, fixed_roles
from everyframe.tokens.drop import (
    SELECTIONS,
    center_indices,
    frame_residual,
    num_kept,
    patch_sums,
    random_indices,
    top_indices,
    uniform_indices,
)

TOKENIZER_FILE = "residual_tokenizer.safetensors"  # beside a model's weights, found by residual="auto"


class ResidualTokenizer(nn.Module):
    """The residual tokenizer A: float [n, D] L2-normalised I-features -> residual tokens [n, W]."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell the present weights from others."""
        tensors = (self.linear.weight, self.linear.bias)
        values = b"".join(tensor.detach().float().cpu().numpy().tobytes() for tensor in tensors)
        return hashlib.sha256(values).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path, model: Model) -> ResidualTokenizer:
        """Read "weight" [W, D] and "bias" [W] from a safetensors file, checked against `model`.

        Raises FileNotFoundError when there is no file, ValueError when it is not such a file or fits another
        model.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"residual tokenizer {file} does not exist")
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
        width = model.vision.config.width
        wanted = {"weight": (width, model.dim), "bias": (width,)}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != wanted:
            raise ValueError(
                f"residual tokenizer {file} does not fit {model.name}: it holds {found}, needed are {wanted}"
            )
        tokenizer = cls(model.dim, width)
        tokenizer.linear.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write the file that `load` reads."""
        state = {name: tensor.detach().contiguous() for name, tensor in self.linear.state_dict().items()}
        save_file(state, path)


class ResidualViT:
    """Interleaved encoding: after each I-frame, `interleave` P-frames keep a share 1 - `drop` of their patches.

    select: how patches are kept: "motion" (most motion, the paper's best), "center", "uniform", "random", or
        "residual" (largest absolute difference to the frame before).
    residual: None (training-free), a path to a tokenizer file ("weight" [W, D], "bias" [W]), a
        `ResidualTokenizer`, or "auto": the one that ships with the model, else None with a warning.
    seed: decides "random" and the order of equal scores; a frame's choice also depends on its number in the
        video, never on batching.
    batch_size: I-frames per forward pass; P-frames are batched to about as many tokens.
    """

    name = "residual"

    def __init__(
        self,
        model: Model,
        interleave: int = 2,
        drop: float = 0.85,
        select: str = "motion",
        residual: str | Path | ResidualTokenizer | None = "auto",
        *,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        if select not in SELECTIONS:
            raise ValueError(f"select must be one of {', '.join(SELECTIONS)}, got {select!r}")
        check_model(model, batch_size)
        self.model = model
        self.interleave = check_interleave(interleave)
        self.drop = float(drop)
        self.num_kept = num_kept(model.vision.num_patches, self.drop)
        self.select = select
        self.seed = seed
        self.batch_size = batch_size
        self.tokenizer, self._residual_name = _resolve_tokenizer(residual, model)

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def group_size(self) -> int:
        """Frames from one I-frame to the next; encoding may be split between groups but not inside one."""
        return self.interleave + 1

    @property
    def needs_motion(self) -> bool:
        """Does `encode` use motion maps with these settings?"""
        return self.select == "motion" and self.interleave > 0 and self.num_kept < self.model.vision.num_patches

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        return {
            "encoder": self.name,
            "interleave": self.interleave,
            "drop": self.drop,
            "select": self.select,
            "residual": self.tokenizer and f"{self._residual_name}:{self.tokenizer.fingerprint}",
            "seed": self.seed,
        }

    def roles(self, num_frames: int) -> str:
        """ "IPPIPP..." for that many frames."""
        return fixed_roles(num_frames, self.interleave)

    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of that many frames by part, see `everyframe.cost`."""
        vision = self.model.vision
        patches = vision.num_patches * (1 - self.drop) if rule == "paper" else self.num_kept
        tokens = vision.num_prefix + patches + (self.tokenizer is not None)
        reduced = frame_macs(vision.config, rule, patches=patches, tokens=tokens)
        if self.tokenizer is not None:
            reduced["residual token"] = float(self.dim * vision.config.width)
        full = self.roles(num_frames).count("I")
        return add_macs((full, full_frame_macs(self.model, rule)), (num_frames - full, reduced))

    @torch.no_grad()
    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor:
        """Preprocessed frames [T, 3, S, S] -> float32 [T, dim], L2-normalised. Frame 0 is an I-frame.

        motion: magnitude of motion since the sampled frame before, [T, S, S] or None. With select="motion" and
            no maps, the absolute difference to the frame before takes their place, as it does for videos whose
            codec stores no motion.
        first_frame: number of `pixels[0]` in its video, a multiple of `group_size`; it only enters the seeds.
        Raises ValueError for other shapes.
        """
        check_frames(pixels, self.model)
        if motion is not None and not isinstance(motion, Tensor):
            raise TypeError(f"motion must be a tensor [T, S, S], got {type(motion).__name__}; use torch.from_numpy")
        if motion is not None and motion.shape != (len(pixels), *pixels.shape[2:]):
            wanted = [len(pixels), *pixels.shape[2:]]
            raise ValueError(f"motion must be {wanted}, one map per frame, got {list(motion.shape)}")
        if first_frame % self.group_size:
            raise ValueError(f"first_frame must be a multiple of {self.group_size}, got {first_frame}")
        features = torch.empty(len(pixels), self.dim, device=self.model.device)
        features[:: self.group_size] = encode_full(self.model, pixels[:: self.group_size], self.batch_size)
        others = torch.arange(len(pixels))
        others = others[others % self.group_size != 0]
        if len(others):
            kept = self.kept_indices(pixels, motion, others, first_frame)
            # A P-frame has a fraction of the tokens; larger batches keep the matrix products as large.
            batch = max(self.batch_size * self.model.vision.num_patches // self.num_kept, 1)
            for rows, indices in zip(others.split(batch), kept.split(batch), strict=True):
                sources = features[rows // self.group_size * self.group_size]
                features[rows] = self.p_features(pixels[rows], sources, indices)
        return features

    def kept_indices(self, pixels: Tensor, motion: Tensor | None, rows: Tensor, first_frame: int = 0) -> Tensor:
        """The patches each frame in `rows` keeps: int64 [len(rows), n], sorted, in raster numbering."""
        vision, kept = self.model.vision, self.num_kept
        if kept == vision.num_patches or self.select == "uniform":
            return uniform_indices(vision.num_patches, kept).expand(len(rows), -1)
        if self.select == "center":
            return center_indices(vision.grid, kept).expand(len(rows), -1)
        frames = [first_frame + int(row) for row in rows]
        if self.select == "random":
            return random_indices(vision.num_patches, kept, frames=frames, seed=self.seed)
        maps = motion if self.select == "motion" and motion is not None else frame_residual(pixels)
        scores = patch_sums(maps[rows.to(maps.device)], vision.config.patch_size)
        return top_indices(scores, kept, frames=frames, seed=self.seed)

    def p_features(self, pixels: Tensor, i_features: Tensor, indices: Tensor) -> Tensor:
        """P-frames [B, 3, S, S], their I-features [B, D] and kept patches [B, n] -> float32 [B, D], unit rows.

        Differentiable, so that the residual tokenizer can be trained through it.
        """
        vision, model = self.model.vision, self.model
        patches = vision.patchify(pixels)
        where = indices.to(patches.device)[..., None].expand(-1, -1, patches.shape[2])
        patches = patches.gather(1, where).to(model.device, model.dtype)
        parts = [vision.prefix(len(pixels)), vision.embed(patches, indices.to(model.device))]
        if self.tokenizer is not None:
            dtype = self.tokenizer.linear.weight.dtype
            parts.insert(1, self.tokenizer(i_features.to(dtype))[:, None].to(model.dtype))
        return F.normalize(vision.encode(torch.cat(parts, 1)).float(), dim=1)


def _resolve_tokenizer(
    residual: str | Path | ResidualTokenizer | None, model: Model
) -> tuple[ResidualTokenizer | None, str | None]:
    """The tokenizer on the model's device, and where it came from, for provenance."""
    if residual is None:
        return None, None
    if isinstance(residual, ResidualTokenizer):
        wanted = (model.vision.config.width, model.dim)
        if tuple(residual.linear.weight.shape) != wanted:
            raise ValueError(
                f"the residual tokenizer's weight is {list(residual.linear.weight.shape)}, "
                f"{model.name} needs {list(wanted)}"
            )
        return residual.to(model.device), "given"
    if residual == "auto":
        file = (model.folder or Path()) / TOKENIZER_FILE
        if model.folder is None or not file.is_file():
            warnings.warn(
                f"no residual tokenizer comes with {model.name}: P-frames go without a residual token; "
                "pass residual=None (--residual none) to say so, or a path to one you trained",
                stacklevel=3,
            )
            return None, None
    else:
        file = Path(residual)
    return ResidualTokenizer.load(file, model).to(model.device), file.name
