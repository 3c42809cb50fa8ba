"""Where a search stands: its plan, its folder, what its trials read, and the key of any proposal in the ledger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.core.design.search_space import SearchPlan, SearchStudy
from sweeps.core.design.study import Trial
from sweeps.core.store.identity import Identity, identify
from sweeps.core.store.inputs import Inputs, trial_inputs
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import Runs
from sweeps.core.store.search_record import write_search
from toco.config import digest
from toco.train.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class SearchSituation:
    """A search and where it is kept."""

    plan: SearchPlan
    runs: Runs
    inputs: Inputs

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return self.runs.ledger

    @property
    def path(self) -> Path:
        """The search's folder."""
        return self.ledger.storage / self.plan.folder_name

    @property
    def lease(self) -> str:
        """What the driver of the search holds: proposals depend on what came before, so one driver asks for them."""
        return f"search-{self.plan.folder_name}"

    @property
    def journal(self) -> Path:
        """The trials, which are those of this code, data and versions: results of others would not compare."""
        parts = self.identify(self.plan.base).parts
        around = {name: parts[name] for name in ("code", "data", "weights", "versions")}
        code = hashlib.sha256(json.dumps(around, sort_keys=True).encode()).hexdigest()[:12]
        return self.path / f"trials-{code}.jsonl"

    def identify(self, config: RunConfig) -> Identity:
        """What the result of a proposal depends on."""
        return identify(config, self.plan.study.train, self.inputs)

    def proposal(self, values: Mapping[str, Any]) -> tuple[RunConfig, Identity]:
        """The training that these values stand for.

        Raises:
            ValueError: They do not go together.
        """
        config = self.plan.config(values)
        return config, self.identify(config)

    def write(self) -> None:
        """Write ``search.json``."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_search(self.path, self.plan, self.journal.name, self.inputs)


def survey_search(study: SearchStudy, storage: Path) -> SearchSituation:
    """Resolve ``study`` and look at what its trials will read.

    Raises:
        ValueError: The search or its data is not valid.
        OSError: A file cannot be read.
    """
    plan = study.resolve()
    one = Trial(0, 0, study.name, study.seed, digest(plan.base), plan.base)
    return SearchSituation(plan, Runs(Ledger(storage)), trial_inputs([one])[0])
