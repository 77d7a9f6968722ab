"""Pixels in and out against diffusers' VideoProcessor."""

import numpy as np
import PIL.Image
import pytest

from cogvx_jax.data import video

pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def processor():
    from diffusers.video_processor import VideoProcessor

    return VideoProcessor(vae_scale_factor=8)  # as the CogVideoX pipelines build it


@pytest.mark.parametrize("size", [(40, 56), (32, 48), (17, 90)])
def test_fit_matches_preprocess(processor, size):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    ours = video.to_model_pixels(frames, 32, 48)
    image = processor.preprocess(pictures[0], height=32, width=48)  # (1, C, H, W)
    clip = processor.preprocess_video(pictures, height=32, width=48)  # (1, C, F, H, W)
    np.testing.assert_array_equal(ours[0], image[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(ours, clip[0].permute(1, 2, 3, 0).numpy())


def test_to_uint8_matches_postprocess(processor):
    pixels = np.random.default_rng(0).normal(0, 0.7, (1, 3, 32, 48, 3)).astype(np.float32)
    pixels.reshape(-1)[:511] = np.arange(511) / 255 - 1  # every value and every tie between two
    theirs = processor.postprocess_video(torch.from_numpy(pixels).permute(0, 4, 1, 2, 3), output_type="pil")
    np.testing.assert_array_equal(video.to_uint8(pixels)[0], np.stack(theirs[0]))
