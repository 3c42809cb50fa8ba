"""Class activation maps and everything that is read from them."""
