"""Checkpoints in: LLaVA and InternVL from a folder of safetensors files or from the hub, whichever way its tensors are named.

    config.json   -> LlavaConfig -> a Llava on torch's meta device: every parameter's name and shape, no storage
    *.safetensors -> headers     -> `find`: which stored tensor is which parameter; none missing, none spare, right shapes
                  -> tensors     -> memory-mapped and assigned: no second copy, nothing is read before it is used
"""

import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from math import prod

import torch
from safetensors import safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from minivlm.families.anyres import LlavaNext
from minivlm.families.internvl import InternVL, TileProcessor
from minivlm.families.internvl_config import LAYOUTS as INTERNVL_LAYOUTS, InternVLConfig, split
from minivlm.families.tiles import TilesProcessor
from minivlm.io.config_json import read_config, tower_folder
from minivlm.io.files import DTYPES, folder_of, read_json, stored
from minivlm.io.image import ImageProcessor
from minivlm.io.limits import check
from minivlm.io.text.template import template_of
from minivlm.io.text.tokenizer import Tokenizer
from minivlm.io.text.vocabulary import has_tokenizer
from minivlm.llava import Llava
from pruning.base import UserError

# The same weights have been saved under five sets of names. What stands in the file where our name begins with ...
PARTS = ("language_model.", "lm_head.", "vision_tower.", "multi_modal_projector.linear_1.", "multi_modal_projector.linear_2.",
         "image_newline")
LAYOUTS = [dict(zip(PARTS, names)) for names in (
    # Hugging Face's files on the hub
    ("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.", *PARTS[3:]),
    # the modules of transformers 4.52
    ("model.language_model.", "lm_head.", "model.vision_tower.vision_model.", *("model." + part for part in PARTS[3:])),
    # the same saved again by transformers 5
    ("language_model.model.", "language_model.lm_head.", "vision_tower.", *PARTS[3:]),
    # the modules of transformers 5
    ("model.language_model.", "lm_head.", "model.vision_tower.", *("model." + part for part in PARTS[3:])),
    # the original LLaVA, with the vision tower inside; without, it is a CLIP model in a folder of its own
    ("model.", "lm_head.", "model.vision_tower.vision_tower.vision_model.", "model.mm_projector.0.", "model.mm_projector.2.",
     "model.image_newline"),
)]
CLIP_LAYOUTS = [{"vision_tower.": "vision_model."}, {"vision_tower.": ""}]


def load(source, dtype=None, device="cpu"):
    """The model of a checkpoint folder or hub id ("llava-hf/llava-1.5-7b-hf"), ready to answer.

    dtype None keeps the stored one; then, on the CPU, the weights stay in their files, which must not change meanwhile.
    Besides the network it has .config, .folder, .tokenizer (None where the folder has none), .processor, and .eos: the
    ids that end an answer. Raises UserError naming the file or the key that is wrong.
    """
    dtype, device = _dtype(dtype), device_of(device)
    folder = folder_of(source)
    model = skeleton(folder)
    found = find(model, folder)
    _assign(model, _read(found, dtype or _stored_dtype(found, model.config), device))
    processor = TileProcessor if isinstance(model, InternVL) else TilesProcessor if model.config.image_grid_pinpoints else ImageProcessor
    model.folder, model.processor = folder, processor.from_folder(folder, model.config)
    model.tokenizer = tokenizer_of(folder, model.config) if has_tokenizer(folder) else None
    model.config.template = template_of(folder, model.config, model.tokenizer)
    model.eos = _eos(folder, model)
    return model.eval().requires_grad_(False)


def tokenizer_of(folder, config):
    """The tokenizer of a checkpoint folder, with the id of its image mark that config.json gives."""
    return Tokenizer(folder, config.image_token_index, isinstance(config, InternVLConfig))


def skeleton(folder):
    """The network that config.json describes, on the meta device."""
    return on_meta(read_config(folder))


def on_meta(config):
    """The network of a configuration, every parameter's name and shape, without storage."""
    with torch.device("meta"), Unfilled():
        return model_class(config)(config)


def model_class(config):
    """The class of network that a configuration is of."""
    if isinstance(config, InternVLConfig):
        return InternVL
    return LlavaNext if config.image_grid_pinpoints else Llava


class Unfilled(TorchFunctionMode):
    """Modules made within draw no random numbers: for these, on the meta device, torch would load its compiler first."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        draws = func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
        return None if draws else func(*args, **(kwargs or {}))


def find(model, folder):
    """{parameter name: Stored} for the whole model. UserError unless the checkpoint has these tensors and no others.

    An original checkpoint may leave its vision tower to the CLIP model that its config names. A tied head need not be
    there, nor what lies above the hidden states that LLaVA reads.
    """
    config, shapes = model.config, {name: tuple(p.shape) for name, p in model.state_dict().items()}
    optional = _may_be_missing(config)
    tensors = stored(folder)
    if isinstance(model, InternVL):
        return _match(folder, split(tensors, config), shapes, INTERNVL_LAYOUTS, optional)
    if not config.image_grid_pinpoints:            # some files of LLaVA-1.5 have a newline that nobody reads
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("image_newline")}
    inside = config.image_grid_pinpoints or any("vision_tower." in key for key in tensors)     # LLaVA-NeXT trained its tower
    if not config.original or inside:
        return _match(folder, tensors, shapes, LAYOUTS, optional)
    tower = tower_folder(folder, config.vision_tower) or folder_of(config.vision_tower)
    vision = {name: shape for name, shape in shapes.items() if name.startswith("vision_tower.")}
    rest = {name: shape for name, shape in shapes.items() if name not in vision}
    return _match(folder, tensors, rest, LAYOUTS, optional) | _match(tower, stored(tower), vision, CLIP_LAYOUTS, optional)


def _unused(config):
    """What LLaVA never runs: the layers above the hidden states that it reads, and the norm after them. InternVL runs all."""
    if isinstance(config, InternVLConfig):
        return []
    count = config.vision.num_hidden_layers
    highest = max(config.feature_layers)
    return ["vision_tower.post_layernorm"] + [f"vision_tower.layers.{l}" for l in range(highest, count)]


def _may_be_missing(config):
    """The parts that a checkpoint may leave out, each a list of names that are all there or all missing.

    Of the tower that is the norm at its end, or with it every layer that never runs. If only layers are missing,
    config.json has more of them than the model that was saved: counted from its end, the features are another layer's.
    """
    unused = _unused(config)
    parts = [unused[:1], unused] if unused else []
    return parts + [["lm_head"]] * config.text.tie_word_embeddings


def _match(folder, tensors, shapes, layouts, optional):
    """{parameter name: Stored} by the layout whose names fit best; strict both ways, but for optional parts."""
    tables = ({named(layout, ours): ours for ours in shapes} for layout in layouts)
    table = max(tables, key=lambda table: len(table.keys() & tensors.keys()))
    absent = {ours for key, ours in table.items() if key not in tensors}
    wholes = [{ours for ours in shapes for name in part if ours.startswith(name + ".")} for part in optional]
    missed = absent.difference(*(whole for whole in wholes if whole <= absent))
    missing = [key for key, ours in table.items() if ours in missed]
    spare = [key for key in tensors if key not in table]
    if missing or spare:
        raise UserError(f"{folder}: " + ", ".join(_some(missing, "missing") + _some(spare, "no part of this model"))
                        + ": config.json and the safetensors files do not belong together, or are not whole")
    for key, tensor in tensors.items():
        if tensor.shape != shapes[table[key]]:
            size = " (vocab_size, hidden_size)" * table[key].endswith(("lm_head.weight", "embed_tokens.weight"))
            raise UserError(f"{tensor.file}: {key} is {tensor.shape}, where config.json asks for {shapes[table[key]]}{size}")
    return {table[key]: tensor for key, tensor in tensors.items()}


def named(layout, ours):
    """A parameter's name in the file."""
    if callable(layout):
        return layout(ours)
    part = next(part for part in layout if ours.startswith(part))
    rest = ours.removeprefix(part)
    return layout[part] + ("encoder." if part == "vision_tower." and rest.startswith("layers.") else "") + rest


def _some(keys, what):
    return [f"{keys[0]} {f'and {len(keys) - 1} more are' if keys[1:] else 'is'} {what}"] if keys else []


def _read(found, dtype, device):
    """{parameter name: tensor}. Where dtype and device are the file's, a tensor is a view of the mapped file."""
    files, state = defaultdict(dict), {}
    for name, tensor in found.items():
        files[tensor.file][name] = tensor
    for file, named in files.items():              # one by one: a file whose tensors were converted is unmapped again
        with safe_open(file, "pt") as opened, ThreadPoolExecutor() as pool:
            tensors = pool.map(lambda tensor: _tensor(opened, tensor).to(device=device, dtype=dtype), named.values())
            state |= zip(named, tensors)
    return state


def _tensor(opened, stored):
    """The stored tensor, or the part of it that is meant."""
    whole = opened.get_tensor(stored.key)
    return whole if stored.cut is None else stored.cut(whole)


def _assign(model, state):
    """Give the model its tensors. Parts that are not stored are left out, a head that is not stored is the embedding."""
    for part in _unused(model.config):
        if not any(name.startswith(part + ".") for name in state):
            parent, _, name = part.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
    embedding = {"lm_head.weight": state["language_model.embed_tokens.weight"]}
    model.load_state_dict(embedding | state, assign=True)
    if "lm_head.weight" not in state:
        model.lm_head.weight = model.language_model.embed_tokens.weight
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers())), "a tensor was left without storage"


def _stored_dtype(found, config):
    """The dtype of the stored tensors; if they have several, the one that config.json names, else the commonest."""
    values = Counter()
    for tensor in found.values():
        values[tensor.dtype] += prod(tensor.shape)
    named = getattr(torch, config.dtype)
    return named if named in values else values.most_common(1)[0][0]


def _dtype(dtype):
    known = {str(kind).removeprefix("torch."): kind for kind in DTYPES.values()}
    if dtype is not None and dtype not in (*known, *known.values()):
        raise UserError(f"dtype {dtype!r} is not supported, only {', '.join(known)}")
    return known.get(dtype, dtype)


def device_of(name):
    """The torch device called so; UserError where it cannot be used here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")        # the sentence below says it
            probe = torch.ones(1, device=name)
            probe.item()                           # the meta device, and some that are not built in, have no values
            return probe.device
    except Exception as error:                     # each kind of device has its own
        first = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise UserError(f"device {name!r} cannot be used here ({first}): try cpu") from None


def _eos(folder, model):
    """The ids that end an answer: generation_config.json's, else config.json's, else the tokenizer's </s>.

    InternVL's config.json names the end of a text, which is not that of an answer: the tokenizer's <|im_end|> is.
    """
    names = ["generation_config.json"] + ["config.json"] * (not isinstance(model, InternVL))
    for path in (folder / name for name in names):
        raw = read_json(path) if path.exists() else {}
        text = check(path, "text_config", raw.get("text_config"), dict | None) or {}
        eos = check(path, "eos_token_id", raw.get("eos_token_id", text.get("eos_token_id")), int | list[int] | None)
        if eos is not None:
            return tuple(eos) if isinstance(eos, list) else (eos,)
    return () if model.tokenizer is None or model.tokenizer.eos is None else (model.tokenizer.eos,)
