import numpy as np
import pytest
import torch

from toco.backbones import vit_nano
from toco.cam.config import CrfConfig
from toco.cam.crf import dense_crf
from toco.evaluate import EvaluateConfig
from toco.evaluate.sizes import network_input
from toco.methods import toco
from toco.predict.cams import export_cams
from toco.predict.formats import read_index_png
from toco.predict.pseudo_labels import (
    OFFICIAL_CAM_CRF,
    PseudoLabelConfig,
    export_pseudo_labels,
    pseudo_label,
    score_pseudo_labels,
)
from toco.types import Shard

OWN_SIZE = EvaluateConfig(size_px=None, cam_scales=(1.0,), cam_flip=False)
NO_CRF = CrfConfig(iterations=2, position_weight=0, bilateral_weight=0, filter_name="exact")
"""It leaves what it is given."""


@pytest.fixture
def dataset(random_dataset):
    """Images of 9 x 13 with both classes, 8 x 6 with the second, 5 x 5 with none."""
    dataset = random_dataset([(9, 13), (8, 6), (5, 5)])
    dataset.names = ("both", "sub/dog", "none")
    masks = [mask.copy() for mask in dataset.masks]
    masks[1][masks[1] == 1] = 0
    masks[2][:] = 0
    dataset.masks = masks
    return dataset


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    config = toco.Config(
        aux_block=1,
        cam_scales=(1.0, 0.5),
        decoder_width=8,
        par=toco.ParConfig(dilations=(1, 2)),
        projection=toco.ProjectionConfig(hidden_width=16, bottleneck_width=8, output_width=16),
    )
    backbone = vit_nano.build(
        vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=32, weights=None)
    )
    return toco.build(config, backbone, num_foreground_classes=2).eval()


def load(folder, index):
    with np.load(folder.output(index), allow_pickle=False) as file:
        return dict(file)


def test_cams_are_those_of_the_classes_in_the_image_at_its_size(method, dataset, tmp_path):
    method.eval()
    folder = export_cams(method, dataset, OWN_SIZE, tmp_path, {})
    assert (tmp_path / "sub" / "dog.npz").is_file()
    both, dog, none = (load(folder, index) for index in range(3))
    assert set(both) == {"keys", "high_res", "cam", "aux_high_res", "aux_cam"}
    assert [arrays["keys"].tolist() for arrays in (both, dog, none)] == [[0, 1], [1], []]
    assert both["keys"].dtype == np.int64
    # The CAM of the double is a channel of the image, the auxiliary CAM what is missing to 1.
    expected = dataset.image(0).transpose(2, 0, 1)[:2] / 255
    np.testing.assert_allclose(both["high_res"], expected, atol=1e-6)
    np.testing.assert_allclose(both["aux_high_res"], 1 - expected, atol=1e-6)
    np.testing.assert_allclose(
        dog["high_res"], dataset.image(1).transpose(2, 0, 1)[1:2] / 255, atol=1e-6
    )
    assert both["high_res"].dtype == np.float32
    assert both["cam"].shape == both["aux_cam"].shape == (2, 3, 4)
    assert dog["cam"].shape == (1, 2, 2)
    assert none["high_res"].shape == (0, 5, 5)
    # At a quarter the centre of the first cell is that of four times four pixels: the mean of the
    # middle four.
    np.testing.assert_allclose(dog["cam"][0, 0, 0], dog["high_res"][0, 1:3, 1:3].mean(), atol=0.15)


def test_cams_follow_the_evaluation(trained, dataset, tmp_path):
    config = EvaluateConfig(size_px=32, cam_scales=(1.0, 1.5), cam_flip=True)
    arrays = load(export_cams(trained, dataset, config, tmp_path, {}, dtype="float16"), 0)
    cams = trained.cams(
        network_input(torch.tensor(dataset.image(0))[None], 32), config.cam_scales, config.cam_flip
    )
    for name, cam in (("high_res", cams.cam), ("aux_high_res", cams.further["aux_cam"])):
        at_image = torch.nn.functional.interpolate(
            cam, size=(9, 13), mode="bilinear", align_corners=False
        )
        assert arrays[name].dtype == np.float16
        np.testing.assert_allclose(arrays[name], at_image[0].numpy(), atol=1e-3)
    at_quarter = torch.nn.functional.interpolate(
        cams.cam, size=(3, 4), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(arrays["cam"], at_quarter[0].numpy(), atol=1e-3)


def test_cams_of_other_scales_or_weights_are_not_mixed(method, dataset, tmp_path):
    method.eval()
    export_cams(method, dataset, OWN_SIZE, tmp_path, {"weights": "1"})
    with pytest.raises(
        ValueError, match=r"outputs of other settings: cam_flip was False and is True\. Use"
    ):
        export_cams(
            method,
            dataset,
            OWN_SIZE.model_copy(update={"cam_flip": True}),
            tmp_path,
            {"weights": "1"},
        )
    with pytest.raises(
        ValueError, match=r"outputs of other settings: weights was '1' and is '2'\. Use"
    ):
        export_cams(method, dataset, OWN_SIZE, tmp_path, {"weights": "2"})


def test_pseudo_labels_by_two_thresholds(method, tmp_path):
    method.eval()
    image = np.zeros((1, 4, 3), dtype=np.uint8)
    image[0, :, 0] = [10, 100, 200, 200]
    image[0, :, 1] = [20, 110, 100, 220]
    config = PseudoLabelConfig(low_threshold=0.25, high_threshold=0.7)

    def of(*class_labels, config=config):
        found = pseudo_label(
            method, image, np.array(class_labels, dtype=np.float32), OWN_SIZE, config
        )
        return found.tolist()

    assert of(1, 1) == [[0, 255, 1, 2]]
    assert of(1, 0) == [[0, 255, 1, 1]]
    assert of(0, 1) == [[0, 255, 255, 2]]
    assert of(0, 0) == [[0, 0, 0, 0]]
    one = PseudoLabelConfig(low_threshold=0.4, high_threshold=0.4)
    assert of(1, 1, config=one) == [[0, 2, 1, 2]]
    with pytest.raises(ValueError, match=r"low is 0\.7 and high is 0\.2"):
        PseudoLabelConfig(low_threshold=0.7, high_threshold=0.2)


@pytest.mark.parametrize("class_labels", [(1, 1), (0, 1), (0, 0)])
def test_refined_by_par_they_are_the_method_s_own(trained, class_labels):
    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    labels = np.array(class_labels, dtype=np.float32)
    settings = trained.config
    # The scale-free CAMs of an untrained network are noise, so all three kinds of label are there.
    config = PseudoLabelConfig(
        low_threshold=settings.low_threshold,
        high_threshold=settings.high_threshold,
        par=settings.par,
    )
    evaluate = EvaluateConfig(
        size_px=None, cam_scales=settings.cam_scales, cam_flip=settings.cam_flip
    )
    found = pseudo_label(trained, image, labels, evaluate, config)
    expected = trained.pseudo_labels(
        network_input(torch.tensor(image)[None], None), torch.from_numpy(labels)[None]
    )
    np.testing.assert_array_equal(found, expected[0].numpy())
    if any(class_labels):
        assert {0, 255, 2} <= set(np.unique(found))


@pytest.mark.parametrize("with_par", [False, True])
def test_a_crf_without_kernels_changes_nothing(trained, with_par):
    image = np.random.default_rng(2).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    labels = np.ones(2, dtype=np.float32)
    thresholds = {
        "low_threshold": 0.25,
        "high_threshold": 0.7,
        "par": trained.config.par if with_par else None,
    }
    found, expected = (
        pseudo_label(trained, image, labels, OWN_SIZE, PseudoLabelConfig(**thresholds, crf=crf))
        for crf in (NO_CRF, None)
    )
    np.testing.assert_array_equal(found, expected)


def test_refined_by_a_crf(method):
    method.eval()
    image = np.random.default_rng(3).integers(0, 40, (12, 12, 3), dtype=np.uint8)
    image[:, 4:8, 1] += 100
    image[:, 8:, 1] += 200
    crf = OFFICIAL_CAM_CRF.model_copy(update={"filter_name": "exact"})
    config = PseudoLabelConfig(low_threshold=0.3, high_threshold=0.6, crf=crf)
    found = pseudo_label(method, image, np.array([0, 1], dtype=np.float32), OWN_SIZE, config)
    levels = torch.tensor(image).permute(2, 0, 1)[None].float()
    green = image[..., 1] / 255
    wins = {}
    for background in (0.3, 0.6):
        scores = np.exp(np.stack([np.full_like(green, background), green]))
        maps = torch.tensor(scores / scores.sum(0), dtype=torch.float32)[None]
        wins[background] = dense_crf(levels, maps, crf)[0, 1].numpy() > 0.5
    expected = np.where(wins[0.6], 2, np.where(wins[0.3], 255, 0))
    np.testing.assert_array_equal(found, expected)
    assert {0, 2, 255} == set(np.unique(found))


def test_the_settings_of_the_crf_are_the_official_ones(golden):
    recorded = golden("crf")
    for case in ("photo_48x64", "photo_56x40_4cls"):
        levels = torch.tensor(recorded[f"{case}__img"]).permute(2, 0, 1)[None].float()
        maps = torch.tensor(recorded[f"{case}__probs"])[None]
        official = recorded[f"{case}__DenseCRF_infer_cam_crf_label"].argmax(0)

        def agreement(config, levels=levels, maps=maps, official=official):
            return (dense_crf(levels, maps, config)[0].argmax(0).numpy() == official).mean()

        lattice = {"filter_name": "lattice"}
        assert agreement(OFFICIAL_CAM_CRF.model_copy(update=lattice)) > 0.999
        assert agreement(CrfConfig(**lattice)) < 0.97


def test_exported_pseudo_labels_go_on_and_two_processes_make_what_one_does(
    trained, dataset, tmp_path
):
    config = PseudoLabelConfig(low_threshold=0.25, high_threshold=0.7, par=trained.config.par)
    evaluate = EvaluateConfig(size_px=32, cam_scales=(1.0,), cam_flip=False)
    whole = export_pseudo_labels(trained, dataset, evaluate, config, tmp_path / "whole", {})
    parts = [
        export_pseudo_labels(
            trained, dataset, evaluate, config, tmp_path / "parts", {}, Shard(rank, 2)
        )
        for rank in range(2)
    ]
    assert not parts[0].missing()
    for index, labels in enumerate(np.float32([[1, 1], [0, 1], [0, 0]])):
        made = read_index_png(whole.output(index))
        np.testing.assert_array_equal(
            made, pseudo_label(trained, dataset.image(index), labels, evaluate, config)
        )
        np.testing.assert_array_equal(made, read_index_png(parts[0].output(index)))
    made, present = [], dataset.class_labels
    dataset.image = lambda index, image=dataset.image: made.append(index) or image(index)
    export_pseudo_labels(trained, dataset, evaluate, config, tmp_path / "whole", {})
    assert made == []
    dataset.class_labels = lambda index: np.float32([1, 0]) if index == 1 else present(index)
    export_pseudo_labels(trained, dataset, evaluate, config, tmp_path / "whole", {})
    assert set(made) == {1}
    assert read_index_png(whole.output(1)).tolist() != read_index_png(parts[0].output(1)).tolist()
    changed = config.model_copy(update={"high_threshold": 0.6})
    with pytest.raises(
        ValueError, match=r"outputs of other settings: high_threshold was 0\.7 and is 0\.6\. Use"
    ):
        export_pseudo_labels(trained, dataset, evaluate, changed, tmp_path / "whole", {})
    unrefined = config.model_copy(update={"par": None})
    with pytest.raises(
        ValueError, match=r"outputs of other settings: par was \{[^{}]+\} and is None\. Use"
    ):
        export_pseudo_labels(trained, dataset, evaluate, unrefined, tmp_path / "whole", {})


def test_uncertain_pixels_count_for_nothing(method, dataset_of, tmp_path):
    method.eval()
    masks = [np.array([[0, 1, 2, 255, 1]], dtype=np.uint8), None]
    # Labels 0, 1, 255, 2 and 2 by the thresholds, of which the third and the fourth do not count.
    image = np.zeros((1, 5, 3), dtype=np.uint8)
    image[0, :, 0] = [0, 255, 100, 0, 0]
    image[0, :, 1] = [0, 0, 100, 255, 255]
    dataset = dataset_of([image, image], masks)
    dataset.class_labels = lambda index: np.ones(2, dtype=np.float32)
    config = PseudoLabelConfig(low_threshold=0.25, high_threshold=0.7)
    folder = export_pseudo_labels(method, dataset, OWN_SIZE, config, tmp_path, {})
    # Background 1 / 1, cat 1 / 2; the dog is not in what is left of the ground truth.
    assert score_pseudo_labels(folder, dataset) == (
        "mIoU of the pseudo labels 75.00 %; images with a mask: 1. 25.00 % of the pixels are "
        "uncertain (255) and are "
        "ignored."
    )
    dataset.masks = [None, None]
    assert score_pseudo_labels(folder, dataset) is None
    dataset.masks = [np.full(dataset.image(i).shape[:2], 255, np.uint8) for i in range(2)]
    assert score_pseudo_labels(folder, dataset) is None
