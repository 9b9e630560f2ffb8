"""The contract: what a method may look at (Tokens), what it gives back (Reduction), where it acts (Pruner).

A reduction of visual tokens is a k x n matrix applied to the n visual tokens somewhere in the pipeline: one-hot rows
select, other rows merge. A method is a pure function from Tokens to that matrix. Applying it, and keeping positions,
masks and caches right, is done here and in the model, by no method.

Letters: T tokens in the sequence now, n visual tokens now, k visual tokens after, N visual tokens at first, D width,
H query heads, Hk key heads, Dh head width, R query rows that a method asked to see.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.fields import first_fault, shown


class UserError(ValueError):
    """A request that cannot be met. Its text is one line that names the thing and the remedy."""

    def __init__(self, message=""):
        super().__init__(one_line(str(message)))


def one_line(text, word=200, line=480):
    """The text with what cannot be printed escaped, and the middle cut out of a long word and of a long line.

    one_line("a\\nb", word=9) -> "a\\\\nb"; one_line("x" * 50, word=9) -> "xx ... xx"
    """
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return _cut(" ".join(_cut(part, word) for part in escaped.split(" ")), line)


def _cut(text, length):
    if len(text) <= length:
        return text
    end = (length - len(" ... ")) // 2
    return f"{text[:end]} ... {text[-end:]}"


@dataclass(frozen=True)
class Tokens:
    """One prompt's sequence as it enters layer `layer` of a site, with what was observed in layer - 1.

    At the vision site the sequence is every tile's CLS row and patch rows, tile after tile, and `attn` has one CLS row
    a tile; tiles do not see each other, so weights across tiles are 0.
    """

    hidden: Tensor                     # (T, D)    residual stream
    position: Tensor                   # (T,)      RoPE position ids; (T, 2) where they are of two dimensions
    visual: Tensor                     # (n,)      rows of `hidden` that are visual tokens (several images: one set)
    cell: Tensor                       # (n, 3)    tile, row, column in the unpruned image; row -1: on no grid (newline, CLS)
    origin: Tensor                     # (n,)      index of each among the N visual tokens of the unpruned prompt
    next: int                          # position id of the first generated token
    prompt: Tensor | None = None       # (T0, D)   what entered layer 0, never reduced
    prompt_visual: Tensor | None = None  # (N,)    rows of `prompt` that are visual tokens
    frequency: Tensor | None = None    # (Dh/2,)   of the rotary embedding: radians that each pair turns a position
    layer: int = 0
    dead: Tensor | None = None         # (T,)      True: still in the sequence, its key masked (Reduction.drop False)
    rows: Tensor | None = None         # (R,)      the query rows of attn and logits
    attn: Tensor | None = None         # (H, R, T) softmax weights of layer - 1; (1, R, T) where asked for across heads
    logits: Tensor | None = None       # (H, R, T) the same before mask and softmax, scaled
    turned_query: Tensor | None = None  # (H, T, Dh)  queries of layer - 1, after RoPE
    turned_key: Tensor | None = None   # (Hk, T, Dh)  keys of layer - 1, after RoPE: query @ key.mT / sqrt(Dh) are its logits
    own_attn: Tensor | None = None     # (H, R, T) softmax weights that this layer would compute on these tokens
    query: Tensor | None = None        # (T, H*Dh)   of this layer, after its norm, before RoPE
    key: Tensor | None = None          # (T, Hk*Dh)  of this layer, after its norm, before RoPE
    raw_key: Tensor | None = None      # (T, Hk*Dh)  this layer's key projection of the stream without the norm
    past_key: Tensor | None = None     # (T, C)      vision site: keys of block - 1
    first_attn: Tensor | None = None   # (H, R, T)   vision site: attn of block 0

    @property
    def n(self):
        """Number of visual tokens now."""
        return len(self.visual)

    @property
    def entered(self):
        """N: visual tokens that entered layer 0: those that are here, and those that are gone, dropped or masked."""
        if self.prompt is None:
            return self.n
        masked = 0 if self.dead is None else int(self.dead.sum())
        return len(self.prompt) - len(self.hidden) + masked + self.n

    def text(self):
        """(m,) rows of the text after the (first) image: those that can see visual tokens."""
        other = ~self._is_visual()
        if self.dead is not None:
            other &= ~self.dead
        rows = other.nonzero().squeeze(1)
        return rows[rows > self.visual.min()] if self.n else rows[:0]

    def query_rows(self, which):
        """(R,) rows named by `which`: "last", "text" (after the image), "visual" or "all"."""
        T = len(self.hidden)
        if which == "last":
            return self.visual.new_tensor([T - 1])
        if which in ("text", "visual"):
            return self.text() if which == "text" else self.visual
        alive = torch.ones(T, dtype=torch.bool, device=self.visual.device) if self.dead is None else ~self.dead
        return alive.nonzero().squeeze(1)

    def reduced(self, r, positions="keep"):
        """The sequence after reduction `r`: the only place where tokens are dropped or merged.

        Row i of the k new visual rows stands where source keep[i] stood; inside one image's span the rows stand in the
        order of `keep`. Text rows are copied. What was observed is gone, so that a stale matrix cannot be read.
        `positions`: "keep" the surviving position ids, or "renumber" them 0..T'-1.
        """
        new = self._dropped(r) if r.drop else self._masked(r)
        return new if positions == "keep" else new._renumbered()

    def _dropped(self, r):
        k = len(r.keep)
        source, order = self.order(r.keep)
        hidden, rows = self.hidden[source], (order < k).nonzero().squeeze(1)
        kept = r.keep[order[rows]]                         # (k,) in the order in which they now stand
        if r.merge is not None:                            # float32: half precision loses small weights
            read = r.merge.any(dim=0).nonzero().squeeze(1)                         # (m,)  what weighs nothing is not
            merged = r.merge[:, read].float() @ self.hidden[self.visual[read]].float()             # (k, D)
            hidden[rows] = merged[order[rows]].to(hidden.dtype)
        return self._forget(hidden=hidden, position=self.position[source], visual=rows, cell=self.cell[kept],
                            origin=self.origin[kept], dead=None if self.dead is None else self.dead[source])

    def order(self, keep):
        """Rows of the present sequence in their new order, and that order over [kept visual rows, other rows]."""
        is_visual = self._is_visual()
        other = (~is_visual).nonzero().squeeze(1)                                  # (T-n,)
        span = (~is_visual).cumsum(0)[self.visual]                                 # (n,) other rows before it
        place = torch.cat([2 * span[keep], 2 * torch.arange(len(other), device=keep.device) + 1])
        order = place.argsort(stable=True)                                         # (k+T-n,)
        return torch.cat([self.visual[keep], other])[order], order

    def _masked(self, r):
        assert r.merge is None, "tokens can only be merged where they are dropped"
        dead = torch.zeros(len(self.hidden), dtype=torch.bool, device=self.visual.device)
        dead[self.visual] = True
        dead[self.visual[r.keep]] = False
        return self._forget(visual=self.visual[r.keep], cell=self.cell[r.keep], origin=self.origin[r.keep],
                            dead=dead if self.dead is None else dead | self.dead)

    def _renumbered(self):
        alive = torch.ones_like(self.position) if self.dead is None else (~self.dead).long()
        return replace(self, position=alive.cumsum(0) - 1, next=int(alive.sum()))

    def _forget(self, **new):
        return replace(self, **new, **dict.fromkeys(OBSERVED))

    def _is_visual(self):
        is_visual = torch.zeros(len(self.hidden), dtype=torch.bool, device=self.visual.device)
        return is_visual.index_fill_(0, self.visual, True)


OBSERVED = ("rows", "attn", "logits", "turned_query", "turned_key", "own_attn", "query", "key", "raw_key", "past_key", "first_attn")


@dataclass(frozen=True)
class Reduction:
    """n visual tokens -> k. Without `merge` it selects; with it, row i is the weighted sum of all n."""

    keep: Tensor                       # (k,)      row i stands in the place (position, cell) of source keep[i]
    merge: Tensor | None = None        # (k, n)    weights
    score: Tensor | None = None        # (n,)      what the method ranked by: for pictures, never for computing
    drop: bool = True                  # False: the tokens stay in the sequence and their keys are masked instead
    rule: Tensor | None = None         # (k,)      which of `rules`, the method's reasons, kept each: for pictures too
    rules: tuple = ()                  # their names


LAWS = {
    "select": "tokens are kept as they are, none twice",
    "convex": "what is merged has weights that are not negative and sum to 1",
    "ordered": "kept tokens stand in sequence order",
    "budget": "exactly `budget(n)` tokens are left",
    "scale": "attention times a positive constant selects the same",
    "needle": "a token that gets nearly all the attention is kept",
}
PER = {
    "prompt": "all visual tokens of a prompt together, whatever images and tiles they are of",
    "image": "the tokens of each image, all its tiles together; commands divide a number, the whole prompt's, among the images, rounded down",
    "tile": "the tokens of each tile, as many of every one; commands divide a number, the whole prompt's, among the tiles, rounded down",
}
PRECONDITIONS = {
    "cls": "a vision tower with a class token",
    "grid": "every patch of the image's grid, none dropped before",
    "text": "text after the image",
    "calibration": "a table fitted to the model",
    "training": "a module trained for the model",
}


class Pruner:
    """A method. Subclasses are frozen dataclasses: their fields are the paper's hyper-parameters.

    Their annotations say what is allowed (fields.py): another value is a UserError. A subclass that checks more in a
    `__post_init__` of its own calls this one first.
    """

    site: ClassVar = "decoder"                    # "vision": before the projector; "embed": before layer 0; "decoder"
    needs: ClassVar = frozenset({"attn"})         # which optional quantities of Tokens it reads
    rows: ClassVar = "last"                       # for which query rows: "last", "text", "visual", "all"; vision: CLS
    across_heads: ClassVar = "each"               # of attn and logits: "each" head's, or over all heads their "mean" or "max"
    laws: ClassVar = frozenset({"select"})        # promises the tests hold it to, of LAWS
    positions: ClassVar = "keep"                  # or "renumber"
    preconditions: ClassVar = frozenset()         # what it asks of model and prompt, of PRECONDITIONS
    per: ClassVar = "prompt"                      # what `keep` counts, of PER; commands call `divided` first
    cls: ClassVar = False                         # vision: the class tokens are visual tokens too, on no grid
    prune_past_kv: ClassVar = False               # drop from the caches of the layers before, too
    rerank: ClassVar = False                      # reduce again, from the whole cache, at each generated token

    def __post_init__(self):
        if wrong := first_fault(self):
            raise UserError(f"{type(self).__name__}: {wrong}")

    def at(self, site):
        """The method that acts at `site`, or None."""
        return self if self.site == site else None

    def reduce_at(self, layers):
        """Decoder layers, of `layers` in all, before which `reduce` is called."""
        return ()

    def mask_at(self, layers):
        """Decoder layers inside whose attention `mask` is called."""
        return ()

    def placed(self, tokens):
        """The prompt with the position ids that the decoder shall give it: those it has."""
        return tokens

    def budget(self, n):
        """Visual tokens left of n, or None where the method does not fix it."""
        return None

    def divided(self, parts):
        """This method on a prompt of which a number in `keep` is the whole budget: each part that it counts gets as many.

        parts: {"tile": (how many, tokens of each), "image": ..}. The number is rounded down: 103 tokens on 5 tiles are 20 of
        each. A share stays a share. Raises UserError where a part would keep nothing, or more than it has.
        """
        count, each = parts.get(self.per, (1, 0))
        keep = getattr(self, "keep", None)
        if count == 1 or not isinstance(keep, int):
            return self
        if not count <= keep <= count * each:
            raise UserError(f"keep {keep} is out of range: {type(self).__name__} divides it among {count} {self.per}s of {each} tokens, "
                            f"so give a share in (0, 1.0] or a number of tokens from {count} to {count * each}")
        return replace(self, keep=keep // count)

    def left(self, n, parts):
        """Visual tokens left of n, all `parts` (as in `divided`) together; None where the method does not fix it."""
        count, each = parts.get(self.per, (1, n))
        k = self.budget(each)
        return None if k is None else count * k

    def assemble(self, cell, mosaic):
        """Vision site, several tiles: which of the tokens left (k, 3) go on to the decoder, and in which order. (k',) indices

        cell: tile, row and column of each; mosaic: how the tiles lie (mosaic.py). Here all do, in the order of the picture.
        """
        return mosaic.order(cell)

    def schedule(self, n, layers):
        """Visual tokens that enter each of `layers` decoder layers, n at first; None where the prompt decides it."""
        cuts, k = self.reduce_at(layers), self.budget(n)
        if self.site == "decoder" and not cuts:
            return [n] * layers
        if k is None or len(cuts) > 1:
            return None
        first = cuts[0] if self.site == "decoder" else 0
        return [n] * first + [k] * (layers - first)

    def with_average(self, average, n, layers):
        """This method with its budget set so that on average at least `average` visual tokens enter a layer, no more than needed.

        Raises UserError where no budget does that.
        """
        if not hasattr(self, "keep"):
            raise UserError(f"{type(self).__name__} has no keep to solve for an average: set its own options")
        return solve(lambda k: replace(self, keep=k), range(1, n + 1), average, n, layers)

    def reduce(self, tokens) -> Reduction:
        """The matrix, from what is observed."""
        raise NotImplementedError

    def mask(self, tokens, query, key, causal) -> Tensor:
        """(.., T, T) additive mask in place of `causal`, given this layer's query (.., H, T, Dh) and key (.., Hk, T, Dh), after RoPE."""
        raise NotImplementedError


ROUNDINGS = {"floor": math.floor, "round": round, "ceil": math.ceil}


def tokens_to_keep(keep, n, rounding="floor"):
    """How many of n tokens `keep` means: a float is a share in (0, 1], an int a number; a share is at least one token.

    `rounding` of share * n in float64: "floor" (576 * 0.1 -> 57), "round" half to even (50 * 0.25 -> 12) or "ceil".
    Raises UserError if keep is not positive, or above what there is.
    """
    if rounding not in ROUNDINGS:
        raise UserError(f"rounding {shown(rounding)} is not known: use one of {', '.join(ROUNDINGS)}")
    share = isinstance(keep, float)
    if not 0 < keep <= (1 if share else n):
        raise UserError(f"keep {keep} is out of range: give a share in (0, 1.0] or a number of tokens from 1 to {n}")
    return min(n, max(1, ROUNDINGS[rounding](keep * n))) if share else keep


def staged(stages, n, layers, rounding="floor"):
    """staged([(2, .5), (3, .25)], 576, 4) -> [576, 576, 288, 144]: tokens entering each layer if before these a keep of n is left."""
    entering = [n] * layers
    for layer, keep in stages:
        entering[layer:] = [min(entering[-1], tokens_to_keep(keep, n, rounding))] * (layers - layer)
    return entering


def solve(method, values, average, n, layers):
    """The first method(value), of values that keep ever more, whose schedule has an average of at least `average`.

    FastV at K=2 of 32 layers, 576 tokens, average 192: keep 167, for (2 * 576 + 30 * 167) / 32 = 192.6.
    """
    mean = lambda value: sum(method(value).schedule(n, layers) or ()) / layers
    least, most = mean(values[0]), mean(values[-1])
    if not most:
        raise UserError(f"{type(method(values[0])).__name__}: the prompt decides how many tokens are left, not a budget")
    if not least - 1 < average <= most:
        raise UserError(f"an average of {average} visual tokens a layer is out of reach for "
                        f"{type(method(values[0])).__name__}: it can be {least:.1f} to {most:.1f}")
    return method(values[bisect_left(values, average, key=mean)])


def top(score, k):
    """top([.1, .9, .5, .7], 2) -> [1, 3]: the k best, in sequence order; of equals, the first. (n,) -> (k,)"""
    if score.isnan().any():
        raise UserError("the attention scores contain NaN: the model overflowed; load it in float32 or bfloat16")
    return score.argsort(descending=True, stable=True)[:k].sort().values


def cosines(x, dtype=torch.float32, parts=8):
    """Cosine of every two rows, at least in that dtype; with a row of zeros it is 0. (n, D) -> (n, n)

    A part of the rows at a time is multiplied with itself and the rows after it; the other half is its mirror image.
    """
    unit = x.detach().to(torch.promote_types(x.dtype, dtype), copy=True)
    F.normalize(unit, dim=1, out=unit)                                             # (n, D)
    n, step = len(unit), max(1, math.ceil(len(unit) / parts))
    found = unit.new_empty(n, n)
    for start in range(0, n, step):
        part, after = slice(start, start + step), slice(start + step, n)
        found[part, start:] = unit[part] @ unit[start:].T
        found[after, part] = found[part, after].T
    return found
