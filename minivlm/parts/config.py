"""Configuration: the numbers that the network is built from.

Field names are Hugging Face's, and the defaults are LLaVA-1.5's tower and LlamaConfig's decoder. io/config_json.py
reads them from a checkpoint.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from minivlm.parts.rope_scaling import Linear, Llama3


@dataclass
class VisionConfig:
    """The CLIP vision transformer; by default ViT-L/14 at 336 pixels, LLaVA-1.5's."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    has_class_token: ClassVar = True

    @property
    def grid_side(self):
        """Patches on each side of the picture: 24."""
        return self.image_size // self.patch_size


@dataclass
class SiglipConfig(VisionConfig):
    """The SigLIP vision transformer; by default that of base/16 at 224 pixels, SiglipVisionConfig's."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    has_class_token: ClassVar = False


@dataclass
class TextConfig:
    """The decoder; by default LlamaConfig's numbers."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None         # None: as many as query heads
    head_dim: int | None = None                    # None: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Linear | Llama3 | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None              # positions that a query sees, its own included; None: all

    def __post_init__(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass
class LlavaConfig:
    """The whole model, and what a checkpoint says about its files."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    vision_feature_layer: int | list[int] = -2     # which hidden states; several are concatenated
    vision_feature_select_strategy: str = "default"        # "default" drops the CLS row, "full" keeps all rows
    multimodal_projector_bias: bool = True
    image_aspect_ratio: str = "crop"               # or "pad", or "anyres": LLaVA-NeXT
    image_grid_pinpoints: list | None = None       # anyres: sizes of the grids of tiles, [height, width] in pixels
    dtype: str = "float32"                         # as written in config.json
    original: bool = False                         # the layout of the authors' own code, not Hugging Face's
    vision_tower: str | None = None                # original layout: name or folder of the CLIP tower
    pad_token_id: int | None = None
    template: str = "llava-hf"                     # of prompts: a name in io/text/template.TEMPLATES

    @property
    def feature_layers(self):
        """The hidden states that the projector reads, counted from 0: [23] of LLaVA-1.5's -2 of 25."""
        layers = self.vision_feature_layer
        if isinstance(layers, int):
            layers = [layers]
        states = self.vision.num_hidden_layers + 1
        return [l % states for l in layers]

    @property
    def sends_class_token(self):
        """Whether the class token of each tile is a visual token, too."""
        return self.vision.has_class_token and self.vision_feature_select_strategy == "full"

    @property
    def grid_side(self):
        """Visual tokens on each side of a tile: one for each patch."""
        return self.vision.grid_side
