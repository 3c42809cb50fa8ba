"""What the user asks: the verbs of studies and searches."""
