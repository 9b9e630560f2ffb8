"""What the methods of the registry promise: the laws of pruning/laws.py, on random tokens, one test for each method and
law.

Below, what all of them owe, declared or not, and how a broken law is explained.
"""

from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from build import tokens
from pruning import EVERY, METHODS, READINGS
from pruning.base import Pruner, Reduction
from pruning.fields import annotations
from pruning.laws import LAWS, broken
from strategies import LAYERS, cases, make
from tiny import EXAMPLES, REDUCING, SETTINGS, built, reduces

FEW = settings(SETTINGS, max_examples=EXAMPLES // 2)    # of a reading, which is its method but for one step
REDUCING_READINGS = [name for name in READINGS if reduces(name)]

TWICE = ("prumerge_plus_released",)                     # keeps a patch twice, as the released code does

every_method = pytest.mark.parametrize("name", REDUCING)
every_reading = pytest.mark.parametrize("name", REDUCING_READINGS)


def promises(names):
    """(name, law) of each law that one of these methods promises, by default or with a `keep`."""
    return [(name, law) for name in names for law in LAWS if law in EVERY[name]().laws | built(name).laws]


def keeps(name, law, data):
    """Whether a method keeps a law on a drawn case."""
    pruner, entering = make(name, data.draw(cases(name, law)))
    return LAWS[law].holds(pruner, entering)


@pytest.mark.parametrize("name, law", promises(REDUCING))
@SETTINGS
@given(st.data())
def test_law(name, law, data):
    """The method keeps its word: pruning/laws.py says what that is."""
    assert keeps(name, law, data), LAWS[law].sentence


@pytest.mark.parametrize("name, law", promises(REDUCING_READINGS))
@FEW
@given(st.data())
def test_law_of_a_reading(name, law, data):
    """So does each reading; it declares the laws that the change leaves to it."""
    assert keeps(name, law, data), LAWS[law].sentence


def shift_holds(name, data):
    """Whether text put before the image changes no choice of a method on a drawn case."""
    pruner, entering = make(name, data.draw(cases(name)))
    return LAWS["shift"].holds(pruner, entering)


@pytest.mark.parametrize("name", [name for name in REDUCING if METHODS[name].site not in ("image", "vision")])
@SETTINGS
@given(st.data())
def test_shift(name, data):
    """Text put before the image changes no choice, of any method."""
    assert shift_holds(name, data)


# The exceptions, as released: one draws from all rows of the prompt, one orders its pivots by their row numbers, and the
# softmax of one is over the text, too.
BY_ROW = ("vtw_random", "dart_released", "transprune_released")


@pytest.mark.parametrize("name", [name for name in REDUCING_READINGS if READINGS[name].site != "vision" and name not in BY_ROW])
@FEW
@given(st.data())
def test_shift_of_a_reading(name, data):
    """Nor of any reading but three."""
    assert shift_holds(name, data)


# --- what all of them owe ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", EVERY)
def test_declaration(name):
    """A frozen dataclass with defaults, at a site that there is, with laws that there are; its file says what it
    does."""
    method = EVERY[name]
    pruner = method()
    assert is_dataclass(method) and method.__dataclass_params__.frozen and method.__doc__ and pruner == method()
    assert method.site in ("image", "vision", "embed", "decoder") and pruner.laws <= set(LAWS)
    assert pruner.positions in ("keep", "renumber", None)
    if method.site in ("vision", "embed"):
        assert "positions" in annotations(method), "the option of all methods at these sites"
    assert all(0 < l < LAYERS for l in pruner.reduce_at(LAYERS)) and all(0 <= l < LAYERS for l in pruner.mask_at(LAYERS))


@every_method
@SETTINGS
@given(st.data())
def test_a_pure_function(name, data):
    """The tokens stay as they are, and the same answer comes twice, whatever is drawn at random elsewhere."""
    pruner, entering = make(name, data.draw(cases(name)))
    before, options = snapshot(entering), replace(pruner)
    torch.manual_seed(0)
    first = pruner.reduce(entering)
    torch.manual_seed(1)
    assert equal(snapshot(first), snapshot(pruner.reduce(entering)))
    assert equal(before, snapshot(entering)) and pruner == options


@every_method
@SETTINGS
@given(st.data())
def test_a_matrix_over_the_visual_tokens(name, data):
    """At most n rows, each in the place of another visual token; weights and scores are numbers, reasons have names."""
    pruner, entering = make(name, data.draw(cases(name)))
    check_matrix(pruner.reduce(entering), entering)


@pytest.mark.parametrize("name", [name for name in REDUCING_READINGS if name not in TWICE])
@FEW
@given(st.data())
def test_a_matrix_of_a_reading(name, data):
    """The same of each reading."""
    pruner, entering = make(name, data.draw(cases(name)))
    check_matrix(pruner.reduce(entering), entering)


def check_matrix(r, entering):
    """A Reduction of these tokens is what a model can apply."""
    assert r.keep.dtype == torch.long and r.keep.ndim == 1 and len(r.keep) <= entering.n
    assert set(r.keep.tolist()) <= set(range(entering.n)) and len(set(r.keep.tolist())) == len(r.keep)
    assert r.merge is None or r.merge.shape == (len(r.keep), entering.n) and r.merge.isfinite().all()
    assert r.score is None or r.score.shape == (entering.n,) and not r.score.isnan().any()
    assert r.reason is None or r.reason.shape == r.keep.shape and all(0 <= i < len(r.reasons) for i in r.reason.tolist())


@every_method
@SETTINGS
@given(st.data())
def test_the_sequence_after_it(name, data):
    """All text in its order, k visual rows with numbers in them; what is selected is unchanged."""
    pruner, entering = make(name, data.draw(cases(name)))
    r = pruner.reduce(entering)
    after = entering.reduced(r, pruner.positions)
    if r.drop:
        assert after.n == len(r.keep) and after.hidden[~after.is_visual()].equal(entering.hidden[~entering.is_visual()])
        assert sorted(after.source.tolist()) == sorted(entering.source[r.keep].tolist())
    assert after.hidden.isfinite().all()
    if r.merge is None:
        place = dict(zip(entering.source.tolist(), entering.visual.tolist()))
        assert after.hidden[after.visual].equal(entering.hidden[[place[i] for i in after.source.tolist()]])


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n]().mask_at(LAYERS)])
@SETTINGS
@given(st.data())
def test_a_mask(name, data):
    """Additive; no row is left with nothing to look at; text rows are as they were; the tokens stay as they are."""
    pruner, entering = make(name, data.draw(cases(name)))
    entering = replace(entering, layer=pruner.mask_at(LAYERS)[0])
    T, before, causal = len(entering.hidden), snapshot(entering), entering.here.mask()
    mask = pruner.mask(entering)
    assert mask.shape == (T, T) and not mask.isnan().any() and (mask < torch.inf).all()
    assert (mask > -torch.inf).any(dim=-1).all() and mask[~entering.is_visual()].equal(causal[~entering.is_visual()])
    assert equal(before, snapshot(entering))


def snapshot(x):
    """The fields of a dataclass, tensors copied."""
    return {f.name: v.clone() if torch.is_tensor(v := getattr(x, f.name)) else v for f in fields(x)}


def equal(a, b):
    """Whether two snapshots are the same to the bit."""
    return all(torch.equal(v, b[k]) if torch.is_tensor(v) else v is b[k] or v == b[k] for k, v in a.items())


# --- a broken law is explained ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Broken(Pruner):
    """Promises everything, and does what `mistake` says."""

    mistake: str = "none"

    laws = frozenset({"select", "ordered", "budget", "scale", "needle"})

    def budget(self, n):
        return 2

    def reduce(self, tokens):
        score = tokens.before.mean_attention("last")[0]                            # (T,)
        at = {"first rows": torch.arange(tokens.n)}.get(self.mistake, tokens.visual)
        keep = score[at].argsort(descending=True, stable=True)[:3 if self.mistake == "one too many" else 2]
        keep = keep.sort(descending=self.mistake == "unsorted").values
        merge = torch.ones(len(keep), tokens.n) if self.mistake == "merges" else None
        if self.mistake == "numbers":
            keep = (score[tokens.visual] > .2).nonzero().squeeze(1)
        return Reduction(keep, merge)


@pytest.mark.parametrize("mistake, law", [("none", None), ("unsorted", "ordered"), ("one too many", "budget"), ("first rows", "needle"),
                                          ("first rows", "shift"), ("merges", "select"), ("numbers", "scale")])
def test_a_broken_law_says_so(mistake, law):
    """Rows 2, 3, 4 of six are visual and get .1 .4 .3 from the last; each mistake breaks its law, and the sentence has
    case and remedy."""
    case = tokens("ttvvvt", [.05, .05, .1, .4, .3, .1])
    sentences = list(broken(Broken(mistake), case))
    if law is None:
        assert not sentences
    else:
        sentence = next(s for s in sentences if f"breaks {law}:" in s)
        assert LAWS[law].sentence in sentence and "rows [2, 3, 4] are visual" in sentence and "Remedy:" in sentence
