"""Sizes of pictures as text."""

Size = tuple[int | None, int | None]  # height and width in pixels; None is the model's own


def parse_size(text: str | None) -> Size:
    """Height and width of "480x720"; None is the model's own. Raises: ValueError."""
    if text is None:
        return None, None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isascii() and p.isdecimal() and len(p) < 10 for p in parts):
        shown = repr(text) if len(repr(text)) <= 60 else f"{repr(text)[:57]}..."
        raise ValueError(f"size must be HEIGHTxWIDTH in pixels, such as 480x720, got {shown}")
    return int(parts[0]), int(parts[1])
