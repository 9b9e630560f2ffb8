"""Applying a Reduction to a sequence: the only place where tokens are dropped, merged or masked."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from pruning.errors import UserError


def acting(pruner, site):
    """The method that acts at this site; None if none does."""
    return pruner.at(site) if pruner else None


def plan(pruner, layers):
    """The decoder layers before which the method reduces, whose mask it changes, and which it watches. UserError if a
    cut is not there."""
    if not pruner:
        return (), (), ()
    cuts = pruner.reduce_at(layers)
    for l in cuts:
        if not 0 < l < layers:
            raise UserError(f"{type(pruner).__name__} reduces before layer {l}, and this model has {layers} layers: "
                            f"choose a layer above 0 and below {layers}")
    return cuts, pruner.mask_at(layers), pruner.watch_at(layers)


def checked(pruner, tokens):
    """The method's Reduction of these tokens; UserError if it is malformed."""
    r = pruner.reduce(tokens)
    problem = problem_of(r, tokens.n, pruner)
    if problem:
        raise UserError(f"{type(pruner).__name__}: {problem}")
    return r


def problem_of(r, n, pruner):
    """What is wrong with the result `r` of a `reduce`, and the remedy; None if it is right."""
    keep = getattr(r, "keep", None)
    if not isinstance(keep, torch.Tensor):
        return f"reduce returned a {type(r).__name__}, and must return a Reduction(keep=indices)"
    if keep.dtype != torch.long or keep.ndim != 1:
        return (f"keep is {tuple(keep.shape)} of {keep.dtype}, and must be indices (k,) of int64: "
                "of a mask take mask.nonzero().squeeze(1)")
    is_index = (keep >= 0) & (keep < n)                                            # (k,)
    if not is_index.all():
        return (f"keep holds {int(keep.min())} to {int(keep.max())} with {n} visual tokens: it counts among the visual "
                "tokens, from 0, and not in rows of the sequence")
    rises = bool((keep.diff() > 0).all())
    if r.merge is None and pruner.site != "vision" and not rises:
        return "keep must rise, each index once: sort it, as top does"
    if r.merge is None:
        return None
    if r.merge.shape != (len(keep), n):
        return f"merge is {tuple(r.merge.shape)}, and must be (k, n) = {(len(keep), n)}"
    if "convex" in pruner.laws and not is_convex(r.merge):
        return ("merge has rows that are negative or do not sum to 1, and the law convex is declared: "
                "divide each row by its sum")
    return None


def is_convex(merge):
    """Whether no weight (k, n) is negative and each row sums to 1, as exactly as half precision allows."""
    total = merge.float().sum(dim=1)                                               # (k,)
    ones = torch.ones_like(total)
    if (merge < 0).any():
        return False
    return torch.allclose(total, ones, atol=1e-3)


def with_last(r, tokens):
    """The Reduction; if the prompt ends with an image, the same with the image's last token kept, at the end.

    The last token of a prompt predicts the answer, so it must stay. Only for the decoder site: before the decoder runs,
    whichever kept token is last predicts the answer.
    """
    last = tokens.n - 1
    last_row = len(tokens.hidden) - 1
    if tokens.visual[last] < last_row:
        return r
    is_last = r.keep == last                                                       # (k,)
    if is_last.any():
        # it is kept already: move it to the end
        order = is_last.int().argsort(stable=True)                                 # (k,)
        return reordered(r, order)
    last = r.keep.new_tensor([last])
    keep = torch.cat([r.keep, last])                                               # (k+1,)
    merge = r.merge
    if merge is not None:
        one_hot = F.one_hot(last, tokens.n)                                        # (1, n)
        merge = torch.cat([merge, one_hot.to(merge)])                              # (k+1, n)
    return replace(r, keep=keep, merge=merge, reason=None, reasons=())


def reordered(r, order):
    """The Reduction with only the rows `order` (k',), in this order."""
    r = replace(r, keep=r.keep[order])
    if r.merge is not None:
        r = replace(r, merge=r.merge[order])
    if r.reason is not None:
        r = replace(r, reason=r.reason[order])
    return r


def reduced(tokens, r, positions="keep"):
    """The sequence after reduction `r`.

    New visual row i takes the place of visual token keep[i]. The visual rows of one image are in the order of `keep`.
    Text rows are copied. The result has no views: they show the old sequence.
    positions: "keep" the position ids of the remaining tokens, or "renumber" them 0..T'-1.
    """
    after = dropped(tokens, r) if r.drop else masked(tokens, r)
    if positions == "renumber":
        return renumbered(after)
    return after


def order(tokens, keep):
    """Which rows remain, in their new order, and the same as indices into [kept visual rows, text rows]. (T',) twice

    Sort key: text row i gets 2i + 1, a visual row with s text rows before it gets 2s. A stable sort then leaves the
    text in order and puts the visual rows of one image between their neighbours, in the order of `keep`.
    """
    is_text = ~tokens.is_visual()                                                  # (T,)
    text = is_text.nonzero().squeeze(1)                                            # (T-n,)
    text_before = is_text.cumsum(0)[tokens.visual]                                 # (n,)
    index_of_text = torch.arange(len(text), device=keep.device)                    # (T-n,)
    key_of_visual = 2 * text_before[keep]                                          # (k,)
    key_of_text = 2 * index_of_text + 1                                            # (T-n,)
    sort_key = torch.cat([key_of_visual, key_of_text])
    place = sort_key.argsort(stable=True)                                          # (k+T-n,)
    rows = torch.cat([tokens.visual[keep], text])
    return rows[place], place


def dropped(tokens, r):
    """The sequence with only the kept rows, or with merged rows in their places."""
    k = len(r.keep)
    rows, place = order(tokens, r.keep)                                            # (T',) twice
    hidden = tokens.hidden[rows]                                                   # (T', D)
    is_visual = place < k                                                          # the first k are visual
    visual = is_visual.nonzero().squeeze(1)                                        # (k,)  rows in the new sequence
    index = place[visual]                                                          # (k,)  which rows of r these are
    if r.merge is not None and not r.applied:
        merged = weighted_sums(tokens, r.merge)                                    # (k, D)
        hidden[visual] = merged[index].to(hidden.dtype)
    kept = r.keep[index]                                                           # (k,)
    after = tokens.without_views(hidden=hidden, position=tokens.position[rows])
    if tokens.masked is not None:
        after = replace(after, masked=tokens.masked[rows])
    return replace(after, visual=visual, grid=tokens.grid[kept], source=tokens.source[kept])


def weighted_sums(tokens, merge):
    """(k, n) weights -> (k, D), in float32: half precision loses small weights."""
    # read only columns that have weight: 0 * inf would be NaN
    has_weight = merge.any(dim=0)                                                  # (n,)
    read = has_weight.nonzero().squeeze(1)                                         # (m,)
    weights = merge[:, read].float()                                               # (k, m)
    rows = tokens.visual[read]
    return weights @ tokens.hidden[rows].float()


def masked(tokens, r):
    """The whole sequence, in which the keys of all visual tokens except the kept ones are masked."""
    assert r.merge is None, "tokens can only be merged if they are dropped"
    kept = tokens.visual[r.keep]                                                   # (k,)
    is_masked = tokens.is_visual()                                                 # (T,)
    is_masked[kept] = False
    if tokens.masked is not None:
        is_masked |= tokens.masked
    after = tokens.without_views(masked=is_masked)
    return replace(after, visual=kept, grid=tokens.grid[r.keep], source=tokens.source[r.keep])


def renumbered(tokens):
    """The same tokens with position ids 0, 1, ..; masked tokens do not count."""
    counts = torch.ones_like(tokens.position)
    if tokens.masked is not None:
        counts = (~tokens.masked).long()
    position = counts.cumsum(0) - 1
    return replace(tokens, position=position, next_position=int(counts.sum()))
