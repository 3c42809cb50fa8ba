"""Data sets in files: images, masks, label files, folder layout and cache."""
