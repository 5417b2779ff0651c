"""What is known of videos before they are read, from the cluster: a million files do not go through the driver."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from everyframe.scale import rows
from everyframe.scale.cluster import ClusterError
from everyframe.scale.events import Probing
from everyframe.scale.flow import PassLost
from everyframe.scale.rows import Probed
from everyframe.scale.session import TAKE_SECONDS, Session, last_line
from everyframe.scale.work import Failure
from everyframe.scale.work_list import limit

_TOGETHER = 16  # in one task
_MOST = 65536  # in one pass
_MOST_FRUITLESS = 3
_TELL_SECONDS = 2.0


class Prober:
    """attempts: see `scale.encode`; what the probing process does not survive is tried again. run: its name."""

    def __init__(self, session: Session, attempts: int, run: str = "") -> None:
        self._session, self._attempts, self._run = session, attempts, run
        self._total, self._told_at = 0, 0.0
        self._found: dict[str, Probed] = {}
        self._tries: Counter[str] = Counter()

    def probe(self, sources: Sequence[str]) -> dict[str, Probed]:
        """Of each source what is known, or its failure. Raises ClusterError."""
        fruitless, self._total = 0, len(set(sources))
        self._tell()
        self._session.tell_nodes()
        while waiting := [source for source in sources if source not in self._found]:
            before = len(self._found)
            error = self._pass(self._groups(waiting[:_MOST]))
            fruitless = fruitless + 1 if len(self._found) == before else 0
            if fruitless > self._attempts + _MOST_FRUITLESS:
                reason = f" ({last_line(error)})" if error else ""
                raise ClusterError(f"no video can be probed on the cluster{reason}")
        self._tell()
        return self._found

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        self._session.tell(Probing(run=self._run, done=len(self._found), total=self._total))

    def _groups(self, sources: Sequence[str]) -> list[list[str]]:
        """As one worker each is to probe them; what failed before is alone."""
        fresh = [source for source in sources if not self._tries[source]]
        size = min(_TOGETHER, max(1, len(fresh) // 64))
        groups = [fresh[at : at + size] for at in range(0, len(fresh), size)]
        return groups + [[source] for source in sources if self._tries[source]]

    def _pass(self, groups: list[list[str]]) -> str | None:
        """One pass; what went wrong with it, if anything."""
        session = self._session
        pools = session.pools()
        answered: set[str] = set()
        error: str | None = None
        with session.flow() as flow:
            try:
                flow.probe(groups, session.limits, pools)
                progress_at = time.monotonic()
                while True:
                    answer = flow.take(TAKE_SECONDS)
                    for probed in (each for table in answer.tables for each in rows.probes(table)):
                        progress_at = time.monotonic()
                        if probed.source not in answered:
                            answered.add(probed.source)
                            self._take(probed)
                    session.tick()
                    if time.monotonic() - self._told_at > _TELL_SECONDS:
                        self._tell()
                    if answer.ended or session.is_stalled(progress_at):
                        error = answer.error
                        break
            except PassLost as lost:
                error = str(lost)
        session.refuse_versions(error)
        for source in (each for group in groups for each in group if each not in answered):
            message = f"{source}: it was not probed; its worker died, or gave no answer"
            self._take(Probed(source=source, failure=Failure(source=source, kind="lost", message=message)))
        return error

    def _take(self, probed: Probed) -> None:
        failure = probed.failure
        if failure is None:
            self._found[probed.source] = probed
            return
        self._tries[probed.source] += 1
        tries = self._tries[probed.source]
        if tries >= limit(failure.kind, self._attempts):
            self._found[probed.source] = replace(probed, failure=replace(failure, attempts=tries))
