"""TransPrune and its readings: by hand, equal to the released code's recordings, in a model, edges."""

from dataclasses import replace

import pytest
import torch

from build import close, plane, tokens
from golden import golden, of_case
from pruning.base import LayerView, Reduction, Tokens, UserError
from pruning.compose import Both
from pruning.divprune import DivPrune
from pruning.fastv import FastV
from pruning.readings import TransPruneReleased, TransPruneTTV
from pruning.transprune import TransPrune
from tiny import MARK, Chosen, ids, internvl, llava, next_llava, picture, prefill, tiled

SELECT, FACTS = golden("transprune_select")
CASES = {case["name"]: case for case in FACTS["cases"]}
STAGES = [(name, stage) for name in CASES for stage in range(3)]
LAYERS = (7, 9, 12)


def layer_of(*changes):
    """A view of a layer. Each change is that of one row by its attention: (length, degrees) of what it gives, for an
    input of length 1 at 0 degrees. The MLP gives nothing."""
    out = torch.cat([plane(degrees, length=length) for length, degrees in changes])                # (T, 2)
    x = torch.tensor([[1., 0]]).expand_as(out)
    return LayerView.of(attention_in=x, attention_out=out, mlp_in=x, mlp_out=torch.zeros_like(out))


def paid(attention):
    """A view in which the last row pays the rows before it this attention."""
    return LayerView.of(attention=attention)


def start(attention, *views, kinds=None):
    """Tokens before layer 7: visual ones and one of text, which pays them this attention; views of earlier layers."""
    kinds = kinds or "v" * (len(attention) - 1) + "t"
    return replace(tokens(kinds, before=dict(attention=attention), here=dict(attention=attention), layer=7),
                   watched=tuple(view.on(tokens(kinds)) for view in views))


def kept(entering, ratio, method=TransPrune):
    """Which tokens are kept before layer 7."""
    return method(ratios=(ratio, .5, .1)).reduce(entering).keep.tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

def test_length_and_direction():
    """Outputs of length 2, 1, 1 for inputs of length 1, at 0, 60 and 90 degrees: 1 - cos is 0, .5, 1, and its softmax
    .186 .307 .507. Times the lengths .373 .307 .507, as shares .314 .259 .427. The text pays .2 .7 .1: the sums are
    .514 .959 .527, so 1 and 2 are kept. Attention only keeps 0 and 1, transitions only 0 and 2."""
    entering = start([.2, .7, .1, 0.], layer_of((2, 0), (1, 60), (1, 90), (1, 0)))
    r = TransPrune(ratios=(2, 2, 1)).reduce(entering)
    assert r.keep.tolist() == [1, 2]
    close(r.score, torch.tensor([.514, .959, .527]), 1e-3)
    assert FastV(keep=2).reduce(entering).keep.tolist() == [0, 1]
    r = TransPruneTTV(ratios=(2, 2, 1)).reduce(entering)
    assert r.keep.tolist() == [0, 2]
    close(r.score, torch.tensor([.314, .259, .427]), 1e-3)


def test_attention_and_mlp():
    """Directions are equal, so each length counts by half. Attention gives 2 and 1, the MLP 1 and 3: 1.5 and 2, as
    shares .43 and .57. By attention only, 0 is kept."""
    x = plane(0, 0, 0)
    attention_out = torch.tensor([[0., 2], [0, 1], [0, 0]])
    mlp_out = torch.tensor([[0., 1], [0, 3], [0, 0]])
    view = LayerView.of(attention_in=x, attention_out=attention_out, mlp_in=x, mlp_out=mlp_out)
    entering = start([.5, .5, 0.], view)
    r = TransPruneTTV(ratios=(1, 1, 1)).reduce(entering)
    assert r.keep.tolist() == [1]
    close(r.score, torch.tensor([1.5, 2]) / 3.5)


def test_transitions_accumulate():
    """All outputs are at 90 degrees, so the directions of n tokens are 1 / n each. Layer 6 gives four tokens lengths
    4 1 2 1: 1 .25 .5 .25. Then token 1 is dropped, and layer 7 gives the others 0 3 3: 0 1 1. The sums are 1 1.5 1.25,
    so of the three the second is kept, token 2. Layer 6 only would keep token 0; layer 7 only has a tie of 2 and 3, as
    has a sum by rows, which would add token 1's."""
    whole = start([.25, .25, .25, .25, 0.], layer_of((4, 90), (1, 90), (2, 90), (1, 90), (1, 0)))
    left = whole.reduced(Reduction(torch.tensor([0, 2, 3])))
    after = layer_of((0, 90), (3, 90), (3, 90), (1, 0)).on(left)
    left = replace(left, layer=9, prompt=whole, here=paid([.3, .3, .3, .1]).on(left), watched=(*whole.watched, after))
    r = TransPrune(ratios=(3, 1, 1)).reduce(left)
    close(r.score, torch.tensor([1, 1.5, 1.25]) / 3.75 + 1 / 3)
    assert r.keep.tolist() == [1]
    assert left.source[r.keep].tolist() == [2]


def test_text_in_the_softmax():
    """Attention gives lengths 2 and 1, the MLP 1 and 1.7, all at 90 degrees; the text's attention is at 90 degrees, its
    MLP at 0. Over the two visual tokens all directions are 1/2: 1.5 against 1.35, token 0, whatever text there is.
    Over all rows attention's are 1/3 and the MLP's e / (2 e + 1) = .42 with one row of text: 1.09 against 1.05, token 0
    still. With three more rows before the image they are 1/6 and .29: .62 against .66, token 1."""
    def entering(text):
        kinds = "t" * text + "vvt"
        given = text * [[0., 1]]
        attention = LayerView.of(
            attention_in=plane(*[0] * len(kinds)),
            attention_out=torch.tensor([*given, [0., 2], [0, 1], [0, 1]]),
            mlp_in=plane(*[0] * len(kinds)),
            mlp_out=torch.tensor([*(text * [[1., 0]]), [0., 1], [0, 1.7], [1, 0]]))
        return start([*[0.] * text, .5, .5, 0.], attention, kinds=kinds)

    assert kept(entering(0), 1) == kept(entering(3), 1) == [0]
    assert kept(entering(0), 1, TransPruneReleased) == [0]
    assert kept(entering(3), 1, TransPruneReleased) == [1]
    released = TransPruneReleased(ratios=(1, 1, 1))
    close(released.ttv(entering(3)), torch.tensor([.621, .656]), 1e-3)
    close(released.ttv(entering(0)), torch.tensor([1.089, 1.051]), 1e-3)


def test_no_needle():
    """A token gets .98 of the attention and is not changed: .98. One that gets .01 has .99 of the changes: 1.00."""
    entering = start([.98, .01, .01, 0.], layer_of((0, 90), (.99, 90), (.01, 90), (1, 0)))
    r = TransPrune(ratios=(1, 1, 1)).reduce(entering)
    close(r.score, torch.tensor([.98, 1, .02]))
    assert r.keep.tolist() == [1]
    assert FastV(keep=1).reduce(entering).keep.tolist() == [0]
    assert "needle" not in TransPrune().laws


# --- recorded ---------------------------------------------------------------------------------------------------------

class Recorded(LayerView):
    """A view of which the recording has only the transitions."""

    def __init__(self, tokens, transition):
        self.tokens = tokens
        self.given = transition


class OfRecorded(TransPruneReleased):
    """The transitions and the attention are those of the recording; what is done with them is the method's."""

    def transition(self, view):
        return view.given[view.tokens.visual]

    def iga(self, tokens):
        return tokens.here.given


def stages(name):
    """(Tokens that enter it, what is recorded of it) of each stage of a recorded case."""
    case = CASES[name]
    n = case["n"]
    now = tokens("t" * case["before"] + "v" * n + "t" * case["after"])
    now = replace(now, prompt=now)
    for stage, layer in enumerate(LAYERS):
        recorded = of_case(SELECT, f"{name}.stage{stage}")
        now = replace(now, layer=layer)
        if "mlp_in" in recorded:
            names = ("attention_in", "attention_out", "mlp_in", "mlp_out")
            ran = LayerView.of(**{module: recorded[module] for module in names}).on(now)
            will_run = LayerView.of(query=recorded["turned_query_text"], key=recorded["turned_key"]).on(now)
        else:
            ran = Recorded(now, recorded["transition"])
            will_run = Recorded(now, recorded["attention_share"])
        now = replace(now, here=will_run, watched=(*now.watched, ran))
        yield now, recorded
        now = now.reduced(Reduction(recorded["kept"].long()), "renumber")


@pytest.mark.parametrize("name, stage", STAGES)
def test_recorded_stage(name, stage):
    """Transitions, shares, scores and kept tokens of the released code."""
    entering, recorded = list(stages(name))[stage]
    method = (TransPruneReleased if "mlp_in" in recorded else OfRecorded)(LAYERS, tuple(CASES[name]["ratios"]))
    r = method.reduce(entering)
    close(method.transition(entering.watched[-1]), recorded["transition"][entering.visual])
    ttv = method.ttv(entering)
    close(ttv / ttv.sum(), recorded["transition_share"])
    close(r.score, recorded["score"])
    assert r.keep.tolist() == recorded["kept"].tolist()
    assert entering.source[r.keep].tolist() == recorded["kept_original"].tolist()


def test_the_recorded_text_matters_little():
    """Without the text in the softmax, eight of the nine choices are the same."""
    same = [TransPrune(LAYERS, tuple(CASES[name]["ratios"])).reduce(entering).keep.tolist() == recorded["kept"].tolist()
            for name in CASES for entering, recorded in stages(name) if "mlp_in" in recorded]
    assert sum(same) == 8 and len(same) == 9


# --- in a model -------------------------------------------------------------------------------------------------------

class Watching(Chosen):
    """Keeps what it is given, and watches these layers."""

    def __init__(self, kept, layers, look):
        super().__init__(kept, look=look)
        self.layers = layers

    def watch_at(self, layers):
        return self.layers


def test_the_views_of_the_layers_that_have_run():
    """Before layer 2 there are those of layers 0 and 1, on all tokens; before layer 4 that of layer 2, on those left.
    What the modules read and add is what they compute themselves."""
    model = llava().language_model

    def check(tokens):
        for view in tokens.watched:
            layer = model.layers[view.tokens.layer]
            (normed, attended), (normed_again, added) = view.modules()
            attention = layer.self_attn(normed[None], view.rope)[0]                # causal
            close(layer.input_layernorm(view.tokens.hidden), normed)
            close(attention, attended)
            close(layer.post_attention_layernorm(view.tokens.hidden + attention), normed_again)
            close(layer.mlp(normed_again), added)
        return [(view.tokens.layer, view.tokens.n) for view in tokens.watched]

    method = Watching({2: range(0, 16, 2), 4: [0]}, (0, 1, 2), check)
    prefill(llava(), ids(3, MARK, 4), [picture(llava())], method)
    assert method.views == [[(0, 16), (1, 16)], [(0, 16), (1, 16), (2, 8)]]


def test_what_has_not_run_has_added_nothing():
    """Reading the modules of the layer about to run, or of a typed view without them, is an error."""
    method = Chosen({2: [0]}, look=lambda tokens: tokens.here.modules())
    with pytest.raises(UserError, match="DecoderView.* has not run"):
        prefill(llava(), ids(3, MARK, 4), [picture(llava())], method)
    with pytest.raises(UserError, match="give it to LayerView.of.mlp_in=..."):
        LayerView.of(attention_in=[[1.]], attention_out=[[1.]]).modules()


def test_stages_of_a_model():
    """14, 10 and 2 of 16 are left from layers 7, 9 and 12 on, with position ids from 0 at each stage."""
    model = llava()
    logits, cache, trace = prefill(model, ids(3, MARK, 4), [picture(model)], TransPrune())
    assert trace.visual == [16] * 7 + [14] * 2 + [10] * 3 + [2] * 20 == TransPrune().schedule(16, 32)
    assert [cache.layers[l].next_position for l in (6, 7, 9, 12)] == [23, 21, 17, 9]
    assert logits.isfinite().all()


def test_the_score_of_a_model():
    """Before layer 7, the one layer that counts is layer 6: its two modules, computed here from their own outputs."""
    model = llava()
    layers = model.language_model.layers
    words = ids(3, MARK, 4)
    hidden = model.embed(words, [picture(model)]).hidden[None]                     # (1, T, D)
    rope = model.language_model.rope(torch.arange(hidden.shape[1]), hidden.dtype)
    for layer in layers[:6]:
        hidden = layer(hidden, rope)
    x = layers[6].input_layernorm(hidden)
    attended = layers[6].self_attn(x, rope)
    y = layers[6].post_attention_layernorm(hidden + attended)
    total = torch.zeros(16)
    for read, given in ((x, attended), (y, layers[6].mlp(y))):
        read = read[0, 3:19]
        given = given[0, 3:19]
        cosine = (read * given).sum(dim=1) / read.norm(dim=1) / given.norm(dim=1)
        weight = (1 - cosine).exp()
        total += given.norm(dim=1) / read.norm(dim=1) * weight / weight.sum()
    _, _, trace = prefill(model, words, [picture(model)], TransPruneTTV())
    close(trace.steps[0].reduction.score, total / total.sum())


def test_two_images():
    """They are one set of 32 tokens, and the text between them attends to the first, too."""
    pictures = [picture(llava(), i) for i in range(2)]
    logits, _, trace = prefill(llava(), ids(3, MARK, 4, MARK, 6), pictures, TransPrune())
    assert trace.visual == TransPrune().schedule(32, 32)
    assert logits.isfinite().all()


def test_after_another_method():
    """DivPrune leaves 8 of 16 before layer 0; these are the N tokens at first, and keep their places in the sums."""
    both = Both((DivPrune(keep=8), TransPrune()))
    _, _, trace = prefill(llava(), ids(3, MARK, 4), [picture(llava())], both)
    assert trace.visual == TransPrune().schedule(8, 32)
    assert int(trace.steps[1].source.max()) >= 8


@pytest.mark.parametrize("model", [next_llava(context=2048), internvl()])
def test_tiles(model):
    """Tiles and newlines are tokens as all others."""
    image = tiled(model, 100, 200) if model is not internvl() else picture(model, tiles=3)
    n = model.visual_tokens(image)
    logits, _, trace = prefill(model, ids(3, MARK, 4), [image], TransPrune())
    assert trace.visual == TransPrune().schedule(n, 32)
    assert logits.isfinite().all()


# --- edges ------------------------------------------------------------------------------------------------------------

def test_average():
    """All ratios are multiplied by one factor: 504, 360 and 72 of 576 are 236.25 on average."""
    assert sum(TransPrune().schedule(576, 32)) / 32 == 236.25
    pruner = TransPrune().with_average(192, 576, 32)
    counts = pruner.schedule(576, 32)
    assert 192 <= sum(counts) / 32 < 193
    assert counts[:7] == [576] * 7
    close(torch.tensor(pruner.ratios) / pruner.ratios[0], torch.tensor([1, 5 / 7, 1 / 7]), 1e-2)
    with pytest.raises(UserError, match="average of 100 .* out of reach for TransPrune"):
        TransPrune().with_average(100, 576, 32)


def test_one_token():
    """A share leaves at least one."""
    assert kept(start([1., 0.], layer_of((1, 90), (1, 0))), .1) == [0]


@pytest.mark.parametrize("ratio", [1.0, 3])
def test_all_tokens(ratio):
    assert kept(start([.2, .7, .1, 0.], layer_of((2, 0), (1, 60), (1, 90), (1, 0))), ratio) == [0, 1, 2]


def test_ties():
    """Of equals the first; so it is if nothing is changed and nothing is attended to."""
    assert kept(start([.2] * 4 + [.2], layer_of(*[(1, 90)] * 5)), 2) == [0, 1]
    assert kept(start([0.] * 4 + [1.], layer_of(*[(0, 90)] * 5)), 2) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """What is measured is measured in float32: 576 tokens rank as those of the same numbers in float32."""
    generator = torch.Generator().manual_seed(0)
    x, out, y, given = torch.randn(4, 577, 16, generator=generator).to(dtype)
    attention = torch.rand(577, generator=generator)

    def reduced(cast):
        view = LayerView.of(attention_in=cast(x), attention_out=cast(out), mlp_in=cast(y), mlp_out=cast(given))
        return TransPrune().reduce(start(attention.tolist(), view))

    half = reduced(lambda tensor: tensor)
    full = reduced(torch.Tensor.float)
    assert half.score.dtype == torch.float32
    assert half.keep.equal(full.keep)


def test_no_image():
    """A prompt without one is left as it is."""
    logits, _, trace = prefill(llava(), ids(9), (), TransPrune())
    assert not trace.steps
    assert logits.equal(prefill(llava(), ids(9))[0])


def test_no_text_after_the_image():
    """Attention has no row to come from; transitions have all they need."""
    with pytest.raises(UserError, match="TransPrune: no text follows the image: put the question after"):
        prefill(llava(), ids(3, MARK), [picture(llava())], TransPrune())
    _, _, trace = prefill(llava(), ids(3, MARK), [picture(llava())], TransPruneTTV())
    assert len(trace.steps) == 3


def test_not_a_number():
    """Named, not ranked."""
    with pytest.raises(UserError, match="token transitions contain NaN or infinity.*float32"):
        kept(start([.5, .5, 0.], layer_of((1, 90), (float("inf"), 90), (1, 0))), 1)
    with pytest.raises(UserError, match="NaN.*float32"):
        kept(start([.5, float("nan"), 0.], layer_of((1, 90), (1, 90), (1, 0))), 1)


def test_no_views():
    """Tokens typed by hand without them are an error; with them, start binds the views."""
    entering = Tokens.start([[0.]] * 3, [0, 1], here=paid([.5, .5, 0.]), layer=7)
    with pytest.raises(UserError, match="give their views, Tokens.start.watched=..."):
        TransPrune().reduce(entering)
    entering = Tokens.start([[0.]] * 3, [0, 1], here=paid([.5, .4, .1]), layer=7, watched=[layer_of(*[(1, 90)] * 3)])
    assert TransPrune(ratios=(1, 1, 1)).reduce(entering).keep.tolist() == [0]


@pytest.mark.parametrize("options, message", [
    (dict(layers=(7, 9)), "one ratio per layer; got 2 layers and 3 ratios"),
    (dict(layers=(0, 9, 12)), "rise from 1"),
    (dict(ratios=(.5, .25, 0.)), "keep 0.0 is out"),
    (dict(since=7), "TransPrune: no layer from 7 on has run before layer 7: give a smaller since"),
    (dict(since=-1), "since must be at least 0"),
])
def test_bad_options(options, message):
    """One line that names the option."""
    with pytest.raises(UserError, match=message) as caught:
        TransPrune(**options)
    assert "\n" not in str(caught.value)
