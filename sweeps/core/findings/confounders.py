"""Find confounders: unintended differences between a row and its base row.

A difference between two rows shows the effect of the varied factor only if nothing else differs.
The report marks rows with a confounder with a dagger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweeps.core.design.factors import SEED_PATH
from sweeps.core.store.ledger_entry import LedgerEntry
from sweeps.core.store.study_record import TrialRecord
from toco.config import diff, flatten
from toco.train.run_config import RunConfig

CHOSEN = "chosen by a search, after looking at other trials"
_MODULES_NAMED = 3
"""Number of changed modules that a footnote names, so that it fits into a line or two."""
_CODE_CHOICE = ".name"
"""End of the paths that choose the module of a component, such as ``method.name``."""
_RECORDED = ("versions", "device", "num_threads", "platform")
_TITLES = {"batch_size": "effective batch size"}


def daggers(
    row: Sequence[TrialRecord],
    base: Sequence[TrialRecord],
    base_label: str,
    factors: Sequence[str],
    known: dict[Any, bool],
) -> tuple[str, ...]:
    """List the confounders of a row as phrases.

    Phrases are in the order of the seeds, each phrase once.

    Args:
        row: Trials of the row.
        base: Trials of the base row; empty for a row that is compared with no row.
        base_label: Label of the base row.
        factors: Paths of the settings that may differ.
        known: Cache of the answers of :func:`is_run_only`, empty at first. All calls share it, for
            speed.
    """
    entries = [(trial.replicate, trial.seed, trial.entry) for trial in row if trial.entry]
    found: dict[str, list[int]] = {}
    others = {trial.replicate: trial.entry for trial in base if trial.entry}
    for replicate, seed, entry in entries if others else ():
        other = others.get(replicate) or next(iter(others.values()))
        for phrase in _differences(entry, other, base_label, factors, known):
            found.setdefault(phrase, []).append(seed)
    phrases = [
        phrase if len(seeds) == len(entries) else f"{phrase} (seed {', '.join(map(str, seeds))})"
        for phrase, seeds in found.items()
    ]
    if any(entry.origin.search for _, _, entry in entries):
        phrases.insert(0, CHOSEN)
    return tuple(phrases)


def is_run_only(config: Mapping[str, Any], path: str) -> bool:
    """Whether a field of a ``RunConfig`` is marked as having no effect on results.

    Args:
        config: A ``RunConfig`` as JSON.
        path: Dotted path of the field.
    """
    try:
        run = RunConfig.model_validate(config)
    except ValueError:
        # Another version of the program wrote the config; its fields may have other effects.
        return False
    below = {leaf for leaf in flatten(run) if f"{leaf}.".startswith(f"{path}.")}
    return bool(below) and below.isdisjoint(flatten(run, run_only=False))


def _differences(
    entry: LedgerEntry,
    other: LedgerEntry,
    label: str,
    factors: Sequence[str],
    known: dict[Any, bool],
) -> Iterator[str]:
    for path, (ours, theirs) in diff(entry.config, other.config).items():
        if not _named(path, factors) and _affects_results(entry.config, path, known):
            yield f"{_TITLES.get(path, path)} is {ours!r}, in {label} {theirs!r}"
    ours, theirs = entry.identity, other.identity
    modules = _modules(
        ours["code"], theirs["code"], any(path.endswith(_CODE_CHOICE) for path in factors)
    )
    if modules:
        more = len(modules) - _MODULES_NAMED
        named = ", ".join(modules[:_MODULES_NAMED]) + (f" and {more} more" if more > 0 else "")
        yield f"code is another than in {label}: {named}"
    if not any(path.startswith("data.") for path in factors):
        splits = [
            split for split in ours["data"] if ours["data"][split] != theirs["data"].get(split)
        ]
        if splits:
            yield f"data is another than in {label}: {', '.join(splits)}"
    if ours["weights"] != theirs["weights"] and not any(
        path.startswith("backbone.") for path in factors
    ):
        yield f"pre-trained weights are others than in {label}"
    mine, its = entry.provenance, other.provenance
    if entry.resources == other.resources and all(
        mine.get(name) == its.get(name) for name in _RECORDED
    ):
        return
    mine, its = _environment(entry), _environment(other)
    for name in sorted(mine.keys() | its.keys()):
        if mine.get(name) != its.get(name):
            yield (
                f"{name} is {mine.get(name, 'not known')}, in {label} {its.get(name, 'not known')}"
            )


def _named(path: str, factors: Sequence[str]) -> bool:
    """Whether a factor explains a difference at ``path``.

    That holds if the factor is the path, lies above it, or chooses the component of the path.
    """
    return path == SEED_PATH or any(
        path == factor
        or path.startswith(f"{factor}.")
        or (factor.endswith(_CODE_CHOICE) and path.startswith(factor.removesuffix("name")))
        for factor in factors
    )


def _affects_results(config: Mapping[str, Any], path: str, known: dict[Any, bool]) -> bool:
    """Whether the field at ``path`` may affect results: it is not marked as run-only."""
    names, node = [], config
    for part in path.split("."):
        if not isinstance(node, Mapping):
            break
        names.append(node.get("name"))
        node = node.get(part, {})
    key = (path, *names)
    if key not in known:
        known[key] = not is_run_only(config, path)
    return known[key]


def _modules(
    ours: Mapping[str, str], theirs: Mapping[str, str], others_expected: bool
) -> list[str]:
    """List the modules whose code differs.

    With ``others_expected``, modules that only one of the trials uses are ignored.
    """
    if ours == theirs:
        return []
    names = ours.keys() & theirs.keys() if others_expected else ours.keys() | theirs.keys()
    return sorted(name for name in names if ours.get(name) != theirs.get(name))


def _environment(entry: LedgerEntry) -> dict[str, str]:
    """List versions, device, platform and world size of a trial, by name.

    They can change the last digits of a number, and therefore the course of a training.
    """
    provenance = entry.provenance
    versions = {
        name: str(version)
        for name, version in provenance.get("versions", {}).items()
        if name != "toco"
    }
    if "python" in versions:
        versions["python"] = ".".join(versions["python"].split(".")[:2])
    facts = {
        name: str(provenance[name]) for name in ("device", "num_threads") if name in provenance
    }
    if "platform" in provenance:
        # The kernel's release does not affect numbers; the C library's mathematical functions do.
        system, _, library = str(provenance["platform"]).partition("-with-")
        parts = system.split("-")
        facts["platform"] = " ".join(filter(None, (parts[0], parts[-1], library)))
    facts["world size"] = str(entry.resources.world_size)
    return {
        **versions,
        **{name.replace("num_threads", "number of threads"): fact for name, fact in facts.items()},
    }
