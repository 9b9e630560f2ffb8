"""FEATHER and its readings: by hand, equal to the released code's recordings, laws that it does not keep, edges."""

from dataclasses import replace

import pytest
import torch

from build import close, tokens
from golden import golden, of_case, prompt, run
from minivlm.attention import rope, rotate
from minivlm.llama import Decoder
from minivlm.parts.config import TextConfig
from pruning.base import LayerView, Reduction, UserError, whole_grid
from pruning.fastv import FastV
from pruning.feather import FEATHER, uniform
from pruning.readings import FEATHERRow, FastVUnrotated
from released import FEATHERToNothing
from tiny import MARK, Chosen, ids, llava, picture, prefill

SELECT, SELECT_FACTS = golden("feather_select")
E2E, E2E_FACTS = golden("feather_e2e")
CASES = {case["name"]: case for case in SELECT_FACTS["cases"]}
STAGES = [(name, stage) for name, case in CASES.items() for stage in range(len(case["stages"]))]

FIRST, SECOND = 8, 16


def looked_at(weights, layer, grid=None, kinds=None, **fields):
    """Tokens of which the last, without RoPE, pays the visual ones attention in these proportions, (n,) or (H, n)."""
    weights = torch.atleast_2d(torch.as_tensor(weights, dtype=torch.float32))                      # (H, n)
    n = weights.shape[1]
    kinds = kinds or "t" + "v" * n + "t"
    is_visual = torch.tensor([kind == "v" for kind in kinds])
    key = torch.zeros(len(weights), len(kinds), 1)                                 # (H, T, 1)  a query of 1: the logits
    key[:, is_visual, 0] = weights.log()
    before = dict(unrotated_query=torch.ones_like(key), unrotated_key=key)
    return tokens(kinds, before=before, grid=grid, layer=layer, **fields)


def kept(method, weights, layer, grid=None, **fields):
    """Which tokens are kept."""
    return method.reduce(looked_at(weights, layer, grid, **fields)).keep.tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

NINE = [1, 2, 6, 1, 4, 1, 2, 2, 1]             # of 20, on a grid of 3 x 3


def test_first_stage():
    """Attention chooses int(9 / 2) = 4 of 1 2 6 1 4 1 2 2 1: tokens 2 and 4, and the first two of the 2s, 1 and 6.
    Every second row and column is the corners 0 2 6 8. Kept is both; the best four miss two corners."""
    r = FEATHER(keep=.5, stride=2).reduce(looked_at(NINE, FIRST, (3, 3)))
    assert r.keep.tolist() == [0, 1, 2, 4, 6, 8]
    assert [r.reasons[i] for i in r.reason] == ["uniform", "attended", "attended", "attended", "attended", "uniform"]
    close(r.score, torch.tensor(NINE) / 20)
    assert kept(FastVUnrotated(keep=.5), NINE, 2) == [1, 2, 4, 6]


def test_second_stage():
    """Of the six that are left (1/2)^2 are kept, 1.5, so one: the best of 1 3 2 1 1 1. It is ranked anew, the grid
    counts no more, and the share is of the six: of the nine it would be two."""
    assert kept(FEATHER(keep=.5, stride=2), [1, 3, 2, 1, 1, 1], SECOND, prompt=looked_at(NINE, FIRST)) == [1]


def test_each_head_has_one_vote():
    """Head A pays .5 and .3 to the image, head B .001 and .009 and the rest to text. Mean over heads: .2505 and
    .1545, so a softmax over the row keeps token 0. Within the image they are .625 .375 and .1 .9, on average .3625 and
    .6375: FEATHER keeps 1."""
    key = torch.tensor([[.1, .5, .3, .1], [.495, .001, .009, .495]]).log()[:, :, None]             # (H, T, 1)
    entering = tokens("tvvt", before=dict(unrotated_query=torch.ones(2, 4, 1), unrotated_key=key), layer=SECOND)
    r = FEATHER(keep=.75).reduce(entering)                 # int(.5625 * 2) = 1
    assert r.keep.tolist() == [1]
    close(r.score, torch.tensor([.3625, .6375]))
    r = FEATHERRow(keep=.75).reduce(entering)
    assert r.keep.tolist() == [0]
    close(r.score, torch.tensor([.2505, .1545]))


def test_a_row_under_a_mask():
    """The softmax over the row leaves out what the last token cannot see, such as row 0 behind a sliding window: .5 and
    .3 of .9 are .556 and .333, and .001 and .009 of .505 are .002 and .018."""
    key = torch.tensor([[.1, .5, .3, .1], [.495, .001, .009, .495]]).log()[:, :, None]             # (H, T, 1)
    entering = tokens("tvvt", before=dict(unrotated_query=torch.ones(2, 4, 1), unrotated_key=key), layer=SECOND)
    entering.before.mask = lambda rows: torch.tensor([[-torch.inf, 0, 0, 0]])
    close(FEATHERRow(keep=.75).reduce(entering).score, torch.tensor([.2788, .1756]), 1e-4)


def test_without_rope():
    """One pair that turns by one radian per position, query (1, 0) at 10, keys (2, 0) at 7 and (1, 0) at 9. Rotated,
    the products are 2 cos 3 = -1.98 and cos 1 = .54: FastV keeps the later token. Unrotated they are 2 and 1."""
    position = torch.tensor([7, 9, 10])
    query = torch.tensor([[[0., 0], [0, 0], [1, 0]]])                              # (1, T, 2)
    key = torch.tensor([[[2., 0], [1, 0], [0, 0]]])
    turn = rope(position, 2, 10000., torch.float32)
    rotated = dict(query=rotate(query, turn), key=rotate(key, turn))
    unrotated = dict(unrotated_query=query, unrotated_key=key)
    entering = tokens("vvt", before=rotated | unrotated, position=position, layer=SECOND)
    close(entering.before.logits("last")[0, 0, :2], torch.tensor([-1.98, .54]) / 2 ** .5, 1e-2)
    assert FastV(keep=1).reduce(entering).keep.tolist() == [1]
    assert FEATHER(keep=.75).reduce(entering).keep.tolist() == [0]
    assert FastVUnrotated(keep=1).reduce(entering).keep.tolist() == [0]


def test_the_view_of_a_layer():
    """Queries and keys before RoPE, rotated, are those after it, of the layer that has run and of the one that will."""
    def check(view):
        query = view.query(rope=False)
        close(rotate(query, view.rope), view.query())
        close(rotate(view.key(rope=False), view.rope), view.key())
        close(view.query("last", rope=False), query[:, -1:])

    method = Chosen({2: [0]}, look=lambda tokens: [check(tokens.before), check(tokens.here)])
    prefill(llava(), ids(3, MARK, 4), [picture(llava())], method)
    assert len(method.views) == 1


# --- recorded ---------------------------------------------------------------------------------------------------------

def recorded(name, stage):
    """Tokens that enter a recorded stage, and the recording."""
    case = CASES[name]
    now = of_case(SELECT, f"{name}.stage{stage}")
    side = int(case["n"] ** .5)
    source = torch.arange(case["n"])
    if stage:
        source = SELECT[f"{name}.stage{stage - 1}.kept_original"].long()
    n = len(source)
    key = torch.nn.functional.pad(now["key"].transpose(0, 1), (0, 0, case["before"], case["after"]))
    before = dict(unrotated_query=now["query_last"][:, None], unrotated_key=key)
    kinds = "t" * case["before"] + "v" * n + "t" * case["after"]
    start = tokens("v" * case["n"])
    grid = whole_grid(side, side)[source]
    entering = tokens(kinds, before=before, grid=grid, layer=case["layers"][stage], prompt=start)
    return entering, now


def pruner_of(case):
    """The method of a recorded case."""
    if case["stride"] is None:
        return FastVUnrotated(case["layers"][0], 1 - case["fastv_ratio"])
    return FEATHERToNothing(tuple(case["layers"]), 1 - case["fastv_ratio"], case["stride"])


@pytest.mark.parametrize("name, stage", STAGES)
def test_recorded_stage(name, stage):
    """Scores and kept tokens. If there is a tie at the boundary, the released choice is any: then as many, and equally
    good."""
    entering, now = recorded(name, stage)
    facts = CASES[name]["stages"][stage]
    r = pruner_of(CASES[name]).reduce(entering)
    close(r.score, now["score"], 1e-5)
    assert len(r.keep) == facts["left"]
    if facts["boundary_gap"] == 0:
        close(r.score[r.keep].sort().values, now["score"][now["kept"].long()].sort().values, 2e-6)
    else:
        assert r.keep.tolist() == now["kept"].tolist()


@pytest.mark.parametrize("name, stage", [(name, stage) for name, stage in STAGES if CASES[name]["stride"]])
def test_differs_from_the_released_code_in_small_images_only(name, stage):
    """If that keeps no token by attention, the method keeps the best one; else the two are equal."""
    case = CASES[name]
    entering, _ = recorded(name, stage)
    released = pruner_of(case)
    ours = FEATHER(released.layers, released.keep, released.stride).reduce(entering)
    theirs = released.reduce(entering)
    assert set(theirs.keep.tolist()) <= set(ours.keep.tolist())
    if case["stages"][stage]["chosen_by_attention"]:
        assert ours.keep.equal(theirs.keep)
    else:
        assert int(ours.score.argmax()) in ours.keep.tolist()
        assert len(ours.keep) <= len(theirs.keep) + 1


def test_end_to_end():
    """Kept tokens of both stages and the last hidden states of the released forward on a 6-layer decoder with GQA."""
    facts = E2E_FACTS["config"]
    config = TextConfig(vocab_size=1, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=8, rms_norm_eps=facts["rms_norm_eps"])
    decoder = Decoder(config)
    missing, spare = decoder.load_state_dict(of_case(E2E, "model"), strict=False)
    assert missing == ["embed_tokens.weight"] and not spare
    start = prompt(E2E["inputs_embeds"], facts["before"], (6, 6))
    pruner = FEATHER(tuple(facts["fastv_k"]), 1 - facts["fastv_ratio"], facts["stride"])
    hidden, _, trace, _ = run(decoder, start, pruner, E2E["inputs_embeds"][:1])
    assert [step.kept.tolist() for step in trace.steps] == [E2E[f"stage{j}.kept_original"].tolist() for j in range(2)]
    for stage, step in enumerate(trace.steps):
        close(step.reduction.score, E2E[f"stage{stage}.score"])
    close(hidden, E2E["last_hidden_state"], 1e-5 * float(E2E["last_hidden_state"].abs().max()))
    unpruned, _, _, _ = run(decoder, start, None, E2E["inputs_embeds"][:1])
    close(unpruned, E2E["unpruned_last_hidden_state"], 1e-4)


# --- laws that it does not keep, and those of its readings ------------------------------------------------------------

def test_no_budget():
    """Four tokens in a column, every second of which is uniform: 0 and 2. If attention chooses 0 and 1, three are left,
    if 1 and 3, four."""
    method = FEATHER(keep=.5, stride=2)
    assert kept(method, [4, 3, 1, 2], FIRST, (4, 1)) == [0, 1, 2]
    assert kept(method, [1, 4, 2, 3], FIRST, (4, 1)) == [0, 1, 2, 3]
    assert method.budget(4) is None and method.schedule(576, 32) is None
    assert method.laws == {"select", "ordered"}
    with pytest.raises(UserError, match="the prompt decides how many tokens are left"):
        method.with_average(192, 576, 32)


def test_no_needle():
    """The token that gets all attention with RoPE need not be one that gets any without."""
    entering = looked_at([1, 9], SECOND)
    needle = LayerView.of(attention=[[0., .98, .01, .01]]).on(entering).attention
    entering.before.attention = needle
    assert int(entering.before.mean_attention("last")[0, entering.visual].argmax()) == 0
    assert FEATHER(keep=.75).reduce(entering).keep.tolist() == [1]


def test_laws_of_readings():
    """FastV without RoPE keeps its budget, and neither scale nor needle, which are about attention with RoPE."""
    assert FastVUnrotated().laws == {"select", "ordered", "budget"}
    assert FEATHERRow().laws == {"select", "ordered"}


# --- edges ------------------------------------------------------------------------------------------------------------

def test_a_number():
    """4 of 9 is the share 4/9: attention chooses 4 at first, and (4/9)^2 of the six that are left, 1.19, so one."""
    method = FEATHER(keep=4, stride=2)
    assert kept(method, NINE, FIRST, (3, 3)) == [0, 1, 2, 4, 6, 8]
    assert kept(method, [1, 3, 2, 1, 1, 1], SECOND, prompt=looked_at(NINE, FIRST)) == [1]


@pytest.mark.parametrize("keep", [1.0, 9])
def test_all_tokens(keep):
    method = FEATHER(keep=keep)
    assert kept(method, NINE, FIRST, (3, 3)) == kept(method, NINE, SECOND, (3, 3)) == list(range(9))


def test_one_token():
    """It is chosen by attention in both stages, and it is on the grid."""
    for layer in (FIRST, SECOND):
        assert kept(FEATHER(), [3], layer) == [0]


def test_ties():
    """Of equals the first: 2 of 6, and with them every third token of the row."""
    assert kept(FEATHER(keep=1 / 3), [1] * 6, FIRST) == [0, 1, 3]
    assert kept(FEATHER(keep=.6), [1] * 6, SECOND) == [0, 1]               # int(.36 * 6)


def test_uniform_of_tiles():
    """Each tile has a grid of its own. A newline, of row -1, is on none, not even if every row and column counts."""
    newline = torch.tensor([[1, -1, -1]])
    grid = torch.cat([whole_grid(3, 3), whole_grid(1, 4, 1), newline])
    assert uniform(grid, 3).tolist() == [0, 9, 12]
    assert uniform(grid, 2).tolist() == [0, 2, 6, 8, 9, 11]
    assert uniform(grid, 1).tolist() == list(range(13))


def test_uniform_after_another_method():
    """Of what another method has left: rows 0 and 2 of the column are sampled, and 0 is gone."""
    entering = replace(looked_at([1, 5, 2], FIRST), grid=whole_grid(4, 1)[1:])
    assert FEATHER(keep=1, stride=2).reduce(entering).keep.tolist() == [1]
    entering = replace(looked_at([5, 1, 2], FIRST), grid=whole_grid(4, 1)[1:])
    assert FEATHER(keep=1, stride=2).reduce(entering).keep.tolist() == [0, 1]


def test_masked_tokens():
    """A masked token is none of the n any more."""
    whole = looked_at([1, 9, 2], FIRST)
    left = replace(whole.reduced(Reduction(torch.tensor([0, 2]), drop=False)), layer=SECOND)
    left = replace(left, before=whole.before.on(left))
    r = FEATHER(keep=.75).reduce(left)
    assert r.keep.tolist() == [1]
    close(r.score, torch.tensor([1., 2]) / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """The softmax is in float32: the weights of 576 tokens would lose the smallest."""
    weights = torch.rand(576, generator=torch.Generator().manual_seed(0)) + .1
    entering = looked_at(weights, FIRST, (24, 24))
    key = entering.before.key(rope=False).to(dtype)
    half = LayerView.of(unrotated_query=torch.ones_like(key), unrotated_key=key)
    full = LayerView.of(unrotated_query=torch.ones_like(key).float(), unrotated_key=key.float())
    half, full = (FEATHER().reduce(replace(entering, before=view.on(entering))) for view in (half, full))
    assert half.score.dtype == torch.float32
    assert half.keep.equal(full.keep)


def test_two_images():
    """They are one set; each has a grid of its own: 2 x 2 of its 4 x 4 patches at least."""
    pictures = [picture(llava(), i) for i in range(2)]
    logits, _, trace = prefill(llava(), ids(3, MARK, 4, MARK, 6), pictures, FEATHER(layers=(2, 4)))
    first, second = trace.steps
    assert {0, 3, 12, 15, 16, 19, 28, 31} <= set(first.kept.tolist())
    assert len(second.kept) == int(.3 ** 2 * len(first.kept)) or len(second.kept) == 1
    assert logits.isfinite().all()


def test_no_image():
    """A prompt without one is left as it is."""
    logits, _, trace = prefill(llava(), ids(9), (), FEATHER())
    assert not trace.steps
    assert logits.equal(prefill(llava(), ids(9))[0])


def test_not_a_number():
    with pytest.raises(UserError, match="NaN.*float32"):
        kept(FEATHER(), [1, float("nan")], FIRST)


@pytest.mark.parametrize("options, message", [
    (dict(layers=(8, 8)), "layers must rise"),
    (dict(layers=(0, 8)), "must be at least 1"),
    (dict(layers=(8, 16, 24)), "is a list of"),
    (dict(keep=0.), "keep 0.0 is out"),
    (dict(keep=1.5), "keep 1.5 is out"),
    (dict(stride=0), "stride must be at least 1")])
def test_bad_options(options, message):
    """One line that names the option."""
    with pytest.raises(UserError, match=message) as caught:
        FEATHER(**options)
    assert "\n" not in str(caught.value)


def test_more_than_there_is():
    with pytest.raises(UserError, match="keep 4 is out of range.*from 1 to 3"):
        kept(FEATHER(keep=4), [1, 2, 3], FIRST)


def test_layer_that_the_model_has_not():
    with pytest.raises(UserError, match="FEATHER reduces before layer 32, and this model has 32 layers"):
        prefill(llava(), ids(3, MARK, 4), [picture(llava())], FEATHER(layers=(8, 32)))
