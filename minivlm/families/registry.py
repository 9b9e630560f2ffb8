"""Which family a checkpoint belongs to: how its config.json is read, its network, its picture processor."""

from pathlib import Path

from minivlm.families.internvl import InternVL
from minivlm.families.internvl_config import InternVLConfig, read_internvl
from minivlm.families.internvl_image import InternVLProcessor
from minivlm.families.llava_next import LlavaNext
from minivlm.families.llava_next_image import LlavaNextProcessor
from minivlm.families.onevision.image import OneVisionProcessor
from minivlm.families.onevision.network import OneVision, OneVisionConfig, read_onevision
from minivlm.families.siglip import SiglipLlava
from minivlm.families.vipllava import VipLlava, VipLlavaConfig
from minivlm.io.config_json import read_hugging_face, read_llava, require
from minivlm.io.files import read_json
from minivlm.io.image import ImageProcessor
from minivlm.llava import Llava
from minivlm.parts.config import SiglipConfig
from pruning.base import UserError


def read_vipllava(path, raw):
    """The VipLlavaConfig of a config.json with this content.

    TRAP: the released file says "vision_feature_layer": -2, one layer, which its projector of five does not mean.
    """
    layers = raw.get("vision_feature_layers", raw.get("vision_feature_layer"))
    own = {key: value for key, value in raw.items() if key != "vision_feature_layer"}
    if isinstance(layers, list):
        own["vision_feature_layer"] = layers
    return read_hugging_face(path, own, VipLlavaConfig)


READERS = {                                        # by model_type
    "llava": read_llava,
    "llava_next": read_llava,
    "llava_llama": read_llava,                     # the original LLaVA's own
    "llava_mistral": read_llava,
    "llava_onevision": read_onevision,
    "vipllava": read_vipllava,
    "internvl": read_internvl,
    "internvl_chat": read_internvl,                # OpenGVLab's own
}


def read_config(folder):
    """The LlavaConfig or InternVLConfig of a checkpoint folder. UserError names the file and the key of what is not
    supported."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type")
    has_original_keys = any(key.startswith("mm_") for key in raw)
    if has_original_keys and isinstance(kind, str) and kind not in READERS:
        raise UserError(f"{path}: the original layout is not read with model_type {kind}: give the same weights in "
                        "Hugging Face's layout, as llava-hf/llava-next-72b-hf has those of a llava_qwen")
    require(path, {"model_type": None} | raw, model_type=READERS)
    read = READERS[raw["model_type"]]
    return read(path, raw)


def model_class(config):
    """The class of network that a configuration is of."""
    if isinstance(config, InternVLConfig):
        return InternVL
    if isinstance(config, VipLlavaConfig):
        return VipLlava
    if isinstance(config, OneVisionConfig):
        return OneVision
    if isinstance(config.vision, SiglipConfig):
        return SiglipLlava
    return LlavaNext if config.image_grid_pinpoints else Llava


def processor_class(config):
    """The class that turns pictures into pixels for it."""
    if isinstance(config, InternVLConfig):
        return InternVLProcessor
    if isinstance(config, OneVisionConfig):
        return OneVisionProcessor
    return LlavaNextProcessor if config.image_grid_pinpoints else ImageProcessor
