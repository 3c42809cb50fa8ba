"""The data set in memory and the method of the evaluation's tests."""

from tests.evaluate.conftest import dataset_of, method, random_dataset

__all__ = ["dataset_of", "method", "random_dataset"]
