"""schemathesis asks for all that the API's description allows, and for much that it does not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("schemathesis", reason="tests of the server need the extra `test-serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import Site, fake_video

from cogvx_jax.serving.keys import new_key

PROGRAM = shutil.which("schemathesis") or str(Path(sys.executable).with_name("schemathesis"))


@pytest.mark.full  # a thousand requests
def test_schemathesis_finds_nothing(tmp_path):
    key, lines = new_key("ada")
    (tmp_path / "keys.toml").write_text(lines)
    site = Site(
        tmp_path, fake_video(steps=1, seconds=0.0), keys=tmp_path / "keys.toml", enhance=lambda prompt, image: "x"
    )
    command = [PROGRAM, "run", f"{site.url}/openapi.json", "-H", f"authorization: Bearer {key}"]
    # A schema cannot say which sizes a model makes, nor which fields go together: valid data may be refused.
    command += ["--phases", "coverage,fuzzing", "--max-examples", "5", "--exclude-checks", "positive_data_acceptance"]
    command += ["--suppress-health-check", "too_slow"]  # of its own drawing of examples
    try:
        done = subprocess.run([*command, "--seed", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-6000:]
        assert httpx.get(f"{site.url}/health").status_code == 200
    finally:
        site.close()
