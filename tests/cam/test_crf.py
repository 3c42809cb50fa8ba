import numpy as np
import pytest
import torch

from toco.cam.config import CrfConfig
from toco.cam.crf import dense_crf

PHOTOS = ("photo_48x64", "photo_56x40_4cls", "saturated_probs")
INFERENCE = CrfConfig(
    position_weight=3,
    position_sigma=3,
    bilateral_weight=10,
    bilateral_sigma_xy=80,
    bilateral_sigma_rgb=13,
)
RECORDED = {
    "crf_inference_t1": INFERENCE.model_copy(update={"iterations": 1}),
    "crf_inference_t10": INFERENCE,
    "crf_inference_t10_scale2": INFERENCE.model_copy(
        update={"position_sigma": 1.5, "bilateral_sigma_xy": 40.0}
    ),
    "DenseCRF_infer_seg_voc": CrfConfig(),
    "DenseCRF_infer_cam_crf_label": CrfConfig(
        position_weight=3, position_sigma=3, bilateral_sigma_xy=36, bilateral_sigma_rgb=3
    ),
}
EXACT_RECORDED = ("crf_inference_t1", "crf_inference_t10", "DenseCRF_infer_seg_voc")
OF_LABELS = INFERENCE.model_copy(update={"bilateral_sigma_xy": 50.0, "bilateral_sigma_rgb": 5.0})


def with_filter(config, name):
    return config.model_copy(update={"filter_name": name})


def levels(case):
    return case["img"].permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("setting", RECORDED)
def test_on_the_lattice_the_field_is_that_of_pydensecrf(golden_cases, name, setting):
    case = golden_cases("crf")[name]
    found = dense_crf(levels(case), case["probs"][None], with_filter(RECORDED[setting], "lattice"))[
        0
    ]
    torch.testing.assert_close(found, case[setting], rtol=0, atol=1e-5)  # found: at most 9e-7
    assert torch.equal(found.argmax(0), case[setting].argmax(0))


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("setting", EXACT_RECORDED)
def test_with_exact_sums_the_field_is_that_of_a_recorded_brute_force(golden_cases, name, setting):
    case = golden_cases("crf")[name]
    found = dense_crf(levels(case), case["probs"][None], with_filter(RECORDED[setting], "exact"))[0]
    expected = case[f"exact_{setting}"]
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)  # found: at most 6e-6
    assert torch.equal(found.argmax(0), expected.argmax(0))


@pytest.mark.parametrize("name", ["label_photo", "label_photo_21"])
@pytest.mark.parametrize(("filter_name", "out"), [("lattice", "out"), ("exact", "exact_out")])
def test_refines_labels_as_recorded(golden_cases, name, filter_name, out):
    case = golden_cases("crf")[name]
    height, width, _ = case["img"].shape
    probabilities = (-case["unary"]).exp().view(1, -1, height, width)
    found = dense_crf(levels(case), probabilities, with_filter(OF_LABELS, filter_name))
    assert torch.equal(found[0].argmax(0), case[out].long())


def brute_force(image, probabilities, config):
    """The mean field in float64, with every weight of every pair of pixels."""
    channels, height, width = image.shape
    position = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    colour = image.reshape(channels, -1).T
    distances = [((f[:, None] - f[None]) ** 2).sum(-1) for f in (position, colour)]
    gaussian = np.exp(-distances[0] / (2 * config.position_sigma**2))
    bilateral = np.exp(
        -distances[0] / (2 * config.bilateral_sigma_xy**2)
        - distances[1] / (2 * config.bilateral_sigma_rgb**2)
    )
    kernel = sum(
        weight * k / np.sqrt(np.outer(k.sum(1), k.sum(1)))
        for weight, k in ((config.position_weight, gaussian), (config.bilateral_weight, bilateral))
    )
    unary = -np.log(np.clip(probabilities.reshape(len(probabilities), -1), 1e-5, 1))

    def softmax(scores):
        powers = np.exp(scores - scores.max(0))
        return powers / powers.sum(0)

    q = softmax(-unary)
    for _ in range(config.iterations):
        q = softmax(-unary + q @ kernel)
    return q.reshape(probabilities.shape)


def test_equals_a_brute_force_image_by_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (2, 3, 5, 7)).astype(float)
    probabilities = rng.dirichlet((0.3,) * 4, (2, 5, 7)).transpose(0, 3, 1, 2)
    config = CrfConfig(
        iterations=3,
        position_weight=0.7,
        position_sigma=1.5,
        bilateral_weight=2.5,
        bilateral_sigma_xy=4,
        bilateral_sigma_rgb=12,
        filter_name="exact",
    )
    found = dense_crf(torch.tensor(images).float(), torch.tensor(probabilities).float(), config)
    expected = [
        brute_force(image, p, config) for image, p in zip(images, probabilities, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(np.stack(expected)).float(), rtol=0, atol=1e-5)


def test_without_weight_only_the_clip_is_left():
    probabilities = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 4, 4)
    config = CrfConfig(position_weight=0, bilateral_weight=0)
    found = dense_crf(torch.zeros(1, 3, 4, 4), probabilities, config)
    torch.testing.assert_close(found[0, 1], torch.full((4, 4), 1e-5 / (1 + 1e-5)))


def test_auto_is_the_lattice_on_a_cpu_and_exact_elsewhere():
    assert CrfConfig().resolved("cpu").filter_name == "lattice"
    assert CrfConfig().resolved("cuda").filter_name == "exact"
    assert CrfConfig(filter_name="exact").resolved("cpu").filter_name == "exact"
    images, probabilities = torch.rand(1, 3, 6, 6) * 255, torch.rand(1, 2, 6, 6)
    of_auto, of_lattice = (
        dense_crf(images, probabilities, with_filter(CrfConfig(), n)) for n in ("auto", "lattice")
    )
    assert torch.equal(of_auto, of_lattice)
