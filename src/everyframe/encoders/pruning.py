"""What the papers compare token merging with: plain pruning by a score, and EViT.

Sources: Choi et al., "vid-TLDR" (CVPR 2024), Tables 1 and 7; Liang et al., "Not All Patches Are What You Need:
Expediting Vision Transformers via Token Reorganizations" (EViT, ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

from torch import Tensor

from everyframe.backbone import Block, Model, VideoModel
from everyframe.backbone.pieces import attention
from everyframe.cost import Rule, sequence_macs
from everyframe.encoders.merging import ReducingEncoder
from everyframe.tokens.merge import Tokens, fuse_tokens, prune_tokens
from everyframe.tokens.saliency import Score, rollout, scored_attention


class Pruning(ReducingEncoder):
    """Plain pruning: the tokens with the lowest scores are dropped. What vid-TLDR's Tables 1 and 7 compare with.

    score: "sharpness" (vid-TLDR's saliency), "attentiveness" (equation 2 where there is a CLS token, else 3), or
        "rollout" (equation 4), which needs a whole pass of the unmodified model first.
    before: drop a block's tokens before its attention output is computed (Table 1), not after it (Table 7).
    """

    name = "pruning"

    def __init__(
        self,
        model: VideoModel | Model,
        reduce: Sequence[int | float] = (),
        *,
        score: Score | Literal["rollout"] = "sharpness",
        before: bool = False,
        batch_size: int | None = None,
    ) -> None:
        if score not in ("sharpness", "attentiveness", "rollout"):
            raise ValueError(f'score must be "sharpness", "attentiveness" or "rollout", got {score!r}')
        if before and score == "rollout":
            raise ValueError("before has no meaning with rollout, whose scores are known before the first block")
        super().__init__(model, reduce, batch_size=batch_size)
        self.score = score
        self.before = before

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        return {**super().settings, "score": self.score, **({"before": True} if self.before else {})}

    def _reducer(self, block: Block, state: Tokens, count: int, protected: int) -> Tokens:
        queries, keys, values = block.heads_of(state.tokens)
        score = cast(Score, self.score)
        attended, scores = scored_attention(queries, keys, values, score=score, cls=protected > 0)
        if not self.before:
            state = state.with_tokens(state.tokens + block.output(attended))
            return prune_tokens(state, scores, count, protected=protected)
        state = prune_tokens(state, scores, count, protected=protected)
        return state.with_tokens(state.tokens + block.attend(state.tokens))

    def _run(self, pixels: Tensor) -> Tokens:
        if self.score != "rollout" or not any(self.reduce):
            return super()._run(pixels)
        vision = self.model.vision
        x = start = vision.start(pixels)
        seen: list[tuple[Tensor, Tensor]] = []
        for block in vision.blocks:
            queries, keys, values = block.heads_of(x)
            seen.append((queries, keys))
            x = x + block.output(attention(queries, keys, values))
            x = x + block.feed(x)
        flows = rollout(*zip(*seen, strict=True))
        state = Tokens.traced(start)
        for block, flow, (before, after) in zip(vision.blocks, flows, pairwise(self.counts), strict=True):
            state = state.with_tokens(state.tokens + block.attend(state.tokens))
            if before > after:
                left = cast(Tensor, state.sources)
                # Which input tokens are still there, in order.
                rows = (left >= 0).nonzero()[:, 1].view(len(left), before)
                state = prune_tokens(state, flow.gather(1, rows), before - after, protected=self.protected)
            state = state.with_tokens(state.tokens + block.feed(state.tokens))
        return state.with_tokens(vision.finish(state.tokens))

    def _sequence_macs(self, rule: Rule) -> dict[str, float]:
        config = self.model.vision.config
        own: Any = "vid-tldr" if rule == "paper" and self.reads_clips else rule
        parts = sequence_macs(config, self.counts, rule=own, matching=None, before=self.before)
        if self.before and rule == "all":  # every token is scored before some are dropped
            scored = [count for count, after in pairwise(self.counts) if after < count]
            parts["scoring"] = float(sum(3 * count * config.width**2 + 2 * count**2 * config.width for count in scored))
        if self.score == "rollout" and any(self.reduce):
            parts["rollout"] = sum(sequence_macs(config, [self.counts[0]] * len(self.counts), rule=own).values())
        return parts


class EViT(ReducingEncoder):
    """EViT: the least attentive tokens of a block become one token, their sum weighted by attentiveness.

    Attentiveness is how much CLS looks at a token, or, in models without one, how much all tokens do (vid-TLDR,
    equation 3). EViT itself fine-tunes the model; here it is training-free like the rest.
    """

    name = "evit"

    def _reducer(self, block: Block, state: Tokens, count: int, protected: int) -> Tokens:
        attended, scores = scored_attention(
            *block.heads_of(state.tokens), score="attentiveness", cls=self.protected > 0
        )
        state = state.with_tokens(state.tokens + block.output(attended))
        return fuse_tokens(state, scores, count, protected=protected)
