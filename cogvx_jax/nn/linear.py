"""The affine layer all models use, with the meaning of its axes."""

import jax
from flax import linen as nn

# torch draws Linear weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); this has that variance.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Dense(nn.Module):
    """(..., in) -> (..., features), computed in `dtype`; `axes` names the kernel's two axes."""

    features: int
    axes: tuple[str | None, str | None]
    dtype: str = "float32"
    bias: bool = True
    init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.with_logical_partitioning(self.init, self.axes), (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.bias:
            return y
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[1:])
        return y + self.param("bias", zeros, (self.features,)).astype(self.dtype)
