"""One update of a training, of a network of two weights whose gradients are known."""

import math
import subprocess
import sys

import pytest
import torch

from toco.config import replace
from toco.methods import Method
from toco.recipes import shapes_nano
from toco.tensors import Batch, StepOutput
from toco.train.optim import build_optimizer, lr_factor
from toco.train.step import TrainingStep, begin_peak_memory, peak_memory_bytes

CONFIG = replace(
    shapes_nano.recipe(),
    {
        "device": "cpu",
        "num_steps": 100,
        "seed": 7,
        "optim.warmup_steps": 0,
        "optim.layer_decay": 1.0,
        "optim.frozen_layers": 0,
        "optim.weight_decay": 0.0,
    },
)
BATCH = Batch(
    images=torch.zeros(1, 3, 4, 4),
    second_view=None,
    crop_source=None,
    class_labels=torch.ones(1, 1),
    valid_box=torch.tensor([[0, 4, 0, 4]]),
    names=("image",),
    present=torch.zeros(1, 1, dtype=torch.int64),
)


class TwoWeights(Method):
    """The losses are three times the first weight and, from step 50 on, four times the second."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList([torch.zeros(()), torch.zeros(())])
        self.drawn = []

    def training_losses(self, batch, step, generator):
        assert self.training
        self.drawn.append(torch.rand((), generator=generator).item())
        losses = {"first": 3 * self.weights[0], "late": 4 * self.weights[1]}
        return StepOutput(
            {name: losses[name] for name in (["first", "late"] if step >= 50 else ["first"])},
            {"first": 1.0, "late": 1.0},
        )

    def parameter_groups(self):
        return {"backbone": list(self.weights)}


TwoWeights.__abstractmethods__ = frozenset()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no peak of a process alone")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    large = torch.ones(2**27)  # half a gigabyte
    assert peak_memory_bytes(torch.device("cpu")) > large.nbytes
    code = (
        "import torch; from toco.train.step import peak_memory_bytes; "
        "print(peak_memory_bytes(torch.device('cpu')))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) < large.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot begin a new peak")
def test_the_peak_of_a_training_leaves_out_what_the_process_freed_before():
    cpu = torch.device("cpu")
    large = torch.ones(2**27)  # half a gigabyte
    size = large.nbytes
    high = peak_memory_bytes(cpu)
    del large
    begin_peak_memory(cpu)
    assert peak_memory_bytes(cpu) < high - 0.9 * size


@pytest.fixture
def train_step():
    method = TwoWeights().eval()
    return TrainingStep(method, build_optimizer(method, CONFIG.optim), CONFIG)


def test_an_update_takes_the_rate_of_its_step_and_gives_losses_and_the_norm_of_all_gradients(
    train_step,
):
    output, norm = train_step(BATCH, 60)
    assert list(output.losses) == ["first", "late"]
    assert norm.item() == pytest.approx(5.0)
    # The first update of Adam is the rate itself, against the sign of the gradient.
    rate = CONFIG.optim.lr * lr_factor(60, 100, CONFIG.optim)
    assert [w.item() for w in train_step.method.weights] == pytest.approx([-rate, -rate], rel=1e-4)


def test_a_weight_without_a_gradient_counts_its_steps(train_step):
    _, norm = train_step(BATCH, 0)
    assert norm.item() == pytest.approx(3.0)
    first, second = train_step.method.weights
    assert second.item() == 0
    assert (
        train_step.optimizer.state[second]["step"] == train_step.optimizer.state[first]["step"] == 1
    )


def test_sgd_skips_a_weight_without_a_gradient():
    config = replace(CONFIG, {"optim.name": "sgd", "optim.lr": 0.1, "optim.weight_decay": 0.5})
    method = TwoWeights()
    with torch.no_grad():
        method.weights[1].fill_(2.0)
    train_step = TrainingStep(method, build_optimizer(method, config.optim), config)
    first, second = method.weights
    _, norm = train_step(BATCH, 0)
    assert norm.item() == pytest.approx(3.0)
    assert first.item() == pytest.approx(-0.1 * (3 + 0.9 * 3))
    # Neither a decay, nor a momentum.
    assert second.item() == 2.0
    assert second not in train_step.optimizer.state
    train_step(BATCH, 50)
    assert second.item() == pytest.approx(2.0 - 0.1 * 1.9 * (4 + 0.5 * 2.0))


def test_gradients_of_an_earlier_step_are_gone(train_step):
    train_step(BATCH, 60)
    _, norm = train_step(BATCH, 0)
    assert norm.item() == pytest.approx(3.0)


def test_what_is_drawn_depends_on_seed_and_step_alone(train_step):
    for step in (3, 4, 3):
        train_step(BATCH, step)
    other = TrainingStep(train_step.method, train_step.optimizer, replace(CONFIG, {"seed": 8}))
    other(BATCH, 3)
    first, second, again, of_other_seed = train_step.method.drawn
    assert first == again
    assert len({first, second, of_other_seed}) == 3


def test_the_norm_is_not_finite_where_a_gradient_is_not(train_step):
    output = train_step.losses(BATCH, 0)
    output.losses["first"] = output.losses["first"] * math.nan
    train_step.backward(output)
    assert math.isnan(train_step.update(0).item())
