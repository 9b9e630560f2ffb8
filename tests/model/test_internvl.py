"""InternVL: tiles, pixel shuffle, its prompts and tokenizers, OpenGVLab's fused tensors, and methods on its tokens."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import layouts
import run
import tiny_internvl
import weights
from build import close
from caches import replay, same_cache
from live import live
from minivlm.families.internvl import pixel_shuffle
from minivlm.families.internvl_config import InternVLConfig, InternViTConfig
from minivlm.families.internvl_image import InternVLProcessor
from minivlm.families.registry import read_config
from minivlm.io.text.chatml import CHATML
from minivlm.io.text.tokenizer import Tokenizer, next_turn, prompt
from minivlm.lab.cli import session
from minivlm.lab.cli.options import build, check
from minivlm.lab.cost import count, shapes
from minivlm.lab.draw import draw
from minivlm.lab.draw.view import View
from minivlm.lab.train import save_checkpoint
from pruning import METHODS, READINGS
from pruning.base import UserError
from paths import IMAGES, PARITY
from tiny import MARK, Chosen, built, has_keep, ids, internvl, picture, prefill
from tiny_internvl import MARKS

HF = PARITY / "internvl_qwen2"
ORIGINAL = PARITY / "internvl_internlm2"
SIX_B = PARITY / "internvl_6b_original"          # a tower like InternViT-6B's
PICTURES = sorted(IMAGES.glob("*.png"))


# --- tiles ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size, grid", [
    ((448, 448), (1, 1)),                # 1 x 1, 2 x 2 and 3 x 3 have its shape; 4 tiles of twice its area are too large
    ((900, 900), (2, 2)),                # 4 tiles have 0.99 of its area, 9 have 2.23 and are too large
    ((950, 950), (2, 2)),                # 9 tiles have 2.002 of its area
    ((951, 951), (3, 3)),                # and 1.997 of this one
    ((1000, 500), (2, 1)),
    ((500, 1000), (1, 2)),
    ((640, 480), (4, 3)),
    ((5000, 100), (12, 1)),
    ((1, 999), (1, 12)),
    ((700, 400), (2, 1)),                # 1.75 is as far from 2 : 1 as from 3 : 2, whose 6 tiles are too large
    ((1400, 800), (4, 2)),               # 6 tiles are not too large for this one, nor are the 8 of 4 : 2
])
def test_grid(size, grid):
    """Of all grids of 1 to 12 tiles that whose shape is nearest; of equals the largest of less than twice the area."""
    assert InternVLProcessor(448).grid(*size) == grid


@live
def test_grid_of_every_size():
    """A thousand sizes, shapes from 1 : 30 to 30 : 1, and those that lie between two grids: as transformers tiles
    them."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
    generator = torch.Generator().manual_seed(0)
    sizes = (torch.rand(1000, 2, generator=generator) * 7.6).exp().long().clamp(min=1).tolist()
    sizes += [(n * a, n * b) for n in (1, 100, 500) for a in range(1, 8) for b in range(1, 8)]
    for least, most in ((1, 12), (1, 6), (3, 5)):
        ours = InternVLProcessor(448, min_tiles=least, max_tiles=most)
        for width, height in sizes:
            expected = get_optimal_tiled_canvas((height, width), (448, 448), least, most)
            assert ours.grid(width, height) == expected, (width, height)


def test_tiles_row_by_row_and_the_thumbnail_last():
    """Six squares of one colour each, 3 x 2: every tile has its own, the thumbnail all of them."""
    photo = Image.new("RGB", (6, 4))
    for n in range(6):
        photo.paste((40 * n, 0, 0), (2 * (n % 3), 2 * (n // 3), 2 * (n % 3) + 2, 2 * (n // 3) + 2))
    processor = InternVLProcessor(4, mean=(0, 0, 0), std=(1, 1, 1), resample=Image.Resampling.NEAREST)
    pixels = processor.pixels(photo)
    assert processor.grid(6, 4) == (3, 2) and pixels.shape == (7, 3, 4, 4)
    assert [round(float(tile[0].mean() * 255)) for tile in pixels[:6]] == [0, 40, 80, 120, 160, 200]
    assert (pixels[:6].flatten(2).std(dim=2) < 1e-6).all() and pixels[6, 0].unique().numel() == 6
    boxes = processor.box(6, 4)
    assert len(boxes) == 7 and (boxes[1], boxes[3], boxes[6]) == ((2, 0, 4, 2), (0, 2, 2, 4), (0, 0, 6, 4))


def test_one_tile_needs_no_thumbnail():
    square = Image.new("RGB", (10, 10))
    assert InternVLProcessor(28).pixels(square).shape == (1, 3, 28, 28)
    assert InternVLProcessor(28).box(10, 10) == (0, 0, 10, 10)
    assert len(InternVLProcessor(28, thumbnail=False).pixels(Image.new("RGB", (20, 10)))) == 2


@live
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_pixels(path):
    """To the bit what transformers' processor gives that works with Pillow."""
    _, processor = tiny_internvl.tools(tiny_internvl.CASES["internvl_qwen2"])
    with Image.open(path) as photo:
        theirs = processor(photo, return_tensors="pt").pixel_values
    assert weights.load(HF).processor.pixels(path).equal(theirs)


def test_processor_files(tmp_path):
    """preprocessor_config.json of the -hf layout; config.json of the other, which does not read the first; neither."""
    config = InternVLConfig(InternViTConfig(image_size=28), max_tiles=4, use_thumbnail=False)
    assert InternVLProcessor.from_folder(tmp_path, config) == InternVLProcessor(28, max_tiles=4, thumbnail=False)
    stored = dict(image_processor_type="GotOcr2ImageProcessorFast", size=dict(height=28, width=28),
                  image_mean=[0.5] * 3, max_patches=3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    assert InternVLProcessor.from_folder(tmp_path, config) == InternVLProcessor(28, mean=(.5, .5, .5), max_tiles=3)
    processor = InternVLProcessor.from_folder(tmp_path, replace(config, original=True))
    assert processor == InternVLProcessor(28, max_tiles=4, thumbnail=False)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored | dict(max_patches=None)))
    assert InternVLProcessor.from_folder(tmp_path, config).max_tiles == 12
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored | dict(size=dict(height=56, width=56))))
    with pytest.raises(UserError, match="makes pixels of side 56, but config.json's image_size is 28"):
        InternVLProcessor.from_folder(tmp_path, config)


# --- pixel shuffle and the prompt -------------------------------------------------------------------------------------

def test_pixel_shuffle():
    """Patches 0 .. 15 of a 4 x 4 grid, two channels of which the second is negative. The first visual token consists of

           0  1 | 2  3        patches 0, 1 and, below them, 4, 5; the second, to its right, of 2, 3, 6, 7; the third,
           4  5 | 6  7        in the second row, of 8, 9, 12, 13. (Version 1 has the second and the third exchanged.)
    """
    patches = torch.arange(16.)[None, :, None] * torch.tensor([1., -1.])           # (1, 16, 2)
    joined = pixel_shuffle(patches)
    assert joined.shape == (1, 4, 8) and joined[0, 0].tolist() == [0, 0, 1, -1, 4, -4, 5, -5]
    assert joined[0, :, ::2].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_places_are_on_the_shuffled_grid():
    """Two images of three and one tiles of 4 x 4 patches: 2 x 2 visual tokens a tile, tiles counted over both."""
    model = internvl(layers=2)
    tokens = model.embed(ids(3, MARK, 2, MARK, 1), [picture(model, tiles=3), picture(model, 1)])
    assert tokens.grid.tolist() == [[t, row, column] for t in range(4) for row in range(2) for column in range(2)]
    assert tokens.visual.tolist() == [*range(3, 15), *range(17, 21)]
    assert tokens.source.tolist() == list(range(16))
    assert model.visual_tokens(picture(model, tiles=3)) == 12


def test_features_of_a_tile_are_its_own():
    """The features of a tile do not depend on the other tiles, and stand in the order of the pixels."""
    model = internvl(layers=2)
    pixels = picture(model, tiles=3)
    close(model.features(pixels)[0][4:8], model.features(pixels[1:2])[0], 1e-6)


def test_trace_counts_tiles():
    """Three tiles, then one: the trace has the places of all, and the tokens of each image."""
    model = internvl(layers=4)
    pruner = Chosen({1: [0, 5, 13]})
    *_, trace = prefill(model, ids(1, MARK, MARK, 2), [picture(model, tiles=3), picture(model, 1)], pruner)
    assert trace.images == [range(0, 12), range(12, 16)]
    assert trace.grid[trace.steps[0].kept].tolist() == [[0, 0, 0], [1, 0, 1], [3, 0, 1]]
    assert trace.visual == [16, 3, 3, 3]


# --- methods ----------------------------------------------------------------------------------------------------------

PROMPT = ids(4, MARK, 6)
RUNNING = [
    name
    for name in METHODS
    if METHODS[name].site != "vision" and not built(name).preconditions & {"calibration", "training"}
]
DROPPING = [name for name in RUNNING if built(name).laws >= {"select", "ordered"} and not built(name).mask_at(32)
            and built(name).site == "decoder" and built(name).reduce_at(32)]


@pytest.mark.parametrize("name", RUNNING)
def test_every_method_of_the_other_sites_runs_on_tiles(name):
    """Three tiles, 12 visual tokens, half of them kept: the model answers, and goes on."""
    model = internvl()
    pruner = built(name)
    check(pruner, model)
    logits, cache, trace = prefill(model, PROMPT, [picture(model, tiles=3)], pruner)
    assert logits.isfinite().all()
    assert model.step(ids(3), cache).isfinite().all()
    assert trace.N == 12
    assert name == "none" or trace.visual[-1] < 12


@pytest.mark.parametrize("name", DROPPING)
def test_dropped_equals_masked(name):
    """As in test_equivalence, on tiles: the cache, positions and masks of what is left are right."""
    model = internvl()
    pruner = built(name)
    images = [picture(model, tiles=3)]
    logits, cache, trace = prefill(model, PROMPT, images, pruner)
    logits_masked, cache_masked, masked = prefill(model, PROMPT, images, replay(pruner, trace, drop=False))
    assert masked.visual == trace.visual
    assert trace.tokens[-1] < trace.tokens[0]
    close(logits, logits_masked, 1e-4)
    close(model.step(ids(2), cache), model.step(ids(2), cache_masked), 1e-4)
    same_cache(cache, cache_masked)


@pytest.mark.parametrize("name", [name for name in DROPPING if has_keep(name)] + ["divprune"])
def test_keeping_all_is_the_unpruned_model(name):
    model = internvl()
    images = [picture(model, tiles=3)]
    close(prefill(model, PROMPT, images, built(name, 1.0))[0], prefill(model, PROMPT, images)[0], 1e-4)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.site == "vision"])
def test_methods_of_the_vision_site_are_refused(name):
    """One sentence that names the reading that runs, before anything does; and where nobody checked, another from the
    model."""
    remedy = f"use {name}_received, its reading without one, or" if f"{name}_received" in READINGS else "use"
    with pytest.raises(UserError, match="needs a vision tower with a class token, and InternVL's rates patches, .*"
                                        f": {remedy} a method of") as error:
        check(built(name), internvl())
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="needs a vision tower with a class token"):
        check(build(f"{name}+fastv", "4+2"), internvl())
    with pytest.raises(UserError, match="it has no|needs a class token, and InternVL's .* --readings|nothing to look at"):
        prefill(internvl(), PROMPT, [picture(internvl())], built(name))


RECEIVED = [name for name in READINGS if name.endswith("_received")]


@pytest.mark.parametrize("name", RECEIVED)
def test_readings_without_a_class_token_run(name):
    """Three tiles of 4 visual tokens, half of each kept, before the projector: the model answers, and every token left
    is traced to where it lay."""
    model = internvl()
    pruner = check(built(name), model)
    logits, cache, trace = prefill(model, PROMPT, [picture(model, tiles=3)], pruner)
    assert logits.isfinite().all() and model.step(ids(3), cache).isfinite().all()
    assert trace.N == 12 and trace.steps[0].site == "vision"
    assert trace.visual == [len(trace.kept)] * 32 and trace.visual[0] < 12
    assert trace.sources().shape == (trace.visual[0], 12)


def test_keeping_all_before_the_projector_is_the_unpruned_model():
    model = internvl()
    images = [picture(model, tiles=3), picture(model, 1)]
    prompt = ids(2, MARK, 1, MARK, 3)
    close(prefill(model, prompt, images, built("vispruner_received", 1.0))[0], prefill(model, prompt, images)[0], 1e-4)


def test_a_token_receives_what_its_patches_receive():
    """Tiles of 4 x 4 patches: token 1 of tile 0 is patches 2, 3, 6, 7. Its received attention is the sum of what the
    block's softmax over the tile, class token too, gives them, on average over the tile's 16 patches and over heads;
    its keys are theirs, one after the other."""
    model = internvl()
    pixels = picture(model, tiles=2)
    tokens = model.encode(pixels)
    states = model.vision_tower(pixels, 3)
    for l, view in [(2, tokens.before), (0, tokens.before.block(0))]:
        attn = model.vision_tower.layers[l].attention
        x = model.vision_tower.layers[l].layernorm_before(states[l])               # (2, 17, 32)
        query, key = attn.heads(attn.q_proj(x)), attn.heads(attn.k_proj(x))        # (2, 4, 17, 8) twice
        attention = (query @ key.mT / 8 ** .5).softmax(dim=-1)                     # (2, 4, 17, 17)
        of_patch = attention[:, :, 1:].mean(dim=(1, 2))[:, 1:]                     # (2, 16)
        received = view.received()                                                 # (8,)
        for token, tile, patches in [(1, 0, [2, 3, 6, 7]), (6, 1, [8, 9, 12, 13])]:
            close(received[token], of_patch[tile, patches].sum())
            of_token = key[tile, :, [1 + patch for patch in patches]]              # (4, 4, 8)
            close(view.key()[:, token], of_token.flatten(1))
        close(received.sum(), of_patch.sum())


# --- prompts and tokenizers -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("folder", [HF, ORIGINAL], ids=lambda folder: folder.name)
@pytest.mark.parametrize("template", CHATML)
@pytest.mark.parametrize("ended", [False, True])
def test_going_on_equals_reading_all_again(folder, template, ended):
    """First prompt, answer as generated (with or without its <|im_end|>), next turn: the ids of the whole
    conversation."""
    tokenizer = Tokenizer(folder, read_config(folder).image_token_index)
    answer = tokenizer.encode("The man.", bos=False) + [499] * ended
    going_on = tokenizer.encode(next_turn("Old?", ended, template=template), bos=False)
    together = tokenizer.encode(prompt([("What?", None)], template=template)) + answer + going_on
    assert together == tokenizer.encode(prompt([("What?", "The man."), ("Old?", None)], template=template))


@pytest.mark.parametrize("folder, start", [(HF, []), (ORIGINAL, [1])], ids=["qwen2", "internlm2"])
def test_image_mark(folder, start):
    """<image> is <img>, the mark that the model replaces, </img>; InternLM2 starts with <s>, Qwen2 with nothing."""
    tokenizer = Tokenizer(folder, read_config(folder).image_token_index)
    assert tokenizer.encode("<image>") == start + [501, 500, 502]
    assert tokenizer.image == 500 and tokenizer.pieces([501, 500, 502]) == ["<img>", "<image>", "</img>"]
    text = "How many?\n 你好  <b>"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded) == text
    stream = tokenizer.stream()
    assert "".join([stream.push(id) for id in encoded] + [stream.finish()]) == text


def test_tokens_that_the_config_renames_or_adds():
    """Pieces 498 and 499 of tokenizer.model have other names in tokenizer_config.json, and 500 .. 502 are not in it
    at all."""
    tokenizer = Tokenizer(ORIGINAL, 500)
    assert [tokenizer.fast.id_to_token(id) for id in MARKS] == list(MARKS.values())
    assert tokenizer.fast.get_vocab_size() == 503
    assert tokenizer.encode("<|im_end|>\n", bos=False)[0] == 499 and not tokenizer.shows(499)
    renamed = tiny_internvl.sentencepiece(renamed=False)[0][498:500]
    assert all(tokenizer.fast.token_to_id(piece) is None for piece in renamed)


@pytest.mark.parametrize("folder", [HF, ORIGINAL], ids=lambda folder: folder.name)
def test_end_of_an_answer(tmp_path, folder):
    """generation_config.json's; else <|im_end|>, and never </s>, which config.json names."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [499, 498]}))
    assert weights.load(tmp_path).eos == (499, 498)
    (tmp_path / "generation_config.json").unlink()
    assert weights.load(tmp_path).eos == (499,)


# --- OpenGVLab's layout -----------------------------------------------------------------------------------------------

def test_fused_tensors_are_split_by_their_groups():
    """Query heads 0 .. 3, key heads 0 and 1: the file has q0 q1 k0 v0 q2 q3 k1 v1, eight rows each. The tower has q,
    k, v."""
    stored, model = load_file(ORIGINAL / "model.safetensors"), weights.load(ORIGINAL)
    rows = stored["language_model.model.layers.1.attention.wqkv.weight"].split(8)
    attn, tower = model.language_model.layers[1].self_attn, model.vision_tower.layers[2].attention
    assert attn.q_proj.weight.equal(torch.cat([rows[i] for i in (0, 1, 4, 5)]))
    assert attn.k_proj.weight.equal(torch.cat([rows[2], rows[6]]))
    assert attn.v_proj.weight.equal(torch.cat([rows[3], rows[7]]))
    for kind in ("weight", "bias"):
        parts = stored[f"vision_model.encoder.layers.2.attn.qkv.{kind}"].split(32)
        for projection, part in zip((tower.q_proj, tower.k_proj, tower.v_proj), parts, strict=True):
            assert getattr(projection, kind).equal(part)


def native(state):
    """Our parameters under the names that they have inside transformers 5."""
    return {"model." + name.replace("tower.layers", "tower.encoder.layer"): value.clone()
            for name, value in state.items() if name != "lm_head.weight"}


def hub(state):
    """Under those of the hub's -hf files."""
    return {name.removeprefix("model.").replace("language_model.", "language_model.model.") if "vision" not in name
            else name.removeprefix("model."): value for name, value in native(state).items()}


def opengvlab(state):
    """OpenGVLab's with a Qwen2 decoder: that has transformers' names, tower and projector have their own."""
    renamed = native(state)
    decoder = {name: value for name, value in renamed.items() if "language_model" in name}
    tower = {name: value for name, value in renamed.items() if name not in decoder}
    return tiny_internvl.original_weights(tower, 4, 2) | {
        name.replace("model.language_model.", "language_model.model."): value for name, value in decoder.items()}


@pytest.mark.parametrize("names", [native, hub, opengvlab])
@pytest.mark.parametrize("shards", [1, 3])
def test_layouts_give_the_same_model(tmp_path, names, shards):
    """One checkpoint with a tied Qwen2 decoder under three sets of names: the same parameters to the bit."""
    state = weights.load(HF).state_dict()
    config = json.loads((HF / "config.json").read_text())
    if names is opengvlab:
        config = tiny_internvl.original_config(config) | {"llm_config": config["text_config"]}
    again = weights.load(layouts.write(tmp_path, names(state), config, shards)).state_dict()
    assert again.keys() == state.keys() and all(again[name].equal(value) for name, value in state.items())


RELEASED = {                                       # decoder, template, bytes
    "OpenGVLab/InternVL2-2B": (layouts.INTERNLM2_2B, "internlm2-chat", 4_411_508_736),
    "OpenGVLab/InternVL2-8B": (layouts.INTERNLM2_8B, "internlm2-chat", 16_150_730_752),
    "OpenGVLab/InternVL2_5-8B": (layouts.INTERNLM2_8B, "internvl2_5", 16_150_730_752),
    "OpenGVLab/InternVL2_5-8B-MPO-hf": (layouts.INTERNLM2_8B, None, 16_150_730_752),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_and_shapes(tmp_path, name):
    """At full size, without content: every stored row is in one parameter, and every parameter is stored."""
    text, template, size = RELEASED[name]
    tensors = layouts.internvl_shapes(text, template is not None)
    assert layouts.write_sparse(tmp_path, tensors, layouts.internvl_json(text, template), "BF16") == size
    model = weights.skeleton(tmp_path)
    parameter_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    sources = weights.find(model, tmp_path)
    assert {name: tensor.shape for name, tensor in sources.items()} == parameter_shapes
    assert {tensor.key for tensor in sources.values()} == tensors.keys()
    assert sum(p.numel() for p in model.parameters()) * 2 == size
    c = model.config
    assert c.template == (template or "internvl-hf")
    assert c.image_token_index == 92546
    assert model.visual_tokens(range(13)) == 13 * 256
    assert (c.text.head_dim, c.text.rope_theta, c.text.max_position_embeddings) == (128, 1e6, 32768)


def test_queries_and_keys_of_the_6b_are_normed_across_heads():
    """Straight from the file: a third of the fused rows, over its root mean square of all 32 channels, then cut into
    heads; then softmax over the tile. Methods see the same keys."""
    model, stored = weights.load(SIX_B, torch.float32), load_file(SIX_B / "model.safetensors")
    block = {name.removeprefix("vision_model.encoder.layers.1."): value.float() for name, value in stored.items()
             if name.startswith("vision_model.encoder.layers.1.")}
    pixels = picture(model, tiles=2)
    states = model.vision_tower(pixels, 3)

    def normed(x, name):
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * block[name]

    x = normed(states[1], "norm1.weight")                                          # (2, 17, 32)
    query, key, value = (x @ third.T for third in block["attn.qkv.weight"].split(32))
    query, key = normed(query, "attn.q_norm.weight"), normed(key, "attn.k_norm.weight")
    query, key, value = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (query, key, value))
    attention = (query @ key.mT / 8 ** .5).softmax(dim=-1)                         # (2, 4, 17, 17)
    out = (attention @ value).transpose(1, 2).flatten(2) @ block["attn.proj.weight"].T + block["attn.proj.bias"]
    layer = model.vision_tower.layers[1]
    close(layer.attention(layer.layernorm_before(states[1])), out)
    view = model.encode(pixels).before.block(1)
    close(view.key()[:, 1], torch.cat([key[0, :, [1 + patch]] for patch in (2, 3, 6, 7)], dim=1).flatten(1))
    close(view.received().sum(), attention[:, :, 1:].mean(dim=(1, 2))[:, 1:].sum())


def test_the_6b_tower_of_released_files(tmp_path):
    """As InternViT-6B-448px-V1-5's file describes it, which leaves its norms to the class: 5.54 billion values."""
    tower = {"model_type": "intern_vit_6b", "hidden_act": "gelu", "hidden_size": 3200, "image_size": 448,
             "intermediate_size": 12800, "layer_norm_eps": 1e-6, "num_attention_heads": 25, "num_channels": 3,
             "num_hidden_layers": 45, "patch_size": 14, "qk_normalization": True, "qkv_bias": False}
    raw = layouts.internvl_json(layouts.INTERNLM2_2B, "internlm2-chat") | {"vision_config": tower}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    network = weights.skeleton(tmp_path).vision_tower
    assert network.config.norm_type == "rms_norm"
    assert round(sum(p.numel() for p in network.parameters()) / 1e9, 2) == 5.54


@pytest.mark.parametrize("names", [native, hub])
def test_the_6b_in_hugging_faces_layouts(tmp_path, names):
    """InternVL3-38B-hf's kind of file: the same parameters to the bit."""
    state = weights.load(SIX_B).state_dict()
    config = json.loads((HF / "config.json").read_text())
    text = json.loads((SIX_B / "config.json").read_text())["llm_config"]
    config["text_config"] = {key: text[key] for key in text if "rope_scaling" not in key} | {"model_type": "llama"}
    config["vision_config"] |= {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
    head = "lm_head.weight" if names is native else "language_model.lm_head.weight"
    tensors = {name.replace("_proj.norm.", "_norm."): value for name, value in names(state).items()}
    tensors[head] = state["lm_head.weight"].clone()
    again = weights.load(layouts.write(tmp_path, tensors, config | {"tie_word_embeddings": False}, 1)).state_dict()
    assert again.keys() == state.keys() and all(again[name].equal(value) for name, value in state.items())


DAMAGE = {
    "missing": (lambda t: t.pop("language_model.model.layers.0.attention.wqkv.weight"),
                r"layers.0.attention.wqkv.weight \(q\) and 2 more are missing"),
    "spare": (lambda t: t.update(qllama=torch.ones(2)), "qllama is no part of this model"),
    "not whole heads": (lambda t: t.update({"vision_model.encoder.layers.0.attn.qkv.bias": torch.ones(95)}),
                        r"attn.qkv.bias \(q\) and 2 more are missing, .*attn.qkv.bias is no part"),
    "other heads": (lambda t: t.update({"language_model.model.layers.0.attention.wqkv.weight": torch.ones(32, 32)}),
                    r"wqkv.weight \(q\) is \(16, 32\), where config.json asks for \(32, 32\)")}


@pytest.mark.parametrize("what", DAMAGE)
def test_broken_checkpoint_is_one_line(tmp_path, what):
    damage, words = DAMAGE[what]
    tensors = load_file(ORIGINAL / "model.safetensors")
    damage(tensors)
    layouts.write(tmp_path, tensors, json.loads((ORIGINAL / "config.json").read_text()))
    with pytest.raises(UserError, match=words) as error:
        weights.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


# --- what else is done with a model -----------------------------------------------------------------------------------

@pytest.mark.parametrize("folder", [HF, ORIGINAL, SIX_B], ids=lambda folder: folder.name)
def test_saved_in_the_layout_it_was_read_from(tmp_path, folder):
    """Fused tensors are whole again: the files hold the same, under the same names."""
    save_checkpoint.save(weights.load(folder), tmp_path)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert before.keys() == after.keys() and all(after[name].equal(value) for name, value in before.items())


def test_cost_is_counted():
    """A tile's 4 tokens of 4 x 32 channels through the projector: two operations a multiplication with its addition."""
    shape = shapes.shape_of(model=str(ORIGINAL))
    cost = count.count(shape, text=3)
    assert shape.n == 4
    assert cost.visual == (4, 4)
    assert cost.projector == 2 * 4 * (128 * 32 + 32 * 32)


@pytest.mark.internal
def test_pictures_undo_the_tiles():
    """A picture of 3 x 2 tiles of 2 x 2 visual tokens: they lie on one map of 4 rows and 6 columns, the thumbnail
    beside it. Kept are the lower right token of tile 1, the upper left one of tile 5 and the last of the thumbnail."""
    model = internvl(layers=4)
    photo, processor = Image.new("RGB", (600, 400), (200, 200, 200)), InternVLProcessor(16)
    assert processor.grid(600, 400) == (3, 2)
    images = [picture(model), picture(model, tiles=7)]
    *_, trace = prefill(model, ids(1, MARK, 2, MARK, 1), images, Chosen({1: [11, 24, 31]}))
    panel = draw.panels(photo, processor.box(600, 400), trace, image=1)[0]
    view = View(photo, processor.box(600, 400), trace, 1)
    assert [(grid.rows, grid.columns) for grid in view.grids] == [(4, 6), (2, 2)] and len(view.cells) == 28
    assert view.cells[view.own(trace.steps[0].kept)].tolist() == [[0, 1, 3], [0, 2, 4], [1, 1, 1]]
    lit = [
        panel.getpixel((round(480 * (column + 0.5) / 6), round(320 * (row + 0.5) / 4)))[0]
        for row in range(4)
        for column in range(6)
    ]
    assert [i for i, light in enumerate(lit) if light == 200] == [9, 16] and set(lit) == {200, 60}


def test_pictures_of_one_tile_and_of_tiles_alone():
    """One tile is drawn as ever; without a thumbnail there is the map alone."""
    model, square, wide = internvl(layers=2), Image.new("RGB", (40, 40)), Image.new("RGB", (80, 40))
    *_, trace = prefill(model, ids(1, MARK, 1), [picture(model)])
    assert [(g.rows, g.columns) for g in View(square, InternVLProcessor(16).box(40, 40), trace).grids] == [(2, 2)]
    *_, trace = prefill(model, ids(1, MARK, 1), [picture(model, tiles=2)])
    grids = View(wide, InternVLProcessor(16, thumbnail=False).box(80, 40), trace).grids
    assert [(grid.rows, grid.columns) for grid in grids] == [(2, 4)]


def test_atp_is_not_trained_on_tiles(capsys, tmp_path):
    """Pictures have one tile or many, and its thresholds are for one number of visual tokens."""
    words = ["train", "atp", "--model", str(HF), "--data", "toy", "--target-tokens", "3", "--layers", "1",
             "--freeze-lm", "--out", str(tmp_path)]
    assert run.main(words) == 2
    assert "this model cuts pictures into tiles" in capsys.readouterr().err


def test_from_the_command_line(capsys, tmp_path, monkeypatch):
    """ask with a picture of what was kept, compare with every method, a chat of two turns, inspect."""
    photo, model = str(PARITY / "images" / "land_500x333.png"), str(ORIGINAL)
    said = ["--model", model, "--max-new-tokens", "3"]
    words = ["ask", photo, "What?", *said, "--method", "fastv", "--keep", "9", "--set", "layer=1", "--maps"]
    assert run.main([*words, "--out", str(tmp_path / "kept.png")]) == 0
    assert "layer 1: 190 tokens, 9 of them visual" in capsys.readouterr().out and (tmp_path / "kept.png").stat().st_size
    assert run.main(["compare", photo, "What?", *said, "--method", "divprune,vispruner", "--keep", "7", "--out",
                     str(tmp_path / "sheet.png")]) == 0
    assert "VisPruner needs a vision tower with a class token, and InternVL" in capsys.readouterr().out
    turns = iter(["What?", "Why?", ""])
    monkeypatch.setattr(session, "line", lambda: next(turns))
    assert run.main(["chat", photo, *said]) == 0 and run.main(["inspect", model]) == 0
    assert run.main(["cost", "--model", model, "--method", "divprune", "--keep", "2"]) == 0
    assert "attention.wqkv.weight" in capsys.readouterr().out
