"""What a file is by its first bytes, before FFmpeg sees it.

FFmpeg opens playlists, scripts and slide shows, which name other files to read, and chooses by content whatever the
name says. Files of strangers are opened only where they begin like a container that holds its own pictures, and then
by the reader of that container alone.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD = 1024
"""Bytes that are enough to tell."""

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof")
_STILLS = {
    b"\x89PNG\r\n\x1a\n": ("png_pipe,apng", "PNG"),
    b"\xff\xd8\xff": ("jpeg_pipe", "JPEG"),
    b"GIF87a": ("gif", "GIF"),
    b"GIF89a": ("gif", "GIF"),
    b"BM": ("bmp_pipe", "BMP"),
}


@dataclass(frozen=True)
class Container:
    """A kind of file: FFmpeg's name of its reader, and the suffixes such files have, the usual one first."""

    name: str
    demuxer: str
    suffixes: tuple[str, ...]


ISO = Container("MP4", "mov,mp4,m4a,3gp,3g2,mj2", (".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v"))
MATROSKA = Container("Matroska or WebM", "matroska,webm", (".mkv", ".webm"))
AVI = Container("AVI", "avi", (".avi", ".divx"))
MPEG_TS = Container("MPEG-TS", "mpegts", (".ts", ".mts", ".m2ts"))
MPEG_PS = Container("MPEG-PS", "mpeg", (".mpg", ".mpeg", ".vob"))
FLV = Container("FLV", "flv", (".flv",))
OGG = Container("Ogg", "ogg", (".ogv", ".ogm", ".ogg"))
ASF = Container("ASF", "asf", (".wmv", ".asf"))

VIDEO_SENTENCE = "is not a video of a kind that is taken: MP4/MOV, Matroska/WebM, AVI, MPEG-TS, MPEG-PS, FLV, Ogg, ASF"
PICTURE_SENTENCE = "the image must be a PNG, JPEG, WebP, GIF or BMP file"


def video_container(head: bytes) -> Container | None:
    """What a video that begins so is held by; None for anything else, playlists among them."""
    if head[4:8] in _ISO_BOXES:
        return ISO
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return AVI
    for offset in (0, 4):  # 4: Blu-ray's packets carry a time stamp before each
        step = 188 + offset
        if len(head) > offset + 2 * step and all(head[offset + k * step] == 0x47 for k in range(3)):
            return MPEG_TS
    for magic, container in (
        (b"\x1aE\xdf\xa3", MATROSKA),
        (b"\x00\x00\x01\xba", MPEG_PS),
        (b"FLV\x01", FLV),
        (b"OggS", OGG),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ASF),
    ):
        if head.startswith(magic):
            return container
    return None


def picture_demuxer(head: bytes) -> str | None:
    """FFmpeg's name of the reader of a picture that begins so; None for anything else."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp_pipe"
    return next((demuxer for magic, (demuxer, _) in _STILLS.items() if head.startswith(magic)), None)
