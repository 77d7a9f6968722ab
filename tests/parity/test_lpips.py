"""LPIPS against the package `lpips`, with the same random weights, of the file that it writes."""

import sys
import types

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")  # lpips imports it

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402

from cogvx_jax.convert import read_lpips  # noqa: E402

LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # of VGG16; 0 is pooling


def vgg16(pretrained):
    """torchvision's network of this name, untrained."""
    assert not pretrained
    layers, width = [], 3
    for wider in LAYERS:
        layers += [torch.nn.Conv2d(width, wider, 3, padding=1), torch.nn.ReLU()] if wider else [torch.nn.MaxPool2d(2)]
        width = wider or width
    return types.SimpleNamespace(features=torch.nn.Sequential(*layers))


@pytest.fixture(scope="module")
def theirs():
    # lpips wants of torchvision no more than the layers above, and builds of torchvision do not fit torch's for CPUs.
    stand_in = types.ModuleType("torchvision")
    stand_in.models = types.ModuleType("torchvision.models")
    stand_in.models.vgg16 = vgg16
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", stand_in)
        patch.setitem(sys.modules, "torchvision.models", stand_in.models)
        lpips = pytest.importorskip("lpips")
    network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    torch.manual_seed(0)
    for x in network.parameters():
        with torch.no_grad():
            x.normal_(0, 0.1 if x.ndim == 1 else (2 / x[0].numel()) ** 0.5)
    return network


def pictures():
    """Two pictures and others like them, (2, 24, 19, 3): sides that pooling does not divide."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 24, 19, 3)).astype(np.float32)
    return x, np.clip(x + 0.3 * rng.normal(size=x.shape), -1, 1).astype(np.float32)


def test_distance_and_gradient(theirs, tmp_path):
    safetensors.torch.save_model(theirs, str(tmp_path / "lpips.safetensors"))  # as the docs say
    network, params = read_lpips(tmp_path / "lpips.safetensors")
    x, y = pictures()
    a, b = (torch.from_numpy(v.transpose(0, 3, 1, 2).copy()).requires_grad_() for v in (x, y))
    expected = theirs(a, b)
    expected.sum().backward()

    def distance(x, y, params):  # an argument: weights that are constants would be folded for long
        found = network.apply({"params": params}, x, y)
        return jnp.sum(found), found

    (_, found), gradients = jax.jit(jax.value_and_grad(distance, argnums=(0, 1), has_aux=True))(x, y, params)
    # Thirteen convolutions add up to 4608 products in another order each: 1.4e-5 of the largest without AVX-512.
    np.testing.assert_allclose(found, expected.detach().numpy().reshape(-1), rtol=5e-5)
    for ours, tensor in zip(gradients, (a, b), strict=True):
        gradient = tensor.grad.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, gradient, rtol=0, atol=5e-5 * np.abs(gradient).max())
