"""What the driver knows of its cluster while it runs: what is there, what that costs, and what drives a pass."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from everyframe.scale.cluster import Cluster, ClusterError, Pools
from everyframe.scale.events import Listener, Nodes
from everyframe.scale.flow import Pass
from everyframe.scale.work import Limits, Stages, Usage

TAKE_SECONDS = 0.5  # that an answer of a pass is waited for
_TICK_SECONDS = 2.0
_MARGIN_SECONDS = 30.0
_REPLACED_SECONDS = 60.0  # for a worker of a node that went away to start elsewhere, if there is room


class Session:
    """tell: hears what the cluster has, when that changes. stall_seconds: see `scale.encode`."""

    def __init__(self, cluster: Cluster, stages: Stages, limits: Limits, stall_seconds: float, tell: Listener) -> None:
        self._cluster, self._stages = cluster, stages
        self.limits, self.tell = limits, tell
        # A decoder that hangs is noticed by its worker; a pass waits longer than that.
        self._least = limits.seconds + _MARGIN_SECONDS
        self._most = max(stall_seconds, self._least)
        self.usage = Usage(by_stage={"gather": 0.0})
        self.nodes: Nodes | None = None
        self.workers = (0, 0)
        self._ids: set[str] = set()
        self._has = (0.0, 0.0)  # CPUs and GPUs, at the last look
        self._began = self._ticked = time.monotonic()
        self._pass_began, self._lost_node_at = 0.0, -1.0
        self._most_workers = (0, 0)  # in this pass
        self._pass: Pass | None = None
        self._named = False

    def begin(self) -> None:
        """Raises ClusterError where nodes would compute other features."""
        self._cluster.check_versions()
        self.tick()

    def tell_nodes(self) -> None:
        """Tell of them, and from now on of each change; after the event that names the run."""
        self._named = True
        if self.nodes is not None:
            self.tell(self.nodes)

    def pools(self) -> Pools:
        """For the next pass: new nodes are checked, and counted in. Raises ClusterError."""
        self._cluster.check_versions()
        return self._cluster.pools(self._stages, self.tick)

    def cpus(self) -> int:
        return int(sum(node.cpus for node in self._cluster.nodes()))

    def facts(self) -> dict[str, Any]:
        """For the report."""
        nodes = self._cluster.nodes()
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        return {"address": self._cluster.address, "nodes": len(nodes), "cpus": cpus, "gpus": gpus}

    @contextlib.contextmanager
    def flow(self) -> Iterator[Pass]:
        """What drives a pass: that of the last one, if it came to its end."""
        flow, self._pass = self._pass or Pass(self._cluster), None
        self._pass_began, self.workers, self._most_workers = time.monotonic(), (0, 0), (0, 0)
        ended = False
        try:
            yield flow
            ended = flow.ended
        finally:
            if ended:
                self._pass = flow
            elif not self._cluster.gone:
                flow.close()

    def tick(self) -> bool:
        """Every now and then: look at what the cluster has. True when it did."""
        now = time.monotonic()
        if self._ids and now - self._ticked < _TICK_SECONDS:
            return False
        nodes = self._cluster.nodes()
        self._count(now)
        ids = {node.id for node in nodes}
        if self._ids - ids:
            self._lost_node_at = now
        self._ids, self._has = ids, (sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
        cpus, gpus = self._has
        decoders, encoders = self.workers
        has = Nodes(nodes=len(nodes), cpus=cpus, gpus=gpus, decoders=decoders, encoders=encoders)
        if has != self.nodes:
            self.nodes = has
            if self._named:
                self.tell(has)
        return True

    def _count(self, now: float) -> None:
        """What was there at the last look was there until now."""
        hours, self._ticked = (now - self._ticked) / 3600, now
        self.usage.cpu_hours += self._has[0] * hours
        self.usage.gpu_hours += self._has[1] * hours
        self.usage.node_hours += len(self._ids) * hours

    def is_stalled(self, since: float) -> bool:
        """Has nothing come for too long? Where a node went away in this pass, a shorter time is too long.

        Its workers are started elsewhere, where there is room; but the others may have taken that, and wait for just
        those. The next pass deals out anew what there is.
        """
        quiet = time.monotonic() - since
        (decoders, encoders), (most_decoders, most_encoders) = self.workers, self._most_workers
        self._most_workers = max(decoders, most_decoders), max(encoders, most_encoders)
        if not self.lost_node:
            return quiet > self._most
        fewer = decoders < most_decoders or encoders < most_encoders
        return quiet > (min(_REPLACED_SECONDS, self._least) if fewer else self._least)

    @property
    def lost_node(self) -> bool:
        """Did a node go away in this pass?"""
        return self._lost_node_at >= self._pass_began

    def lost_node_after(self, since: float) -> bool:
        return self.lost_node

    def refuse_versions(self, error: str | None) -> None:
        """A node that joined with other versions refuses to work; raise ClusterError, which names it."""
        if error is not None and "VersionMismatch" in error:
            self._cluster.check_versions()
            line = next((each for each in error.splitlines() if "VersionMismatch:" in each), error)
            raise ClusterError(line.partition("VersionMismatch:")[2].strip() or line)

    def close(self) -> None:
        """End what is left of the last pass, and sum up."""
        if self._pass is not None and not self._cluster.gone:
            self._pass.close()
        now = time.monotonic()
        self._count(now)
        self.usage.wall_seconds = now - self._began


def last_line(text: str) -> str:
    """Of what Ray says of an error."""
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), text)
