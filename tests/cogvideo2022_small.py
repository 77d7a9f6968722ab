"""A CogVideo (2022) of random numbers that is small in everything but its codes, and files of it."""

import io
import json

import numpy as np
from flax import traverse_util

from cogvx_jax.convert import cogvideo2022_folder as folders
from cogvx_jax.convert.cogvideo2022 import image_tokenizer_parameters, network_parameters
from cogvx_jax.convert.cogvideo2022_sizes import Beside, beside_json
from cogvx_jax.convert.export import METADATA
from cogvx_jax.convert.safetensors import Tensor, write_file
from cogvx_jax.models.cogvideo2022.abstract import abstract_network
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config, ImageTokenizerConfig, SuperResolutionConfig
from cogvx_jax.models.cogvideo2022.transformer import of_base

WORDS = ["<pad>", "<n>", "▁", *"0123456789.秒一只猫在弹吉他高清摄影视频狗跑步"]
START = 20_000 + 1 + len(WORDS)  # after <unk>
# With fewer than 3 layers, no step sees what `training_mask` changes.
SIZES = dict(layers=3, heads=2, head_dim=8, vocab=START + 10, start_of_image=START, grid=4)
STAGES = {
    "sequential": CogVideo2022Config(**SIZES),
    "interpolation": CogVideo2022Config(stage="interpolation", window=2, **SIZES),
    "super_resolution": SuperResolutionConfig(**SIZES),
}
DECODERS = ((16, (1, 1, 1, 1, 1)), (8, (1, 1, 1, 1)), (4, (1, 1, 1)))
IMAGES = ImageTokenizerConfig(
    codes=20_000, code_width=8, channels=8, groups=4, encoder=(1, 1, 2), encoder_blocks=1, decoders=DECODERS
)
PROMPT = "一只猫在弹吉他"


def text_model_bytes():
    """A file as `ice_text.model`, of a piece for each letter."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as messages

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc"]), model_writer=model, vocab_size=6, hard_vocab_limit=False, bos_id=-1, eos_id=-1,
        unk_id=0, minloglevel=2,
    )  # fmt: skip
    proto = messages.ModelProto.FromString(model.getvalue())
    del proto.pieces[1:]
    for word in WORDS:
        proto.pieces.add(piece=word, score=-1.0)
    return proto.SerializeToString()


def random_parameters(stages=STAGES):
    """Parameters of stages that share a base: nested, its arrays the same objects."""
    rng, base, params = np.random.default_rng(0), {}, {}
    for stage, cfg in stages.items():
        for path, own in abstract_network(cfg).items():
            spread = 0.3 if path.endswith(("scale", "bias", "words")) else 1
            drawn = spread * rng.normal(size=own.shape) / (np.sqrt(own.shape[-2]) if path.endswith("kernel") else 1)
            array = np.asarray(drawn + path.endswith("scale"), "float32")
            flat = params.setdefault(stage, {})
            flat[path] = base.setdefault(path, array) if of_base(path) else array
    return {stage: traverse_util.unflatten_dict(flat, sep="/") for stage, flat in params.items()}


def write_folder(place, stages=STAGES):
    """The same as our folder, with an image tokenizer of `IMAGES`, a text tokenizer and clusters."""
    place.mkdir()
    params = {stage: traverse_util.flatten_dict(own, sep="/") for stage, own in random_parameters(stages).items()}
    first = next(iter(stages))
    write_file(
        place / "base.safetensors", _tensors(network_parameters(stages[first], channel=False), params[first]), METADATA
    )
    for stage, cfg in stages.items():
        own = _tensors(network_parameters(cfg, base=False), params[stage])
        write_file(place / f"{stage}.safetensors", own, METADATA)
    rng = np.random.default_rng(1)
    drawn = {path: np.float32(0.3 * rng.normal(size=p.shape)) for path, p in abstract_network(IMAGES).items()}
    write_file(place / folders.IMAGES[1], _tensors(image_tokenizer_parameters(IMAGES), drawn), METADATA)
    (place / folders.TEXT).write_bytes(text_model_bytes())
    np.save(place / folders.CLUSTERS, np.arange(20_000) % 500)
    sizes = {stage: {name: getattr(cfg, name) for name in folders.SHAPED} for stage, cfg in stages.items()}
    (place / folders.SIZES).write_text(json.dumps({"stages": sizes} | beside_json(Beside(images=IMAGES))))
    return place


def _tensors(parameters, flat):
    return [
        Tensor.of(key, np.ascontiguousarray(p.change.write(flat[p.path][i] if p.stacked else flat[p.path])))
        for p in parameters
        for i, key in enumerate(p.keys)
    ]
