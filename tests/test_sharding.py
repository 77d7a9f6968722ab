"""Names of axes to places on a mesh."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from cogvx_jax import axes
from cogvx_jax.sharding import RULES, activate, place, spec


def test_every_name_has_a_rule_and_every_rule_a_name():
    assert set(RULES) == axes.AXES


def test_unknown_names_and_wrong_counts_raise():
    mesh = jax.make_mesh((1,), ("data",))
    with pytest.raises(ValueError, match="unknown axis names .'sequence'."):
        axes.constrain(jnp.zeros((2, 3)), "batch", "sequence")
    with pytest.raises(ValueError, match="1 axis names"):
        axes.constrain(jnp.zeros((2, 3)), "batch")
    with pytest.raises(ValueError, match="unknown axis names"):
        spec(("depth",), mesh, (4,))


def test_spec_keeps_whole_what_does_not_divide():
    mesh = jax.make_mesh((1,), ("data",))
    assert spec(("batch", None, "embed"), mesh, (4, 3, 8)) == PartitionSpec(("data",), None, None)
    assert spec(("heads",), mesh, (4,)) == PartitionSpec(None)  # no such mesh axis


def test_activate_places_and_ends():
    mesh = jax.make_mesh((1,), ("data",))
    with activate(mesh):
        y = jax.jit(lambda x: axes.constrain(x, "batch", "embed"))(jnp.ones((2, 3)))
    assert y.sharding.mesh.shape == mesh.shape
    x = jnp.ones((2, 3))
    assert axes.constrain(x, "batch", "embed") is x
    with activate(None):
        assert axes.constrain(x, "batch", "embed") is x


def test_place_copies_to_every_device():
    mesh = jax.make_mesh((1,), ("data",))
    placed = place({"a": jnp.ones(3)}, mesh)
    assert placed["a"].sharding.is_fully_replicated
