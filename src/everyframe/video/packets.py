"""What a packet says of its picture without being decoded: do others refer to it, can decoding begin there?

    H.264, HEVC      from the headers of its NAL units
    MPEG-1/2, 4      from the type in the picture's header
    VP8, VP9, AV1,   a key packet resets everything; whether others refer to the rest is not looked up
    intra-only

Whatever is unusual (lengths that do not add up, extensions, layers) counts as needed by others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_START = b"\0\0\1"
_NOT_CODED_BYTES = 8  # a "not coded" picture of MPEG-4 is no longer than that
_KEY_RESETS = frozenset({"vp9", "av1", "mjpeg", "prores", "dnxhd"})


@dataclass(frozen=True)
class Role:
    """What a packet is to those after it, in decoding order."""

    disposable: bool = False
    """No other picture refers to this one."""
    restarts: bool = False
    """No picture that is shown after this one refers to one before it."""
    closed: bool = False
    """Nor does one that is decoded after it but shown before it."""
    flush: bool = False
    """A decoder that jumps here from elsewhere must forget what it knows first."""
    parameters: tuple[bytes, ...] = ()
    """Sets that hold for packets to come, too."""
    unshown: bool = False
    """It shows no picture, or may not: its decoder alone can tell."""


NEEDED = Role()


class Roles:
    """Tells the roles of a stream's packets; `supported` says whether it can tell any."""

    def __init__(self, codec: str, extradata: bytes | None):
        self._length = 0  # bytes of the number before each unit; 0: start codes separate them
        self._sublayers = 0  # of HEVC; 0: not known
        look: dict[str, Callable[[Any], Role]] = {
            "h264": self._h264,
            "hevc": self._hevc,
            "mpeg1video": _mpeg2,
            "mpeg2video": _mpeg2,
            "mpeg4": _mpeg4,
            "vp8": _vp8,
            **dict.fromkeys(_KEY_RESETS, _key),
        }
        self._look = look.get(codec)
        self.supported = self._look is not None
        self._parameters: set[bytes] = set()  # those that the decoder was given
        if codec in ("h264", "hevc") and extradata:
            self._read_header(codec, extradata)

    def of(self, packet: Any) -> Role:
        return self._look(packet) if self._look is not None else NEEDED

    def learn(self, packet: Any) -> None:
        """A packet that goes to the decoder, with its parameters."""
        self._parameters.update(self.of(packet).parameters)

    def is_news(self, role: Role) -> bool:
        """Has a packet parameters that the decoder does not know yet?"""
        return not self._parameters.issuperset(role.parameters)

    def _read_header(self, codec: str, data: bytes) -> None:
        """Learn from an avcC or hvcC record, or from bare units."""
        try:
            if data[0] == 1:
                self._length = (data[4 if codec == "h264" else 21] & 3) + 1
                self._parameters = set(_avc_sets(data) if codec == "h264" else _hevc_sets(data))
            else:
                self._parameters = {unit.rstrip(b"\0") for unit in _units(data, 0) or ()}
        except IndexError:  # a header that ends early: nothing is known, and nothing in packets is known from it
            self._parameters = set()
        if codec == "hevc":
            for unit in self._parameters - {b""}:
                self._learn_sublayers(unit)

    def _h264(self, packet: Any) -> Role:
        units = _units(bytes(packet), self._length)
        if not units:
            return NEEDED
        references, parameters = [], []
        restarts = usual = True
        for unit in units:
            kind = unit[0] & 31
            if kind in (1, 5):
                references.append(unit[0] >> 5 & 3)
                restarts &= kind == 5
            elif kind in (7, 8, 13):
                parameters.append(unit.rstrip(b"\0"))
            elif kind not in (6, 9, 12):  # supplements, delimiters and filling
                usual = False
        restarts &= bool(references)
        disposable = usual and not parameters and bool(references) and not any(references)
        return Role(disposable, restarts, closed=restarts, parameters=tuple(parameters))

    def _hevc(self, packet: Any) -> Role:
        units = _units(bytes(packet), self._length)
        if not units or any(len(unit) < 2 for unit in units):
            return NEEDED
        kinds, parameters = [], []
        usual = top = True
        for unit in units:
            kind, layer, sublayer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3, unit[1] & 7
            if layer:
                continue  # of another view or quality, which nobody decodes
            if kind < 32:
                kinds.append(kind)
                # Those of a higher sublayer may refer to a picture that its own sublayer has no more use for.
                top &= sublayer == self._sublayers
            elif kind in (32, 33, 34):
                parameters.append(unit.rstrip(b"\0"))
                self._learn_sublayers(unit)
            elif kind in (36, 37):
                usual = False
        if not kinds:
            return Role(parameters=tuple(parameters))
        disposable = usual and top and not parameters and all(kind < 16 and kind % 2 == 0 for kind in kinds)
        restarts = all(16 <= kind <= 21 for kind in kinds)
        closed = all(kind in (19, 20) for kind in kinds)
        return Role(disposable, restarts, closed, flush=restarts and not closed, parameters=tuple(parameters))

    def _learn_sublayers(self, unit: bytes) -> None:
        if unit[0] >> 1 & 63 == 33 and len(unit) > 2:
            self._sublayers = max(self._sublayers, (unit[2] >> 1 & 7) + 1)


def _units(data: bytes, length: int) -> list[bytes] | None:
    """The NAL units of a packet; None where it is not made of such."""
    if not length:
        return list(_after_start_codes(data))
    found, at = [], 0
    while at < len(data):
        begin = at + length
        at = begin + int.from_bytes(data[at:begin], "big")
        if at == begin or at > len(data):
            return None
        found.append(data[begin:at])
    return found


def _after_start_codes(data: bytes) -> Iterator[bytes]:
    begin = data.find(_START)
    while begin >= 0:
        begin += len(_START)
        end = data.find(_START, begin)
        if begin < len(data):
            yield data[begin : end if end >= 0 else len(data)]
        begin = end


def _avc_sets(data: bytes) -> Iterator[bytes]:
    at = 5
    for mask in (31, 255):
        count, at = data[at] & mask, at + 1
        for _ in range(count):
            size = int.from_bytes(data[at : at + 2], "big")
            yield data[at + 2 : at + 2 + size].rstrip(b"\0")
            at += 2 + size


def _hevc_sets(data: bytes) -> Iterator[bytes]:
    arrays, at = data[22], 23
    for _ in range(arrays):
        count, at = int.from_bytes(data[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(data[at : at + 2], "big")
            yield data[at + 2 : at + 2 + size].rstrip(b"\0")
            at += 2 + size


def _mpeg2(packet: Any) -> Role:
    data = bytes(packet)
    kinds = [unit[2] >> 3 & 7 for unit in _after_start_codes(data) if unit[0] == 0 and len(unit) > 2]
    has_header = _START + b"\xb3" in data
    # A sequence's header sets everything anew. A picture may be two fields.
    return Role(
        disposable=bool(kinds) and set(kinds) == {3} and not has_header,
        restarts=bool(kinds) and kinds[0] == 1 and has_header,
    )


def _mpeg4(packet: Any) -> Role:
    units = list(_after_start_codes(bytes(packet)))
    kinds = [unit[1] >> 6 for unit in units if unit[0] == 0xB6 and len(unit) > 1]
    if len(kinds) != 1:  # two in one packet, as AVI has them
        return NEEDED
    has_header = any(0x20 <= unit[0] <= 0x2F for unit in units)
    short = any(unit[0] == 0xB6 and len(unit) <= _NOT_CODED_BYTES for unit in units)
    return Role(disposable=kinds[0] == 2 and not has_header, restarts=kinds[0] == 0, unshown=short)


def _vp8(packet: Any) -> Role:
    is_key = bool(packet.is_keyframe)
    return Role(restarts=is_key, closed=is_key, unshown=not bytes(packet)[0] & 0x10)  # the bit that says: show it


def _key(packet: Any) -> Role:
    return Role(restarts=bool(packet.is_keyframe), closed=bool(packet.is_keyframe))
