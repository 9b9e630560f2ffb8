"""LLaVA: where the image stands in the prompt, and what a method can read at each of the three sites."""

import pytest
import torch

from build import close
from minivlm.attention import rope, rotate
from minivlm.cache import Cache
from minivlm.trace import Trace
from pruning.base import UserError
from pruning.hired import HiRED
from pruning.prumerge import PruMerge
from pruning.visionzip import VisionZip
from pruning.vispruner import VisPruner
from tiny import MARK, Chosen, ids, llava, picture, prefill


def attended(query, key):
    """Logits and attention weights (H, S) of one query (H, Dh) over keys (Hk, S, Dh), one head at a time."""
    heads_per_key = len(query) // len(key)
    logits = torch.stack([key[h // heads_per_key] @ q / q.shape[0] ** .5 for h, q in enumerate(query)])
    return logits, logits.softmax(dim=-1)


def heads(x, width=8):
    """(R, H*Dh) -> (H, R, Dh)"""
    return x.unflatten(-1, (-1, width)).transpose(0, 1)


# --- the prompt -------------------------------------------------------------------------------------------------------

def test_projected_features_stand_in_the_place_of_the_mark():
    """Two images in the order given, text around them; positions are contiguous, and the images count as tiles."""
    model = llava()
    prompt = ids(3, MARK, 2, MARK, 4)
    pictures = [picture(model), picture(model, 1)]
    tokens = model.embed(prompt, pictures)
    image = [model.multi_modal_projector(model.features(pixels)[0]) for pixels in pictures]
    words = [model.language_model.embed_tokens(torch.tensor(part)) for part in (prompt[:3], prompt[4:6], prompt[7:])]
    assert tokens.hidden.equal(torch.cat([words[0], image[0], words[1], image[1], words[2]]))
    assert tokens.visual.tolist() == [*range(3, 19), *range(21, 37)]
    assert tokens.source.tolist() == list(range(32))
    assert tokens.position.tolist() == list(range(41))
    assert tokens.next_position == 41
    assert tokens.grid.tolist() == [[i, row, column] for i in range(2) for row in range(4) for column in range(4)]


def test_several_tiles():
    """Pixels (2, 3, S, S) are two tiles of one image under one mark; those of the next image count on."""
    model = llava()
    pixels = picture(model, tiles=2)
    tokens = model.embed(ids(1, MARK, MARK, 1), [pixels, picture(model, 1)])
    assert tokens.grid[:, 0].tolist() == [0] * 16 + [1] * 16 + [2] * 16
    close(tokens.hidden[17:33], model.embed([MARK], [pixels[1:]]).hidden)


def test_text_alone():
    tokens = llava().embed(ids(5))
    assert tokens.n == 0
    assert tokens.grid.shape == (0, 3)
    assert len(tokens.hidden) == tokens.next_position == 5


@pytest.mark.parametrize("marks, images", [(1, 0), (0, 1), (2, 1), (1, 2)])
def test_marks_and_images_must_match(marks, images):
    with pytest.raises(UserError, match=f"the prompt has {marks} <image> marks for {images} images"):
        llava().embed(ids(2) + [MARK] * marks, [picture(llava())] * images)


def test_a_prompt_longer_than_the_context():
    """28 tokens fit in a context of 28 and not in one of 27; a reduction before the decoder makes room, one inside
    does not."""
    prompt = ids(5, MARK, 7)
    pixels = picture(llava())
    prefill(llava(layers=2, context=28), prompt, [pixels])
    short = llava(layers=2, context=27)
    for pruner in (None, Chosen({1: [3]})):
        with pytest.raises(UserError, match="the prompt has 28 tokens and the model's context is 27"):
            prefill(short, prompt, [pixels], pruner)
    _, cache, _ = prefill(short, prompt, [pixels], Chosen([3], site="embed"))
    assert cache.lengths == [13, 13]


# --- the features -----------------------------------------------------------------------------------------------------

def test_full_keeps_the_class_token():
    """"full" has 17 tokens an image, the first on no grid; the other 16 are those of "default"."""
    full = llava(layers=2, vision_feature_select_strategy="full")
    default = llava(layers=2, vision_feature_select_strategy="default")
    pixels = picture(full)
    features, grid, source = default.features(pixels)
    assert features.shape == (16, 32)
    assert source.tolist() == list(range(16))
    assert full.features(pixels)[0][1:].equal(features)
    tokens = full.embed(ids(1, MARK, 1), [pixels])
    assert tokens.n == 17
    assert tokens.grid.tolist() == [[0, -1, -1], *grid.tolist()]


def test_a_method_may_drop_the_class_token():
    """At "full" it is a visual token like others: with 0 and 5 kept, the trace has 17 of them, CLS first."""
    model = llava(layers=2, vision_feature_select_strategy="full")
    _, _, trace = prefill(model, ids(1, MARK, 1), [picture(model)], Chosen([0, 5], site="vision"))
    assert trace.N == 17
    assert trace.grid[trace.steps[0].kept].tolist() == [[0, -1, -1], [0, 1, 0]]
    assert trace.visual == [2, 2]


@pytest.mark.parametrize("layers", [-2, (-2, -5), (23, 20), (0, -1)])
def test_feature_layers(layers):
    """Their hidden states side by side, in the order given: 0 is what enters layer 0, 24 or -1 what leaves the last."""
    model = llava(layers=2, vision_feature_layer=layers)
    states = model.vision_tower(picture(model), 24)
    features, _, _ = model.features(picture(model))
    assert features.equal(torch.cat([states[l][0, 1:] for l in ([layers] if layers == -2 else layers)], dim=1))
    assert model.embed([MARK], [picture(model)]).hidden.shape == (16, 32)


def test_layers_above_the_features_never_run():
    """The default, hidden_states[-2], is the output of layer 22 of 0 .. 23; -1 runs all."""
    model = llava(layers=2)
    ran = []
    layers = model.vision_tower.layers
    hooks = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(layers)]
    model.features(picture(model))
    for hook in hooks:
        hook.remove()
    assert ran == list(range(23))


# --- what a method can read -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tiles", [1, 2])
def test_the_vision_site(tiles):
    """Each tile's class token and patches before the projector: `before` is block 22, `here` block 23. What is kept
    is then projected."""
    model = llava(layers=2)
    pixels = picture(model, tiles=tiles)
    method = Chosen([3, 20 if tiles == 2 else 8], site="vision")
    features, grid, source = model.features(pixels, method)
    (tokens,) = method.calls
    states = model.vision_tower(pixels, 23)
    T = 17 * tiles
    assert tokens.layer == 23
    assert tokens.hidden.equal(states[23].flatten(0, 1))
    assert tokens.visual.tolist() == [i for i in range(T) if i % 17]
    assert tokens.before.cls_rows().tolist() == list(range(0, T, 17))
    for view, l in ((tokens.before, 22), (tokens.here, 23)):
        block = model.vision_tower.layers[l]
        x = block.layer_norm1(states[l]).flatten(0, 1)                             # (T, 32)
        close(view.query(), heads(block.self_attn.q_proj(x)))
        close(view.query(torch.tensor([5])), heads(block.self_attn.q_proj(x[5:6])))
        close(view.key(), heads(block.self_attn.k_proj(x)))
    assert features.equal(tokens.hidden[tokens.visual[method.kept]])
    assert source.tolist() == method.kept
    assert grid.equal(tokens.grid[method.kept])


@pytest.mark.parametrize("l", [0, 5, 22, 23])
def test_attention_of_the_class_tokens(l):
    """Of any block up to the features, and of the one after them: from each tile's class token to its own tile, its
    own row included in the softmax."""
    model = llava(layers=2)
    pixels = picture(model, tiles=2)
    method = Chosen([3], site="vision")
    model.features(pixels, method)
    received = method.calls[0].before.block(l).cls_attention()                     # (4, 32)
    block = model.vision_tower.layers[l]
    x = block.layer_norm1(model.vision_tower(pixels, 23)[l])                       # (2, 17, 32)
    for tile in range(2):
        query = heads(block.self_attn.q_proj(x[tile]))[:, 0]                       # (4, 8)
        _, weights = attended(query, heads(block.self_attn.k_proj(x[tile])))       # (4, 17)
        close(received[:, 16 * tile:16 * tile + 16], weights[:, 1:])


def test_features_of_another_layer():
    """Of hidden_states[10], the output of block 9: `before` is block 9, `here` block 10; block 11 never ran."""
    model = llava(layers=2, vision_feature_layer=10)
    method = Chosen([3], site="vision")
    model.features(picture(model), method)
    (tokens,) = method.calls
    assert tokens.layer == 10
    close(tokens.before.cls_attention(), tokens.here.block(9).cls_attention())
    close(tokens.here.cls_attention(), tokens.before.block(10).cls_attention())
    with pytest.raises(UserError, match="the vision tower ran up to the input of block 10, and this would be block 11"):
        tokens.before.block(11).cls_attention()


@pytest.mark.parametrize("layer, method, l", [(0, VisPruner(1), -1), (0, HiRED(1), -1), (-1, PruMerge(1), 24)])
def test_a_block_that_is_not_there(layer, method, l):
    """Of the input of block 0 nobody has been attended to; after the last block there is none."""
    model = llava(layers=2, vision_feature_layer=layer)
    message = f"the vision tower has 24 blocks, and this would be number {l}: use another method"
    with pytest.raises(UserError, match=message):
        model.features(picture(model), method)


def test_the_embed_site():
    """The whole spliced prompt, once, with no layer to look at; afterwards positions are contiguous."""
    model = llava(layers=2)
    prompt = ids(3, MARK, 2, MARK, 4)
    pictures = [picture(model), picture(model, 1)]
    method = Chosen([3, 20], site="embed")
    tokens = model.embed(prompt, pictures, method)
    whole = model.embed(prompt, pictures)
    (entering,) = method.calls
    assert entering.layer == 0
    assert entering.hidden.equal(whole.hidden)
    for view in (entering.before, entering.here):
        for read in (view.key, view.query, view.attention, view.mean_logits, view.projected_key, view.cls_attention):
            with pytest.raises(UserError, match="nothing to look at here, since no layer has run yet"):
                read()
    assert tokens.hidden.equal(whole.hidden[[0, 1, 2, 6, 19, 20, 25, 37, 38, 39, 40]])
    assert tokens.position.tolist() == list(range(11))
    assert tokens.next_position == 11


@pytest.mark.parametrize("site, kept", [("embed", [1, 6, 20, 31]), ("vision", [1, 6])])
def test_positions_kept_before_the_decoder(site, kept):
    """Text 0-2, image 3-18, text 19-20, image 21-36, text 37-40. Patches 1 and 6 of the first lie at 4 and 9, 4 and
    15 of the second at 25 and 36, its 1 and 6 at 22 and 27; the text stays where it was."""
    model = llava(layers=2)
    pictures = [picture(model), picture(model, 1)]
    tokens = model.embed(ids(3, MARK, 2, MARK, 4), pictures, Chosen(kept, site, "keep"))
    of_second = [25, 36] if site == "embed" else [22, 27]
    assert tokens.position.tolist() == [0, 1, 2, 4, 9, 19, 20, *of_second, 37, 38, 39, 40]
    assert tokens.next_position == 41


def test_a_merged_token_has_the_position_of_its_place():
    """VisionZip of a tile of 16 patches, after one word: class token at 1, patches at 2-17, and the word after them at
    18. Every token left has the position of the one whose place it takes, contextual ones too."""
    model = llava(layers=2)
    trace = Trace()
    tokens = model.embed(ids(1, MARK, 1), [picture(model)], VisionZip(6, 2, positions="keep"), trace)
    assert tokens.position.tolist() == [0, *(1 + trace.steps[0].kept).tolist(), 18]
    assert trace.steps[0].kept[0] == 0


def read_both(tokens):
    """What a method can read of the two layers, while they are there."""
    return {
        side: dict(query=view.query(), key=view.key(), logits=view.logits("last")[:, 0],
                   attention=view.attention("last")[:, 0], normed=view.projected_key(),
                   raw=view.projected_key(norm=False))
        for side, view in (("before", tokens.before), ("here", tokens.here))
    }


def test_the_decoder_site():
    """Before layer 4, after a reduction before layer 2: queries, keys, logits and attention of layer 3, which has
    run, and of layer 4, and keys before RoPE, with the layer's norm and without; all on the tokens left at their
    first positions."""
    model = llava(layers=6)
    prompt = ids(3, MARK, 4)
    method = Chosen({2: [1, 5, 6, 12], 3: range(4), 4: [0, 2]}, look=read_both)
    _, cache, _ = prefill(model, prompt, [picture(model)], method)
    _, at_3, at_4 = method.calls
    first = [0, 1, 2, 4, 8, 9, 15, 19, 20, 21, 22]         # text 0-2, image 3-18, text
    assert at_4.layer == 4
    assert at_4.position.tolist() == first
    assert at_4.visual.tolist() == [3, 4, 5, 6]
    assert at_4.prompt.hidden.equal(model.embed(prompt, [picture(model)]).hidden)
    cos_sin = rope(at_4.position, 8, 10000., torch.float32)
    for side, entering, l in (("before", at_3, 3), ("here", at_4, 4)):
        views = method.views[2][side]
        layer = model.language_model.layers[l]
        x = layer.input_layernorm(entering.hidden)                                 # (11, 32)
        query = rotate(heads(layer.self_attn.q_proj(x)), cos_sin)                  # (4, 11, 8)
        key = rotate(heads(layer.self_attn.k_proj(x)), cos_sin)                    # (2, 11, 8)
        close(views["query"], query)
        close(views["key"], key)
        close(views["normed"], layer.self_attn.k_proj(x))
        close(views["raw"], layer.self_attn.k_proj(entering.hidden))
        logits, weights = attended(query[:, -1], key)
        close(views["logits"], logits, 1e-4)
        close(views["attention"], weights)
    close(method.views[2]["before"]["key"], cache.layers[3].key[0])                # what the layer itself put there


def test_no_reduction_if_no_visual_token_is_left():
    """After all are gone a later layer of the method is passed over."""
    method = Chosen({1: [], 2: [0]})
    _, cache, trace = prefill(llava(layers=3), ids(1, MARK, 2), [picture(llava())], method)
    assert len(method.calls) == len(trace.steps) == 1
    assert cache.lengths == [19, 3, 3]


class Masking(Chosen):
    """Hides visual column 0 from all rows in layer 1, and lets everything else look ahead."""

    def mask_at(self, layers):
        return (1,)

    def mask(self, tokens):
        self.layer_masked = tokens.layer
        self.causal = tokens.here.mask()
        self.logits = tokens.here.logits()
        mask = torch.zeros_like(self.causal)
        mask[:, tokens.visual[0]] = -torch.inf
        return mask


def test_a_method_s_mask():
    """Called before its layer, whose own mask it replaces; what it gives back is what the layer adds and what the
    view then shows."""
    model = llava(layers=3)
    method = Masking({2: range(16)}, look=lambda tokens: tokens.before.attention())
    tokens = model.embed(ids(2, MARK, 3), [picture(model)])
    model.language_model.prefill(tokens, Cache.empty(3), method, last=False)
    assert method.layer_masked == 1
    assert method.causal.equal(torch.full((21, 21), -torch.inf).triu(1))
    (attention,) = method.views                                                    # (4, 21, 21)
    assert (attention[..., 2] == 0).all()
    assert (attention[:, 0, 5] > 0).all()
    hidden_column = torch.zeros(21).index_fill(0, torch.tensor(2), -torch.inf)
    close(attention, (method.logits + hidden_column).softmax(dim=-1))
