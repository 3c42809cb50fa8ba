"""What sits on tokens: classifiers, decoder, projection head."""
