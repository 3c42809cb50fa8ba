"""A page on loopback that shows the CAMs, labels and tokens of a trained method."""
