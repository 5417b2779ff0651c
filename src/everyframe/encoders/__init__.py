"""One class per way to read a video; each owns how it runs the transformer."""

from typing import Any, Protocol

from torch import Tensor

from everyframe.backbone import Model
from everyframe.cost import Rule
from everyframe.encoders.dense import DenseEncoder
from everyframe.encoders.plan import Plan
from everyframe.encoders.planner import Planner
from everyframe.encoders.residual import ResidualViT
from everyframe.encoders.reuse import ReuseEncoder
from everyframe.encoders.tokenizer import ResidualTokenizer


class Encoder(Protocol):
    """What the pipeline and the cost accounting ask of an encoder."""

    name: str
    model: Model
    batch_size: int

    @property
    def dim(self) -> int: ...
    @property
    def group_size(self) -> int:
        """Frames that must be encoded in one call: a call may hold several groups, never part of one."""
        ...

    @property
    def needs_motion(self) -> bool: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    def roles(self, num_frames: int) -> str: ...
    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]: ...
    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor: ...


__all__ = ["DenseEncoder", "Encoder", "Plan", "Planner", "ResidualTokenizer", "ResidualViT", "ReuseEncoder"]
