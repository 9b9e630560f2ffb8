"""What the values in a checkpoint's JSON files may be: of the kind of a dataclass field's annotation, within LIMITS.

So a number that is no size is refused by its name, before anything is built. The limits are generous: most are ten
times what the largest released model has.
"""

from dataclasses import fields
from types import UnionType
from typing import Annotated, get_args

from pruning.base import UserError
from pruning.fields import Range, fault

LIMITS = {                                         # the least and the most
    # network
    "vocab_size": (1, 2 ** 24),
    "hidden_size": (1, 2 ** 17),
    "intermediate_size": (1, 2 ** 20),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2 ** 12),
    "num_key_value_heads": (1, 2 ** 12),
    "head_dim": (1, 2 ** 14),
    "max_position_embeddings": (1, 2 ** 31),
    "sliding_window": (1, 2 ** 31),
    "rms_norm_eps": (1e-20, 1),
    "layer_norm_eps": (1e-20, 1),
    "projector_layernorm_eps": (1e-20, 1),
    "rope_theta": (1e-3, 1e15),
    "factor": (1, 1e6),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
    "original_max_position_embeddings": (1, 2 ** 31),
    "num_channels": (3, 3),                        # red, green, blue
    "downsample_ratio": (.5, .5),
    "vision_feature_layer": (-1001, 1000),
    "scale_factor": (1, 64),
    # pictures
    "image_size": (1, 2 ** 14),
    "patch_size": (1, 2 ** 14),
    "min_tiles": (1, 256),
    "max_tiles": (1, 256),
    "min_patches": (1, 256),                       # the same, in preprocessor_config.json
    "max_patches": (1, 256),
    "size": (1, 2 ** 14),
    "longest_edge": (1, 4096),                     # more would be scaled down again
    "image_mean": (-1000, 1000),
    "image_std": (1e-6, 1000),
    "rescale_factor": (1e-6, 1000),
    "resample": (0, 5),                            # of PIL.Image.Resampling
    # ids; some files write -1 for none
    "id": (0, 2 ** 24),
    "image_token_index": (0, 2 ** 24),
    "pad_token_id": (-1, 2 ** 24),
    "eos_token_id": (-1, 2 ** 24),
}
LONGEST = 256                                      # values in a list of numbers
WORDS = {bool: "true or false", str: "text", dict: "an object", list: "a list", type(None): "null"}


def checked(path, cls, values):
    """cls(**values), every value checked against the annotation of its field."""
    for field in fields(cls):
        if field.name in values:
            check(path, field.name, values[field.name], field.type)
    return cls(**values)


def check(path, name, value, annotation):
    """The value itself. UserError names the file and the key if it is of another kind, or beyond LIMITS[name].

    check("config.json", "head_dim", 128, int | None) -> 128; to `int`, neither True nor 500.0 is a number.
    """
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    limits = LIMITS.get(name)
    if any(_suits(value, kind, limits) for kind in kinds):
        return value
    words = dict.fromkeys(WORDS.get(kind) or _number(limits) for kind in kinds)        # each once
    raise UserError(f"{path}: {name} must be {' or '.join(words)}, and is {value!r}{_remedy(kinds, limits)}")


def _suits(value, kind, limits):
    if get_args(kind):
        # list[int]
        (inner,) = get_args(kind)
        is_list = isinstance(value, list) and 1 <= len(value) <= LONGEST
        return is_list and all(_suits(item, inner, limits) for item in value)
    if kind in (int, float):
        low, high = limits
        kind = Annotated[kind, Range(low, high)]
    return not fault(kind, value)


def _number(limits):
    return "a positive number" if limits[0] > 0 else "a number"


def _remedy(kinds, limits):
    """What to write, if a number is meant."""
    if limits is None:
        return ""
    number = "a number" if float in kinds else "a whole number"
    takes_list = any(get_args(kind) for kind in kinds)
    several = ", or a list of them" if takes_list else ""
    low, high = limits
    return f": write {number} from {low} to {high}{several}"
