"""What the tree promises: packages and links, and which part may import which."""

import ast
import os
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = ("convert", "scripts", "sharding")  # packages at the top of the tree; cogvx_jax links to them

# Who may import what of the project. The composers, pipelines and the like, may import anything.
VALUES = {"axes", "configs", "presets"}
MAY_IMPORT = {
    "axes": set(),
    "configs": set(),
    "presets": {"configs"},
    "allocator": set(),
    "cache": set(),
    "git_lfs": set(),
    "places": set(),
    "nn": VALUES | {"nn"},
    "models": VALUES | {"nn", "models"},
    "diffusion": VALUES | {"diffusion"},
    "data": VALUES | {"git_lfs", "data"},
    "metrics": {"metrics"},
    "sharding": VALUES | {"nn", "models", "sharding"},
    "convert": VALUES | {"nn", "models", "places", "convert"},
}
COMPOSERS = {"", "pipelines", "train", "scripts", "cli"}  # "" is cogvx_jax/__init__.py
REFERENCE_ONLY = {"torch", "diffusers"}
MAY_COMPARE = {"cogvx_jax.scripts.benchmark", "cogvx_jax.scripts.benchmark_training", "cogvx_jax.scripts.benchmark_gpu"}


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


def imports(module):
    """Full names of all that a module imports, wherever in the file the import stands."""
    path, names = MODULES[module], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            # `from cogvx_jax import presets` is an import of cogvx_jax.presets.
            names |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return names


def part(module):
    """The first name below cogvx_jax."""
    return f"{module}.".split(".")[1]


def test_modules_are_found():
    assert {"cogvx_jax", "cogvx_jax.cli", "cogvx_jax.models.vae", "cogvx_jax.convert.tables"} <= MODULES.keys()
    assert "cogvx_jax.configs" in imports("cogvx_jax.presets")
    assert "cogvx_jax.presets" in imports("cogvx_jax.cli")  # by `from cogvx_jax import presets`


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
    assert {part(module) for module in MODULES} <= MAY_IMPORT.keys() | COMPOSERS
    assert not MAY_IMPORT.keys() & COMPOSERS


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in MAY_IMPORT])
def test_import_directions(module):
    own = {name for name in imports(module) if name.split(".")[0] == "cogvx_jax"}
    wrong = {name for name in own if part(name) not in MAY_IMPORT[part(module)]}
    assert not wrong, f"{module} may import {sorted(MAY_IMPORT[part(module)])} of cogvx_jax"
    assert not {"convert", "sharding"} & (MAY_IMPORT[part(module)] - {part(module)})


@pytest.mark.parametrize("top", LINKS)
def test_links_are_imported_by_their_full_names(top):
    """`import convert` works by chance, where the checkout is the working folder."""
    assert not {module for module in MODULES if top in {name.split(".")[0] for name in imports(module)}}


def test_the_reference_is_not_needed():
    users = {module for module in MODULES if REFERENCE_ONLY & {name.split(".")[0] for name in imports(module)}}
    assert users <= MAY_COMPARE


def test_modules_say_what_they_are():
    public = {m: p for m, p in MODULES.items() if not part(m).startswith("_") and p.read_text().strip()}
    assert not [module for module, path in public.items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not [module for module in MODULES if module.endswith((".utils", ".helpers", ".misc", ".common"))]
