"""What a trained method makes of many images, one file an image: predictions, CAMs and pseudo labels."""

from toco.predict.cams import export_cams
from toco.predict.image_files import ImageFiles, Images, check_readable, find_images, large_enough
from toco.predict.predictions import Predicted, predict
from toco.predict.pseudo_labels import PseudoLabelConfig, export_pseudo_labels, score_pseudo_labels

__all__ = [
    "ImageFiles",
    "Images",
    "Predicted",
    "PseudoLabelConfig",
    "check_readable",
    "export_cams",
    "export_pseudo_labels",
    "find_images",
    "large_enough",
    "predict",
    "score_pseudo_labels",
]
