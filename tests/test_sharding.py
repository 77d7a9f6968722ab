"""Names of axes to places on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cogvx_jax import axes, presets
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.sharding import MESH_AXES, RULES, activate, make_mesh, replicate, shardings, spec
from cogvx_jax.sharding.rules import spread


def test_every_name_has_a_rule_and_every_rule_a_name():
    assert set(RULES) == axes.AXES
    assert {axis for rule in RULES.values() for axis in rule} == set(MESH_AXES)


def test_unknown_names_and_wrong_counts_raise():
    mesh = make_mesh(data=8)
    with pytest.raises(ValueError, match="unknown axis names .'sequence'."):
        axes.constrain(jnp.zeros((2, 3)), "batch", "sequence")
    with pytest.raises(ValueError, match="1 axis names"):
        axes.constrain(jnp.zeros((2, 3)), "batch")
    with pytest.raises(ValueError, match="unknown axis names"):
        spec(("depth",), mesh, (4,))


def test_two_names_cannot_share_a_mesh_axis():
    with pytest.raises(ValueError, match="'mlp' and 'heads' of one array both lie on the mesh axis 'tensor'"):
        spec(("mlp", "heads"), make_mesh(data=4, tensor=2), (8, 8))


def test_spec_keeps_whole_what_does_not_divide():
    mesh = make_mesh(data=4, tensor=2)
    assert spec(("batch", None, "mlp"), mesh, (4, 3, 8)) == P("data", None, "tensor")
    assert spec(("batch", None, "mlp"), mesh, (2, 3, 7)) == P(None, None, None)
    assert spec(("heads",), jax.make_mesh((8,), ("data",)), (4,)) == P(None)  # no such mesh axis


def test_tokens_take_what_the_batch_leaves():
    mesh = make_mesh(fsdp=4, sp=2)
    assert spec(("batch", "seq", None), mesh, (4, 16, 8)) == P("fsdp", "sp", None)
    assert spec(("batch", "seq", None), mesh, (2, 16, 8)) == P(None, ("fsdp", "sp"), None)


def test_pixels_are_split_unevenly_rather_than_not_at_all():
    assert spec((None, "height", "width"), make_mesh(cfg=2, sp=4), (1, 30, 45)) == P(None, "sp", "cfg")


def test_activate_places_and_ends():
    mesh = make_mesh(data=8)
    x = jnp.ones((8, 3))
    with activate(mesh):
        y = jax.jit(lambda x: axes.constrain(x, "batch", None))(x)
    assert y.sharding.shard_shape(y.shape) == (1, 3)
    assert axes.constrain(x, "batch", None) is x
    with activate(None):
        assert axes.constrain(x, "batch", None) is x


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_published_models_split_evenly(preset, component):
    """By fsdp and tensor, all but the small change; for storage, over all devices."""
    parameters = abstract_params(getattr(presets.PRESETS[preset], component))
    whole = sum(np.prod(p.shape) for p in parameters.values())

    def share(mesh, **kwargs):
        places = shardings(parameters, mesh, **kwargs)
        return sum(np.prod(where.shard_shape(parameters[path].shape)) for path, where in places.items()) / whole

    assert share(make_mesh(fsdp=4, tensor=2)) < (0.2 if component == "transformer" else 0.14)
    assert share(make_mesh(fsdp=8)) < 0.14
    assert share(make_mesh(cfg=2, sp=4), store_spread=True) < 0.13


def test_spread_leaves_the_layers_alone():
    mesh = make_mesh(cfg=2, sp=4)
    assert spread((24, 16, 64), mesh, ("layers", "embed", "mlp")) == P(None, None, tuple(MESH_AXES))
    assert spread((24, 3, 5), mesh, ("layers", "embed", "mlp")) == P()


@pytest.mark.parametrize("mesh", [None, {"data": 2}], ids=["one device", "a mesh"])
def test_what_is_put_on_devices_is_not_shared_with_the_caller(mesh):
    room = np.zeros(2**20 + 64, np.uint8)
    begin = -room.ctypes.data % 64
    given = room[begin : begin + 2**20].view(np.float32)  # aligned, as a CPU could take it without copying
    put = replicate(given, None if mesh is None else make_mesh(**mesh, devices=jax.devices()[:2]))
    jax.block_until_ready(put)
    given[:] = 1
    assert not np.asarray(put).any()
