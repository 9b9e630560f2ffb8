"""The trained network as a checkpoint folder in the llava-hf layout: weights, config, tokenizer, image processor.

`weights.load` and transformers' LlavaForConditionalGeneration read it like any other checkpoint. The folder also has
samples/, four pictures with their questions, and methods.json, what methods meant for 32 layers should do in eight.
"""

import json

from minivlm.io.atomic import save_tensors, write_text, written_folder
from minivlm.io.image import MEAN, STD
from minivlm.io.layouts import HUB
from minivlm.toy import benchmark, scenes
from minivlm.toy.questions import ID, SPECIAL

TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
        "rope_theta", "max_position_embeddings")
VISION = ("hidden_size", "image_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size",
          "hidden_act", "layer_norm_eps")
TOP = ("pad_token_id", "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy")
TOKENS = dict(bos_token_id=ID["<s>"], eos_token_id=ID["</s>"], pad_token_id=ID["<pad>"])


def save(model, folder, seed=0):
    """Write the folder: float16 weights, the files that describe them, and four pictures of the held-out set with
    questions."""
    state = {HUB.stored_name(name): tensor.half() for name, tensor in model.state_dict().items()}
    with written_folder(folder) as place:
        save_tensors(state, place / "model.safetensors", {"format": "pt"})
        for name, content in _files(model.config).items():
            write_text(place / name, json.dumps(content, indent=1) + "\n")
        benchmark.write(place / "samples", count=benchmark.BATCH, seed=seed, pictures=4)


def _files(c):
    """{file name: content} of the JSON files."""
    tokens = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    tokens["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokens["add_bos_token"] = True
    tokens["image_token"] = "<image>"
    tokens["extra_special_tokens"] = {"image_token": "<image>"}
    return {
        "config.json": _config(c),
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": tokens,
        "generation_config.json": TOKENS,
        "processor_config.json": _processor(c),
        "preprocessor_config.json": _preprocessor(c.vision.image_size),
    }


def _config(c):
    """config.json"""
    text = {"model_type": "llama"} | _values(c.text, TEXT) | TOKENS | {"tie_word_embeddings": False}
    vision = {"model_type": "clip_vision_model"} | _values(c.vision, VISION)
    top = dict(architectures=["LlavaForConditionalGeneration"], model_type="llava")
    top["text_config"] = text
    top["vision_config"] = vision
    top["image_token_index"] = c.image_token_index
    top["image_seq_length"] = scenes.GRID ** 2
    top |= _values(c, TOP)
    top["torch_dtype"] = c.dtype
    top["tie_word_embeddings"] = False
    return top


def _values(config, names):
    return {name: getattr(config, name) for name in names}


def _processor(c):
    """processor_config.json: what transformers needs to know of the model to write the image's tokens."""
    processor = dict(processor_class="LlavaProcessor", image_token="<image>", patch_size=c.vision.patch_size)
    processor["num_additional_image_tokens"] = 1
    processor["vision_feature_select_strategy"] = c.vision_feature_select_strategy
    return processor


def _preprocessor(side):
    """preprocessor_config.json: how a picture becomes pixels."""
    steps = ("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize")
    preprocessor = dict(image_processor_type="CLIPImageProcessor", size=dict(shortest_edge=side), resample=3)
    preprocessor["crop_size"] = dict(height=side, width=side)
    preprocessor |= dict.fromkeys(steps, True)
    preprocessor["image_mean"] = MEAN
    preprocessor["image_std"] = STD
    return preprocessor


def tokenizer():
    """tokenizer.json: a token per word or sign, in lower case; a word that the model does not know is <unk>."""
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second_text = {"Sequence": {"id": "B", "type_id": 0}}
    start_token = {"id": "<s>", "ids": [ID["<s>"]], "tokens": ["<s>"]}
    post_processor = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, second_text],
        "special_tokens": {"<s>": start_token},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_mark(word) for word in SPECIAL],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": None,
        "post_processor": post_processor,
        "model": {"type": "WordLevel", "vocab": ID, "unk_token": "<unk>"},
    }


def _mark(word):
    """An entry of added_tokens: a text is cut at these first."""
    mark = dict(id=ID[word], content=word)
    mark |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    mark["special"] = True
    return mark
