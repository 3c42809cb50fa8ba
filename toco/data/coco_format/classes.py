"""The 80 classes of COCO and their two numberings.

The annotation files number 91 categories, of which eleven were never annotated. Masks here number
the other 80 from 1 without gaps. Class 12 (``stop sign``) is therefore category 13, and the
difference grows with each gap after it.
"""

# fmt: off
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""Foreground classes of COCO, in the order of their ids 1 to 80."""

_NEVER_ANNOTATED = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
CATEGORY_IDS = tuple(category for category in range(1, 92) if category not in _NEVER_ANNOTATED)
"""COCO's category of each class: class ``i`` is category ``CATEGORY_IDS[i - 1]``."""
