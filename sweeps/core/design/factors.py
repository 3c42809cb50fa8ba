"""Factors and components: the settings that a study varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toco.config import Config, flatten
from toco.own_modules import did_you_mean

SEED_PATH = "seed"
EVALUATION = "evaluate."
"""Prefix of the settings of the evaluation. All values of such a factor share one training."""

_SAME_BUT_FOR_A_SLIP = 0.8
"""Similarity (of :mod:`difflib`) at which an unknown path is taken for a misspelt known path."""

Scalar = bool | int | float | str | None
Changes = Mapping[str, Scalar]
"""Values by dotted path in ``RunConfig``."""


def lacking(study: str, path: str, base: Config) -> ValueError:
    """Build the error for a study that varies a setting which its recipe lacks.

    Args:
        study: Name of the study.
        path: Dotted path of the setting.
        base: Config that the trainings start from.
    """
    part = path.partition(".")[0]
    name = getattr(getattr(base, part, None), "name", None)
    owner, way = "its recipe", "start from another one with --recipe"
    if name is not None:
        owner, way = f"the {part} {name!r}", f"name another {part} with --set {part}.name=NAME"
    hint = did_you_mean(path, flatten(base), cutoff=_SAME_BUT_FOR_A_SLIP)
    return ValueError(
        f"{study} varies {path}, which {owner} does not have.{hint} To study it, {way}; "
        f"for settings that {owner} has, take another study (python -m sweeps list)."
    )


@dataclass(frozen=True, slots=True)
class Factor:
    """A varied setting of the training, or of the evaluation (below ``EVALUATION``).

    Attributes:
        path: Dotted path in ``RunConfig``.
        values: Values in the order of the table's rows. A list is given as its JSON text, such as
            ``"[1.0, 0.5]"``.
        base: The value that the others are compared with; by default the first value. A factor
            with ``None`` among its values has the base ``None`` unless it names another base.
        labels: Printed form of each value; empty to print the values themselves.
        title: Name in reports; by default the last part of the path.
    """

    path: str
    values: tuple[Scalar, ...]
    base: Scalar = None
    labels: tuple[str, ...] = ()
    title: str = ""

    def __post_init__(self) -> None:
        if self.path == SEED_PATH:
            raise ValueError(
                f"{SEED_PATH!r} cannot be a factor: rows are means over seeds. "
                "List seeds in Study.seeds."
            )
        if not self.values:
            raise ValueError(f"The factor {self.path} has no values.")
        refuse_repeats(f"values of the factor {self.path}", self.values)
        if self.labels and len(self.labels) != len(self.values):
            raise ValueError(
                f"The factor {self.path} has {len(self.values)} values "
                f"but {len(self.labels)} labels."
            )
        if self.base is None and None not in self.values:
            object.__setattr__(self, "base", self.values[0])
        if self.base not in self.values:
            raise ValueError(
                f"The base {self.base!r} of the factor {self.path} "
                f"is none of its values {self.values}."
            )

    @property
    def name(self) -> str:
        """Name in reports."""
        return self.title or self.path.rpartition(".")[2]

    def label(self, value: Scalar) -> str:
        """Return the printed form of ``value``."""
        return self.labels[self.values.index(value)] if self.labels else f"{self.name} {value}"


@dataclass(frozen=True, slots=True)
class Component:
    """A part of the method that can be switched off.

    Attributes:
        label: Name in reports.
        off: Values that switch the component off, such as ``{"method.ptc.weight": 0.0}``. The
            recipe's own values switch it on.
    """

    label: str
    off: Changes

    def __post_init__(self) -> None:
        if not self.off:
            raise ValueError(
                f"The component {self.label!r} does not say which fields leave it out."
            )


def refuse_repeats(what: str, values: Sequence[object]) -> None:
    """Raise ``ValueError`` if a value occurs twice; 1, 1.0 and True are three different values."""
    keys = set()
    for value in values:
        if (key := (type(value), value)) in keys:
            raise ValueError(f"{value!r} occurs twice in the {what}.")
        keys.add(key)
