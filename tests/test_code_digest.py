import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toco import code_digest
from toco.code_digest import code_digests, syntax_digest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules into a package ``made`` that can be found, and
    forgets what was read before.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    code_digest._module.cache_clear()

    def write(**files: str) -> None:
        for name, source in {"__init__": "", **files}.items():
            path = tmp_path / "made" / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            if name != "__init__" or not path.exists():
                path.write_text(source)
        code_digest._module.cache_clear()

    yield write
    code_digest._module.cache_clear()


SAME = """
class A:
    def f(self, x: int = 3) -> str:
        return f"a{x!r:>{x}}" "b" if x else "c"
"""


@pytest.mark.parametrize(
    "other",
    [
        '"""A module."""\n' + SAME,
        SAME.replace("class A:", 'class A:\n    """Doc."""'),
        SAME.replace("        return", '        """Doc."""\n        return'),
        SAME.replace("        return", "        # why\n\n        return  "),
        SAME.replace('f"a{x!r:>{x}}" "b"', "(f'a{ x !r:>{x}}b')"),
        SAME.replace("= 3", "= 0x3").replace("\n", "\r\n"),
        SAME.replace("        return", "  return").replace("    def", " def"),
    ],
    ids=["module doc", "class doc", "function doc", "comment", "quotes", "spelling", "indent"],
)
def test_what_means_the_same_has_the_same_digest(other):
    assert syntax_digest(other) == syntax_digest(SAME)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'None'", "x = None"),
        ("x = 'a'", "x = b'a'"),
        ("x = a + b", "x = a - b"),
        ("f(a, b)", "f(a, b=b)"),
        ("x = [[a], b]", "x = [[a, b]]"),
        ("x = {a: b}", "x = {**b}"),
        ("x = f'{a}b'", "x = f'{a!r}b'"),
        ("x = f'{a}b'", "x = f'b{a}'"),
        ("x = -1", "x = 1"),
        ("def f(): return 1", "async def f(): return 1"),
        ("def f(a, /): pass", "def f(a): pass"),
        ("def f(a): 'doc'; 'text'", "def f(a): 'doc'; 'other'"),
        ("if a:\n    b\nelse:\n    c", "if a:\n    b\nc"),
        ("from . import a", "from .. import a"),
        ("x: int = 1", "x = 1"),
    ],
)
def test_what_means_something_else_has_another_digest(one, other):
    assert syntax_digest(one) != syntax_digest(other)


def test_the_digest_does_not_depend_on_the_process():
    # Written down once: entries of a ledger outlive the program that made them.
    assert syntax_digest("def f(x):\n    return x ** 2 + 1.5  # a comment") == "19f5a42cb172488c"


def test_a_closure_follows_every_kind_of_import(package):
    package(
        root="import made.plain\nfrom made import module\nfrom .relative import name\n\n"
        "def f():\n    import made.late",
        plain="",
        module="",
        relative="from . import sibling",
        sibling="import json, numpy",
        late="from made.sub__ import *",
        unused="import made.plain",
    )
    package(
        sub__="",
        **{"deep__in____init__": "", "deep__in__leaf": "from ..plain import x\nfrom ... import y"},
    )
    assert list(code_digests(["made.root"])) == [
        f"made{name}"
        for name in ("", ".late", ".module", ".plain", ".relative", ".root", ".sibling", ".sub__")
    ]
    assert list(code_digests(["made.deep.leaf"])) == [
        "made",
        "made.deep",
        "made.deep.leaf",
        "made.plain",
    ]


def test_nothing_is_run(package):
    package(root="raise SystemExit('this was run')")
    assert "made.root" in code_digests(["made.root"])
    assert "made" not in sys.modules


def test_imports_for_the_type_checker_do_not_count(package):
    package(
        root="if TYPE_CHECKING:\n    import made.types\nelse:\n    import made.real",
        types="",
        real="",
    )
    assert list(code_digests(["made.root"])) == ["made", "made.real", "made.root"]


def test_what_is_left_out_is_not_entered(package):
    package(
        root="import made.eval_, made.evaluate.scores",
        eval_="",
        behind="",
        **{"evaluate__in____init__": ""},
    )
    package(**{"evaluate__in__scores": "import made.behind"})
    assert list(code_digests(["made.root"], ["made.evaluate"])) == [
        "made",
        "made.eval_",
        "made.root",
    ]
    assert "made.behind" in code_digests(["made.root"])


def test_every_entry_of_a_registry_counts_unless_a_root_chooses(package):
    package(
        root="from made import registry\nregistry.load('made.kinds', name)\njson.load(open('x'))",
        registry="",
    )
    package(
        **{"kinds__in____init__": "load(__name__, name)", "kinds__in__a": "", "kinds__in__b": ""}
    )
    package(**{"kinds__in___private": "", "kinds__in__folder__in____init__": ""})
    everything = ["made", "made.kinds", "made.kinds.a", "made.kinds.b", "made.registry"]
    assert sorted(code_digests(["made.root"])) == sorted([*everything, "made.root"])
    chosen = code_digests(["made.root", "made.kinds.a"])
    assert sorted(chosen) == ["made", "made.kinds", "made.kinds.a", "made.registry", "made.root"]
    none = code_digests(["made.root"], chosen=["made.kinds"])
    assert sorted(none) == ["made", "made.registry", "made.root"]


def test_an_entry_that_is_loaded_by_a_constant_name_counts_alone(package):
    package(root="from toco.registry import load\nload('made.kinds', 'a')")
    package(**{"kinds__in____init__": "", "kinds__in__a": "", "kinds__in__b": ""})
    counted = code_digests(["made.root"], chosen=["made.kinds"])
    assert sorted(counted) == ["made", "made.kinds", "made.kinds.a", "made.root"]


def test_what_lies_beside_the_users_package_counts_and_what_is_installed_does_not(
    package, tmp_path
):
    package(root="import beside, numpy, json, folder_beside.part")
    (tmp_path / "beside.py").write_text("import deeper")
    (tmp_path / "deeper.py").write_text("")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "folder_beside").mkdir()
    (tmp_path / "folder_beside" / "part.py").write_text("")
    found = list(code_digests(["made.root"]))
    assert found == ["beside", "deeper", "folder_beside.part", "made", "made.root"]


def test_an_installed_package_counts_alone(package, tmp_path, monkeypatch):
    site = tmp_path / "lib" / "site-packages"
    (site / "installed").mkdir(parents=True)
    (site / "installed" / "method.py").write_text("import neighbour, installed.part")
    (site / "installed" / "part.py").write_text("")
    (site / "neighbour.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    assert list(code_digests(["installed.method"])) == ["installed.method", "installed.part"]


def test_an_edit_changes_the_digest_of_its_module_alone(package):
    package(root="from made import a, b", a="x = 1", b="y = 1")
    before = code_digests(["made.root"])
    package(a="x = 1  # one")
    assert code_digests(["made.root"]) == before
    package(a="x = 2")
    after = code_digests(["made.root"])
    assert {name for name in after if after[name] != before[name]} == {"made.a"}


def test_a_root_without_a_source_is_refused(package):
    package(root="from made import missing")
    assert "made.missing" not in code_digests(["made.root"])
    with pytest.raises(ValueError, match=r"no source file of the module made\.missing"):
        code_digests(["made.missing"])
    with pytest.raises(ValueError, match="no source file of the module nowhere"):
        code_digests(["nowhere"])


def test_a_file_that_is_no_python_is_named(package):
    package(root="def f(:")
    with pytest.raises(ValueError, match=r"root\.py cannot be parsed"):
        code_digests(["made.root"])


def interpreters() -> dict[str, str]:
    """Other versions of Python on this machine that can read this code, by version."""
    names = [shutil.which(f"python3.{minor}") for minor in range(11, 16)]
    names += [str(path) for path in Path.home().glob(".pyenv/versions/3.*/bin/python")]
    found = {}
    for name in filter(None, names):
        version = subprocess.run(
            [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        if re.fullmatch(r"3\.1[1-9]", version) and version != f"3.{sys.version_info.minor}":
            found[version] = name
    return found


OTHER_DIGESTS = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("code_digest", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["code_digest"] = module
spec.loader.exec_module(module)
print(json.dumps([module.syntax_digest(open(path, "rb").read()) for path in json.load(sys.stdin)]))
"""

STRINGS = r'''
a = f"", f"x", f"{x}", f"{x:}", f"{x!r:}", f"{x:{y}.{z}}", f"a{{b}}c{x}" "d" f"e{y}" 'f'
a = rf"\d{x}\n", f"\N{EM DASH}{x}"
b = f"{x=}", f"{x = !s:>3}", f"""{
    x
}""", f"{'a' 'b'}", f"{x:%H:%M}", f"{x:a{y}b{z!r}c}", f"{ {1: 2}[1] }", f"{(lambda: 1)()}"
b = f"a" f"b", u"c"
'''


@pytest.mark.slow
def test_other_versions_of_python_give_the_same_digests(tmp_path):
    others = interpreters()
    if not others:
        pytest.skip("there is no other version of Python on this machine")
    strings = tmp_path / "strings.py"
    strings.write_text(STRINGS)
    paths = [strings, *sorted(ROOT.glob("toco/**/*.py")), *sorted(ROOT.glob("sweeps/**/*.py"))]
    # Some of the standard library, too, which has more constructs than our own code.
    paths += sorted(Path(os.__file__).parent.glob("*.py"))[::4]
    here = [syntax_digest(path.read_bytes()) for path in paths]
    assert len(set(here)) > 120
    for version, name in others.items():
        done = subprocess.run(
            [name, "-c", OTHER_DIGESTS, code_digest.__file__],
            input=json.dumps([str(path) for path in paths]),
            capture_output=True,
            text=True,
            check=True,
        )
        pairs = zip(paths, here, json.loads(done.stdout), strict=True)
        assert [path.name for path, ours, theirs in pairs if ours != theirs] == [], version


TRAINED = """
import json, sys
from pathlib import Path
from toco.config import replace
from toco.recipes.shapes_nano import recipe
from toco.train.loop import train
small = {
    "num_steps": 2, "evaluate_every": 1, "optim.warmup_steps": 1, "data.num_train": 16,
    "data.num_val": 4, "method.segmentation.start_step": 0, "method.energy.start_step": 0,
    "method.dense_energy.filter_name": sys.argv[2], "evaluate.num_pictures": 1,
}
train(replace(recipe(), small), Path(sys.argv[1]), progress=False)
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] == "toco")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("bilateral", ["exact", "lattice"])
def test_a_training_runs_no_module_that_its_closure_lacks(tmp_path, bilateral):
    done = subprocess.run(
        [sys.executable, "-c", TRAINED, str(tmp_path / "run"), bilateral],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    run = set(json.loads(done.stdout.splitlines()[-1]))
    roots = ["toco.train.loop", "toco.data.shapes", "toco.backbones.vit_nano", "toco.methods.toco"]
    recipe = {"toco.recipes", "toco.recipes.shapes_nano"}
    assert run - recipe <= code_digests(roots).keys()
    assert f"toco.filters.{bilateral}" in run
