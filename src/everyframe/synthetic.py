"""A procedural video world: seeded, captioned, and encoded with a real codec.

It exists because a test, a demo or an ablation needs videos whose content and event times are known
exactly. Objects (shape, colour, pattern, size) come and go in front of a textured background filmed by a
camera that pans, zooms and shakes, under changing light, with occlusion, scene cuts and sensor noise.
It says nothing about real footage except in one respect, which is measured per video: `moving_share`,
how much of the picture changes between two samples.

    H, W pixels; t seconds; lengths of objects and camera paths are in frame heights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

COLOURS = {
    "red": (214, 44, 40),
    "orange": (240, 138, 28),
    "yellow": (246, 222, 58),
    "green": (44, 158, 66),
    "blue": (42, 86, 212),
    "purple": (142, 58, 172),
    "white": (246, 246, 246),
    "black": (22, 22, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
PATTERNS = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": 0.115, "medium": 0.17, "large": 0.24}  # radius in frame heights
BACKGROUNDS = ("clouds", "bricks", "tiles", "waves", "sand", "leaves")

Combinations = Literal["seen", "unseen", "any"]
Style = Literal["still", "handheld", "pan", "action"]

_TEXTURE = 384  # side of the periodic background texture
_SPAN = 200.0  # texture pixels across one frame height at zoom 1


@dataclass(frozen=True, kw_only=True)
class Camera:
    """How a style moves: speeds in frame heights per second, zoom as a share, frequencies in Hz."""

    pan: tuple[float, float]
    shake: tuple[float, float]
    zoom: tuple[float, float]
    object_speed: tuple[float, float]
    still_objects: float  # probability that an object does not move at all
    flicker: tuple[float, float]  # largest depth and rate (Hz) of the brightness change


STYLES: dict[str, Camera] = {
    "still": Camera(
        pan=(0, 0),
        shake=(0, 0),
        zoom=(0, 0),
        object_speed=(0, 0.05),
        still_objects=0.6,
        flicker=(0.05, 0.05),
    ),
    "handheld": Camera(
        pan=(0, 0.03),
        shake=(0.004, 0.02),
        zoom=(0, 0.03),
        object_speed=(0.02, 0.15),
        still_objects=0.3,
        flicker=(0.1, 0.1),
    ),
    "pan": Camera(
        pan=(0.06, 0.35),
        shake=(0, 0.01),
        zoom=(0, 0.08),
        object_speed=(0.05, 0.25),
        still_objects=0.2,
        flicker=(0.12, 0.2),
    ),
    "action": Camera(
        pan=(0.6, 1.6),
        shake=(0.01, 0.03),
        zoom=(0.05, 0.2),
        object_speed=(0.2, 0.6),
        still_objects=0.0,
        flicker=(0.22, 0.7),
    ),
}


@dataclass(frozen=True)
class Entity:
    """What an object looks like, in the words captions use."""

    colour: str
    pattern: str
    shape: str
    size: str

    def caption(self, *, pattern: bool = True, size: bool = True) -> str:
        words = [
            self.size if size and self.size != "medium" else "",
            self.colour,
            self.pattern if pattern and self.pattern != "plain" else "",
            self.shape,
        ]
        text = " ".join(word for word in words if word)
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    @property
    def is_held_out(self) -> bool:
        """True for the 1/6 of (colour, pattern, shape) triples that training never shows.

        Every (colour, shape), (colour, pattern) and (pattern, shape) pair still occurs in training.
        """
        index = list(COLOURS).index(self.colour) + 2 * SHAPES.index(self.shape)
        return (index + 3 * PATTERNS.index(self.pattern)) % 6 == 0


@dataclass(frozen=True)
class Event:
    """`caption` is true of the video exactly during [start, end) seconds."""

    caption: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class _Actor:
    entity: Entity
    start: float
    end: float
    radius: float
    home: tuple[float, float]  # relative to the picture's centre
    motion: str
    amplitude: float
    frequency: float
    phase: float
    tilt: float
    depth: float

    def position(self, t: float) -> tuple[float, float]:
        x, y = self.home
        angle = 2 * np.pi * self.frequency * t + self.phase
        if self.motion == "orbit":
            return x + self.amplitude * np.cos(angle), y + self.amplitude * np.sin(angle)
        if self.motion == "swing":
            return x + self.amplitude * np.sin(angle), y
        if self.motion == "bounce":
            return x, y - self.amplitude * abs(np.sin(angle)) + self.amplitude / 2
        return x, y

    def scale(self, t: float) -> float:
        """Objects grow in and shrink out over a quarter of a second around their start and end."""
        grown = min((t - self.start) / 0.25, (self.end - t) / 0.25) + 0.5
        return float(np.clip(grown, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class _Shot:
    start: float
    end: float
    background: str
    texture: np.ndarray = field(repr=False)  # float32 [_TEXTURE, _TEXTURE, 3]
    origin: tuple[float, float]
    velocity: tuple[float, float]
    shake: float
    zoom: float
    shake_rate: float
    light: tuple[float, float, float]  # depth, rate, phase of the brightness change
    noise: float
    pole: tuple[float, float] | None  # x and width of a foreground post that occludes


class SyntheticVideo:
    """One procedural video: known content at every time, frames on demand, files through a real codec.

    seed: everything follows from it. seconds: length. style: how camera and objects move (drawn from the
    seed when None). combinations: "seen" and "unseen" restrict objects to the (colour, pattern, shape)
    triples that the bundled model's training did / did not show.
    """

    def __init__(
        self,
        seed: int,
        *,
        seconds: float = 60.0,
        fps: float = 12.0,
        size: tuple[int, int] = (256, 192),
        style: Style | None = None,
        combinations: Combinations = "any",
    ) -> None:
        if not (0 < seconds < np.inf and 0 < fps < np.inf):
            raise ValueError(f"seconds and fps must be finite and > 0, got {seconds} and {fps}")
        if min(size) < 1:
            raise ValueError(f"size must be (width, height) in pixels, got {size}")
        if style is not None and style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
        if combinations not in ("seen", "unseen", "any"):
            raise ValueError(f"combinations must be seen, unseen or any, got {combinations!r}")
        self.seed, self.seconds, self.fps = seed, float(seconds), float(fps)
        self.width, self.height = size
        rng = np.random.default_rng([seed, 7])
        self.style: str = style or str(rng.choice(list(STYLES)))
        camera = STYLES[self.style]
        self._shots = _draw_shots(rng, self.seconds, camera)
        self._actors = _draw_actors(rng, self.seconds, camera, combinations)
        # Drawing Gaussian noise per frame would cost more than the picture; slices of one bank look alike.
        self._noise = rng.standard_normal(3 * self.width * self.height + 65536).astype(np.float32)
        self.events = [Event(_query(rng, actor), actor.start, actor.end) for actor in self._actors]

    @property
    def name(self) -> str:
        return f"synthetic-{self.seed:05d}"

    @property
    def cuts(self) -> list[float]:
        """Times of the scene cuts in seconds."""
        return [shot.start for shot in self._shots[1:]]

    def background(self, t: float) -> str:
        return self._shot(t).background

    def visible(self, t: float) -> list[Entity]:
        """The objects on screen at `t` seconds."""
        return [actor.entity for actor in self._actors if actor.start <= t < actor.end]

    def caption(self, t: float) -> str:
        """Everything that can be said of the picture at `t` seconds."""
        things = [entity.caption() for entity in self.visible(t)]
        return f"{' and '.join(things)} over {self.background(t)}" if things else self.background(t)

    def frame(self, t: float) -> np.ndarray:
        """The picture at `t` seconds: uint8 [H, W, 3] RGB."""
        shot = self._shot(t)
        picture = self._background(shot, t)
        for actor in sorted(self._actors, key=lambda actor: actor.depth):
            if actor.start <= t < actor.end:
                self._draw(picture, actor, shot, t)
        if shot.pole is not None:
            left, wide = shot.pole
            x0 = int((left + 0.5 * self.width / self.height) * self.height)
            picture[:, max(x0, 0) : max(x0 + int(wide * self.height), 0)] = (74, 66, 60)
        depth, rate, phase = shot.light
        picture *= 1.0 + depth * np.sin(2 * np.pi * rate * t + phase)
        if shot.noise > 0:
            offset = int(np.random.default_rng([self.seed, round(t * 1000)]).integers(65536))
            count = picture.size
            picture += shot.noise * self._noise[offset : offset + count].reshape(picture.shape)
        return np.clip(picture + 0.5, 0, 255).astype(np.uint8)

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, `fps` a second."""
        for index in range(round(self.seconds * self.fps)):
            yield self.frame(index / self.fps)

    def moving_share(self, *, fps: float = 3.0, samples: int = 40) -> float:
        """Mean share of 16-pixel patches (at 224 px) that change between samples, see `moving_share`."""
        starts = np.linspace(0, self.seconds - 1 / fps, samples, endpoint=False)
        shares = [
            moving_share(np.stack([self.frame(t), self.frame(t + 1 / fps)]))
            for t in starts
            if self._shot(t) is self._shot(t + 1 / fps)
        ]
        return float(np.mean(shares)) if shares else 0.0

    def write(self, path: str | Path, *, codec: str = "libx264") -> None:
        """Encode the video to `path` (container from the suffix) with any encoder FFmpeg has."""
        from everyframe.video import write_video

        write_video(path, self.frames(), fps=self.fps, codec=codec)

    def _shot(self, t: float) -> _Shot:
        return next((shot for shot in self._shots if t < shot.end), self._shots[-1])

    def _jitter(self, shot: _Shot, t: float) -> tuple[float, float]:
        angle = 2 * np.pi * shot.shake_rate * t
        return shot.shake * np.sin(angle) * np.cos(0.37 * angle), shot.shake * np.sin(0.73 * angle + 1.0)

    def _zoom(self, shot: _Shot, t: float) -> float:
        return 1.0 + shot.zoom * np.sin(0.9 * (t - shot.start))

    def _background(self, shot: _Shot, t: float) -> np.ndarray:
        zoom = self._zoom(shot, t)
        dx, dy = self._jitter(shot, t)
        elapsed = t - shot.start

        def axis(count: int, origin: float, speed: float, jitter: float) -> np.ndarray:
            centred = (np.arange(count) + 0.5 - count / 2) / self.height / zoom
            return (centred + origin + speed * elapsed - jitter) * _SPAN

        rows = axis(self.height, shot.origin[1], shot.velocity[1], dy)
        columns = axis(self.width, shot.origin[0], shot.velocity[0], dx)
        return _lerp(_lerp(shot.texture, rows, 0), columns, 1)

    def _draw(self, picture: np.ndarray, actor: _Actor, shot: _Shot, t: float) -> None:
        zoom = self._zoom(shot, t)
        radius = actor.radius * zoom * actor.scale(t) * self.height
        if radius < 1:
            return
        x, y = actor.position(t)
        dx, dy = self._jitter(shot, t)
        centre_x = self.width / 2 + (x * zoom + dx) * self.height
        centre_y = self.height / 2 + (y * zoom + dy) * self.height
        reach = 1.15 * radius
        x0, x1 = max(int(centre_x - reach), 0), min(int(centre_x + reach) + 2, self.width)
        y0, y1 = max(int(centre_y - reach), 0), min(int(centre_y + reach) + 2, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        u = ((np.arange(x0, x1) + 0.5 - centre_x) / radius)[None, :]
        v = ((np.arange(y0, y1) + 0.5 - centre_y) / radius)[:, None]
        cos, sin = np.cos(actor.tilt), np.sin(actor.tilt)
        u, v = cos * u + sin * v, cos * v - sin * u
        alpha = np.clip(0.5 - _distance(actor.entity.shape, u, v) * radius, 0, 1)[..., None]
        main = np.array(COLOURS[actor.entity.colour], np.float32)
        other = main * 0.42 if main.max() > 60 else main + 95
        share = _pattern(actor.entity.pattern, u, v)[..., None]
        region = picture[y0:y1, x0:x1]
        region += alpha.astype(np.float32) * (main + share.astype(np.float32) * (other - main) - region)


def moving_share(frames: np.ndarray, *, size: int = 224, patch: int = 16, levels: float = 8.0) -> float:
    """Share of patches whose mean luma changes by more than `levels` between consecutive frames.

    frames: uint8 [T, H, W, 3], T >= 2, sampled 1/3 s apart for the figures in the documentation. Frames
    are resized to `size` on the shorter side and centre-cropped as the encoder would. Returns [0, 1].
    """
    import torch
    from torch.nn import functional

    if frames.ndim != 4 or len(frames) < 2:
        raise ValueError(f"moving_share needs at least 2 frames [T, H, W, 3], got shape {frames.shape}")
    luma = torch.from_numpy(np.ascontiguousarray(frames)).float() @ torch.tensor([0.299, 0.587, 0.114])
    height, width = luma.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = luma[:, None, top : top + side, left : left + side]
    cells = functional.interpolate(square, size=(size, size), mode="bilinear", antialias=True)
    means = functional.avg_pool2d(cells, patch)
    return float((means.diff(dim=0).abs() > levels).float().mean())


def synthesize(
    out: str | Path,
    *,
    videos: int = 8,
    seconds: float = 60.0,
    seed: int = 1,
    fps: float = 12.0,
    size: tuple[int, int] = (256, 192),
    codec: str = "libx264",
    combinations: Combinations = "any",
    workers: int = 1,
) -> Iterator[SyntheticVideo]:
    """Write `videos` mp4 files, `annotations.jsonl` and `videos.jsonl` under `out`; iterate to have it done.

    Yields each video once its file and its lines are written. annotations.jsonl has one line per event with
    the keys of Lighthouse's Charades file (qid, query, duration, vid, relevant_windows); videos.jsonl one line
    per video with its style, its share of moving patches and its cuts. Styles go round so that any four videos
    span still to fast. workers: processes that render; with more than one, a script that calls this needs the
    usual `if __name__ == "__main__"` guard.
    """
    for name, value in (("videos", videos), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    worlds = (
        SyntheticVideo(
            seed * 1000 + index,
            seconds=seconds,
            fps=fps,
            size=size,
            style=list(STYLES)[index % len(STYLES)],  # type: ignore[arg-type]
            combinations=combinations,
        )
        for index in range(videos)
    )
    return _write_all(folder, list(worlds), codec, min(workers, videos))


def _write_all(folder: Path, worlds: list[SyntheticVideo], codec: str, workers: int) -> Iterator[SyntheticVideo]:
    with (folder / "annotations.jsonl").open("w") as annotations, (folder / "videos.jsonl").open("w") as facts:
        queries = 0
        for world, share in zip(worlds, _render(folder, worlds, codec, workers), strict=True):
            for event in world.events:
                line: dict[str, Any] = {
                    "qid": queries,
                    "query": event.caption,
                    "duration": world.seconds,
                    "vid": world.name,
                    "relevant_windows": [[round(event.start, 3), round(event.end, 3)]],
                }
                annotations.write(json.dumps(line) + "\n")
                queries += 1
            line = {
                "vid": world.name,
                "duration": world.seconds,
                "style": world.style,
                "moving_share": round(share, 4),
                "cuts": [round(cut, 3) for cut in world.cuts],
            }
            facts.write(json.dumps(line) + "\n")
            annotations.flush()
            facts.flush()
            yield world


def _render(folder: Path, worlds: list[SyntheticVideo], codec: str, workers: int) -> Iterator[float]:
    """Write every video's file; yields their shares of moving patches."""
    jobs = [(world, folder / f"{world.name}.mp4", codec) for world in worlds]
    if workers == 1:
        yield from map(_render_one, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Forking a process that already runs torch's threads can lock up; a spawned one starts clean.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_render_one, jobs)


def _render_one(job: tuple[SyntheticVideo, Path, str]) -> float:
    world, file, codec = job
    world.write(file, codec=codec)
    return world.moving_share()


# --- drawing from the seed -------------------------------------------------------------------------------


def _uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def _draw_shots(rng: np.random.Generator, seconds: float, camera: Camera) -> list[_Shot]:
    bounds = [0.0]
    while seconds - bounds[-1] > 30 or (seconds - bounds[-1] > 16 and rng.random() < 0.7):
        bounds.append(min(bounds[-1] + float(rng.uniform(8, 22)), seconds - 6))
    bounds.append(seconds)
    backgrounds = rng.permutation(len(BACKGROUNDS))
    shots = []
    for index, (start, end) in enumerate(pairwise(bounds)):
        word = BACKGROUNDS[backgrounds[index % len(BACKGROUNDS)]]
        speed, heading = _uniform(rng, camera.pan), _uniform(rng, (0, 2 * np.pi))
        shots.append(
            _Shot(
                start=start,
                end=end,
                background=word,
                texture=_texture(rng, word),
                origin=(_uniform(rng, (0, 2)), _uniform(rng, (0, 2))),
                velocity=(speed * np.cos(heading), 0.5 * speed * np.sin(heading)),
                shake=_uniform(rng, camera.shake),
                zoom=_uniform(rng, camera.zoom),
                shake_rate=_uniform(rng, (0.4, 1.6)),
                light=(
                    _uniform(rng, (0, camera.flicker[0])),
                    _uniform(rng, (0.3 * camera.flicker[1], camera.flicker[1])),
                    _uniform(rng, (0, 6.28)),
                ),
                noise=_uniform(rng, (0, 5)),
                pole=_draw_pole(rng),
            )
        )
    return shots


def _draw_pole(rng: np.random.Generator) -> tuple[float, float] | None:
    return (_uniform(rng, (-0.6, 0.5)), _uniform(rng, (0.04, 0.09))) if rng.random() < 0.25 else None


def _draw_entity(rng: np.random.Generator, combinations: Combinations) -> Entity:
    while True:
        entity = Entity(
            colour=str(rng.choice(list(COLOURS))),
            pattern=str(rng.choice(PATTERNS)),
            shape=str(rng.choice(SHAPES)),
            size=str(rng.choice(list(SIZES))),
        )
        if combinations == "any" or entity.is_held_out == (combinations == "unseen"):
            return entity


def _pairs(combinations: Combinations) -> set[tuple[str, str]]:
    """The (colour, shape) pairs that `_draw_entity` can give."""
    return {
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        for pattern in PATTERNS
        if combinations == "any" or Entity(colour, pattern, shape, "medium").is_held_out == (combinations == "unseen")
    }


def _draw_actors(rng: np.random.Generator, seconds: float, camera: Camera, combinations: Combinations) -> list[_Actor]:
    """Three tracks of objects that come and go, so that at most three are on screen at a time.

    No (colour, shape) comes twice: there are 64 of them (22 for "unseen"), and a long video that has shown
    them all shows no more objects.
    """
    actors: list[_Actor] = []
    shown: set[tuple[str, str]] = set()
    available = len(_pairs(combinations))
    around = rng.permutation(3)
    for track in range(3):
        clock = float(rng.uniform(-4, 8))
        angle = 2 * np.pi * (around[track] / 3) + float(rng.uniform(-0.4, 0.4))
        while clock < seconds - 4:
            start, end = max(clock, 0.0), min(clock + float(rng.uniform(6, 16)), seconds)
            clock = end + float(rng.uniform(3, 12))
            if end - start < 4:
                continue
            if len(shown) == available:
                break
            entity = _draw_entity(rng, combinations)
            while (entity.colour, entity.shape) in shown:
                entity = _draw_entity(rng, combinations)
            shown.add((entity.colour, entity.shape))
            radius = SIZES[entity.size] * float(rng.uniform(0.9, 1.1))
            still = rng.random() < camera.still_objects
            amplitude = 0.0 if still else float(rng.uniform(0.03, 0.1))
            speed = _uniform(rng, camera.object_speed)
            reach = 0.26 * float(rng.uniform(0.8, 1.1))
            actors.append(
                _Actor(
                    entity=entity,
                    start=start,
                    end=end,
                    radius=radius,
                    home=(reach * np.cos(angle), reach * np.sin(angle) * 0.9),
                    motion="still" if still else str(rng.choice(["orbit", "swing", "bounce"])),
                    amplitude=amplitude,
                    frequency=speed / (2 * np.pi * amplitude) if amplitude else 0.0,
                    phase=_uniform(rng, (0, 6.28)),
                    tilt=_uniform(rng, (-0.3, 0.3)),
                    # Smaller things are drawn later, so that a large one occludes only part of them.
                    depth=-radius + float(rng.uniform(0, 0.05)),
                )
            )
    return sorted(actors, key=lambda actor: actor.start)


def _query(rng: np.random.Generator, actor: _Actor) -> str:
    """A caption for one object; colour and shape are unique within a video, the rest is sometimes said."""
    return actor.entity.caption(pattern=bool(rng.random() < 0.6), size=bool(rng.random() < 0.4))


def _noise_texture(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """Periodic noise in [-1, 1] whose spectrum falls as frequency^-exponent."""
    spectrum = np.fft.rfft2(rng.standard_normal((_TEXTURE, _TEXTURE)))
    fy, fx = np.fft.fftfreq(_TEXTURE)[:, None], np.fft.rfftfreq(_TEXTURE)[None]
    frequency = np.sqrt(fx * fx + fy * fy)
    frequency[0, 0] = 1.0
    spectrum /= frequency**exponent
    spectrum[0, 0] = 0.0
    values = np.fft.irfft2(spectrum, s=(_TEXTURE, _TEXTURE))
    return np.clip(values / (2.5 * values.std()), -1, 1)


def _texture(rng: np.random.Generator, word: str) -> np.ndarray:
    """A periodic background: float32 [_TEXTURE, _TEXTURE, 3], muted so that objects stand out."""
    y, x = np.mgrid[0:_TEXTURE, 0:_TEXTURE].astype(np.float32)
    if word == "clouds":
        value = _noise_texture(rng, 1.7)
    elif word == "sand":
        value = 0.55 * _noise_texture(rng, 0.2) + 0.45 * _noise_texture(rng, 1.5)
    elif word == "leaves":
        value = np.tanh(6 * _noise_texture(rng, 1.2)) * 0.8
    elif word == "waves":
        bend = 3 * np.sin(2 * np.pi * x / 96) + 4 * _noise_texture(rng, 1.7)
        value = np.sin(2 * np.pi * (y + bend) / 32) * 0.8
    elif word == "tiles":
        value = np.where(((x // 32).astype(int) + (y // 32).astype(int)) % 2, 0.7, -0.7)
        value = value + 0.2 * _noise_texture(rng, 1.0)
    else:  # bricks
        row = (y // 24).astype(int)
        column = ((x + 24 * (row % 2)) // 48).astype(int) % 8
        value = rng.uniform(-0.5, 0.9, (16, 8))[row % 16, column]
        mortar = (y % 24 < 4) | ((x + 24 * (row % 2)) % 48 < 4)
        value = np.where(mortar, -1.0, value)
    base = rng.uniform(95, 160) + rng.uniform(-26, 26, 3)
    contrast = rng.uniform(0.4, 1.2) * 50 * (1 + rng.uniform(-0.25, 0.25, 3))
    return (base + value[..., None] * contrast).astype(np.float32)


def _lerp(texture: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Sample a periodic texture at fractional `positions` along `axis`."""
    low = np.floor(positions).astype(int)
    share = (positions - low).astype(np.float32)
    share = share[:, None, None] if axis == 0 else share[None, :, None]
    first = np.take(texture, low % texture.shape[axis], axis=axis)
    second = np.take(texture, (low + 1) % texture.shape[axis], axis=axis)
    second -= first
    second *= share
    first += second
    return first


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Approximate signed distance to a shape of radius 1 (negative inside), v pointing down."""
    if shape == "circle":
        return np.hypot(u, v) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72) - 0.23
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82
    if shape == "triangle":
        return np.maximum(v - 0.65, 0.866 * np.abs(u) - 0.5 * v - 0.5)
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 0.95, b - 0.3), np.maximum(a - 0.3, b - 0.95))
    if shape == "moon":
        return np.maximum(np.hypot(u, v) - 0.95, 0.82 - np.hypot(u - 0.5, v + 0.15))
    if shape == "star":
        fold = np.abs(np.mod(np.arctan2(u, -v), 2 * np.pi / 5) - np.pi / 5) / (np.pi / 5)
        return np.hypot(u, v) - 1.0 / (1.0 / 0.4 + fold * (1.0 / 1.05 - 1.0 / 0.4))
    lobes = np.minimum(np.hypot(u - 0.45, v + 0.3), np.hypot(u + 0.45, v + 0.3)) - 0.5  # heart
    tip = np.maximum(0.74 * np.abs(u) + 0.67 * v - 0.5, -v - 0.3)
    return np.minimum(lobes, tip)


def _pattern(pattern: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Share of the second tone in [0, 1] at each point."""
    if pattern == "striped":
        return np.clip(0.5 + 2.5 * np.sin(2 * np.pi * 1.5 * (u + 0.25 * v)), 0, 1)
    if pattern == "checkered":
        return np.clip(0.5 + 4 * np.sin(2 * np.pi * 0.95 * u) * np.sin(2 * np.pi * 0.95 * v), 0, 1)
    if pattern == "dotted":
        near = np.hypot(np.mod(u * 1.6 + 0.5, 1) - 0.5, np.mod(v * 1.6 + 0.5, 1) - 0.5)
        return np.clip((0.3 - near) * 8, 0, 1)
    return np.zeros(np.broadcast_shapes(u.shape, v.shape))
