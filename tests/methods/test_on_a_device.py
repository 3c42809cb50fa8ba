"""That a step hands nothing to and fro between host and device, on one that has shapes but no
values.

Tensors on ``meta`` do not mix with those of the host, and to read a value of them is an error, as
it would be to wait.
"""

import dataclasses
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from toco.backbones import vit_nano
from toco.data import ViewsConfig, shapes
from toco.data.loading.loader import TrainLoader
from toco.methods import rca, toco

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Remembers the shapes of tensors that are copied from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            if source.device != result.device:
                self.shapes.append(tuple(source.shape))
        return result


@pytest.fixture
def autocast_on_meta():
    """Autocast, which does not know the device, as if it were the CPU: its
    tensors are not touched.
    """

    class OfTheCpu(torch.autocast):
        def __init__(self, _device_type: str, **options) -> None:
            super().__init__("cpu", **options)

    with patch.object(torch, "autocast", OfTheCpu):
        yield


DECODER = {"segmentation": toco.Term(weight=0.1, start_step=10)}
REGIONS = {
    "aux_block": 0,
    "region_contrast": rca.RegionContrastConfig(weight=0.1, start_step=10),
    "region_memory": rca.MemoryConfig(slots=8),
    # Clustering reads values.
    "aggregation": rca.AggregationConfig(every=1000),
}
CONFIGS = {
    "toco": toco.Config(
        aux_block=0,
        local_crop_size_px=16,
        num_local_crops=2,
        dense_energy=toco.DenseEnergyConfig(filter_name="exact"),
        energy=toco.Term(weight=0.1, start_step=10),
        **DECODER,
    ),
    "toco with regions": toco.Config(
        local_crop_size_px=16, num_local_crops=2, **REGIONS, **DECODER
    ),
    "rca": rca.Config(loss_group_size=2, **REGIONS, **DECODER),
}
# The keys of the crops, one for each place, and the numbers of each image and class.
KEYS, DRAWS = (4, 16 * 16), (3, 4, 8)
COPIES = {"toco": ([KEYS], [KEYS]), "toco with regions": ([KEYS], [KEYS, DRAWS])}
COPIES["rca"] = ([], [DRAWS])
NUM_TERMS = {"toco": (4, 6), "toco with regions": (4, 6), "rca": (2, 4)}


@pytest.mark.usefixtures("autocast_on_meta")
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_copies_its_batch_and_its_random_numbers_and_reads_nothing(name, precision):
    dataset = shapes.open_split(shapes.Config(num_train=4, num_val=1, image_size_px=32), "train")
    raw = next(TrainLoader(dataset, ViewsConfig(crop_size_px=32), 4, seed=0).batches(0, 1))
    encoder = vit_nano.Config(
        width=16, depth=2, num_heads=2, patch_size_px=8, image_size_px=32, weights=None
    )
    config = CONFIGS[name]
    build = {"toco": toco.build, "rca": rca.build}[config.name]
    method = build(config, vit_nano.build(encoder), len(dataset.class_names)).to(META)
    method.autocast_dtype = precision
    batch = raw.to(META)
    of_batch = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    assert all(value.is_meta for value in of_batch if isinstance(value, torch.Tensor))
    for step, terms, expected in zip((0, 10), NUM_TERMS[name], COPIES[name], strict=True):
        with Copies() as copies:
            output = method.training_losses(batch, step, torch.Generator())
            output.total.backward()
        assert len(output.losses) == terms
        assert copies.shapes == expected
    parameters = [parameter for group in method.parameter_groups().values() for parameter in group]
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in parameters)
