"""Export a trained network as one ONNX file: pixels in, labels out.

The file is for programs that know neither this library nor Python. It is made by ``torch.export``
and torch's current exporter; the older one, by TorchScript, is deprecated. It holds weights and a
graph, and no code that runs when it is read. (A ``.pt2`` file of torch is unpickled, so that format
is not offered.) Before the file is written, ONNX Runtime runs it and the results are compared with
the network's.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

import toco
from toco.evaluate.sizes import network_input, resize_bilinear
from toco.files import whole_file
from toco.methods import Method
from toco.predict.split_predictions import weights_digest
from toco.train.trained import Trained, open_trained

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT = "images"
PREFIX = "toco."
"""Prefix of the metadata keys that this module writes."""

_DESCRIPTIONS = {
    INPUT: "RGB levels 0 to 255: image, row, column, channel. Not normalised: the graph does that.",
    "logits": (
        "Scores before the softmax: image, class (background first), row, column, at the size of "
        "the input."
    ),
    "labels": "Class of the highest score: image, row, column. 0 is the background.",
    "cams": "Class activation maps in [0, 1] at one scale: image, foreground class, row, column.",
    "class_logits": "Scores of the image's foreground classes before the sigmoid: image, class.",
}
"""Descriptions of the input and the outputs, written to the file."""
_BATCH = "batch"

_ONE_SIZE_ONLY = frozenset({"swin"})
"""Backbones whose windows torch cannot trace for an unknown size in acceptable time."""

_TOLERANCE = 1e-3
"""Largest difference of an output from torch's, as a part of its largest value, or of 1.

ONNX Runtime adds in another order, and so rounds differently. A wrong graph differs by far more.
"""
_MIN_AGREEMENT = 0.999
"""Smallest fraction of pixels with the same label.

The label of a pixel whose two highest logits are equal up to rounding can change. One pixel of a
thousand leaves room for this; a wrong graph changes far more labels.
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported file, and the agreement of ONNX Runtime with torch on it.

    Attributes:
        path: The file.
        size_bytes: Size of the file.
        step: Optimizer updates before the exported checkpoint.
        max_difference: Largest absolute difference of a score; scores are all outputs but the
            labels.
        max_score: Largest absolute score that torch computed in the comparison.
        label_agreement: Fraction of pixels with the same label, in the compared batch where it is
            smallest.
        metadata: Metadata in the file.
    """

    path: Path
    size_bytes: int
    step: int
    max_difference: float
    max_score: float
    label_agreement: float
    metadata: Mapping[str, str]


class Segmenter(nn.Module):
    """The exported network: levels in; logits and labels out, and CAMs on request.

    Logits and labels have the size of the input.
    """

    def __init__(self, method: Method, cams: bool) -> None:
        super().__init__()
        self.method = method
        self.cams = cams

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ("logits", "labels", "cams", "class_logits") if self.cams else ("logits", "labels")

    def forward(self, images: UInt8[Tensor, "b h w 3"]) -> tuple[Tensor, ...]:
        """Compute the outputs, in the order of their names."""
        normalised = network_input(images, None)
        size = (images.shape[1], images.shape[2])
        if not self.cams:
            return _labelled(size, self.method.segmentation_logits(normalised))
        prediction = self.method.predict(normalised, scales=(1.0,), flip=False)
        logits = prediction.segmentation_logits
        if logits is None:
            raise ValueError("The method has no decoder, and so no logits to export.")
        return *_labelled(size, logits), prediction.cams.cam, prediction.class_logits


def _labelled(size: tuple[int, int], logits: Float[Tensor, "b s p q"]) -> tuple[Tensor, Tensor]:
    logits = resize_bilinear(logits, size)
    return logits, logits.argmax(1).to(torch.uint8)


def export_onnx(
    run_dir: Path, path: Path, *, size_px: int | None = None, cams: bool = False
) -> Exported:
    """Write the network of a run to ``path``, always in float32.

    Args:
        run_dir: The run folder; its newest checkpoint is exported.
        path: File to write, ``.onnx``; it appears complete or not at all.
        size_px: Side of the images, which are squares. ``None`` leaves height and width free, from
            one patch on; as in the official code, pixels beyond the last complete patch are
            ignored.
        cams: Add two outputs: CAMs and the logits of the image-level classes.

    Raises:
        ValueError: ``path`` is not ``.onnx``; the run or its checkpoint is missing; the method has
            no decoder, or with ``cams`` no CAMs of all classes; ``size_px`` is no multiple of the
            patch, or is missing where the backbone needs it; the exported file does not compute
            what the network does.
    """
    if path.suffix != ".onnx":
        raise ValueError(
            f"Expected the name of an .onnx file, got {path}; no other format is written."
        )
    trained = open_trained(run_dir, {"precision": "float32", "device": "cpu"})
    trained.check_decoder()
    if cams and not trained.config.method.has_cams_of_all_classes():
        raise ValueError(
            f"The method {trained.config.method.name!r} makes CAMs only of the classes in an "
            "image, which an exported network does not know. Export it without --cams; export-cams "
            "writes the CAMs of labelled images."
        )
    patch = trained.method.patch_size_px
    if size_px is not None and (size_px <= 0 or size_px % patch):
        raise ValueError(
            f"size is {size_px} px; expected a positive multiple of the patch of {patch} px."
        )
    if size_px is None and trained.config.backbone.name in _ONE_SIZE_ONLY:
        raise ValueError(
            f"A network on {trained.config.backbone.name} can be exported for one size of image "
            f"only; give that to export-model, as in --size {trained.config.views.crop_size_px}."
        )

    # Convert, with free sizes where none is given.
    network = Segmenter(trained.method, cams).requires_grad_(False)
    crop = trained.config.views.crop_size_px
    if size_px is None:
        # The example has two images, and sides that differ from every other axis: torch would take
        # a length of 1, or one that another axis has, for a constant.
        model = _convert(network, (2, crop + patch, crop + 2 * patch), (_BATCH, "height", "width"))
        checked_shapes = [(1, crop, crop), (2, crop + 3 * patch + 1, crop - 1)]
    else:
        model = _convert(network, (2, size_px, size_px), (_BATCH,))
        checked_shapes = [(1, size_px, size_px), (3, size_px, size_px)]
    metadata = {f"{PREFIX}{key}": _text(value) for key, value in describe(trained, size_px).items()}
    _annotate(model, metadata)

    # Compare with the network before the file appears.
    content = model.SerializeToString()
    size_advice = "give the size that images will have (export-model --size), or "
    advice = f"No file was written; {size_advice * (size_px is None)}try another version of torch."
    differences, agreement = _compare(network, content, checked_shapes, advice)
    problems = [item.text for item in differences if not item.is_rounding]
    if problems or agreement < _MIN_AGREEMENT:
        problems.append(f"{1 - agreement:.2%} of the labels")
        raise ValueError(
            f"The exported network differs from the one of {run_dir}: {', and '.join(problems)}. "
            f"{advice}"
        )
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return Exported(
        path,
        len(content),
        trained.step,
        max(item.largest for item in differences),
        max(item.max_score for item in differences),
        agreement,
        metadata,
    )


def describe(trained: Trained, size_px: int | None) -> dict[str, Any]:
    """Metadata of the exported file: JSON values by key, without the prefix ``toco.``.

    Text is stored unquoted.
    """
    return {
        "version": toco.__version__,
        "run_digest": trained.digest,
        "step": trained.step,
        "weights": weights_digest(trained.method),
        "recipe": trained.recipe,
        "class_names": ["background", *trained.class_names],
        "size_px": size_px,
        "patch_size_px": trained.method.patch_size_px,
        "pixel_mean": trained.config.backbone.pixel_mean,
        "pixel_std": trained.config.backbone.pixel_std,
    }


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return value if isinstance(value, str) else json.dumps(value)


def _convert(
    network: Segmenter, example: tuple[int, int, int], free: tuple[str, ...]
) -> ModelProto:
    """Convert the network to an ONNX model.

    Args:
        network: The network.
        example: Number, height and width of the images to trace with.
        free: Names of the leading axes whose length is free.
    """
    names = dict(enumerate(free))
    # onnxscript warns of constants that it does not fold.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own code
        # Strict, because otherwise ``len(images)`` becomes a constant instead of staying unknown.
        program = torch.export.export(
            network,
            (torch.zeros(*example, 3, dtype=torch.uint8),),
            dynamic_shapes=(dict.fromkeys(names, torch.export.Dim.AUTO),),
            strict=True,
        )
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=list(network.outputs),
            dynamic_shapes=(names,),
            verbose=False,
        )
    model: ModelProto = converted.model_proto  # type: ignore[union-attr] # not None with dynamo
    return model


def _annotate(model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Describe inputs and outputs, and remove the exporter's notes.

    The exporter notes facts about every node, such as paths on this machine.
    """
    from onnx.helper import set_model_props

    set_model_props(model, dict(metadata))
    model.doc_string = "Semantic segmentation network, exported by toco. Pixels in, labels out."
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = _DESCRIPTIONS[value.name]
    for part in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
        model.graph,
    ):
        part.ClearField("metadata_props")
    model.graph.ClearField("value_info")


@dataclass(frozen=True, slots=True)
class _Difference:
    """Difference of one output between torch and ONNX Runtime, over all compared batches.

    Attributes:
        name: Name of the output.
        largest: Largest absolute difference.
        mean: Mean absolute difference, in the batch where it is largest.
        max_score: Largest absolute value of torch.
    """

    name: str
    largest: float
    mean: float
    max_score: float

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the difference; never for NaN."""
        # A CAM is divided by its range. Where a class has almost no activation, this magnifies
        # rounding in a single map, so the mean decides.
        difference = self.mean if self.name == "cams" else self.largest
        return difference <= _TOLERANCE * max(self.max_score, 1.0)

    @property
    def text(self) -> str:
        """The difference as text."""
        return (
            f"{self.name} by up to {self.largest:.3g}, {self.mean:.3g} on average (the largest is "
            f"{self.max_score:.3g})"
        )


def _compare(
    network: Segmenter, content: bytes, shapes: Sequence[tuple[int, int, int]], advice: str
) -> tuple[list[_Difference], float]:
    """Compare torch with ONNX Runtime on images of noise.

    Returns the difference of each output but the labels, and the agreement of the labels: the
    smallest of all batches.

    Args:
        network: The network.
        content: The model that was converted from it.
        shapes: Numbers, heights and widths of the images to compare on.
        advice: End of the message of an error.

    Raises:
        ValueError: ONNX Runtime cannot run the model on one of these.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)  # fixed, so that an export can be repeated
    figures: dict[str, list[tuple[float, float, float]]] = {}
    agreement = 1.0
    for shape in shapes:
        images = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
        with torch.no_grad():
            torch_outputs = [output.numpy() for output in network(torch.from_numpy(images))]
        try:
            onnx_outputs = session.run(network.outputs, {INPUT: images})
        except Exception as error:  # the errors of ONNX Runtime have no common class
            raise ValueError(
                f"ONNX Runtime cannot run the exported network on images of shape {images.shape} "
                f"({error}). {advice}"
            ) from error
        for name, from_torch, from_onnx in zip(
            network.outputs, torch_outputs, onnx_outputs, strict=True
        ):
            if name == "labels":
                agreement = min(agreement, float((from_torch == from_onnx).mean()))
            else:
                difference = np.abs(from_torch - from_onnx)
                figures.setdefault(name, []).append(
                    (difference.max(), difference.mean(), np.abs(from_torch).max())
                )
    # numpy's maximum keeps NaN, and Python's ``max`` may not.
    differences = [
        _Difference(name, *np.max(batches, axis=0).tolist()) for name, batches in figures.items()
    ]
    return differences, agreement
