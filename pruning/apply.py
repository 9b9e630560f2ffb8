"""Applying a Reduction to a sequence: the only place where tokens are dropped, merged or masked."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from pruning.errors import UserError


def plan(pruner, layers):
    """The decoder layers before which, and in which, the method acts; UserError if the model has no such layer."""
    if not pruner:
        return (), ()
    cuts = pruner.reduce_at(layers)
    masks = pruner.mask_at(layers)
    for l in cuts:
        if not 0 < l < layers:
            raise UserError(f"{type(pruner).__name__} reduces before layer {l}, and this model has {layers} layers: "
                            f"choose a layer above 0 and below {layers}")
    return cuts, masks


def checked(pruner, tokens):
    """The method's Reduction of these tokens. UserError, naming the method, if it cannot be applied."""
    r = pruner.reduce(tokens)
    problem = problem_of(r, tokens.n, pruner)
    if problem:
        raise UserError(f"{type(pruner).__name__}: {problem}")
    return r


def problem_of(r, n, pruner):
    """What is wrong with the result of a `reduce`, with the remedy; None if nothing is."""
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
    """Whether no weight (k, n) is negative and each row sums to 1, as far as half precision holds it."""
    total = merge.float().sum(dim=1)                                               # (k,)
    ones = torch.ones_like(total)
    if (merge < 0).any():
        return False
    return torch.allclose(total, ones, atol=1e-3)


def with_last(r, tokens):
    """The reduction; of a prompt that ends with an image it always keeps the last token too, at the end.

    That token predicts the next one: without it the logits would be those of a token before it. Methods that act before
    the decoder need no such care: what they keep is the image that the decoder reads, and its last token predicts.
    """
    last = tokens.n - 1
    last_row = len(tokens.hidden) - 1
    if tokens.visual[last] < last_row:
        return r
    is_last = r.keep == last                                                       # (k,)
    if is_last.any():
        # what takes its place goes to the end
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
    """The Reduction with these of its rows (k',), in this order."""
    r = replace(r, keep=r.keep[order])
    if r.merge is not None:
        r = replace(r, merge=r.merge[order])
    if r.reason is not None:
        r = replace(r, reason=r.reason[order])
    return r


def reduced(tokens, r, positions="keep"):
    """The sequence after reduction `r`.

    Row i of the k new visual rows takes the place of source keep[i]. Inside one image's span the rows are in the order
    of `keep`. Text rows are copied. The views are gone, so that no stale matrix can be read.
    positions: "keep" the surviving position ids, or "renumber" them 0..T'-1.
    """
    after = dropped(tokens, r) if r.drop else masked(tokens, r)
    if positions == "renumber":
        return renumbered(after)
    return after


def order(tokens, keep):
    """Rows of the present sequence in their new order, and that order over [kept visual rows, text rows]. (T',) twice

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
    """The sequence with the kept rows only, or with merged ones in their places."""
    k = len(r.keep)
    rows, place = order(tokens, r.keep)                                            # (T',) twice
    hidden = tokens.hidden[rows]                                                   # (T', D)
    is_visual = place < k
    visual = is_visual.nonzero().squeeze(1)                                        # (k,)  rows in the new sequence
    index = place[visual]                                                          # (k,)  which rows of r these are
    if r.merge is not None:
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
    """The whole sequence, with the keys masked of all visual tokens but the kept ones."""
    assert r.merge is None, "tokens can only be merged if they are dropped"
    kept = tokens.visual[r.keep]                                                   # (k,)
    is_masked = tokens.is_visual()                                                 # (T,)
    is_masked[kept] = False
    if tokens.masked is not None:
        is_masked |= tokens.masked
    after = tokens.without_views(masked=is_masked)
    return replace(after, visual=kept, grid=tokens.grid[r.keep], source=tokens.source[r.keep])


def renumbered(tokens):
    """The same with position ids 0, 1, .., in which masked tokens do not count."""
    counts = torch.ones_like(tokens.position)
    if tokens.masked is not None:
        counts = (~tokens.masked).long()
    position = counts.cumsum(0) - 1
    return replace(tokens, position=position, next_position=int(counts.sum()))
