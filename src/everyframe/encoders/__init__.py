"""One class per way to read a video; each owns how it runs the transformer."""

from typing import Any, Protocol

from torch import Tensor

from everyframe.backbone import Model
from everyframe.cost import Rule
from everyframe.encoders.dense import DenseEncoder
from everyframe.encoders.merging import ToMe, VidTLDR
from everyframe.encoders.plan import Plan
from everyframe.encoders.planner import Planner
from everyframe.encoders.pruning import EViT, Pruning
from everyframe.encoders.residual import ResidualViT
from everyframe.encoders.reuse import ReuseEncoder
from everyframe.encoders.tempme import TempMe
from everyframe.encoders.tokenizer import ResidualTokenizer


class FramePlanner(Protocol):
    """Plans one video; frames go in in order, and the plan does not depend on how they are split into calls.

    `add` gives what is decided by now, which may lag behind; `finish`, when the video is over, the rest.
    """

    def add(self, pixels: Tensor, motion: Tensor | None = None) -> Plan: ...
    def finish(self) -> Plan: ...


class Encoder(Protocol):
    """What the pipeline and the cost accounting ask of an encoder.

    plan: "fixed" where `roles` and `macs` are known for any video; with another name they raise ValueError.
    """

    name: str
    model: Model
    batch_size: int
    plan: str

    @property
    def dim(self) -> int: ...
    @property
    def group_size(self) -> int:
        """Frames from one I-frame to the next, at most: a call may hold several groups, never part of one."""
        ...

    @property
    def needs_motion(self) -> bool: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def looks_ahead(self) -> bool:
        """Must the I-frame after the last group be at hand too? Then it ends the pixels and the plan of a call."""
        ...

    def planner(self, first_frame: int = 0) -> FramePlanner: ...
    def roles(self, num_frames: int) -> str: ...
    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]: ...
    def plan_macs(self, plan: Plan, rule: Rule) -> dict[str, float]: ...
    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor: ...
    def encode_planned(self, pixels: Tensor, plan: Plan) -> Tensor: ...


__all__ = [
    "DenseEncoder",
    "EViT",
    "Encoder",
    "FramePlanner",
    "Plan",
    "Planner",
    "Pruning",
    "ResidualTokenizer",
    "ResidualViT",
    "ReuseEncoder",
    "TempMe",
    "ToMe",
    "VidTLDR",
]
