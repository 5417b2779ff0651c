"""Every frame through the whole Vision Transformer: the reference that the other encoders save on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from everyframe.backbone import Model
from everyframe.cost import Rule, add_macs, frame_macs
from everyframe.encoders.plan import Plan, fixed_roles


class AllFull:
    """The planner of a video in which every frame is an I-frame."""

    def add(self, pixels: Tensor, motion: Tensor | None = None) -> Plan:
        """The next frames [T, 3, S, S] -> their part of the plan."""
        return Plan.of("I" * len(pixels), [])

    def finish(self) -> Plan:
        """Nothing is left over."""
        return Plan.of("", [])


class DenseEncoder:
    """A full pass for every frame; equals transformers' own image features.

    batch_size: frames per forward pass; results do not depend on it.
    """

    name = "dense"
    plan = "fixed"
    group_size = 1
    needs_motion = False
    looks_ahead = False

    def __init__(self, model: Model, *, batch_size: int = 32) -> None:
        check_model(model, batch_size)
        self.model = model
        self.batch_size = batch_size

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        return {"encoder": self.name}

    def planner(self, first_frame: int = 0) -> AllFull:
        """A planner for one video."""
        return AllFull()

    def roles(self, num_frames: int) -> str:
        """All frames are I-frames."""
        return fixed_roles(num_frames, 0)

    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of that many frames by part, see `everyframe.cost`."""
        return add_macs((num_frames, full_frame_macs(self.model, rule)))

    def plan_macs(self, plan: Plan, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of the frames of a plan by part."""
        return self.macs(len(plan.roles), rule)

    @torch.no_grad()
    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor:
        """Preprocessed frames [T, 3, S, S] -> float32 [T, dim], L2-normalised.

        `motion` and `first_frame` are accepted so that encoders are interchangeable; neither is used.
        """
        check_frames(pixels, self.model)
        return encode_full(self.model, pixels, self.batch_size)

    @torch.no_grad()
    def encode_planned(self, pixels: Tensor, plan: Plan) -> Tensor:
        """The same for a plan of I-frames alone. Raises ValueError for another."""
        check_plan(plan, pixels, self.model)
        if set(plan.roles) - {"I"}:
            raise ValueError(f"DenseEncoder reads every frame in full, but the plan's roles are {plan.roles[:12]}...")
        return self.encode(pixels)


def encode_full(model: Model, pixels: Tensor, batch_size: int) -> Tensor:
    """The whole transformer on [T, 3, S, S], `batch_size` frames at a time: float32 [T, dim], unit rows."""
    parts = [
        F.normalize(model.vision(chunk.to(model.device, model.dtype)).float(), dim=1)
        for chunk in pixels.split(batch_size)
    ]
    return torch.cat(parts) if parts else torch.empty(0, model.dim, device=model.device)


def full_frame_macs(model: Model, rule: Rule) -> dict[str, float]:
    """Cost of one I-frame."""
    patches = model.vision.num_patches
    return frame_macs(model.vision.config, rule, patches=patches, tokens=model.vision.num_prefix + patches)


def check_model(model: Model, batch_size: int) -> None:
    """Raise unless these two make an encoder."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be what everyframe.load returns, got {type(model).__name__}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def check_frames(pixels: Tensor, model: Model) -> None:
    """Raise ValueError, or TypeError, unless `pixels` is a floating point tensor [T, 3, S, S] with the model's S."""
    if not isinstance(pixels, Tensor):
        raise TypeError(f"pixels must be a tensor, got {type(pixels).__name__}; model.preprocess(frames) makes them")
    side = model.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
        raise ValueError(
            f"pixels must be [T, 3, {side}, {side}] for {model.name}, got {list(pixels.shape)}; "
            "model.preprocess(frames) makes them"
        )
    if not pixels.is_floating_point():
        raise ValueError(f"pixels must be floating point, got {pixels.dtype}; use model.preprocess(frames)")


def check_plan(plan: Plan, pixels: Tensor, model: Model) -> None:
    """Raise ValueError unless the plan is for as many frames as there are, and for patches that the model has."""
    if len(plan.roles) != len(pixels):
        raise ValueError(f"the plan is for {len(plan.roles)} frames, but there are {len(pixels)}")
    patches = model.vision.num_patches
    for verb, named in (("name", plan.indices), ("lend", plan.lent)):
        if len(named) and not 0 <= int(named.min()) <= int(named.max()) < patches:
            raise ValueError(
                f"the plan must {verb} patches from 0 to {patches - 1}, those of {model.name}, "
                f"got {int(named.min())} to {int(named.max())}"
            )


def check_motion(motion: Tensor | None, pixels: Tensor) -> None:
    """Raise TypeError or ValueError unless `motion` is None or one map [S, S] per frame."""
    if motion is not None and not isinstance(motion, Tensor):
        raise TypeError(f"motion must be a tensor [T, S, S], got {type(motion).__name__}; use torch.from_numpy")
    if motion is not None and motion.shape != (len(pixels), *pixels.shape[2:]):
        wanted = [len(pixels), *pixels.shape[2:]]
        raise ValueError(f"motion must be {wanted}, one map per frame, got {list(motion.shape)}")
