"""Views of training images: geometry, colour, normalisation."""
