"""Fixtures that several test files share."""

import atexit
import dataclasses
import fcntl
import gc
import os
import shutil
import signal
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from budget import (  # noqa: F401
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_runtest_setup,
    pytest_terminal_summary,
)
from flax import traverse_util
from forgetting import pytest_runtest_teardown  # noqa: F401
from safetensors.numpy import save_file

import cogvx_jax as cx
from cogvx_jax.cli.main import VERBS
from cogvx_jax.configs import GenerationDefaults, ModelSpec, ScheduleConfig, T5Config, TransformerConfig, VAEConfig
from cogvx_jax.convert import export, lpips
from cogvx_jax.metrics.lpips import LPIPS, MEAN
from cogvx_jax.nn.backend import BY_PLATFORM, PLAIN
from cogvx_jax.sharding import params_digest
from cogvx_jax.tiny.tokenizer import build_tokenizer
from cogvx_jax.train.clips.cache import ClipCache, clip_name, open_cache, store_of, text_name, write_cache

# What imports have made stays: to look for garbage in all of it, again and again, took a tenth of the tests' time.
gc.set_threshold(50_000, 20, 50)

# A shell ignores Ctrl-C for programs in its background, and the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before the first computation: the tests of meshes need several devices. The others use the first.
jax.config.update("jax_num_cpu_devices", 8)
# An axis that is missing is a mistake: what is broadcast says so.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Nobody reads which lines of Python a program's operations come from.
jax.config.update("jax_traceback_in_locations_limit", 0)

# To trace and to compile take most of the time of the quick tests. To compile takes less at LLVM's lowest level, with
# each program in one piece, and by XLA's older emitter of loops, which jaxlib 0.10 still has. `.ci/run` gives the usual
# level, and so the usual emitter, to the tests of parity and to those marked `full`.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    quick = ["--xla_backend_optimization_level=0"]
    if jaxlib.__version__.startswith("0.10."):  # XLA ends the process at a flag that it does not know
        quick += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick]).strip()

# The VAE's convolutions are computed by their definition. Frame by frame, which a CPU computes fastest, a decoder takes
# twice as long to trace and to compile. `test_formulations.py` says that both are equal. Tests of parity, and those
# marked `full`, compute frame by frame in `.ci/run`.
if "--xla_backend_optimization_level=0" in os.environ["XLA_FLAGS"].split():
    BY_PLATFORM["cpu"] = dataclasses.replace(BY_PLATFORM["cpu"], causal_conv=PLAIN.causal_conv)

# Programs are compiled once for all tests of a run, its worker processes and the commands they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cogvx_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def every_verb():
    """A verb's file that is first imported while a test replaces what it imports would keep the replacement."""
    for verb in VERBS.values():
        assert verb.run


@pytest.fixture(scope="session")
def random_params():
    """`random_params(module, *inputs, seed=0, **kwargs)`: a random number in every parameter.

    Nothing is initialised, so nothing is compiled; norms and biases are not their trivial 1 and 0.
    """

    def make(module, *inputs, seed=0, **kwargs):
        rng = np.random.default_rng(seed)
        shapes = nn.unbox(jax.eval_shape(lambda *i: module.init(jax.random.key(0), *i, **kwargs), *inputs))["params"]

        def draw(path, leaf):
            name = path[-1].key
            if name == "kernel":
                fan_in = np.prod(leaf.shape[:-1]) / (leaf.shape[0] if path[0].key == "blocks" else 1)
                return np.float32(rng.normal(size=leaf.shape) / np.sqrt(fan_in))
            return np.float32((name == "scale") + 0.3 * rng.normal(size=leaf.shape))

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return make


@pytest.fixture(scope="session")
def lpips_file(tmp_path_factory, random_params):
    """Random weights of an LPIPS of few channels, in a file as the package `lpips` writes it."""
    picture = jnp.zeros((1, 16, 16, 3))
    leaves = traverse_util.flatten_dict(random_params(LPIPS((4, 4, 8, 8, 8)), picture, picture), sep="/")
    rows = {row.ours: row for row in lpips.TABLE}
    tensors = {rows[path].theirs: np.ascontiguousarray(rows[path].change.write(x)) for path, x in leaves.items()}
    file = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(tensors | {"scaling_layer.shift": MEAN[None, :, None, None]}, file)
    return file


@pytest.fixture(scope="session")
def random_cache():
    """`random_cache(folder, model, shape, count)`: clips of random numbers, as `cogvx encode` would write them."""

    def make(folder, model, shape, count):
        rng, store = np.random.default_rng(shape.width), store_of(folder)
        channels, cfg = model.spec.vae.latent_channels, model.spec.transformer
        for i in range(count):
            mean = rng.normal(size=((shape.frames - 1) // 4 + 1, shape.height // 8, shape.width // 8, channels))
            moments = np.float32(np.concatenate([mean, np.full_like(mean, -5)], axis=-1))
            image = np.zeros((shape.height, shape.width, 3), np.uint8)
            store.add(clip_name(f"{i}"), {"moments": moments, "image": image})
        for text in ("words", "empty"):
            states = rng.normal(size=(cfg.text_length, cfg.text_dim))
            store.add(text_name(text), {"states": np.float32(states)})
        store.commit()
        made = {part: params_digest(model.params[part]) for part in ("vae", "text_encoder")}
        clips = tuple((f"{i}", "words") for i in range(count))
        write_cache(ClipCache(folder=folder, model=model.spec.name, shape=shape, clips=clips, empty="empty", **made))
        return open_cache(folder)

    return make


KINDS = {
    "2b": dict(position="sincos"),
    "5b": dict(position="rope"),
    "5b-i2v": dict(position="rope+learned", in_channels=8),
    "1.5-5b": dict(position="rope_slice", patch_t=2),
    "1.5-5b-i2v": dict(position="rope_slice", patch_t=2, in_channels=8, ofs_dim=16),
    "control": dict(position="rope", in_channels=8, control=True),
    "inpaint": dict(position="rope", in_channels=9),
    "1.5-control": dict(position="rope_slice", patch_t=2, in_channels=8, control=True),
    "1.5-inpaint": dict(position="rope_slice", patch_t=2, in_channels=9),
}


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """kind -> a loaded random model that makes 32x48 videos of 9 (1.5: 17) frames in 4 steps."""
    made, parts = {}, {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("models") / kind
            copy_of_the_run(tmp_path_factory, folder, lambda new: write_random(new, kind, parts))
            made[kind] = folder, cx.load(folder)
        return made[kind]

    return make


def copy_of_the_run(tmp_path_factory, folder, write):
    """Has one process of the run write a folder, by `write(folder)`; each has its own copy, which tests may change."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # of all processes
    whole = run / "shared" / folder.name
    whole.parent.mkdir(exist_ok=True)
    with open(f"{whole}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            begun = whole.with_name(f"{whole.name}.begun")
            shutil.rmtree(begun, ignore_errors=True)  # of a process that was ended
            write(begun)
            begun.rename(whole)
    shutil.copytree(whole, folder)


def write_random(folder, kind, parts):
    """Writes the small model of a kind. `parts` keeps what the kinds share, VAE and text encoder."""
    frames = 17 if kind.startswith("1.5") else 9
    spec = ModelSpec(
        name=f"small-{kind}",
        transformer=TransformerConfig(
            layers=1,
            heads=3,
            head_dim=16,
            out_channels=4,
            text_dim=16,
            text_length=24,
            time_dim=16,
            sample_height=4,
            sample_width=6,
            sample_frames=frames,
            **({"in_channels": 4} | KINDS[kind]),
        ),
        vae=VAEConfig(channels=(4, 4, 8, 8), layers=1, groups=2, latent_channels=4, scaling_factor=0.7),
        text_encoder=T5Config(layers=1, width=16, heads=2, head_dim=8, mlp=32, vocab=128),
        schedule=ScheduleConfig(snr_shift=1.0),
        defaults=GenerationDefaults(height=32, width=48, num_frames=frames, num_inference_steps=4),
        trained_dtype="bfloat16",
    )
    cfg = spec.transformer
    shape = (1, cfg.sample_latent_frames + (-cfg.sample_latent_frames) % (cfg.patch_t or 1), 4, 6)
    model = cx.Model(spec=spec, params={}, tokenizer=None)
    inputs = {
        "transformer": (jnp.zeros((*shape, cfg.in_channels)), jnp.zeros((1, 24, 16)), jnp.zeros(1)),
        "vae": (jnp.zeros((1, 1, 16, 16, 3)),),
        "text_encoder": (jnp.zeros((1, 24), jnp.int32),),
    }

    def init(name, args):
        key = name, getattr(spec, name)
        if key not in parts:
            parts[key] = nn.unbox(jax.jit(getattr(model, name).init)(jax.random.key(0), *args))["params"]
        return parts[key]

    export(folder, spec, {name: init(name, args) for name, args in inputs.items()})
    build_tokenizer(folder / "tokenizer", 24)
