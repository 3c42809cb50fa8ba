"""Class activation maps, and the labels, affinities and crops derived from them."""
