"""The contract by hand: where the rows of a reduced sequence stand, and what they hold.

A token's hidden state is its own number, so that a row tells which token it is. Text is 100 and up.
"""

from dataclasses import dataclass, replace

import pytest
import torch

from build import close, tokens
from pruning.apply import checked
from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.ranked import cosines, top


def rows(tokens):
    """The values of all rows, in sequence."""
    return tokens.hidden[:, 0].tolist()


# --- selecting -------------------------------------------------------------------------------------------------------

def test_dropped():
    """Text, 4 visual tokens, text; 1 and 3 stay, with their positions (gaps and all), cells and origins."""
    after = tokens("tt vvvv t", values=range(4), grid=(2, 2)).reduced(Reduction(torch.tensor([1, 3])))
    assert rows(after) == [100, 101, 1, 3, 102]
    assert after.position.tolist() == [0, 1, 3, 5, 6] and after.next_position == 7
    assert after.visual.tolist() == [2, 3] and after.n == 2
    assert after.grid.tolist() == [[0, 0, 1], [0, 1, 1]] and after.source.tolist() == [1, 3]
    assert after.masked is None


def test_dropped_twice():
    """The second reduction counts among what the first left: of tokens 1, 3, 4 the last two stay."""
    after = tokens("t vvvvv t", values=range(5)).reduced(Reduction(torch.tensor([1, 3, 4])))
    after = after.reduced(Reduction(torch.tensor([1, 2])))
    assert rows(after) == [100, 3, 4, 101]
    assert after.position.tolist() == [0, 4, 5, 6] and after.source.tolist() == [3, 4] and after.next_position == 7


def test_order_of_keep_inside_a_span():
    """keep = [3, 0, 2] puts the rows in this order; each keeps its own position id, grid and source."""
    after = tokens("t vvvv t", values=range(4), grid=(2, 2)).reduced(Reduction(torch.tensor([3, 0, 2])))
    assert rows(after) == [100, 3, 0, 2, 101]
    assert after.position.tolist() == [0, 4, 1, 3, 5] and after.source.tolist() == [3, 0, 2]
    assert after.grid.tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]


def test_two_spans():
    """Tokens 0-2 and 3-5 are two images with text between. keep = [5, 1, 3, 0]: each stays in its own image's span, and
    there in the order of keep: 1, 0 | 5, 3."""
    after = tokens("t vvv tt vvv t", values=range(6)).reduced(Reduction(torch.tensor([5, 1, 3, 0])))
    assert rows(after) == [100, 1, 0, 101, 102, 5, 3, 103]
    assert after.visual.tolist() == [1, 2, 5, 6] and after.source.tolist() == [1, 0, 5, 3]
    assert after.position.tolist() == [0, 2, 1, 4, 5, 8, 6, 9]


def test_one_of_two_images_gone():
    """All of the first image dropped: the text before and between joins."""
    after = tokens("t vv tt vv t", values=range(4)).reduced(Reduction(torch.tensor([3])))
    assert rows(after) == [100, 101, 102, 3, 103] and after.visual.tolist() == [3]
    assert after.position.tolist() == [0, 3, 4, 6, 7]


def test_nothing_kept():
    """Zero visual tokens are a sequence of text, with the positions it had."""
    after = tokens("t vv tt", values=range(2)).reduced(Reduction(torch.empty(0, dtype=torch.long)))
    assert rows(after) == [100, 101, 102] and after.n == 0 and after.grid.shape == (0, 3)
    assert after.position.tolist() == [0, 3, 4] and after.next_position == 5
    assert after.text().tolist() == [] and after.rows("last").tolist() == [2]


def test_image_at_either_end():
    """No text before, none after."""
    after = tokens("vvv", values=range(3)).reduced(Reduction(torch.tensor([0, 2])))
    assert rows(after) == [0, 2] and after.visual.tolist() == [0, 1] and after.next_position == 3


# --- merging ----------------------------------------------------------------------------------------------------------

def test_merged():
    """Values 2, 4, 8. Row one stands at token 2 and is (2 + 4) / 2 = 3; row two at token 0 and is 8 / 4 + 3 * 2 / 4 =
    3.5."""
    weights = torch.tensor([[.5, .5, 0], [.75, 0, .25]])
    after = tokens("t vvv t", values=[2, 4, 8]).reduced(Reduction(torch.tensor([2, 0]), weights))
    assert rows(after) == [100, 3, 3.5, 101]
    assert after.position.tolist() == [0, 3, 1, 4] and after.source.tolist() == [2, 0]


def test_what_weighs_nothing_is_not_read():
    """A token without weight may hold infinity: 0 times that would be NaN."""
    weights = torch.tensor([[.5, .5, 0]])
    reduced = tokens("t vvv t", values=[2, 4, float("inf")]).reduced(Reduction(torch.tensor([0]), weights))
    assert rows(reduced) == [100, 3, 101]


def test_merged_over_two_spans():
    """Row 0 stands in the second image, row 1 in the first: each weight row lands where its token stands.
    Values 1, 2 | 4, 8: row 0 = 1 + 8 = 9 at token 3, row 1 = 2 + 4 = 6 at token 1."""
    weights = torch.tensor([[1., 0, 0, 1], [0, 1, 1, 0]])
    after = tokens("vv t vv t", values=[1, 2, 4, 8]).reduced(Reduction(torch.tensor([3, 1]), weights))
    assert rows(after) == [6, 100, 9, 101]


def test_merged_in_float32():
    """2000 sixteen times, with weight .06253 each: 2000.96, so 2001. In half precision the weight would be .0625:
    2000."""
    entering = tokens("t vvvvvvvvvvvvvvvv t", values=torch.full((16,), 2000.).half())
    after = entering.reduced(Reduction(torch.tensor([0]), torch.full((1, 16), .06253)))
    assert after.hidden.dtype == torch.float16 and rows(after) == [100, 2001, 101]


def test_merging_needs_dropping():
    """What stays in the sequence cannot be merged into another."""
    with pytest.raises(AssertionError, match="merged if they are dropped"):
        tokens("t vv").reduced(Reduction(torch.tensor([0]), torch.ones(1, 2), drop=False))


# --- positions, masks -------------------------------------------------------------------------------------------------

def test_renumbered():
    """0, 1, .. over what is left, and the first generated token goes on from there."""
    after = tokens("tt vvvv t", values=range(4)).reduced(Reduction(torch.tensor([1, 3])), "renumber")
    assert rows(after) == [100, 101, 1, 3, 102]
    assert after.position.tolist() == [0, 1, 2, 3, 4] and after.next_position == 5


def test_masked():
    """All rows stay; 0 and 2 of the visual tokens are masked, and the visual tokens are the other two."""
    after = tokens("t vvvv t", values=range(4)).reduced(Reduction(torch.tensor([1, 3]), drop=False))
    assert rows(after) == [100, 0, 1, 2, 3, 101]
    assert after.masked.tolist() == [False, True, False, True, False, False]
    assert after.visual.tolist() == [2, 4] and after.source.tolist() == [1, 3] and after.next_position == 6
    assert after.position.tolist() == [0, 1, 2, 3, 4, 5]


def test_masked_twice():
    """The second mask adds to the first: of 1, 3 only 3 stays."""
    after = tokens("t vvvv t", values=range(4)).reduced(Reduction(torch.tensor([1, 3]), drop=False))
    after = after.reduced(Reduction(torch.tensor([1]), drop=False))
    assert after.masked.tolist() == [False, True, True, True, False, False] and after.visual.tolist() == [4]


def test_masked_then_dropped():
    """Masked rows are no visual tokens any more: a later drop leaves them, masked, where they are."""
    after = tokens("t vvvv t", values=range(4)).reduced(Reduction(torch.tensor([1, 3]), drop=False))
    after = after.reduced(Reduction(torch.tensor([1])))
    assert rows(after) == [100, 0, 2, 3, 101] and after.visual.tolist() == [3]
    assert after.masked.tolist() == [False, True, True, False, False]


def test_masked_and_renumbered():
    """The tokens that count get the ids that they would get had the others been dropped."""
    r = Reduction(torch.tensor([1, 3]), drop=False)
    masked = tokens("tt vvvv t", values=range(4)).reduced(r, "renumber")
    dropped = tokens("tt vvvv t", values=range(4)).reduced(replace(r, drop=True), "renumber")
    assert masked.position[~masked.masked].equal(dropped.position)
    assert masked.next_position == dropped.next_position == 5


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_the_views_are_forgotten(drop, positions):
    """No stale matrix can be read: the views are gone, the prompt and the layer stay."""
    before = tokens("tvvt", [[0., .5, .4, .1]], layer=3)
    before = replace(before, prompt=before, here=before.before)
    after = before.reduced(Reduction(torch.tensor([1]), drop=drop), positions)
    for view in (after.before, after.here):
        with pytest.raises(UserError, match="nothing to look at here, since a reduction has changed the sequence"):
            view.attention("last")
    assert after.prompt is before.prompt and after.layer == 3


# --- views ------------------------------------------------------------------------------------------------------------

def test_nothing_to_look_at_before_layer_0():
    entering = tokens("t vv t")
    with pytest.raises(UserError, match="nothing to look at here, since no layer has run yet"):
        entering.before.mean_attention("last")


def test_a_view_by_hand():
    """Two heads with the last rows .2 .6 .2 and .4 .2 .4: their mean is .3 .4 .3. The last row, by name or by index."""
    entering = tokens("tvv", [[[.2, .6, .2]], [[.4, .2, .4]]])
    for rows in ("last", torch.tensor([2])):
        close(entering.before.mean_attention(rows), [[.3, .4, .3]])
    assert entering.before.attention("last").shape == (2, 1, 3)
    with pytest.raises(UserError, match="this view was made without query: give it to LayerView.of"):
        entering.before.query("last")


def test_attention_of_queries_and_keys_by_hand():
    """Dh = 1: logits of the last row 0, ln 2, 0: weights 1/4, 1/2, 1/4; the first row sees itself only. Two heads share
    one key."""
    key = torch.tensor([0., 2., 0.]).log1p().clamp(max=.6931472).view(1, 3, 1)
    entering = tokens("tvv", before=dict(query=torch.ones(2, 3, 1), key=key))
    weights = entering.before.attention("all")
    assert weights.shape == (2, 3, 3)
    close(weights[:, 2], [[.25, .5, .25]] * 2, atol=1e-6)
    close(weights[:, 0], [[1., 0, 0]] * 2, atol=1e-6)
    close(torch.stack(list(entering.before.each_head("all"))), weights, atol=1e-6)
    close(entering.before.mean_logits("all"), entering.before.logits("all").mean(dim=0), atol=1e-6)


def test_shapes_are_shown():
    entering = tokens("t vvv t")
    assert repr(entering) == "Tokens(layer 2, hidden (5, 1), 3 visual of 3)"
    assert repr(Reduction(torch.tensor([0, 2]))) == "Reduction(selects 2: [0, 2])"
    assert repr(Reduction(torch.tensor([0]), torch.ones(1, 3))) == "Reduction(merges 3 into 1: [0])"


# --- what a method may say --------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Says(Pruner):
    """Returns what it is given."""

    answer: object = None
    laws = frozenset({"convex"})

    def __post_init__(self):
        pass

    def reduce(self, tokens):
        return self.answer


@pytest.mark.parametrize("answer, message", [
    ([0, 1], r"reduce returned a list, and must return a Reduction\(keep=indices\)"),
    (None, "reduce returned a NoneType"),
    (Reduction([0, 1]), "reduce returned a Reduction, and must"),
    (Reduction(torch.tensor([True, False, True])), "must be indices .* of a mask take mask.nonzero"),
    (Reduction(torch.tensor([[0]])), r"keep is \(1, 1\)"),
    (Reduction(torch.tensor([1, 3])), "keep holds 1 to 3 with 3 visual tokens: it counts among the visual tokens"),
    (Reduction(torch.tensor([-1, 0])), "keep holds -1 to 0"),
    (Reduction(torch.tensor([2, 0])), "keep must rise, each index once"),
    (Reduction(torch.tensor([1, 1])), "keep must rise, each index once"),
    (Reduction(torch.tensor([0]), torch.ones(1, 2)), r"merge is \(1, 2\), and must be \(k, n\) = \(1, 3\)"),
    (Reduction(torch.tensor([0]), torch.tensor([[.5, .2, .1]])), "do not sum to 1, and the law convex is declared"),
    (Reduction(torch.tensor([0]), torch.tensor([[1.5, -.5, 0]])), "are negative or do not sum")])
def test_what_cannot_be_applied(answer, message):
    """One line that names the method, what was expected and the remedy."""
    with pytest.raises(UserError, match=f"^Says: .*{message}"):
        checked(Says(answer), tokens("t vvv t"))


def test_what_can_be_applied():
    merge = torch.tensor([[.5, .5, 0], [0, 0, 1]])
    for answer in (
        Reduction(torch.tensor([0, 2])),
        Reduction(torch.tensor([2, 0]), merge),
        Reduction(torch.empty(0, dtype=torch.long)),
    ):
        assert checked(Says(answer), tokens("t vvv t")) is answer


# --- the rows that a method may ask for -------------------------------------------------------------------------------

def test_query_rows():
    """t v v t v t t: "text" is what stands after the first image, the text between two images too."""
    entering = tokens("t vv t v tt")
    assert {which: entering.rows(which).tolist() for which in ("last", "text", "visual", "all")} == {
        "last": [6], "text": [3, 5, 6], "visual": [1, 2, 4], "all": [0, 1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("keep", [[1, 2], [2, 1]])
def test_query_rows_of_a_masked_sequence(keep):
    """Masked rows are no query rows; the order of keep does not change which rows are text."""
    after = tokens("t vv t v tt").reduced(Reduction(torch.tensor(keep), drop=False))
    assert after.rows("last").tolist() == [6] and after.rows("text").tolist() == [3, 5, 6]
    assert sorted(after.rows("visual").tolist()) == [2, 4] and after.rows("all").tolist() == [0, 2, 3, 4, 5, 6]


# --- top, tokens_to_keep, Pruner --------------------------------------------------------------------------------------

def test_top():
    """In sequence order; of equals the first; the -inf of a masked score is a score."""
    assert top(torch.tensor([.1, .9, .5, .7]), 2).tolist() == [1, 3]
    assert top(torch.tensor([.5, .5, .7, .5]), 3).tolist() == [0, 1, 2]
    assert top(torch.zeros(600), 3).tolist() == [0, 1, 2]                          # long enough for an unstable sort
    assert top(torch.tensor([-torch.inf, 0., torch.inf]), 2).tolist() == [1, 2]
    assert top(torch.tensor([3., 1., 2.]), 3).tolist() == [0, 1, 2] and top(torch.tensor([1.]), 1).tolist() == [0]


def test_top_of_nan():
    """Not a number is no rank: it is said, not sorted."""
    with pytest.raises(UserError, match="NaN.*float32"):
        top(torch.tensor([.1, torch.nan]), 1)


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_cosines(n):
    """Each pair's, by definition; a row of zeros has none; what was given stays as it was."""
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    x[n // 2:n // 2 + 1] = 0
    before, cosine = x.clone(), cosines(x)
    for i, j in ((i, j) for i in range(n) for j in range(n)):
        expected = 0 if n // 2 in (i, j) else (x[i] @ x[j] / x[i].norm() / x[j].norm()).item()
        assert cosine[i, j].item() == pytest.approx(expected, abs=1e-6)
    assert cosine.shape == (n, n) and x.equal(before) and cosines(x.bfloat16()).dtype == torch.float32


def test_tokens_to_keep():
    """A float is a share, at least one token; an int a number. 576 * 0.1 = 57.6; half to even: 12.5 -> 12, 13.5 ->
    14."""
    assert [tokens_to_keep(.1, 576, r) for r in ("floor", "round", "ceil")] == [57, 58, 58]
    assert tokens_to_keep(.25, 50, "round") == 12 and tokens_to_keep(.25, 54, "round") == 14
    assert tokens_to_keep(.29, 100) == 28                              # 100 * 0.29 is 28.999999999999996 in float64
    assert tokens_to_keep(1e-9, 576) == 1 and tokens_to_keep(.5, 1) == 1
    assert tokens_to_keep(1.0, 7, "ceil") == 7 and tokens_to_keep(1, 7) == 1 and tokens_to_keep(7, 7) == 7


@pytest.mark.parametrize("keep", [0, -1, 8, 0.0, -.5, 1.01, float("nan"), float("inf")])
def test_what_cannot_be_kept(keep):
    """One line that names the value and what is possible."""
    with pytest.raises(UserError, match=f"keep {keep} is out of range.* from 1 to 7"):
        tokens_to_keep(keep, 7)


def test_unknown_rounding():
    with pytest.raises(UserError, match="rounding 'up' is not known: use one of floor, round, ceil"):
        tokens_to_keep(.5, 7, "up")


def test_a_method_acts_at_its_site_alone():
    class Early(Pruner):
        site = "embed"
    method = Early()
    assert [method.at(site) for site in ("vision", "embed", "decoder")] == [None, method, None]
    assert method.reduce_at(32) == method.mask_at(32) == () and method.budget(5) is None
