"""Several hosts on one Linux machine: namespaces of networks, processes, mounts and names.

Each host has an address of its own (10.77.0.1, .2, ...), process numbers, host name, home, ``/tmp``
and ``/dev/shm``. Its disk is a file system in memory of a given size. ``Lab.shared`` is a folder
that all hosts see, as on NFS. What lies outside of ``/tmp`` is shared, too. All traffic stays
inside the machine. Needs root, iproute2 and util-linux.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

NET = "10.77.0."

# Process 1 of a host: mounts, then collects orphans.
_INIT = r"""
set -e
name=$1 disk=$2 size=$3 shared=$4; shift 4
hostname "$name"
mkdir -p "$disk"
mount -t tmpfs -o "size=$size" tmpfs "$disk"
mkdir -p "$disk/tmp/home"
for kept in "$shared" "$@"; do
    case "$kept" in /tmp/*)
        mkdir -p "$disk$kept"
        mount --bind "$kept" "$disk$kept";;
    esac
done
mount --rbind "$disk/tmp" /tmp
mount -t tmpfs -o size=1g tmpfs /dev/shm
touch /tmp/.booted
trap : CHLD
while :; do sleep 3600 & wait $! || true; done
"""


def missing():
    """Return why this machine cannot have hosts; ``None`` if it can."""
    if os.geteuid() != 0:
        return "hosts need root"
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"hosts need the program {program}"
    command = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "true"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return "this machine forbids namespaces"
    return None


def sh(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Lab:
    """Hosts; a context that switches all of them off at its end.

    Two labs can run beside each other: the names of their networks begin with the process number.
    """

    def __init__(self, folder, keep=(), disk="2g"):
        self.folder, self.keep, self.disk = Path(folder).resolve(), [*map(str, keep)], disk
        self.shared = self.folder / "shared"
        self.shared.mkdir(parents=True)
        self.prefix = f"t{os.getpid() % 10**5}-"
        self.lan = self.prefix + "lan"
        self.numbers, self.inits, self.outers, self.started = {}, {}, {}, {}

    def __enter__(self):
        sh("ip", "netns", "add", self.lan)
        sh("ip", "-n", self.lan, "link", "add", "br0", "type", "bridge")
        sh("ip", "-n", self.lan, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_):
        for name in [*self.numbers]:
            self.off(name)
        sh("ip", "netns", "del", self.lan, check=False)

    def ip(self, name):
        return NET + str(self.numbers[name])

    def boot(self, *names):
        """Start hosts: new ones, or ones that were switched off."""
        for name in names:
            number = self.numbers.setdefault(name, len(self.numbers) + 1)
            space = self.prefix + name
            sh("ip", "netns", "add", space)
            link = ["link", "add", f"p-{name}", "type", "veth", "peer", "name", "eth0"]
            sh("ip", "-n", self.lan, *link, "netns", space)
            sh("ip", "-n", self.lan, "link", "set", f"p-{name}", "master", "br0", "up")
            sh("ip", "-n", space, "addr", "add", f"{NET}{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                sh("ip", "-n", space, "link", "set", device, "up")
            root = self.folder / "disks" / name
            root.mkdir(parents=True, exist_ok=True)
            unshare = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc"]
            unshare += ["--propagation", "private"]
            init = ["bash", "-c", _INIT, "init", name, str(root), self.disk, str(self.shared)]
            # Not by `ip netns exec`: its own /sys has no cgroups, which slurmd asks for.
            outer = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{space}", *unshare, *init, *self.keep],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            self.outers[name], self.inits[name] = outer, self._init_of(outer, name)

    def _init_of(self, outer, name):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/root/tmp/.booted").exists():
                return int(children[0])
            time.sleep(0.05)
        raise RuntimeError(f"{name} does not start")

    def root(self, name):
        """Where this machine sees the files of a host."""
        return Path(f"/proc/{self.inits[name]}/root")

    def command(self, name, command, cwd="/tmp", **environment):
        """Return the command line that runs ``command`` on a host, in the foreground."""
        enter = ["nsenter", "-t", str(self.inits[name]), "-m", "-p", "-u", "-i", "-n", "--"]
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": "/tmp/home",
            "TMPDIR": "/tmp",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        setting = ["env", "-i", *(f"{key}={value}" for key, value in variables.items())]
        run = ["bash", "-c", 'cd "$0"; exec "$@"', str(cwd), *map(str, command)]
        return [*enter, *setting, *run]

    def on(self, name, *command, check=True, cwd="/tmp", **environment):
        """Run a command on a host and return what it prints."""
        line = self.command(name, command, cwd, **environment)
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"on {name}: {command}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name, *command, log, cwd="/tmp", **environment):
        """Start a command on a host; its output goes to the file ``log``."""
        line = self.command(name, command, cwd, **environment)
        with Path(log).open("a") as file:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        self.started.setdefault(name, []).append(process)
        return process

    def processes(self, name):
        """The processes of a host but the first: number on this machine, command line."""
        space = Path(f"/proc/{self.inits[name]}/ns/pid").readlink()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (path / "ns/pid").readlink() == space and int(path.name) != self.inits[name]:
                    line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append((int(path.name), line))
        return found

    def signal(self, name, pattern, number=signal.SIGKILL):
        """Signal the processes of a host whose command line has ``pattern``; return how many."""
        chosen = [pid for pid, line in self.processes(name) if pattern in line]
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGCONT:
            # nsenter stops with its child, and does not continue with it.
            for process in self.started.get(name, ()):
                process.send_signal(number)
        return len(chosen)

    def cut(self, name):
        """Pull the network cable: packets are lost, no connection is closed."""
        sh("ip", "-n", self.lan, "link", "set", f"p-{name}", "down")

    def heal(self, name):
        """Plug the cable in again."""
        sh("ip", "-n", self.lan, "link", "set", f"p-{name}", "up")

    def off(self, name):
        """Switch a host off: all of its processes die at once, and its disk is gone."""
        if (init := self.inits.pop(name, None)) is None:
            return
        with suppress(ProcessLookupError):
            os.kill(init, signal.SIGKILL)
        self.outers.pop(name).wait()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            sh("ip", "netns", "del", self.prefix + name, check=False)
            sh("ip", "-n", self.lan, "link", "del", f"p-{name}", check=False)
            if self.prefix + name not in sh("ip", "netns", "list").split():
                return
            time.sleep(0.2)
