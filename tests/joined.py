"""Two processes of one run, joined over loopback, for several tests."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(code, *arguments, only=None):
    """Both processes of a run, or only one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *(["-c", code] if "\n" in code else ["-m", code]), *map(str, arguments)]
    shared = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    shared["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (range(2) if only is None else [only])
    ]


def finish(running, seconds=300):
    """What each printed, its errors last; kills those that hang.

    Gloo prints to the standard output in pieces, between which other lines may stand: not so in the errors.
    """
    try:
        return ["".join(process.communicate(timeout=seconds)) for process in running]
    finally:
        for process in running:
            process.kill()
