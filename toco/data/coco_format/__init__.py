"""COCO's annotation files, class numbers and masks."""
