"""A trained network in MLflow: logged to its run, and under a name in the registry where one is asked for.

The model is an ONNX file and a script that runs it (``_onnx_model.py``). Whoever loads it needs
neither this library nor torch, and unpickles nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toco.tracking.mlflow_store import Store, answers

if TYPE_CHECKING:
    from mlflow.models import Model

_SCRIPT = Path(__file__).with_name("_onnx_model.py")
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")
_EXAMPLE_SIZE_PX = (96, 64)
"""Of the input example: width and height."""


def log_network(
    store: Store,
    run_id: str,
    network: Path,
    about: Mapping[str, str],
    step: int,
    registered_name: str | None = None,
) -> str:
    """Log an exported network to a run, as a pyfunc model with signature and input example.

    It predicts its example from the files that are then uploaded, before MLflow is told that it is
    there.

    Args:
        store: Where the run is.
        run_id: Run that the network was trained in.
        network: The ONNX file.
        about: What that says of itself: params of the logged model and tags of the registered
            version.
        step: Optimizer updates before the checkpoint.
        registered_name: Make a new version of this registered model, and the model if it is not
            there; ``None`` registers nothing.

    Returns:
        The address that ``mlflow.pyfunc.load_model`` takes: ``models:/NAME/VERSION`` where it is
        registered.

    Raises:
        ConnectionError: MLflow does not take it.
    """
    with answers(store.uri):
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
            # Under its name and not under its place, which changes when the store is moved.
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
    """Write the model to ``folder`` and see that it predicts its example from there."""
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
    # By its place: MLflow would look for a models:/ address in the store that the environment
    # names, not in this one.
    source = store.client.get_logged_model(model_id).artifact_location
    made = store.client.create_model_version(name, source, run_id, dict(about), model_id=model_id)
    return str(made.version)


def _example_png() -> bytes:
    """A colour wedge."""
    from PIL import Image

    width, height = _EXAMPLE_SIZE_PX
    rows, columns = np.mgrid[0 : 255 : complex(height), 0 : 255 : complex(width)].astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(np.stack([rows, columns, 255 - rows], axis=-1)).save(buffer, "PNG")
    return buffer.getvalue()
