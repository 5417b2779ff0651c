"""Decode packet by packet: every shown frame with its true time, and a list of what was damaged."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from math import lcm
from typing import Any, ClassVar, Literal

import av

from everyframe.video.errors import VideoError
from everyframe.video.foresight import FLUSH, Foresight, UnforeseenError, Watch
from everyframe.video.info import VideoInfo, describe
from everyframe.video.opening import Geometry, Input, geometry_of
from everyframe.video.packets import Roles
from everyframe.video.references import References
from everyframe.video.shown import Picture

OnDamage = Literal["raise", "skip"]

_MAX_MESSAGES = 100
_SEEK_BACK_SECONDS = (0, 2, 10, 60)
# Containers that know how long each packet is: half of one does not look whole.
_SIZES_KNOWN = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_MOST_POSITIONS = 1024  # more than any codec holds back
# The letters of FFmpeg's AVPictureType; the odd ones count as what they resemble.
_PICTURE_TYPES = {1: "I", 2: "P", 3: "B", 4: "P", 5: "I", 6: "P", 7: "B"}


class Damage:
    """Collects what could not be read, or raises at once."""

    def __init__(self, name: str, on_damage: OnDamage):
        self._name = name
        self._raise = on_damage == "raise"
        self._messages: list[str] = []
        self._more = 0

    def note(self, message: str, cause: BaseException | None = None) -> None:
        if self._raise:
            raise VideoError(f"{self._name}: {message}; --keep-partial keeps the frames that can be read") from cause
        # A file can be damaged from end to end; the list must not grow with it.
        if len(self._messages) < _MAX_MESSAGES:
            self._messages.append(message)
        else:
            self._more += 1

    @property
    def messages(self) -> list[str]:
        more = [f"and {self._more} more places"] if self._more else []
        return [*self._messages, *more]

    @property
    def count(self) -> int:
        """Messages so far, of those that are listed."""
        return len(self._messages)

    def forget(self, count: int) -> None:
        """All but the first `count` messages."""
        del self._messages[count:]
        self._more = 0


class Decoder:
    """All shown frames of one stream in the order they are shown, with strictly increasing times.

    skips: pictures that nobody looks at may be left out, once `foresee` says who looks. They come all the same, without
    their frame.
    """

    pictures: ClassVar[int] = 0
    """Decoded in this process so far, by all: tells a slow one from one that hangs."""

    def __init__(self, opened: Input, *, on_damage: OnDamage, references: bool = False, skips: bool = False):
        self._input = opened
        self._watch_references = references
        self._damage = Damage(opened.name, on_damage)
        self._roles = _roles(opened) if skips else None
        self._watch: Watch | None = None
        self._zero = opened.zero()
        self._noted_before = 0
        self._sought = False
        self._start_clock()
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            found = f" ({self.damage[0]})" if self.damage else ""
            raise VideoError(f"{opened.name}: has a video stream but no readable frame{found}")
        if first.time < 0:
            # The header announced a later start than what came; the first frame shown is the start then.
            self._zero += first.time * self.unit
            opened.reopen()
            self._noted_before = self._damage.count
            self._start_clock()
            self._frames = self._decode()
            first = next(self._frames)
        self._first: Picture | None = first
        self.geometry: Geometry = geometry_of(first.frame, opened.stream)
        self.info: VideoInfo = describe(opened, self.geometry)

    @property
    def damage(self) -> list[str]:
        return self._damage.messages

    def __iter__(self) -> Iterator[Picture]:
        """Raises UnforeseenError where `foresee` was called and everything must be decoded; see `read_in_full`."""
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def close(self) -> None:
        self._frames.close()
        self._input.close()

    def foresee(self, watch: Watch) -> None:
        """From here on leave out what `watch` does not need, where that can be known; call it before iterating."""
        if self._roles is None:
            return
        if self._first is not None:
            watch.see(self._first)
        self._watch = watch

    def read_in_full(self, start: Fraction) -> None:
        """Begin again, at `start` seconds as `seek` does, with nothing left out and what was noted forgotten."""
        self._roles = None
        self._damage.forget(self._noted_before)
        self._rewind()
        # As much as was read before the first seek: in a file without an index that decides where seeking leads.
        self._first = next(self._frames, None)
        if start > 0:
            self.seek(start)

    def seek(self, seconds: Fraction) -> None:
        """Go on from a frame at or before `seconds`; from the beginning where the file cannot do better."""
        for back in _SEEK_BACK_SECONDS:
            goal = seconds - back
            if goal <= 0:
                break
            self._frames.close()
            self._start_clock()
            self._sought = True
            try:
                offset = int((goal + self._zero) / self._input.time_base)
                self._input.container.seek(offset, stream=self._input.stream, backward=True)
            except av.error.FFmpegError:
                break  # a container without seeking: read on from the beginning
            self._frames = self._decode()
            first = next((picture for picture in self._frames if picture.frame.key_frame), None)
            if first is not None and first.time * self.unit <= seconds:
                self._first = first
                return
        self._rewind()

    def _rewind(self) -> None:
        self._frames.close()
        self._input.reopen()
        self._start_clock()
        self._sought = False
        self._frames = self._decode()
        self._first = None

    def _start_clock(self) -> None:
        base = self._input.time_base
        denominator = lcm(base.denominator, self._zero.denominator)
        self.unit = Fraction(1, denominator)
        self._ticks = base.numerator * (denominator // base.denominator)
        self._shift = -int(self._zero * denominator)
        self._last: Picture | None = None
        self._resumed = False
        self._keyframe_sent = False
        self._ends: dict[int, Fraction] = {}
        self._position: int | None = None
        self._sent: dict[int, tuple[int | None, int | None]] = {}
        # Anew: times from before a seek would be taken for pictures that are still to come.
        self._references = References() if self._watch_references else None
        self._watch = None
        self._looks_ahead = False
        rate = self._input.header_rate
        self._step = max(1, round(1 / rate / self.unit)) if rate else max(1, round(Fraction(1, 25) / self.unit))

    def _decode(self) -> Generator[Picture, None, None]:
        packets = self._packets()
        for packet in packets:
            if self._roles is not None and packet.size:
                self._roles.learn(packet)
            for frame in self._frames_of(packet):
                picture = self._picture(frame)
                if self._watch is not None:
                    self._watch.see(picture)
                yield picture
            if self._may_look_ahead():
                yield from self._look_ahead(packets)
                break
        self._check_complete()

    def _frames_of(self, packet: Any) -> Iterator[Any]:
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self._note("a packet was skipped", error)
            return
        for frame in frames:
            self._resumed = self._resumed or bool(frame.key_frame)
            if frame.is_corrupt:
                self._note("a damaged picture was patched by the decoder", None)
            yield frame

    def _may_look_ahead(self) -> bool:
        """Has a key frame just come out? What comes before one may be shown or not."""
        if self._watch is None or self._roles is None or self._last is None:
            return False
        frame = self._last.frame
        return bool(frame.key_frame) and frame.pts is not None and not frame.interlaced_frame

    def _look_ahead(self, packets: Iterator[Any]) -> Generator[Picture, None, None]:
        """The rest of `_decode`, without the frames that nobody needs."""
        watch, roles, last = self._watch, self._roles, self._last
        if watch is None or roles is None or last is None:
            raise RuntimeError("looking ahead takes a picture to begin after and someone who looks")
        self._looks_ahead = True
        plan = Foresight(watch, roles, ticks=self._ticks, shift=self._shift, step=self._step, last=last.time)
        for pts, (position, duration) in self._sent.items():
            if pts > last.frame.pts:
                plan.already_sent(pts, duration, position)
        for packet in packets:
            if not packet.size:
                yield from self._carry_out(plan, chain(plan.finish(to_the_end=self._to_the_end), [packet]))
                break
            yield from self._carry_out(plan, plan.add(packet, self._position))
            if plan.done:
                yield from self._carry_out(plan, chain(plan.stop(), [FLUSH]))
                raise UnforeseenError  # whoever looks has what they need, and does not come here
        plan.check_empty()

    @property
    def _to_the_end(self) -> bool:
        """Must the last packets be decoded to see whether the file is cut short?"""
        return self._input.container.format.name not in _SIZES_KNOWN

    def _carry_out(self, plan: Foresight, packets: Iterable[Any]) -> Iterator[Picture]:
        """Decode these; the pictures whose turn it is, with their frames or without."""
        for packet in packets:
            for frame in self._drained() if packet is FLUSH else self._frames_of(packet):
                yield from plan.left_out()
                if frame.interlaced_frame:  # its neighbours will be needed, too
                    raise UnforeseenError
                Decoder.pictures += 1
                shown = plan.matched(frame.pts, frame.duration * self._ticks if frame.duration else self._step)
                kind = _PICTURE_TYPES.get(int(frame.pict_type), "?")
                yield Picture(frame, shown.time, shown.duration, kind, position=shown.position)
        yield from plan.left_out()

    def _drained(self) -> list[Any]:
        """What the decoder holds back; then it is as after a seek."""
        context = self._input.stream.codec_context
        try:
            frames: list[Any] = context.decode(None)
        except av.error.FFmpegError as error:
            raise UnforeseenError from error
        context.flush_buffers()
        return frames

    def _packets(self) -> Iterator[Any]:
        """Packets of the stream, then its empty closing one, whatever errors the container has."""
        opened = self._input
        index = opened.stream.index
        watch_all = opened.promised_end()[1] == "container"
        streams = () if watch_all else (opened.stream,)
        failures = 0
        packets = opened.container.demux(*streams)
        ahead: list[Any] = []
        while failures < 4:
            try:
                packet = ahead.pop() if ahead else next(packets, None)
                if opened.is_streamed and packet is not None and packet.is_corrupt:
                    ahead.append(next(packets, None))  # half a packet, then an error: that is no damage of the file
            except av.error.FFmpegError as error:
                failures += 1
                opened.check_reachable(error)
                self._note("cannot be read on", error)
                packets = opened.container.demux(*streams)
                continue
            if packet is None:
                return
            if packet.size:
                failures = 0
                self._track_end(packet)
            if packet.stream.index != index:
                continue
            if packet.size:
                self._keyframe_sent = self._keyframe_sent or bool(packet.is_keyframe)
                if packet.is_corrupt:
                    self._note("a packet is damaged", None)
                if packet.pos is not None:
                    self._position = packet.pos
                if packet.pts is not None and not self._looks_ahead:
                    self._track_sent(packet)
            yield packet

    def _track_sent(self, packet: Any) -> None:
        """Remember what belongs to the picture of a packet that goes to the decoder."""
        if not packet.is_discard:
            self._sent[packet.pts] = (self._position, packet.duration)
            if len(self._sent) > _MOST_POSITIONS:  # some packets give no picture
                del self._sent[next(iter(self._sent))]
        if self._references is not None:
            self._references.sent(packet.pts * self._ticks + self._shift)

    def _picture(self, frame: Any) -> Picture:
        """Give a frame its time: its own, the decoder's second best (dts), or the previous frame's end."""
        Decoder.pictures += 1
        stamp = frame.pts if frame.pts is not None else frame.dts
        duration = frame.duration * self._ticks if frame.duration else self._step
        last = self._last
        if stamp is None:
            time = last.time + last.duration if last is not None else 0
        else:
            time = stamp * self._ticks + self._shift
            if last is not None and time <= last.time:
                # A clock that jumps back (joined recordings) goes on from here; a stutter moves one frame.
                if (last.time - time) * self.unit > 1:
                    self._shift += last.time + last.duration - time
                    time = last.time + last.duration
                else:
                    time = last.time + 1
        kind = _PICTURE_TYPES.get(int(frame.pict_type), "?")
        past = future = None
        if self._references is not None:
            past, future = self._references.shown(time, kind)
        position, _ = self._sent.pop(frame.pts, (None, None))
        self._last = Picture(frame, time, duration, kind, past, future, position)
        return self._last

    def _note(self, what: str, error: BaseException | None) -> None:
        # What precedes the first key frame (a recording joined midway, a seek) never was readable.
        if not self._resumed and (self._sought or not self._keyframe_sent):
            return
        if self._looks_ahead:
            raise UnforeseenError  # what is damaged, and where, is for a full decode to say
        near = 0.0
        if self._last is not None:
            # The decoder holds back as many pictures as it may have to reorder.
            ahead = self._last.duration * (1 + self._input.stream.codec_context.reorder_depth)
            near = float((self._last.time + ahead) * self.unit)
        reason = getattr(error, "strerror", None)
        self._damage.note(f"{what} near {near:.2f} s" + (f" ({reason})" if reason else ""), error)

    def _track_end(self, packet: Any) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            end = (stamp + (packet.duration or 0)) * Fraction(packet.time_base)
            index = packet.stream.index
            self._ends[index] = max(end, self._ends.get(index, end))

    def _check_complete(self) -> None:
        """Notice a file that simply stops before the end its header promises."""
        promised, _ = self._input.promised_end()
        if promised is None or not self._ends:
            return
        came = max(self._ends.values())
        missing = promised - came
        length = promised - self._zero
        if missing > max(min(Fraction(1), length / 20), 3 * self._step * self.unit):
            if self._looks_ahead:
                raise UnforeseenError
            self._damage.note(
                f"ends at {float(came - self._zero):.2f} s although its header promises {float(length):.2f} s"
            )


def _roles(opened: Input) -> Roles | None:
    """What tells the packets apart that need not be decoded, where the file can be read a second time if they must."""
    context = opened.stream.codec_context
    roles = Roles(context.codec.canonical_name, context.extradata)
    return roles if roles.supported and opened.rewinds else None
