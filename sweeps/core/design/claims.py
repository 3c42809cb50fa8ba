"""The claims that a study tests: the family of Holm's correction.

A study with a fixed list of seeds tests each declared comparison as a claim of its own. A
sequential study tests the claims of its paper. A claim of several comparisons is shown when each of
them is (intersection-union test), so it counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sweeps.core.design.designs import Block
from sweeps.core.design.paper import Claim

if TYPE_CHECKING:
    from sweeps.core.design.seeds import Sequential
    from sweeps.core.design.study import Metric, PlannedRow

Direction = Literal[-1, 0, 1]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row against its base in one metric.

    Attributes:
        row: Number of the row; its base is the row ``versus``.
        metric: Metric key.
        direction: Claimed sign of the row's value minus its base's; 0 where the claim is that they
            differ.
    """

    row: int
    metric: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class TestedClaim:
    """A claim that the study tests.

    Attributes:
        block: Index of its block.
        name: Name in reports.
        comparisons: All of them must be shown for the claim to be shown.
        published: The claim of the paper; ``None`` for a declared comparison.
    """

    block: int
    name: str
    comparisons: tuple[Comparison, ...]
    published: Claim | None = None


@dataclass(frozen=True, slots=True)
class Tests:
    """Everything that decides a study's claims, declared before the first training.

    Attributes:
        claims: The claims: the family of Holm's correction.
        rows: All rows of the study.
        num_seeds: Number of seeds of each configuration, at most.
        sequential: Looks and their rules; ``None`` for a fixed list of seeds, which is one look.
        significance: Family-wise error rate.
        margin: Differences below this value count as none, as a fraction; ``None`` if the study
            does not ask for "no difference".
    """

    claims: tuple[TestedClaim, ...]
    rows: tuple[PlannedRow, ...]
    num_seeds: tuple[int, ...]
    sequential: Sequential | None
    significance: float
    margin: float | None

    @property
    def places(self) -> tuple[tuple[int, str], ...]:
        """Row number and metric key of every comparison that a claim needs, each once."""
        return tuple(
            dict.fromkeys(
                (comparison.row, comparison.metric)
                for claim in self.claims
                for comparison in claim.comparisons
            )
        )

    def cells_of(self, comparisons: Iterable[Comparison]) -> set[int]:
        """Return the configurations that ``comparisons`` need: of their rows and bases."""
        cells = set()
        for comparison in comparisons:
            row = self.rows[comparison.row]
            cells.add(row.cell)
            if row.versus is not None:
                cells.add(self.rows[row.versus].cell)
        return cells


def tested_claims(
    rows: Sequence[PlannedRow],
    blocks: Sequence[Block],
    metrics: Sequence[Metric],
    *,
    published: bool,
) -> tuple[TestedClaim, ...]:
    """List the claims that a study tests, block by block.

    Args:
        rows: Rows of all blocks.
        blocks: The blocks.
        metrics: Columns of the table.
        published: Whether a block tests the claims of its paper for which it has all rows. A block
            without any tests that each row differs from its base, in each metric of the block.
    """
    claims: list[TestedClaim] = []
    for index, block in enumerate(blocks):
        of_paper = []
        for claim in block.paper.claims if block.paper and published else ():
            comparisons = comparisons_of(claim, index, rows, blocks, metrics)
            if not any(isinstance(item, str) for item in comparisons):
                pairs = tuple(item for item in comparisons if isinstance(item, Comparison))
                of_paper.append(TestedClaim(index, claim.name, pairs, claim))
        claims += of_paper or _differences(index, rows, block, metrics)
    return tuple(claims)


def comparisons_of(
    claim: Claim,
    block: int,
    rows: Iterable[PlannedRow],
    blocks: Sequence[Block],
    metrics: Iterable[Metric],
) -> list[Comparison | str]:
    """Return the study's comparison for each row that ``claim`` calls worse.

    It is a string, the reason, where the study has none.
    """
    by_label = {row.paper_row: row for row in rows if row.block == block and row.paper_row}
    sign: Direction = next(
        (1 if metric.higher_is_better else -1 for metric in metrics if metric.key == claim.metric),
        1,
    )
    comparisons: list[Comparison | str] = []
    for label in claim.than:
        better, worse = by_label.get(claim.better), by_label.get(label)
        if better is None or worse is None:
            absent = claim.better if better is None else label
            comparisons.append(f"no row corresponds to the paper's {absent}")
        elif claim.metric not in blocks[block].metrics:
            comparisons.append(f"{claim.metric} is not compared in this block")
        elif worse.versus == better.number:
            comparisons.append(Comparison(worse.number, claim.metric, -1 if sign == 1 else 1))
        elif better.versus == worse.number:
            comparisons.append(Comparison(better.number, claim.metric, sign))
        else:
            comparisons.append(f"{better.label} and {worse.label} are not compared in this study")
    return comparisons


def _differences(
    index: int, rows: Sequence[PlannedRow], block: Block, metrics: Sequence[Metric]
) -> list[TestedClaim]:
    titles = {metric.key: metric.title for metric in metrics}
    return [
        TestedClaim(
            index,
            f"{row.label} differs from {rows[row.versus].label} in {titles.get(key, key)}",
            (Comparison(row.number, key, 0),),
        )
        for row in rows
        if row.block == index and row.role == "row" and row.versus is not None
        for key in block.metrics
    ]
