"""Leave out the decoding of pictures that nobody will look at, with the same outcome as if all were decoded.

Packets are read some way ahead of the decoder. Their times tell in which order their pictures will be shown, and so,
to a `Watch` that walks the targets of a sampling, which of them are needed. A packet is decoded if its picture is
needed, or if pictures that are needed may refer to it. Left out are

- pictures to which no other refers (most B-pictures), where they are not needed themselves;
- everything from the last needed picture of a group up to the next one where decoding can begin anew.

A picture that is left out is still accounted for: what comes out is the sequence of a full decode, times, durations
and all, only that some of its pictures have no `frame`. Each decoded picture is checked against what was foreseen.
Anything out of the ordinary raises `UnforeseenError`, and the file is decoded in full, from where it began: a picture
that does not come or comes out of turn, damage, a clock that jumps, packets without times, a header that changes.

What is damaged in a packet that is left out is not noticed. All packets are read, though, and where the container does
not say how long a packet is, the last ones of a file are decoded, with what they need: a file that is cut short is
noticed as ever.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from everyframe.video.packets import NEEDED, Role, Roles
from everyframe.video.shown import Picture

# No codec shows a picture after more than 16 that are decoded before it but shown later.
_REORDERED = 20
# Packets at the end of a file that may be pieces of one that was cut.
_LAST = 3
# Beyond so many, packets are decoded for nothing rather than kept in memory.
_MOST_WAITING = 512

_WAITING, _SENT, _LEFT_OUT = range(3)


class UnforeseenError(Exception):
    """The decoder does not do what the packets promised: everything must be decoded."""


class Watch(Protocol):
    """Who knows which pictures are needed: told of one after the other, in the order they are shown."""

    @property
    def done(self) -> bool:
        """Is it known of all that are needed?"""

    def see(self, picture: Picture) -> bool:
        """Take the next picture, of which only the times are looked at; is the one before it needed?"""

    def last(self) -> bool:
        """After the last one: is it needed?"""


@dataclass(eq=False, slots=True)
class _Expected:
    """A packet on its way, and its picture."""

    packet: Any
    pts: int
    shown: Picture
    role: Role = NEEDED
    hidden: bool = False
    needed: bool | None = None
    state: int = _WAITING

    def leave_out(self) -> None:
        self.packet, self.state = None, _LEFT_OUT


FLUSH = object()
"""Among packets to decode: the decoder must give out what it holds, and forget."""


class Foresight:
    """Takes packets in decoding order, says which to decode, and matches what comes out.

    ticks, shift: a packet's time is pts * ticks + shift. step: its duration where it has none. last: time of the last
    picture that was shown.
    """

    def __init__(self, watch: Watch, roles: Roles, *, ticks: int, shift: int, step: int, last: int):
        self._watch, self._roles = watch, roles
        self._ticks, self._shift, self._step = ticks, shift, step
        self._last = last
        self._dts: int | None = None
        self._count = 0
        self._heap: list[tuple[int, int, _Expected]] = []  # pictures whose turn to be shown has not come
        self._before: _Expected | None = None  # the last one whose turn has
        self._turns: deque[_Expected] = deque()  # pictures in the order they are shown
        self._undecided: deque[_Expected] = deque()  # packets in decoding order, from the first not known to be needed
        # Packets that wait for one that needs them: up to the last restart, and from it on. `_restart`: whether
        # pictures shown before it, which may refer to the former, are needed is not known yet.
        self._older: list[_Expected] = []
        self._newer: list[_Expected] = []
        self._restart: _Expected | None = None
        self._flush = False  # before the first of these

    def already_sent(self, pts: int, duration: int | None, position: int | None) -> None:
        """A packet that was given to the decoder before, whose picture is still to come."""
        self._await_turn(_Expected(None, pts, self._announced(pts, duration, position), state=_SENT))

    def add(self, packet: Any, position: int | None) -> Iterator[Any]:
        """Take the next packet; what to decode now, in order. Raises UnforeseenError."""
        if packet.pts is None or packet.has_sidedata("new_extradata"):
            raise UnforeseenError
        if packet.dts is not None:
            if self._dts is not None and packet.dts < self._dts:
                raise UnforeseenError  # a clock that starts again
            self._dts = packet.dts
        role = self._roles.of(packet)
        if role.unshown or self._roles.is_news(role):
            raise UnforeseenError
        shown = self._announced(packet.pts, packet.duration, position)
        entry = _Expected(packet, packet.pts, shown, role, hidden=bool(packet.is_discard))
        self._undecided.append(entry)
        if entry.hidden:  # by an edit list: decoded, but never shown
            entry.needed = False
        else:
            self._await_turn(entry)
        yield from self._decided()

    @property
    def done(self) -> bool:
        """Is it known of all pictures that are needed?"""
        return self._watch.done

    def finish(self, *, to_the_end: bool) -> Iterator[Any]:
        """After the last packet: what is still to be decoded. to_the_end: the last ones are, whoever needs them."""
        while self._heap:
            self._take_turn(heapq.heappop(self._heap)[2])
        if self._before is not None:
            self._before.needed = self._watch.last()
        for entry in [*self._undecided][-_LAST:] if to_the_end else ():
            entry.needed = not entry.hidden
        yield from self._decided()
        yield from self._resolve()
        if to_the_end:
            yield from self._send()
        self._leave_rest_out()

    def stop(self) -> Iterator[Any]:
        """When it is `done`: what of the packets so far is still to be decoded; the rest is left out."""
        for entry in self._undecided:
            entry.needed = bool(entry.needed)
        yield from self._decided()
        yield from self._resolve()
        self._leave_rest_out()

    def left_out(self) -> Iterator[Picture]:
        """Pictures, without frames, whose turn it is, up to one that must come from the decoder."""
        while self._turns and self._turns[0].state == _LEFT_OUT:
            yield self._turns.popleft().shown

    def matched(self, pts: int | None, duration: int) -> Picture:
        """What was announced of a picture that came out. Raises UnforeseenError where another one's turn it is."""
        if not self._turns or self._turns[0].pts != pts or self._turns[0].state != _SENT:
            raise UnforeseenError
        shown = self._turns.popleft().shown
        if shown.duration != duration:
            raise UnforeseenError
        return shown

    def check_empty(self) -> None:
        """After the last picture. Raises UnforeseenError where more were announced."""
        if self._turns:
            raise UnforeseenError

    def _leave_rest_out(self) -> None:
        for entry in (*self._older, *self._newer):
            entry.leave_out()

    def _announced(self, pts: int, duration: int | None, position: int | None) -> Picture:
        length = duration * self._ticks if duration else self._step
        return Picture(None, pts * self._ticks + self._shift, length, "?", position=position)

    def _await_turn(self, entry: _Expected) -> None:
        heapq.heappush(self._heap, (entry.pts, self._count, entry))
        self._count += 1
        while len(self._heap) > _REORDERED:
            self._take_turn(heapq.heappop(self._heap)[2])

    def _take_turn(self, entry: _Expected) -> None:
        """It is known which picture is shown next, and with it whether the one before it is needed."""
        if entry.shown.time <= self._last:
            raise UnforeseenError
        self._last = entry.shown.time
        before, self._before = self._before, entry
        needed = self._watch.see(entry.shown)
        if before is not None:
            before.needed = needed
        self._turns.append(entry)

    def _decided(self) -> Iterator[Any]:
        while self._undecided and self._undecided[0].needed is not None:
            entry = self._undecided.popleft()
            if entry.role.restarts:
                yield from self._resolve()
                self._older, self._newer, self._restart = self._newer, [entry], entry
            else:
                if self._restart is not None and entry.pts > self._restart.pts:
                    yield from self._resolve()
                elif self._restart is not None and entry.needed:
                    self._join()
                if entry.needed or not entry.role.disposable:
                    self._newer.append(entry)
                else:
                    entry.leave_out()
            if entry.role.closed:
                yield from self._resolve()
            if len(self._newer) + len(self._older) > _MOST_WAITING:
                self._join()
                yield from self._send()
            elif self._restart is None and entry.needed:
                yield from self._send()

    def _resolve(self) -> Iterator[Any]:
        """Nothing that is needed refers to what is before the last restart: leave out what waits there."""
        restart, self._restart = self._restart, None
        if restart is None:
            return
        if self._older:
            for entry in self._older:
                entry.leave_out()
            self._older = []
            self._flush = restart.role.flush
            if not restart.role.closed:  # what is shown before it may refer to what is missing now
                leading = [entry for entry in self._newer if entry.pts < restart.pts]
                self._newer = [entry for entry in self._newer if entry.pts >= restart.pts]
                for entry in leading:
                    entry.leave_out()
        if any(entry.needed for entry in self._newer):
            yield from self._send()

    def _join(self) -> None:
        self._newer, self._older, self._restart = self._older + self._newer, [], None

    def _send(self) -> Iterator[Any]:
        entries, self._newer = self._newer, []
        if entries and self._flush:
            self._flush = False
            yield FLUSH
        for entry in entries:
            packet, entry.packet, entry.state = entry.packet, None, _SENT
            yield packet
