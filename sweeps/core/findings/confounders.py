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


def find_confounders(
    row: Sequence[TrialRecord],
    base: Sequence[TrialRecord],
    base_label: str,
    factors: Sequence[str],
    cache: dict[Any, bool],
) -> tuple[str, ...]:
    """List the confounders of a row as phrases.

    Phrases are in the order of the seeds, each phrase once.

    Args:
        row: Trials of the row.
        base: Trials of the base row; empty for a row that is compared with no row.
        base_label: Label of the base row.
        factors: Paths of the settings that may differ.
        cache: Cache of the answers of :func:`is_run_only`, empty at first. All calls share it, for
            speed.
    """
    entries = [(trial.replicate, trial.seed, trial.entry) for trial in row if trial.entry]
    seeds_by_phrase: dict[str, list[int]] = {}
    others = {trial.replicate: trial.entry for trial in base if trial.entry}
    for replicate, seed, entry in entries if others else ():
        other = others.get(replicate) or next(iter(others.values()))
        for phrase in _differences(entry, other, base_label, factors, cache):
            seeds_by_phrase.setdefault(phrase, []).append(seed)
    phrases = [
        phrase if len(seeds) == len(entries) else f"{phrase} (seed {', '.join(map(str, seeds))})"
        for phrase, seeds in seeds_by_phrase.items()
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
    base: LedgerEntry,
    label: str,
    factors: Sequence[str],
    cache: dict[Any, bool],
) -> Iterator[str]:
    # Settings of the config.
    for path, (value, base_value) in diff(entry.config, base.config).items():
        if not _is_explained(path, factors) and _affects_results(entry.config, path, cache):
            yield f"{_TITLES.get(path, path)} is {value!r}, in {label} {base_value!r}"

    # Code, data and weights that the trainings have read.
    identity, base_identity = entry.identity, base.identity
    chooses_code = any(path.endswith(_CODE_CHOICE) for path in factors)
    modules = _modules(identity["code"], base_identity["code"], chooses_code)
    if modules:
        more = len(modules) - _MODULES_NAMED
        names = ", ".join(modules[:_MODULES_NAMED]) + (f" and {more} more" if more > 0 else "")
        yield f"code differs from {label}: {names}"
    if not any(path.startswith("data.") for path in factors):
        splits = [
            split
            for split, digest in identity["data"].items()
            if digest != base_identity["data"].get(split)
        ]
        if splits:
            yield f"data differs from {label}: {', '.join(splits)}"
    if identity["weights"] != base_identity["weights"] and not any(
        path.startswith("backbone.") for path in factors
    ):
        yield f"pre-trained weights differ from {label}"

    # Environments; they are only described in full if the recorded parts differ.
    if entry.resources == base.resources and all(
        entry.provenance.get(name) == base.provenance.get(name) for name in _RECORDED
    ):
        return
    facts, base_facts = _environment(entry), _environment(base)
    for name in sorted(facts.keys() | base_facts.keys()):
        fact, base_fact = (
            environment.get(name, "not known") for environment in (facts, base_facts)
        )
        if fact != base_fact:
            yield f"{name} is {fact}, in {label} {base_fact}"


def _is_explained(path: str, factors: Sequence[str]) -> bool:
    """Whether a factor explains a difference at ``path``.

    That holds if the factor is the path, lies above it, or chooses the component of the path.
    """
    return path == SEED_PATH or any(
        path == factor
        or path.startswith(f"{factor}.")
        or (factor.endswith(_CODE_CHOICE) and path.startswith(factor.removesuffix("name")))
        for factor in factors
    )


def _affects_results(config: Mapping[str, Any], path: str, cache: dict[Any, bool]) -> bool:
    """Whether the field at ``path`` may affect results: it is not marked as run-only."""
    names, node = [], config
    for part in path.split("."):
        if not isinstance(node, Mapping):
            break
        names.append(node.get("name"))
        node = node.get(part, {})
    key = (path, *names)
    if key not in cache:
        cache[key] = not is_run_only(config, path)
    return cache[key]


def _modules(
    row_code: Mapping[str, str], base_code: Mapping[str, str], others_expected: bool
) -> list[str]:
    """List the modules whose code differs.

    With ``others_expected``, modules that only one of the trials uses are ignored.
    """
    if row_code == base_code:
        return []
    names = (
        row_code.keys() & base_code.keys()
        if others_expected
        else row_code.keys() | base_code.keys()
    )
    return sorted(name for name in names if row_code.get(name) != base_code.get(name))


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
