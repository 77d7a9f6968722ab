"""LoRAs in both directions: trained here and opened by diffusers, made by diffusers and PEFT and opened here."""

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import cogvx_jax as cx  # noqa: E402
from cogvx_jax.convert import read_lora, write_lora  # noqa: E402
from cogvx_jax.models import lora as loras  # noqa: E402
from cogvx_jax.models.lora import LoRA, LoRAConfig  # noqa: E402
from cogvx_jax.train import step as update  # noqa: E402
from cogvx_jax.train.transformer.objective import Objective, make_lora_loss  # noqa: E402


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pipelines = _load("parity_pipelines", Path(__file__).with_name("test_pipelines.py"))
record = pipelines.record
SIZE = pipelines.SMALL
REQUEST = dict(num_frames=9, num_inference_steps=4, guidance_scale=6.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "5b"
    return record.build("5b", folder), cx.load(folder, dtype="float32")


@pytest.fixture
def pipe(models):
    yield models[0]
    models[0].unload_lora_weights()


def train(model, cfg):
    """A few updates on noise at a high rate, so that the adapters change what is generated."""
    rng = np.random.default_rng(0)
    channels = model.spec.vae.latent_channels
    batch = {"moments": rng.normal(size=(2, 3, 4, 6, 2 * channels)).astype(np.float32)}
    batch |= {"text": rng.normal(size=(2, record.TEXT_LENGTH, 24)).astype(np.float32)}
    batch |= {"base": model.params["transformer"]}
    loss, tx = (
        make_lora_loss(model.spec, model.compute, Objective(text_dropout=0), cfg.alpha / cfg.rank),
        optax.adam(0.1),
    )
    step = jax.jit(lambda state: update.step(state, batch, jax.random.key(1), loss_fn=loss, tx=tx, decay=0.5))
    state = update.init(loras.init(jax.random.key(0), model.params["transformer"], cfg), tx)
    for _ in range(5):
        state, _ = step(state)
    return LoRA(adapters=state.average, rank=cfg.rank, alpha=cfg.alpha)


def test_a_lora_trained_here_is_the_same_in_diffusers(models, pipe, tmp_path):
    model = models[1]
    lora = train(model, LoRAConfig(rank=3, alpha=6.0, targets=("to_q", "to_k", "to_v", "to_out.0", "ff")))
    file = tmp_path / "pytorch_lora_weights.safetensors"
    write_lora(file, lora, model.spec)
    pipe.load_lora_weights(str(tmp_path))
    found = pipe.transformer.peft_config["default_0"]
    assert (found.r, found.lora_alpha, len(pipe.transformer._hf_peft_config_loaded and found.target_modules)) == (
        3,
        6,
        12,
    )
    adapted = cx.load_lora(model, file)
    both = dict(sampler="dpm", theirs={}, ours={}, **REQUEST)
    frames = pipelines.compare(pipe, adapted, pipelines.PROMPTS[0], SIZE, **both)
    pipe.set_adapters("default_0", 0.4)
    half = pipelines.compare(pipe, cx.load_lora(model, file, 0.4), pipelines.PROMPTS[0], SIZE, **both)
    assert np.abs(frames.astype(int) - half).mean() > 1  # else nothing would be compared


def test_a_lora_of_peft_is_the_same_here(models, pipe, tmp_path):
    torch.manual_seed(0)
    targets = ["to_q", "to_v", "to_out.0", "ff.net.2"]
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    state = peft.get_peft_model_state_dict(pipe.transformer)
    metadata = pipe.transformer.peft_config["default"].to_dict()
    pipe.save_lora_weights(tmp_path / "with", state, transformer_lora_adapter_metadata=metadata)
    adapted = cx.load_lora(models[1], tmp_path / "with")
    pipelines.compare(pipe, adapted, pipelines.PROMPTS[0], SIZE, sampler="ddim", theirs={}, ours={}, **REQUEST)

    pipe.save_lora_weights(tmp_path / "without", state)  # no alpha: as much as the rank
    plain, scaled = (read_lora(tmp_path / name, models[1].spec) for name in ("without", "with"))
    assert (plain.scale, scaled.scale, scaled.rank) == (1.0, 0.5, 4)
    jax.tree.map(np.testing.assert_array_equal, plain.adapters, scaled.adapters)


def test_the_folder_of_a_peft_model_is_read(models, tmp_path):
    folder = tmp_path / "base"
    record.build("5b", folder)
    transformer = diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False, use_rslora=True)
    wrapped = peft.get_peft_model(transformer, config)
    wrapped.save_pretrained(tmp_path / "peft")
    lora = read_lora(tmp_path / "peft", models[1].spec)
    merged = wrapped.merge_and_unload().transformer_blocks[1].attn1.to_q.weight.detach().numpy().T
    ours = loras.merge(models[1].params["transformer"], lora.adapters, lora.scale)["blocks"]["attention"]["q"]["kernel"]
    np.testing.assert_allclose(ours[1], merged, atol=1e-5)
