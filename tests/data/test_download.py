"""Downloads from a server of our own that breaks off, refuses and lies."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch.core
import pytest

from optcov.data import CIFAR10Data
from optcov.data.download import download

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; the path says how: /whole, /breaks (after 300,000 bytes), /other, /busy, ..."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/busy" and len(self.server.requests) < 3:
            return self.send_error(503)
        content = CONTENT[::-1] if self.path == "/other" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        breaks = self.path == "/breaks" or (self.path == "/breaks-once" and len(self.server.requests) == 1)
        self.wfile.write(content[:300_000] if breaks else content)
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)


def get(server: Server, target: Path, *paths: str, md5: str | None = MD5) -> None:
    download([server.url(path) for path in paths], target, md5)


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("path", ["whole", "busy", "breaks-once"])
@pytest.mark.parametrize("md5", [MD5, None])
def test_a_file_arrives_complete(path: str, md5: str | None, server: Server, tmp_path: Path) -> None:
    """Also where the server is busy or breaks off at first, and where no checksum tells."""
    get(server, tmp_path / "new" / "file", path, md5=md5)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert visible(tmp_path / "new") == ["file"]


def test_the_next_mirror_is_asked_when_one_refuses_breaks_off_or_lies(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "file", "missing", "breaks", "other", "whole")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert list(dict.fromkeys(server.requests)) == ["/missing", "/breaks", "/other", "/whole"]


def test_when_none_delivers_each_is_named_with_its_reason(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing \(404 .*; .*other \(MD5 .*expected .*set data.mirrors") as error:
        get(server, tmp_path / "file", "missing", "other")
    assert "\n" not in str(error.value)
    assert visible(tmp_path) == []


def test_no_network_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no mirror delivered file: http://127.0.0.1:1/file .*refused"):
        download(["http://127.0.0.1:1/file"], tmp_path / "file", None)
    with pytest.raises(ValueError, match=r"data\.mirrors"):
        download([], tmp_path / "file", None)


def test_many_at_once_get_it_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=get, args=(server, tmp_path / "file", "whole")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests == ["/whole"]


def test_cifar10_is_downloaded_on_request_alone(server: Server, tmp_path: Path) -> None:
    settings = {"mirrors": [server.url("whole")], "checksums": {"cifar-10-python.tar.gz": MD5}}
    root, cache = str(tmp_path / "root"), str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"data.download=true to get it"):
        CIFAR10Data(root, cache, **settings).load("train")
    assert not server.requests
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is truncated or not a tar archive"):
        CIFAR10Data(root, cache, download=True, **settings).load("train")
    assert (tmp_path / "root" / "cifar-10-python.tar.gz").read_bytes() == CONTENT
