"""A sequential study of four rows of fake trainings with declared values: its looks are known.

Values are those of val/cam_miou. Differences from the base, by seed:

    #8     -10.0, -10.1, -9.9 points: t = 173, p = 0.00003 with 3 seeds, so it is shown at once
    #9     -3, -1, -2, -2, -2 points: p = 0.07, 0.016, 0.0032 with 3, 4, 5 seeds; the boundaries for
           two open claims are about 0.008 and 0.016, so it is shown at the last look
    #11    1, -1, 2, -2, 0 points: undecided
"""

import dataclasses

from entries import make_entry
from fake_backend import FakeBackend
from fake_study import STUDY as FAKE

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.seeds import Sequential
from toco.train import records

LOOKS = (3, 4, 5)
STUDY = dataclasses.replace(
    FAKE,
    name="looking",
    title="Fake looks",
    design=OneFactor(
        (Factor("method.aux_block", (7, 8, 9, 10), 9, labels=("#8", "#9", "#10", "#11")),)
    ),
    seeds=Sequential(LOOKS, futility=None),
    repeat_base=True,
)
BASE = (0.50, 0.52, 0.48, 0.51, 0.49)
DIFFERENCES = {
    7: (-0.100, -0.101, -0.099, -0.1, -0.1),
    8: (-0.03, -0.01, -0.02, -0.02, -0.02),
    9: (0.0,) * 5,
    10: (0.01, -0.01, 0.02, -0.02, 0.0),
}
NEEDED = {"#8": 3, "#9": 5, "#10": 5, "#11": 5, "base again (A/A)": 3}
"""Seeds of each row at the end."""
CLAIMS = tuple(f"{row} differs from #10 in M" for row in ("#8", "#9", "#11"))


def value(block: int, seed: int) -> float:
    """The result of a training; seeds of the A/A row are those of the base again."""
    place = seed % len(BASE)
    return BASE[place] + DIFFERENCES[block][place]


def write_run(spec, folder, status="finished", metrics=None):
    """Fill the run folder of a training that has ended."""
    head = {"digest": "0" * 16, "recipe": spec.recipe, "config": spec.config}
    records.write(folder / "config.json", head)
    started = {"commit": None, "started": "2026-01-01T00:00:00+00:00"}
    records.write(folder / "provenance.json", started)
    (folder / "metrics.jsonl").write_text("")
    steps = spec.config["num_steps"]
    result = {"status": status, "step": steps, "digest": "0" * 16, "metrics": metrics or {}}
    records.write(folder / "result.json", result)


class Trainings(FakeBackend):
    """Trains at once; notes block and seed of each training in ``trained``.

    ``change(block, seed)`` may raise, or return other metrics.
    """

    def __init__(self, change=lambda block, seed: None):
        super().__init__(self.make)
        self.change, self.trained = change, []

    def make(self, spec, folder):
        block, seed = spec.config["method"]["aux_block"], spec.config["seed"]
        metrics = self.change(block, seed)
        self.trained.append((block, seed))
        if metrics is None:
            metrics = {"val/cam_miou": value(block, seed)}
        write_run(spec, folder, "finished" if metrics else "diverged", metrics)


def place_of(trial):
    """Block and seed of a trial or task."""
    return trial.config.method.aux_block, trial.config.seed


def store(situation, place, miou, **more):
    """Write the result of the training of a block and a seed into the ledger."""
    trial, identity = next(
        (trial, identity)
        for trial, identity in zip(situation.plan.trials, situation.identities, strict=True)
        if place_of(trial) == place
    )
    entry = make_entry(
        key=identity.key,
        training_key=identity.training_key,
        identity=identity.parts,
        config=trial.config.model_dump(mode="json"),
        metrics={"val/cam_miou": miou, **{f"val/{name}": number for name, number in more.items()}},
        wall_time_s=None,
    )
    situation.ledger.write(entry)
