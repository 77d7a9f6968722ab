"""`cogvx verify`: compares a stored model with its digests, or encoded clips with their checksums."""

import time
from typing import Annotated

import tyro

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def verify(folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")], /) -> None:
    """Reads all of a model, or of clips that `cogvx encode` wrote, and checks it.

    Models are Orbax checkpoints of `cogvx convert` and what `cogvx quantize` wrote: others have no digests.

    Every array of a model is compared with its digest, every entry of a cache with its checksum.

    Args:
      folder: of the model or the encoded clips, or its URL.
    """
    from cogvx_jax.convert import verify as check
    from cogvx_jax.pipelines.model import resolve
    from cogvx_jax.storage import BUCKETS, storage_path
    from cogvx_jax.train.clips.cache import is_cache, open_cache

    began = time.monotonic()
    scheme, is_url, _ = folder.partition("://")
    if (not is_url or scheme in BUCKETS) and is_cache(storage_path(folder)):
        count, bare = open_cache(storage_path(folder)).verify()
        said = f"{count} entries are what was written" + (f", but {bare} of them have no checksum" if bare else "")
    else:
        check(resolve(folder))
        said = "every array is what was written"
    print(f"{folder}: {said}; {time.monotonic() - began:.1f} s")
