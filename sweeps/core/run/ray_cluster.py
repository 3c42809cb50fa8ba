"""Connects to a Ray cluster, or starts one on this machine, and watches its head.

See ``sweeps.core.run.ray_tune`` for what is set before Ray is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private.services import find_gcs_addresses

from sweeps.core.plan.launch_options import Launch
from sweeps.core.run.failures import HeadLostError
from sweeps.core.run.head_watch import HeadWatch
from sweeps.core.store.scratch import scratch_folder, sweep_scratch
from toco import interrupts

logger = logging.getLogger(__name__)

# Nothing large goes through the object store, so Ray's default of 30 % of the memory would be a waste.
_OBJECT_STORE_BYTES = 200 * 1024**2


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be the driver of the cluster at ``address``, or of a new one on this machine where that is ``local``.

    Raises:
        ValueError: ``address`` is ``auto``, and several clusters run on this machine.
        ConnectionError: There is no cluster at ``address``, Ray did not start, or its head was lost in the block.
    """
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if address == "local":
            sweep_scratch()
            # Ray opens its folder to all users of the machine, and Tune keeps pickles there: it lies in a closed one.
            folder = stack.enter_context(scratch_folder("ray", for_sockets=True)) / "ray"
            options = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": str(folder)}
        if address == "auto":
            _refuse_several_clusters()
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
        except SystemExit:
            # Ray's handler of SIGTERM, which stands until the signal is taken back.
            raise KeyboardInterrupt from None
        except ConnectionError:
            raise
        except Exception as error:  # Ray raises a plain one where its processes do not answer in time
            raise ConnectionError(
                f"Ray did not start: {error}. On a busy machine this passes. The same command goes on from here."
            ) from error
        head = HeadWatch(ray.get_runtime_context().gcs_address, _any_node_alive if address == "local" else None)
        try:
            interrupts.take_again()
            head.start()
            yield
        except KeyboardInterrupt:
            if head.is_lost:
                raise HeadLostError(head.loss) from None
            raise
        finally:
            head.close()
            # With a lost head it would end this process with a line of Ray's.
            if not head.is_lost:
                ray.shutdown()
            # Workers of this machine were killed with it.
            sweep_scratch()


def _refuse_several_clusters() -> None:
    """Refuse ``auto`` where several clusters run on this machine: Ray takes any of them, another user's too.

    Raises:
        ValueError: There are several.
    """
    addresses = sorted(find_gcs_addresses())
    if len(addresses) > 1 and not os.environ.get("RAY_ADDRESS"):
        raise ValueError(
            f"--address auto expects one Ray cluster on this machine; {len(addresses)} run here: "
            f"{', '.join(addresses)}. Name one: --address {addresses[0]}"
        )


def _any_node_alive() -> bool:
    return any(node["Alive"] for node in ray.nodes())


def check_resources(launch: Launch, *, may_grow: bool) -> None:
    """See that some node can hold a trial.

    Args:
        launch: What a trial gets.
        may_grow: Nodes may still join, so that it is only worth a warning.

    Raises:
        ValueError: No node can.
    """
    nodes = ray.nodes()
    if any(fits(launch, node) for node in nodes):
        return
    there = [node["Resources"] for node in nodes if node["Alive"]]
    largest = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in there)
    message = (
        f"A trial wants {launch.cpus_per_trial:g} CPUs and {launch.gpus_per_trial:g} GPUs, but the nodes have "
        f"{largest}. Lower --cpus-per-trial or --gpus-per-trial, or add a node."
    )
    if not may_grow:
        raise ValueError(message)
    logger.warning("%s Waiting for a node that can.", message)


def fits(launch: Launch, node: Mapping[str, Any]) -> bool:
    """Whether a node of ``ray.nodes`` is there and can hold a trial of ``launch``."""
    has, wanted = node["Resources"], {"CPU": launch.cpus_per_trial, "GPU": launch.gpus_per_trial}
    return bool(node["Alive"]) and all(has.get(kind, 0) >= number for kind, number in wanted.items())
