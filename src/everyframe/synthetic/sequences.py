"""Short videos that no single frame tells apart: what comes first, where something moves, what appears or turns.

Every video has a *partner*, the same frames in reverse order, whose caption says the opposite: "a red circle moves
left" and "... moves right". So whatever reads frames one by one and forgets their order (a mean of their features, the
best frame) gives both the same, and a choice between the two is a coin toss. Objects, colours and textures are those
of the rest of this world.

    n frames; times are shares of the video in [0, 1]; lengths are in frame heights, from the picture's centre
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from everyframe.synthetic.pictures import TEXTURE_SPAN, lerp, paint_shape, texture
from everyframe.synthetic.scene import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    SHAPES,
    Combinations,
    Entity,
)

NUM_FRAMES = 78
"""77 = 7 * 11: the 8 or 12 frames that lie evenly in a video are then those of its partner, in reverse order."""
_FADE = 0.03  # share of the video in which an object grows in or shrinks away


@dataclass(frozen=True, kw_only=True)
class Act:
    """What one object does: shown during [start, end); place, radius and colour go from one value to another."""

    entity: Entity
    start: float = -1.0
    end: float = 2.0
    places: tuple[tuple[float, float], tuple[float, float]]
    radii: tuple[float, float]
    colours: tuple[str, str]
    move: tuple[float, float] = (0.0, 1.0)
    """When the change begins and ends."""

    def progress(self, t: float) -> float:
        """How much of the change is done: 0 to 1, slow at both ends and its own mirror image."""
        share = float(np.clip((t - self.move[0]) / (self.move[1] - self.move[0]), 0, 1))
        return share * share * (3 - 2 * share)

    def scale(self, t: float) -> float:
        return float(np.clip(min(t - self.start, self.end - t) / _FADE + 0.5, 0, 1))


@dataclass(frozen=True)
class Story:
    """The acts of a video and the captions of its two directions."""

    acts: tuple[Act, ...]
    forward: str
    backward: str


Teller = Callable[[np.random.Generator, Callable[[], Entity]], Story]
"""(generator, something that draws an object unlike those drawn before) -> what happens"""


def _still(rng: np.random.Generator, entity: Entity, centre: tuple[float, float] = (0.0, 0.0), **changes: Any) -> Act:
    """An object near `centre` that does nothing but what `changes` says."""
    place = centre[0] + float(rng.uniform(-0.14, 0.14)), centre[1] + float(rng.uniform(-0.2, 0.2))
    radius = float(rng.uniform(0.15, 0.2))
    usual = {"places": (place, place), "radii": (radius, radius), "colours": (entity.colour, entity.colour)}
    return Act(entity=entity, **{**usual, **changes})


def _window(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0.02, 0.2)), float(rng.uniform(0.8, 0.98))


def _sideways(rng: np.random.Generator, draw: Callable[[], Entity]) -> Story:
    entity, reach, y = draw(), float(rng.uniform(0.22, 0.32)), float(rng.uniform(-0.25, 0.25))
    act = _still(rng, entity, places=((reach, y), (-reach, y)), move=_window(rng))
    return Story((act,), f"{_name(entity)} moves left", f"{_name(entity)} moves right")


def _upright(rng: np.random.Generator, draw: Callable[[], Entity]) -> Story:
    entity, reach, x = draw(), float(rng.uniform(0.22, 0.32)), float(rng.uniform(-0.25, 0.25))
    act = _still(rng, entity, places=((x, reach), (x, -reach)), move=_window(rng))
    return Story((act,), f"{_name(entity)} moves up", f"{_name(entity)} moves down")


def _size(rng: np.random.Generator, draw: Callable[[], Entity]) -> Story:
    entity = draw()
    radii = float(rng.uniform(0.07, 0.1)), float(rng.uniform(0.28, 0.36))
    act = _still(rng, entity, radii=radii, move=_window(rng))
    return Story((act,), f"{_name(entity)} grows", f"{_name(entity)} shrinks")


def _presence(rng: np.random.Generator, draw: Callable[[], Entity]) -> Story:
    entity = draw()
    act = _still(rng, entity, start=float(rng.uniform(0.3, 0.7)))
    return Story((act,), f"{_name(entity)} appears", f"{_name(entity)} disappears")


def _colour(rng: np.random.Generator, draw: Callable[[], Entity]) -> Story:
    entity = other = draw()
    while other.colour == entity.colour or (other.is_held_out and not entity.is_held_out):
        other = replace(entity, colour=str(rng.choice(list(COLOURS))))
    middle = float(rng.uniform(0.35, 0.65))
    act = _still(rng, entity, colours=(entity.colour, other.colour), move=(middle - 0.1, middle + 0.1))
    thing = replace(entity, colour="").caption(size=False)
    return Story(
        (act,),
        f"{thing} turns from {entity.colour} to {other.colour}",
        f"{thing} turns from {other.colour} to {entity.colour}",
    )


def _order(rng: np.random.Generator, draw: Callable[[], Entity]) -> Story:
    one, two = draw(), draw()
    middle = float(rng.uniform(0.38, 0.62))
    acts = _still(rng, one, end=middle - 0.04), _still(rng, two, start=middle + 0.04)
    return Story(acts, f"{_name(one)}, then {_name(two)}", f"{_name(two)}, then {_name(one)}")


def _exchange(rng: np.random.Generator, draw: Callable[[], Entity]) -> Story:
    one, two = draw(), draw()
    side = float(rng.choice([-0.23, 0.23]))
    acts = (
        _still(rng, one, (side, 0), start=float(rng.uniform(0.2, 0.4))),
        _still(rng, two, (-side, 0), end=float(rng.uniform(0.6, 0.8))),
    )
    return Story(
        acts,
        f"{_name(one)} enters, then {_name(two)} leaves",
        f"{_name(two)} enters, then {_name(one)} leaves",
    )


CHANGES: dict[str, Teller] = {
    "sideways": _sideways,
    "upright": _upright,
    "size": _size,
    "presence": _presence,
    "colour": _colour,
    "order": _order,
    "exchange": _exchange,
}
"""What can happen; each is its own opposite when time runs backward."""


def _name(entity: Entity) -> str:
    return entity.caption(size=False)


@dataclass(frozen=True)
class SequenceVideo:
    """One direction of one story; `partner` is the other. Everything follows from the seed.

    change: a key of CHANGES, by default they go round with the seed. combinations: "seen" and "unseen" restrict the
    (colour, pattern, shape) triples to those that the bundled model's training did / did not show. noise: standard
    deviation of the sensor noise in levels of 255.
    """

    seed: int
    backward: bool = False
    change: str | None = None
    combinations: Combinations = "any"
    num_frames: int = NUM_FRAMES
    fps: float = 12.0
    size: tuple[int, int] = (160, 120)
    noise: float = 2.0
    story: Story = field(init=False, repr=False, compare=False)
    background: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_frames < 2 or not 0 < self.fps < np.inf or min(self.size) < 1:
            raise ValueError(
                "num_frames must be at least 2, fps finite and > 0 and size (width, height) in pixels, got "
                f"{self.num_frames}, {self.fps} and {self.size}"
            )
        if self.change is not None and self.change not in CHANGES:
            raise ValueError(f"change must be one of {', '.join(CHANGES)}, got {self.change!r}")
        if self.combinations not in ("seen", "unseen", "any"):
            raise ValueError(f"combinations must be seen, unseen or any, got {self.combinations!r}")
        change = self.change or list(CHANGES)[self.seed % len(CHANGES)]
        rng = np.random.default_rng([self.seed, 11])
        shown: list[Entity] = []

        def draw() -> Entity:
            while True:
                entity = Entity(str(rng.choice(list(COLOURS))), str(rng.choice(PATTERNS)), str(rng.choice(SHAPES)), "")
                fits = self.combinations == "any" or entity.is_held_out == (self.combinations == "unseen")
                if fits and all((entity.colour, entity.shape) != (other.colour, other.shape) for other in shown):
                    shown.append(entity)
                    return entity

        story = CHANGES[change](rng, draw)
        background = str(rng.choice(BACKGROUNDS))
        for name, value in (("change", change), ("story", story), ("background", background)):
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        return f"sequence-{self.seed:05d}-{'backward' if self.backward else 'forward'}"

    @property
    def caption(self) -> str:
        return self.story.backward if self.backward else self.story.forward

    @property
    def partner(self) -> SequenceVideo:
        """The same frames in reverse order, with the caption that then holds."""
        return replace(self, backward=not self.backward)

    def frame(self, index: int) -> np.ndarray:
        """Frame 0 .. n-1 of this direction: uint8 [H, W, 3] RGB."""
        if not 0 <= index < self.num_frames:
            raise ValueError(f"index must be from 0 to {self.num_frames - 1}, got {index}")
        own = self.num_frames - 1 - index if self.backward else index
        t = own / (self.num_frames - 1)
        picture = self._still.copy()
        width, height = self.size
        for act in self.story.acts:
            done = act.progress(t)
            x, y = ((1 - done) * before + done * after for before, after in zip(*act.places, strict=True))
            before, after = (np.array(COLOURS[colour], float) for colour in act.colours)
            red, green, blue = (int(level) for level in (1 - done) * before + done * after)
            paint_shape(
                picture,
                (width / 2 + x * height, height / 2 + y * height),
                ((1 - done) * act.radii[0] + done * act.radii[1]) * act.scale(t) * height,
                shape=act.entity.shape,
                pattern=act.entity.pattern,
                colour=(red, green, blue),
            )
        if self.noise > 0:
            rng = np.random.default_rng([self.seed, 13, own])  # the same for both directions
            picture += self.noise * rng.standard_normal(picture.shape, dtype=np.float32)
        return np.clip(picture + 0.5, 0, 255).astype(np.uint8)

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, `fps` a second."""
        return (self.frame(index) for index in range(self.num_frames))

    def write(self, path: str | Path, *, codec: str = "libx264") -> None:
        """Encode the video to `path` (container from the suffix) with any encoder FFmpeg has."""
        from everyframe.video import write_video

        write_video(path, self.frames(), fps=self.fps, codec=codec)

    @cached_property
    def _still(self) -> np.ndarray:
        """The background: float32 [H, W, 3]. Drawn when it is needed, as captions alone need none."""
        rng = np.random.default_rng([self.seed, 17])
        width, height = self.size
        image, origin = texture(rng, self.background), rng.uniform(0, 2, 2)
        rows, columns = (
            ((np.arange(count) + 0.5) / height + start) * TEXTURE_SPAN
            for count, start in zip((height, width), origin, strict=True)
        )
        return lerp(lerp(image, rows, 0), columns, 1)


def synthesize_sequences(
    out: str | Path,
    *,
    train: int = 128,
    test: int = 56,
    seed: int = 1,
    codec: str = "libx264",
    **options: Any,
) -> Iterator[SequenceVideo]:
    """Write `train` and `test` mp4 files, `train.json` and `test.json` under `out`; iterate to have it done.

    The JSON files are lists of {"video", "caption", "change", "partner"}, which `everyframe evaluate retrieval` and
    `everyframe finetune` read; a video and its partner, the same frames in reverse order, follow one another. No
    caption comes twice in a file, and the objects of the test (colour, pattern and shape together) are none of the
    training's; of a change of colour, one end is not. options: those of `SequenceVideo`. Yields each video once its
    file is written. Raises ValueError for odd numbers of videos.
    """
    for name, value in (("train", train), ("test", test)):
        if value < 0 or value % 2:
            raise ValueError(f"{name} must be an even number of videos, as each has its partner, got {value}")
    if not train + test:
        raise ValueError("train and test are both 0, so there is nothing to write")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder, {"train": train // 2, "test": test // 2}, seed, codec, options)


def _write(
    folder: Path, pairs: dict[str, int], seed: int, codec: str, options: dict[str, Any]
) -> Iterator[SequenceVideo]:
    for split, wanted in pairs.items():
        lines: list[dict[str, str]] = []
        first = seed * 10_000 + (5_000 if split == "test" else 0)
        for video in draw_pairs(wanted, first, "seen" if split == "train" else "unseen", **options):
            for one in (video, video.partner):
                one.write(folder / f"{one.name}.mp4", codec=codec)
                line = {"video": f"{one.name}.mp4", "caption": one.caption, "change": str(one.change)}
                lines.append({**line, "partner": f"{one.partner.name}.mp4"})
                yield one
        if wanted:
            (folder / f"{split}.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


def draw_pairs(pairs: int, first_seed: int, combinations: Combinations, **options: Any) -> list[SequenceVideo]:
    """The forward videos of `pairs` pairs whose captions all differ; changes go round."""
    kinds = list(CHANGES)
    found: list[SequenceVideo] = []
    captions: set[str] = set()
    seed = first_seed
    while len(found) < pairs:
        kind = options.get("change") or kinds[len(found) % len(kinds)]
        video = SequenceVideo(seed, combinations=combinations, **{**options, "change": kind})
        seed += 1
        if seed - first_seed >= 5_000:
            raise ValueError(f"there are no {pairs} different captions to draw; ask for fewer videos")
        if not captions & {video.caption, video.partner.caption}:
            captions |= {video.caption, video.partner.caption}
            found.append(video)
    return found
