"""From a data set to batches: the order of an epoch and the processes that decode."""
