import hashlib
import os
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.store.datasets import available, fetch, location

CONTENT = b"mass,count\n1,2\n" * 1000


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.hits += 1
        if self.path != "/cut":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100])


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "events.csv").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        server.hits = 0
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SBI_PHYSICS_DATA", raising=False)
    monkeypatch.setenv("SBI_PHYSICS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registry(tmp_path):
    """Write a registry with one data set of one file."""

    def write(url, sha256=None, path="bumps/events.csv"):
        sha256 = sha256 or hashlib.sha256(CONTENT).hexdigest()
        file = tmp_path / "registry.toml"
        file.write_text(
            'schema = 1\n[[dataset]]\nname = "bumps"\ndescription = "d"\nlicence = "l"\ncitation = "c"\n'
            f'files = [{{ path = "{path}", sha256 = "{sha256}", url = "{url}" }}]\n'
        )
        return file

    return write


def url(server, path):
    return f"http://127.0.0.1:{server.server_port}/{path}"


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def test_download_once(server, registry, cache):
    file = registry(url(server, "events.csv"))
    assert location(available(registry=file)[0]) == "download"
    first = fetch("bumps", registry=file)
    assert first["events.csv"].read_bytes() == CONTENT
    assert cache in first["events.csv"].parents
    assert fetch("bumps", registry=file) == first
    assert server.hits == 1
    assert location(available(registry=file)[0]) == "cache"


def test_a_damaged_copy_in_the_cache_is_replaced(server, registry):
    file = registry(url(server, "events.csv"))
    path = fetch("bumps", registry=file)["events.csv"]
    path.write_bytes(CONTENT[:10])
    assert fetch("bumps", registry=file)["events.csv"].read_bytes() == CONTENT


def test_a_wrong_hash_is_refused(server, registry, cache):
    wrong = "0" * 64
    with pytest.raises(
        StoreError, match=f"events.csv: refused, expected sha256 {wrong}, got {hashlib.sha256(CONTENT).hexdigest()}"
    ):
        fetch("bumps", registry=registry(url(server, "events.csv"), wrong))
    assert not leftovers(cache)


@pytest.mark.parametrize("path", ["missing.csv", "cut"])
def test_a_failed_download_is_one_clear_line(path, server, registry, cache):
    with pytest.raises(StoreError, match=r"cannot be downloaded .*SBI_PHYSICS_DATA") as caught:
        fetch("bumps", registry=registry(url(server, path)))
    assert "\n" not in str(caught.value)
    assert not leftovers(cache)


def test_no_network(registry, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreError, match="cannot be downloaded"):
        fetch("bumps", registry=registry(f"http://127.0.0.1:{port}/events.csv"))


def test_the_users_folder_comes_first_and_is_checked(server, registry, tmp_path, monkeypatch):
    path = tmp_path / "mine" / "bumps" / "events.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    monkeypatch.setenv("SBI_PHYSICS_DATA", str(tmp_path / "mine"))
    file = registry(url(server, "events.csv"))
    assert location(available(registry=file)[0]) == "SBI_PHYSICS_DATA"
    assert fetch("bumps", registry=file) == {"events.csv": path}
    assert server.hits == 0
    path.write_bytes(CONTENT + b"3,4\n")
    with pytest.raises(StoreError, match=f"{path}: refused"):
        fetch("bumps", registry=file)


def test_wrong_names_and_registries(registry, tmp_path):
    with pytest.raises(UsageError, match="expected one of bumps; got 'dips'"):
        fetch("dips", registry=registry("http://127.0.0.1/"))
    with pytest.raises(StoreError, match="expected a path bumps/"):
        available(registry=registry("http://127.0.0.1/", path="bumps/../../etc/passwd"))
    (tmp_path / "bad.toml").write_text("schema = ")
    with pytest.raises(StoreError, match="the registry cannot be read"):
        available(registry=tmp_path / "bad.toml")


def test_the_registry_of_the_package():
    datasets = {dataset.name: dataset for dataset in available()}
    assert set(datasets) == {"cms_dijet", "lhco", "nanograv15", "pta_freespec", "radial_velocity", "union3"}
    for dataset in datasets.values():
        assert dataset.licence
        assert dataset.citation
        assert all(len(file.sha256) == 64 for file in dataset.files)
    for name in ("cms_dijet", "radial_velocity"):
        assert location(datasets[name]) == "shipped"
        assert all(path.is_file() for path in fetch(name).values())


# Kept from before the fixtures take it away.
FOLDER = os.environ.get("SBI_PHYSICS_DATA", "")


@pytest.mark.skipif(not FOLDER, reason="SBI_PHYSICS_DATA names no folder of public data sets")
@pytest.mark.parametrize("name", ["lhco", "nanograv15", "pta_freespec", "union3"])
def test_the_files_at_hand_are_those_of_the_registry(name, monkeypatch):
    monkeypatch.setenv("SBI_PHYSICS_DATA", FOLDER)
    found = fetch(name)
    assert all(Path(FOLDER) in path.parents for path in found.values())
    (dataset,) = (one for one in available() if one.name == name)
    assert dataset.size == sum(path.stat().st_size for path in found.values())
