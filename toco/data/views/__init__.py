"""From an image to the views of a training batch: geometry, colour, normalisation."""
