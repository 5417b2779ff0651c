"""Reuse of keys and values, and the plans for it, written from their descriptions: one frame, layer, patch at a time.

Slow and plain on purpose: nothing here is shared with the package but the checkpoint's folder.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from reference import residual

NOISE = 0.01
STALE = 0.3
LONGEST_GROUP = 48


class Layer:
    """The pieces of one block of transformers' CLIP, SigLIP or DINOv2, under common names."""

    def __init__(self, block: torch.nn.Module) -> None:
        dino = hasattr(block, "norm1")
        self.attention = block.attention if dino else block.self_attn
        self.norm1, self.norm2 = (block.norm1, block.norm2) if dino else (block.layer_norm1, block.layer_norm2)
        self.out = self.attention.o_proj if dino else self.attention.out_proj
        self.scale1, self.scale2 = (block.layer_scale1, block.layer_scale2) if dino else (lambda x: x, lambda x: x)
        self.mlp = block.mlp


def softmax_attention(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """One token's query [W] over the keys and values [L, W] of all tokens: [W]."""
    size = len(query) // heads
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        weights = torch.exp(keys[:, own] @ query[own] / math.sqrt(size))
        parts.append((weights / weights.sum()) @ values[:, own])
    return torch.cat(parts)


class Reader:
    """One video's state: of every layer, and of SigLIP's pooling, the key and value of every token."""

    def __init__(self, folder) -> None:
        self.model = residual.load(folder)
        self.patch_size, self.prefix = residual.patch_grid(folder)
        tower = getattr(self.model, "vision_model", self.model)
        self.tower, self.config = tower, tower.config
        encoder = tower.encoder
        self.layers = [Layer(block) for block in (encoder.layer if hasattr(encoder, "layer") else encoder.layers)]
        # state[layer][token] = (key, value); the last one is the pooling head's.
        self.state: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(len(self.layers) + 1)]

    def read(self, image: Tensor, patches: list[int] | None) -> Tensor:
        """Feature [D] of an image [3, S, S] of which `patches` are computed, or everything."""
        tokens = residual.embedded(self.model, image, self.patch_size)
        if hasattr(self.tower, "pre_layrnorm"):
            tokens = self.tower.pre_layrnorm(tokens)
        if patches is None:
            for state in self.state:
                state.clear()
            patches = range(len(tokens) - self.prefix)
        computed = [*range(self.prefix), *(self.prefix + patch for patch in patches)]
        hidden = {token: tokens[token] for token in computed}
        for layer, state in zip(self.layers, self.state, strict=False):
            hidden = self._through(layer, state, hidden)
        return F.normalize(self._pooled(hidden), dim=0)

    def borrow(self, other: "Reader", patches: list[int]) -> None:
        """Take these patches' keys and values, of every layer, from another reader."""
        for own, theirs in zip(self.state, other.state, strict=True):
            for token in (self.prefix + patch for patch in patches):
                if token in theirs:
                    own[token] = theirs[token]

    def _through(self, layer: Layer, state: dict, hidden: dict[int, Tensor]) -> dict[int, Tensor]:
        attention = layer.attention
        normed = {token: layer.norm1(value) for token, value in hidden.items()}
        for token, value in normed.items():
            state[token] = (attention.k_proj(value), attention.v_proj(value))
        keys = torch.stack([state[token][0] for token in sorted(state)])
        values = torch.stack([state[token][1] for token in sorted(state)])
        after = {}
        for token, value in hidden.items():
            seen = softmax_attention(attention.q_proj(normed[token]), keys, values, self.config.num_attention_heads)
            value = value + layer.scale1(layer.out(seen))
            after[token] = value + layer.scale2(layer.mlp(layer.norm2(value)))
        return after

    def _pooled(self, hidden: dict[int, Tensor]) -> Tensor:
        if hasattr(self.model, "layernorm"):  # DINOv2
            return self.model.layernorm(hidden[0])
        if not hasattr(self.tower, "head"):  # CLIP
            return self.model.visual_projection(self.tower.post_layernorm(hidden[0]))
        head, state = self.tower.head, self.state[-1]
        query_weight, key_weight, value_weight = head.attention.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = head.attention.in_proj_bias.chunk(3)
        for token, value in hidden.items():
            value = self.tower.post_layernorm(value)
            state[token] = (key_weight @ value + key_bias, value_weight @ value + value_bias)
        keys = torch.stack([state[token][0] for token in sorted(state)])
        values = torch.stack([state[token][1] for token in sorted(state)])
        query = query_weight @ head.probe[0, 0] + query_bias
        pooled = head.attention.out_proj(softmax_attention(query, keys, values, self.config.num_attention_heads))
        return pooled + head.mlp(head.layernorm(pooled)[None, None])[0, 0]


@torch.no_grad()
def encode(folder, pixels: Tensor, roles: str, kept: list[list[int]], lent: list[list[int]] | None = None) -> Tensor:
    """float32 [T, D], unit rows; `kept` are the patches of each P-frame, in order, `lent` those of the next I-frame."""
    reader, features, remaining, borrowed = Reader(folder), [], list(kept), list(lent or [])
    after: dict[int, Reader] = {}  # of the I-frames that lend
    for frame, (image, role) in enumerate(zip(pixels, roles, strict=True)):
        if role == "C":
            features.append(features[-1])
            continue
        patches = borrowed.pop(0) if borrowed and role == "P" else []
        if patches:
            following = roles.index("I", frame)
            if following not in after:
                after[following] = Reader(folder)
                after[following].read(pixels[following], None)
            reader.borrow(after[following], patches)
        features.append(reader.read(image, remaining.pop(0) if role == "P" else None))
    assert not remaining and not borrowed
    return torch.stack(features)


# --- plans -----------------------------------------------------------------------------------------------


def cells(image: Tensor, patch_size: int) -> list[list[float]]:
    """Per patch, the mean of every cell and channel; cells have the largest side that leaves at least 4 per patch."""
    side = max(k for k in range(1, patch_size + 1) if patch_size % k == 0 and (k == 1 or patch_size // k >= 4))
    grid, values = image.shape[-1] // patch_size, image.double().numpy()
    patches = []
    for row in range(grid):
        for column in range(grid):
            means = []
            for top in range(row * patch_size, (row + 1) * patch_size, side):
                for left in range(column * patch_size, (column + 1) * patch_size, side):
                    for channel in range(3):
                        means.append(float(values[channel, top : top + side, left : left + side].mean()))
            patches.append(means)
    return patches


def squared_change(now: list[float], before: list[float]) -> float:
    return sum((one - other) ** 2 for one, other in zip(now, before, strict=True)) / len(now)


def largest(scores: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda patch: -scores[patch])[:count])


def plan_by_change(
    pixels: Tensor,
    *,
    patch_size: int,
    count: int,
    interleave: int = 5,
    adaptive: bool = False,
    tolerance: float = 1.0,
    cuts: tuple[int, ...] = (),
) -> tuple[str, list[list[int]], list[float]]:
    """Roles, the patches of the P-frames, and what every frame leaves out. `cuts`: frames that begin a shot."""
    roles, kept, left_out = "", [], []
    known, first, debt, since = [], [], 0.0, 0
    for frame, image in enumerate(pixels):
        now = cells(image, patch_size)
        change = [squared_change(one, other) for one, other in zip(now, known, strict=True)] if known else []
        most = min(count, sum(value > NOISE for value in change)) if adaptive else count
        chosen = largest(change, most)
        left = sum(math.sqrt(change[patch]) for patch in range(len(change)) if patch not in chosen) / len(now)
        moved_on = sum(math.sqrt(squared_change(one, other)) for one, other in zip(known, first, strict=True))
        left += STALE * moved_on / len(now)
        since += 1
        if adaptive:
            full = since == LONGEST_GROUP or debt + left > tolerance
        else:
            full = since > interleave
        if frame == 0 or frame in cuts or full:
            roles, known, first, debt, since = roles + "I", now, list(now), 0.0, 0
            left_out.append(0.0)
            continue
        debt += left
        left_out.append(left)
        if not chosen:
            roles += "C"
            continue
        roles += "P"
        kept.append(chosen)
        for patch in chosen:
            known[patch] = now[patch]
    return roles, kept, left_out


def two_sided(
    pixels: Tensor, roles: str, *, patch_size: int, count: int, adaptive: bool = False
) -> tuple[str, list[list[int]], list[list[int]]]:
    """Roles, refreshed and lent patches of the P-frames; of `roles`, a one-sided plan's, only the I-frames count."""
    made, kept, lent, known = "", [], [], []
    contents = [cells(image, patch_size) for image in pixels]
    for frame, now in enumerate(contents):
        if roles[frame] == "I":
            made, known = made + "I", list(now)
            continue
        following = roles.find("I", frame)
        after = contents[following] if following > 0 else None
        change, taken = [], []
        for patch in range(len(now)):
            behind = squared_change(now[patch], known[patch])
            ahead = squared_change(now[patch], after[patch]) if after else math.inf
            if behind > NOISE and ahead < behind:
                taken.append(patch)
                known[patch] = after[patch]
                behind = ahead
            change.append(behind)
        most = min(count, sum(value > NOISE for value in change)) if adaptive else count
        if not most and not taken:
            made += "C"
            continue
        chosen = largest(change, max(most, 1))
        made += "P"
        kept.append(chosen)
        lent.append([patch for patch in taken if patch not in chosen])
        for patch in chosen:
            known[patch] = now[patch]
    return made, kept, lent


def plan_by_motion(
    maps: Tensor, *, patch_size: int, count: int, interleave: int, cuts: tuple[int, ...] = ()
) -> tuple[str, list[list[int]]]:
    """Roles, and the patches of the P-frames: most motion [T, S, S] since each patch was last computed."""
    roles, kept, since = "", [], interleave
    grid = maps.shape[-1] // patch_size
    for frame, values in enumerate(maps.double()):
        if since == interleave or frame in cuts:
            roles, since, moved = roles + "I", 0, [0.0] * grid**2
            continue
        for patch in range(grid**2):
            top, left = patch // grid * patch_size, patch % grid * patch_size
            moved[patch] += float(values[top : top + patch_size, left : left + patch_size].sum())
        roles, since = roles + "P", since + 1
        kept.append(largest(moved, count))
        for patch in kept[-1]:
            moved[patch] = 0.0
    return roles, kept
