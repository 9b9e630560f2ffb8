"""FastV by hand: whose attention counts, what is kept, how many, and what the mask mode ranks again."""

import pytest
import torch

from pruning.base import Tokens, UserError
from pruning.fastv import FastV
from tiny import MARK, ids, llava, one_thread, picture, prefill  # noqa: F401


def sequence(kinds, *heads):
    """Tokens of "t"ext and "v"isual rows, each row's hidden state its own index; attention rows of each head as typed."""
    visual = torch.tensor([kind == "v" for kind in kinds]).nonzero().squeeze(1)
    T, n = len(kinds), len(visual)
    attn = torch.tensor(heads).view(len(heads), -1, T)                             # (H, R, T)
    return Tokens(torch.arange(T).float()[:, None], torch.arange(T), visual, torch.zeros(n, 3), torch.arange(n), T, layer=2,
                  attn=attn)


def kept(tokens, **options):
    return FastV(**options).reduce(tokens).keep.tolist()


def test_the_last_row_decides():
    """Four visual tokens get .05 .40 .20 .15 from the last token: the second and third are the best two, the fourth joins
    as the third best. The text's .10 and .10 do not compete."""
    tokens = sequence("tvvvvt", [.10, .05, .40, .20, .15, .10])
    assert kept(tokens, keep=1) == [1] and kept(tokens, keep=2) == [1, 2] and kept(tokens, keep=3) == [1, 2, 3]
    assert kept(tokens, keep=.5) == [1, 2] and kept(tokens, keep=1.0) == [0, 1, 2, 3]


def test_the_mean_over_heads_decides():
    """The first head gives .6 .4 .0, the second .0 .4 .5: means .3 .4 .25, so the middle one, though each head likes
    another one most (a maximum over heads would keep the first)."""
    assert kept(sequence("vvvt", [.6, .4, .0, .0], [.0, .4, .5, .1]), keep=1) == [1]


def test_all_rows_or_the_last():
    """Columns of the visual tokens, rows 0 to 4:  - .8 .8 .6 .1 | - - .1 .2 .2 | - - - .1 .5 . The last row alone prefers
    the third. Over all rows the sums are 2.3, .5, .6: the first, which more rows can see."""
    rows = [1., .0, .0, .0, .0,
            .2, .8, .0, .0, .0,
            .1, .8, .1, .0, .0,
            .1, .6, .2, .1, .0,
            .1, .1, .2, .5, .1]
    assert kept(sequence("tvvvt", rows[-5:]), keep=1) == [2]
    assert kept(sequence("tvvvt", rows), keep=1, query="all") == [0]
    assert kept(sequence("tvvvt", rows), keep=2, query="all") == [0, 2]
    assert FastV(query="all").rows == "all" and FastV().rows == "last"


def test_needle_between_two_images():
    """Two images of 2 and 3 tokens, text between; nearly all attention is on row 6, the second token of the second image:
    it is kept, with its own state and position. Scores read at the first five columns would keep none of the second image."""
    tokens = sequence("tvvttvvvt", [.004, .001, .001, .001, .001, .001, .99, .0005, .0005])
    r = FastV(keep=1).reduce(tokens)
    after = tokens.reduced(r)
    assert r.keep.tolist() == [3] and after.hidden[:, 0].tolist() == after.position.tolist() == [0, 3, 4, 6, 8]
    assert after.visual.tolist() == [3] and after.next == 9
    torch.testing.assert_close(r.score, torch.tensor([.001, .001, .001, .99, .0005]))


def test_of_equals_the_first():
    assert kept(sequence("vvvvt", [.2] * 5), keep=2) == [0, 1]
    assert kept(sequence("vvvvt", [.1, .2, .1, .2, .4]), keep=3) == [0, 1, 3]


def test_one_token():
    assert kept(sequence("vt", [.0, 1.]), keep=1) == kept(sequence("vt", [.0, 1.]), keep=.01) == [0]


@pytest.mark.parametrize("keep, n, numbers", [(.1, 576, (57, 58, 58)), (.25, 50, (12, 12, 13)), (.25, 54, (13, 14, 14)),
                                              (.001, 576, (1, 1, 1)), (64, 576, (64, 64, 64))])
def test_roundings(keep, n, numbers):
    """57.6, 12.5, 13.5, .576: down, half to even, up; but at least one. A number is itself."""
    assert tuple(FastV(keep=keep, rounding=rounding).budget(n) for rounding in ("floor", "round", "ceil")) == numbers


@pytest.mark.parametrize("options, told", [
    (dict(query="first"), "query is"), (dict(mode="hide"), "mode"), (dict(rerank_decode=True), 'needs mode="mask"'),
    (dict(layer=0), "layer must be at least 1")])
def test_bad_options(options, told):
    with pytest.raises(UserError, match=told):
        FastV(**options)


@pytest.mark.parametrize("pruner, told", [
    (FastV(keep=17), "keep 17 is out of range.* from 1 to 16"), (FastV(keep=0), "keep 0"), (FastV(keep=1.5), "keep 1.5"),
    (FastV(rounding="up"), "rounding 'up'"), (FastV(layer=32), "before layer 32, and this model has 32 layers")])
def test_what_does_not_fit_the_prompt_or_the_model(pruner, told):
    with pytest.raises(UserError, match=told):
        prefill(llava(), ids(2, MARK, 2), [picture(llava())], pruner)


def test_attention_that_overflowed():
    with pytest.raises(UserError, match="NaN"):
        kept(sequence("vvt", [.5, torch.nan, .5]), keep=1)


def test_ranking_again_while_decoding():
    """After each generated token, layers K.. may read the visual tokens that it looks at most in layer K-1: those that it
    would keep as the last token of a prompt. A token that was hidden can come back. Layers below K hide nothing."""
    model, prompt, images = llava(), ids(5, MARK, 7), [picture(llava())]
    pruner, words, chosen = FastV(keep=4, mode="mask", rerank_decode=True), ids(4, seed=1), []
    _, cache, trace = prefill(model, prompt, images, pruner)
    for count, word in enumerate(words, 1):
        model.step([word], cache, pruner)
        _, _, whole = prefill(model, prompt + words[:count], images, FastV(keep=4))
        chosen.append(whole.steps[0].kept.tolist())
        for layer in cache.layers[2:]:
            assert (~layer.hidden_keys()).nonzero().squeeze(1).tolist() == \
                [*range(5), *(5 + i for i in chosen[-1]), *range(21, 28 + count)]
    assert all(layer.hidden_keys() is None for layer in cache.layers[:2])
    assert any(set(b) - set(a) for a, b in zip([trace.steps[0].kept.tolist(), *chosen], chosen))
