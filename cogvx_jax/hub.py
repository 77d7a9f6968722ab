"""Files of the hub, by its client, which keeps them in its own cache."""

from collections.abc import Sequence
from pathlib import Path


def fetch_hub(hub: str, patterns: Sequence[str]) -> Path:
    """The folder of the hub's cache with the files that patterns name. Raises: OSError."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client raises many kinds, httpx's among them
        raise OSError(
            f"could not get {hub} from the hub ({type(error).__name__}: {' '.join(str(error)[:300].split())}); "
            "check the name and the connection, or give a folder"
        ) from error
