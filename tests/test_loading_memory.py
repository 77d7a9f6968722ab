"""Loading a large checkpoint: the host holds little beside the arrays themselves."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cogvx_jax.convert import orbax_export, write_configs, write_orbax
from cogvx_jax.convert.checkpoint import component_parameters
from cogvx_jax.presets import PRESETS
from cogvx_jax.scripts.benchmark_files import sparse_sat

ROOT = Path(__file__).parents[1]
LAYERS = 4  # of 42: 0.4 of 5.6 billion parameters
LOAD = """
import re, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from pathlib import Path
import cogvx_jax as cx
from cogvx_jax.convert import read_spec
from cogvx_jax.pipelines.weights import load_component
from cogvx_jax.quantization import find_quantization
def peak_bytes():  # not ru_maxrss, which begins at the peak of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
spec = read_spec(Path(sys.argv[1]))
mesh = cx.make_mesh(fsdp=4, tensor=2)
jax.block_until_ready(jax.numpy.zeros(8))
asked = Path(sys.argv[1]), spec, "transformer", "bfloat16", mesh
before = peak_bytes()
how = find_quantization(sys.argv[2]) if sys.argv[2:] and sys.argv[2] != "streamed" else None
params = jax.block_until_ready(load_component(*asked, streamed=sys.argv[2:] == ["streamed"], quantize=how))
peak = peak_bytes()
held = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
print(held, peak - before - held)
"""


def sparse_checkpoint(folder: Path) -> None:
    """A 5B-shaped checkpoint of zeros that takes no room on disk: a header and a hole."""
    spec = PRESETS["5b"]
    spec = dataclasses.replace(spec, transformer=dataclasses.replace(spec.transformer, layers=LAYERS))
    write_configs(spec, folder)
    header, end = {}, 0
    for parameter in component_parameters(spec, "transformer"):
        for key in parameter.keys:
            size = 2 * int(np.prod(parameter.their_shape))
            header[key] = {"dtype": "BF16", "shape": parameter.their_shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory as Linux reports it")


@LINUX
@pytest.mark.full
def test_host_memory_is_bounded(tmp_path):
    sparse_checkpoint(tmp_path)
    check(tmp_path)


@LINUX
@pytest.mark.full
def test_a_model_that_is_quantised_is_never_whole(tmp_path):
    """A layer is in float32 more than once; all of them would be 1.6 GB."""
    sparse_checkpoint(tmp_path)
    check(tmp_path, "int8", held=0.4e9, above=1e9)


@LINUX
@pytest.mark.full
def test_host_memory_is_bounded_where_kernels_wait_there(tmp_path):
    sparse_checkpoint(tmp_path)
    check(tmp_path, "streamed")  # a parameter takes 0.3 GB


@LINUX
@pytest.mark.full
def test_host_memory_is_bounded_from_orbax(tmp_path, monkeypatch):
    sparse_checkpoint(tmp_path / "published")
    (tmp_path / "published" / "tokenizer").mkdir()
    (tmp_path / "published" / "tokenizer" / "spiece.model").touch()
    monkeypatch.setattr(orbax_export, "COMPONENTS", ("transformer",))
    write_orbax(tmp_path / "published", tmp_path / "orbax")
    check(tmp_path / "orbax")


@LINUX
@pytest.mark.full
def test_host_memory_is_bounded_from_sat(tmp_path):
    """More layers than above: what is read of one parameter does not stay in memory until all of it is there."""
    sparse_sat(tmp_path, 3 * LAYERS)
    check(tmp_path, held=2.9e9)


def check(folder: Path, *how: str, held: float = 0.9e9, above: float = 0.5e9) -> None:
    least, most = held, above
    done = subprocess.run(
        [sys.executable, "-c", LOAD, folder, *how],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    held, above = map(int, done.stdout.split())
    assert held > least
    assert above < most, f"{above / 1e9:.2f} GB above the {held / 1e9:.2f} GB of the arrays"
