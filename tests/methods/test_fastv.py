"""FastV by hand: whose attention counts, what is kept, how many, and what the mask variant ranks again."""

import pytest
import torch

from build import close, tokens
from pruning.base import UserError
from pruning.fastv import FastV
from pruning.readings import FastVAllRows, FastVMask, FastVRerank
from released import FastVRounded
from tiny import MARK, ids, llava, picture, prefill

BEFORE, N, AFTER = 5, 16, 7                    # text, visual tokens and text of the prompts that the model reads


def kept(entering, method=FastV, **options):
    """Indices that the method keeps."""
    return method(**options).reduce(entering).keep.tolist()


@pytest.mark.parametrize("keep, expected", [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (.5, [1, 2]), (1.0, [0, 1, 2, 3])])
def test_the_last_row_decides(keep, expected):
    """Four visual tokens get .05 .40 .20 .15 from the last token: the second and third are the best two, the fourth is
    the third best. What the text gets, .10 and .10, does not compete."""
    assert kept(tokens("tvvvvt", [.10, .05, .40, .20, .15, .10]), keep=keep) == expected


def test_the_mean_over_heads_decides():
    """The first head gives .6 .4 .0, the second .0 .4 .5: means .3 .4 .25, so the middle one is kept, though each head
    prefers another (a maximum over heads would keep the first)."""
    two_heads = [[[.6, .4, .0, .0]], [[.0, .4, .5, .1]]]
    assert kept(tokens("vvvt", two_heads), keep=1) == [1]


def test_all_rows_or_the_last():
    """The last row alone gives the visual tokens .1 .2 .5: the third. The columns of all five rows sum to 2.4, .4, .6:
    the first, which more rows can see."""
    rows = [[1., .0, .0, .0, .0],
            [.2, .8, .0, .0, .0],
            [.1, .8, .1, .0, .0],
            [.1, .7, .1, .1, .0],
            [.1, .1, .2, .5, .1]]
    assert kept(tokens("tvvvt", rows[-1]), keep=1) == kept(tokens("tvvvt", rows), keep=1) == [2]
    assert kept(tokens("tvvvt", rows), FastVAllRows, keep=1) == [0]
    assert kept(tokens("tvvvt", rows), FastVAllRows, keep=2) == [0, 2]
    close(FastVAllRows().score(tokens("tvvvt", rows)), [2.4 / 5, .4 / 5, .6 / 5])


def test_needle_between_two_images():
    """Two images of 2 and 3 tokens with text between; nearly all attention is on row 6, the second token of the second
    image. It is kept with its own state and position. Scores read at the first five columns would keep none of the
    second image."""
    entering = tokens("t vv tt vvv t", [.004, .001, .001, .001, .001, .001, .99, .0005, .0005])
    r = FastV(keep=1).reduce(entering)
    after = entering.reduced(r)
    assert r.keep.tolist() == [3]
    assert after.hidden[:, 0].tolist() == after.position.tolist() == [0, 3, 4, 6, 8]
    assert after.visual.tolist() == [3]
    assert after.next_position == 9
    close(r.score, [.001, .001, .001, .99, .0005], atol=1e-6)


def test_of_equals_the_first():
    assert kept(tokens("vvvvt", [.2, .2, .2, .2, .2]), keep=2) == [0, 1]
    assert kept(tokens("vvvvt", [.1, .2, .1, .2, .4]), keep=3) == [0, 1, 3]


@pytest.mark.parametrize("keep", [1, .01])
def test_one_token(keep):
    assert kept(tokens("vt", [.0, 1.]), keep=keep) == [0]


@pytest.mark.parametrize("keep, n, floor, rounded", [(.1, 576, 57, 58), (.25, 50, 12, 12), (.25, 54, 13, 14),
                                                     (.001, 576, 1, 1), (64, 576, 64, 64)])
def test_roundings(keep, n, floor, rounded):
    """57.6, 12.5, 13.5, .576: down, or half to even; but at least one. A number is itself."""
    assert FastV(keep=keep).budget(n) == floor
    assert FastVRounded(keep=keep).budget(n) == rounded


@pytest.mark.parametrize("options, problem", [
    (dict(layer=0), "layer must be at least 1"), (dict(layer=2.5), "layer is a whole number"),
    (dict(keep="half"), "keep is a number"), (dict(keep=0), "keep 0"), (dict(keep=1.5), "keep 1.5")])
def test_bad_options(options, problem):
    with pytest.raises(UserError, match=problem):
        FastV(**options)


@pytest.mark.parametrize("pruner, problem", [
    (FastV(keep=17), "keep 17 is out of range.* from 1 to 16"),
    (FastV(layer=32), "before layer 32, and this model has 32 layers")])
def test_what_does_not_fit_the_prompt_or_the_model(pruner, problem):
    with pytest.raises(UserError, match=problem):
        prefill(llava(), ids(2, MARK, 2), [picture(llava())], pruner)


def test_attention_that_overflowed():
    with pytest.raises(UserError, match="attention scores contain NaN"):
        kept(tokens("vvt", [.5, torch.nan, .5]), keep=1)


def test_masking_keeps_the_sequence():
    """The best two of three stay; the other one's row stays, too, and its key is masked."""
    entering = tokens("tvvvt", [.1, .3, .2, .3, .1])
    after = entering.reduced(FastVMask(keep=2).reduce(entering))
    assert after.hidden[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert after.visual.tolist() == [1, 3]
    assert after.masked.tolist() == [False, False, True, False, False]


def test_ranking_again_while_decoding():
    """After each generated token, layers K.. may read the visual tokens that it attends to most in layer K-1: those
    that it would keep as the last token of a prompt. A masked token can come back. Layers below K mask nothing."""
    model = llava()
    prompt = ids(BEFORE, MARK, AFTER)
    words = ids(4, seed=1)
    images = [picture(model)]
    _, cache, trace = prefill(model, prompt, images, FastVRerank(keep=4))
    kept_after = [set(trace.steps[0].kept.tolist())]
    for count, word in enumerate(words, start=1):
        model.step([word], cache, FastVRerank(keep=4))
        _, _, whole = prefill(model, prompt + words[:count], images, FastV(keep=4))
        visual = whole.steps[0].kept.tolist()
        kept_after.append(set(visual))
        text_after = range(BEFORE + N, BEFORE + N + AFTER + count)
        readable = [*range(BEFORE), *(BEFORE + i for i in visual), *text_after]
        for layer in cache.layers[2:]:
            assert (~layer.hidden_keys()).nonzero().squeeze(1).tolist() == readable
    assert all(layer.hidden_keys() is None for layer in cache.layers[:2])
    assert any(later - earlier for earlier, later in zip(kept_after, kept_after[1:]))
