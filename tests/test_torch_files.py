"""Torch files without torch: what is read, what is refused, and that nothing in them is ever run."""

import random
import resource
import struct
import subprocess
import sys
import time
import traceback
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_file import STORAGES, Raw, TorchFile, call, name, pickled, rebuilt, save, storage, text, write

from cogvx_jax.convert import ConversionError, torch_legacy, torch_pickle
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.tensors import Unreadable
from cogvx_jax.convert.torch_pickle import read_pickle
from cogvx_jax.convert.torch_writer import write_torch

GOLDEN = Path(__file__).parent / "golden"
A = np.arange(12, dtype=np.float32).reshape(3, 4)


def read(path):
    found = open_tensors(path)
    return {key: found.read(key) for key in found}


# What is read.


def test_what_torch_wrote_is_read():
    """Of the recorded files, with their padding; `tests/test_sat.py` compares the numbers."""
    found = open_tensors(GOLDEN / "sat_5b/transformer/1000/mp_rank_00_model_states.pt")
    assert len(found) == 52 and {str(entry.dtype) for entry in found.values()} == {"bfloat16"}
    assert all(found[key].start % 64 == 0 for key in found)
    assert len(open_tensors(GOLDEN / "sat_5b/vae/3d-vae.pt")) == 237


@pytest.mark.parametrize("wrappers", [(), ("module",), ("model", "module"), ("state_dict",), ("module", "state_dict")])
def test_weights_lie_in_their_wrappers(tmp_path, wrappers):
    value = {"a.b": A, "c": {"d": A[0]}}
    for wrapper in reversed(wrappers):
        value = {wrapper: value, "iteration": 1000, "args": {"lr": 0.1}}
    found = read(save(tmp_path / "x.pt", value))
    assert found.keys() == {"a.b", "c.d"}
    np.testing.assert_array_equal(found["a.b"], A)
    np.testing.assert_array_equal(found["c.d"], A[0])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "uint8"])
def test_types(tmp_path, dtype):
    array = A.astype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    [found] = read(save(tmp_path / "x.pt", {"a": array})).values()
    assert str(found.dtype) == dtype and not found.flags.writeable
    np.testing.assert_array_equal(found, array)


def test_strides_and_shared_storages(tmp_path):
    """A transposed tensor, every second column, one row twice: each a view of one storage."""
    file = TorchFile()
    stored = file.store(A.reshape(-1))
    views = {
        "whole": rebuilt(stored, 0, (3, 4), (4, 1)),
        "transposed": rebuilt(stored, 0, (4, 3), (1, 4)),
        "columns": rebuilt(stored, 1, (3, 2), (4, 2)),
        "row": rebuilt(stored, 4, (4,), (1,)),
        "number": rebuilt(stored, 7, (), ()),
        "none": rebuilt(stored, 12, (0, 4), (4, 1)),
    }
    found = open_tensors(file.write(tmp_path / "x.pt", views))
    wanted = {"whole": A, "transposed": A.T, "columns": A[:, 1::2], "row": A[1], "number": A[1, 3], "none": A[3:]}
    for key, array in wanted.items():
        np.testing.assert_array_equal(found.read(key), array)
        assert found.read(key).shape == array.shape == found[key].shape
    for key in ("whole", "transposed", "columns", "row"):
        part = found[key].rows(1, 3)
        np.testing.assert_array_equal(part.read(found.files), wanted[key][1:3])
        assert part.shape == wanted[key][1:3].shape and sum(span[2] for span in part.spans) <= 4 * A.size


def test_everything_else_that_torch_writes(tmp_path):
    """Parameters, OrderedDicts with their metadata, sizes, sets, types, and float8 with its type beside it."""
    file = TorchFile()
    eight = np.float32([1, -2, 0.5]).astype(ml_dtypes.float8_e4m3fn)
    file.data.append(eight.tobytes())
    raw = Raw(pickled(("storage", name("torch.storage", "UntypedStorage"), "0", "cpu", 3)) + b"Q")
    typed = rebuilt(raw, 0, (3,), (1,), "_rebuild_tensor_v3", name("torch", "float8_e4m3fn"), {})
    tensor = file.tensor(A)
    parameter = call(name("torch._utils", "_rebuild_parameter"), tensor, True, call(name("collections", "OrderedDict")))
    ordered = Raw(
        call(name("collections", "OrderedDict"))
        + b"(" + text("p") + parameter + text("eight") + typed + b"u"
        + pickled({"_metadata": call(name("collections", "OrderedDict"))}) + b"b"
    )  # fmt: skip
    value = {
        "module": ordered,
        "shapes": {"p": call(name("torch", "Size"), [3, 4])},
        "seen": call(name("builtins", "set"), ["a", "b"]),
        "dtype": name("torch", "bfloat16"),
        "device": call(name("torch", "device"), "cuda:0"),
    }
    path = file.write(tmp_path / "x.pt", value)
    found = read(path)
    np.testing.assert_array_equal(found["p"], A)
    np.testing.assert_array_equal(found["eight"], eight)
    with zipfile.ZipFile(path) as archive:
        loaded = read_pickle(archive.read("archive/data.pkl"))
    assert loaded["shapes"]["p"] == (3, 4) and loaded["seen"] == ["a", "b"]


def test_what_is_written_is_read_and_equal_to_the_byte(tmp_path):
    half = A.astype(ml_dtypes.bfloat16)
    arrays = {"a.b": A, "half": half, "number": np.float16(3).reshape(()), "none": A[:0]}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_torch(tmp_path / folder / "x.pt", [Tensor.of(key, array) for key, array in arrays.items()], "module")
    found = open_tensors(tmp_path / "one" / "x.pt")
    assert list(found) == list(arrays)
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape
        assert found.read(key).tobytes() == array.tobytes() and found[key].start % 64 == 0
    assert (tmp_path / "one" / "x.pt").read_bytes() == (tmp_path / "two" / "x.pt").read_bytes()
    with pytest.raises(ValueError, match="c is of type complex64; what a .pt file can hold is float64, float32"):
        write_torch(tmp_path / "y.pt", [Tensor.of("c", A.astype(np.complex64))], "module")


# What is never run.

HOSTILE = {
    "reduce": call(name("tattle", "run"), "echo"),
    "os": call(name("os", "system"), "touch ran"),
    "builtins": call(name("builtins", "eval"), "__import__('tattle')"),
    "stack_global": Raw(b"\x8c\x06tattle\x8c\x03run\x93)R"),
    "dotted": Raw(b"\x8c\x06tattle\x8c\x09run.again\x93)R"),
    "new": Raw(name("tattle", "Kind") + b")\x81"),
    "state": Raw(name("tattle", "Kind") + b")\x81" + pickled({"x": 1}) + b"b"),
    "called twice": call(call(name("tattle", "run")), 1),
    "torch": call(name("torch.storage", "_load_from_bytes"), "x"),
    "numpy": call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), (0,), 1),
    "deepspeed": Raw(name("deepspeed.runtime.zero.config", "ZeroStageEnum") + b"\x8a\x01\x02\x85R"),
}


@pytest.fixture
def tattle(tmp_path, monkeypatch):
    """A module that notes its import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tattle.py").write_text(
        "import pathlib; pathlib.Path(__file__).with_name('imported').touch()\nclass Kind: pass\ndef run(*_): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "modules" / "imported").exists() and not (tmp_path / "ran").exists()
    assert "tattle" not in sys.modules


@pytest.mark.parametrize("kind", HOSTILE)
def test_globals_outside_the_table_are_names_and_no_more(tmp_path, tattle, kind):
    file = TorchFile()
    path = file.write(tmp_path / "x.pt", {"module": {"a": A, "bad": HOSTILE[kind]}, "optimizer": HOSTILE[kind]})
    found = open_tensors(path)
    np.testing.assert_array_equal(found.read("a"), A)
    assert isinstance(found["bad"], Unreadable)
    with pytest.raises(ValueError, match="^it is made by .*, which is not read$"):
        found.read("bad")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(itattle\nrun\n",  # INST
        b"(ctattle\nrun\no",  # OBJ
        b"\x82\x01",  # EXT1
        b"Ptattle\n",  # PERSID
        b"ctattle\nrun\n)}\x92",  # NEWOBJ_EX
        b"\x97",  # NEXT_BUFFER
        b"S'text'\n",  # STRING
        b"I01\n",  # INT
        b"2",  # DUP
    ],
)
def test_other_opcodes_are_refused(tmp_path, tattle, opcodes):
    path = write(tmp_path / "x.pt", b"\x80\x02" + opcodes + b".")
    with pytest.raises(ValueError, match="x.pt cannot be read: its pickle has the opcode [A-Z0-9_]+, which torch does"):
        open_tensors(path)


@pytest.mark.full
def test_an_import_of_torch_is_not_needed(tmp_path):
    save(tmp_path / "x.pt", {"a": A})
    code = (
        "import sys; from cogvx_jax.convert.containers import open_tensors; open_tensors(sys.argv[1]).read('a');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.pt"], check=True)


# What is refused.

LIST = b"](" + b"NN" * 50_000 + b"eq\x00"


@pytest.mark.parametrize(
    "value, words",
    [
        (rebuilt(storage("FloatStorage", 0, 12), 0, (10**12,), (1,)), "beyond its storage of 12 numbers"),
        (rebuilt(storage("FloatStorage", 0, 12), 0, (10**12,), (0,)), "beyond its storage"),
        (rebuilt(storage("FloatStorage", 0, 12), 0, (10**6, 10**6), (0, 0)), "beyond its storage"),
        (rebuilt(storage("FloatStorage", 0, 12), 5, (8,), (1,)), "beyond its storage"),
        (rebuilt(storage("FloatStorage", 0, 12), 0, (3, 4), (5, 1)), "beyond its storage"),
        (
            rebuilt(storage("FloatStorage", 0, 10**12), 0, (10**12,), (1,)),
            "storage of 4000000000000 bytes, of which 48",
        ),
        (rebuilt(storage("FloatStorage", 0, 12), -1, (3,), (1,)), "a tensor that is none"),
        (rebuilt(storage("FloatStorage", 0, 12), 0, (-3,), (1,)), "a tensor that is none"),
        (rebuilt(storage("FloatStorage", 0, 12), 0, (3,), (-1,)), "a tensor that is none"),
        (rebuilt(storage("FloatStorage", 0, 12), 0, (2**70,), (1,)), "a tensor that is none"),
        (rebuilt(storage("FloatStorage", 0, 12), 0, (1,) * 9, (1,) * 9), "a tensor that is none"),
        (rebuilt(storage("FloatStorage", 0, 12), 0, (3, 4), (1,)), "a tensor of 2 axes and 1 strides"),
        (rebuilt(storage("FloatStorage", 0, -1), 0, (), ()), "a storage that is none"),
        (rebuilt("x", 0, (3,), (1,)), "a tensor that is none"),
        (rebuilt(storage("FloatStorage", 9, 12), 0, (12,), (1,)), "it lacks 'archive/data/9'"),
        (Raw(pickled(("module", 1)) + b"Q"), "refers to what is no storage"),
        (Raw(pickled({}) + pickled({"a": 1}) + b"b"), "sets the state of a dict"),
        (Raw(b"]" + b"(" * 10**5 + b"t" * 10**5), "its pickle is damaged"),
        (Raw(b"h\x05"), "recalls what it never had"),
        (Raw(b"u"), "items of what is no dict|an end without its beginning"),
        (Raw(b"R"), "takes more than there is|arguments that are no tuple"),
        (Raw(b"\x8b\xff\xff\xff\x7f"), "pickle"),  # LONG4 of two gigabytes
        (Raw(b"X\xff\xff\xff\xff"), "pickle"),  # BINUNICODE of four
        (Raw(b"\x8e" + b"\xff" * 8), "its pickle"),  # BINBYTES8
    ],
)
def test_tensors_that_cannot_be_are_a_sentence(tmp_path, value, words):
    path = write(tmp_path / "x.pt", b"\x80\x02" + pickled({"a": value}) + b".", [A.tobytes()])
    with pytest.raises(ValueError, match=words) as raised:
        open_tensors(path)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 400 and "\n" not in str(raised.value)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    save(tmp_path / "x.pt", {"a": {"b": np.ones(3, np.float32)}, "a.b": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"x.pt cannot be read: it holds a\.b twice"):
        open_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "opcodes",
    [
        LIST
        + (b"cbuiltins\nset\nh\x00\x85R0" * 20_000).replace(b"0", b"q\x01"),  # a set of a long list, again and again
        LIST + b"ctorch\nSize\nh\x00\x85R",  # a size of a hundred thousand numbers
        LIST + b"(" + b"h\x00\x85" * 20_000 + b"t",  # references, none of which is a copy
        b"}q\x00(" + b"".join(text(f"k{i}") + b"h\x00" for i in range(20)) + b"u",  # a dict that holds itself, 20 times
        b")q\x00" + b"h\x00h\x00\x86q\x00" * 200_000 + b"q\x01}h\x01Ns",  # 2^200000 leaves, used as a key
    ],
)
def test_what_grows_without_end_does_not(tmp_path, opcodes):
    path, began = write(tmp_path / "x.pt", b"\x80\x02" + opcodes + b"."), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        open_tensors(path)
    except ValueError as error:
        assert str(path) in str(error)
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_pickle_has_a_size(tmp_path, monkeypatch):
    path = save(tmp_path / "x.pt", {"a": A})
    monkeypatch.setattr("cogvx_jax.convert.torch_files.MAX_PICKLE", 10)
    with pytest.raises(ValueError, match="its pickle takes [0-9]+ bytes, where at most 10 are read"):
        open_tensors(path)
    monkeypatch.undo()
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 10)
    with pytest.raises(ValueError, match="its pickle has more than 10 opcodes"):
        open_tensors(path)


def test_other_containers_are_refused(tmp_path):
    whole = save(tmp_path / "x.pt", {"a": A}).read_bytes()

    def said(data):
        (tmp_path / "y.pt").write_bytes(data)
        with pytest.raises(ValueError, match="y.pt cannot be read: ") as raised:
            open_tensors(tmp_path / "y.pt")
        return str(raised.value).partition("read: ")[2]

    assert said(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.").startswith("its pickle is damaged")
    assert said(b"").startswith("truncated, or no zip of torch")
    assert said(b"hello").startswith("truncated, or no zip of torch")
    assert said(whole[:-30]).startswith("truncated, or no zip of torch")
    assert "git lfs pull" in said(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    write(tmp_path / "y.pt", b".", byteorder=b"big")
    assert "not little-endian" in said((tmp_path / "y.pt").read_bytes())
    TorchFile().write(tmp_path / "y.pt", {"a": A}, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed, which torch does not do" in said((tmp_path / "y.pt").read_bytes())
    write(tmp_path / "y.pt", b"N.", more=[("other/data.pkl", b"N.")])
    assert "a zip with 2 files data.pkl in it" in said((tmp_path / "y.pt").read_bytes())
    with pytest.raises(FileNotFoundError):
        open_tensors(tmp_path / "nowhere.pt")


def test_a_list_of_entries_has_a_size(tmp_path):
    """Its size stands in the file: of a large hole it would take gigabytes."""
    with (tmp_path / "x.pt").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(3 * 2**30)
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, 2 * 2**30, 2**30, 0))
    began = time.process_time()
    with pytest.raises(ValueError, match="x.pt cannot be read: truncated, or no zip of torch"):
        open_tensors(tmp_path / "x.pt")
    assert time.process_time() - began < 5


def mutate(data, rng):
    """Damage at random, mostly in the pickle and the list of entries; at times a number becomes a huge one."""
    data, kind = bytearray(data), rng.randrange(5)
    pickle = data.index(b"\x80\x02"), data.index(b"us.") + 3
    first, last = rng.choice([pickle, pickle, (len(data) - 900, len(data)), (0, len(data))])
    at = rng.randrange(max(0, first), last)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(max(0, first), last)] = rng.randrange(256)
    elif kind == 2:  # as long as before, so that the zip stays whole
        word = rng.choice(
            [b"\x8a\x08" + b"\xff" * 7 + b"\x0f", b"R", b"b", b"0", b"Q", b"ctattle\nrun\n", b"h\x00", b"("]
        )
        data[at : at + len(word)] = word
    elif kind == 3:  # every number of the pickle a large one
        data[pickle[0] : pickle[1]] = data[pickle[0] : pickle[1]].replace(b"J\x04\x00\x00\x00", b"J\xff\xff\xff\x7f")
        data[at] = rng.randrange(256)
    else:
        data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def test_a_thousand_damaged_files_are_sentences(tmp_path, tattle):
    rng, refused = random.Random(0), 0
    arrays = {f"layer.{i}.weight": np.ones((4, 4), np.float32) for i in range(4)}
    path = tmp_path / "x.pt"
    write_torch(path, [Tensor.of(key, array) for key, array in arrays.items()], "module")
    whole, began = path.read_bytes(), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(1000):
        path.write_bytes(mutate(whole, rng))
        try:
            found = open_tensors(path)
            for key in found:
                assert np.prod(found[key].shape, dtype=float) * found[key].dtype.itemsize <= len(whole)
                if not isinstance(found[key], Unreadable):
                    found.read(key)
        except ValueError as error:
            refused += 1
            assert not isinstance(error, ConversionError) and "\n" not in str(error), (number, str(error))
            assert str(path) in str(error) and len(str(error)) < 400 + len(str(path)), (number, str(error))
        except BaseException:
            pytest.fail(f"mutation {number}: {traceback.format_exc()[-2000:]}")
    assert refused > 300
    assert time.process_time() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def legacy(path, arrays, change=lambda parts: parts):
    """A file as torch wrote it before version 1.6; `change` gets its five pickles and the rest, and gives them back."""
    entries = {key: (number, array) for number, (key, array) in enumerate(arrays.items())}

    def tensor(number, array):
        stored = ("storage", name("torch", STORAGES[str(array.dtype)]), f"{number}", "cuda:0", array.size, None)
        return rebuilt(Raw(pickled(stored) + b"Q"), 0, array.shape, [s // array.itemsize for s in array.strides])

    values = [
        torch_legacy.MAGIC,
        torch_legacy.PROTOCOL,
        {"protocol_version": 1001, "little_endian": True},
        {f"module.{key}": tensor(*entry) for key, entry in entries.items()},
        [f"{number}" for number, _ in entries.values()],
    ]
    numbers = [np.int64(array.size).tobytes() + array.tobytes() for array in arrays.values()]
    parts = change([b"\x80\x02" + pickled(value) + b"." for value in values] + numbers)
    path.write_bytes(b"".join(parts))
    return path


def test_the_format_before_the_zip(tmp_path):
    arrays = {"a": A, "half": np.arange(6, dtype=np.float16).reshape(2, 3)}
    tensors = open_tensors(legacy(tmp_path / "x.pkl", arrays))
    assert set(tensors) == {"module.a", "module.half"}
    for key, array in arrays.items():
        np.testing.assert_array_equal(tensors.read(f"module.{key}"), array)
        assert tensors[f"module.{key}"].dtype == array.dtype


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda parts: [*parts[:-1], parts[-1][:-1]], "truncated: storage '0' ends at byte"),
        (lambda parts: parts[:-1], "truncated: storage '0' ends at byte"),
        (lambda parts: parts[:3], "its pickle is damaged"),
        (lambda parts: [*parts[:-1], np.int64(2).tobytes() + parts[-1][8:]], "has 2 numbers, its pickle says"),
        (lambda parts: [parts[1], *parts[1:]], "none that torch wrote"),
        (lambda parts: [*parts[:2], b"\x80\x02}.", *parts[3:]], "not little-endian"),
        (lambda parts: [*parts[:4], b"\x80\x02](X\x01\x00\x00\x007e.", *parts[5:]], "storage '7' is of no known type"),
        (lambda parts: [*parts[:4], b"\x80\x02].", *parts[5:]], "it lacks the storage '0'"),
    ],
)
def test_what_is_wrong_with_the_format_before_the_zip(tmp_path, change, said):
    with pytest.raises(ValueError, match="x.pkl cannot be read: ") as raised:
        open_tensors(legacy(tmp_path / "x.pkl", {"a": A}, change))
    assert said in str(raised.value)
