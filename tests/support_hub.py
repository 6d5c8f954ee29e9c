"""A Hugging Face hub on the loopback interface: real names and file layouts, tiny files.

It speaks what huggingface_hub asks: the repository's listing, HEAD and GET of files with ranges,
the commit and the error headers. A gated repository answers 403 for its files, as the real one
does for an account that has not agreed; a breaking one closes the connection inside a file, a
stalling one goes silent there. Files in Xet storage are redirected to a content network, with the
headers `X-Xet-Hash`, `X-Linked-ETag`, `X-Linked-Size` and the link `xet-auth` to a route that gives
a token for the storage, as huggingface.co answers for its large files.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What one repository holds, and how it behaves."""

    files: dict[str, bytes]
    gated: bool = False
    breaks: str = ""
    """A file that is broken off in the middle."""
    breaks_left: int = 0
    """How often it still is; -1 for always."""
    stalls: str = ""
    """A file that is sent to the middle, and no further while the hub serves."""
    xet: dict[str, str] = field(default_factory=dict)
    """Hashes of the files that lie in Xet storage, by their names."""
    storage: str = "http://127.0.0.1:9"
    """Address of the Xet storage that the token is for; "" where none is given."""


@dataclass
class Hub:
    """The server's address, what it serves, and what it was asked."""

    repositories: dict[str, Repository]
    endpoint: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and the bearer token (or "") of every request."""
    ranges: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of every request for a part of a file."""
    ended: threading.Event = field(default_factory=threading.Event)

    def gets(self) -> list[str]:
        """Return the names of the files that were downloaded, in order."""
        return [
            path.split("/resolve/")[1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by their names below it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            return None

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.requests.append((self.command, path, token))
            if wanted := self.headers.get("Range", ""):
                hub.ranges.append((path, wanted))
            if "/xet-read-token/" in path:
                self._token(path, body=body)
            elif path.startswith("/api/datasets/"):
                name, _, revision = path.removeprefix("/api/datasets/").partition("/revision/")
                self._listing(f"datasets/{name}", revision or "main", body=body)
            elif path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                self._listing(name, revision or "main", body=body)
            elif "/resolve/" in path:
                name, _, rest = path.removeprefix("/").partition("/resolve/")
                revision, _, file = rest.partition("/")
                self._file(name, revision, file, body=body)
            elif path.startswith("/content-network/"):
                name, _, file = path.removeprefix("/content-network/").partition("//")
                self._content(hub.repositories[name], file, body=body)
            else:
                self._error(404, "EntryNotFound", "Not found", body=body)

        def _token(self, path: str, *, body: bool) -> None:
            kind, name = path.removeprefix("/api/").split("/xet-read-token/")[0].split("/", 1)
            repository = hub.repositories[name if kind == "models" else f"{kind}/{name}"]
            if not repository.storage:
                self._error(403, "", "No token for this storage", body=body)
                return
            headers = {
                "X-Xet-Cas-Url": repository.storage,
                "X-Xet-Access-Token": "xet-token",
                "X-Xet-Token-Expiration": "4102444800",  # in 2100
            }
            self._send(200, b"{}", body=body, headers=headers, kind="application/json")

        def _redirect(self, name: str, repository: Repository, file: str, *, body: bool) -> None:
            # Another host: redirects to that of the hub itself are followed for the headers.
            network = hub.endpoint.replace("127.0.0.1", "localhost")
            short = name if name.startswith("datasets/") else f"models/{name}"
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-ETag": f'"{hashlib.sha256(repository.files[file]).hexdigest()}"',
                "X-Linked-Size": str(len(repository.files[file])),
                "X-Xet-Hash": repository.xet[file],
                "Link": f'<{hub.endpoint}/api/{short}/xet-read-token/{COMMIT}>; rel="xet-auth"',
                "Location": f"{network}/content-network/{quote(name)}//{quote(file)}",
            }
            self._send(302, b"", body=body, headers=headers)

        def _listing(self, name: str, revision: str, *, body: bool) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                self._error(401, "RepoNotFound", "Repository not found", body=body)
                return
            if revision not in ("main", COMMIT):
                self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}", body=body)
                return
            siblings = [
                {"rfilename": file, "size": len(content), "blobId": _etag(content)}
                for file, content in repository.files.items()
            ]
            listing = {
                "id": name,
                "modelId": name,
                "sha": COMMIT,
                "private": False,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
            self._send(200, json.dumps(listing).encode(), body=body, kind="application/json")

        def _file(self, name: str, revision: str, file: str, *, body: bool) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                self._error(401, "RepoNotFound", "Repository not found", body=body)
            elif repository.gated:
                message = f"Access to model {name} is restricted and you are not in the list."
                self._error(403, "GatedRepo", message, body=body)
            elif revision not in ("main", COMMIT):
                self._error(404, "RevisionNotFound", "Invalid rev id", body=body)
            elif file not in repository.files:
                self._error(404, "EntryNotFound", "Entry not found", body=body)
            elif file in repository.xet:
                self._redirect(name, repository, file, body=body)
            else:
                self._content(repository, file, body=body)

        def _content(self, repository: Repository, file: str, *, body: bool) -> None:
            content = repository.files[file]
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{_etag(content)}"',
                "Accept-Ranges": "bytes",
            }
            start = 0
            wanted = self.headers.get("Range", "")
            if body and wanted.startswith("bytes="):
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status = 206 if start else 200
            breaks = body and file == repository.breaks and repository.breaks_left != 0
            stalls = body and file == repository.stalls
            if not (breaks or stalls):
                self._send(status, content[start:], body=body, headers=headers)
                return
            repository.breaks_left -= breaks
            middle = len(content) // 2
            self._begin(status, len(content) - start, headers, "application/octet-stream")
            self.wfile.write(content[start:middle])
            self.wfile.flush()
            if stalls:
                hub.ended.wait()
            self.close_connection = True  # although more was promised

        def _error(self, status: int, code: str, message: str, *, body: bool) -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            content = json.dumps({"error": message}).encode()
            self._send(status, content, body=body, headers=headers, kind="application/json")

        def _send(
            self,
            status: int,
            content: bytes,
            *,
            body: bool,
            headers: Mapping[str, str] | None = None,
            kind: str = "application/octet-stream",
        ) -> None:
            self._begin(status, len(content), headers or {}, kind)
            if body:
                self.wfile.write(content)

        def _begin(self, status: int, size: int, headers: Mapping[str, str], kind: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(size))
            self.end_headers()

    return Handler


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serve repositories by their names until the block ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
