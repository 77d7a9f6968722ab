"""The affine layer all models use, with the meaning of its axes."""

import jax
from flax import linen as nn

from cogvx_jax.axes import whole
from cogvx_jax.nn.parameters import Init, parameter
from cogvx_jax.nn.quantized import Kernel, Tokens, product

# torch draws Linear weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); this has that variance.
torch_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Dense(nn.Module):
    """(..., in) -> (..., features), computed in `dtype`; `axes` names the kernel's two axes.

    A kernel of integers has its scales beside it, "kernel_scale"; then the input may be integers, too.
    """

    features: int
    axes: tuple[str | None, str | None]
    dtype: str = "float32"
    bias: bool = True
    kernel_init: Init = torch_linear

    @nn.compact
    def __call__(self, x: jax.Array | Tokens) -> jax.Array:
        features = (x.values if isinstance(x, Tokens) else x).shape[-1]
        kernel = parameter(self, "kernel", self.kernel_init, self.axes, (features, self.features))
        if self.has_variable("params", "kernel_scale"):
            scale: jax.Array = self.get_variable("params", "kernel_scale")
            # Gathered as integers, which are fewer bytes; `product` makes other numbers of them.
            y = product(x, Kernel(whole(kernel, self.axes), whole(scale, self.axes)), self.dtype)
        elif isinstance(x, Tokens):
            raise ValueError(f"{'/'.join(self.path)} gets int8 activations, but its kernel is {kernel.dtype}")
        else:
            y = x.astype(self.dtype) @ whole(kernel.astype(self.dtype), self.axes)
        if not self.bias:
            return y
        bias = parameter(self, "bias", nn.initializers.zeros_init(), self.axes[1:], (self.features,))
        return y + jax.lax.broadcast_to_rank(bias.astype(self.dtype), y.ndim)
