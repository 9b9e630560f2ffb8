"""InternVL's configuration, from a config.json in Hugging Face's layout (internvl) or OpenGVLab's (internvl_chat)."""

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
from minivlm.io.files import read_json
from minivlm.io.limits import check, checked
from minivlm.io.text.chatml import CHATML, CONTEXT
from minivlm.parts.activations import ACTIVATIONS
from minivlm.parts.config import LlavaConfig, VisionConfig
from pruning.base import UserError

NORM_TYPES = ("layer_norm", "rms_norm")
CONTEXT_IDS = {"internlm2": 92546, "llama": 92546, "qwen2": 151667}        # if the tokenizer's files name no id


@dataclass
class InternViTConfig(VisionConfig):
    """The vision transformer; by default InternViT-300M at 448 pixels."""

    image_size: int = 448
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_bias: bool = True                    # of query, key and value
    norm_type: str = "layer_norm"                  # before attention and MLP; "rms_norm": InternViT-6B
    use_qk_norm: bool = False                      # whether queries and keys are normed, as in InternViT-6B


@dataclass
class InternVLConfig(LlavaConfig):
    """The whole model, and what a checkpoint says about its files."""

    vision: InternViTConfig = field(default_factory=InternViTConfig)
    image_token_index: int = 92546
    vision_feature_layer: int = -1
    template: str = "internvl-hf"                  # a key of CHATML
    downsample_ratio: float = 0.5                  # pixel shuffle: visual tokens on a side to patches on a side
    min_tiles: int = 1
    max_tiles: int = 12                            # without the thumbnail
    use_thumbnail: bool = True

    @property
    def join(self):
        """Patches a side that pixel shuffle joins into one visual token: 2."""
        return round(1 / self.downsample_ratio)

    @property
    def grid_side(self):
        """Visual tokens on each side of a tile."""
        return self.vision.grid_side // self.join


def read_internvl(path, raw):
    """The InternVLConfig of a config.json with this content. UserError names the key of what is not supported."""
    refuse_quantised(path, raw, "bfloat16")
    read = _original if raw["model_type"] == "internvl_chat" else _hugging_face
    config = read(path, raw)
    check_heads(path, config)
    _check_tiles(path, config)
    return config


def _hugging_face(path, raw):
    text = {"model_type": "qwen2"} | section(path, raw, "text_config")
    vision = {"attention_bias": False} | section(path, raw, "vision_config")
    require(path, raw, projector_hidden_act=ACTIVATIONS, vision_feature_select_strategy=("default",),
            downsample_ratio=(0.5,), vision_feature_layer=(-1,))
    values = dict(vision=_tower(path, vision))
    values["text"] = _decoder(path, text, {"tie_word_embeddings": True} | raw)
    values["image_token_index"] = raw.get("image_token_id", 151667)
    values["projector_hidden_act"] = raw.get("projector_hidden_act", "gelu")
    values["dtype"] = dtype_name(path, raw, text)
    return checked(path, InternVLConfig, values)


def _original(path, raw):
    text = section(path, raw, "llm_config")
    vision = section(path, raw, "vision_config")
    kind = text.get("model_type", "internlm2")
    written = {"ps_version": "v1", "template": None, "downsample_ratio": 0.5} | raw
    require(path, written, ps_version=("v2",), downsample_ratio=(0.5,), select_layer=(-1,), template=CHATML)
    written = {"model_type": kind, "bias": False} | text
    require(path, written, model_type=CONTEXT_IDS, bias=(False,))
    # one size of picture, under two names
    own_size = vision.get("image_size", 448)
    size = raw.get("force_image_size") or own_size
    require(path, {"image_size": size}, image_size=(own_size,))
    # OpenGVLab's names of Hugging Face's fields; what is not written is as in InternViT-6B
    vision = {
        "attention_bias": vision.get("qkv_bias", False),
        "use_qk_norm": vision.get("qk_normalization", True),
        "norm_type": "rms_norm",
        **vision,
    }
    decoder = text | {"model_type": "llama" if kind == "internlm2" else kind}
    values = dict(original=True, vision=_tower(path, vision), text=_decoder(path, decoder), template=raw["template"])
    values["image_token_index"] = _context_id(path.parent) or CONTEXT_IDS[kind]
    values["use_thumbnail"] = raw.get("use_thumbnail", True)
    is_dynamic = check(path, "dynamic_image_size", raw.get("dynamic_image_size", True), bool)
    values["min_tiles"] = raw.get("min_dynamic_patch", 1) if is_dynamic else 1
    values["max_tiles"] = raw.get("max_dynamic_patch", 12) if is_dynamic else 1
    values["dtype"] = dtype_name(path, raw, text)
    return checked(path, InternVLConfig, values)


def _tower(path, raw):
    """The InternViTConfig. A square's side may be written as a list of two."""
    sides = {key: _side(path, key, raw[key]) for key in ("image_size", "patch_size") if isinstance(raw.get(key), list)}
    raw = raw | sides
    require(path, raw, hidden_act=ACTIVATIONS, norm_type=NORM_TYPES, num_channels=(3,),
            use_absolute_position_embeddings=(True,), use_mean_pooling=(True,))
    return checked(path, InternViTConfig, known_fields(InternViTConfig, raw))


def _side(path, name, sides):
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UserError(f"{path}: {name} {sides!r} is not the side of a square, twice")
    return sides[0]


def _decoder(path, raw, around={}):
    """The TextConfig. InternLM2 is LLaMA's network: its dynamic rotary embedding differs only past
    max_position_embeddings, where the context ends anyway."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = section(path, raw, name)
        if "dynamic" in (rope.get("type"), rope.get("rope_type")):
            only_theta = {key: value for key, value in rope.items() if key == "rope_theta"}
            raw = raw | {name: only_theta}
    return text_config(path, raw, around)


def _context_id(folder):
    """The id of the image's token in the tokenizer's files; None if they name none."""
    for name in ("tokenizer_config.json", "added_tokens.json", "tokenizer.json"):
        path = folder / name
        raw = read_json(path) if path.is_file() else {}
        by_id = check(path, "added_tokens_decoder", raw.get("added_tokens_decoder"), dict | None) or {}
        listed = check(path, "added_tokens", raw.get("added_tokens"), list | None) or []
        tokens = list(by_id.items())
        tokens += [(token.get("id"), token) for token in listed if isinstance(token, dict)]
        id_of = {str(token.get("content")): id for id, token in tokens if isinstance(token, dict)}
        id = raw.get(CONTEXT, id_of.get(CONTEXT))              # added_tokens.json is {content: id}
        if id is not None:
            whole = int(id) if str(id).isdecimal() else id
            return check(path, "id", whole, int)
    return None


def _check_tiles(path, config):
    vision = config.vision
    if vision.grid_side % config.join:
        raise UserError(f"{path}: pixel shuffle joins {config.join} patches a side, and of patch_size "
                        f"{vision.patch_size} image_size {vision.image_size} has {vision.grid_side}")
    if config.min_tiles > config.max_tiles:
        raise UserError(f"{path}: min_dynamic_patch {config.min_tiles} is more than max_dynamic_patch "
                        f"{config.max_tiles}")
