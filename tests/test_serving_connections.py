"""What connections may do: sizes of bodies, deadlines, pages of other origins."""

import socket
import time

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import CREATE, Site, refused, site_fixture

from cogvx_jax.serving.guards import ImpatientProtocol

waiting = site_fixture(works=False)  # what is asked for waits


def connect(site):
    made = socket.create_connection(("127.0.0.1", site.port), timeout=20)
    return made


def read_all(connection):
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except (ConnectionResetError, TimeoutError):
        pass
    return data


def test_a_body_that_is_too_large_is_refused_on_the_way(waiting):
    """By its declared length at once, and without one when it has come so far."""
    refused(httpx.post(waiting.url + CREATE, content=bytes(2**21), headers={"content-type": "text/json"}), 413)
    connection = connect(waiting)
    connection.sendall(
        b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    sent, chunk = 0, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    try:
        while sent < 64 * 2**20:
            connection.sendall(chunk)
            sent += 0x10000
    except OSError:
        pass
    assert sent < 2**20 + 2**23, sent  # the limit, and what the system's buffers hold
    answer = read_all(connection)
    assert not answer or b" 413 " in answer.split(b"\r\n")[0]


def test_a_lie_about_the_length(waiting):
    connection = connect(waiting)
    connection.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{")
    answer = read_all(connection)
    assert b" 413 " in answer and b"body_too_large" in answer and b"connection: close" in answer


def test_silent_connections_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(ImpatientProtocol, "silent", 0.5)
    site = Site(tmp_path, works=False)
    try:
        began = time.monotonic()
        sockets = [connect(site) for _ in range(200)]
        for number, one in enumerate(sockets):
            if number % 2:
                one.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\n")  # and nothing more
        assert all(read_all(one) == b"" for one in sockets)
        assert time.monotonic() - began < 15
        assert httpx.get(site.url + "/health").status_code == 200
    finally:
        site.close()


def test_a_body_that_stops_is_answered(tmp_path):
    site = Site(tmp_path, works=False, silent=0.5)
    try:
        connection = connect(site)
        connection.sendall(
            b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nContent-Type: application/json\r\n\r\n{"
        )
        answer = read_all(connection)
        assert b" 408 " in answer and b"request_timeout" in answer
    finally:
        site.close()


def test_pages_of_other_origins_are_refused(waiting):
    for origin, status in (("http://evil.example", 403), (waiting.url, 200), ("null", 403), ("http://[", 403)):
        answer = httpx.post(waiting.url + CREATE, json={"prompt": "x"}, headers={"Origin": origin})
        assert answer.status_code == status, origin


def test_names_that_are_made_to_mean_this_machine(tmp_path):
    site = Site(tmp_path, works=False, hosts=("127.0.0.1", "localhost"))
    try:
        for host, status in (
            ("127.0.0.1:1", 200),
            ("localhost", 200),
            ("evil.example:8000", 403),
            ("[", 403),
            ("", 403),
        ):
            assert httpx.get(site.url + "/health", headers={"Host": host}).status_code == status, host
    finally:
        site.close()
