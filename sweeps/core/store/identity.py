"""Everything that a trial's result depends on, as one key: the name of the result in the ledger.

Results with the same key count as the same result, in any study and on any machine. The key ignores
whatever should not change a result: devices, paths, the version of Python, comments in the code.
Those are provenance. Of data and weights, the content is part of the key and the path is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from toco.code_digest import code_digests
from toco.config import Config, digest, run_only_fields
from toco.registry import module_name
from toco.train.inputs import digest_inputs, open_data
from toco.train.run_config import RunConfig

if TYPE_CHECKING:
    from sweeps.core.design.study import Trial

FORMAT_VERSION = 2
"""Part of every key: a new version makes every key new, and no stored result is found again."""
EVALUATION_FIELD = "evaluate"
"""The field of a ``RunConfig`` that does not affect the training.

``evaluate_every`` is no such field: it decides which checkpoints and evaluations exist.
"""
EVALUATION_CODE = ("toco.evaluate", "toco.metrics")
"""Packages that do not affect the training."""
SURROUNDINGS = ("code", "data", "weights", "versions")
"""Parts of an identity that a config does not determine: they may change while it stays the same.

The function ``train`` is in no config either, but in the study's definition.
"""
_REGISTRIES = ("toco.backbones", "toco.data", "toco.methods")
"""Packages of which a config names one entry each."""
_PACKAGES = ("torch", "timm")
"""Packages whose major and minor versions are part of the key: kernels and networks.

All other packages, such as numpy, scikit-learn and Pillow, are taken as stable. A key that changed
with each of their releases would lose stored results.
"""
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)

InputDigests = dict[str, str | None]
"""Digests of what a trial reads: ``train`` and ``val`` data, and pretrained ``weights``.

A value is ``None`` where the trial reads no such file.
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that a result depends on.

    Attributes:
        key: Name of the result (hex, 20 digits).
        training_key: Name of its training. Results that differ only in their evaluation share it.
        parts: The values behind the keys, as a ledger entry holds them. Read only, because trials
            share parts.
    """

    key: str
    training_key: str
    parts: dict[str, Any]

    @property
    def surroundings(self) -> str:
        """Digest (hex, 12 digits) of the code, data and versions, without the config."""
        parts = {name: self.parts[name] for name in SURROUNDINGS}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def identify(config: RunConfig, train: str, inputs: Mapping[str, str | None]) -> Identity:
    """Compute the identity of a run with the code that is on disk.

    Code is read once per process: a running study keeps the code that it started with.

    Args:
        config: The run.
        train: ``module:function`` that trains.
        inputs: Digests of the files that the run reads, see ``InputDigests``.

    Raises:
        ValueError: A module that the config or ``train`` names has no source.
    """
    names = (config.backbone.name, config.data.name, config.method.name)
    roots = (train.partition(":")[0], *map(module_name, _REGISTRIES, names))
    code, code_digest = _code(roots, ())
    _, training_code_digest = _code(roots, EVALUATION_CODE)
    config_digest, training_config_digest = _config_digests(config)
    common = {
        "train": train,
        "data": {"train": inputs["train"], "val": inputs["val"]},
        "weights": inputs["weights"],
        "versions": _versions(),
        # The config's digest has the seed, too. Here a ledger entry has it as a number.
        "seed": config.seed,
    }
    # The ledger has the parts in this order.
    parts = {
        "config": config_digest,
        "training_config": training_config_digest,
        "train": train,
        "code": code,
        **common,
    }
    # Added only now: it is part of both keys, but not of ``parts``.
    common["format_version"] = FORMAT_VERSION
    # Validation data cannot affect training, so this "data" replaces that of ``common``.
    training = {
        "config": training_config_digest,
        "code": training_code_digest,
        "data": inputs["train"],
    }
    return Identity(
        key=_sha256({**common, "config": config_digest, "code": code_digest})[:20],
        training_key=_sha256({**common, **training})[:20],
        parts=parts,
    )


def config_inputs(config: RunConfig) -> InputDigests:
    """Digest the files that a training of ``config`` reads.

    Raises:
        ValueError: A data set is missing or wrong.
        OSError: A file cannot be read.
    """
    read = digest_inputs(config, *open_data(config))
    return {"train": read.train_data, "val": read.val_data, "weights": read.weights_sha256}


def trial_inputs(trials: Sequence[Trial]) -> list[InputDigests]:
    """Open all files that ``trials`` will read, and digest them for each trial.

    Raises:
        ValueError: A data set is missing or wrong.
        OSError: A file cannot be read.
    """
    inputs_of: dict[tuple[str, str], InputDigests] = {}
    inputs = []
    for trial in trials:
        # As text: comparing thousands of configs by value takes seconds.
        parts = (trial.config.data.model_dump_json(), trial.config.backbone.model_dump_json())
        if parts not in inputs_of:
            inputs_of[parts] = config_inputs(trial.config)
        inputs.append(inputs_of[parts])
    return inputs


def same_surroundings(parts: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Return whether two results have the same code, versions, data and weights."""
    return all(parts[name] == stored.get(name) for name in SURROUNDINGS)


def why(parts: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """List the differences between a trial and a stored one, as text; empty where there is none.

    >>> why({"code": {"a": "1"}, "seed": 3}, {"code": {"a": "2"}, "seed": 3})
    ['code changed: a']
    """
    # Defaults: an entry that another version wrote may lack a part.
    code, stored_code = parts.get("code", {}), stored.get("code", {})
    data, stored_data = parts.get("data", {}), stored.get("data", {})
    versions, stored_versions = parts.get("versions", {}), stored.get("versions", {})
    modules = {
        "changed": [
            name
            for name in sorted(code.keys() & stored_code.keys())
            if code[name] != stored_code[name]
        ],
        "added": sorted(code.keys() - stored_code.keys()),
        "no longer used": sorted(stored_code.keys() - code.keys()),
    }
    reasons = [f"code {what}: {', '.join(names)}" for what, names in modules.items() if names]
    for split, name in (("train", "training"), ("val", "validation")):
        if data.get(split) != stored_data.get(split):
            reasons.append(f"other {name} data")
    if parts.get("weights") != stored.get("weights"):
        reasons.append("other pretrained weights")
    reasons += [
        f"{package} {versions.get(package)} instead of {stored_versions.get(package)}"
        for package in sorted(versions.keys() | stored_versions.keys())
        if versions.get(package) != stored_versions.get(package)
    ]
    if parts.get("train") != stored.get("train"):
        reasons.append(f"trained by {parts.get('train')} instead of {stored.get('train')}")
    # ``training_config`` contains the seed, and ``config`` contains all of ``training_config``. So
    # after the first difference the later digests differ, too, and are no further reasons.
    if parts.get("seed") != stored.get("seed"):
        reasons.append(f"seed {parts.get('seed')} instead of {stored.get('seed')}")
    elif parts.get("training_config") != stored.get("training_config"):
        reasons.append("other config")
    elif parts.get("config") != stored.get("config"):
        reasons.append("other settings of the evaluation")
    return reasons


@cache
def _code(roots: tuple[str, ...], without: tuple[str, ...]) -> tuple[dict[str, str], str]:
    code = code_digests(roots, without, _REGISTRIES)
    return code, _sha256(code)


@cache
def _versions() -> dict[str, str]:
    """Return major and minor version of ``_PACKAGES``, without importing them."""
    return {name: ".".join(metadata.version(name).split(".")[:2]) for name in _PACKAGES}


def _config_digests(config: RunConfig) -> tuple[str, str]:
    """Digest all fields that affect results, and those that affect the training."""
    names = type(config).model_fields.keys() - run_only_fields(type(config))
    values = {name: _value(getattr(config, name)) for name in names}
    training = {name: value for name, value in values.items() if name != EVALUATION_FIELD}
    return _sha256(values)[:16], _sha256(training)[:16]


class _ByIdentity:
    """A config compared by identity. Comparing configs by value takes long."""

    __slots__ = ("value",)

    def __init__(self, value: Config) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _value(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return _part_digest(_ByIdentity(value)) if isinstance(value, Config) else value


@lru_cache(maxsize=4096)
def _part_digest(part: _ByIdentity) -> str:
    # The configs of a study's trials share most of their parts as objects.
    return digest(part.value)


def _sha256(value: object) -> str:
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()
