"""Metrics: pure accumulators over tensors."""
