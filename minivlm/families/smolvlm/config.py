"""SmolVLM's configuration, from a config.json whose model_type is idefics3 or, for SmolVLM2, smolvlm."""

from dataclasses import dataclass, field

from minivlm.io.config_json import (
    check_heads,
    dtype_name,
    known_fields,
    refuse_quantised,
    require,
    section,
    text_config,
)
from minivlm.io.limits import checked
from minivlm.parts.activations import ACTIVATIONS
from minivlm.parts.config import LlavaConfig, SiglipConfig
from pruning.base import UserError

# What a vision_config means by saying nothing: the defaults of Idefics3VisionConfig, not SmolVLM's tower.
TOWER_DEFAULTS = dict(hidden_size=1152, num_attention_heads=16, patch_size=32)
# TRAP: transformers computes which position a row of patches has in float32. With one of these numbers of rows, or with
# more than 32, rounding gives two rows the same; released models have 26, 27 or 32.
MOST_ROWS = 32
ROUNDED = (19, 25, 29, 31)


@dataclass
class SmolVLMConfig(LlavaConfig):
    """The whole model, and what a checkpoint says about its files."""

    vision: SiglipConfig = field(default_factory=SiglipConfig)
    image_token_index: int = 128257
    vision_feature_layer: int = -1
    vision_feature_select_strategy: str = "full"
    scale_factor: int = 2

    @property
    def join(self):
        """Patches on each side of the square that pixel shuffle joins into one visual token."""
        return self.scale_factor

    @property
    def grid_side(self):
        """Visual tokens on each side of a tile."""
        return self.vision.grid_side // self.join


def read_smolvlm(path, raw):
    """The SmolVLMConfig of a config.json with this content. UserError names the key of what is not supported."""
    refuse_quantised(path, raw, "bfloat16")
    text = section(path, raw, "text_config")
    require(path, {"model_type": "llama"} | text, model_type=("llama",))
    vision = section(path, raw, "vision_config")
    require(path, vision, hidden_act=ACTIVATIONS, num_channels=(3,))
    values = known_fields(SmolVLMConfig, {"scale_factor": raw.get("scale_factor", 2)})
    values["vision"] = checked(path, SiglipConfig, TOWER_DEFAULTS | known_fields(SiglipConfig, vision))
    values["text"] = text_config(path, text, raw)
    values["image_token_index"] = raw.get("image_token_id", 128257)
    values["dtype"] = dtype_name(path, raw, text)
    config = checked(path, SmolVLMConfig, values)
    check_heads(path, config)
    _check_rows(path, config)
    return config


def _check_rows(path, config):
    rows = config.vision.grid_side
    if rows % config.join:
        raise UserError(f"{path}: scale_factor {config.join} does not divide the {rows} patches of a tile's side")
    if rows > MOST_ROWS or rows in ROUNDED:
        raise UserError(f"{path}: image_size {config.vision.image_size} and patch_size {config.vision.patch_size} make "
                        f"{rows} rows of patches, whose positions are not supported: released models have 32")
