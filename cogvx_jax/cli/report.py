"""How the verbs of `cogvx` say what they are at while it takes minutes."""

import sys


def report(line: str) -> None:
    """Prints a line beside what the command is asked for."""
    print(f"cogvx: {line}", file=sys.stderr, flush=True)
