"""How much a token matters, read from the attention: sharpness (vid-TLDR), attentiveness, attention rollout.

B sequences, h heads, n tokens, d width of a head, p protected tokens at the front.

The attention of a sequence is an n x n matrix per head. None is ever held as a whole: `scored_attention` goes over the
queries in slices and keeps what a method asks of the rows, together with the attention's own output, so that scoring a
block costs neither a second product of queries and keys nor a second softmax.

Sources: Choi et al., "vid-TLDR" (CVPR 2024), equations 3 to 5, 8 and 9; Abnar and Zuidema, "Quantifying Attention Flow
in Transformers" (ACL 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Score = Literal["sharpness", "attentiveness"]

_SLICE_BYTES = 8 << 20  # of one slice of attention rows, over all heads; larger is not faster


def negative_entropy(attention: Tensor) -> Tensor:
    """sum_j P_ij log P_ij of attention rows [..., n, n], with 0 log 0 = 0: [..., n], at most 0; larger is sharper.

    The paper prints H_i = -sum A log A and calls it negative entropy; its figures and its code have this sign.
    """
    return torch.special.xlogy(attention, attention).sum(-1)


def sharpness(entropy: Tensor) -> Tensor:
    """Equation 5: negative entropies [B, n] scaled to [0, 1] over each sequence; all 0 where they are all equal."""
    low = entropy.amin(dim=1, keepdim=True)
    return _ratio(entropy - low, entropy.amax(dim=1, keepdim=True) - low)


def foreground(saliency: Tensor) -> Tensor:
    """Equation 8: which tokens of [B, n] are more salient than the mean of their sequence, bool [B, n]."""
    return saliency > saliency.mean(dim=1, keepdim=True)


def masked_saliency(saliency: Tensor) -> Tensor:
    """Equation 9: [B, n] with the background at 0 and the foreground's excess over the mean scaled to at most 1."""
    excess = (saliency - saliency.mean(dim=1, keepdim=True)).clamp_min(0)
    return _ratio(excess, excess.amax(dim=1, keepdim=True))


def saliency_weights(entropy: Tensor, *, protected: int = 0) -> Tensor:
    """Equations 5, 8 and 9 in one: negative entropies [B, n] -> the weights of equation 10, [B, n].

    Protected tokens stand outside: they take no part in minimum, mean and maximum, and their weight is 1.
    """
    weights = torch.ones_like(entropy)
    weights[:, protected:] = masked_saliency(sharpness(entropy[:, protected:]))
    return weights


def attentiveness(attention: Tensor) -> Tensor:
    """Equation 3: how much each token is looked at, on average over queries and heads: [B, h, n, n] -> [B, n]."""
    return attention.mean(dim=(1, 2))


def scored_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, score: Score, masses: Tensor | None = None, cls: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention and the score of its tokens in one pass over slices of the queries.

    queries, keys, values: [B, h, n, d]. masses: float32 [B, n] or None; they bias what the attention returns by log m
    per key, and not the score, which is read from the unbiased softmax. The heads are averaged before the entropy.
    score: "sharpness" gives `negative_entropy` of each row, "attentiveness" the mean of each column, or with `cls`
    the row of the first token (EViT). Returns the output [B, h, n, d] in the values' dtype and the score, float32 [B,
    n].
    """
    if masses is not None:  # only their ratio counts, and in half precision a large one times a value overflows
        masses = masses / masses.amax(dim=1, keepdim=True)
    weighted = values if masses is None else values * masses[:, None, :, None].to(values.dtype)
    output = torch.empty_like(values)  # written in place: collecting slices would hold them twice
    scores = torch.zeros(keys.shape[0], keys.shape[2], device=keys.device)
    start = 0
    for attention in _attention_slices(queries, keys):
        rows = slice(start, start + attention.shape[2])
        mean = attention.mean(dim=1)
        if score == "sharpness":
            scores[:, rows] = negative_entropy(mean)
        elif not cls:
            scores += mean.sum(dim=1) / queries.shape[2]
        elif start == 0:
            scores += mean[:, 0]
        output[:, :, rows] = attention.to(values.dtype) @ weighted
        if masses is not None:  # softmax(l + log m) = softmax(l) m / sum(softmax(l) m)
            whole = (attention.flatten(1, 2) @ masses[:, :, None]).view(*attention.shape[:3], 1)
            output[:, :, rows] /= whole.to(values.dtype)
        start = rows.stop
    return output, scores


def rollout(queries: Sequence[Tensor], keys: Sequence[Tensor]) -> list[Tensor]:
    """Equation 4: attention rollout from each layer to the output, float32 [B, n] per layer.

    queries, keys: one [B, h, n, d] per layer. The product of the layers' attention is the paper's, without the identity
    that Abnar and Zuidema add for the residual connection. It is applied to a row vector from the last layer back, so
    no n x n matrix is formed.
    """
    flow = torch.full(keys[-1].shape[::2], 1 / keys[-1].shape[2], device=keys[-1].device)
    found = []
    for layer_queries, layer_keys in zip(reversed(queries), reversed(keys), strict=True):
        before, flow, start = flow, torch.zeros_like(flow), 0
        for attention in _attention_slices(layer_queries, layer_keys):
            stop = start + attention.shape[2]
            flow += (before[:, None, start:stop] @ attention.mean(dim=1))[:, 0]
            start = stop
        found.append(flow)
    return found[::-1]


def _attention_slices(queries: Tensor, keys: Tensor) -> Iterator[Tensor]:
    """softmax(q k^T / sqrt(d)) for slices of the queries: float32 [B, h, some, n]."""
    batch, heads, count, width = queries.shape
    rows = max(1, _SLICE_BYTES // max(1, 4 * batch * heads * keys.shape[2]))
    turned = keys.transpose(2, 3)
    scaled = queries * width**-0.5
    for start in range(0, count, rows):
        logits = scaled[:, :, start : start + rows] @ turned
        yield logits.softmax(dim=-1, dtype=torch.float32)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where `whole` is 0: the published code divides by zero there."""
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0)
