"""What runs on a GPU, as far as a CPU can tell: compiled shapes, the way of chunks to a device, the resize by matrices.

The tests at the end need a GPU and are skipped without one.
"""

from __future__ import annotations

import copy
import pickle
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import checkpoints
import everyframe as ef
from everyframe.backbone import Model, load, skeleton
from everyframe.backbone.compiling import MOST_SHAPES, Compiled
from everyframe.backbone.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from everyframe.backbone.resizing import resize_weights, resize_window
from everyframe.encoders import Plan
from everyframe.pipeline.transfers import Arrivals, CudaLink, ahead_on
from everyframe.pipeline.uploads import stacked, upload_device
from everyframe.pipeline.window import Chunk

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# --- compiled shapes ---------------------------------------------------------------------------------------


class Counting:
    """A backend of torch.compile that runs graphs as they are, and notes their batch sizes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        # Parameters are inputs too; tokens are the only one with three axes.
        self.batches += [len(each) for each in inputs if isinstance(each, Tensor) and each.ndim == 3]
        return graph.forward


@pytest.fixture(autouse=True)
def _no_graphs_left() -> Iterator[None]:
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(checkpoints.clip(tmp_path / "clip", tokenizer=False), device="cpu")


def tokens_of(model: Model, count: int, length: int = 17) -> Tensor:
    return torch.randn(count, length, model.vision.config.width, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def test_smaller_batches_are_filled_up_and_give_the_same_features(model: Model) -> None:
    backend = Counting()
    run = Compiled(model.vision.layers, backend=backend)
    for count in (8, 8, 5, 4, 7):
        tokens = tokens_of(model, count)
        expected = model.vision.layers(tokens)
        torch.testing.assert_close(run(tokens), expected, atol=1e-6, rtol=0)
        assert len(expected) == count
    assert backend.batches == [8]
    assert run.num_shapes == 1


@torch.no_grad()
def test_nearly_empty_and_surplus_batches_are_not_compiled(model: Model) -> None:
    backend = Counting()
    run = Compiled(model.vision.layers, backend=backend)
    run(tokens_of(model, 8))
    for tokens in (tokens_of(model, 3), tokens_of(model, 0)):
        assert torch.equal(run(tokens), model.vision.layers(tokens))
    for count in range(9, 20):
        tokens = tokens_of(model, count)
        torch.testing.assert_close(run(tokens), model.vision.layers(tokens), atol=1e-6, rtol=0)
    assert backend.batches == list(range(8, 8 + MOST_SHAPES))


@torch.no_grad()
def test_each_length_has_its_sizes(model: Model) -> None:
    backend = Counting()
    run = Compiled(model.vision.layers, backend=backend)
    for count, length in ((4, 17), (12, 5), (3, 17), (9, 5)):
        tokens = tokens_of(model, count, length)
        torch.testing.assert_close(run(tokens), model.vision.layers(tokens), atol=1e-6, rtol=0)
    assert backend.batches == [4, 12]


@torch.no_grad()
def test_results_are_kept_when_the_next_batch_runs(model: Model) -> None:
    """CUDA graphs write every result into the same memory; a backend that does so too tells whether it is copied."""
    memory: list[Tensor] = []

    def reusing(graph: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*given: Tensor) -> Any:
            (result,) = graph(*given)
            if not memory:
                memory.append(result.clone())
            return (memory[0].copy_(result),)

        return run

    run = Compiled(model.vision.layers, backend=reusing)
    first, second = tokens_of(model, 4), tokens_of(model, 4) + 1
    results = [run(first), run(second)]
    torch.testing.assert_close(results[0], model.vision.layers(first), atol=1e-6, rtol=0)
    torch.testing.assert_close(results[1], model.vision.layers(second), atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [ef.DenseEncoder, lambda m, **more: ef.ResidualViT(m, residual=None, **more)])
def test_compiled_encoders_equal_eager_ones_whatever_the_last_batch(model: Model, make: Any) -> None:
    pixels = torch.randn(22, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = make(model, batch_size=6)
    expected = [encoder.encode(pixels), encoder.encode(pixels[:20])]
    backend = Counting()
    model.compile(backend=backend)
    for features, frames in zip(expected, (pixels, pixels[:20]), strict=True):
        torch.testing.assert_close(encoder.encode(frames), features, atol=1e-6, rtol=0)
    assert len(backend.batches) == (1 if isinstance(encoder, ef.DenseEncoder) else 2)


def test_aot_eager_gives_the_same_features(model: Model) -> None:
    """The whole way of torch.compile but for the code that a C++ compiler or Triton would make."""
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = ef.DenseEncoder(model).encode(pixels)
    model.compile(backend="aot_eager")
    torch.testing.assert_close(ef.DenseEncoder(model).encode(pixels), expected, atol=1e-6, rtol=0)


def test_training_goes_past_the_compiled_tower(model: Model) -> None:
    backend = Counting()
    model.compile(backend=backend)
    encoder = ef.ResidualViT(model, residual=ef.ResidualTokenizer(model.dim, model.vision.config.width))
    features = F.normalize(torch.randn(2, model.dim), dim=1)
    encoder.p_features(torch.randn(2, 3, 32, 32), features, torch.tensor([[0, 3], [1, 2]])).sum().backward()
    assert not backend.batches
    assert encoder.tokenizer is not None
    assert all(parameter.grad is not None for parameter in encoder.tokenizer.parameters())


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_a_copy_of_a_compiled_model_compiles_for_itself(model: Model, twin_of: Callable[[Model], Model]) -> None:
    model.compile(backend="eager")
    pixels = torch.randn(3, 3, 32, 32)
    expected = model.vision(pixels)
    twin = twin_of(model)
    assert twin.vision.compiled is not None and twin.vision.compiled.num_shapes == 0
    twin.vision.norm_post.weight.mul_(2)
    torch.testing.assert_close(twin.vision(pixels), 2 * expected - twin_bias(twin), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.vision(pixels), expected, atol=1e-6, rtol=0)


def twin_bias(model: Model) -> Tensor:
    """What the final norm's bias adds to every feature."""
    return model.vision.projection(model.vision.norm_post.bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fastest"}, "mode must be one of default, reduce-overhead"),
        ({"backend": "nothing"}, "backend must be one of .*inductor.*, got 'nothing'"),
        ({"backend": "eager", "mode": "default"}, "mode is one of the backend 'inductor', not of 'eager'"),
    ],
)
def test_compile_refuses(model: Model, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.compile(**options)


# --- chunks on their way -----------------------------------------------------------------------------------


class FakeLink:
    """A device whose copies are complete when they are marked, and which notes what it is asked, and by whom."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.sending_in: set[int] = set()
        self._open = False

    @contextmanager
    def sending(self) -> Iterator[None]:
        self.sending_in.add(threading.get_ident())
        self._open = True
        yield
        self._open = False

    def upload(self, pixels: Tensor) -> Tensor:
        assert self._open
        self.log.append(("upload", int(pixels[0, 0, 0, 0])))
        return pixels.clone()

    def mark(self) -> int:
        assert self._open
        return self.log[-1][1]

    def wait(self, mark: int, pixels: Tensor) -> None:
        assert mark == int(pixels[0, 0, 0, 0])
        self.log.append(("wait", mark))


def chunk(number: int) -> Chunk:
    return Chunk([float(number)], torch.full((1, 3, 4, 4), float(number)), Plan.of("I", []))


def test_chunks_arrive_in_order_and_others_pass() -> None:
    link, finished = FakeLink(), object()
    items = [chunk(0), chunk(1), finished, chunk(2)]
    arrivals = Arrivals(iter(items), 2, link)
    came = list(arrivals)
    arrivals.close()
    assert came[2] is finished
    assert [int(came[place].pixels[0, 0, 0, 0]) for place in (0, 1, 3)] == [0, 1, 2]
    assert [each.times for each in came if isinstance(each, Chunk)] == [[0.0], [1.0], [2.0]]
    assert all(came[place].plan is items[place].plan for place in (0, 1, 3))
    assert [number for what, number in link.log if what == "upload"] == [0, 1, 2]
    assert [number for what, number in link.log if what == "wait"] == [0, 1, 2]
    assert link.sending_in and threading.get_ident() not in link.sending_in


def test_the_next_chunk_is_sent_before_the_first_is_asked_for_again() -> None:
    link, second_sent = FakeLink(), threading.Event()

    def items() -> Iterator[Chunk]:
        for number in range(3):
            yield chunk(number)
            if number == 1:
                second_sent.set()

    arrivals = Arrivals(items(), 2, link)
    next(arrivals)
    assert second_sent.wait(10)  # while nobody asks for it
    assert ("upload", 1) in link.log
    arrivals.close()


def test_an_error_comes_after_the_chunks_before_it() -> None:
    def items() -> Iterator[Chunk]:
        yield chunk(0)
        raise OSError("the disk is gone")

    arrivals = Arrivals(items(), 2, FakeLink())
    assert next(arrivals).times == [0.0]
    with pytest.raises(OSError, match="the disk is gone"):
        next(arrivals)
    arrivals.close()


@pytest.mark.parametrize("taken", [0, 1])
def test_closing_early_closes_the_source(taken: int) -> None:
    closed = threading.Event()

    def items() -> Iterator[Chunk]:
        try:
            for number in range(1000):
                yield chunk(number)
        finally:
            closed.set()

    arrivals = Arrivals(items(), 2, FakeLink())
    for _ in range(taken):
        next(arrivals)
    if not taken:
        threading.Event().wait(0.05)  # the thread has begun
    arrivals.close()
    assert closed.wait(10)


def test_on_the_cpu_chunks_are_handed_through() -> None:
    first = chunk(0)
    ahead = ahead_on(torch.device("cpu"), iter([first]), 2)
    assert next(ahead) is first
    ahead.close()


class StubStream:
    """torch.cuda.Stream without CUDA."""

    def __init__(self, *given: Any, **more: Any) -> None:
        self.given, self.more = given, more
        self.waited: list[Any] = []

    def record_event(self) -> str:
        return "event"

    def wait_event(self, event: Any) -> None:
        self.waited.append(event)


def test_cuda_link_pins_once_copies_without_waiting_and_keeps_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls, not what they do: only a GPU can tell that."""
    pinned, copied, recorded, current = [], [], [], StubStream()
    monkeypatch.setattr(torch.cuda, "Stream", StubStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *given, **more: copied.append((given, more)) or self.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: recorded.append(stream))
    device = torch.device("cuda", 0)
    link = CudaLink(device)
    pixels = torch.zeros(2, 3, 4, 4)
    arrived = link.upload(pixels)
    assert len(pinned) == 1 and pinned[0] is pixels
    assert copied == [((device,), {"non_blocking": True})]
    link.wait(link.mark(), arrived)
    assert current.waited == ["event"] and recorded == [current]


def test_frames_are_stacked_as_numpy_does_it() -> None:
    frames = [np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8) for seed in range(3)]
    for device in (None, torch.device("cpu")):
        together = stacked(frames, device)
        assert together.dtype == torch.uint8 and np.array_equal(together.numpy(), np.stack(frames))
    maps = [frame[..., 0].astype(np.float32) for frame in frames]
    assert torch.equal(stacked(maps, torch.device("cpu")), torch.from_numpy(np.stack(maps)))


def test_only_a_cuda_model_has_frames_uploaded(model: Model) -> None:
    assert upload_device(model) is None
    assert upload_device(skeleton("ViT-B/32")) is None  # hollow, as that of a worker that decodes


# --- the resize by matrices --------------------------------------------------------------------------------


def photos(count: int, height: int, width: int) -> np.ndarray:
    """Blurred shapes and hard edges, black to white: what overshoots between the passes is in it."""
    rng = np.random.default_rng(height * width)
    coarse = torch.from_numpy(rng.random((count, 3, 8, 8), np.float32))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    edges = torch.from_numpy(rng.random((count, 1, height // 6 + 1, width // 6 + 1)) > 0.7)
    hard = edges.repeat_interleave(6, 2).repeat_interleave(6, 3)[:, :, :height, :width]
    return (torch.where(hard, 1 - smooth.round(), smooth) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def pillow(frames: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """The frames resized by Pillow, uint8 [T, h, w, 3]."""
    image = pytest.importorskip("PIL.Image")
    method = {"bicubic": image.Resampling.BICUBIC, "bilinear": image.Resampling.BILINEAR}[mode]
    return np.stack([np.asarray(image.fromarray(frame).resize(size[::-1], method)) for frame in frames])


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(90, 160), (20, 20), (64, 57)])
def test_resize_equals_pillow_within_a_grey_level(height: int, width: int, mode: str) -> None:
    frames, size = photos(2, height, width), (32, 57)
    expected = pillow(frames, size, mode)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    ours = resize_window(images, size, (0, 32), (0, 57), mode).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - expected).max() <= 1
    assert (ours == expected).mean() > 0.98
    part = resize_window(images, size, (3, 20), (40, 9), mode).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(part, ours[:, 3:23, 40:49], atol=1)  # a half may round either way


@pytest.mark.parametrize(("height", "width"), [(270, 480), (480, 270), (100, 100), (64, 64), (40, 70)])
def test_what_a_gpu_would_see_is_closer_to_pillow_than_what_the_cpu_sees(height: int, width: int) -> None:
    """The CPU resizes only what the crop keeps, from a place that is a whole pixel but for a hundredth."""
    ours = Preprocess(size=64, shorter_side=64, mean=CLIP_MEAN, std=CLIP_STD)
    frames, size = photos(2, height, width), ours.resized(height, width)
    rows, columns = ((length - 64) // 2 for length in size)
    exact = pillow(frames, size, "bicubic")[:, rows : rows + 64, columns : columns + 64]
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    there = resize_window(images, size, (rows, 64), (columns, 64), "bicubic")
    here = ours.pack(ours(frames)).float()
    theirs = torch.from_numpy(exact).permute(0, 3, 1, 2).float()
    assert (there - theirs).abs().max() <= 1
    assert (there - theirs).abs().mean() <= (here - theirs).abs().mean() + 1e-3
    assert (there - here).abs().max() <= 2


def test_resize_weights_are_an_average() -> None:
    for length, new_length in ((7, 7), (50, 9), (9, 50)):
        weights = resize_weights(length, new_length, "bicubic")
        torch.testing.assert_close(weights.sum(1), torch.ones(new_length))
        torch.testing.assert_close(weights.flip(0, 1), weights)
    assert torch.equal(resize_weights(7, 7, "bicubic"), torch.eye(7))


# --- the benchmark -----------------------------------------------------------------------------------------


def test_benchmark_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.err == "gpu.py: torch sees no CUDA device; --device cpu --quick tries the script out without one\n"
    assert not said.out


# --- on a GPU ----------------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu(tmp_path: Path) -> Model:
    return load(checkpoints.clip(tmp_path / "clip", tokenizer=False, image_size=64), device="cuda")


@needs_cuda
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_on_a_gpu_equals_eager(on_gpu: Model, mode: str) -> None:
    pixels = torch.randn(22, 3, 64, 64, device="cuda")
    encoder = ef.ResidualViT(on_gpu, residual=None, batch_size=4)
    expected = encoder.encode(pixels)
    on_gpu.compile(mode=mode)
    for _ in range(3):  # record, then replay
        torch.testing.assert_close(encoder.encode(pixels), expected, atol=1e-5, rtol=0)


@needs_cuda
def test_preprocess_on_a_gpu_equals_the_cpu_within_two_grey_levels(on_gpu: Model) -> None:
    frames = photos(3, 270, 480)
    there = on_gpu.preprocess(torch.from_numpy(frames).cuda())
    difference = on_gpu.pack(there).cpu().float() - on_gpu.pack(on_gpu.preprocess(frames)).float()
    assert there.is_cuda and difference.abs().max() <= 2


@needs_cuda
@pytest.mark.parametrize("make", [ef.DenseEncoder, lambda m: ef.ResidualViT(m, residual=None), ef.ReuseEncoder])
def test_videos_on_a_gpu_give_the_features_of_the_cpu(on_gpu: Model, make: Any, tmp_path: Path) -> None:
    from everyframe.synthetic import SyntheticVideo

    video = tmp_path / "clip.mp4"
    SyntheticVideo(3, seconds=20, fps=10, size=(320, 240), style="pan").write(video)
    there = ef.encode_video(video, make(on_gpu), fps=5)
    here = ef.encode_video(video, make(copy.deepcopy(on_gpu).cpu()), fps=5)
    assert np.array_equal(there.times, here.times)
    assert (there.embeddings * here.embeddings).sum(1).mean() > 0.999
