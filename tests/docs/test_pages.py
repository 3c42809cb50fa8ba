"""Links, commands, settings and lengths in the pages that a reader opens
on GitHub or on the site.
"""

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import benchmarks.__main__
import sweeps
import sweeps.__main__
import toco.__main__
from toco.command_line import SETTINGS
from toco.config import flatten, parse_assignments, replace
from toco.registry import available, load

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster/README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
PICTURES = ROOT / "docs/pictures"
MARK = re.compile(r"<!-- (long|needs: (?P<needs>[^>]+)) -->")
NEEDS = {"VOC", "COCO", "GPUs", "cluster", "your images", "the authors' file"}
ANYWHERE = {"source", "export", "cat", "cp", "ssh", "git", "sbatch"}
"""Programs of the shell, whose arguments are not checked."""
SECTIONS = ("backbone", "data", "evaluate", "inference", "method", "optim", "views")

PROGRAMS = {"python -m toco": toco.__main__.main, "python -m sweeps": sweeps.__main__.main}
"""Commands that a page may show with their output; a shown ``...`` stands for the rest."""

per_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


@cache
def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(page.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@per_page
def test_every_relative_link_and_anchor_exists(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    for link in links:
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = page if not path else (page.parent / path).resolve()
            # The folder of pictures exists once `make pictures` has drawn them.
            is_undrawn = target.parent == PICTURES and not PICTURES.exists()
            assert target.exists() or is_undrawn, link
            assert not anchor or anchor in anchors(target), link


@per_page
def test_every_file_of_the_repository_that_is_named_exists(page):
    spans = re.findall(r"`([^`\n]+)`", without_code(page.read_text()))
    for span in spans:
        if re.fullmatch(
            r"(toco|sweeps|tests|docs|benchmarks|examples|cluster)/[\w./-]+\.(py|md|csv|json)", span
        ):
            assert "NAME" in span or (ROOT / span).is_file(), span


def console_blocks(page):
    """The text of each block of commands, and the mark above it."""
    text = page.read_text()
    for match in re.finditer(r"(?:^(<!--[^\n]*)\n)?^```console\n(.*?)^```$", text, re.M | re.S):
        yield match[1], match[2]


def commands_in(block):
    """The commands of a block, with what each printed where the block shows it."""
    lines = block.replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        if line.startswith("$ "):
            commands.append((line.removeprefix("$ "), []))
        else:
            commands[-1][1].append(line)
    return commands


def inline_commands(page):
    spans = re.findall(r"`([^`\n]+)`", without_code(page.read_text()))
    starts = r"(python (-m )?|make |torchrun --|ray |[A-Z_]+=\S+ make )\w"
    return [span for span in spans if re.match(starts, span)]


@per_page
def test_every_block_of_commands_runs_here_or_says_what_it_needs(page):
    for mark, block in console_blocks(page):
        if mark is None:
            for command, printed in commands_in(block):
                check_output(command, printed)
            continue
        match = MARK.fullmatch(mark)
        assert match, mark
        assert not match["needs"] or set(match["needs"].split(", ")) <= NEEDS, mark


def check_output(command, printed):
    words = shlex.split(command)
    program = PROGRAMS.get(" ".join(words[:3]))
    assert program is not None, f"mark {command!r}: it is not run here"
    done = CliRunner().invoke(program, words[3:])
    assert done.exit_code == 0, done.output
    shown = "\n".join(printed).strip()
    if shown.endswith("\n..."):
        assert done.output.startswith(shown.removesuffix("...")), done.output
    else:
        assert not shown or done.output.strip() == shown


@per_page
def test_every_command_has_a_program_a_verb_and_options_that_exist(page):
    blocks = [command for _, block in console_blocks(page) for command, _ in commands_in(block)]
    for command in (*blocks, *inline_commands(page)):
        check(shlex.split(command, comments=True), command)


HEADERS = sorted(
    path
    for folder in ("toco/recipes", "sweeps", "cluster", "examples/own_method", "examples/own_loss")
    for path in (ROOT / folder).glob("[a-z]*.py")
)


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_a_header_exists(path):
    """Headers of recipes and studies are on the site, too."""
    header = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
    for command in re.findall(r"^ {4}(python .*)$", header, flags=re.M):
        check(shlex.split(command, comments=True), command)


def check(words, command):
    words = list(words)
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    program, *rest = words
    if program == "make":
        check_make(rest, command)
    elif program == "torchrun":
        check(["python", *rest[rest.index("-m") :]], command)
    elif program == "ray":
        assert rest[:2] in (
            ["job", "submit"],
            ["job", "logs"],
            ["job", "stop"],
            ["stop"],
        ) or rest == ["stop"]
        if "--" in rest:
            check(rest[rest.index("--") + 1 :], command)
    elif program == "python":
        check_python(rest, command)
    else:
        assert program in ANYWHERE, command


def check_make(words, command):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z0-9-]*):", makefile, flags=re.M)
    variables = re.search(r"^SET := (.*)$", makefile, flags=re.M)[1].split()
    for word in words:
        name, equals, _ = word.partition("=")
        assert name in (variables if equals else targets), command


def check_python(words, command):
    if words[0] == "-m":
        program, *rest = words[1:]
        if program == "toco":
            check_toco(rest, command)
        elif program == "sweeps":
            check_study(rest, command)
        elif program.startswith("sweeps."):
            parse(load("sweeps", program.removeprefix("sweeps.")).main, rest, command)
        else:
            assert program == "benchmarks", command
            parse(benchmarks.__main__.main, rest, command)
        return
    script, *rest = words
    if script.startswith("sweeps/"):
        assert (ROOT / script).is_file(), command
        check_study(["run", Path(script).stem, *rest], command)
    elif script == "cluster/ray_nodes.py":
        parse(ray_nodes(), rest, command)
    else:
        assert script.startswith("my_"), command  # a script of the reader


@cache
def ray_nodes():
    spec = importlib.util.spec_from_file_location("ray_nodes", ROOT / "cluster/ray_nodes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def context_of(command):
    """A context with the outermost command's settings: a command keeps its first help option."""
    return click.Context(command, **SETTINGS)


def parse(command, words, shown):
    """Find the command of a group and read its options; returns the texts by parameter."""
    if not words or words[0] in ("-h", "--help"):
        return {}
    if isinstance(command, click.Group):
        found = command.get_command(context_of(command), words[0])
        assert found is not None, f"{shown}: no {words[0]}"
        return parse(found, words[1:], shown)
    values, too_many, _ = command.make_parser(context_of(command)).parse_args(list(words))
    assert not too_many, f"{shown}: {too_many}"
    for parameter in command.params:
        value = values.get(parameter.name)
        is_text = isinstance(value, str) or (isinstance(value, tuple | list) and value)
        assert is_text or not parameter.required, f"{shown}: {parameter.name} is missing"
    return values


def check_toco(words, command):
    if len(words) == 1 and words[0] in available("toco.commands"):
        return  # a verb alone, in a sentence
    options = parse(toco.__main__.main, words, command)
    changes = parse_assignments(options.get("changes") or ())
    if words[:2] == ["data", "check-set"]:
        replace(load("toco.data", options["name"]).Config(), changes)
    elif words[0] in ("train", "config"):
        recipe = options["recipe"]
        if "." in recipe:
            assert (ROOT / "examples" / (recipe.replace(".", "/") + ".py")).is_file(), command
        elif recipe.isupper():
            return
        else:
            replace(load("toco.recipes", recipe).recipe(), changes)
    elif changes:
        assert accepting(changes), command


def check_study(words, command):
    if words in (["run"], ["plan"], ["list"], ["--help"]):
        return
    if words[0] == "compare":
        parse(sweeps.__main__.main, words, command)
        return
    verb, name, *rest = words
    if name.isupper() or name.startswith("my_"):
        return
    if "." in name:
        assert (ROOT / "examples" / (name.replace(".", "/") + ".py")).is_file(), command
        return
    study = load(sweeps.__name__, name)
    found = study.main.commands.get(verb)
    assert found is not None, command
    options = parse(found, rest, command)
    recipe = options.get("recipe") or study.STUDY.recipe
    if recipe.startswith("my_"):
        return
    replace(load("toco.recipes", recipe).recipe(), parse_assignments(options.get("changes") or ()))


@cache
def configs():
    """Every recipe, and one of them with each data set, backbone and method, and with SGD."""
    recipes = [load("toco.recipes", name).recipe() for name in available("toco.recipes")]
    base = replace(recipes[-1], {"batch_size": 8})  # a batch that RCA's loss groups of 8 divide
    others = [
        replace(base, {f"{section}.name": name})
        for section, package in (("data", "data"), ("backbone", "backbones"), ("method", "methods"))
        for name in available(f"toco.{package}")
    ]
    return [*recipes, *others, replace(base, {"optim.name": "sgd"})]


def accepting(changes):
    """Whether a config accepts the changes together."""
    for config in configs():
        try:
            replace(config, changes)
        except ValueError:
            continue
        return True
    return False


@per_page
def test_every_setting_in_a_sentence_exists(page):
    paths = {path for config in configs() for path in flatten(config)}
    parents = {path.rsplit(".", number)[0] for path in paths for number in (1, 2)}
    for span in re.findall(r"`([^`\n]+)`", without_code(page.read_text())):
        for item in span.removeprefix("--set ").split(" --set "):
            path, equals, value = item.partition("=")
            if re.fullmatch(rf"({'|'.join(SECTIONS)})(\.[a-z_0-9]+)+(?<!\.py)", path):
                assert path in paths | parents, span
                placeholder = value.isupper() or value == "image"
                assert not equals or placeholder or accepting({path: value}), span


def test_the_pages_of_the_menu_are_the_pages_of_the_folder():
    """Read as text: the settings of the site import Sphinx, which tests do without."""
    menu = re.search(r"^PAGES = \((.*?)^\)", (ROOT / "docs/conf.py").read_text(), re.M | re.S)[1]
    listed = set(re.findall(r'"([a-z_]+)"', menu))
    assert listed == {page.stem for page in ROOT.glob("docs/*.md")}


def test_the_example_of_a_study_is_one():
    text = (ROOT / "docs/studies.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)
    names = {"__doc__": "An example."}
    exec(compile(code, "docs/studies.md", "exec"), names)  # noqa: S102 - our own page
    # Three rows up to the cap of ten seeds, and the A/A row with the seeds of the first look.
    assert len(names["STUDY"].resolve().trials) == 3 * 10 + 3
    assert {"plan", "run", "report"} <= names["main"].commands.keys()


def prose(text):
    """Sentences outside of code, tables, headings and pictures."""
    blocks = re.split(r"\n\s*\n", without_code(text))
    joined = " ".join(block for block in blocks if not block.lstrip().startswith(tuple("|#<!")))
    return [s.split() for s in re.split(r"(?<=[.!?:;])\s+", joined) if len(s.split()) > 2]


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 900
    lengths = sorted(map(len, prose(text)))
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 20


@per_page
def test_prose_is_not_wider_than_100_columns(page):
    rows = [row for row in without_code(page.read_text()).splitlines() if not row.startswith("|")]
    assert [row for row in rows if len(row) > 100 and "://" not in row] == []


@per_page
def test_no_page_has_a_word_of_the_old_prose(page):
    odd = r"\b(foret(?:ell|old)|mend(?:s|ed)?|whoever|nobody|come of|in words|its word)\b"
    assert re.findall(odd, page.read_text(), flags=re.I) == []


def test_slugs_are_those_of_github():
    assert "methoddense_energyenergy_scale" in anchors(ROOT / "docs/parity.md")


WRONG = (
    "python -m toco trian shapes_nano",
    "python -m toco train shapes_mano --run-dir x",
    "python -m toco train shapes_nano --run-directory x",
    "python -m toco train shapes_nano --set method.temprature=1 --run-dir x",
    "python -m toco train shapes_nano",
    "python -m toco data check one two",
    "python -m sweeps run tabel5",
    "python -m sweeps run table5 --seed 1",
    "python -m sweeps begin table5",
    "python -m sweeps compare runs.csv --bases baseline",
    "make reproduce-table6",
    "make reproduce-table5 GPU=4",
    "torchrun -m toco trian",
    "python -m benchmarks steps",
    "python cluster/ray_nodes.py heads",
    "rm -rf results",
)


@pytest.mark.parametrize("command", WRONG)
def test_each_kind_of_wrong_command_is_found(command):
    with pytest.raises((AssertionError, ValueError, click.UsageError)):
        check(shlex.split(command), command)
