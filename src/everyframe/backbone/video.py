"""The video tower: all frames of a clip in one sequence of tokens, attended to jointly over space and time.

Made of the block that the image towers use. A clip is cut into tubes of `tubelet` frames x p x p pixels (no
arithmetic), each becomes one token, a fixed table of sines tells the tokens their place.

Legend: V clips, F frames of a clip, S side of a frame, p patch side, g = S // p grid side, t frames of a tube,
N = F // t * g * g tokens of a clip, n tokens that are left, W width, D width of the feature. All tensors are on
the device, and after `start` in the dtype, of the weights.

Sources: Tong et al., "VideoMAE" (NeurIPS 2022); Li et al., "Unmasked Teacher" (ICCV 2023).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from everyframe.backbone.vit import Block, BlockConfig


@dataclass(frozen=True, kw_only=True)
class VideoConfig(BlockConfig):
    """A video tower. `frames` and `image_size` are those in use: the positions are computed for them."""

    depth: int
    patch_size: int
    image_size: int
    frames: int
    tubelet: int = 1
    """Frames that one token covers."""
    dim: int
    """Width of what `pool` returns: the joint space (UMT), or the tower's own width."""
    final_norm: bool
    """A LayerNorm of all tokens after the last block (UMT; VideoMAE without mean pooling)."""
    pool_norm: bool
    """A LayerNorm after the mean over tokens (UMT; the classifiers of VideoMAE with mean pooling)."""
    projection: bool
    """A linear layer with bias to the joint space (UMT)."""
    pool_norm_eps: float | None = None
    """Where the LayerNorm after the mean has another epsilon than those of the blocks (VideoMAE)."""
    pooling: str = "mean"
    """"mean", or "first": the first token alone (the classifiers of VideoMAE without mean pooling)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("depth", "patch_size", "frames", "tubelet", "dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.image_size < self.patch_size:
            raise ValueError(f"frames of {self.image_size} pixels hold no patch of {self.patch_size} pixels")
        if self.frames % self.tubelet:
            raise ValueError(f"frames must be a multiple of {self.tubelet}, the frames of one token; got {self.frames}")
        if self.pooling not in ("mean", "first"):
            raise ValueError(f"pooling must be 'mean' or 'first', got {self.pooling!r}")
        if not self.projection and self.dim != self.width:
            raise ValueError(f"without a projection dim must equal width, got {self.dim} and {self.width}")


class VideoTransformer(nn.Module):
    """Clips in, one feature per clip out. Made by `load_video`, which fills in the weights.

    Attributes: `grid` g, `num_patches` N, `num_prefix` 0 (there is no CLS token), `blocks` and `positions`
    [N, W], which are computed, not learned.
    """

    num_prefix = 0
    positions: Tensor

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.num_patches = config.frames // config.tubelet * self.grid**2
        self.patch = nn.Linear(3 * config.tubelet * config.patch_size**2, config.width)
        self.register_buffer("positions", torch.empty(self.num_patches, config.width))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm_post = nn.LayerNorm(config.width, eps=config.norm_eps) if config.final_norm else None
        pool_eps = config.norm_eps if config.pool_norm_eps is None else config.pool_norm_eps
        self.norm_pool = nn.LayerNorm(config.width, eps=pool_eps) if config.pool_norm else None
        self.projection = nn.Linear(config.width, config.dim) if config.projection else None

    def start(self, pixels: Tensor) -> Tensor:
        """Preprocessed clips [V, F, 3, S, S] -> tokens [V, N, W] before the first block, in the order of time,
        row, column. Rows and columns past the last whole patch are left out, as a strided convolution leaves
        them out.

        Raises ValueError for any other shape.
        """
        frames, side = self.config.frames, self.config.image_size
        if pixels.dim() == 5 and tuple(pixels.shape[2:]) == (3, side, side) and pixels.shape[1] != frames:
            kind = "fewer" if pixels.shape[1] < frames else "more"
            raise ValueError(
                f"the clips have {pixels.shape[1]} frames, {kind} than the {frames} this model takes; sample {frames} "
                "frames per clip and repeat the last one of a shorter video"
            )
        if pixels.dim() != 5 or tuple(pixels.shape[1:]) != (frames, 3, side, side):
            raise ValueError(
                f"pixels must be [clips, {frames}, 3, {side}, {side}] for this model, got {list(pixels.shape)}; "
                "model.preprocess makes one clip from its frames"
            )
        tubes = unfold_tubes(pixels, self.config.tubelet, self.config.patch_size)
        return self.patch(tubes.to(self.patch.weight.dtype)) + self.positions

    def finish(self, tokens: Tensor) -> Tensor:
        """Tokens after the last block [V, n, W] -> the same after the final LayerNorm, where there is one."""
        return tokens if self.norm_post is None else self.norm_post(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        """What `finish` returned, any n >= 1 of it, [V, n, W] -> features [V, D], not normalised to length 1.

        The plain mean, whatever the tokens stand for; then LayerNorm and projection where there are any.
        """
        pooled = tokens[:, 0] if self.config.pooling == "first" else tokens.mean(dim=1)
        if self.norm_pool is not None:
            pooled = self.norm_pool(pooled)
        return pooled if self.projection is None else self.projection(pooled)

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed clips [V, F, 3, S, S] -> features [V, D], not normalised to length 1."""
        tokens = self.start(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        return self.pool(self.finish(tokens))


def unfold_tubes(pixels: Tensor, tubelet: int, patch_size: int) -> Tensor:
    """Clips [V, F, 3, H, W] -> tubes [V, F // t * (H // p) * (W // p), 3 * t * p * p] in the order of time, row,
    column; the pixels of a tube in the order of channel, frame, row, column, as a convolution's weights have them.
    """
    clips, frames, channels, height, width = pixels.shape
    times, rows, columns = frames // tubelet, height // patch_size, width // patch_size
    pixels = pixels[:, : times * tubelet, :, : rows * patch_size, : columns * patch_size]
    cells = pixels.unflatten(4, (columns, patch_size)).unflatten(3, (rows, patch_size)).unflatten(1, (times, tubelet))
    # clip, time, frame, channel, row, y, column, x -> clip, time, row, column, channel, frame, y, x
    tubes = cells.permute(0, 1, 4, 6, 3, 2, 5, 7)
    return tubes.reshape(clips, times * rows * columns, channels * tubelet * patch_size**2)


def sinusoids(count: int, width: int) -> Tensor:
    """The table of positions, float32 [count, width]: sin(p / 10000^(2 i / W)) and its cos in channels 2 i and
    2 i + 1, computed in float64 as the models were trained with.
    """
    pairs = torch.arange(width, dtype=torch.float64) // 2
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000.0 ** (2 * pairs / width)
    even = torch.arange(width) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()


def _tower(width: int, depth: int, frames: int, tubelet: int, dim: int, *, umt: bool) -> VideoConfig:
    return VideoConfig(
        width=width,
        heads=width // 64,
        mlp_width=4 * width,
        activation="gelu",
        norm_eps=1e-6 if umt else 1e-12,
        depth=depth,
        patch_size=16,
        image_size=224,
        frames=frames,
        tubelet=tubelet,
        dim=dim,
        final_norm=umt,
        pool_norm=True,
        projection=umt,
        pool_norm_eps=None if umt else 1e-5,
    )


# Towers of UMT (retrieval, 12 frames) and of VideoMAE with mean pooling; `video_skeleton` of video_model.py makes
# models of them that have no weights.
VIDEO_ARCHITECTURES = {
    "umt-b": _tower(768, 12, 12, 1, 512, umt=True),
    "umt-l": _tower(1024, 24, 12, 1, 768, umt=True),
    "videomae-b": _tower(768, 12, 16, 2, 768, umt=False),
}
