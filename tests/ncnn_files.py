"""Files of ncnn made by hand, of Real-ESRGAN's networks. Shared by the tests of readers and of finishing."""

import numpy as np

HALF = 0x01306B47
DENSE = [*[("Convolution", "Concat")] * 4, ("Convolution", "Eltwise")]


def kinds(tensors):
    """The layers that a network with these tensors, by torch's names, has in a `.param` of the authors."""
    if "conv_first.weight" not in tensors:
        count = len({name.split(".")[1] for name in tensors})
        return ["Input", "Split", *["Convolution", "PReLU"] * (count // 2), "Convolution", *TAIL]
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("body.")})
    block = [*[kind for pair in DENSE for kind in pair] * 3, "Eltwise"]
    ends = ["Convolution", "BinaryOp", "Interp", "Convolution", "Interp", *["Convolution"] * 3]
    return ["Input", "Convolution", "Split", *block * blocks, *ends]


TAIL = ["PixelShuffle", "Interp", "BinaryOp"]


def write_ncnn(path, tensors, *, half=False, layers=None, more=b""):
    """Writes a `.param` and the `.bin` beside it.

    Args:
      tensors: by torch's names, in the order of the layers.
      half: weights as float16.
      layers: the kinds of all layers; None is as the authors have them.
      more: bytes after the last number.
    """
    owners = iter(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    lines, numbers = [], []
    for place, kind in enumerate(layers or kinds(tensors)):
        fields = ""
        if kind in ("Convolution", "PReLU"):
            owner = next(owners)
            weight = tensors[f"{owner}.weight"]
            fields = f"0={len(weight)}"
        if kind == "Convolution":
            fields += f" 1={weight.shape[2]} 4=1 5=1 6={weight.size}"
            mark, dtype = (HALF, np.float16) if half else (0, np.float32)
            stored = weight.astype(dtype).tobytes()
            numbers += [np.uint32(mark).tobytes(), stored, bytes(-len(stored) % 4), tensors[f"{owner}.bias"].tobytes()]
        elif kind == "PReLU":
            numbers.append(weight.tobytes())
        lines.append(f"{kind:24} layer_{place:<10} 1 1 {place} {place + 1} {fields}")
    path.write_text("\n".join(["7767517", f"{len(lines)} {len(lines) + 1}", *lines, ""]))
    path.with_suffix(".bin").write_bytes(b"".join(numbers) + more)
    return path
