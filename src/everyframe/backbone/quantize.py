"""int8 for the linear layers of a tower's blocks: weights per output channel, activations per row, summed in int32.

A row of activations x and the weights w of an output channel become whole numbers from -127 to 127 with a scale each,
x = s q and w = t r (symmetric: zero is zero), and their product is s t (q . r), summed exactly in int32. Every row has
the scale of its own largest value: a feature does not depend on what else is in the batch, and no images are needed to
calibrate anything. Attention, LayerNorm, softmax, embeddings, pooling and the projection stay in floating point.

The integer product is oneDNN's, through torch's own operators: weights packed once, per-channel scales applied while
it writes. It knows no scale per row, so that is a pass of ours over its output, together with the bias. Rows go through
in chunks that stay in the cache, which makes these passes cheap; inside an MLP nothing but the result leaves a chunk.

Legend: m rows of a chunk, K values into a linear layer and N out of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone.vit import ACTIVATIONS, Block, Mlp

ROWS = 512
"""Rows of a chunk, at most."""
_LEVELS: Final = 127
_ZERO = 128  # oneDNN has a fast kernel for unsigned activations alone (signed ones are thousands of times slower)
_ROUND = 12582912.0  # 1.5 * 2^23: what is added to it is rounded to a whole number, which the lowest bits then hold
_QUICK = 1.702  # of quick_gelu


class Int8Linear(nn.Module):
    """`nn.Linear` with its products in int8, made of one: [..., K] -> [..., N] in the dtype of the input.

    Buffers: `weight` int8 [N, K], `weight_scale` float32 [N] and `bias` float32 [N], whatever dtype the rest of a model
    is cast to. For inference on the CPU alone: raises RuntimeError where a gradient would have to flow through,
    ValueError where it is moved to another device.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        bias = weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", bias.clone())
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        check_inference(x)
        rows = x.reshape(-1, self.in_features)
        out = rows.new_empty(len(rows), self.out_features)
        for part in chunks(len(rows)):
            self.write(rows[part], out[part])
        return out.view(*x.shape[:-1], self.out_features)

    def write(self, rows: Tensor, out: Tensor) -> None:
        """Float rows [m, K] -> their image in `out` [m, N], bfloat16 or float32."""
        dtype = torch.bfloat16 if out.dtype == torch.bfloat16 else torch.float32
        whole, scale = quantised(rows, dtype)
        torch.addcmul(self.bias.to(dtype), self._product(whole, dtype), scale, out=out)

    def wide(self, rows: Tensor) -> Tensor:
        """Float rows [m, K] -> float32 [m, N], for what follows in the same chunk."""
        whole, scale = quantised(rows, torch.float32)
        product = self._product(whole, torch.float32)
        return torch.addcmul(self.bias, product, scale, out=product)

    def _product(self, whole: Tensor, dtype: torch.dtype) -> Tensor:
        """What `quantised` made of rows, times the weights, without the scales of the rows: [m, N]."""
        if self._packed is None:
            self._packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
        scales, zeros = self.weight_scale, torch.zeros(1, dtype=torch.int32)
        return cast(
            Tensor,
            torch.ops.onednn.qlinear_pointwise(
                whole, 1.0, _ZERO, self._packed, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
            ),
        )

    def __getstate__(self) -> dict[str, Any]:
        # The packed weights are this processor's own; who gets a copy packs anew.
        return {**self.__dict__, "_packed": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        kept = {name: getattr(self, name) for name in ("weight_scale", "bias")}
        super()._apply(fn, recurse)
        if self.weight.device.type not in ("cpu", "meta"):
            where = str(self.weight.device)
            raise ValueError(f"an int8 model cannot be put on device {where!r}; load it there with dtype='bfloat16'")
        for name, values in kept.items():
            setattr(self, name, values.to(self.weight.device))
        self._packed = None
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int8Mlp(nn.Module):
    """An `Mlp` whose two layers are int8, chunk by chunk: the hidden values never leave the cache."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.activation, self.gated = mlp.activation, mlp.gated
        self.fc1, self.fc2 = Int8Linear(mlp.fc1), Int8Linear(mlp.fc2)
        self._quick = self.activation == "quick_gelu" and not self.gated
        if self._quick:  # x sigmoid(1.702 x) is silu(1.702 x) / 1.702: one pass, and both factors go into the scales
            self.fc1.weight_scale *= _QUICK
            self.fc1.bias *= _QUICK
            self.fc2.weight_scale /= _QUICK

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        check_inference(x)
        rows = x.reshape(-1, self.fc1.in_features)
        out = rows.new_empty(len(rows), self.fc2.out_features)
        for part in chunks(len(rows)):
            self.fc2.write(self._activated(self.fc1.wide(rows[part])), out[part])
        return out.view(*x.shape[:-1], self.fc2.out_features)

    def _activated(self, hidden: Tensor) -> Tensor:
        if self._quick:
            return F.silu(hidden, inplace=True)
        activate = ACTIVATIONS[self.activation]
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            return activate(gate) * value
        return activate(hidden)


def quantised(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Float rows [m, K] -> whole numbers from -127 to 127 as uint8 [m, K] with 128 for zero, and scales [m, 1].

    Of every row by itself; rounded to nearest, halves to even. The scales are rounded to `dtype` before they are used.
    """
    # Among the bits of floating point numbers without their sign the largest belong to the largest number: two passes
    # over whole numbers are several times as fast as torch's own largest absolute value.
    bits, magnitude = (torch.int32, 0x7FFFFFFF) if rows.dtype == torch.float32 else (torch.int16, 0x7FFF)
    largest = rows.view(bits).bitwise_and(magnitude).amax(1, keepdim=True).view(rows.dtype).float()
    scale = (largest / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny).to(dtype)
    values = rows.float()
    # A row of it, not one number: torch has vector instructions for one factor that is the same along a row, not two.
    added = values.new_full((values.shape[1],), _ROUND + _ZERO)
    # Not in place: rows that are float32 already are the caller's.
    values = torch.addcmul(added, values, scale.float().reciprocal())
    return values.view(torch.int32).to(torch.int8).view(torch.uint8), scale


def chunks(count: int) -> Iterator[slice]:
    """`count` rows in as few slices of at most ROWS as can be, of about equal length."""
    size = -(-count // -(-count // ROWS)) if count else 1
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def check_inference(x: Tensor) -> None:
    """Raise RuntimeError where a gradient would have to flow through whole numbers."""
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("an int8 model cannot be trained through; load it with dtype='float32' or 'bfloat16'")


@torch.no_grad()
def quantize(blocks: nn.ModuleList) -> None:
    """Put int8 layers in the place of the linear layers of the blocks, whose weights should still be float32.

    The LayerNorms before them are changed with them, see `_balance`.
    """
    for block in cast("list[Block]", blocks):
        _balance(block.norm1, block.qkv)
        _balance(block.norm2, block.mlp.fc1)
        block.qkv = cast(nn.Linear, Int8Linear(block.qkv))
        block.proj = cast(nn.Linear, Int8Linear(block.proj))
        block.mlp = cast(Mlp, Int8Mlp(block.mlp))


def _balance(norm: nn.LayerNorm, linear: nn.Linear) -> None:
    """Share the range of every channel evenly between a LayerNorm and the linear layer after it; their product stays.

    A channel whose gain is many times the others' takes all the 127 steps of its row. What SmoothQuant (Xiao et al.
    2023) measures on images is read off the norm here: a normalised channel seldom exceeds 3 deviations.
    """
    reach, weight = 3 * norm.weight.abs() + norm.bias.abs(), linear.weight.abs().amax(0)
    factor = torch.where((reach > 0) & (weight > 0), (reach / weight).sqrt(), 1.0)
    norm.weight.div_(factor)
    norm.bias.div_(factor)
    linear.weight.mul_(factor)


def is_quantized(module: nn.Module) -> bool:
    """Is any layer of it int8?"""
    return any(isinstance(part, Int8Linear) for part in module.modules())


def float_beside_int8() -> torch.dtype:
    """What the rest of an int8 model is computed in, by default: bfloat16 where the processor multiplies it itself."""
    own = _has("_is_avx512_bf16_supported") or _has("_is_amx_tile_supported")
    return torch.bfloat16 if own else torch.float32


def _has(question: str) -> bool:
    """What torch says of this processor; no where it does not know the question."""
    ask = getattr(torch.cpu, question, None)
    return ask is not None and bool(ask())


def check_int8(device: torch.device) -> None:
    """Raise ValueError unless int8 can be had there: a CPU with VNNI, and torch with oneDNN.

    Without VNNI oneDNN may saturate sums, and is slower than bfloat16 anyway.
    """
    if device.type != "cpu":
        raise ValueError(
            f"dtype 'int8' is for CPUs, but the device is {str(device)!r}; use dtype='bfloat16' there, or device='cpu'"
        )
    operators = all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise"))
    if not (torch.backends.mkldnn.is_available() and operators):
        raise ValueError("dtype 'int8' needs torch with oneDNN, which this build lacks; use dtype='float32'")
    if not _has("_is_vnni_supported"):
        raise ValueError("dtype 'int8' needs a processor with AVX-512 VNNI, which this one lacks; use dtype='float32'")
