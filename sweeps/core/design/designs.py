"""Designs of studies: they turn factors or components into the rows of a table.

A row knows the row that it is compared with. Grid, one factor at a time, ladder, and leave one out
are defined in this module; fractions are defined in ``fractions.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from pydantic import Field

from sweeps.core.design.factors import (
    EVALUATION,
    Changes,
    Component,
    Factor,
    Scalar,
    refuse_repeats,
)
from sweeps.core.design.paper import Paper


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a block.

    Attributes:
        label: Text of the first column.
        changes: Values that the design sets in the study's recipe.
        versus: Index, in the block, of the row that this row is compared with; ``None`` for a base
            row.
        paper_row: Label of the published row that this row corresponds to.
    """

    label: str
    changes: Changes
    versus: int | None
    paper_row: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Rows under one heading, such as Table 5 (a).

    Attributes:
        title: Heading of the first column: the factor that varies.
        rows: Rows in order. Empty in a block that was read from a file, because a file lists the
            rows of all blocks in one place.
        factors: Dotted paths of the settings that vary in the block.
        metrics: Metric keys whose comparisons the block declares. Before a study is resolved, empty
            means the study's first metric.
        paper: The published table that the block corresponds to.
    """

    title: str
    rows: Annotated[tuple[Row, ...], Field(exclude=True, default=())]
    factors: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    paper: Paper | None = None

    def __post_init__(self) -> None:
        refuse_repeats(f"rows of {self.title!r}", [row.label for row in self.rows])
        published_labels = [row.label for row in self.paper.rows] if self.paper else []
        for number, row in enumerate(self.rows):
            if row.versus is not None and (
                row.versus == number or not 0 <= row.versus < len(self.rows)
            ):
                raise ValueError(
                    f"{self.title}: {row.label} is compared with row {row.versus}, "
                    "which is not another row of the block."
                )
            if row.paper_row is not None and row.paper_row not in published_labels:
                raise ValueError(
                    f"{self.title}: there is no published row {row.paper_row!r}; "
                    f"there are {published_labels}."
                )


@runtime_checkable
class Design(Protocol):
    """Interface of a study's ``design``."""

    @property
    def name(self) -> str:
        """Name in reports, such as grid, ladder or fraction."""

    def blocks(self) -> tuple[Block, ...]:
        """Return the table, block by block.

        The study's base is the first row of the first block whose ``versus`` is ``None``.
        """

    def notes(self) -> tuple[str, ...]:
        """Return warnings about the design as sentences, such as the aliases of a fraction."""


@dataclass(frozen=True, slots=True)
class Declared:
    """Declarations of a block: they are fixed before any trial runs.

    Attributes:
        metrics: Metric keys whose comparisons are declared; empty for the study's first metric.
        paper: The published table that the block corresponds to.
        published_labels: Label of the published row, by label of the row. Without this mapping, a
            row corresponds to the published row of the same label.
    """

    metrics: tuple[str, ...] = ()
    paper: Paper | None = None
    published_labels: Mapping[str, str] | None = None

    def block(
        self, title: str, factors: Iterable[str], rows: Iterable[tuple[str, Changes, int | None]]
    ) -> Block:
        """Build a block from rows of (label, changes, versus).

        Raises:
            ValueError: ``published_labels`` names a row that does not exist, or two rows are equal.
        """
        published = [row.label for row in self.paper.rows] if self.paper else []
        published_labels = (
            dict(zip(published, published, strict=True))
            if self.published_labels is None
            else self.published_labels
        )
        block_rows = tuple(
            Row(label, changes, versus, published_labels.get(label))
            for label, changes, versus in rows
        )
        labels = [row.label for row in block_rows]
        if self.published_labels is not None and (
            unknown := self.published_labels.keys() - set(labels)
        ):
            raise ValueError(
                f"{title}: published rows are given for {sorted(unknown)}, "
                f"but the rows are {labels}."
            )
        return Block(title, block_rows, tuple(factors), self.metrics, self.paper)


@dataclass(frozen=True, slots=True)
class Grid:
    """Full factorial design: every combination of the factors' values.

    The last factor changes fastest. Every combination is compared with the combination of the
    bases. A grid without factors has one row and shows the effect of the seed alone.
    """

    name: ClassVar[str] = "grid"
    factors: tuple[Factor, ...] = ()
    title: str = ""
    declared: Declared = Declared()

    def __post_init__(self) -> None:
        refuse_repeats("paths of the factors", [factor.path for factor in self.factors])

    def blocks(self) -> tuple[Block, ...]:
        """Return one block with all combinations."""
        combinations = list(itertools.product(*(factor.values for factor in self.factors)))
        return (combined(self.factors, combinations, self.title, self.declared),)

    def notes(self) -> tuple[str, ...]:
        """Name the factors that need no training."""
        return costs_nothing(self.factors)


@dataclass(frozen=True, slots=True)
class OneFactor:
    """One factor at a time: each block varies one factor around a shared base.

    Attributes:
        factors: The factors. While one varies, all others keep their base values.
        declared: Declarations of a block, by the path of its factor.
    """

    name: ClassVar[str] = "one factor at a time"
    factors: tuple[Factor, ...]
    declared: Mapping[str, Declared] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = [factor.path for factor in self.factors]
        if not paths:
            raise ValueError("One factor at a time needs at least one factor.")
        refuse_repeats("paths of the factors", paths)
        if unknown := self.declared.keys() - set(paths):
            raise ValueError(
                f"Comparisons are declared for {sorted(unknown)}, but the factors are {paths}."
            )

    def blocks(self) -> tuple[Block, ...]:
        """Return one block for each factor; each block contains the base row."""
        base = {factor.path: factor.base for factor in self.factors}
        blocks = []
        for factor in self.factors:
            of_base = factor.values.index(factor.base)
            rows = [
                (
                    factor.label(value),
                    {**base, factor.path: value},
                    None if number == of_base else of_base,
                )
                for number, value in enumerate(factor.values)
            ]
            blocks.append(
                self.declared.get(factor.path, Declared()).block(factor.name, [factor.path], rows)
            )
        return tuple(blocks)

    def notes(self) -> tuple[str, ...]:
        """Name the limits of the design and the factors that need no training."""
        blind = (
            "Each block varies one field around the base: the study does not show whether the "
            "effect of a field depends on another field."
        )
        return (*((blind,) if len(self.factors) > 1 else ()), *costs_nothing(self.factors))


@dataclass(frozen=True, slots=True)
class Ladder:
    """Components added one at a time, each row compared with the row above it.

    Attributes:
        start: Label of the first row, which has none of the components.
        components: Components in the order in which they are added.
    """

    name: ClassVar[str] = "ladder"
    start: str
    components: tuple[Component, ...]
    title: str = "components"
    declared: Declared = Declared()

    def __post_init__(self) -> None:
        _check_components(self.components)

    def blocks(self) -> tuple[Block, ...]:
        """Return one block, from none of the components to all of them."""
        labels = (self.start, *(f"+ {component.label}" for component in self.components))
        rows = [
            (label, _values_off(self.components[number:]), number - 1 if number else None)
            for number, label in enumerate(labels)
        ]
        return (self.declared.block(self.title, _values_off(self.components), rows),)

    def notes(self) -> tuple[str, ...]:
        """Warn that the differences depend on the order of the components."""
        return (
            "Each row adds one component to the row above it and is compared with that row: "
            "the effect of a component depends on the order.",
        )


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """Leave one out: each row lacks one component and is compared with all components."""

    name: ClassVar[str] = "leave one out"
    components: tuple[Component, ...]
    everything: str = "all"
    title: str = "components"
    declared: Declared = Declared()

    def __post_init__(self) -> None:
        _check_components(self.components)

    def blocks(self) -> tuple[Block, ...]:
        """Return one block; its first row has all components."""
        rows: list[tuple[str, Changes, int | None]] = [(self.everything, {}, None)]
        rows += [
            (f"without {component.label}", dict(component.off), 0) for component in self.components
        ]
        return (self.declared.block(self.title, _values_off(self.components), rows),)

    def notes(self) -> tuple[str, ...]:
        """Warn that components can replace each other."""
        return (
            "Each row lacks one component and is compared with all: "
            "if two components can replace each other, neither seems to matter.",
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """Rows with changes of their own, all compared with the first.

    It is for values that only make sense together, such as a kind and the settings of that kind.

    Attributes:
        rows: Label and changes of each row.
    """

    name: ClassVar[str] = "list"
    rows: tuple[tuple[str, Changes], ...]
    title: str
    declared: Declared = Declared()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError(f"The list {self.title} has no rows.")

    def blocks(self) -> tuple[Block, ...]:
        """Return one block; its factors are all settings that a row changes."""
        paths = dict.fromkeys(path for _, changes in self.rows for path in changes)
        rows = [
            (label, changes, 0 if number else None)
            for number, (label, changes) in enumerate(self.rows)
        ]
        return (self.declared.block(self.title, paths, rows),)

    def notes(self) -> tuple[str, ...]:
        """Return no notes."""
        return ()


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Several designs in one table around one shared base.

    The base of a ladder is its last row, which has all components.
    """

    designs: tuple[Design, ...]

    def __post_init__(self) -> None:
        if not self.designs:
            raise ValueError("SideBySide needs at least one design.")
        self._base()

    @property
    def name(self) -> str:
        """Names of the designs, joined by "and"."""
        return " and ".join(dict.fromkeys(design.name for design in self.designs))

    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks of all designs in order, each row with the shared base."""
        base = self._base()
        return tuple(
            replace(
                block,
                rows=tuple(replace(row, changes={**base, **row.changes}) for row in block.rows),
            )
            for design in self.designs
            for block in design.blocks()
        )

    def notes(self) -> tuple[str, ...]:
        """Return the notes of all designs, each note once."""
        return tuple(dict.fromkeys(note for design in self.designs for note in design.notes()))

    def _base(self) -> Changes:
        base: dict[str, Scalar] = {}
        for design in self.designs:
            for path, value in _base_of(design).items():
                if base.setdefault(path, value) != value:
                    raise ValueError(
                        "Designs side by side share one base, but their bases of "
                        f"{path} are {base[path]!r} and {value!r}."
                    )
        return base


def _base_of(design: Design) -> Changes:
    if isinstance(design, SideBySide):
        return design._base()
    (block, *_) = design.blocks()
    if isinstance(design, Ladder):
        return block.rows[-1].changes
    return next(row.changes for row in block.rows if row.versus is None)


def combined(
    factors: Sequence[Factor],
    combinations: Sequence[tuple[Scalar, ...]],
    title: str,
    declared: Declared,
) -> Block:
    """Build one block of combinations of the factors' values.

    Every combination is compared with the combination of the bases, which must be among them.
    """
    base = combinations.index(tuple(factor.base for factor in factors))
    rows = [
        (
            ", ".join(factor.label(value) for factor, value in zip(factors, values, strict=True))
            or "base",
            {factor.path: value for factor, value in zip(factors, values, strict=True)},
            None if number == base else base,
        )
        for number, values in enumerate(combinations)
    ]
    named = title or " x ".join(factor.name for factor in factors) or "seeds"
    return declared.block(named, [factor.path for factor in factors], rows)


def costs_nothing(factors: Sequence[Factor]) -> tuple[str, ...]:
    """Name the factors whose rows need no training, as at most one sentence."""
    names = [factor.name for factor in factors if factor.path.startswith(EVALUATION)]
    if not names:
        return ()
    return (
        f"Rows that differ in nothing but {' or '.join(names)} are evaluations of the same "
        "trainings: their differences contain no noise of training.",
    )


def _check_components(components: Sequence[Component]) -> None:
    if not components:
        raise ValueError("A ladder, or leave one out, needs at least one component.")
    refuse_repeats("components", [component.label for component in components])
    refuse_repeats(
        "fields that leave components out", [path for part in components for path in part.off]
    )


def _values_off(components: Sequence[Component]) -> dict[str, Scalar]:
    return {path: value for component in components for path, value in component.off.items()}
