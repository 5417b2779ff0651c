"""UMT's tower and its BERT side, written plainly from the facts, one clip and one text at a time.

No fused layers, no library attention, no batches: what `load_video` makes of the same tensors must give the same
numbers. Names are those of the authors' files.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]


def linear(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def norm(tensors: Tensors, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """[L, W], [M, W], [M, W] -> [L, W], head by head."""
    size = queries.shape[1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = queries[:, part] @ keys[:, part].T / math.sqrt(size)
        if causal:
            for row in range(len(logits)):
                logits[row, row + 1 :] = -math.inf
        outputs.append(logits.softmax(dim=1) @ values[:, part])
    return torch.cat(outputs, dim=1)


def positions(count: int, width: int) -> Tensor:
    """The table of sines, one entry at a time in Python's double precision."""
    table = torch.empty(count, width, dtype=torch.float64)
    for place in range(count):
        for channel in range(width):
            angle = place / 10000 ** (2 * (channel // 2) / width)
            table[place, channel] = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
    return table


def tower(tensors: Tensors, pixels: Tensor, heads: int, prefix: str = "vision_encoder.") -> Tensor:
    """One clip [F, 3, S, S] -> tokens [N, W] after `encoder.norm`."""
    own = {key.removeprefix(prefix): value for key, value in tensors.items()}
    kernel = own["encoder.patch_embed.proj.weight"]
    clip = pixels.permute(1, 0, 2, 3)[None]
    cells = F.conv3d(clip, kernel, own["encoder.patch_embed.proj.bias"], stride=kernel.shape[2:])[0]
    width, times, rows, columns = cells.shape
    tokens = [cells[:, t, y, x] for t in range(times) for y in range(rows) for x in range(columns)]
    x = torch.stack(tokens) + positions(len(tokens), width).to(pixels.dtype)
    depth = sum(key.endswith("attn.qkv.weight") for key in own)
    for layer in range(depth):
        block = f"encoder.blocks.{layer}"
        inner = norm(own, f"{block}.norm1", x, 1e-6)
        q_weight, k_weight, v_weight = own[f"{block}.attn.qkv.weight"].split(width)
        queries = inner @ q_weight.T + own[f"{block}.attn.q_bias"]
        values = inner @ v_weight.T + own[f"{block}.attn.v_bias"]
        x = x + linear(own, f"{block}.attn.proj", attention(queries, inner @ k_weight.T, values, heads))
        hidden = F.gelu(linear(own, f"{block}.mlp.fc1", norm(own, f"{block}.norm2", x, 1e-6)))
        x = x + linear(own, f"{block}.mlp.fc2", hidden)
    return norm(own, "encoder.norm", x, 1e-6)


def pooled(tensors: Tensors, tokens: Tensor) -> Tensor:
    """Tokens [N, W] -> [W], or [D] where there is a `vision_proj`."""
    feature = norm(tensors, "vision_encoder.pool_norm", tokens.mean(dim=0), 1e-6)
    return linear(tensors, "vision_proj", feature) if "vision_proj.weight" in tensors else feature


def bert(
    tensors: Tensors, root: str, ids: list[int], layers: range, heads: int, look: Tensor | None = None,
    states: Tensor | None = None, causal: bool = False,
) -> Tensor:  # fmt: skip
    """Token ids (or the states of earlier layers) through BERT's layers, post-norm, without padding -> [L, W]."""
    x = states
    if x is None:
        embeddings = f"{root}.embeddings"
        x = tensors[f"{embeddings}.word_embeddings.weight"][ids]
        x = x + tensors[f"{embeddings}.position_embeddings.weight"][: len(ids)]
        x = x + tensors[f"{embeddings}.token_type_embeddings.weight"][0]
        x = norm(tensors, f"{embeddings}.LayerNorm", x, 1e-12)
    for layer in layers:
        block = f"{root}.encoder.layer.{layer}"
        x = _attend(tensors, f"{block}.attention", x, x, heads, causal)
        if f"{block}.crossattention.self.query.weight" in tensors:
            if look is None:
                raise ValueError(f"{block} looks at something besides the text")
            x = _attend(tensors, f"{block}.crossattention", x, look, heads, False)
        hidden = F.gelu(linear(tensors, f"{block}.intermediate.dense", x))
        x = norm(tensors, f"{block}.output.LayerNorm", x + linear(tensors, f"{block}.output.dense", hidden), 1e-12)
    return x


def _attend(tensors: Tensors, name: str, x: Tensor, other: Tensor, heads: int, causal: bool) -> Tensor:
    queries = linear(tensors, f"{name}.self.query", x)
    keys, values = linear(tensors, f"{name}.self.key", other), linear(tensors, f"{name}.self.value", other)
    seen = linear(tensors, f"{name}.output.dense", attention(queries, keys, values, heads, causal=causal))
    return norm(tensors, f"{name}.output.LayerNorm", x + seen, 1e-12)


def answer_score(tensors: Tensors, question: Tensor, ids: list[int], layers: int, heads: int) -> tuple[float, float]:
    """One answer's tokens, from [CLS] to the last [SEP], and the question's states -> the log-probability of its
    first token, and of all its tokens, each read off a pass of its own over what precedes it.
    """
    logs = []
    for length in range(1, len(ids)):
        x = bert(tensors, "text_decoder.bert", ids[:length], range(layers), heads, question, causal=True)[-1]
        head = "text_decoder.cls.predictions"
        x = norm(tensors, f"{head}.transform.LayerNorm", F.gelu(linear(tensors, f"{head}.transform.dense", x)), 1e-12)
        words = tensors["text_decoder.bert.embeddings.word_embeddings.weight"]
        logs.append(float((x @ words.T + tensors[f"{head}.bias"]).log_softmax(dim=0)[ids[length]]))
    return logs[0], sum(logs)
