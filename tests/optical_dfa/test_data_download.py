"""Downloads, from a server on this machine: content checked, cache used, network failures in one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from noise_models.errors import UsageError
from optical_dfa.data import cifar, idx, load
from optical_dfa.data.download import _Bar, fetch_file, fetch_tar


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]


class Server:
    """Serves `folder`; `requests` are the paths asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        self.requests: list[str] = []
        self._http.requests = self.requests  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    running = Server(folder)
    yield running
    running.stop()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_gz_is_checked_then_cached(server: Server, tmp_path: Path) -> None:
    content = b"content of the file" * 1000
    (server.folder / "a.gz").write_bytes(gzip.compress(content))
    target = tmp_path / "cache" / "a"
    for _ in range(2):
        assert fetch_file("A", server.url + "a.gz", digest(content), target, progress=False) == target
        assert target.read_bytes() == content
    assert server.requests == ["/a.gz"]


@pytest.mark.parametrize(
    "sent", [gzip.compress(b"other", mtime=0), b"no gzip", gzip.compress(b"x" * 999, mtime=0)[:-9]]
)
def test_wrong_content_is_not_kept(server: Server, tmp_path: Path, sent: bytes) -> None:
    (server.folder / "a.gz").write_bytes(sent)
    target = tmp_path / "cache" / "a"
    with pytest.raises(UsageError, match=r"A files by --data-dir or OPTICAL_DFA_DATA$") as caught:
        fetch_file("A", server.url + "a.gz", digest(b"wanted"), target, progress=False)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def test_no_network(tmp_path: Path) -> None:
    # Port 9 (discard) of this machine: nothing listens there.
    with pytest.raises(UsageError, match=r"cannot be downloaded.*--data-dir or OPTICAL_DFA_DATA") as caught:
        fetch_file("A", "http://127.0.0.1:9/a.gz", digest(b""), tmp_path / "a", progress=False)
    assert "\n" not in str(caught.value)


def test_absent_on_the_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be downloaded"):
        fetch_file("A", server.url + "a.gz", digest(b""), tmp_path / "a", progress=False)


def archive(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_tar_keeps_the_members_asked_for(server: Server, tmp_path: Path) -> None:
    packed = archive({"f/a.bin": b"a", "f/b.bin": b"b", "../evil": b"e"})
    (server.folder / "f.tar.gz").write_bytes(packed)
    out = tmp_path / "cache" / "f"
    fetch_tar("F", server.url + "f.tar.gz", digest(packed), ["f/a.bin", "f/b.bin"], out, progress=False)
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == [
        ("a.bin", b"a"),
        ("b.bin", b"b"),
    ]
    assert not (tmp_path / "cache" / "evil").exists()


def test_tar_with_another_digest_is_not_unpacked(server: Server, tmp_path: Path) -> None:
    (server.folder / "f.tar.gz").write_bytes(archive({"f/a.bin": b"a"}))
    with pytest.raises(UsageError, match="SHA-256"):
        fetch_tar("F", server.url + "f.tar.gz", digest(b""), ["f/a.bin"], tmp_path / "f", progress=False)
    assert not (tmp_path / "f").exists()


def test_load_downloads_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an empty cache to tensors, then again without a request."""
    digests = {}
    for name, shape in idx.SHAPES.items():
        body = np.full(shape, 3, np.uint8).tobytes()
        content = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes() + body
        digests[name] = digest(content)
        (server.folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    source = idx.IdxSource("MNIST", "MNIST", server.url, digests, 0.5, 0.5)
    monkeypatch.setitem(idx.SOURCES, "mnist", source)
    monkeypatch.delenv("OPTICAL_DFA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "optical-dfa" / "MNIST" / "t10k-labels-idx1-ubyte"
    for _ in range(2):
        data = load("mnist", progress=True)  # no terminal: no bar
        assert torch.equal(data.y_test, torch.full((10000,), 3))
        assert data.x_test[0, 0, 0, 0].item() == pytest.approx((3 / 255 - 0.5) / 0.5, abs=1e-6)
    assert len(server.requests) == 4
    kept.unlink()  # as after a download that was cut off
    load("mnist")
    assert server.requests[4:] == ["/t10k-labels-idx1-ubyte.gz"]


def test_cifar_offline_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTICAL_DFA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    with pytest.raises(UsageError, match="CIFAR-10 files by --data-dir or OPTICAL_DFA_DATA"):
        load("cifar10")


def test_bar_counts_to_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    with _Bar("A: a.gz") as bar:
        bar.total = 10
        bar.update(4)
        bar.update(6)
        task = bar._progress.tasks[0]
        assert (task.completed, task.total) == (10, 10)
        bar.reset()
        bar.close()
    assert capsys.readouterr().out == ""
