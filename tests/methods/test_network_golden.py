"""The whole network, every public way through it, against the recorded
outputs of the official one.
"""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from toco.backbones import vit
from toco.cam.activation import activation_maps
from toco.heads.projection import ema_update_
from toco.methods import toco
from toco.official.names import official_name

# By how much the official tokens differ between float32 and float64; what is computed from them
# stays within it too.
TOLERANCE = {"atol": 5e-6, "rtol": 1e-5}
CAM_CASES = [
    "64x64_1.0",
    "64x64_1.0_0.5_1.5",
    "64x64_1.0_0.75_1.25",
    "64x64_0.5_1.5",
    "96x64_1.0_0.5_1.5",
]
GROUPS = ("backbone", "backbone_norms", "heads", "decoder")
PARAMETER_NAMES = json.loads(
    (Path(__file__).parents[1] / "golden" / "official_parameter_names.json").read_text()
)


@pytest.fixture(scope="module")
def recorded(golden):
    """Recorded arrays as tensors, by case and name."""
    cases = {}
    for key, array in golden("network_tiny").items():
        case, _, name = key.partition("/" if key.startswith("state/") else "__")
        cases.setdefault(case, {})[name] = torch.from_numpy(array.copy())
    return cases


@pytest.fixture
def network(recorded, tiny_method):
    return tiny_method(recorded["state"]).eval()


def named(arrays, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def test_recorded_cases_are_the_tested_ones(recorded):
    assert set(recorded) == {"state", "fwd", "fwd_crops", *CAM_CASES}


@pytest.mark.parametrize("case", CAM_CASES)
def test_multi_scale_cams(recorded, network, case):
    """Scale 1 takes part whether the list names it or not."""
    a = recorded[case]
    scales = a["scales"].tolist()
    for cams in (
        network.cams(a["in"], scales, flip=True),
        network.predict(a["in"], scales, flip=True).cams,
    ):
        assert_close(cams.cam, a["cam"], **TOLERANCE)
        assert_close(cams.further["aux_cam"], a["cam_aux"], **TOLERANCE)


@torch.no_grad()
def test_plain_forward(recorded, network):
    a = recorded["fwd"]
    features = network.backbone(a["in"], network.config.aux_block)
    assert_close(features.features, a["fmap"], **TOLERANCE)
    prediction = network.predict(a["in"], (1.0,), flip=False)
    assert_close(prediction.class_logits, a["cls"], **TOLERANCE)
    assert_close(network.aux_classifier(features.aux_features), a["cls_aux"], **TOLERANCE)
    assert_close(prediction.segmentation_logits, a["seg"], **TOLERANCE)
    maps = activation_maps(features.features, network.classifier.weight)
    assert_close(maps, a["camonly_second_is_final"], **TOLERANCE)
    aux_maps = activation_maps(features.aux_features, network.aux_classifier.weight)
    assert_close(aux_maps, a["camonly_first_is_aux"], **TOLERANCE)


@torch.no_grad()
def test_projections_of_crops_and_the_teacher_that_moves_first(recorded, network):
    """Rows are crop-major. The teacher moves before it looks, at the global views only."""
    a = recorded["fwd_crops"]
    network.projection.load_state_dict(named(a, "student/"))
    network.teacher.load_state_dict(named(a, "teacher_before/"))
    assert not torch.equal(
        network.teacher.last_layer.weight_v, network.projection.last_layer.weight_v
    )
    tokens = [
        network.backbone(a[f"crop{i}"], network.config.aux_block).class_token for i in range(6)
    ]
    assert_close(network.projection(torch.cat(tokens)), a["out_s"], **TOLERANCE)
    for output in ("out_t", "out_t_second_call"):
        ema_update_(network.teacher, network.projection, network.config.ema_decay)
        if output == "out_t":
            for name, expected in named(a, "teacher_after/").items():
                assert_close(network.teacher.state_dict()[name], expected, atol=1e-8, rtol=2e-7)
        assert_close(network.teacher(torch.cat(tokens[:2])), a[output], **TOLERANCE)


@pytest.mark.parametrize("model", ["vit_base_patch16_224", "deit_base_patch16_224"])
@pytest.mark.parametrize("num_classes", [21, 81])
def test_parameter_groups_of_the_full_network_are_the_official_ones(model, num_classes):
    """Every trainable parameter but the unused 1000-class layer, in its group and with its number
    of elements.
    """
    official = [{} for _ in GROUPS]
    for parameter in PARAMETER_NAMES[f"{model}__classes{num_classes}"]["parameters"]:
        if parameter["requires_grad"] and not parameter["name"].startswith("encoder.head."):
            official[parameter["group"]][parameter["name"]] = parameter["shape"]

    with torch.device("meta"):
        method = toco.build(
            toco.Config(), vit.build(vit.Config(model=model, weights=None)), num_classes - 1
        )
    names = {id(parameter): official_name(name) for name, parameter in method.named_parameters()}
    ours = []
    for group in GROUPS:
        shapes = {names[id(p)]: list(p.shape) for p in method.parameter_groups()[group]}
        for name in shapes.keys() & {"classifier.weight", "aux_classifier.weight"}:
            shapes[name] += [1, 1]  # a 1x1 convolution there
        ours.append(shapes)
    assert set(method.parameter_groups()) == set(GROUPS)
    assert ours == official
    assert [len(group) for group in ours] == [99, 50, 9, 3]
