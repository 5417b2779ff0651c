"""What a feature costs: multiply-accumulates of an encoder, by the paper's counting rule or all of them.

"GFLOPs" in ResidualViT, as in most Vision Transformer papers, are multiply-accumulates; so are these.

rule="paper": linear layers and the patch projection, without the products of attention; a P-frame counts
              (1 - p) P patches, not rounded to whole ones, as ResidualViT's Table 1 does.
rule="all":   exactly the tokens processed, and the products of attention (Q K^T and its product with V) too.
Norms, activations, biases, softmax and the choice of patches are left out by both (together below 1 %).
For video transformers "paper" is vid-TLDR's rule, that of the tool fvcore: all products of matrices, attention and
matching among them, and 5 per element of a LayerNorm; neither projection nor head. "all" counts matching too.
TempMe's "paper" is the same rule with the projection of every CLS token; its LoRA is merged into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from everyframe.backbone import VideoConfig, VisionConfig
    from everyframe.tokens.clips import LayerCounts

Rule = Literal["paper", "all"]


class Countable(Protocol):
    """What `flops` asks of an encoder."""

    @property
    def group_size(self) -> int: ...
    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates: `total` of `frames` frames, `per_frame` on average, `by_part` summing to `total`."""

    frames: int
    per_frame: float
    total: float
    by_part: dict[str, float]
    rule: str

    @property
    def gflops_per_frame(self) -> float:
        """Billions per frame, the unit of the papers' tables."""
        return self.per_frame / 1e9


def flops(encoder: Countable, frames: int | None = None, *, rule: Rule = "paper") -> Cost:
    """Cost of encoding `frames` frames of one video (default: from one I-frame to the next).

    Raises ValueError for frames < 1 or an unknown rule.
    """
    if not hasattr(encoder, "macs"):
        raise TypeError(
            f"encoder must be an encoder such as DenseEncoder(model), got {type(encoder).__name__}; "
            "for a model without weights use backbone.skeleton(name)"
        )
    if rule not in ("paper", "all"):
        raise ValueError(f'rule must be "paper" or "all", got {rule!r}')
    count = encoder.group_size if frames is None else frames
    if count < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    by_part = encoder.macs(count, rule)
    total = sum(by_part.values())
    return Cost(frames=count, per_frame=total / count, total=total, by_part=by_part, rule=rule)


def frame_macs(
    config: VisionConfig, rule: Rule, *, patches: float, tokens: float, keys: float | None = None
) -> dict[str, float]:
    """Multiply-accumulates of one frame by part, when `patches` are embedded and `tokens` go through the blocks.

    keys: how many tokens attention looks at, where that is more than those that are computed.
    """
    keys = tokens if keys is None else keys
    width, hidden = config.width, config.mlp_width
    mlp = (3 if config.gated_mlp else 2) * width * hidden
    head, pooling = 0.0, 0.0
    if config.pooling == "attention":
        head = 2 * width**2 * (tokens + 1) + mlp
        pooling = 2 * keys * width
    if config.projection:
        head += width * config.dim
    parts = {
        "patches": float(patches * 3 * config.patch_size**2 * width),
        "blocks": float(config.depth * tokens * (4 * width**2 + mlp)),
        "head": float(head),
    }
    if rule == "all":
        parts["attention"] = float(config.depth * 2 * tokens * keys * width + pooling)
    return parts


def sequence_macs(
    config: VisionConfig | VideoConfig,
    counts: Sequence[int],
    rule: Rule | Literal["vid-tldr"],
    *,
    matching: int | None = None,
    protected: int = 0,
    before: bool = False,
) -> dict[str, float]:
    """Multiply-accumulates by part of one sequence whose tokens become fewer between attention and MLP.

    counts: tokens before each block and after the last, prefix included. matching: channels in which tokens are
    compared for merging (source times destination tokens, where any are merged), None where they are not; the first
    `protected` stand outside. before: tokens go before a block's attention, as in vid-TLDR's Table 1. rule: "vid-tldr"
    is what its tables count, with
        F = N_1 P C + sum_l [4 N_l C^2 + 2 N_l^2 C + 5 N_l C + a_l C + 8 N_(l+1) C^2 + 5 N_(l+1) C] + final norms
    for P values of a patch, a_l products of matching, and a hidden width of 4 C.
    """
    fine: Any = config  # the two configurations differ in what surrounds the blocks
    width, tubelet = config.width, getattr(config, "tubelet", None)
    video = tubelet is not None
    prefix = 0 if video else int(fine.cls_token) + fine.registers
    mlp = (3 if config.gated_mlp else 2) * width * config.mlp_width
    steps = list(pairwise(counts))
    attended = [after if before else count for count, after in steps]
    last = counts[-1]
    parts = {
        "patches": float((counts[0] - prefix) * 3 * (tubelet or 1) * config.patch_size**2 * width),
        "blocks": float(sum(4 * count * width**2 for count in attended) + sum(after * mlp for _, after in steps)),
        "head": 0.0,
    }
    if rule != "vid-tldr":
        parts["head"] = float(width * config.dim if config.projection else 0)
        if not video and fine.pooling == "attention":
            parts["head"] += 2 * width**2 * (last + 1) + mlp
    if rule == "paper":
        return parts
    pooling = 2 * last * width if not video and fine.pooling == "attention" and rule == "all" else 0
    parts["attention"] = float(sum(2 * count**2 * width for count in attended) + pooling)
    if matching is not None:
        parts["matching"] = float(sum(_pairs(count, protected) for count, after in steps if after < count) * matching)
    if rule == "vid-tldr":
        around = 5 * counts[0] * width * int(not video and fine.pre_norm)
        if video:
            around += 5 * width * (last * int(fine.final_norm) + int(fine.pool_norm))
        else:
            around += 5 * width * (last if fine.pooling == "attention" else 1)
        passed = sum(attended) + sum(after for _, after in steps)
        parts["norms"] = float(5 * passed * width + around)
    return parts


def clip_macs(
    config: VisionConfig | VideoConfig, layers: Sequence[LayerCounts], rule: Rule, *, protected: int = 0
) -> dict[str, float]:
    """Multiply-accumulates by part of one video whose frames are joined into longer and longer clips (TempMe).

    layers: the tokens around each block. protected: tokens of a frame that never merge, CLS first. rule: "paper" is
    what the tool fvcore counts, products of matrices and 5 per element of a LayerNorm; "all" leaves the norms out.
    """
    fine: Any = config
    width, first, last = config.width, layers[0], layers[-1]
    frames, left = first.clips_before, last.clips * last.after
    video = hasattr(config, "tubelet")
    mlp = (3 if config.gated_mlp else 2) * width * config.mlp_width
    attentive = not video and fine.pooling == "attention"
    # Pooled are all CLS tokens, or all final clips where there are none.
    pooled = frames if protected and not attentive else last.clips
    matching = 0
    for step in layers:
        if step.attended < step.gathered:
            matching += step.clips * _pairs(step.gathered, step.protected) * width
        if step.after < step.attended:
            matching += step.clips * _pairs(step.attended, step.protected) * (width // config.heads)
    head = pooled * width * config.dim if config.projection else 0
    if attentive:
        head += 2 * width**2 * (left + pooled) + pooled * mlp
    parts = {
        "patches": float(frames * (first.before - protected) * 3 * config.patch_size**2 * width),
        "blocks": float(sum(step.clips * (4 * step.attended * width**2 + step.after * mlp) for step in layers)),
        "head": float(head),
        "attention": float(
            sum(2 * step.clips * step.attended**2 * width for step in layers) + 2 * left * width * attentive
        ),
        "matching": float(matching),
    }
    if rule == "paper":
        normed = sum(step.clips * (step.attended + step.after) for step in layers)
        if video:
            normed += left * int(fine.final_norm) + pooled * int(fine.pool_norm)
        else:
            normed += frames * first.before * int(fine.pre_norm) + pooled + left * attentive
        parts["norms"] = float(5 * normed * width)
    return parts


def _pairs(count: int, protected: int) -> int:
    """Sources times destinations of a bipartite matching of `count` tokens, `protected` of which take no part."""
    return ((count + 1) // 2 - (protected + 1) // 2) * (count // 2 - protected // 2)


def add_macs(*costs: tuple[int, dict[str, float]]) -> dict[str, float]:
    """Sum of (count, parts) pairs, part by part."""
    total: dict[str, float] = {}
    for count, parts in costs:
        for name, value in parts.items():
            total[name] = total.get(name, 0.0) + count * value
    return total
