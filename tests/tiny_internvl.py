"""Tiny random InternVL checkpoints: transformers' own file with a Qwen2 decoder, OpenGVLab's layout with InternLM2.

The second one's reference is the same network as Llama in transformers' layout: here the weights are fused and renamed
by loops over heads, not with the tables that load them. Its tokenizer is a tokenizer.model, two of whose pieces
tokenizer_config.json renames and to which it adds three, as InternLM2's does. """

import json
import re

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minivlm.io.text.tokenizer import prompt
from tiny_llava import CORPUS, PIECES, ROWS, Case, bpe, randomise, sentencepiece_model, tokenizer_json, write

CONTEXT, MEAN, STD = "<IMG_CONTEXT>", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MARKS = dict(enumerate(("<|im_start|>", "<|im_end|>", CONTEXT, "<img>", "</img>"), PIECES - 2))
LAYOUTS = ("internvl-hf", "internvl-original")
SIDE, PATCH, TILES = 28, 7, 6                      # 2 x 2 visual tokens a tile


def asked(*turns):
    """The text of a conversation that ends with a question."""
    return prompt([*zip(turns[::2], [*turns[1::2], None])], "".join(turns).count("<image>"), "internvl-hf")


def config(case):
    """config.json for transformers."""
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                rms_norm_eps=1e-5, max_position_embeddings=4096, vocab_size=ROWS, rope_theta=1e6) | case.text
    vision = (
        dict(model_type="internvl_vision", hidden_size=32, intermediate_size=64, num_hidden_layers=3,
             num_attention_heads=4, image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH], attention_bias=True)
        | case.vision
    )
    return dict(architectures=["InternVLForConditionalGeneration"], model_type="internvl", text_config=text,
                vision_config=vision, image_token_id=PIECES, downsample_ratio=0.5, vision_feature_layer=-1,
                image_seq_length=4, tie_word_embeddings=text.get("tie_word_embeddings", False),
                torch_dtype=str(case.dtype)[6:])


def original_config(hf):
    """The same facts in OpenGVLab's fields."""
    text, vision = hf["text_config"], hf["vision_config"]
    return dict(
        architectures=["InternVLChatModel"],
        model_type="internvl_chat", ps_version="v2", select_layer=-1, downsample_ratio=0.5,
        force_image_size=SIDE, dynamic_image_size=True, min_dynamic_patch=1, max_dynamic_patch=TILES,
        use_thumbnail=True, template="internlm2-chat",
        torch_dtype=hf.get("torch_dtype", "float32"),
        llm_config=text
        | dict(architectures=["InternLM2ForCausalLM"], model_type="internlm2", bias=False,
               rope_scaling=dict(type="dynamic", factor=2.0)),
        vision_config={key: value for key, value in vision.items() if key not in ("attention_bias", "use_qk_norm")}
        | dict(model_type="intern_vit_6b", image_size=SIDE, patch_size=PATCH, qkv_bias=vision["attention_bias"],
               qk_normalization=vision.get("use_qk_norm", False), norm_type=vision.get("norm_type", "layer_norm"),
               hidden_act="gelu", layer_norm_eps=1e-6),
    )


def original_weights(state, heads, groups):
    """A transformers state dict under OpenGVLab's names; `groups` key heads, heads / groups query heads to each."""
    new = {}
    for key, value in state.items():
        if match := re.match(r"model\.vision_tower\.encoder\.layer\.(\d+)\.attention\.q_proj\.(\w+)", key):
            parts = [state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            new[f"vision_model.encoder.layers.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
        elif match := re.match(r"model\.language_model\.layers\.(\d+)\.self_attn\.q_proj", key):
            q, k, v = (state[key.replace("q_proj", f"{x}_proj")] for x in "qkv")
            q, k, v, rows = q.chunk(heads), k.chunk(groups), v.chunk(groups), []
            for g in range(groups):
                rows += [*q[g * heads // groups:(g + 1) * heads // groups], k[g], v[g]]
            new[f"language_model.model.layers.{match[1]}.attention.wqkv.weight"] = torch.cat(rows)
        elif not re.search(r"\.[kv]_proj\.", key):
            new[_renamed(key)] = value.clone()
    return new


def _renamed(key):
    for ours, theirs in {
        "model.vision_tower.encoder.layer": "vision_model.encoder.layers",
        "model.vision_tower": "vision_model",
        "cls_token": "class_embedding",
        "position_embeddings": "position_embedding",
        "patch_embeddings.projection": "patch_embedding",
        "attention.projection_layer": "attn.proj",
        "attention.q_norm": "attn.q_norm",
        "attention.k_norm": "attn.k_norm",
        "lambda_": "ls",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "model.multi_modal_projector.layer_norm": "mlp1.0",
        "model.multi_modal_projector.linear_1": "mlp1.1",
        "model.multi_modal_projector.linear_2": "mlp1.3",
        "lm_head": "language_model.output",
        "model.language_model": "language_model.model",
        "embed_tokens": "tok_embeddings",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }.items():
        key = key.replace(ours, theirs)
    return key


def spelled():
    """A tokenizer like Qwen2's: byte pairs over bytes spelled as letters; no token in front of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([CORPUS] * 2, trainers.BpeTrainer(
        vocab_size=PIECES - 2, show_progress=False, initial_alphabet=alphabet))
    unused = [f"<unused {n}>" for n in range(tokenizer.get_vocab_size(), PIECES - 2)]
    tokenizer.add_special_tokens(unused + list(MARKS.values()))
    return tokenizer


def sentencepiece(renamed=True):
    """(pieces, merges) like InternLM2's; as in the file, or with its last two pieces renamed and what makes them
    gone."""
    pieces, merges = bpe()
    if renamed:
        merges = [(a, b) for a, b in merges if not {a, b, a + b} & set(pieces[PIECES - 2:])]
        pieces = pieces[:PIECES - 2] + [MARKS[PIECES - 2], MARKS[PIECES - 1]]
    return pieces, merges


def llama_tokenizer():
    """What tokenizer.model and tokenizer_config.json together mean: no space is put in front."""
    content = tokenizer_json(*sentencepiece(), marks=list(MARKS.values())[2:])
    content["added_tokens"] += [
        dict(content["added_tokens"][0], id=id, content=MARKS[id]) for id in (PIECES - 2, PIECES - 1)
    ]
    content["normalizer"]["normalizers"] = content["normalizer"]["normalizers"][1:]
    content["decoder"]["decoders"] = content["decoder"]["decoders"][:-1]
    return Tokenizer.from_str(json.dumps(content))


def tools(case):
    """The tokenizer and image processor that the case is recorded with."""
    from transformers import GotOcr2ImageProcessorPil

    processor = GotOcr2ImageProcessorPil(size=dict(height=SIDE, width=SIDE), image_mean=MEAN, image_std=STD,
                                         crop_to_patches=True, min_patches=1, max_patches=TILES)
    return spelled() if case.layout == "internvl-hf" else llama_tokenizer(), processor


def build(case, folder, reference):
    """Write the checkpoint to `folder`, and to `reference` the form of it that transformers reads (where it is
    another)."""
    from transformers import AutoConfig, InternVLForConditionalGeneration
    fields, added = config(case), {str(id): dict(content=token, special=True) for id, token in MARKS.items()}
    write(reference / "config.json", fields)
    model = InternVLForConditionalGeneration(AutoConfig.from_pretrained(reference))
    randomise(model, case.seed)
    model.to(case.dtype).save_pretrained(reference)
    for place in (folder, reference):
        write(place / "generation_config.json", dict(eos_token_id=PIECES - 1, pad_token_id=0))
    if case.layout == "internvl-hf":
        spelled().save(str(folder / "tokenizer.json"), pretty=False)
        write(folder / "tokenizer_config.json",
              dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token="<|im_end|>"))
        write(
            folder / "preprocessor_config.json",
            dict(image_processor_type="GotOcr2ImageProcessorFast", size=dict(height=SIDE, width=SIDE),
                 image_mean=MEAN, image_std=STD, do_resize=True, do_rescale=True, do_normalize=True,
                 rescale_factor=1 / 255, resample=3, crop_to_patches=False, min_patches=1, max_patches=TILES),
        )
    else:
        text = fields["text_config"]
        state = original_weights(model.state_dict(), text["num_attention_heads"], text["num_key_value_heads"])
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})
        write(folder / "config.json", original_config(fields))
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(*sentencepiece(renamed=False), space=False))
        write(folder / "tokenizer_config.json",
              dict(tokenizer_class="InternLM2Tokenizer", bos_token="<s>", eos_token="</s>", added_tokens_decoder=added))


CASES = {
    "internvl_qwen2": Case(
        "internvl-hf",
        seed=1,
        text=dict(model_type="qwen2", tie_word_embeddings=True),
        prompts=[
            (asked("<image>\nWhat is shown in this image?"), ["land_500x333.png"]),
            (asked("Here is <image>\nand here is <image>\nWhich one is brighter?"),
             ["wide_2000x100.png", "tiny_7x5.png"]),
        ],
    ),
    "internvl_internlm2": Case(
        "internvl-original",
        seed=2,
        text=dict(model_type="llama"),
        dtype=torch.bfloat16,
        prompts=[
            (asked("<image>\nHow many boats? 你好"), ["port_333x500.png"]),
            (asked("Why?", "There are three boats.", "What color is the sign?"), []),
        ],
    ),
    "internvl_6b_original": Case(      # InternVL2-26B's kind of tower
        "internvl-original",
        seed=3,
        text=dict(model_type="llama"),
        vision=dict(norm_type="rms_norm", use_qk_norm=True, attention_bias=False),
        dtype=torch.bfloat16,
        prompts=[(asked("<image>\nWhat is shown in this image?"), ["port_333x500.png"])],
    ),
}
