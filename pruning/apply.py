"""Applying a Reduction to a sequence: the only place where tokens are dropped, merged or masked, and where a result is checked."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from pruning.errors import UserError


def checked(pruner, tokens):
    """What the method says of these tokens. UserError, naming the method, if it cannot be applied or breaks its word."""
    r = pruner.reduce(tokens)
    problem = _problem(r, tokens.n, pruner)
    if problem:
        raise UserError(f"{type(pruner).__name__}: {problem}")
    return r


def _problem(r, n, pruner):
    """What is wrong with the result of a `reduce`, with the remedy; None if nothing is."""
    keep = getattr(r, "keep", None)
    if not isinstance(keep, torch.Tensor):
        return f"reduce returned a {type(r).__name__}, and must return a Reduction(keep=indices)"
    if keep.dtype != torch.long or keep.ndim != 1:
        return (f"keep is {tuple(keep.shape)} of {keep.dtype}, and must be indices (k,) of int64: "
                "of a mask take mask.nonzero().squeeze(1)")
    if len(keep) and not 0 <= keep.min() <= keep.max() < n:
        return (f"keep holds {int(keep.min())} to {int(keep.max())} with {n} visual tokens: it counts among the visual tokens, "
                "from 0, and not in rows of the sequence")
    if r.merge is None and pruner.site != "vision" and (keep.diff() <= 0).any():
        return "keep must rise, each index once: sort it, as top does"
    if r.merge is not None and r.merge.shape != (len(keep), n):
        return f"merge is {tuple(r.merge.shape)}, and must be (k, n) = {(len(keep), n)}"
    if r.merge is not None and "convex" in pruner.laws:
        total = r.merge.float().sum(dim=1)                                         # (k,)
        if (r.merge < 0).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-3):
            return "merge has rows that are negative or do not sum to 1, and the law convex is declared: divide each row by its sum"
    return None


def with_last(r, tokens):
    """The reduction; of a prompt that ends with an image it always keeps the last token, at the end, besides what it keeps anyway.

    That token predicts the next one: without it the logits would be those of a token before it. Methods that act before the
    decoder need no such care: what they leave is the image that the decoder reads, and its last token predicts.
    """
    last = tokens.n - 1
    if tokens.visual[last] < len(tokens.hidden) - 1:
        return r
    is_last = r.keep == last                                                       # (k,)
    if is_last.any():
        # what is in its place goes to the end
        order = torch.cat([(~is_last).nonzero().squeeze(1), is_last.nonzero().squeeze(1)])
        keep, merge, reason = (x if x is None else x[order] for x in (r.keep, r.merge, r.reason))
        return replace(r, keep=keep, merge=merge, reason=reason)
    keep = torch.cat([r.keep, r.keep.new_tensor([last])])
    merge = r.merge
    if merge is not None:
        one_hot = F.one_hot(keep[-1:], tokens.n).to(merge)                         # (1, n)
        merge = torch.cat([merge, one_hot])
    return replace(r, keep=keep, merge=merge, reason=None, reasons=())


def reduced(tokens, r, positions="keep"):
    """The sequence after reduction `r`.

    Row i of the k new visual rows takes the place of source keep[i]; inside one image's span the rows are in the order of
    `keep`. Text rows are copied. The views are gone, so that no stale matrix can be read.
    positions: "keep" the surviving position ids, or "renumber" them 0..T'-1.
    """
    after = _dropped(tokens, r) if r.drop else _masked(tokens, r)
    return after if positions == "keep" else _renumbered(after)


def order(tokens, keep):
    """Rows of the present sequence in their new order, and that order over [kept visual rows, text rows]. (T',) twice

    Sort key: text row i gets 2i + 1, a visual row with s text rows before it gets 2s. A stable sort then leaves the text in
    order and puts the visual rows of one image between their neighbours, in the order of `keep`.
    """
    is_text = ~tokens.is_visual()                                                  # (T,)
    text = is_text.nonzero().squeeze(1)                                            # (T-n,)
    text_before = is_text.cumsum(0)[tokens.visual]                                 # (n,)
    sort_key = torch.cat([2 * text_before[keep], 2 * torch.arange(len(text), device=keep.device) + 1])
    place = sort_key.argsort(stable=True)                                          # (k+T-n,)
    return torch.cat([tokens.visual[keep], text])[place], place


def _dropped(tokens, r):
    k = len(r.keep)
    rows, place = order(tokens, r.keep)                                            # (T',) twice
    hidden = tokens.hidden[rows]                                                   # (T', D)
    visual = (place < k).nonzero().squeeze(1)                                      # (k,)  their rows in the new sequence
    kept = r.keep[place[visual]]                                                   # (k,)  sources in the order they now have
    if r.merge is not None:
        hidden[visual] = _merged(tokens, r.merge)[place[visual]].to(hidden.dtype)
    masked = None if tokens.masked is None else tokens.masked[rows]
    return tokens.without_views(hidden=hidden, position=tokens.position[rows], visual=visual, grid=tokens.grid[kept],
                                source=tokens.source[kept], masked=masked)


def _merged(tokens, merge):
    """(k, n) weights -> (k, D), in float32: half precision loses small weights."""
    read = merge.any(dim=0).nonzero().squeeze(1)           # (m,)  only columns that have weight: 0 * inf would be NaN
    return merge[:, read].float() @ tokens.hidden[tokens.visual[read]].float()


def _masked(tokens, r):
    assert r.merge is None, "tokens can only be merged where they are dropped"
    masked = tokens.is_visual()
    masked[tokens.visual[r.keep]] = False
    if tokens.masked is not None:
        masked |= tokens.masked
    return tokens.without_views(visual=tokens.visual[r.keep], grid=tokens.grid[r.keep], source=tokens.source[r.keep], masked=masked)


def _renumbered(tokens):
    counted = torch.ones_like(tokens.position) if tokens.masked is None else (~tokens.masked).long()
    return replace(tokens, position=counted.cumsum(0) - 1, next_position=int(counted.sum()))
