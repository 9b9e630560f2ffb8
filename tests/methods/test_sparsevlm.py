"""SparseVLM and its readings: equal to its released codes' recordings, examples by hand, budgets, laws and edges."""

from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from safetensors.torch import load_file

from build import close, tokens
from golden import golden, prompt, run
from minivlm.attention import rope, rotate
from minivlm.cache import Cache
from minivlm.llama import Decoder
from minivlm.parts.config import TextConfig
from paths import GOLDENS
from pruning.base import Reduction, UserError
from pruning.by_hand import GivenView
from pruning.fastv import FastV
from pruning.ranked import top
from pruning.readings import SparseVLMPaper, SparseVLMPlus, SparseVLMRank
from pruning.sparsevlm import SparseVLM, chosen_or_all, dpc_knn, relevance
from released import SparseVLMRankWithoutNoise, SparseVLMWithoutNoise, noisy_dpc_knn
from tiny import MARK, Around, ids, llava, picture, prefill

CLUSTER, CLUSTER_FACTS = golden("sparsevlm_cluster_merge")
RANK, RANK_FACTS = golden("sparsevlm_score_rank_v1_0")
TOPK, TOPK_FACTS = golden("sparsevlm_score_topk_v1_5")
METHODS = {"v1.0": SparseVLMRank, "v1.5": SparseVLM, "v2.0": SparseVLMPlus}
RELEASED = {"v1.0": SparseVLMRankWithoutNoise, "v1.5": SparseVLMWithoutNoise, "v2.0": SparseVLMPlus}
SCHEDULES = [(version, case["run"]) for version in METHODS
             for case in golden(f"sparsevlm_schedule_{version.replace('.', '_')}")[1]["cases"]]
of_each_version = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def rated(attention, relevant, hidden=None, N=None, layer=3):
    """One text token, n visual ones and m of text: `attention` (m, n) or (H, m, n) is what the text pays the visual
    tokens.

    As they entered layer 0, all N visual tokens were 1 and the text was `relevant` (m numbers): that decides which
    rate. `hidden`: n numbers, the visual tokens now; by default 0, 1, 2 .. The text is now -1 before, -2 after the
    image.
    """
    attention = torch.as_tensor(attention, dtype=torch.float32)
    m, n = attention.shape[-2:]
    whole = torch.zeros(*attention.shape[:-1], 1 + n + m)
    whole[..., 1:1 + n] = attention
    N = N or n
    values = torch.tensor([-1., *(range(n) if hidden is None else hidden), *[-2.] * m])
    entered = torch.tensor([0., *[1.] * N, *relevant])
    start = tokens("t" + "v" * N + "t" * m, hidden=entered[:, None])
    key = torch.ones(1, 1 + n + m, 2)                      # of width 2: it turns by one radian per position
    before = dict(attention=whole, key=key)
    return tokens("t" + "v" * n + "t" * m, before=before, hidden=values[:, None], prompt=start, layer=layer)


def values_after(entering, pruner):
    """The values of the sequence after a method has reduced it; -1 and -2 are text."""
    after = entering.reduced(pruner.reduce(entering), pruner.positions)
    return after.hidden[:, 0].tolist()


def one_cut(k, method=SparseVLM, **options):
    """A single cut after layer 2, to k tokens, clusters not counted."""
    return method(layers=(2,), table=(k,), **options)


# --- the recordings ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", CLUSTER_FACTS["cases"], ids=lambda case: str(case["case"]))
def test_recorded_clusters(case):
    """Cluster means from recorded rows, with the recorded noise on the densities."""
    name = f"case{case['case']}"
    x = CLUSTER[f"{name}.x"][0]
    members, centre = noisy_dpc_knn(x, case["cluster_num"], CLUSTER[f"{name}.noise"][0])
    close(means(members, x), CLUSTER[f"{name}.noise.out"][0])
    close_to_partition(members, centre)


@pytest.mark.parametrize("case", CLUSTER_FACTS["cases"], ids=lambda case: str(case["case"]))
def test_recorded_clusters_without_noise(case):
    """The same with zeros in its place. Of two clusters the order is free: see `recorded_order`."""
    name = f"case{case['case']}"
    x = CLUSTER[f"{name}.x"][0]
    recorded = CLUSTER[f"{name}.nonoise.out"][0]
    members, centre = noisy_dpc_knn(x, case["cluster_num"], torch.zeros(len(x)))
    ours = means(members, x)
    if len(ours) == 2 and not ours.allclose(recorded, atol=1e-5):
        ours = ours.flip(0)
    close(ours, recorded)
    close_to_partition(members, centre)


@pytest.mark.parametrize("case", CLUSTER_FACTS["cases"], ids=lambda case: str(case["case"]))
def test_noise_only_breaks_ties(case):
    """So the first of equals in the place of noise gives the recorded clusters, too, in whatever order of two."""
    name = f"case{case['case']}"
    x = CLUSTER[f"{name}.x"][0]
    members, centre = dpc_knn(x, case["cluster_num"])
    recorded = CLUSTER[f"{name}.noise.out"][0]
    ours = means(members, x)
    close(ours[ours[:, 0].argsort()], recorded[recorded[:, 0].argsort()])
    close_to_partition(members, centre)


def means(members, x):
    """The mean of each cluster (c, D)."""
    return members @ x / members.sum(dim=1, keepdim=True)


def close_to_partition(members, centre):
    """Each row is in one cluster, and each centre in its own."""
    assert members.sum(dim=0).eq(1).all()
    assert members[torch.arange(len(centre)), centre].eq(1).all()


@pytest.mark.parametrize("case", RANK_FACTS["cases"], ids=lambda case: str(case["case"]))
def test_recorded_rank(case):
    """v1.0 from recorded attention: the score of every visual token, and the kept ones, as many as the rank allows."""
    name = f"case{case['case']}"
    first = case["pre"]
    last = first + case["num_visual"]
    raters = RANK[f"{name}.rater_idx_rel"].tolist()
    entering = rated(RANK[f"{name}.text_rows"][:, :, first:last], [float(i in raters) for i in range(case["num_text"])])
    r = SparseVLMRank(table=(case["scale"], case["bias"])).reduce(entering)
    close(r.score, RANK[f"{name}.score"][0])
    assert r.keep[:case["kept"]].tolist() == RANK[f"{name}.keep"].tolist()


@pytest.mark.parametrize("budget", [192, 128, 96, 64])
@pytest.mark.parametrize("case", TOPK_FACTS["cases"], ids=lambda case: f"layer {case['layer']}")
def test_recorded_tables(case, budget):
    """v1.5 at its three cuts: the table's number of the tokens left of 576, earlier clusters among them."""
    name = f"case{case['case']}"
    first = case["pre"]
    last = first + case["num_visual"]
    raters = TOPK[f"{name}.rater_idx_rel"].tolist()
    kept = TOPK[f"{name}.keep_R{budget}"].tolist()
    relevant = [float(i in raters) for i in range(case["num_text"])]
    entering = rated(TOPK[f"{name}.text_rows"][:, :, first:last], relevant, N=576, layer=case["layer"] + 1)
    for keep in (budget, budget / 576):
        r = SparseVLM(keep=keep).reduce(entering)
        assert r.keep[:len(kept)].tolist() == kept
    close(r.score, TOPK[f"{name}.score"][0])


def decoder(weights, facts):
    """The recorded decoder, and one layer more, all zeros, that changes nothing: v1.0 cuts after the last one."""
    hyper = facts["hyper"]
    layers = hyper["num_layers"]
    heads = hyper["num_heads"]
    same = ("hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "rope_theta")
    sizes = {name: hyper[name] for name in same}
    model = Decoder(TextConfig(vocab_size=1, num_hidden_layers=layers + 1, num_attention_heads=heads,
                               num_key_value_heads=heads, **sizes))
    not_recorded = ("embed_tokens", f"layers.{layers}.")
    zeros = {name: torch.zeros_like(p) for name, p in model.state_dict().items() if name.startswith(not_recorded)}
    model.load_state_dict(load_file(GOLDENS / f"{weights}.safetensors") | zeros)
    return model


class ClustersSwapped(Around):
    """A method, but that at some cuts its two clusters come in the other order."""

    def __init__(self, pruner, kept, swapped):
        super().__init__(pruner, self.swapping)
        self.kept = kept
        self.swapped = swapped
        self.calls = []                        # (tokens, reduction) of each cut

    def swapping(self, tokens):
        r = self.pruner.reduce(tokens)
        cut = self.pruner.layers.index(tokens.layer - 1)
        k = self.kept[cut]
        if self.swapped[cut] and len(r.keep) == k + 2:
            order = torch.tensor([*range(k), k + 1, k])
            r = Reduction(r.keep[order], r.merge[order], r.score)
        self.calls.append((tokens, r))
        return r


def recorded_order(pruner, kept, check):
    """`check` the method with its clusters in some order; it keeps `kept` tokens at its cuts.

    Without noise the two nearest rows tie as the centres of two clusters; the released code uses torch.topk, which
    does not say which comes first. So for each cut: as it is, or the other way round.
    """
    failures = []
    for swapped in product((False, True), repeat=len(kept)):
        try:
            return check(ClustersSwapped(pruner, kept, swapped))
        except AssertionError as error:
            failures.append(error)
    raise failures[0]


@pytest.mark.parametrize("version", METHODS)
def test_recorded_end_to_end(version):
    """On a 6-layer decoder: raters, scores, kept tokens, what is recycled and into what, positions, lengths and last
    keys of each layer's cache, all rows after the prefill, and two decoded tokens."""
    recorded, facts = golden(f"sparsevlm_e2e_{version.replace('.', '_')}")
    hyper = facts["hyper"]
    hidden = recorded["input.inputs_embeds"][0]
    first, n = hyper["pre_prompt_len"], hyper["num_visual"]
    cuts = tuple(hyper["prune_layers_0based"])
    table = hyper["retain_table"] or (hyper["scale"], hyper["bias"])
    pruner = RELEASED[version](layers=cuts, table=tuple(table))
    kept = [recorded[f"prune{i}.keep_idx"].tolist() for i in range(len(cuts))]
    raters = pruner.relevant_text(hidden[first:first + n], hidden[first + n:])
    assert raters.tolist() == recorded["rater_idx_rel"].tolist()
    model = decoder("sparsevlm_tiny_llama_weights", facts)
    side = round(n ** .5)

    def check(method):
        cache = Cache.empty(len(model.layers))
        rows = model.prefill(prompt(hidden, first, (side, side)), cache, method, last=False)
        for i, (entering, r) in enumerate(method.calls):
            check_cut(recorded, i, cuts[i], kept[i], entering, r, entering.reduced(r, method.positions))
        close(rows, recorded["prefill.last_hidden_state"][0])
        assert cache.lengths[:-1] == recorded["prefill.kv_len"].tolist()
        for l, layer in enumerate(cache.layers[:-1]):
            close(layer.key[0, :, -2:].transpose(0, 1), recorded[f"prefill.cache_key.layer{l}"])
        for t, token in enumerate(recorded["input.decode_embeds"][0]):
            close(model.step(token[None], cache), recorded[f"decode{t}.last_hidden_state"][0])
        assert cache.lengths[:-1] == recorded["decode.kv_len"].tolist()

    recorded_order(pruner, [len(k) for k in kept], check)


def check_cut(recorded, i, cut, kept, entering, r, after):
    """One recorded cut: scores, kept tokens, positions, and what is recycled and into what."""
    k = len(kept)
    close(r.score, recorded[f"prune{i}.score"][0])
    assert r.keep[:k].tolist() == kept
    assert after.position.tolist() == recorded[f"prefill.position_ids.layer{cut + 1}"][0].tolist()
    assert (len(r.keep) > k) == (f"prune{i}.recycle_in" in recorded)
    if len(r.keep) > k:
        lost = r.merge[k:].sum(dim=0).nonzero().squeeze(1)
        lost = lost[r.score[lost].argsort(descending=True)]
        recycled = recorded[f"prune{i}.recycle_in"][0]
        clusters = recorded[f"prune{i}.recycle_out"][0]
        of_largest = 2e-6 * recycled.abs().max().item()    # not normed: values up to 11
        close(entering.hidden[entering.visual[lost]], recycled, of_largest)
        close(after.hidden[after.visual[k:]], clusters, of_largest)


@pytest.mark.parametrize("version, case", SCHEDULES, ids=[f"{version} {case}" for version, case in SCHEDULES])
def test_recorded_schedules(version, case):
    """The released layers and budgets on 576 visual tokens and 20 layers: kept tokens, cache lengths, the last rows."""
    recorded, facts = golden(f"sparsevlm_schedule_{version.replace('.', '_')}")
    hyper = facts["hyper"]
    expected = next(c for c in facts["cases"] if c["run"] == case)
    pruner = RELEASED[version](**budget_of(expected["config"]))
    assert pruner.layers == tuple(hyper["prune_layers_0based"])
    model = decoder("sparsevlm_schedule_weights", facts)
    entering = prompt(recorded["input.inputs_embeds"][0], 35, (24, 24))
    step = torch.zeros(1, hyper["hidden_size"])

    def check(method):
        rows, _, trace, _ = run(model, entering, method, step)
        assert trace.tokens[:-1] == expected["kv_len"]
        for i, (step_, k) in enumerate(zip(trace.steps, expected["kept"], strict=True)):
            assert step_.reduction.keep[:k].tolist() == recorded[f"{case}.prune{i}.keep_idx"].tolist()
        close(rows[-4:], recorded[f"{case}.last_hidden_last4"][0])

    recorded_order(pruner, expected["kept"], check)


def budget_of(config):
    """The option for a released budget: a number of tokens, or scale and bias, which are a row of the table of v1.0."""
    if isinstance(config, int):
        return dict(keep=config)
    rows = {(13.5, 0): 192, (9, 6): 128, (.8, 0): 64}
    scale_and_bias = tuple(config.values())
    return dict(keep=rows[scale_and_bias]) if scale_and_bias in rows else dict(table=scale_and_bias)


# --- examples by hand -------------------------------------------------------------------------------------------------

def test_the_relevant_text_rates():
    """Four visual tokens, three of text. exp(2), 1, 1 over their sum are .79 .11 .11: the first is above a third and
    rates alone: .1 .4 .3 .2 keeps tokens 1 and 2. The last token (FastV) would keep 0 and 3, the mean of all text 0
    and 1: .4 .17 .1 .17."""
    entering = rated([[.1, .4, .3, .2], [.5, 0., 0., .1], [.6, .1, 0., .2]], relevant=[2, 0, 0])
    assert one_cut(2, recycle=0).reduce(entering).keep.tolist() == [1, 2]
    assert FastV(keep=2).reduce(entering).keep.tolist() == [0, 3]


def test_two_raters_and_two_heads():
    """Relevance 1 0 1: the first and the third rate. Head means: [.2 .4 .1 .0] and [.4 .0 .1 .3]; mean .3 .2 .1 .15."""
    first = [[.4, .2, .2, 0.], [0., 0., 1., 0.], [.2, 0., .2, .6]]
    second = [[0., .6, 0., 0.], [0., 0., 1., 0.], [.6, 0., 0., 0.]]
    r = one_cut(3, recycle=0).reduce(rated([first, second], relevant=[1, 0, 1]))
    close(r.score, [.3, .2, .1, .15])
    assert r.keep.tolist() == [0, 1, 3]


NINE = [.05, .30, .02, .08, .25, .10, .01, .07, .03]


def test_recycling():
    """Nine tokens of value 0, 10, .. 80, of which 1 and 4 are kept. Of the seven others int(.3 * 7) + 1 = 3 are
    recycled: 5, 3, 7, with .10 .08 .07. int(.1 * 3) + 1 = 1 cluster: (50 + 30 + 70) / 3 = 50, in the place of its
    centre, the best rated of equals, 5. It comes after the kept, and positions count from 0. Without recycling 10 40
    would be left; each dropped token joined to the nearest kept would change these two, and add none."""
    entering = rated([NINE], [0.], hidden=range(0, 90, 10))
    r = one_cut(2).reduce(entering)
    assert r.keep.tolist() == [1, 4, 5]
    assert r.merge[2].nonzero().squeeze(1).tolist() == [3, 5, 7]
    assert [r.reasons[i] for i in r.reason] == ["kept", "kept", "recycled"]
    assert values_after(entering, one_cut(2)) == [-1, 10, 40, 50, -2]
    assert entering.reduced(r, SparseVLM.positions).position.tolist() == [0, 1, 2, 3, 4]


FOUR = torch.tensor([[0.], [1], [10], [12]])


def test_density_peaks():
    """Rows 0, 1, 10, 12, two clusters. Each row's squares of distance to itself and the nearest: mean .5 .5 2 2, so
    the densities are e^-.5 = .61, the same, e^-2 = .14, the same. The first of equals is the denser: its distance to
    a denser one is 12 (none is: the largest distance of all), 1, 9, 2, and the products 7.3 .61 1.2 .27. Centres 0
    and 10, clusters 0 1 | 10 12. Were the last of equals the denser, they would be .61 6.7 .27 1.5, and the centres 1
    and 12. The two best rated, or the two densest, as centres would give 0 | 1 10 12."""
    members, centre = dpc_knn(FOUR, 2)
    assert centre.tolist() == [0, 2]
    assert members.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_equal_peaks():
    """Rows 0, 1, 20, 21, two clusters: densities all e^-.5, distances to a denser one, the first of equals being
    denser, 21 (the largest of all) 1 19 1: centres 0 and 20. Were the last denser, they would be 21 and 1. Rows 0, 1,
    2, three clusters: mean squares 1.67 .67 1.67; 1 is the densest, and 0 and 2, which are as dense and as far from
    it, come in their order."""
    assert dpc_knn(torch.tensor([[0.], [1], [20], [21]]), 2)[1].tolist() == [0, 2]
    assert dpc_knn(torch.tensor([[0.], [1], [2]]), 3)[1].tolist() == [1, 0, 2]


def test_neighbours():
    """Rows 0, 1, 10, 12 with three neighbours: mean squares 33.7 27.3 28.3 41.7, so 1 is the densest, then 10, and
    these are the centres."""
    assert dpc_knn(FOUR, 2, neighbours=3)[1].tolist() == [1, 2]


BETWEEN = dict(attention=[[.4, .1, .09, .08, .07]], relevant=[0.], hidden=[50., 0, 1, 10, 12])
TWO_CLUSTERS = dict(recycle=1., clusters=.3)       # of five one is kept, 4 recycled, int(.3 * 4) + 1 = 2 clusters


def test_ties_of_density():
    """The rows of test_density_peaks, recycled. The released code without noise: neither 0 nor 1 is denser, both are
    12 from a denser one, and the two nearest rows of all are the centres: 0 | 1 10 12. With noise one of them is the
    denser."""
    entering = rated(**BETWEEN)
    assert values_after(entering, one_cut(1, **TWO_CLUSTERS)) == [-1, 50, .5, 11, -2]
    without = one_cut(1, SparseVLMWithoutNoise, **TWO_CLUSTERS)
    assert values_after(entering, without) == pytest.approx([-1, 50, 0, 23 / 3, -2])
    for seed in range(4):
        noise = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        members, centre = noisy_dpc_knn(FOUR, 2, noise)
        assert members.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
        assert centre[0] == noise[:2].argmax()


def test_shares_of_clusters():
    """One more than the shares say. Of four dropped tokens int(.5 * 4) + 1 = 3 are recycled, into int(.5 * 3) + 1 = 2
    clusters; never into more than there are."""
    assert SparseVLM(recycle=.5, clusters=.5).recycling(4) == (3, 2)
    assert SparseVLM(recycle=1., clusters=1.).recycling(4) == (4, 4)
    assert SparseVLM().recycling(0) == (0, 0)
    assert SparseVLM(recycle=0).recycling(4) == (0, 0)


# --- readings ---------------------------------------------------------------------------------------------------------

STEEP = [.4, .2, .1, .1, 0.]
HALF_AS_STEEP = [.2, .1, .05, .05, 0.]
OTHER = [.1, 0., .1, .1, .3]


def test_rank():
    """Two raters, [.4 .2 .1 .1 0] and half of it: rank 1, scale 2 and bias 0 keep int(2 * 1) = 2 of five. With a second
    row that is no multiple, [.1 0 .1 .1 .3], the rank is 2, and 4 are kept. Counting raters would keep 4 both times."""
    pruner = SparseVLMRank(layers=(2,), table=(2, 0), recycle=0)
    assert pruner.reduce(rated([STEEP, HALF_AS_STEEP], [0, 0])).keep.tolist() == [0, 1]
    assert pruner.reduce(rated([STEEP, OTHER], [0, 0])).keep.tolist() == [0, 1, 2, 4]


def test_full_rank():
    """Three raters who each look at another of three tokens: rank 3, and nothing is dropped, whatever the table
    says."""
    entering = rated(torch.eye(3), [0, 0, 0])
    assert len(SparseVLMRank(layers=(2,), table=(0, 1)).reduce(entering).keep) == 3
    assert len(SparseVLMPaper(layers=(2,), lam=9.).reduce(entering).keep) == 3


@pytest.mark.parametrize("lam, second, kept", [(.5, HALF_AS_STEEP, 3), (.5, OTHER, 4), (.2, HALF_AS_STEEP, 5),
                                               (9., HALF_AS_STEEP, 1)])
def test_lambda(lam, second, kept):
    """The paper drops int(lam * (n - rank)): of five with rank 1 or 2, int(.5 * 4) = 2, int(.5 * 3) = 1, int(.2 * 4)
    = 0; with a lambda of 9 all but the last one."""
    pruner = SparseVLMPaper(layers=(2,), lam=lam, recycle=0)
    assert len(pruner.reduce(rated([STEEP, second], [0, 0])).keep) == kept


def test_raters_at_the_mean():
    """Four visual tokens vote, for text 0, 0, 1, 2 of four: .5 .25 .25 0, mean .25. Above it is one, at or above three.

    The first text pays .1 .9, the two others .5 0: the first alone keeps token 1, the mean of three, .37 .3, token 0.
    All these rank 2, of two: the rank drops nothing, so the scores are compared.
    """
    visual = torch.eye(4)[[0, 0, 1, 2]]
    text = 1000 * torch.eye(4)
    assert SparseVLM().relevant_text(visual, text).tolist() == [0]
    assert SparseVLMPaper().relevant_text(visual, text).tolist() == [0, 1, 2]
    start = tokens("tvvvvtttt", hidden=torch.cat([visual[:1], visual, text]))
    paid = torch.zeros(4, 7)
    paid[:, 1:3] = torch.tensor([[.1, .9], [.5, .0], [.5, 0.], [0., 0.]])
    entering = tokens("tvvtttt", paid, prompt=start, layer=3)
    assert one_cut(1, recycle=0).reduce(entering).keep.tolist() == [1]
    close(SparseVLMPaper(layers=(2,)).reduce(entering).score, [1.1 / 3, .3])


def test_sum_of_a_cluster():
    """The nine tokens of test_recycling, rank 1: lam = 7/8 drops int(7/8 * 8) = 7. Without the one more of the code,
    int(.3 * 7) = 2 are recycled, 5 and 3, into one cluster, whose sum is 80."""
    entering = rated([NINE], [0.], hidden=range(0, 90, 10))
    assert values_after(entering, SparseVLMPaper(layers=(2,), lam=.875)) == [-1, 10, 40, 80, -2]


def test_no_extra():
    """The paper's shares as they are: int(.1 * 7) = 0 recycled is nothing; int(.6 * 7) = 4 recycled, half of that 2
    clusters. With one more of both 5 make int(.5 * 5) + 1 = 3."""
    entering = rated([NINE], [0.])
    nothing = SparseVLMPaper(layers=(2,), lam=.875, recycle=.1).reduce(entering)
    assert nothing.merge is None
    assert nothing.keep.tolist() == [1, 4]
    half = dict(recycle=.6, clusters=.5)
    assert len(SparseVLMPaper(layers=(2,), lam=.875, **half).reduce(entering).keep) == 2 + 2
    assert len(one_cut(2, **half).reduce(entering).keep) == 2 + 3


def test_gravity():
    """v2.0, heads of width 2: two rotated vectors of ones give 2 cos(p - q) / sqrt(2). Four visual tokens 4, 3, 2, 1
    before the rater: -.92 -1.40 -.59 .76. Of weights .2 .2 .2 .1 this makes -.22 -.14 -.34 .13: tokens 1 and 3 are
    kept; the weights alone would keep 0 and 1."""
    entering = rated([[.2, .2, .2, .1]], [0.])
    r = one_cut(2, SparseVLMPlus).reduce(entering)
    close(r.score, torch.tensor([.2, .2, .2, .1]) / torch.tensor([-.9244, -1.4001, -.5885, .7641]), 1e-4)
    assert r.keep.tolist() == [1, 3]
    assert one_cut(2, recycle=0).reduce(entering).keep.tolist() == [0, 1]


@pytest.mark.parametrize("theta, best", [(4., 2), (10000., 1)])
def test_gravity_of_the_model(theta, best):
    """Heads of width 4 turn by 1 and by theta^-1/2 radians per position; for theta = 4, 4 .. 1 positions away: cos d
    + cos(d / 2) = -1.07 -.92 .12 1.42, and equal weights rank token 2 first; for theta = 10000 it is .35 .01 .58
    1.54: token 1."""
    class ViewOfModel(GivenView):
        def rotated(self, x):
            return rotate(x, rope(self.tokens.position, 4, theta, torch.float32))

    entering = tokens("tvvvvt", layer=3)
    view = ViewOfModel(attention=[0., .2, .2, .2, .2, 0.], key=torch.ones(1, 6, 4))
    view.tokens = entering
    assert one_cut(1, SparseVLMPlus).reduce(replace(entering, before=view)).keep.tolist() == [best]


@pytest.mark.parametrize("heads, kept", [(1, [1, 2]), (2, [0, 1])])
def test_heads_that_look_most(heads, kept):
    """The last row rates three tokens 6, 5, 1 before it: gravity 1.36 .40 .76. Head A .5 .1 .1 becomes .37 .25 .13,
    in all .75; head B .1 .35 .2 becomes .07 .87 .26, in all 1.21, and rates alone: tokens 1 and 2. Before the
    correction A gives more (.7 against .65), and both heads together score .22 .56 .20: either would keep 0 and 1."""
    start = tokens("tvvtttvt", hidden=torch.tensor([0., 1, 1, 0, 0, 0, 1, 9])[:, None])
    paid = [[[0, .5, .1, 0, 0, 0, .1, 0]], [[0, .1, .35, 0, 0, 0, .2, 0]]]
    entering = tokens("tvvtttvt", paid, before=dict(key=torch.ones(2, 8, 2)), prompt=start, layer=3)
    assert one_cut(2, SparseVLMPlus, heads=heads).reduce(entering).keep.tolist() == kept


# --- budgets ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", [SparseVLM, SparseVLMPlus])
@pytest.mark.parametrize("keep", [64, 80, 96, 100, 128, 160, 192, 300, 500, 575, 576])
def test_schedule(method, keep):
    """The tokens that enter each layer, clusters among them, are those of a run; counted as the authors count (layers
    2, 6 and 15 after their cut) their average is what `keep` says, within three tokens, between the rows of the table
    too."""
    attention = torch.rand(1, 3, 576, generator=torch.Generator().manual_seed(0))
    pruner = method(keep=keep)
    counts = [576]
    for layer in pruner.reduce_at(32):
        entering = rated(attention[:, :, :counts[-1]], [1., 0., 0.], N=576, layer=layer)
        counts.append(len(pruner.reduce(entering).keep))
    a, b, c, d = counts
    assert pruner.schedule(576, 32) == [a] * 3 + [b] * 4 + [c] * 9 + [d] * 16
    assert abs((2 * a + 4 * b + 9 * c + 17 * d) / 32 - keep) < 3


def test_row_192():
    """With its clusters it is 309, 204, 113: (3 * 576 + 4 * 309 + 9 * 204 + 16 * 113) / 32 = 206.5 enter a layer."""
    entering = SparseVLM(keep=192).schedule(576, 32)
    assert entering == [576] * 3 + [309] * 4 + [204] * 9 + [113] * 16
    assert sum(entering) / 32 == 206.5


@pytest.mark.parametrize("method", [SparseVLM, SparseVLMPlus])
def test_average(method):
    """For 192 that enter a layer, less is to be kept than 192 as the authors count."""
    pruner = method().with_average(192, 576, 32)
    assert 192 <= sum(pruner.schedule(576, 32)) / 32 < 193.5
    assert 170 < pruner.keep < 192
    with pytest.raises(UserError, match="out of reach"):
        method().with_average(40, 576, 32)


@pytest.mark.parametrize("method", [SparseVLMRank, SparseVLMPaper])
def test_average_of_a_rank(method):
    """It is not known before the prompt is."""
    assert method().schedule(576, 32) is None
    assert method().reduce_at(32) == (3, 7, 16, 20)
    with pytest.raises(UserError, match="the prompt decides"):
        method().with_average(192, 576, 32)


@pytest.mark.parametrize("n, keep, kept", [(576, 1 / 3, 300), (2880, 1 / 3, 1500), (2880, 960, 1500), (576, 192, 300),
                                           (576, 32, 33), (576, 1, 1), (9, .01, 1)])
def test_share_and_other_grids(n, keep, kept):
    """Of 2880 tokens a third keeps five times the row 192; below 64 of 576 the row 64 shrinks; one token is always
    kept."""
    assert len(SparseVLMPlus(keep=keep).reduce(rated(torch.rand(1, n), [0.])).keep) == kept


# --- laws -------------------------------------------------------------------------------------------------------------

def test_laws():
    """v2.0 selects, in order; v1.x merges, with weights that sum to 1; the paper's sums do not."""
    assert SparseVLMPlus().laws == {"select", "ordered", "scale"}
    assert SparseVLMRank().laws == SparseVLM().laws == {"convex", "disjoint", "scale", "needle"}
    assert SparseVLMPaper().laws == {"disjoint", "scale", "needle"}
    assert SparseVLM.preconditions == {"text"}


@pytest.mark.parametrize("version", METHODS)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 16, 100])
def test_shape_of_a_reduction(version, n):
    """The best rated k come first, ascending; of the others the best int(.3 (n - k)) + 1 are in one cluster each, with
    equal weights that sum to 1. Four times the attention gives the same."""
    generator = torch.Generator().manual_seed(n)
    attention = torch.rand(2, 4, n, generator=generator)
    hidden = torch.rand(n, generator=generator).tolist()
    pruner = METHODS[version](table=(1, 2) if version == "v1.0" else (5, 3, 2))
    r, of_four_times = (pruner.reduce(rated(times * attention, [1, 0, 1, 0], hidden)) for times in (1, 4))
    k = max(1, min(5, n - 1))
    if version == "v1.0":                                  # two raters: rank 2
        k = n if n < 3 else min(2 + 2, n - 1)
    assert r.keep[:k].equal(top(r.score, k))
    assert r.keep.equal(of_four_times.keep)
    if version == "v2.0" or k == n:
        assert r.merge is None
        assert len(r.keep) == k
        return
    lost = r.score.argsort(descending=True)[k:][:int(.3 * (n - k)) + 1]
    is_member = r.merge[k:] > 0
    assert len(r.keep) == k + int(.1 * len(lost)) + 1 == len(r.merge)
    assert r.merge[:k].equal(torch.eye(n)[r.keep[:k]])
    assert of_four_times.merge.equal(r.merge)
    assert is_member.sum(dim=0).equal(torch.zeros(n).index_fill(0, lost, 1).long())
    close(r.merge[k:], is_member / is_member.sum(dim=1, keepdim=True))
    of_centres = is_member[:, r.keep[k:]]                  # a centre is in its own cluster
    assert of_centres.equal(torch.eye(len(is_member), dtype=torch.bool))


@pytest.mark.parametrize("needle", range(4))
def test_needle(needle):
    """A token with .9 of the raters' attention is kept by v1.x wherever it is."""
    attention = torch.full((1, 4), .03).index_fill(1, torch.tensor([needle]), .9)
    assert one_cut(1).reduce(rated(attention, [0.])).keep[0] == needle
    assert SparseVLMRank(layers=(2,), table=(1, 0)).reduce(rated(attention, [0.])).keep[0] == needle


def test_no_needle_under_gravity():
    """v2.0 divides token 2's by -.59 (see test_gravity), which makes it the worst."""
    assert 2 not in one_cut(3, SparseVLMPlus).reduce(rated([[.03, .03, .9, .03]], [0.])).keep


def test_laws_not_declared():
    """The reduction of test_recycling does not select and is not ordered (a cluster of 0 would come after 4), the
    paper's sums are not convex; and the number left is another at each cut, so there is no budget(n)."""
    r = one_cut(2).reduce(rated([NINE], [0.]))
    assert r.merge is not None
    assert SparseVLM().budget(576) is None
    falling = rated([[.03, .4, .3, .2, .02]], [0.])
    assert one_cut(3).reduce(falling).keep.tolist() == [1, 2, 3, 0]
    summed = SparseVLMPaper(layers=(2,), lam=.875).reduce(rated([NINE], [0.]))
    assert summed.merge.sum(dim=1).tolist() == [1, 1, 2]


# --- edges ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pruner", [
    SparseVLM(), SparseVLM(keep=1), SparseVLM(table=(0, 0, 0)),
    SparseVLMRank(), SparseVLMRank(keep=1), SparseVLMRank(table=(0, 0)),
    SparseVLMPaper(), SparseVLMPaper(lam=9.),
    SparseVLMPlus(), SparseVLMPlus(keep=1), SparseVLMPlus(table=(0, 0, 0))], ids=repr)
def test_one_visual_token(pruner):
    """It is kept, whatever the table says: the code would drop it."""
    r = pruner.reduce(rated([[.5], [.2]], [0., 1.]))
    assert r.keep.tolist() == [0]
    assert r.merge is None


def test_text_all_alike():
    """One text token, or several that relate to the image alike: none is above the mean, and all rate."""
    for m in (1, 4):
        votes = relevance(torch.ones(3, 2), torch.ones(m, 2))
        assert chosen_or_all(votes > votes.mean()).tolist() == list(range(m))


def test_ties_of_attention():
    """Flat attention: the first are kept, the next recycled."""
    r = one_cut(3).reduce(rated(torch.full((2, 9), .1), [0., 0.], hidden=[5.] * 9))
    assert r.keep.tolist() == [0, 1, 2, 3]
    assert r.merge[3].nonzero().squeeze(1).tolist() == [3, 4]


def test_equal_rows():
    """As many clusters, none of them empty, with the first of equals the denser or none of them."""
    for members, centre in (dpc_knn(torch.zeros(6, 3), 3), noisy_dpc_knn(torch.zeros(6, 3), 3, torch.zeros(6))):
        assert centre.tolist() == [0, 1, 2]
        assert members.sum(dim=1).tolist() == [4, 1, 1]


@of_each_version
def test_half_precision(method):
    """A bfloat16 model: the numbers of the table, and values that are finite."""
    model = deepcopy(llava()).bfloat16()
    logits, cache, trace = prefill(model, ids(5, MARK, 7), [picture(model).bfloat16()], method())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert trace.visual[-1] < 16
    assert model.step(ids(2), cache).isfinite().all()


def test_half_precision_by_hand():
    """test_recycling with bfloat16 rows."""
    entering = rated([NINE], [0.], hidden=range(0, 90, 10))
    start = replace(entering.prompt, hidden=entering.prompt.hidden.bfloat16())
    half = replace(entering, hidden=entering.hidden.bfloat16(), prompt=start)
    assert values_after(half, one_cut(2)) == [-1, 10, 40, 50, -2]


@of_each_version
@pytest.mark.parametrize("keep", [1.0, 16])
def test_keeping_all_is_the_unpruned_model(method, keep):
    """keep = 1.0, or the number of tokens, to the bit."""
    question, image = ids(5, MARK, 7), [picture(llava())]
    unpruned, cache_unpruned, _ = prefill(llava(), question, image)
    logits, cache, trace = prefill(llava(), question, image, method(keep=keep))
    assert logits.equal(unpruned)
    assert llava().step(ids(3), cache).equal(llava().step(ids(3), cache_unpruned))
    assert len(trace.steps) == len(method().layers)
    assert trace.visual == [16] * 32


@of_each_version
def test_decoding(method):
    """v1.x: each layer counts on from its own length, as in its released code; v2.0: all from the unpruned length."""
    _, cache, trace = prefill(llava(), ids(5, MARK, 7), [picture(llava())], method())
    unpruned = method is SparseVLMPlus
    assert [layer.next_position for layer in cache.layers] == ([28] * 32 if unpruned else cache.lengths)
    assert cache.lengths == trace.tokens
    assert cache.lengths[0] == 28
    assert cache.lengths[-1] < 20
    llava().step(ids(3), cache)
    assert [layer.next_position for layer in cache.layers] == ([31] * 32 if unpruned else cache.lengths)


@of_each_version
def test_images_side_by_side(method):
    """Two images are one set of tokens; a cluster is in the image of its centre."""
    question, pictures = ids(3, MARK, MARK, 6), [picture(llava(), seed) for seed in (0, 1)]
    logits, cache, trace = prefill(llava(), question, pictures, method())
    assert logits.isfinite().all()
    assert trace.N == 32
    assert trace.visual[0] == 32
    assert trace.visual[3] < 24
    if method is not SparseVLMRank:
        close(trace.sources().sum(dim=1), torch.ones(trace.visual[-1]))


def test_text_between_images():
    """Two images of four, a text token after each, of which the first relates to the images, and so rates, at the
    second cut as at the first: t v v v v T v v v v t keeps 1, 2, 3 by .2 .3 .4, then of these the first by .7."""
    start = tokens("tvvvvTvvvvt", hidden=torch.tensor([0., 1, 1, 1, 1, 9, 1, 1, 1, 1, 2])[:, None])
    paid = torch.zeros(11, 11)
    paid[5, 1:5] = torch.tensor([.1, .2, .3, .4])
    paid[10, 6:10] = torch.tensor([.4, .3, .2, .1])
    pruner = SparseVLM(layers=(2, 3, 5), table=(3, 1, 1), recycle=0)
    assert values_after(tokens("tvvvvTvvvvt", paid, prompt=start, layer=3), pruner) == [0, 2, 3, 4, 5, 10]
    paid = torch.zeros(6, 6)
    paid[4] = torch.tensor([.0, .7, .1, .2, 0., 0.])
    paid[5] = torch.tensor([.0, .1, .8, .1, 0., 0.])
    r = pruner.reduce(tokens("tvvvTt", paid, prompt=start, layer=4))
    assert r.keep.tolist() == [0]


@of_each_version
def test_two_images_and_text(method):
    """The whole model."""
    pictures = [picture(llava(), seed) for seed in (0, 1)]
    logits, cache, trace = prefill(llava(), ids(3, MARK, 4, MARK, 6), pictures, method())
    assert logits.isfinite().all()
    assert cache.lengths == trace.tokens
    assert trace.tokens[-1] < trace.tokens[0] == 45


def test_no_text_after_the_image():
    """Nothing can rate."""
    with pytest.raises(UserError, match="no text follows the image"):
        prefill(llava(), ids(5, MARK), [picture(llava())], SparseVLM())


def test_text_only():
    """A prompt without an image is left as it is."""
    logits, _, trace = prefill(llava(), ids(5), (), SparseVLM())
    assert not trace.steps
    assert logits.equal(prefill(llava(), ids(5))[0])


@pytest.mark.parametrize("method", [*METHODS.values(), SparseVLMPaper])
def test_nan(method):
    """Named, not ranked."""
    with pytest.raises(UserError, match="NaN"):
        method().reduce(rated(torch.full((2, 9), torch.nan), [0., 1.]))


@pytest.mark.parametrize("method, options, message", [
    (SparseVLM, dict(layers=(3, 2, 4)), "layers must rise"),
    (SparseVLM, dict(layers=(2, 2, 4)), "layers must rise"),
    (SparseVLM, dict(layers=(-1, 2, 3)), "layers must be at least 0"),
    (SparseVLM, dict(layers=(1, 2)), "table has 2 numbers; got 3"),
    (SparseVLM, dict(table=(5, 4)), "table has 3 numbers"),
    (SparseVLM, dict(table=(5, 4, -1)), "table must be at least 0"),
    (SparseVLMRank, dict(table=(5, 4, 3)), "table has 2 numbers"),
    (SparseVLMPaper, dict(lam=-1.), "lam must be at least 0"),
    (SparseVLMPaper, dict(table=(1, 1)), "lam says how many"),
    (SparseVLM, dict(recycle=1.5), "recycle must be at most 1"),
    (SparseVLM, dict(clusters=-.1), "clusters must be at least 0"),
    (SparseVLMPlus, dict(heads=0), "heads must be at least 1"),
    (SparseVLMPlus, dict(recycle=.3), "recycle must be at most 0")])
def test_bad_options(method, options, message):
    """One line that names the option."""
    with pytest.raises(UserError, match=message) as caught:
        method(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, 10])
def test_bad_keep(keep):
    """Nine tokens: it is said when they are there."""
    with pytest.raises(UserError, match="out of range"):
        SparseVLM(keep=keep).reduce(rated([NINE], [0.]))


def test_too_few_layers():
    """A model of six has no layer 7 to cut before."""
    with pytest.raises(UserError, match="layer 7"):
        prefill(llava(layers=6), ids(5, MARK, 7), [picture(llava())], SparseVLM())
