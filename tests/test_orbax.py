"""`cogvx convert`: what it writes loads onto any mesh, bit for bit, and damage is found."""

import json
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.convert import ConversionError, write_orbax
from cogvx_jax.convert import orbax as stored
from cogvx_jax.pipelines.model import TINY

BIAS = "transformer/blocks/attention/norm_q/bias"


@pytest.fixture(scope="module")
def converted(small, tmp_path_factory):
    """A converted model; copy it before changing it."""
    folder = tmp_path_factory.mktemp("orbax") / "model"
    write_orbax(small("5b")[0], folder)
    return folder


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


@pytest.mark.parametrize(
    "axes",
    [{"fsdp": 4, "tensor": 2}, *(pytest.param(axes, marks=pytest.mark.full) for axes in (None, {"cfg": 2, "sp": 4}))],
)
def test_the_parameters_are_the_same_on_any_mesh(small, converted, axes):
    source, model = small("5b")
    loaded = cx.load(converted, mesh=axes and cx.make_mesh(**axes), verify=True)
    assert loaded.spec == model.spec
    assert loaded.tokenizer("a red circle").input_ids == model.tokenizer("a red circle").input_ids
    assert_identical(loaded.params, model.params)
    if axes == {"fsdp": 4, "tensor": 2}:
        kernel = loaded.params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 8
        placed = cx.load(source, mesh=loaded.mesh).params
        assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, loaded.params, placed))


@pytest.mark.full
def test_large_parameters_are_read_layer_by_layer(small, converted, monkeypatch):
    from cogvx_jax.sharding import placement

    read, asked = stored.OrbaxArrays.read, []

    def noted(self, path, dtype, index):
        asked.append((path, index[0]))
        return read(self, path, dtype, index)

    monkeypatch.setattr(placement, "STAGED_BYTES", 0)
    monkeypatch.setattr(stored.OrbaxArrays, "read", noted)
    loaded = cx.load(converted, mesh=cx.make_mesh(fsdp=8), components=("transformer",))
    assert_identical(loaded.params["transformer"], small("5b")[1].params["transformer"])
    assert ("blocks/mlp/up/kernel", slice(0, 1)) in asked


def test_orbax_itself_restores_it(small, converted):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(converted / "vae" / "orbax")
    assert_identical(restored, jax.tree.map(np.asarray, small("5b")[1].params["vae"]))


def test_blocks_are_layers(tmp_path, monkeypatch):
    write_orbax(TINY, tmp_path / "tiny")
    arrays = stored.OrbaxArrays(tmp_path / "tiny", "transformer")
    kernel = arrays["blocks/mlp/up/kernel"]
    assert kernel.shape[0] > 1 and kernel.chunk_layout.read_chunk.shape == (1, *kernel.shape[1:])
    monkeypatch.setattr(stored, "BLOCK_BYTES", 2 * kernel[0].size * 4)
    assert [len(block) for block in arrays.rows("blocks/mlp/up/kernel")] == [2] * (kernel.shape[0] // 2)


@pytest.mark.full
def test_types_are_kept_or_cast_and_a_converted_model_converts(small, converted, tmp_path):
    spec = small("5b")[1].spec
    write_orbax(converted, tmp_path / "half", "bfloat16")
    dtypes = {path: array["dtype"] for path, array in stored.read_digests(tmp_path / "half").items()}
    assert set(dtypes.values()) == {"bfloat16", "float32"}
    assert {path.split("/")[0] for path, dtype in dtypes.items() if dtype == "float32"} == {"vae"}
    ours = cx.load(tmp_path / "half", dtype="bfloat16").params
    assert_identical(ours, cx.load(small("5b")[0], dtype="bfloat16").params)
    assert {a["dtype"] for a in stored.read_digests(converted).values()} == {"float32"}
    assert spec.trained_dtype == "bfloat16"  # so that the line above says that the file's own type was kept


def test_a_changed_byte_is_found(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "model")
    largest = max((folder / "vae").rglob("d/*"), key=lambda p: p.stat().st_size)
    raw = bytearray(largest.read_bytes())
    for at in range(len(raw) // 32, len(raw), len(raw) // 16):  # one place may belong to nothing that is read
        raw[at] ^= 1
    largest.write_bytes(raw)
    with pytest.raises(ConversionError, match=r"model is damaged:\n  (changed|unreadable): vae/"):
        cx.load(folder, verify=True)
    cx.load(folder, verify=True, components=("transformer",))  # only what is loaded is verified


def test_a_lying_digest_is_found(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "model")
    manifest = json.loads((folder / stored.DIGESTS).read_text())
    manifest["arrays"][BIAS]["sha256"] = "0" * 64
    (folder / stored.DIGESTS).write_text(json.dumps(manifest))
    with pytest.raises(ConversionError) as error:
        stored.verify(folder)
    assert error.value.problems == (f"changed: {BIAS} is not what its digest says",)


def test_missing_and_misshapen_arrays_are_found_without_verifying(small, converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "model")
    shutil.rmtree(folder / "transformer" / "orbax")
    params = jax.tree.map(np.asarray, small("5b")[1].params["transformer"])
    del params["blocks"]["attention"]["norm_q"]["bias"]
    params["out"]["bias"] = params["out"]["bias"][:-1]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "transformer" / "orbax", params)
    with pytest.raises(ConversionError) as error:
        cx.load(folder, components=("transformer",))
    misshapen, missing = error.value.problems
    assert misshapen == "misshapen: out/bias is (15,), not (16,)"
    assert missing == "missing: blocks/attention/norm_q/bias (1, 16)"


def test_a_folder_that_is_not_ours_is_refused(small, converted, tmp_path):
    with pytest.raises(ValueError, match="only Orbax checkpoints of `cogvx convert` and models of `cogvx quantize`"):
        cx.load(small("5b")[0], verify=True)
    folder = shutil.copytree(converted, tmp_path / "model")
    (folder / stored.DIGESTS).write_text('{"format": "cogvx orbax 9", "arrays": {}}')
    with pytest.raises(ConversionError, match="its format is 'cogvx orbax 9', not 'cogvx orbax 1'"):
        cx.load(folder)


def test_nothing_is_left_behind_where_writing_fails(small, converted, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="is not an empty folder; nothing was written"):
        write_orbax(small("5b")[0], converted)

    def fails(*args, **options):
        raise OSError("no room")

    monkeypatch.setattr(ocp.Checkpointer, "save", fails)
    with pytest.raises(OSError, match="no room"):
        write_orbax(small("5b")[0], tmp_path / "model")
    assert not [*tmp_path.iterdir()]


def test_the_commands(small, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    out = tmp_path / "model"
    assert f"{out}: 0.0" in run("convert", small("5b")[0], out)
    assert "every array is what was written" in run("verify", out)
