"""What a mesh does for a model while it is active: places activations, gathers weights, spreads attention."""

import contextlib
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogvx_jax import axes
from cogvx_jax.nn.backend import formulations
from cogvx_jax.sharding.mesh import auto
from cogvx_jax.sharding.rules import STORAGE, mesh_axes, spec


@contextlib.contextmanager
def activate(mesh: Mesh | None) -> Iterator[None]:
    """Inside, models that are traced compute on `mesh` by the rules; None is one device."""
    if mesh is None:
        yield
        return
    with axes.using(MeshLayout(mesh)):
        yield


class MeshLayout:
    """`axes.Layout` on a mesh, by `rules.RULES`."""

    def __init__(self, mesh: Mesh):
        self.mesh = auto(mesh)

    def constrain(self, x: jax.Array, names: axes.Names) -> jax.Array:
        return self._put(x, spec(names, self.mesh, x.shape))

    def whole(self, x: jax.Array, names: axes.Names) -> jax.Array:
        # Said here, each layer gathers its own weights. Left to the compiler, a product with a
        # spread weight becomes a chain of permutes on TPUs.
        kept = (tuple(a for a in place if a not in STORAGE) or None for place in mesh_axes(names, self.mesh, x.shape))
        return self._put(x, PartitionSpec(*kept))

    def padded(self, batch: int, tokens: int) -> int:
        # What the sequence would be split over if it divided: asked of a length that every mesh axis divides.
        _, seq = mesh_axes(("batch", "seq"), self.mesh, (batch, self.mesh.size))
        shards = math.prod(self.mesh.shape[a] for a in seq)
        if shards == 1:
            return tokens
        multiple = shards * formulations().token_multiple
        return -(-tokens // multiple) * multiple

    def parts(self, names: axes.Names, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(math.prod(self.mesh.shape[a] for a in place) for place in mesh_axes(names, self.mesh, shape))

    def attend(
        self,
        attention: axes.Attention,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens: int,
        segments: jax.Array | None,
        beside: axes.Keys | None,
    ) -> jax.Array:
        """Attention over tokens on many devices: by trading tokens for heads over "sp" and by gathering
        keys and values over the other axes of the sequence.

        Heads that do not divide are padded with zeros, whose results are dropped; keys from `tokens`
        on do not exist for `attention`. Both are exact.
        """
        mesh, heads = self.mesh, q.shape[1]
        batch, seq = mesh_axes(("batch", "seq"), mesh, (q.shape[0], q.shape[2]))
        gathered = tuple(a for a in seq if a != "sp")
        trade = "sp" in seq
        tensor = "tensor" if mesh.shape.get("tensor", 1) > 1 else None
        ways = (mesh.shape["sp"] if trade else 1) * mesh.shape.get("tensor", 1)
        extra = -heads % ways
        keys = (k, v), beside
        if extra:
            q, keys = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))), (q, keys))

        def local(q, keys, ids):  # the numbers of segments go where their tokens go
            q_ids = kv_ids = ids
            if trade:
                q, keys = jax.tree.map(lambda x: jax.lax.all_to_all(x, "sp", 1, 2, tiled=True), (q, keys))
                if ids is not None:
                    q_ids = kv_ids = jax.lax.all_gather(ids, "sp", axis=1, tiled=True)
            if gathered:
                keys = jax.tree.map(lambda x: jax.lax.all_gather(x, gathered, axis=2, tiled=True), keys)
                if ids is not None:
                    kv_ids = jax.lax.all_gather(kv_ids, gathered, axis=1, tiled=True)
            k, v, length = axes.with_beside(*keys[0], tokens, keys[1])
            y = attention(q, k, v, kv_length=length, segments=None if ids is None else (q_ids, kv_ids))
            return jax.lax.all_to_all(y, "sp", 2, 1, tiled=True) if trade else y

        place = PartitionSpec(batch or None, tensor, seq or None, None)
        places_in = (place, place, PartitionSpec(batch or None, seq or None))
        spread = jax.shard_map(local, mesh=mesh, in_specs=places_in, out_specs=place, check_vma=False)
        return spread(q, keys, segments)[:, :heads]

    def _put(self, x: jax.Array, where: PartitionSpec) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, where))
