"""The page in headless Chromium, served as a person has it served."""

import base64
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from benchmarks._chromium import chromium, find_chromium
from toco.cam.labels import cam_to_pseudo_label
from toco.config import replace
from toco.evaluate.sizes import network_input
from toco.train.loop import train

PANELS = ["image", "cam", "aux_cam", "label", "refined", "segmentation", "similarity"]
DROP = """([name, letters]) => {
  const content = Uint8Array.from(atob(letters), (letter) => letter.charCodeAt(0));
  const dropped = new DataTransfer();
  dropped.items.add(new File([content], name));
  const options = { dataTransfer: dropped, bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("drop", options));
}"""
COLOURS = """(id) => {
  const canvas = document.getElementById(id), pen = canvas.getContext("2d");
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""
pytestmark = pytest.mark.slow
expect.set_options(timeout=120_000)  # of a machine that does other things


@contextmanager
def serving(run_dir):
    """The address of ``python -m toco demo``, which ends at Ctrl-C without a complaint."""
    command = [sys.executable, "-m", "toco", "demo", str(run_dir), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:\d+/\?token=\S{32}(?= )", line)
        assert found, line + process.stderr.read()
        yield found[0]
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=600)
        assert (process.returncode, complaints) == (0, "")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def address(run_dir):
    with serving(run_dir) as address:
        yield address


@contextmanager
def opened(address):
    """The page in a browser."""
    if find_chromium() is None:
        pytest.skip("No Chromium is installed.")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.complaints, page.requested = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(address)
        yield page


@pytest.fixture
def page(address):
    with opened(address) as page:
        yield page


def drop(page, name, content):
    expect(page.locator("#examples button")).to_have_count(4)
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])


def counts(page, panel):
    """Pixels by label, from a panel's legend."""
    items = page.locator(f"#{panel}-legend li").all()
    return {
        int(item.get_attribute("data-id")): int(item.get_attribute("data-pixels")) for item in items
    }


def by_label(label):
    values, pixels = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), pixels.tolist(), strict=True))


def test_maps_that_a_method_does_not_make_are_not_on_the_page(
    tiny_config, tmp_path, photo, file_of
):
    changes = {"num_steps": 2, "optim.warmup_steps": 1, "evaluate.num_pictures": 0, "device": "cpu"}
    train(replace(tiny_config, {**changes, "method.name": "cam"}), tmp_path / "run", progress=False)
    with serving(tmp_path / "run") as address, opened(address) as page:
        drop(page, "photo.png", file_of(photo))
        expect(page.locator("#refined-legend li").first).to_be_visible()
        assert page.evaluate(COLOURS, "cam") > 1
        expect(page.locator("#aux_cam")).to_have_count(0)
        for hidden in ("#segmentation", "#source"):
            expect(page.locator(hidden)).to_be_hidden()
        expect(page.locator("#readout")).to_have_text(re.compile(r"^patch \d, \d: CAM \d\.\d\d$"))
        # The last one, as no block is that of a further CAM.
        expect(page.locator("#similarity-title")).to_have_text("Similarity, block 3")
        assert page.complaints == []


def test_a_dropped_image_is_shown_and_labels_follow_the_sliders(
    page, address, photo, file_of, trained
):
    inputs = network_input(torch.from_numpy(photo)[None], 32)
    prediction = trained.method.predict(inputs, (1.0, 0.5), True)
    present = prediction.class_logits > 0

    def expected(cam, low, high, present):
        return by_label(cam_to_pseudo_label(cam, present.float(), low, high).numpy())

    drop(page, "photo.png", file_of(photo))
    expect(page.locator("#status")).to_contain_text("photo.png: ")
    expect(page.locator("#refined-legend li").first).to_be_visible()
    expect(page.locator("#similarity-title")).to_have_text("Similarity, block 2 (auxiliary CAM)")
    for panel in PANELS:
        assert page.evaluate(COLOURS, panel) > 1, panel
    expect(page.locator("#strip button")).to_have_count(3)
    expect(page.locator("#curve circle")).to_have_count(3)
    for box, is_present in zip(
        page.locator("#classes input").all(),
        present[0, prediction.class_logits[0].argsort(descending=True)],
        strict=True,
    ):
        assert box.is_checked() == is_present

    # Whatever two steps have taught it: both classes count from here on.
    for box in page.locator("#classes input").all():
        box.check(force=True)
    both = torch.ones_like(present)
    cam, aux_cam = prediction.cams.cam, prediction.cams.further["aux_cam"]
    first = expected(cam, 0.25, 0.7, both)
    assert len(first) >= 3
    expect(page.locator(f'#label-legend li[data-pixels="{first[255]}"]')).to_be_visible()
    assert counts(page, "label") == first
    page.locator("#low").fill("0.4")
    page.locator("#high").fill("0.55")
    assert counts(page, "label") == expected(cam, 0.4, 0.55, both) != first
    page.locator("#source").select_option("aux_cam")
    assert counts(page, "label") == expected(aux_cam, 0.4, 0.55, both)
    page.locator("#high").fill("0.1")
    expect(page.locator("#low-value")).to_have_text("0.10")
    assert counts(page, "label") == expected(aux_cam, 0.1, 0.1, both)
    page.locator("#reset").click()
    page.locator("#source").select_option("cam")
    assert counts(page, "label") == first
    segmentation = torch.nn.functional.interpolate(
        prediction.segmentation_logits, (32, 32), mode="bilinear"
    )
    assert counts(page, "segmentation") == by_label(segmentation.argmax(1).numpy())

    before = page.locator("#curve .patch").get_attribute("points")
    page.locator("#image").click(position={"x": 5, "y": 5})
    expect(page.locator("#readout")).to_contain_text("patch 0, 0:")
    page.locator("#cam").press("ArrowRight")
    page.locator("#cam").press("ArrowDown")
    expect(page.locator("#readout")).to_contain_text("patch 1, 1:")
    expect(page.locator("#curve .patch")).not_to_have_attribute("points", before)
    page.locator("#strip button").nth(2).click()
    expect(page.locator("#similarity-title")).to_have_text("Similarity, block 3")

    assert page.complaints == []
    origin = address.partition("/?")[0]
    assert all(url.startswith((f"{origin}/", "data:")) for url in page.requested)


def test_a_wrong_file_is_answered_with_a_sentence_and_the_page_goes_on(page):
    drop(page, "notes.txt", b"not an image")
    expect(page.locator("#status.bad")).to_have_text(
        "notes.txt: cannot be read as JPEG or PNG, whatever its name says."
    )
    expect(page.locator("#results")).to_be_hidden()
    page.locator("#examples button").first.press("Enter")
    expect(page.locator("#status")).to_contain_text("image12: ")
    expect(page.locator("#results")).to_be_visible()
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    # Chromium itself reports an answer of 422; the page has nothing to add.
    assert all("422" in complaint for complaint in page.complaints)


def test_the_page_without_its_token_is_not_there(page, address):
    answer = page.goto(address.partition("?")[0])
    assert answer.status == 403
