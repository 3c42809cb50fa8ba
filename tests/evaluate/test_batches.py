import threading

import numpy as np
import pytest
import torch

from toco.data import voc
from toco.evaluate.batches import in_order, plan_batches, read_ahead, read_batch, take

SIZES = [(4, 6), (5, 3), (4, 6), (4, 6), (5, 3)]


def test_batches_are_consecutive_or_consecutive_of_their_size(random_dataset):
    dataset = random_dataset(SIZES)
    assert plan_batches(dataset, [0, 1, 3, 4], 3, one_size=False) == [(0, 1, 3), (4,)]
    assert plan_batches(dataset, range(5), 2, one_size=True) == [(0, 2), (3,), (1, 4)]


def test_a_batch_is_stacked_size_by_size_and_put_in_order_again(random_dataset):
    dataset = random_dataset(SIZES)
    batch = read_batch(dataset, (1, 2, 4, 3), pin=False).to("cpu")
    assert batch.rows == ((0, 2), (1, 3))
    assert [sample.index for sample in batch.samples] == [1, 2, 4, 3]
    for images, masks, rows in zip(batch.images, batch.masks, batch.rows, strict=True):
        for image, mask, row in zip(images, masks, rows, strict=True):
            assert np.array_equal(image, batch.samples[row].image)
            assert np.array_equal(mask, batch.samples[row].mask)
    assert batch.class_labels.tolist() == [dataset.class_labels(i).tolist() for i in (1, 2, 4, 3)]
    assert batch.present.tolist() == [[0, 1]] * 4


def test_rows_are_taken_and_put_back():
    values = torch.arange(12).reshape(6, 2)
    rows = [(0, 3), (1, 2, 5), (4,)]
    assert torch.equal(in_order([take(values, group) for group in rows], rows), values)
    assert torch.equal(take(values, (1, 2, 5)), values[[1, 2, 5]])
    assert take(values, range(6)) is values


def test_the_next_value_is_found_while_the_last_is_worked_on():
    second = threading.Event()

    def values():
        yield 1
        second.set()
        yield 2

    found = []
    for value in read_ahead(values()):
        assert second.wait(timeout=600)
        found.append(value)
    assert found == [1, 2]


def test_an_error_comes_when_its_value_is_due():
    def values():
        yield 1
        raise ValueError("broken file")

    ahead = read_ahead(values())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken file"):
        next(ahead)


def test_a_reader_that_stops_early_leaves_no_thread():
    before = threading.active_count()
    ahead = read_ahead(iter(range(10)))
    next(ahead)
    ahead.close()
    assert threading.active_count() == before


def test_sizes_of_files_are_read_from_their_headers(data_root):
    dataset = voc.open_split(voc.Config(root=data_root), "val")
    assert [dataset.size(index) for index in range(len(dataset))] == [(40, 48)] * 4
    assert plan_batches(dataset, range(4), 3, one_size=True) == [(0, 1, 2), (3,)]
