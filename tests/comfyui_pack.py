"""The node pack as ComfyUI loads it: by its folder's path, under a name of its own, from nowhere else."""

import importlib.util
import sys
from pathlib import Path

PACK = Path(__file__).parents[1] / "cogvx_jax" / "comfyui_cogvx"


def load(name="comfyui_cogvx_of_tests", folder=PACK):
    """The module of the pack, with its files as submodules."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
