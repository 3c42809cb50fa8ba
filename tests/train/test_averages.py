import math

import pytest
import torch

from toco.tensors import StepOutput
from toco.train import averages
from toco.train.averages import Averages, DivergedError


def output(loss):
    return StepOutput({"ptc": torch.tensor(loss)}, {"ptc": 2.0}, {"pairs": torch.tensor(3.0)})


def add(mean, step, loss, norm=1.0, stop=False):
    mean.add(output(loss), torch.tensor(norm), step, stop)


class Arrival:
    waited_for = 0

    def synchronize(self):
        Arrival.waited_for += 1


@pytest.fixture
def far_away(monkeypatch):
    """Values that have a way to go, as from a GPU."""
    Arrival.waited_for = 0
    monkeypatch.setattr(averages, "_to_host", lambda values: (values, Arrival()))


def test_means_since_the_last_row():
    mean = Averages({})
    for step, loss in enumerate((1.0, 2.0, 6.0)):
        add(mean, step, loss)
        mean.add_time(0.5)
    assert mean.take() == {
        "train/ptc": 3.0,
        "train/pairs": 3.0,
        "train/gradient_norm": 1.0,
        "train/loss_total": 6.0,
        "train/step_time_s": 0.5,
    }
    add(mean, 3, 10.0)
    assert mean.take()["train/ptc"] == 10.0


def test_a_loss_that_is_not_finite_is_said_at_the_next_step():
    mean = Averages({})
    add(mean, 7, math.nan)
    with pytest.raises(DivergedError, match="At step 7, ptc is nan"):
        add(mean, 8, 1.0)
    add(mean, 9, 1.0, norm=math.inf)
    with pytest.raises(DivergedError, match="At step 9, gradient_norm is inf"):
        mean.check()


def test_what_was_added_goes_on_from_a_checkpoint():
    mean = Averages({})
    add(mean, 0, 1.0)
    mean.check()
    resumed = Averages(mean.state())
    add(resumed, 1, 3.0)
    assert resumed.take()["train/ptc"] == 2.0


def test_the_last_steps_can_be_left_on_their_way(far_away):
    mean = Averages({})
    for step in range(3):
        mean.check(but_last=2)
        mean._pending.append(
            averages._Pending(
                step, ["ptc"], 1, *averages._to_host(torch.tensor([float(step), float(step == 1)]))
            )
        )
    assert Arrival.waited_for == 0
    mean.check(but_last=2)
    assert Arrival.waited_for == 1
    assert not mean.stop_was_set
    mean.check(but_last=1)
    assert mean.stop_was_set
    assert mean.take() == {"train/ptc": 1.0}
    assert Arrival.waited_for == 3
