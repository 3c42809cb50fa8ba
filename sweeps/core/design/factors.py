"""What a study varies: factors with values, and components that can be switched off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toco.config import Config, flatten
from toco.own_modules import did_you_mean

SEED_PATH = "seed"
EVALUATION = "evaluate."
"""Paths under it are settings of the evaluation. Values of such a factor share one training."""

_SAME_BUT_FOR_A_SLIP = 0.8
"""Similarity (of :mod:`difflib`) from which on one path is taken for the other, misspelt."""

Scalar = bool | int | float | str | None
Changes = Mapping[str, Scalar]
"""Values by dotted path in the ``RunConfig``."""


def lacking(study: str, path: str, base: Config) -> ValueError:
    """What to raise of a study that varies a setting which its trainings do not have.

    Args:
        study: Name of the study.
        path: The setting.
        base: What its trainings start from.
    """
    part = path.partition(".")[0]
    name = getattr(getattr(base, part, None), "name", None)
    owner, way = "its recipe", "start from another one with --recipe"
    if name is not None:
        owner, way = f"the {part} {name!r}", f"name another {part} with --set {part}.name=NAME"
    hint = did_you_mean(path, flatten(base), cutoff=_SAME_BUT_FOR_A_SLIP)
    return ValueError(
        f"{study} varies {path}, which {owner} does not have.{hint} To study it, {way}; for settings that {owner} has, "
        "take another study (python -m sweeps list)."
    )


@dataclass(frozen=True, slots=True)
class Factor:
    """One varied field of the training or, below ``EVALUATION``, of the evaluation alone.

    Attributes:
        path: Dotted path in the ``RunConfig``.
        values: What it is set to, in the order of the table's rows; a list as its JSON text, as in
            ``"[1.0, 0.5]"``.
        base: The value that the others are compared with; the first one where none is given.
            ``None`` is the base of every factor that has it among its values and does not name
            another.
        labels: How the values are printed, where that differs from the values themselves.
        title: What it is called in print; the last part of the path where none is given.
    """

    path: str
    values: tuple[Scalar, ...]
    base: Scalar = None
    labels: tuple[str, ...] = ()
    title: str = ""

    def __post_init__(self) -> None:
        if self.path == SEED_PATH:
            raise ValueError(
                f"{SEED_PATH!r} cannot be a factor: rows are means over seeds. List seeds in Study.seeds."
            )
        if not self.values:
            raise ValueError(f"The factor {self.path} has no values.")
        refuse_repeats(f"values of the factor {self.path}", self.values)
        if self.labels and len(self.labels) != len(self.values):
            raise ValueError(
                f"The factor {self.path} has {len(self.values)} values but {len(self.labels)} labels."
            )
        if self.base is None and None not in self.values:
            object.__setattr__(self, "base", self.values[0])
        if self.base not in self.values:
            raise ValueError(
                f"The base {self.base!r} of the factor {self.path} is none of its values {self.values}."
            )

    @property
    def name(self) -> str:
        """What it is called in print."""
        return self.title or self.path.rpartition(".")[2]

    def label(self, value: Scalar) -> str:
        """How ``value`` is printed."""
        return self.labels[self.values.index(value)] if self.labels else f"{self.name} {value}"


@dataclass(frozen=True, slots=True)
class Component:
    """Something that can be left out.

    Attributes:
        label: What it is called in print.
        off: The fields that leave it out, as in ``{"method.ptc.weight": 0.0}``; the recipe's own
            values put it in.
    """

    label: str
    off: Changes

    def __post_init__(self) -> None:
        if not self.off:
            raise ValueError(
                f"The component {self.label!r} does not say which fields leave it out."
            )


def refuse_repeats(what: str, values: Sequence[object]) -> None:
    """Raise ``ValueError`` if a value occurs twice; 1, 1.0 and True are three values."""
    seen = set()
    for value in values:
        if (key := (type(value), value)) in seen:
            raise ValueError(f"{value!r} occurs twice in the {what}.")
        seen.add(key)
