"""The recipes in deploy/: their options exist, Kubernetes' and KubeRay's fields are spelled as they are, and the Slurm
script does what it says, with stand-ins for Slurm's and Ray's commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main

from everyframe.cli.app import app

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
RAYJOB, SBATCH = DEPLOY / "kuberay" / "rayjob.yaml", DEPLOY / "slurm" / "everyframe.sbatch"

# The fields of KubeRay's v1 types that a recipe may use; required ones end in "!".
FIELDS = {
    "job": "entrypoint backoffLimit activeDeadlineSeconds shutdownAfterJobFinishes ttlSecondsAfterFinished "
    "rayClusterSpec submissionMode submitterPodTemplate runtimeEnvYAML suspend",
    "cluster": "headGroupSpec! workerGroupSpecs rayVersion enableInTreeAutoscaling autoscalerOptions",
    "autoscaler": "idleTimeoutSeconds upscalingMode resources image env envFrom securityContext volumeMounts",
    "head": "rayStartParams! template! serviceType enableIngress headService",
    "group": "groupName! replicas minReplicas! maxReplicas! numOfHosts rayStartParams! template! scaleStrategy",
}


def check_fields(kind: str, found: dict[str, Any]) -> None:
    known = FIELDS[kind].split()
    assert set(found) <= {name.rstrip("!") for name in known}
    assert {name.rstrip("!") for name in known if name.endswith("!")} <= set(found)


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(RAYJOB.read_text(encoding="utf-8"))
    return loaded


def options_of(command: str) -> set[str]:
    tree: Any = typer.main.get_command(app)
    return {name for option in tree.commands[command].params for name in option.opts}


def check_command(words: list[str]) -> None:
    """Each option is one of `everyframe encode`."""
    assert words[:2] == ["everyframe", "encode"]
    known = options_of("encode")
    assert {word for word in words if word.startswith("--")} <= known


def test_the_rayjob_has_kuberays_fields(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    check_fields("job", spec)
    cluster = spec["rayClusterSpec"]
    check_fields("cluster", cluster)
    check_fields("autoscaler", cluster["autoscalerOptions"])
    check_fields("head", cluster["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        check_fields("group", group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())


def test_the_pods_are_ones_that_kubernetes_would_run(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        # Ray tells its nodes' sizes from the limits; what is not requested may be taken away.
        assert container["resources"]["requests"] == container["resources"]["limits"]
        # A user that is a name in the image cannot be checked for not being root.
        security = container["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0 and not security["allowPrivilegeEscalation"]
        assert pod["restartPolicy"] == "Never"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = [g for g in cluster["workerGroupSpecs"] if "nvidia.com/gpu" in str(g["template"])]
    assert [group["groupName"] for group in gpus] == ["encode"]


def test_the_rayjob_runs_a_command_that_exists(job: dict[str, Any]) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    check_command(words)
    assert "\n" not in job["spec"]["entrypoint"].strip()
    ports = {port["name"]: port["containerPort"] for port in head(job)["ports"]}
    assert words[words.index("--metrics-port") + 1] == str(ports["metrics"])


def test_the_rayjob_names_the_ray_that_is_tested(job: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.+)$", (DEPLOY.parent / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pinned and job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"rayproject/ray:{pinned[1]}" in (DEPLOY / "README.md").read_text(encoding="utf-8")


def head(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return found


# --- Slurm ---------------------------------------------------------------------------------------------------


def test_the_sbatch_script_is_sound() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SBATCH], check=True)
    text = SBATCH.read_text(encoding="utf-8")
    (example,) = re.findall(r"^#\s+sbatch .*everyframe\.sbatch (.*)$", text, re.M)
    check_command(["everyframe", "encode", *shlex.split(example)])


STAND_INS = {
    "scontrol": 'case $1 in show) printf "%s\\n" localhost localhost localhost;; requeue) echo "requeue $2";; esac '
    '>> >(tee -a "$WORK/scontrol")',
    "srun": 'echo "srun $*" >> "$WORK/srun"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": 'echo "ray $* $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >> "$WORK/ray"; echo $$ >> "$WORK/pids"; '
    '[[ ${HEAD_FAILS:-} && $* == *--head* ]] && exit "$HEAD_FAILS"; exec sleep 60',
    "everyframe": 'echo "everyframe $* $RAY_ADDRESS" >> "$WORK/everyframe"; '
    "trap 'echo ended in order >> \"$WORK/everyframe\"; exit 130' TERM; "
    "for _ in $(seq ${SECONDS_OF_WORK:-0}0); do sleep 0.1; done; exit ${CODE:-0}",
    # Of the script's two Python programs one asks Ray how many nodes there are; that takes a cluster.
    "python": 'if [[ $1 == -c ]]; then exec "$REAL_PYTHON" "$@"; fi; cat > "$WORK/wait.py"; echo "$2 of $2 nodes"; '
    "[[ ${HEAD_FAILS:-} ]] && exec sleep 60; "
    'for _ in $(seq 100); do [[ $(wc -l < "$WORK/pids") == 3 ]] && break; sleep 0.05; done',
}


class Job:
    """The script as Slurm would run it on three nodes, all of them this one."""

    def __init__(self, work: Path, *arguments: str, **environment: str) -> None:
        self.work = work
        folder = work / "bin"
        folder.mkdir()
        (work / "pids").touch()
        for name, body in STAND_INS.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        given = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "n[1-3]", "WORK": str(work), **environment}
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            ["bash", str(SBATCH), *arguments],
            env={**os.environ, **given, "PATH": path, "REAL_PYTHON": sys.executable},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def said(self, name: str) -> list[str]:
        path = self.work / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def end(self) -> int:
        self.output, self.errors = self.process.communicate(timeout=30)
        return self.process.returncode

    @property
    def alive(self) -> list[str]:
        """Of Ray's processes those that are still there."""
        return [pid for pid in self.said("pids") if Path(f"/proc/{pid}").exists()]


def test_the_sbatch_script_starts_encodes_and_ends_the_cluster(tmp_path: Path) -> None:
    job = Job(tmp_path, "/data/my videos", "--out", "/data/features")
    assert job.end() == 0, job.errors
    port = 20000 + 1234567 % 10000
    first, *others = sorted(job.said("ray"), key=lambda line: "--head" not in line)
    assert f"--node-ip-address=127.0.0.1 --port={port}" in first and "--block" in first
    assert len(others) == 2 and all(f"--address=127.0.0.1:{port}" in line for line in others)
    assert all(line.endswith(" token 64") for line in (first, *others))  # nobody else may use the cluster
    (started,) = job.said("everyframe")
    assert started == f"everyframe encode /data/my videos --out /data/features --cluster auto 127.0.0.1:{port}"
    assert "3 of 3 nodes" in job.output and job.alive == []
    assert len(job.said("srun")) == 3
    compile("\n".join(job.said("wait.py")), "wait.py", "exec")


def test_the_sbatch_script_ends_with_the_drivers_exit_code(tmp_path: Path) -> None:
    job = Job(tmp_path, "videos", CODE="1")
    assert job.end() == 1
    assert job.alive == []


@pytest.mark.parametrize("code", ["0", "1"])
def test_a_head_that_does_not_start_ends_the_job(tmp_path: Path, code: str) -> None:
    job = Job(tmp_path, "videos", HEAD_FAILS=code)
    assert job.end() == 1
    assert job.said("everyframe") == [] and job.alive == []


@pytest.mark.parametrize("requeue", ["0", "1"])
def test_before_the_time_is_up_the_run_ends_in_order(tmp_path: Path, requeue: str) -> None:
    job = Job(tmp_path, "videos", SECONDS_OF_WORK="30", EVERYFRAME_REQUEUE=requeue)
    until = time.monotonic() + 20
    while not job.said("everyframe") and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.2)  # until its trap is set
    os.kill(job.process.pid, signal.SIGTERM)  # as --signal=B:TERM@300 does: the script alone
    assert job.end() == 130, job.errors
    assert job.said("everyframe")[-1] == "ended in order"
    assert ("requeue 1234567" in job.said("scontrol")) == (requeue == "1")
    assert job.alive == []


def test_the_sbatch_script_without_arguments_says_how(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.end() == 2
    assert "usage: sbatch" in job.errors and job.said("srun") == []
