"""The contract by hand: where the rows of a reduced sequence stand, and what they hold.

A token's hidden state is its own number, so that a row tells which token it is. Text is 100 and up.
"""

from dataclasses import fields, replace

import pytest
import torch

from pruning.base import OBSERVED, Pruner, Reduction, Tokens, UserError, cosines, tokens_to_keep, top


def sequence(*parts, dtype=torch.float32):
    """Tokens of text (a number of tokens) and images (lists of values) in turn: sequence(1, [7., 8.], 2)."""
    hidden, visual, text = [], [], 100.
    for part in parts:
        if isinstance(part, int):
            hidden += [text + i for i in range(part)]
            text += part
        else:
            visual += range(len(hidden), len(hidden) + len(part))
            hidden += part
    index = torch.arange(len(visual))
    return Tokens(torch.tensor(hidden, dtype=dtype)[:, None], torch.arange(len(hidden)), torch.tensor(visual, dtype=torch.long),
                  torch.stack([0 * index, index // 2, index % 2], dim=1), index, len(hidden))


def rows(tokens):
    """The values of all rows, in sequence."""
    return tokens.hidden[:, 0].tolist()


# --- selecting -------------------------------------------------------------------------------------------------------

def test_dropped():
    """Text, 4 visual tokens, text; 1 and 3 stay, with their positions (gaps and all), cells and origins."""
    tokens = sequence(2, [0., 1., 2., 3.], 1).reduced(Reduction(torch.tensor([1, 3])))
    assert rows(tokens) == [100, 101, 1, 3, 102]
    assert tokens.position.tolist() == [0, 1, 3, 5, 6] and tokens.next == 7
    assert tokens.visual.tolist() == [2, 3] and tokens.n == 2
    assert tokens.cell.tolist() == [[0, 0, 1], [0, 1, 1]] and tokens.origin.tolist() == [1, 3]
    assert tokens.dead is None


def test_dropped_twice():
    """The second reduction counts among what the first left: of tokens 1, 3, 4 the last two stay."""
    tokens = sequence(1, [0., 1., 2., 3., 4.], 1).reduced(Reduction(torch.tensor([1, 3, 4])))
    tokens = tokens.reduced(Reduction(torch.tensor([1, 2])))
    assert rows(tokens) == [100, 3, 4, 101]
    assert tokens.position.tolist() == [0, 4, 5, 6] and tokens.origin.tolist() == [3, 4] and tokens.next == 7


def test_order_of_keep_inside_a_span():
    """keep = [3, 0, 2] puts the rows in this order; each keeps its own position id, cell and origin."""
    tokens = sequence(1, [0., 1., 2., 3.], 1).reduced(Reduction(torch.tensor([3, 0, 2])))
    assert rows(tokens) == [100, 3, 0, 2, 101]
    assert tokens.position.tolist() == [0, 4, 1, 3, 5] and tokens.origin.tolist() == [3, 0, 2]
    assert tokens.cell.tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]


def test_two_spans():
    """Tokens 0-2 and 3-5 are two images with text between. keep = [5, 1, 3, 0]: each stays in its own image's span, and
    there in the order of keep: 1, 0 | 5, 3."""
    tokens = sequence(1, [0., 1., 2.], 2, [3., 4., 5.], 1).reduced(Reduction(torch.tensor([5, 1, 3, 0])))
    assert rows(tokens) == [100, 1, 0, 101, 102, 5, 3, 103]
    assert tokens.visual.tolist() == [1, 2, 5, 6] and tokens.origin.tolist() == [1, 0, 5, 3]
    assert tokens.position.tolist() == [0, 2, 1, 4, 5, 8, 6, 9]


def test_one_of_two_images_gone():
    """All of the first image dropped: the text before and between joins."""
    tokens = sequence(1, [0., 1.], 2, [2., 3.], 1).reduced(Reduction(torch.tensor([3])))
    assert rows(tokens) == [100, 101, 102, 3, 103] and tokens.visual.tolist() == [3]
    assert tokens.position.tolist() == [0, 3, 4, 6, 7]


def test_nothing_kept():
    """Zero visual tokens are a sequence of text, with the positions it had."""
    tokens = sequence(1, [0., 1.], 2).reduced(Reduction(torch.empty(0, dtype=torch.long)))
    assert rows(tokens) == [100, 101, 102] and tokens.n == 0 and tokens.cell.shape == (0, 3)
    assert tokens.position.tolist() == [0, 3, 4] and tokens.next == 5
    assert tokens.text().tolist() == [] and tokens.query_rows("last").tolist() == [2]


def test_image_at_either_end():
    """No text before, none after."""
    tokens = sequence([0., 1., 2.]).reduced(Reduction(torch.tensor([0, 2])))
    assert rows(tokens) == [0, 2] and tokens.visual.tolist() == [0, 1] and tokens.next == 3


# --- merging -----------------------------------------------------------------------------------------------------------

def test_merged():
    """Values 2, 4, 8. Row one stands at token 2 and is (2 + 4) / 2 = 3; row two at token 0 and is 8 / 4 + 3 * 2 / 4 = 3.5."""
    weights = torch.tensor([[.5, .5, 0], [.75, 0, .25]])
    tokens = sequence(1, [2., 4., 8.], 1).reduced(Reduction(torch.tensor([2, 0]), weights))
    assert rows(tokens) == [100, 3, 3.5, 101]
    assert tokens.position.tolist() == [0, 3, 1, 4] and tokens.origin.tolist() == [2, 0]


def test_what_weighs_nothing_is_not_read():
    """A token without weight may hold infinity: 0 times that would be NaN."""
    weights = torch.tensor([[.5, .5, 0]])
    assert rows(sequence(1, [2., 4., float("inf")], 1).reduced(Reduction(torch.tensor([0]), weights))) == [100, 3, 101]


def test_merged_over_two_spans():
    """Row 0 stands in the second image, row 1 in the first: each weight row lands where its token stands.
    Values 1, 2 | 4, 8: row 0 = 1 + 8 = 9 at token 3, row 1 = 2 + 4 = 6 at token 1."""
    weights = torch.tensor([[1., 0, 0, 1], [0, 1, 1, 0]])
    tokens = sequence([1., 2.], 1, [4., 8.], 1).reduced(Reduction(torch.tensor([3, 1]), weights))
    assert rows(tokens) == [6, 100, 9, 101]


def test_merged_in_float32():
    """2000 sixteen times, with weight .06253 each: 2000.96, so 2001. In half precision the weight would be .0625: 2000."""
    tokens = sequence(1, [2000.] * 16, 1, dtype=torch.float16)
    tokens = tokens.reduced(Reduction(torch.tensor([0]), torch.full((1, 16), .06253)))
    assert tokens.hidden.dtype == torch.float16 and rows(tokens) == [100, 2001, 101]


def test_merging_needs_dropping():
    """What stays in the sequence cannot be merged into another."""
    with pytest.raises(AssertionError, match="merged where they are dropped"):
        sequence(1, [1., 2.]).reduced(Reduction(torch.tensor([0]), torch.ones(1, 2), drop=False))


# --- positions, masks ----------------------------------------------------------------------------------------------------

def test_renumbered():
    """0, 1, .. over what is left, and the first generated token goes on from there."""
    tokens = sequence(2, [0., 1., 2., 3.], 1).reduced(Reduction(torch.tensor([1, 3])), "renumber")
    assert rows(tokens) == [100, 101, 1, 3, 102]
    assert tokens.position.tolist() == [0, 1, 2, 3, 4] and tokens.next == 5


def test_masked():
    """All rows stay; 0 and 2 of the visual tokens are dead, and the visual tokens are the other two."""
    tokens = sequence(1, [0., 1., 2., 3.], 1).reduced(Reduction(torch.tensor([1, 3]), drop=False))
    assert rows(tokens) == [100, 0, 1, 2, 3, 101]
    assert tokens.dead.tolist() == [False, True, False, True, False, False]
    assert tokens.visual.tolist() == [2, 4] and tokens.origin.tolist() == [1, 3] and tokens.next == 6
    assert tokens.position.tolist() == [0, 1, 2, 3, 4, 5]


def test_masked_twice():
    """The second mask adds to the first: of 1, 3 only 3 stays."""
    tokens = sequence(1, [0., 1., 2., 3.], 1).reduced(Reduction(torch.tensor([1, 3]), drop=False))
    tokens = tokens.reduced(Reduction(torch.tensor([1]), drop=False))
    assert tokens.dead.tolist() == [False, True, True, True, False, False] and tokens.visual.tolist() == [4]


def test_masked_then_dropped():
    """Dead rows are no visual tokens any more: a later drop leaves them, dead, where they are."""
    tokens = sequence(1, [0., 1., 2., 3.], 1).reduced(Reduction(torch.tensor([1, 3]), drop=False))
    tokens = tokens.reduced(Reduction(torch.tensor([1])))
    assert rows(tokens) == [100, 0, 2, 3, 101] and tokens.visual.tolist() == [3]
    assert tokens.dead.tolist() == [False, True, True, False, False]


def test_masked_and_renumbered():
    """The tokens that count get the ids that they would get had the others been dropped."""
    r = Reduction(torch.tensor([1, 3]), drop=False)
    masked = sequence(2, [0., 1., 2., 3.], 1).reduced(r, "renumber")
    dropped = sequence(2, [0., 1., 2., 3.], 1).reduced(replace(r, drop=True), "renumber")
    assert masked.position[~masked.dead].equal(dropped.position) and masked.next == dropped.next == 5


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_what_was_observed_is_forgotten(drop, positions):
    """Every optional quantity but the prompt's and `dead` is gone, so that a stale matrix cannot be read."""
    optional = {f.name for f in fields(Tokens) if f.default is None} - {"prompt", "prompt_visual", "frequency", "dead"}
    assert set(OBSERVED) == optional
    tokens = replace(sequence(1, [0., 1.], 1), prompt=torch.ones(4, 1), layer=3, **dict.fromkeys(optional, torch.ones(1)))
    tokens = tokens.reduced(Reduction(torch.tensor([1]), drop=drop), positions)
    assert all(getattr(tokens, name) is None for name in optional)
    assert tokens.prompt is not None and tokens.layer == 3


# --- the rows that a method may ask for ------------------------------------------------------------------------------------

def test_query_rows():
    """t v v t v t t: "text" is what stands after the first image, the text between two images too."""
    tokens = sequence(1, [0., 1.], 1, [2.], 2)
    assert {which: tokens.query_rows(which).tolist() for which in ("last", "text", "visual", "all")} == {
        "last": [6], "text": [3, 5, 6], "visual": [1, 2, 4], "all": [0, 1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("keep", [[1, 2], [2, 1]])
def test_query_rows_of_a_masked_sequence(keep):
    """Dead rows ask nothing; what is text does not hang on the order of keep."""
    tokens = sequence(1, [0., 1.], 1, [2.], 2).reduced(Reduction(torch.tensor(keep), drop=False))
    assert tokens.query_rows("last").tolist() == [6] and tokens.query_rows("text").tolist() == [3, 5, 6]
    assert sorted(tokens.query_rows("visual").tolist()) == [2, 4] and tokens.query_rows("all").tolist() == [0, 2, 3, 4, 5, 6]


# --- top, tokens_to_keep, Pruner -------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 9, 16])
def test_cosines(n, parts):
    """In however many parts: each pair's, by definition; a row of zeros has none; what was given stays as it was."""
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    x[n // 2:n // 2 + 1] = 0
    before, found = x.clone(), cosines(x, parts=parts)
    for i, j in ((i, j) for i in range(n) for j in range(n)):
        expected = 0 if n // 2 in (i, j) else (x[i] @ x[j] / x[i].norm() / x[j].norm()).item()
        assert found[i, j].item() == pytest.approx(expected, abs=1e-6)
    assert found.shape == (n, n) and x.equal(before)
    assert [cosines(x.to(dtype)).dtype for dtype in (torch.bfloat16, torch.float64)] == [torch.float32, torch.float64]


def test_tokens_to_keep():
    """A float is a share, at least one token; an int a number. 576 * 0.1 = 57.6; half to even: 12.5 -> 12, 13.5 -> 14."""
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
