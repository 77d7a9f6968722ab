"""What of a model is quantised, and how: integers of 8 or 4 bits with a scale for each output channel.

Symmetric, no zero point: kernel = integers * scale. `nn.quantized` computes with them, `convert` stores them.
"""

import dataclasses
import re

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
    """A way to quantise a model. Kernels that the columns do not name keep their type."""

    name: str
    products: Storage  # the kernels of the blocks' products
    modulation: Storage  # the kernels that make shift, scale and gate of the timestep
    tokens: bool = False  # also quantise what the transformer's products take: int8, a scale for each token
    cost: str  # of it, in words, as `scripts/eval_tiny.py` judged it

    def storage(self, path: str) -> Storage | None:
        """How a parameter is stored; None where it stays as it is."""
        column = COLUMNS.get(path)
        return None if column is None else getattr(self, column)


INT8 = Storage("int8")
QUANTIZATIONS = {
    "int8": Quantization(name="int8", products=INT8, modulation=INT8, cost="weights alone"),
    "w8a8": Quantization(name="w8a8", products=INT8, modulation=INT8, tokens=True, cost="weights and activations"),
    "int4": Quantization(name="int4", products=Storage("int4", GROUP), modulation=INT8, cost="where memory decides"),
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
    "blocks/q/kernel": "products",  # of the text encoder
    "blocks/k/kernel": "products",
    "blocks/v/kernel": "products",
    "blocks/out/kernel": "products",
    "blocks/gate/kernel": "products",
    "blocks/up/kernel": "products",
    "blocks/down/kernel": "products",
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
    return dataclasses.replace(QUANTIZATIONS["int4"], name=name, products=Storage("int4", int(grouped[1])))
