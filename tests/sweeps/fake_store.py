"""MLflow for tests of drivers: a store that takes everything."""

from toco.tracking import Pages


class FakeStore:
    """Stands for ``toco.tracking.Tracker``; ``parent`` is the status of the study's run."""

    def __init__(self, *_):
        self.parent = None

    def ensure_parent(self, *_, **__):
        self.parent = "RUNNING"
        return "parent"

    def pages(self):
        return Pages("http://127.0.0.1:5000", "1")

    def track(self, *_, **__):
        return "run"

    def describe_parent(self, *_, **__):
        return True

    def finish_parent(self, _, files, status, note):
        self.parent = status
        return True
