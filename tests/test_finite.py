"""Numbers that are not finite: an error that names where they come from, and no video."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packings import save
from safetensors.numpy import load_file, save_file

import cogvx_jax as cx
from cogvx_jax.convert import open_lora
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.lora_write import merge_loras
from cogvx_jax.convert.packed import unpacked
from cogvx_jax.convert.sources import open_source
from cogvx_jax.convert.targets import write_model
from cogvx_jax.models.lora import Difference, LoRA
from cogvx_jax.models.lora_blocks import add_to_block
from cogvx_jax.pipelines.finite import NotFiniteError
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.train.transformer.videos import write_videos

IMAGE = np.full((32, 48, 3), 90, np.uint8)


def damaged(model, component, path, index):
    """The model with one NaN in a parameter."""
    params = jax.tree.map(lambda x: x, model.params)
    inner = params[component]
    *folders, name = path.split("/")
    for folder in folders:
        inner = inner[folder]
    inner[name] = inner[name].at[index].set(jnp.nan)
    return dataclasses.replace(model, params=params)


@pytest.mark.parametrize(
    "component, path, index, said",
    [
        ("transformer", "blocks/mlp/up/kernel", (0, 1, 2), "sampling step 1 of 4"),
        ("vae", "decoder/conv_out/kernel", (0, 0, 0, 0, 0), "decoding the latents"),
        ("text_encoder", "norm/scale", (0,), "encoding the prompt"),
    ],
)
def test_a_weight_is_named(small, component, path, index, said):
    _, model = small("5b")
    broken = damaged(model, component, path, index)
    block = " of block 0" if path.startswith("blocks") else ""
    cause = rf"as the {component} of small-5b holds some in {path}{block} \(1 of its"
    with pytest.raises(NotFiniteError, match=f"{said} gave numbers that are not finite, {cause}"):
        cx.generate(broken, "a red circle", progress=component == "transformer")


@pytest.mark.full
def test_weights_of_the_encoder_of_an_image_are_named(small):
    _, model = small("5b-i2v")
    broken = damaged(model, "vae", "encoder/conv_out/kernel", (0, 0, 0, 0, 0))
    with pytest.raises(NotFiniteError, match="encoding the image or video gave .* in encoder/conv_out/kernel"):
        cx.generate(broken, "a red circle", image=IMAGE, output="latents", progress=False)


class Noise(SeededNoise):
    """Infinite in the second step."""

    def step(self, index, shape):
        return super().step(index, shape) + (np.inf if index == 1 else 0)


@pytest.mark.parametrize("progress", [False, True])
def test_a_step_is_named_where_all_weights_are_finite(small, progress):
    _, model = small("5b")
    with pytest.raises(
        NotFiniteError, match="step 2 of 4 gave .* though all weights of the transformer of small-5b are"
    ):
        cx.generate(model, "a red circle", sampler="dpm", noise=Noise(0), progress=progress)


def test_in_one_program(small):
    _, model = small("5b")
    broken = damaged(model, "transformer", "blocks/mlp/up/kernel", (0, 1, 2))
    with pytest.raises(NotFiniteError, match="one of the 4 sampling steps gave .* in blocks/mlp/up/kernel"):
        cx.generate(broken, "a red circle", sampler="ddim", one_program=True)


def test_latents_that_are_not_finite_are_refused(small):
    _, model = small("5b")
    latents = np.zeros((1, 3, 4, 6, 4), np.float32)
    latents[0, 1, 2, 3, 0] = np.inf
    with pytest.raises(ValueError, match="latents hold numbers that are not finite: 1 of 288"):
        cx.generate(model, "a red circle", latents=latents)
    with pytest.raises(NotFiniteError, match="decoding the latents gave .* though all weights of the vae"):
        list(decode_frames(model, latents))


def test_a_lora_in_memory_is_refused(small):
    _, model = small("5b")
    adapters = {"blocks/attention/q/kernel": {"a": jnp.full((1, 48, 2), jnp.nan), "b": jnp.zeros((1, 2, 48))}}
    lora = LoRA(adapters=adapters, rank=2, alpha=2.0)
    with pytest.raises(ValueError, match="not finite, in blocks/attention/q/kernel/a .*its training diverged"):
        cx.load_lora(model, lora)
    with pytest.raises(ValueError, match="the weight of a LoRA, 1e.39, times its scale, 1, is beyond float32"):
        cx.load_lora(model, dataclasses.replace(lora, adapters={}), 1e39)


def test_a_run_goes_on_without_a_video_that_is_not_finite(small, tmp_path, capsys):
    _, model = small("5b")
    wanted = [check_request(model.spec, "a red circle")]
    write_videos(damaged(model, "vae", "decoder/conv_out/kernel", (0, 0, 0, 0, 0)), wanted, tmp_path)
    assert not any(tmp_path.iterdir()) and f"no video {tmp_path / '00.mp4'}: decoding the" in capsys.readouterr().out
    write_videos(model, wanted, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00.mp4"]


def test_numpy_warns_of_nothing_that_is_named_elsewhere(small, tmp_path, recwarn):
    """Numbers of files that a narrower type cannot hold, and products of zero and infinity."""
    save_file(
        {"x.weight": np.zeros((2, 2), np.int8), "x.SCB": np.full(2, np.inf, np.float32)}, tmp_path / "x.safetensors"
    )
    weight = unpacked(open_tensors(tmp_path / "x.safetensors")).read("x.weight")
    assert np.isnan(weight).all()

    folder, key = shutil.copytree(small("5b")[0], tmp_path / "model"), "proj_out.bias"
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {key: np.full(16, 1e300)}, file)
    loaded = cx.load(folder, components=("transformer",))
    assert np.isinf(loaded.params["transformer"]["out"]["bias"]).all()
    for layout in ("diffusers", "orbax"):
        with pytest.raises(ValueError, match="holds numbers that are not finite"):
            write_model(open_source(folder), tmp_path / "new", layout, "float16")

    stem = "diffusion_model.transformer_blocks.0.attn1.to_q"
    sides = {f"{stem}.lora_A.weight": np.ones((1, 48)), f"{stem}.lora_B.weight": np.full((48, 1), 3e38)}
    strong = open_lora(save(tmp_path / "strong.safetensors", sides | {f"{stem}.diff_b": np.full(48, 3e38)}))
    for to, weight in (("comfyui", 1e5), ("peft", 1e5)):
        with pytest.raises(ValueError, match="would have numbers that float.* cannot hold; lower|no place"):
            merge_loras(tmp_path / "new.safetensors", [(strong, weight)], to)
    difference = Difference(path="blocks/attention/q/bias", values=np.full((1, 48), 3e38, np.float32), blocks=(0,))
    lora = LoRA(adapters={}, rank=1, alpha=1.0, differences=(difference, difference))
    assert np.isinf(add_to_block(((lora, 1.0),), difference.path, (slice(1), slice(48)), np.ones((1, 48)))).all()
    assert not [str(one.message) for one in recwarn if issubclass(one.category, RuntimeWarning)]
