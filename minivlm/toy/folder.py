"""The trained network as a checkpoint folder in the llava-hf layout: weights, config, tokenizer, image processor.

`weights.load` and transformers' LlavaForConditionalGeneration read it like any other checkpoint. Beside them lie samples/,
four pictures with their questions, and methods.json, what methods made for 32 layers should do in eight.
"""

import json
from pathlib import Path

from minivlm.io.atomic import save_tensors, write_text, written_folder
from minivlm.io.image import MEAN, STD
from minivlm.toy import benchmark, scenes
from minivlm.toy.questions import ID, SPECIAL, WORDS

NAMES = {"language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.",
         "vision_tower.layers.": "vision_tower.vision_model.encoder.layers.", "vision_tower.": "vision_tower.vision_model."}


def save(model, folder, seed=0):
    """Write the folder: float16 weights, the files that describe them, and four pictures of the held-out set with questions."""
    state = {_stored(name): tensor.half() for name, tensor in model.state_dict().items()}
    with written_folder(folder) as place:
        save_tensors(state, place / "model.safetensors", {"format": "pt"})
        for name, content in _files(model.config).items():
            write_text(place / name, json.dumps(content, indent=1) + "\n")
        benchmark.write(place / "samples", count=benchmark.BATCH, seed=seed, pictures=4)


def _stored(name):
    """A parameter's name in llava-hf's files on the hub."""
    part = next((part for part in NAMES if name.startswith(part)), "")
    return NAMES.get(part, "") + name.removeprefix(part)


def _files(c):
    """{file name: content} of the JSON files."""
    text = dict(model_type="llama", vocab_size=c.text.vocab_size, hidden_size=c.text.hidden_size,
                intermediate_size=c.text.intermediate_size, num_hidden_layers=c.text.num_hidden_layers,
                num_attention_heads=c.text.num_attention_heads, rms_norm_eps=c.text.rms_norm_eps,
                rope_theta=c.text.rope_theta, max_position_embeddings=c.text.max_position_embeddings,
                bos_token_id=ID["<s>"], eos_token_id=ID["</s>"], pad_token_id=ID["<pad>"], tie_word_embeddings=False)
    vision = dict(model_type="clip_vision_model", hidden_size=c.vision.hidden_size, image_size=c.vision.image_size,
                  intermediate_size=c.vision.intermediate_size, num_hidden_layers=c.vision.num_hidden_layers,
                  num_attention_heads=c.vision.num_attention_heads, patch_size=c.vision.patch_size,
                  hidden_act=c.vision.hidden_act, layer_norm_eps=c.vision.layer_norm_eps)
    top = dict(architectures=["LlavaForConditionalGeneration"], model_type="llava", text_config=text, vision_config=vision,
               image_token_index=c.image_token_index, image_seq_length=scenes.GRID ** 2, pad_token_id=c.pad_token_id,
               projector_hidden_act=c.projector_hidden_act, vision_feature_layer=c.vision_feature_layer,
               vision_feature_select_strategy=c.vision_feature_select_strategy, torch_dtype=c.dtype,
               tie_word_embeddings=False)
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    side = c.vision.image_size
    return {
        "config.json": top, "tokenizer.json": tokenizer(),
        "tokenizer_config.json": names | dict(
            tokenizer_class="PreTrainedTokenizerFast", add_bos_token=True, image_token="<image>",
            extra_special_tokens={"image_token": "<image>"}),
        "generation_config.json": dict(bos_token_id=ID["<s>"], eos_token_id=ID["</s>"], pad_token_id=ID["<pad>"]),
        "processor_config.json": dict(
            processor_class="LlavaProcessor", image_token="<image>", patch_size=c.vision.patch_size,
            num_additional_image_tokens=1, vision_feature_select_strategy=c.vision_feature_select_strategy),
        "preprocessor_config.json": dict(
            image_processor_type="CLIPImageProcessor", size=dict(shortest_edge=side), resample=3,
            crop_size=dict(height=side, width=side), do_center_crop=True, do_convert_rgb=True, do_normalize=True,
            do_rescale=True, do_resize=True, image_mean=MEAN, image_std=STD)}


def tokenizer():
    """tokenizer.json: a token a word or sign, in lower case; a word that the model does not know is <unk>."""
    marks = [dict(id=ID[word], content=word, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for word in SPECIAL]
    start, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return dict(
        version="1.0", truncation=None, padding=None, added_tokens=marks, normalizer={"type": "Lowercase"},
        pre_tokenizer={"type": "Whitespace"}, decoder=None,
        post_processor={"type": "TemplateProcessing", "single": [start, text],
                        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
                        "special_tokens": {"<s>": {"id": "<s>", "ids": [ID["<s>"]], "tokens": ["<s>"]}}},
        model=dict(type="WordLevel", vocab={word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
