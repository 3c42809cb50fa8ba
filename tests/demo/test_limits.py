"""The demo's server on a socket of its own, against visitors who send too little, too much or too
often.
"""

import asyncio
import http.client
import json
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from toco.demo.analysis import Analyst
from toco.demo.limits import Limits
from toco.demo.server import Demo, listen, server_of

TOKEN = "known-to-the-visitor"  # noqa: S105 - of no server
LIMITS = Limits(
    upload_bytes=100_000, pixels=10_000, uploads=1, connections=3, head_s=0.5, upload_s=1.0
)
PATIENCE_S = 20.0
"""No server that works takes so long."""


@pytest.fixture
def limits():
    return LIMITS


@pytest.fixture
def demo(trained, limits):
    return Demo(Analyst(trained, max_side_px=100), "my run", TOKEN, None, limits)


@pytest.fixture
def server(demo):
    server = server_of(demo)
    with listen(0) as listening:
        server.address = listening.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_until(lambda: server.started)
        yield server
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture
def connect(server):
    opened = []

    def connect():
        opened.append(socket.create_connection(server.address, timeout=PATIENCE_S))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def wait_until(is_so):
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def head(num_bytes, path="/api/images?name=a.png", method="POST"):
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {TOKEN}",
        f"Content-Length: {num_bytes}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer_of(connection):
    """Status and body, up to the end of the connection or of what was announced."""
    content = b""
    while b"\r\n\r\n" not in content:
        received = connection.recv(65536)
        assert received, content
        content += received
    header, _, body = content.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in header.split(b"\r\n")
        if line.lower().startswith(b"content-le")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return int(header.split()[1]), body


def headers_of(server, path, method="GET", **headers):
    """Status and headers of an answer; the token is known unless another is given."""
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE_S)
    connection.request(method, path, headers={"Authorization": f"Bearer {TOKEN}", **headers})
    answer = connection.getresponse()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def is_closed(connection):
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True


def test_every_answer_is_kept_from_being_stored_or_framed(server, demo, monkeypatch):
    def headers(*request, **headers):
        status, found = headers_of(server, *request, **headers)
        assert (found["cache-control"], found["x-frame-options"]) == ("no-store", "DENY")
        assert found["referrer-policy"] == "no-referrer"
        assert (
            found["cross-origin-resource-policy"]
            == found["cross-origin-opener-policy"]
            == "same-origin"
        )
        assert found["x-content-type-options"] == "nosniff"
        return status

    assert headers(f"/?token={TOKEN}") == 200
    assert headers("/api/about") == 200
    assert headers("/nowhere") == 404
    assert headers("/api/about", Authorization="Bearer guess") == 403
    assert headers("/api/about", Host="evil.example") == 400
    monkeypatch.setattr(demo, "_about", object())
    assert headers("/api/about") == 500


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127",
        head(0, "/api/about", "GET") + b"GET / HTTP/1.1\r\nHost:",
    ],
)
def test_a_half_sent_request_is_closed(server, connect, sent):
    connection = connect()
    connection.sendall(sent)
    if b"about" in sent:
        assert answer_of(connection)[0] == 200
    assert is_closed(connection)
    wait_until(lambda: not server.server_state.connections)


def test_bytes_that_drip_in_do_not_prolong_a_request(connect):
    connection = connect()

    def drip():
        try:
            connection.sendall(b"G")
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    wait_until(drip)


@pytest.mark.parametrize("limits", [replace(LIMITS, head_s=PATIENCE_S)])
def test_too_many_connections_are_answered_503_and_far_too_many_closed(server, connect):
    silent = [connect() for _ in range(4)]
    wait_until(lambda: len(server.server_state.connections) == 4)
    served = connect()
    served.sendall(head(0, "/api/about", "GET"))
    assert answer_of(served) == (503, b"Service Unavailable")
    more = [connect() for _ in range(20)]
    assert all(map(is_closed, more[3:]))
    for connection in (*silent, served, *more):
        connection.close()
    wait_until(lambda: not server.server_state.connections)
    again = connect()
    again.sendall(head(0, "/api/about", "GET"))
    assert answer_of(again)[0] == 200


@pytest.mark.parametrize("num_bytes", [LIMITS.upload_bytes + 1, 40 * 2**20])
def test_an_upload_that_is_too_large_is_read_and_answered_with_the_sentence(connect, num_bytes):
    connection = connect()
    connection.sendall(head(num_bytes) + bytes(num_bytes))
    status, body = answer_of(connection)
    assert status == 413
    assert json.loads(body)["error"].startswith("Expected a file of at most 0.0953674 MiB")
    # The connection is as good as before.
    connection.sendall(head(0, "/api/about", "GET"))
    assert answer_of(connection)[0] == 200


def test_an_upload_that_stops_is_answered_and_lets_the_next_one_in(connect, photo, file_of):
    stopped, waiting = connect(), connect()
    stopped.sendall(head(1000) + b"x")
    content = file_of(photo)
    waiting.sendall(head(len(content)) + content)
    status, body = answer_of(stopped)
    assert (status, json.loads(body)["error"]) == (
        408,
        "The file did not arrive within 1 s; send it again.",
    )
    assert is_closed(stopped)
    assert answer_of(waiting)[0] == 200


def test_an_image_of_too_many_pixels_is_refused(connect, file_of, photo):
    content = file_of(photo.repeat(10, 0))
    connection = connect()
    connection.sendall(head(len(content)) + content)
    status, body = answer_of(connection)
    assert (status, json.loads(body)["error"]) == (
        422,
        "a.png: expected at most 10000 pixels, but it has 60 x 400.",
    )


def test_only_some_uploads_are_in_memory_at_once(demo, monkeypatch):
    inside, most = 0, 0

    async def content(request):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        return b""

    async def look(read):
        nonlocal inside
        await asyncio.sleep(0.01)
        inside -= 1

    monkeypatch.setattr(demo, "_content", content)
    monkeypatch.setattr(demo, "_look", look)

    async def upload_many():
        await asyncio.gather(*(demo.upload(SimpleNamespace(query_params={})) for _ in range(8)))

    asyncio.run(upload_many())
    assert (inside, most) == (0, LIMITS.uploads)


def test_a_visitor_who_leaves_while_uploading_leaves_no_traceback(server, connect, capfd):
    connection = connect()
    connection.sendall(head(1000) + b"x")
    wait_until(lambda: server.server_state.tasks)
    connection.close()
    wait_until(lambda: not server.server_state.tasks)
    again = connect()
    again.sendall(head(0, "/api/about", "GET"))
    assert answer_of(again)[0] == 200
    assert capfd.readouterr() == ("", "")
