"""Script of a network logged to MLflow: encoded images in, label maps out.

It reads images by the rules of ``toco.data.files.images``: turned upright by their EXIF
orientation, of 8 bits only. MLflow copies this file into the model and executes it when the model
is loaded ("models from code"), so nothing is unpickled. The script imports nothing of this library,
which need not be installed where the model is used.
"""

from __future__ import annotations

import json
import struct
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from onnxruntime import InferenceSession
from PIL import Image, ImageOps

# As in ``toco.data.files.images``.
_MAX_PIXELS = 50_000_000
_MODES = ("RGB", "L", "LA", "P", "RGBA", "CMYK")
"""Modes of 8 bits. Others, such as grey of 16 bits, would be clipped by the conversion to RGB."""


class OnnxSegmenter(PythonModel):
    """An exported network (see ``toco.export.onnx``) that segments images of any size."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the network among the model's files."""
        self._session = InferenceSession(
            context.artifacts["network"], providers=["CPUExecutionProvider"]
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._class_names: list[str] = json.loads(metadata["toco.class_names"])
        self._patch_size_px = int(metadata["toco.patch_size_px"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Label every pixel of every image.

        Args:
            context: Ignored.
            model_input: Column ``image``: content of a JPEG or PNG file, at least one patch large.
            params: Ignored: there are no parameters.

        Returns:
            Columns ``labels``, uint8 ``h w`` at the size of the upright image, and ``classes``, the
            names of the classes in the image, background first.

        Raises:
            ValueError: An image cannot be read, is too large, is smaller than a patch, or cannot be
                converted to RGB of 8 bits.
        """
        labels = [self._label(content) for content in model_input["image"]]
        classes = [[self._class_names[label] for label in np.unique(image)] for image in labels]
        return pd.DataFrame({"labels": labels, "classes": classes}, index=model_input.index)

    def _label(self, content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", Image.DecompressionBombWarning
                )  # the limit below is lower than Pillow's
                image: Image.Image = Image.open(BytesIO(content), formats=["JPEG", "PNG"])
            raw_modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
            if image.width * image.height <= _MAX_PIXELS:
                image = ImageOps.exif_transpose(image)
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"The image is too large; expected {_MAX_PIXELS} pixels or fewer."
            ) from error
        except (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error) as error:
            raise ValueError(
                "Expected the content of a JPEG or PNG file, but it cannot be read as one."
            ) from error
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(
                f"The image has {image.size} px; expected {_MAX_PIXELS} pixels or fewer."
            )
        if any(";16" in raw_mode for raw_mode in raw_modes) and image.mode == "RGB":
            raise ValueError("The image has colours of 16 bits; expected 8 bits.")
        if image.mode not in _MODES:
            raise ValueError(
                f"The image has the mode {image.mode}; expected one of 8 bits: {', '.join(_MODES)}."
            )
        if min(image.size) < self._patch_size_px:
            raise ValueError(
                f"The image has {image.size} px; expected {self._patch_size_px} px or more on each "
                "side."
            )
        labels: np.ndarray[Any, np.dtype[np.uint8]] = self._session.run(
            ["labels"], {"images": np.asarray(image.convert("RGB"))[None]}
        )[0][0]
        return labels


set_model(OnnxSegmenter())
