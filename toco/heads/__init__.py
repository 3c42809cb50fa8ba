"""Heads on tokens: classifiers, decoder, projection head."""
