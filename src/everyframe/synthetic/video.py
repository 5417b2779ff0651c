"""One procedural video: what is on screen at every time, frames on demand, files through a real codec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from everyframe.synthetic.pictures import TEXTURE_SPAN, lerp, paint_oval, paint_shape
from everyframe.synthetic.scene import (
    COLOURS,
    SPLITS,
    STYLES,
    Actor,
    Combinations,
    Entity,
    Event,
    Figure,
    Shot,
    Style,
    draw_actors,
    draw_figure,
    draw_shots,
    query_for,
)


class SyntheticVideo:
    """One procedural video: known content at every time, frames on demand, files through a real codec.

    seed: everything follows from it. seconds: length. style: how camera and objects move, a key of SPLITS
    (drawn from the seed among the four STYLES when None). combinations: "seen" and "unseen" restrict objects
    to the (colour, pattern, shape) triples that the bundled model's training did / did not show.
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
        if style is not None and style not in SPLITS:
            raise ValueError(f"style must be one of {', '.join(SPLITS)}, got {style!r}")
        if combinations not in ("seen", "unseen", "any"):
            raise ValueError(f"combinations must be seen, unseen or any, got {combinations!r}")
        self.seed, self.seconds, self.fps = seed, float(seconds), float(fps)
        self.width, self.height = size
        rng = np.random.default_rng([seed, 7])
        self.style: str = style or str(rng.choice(list(STYLES)))
        camera = SPLITS[self.style]
        self._shots = draw_shots(rng, self.seconds, camera)
        self._actors = draw_actors(rng, self.seconds, camera, combinations)
        # Drawing Gaussian noise per frame would cost more than the picture; slices of one bank look alike.
        self._noise = rng.standard_normal(3 * self.width * self.height + 65536).astype(np.float32)
        self.events = [Event(query_for(rng, actor), actor.start, actor.end, actor.entity) for actor in self._actors]
        self._figure = draw_figure(rng) if camera.figure else None

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
        if self._figure is not None:
            self._draw_figure(picture, self._figure, t)
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

    def _shot(self, t: float) -> Shot:
        return next((shot for shot in self._shots if t < shot.end), self._shots[-1])

    def _jitter(self, shot: Shot, t: float) -> tuple[float, float]:
        angle = 2 * np.pi * shot.shake_rate * t
        return shot.shake * np.sin(angle) * np.cos(0.37 * angle), shot.shake * np.sin(0.73 * angle + 1.0)

    def _zoom(self, shot: Shot, t: float) -> float:
        return 1.0 + shot.zoom * np.sin(0.9 * (t - shot.start))

    def _background(self, shot: Shot, t: float) -> np.ndarray:
        zoom = self._zoom(shot, t)
        dx, dy = self._jitter(shot, t)
        elapsed = t - shot.start

        def axis(count: int, origin: float, speed: float, jitter: float) -> np.ndarray:
            centred = (np.arange(count) + 0.5 - count / 2) / self.height / zoom
            return (centred + origin + speed * elapsed - jitter) * TEXTURE_SPAN

        rows = axis(self.height, shot.origin[1], shot.velocity[1], dy)
        columns = axis(self.width, shot.origin[0], shot.velocity[0], dx)
        return lerp(lerp(shot.texture, rows, 0), columns, 1)

    def _draw(self, picture: np.ndarray, actor: Actor, shot: Shot, t: float) -> None:
        zoom = self._zoom(shot, t)
        x, y = actor.position(t)
        if shot.turn:
            cos, sin = np.cos(shot.turn), np.sin(shot.turn)
            x, y = cos * x - sin * y, sin * x + cos * y
        dx, dy = self._jitter(shot, t)
        paint_shape(
            picture,
            (self.width / 2 + (x * zoom + dx) * self.height, self.height / 2 + (y * zoom + dy) * self.height),
            actor.radius * zoom * actor.scale(t) * self.height,
            shape=actor.entity.shape,
            pattern=actor.entity.pattern,
            colour=COLOURS[actor.entity.colour],
            tilt=actor.tilt,
        )

    def _draw_figure(self, picture: np.ndarray, figure: Figure, t: float) -> None:
        sway, nod = (depth * np.sin(2 * np.pi * rate * t + phase) for depth, rate, phase in (figure.sway, figure.nod))
        unit = figure.size * self.height  # pixels; all lengths below are in units, from the resting chin
        chin = self.width / 2 + figure.x * self.height, 0.62 * self.height
        y = ((np.arange(self.height) + 0.5 - chin[1]) / unit)[:, None]
        x = ((np.arange(self.width) + 0.5 - chin[0]) / unit)[None, :]
        lean = 0.6 * sway  # the shoulders move less than the head
        # A plain shirt would change at its edges only; the squares are wider than a patch, which would average them.
        squares = np.clip(
            2 * np.sin(2 * np.pi * (x - lean) / 0.2) + 2 * np.sin(2 * np.pi * (y - 0.3 * nod) / 0.2), -1, 1
        )
        mouth = 0.006 + 0.03 * abs(np.sin(np.pi * figure.speech * t))
        for right, down, wide, high, colour in (
            (lean, 0.45, 0.4, 0.4, np.array(figure.shirt) + 28 * squares[..., None]),
            (sway, nod - 0.2, 0.165, 0.22, figure.hair),
            (sway, nod - 0.15, 0.135, 0.175, figure.skin),
            (sway - 0.055, nod - 0.18, 0.018, 0.014, figure.hair),
            (sway + 0.055, nod - 0.18, 0.018, 0.014, figure.hair),
            (sway, nod - 0.06, 0.045, mouth, (96, 40, 40)),
        ):
            centre = chin[0] + right * unit, chin[1] + down * unit
            paint_oval(picture, centre, (wide * unit, high * unit), np.asarray(colour, np.float32))


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
