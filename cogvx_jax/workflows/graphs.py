"""A workflow of ComfyUI as nodes with named values and links, of a file of its page or of its API.

Files of the page keep a node's values by their position, those of the API by their name. Files come from strangers:
every refusal is one sentence, and no link is followed for ever.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cogvx_jax.json_files import Json, quoted, read_json

MAX_NODES = 5_000
MAX_STEPS = 200  # nodes that are passed on the way from an input to where it comes from
MUTED, BYPASSED = 2, 4  # modes of a node
CONTROL = ("fixed", "increment", "decrement", "randomize")  # the value after a seed's
NUMBER = (int, float)


class Widget(NamedTuple):
    """A value of a node: its name, its kind or kinds, and what it is where a file does not say it.

    A seed has one more value after it in files of the page, which no name stands for.
    """

    name: str
    kind: Any
    default: Any
    controlled: bool = False


class Link(NamedTuple):
    """The node and its output that an input comes from."""

    node: str
    output: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a graph.

    values: by name; of a kind of node that no table knows only where the file names them.
    links: of its inputs, by name.
    outputs: kinds of its outputs, where the file tells.
    problem: why its values could not be read, a sentence; "" where they could.
    """

    id: str
    kind: str
    values: Mapping[str, Any]
    links: Mapping[str, Link]
    outputs: Sequence[str] = ()
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)  # kinds of the linked ones
    mode: int = 0
    problem: str = ""

    def __str__(self) -> str:
        return f"node {self.id} ({self.kind})"


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes by their ids."""

    nodes: Mapping[str, Node]

    def of_kind(self, *kinds: str) -> list[Node]:
        """The nodes of some kinds that run, in the order of the file."""
        return [node for node in self.nodes.values() if node.kind in kinds and node.mode not in (MUTED, BYPASSED)]

    def source(self, node: Node, name: str) -> tuple[Node, int] | None:
        """The node and its output that an input comes from, past what only hands it on; None where it has no link.

        Raises: ValueError for links that go in a circle.
        """
        link = node.links.get(name)
        for _ in range(MAX_STEPS):
            found = None if link is None else self.nodes.get(link.node)
            if link is None or found is None or found.mode == MUTED:
                return None
            if found.kind == "Reroute":
                link = next(iter(found.links.values()), None)
            elif found.mode == BYPASSED:
                kind = found.outputs[link.output] if link.output < len(found.outputs) else None
                link = next((found.links[name] for name, one in found.inputs.items() if one == kind), None)
            else:
                return found, link.output
        raise ValueError(f"{name} of {node} comes from itself")


def read_graph(file: Path, widgets: Mapping[str, Sequence[Widget]]) -> Graph:
    """The graph of a JSON file.

    Args:
      widgets: of kinds of nodes, in the order in which files of the page hold their values.
    Raises: FileNotFoundError; ValueError, one sentence with the file's name.
    """
    found = read_json(file)
    try:
        nodes = list(_page(found, widgets) if "nodes" in found else _api(found, widgets))
        if len({node.id for node in nodes}) != len(nodes):
            raise ValueError("two nodes have the same id")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return Graph({node.id: node for node in nodes})


def _api(found: Json, widgets: Mapping[str, Sequence[Widget]]) -> Iterator[Node]:
    """Of {id: {class_type, inputs}}, or what is posted to ComfyUI with that in it."""
    graph = found["prompt"] if isinstance(found.get("prompt"), dict) else found
    if not graph or not all(isinstance(node, dict) and "class_type" in node for node in graph.values()):
        raise ValueError("it is no workflow of ComfyUI: it has neither nodes nor class_type")
    _check_count(graph)
    for id, node in graph.items():
        kind, inputs = _text(node["class_type"], "class_type"), node.get("inputs", {})
        if not isinstance(inputs, dict):
            raise ValueError(f"the inputs of node {id[:40]} must be an object, got {quoted(inputs)}")
        links = {name: _link(value) for name, value in inputs.items() if _is_link(value)}
        given = {name: value for name, value in inputs.items() if name not in links}
        values, problem = _known(given, widgets.get(kind, ()))
        yield Node(id=id, kind=kind, values=values, links=links, problem=problem)


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int


def _link(value: Any) -> Link:
    return Link(str(value[0]), value[1])


def _page(found: Json, widgets: Mapping[str, Sequence[Widget]]) -> Iterator[Node]:
    nodes, links = found["nodes"], _links(found.get("links", []))
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise ValueError(f"nodes must be a list of objects, got {quoted(nodes)}")
    _check_count(nodes)
    for node in nodes:
        id, kind = str(_plain(node.get("id"), "id")), _text(node.get("type"), "type")
        ends, inputs = _inputs(node, links)
        values, problem = _by_position(node.get("widgets_values"), widgets.get(kind))
        mode = node.get("mode", 0)
        yield Node(
            id=id,
            kind=kind,
            values=values,
            links=ends,
            outputs=[str(one.get("type")) for one in _objects(node, "outputs")],
            inputs=inputs,
            mode=mode if type(mode) is int else 0,
            problem=problem,
        )


def _links(found: Any) -> dict[Any, Link]:
    """By their ids: lists of six, or objects as of newer pages."""
    links = {}
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict):
            one = [one.get("id"), one.get("origin_id"), one.get("origin_slot")]
        if not isinstance(one, list) or len(one) < 3 or type(one[2]) is not int:
            raise ValueError(f"a link is [id, node, output, ...], got {quoted(one)}")
        links[_plain(one[0], "the id of a link")] = Link(str(_plain(one[1], "a link's node")), one[2])
    return links


def _inputs(node: Json, links: Mapping[Any, Link]) -> tuple[dict[str, Link], dict[str, str]]:
    """Links of a node's inputs, and their kinds."""
    ends, kinds = {}, {}
    for one in _objects(node, "inputs"):
        name, link = str(one.get("name")), one.get("link")
        if isinstance(link, str | int) and link in links:
            ends[name], kinds[name] = links[link], str(one.get("type"))
    return ends, kinds


def _objects(node: Json, name: str) -> list[Json]:
    found = node.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{name} of a node must be a list of objects, got {quoted(found)}")
    return found


def _by_position(given: Any, known: Sequence[Widget] | None) -> tuple[dict[str, Any], str]:
    """Values by name. Fewer than there are names are of an older version of a node: the others are the defaults."""
    if isinstance(given, dict):  # some nodes write names
        return _known(given, known or ())
    left, found = list(given) if isinstance(given, list) else [], {}
    for widget in known or ():
        if left:
            found[widget.name] = left.pop(0)
            if widget.controlled and left and left[0] in CONTROL:
                left.pop(0)
    return _known(found, known or ())


def _known(given: Mapping[str, Any], known: Sequence[Widget]) -> tuple[dict[str, Any], str]:
    """The values, and defaults of those that are missing; the defaults alone, and why, where one is of another kind."""
    defaults = {widget.name: widget.default for widget in known}
    for widget in known:
        value = given.get(widget.name, widget.default)
        kinds = widget.kind if isinstance(widget.kind, tuple) else (widget.kind,)
        if type(value) not in kinds:
            problem = f"its {widget.name} is {quoted(value)}, as of another version of that node"
            return defaults, problem
    return defaults | dict(given), ""


def _check_count(nodes: Any) -> None:
    if len(nodes) > MAX_NODES:
        raise ValueError(f"it has {len(nodes):,} nodes, of which at most {MAX_NODES:,} are read")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} of a node must be text, got {quoted(value)}")
    return value


def _plain(value: Any, name: str) -> str | int:
    if type(value) not in (str, int):
        raise ValueError(f"{name} must be a number or text, got {quoted(value)}")
    return value
