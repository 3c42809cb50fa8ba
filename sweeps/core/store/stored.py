"""Files of a storage as pydantic models: written by the model, and read by it into the same model."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from toco.config import sentences
from toco.files import UnreadableError, check_seal, printable, record_text

logger = logging.getLogger(__name__)


class Stored(BaseModel):
    """Content of a JSON file. Fields that the model does not have are passed over."""

    model_config = ConfigDict(frozen=True)

    def text(self, indent: int | None = 1) -> str:
        """The file: JSON that carries its own SHA-256, see ``toco.files.record_text``."""
        return record_text(self.model_dump(mode="json"), indent=indent)

    @classmethod
    def read(cls, path: Path, advice: str) -> Self:
        """Read a file.

        Args:
            path: The file.
            advice: Last sentence of the message: what to do about a damaged file.

        Raises:
            FileNotFoundError: There is no such file.
            UnreadableError: It is damaged, a field is missing, or one has a value of another kind.
        """
        content = path.read_bytes()
        check_seal(path, content, advice)
        return cls.of_json(content, path, advice)

    @classmethod
    def of_json(cls, content: bytes, path: Path, advice: str) -> Self:
        """Read the bytes of a file.

        Args:
            content: JSON whose seal was compared already.
            path: The file, for the message.
            advice: As of :meth:`read`.

        Raises:
            UnreadableError: A field is missing, or has a value of another kind.
        """
        try:
            return cls.model_validate_json(content, strict=True)
        except ValidationError as error:
            raise UnreadableError(
                f"{printable(path)} is not a record of its kind: {sentences(error)} {advice}"
            ) from error


# A page that follows a study reads the same damaged file again and again.
@lru_cache(maxsize=1024)
def warn_once(text: str) -> None:
    """Log a warning, unless this process has logged the same text before."""
    logger.warning(text)
