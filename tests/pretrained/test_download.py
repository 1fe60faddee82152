import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flaxtl import fileio
from flaxtl.errors import UserError
from flaxtl.pretrained.download import cached_files, resolve_weights

CONTENT = b"weights" * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "tiny_notop.h5"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
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
        httpd.requests = []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield httpd
        httpd.shutdown()


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """`resolve_weights` with both caches in an empty folder; `resolve.messages` collects its messages."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path / "flaxtl"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def resolve(weights="imagenet", *, url="http://127.0.0.1:9/never.h5", hash=MD5, builtin=None):
        return resolve_weights(
            weights, filename=NAME, url=url, hash=hash, builtin=builtin, notify=resolve.messages.append
        )

    resolve.messages = []
    return resolve


def assert_resolved(resolved, path, source, trusted=False):
    """Check the result of `resolve`; `source` is a regular expression."""
    assert (resolved.path, resolved.trusted) == (path, trusted)
    assert re.search(f"(?i){source}", resolved.source)


def put(directory, content=CONTENT):
    directory.mkdir(parents=True)
    (directory / NAME).write_bytes(content)
    return directory / NAME


def test_cache_dir_follows_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path))
    assert fileio.cache_dir("weights") == tmp_path / "weights"
    monkeypatch.delenv("FLAXTL_CACHE")
    assert fileio.cache_dir("weights").parts[-2:] == ("flaxtl", "weights")


def test_imagenet_prefers_keras_cache(tmp_path, resolve):
    path = put(tmp_path / "keras/models")
    put(fileio.cache_dir("weights"))
    assert_resolved(resolve(), path, "keras", trusted=True)
    assert resolve.messages == []


def test_imagenet_uses_own_cache(resolve):
    path = put(fileio.cache_dir("weights"))
    assert_resolved(resolve(), path, "flaxtl.*cache", trusted=True)
    assert resolve.messages == []


def test_imagenet_skips_cached_file_with_other_hash(tmp_path, resolve):
    wrong = put(tmp_path / "keras/models", b"another")
    right = put(fileio.cache_dir("weights"))
    assert_resolved(resolve(), right, "flaxtl.*cache", trusted=True)
    (line,) = resolve.messages
    assert str(wrong) in line
    assert re.search(rf"(?i)\bmd5\b.*\b{MD5}\b", line)


@pytest.mark.parametrize("hash", [MD5, SHA256])
def test_imagenet_downloads_once(resolve, server, hash):
    path = fileio.cache_dir("weights") / NAME
    address = f"{server.url}/x.h5"
    assert_resolved(resolve(url=address, hash=hash), path, rf"\b127\.0\.0\.1:{server.server_port}\b", trusted=True)
    assert path.read_bytes() == CONTENT
    assert_resolved(resolve(url=address, hash=hash), path, "flaxtl.*cache", trusted=True)
    assert server.requests == ["/x.h5"]
    assert list(fileio.cache_dir("weights").iterdir()) == [path]


def test_imagenet_without_published_hash_is_not_checked(tmp_path, resolve, server):
    address = f"{server.url}/x.h5"
    downloaded = resolve(url=address, hash="")
    assert downloaded.path.read_bytes() == CONTENT
    assert address in resolve.messages[0]
    assert re.search(r"(?i)\b(hash|checksum)", resolve.messages[0].replace(str(tmp_path), ""))
    assert_resolved(resolve(url=address, hash=""), downloaded.path, "flaxtl.*cache")
    any_content = put(tmp_path / "keras/models", b"another")
    assert_resolved(resolve(url=address, hash=""), any_content, "keras")
    assert len(resolve.messages) == 1


@pytest.mark.parametrize("page", ["gone.h5", "half.h5"])
def test_failed_download_without_hash_leaves_nothing(resolve, server, page):
    with pytest.raises(UserError, match=rf"(?=.*\b{re.escape(NAME)})(?=.*{re.escape(server.url)}/{page}\b)"):
        resolve(url=f"{server.url}/{page}", hash="")
    assert list(fileio.cache_dir("weights").iterdir()) == []


def test_imagenet_replaces_damaged_cached_file(resolve, server):
    path = put(fileio.cache_dir("weights"), CONTENT[:100])
    assert resolve(url=f"{server.url}/x.h5").path == path
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
def test_failed_download_leaves_nothing_and_falls_back(tmp_path, resolve, server, page, hash, reason):
    builtin = tmp_path / "builtin.safetensors"
    assert_resolved(resolve(url=f"{server.url}/{page}", hash=hash, builtin=builtin), builtin, r"\bbuilt", trusted=True)
    assert len(resolve.messages) == 2
    assert "builtin.safetensors" in resolve.messages[1]
    assert re.search(reason, resolve.messages[1])
    assert list(fileio.cache_dir("weights").iterdir()) == []
    with pytest.raises(UserError, match=r"--config\.weights\.path="):
        resolve(url=f"{server.url}/{page}", hash=hash)


def test_refused_connection_falls_back_to_builtin(tmp_path, resolve, server):
    closed = f"http://127.0.0.1:{server.server_port}/x.h5"
    server.shutdown()
    server.server_close()
    resolve(url=closed, builtin=tmp_path / "builtin.safetensors")
    assert re.search(rf"(?i)(?=.*\bconnect)(?=.*\b127\.0\.0\.1:{server.server_port}\b)", resolve.messages[1])
    with pytest.raises(UserError, match=rf"(?i)(?=.*\b{re.escape(NAME)})(?=.*\bconnect)"):
        resolve(url=closed)


def test_cache_that_cannot_be_written_is_an_error(tmp_path, resolve, server, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=rf"(?=.*\b{re.escape(NAME)})(?=.*Not a directory)(?=.*{server.url}/x\.h5)"):
        resolve(url=f"{server.url}/x.h5")


def test_builtin_returns_file_or_is_an_error(tmp_path, resolve):
    assert_resolved(resolve("builtin", builtin=tmp_path / "b"), tmp_path / "b", r"\bbuilt", trusted=True)
    with pytest.raises(UserError, match=rf"(?=.*\b{re.escape(NAME)})(?=.*--config\.weights\.path=imagenet\b)"):
        resolve("builtin")
    assert resolve.messages == []


def test_path_is_expanded_and_must_exist(tmp_path, resolve, monkeypatch):
    (tmp_path / "mine.h5").touch()
    assert_resolved(resolve(str(tmp_path / "mine.h5")), tmp_path / "mine.h5", r"\bpath\b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/mine.h5").path == tmp_path / "mine.h5"
    with pytest.raises(UserError, match="'imagnet'"):
        resolve("imagnet")


def test_cached_files_without_home_folder_are_those_of_flaxtl(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path))
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # the user has no entry: KeyError
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / NAME).touch()
    assert [file.path for file in cached_files(NAME)] == [tmp_path / "weights" / NAME]
