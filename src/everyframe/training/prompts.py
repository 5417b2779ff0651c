"""A bank of sentences about everyday video, for training and evaluating where no captions are at hand."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

# Word lists: who, what they do (verbs in their base form), where; things, places and events with the views they allow.
_WORDS = Path(__file__).resolve().parents[1] / "assets" / "prompt_words.json"

_PLURAL = ("two ", "several ", "many ")
_DOUBLED = {"chop", "cut", "dig", "drop", "flip", "get", "grab", "hit", "hop", "hug", "jog", "pat", "pet", "put", "run"}
_DOUBLED |= {"set", "sit", "spin", "stir", "stop", "swim", "trim", "wag"}
# How many of each kind are taken: about in proportion to how often such things are filmed.
_SHARES = {
    "adults": 800,
    "anyone": 440,
    "children": 160,
    "animals": 420,
    "vehicles": 250,
    "sports": 230,
    "work": 240,
    "music": 110,
    "cooking": 160,
    "places": 420,
    "rooms": 110,
    "things": 180,
    "events": 190,
    "faces": 160,
    "text": 80,
    "rest": 300,
}


def prompt_bank(path: str | Path | None = None) -> list[str]:
    """Sentences that videos are compared with: `path`'s lines, or about 4,000 general English ones.

    The general bank says what everyday video shows: people doing things in places, animals, vehicles, sport, work,
    music, cooking, landscapes and cities in every light, rooms, objects, events, faces, clothes, text on screens, and
    the camera. It is made from word lists written for everyframe (no data set's captions), combined only where
    the combination makes sense: every subject has its own actions, every action its own places. Of each kind a
    share is drawn with a fixed seed, so that it is the same list on every machine: no sentence comes twice, and
    none ends in a full stop.

    path: a UTF-8 file with one prompt per line, in your own words; blank lines and lines that start with `#` are
    skipped, and of equal lines the first counts.

    Raises ValueError when the file is missing, not UTF-8, or has fewer than 2 prompts.
    """
    if path is None:
        return _general()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: the file of prompts cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not a list of prompts in UTF-8 ({error.reason})") from error
    stripped = (line.strip() for line in lines)
    prompts = list(dict.fromkeys(line for line in stripped if line and not line.startswith("#")))
    if len(prompts) < 2:
        raise ValueError(f"{path}: needs at least 2 different prompts, one per line, got {len(prompts)}")
    return prompts


def _general() -> list[str]:
    chosen: dict[str, None] = {}
    for kind, prompts in _kinds(json.loads(_WORDS.read_text(encoding="utf-8"))):
        distinct = list(dict.fromkeys(prompts))
        # A seed of text is hashed the same way on every machine.
        few = len(distinct) <= _SHARES[kind]
        chosen.update(dict.fromkeys(distinct if few else random.Random(kind).sample(distinct, _SHARES[kind])))
    return list(chosen)


def _kinds(words: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[str]]]:
    """Each kind with all its sentences."""
    people = words["people"]
    for kind in ("adults", "anyone", "children"):
        yield kind, _doing(people[kind], words[kind])
    yield "animals", _acting(words["animals"], ["", "in slow motion", "seen from behind", "from a low angle"])
    yield "vehicles", _acting(words["vehicles"], ["", "at night", "at dusk", "in slow motion", "seen from a distance"])
    yield "sports", _acting(words["sports"], ["", "in slow motion", "seen from behind", "during a competition"])
    yield "work", _acting(words["work"], ["", "seen from the side"])
    playing = [f"play the {instrument}" for instrument in words["instruments"]]
    yield "music", _doing(people["players"], dict.fromkeys(words["music_places"], playing))
    yield "cooking", _cooking(words)
    yield "places", _places(words)
    yield "rooms", _joined(words["room_states"], words["rooms"])
    yield "things", _things(words)
    yield "events", _events(words)
    yield "faces", _faces(words)
    yield "text", _viewed(words["words"], words["written"])
    yield (
        "rest",
        [
            *words["interactions"],
            *words["screens"],
            *words["weather"],
            *_joined(["how to", "a tutorial that shows how to", "someone shows how to"], words["how_to"]),
            *_joined(["slow motion of"], words["details"]),
        ],
    )


def _cooking(words: Mapping[str, Any]) -> Iterator[str]:
    views = ["hands", "close-up of hands"]
    yield from _joined(views, ["chopping", "slicing"], words["chopped"])
    yield from _joined(words["fried"], ["sizzling in a pan", "frying in oil"])
    yield from _joined(["someone mixing"], words["mixed"], ["in a bowl", "with a whisk"])
    served = ["", "close-up of", "a table with"]
    yield from _joined([*served, "someone eating"], words["dishes"])
    yield from _joined([*served, "someone drinking"], words["drinks"])


def _places(words: Mapping[str, Any]) -> Iterator[str]:
    yield from _joined([*words["scenery"], *words["urban"]], words["light"])
    yield from _joined(words["summer_scenery"], [light for light in words["light"] if "snow" not in light])
    yield from _joined(words["shots"], [*words["scenery"], *words["summer_scenery"], *words["urban"]])
    yield from _joined(["fish over", "a diver above", "underwater video of"], ["a coral reef", "a shipwreck"])


def _things(words: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{_article(colour)} {colour} {thing}" for colour, thing in product(words["colours"], words["things"]))
    yield from _joined(["close-up of"], words["details"])
    yield from (f"a hand picking up {_article(thing)} {thing}" for thing in words["small_things"])


def _events(words: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("event", "meeting", "incident"):
        yield from _viewed(words[f"{kind}s"], words[f"{kind}_views"])


def _faces(words: Mapping[str, Any]) -> Iterator[str]:
    grown = [who for who in words["people"]["faces"] if who != "a baby"]
    yield from _joined(["", "close-up of"], grown, words["moods"])
    yield from _joined(
        ["", "close-up of"], ["a baby"], ["smiling", "laughing", "crying", "yawning", "looking surprised"]
    )
    yield from _joined(["a man wearing", "a woman wearing", "someone wearing"], words["clothes"])
    yield from _joined(["a woman wearing", "a girl in", "a dancer in"], words["dresses"])


def _viewed(subjects: Sequence[str], views: Sequence[str]) -> Iterator[str]:
    return (view.replace("X", subject) for subject, view in product(subjects, views))


def _joined(*parts: Sequence[str]) -> Iterator[str]:
    """All combinations of one phrase from each list."""
    return (" ".join(phrase for phrase in phrases if phrase) for phrases in product(*parts))


def _doing(subjects: Sequence[str], actions: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for where, doings in actions.items():
        for who, doing in product(subjects, doings):
            yield from _told(who, doing, where)


def _acting(groups: Sequence[Mapping[str, Sequence[str]]], endings: Sequence[str]) -> Iterator[str]:
    for group in groups:
        for who, doing, ending in product(group["who"], group["do"], endings):
            yield from _told(who, doing, ending)


def _told(who: str, doing: str, where: str) -> Iterator[str]:
    """The action as a sentence and as a caption: "a dog runs on a beach", "a dog running on a beach"."""
    verb, _, rest = doing.partition(" ")
    present = verb if who.startswith(_PLURAL) else _third_person(verb)
    for form in (present, _participle(verb)):
        yield " ".join(part for part in (who, form, rest, where) if part)


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def _participle(verb: str) -> str:
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "ye")):
        return verb[:-1] + "ing"
    return (verb + verb[-1] if verb in _DOUBLED else verb) + "ing"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
