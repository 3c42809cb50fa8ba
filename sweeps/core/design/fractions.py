"""Fractional factorial designs: a part of all combinations, with known aliases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from sweeps.core.design.designs import Block, Declared, combined, costs_nothing
from sweeps.core.design.factors import Factor, refuse_repeats

LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"
"""Letters that name the factors of a fraction. ``I`` is left out: it names the column of ones."""


@dataclass(frozen=True, slots=True)
class Fraction:
    """A regular fraction of all combinations of two-level factors.

    A fraction needs few trainings, but some effects are aliased: they cannot be told apart.

    The letters A, B, C, ... (without I) name the factors in order. A letter is +1 at the factor's
    base and -1 at its other value. The combination of all bases is therefore in every fraction: it
    is the first row, and all other rows are compared with it.

    Attributes:
        factors: Factors with two values each.
        generators: Equations such as ``D=ABC``: the level of factor D is the product of the levels
            of A, B and C. The fraction trains all combinations of the factors that no generator
            sets: 2 to the power of their number.
    """

    name: ClassVar[str] = "fraction"
    factors: tuple[Factor, ...]
    generators: tuple[str, ...]
    title: str = ""
    declared: Declared = field(default_factory=Declared)

    def __post_init__(self) -> None:
        refuse_repeats("paths of the factors", [factor.path for factor in self.factors])
        for factor in self.factors:
            if len(factor.values) != 2:
                raise ValueError(
                    f"A fraction needs two values of each factor; "
                    f"{factor.path} has {factor.values}."
                )
        if len(self.factors) > len(LETTERS):
            raise ValueError(
                f"A fraction takes at most {len(LETTERS)} factors, got {len(self.factors)}."
            )
        if not self.generators:
            raise ValueError("A fraction without generators is all combinations: take a Grid.")
        generated = self._generated()
        if self.resolution < 3:
            raise ValueError(
                f"The generators {', '.join(self.generators)} alias two main effects "
                f"({self._relation()}); use products of at least two of "
                f"{', '.join(sorted(set(self.letters) - generated.keys()))}, all different."
            )

    @property
    def letters(self) -> str:
        """Letters of the factors, in order."""
        return LETTERS[: len(self.factors)]

    @property
    def words(self) -> tuple[str, ...]:
        """Products of letters that are +1 in every row (the defining words), shortest first."""
        relation: set[frozenset[str]] = {frozenset()}
        for letter, product in self._generated().items():
            relation |= {word ^ frozenset(letter + product) for word in relation}
        return tuple(_in_order(relation - {frozenset()}))

    @property
    def resolution(self) -> int:
        """Length of the shortest word.

        At resolution 3, main effects are aliased with interactions of two factors. At resolution 5,
        neither main effects nor interactions of two factors are aliased with each other.
        """
        return len(self.words[0])

    @property
    def aliases(self) -> tuple[tuple[str, ...], ...]:
        """Groups of aliased main effects and interactions of two factors.

        An example is ``(("AB", "CD"), ...)``: the interactions AB and CD cannot be told apart.
        """
        effects = [
            frozenset(letters)
            for order in (1, 2)
            for letters in itertools.combinations(self.letters, order)
        ]
        relation = [frozenset(), *map(frozenset, self.words)]
        groups: dict[frozenset[frozenset[str]], list[frozenset[str]]] = {}
        for effect in effects:
            groups.setdefault(frozenset(effect ^ word for word in relation), []).append(effect)
        return tuple(tuple(_in_order(group)) for group in groups.values() if len(group) > 1)

    def blocks(self) -> tuple[Block, ...]:
        """Return one block in standard order: the first letter changes fastest."""
        generated = self._generated()
        free = [letter for letter in self.letters if letter not in generated]
        combinations = []
        for signs in itertools.product((1, -1), repeat=len(free)):
            level = dict(zip(free, reversed(signs), strict=True))
            for letter, product in generated.items():
                level[letter] = math.prod(level[part] for part in product)
            combinations.append(
                tuple(
                    factor.base
                    if level[letter] == 1
                    else next(v for v in factor.values if v != factor.base)
                    for letter, factor in zip(self.letters, self.factors, strict=True)
                )
            )
        return (combined(self.factors, combinations, self.title, self.declared),)

    def notes(self) -> tuple[str, ...]:
        """Return the letters, the defining relation and the aliases as sentences."""
        meaning = "; ".join(
            f"{letter} {factor.name}"
            for letter, factor in zip(self.letters, self.factors, strict=True)
        )
        mixed = (
            "Aliased effects, which this design does not distinguish: "
            f"{'; '.join(' = '.join(group) for group in self.aliases)}"
            if self.aliases
            else "No main effect or interaction of two factors is aliased with another of these"
        )
        trained = 2 ** (len(self.factors) - len(self.generators))
        return (
            f"{trained} of {2 ** len(self.factors)} combinations ({meaning}; +1 is the base).",
            f"Defining relation: {self._relation()}. Resolution {self.resolution}.",
            f"{mixed} (interactions of three and more factors are left out here).",
            *costs_nothing(self.factors),
        )

    def _relation(self) -> str:
        return " = ".join(("I", *self.words))

    def _generated(self) -> dict[str, str]:
        """Parse the generators: return the product of letters that sets a letter, by letter."""
        generated: dict[str, str] = {}
        for generator in self.generators:
            letter, _, product = generator.replace(" ", "").partition("=")
            if len(letter) != 1 or not product or {letter, *product} - set(self.letters):
                raise ValueError(
                    f"The generator {generator!r} should have the form D=ABC, in the letters "
                    f"{self.letters} of the {len(self.factors)} factors."
                )
            if letter in generated:
                raise ValueError(f"Two generators set {letter}: {', '.join(self.generators)}.")
            if len(set(product)) < len(product):
                raise ValueError(
                    f"The generator {generator!r} names a letter twice, "
                    "which is the same as leaving it out."
                )
            generated[letter] = product
        for letter, product in generated.items():
            if set(product) & generated.keys():
                raise ValueError(
                    f"{letter} is set to {product}, but another generator sets a letter of it; "
                    "use only the letters that no generator sets: "
                    f"{', '.join(sorted(set(self.letters) - generated.keys()))}."
                )
        return generated


def _in_order(products: Iterable[frozenset[str]]) -> list[str]:
    return sorted(("".join(sorted(word)) for word in products), key=lambda word: (len(word), word))
