"""The names of tensors: the same weights have been saved in many dialects. Which stored tensor fills which parameter.

Our parameters are named as transformers 5 names its modules, without "model." in front. A layout says what stands in
the file in place of a name's beginning (the first that fits), and of words inside it.
"""

import re
from typing import NamedTuple

from pruning.base import UserError


class Layout(NamedTuple):
    """Names in a file: HUB.stored_name("lm_head.weight") -> "language_model.lm_head.weight"."""

    beginnings: dict                   # {what a parameter's name begins with: what its name in the file begins with}
    words: tuple = ()                  # (regular expression, replacement), one after the other

    def stored_name(self, parameter):
        """The name in the file of a parameter."""
        name = parameter
        for own, stored in self.beginnings.items():
            if parameter.startswith(own):
                name = stored + parameter.removeprefix(own)
                break
        for pattern, replacement in self.words:
            name = re.sub(pattern, replacement, name)
        return name


# --- LLaVA ------------------------------------------------------------------------------------------------------------

HUB = Layout({                                     # Hugging Face's files on the hub
    "language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "vision_tower.layers.": "vision_tower.vision_model.encoder.layers.",
    "vision_tower.": "vision_tower.vision_model.",
})
TRANSFORMERS_4 = Layout({                          # the modules of transformers 4.52
    "lm_head.": "lm_head.",
    "vision_tower.layers.": "model.vision_tower.vision_model.encoder.layers.",
    "vision_tower.": "model.vision_tower.vision_model.",
    "": "model.",
})
SAVED_BY_5 = Layout({                              # the same saved again by transformers 5
    "language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "vision_tower.layers.": "vision_tower.encoder.layers.",
})
TRANSFORMERS_5 = Layout({                          # the modules of transformers 5
    "lm_head.": "lm_head.",
    "vision_tower.layers.": "model.vision_tower.encoder.layers.",
    "": "model.",
})
ORIGINAL = Layout({                                # the original LLaVA, with the vision tower inside
    "language_model.": "model.",
    "lm_head.": "lm_head.",
    "vision_tower.layers.": "model.vision_tower.vision_tower.vision_model.encoder.layers.",
    "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "image_newline": "model.image_newline",
})
SMOLVLM = Layout({
    "language_model.": "model.text_model.",
    "lm_head.": "lm_head.",
    "vision_tower.layers.": "model.vision_model.encoder.layers.",
    "vision_tower.": "model.vision_model.",
    "multi_modal_projector.linear_1.": "model.connector.modality_projection.proj.",
})
LLAVA = (HUB, TRANSFORMERS_4, SAVED_BY_5, TRANSFORMERS_5, ORIGINAL, SMOLVLM)
CLIP = (                                           # a tower in its own folder: a whole CLIP model, or its vision half
    Layout({"vision_tower.layers.": "vision_model.encoder.layers.", "vision_tower.": "vision_model."}),
    Layout({"vision_tower.layers.": "encoder.layers.", "vision_tower.": ""}),
)

# --- InternVL ---------------------------------------------------------------------------------------------------------

OPENGVLAB = {
    "vision_tower.layers.": "vision_model.encoder.layers.",
    "vision_tower.": "vision_model.",
    "multi_modal_projector.layer_norm.": "mlp1.0.",
    "multi_modal_projector.linear_1.": "mlp1.1.",
    "multi_modal_projector.linear_2.": "mlp1.3.",
    "language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
QK_NORM = (r"\.([qk])_proj\.norm\.", r".\1_norm.")    # of InternViT-6B
INTERNVIT_WORDS = (
    QK_NORM,
    (r"\.attention\.([qk])_norm\.", r".attn.\1_norm."),
    (r"cls_token$", "class_embedding"),
    (r"position_embeddings$", "position_embedding"),
    (r"patch_embeddings\.projection\.", "patch_embedding."),
    (r"lambda_(\d)$", r"ls\1"),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.attention\.([qkv])_proj\.(\w+)$", r".attn.qkv.\2 (\1)"),      # a third of one tensor: see `split`
)
INTERNLM2_WORDS = (
    (r"\.embed_tokens\.", ".tok_embeddings."),
    (r"\.self_attn\.o_proj\.", ".attention.wo."),
    (r"\.self_attn\.([qkv])_proj\.weight$", r".attention.wqkv.weight (\1)"),
    (r"\.mlp\.gate_proj\.", ".feed_forward.w1."),
    (r"\.mlp\.up_proj\.", ".feed_forward.w3."),
    (r"\.mlp\.down_proj\.", ".feed_forward.w2."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
)
INTERNVL = (
    Layout({                                       # Hugging Face's files on the hub
        "language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "vision_tower.layers.": "vision_tower.encoder.layer.",
    }, (QK_NORM,)),
    Layout({                                       # the modules of transformers 5
        "lm_head.": "lm_head.",
        "vision_tower.layers.": "model.vision_tower.encoder.layer.",
        "": "model.",
    }, (QK_NORM,)),
    # OpenGVLab's with InternLM2's decoder, and with any other
    Layout(OPENGVLAB | {"lm_head.": "language_model.output."}, INTERNVIT_WORDS + INTERNLM2_WORDS),
    Layout(OPENGVLAB, INTERNVIT_WORDS),
)


def split(tensors, text):
    """{key: Stored} with each fused projection of OpenGVLab's replaced by its parts, "KEY (q)", "KEY (k)", "KEY (v)".

    In the vision tower the three lie one after the other. In InternLM2 (`text`: its TextConfig) they are grouped by key
    head: the query heads that share it, the key head, the value head, then the next group.
    """
    key_heads = text.num_key_value_heads
    groups_of = {                                  # groups, and query heads in each
        r"\.attn\.qkv\.(weight|bias)$": (1, 1),
        r"\.attention\.wqkv\.weight$": (key_heads, text.num_attention_heads // key_heads),
    }
    parts = {}
    for key, tensor in tensors.items():
        groups, queries = next((sizes for name, sizes in groups_of.items() if re.search(name, key)), (0, 0))
        is_fused = groups and tensor.shape and tensor.shape[0] % (groups * (queries + 2)) == 0
        if is_fused:
            parts |= {f"{key} ({part})": _part(tensor, part, groups, queries) for part in "qkv"}
        else:
            parts[key] = tensor
    return parts


def _part(tensor, part, groups, queries):
    """Of each group's heads: the queries, the key or the value."""
    heads = {
        "q": slice(0, queries),
        "k": slice(queries, queries + 1),
        "v": slice(queries + 1, queries + 2),
    }[part]
    rows_per_head = tensor.shape[0] // (queries + 2)
    rows = rows_per_head * (heads.stop - heads.start)

    def cut(x):
        x = x.unflatten(0, (groups, queries + 2, -1))                              # (groups, heads, rows of one, ..)
        return x[:, heads].flatten(0, 2)                                           # (rows, ..)
    return tensor._replace(shape=(rows, *tensor.shape[1:]), cut=cut)


# --- matching ---------------------------------------------------------------------------------------------------------

def match(folder, tensors, shapes, layouts, optional):
    """{parameter name: Stored} by the layout that fits best; strict both ways, but for optional parts.

    tensors: {key: Stored} of the folder. shapes: {parameter name: shape}. optional: lists of modules that may be
    missing, all of them together. UserError names a key that is missing, spare or of another shape.
    """
    # the layout with the most names in common
    tables = []
    for layout in layouts:
        tables.append({layout.stored_name(parameter): parameter for parameter in shapes})
    table = max(tables, key=lambda table: len(table.keys() & tensors.keys()))
    # what is missing, but for optional parts that are missing as a whole
    absent = {parameter for key, parameter in table.items() if key not in tensors}
    excused = set()
    for modules in optional:
        part = {parameter for parameter in shapes if is_inside(parameter, modules)}
        if part <= absent:
            excused |= part
    missing = [key for key, parameter in table.items() if parameter in absent - excused]
    spare = [key for key in tensors if key not in table]
    if missing or spare:
        faults = [_counted(missing, "missing"), _counted(spare, "no part of this model")]
        raise UserError(f"{folder}: {', '.join(filter(None, faults))}: config.json and the safetensors files do not "
                        "belong together, or are not whole")
    for key, tensor in tensors.items():
        _check_shape(key, tensor, table[key], shapes[table[key]])
    return {table[key]: tensor for key, tensor in tensors.items()}


def is_inside(parameter, modules):
    """Whether a parameter belongs to one of these modules: is_inside("lm_head.weight", ["lm_head"])."""
    return any(parameter.startswith(module + ".") for module in modules)


def _counted(keys, what):
    """_counted(["a", "b"], "missing") -> "a and 1 more are missing"; "" of none."""
    if not keys:
        return ""
    more = len(keys) - 1
    return f"{keys[0]} and {more} more are {what}" if more else f"{keys[0]} is {what}"


def _check_shape(key, tensor, parameter, shape):
    if tensor.shape == shape:
        return
    hint = " (vocab_size, hidden_size)" if parameter.endswith(("lm_head.weight", "embed_tokens.weight")) else ""
    raise UserError(f"{tensor.file}: {key} is {tensor.shape}, where config.json asks for {shape}{hint}")
