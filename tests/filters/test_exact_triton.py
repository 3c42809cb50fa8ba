"""The kernel on CUDA, where there is one; everywhere else in Triton's interpreter, and compiled for
a GPU not there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toco.boxes import full_boxes, inside
from toco.filters import exact

triton = pytest.importorskip("triton", reason="Triton is for Linux only")
CASES = {
    "one map, no box": {"shape": (1, 1, 7, 5), "box": None},
    "two images, box": {"shape": (2, 5, 9, 37), "box": [[1, 8, 3, 37], [0, 9, 0, 31]]},
    "an empty box": {"shape": (2, 2, 5, 6), "box": [[2, 2, 0, 6], [0, 5, 1, 6]]},
    "21 maps, no box": {"shape": (1, 21, 4, 33), "box": None},
    "70 maps, narrow": {"shape": (1, 70, 8, 9), "box": None, "sigmas": (2.0, 1.5)},
}
INTERPRETED = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from test_exact_triton import CASES, inputs, largest_relative_error
from toco.filters import _exact_triton
def run(images, values, sigmas, boxes):
    return _exact_triton.build(images, *sigmas, boxes)(values)
print(json.dumps({name: largest_relative_error(case, run) for name, case in CASES.items()}))
"""
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def inputs(case: dict) -> tuple[Tensor, Tensor, tuple[float, float], Tensor | None]:
    """Images that are not whole numbers, maps, standard deviations and boxes."""
    num_images, num_maps, height, width = case["shape"]
    generator = torch.Generator().manual_seed(0)
    images = 255 * torch.rand(num_images, 3, height, width, generator=generator)
    # Colours of a few pixels are alike, as in an image.
    images[..., ::2] = images[..., ::2] / 20 + 100
    values = torch.rand(num_images, num_maps, height, width, generator=generator)
    return (
        images,
        values,
        case.get("sigmas", (15.0, 50.0)),
        None if case["box"] is None else torch.tensor(case["box"]),
    )


def largest_relative_error(case: dict, run) -> float:
    """Of any sum, against every pair by its distance in float64; infinite if something is left
    outside of a box.
    """
    images, values, sigmas, boxes = inputs(case)
    num_images, _, height, width = values.shape
    pixels = inside(
        full_boxes(num_images, height, width, torch.device("cpu")) if boxes is None else boxes,
        height,
        width,
    )
    result = run(images, values.masked_fill(~pixels[:, None], float("nan")), sigmas, boxes)
    if result.shape != values.shape or (result * ~pixels[:, None] != 0).any():
        return float("inf")
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    errors = []
    for image, maps, there, sums in zip(
        images.double(), values.double(), pixels, result.double(), strict=True
    ):
        features = torch.cat([torch.stack([row, column]) / sigmas[1], image / sigmas[0]])[
            :, there
        ].T
        weights = torch.exp(
            -(torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / 2
        )
        expected = maps[:, there] @ weights
        errors += ((sums[:, there] - expected).abs() / expected).flatten().tolist()
    return max(errors)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, float]:
    """Errors in the interpreter, which Triton has to be told of before the kernel is defined: in
    another process.
    """
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(Path(__file__).parent)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernel_is_within_1e_4_of_float64(interpreted, case):
    # Found: 3e-5 at most, from the products in bfloat16.
    assert interpreted[case] < 1e-4


@pytest.mark.parametrize("compute_capability", [80, 90])
def test_kernel_compiles_and_keeps_its_weights_in_registers(
    compute_capability, tmp_path, monkeypatch
):
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    from toco.filters import _exact_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = _exact_triton._gaussian_sums
    types = {"features": "*fp32", "values": "*bf16", "sums": "*fp32", "counts": "*i32"}
    types |= {"num_points": "i32", "num_channels": "i32"}
    constants = {
        "targets_per_program": 128,
        "sources_per_step": 32,
        "steps_per_sum": 4,
        "channels": 32,
    }
    constants["factor"] = tl.bfloat16
    place = {name: i for i, name in enumerate(kernel.arg_names)}
    source = triton.compiler.ASTSource(
        kernel,
        types | dict.fromkeys(constants, "constexpr"),
        {(place[name],): value for name, value in constants.items()},
        {(place[name],): [["tt.divisibility", 16]] for name in types},
    )
    target = GPUTarget("cuda", compute_capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 2})
    product = "wgmma.mma_async" if compute_capability == 90 else "mma.sync"
    assert product in compiled.asm["ptx"]
    assert "ex2.approx" in compiled.asm["ptx"]
    assert "atom" not in compiled.asm["ptx"]
    # Moved through memory, tiles of weights would be allocated there with a tensor as the first
    # value.
    assert "tensor<128x32xbf16" in compiled.asm["ttgir"]
    assert not [line for line in compiled.asm["ttgir"].splitlines() if "local_alloc %" in line]


def test_a_cpu_has_no_fused_kernel():
    assert not exact.has_fused_kernel(torch.zeros(1, 3, 2, 2))


@ON_CUDA
@pytest.mark.parametrize("case", CASES)
def test_kernel_is_within_1e_4_of_float64(case):
    def run(images, values, sigmas, boxes):
        images, values = images.cuda(), values.cuda()
        built = exact.build(images, *sigmas, None if boxes is None else boxes.cuda())
        assert exact.has_fused_kernel(images)
        return built(values).cpu()

    assert largest_relative_error(CASES[case], run) < 1e-4


@ON_CUDA
@pytest.mark.parametrize("num_maps", [1, 5, 21, 81])
def test_kernel_agrees_with_torch_on_an_image(num_maps):
    generator = torch.Generator().manual_seed(1)
    images = torch.nn.functional.interpolate(
        255 * torch.rand(2, 3, 9, 9, generator=generator), size=(112, 112)
    )
    images = (images + 10 * torch.rand(2, 3, 112, 112, generator=generator)).cuda()
    values = torch.rand(2, num_maps, 112, 112, generator=generator).cuda()
    boxes = torch.tensor([[0, 112, 0, 112], [5, 101, 17, 90]]).cuda()
    result = exact.build(images, 15.0, 50.0, boxes)(values)
    expected = exact.build(images.double(), 15.0, 50.0, boxes)(values.double())
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=0)


@ON_CUDA
def test_kernel_is_deterministic_and_waits_for_nothing():
    generator = torch.Generator().manual_seed(2)
    images, values = (
        255 * torch.rand(2, 3, 60, 70, generator=generator),
        torch.rand(2, 21, 60, 70, generator=generator),
    )
    images, values, boxes = (
        images.cuda(),
        values.cuda(),
        torch.tensor([[0, 60, 0, 70], [3, 41, 8, 70]]).cuda(),
    )
    expected = exact.build(images, 15.0, 50.0, boxes)(values)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        built = exact.build(images, 15.0, 50.0, boxes)
        results = [built(values) for _ in range(5)]
        exact.build(images, 15.0, 50.0)(values)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(result, expected) for result in results)
