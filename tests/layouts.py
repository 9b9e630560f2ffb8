"""Checkpoints for tests, under every set of names that LLaVA was ever saved with.

Tiny ones hold random numbers; full-size ones are sparse files: a true header, the true size, and nothing in it.
"""

import json
import struct
from dataclasses import asdict, replace
from math import prod

import torch
from safetensors.torch import save_file

from minivlm.parts.config import LlavaConfig, TextConfig, VisionConfig

HUB = "multi_modal_projector.linear_1.", "multi_modal_projector.linear_2."
# decoder, head, projector, vision tower, and what the tower's layers stand in
NAMES = {
    "A": ("language_model.model.", "language_model.lm_head.", *HUB, "vision_tower.vision_model."),
    "B": ("model.language_model.", "lm_head.", *("model." + name for name in HUB), "model.vision_tower.vision_model."),
    "C": ("language_model.model.", "language_model.lm_head.", *HUB, "vision_tower."),
    "D": ("model.language_model.", "lm_head.", *("model." + name for name in HUB), "model.vision_tower."),
    "E": ("model.", "lm_head.", "model.mm_projector.0.", "model.mm_projector.2.",
          "model.vision_tower.vision_tower.vision_model."),
}
NEWLINE = {"A": "image_newline", "B": "model.image_newline", "C": "image_newline", "D": "model.image_newline",
           "E": "model.image_newline", "minivlm": "image_newline"}
OURS = ("language_model.", "lm_head.", *HUB, "vision_tower.")

TINY = LlavaConfig(VisionConfig(32, 64, 4, 4, image_size=28),
                   TextConfig(96, 48, 80, 3, 4, num_key_value_heads=2, rms_norm_eps=1e-5), image_token_index=90)
HF_7B = LlavaConfig(
    text=TextConfig(32064, rms_norm_eps=1e-5, max_position_embeddings=4096), dtype="float16", pad_token_id=32001
)
HF_13B = replace(HF_7B, text=TextConfig(32064, 5120, 13824, 40, 40, rms_norm_eps=1e-5, max_position_embeddings=4096))
ORIGINAL_7B = LlavaConfig(text=TextConfig(32000, rms_norm_eps=1e-5, max_position_embeddings=4096), dtype="float16",
                          original=True, image_aspect_ratio="pad", vision_tower="openai/clip-vit-large-patch14-336",
                          pad_token_id=0, template="llava_v1")

# LLaVA-NeXT: the grids in the order of the files, which the original reads as width, height.
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
MISTRAL_7B = TextConfig(32064, 4096, 14336, 32, 32, 8, rms_norm_eps=1e-5, rope_theta=1e6, max_position_embeddings=32768)
NEXT_7B = replace(
    HF_7B, image_aspect_ratio="anyres", image_grid_pinpoints=GRIDS, pad_token_id=None, template="llava_v1"
)
NEXT_MISTRAL = replace(NEXT_7B, text=MISTRAL_7B, template="mistral")
ORIGINAL_NEXT = replace(
    ORIGINAL_7B, image_aspect_ratio="anyres", image_grid_pinpoints=[pair[::-1] for pair in GRIDS], dtype="bfloat16"
)
ORIGINAL_MISTRAL = replace(ORIGINAL_NEXT, text=replace(MISTRAL_7B, vocab_size=32000), template="mistral")

# InternVL's decoders.
INTERNLM2_2B = TextConfig(
    92553, 2048, 8192, 24, 16, 8, max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=1e6
)
INTERNLM2_8B = replace(
    INTERNLM2_2B, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32
)


def vision_shapes(c, prefix, layers):
    """{name: shape} of the vision tower."""
    shapes = {"embeddings.class_embedding": (c.hidden_size,),
              "embeddings.patch_embedding.weight": (c.hidden_size, 3, c.patch_size, c.patch_size),
              "embeddings.position_embedding.weight": ((c.image_size // c.patch_size) ** 2 + 1, c.hidden_size)}
    square = (c.hidden_size, c.hidden_size)
    widths = {f"self_attn.{name}_proj": square for name in "kvq"} | {
        "self_attn.out_proj": square,
        "layer_norm1": square[:1],
        "mlp.fc1": (c.intermediate_size, c.hidden_size),
        "mlp.fc2": (c.hidden_size, c.intermediate_size),
        "layer_norm2": square[:1],
    }
    modules = {"pre_layrnorm": square[:1]}
    modules |= {
        f"{layers}layers.{l}.{name}": shape for l in range(c.num_hidden_layers) for name, shape in widths.items()
    }
    for name, shape in (modules | {"post_layernorm": square[:1]}).items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
    return {prefix + name: shape for name, shape in shapes.items()}


def llama_layer(c):
    """{name: shape} of one layer of the decoder."""
    D = c.hidden_size
    M = c.intermediate_size
    q = c.num_attention_heads * c.head_dim
    kv = c.num_key_value_heads * c.head_dim
    return {
        "self_attn.q_proj": (q, D),
        "self_attn.k_proj": (kv, D),
        "self_attn.v_proj": (kv, D),
        "self_attn.o_proj": (D, q),
        "mlp.gate_proj": (M, D),
        "mlp.up_proj": (M, D),
        "mlp.down_proj": (D, M),
        "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
    }


def text_shapes(c, prefix):
    """{name: shape} of the decoder without its head."""
    D = c.hidden_size
    layer = llama_layer(c)
    shapes = {"embed_tokens.weight": (c.vocab_size, D)}
    shapes |= {f"layers.{l}.{name}.weight": shape for l in range(c.num_hidden_layers) for name, shape in layer.items()}
    return {prefix + name: shape for name, shape in (shapes | {"norm.weight": (D,)}).items()}


def shapes(c, layout, vision=True):
    """{name: shape} of a whole checkpoint: layout A to E, or "minivlm" for the names of the parameters."""
    text, head, first, second, tower = OURS if layout == "minivlm" else NAMES[layout]
    width = c.text.hidden_size
    return (vision_shapes(c.vision, tower, "" if layout == "minivlm" else "encoder.") if vision else {}) | {
        first + "weight": (width, c.vision.hidden_size), first + "bias": (width,),
        second + "weight": (width, width), second + "bias": (width,),
        **text_shapes(c.text, text), head + "weight": (c.text.vocab_size, width),
        **({NEWLINE[layout]: (width,)} if c.image_grid_pinpoints else {})}


def internvl_shapes(text, original=True):
    """{name: shape} of an InternVL with the 300M tower and InternLM2's sizes `text`, in OpenGVLab's layout or the hub's
    -hf files."""
    C, D, M = 1024, text.hidden_size, text.intermediate_size
    q, kv = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    if original:
        top = {
            "class_embedding": (1, 1, C),
            "position_embedding": (1, 1025, C),
            "patch_embedding.weight": (C, 3, 14, 14),
            "patch_embedding.bias": (C,),
        }
        block = {
            "ls1": (C,),
            "ls2": (C,),
            **_both("attn.qkv", 3 * C, C),
            **_both("attn.proj", C, C),
            **_both("norm1", C),
        } | {**_both("mlp.fc1", 4 * C, C), **_both("mlp.fc2", C, 4 * C), **_both("norm2", C)}
        layer = {
            "attention.wqkv": (q + 2 * kv, D),
            "attention.wo": (D, q),
            "feed_forward.w1": (M, D),
            "feed_forward.w3": (M, D),
            "feed_forward.w2": (D, M),
            "attention_norm": (D,),
            "ffn_norm": (D,),
        }
        names = ("vision_model.embeddings.", "vision_model.encoder.layers.", "tok_embeddings",
                 "language_model.output.weight")
        projector = {**_both("mlp1.0", 4 * C), **_both("mlp1.1", D, 4 * C), **_both("mlp1.3", D, D)}
    else:
        top = {
            "cls_token": (1, 1, C),
            "position_embeddings": (1, 1025, C),
            "patch_embeddings.projection.weight": (C, 3, 14, 14),
            "patch_embeddings.projection.bias": (C,),
        }
        block = {"lambda_1": (C,), "lambda_2": (C,), **_both("layernorm_before", C), **_both("layernorm_after", C)} | {
            **_both("mlp.fc1", 4 * C, C), **_both("mlp.fc2", C, 4 * C), **_both("attention.projection_layer", C, C)}
        for name in "qkv":
            block |= _both(f"attention.{name}_proj", C, C)
        layer = llama_layer(text)
        names = ("vision_tower.embeddings.", "vision_tower.encoder.layer.", "embed_tokens",
                 "language_model.lm_head.weight")
        projector = {**_both("multi_modal_projector.layer_norm", 4 * C),
                     **_both("multi_modal_projector.linear_1", D, 4 * C),
                     **_both("multi_modal_projector.linear_2", D, D)}
    embeddings, blocks, words, head = names
    shapes = {embeddings + name: shape for name, shape in top.items()}
    shapes |= {f"{blocks}{l}.{name}": shape for l in range(24) for name, shape in block.items()}
    shapes |= {f"language_model.model.{words}.weight": (text.vocab_size, D), "language_model.model.norm.weight": (D,)}
    shapes |= {f"language_model.model.layers.{l}.{name}.weight": shape for l in range(text.num_hidden_layers)
               for name, shape in layer.items()}
    return shapes | {head: (text.vocab_size, D)} | projector


def _both(name, *shape):
    """A weight and its bias."""
    return {name + ".weight": shape, name + ".bias": shape[:1]}


def internvl_json(text, template):
    """The config.json of OpenGVLab's InternVL2 and 2.5, or (template None) of a -hf checkpoint; no more than is
    read."""
    llm = asdict(text) | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    if template is None:
        return {
            "model_type": "internvl",
            "text_config": llm | {"model_type": "llama", "attention_bias": False},
            "image_token_id": 92546,
            "vision_config": {"model_type": "internvl_vision", "attention_bias": True, "image_size": [448, 448],
                              "patch_size": [14, 14]},
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "llm_config": llm | {"model_type": "internlm2", "bias": False},
        "vision_config": {"model_type": "intern_vit_6b", "image_size": 448, "patch_size": 14, "qkv_bias": True,
                          "qk_normalization": False, "hidden_act": "gelu", "norm_type": "layer_norm",
                          "layer_norm_eps": 1e-06},
        "ps_version": "v2",
        "template": template,
        "downsample_ratio": 0.5,
        "force_image_size": 448,
        "select_layer": -1,
        "dynamic_image_size": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "use_thumbnail": True,
        "torch_dtype": "bfloat16",
    }


def random(c, dtype=torch.float32, seed=0):
    """{parameter name: tensor}"""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes(c, "minivlm").items()}


def renamed(state, c, layout):
    """The same tensors under the names of a layout: both lists have the same order."""
    return {name: state[parameter].clone() for name, parameter in zip(shapes(c, layout), shapes(c, "minivlm"))}


def config_json(c, new=False):
    """A config.json of Hugging Face's as transformers 4 (or, `new`, 5) writes it."""
    text, vision = asdict(c.text) | {"model_type": "llama"}, asdict(c.vision) | {"model_type": "clip_vision_model"}
    theta = text.pop("rope_theta")
    text |= (
        {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
        if new
        else {"rope_theta": theta, "rope_scaling": None}
    )
    top = {
        name: value
        for name, value in asdict(c).items()
        if name not in ("vision", "text", "original", "vision_tower", "dtype", "template")
    }
    text["model_type"] = "mistral" if c.template == "mistral" else "llama"
    kind, name = ("llava_next", "LlavaNext") if c.image_grid_pinpoints else ("llava", "Llava")
    return top | {"model_type": kind, "architectures": [name + "ForConditionalGeneration"], "text_config": text,
                  "vision_config": vision, "dtype" if new else "torch_dtype": c.dtype}


def original_json(c, **more):
    """A config.json of the original LLaVA."""
    text = {name: value for name, value in asdict(c.text).items() if not name.endswith("bias")}
    if c.image_grid_pinpoints:
        more = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
                "unfreeze_mm_vision_tower": True,
                "image_grid_pinpoints": [pair[::-1] for pair in c.image_grid_pinpoints]} | more
    if c.template == "mistral":
        more = {"model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"]} | more
    return (
        text
        | {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"],
           "mm_hidden_size": c.vision.hidden_size, "mm_projector_type": "mlp2x_gelu",
           "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": c.vision_tower,
           "image_aspect_ratio": "pad", "mm_use_im_start_end": False, "torch_dtype": c.dtype, "pad_token_id": 0,
           "unfreeze_mm_vision_tower": False}
        | more
    )


def write(folder, tensors, config, shards=1):
    """A checkpoint folder: config.json, and one safetensors file or several with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    groups = [list(tensors)[n::shards] for n in range(shards)]
    for n, name in enumerate(_file_names(folder, groups)):
        save_file({key: tensors[key] for key in groups[n]}, folder / name, {"format": "pt"})
    return folder


def write_sparse(folder, tensors, config, dtype="F16", limit=5 * 10 ** 9):
    """The same at full size without content; tensors is {name: shape}. Returns the bytes of all tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    kinds = {key: "F32" if key.endswith("inv_freq") else dtype for key in tensors}
    size = {key: prod(shape) * (4 if kinds[key] == "F32" else 2) for key, shape in tensors.items()}
    groups, total = [[]], 0
    for key in tensors:                            # as Hugging Face cuts: a file ends before it would exceed the limit
        if groups[-1] and total + size[key] > limit:
            groups, total = groups + [[]], 0
        groups[-1].append(key)
        total += size[key]
    for name, keys in zip(_file_names(folder, groups), groups):
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for key in keys:
            header[key] = {"dtype": kinds[key], "shape": tensors[key], "data_offsets": [end, end + size[key]]}
            end += size[key]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    return sum(size.values())


def _file_names(folder, groups):
    if len(groups) == 1:
        return ["model.safetensors"]
    names = [f"model-{n + 1:05d}-of-{len(groups):05d}.safetensors" for n in range(len(groups))]
    weight_map = {key: name for name, keys in zip(names, groups) for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names
