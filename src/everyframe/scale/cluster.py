"""The cluster: reach it, see what it has, and make sure that all of its nodes would compute the same.

What a node needs: everyframe itself, the same version as the driver's, with the same torch and PyAV; the videos, under
the same paths or addresses; and the credentials to read them, in the environment that `ray start` was given (or in a
`runtime_env` of your own: call `ray.init(...)` first, an initialised Ray is used as it is and left running). The
driver alone writes the output.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from everyframe import cpu
from everyframe.extras import require
from everyframe.scale.work import Stages

logger = logging.getLogger("everyframe.scale")

_REACH_SECONDS = 5.0
_GONE_SECONDS = 20.0  # a head that is restarted in place has so long
_NODE_SECONDS = 180.0  # until a node has started a process and told its versions
_WAIT_SECONDS = 600.0  # for nodes, where there is no room for one worker of each stage
_SAME = ("everyframe", "torch", "av", "python")


class ClusterError(OSError):
    """The cluster cannot be reached or used, or gave nothing. What is in the output stays and is gone on from."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine, or a part of one. head: where the cluster's own processes run."""

    id: str
    address: str
    cpus: float
    gpus: float
    head: bool = False

    @property
    def name(self) -> str:
        return f"{self.address}/{self.id[:8]}"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Workers of a stage: so many, each with so much. most None: as many as there is room for."""

    fewest: int
    most: int | None
    cpus: float
    gpus: float = 0.0

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What the fewest of them ask of the cluster."""
        return [{name: take for name, take in (("CPU", self.cpus), ("GPU", self.gpus)) if take}] * self.fewest


@dataclass(frozen=True, kw_only=True)
class Pools:
    decoders: Pool
    encoders: Pool


class Cluster:
    """A cluster that this process is connected to; see `connect`. remote: through Ray's client, from outside.

    gone: its head no longer answers. Ray ends a process that is connected to such a cluster after a minute, whatever it
    does; until then there is time to say what has become of the work.
    """

    def __init__(self, address: str, *, remote: bool, local: bool) -> None:
        self.address = address
        self.remote = remote
        self.gone = False
        self._local = local
        self._door = _door(address if address.startswith("ray://") else None)
        self._same: set[str] = set()  # nodes that were asked already

    def nodes(self) -> list[Node]:
        """Those that are alive. Raises ClusterError where the cluster no longer answers."""
        ray: Any = require("ray", extra="scale")
        self.check_head()
        try:
            found = ray.nodes()
        except Exception as error:
            raise ClusterError(f"the Ray cluster at {self.address} no longer answers ({_reason(error)})") from error
        return [_node(each) for each in found if each["Alive"]]

    def check_head(self) -> None:
        """Is it still there? Ray itself would not say so, but wait, until it ends this process. Raises ClusterError."""
        give_up = time.monotonic() + _GONE_SECONDS
        while not _opens(self._door):
            if time.monotonic() > give_up:
                self.gone = True
                raise ClusterError(f"the head of the Ray cluster at {self.address} no longer answers; start it again")
            time.sleep(1.0)

    def place(self) -> Node:
        """Where what belongs to the driver runs: on its own node, or on the head for a driver outside."""
        ray: Any = require("ray", extra="scale")
        nodes = self.nodes()
        own = None if self.remote else ray.get_runtime_context().get_node_id()
        chosen = next((node for node in nodes if node.id == own), None)
        chosen = chosen or next((node for node in nodes if node.head), None)
        if chosen is None:
            raise ClusterError(f"the Ray cluster at {self.address} has no head node any more; start it again")
        return chosen

    def check_versions(self) -> None:
        """Ask nodes not asked before what they would compute with. Raises ClusterError where it is not the same."""
        fresh = [node for node in self.nodes() if node.id not in self._same]
        found = _ask_versions(fresh)
        own = _versions_of_this_process()
        other = {name: theirs for name, theirs in found.items() if theirs != own}
        if other:
            raise ClusterError(_differing(own, other))
        self._same.update(node.id for node in fresh)

    def pools(self, stages: Stages, waiting: Callable[[], object] = lambda: None) -> Pools:
        """How many workers of which size, by what the cluster has. Waits for nodes that may still be joining.

        Raises ClusterError where there is no room for one of each stage, and none comes.
        """
        give_up = time.monotonic() + (0 if self._local else _WAIT_SECONDS)
        asked = False
        while True:
            nodes = self.nodes()
            pools = pools_for(stages, nodes)
            room = fits(pools, nodes)
            if room or time.monotonic() >= give_up:
                if asked:
                    _request([])  # from now on Ray Data asks for what it needs
                if room:
                    return pools
                raise ClusterError(_no_room(pools, nodes))
            if not (asked or self.remote):
                _request([*pools.encoders.bundles, *pools.decoders.bundles])
                asked = True
            waiting()
            time.sleep(1.0)


@contextlib.contextmanager
def connect(cluster: str) -> Iterator[Cluster]:
    """A connection for as long as the block lasts; one that was there before is used as it is and stays.

    cluster: "auto" for the running cluster that this machine belongs to (RAY_ADDRESS, or the one started here last),
    "local" to start one here for the time being, "HOST:PORT" of a head node, "ray://HOST:PORT" of its client server.
    Raises ClusterError, within seconds, where there is none, and ValueError for another kind of name.
    """
    ray: Any = require("ray", extra="scale")
    if ray.is_initialized():
        yield Cluster("(connected before)", remote=_is_client(), local=False)
        return
    address = _resolved(cluster)
    if address != "local":
        _check_reachable(address)
    quiet = _quiet_console()
    try:
        _init(address)
        try:
            remote = address.startswith("ray://")
            reached = Cluster(
                "this machine" if address == "local" else address, remote=remote, local=address == "local"
            )
        except BaseException:
            ray.shutdown()
            raise
        try:
            yield reached
        finally:
            if not reached.gone:  # it would wait for the head
                ray.shutdown()
    finally:
        quiet()


def _init(address: str) -> None:
    ray: Any = require("ray", extra="scale")
    # Spilling, restarts and retries are the business of this module, not of the user's terminal.
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        given |= {"num_cpus": max(cpu.count(), 2), "include_dashboard": False}
    try:
        ray.init(address=address, **given)
    except Exception as error:  # Ray raises all kinds
        reason = _reason(error)
        if "ersion mismatch" in str(error):
            raise ClusterError(
                f"the Ray cluster at {address} has other versions than this process: {reason}; install the same here"
            ) from error
        if address == "local":
            raise ClusterError(f"no Ray cluster can be started here ({reason})") from error
        hint = "; where it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"  # Ray does not say what it is
        raise ClusterError(f"no Ray cluster answers at {address} ({reason}){hint}") from error


def _resolved(cluster: str) -> str:
    """What to connect to."""
    if cluster == "local" or cluster.startswith("ray://"):
        return cluster
    if cluster != "auto":
        host, _, port = cluster.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f'cluster must be "auto", "local", "HOST:PORT" or "ray://HOST:PORT", got {cluster!r}')
        return cluster
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"]
    from ray._private import services  # what `ray status` asks, too; there is no public way

    try:
        found = services.canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if not found:
        raise ClusterError(
            "no running Ray cluster was found from this machine: start one with `ray start --head` (and more nodes with"
            ' `ray start --address=HOST:6379`), set RAY_ADDRESS, or use cluster="local" for this machine alone'
        )
    return str(found)


def _check_reachable(address: str) -> None:
    """Within seconds; Ray itself would take minutes. Raises ClusterError."""
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    kind = "a Ray client server" if address.startswith("ray://") else "the head node of a Ray cluster"
    advice = "10001 is the usual port" if address.startswith("ray://") else "`ray start --head` prints it"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ClusterError(
            f"{address} cannot be reached ({reason}): it must be the address of {kind}; {advice}"
        ) from error
    grpc: Any = require("grpc", extra="scale")
    channel = grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=_REACH_SECONDS)
    except grpc.FutureTimeoutError as error:
        raise ClusterError(f"what answers at {address} is not {kind}; {advice}") from error
    finally:
        channel.close()


def _quiet_console() -> Callable[[], None]:
    """Keep Ray's own remarks on tasks that it repeats off standard output, which may be JSON; returns the undoing."""
    from ray._private import worker

    before = getattr(worker, "print_to_stdstream", None)
    if before is None:
        return lambda: None

    def note(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        for line in data.get("lines", ()):
            logger.info("ray: %s", line)

    worker.print_to_stdstream = note

    def undo() -> None:
        worker.print_to_stdstream = before

    return undo


def _door(client: str | None) -> tuple[str, int]:
    """Where the head listens: its client server, for who came in there, or what all nodes report to."""
    ray: Any = require("ray", extra="scale")
    address = client or ("" if _is_client() else ray.get_runtime_context().gcs_address)
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    return host.strip("[]"), int(port or 0)


def _opens(door: tuple[str, int]) -> bool:
    """Is somebody there? Yes, where nobody knows which door it is."""
    if not door[0]:
        return True
    try:
        with socket.create_connection(door, timeout=_REACH_SECONDS):
            return True
    except OSError:
        return False


def _is_client() -> bool:
    from ray.util.client import ray as client

    return bool(client.is_connected())


def _request(bundles: list[dict[str, float]]) -> None:
    """Tell an autoscaler what is to be there; a cluster without one takes no notice."""
    ray: Any = require("ray", extra="scale")
    from ray.autoscaler.sdk import request_resources

    with contextlib.suppress(ray.exceptions.RayError):
        request_resources(bundles=bundles)


def _node(found: Mapping[str, Any]) -> Node:
    has = found.get("Resources", {})
    return Node(
        id=found["NodeID"],
        address=found.get("NodeManagerHostname") or found.get("NodeManagerAddress") or "?",
        cpus=float(has.get("CPU", 0.0)),
        gpus=float(has.get("GPU", 0.0)),
        head="node:__internal_head__" in has,
    )


# --- versions ----------------------------------------------------------------------------------------------


def _version_teller() -> Callable[[], dict[str, str]]:
    """A function that travels by value: a node need not have this module, or everyframe at all, to run it."""

    def tell() -> dict[str, str]:
        import importlib.metadata
        import importlib.util
        import sys

        found = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
        for package in ("everyframe", "torch", "av"):
            try:
                found[package] = importlib.metadata.version(package).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                found[package] = "unknown" if importlib.util.find_spec(package) else "missing"
        return found

    return tell


def _versions_of_this_process() -> dict[str, str]:
    found = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    for package in ("everyframe", "torch", "av"):
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _ask_versions(nodes: Iterable[Node]) -> dict[str, dict[str, str]]:
    """By name of the node. One that goes away meanwhile is left out."""
    ray: Any = require("ray", extra="scale")
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

    teller = ray.remote(num_cpus=0, max_retries=1)(_version_teller())
    asked = [(node, teller.options(scheduling_strategy=OnNode(node_id=node.id, soft=False)).remote()) for node in nodes]
    found = {}
    give_up = time.monotonic() + _NODE_SECONDS
    for node, answer in asked:
        try:
            found[node.name] = ray.get(answer, timeout=max(give_up - time.monotonic(), 0.1))
        except ray.exceptions.GetTimeoutError as error:
            raise ClusterError(
                f"node {node.name} starts no worker process within {_NODE_SECONDS:.0f} s; look at its Ray logs, or "
                "take it out of the cluster"
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise ClusterError(f"node {node.name} cannot tell its versions ({_reason(error)})") from error
        except ray.exceptions.RayError as error:
            logger.info("node %s went away before it was asked (%s)", node.name, _reason(error))
    return found


def _differing(own: Mapping[str, str], other: Mapping[str, Mapping[str, str]]) -> str:
    texts = []
    for name in sorted(other)[:8]:
        theirs = other[name]
        facts = [f"{what} {theirs[what]} (here {own[what]})" for what in _SAME if theirs[what] != own[what]]
        texts.append(f"{name} has {', '.join(facts)}")
    more = f"; and {len(other) - 8} more nodes" if len(other) > 8 else ""
    return f"nodes with other versions would give other features: {'; '.join(texts)}{more}. Install the same everywhere"


# --- sizes -------------------------------------------------------------------------------------------------


def pools_for(stages: Stages, nodes: Iterable[Node]) -> Pools:
    """How many workers each stage may have, and what one of them takes; see `Stages`.

    An encoder takes one GPU and one CPU where there are GPUs. Else it takes two CPUs where all nodes that have CPUs
    have at least four, and one on smaller ones, so that decoders cannot leave it without a node that has room.
    """
    nodes = list(nodes)
    gpus = stages.gpus_per_encoder
    if gpus is None:
        gpus = 1.0 if any(node.gpus for node in nodes) else 0.0
    cpus = stages.cpus_per_encoder
    if cpus is None:
        least = min((node.cpus for node in nodes if node.cpus), default=1.0)
        cpus = 1.0 if gpus or least < 4 else 2.0
    return Pools(
        decoders=Pool(fewest=stages.decoders[0], most=stages.decoders[1], cpus=stages.cpus_per_decoder),
        encoders=Pool(fewest=stages.encoders[0], most=stages.encoders[1], cpus=cpus, gpus=gpus),
    )


def fits(pools: Pools, nodes: Iterable[Node]) -> bool:
    """Is there room for the fewest workers of both stages?"""
    left = [[node.cpus, node.gpus] for node in nodes]
    for pool in (pools.encoders, pools.decoders):
        for _ in range(pool.fewest):
            free = next((each for each in left if each[0] >= pool.cpus and each[1] >= pool.gpus), None)
            if free is None:
                return False
            free[0] -= pool.cpus
            free[1] -= pool.gpus
    return True


def _no_room(pools: Pools, nodes: list[Node]) -> str:
    def wants(pool: Pool, what: str) -> str:
        gpus = f" and {pool.gpus:g} GPUs" if pool.gpus else ""
        return f"{pool.fewest} {what} of {pool.cpus:g} CPUs{gpus}"

    has = ", ".join(f"{node.name} {node.cpus:g} CPUs {node.gpus:g} GPUs" for node in nodes[:8]) or "no node"
    return (
        f"the cluster has no room for {wants(pools.decoders, 'decoders')} and {wants(pools.encoders, 'encoders')}: it "
        f"has {has}. Add nodes, or let the workers take less"
    )


def threads_of(pool: Pool) -> int | None:
    """Threads that one worker of a pool may use on a CPU; None leaves it to torch, where a GPU does the work."""
    return None if pool.gpus else max(1, math.floor(pool.cpus))


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
