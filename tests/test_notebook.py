"""docs/colab_tpu.ipynb: its code cells run in order, as plain Python, on the CPU with `tiny`.

Without Jupyter, which would be a heavy dependency for one file: the cell that installs, with its magic, is left out.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cogvx_jax import presets
from cogvx_jax.data.video import read_video

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "docs" / "colab_tpu.ipynb").read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
# What a notebook shows of the last line of a cell is its value.
RUN = """
import ast, json, sys
names = {}
for source in json.load(sys.stdin):
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "notebook", "exec"), names)
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
        if shown is not None:
            print(getattr(shown, "_repr_html_", shown.__repr__)())
"""


@pytest.mark.full
def test_the_cells_run(tmp_path):
    sources = ["".join(cell["source"]) for cell in CODE if "install" not in cell["metadata"].get("tags", [])]
    assert len(sources) == len(CODE) - 1 and not [s for s in sources if re.search("^[%!]", s, flags=re.M)]
    short = [source.replace("STEPS = None", "STEPS = 2") for source in sources]
    assert short != sources
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(short),
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 x cpu, mesh of one device" in done.stdout and "Model('tiny'" in done.stdout
    assert "<video controls" in done.stdout.splitlines()[-1]
    assert read_video(tmp_path / "out.mp4")[0].shape == (17, 64, 64, 3)


def test_it_is_a_notebook_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["metadata"]["accelerator"]) == (4, "TPU")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)
    named = re.search('MODEL = "tiny"  # or (.*):', "".join(line for cell in CODE for line in cell["source"]))
    assert named and set(re.findall('"(.*?)"', named[1])) <= presets.PRESETS.keys()
