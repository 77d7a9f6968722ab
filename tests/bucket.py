"""A stand-in for Google Cloud Storage on this machine: as much of its JSON interface as gcsfs and tensorstore use.

Objects have generations, and what is asked under a condition on them is done under that condition: several writers
of one object, and readers beside them, find what they would find in a bucket.
"""

import json
import re
import threading
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)$")
REWRITE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)$")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o$")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o$")


class Bucket:
    """`with Bucket() as url`: serves any bucket at that address until the end."""

    def __init__(self):
        self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}  # (bucket, name) -> generation, bytes
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}  # begun, in several requests
        self.lock = threading.Lock()
        self.generation = 1000
        self.unknown: list[str] = []  # requests that were not understood

    def __enter__(self) -> str:
        handler = type("Handler", (_Handler,), {"bucket": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.url

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> dict | None:
        """None where a condition does not hold."""
        with self.lock:
            if not self.holds(bucket, name, query):
                return None
            self.generation += 1
            self.objects[bucket, name] = self.generation, data
            return self.about(bucket, name)

    def holds(self, bucket: str, name: str, query: dict[str, str]) -> bool:
        generation = self.objects.get((bucket, name), (0, b""))[0]
        return int(query.get("ifGenerationMatch", generation)) == generation

    def about(self, bucket: str, name: str) -> dict:
        generation, data = self.objects[bucket, name]
        link = f"{self.url}/download/storage/v1/b/{bucket}/o/{name.replace('/', '%2F')}?alt=media"
        when = "2026-01-01T00:00:00.000Z"
        facts = {"kind": "storage#object", "bucket": bucket, "name": name, "id": f"{bucket}/{name}/{generation}"}
        facts |= {"size": str(len(data)), "generation": str(generation), "metageneration": "1"}
        return facts | {"mediaLink": link, "timeCreated": when, "updated": when, "storageClass": "STANDARD"}

    def list(self, bucket: str, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], set()
        for of, name in sorted(self.objects):
            if of != bucket or not name.startswith(prefix) or name < start or end is not None and name >= end:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self.about(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """Clients leave connections open, and close them when they end; that is no error here."""


class _Handler(BaseHTTPRequestHandler):
    bucket: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        url, query = self.asked()
        if found := LIST.match(url.path):
            self.answer(200, self.bucket.list(found[1], query))
        elif found := OBJECT.match(url.path):
            self.get(found[1], unquote(found[2]), query)
        elif re.fullmatch(r"/storage/v1/b/[^/]+", url.path):
            self.answer(200, {"kind": "storage#bucket", "name": url.path.rpartition("/")[2], "location": "US"})
        else:
            self.unknown()

    def get(self, bucket: str, name: str, query: dict[str, str]) -> None:
        if (bucket, name) not in self.bucket.objects:
            return self.answer(404, {"error": {"code": 404, "message": f"No such object: {bucket}/{name}"}})
        about = self.bucket.about(bucket, name)
        generation, data = self.bucket.objects[bucket, name]
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        if not self.bucket.holds(bucket, name, query):
            return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        if query.get("alt") != "media":
            return self.answer(200, about)
        headers = {"x-goog-generation": str(generation), "x-goog-stored-content-length": str(len(data))}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self.answer(200, data, headers)
        first = int(span[1]) if span[1] else max(len(data) - int(span[2]), 0)
        last = min(int(span[2]), len(data) - 1) if span[1] and span[2] else len(data) - 1
        if first >= len(data):
            return self.answer(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self.answer(206, data[first : last + 1], headers)

    def do_POST(self) -> None:
        url, query = self.asked()
        body = self.body()
        if found := UPLOAD.match(url.path):
            self.upload(found[1], query, body)
        elif found := REWRITE.match(url.path):
            source = self.bucket.objects.get((found[1], unquote(found[2])))
            if source is None:
                return self.answer(404, {"error": {"code": 404}})
            about = self.bucket.put(found[3], unquote(found[4]), source[1], {})
            self.answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": about})
        elif url.path.startswith("/resumable/"):
            self.resume(url.path.rpartition("/")[2], query, body)
        elif url.path == "/batch/storage/v1":
            self.batch(body)
        else:
            self.unknown()

    def upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        if query["uploadType"] == "media":
            return self.stored(self.bucket.put(bucket, query["name"], body, query))
        if query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            facts, content = message_from_bytes(head + body, policy=policy.HTTP).iter_parts()
            name = json.loads(facts.get_payload(decode=True))["name"]
            # Not the parser's payload, which changes ends of lines: what stands between the last two boundaries.
            boundary = b"--" + content_boundary(self.headers["Content-Type"])
            raw = body.split(boundary)[2].partition(b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n")[2]
            return self.stored(self.bucket.put(bucket, name, raw.removesuffix(b"\n").removesuffix(b"\r"), query))
        name = json.loads(body)["name"] if body else query["name"]
        key = str(len(self.bucket.uploads))
        self.bucket.uploads[key] = bucket, name, bytearray()
        return self.answer(200, b"", {"Location": f"{self.bucket.url}/resumable/{key}"})

    def do_PUT(self) -> None:
        url, query = self.asked()
        body = self.body()
        if url.path.startswith("/resumable/"):
            return self.resume(url.path.rpartition("/")[2], query, body)
        return self.unknown()

    def resume(self, key: str, query: dict[str, str], body: bytes) -> None:
        """The next part of an upload; the one that says how long all of it is ends it."""
        bucket, name, sent = self.bucket.uploads[key]
        sent += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            return self.answer(308, b"", {"Range": f"bytes=0-{len(sent) - 1}"})
        return self.stored(self.bucket.put(bucket, name, bytes(sent), query))

    def do_DELETE(self) -> None:
        url, query = self.asked()
        found = OBJECT.match(url.path)
        if not found:
            return self.unknown()
        return self.answer(self.delete(found[1], unquote(found[2]), query))

    def delete(self, bucket: str, name: str, query: dict[str, str]) -> int:
        with self.bucket.lock:
            if (bucket, name) not in self.bucket.objects:
                return 404
            if not self.bucket.holds(bucket, name, query):
                return 412
            del self.bucket.objects[bucket, name]
            return 204

    def batch(self, body: bytes) -> None:
        """Several deletions, each answered in a part of its own."""
        parts = []
        for number, path in enumerate(re.findall(rb"DELETE (\S+) HTTP", body), 1):
            found = OBJECT.match(urlsplit(path.decode()).path)
            status = self.delete(found[1], unquote(found[2]), {}) if found else 400
            parts.append(
                f"--part\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                f"HTTP/1.1 {status} {'No Content' if status == 204 else 'Error'}\r\n\r\n\r\n"
            )
        text = "".join(parts) + "--part--"
        self.answer(200, text.encode(), {"Content-Type": "multipart/mixed; boundary=part"})

    def stored(self, about: dict | None) -> None:
        if about is None:
            self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        else:
            self.answer(200, about)

    def asked(self):
        url = urlsplit(self.path)
        return url, {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def unknown(self) -> None:
        self.bucket.unknown.append(f"{self.command} {self.path}")
        self.answer(501, {"error": {"code": 501, "message": f"not understood: {self.command} {self.path}"}})

    def answer(self, status: int, data=b"", headers=None) -> None:
        if isinstance(data, dict):
            data, headers = json.dumps(data).encode(), {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(data)


def content_boundary(kind: str) -> bytes:
    found = re.search(r'boundary="?([^";]+)', kind)
    assert found, kind
    return found[1].encode()
