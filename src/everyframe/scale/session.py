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


class Session:
    """tell: hears what the cluster has, when that changes. stall_seconds: see `scale.encode`."""

    def __init__(self, cluster: Cluster, stages: Stages, limits: Limits, stall_seconds: float, tell: Listener) -> None:
        self._cluster, self._stages, self._tell = cluster, stages, tell
        self.limits = limits
        # A decoder that hangs is noticed by its worker; a pass waits longer than that.
        self._least = limits.seconds + _MARGIN_SECONDS
        self._most = max(stall_seconds, self._least)
        self.usage = Usage(by_stage={"gather": 0.0})
        self.nodes: Nodes | None = None
        self.workers = (0, 0)
        self._ids: set[str] = set()
        self._began = self._ticked = time.monotonic()
        self._lost_node_at = 0.0
        self._pass: Pass | None = None

    def begin(self) -> None:
        """Raises ClusterError where nodes would compute other features."""
        self._cluster.check_versions()
        self.tick()

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
        ids = {node.id for node in nodes}
        if self._ids - ids:
            self._lost_node_at = now
        self._ids = ids
        hours, self._ticked = (now - self._ticked) / 3600, now
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        self.usage.cpu_hours += cpus * hours
        self.usage.gpu_hours += gpus * hours
        self.usage.node_hours += len(nodes) * hours
        decoders, encoders = self.workers
        has = Nodes(nodes=len(nodes), cpus=cpus, gpus=gpus, decoders=decoders, encoders=encoders)
        if has != self.nodes:
            self.nodes = has
            self._tell(has)
        return True

    def is_stalled(self, since: float) -> bool:
        """Has nothing come for too long? After a node went away, a shorter time is too long."""
        return time.monotonic() - since > (self._least if self.lost_node_after(since) else self._most)

    def lost_node_after(self, since: float) -> bool:
        return self._lost_node_at >= since

    def refuse_versions(self, error: str | None) -> None:
        """A node that joined with other versions refuses to work; raise ClusterError, which names it."""
        if error is not None and "VersionMismatch" in error:
            self._cluster.check_versions()
            line = next((each for each in error.splitlines() if "VersionMismatch:" in each), error)
            raise ClusterError(line.partition("VersionMismatch:")[2].strip() or line)

    def close(self) -> None:
        """End what is left of the last pass."""
        if self._pass is not None and not self._cluster.gone:
            self._pass.close()
        self.usage.wall_seconds = time.monotonic() - self._began


def last_line(text: str) -> str:
    """Of what Ray says of an error."""
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), text)
