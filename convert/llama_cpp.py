"""llama.cpp's names of T5's tensors, which GGUF files have.

Source: llama.cpp, `gguf-py/gguf/tensor_mapping.py`.
"""

import re

from cogvx_jax.convert.tensors import Renamed, Tensors

MARK = "enc.blk.0.attn_q.weight"
FIRST, SECOND = "encoder.block.{i}.layer.0", "encoder.block.{i}.layer.1"
NAMES = {  # theirs -> published, both before ".weight"
    "token_embd": "shared",
    "enc.blk.{i}.attn_norm": f"{FIRST}.layer_norm",
    "enc.blk.{i}.attn_q": f"{FIRST}.SelfAttention.q",
    "enc.blk.{i}.attn_k": f"{FIRST}.SelfAttention.k",
    "enc.blk.{i}.attn_v": f"{FIRST}.SelfAttention.v",
    "enc.blk.{i}.attn_o": f"{FIRST}.SelfAttention.o",
    "enc.blk.{i}.attn_rel_b": f"{FIRST}.SelfAttention.relative_attention_bias",
    "enc.blk.{i}.ffn_norm": f"{SECOND}.layer_norm",
    "enc.blk.{i}.ffn_gate": f"{SECOND}.DenseReluDense.wi_0",
    "enc.blk.{i}.ffn_up": f"{SECOND}.DenseReluDense.wi_1",
    "enc.blk.{i}.ffn_down": f"{SECOND}.DenseReluDense.wo",
    "enc.output_norm": "encoder.final_layer_norm",
}
DECODER = ("dec.", "output.")  # of files that hold all of T5


def read_t5(tensors: Tensors) -> Tensors:
    """T5's encoder by its published names; a tensor of no known name keeps its own, which makes it spare."""
    own = Renamed()
    for name in tensors:
        if not name.startswith(DECODER):
            own.add(_published(name), tensors[name], name)
    return tensors.of(own)


def _published(name: str) -> str:
    found = re.fullmatch(r"(?:(enc\.blk\.)(\d{1,4})(\.\w+)|([\w.]+))\.weight", name)
    if found is None:
        return name
    begin, number, end, whole = found.groups()
    theirs = whole if whole is not None else f"{begin}{{i}}{end}"
    return f"{NAMES[theirs].replace('{i}', number or '')}.weight" if theirs in NAMES else name
