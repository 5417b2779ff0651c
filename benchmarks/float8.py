"""The blocks' linear layers in float8 (e4m3): a scale per row of the activations, one per output channel.

For benchmarks/gpu.py --float8, which says whether it pays; the package has no float8 until somebody has measured it.
A GPU from Ada or Hopper on multiplies it in hardware; torch emulates it on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import everyframe as ef

_KIND = torch.float8_e4m3fn
_LARGEST = torch.finfo(_KIND).max


class Float8Linear(nn.Module):
    """What a linear layer does, in bfloat16 around one float8 product."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _scaled(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.T.contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = _scaled(x.reshape(-1, x.shape[-1]))
        out = torch._scaled_mm(
            rows, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        out = out if self.bias is None else out + self.bias.to(out.dtype)
        return out.view(*x.shape[:-1], -1).to(x.dtype)


def convert(model: ef.Model) -> ef.Model:
    """The same model with the linear layers of its blocks in float8, in place."""
    for block in model.vision.blocks:
        for owner, name in ((block, "qkv"), (block, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            setattr(owner, name, Float8Linear(getattr(owner, name)))
    return model


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, k] as float8 and their scales, float32 [n, 1]."""
    scale = rows.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / _LARGEST
    return (rows.float() / scale).to(_KIND), scale
