"""That torch can hold the step in one graph, in each of its phases, and that the graph computes the
same.
"""

import subprocess
import sys

import pytest

# In a process of its own: the checks of shapes that run under pytest are not for a compiler to see.
SCRIPT = """
import copy
import sys

import torch
from torch._dynamo.utils import counters

from toco.backbones import vit_nano
from toco.methods import rca, toco
from toco.tensors import Batch, present_classes

regions = {
    "region_contrast": rca.RegionContrastConfig(weight=0.5, start_step=10, embedding="points"),
    "region_memory": rca.MemoryConfig(slots=4, threshold=0.0, start="noise"),
    "aggregation": rca.AggregationConfig(kind="softmax", centroids=2, every=10, num_starts=2),
}
no_term = toco.Term(weight=0.0)
configs = {
    "toco": lambda: toco.Config(
        aux_block=0,
        cam_scales=(1.0,),
        local_crop_size_px=16,
        num_local_crops=2,
        par=toco.ParConfig(iterations=2, dilations=(1, 2)),
        segmentation=toco.Term(weight=0.1, start_step=10),
        energy=no_term,
    ),
    # What the other terms compute is in the graphs of the first.
    "toco with regions": lambda: toco.Config(
        aux_block=0, ptc=no_term, ctc=no_term, segmentation=no_term, energy=no_term, **regions
    ),
    "rca": lambda: rca.Config(
        loss_group_size=2,
        aux_block=0,
        class_maps="linear",
        **regions | {"aggregation": rca.AggregationConfig(kind="linear", centroids=2, every=10)},
    ),
}
name = sys.argv[1]
module = {"toco": toco, "rca": rca}[name.split()[0]]
torch.manual_seed(0)
sizes = {"width": 16, "depth": 2, "num_heads": 2, "patch_size_px": 8, "image_size_px": 32}
config = vit_nano.Config(**sizes, weights=None)
method = module.build(configs[name](), vit_nano.build(config), num_foreground_classes=3)
state = copy.deepcopy(method.state_dict())


def batch(labels):
    labels = torch.tensor(labels)
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(2, 3, 32, 32, generator=generator) for _ in range(3)]
    box = torch.tensor([[0, 32, 0, 32], [4, 32, 0, 20]])
    return Batch(*views, labels, box, ("a", "b"), present_classes(labels))


def run(data, step):
    method.zero_grad()
    method.load_state_dict(state)
    output = method.training_losses(data, step, torch.Generator().manual_seed(0))
    output.total.backward()
    losses = {name: loss.detach() for name, loss in output.losses.items()}
    buffers = {name: buffer.clone() for name, buffer in method.named_buffers()}
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return losses, gradients, buffers


batches = [
    batch(labels)
    for labels in (
        [[1.0, 0, 0], [0, 1, 0]],
        [[1.0, 1, 0], [0, 0, 1]],
        [[1.0, 1, 1], [0, 0, 1]],
    )
]
expected = [run(data, step) for step in (0, 10) for data in batches]
method._outcome = torch.compile(method._outcome, fullgraph=True, backend="aot_eager")
found = [run(data, step) for step in (0, 10) for data in batches]
for (losses, gradients, buffers), (plain_losses, plain_gradients, plain_buffers) in zip(
    found, expected
):
    # Of regions: the memory, which a step writes outside of the graph, and its clusters.
    assert any(not torch.equal(buffers[name], state[name]) for name in buffers) == bool(buffers)
    for name in buffers:
        torch.testing.assert_close(buffers[name], plain_buffers[name], rtol=1e-5, atol=1e-6)
    assert losses.keys() == plain_losses.keys() and gradients.keys() == plain_gradients.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, plain_losses[name], rtol=1e-5, atol=1e-6)
    squares = [(gradients[name] - plain_gradients[name]).square().sum() for name in gradients]
    error, size = sum(squares).sqrt(), sum(g.square().sum() for g in gradients.values()).sqrt()
    assert error <= 1e-5 * size, error
# One for each phase, and one more of each for any number of classes in an image.
assert counters["stats"]["unique_graphs"] == 4, counters
"""

# A sweep trains several methods in one process, each with its own settings: graphs of its own.
SEVERAL = """
from unittest.mock import patch

compiled, kept = torch.compile, []


def compile_eagerly(function, fullgraph, mode):
    return compiled(function, fullgraph=fullgraph, backend="eager")


with patch("torch.compile", compile_eagerly):
    for token_box, cam_flip in (("scaled", True), ("scaled", False), ("official", True)):
        config = method.config.model_copy(update={"token_box": token_box, "cam_flip": cam_flip})
        encoder = vit_nano.Config(**sizes, weights=None)
        method = toco.build(config, vit_nano.build(encoder), num_foreground_classes=3)
        method.compile_step()
        kept.append(method)  # as whatever refers to it would: its graphs would go with it
        for step in (0, 10):
            for data in batches:
                method.training_losses(data, step, torch.Generator())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toco", "toco with regions", "rca"])
def test_one_graph_holds_each_phase(name):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_one_process_compiles_one_method_after_the_other():
    begin, _ = SCRIPT.split("expected = ")
    done = subprocess.run(
        [sys.executable, "-c", begin + SEVERAL, "toco"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
