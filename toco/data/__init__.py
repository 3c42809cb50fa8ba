"""Data sets, one file each, and the steps from an image to a training batch.

The exports of this package import no torch.
"""

from toco.data._dataset import DataConfig, Dataset, Finding, Split
from toco.data.files.label_conversion import convert_labels
from toco.data.files.splits import notes_of_splits, refuse_overlap
from toco.data.views.colour import ColourConfig
from toco.data.views.views import Views, ViewsConfig, make_views

ENTRY = {
    "Config": "class Config(DataConfig):\n    name: str = __name__",
    "open_split": "def open_split(config: Config, split: Split) -> Dataset: ...",
}
"""Names that the module of a data set defines, each with its first line of code."""

__all__ = [
    "ENTRY",
    "ColourConfig",
    "DataConfig",
    "Dataset",
    "Finding",
    "Split",
    "Views",
    "ViewsConfig",
    "convert_labels",
    "make_views",
    "notes_of_splits",
    "refuse_overlap",
]
