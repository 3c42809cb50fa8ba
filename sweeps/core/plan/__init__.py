"""Before a study runs: what is missing, its cost, its power. Only the probe starts a process."""
