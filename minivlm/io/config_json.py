"""config.json of LLaVA and LLaVA-NeXT -> LlavaConfig; and what InternVL's reader shares with it.

Released files are partial: a key that is not written has the default of the class that wrote the file. Two kinds of
file say "model_type": "llava": Hugging Face's, with a text_config and a vision_config, and the original LLaVA's, one
flat list whose vision tower is only named. LLaVA-NeXT is the same model on pictures of any resolution, and has
image_grid_pinpoints.
"""

from dataclasses import fields
from pathlib import Path

from minivlm.io.files import read_json, tower_folder
from minivlm.io.limits import LIMITS, LONGEST, check, checked
from minivlm.parts import rope_scaling
from minivlm.parts.activations import ACTIVATIONS
from minivlm.parts.config import LlavaConfig, SiglipConfig, TextConfig, VisionConfig
from pruning.base import UserError

# What a text_config means by saying nothing: the defaults of its class, if they are not LlamaConfig's.
TEXT_DEFAULTS = {
    "llama": {},
    "mistral": dict(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072,
                    sliding_window=4096),
    "qwen2": dict(vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, max_position_embeddings=32768,
                  qkv_bias=True),
}
# The same for a vision_config of CLIP (CLIPVisionConfig is ViT-B/32; SiglipConfig has its class's own) ...
CLIP_DEFAULTS = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                     image_size=224, patch_size=32)
# ... and for the towers that an original config only names.
TOWERS = {"clip-vit-large-patch14-336": {}, "clip-vit-large-patch14": dict(image_size=224)}
# Families that cut a picture into tiles, and the tower of each.
TILED = {"llava_next": "clip_vision_model", "llava_onevision": "siglip_vision_model"}
# Fields of LlavaConfig that Hugging Face's files name so, too.
SAME_NAMES = ("projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy",
              "multimodal_projector_bias")
MOST_TILES = LIMITS["max_tiles"][1]
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def read_llava(path, raw):
    """The LlavaConfig of a config.json with this content. UserError names the file and the key of what is not
    supported."""
    is_original = raw["model_type"] in ("llava_llama", "llava_mistral")
    if any(key.startswith("mm_") for key in raw):
        is_original = True
    if is_original:
        refuse_quantised(path, raw, "float16")
        return _whole(path, _original(path, raw))
    return read_hugging_face(path, raw)


def read_hugging_face(path, raw, kind=LlavaConfig):
    """The same of a file in Hugging Face's layout. kind: LlavaConfig, or a family's subclass with fields of its own."""
    refuse_quantised(path, raw, "float16")
    own = {key: value for key, value in raw.items() if key.startswith(("projector_", "vision_aspect_"))}
    values = _hugging_face(path, raw) | known_fields(kind, own)
    return _whole(path, checked(path, kind, values))


def _whole(path, config):
    """The configuration, whose parts fit together."""
    check_heads(path, config)
    _check_feature_layer(path, config)
    _check_pinpoints(path, config)
    return config


def _hugging_face(path, raw):
    """The values of a LlavaConfig."""
    text = section(path, raw, "text_config")
    vision = section(path, raw, "vision_config")
    require(path, raw, projector_hidden_act=ACTIVATIONS, vision_feature_select_strategy=("default", "full"))
    values = {name: raw[name] for name in SAME_NAMES if name in raw}
    if raw.get("vision_config") is not None:
        values["vision"] = _vision(path, vision)
    values["text"] = text_config(path, text, raw)
    values["image_token_index"] = raw.get("image_token_index", raw.get("image_token_id", 32000))
    values["pad_token_id"] = raw.get("pad_token_id", text.get("pad_token_id"))
    values["dtype"] = dtype_name(path, raw, text)
    if raw["model_type"] in TILED:
        require(path, vision, model_type=(TILED[raw["model_type"]],))
        pinpoints = raw.get("image_grid_pinpoints")
        values["image_grid_pinpoints"] = PINPOINTS if pinpoints is None else pinpoints
        values["image_aspect_ratio"] = "anyres"
        values["template"] = "mistral" if text.get("model_type") == "mistral" else "llava_v1"
    return values


def _original(path, raw):
    aspect = check(path, "image_aspect_ratio", raw.get("image_aspect_ratio"), str | None)
    is_anyres = aspect is not None and aspect.startswith("anyres")
    if is_anyres:
        written = {"mm_patch_merge_type": "flat"} | raw
        require(path, written, image_aspect_ratio=("anyres",), mm_patch_merge_type=("spatial_unpad",))
    written = {"mm_projector_type": "linear"} | raw
    require(path, written, mm_projector_type=("mlp2x_gelu",), mm_use_im_start_end=(False,),
            mm_vision_select_feature=("patch", "cls_patch"))
    tower = raw.get("mm_vision_tower")
    if not isinstance(tower, str) or not tower:
        raise UserError(f"{path}: mm_vision_tower must name the CLIP tower, and is {tower!r}")
    is_mistral = "Mistral" in str(raw.get("architectures")) or raw.get("model_type") == "llava_mistral"
    text = text_config(path, raw | {"model_type": "mistral" if is_mistral else "llama"})
    values = dict(original=True, text=text, vision_tower=tower, vision=_tower(path, tower))
    values["image_token_index"] = text.vocab_size          # no token of the original's: the first id that is no word
    values["pad_token_id"] = raw.get("pad_token_id")
    values["vision_feature_layer"] = raw.get("mm_vision_select_layer", -2)
    if raw.get("mm_vision_select_feature") == "cls_patch":
        values["vision_feature_select_strategy"] = "full"
    if aspect in ("pad", "anyres"):
        values["image_aspect_ratio"] = aspect
    if is_anyres:
        values["image_grid_pinpoints"] = _height_first(path, raw.get("image_grid_pinpoints"))
    values["template"] = "mistral" if is_mistral else "llava_v1"
    values["dtype"] = dtype_name(path, raw)
    return checked(path, LlavaConfig, values)


def _height_first(path, pinpoints):
    """TRAP: the original LLaVA reads [width, height], Hugging Face [height, width] from the same list; so with equally
    good grids the two pick different ones."""
    if not _are_pairs(pinpoints):
        raise UserError(f"{path}: image_grid_pinpoints must be pairs of numbers, and is {pinpoints!r}")
    return [[height, width] for width, height in pinpoints]


def _are_pairs(pinpoints):
    """Whether these are pairs of sizes."""
    if not isinstance(pinpoints, list) or not 1 <= len(pinpoints) <= LONGEST:
        return False
    for pair in pinpoints:
        if not isinstance(pair, list) or len(pair) != 2:
            return False
        if not all(type(n) is int and n > 0 for n in pair):
            return False
    return True


def text_config(path, raw, around={}):
    """The TextConfig of a text_config; `around` is the object that holds it."""
    kind = raw.get("model_type", "llama")
    require(path, raw, model_type=TEXT_DEFAULTS, hidden_act=("silu",))
    values = TEXT_DEFAULTS[kind] | known_fields(TextConfig, raw)
    rope = _rope(path, raw)
    values["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    values["rope_scaling"] = _rope_scaling(path, rope)
    values["tie_word_embeddings"] = any(_flag(path, place, "tie_word_embeddings") for place in (raw, around))
    if kind == "llama":                            # Qwen2 has biases on three of the four projections, whatever it says
        has_bias = _flag(path, raw, "attention_bias")
        values["qkv_bias"] = has_bias
        values["o_bias"] = has_bias
    uses_window = _flag(path, raw, "use_sliding_window")
    config = checked(path, TextConfig, values)
    if kind == "qwen2" and uses_window and config.sliding_window:
        # only some of its layers have the window; up to its width all layers agree, so the context ends there
        config.max_position_embeddings = min(config.max_position_embeddings, config.sliding_window)
    if kind != "mistral":
        config.sliding_window = None
    return config


def _rope(path, raw):
    """What rope_parameters say or, in older files, rope_scaling."""
    kinds = ("default", *rope_scaling.KINDS)
    sections = [section(path, raw, name) for name in ("rope_parameters", "rope_scaling")]
    for rope in sections:
        require(path, rope, rope_type=kinds, type=kinds, partial_rotary_factor=(1, None))
    new, old = sections
    if new and old and new != old:                 # which of them counts differs from version to version
        raise UserError(f"{path}: rope_parameters and rope_scaling differ: keep the one that the model was trained by")
    rope = new or old
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError(f"{path}: rope_parameters that differ from layer to layer are not supported")
    return rope


def _rope_scaling(path, rope):
    """The Linear or Llama3 that is written; None if the frequencies are not scaled."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    scaling = rope_scaling.KINDS[kind]
    missing = [field.name for field in fields(scaling) if field.name not in rope]
    if missing:
        raise UserError(f"{path}: {kind} scaling of the rotary embedding has no {missing[0]}: write it")
    scaling = checked(path, scaling, known_fields(scaling, rope))
    if kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise UserError(f"{path}: low_freq_factor {scaling.low_freq_factor} must be below high_freq_factor "
                        f"{scaling.high_freq_factor}")
    return scaling


def _vision(path, raw):
    """The tower of a vision_config."""
    require(path, raw, model_type=("clip_vision_model", "siglip_vision_model"))
    if raw.get("model_type") != "siglip_vision_model":
        return _clip(path, raw)
    require(path, raw, hidden_act=ACTIVATIONS, vision_use_head=(False,))
    return checked(path, SiglipConfig, known_fields(SiglipConfig, raw))


def _clip(path, raw):
    require(path, raw, model_type=("clip_vision_model",), hidden_act=ACTIVATIONS)
    return checked(path, VisionConfig, CLIP_DEFAULTS | known_fields(VisionConfig, raw))


def _tower(path, name):
    """The vision tower of an original checkpoint, from its own config.json or from its name."""
    folder = tower_folder(path.parent, name)
    own = folder and folder / "config.json"
    if own and own.is_file():
        raw = read_json(own)
        return _clip(own, section(own, raw, "vision_config") or raw)
    if Path(name).name not in TOWERS:
        raise UserError(f"{path}: mm_vision_tower {name!r} is not known ({', '.join(TOWERS)} are): "
                        "put the folder of that CLIP model beside the checkpoint's")
    return VisionConfig(**TOWERS[Path(name).name])


def _check_feature_layer(path, config):
    states = config.vision.num_hidden_layers + 1
    layers = config.vision_feature_layer
    if not isinstance(layers, list):
        layers = [layers]
    if min(layers) < -states or max(layers) >= states:
        raise UserError(f"{path}: vision_feature_layer {config.vision_feature_layer!r} names no hidden state of "
                        f"{states}")
    if not config.vision.has_class_token and config.vision_feature_select_strategy != "full":
        raise UserError(f"{path}: SigLIP has no class token to leave out: only the feature strategy 'full' is "
                        "supported")


def _check_pinpoints(path, config):
    pinpoints = config.image_grid_pinpoints
    side = config.vision.image_size
    if pinpoints is None:
        return
    if not _are_pairs(pinpoints) or any(n % side for pair in pinpoints for n in pair):
        raise UserError(f"{path}: image_grid_pinpoints must be pairs of multiples of image_size {side}, and is "
                        f"{pinpoints!r}")
    if any(height * width > MOST_TILES * side ** 2 for height, width in pinpoints):
        raise UserError(f"{path}: image_grid_pinpoints {pinpoints!r} have a grid of more than {MOST_TILES} tiles")
    if config.sends_class_token:
        raise UserError(f"{path}: the class token has no place among the tiles: only the feature strategy 'default' is "
                        "supported")


# --- shared with other families ---------------------------------------------------------------------------------------

def refuse_quantised(path, raw, released):
    """UserError for quantised weights. released: the dtype of the checkpoint that has the same weights whole."""
    if raw.get("quantization_config"):
        raise UserError(f"{path}: quantization_config: quantised weights are not read, use the {released} checkpoint")


def require(path, raw, **supported):
    """UserError unless each of these keys, if it is written, has one of its values."""
    for key, values in supported.items():
        if key in raw and raw[key] not in list(values):
            raise UserError(f"{path}: {key} {raw[key]!r} is not supported, only {' or '.join(map(str, values))}")


def section(path, raw, name):
    """The object of that name; {} if it is not written."""
    return check(path, name, raw.get(name), dict | None) or {}


def known_fields(cls, raw):
    """The values that are written for fields of the dataclass."""
    names = [field.name for field in fields(cls)]
    return {name: raw[name] for name in names if name in raw}


def dtype_name(path, *sections):
    """The dtype that the first of these sections with one names: "float16"."""
    keys = ("dtype", "torch_dtype")
    names = [part[key] for part in sections for key in keys if part.get(key)]
    names.append("float32")
    name = names[0]
    require(path, {"dtype": name}, dtype=("float32", "float16", "bfloat16"))
    return name


def check_heads(path, config):
    """UserError unless the sizes fit together."""
    text = config.text
    vision = config.vision
    if text.num_attention_heads % text.num_key_value_heads:
        raise UserError(f"{path}: num_attention_heads {text.num_attention_heads} is no multiple of "
                        f"num_key_value_heads {text.num_key_value_heads}")
    if text.head_dim < 2 or text.head_dim % 2:
        raise UserError(f"{path}: head_dim is {text.head_dim}, and must be an even number: rotary embeddings turn "
                        "pairs")
    if vision.hidden_size % vision.num_attention_heads:
        raise UserError(f"{path}: the tower's hidden_size {vision.hidden_size} is no multiple of its "
                        f"num_attention_heads {vision.num_attention_heads}")
    if vision.patch_size > vision.image_size:
        raise UserError(f"{path}: patch_size {vision.patch_size} is larger than image_size {vision.image_size}")


def _flag(path, raw, name):
    """Whether this is written, and true."""
    value = check(path, name, raw.get(name), bool | None)
    return bool(value)
