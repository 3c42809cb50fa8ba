"""What Ray starts with: a token only its owner can read, loopback, no reports home."""

import os
import stat

import pytest

from sweeps.core.plan import ray_environment


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    saved = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("RAY_", "TUNE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "token"))
    yield
    for name in set(os.environ) - set(saved):
        del os.environ[name]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_local_cluster_has_a_token_and_stays_on_loopback():
    ray_environment.prepare("local")
    path = ray_environment.token_path()
    assert mode(path) == 0o600
    assert len(path.read_text()) >= 32
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_a_token_is_kept_and_closed_to_others():
    path = ray_environment.token_path()
    path.parent.mkdir()
    path.write_text("of the cluster")
    path.chmod(0o644)
    ray_environment.ensure_token()
    assert path.read_text() == "of the cluster"
    assert mode(path) == 0o600


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    ray_environment.prepare("local")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_cluster_of_other_machines_is_met_at_its_address_and_makes_no_token():
    ray_environment.prepare("10.0.0.1:6379")
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
    assert "RAY_AUTH_MODE" not in os.environ
    assert not ray_environment.token_path().exists()


def test_a_token_in_the_environment_is_used_and_no_file_is_made(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    ray_environment.prepare("local")
    assert not ray_environment.token_path().exists()
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_the_address(monkeypatch):
    assert ray_environment.resolve_address(None) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert ray_environment.resolve_address(None) == "127.0.0.1:6379"
    assert ray_environment.resolve_address("auto") == "auto"
    with pytest.raises(ValueError, match="ray job submit"):
        ray_environment.resolve_address("http://127.0.0.1:8265")
