"""Fewer tokens by merging: bipartite soft matching, and averages weighted by the tokens' masses.

B sequences, n tokens before, R of them merged away, C width of what is compared, W width of the tokens.

A token's *mass* says how many input tokens it stands for, weighted by their saliency where a method has one. Masses
weigh the average when tokens merge and enter later attention as a bias of log m per key, so that a merged token counts
as much as what it was made of.

Sources: Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023), section 3; Choi et al., "vid-TLDR" (CVPR
2024), section 3.2, equations 6, 7, 10 and 11; Liang et al., "EViT" (ICLR 2022), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Tokens:
    """Tokens and what became of those they were made of; passed in and returned, never kept on a module.

    tokens: [B, n, W]. masses: float32 [B, n], or None, all ones: nothing has been merged yet, and attention needs no
    bias. sources: int64 [B, N], or None where nobody asked: for each token before the first block, the token that now
    holds it, -1 where it was dropped.
    """

    tokens: Tensor
    masses: Tensor | None = None
    sources: Tensor | None = None

    @classmethod
    def traced(cls, tokens: Tensor) -> Tokens:
        """The tokens before the first block, each its own origin."""
        return cls(tokens, None, torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1))

    @classmethod
    def stacked(cls, parts: Sequence[Tokens]) -> Tokens:
        """Batches of traced tokens as one."""
        return cls(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.all_masses() for part in parts]),
            torch.cat([part.sources for part in parts if part.sources is not None]),
        )

    def side_by_side(self, group: int) -> Tokens:
        """Every `group` sequences as one, with the sources counted on: [V * g, n, W] -> [V, g * n, W]."""
        offsets = self.tokens.shape[1] * torch.arange(group, device=self.tokens.device)[:, None]
        sources = self.sources
        if sources is not None:
            sources = sources.unflatten(0, (-1, group))
            sources = torch.where(sources < 0, -1, sources + offsets).flatten(1, 2)
        return Tokens(
            self.tokens.unflatten(0, (-1, group)).flatten(1, 2),
            self.all_masses().unflatten(0, (-1, group)).flatten(1, 2),
            sources,
        )

    def mass_bias(self) -> Tensor | None:
        """log m for the logits of attention, one per key: [B, 1, 1, n] in the tokens' dtype (equation 7)."""
        if self.masses is None:
            return None
        return self.masses.log()[:, None, None, :].to(self.tokens.dtype)

    def all_masses(self) -> Tensor:
        """The masses, also where they are all one: float32 [B, n]."""
        return torch.ones(self.tokens.shape[:2], device=self.tokens.device) if self.masses is None else self.masses

    def with_tokens(self, tokens: Tensor) -> Tokens:
        """Other values for the same tokens."""
        return Tokens(tokens, self.masses, self.sources)


@dataclass(frozen=True)
class Matching:
    """Who merges into whom; positions in the sequence before, int64.

    merged [B, R]: the tokens that go, most similar first; into [B, R]: the token each of them joins;
    kept [B, n - R]: the tokens that stay, in their new order.
    """

    merged: Tensor
    into: Tensor
    kept: Tensor


def num_reduced(num_tokens: int, reduce: int | float, protected: int = 0) -> int:
    """Tokens that go when `reduce` are asked for: a count, or a share of all tokens if below 1.

    At most half of the tokens that are not protected can go, because each needs a partner. This number is integer
    arithmetic of the published code: int(n * reduce), clamped to [0, (n - protected) // 2].
    """
    asked = int(num_tokens * reduce) if reduce < 1 else int(reduce)
    return max(0, min(asked, (num_tokens - protected) // 2))


def bipartite_match(metric: Tensor, count: int, *, protected: int = 0) -> Matching:
    """Match the tokens at even positions (sources) with those at odd ones (destinations), and take the `count` closest.

    metric: [B, n, C], compared by cosine in float32. The new order is: the first `protected` tokens, the sources that
    stay in ascending order, all destinations in ascending order. Protected tokens neither go nor receive.
    Of equally similar sources the first go. Raises ValueError unless 0 <= count <= (n - protected) // 2.
    """
    batch, length, _ = metric.shape
    if not 0 <= count <= (length - protected) // 2:
        raise ValueError(
            f"count must be between 0 and {(length - protected) // 2}, half of the {length} tokens of which "
            f"{protected} are protected, got {count}"
        )
    places = torch.arange(length, device=metric.device)
    sources, destinations = places[protected + protected % 2 :: 2], places[protected + (protected + 1) % 2 :: 2]
    front = places[:protected].expand(batch, -1)
    if count == 0:
        kept = torch.cat((front, sources.expand(batch, -1), destinations.expand(batch, -1)), 1)
        return Matching(kept[:, :0], kept[:, :0], kept)
    unit = F.normalize(metric.detach().float(), dim=-1)
    best, partner = (unit[:, sources] @ unit[:, destinations].transpose(1, 2)).max(dim=-1)
    order = best.argsort(dim=1, descending=True, stable=True)
    gone, stay = order[:, :count], order[:, count:].sort(dim=1).values
    kept = torch.cat((front, sources[stay], destinations.expand(batch, -1)), 1)
    return Matching(sources[gone], destinations[partner.gather(1, gone)], kept)


def merge_tokens(state: Tokens, matching: Matching, weights: Tensor | None = None) -> Tokens:
    """Average each token with those that join it, weighted by mass, in float32.

    weights: [B, n], the saliency by which a *merged* token's mass is multiplied (equation 10, as published code has
    it: sources that stay keep their mass); None is ToMe, where each counts in full.

        m'_j = m_j + sum_i w_i m_i        x'_j = (m_j x_j + sum_i w_i m_i x_i) / m'_j       over i that join j

    A token of weight 0 contributes nothing: it is pruned. Returns n - R tokens with their masses.
    """
    tokens = state.tokens
    masses = state.all_masses()
    joining = masses.gather(1, matching.merged)
    if weights is not None:
        joining = joining * weights.float().gather(1, matching.merged)
    where = _new_places(matching)
    target = where.gather(1, matching.into)
    own = masses.gather(1, matching.kept)
    new_masses = own.scatter_add(1, target, joining)
    sums = own[..., None] * _take(tokens, matching.kept).float()
    sums.scatter_add_(1, _wide(target, sums), joining[..., None] * _take(tokens, matching.merged).float())
    merged = (sums / new_masses[..., None]).to(tokens.dtype)
    where = where.scatter(1, matching.merged, target)
    return Tokens(merged, new_masses, _follow(state.sources, where))


def prune_tokens(state: Tokens, scores: Tensor, count: int, *, protected: int = 0) -> Tokens:
    """Drop the `count` tokens with the lowest scores [B, n]; the rest keep their order, masses and values.

    Of equal scores the later tokens go first. Raises ValueError where fewer than one token would be left.
    """
    kept = _highest(scores, count, protected)
    where = scores.new_full(scores.shape, -1, dtype=torch.int64)
    where.scatter_(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    masses = None if state.masses is None else state.masses.gather(1, kept)
    return Tokens(_take(state.tokens, kept), masses, _follow(state.sources, where))


def fuse_tokens(state: Tokens, scores: Tensor, count: int, *, protected: int = 0) -> Tokens:
    """EViT: the count + 1 tokens with the lowest scores become one, sum_i a_i x_i, at the end of the sequence.

    scores: [B, n] attentiveness; the sum is not normalised, as EViT's equation 5 has it. Masses play no part.
    """
    if count == 0:
        return state
    kept = _highest(scores, count + 1, protected, least=0)
    going = torch.ones_like(scores, dtype=torch.bool).scatter(1, kept, False)
    weights = (scores * going).float()
    fused = (weights[:, None] @ state.tokens.float()).to(state.tokens.dtype)
    where = kept.shape[1] * torch.ones_like(scores, dtype=torch.int64)
    where.scatter_(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    tokens = torch.cat((_take(state.tokens, kept), fused), 1)
    return Tokens(tokens, None, _follow(state.sources, where))


def tome_schedule(reduce: int, depth: int, *, decreasing: bool = False) -> list[int]:
    """ToMe's schedules: `reduce` tokens in every block, or from 2 `reduce` in the first to 0 in the last.

    Both remove about the same number in all; the decreasing one is cheaper, because it removes earlier.
    """
    if reduce < 0 or depth < 1:
        raise ValueError(f"reduce must be at least 0 and depth at least 1, got {reduce} and {depth}")
    if not decreasing or depth == 1:
        return [reduce] * depth
    return [2 * reduce * (depth - 1 - block) // (depth - 1) for block in range(depth)]


def token_counts(num_tokens: int, reduce: Sequence[int | float], depth: int, protected: int = 0) -> list[int]:
    """Tokens before each block and after the last: depth + 1 numbers. A list shorter than `depth` goes on with 0."""
    counts = [num_tokens]
    for block in range(depth):
        asked = reduce[block] if block < len(reduce) else 0
        counts.append(counts[-1] - num_reduced(counts[-1], asked, protected))
    return counts


def _highest(scores: Tensor, count: int, protected: int, *, least: int = 1) -> Tensor:
    """All but the `count` lowest of [B, n], ascending; the first `protected` stay whatever their score."""
    left = scores.shape[1] - protected - count
    if count < 0 or left < (0 if protected else least):
        raise ValueError(
            f"count must leave at least one of the {scores.shape[1]} tokens ({protected} protected), got {count}"
        )
    order = scores[:, protected:].argsort(dim=1, descending=True, stable=True)[:, :left].sort(dim=1).values
    front = torch.arange(protected, device=scores.device).expand(len(scores), -1)
    return torch.cat((front, order + protected), 1)


def _new_places(matching: Matching) -> Tensor:
    """[B, n]: where each token that stays is afterwards; 0 for those that go, whose place is that of their partner."""
    batch, left = matching.kept.shape
    where = matching.kept.new_zeros(batch, left + matching.merged.shape[1])
    return where.scatter_(1, matching.kept, torch.arange(left, device=where.device).expand(batch, -1))


def _follow(sources: Tensor | None, where: Tensor) -> Tensor | None:
    """Sources [B, N] after the tokens moved to `where` [B, n]; what was dropped stays dropped."""
    if sources is None:
        return None
    return torch.where(sources < 0, -1, where.gather(1, sources.clamp_min(0)))


def _take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows of [B, n, W] by [B, k]: [B, k, W]."""
    return tokens.gather(1, _wide(indices, tokens))


def _wide(indices: Tensor, tokens: Tensor) -> Tensor:
    return indices[..., None].expand(-1, -1, tokens.shape[2])
