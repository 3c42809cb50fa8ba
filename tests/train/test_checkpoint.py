import os
import subprocess
import sys
import threading

import pytest
import safetensors.torch
import torch
from torch import nn

from toco.files import read_record, write_record
from toco.train import checkpoint


def network(width=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, 4), nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train_once(model, optimizer):
    optimizer.zero_grad()
    (model(torch.randn(8, model[0].in_features)) ** 2).mean().backward()
    optimizer.step()


def save(tmp_path, step, model, optimizer):
    return checkpoint.save(tmp_path, step, "digest", model, optimizer, {})


def test_a_restored_run_goes_on_bit_for_bit(tmp_path):
    model, optimizer = network()
    train_once(model, optimizer)
    path = save(tmp_path, 1, model, optimizer)
    train_once(model, optimizer)
    expected = [p.clone() for p in model.parameters()]

    other, other_optimizer = network()
    torch.manual_seed(99)
    checkpoint.restore(checkpoint.read(path), other, other_optimizer)
    train_once(other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(expected, other.parameters(), strict=True))


class LateNetwork(nn.Module):
    """The second of two layers joins at a step, and gets its first gradient there."""

    def __init__(self, starts_at):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.late = nn.Linear(3, 3), nn.Linear(3, 3)
        self.starts_at = starts_at

    def forward(self, x, step):
        return self.late(self.first(x)) if step >= self.starts_at else self.first(x)


def sgd_of(model):
    return torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1
    )


def train_from(model, optimizer, start, stop):
    for step in range(start, stop):
        optimizer.zero_grad(set_to_none=True)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        (model(x, step) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("saved_at", range(1, 6))
@pytest.mark.parametrize("is_used", [False, True], ids=["new", "used"])
def test_sgd_goes_on_bit_for_bit_before_and_after_the_first_gradient(tmp_path, saved_at, is_used):
    model = LateNetwork(starts_at=3)
    optimizer = sgd_of(model)
    train_from(model, optimizer, 0, saved_at)
    path = save(tmp_path, saved_at, model, optimizer)
    saved = checkpoint.read(path)
    momenta = {f"momentum_buffer/{name}" for name in ("first.weight", "first.bias")}
    if saved_at > 3:
        momenta |= {f"momentum_buffer/{name}" for name in ("late.weight", "late.bias")}
    assert saved.part("optimizer").keys() == momenta
    train_from(model, optimizer, saved_at, 6)

    other = LateNetwork(starts_at=3)
    other_optimizer = sgd_of(other)
    if is_used:  # momentum of another training, which must be gone
        train_from(other, other_optimizer, 2, 6)
    checkpoint.restore(saved, other, other_optimizer)
    train_from(other, other_optimizer, saved_at, 6)
    for name, parameter in model.named_parameters():
        theirs = other.get_parameter(name)
        assert torch.equal(parameter, theirs), name
        states = optimizer.state[parameter], other_optimizer.state[theirs]
        assert torch.equal(*(state["momentum_buffer"] for state in states)), name


def test_extra_parts_come_back(tmp_path):
    model, optimizer = network()
    path = checkpoint.save(
        tmp_path, 1, "d", model, optimizer, {"averages": {"train/ptc": torch.tensor([3.0, 2.0])}}
    )
    assert checkpoint.read(path).part("averages")["train/ptc"].tolist() == [3.0, 2.0]


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_taken(tmp_path, caplog):
    model, optimizer = network()
    save(tmp_path, 1, model, optimizer)
    path = save(tmp_path, 2, model, optimizer)
    tensors = path / checkpoint.TENSORS
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.read(path)
    assert checkpoint.latest(tmp_path).step == 1
    assert "Skipping a checkpoint" in caplog.text


def test_a_crash_while_writing_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    model, optimizer = network()
    save(tmp_path, 1, model, optimizer)

    def crash(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, 2, model, optimizer)
    assert [path.name for path in checkpoint.all_in(tmp_path)] == ["step_00000001"]
    assert checkpoint.latest(tmp_path).step == 1
    save(tmp_path, 2, model, optimizer)
    checkpoint.prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_a_model_of_other_shapes_is_refused_by_name(tmp_path):
    path = save(tmp_path, 1, *network())
    with pytest.raises(
        checkpoint.CheckpointError, match=r"0.weight has shape \(4, 3\), expected \(4, 5\)"
    ):
        checkpoint.restore(checkpoint.read(path), network(width=5)[0])


def test_an_unknown_format_is_refused(tmp_path):
    path = save(tmp_path, 1, *network())
    write_record(
        path / checkpoint.STATE, read_record(path / checkpoint.STATE) | {"format_version": 99}
    )
    with pytest.raises(checkpoint.CheckpointError, match="format version 99"):
        checkpoint.read(path)


def test_folder_names_sort_by_step():
    names = [checkpoint.folder_name(step) for step in (9, 10, 20_000, 100_000)]
    assert names == sorted(names)


def test_a_checkpoint_written_beside_the_training_has_the_bytes_of_one_written_at_once(tmp_path):
    model, optimizer = network()
    with checkpoint.Writer(tmp_path / "beside", "digest", keep=2) as writer:
        for step in (1, 2):
            train_once(model, optimizer)
            saved = checkpoint.save(
                tmp_path / "at once", step, "digest", model, optimizer, {"a": {"b": torch.ones(2)}}
            )
            writer.start(
                step, model, optimizer, {"a": {"b": torch.ones(2)}}, then=lambda path: None
            )
            # The training goes on while it is written.
            for parameter in model.parameters():
                parameter.data.zero_()
            checkpoint.restore(checkpoint.read(saved), model, optimizer)
    for left, right in zip(
        checkpoint.all_in(tmp_path / "beside"), checkpoint.all_in(tmp_path / "at once"), strict=True
    ):
        for name in (checkpoint.TENSORS, checkpoint.STATE):
            assert (left / name).read_bytes() == (right / name).read_bytes()


def test_who_is_told_of_a_checkpoint_finds_it_whole_and_the_next_one_waits(tmp_path):
    model, optimizer = network()
    told, may_go_on = [], threading.Event()

    def tell(path):
        assert may_go_on.wait(600)
        told.append(
            (checkpoint.read(path).step, [other.name for other in checkpoint.all_in(tmp_path)])
        )

    with checkpoint.Writer(tmp_path, "digest", keep=1) as writer:
        writer.start(1, model, optimizer, {}, tell)
        writer.check()
        assert told == []
        may_go_on.set()
        writer.start(2, model, optimizer, {}, tell)
        assert told == [(1, ["step_00000001"])]
    assert told[1:] == [(2, ["step_00000002"])]


def test_what_goes_wrong_beside_the_training_is_raised_in_it_and_once(tmp_path, monkeypatch):
    model, optimizer = network()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with checkpoint.Writer(tmp_path, "digest", keep=1) as writer:
        writer.start(1, model, optimizer, {}, then=lambda path: None)
        with pytest.raises(OSError, match="disk full"):
            writer.wait()
        writer.wait()
        writer.check()
    assert checkpoint.all_in(tmp_path) == []


def test_a_process_that_is_killed_while_it_writes_leaves_the_checkpoint_before_it(tmp_path):
    code = """
import os, sys, threading, torch
from pathlib import Path
from toco.train import checkpoint
model = torch.nn.Linear(3, 4)
with checkpoint.Writer(Path(sys.argv[1]), "digest", keep=2) as writer:
    for step in (1, 2):
        if step == 2:
            checkpoint.sha256 = lambda path: os.kill(os.getpid(), 9)
        writer.start(step, model, torch.optim.AdamW(model.parameters()), {}, then=lambda path: None)
        writer.wait()
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert checkpoint.latest(tmp_path).step == 1
    assert len(list(tmp_path.glob(".*.partial"))) == 1
