"""One pass of a transformer whose blocks make the tokens fewer, between attention and MLP.

B sequences, n tokens, W width. The state goes in and comes out as `Tokens`; nothing is kept on the model. A block that
removes nothing runs fused attention, with the masses as a bias once there are any.

Sources: Choi et al., "vid-TLDR" (CVPR 2024), section 3; Bolya et al., "Token Merging" (ICLR 2023), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from everyframe.backbone import Block
from everyframe.backbone.pieces import attention
from everyframe.tokens.merge import Tokens, bipartite_match, merge_tokens
from everyframe.tokens.saliency import saliency_weights, scored_attention

Reducer = Callable[[Block, Tokens, int, int], Tokens]
"""(block, tokens before it, how many go, how many at the front are protected) -> tokens before its MLP."""


def run_blocks(
    blocks: Iterable[Block], state: Tokens, counts: Sequence[int], reducer: Reducer, *, protected: int = 0
) -> Tokens:
    """Tokens through all blocks. counts: how many there are before each block, and after the last."""
    for block, (before, after) in zip(blocks, pairwise(counts), strict=True):
        if before > after:
            state = reducer(block, state, before - after, protected)
        else:
            state = state.with_tokens(state.tokens + block.attend(state.tokens, bias=state.mass_bias()))
        state = state.with_tokens(state.tokens + block.feed(state.tokens))
    return state


def merge_background(block: Block, state: Tokens, count: int, protected: int) -> Tokens:
    """vid-TLDR: tokens join their most similar partner in proportion to how sharply they attend (section 3)."""
    attended, entropy = scored_attention(*block.heads_of(state.tokens), score="sharpness", masses=state.masses)
    state = state.with_tokens(state.tokens + block.output(attended))
    matching = bipartite_match(state.tokens, count, protected=protected)
    return merge_tokens(state, matching, saliency_weights(entropy, protected=protected))


def merge_similar(block: Block, state: Tokens, count: int, protected: int) -> Tokens:
    """ToMe: tokens join their most similar partner, compared by their keys averaged over heads."""
    queries, keys, values = block.heads_of(state.tokens)
    attended = attention(queries, keys, values, bias=state.mass_bias())
    state = state.with_tokens(state.tokens + block.output(attended))
    return merge_tokens(state, bipartite_match(keys.float().mean(dim=1), count, protected=protected))


def merge_similar_tokens(block: Block, state: Tokens, count: int, protected: int) -> Tokens:
    """ToMe as vid-TLDR's tables count it: compared by the tokens themselves."""
    state = state.with_tokens(state.tokens + block.attend(state.tokens, bias=state.mass_bias()))
    return merge_tokens(state, bipartite_match(state.tokens, count, protected=protected))
