"""Any one file of what the program wrote or reads is damaged: commands end as before, or say which
file it is.

The kinds of file are found by walking run folders, data sets and outputs, so that
a new kind is damaged without an edit here. ``TOCO_DAMAGE_SEED`` chooses other damages, and
``TOCO_DAMAGES`` how many there are in all; ``make test-damage`` tries thousands.

A fault is: an exception that is no sentence of the command's; a message that names neither the file
nor its folder; a command that takes longer than 20 s; a result that differs from that of the sound
files without a word.
"""

import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))
from damage_trees import files_under, make_coco, make_folder_set
from damage_ways import Damage, choose_damages, damage, kinds_in
from fake_backend import LostError
from tiny_study import StudyPlace

from sweeps.__main__ import main as sweeps_main
from sweeps.core.run import driver, start
from sweeps.core.store import process_identity, scratch
from sweeps.core.store.leases import Leases
from toco.__main__ import main as toco_main
from toco.backbones import vit_nano
from toco.config import flatten, replace
from toco.data import voc
from toco.evaluate import pictures
from toco.train.loop import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SEED = os.environ.get("TOCO_DAMAGE_SEED", "0")
TOTAL = int(os.environ.get("TOCO_DAMAGES", "300"))
LONGEST_S = 20.0
NO_WAY = "no damage"
RAW = ("Traceback (most recent call last)", "[Errno ", "Aborted!")
"""What no message may hold: an exception's trace, an error of the system as Python writes it, and
what click makes of ``EOFError``."""


class HangError(BaseException):
    """A command took longer than ``LONGEST_S``."""


@dataclass(frozen=True)
class Said:
    """How a command ended, and all that it printed, logged and warned of."""

    exit_code: int
    text: str

    def names(self, file: Path) -> bool:
        """Whether the file or its folder is named, or the image that the file is of."""
        is_image = file.suffix in (".png", ".jpg", ".npz") and any(map(str.isdigit, file.stem))
        named = (file.name, str(file.parent), *([file.stem] if is_image else []))
        return any(name in self.text for name in named)


@pytest.fixture
def say(caplog):
    """Runs a command line in this process."""

    def say(main, *words):
        caplog.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            result = CliRunner().invoke(main, [str(word) for word in words])
        lines = [result.output, caplog.text, *(str(warning.message) for warning in warned)]
        error = result.exception
        if error is not None and not isinstance(error, SystemExit):
            if isinstance(error, HangError | LostError):
                raise error
            lines += [RAW[0], *_own_frames(error), repr(error)]
        return Said(result.exit_code, "\n".join(lines))

    return say


def _own_frames(error):
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/toco/" in f.filename or "/sweeps/" in f.filename]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in own[-4:]]


@contextmanager
def limited():
    """Raise ``HangError`` after ``LONGEST_S``, without the time that this thread waits for a core.

    The signal of alarms is pytest-timeout's.
    """
    main, done = threading.main_thread(), threading.Event()

    def end(*_):
        raise HangError

    def waited_s():
        return int(Path(f"/proc/self/task/{main.native_id}/schedstat").read_text().split()[1]) / 1e9

    def look():
        start_s, before_s = time.monotonic(), waited_s()
        while not done.wait(0.5):
            if time.monotonic() - start_s - (waited_s() - before_s) > LONGEST_S:
                signal.pthread_kill(main.ident, signal.SIGUSR1)
                return

    before = signal.signal(signal.SIGUSR1, end)
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


class Judge:
    """What is wrong with what commands did, over all damages of a tree.

    Attributes:
        damage: The damage at hand.
        file: The file that has it.
        is_sound: Whether nothing is damaged, so that every command has to do its work.
    """

    def __init__(self, tree: str) -> None:
        self.tree, self.faults = tree, []
        self.is_sound = False
        self.damage = Damage(Path(), "", "")
        self.file = Path()

    def fault(self, what: str, said: Said | None = None) -> None:
        """Note a fault."""
        self.faults.append(f"{self.tree}/{self.damage}: {what}")
        if said is not None:
            self.faults.append(f"    exit status {said.exit_code}: {said.text.strip()[-1200:]}")

    def check(self, said: Said) -> bool:
        """Find fault with what a command said; whether it did its work."""
        if raw := next((text for text in RAW if text in said.text), None):
            self.fault(f"{raw!r} is in what a command printed", said)
        elif said.exit_code and self.is_sound:
            self.fault("a command fails although nothing is damaged", said)
        elif said.exit_code and not said.names(self.file):
            self.fault("neither the file nor its folder is named", said)
        return said.exit_code == 0

    def check_same(self, said: Said, what: str, was: object, now: object) -> None:
        """Find fault with a result that is another one although nothing was said of the file."""
        if was != now and (self.is_sound or not said.names(self.file)):
            self.fault(f"{what} changed without a word", said)


@pytest.fixture
def fuzz(capsys):
    """Damages a tree, one file at a time in a copy of it, and has ``read`` run what reads the tree.

    ``share`` of all damages are of this tree; every kind of file gets one at least.
    """

    def fuzz(kept: Path, share: float, read) -> None:
        number = max(round(share * TOTAL), len(kinds_in(kept)))
        rng = random.Random(f"{SEED}/{kept.name}")  # noqa: S311 - repeatable on purpose
        judge, work = Judge(kept.name), kept.with_name(f"{kept.name} at work")
        damages = choose_damages(kept, number, rng)
        counts = Counter(one.kind for one in damages)
        with capsys.disabled():
            print(
                f"\n{kept.name}, TOCO_DAMAGE_SEED={SEED}: {number} damages of {len(counts)} kinds"
            )
            print("  " + ", ".join(f"{kind} {count}" for kind, count in counts.items()))
        # The first one is none: what cannot pass on a sound tree says nothing of a damaged one.
        for judge.damage in (replaced(damages[0], way=NO_WAY), *damages):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(kept, work)
            judge.file, judge.is_sound = work / judge.damage.file, judge.damage.way == NO_WAY
            if not judge.is_sound:
                damage(judge.file, judge.damage.way, rng)
            try:
                with limited():
                    read(work, judge)
            except HangError:
                judge.fault(f"a command took longer than {LONGEST_S:.0f} s")
        if judge.faults:
            text = "\n".join(judge.faults)
            pytest.fail(f"TOCO_DAMAGE_SEED={SEED}\n{text}", pytrace=False)

    return fuzz


# Studies.


@pytest.fixture(scope="session")
def pictured(tiny_config):
    """A training that leaves files of all kinds."""
    return replace(tiny_config, {"evaluate.num_pictures": 1})


@pytest.fixture(autouse=True)
def one_panel(monkeypatch):
    """Draw one panel, and take it for all: drawing one takes as long as a tiny training."""
    save = pictures.save_figure
    drawn: list[bytes] = []

    def save_once(draw, path, *, with_panels=False):
        if with_panels and drawn:
            known = SimpleNamespace(savefig=lambda file, **_: file.write_bytes(drawn[0]))
            return save(lambda: known, path)
        is_saved = save(draw, path, with_panels=with_panels)
        if with_panels and is_saved:
            drawn.append(path.read_bytes())
        return is_saved

    monkeypatch.setattr(pictures, "save_figure", save_once)


@pytest.fixture
def study(pictured, tmp_path, monkeypatch, say):
    """Verbs of a small study, without Ray."""
    place = StudyPlace(pictured, tmp_path / "recorded")
    place.install(monkeypatch)
    # A study sweeps what dead processes left, and a test lets a live one seem dead: no other folder
    # may be in reach.
    own = tmp_path / "scratch"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    monkeypatch.setattr(scratch, "_SHORT_ROOT", own)
    # Drawing the page's figures takes four fifths of a verb's time; what they show has been read
    # before.
    savefig = Figure.savefig

    def draw_pictures_alone(figure, file, **options):
        if isinstance(file, io.StringIO):
            file.write('<svg width="1pt"/>')
        else:
            savefig(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", draw_pictures_alone)

    def sweep(verb, storage):
        words = ["--accept-underpowered"] if verb == "run" else []
        return say(sweeps_main, verb, place.study.name, "--storage", storage, *words)

    sweep.place = place
    return sweep


def table_in(storage: Path) -> bytes | None:
    """The table of the study in a storage."""
    tables = list(storage.glob("tiny-*/table.csv"))
    return tables[0].read_bytes() if len(tables) == 1 and tables[0].is_file() else None


def test_a_finished_study(study, tmp_path, fuzz):
    kept = tmp_path / "study"
    said = study("run", kept)
    assert said.exit_code == 0, said.text
    folder = next(kept.glob("tiny-*"))
    (folder / "history").mkdir()
    shutil.copy(folder / "study.json", folder / "history" / "0000.json")
    assert study("diff", kept).exit_code == 0
    table = table_in(kept)
    others = ["report", "status", "plan", "diff", "sync"]

    def read(storage, judge):
        others.append(others.pop(0))
        judge.check(study(others[0], storage))
        said = study("run", storage)
        judge.check(said)
        judge.check_same(said, "table.csv", table, table_in(storage))

    fuzz(kept, 0.2, read)


def test_a_study_whose_driver_was_lost(study, tmp_path, fuzz, monkeypatch):
    whole, kept = tmp_path / "whole", tmp_path / "lost"
    assert study("run", whole).exit_code == 0
    study.place.lost = {"1/1": 4}
    study.place.computed = {"1/1"}
    with monkeypatch.context() as context:
        # The process that the leases name is gone, and what it left behind stays.
        context.setattr(process_identity, "started", lambda pid: "0")
        context.setattr(Leases, "close", lambda self: self._closing.set())
        ended = None
        with suppress(LostError):
            ended = study("run", kept)
        assert ended is None, ended.text
    study.place.lost = {}
    assert list(kept.glob("leases/*.json"))
    table = table_in(whole)
    # A damaged lease may be another machine's: it is waited for.
    monkeypatch.setattr(start, "Leases", partial(Leases, beat_every_s=0.05, expires_s=0.3))
    monkeypatch.setattr(driver, "_POLL_S", 0.05)

    def read(storage, judge):
        said = study("run", storage)
        judge.check(said)
        judge.check_same(said, "table.csv", table, table_in(storage))

    fuzz(kept, 0.1, read)


# Run folders.


def train_words(config, run_dir):
    """The command line of a training with this config."""
    words = ["train", "shapes_nano", "--no-progress", "--resume", "--run-dir", run_dir]
    for path, value in flatten(config).items():
        words += ["--set", f"{path}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def numbers_in(run_dir):
    """Rows and result of a training, without times; what is wrong, where they cannot be read."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        rows = [(row["kind"], row["step"], row["values"]) for row in map(json.loads, lines)]
        result = json.loads((run_dir / "result.json").read_text())
        untimed = sorted(
            (kind, step, [(key, x) for key, x in values.items() if "time" not in key])
            for kind, step, values in rows
        )
        return untimed, result["status"], result["step"], result["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return repr(error)


@pytest.fixture
def run_dir(pictured, tmp_path):
    train(pictured, tmp_path / "finished", recipe="shapes_nano", progress=False)
    return tmp_path / "finished"


def test_a_finished_run(run_dir, pictured, data_root, tmp_path, say, fuzz):
    image = data_root / "JPEGImages" / "image00.png"
    fast = ["--no-progress", "--set", "inference.crf=null", "--set", "inference.scales=[1]"]
    store = ["--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    verbs = [
        lambda run: ["evaluate", run, "--no-progress"],
        lambda run: ["predict", run, image, "--out", tmp_path / "out", *fast],
        lambda run: ["export-official", run, tmp_path / "official.pth"],
        lambda run: ["track", run, *store],
    ]
    numbers = numbers_in(run_dir)
    *_, result = numbers
    evaluation = say(toco_main, *verbs[0](run_dir)).text
    turn = 0
    # What is imported and made once takes its time.
    assert say(toco_main, *verbs[3](run_dir)).exit_code == 0

    def read(run, judge):
        nonlocal turn
        turn += 1
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "official.pth").unlink(missing_ok=True)
        words = verbs[turn % 4](run)
        said = say(toco_main, *words)
        if judge.check(said) and words[0] == "evaluate":
            judge.check_same(said, "the evaluation", evaluation, said.text)
        said = say(toco_main, *train_words(pictured, run))
        if judge.check(said):
            now = numbers_in(run)
            judge.check_same(said, "rows or result", numbers, now)
            if f"'val/cam_miou': {result['val/cam_miou']}" not in (
                run / "result.json"
            ).read_text().replace('"', "'"):
                judge.fault("the result is another one", said)

    fuzz(run_dir, 0.12, read)


def test_a_run_that_was_stopped(run_dir, pictured, tmp_path, say, fuzz):
    numbers = numbers_in(run_dir)
    kept = tmp_path / "stopped"
    shutil.copytree(run_dir, kept)
    # As it is when its process is killed before the last checkpoint.
    (kept / "result.json").unlink()
    shutil.rmtree(kept / "checkpoints" / "step_00000006")

    def read(run, judge):
        said = say(toco_main, *train_words(pictured, run))
        if judge.check(said) and numbers_in(run) != numbers:
            judge.fault("the training has other rows or another result", said)

    fuzz(kept, 0.1, read)


def test_the_beginning_that_trainings_share(pictured, tmp_path, fuzz, caplog):
    kept = tmp_path / "prefixes"
    train(pictured, tmp_path / "first", progress=False, prefixes=kept)
    config = replace(pictured, {"method.energy.weight": 0.1})
    train(config, tmp_path / "alone", progress=False)
    numbers = numbers_in(tmp_path / "alone")

    def read(prefixes, judge):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        caplog.clear()
        try:
            train(config, tmp_path / "run", progress=False, prefixes=prefixes)
        except (ValueError, OSError) as error:
            judge.check(Said(1, f"{error}"))
            return
        except Exception as error:  # whatever it is, it is the fault that is looked for
            judge.check(Said(1, "\n".join([RAW[0], *_own_frames(error), repr(error)])))
            return
        if numbers_in(tmp_path / "run") != numbers:
            judge.fault("the training has other rows or another result", Said(0, caplog.text))

    fuzz(kept, 0.05, read)


# Outputs.


def test_outputs(run_dir, data_root, tmp_path, say, fuzz):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in (0, 1):
        shutil.copy(data_root / "JPEGImages" / f"image0{number}.png", photos)
    fast = ["--no-progress", "--set", "inference.crf=null", "--set", "inference.scales=[1]"]
    commands = {
        "predict": ["predict", run_dir, photos, "--overlay", "--soft", "--coco-json", *fast],
        "export-cams": ["export-cams", run_dir, "--split", "val", "--no-progress"],
        "pseudo-labels": ["export-pseudo-labels", run_dir, "--split", "val", "--no-progress"],
        "test": ["test", run_dir, *fast],
    }
    kept = tmp_path / "outputs"
    for name, words in commands.items():
        said = say(toco_main, *words, "--out", kept / name)
        assert said.exit_code == 0, said.text
    sound = files_under(kept)

    def read(out, judge):
        name = judge.damage.file.parts[0]
        said = say(toco_main, *commands[name], "--out", out / name)
        if judge.check(said) and (now := files_under(out)) != sound:
            changed = [
                path for path in sound.keys() | now.keys() if sound.get(path) != now.get(path)
            ]
            judge.fault(f"{', '.join(sorted(changed))} differ from those of sound files", said)

    fuzz(kept, 0.12, read)


# Data sets.


def test_a_folder_of_vocs_shape(data_root, tmp_path, say, fuzz):
    kept = tmp_path / "voc"
    shutil.copytree(data_root, kept)

    def read(root, judge):
        judge.check(say(toco_main, "data", "check", root, "--train-list", "train"))
        settings = ["--set", f"root={root}", "--set", "train_list=train"]
        judge.check(say(toco_main, "data", "check-set", "voc", *settings))

    fuzz(kept, 0.08, read)


def test_a_folder_of_images(tmp_path, say, fuzz):
    kept = make_folder_set(tmp_path / "folder")

    def read(root, judge):
        labels = judge.damage.file.name if judge.damage.file.stem == "labels" else "masks"
        settings = ["--set", f"root={root}", "--set", f"labels={labels}", "--set", "masks=masks"]
        judge.check(say(toco_main, "data", "check-set", "folder", *settings))

    fuzz(kept, 0.1, read)


def test_coco(tmp_path, say, fuzz):
    kept = make_coco(tmp_path / "coco")
    for words in (
        ["prepare-coco", kept, "--no-progress"],
        ["check-set", "coco", "--set", f"root={kept}"],
    ):
        said = say(toco_main, "data", *words)
        assert said.exit_code == 0, said.text

    def read(root, judge):
        judge.check(say(toco_main, "data", "prepare-coco", root, "--no-progress"))
        judge.check(say(toco_main, "data", "check-set", "coco", "--set", f"root={root}"))

    fuzz(kept, 0.08, read)


def test_a_cache_of_decoded_images(data_root, tmp_path, fuzz, caplog):
    kept = tmp_path / "cache"

    def images(cache):
        settings = {"root": data_root, "train_list": "train", "cache": "node", "cache_root": cache}
        dataset = voc.open_split(voc.Config(**settings), "train")
        return [dataset.image(number).tobytes() for number in range(len(dataset))]

    sound = images(kept)

    def read(cache, judge):
        caplog.clear()
        try:
            same = images(cache) == sound
        except Exception as error:  # a cache is no reason to end a training
            judge.fault(f"{error!r}", Said(1, "\n".join(_own_frames(error))))
            return
        if not same:
            judge.fault("images are other ones without a word", Said(0, caplog.text))

    fuzz(kept, 0.05, read)


def test_weights(tmp_path, tiny_config, data_root, say, fuzz):
    kept = tmp_path / "weights"
    kept.mkdir()
    state = vit_nano.build(tiny_config.backbone).vit.state_dict()
    torch.save(state, kept / "nano.pth")
    np.save(kept / "labels.npy", {"image00": np.eye(2)[0]}, allow_pickle=True)

    def read(folder, judge):
        if judge.file.suffix == ".npy":
            words = ["data", "convert-labels", judge.file, tmp_path / "labels.npz"]
        else:
            changes = {"backbone.weights": judge.file, "num_steps": 1, "optim.warmup_steps": 0}
            words = train_words(replace(tiny_config, changes), tmp_path / "run")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        judge.check(say(toco_main, *words))

    fuzz(kept, 0.03, read)
