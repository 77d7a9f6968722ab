"""The nodes in ComfyUI's V3 schema."""

from collections.abc import Awaitable, Callable
from typing import Any

from .declarations import CATEGORY, COMBO, NODES, WIDGETS, Input, Node, Output
from .nodes import RUN, Call

_CLASSES = {"STRING": "String", "INT": "Int", "FLOAT": "Float", "COMBO": "Combo", "IMAGE": "Image", "VIDEO": "Video"}


def entrypoint(api: Any) -> Callable[[], Awaitable[Any]]:
    """ComfyUI's `comfy_entrypoint` for the nodes."""

    class Extension(api.ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return [_node(api.io, node) for node in NODES]

    async def comfy_entrypoint() -> Any:
        return Extension()

    return comfy_entrypoint


def _node(io: Any, node: Node) -> type:
    def define_schema(cls: Any) -> Any:
        return io.Schema(
            node_id=node.id,
            display_name=node.title,
            category=CATEGORY,
            description=node.description,
            inputs=[_input(io, one) for one in node.inputs],
            outputs=[_output(io, one) for one in node.outputs],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    def execute(cls: Any, **inputs: Any) -> Any:
        hidden = getattr(cls, "hidden", None)
        about = {name: getattr(hidden, name, None) for name in ("unique_id", "extra_pnginfo")}
        return io.NodeOutput(*RUN[node.id](Call(**about), **inputs))

    methods = {"define_schema": classmethod(define_schema), "execute": classmethod(execute)}
    return type(node.id, (io.ComfyNode,), {**methods, "__doc__": node.description, "__module__": __name__})


def _kind(io: Any, kind: str) -> Any:
    return getattr(io, _CLASSES[kind]) if kind in _CLASSES else io.Custom(kind)


def _input(io: Any, one: Input) -> Any:
    how = dict(one.settings)
    if one.kind == COMBO:
        how["options"] = list(one.choices)
    if one.kind not in WIDGETS:
        how = {"tooltip": one.tooltip}
    return _kind(io, one.kind).Input(one.name, optional=one.optional, **how)


def _output(io: Any, one: Output) -> Any:
    # Ids of outputs must differ from those of inputs.
    return _kind(io, one.kind).Output(f"{one.name}_out", display_name=one.name, tooltip=one.tooltip or None)
