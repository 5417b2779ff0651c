"""Workers, nodes and drivers killed at random moments on a real cluster: is a video lost, doubled or wrong afterwards?

    python benchmarks/scale_chaos.py [--kills 100] [--seed 0] [--minutes 90] [--out benchmarks/results/scale_chaos.json]

The cluster is a head and two nodes of two CPUs on this machine; the driver is a process of its own. A trial encodes
the same videos (one long one in segments, the others short) into an output of its own, while every few seconds, at a
random moment, one thing is killed with SIGKILL, without warning:

worker   a process of a stage, or of Ray Data's driver on the cluster
child    a process that decodes
node     all processes of a node; a new node joins at once
driver   the driver; another one is started at once

After each kill of a driver, and at the end of each trial, the output is looked at from outside. Lost: a video that is
not there at the end, or one that was durable and no longer is. Doubled: one that the manifest has twice as done, or
whose file was written again after it was durable. Wrong: features that are not those of one machine, to 1e-5. A trial
ends when a driver does, of its own accord.
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
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import everyframe as ef
import scale_cases as cases
from everyframe import scale
from everyframe.version import package_version

KINDS = ("worker", "child", "node", "driver")
WEIGHTS = (3, 2, 2, 3)
MOST_KILLS = 6  # in a trial, so that each comes to its end
FPS = 3.0
LONG_SECONDS, SHORT_SECONDS, SHORT = 90, 8, 40
TRIAL_SECONDS = 900


def drive(paths: list[str], out: str, address: str) -> None:
    """The driver; its exit code says whether every video has its features."""
    stages = scale.Stages(decoders=(1, 2), encoders=(1, 2))
    encoder = ef.ResidualViT(ef.load("bundled", device="cpu"), batch_size=16)
    report = scale.encode(
        paths,
        encoder,
        out=out,
        cluster=address,
        stages=stages,
        segment_seconds=10,
        attempts=8,  # kills are none of the videos' fault, and there are many
        limits=scale.Limits(seconds=60),
        stall_seconds=120,
    )
    sys.exit(0 if report.good else 3)


class Trial:
    """One output, from nothing to the end."""

    def __init__(self, cluster: cases.LocalCluster, videos: list[Path], out: Path, forks: Any, rng: random.Random):
        self._cluster, self._videos, self._out, self._forks, self._rng = cluster, videos, out, forks, rng
        self.killed: Counter[str] = Counter()
        self.trouble: list[str] = []
        self._seen: dict[str, tuple[str, int]] = {}  # by source: the durable file, and when it was written
        self._driver = self._start()

    def _start(self) -> Any:
        names = [str(path) for path in self._videos]
        driver = self._forks.Process(target=drive, args=(names, str(self._out), self._cluster.address))
        driver.start()
        return driver

    def run(self, most: int) -> float:
        """Kill up to so many things; seconds that it took."""
        began = time.monotonic()
        wait = self._rng.uniform(2, 25)
        while self._driver.is_alive() and time.monotonic() - began < TRIAL_SECONDS:
            self._driver.join(timeout=wait)
            wait = self._rng.uniform(1, 12)
            if self._driver.is_alive() and sum(self.killed.values()) < most:
                self._kill(self._rng.choices(KINDS, WEIGHTS)[0])
        if self._driver.is_alive():
            self._driver.kill()
            self.trouble.append(f"it did not end within {TRIAL_SECONDS} s")
        elif self._driver.exitcode != 0:
            self.trouble.append(f"the last driver ended with {self._driver.exitcode}")
        self._look(last=True)
        return time.monotonic() - began

    def _kill(self, kind: str) -> None:
        if kind == "driver":
            self._driver.kill()
            self._driver.join()
            self._look(last=False)
            self._driver = self._start()
        elif kind == "node":
            self._cluster.remove(self._rng.choice(self._cluster.nodes))
            self._cluster.add()
        else:
            found = self._workers() if kind == "worker" else self._cluster.children()
            if not found:
                return
            try:
                os.kill(self._rng.choice(found), signal.SIGKILL)
            except ProcessLookupError:
                return
        self.killed[kind] += 1

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
    parser.add_argument("--minutes", type=float, default=90, help="no trial begins after so long")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["everyframe.scale.run", "everyframe.encoders"])
    before = os.getloadavg()[0]
    killed: Counter[str] = Counter()
    trouble: list[str] = []
    seconds: list[float] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = cases.videos(folder / "in", "video", [LONG_SECONDS, *[SHORT_SECONDS] * SHORT], size=(240, 320))
        encoder = ef.ResidualViT(ef.load("bundled", device="cpu"), batch_size=16)
        expected = {str(path): ef.encode_video(path, encoder, fps=FPS) for path in videos}
        cluster = cases.LocalCluster(nodes=2)
        try:
            while sum(killed.values()) < options.kills and time.monotonic() - began < options.minutes * 60:
                trial = Trial(cluster, videos, folder / f"out{len(seconds)}", forks, rng)
                seconds.append(trial.run(min(MOST_KILLS, options.kills - sum(killed.values()))))
                trial.check(expected)
                killed += trial.killed
                trouble += [f"trial {len(seconds)}: {text}" for text in trial.trouble]
                print(f"trial {len(seconds)}: {seconds[-1]:.0f} s, {dict(trial.killed)}, {trial.trouble}", flush=True)
        finally:
            cluster.close()
    record: dict[str, Any] = {
        "benchmark": "scale_chaos",
        "settings": {
            "videos": len(videos),
            "hours": round((LONG_SECONDS + SHORT * SHORT_SECONDS) / 3600, 3),
            "seed": options.seed,
        },
        "kills": {"all": sum(killed.values()), **{kind: killed[kind] for kind in KINDS}},
        "trials": len(seconds),
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
