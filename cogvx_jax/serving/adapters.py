"""What requests may name of the server's own: LoRAs, ControlNets, Tora's weights and calibrations, of folders."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from cogvx_jax.convert.lora_file import SHIPPED

WEIGHTS = (".safetensors",)
PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # option -> its name in words, and suffixes of files
    "controlnet": ("ControlNet", (*WEIGHTS, ".pt", ".pth", ".bin")),
    "tora": ("Tora", ()),  # a folder of two files
    "calibration": ("calibration", (".json",)),
}


class Named:
    """Files and folders of one folder, by name. What is put into it later counts, too.

    Args:
      folder: of files NAME.SUFFIX and folders NAME; None has none.
      what: they are, in words.
    Raises: FileNotFoundError where the folder is not there.
    """

    def __init__(self, folder: Path | None, what: str, suffixes: tuple[str, ...] = WEIGHTS):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; give one of {what}s")
        self.folder = None if folder is None else folder.absolute()
        self._what, self._suffixes = what, suffixes

    def names(self) -> dict[str, str]:
        """Name -> the path. A client names what it asks for, and never a path."""
        found = {}
        for path in [] if self.folder is None else sorted(self.folder.iterdir()):
            if path.is_dir() or path.suffix in self._suffixes:
                found[path.stem if path.is_file() else path.name] = str(path)
        return found

    def path(self, name: str) -> str:
        """Raises: ValueError, naming those that there are."""
        found = self.names()
        if name not in found:
            there = ", ".join(found)[:300] or "none"
            raise ValueError(f"there is no {self._what} {name!r:.60} here; there are {there}")
        return found[name]


class Adapters(Named):
    """The LoRAs of a folder, as `--lora` takes them, and the ones that ship with the package; see `Named`."""

    def __init__(self, folder: Path | None):
        super().__init__(folder, "LoRA")

    def names(self) -> dict[str, str]:
        """Name -> what `find_lora` takes."""
        return {name: name for name in SHIPPED} | super().names()


Parts = Mapping[str, Named]  # of each option of `PARTS`


def find_parts(**folders: Path | None) -> Parts:
    """What requests may name by the options of `PARTS`, each of which has a folder, or none."""
    return {option: Named(folders.get(option), *about) for option, about in PARTS.items()}


def without_folders(text: str, folders: Iterable[Path | None]) -> str:
    """A text that does not tell where folders of the server lie."""
    for folder in folders:
        text = text if folder is None else text.replace(f"{folder}/", "")
    return text
