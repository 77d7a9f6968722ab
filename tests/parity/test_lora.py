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
from flax import traverse_util  # noqa: E402

import cogvx_jax as cx  # noqa: E402
from cogvx_jax.convert import convert_lora, open_lora, read_lora, write_lora  # noqa: E402
from cogvx_jax.convert.lora_models import kernels, parameters  # noqa: E402
from cogvx_jax.models import lora as loras  # noqa: E402
from cogvx_jax.models.lora import Difference, LoRA, LoRAConfig  # noqa: E402
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
    # The batch is an argument, since the base's weights in it would be folded for long.
    step = jax.jit(lambda state, batch: update.step(state, batch, jax.random.key(1), loss_fn=loss, tx=tx, decay=0.5))
    state = update.init(loras.init(jax.random.key(0), model.params["transformer"], cfg), tx)
    for _ in range(5):
        state, _ = step(state, batch)
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


def odd_lora(spec, biased):
    """Every linear layer and the patch convolution, of several ranks; with `biased` differences of biases, too."""
    rng, adapters, differences = np.random.default_rng(7), {}, []
    for name, (parameter, _) in kernels(spec).items():
        rank = 2 if "attn1" in name else 3
        *layers, features, out = parameter.shape
        a, b = rng.normal(size=(*layers, features, rank)), rng.normal(size=(*layers, rank, out))
        adapters[parameter.path] = {"a": jax.numpy.asarray(a, "float32"), "b": jax.numpy.asarray(b, "float32")}
    if biased:
        values = rng.normal(size=parameters(spec)["proj_out.bias"][0].shape).astype(np.float32)
        differences.append(Difference(path="out/bias", values=jax.numpy.asarray(values)))
        width = spec.transformer.width
        values = rng.normal(size=(1, width)).astype(np.float32)
        differences.append(Difference(path="blocks/attention/q/bias", values=jax.numpy.asarray(values), blocks=(1,)))
    return LoRA(adapters=adapters, rank=3, alpha=1.5, differences=tuple(differences))


def assert_fused_weights(pipe, model, lora, weight=1.0):
    """After `fuse_lora` every weight of diffusers' transformer is ours."""
    leaves = traverse_util.flatten_dict(loras.apply(model.params["transformer"], lora, weight), sep="/")
    pipe.fuse_lora(lora_scale=weight)
    fused = {name.replace(".base_layer", ""): x.detach().clone() for name, x in pipe.transformer.named_parameters()}
    pipe.unfuse_lora()
    for name, (parameter, block) in parameters(model.spec).items():
        leaf = np.asarray(leaves[parameter.path])
        ours = parameter.change.write(leaf[block] if parameter.stacked else leaf)
        np.testing.assert_allclose(fused[name].numpy(), ours, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    "through, biased",
    [("peft", False), ("peft", True), ("comfyui", False), ("comfyui", True), ("kohya", False), ("fun", False)],
)
def test_files_of_others_written_as_peft_are_the_same_in_diffusers(models, pipe, tmp_path, through, biased):
    """Out of a file of each dialect that can hold it, by way of `convert_lora`."""
    model = models[1]
    lora = odd_lora(model.spec, biased)
    write_lora(tmp_path / "first.safetensors", lora, model.spec, through)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    convert_lora(file, open_lora(tmp_path / "first.safetensors"))
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name)
    config = pipe.transformer.peft_config["default_0"]
    adapted = [name for name, _ in pipe.transformer.named_parameters() if "lora_A" in name]
    assert (len(adapted), config.lora_bias) == (len(kernels(model.spec)), biased)
    assert_fused_weights(pipe, model, lora)
    assert_fused_weights(pipe, model, read_lora(file, model.spec))
    assert_fused_weights(pipe, model, lora, 0.4)  # the last: diffusers keeps the scale


def test_patterns_and_biases_of_peft_are_the_same_here(models, pipe, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=["to_q", "to_v", "patch_embed.proj", "proj_out", "norm1.linear"],
        rank_pattern={"to_v": 3, "1.attn1.to_q": 2},
        alpha_pattern={"to_v": 5},
        lora_bias=True,
        init_lora_weights=False,
    )
    pipe.transformer.add_adapter(config)
    with torch.no_grad():
        for name, x in pipe.transformer.named_parameters():
            if "lora_B.default.bias" in name:
                x.normal_()
    state = peft.get_peft_model_state_dict(pipe.transformer)
    metadata = pipe.transformer.peft_config["default"].to_dict()
    pipe.save_lora_weights(tmp_path, state, transformer_lora_adapter_metadata=metadata)
    lora = read_lora(tmp_path, models[1].spec)
    assert len(lora.differences) == 5 and lora.rank == 4
    assert_fused_weights(pipe, models[1], lora)
