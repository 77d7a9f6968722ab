"""Weights of the networks that finish videos, Real-ESRGAN's and RIFE's: safetensors, torch's files, or ncnn's.

Sources: `realesr-animevideov3.pth`, `RealESRGAN_x4plus.pth` and `RealESRGAN_x4plus_anime_6B.pth` of
https://github.com/xinntao/Real-ESRGAN, and their ncnn files; `flownet.pkl` of https://github.com/hzwer/ECCV2022-RIFE,
version 3 (HDv3).
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cogvx_jax.convert.checkpoint import Published
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.finite import is_finite
from cogvx_jax.convert.infer import Shapes, count_blocks
from cogvx_jax.convert.ncnn import GRAPH
from cogvx_jax.convert.tables import CONV2D, Change, Row, resolve, under
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.models.abstract import Abstract
from cogvx_jax.models.rife import PAIRS, RIFE
from cogvx_jax.models.upscalers import CompactUpscaler, DenseUpscaler, Upscaler

COMPACT, DENSE, FLOW = "body.0.weight", "conv_first.weight", "block0.conv0.0.0.weight"  # names that tell a network
UNUSED = re.compile(r"block_tea\.")  # of RIFE: the teacher, of training alone
MAX_LAYERS = 256  # of a compact network

# A transposed convolution's (in, out, h, w), turned by 180 degrees -> (h, w, in, out); see `nn.conv2d`.
TURNED = Change(
    "turned", lambda x: x[:, :, ::-1, ::-1].transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1)[:, :, ::-1, ::-1]
)
CONV = (Row("weight", "kernel", CONV2D), Row("bias", "bias"))
TRANSPOSED = (Row("weight", "kernel", TURNED), Row("bias", "bias"))
SLOPE = (Row("weight", "slope"),)

DENSE_TABLE = (
    *under("conv_first", "conv_first", CONV),
    *under("body.{i}.rdb{n}.conv{l}", "blocks/dense{n}/conv{l}", CONV),
    *(row for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last") for row in under(name, name, CONV)),
)


def compact_table(layers: int) -> tuple[Row, ...]:
    """The rows of a compact network: theirs counts convolutions and activations together."""
    rows: list[Row] = []
    for i in range(layers + 2):
        rows += under(f"body.{2 * i}", f"conv_{i}", CONV)
        if i <= layers:
            rows += under(f"body.{2 * i + 1}", f"act_{i}", SLOPE)
    return tuple(rows)


def _flow_rows() -> Iterator[Row]:
    for i in range(2):
        yield from under(f"block{{l}}.conv0.{i}.0", f"block{{l}}/down{i}", CONV)
        yield from under(f"block{{l}}.conv0.{i}.1", f"block{{l}}/down{i}_act", SLOPE)
        for pair in range(PAIRS):
            yield from under(f"block{{l}}.convblock{pair}.{i}.0", f"block{{l}}/pair{pair}_{i}", CONV)
            yield from under(f"block{{l}}.convblock{pair}.{i}.1", f"block{{l}}/pair{pair}_{i}_act", SLOPE)
    for theirs, ours in (("conv1", "flow"), ("conv2", "mask")):
        yield from under(f"block{{l}}.{theirs}.0", f"block{{l}}/{ours}0", TRANSPOSED)
        yield from under(f"block{{l}}.{theirs}.1", f"block{{l}}/{ours}_act", SLOPE)
        yield from under(f"block{{l}}.{theirs}.2", f"block{{l}}/{ours}1", TRANSPOSED)


FLOW_TABLE = tuple(_flow_rows())


def read_upscaler(place: str | Path) -> tuple[Upscaler, dict[str, Any]]:
    """The network that a file holds, one of Real-ESRGAN's, and its parameters, float32.

    What a file of ncnn does after the network, as animevideov3-x2 halves the picture, is left out: its scale is 4.

    Raises: FileNotFoundError; ValueError for a file that cannot be read or holds another network; ConversionError
      listing every missing, spare or misshapen tensor.
    """
    tensors = _named(open_tensors(place))
    dense, compact = _without(tensors, DENSE), _without(tensors, COMPACT)
    if dense is not None:
        network, rows = _dense(dense), DENSE_TABLE
        return network, _read(network, 1, rows, dense, f"Real-ESRGAN's network of {network.blocks} blocks")
    if compact is None:
        raise ValueError(f"{place} holds no upscaler that is known here: {_names(tensors)}")
    chain = _compact(compact)
    what = f"Real-ESRGAN's compact network of {chain.layers} layers"
    return chain, _read(chain, 1, compact_table(chain.layers), compact, what)


def holds_network(tensors: Tensors) -> bool:
    """Whether a file's tensors are those of a network that finishes videos, by their names."""
    if GRAPH in tensors.metadata:
        return any(re.fullmatch(pattern, tensors.metadata[GRAPH]) for pattern in GRAPHS)
    names = (FLOW, "conv_body.weight", COMPACT)
    found = [name for name in names if _without(tensors, name) is not None]
    return bool(found) and (found[0] != COMPACT or _without(tensors, "body.1.weight") is not None)


def find_network(tensors: Tensors) -> Upscaler | RIFE:
    """The network of a file, of names and shapes alone. Raises: ValueError; ConversionError."""
    tensors = _named(tensors)
    if (flow := _without(tensors, FLOW)) is not None:
        return _flow(flow)
    if (dense := _without(tensors, DENSE)) is not None:
        return _dense(dense)
    if (compact := _without(tensors, COMPACT)) is not None:
        return _compact(compact)
    raise ValueError(f"{tensors.where} holds no network that is known here: {_names(tensors)}")


def _named(tensors: Tensors) -> Tensors:
    """Under torch's names, also what ncnn's files hold. Raises: ValueError for another network of ncnn's."""
    return _of_ncnn(tensors) if GRAPH in tensors.metadata else tensors


def read_rife(place: str | Path) -> tuple[RIFE, dict[str, Any]]:
    """RIFE HDv3 of a file, and its parameters, float32. Raises: as `read_upscaler`."""
    tensors = _without(whole := open_tensors(place), FLOW)
    if tensors is None:
        raise ValueError(f"{place} holds no RIFE of version 3 (HDv3): {_names(whole)}")
    tensors = tensors.of({name: tensors[name] for name in tensors if not UNUSED.match(name)})
    network = _flow(tensors)
    return network, _read(network, 2, FLOW_TABLE, tensors, f"RIFE HDv3 of width {network.width}")


def _flow(tensors: Tensors) -> RIFE:
    shapes = Shapes(tensors, "RIFE")
    width = shapes.of("block0.conv0.1.0.weight", 4)[0]
    shapes.check()
    return RIFE(width)


def _dense(tensors: Tensors) -> DenseUpscaler:
    shapes = Shapes(tensors, "Real-ESRGAN")
    width, channels, *_ = shapes.of(DENSE, 4)
    growth = shapes.of("body.0.rdb1.conv1.weight", 4)[0]
    shapes.check()
    if channels != 3:
        raise ValueError(f"{tensors.where} takes {channels} channels, as networks of x2 and x1 do; give one of x4")
    return DenseUpscaler(width, growth, count_blocks(tensors, r"body\.(\d{1,3})\."))


def _compact(tensors: Tensors) -> CompactUpscaler:
    count = count_blocks(tensors, r"body\.(\d{1,3})\.")
    shapes = Shapes(tensors, "Real-ESRGAN's compact network")
    width, last = shapes.of(COMPACT, 4)[0], shapes.of(f"body.{max(count - 1, 0)}.weight", 4)[0]
    shapes.check()
    scale = round((last / 3) ** 0.5)
    if count < 3 or count % 2 == 0 or count > MAX_LAYERS or 3 * scale**2 != last:
        raise ConversionError(
            f"{tensors.where} does not hold Real-ESRGAN's compact network",
            [f"body has {count} entries, the last of {last} channels; it would have an odd count, and 3, 12, 27 or 48"],
        )
    return CompactUpscaler(width, (count - 3) // 2, scale)


def _read(network: nn.Module, inputs: int, rows: tuple[Row, ...], tensors: Tensors, what: str) -> dict[str, Any]:
    """Parameters of a network that takes so many pictures. Raises: ConversionError; ValueError for NaN."""
    types = _types(network, inputs)
    parameters = resolve(rows, {path: own.shape for path, own in types.items()})
    source = Published(tensors, parameters, types, what)
    found = {p: source.read(p, np.dtype("float32"), tuple(slice(n) for n in source.shape(p))) for p in source}
    if wrong := next((path for path, leaf in found.items() if not is_finite(leaf)), None):
        raise ValueError(
            f"{tensors.where} holds numbers that are not finite, in {wrong}: it is damaged, or its training diverged"
        )
    return traverse_util.unflatten_dict(found, sep="/")


@functools.cache  # tracing RIFE takes a second
def _types(network: nn.Module, inputs: int) -> dict[str, Abstract]:
    """Parameters by path, but for their numbers."""
    picture = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    boxes = jax.eval_shape(lambda *x: network.init(jax.random.key(0), *x), *[picture] * inputs)["params"]
    flat = traverse_util.flatten_dict(boxes, sep="/")
    return {path: Abstract(box.value.shape, box.names) for path, box in flat.items()}


def _without(tensors: Tensors, mark: str) -> Tensors | None:
    """The tensors without what stands in front of all names; None where there is no `mark`, below others or not."""
    found = next((name for name in tensors if name == mark or name.endswith(f".{mark}")), None)
    if found is None:
        return None
    prefix = found.removesuffix(mark)
    return tensors.of({name.removeprefix(prefix): tensors[name] for name in tensors})


DENSE_BLOCK = "(?:(?:Convolution Concat ){4}Convolution Eltwise ){3}Eltwise "
DENSE_END = "(?:Interp Convolution ){2}Convolution Convolution"
GRAPHS = {  # what ncnn computes -> the names of its layers with numbers
    "Input (?:Convolution PReLU )+Convolution PixelShuffle Interp BinaryOp(?: Interp)?": COMPACT,
    f"Input Convolution (?:{DENSE_BLOCK})+Convolution BinaryOp {DENSE_END}": DENSE,
}


def _of_ncnn(tensors: Tensors) -> Tensors:
    """The tensors of ncnn's files under torch's names. Raises: ValueError for another network."""
    graph = tensors.metadata[GRAPH]
    mark = next((mark for pattern, mark in GRAPHS.items() if re.fullmatch(pattern, graph)), None)
    if mark is None:
        raise ValueError(f"{tensors.where} holds another network than Real-ESRGAN's: {graph[:100]}...")
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    names = [f"body.{i}" for i in range(len(layers))] if mark == COMPACT else _dense_names(len(layers))
    theirs = dict(zip(layers, names, strict=True))
    return tensors.of(
        {f"{theirs[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensors[name] for name in tensors}
    )


def _dense_names(count: int) -> list[str]:
    blocks = [f"body.{i}.rdb{n}.conv{k}" for i in range((count - 6) // 15) for n in range(1, 4) for k in range(1, 6)]
    return ["conv_first", *blocks, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def _names(tensors: Tensors) -> str:
    names = list(tensors)
    return f"its tensors are called {', '.join([*names[:3], *(['...'] if len(names) > 3 else [])]) or 'nothing'}"
