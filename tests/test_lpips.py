"""LPIPS of few channels, and the file of its weights; `tests/parity/test_lpips.py` has the package `lpips`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cogvx_jax.convert import ConversionError, read_lpips


@pytest.mark.full
def test_distances_and_their_gradient(lpips_file):
    network, params = read_lpips(lpips_file)
    assert network.widths == (4, 4, 8, 8, 8)
    rng = np.random.default_rng(0)
    x, noise = rng.uniform(-1, 1, (3, 16, 24, 3)), rng.normal(size=(3, 16, 24, 3))
    weights = params | {f"weight_{i}": jnp.abs(params[f"weight_{i}"]) for i in range(5)}

    @jax.jit
    def distance(y):
        return network.apply({"params": weights}, jnp.asarray(x), y)

    near, far = distance(x + 0.02 * noise), distance(x + 0.3 * noise)
    assert near.shape == (3,) and (near > 0).all() and (far > 2 * near).all()
    np.testing.assert_allclose(distance(jnp.asarray(x)), 0, rtol=0, atol=1e-10)
    # Where a ReLU leaves nothing at all, torch's gradient is NaN.
    weights = jax.tree.map(lambda p: p - (10 if p.shape == (4,) else 0), weights)
    gradient = jax.grad(lambda y: jnp.sum(network.apply({"params": weights}, jnp.asarray(x), y)))(x + noise)
    assert np.isfinite(gradient).all()


def test_a_file_that_does_not_fit_is_refused(tmp_path, lpips_file):
    tensors, bad = load_file(lpips_file), tmp_path / "bad.safetensors"

    def said(changed):
        save_file(changed, bad)
        with pytest.raises(ConversionError) as error:
            read_lpips(bad)
        return str(error.value)

    del tensors["net.slice5.28.bias"]
    assert "missing: net.slice5.28.bias (8,)" in said(tensors)
    tensors = load_file(lpips_file)
    assert "spare: lin5" in said(tensors | {"lin5": np.zeros(1, np.float32)})
    assert "misshapen: net.slice1.0.weight is (4, 1, 3, 3)" in said(
        tensors | {"net.slice1.0.weight": np.zeros((4, 1, 3, 3), np.float32)}
    )
    assert "scaling_layer.shift is [0. 0. 0.]" in said(tensors | {"scaling_layer.shift": np.zeros(3, np.float32)})
    del tensors["lin2.model.1.weight"]
    assert "missing: lin2.model.1.weight" in said(tensors)
    bad.write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as weights of LPIPS"):
        read_lpips(bad)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_lpips(tmp_path / "none")
