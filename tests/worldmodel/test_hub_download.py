import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel import hub
from worldmodel.hub import download as fetching
from worldmodel.hub.registry import RemoteFile

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A server of one file that can be made to cut its connections.

    Attributes:
        url: Of the file.
        content: What it serves.
        cuts: After how many bytes each of the next answers ends; the ones after are whole.
        tag: The version of the content; none if empty.
        ranges: The Range header of every request so far.
    """

    url: str
    content: bytes = CONTENT
    cuts: list[int] = field(default_factory=list)
    tag: str = '"one"'
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            if self.path != "/model.pt":
                return self.send_error(404)
            start = 0
            if wanted and self.headers.get("If-Range") in (None, state.tag):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(state.content):
                    return self.send_error(416)
            self.send_response(206 if start else 200)
            body = state.content[start:]
            self.send_header("Content-Length", str(len(body)))
            if state.tag:
                self.send_header("ETag", state.tag)
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *arguments: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(url=f"http://127.0.0.1:{httpd.server_port}/model.pt")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_its_hash_recorded(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    path = fetching.download(RemoteFile(server.url), folder)
    assert path == folder / "model.pt"
    assert path.read_bytes() == CONTENT
    receipt = {"url": server.url, "size": len(CONTENT), "sha256": SHA256}
    assert json.loads((folder / "model.pt.json").read_text()) == receipt
    assert fetching.read_receipt(path) == receipt
    assert names(folder) == ["model.pt", "model.pt.json"]
    assert fetching.download(RemoteFile(server.url), folder) == path
    assert len(server.ranges) == 1


def test_a_cut_connection_is_taken_up_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    path = fetching.download(RemoteFile(server.url, len(CONTENT), SHA256), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_call_goes_on_after_a_server_that_stops(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 0]
    with pytest.raises(ConnectionError, match="ended after 100000 of 300000 bytes.*run again"):
        fetching.download(RemoteFile(server.url), tmp_path)
    assert names(tmp_path) == ["model.pt.etag", "model.pt.part"]
    assert fetching.download(RemoteFile(server.url), tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=100000-"


@pytest.mark.parametrize("tag", ['"two"', ""])
def test_halves_of_two_versions_are_never_joined(server: Server, tmp_path: Path, tag: str) -> None:
    server.cuts = [100_000, 0]
    with pytest.raises(ConnectionError):
        fetching.download(RemoteFile(server.url), tmp_path)
    server.content, server.tag = CONTENT[::-1], tag
    assert fetching.download(RemoteFile(server.url), tmp_path).read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.pt.part").write_bytes(bytes(len(CONTENT) + 5))
    (tmp_path / "model.pt.etag").write_text(server.tag)
    assert fetching.download(RemoteFile(server.url), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "size, sha256, message",
    [
        (None, "0" * 64, f"has SHA-256 {SHA256}, expected 000"),
        (len(CONTENT) + 1, None, "has a size of 300000, expected 300001"),
    ],
)
def test_another_file_than_the_published_is_refused_and_removed(
    server: Server, tmp_path: Path, size: int | None, sha256: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fetching.download(RemoteFile(server.url, size, sha256), tmp_path)
    assert not [name for name in names(tmp_path) if name.startswith("model.pt.part")]
    assert not (tmp_path / "model.pt").exists()


def test_a_damaged_copy_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    path = fetching.download(RemoteFile(server.url), tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert fetching.download(RemoteFile(server.url), tmp_path).read_bytes() == CONTENT


def test_without_network_the_message_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/model.pt"
    with pytest.raises(ConnectionError, match="fetch it elsewhere and pass its path.*model.pt"):
        fetching.download(RemoteFile(url), tmp_path)


def test_a_file_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="HTTP 404"):
        fetching.download(RemoteFile(server.url.replace("model", "other")), tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORLDMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_is_fetched_into_the_cache(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = hub.find("vjepa2-l")
    model = replace(published, name="tiny", files=(RemoteFile(server.url),))
    monkeypatch.setattr("worldmodel.hub.registry.MODELS", (model,))
    path, found = fetching.resolve("tiny")
    assert (path, found) == (cache / "tiny" / "model.pt", model)
    two = replace(model, files=(RemoteFile(server.url), RemoteFile(server.url)))
    assert hub.fetch(two) == cache / "tiny"  # a folder


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.cache_folder() == cache
    monkeypatch.delenv("WORLDMODEL_CACHE")
    assert hub.cache_folder() == Path.home() / ".cache" / "worldmodel"


def test_a_path_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: object, **named: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    (tmp_path / "model.pt").write_bytes(CONTENT)
    assert fetching.resolve(tmp_path / "model.pt") == (tmp_path / "model.pt", None)
    for missing in (tmp_path / "other.pt", str(tmp_path / "other"), "other.pt"):
        with pytest.raises(FileNotFoundError, match="no checkpoint file at .*other"):
            fetching.resolve(missing)


def test_the_hash_is_checked_again_on_request(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"encoder": {"norm.bias": torch.zeros(3)}}, path)
    server.content = path.read_bytes()
    path = fetching.download(RemoteFile(server.url), tmp_path / "cache")
    assert "ok  model.pt: SHA-256" in str(hub.verify(path))
    torch.save({"encoder": {"norm.bias": torch.ones(3)}}, path)
    report = hub.verify(path)
    assert not report.ok
    assert "not as recorded at its download" in str(report)
