"""Settings of the projection head. Nothing here needs torch."""

from __future__ import annotations

from pydantic import Field

from toco.config import Config


class ProjectionConfig(Config):
    """Sizes of the projection head; the official ones are 768-2048-2048-256-1024.

    Attributes:
        num_layers: Linear layers of the MLP.
        hidden_width: Width inside the MLP.
        bottleneck_width: Width of the normalised vector.
        output_width: Width of the projection.
    """

    num_layers: int = Field(default=3, ge=1)
    hidden_width: int = Field(default=2048, gt=0)
    bottleneck_width: int = Field(default=256, gt=0)
    output_width: int = Field(default=1024, gt=0)
