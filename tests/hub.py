"""A stand-in for the Hugging Face hub: a server on this machine that keeps files in a folder, for the real client."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a hub whose files lie in `folder`/OWNER/NAME."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            owner, name, kind, revision, *file = unquote(urlsplit(self.path).path).strip("/").split("/")
            path = folder.joinpath(owner, name, *file)
            if kind != "resolve" or not path.is_file() or revision not in ("main", COMMIT):
                missing = {"X-Error-Code": "EntryNotFound" if (folder / owner / name).is_dir() else "RepoNotFound"}
                return self.answer(404, b"{}", missing)
            content = path.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self.answer(
                200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))}
            )

        def do_POST(self) -> None:
            body = (
                self.rfile.read(int(self.headers["Content-Length"]))
                if "Content-Length" in self.headers
                else self.chunks()
            )
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if "Bearer " not in self.headers.get("Authorization", ""):
                return self.answer(401, b'{"error": "who are you?"}')
            if parts[:3] == ["api", "repos", "create"]:
                asked = json.loads(body)
                (folder / asked["organization"] / asked["name"]).mkdir(parents=True, exist_ok=True)
                return self.say({"url": f"http://{self.headers['Host']}/{asked['organization']}/{asked['name']}"})
            if parts[-2:-1] == ["preupload"]:
                files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                         for each in json.loads(body)["files"]]  # fmt: skip
                return self.say({"files": files})
            if parts[-2:-1] == ["commit"]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        path = folder.joinpath(*parts[2:4], line["value"]["path"])
                        path.write_bytes(base64.b64decode(line["value"]["content"]))
                address = f"http://{self.headers['Host']}/{parts[2]}/{parts[3]}"
                return self.say({"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""})
            if parts == ["api", "validate-yaml"]:
                return self.say({"errors": [], "warnings": []})
            return self.answer(404, b"{}")

        def chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def say(self, content: object) -> None:
            self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
