"""A real Slurm on this machine for tests: controller and nodes on the loopback, without systemd, cgroups or a database.

A node is a slurmd of its own, so one can die while the others go on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PATIENCE = 3600
"""Seconds: the machine may be busy with other things."""
ACTIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}

CONF = """
ClusterName=vitptest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a job that is queued again waits until its credential has expired: 121 s by default
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=10
MinJobAge=7200
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout={dead_after}
SlurmdParameters=config_overrides
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
"""


class Cluster:
    """A Slurm that runs.

    Attributes:
        environment: with which its programs, and vitp, are started.
    """

    def __init__(self, folder: Path, nodes: int, cpus: int) -> None:
        self.folder, self.cpus = folder, cpus
        self.nodes = [f"node{number + 1}" for number in range(nodes)]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self._daemons: dict[str, subprocess.Popen] = {}

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def start(self) -> None:
        """Raises AssertionError when it does not come up."""
        ports = _free_ports(1 + len(self.nodes))
        conf = CONF.format(host=socket.gethostname().split(".")[0], port=ports[0], folder=self.folder, dead_after=15)
        for node, port in zip(self.nodes, ports[1:], strict=True):
            conf += f"NodeName={node} NodeHostname={socket.gethostname().split('.')[0]} NodeAddr=127.0.0.1 Port={port} "
            conf += f"CPUs={self.cpus} CoresPerSocket={self.cpus} RealMemory=4096 State=UNKNOWN\n"
            (self.folder / f"spool-{node}").mkdir()
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(conf)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self.folder.chmod(0o755)  # munged refuses folders that others may write
        own = {"socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munged.seed", "log-file": "munged.log"}
        paths = [f"--{name}={self.folder / file}" for name, file in own.items()]
        self._launch("munged", "--foreground", "--force", f"--key-file={key}", *paths)
        wait_for(lambda: (self.folder / "munge.socket").exists(), "munged", 30)
        self._launch("slurmctld", "-D")
        wait_for(lambda: "UP" in self._ask("scontrol", "ping"), "slurmctld", 60)
        for node in self.nodes:
            self._launch("slurmd", "-D", "-N", node, name=node)
        wait_for(lambda: self._ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(self.nodes), "nodes", 60)

    def stop(self) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            if jobs := self._ask("squeue", "-h", "-o", "%A").split():
                self._ask("scancel", *set(jobs))
                wait_for(lambda: not self._ask("squeue", "-h"), "the queue to end", 60)
        for name in reversed(list(self._daemons)):
            daemon = self._daemons.pop(name)
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def kill_node(self, node: str) -> None:
        """What a power cut does: slurmd and all processes of the node's tasks are gone at once."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for pid in self._processes(node):
            for victim in (_parent(pid), pid):
                if victim == pid or "slurmstepd" in _command(victim):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)

    def node_of(self, pid: int) -> str:
        """The node on which a task's process runs."""
        return _variables(pid).get("SLURMD_NODENAME", "")

    def states(self, ids: list[str]) -> dict[str, str]:
        """The last states of jobs and array tasks, by JOB or JOB_INDEX."""
        query = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}", "--format=%i|%T"]
        return dict(line.split("|") for line in self.call(*query).split())

    def wait(self, ids: list[str]) -> dict[str, str]:
        """The states in which jobs and array tasks have ended."""
        found: dict[str, str] = {}

        def ended() -> bool:
            found.clear()
            found.update(self.states(ids))
            return bool(found) and not set(found.values()) & ACTIVE

        wait_for(ended, "the end of the jobs", PATIENCE, 0.5)
        return found

    def _launch(self, program: str, *words: str, name: str = "") -> None:
        with (self.folder / f"{name or program}.out").open("w") as log:
            self._daemons[name or program] = subprocess.Popen(
                [shutil.which(program, path=PATH), *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _ask(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30)
        return done.stdout.strip()

    def _processes(self, node: str) -> list[int]:
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        mine = {"SLURMD_NODENAME": node, "SLURM_CONF": self.environment["SLURM_CONF"]}
        return [pid for pid in pids if mine.items() <= _variables(pid).items()]


@contextmanager
def slurm(folder: Path, nodes: int = 1, cpus: int = 2) -> Iterator[Cluster]:
    """A Slurm while the block runs."""
    cluster = Cluster(folder, nodes, cpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def why_no_slurm() -> str:
    """Why none can be started here; empty when one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if missing:
        return f"needs Slurm (Debian: munge slurmctld slurmd slurm-client); {missing[0]} is not there"
    return "" if os.geteuid() == 0 else "needs root to start a Slurm"


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE, pause: float = 0.05) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited {seconds:.0f} s for {what}"
        time.sleep(pause)


def owner(lock: Path) -> int:
    """The process that holds a lock, as soon as there is one."""
    wait_for(lambda: lock.exists() and "process " in lock.read_text(), f"the owner of {lock}", pause=0.02)
    return int(lock.read_text().split("process ")[1].split()[0])


def pending_signals(pid: int) -> set[int]:
    """Signals that a process has got and not yet taken, as one that is suspended."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    bits = sum(int(line.split()[1], 16) for line in status if line.startswith(("SigPnd", "ShdPnd")))
    return {number for number in range(1, 64) if bits >> (number - 1) & 1}


def _variables(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return pid


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
