"""config.json of every kind: partial ones, old and new keys, the original's flat list, and what is refused."""

import json
from dataclasses import asdict, fields, replace
from typing import get_args

import pytest

import layouts
from layouts import HF_7B, HF_13B, NEXT_7B, NEXT_MISTRAL, ORIGINAL_7B, ORIGINAL_MISTRAL, ORIGINAL_NEXT, TINY
from minivlm.families.internvl_config import InternVLConfig, InternViTConfig
from minivlm.families.registry import read_config
from minivlm.io.limits import LIMITS
from minivlm.parts.config import LlavaConfig, TextConfig, VisionConfig
from paths import PARITY
from pruning.base import UserError
from tiny_internvl import CONTEXT

# What the hub's files hold of their text_config and vision_config; all else is left to the defaults of the classes.
HUB_TEXT = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "model_type": "llama", "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "torch_dtype": "float16", "vocab_size": 32064}
HUB_VISION = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
              "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
              "vocab_size": 32000}
HUB = {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
       "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu", "text_config": HUB_TEXT,
       "vision_config": HUB_VISION, "tie_word_embeddings": False, "torch_dtype": "float16",
       "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
WIDE = {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40, "num_hidden_layers": 40,
        "num_key_value_heads": 40}


def read(tmp_path, raw):
    """read_config of a folder that holds this config.json."""
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return read_config(tmp_path)


def test_hub_configs_are_partial(tmp_path):
    """llava-1.5-7b-hf names neither width nor depth of its decoder, 13b does."""
    assert read(tmp_path, HUB) == HF_7B
    assert read(tmp_path, HUB | {"text_config": HUB_TEXT | WIDE}) == HF_13B


def test_hub_configs_of_llava_next(tmp_path):
    """Mistral's text_config is partial too; grids and pad token may be missing. Prompts are those of the decoder."""
    raw = {k: v for k, v in HUB.items() if k != "pad_token_id"}
    raw |= {"model_type": "llava_next", "image_grid_pinpoints": layouts.GRIDS}
    mistral = {"model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768,
               "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
               "vocab_size": 32064}
    assert read(tmp_path, raw) == NEXT_7B
    assert read(tmp_path, raw | {"text_config": mistral}) == NEXT_MISTRAL
    del raw["image_grid_pinpoints"]
    assert read(tmp_path, raw) == NEXT_7B


def test_original_llava_next_reads_its_grids_as_width_and_height(tmp_path):
    """The same list as the hub's: there the first grid is 336 high and 672 wide, here 672 high and 336 wide."""
    raw = layouts.original_json(ORIGINAL_NEXT)
    assert raw["image_grid_pinpoints"] == NEXT_7B.image_grid_pinpoints and raw["model_type"] == "llava"
    assert read(tmp_path, raw) == ORIGINAL_NEXT and ORIGINAL_NEXT.image_grid_pinpoints[0] == [672, 336]
    assert read(tmp_path, layouts.original_json(ORIGINAL_MISTRAL)) == ORIGINAL_MISTRAL


def test_nothing_written_means_the_classes_defaults(tmp_path):
    """Without a vision_config the tower is ViT-L/14-336; within one, a missing size is ViT-B/32's."""
    assert read(tmp_path, {"model_type": "llava"}) == LlavaConfig()
    empty = {"model_type": "llava", "vision_config": {}}
    assert read(tmp_path, empty).vision == VisionConfig(768, 3072, 12, 12, 224, 32)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_text_defaults_are_the_reference_classes(tmp_path, kind, transformers):
    reference = transformers.AutoConfig.for_model(kind)
    text = read(tmp_path, {"model_type": "llava", "text_config": {"model_type": kind}}).text
    window = getattr(reference, "sliding_window", None)            # Qwen2 uses it only where it says so
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "hidden_act", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(text, name) == getattr(reference, name), name
    assert text.head_dim == 128 and text.sliding_window == window
    assert text.max_position_embeddings == reference.max_position_embeddings
    assert (text.qkv_bias, text.o_bias) == (kind == "qwen2", False)


def test_vision_defaults_are_the_reference_classes(tmp_path, transformers):
    reference = transformers.LlavaConfig(vision_config={"patch_size": 14}).vision_config
    vision = read(tmp_path, {"model_type": "llava", "vision_config": {"patch_size": 14}}).vision
    assert asdict(vision) == {name: getattr(reference, name) for name in asdict(vision)}


def test_siglip_defaults_are_the_reference_classes(tmp_path, transformers):
    raw = {"model_type": "llava", "vision_feature_select_strategy": "full",
           "vision_config": {"model_type": "siglip_vision_model"}}
    reference = transformers.LlavaConfig(vision_config=raw["vision_config"]).vision_config
    vision = read(tmp_path, raw).vision
    assert asdict(vision) == {name: getattr(reference, name) for name in asdict(vision)}


def test_old_and_new_keys_say_the_same(tmp_path):
    """torch_dtype and rope_theta became dtype and rope_parameters."""
    c = replace(TINY, text=replace(TINY.text, rope_theta=5e5), dtype="bfloat16")
    assert read(tmp_path, layouts.config_json(c)) == read(tmp_path, layouts.config_json(c, new=True)) == c


def test_null_window_is_none_and_a_missing_one_is_mistrals(tmp_path):
    """They differ: the released LLaVA-NeXT says null. Qwen2's window is that of some layers: its context ends there."""
    text = {"model_type": "mistral", "max_position_embeddings": 32768, "rope_theta": 1e6}
    missing = read(tmp_path, HUB | {"text_config": text}).text
    null = read(tmp_path, HUB | {"text_config": text | {"sliding_window": None}}).text
    assert (missing.sliding_window, missing.max_position_embeddings) == (4096, 32768)
    assert (null.sliding_window, null.max_position_embeddings, null.rope_theta) == (None, 32768, 1e6)
    qwen = {"model_type": "qwen2", "sliding_window": 1024, "use_sliding_window": True}
    some = read(tmp_path, HUB | {"text_config": qwen}).text
    assert (some.sliding_window, some.max_position_embeddings) == (None, 1024)
    whole = read(tmp_path, HUB | {"text_config": qwen | {"use_sliding_window": False}})
    assert whole.text.max_position_embeddings == 32768


def test_llama_attention_bias_is_on_all_four_projections(tmp_path):
    text = read(tmp_path, HUB | {"text_config": HUB_TEXT | {"attention_bias": True, "mlp_bias": True}}).text
    assert (text.qkv_bias, text.o_bias, text.mlp_bias) == (True, True, True)


def test_tied_head_is_said_at_the_top_or_in_the_text(tmp_path):
    assert read(tmp_path, HUB | {"tie_word_embeddings": True}).text.tie_word_embeddings
    assert read(tmp_path, HUB | {"text_config": HUB_TEXT | {"tie_word_embeddings": True}}).text.tie_word_embeddings


@pytest.mark.parametrize("kind", ["llava", "llava_llama"])
def test_original_takes_the_tower_from_its_name(tmp_path, kind):
    """One flat list; the image mark gets the first id that is no word, since the original has none."""
    assert read(tmp_path, layouts.original_json(ORIGINAL_7B, model_type=kind)) == ORIGINAL_7B
    named = read(tmp_path, layouts.original_json(ORIGINAL_7B, mm_vision_tower="openai/clip-vit-large-patch14"))
    assert named.vision == VisionConfig(image_size=224)


@pytest.mark.parametrize("kind", ["clip", "clip_vision_model"])
@pytest.mark.parametrize("place", ["openai/my-clip", "checkpoint/my-clip", "my-clip"])
def test_original_takes_the_tower_from_its_folder(tmp_path, kind, place):
    """By its name beside or inside the checkpoint; the whole CLIP's config has the tower's in a section."""
    vision = asdict(TINY.vision) | {"model_type": "clip_vision_model"}
    (tmp_path / place).mkdir(parents=True)
    config = {"model_type": "clip", "vision_config": vision} if kind == "clip" else vision
    (tmp_path / place / "config.json").write_text(json.dumps(config))
    (tmp_path / "checkpoint").mkdir(exist_ok=True)
    c = read(tmp_path / "checkpoint", layouts.original_json(TINY, mm_vision_tower="openai/my-clip"))
    assert c.vision == TINY.vision and c.vision_tower == "openai/my-clip"


def test_original_crops_unless_it_says_pad(tmp_path):
    assert read(tmp_path, layouts.original_json(ORIGINAL_7B, image_aspect_ratio="square")).image_aspect_ratio == "crop"


def internvl_chat(**more):
    """config.json of the tiny original InternVL, with other fields."""
    return json.loads((PARITY / "internvl_internlm2" / "config.json").read_text()) | more


def internvl(**more):
    """The same of the tiny -hf one."""
    return json.loads((PARITY / "internvl_qwen2" / "config.json").read_text()) | more


def test_config_of_an_original_internvl(tmp_path):
    """Its own fields; dynamic rotary scaling, which begins where the context ends, is none; the mark's id is the
    tokenizer's."""
    c = read(tmp_path, internvl_chat())
    assert (c.max_tiles, c.use_thumbnail) == (6, True)
    assert (c.template, c.original, c.dtype) == ("internlm2-chat", True, "bfloat16")
    assert c.text.rope_theta == 1e6 and not c.text.qkv_bias and c.vision.attention_bias and c.image_token_index == 92546
    (tmp_path / "added_tokens.json").write_text(json.dumps({CONTEXT: 77}))
    assert read(tmp_path, internvl_chat()).image_token_index == 77
    assert read(tmp_path, internvl_chat(dynamic_image_size=False)).max_tiles == 1


def test_config_of_a_hugging_face_internvl(tmp_path):
    """Sides as lists or numbers; nothing said of qkv biases: none; nothing of the head: it may be tied."""
    c = read(tmp_path, internvl())
    assert (c.vision.image_size, c.vision.patch_size, c.vision.attention_bias, c.text.qkv_bias) == (28, 7, True, True)
    raw = internvl(vision_config={"image_size": 56, "patch_size": 14})
    del raw["tie_word_embeddings"], raw["text_config"]["tie_word_embeddings"]
    c = read(tmp_path, raw)
    assert (c.vision.image_size, c.vision.attention_bias, c.text.tie_word_embeddings) == (56, False, True)
    assert (c.template, c.original, c.image_token_index) == ("internvl-hf", False, 500)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
REFUSED = {
    "wrong family": (HUB | {"model_type": "bert"}, "model_type 'bert'"),
    "no family": ({}, "model_type None"),
    "any resolution": (layouts.original_json(ORIGINAL_NEXT, image_aspect_ratio="anyres_max_9"),
                       "image_aspect_ratio 'anyres_max_9'"),
    "merge type": (layouts.original_json(ORIGINAL_NEXT, mm_patch_merge_type="flat"), "mm_patch_merge_type 'flat'"),
    "no merge type": (layouts.original_json(ORIGINAL_7B, image_aspect_ratio="anyres"), "mm_patch_merge_type 'flat'"),
    "no grids": (layouts.original_json(ORIGINAL_NEXT, image_grid_pinpoints="(1x1),...,(6x6)"),
                 "image_grid_pinpoints must be pairs"),
    "grids": (HUB | {"model_type": "llava_next", "image_grid_pinpoints": [[336, 600]]},
              "pairs of multiples of image_size 336"),
    "grid of one side": (HUB | {"model_type": "llava_next", "image_grid_pinpoints": [[336]]},
                         "image_grid_pinpoints must be pairs"),
    "tiles with class tokens": (HUB | {"model_type": "llava_next", "vision_feature_select_strategy": "full"},
                                "the class token"),
    "rope, old": (HUB | {"text_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}},
                  "type 'dynamic' is not supported, only default or linear or llama3"),
    "rope without factor": (HUB | {"text_config": {"rope_scaling": {"type": "linear"}}}, "linear scaling .* no factor"),
    "rope below 1": (HUB | {"text_config": {"rope_scaling": {"type": "linear", "factor": .5}}}, "factor must be"),
    "rope upside down": (
        HUB | {"text_config": {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}},
        "low_freq_factor 1.0 must be below high_freq_factor 1.0",
    ),
    "rope, new": (HUB | {"text_config": {"rope_parameters": {"rope_type": "yarn"}}},
                  "rope_type 'yarn' is not supported"),
    "text family": (HUB | {"text_config": {"model_type": "gemma"}},
                    "model_type 'gemma' is not supported, only llama or mistral or qwen2"),
    "vision family": (HUB | {"vision_config": {"model_type": "dinov2"}},
                      "model_type 'dinov2' is not supported, only clip_vision_model or siglip_vision_model"),
    "siglip without a class token": (HUB | {"vision_config": {"model_type": "siglip_vision_model"}},
                                     "SigLIP has no class token to leave out"),
    "siglip's head": (HUB | {"vision_config": {"model_type": "siglip_vision_model", "vision_use_head": True}},
                      "vision_use_head True"),
    "text act": (HUB | {"text_config": {"hidden_act": "gelu"}}, "hidden_act 'gelu' is not supported, only silu"),
    "vision act": (HUB | {"vision_config": {"hidden_act": "mish"}}, "hidden_act 'mish'"),
    "projector act": (HUB | {"projector_hidden_act": "mish"}, "projector_hidden_act 'mish'"),
    "strategy": (HUB | {"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy 'cls'"),
    "layer": (HUB | {"vision_feature_layer": -26}, "vision_feature_layer -26"),
    "layers": (HUB | {"vision_feature_layer": [3, 25]}, r"vision_feature_layer \[3, 25\]"),
    "dtype": (HUB | {"torch_dtype": "int8"}, "dtype 'int8'"),
    "quantised": (HUB | {"quantization_config": {"bits": 4}}, "quantization_config"),
    "size": (HUB | {"text_config": {"hidden_size": "4096"}}, "hidden_size must be a positive number, and is '4096'"),
    "zero": (HUB | {"vision_config": {"num_attention_heads": 0}}, "num_attention_heads must be a positive number"),
    "section": (HUB | {"text_config": [1]}, "text_config must be an object"),
    "empty section": (HUB | {"vision_config": []}, "vision_config must be an object"),
    "two ropes": (HUB | {"text_config": {"rope_parameters": {"rope_theta": 1e4},
                                         "rope_scaling": {"type": "linear", "factor": 2.0}}},
                  "rope_parameters and rope_scaling differ"),
    "two thetas": (HUB | {"text_config": {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"rope_theta": 1e6}}},
                   "rope_parameters and rope_scaling differ"),
    "part of a rope": (HUB | {"text_config": {"rope_parameters": {"partial_rotary_factor": 0.5}}},
                       "partial_rotary_factor 0.5"),
    "ropes of layers": (HUB | {"text_config": {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}},
                        "differ from layer to layer"),
    "groups": (HUB | {"text_config": {"num_attention_heads": 32, "num_key_value_heads": 5}},
               "32 is no multiple of num_key_value_heads 5"),
    "more heads than width": (HUB | {"text_config": {"hidden_size": 16}}, "head_dim is 0"),
    "odd head": (HUB | {"text_config": {"head_dim": 127}}, "head_dim is 127, and must be an even number"),
    "heads of the tower": (HUB | {"vision_config": {"hidden_size": 100, "num_attention_heads": 16}},
                           "100 is no multiple of its"),
    "patch": (HUB | {"vision_config": {"image_size": 14, "patch_size": 15}},
              "patch_size 15 is larger than image_size 14"),
    "large grid": (HUB | {"model_type": "llava_next", "image_grid_pinpoints": [[3360000, 3360000]]},
                   "more than 256 tiles"),
    "many grids": (HUB | {"model_type": "llava_next", "image_grid_pinpoints": [[336, 336]] * 257},
                   "image_grid_pinpoints must be pairs"),
    "no grid": (HUB | {"model_type": "llava_next", "image_grid_pinpoints": []}, "image_grid_pinpoints must be pairs"),
    "true grid": (HUB | {"model_type": "llava_next", "image_grid_pinpoints": [[True, 336]]},
                  "image_grid_pinpoints must be pairs"),
    "aspect": (layouts.original_json(ORIGINAL_7B, image_aspect_ratio=1), "image_aspect_ratio must be text or null"),
    "projector": (layouts.original_json(ORIGINAL_7B, mm_projector_type="linear"), "mm_projector_type 'linear'"),
    "marks": (layouts.original_json(ORIGINAL_7B, mm_use_im_start_end=True), "mm_use_im_start_end True"),
    "kind": (layouts.original_json(ORIGINAL_7B, model_type="llava_qwen"),
             "not read with model_type llava_qwen: give the same weights in Hugging Face's layout"),
    "tower": (layouts.original_json(ORIGINAL_7B, mm_vision_tower="openai/other"),
              "mm_vision_tower 'openai/other' is not known"),
    "no tower": (layouts.original_json(ORIGINAL_7B, mm_vision_tower=None), "mm_vision_tower must name"),
    "InternVL: shuffle": (internvl_chat(ps_version="v1"), "ps_version 'v1' is not supported, only v2"),
    "InternVL: no version": ({k: v for k, v in internvl_chat().items() if k != "ps_version"}, "ps_version 'v1'"),
    "InternVL: template": (internvl_chat(template="phi3-chat"),
                           "template 'phi3-chat' is not supported, only internlm2-chat or"),
    "InternVL: decoder": (internvl_chat(llm_config={"model_type": "phi3"}),
                          "model_type 'phi3' is not supported, only internlm2"),
    "InternVL: biases": (internvl_chat(llm_config={"model_type": "internlm2", "bias": True}), "bias True"),
    "InternVL: layer": (internvl_chat(select_layer=-4), "select_layer -4"),
    "InternVL: ratio": (internvl(downsample_ratio=0.25), "downsample_ratio 0.25"),
    "InternVL: normed": (internvl_chat(vision_config=dict(internvl_chat()["vision_config"], qk_normalization="yes")),
                         "use_qk_norm must be true or false, and is 'yes'"),
    "InternVL: norms": (internvl(vision_config={"norm_type": "batch_norm"}),
                        "norm_type 'batch_norm' is not supported, only layer_norm or rms_norm"),
    "InternVL: pooling": (internvl(vision_config={"use_mean_pooling": False}), "use_mean_pooling False"),
    "InternVL: other side": (internvl_chat(force_image_size=224), "image_size 224 is not supported, only 28"),
    "InternVL: quantised": (internvl(quantization_config={"bits": 4}), "quantization_config"),
    "InternVL: rope": (internvl_chat(llm_config={"rope_scaling": {"type": "yarn", "factor": 2.0}}),
                       "type 'yarn' is not supported"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line_that_names_file_and_key(tmp_path, what):
    raw, words = REFUSED[what]
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path, raw)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


PLACES = {                                         # a layout: what its config.json is, and where its sections are
    "llava": (HUB | {"vision_config": HUB_VISION}, "text_config", "vision_config"),
    "original": (layouts.original_json(ORIGINAL_7B), None, None),
    "internvl": ({"model_type": "internvl", "text_config": {}, "vision_config": {}}, "text_config", "vision_config"),
    "internvl_chat": ({"model_type": "internvl_chat", "ps_version": "v2", "template": "internvl2_5", "llm_config": {},
                       "vision_config": {}},
                      "llm_config", "vision_config"),
}
TEXT_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")
VISION_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
                "patch_size", "num_channels")
TOP = {"llava": ("image_token_index", "image_token_id", "vision_feature_layer", "multimodal_projector_bias"),
       "original": ("mm_vision_select_layer",), "internvl": ("image_token_id",),
       "internvl_chat": ("min_dynamic_patch", "max_dynamic_patch", "dynamic_image_size", "use_thumbnail",
                         "force_image_size")}
NO_SIZE = ["500", 500.5, [500], {"a": 1}, 10 ** 20, -10 ** 9, 10 ** 9 * 5]


def written(layout, section, key, value):
    raw = json.loads(json.dumps(PLACES[layout][0]))
    if layout == "llava" and key == "image_token_id":
        del raw["image_token_index"]
    (raw if section is None else raw[section])[key] = value
    return raw


@pytest.mark.parametrize("layout, section, key", [
    (layout, section, key) for layout, (_, text, vision) in PLACES.items()
    for section, keys in ((text, TEXT_SIZES), (vision, VISION_SIZES if vision else ()), (None, TOP[layout]))
    for key in keys])
def test_what_is_no_size_is_refused_by_its_name(tmp_path, layout, section, key):
    """Text, a fraction, a list, an object, too large, negative; and true, where a number is meant."""
    flags = ("multimodal_projector_bias", "dynamic_image_size", "use_thumbnail")
    named = {"image_token_id": "image_token_index", "mm_vision_select_layer": "vision_feature_layer",
             "force_image_size": "image_size", "min_dynamic_patch": "min_tiles",
             "max_dynamic_patch": "max_tiles"}.get(key, key)
    for value in [*NO_SIZE, 1 if key in flags else True]:
        with pytest.raises(UserError, match=f"config.json: {named} ") as error:
            read(tmp_path, written(layout, section, key, value))
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("value", [None, "500", 500.0, [500], True, -1, 2 ** 24 + 1, {}])
def test_image_token_that_is_no_id(tmp_path, value):
    with pytest.raises(UserError,
                       match="config.json: image_token_index must be a number, and is .*whole number from 0 to"):
        read(tmp_path, HUB | {"image_token_index": value})


def test_image_token_may_be_no_word(tmp_path):
    """Nothing looks its embedding up: the original's is the first id after the vocabulary."""
    assert read(tmp_path, HUB | {"image_token_index": 10 ** 6}).image_token_index == 10 ** 6


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", ["1", True, None, 0, -1, 1e300, [1.0]])
def test_what_is_no_real_number(tmp_path, key, value):
    with pytest.raises(UserError, match=f"{key} must be a positive number, and is"):
        read(tmp_path, HUB | {"text_config": HUB_TEXT | {key: value}})


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window"])
def test_what_is_no_flag(tmp_path, key):
    with pytest.raises(UserError, match=f"{key} must be true or false.*, and is 'no'"):
        read(tmp_path, HUB | {"text_config": HUB_TEXT | {key: "no"}})


def test_every_number_of_a_configuration_has_limits():
    """So that a new field cannot be forgotten."""
    for cls in VisionConfig, TextConfig, LlavaConfig, InternVLConfig, InternViTConfig:
        for f in fields(cls):
            kinds = get_args(f.type) or (f.type,)
            assert f.name in LIMITS or not {int, float} & set(kinds), f.name


def test_the_same_rope_twice_is_read(tmp_path):
    same = {"rope_type": "default", "rope_theta": 5e5}
    text = HUB_TEXT | {"rope_parameters": same, "rope_scaling": same}
    assert read(tmp_path, HUB | {"text_config": text}).text.rope_theta == 5e5


@pytest.mark.parametrize("change, words", [
    ({"vision_config": {"image_size": [448, 224]}}, "not the side of a square"),
    ({"vision_config": {"image_size": []}}, "not the side"),
    ({"vision_config": {"patch_size": 64}}, "joins 2 patches a side, and of patch_size 64 image_size 448 has 7"),
    ({"min_dynamic_patch": 13}, "min_dynamic_patch 13 is more than max_dynamic_patch 12"),
    ({"max_dynamic_patch": 10 ** 6}, "max_tiles")])
def test_tiles_of_internvl_that_cannot_be(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, PLACES["internvl_chat"][0] | change)


@pytest.mark.parametrize("name, content, words", [
    ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder must be an object"),
    ("tokenizer.json", {"added_tokens": {"a": 1}}, "added_tokens must be a list"),
    ("added_tokens.json", {"<IMG_CONTEXT>": "x"}, "id must be a number, and is 'x'"),
    ("tokenizer.json", {"added_tokens": [1, {"content": [], "id": 5}, {"content": "<IMG_CONTEXT>", "id": 5.5}]},
     "and is 5.5")])
def test_tokenizer_files_of_internvl_of_a_wrong_kind(tmp_path, name, content, words):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{name}: .*{words}"):
        read(tmp_path, PLACES["internvl_chat"][0])


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_file_that_is_no_json_object(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="config.json"):
        read_config(tmp_path)
