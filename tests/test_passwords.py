"""Passwords of addresses are in nothing that is recorded."""

import sys

import pytest
import torch

from toco.passwords import public_text
from toco.train.inputs import Inputs
from toco.train.provenance import provenance


def test_the_recorded_command_has_no_password(monkeypatch):
    words = [
        "--tracking-uri",
        "http://me:s@c/ret@host:5000",
        "--tracking-uri=http://me:secret@host?password=secret",
    ]
    monkeypatch.setattr(
        sys, "argv", ["/a/sweeps/__main__.py", "run", "table5", *words, "--set", "a.b=c@d"]
    )
    recorded = provenance(torch.device("cpu"), Inputs("train", "val", None))["command"]
    assert recorded == [
        "python",
        "-m",
        "sweeps",
        "run",
        "table5",
        "--tracking-uri",
        "http://host:5000",
        "--tracking-uri=http://host",
        "--set",
        "a.b=c@d",
    ]


@pytest.mark.parametrize("password", ["secret", "p@ss/w:rd", "pa(ss)word", "it's", "a,b;c"])
def test_a_message_has_no_password_whatever_its_characters(password):
    message = (
        f"GET 'http://me:{password}@host:5000/a' (of http://me:{password}@host) failed, "
        f"says me@host"
    )
    assert public_text(message) == "GET 'http://host:5000/a' (of http://host) failed, says me@host"


def test_addresses_without_a_password_stay(tmp_path):
    message = f"See 'https://host/a(b)', \"http://h\" and <sqlite:///{tmp_path}/mlflow.db>."
    assert public_text(message) == message
