"""LLaVA: where the image stands in the prompt, and what a method is shown at each of the three sites."""

import pytest
import torch

from minivlm.attention import rope, rotate
from minivlm.cache import Cache
from pruning.base import UserError
from tiny import MARK, Told, ids, llava, one_thread, picture, prefill  # noqa: F401

ALL = ("attn", "logits", "turned_query", "turned_key", "own_attn", "query", "key", "raw_key", "past_key", "first_attn")


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def row(query, key, heads):
    """Softmax weights (H, S) of one query (H*Dh) over keys (S, Hk*Dh), one head at a time, and the logits."""
    query = query.view(heads, -1)
    key = key.view(len(key), -1, query.shape[1])
    logits = torch.stack([key[:, h * key.shape[1] // heads] @ query[h] / query.shape[1] ** .5 for h in range(heads)])
    return logits.softmax(dim=-1), logits


# --- the prompt ----------------------------------------------------------------------------------------------------------

def test_projected_features_stand_in_the_place_of_the_mark():
    """Two images in the order given, text around them; positions are contiguous, cells count the images as tiles."""
    model, prompt = llava(), ids(3, MARK, 2, MARK, 4)
    pictures = [picture(model), picture(model, 1)]
    tokens = model.embed(prompt, pictures)
    image = [model.multi_modal_projector(model.features(pixels)[0]) for pixels in pictures]
    words = [model.language_model.embed_tokens(torch.tensor(part)) for part in (prompt[:3], prompt[4:6], prompt[7:])]
    assert tokens.hidden.equal(torch.cat([words[0], image[0], words[1], image[1], words[2]]))
    assert tokens.visual.tolist() == [*range(3, 19), *range(21, 37)] and tokens.origin.tolist() == list(range(32))
    assert tokens.position.tolist() == list(range(41)) and tokens.next == 41
    assert tokens.cell.tolist() == [[i, row, column] for i in range(2) for row in range(4) for column in range(4)]


def test_several_tiles():
    """Pixels (2, 3, S, S) are two tiles of one image under one mark; those of the next image count on."""
    model, pixels = llava(), picture(llava(), tiles=2)
    tokens = model.embed(ids(1, MARK, MARK, 1), [pixels, picture(model, 1)])
    assert tokens.cell[:, 0].tolist() == [0] * 16 + [1] * 16 + [2] * 16
    close(tokens.hidden[17:33], model.embed([MARK], [pixels[1:]]).hidden)


def test_text_alone():
    tokens = llava().embed(ids(5))
    assert tokens.n == 0 and tokens.cell.shape == (0, 3) and len(tokens.hidden) == tokens.next == 5


@pytest.mark.parametrize("marks, images", [(1, 0), (0, 1), (2, 1), (1, 2)])
def test_marks_and_images_must_match(marks, images):
    with pytest.raises(UserError, match=f"the prompt has {marks} <image> marks for {images} images"):
        llava().embed(ids(2) + [MARK] * marks, [picture(llava())] * images)


def test_a_prompt_longer_than_the_context():
    """28 tokens fit in a context of 28 and not in one of 27; a reduction before the decoder makes room, one inside does not."""
    prompt, pixels = ids(5, MARK, 7), picture(llava())
    prefill(llava(layers=2, context=28), prompt, [pixels])
    short = llava(layers=2, context=27)
    for pruner in (None, Told({1: [3]})):
        with pytest.raises(UserError, match="the prompt has 28 tokens and the model's context is 27"):
            prefill(short, prompt, [pixels], pruner)
    assert prefill(short, prompt, [pixels], Told([3], site="embed"))[1].lengths == [13, 13]


# --- the features ----------------------------------------------------------------------------------------------------------

def test_full_keeps_the_class_token():
    """"full" has 17 tokens an image, the first on no grid; the other 16 are those of "default"."""
    full, default = (llava(layers=2, vision_feature_select_strategy=strategy) for strategy in ("full", "default"))
    pixels = picture(full)
    tokens, (features, cell, origin) = full.embed(ids(1, MARK, 1), [pixels]), default.features(pixels)
    assert tokens.n == 17 and tokens.cell[0].tolist() == [0, -1, -1] and tokens.cell[1:].equal(cell)
    assert full.features(pixels)[0][1:].equal(features) and features.shape == (16, 32) and origin.tolist() == list(range(16))


def test_a_method_may_drop_the_class_token():
    """At "full" it is a visual token like others: with 0 and 5 kept, the trace has 17 of them, CLS first."""
    model = llava(layers=2, vision_feature_select_strategy="full")
    _, _, trace = prefill(model, ids(1, MARK, 1), [picture(model)], Told([0, 5], site="vision"))
    assert trace.N == 17 and trace.cells[trace.steps[0].kept].tolist() == [[0, -1, -1], [0, 1, 0]] and trace.visual == [2, 2]


@pytest.mark.parametrize("layers", [-2, (-2, -5), (23, 20), (0, -1)])
def test_feature_layers(layers):
    """Their hidden states side by side, in the order given: 0 is what enters layer 0, 24 or -1 what leaves the last."""
    model = llava(layers=2, vision_feature_layer=layers)
    states, _ = model.vision_tower(picture(model), range(25))
    features, _, _ = model.features(picture(model))
    assert features.equal(torch.cat([states[l][0, 1:] for l in ([layers] if layers == -2 else layers)], dim=1))
    assert model.embed([MARK], [picture(model)]).hidden.shape == (16, 32)


def test_layers_above_the_features_never_run():
    """The default, hidden_states[-2], is the output of layer 22 of 0 .. 23; -1 runs all."""
    model, ran = llava(layers=2), []
    hooks = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(model.vision_tower.layers)]
    model.features(picture(model))
    for hook in hooks:
        hook.remove()
    assert ran == list(range(23))


# --- what a method is shown -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tiles", [1, 2])
def test_the_vision_site(tiles):
    """Each tile's class token and patches before the projector; attention of the class tokens in layers 22 and 0, each to
    its own tile; queries and keys of layer 23, keys of layer 22. What is kept is then projected."""
    model, watching = llava(layers=2), Told([3, 20 if tiles == 2 else 8], site="vision", needs=ALL)
    pixels = picture(model, tiles=tiles)
    tower, (features, cell, origin) = model.vision_tower, model.features(pixels, watching)
    states, _ = tower(pixels, range(24))
    (saw,) = watching.saw
    T = 17 * tiles
    assert saw.layer == 23 and saw.hidden.shape == (T, 32) and saw.hidden.equal(states[23].flatten(0, 1))
    assert saw.visual.tolist() == [i for i in range(T) if i % 17] and saw.rows.tolist() == list(range(0, T, 17))
    for name, layer in (("attn", 22), ("first_attn", 0)):
        assert getattr(saw, name).shape == (4, tiles, T)
        x = tower.layers[layer].layer_norm1(states[layer])
        attend = tower.layers[layer].self_attn
        for tile in range(tiles):
            weights, _ = row(attend.q_proj(x[tile, 0]), attend.k_proj(x[tile]), 4)
            expected = torch.zeros(4, T)
            expected[:, 17 * tile:17 * tile + 17] = weights
            close(getattr(saw, name)[:, tile], expected)
    x = tower.layers[23].layer_norm1(states[23]).flatten(0, 1)
    close(saw.query, tower.layers[23].self_attn.q_proj(x))
    close(saw.key, tower.layers[23].self_attn.k_proj(x))
    close(saw.past_key, tower.layers[22].self_attn.k_proj(tower.layers[22].layer_norm1(states[22]).flatten(0, 1)))
    assert features.equal(saw.hidden[saw.visual[watching.kept]]) and origin.tolist() == watching.kept
    assert cell.equal(saw.cell[watching.kept])


def test_the_embed_site():
    """The whole spliced prompt, once, with nothing observed; afterwards positions are contiguous."""
    model, watching, prompt = llava(layers=2), Told([3, 20], site="embed", needs=ALL), ids(3, MARK, 2, MARK, 4)
    pictures = [picture(model), picture(model, 1)]
    tokens = model.embed(prompt, pictures, watching)
    (saw,), whole = watching.saw, model.embed(prompt, pictures)
    assert saw.hidden.equal(whole.hidden) and saw.layer == 0 and all(getattr(saw, name) is None for name in ALL)
    assert tokens.hidden.equal(whole.hidden[[0, 1, 2, 6, 19, 20, 25, 37, 38, 39, 40]])
    assert tokens.position.tolist() == list(range(11)) and tokens.next == 11


def test_the_decoder_site():
    """Before layer 4, after a reduction before layer 2: attention, logits, queries and keys of layer 3, and layer 4's own attention,
    queries and keys (with the norm before them, and without), on the tokens left at their first positions."""
    model, prompt = llava(layers=6), ids(3, MARK, 4)
    watching = Told({2: [1, 5, 6, 12], 4: [0, 2]}, needs=ALL[:8])
    _, cache, _ = prefill(model, prompt, [picture(model)], watching)
    _, saw = watching.saw
    decoder, first = model.language_model, [0, 1, 2, 4, 8, 9, 15, 19, 20, 21, 22]          # text 0-2, image 3-18, text
    assert saw.layer == 4 and saw.position.tolist() == first and saw.visual.tolist() == [3, 4, 5, 6]
    assert saw.rows.tolist() == [10] and saw.prompt.equal(model.embed(prompt, [picture(model)]).hidden)

    def keys(layer):
        return cache.layers[layer].key[0].transpose(0, 1).flatten(1)                       # (T, Hk*Dh) after RoPE

    def turned(x, position):
        return rotate(x.view(1, -1, 8).transpose(0, 1), *rope(position, 8, 10000., torch.float32)).transpose(0, 1).flatten()

    layer, x = decoder.layers[4].self_attn, decoder.layers[4].input_layernorm(saw.hidden)
    close(saw.query, layer.q_proj(x))
    close(saw.key, layer.k_proj(x))
    close(saw.raw_key, layer.k_proj(saw.hidden))
    turned_keys = torch.stack([turned(key, position[None]) for key, position in zip(saw.key, saw.position)])
    close(saw.own_attn[:, 0], row(turned(saw.query[-1], saw.position[-1:]), turned_keys, 4)[0])

    before = Told({2: [1, 5, 6, 12], 3: range(4)}, needs=["query"])                        # the same, seen a layer earlier
    prefill(model, prompt, [picture(model)], before)
    weights, logits = row(turned(before.saw[1].query[-1], saw.position[-1:]), keys(3), 4)
    close(saw.attn[:, 0], weights)
    close(saw.logits[:, 0], logits, atol=1e-4)
    close(saw.turned_key.transpose(0, 1).flatten(1), keys(3))
    close(saw.turned_query[:, -1].flatten(), turned(before.saw[1].query[-1], saw.position[-1:]))


def test_nothing_is_shown_that_was_not_asked_for():
    for site in ("vision", "embed", "decoder"):
        watching = Told({2: [0]} if site == "decoder" else [0], site)
        prefill(llava(layers=3), ids(1, MARK, 1), [picture(llava())], watching)
        assert all(getattr(watching.saw[0], name) is None for name in ALL)
    watching = Told({2: [0]}, needs=["attn"])
    prefill(llava(layers=3), ids(1, MARK, 1), [picture(llava())], watching)
    assert [name for name in ALL if getattr(watching.saw[0], name) is not None] == ["attn"]


def test_no_reduction_where_no_visual_token_is_left():
    """After all are gone a later layer of the method is passed over."""
    watching = Told({1: [], 2: [0]})
    _, cache, trace = prefill(llava(layers=3), ids(1, MARK, 2), [picture(llava())], watching)
    assert len(watching.saw) == len(trace.steps) == 1 and cache.lengths == [19, 3, 3]


class Masking(Told):
    """Hides visual column 0 from everybody in layer 1, and lets all else look ahead."""

    def mask_at(self, layers):
        return (1,)

    def mask(self, tokens, query, key, causal):
        self.asked = tokens, query, key, causal
        mask = torch.zeros_like(causal)
        mask[:, tokens.visual[0]] = -torch.inf
        return mask


def test_a_method_s_mask():
    """Called in its layer with that layer's query (H, T, Dh), key (Hk, T, Dh) and the causal mask; what it gives back is what counts."""
    model, prompt = llava(layers=3), ids(2, MARK, 3)
    method = Masking({2: range(16)}, needs=["attn"], rows="all")
    tokens = model.embed(prompt, [picture(model)])
    model.language_model.prefill(tokens, Cache.empty(3), method, last=False)
    asked, query, key, causal = method.asked
    logits = query @ key.repeat_interleave(len(query) // len(key), dim=0).mT / query.shape[-1] ** .5      # (4, 21, 21)
    assert asked.layer == 1 and logits.shape == (4, 21, 21)
    assert causal.equal(torch.full((21, 21), -torch.inf).triu(1))
    attn = method.saw[0].attn                                                              # (4, 21, 21)
    assert (attn[..., 2] == 0).all() and (attn[:, 0, 5] > 0).all()
    close(attn, (logits + method.mask(*method.asked)).softmax(dim=-1))
