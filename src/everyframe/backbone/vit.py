"""The Vision Transformer that every encoder shares, and the block it shares with the text tower.

The transformer takes *tokens*: an image is cut into patches (`patchify`, no arithmetic), patches are chosen,
and only the chosen ones are embedded (`embed`). A dropped patch therefore costs nothing at all.

Legend: B batch, S image side, p patch side, g = S // p grid side, P = g * g patches, n tokens, W width, h
heads, d = W // h, D = width of the joint space. All tensors are on the device, and after `embed` in the
dtype, of the weights.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021); Radford et al., "CLIP" (ICML 2021),
which adds a LayerNorm before the blocks; Zhai et al., "SigLIP" (ICCV 2023), attention pooling instead of a
CLS token; Oquab et al., "DINOv2" (TMLR 2024), layer scale and SwiGLU; Darcet et al., "Vision Transformers
Need Registers" (ICLR 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone.pieces import (
    Layer,
    attention,
    bias_of,
    fuses,
    piece_rows,
    pieces,
    prepared,
    runs_in_pieces,
)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _quick_gelu_(x: Tensor) -> Tensor:
    return x.mul_((1.702 * x).sigmoid_())


_tanh_gelu = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": _quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
}
"""Activations by the names that Hugging Face configurations use."""

_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATIONS,
    "quick_gelu": _quick_gelu_,
    "silu": partial(F.silu, inplace=True),
    "swish": partial(F.silu, inplace=True),
    "relu": torch.relu_,
}
"""The same, with their input's memory for the result where torch offers that."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What one block is made of; the same for all blocks of a tower."""

    width: int
    heads: int
    mlp_width: int
    activation: str
    norm_eps: float
    qkv_bias: bool = True
    gated_mlp: bool = False
    """SwiGLU: `fc1` holds gate and value side by side, the activation applies to the gate."""
    layer_scale: bool = False
    """A learned factor per channel on each branch (DINOv2)."""

    def __post_init__(self) -> None:
        for field in ("width", "heads", "mlp_width"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split evenly over {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            raise ValueError(f"activation {self.activation!r} is not known; known are {known}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(BlockConfig):
    """A vision tower. `image_size` is the size in use; positions are interpolated to it at loading."""

    depth: int
    patch_size: int
    image_size: int
    dim: int
    """Width of what `pool` returns: the joint space (CLIP), or the tower's own width (SigLIP, DINOv2)."""
    patch_bias: bool = True
    cls_token: bool = True
    registers: int = 0
    pre_norm: bool = False
    """A LayerNorm before the first block (CLIP)."""
    pooling: str = "cls"
    """"cls": LayerNorm of the CLS token; "attention": a learned query attends to all tokens (SigLIP)."""
    projection: bool = False
    """A linear layer without bias after the pooling (CLIP)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in ("cls", "attention"):
            raise ValueError(f"pooling must be 'cls' or 'attention', got {self.pooling!r}")
        if self.pooling == "cls" and not self.cls_token:
            raise ValueError("pooling 'cls' needs a CLS token; a tower without one pools by 'attention'")
        if not self.projection and self.dim != self.width:
            raise ValueError(f"without a projection dim must equal width, got {self.dim} and {self.width}")
        if self.patch_size < 1 or self.image_size < self.patch_size:
            raise ValueError(f"an image of {self.image_size} pixels holds no patch of {self.patch_size} pixels")


class Mlp(nn.Module):
    """Two linear layers with an activation between them; `gated` makes it SwiGLU."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gated = config.gated_mlp
        self.fc1 = nn.Linear(config.width, config.mlp_width * (2 if self.gated else 1))
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        hidden = self.fc1(x)
        activate = ACTIVATIONS[self.activation]
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            return self.fc2(activate(gate) * value)
        return self.fc2(activate(hidden))

    def prepared(self, rows: int) -> Layer:
        """The same without gradients, for `rows` rows that come in pieces, see `pieces.prepared`."""
        fused = not self.gated and fuses(self.fc1, rows, self.activation)
        first = prepared(self.fc1, rows, self.activation if fused else "none")
        second = prepared(self.fc2, rows)
        activate = _IN_PLACE[self.activation]

        def run(x: Tensor) -> Tensor:
            hidden = first(x)
            if self.gated:
                gate, value = hidden.chunk(2, dim=-1)
                return second(activate(gate).mul_(value))
            return second(hidden if fused else activate(hidden))

        return run


class Block(nn.Module):
    """One pre-norm transformer block: `x + attend(x)`, then `x + feed(x)`.

    The two branches are methods of their own, so that an encoder can change the tokens between them;
    `heads_of` and `output` split the first one further, for encoders that read the keys or compute the
    attention themselves.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self._widest = max(3 * config.width, self.mlp.fc1.out_features)
        self.scale1: nn.Parameter | None = None
        self.scale2: nn.Parameter | None = None
        if config.layer_scale:
            self.scale1 = nn.Parameter(torch.ones(config.width))
            self.scale2 = nn.Parameter(torch.ones(config.width))

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, n, W] -> queries, keys and values, each [B, h, n, d] (views of one tensor)."""
        return self._split(self.qkv(self.norm1(x)))

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, n, 3 W] -> three views [B, h, n, d]."""
        heads = qkv.unflatten(2, (3, self.heads, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def output(self, attended: Tensor) -> Tensor:
        """Attention output [B, h, n, d] -> what is added to the tokens, [B, n, W]."""
        return self.project(attended.transpose(1, 2).flatten(2))

    def project(self, merged: Tensor) -> Tensor:
        """The same with the heads already side by side: [..., W] -> [..., W]."""
        out = self.proj(merged)
        return out if self.scale1 is None else out * self.scale1

    def attend(self, x: Tensor, *, causal: bool = False, bias: Tensor | None = None) -> Tensor:
        """The attention branch: [B, n, W] -> [B, n, W], to be added to `x`.

        `bias` is added to the attention logits and must broadcast to [B, h, n, n] (for instance log token
        masses, [B, 1, 1, n]); a boolean tensor says instead which keys a query may see. Not together with
        `causal`.
        """
        queries, keys, values = self.heads_of(x)
        return self.output(attention(queries, keys, values, bias=bias, causal=causal))

    def feed(self, x: Tensor) -> Tensor:
        """The MLP branch: [B, n, W] -> [B, n, W], to be added to `x`."""
        if not runs_in_pieces(x):
            out = self.mlp(self.norm2(x))
            return out if self.scale2 is None else out * self.scale2
        rows = x.reshape(-1, x.shape[-1])
        branch, mlp = torch.empty_like(rows), self._mlp(len(rows))
        for part in pieces(len(rows), self._piece(x)):
            branch[part] = mlp(self.norm2(rows[part]))
        return (branch if self.scale2 is None else branch.mul_(self.scale2)).view(x.shape)

    def forward(self, x: Tensor, causal: bool = False, bias: Tensor | None = None) -> Tensor:
        """Tokens [B, n, W] -> [B, n, W]; `causal` and `bias` as in `attend`."""
        if runs_in_pieces(x):
            return self._in_pieces(x, causal, bias)
        x = x + self.attend(x, causal=causal, bias=bias)
        return x + self.feed(x)

    def _in_pieces(self, x: Tensor, causal: bool, bias: Tensor | None) -> Tensor:
        """`forward` a few sequences at a time."""
        batch, count, _ = x.shape
        qkv, proj = prepared(self.qkv, batch * count), prepared(self.proj, batch * count)
        mlp = self._mlp(batch * count)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part in pieces(batch, max(self._piece(x) // max(count, 1), 1)):
            before, after = x[part], out[part]
            heads = self._split(qkv(self.norm1(before)))
            attended = attention(*heads, bias=bias_of(bias, part), causal=causal).transpose(1, 2).flatten(2)
            _add(before, proj(attended), self.scale1, after)
            _add(after, mlp(self.norm2(after)), self.scale2, after)
        return out

    # --- for passes whose tokens are rows [M, W] of different sequences: in place, without gradients

    def write_qkv(self, x: Tensor, out: Tensor) -> None:
        """Queries, keys and values of tokens [M, W], side by side into `out` [M, 3 W]."""
        qkv = prepared(self.qkv, len(x))
        for part in pieces(len(x), self._piece(x)):
            out[part] = qkv(self.norm1(x[part]))

    def add_attended(self, x: Tensor, merged: Tensor) -> None:
        """Add to tokens [M, W] what `project` makes of their attention's output [M, W]."""
        proj = prepared(self.proj, len(x))
        for part in pieces(len(x), self._piece(x)):
            _add(x[part], proj(merged[part]), self.scale1, x[part])

    def add_fed(self, x: Tensor) -> None:
        """Add to tokens [M, W] what `feed` makes of them."""
        mlp = self._mlp(len(x))
        for part in pieces(len(x), self._piece(x)):
            _add(x[part], mlp(self.norm2(x[part])), self.scale2, x[part])

    def _piece(self, x: Tensor) -> int:
        """Rows of a piece of `x`; all of them where nothing is gained by pieces."""
        return piece_rows(self._widest * x.itemsize) if x.device.type == "cpu" else max(x.numel(), 1)

    def _mlp(self, rows: int) -> Layer:
        # The type itself, and unwatched: adapters and hooks have a say in what is called.
        plain = type(self.mlp) is Mlp and not (self.mlp._forward_hooks or self.mlp._forward_pre_hooks)
        return self.mlp.prepared(rows) if plain else self.mlp


def _add(x: Tensor, branch: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """x + branch * scale, into `out`."""
    if scale is None:
        torch.add(x, branch, out=out)
    else:
        torch.addcmul(x, branch, scale, out=out)


class AttentionPool(nn.Module):
    """SigLIP's pooling head: one learned query attends to all tokens, followed by an MLP branch."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.probe = nn.Parameter(torch.zeros(config.width))
        self.query = nn.Linear(config.width, config.width)
        self.keys_values = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Normalised tokens [B, n, W] -> [B, W]; `bias` broadcasts to [B, h, 1, n] and is added to the
        logits.
        """
        return self.look(self.keys_values(x), bias)

    def look(self, pairs: Tensor, bias: Tensor | None = None) -> Tensor:
        """The same from the keys and values side by side, [B, n, 2 W], which may come from different passes."""
        batch, count, double = pairs.shape
        size = double // 2 // self.heads
        query = self.query(self.probe).view(1, self.heads, 1, size).expand(batch, -1, -1, -1)
        keys, values = pairs.view(batch, count, 2, self.heads, size).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        pooled = self.proj(attended.transpose(1, 2).flatten(1))
        return pooled + self.mlp(self.norm(pooled))


class VisionTransformer(nn.Module):
    """Tokens in, one feature per image out. Made by `everyframe.load`, which fills in the weights.

    Attributes: `grid` g, `num_patches` P, `num_prefix` (CLS and registers that precede the patches),
    `blocks`, `prefix_tokens` [num_prefix, W] (the CLS token has its positional embedding added) and
    `positions` [P, W].
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.num_patches = self.grid * self.grid
        self.num_prefix = int(config.cls_token) + config.registers
        self.patch = nn.Linear(3 * config.patch_size**2, config.width, bias=config.patch_bias)
        self.prefix_tokens = nn.Parameter(torch.zeros(self.num_prefix, config.width))
        self.positions = nn.Parameter(torch.zeros(self.num_patches, config.width))
        self.norm_pre = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm_post = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head = AttentionPool(config) if config.pooling == "attention" else None
        self.projection = nn.Linear(config.width, config.dim, bias=False) if config.projection else None
        self.compiled: Callable[[Tensor], Tensor] | None = None
        """Set by `Model.compile`: runs `layers` in `encode`'s place where no gradient is wanted."""

    def patchify(self, pixels: Tensor) -> Tensor:
        """Cut images [B, 3, S, S] into patches [B, P, 3 * p * p], in raster order; pixels in (channel, row,
        column) order. Rows and columns past the last whole patch are left out, as a strided convolution
        leaves them out.

        Raises ValueError for any other shape.
        """
        side = self.config.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise ValueError(
                f"pixels must be [batch, 3, {side}, {side}] for this model, got {list(pixels.shape)}; "
                "model.preprocess makes them from frames"
            )
        return unfold_patches(pixels, self.config.patch_size)

    def patches_at(self, pixels: Tensor, frames: Tensor, places: Tensor) -> Tensor:
        """Single patches, of which alone anything is read: what `patchify` would have at [frames, places].

        pixels [B, 3, S, S]; frames and places int64, which broadcast to [...]: numbers of images, and of patches in
        raster order. Returns [..., 3 * p * p].
        """
        cells = _cells(pixels, self.config.patch_size)
        return cells[frames, places // self.grid, places % self.grid].flatten(-3)

    def embed(self, patches: Tensor, indices: Tensor | None = None) -> Tensor:
        """Embed patches [B, n, 3 * p * p] and add the positional embeddings of their places.

        `indices` [B, n] (or [n], for all alike) are the places in raster order, 0 to P - 1. Without them the
        patches must be all P in order. Returns tokens [B, n, W].
        """
        if indices is None and patches.shape[1] != self.num_patches:
            raise ValueError(
                f"{patches.shape[1]} patches came without indices, but the image has {self.num_patches}; "
                "pass the kept patches' places as indices"
            )
        positions = self.positions if indices is None else self.positions[indices]
        patches = patches.to(self.patch.weight.dtype)
        return prepared(self.patch, patches.shape[:-1].numel())(patches) + positions

    def prefix(self, batch: int) -> Tensor:
        """The tokens before the patches, CLS first and then registers: [batch, num_prefix, W] (a view)."""
        return self.prefix_tokens.expand(batch, -1, -1)

    def pre(self, tokens: Tensor) -> Tensor:
        """What all tokens [B, n, W] pass before the first block: CLIP's LayerNorm; nothing elsewhere."""
        return tokens if self.norm_pre is None else self.norm_pre(tokens)

    def pool(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tokens after the last block [B, n, W] -> features [B, D], not normalised.

        CLIP: LayerNorm of CLS, projected. DINOv2: LayerNorm of CLS. SigLIP: attention pooling over all
        tokens, whose logits `bias` [B, 1, 1, n] is added to (the others look at CLS alone and ignore it).
        """
        # CLS alone is looked at where there is no attention pooling; the other tokens need no norm then.
        return self.summarise(self.finish(tokens if self.head is not None else tokens[:, :1]), bias)

    def finish(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block [B, n, W] -> the same after the final LayerNorm."""
        return self.norm_post(tokens)

    def summarise(self, finished: Tensor, bias: Tensor | None = None) -> Tensor:
        """What `finish` returned -> features [B, D], not normalised; `bias` as in `pool`."""
        pooled = finished[:, 0] if self.head is None else self.head(finished, bias)
        return pooled if self.projection is None else self.projection(pooled)

    def encode(self, tokens: Tensor) -> Tensor:
        """Embedded tokens with their prefix [B, n, W] -> features [B, D], not normalised."""
        if self.compiled is not None and not torch.is_grad_enabled():
            return self.compiled(tokens)
        return self.layers(tokens)

    def layers(self, tokens: Tensor) -> Tensor:
        """What `encode` does, as it is."""
        tokens = self.pre(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.pool(tokens)

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed images [B, 3, S, S] -> features [B, D], not normalised."""
        return self.encode(self.with_prefix(self.embed(self.patchify(pixels))))

    def with_prefix(self, tokens: Tensor) -> Tensor:
        """Embedded patches [B, n, W] with CLS and registers before them."""
        return torch.cat((self.prefix(len(tokens)), tokens), dim=1) if self.num_prefix else tokens

    def start(self, pixels: Tensor) -> Tensor:
        """Preprocessed images [B, 3, S, S] -> all tokens as they enter the first block, [B, num_prefix + P, W]."""
        return self.pre(self.with_prefix(self.embed(self.patchify(pixels))))


def unfold_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """Images [B, 3, H, W] of any size -> patches [B, (H // p) * (W // p), 3 * p * p], raster order."""
    cells = _cells(pixels, patch_size)
    return cells.reshape(len(cells), cells.shape[1] * cells.shape[2], cells.shape[3:].numel())


def _cells(pixels: Tensor, patch_size: int) -> Tensor:
    """Images [B, 3, H, W] -> a view [B, H // p, W // p, 3, p, p]."""
    rows, columns = pixels.shape[2] // patch_size, pixels.shape[3] // patch_size
    pixels = pixels[:, :, : rows * patch_size, : columns * patch_size]
    cells = pixels.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))
    return cells.permute(0, 2, 4, 1, 3, 5)


def resize_positions(positions: Tensor, grid: int, *, antialias: bool = False) -> Tensor:
    """Interpolate positional embeddings [P, W] of a square grid to another one: [grid * grid, W].

    Bicubic and in float32, as transformers does it (with `antialias` only for DINOv2 with registers).
    """
    side = round(len(positions) ** 0.5)
    if side == grid:
        return positions
    image = positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False, antialias=antialias)
    return image.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(positions.dtype)
