"""Modules of the user's own: how they are found, and what is said where they are wrong."""

import importlib
import shutil
import sys

import pytest
from pydantic import ValidationError

import toco.methods
from toco.config import diff, digest, replace, sentences
from toco.files import UnreadableError
from toco.methods import MethodConfig
from toco.methods import toco as toco_method
from toco.own_modules import OwnModuleError, add_search_folders, search_folders
from toco.recipes.shapes_nano import recipe
from toco.registry import UNTRUSTED, load
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder

METHOD = """
from toco.methods import MethodConfig

class Config(MethodConfig):
    name: str = __name__
    strength: float = 0.5

def build(config, backbone, num_foreground_classes):
    return None
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write modules below the current folder, which Python imports from."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)

    def write_modules(**sources):
        for name, source in sources.items():
            path = folder / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return folder

    yield write_modules
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]


def refusal(name, package="toco.methods"):
    with pytest.raises(OwnModuleError) as caught:
        load(package, name)
    return str(caught.value)


def test_a_name_with_a_dot_is_the_module_itself(write):
    write(own_package__in__my_method=METHOD)
    module = load("toco.methods", "own_package.my_method")
    assert module.__name__ == "own_package.my_method"
    config = replace(recipe(), {"method.name": "own_package.my_method", "method.strength": "0.25"})
    assert type(config.method) is module.Config
    assert config.method.strength == 0.25
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert digest(again) == digest(config) != digest(recipe())
    assert diff(recipe(), config)["method.name"] == ("toco", "own_package.my_method")
    with pytest.raises(
        ValueError, match=r"no field 'method\.strenght'\. Did you mean 'method\.strength'"
    ):
        replace(config, {"method.strenght": "1"})


def test_defaults_of_a_method_that_do_not_fit_the_run_are_set_with_its_name(write):
    twin = (
        "from toco.methods import toco\n\nclass Config(toco.Config):\n"
        "    name: str = __name__\n\nbuild = toco.build\n"
    )
    write(own_package__in__twin=twin)
    names = {"method.name": "own_package.twin"}
    with pytest.raises(
        ValueError, match=r"local_crop_size_px 96 is larger than views\.crop_size_px 64"
    ):
        replace(recipe(), names)
    changed = replace(recipe(), {**names, "method.local_crop_size_px": "32"})
    assert (changed.method.name, changed.method.local_crop_size_px) == ("own_package.twin", 32)
    with pytest.raises(ValueError, match=r"method: own_package .* has no module 'twins'"):
        replace(recipe(), {"method.name": "own_package.twins", "method.local_crop_size_px": "32"})


def test_a_module_that_is_not_found_names_the_folders_and_what_to_set(write):
    folder = write(own_package__in__my_method=METHOD)
    text = refusal("own_pakage.my_method")
    assert str(folder) in text
    assert "Did you mean 'own_package'?" in text
    assert "Set the variable PYTHONPATH to the folder that holds own_pakage" in text
    assert "site-packages" not in text
    text = refusal("own_package.my_metod")
    assert f"own_package ({folder / 'own_package'}) has no module 'my_metod'" in text
    assert "it has my_method. Did you mean 'my_method'?" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_package/my_method.py", "write|as own_package.my_method for own_package/my_method.py"),
        ("my_method.py", "as my_package.my_method for my_package/my_method.py"),
        (
            "own-package.my_method",
            "'own-package.my_method' is no name of a module: expected words with dots",
        ),
        ("own_package..my_method", "is no name of a module"),
        (".my_method", "is no name of a module"),
    ],
)
def test_what_is_no_name_of_a_module_is_refused(write, name, message):
    write(own_package__in__my_method=METHOD)
    assert message.rpartition("|")[2] in refusal(name)


def test_a_folder_is_no_module(write):
    write(own_package__in__inner__in__my_method=METHOD)
    assert "is a folder" in refusal("own_package.inner")


def test_an_entry_of_ours_keeps_its_short_name():
    with pytest.raises(ValueError, match="write 'toco'"):
        load("toco.methods", "toco.methods.toco")
    with pytest.raises(ValueError, match="A module of your own has a dot in its name"):
        load("toco.methods", "quite_another")
    with pytest.raises(ValueError, match="is not one of filters"):
        load("toco.filters", "own_package.my_filter")


def test_a_module_without_what_an_entry_defines_is_told_and_not_run(write):
    write(own_package__in__no_build="raise SystemExit('this was run')\nclass Config: ...")
    text = refusal("own_package.no_build")
    assert "no_build.py) does not define build. A module of methods has:" in text
    assert toco.methods.ENTRY["build"] in text
    assert "own_package.no_build" not in sys.modules
    assert "does not define recipe" in refusal("own_package.no_build", "toco.recipes")
    assert "does not define STUDY and main" in refusal("own_package.no_build", "sweeps")


def test_what_a_module_imports_or_defines_in_a_branch_is_its_own(write):
    write(
        own_package__in__my_method=METHOD,
        own_package__in__second="try:\n    from own_package.my_method import Config, build\n"
        "finally:\n    pass",
    )
    assert (
        load("toco.methods", "own_package.second").build
        is load("toco.methods", "own_package.my_method").build
    )


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        (METHOD + "\n1 / 0\n", 11, "ZeroDivisionError: division by zero."),
        (
            METHOD + "\nimport own_missing\n",
            11,
            "ModuleNotFoundError: No module named 'own_missing'.",
        ),
        (
            METHOD + "\nraise SystemExit(3)\n",
            11,
            "it ends the program; put what is to run below if __name__",
        ),
        (METHOD + "\nMethodConfig(nam=3)\n", 11, "ValidationError: "),
        (METHOD + "\ndef f(:\n", 11, "SyntaxError: invalid syntax."),
    ],
)
def test_an_exception_at_import_is_a_sentence_with_file_and_line(write, source, line, message):
    folder = write(own_package__in__broken=source)
    text = refusal("own_package.broken")
    assert f"{folder / 'own_package' / 'broken.py'}, line {line}: {message}" in text
    assert "\n" not in text


def test_an_exception_in_what_a_module_imports_names_that_file(write):
    folder = write(
        own_package__in__my_method="import own_helper\n" + METHOD, own_helper="x = 1\nx.missing\n"
    )
    assert f"{folder / 'own_helper.py'}, line 2: AttributeError" in refusal("own_package.my_method")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "name: str = __name__",
            "name: str = 'other'",
            "has the name 'other' instead of that of its module",
        ),
        ("    name: str = __name__\n", "", "instead of that of its module"),
        ("(MethodConfig)", "", "is no MethodConfig"),
    ],
)
def test_a_config_that_a_run_folder_would_not_find_again_is_refused(write, old, new, message):
    write(own_package__in__my_method=METHOD.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        replace(recipe(), {"method.name": "own_package.my_method"})
    assert "name: str = __name__" in str(caught.value)


def test_a_config_under_the_name_of_another_is_refused():
    class Config(toco_method.Config):
        strength: float = 0.5

    with pytest.raises(ValidationError) as caught:
        RunConfig(**{**dict(recipe()), "method": Config()})
    assert "has the name of toco.methods.toco.Config" in sentences(caught.value)


def test_a_module_in_an_untrusted_folder_is_not_imported(write):
    folder = write(own_package__in__my_method=METHOD)
    values = replace(recipe(), {"method.name": "own_package.my_method"}).model_dump(mode="json")
    del sys.modules["own_package.my_method"]
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(values, context={UNTRUSTED: folder})
    text = sentences(caught.value)
    assert "code that came with a run is not imported" in text
    assert "own_package.my_method" not in sys.modules
    assert (
        RunConfig.model_validate(values, context={UNTRUSTED: folder / "run"}).method.name
        == "own_package.my_method"
    )


def test_a_run_folder_is_used_where_its_module_is_found_and_never_from_itself(
    write, tmp_path, monkeypatch
):
    folder = write(own_package__in__my_method=METHOD)
    config = replace(recipe(), {"method.name": "own_package.my_method"})
    run = RunFolder(tmp_path / "run")
    provenance = {"data_manifest": {"train": "a", "val": "b"}, "weights_sha256": None}
    run.create(config, None, ("red",), provenance)
    assert run.config() == config
    shutil.move(folder / "own_package", tmp_path / "run/own_package")
    monkeypatch.syspath_prepend(str(tmp_path / "run"))
    for name in ("own_package", "own_package.my_method"):
        sys.modules.pop(name)
    importlib.invalidate_caches()
    with pytest.raises(
        UnreadableError,
        match=r"run/config\.json names a module that cannot be used\. .* not imported",
    ):
        run.config()
    assert "own_package.my_method" not in sys.modules


def test_a_worker_imports_from_the_folders_of_its_driver(write, monkeypatch):
    folder = write(own_package__in__my_method=METHOD)
    folders = search_folders()
    assert str(folder) == folders[0]
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    assert "There is no module" in refusal("own_package.my_method")
    add_search_folders(folders)
    assert issubclass(load("toco.methods", "own_package.my_method").Config, MethodConfig)
