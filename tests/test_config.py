"""config.json of every kind: partial ones, old and new keys, the original's flat list, and what is refused."""

import json
from dataclasses import asdict, replace

import pytest

import layouts
from layouts import HF_7B, HF_13B, NEXT_7B, NEXT_MISTRAL, ORIGINAL_7B, ORIGINAL_MISTRAL, ORIGINAL_NEXT, TINY
from minivlm.config import LlavaConfig, TextConfig, VisionConfig, read_config
from pruning.base import UserError

# What the hub's files hold of their text_config and vision_config; all else is left to the defaults of the classes.
HUB_TEXT = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "torch_dtype": "float16", "vocab_size": 32064}
HUB_VISION = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
              "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000}
HUB = {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000, "model_type": "llava",
       "pad_token_id": 32001, "projector_hidden_act": "gelu", "text_config": HUB_TEXT, "vision_config": HUB_VISION,
       "tie_word_embeddings": False, "torch_dtype": "float16", "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
WIDE = {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 40}


def read(tmp_path, raw):
    """read_config of a folder that holds this config.json."""
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return read_config(tmp_path)


def test_hub_configs_are_partial(tmp_path):
    """llava-1.5-7b-hf names neither width nor depth of its decoder, 13b does."""
    assert read(tmp_path, HUB) == HF_7B
    assert read(tmp_path, HUB | {"text_config": HUB_TEXT | WIDE}) == HF_13B


def test_hub_configs_of_llava_next(tmp_path):
    """Mistral's text_config is partial too; the grids may be missing; a pad token is not told. Prompts are those of the decoder."""
    raw = {k: v for k, v in HUB.items() if k != "pad_token_id"} | {"model_type": "llava_next", "image_grid_pinpoints": layouts.GRIDS}
    mistral = {"model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768, "num_key_value_heads": 8,
               "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None, "vocab_size": 32064}
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
    assert read(tmp_path, {"model_type": "llava", "vision_config": {}}).vision == VisionConfig(768, 3072, 12, 12, 224, 32)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_text_defaults_are_the_reference_classes(tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    reference = transformers.AutoConfig.for_model(kind)
    text = read(tmp_path, {"model_type": "llava", "text_config": {"model_type": kind}}).text
    window = getattr(reference, "sliding_window", None)            # Qwen2 uses it only where it says so
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "hidden_act", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(text, name) == getattr(reference, name), name
    assert text.head_dim == 128 and text.sliding_window == window
    assert text.max_position_embeddings == reference.max_position_embeddings
    assert (text.qkv_bias, text.o_bias) == (kind == "qwen2", False)


def test_vision_defaults_are_the_reference_classes(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    reference = transformers.LlavaConfig(vision_config={"patch_size": 14}).vision_config
    ours = read(tmp_path, {"model_type": "llava", "vision_config": {"patch_size": 14}}).vision
    assert asdict(ours) == {name: getattr(reference, name) for name in asdict(ours)}


def test_old_and_new_keys_say_the_same(tmp_path):
    """torch_dtype and rope_theta became dtype and rope_parameters."""
    c = replace(TINY, text=replace(TINY.text, rope_theta=5e5), dtype="bfloat16")
    assert read(tmp_path, layouts.config_json(c)) == read(tmp_path, layouts.config_json(c, new=True)) == c


def test_null_window_is_none_and_a_missing_one_is_mistrals(tmp_path):
    """Not the same: the released LLaVA-NeXT says null. Qwen2's window is that of some layers, so its context ends there."""
    text = {"model_type": "mistral", "max_position_embeddings": 32768, "rope_theta": 1e6}
    missing = read(tmp_path, HUB | {"text_config": text}).text
    null = read(tmp_path, HUB | {"text_config": text | {"sliding_window": None}}).text
    assert (missing.sliding_window, missing.max_position_embeddings) == (4096, 32768)
    assert (null.sliding_window, null.max_position_embeddings, null.rope_theta) == (None, 32768, 1e6)
    qwen = {"model_type": "qwen2", "sliding_window": 1024, "use_sliding_window": True}
    some = read(tmp_path, HUB | {"text_config": qwen}).text
    assert (some.sliding_window, some.max_position_embeddings) == (None, 1024)
    assert read(tmp_path, HUB | {"text_config": qwen | {"use_sliding_window": False}}).text.max_position_embeddings == 32768


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
    (tmp_path / place / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision} if kind == "clip" else vision))
    (tmp_path / "checkpoint").mkdir(exist_ok=True)
    c = read(tmp_path / "checkpoint", layouts.original_json(TINY, mm_vision_tower="openai/my-clip"))
    assert c.vision == TINY.vision and c.vision_tower == "openai/my-clip"


def test_original_crops_unless_it_says_pad(tmp_path):
    assert read(tmp_path, layouts.original_json(ORIGINAL_7B, image_aspect_ratio="square")).image_aspect_ratio == "crop"


REFUSED = {
    "wrong family": (HUB | {"model_type": "bert"}, "model_type 'bert'"),
    "no family": ({}, "model_type None"),
    "any resolution": (layouts.original_json(ORIGINAL_NEXT, image_aspect_ratio="anyres_max_9"), "image_aspect_ratio 'anyres_max_9'"),
    "merge type": (layouts.original_json(ORIGINAL_NEXT, mm_patch_merge_type="flat"), "mm_patch_merge_type 'flat'"),
    "no merge type": (layouts.original_json(ORIGINAL_7B, image_aspect_ratio="anyres"), "mm_patch_merge_type 'flat'"),
    "no grids": (layouts.original_json(ORIGINAL_NEXT, image_grid_pinpoints="(1x1),...,(6x6)"), "image_grid_pinpoints must be pairs"),
    "grids": (HUB | {"model_type": "llava_next", "image_grid_pinpoints": [[336, 600]]}, "pairs of multiples of image_size 336"),
    "grid of one side": (HUB | {"model_type": "llava_next", "image_grid_pinpoints": [[336]]}, "image_grid_pinpoints must be pairs"),
    "tiles with class tokens": (HUB | {"model_type": "llava_next", "vision_feature_select_strategy": "full"}, "the class token"),
    "rope, old": (HUB | {"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, "type 'linear' is not supported"),
    "rope, new": (HUB | {"text_config": {"rope_parameters": {"rope_type": "yarn"}}}, "rope_type 'yarn' is not supported"),
    "text family": (HUB | {"text_config": {"model_type": "gemma"}}, "model_type 'gemma' is not supported, only llama or mistral or qwen2"),
    "vision family": (HUB | {"vision_config": {"model_type": "siglip_vision_model"}}, "model_type 'siglip_vision_model'"),
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
    "projector": (layouts.original_json(ORIGINAL_7B, mm_projector_type="linear"), "mm_projector_type 'linear'"),
    "marks": (layouts.original_json(ORIGINAL_7B, mm_use_im_start_end=True), "mm_use_im_start_end True"),
    "tower": (layouts.original_json(ORIGINAL_7B, mm_vision_tower="openai/other"), "mm_vision_tower 'openai/other' is not known"),
    "no tower": (layouts.original_json(ORIGINAL_7B, mm_vision_tower=None), "mm_vision_tower must name"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line_that_names_file_and_key(tmp_path, what):
    raw, words = REFUSED[what]
    with pytest.raises(UserError, match=words) as told:
        read(tmp_path, raw)
    assert "config.json" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_file_that_is_no_json_object(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="config.json"):
        read_config(tmp_path)
