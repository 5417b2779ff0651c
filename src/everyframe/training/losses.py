"""What the residual tokenizer is fitted to: a P-feature should say of every text what the full feature says.

Source: ResidualViT, section 3.2 (the soft cross-entropy in both directions) and its authors' code (one direction;
the mean squared error of normalised features). B clips, K P-frames of each, M texts, D width of the joint space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("text", "text-one-way", "prompts", "mse")


def soft_cross_entropy(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Cross-entropy of the softmax of `student` against the softmax of `teacher`, both along `dim`: a mean.

    Logits [..., n, m] of equal shape -> scalar, averaged over everything but `dim`.
    """
    return -(teacher.softmax(dim) * student.log_softmax(dim)).sum(dim).mean()


def text_loss(student: Tensor, teacher: Tensor, texts: Tensor, scale: float, *, both_ways: bool = True) -> Tensor:
    """J_{L->V} + J_{V->L}: float [B, K, D], [B, K, D] and [M, D], all of unit rows -> scalar.

    Logits are `scale` (the model's) times cosines. J_{L->V} is the soft cross-entropy over the M texts, J_{V->L}
    that over the B frames of the same place k in the clips; each is averaged over what is left. With both_ways=False
    only J_{L->V}, as in the authors' script. SigLIP's logit bias would cancel in either softmax.

    The texts are the captions of the clips (M = B, the paper), or any bank of prompts.
    """
    logits, targets = scale * student @ texts.T, scale * teacher @ texts.T  # [B, K, M]
    loss = soft_cross_entropy(logits, targets, 2)
    return loss + soft_cross_entropy(logits, targets, 0) if both_ways else loss


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of unit rows, over all elements: needs no text. [B, K, D] twice -> scalar."""
    return F.mse_loss(student, teacher)


def distillation_loss(name: str, student: Tensor, teacher: Tensor, texts: Tensor | None, scale: float) -> Tensor:
    """The loss called `name`, one of LOSSES; `texts` as in `text_loss`, not needed for "mse".

    Raises ValueError for an unknown name or missing texts.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    if name == "mse":
        return mse_loss(student, teacher)
    if texts is None:
        raise ValueError(f"loss {name!r} compares with texts, and there are none; use loss='mse'")
    return text_loss(student, teacher, texts, scale, both_ways=name != "text-one-way")


def loss_and_gradient(
    name: str, student: Tensor, teacher: Tensor, texts: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The loss of a whole batch and its gradient with respect to the student's features, [B, K, D].

    The softmax runs over the batch, so parts of it cannot be summed up. With this gradient each part can be
    back-propagated on its own, on any process, and the sum is exact (as in GradCache, Gao et al. 2021).
    """
    leaf = student.detach().float().requires_grad_()
    with torch.enable_grad():
        loss = distillation_loss(name, leaf, teacher, texts, scale)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
