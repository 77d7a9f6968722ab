"""What of a model is quantised, and how: integers of 8 or 4 bits with a scale for each output channel.

Symmetric, no zero point: kernel = integers * scale. `nn.quantized` computes with them, `convert` stores them.
"""

import dataclasses
import re
from typing import Any

GROUP = 128  # inputs of an int4 kernel that share a scale, unless told


@dataclasses.dataclass(frozen=True)
class Storage:
    """The numbers of a kernel (in, out): integers of `dtype`, and a float32 scale (groups, out)."""

    dtype: str  # "int8" or "int4"
    group: int | None = None  # inputs that share a scale; None: all of them

    @property
    def largest(self) -> int:
        """The largest integer; the smallest is its negative."""
        return {"int8": 127, "int4": 7}[self.dtype]

    def groups(self, features: int) -> int:
        """How many groups so many inputs make. Raises: ValueError where they do not divide."""
        if self.group is None:
            return 1
        if features % self.group:
            raise ValueError(f"groups of {self.group} do not divide {features} inputs")
        return features // self.group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """A way to quantise a model. Kernels that `COLUMNS` does not name keep their type."""

    name: str
    products: Storage  # q, k, v, out, up and down of the transformer's blocks
    modulation: Storage  # what makes shift, scale and gate of the timestep
    text: Storage  # all of the text encoder's blocks
    tokens: bool = False  # also quantise what `products` take: int8, a scale for each token
    scores: bool = False  # also quantise queries and keys, on TPUs whose kernel gains by it: see `nn.flash`
    cost: str  # of it, in words, by `cogvx quantize tiny --report`

    def storage(self, path: str) -> Storage | None:
        """How a parameter is stored; None where it stays as it is."""
        column = COLUMNS.get(path)
        return None if column is None else getattr(self, column)

    def takes_tokens(self, path: str) -> bool:
        """Whether the product of a kernel takes integers."""
        return self.tokens and COLUMNS.get(path) == "products"


def _of(kernels: Storage, **others: Any) -> Quantization:
    return Quantization(products=kernels, modulation=INT8, text=kernels, **others)


INT8 = Storage("int8")
QUANTIZATIONS = {
    "int8": _of(INT8, name="int8", cost="v of tiny is off by 0.5%"),
    "w8a8": _of(INT8, name="w8a8", tokens=True, cost="v of tiny is off by 0.9%"),
    "w8a8qk": _of(INT8, name="w8a8qk", tokens=True, scores=True, cost="as w8a8, and on TPU v5e and v5p more"),
    "int4": _of(
        Storage("int4", GROUP),
        name="int4",
        cost="v of tiny is off by 7% with int4:32",
    ),
}
# The kernels that are quantised -> the column of `Quantization` that says how. Embeddings, what makes text, patches and
# the timestep into features, the last layer, norms and biases stay as they are: they are small, and errors there count.
COLUMNS = {
    "blocks/attention/q/kernel": "products",  # of the transformer
    "blocks/attention/k/kernel": "products",
    "blocks/attention/v/kernel": "products",
    "blocks/attention/out/kernel": "products",
    "blocks/mlp/up/kernel": "products",
    "blocks/mlp/down/kernel": "products",
    "blocks/norm1/modulation/kernel": "modulation",
    "blocks/norm2/modulation/kernel": "modulation",
    **{  # of CogVideo (2022), whose base has the MLP
        f"blocks/{part}/{name}/kernel": "products"
        for part, names in (("base", ("q", "k", "v", "dense", "up", "down")), ("channel", ("q", "k", "v", "dense")))
        for name in names
    },
    "blocks/q/kernel": "text",  # of the text encoder
    "blocks/k/kernel": "text",
    "blocks/v/kernel": "text",
    "blocks/out/kernel": "text",
    "blocks/gate/kernel": "text",
    "blocks/up/kernel": "text",
    "blocks/down/kernel": "text",
}
SCALE = "_scale"  # after the path of a kernel, that of its scales


def find_quantization(text: object) -> Quantization:
    """The quantisation of a name, or of "int4:GROUP" with groups of another size.

    Raises: ValueError for an unknown one.
    """
    name = str(text)
    known, grouped = QUANTIZATIONS.get(name), re.fullmatch(r"int4:([1-9][0-9]{0,5})", name, re.ASCII)
    if known is None and grouped is None:
        raise ValueError(
            f"unknown quantisation {name[:40]!r}; the known ones are {', '.join(QUANTIZATIONS)}, int4:GROUP"
        )
    if known is not None:
        return known
    assert grouped is not None
    if int(grouped[1]) == GROUP:
        return QUANTIZATIONS["int4"]
    return _of(Storage("int4", int(grouped[1])), name=name, cost=QUANTIZATIONS["int4"].cost)
