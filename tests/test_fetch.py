import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flaxtl import cache
from flaxtl.errors import UserError
from flaxtl.weights.fetch import Located, locate

CONTENT = b"weights" * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "tiny_notop.h5"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/gone.h5":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        cut = {"/half.h5": len(CONTENT) // 2}.get(self.path, len(CONTENT))
        self.wfile.write(CONTENT[:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.asked = []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield httpd
        httpd.shutdown()


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """locate() with both caches in an empty folder; `ask.said` collects its sentences."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path / "flaxtl"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def ask(request="imagenet", *, url="http://127.0.0.1:9/never.h5", hash=MD5, builtin=None):
        return locate(request, filename=NAME, url=url, hash=hash, builtin=builtin, say=ask.said.append)

    ask.said = []
    return ask


def put(directory, content=CONTENT):
    directory.mkdir(parents=True)
    (directory / NAME).write_bytes(content)
    return directory / NAME


def test_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path))
    assert cache.directory("weights") == tmp_path / "weights"
    monkeypatch.delenv("FLAXTL_CACHE")
    assert cache.directory("weights").parts[-2:] == ("flaxtl", "weights")


def test_keras_cache_comes_first(tmp_path, ask):
    path = put(tmp_path / "keras/models")
    put(cache.directory("weights"))
    assert ask() == Located(path, "Keras' cache", trusted=True)
    assert ask.said == []


def test_own_cache(ask):
    path = put(cache.directory("weights"))
    assert ask() == Located(path, "flaxtl's cache", trusted=True)
    assert ask.said == []


def test_another_file_of_that_name_is_passed_over(tmp_path, ask):
    wrong = put(tmp_path / "keras/models", b"another")
    right = put(cache.directory("weights"))
    assert ask() == Located(right, "flaxtl's cache", trusted=True)
    assert ask.said == [f"{wrong} is passed over: its md5 is not {MD5}, so it is another file or a half one."]


@pytest.mark.parametrize("hash", [MD5, SHA256])
def test_download_once(ask, server, hash):
    path = cache.directory("weights") / NAME
    address = f"{server.url}/x.h5"
    assert ask(url=address, hash=hash) == Located(path, f"downloaded from 127.0.0.1:{server.server_port}", trusted=True)
    assert path.read_bytes() == CONTENT
    assert ask(url=address, hash=hash) == Located(path, "flaxtl's cache", trusted=True)
    assert server.asked == ["/x.h5"]
    assert list(cache.directory("weights").iterdir()) == [path]


def test_a_file_without_a_published_hash_is_not_checked(tmp_path, ask, server):
    address = f"{server.url}/x.h5"
    downloaded = ask(url=address, hash="")
    assert downloaded.path.read_bytes() == CONTENT
    assert ask.said[0].endswith(" No hash of this file is published, so what arrives is not checked.")
    assert ask(url=address, hash="") == Located(downloaded.path, "flaxtl's cache")
    any_content = put(tmp_path / "keras/models", b"another")
    assert ask(url=address, hash="") == Located(any_content, "Keras' cache")
    assert len(ask.said) == 1


@pytest.mark.parametrize("page", ["gone.h5", "half.h5"])
def test_a_failed_download_without_a_hash_leaves_nothing(ask, server, page):
    with pytest.raises(UserError, match=r"tiny_notop\.h5 could not be downloaded"):
        ask(url=f"{server.url}/{page}", hash="")
    assert list(cache.directory("weights").iterdir()) == []


def test_a_damaged_cached_file_is_replaced(ask, server):
    path = put(cache.directory("weights"), CONTENT[:100])
    assert ask(url=f"{server.url}/x.h5").path == path
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "hash", "reason"),
    [
        ("gone.h5", MD5, "answered with HTTP status 404"),
        ("x.h5", "0" * 32, "what arrived has another hash than the published one"),
        ("x.h5", "0" * 64, "what arrived has another hash than the published one"),
        (
            "half.h5",
            MD5,
            "the connection to .* failed|another hash",
        ),  # requests before 2.32 does not notice the missing half
    ],
)
def test_failed_download_leaves_nothing_and_falls_back(tmp_path, ask, server, page, hash, reason):
    builtin = tmp_path / "builtin.safetensors"
    assert ask(url=f"{server.url}/{page}", hash=hash, builtin=builtin) == Located(
        builtin, "built into flaxtl", trusted=True
    )
    assert len(ask.said) == 2
    assert ask.said[1].startswith("The download failed: ")
    assert ask.said[1].endswith(" The weights built into flaxtl, builtin.safetensors, are used in their place.")
    assert re.search(reason, ask.said[1])
    assert list(cache.directory("weights").iterdir()) == []
    with pytest.raises(UserError, match=r"--config.weights.path=FILE"):
        ask(url=f"{server.url}/{page}", hash=hash)


def test_refused_connection(tmp_path, ask, server):
    closed = f"http://127.0.0.1:{server.server_port}/x.h5"
    server.shutdown()
    server.server_close()
    ask(url=closed, builtin=tmp_path / "builtin.safetensors")
    assert f"the connection to 127.0.0.1:{server.server_port} failed." in ask.said[1]
    with pytest.raises(UserError, match=r"tiny_notop\.h5 could not be downloaded: the connection to"):
        ask(url=closed)


def test_a_cache_that_cannot_be_written(tmp_path, ask, server, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"tiny_notop\.h5 could not be downloaded: .*Not a directory.*; get http"):
        ask(url=f"{server.url}/x.h5")


def test_builtin(tmp_path, ask):
    assert ask("builtin", builtin=tmp_path / "b") == Located(tmp_path / "b", "built into flaxtl", trusted=True)
    with pytest.raises(UserError, match=r"no weights for tiny_notop\.h5 ship with flaxtl"):
        ask("builtin")
    assert ask.said == []


def test_path(tmp_path, ask, monkeypatch):
    (tmp_path / "mine.h5").touch()
    assert ask(str(tmp_path / "mine.h5")) == Located(tmp_path / "mine.h5", "given path")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ask("~/mine.h5").path == tmp_path / "mine.h5"
    with pytest.raises(UserError, match="no weight file 'imagnet'"):
        ask("imagnet")
