"""One method at several layers, and methods of different sites on one prompt."""

from dataclasses import asdict, dataclass

import pytest
import torch

from build import close, tokens
from golden import golden, prompt, run, tiny_decoder
from pruning.asap import ASAP
from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.compose import Both, Schedule, fixed_ratio
from pruning.controls import AveragePool, Blind, DownSample, Last, MaxPool3x3, Random, Skip, Uniform
from pruning.divprune import DivPrune
from pruning.fastv import FastV
from pruning.fitprune import FitPrune, SingleFitPrune
from pruning.pyramiddrop import PyramidDrop
from pruning.ranked import top
from pruning.readings import ASAPMaskLast, ASAPPrunePast, FastVAllRows, FastVMask, FastVRerank
from pruning.vispruner import VisPruner
from pruning.vtw import VTW
from tiny import MARK, ids, llava, picture, prefill

E2E, E2E_FACTS = golden("tiny_llama_e2e")
QUESTION = ids(3, MARK, 6)


def entering(score, layer, n=None):
    """The tokens that enter `layer`: of n visual tokens those are left to which the last one pays `score`."""
    entered = tokens("t" + "v" * (len(score) if n is None else n) + "t")
    return tokens("t" + "v" * len(score) + "t", [0., *score, 0.], layer=layer, prompt=entered)


# --- schedules by hand ------------------------------------------------------------------------------------------------

def test_two_layers():
    """FastV before layers 2 and 4, with 4 and 2 of eight tokens. The first time the best four of .1 .3 .0 .2 .05 .15
    .08 .12 are 1 3 5 7; then these four are ranked anew, by .1 .2 .4 .3: the third and the fourth. FastV's own layer
    and keep do not count."""
    pruner = Schedule(FastV(layer=9, keep=.9), (2, 4), (4, 2))
    assert pruner.reduce(entering([.1, .3, .0, .2, .05, .15, .08, .12], 2)).keep.tolist() == [1, 3, 5, 7]
    assert pruner.reduce(entering([.1, .2, .4, .3], 4, n=8)).keep.tolist() == [2, 3]
    assert pruner.reduce_at(32) == (2, 4) and pruner.budget(8) == 2 and pruner.schedule(8, 6) == [8, 8, 4, 4, 2, 2]


def test_budget_is_that_of_the_last_layer():
    """Of three layers that leave 4, 2 and 1 of eight it is 1, for a schedule and for PyramidDrop."""
    for pruner in (Schedule(FastV(), (2, 4, 6), (4, 2, 1)), PyramidDrop((2, 4, 6), (.5, .25, .125))):
        assert pruner.budget(8) == 1
        assert pruner.schedule(8, 8) == [8, 8, 4, 4, 2, 2, 1, 1]


def test_ratios_are_of_the_tokens_that_entered():
    """1/2 and 1/4 of eight are 4 and 2; 1/4 of the four that are left would be 1."""
    pruner = Schedule(FastV(), (2, 4), (.5, .25))
    assert len(pruner.reduce(entering([.1] * 8, 2)).keep) == 4
    assert len(pruner.reduce(entering([.1] * 4, 4, n=8)).keep) == 2
    assert len(FastV(keep=.25).reduce(entering([.1] * 4, 4, n=8)).keep) == 1


def test_nothing_comes_back():
    """A later ratio that is larger keeps what is there."""
    pruner = Schedule(FastV(), (2, 4), (2, 5))
    assert pruner.schedule(8, 6) == [8, 8, 2, 2, 2, 2]
    assert pruner.reduce(entering([.1, .2], 4, n=8)).keep.tolist() == [0, 1]


@pytest.mark.parametrize("ratio, layers, kept", [(3 / 4, (1,), (130,)), (2 / 3, (4, 14, 24), (162, 54, 18)),
                                                 (1 / 2, (4, 14, 24), (136, 68, 34))])
def test_table_2(ratio, layers, kept):
    """Each stage keeps 1 - ratio of the one before. 144 on average over 32 layers, of which the first ones see 576,
    leave for the first stage (144 * 32 - 4 * 576) / (10 + 10/3 + 8/9) = 162, (..) / (10 + 5 + 2) = 135.5, or (144 *
    32 - 576) / 31 = 130.06."""
    pruner = fixed_ratio(FastV(), ratio, layers, 144)
    assert pruner == Schedule(FastV(), layers, kept)
    assert round(sum(pruner.schedule(576, 32)) / 32) == 144


def test_table_2_out_of_reach():
    with pytest.raises(UserError, match="average of 50 is out of reach: 576 tokens enter each layer before 4"):
        fixed_ratio(FastV(), 1 / 2, (4, 14, 24), 50)


def test_average():
    """The numbers stay in proportion, 4 to 2 to 1: for 144 the first is 136; (2304 + 17 k) / 32 >= 144 from 135.5
    on."""
    assert Schedule(FastV()).with_average(144, 576, 32).ratios == (136, 68, 34)
    shares = Schedule(FastV(), (4, 14, 24), (.4, .2, .1)).with_average(144, 576, 32)
    assert shares.ratios == (136, 68, 34)
    with pytest.raises(UserError, match="out of reach for Schedule"):
        Schedule(FastV()).with_average(50, 576, 32)


# --- schedules of every method ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class OwnFastV(Pruner):
    """FastV by the attention that the layer itself will compute, renumbered: one stage of PyramidDrop."""

    layer: int = 2
    keep: float | int = .5
    positions = "renumber"

    def reduce(self, tokens):
        score = tokens.here.mean_attention("last")[0, tokens.visual]
        return Reduction(top(score, tokens_to_keep(self.keep, tokens.n)))


@pytest.mark.parametrize("name", [name for name in E2E_FACTS["runs"] if name.startswith("pdrop")])
def test_pyramiddrop_is_a_schedule(name):
    """Positions are those of the method: PyramidDrop's recorded runs come out of a schedule of its one stage."""
    facts, start = E2E_FACTS["runs"][name], prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    pruner = Schedule(OwnFastV(), tuple(facts["layer_list"]), tuple(facts["ratios"]))
    hidden, decoded, trace, after = run(tiny_decoder(), start, pruner, E2E["decode_embeds"])
    close(hidden[-12:], E2E[f"{name}.text_hidden"])
    close(decoded, E2E[f"{name}.decode_hidden"])
    assert trace.tokens == facts["kv_prefill"] and trace.visual == pruner.schedule(576, 6)


def test_one_layer_is_the_method():
    """FastV's recorded run, as a schedule of one."""
    name = "fastv_lmms_K2_keep0.25"
    start = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    hidden, _, _, _ = run(tiny_decoder(), start, Schedule(FastV(), (2,), (.25,)), E2E["decode_embeds"])
    close(hidden[-12:], E2E[f"{name}.text_hidden"])


@pytest.mark.parametrize("method", [FastV(), FastVAllRows(), FastVMask(), SingleFitPrune(), Random(), Last(), Uniform(),
                                    Skip(), MaxPool3x3()], ids=repr)
def test_any_method(method):
    """Two images: 32, 16, 8, 4 tokens, survivors of one stage among those of the one before; decoding goes on."""
    model, question = llava(), ids(3, MARK, 4, MARK, 6)
    pruner = Schedule(method, (4, 14, 24), (.5, .25, .125))
    logits, cache, trace = prefill(model, question, [picture(model, i) for i in range(2)], pruner)
    assert trace.visual == pruner.schedule(32, 32) == [32] * 4 + [16] * 10 + [8] * 10 + [4] * 8
    first, second, third = (set(step.kept.tolist()) for step in trace.steps)
    assert third < second < first and logits.isfinite().all() and model.step([5], cache, pruner).isfinite().all()
    assert prefill(model, ids(9), (), pruner)[0].equal(prefill(model, ids(9))[0])


def test_masked_stages_equal_dropped_ones():
    """The number that entered is counted whether the tokens are gone or masked, and all stages choose alike."""
    question = QUESTION, [picture(llava())]
    stages = (4, 14, 24), (.5, .25, .125)
    logits_dropped, _, dropped = prefill(llava(), *question, Schedule(FastV(), *stages))
    logits_masked, _, masked = prefill(llava(), *question, Schedule(FastVMask(), *stages))
    assert [step.kept.tolist() for step in dropped.steps] == [step.kept.tolist() for step in masked.steps]
    close(logits_dropped, logits_masked, 1e-4)
    whole = entering([.1] * 8, 2)
    for r in (Reduction(torch.tensor([1, 2])), Reduction(torch.tensor([1, 2]), drop=False)):
        assert whole.N == whole.reduced(r).N == 8


def test_a_method_that_masks():
    """A mask inside a layer is that of the next stage; and each stage knows its layer when it reduces."""
    @dataclass(frozen=True)
    class Masking(FastV):
        def mask_at(self, layers):
            return range(self.layer)

        def mask(self, tokens):
            return torch.full((1, 1), self.layer)

        def reduce(self, tokens):
            return Reduction(torch.tensor([self.layer, self.keep]))

    pruner = Schedule(Masking(), (2, 5), (4, 2))
    assert pruner.mask_at(8) == (0, 1, 2, 3, 4)
    masks = [pruner.mask(entering([.1], layer)).item() for layer in range(6)]
    assert masks == [2, 2, 5, 5, 5, 5]
    assert [pruner.reduce(entering([.1] * 8, layer)).keep.tolist() for layer in (2, 5)] == [[2, 4], [5, 2]]


def test_asap_in_a_schedule():
    """Its mask acts in all layers before the last cut; and what it drops from the caches before, a schedule drops."""
    model, question = llava(layers=6), (QUESTION, [picture(llava(layers=6))])
    stages = (2, 4), (8, 4)
    assert Schedule(ASAP(), *stages).mask_at(6) == (0, 1, 2, 3)
    assert Schedule(ASAPMaskLast(), *stages).mask_at(6) == (1, 3)
    methods = (ASAP(), ASAPMaskLast(), ASAPPrunePast())
    masked, last, past = (prefill(model, *question, Schedule(method, *stages)) for method in methods)
    assert masked[2].visual == last[2].visual == [16, 16, 8, 8, 4, 4] and not masked[0].equal(last[0])
    assert len(set(past[1].lengths)) == 1 < len(set(masked[1].lengths))


def test_laws_of_a_schedule():
    """What its method promises, but for the number, which is that of the last layer alone."""
    pruner = Schedule(FastV(), (2, 4), (4, 2))
    assert pruner.laws == FastV.laws - {"budget"}
    assert pruner.budget(8) == 2
    assert len(pruner.reduce(entering([.1] * 8, 2)).keep) == 4
    assert Schedule(Random(), (2,), (.5,)).laws == Random.laws - {"budget"}
    assert "needle" not in Schedule(Random(), (2,), (.5,)).laws
    assert "convex" in Schedule(AveragePool(), (2,), (.5,)).laws


@pytest.mark.parametrize("build, message", [
    (lambda: Schedule(VTW()), "VTW cannot be scheduled"), (lambda: Schedule(VisPruner()), "VisPruner cannot"),
    (lambda: Schedule(FitPrune()), "FitPrune cannot"), (lambda: Schedule(Random(site="embed")), "Random cannot"),
    (lambda: Schedule(FastVRerank()), "FastVRerank ranks again"),
    (lambda: Schedule(FastV(), (4, 14)), "2 layers and 3"),
    (lambda: Schedule(FastV(), (4, 4), (.5, .2)), "must rise"),
    (lambda: Schedule(FastV(), (4,), (0,)), "keep 0 is out"),
    (lambda: Schedule(FastV(), (4,), (.5,), "up"), "'up'")])
def test_bad_schedules(build, message):
    """Said when it is built."""
    with pytest.raises(UserError, match=message):
        build()


def test_more_than_there_is():
    with pytest.raises(UserError, match="keep 136 is out of range.*1 to 16"):
        prefill(llava(), QUESTION, [picture(llava())], Schedule(FastV()))


# --- methods of different sites ---------------------------------------------------------------------------------------

def test_vispruner_then_fastv():
    """Of 16 patches 8 reach the decoder, of which 4 are left from layer 2 on. The same as one method after the other:
    FastV sees what VisPruner leaves; and the trace leads back to the 16."""
    model, pruner = llava(), Both((VisPruner(keep=8), FastV(keep=4)))
    logits, cache, trace = prefill(model, QUESTION, [picture(model)], pruner)
    assert trace.visual == pruner.schedule(16, 32) == [8] * 2 + [4] * 30 and pruner.budget(16) == 4
    assert [step.site for step in trace.steps] == ["vision", "decoder"] and trace.N == 16
    assert set(trace.steps[1].kept.tolist()) < set(trace.steps[0].kept.tolist())
    alone = prefill(model, QUESTION, [picture(model)], VisPruner(keep=8))[2]
    assert alone.steps[0].kept.equal(trace.steps[0].kept) and trace.sources().shape == (4, 16)
    tokens = model.embed(QUESTION, [picture(model)], VisPruner(keep=8))
    expected, cache_expected = model.prefill(tokens, FastV(keep=4))
    assert logits.equal(expected)
    after = model.step([5, 6], cache, pruner)
    assert after.equal(model.step([5, 6], cache_expected, FastV(keep=4)))


def test_three_sites():
    """Half, half of that, half of that again: shares are of what arrives, 16 -> 8 -> 4 -> 2."""
    model, pruner = llava(), Both((VisPruner(keep=.5), DivPrune(keep=.5), FastV(keep=.5, layer=3)))
    trace = prefill(model, QUESTION, [picture(model)], pruner)[2]
    assert trace.visual == pruner.schedule(16, 32) == [4] * 3 + [2] * 29 and pruner.budget(16) == 2
    assert pruner.at("vision").keep == .5 and [type(pruner.at(s)) for s in ("embed", "decoder")] == [DivPrune, FastV]


def test_with_a_schedule_and_a_table():
    """Shares of a schedule are of what enters layer 0, and a table is scaled to it: 8, not 16."""
    model = llava()
    for last in (Schedule(FastV(), (4, 14), (.5, .25)), PyramidDrop((4, 14), (.5, .25)), FitPrune(90), VTW(9)):
        pruner = Both((VisPruner(keep=.5), last))
        logits, cache, trace = prefill(model, QUESTION, [picture(model)], pruner)
        assert trace.visual == pruner.schedule(16, 32) == last.schedule(8, 32) and trace.visual[0] == 8
        assert model.step([5], cache, pruner).isfinite().all()


def test_without_the_decoder():
    """Two sites before it: nothing of the decoder is asked."""
    model, pruner = llava(), Both((VisPruner(keep=8), DivPrune(keep=4)))
    logits, cache, trace = prefill(model, QUESTION, [picture(model)], pruner)
    assert pruner.at("decoder") is None and trace.visual == [4] * 32 and model.step([5], cache, pruner).isfinite().all()
    assert Both((VisPruner(keep=.5), Blind())).schedule(16, 3) == [0] * 3


def test_re_ranking_goes_on():
    """A decoder method that ranks again at each token does so behind another one."""
    model, pruner = llava(layers=6), Both((VisPruner(keep=8), FastVRerank(keep=4)))
    logits, cache, trace = prefill(model, QUESTION, [picture(model)], pruner)
    assert trace.tokens == [17] * 6 and trace.visual == [8] * 2 + [4] * 4
    model.step([5], cache, pruner)
    assert [layer.length for layer in cache.layers] == [18] * 6
    assert [layer.hidden_keys() for layer in cache.layers[:2]] == [None] * 2
    assert [int((~layer.hidden_keys()).sum()) for layer in cache.layers[2:]] == [14] * 4


def test_combined_average():
    """VisPruner leaves 256 of 576; FastV behind it keeps the fewest that give 128: (2 * 256 + 30 * k) / 32 >= 128, k
    = 120."""
    pruner = Both((VisPruner(keep=256), FastV())).with_average(128, 576, 32)
    assert pruner == Both((VisPruner(keep=256), FastV(keep=120))) and sum(pruner.schedule(576, 32)) / 32 == 128.5


def test_a_prompt_that_decides():
    """Where a method fixes no number, there is none for both."""
    class Adaptive(Pruner):
        site = "embed"
    pruner = Both((Adaptive(), FastV()))
    assert pruner.budget(9) is None and pruner.schedule(9, 32) is None
    with pytest.raises(UserError, match="prompt decides how many tokens reach FastV"):
        pruner.with_average(3, 9, 32)


def test_laws_of_both():
    """Those that each keeps; but what one method singles out the other may have dropped: a needle for FastV, gone
    before."""
    class Early(Pruner):
        site, laws = "embed", frozenset({"select", "needle"})
    assert Both((Early(), FastV())).laws == {"select"}
    assert Both((VisPruner(keep=.5), FastV())).laws == {"select", "ordered", "budget", "scale"}
    model, last = llava(), Last(keep=1, site="embed")
    whole = prefill(model, QUESTION, [picture(model)], FastV(keep=1))[2].steps[-1].kept.item()
    trace = prefill(model, QUESTION, [picture(model)], Both((last, FastV(keep=1))))[2]
    assert whole != 15
    assert trace.steps[-1].kept.item() == 15


def test_text_alone():
    assert prefill(llava(), ids(9), (), Both((VisPruner(), FastV())))[0].equal(prefill(llava(), ids(9))[0])


def test_facts_as_data():
    """Nested dataclasses: all options can be listed."""
    assert asdict(Both((VisPruner(keep=8), FastV(keep=4))))["methods"][1]["keep"] == 4
    assert asdict(Schedule(FastV()))["method"]["layer"] == 2


@pytest.mark.parametrize("methods, message", [
    ((FastV(), VTW()), "FastV and VTW both act at the decoder site"),
    ((FastV(), VisPruner()), "in the order image, vision, embed, decoder; got decoder, vision"),
    ((), "got none"),
    ((VisPruner(), AveragePool(site="embed")), "AveragePool needs the whole grid of patches, and VisPruner"),
    ((Blind(), DownSample()), "DownSample needs the whole grid"),
    ((Both((VisPruner(), DivPrune())), FastV()), "one Both")])
def test_what_does_not_compose(methods, message):
    """Said when it is built."""
    with pytest.raises(UserError, match=message):
        Both(methods)


def test_first_in_line_may_need_the_grid():
    """Down-sampling, then a ranking of what it left."""
    model, pruner = llava(), Both((AveragePool(keep=4, site="embed"), FastV(keep=2)))
    trace = prefill(model, QUESTION, [picture(model)], pruner)[2]
    assert trace.visual == [4] * 2 + [2] * 30 == pruner.schedule(16, 32)
    close(trace.sources().sum(dim=1), torch.ones(2))
