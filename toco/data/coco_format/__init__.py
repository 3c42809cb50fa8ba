"""Annotation files, class numbers and masks of COCO."""
