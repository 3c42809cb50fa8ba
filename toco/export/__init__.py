"""Trained methods in the formats of others."""
