"""Choosing patches: against brute force, NumPy and loops; random choices by how often they happen."""

import math
import random

import numpy as np
import pytest
import torch

from everyframe.tokens.drop import (
    center_indices,
    frame_residual,
    num_kept,
    patch_sums,
    random_indices,
    top_indices,
    uniform_indices,
)

SIZES = [(49, 7), (196, 29), (256, 38), (16, 2), (25, 4), (9, 9), (9, 1)]


@pytest.mark.parametrize(
    ("patches", "drop", "expected"),
    [
        (49, 0.85, 7),
        (196, 0.85, 29),
        (256, 0.85, 38),
        (576, 0.85, 86),
        (144, 0.85, 22),  # 21.6
        (25, 0.85, 4),  # 3.75
        (49, 0.0, 49),
        (49, 0.5, 24),  # 24.5: Python rounds half to even
        (196, 0.999, 1),
        (4, 0.99, 1),
    ],
)
def test_num_kept_is_the_papers(patches, drop, expected):
    assert num_kept(patches, drop) == expected


@pytest.mark.parametrize("drop", [1, 1.5, -0.1, math.nan, math.inf])
def test_num_kept_raises_outside_its_range(drop):
    with pytest.raises(ValueError, match=r"drop must be in \[0, 1\), got .*; to keep every token use 0"):
        num_kept(49, drop)


@pytest.mark.parametrize(("patches", "kept"), SIZES)
def test_uniform_indices_equal_floor_of_linspace(patches, kept):
    exact = np.linspace(0, patches - 1, kept, dtype=np.longdouble)
    # NumPy's own error is far below 1e-9; a value that close under an integer is that integer.
    assert uniform_indices(patches, kept).tolist() == np.floor(exact + 1e-9).astype(int).tolist()


def test_uniform_indices_of_the_papers_models():
    assert uniform_indices(49, 7).tolist() == [0, 8, 16, 24, 32, 40, 48]
    indices = uniform_indices(196, 29).tolist()
    assert (indices[:4], indices[-1], len(set(indices))) == ([0, 6, 13, 20], 195, 29)


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 7, 14])
def test_center_indices_equal_brute_force(grid):
    middle = (grid - 1) / 2
    places = [((row - middle) ** 2 + (column - middle) ** 2, row * grid + column)
              for row in range(grid) for column in range(grid)]  # fmt: skip
    for kept in range(1, grid * grid + 1):
        expected = sorted(index for _, index in sorted(places)[:kept])
        assert center_indices(grid, kept).tolist() == expected


def test_center_indices_of_vit_b32():
    # The middle patch of 7 x 7, its four neighbours, and the first two of the four diagonal ones.
    assert center_indices(7, 7).tolist() == [16, 17, 18, 23, 24, 25, 31]


@pytest.mark.parametrize(
    "choose",
    [
        lambda kept: uniform_indices(16, kept),
        lambda kept: center_indices(4, kept),
        lambda kept: random_indices(16, kept, frames=[0], seed=0),
        lambda kept: top_indices(torch.rand(1, 16), kept, frames=[0], seed=0),
    ],
    ids=["uniform", "center", "random", "top"],
)
@pytest.mark.parametrize("kept", [0, -1, 17])
def test_impossible_counts_raise(choose, kept):
    with pytest.raises(ValueError, match=f"kept must be between 1 and the 16 patches, got {kept}"):
        choose(kept)


def test_random_indices_are_distinct_sorted_and_in_range():
    rows = random_indices(25, 7, frames=range(50), seed=3)
    assert rows.shape == (50, 7)
    assert rows.dtype == torch.int64
    for row in rows.tolist():
        assert row == sorted(set(row))
        assert 0 <= row[0] <= row[-1] < 25


def test_random_indices_are_uniform():
    """Every patch, and every pair of patches, is kept as often as chance says (chi-squared, far tail)."""
    frames, patches, kept = 4000, 16, 4
    rows = random_indices(patches, kept, frames=range(frames), seed=11)
    chosen = torch.zeros(frames, patches, dtype=torch.float64).scatter_(1, rows, 1.0)
    share = kept / patches
    singles = chosen.sum(0)
    # Draws without replacement: the statistic's mean is 15 * (1 - share) * 16 / 15 = 12, its 1e-6 tail below 50.
    assert float(((singles - frames * share) ** 2 / (frames * share)).sum()) < 50
    pairs = (chosen.T @ chosen)[torch.triu_indices(patches, patches, 1).unbind(0)]
    expected = frames * kept * (kept - 1) / patches / (patches - 1)  # 200
    assert float((pairs - expected).abs().max()) < 6 * expected**0.5


def test_random_indices_depend_on_seed_and_frame_number_alone():
    whole = random_indices(49, 7, frames=range(30), seed=5)
    order = list(range(30))
    random.Random(0).shuffle(order)
    assert torch.equal(random_indices(49, 7, frames=order, seed=5), whole[order])
    assert torch.equal(random_indices(49, 7, frames=[17], seed=5)[0], whole[17])
    other = random_indices(49, 7, frames=range(30), seed=6)
    distinct = {tuple(row) for row in torch.cat((whole, other)).tolist()}
    assert len(distinct) == 60  # of 85,900,584 possible rows


@pytest.mark.parametrize("kept", [1, 5, 16])
def test_top_indices_hold_the_largest_scores(kept):
    scores = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    indices = top_indices(scores, kept, frames=range(20), seed=0)
    for row, values in zip(indices.tolist(), scores.tolist(), strict=True):
        assert row == sorted(sorted(range(16), key=lambda patch: -values[patch])[:kept])


def test_top_indices_break_ties_at_random():
    scores = torch.tensor([5.0, 0, 0, 3, 0, 0, 0, 0, 9])  # three moving patches, six still ones
    seen = torch.zeros(9)
    for seed in range(300):
        first = top_indices(scores[None], 5, frames=[7], seed=seed)
        assert torch.equal(first, top_indices(scores[None], 5, frames=[7], seed=seed))
        assert {0, 3, 8} <= set(first[0].tolist())
        seen[first[0]] += 1
    assert seen[[0, 3, 8]].tolist() == [300, 300, 300]
    still = seen[[1, 2, 4, 5, 6, 7]]  # each with chance 1/3: 100 +- 8.2
    assert float(still.sum()) == 600
    assert 60 < float(still.min()) <= float(still.max()) < 140


def test_top_indices_do_not_depend_on_the_batch():
    scores = torch.randint(0, 3, (40, 25), generator=torch.Generator().manual_seed(1)).float()
    whole = top_indices(scores, 6, frames=range(40), seed=2)
    for frame in (0, 13, 39):
        alone = top_indices(scores[frame : frame + 1], 6, frames=[frame], seed=2)
        assert torch.equal(alone[0], whole[frame])
    assert len({tuple(row) for row in top_indices(torch.zeros(40, 25), 6, frames=range(40), seed=2).tolist()}) > 35


@pytest.mark.parametrize(("side", "patch"), [(12, 4), (14, 4), (7, 7), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bfloat16])
def test_patch_sums_equal_loops(side, patch, dtype):
    maps = torch.randint(0, 200, (3, side, side), generator=torch.Generator().manual_seed(0)).to(dtype)
    sums = patch_sums(maps, patch)
    assert sums.dtype == torch.float32
    grid = side // patch
    for frame in range(3):
        for row in range(grid):
            for column in range(grid):
                expected = sum(
                    float(maps[frame, row * patch + y, column * patch + x]) for y in range(patch) for x in range(patch)
                )
                assert float(sums[frame, row * grid + column]) == pytest.approx(expected, rel=1e-6)


def test_patch_sums_of_something_else_raises():
    with pytest.raises(ValueError, match=r"maps must be \[T, S, S\], got shape \[2, 3, 8, 8\]"):
        patch_sums(torch.zeros(2, 3, 8, 8), 4)


def test_frame_residual_equals_loops():
    pixels = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    maps = frame_residual(pixels)
    assert maps.shape == (4, 5, 5)
    assert not maps[0].any()
    for frame in range(1, 4):
        for y in range(5):
            for x in range(5):
                now, before = pixels[frame, :, y, x].tolist(), pixels[frame - 1, :, y, x].tolist()
                expected = sum(abs(a - b) for a, b in zip(now, before, strict=True))
                assert float(maps[frame, y, x]) == pytest.approx(expected, rel=1e-6)
    assert frame_residual(pixels[:0]).shape == (0, 5, 5)
