"""How much memory a device has, as far as the platform says it."""

import jax


def limit_bytes() -> int | None:
    """Memory that programs may use on the first device of this process; None where nobody says, as on CPU."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def free_bytes() -> int | None:
    """Memory left on the first device of this process; None where the platform does not say, as on CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
