"""BRISQUE: how damaged a picture looks, without another one to compare with; 0 is good, 100 is bad.

Brightness that is normalised by its neighbourhood has one shape of histogram in undamaged photographs. Shapes of its
values and of neighbours' products, in two sizes, are 36 numbers, and a support vector machine makes a score of them.

Source: Mittal, Moorthy and Bovik 2012, "No-reference image quality assessment in the spatial domain"; the order of the
numbers, the filters and the machine are those of the package brisque 0.2.0, which is not imported.
"""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np

from cogvx_jax.storage import read_file

LUMA = np.array([0.2125, 0.7154, 0.0721])
SIDE, DEVIATION = 7, 7 / 6  # of the Gaussian window
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, and both diagonals
NUMBERS = 36
LEAST = 32  # pixels of a side
MOST_BYTES = 4 * 2**20
ALPHAS = np.arange(0.2, 10.0, 0.001)  # shapes of histograms: 2 is a normal one
# The least and the most of each number among the pictures that the machine was made of.
LOW = np.array(
    "0.336999 0.019667 0.23 -0.125959 0.000167 0.000616 0.231 -0.125873 0.000165 0.0006 0.241 -0.128814 0.000179 "
    "0.000386 0.243 -0.13308 0.000182 0.000421 0.436998 0.016929 0.247 -0.200231 0.000104 0.000834 0.257 -0.200017 "
    "0.000112 0.000876 0.257 -0.155072 0.000112 0.000356 0.258 -0.154374 0.000117 0.000351".split(),
    np.float64,
)
HIGH = np.array(
    "9.999411 0.807472 1.644021 0.202917 0.712384 0.468672 1.644021 0.169548 0.713132 0.467896 1.553016 0.101368 "
    "0.687324 0.533087 1.554016 0.101 0.689177 0.533133 3.639918 0.800955 1.096995 0.175286 0.755547 0.39927 1.095995 "
    "0.155928 0.751488 0.402398 1.041992 0.093209 0.623516 0.532925 1.042992 0.093714 0.621958 0.534484".split(),
    np.float64,
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """A support vector regression with Gaussian kernels, N of them.

    weights: (N,). centres: (N, 36). gamma: of the kernels. offset: taken from the sum.
    """

    weights: np.ndarray
    centres: np.ndarray
    gamma: float
    offset: float

    def __call__(self, numbers: np.ndarray) -> float:
        """A score of (36,)."""
        x = -1 + 2 * (numbers - LOW) / (HIGH - LOW)
        kernels = np.exp(-self.gamma * np.square(self.centres - x).sum(1))
        return float(self.weights @ kernels - self.offset)


@functools.cache
def read_machine(path: Path) -> Machine:
    """Of the text that libsvm writes. Raises: FileNotFoundError; ValueError, with the file's name, for another one."""
    try:
        head, _, body = read_file(path, MOST_BYTES).decode("ascii").partition("\nSV\n")
        said = dict(line.split(maxsplit=1) for line in head.splitlines())
        if (said["svm_type"], said["kernel_type"]) != ("epsilon_svr", "rbf"):
            raise ValueError("it is no regression with Gaussian kernels")
        lines = [line.split() for line in body.splitlines()]
        centres = np.zeros((len(lines), NUMBERS))
        for n, (_, *pairs) in enumerate(lines):
            for place, value in (pair.split(":") for pair in pairs):
                centres[n, range(NUMBERS)[int(place) - 1]] = float(value)
        weights = np.array([float(line[0]) for line in lines])
        found = Machine(weights, centres, float(said["gamma"]), float(said["rho"]))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is no machine of BRISQUE as libsvm writes it: {error}") from None
    if not len(lines) or not np.isfinite([*weights, *centres.ravel(), found.gamma, found.offset]).all():
        raise ValueError(f"{path} is no machine of BRISQUE: it has no numbers, or some are not finite")
    return found


def brisque(frame: np.ndarray, machine: Machine) -> float | None:
    """The score of a frame (H, W, 3) uint8 RGB; None of a flat one and of one with a side of fewer than 32 pixels.

    Raises: ImportError without OpenCV.
    """
    import cv2

    if min(frame.shape[:2]) < LEAST:
        return None
    luma = frame.astype(np.float32) @ (LUMA / 255).astype(np.float32)
    half = cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)  # type: ignore[call-overload]
    numbers = np.array([*_shapes(luma), *_shapes(half)])
    return machine(numbers) if np.isfinite(numbers).all() else None


def _shapes(luma: np.ndarray) -> list[float]:
    """18 numbers of luma (H, W), 0 to 1: of its normalised values two, of each of four products of neighbours four."""
    import cv2

    mean, square = (
        cv2.GaussianBlur(x, (SIDE, SIDE), DEVIATION, borderType=cv2.BORDER_CONSTANT) for x in (luma, luma**2)
    )
    x = (luma - mean) / (np.sqrt(np.abs(square - mean**2)) + 1 / 255)
    alpha, _, left, right = _fitted(x)
    found, (height, width) = [alpha, (left + right) / 2], x.shape
    for down, aside in NEIGHBOURS:
        here = x[: height - down, max(-aside, 0) : width - max(aside, 0)]
        there = x[down:, max(aside, 0) : width - max(-aside, 0)]
        found += _fitted(here * there)
    return found


def _fitted(x: np.ndarray) -> tuple[float, float, float, float]:
    """An asymmetric generalised Gaussian by its moments: shape, mean, and the variance of either side; nan of none."""
    left, right = (float(np.mean(np.square(side))) if side.size else math.nan for side in (x[x < 0], x[x >= 0]))
    if not left > 0 or not right > 0:
        return (math.nan,) * 4
    ratio = math.sqrt(left / right)
    wanted = np.mean(np.abs(x)) ** 2 / np.mean(x**2) * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alpha = float(np.interp(wanted, _ratios(), ALPHAS))
    gammas = [math.gamma(n / alpha) for n in (1, 2, 3)]
    mean = (math.sqrt(right) - math.sqrt(left)) * math.sqrt(gammas[0] / gammas[2]) * gammas[1] / gammas[0]
    return alpha, mean, left, right


@functools.cache
def _ratios() -> np.ndarray:
    """What the squared mean to the mean square is of each shape; it grows with `ALPHAS`."""
    ways = ([math.lgamma(n / alpha) for alpha in ALPHAS] for n in (1, 2, 3))
    first, second, third = map(np.array, ways)
    return np.exp(2 * second - first - third)
