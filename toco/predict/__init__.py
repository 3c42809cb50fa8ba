"""What a trained method makes of many images, one file an image: predictions, CAMs and pseudo labels."""
