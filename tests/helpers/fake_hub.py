"""A server on this machine that answers as the Hugging Face Hub does."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """Serves `server.repos`: path of a repository, 'org/net' or 'datasets/org/set' -> revision -> file -> content.

    All revisions of a repository are at the commit `server.commits[path]`, by default COMMIT; 'org/secret' is gated.
    """

    def do_HEAD(self):
        self.server.requests.append(self.path)
        path = unquote(self.path).partition("?")[0].lstrip("/")
        match = re.fullmatch(
            r"(?:api/models/|(?=datasets/)|api/(?=datasets/))?(.+?)/(resolve|tree|revision)/(.+)", path
        )
        repo, action, rest = match.groups() if match else ("", "", "")
        if repo in ("org/secret", "datasets/org/secret"):
            return self._send(403, {"X-Error-Code": "GatedRepo"})
        if repo not in self.server.repos:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        commit = self.server.commits.get(repo, COMMIT)
        revisions = self.server.repos[repo]
        revisions = revisions | {commit: next(iter(revisions.values()))}
        revision = next((name for name in revisions if f"{rest}/".startswith(f"{name}/")), None)
        if revision is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        files = revisions[revision]
        if action == "revision":
            return self._send_json({"id": repo.removeprefix("datasets/"), "sha": commit, "siblings": []})
        if action == "tree":
            return self._send_json(
                [{"type": "file", "path": name, "oid": "0", "size": len(files[name])} for name in files]
            )
        name = rest.removeprefix(f"{revision}/")
        if name not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self._send(200, {"ETag": f'"{commit[:4]}-{name}"', "X-Repo-Commit": commit}, files[name])

    do_GET = do_HEAD

    def _send_json(self, value):
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in (*headers.items(), ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serve_hub(repos: Mapping[str, Mapping[str, Mapping[str, bytes]]]) -> Iterator[ThreadingHTTPServer]:
    """Serve `repos` in a thread; see `FakeHub`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.requests, server.repos, server.commits = [], repos, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def use_hub(server: ThreadingHTTPServer, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub use the server and a cache folder; it reads its environment only when it is imported."""
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.requests.clear()
