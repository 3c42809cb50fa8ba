"""What every study shares: the study as a value, the trial, the runner, the report."""
