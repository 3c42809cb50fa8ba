"""Passwords of addresses are in nothing that is recorded."""

import sys

import torch

from toco.train.run_folder import Inputs, provenance


def test_the_recorded_command_has_no_password(monkeypatch):
    words = ["--tracking-uri", "http://me:s@c/ret@host:5000", "--tracking-uri=http://me:secret@host?password=secret"]
    monkeypatch.setattr(sys, "argv", ["/a/sweeps/__main__.py", "run", "table5", *words, "--set", "a.b=c@d"])
    recorded = provenance(torch.device("cpu"), Inputs("train", "val", None))["command"]
    assert recorded == [
        "__main__.py",
        "run",
        "table5",
        "--tracking-uri",
        "http://host:5000",
        "--tracking-uri=http://host",
        "--set",
        "a.b=c@d",
    ]
