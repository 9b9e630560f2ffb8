"""Loading: every set of names, full-size headers, dtypes, the hub, and each way in which a checkpoint can be broken."""

import json
import struct
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import layouts
import weights
from layouts import HF_7B, HF_13B, NAMES, NEXT_7B, NEXT_MISTRAL, ORIGINAL_7B, ORIGINAL_MISTRAL, ORIGINAL_NEXT, TINY
from pruning.base import UserError

CHECKPOINT = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"


def tiny(folder, layout="A", c=TINY, shards=1, **more):
    """A tiny checkpoint folder in the given layout; `more` are tensors added to it."""
    config = layouts.original_json(c) if c.original else layouts.config_json(c)
    return layouts.write(folder, layouts.renamed(layouts.random(c), c, layout) | more, config, shards)


def original(folder):
    """TINY as the original LLaVA stores it; the sizes of its tower stand in a folder inside."""
    (folder / "tiny-clip").mkdir(parents=True, exist_ok=True)
    vision = asdict(TINY.vision) | {"model_type": "clip_vision_model"}
    (folder / "tiny-clip" / "config.json").write_text(json.dumps(vision))
    return replace(TINY, original=True, vision_tower="openai/tiny-clip")


def change(folder, edit, file=CHECKPOINT):
    """Rewrite a safetensors file after `edit` changed its tensors."""
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file)


def equal(model, state):
    """Whether the model's parameters are these tensors, no more and no less."""
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name].to(own[name].dtype)) for name in own)


# Names

@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", NAMES)
def test_every_layout_gives_the_same_model(tmp_path, layout, shards):
    model = weights.load(tiny(tmp_path, layout, original(tmp_path) if layout == "E" else TINY, shards))
    assert equal(model, layouts.random(TINY))
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("place", ["beside", "absolute"])
@pytest.mark.parametrize("prefix, layers", [("vision_model.", "encoder."), ("", "encoder.")])
def test_original_with_its_tower_in_another_folder(tmp_path, place, prefix, layers):
    """A whole CLIP model or its vision half, of transformers 4 or 5; in float32, where the decoder is float16."""
    folder, clip = tmp_path / "llava", tmp_path / "tiny-clip"
    state = layouts.random(TINY)
    vision = dict(zip(layouts.vision_shapes(TINY.vision, prefix, layers),
                      (state[name] for name in layouts.vision_shapes(TINY.vision, "vision_tower.", ""))))
    other = {"text_model.final_layer_norm.weight": torch.ones(3), "visual_projection.weight": torch.ones(2, 2),
             "text_projection.weight": torch.ones(2, 2), "logit_scale": torch.tensor(1.0),
             "vision_model.embeddings.position_ids": torch.arange(5)}
    layouts.write(clip, vision | (other if prefix else {}), asdict(TINY.vision) | {"model_type": "clip_vision_model"})
    rest = {name: t.half() for name, t in layouts.renamed(state, TINY, "E").items() if "vision_tower" not in name}
    named = str(clip) if place == "absolute" else "openai/tiny-clip"
    layouts.write(folder, rest, layouts.original_json(replace(TINY, vision_tower=named, dtype="float16")))
    model = weights.load(folder)
    assert equal(model, state) and {p.dtype for p in model.parameters()} == {torch.float16}


def test_original_llava_next_needs_its_own_tower(tmp_path):
    """It was trained on: the CLIP model that the config names is another one, and is not put in its place."""
    c = replace(original(tmp_path), image_grid_pinpoints=[[28, 56], [56, 28]], image_aspect_ratio="anyres")
    state = layouts.renamed(layouts.random(c), c, "E")
    clip = {name: state.pop(name) for name in list(state) if "vision_tower" in name}
    tower = {name.partition("vision_tower.vision_tower.")[2]: tensor for name, tensor in clip.items()}
    layouts.write(tmp_path / "tiny-clip", tower, asdict(TINY.vision) | {"model_type": "clip_vision_model"})
    layouts.write(tmp_path / "llava", state, layouts.original_json(c))
    with pytest.raises(UserError, match="vision_tower.* missing"):
        weights.load(tmp_path / "llava")
    layouts.write(tmp_path / "llava", state | clip, layouts.original_json(c))
    assert equal(weights.load(tmp_path / "llava"), layouts.random(c))


def test_what_transformers_saves_is_loaded(tmp_path, transformers):
    config = transformers.LlavaConfig(text_config=dict(asdict(TINY.text), model_type="llama"),
                                      vision_config=asdict(TINY.vision), image_token_index=90)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = transformers.LlavaForConditionalGeneration(config)
    reference.save_pretrained(tmp_path)
    model = weights.load(tmp_path)
    saved = dict(reference.state_dict())
    pairs = zip(layouts.shapes(TINY, "D"), layouts.shapes(TINY, "minivlm"))
    assert equal(model, {parameter: saved.pop(name) for name, parameter in pairs}) and not saved


def test_constants_of_old_versions_are_ignored(tmp_path):
    constants = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
                 "image_newline": torch.ones(48),
                 "vision_tower.vision_model.embeddings.position_ids": torch.arange(5)[None]}
    assert equal(weights.load(tiny(tmp_path, "A", **constants)), layouts.random(TINY))


# Full size: exact names, shapes and files of the released checkpoints, without their content

ROTARY = {f"model.layers.{l}.self_attn.rotary_emb.inv_freq": (64,) for l in range(32)}
RELEASED = {                                       # tensors, bytes
    "llava-hf/llava-1.5-7b-hf": (HF_7B, layouts.shapes(HF_7B, "A"), 14_126_854_144),
    "llava-hf/llava-1.5-13b-hf": (HF_13B, layouts.shapes(HF_13B, "A"), 26_702_989_312),
    "transformers 4.52": (HF_7B, layouts.shapes(HF_7B, "B"), 14_126_854_144),
    "transformers 5, saved": (HF_7B, layouts.shapes(HF_7B, "C"), 14_126_854_144),
    "transformers 5": (HF_7B, layouts.shapes(HF_7B, "D"), 14_126_854_144),
    "liuhaotian/llava-v1.5-7b": (ORIGINAL_7B, layouts.shapes(ORIGINAL_7B, "E", vision=False) | ROTARY, 13_518_798_848),
    "tower inside": (ORIGINAL_7B, {"model.image_newline": (4096,)} | layouts.shapes(ORIGINAL_7B, "E"), 14_125_813_760),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (NEXT_7B, layouts.shapes(NEXT_7B, "A"), 14_126_862_336),
    "llava-hf/llava-v1.6-mistral-7b-hf": (NEXT_MISTRAL, layouts.shapes(NEXT_MISTRAL, "A"), 15_133_495_296),
    "transformers 5, LLaVA-NeXT": (NEXT_7B, layouts.shapes(NEXT_7B, "D"), 14_126_862_336),
    "liuhaotian/llava-v1.6-vicuna-7b": (ORIGINAL_NEXT, layouts.shapes(ORIGINAL_NEXT, "E"), 14_125_813_760),
    "liuhaotian/llava-v1.6-mistral-7b": (ORIGINAL_MISTRAL, layouts.shapes(ORIGINAL_MISTRAL, "E"), 15_132_446_720),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_and_shapes(tmp_path, name):
    """Each parameter is one stored tensor of its shape, and each stored tensor a parameter or a constant."""
    c, tensors, size = RELEASED[name]
    config = layouts.original_json(c) if c.original else layouts.config_json(c)
    assert layouts.write_sparse(tmp_path / "llava", tensors, config) == size
    clip = layouts.vision_shapes(c.vision, "vision_model.", "encoder.")
    layouts.write_sparse(tmp_path / "clip-vit-large-patch14-336", clip,
                         {"model_type": "clip", "vision_config": layouts.config_json(c)["vision_config"]})
    model = weights.skeleton(tmp_path / "llava")
    assert model.config == replace(c, vision_tower=model.config.vision_tower)
    assigned = weights.find(model, tmp_path / "llava")
    shapes = layouts.shapes(c, "minivlm")
    assert {name: tensor.shape for name, tensor in assigned.items()} == shapes
    assert model.state_dict().keys() == shapes.keys()
    in_llava = sum(tensor.file.parent.name == "llava" for tensor in assigned.values())
    assert in_llava == len(set(tensors) - set(ROTARY) - (set() if c.image_grid_pinpoints else {"model.image_newline"}))


def test_loading_takes_no_memory(tmp_path):
    """8 of the 7B's layers, 4.4 GB in 16 bits: nothing is copied, and no page is read that is not used."""
    eight = replace(HF_7B, text=replace(HF_7B.text, num_hidden_layers=8))
    size = layouts.write_sparse(tmp_path, layouts.shapes(eight, "A"), layouts.config_json(eight))
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(weights.__file__).parent)!r})
import weights
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
model = weights.load({str(tmp_path)!r})
assert sum(p.numel() * p.itemsize for p in model.parameters()) == {size}
print(peak() - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 0.05 * size


# dtypes and the head

@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_dtype_is_kept_and_any_can_be_asked_for(tmp_path, dtype):
    """Whatever config.json says: the files decide."""
    layouts.write(tmp_path, layouts.renamed(layouts.random(TINY, dtype), TINY, "A"), layouts.config_json(TINY))
    assert {p.dtype for p in weights.load(tmp_path).parameters()} == {dtype}
    assert {p.dtype for p in weights.load(tmp_path, "bfloat16").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in weights.load(tmp_path, torch.float32).parameters()} == {torch.float32}


@pytest.mark.parametrize("named, kept", [("bfloat16", torch.bfloat16), ("float32", torch.float16)])
def test_of_several_dtypes_the_one_in_the_config_or_the_commonest(tmp_path, named, kept):
    """Norms in bfloat16, all else in float16; float32 is in no file."""
    state = {name: t.to(torch.bfloat16 if "norm" in name else torch.float16)
             for name, t in layouts.renamed(layouts.random(TINY), TINY, "A").items()}
    layouts.write(tmp_path, state, layouts.config_json(replace(TINY, dtype=named)))
    assert {p.dtype for p in weights.load(tmp_path).parameters()} == {kept}


def test_tensors_are_views_of_the_file(tmp_path):
    """What is written into a mapped file afterwards shows in the model: there is no second copy."""
    model = weights.load(tiny(tmp_path))
    with open(tmp_path / CHECKPOINT, "r+b") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(start - 8))
        file.seek(start + header[EMBEDDING]["data_offsets"][0])
        file.write(struct.pack("<f", 7.0))
    assert model.language_model.embed_tokens.weight[0, 0] == 7.0


@pytest.mark.parametrize("where", ["top", "text"])
def test_tied_head_is_the_embedding(tmp_path, where):
    state = layouts.renamed(layouts.random(TINY), TINY, "A")
    del state[HEAD]
    config = layouts.config_json(TINY)
    (config if where == "top" else config["text_config"])["tie_word_embeddings"] = True
    model = weights.load(layouts.write(tmp_path, state, config))
    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, layouts.random(TINY)["language_model.embed_tokens.weight"])


def test_stored_head_is_trusted_though_the_config_ties(tmp_path):
    c = replace(TINY, text=replace(TINY.text, tie_word_embeddings=True))
    assert equal(weights.load(tiny(tmp_path, "A", c)), layouts.random(TINY))


def test_unused_top_of_the_tower_may_be_missing(tmp_path):
    """LLaVA reads the input of the last layer: neither this layer nor the norm after it runs."""
    without("post_layernorm", ".encoder.layers.3.")(tiny(tmp_path))
    model = weights.load(tmp_path)
    assert len(model.vision_tower.layers) == 4 and not any(t.is_meta for t in model.parameters())
    pixels = torch.ones(1, 3, 28, 28)
    assert model.features(pixels)[0].shape == (4, 32)


# What else a folder tells

def test_eos_of_generation_config_then_config(tmp_path):
    tiny(tmp_path)
    assert weights.load(tmp_path).eos == ()
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert weights.load(tmp_path).eos == (7,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert weights.load(tmp_path).eos == (2, 9)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    model = weights.load(str(tmp_path))
    assert model.eos == (2,) and model.folder == tmp_path and model.tokenizer is None and model.processor.size == 28


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("eos", ["2", 2.0, True, [2, "3"], {}, [[2]], 10 ** 20, []])
def test_eos_of_a_wrong_kind_is_one_line(tmp_path, file, eos):
    tiny(tmp_path)
    raw = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    (tmp_path / file).write_text(json.dumps(raw | {"eos_token_id": eos}))
    with pytest.raises(UserError, match=f"{file}: eos_token_id must be a number or null, and is"):
        weights.load(tmp_path)


def test_generation_config_of_a_wrong_kind_is_one_line(tmp_path):
    tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"text_config": [1]}')
    with pytest.raises(UserError, match="generation_config.json: text_config must be an object"):
        weights.load(tmp_path)


# Broken checkpoints: how, and what must be said

def edit_json(folder, name, edit):
    raw = json.loads((folder / name).read_text())
    edit(raw)
    (folder / name).write_text(json.dumps(raw))


def point(folder, to):
    edit_json(folder, INDEX, lambda raw: raw["weight_map"].update({HEAD: to}))


def duplicate(folder):
    holder = folder / json.loads((folder / INDEX).read_text())["weight_map"][EMBEDDING]
    other = next(shard.name for shard in folder.glob("*.safetensors") if shard != holder)
    change(folder, lambda tensors: tensors.update({EMBEDDING: load_file(holder)[EMBEDDING]}), other)


def only(folder, *names):
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    for name in names:
        (folder / name).write_bytes(b"PK")


def cut(folder, name, to):
    path = folder / name
    path.write_bytes(path.read_bytes()[:to])


SHARD = "model-00002-of-00003.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0"


def without(*parts):
    """Damage: the tensors whose names contain one of these are missing."""
    def damage(folder):
        change(folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if any(x in key for x in parts)])
    return damage


def resized(section, **sizes):
    """Damage: config.json says other sizes in this section."""
    return lambda folder: edit_json(folder, "config.json", lambda config: config[section].update(sizes))


def one_of_two_unused_layers(folder):
    """LLaVA reads the layer before the last two, and only one of these is stored."""
    without(".encoder.layers.3.", "post_")(folder)
    edit_json(folder, "config.json", lambda config: config.update(vision_feature_layer=-3))


def shard_without(folder, name):
    """The name of a shard in which this tensor is not."""
    return next(path.name for path in folder.glob("*.safetensors") if name not in load_file(path))


BROKEN = {                                         # (shards, damage, message)
    "missing key": (1, lambda f: change(f, lambda t: t.pop(HEAD)), HEAD + " is missing"),
    "missing keys": (1, lambda f: change(f, lambda t: (t.pop(HEAD), t.pop(EMBEDDING))), "and 1 more are missing"),
    "spare key": (1, lambda f: change(f, lambda t: t.update(spare=torch.ones(1))), "spare is no part of this model"),
    "misspelt key": (1, lambda f: change(f, lambda t: t.update(head=t.pop(HEAD))),
                     HEAD + " is missing, head is no part"),
    "half of an unused layer": (1, without("vision_model.post_layernorm.bias"), "post_layernorm.bias is missing"),
    "used vision layer": (1, without(".encoder.layers.2."),
                          r"vision_tower.vision_model.encoder.layers.2.* are missing"),
    "fewer layers in the config": (1, resized("text_config", num_hidden_layers=2),
                                   r"language_model.model.layers.2.* no part of this model"),
    "more layers of the tower in the config": (1, resized("vision_config", num_hidden_layers=5),
                                               r"encoder.layers.4.* are missing"),
    "fewer layers of the tower in the config": (1, resized("vision_config", num_hidden_layers=3),
                                                r"encoder.layers.3.* no part of this model"),
    "more layers of the decoder in the config": (1, resized("text_config", num_hidden_layers=9),
                                                 r"language_model.model.layers.3.* are missing"),
    "last layer of the tower, but not the norm after it": (1, without(".encoder.layers.3."),
                                                           r"encoder.layers.3.* are missing"),
    "one of two unused layers": (1, one_of_two_unused_layers, r"encoder.layers.3.* are missing"),
    "shape": (1, lambda f: change(f, lambda t: t.update({"multi_modal_projector.linear_1.bias": torch.ones(47)})),
              r"linear_1.bias is \(47,\), where config.json asks for \(48,\)"),
    "vocabulary": (1, resized("text_config", vocab_size=95),
                   r"lm_head.weight is \(96, 48\), where config.json asks for \(95, 48\) \(vocab_size, hidden_size\)"),
    "integers": (1, lambda f: change(f, lambda t: t.update({HEAD: t[HEAD].to(torch.int8)})), f"{HEAD} is stored as I8"),
    "truncated": (1, lambda f: cut(f, CHECKPOINT, -100), CHECKPOINT + " is truncated"),
    "truncated shard": (3, lambda f: cut(f, SHARD, -1), SHARD + " is truncated"),
    "empty file": (1, lambda f: cut(f, CHECKPOINT, 0), CHECKPOINT + " is truncated"),
    "a pointer to a large file": (1, lambda f: (f / CHECKPOINT).write_text(POINTER),
                                  "model.safetensors is truncated or no safetensors file"),
    "missing shard": (3, lambda f: (f / SHARD).unlink(), SHARD + " is missing"),
    "missing index": (3, lambda f: (f / INDEX).unlink(), "neither model.safetensors nor " + INDEX),
    "broken index": (3, lambda f: cut(f, INDEX, 40), INDEX + " cannot be read as JSON"),
    "empty index": (3, lambda f: (f / INDEX).write_text("{}"), INDEX + " has no weight_map"),
    "above the folder": (3, lambda f: point(f, "../" + SHARD), "outside the folder, for .* to '../" + SHARD),
    "absolute": (3, lambda f: point(f, str(f / SHARD)), "outside the folder"),
    "number in the index": (3, lambda f: point(f, 5), "outside the folder, for .* to 5"),
    "index against shards": (3, lambda f: point(f, shard_without(f, HEAD)), HEAD + " is not in it"),
    "twice": (3, duplicate, EMBEDDING + " is in two files, model-"),
    "no config": (1, lambda f: (f / "config.json").unlink(), "config.json is not there"),
    "empty folder": (1, lambda f: (only(f), (f / "config.json").unlink()), "config.json is not there"),
    "config alone": (1, only, "no model.safetensors"),
    "pickle": (1, lambda f: only(f, "pytorch_model.bin"), "only pytorch_model.bin, and pickles are not read.*convert"),
    "pickled shards": (1, lambda f: only(f, "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
                       "only pytorch_model"),
    "torch file": (1, lambda f: only(f, "model.pt"), "only model.pt"),
    "wrong family": (1, lambda f: edit_json(f, "config.json", lambda c: c.update(model_type="bert")),
                     "model_type 'bert'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoint_is_one_line(tmp_path, what):
    shards, damage, words = BROKEN[what]
    damage(tiny(tmp_path, shards=shards))
    with pytest.raises(UserError, match=words) as error:
        weights.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


ODD = [None, True, False, 0, 1, 3, -1, 10 ** 9, 10 ** 20, 1.5, 1e308, "", "x", "\ud800\n\0", "y" * 5000, [], [1],
       [[1]], [None], {}, {"a": 1}]
FILES = {                                          # the keys that are tried, in the file and in its sections
    "config.json": ("model_type", "image_token_index", "vision_feature_layer", "image_grid_pinpoints", "text_config",
                    "vision_config",
                    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                    "image_size", "patch_size",
                    "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "sliding_window", "torch_dtype",
                    "tie_word_embeddings",
                    "attention_bias", "eos_token_id", "pad_token_id", "architectures"),
    "generation_config.json": ("eos_token_id", "text_config"),
    "preprocessor_config.json": ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor",
                                 "do_resize", "do_normalize",
                                 "do_center_crop", "image_processor_type"),
    "processor_config.json": ("image_processor",), INDEX: ("weight_map", "metadata")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("whole"), shards=2)


@given(st.sampled_from([(file, key) for file, keys in FILES.items() for key in keys]), st.sampled_from(ODD),
       st.sampled_from([None, "text_config", "vision_config"]))
def test_any_value_is_read_or_refused_in_one_line(whole, place, value, section):
    """A value of any kind at any key: the folder loads and reads a picture, or a sentence says why not."""
    file, key = place
    before = (whole / file).read_text() if (whole / file).exists() else None
    raw = json.loads(before or "{}")
    raw.get(section, raw)[key] = value
    (whole / file).write_text(json.dumps(raw))
    try:
        model = weights.load(whole)
        assert model.processor.pixels(Image.new("RGB", (40, 30))).shape == (1, 3, 28, 28)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 500
    finally:
        (whole / file).unlink() if before is None else (whole / file).write_text(before)


def test_head_that_is_not_tied_must_be_there(tmp_path):
    change(tiny(tmp_path, "B"), lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=": lm_head.weight is missing"):
        weights.load(tmp_path)


@pytest.mark.parametrize("name", ["llava-v1.5-7b", "models--liuhaotian--llava-v1.5-7b/snapshots/abc"])
def test_original_pickles_have_a_twin_on_the_hub(tmp_path, name):
    """And a folder that only resembles it, the adapter's, has none."""
    only(tiny(tmp_path / name), "pytorch_model.bin")
    with pytest.raises(UserError, match="or use llava-hf/llava-1.5-7b-hf, the same weights"):
        weights.load(tmp_path / name)
    only(tiny(tmp_path / "llava-v1.5-7b-lora"), "adapter_model.bin")
    with pytest.raises(UserError, match="convert") as error:
        weights.load(tmp_path / "llava-v1.5-7b-lora")
    assert "llava-hf" not in str(error.value)


@pytest.mark.parametrize("source, words", [
    ("nowhere", "nowhere: there is no such folder"),
    ("a/b/c", "no hub id"),
    ("../x/y", "no hub id"),
    ("/nowhere/at/all", "no hub id"),
    (__file__, "is a file"),
])
def test_path_that_is_no_folder(source, words):
    with pytest.raises(UserError, match=words):
        weights.load(source)


@pytest.mark.parametrize("options, words", [
    ({"dtype": "int8"}, "dtype 'int8'"),
    ({"dtype": torch.int64}, "dtype torch.int64"),
    ({"device": "abacus"}, "device 'abacus'"),
    ({"device": "cuda:99"}, "device 'cuda:99'"),
])
def test_dtype_and_device_that_are_not_there(tmp_path, options, words):
    with pytest.raises(UserError, match=words) as error:
        weights.load(tiny(tmp_path), **options)
    assert "\n" not in str(error.value)


# The hub

class Hub:
    """In place of huggingface_hub.snapshot_download: repositories in a folder, some of them already in the cache."""

    def __init__(self, folder, cached=(), online=True):
        self.folder, self.cached, self.online, self.asked = folder, set(cached), online, []

    def __call__(self, name, allow_patterns, local_files_only):
        self.asked.append("cache" if local_files_only else "network")
        self.patterns = allow_patterns
        if local_files_only and name not in self.cached:
            raise FileNotFoundError("no cached snapshot")
        if not local_files_only and not self.online:
            raise ConnectionError("cannot reach the server\nDetails: ...")
        self.cached.add(name)
        return str(self.folder / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository, llava-hf/tiny."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    (tiny(tmp_path / "llava-hf" / "tiny", shards=3) / "tokenizer_config.json").write_text("{}")
    stand_in = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    return stand_in


def test_second_run_needs_no_network(hub):
    assert equal(weights.load("llava-hf/tiny"), layouts.random(TINY))
    hub.online = False
    assert weights.load("llava-hf/tiny").folder == hub.folder / "llava-hf/tiny"
    assert hub.asked == ["cache", "network", "cache"]


def test_only_weights_json_and_tokenizer_are_fetched(hub):
    from fnmatch import fnmatch
    weights.load("llava-hf/tiny")
    fetched = lambda name: any(fnmatch(name, pattern) for pattern in hub.patterns)
    read = [SHARD, INDEX, "config.json", "tokenizer.json", "tokenizer.model", "preprocessor_config.json",
            "vocab.json", "merges.txt", "added_tokens.json", "chat_template.json", "chat_template.jinja"]
    assert all(map(fetched, read))
    assert not any(map(fetched, ["pytorch_model.bin", "model.pt", "training_args.bin", "README.md", "modeling.py"]))


@pytest.mark.parametrize("lost", [SHARD, INDEX, "config.json", "tokenizer_config.json"])
def test_interrupted_download_goes_on(hub, lost):
    """Its folder is in the cache, and the cache gives it: it must not be taken for the whole."""
    hub.cached = {"llava-hf/tiny"}
    (hub.folder / "llava-hf/tiny" / lost).unlink()
    if lost == "tokenizer_config.json":
        weights.load("llava-hf/tiny")
    else:
        with pytest.raises(UserError, match=lost):                     # the stand-in brings nothing new
            weights.load("llava-hf/tiny")
    assert hub.asked == ["cache", "network"]


def test_hub_out_of_reach_is_one_line(hub):
    hub.online = False
    message = "llava-hf/tiny: there is no such folder, and the hub does not give it: cannot reach"
    with pytest.raises(UserError, match=message) as error:
        weights.load("llava-hf/tiny")
    assert "\n" not in str(error.value)


def test_real_hub_client_without_a_network_is_one_line(tmp_path, monkeypatch):
    """The client itself, offline: what it raises becomes the same line."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="nobody/nothing: there is no such folder, and the hub does not give it"):
        weights.load("nobody/nothing")


def test_tower_named_by_the_config_is_fetched(hub):
    """An original with openai/clip-vit-large-patch14-336 nowhere near: its CLIP comes from the hub."""
    c = replace(ORIGINAL_7B, text=TINY.text)
    folder = hub.folder / "mine" / "llava"
    layouts.write_sparse(folder, layouts.shapes(c, "E", vision=False), layouts.original_json(c))
    tower = layouts.vision_shapes(c.vision, "vision_model.", "encoder.")
    layouts.write_sparse(hub.folder / c.vision_tower, tower, {}, "F32")
    assigned = weights.find(weights.skeleton(folder), folder)
    assert hub.asked == ["cache", "network"]
    assert assigned["vision_tower.pre_layrnorm.bias"].file.parent == hub.folder / c.vision_tower
