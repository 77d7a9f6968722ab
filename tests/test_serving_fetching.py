"""Files behind addresses: none of this machine or its network, and bounded ones alone."""

import http.server
import threading

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from cogvx_jax.serving import fetching
from cogvx_jax.serving.fetching import fetch, is_public
from cogvx_jax.serving.refusals import Refused


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        places = {"/moved": "/file?x=1", "/away": "http://10.0.0.1/", "/round": "/round", "/odd": "file:///etc/passwd"}
        if self.path in places:
            self.send_response(302)
            self.send_header("Location", places[self.path])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(b"x" * 1000 if self.path != "/file?x=1" else b"file")

    def log_message(self, *about):
        pass


@pytest.fixture(scope="module")
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()


def here(address):
    """As if this machine were of the open internet, and nothing else were."""
    return address in ("127.0.0.1", "::1")


def test_a_file(url):
    assert fetch(f"{url}/file?x=1", "image", 1000, here) == b"file"
    assert fetch(f"{url}/moved", "image", 1000, here) == b"file"


@pytest.mark.parametrize(
    "path, most, said",
    [
        ("/large", 999, "more than 999 bytes"),
        ("/none", 1000, "answers 404"),
        ("/away", 1000, "open internet"),
        ("/round", 1000, "leads on"),
        ("/odd", 1000, "begin with http"),
    ],
)
def test_what_is_refused(url, path, most, said):
    with pytest.raises(Refused, match=said) as caught:
        fetch(url + path, "image", most, here)
    assert caught.value.param == "image"


@pytest.mark.parametrize("place", ["http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0.0.0.0/"])
def test_this_machine_is_refused(place):
    with pytest.raises(Refused, match="open internet"):
        fetch(place, "image", 1000)


@pytest.mark.parametrize("place", ["ftp://example.com/", "http://", "http://a:b@example.com/", "http://[/"])
def test_other_addresses_are_refused(place):
    with pytest.raises(Refused):
        fetch(place, "image", 1000)


@pytest.mark.parametrize(
    "address", "10.1.2.3 192.168.0.1 169.254.169.254 100.64.0.1 ::ffff:10.0.0.1 fe80::1%eth0 fd00::1 224.0.0.1".split()
)
def test_private_addresses(address):
    assert not is_public(address)


def test_public_addresses():
    assert is_public("93.184.216.34") and is_public("2606:2800:220:1::1")


def test_a_server_that_says_nothing(monkeypatch):
    import socket

    monkeypatch.setattr(fetching, "CONNECT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(Refused, match="could not be fetched"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/", "image", 1000, here)
