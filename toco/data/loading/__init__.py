"""Batches from a data set: the order of each epoch, and the processes that make batches."""
