import shutil

import pytest
import torch

from toco.train import records
from toco.train.loop import train
from toco.train.trained import open_trained


def test_a_trained_method_is_opened_without_its_data(config, tmp_path, data_root):
    own = tmp_path / "data"
    shutil.copytree(data_root, own)
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": own})})
    train(config, tmp_path / "run", recipe="voc_deit_b", progress=False)
    shutil.rmtree(own)
    trained = open_trained(tmp_path / "run", {"evaluate.size_px": 16})
    assert trained.step == config.num_steps
    assert trained.recipe == "voc_deit_b"
    assert trained.config.evaluate.size_px == 16
    assert len(trained.class_names) == trained.method.num_foreground_classes
    assert not trained.method.training
    again = open_trained(tmp_path / "run").method.state_dict()
    assert all(
        torch.equal(value, again[name]) for name, value in trained.method.state_dict().items()
    )


def test_a_run_that_does_not_name_its_classes_is_refused(config, tmp_path):
    train(config, tmp_path, progress=False)
    content = records.read(tmp_path / "config.json")
    del content["class_names"]
    records.write(tmp_path / "config.json", content)
    with pytest.raises(ValueError, match=r"by a version before 0\.4 and does not name its classes"):
        open_trained(tmp_path)


def test_a_folder_without_a_run_or_a_checkpoint_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        open_trained(tmp_path)
    train(config, tmp_path, progress=False)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        open_trained(tmp_path)
