"""Interpretation of results: evaluations, analysis, confounders and the verdict."""
