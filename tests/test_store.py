"""The store that encoded clips lie in: few files, whole or absent entries, several writers."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cogvx_jax.storage import kvstore, storage_path, write_whole
from cogvx_jax.train.clips import store as stores
from cogvx_jax.train.clips.store import Store


def entry(number, size=1000):
    return {"a": np.full(size, number, np.float32), "b": np.full((2, 3), number, np.uint8)}


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], strict=True)


def test_entries_come_back_in_any_order_from_few_files(tmp_path):
    store = Store(tmp_path / "new" / "store")
    assert store.names() == set()
    for i in range(200):
        store.add(f"clip/{i}", entry(i))
    assert store.names() == set() and not (tmp_path / "new").exists()  # nothing is written yet
    store.commit()
    assert len(store.names()) == 200 and len(files(tmp_path)) < 5
    for of in (store, Store(tmp_path / "new" / "store")):
        for number, found in zip((7, 0, 7, 199), of.read([f"clip/{i}" for i in (7, 0, 7, 199)]), strict=True):
            same(found, entry(number))


def test_much_is_written_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "COMMIT_BYTES", 10_000)
    store = Store(tmp_path)
    for i in range(5):
        store.add(f"{i}", entry(i))  # 4 kB and a little each
    assert store.names() == {"0", "1", "2"}
    monkeypatch.setattr(stores, "COMMIT_SECONDS", 0)
    store.add("late", entry(9))
    assert store.names() == {"0", "1", "2", "3", "4", "late"}


def test_a_reader_sees_what_is_added_after_it_was_opened(tmp_path):
    writer, reader = Store(tmp_path), Store(tmp_path)
    with pytest.raises(KeyError, match="has no entry x"):
        reader.read(["x"])
    writer.add("x", entry(1))
    writer.commit()
    same(reader.read(["x"])[0], entry(1))


WRITE = """
import sys, numpy as np
from cogvx_jax.storage import storage_path
from cogvx_jax.train.clips.store import Store
store = Store(storage_path(sys.argv[1]))
for i in range(40):
    store.add(f"{sys.argv[2]}/{i}", {"a": np.full(10, i)})
    store.commit()
"""


def test_several_processes_write_at_once(tmp_path):
    root = Path(__file__).parents[1]
    writing = [subprocess.Popen([sys.executable, "-c", WRITE, tmp_path, name], cwd=root) for name in "ab"]
    assert [process.wait(120) for process in writing] == [0, 0]
    assert Store(tmp_path).names() == {f"{name}/{i}" for name in "ab" for i in range(40)}


def test_what_cannot_be_written_or_read_is_said(tmp_path):
    (tmp_path / "taken").write_text("x")
    store = Store(tmp_path / "taken")
    store.add("x", entry(1))
    with pytest.raises(OSError, match="cannot write .*taken"):
        store.commit()
    store = Store(tmp_path / "store")
    store.add("x", entry(1))
    store.commit()
    (largest,) = [path for path in files(tmp_path / "store" / "d")]
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.raises(ValueError, match="store"):
        Store(tmp_path / "store").read(["x"])


def test_a_file_appears_only_when_whole(tmp_path, monkeypatch):
    write_whole(tmp_path / "new" / "file", b"one")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "new" / "file", b"two")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert (tmp_path / "new" / "file").read_bytes() == b"one"


def test_places(tmp_path):
    assert storage_path("a/b") == Path("a/b") and str(storage_path("gs://bucket/a") / "b") == "gs://bucket/a/b"
    assert kvstore("gs://bucket/a") == "gs://bucket/a/" and kvstore(tmp_path)["path"] == f"{tmp_path}/"
    with pytest.raises(ValueError, match="is no place known here; give a path, or gs:// or s3://"):
        storage_path("http://example.org/a")
    with pytest.raises(ValueError, match="tensorstore cannot read ftp://a"):
        kvstore("ftp://a")


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    """A few of all the bits of the files, of which tensorstore itself notices those of its index."""
    store = Store(tmp_path / "store")
    for i in range(4):
        store.add(f"{i}", entry(i))
    store.commit()
    rng, missed = np.random.default_rng(0), 0
    for _ in range(60):
        path = files(tmp_path / "store")[rng.integers(len(files(tmp_path / "store")))]
        whole = path.read_bytes()
        at, bit = rng.integers(len(whole)), rng.integers(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
        try:
            found = Store(tmp_path / "store").read([f"{i}" for i in range(4)])
        except (ValueError, KeyError, OSError):
            pass
        else:  # a bit that stands for nothing, of a file that is not read
            missed += 1
            for number, arrays in enumerate(found):
                same(arrays, entry(number))
        path.write_bytes(whole)
    assert missed < 30


def test_every_bit_of_an_entry_counts():
    whole, noticed = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 3), np.uint8)}, 0
    data = stores.encode_entry(whole)
    same(stores.decode_entry(data)[0], whole)
    for at, bit in itertools.product(range(len(data)), range(8)):
        try:
            found, has_checksum = stores.decode_entry(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
        except ValueError:
            noticed += 1
        else:  # of the checksum's own name, or of a space
            same({name: found[name] for name in whole}, whole)
            assert not has_checksum or found.keys() == whole.keys()
    assert noticed > 0.8 * 8 * len(data)


def test_entries_of_older_stores_have_no_checksum():
    whole = entry(3)
    found, has_checksum = stores.decode_entry(safetensors.numpy.save(whole))
    same(found, whole)
    assert not has_checksum
