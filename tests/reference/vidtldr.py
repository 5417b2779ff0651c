"""vid-TLDR, ToMe, pruning and EViT written from their formulas, one clip, one head and one token at a time.

Slow and plain on purpose, in float64: nothing here is shared with the package. A transformer is a list of `Layer`s,
functions that the tests cut out of a checkpoint themselves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Layer:
    """One pre-norm block: [N, W] -> queries, keys, values, each [h, N, d]; [h, N, d] -> [N, W]; [N, W] -> [N, W]."""

    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    project: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


def attention(queries: Tensor, keys: Tensor, masses: list[float] | None = None) -> Tensor:
    """Softmax of the scaled products, biased per key by log mass: [h, N, N]."""
    logits = torch.stack([q @ k.T / math.sqrt(q.shape[1]) for q, k in zip(queries, keys, strict=True)])
    if masses is not None:
        for column, mass in enumerate(masses):
            logits[:, :, column] += math.log(mass)
    return torch.softmax(logits, dim=2)


def sharpness(weights: Tensor) -> list[float]:
    """Negative entropy of the head-averaged rows, scaled to [0, 1]."""
    rows = [sum(weights[head, row] for head in range(len(weights))) / len(weights) for row in range(weights.shape[1])]
    entropies = [sum(float(p) * math.log(float(p)) for p in row if p > 0) for row in rows]
    low, high = min(entropies), max(entropies)
    return [(value - low) / (high - low) if high > low else 0.0 for value in entropies]


def background_dropped(saliency: list[float]) -> list[float]:
    mean = sum(saliency) / len(saliency)
    excess = [value - mean if value > mean else 0.0 for value in saliency]
    return [value / max(excess) if max(excess) > 0 else 0.0 for value in excess]


def attentiveness(weights: Tensor, *, cls: bool = False) -> list[float]:
    mean = weights.mean(0)
    return [float(mean[0, j]) if cls else float(mean[:, j].mean()) for j in range(mean.shape[1])]


def match(metric: Tensor, count: int, protected: int = 0) -> list[tuple[int, int]]:
    """(source, destination) pairs, the most similar first."""
    pairs = []
    for i in range(len(metric)):
        if i % 2 == 0 and i >= protected:
            cosines = {
                j: float(metric[i] @ metric[j] / (metric[i].norm() * metric[j].norm()))
                for j in range(protected, len(metric))
                if j % 2 == 1
            }
            best = max(cosines, key=lambda j: cosines[j])
            pairs.append((cosines[best], i, best))
    pairs.sort(key=lambda pair: -pair[0])
    return [(i, j) for _, i, j in pairs[:count]]


def merge(
    x: Tensor, masses: list[float], pairs: list[tuple[int, int]], weights: list[float] | None, protected: int = 0
) -> tuple[Tensor, list[float], list[list[int]]]:
    """Tokens, masses, and which tokens each of them was made of."""
    gone = {i for i, _ in pairs}
    order = list(range(protected))
    order += [i for i in range(protected, len(x)) if i % 2 == 0 and i not in gone]
    order += [i for i in range(protected, len(x)) if i % 2 == 1]
    tokens, new_masses, made_of = [], [], []
    for j in order:
        total, mass, parts = masses[j] * x[j], masses[j], [j]
        for i, into in pairs:
            if into == j:
                weight = masses[i] * (1.0 if weights is None else weights[i])
                total, mass = total + weight * x[i], mass + weight
                parts.append(i)
        tokens.append(total / mass)
        new_masses.append(mass)
        made_of.append(parts)
    return torch.stack(tokens), new_masses, made_of


def lowest(scores: list[float], count: int, protected: int = 0) -> list[int]:
    """The `count` tokens that go, of those not protected; of equal ones the last."""
    order = sorted(range(protected, len(scores)), key=lambda i: (scores[i], -i))
    return sorted(order[:count])


def run(
    layers: list[Layer],
    x: Tensor,
    reduce: list[float],
    *,
    method: str = "vidtldr",
    protected: int = 0,
    cls: bool = False,
) -> tuple[Tensor, list[float], list[list[int]]]:
    """Tokens [N, W] of one sequence through all layers: tokens, masses, and which first tokens each holds.

    method: "vidtldr", "tome" (keys), "tome tokens", "prune sharpness", "prune attentiveness", "prune rollout", "evit".
    """
    masses: list[float] | None = None
    holds = [[i] for i in range(len(x))]
    flows = rollouts(layers, x) if method == "prune rollout" else None
    for number, layer in enumerate(layers):
        asked = reduce[number] if number < len(reduce) else 0
        count = int(len(x) * asked) if asked < 1 else int(asked)
        count = max(0, min(count, (len(x) - protected) // 2))
        queries, keys, values = layer.qkv(x)
        weights = attention(queries, keys, masses)
        x = x + layer.project(weights @ values)
        if count:
            plain = attention(queries, keys)
            if method in ("vidtldr", "tome", "tome tokens"):
                metric = keys.mean(0) if method == "tome" else x
                saliency = None
                if method == "vidtldr":
                    inner = background_dropped(sharpness(plain[:, protected:]))
                    saliency = [1.0] * protected + inner
                pairs = match(metric, count, protected)
                x, masses, made_of = merge(x, masses or [1.0] * len(x), pairs, saliency, protected)
                holds = [[i for part in parts for i in holds[part]] for parts in made_of]
            else:
                if method == "prune rollout":
                    scores = [float(flows[number][held[0]]) for held in holds]
                elif method == "prune sharpness":
                    scores = sharpness(plain)
                else:
                    scores = attentiveness(plain, cls=cls)
                going = lowest(scores, count + (method == "evit"), protected)
                stay = [i for i in range(len(x)) if i not in going]
                parts = [x[i] for i in stay]
                kept = [holds[i] for i in stay]
                if method == "evit":
                    parts.append(sum(scores[i] * x[i] for i in going))
                    kept.append([i for g in going for i in holds[g]])
                x, holds = torch.stack(parts), kept
        x = x + layer.mlp(x)
    return x, masses or [1.0] * len(x), holds


def rollouts(layers: list[Layer], x: Tensor) -> list[Tensor]:
    """Mean row of A^L ... A^l for each layer l, of the unmodified model."""
    maps = []
    for layer in layers:
        queries, keys, values = layer.qkv(x)
        weights = attention(queries, keys)
        maps.append(weights.mean(0))
        x = x + layer.project(weights @ values)
        x = x + layer.mlp(x)
    found = []
    for first in range(len(maps)):
        product = torch.eye(len(x), dtype=x.dtype)
        for layer_map in maps[first:]:
            product = layer_map @ product
        found.append(product.mean(0))
    return found


def sinusoids(count: int, width: int) -> Tensor:
    """The position table of VideoMAE and UMT."""
    table = torch.zeros(count, width, dtype=torch.float64)
    for place in range(count):
        for channel in range(width):
            angle = place / 10000 ** (2 * (channel // 2) / width)
            table[place, channel] = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
    return table
