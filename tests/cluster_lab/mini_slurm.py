"""A Slurm of several nodes on the hosts of a lab: each has its own munged and slurmd.

Everything that Slurm writes lies below a host's own ``/tmp``, so that it goes with the host. Jobs
of the partition ``high`` preempt those of ``all``, which Slurm requeues.
"""

import secrets
import shutil
import time

_CONF = """
ClusterName=lab
SlurmctldHost={first}({ip})
AuthType=auth/munge
AuthInfo=socket=/tmp/munge/socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/tmp/slurm/state
SlurmdSpoolDir=/tmp/slurm/spool
SlurmctldPidFile=/tmp/slurm/slurmctld.pid
SlurmdPidFile=/tmp/slurm/slurmd.pid
SlurmctldLogFile=/tmp/slurm/slurmctld.log
SlurmdLogFile=/tmp/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
KillWait=30
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing():
    """Return why this machine cannot have a Slurm; ``None`` if it can."""
    for program in ("slurmctld", "slurmd", "munged", "sbatch"):
        if shutil.which(program) is None:
            return f"a Slurm needs {program} (apt-get install slurm-wlm munge)"
    return None


class Slurm:
    """A running Slurm; the first host has the controller, and all of them are nodes."""

    def __init__(self, lab, names, cpus=1, memory_mb=6000):
        self.lab, self.names = lab, names
        self.conf = lab.shared / "slurm.conf"
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={lab.ip(name)} CPUs={cpus} RealMemory={memory_mb}"
            for name in names
        )
        self.conf.write_text(_CONF.format(first=names[0], ip=lab.ip(names[0]), nodes=nodes))
        self._key = secrets.token_bytes(128)
        for name in names:
            self.start(name)
        self.wait_for(lambda: self("sinfo", "-h", "-N", "-o", "%t").split().count("idle") >= 3, 30)

    def start(self, name):
        """Start the daemons of a host, also of one that was booted again."""
        lab, root = self.lab, self.lab.root(name) / "tmp"
        for folder in ("munge", "slurm/state", "slurm/spool"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "munge").chmod(0o755)
        (root / "munge" / "key").write_bytes(self._key)
        (root / "munge" / "key").chmod(0o400)
        # Names of all nodes, on this host only.
        lines = "".join(f"{lab.ip(other)} {other}\n" for other in self.names)
        (root / "etc_hosts").write_text("127.0.0.1 localhost\n" + lines)
        lab.on(name, "mount", "--bind", "/tmp/etc_hosts", "/etc/hosts")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        options = [f"--{option}=/tmp/munge/{file}" for option, file in files.items()]
        lab.on(name, "munged", "--force", *options, "--seed-file=/tmp/munge/seed")
        if name == self.names[0]:
            lab.on(name, "slurmctld", "-f", str(self.conf))
        lab.on(name, "slurmd", "-f", str(self.conf), "-N", name)

    def __call__(self, *command, check=True, **environment):
        """Run a command on the first host, which is the login node, too."""
        variables = {"SLURM_CONF": str(self.conf), **environment}
        return self.lab.on(self.names[0], *command, check=check, **variables)

    def tasks(self, job):
        """State, node and reason of the tasks of a job in the queue, by number."""
        command = ["squeue", "-h", "-r", "-j", job, "-o", "%K %t %N|%r"]
        found = {}
        for line in self(*command, check=False).splitlines():
            head, _, reason = line.partition("|")
            number, state, *node = head.split()
            found[int(number)] = (state, node[0] if node else "", reason)
        return found

    def begin_now(self, job):
        """Let the tasks that Slurm has requeued start at once, and not after two minutes."""
        for number, (state, _, reason) in self.tasks(job).items():
            if state == "PD" and reason == "BeginTime":
                self("scontrol", "update", f"JobId={job}_{number}", "StartTime=now", check=False)

    @staticmethod
    def wait_for(condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("it took too long")
            time.sleep(0.5)
