"""Plans against `reference.reuse`, which decides patch by patch in loops, and against sequences worked out by hand."""

import pytest
import torch
from torch.nn import functional as F

import checkpoints
from everyframe.backbone import load
from everyframe.backbone.vit import VisionConfig, VisionTransformer
from everyframe.encoders import ReuseEncoder
from everyframe.encoders.cuts import CutDetector
from everyframe.encoders.plan import Plan, fixed_roles
from everyframe.encoders.planner import LONGEST_GROUP, NOISE, PLANS, Planner, Policy
from everyframe.encoders.reuse import SELECT
from everyframe.pipeline import read_window
from everyframe.synthetic import SyntheticVideo
from everyframe.tokens.change import cell_pixels, patch_cells, patch_change
from reference import reuse as reference

PATCH, GRID = 8, 5
SIDE, PATCHES = PATCH * GRID + 3, GRID**2  # three rows and columns belong to no patch
BLOCK = {"width": 4, "heads": 1, "mlp_width": 4, "activation": "gelu", "norm_eps": 1e-6}
VISION = VisionTransformer(VisionConfig(**BLOCK, depth=1, dim=4, patch_size=PATCH, image_size=SIDE))


def planner(plan="fixed", select="change", num_kept=4, *, interleave=5, tolerance=1.0, seed=0, first_frame=0):
    policy = Policy(plan=plan, interleave=interleave, select=select, num_kept=num_kept, tolerance=tolerance, seed=seed)
    return Planner(VISION, policy, first_frame)


def adaptive(num_kept=4, tolerance=1.0):
    return planner("adaptive", num_kept=num_kept, tolerance=tolerance)


def picture(seed=0):
    """One preprocessed frame with large shapes: [3, S, S]."""
    coarse = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")[0]


def still(count, seed=0):
    return picture(seed).repeat(count, 1, 1, 1)


def shift(pixels, patch, offset):
    """Add `offset` to every pixel of one patch of frames [T, 3, S, S] (or to maps [T, S, S]), in place."""
    top, left = patch // GRID * PATCH, patch % GRID * PATCH
    pixels[..., top : top + PATCH, left : left + PATCH] += offset


def two_shots(count=20, cut=9):
    """A picture in which a few patches change in every frame and all flicker a little; another from `cut` on."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.cat((still(cut, 1), still(count - cut, 2)))
    for frame in range(count):
        for patch in torch.randperm(PATCHES, generator=generator)[:6].tolist():
            shift(pixels[frame:], patch, float(torch.randn((), generator=generator)) * 0.5)
    return pixels + 0.05 * torch.randn(pixels.shape, generator=generator)


def motion_maps(count=20):
    return torch.rand(count, SIDE, SIDE, generator=torch.Generator().manual_seed(6)) ** 8


def patches_of(plan):
    """The refreshed patches of every P-frame, in order."""
    return [plan.kept(frame).tolist() for frame, role in enumerate(plan.roles) if role == "P"]


def assert_same(actual, expected):
    assert actual.roles == expected.roles
    assert torch.equal(actual.counts, expected.counts)
    assert torch.equal(actual.indices, expected.indices)


# --- the reference ---------------------------------------------------------------------------------------


def test_the_frames_of_these_tests_have_their_cut_and_no_other():
    assert CutDetector().add(two_shots()).nonzero()[0].tolist() == [9]


@pytest.mark.parametrize(
    ("plan", "count", "tolerance"),
    [
        ("fixed", 4, 1.0),
        ("fixed", 1, 1.0),
        ("cuts", 4, 1.0),
        *[("adaptive", count, tolerance) for count in (2, 8, 25) for tolerance in (0.0, 0.1, 0.2, 100.0)],
    ],
)
def test_change_equals_the_reference(plan, count, tolerance):
    pixels = two_shots()
    one = planner(plan, num_kept=count, interleave=3, tolerance=tolerance)
    result = one.add(pixels)
    roles, kept, left_out = reference.plan_by_change(
        pixels,
        patch_size=PATCH,
        count=count,
        interleave=3,
        adaptive=plan == "adaptive",
        tolerance=tolerance,
        cuts=() if plan == "fixed" else (9,),
    )
    assert result.roles == roles
    assert patches_of(result) == kept
    assert one.left_out == pytest.approx(left_out, abs=1e-5)
    if tolerance in (0.1, 0.2):
        assert roles.count("I") > 2  # more than the cut brings


@pytest.mark.parametrize("plan", ["fixed", "cuts"])
@pytest.mark.parametrize("select", ["motion", "residual", "motion without maps"])
def test_motion_equals_the_reference(plan, select):
    pixels, motion = two_shots(), motion_maps()
    own = planner(plan, select.split()[0], 3, interleave=4)
    result = own.add(pixels, None if "without" in select else motion)
    if select != "motion":
        motion = torch.zeros_like(motion)
        motion[1:] = (pixels[1:] - pixels[:-1]).abs().sum(1)
    cuts = () if plan == "fixed" else (9,)
    roles, kept = reference.plan_by_motion(motion, patch_size=PATCH, count=3, interleave=4, cuts=cuts)
    assert result.roles == roles
    assert patches_of(result) == kept
    assert own.left_out == []  # nothing is known about content


# --- the stream ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_motion", [True, False], ids=["motion", "no motion"])
@pytest.mark.parametrize(
    ("plan", "select"),
    [(plan, select) for plan in PLANS for select in SELECT if plan != "adaptive" or select == "change"],
)
def test_results_do_not_depend_on_the_calls(plan, select, with_motion):
    pixels, motion = two_shots(), motion_maps() if with_motion else None
    whole = planner(plan, select, 3, interleave=3, tolerance=0.4)
    expected = whole.add(pixels, motion)
    assert set(expected.roles) >= {"I", "P"}
    for split in ([1] * 20, [7, 13], [9, 11], [2, 0, 3, 0, 15], [0, 20]):
        parts = planner(plan, select, 3, interleave=3, tolerance=0.4)
        result, first = Plan.of("", []), 0
        for size in split:
            own = None if motion is None else motion[first : first + size]
            part = parts.add(pixels[first : first + size], own)
            assert len(part.roles) == size
            result, first = result + part, first + size
        assert_same(result, expected)
        assert parts.left_out == whole.left_out


@pytest.mark.parametrize("interleave", [0, 1, 2, 5, 30])
@pytest.mark.parametrize("select", SELECT)
def test_fixed_plans_have_the_papers_roles(select, interleave):
    pixels = two_shots()
    result = planner("fixed", select, interleave=interleave).add(pixels, motion_maps())
    assert result.roles == fixed_roles(20, interleave)
    assert result.counts.tolist() == [4 * (role == "P") for role in result.roles]
    for patches in patches_of(result):
        assert patches == sorted(set(patches))
        assert 0 <= patches[0] <= patches[-1] < PATCHES


@pytest.mark.parametrize("select", SELECT)
def test_parts_from_an_i_frame_on_continue_the_plan(select):
    pixels, motion = two_shots(), motion_maps()
    pixels[14:] = pixels[13]  # and ties to be broken alike
    motion[14:] = 0
    whole = planner("fixed", select, interleave=3).add(pixels, motion)
    for first in (4, 8, 12):
        part = planner("fixed", select, interleave=3, first_frame=first).add(pixels[first:], motion[first:])
        assert_same(part, whole[first:])


@pytest.mark.parametrize("select", ["random", "change", "motion", "residual"])
def test_seed_and_frame_number_decide_ties(select):
    pixels, nothing = still(6), torch.zeros(6, SIDE, SIDE)
    choices = set()
    for options in ({}, {"seed": 1}, {"first_frame": 6}, {"seed": 1, "first_frame": 6}):
        first, again = (planner("fixed", select, **options).add(pixels, nothing) for _ in range(2))
        assert_same(first, again)
        choices |= {tuple(patches) for patches in patches_of(first)}
    assert len(choices) == 20


@pytest.mark.parametrize("plan", ["cuts", "adaptive"])
def test_a_shot_begins_with_an_i_frame(plan):
    pixels = torch.cat((still(8, 1), still(9, 2)))
    result = planner(plan, interleave=4, tolerance=1e6).add(pixels)
    assert result.roles == {"cuts": "IPPPPIPPIPPPPIPPP", "adaptive": "I" + 7 * "C" + "I" + 8 * "C"}[plan]


# --- what is refreshed -----------------------------------------------------------------------------------


def test_motion_adds_up_until_a_patch_is_refreshed():
    moved = [
        {5: 9.0},  # of the I-frame: over
        {0: 5.0, 1: 4.0, 2: 3.0, 3: 2.0},
        {3: 2.0, 4: 3.5},  # 2 waits with 3, 3 has 4
        {0: 1.0, 5: 2.0},  # 0 was refreshed: of its 5 nothing is left
        {0: 0.5, 6: 0.4, 7: 1.0},  # 0 has 1.5
        {8: 0.1, 9: 0.2},  # 6 has 0.4
        {1: 1.0, 6: 1.0},
        {2: 0.5, 3: 0.4, 6: 0.1, 8: 0.35},  # 6 and 8 moved before the I-frame, too
    ]
    motion = torch.zeros(len(moved), SIDE, SIDE)
    for frame, sums in enumerate(moved):
        for patch, value in sums.items():
            shift(motion[frame], patch, value / PATCH**2)
    result = planner(select="motion", num_kept=2, interleave=5).add(still(len(moved)), motion)
    assert result.roles == "IPPPPPIP"
    assert patches_of(result) == [[0, 1], [3, 4], [2, 5], [0, 7], [6, 9], [2, 3]]


def test_change_compares_with_when_a_patch_was_last_refreshed():
    """Patch 3 drifts by 0.05 a frame, patch 7 flickers by 0.08; next to the frame before, 7 would always win."""
    pixels = still(6)
    for frame in range(6):
        shift(pixels[frame], 3, 0.05 * frame)
        shift(pixels[frame], 7, 0.08 * (frame % 2))
    # Since its refresh, 3 changed by 5, 10, 5, 5, 10; 7 by 8, 8, 0, 8, 8 hundredths.
    assert patches_of(planner(num_kept=1).add(pixels)) == [[7], [3], [3], [7], [3]]


def test_a_slow_drift_is_refreshed_when_it_has_gone_far_enough():
    pixels = still(10)
    for frame in range(10):
        shift(pixels[frame], 11, 0.04 * frame)  # 0.12 squared is the first above NOISE
    result = adaptive().add(pixels)
    assert result.roles == "ICCPCCPCCP"
    assert patches_of(result) == [[11]] * 3


# --- adaptive --------------------------------------------------------------------------------------------


def test_a_still_video_is_copied():
    own = adaptive()
    result = own.add(still(2 * LONGEST_GROUP + 4))
    group = "I" + (LONGEST_GROUP - 1) * "C"
    assert result.roles == 2 * group + "ICCC"
    assert own.left_out == [0.0] * len(result.roles)
    assert len(result.indices) == 0


def test_p_frames_refresh_exactly_what_changed():
    pixels = still(7)
    shift(pixels[2:], 13, 0.3)
    shift(pixels[4], 0, -1.0)  # for one frame: it comes and goes
    shift(pixels[4:], 24, 1.0)
    result = adaptive().add(pixels)
    assert result.roles == "ICPCPPC"
    assert patches_of(result) == [[13], [0, 24], [0]]


def test_noise_is_no_change():
    level = NOISE**0.5
    pixels = still(6)
    for frame in range(1, 6):
        pixels[frame] += 0.95 * level * (-1) ** frame
    own = adaptive()
    assert own.add(pixels).roles == "ICCCCC"
    assert own.left_out == pytest.approx([0.0] + [0.95 * level] * 5, abs=1e-6)
    pixels = still(2)
    pixels[1] += 1.05 * level
    assert adaptive(num_kept=25).add(pixels).counts.tolist() == [0, 25]


def steps(times):
    """Patches 0, 1, 2 change by 0.9, 0.6 and 0.3 at these frames of 12."""
    pixels = still(12)
    for time in times:
        for patch, offset in ((0, 0.9), (1, 0.6), (2, 0.3)):
            shift(pixels[time:], patch, offset)
    return pixels


@pytest.mark.parametrize(
    ("tolerance", "roles"),
    [
        # One patch a frame: after a step 0.6 + 0.3 are left out, then 0.3, then nothing; of 25 patches.
        (0.0, "IICCCICCCICC"),
        (0.035, "IICCCICCCICC"),
        (0.037, "IPICCPICCPIC"),
        (0.047, "IPICCPICCPIC"),
        (0.049, "IPPPCICCCPPP"),
        (0.083, "IPPPCICCCPPP"),
        (0.085, "IPPPCPICCPPP"),
        (0.097, "IPPPCPPPCICC"),
        (0.131, "IPPPCPPPCICC"),
        (0.133, "IPPPCPPPCPIC"),
        (0.145, "IPPPCPPPCPPP"),
    ],
)
def test_an_i_frame_comes_when_the_debt_passes_the_tolerance(tolerance, roles, monkeypatch):
    monkeypatch.setattr("everyframe.encoders.planner.STALE", 0.0)
    own = adaptive(1, tolerance)
    result = own.add(steps((1, 5, 9)))
    assert result.roles == roles
    waiting, expected = 0, []
    for role in result.roles:
        waiting = {"I": 0, "C": 0, "P": waiting + 1}[role]
        expected.append((0.0, 0.9 / PATCHES, 0.3 / PATCHES, 0.0)[waiting])
    assert own.left_out == pytest.approx(expected, abs=1e-6)


def test_a_state_that_has_moved_from_the_i_frame_is_a_debt_too():
    pixels = still(12)
    shift(pixels[2:], 13, 0.5)
    share = 0.3 * 0.5 / PATCHES  # of a patch refreshed in frame 2, from frame 3 on
    own = adaptive(4, 5.5 * share)
    assert own.add(pixels).roles == "ICPCCCCCICCC"
    assert own.left_out == pytest.approx([0.0] * 3 + [share] * 5 + [0.0] * 4, abs=1e-6)


def test_tolerance_0_leaves_nothing_out(monkeypatch):
    monkeypatch.setattr("everyframe.encoders.planner.STALE", 0.0)
    pixels = still(8)
    shift(pixels[2:], 4, 0.5)
    shift(pixels[4:], 5, 0.01)  # within noise, but not the same
    for patch in range(3):
        shift(pixels[6:], patch, 0.5)
    own = adaptive(2, 0.0)
    assert own.add(pixels).roles == "ICPCICIC"
    assert own.left_out == [0.0] * 8
    dense = adaptive(2, 0.0).add(two_shots())
    assert dense.roles == "I" * 20


def test_the_most_changed_come_first_and_never_more_than_the_cap():
    pixels = still(5)
    for patch, offset in ((3, 0.2), (8, -0.5), (12, 0.4), (20, 0.3), (24, -0.25)):
        shift(pixels[1:], patch, offset)
    result = adaptive(2).add(pixels)
    assert result.roles == "IPPPC"
    assert patches_of(result) == [[8, 12], [20, 24], [3]]


def test_debt_does_not_outlive_its_i_frame(monkeypatch):
    monkeypatch.setattr("everyframe.encoders.planner.STALE", 0.0)
    pixels = steps((1, 5, 9))
    pixels[4:] = still(8, seed=9)  # a cut: no steps after it
    own = adaptive(1, 0.049)
    for patch, offset in ((0, 0.9), (1, 0.6), (2, 0.3)):
        shift(pixels[6:], patch, offset)
    assert own.add(pixels).roles == "IPPPICPPPCCC"


def test_a_cut_of_a_decoded_video_begins_a_group(tmp_path):
    model = load(checkpoints.clip(tmp_path / "model", image_size=64, patch_size=16, tokenizer=False), device="cpu")
    video = SyntheticVideo(5, seconds=6.0, size=(128, 96), style="cuts")
    video.write(tmp_path / "video.mp4")
    window = read_window(tmp_path / "video.mp4", model, motion=False)
    (cut,) = [int((window.times < seconds).sum()) for seconds in video.cuts]
    assert cut == 8
    plans = {plan: ReuseEncoder(model, 5, plan=plan, drop=0.5).planner().add(window.pixels) for plan in PLANS}
    assert plans["fixed"].roles == fixed_roles(18, 5)
    assert plans["cuts"].roles == fixed_roles(8, 5) + fixed_roles(10, 5)
    assert plans["adaptive"].roles == "IPPPPPPP" + "IPPPPPPPPP"
    counts = plans["adaptive"].counts
    assert int(counts.max()) == 8  # of 16 patches; in a calm frame fewer
    assert 0 < int(counts[counts > 0].min()) < 8


# --- tokens/change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch_size", "side"),
    [(8, 2), (14, 2), (16, 4), (32, 8), (7, 1), (13, 1), (9, 1), (10, 2), (12, 3), (4, 1), (1, 1)],
)
def test_cells_are_the_largest_that_fit_four_times(patch_size, side):
    assert cell_pixels(patch_size) == side
    assert patch_size % side == 0


@pytest.mark.parametrize(("patch_size", "side"), [(8, 43), (8, 8), (14, 28), (16, 40), (32, 64), (7, 23), (13, 27)])
def test_cells_equal_the_reference(patch_size, side):
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    result = patch_cells(pixels, patch_size)
    count = (patch_size // cell_pixels(patch_size)) ** 2 * 3
    assert result.shape == (3, (side // patch_size) ** 2, count)
    assert result.dtype == torch.float32
    expected = torch.tensor([reference.cells(image, patch_size) for image in pixels])
    torch.testing.assert_close(result, expected.float(), atol=1e-5, rtol=0)
    assert torch.equal(patch_cells(pixels.bfloat16(), patch_size), patch_cells(pixels.bfloat16().float(), patch_size))


def test_no_frames_have_no_cells():
    assert patch_cells(torch.empty(0, 3, 40, 40), 8).shape == (0, 25, 48)


def test_change_is_the_mean_square_of_each_patch():
    before = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    after = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 2.0, 3.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    assert patch_change(after, before).tolist() == [1.0, 4.0, 0.0]
    # A patch one brighter than before has changed by 1, one of which a quarter is two brighter as well.
    pixels = still(2)
    shift(pixels[1], 6, 1.0)
    pixels[1, :, 0:4, 8:12] += 2.0
    change = patch_change(*patch_cells(pixels, PATCH).unbind(0))
    assert change[[1, 6]].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert float(change.sum()) == pytest.approx(2.0, abs=1e-5)


# --- plans -----------------------------------------------------------------------------------------------


@pytest.fixture
def mixed():
    patches = [[1, 4], [0], [2, 3, 9], [5]]
    return Plan.of("IPCPIICPP", [torch.tensor(each) for each in patches])


def test_a_plan_knows_its_frames(mixed):
    assert mixed.counts.tolist() == [0, 2, 0, 1, 0, 0, 0, 3, 1]
    assert mixed.indices.tolist() == [1, 4, 0, 2, 3, 9, 5]
    assert mixed.offsets == [0, 0, 2, 2, 3, 3, 3, 3, 6, 7]
    assert [mixed.kept(frame).tolist() for frame in (0, 1, 2, 3, 7, 8)] == [[], [1, 4], [], [0], [2, 3, 9], [5]]
    assert mixed.sources == [0, 1, 1, 3, 4, 5, 5, 7, 8]
    assert mixed.groups() == [[0, 1, 3], [4], [5, 7, 8]]


def test_copies_of_copies_come_from_the_last_computed_frame():
    assert Plan.of("ICCCIC", []).sources == [0, 0, 0, 0, 4, 4]


@pytest.mark.parametrize("cut", range(10))
def test_parts_of_a_plan_add_up(mixed, cut):
    first, second = mixed[:cut], mixed[cut:]
    assert (len(first.roles), len(second.roles)) == (cut, 9 - cut)
    assert_same(first + second, mixed)
    assert_same(mixed[cut : cut + 2] + mixed[cut + 2 :], second)
    assert patches_of(second) == [mixed.kept(frame).tolist() for frame in (1, 3, 7, 8) if frame >= cut]


def test_slices_count_from_the_end_and_may_be_empty(mixed):
    assert_same(mixed[-2:], Plan.of("PP", [torch.tensor([2, 3, 9]), torch.tensor([5])]))
    assert_same(mixed[5:2], Plan.of("", []))
    assert_same(mixed[20:], Plan.of("", []))
    assert Plan.of("", []).groups() == []


@pytest.mark.parametrize(
    ("roles", "counts", "indices", "message"),
    [
        ("IP", [0], [], "one count per frame .* got 1 counts for 2 frames"),
        ("IP", [0, 2], [1], "as many indices as they sum to, .* 1 indices for 2"),
        ("IP", [0, 0], [], "roles must be I, P or C, of which P alone refreshes patches, got 'IP' with counts"),
        ("IP", [1, 1], [1, 2], "P alone refreshes patches"),
        ("IB", [0, 0], [], "roles must be I, P or C, .* got 'IB'"),
    ],
)
def test_bad_plans_raise(roles, counts, indices, message):
    with pytest.raises(ValueError, match=message):
        Plan(roles, torch.tensor(counts), torch.tensor(indices, dtype=torch.int64))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_plans_of_too_few_or_many_patches_raise(count):
    with pytest.raises(ValueError, match=f"the patches of its 2 P-frames, got {count} tensors"):
        Plan.of("IPP", [torch.tensor([1])] * count)


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": "auto"}, "plan must be one of fixed, cuts, adaptive, got 'auto'"),
        ({"plan": "adaptive", "select": "motion"}, "an adaptive plan selects by change, got select='motion'"),
        *[
            ({"tolerance": value}, f"tolerance must be a finite number >= 0, got {value}")
            for value in (-0.1, float("nan"))
        ],
        ({"tolerance": float("inf")}, "tolerance must be a finite number >= 0, got inf"),
    ],
)
def test_bad_policies_raise(options, message):
    with pytest.raises(ValueError, match=message):
        planner(**options)
