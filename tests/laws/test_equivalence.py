"""Do two ways to the same result agree? Every method of the registry on a tiny model as deep as the real one.

float32. DEEP is the tolerance after 32 layers.
"""

from copy import deepcopy
from dataclasses import replace
from functools import cached_property

import pytest
import torch

from pruning import METHODS
from pruning.base import Reduction
from pruning.fields import annotations
from pruning.fastv import FastV
from pruning.readings import FastVAllRows, FastVMask
from pruning.views import for_each_head
from build import close
from caches import held, replay, same_cache
from tiny import (DEEP, REDUCING, MARK, Chosen, built, has_keep, ids, llava, next_llava, picture, prefill,
                  refusal, tiled)


class Prompt(list):
    """Ids, the model they are for, and of LLaVA-NeXT's images the height and width."""

    def __init__(self, *parts, sizes=()):
        super().__init__(ids(*parts))
        self.sizes, self.model = sizes, next_llava if sizes else llava
        self.runs = {}

    def under(self, name):
        """Logits, cache and trace of the prefill under a method. It runs once; each caller has a cache of its own."""
        if name not in self.runs:
            self.runs[name] = prefill(self.model(), self, images(self), name and built(name))
        logits, cache, trace = self.runs[name]
        return logits, deepcopy(cache), trace

    @cached_property
    def unpruned(self):
        """Of a model without a method: logits, those after WORDS, and what its cache then holds."""
        logits, cache, _ = self.under(None)
        after = self.model().step(WORDS, cache)
        return logits, after, *held(cache)


PROMPTS = {"one image": Prompt(5, MARK, 7), "two images": Prompt(3, MARK, 4, MARK, 6),
           "two images side by side": Prompt(2, MARK, MARK, 5),
           "tiles": Prompt(5, MARK, 7, sizes=[(24, 32)]),          # 2 x 2 of them, and a map of 6 x 8 patches
           "tiles without a map": Prompt(2, MARK, MARK, 5, sizes=[(60, 10), (4, 400)])}    # the second's; the first's is 12 x 2
TEXT = Prompt(9)
WORDS = ids(4, seed=1)
SELECTING = [name for name in REDUCING if built(name).laws >= {"select", "ordered"} and not built(name).mask_at(32)]
DROPPING = [name for name in SELECTING if built(name).site == "decoder"]

every_prompt = pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
SOME = ("two images", "two images side by side", "tiles")              # text between the images, none, and rows on no grid
some_prompts = pytest.mark.parametrize("prompt", [PROMPTS[name] for name in SOME], ids=SOME)


def taken(name, prompt):
    """Skip the prompt with text between its images where the method says that it takes none."""
    if prompt is PROMPTS["two images"] and refusal(name):
        pytest.skip(refusal(name))


def images(prompt):
    """Pixels for the marks of a prompt."""
    if isinstance(prompt, Prompt) and prompt.sizes:
        return [tiled(prompt.model(), *size, seed) for seed, size in enumerate(prompt.sizes)]
    return [picture(llava(), seed) for seed in range(prompt.count(MARK))]


# --- dropped and masked -----------------------------------------------------------------------------------------------

@some_prompts
@pytest.mark.parametrize("name", DROPPING)
def test_dropped_equals_masked(name, prompt):
    """What is dropped before layer l may as well stay with its key masked in layers l.. : the same cache, the same
    logits, in the prefill and after each step."""
    taken(name, prompt)
    model, pruner = prompt.model(), built(name)
    logits, cache, trace = prompt.under(name)
    logits_masked, cache_masked, masked = prefill(model, prompt, images(prompt), replay(pruner, trace, drop=False))
    assert masked.visual == trace.visual and trace.tokens[-1] < trace.tokens[0] and masked.tokens == [trace.tokens[0]] * 32
    close(logits, logits_masked, DEEP)
    for words in (WORDS[:1], WORDS[1:2], WORDS[2:]):
        close(model.step(words, cache), model.step(words, cache_masked), DEEP)
    same_cache(cache, cache_masked)


def test_fastv_ranks_alike_in_both_modes():
    """The variant that masks ranks for itself."""
    prompt = PROMPTS["two images"]
    dropped, masked = (prefill(llava(), prompt, images(prompt), method(keep=5)) for method in (FastV, FastVMask))
    close(dropped[0], masked[0], DEEP)
    assert dropped[2].steps[0].kept.equal(masked[2].steps[0].kept)


@pytest.mark.parametrize("first", [True, False], ids=["drop", "mask"])
@pytest.mark.parametrize("second", [True, False], ids=["drop", "mask"])
@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_two_reductions(first, second, positions):
    """Of two images, before layers 2 and 4; what is masked first stays masked when more is dropped."""
    model, prompt = llava(layers=6), PROMPTS["two images"]

    def chosen(*drops):
        kept = {2: [2, 4, 9, 17, 20, 30], 4: [0, 3, 5]}
        return Chosen({l: Reduction(torch.tensor(kept[l]), drop=drop) for l, drop in zip(kept, drops)}, positions=positions)

    logits, cache, trace = prefill(model, prompt, images(prompt), chosen(True, True))
    logits_now, cache_now, trace_now = prefill(model, prompt, images(prompt), chosen(first, second))
    assert cache.lengths == [45, 45, 19, 19, 16, 16]
    assert trace_now.steps[-1].kept.tolist() == trace.steps[-1].kept.tolist() == [2, 17, 30]
    close(logits, logits_now, DEEP)
    close(model.step(WORDS, cache), model.step(WORDS, cache_now), DEEP)
    same_cache(cache, cache_now)


# In another order than the picture's (HoloV), a token sees others than it would at its position.
EARLY = [name for name in METHODS if "positions" in annotations(METHODS[name])
         and {"select", "ordered"} <= METHODS[name]().laws and not getattr(METHODS[name], "reads_attention", False)]


@pytest.mark.parametrize("name", EARLY)
def test_positions_kept_equals_masked(name):
    """What is dropped before the decoder, the positions of the others kept, may as well stay with its key masked in all
    layers. Renumbered, as by default, it is another prompt."""
    model, prompt = llava(), PROMPTS["two images"]
    pruner = replace(built(name), positions="keep", **({"site": "embed"} if METHODS[name].site == "decoder" else {}))
    logits, cache, trace = prefill(model, prompt, images(prompt), pruner)
    whole = model.embed(prompt, images(prompt))
    masked = whole.reduced(Reduction(trace.kept, drop=False))
    logits_masked, cache_masked = model.prefill(masked)
    close(logits, logits_masked, DEEP)
    close(model.step(WORDS, cache), model.step(WORDS, cache_masked), DEEP)
    same_cache(cache, cache_masked)
    renumbered, _, _ = prefill(model, prompt, images(prompt), replace(pruner, positions="renumber"))
    assert (renumbered - logits).abs().max() > 1e-3


# --- pruned and unpruned ----------------------------------------------------------------------------------------------

@some_prompts
@pytest.mark.parametrize("name", [name for name in SELECTING if has_keep(name)])
def test_keeping_all_is_the_unpruned_model(name, prompt):
    """To the bit, in every layer."""
    taken(name, prompt)
    pruner, model = built(name, keep=1.0), prompt.model()
    if prompt.sizes and pruner.site == "vision":
        pytest.skip("of tiles a method of the vision site sends on other tokens: padding, but no newlines")
    logits, cache, trace = prefill(model, prompt, images(prompt), pruner)
    assert trace.steps and all(len(step.reduction.keep) == len(step.source) for step in trace.steps)
    after = model.step(WORDS, cache)
    for ours, theirs in zip((logits, after, *held(cache)), prompt.unpruned, strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("name", METHODS)
def test_text_alone(name):
    """A prompt without an image is the unpruned model to the bit, whatever the method."""
    pruner = built(name)
    logits, cache, trace = prefill(llava(), TEXT, (), pruner)
    unpruned, after_unpruned, *_ = TEXT.unpruned
    assert not trace.steps and trace.N == 0 and trace.tokens == [9] * 32
    assert logits.equal(unpruned)
    assert llava().step(WORDS, cache, pruner).equal(after_unpruned)


@every_prompt
@pytest.mark.parametrize("name", METHODS)
def test_text_is_never_dropped(name, prompt):
    """Each layer holds what the trace says, and all of the text; every survivor is traced to the image."""
    taken(name, prompt)
    logits, cache, trace = prompt.under(name)
    text = len(prompt) - prompt.count(MARK)
    assert logits.isfinite().all() and bool(trace.steps) == (name in REDUCING)
    assert trace.tokens == [text + n for n in trace.visual] == cache.lengths
    tower = built(name).site in ("image", "vision")                           # then of each tile all patches, and class tokens
    N = sum(len(image) * (16 + built(name).cls) if tower else prompt.model().visual_tokens(image) for image in images(prompt))
    assert trace.sources().shape == (trace.visual[-1], N)


# --- cached and uncached ----------------------------------------------------------------------------------------------

@some_prompts
@pytest.mark.parametrize("name", [None, *METHODS])
def test_cached_equals_uncached(name, prompt):
    """Two words at once, then one by one, after the pruned prompt: as if the whole text had been there, pruned
    alike."""
    if name:
        taken(name, prompt)
    pruner = built(name) if name else None
    model = prompt.model()
    _, cache, trace = prompt.under(name)
    for words in (WORDS[:2], WORDS[2:3], WORDS[3:]):
        stepped = model.step(words, cache)
    again = pruner and replay(pruner, trace)
    if name == "tome":                                     # it merges inside the tower, whatever the text is
        again = pruner
    whole, cache_whole, _ = prefill(model, prompt + WORDS, images(prompt), again)
    close(stepped, whole, DEEP)
    assert cache.lengths == cache_whole.lengths
    same_cache(cache, cache_whole)


# --- a sliding window -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pruner", [None, FastV(keep=5), FastVAllRows(keep=5), Chosen({2: range(0, 32, 3), 4: range(5)})],
                         ids=["unpruned", "last row", "all rows", "twice"])
@pytest.mark.parametrize("window", [9, 30, 500])
def test_sliding_window(pruner, window):
    """Counted in position ids: what is dropped leaves a gap. Masked equals dropped, cached equals uncached; a window
    that reaches further than the prompt is none."""
    model, prompt = llava(layers=6, window=window), PROMPTS["two images side by side"]
    logits, cache, trace = prefill(model, prompt, images(prompt), pruner)
    plain, _, _ = prefill(llava(layers=6), prompt, images(prompt), pruner and replay(pruner, trace))
    assert logits.equal(plain) == (window == 500)
    masked, cache_masked, _ = prefill(model, prompt, images(prompt), pruner and replay(pruner, trace, drop=False))
    close(logits, masked, DEEP)
    for word in WORDS:
        stepped = model.step([word], cache)
        close(stepped, model.step([word], cache_masked), DEEP)
    same_cache(cache, cache_masked)
    whole, cache_whole, _ = prefill(model, prompt + WORDS, images(prompt), pruner and replay(pruner, trace))
    close(stepped, whole, DEEP)
    same_cache(cache, cache_whole)


# --- the last row and all rows, seen and not seen ---------------------------------------------------------------------

def test_last_row_alone():
    """The last layer need not compute the rows that nobody reads, but all keys and values; reduced before it or not."""
    prompt = PROMPTS["one image"]
    for pruner in (None, FastV(layer=31), FastVMask(layer=31)):
        logits, cache, _ = prefill(llava(), prompt, images(prompt), pruner)
        hidden, cache_all, trace = prefill(llava(), prompt, images(prompt), pruner, last=False)
        assert len(hidden) == trace.tokens[-1]
        close(logits, llava().lm_head(hidden[-1]), DEEP)
        same_cache(cache, cache_all)


@pytest.mark.parametrize("rows", ["last", "text", "visual"])
@pytest.mark.parametrize("drop", [True, False], ids=["dropped", "masked"])
@pytest.mark.parametrize("window", [None, 30])
def test_some_rows_equal_those_of_all(rows, drop, window):
    """What a method sees of some query rows is what it sees of all in them, before and after a reduction, in both
    views."""
    prompt = PROMPTS["two images"]

    def look(tokens):
        at = torch.isin(tokens.rows("all"), tokens.rows(rows))
        for view in (tokens.before, tokens.here):
            close(view.attention(rows), view.attention("all")[:, at], DEEP)
            close(view.logits(rows), view.logits("all")[:, at], DEEP)
            close(view.mean_attention(rows), view.attention(rows).mean(dim=0), DEEP)
            close(view.mean_logits(rows), view.logits(rows).mean(dim=0), DEEP)
        return at.sum()

    kept = {2: Reduction(torch.arange(0, 32, 3), drop=drop), 4: range(11)}
    chosen = Chosen(kept, look=look)
    prefill(llava(layers=6, window=window), prompt, images(prompt), chosen)
    assert [int(count) for count in chosen.views] == {"last": [1, 1], "text": [10, 10], "visual": [32, 11]}[rows]


@pytest.mark.parametrize("drop", [True, False], ids=["dropped", "masked"])
@pytest.mark.parametrize("window", [None, 30])
def test_here_is_what_the_layer_then_computes(drop, window):
    """The attention that layer 3 will compute on the tokens that enter it, asked before it, is what layer 3 shows after
    it."""
    prompt, first = PROMPTS["two images"], Reduction(torch.arange(0, 32, 3), drop=drop)
    here = Chosen({2: first, 3: range(11)}, look=lambda tokens: tokens.here.attention("text"))
    before = Chosen({2: first, 4: range(11)}, look=lambda tokens: tokens.before.attention("text"))
    for chosen in (here, before):
        prefill(llava(layers=6, window=window), prompt, images(prompt), chosen)
    close(here.views[1], before.views[1], DEEP)


def test_a_view_shows_the_output_of_its_layer():
    """softmax(logits + mask) value, of a view, through the layer's own output projection and MLP, is what enters the
    next layer."""
    prompt, model = PROMPTS["one image"], llava(layers=6)

    def look(tokens):
        view, layer = tokens.before, model.language_model.layers[tokens.layer - 1]
        entered = view.tokens.hidden                                               # (T, D)
        value = layer.self_attn.heads(layer.self_attn.v_proj(layer.input_layernorm(entered))[None])[0]
        attended = view.attention("all") @ for_each_head(value, 4)                 # (H, T, Dh)
        hidden = entered + layer.self_attn.o_proj(attended.transpose(0, 1).flatten(1))
        close(hidden + layer.mlp(layer.post_attention_layernorm(hidden)), tokens.hidden, DEEP)

    chosen = Chosen({1: range(16), 3: range(9), 5: range(4)}, look=look)
    prefill(model, prompt, images(prompt), chosen)
    assert len(chosen.views) == 3
