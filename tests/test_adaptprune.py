"""AdaptPrune: equal to its released code, right by hand, each rung of its Table 4 another method."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from golden import golden, prompt, run, tiny_decoder
from pruning.adaptprune import AdaptPrune, adaptive_nms, cosine, gaussian, neighbours
from pruning.base import Tokens, UserError
from pruning.fastv import FastV
from tiny import MARK, SETTINGS, ids, llava, picture, prefill

SELECT, SELECT_FACTS = golden("adaptprune_select")
E2E, E2E_FACTS = golden("tiny_llama_e2e")


def grid(H, W, tile=0):
    """(H*W, 3) cells of one tile."""
    index = torch.arange(H * W)
    return torch.stack([torch.full_like(index, tile), index // W, index % W], dim=1)


def observed(attn, cell, key=None, system=0):
    """Tokens of one head: `system` rows, n visual rows that get the attention `attn` (n,) and have `key` (n, C), a text row."""
    n, attn = len(cell), torch.as_tensor(attn, dtype=torch.float32)
    row = torch.cat([torch.zeros(system), attn, torch.zeros(1)])
    key = torch.ones(n, 1) if key is None else torch.as_tensor(key, dtype=torch.float32)
    padded = torch.cat([torch.zeros(system, key.shape[1]), key, torch.zeros(1, key.shape[1])])
    return Tokens(torch.arange(len(row)).float()[:, None], torch.arange(len(row)), torch.arange(n) + system, cell,
                  torch.arange(n), len(row), attn=row[None, None], raw_key=padded, key=padded)


def drawn(H, W, seed=0, dtype=torch.float32):
    """Random attention and, as neighbours are alike, keys with a common direction."""
    g = torch.Generator().manual_seed(seed)
    key = 4 + torch.randn(H * W, 8, generator=g)
    tokens = observed(torch.rand(H * W, generator=g), grid(H, W), key, system=2)
    return replace(tokens, raw_key=tokens.raw_key.to(dtype), attn=tokens.attn.to(dtype).float())


def kept(tokens, **options):
    return AdaptPrune(**options).reduce(tokens).keep.tolist()


# by the released code

@pytest.mark.parametrize("case", SELECT_FACTS["cases"])
def test_selection(case):
    """Gaussian, corrected scores, order of picking and survivors, on square, odd and rectangular grids."""
    facts = SELECT_FACTS["cases"][case]
    want = {key.removeprefix(case + "."): x for key, x in SELECT.items() if key.startswith(case + ".")}
    (H, W), a = facts["grid"], facts["sys_len"]
    hidden = torch.arange(facts["seq_len"]).float()[:, None]                       # each token carries its own index
    raw_key = torch.zeros(len(hidden), want["keys"].shape[1])
    raw_key[a:a + H * W] = want["keys"]
    tokens = replace(prompt(hidden, a, (H, W)), attn=want["attn_last_row"][:, None], raw_key=raw_key)
    options = {name: facts[name] for name in ("sigma_d", "sigma_s", "distance_limit", "sigma_correction")}
    method = AdaptPrune(keep=facts["keep_ratio"], similarity=facts["variant"] == "full", **options)
    r = method.reduce(tokens)
    torch.testing.assert_close(gaussian(tokens.cell, facts["sigma_correction"]).view(H, W), want["gaussian_mask"], atol=1e-5, rtol=0)
    torch.testing.assert_close(r.score.view(H, W), want["corrected_scores"], atol=1e-8, rtol=1e-5)
    order = adaptive_nms(r.score, *method.suppression(tokens), facts["n_keep"])
    assert order.tolist() == want["order"].tolist()
    assert tokens.reduced(r).hidden[:, 0].long().tolist() == want["kept_global"].tolist()
    corrected = replace(method, distance=False, similarity=False).reduce(tokens)
    assert corrected.keep.tolist() == want["correction_only_kept_local"].tolist()


@pytest.mark.parametrize("name", [name for name in E2E_FACTS["runs"] if name.startswith("adaptprune")])
def test_end_to_end(name):
    """Survivors, hidden states of the prefill and of three steps, cache lengths, on the recorded 6-layer decoder.

    The released code holds the keys of layer K-1 twice, without effect.
    """
    facts = E2E_FACTS["runs"][name]
    tokens = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    method = AdaptPrune(facts["K"], facts["keep_ratio"])
    hidden, decoded, trace, after = run(tiny_decoder(), tokens, method, E2E["decode_embeds"])
    assert (trace.steps[-1].kept + 35).tolist() == E2E[f"{name}.kept"][35:-12].tolist()
    torch.testing.assert_close(hidden[-12:], E2E[f"{name}.text_hidden"], atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded, E2E[f"{name}.decode_hidden"], atol=1e-5, rtol=0)
    for (lengths, _), recorded in zip(after, facts["kv_decode"]):
        recorded[facts["K"] - 1] //= 2
        assert lengths == recorded


def test_keys_before_the_norm():
    """The code projects layer K's input without its norm; layer K's own keys pick other tokens."""
    tokens, steps = prompt(E2E["inputs_embeds"][0], 35, (24, 24)), E2E["decode_embeds"][:1]
    traces = [run(tiny_decoder(), tokens, AdaptPrune(2, 0.25, keys=keys), steps)[2] for keys in ("raw", "normed")]
    raw, normed = (set(trace.steps[-1].kept.tolist()) for trace in traces)
    assert len(raw) == len(normed) == 144 and raw != normed


# by hand

def test_correction_by_hand():
    """A row of 4 patches with attention .30 .25 .20 .24; two stay. The attention alone keeps 0 and 1.

    Coordinates -2 -2/3 2/3 2, squares 4 4/9 4/9 4. With sg = 2 (half of 4) the outer patches weigh
    exp(-(4 - 4/9) / 8) = exp(-4/9) = .641 of the inner ones: .192 .25 .20 .154. So 1 and 2 stay.
    """
    tokens = observed([.30, .25, .20, .24], grid(1, 4))
    assert kept(tokens, keep=2, distance=False, similarity=False, correction=False) == [0, 1]
    r = AdaptPrune(keep=2, distance=False, similarity=False).reduce(tokens)
    assert r.keep.tolist() == [1, 2]
    torch.testing.assert_close(r.score, torch.tensor([.1924, .25, .20, .1539]), atol=1e-4, rtol=0)


def test_correction_of_an_odd_side_is_off_centre():
    """3 patches: floor(-3/2) = -2 .. floor(3/2) = 1, so -2 -.5 1; sg = 1 weighs them exp(-(4 - .25)/2), 1, exp(-(1 - .25)/2)."""
    assert gaussian(grid(1, 3), 1.).tolist() == pytest.approx([.1534, 1, .6873], abs=1e-4)


def test_distance_by_hand():
    """A row of 6, attention .30 .28 .05 .06 .20 .01, all keys equal; two stay. The best two, 0 and 1, are neighbours.

    0 is picked. At distance 1 its neighbour is left 1 - exp(-1/4.5) = .199 of .28 = .056; token 4, at distance 4,
    1 - exp(-16/4.5) = .971 of .20 = .194. So 4 is next.
    """
    tokens = observed([.30, .28, .05, .06, .20, .01], grid(1, 6))
    assert kept(tokens, keep=2, correction=False) == [0, 4]
    assert kept(tokens, keep=2, correction=False, distance=False, similarity=False) == [0, 1]


def test_similarity_by_hand():
    """The same row, but the key of token 1 is orthogonal to that of token 0: cosine 0, exp(-1 / .005) = 0, nothing is lost.

    So 0 and 1 stay, side by side: they show different things. Distance alone would still part them.
    """
    key = [[1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0]]
    tokens = observed([.30, .28, .05, .06, .20, .01], grid(1, 6), key)
    assert kept(tokens, keep=2, correction=False) == [0, 1]
    assert kept(tokens, keep=2, correction=False, similarity=False) == [0, 4]


def test_similarity_alone_by_hand():
    """A row of 4, attention .3 .2 .1 .1, keys e1 e2 e1 e1; similarity without distance; two stay.

    0 is picked. Its equals 2 and 3, however far in the disc, fall to 0; 1 keeps .2. With distance 3, three patches away,
    would have kept 1 - exp(-9/4.5) = .865 of .1.
    """
    tokens = observed([.3, .2, .1, .1], grid(1, 4), [[1, 0], [0, 1], [1, 0], [1, 0]])
    near, left = AdaptPrune(distance=False).suppression(tokens)
    assert {int(j): x for j, x in zip(near[0], left[0]) if j} == {1: pytest.approx(0), 2: 1, 3: 1}
    near, left = AdaptPrune().suppression(tokens)
    assert {int(j): x for j, x in zip(near[0], left[0]) if j} == pytest.approx({1: 0, 2: .4111, 3: .1353}, abs=1e-4)
    assert kept(tokens, keep=2, correction=False, distance=False) == [0, 1]


def test_suppression_adds_up():
    """A row of 5, attention .5 .1 .4 .1 .45, keys equal, sigma_d 1.5: three stay, and the last pick has been lowered twice.

    0 is picked; 2 keeps 1 - exp(-4/4.5) = .589: .236; 4 keeps .971: .437 and is picked; 2 is lowered again: .139. 1 has
    .1 * .199 * (1 - exp(-9/4.5) = .865) = .017, as has 3. So 2 is third.
    """
    tokens = observed([.5, .1, .4, .1, .45], grid(1, 5))
    method = AdaptPrune(keep=3, correction=False)
    order = adaptive_nms(tokens.attn[0, 0, :5], *method.suppression(tokens), 3)
    assert order.tolist() == [0, 4, 2]


def test_tiles_do_not_suppress_each_other():
    """Attention .4 .3 | .35 .1 on two tiles of 1 x 2, keys equal; three stay.

    0 is picked, 1 keeps .199 of .3 = .060; 2 lies in the other tile, is picked, and 3 keeps .199 of .1 = .020. So 1 is
    third. On one tile of 1 x 4, 1 would be lowered by both of its neighbours, to .012, and 3 to .1 * .865 * .199 = .017:
    3 would be third.
    """
    attn = [.4, .3, .35, .1]
    assert kept(observed(attn, torch.cat([grid(1, 2), grid(1, 2, tile=1)])), keep=3, correction=False) == [0, 1, 2]
    assert kept(observed(attn, grid(1, 4)), keep=3, correction=False) == [0, 2, 3]


# Table 4

def test_ladder():
    """(a) FastV, (b) and correction, (c) and distance, (d) and similarity: four sets of tokens, the first FastV's own."""
    tokens = drawn(6, 6)
    rungs = [dict(correction=False, distance=False, similarity=False), dict(distance=False, similarity=False),
             dict(similarity=False), dict()]
    sets = [kept(tokens, keep=9, sigma_s=.02, **rung) for rung in rungs]
    assert sets[0] == FastV(keep=9).reduce(tokens).keep.tolist()
    assert len({tuple(s) for s in sets}) == 4


@given(seed=st.integers(0, 999), k=st.integers(1, 24))
@SETTINGS
def test_limits_of_the_ladder(seed, k):
    """sigma_s to 0 and distance_limit 0 are (b); sigma_s to infinity and equal keys are (c)."""
    tokens = drawn(4, 6, seed)
    b = kept(tokens, keep=k, distance=False, similarity=False)
    c = kept(tokens, keep=k, similarity=False)
    assert kept(tokens, keep=k, sigma_s=1e-6) == b == kept(tokens, keep=k, distance_limit=0)
    assert kept(tokens, keep=k, sigma_s=1e6) == c
    assert kept(replace(tokens, raw_key=torch.ones_like(tokens.raw_key)), keep=k) == c


# options

def test_neighbours_are_a_disc_with_its_rim():
    """(3, 4) is 5 away and a neighbour, (4, 4) is not; a corner has a quarter of the disc."""
    near, d = neighbours(grid(11, 11), 5)
    corner = {int(j) for j, far in zip(near[0], d[0]) if far < float("inf")}
    assert 3 * 11 + 4 in corner and 4 * 11 + 4 not in corner and 5 in corner and 6 not in corner
    assert (d[60] < float("inf")).sum() == 81 and len(corner) == 26


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3), st.sampled_from([0, 1, 1.5, 5, 100, float("inf")]))
@SETTINGS
def test_neighbours_are_all_and_only(H, W, tiles, limit):
    """The table says what distances between all pairs say, and its cosines are those of the pairs."""
    cell = torch.cat([grid(H, W, tile) for tile in range(tiles)] + [torch.tensor([[0, -1, -1]])])
    n, key = len(cell), torch.randn(len(cell), 3, generator=torch.Generator().manual_seed(H * W))
    near, d = neighbours(cell, limit)
    apart = (cell[:, None, 1:] - cell[:, 1:]).float().norm(dim=-1)
    want = (cell[:, None, 0] == cell[:, 0]) & (apart <= limit) & (cell[:, 1] >= 0) & (cell[:, None, 1] >= 0)
    found = torch.zeros(n, n).index_put((torch.arange(n)[:, None].expand_as(near), near), d.isfinite().float(), accumulate=True)
    assert torch.equal(found, want.float())
    unit = torch.nn.functional.normalize(key, dim=1)
    torch.testing.assert_close(cosine(key, near, stretch=4), (unit @ unit.T).gather(1, near))
    torch.testing.assert_close(d[d.isfinite()], apart.gather(1, near)[d.isfinite()])


def test_non_square_grid():
    """Sigma is half of the longer side, on both axes: 2 x 6 weighs its corner exp(-(3^2 - .6^2) / 18), not more for its rows."""
    weight = gaussian(grid(2, 6)).view(2, 6)
    assert weight[0, 0] == pytest.approx(torch.tensor(-(9 - .36) / 18).exp().item()) and torch.equal(weight[0], weight[1])
    assert gaussian(grid(2, 6), 1e-3)[0] == 0 and not gaussian(grid(2, 6), 1e-3).isnan().any()


def test_each_tile_has_its_own_centre():
    """A tile of 4 x 4 and one of 3 x 8 in one prompt weigh as each alone, by its own size and its own sigma."""
    two = gaussian(torch.cat([grid(4, 4), grid(3, 8, tile=1)]))
    assert torch.equal(two, torch.cat([gaussian(grid(4, 4)), gaussian(grid(3, 8))])) and two[5] == 1


def test_newline_tokens():
    """A grid 2 x 2 with a newline token (on no grid) after each row: .3 .2 (.01) .2 .25 (.02), keys equal; three stay.

    Ranked plain, 0 is picked; the token across keeps 1 - exp(-2/4.5) = .359 of .25 = .09 and is picked; the other two,
    next to both, keep .199^2 of .2 = .008. Newline tokens have no neighbours: .02 is third. Without suppression it would
    be a .2. Kept always, the newline tokens take two of the three places.
    """
    cell = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, -1], [0, 1, 0], [0, 1, 1], [0, -1, -1]])
    tokens = observed([.3, .2, .01, .2, .25, .02], cell)
    assert gaussian(cell).tolist() == [1, 1, 1, 1, 1, 1]
    assert kept(tokens, keep=3) == [0, 4, 5]
    assert kept(tokens, keep=3, distance=False, similarity=False) == [0, 1, 4]
    assert kept(tokens, keep=3, newline="always_keep") == [0, 2, 5]
    assert kept(tokens, keep=1, newline="always_keep") == [2]
    assert kept(tokens, keep=3, newline="always_keep", distance=False, similarity=False) == [0, 2, 5]
    r = AdaptPrune(keep=3, newline="always_keep").reduce(tokens)
    assert r.score.isfinite().all()


def test_the_released_code_repeats():
    """Attention .5 0 0: after the first pick every score is 0. The released code picks the first again; here none is kept twice."""
    tokens = observed([0, .5, 0], grid(1, 3))
    assert kept(tokens, keep=3) == [0, 1, 2]
    assert kept(tokens, keep=3, repeat=True) == [0, 0, 1]
    assert "select" in AdaptPrune().laws and "select" not in AdaptPrune(repeat=True).laws


@pytest.mark.parametrize("option", [dict(sigma_d=4.), dict(sigma_s=.5), dict(distance_limit=1), dict(sigma_correction=1.),
                                    dict(rounding="ceil"), dict(correction=False)])
def test_options_differ(option):
    """Each option changes what is kept on a built case."""
    tokens = drawn(6, 7)
    assert kept(tokens, keep=.3, **option) != kept(tokens, keep=.3)


@pytest.mark.parametrize("option", [dict(sigma_d=0.), dict(sigma_s=-1.), dict(sigma_correction=0.), dict(sigma_s=float("nan")),
                                    dict(sigma_correction=float("nan")), dict(distance_limit=-1),
                                    dict(distance_limit=float("nan")), dict(layer=0), dict(keys="rope"), dict(newline="drop"),
                                    dict(keep=0), dict(keep=1.5), dict(rounding="up")])
def test_bad_options(option):
    with pytest.raises(UserError):
        AdaptPrune(**option)


def test_reads_only_what_it_needs():
    """Without similarity no keys are asked for."""
    assert AdaptPrune().needs == {"attn", "raw_key"} and AdaptPrune(keys="normed").needs == {"attn", "key"}
    assert AdaptPrune(similarity=False).needs == {"attn"} and AdaptPrune().rows == "last"


# edges and laws

@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
       st.sampled_from(["drawn", "flat", "zero", "needle"]), st.data())
@SETTINGS
def test_laws(H, W, seed, dtype, attention, data):
    """select, ordered, budget, scale and needle: for ties, zeros, one token and all of them, in half precision."""
    tokens = drawn(H, W, seed, dtype)
    n, k = H * W, data.draw(st.integers(1, H * W))
    if attention != "drawn":
        attn = torch.full_like(tokens.attn, 0 if attention == "zero" else 1 / n)
        if attention == "needle":
            attn = attn * .01
            attn[..., tokens.visual[seed % n]] = .99
        tokens = replace(tokens, attn=attn)
    keep = kept(tokens, keep=k)
    assert keep == sorted(set(keep)) and len(keep) == k and 0 <= keep[0] and keep[-1] < n
    assert keep == kept(replace(tokens, attn=tokens.attn * 4), keep=k)
    if attention == "needle":
        assert seed % n in keep
    if k == n:
        assert keep == list(range(n))


def test_ties_go_to_the_first():
    """Equal attention, correction and distance off: the first two of four."""
    assert kept(observed([.1] * 4, grid(2, 2)), keep=2, correction=False, distance=False, similarity=False) == [0, 1]
    assert kept(observed([.1] * 4, grid(2, 2)), keep=1, correction=False) == [0]


def test_a_narrow_correction_loses_a_needle():
    """So "needle" is not declared with a sigma_correction: a corner with all the attention may weigh nothing."""
    attn = torch.full((36,), 1e-4)
    attn[0] = .99
    assert 0 not in kept(observed(attn, grid(6, 6)), keep=4, sigma_correction=.5) and 0 in kept(observed(attn, grid(6, 6)), keep=4)
    assert "needle" not in AdaptPrune(sigma_correction=.5).laws and "needle" in AdaptPrune().laws


def test_overflow_is_named():
    """NaN in the attention or in a key, or an infinite key, is an error and never ranked."""
    tokens = drawn(3, 3)
    for broken in (dict(attn=tokens.attn * float("nan")), dict(raw_key=tokens.raw_key * float("nan")),
                   dict(raw_key=tokens.raw_key + float("inf"))):
        with pytest.raises(UserError, match="NaN"):
            AdaptPrune(keep=2).reduce(replace(tokens, **broken))


def test_in_the_model():
    """Two images, a grouped-query decoder, half precision, and a prompt without an image."""
    model = llava(layers=4)
    pictures = [picture(model, 0), picture(model, 1)]
    logits, cache, trace = prefill(model, ids(3, MARK, 2, MARK, 4), pictures, AdaptPrune(keep=8))
    assert cache.lengths == [41, 41, 17, 17] and logits.isfinite().all() and len(trace.steps[0].kept) == 8
    text = prefill(model, ids(5), (), AdaptPrune())
    assert torch.equal(text[0], prefill(model, ids(5))[0]) and not text[2].steps
    whole = prefill(model, ids(3, MARK, 4), pictures[:1], AdaptPrune(keep=1.0))[0]
    torch.testing.assert_close(whole, prefill(model, ids(3, MARK, 4), pictures[:1])[0], atol=1e-5, rtol=1e-5)


class Waits(TorchDispatchMode):
    """Counts how often the host asks for the value of a tensor: each time it would wait for the device. And all calls."""

    count, calls = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        self.count += any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "is_nonzero"))
        return function(*args, **(kwargs or {}))


def test_never_waits_for_a_pick():
    """Forty picks ask for no more values than two."""
    counts = []
    for k in (2, 40):
        with Waits() as waits:
            AdaptPrune(keep=k).reduce(drawn(7, 7))
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_no_loop_over_tokens():
    """Twenty picks of 256 tokens are as many calls of torch as twenty of 49; twenty more are a few calls each."""
    calls = {}
    for side, k in ((7, 20), (16, 20), (16, 40)):
        with Waits() as waits:
            AdaptPrune(keep=k).reduce(drawn(side, side))
        calls[side, k] = waits.calls
    assert calls[7, 20] == calls[16, 20] and calls[16, 40] - calls[16, 20] <= 20 * 12
