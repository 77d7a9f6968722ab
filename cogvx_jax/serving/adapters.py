"""The LoRAs that requests may name: those of one folder, and the ones that ship with the package."""

from pathlib import Path

from cogvx_jax.convert.lora_file import SHIPPED

SUFFIX = ".safetensors"


class Adapters:
    """LoRAs by name. What is put into the folder later counts, too.

    Args:
      folder: of files NAME.safetensors and folders NAME, as `--lora` takes them; None has only those of the package.
    Raises: FileNotFoundError where it is not there.
    """

    def __init__(self, folder: Path | None):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; give one of LoRAs")
        self._folder = folder

    def names(self) -> dict[str, str]:
        """Name -> what `find_lora` takes. A client names a LoRA and never a path."""
        found = {name: name for name in SHIPPED}
        for path in [] if self._folder is None else sorted(self._folder.iterdir()):
            if path.is_dir() or path.suffix == SUFFIX:
                found[path.stem if path.is_file() else path.name] = str(path)
        return found

    def path(self, name: str) -> str:
        """Raises: ValueError, naming those that there are."""
        found = self.names()
        if name not in found:
            raise ValueError(f"there is no LoRA {name!r:.60} here; there are {', '.join(found)[:300] or 'none'}")
        return found[name]
