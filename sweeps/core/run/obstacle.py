"""What keeps a driver from going on: noted where it happens, raised where the backend asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.core.store.leases import LostLeaseError
from toco.files import is_no_room
from toco.room import NoRoomError, sentence_of


class Obstacle:
    """The first error of a driver after which no trial of the driver can go on.

    Callbacks of Ray Tune that write results must not raise: Tune would take the error for one of the trial.

    Args:
        storage: Holds the results.
        trial_bytes: What a trial writes; 0 where that is not known.
    """

    def __init__(self, storage: Path, trial_bytes: int) -> None:
        self._storage = storage
        self._trial_bytes = trial_bytes
        self._error: NoRoomError | LostLeaseError | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note an error of the block that is an obstacle. The error is raised all the same."""
        try:
            yield
        except LostLeaseError as error:
            self._error = self._error or error
            raise
        except NoRoomError as error:
            self._error = self._error or error
            raise
        except OSError as error:
            if is_no_room(error):
                self._error = self._error or NoRoomError(sentence_of(self._storage, self._trial_bytes, error))
            raise

    def check(self) -> None:
        """See whether the driver may go on.

        Raises:
            NoRoomError: A result could not be written, since the storage is full.
            LostLeaseError: This driver was suspended, and another one runs its trials now.
        """
        if self._error is not None:
            raise self._error
