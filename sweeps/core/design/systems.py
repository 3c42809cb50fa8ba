"""Whole systems side by side: a recipe for each row, under one protocol.

The rows of all other designs are settings of one recipe. Here a row is a recipe with a method of
its own; everything but the method has to be the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sweeps.core.design.designs import Block, Declared
from sweeps.core.design.factors import Changes, Scalar, refuse_repeats
from toco.config import diff, flatten, replace
from toco.registry import load

if TYPE_CHECKING:
    from toco.train.run_config import RunConfig

METHOD = "method.name"
THRESHOLD = "evaluate.background_threshold"


@dataclass(frozen=True, slots=True)
class System:
    """A row: a recipe, with the values that were tuned for it.

    Attributes:
        label: Text of the first column.
        recipe: Entry of ``toco.recipes``.
        tuned: Values below ``method.``, and the threshold of the evaluation, that replace the
            recipe's.
        versus: Label of the system that this one is compared with; ``None`` for the first row.
        published: What its paper reports, with the setting, as a sentence without its subject;
            empty where nothing is quoted.
    """

    label: str
    recipe: str
    tuned: Changes = field(default_factory=dict)
    versus: str | None = None
    published: str = ""

    def config(self) -> RunConfig:
        """Return the recipe with the tuned values.

        Raises:
            ValueError: There is no such recipe or field, or a value does not fit.
        """
        config: RunConfig = load("toco.recipes", self.recipe).recipe()
        return replace(config, dict(self.tuned))


@dataclass(frozen=True, slots=True)
class Systems:
    """Systems as the rows of a table; the study's recipe is that of the first.

    Attributes:
        systems: The rows in order.
        declared: Metrics that are compared.
        alike: Settings below ``method.`` that all rows share, where their methods have them.
        title: Heading of the first column.
    """

    name: ClassVar[str] = "systems"
    systems: tuple[System, ...]
    declared: Declared = field(default_factory=Declared)
    alike: tuple[str, ...] = ()
    title: str = "method"

    def __post_init__(self) -> None:
        if not self.systems:
            raise ValueError("A table of systems needs at least one system.")
        labels = [system.label for system in self.systems]
        refuse_repeats("labels of the systems", labels)
        for number, system in enumerate(self.systems):
            if number and system.versus not in labels[:number]:
                raise ValueError(
                    f"{system.label} is compared with {system.versus!r}; expected the label of a "
                    f"row above it: {', '.join(labels[:number])}."
                )

    def blocks(self) -> tuple[Block, ...]:
        """Return one block.

        Raises:
            ValueError: A recipe differs from the first in more than its method, or in a setting of
                the method that all rows share.
        """
        labels = [system.label for system in self.systems]
        base: RunConfig = load("toco.recipes", self.systems[0].recipe).recipe()
        rows = [
            (
                system.label,
                changes_between(base, system.config(), system.recipe, self.alike),
                None if system.versus is None else labels.index(system.versus),
            )
            for system in self.systems
        ]
        return (self.declared.block(self.title, (METHOD, THRESHOLD), rows),)

    def notes(self) -> tuple[str, ...]:
        """Say what the rows share and what they do not, and quote published numbers."""
        untuned = [system.label for system in self.systems if not system.tuned]
        return (
            "Rows have methods of their own and share data, views, backbone, optimizer, steps and "
            "evaluation. The threshold of the CAM is a setting of the row; the oracle threshold is "
            "chosen with the masks that are scored.",
            *(
                (f"Not tuned, with the values of the recipe: {', '.join(untuned)}.",)
                if untuned
                else ()
            ),
            *(
                f"Published elsewhere and not comparable with these rows: {system.label} "
                f"{system.published}"
                for system in self.systems
                if system.published
            ),
        )


def changes_between(
    base: RunConfig, other: RunConfig, name: str, alike: Sequence[str] = ()
) -> Changes:
    """Return the values that make ``base`` the config ``other``, by dotted path.

    Lists are JSON text. Fields without effect on results stay those of ``base``.

    Args:
        base: A config.
        other: Another config with the same protocol.
        name: Name of ``other`` in messages.
        alike: Settings below ``method.`` that have to be the same where both methods have them.

    Raises:
        ValueError: The two differ outside of the method and the threshold of the evaluation, or in
            a setting of ``alike``.
    """
    different = diff(base, other, run_only=False)
    outside = [
        f"{path} is {value!r} instead of {base_value!r}"
        for path, (base_value, value) in different.items()
        if not path.startswith("method.") and path != THRESHOLD
    ]
    settings, base_settings = (flatten(run.method, run_only=False) for run in (other, base))
    outside += [
        f"method.{path} is {settings[path]!r} instead of {base_settings[path]!r}"
        for path in settings.keys() & base_settings.keys()
        if any(f"{path}.".startswith(f"{setting}.") for setting in alike)
        and settings[path] != base_settings[path]
    ]
    if outside:
        raise ValueError(
            f"The recipe {name} is no system of this table: {'; '.join(sorted(outside))}. Make its "
            "recipe from the first row's, with another method."
        )
    changes: dict[str, Scalar] = {}
    if THRESHOLD in different:
        changes[THRESHOLD] = other.evaluate.background_threshold
    start = flatten(base.method, run_only=False)
    if base.method.name != other.method.name:
        changes[METHOD] = other.method.name
        # A new name replaces the settings by the defaults of that method.
        start = flatten(type(other.method).model_construct(), run_only=False)
    for path, value in flatten(other.method, run_only=False).items():
        if path != "name" and (path not in start or start[path] != value):
            is_nested = isinstance(value, list | Mapping)
            changes[f"method.{path}"] = json.dumps(value) if is_nested else value
    return changes
