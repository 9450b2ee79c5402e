"""An object store on the loopback that speaks as much of S3 as archives need, and can be told to fail."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class ObjectServer:
    """Objects by key, of one bucket; a context manager.

    Attributes:
        objects: What is stored.
        requests: How many there were, by method and the first part of the key.
        failing: Keys that start with this are answered with an error that nobody retries.
        busy: How many more requests are answered with one that everybody retries.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.failing: str | None = None
        self.busy = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.url = "s3://bucket/archive"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_address[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret-that-nobody-may-see",
            "AWS_REGION": "us-east-1",
        }

    def __enter__(self) -> ObjectServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        del request, client_address  # the client did not want the rest


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ObjectServer

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def _key(self) -> str:
        key = unquote(urlsplit(self.path).path).removeprefix("/bucket").lstrip("/")
        with self.owner.lock:
            self.owner.requests[f"{self.command} {key.removeprefix('archive/').split('/')[0]}"] += 1
        return key

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fails(self, key: str) -> bool:
        with self.owner.lock:
            is_busy = self.owner.busy > 0
            self.owner.busy -= is_busy
        if is_busy:
            self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
            return True
        failing = self.owner.failing
        if failing is None or not key.removeprefix("archive/").startswith(failing):
            return False
        self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        return True

    def do_PUT(self) -> None:
        key = self._key()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._fails(key):
            return
        with self.owner.lock:
            if self.headers.get("If-None-Match") == "*" and key in self.owner.objects:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self.owner.objects[key] = body
        self._answer(200, ETag=f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        key = self._key()
        if "list-type" in query:
            self._list(query.get("prefix", [""])[0])
            return
        if self._fails(key):
            return
        with self.owner.lock:
            body = self.owner.objects.get(key)
        if body is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        self._answer(200, body, ETag=f'"{etag}"', Last_Modified=formatdate(0, usegmt=True))

    def do_HEAD(self) -> None:
        self.do_GET()

    def _list(self, prefix: str) -> None:
        with self.owner.lock:
            found = {key: len(body) for key, body in self.owner.objects.items() if key.startswith(prefix)}
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>x</ETag>"
            "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, size in sorted(found.items())
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        self._answer(200, body.encode(), Content_Type="application/xml")
