"""Entries of the ledger, for tests that look at a part of one."""

from typing import Any

from sweeps.core.store.ledger_entry import LedgerEntry

KEY = "0" * 20


def make_entry(**fields: Any) -> LedgerEntry:
    """The entry of a finished training; ``fields`` as JSON has them, ``origin`` and ``resources``
    in part.
    """
    origin = {"study": "fake", "recipe": "shapes_nano", **fields.pop("origin", {})}
    resources = {"cpus": 1.0, "gpus": 0.0, **fields.pop("resources", {})}
    content = {
        "key": KEY,
        "training_key": KEY[::-1],
        "status": "finished",
        "step": 160,
        "attempts": 0,
        "message": None,
        "identity": {
            "config": "c" * 16,
            "code": {},
            "data": {},
            "weights": None,
            "versions": {},
            "seed": 0,
        },
        "config": {},
        "metrics": {},
        "wall_time_s": 60.0,
        "step_time_s": 0.3,
        "peak_memory_bytes": 500_000_000,
        "provenance": {},
        "run": f"runs/{fields.get('key', KEY)}",
    }
    return LedgerEntry.model_validate(
        {**content, **fields, "origin": origin, "resources": resources}
    )


def amend_entry(entry: LedgerEntry, **fields: Any) -> LedgerEntry:
    """``entry`` with other ``fields``, as of :func:`make_entry`."""
    return make_entry(**{**entry.model_dump(), **fields})
