"""Run a study or a search from its survey to its report.

Everything that can be refused is refused before Ray starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from sweeps.core.design.search_space import SearchStudy
from sweeps.core.design.study import Study
from sweeps.core.plan import ray_environment
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.plan_text import look_ahead
from sweeps.core.plan.survey import Situation, survey
from sweeps.core.run.driver import Driver
from sweeps.core.run.live_page import remember_report, write_report_of
from sweeps.core.run.roles import Backend, Connect
from sweeps.core.store.leases import Leases
from sweeps.core.store.study_folder import StudyFolder
from toco.room import explain_shortage
from toco.tracking import Tracker

RAY_LOG = "ray.log"
"""File of the storage with Ray's own messages."""


@contextmanager
def connect_to_ray(launch: Launch) -> Iterator[Backend]:
    """Connect to the Ray cluster of ``launch``, or start one on this machine.

    Raises:
        ConnectionError: No cluster runs at the address, or Ray did not start.
        ValueError: No node of the cluster can hold a trial.
    """
    address = ray_environment.resolve_address(launch.address)
    ray_environment.prepare(address)
    # Import only now: Ray reads its environment on import.
    from sweeps.core.run.ray_cluster import check_resources, connected
    from sweeps.core.run.ray_tune import RayTune

    with connected(address, launch.storage / RAY_LOG):
        check_resources(launch, may_grow=address != "local")
        yield RayTune(launch)


def run_study(study: Study | SearchStudy, launch: Launch, connect: Connect = connect_to_ray) -> int:
    """Run the missing trials of a study or a search, write its report and print it.

    Args:
        study: The study or search.
        launch: Where and how it runs.
        connect: Connects to the workers, once a trial needs one.

    Returns:
        The exit status: 0 where no claim of the paper is contradicted, 3 where one is, 4 where
            trials have no result.

    Raises:
        NoRoomError: A disk has no room for the trials.
        ValueError: The study, its data or the launch is not valid; its seeds cannot decide its
            claims; or another driver runs this search.
        OSError: A folder or file cannot be read or written, or no cluster runs at the address.
        LostLeaseError: This driver was suspended, and another one runs the trials now.
    """
    launch.check_addresses()
    situation = survey(study, launch.storage)
    situation.check()
    with Leases(launch.storage, f"the {situation.kind} {study.name}") as leases:
        if isinstance(situation, Situation):
            situation.restore_markers()
        else:
            situation.claim(leases)
        outlook = look_ahead(situation, launch, refuse=True)
        # Nothing to run: write the report again and print it.
        if not outlook.num_left:
            situation.write()
            report = write_report_of(situation, running=False)
            remember_report(situation, report)
            click.echo(
                f"All {outlook.num_trials} trials have ended.\n\n{report.text}\n\n"
                f"Report: {report.page}"
            )
            return report.exit_code
        if isinstance(situation, Situation):
            situation.write(outlook.forecast)
            StudyFolder(situation.path).write_stop(None)
        click.echo(outlook.text)
        with (
            explain_shortage(launch.storage, outlook.forecast.trial_bytes),
            StudyFolder(situation.path).locked() as is_shown,
        ):
            tracker = Tracker(launch.tracking, study.name)
            driver = Driver(situation, launch, leases, tracker, outlook.forecast, is_shown=is_shown)
            return driver.run(connect)
