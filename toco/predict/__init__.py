"""Outputs of a trained method, one file per image: predictions, CAMs and pseudo labels."""
