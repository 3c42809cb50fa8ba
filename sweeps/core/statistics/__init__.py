"""What numbers say: paired differences, noise of images, analysis of variance. No files, no clock."""
