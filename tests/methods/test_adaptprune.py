"""AdaptPrune: equal to its released code, right by hand, each rung of its Table 4 another method."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from build import close, tokens
from golden import golden, of_case, prompt, run, tiny_decoder
from pruning.adaptprune import AdaptPrune, gaussian, patch_distance
from pruning.base import LayerView, UserError, whole_grid
from pruning.fastv import FastV
from pruning.readings import AdaptPruneKeepNewlines, AdaptPruneNormedKeys
from released import AdaptPruneOf24, AdaptPruneRepeats
from tiny import MARK, SETTINGS, ids, llava, picture, prefill
from waits import waits

SELECT, SELECT_FACTS = golden("adaptprune_select")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
SYSTEM, TEXT = 35, 12                          # rows before and after the 24 x 24 visual ones of tiny_llama_e2e


def entering(attention, grid, key=None, system=0):
    """`system` rows, n visual rows with attention (n,) and have `key` (n, C); None: all the same; and a text row."""
    attention = torch.as_tensor(attention)
    n = len(attention)
    row = torch.cat([torch.zeros(system), attention, torch.zeros(1)])              # (T,)
    key = torch.ones(n, 1) if key is None else torch.as_tensor(key).float()
    nothing = torch.zeros(system, key.shape[1])
    stream_key = torch.cat([nothing, key, torch.zeros(1, key.shape[1])])           # (T, C)
    kinds = "t" * system + "v" * n + "t"
    return tokens(kinds, row, grid=grid, here=dict(stream_key=stream_key))


def drawn(H, W, seed=0, attention=None, dtype=torch.float32):
    """Random attention unless it is given, and, as neighbours are alike, keys with a common direction."""
    generator = torch.Generator().manual_seed(seed)
    key = 4 + torch.randn(H * W, 8, generator=generator)
    if attention is None:
        attention = torch.rand(H * W, generator=generator)
    return entering(attention, (H, W), key.to(dtype), system=2)


def kept(tokens, method=AdaptPrune, **options):
    """Indices that the method keeps."""
    return method(**options).reduce(tokens).keep.tolist()


def order(tokens, method):
    """Indices in the order in which the method picks them."""
    score = method.score(tokens)
    return method.adaptive_nms(score, method.suppression(tokens), method.budget(tokens.n)).tolist()


# --- by the released code ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", SELECT_FACTS["cases"])
def test_selection(case):
    """Gaussian, corrected scores, order of picking and survivors, on square, odd and rectangular grids."""
    facts = SELECT_FACTS["cases"][case]
    recorded = of_case(SELECT, case)
    H, W = facts["grid"]
    system = facts["sys_len"]
    hidden = torch.arange(facts["seq_len"]).float()[:, None]                       # each token carries its own index
    stream_key = torch.zeros(len(hidden), recorded["keys"].shape[1])
    stream_key[system:system + H * W] = recorded["keys"]
    before = LayerView.of(attention=recorded["attn_last_row"][:, None])
    here = LayerView.of(stream_key=stream_key)
    tokens = prompt(hidden, system, (H, W), before=before, here=here)
    options = {name: facts[name] for name in ("sigma_d", "sigma_s", "distance_limit", "sigma_correction")}
    method = AdaptPruneOf24(keep=facts["keep_ratio"], similarity=facts["variant"] == "full", **options)

    r = method.reduce(tokens)
    close(gaussian(tokens.grid, method.sigma_correction).view(H, W), recorded["gaussian_mask"])
    close(r.score.view(H, W), recorded["corrected_scores"], 1e-8, 1e-5)
    assert method.budget(tokens.n) == facts["n_keep"]
    assert order(tokens, method) == recorded["order"].tolist()
    assert tokens.reduced(r).hidden[:, 0].long().tolist() == recorded["kept_global"].tolist()
    corrected = replace(method, distance=False, similarity=False).reduce(tokens)
    assert corrected.keep.tolist() == recorded["correction_only_kept_local"].tolist()


def test_the_released_width_is_half_of_the_24_patches():
    """On the grid of LLaVA-1.5 the width that adapts to the grid is the released one."""
    grid = whole_grid(24, 24)
    assert torch.equal(gaussian(grid), gaussian(grid, 12.))


@pytest.mark.parametrize("name", [name for name in E2E_FACTS["runs"] if name.startswith("adaptprune")])
def test_end_to_end(name):
    """Survivors, hidden states of the prefill and of three steps, cache lengths, on the recorded 6-layer decoder.

    The released code holds the keys of layer K-1 twice, without effect.
    """
    facts = E2E_FACTS["runs"][name]
    method = AdaptPrune(facts["K"], facts["keep_ratio"])
    tokens = prompt(E2E["inputs_embeds"][0], SYSTEM, (24, 24))
    hidden, decoded, trace, after = run(tiny_decoder(), tokens, method, E2E["decode_embeds"])
    assert (trace.steps[-1].kept + SYSTEM).tolist() == E2E[f"{name}.kept"][SYSTEM:-TEXT].tolist()
    close(hidden[-TEXT:], E2E[f"{name}.text_hidden"])
    close(decoded, E2E[f"{name}.decode_hidden"])
    for (lengths, _), recorded in zip(after, facts["kv_decode"]):
        recorded[facts["K"] - 1] //= 2
        assert lengths == recorded


def test_keys_before_the_norm():
    """The code projects layer K's input without its norm; layer K's own keys pick other tokens."""
    tokens = prompt(E2E["inputs_embeds"][0], SYSTEM, (24, 24))
    both = []
    for method in (AdaptPrune(2, 0.25), AdaptPruneNormedKeys(2, 0.25)):
        _, _, trace, _ = run(tiny_decoder(), tokens, method, E2E["decode_embeds"][:1])
        both.append(trace.steps[-1].kept.tolist())
    released, normed = both
    assert len(released) == len(normed) == 144
    assert released != normed


def test_the_released_code_repeats():
    """Attention 0 .5 0: after the first pick all scores are 0. The released code picks 0 twice, and here 0 and 2."""
    tokens = entering([0, .5, 0], (1, 3))
    assert kept(tokens, keep=3) == [0, 1, 2]
    assert kept(tokens, AdaptPruneRepeats, keep=3) == [0, 0, 1]
    assert "select" in AdaptPrune().laws
    assert "select" not in AdaptPruneRepeats().laws


# --- 4.1 by hand ------------------------------------------------------------------------------------------------------

def test_correction():
    """A row of 4 patches with attention .30 .25 .20 .24; two stay. The attention alone keeps 0 and 1.

    Coordinates -2 -2/3 2/3 2, squares 4 4/9 4/9 4. With sigma = 2 (half of 4) the outer patches weigh
    exp(-(4 - 4/9) / 8) = exp(-4/9) = .641 of the inner ones: .192 .25 .20 .154. So 1 and 2 stay.
    """
    tokens = entering([.30, .25, .20, .24], (1, 4))
    assert kept(tokens, keep=2, distance=False, similarity=False, correction=False) == [0, 1]
    r = AdaptPrune(keep=2, distance=False, similarity=False).reduce(tokens)
    assert r.keep.tolist() == [1, 2]
    close(r.score, [.1924, .25, .20, .1539], atol=1e-4)


def test_correction_of_an_odd_side_is_off_centre():
    """3 patches: floor(-3/2) = -2 .. floor(3/2) = 1, so coordinates -2 -.5 1.

    sigma = 1 weighs them exp(-(4 - .25) / 2), 1, exp(-(1 - .25) / 2).
    """
    close(gaussian(whole_grid(1, 3), 1.), [.1534, 1, .6873], atol=1e-4)


def test_correction_of_a_grid_that_is_not_square():
    """2 x 6: coordinates -1 1 by -3 -1.8 -.6 .6 1.8 3, and sigma = 3 on both axes, half of the longer side.

    A corner is as far off by its row as the middle is: it weighs exp(-(3^2 - .6^2) / 18).
    """
    weight = gaussian(whole_grid(2, 6)).view(2, 6)
    close(weight[0, 0], torch.tensor(-(9 - .36) / 18).exp())
    assert torch.equal(weight[0], weight[1])


def test_each_tile_has_its_own_centre():
    """A tile of 4 x 4 and one of 3 x 8 in one prompt: each is weighed by its own size and its own sigma."""
    tiles = whole_grid(4, 4), whole_grid(3, 8, tile=1)
    weight = gaussian(torch.cat(tiles))
    assert torch.equal(weight, torch.cat([gaussian(tile) for tile in tiles]))
    assert weight[5] == 1


# --- 4.2 and 4.3 by hand ----------------------------------------------------------------------------------------------

def test_distance():
    """A row of 6, attention .30 .28 .05 .06 .20 .01, all keys equal; two stay. The best two, 0 and 1, are neighbours.

    0 is picked. At distance 1 its neighbour is left 1 - exp(-1/4.5) = .199 of .28 = .056; token 4, at distance 4,
    1 - exp(-16/4.5) = .971 of .20 = .194. So 4 is next.
    """
    tokens = entering([.30, .28, .05, .06, .20, .01], (1, 6))
    assert kept(tokens, keep=2, correction=False) == [0, 4]
    assert kept(tokens, keep=2, correction=False, distance=False, similarity=False) == [0, 1]


def test_similarity():
    """The same row, but the key of token 1 is orthogonal to that of token 0: cosine 0, exp(-1 / .005) = 0, nothing is
    lost.

    So 0 and 1 stay, side by side: they show different things. Distance alone would still part them.
    """
    key = [[1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0]]
    tokens = entering([.30, .28, .05, .06, .20, .01], (1, 6), key)
    assert kept(tokens, keep=2, correction=False) == [0, 1]
    assert kept(tokens, keep=2, correction=False, similarity=False) == [0, 4]


def test_similarity_alone():
    """A row of 4, attention .3 .2 .1 .1, keys e1 e2 e1 e1; similarity without distance; two stay.

    0 is picked. Its equals 2 and 3, however far in the disc, fall to 0; 1 keeps .2. With distance 3, three patches
    away, keeps 1 - exp(-9/4.5) = .865 of .1, and 2 keeps 1 - exp(-4/4.5) = .589 of it.
    """
    tokens = entering([.3, .2, .1, .1], (1, 4), [[1, 0], [0, 1], [1, 0], [1, 0]])
    close(AdaptPrune(distance=False).suppression(tokens)[0], [1, 0, 1, 1])
    close(AdaptPrune().suppression(tokens)[0], [1, 0, .4111, .1353], atol=1e-4)
    assert kept(tokens, keep=2, correction=False, distance=False) == [0, 1]


def test_suppression_adds_up():
    """A row of 5, attention .5 .1 .4 .1 .45, keys equal, sigma_d 1.5: three stay, and the last pick has been lowered
    twice.

    0 is picked; 2 keeps 1 - exp(-4/4.5) = .589: .236; 4 keeps .971: .437 and is picked; 2 is lowered again: .139. 1 has
    .1 * .199 * (1 - exp(-9/4.5) = .865) = .017, as has 3. So 2 is third.
    """
    tokens = entering([.5, .1, .4, .1, .45], (1, 5))
    assert order(tokens, AdaptPrune(keep=3, correction=False)) == [0, 4, 2]


def test_the_corrected_score_is_what_is_suppressed():
    """A row of 4, attention .30 .25 .20 .24, keys equal: corrected .192 .25 .20 .154 (see test_correction). Three stay.

    1 is picked, not 0. The others keep 1 - exp(-1/4.5) = .199, the same, and 1 - exp(-4/4.5) = .589: .038 .040 .091. 3
    is picked, and leaves 0 .865 of .038 = .033 and 2 .199 of .040 = .008. So 0 is third.
    """
    tokens = entering([.30, .25, .20, .24], (1, 4))
    assert order(tokens, AdaptPrune(keep=3)) == [1, 3, 0]


def test_neighbours_are_a_disc_with_its_rim():
    """(3, 4) is 5 away and a neighbour, (4, 4) is not; a corner has a quarter of the disc."""
    neighbours = AdaptPrune(distance=False, similarity=False).suppression(entering(torch.ones(121), (11, 11))).bool()
    corner = neighbours[0].view(11, 11)
    assert corner[3, 4] and corner[0, 5]
    assert not corner[4, 4] and not corner[0, 6]
    assert corner.sum() == 26
    assert neighbours[60].sum() == 81


def test_tiles_do_not_suppress_each_other():
    """Attention .4 .3 | .35 .1 on two tiles of 1 x 2, keys equal; three stay.

    0 is picked, 1 keeps .199 of .3 = .060; 2 lies in the other tile, is picked, and 3 keeps .199 of .1 = .020. So 1 is
    third. On one tile of 1 x 4, 1 would be lowered by both of its neighbours, to .012, and 3 to .1 * .865 * .199 =
    .017: 3 would be third.
    """
    attention = [.4, .3, .35, .1]
    two_tiles = torch.cat([whole_grid(1, 2), whole_grid(1, 2, tile=1)])
    assert kept(entering(attention, two_tiles), keep=3, correction=False) == [0, 1, 2]
    assert kept(entering(attention, (1, 4)), keep=3, correction=False) == [0, 2, 3]


def test_newline_tokens():
    """A grid 2 x 2 with a newline token (on no grid) after each row: .3 .2 (.01) .2 .25 (.02), keys equal; three stay.

    0 is picked; the token across keeps 1 - exp(-2/4.5) = .359 of .25 = .09 and is picked; the other two, next to both,
    keep .199^2 of .2 = .008. Newline tokens have no neighbours: .02 is third. Without suppression it would be a .2.
    Kept before all others, the newline tokens take two of the three places.
    """
    grid = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, -1], [0, 1, 0], [0, 1, 1], [0, -1, -1]])
    tokens = entering([.3, .2, .01, .2, .25, .02], grid)
    close(gaussian(grid), torch.ones(6))
    assert kept(tokens, keep=3) == [0, 4, 5]
    assert kept(tokens, keep=3, distance=False, similarity=False) == [0, 1, 4]


@pytest.mark.parametrize("options, expected", [
    (dict(keep=3), [0, 2, 5]), (dict(keep=1), [2]), (dict(keep=3, distance=False, similarity=False), [0, 2, 5])])
def test_newline_tokens_first(options, expected):
    """The same image, and newline tokens are kept before all others; the score for pictures is as it was."""
    grid = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, -1], [0, 1, 0], [0, 1, 1], [0, -1, -1]])
    attention = [.3, .2, .01, .2, .25, .02]
    r = AdaptPruneKeepNewlines(**options).reduce(entering(attention, grid))
    assert r.keep.tolist() == expected
    close(r.score, attention)
    assert "needle" not in AdaptPruneKeepNewlines().laws


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3))
@SETTINGS
def test_distances_are_within_a_tile(H, W, tiles):
    """Of each two tokens the distance on their grid; infinite between tiles, and to what is on no grid."""
    off_grid = torch.tensor([[0, -1, -1]])
    grid = torch.cat([whole_grid(H, W, tile) for tile in range(tiles)] + [off_grid])
    d = patch_distance(grid)
    for i, (tile, row, column) in enumerate(grid.tolist()):
        for j, (other_tile, other_row, other_column) in enumerate(grid.tolist()):
            apart = ((row - other_row) ** 2 + (column - other_column) ** 2) ** .5
            on_one_grid = tile == other_tile and row >= 0 and other_row >= 0
            assert d[i, j].item() == pytest.approx(apart if on_one_grid else float("inf"))


# --- Table 4 ----------------------------------------------------------------------------------------------------------

A = dict(correction=False, distance=False, similarity=False)
B = dict(distance=False, similarity=False)
C = dict(similarity=False)
D = dict()


def test_ladder():
    """(a) FastV, (b) and correction, (c) and distance, (d) and similarity: four sets, the first FastV's own."""
    tokens = drawn(6, 6)
    sets = [kept(tokens, keep=9, sigma_s=.02, **rung) for rung in (A, B, C, D)]
    assert sets[0] == kept(tokens, FastV, keep=9)
    assert len({tuple(each) for each in sets}) == 4


@given(seed=st.integers(0, 999), k=st.integers(1, 24))
@SETTINGS
def test_limits_of_the_ladder(seed, k):
    """sigma_s to 0 and distance_limit 0 are (b); sigma_s to infinity and equal keys are (c)."""
    tokens = drawn(4, 6, seed)
    b = kept(tokens, keep=k, **B)
    c = kept(tokens, keep=k, **C)
    assert kept(tokens, keep=k, sigma_s=1e-6) == b
    assert kept(tokens, keep=k, distance_limit=0) == b
    assert kept(tokens, keep=k, sigma_s=1e6) == c
    attention = tokens.before.attention("last")[0, 0, tokens.visual]
    equal_keys = entering(attention, (4, 6), system=2)
    assert kept(equal_keys, keep=k) == c


# --- options ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("option", [dict(sigma_d=4.), dict(sigma_s=.5), dict(distance_limit=1), dict(correction=False),
                                    dict(method=AdaptPruneOf24, sigma_correction=1.)])
def test_options_differ(option):
    """Each option changes what is kept on a built case."""
    tokens = drawn(6, 7)
    assert kept(tokens, **{"keep": .3, **option}) != kept(tokens, keep=.3)


@pytest.mark.parametrize("option, problem", [
    (dict(sigma_d=0.), "sigma_d must be above 0"), (dict(sigma_s=-1.), "sigma_s must be above 0"),
    (dict(sigma_s=float("nan")), "sigma_s must be finite"),
    (dict(distance_limit=-1), "distance_limit must be at least 0"),
    (dict(distance_limit=float("nan")), "distance_limit must be finite"), (dict(layer=0), "layer must be at least 1"),
    (dict(keep=0), "keep 0"), (dict(keep=1.5), "keep 1.5")])
def test_bad_options(option, problem):
    with pytest.raises(UserError, match=problem):
        AdaptPrune(**option)


def test_reads_only_what_it_needs():
    """Without similarity no keys are read; with it those without the norm, and in the other reading those with it."""
    tokens = entering([.3, .2, .1, .1], (1, 4))
    without_keys = replace(tokens, here=LayerView.of().on(tokens))
    assert kept(without_keys, keep=2, similarity=False) == kept(tokens, keep=2, similarity=False)
    with pytest.raises(UserError, match="without stream_key"):
        kept(without_keys, keep=2)
    with pytest.raises(UserError, match="without projected_key"):
        kept(tokens, AdaptPruneNormedKeys, keep=2)


# --- edges and laws ---------------------------------------------------------------------------------------------------

@given(st.data())
@SETTINGS
def test_laws(data):
    """select, ordered, budget, scale and needle: for ties, zeros, one token and all of them, in half precision."""
    H = data.draw(st.integers(1, 6))
    W = data.draw(st.integers(1, 6))
    n = H * W
    k = data.draw(st.integers(1, n))
    needle = data.draw(st.integers(0, n - 1))
    kinds = dict(random=None, flat=torch.full((n,), 1 / n), zero=torch.zeros(n), needle=torch.full((n,), .01 / n))
    kinds["needle"][needle] = .99
    kind = data.draw(st.sampled_from(sorted(kinds)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    tokens = drawn(H, W, data.draw(st.integers(0, 99)), kinds[kind], dtype)
    keep = kept(tokens, keep=k)
    assert keep == sorted(set(keep))
    assert len(keep) == k
    assert 0 <= keep[0] and keep[-1] < n
    attention = tokens.before.attention()
    scaled = replace(tokens, before=LayerView.of(attention=4 * attention).on(tokens))
    assert kept(scaled, keep=k) == keep
    if kind == "needle":
        assert needle in keep
    if k == n:
        assert keep == list(range(n))


def test_ties_go_to_the_first():
    """Equal attention: without correction and suppression the first two of four; the first pick is the first token."""
    tokens = entering([.1] * 4, (2, 2))
    assert kept(tokens, keep=2, **A) == [0, 1]
    assert kept(tokens, keep=1, correction=False) == [0]


def test_a_narrow_correction_loses_a_needle():
    """So "needle" is not declared for a fixed width: if it is narrow, a corner with all attention weighs nothing."""
    attention = torch.full((36,), 1e-4)
    attention[0] = .99
    tokens = entering(attention, (6, 6))
    assert 0 not in kept(tokens, AdaptPruneOf24, keep=4, sigma_correction=.5)
    assert 0 in kept(tokens, keep=4)
    assert "needle" not in AdaptPruneOf24().laws
    assert "needle" in AdaptPrune().laws


@pytest.mark.parametrize("rung", [B, D])
def test_overflow_of_the_attention_is_named(rung):
    tokens = entering([.1, float("nan"), .2], (1, 3))
    with pytest.raises(UserError, match="attention scores contain NaN"):
        kept(tokens, keep=2, **rung)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_overflow_of_a_key_is_named(value):
    tokens = entering([.1, .3, .2], (1, 3), [[1.], [value], [1.]])
    with pytest.raises(UserError, match="keys contain NaN or infinity"):
        kept(tokens, keep=2)


def test_in_the_model():
    """Two images, a grouped-query decoder, and a prompt without an image; all tokens kept change nothing."""
    model = llava(layers=4)
    pictures = [picture(model, 0), picture(model, 1)]
    logits, cache, trace = prefill(model, ids(3, MARK, 2, MARK, 4), pictures, AdaptPrune(keep=8))
    assert cache.lengths == [41, 41, 17, 17]
    assert logits.isfinite().all()
    assert len(trace.steps[0].kept) == 8
    without_image, _, no_steps = prefill(model, ids(5), (), AdaptPrune())
    assert torch.equal(without_image, prefill(model, ids(5))[0])
    assert not no_steps.steps
    whole, _, _ = prefill(model, ids(3, MARK, 4), pictures[:1], AdaptPrune(keep=1.0))
    close(whole, prefill(model, ids(3, MARK, 4), pictures[:1])[0], atol=5e-5)


@pytest.mark.internal
def test_never_waits_for_a_pick():
    """Forty picks ask for no more values than two."""
    few, _ = waits(AdaptPrune(keep=2).reduce, drawn(7, 7))
    many, _ = waits(AdaptPrune(keep=40).reduce, drawn(7, 7))
    assert few == many > 0


@pytest.mark.internal
def test_no_loop_over_tokens():
    """Twenty picks of 256 tokens are as many calls of torch as twenty of 49; twenty more are a few calls each."""
    _, of_49 = waits(AdaptPrune(keep=20).reduce, drawn(7, 7))
    _, of_256 = waits(AdaptPrune(keep=20).reduce, drawn(16, 16))
    _, forty = waits(AdaptPrune(keep=40).reduce, drawn(16, 16))
    assert of_49 == of_256
    assert forty - of_256 <= 20 * 12
