"""Nodes for ComfyUI that have videos made by a `cogvx serve` elsewhere.

This folder is put into `ComfyUI/custom_nodes`, and runs there without the package that it comes with: it needs what
ComfyUI brings alone, and Python 3.10. docs/comfyui.md says how it is used.

The nodes are registered once: by ComfyUI's V3 schema where there is one, else as V1 classes. A module that had both
would have the V1 classes taken.
"""

from .schemas import v3_api

if (_api := v3_api()) is not None:
    from .v3 import entrypoint

    comfy_entrypoint = entrypoint(_api)
    __all__ = ["comfy_entrypoint"]
else:
    from .v1 import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
