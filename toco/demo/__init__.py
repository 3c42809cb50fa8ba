"""A page on loopback that shows what a trained method sees."""
