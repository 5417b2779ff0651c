"""Workers, nodes and drivers killed at random moments on a real cluster: is a video lost, doubled or wrong afterwards?

    python benchmarks/scale_chaos.py [--kills 100] [--seed 0] [--minutes 25] [--out benchmarks/results/scale_chaos.json]

The cluster is a head and two nodes of two CPUs on this machine; the driver is a process of its own. A trial encodes
the same videos (one long one in segments, the others short) into an output of its own, while every 3 to 6 seconds, at a
random moment, one thing is killed with SIGKILL, without warning, until the videos are done or `MOST_KILLS` is reached:

worker   a process of a stage, or of Ray Data's driver on the cluster
child    a process that decodes
node     all processes of a node; another one is started meanwhile, and until it is there no further node is killed
driver   the driver; another one is started at once. Another one is started, too, where the driver gives the cluster up
         by itself, with ClusterError, as it may where things die faster than they start; that is counted ("gave_up")

While a driver has no features yet, most of what would be killed is spared, or little but starts would be killed.

After each kill of a driver, and at the end of each trial, the output is looked at from outside. Lost: a video that is
not there at the end, or one that was durable and no longer is. Doubled: one that the manifest has twice as done, or
whose file was written again after it was durable. Wrong: features that are not those of one machine, to 1e-5. A trial
ends when a driver does, of its own accord. Of a kill it is noted whether its driver had features of any video at that
moment ("at_work"); work is what all drivers of a trial encoded, over what there is to encode.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import everyframe as ef
import scale_cases as cases
from everyframe import scale
from everyframe.scale.events import ChunkDone, Event
from everyframe.version import package_version

KINDS = ("worker", "child", "node", "driver")
WEIGHTS = (4, 3, 2, 2)
MOST_KILLS = 16  # in a trial, so that each comes to its end
PAUSE = (3.0, 6.0)  # seconds between two
FPS = 3.0
LONG_SECONDS, SHORT_SECONDS, SHORT = 240, 5, 120
TRIAL_SECONDS = 900
EARLY = 0.1  # of the kills that fall in the start of a driver: else on a slow machine nothing but starts is killed
GAVE_UP = 4  # exit code of a driver


def drive(paths: list[str], out: str, address: str, told: str) -> None:
    """The driver; its exit code says whether every video has its features. told: a file that gets frames encoded."""
    stages = scale.Stages(decoders=(1, 2), encoders=(1, 2))
    encoder = ef.ResidualViT(ef.load("bundled", device="cpu"), batch_size=16)
    with open(told, "w", buffering=1) as file:

        def tell(event: Event) -> None:
            if isinstance(event, ChunkDone):
                print(event.frames, file=file)

        try:
            report = scale.encode(
                paths,
                encoder,
                out=out,
                cluster=address,
                stages=stages,
                segment_seconds=10,
                attempts=30,  # kills are none of the videos' fault, and there are many
                limits=scale.Limits(seconds=30),
                stall_seconds=60,
                listeners=[tell],
            )
        except scale.ClusterError as error:
            print(f"a driver gave up: {error}", file=sys.stderr, flush=True)
            sys.exit(GAVE_UP)
    for failure in report.failures:
        print(f"given up: {failure.kind}: {failure.message}", file=sys.stderr, flush=True)
    sys.exit(0 if report.good else 3)


class Machines:
    """The nodes of the cluster. One is killed at once, and started in the background."""

    def __init__(self) -> None:
        self.cluster = cases.LocalCluster(nodes=2)
        self.cluster.add_from_any_thread()
        self._starts = ThreadPoolExecutor(1)
        self._lock = threading.Lock()

    def kill(self, rng: random.Random) -> bool:
        """False while the last one that was killed is not back."""
        with self._lock:
            nodes = list(self.cluster.nodes)
            if len(nodes) < 2:
                return False
            self.cluster.remove(rng.choice(nodes))
        self._starts.submit(self._start)
        return True

    def _start(self) -> None:
        try:
            self.cluster.add()
        except Exception as error:  # it may be killed while it starts: then another one is
            print(f"a node did not start ({error}); once more", file=sys.stderr, flush=True)
            self.cluster.add()

    def close(self) -> None:
        self._starts.shutdown()
        self.cluster.close()


class Trial:
    """One output, from nothing to the end."""

    def __init__(self, machines: Machines, videos: list[Path], out: Path, forks: Any, rng: random.Random):
        self._machines, self._videos, self._out, self._forks, self._rng = machines, videos, out, forks, rng
        self._cluster = machines.cluster
        self.killed: Counter[str] = Counter()
        self.at_work = self.gave_up = self.drivers = self.frames = 0
        self.trouble: list[str] = []
        self._seen: dict[str, tuple[str, int]] = {}  # by source: the durable file, and when it was written
        self._began = time.monotonic()
        self._driver = self._start()

    def _start(self) -> Any:
        self.drivers += 1
        self._told = self._out.with_name(f"{self._out.name}-told{self.drivers}")
        names = [str(path) for path in self._videos]
        settings = (names, str(self._out), self._cluster.address, str(self._told))
        driver = self._forks.Process(target=drive, args=settings)
        driver.start()
        return driver

    def _encoded(self) -> int:
        """Frames, by the present driver."""
        return sum(map(int, self._told.read_text().split())) if self._told.exists() else 0

    def run(self, most: int) -> float:
        """Kill up to so many things; seconds that it took."""
        while time.monotonic() - self._began < TRIAL_SECONDS:
            self._driver.join(timeout=self._rng.uniform(*PAUSE))
            if self._driver.is_alive():
                if sum(self.killed.values()) < most:
                    self._kill(self._rng.choices(KINDS, WEIGHTS)[0])
                continue
            if self._driver.exitcode != GAVE_UP:
                break
            self.gave_up += 1
            self._next()
        if self._driver.is_alive():
            self._driver.kill()
            self.trouble.append(f"it did not end within {TRIAL_SECONDS} s")
        elif self._driver.exitcode != 0:
            self.trouble.append(f"the last driver ended with {self._driver.exitcode}")
        self.frames += self._encoded()
        self._look(last=True)
        return time.monotonic() - self._began

    def _next(self) -> None:
        """The driver has ended: another one."""
        self.frames += self._encoded()
        self._look(last=False)
        self._driver = self._start()

    def _kill(self, kind: str) -> None:
        at_work = self._encoded() > 0
        if not at_work and self._rng.random() > EARLY:
            return
        if kind == "driver":
            self._driver.kill()
            self._driver.join()
            self._next()
        elif kind == "node":
            if not self._machines.kill(self._rng):
                return
        else:
            found = self._workers() if kind == "worker" else self._cluster.children()
            if not found:
                return
            try:
                os.kill(self._rng.choice(found), signal.SIGKILL)
            except ProcessLookupError:
                return
        self.killed[kind] += 1
        self.at_work += at_work
        seconds = time.monotonic() - self._began
        print(f"  {seconds:.0f} s: {kind}{', at work' if at_work else ''}", file=sys.stderr, flush=True)

    def _workers(self) -> list[int]:
        return [
            pid
            for stage in ("ProbeStage", "DecodeStage", "EncodeStage", "Foreman")
            for pid in self._cluster.workers(stage)
        ]

    def _look(self, *, last: bool) -> None:
        done = [line for line in cases.manifest_lines(self._out) if line.get("status") == "done"]
        newest = {(line["source"], line["run"], line["when"]) for line in done}  # a joined file repeats its lines
        for source, times in Counter(source for source, _, _ in newest).items():
            if times > 1:
                self.trouble.append(f"doubled: {source} is done {times} times")
        present = {line["source"]: line["output"] for line in done}
        for source, (output, written) in self._seen.items():
            if present.get(source) != output or not (self._out / output).is_file():
                self.trouble.append(f"lost: {source} was durable")
            elif (self._out / output).stat().st_mtime_ns != written:
                self.trouble.append(f"doubled: {output} was written again")
        for source, output in present.items():
            self._seen[source] = output, (self._out / output).stat().st_mtime_ns
        if last:
            missing = {str(path) for path in self._videos} - set(present)
            self.trouble += [f"lost: {source}" for source in sorted(missing)]

    def check(self, expected: dict[str, ef.VideoFeatures]) -> None:
        for source, (output, _) in self._seen.items():
            feats, alone = ef.VideoFeatures.load(self._out / output), expected[source]
            same = np.array_equal(feats.times, alone.times) and feats.roles == alone.roles
            if not (same and np.allclose(feats.embeddings, alone.embeddings, atol=1e-5)):
                self.trouble.append(f"wrong: {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=25, help="no trial begins after so long")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["everyframe.scale.run", "everyframe.encoders", "ray", "pyarrow", "grpc"])
    before = os.getloadavg()[0]
    killed: Counter[str] = Counter()
    trouble: list[str] = []
    seconds: list[float] = []
    at_work = gave_up = drivers = frames = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = cases.videos(folder / "in", "video", [LONG_SECONDS, *[SHORT_SECONDS] * SHORT], size=(240, 320))
        encoder = ef.ResidualViT(ef.load("bundled", device="cpu"), batch_size=16)
        expected = {str(path): ef.encode_video(path, encoder, fps=FPS) for path in videos}
        needed = sum(len(feats.times) for feats in expected.values())
        machines = Machines()
        try:
            while sum(killed.values()) < options.kills and time.monotonic() - began < options.minutes * 60:
                trial = Trial(machines, videos, folder / f"out{len(seconds)}", forks, rng)
                seconds.append(trial.run(min(MOST_KILLS, options.kills - sum(killed.values()))))
                trial.check(expected)
                killed += trial.killed
                at_work, gave_up = at_work + trial.at_work, gave_up + trial.gave_up
                drivers, frames = drivers + trial.drivers, frames + trial.frames
                trouble += [f"trial {len(seconds)}: {text}" for text in trial.trouble]
                told = f"{dict(trial.killed)}, {trial.at_work} at work, {trial.drivers} drivers, {trial.trouble[:5]}"
                print(f"trial {len(seconds)}: {seconds[-1]:.0f} s, {told}", flush=True)
                if not trial.killed:
                    break  # nothing is learned from more of these
        finally:
            machines.close()
    record: dict[str, Any] = {
        "benchmark": "scale_chaos",
        "settings": {
            "videos": len(videos),
            "hours": round((LONG_SECONDS + SHORT * SHORT_SECONDS) / 3600, 3),
            "seed": options.seed,
            "seconds_between_kills": PAUSE,
        },
        "kills": {"all": sum(killed.values()), **{kind: killed[kind] for kind in KINDS}},
        "kills_at_work": at_work,
        "trials": len(seconds),
        "drivers": drivers,
        "gave_up": gave_up,
        "work": round(frames / (needed * len(seconds)), 2),
        "videos_encoded": len(seconds) * len(videos),
        **{what: sum(f": {what}:" in text for text in trouble) for what in ("lost", "doubled", "wrong")},
        "trouble": trouble,
        "seconds_per_trial": {"median": round(statistics.median(seconds), 1), "most": round(max(seconds), 1)},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load_before": round(before, 1),
        "versions": {"everyframe": package_version(), "python": platform.python_version()},
    }
    print(json.dumps(record, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if trouble else 0)


if __name__ == "__main__":
    main()
