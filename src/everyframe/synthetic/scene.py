"""What a synthetic video consists of, drawn from a seed: words, objects that come and go, shots and their camera."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from everyframe.synthetic.pictures import texture

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
Style = Literal["still", "handheld", "pan", "action", "lecture", "talking_head", "cuts"]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """How a style moves: speeds in frame heights per second, zoom as a share, frequencies in Hz."""

    pan: tuple[float, float]
    shake: tuple[float, float]
    zoom: tuple[float, float]
    object_speed: tuple[float, float]
    still_objects: float  # probability that an object does not move at all
    flicker: tuple[float, float]  # largest depth and rate (Hz) of the brightness change
    noise: tuple[float, float] = (0, 5)  # standard deviation of the sensor noise in levels of 255
    pole: float = 0.25  # probability that a post stands in front of a shot
    shot_seconds: tuple[float, float] | None = None  # length of a shot; None: 8 to 22 s, up to 30 s for the last
    figure: bool = False  # a speaker sits before the camera
    turn: float = 0.0  # largest angle by which a cut turns the places of the objects around the centre


# What the bundled model was trained on, and what a video without a given style is drawn from: both follow from
# the order of the four, from their numbers and from the order of the draws below, so none of these may change.
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

# All styles, one split of a benchmark each. The bundled model never saw the last three.
SPLITS: dict[str, Camera] = {
    **STYLES,
    "lecture": Camera(
        pan=(0, 0),
        shake=(0, 0),
        zoom=(0, 0),
        object_speed=(0, 0.05),
        still_objects=0.85,
        flicker=(0, 0),
        noise=(0, 1),
        pole=0.0,
        shot_seconds=(15, 45),
    ),
    "talking_head": Camera(
        pan=(0, 0),
        shake=(0, 0),
        zoom=(0, 0),
        object_speed=(0, 0.05),
        still_objects=0.8,
        flicker=(0.02, 0.05),
        noise=(0, 3),
        pole=0.0,
        shot_seconds=(15, 45),
        figure=True,
    ),
    "cuts": Camera(
        pan=(0, 0.12),
        shake=(0, 0.01),
        zoom=(0, 0.05),
        object_speed=(0.02, 0.2),
        still_objects=0.3,
        flicker=(0.1, 0.1),
        pole=0.1,
        shot_seconds=(1, 4),
        turn=np.pi,
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
    entity: Entity


@dataclass(frozen=True, kw_only=True)
class Actor:
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
class Shot:
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
    turn: float  # angle by which the objects' places are turned around the picture's centre


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A speaker's head and shoulders behind the objects: no caption names it, and it never rests."""

    x: float  # relative to the picture's centre
    size: float  # 1: the head is 0.4 frame heights high
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    shirt: tuple[float, float, float]
    sway: tuple[float, float, float]  # amplitude in frame heights, rate (Hz), phase
    nod: tuple[float, float, float]
    speech: float  # how often the mouth opens, Hz


def _uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def _draw_bounds(rng: np.random.Generator, seconds: float, camera: Camera) -> list[float]:
    bounds = [0.0]
    if camera.shot_seconds is not None:
        low, high = camera.shot_seconds
        while (left := seconds - bounds[-1]) > high:  # leaves the last shot at least `low`
            bounds.append(bounds[-1] + _uniform(rng, (low, min(high, left - low))))
        return [*bounds, seconds]
    while seconds - bounds[-1] > 30 or (seconds - bounds[-1] > 16 and rng.random() < 0.7):
        bounds.append(min(bounds[-1] + float(rng.uniform(8, 22)), seconds - 6))
    return [*bounds, seconds]


def draw_shots(rng: np.random.Generator, seconds: float, camera: Camera) -> list[Shot]:
    bounds = _draw_bounds(rng, seconds, camera)
    backgrounds = rng.permutation(len(BACKGROUNDS))
    places: dict[str, np.ndarray] = {}
    shots = []
    for index, (start, end) in enumerate(pairwise(bounds)):
        word = BACKGROUNDS[backgrounds[index % len(BACKGROUNDS)]]
        speed, heading = _uniform(rng, camera.pan), _uniform(rng, (0, 2 * np.pi))
        # Cut fast, a film comes back to its places; hundreds of textures would also fill the memory.
        if camera.shot_seconds is None or word not in places:
            places[word] = texture(rng, word)
        shots.append(
            Shot(
                start=start,
                end=end,
                background=word,
                texture=places[word],
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
                noise=_uniform(rng, camera.noise),
                pole=_draw_pole(rng, camera.pole),
                turn=_uniform(rng, (-camera.turn, camera.turn)) if camera.turn else 0.0,
            )
        )
    return shots


def _draw_pole(rng: np.random.Generator, probability: float) -> tuple[float, float] | None:
    return (_uniform(rng, (-0.6, 0.5)), _uniform(rng, (0.04, 0.09))) if rng.random() < probability else None


def draw_figure(rng: np.random.Generator) -> Figure:
    light = _uniform(rng, (0.45, 1.0))
    shirt = _uniform(rng, (70, 150))
    return Figure(
        x=_uniform(rng, (-0.3, 0.3)),
        size=_uniform(rng, (0.9, 1.2)),
        skin=(225 * light, 180 * light, 150 * light),
        hair=(70 * light, 52 * light, 40 * light),
        shirt=(shirt, shirt + _uniform(rng, (-15, 15)), shirt + _uniform(rng, (-15, 15))),
        sway=(_uniform(rng, (0.03, 0.07)), _uniform(rng, (0.2, 0.5)), _uniform(rng, (0, 6.28))),
        nod=(_uniform(rng, (0.01, 0.03)), _uniform(rng, (0.4, 1.0)), _uniform(rng, (0, 6.28))),
        speech=_uniform(rng, (2, 4)),
    )


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


def draw_actors(rng: np.random.Generator, seconds: float, camera: Camera, combinations: Combinations) -> list[Actor]:
    """Three tracks of objects that come and go, so that at most three are on screen at a time.

    No (colour, shape) comes twice: there are 64 of them (22 for "unseen"), and a long video that has shown
    them all shows no more objects.
    """
    actors: list[Actor] = []
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
                Actor(
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


def query_for(rng: np.random.Generator, actor: Actor) -> str:
    """A caption for one object; colour and shape are unique within a video, the rest is sometimes said."""
    return actor.entity.caption(pattern=bool(rng.random() < 0.6), size=bool(rng.random() < 0.4))
