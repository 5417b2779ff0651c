"""Which features of which video: a key of content and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from everyframe.features import VideoFeatures
from everyframe.pipeline.resume import source_name

# What features say of one video or of the program, not of how they were asked for.
_NOT_ASKED = ("version", "damage", "segments", "motion_source", "gflops_per_frame", "gflops_share")
_MODEL_FACTS = ("weights_sha256", "dtype", "preprocess")


def video_key(source: str, identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Which features of which video: equal for equal content and settings, wherever the video lies.

    identity: `everyframe.video.identity.identity(source)`; where it is empty, as for http://, the address counts.
    provenance: `everyframe.pipeline.provenance_of(...)`: its model's weights and all settings count, the version of
    everyframe does not. The text is "VIDEO-SETTINGS": keys that begin alike are of one video.
    """
    return f"{video_part(source, identity)}-{settings_part(provenance)}"


def key_of(features: VideoFeatures) -> str:
    """The `video_key` of the video that features were made from, with the settings they were made with."""
    provenance = {"model": features.model, "settings": features.settings}
    return video_key(str(features.video.get("path", "")), features.video, provenance)


def video_part(source: str, identity: Mapping[str, Any]) -> str:
    """The first part of a `video_key`. identity: or more, such as all facts of a video that was read."""
    if identity.get("fingerprint"):
        return _hash([identity.get("size_bytes"), identity["fingerprint"]])[:24]
    return _hash(source_name(source))[:24]


def settings_part(provenance: Mapping[str, Any]) -> str:
    """The second part of a `video_key`."""
    model = {name: provenance["model"].get(name) for name in _MODEL_FACTS}
    settings = {name: value for name, value in provenance["settings"].items() if name not in _NOT_ASKED}
    return _hash([model, settings])[:12]


def same_video(key: str, other: str) -> bool:
    """Are these keys of one video, whatever the settings?"""
    return key.partition("-")[0] == other.partition("-")[0]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain_numbers(value), sort_keys=True).encode()).hexdigest()


def _plain_numbers(value: Any) -> Any:
    """3.0 and 3 are one rate; a tuple is what JSON makes of it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain_numbers(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_numbers(each) for each in value]
    return value
