"""Official checkpoints as run folders and back, on the recorded network and on the official names
and shapes.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from toco.backbones import vit
from toco.config import digest
from toco.methods import _toco
from toco.methods import toco as toco_method
from toco.official.names import from_official, to_official
from toco.tensors import Batch, present_classes
from toco.train.run_folder import RunFolder
from toco.train.trained import open_trained

# By how much the official tokens differ between float32 and float64.
TOLERANCE = {"atol": 5e-6, "rtol": 1e-5}
OFFICIAL = json.loads(
    (Path(__file__).parents[1] / "golden" / "official_parameter_names.json").read_text()
)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_an_imported_checkpoint_gives_the_recorded_cams_and_logits(
    golden_cases, official_state, write, import_tiny, prefix
):
    _, run_dir = import_tiny(write(official_state, prefix))
    method = open_trained(run_dir).method
    cases = golden_cases("network_tiny")
    for case in ("64x64_1.0_0.5_1.5", "96x64_1.0_0.5_1.5"):
        recorded = cases[case]
        cams = method.cams(recorded["in"], recorded["scales"].tolist(), flip=True)
        assert_close(cams.cam, recorded["cam"], **TOLERANCE)
        assert_close(cams.further["aux_cam"], recorded["cam_aux"], **TOLERANCE)
    prediction = method.predict(cases["fwd"]["in"], (1.0,), flip=False)
    assert_close(prediction.class_logits, cases["fwd"]["cls"], **TOLERANCE)
    assert_close(prediction.segmentation_logits, cases["fwd"]["seg"], **TOLERANCE)


def test_an_imported_checkpoint_gives_the_recorded_losses(
    golden, write, import_tiny, monkeypatch, tmp_path
):
    """The network of the recorded iteration has five classes, those of a data set with names of its
    own.
    """
    arrays = golden("train_iteration")
    root = tmp_path / "data"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "JPEGImages" / "a.png")
    Image.new("L", (8, 8), 1).save(root / "SegmentationClass" / "a.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    (root / "classes.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    state = {
        name.removeprefix("state_before/"): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith("state_before/")
    }
    changes = {"data.root": root, "data.classes": "classes.txt"}
    _, run_dir = import_tiny(write(state), changes=changes)
    trained = open_trained(run_dir)
    assert trained.class_names == ("one", "two", "three", "four", "five")

    def tensor(name):
        return torch.from_numpy(arrays[f"data__{name}"])

    batch = Batch(
        images=tensor("inputs").float(),
        second_view=tensor("crop1").float(),
        crop_source=tensor("crop2").float(),
        class_labels=tensor("cls_label").float(),
        valid_box=tensor("img_box").long(),
        names=("a", "b"),
        present=present_classes(tensor("cls_label").float()),
    )
    corners = torch.from_numpy(arrays["iter2001_f32__corners_yx"])
    monkeypatch.setattr(_toco, "sample_crop_corners", lambda *_: corners)
    losses = trained.method.train().training_losses(batch, 2001, torch.Generator()).losses
    for ours, official in {
        "classification": "cls_loss",
        "aux_classification": "cls_loss_aux",
        "ptc": "ptc_loss",
        "ctc": "ctc_loss",
        "segmentation": "seg_loss",
        "energy": "reg_loss",
    }.items():
        recorded = torch.from_numpy(np.asarray(arrays[f"iter2001_f32__{official}"])).reshape(())
        assert_close(
            losses[ours].detach().reshape(()),
            recorded,
            rtol=2e-5,
            atol=1e-7,
            msg=f"{ours}: {losses[ours]}, {recorded}",
        )


def test_the_run_folder_says_where_it_comes_from(official_state, write, import_tiny):
    file = write(official_state)
    output, run_dir = import_tiny(file)
    folder = RunFolder(run_dir)
    imported = folder.provenance()["imported"]
    assert imported == {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "size_bytes": file.stat().st_size,
    }
    trained = open_trained(run_dir)
    assert (trained.recipe, trained.step, len(trained.class_names)) == ("voc_deit_b", 20_000, 20)
    assert trained.digest == digest(folder.config())
    assert f"{len(official_state)} tensors" in output
    assert "after step 20000" in output


def test_a_step_can_be_given(official_state, write, import_tiny):
    _, run_dir = import_tiny(write(official_state), "--step", 18_000)
    assert open_trained(run_dir).step == 18_000


def test_import_export_import_changes_no_bit(official_state, write, import_tiny, toco, tmp_path):
    _, first = import_tiny(write(official_state))
    exported = tmp_path / "exported.pth"
    toco("export-official", first, exported)
    _, second = import_tiny(exported, name="second")
    left, right = (open_trained(run_dir).method.state_dict() for run_dir in (first, second))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)

    written = torch.load(exported, weights_only=True)
    assert written.keys() == {f"module.{name}" for name in official_state}
    for name, value in official_state.items():
        if name.startswith("encoder.head."):
            assert not written[f"module.{name}"].any()
        else:
            assert torch.equal(written[f"module.{name}"], value)


@pytest.mark.parametrize("model", ["vit_base_patch16_224", "deit_base_patch16_224"])
@pytest.mark.parametrize("num_classes", [21, 81])
def test_the_full_network_has_exactly_the_official_names_shapes_and_types(model, num_classes):
    """What a strict load asks for."""
    with torch.device("meta"):
        method = toco_method.build(
            toco_method.Config(), vit.build(vit.Config(model=model, weights=None)), num_classes - 1
        )
    ours = to_official(method.state_dict())
    recorded = OFFICIAL[f"{model}__classes{num_classes}"]["state_dict"]
    assert {name: (list(value.shape), str(value.dtype)) for name, value in ours.items()} == {
        name: (shape, dtype) for name, shape, dtype in recorded
    }


def test_other_classes_are_named_with_the_recipe_that_has_them(official_state, write, import_tiny):
    coco = {**official_state, "decoder.conv8.weight": torch.zeros(81, 32, 1, 1)}
    output, run_dir = import_tiny(write(coco), fails=True)
    assert "has 81 classes with the background, the recipe voc_deit_b has 21" in output
    assert "take --recipe coco_deit_b or coco_vit_b" in output
    assert not run_dir.exists()
    own = {**official_state, "decoder.conv8.weight": torch.zeros(7, 32, 1, 1)}
    assert "has 7 classes" in import_tiny(write(own), fails=True)[0]


def test_missing_unknown_and_misshapen_tensors_are_named_with_their_shapes(
    official_state, write, import_tiny
):
    state = dict(official_state)
    del state["aux_classifier.weight"]
    state["encoder.cls_tokens"] = torch.zeros(1, 2)
    state["decoder.conv6.weight"] = torch.zeros(32, 48, 1, 1)
    state["decoder.conv7.weight"] = state["decoder.conv7.weight"].double()
    state["proj_head.mlp.0.bias"] = torch.full((64,), torch.nan)
    output, run_dir = import_tiny(write(state), fails=True)
    assert "5 differences" in output
    assert "aux_classifier.weight [20, 48, 1, 1] is missing" in output
    assert "encoder.cls_tokens [1, 2] is unknown" in output
    assert "decoder.conv6.weight has shape [32, 48, 1, 1], expected [32, 48, 3, 3]" in output
    assert "decoder.conv7.weight is torch.float64" in output
    assert "proj_head.mlp.0.bias holds values that are not finite" in output
    assert not run_dir.exists()


def test_weights_of_an_encoder_are_no_checkpoint(write, import_tiny):
    output, _ = import_tiny(write({"cls_token": torch.zeros(1, 1, 48)}, prefix=""), fails=True)
    assert "backbone.weights" in output


class Command:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["a pickle with code", "<html>quota exceeded</html>", ""])
def test_nothing_but_tensors_is_read(import_tiny, tmp_path, content, capsys):
    file = tmp_path / "model.pth"
    if content.startswith("a pickle"):
        torch.save({"module.decoder.conv8.weight": Command()}, file)
    else:
        file.write_text(content)
    output, run_dir = import_tiny(file, fails=True)
    assert "cannot be read as plain tensors" in output
    assert "Nothing in it was run" in output
    assert not run_dir.exists()
    assert "executed" not in capsys.readouterr().out


def test_a_folder_with_a_run_and_a_file_are_not_overwritten(
    official_state, write, import_tiny, toco
):
    file = write(official_state)
    _, run_dir = import_tiny(file)
    assert "already holds a run" in import_tiny(file, fails=True)[0]
    assert "already exists" in toco("export-official", run_dir, file, fails=True)


def test_another_network_is_not_exported():
    with pytest.raises(ValueError, match=r"no counterpart of backbone\.stages"):
        to_official({"backbone.stages.0.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "name", ["reg_token", "dist_token", "blocks.0.ls1.gamma", "blocks.0.attn.q_norm.weight"]
)
def test_a_vit_with_more_than_the_official_one_is_not_exported(name):
    with pytest.raises(ValueError, match=f"no counterpart of backbone.vit.{name}"):
        to_official({f"backbone.vit.{name}": torch.zeros(1)})


def test_a_network_of_pixels_normalised_in_another_way_is_not_exported(
    official_state, write, import_tiny, toco
):
    _, run_dir = import_tiny(
        write(official_state), changes={"backbone.pixel_mean": "[0.5,0.5,0.5]"}
    )
    target = run_dir.parent / "other.pth"
    assert "normalises pixels by mean (0.485, 0.456, 0.406)" in toco(
        "export-official", run_dir, target, fails=True
    )
    assert not target.exists()


OWN_METHOD = """
from toco.methods import toco

class Config(toco.Config):
    name: str = __name__

def build(config, backbone, num_foreground_classes):
    return toco.build(config, backbone, num_foreground_classes)
"""


def test_a_method_that_is_made_of_toco_is_not_exported(
    official_state, write, import_tiny, toco, tmp_path, monkeypatch
):
    """It has the same tensors, and may pool them in another way."""
    (tmp_path / "own_official").mkdir()
    (tmp_path / "own_official" / "method.py").write_text(OWN_METHOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    _, run_dir = import_tiny(write(official_state), changes={"method.name": "own_official.method"})
    target = tmp_path / "other.pth"
    output = toco("export-official", run_dir, target, fails=True)
    assert "ToCo and nothing else; the method of this run is 'own_official.method'" in " ".join(
        output.split()
    )
    assert not target.exists()


def test_a_decoder_of_another_dilation_is_not_exported(
    official_state, write, import_tiny, toco, tmp_path
):
    _, run_dir = import_tiny(write(official_state), changes={"method.decoder_dilation": 3})
    target = tmp_path / "other.pth"
    output = " ".join(toco("export-official", run_dir, target, fails=True).split())
    assert "a dilation of 5, which its checkpoints do not hold" in output
    assert "method.decoder_dilation=3" in output
    assert not target.exists()


def test_an_imported_run_is_not_trained_on(
    official_state, write, import_tiny, tiny_settings, toco, data_root
):
    of_two = {"decoder.conv8.weight": 3, "classifier.weight": 2, "aux_classifier.weight": 2}
    file = write(
        {**official_state, **{name: official_state[name][:count] for name, count in of_two.items()}}
    )
    changes = {"data.root": data_root, "data.classes": "classes.txt", "data.train_list": "train"}
    _, run_dir = import_tiny(file, changes=changes)
    output = toco(
        "train", "voc_deit_b", "--run-dir", run_dir, "--resume", *tiny_settings(changes), fails=True
    )
    assert "can be used, but not trained on" in output


def test_an_imported_run_is_evaluated(
    official_state, write, import_tiny, toco, data_root, tmp_path
):
    """Beside the authors' numbers only where the classes are theirs."""
    of_two = {"decoder.conv8.weight": 3, "classifier.weight": 2, "aux_classifier.weight": 2}
    two = write(
        {
            **official_state,
            **{name: official_state[name][:count] for name, count in of_two.items()},
        },
        name="two",
    )
    changes = {"data.root": data_root, "data.classes": "classes.txt", "evaluate.size_px": 64}
    _, run_dir = import_tiny(two, changes=changes)
    output = toco("evaluate", run_dir)
    assert "red" in output
    assert "authors" not in output

    _, run_dir = import_tiny(write(official_state), name="twenty", changes={"evaluate.size_px": 64})
    names = "\n".join(("background", *open_trained(run_dir).class_names))
    (tmp_path / "twenty.txt").write_text(names)
    output = toco(
        "evaluate",
        run_dir,
        f"--set=data.root={data_root}",
        f"--set=data.classes={tmp_path}/twenty.txt",
    )
    assert "Compared with the last evaluation in the authors' log of voc_deit_b:" in output
    assert (
        "not comparable: 4 images were evaluated instead of 1449; the protocol is not that of the "
        "log" in output
    )


def test_from_official_inverts_to_official(official_state, write, import_tiny):
    _, run_dir = import_tiny(write(official_state))
    state = open_trained(run_dir).method.state_dict()
    again = from_official(to_official(state), state)
    assert all(torch.equal(again[name], state[name]) for name in state)
