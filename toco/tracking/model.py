"""Log a trained network to its MLflow run and, if asked, register it under a name.

The model is an ONNX file and a script that runs it (``_onnx_model.py``). Loading it needs neither
this library nor torch, and unpickles nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toco.tracking.mlflow_store import Store, store_errors_as_sentences

if TYPE_CHECKING:
    from mlflow.models import Model

_SCRIPT = Path(__file__).with_name("_onnx_model.py")
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")
_EXAMPLE_SIZE_PX = (96, 64)
"""Width and height of the input example."""


def log_network(
    store: Store,
    run_id: str,
    network: Path,
    about: Mapping[str, str],
    step: int,
    registered_name: str | None = None,
) -> str:
    """Log an exported network to a run, as a pyfunc model with signature and input example.

    The model must predict its example from the files to upload before MLflow marks it as ready.

    Args:
        store: Store of the run.
        run_id: Run in which the network was trained.
        network: The ONNX file.
        about: Metadata of the ONNX file, for the params of the logged model and the tags of the
            registered version.
        step: Optimizer updates before the checkpoint.
        registered_name: Name of the registered model that gets a new version; the model is made if
            it does not exist. ``None`` registers nothing.

    Returns:
        The address for ``mlflow.pyfunc.load_model``; ``models:/NAME/VERSION`` of a registered
        model.

    Raises:
        ConnectionError: MLflow cannot be reached or refuses the model.
    """
    with store_errors_as_sentences(store.uri):
        logged = _log(store, run_id, network, about, step)
        if registered_name is None:
            return f"models:/{logged}"
        return (
            f"models:/{registered_name}/{_register(store, run_id, logged, about, registered_name)}"
        )


def _log(store: Store, run_id: str, network: Path, about: Mapping[str, str], step: int) -> str:
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    logged = store.client.create_logged_model(
        store.experiment_id,
        "segmentation",
        source_run_id=run_id,
        params=dict(about),
        model_type="onnx",
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            # By its name and not by its location, which changes when the store is moved.
            head = Model(logged.name, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
            _save(folder, head, network, about)
            store.client.log_model_artifacts(logged.model_id, str(folder))
    except BaseException:
        store.client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    store.client.finalize_logged_model(logged.model_id, "READY")
    store.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
    model_id: str = logged.model_id
    return model_id


def _save(folder: Path, head: Model, network: Path, about: Mapping[str, str]) -> None:
    """Write the model to ``folder``, and predict its example from there."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    example = pd.DataFrame({"image": [_example_png()]})
    labels = ColSpec(Array(Array(DataType.integer)), "labels")
    pyfunc.save_model(
        str(folder),
        python_model=str(_SCRIPT),
        artifacts={"network": str(network)},
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.binary, "image")]),
            outputs=Schema([labels, ColSpec(Array(DataType.string), "classes")]),
        ),
        input_example=example,
        pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
        metadata=dict(about),
        mlflow_model=head,
    )
    pyfunc.load_model(str(folder)).predict(example)


def _register(store: Store, run_id: str, model_id: str, about: Mapping[str, str], name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # By its location: MLflow would look up a models:/ address in the store that environment
    # variables name, and not in this store.
    source = store.client.get_logged_model(model_id).artifact_location
    model_version = store.client.create_model_version(
        name, source, run_id, dict(about), model_id=model_id
    )
    return str(model_version.version)


def _example_png() -> bytes:
    """Encode a colour wedge as PNG."""
    from PIL import Image

    width, height = _EXAMPLE_SIZE_PX
    rows, columns = np.mgrid[0 : 255 : complex(height), 0 : 255 : complex(width)].astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(np.stack([rows, columns, 255 - rows], axis=-1)).save(buffer, "PNG")
    return buffer.getvalue()
