"""The config of a run: data, network, method, optimizer, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from toco.backbones import BackboneConfig
from toco.config import MAX_SEED, RUN_ONLY, Config
from toco.data import DataConfig, ViewsConfig
from toco.evaluate import EvaluateConfig
from toco.methods import MethodConfig
from toco.predict.config import InferenceConfig
from toco.registry import choice
from toco.train.optim_config import AdamWConfig, OptimConfig

if TYPE_CHECKING:
    import torch


def _run_only(default: Any, **limits: Any) -> Any:  # noqa: ANN401 - as pydantic's own Field
    """Declare a field without effect on results, which no digest contains."""
    return Field(default=default, json_schema_extra={RUN_ONLY: True}, **limits)


class RunConfig(Config):
    """One training with its evaluations.

    Attributes:
        data: The data set.
        views: Crops and augmentations of training images.
        backbone: The backbone.
        method: The method and its losses.
        optim: Optimizer and learning rates.
        evaluate: Settings of evaluations.
        num_steps: Optimizer updates.
        batch_size: Images per update, over all devices together.
        seed: Seed of initial weights, order of images, views and losses.
        shuffle: Whether every epoch has another order of the images. ``false`` keeps the order of
            the data set, as the official RCA; its last ``len % batch_size`` images are then never
            seen. See :class:`toco.data.loading.loader.TrainLoader`.
        precision: ``bfloat16`` autocasts the passes through the network; losses are always float32.
        evaluate_every: Steps between evaluations; the last step is always evaluated.
        inference: How the trained network segments images, in ``test`` and in all predictions.
        device: ``auto`` takes CUDA if there is a GPU. No part of the digest; provenance records
            it.
        compile: Compile the step. It takes minutes and pays on a GPU; values stay the same within
            rounding.
        num_workers: Processes that load training images.
        log_every: Steps between training rows in ``metrics.jsonl``, whose values are means over
            these steps.
        keep_checkpoints: How many of the newest checkpoints are kept; every evaluation makes one.
    """

    data: choice("toco.data", DataConfig)  # type: ignore[valid-type]
    views: ViewsConfig = ViewsConfig()
    backbone: choice("toco.backbones", BackboneConfig)  # type: ignore[valid-type]
    method: choice("toco.methods", MethodConfig)  # type: ignore[valid-type]
    optim: OptimConfig = AdamWConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    num_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    seed: int = Field(default=0, ge=0, lt=MAX_SEED)
    shuffle: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_every: int = Field(gt=0)
    inference: InferenceConfig = _run_only(InferenceConfig())
    device: str = _run_only("auto")
    compile: bool = _run_only(False)
    num_workers: int = _run_only(2, ge=0)
    log_every: int = _run_only(50, gt=0)
    keep_checkpoints: int = _run_only(2, gt=0)

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        self.method.check(self.batch_size, self.views.crop_size_px)
        if self.compile:
            self.backbone.check_compile()
        self.optim.check(self.num_steps)
        return self

    def is_evaluated(self, step: int) -> bool:
        """Whether the network is evaluated after ``step`` updates."""
        return step % self.evaluate_every == 0 or step == self.num_steps

    def torch_device(self) -> torch.device:
        """Return the device that ``device`` names.

        Raises:
            ValueError: The name is unknown, or it asks for CUDA and there is no GPU.
        """
        import torch  # only here, so that configs load without torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"device is {self.device!r}; expected auto, cpu, cuda or cuda:N."
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"device is {self.device!r}, but torch sees no CUDA device; set device to cpu or "
                "auto."
            )
        return device

    def resolved(self) -> RunConfig:
        """Replace every ``auto`` by its meaning on this machine."""
        device = self.torch_device()
        method = self.method.resolved(device.type, self.views.crop_size_px)
        return self.model_copy(update={"device": str(device), "method": method})
