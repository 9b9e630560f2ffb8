"""DART and its readings: by hand, equal to the released code's recordings, a law that it does not keep, edges."""

import pytest
import torch
import torch.nn.functional as F

from build import close, plane, tokens
from golden import golden, of_case
from minivlm.llama import RMSNorm
from pruning.base import UserError
from pruning.dart import DART
from pruning.laws import LAWS
from pruning.readings import DARTReleased
from released import DARTSetOrder
from tiny import MARK, Chosen, ids, llava, picture, prefill

SELECT, SELECT_FACTS = golden("dart_select")
EXACT, EXACT_FACTS = golden("dart_recommended")
CASES = {case["name"]: case for case in SELECT_FACTS["cases"]}
*WITH_BUDGETS, OFFSETS = CASES
BUDGETS = [(name, facts) for name in WITH_BUDGETS for facts in CASES[name]["budgets"]]
KEPT = [(name, facts) for name, facts in BUDGETS if facts["error"] is None]
FAILED = [(name, facts) for name, facts in BUDGETS if facts["error"]]


def duplicates(strength, state, kinds, grid=None):
    """Tokens whose keys have these L1 norms (T,) and whose normed states are these (T, D)."""
    key = torch.tensor(strength)[None, :, None]                                    # (1, T, 1)
    return tokens(kinds, before=dict(key=key), here=dict(final_normed=state), grid=grid)


# --- by hand ----------------------------------------------------------------------------------------------------------

STRENGTH = [3., 7, 2, 5, 1, 0, 4, 6]           # keys; rows 1 to 5 are tokens 0 to 4, rows 6 and 7 text
STATE = torch.tensor([[9., 9], [1, 0], [0, 1], [.6, .8], [-1, 0], [.8, -.6], [9, -9], [-.6, .8]])
ONE_EACH = dict(image_pivots=1, text_pivots=1)


def example(kinds="t vvvvv tt"):
    """System text, five tokens, and two of text."""
    return duplicates(STRENGTH, STATE, kinds)


def test_one_pivot_each():
    """The largest key of the image is token 0's, 7, that of the text after it the last row's, 6. Cosines with token 0
    at (1, 0): token 1 0, 2 .6, 3 -1, 4 .8, so it retains 3. With the text at (-.6, .8): 1 .8, 2 .28, 4 -.96: it is 4.
    """
    r = DART(keep=3, **ONE_EACH).reduce(example())
    assert r.keep.tolist() == [0, 3, 4]
    assert [r.reasons[i] for i in r.reason] == ["pivot", "unlike a pivot", "unlike a pivot"]
    close(r.score, -torch.tensor([-.6, 0, .28, -1, -.96]))         # the smaller of the two cosines, negated


def test_not_the_least_similar_to_all():
    """Each pivot counts by itself: token 4 is retained by the text, though it is like token 0, at .8. By the larger of
    its two cosines, .8 .6 .6 .8 for tokens 1 to 4, a token would have to be unlike both: 2 and 3."""
    with_both = torch.tensor([[0., .6, -1, .8], [.8, .28, .6, -.96]])              # of tokens 1, 2, 3, 4
    assert sorted(with_both.amax(dim=0).argsort(stable=True)[:2].tolist()) == [1, 2]
    assert DART(keep=3, **ONE_EACH).reduce(example()).keep.tolist() == [0, 3, 4]


def test_the_first_pivot_adds_one_more():
    """Three tokens to add for two pivots: two for token 0, 3 (-1) and 1 (0). Of 2 and 4 the text retains 4, at -.96."""
    r = DART(keep=4, **ONE_EACH).reduce(example())
    assert r.keep.tolist() == [0, 1, 3, 4]
    assert DART().additions(10, 3, 5) == [2, 2, 1, 1, 1]


def test_strong_pivots_first():
    """Two pivots of the image, tokens 0 (7) and 2 (5), at 0 and 90 degrees, whose order decides: the token at 200
    degrees is the least like both (-.94, -.34). Token 0 retains it, and 2 the one at 10 degrees (.17; .5 for that at
    30). The other way round 2 would retain it, and 0 the one at 30 degrees (.87; .98 for that at 10)."""
    state = torch.cat([plane(0), plane(10, 90, 200, 30), torch.zeros(1, 2)])
    entering = duplicates([7., 1, 5, 2, 3, 9], state, "vvvvvt")
    assert DART(keep=4, image_pivots=2, text_pivots=0).reduce(entering).keep.tolist() == [0, 1, 2, 3]
    assert DART(keep=3, image_pivots=2, text_pivots=0).reduce(entering).keep.tolist() == [0, 2, 3]


def test_keys_by_their_l1_norm():
    """(3, 3) is stronger than (0, 5): 6 and 5, though its length is 4.2. Both heads count."""
    key = torch.tensor([[[3., 3], [0, 5], [0, 0]], [[0, 0], [0, .5], [9, 9]]])             # (Hk, T, Dh)
    entering = tokens("vvt", before=dict(key=key), here=dict(final_normed=torch.ones(3, 2)))
    assert DART(keep=1).reduce(entering).keep.tolist() == [0]
    entering = tokens("vvt", before=dict(key=key * torch.tensor([1., 4])[:, None, None]),
                      here=dict(final_normed=torch.ones(3, 2)))
    assert DART(keep=1).reduce(entering).keep.tolist() == [1]              # 6 and 7


def test_the_final_norm():
    """A view of the layer that will run gives the stream after the decoder's last norm, whose weight matters to a
    cosine. A view of the layer that has run has none."""
    def look(tokens):
        return tokens.here.final_normed(), tokens.hidden

    method = Chosen({2: [0]}, look=look)
    model = llava()
    prefill(model, ids(3, MARK, 4), [picture(model)], method)
    ((normed, hidden),) = method.views
    assert normed.equal(model.language_model.norm(hidden))
    assert not torch.allclose(F.normalize(normed, dim=1), F.normalize(hidden, dim=1), atol=1e-2)
    method = Chosen({2: [0]}, look=lambda tokens: tokens.before.final_normed())
    with pytest.raises(UserError, match="DecoderView.*it has no final norm"):
        prefill(model, ids(3, MARK, 4), [picture(model)], method)


# --- recorded ---------------------------------------------------------------------------------------------------------

def recorded(name):
    """Tokens of a recorded case, before layer 2."""
    case = CASES[name]
    of = of_case(SELECT, name)
    kinds = "t" * case["before"] + "v" * case["n"] + "t" * case["after"]
    return tokens(kinds, before=dict(key=of["turned_key"]), here=dict(final_normed=of["state"]), hidden=of["hidden"])


def pruner_of(kind, name, facts):
    """The method of a recorded budget: LLaVA-NeXT has its own number, and a number goes before a ratio."""
    case = CASES[name]
    keep = case["retain_token_num_for_llava_next"] or facts["max_num_trunction"] or 1 - facts["reduction_ratio"]
    return kind(keep=keep, image_pivots=case["pivot_image_token"], text_pivots=case["pivot_text_token"])


@pytest.mark.parametrize("name, facts", KEPT, ids=[f"{name}-{facts['budget']}" for name, facts in KEPT])
def test_recorded(name, facts):
    """Pivots in their order and tokens kept by the released code. Of equal rows it takes any: there, as many."""
    entering = recorded(name)
    method = pruner_of(DARTReleased, name, facts)
    r = method.reduce(entering)
    assert len(r.keep) == facts["kept"] == method.budget(entering.n)
    if CASES[name]["equal_rows"]:
        return
    image, text = method.pivots(entering, method.budget(entering.n))
    pivots = method.visited(torch.cat([entering.visual[image], text]))
    assert pivots.tolist() == SELECT[f"{name}.{facts['budget']}.pivots"].tolist()
    assert r.keep.tolist() == SELECT[f"{name}.{facts['budget']}.kept"].tolist()


@pytest.mark.parametrize("name, facts", FAILED, ids=[f"{name}-{facts['budget']}" for name, facts in FAILED])
def test_where_the_released_code_stops(name, facts):
    """It wants more text than there is, or more tokens. The method takes fewer pivots, or refuses the number."""
    entering = recorded(name)
    method = pruner_of(DARTReleased, name, facts)
    if method.keep > entering.n:
        with pytest.raises(UserError, match="keep 16 is out of range"):
            method.reduce(entering)
    else:
        assert len(method.reduce(entering).keep) == 4 + 7              # 4 and 3 pivots add one each


@pytest.mark.parametrize("name", WITH_BUDGETS)
def test_recorded_norm(name):
    """The recorded states are the recorded streams under a norm like the decoder's."""
    of = of_case(SELECT, name)
    norm = RMSNorm(of["hidden"].shape[1], 1e-5)
    norm.weight.copy_(of["norm_weight"])
    close(norm(of["hidden"]), of["state"])


@pytest.mark.parametrize("name", EXACT_FACTS["cases"], ids=lambda case: case["case"])
def test_recorded_exact(name):
    """The released order of the pivots with exactly `keep` tokens left."""
    case, _, keep = name["case"].rpartition(".keep")
    method = pruner_of(DARTSetOrder, case, dict(max_num_trunction=int(keep), reduction_ratio=None))
    method = DARTSetOrder(keep=int(keep), image_pivots=method.image_pivots, text_pivots=method.text_pivots)
    assert method.reduce(recorded(case)).keep.tolist() == EXACT[f"{name['case']}.kept"].tolist()


@pytest.mark.parametrize("start", CASES[OFFSETS]["starts"])
def test_recorded_offsets(start):
    """The same tokens behind so much text: the set of row numbers has another order, and other tokens are kept. In the
    order of the keys they are always the same ones."""
    facts = CASES[OFFSETS]
    of = of_case(SELECT, OFFSETS)
    key = F.pad(of["turned_key"], (0, 0, start, 0))
    state = F.pad(of["state"], (0, 0, start, 0))
    kinds = "t" * start + "v" * facts["n"] + "t" * facts["after"]
    entering = tokens(kinds, before=dict(key=key), here=dict(final_normed=state))
    method = DARTReleased(keep=facts["max_num_trunction"])
    image, text = method.pivots(entering, method.budget(entering.n))
    pivots = method.visited(torch.cat([entering.visual[image], text]))
    assert (pivots - start).tolist() == of[f"start{start}.pivots"].tolist()
    assert method.reduce(entering).keep.tolist() == of[f"start{start}.kept"].tolist()
    at_the_start = tokens("v" * facts["n"] + "t" * facts["after"], before=dict(key=of["turned_key"]),
                          here=dict(final_normed=of["state"]))
    ours = DART(keep=20)
    assert ours.reduce(entering).keep.equal(ours.reduce(at_the_start).keep)


def test_released_order_breaks_shift():
    """Text before the image changes the choice of the released code, and not that of the method."""
    of = of_case(SELECT, OFFSETS)
    entering = tokens("v" * 36 + "t" * 6, before=dict(key=of["turned_key"]), here=dict(final_normed=of["state"]))
    assert LAWS["shift"].holds(DART(keep=16), entering)
    rows = [start for start in CASES[OFFSETS]["starts"] if start]
    assert not all(LAWS["shift"].holds(DARTReleased(keep=16), entering, rows) for rows in rows)


def test_released_count():
    """For 128, 192 and 64 the released code leaves four more; of 7 for eight pivots, only those of the image."""
    assert [DARTReleased(keep=k).budget(576) for k in (128, 192, 64, 7)] == [132, 196, 68, 4]
    assert [DART(keep=k).budget(576) for k in (128, 192, 64, 7)] == [128, 192, 64, 7]
    assert DART().budget(576) == 128


# --- laws and edges ---------------------------------------------------------------------------------------------------

def test_no_needle():
    """A token that gets all of the attention is lost if its key is weak and it is parallel to a pivot."""
    attention = [[.01, .96, .01, .01, .01]]
    state = torch.tensor([[1., 0], [2, 0], [0, 1], [-1, 0], [0, -1]])
    key = torch.tensor([5., 1, 2, 2, 0])[None, :, None]
    entering = tokens("vvvvt", attention, before=dict(key=key), here=dict(final_normed=state))
    assert int(entering.before.mean_attention("last")[0, :4].argmax()) == 1
    assert DART(keep=3, **ONE_EACH).reduce(entering).keep.tolist() == [0, 2, 3]
    assert DART().laws == {"select", "ordered", "budget"}


def test_one_token_and_all_tokens():
    """The strongest; all of them, by number or share."""
    assert DART(keep=1).reduce(example()).keep.tolist() == [0]
    for keep in (5, 1.0):
        assert DART(keep=keep).reduce(example()).keep.tolist() == [0, 1, 2, 3, 4]
    alone = duplicates([1., 2], torch.ones(2, 2), "vt")
    assert DART().reduce(alone).keep.tolist() == [0]


def test_ties():
    """Equal keys and equal states: the first of each."""
    entering = duplicates([1.] * 9, torch.ones(9, 2), "vvvvvvvtt")
    assert DART(keep=5, image_pivots=2).reduce(entering).keep.tolist() == [0, 1, 2, 3, 4]


def test_zero_states():
    """No NaN: a row of zeros has cosine 0 with all."""
    state = torch.tensor([[1., 0], [0, 0], [.1, 1], [-.1, 1], [0, 0]])
    r = DART(keep=2, image_pivots=1).reduce(duplicates([5., 1, 1, 1, 1], state, "vvvvt"))
    assert r.score.isfinite().all()
    assert r.keep.tolist() == [0, 3]           # -.1, before 0


@pytest.mark.parametrize("text", [0, 1, 2])
def test_little_text(text):
    """Fewer pivots, and as many tokens; without text those of the image are the pivots."""
    kinds = "t" + "v" * 5 + "t" * text
    entering = duplicates(STRENGTH[:6 + text], STATE[:6 + text], kinds)
    assert len(DART(keep=3, image_pivots=1).reduce(entering).keep) == 3
    assert DART(keep=3, image_pivots=1).reduce(entering).keep[0] == 0


def test_no_pivot():
    """None of the image, and there is no text. With text: the row at (-.6, .8), the stronger, retains two, 4 (-.96) and
    0 (-.6), the other at (1, -1) one: 1, at -.71 as 3, before 2 at -.14."""
    entering = duplicates(STRENGTH[:6], STATE[:6], "t vvvvv")
    with pytest.raises(UserError, match="image_pivots is 0, and no text follows the image") as caught:
        DART(keep=3, image_pivots=0).reduce(entering)
    assert "\n" not in str(caught.value)
    assert DART(keep=3, image_pivots=0).reduce(example()).keep.tolist() == [0, 1, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Norms and cosines are computed in float32. Keys of sum 256 and 256.1 tie in half precision, and the second is the
    pivot; states at 1 and 2 degrees from it both have a cosine of 1, and the farther one is retained."""
    key = torch.full((1, 4, 64), 4.)
    key[0, 1, 0] = 4.1
    key[0, 2:] = 1
    state = plane(1, 0, 2, 0)
    entering = tokens("vvvt", before=dict(key=key.to(dtype)), here=dict(final_normed=state.to(dtype)))
    assert DART(keep=1, text_pivots=0).reduce(entering).keep.tolist() == [1]
    assert DART(keep=2, image_pivots=1, text_pivots=0).reduce(entering).keep.tolist() == [1, 2]


def test_two_images():
    """They are one set, and their budget one number."""
    pictures = [picture(llava(), i) for i in range(2)]
    logits, _, trace = prefill(llava(), ids(3, MARK, 4, MARK, 6), pictures, DART(keep=9))
    assert trace.visual == [32] * 2 + [9] * 30
    assert logits.isfinite().all()


def test_no_image():
    """A prompt without one is left as it is."""
    logits, _, trace = prefill(llava(), ids(9), (), DART())
    assert not trace.steps
    assert logits.equal(prefill(llava(), ids(9))[0])


def test_not_a_number():
    for strength, state in (([1., float("nan"), 1], torch.ones(3, 2)), ([1., 2, 3], torch.full((3, 2), torch.nan))):
        with pytest.raises(UserError, match="NaN.*float32"):
            DART(keep=1).reduce(duplicates(strength, state, "vvt"))


@pytest.mark.parametrize("options, message", [
    (dict(image_pivots=0, text_pivots=0), "both 0"),
    (dict(image_pivots=-1), "image_pivots must be at least 0"),
    (dict(layer=0), "layer must be at least 1"),
    (dict(keep=0), "keep 0 is out of range"),
    (dict(keep=1.5), "keep 1.5 is out of range")])
def test_bad_options(options, message):
    """One line that names the option."""
    with pytest.raises(UserError, match=message) as caught:
        DART(**options)
    assert "\n" not in str(caught.value)


def test_more_than_there_is():
    with pytest.raises(UserError, match="keep 6 is out of range.*from 1 to 5"):
        DART(keep=6).reduce(example())
