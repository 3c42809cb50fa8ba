"""A Ray cluster on three hosts, started as docs/cluster.md says."""

import time

import tiny

HEAD, WORKERS = "head", ("w1", "w2")


class Cluster:
    """Head and workers by docs/cluster.md; their commands join again by themselves."""

    def __init__(self, lab, logs):
        self.lab, self.logs = lab, logs
        self.address = f"{lab.ip(HEAD)}:6379"
        self.start_head()
        self.token = (lab.root(HEAD) / "tmp/home/.ray/auth_token").read_text()
        for name in WORKERS:
            self.join(name)
        wait_for(lambda: all("Joined" in self.log(name) for name in WORKERS), 90)

    def start_head(self):
        """Start the head; its token lies on its host."""
        log = self.logs / f"{HEAD}.log"
        known = log.read_text().count("is ready") if log.exists() else 0
        self._nodes(HEAD, "head", "--ip", self.lab.ip(HEAD))
        wait_for(lambda: self.log(HEAD).count("is ready") > known, 90)

    def join(self, name):
        """Start a worker with the head's token."""
        folder = self.lab.root(name) / "tmp/home/.ray"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "auth_token").write_text(self.token)
        (folder / "auth_token").chmod(0o600)
        self._nodes(name, "worker", "--head", self.address, "--cpus", "1")

    def _nodes(self, name, *arguments):
        self.lab.start(
            name,
            *("python", "-u", "cluster/ray_nodes.py", *arguments),
            log=self.logs / f"{name}.log",
            cwd=tiny.ROOT,
            **tiny.environment(),
        )

    def log(self, name):
        return (self.logs / f"{name}.log").read_text()


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)
