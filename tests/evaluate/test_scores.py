import pytest
import torch

from toco.evaluate.batches import read_batch
from toco.evaluate.scores import Scores
from toco.evaluate.sizes import network_input


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_is_counted_without_waiting_for_the_device(method, random_dataset):
    dataset = random_dataset([(20, 31), (20, 31)])
    batch = read_batch(dataset, (0, 1), pin=True).to("cuda")
    scores = Scores(2, (0.0, 0.5), 1, "cuda")
    with torch.no_grad():
        images = network_input(batch.images[0], None)
        prediction = method.eval().predict(images, (1.0,), False, batch.present)
    torch.cuda.set_sync_debug_mode("error")
    try:
        scores.update(batch, prediction)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    part = scores.part()
    counted = sum(int((mask != 255).sum()) for mask in dataset.masks)
    assert part.batches[0].confusions.sum((0, 2, 3)).tolist() == [counted] * 3
    assert [int(histogram.sum()) for histogram in part.histograms.values()] == [counted] * 2
