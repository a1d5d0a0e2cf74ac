"""Downloads from a server of our own that breaks off, refuses and lies."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from optcov.data import CIFAR10Data
from optcov.data.download import download

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; the path says how: /whole, /no-ranges, /breaks (off after 300,000 bytes), /other, /busy, ..."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/busy" and len(self.server.requests) < 3:
            return self.send_error(503)
        content = CONTENT[::-1] if self.path == "/other" else CONTENT
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.path != "/no-ranges" else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start : start + 300_000] if self.path == "/breaks" else content[start:]
        self.wfile.write(body)
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


def get(server: Server, target: Path, *paths: str, md5: str | None = MD5) -> None:
    download([server.url(path) for path in paths], target, md5, pause=0)


@pytest.mark.parametrize("path", ["whole", "no-ranges", "busy"])
def test_a_file_arrives(path: str, server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "new" / "file", path)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert not (tmp_path / "new" / "file.part").exists()


def test_a_broken_connection_is_continued_where_it_broke(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "file", "breaks")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


@pytest.mark.parametrize("path", ["whole", "no-ranges"])
def test_a_later_call_continues_an_earlier_one(path: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    get(server, tmp_path / "file", path)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [(f"/{path}", "bytes=1000-")]


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more", b"of another file"])
def test_what_lies_there_may_be_whole_too_long_or_of_another_file(part: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(part)
    get(server, tmp_path / "file", "whole")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_next_mirror_is_asked_when_one_refuses_or_lies(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "file", "missing", "other", "whole")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/missing", "/other", "/whole"]


def test_when_none_delivers_each_is_named_with_its_reason(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"missing \(404 Not Found\); .*other \(MD5 .*, not .*set data.mirrors"
    ) as error:
        get(server, tmp_path / "file", "missing", "other")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "file").exists()
    assert not (tmp_path / "file.part").exists()


def test_no_network_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no mirror delivered file: http://127.0.0.1:1/file .*refused.*4 times"):
        download(["http://127.0.0.1:1/file"], tmp_path / "file", None, pause=0)
    with pytest.raises(ValueError, match=r"data.mirrors is empty"):
        download([], tmp_path / "file", None)


def test_many_at_once_get_it_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=get, args=(server, tmp_path / "file", "whole")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests == [("/whole", None)]


def test_cifar10_is_downloaded_on_request_alone(server: Server, tmp_path: Path) -> None:
    settings = {"mirrors": [server.url("whole")], "checksums": {"cifar-10-python.tar.gz": MD5}}
    root, cache = str(tmp_path / "root"), str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"data.download=true to get it"):
        CIFAR10Data(root, cache, **settings).load("train")
    assert not server.requests
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is truncated or no tar archive"):  # CONTENT is none
        CIFAR10Data(root, cache, download=True, **settings).load("train")
    assert (tmp_path / "root" / "cifar-10-python.tar.gz").read_bytes() == CONTENT
