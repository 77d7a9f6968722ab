"""A CLIP, or a network like it, out of a folder as transformers saves it: features of pictures and of texts.

Transformers runs it, by torch: its models in Flax ended with version 5. Weights are safetensors alone, and no code of
the folder is run.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

NEEDED = "torch: pip install torch"
LONGEST = 4000  # characters of a text that are read at all
TOKENS = 77  # of a text, where the configuration says nothing


class ClipFolder:
    """Raises: ValueError, one sentence, where torch is missing or the folder holds no such network."""

    def __init__(self, folder: str):
        try:
            import torch
        except ImportError:
            raise ValueError(f"a CLIP of a folder needs {NEEDED}, or name a function as MODULE:FUNCTION") from None
        import transformers

        self._torch: Any = torch
        where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            model: Any = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, **where)
            self._pictures: Any = transformers.AutoImageProcessor.from_pretrained(folder, **where)
            self._words: Any = transformers.AutoTokenizer.from_pretrained(folder, **where)
            self._images, self._texts = model.get_image_features, model.get_text_features
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder} does not open as a CLIP of transformers: {said}") from None
        model.eval()
        most = getattr(getattr(model.config, "text_config", None), "max_position_embeddings", TOKENS)
        # SigLIP has seen texts of one length only, filled up.
        padding = "max_length" if model.config.model_type.startswith("siglip") else True
        self._how = {"padding": padding, "truncation": True, "max_length": most, "return_tensors": "pt"}

    def frames(self, frames: np.ndarray) -> np.ndarray:
        """(F, H, W, 3) uint8 -> (F, d) float32."""
        return self._features(self._images, pixel_values=self._pictures(list(frames), return_tensors="pt").pixel_values)

    def texts(self, texts: list[str]) -> np.ndarray:
        """n texts -> (n, d) float32; what is beyond the network's longest text is cut off."""
        cut = [text[:LONGEST] for text in texts]
        return self._features(self._texts, **self._words(cut, **self._how))

    def _features(self, network: Any, **given: Any) -> np.ndarray:
        with self._torch.no_grad():
            found = network(**given)
        return np.asarray(getattr(found, "pooler_output", found), np.float32)  # an object since transformers 5


@functools.lru_cache(maxsize=2)
def _opened(folder: str) -> ClipFolder:
    return ClipFolder(folder)


def read_clip(folder: str) -> ClipFolder:
    """The network of a folder, read once. Raises: as `ClipFolder`."""
    return _opened(str(Path(folder).absolute()))
