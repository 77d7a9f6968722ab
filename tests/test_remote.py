"""Models below URLs: fsspec's filesystems stand for buckets."""

import functools

import fsspec
import jax
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import cogvx_jax as cx
from cogvx_jax import storage
from cogvx_jax.convert import ConversionError, write_orbax, write_quantized
from cogvx_jax.convert.dialects import open_component
from cogvx_jax.pipelines.weights import load_component
from cogvx_jax.quantization import find_quantization

INT8 = find_quantization("int8")


@pytest.fixture
def bucket():
    """A filesystem in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    system.rm("/", recursive=True) if system.ls("/") else None
    yield system
    system.rm("/", recursive=True) if system.ls("/") else None


@pytest.fixture
def uploaded(small, bucket):
    """The URL of a small model; change what you like."""
    bucket.put(str(small("5b")[0]), "/bucket/models/five", recursive=True)
    return "memory://bucket/models/five"


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


@pytest.mark.parametrize("axes", [None, {"fsdp": 4, "tensor": 2}])
def test_a_url_loads_like_the_folder(small, uploaded, axes):
    model = small("5b")[1]
    loaded = cx.load(f"{uploaded}/", mesh=axes and cx.make_mesh(**axes))
    assert_identical(loaded.params, model.params)
    assert loaded.spec == model.spec == cx.load_spec(uploaded)
    assert loaded.compute == model.compute
    assert loaded.tokenizer("a red circle").input_ids == model.tokenizer("a red circle").input_ids


@pytest.mark.parametrize("kept", [storage.KEPT_BYTES, 0])
def test_only_the_needed_bytes_are_read_and_once(small, uploaded, monkeypatch, kept):
    """Once for all devices, even where there is no room to keep more than the last tensor."""
    read, spans = MemoryFileSystem.cat_file, []

    def noted(self, path, start=None, end=None, **options):
        if path.endswith(".safetensors"):
            spans.append((path, start, end))
        return read(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", noted)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: pytest.fail("a file was opened whole"))
    monkeypatch.setattr(storage, "KEPT_BYTES", kept)
    params = load_component(uploaded, small("5b")[1].spec, "transformer", "float32", cx.make_mesh(fsdp=4, tensor=2))
    assert_identical(params, small("5b")[1].params["transformer"])
    assert {path for path, _, _ in spans} == {"/bucket/models/five/transformer/diffusion_pytorch_model.safetensors"}
    assert all(start is not None and end is not None for _, start, end in spans)
    assert len(spans) == len(set(spans))


def test_damage_is_found_before_anything_large_is_read(small, uploaded, bucket):
    name = "/bucket/models/five/vae/diffusion_pytorch_model.safetensors"
    raw = bucket.cat_file(name)
    bucket.pipe_file(name, raw[:-10])
    with pytest.raises(ConversionError, match=f"truncated: {len(raw) - 10} of {len(raw)} bytes"):
        cx.load(uploaded)
    bucket.rm(name)
    with pytest.raises(ConversionError, match="no model.safetensors.*; there is config.json"):
        cx.load(uploaded)


def test_what_is_not_there_is_one_sentence(uploaded, bucket):
    with pytest.raises(FileNotFoundError, match="there is no memory://bucket/none/model_index.json"):
        cx.load("memory://bucket/none")
    with pytest.raises(ValueError, match="cannot read nonsense://bucket/model: "):
        cx.load("nonsense://bucket/model")
    bucket.rm("/bucket/models/five/tokenizer", recursive=True)
    with pytest.raises(FileNotFoundError, match="five/tokenizer is not there; a tokenizer is a folder"):
        cx.load(uploaded)


@pytest.mark.full
def test_converted_models_below_urls(small, uploaded, bucket, tmp_path):
    """tensorstore reads their arrays by itself: of a bucket, and of file:// as of it; but not of fsspec's memory."""
    write_orbax(uploaded, tmp_path / "model")
    loaded = cx.load(f"file://{tmp_path}/model", mesh=cx.make_mesh(fsdp=8), verify=True)
    assert_identical(loaded.params, small("5b")[1].params)
    bucket.put(str(tmp_path / "model"), "/bucket/models/orbax", recursive=True)
    with pytest.raises(ValueError, match="tensorstore cannot read memory://.*; it reads folders and gs://, s3://"):
        cx.load("memory://bucket/models/orbax")


def test_a_url_is_converted_into(small, uploaded, bucket, tmp_path, monkeypatch):
    write_orbax(uploaded, f"file://{tmp_path}/model")
    assert_identical(cx.load(f"file://{tmp_path}/model", verify=True).params, small("5b")[1].params)
    with pytest.raises(FileExistsError, match="model is not empty; nothing was written"):
        write_orbax(uploaded, f"file://{tmp_path}/model")

    # An upload that breaks off leaves no model.
    put = LocalFileSystem.put_file

    def breaks_off(system, source, target, **options):
        if "/vae/" in target:
            raise OSError("no connection")
        return put(system, source, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", breaks_off)
    with pytest.raises(OSError, match="cannot reach file://.*/half/vae/.*: no connection"):
        write_orbax(uploaded, f"file://{tmp_path}/half")
    half = storage.open_files(f"file://{tmp_path}/half")
    assert half.exists("model_index.json") and not half.exists("digests.json")


@pytest.mark.parametrize("write", [write_orbax, functools.partial(write_quantized, how=INT8, layout="orbax")])
def test_a_url_that_could_not_be_read_again_is_not_written_to(uploaded, bucket, write):
    with pytest.raises(
        ValueError,
        match="^Orbax checkpoints are written to folders, gs://, s3://, file://, not to memory://",
    ):
        write(uploaded, "memory://bucket/new")
    assert not bucket.exists("/bucket/new")


def test_a_part_that_is_given_and_missing_is_named(uploaded, tmp_path):
    """Below a URL as on a disk."""
    for place in ("memory://bucket/none/vae", "memory://bucket/none/vae.pt", f"file://{tmp_path}/none", "none"):
        words = f"^the vae is missing: there is no file or folder {place}; give its file, or the folder that it is in$"
        with pytest.raises(FileNotFoundError, match=words):
            open_component(place, "vae")
    for name in ("none", "none/x.json"):
        with pytest.raises(FileNotFoundError, match=f"^there is no file or folder {uploaded}/{name}$"):
            storage.open_files(uploaded).bytes(name)


def test_a_host_that_is_not_there_is_named():
    with pytest.raises(OSError, match="^cannot reach ftp://127.0.0.1:1/x: "):
        storage.open_files("ftp://127.0.0.1:1/x")


def test_a_server_without_ranges_is_named(bucket):
    bucket.pipe("/bucket/file", bytes(100))
    files = storage.RemoteFiles("memory://bucket")

    class Whole:
        def cat_file(self, path, start=None, end=None):
            return bytes(100)

        def cat_ranges(self, paths, starts, ends, on_error):
            return [bytes(100)] * len(paths)

    assert len(files.read(("file", 10, 20))) == 20
    files._system = Whole()
    for read in (lambda: files.read(("file", 0, 8)), lambda: files.prefetch([("file", 0, 8)])):
        with pytest.raises(ValueError, match="bucket/file: 8 bytes of it were asked for and 100 came; .* copy"):
            read()


def test_what_was_read_of_local_files_is_let_go(tmp_path, monkeypatch):
    """A parameter of all layers takes gigabytes, and is read layer by layer."""
    data, released, release = bytes(range(256)) * 40, [], storage.LocalFiles.release

    def noted(self):
        released.append(1)
        release(self)

    monkeypatch.setattr(storage, "MAPPED_BYTES", 4096)
    monkeypatch.setattr(storage.LocalFiles, "release", noted)
    (tmp_path / "x").write_bytes(data)
    files = storage.open_files(tmp_path)
    arrays = [files.read(("x", start, 1024)) for start in range(0, len(data), 1024)]
    assert len(released) == 2 and b"".join(array.tobytes() for array in arrays) == data
