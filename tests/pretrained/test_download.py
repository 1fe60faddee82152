import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flaxtl import fileio
from flaxtl.errors import UserError
from flaxtl.pretrained.download import resolve_weights

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
        return resolve_weights(request, filename=NAME, url=url, hash=hash, builtin=builtin, notify=ask.said.append)

    ask.said = []
    return ask


def is_at(found, path, origin, trusted=False):
    """Whether it is there and known to be the published one; `origin` is a pattern of where it came from."""
    return (found.path, found.trusted) == (path, trusted) and bool(re.search(f"(?i){origin}", found.source))


def put(directory, content=CONTENT):
    directory.mkdir(parents=True)
    (directory / NAME).write_bytes(content)
    return directory / NAME


def test_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path))
    assert fileio.cache_dir("weights") == tmp_path / "weights"
    monkeypatch.delenv("FLAXTL_CACHE")
    assert fileio.cache_dir("weights").parts[-2:] == ("flaxtl", "weights")


def test_keras_cache_comes_first(tmp_path, ask):
    path = put(tmp_path / "keras/models")
    put(fileio.cache_dir("weights"))
    assert is_at(ask(), path, "keras", trusted=True)
    assert ask.said == []


def test_own_cache(ask):
    path = put(fileio.cache_dir("weights"))
    assert is_at(ask(), path, "flaxtl.*cache", trusted=True)
    assert ask.said == []


def test_another_file_of_that_name_is_passed_over(tmp_path, ask):
    wrong = put(tmp_path / "keras/models", b"another")
    right = put(fileio.cache_dir("weights"))
    assert is_at(ask(), right, "flaxtl.*cache", trusted=True)
    (line,) = ask.said
    assert str(wrong) in line
    assert re.search(rf"(?i)\bmd5\b.*\b{MD5}\b", line)


@pytest.mark.parametrize("hash", [MD5, SHA256])
def test_download_once(ask, server, hash):
    path = fileio.cache_dir("weights") / NAME
    address = f"{server.url}/x.h5"
    assert is_at(ask(url=address, hash=hash), path, rf"\b127\.0\.0\.1:{server.server_port}\b", trusted=True)
    assert path.read_bytes() == CONTENT
    assert is_at(ask(url=address, hash=hash), path, "flaxtl.*cache", trusted=True)
    assert server.asked == ["/x.h5"]
    assert list(fileio.cache_dir("weights").iterdir()) == [path]


def test_a_file_without_a_published_hash_is_not_checked(tmp_path, ask, server):
    address = f"{server.url}/x.h5"
    downloaded = ask(url=address, hash="")
    assert downloaded.path.read_bytes() == CONTENT
    assert address in ask.said[0]
    assert re.search(r"(?i)\b(hash|checksum)", ask.said[0].replace(str(tmp_path), ""))
    assert is_at(ask(url=address, hash=""), downloaded.path, "flaxtl.*cache")
    any_content = put(tmp_path / "keras/models", b"another")
    assert is_at(ask(url=address, hash=""), any_content, "keras")
    assert len(ask.said) == 1


@pytest.mark.parametrize("page", ["gone.h5", "half.h5"])
def test_a_failed_download_without_a_hash_leaves_nothing(ask, server, page):
    with pytest.raises(UserError, match=rf"(?=.*\b{re.escape(NAME)})(?=.*{re.escape(server.url)}/{page}\b)"):
        ask(url=f"{server.url}/{page}", hash="")
    assert list(fileio.cache_dir("weights").iterdir()) == []


def test_a_damaged_cached_file_is_replaced(ask, server):
    path = put(fileio.cache_dir("weights"), CONTENT[:100])
    assert ask(url=f"{server.url}/x.h5").path == path
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "hash", "reason"),
    [
        ("gone.h5", MD5, r"(?<!:)\b404\b"),
        ("x.h5", "0" * 32, r"(?i)\b(hash|checksum)"),
        ("x.h5", "0" * 64, r"(?i)\b(hash|checksum)"),
        # requests before 2.32 does not notice the missing half
        ("half.h5", MD5, r"(?i)\b(connection|hash|checksum)"),
    ],
)
def test_failed_download_leaves_nothing_and_falls_back(tmp_path, ask, server, page, hash, reason):
    builtin = tmp_path / "builtin.safetensors"
    assert is_at(ask(url=f"{server.url}/{page}", hash=hash, builtin=builtin), builtin, r"\bbuilt", trusted=True)
    assert len(ask.said) == 2
    assert "builtin.safetensors" in ask.said[1]
    assert re.search(reason, ask.said[1])
    assert list(fileio.cache_dir("weights").iterdir()) == []
    with pytest.raises(UserError, match=r"--config\.weights\.path="):
        ask(url=f"{server.url}/{page}", hash=hash)


def test_refused_connection(tmp_path, ask, server):
    closed = f"http://127.0.0.1:{server.server_port}/x.h5"
    server.shutdown()
    server.server_close()
    ask(url=closed, builtin=tmp_path / "builtin.safetensors")
    assert re.search(rf"(?i)(?=.*\bconnect)(?=.*\b127\.0\.0\.1:{server.server_port}\b)", ask.said[1])
    with pytest.raises(UserError, match=rf"(?i)(?=.*\b{re.escape(NAME)})(?=.*\bconnect)"):
        ask(url=closed)


def test_a_cache_that_cannot_be_written(tmp_path, ask, server, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=rf"(?=.*\b{re.escape(NAME)})(?=.*Not a directory)(?=.*{server.url}/x\.h5)"):
        ask(url=f"{server.url}/x.h5")


def test_builtin(tmp_path, ask):
    assert is_at(ask("builtin", builtin=tmp_path / "b"), tmp_path / "b", r"\bbuilt", trusted=True)
    with pytest.raises(UserError, match=rf"(?=.*\b{re.escape(NAME)})(?=.*--config\.weights\.path=imagenet\b)"):
        ask("builtin")
    assert ask.said == []


def test_path(tmp_path, ask, monkeypatch):
    (tmp_path / "mine.h5").touch()
    assert is_at(ask(str(tmp_path / "mine.h5")), tmp_path / "mine.h5", r"\bpath\b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ask("~/mine.h5").path == tmp_path / "mine.h5"
    with pytest.raises(UserError, match="'imagnet'"):
        ask("imagnet")
