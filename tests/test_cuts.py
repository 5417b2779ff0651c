"""Cuts are found between shots and nowhere else, however the frames arrive."""

import numpy as np
import pytest
import torch

from everyframe.backbone.preprocess import CLIP_MEAN, CLIP_STD, HALF, Preprocess
from everyframe.encoders.cuts import CutDetector, _colours_apart, _layouts_apart
from everyframe.synthetic import SyntheticVideo

PREPARE = Preprocess(size=112, shorter_side=112, mean=CLIP_MEAN, std=CLIP_STD)


def frames(seed, count=8, style="handheld", fps=3.0):
    video = SyntheticVideo(seed, style=style, seconds=10.0)
    return np.stack([video.frame(2 + index / fps) for index in range(count)])


def detected(pictures, prepare=PREPARE):
    return CutDetector().add(prepare(pictures)).tolist()


@pytest.fixture(scope="module")
def two_shots():
    return np.concatenate((frames(1), frames(2)))


def test_a_hard_cut_is_found_where_it_is(two_shots):
    assert np.flatnonzero(detected(two_shots)).tolist() == [8]


@pytest.mark.parametrize("split", [[1] * 16, [8, 8], [7, 9], [3, 0, 13], [9, 1, 6]])
def test_results_do_not_depend_on_the_calls(two_shots, split):
    pixels = PREPARE(two_shots)
    detector = CutDetector(0.05)
    parts = [detector.add(part) for part in pixels.split(split)]
    assert [part.dtype for part in parts] == [bool] * len(split)
    assert np.concatenate(parts).tolist() == CutDetector(0.05).add(pixels).tolist()


@pytest.mark.parametrize("size", [2, 16, 32, 112, 224, 336])
def test_sizes_and_normalisations_agree(two_shots, size):
    for mean, std in ((CLIP_MEAN, CLIP_STD), (HALF, HALF)):
        found = detected(two_shots, Preprocess(size=size, shorter_side=size, mean=mean, std=std))
        assert size == 2 or np.flatnonzero(found).tolist() == [8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_finds_the_same(two_shots, dtype):
    assert np.flatnonzero(CutDetector().add(PREPARE(two_shots).to(dtype))).tolist() == [8]


def moving(change):
    """12 frames of one photo-like picture, each from change(picture, index)."""
    video = SyntheticVideo(3, style="still", seconds=10.0, size=(480, 360))
    picture = video.frame(5.0).astype(np.float32)
    return np.stack([np.clip(change(picture, index), 0, 255).astype(np.uint8) for index in range(12)])


def zoomed(picture, index):
    inset = 6 * index
    crop = torch.from_numpy(picture[inset : 360 - inset, inset : 480 - inset]).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(crop, size=(240, 240), mode="bilinear")[0].permute(1, 2, 0).numpy()


NOISE = np.random.default_rng(0).standard_normal((12, 360, 480, 3)) * 25


@pytest.mark.parametrize(
    "change",
    [
        lambda picture, index: picture,
        lambda picture, index: picture[60:300, 20 * index : 20 * index + 240],
        lambda picture, index: picture[10 * index : 10 * index + 240, 60:300],
        zoomed,
        lambda picture, index: picture + NOISE[index],
        lambda picture, index: picture * (0.8, 1.15)[index % 2],
        lambda picture, index: picture * 1.5 + 40 if index == 6 else picture,
        lambda picture, index: picture * (1 - index / 14),
        lambda picture, index: np.zeros_like(picture),
        lambda picture, index: NOISE[index] / 25,
    ],
    ids=["still", "pan", "tilt", "zoom", "noise", "flicker", "flash", "fade", "black", "dark noise"],
)
def test_one_shot_has_no_cut(change):
    assert not any(detected(moving(change)))


def test_the_first_frame_of_a_video_is_no_cut(two_shots):
    assert not CutDetector(1e-6).add(PREPARE(two_shots[:1])).any()
    empty = CutDetector().add(torch.empty(0, 3, 112, 112))
    assert empty.shape == (0,)
    assert empty.dtype == bool


def test_black_to_picture_is_a_cut(two_shots):
    assert np.flatnonzero(detected(np.concatenate((np.zeros_like(two_shots[:5]), two_shots[:5])))).tolist() == [5]


def test_colours_follow_their_definition():
    """Soft histograms of both frames, written out as loops."""
    pictures = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    pictures[1] += 0.5
    red, green, blue = (pictures[:, channel].reshape(2, -1).numpy() for channel in range(3))
    bright = (red + green + blue) / 3
    middle = bright.mean(1).mean()
    deviation = np.sqrt(bright.var(1).mean() + (bright.mean(1)[1] - middle) ** 2) + 0.1
    total = 0.0
    for values in (bright, red - green, (red + green) / 2 - blue):
        histogram = np.zeros((2, 8))
        for frame in range(2):
            for value in (values[frame] - values.mean()) / deviation:
                place = np.clip(value, -2, 2) / 4 * 7 + 3.5
                for bin in range(8):
                    histogram[frame, bin] += max(0.0, 1 - abs(place - bin)) / 36
        total += np.abs(histogram[0] - histogram[1]).sum() / 2
    assert _colours_apart(pictures).item() == pytest.approx(total / 3, abs=1e-9)


def test_layouts_follow_their_definition():
    """The best correlation over shifts, each overlap cut out by hand."""
    pictures = torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(0)).double()
    pictures[1] = 0.4 * pictures[1] + pictures[0].roll((2, -3), (1, 2))
    before, after = pictures.numpy()
    best = -1.0
    for down in range(-3, 4):
        for across in range(-3, 4):
            rows, columns = slice(max(down, 0), 14 + min(down, 0)), slice(max(across, 0), 14 + min(across, 0))
            one = after[:, rows, columns]
            two = before[:, max(-down, 0) : 14 + min(-down, 0), max(-across, 0) : 14 + min(-across, 0)]
            one, two = (part - part.mean((1, 2), keepdims=True) for part in (one, two))
            floor = one.size * 0.025**2
            best = max(best, (one * two).sum() / np.sqrt(((one**2).sum() + floor) * ((two**2).sum() + floor)))
    assert best > 0.8
    assert _layouts_apart(pictures).item() == pytest.approx(1 - best, abs=1e-6)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, float("nan")])
def test_thresholds_lie_between_0_and_1(threshold):
    with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
        CutDetector(threshold)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="threshold must be a number"):
        CutDetector("low")
    detector = CutDetector()
    with pytest.raises(TypeError, match="pixels must be a tensor, got ndarray"):
        detector.add(np.zeros((1, 3, 16, 16)))
    for shape in ((3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 12)):
        with pytest.raises(ValueError, match=r"pixels must be \[T, 3, S, S\], got"):
            detector.add(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"floating point, got torch\.uint8"):
        detector.add(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    detector.add(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="keep their side of 16, got 32"):
        detector.add(torch.zeros(1, 3, 32, 32))
