"""The losses against loops over their formulas, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from everyframe.training.losses import LOSSES, distillation_loss, loss_and_gradient, soft_cross_entropy, text_loss

SHAPES = [(4, 3, 4), (2, 1, 5), (5, 2, 3), (1, 3, 2)]  # B clips, K frames of each, M texts
WITH_TEXT = [name for name in LOSSES if name != "mse"]
SCALE = 12.0


def features(clips: int, frames: int, texts: int, *, dim: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Unit rows: student [B, K, D], teacher [B, K, D], texts [M, D]."""
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal(shape) for shape in [(clips, frames, dim), (clips, frames, dim), (texts, dim)]]
    return [each / np.linalg.norm(each, axis=-1, keepdims=True) for each in rows]


def cross_entropy(student: list[float], teacher: list[float]) -> float:
    """-sum p log q of two lists of logits."""
    p = [math.exp(value) for value in teacher]
    q = [math.exp(value) for value in student]
    return -sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))


def over_texts(student: np.ndarray, teacher: np.ndarray, texts: np.ndarray) -> float:
    """J_{L->V}: of every frame, the softmax over the texts."""
    values = []
    for clip in range(len(student)):
        for k in range(student.shape[1]):
            of_student = [SCALE * float(student[clip, k] @ text) for text in texts]
            of_teacher = [SCALE * float(teacher[clip, k] @ text) for text in texts]
            values.append(cross_entropy(of_student, of_teacher))
    return sum(values) / len(values)


def over_frames(student: np.ndarray, teacher: np.ndarray, texts: np.ndarray) -> float:
    """J_{V->L}: of every text and place k in the clips, the softmax over the frames of the batch."""
    values = []
    for k in range(student.shape[1]):
        for text in texts:
            of_student = [SCALE * float(student[clip, k] @ text) for clip in range(len(student))]
            of_teacher = [SCALE * float(teacher[clip, k] @ text) for clip in range(len(student))]
            values.append(cross_entropy(of_student, of_teacher))
    return sum(values) / len(values)


def mean_square(student: np.ndarray, teacher: np.ndarray, texts: np.ndarray) -> float:
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) / student.size


FORMULAS = {
    "text": lambda *rows: over_texts(*rows) + over_frames(*rows),
    "text-one-way": over_texts,
    "prompts": lambda *rows: over_texts(*rows) + over_frames(*rows),
    "mse": mean_square,
}


def tensors(rows: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(each).float() for each in rows]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_its_formula(name: str, shape: tuple[int, int, int]) -> None:
    rows = features(*shape)
    assert distillation_loss(name, *tensors(rows), SCALE).item() == pytest.approx(FORMULAS[name](*rows), abs=1e-5)


@pytest.mark.parametrize("shape", [(5, 2, 3), (3, 2, 3)], ids=str)
def test_the_two_directions_are_not_swapped(shape: tuple[int, int, int]) -> None:
    rows = features(*shape, seed=3)
    student, teacher, texts = tensors(rows)
    one_way = text_loss(student, teacher, texts, SCALE, both_ways=False).item()
    other_way = text_loss(student, teacher, texts, SCALE).item() - one_way
    assert abs(over_texts(*rows) - over_frames(*rows)) > 0.05  # or the test would mean nothing
    assert one_way == pytest.approx(over_texts(*rows), abs=1e-5)
    assert other_way == pytest.approx(over_frames(*rows), abs=1e-5)


def test_the_frames_direction_never_mixes_places_in_the_clip() -> None:
    student, teacher, texts = tensors(features(4, 3, 2, seed=1))
    whole = text_loss(student, teacher, texts, SCALE)
    one_by_one = [text_loss(student[:, k : k + 1], teacher[:, k : k + 1], texts, SCALE) for k in range(3)]
    torch.testing.assert_close(whole, torch.stack(one_by_one).mean())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradient_equals_finite_differences(name: str, shape: tuple[int, int, int]) -> None:
    rows = features(*shape, seed=2)
    loss, gradient = loss_and_gradient(name, *tensors(rows), SCALE)
    assert loss.item() == pytest.approx(FORMULAS[name](*rows), abs=1e-5)
    assert gradient.shape == rows[0].shape and not gradient.requires_grad and not loss.requires_grad
    step = 1e-5
    for place in np.random.default_rng(0).choice(rows[0].size, 10, replace=False):
        sides = []
        for sign in (1, -1):
            moved = rows[0].copy()
            moved.flat[place] += sign * step
            sides.append(FORMULAS[name](moved, *rows[1:]))
        expected = (sides[0] - sides[1]) / (2 * step)
        assert gradient.flatten()[place].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_itself_is_the_minimum(name: str) -> None:
    student, teacher, texts = tensors(features(4, 2, 5))
    loss, gradient = loss_and_gradient(name, teacher, teacher, texts, SCALE)
    assert gradient.abs().max() < 1e-5
    assert loss < distillation_loss(name, student, teacher, texts, SCALE)


def test_soft_cross_entropy_of_a_sure_teacher_is_the_ordinary_one() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    teacher = 1000.0 * torch.nn.functional.one_hot(classes, 5)
    expected = torch.nn.functional.cross_entropy(logits, classes)
    torch.testing.assert_close(soft_cross_entropy(logits, teacher, 1), expected)


def test_a_bias_of_the_logits_would_change_nothing() -> None:
    student, teacher, texts = tensors(features(4, 1, 4))
    logits, targets = SCALE * student @ texts.T, SCALE * teacher @ texts.T
    for dim in (0, 2):
        torch.testing.assert_close(
            soft_cross_entropy(logits - 7, targets - 7, dim), soft_cross_entropy(logits, targets, dim)
        )


@pytest.mark.parametrize("name", WITH_TEXT)
def test_losses_with_text_refuse_none(name: str) -> None:
    student, teacher, _ = tensors(features(2, 1, 2))
    with pytest.raises(ValueError, match=f"loss '{name}' compares with texts, and there are none"):
        distillation_loss(name, student, teacher, None, SCALE)


def test_unknown_loss_raises() -> None:
    student, teacher, texts = tensors(features(2, 1, 2))
    with pytest.raises(ValueError, match="loss must be one of text, text-one-way, prompts, mse, got 'l2'"):
        distillation_loss("l2", student, teacher, texts, SCALE)
