"""Data sets that are files: images, masks, label tables, their layout, their cache and their check."""
