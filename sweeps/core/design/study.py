"""Studies as values: a recipe, a design, seeds and metrics.

A study can be counted, checked and written down before anything runs. :meth:`Study.resolve` turns
it into a :class:`Plan`, which holds the validated config of every trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sweeps.core.design.claims import Tests, tested_claims
from sweeps.core.design.designs import Block, Design
from sweeps.core.design.factors import SEED_PATH, lacking, refuse_repeats
from sweeps.core.design.seeds import Sequential
from toco.config import MAX_SEED, UnknownFieldError, digest, flatten, replace
from toco.registry import load

if TYPE_CHECKING:
    from toco.train.run_config import RunConfig

TRAIN = "toco.train.loop:train"
"""The training function of a study that names none; it alone is known to share prefixes."""
BASE_AGAIN = "base again (A/A)"


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the study's table.

    Attributes:
        key: A metric of the evaluation (``val/...``), or a cost
            (``sweeps.core.store.ledger_entry.LedgerEntry.measured``).
        title: Heading of the column.
        higher_is_better: Whether larger values are better.
        is_percent: Whether it is a score in [0, 1]; ``None`` if its key says so.
    """

    key: str
    title: str
    higher_is_better: bool = True
    is_percent: bool | None = None

    @property
    def percent(self) -> bool:
        """Whether the metric is a score in [0, 1], which is printed in percent."""
        if self.is_percent is not None:
            return self.is_percent
        others = ("similarity", "loss", "time", "memory", "parameters")
        return not any(part in self.key for part in others)


@dataclass(frozen=True, slots=True)
class Cell:
    """A configuration with all its seeds.

    Rows of several blocks may show the same configuration.

    Attributes:
        label: Name outside of the table.
        changes: Values that the design sets in the study's recipe.
        seeds: Seeds, one trial each. The n-th trial of every configuration is paired with the n-th
            trial of its base.
        keys: Ledger keys of the trials, one for each seed; empty in a plan, which does not know
            them.
    """

    label: str
    changes: Mapping[str, Any]
    seeds: tuple[int, ...]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row of the table.

    Attributes:
        number: Index of the row over all blocks.
        block: Index of the block of the row.
        label: Text of the first column.
        cell: Index of the configuration of the row.
        versus: Number of the row that this row is compared with; ``None`` for a base row.
        role: ``a/a`` marks the A/A row: the base again with other seeds.
        paper_row: Label of the published row that this row corresponds to.
    """

    # A file lists the rows in order and does not number them.
    number: Annotated[int, Field(exclude=True, default=0)]
    block: int
    label: str
    cell: int
    versus: int | None
    role: Literal["base", "row", "a/a"]
    paper_row: str | None


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration with one seed.

    Attributes:
        cell: Index of the configuration.
        replicate: Index of the seed among the seeds of the configuration.
        label: Label of the configuration.
        digest: Digest of the config before a machine has replaced its ``auto`` values.
    """

    cell: int
    replicate: int
    label: str
    seed: int
    digest: str
    config: RunConfig

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Study:
    """A study before it is resolved.

    Attributes:
        name: Name of the study's module, of its folder and of its MLflow experiment.
        title: Title in reports.
        recipe: Entry of ``toco.recipes`` that every training starts from.
        design: Design of the study, see ``sweeps.core.design.designs``.
        seeds: A list: every configuration is trained once with each seed. Or :class:`Sequential`:
            seeds are added where claims are open.
        metrics: Columns of the table; the study is about the first one.
        changes: Settings for all trainings that differ from the recipe, by dotted path.
        purpose: ``effect`` asks for the size of differences; such a study is refused if its seeds
            cannot show them. ``direction`` asks for the sign of differences and may run with fewer
            seeds: its rows can read "underpowered".
        repeat_base: Whether to train the base again with other seeds (A/A), which measures the
            difference that seeds alone cause.
        smallest_effect: Difference worth detecting, as a fraction (0.005 is half a point of mIoU).
        largest_blind_effect: Largest effect, in standard deviations of a paired difference, that a
            study with the purpose ``effect`` may miss. It applies while the noise between seeds is
            unknown.
        significance: Family-wise error rate of the claims, see ``sweeps.core.design.claims``.
        margin: Difference, as a fraction, below which a claim can end as "no difference"; ``None``
            if the study does not ask for that.
        power: Probability of detecting an effect of ``smallest_effect``.
        train: ``module:function`` that a trial calls, with the signature of
            ``toco.train.loop.train``.
    """

    name: str
    title: str
    recipe: str
    design: Design
    seeds: tuple[int, ...] | Sequential
    metrics: tuple[Metric, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    purpose: Literal["effect", "direction"] = "effect"
    repeat_base: bool = True
    smallest_effect: float = 0.005
    largest_blind_effect: float = 5.0
    significance: float = 0.05
    margin: float | None = None
    power: float = 0.8
    train: str = TRAIN

    def __post_init__(self) -> None:
        if not self.all_seeds:
            raise ValueError("A study needs at least one seed.")
        refuse_repeats("seeds", self.all_seeds)
        highest = (
            max(*self.seeds_again, *self.all_seeds) if self.repeat_base else max(self.all_seeds)
        )
        if min(self.all_seeds) < 0 or highest >= MAX_SEED:
            with_base_again = f", those of the A/A row up to {highest}" if self.repeat_base else ""
            raise ValueError(
                f"Seeds are from 0 to {MAX_SEED - 1}, got {list(self.all_seeds)}{with_base_again}."
            )
        if self.margin is not None and not self.margin > 0:
            raise ValueError(f"The margin of no difference has to be positive, got {self.margin}.")
        if not self.metrics:
            raise ValueError("A study needs at least one metric for its table.")
        if self.smallest_effect <= 0:
            raise ValueError(
                f"The smallest effect worth detecting has to be positive, "
                f"got {self.smallest_effect}."
            )
        refuse_repeats("metrics", [metric.key for metric in self.metrics])
        blocks = self.design.blocks()
        refuse_repeats("titles of the blocks", [block.title for block in blocks])
        varied = {path for block in blocks for row in block.rows for path in row.changes} | {
            SEED_PATH
        }
        for path in sorted(varied & self.changes.keys()):
            raise ValueError(
                f"{path} varies in this study, "
                f"so it cannot be set to {self.changes[path]!r} for all trials."
            )
        keys = {metric.key for metric in self.metrics}
        for block in blocks:
            for key in (
                *block.metrics,
                *(claim.metric for claim in (block.paper.claims if block.paper else ())),
            ):
                if key not in keys:
                    raise ValueError(
                        f"{block.title}: {key} is compared but is not a column of the table "
                        f"{sorted(keys)}."
                    )

    @property
    def sequential(self) -> Sequential | None:
        """The looks of the study; ``None`` for a list of seeds."""
        return self.seeds if isinstance(self.seeds, Sequential) else None

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """All seeds that a configuration may get, in their order."""
        return self.seeds.seeds if isinstance(self.seeds, Sequential) else self.seeds

    @property
    def seeds_again(self) -> tuple[int, ...]:
        """Seeds of the A/A row: above those of the other rows, and as far apart.

        A sequential study gives it the number of its first look.
        """
        shift = max(self.all_seeds) + 1 - min(self.all_seeds)
        number = self.seeds.looks[0] if isinstance(self.seeds, Sequential) else None
        return tuple(seed + shift for seed in self.all_seeds[:number])

    @property
    def seeds_text(self) -> str:
        """The seeds as text, such as ``seeds [0, 1, 2]`` or ``looks after 3, 5, 7, 10 seeds``."""
        if isinstance(self.seeds, Sequential):
            return f"looks after {', '.join(map(str, self.seeds.looks))} seeds"
        return f"seeds {list(self.seeds)}"

    def base(self) -> RunConfig:
        """Return the recipe with the changes that hold for all trainings.

        Raises:
            ValueError: There is no such recipe or field, or a value does not fit.
        """
        recipe: RunConfig = load("toco.recipes", self.recipe).recipe()
        return replace(recipe, dict(self.changes))

    def value(self, path: str) -> Any:  # noqa: ANN401 - any JSON value
        """Return the value of a setting in :meth:`base`.

        Args:
            path: Dotted path of the setting.

        Raises:
            ValueError: The recipe has no such setting.
        """
        values = flatten(self.base())
        if path not in values:
            raise lacking(self.name, path, self.base())
        return values[path]

    def resolve(self) -> Plan:
        """Every config of every trial, validated.

        Raises:
            ValueError: A config is not valid, or two rows of a block would be the same.
        """
        base = self.base()
        blocks = tuple(
            with_fields(block, metrics=block.metrics or (self.metrics[0].key,))
            for block in self.design.blocks()
        )
        cells: list[Cell] = []
        configs: list[RunConfig] = []
        number_of: dict[str, int] = {}
        rows: list[PlannedRow] = []

        # The rows of all blocks. Rows with equal configs share one cell.
        for index, block in enumerate(blocks):
            first = len(rows)
            label_of: dict[str, str] = {}
            for row in block.rows:
                try:
                    config = replace(base, {**row.changes, SEED_PATH: self.all_seeds[0]})
                except UnknownFieldError as error:
                    raise lacking(self.name, error.path, base) from error
                except ValueError as error:
                    raise ValueError(f"{block.title}: {row.label}: {error}") from error
                identity = digest(config)
                if (first_label := label_of.setdefault(identity, row.label)) != row.label:
                    raise ValueError(
                        f"{row.label} and {first_label} are the same training (digest {identity}): "
                        f"what varies in {block.title!r} has no effect on results."
                    )
                if identity not in number_of:
                    number_of[identity] = len(cells)
                    label = row.label if len(blocks) == 1 else f"{block.title}: {row.label}"
                    cells.append(Cell(label, dict(row.changes), self.all_seeds))
                    configs.append(config)
                versus = None if row.versus is None else first + row.versus
                role: Literal["base", "row"] = "base" if versus is None else "row"
                rows.append(
                    PlannedRow(
                        len(rows),
                        index,
                        row.label,
                        number_of[identity],
                        versus,
                        role,
                        row.paper_row,
                    )
                )

        # The base once more with other seeds.
        if self.repeat_base:
            base_row = next(number for number, row in enumerate(rows) if row.role == "base")
            cell = cells[rows[base_row].cell]
            rows.append(
                PlannedRow(
                    len(rows), rows[base_row].block, BASE_AGAIN, len(cells), base_row, "a/a", None
                )
            )
            cells.append(Cell(BASE_AGAIN, cell.changes, self.seeds_again))
            configs.append(configs[rows[base_row].cell])

        # One trial for each seed of each cell. The first seed's digest is known already.
        first_digests = dict(zip(number_of.values(), number_of, strict=True))
        trials = []
        for number, (cell, config) in enumerate(zip(cells, configs, strict=True)):
            for replicate, seed in enumerate(cell.seeds):
                seeded = (
                    config if seed == config.seed else config.model_copy(update={SEED_PATH: seed})
                )
                identity = first_digests[number] if seeded is config else digest(seeded)
                trials.append(Trial(number, replicate, cell.label, seed, identity, seeded))
        return Plan(self, blocks, tuple(cells), tuple(rows), tuple(trials))


@dataclass(frozen=True, slots=True)
class Plan:
    """A study with its table and its trials."""

    study: Study
    blocks: tuple[Block, ...]
    cells: tuple[Cell, ...]
    rows: tuple[PlannedRow, ...]
    trials: tuple[Trial, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex, 16 digits) over the digests of all trials in order.

        It identifies the trainings of the study. In a sequential study it also depends on
        everything that decides the claims, because that decides which trainings are needed.
        """
        parts: list[Any] = [self.study.train, *(trial.digest for trial in self.trials)]
        if self.study.sequential is not None:
            parts.append(asdict(self.tests))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        """Name of the study's folder."""
        return f"{self.study.name}-{self.digest[:8]}"

    @property
    def tests(self) -> Tests:
        """The claims of the study and the rules that decide them."""
        study = self.study
        return declared_tests(
            self.rows,
            self.blocks,
            self.cells,
            study.metrics,
            study.sequential,
            study.significance,
            study.margin,
        )


def declared_tests(
    rows: tuple[PlannedRow, ...],
    blocks: tuple[Block, ...],
    cells: tuple[Cell, ...],
    metrics: tuple[Metric, ...],
    sequential: Sequential | None,
    significance: float,
    margin: float | None,
) -> Tests:
    """Return the claims of a study and the rules that decide them."""
    return Tests(
        tested_claims(rows, blocks, metrics, published=sequential is not None),
        rows,
        tuple(len(cell.seeds) for cell in cells),
        sequential,
        significance,
        margin,
    )
