"""A real cluster of several nodes on this machine, videos for it, and hands that kill parts of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import everyframe as ef
from everyframe import scale
from everyframe.scale.events import ChunkDone, Event, VideoDone
from everyframe.video import write_video

FPS = 3.0


def videos(folder: Path, name: str, seconds: Sequence[float], *, size: tuple[int, int] = (96, 128)) -> list[Path]:
    """H.264 files of moving noise at 10 frames per second, all of different content: NAME0.mp4 and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, length in enumerate(seconds):
        base = np.random.default_rng([index, *name.encode()]).integers(
            0, 255, (size[0], size[1] + 600, 3), dtype=np.uint8
        )
        starts = [(2 * t) % 600 for t in range(round(10 * length))]
        frames = (np.ascontiguousarray(base[:, at : at + size[1]]) for at in starts)
        write_video(folder / f"{name}{index}.mp4", frames, fps=10)
        paths.append(folder / f"{name}{index}.mp4")
    return paths


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class LocalCluster:
    """A head without CPUs, and nodes of two CPUs each. client: "ray://HOST:PORT" of its client server."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        port = free_port()
        head = {"num_cpus": 0, "object_store_memory": 200 << 20, "include_dashboard": False}
        # Ray would give way to all else on a busy machine, and then what works is taken for what hangs.
        head["_system_config"] = {"worker_niceness": 0}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "ray_client_server_port": port})
        self.address = str(self._cluster.address)
        self.client = f"ray://127.0.0.1:{port}"
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    def add(self, **more: Any) -> Any:
        """A node more; for `remove`."""
        self.nodes.append(self._cluster.add_node(num_cpus=2, object_store_memory=200 << 20, **more))
        return self.nodes[-1]

    def add_from_any_thread(self) -> None:
        """From now on nodes have no signal handlers of their own here; without `close` they end with their head."""
        self._cluster._shutdown_at_exit = False

    def node(self, begin: str) -> Any:
        """The node whose id begins like this."""
        return next(node for node in self.nodes if node.node_id.startswith(begin))

    def remove(self, node: Any) -> None:
        """Kill all processes of a node at once, as a machine that loses its power."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()

    def workers(self, stage: str) -> list[int]:
        """Process ids of the workers of a stage, "DecodeStage" or "EncodeStage", on this cluster alone."""
        raylets = {_raylet(node) for node in self._cluster.list_all_nodes()}
        found = []
        for pid, command in _processes():
            if stage in command and command.startswith("ray::") and _parent(pid) in raylets:
                found.append(pid)
        return found

    def children(self) -> list[int]:
        """Process ids of what decodes for the workers."""
        workers = {pid for stage in ("DecodeStage", "ProbeStage") for pid in self.workers(stage)}
        commands = ((pid, command) for pid, command in _processes() if "everyframe.scale.ch" in command)
        return [pid for pid, _ in commands if _parent(pid) in workers]


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


class Poison:
    """Sends a signal to whichever decoding process has one of these files open, again and again, once it is armed."""

    def __init__(self, signals: dict[Path, signal.Signals]) -> None:
        self._signals = {str(path): number for path, number in signals.items()}
        self.sent: list[tuple[str, int]] = []
        self.armed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Poison:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        stopped: set[int] = set()
        while not self._stop.wait(0.01):
            if not self.armed:
                continue
            for pid, command in _processes():
                if "everyframe.scale.ch" not in command or pid in stopped:
                    continue
                with contextlib.suppress(OSError):
                    for handle in Path(f"/proc/{pid}/fd").iterdir():
                        number = self._signals.get(os.readlink(handle))
                        if number is not None:
                            os.kill(pid, number)
                            stopped.add(pid)
                            self.sent.append((os.readlink(handle), pid))


class Heard:
    """A listener that keeps all events; act: is called with each."""

    def __init__(self, act: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self._act = act

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._act(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def status(self) -> dict[str, str]:
        """By name of the file."""
        return {Path(event.source).name: event.status for event in self.of(VideoDone)}

    def encoded(self) -> dict[str, int]:
        """Frames that were encoded, by name of the file."""
        count: dict[str, int] = {}
        for event in self.of(ChunkDone):
            name = Path(event.source).name
            count[name] = count.get(name, 0) + event.frames
        return count


def once(act: Callable[[], None], when: Callable[[Event], bool]) -> Callable[[Event], None]:
    """Do something at the first event of a kind."""
    done = threading.Event()

    def look(event: Event) -> None:
        if when(event) and not done.is_set():
            done.set()
            act()

    return look


def same(own: ef.VideoFeatures, other: ef.VideoFeatures) -> bool:
    """To the bit, with all that is said of them."""
    return (
        np.array_equal(own.times, other.times)
        and np.array_equal(own.embeddings, other.embeddings)
        and own.roles == other.roles
        and (own.video, own.model, own.settings) == (other.video, other.model, other.settings)
    )


def manifest_lines(out: Path) -> list[dict[str, Any]]:
    """What the manifest's files say, read without everyframe."""
    lines = []
    for file in sorted((out / ".everyframe" / "manifest").glob("*.jsonl")):
        lines += [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return lines


def drive(model: str, paths: list[str], out: str, cluster: str, told: str, settings: dict[str, Any]) -> None:
    """A driver, for a process of its own that is to be killed: appends the names of its events to the file `told`."""
    encoder = ef.ResidualViT(ef.load(model, device="cpu"), batch_size=8)
    with open(told, "a", buffering=1) as file:
        listeners = [lambda event: print(type(event).__name__, file=file)]
        scale.encode(paths, encoder, out=out, cluster=cluster, listeners=listeners, **settings)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError("it did not come")
        time.sleep(0.02)
