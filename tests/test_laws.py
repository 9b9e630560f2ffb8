"""What every method of the registry promises in its `laws`, and what all of them owe, on random tokens of its site.

A method gets those observations alone that it names in `needs`, as the model would give them. It is built from its
defaults; where it has a `keep`, that is drawn: a share, a number, or what is its default where that is neither.
"""

from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
import torch
from hypothesis import assume, given, strategies as st

from minivlm.attention import frequency
from pruning import METHODS
from pruning.base import LAWS, OBSERVED, Reduction, Tokens
from tiny import REDUCING, SETTINGS, built, one_thread, refusal  # noqa: F401

LAYERS, H, HK, DH = 32, 4, 2, 4                # a decoder as deep as the real one; heads, key heads, their width
COLUMNS = {1: 1, 2: 2, 3: 1, 4: 2, 7: 7, 9: 3, 12: 4, 40: 8}           # of an image with so many tokens
# Of an image of tiles with so many tokens the base tile's side and the map's rows and columns; each row ends with a newline.
TILED = {5: (2, 1, 0), 6: (1, 1, 4), 10: (2, 2, 2), 13: (1, 3, 3), 22: (2, 6, 2), 33: (3, 3, 7)}
EQUAL = {8: (2, 2), 20: (5, 2), 27: (3, 3)}            # InternVL: so many tiles, the thumbnail among them, and the side of each
KINDS, DTYPES = ("even", "ties", "flat", "sharp"), (torch.float32, torch.float16, torch.bfloat16)

every_method = pytest.mark.parametrize("name", REDUCING)


def keeping(law):
    """All methods that promise `law`, by default or with a `keep`."""
    return pytest.mark.parametrize("name", [n for n in REDUCING if law in METHODS[n]().laws | built(n).laws])


# --- random tokens -------------------------------------------------------------------------------------------------------

@dataclass
class Case:
    """What hypothesis draws, and shrinks: sizes, a seed, words. `made` has the tensors."""

    seed: int
    kind: str
    dtype: torch.dtype
    sizes: list                        # text, image, text, .., text; at the vision site: tiles, side, class tokens skipped
    keep: float | int | None
    layer: int                         # which of the method's layers
    left: int | None                   # so many visual tokens are left by a reduction before an earlier layer
    needle: int | None                 # a visual token that gets nearly all attention


@st.composite
def cases(draw, name, law=None):
    """A Case for a method that promises `law`."""
    vision, needle = METHODS[name].site == "vision", law == "needle"
    sizes = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 1)) if vision else prompts(needle, bool(refusal(name))))
    most = sizes[1] ** 2 if vision else sum(sizes[1::2])
    default = next((f.default for f in fields(METHODS[name]) if f.name == "keep"), None)
    keep = draw(st.sampled_from([1.0, .5, 1 / 3, .01] + [default] * (default is None)) | st.integers(1, most))
    assume(law is None or law in built(name, keep).laws)
    return Case(draw(st.integers(0, 999)), draw(st.sampled_from(KINDS)), draw(st.sampled_from(DTYPES)), sizes, keep,
                draw(st.integers(0, 9)), draw(st.none() | st.integers(1, most)), draw(st.integers(0, 99)) if needle else None)


@st.composite
def prompts(draw, needle, joined):
    """Sizes of one to three images, and of the text around them; without text between them where they are to be joined.

    A needle is seen by all text after the first image, and what comes before it has something else to look at.
    """
    images = draw(st.lists(st.sampled_from([*COLUMNS, *TILED, *EQUAL]), min_size=1, max_size=3))
    between = [draw(st.integers(0, 0 if needle or joined else 2)) for _ in images[1:]]
    texts = [draw(st.integers(int(needle), 3)), *between, draw(st.integers(1, 4))]
    return sum(([text, image] for text, image in zip(texts, images)), []) + texts[-1:]


def made(name, case):
    """The method and the Tokens of a case."""
    pruner, noise = built(name, case.keep), Noise(case.seed, case.kind)
    tokens = (tiles if pruner.site == "vision" else prompt)(noise, *case.sizes)
    if pruner.site == "decoder":
        cuts = pruner.reduce_at(LAYERS) or pruner.mask_at(LAYERS)
        layer = cuts[case.layer % len(cuts)]
        tokens = replace(tokens, prompt=tokens.hidden.to(case.dtype), prompt_visual=tokens.visual, frequency=frequency(DH, 10000.),
                         layer=layer)
        if layer != cuts[0] and case.left:
            order = torch.rand(tokens.n, generator=noise.generator).argsort()
            tokens = tokens.reduced(Reduction(order[:case.left].sort().values), pruner.positions)
    aim = None if case.needle is None else case.needle % tokens.n
    return pruner, observed(replace(tokens, hidden=tokens.hidden.to(case.dtype)), pruner, noise, aim), aim


class Noise:
    """Random tensors of one kind from one seed."""

    def __init__(self, seed, kind):
        self.generator, self.kind = torch.Generator().manual_seed(seed), kind

    def rows(self, *shape):
        """Hidden states, queries or keys: all different, copies of three, or all the same."""
        x = torch.randn(shape, generator=self.generator)
        different = {"ties": min(3, shape[0]), "flat": 1}.get(self.kind)
        return x if different is None else x[torch.randint(different, shape[:1], generator=self.generator)]

    def logits(self, *shape):
        """Of attention; within limits in which the product of two weights is no denormal."""
        x = torch.randn(shape, generator=self.generator)
        return {"even": x, "ties": x.round(), "flat": 0 * x, "sharp": (30 * x).clamp(-12, 12)}[self.kind]


def prompt(noise, *sizes):
    """Text and images in turn, as they enter the decoder."""
    is_visual = torch.repeat_interleave(torch.arange(len(sizes)) % 2 == 1, torch.tensor(sizes))                # (T,)
    cell = torch.cat([cells(n) + torch.tensor([8 * i, 0, 0]) for i, n in enumerate(sizes[1::2])])
    T = len(is_visual)
    return Tokens(noise.rows(T, H * DH), torch.arange(T), is_visual.nonzero().squeeze(1), cell, torch.arange(len(cell)), T)


def cells(n):
    """(n, 3) of an image with n tokens: one grid, several of one size, or a base tile and a map."""
    if n in COLUMNS:
        return grid(0, n // COLUMNS[n], COLUMNS[n])
    if n in EQUAL:
        return torch.cat([grid(tile, EQUAL[n][1], EQUAL[n][1]) for tile in range(EQUAL[n][0])])
    side, rows, columns = TILED[n]
    lines = [part for row in grid(1, rows, columns).view(rows, columns, 3) for part in (row, torch.tensor([[1, -1, -1]]))]
    return torch.cat([grid(0, side, side), *lines])


def grid(tile, rows, columns):
    """(rows * columns, 3)"""
    return torch.cartesian_prod(torch.tensor([tile]), torch.arange(rows), torch.arange(columns))


def tiles(noise, count, side, skip):
    """An image of so many tiles of side x side patches, as the vision tower gives it; skip=0: class tokens are visual too."""
    index = torch.arange(count * (1 + side * side)).view(count, -1)                                            # (tiles, 1+P)
    patch = torch.arange(side * side)
    cell = torch.full((*index.shape, 3), -1)
    cell[:, :, 0], cell[:, 1:, 1], cell[:, 1:, 2] = torch.arange(count)[:, None], patch // side, patch % side
    visual = index[:, skip:].flatten()
    return Tokens(noise.rows(index.numel(), H * DH), index.flatten(), visual, cell[:, skip:].flatten(0, 1),
                  torch.arange(len(visual)), 0, layer=23, rows=index[:, 0])


def observed(tokens, pruner, noise, needle):
    """The tokens with what `pruner` needs. The visual token `needle` gets nearly all the attention of those that see it."""
    T, needs, seen = len(tokens.hidden), pruner.needs, {}
    rows = tokens.rows if pruner.site == "vision" else tokens.query_rows(pruner.rows)
    column, first = torch.arange(T), torch.zeros_like(rows)
    may = column <= rows[:, None]                                                                              # (R, T)
    if pruner.site == "vision":                                    # a class token sees its own tile
        may, first = column * len(rows) // T == rows[:, None] * len(rows) // T, rows
    for name in sorted(needs & {"attn", "own_attn", "first_attn"}):
        logits = noise.logits(H, len(rows), T)
        seen[name] = logits.masked_fill(~may, -torch.inf).softmax(dim=-1)
        if needle is not None:                                     # who cannot see it looks at the first token there is
            aim = torch.where(may[:, tokens.visual[needle]], tokens.visual[needle], first)                     # (R,)
            seen[name] = .01 * seen[name] + .99 * torch.eye(T)[aim]
            logits = seen[name].clamp(min=1e-9).log()
        if name == "attn" and "logits" in needs:
            seen["logits"] = logits.to(tokens.hidden.dtype)
    for name in sorted(needs & {"query", "key", "raw_key", "past_key"}):
        heads = HK if name in ("key", "raw_key") and pruner.site != "vision" else H
        x = noise.rows(T, heads * DH)
        if needle is not None and name in ("query", "key"):        # of all products with a query, its own is the largest
            x[:, 0] = 10. if name == "query" else 0.
            x[tokens.visual[needle], 0] = 10.
        seen[name] = x.to(tokens.hidden.dtype)
    for name in sorted(needs & {"turned_query", "turned_key"}):
        seen[name] = turned(noise, name, T).to(tokens.hidden.dtype)
    assert needs <= {*seen, "prompt"}, "an observation that these tests do not know how to make"
    return replace(tokens, rows=rows if seen else None, **seen)


def turned(noise, name, T):
    """Queries (H, T, DH) or keys (HK, T, DH) after the rotary embedding."""
    return noise.rows(T, (H if name == "turned_query" else HK) * DH).unflatten(1, (-1, DH)).transpose(0, 1)


# --- what all of them owe ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", METHODS)
def test_declaration(name):
    """A frozen dataclass with defaults that asks for what there is, at a site that there is, and says what it does."""
    method, pruner = METHODS[name], METHODS[name]()
    assert is_dataclass(method) and method.__dataclass_params__.frozen and method.__doc__ and pruner == METHODS[name]()
    assert method.site in ("vision", "embed", "decoder") and pruner.rows in ("last", "text", "visual", "all")
    assert pruner.needs <= {*OBSERVED, "prompt"} - {"rows"} and pruner.laws <= set(LAWS)
    assert pruner.positions in ("keep", "renumber")
    assert all(0 < l < LAYERS for l in pruner.reduce_at(LAYERS)) and all(0 <= l < LAYERS for l in pruner.mask_at(LAYERS))


@every_method
@SETTINGS
@given(st.data())
def test_a_pure_function(name, data):
    """The tokens stay as they are, and are given the same answer twice, whatever is drawn at random elsewhere."""
    pruner, tokens, _ = made(name, data.draw(cases(name)))
    before, options = snapshot(tokens), replace(pruner)
    torch.manual_seed(0)
    first = pruner.reduce(tokens)
    torch.manual_seed(1)
    assert equal(snapshot(first), snapshot(pruner.reduce(tokens)))
    assert equal(before, snapshot(tokens)) and pruner == options


@every_method
@SETTINGS
@given(st.data())
def test_a_matrix_over_the_visual_tokens(name, data):
    """At most n rows, each in the place of another visual token; weights and scores are numbers."""
    pruner, tokens, _ = made(name, data.draw(cases(name)))
    r = pruner.reduce(tokens)
    assert r.keep.dtype == torch.long and r.keep.ndim == 1 and len(r.keep) <= tokens.n
    assert set(r.keep.tolist()) <= set(range(tokens.n)) and len(set(r.keep.tolist())) == len(r.keep)
    assert r.merge is None or r.merge.shape == (len(r.keep), tokens.n) and r.merge.isfinite().all()
    assert r.score is None or r.score.shape == (tokens.n,) and not r.score.isnan().any()


@every_method
@SETTINGS
@given(st.data())
def test_the_sequence_after_it(name, data):
    """All text in its order, k visual rows with numbers in them; what is selected is unchanged."""
    pruner, tokens, _ = made(name, data.draw(cases(name)))
    r = pruner.reduce(tokens)
    after = tokens.reduced(r, pruner.positions)
    is_text, was_text = (torch.ones(len(t.hidden), dtype=torch.bool).index_fill(0, t.visual, False) for t in (after, tokens))
    if r.drop:
        assert after.n == len(r.keep) and after.hidden[is_text].equal(tokens.hidden[was_text])
        assert sorted(after.origin.tolist()) == sorted(tokens.origin[r.keep].tolist())
    assert after.hidden.isfinite().all()
    if r.merge is None:
        place = dict(zip(tokens.origin.tolist(), tokens.visual.tolist()))
        assert after.hidden[after.visual].equal(tokens.hidden[[place[i] for i in after.origin.tolist()]])


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n]().mask_at(LAYERS)])
@SETTINGS
@given(st.data())
def test_a_mask(name, data):
    """Additive, for all heads; no row is left with nothing to look at; the tokens, queries and keys stay as they are."""
    pruner, tokens, _ = made(name, data.draw(cases(name)))
    T, noise = len(tokens.hidden), Noise(data.draw(st.integers(0, 99)), "even")
    query, key = (turned(noise, name, T) for name in ("turned_query", "turned_key"))
    causal = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    tokens = replace(tokens, layer=pruner.mask_at(LAYERS)[0], **dict.fromkeys(OBSERVED))
    before = snapshot(tokens), query.clone(), key.clone(), causal.clone()
    mask = pruner.mask(tokens, query, key, causal)
    assert (torch.zeros(H, T, T) + mask).shape == (H, T, T) and not mask.isnan().any() and (mask < torch.inf).all()
    assert (mask > -torch.inf).any(dim=-1).all()
    assert equal(before[0], snapshot(tokens)) and all(map(torch.equal, (query, key, causal), before[1:]))


def snapshot(x):
    """The fields of a dataclass, tensors copied."""
    return {f.name: v.clone() if torch.is_tensor(v := getattr(x, f.name)) else v for f in fields(x)}


def equal(a, b):
    """Whether two snapshots are the same to the bit."""
    return all(torch.equal(v, b[k]) if torch.is_tensor(v) else v == b[k] for k, v in a.items())


# --- what they promise --------------------------------------------------------------------------------------------------------

@keeping("select")
@SETTINGS
@given(st.data())
def test_select(name, data):
    pruner, tokens, _ = made(name, data.draw(cases(name, "select")))
    assert pruner.reduce(tokens).merge is None             # that none is kept twice is asked of all


@keeping("ordered")
@SETTINGS
@given(st.data())
def test_ordered(name, data):
    pruner, tokens, _ = made(name, data.draw(cases(name, "ordered")))
    assert (pruner.reduce(tokens).keep.diff() > 0).all()


@keeping("budget")
@SETTINGS
@given(st.data())
def test_budget(name, data):
    """At the vision site a budget may be each tile's."""
    pruner, tokens, _ = made(name, data.draw(cases(name, "budget")))
    count = int(tokens.cell[:, 0].max()) + 1 if pruner.site == "vision" else 1
    assert len(pruner.reduce(tokens).keep) in {pruner.budget(tokens.n), count * pruner.budget(tokens.n // count)}


@keeping("convex")
@SETTINGS
@given(st.data())
def test_convex(name, data):
    pruner, tokens, _ = made(name, data.draw(cases(name, "convex")))
    merge = pruner.reduce(tokens).merge
    if merge is not None:                                  # nothing to merge: a selection
        assert (merge >= 0).all()
        torch.testing.assert_close(merge.sum(dim=1), torch.ones(len(merge)), atol=1e-5, rtol=0, check_dtype=False)


@keeping("scale")
@SETTINGS
@given(st.data(), st.sampled_from([2., 1024.]))
def test_scale(name, data, factor):
    """By a power of two, so that no weight is rounded."""
    pruner, tokens, _ = made(name, data.draw(cases(name, "scale")))
    scaled = {k: getattr(tokens, k) * factor for k in ("attn", "own_attn", "first_attn") if getattr(tokens, k) is not None}
    assert pruner.reduce(tokens).keep.equal(pruner.reduce(replace(tokens, **scaled)).keep)


@keeping("needle")
@SETTINGS
@given(st.data())
def test_needle(name, data):
    pruner, tokens, needle = made(name, data.draw(cases(name, "needle")))
    assert needle in pruner.reduce(tokens).keep.tolist()
