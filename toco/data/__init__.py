"""Data sets, one file each, and the way from an image to a training batch."""

from toco.data._check import Report, check_folder, check_splits
from toco.data._colour import ColourConfig
from toco.data._dataset import DataConfig, Dataset, Fault, Split
from toco.data._label_conversion import convert_labels
from toco.data._loader import MAX_SEED, TrainLoader
from toco.data._normalize import denormalise_255, normalise
from toco.data._raw_batch import RawBatch
from toco.data._splits import notes_of_splits, refuse_overlap
from toco.data._views import Views, ViewsConfig, make_views

__all__ = [
    "MAX_SEED",
    "ColourConfig",
    "DataConfig",
    "Dataset",
    "Fault",
    "RawBatch",
    "Report",
    "Split",
    "TrainLoader",
    "Views",
    "ViewsConfig",
    "check_folder",
    "check_splits",
    "convert_labels",
    "denormalise_255",
    "make_views",
    "normalise",
    "notes_of_splits",
    "refuse_overlap",
]
