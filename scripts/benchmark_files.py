"""Seconds and memory to open a SAT file of a 5B model, and to convert it, beside the authors' converter.

    python -m cogvx_jax.scripts.benchmark_files
    python -m cogvx_jax.scripts.benchmark_files --layers 4 --official CogVideo/tools/convert_weight_sat2hf.py

The file is sparse: it has the shapes of CogVideoX-5B, and holes for numbers. Each figure is a process of its own.
`above` is the peak of resident memory less that before, and less the arrays that the process holds in the end.
"""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import tyro

from cogvx_jax.convert.checkpoint import component_parameters
from cogvx_jax.convert.config import write_configs
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.sat import PREFIXES, write_sat
from cogvx_jax.convert.torch_writer import padded, pickle_of
from cogvx_jax.presets import PRESETS

COMMON = """
import json, re, sys, time
from pathlib import Path
def peak():  # not ru_maxrss, which begins at the peak of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
place, target, layers, official = sys.argv[1:]
"""
WAYS = {
    "open, to arrays in bfloat16": """
import jax
from cogvx_jax.convert.sources import open_source
from cogvx_jax.pipelines.weights import load_component
source = open_source(Path(place)); spec = source.spec()
jax.block_until_ready(jax.numpy.zeros(8))
before, began = peak(), time.monotonic()
params = jax.block_until_ready(load_component(source, spec, "transformer", "bfloat16", None))
seconds, held = time.monotonic() - began, sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps([seconds, peak() - before - held, held]))
""",
    "convert to the published layout": """
from cogvx_jax.convert.sources import open_source
from cogvx_jax.convert.targets import write_model
source = open_source(Path(place)); source.spec()
before, began = peak(), time.monotonic()
write_model(source, target, "diffusers", parts=("transformer",))
print(json.dumps([time.monotonic() - began, peak() - before, 0]))
""",
    "the authors' converter": """
import importlib.util, torch
spec = importlib.util.spec_from_file_location("official", official)
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
before, began = peak(), time.monotonic()
model = module.convert_transformer(f"{place}/transformer/1/mp_rank_00_model_states.pt", int(layers), 48, True, False,
                                   torch.bfloat16, {"patch_size_t": None})
model.save_pretrained(target)
print(json.dumps([time.monotonic() - began, peak() - before, 0]))
""",
}


def main(*, layers: int = 42, official: Path | None = None) -> None:
    """Prints a table.

    Args:
      layers: of the model; 5B has 42, whose arrays take 11 GB of memory and as much of the disk.
      official: convert_weight_sat2hf.py of CogVideo, to run beside it.
    """
    print("| | seconds | peak memory above |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "sat"
        sparse_sat(folder, layers)
        for number, (way, code) in enumerate(WAYS.items()):
            if "authors" in way and official is None:
                continue
            arguments = [str(folder), f"{temporary}/{number}", str(layers), str(official or "")]
            seconds, above, held = measure(code, arguments)
            beside = f", beside {held / 1e9:.1f} of arrays" if held else ""
            print(f"| {way} | {seconds:.1f} | {above / 1e9:.2f} GB{beside} |", flush=True)


def measure(code: str, arguments: list[str]) -> tuple[float, int, int]:
    command = [sys.executable, "-c", COMMON + code, *arguments]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def sparse_sat(folder: Path, layers: int) -> None:
    """A SAT folder of a 5B transformer whose numbers take no room on disk."""
    spec = PRESETS["5b"]
    spec = dataclasses.replace(spec, transformer=dataclasses.replace(spec.transformer, layers=layers))
    dtype = np.dtype(ml_dtypes.bfloat16)
    published = [
        Tensor(key, parameter.their_shape, dtype, lambda: np.zeros(0))
        for parameter in component_parameters(spec, "transformer")
        for key in parameter.keys
    ]
    prefix = PREFIXES["transformer"]
    tensors = [dataclasses.replace(t, key=prefix + t.key) for t in write_sat(published, "transformer")]
    file = folder / "transformer" / "1" / "mp_rank_00_model_states.pt"
    file.parent.mkdir(parents=True)
    write_configs(spec, folder)
    (folder / "model_index.json").unlink()
    (folder / "transformer" / "latest").write_text("1")
    entries: dict[str, bytes | int] = {"data.pkl": pickle_of(tensors, "module"), "byteorder": b"little"}
    entries |= {f"data/{number}": tensor.bytes for number, tensor in enumerate(tensors)}
    write_sparse(file, entries | {"version": b"3\n"})


def write_sparse(path: Path, entries: dict[str, bytes | int]) -> None:
    """A zip of stored entries, their bytes or how many there are: a hole."""
    central, at = b"", 0
    with path.open("wb") as file:
        for name, content in entries.items():
            size = content if isinstance(content, int) else len(content)
            name = f"{path.stem}/{name}"
            extra = padded(at + 30 + len(name))
            crc = 0 if isinstance(content, int) else zlib.crc32(content)  # of holes, nobody looks
            common = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, crc, size, size, len(name), len(extra))
            file.write(b"PK\x03\x04" + common + name.encode() + extra)
            if isinstance(content, bytes):
                file.write(content)
            else:
                file.seek(size, os.SEEK_CUR)
            long = struct.pack("<HHQ", 1, 8, at) if at >= 2**32 - 1 else b""
            common = struct.pack("<6H3L2H", 45, 45, 0, 0, 0, 33, crc, size, size, len(name), len(long))
            central += (
                b"PK\x01\x02" + common + struct.pack("<3H2L", 0, 0, 0, 0, min(at, 2**32 - 1)) + name.encode() + long
            )
            at = file.tell()
        count = len(entries)
        file.write(central)
        end = file.tell()
        file.write(b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, len(central), at))
        file.write(b"PK\x06\x07" + struct.pack("<LQL", 0, end, 1))
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, len(central), min(at, 2**32 - 1), 0))


if __name__ == "__main__":
    tyro.cli(main)
