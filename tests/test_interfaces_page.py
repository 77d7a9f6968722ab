"""Commands and Python blocks of docs/interfaces.md that need no server run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "interfaces.md").read_text()
HEADINGS = ("Looking inside", "Stopping and going on", "Previews")
SECTIONS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
TEXT = "".join(SECTIONS[heading] for heading in HEADINGS)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
COMMANDS = re.findall(r"^    (cogvx .*)$", TEXT, flags=re.M)


@pytest.mark.full
def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON) == 3
    for code in PYTHON:
        exec(compile(code, "docs/interfaces.md", "exec"), {})


@pytest.mark.full
def test_the_commands_run(tmp_path):
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        arguments = [sys.executable, "-m", "cogvx_jax.cli", *shlex.split(command)[1:], "--steps", "3", "--no-progress"]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert {path.name for path in tmp_path.iterdir()} == {"circle.mp4", "circle.webp"}
