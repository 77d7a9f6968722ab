"""The same result on any mesh: small models of all kinds on up to 8 virtual devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close
from jax.sharding import PartitionSpec as P

import cogvx_jax as cx
from cogvx_jax import axes
from cogvx_jax.models import vae as vaes
from cogvx_jax.nn.attention import attention
from cogvx_jax.pipelines.latents import decode_batch, decode_frames, encode_batch
from cogvx_jax.pipelines.memory import in_strips
from cogvx_jax.sharding import activate, parse_mesh

KINDS = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v", "control", "1.5-inpaint", "repaint", "windows", "edit")
MODELS = {"repaint": "5b", "windows": "5b", "edit": "5b"}  # of kinds of tasks that other models have
MESHES = (  # one of each axis, then all of them in pairs that meet in an array; 3 heads divide by none
    dict(data=2),
    dict(fsdp=2),
    dict(cfg=2),
    dict(context=2),
    dict(sp=2),
    dict(tensor=2),
    dict(cfg=2, sp=2),
    dict(context=2, tensor=2),
    dict(fsdp=4, sp=2),
    dict(cfg=2, context=2, sp=2),
    dict(data=2, cfg=2, tensor=2),
    dict(fsdp=2, context=2, tensor=2),
)
IMAGE = np.tile(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (32, 1, 3))
CLIP = np.stack([np.roll(IMAGE, 2 * i, axis=1) for i in range(17)])
INPUTS = {  # of a kind, beside the prompt
    "5b-i2v": dict(image=IMAGE),
    "1.5-5b-i2v": dict(image=IMAGE, last_image=IMAGE[::-1]),
    "control": dict(control=CLIP, control_end=0.5, num_frames=9),
    "1.5-inpaint": dict(video=CLIP, mask=CLIP[..., 0] > 99, strength=0.5),
    "windows": dict(num_frames=17, windows="12:4"),
    "edit": dict(edit=CLIP[:9]),
    "repaint": dict(video=CLIP[:9], mask=CLIP[:9, ..., 0] > 99, strength=0.5),
}


def mesh_of(sizes):
    return cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


def name(sizes):
    return ",".join(f"{k}{v}" for k, v in sizes.items())


@functools.cache
def _latents(folder, kind, mesh, prompts=1):
    model = cx.load(folder, mesh=mesh)
    prompt, inputs = ["a red circle", "a blue star"][:prompts], INPUTS.get(kind, {})
    steps = 4 if "strength" in inputs else 2
    return cx.generate(
        model, prompt, num_inference_steps=steps, sampler="dpm", output="latents", progress=False, **inputs
    )


def everywhere():
    """All kinds on all meshes. One kind on two meshes, which have all axes but data between them, is quick."""
    for kind in KINDS:
        for sizes in MESHES:
            few = kind == "5b" and len(sizes) == 3 and "data" not in sizes
            yield pytest.param(kind, sizes, id=f"{kind}-{name(sizes)}", marks=() if few else pytest.mark.full)


@pytest.mark.parametrize("kind, sizes", list(everywhere()))
def test_latents_are_the_same_on_every_mesh(small, kind, sizes):
    folder, _ = small(MODELS.get(kind, kind))
    close(_latents(folder, kind, mesh_of(sizes)), _latents(folder, kind, None))


def test_two_videos_side_by_side(small):
    folder, _ = small("5b")
    both = _latents(folder, "5b", mesh_of(dict(data=2, cfg=2)), prompts=2)
    close(both, _latents(folder, "5b", None, prompts=2))
    close(both[:1], _latents(folder, "5b", None))  # noise is a function of (seed, video) alone


@pytest.mark.parametrize("sizes", [dict(context=4), dict(sp=4), dict(context=2, sp=4), dict(fsdp=2, sp=2)], ids=name)
@pytest.mark.parametrize("bad", [np.nan, *(pytest.param(bad, marks=pytest.mark.full) for bad in (np.inf, 1e30))])
def test_what_stands_in_the_padding_does_not_matter(sizes, bad):
    rng = np.random.default_rng(0)
    tokens, heads = 13, 3  # neither divides
    mesh = mesh_of(sizes)
    with activate(mesh):
        length = axes.padded(1, tokens)
    assert length == 16
    q, k, v = rng.normal(size=(3, 1, heads, length, 8)).astype(np.float32)
    expected = attention(q[:, :, :tokens], k[:, :, :tokens], v[:, :, :tokens], scale=8**-0.5)
    q[:, :, tokens:], k[:, :, tokens:], v[:, :, tokens:] = bad, bad, bad
    attend = functools.partial(axes.attend, functools.partial(attention, scale=8**-0.5), tokens=tokens)
    with activate(mesh):
        y = jax.jit(attend)(q, k, v)
    np.testing.assert_allclose(y[:, :, :tokens], expected, rtol=0, atol=1e-6)


def test_weights_are_split_as_the_rules_say(small):
    folder, _ = small("5b")
    params = cx.load(folder, mesh=mesh_of(dict(fsdp=4, tensor=2))).params
    up = params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    assert up.sharding.spec == P(None, ("fsdp",), ("tensor",))
    assert up.addressable_shards[0].data.nbytes * 8 == up.nbytes
    # The text encoder is stored over all devices, whatever the mesh.
    kernel = cx.load(folder, mesh=mesh_of(dict(cfg=2, sp=4))).params["text_encoder"]["blocks"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.nbytes * 8 == kernel.nbytes


@pytest.mark.parametrize("sizes", [dict(fsdp=4, tensor=2), pytest.param(None, marks=pytest.mark.full)])
def test_large_stacks_arrive_layer_by_layer(small, monkeypatch, sizes):
    from cogvx_jax.sharding import placement

    folder, model = small("5b")
    monkeypatch.setattr(placement, "STAGED_BYTES", 0)
    again = cx.load(folder, mesh=sizes and mesh_of(sizes))
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


VAE_CASES = (  # mesh, frames: 17 are two batches, joined by the cache
    pytest.param(dict(sp=2, cfg=2), 9, id="sp2,cfg2", marks=pytest.mark.full),
    pytest.param(dict(sp=4, cfg=2), 17, id="sp4,cfg2", marks=pytest.mark.full),
    pytest.param(dict(context=2, tensor=2), 9, id="context2,tensor2", marks=pytest.mark.full),
    pytest.param(dict(data=4, sp=2), 17, id="data4,sp2", marks=pytest.mark.full),
)


@pytest.mark.parametrize("sizes, frames", VAE_CASES)
def test_the_vae_is_the_same_on_every_mesh(small, sizes, frames):
    folder, model = small("2b")
    mesh = mesh_of(sizes)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, frames, 48, 80, 3)).astype(np.float32)  # 6 x 10: uneven
    vae, params = model.vae, model.params["vae"]
    moments = vaes.encode(vae, params, jnp.asarray(pixels), encode_batch=encode_batch(vae))
    there = cx.load(folder, mesh=mesh).params["vae"]
    again = vaes.encode(vae, there, cx.sharding.replicate(pixels, mesh), encode_batch=encode_batch(vae, mesh))
    close(np.asarray(again), np.asarray(moments))
    latents = np.asarray(vaes.mode(moments))
    decoded = vaes.decode(vae, params, jnp.asarray(latents), decode_batch=decode_batch(vae))
    spread = vaes.decode(vae, there, cx.sharding.replicate(latents, mesh), decode_batch=decode_batch(vae, mesh))
    close(np.asarray(spread), np.asarray(decoded))


@pytest.mark.full
def test_in_strips_each_device_decodes_whole_frames(small):
    """17 frames are two batches; 48 rows in four strips."""
    folder, model = small("2b")
    latents = np.random.default_rng(0).standard_normal((1, 5, 6, 10, 4), np.float32)
    there = in_strips(cx.load(folder, mesh=mesh_of(dict(sp=4, cfg=2))), 4)
    whole, again = (np.concatenate(list(decode_frames(m, latents))) for m in (model, there))
    assert np.abs(np.int16(whole) - again).max() <= 1


@pytest.mark.full
def test_the_vae_holds_its_cache_in_parts(small):
    folder, _ = small("2b")
    mesh = mesh_of(dict(sp=4, cfg=2))
    model = cx.load(folder, mesh=mesh)
    latents = cx.sharding.replicate(np.zeros((1, 2, 8, 8, 4), np.float32), mesh)
    _, cache = decode_batch(model.vae, mesh)(model.params["vae"], latents, None)
    last = cache["decoder"]["conv_out"] if "decoder" in cache else cache["conv_out"]
    assert last.addressable_shards[0].data.nbytes * 8 == last.nbytes


REFUSED = {
    "product": (dict(cfg=2, sp=2), "the mesh cfg=2 x sp=2 is for 4 devices, there are 8"),
    "branches": (dict(cfg=4, sp=2), "guidance has only 2 branches"),
    "size": (dict(sp=0), "the mesh axis sp has size 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_meshes_are_refused(case):
    sizes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        cx.make_mesh(**sizes)


def test_meshes_by_name():
    assert dict(parse_mesh("cfg=2, sp=4").shape) == dict(data=1, fsdp=1, cfg=2, context=1, sp=4, tensor=1)
    for text in ("cfg", "rows=2", "cfg=2,cfg=4", "sp=-8"):
        with pytest.raises(ValueError, match="is not a mesh such as 'cfg=2,sp=4'"):
            parse_mesh(text)
