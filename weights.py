"""Checkpoints in: LLaVA, InternVL and SmolVLM from a folder of safetensors or from the hub, under any names of tensors.

    path or hub id  -> folder                                                                      io/files.py
    config.json     -> LlavaConfig                                                                 families/registry.py
                    -> the network on torch's meta device: parameters' names and shapes, no storage
    *.safetensors   -> headers: what is stored                                                     io/tensors.py
                    -> which stored tensor is which parameter: none missing, none spare, right shapes   io/layouts.py
                    -> tensors, memory-mapped: no second copy, nothing is read before it is used   io/tensors.py
                    -> assigned to the network's parameters
    the other files -> picture processor, tokenizer, template of prompts, ids that end an answer
"""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from minivlm.families.internvl_config import InternVLConfig
from minivlm.families.registry import model_class, processor_class, read_config
from minivlm.families.smolvlm.network import SmolVLM
from minivlm.io import layouts
from minivlm.io.files import folder_of, read_json, tower_folder
from minivlm.io.limits import check
from minivlm.io.tensors import commonest_dtype, device_of, dtype_of, read_tensors, stored
from minivlm.io.text.template import template_of
from minivlm.io.text.tokenizer import Tokenizer
from minivlm.io.text.vocabulary import has_tokenizer


def load(source, dtype=None, device="cpu"):
    """The model of a checkpoint folder or hub id ("llava-hf/llava-1.5-7b-hf"), ready to answer.

    dtype None keeps the stored one; then, on the CPU, the weights stay in their files, which must not change meanwhile.
    Besides the network it has .config, .folder, .tokenizer (None if the folder has none), .processor, and .eos: the
    ids that end an answer. Raises UserError naming the file or the key that is wrong.
    """
    dtype = dtype_of(dtype)
    device = device_of(device)
    folder = folder_of(source)
    # the network
    model = skeleton(folder)
    config = model.config
    sources = find(model, folder)
    stored_dtype = commonest_dtype(sources.values(), preferred=getattr(torch, config.dtype))
    state = read_tensors(sources, dtype or stored_dtype, device)
    assign(model, state)
    # what turns pictures and words into its input, and its output into words
    model.folder = folder
    model.processor = processor_class(config).from_folder(folder, config)
    model.tokenizer = tokenizer_of(folder, config) if has_tokenizer(folder) else None
    config.template = template_of(folder, config, model.tokenizer)
    model.eos = end_ids(folder, config, model.tokenizer)
    return model.eval().requires_grad_(False)


def skeleton(folder):
    """The network that config.json describes, on the meta device."""
    return on_meta(read_config(folder))


def on_meta(config):
    """The network of a configuration, every parameter's name and shape, without storage."""
    with torch.device("meta"), Unfilled():
        return model_class(config)(config)


class Unfilled(TorchFunctionMode):
    """Modules built under it draw no random numbers: for these, on the meta device, torch would load its compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return None
        return func(*args, **(kwargs or {}))


def find(model, folder):
    """{parameter name: Stored} for the whole model. UserError unless the checkpoint has these tensors and no others.

    A tied head may be missing, and so may what lies above the hidden states that LLaVA reads.
    """
    config = model.config
    tensors = stored(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # of the tower the norm at its end, or with it every layer that never runs. If only layers are missing, config.json
    # has more of them than the model that was saved: counted from its end, the features are another layer's
    unused = never_run(model)
    optional = [unused[:1], unused]
    if config.text.tie_word_embeddings:
        optional.append(["lm_head"])
    if isinstance(config, InternVLConfig):
        tensors = layouts.split(tensors, config.text)
        return layouts.match(folder, tensors, shapes, layouts.INTERNVL, optional)
    if not config.image_grid_pinpoints:            # some files of LLaVA-1.5 have a newline that nobody reads
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("image_newline")}
    has_tower = any("vision_tower." in key for key in tensors)
    if has_tower or config.image_grid_pinpoints or not config.original:    # LLaVA-NeXT trained its tower
        return layouts.match(folder, tensors, shapes, layouts.LLAVA, optional)
    return find_with_tower(folder, config, tensors, shapes, optional)


def find_with_tower(folder, config, tensors, shapes, optional):
    """The same for an original checkpoint that leaves its vision tower to the CLIP model that its config names."""
    tower = tower_folder(folder, config.vision_tower) or folder_of(config.vision_tower)
    vision = {}
    rest = {}
    for name, shape in shapes.items():
        part = vision if name.startswith("vision_tower.") else rest
        part[name] = shape
    sources = layouts.match(folder, tensors, rest, layouts.LLAVA, optional)
    return sources | layouts.match(tower, stored(tower), vision, layouts.CLIP, optional)


def never_run(model):
    """The modules above the hidden states that LLaVA reads: the norm at the tower's end, layers. InternVL and SmolVLM
    run all."""
    highest = max(model.config.feature_layers)
    layers = range(highest, len(model.vision_tower.layers))
    unused = [f"vision_tower.layers.{l}" for l in layers]
    if hasattr(model.vision_tower, "post_layernorm") and not isinstance(model, SmolVLM):
        unused.insert(0, "vision_tower.post_layernorm")
    return unused


def assign(model, state):
    """Give the model its tensors. Modules that are not stored are left out; a head that is not is the embedding."""
    for module in never_run(model):
        if not any(layouts.is_inside(name, [module]) for name in state):
            model.set_submodule(module, nn.Identity())
    embedding = state["language_model.embed_tokens.weight"]
    model.load_state_dict({"lm_head.weight": embedding} | state, assign=True)
    if "lm_head.weight" not in state:
        model.lm_head.weight = model.language_model.embed_tokens.weight
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors), "a tensor was left without storage"


def tokenizer_of(folder, config):
    """The tokenizer of a checkpoint folder, with the id of its image mark that config.json gives."""
    return Tokenizer(folder, config.image_token_index, isinstance(config, InternVLConfig))


def end_ids(folder, config, tokenizer):
    """The ids that end an answer: generation_config.json's, else config.json's, else the tokenizer's </s>.

    InternVL's config.json names the end of a text, which is not that of an answer: the tokenizer's <|im_end|> is.
    """
    names = ["generation_config.json"]
    if not isinstance(config, InternVLConfig):
        names.append("config.json")
    for name in names:
        path = folder / name
        raw = read_json(path) if path.exists() else {}
        text = check(path, "text_config", raw.get("text_config"), dict | None) or {}
        eos = check(path, "eos_token_id", raw.get("eos_token_id", text.get("eos_token_id")), int | list[int] | None)
        if isinstance(eos, list):
            return tuple(eos)
        if eos is not None:
            return (eos,)
    if tokenizer is None or tokenizer.eos is None:
        return ()
    return (tokenizer.eos,)
