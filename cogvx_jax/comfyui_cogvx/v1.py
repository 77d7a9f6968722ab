"""The nodes as V1 classes, for a ComfyUI that knows no other."""

from typing import Any

from .declarations import CATEGORY, COMBO, NODES, Input, Node
from .nodes import RUN, Call


def _node(node: Node) -> type:
    def input_types(cls: Any) -> dict[str, dict[str, Any]]:
        found = {"required": {one.name: _input(one) for one in node.inputs if not one.optional}}
        if optional := {one.name: _input(one) for one in node.inputs if one.optional}:
            found["optional"] = optional
        return found | {"hidden": {"unique_id": ("UNIQUE_ID",), "extra_pnginfo": ("EXTRA_PNGINFO",)}}

    def run(self: Any, unique_id: Any = None, extra_pnginfo: Any = None, **inputs: Any) -> tuple[Any, ...]:
        return RUN[node.id](Call(unique_id=unique_id, extra_pnginfo=extra_pnginfo), **inputs)

    facts = {
        "INPUT_TYPES": classmethod(input_types),
        "RETURN_TYPES": tuple(one.kind for one in node.outputs),
        "RETURN_NAMES": tuple(one.name for one in node.outputs),
        "OUTPUT_TOOLTIPS": tuple(one.tooltip for one in node.outputs),
        "FUNCTION": "run",
        "CATEGORY": CATEGORY,
        "DESCRIPTION": node.description,
        "run": run,
    }
    return type(node.id, (), {**facts, "__doc__": node.description, "__module__": __name__})


def _input(one: Input) -> tuple[Any, dict[str, Any]]:
    return (list(one.choices) if one.kind == COMBO else one.kind), one.settings


NODE_CLASS_MAPPINGS = {node.id: _node(node) for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.id: node.title for node in NODES}
