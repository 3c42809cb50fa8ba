"""What the results show: evaluations, analysis, confounders and the verdict."""
