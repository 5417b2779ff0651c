"""ResidualViT written from its formulas, one frame and one patch at a time, on transformers' own modules.

Slow and plain on purpose: nothing here is shared with the package but the checkpoint's folder.
"""

import math

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F


def load(folder) -> torch.nn.Module:
    """The checkpoint as transformers reads it."""
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()


def patch_grid(folder) -> tuple[int, int]:
    """Patch side in pixels, and how many prefix tokens precede the patches."""
    config = transformers.AutoConfig.from_pretrained(folder)
    vision = getattr(config, "vision_config", config)
    prefix = 0 if "siglip" in vision.model_type else 1 + getattr(vision, "num_register_tokens", 0)
    return vision.patch_size, prefix


def embedded(model, image: Tensor, patch_size: int) -> Tensor:
    """All tokens of one image [3, S, S] with their positions, before the first block: [n, W]."""
    if isinstance(model, transformers.Siglip2Model):
        side = image.shape[-1] // patch_size
        cells = []
        for row in range(side):
            for column in range(side):
                cell = image[:, row * patch_size :, column * patch_size :][:, :patch_size, :patch_size]
                cells.append(cell.permute(1, 2, 0).flatten())
        shape = torch.tensor([[side, side]])
        return model.vision_model.embeddings(torch.stack(cells)[None], shape)[0]
    embeddings = model.embeddings if hasattr(model, "embeddings") else model.vision_model.embeddings
    return embeddings(image[None])[0]


def transformed(model, tokens: Tensor) -> Tensor:
    """From tokens [n, W] through the frozen transformer to a unit feature [D]."""
    hidden = tokens[None]
    if hasattr(model, "layernorm"):  # DINOv2
        hidden = model.encoder(hidden).last_hidden_state
        feature = model.layernorm(hidden)[:, 0]
    elif hasattr(model, "visual_projection"):  # CLIP
        tower = model.vision_model
        hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state
        feature = model.visual_projection(tower.post_layernorm(hidden[:, 0]))
    else:  # SigLIP
        tower = getattr(model, "vision_model", model)
        hidden = tower.encoder(inputs_embeds=hidden).last_hidden_state
        feature = tower.head(tower.post_layernorm(hidden))
    return F.normalize(feature, dim=-1)[0]


def chosen(select: str, count: int, grid: int, scores: list[float] | None) -> list[int]:
    """The `count` patches of a grid x grid frame that a P-frame keeps, ascending."""
    patches = range(grid * grid)
    if select == "uniform":
        step = (grid * grid - 1) / (count - 1) if count > 1 else 0
        return [math.floor(position * step + 1e-9) for position in range(count)]
    if select == "center":
        middle = (grid - 1) / 2
        scores = [-((p // grid - middle) ** 2) - (p % grid - middle) ** 2 for p in patches]
    # Stable: of equal scores the first in raster order. Only "center" has equal ones here.
    return sorted(sorted(patches, key=lambda patch: -scores[patch])[:count])


def scores_of(select: str, pixels: Tensor, motion: Tensor | None, frame: int, patch_size: int) -> list[float] | None:
    """Per patch, the sum over its pixels of motion, or of the absolute difference to the frame before."""
    if select not in ("motion", "residual"):
        return None
    if select == "motion" and motion is not None:
        values = motion[frame].double()
    else:
        values = (pixels[frame].double() - pixels[frame - 1].double()).abs().sum(0)
    grid, sums = values.shape[-1] // patch_size, []
    for row in range(grid):
        for column in range(grid):
            top, left = row * patch_size, column * patch_size
            sums.append(float(values[top : top + patch_size, left : left + patch_size].sum()))
    return sums


@torch.no_grad()
def encode(
    folder,
    pixels: Tensor,
    *,
    interleave: int,
    drop: float,
    select: str,
    motion: Tensor | None = None,
    tokenizer: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """float32 [T, D], unit rows; `tokenizer` is the weight [W, D] and the bias [W] of A."""
    model = load(folder)
    patch_size, prefix = patch_grid(folder)
    grid = pixels.shape[-1] // patch_size
    count = max(1, round(grid * grid * (1 - drop)))
    features: list[Tensor] = []
    for frame, image in enumerate(pixels):
        tokens = embedded(model, image, patch_size)
        if frame % (interleave + 1) == 0:
            intra = transformed(model, tokens)
            features.append(intra)
            continue
        scores = scores_of(select, pixels, motion, frame, patch_size)
        sequence = [tokens[place] for place in range(prefix)]
        if tokenizer is not None:
            weight, bias = tokenizer
            sequence.append(weight @ intra + bias)
        sequence += [tokens[prefix + patch] for patch in chosen(select, count, grid, scores)]
        features.append(transformed(model, torch.stack(sequence)))
    return torch.stack(features)
