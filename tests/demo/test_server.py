import base64
import re
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from torch.nn.functional import cosine_similarity

from toco.data import voc
from toco.demo.analysis import Analyst
from toco.demo.limits import Limits
from toco.demo.server import Demo, listen
from toco.evaluate.sizes import network_input, resize_bilinear
from toco.metrics.smoothness import patch_similarity

TOKEN = "known-to-the-visitor"  # noqa: S105 - of no server
LIMIT = 200_000
LIMITS = Limits(upload_bytes=LIMIT)


@pytest.fixture(scope="session")
def analyst(trained):
    return Analyst(trained, max_side_px=100)


@pytest.fixture(scope="session")
def demo(analyst, trained):
    return Demo(analyst, "my run", TOKEN, voc.open_split(trained.config.data, "val"), LIMITS)


def client_of(demo, host="127.0.0.1:7860", token=TOKEN):
    return TestClient(
        demo.application(), base_url=f"http://{host}", headers={"Authorization": f"Bearer {token}"}
    )


@pytest.fixture
def client(demo):
    return client_of(demo)


@pytest.fixture
def network(trained, photo):
    """The photo as the network gets it, and all that the method says of it."""
    inputs = network_input(torch.from_numpy(photo)[None], 32)
    return inputs, trained.method.predict(inputs, (1.0, 0.5), True)


@pytest.fixture
def sent(client, photo, file_of):
    return client.post("/api/images?name=photo.png", content=file_of(photo)).json()


def pixels(part):
    return np.frombuffer(base64.b64decode(part["bytes"]), np.uint8).reshape(
        part["height"], part["width"], -1
    )


def test_an_upload_shows_what_the_method_says_of_it(client, sent, photo, trained, network):
    inputs, prediction = network
    np.testing.assert_array_equal(pixels(sent["image"]), photo)
    assert (sent["full_size"], sent["map_size"], sent["grids"]) == (
        [40, 60],
        [32, 32],
        [[4, 4]] * 3,
    )
    np.testing.assert_array_equal(sent["logits"], prediction.class_logits[0].numpy())
    segmentation = resize_bilinear(prediction.segmentation_logits, (32, 32)).argmax(1)[0]
    np.testing.assert_array_equal(pixels(sent["segmentation"])[..., 0], segmentation)
    assert sent["mean_similarity"] == [
        patch_similarity(tokens).item() for tokens in prediction.block_tokens
    ]
    cams = trained.method.cams(inputs, (1.0, 0.5), True)
    for k in range(2):
        maps = np.frombuffer(
            client.get(f"/api/images/{sent['id']}/cams/{k}").content, "<f4"
        ).reshape(2, 32, 32)
        np.testing.assert_array_equal(maps[0], prediction.cams.cam[0, k])
        np.testing.assert_array_equal(maps[1], prediction.cams.further["aux_cam"][0, k])
        # Other passes, and so within rounding.
        np.testing.assert_allclose(maps[0], cams.cam[0, k], atol=1e-5)
        np.testing.assert_allclose(maps[1], cams.further["aux_cam"][0, k], atol=1e-5)
    assert client.get(f"/api/images/{sent['id']}/cams/2").status_code == 404


def refined(client, image, **query):
    answer = client.get(f"/api/images/{image['id']}/refined", params=query)
    assert answer.status_code == 200, answer.json()
    return np.frombuffer(answer.content, np.uint8).reshape(image["map_size"])


@pytest.mark.parametrize("present", [[0], [1], [0, 1]])
def test_the_refined_label_is_the_one_that_training_makes(client, sent, trained, network, present):
    class_labels = torch.zeros(1, 2)
    class_labels[:, present] = 1
    expected = trained.method.pseudo_labels(network[0], class_labels)[0].numpy()
    settings = trained.config.method
    query = {
        "low": settings.low_threshold,
        "high": settings.high_threshold,
        "present": ",".join(map(str, present)),
    }
    # Its CAMs come of other passes: a pixel may stand within rounding of a threshold.
    assert (refined(client, sent, cam="cam", **query) != expected).mean() < 0.005
    assert len(np.unique(expected)) >= 2
    of_aux_cam = refined(client, sent, cam="aux_cam", **query)
    assert (of_aux_cam != expected).any()


def test_refined_labels_follow_the_thresholds_and_the_classes(client, sent):
    uncertain = [
        (refined(client, sent, cam="cam", present="0", low=low, high=high) == 255).sum()
        for low, high in [(0.5, 0.5), (0.4, 0.6), (0.2, 0.8), (0.0, 1.0)]
    ]
    assert uncertain[0] == 0
    assert uncertain == sorted(uncertain)
    assert uncertain[-1] > uncertain[1]
    assert (refined(client, sent, cam="cam", present="", low=0.25, high=0.7) == 0).all()


def test_similarity_is_that_of_the_patch_under_the_point(client, sent, network):
    # Row 1 and column 3 of the four by four patches.
    content = client.get(f"/api/images/{sent['id']}/similarity?y=0.3&x=1").content
    for tokens, found in zip(
        network[1].block_tokens, np.frombuffer(content, "<f4").reshape(3, 16), strict=True
    ):
        expected = cosine_similarity(tokens[0], tokens[0, 1 * 4 + 3][None], dim=-1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found[7] == pytest.approx(1, abs=1e-6)


def test_examples_are_images_of_the_validation_split(client, data_root):
    examples = client.get("/api/about").json()["examples"]
    assert [example["name"] for example in examples] == ["image12", "image13", "image14", "image15"]
    assert all(example["thumbnail"].startswith("data:image/png;base64,") for example in examples)
    shown = client.post("/api/examples/2").json()
    np.testing.assert_array_equal(
        pixels(shown["image"]), np.asarray(Image.open(data_root / "JPEGImages/image14.png"))
    )
    assert client.post("/api/examples/4").status_code == 404


def test_an_example_that_cannot_be_read_is_left_out(analyst, trained, data_root, tmp_path, caplog):
    shutil.copytree(data_root, tmp_path / "data")
    (tmp_path / "data" / "JPEGImages" / "image13.png").write_bytes(b"")
    config = trained.config.data.model_copy(update={"root": tmp_path / "data", "cache": "none"})
    client = client_of(Demo(analyst, "my run", TOKEN, voc.open_split(config, "val"), LIMITS))
    examples = client.get("/api/about").json()["examples"]
    assert [example["name"] for example in examples] == ["image12", "image14", "image15"]
    assert client.post("/api/examples/1").status_code == 200
    assert "An example image is omitted: " in caplog.text
    assert "image13.png" in caplog.text


def test_without_a_data_set_there_are_no_examples(analyst):
    client = client_of(Demo(analyst, "my run", TOKEN, None, LIMITS))
    assert client.get("/api/about").json()["examples"] == []
    assert client.post("/api/examples/0").status_code == 404


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((300, 150, 3), [100, 50]),
        ((3, 300, 3), [1, 100]),
        ((2, 3, 3), [2, 3]),
        ((30, 20), [30, 20]),
    ],
)
def test_any_shape_is_shown_and_large_images_are_shrunk(client, file_of, shape, shown):
    grey_or_colour = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    answer = client.post("/api/images", content=file_of(grey_or_colour)).json()
    assert answer["full_size"] == list(shape[:2])
    assert list(pixels(answer["image"]).shape[:2]) == shown
    assert pixels(answer["segmentation"]).shape == (32, 32, 1)


def test_a_photo_that_was_taken_sideways_is_shown_upright(client, photo, file_of):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    answer = client.post("/api/images", content=file_of(np.rot90(photo), exif=exif)).json()
    np.testing.assert_array_equal(pixels(answer["image"]), photo)


def test_damaged_exif_data_is_a_sentence(client, photo, file_of, monkeypatch):
    def fail(image):
        raise struct.error(
            "required argument is not an integer"
        )  # as PIL does when it writes such data anew

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    answer = client.post("/api/images?name=a.jpg", content=file_of(photo, "JPEG"))
    assert (answer.status_code, answer.json()["error"][:32]) == (
        422,
        "a.jpg: its EXIF data is damaged ",
    )


def test_what_is_no_image_is_refused_with_a_sentence(client, photo, file_of):
    def refusal(content, name):
        answer = client.post(f"/api/images?name={name}", content=content)
        return answer.status_code, answer.json()["error"]

    assert refusal(b"GIF89a", "cat.png") == (
        422,
        "cat.png: cannot be read as JPEG or PNG, whatever its name says.",
    )
    status, sentence = refusal(file_of(photo)[:2000], "cut.png")
    assert status == 422
    assert sentence.startswith("cut.png: cannot be decoded")
    status, sentence = refusal(file_of(np.zeros((4, 4), np.uint16)), "deep.png")
    assert status == 422
    assert "expected an 8-bit" in sentence
    assert refusal(bytes(LIMIT + 1), "x")[0] == 413


def test_wrong_questions_are_answered_with_sentences(client, sent):
    def refusal(path, **query):
        answer = client.get(f"/api/images/{sent['id']}/{path}", params=query)
        return answer.status_code, answer.json()["error"]

    status, sentence = refusal("refined", low=0.8, high=0.2, present="0")
    assert status == 422
    assert "Swap them" in sentence
    assert refusal("refined", low=0.2, high="nan", present="0")[0] == 422
    assert refusal("refined", low=0.2, high=0.7, present="0,2") == (
        422,
        "present is '0,2'; expected numbers below 2.",
    )
    assert refusal("similarity", y=-0.1, x=0) == (
        422,
        "y is '-0.1'; expected a number from 0 to 1.",
    )
    assert refusal("similarity", y=0.1) == (422, "x is None; expected a number from 0 to 1.")


def test_only_the_last_images_are_kept(client, sent):
    for number in range(3):
        assert client.get(f"/api/images/{sent['id']}/cams/0").status_code == 200
        client.post(f"/api/examples/{number}")
    # Asked for before each of the others, so it was never the one unused for longest.
    assert client.get(f"/api/images/{sent['id']}/cams/0").status_code == 200
    for number in range(3):
        client.post(f"/api/examples/{number}")
    answer = client.get(f"/api/images/{sent['id']}/cams/0")
    assert (answer.status_code, "load it again" in answer.json()["error"]) == (404, True)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "toco.localhost:7860", "192.168.0.1:7860"]
)
def test_other_host_names_are_refused(demo, host):
    answer = client_of(demo, host).get("/", params={"token": TOKEN})
    assert answer.status_code == 400
    assert "<html" not in answer.text


@pytest.mark.parametrize("token", ["", "guess", TOKEN[:-1], TOKEN + "x"])
def test_without_the_token_nothing_is_told(demo, file_of, photo, token):
    client = client_of(demo, token=token)
    page = client.get("/", params={"token": token})
    assert page.status_code == 403
    assert "python -m toco demo" in page.json()["error"]
    assert client.get("/", params={"token": token + "é"}).status_code == 403
    assert client.get("/api/about", params={"token": TOKEN}).status_code == 403
    assert client.post("/api/images", content=file_of(photo)).status_code == 403
    assert client.get("/nowhere").status_code == 403


def test_a_host_that_holds_a_path_opens_nothing(demo):
    """From such a host Starlette puts together the page's address, where the token is looked for,
    for any path.
    """
    client = client_of(demo, token="")
    client.headers["Host"] = "127.0.0.1:7860/?"
    # Starlettes of 2026 refuse the host already.
    assert client.get("/api/about", params={"token": TOKEN}).status_code in (400, 403)


def test_an_unexpected_error_is_a_sentence(demo, monkeypatch):
    def fail(image):
        raise RuntimeError("secret")

    monkeypatch.setattr(demo.analyst, "analyse", fail)
    client = TestClient(
        demo.application(),
        base_url="http://localhost",
        headers={"Authorization": f"Bearer {TOKEN}"},
        raise_server_exceptions=False,
    )
    answer = client.post("/api/examples/0")
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("The server failed (RuntimeError)")
    assert "secret" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost"])
def test_the_page_is_whole_and_asks_nobody_else(demo, host):
    client = client_of(demo, host)
    page = client.get("/", params={"token": TOKEN})
    assert page.status_code == 200
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page.text)
    assert set(re.findall(r"https?://[^\s\"']+", page.text)) == {"http://www.w3.org/2000/svg"}
    assert TOKEN not in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_a_taken_port_is_refused_with_a_sentence():
    with listen(0) as first:
        host, port = first.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(
            ValueError, match=f"Cannot serve on port {port} .* Choose another with --port"
        ):
            listen(port)
