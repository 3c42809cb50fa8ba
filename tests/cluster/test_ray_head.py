"""Nodes of a cluster of several machines: what Ray is asked for, and what a person reads."""

import importlib.util
import signal
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sweeps.core.run import ray_node
from sweeps.core.run.ray_node import RayNode

SCRIPT = Path(__file__).parents[2] / "cluster" / "ray_nodes.py"


@pytest.fixture
def ray_nodes(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    spec = importlib.util.spec_from_file_location("ray_nodes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Node:
    """A node that plays its part: states by :meth:`poll`, in order."""

    def __init__(self, states, problem=None):
        self.states, self.given_problem, self.grace_s = list(states), problem, 3.0
        self.starts, self.ended, self.drained = 0, 0, False

    def start(self):
        self.starts += 1

    def poll(self):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if callable(state):
            return state()
        return state

    def problem(self):
        return self.given_problem

    def end(self):
        self.ended += 1

    def drain(self, signals):
        self.drained = True


def supervise(ray_nodes, monkeypatch, node, received=None):
    class Signals:
        def __init__(self):
            self.received = None

        def wait(self, seconds):
            waits.append(seconds)
            if len(waits) == 3 and received is None:
                self.received = signal.SIGINT

    waits, signals = [], Signals()
    monkeypatch.setattr(ray_nodes, "Signals", lambda: signals)
    monkeypatch.setattr(ray_nodes.time, "sleep", lambda _: None)
    node.signals = signals
    ray_nodes._supervise(node, lambda: "Joined.", "Left.", is_head=False)
    return waits


def test_the_head_names_its_token_its_ports_and_how_to_submit(ray_nodes, tmp_path, monkeypatch):
    given = []

    def supervise(node, joined, left, *, is_head):
        given.append((node, joined(), left, is_head))

    monkeypatch.setattr(ray_nodes, "_supervise", supervise)
    token = tmp_path / "token"
    arguments = ["head", "--ip", "10.0.0.1", "--port", "7000", "--dashboard-port", "9000"]
    result = CliRunner().invoke(
        ray_nodes.main, [*arguments, "--ports", "21000", "--gpus", "2"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert result.output.startswith(f"Copy {token} to the same place")
    ((node, joined, left, is_head),) = given
    assert is_head
    assert joined.startswith("Head at 10.0.0.1:7000 is ready. Submit a study from")
    assert "--address http://127.0.0.1:9000 --working-dir" in joined
    assert "10.0.0.1:7000 has ended, and is started again" in left
    options = dict(zip(node._arguments[1::2], node._arguments[2::2], strict=True))
    assert node._arguments[0] == "--head"
    assert options == {
        "--port": "7000",
        "--ray-client-server-port": "21006",
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": "9000",
        "--node-ip-address": "10.0.0.1",
        "--num-cpus": "0",
        "--num-gpus": "2",
        "--object-store-memory": "200000000",
        "--node-manager-port": "21000",
        "--object-manager-port": "21001",
        "--runtime-env-agent-port": "21002",
        "--dashboard-agent-grpc-port": "21003",
        "--dashboard-agent-listen-port": "21004",
        "--metrics-export-port": "21005",
        "--min-worker-port": "21010",
        "--max-worker-port": "21299",
    }
    # The token of an earlier start stays.
    made = token.read_text()
    CliRunner().invoke(ray_nodes.main, arguments, catch_exceptions=False)
    assert token.read_text() == made


def test_a_worker_without_a_token_is_refused(ray_nodes):
    result = CliRunner().invoke(ray_nodes.main, ["worker", "--head", "10.0.0.1:6379"])
    assert result.exit_code == 1
    assert "Copy the head's to that place" in result.output


def test_a_node_joins_again_after_pauses_that_grow(ray_nodes, monkeypatch, capsys):
    node = Node(["starting", "joined", "joined", "ended", "ended", "ended"])
    waits = supervise(ray_nodes, monkeypatch, node)
    assert capsys.readouterr().out == "Joined.\nLeft.\n"  # not again while the head is away
    assert waits == [1.0, 2.0, 4.0]
    assert node.starts == 3
    assert not node.drained


def test_a_node_that_can_never_join_ends_with_a_sentence(ray_nodes, monkeypatch):
    node = Node(["ended"], problem="The head refuses the token.")
    with pytest.raises(click.ClickException, match=r"The head refuses the token\."):
        supervise(ray_nodes, monkeypatch, node)
    assert node.ended == 1


@pytest.mark.parametrize(
    ("number", "drains"),
    [(signal.SIGTERM, True), (signal.SIGUSR1, True), (signal.SIGINT, False)],
)
def test_an_announced_end_drains_the_node(ray_nodes, monkeypatch, capsys, number, drains):
    node = Node(["joined"])

    def then_signal():
        node.signals.received = number
        return "joined"

    node.states = ["joined", then_signal, "joined"]
    supervise(ray_nodes, monkeypatch, node, received=number)
    assert node.drained is drains
    assert node.ended == 1
    assert (
        "trainings store their checkpoints, for at most 3 s" in capsys.readouterr().out
    ) == drains


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("RPC error: InvalidAuthToken: Authentication token is missing", "refuses the token"),
        ("RuntimeError: Version mismatch: The cluster was started with", "another version of Ray"),
        ("GCS returned an authentication error. This may happen when GCS restarted", None),
    ],
)
def test_only_what_waiting_cannot_repair_is_a_problem(tmp_path, monkeypatch, output, words):
    node = RayNode([], "10.0.0.1:6379", 5.0)
    monkeypatch.setattr(node, "_log", tmp_path / "log")
    (tmp_path / "log").write_text(output)
    problem = node.problem()
    assert (problem is None) if words is None else (words in problem)


def test_a_node_without_a_head_describes_nothing():
    assert ray_node.RayNode([], "127.0.0.1:9", 5.0)._output() == ""
