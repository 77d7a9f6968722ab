"""Ncnn's two files: `.param` lists the layers of a network, as text, and `.bin` holds their numbers in that order.

Of a convolution there is a mark, its weights as float16 or float32, and its bias; of a PReLU its slopes. What a layer
computes is no matter of this reader: `GRAPH` in the metadata names the layers for whoever knows the network.

Source: https://github.com/Tencent/ncnn, `src/modelbin.cpp`, `src/layer/convolution.cpp`, `src/layer/prelu.cpp`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cogvx_jax.convert.tensors import Entry, Stored, Tensors
from cogvx_jax.json_files import quoted
from cogvx_jax.storage import Files

MAGIC = b"7767517"
SUFFIX = ".param"
GRAPH = "graph"  # in the metadata: the kinds of the layers in their order, but for copies
COPIES = "Split"
HALF = 0x01306B47  # the mark of float16; 0 is that of float32
WEIGHTLESS = {"Input", COPIES, "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle"}
MAX_TEXT = 2**20  # bytes; x4plus has 120,000
MAX_LAYERS = 20_000
MAX_NUMBERS = 2**31  # of a layer
MAX_NAME = 100


class _Layer(NamedTuple):
    kind: str
    name: str
    fields: dict[int, str]

    def number(self, field: int, default: int = 0) -> int:
        """Raises: ValueError for what is no number of things."""
        text = self.fields.get(field, str(default))
        if not text.isascii() or not text.isdigit() or int(text[:12]) > MAX_NUMBERS:
            raise ValueError(f"field {field} of its layer {self.name} is {quoted(text)}, not a number")
        return int(text)


def read_ncnn(files: Files, name: str) -> Tensors:
    """The tensors of a network, as LAYER.weight and LAYER.bias, in the order of the layers.

    Args:
      name: of the `.param` file; the `.bin` lies beside it.
    Raises: FileNotFoundError; ValueError, which does not name the file, for one that is damaged, and where the `.bin`
      holds fewer or more numbers than the layers have, or numbers of another network.
    """
    layers = list(_layers(files.bytes(name, MAX_TEXT)))
    weights = f"{name.removesuffix(SUFFIX)}.bin"
    entries: dict[str, Entry] = {}
    at, size = 0, files.size(weights)
    for layer in layers:
        for key, entry, end in _entries(files, layer, weights, at, size):
            if key in entries:
                raise ValueError(f"it has two layers that are called {layer.name}")
            entries[key], at = entry, end
    if at != size:
        raise ValueError(f"{weights} has {size} bytes and its layers {at}: it belongs to another network")
    graph = " ".join(layer.kind for layer in layers if layer.kind != COPIES)
    return Tensors(files, entries, metadata={GRAPH: graph})


def _layers(data: bytes) -> Iterator[_Layer]:
    try:
        magic, counts, *lines = data.decode("ascii").split("\n")
        count = int(counts.split()[0][:12])
    except (ValueError, IndexError):
        raise ValueError("it is no list of layers of ncnn") from None
    lines = [line for line in lines if line.strip()]
    if magic.strip() != MAGIC.decode() or count != len(lines) or count > MAX_LAYERS:
        raise ValueError(f"it says that it has {quoted(counts[:40])} layers and blobs, and lists {len(lines)}")
    for line in lines:
        try:
            kind, name, inputs, outputs, *rest = line.split()
            fields = [field.partition("=") for field in rest[int(inputs) + int(outputs) :]]
            yield _Layer(kind, name, {int(key): value for key, _, value in fields})
        except ValueError:
            raise ValueError(f"{quoted(line[:80])} is no layer") from None
        if len(name) > MAX_NAME:
            raise ValueError(f"{quoted(name[:80])} is no name of a layer")


def _entries(files: Files, layer: _Layer, file: str, at: int, size: int) -> Iterator[tuple[str, Entry, int]]:
    """A layer's tensors, each with the byte after it."""

    def stored(what: str, shape: tuple[int, ...], dtype: str) -> tuple[str, Entry, int]:
        entry = Stored(shape, np.dtype(dtype), file, at)
        end = at + -(-entry.bytes // 4) * 4
        _check_end(layer, file, end, size)
        return f"{layer.name}.{what}", entry, end

    if layer.kind == "Convolution":
        shape = _shape(layer)
        _check_end(layer, file, at + 4, size)
        mark = int(files.read((file, at, 4)).view("<u4")[0])
        if mark not in (0, HALF):
            raise ValueError(f"{file} has the mark {mark:#x} at byte {at}, where the weights of {layer.name} begin")
        at += 4
        yield (found := stored("weight", shape, "<f2" if mark else "<f4"))
        at = found[-1]
        if layer.number(5):
            yield stored("bias", shape[:1], "<f4")
    elif layer.kind == "PReLU":
        yield stored("weight", (layer.number(0),), "<f4")
    elif layer.kind not in WEIGHTLESS:
        raise ValueError(f"its layer {layer.name} is of the kind {quoted(layer.kind)}, which is not read")


def _shape(layer: _Layer) -> tuple[int, int, int, int]:
    """(out, in, h, w) of a convolution."""
    features, width = layer.number(0), layer.number(1)
    height, count = layer.number(11, width), layer.number(6)
    each = features * height * width
    if not each or count % each:
        raise ValueError(f"its layer {layer.name} has {count} weights, which are none of {features}x{height}x{width}")
    return features, count // each, height, width


def _check_end(layer: _Layer, file: str, end: int, size: int) -> None:
    if end > size:
        raise ValueError(f"{file} is too short: the numbers of {layer.name} end at byte {end} of {size}")
