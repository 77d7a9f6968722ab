"""GGUF files made by hand, shared by the tests of readers."""

import struct

KINDS = {"float32": 0, "float16": 1, "bfloat16": 30, "Q4_0": 2, "Q8_0": 8, "Q5_0": 6}
ALIGNMENT = 32


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def setting(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


SETTINGS = (
    setting("general.architecture", 8, text("t5encoder")),
    setting("t5encoder.block_count", 4, struct.pack("<I", 1)),
    setting("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("c")),
    setting("tokenizer.ggml.scores", 9, struct.pack("<IQ3f", 6, 3, 1.0, 2.0, 3.0)),
)


def gguf_bytes(tensors, settings=SETTINGS, version=3):
    """A file of name -> (shape, kind, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(settings)) + b"".join(settings)
    body = b""
    for name, (shape, kind, data) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", KINDS.get(kind, kind), len(body))
        body += data + b"\0" * (-len(data) % ALIGNMENT)
    return head + b"\0" * (-len(head) % ALIGNMENT) + body


def plain(array):
    """A tensor as it is, for `gguf_bytes`."""
    return array.shape, str(array.dtype), array.tobytes()
