"""How a block runs on a CPU when nobody wants gradients: piece by piece, so that what it makes stays in the cache.

A block of ViT-B writes about 60 KB per token in between. For 32 frames that is far more than any cache, and memory
that large is handed back to the system after each use, so that every page of it is asked for anew. Pieces of
a few frames use the same warm memory again and again, and activations and sums can be made in place.

Legend: n tokens, W width, h heads, d = W // h, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE_BYTES = 5 << 19
"""Of the widest tensor of a piece, for each thread: as much as a core's own cache and its share of the common one."""
PACK_ROWS = 1024
"""Rows from which laying out weights anew, 1 to 2 ms for a layer of ViT-B, is less than it saves."""
_TANH, _SILU = ("gelu", "tanh"), ("swish", "")
_FUSED = {
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": _TANH,
    "gelu_new": _TANH,
    "gelu_fast": _TANH,
    "silu": _SILU,
    "swish": _SILU,
    "relu": ("relu", ""),
}
"""What oneDNN calls the activations that it can apply while a product is still in registers."""

Layer = Callable[[Tensor], Tensor]


def runs_in_pieces(x: Tensor) -> bool:
    """Whether this is on a CPU, and no gradients will flow back through what is made of it."""
    # A compiler fuses and plans memory itself, and sees through no loop.
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def piece_rows(row_bytes: int) -> int:
    """Rows of a piece whose widest tensor takes that many bytes per row."""
    return max(PIECE_BYTES * torch.get_num_threads() // row_bytes, 1)


def pieces(count: int, size: int) -> Iterator[slice]:
    """`count` rows in slices of `size`, the last one shorter."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def prepared(layer: nn.Module, rows: int, activation: str = "none") -> Layer:
    """The layer, for `rows` rows that come in pieces; followed by the activation, where `fuses` says that it can be.

    Weights are laid out once for all pieces, as oneDNN's kernels read them, which torch does for every call or, in
    float32, not at all. They are not kept: that takes a hundredth of the time they are used for, and no layout can be
    out of date.
    """
    if not _packs(layer, rows):
        return layer
    weight, bias = cast(nn.Linear, layer).weight, cast(nn.Linear, layer).bias
    outputs, inputs = weight.shape
    attribute, algorithm = _FUSED[activation]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, piece_rows(weight.itemsize * max(outputs, inputs)))

    def run(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, attribute, [], algorithm)

    return run


def fuses(layer: nn.Module, rows: int, activation: str) -> bool:
    """Whether `prepared` can make this activation part of the layer."""
    return activation in _FUSED and _packs(layer, rows)


def _packs(layer: nn.Module, rows: int) -> bool:
    # The type itself: adapters and quantised layers are subclasses or stand-ins with arithmetic of their own.
    if type(layer) is not nn.Linear or rows < PACK_ROWS or not runs_in_pieces(layer.weight):
        return False
    watched = layer._forward_hooks or layer._forward_pre_hooks or torch.is_autocast_enabled("cpu")
    return not watched and has_kernels(layer.weight.dtype)


@cache
def has_kernels(dtype: torch.dtype) -> bool:
    """Whether this processor has AVX-512's instructions for float32 or bfloat16, and this torch oneDNN's layers."""
    names = {torch.float32: "_is_avx512_supported", torch.bfloat16: "_is_avx512_bf16_supported"}
    supported = getattr(torch.cpu, names.get(dtype, ""), None)
    operators = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return supported is not None and bool(supported()) and operators


@cache
def _has_tiles() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is None or bool(supported())


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot product attention: [B, h, n, d], twice [B, h, m, d] -> [B, h, n, d].

    `bias` and `causal` as in `Block.attend`.
    """
    if _by_products(queries, bias, causal):
        return _product_attention(queries, keys, values, bias)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, is_causal=causal)


def _by_products(queries: Tensor, bias: Tensor | None, causal: bool) -> bool:
    """Whether three plain steps beat torch's fused kernel: in bfloat16, which that one multiplies without AVX-512's
    instructions for it unless there are AMX's tiles.
    """
    plain = not causal and (bias is None or bias.is_floating_point())
    low = queries.dtype == torch.bfloat16
    return plain and low and runs_in_pieces(queries) and has_kernels(queries.dtype) and not _has_tiles()


def _product_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    batch, heads, count, size = queries.shape
    # Laid out as [B, n, h, d], so that putting the heads side by side later costs nothing.
    out = queries.new_empty(batch, count, heads, size).transpose(1, 2)
    together = max(piece_rows(4 * heads * count * keys.shape[2]), 1)
    for part in pieces(batch, together):
        q, k, v = (whole[part].flatten(0, 1) for whole in (queries, keys, values))
        scores = torch.bmm(q * size**-0.5, k.transpose(1, 2))
        if bias is not None:
            scores = (scores.unflatten(0, (-1, heads)) + bias_of(bias, part)).flatten(0, 1)
        shares = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
        out[part] = torch.bmm(shares, v).unflatten(0, (-1, heads))
    return out


def bias_of(bias: Tensor | None, part: slice) -> Tensor | None:
    """What broadcasts to [B, h, n, m], for some of the sequences."""
    return bias if bias is None or bias.dim() < 4 or len(bias) == 1 else bias[part]
