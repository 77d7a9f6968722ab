"""scripts/tpu_pod.sh: the commands it would run, those it refuses, and that a prompt's quotes survive two shells."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "tpu_pod.sh"
WHERE = ["--tpu", "my-tpu", "--zone", "us-west4-a"]
GENERATE = ["cogvx", "generate", "a panda's $5 guitar", "--mesh", "sp=8"]
TRAIN = ["cogvx", "train", "--data", "/shared/cache", "--mesh", "data=8", "--out", "/shared/run"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")


def run(*arguments, **variables):
    return subprocess.run(
        ["bash", SCRIPT, *arguments], capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"} | variables
    )


def test_a_dry_run_prints_the_commands():
    done = run(*WHERE, "--project", "p", "--install", "git+https://host/repo", "--dry-run", "--", *GENERATE)
    assert done.returncode == 0, done.stderr
    install, generate, copy = map(shlex.split, done.stdout.splitlines())
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-tpu", "--zone=us-west4-a", "--project=p", "--worker=all"]
    assert install[:-1] == generate[:-1] == ssh
    assert install[-1].startswith("--command=python3 -m pip install --user --quiet uv && $HOME/.local/bin/uv tool ")
    assert install[-1].endswith(" --python 3.12 --with 'jax[tpu]' --with gcsfs git+https://host/repo")
    setting, command = generate[-1].removeprefix("--command=").split("; ")
    assert setting == "export PATH=$HOME/.local/bin:$PATH"
    assert shlex.split(command) == [*GENERATE, "--distributed"]
    assert copy[3:7] == ["tpu-vm", "scp", "my-tpu:out.mp4", "out.mp4"] and copy[-1] == "--worker=0"


@pytest.mark.parametrize("command", [TRAIN, ["cogvx", "encode", "--data", "/shared/x.jsonl", "--out", "gs://b/x"]])
def test_training_stays_where_it_is(command):
    done = run(*WHERE, "--dry-run", "--", *command)
    assert done.returncode == 0, done.stderr
    (only,) = map(shlex.split, done.stdout.splitlines())
    assert shlex.split(only[-1].split("; ")[1]) == [*command, "--distributed"]


def test_the_hosts_get_the_prompt_as_it_was(tmp_path):
    """A stand-in for gcloud runs the command as a host's shell would."""
    for name, text in {
        "gcloud": 'for a in "$@"; do case $a in --command=*) bash -c "${a#--command=}";; esac; done',
        "cogvx": 'printf "%s\\n" "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = run(*WHERE, "--", *GENERATE, PATH=f"{tmp_path}:{os.environ['PATH']}", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*GENERATE[1:], "--distributed"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--zone", "z", "--", *GENERATE], "--tpu is missing"),
        (["--tpu", "t", "--", *GENERATE], "--zone is missing"),
        (["--tpu", "--zone", "z", "--", *GENERATE], "--tpu needs a value"),
        ([*WHERE, "--chips", "8"], "unknown option --chips"),
        (WHERE, "after -- comes the command to run"),
        ([*WHERE, "--", "cogvx", "export"], "only cogvx generate, encode and train run on several hosts, got export"),
        ([*WHERE, "--", "cogvx", "train", "--mesh", "data=8"], "--out needs a value"),
        ([*WHERE, "--", *TRAIN[:-1], "run"], "--out must be a bucket such as gs://bucket/run, or a folder"),
        ([*WHERE, "--", *GENERATE[:3]], "--mesh is missing"),
        ([*WHERE, "--", *GENERATE, "--distributed"], "leave --distributed out"),
        ([*WHERE, "--", *GENERATE, "--out"], "--out needs a value"),
        ([*WHERE, "--", *GENERATE, "--prompts-file", "x"], "give one prompt"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments, said):
    done = run("--dry-run", *arguments)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"tpu_pod.sh: {said}") and "usage:" in done.stderr
