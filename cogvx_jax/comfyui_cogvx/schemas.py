"""Which of ComfyUI's two ways to declare nodes there is."""

import importlib
from typing import Any

V3 = ("comfy_api.v0_0_2", "comfy_api.latest")  # the numbered one stays as it is


def v3_api() -> Any:
    """ComfyUI's module with `io` and `ComfyExtension`; None where it has none."""
    for name in V3:
        try:
            found = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(found, "io") and hasattr(found, "ComfyExtension"):
            return found
    return None
