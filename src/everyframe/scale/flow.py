"""One pass of tasks through the cluster, with Ray Data: an actor that drives it, and the driver's handle on that actor.

The actor stands between Ray Data and the driver so that a pass can be watched and ended whatever state it is in, that
what Ray prints stays off the driver's terminal, and that a driver outside of the cluster (ray://) works like any other.
It lives on the driver's node, or on the head, takes no CPU, and goes with the driver; with it go all of its workers.

What bounds memory, from the front to the back:
- A decoder holds one chunk, and its child process what it decodes (`Limits.memory_bytes`).
- Of a task's output no more than a few blocks of about one encode call wait; then its decoder waits.
- What lies in the object store is bounded by Ray Data: it starts no new task and reads no more of a running one when
  a stage has used up its share of the object stores.
- An encoder holds one bundle of chunks, at most `_BUNDLE_BYTES` of pixels.
- Features wait in the actor (`_WAITING` tables of a few hundred kilobytes). When the driver does not take them, because
  its output is slow, everything before it comes to a stop.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import queue
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everyframe.extras import require
from everyframe.pipeline import ClipSampling, Sampling
from everyframe.pipeline.clips import ClipEncoder
from everyframe.scale import rows
from everyframe.scale.cluster import Cluster, ClusterError, Pool, Pools, threads_of
from everyframe.scale.stages import DecodeStage, EncodeStage, ProbeStage
from everyframe.scale.work import Limits, Task

if TYPE_CHECKING:
    import pyarrow as pa

    from everyframe.encoders import Encoder

_BUNDLE_BYTES = 48 << 20
_MOST_CHUNKS = 16  # in one bundle for an encoder
_WAITING = 32
_MOST_TABLES = 32  # in one answer to the driver
_RETRIES = 4  # of a block whose worker died, by Ray; then the driver looks at what is missing
_COUNT_SECONDS = 2.0  # between two looks at how many workers there are
_LOOK_SECONDS = 5.0  # between two looks whether the cluster is still there, while nothing is answered
_ANSWER_SECONDS = 120.0  # of an actor that has nothing to do but answer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the workers are made of. planning: of `ship`; full: an object of the cluster with the other part, in a list.

    block_bytes: of pixels in one encode call.
    """

    planning: bytes
    full: list[Any]
    sampling: Sampling | ClipSampling
    limits: Limits
    block_bytes: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What has come since the last one. ended: nothing more will; error: why, unless all went through."""

    tables: list[pa.Table]
    ended: bool = False
    error: str | None = None
    workers: tuple[int, int] = (0, 0)


def block_bytes(encoder: Encoder) -> int:
    """Pixels of one encode call, as they travel."""
    each = encoder.frames if isinstance(encoder, ClipEncoder) else 1
    side = encoder.model.image_size
    return max(encoder.batch_size * each * 3 * side * side, 1 << 20)


def fetched(held: list[Any]) -> Any:
    """The one object that a list names; a list, since an actor's plain arguments do not outlive its restarts."""
    ray: Any = require("ray", extra="scale")
    return ray.get(held[0])


class Foreman:
    """The actor. Its methods are called by `Pass` alone."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Any] = queue.Queue(_WAITING)
        self._workers, self._counted_at = (0, 0), 0.0

    def encode(self, groups: list[list[Task]], recipe: Recipe, pools: Pools) -> None:
        """Begin to encode: the tasks of a group are read by one worker, one after the other."""
        pa: Any = require("pyarrow", extra="scale")
        ray: Any = require("ray", extra="scale")
        require("ray.data", extra="scale")
        tables = [pa.Table.from_pylist([rows.task_row(task) for task in group]) for group in groups]
        with ray.data.DataContext.current(_context(recipe.block_bytes)):
            source = ray.data.from_arrow(tables)
            decoded = _mapped(
                source,
                DecodeStage,
                {
                    "planning": recipe.planning,
                    "sampling": recipe.sampling,
                    "limits": recipe.limits,
                    "threads": threads_of(pools.decoders),
                },
                pools.decoders,
                None,
            )
            chunks = max(1, min(_MOST_CHUNKS, _BUNDLE_BYTES // recipe.block_bytes))
            full = functools.partial(fetched, recipe.full)
            settings = {"full": full, "threads": threads_of(pools.encoders)}
            self._run(_mapped(decoded, EncodeStage, settings, pools.encoders, chunks))

    def probe(self, groups: list[list[str]], limits: Limits, pools: Pools) -> None:
        """Begin to ask what is known of sources."""
        pa: Any = require("pyarrow", extra="scale")
        ray: Any = require("ray", extra="scale")
        require("ray.data", extra="scale")
        tables = [pa.Table.from_pylist([rows.source_row(source) for source in group]) for group in groups]
        with ray.data.DataContext.current(_context(1 << 20)):
            self._run(_mapped(ray.data.from_arrow(tables), ProbeStage, {"limits": limits}, pools.decoders, None))

    def take(self, seconds: float) -> Answer:
        """What has come, once something has, or after so many seconds."""
        tables: list[Any] = []
        ended, error = False, None
        try:
            item = self._waiting.get(timeout=seconds)
            while True:
                if isinstance(item, tuple):
                    ended, error = True, item[0]
                    break
                tables.append(item)
                if len(tables) == _MOST_TABLES:
                    break
                item = self._waiting.get_nowait()
        except queue.Empty:
            pass
        if time.monotonic() - self._counted_at > _COUNT_SECONDS:
            self._workers, self._counted_at = _workers(), time.monotonic()
        return Answer(tables=tables, ended=ended, error=error, workers=self._workers)

    def _run(self, dataset: Any) -> None:
        threading.Thread(target=self._iterate, args=(dataset,), daemon=True).start()

    def _iterate(self, dataset: Any) -> None:
        error = None
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                self._waiting.put(table)
        except BaseException as raised:  # the driver is to hear of it, whatever it is
            error = f"{type(raised).__name__}: {raised}"
        self._waiting.put((error,))


def _context(target_bytes: int) -> Any:
    ray: Any = require("ray", extra="scale")
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = target_bytes
    context.target_min_block_size = 1
    context.max_errored_blocks = -1  # what a block would have given is missed by the driver, and done again
    return context


def _mapped(dataset: Any, stage: type, settings: dict[str, Any], pool: Pool, batch_size: int | None) -> Any:
    ray: Any = require("ray", extra="scale")
    named = inspect.signature(dataset.map_batches).parameters.values()
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named)
    more = {"max_task_retries": _RETRIES} if takes_more else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60 has no other way to say how often yet announces to take this one
        return dataset.map_batches(
            stage,
            batch_size=batch_size,
            batch_format="pyarrow",
            fn_constructor_kwargs=settings,
            compute=ray.data.ActorPoolStrategy(min_size=pool.fewest, max_size=pool.most),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            **more,
        )


def _workers() -> tuple[int, int]:
    """Decoders and encoders that are alive, for whoever watches; zeros where Ray does not tell."""
    ray: Any = require("ray", extra="scale")
    try:
        from ray._private import state

        job = ray.get_runtime_context().get_job_id()
        actors = [each for each in state.actors().values() if each["JobID"] == job]
    except Exception:  # what is shown of a run must not end it
        return 0, 0
    alive = [each["ActorClassName"] for each in actors if each["State"] == "ALIVE"]
    return (
        sum(DecodeStage.__name__ in name for name in alive),
        sum(EncodeStage.__name__ in name for name in alive),
    )


class PassLost(RuntimeError):
    """The actor that drives a pass is gone, or no longer answers."""


class Pass:
    """The driver's handle on passes, one after the other. Close it: that ends all of its workers.

    ended: did the last one come to its end? Only then another may begin.
    """

    def __init__(self, cluster: Cluster) -> None:
        ray: Any = require("ray", extra="scale")
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

        self._cluster = cluster
        place = OnNode(node_id=cluster.place().id, soft=True)
        self.ended = True
        self._actor = ray.remote(num_cpus=0, max_concurrency=4, scheduling_strategy=place)(Foreman).remote()

    def encode(self, groups: Sequence[Sequence[Task]], recipe: Recipe, pools: Pools) -> None:
        """Begin. Raises PassLost."""
        self.ended = False
        self._ask(self._actor.encode.remote([list(group) for group in groups], recipe, pools), 600.0)

    def probe(self, groups: Sequence[Sequence[str]], limits: Limits, pools: Pools) -> None:
        """Begin. Raises PassLost."""
        self.ended = False
        self._ask(self._actor.probe.remote([list(group) for group in groups], limits, pools), 600.0)

    def take(self, seconds: float) -> Answer:
        """See `Foreman.take`. Raises PassLost."""
        answer: Answer = self._ask(self._actor.take.remote(seconds), seconds + _ANSWER_SECONDS)
        self.ended = answer.ended
        return answer

    def close(self) -> None:
        """End it and its workers, now."""
        ray: Any = require("ray", extra="scale")
        with contextlib.suppress(Exception):  # it may be gone, and the cluster with it
            ray.kill(self._actor)

    def _ask(self, answer: Any, seconds: float) -> Any:
        ray: Any = require("ray", extra="scale")
        give_up = time.monotonic() + seconds
        try:
            while not ray.wait([answer], timeout=_LOOK_SECONDS)[0]:
                self._cluster.check_head()
                if time.monotonic() > give_up:
                    raise PassLost(f"the process that drives the workers does not answer for {seconds:.0f} s")
            return ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise PassLost(f"{type(error).__name__}: {error}") from error
        except ClusterError:
            raise
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise PassLost(f"the process that drives the workers is gone ({type(error).__name__})") from error
