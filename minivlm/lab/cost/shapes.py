"""Models by their shape only, for counting and timing: those of the papers, or a checkpoint's; and prompts for them."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minivlm.families.internvl_config import InternViTConfig, InternVLConfig
from minivlm.families.onevision.network import OneVisionConfig
from minivlm.families.registry import read_config
from minivlm.families.smolvlm.config import SmolVLMConfig
from minivlm.io.files import folder_of
from minivlm.lab.cli import options
from minivlm.parts.config import LlavaConfig, SiglipConfig, TextConfig, VisionConfig
from minivlm.parts.sequence import places_on_tiles
from pruning.base import Tokens, UserError


@dataclass(frozen=True)
class Shape:
    """A model's configuration, and the tiles that an image becomes."""

    name: str
    config: LlavaConfig
    tiles: int = 1
    folder: Path = Path(os.devnull)    # of its checkpoint

    @property
    def grid(self):
        """Visual tokens on a side of a tile: patches, or InternVL's squares of them."""
        return self.config.grid_side

    @property
    def n(self):
        """Image tokens of the unpruned prompt."""
        return self.tiles * (self.grid ** 2 + self.config.sends_class_token)

    @property
    def parts(self):
        """What a method may count, as of a model: {"tile": (how many, tokens of each), "image": (1, all)}."""
        return {"tile": (self.tiles, self.n // self.tiles), "image": (1, self.n)}

    @property
    def layers(self):
        """Decoder layers."""
        return self.config.text.num_hidden_layers

    @property
    def own(self):
        """What the checkpoint needs in place of the methods' defaults."""
        return options.own_settings(self.folder)


def _llava(**text):
    return LlavaConfig(text=TextConfig(max_position_embeddings=4096, rms_norm_eps=1e-5, **text))


SEVEN = _llava()
THIRTEEN = _llava(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
SMALL = replace(_llava(hidden_size=1024, intermediate_size=2752, num_hidden_layers=12, num_attention_heads=16),
                vision=VisionConfig(num_hidden_layers=4))
QWEN2 = TextConfig(vocab_size=152000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=24,
                   num_attention_heads=16, max_position_embeddings=32768, rope_theta=1e6, qkv_bias=True,
                   tie_word_embeddings=True)
SO400M = SiglipConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16,
                      image_size=384, patch_size=14)
INTERLEAVE = LlavaConfig(vision=SO400M, text=QWEN2, image_token_index=151646, vision_feature_layer=-1,
                         vision_feature_select_strategy="full", dtype="bfloat16")
QWEN2_SMALL = replace(QWEN2, vocab_size=151655, hidden_size=896, intermediate_size=4864, num_attention_heads=14,
                      num_key_value_heads=2, head_dim=64, tie_word_embeddings=False)
ONEVISION = OneVisionConfig(vision=SO400M, text=replace(QWEN2_SMALL, vocab_size=152000, tie_word_embeddings=True),
                            image_token_index=151646, vision_feature_layer=-1, vision_feature_select_strategy="full",
                            image_grid_pinpoints=[[768, 768]])
SMOLLM2 = TextConfig(vocab_size=49280, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                     num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rope_theta=1e5)
SMOLVLM = SmolVLMConfig(vision=SiglipConfig(image_size=512), text=SMOLLM2, scale_factor=4, dtype="bfloat16")
INTERNVL = InternVLConfig(vision=InternViTConfig(), text=QWEN2_SMALL, image_token_index=151648, dtype="bfloat16")
SHAPES = {
    "small": Shape("small", SMALL),
    "llava-1.5-7b": Shape("llava-1.5-7b", SEVEN),
    "llava-1.5-13b": Shape("llava-1.5-13b", THIRTEEN),
    "next-7b": Shape("next-7b", SEVEN, tiles=5),               # 2880 image tokens, no newline tokens among them
    "interleave-0.5b": Shape("interleave-0.5b", INTERLEAVE),   # llava-hf/llava-interleave-qwen-0.5b-hf
    # of a picture of 640 x 480; OneVision's with the patches that are padding, and without newlines
    "onevision-0.5b": Shape("onevision-0.5b", ONEVISION, tiles=5),         # qwen2-0.5b-ov-hf
    "internvl2-1b": Shape("internvl2-1b", INTERNVL, tiles=13),
    "smolvlm-256m": Shape("smolvlm-256m", SMOLVLM, tiles=13),
}


def shape_of(shape=None, model=None, layers=None):
    """The Shape called `shape`, or that of the checkpoint `model`, with only its first `layers` decoder layers.

    UserError if there is none.
    """
    if shape and model:
        raise UserError("give --shape or --model, not both")
    whole = _checkpoint(model) if model else SHAPES[shape or "llava-1.5-7b"]
    if layers is None:
        return whole
    if layers not in range(1, whole.layers + 1):
        raise UserError(f"--layers {layers}: {whole.name} has 1 to {whole.layers}")
    text = replace(whole.config.text, num_hidden_layers=layers)
    return replace(whole, name=f"{layers} layers of {whole.name}", config=replace(whole.config, text=text))


def _checkpoint(model):
    folder = folder_of(model)
    config = read_config(folder)
    is_anyres = config.image_aspect_ratio == "anyres"
    return Shape(model, config, 5 if is_anyres else 1, folder)         # a square picture's tiles; no newline tokens


def prompt(shape, text, hidden):
    """Tokens of a prompt whose embeddings are `hidden` (T, D): half of the `text` tokens, the image, the other half."""
    grid = places_on_tiles(shape.tiles, shape.grid, shape.config.sends_class_token)        # (n, 3)
    index = torch.arange(len(grid))                            # (n,)
    visual = index + text // 2
    if hidden.is_meta:                                         # indices have values even if the stream has none
        return Tokens(hidden, visual, grid, index, torch.arange(len(hidden)), len(hidden))
    return Tokens.start(hidden, visual, grid)


def entering(pruner, shape):
    """Image tokens that enter each decoder layer; None where the prompt decides."""
    return options.entering(pruner, shape.n, shape.layers, shape.parts)
