import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from protocaffe.zoo import fetch as module


class Server:
    """A real HTTP server that gives ``files`` by path, in one of several bad manners.

    ``manners`` maps a path to a function of the request handler, the content and the number of
    this request for the path; without one the server is as good as they come.
    """

    def __init__(self):
        self.files = {}
        self.manners = {}
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append((self.path, self.headers.get("Range")))
                times = sum(path == self.path for path, _ in server.requests)
                content = server.files.get(self.path)
                manner = server.manners.get(self.path, good)
                if content is None and manner is good:
                    self.send_error(404)
                else:
                    manner(self, content, times)

            def log_message(self, *words):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def ranges(self, path):
        return [each for asked, each in self.requests if asked == path]


def wanted(handler):
    match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    return int(match[1]) if match else 0


def head(handler, status, headers):
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key, str(value))
    handler.end_headers()


def good(handler, content, times, upto=None, tag='"1"'):
    """Give what was asked for; ``upto`` bytes at most, then hang up."""
    start = wanted(handler)
    if start and handler.headers.get("If-Range", tag) != tag:
        start = 0
    if start >= len(content):
        return head(handler, 416, {"Content-Range": f"bytes */{len(content)}"})
    headers = {"Content-Length": len(content) - start, "ETag": tag}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    head(handler, 206 if start else 200, headers)
    handler.wfile.write(content[start:][:upto])
    return None


def reset(handler, content, times):
    """Hang up without a word, rudely."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.setattr(module, "TIMEOUT", 5)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def content():
    """200 kB that nothing else has."""
    return bytes(hashlib.shake_256(b"weights").digest(200_000))
