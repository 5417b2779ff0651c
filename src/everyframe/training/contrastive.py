"""What text-video retrieval is trained for: a video and its caption agree more than any other two of the batch.

Source: TempMe, section 4, and its authors' code; the loss is CLIP's. B pairs, D width of the joint space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(videos: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Mean of the cross-entropies of both directions: float [B, D] twice, unit rows in the same order -> scalar.

    scale: the model's logit scale, which stays as it is. Captions of one video that meet in a batch are negatives of
    each other, as published.
    """
    logits = scale * texts @ videos.T
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def contrastive_gradients(videos: Tensor, texts: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a whole batch and its gradients with respect to both sides' features: scalar, [B, D], [B, D].

    With these each part of the batch is back-propagated on its own, on any process, and the sum over all parts is
    the gradient of the whole batch (GradCache, Gao et al. 2021).
    """
    leaves = [rows.detach().float().requires_grad_() for rows in (videos, texts)]
    with torch.enable_grad():
        loss = contrastive_loss(leaves[0], leaves[1], scale)
        of_videos, of_texts = torch.autograd.grad(loss, leaves)
    return loss.detach(), of_videos, of_texts
