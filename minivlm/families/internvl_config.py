"""InternVL's configuration and the names of its tensors: Hugging Face's layout (internvl), OpenGVLab's (internvl_chat).

OpenGVLab's files store each layer's query, key and value projections as one tensor: `split` says which rows of it are
which. In the vision tower they lie one after the other. In InternLM2 they are grouped by key head: the query heads that
share it, the key head, the value head, then the next group.
"""

import re
from dataclasses import dataclass, field

from minivlm.io.config_json import TextConfig, VisionConfig, _check_heads, _dtype, _known, _only, _section, _text
from minivlm.io.files import read_json
from minivlm.io.limits import check, checked
from minivlm.io.text.chatml import CHATML
from minivlm.parts.activations import ACTIVATIONS
from pruning.base import UserError

CONTEXT = "<IMG_CONTEXT>"                          # the token in whose place a visual token is put
CONTEXT_IDS = {"internlm2": 92546, "llama": 92546, "qwen2": 151667}        # where the tokenizer's files name no id


@dataclass
class InternViTConfig(VisionConfig):
    """The vision transformer; by default InternViT-300M at 448 pixels."""

    image_size: int = 448
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_bias: bool = True                    # of query, key and value


@dataclass
class InternVLConfig:
    """The whole model, and what a checkpoint says about its files. The names are LlavaConfig's where it has them."""

    vision: InternViTConfig = field(default_factory=InternViTConfig)
    text: TextConfig = field(default_factory=TextConfig)
    image_token_index: int = 92546
    projector_hidden_act: str = "gelu"
    downsample_ratio: float = 0.5                  # pixel shuffle: sides of the grid of visual tokens, by those of the patches
    vision_feature_layer: int = -1
    min_tiles: int = 1
    max_tiles: int = 12                            # without the thumbnail
    use_thumbnail: bool = True
    template: str = "internvl-hf"                  # a key of CHATML
    dtype: str = "float32"                         # as written in config.json
    original: bool = False                         # OpenGVLab's layout
    # What LLaVA may have otherwise, and InternVL never has.
    image_grid_pinpoints, image_aspect_ratio, vision_tower, vision_feature_select_strategy = None, None, None, "default"

    @property
    def join(self):
        """Patches a side that pixel shuffle joins into one visual token: 2."""
        return round(1 / self.downsample_ratio)


def read_internvl(path, raw):
    """The InternVLConfig of a config.json. UserError names the key of what is not supported."""
    if raw.get("quantization_config"):
        raise UserError(f"{path}: quantization_config: quantised weights are not read, use the bfloat16 checkpoint")
    config = (_original if raw["model_type"] == "internvl_chat" else _hugging_face)(path, raw)
    _check_heads(path, config)
    _check_tiles(path, config)
    return config


def _check_tiles(path, config):
    size, patch = config.vision.image_size, config.vision.patch_size
    side, least, most = size // patch, config.min_tiles, config.max_tiles
    if side % config.join:
        raise UserError(f"{path}: pixel shuffle joins {config.join} patches a side, and of patch_size {patch} "
                        f"image_size {size} has {side}")
    if least > most:
        raise UserError(f"{path}: min_dynamic_patch {least} is more than max_dynamic_patch {most}")


def _hugging_face(path, raw):
    text, vision = {"model_type": "qwen2"} | _section(path, raw, "text_config"), _section(path, raw, "vision_config")
    _only(path, raw, projector_hidden_act=ACTIVATIONS, vision_feature_select_strategy=("default",), downsample_ratio=(0.5,),
          vision_feature_layer=(-1,))
    return checked(path, InternVLConfig, dict(
        vision=_vision(path, {"attention_bias": False} | vision),
        text=_decoder(path, text, {"tie_word_embeddings": True} | raw),
        image_token_index=raw.get("image_token_id", 151667),
        projector_hidden_act=raw.get("projector_hidden_act", "gelu"),
        dtype=_dtype(path, raw, text)))


def _original(path, raw):
    text, vision = _section(path, raw, "llm_config"), _section(path, raw, "vision_config")
    told = {"ps_version": "v1", "template": None, "downsample_ratio": 0.5} | raw
    kind = text.get("model_type", "internlm2")
    _only(path, told, ps_version=("v2",), downsample_ratio=(0.5,), select_layer=(-1,), template=CHATML)
    _only(path, {"model_type": kind, "bias": False} | text, model_type=CONTEXT_IDS, bias=(False,))
    vision = {"attention_bias": vision.get("qkv_bias", True), "use_qk_norm": vision.get("qk_normalization", False)} | vision
    size = raw.get("force_image_size") or vision.get("image_size", 448)
    _only(path, {"image_size": size}, image_size=(vision.get("image_size", 448),))
    dynamic = check(path, "dynamic_image_size", raw.get("dynamic_image_size", True), bool)
    return checked(path, InternVLConfig, dict(
        vision=_vision(path, vision),
        text=_decoder(path, text | {"model_type": "llama" if kind == "internlm2" else kind}),
        image_token_index=_context_id(path.parent) or CONTEXT_IDS[kind],
        min_tiles=raw.get("min_dynamic_patch", 1) if dynamic else 1,
        max_tiles=raw.get("max_dynamic_patch", 12) if dynamic else 1,
        use_thumbnail=raw.get("use_thumbnail", True),
        template=raw["template"], dtype=_dtype(path, raw, text), original=True))


def _vision(path, raw):
    """A square side may be written as a list of two; what InternViT-6B has otherwise is not supported."""
    listed = [key for key in ("image_size", "patch_size") if isinstance(raw.get(key), list)]
    raw = raw | {key: _side(path, key, raw[key]) for key in listed}
    _only(path, raw, hidden_act=ACTIVATIONS, norm_type=("layer_norm",), use_qk_norm=(False,), num_channels=(3,),
          use_absolute_position_embeddings=(True,), use_mean_pooling=(True,))
    return checked(path, InternViTConfig, _known(InternViTConfig, raw))


def _side(path, name, sides):
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UserError(f"{path}: {name} {sides!r} is not the side of a square, twice")
    return sides[0]


def _decoder(path, raw, top={}):
    """InternLM2 is LLaMA's network. Its dynamic rotary embedding differs past max_position_embeddings alone, where the
    context ends anyway."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = _section(path, raw, name)
        if "dynamic" in (rope.get("type"), rope.get("rope_type")):
            raw = raw | {name: {key: value for key, value in rope.items() if key == "rope_theta"}}
    return _text(path, raw, top)


def _context_id(folder):
    """The id of the image's token in the tokenizer's files, or None where they do not tell."""
    for name in ("tokenizer_config.json", "added_tokens.json", "tokenizer.json"):
        path = folder / name
        raw = read_json(path) if path.is_file() else {}
        by_id = check(path, "added_tokens_decoder", raw.get("added_tokens_decoder"), dict | None) or {}
        listed = check(path, "added_tokens", raw.get("added_tokens"), list | None) or []
        tokens = [*by_id.items(), *((token.get("id"), token) for token in listed if isinstance(token, dict))]
        added = {str(token.get("content")): id for id, token in tokens if isinstance(token, dict)}
        id = raw.get(CONTEXT, added.get(CONTEXT))              # added_tokens.json is {content: id}
        if id is not None:
            return check(path, "id", int(id) if str(id).isdecimal() else id, int)


# The names of the tensors in a file, from those of the parameters: (what it is there, what it becomes), one after the other.
HUGGING_FACE = [(r"^vision_tower\.layers\.", "vision_tower.encoder.layer.")]
VISION = [(r"^vision_tower\.", "vision_model."), (r"\.layers\.", ".encoder.layers."), (r"cls_token$", "class_embedding"),
          (r"position_embeddings$", "position_embedding"), (r"patch_embeddings\.projection\.", "patch_embedding."),
          (r"lambda_(\d)$", r"ls\1"), (r"layernorm_before\.", "norm1."), (r"layernorm_after\.", "norm2."),
          (r"attention\.projection_layer\.", "attn.proj."), (r"attention\.([qkv])_proj\.(\w+)$", r"attn.qkv.\2 (\1)")]
PROJECTOR = [(r"^multi_modal_projector\.layer_norm\.", "mlp1.0."), (r"^multi_modal_projector\.linear_1\.", "mlp1.1."),
             (r"^multi_modal_projector\.linear_2\.", "mlp1.3.")]
DECODER = [(r"^language_model\.", "language_model.model."), (r"^lm_head\.", "language_model.lm_head.")]
INTERNLM2 = [(r"^language_model\.", "language_model.model."), (r"^lm_head\.", "language_model.output."),
             (r"embed_tokens\.", "tok_embeddings."), (r"self_attn\.o_proj\.", "attention.wo."),
             (r"self_attn\.([qkv])_proj\.weight$", r"attention.wqkv.weight (\1)"), (r"mlp\.gate_proj\.", "feed_forward.w1."),
             (r"mlp\.up_proj\.", "feed_forward.w3."), (r"mlp\.down_proj\.", "feed_forward.w2."),
             (r"input_layernorm\.", "attention_norm."), (r"post_attention_layernorm\.", "ffn_norm.")]


def _renaming(tower, projector, decoder):
    """A parameter's name -> its name in the file, by the list of its part."""
    def name(ours):
        rules = tower if ours.startswith("vision_tower.") else projector if ours.startswith("multi_") else decoder
        for pattern, theirs in rules:
            ours = re.sub(pattern, theirs, ours)
        return ours
    return name


INSIDE = [(r"^(?!lm_head\.)", "model.")]           # the modules of transformers 5 are all in "model", but for the head
LAYOUTS = [_renaming(HUGGING_FACE, [], DECODER), _renaming(HUGGING_FACE + INSIDE, INSIDE, INSIDE),
           _renaming(VISION, PROJECTOR, INTERNLM2), _renaming(VISION, PROJECTOR, DECODER)]


def split(tensors, config):
    """{key: Stored} with every fused tensor replaced by its three parts, "KEY (q)", "KEY (k)" and "KEY (v)"."""
    text, parts = config.text, {}
    fused = {r"\.attn\.qkv\.(weight|bias)$": (1, 1),                # groups, and queries in each
             r"\.attention\.wqkv\.weight$": (text.num_key_value_heads, text.num_attention_heads // text.num_key_value_heads)}
    for key, tensor in tensors.items():
        groups, queries = next((sizes for name, sizes in fused.items() if re.search(name, key)), (0, 0))
        if not groups or not tensor.shape or tensor.shape[0] % (groups * (queries + 2)):
            parts[key] = tensor
        else:
            parts |= {f"{key} ({part})": _part(tensor, part, groups, queries) for part in "qkv"}
    return parts


def _part(tensor, part, groups, queries):
    """Of each group's heads: the queries, the key or the value."""
    heads = {"q": slice(0, queries), "k": slice(queries, queries + 1), "v": slice(queries + 1, queries + 2)}[part]
    rows = tensor.shape[0] // (queries + 2) * (heads.stop - heads.start)

    def cut(x):
        return x.unflatten(0, (groups, queries + 2, -1))[:, heads].flatten(0, 2)   # (rows, ..)
    return tensor._replace(shape=(rows, *tensor.shape[1:]), cut=cut)
