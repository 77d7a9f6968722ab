"""Pointers that git-lfs leaves where a large file was not downloaded."""

START = b"version https://git-lfs.github.com/spec/v1"


def refuse_pointer(start: bytes, where: object) -> None:
    """Raises ValueError if a file that begins with `start` is a pointer; `where` names the file in the message."""
    if start.startswith(START):
        raise ValueError(f"{str(where)!r} is a git-lfs pointer, not the file itself; run `git lfs pull` where it lies")
