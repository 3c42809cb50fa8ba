"""Files of weights as people have them: wrapped, prefixed, several in one, damaged, and what is no
file of weights.
"""

import zipfile

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file

from toco.__main__ import main
from toco.backbones import split_entry, vit_nano
from toco.backbones._weights import read_tensors, without_shared_prefix

CONFIG = vit_nano.Config(width=16, depth=2, num_heads=2, image_size_px=16, weights=None)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return vit_nano.build(CONFIG).vit.state_dict()


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def loaded(path):
    return vit_nano.build(CONFIG.model_copy(update={"weights": str(path)})).vit.state_dict()


def check_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=0, rtol=0)


HEAD = {"head.mlp.0.weight": torch.zeros(2, 2)}
FORMS = {
    "bare": lambda state: state,
    "of a distributed wrapper": lambda state: prefixed("module.", state),
    "of a compiled module": lambda state: prefixed("_orig_mod.", state),
    "of two wrappers": lambda state: prefixed("module.backbone.", state),
    "of DINO's teacher": lambda state: {
        "teacher": prefixed("module.", prefixed("backbone.", state) | HEAD)
    },
    "beside a head": lambda state: prefixed("module.", state | HEAD),
    "in a model": lambda state: {
        "model": state,
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}},
    },
    "in a model in a state_dict": lambda state: {
        "state_dict": {"model": prefixed("module.", state)}
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_wrappers_and_prefixes_are_taken_off(tmp_path, state, form):
    torch.save(FORMS[form](state), tmp_path / "weights.pth")
    check_same(loaded(tmp_path / "weights.pth"), state)


def test_of_several_state_dicts_none_is_chosen_silently(tmp_path, state):
    path = tmp_path / "dino#1.pth"
    other = {name: value + 1 for name, value in state.items()}
    torch.save(
        {"student": prefixed("module.", other), "teacher": {"backbone": state}, "epoch": 3}, path
    )
    with pytest.raises(
        ValueError, match=r"several state dicts: student, teacher/backbone\. Say which.*#student"
    ):
        loaded(path)
    check_same(loaded(f"{path}#teacher/backbone"), state)
    check_same(loaded(f"{path}#student"), other)
    with pytest.raises(
        ValueError, match=r"no state dict 'ema'; it holds student, teacher/backbone"
    ):
        loaded(f"{path}#ema")


def test_the_entry_is_part_of_what_identifies_the_weights_and_no_part_of_the_file(tmp_path, state):
    path = tmp_path / "dino.pth"
    torch.save({"student": state, "teacher": state}, path)
    config = CONFIG.model_copy(update={"weights": f"{path}#teacher"})
    assert vit_nano.weights_path(config) == path
    assert split_entry(str(tmp_path / "a#b.pth")) == (tmp_path / "a", "b.pth")
    (tmp_path / "a#b.pth").touch()
    assert split_entry(str(tmp_path / "a#b.pth")) == (tmp_path / "a#b.pth", None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_no_numbers_are_refused_with_the_tensors_name(
    tmp_path, state, suffix, value
):
    path = tmp_path / f"weights{suffix}"
    state["blocks.1.mlp.fc1.weight"][3, 2] = value
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    with pytest.raises(
        ValueError, match=r"weights.*: blocks\.1\.mlp\.fc1\.weight holds values that are not finite"
    ):
        loaded(path)


def cut(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(path, state):
    torch.save({"model": state, "args": CliRunner()}, path)


NO_WEIGHTS = {
    "empty": (lambda path, _: path.write_bytes(b""), "it is empty"),
    "page": (
        lambda path, _: path.write_text("\n<!DOCTYPE html><title>quota exceeded"),
        "it is a web page",
    ),
    "pointer": (
        lambda path, _: path.write_text("version https://git-lfs\noid sha256:0\n"),
        "it is a pointer of Git LFS",
    ),
    "cut off": (cut, "its end is missing"),
    "another zip": (
        lambda path, _: zipfile.ZipFile(path, "w").writestr("a", "b"),
        "it is damaged, or holds",
    ),
    "words": (lambda path, _: path.write_text("weights"), "it is no torch file"),
    "objects": (pickled, "it is damaged, or holds Python objects"),
    "a tensor": (lambda path, _: torch.save(torch.zeros(1), path), "holds no state dict"),
    "nothing": (lambda path, _: torch.save({}, path), "holds no state dict"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_holds_no_weights_is_named(tmp_path, state, kind):
    write, message = NO_WEIGHTS[kind]
    path = tmp_path / "weights.pth"
    write(path, state)
    with pytest.raises(ValueError, match=message) as refused:
        loaded(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_cut_safetensors_file_is_named(tmp_path, state, kept):
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ValueError, match=r"weights\.safetensors cannot be read as plain tensors: it is"
    ):
        loaded(path)


def test_every_changed_byte_of_a_tensor_is_noticed(tmp_path, state):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    whole = path.read_bytes()
    value = state["blocks.1.mlp.fc1.weight"].numpy().tobytes()
    start = whole.index(value)
    for place in range(start, start + len(value), 101):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(
            ValueError, match=r"weights\.pth is damaged: the bytes of '.*/data/\d+' in it changed"
        ):
            read_tensors(path)


def test_a_file_without_checksums_is_read(tmp_path, state):
    path = tmp_path / "weights.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(before)
    read = read_tensors(path)
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_the_bundled_weights_with_a_prefix_train(tmp_path):
    """The prefix is taken off by the same function as for an official checkpoint."""
    weights = load_safetensors(vit_nano.BUNDLED_WEIGHTS)
    torch.save(prefixed("module.", weights), tmp_path / "weights.pth")
    check_same(without_shared_prefix(read_tensors(tmp_path / "weights.pth")), weights)
    vit_nano.build(vit_nano.Config(weights=str(tmp_path / "weights.pth")))


def test_an_official_checkpoint_among_several_is_named(tmp_path):
    path = tmp_path / "both.pth"
    tensors = {"module.decoder.conv8.weight": torch.zeros(2, 1)}
    torch.save({"model": tensors, "ema": tensors}, path)
    words = ["import-official", "--recipe", "voc_deit_b", "--run-dir", str(tmp_path / "run")]
    refused = CliRunner().invoke(main, [*words, str(path)])
    assert (
        f"holds several state dicts: model, ema. Say which, as in {path}#model." in refused.output
    )
    refused = CliRunner().invoke(main, [*words, f"{path}#ema"])
    assert (
        "no checkpoint of the official network" in refused.output
        or "has 2 classes" in refused.output
    )
    missing = CliRunner().invoke(main, [*words, str(tmp_path / "no.pth")])
    assert (missing.exit_code, missing.output) == (
        1,
        f"Error: {tmp_path / 'no.pth'}: No such file or directory.\n",
    )
