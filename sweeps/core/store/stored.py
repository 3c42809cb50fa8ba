"""Files of a storage as pydantic models: the model writes the file and reads it."""

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
    """The content of a JSON file. Fields that the model does not have are ignored."""

    model_config = ConfigDict(frozen=True)

    def text(self, indent: int | None = 1) -> str:
        """Return the text of the file.

        It is JSON that carries its own SHA-256, see ``toco.files.record_text``.
        """
        return record_text(self.model_dump(mode="json"), indent=indent)

    @classmethod
    def read(cls, path: Path, advice: str) -> Self:
        """Read a file.

        Args:
            path: The file.
            advice: Last sentence of the error message: what to do about a damaged file.

        Raises:
            FileNotFoundError: The file does not exist.
            UnreadableError: The file is damaged, a field is missing, or a value has the wrong type.
        """
        content = path.read_bytes()
        check_seal(path, content, advice)
        return cls.of_json(content, path, advice)

    @classmethod
    def of_json(cls, content: bytes, path: Path, advice: str) -> Self:
        """Read the bytes of a file.

        Args:
            content: JSON whose seal was checked already.
            path: The file, for the message.
            advice: See :meth:`read`.

        Raises:
            UnreadableError: A field is missing, or a value has the wrong type.
        """
        try:
            return cls.model_validate_json(content, strict=True)
        except ValidationError as error:
            raise UnreadableError(
                f"{printable(path)} is not a record of its kind: {sentences(error)} {advice}"
            ) from error


# A page that follows a running study reads the same damaged file again and again.
@lru_cache(maxsize=1024)
def warn_once(text: str) -> None:
    """Log a warning, unless this process has logged the same text before."""
    logger.warning(text)
