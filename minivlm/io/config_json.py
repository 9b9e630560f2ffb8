"""Configuration: the numbers the network is built from, read from a checkpoint's config.json.

Field names are Hugging Face's. Released files are partial: a key that is not written has the default of the class that
wrote the file, so the defaults here are those classes' defaults. Two kinds of file say "model_type": "llava": Hugging
Face's, with a text_config and a vision_config, and the original LLaVA's, one flat list whose vision tower is only named.
LLaVA-NeXT is the same model on pictures of any resolution, and has image_grid_pinpoints.
"""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from minivlm.io.files import read_json
from minivlm.io.limits import LIMITS, LONGEST, check, checked
from minivlm.parts.activations import ACTIVATIONS
from pruning.base import UserError


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
    vision_feature_select_strategy: str = "default"        # "default" drops the CLS row, "full" keeps it
    multimodal_projector_bias: bool = True
    image_aspect_ratio: str = "crop"               # or "pad", or "anyres": LLaVA-NeXT
    image_grid_pinpoints: list | None = None       # anyres: sizes of the grids of tiles, [height, width] in pixels
    dtype: str = "float32"                         # as written in config.json
    original: bool = False                         # the original LLaVA's layout
    vision_tower: str | None = None                # original layout: name or folder of the CLIP tower
    pad_token_id: int | None = None
    template: str = "llava-hf"                     # of prompts: a key of text.TEMPLATES

    @property
    def feature_layers(self):
        """The hidden states that the projector reads, counted from 0: [23] of LLaVA-1.5's -2 of 25."""
        layers = self.vision_feature_layer
        if isinstance(layers, int):
            layers = [layers]
        states = self.vision.num_hidden_layers + 1
        return [l % states for l in layers]


# What a text_config means by saying nothing: the defaults of its class, where they are not LlamaConfig's.
TEXT = {
    "llama": {},
    "mistral": dict(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096),
    "qwen2": dict(vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, max_position_embeddings=32768,
                  qkv_bias=True),
}
# The same for a vision_config (CLIPVisionConfig is ViT-B/32) ...
CLIP = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224,
            patch_size=32)
# ... and for the towers that an original config only names.
TOWERS = {"clip-vit-large-patch14-336": {}, "clip-vit-large-patch14": dict(image_size=224)}
TILES = LIMITS["max_tiles"][1]
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def read_config(folder):
    """The LlavaConfig (or InternVLConfig) of a checkpoint folder. UserError names the file and the key of what is not supported."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type")
    if kind in ("internvl", "internvl_chat"):
        from minivlm.families.internvl_config import read_internvl      # here: that file is built on this one
        return read_internvl(path, raw)
    _only(path, {"model_type": None} | raw, model_type=("llava", "llava_next", "llava_llama", "llava_mistral", "internvl", "internvl_chat"))
    if raw.get("quantization_config"):
        raise UserError(f"{path}: quantization_config: quantised weights are not read, use the float16 checkpoint")
    original = kind in ("llava_llama", "llava_mistral") or any(key.startswith("mm_") for key in raw)
    config = _original(path, raw) if original else _hugging_face(path, raw)
    _check_heads(path, config)
    _check_feature_layer(path, config)
    _check_pinpoints(path, config)
    return config


def _hugging_face(path, raw):
    text = _section(path, raw, "text_config")
    vision = _section(path, raw, "vision_config")
    _only(path, raw, projector_hidden_act=ACTIVATIONS, vision_feature_select_strategy=("default", "full"))
    anyres, mistral = raw["model_type"] == "llava_next", text.get("model_type") == "mistral"
    pinpoints = raw.get("image_grid_pinpoints")
    return checked(path, LlavaConfig, dict(
        vision=VisionConfig() if raw.get("vision_config") is None else _vision(path, vision),
        text=_text(path, text, raw),
        image_token_index=raw.get("image_token_index", raw.get("image_token_id", 32000)),
        projector_hidden_act=raw.get("projector_hidden_act", "gelu"),
        vision_feature_layer=raw.get("vision_feature_layer", -2),
        vision_feature_select_strategy=raw.get("vision_feature_select_strategy", "default"),
        multimodal_projector_bias=raw.get("multimodal_projector_bias", True),
        image_aspect_ratio="anyres" if anyres else "crop",
        image_grid_pinpoints=(PINPOINTS if pinpoints is None else pinpoints) if anyres else None,
        dtype=_dtype(path, raw, text),
        pad_token_id=raw.get("pad_token_id", text.get("pad_token_id")),
        template="llava-hf" if not anyres else "mistral" if mistral else "llava_v1"))


def _original(path, raw):
    tower = raw.get("mm_vision_tower")
    aspect = check(path, "image_aspect_ratio", raw.get("image_aspect_ratio"), str | None)
    if anyres := str(aspect).startswith("anyres"):
        _only(path, {"mm_patch_merge_type": "flat"} | raw, image_aspect_ratio=("anyres",), mm_patch_merge_type=("spatial_unpad",))
    _only(path, {"mm_projector_type": "linear"} | raw, mm_projector_type=("mlp2x_gelu",), mm_use_im_start_end=(False,),
          mm_vision_select_feature=("patch", "cls_patch"))
    if not isinstance(tower, str) or not tower:
        raise UserError(f"{path}: mm_vision_tower must name the CLIP tower, and is {tower!r}")
    mistral = "Mistral" in str(raw.get("architectures")) or raw.get("model_type") == "llava_mistral"
    text = _text(path, raw | {"model_type": "mistral" if mistral else "llama"})
    return checked(path, LlavaConfig, dict(
        vision=_tower(path, tower), text=text,
        image_token_index=text.vocab_size,         # the original has no such token: the first id that is no word
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if raw.get("mm_vision_select_feature") == "cls_patch" else "default",
        image_aspect_ratio=aspect if aspect in ("pad", "anyres") else "crop",
        image_grid_pinpoints=_turned(path, raw.get("image_grid_pinpoints")) if anyres else None,
        dtype=_dtype(path, raw), original=True, vision_tower=tower, pad_token_id=raw.get("pad_token_id"),
        template="mistral" if mistral else "llava_v1"))


def _turned(path, pinpoints):
    """TRAP: the original reads [width, height], Hugging Face [height, width] out of the same list; so ties fall otherwise."""
    if not _pairs(pinpoints):
        raise UserError(f"{path}: image_grid_pinpoints must be pairs of numbers, and is {pinpoints!r}")
    return [[height, width] for width, height in pinpoints]


def _pairs(pinpoints):
    if not isinstance(pinpoints, list) or not 1 <= len(pinpoints) <= LONGEST:
        return False
    pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in pinpoints)
    return pairs and all(type(n) is int and n > 0 for pair in pinpoints for n in pair)


def _text(path, raw, top={}):
    """The TextConfig of a text_config; `top` is what stands around it."""
    kind = raw.get("model_type", "llama")
    _only(path, raw, model_type=TEXT, hidden_act=("silu",))
    given = TEXT[kind] | _known(TextConfig, raw) | {"rope_theta": _rope_theta(path, raw)}
    given["tie_word_embeddings"] = any(_flag(path, place, "tie_word_embeddings") for place in (raw, top))
    if kind == "llama":                            # Qwen2 has biases on three of the four projections, whatever it says
        given["qkv_bias"] = given["o_bias"] = _flag(path, raw, "attention_bias")
    windowed = _flag(path, raw, "use_sliding_window")
    config = checked(path, TextConfig, given)
    if kind == "qwen2":                            # its window is that of some layers: up to its width they are the same
        window = config.sliding_window if windowed else None
        config.max_position_embeddings = min(config.max_position_embeddings, window or config.max_position_embeddings)
    config.sliding_window = config.sliding_window if kind == "mistral" else None
    return config


def _flag(path, raw, name):
    return bool(check(path, name, raw.get(name), bool | None))


def _vision(path, raw):
    _only(path, raw, model_type=("clip_vision_model",), hidden_act=ACTIVATIONS)
    return checked(path, VisionConfig, CLIP | _known(VisionConfig, raw))


def _tower(path, name):
    """The vision tower of an original checkpoint, from its own config.json or from its name."""
    folder = tower_folder(path.parent, name)
    if folder and (folder / "config.json").is_file():
        raw = read_json(folder / "config.json")
        return _vision(folder / "config.json", _section(folder / "config.json", raw, "vision_config") or raw)
    if Path(name).name not in TOWERS:
        raise UserError(f"{path}: mm_vision_tower {name!r} is not known ({', '.join(TOWERS)} are): "
                        "put the folder of that CLIP model beside the checkpoint's")
    return VisionConfig(**TOWERS[Path(name).name])


def tower_folder(folder, name):
    """Where a named CLIP tower lies: at that path, in the checkpoint's folder or beside it; None if nowhere."""
    folder = Path(os.path.abspath(folder))
    places = (at / part for at in (folder, folder.parent, Path()) for part in (name, Path(name).name))
    return next((place for place in places if os.path.isdir(place)), None)


def _section(path, raw, name):
    return check(path, name, raw.get(name), dict | None) or {}


def _only(path, raw, **supported):
    """Each of the keys that is written must have one of these values."""
    for key, values in supported.items():
        if key in raw and raw[key] not in list(values):
            raise UserError(f"{path}: {key} {raw[key]!r} is not supported, only {' or '.join(map(str, values))}")


def _known(cls, raw):
    return {f.name: raw[f.name] for f in fields(cls) if f.name in raw}


def _rope_theta(path, raw):
    """theta, from rope_parameters or, in older files, from rope_theta and rope_scaling."""
    sections = [_section(path, raw, name) for name in ("rope_parameters", "rope_scaling")]
    for rope in sections:
        _only(path, rope, rope_type=("default",), type=("default",), partial_rotary_factor=(1, None))
    if all(sections) and sections[0] != sections[1]:           # which of them counts differs from version to version
        raise UserError(f"{path}: rope_parameters and rope_scaling differ: keep the one that the model was trained by")
    rope = sections[0] or sections[1]
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError(f"{path}: rope_parameters that differ from layer to layer are not supported")
    return rope.get("rope_theta", raw.get("rope_theta", 10000.0))


def _dtype(path, *sections):
    name = next((s[key] for s in sections for key in ("dtype", "torch_dtype") if s.get(key)), "float32")
    _only(path, {"dtype": name}, dtype=("float32", "float16", "bfloat16"))
    return name


def _check_heads(path, config):
    """Sizes that only fit together."""
    text, vision = config.text, config.vision
    if text.num_attention_heads % text.num_key_value_heads:
        raise UserError(f"{path}: num_attention_heads {text.num_attention_heads} is no multiple of "
                        f"num_key_value_heads {text.num_key_value_heads}")
    if text.head_dim < 2 or text.head_dim % 2:
        raise UserError(f"{path}: head_dim is {text.head_dim}, and must be an even number: rotary embeddings turn pairs")
    if vision.hidden_size % vision.num_attention_heads:
        raise UserError(f"{path}: the tower's hidden_size {vision.hidden_size} is no multiple of its "
                        f"num_attention_heads {vision.num_attention_heads}")
    if vision.patch_size > vision.image_size:
        raise UserError(f"{path}: patch_size {vision.patch_size} is larger than image_size {vision.image_size}")


def _check_feature_layer(path, config):
    count = config.vision.num_hidden_layers + 1
    layers = config.vision_feature_layer
    layers = layers if isinstance(layers, list) else [layers]
    if not all(-count <= layer < count for layer in layers):
        raise UserError(f"{path}: vision_feature_layer {config.vision_feature_layer!r} names no hidden state of {count}")


def _check_pinpoints(path, config):
    pinpoints, side = config.image_grid_pinpoints, config.vision.image_size
    if pinpoints is None:
        return
    if not _pairs(pinpoints) or any(n % side for pair in pinpoints for n in pair):
        raise UserError(f"{path}: image_grid_pinpoints must be pairs of multiples of image_size {side}, and is {pinpoints!r}")
    if any(height * width > TILES * side ** 2 for height, width in pinpoints):
        raise UserError(f"{path}: image_grid_pinpoints {pinpoints!r} have a grid of more than {TILES} tiles")
    if config.vision_feature_select_strategy != "default":
        raise UserError(f"{path}: the class token has no place among the tiles: only the feature strategy 'default' is supported")
