"""Which cores a process may use: affinity, quotas of made-up cgroups, and what others use of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from everyframe import cpu
from everyframe.cli.options import set_threads

LINUX = hasattr(os, "sched_getaffinity") and Path("/proc/stat").exists()
V2 = "cgroup2 cgroup rw,nsdelegate"
V1 = "cgroup cgroup rw,cpu,cpuacct"


def process(tmp_path: Path, member: str, mounts: list[tuple[str, str, str]]) -> Path:
    """A folder like /proc/self. member: lines of "cgroup". mounts: (group seen there, folder below tmp_path, kind)."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cgroup").write_text(member)
    lines = ["22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw"]
    for root, where, kind in mounts:
        place = str(tmp_path / where).replace(" ", r"\040")
        lines.append(f"31 23 0:28 {root} {place} rw,nosuid shared:9 - {kind}")
    (folder / "mountinfo").write_text("\n".join(lines) + "\n")
    return folder


def group(tmp_path: Path, path: str, **files: str) -> None:
    """A cgroup with files; "__" in a name stands for a dot."""
    folder = tmp_path / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def v1(quota: str, period: str = "100000\n") -> dict[str, str]:
    return {"cpu__cfs_quota_us": quota, "cpu__cfs_period_us": period}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"": "max 100000\n", "a": "max 100000\n", "a/b": "150000 100000\n"}, 1.5),
        ({"": "max 100000\n", "a": "100000 100000\n", "a/b": "150000 100000\n"}, 1.0),  # one above has less
        ({"": "25000 50000\n", "a": "max 100000\n", "a/b": "max 100000\n"}, 0.5),
        ({"": "max 100000\n", "a": "max 100000\n", "a/b": "max 100000\n"}, None),
        ({"a/c": "100000 100000\n"}, None),  # that of a neighbour
        ({}, None),
    ],
)
def test_quota_of_version_2_is_the_smallest_on_the_path(
    tmp_path: Path, limits: dict[str, str], expected: float | None
) -> None:
    for path, text in limits.items():
        group(tmp_path, f"cgroup/{path}", cpu__max=text)
    assert cpu.quota(process(tmp_path, "0::/a/b\n", [("/", "cgroup", V2)])) == expected


def test_quota_of_version_1(tmp_path: Path) -> None:
    group(tmp_path, "cpu", **v1("-1\n"))
    group(tmp_path, "cpu/a", **v1("200000\n"))
    group(tmp_path, "cpu/a/b", **v1("350000\n"))
    group(tmp_path, "memory/a/b", **v1("1000\n"))  # not of this controller
    member = "4:memory:/a/b\n3:cpu,cpuacct:/a/b\n2:name=systemd:/\n"
    mounts = [("/", "memory", "cgroup cgroup rw,memory"), ("/", "cpu", V1)]
    assert cpu.quota(process(tmp_path, member, mounts)) == 2.0


def test_quota_of_both_versions_at_once(tmp_path: Path) -> None:
    group(tmp_path, "cpu/a", **v1("300000\n"))
    group(tmp_path, "unified/a", cpu__max="250000 100000\n")
    mounts = [("/", "cpu", V1), ("/", "unified", V2)]
    assert cpu.quota(process(tmp_path, "1:cpu,cpuacct:/a\n0::/a\n", mounts)) == 2.5


@pytest.mark.parametrize("path", ["/docker/x", "/docker/x/", "/", "/../y", "/elsewhere"])
def test_quota_in_a_container_whose_own_group_is_mounted(tmp_path: Path, path: str) -> None:
    """A container sees its own group at the mount, whatever name the host or a namespace gives it."""
    group(tmp_path, "my cgroup", cpu__max="150000 100000\n")  # a blank in its name, too
    root = "/docker/x" if path.startswith("/docker") else "/"
    assert cpu.quota(process(tmp_path, f"0::{path}\n", [(root, "my cgroup", V2)])) == 1.5


@pytest.mark.parametrize(
    "text", ["", "max", "fast 100000", "100000", "1 2 3", "0 100000", "-5 100000", "100000 0", "\xff"]
)
def test_quota_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    group(tmp_path, "cgroup/a", cpu__max="")
    (tmp_path / "cgroup/a/cpu.max").write_bytes(text.encode("latin-1"))
    assert cpu.quota(process(tmp_path, "0::/a\n", [("/", "cgroup", V2)])) is None


@pytest.mark.parametrize("member", ["", "rubbish\n", "0:\n", "1:memory:/a\n"])
def test_process_without_a_group_has_no_quota(tmp_path: Path, member: str) -> None:
    group(tmp_path, "cgroup/a", cpu__max="100000 100000\n")
    folder = process(tmp_path, member, [("/", "cgroup", V2)])
    with (folder / "mountinfo").open("a") as file:
        file.write("cut short\n")
    assert cpu.quota(folder) is None
    assert cpu.quota(tmp_path / "no such process") is None


@pytest.mark.parametrize(
    ("cores", "limit", "expected"), [(4, None, 4), (4, 1.5, 1), (4, 0.2, 1), (4, 2.0, 2), (2, 9.5, 2)]
)
def test_count_is_whole_cores(monkeypatch: pytest.MonkeyPatch, cores: int, limit: float | None, expected: int) -> None:
    monkeypatch.setattr(cpu, "affinity", lambda: cores)
    monkeypatch.setattr(cpu, "quota", lambda: limit)
    assert cpu.count() == expected


def test_affinity_is_that_of_the_process() -> None:
    assert 1 <= cpu.count() <= cpu.affinity()
    if not LINUX:
        return
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os, sys; os.sched_setaffinity(0, {{{one}}}); from everyframe import cpu\n"
        "assert cpu._busy_seconds(cpu._STAT, niced=True) > 0\n"
        "print(cpu.affinity(), cpu.count(), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "1", "False"]


def test_affinity_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu.affinity() == 6
    assert cpu.OtherLoad().read() is None
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.affinity() == 1


# --- what others use -------------------------------------------------------------------------------------


class Machine:
    """Two cores, a /proc/stat that tests write, and a clock that they set."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stat, self.seconds, self.own = tmp_path / "stat", 100.0, 5.0
        monkeypatch.setattr(cpu, "_allowed", lambda: {0, 1})
        monkeypatch.setattr(cpu.os, "sysconf", lambda name: 100)
        monkeypatch.setattr(cpu.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(cpu.os, "times", lambda: os.times_result((self.own, 0.0, 0.0, 0.0, 0.0)))
        self.write([0] * 8, [0] * 8)

    def write(self, *cores: list[int]) -> None:
        rows = [f"cpu{number} {' '.join(map(str, row))} 0 0" for number, row in enumerate(cores)]
        self.stat.write_text("\n".join(["cpu 9 9 9 9 9 9 9 9 9 9", *rows, "cpu7 " + "99999 " * 10, "intr 1 2", ""]))


@pytest.mark.skipif(not hasattr(os, "times_result"), reason="needs POSIX")
@pytest.mark.parametrize(
    ("core", "own", "niced", "expected"),
    [
        ([200, 0, 0, 0, 0, 0, 0, 0], 0.0, True, 1.0),  # user: 2 s of 2
        ([100, 0, 50, 0, 0, 10, 20, 20], 0.0, True, 1.0),  # the system's work and what the host took away count
        ([0, 0, 0, 200, 200, 0, 0, 0], 0.0, True, 0.0),  # waiting does not
        ([200, 0, 0, 0, 0, 0, 0, 0], 1.5, True, 0.25),  # our own work does not
        ([200, 0, 0, 0, 0, 0, 0, 0], 3.0, True, 0.0),
        ([0, 200, 0, 0, 0, 0, 0, 0], 0.0, True, 1.0),
        ([0, 200, 0, 0, 0, 0, 0, 0], 0.0, False, 0.0),  # of lower priority than ours
    ],
)
def test_other_load(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    core: list[int],
    own: float,
    niced: bool,
    expected: float,
) -> None:
    machine = Machine(tmp_path, monkeypatch)
    monkeypatch.setattr(cpu, "_is_nice", lambda: False)
    load = cpu.OtherLoad(niced=niced, stat=machine.stat)
    assert load.read() is None  # no time has passed
    machine.seconds += 2.0
    machine.own += own
    machine.write([0] * 8, core)
    assert load.read() == pytest.approx(expected)
    facts = cpu.facts(load)
    assert facts == {"cores": 2, "quota": cpu.quota(), "other_load": pytest.approx(expected)}


def test_other_load_is_never_more_than_our_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    load = cpu.OtherLoad(stat=machine.stat)
    machine.seconds += 1.0
    machine.write([500] + [0] * 7, [500] + [0] * 7)
    assert load.read() == 2.0


@pytest.mark.parametrize("text", [None, "cpu0 a b c d e f g h", "cpu0 1 2", "\xff"])
def test_other_load_is_unknown_where_the_system_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    machine = Machine(tmp_path, monkeypatch)
    machine.stat.unlink()
    if text is not None:
        machine.stat.write_bytes(text.encode("latin-1"))
    load = cpu.OtherLoad(stat=machine.stat)
    machine.seconds += 1.0
    assert load.read() is None


@pytest.mark.skipif(not LINUX, reason="needs /proc/stat")
def test_a_busy_child_is_other_load_until_it_is_waited_for() -> None:
    """Of the real machine: what a child burns is seen while it runs, and counts as ours when it has ended."""
    code = "import time\nprint(flush=True)\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass"
    load = cpu.OtherLoad()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        before = load._now()
        child.wait()
    after = load._now()
    assert before is not None and after is not None
    _, busy, own = (end - begin for begin, end in zip(before, after, strict=True))
    assert own >= 0.25
    assert busy >= own - 0.1  # what it burnt is in the system's account too, which counts in ticks
    assert 0.0 <= (load.read() or 0.0) <= cpu.affinity()


# --- torch's threads -------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> object:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_use_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.use_threads(3) == torch.get_num_threads() == 3
    monkeypatch.setattr(cpu, "count", lambda: 2)
    assert cpu.use_threads() == torch.get_num_threads() == 2
    monkeypatch.setattr(cpu, "count", lambda: 8)
    assert cpu.use_threads() == torch.get_num_threads() == 2  # torch's own choice is only ever taken down
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        cpu.use_threads(0)


# --- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_of_a_command_sleep_while_they_wait(given: str | None, expected: str) -> None:
    """In a process of its own: it must be set before torch is imported."""
    code = (
        "import os, sys\n"
        "sys.argv = ['everyframe', '--version']\n"
        "from everyframe.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.splitlines()[-1] == f"False {expected}"


def test_threads_of_a_command_are_checked() -> None:
    with pytest.raises(ValueError, match="--threads must be at least 1, got 0"):
        set_threads(0)
