"""The child process that opens what strangers send: `python -m everyframe.serve.worker KIND LIMITS`.

It takes limits on itself before anything else, reads its task as a line of JSON on standard input, and answers with
lines of JSON on standard output: progress, then {"done": ...} or {"error": "one sentence"}. It ends when its input
does, which is when the server is gone. Nothing that reads files is imported before the limits hold.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from everyframe.processes import end_with_parent, take_no_more

FEATURES, THUMBNAILS = "features.npz", "thumbnails.bin"
"""What an encode job leaves in its folder."""

_PICTURE_PIXELS = 4_000_000  # a screen's worth: models look at far fewer
_REPORT_SECONDS = 0.1


def limit(limits: dict[str, Any]) -> None:
    """Let this process take no more than this (see `everyframe.serve.settings.Limits`), and yield to the server."""
    end_with_parent()
    os.umask(0o077)
    os.nice(5)
    names = ("memory_bytes", "file_bytes", "open_files", "cpu_seconds")
    take_no_more(**{name: limits[name] for name in names})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing raises instead, and says what happened
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends its children


def main() -> None:
    """Entry point of the child."""
    kind, limits = sys.argv[1], json.loads(sys.argv[2])
    limit(limits)
    answers = _Answers(os.fdopen(os.dup(1), "wb", buffering=0))
    os.dup2(2, 1)  # what libraries print is no answer
    task = json.loads(sys.stdin.buffer.readline())
    try:
        if kind == "picture":
            _read_picture(sys.stdin.buffer, answers)
            return
        threading.Thread(target=_end_with_input, daemon=True).start()
        answers.send({"done": {"encode": _encode, "preview": _preview}[kind](task, answers)})
    except Exception as error:
        answers.send({"error": _sentence(error)})
        raise SystemExit(1) from error


class _Answers:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._next = 0.0

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        for piece in (json.dumps(message).encode() + b"\n", payload):
            view = memoryview(piece)
            while view:
                view = view[self._file.write(view) :]

    def report(self, **progress: Any) -> None:
        """Progress, but not more often than anyone can see."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _REPORT_SECONDS
            self.send(progress)


def _encode(task: dict[str, Any], answers: _Answers) -> dict[str, Any]:
    """Features and thumbnails of task["source"] into task["folder"]."""
    from everyframe.video import probe
    from everyframe.video.opening import restrict

    restrict(task["demuxer"])
    source, folder = task["source"], Path(task["folder"])
    duration = probe(source).duration_seconds  # before torch: what is no video is refused in no time
    answers.send({"frames": 0, "seconds": 0.0, "duration": duration})

    from everyframe.library import make_thumbnails
    from everyframe.pipeline import encode_video
    from everyframe.serve.encoding import Reading

    encoder, sampled = Reading(**task["reading"]).make()
    answers.send({"loaded": True})

    def report(_: str, frames: int, seconds: float) -> None:
        answers.report(frames=frames, seconds=seconds, duration=duration)

    feats = encode_video(source, encoder, **sampled, dtype="float16", progress=report)
    seconds = float(feats.frame_ends[-1])
    answers.send({"frames": feats.num_frames, "seconds": seconds, "duration": seconds, "pictures": True})
    feats.save(folder / FEATURES)
    _save_thumbnails(folder, [(each.time, each.jpeg) for each in make_thumbnails(source)])
    return {"frames": feats.num_frames}


def _save_thumbnails(folder: Path, pictures: list[tuple[float, bytes]]) -> None:
    header = {"times": [time for time, _ in pictures], "sizes": [len(jpeg) for _, jpeg in pictures]}
    with (folder / THUMBNAILS).open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        file.writelines(jpeg for _, jpeg in pictures)


def load_thumbnails(folder: Path) -> list[tuple[float, bytes]]:
    """(seconds, JPEG) of each, as an encode job left them."""
    with (folder / THUMBNAILS).open("rb") as file:
        header = json.loads(file.readline())
        return [(time, file.read(size)) for time, size in zip(header["times"], header["sizes"], strict=True)]


def _preview(task: dict[str, Any], answers: _Answers) -> dict[str, Any]:
    """task["source"] as task["out"], which every browser plays."""
    from everyframe.video.opening import restrict
    from everyframe.video.transcode import make_preview

    restrict(task["demuxer"])

    def report(seconds: float, duration: float | None) -> None:
        answers.report(seconds=seconds, duration=duration)

    make_preview(task["source"], task["out"], progress=report)
    return {}


def _read_picture(requests: IO[bytes], answers: _Answers) -> None:
    """One picture, of which the bytes follow: their number (8 bytes, big endian), then they; answered by its pixels."""
    from everyframe.video.opening import restrict
    from everyframe.video.still import read_still

    answers.send({"ready": True})
    size = requests.read(8)
    if len(size) < 8:
        return  # never used
    data = requests.read(struct.unpack(">Q", size)[0])
    demuxer, _, data = data.partition(b"\n")
    restrict(demuxer.decode())
    pixels = read_still(data, shrink_to=_PICTURE_PIXELS)
    answers.send({"done": {"height": pixels.shape[0], "width": pixels.shape[1]}}, pixels.tobytes())


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        return "needs more memory than it may take"
    if isinstance(error, (ValueError, OSError, ImportError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _end_with_input() -> None:
    """The server holds the other end; when it is gone, so is whoever asked."""
    while sys.stdin.buffer.read(1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
