"""From a decoded frame to RGB pixels as they are shown."""

from __future__ import annotations

import zlib
from typing import Any

import av
import av.filter
import numpy as np
from av.video.reformatter import VideoReformatter

from everyframe.video.opening import Geometry
from everyframe.video.shown import Picture


class Converter:
    """Turns decoded frames into uint8 [H, W, 3] RGB of one size, upright, with square pixels."""

    def __init__(self, geometry: Geometry):
        self._geometry = geometry
        self._reformatter = VideoReformatter()

    def __call__(self, picture: Picture, before: Picture | None, after: Picture | None) -> np.ndarray:
        """Pixels of `picture`; its neighbours help where it is interlaced."""
        frame = picture.frame
        if frame.interlaced_frame:
            frame = _deinterlace(frame, before and before.frame, after and after.frame)
        width, height = self._geometry.upright_before_turn
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BICUBIC", dst_color_range="JPEG"
        )
        return self._geometry.orient(rgb.to_ndarray())


def checksum(frame: Any) -> int:
    """Of what was decoded, before any conversion: of the luma where a plane holds nothing else."""
    components = frame.format.components
    if frame.format.is_planar and not frame.format.is_bit_stream and len(components) > 1:
        plane, size = frame.planes[0], -(-components[0].bits // 8)
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width * size]
        return zlib.crc32(rows.tobytes())
    return zlib.crc32(frame.reformat(format="rgb24").to_ndarray().tobytes())


def _deinterlace(frame: Any, before: Any | None, after: Any | None) -> Any:
    """One whole picture from the two fields of `frame`.

    The filter looks at the frames around. Building it for each sampled frame keeps it free of state: frames
    that nobody asked for need not go through it.
    """
    same = (frame.width, frame.height, frame.format.name)
    neighbours = [
        other if other is not None and (other.width, other.height, other.format.name) == same else None
        for other in (before, after)
    ]
    frames = [item for item in (neighbours[0], frame, neighbours[1]) if item is not None]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    deinterlace = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(deinterlace)
    deinterlace.link_to(sink)
    graph.configure()
    for item in frames:
        source.push(item)
    source.push(None)
    wanted = 1 if neighbours[0] is not None else 0
    for _ in range(wanted):
        sink.pull()
    return sink.pull()
