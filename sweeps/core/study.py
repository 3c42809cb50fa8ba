"""A study is a value: a base recipe, the factors that vary, the seeds, the metrics of its table.

It can be counted, checked and written down before anything runs. ``resolve`` turns it into a ``Plan``: every config of
every training, validated, with its name. The plan is what the runner runs and, as ``study.json``, what the report
reads.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from toco.config import digest, replace
from toco.registry import load
from toco.train.run_config import RunConfig

FORMAT_VERSION = 1
SEED_PATH = "seed"
TRAIN = "toco.train.loop:train"

Scalar = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Factor:
    """One varied field.

    Attributes:
        path: Dotted path in the ``RunConfig``.
        values: What it is set to, in the order of the table's rows.
        labels: How the values are printed, where that differs from the values themselves.
    """

    path: str
    values: tuple[Scalar, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.path == SEED_PATH:
            raise ValueError(f"{SEED_PATH!r} cannot be a factor: rows are means over seeds. List seeds in Study.seeds.")
        if not self.values:
            raise ValueError(f"The factor {self.path} has no values.")
        _refuse_repeats(f"values of the factor {self.path}", self.values)
        if self.labels and len(self.labels) != len(self.values):
            raise ValueError(f"The factor {self.path} has {len(self.values)} values but {len(self.labels)} labels.")

    @property
    def name(self) -> str:
        """The last part of the path, by which rows and trials are named."""
        return self.path.rpartition(".")[2]

    def label(self, value: Scalar) -> str:
        """How ``value`` is printed."""
        if self.labels:
            return self.labels[self.values.index(value)]
        return f"{self.name} {value}"


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the study's table: a key of ``result.json`` and its heading."""

    key: str
    title: str


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A published row. Metrics are fractions under the same keys as ours; ``default`` marks the paper's own choice."""

    label: str
    metrics: Mapping[str, float]
    default: bool = False


@dataclass(frozen=True, slots=True)
class Paper:
    """A published table, and what its setting was, so that nobody takes it for ours."""

    source: str
    setting: str
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of the factors' values.

    Attributes:
        label: How its row is printed.
        values: Value by dotted path.
        paper_row: Label of the published row that it stands beside.
    """

    label: str
    values: Mapping[str, Scalar]
    paper_row: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a cell with one seed. ``digest`` is the config's before a machine says what ``auto`` means."""

    name: str
    cell: int
    label: str
    seed: int
    digest: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Study:
    """A sweep before it is resolved.

    Attributes:
        name: Name of its folder and of its MLflow experiment.
        recipe: Entry of ``toco.recipes`` that every training starts from.
        factors: What varies; the cells are all combinations, the last factor varies fastest.
        seeds: Every cell is trained once with each.
        metrics: Columns of the table; the first is the one that the study is about.
        changes: Fields of the recipe set for all trainings, by dotted path.
        paper: Published rows to print beside ours.
        paper_rows: Label of the published row by the label of a cell.
        train: ``module:function`` that a trial calls, with the signature of ``toco.train.loop.train``.
    """

    name: str
    title: str
    recipe: str
    factors: tuple[Factor, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: Paper | None = None
    paper_rows: Mapping[str, str] = field(default_factory=dict)
    train: str = TRAIN

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("A study needs at least one seed.")
        _refuse_repeats("seeds", self.seeds)
        if not self.metrics:
            raise ValueError("A study needs at least one metric for its table.")
        _refuse_repeats("paths of the factors", [factor.path for factor in self.factors])
        varied = {factor.path for factor in self.factors} | {SEED_PATH}
        for path in sorted(varied & self.changes.keys()):
            raise ValueError(
                f"{path} varies in this study, so it cannot be set to {self.changes[path]!r} for all trials."
            )
        known = {row.label for row in self.paper.rows} if self.paper else set()
        for label in sorted(set(self.paper_rows.values()) - known):
            raise ValueError(f"There is no published row {label!r} in this study; there are {sorted(known)}.")

    @property
    def num_trials(self) -> int:
        """Trainings in all."""
        return len(self.seeds) * math.prod(len(factor.values) for factor in self.factors)

    def cells(self) -> tuple[Cell, ...]:
        """All combinations of the factors' values."""
        cells = []
        for values in itertools.product(*(factor.values for factor in self.factors)):
            label = ", ".join(factor.label(value) for factor, value in zip(self.factors, values, strict=True))
            by_path = {factor.path: value for factor, value in zip(self.factors, values, strict=True)}
            cells.append(Cell(label or self.recipe, by_path, self.paper_rows.get(label)))
        return tuple(cells)

    def base(self) -> RunConfig:
        """The recipe with the changes that hold for all trainings.

        Raises:
            ValueError: There is no such recipe or field, or a value does not fit.
        """
        recipe: RunConfig = load("toco.recipes", self.recipe).recipe()
        return replace(recipe, dict(self.changes))

    def resolve(self) -> Plan:
        """Every config of every training, validated.

        Raises:
            ValueError: A config is not valid, or two trainings would be the same.
        """
        base, cells = self.base(), self.cells()
        trials: list[Trial] = []
        for number, cell in enumerate(cells):
            for seed in self.seeds:
                config = replace(base, {**cell.values, SEED_PATH: seed})
                identity = digest(config)
                varied = [f"{path.rpartition('.')[2]}_{value}" for path, value in cell.values.items()]
                name = "-".join([*varied, f"seed_{seed}", identity[:8]]).replace("/", "_")
                trials.append(Trial(name, number, cell.label, seed, identity, config))
        first: dict[str, Trial] = {}
        for trial in trials:
            same = first.setdefault(trial.digest, trial)
            if same is not trial:
                raise ValueError(
                    f"{trial.label} and {same.label} are the same training (digest {trial.digest}): "
                    "a factor of this study has no effect on results."
                )
        return Plan(self, cells, tuple(trials))


@dataclass(frozen=True, slots=True)
class Plan:
    """A study with its cells and trials."""

    study: Study
    cells: tuple[Cell, ...]
    trials: tuple[Trial, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex, 16 digits) over the digests of the trials in order: what will be trained, and nothing else."""
        text = json.dumps([self.study.train, *(trial.digest for trial in self.trials)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        """Name of the study's folder."""
        return f"{self.study.name}-{self.digest[:8]}"

    def to_json(self) -> dict[str, Any]:
        """What ``study.json`` holds. Configs are left out: each run folder has its own."""
        study = self.study
        return {
            "format_version": FORMAT_VERSION,
            "name": study.name,
            "title": study.title,
            "digest": self.digest,
            "recipe": study.recipe,
            "changes": dict(study.changes),
            "data": study.base().data.name,
            "factors": [
                {
                    "path": factor.path,
                    "name": factor.name,
                    "values": list(factor.values),
                    "labels": [factor.label(value) for value in factor.values],
                }
                for factor in study.factors
            ],
            "seeds": list(study.seeds),
            "metrics": [asdict(metric) for metric in study.metrics],
            "paper": None
            if study.paper is None
            else {
                "source": study.paper.source,
                "setting": study.paper.setting,
                "rows": [
                    {"label": row.label, "metrics": dict(row.metrics), "default": row.default}
                    for row in study.paper.rows
                ],
            },
            "cells": [
                {"label": cell.label, "values": dict(cell.values), "paper_row": cell.paper_row} for cell in self.cells
            ],
            "trials": [
                {
                    "name": trial.name,
                    "cell": trial.cell,
                    "label": trial.label,
                    "seed": trial.seed,
                    "digest": trial.digest,
                }
                for trial in self.trials
            ],
        }


def _refuse_repeats(what: str, values: Any) -> None:  # noqa: ANN401 - any sequence of printable values
    seen = set()
    for value in values:
        if (key := (type(value), value)) in seen:
            raise ValueError(f"{value!r} occurs twice in the {what}.")
        seen.add(key)
