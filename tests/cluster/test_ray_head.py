"""The head of a cluster of several machines, up to the start of Ray."""

import importlib.util
from pathlib import Path

from click.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "cluster" / "ray_nodes.py"


def test_the_head_says_where_it_will_be_before_ray_starts(tmp_path, monkeypatch):
    token = tmp_path / "token"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    spec = importlib.util.spec_from_file_location("ray_nodes", SCRIPT)
    ray_nodes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ray_nodes)
    monkeypatch.setattr(ray_nodes, "_ray_start", lambda *_, **__: print("Ray starts."))
    arguments = ["head", "--ip", "10.0.0.1", "--port", "7000", "--dashboard-port", "9000"]

    def output():
        result = CliRunner().invoke(ray_nodes.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    text = output()
    assert text.startswith(f"Copy {token} to the same place")
    # No cluster exists at this moment, and a failure of Ray may follow.
    assert "Cluster at" not in text
    assert "Ray starts the head at 10.0.0.1:7000. When it reports that it is running:" in text
    assert "--address http://127.0.0.1:9000 --working-dir" in text
    assert text.endswith("Ray starts.\n")
    # The token of an earlier start stays.
    made = token.read_text()
    output()
    assert token.read_text() == made
