"""Pictures and clips between ComfyUI and the server.

torch is ComfyUI's; `images_of` alone imports it, so that the rest can be read and tested without.
"""

import base64
import contextlib
import importlib
import io
import os
import tempfile
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import PIL.Image

if TYPE_CHECKING:
    import torch

LOSSLESS_ENOUGH = {"crf": "10", "preset": "fast"}  # of a clip that is made of frames, to be sent


def video_of(mp4: bytes) -> Any:
    """ComfyUI's VIDEO of a file; None in a ComfyUI that has no VIDEO. Tests replace this function."""
    for name in ("comfy_api.latest", "comfy_api.input_impl"):
        with contextlib.suppress(ImportError, AttributeError):
            module = importlib.import_module(name)
            return getattr(module, "InputImpl", module).VideoFromFile(io.BytesIO(mp4))
    return None


def images_of(mp4: bytes) -> "torch.Tensor":
    """The frames of a file, an IMAGE: (F, H, W, 3) float32 from 0 to 1."""
    import torch

    with av.open(io.BytesIO(mp4), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).to(torch.float32) / 255.0


def picture_url(image: "torch.Tensor") -> str:
    """The first picture of an IMAGE as a data URL of PNG."""
    data = io.BytesIO()
    PIL.Image.fromarray(_pixels(image[:1])[0]).save(data, "PNG")
    return _url("image/png", data.getvalue())


def clip_url(video: Any = None, images: "torch.Tensor | None" = None, fps: float = 8.0) -> str:
    """A VIDEO, or the frames of an IMAGE, as a data URL of mp4.

    Raises: ValueError unless one of both is given.
    """
    if (video is None) == (images is None):
        raise ValueError("connect a clip to video, or its frames to images, and not both")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.mp4")
        if video is not None:
            video.save_to(path, format="mp4")
        else:
            assert images is not None
            _write(path, _pixels(images), fps)
        with open(path, "rb") as file:
            return _url("video/mp4", file.read())


def _pixels(image: "torch.Tensor") -> np.ndarray:
    """(B, H, W, 3) uint8 of an IMAGE; a fourth channel is dropped."""
    return np.round(np.clip(image[..., :3].cpu().numpy(), 0, 1) * 255).astype(np.uint8)


def _write(path: str, frames: np.ndarray, fps: float) -> None:
    """Frames as H.264 in yuv444p, which takes odd sizes, too."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=LOSSLESS_ENOUGH)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv444p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
