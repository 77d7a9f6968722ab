"""Where what a node takes comes from: values of other nodes, and the files of pictures and clips."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from cogvx_jax.json_files import quoted
from cogvx_jax.workflows.graphs import MAX_STEPS, Graph, Node
from cogvx_jax.workflows.wrapper import CONSTANTS, COUNTED, RESIZES

FILES = {"LoadImage": "image", "LoadVideo": "file", "VHS_LoadVideo": "video"}  # kind of node -> its file's value
CUTS = {"force_rate": 0, "skip_first_frames": 0, "select_every_nth": 1}  # of VHS_LoadVideo, and what changes nothing
HANDS_ON = {COUNTED: "image", "GetVideoComponents": "video", **dict.fromkeys(RESIZES, "image")}  # kind -> its input
PLACE = re.compile(r"(.*) \[(input|output|temp)\]")  # a name with the folder that it lies in


class Sources:
    """Follows links of a graph.

    Args:
      note: is told what could not be carried over.
    """

    def __init__(self, graph: Graph, comfyui: Path | None, note: Callable[[str], None]):
        self._graph, self._comfyui, self._note = graph, comfyui, note

    def value(self, node: Node, name: str, kind: Any) -> Any:
        """A node's value, also one that another node gives; None where it is not known, which is noted.

        Raises: ValueError for one of another kind, and for a text that is not known.
        """
        if name not in node.links:
            found = node.values.get(name)
        else:
            source = self._graph.source(node, name)
            found = None if source is None else self._given(*source)
            if found is None:
                where = "a node that does not run" if source is None else str(source[0])
                if kind is str:
                    raise ValueError(f"{name} of {node} comes from {where}, whose text is not known")
                self._note(f"{name} of {node} comes from {where}, which is not known; the model's own is taken")
                return None
        if type(found) not in (kind if isinstance(kind, tuple) else (kind,)):
            raise ValueError(f"{name} of {node} is {quoted(found)}")
        return found

    def _given(self, node: Node, output: int) -> Any:
        """What an output gives, where it is one value that a file tells."""
        if node.kind in CONSTANTS and not node.problem:
            return node.values.get(CONSTANTS[node.kind])
        if node.kind in RESIZES and output in (1, 2):
            return node.values["width" if output == 1 else "height"]
        if node.kind != COUNTED or output not in (1, 2, 3):
            return None
        for one in self._chain(node):
            if output in (1, 2) and one.kind in RESIZES:
                return one.values["width" if output == 1 else "height"]
            if output == 3 and one.kind == "VHS_LoadVideo":
                return self.value(one, "frame_load_cap", int) or None
        return None

    def _chain(self, node: Node) -> list[Node]:
        """A node and those that its pictures come from, as far as they only hand them on."""
        found = [node]
        while found[-1].kind in HANDS_ON and len(found) < MAX_STEPS:
            source = self._graph.source(found[-1], HANDS_ON[found[-1].kind])
            if source is None:
                break
            found.append(source[0])
        return found

    def file(self, node: Node, name: str, word: str, size: Callable[[int, int], None]) -> str:
        """The file that pictures come from; `word` where that is not known, which is noted.

        Args:
          size: is told the height and the width to which they are resized on the way.
        """
        source = self._graph.source(node, name)
        chain = [] if source is None else self._chain(source[0])
        for one in chain:
            if one.kind in RESIZES:
                self._resize(one, size)
        if not chain or chain[-1].kind not in FILES:
            where = chain[-1] if chain else "a node that does not run"
            self._note(f"{name} of {node} comes from {where}, which is not known; put its file in place of {word}")
            return word
        return self._file(chain[-1], word)

    def _resize(self, node: Node, size: Callable[[int, int], None]) -> None:
        sides = [self.value(node, name, int) for name in ("height", "width")]
        if None not in sides and min(sides) > 0:
            size(sides[0], sides[1])
        if node.values.get("keep_proportion") or node.values.get("crop") not in ("disabled", 0, None):
            self._note(
                f"{node} keeps proportions or crops; here pictures are stretched to the size: crop the file first"
            )

    def _file(self, node: Node, word: str) -> str:
        given = node.values.get(FILES[node.kind])
        if not isinstance(given, str) or not given:
            self._note(f"{node} names no file; put one in place of {word}")
            return word
        for name, usual in CUTS.items():
            if node.kind == "VHS_LoadVideo" and node.values.get(name, usual) != usual:
                self._note(f"{name} of {node} is not carried over; cut the clip first")
        named = PLACE.fullmatch(given)
        return below(self._comfyui, named[2] if named else "input", named[1] if named else given)


def below(comfyui: Path | None, folder: str, name: str) -> str:
    """A file of ComfyUI's by its name, which may have folders in it, on whichever system it was written.

    Raises: ValueError for a name that leads out of the folder.
    """
    parts = PurePosixPath(PureWindowsPath(name).as_posix())
    if parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts or "\0" in name or not parts.parts:
        raise ValueError(f"the name {quoted(name)} of a file leads out of ComfyUI's {folder}")
    return str(parts) if comfyui is None else str(comfyui / folder / parts)
