"""The promises of the model: what must hold in its runs, whatever method prunes.

Each function takes a method and says whether the promise is kept, and what there was to see. UserError if the promise
does not concern the method.
"""

from contextlib import contextmanager

import torch

from minivlm.attention import attention, attention_by_definition, causal_mask, rope, rotate
from minivlm.course.bugs.promises.small import (
    AFTER, BEFORE, CUT, LATER, N, PROMPT, T, Repeated, continued, last_states, model, prefilled,
)
from minivlm.trace import runs
from pruning.base import UserError

TOLERANCE = 1e-3                       # of logits and states near 1; rounding makes 1e-5


def layer(pruner):
    """All visual tokens enter the layers below K, fewer the others."""
    _, _, trace = prefilled(PROMPT, pruner)
    K = CUT if pruner.site == "decoder" else 0
    full = [n == N for n in trace.visual]
    kept = all(full[:K]) and not any(full[K:])
    return kept, f"K is {K}, and the visual tokens that enter the layers are {runs(trace.visual)}"


def masked(pruner):
    """What is dropped before a layer may as well stay with its key masked from there on."""
    trace = selecting(pruner)
    dropped = continued(Repeated(pruner, trace, drop=True))
    hidden = continued(Repeated(pruner, trace, drop=False))
    return compared(dropped, hidden, "the logits after dropping and after masking the same tokens")


def selecting(pruner):
    """The trace of a method that drops tokens in the decoder."""
    if pruner.site != "decoder":
        raise UserError("it acts before the decoder: there is no earlier layer whose tokens could stay")
    _, _, trace = prefilled(PROMPT, pruner)
    if any(step.reduction.merge is not None for step in trace.steps):
        raise UserError("it merges tokens, and a mask cannot")
    return trace


def cached(pruner):
    """Words that come one after the other find what they would find had they come at once."""
    _, _, trace = prefilled(PROMPT, pruner)
    again = Repeated(pruner, trace)
    stepped = continued(again)[-1]
    later = sum(LATER, [])
    whole, _, _ = prefilled(PROMPT + later, again)
    return compared(stepped, whole, f"the logits after {len(later)} more words, from the cache and all at once")


def causal(pruner):
    """Another last word changes no row before it, if the same tokens are kept."""
    _, _, trace = prefilled(PROMPT, pruner)
    again = Repeated(pruner, trace)
    other_word = AFTER[-1] + 1
    before = last_states(PROMPT, again)[:-1]
    after = last_states([*PROMPT[:-1], other_word], again)[:-1]
    return compared(before, after, "the states of the rows before the last word, with another last word")


def positions(pruner):
    """What remains has the position ids that it had, and the next words those after the unpruned prompt."""
    with rotations() as asked:
        _, cache, trace = prefilled(PROMPT, pruner)
        for words in LATER:
            model().step(words, cache, pruner)
    left = ids_left(trace.kept)
    expected = [left, *ids_of_later()]
    if pruner.site == "decoder":
        expected.append(list(range(T)))
    other = [ids for ids in asked if ids not in expected]
    if not other:
        return True, f"those that remain have {shown(left)}"
    return False, f"the prompt has 0 to {T - 1}, of which {shown(left)} remain; a layer runs at {shown(other[0])}"


def ids_left(kept):
    """The position ids of the text and of the visual tokens kept (k,), in order."""
    first = len(BEFORE)
    visual = [first + i for i in kept.tolist()]
    after = range(first + N, T)
    return sorted([*range(first), *visual, *after])


def ids_of_later():
    """The position ids of each of LATER."""
    start = T
    for words in LATER:
        yield list(range(start, start + len(words)))
        start += len(words)


@contextmanager
def rotations():
    """The lists of position ids for which the decoder asks for angles meanwhile."""
    decoder = model().language_model
    of_class = type(decoder).rope
    asked = []

    def noted(position, dtype):
        asked.append(position.tolist())
        return of_class(decoder, position, dtype)

    decoder.rope = noted
    try:
        yield asked
    finally:
        del decoder.rope


def definition(pruner):
    """Attention of all tokens and of the last ones, with its own mask and with a given one."""
    for queries, keys in ((5, 5), (3, 5)):
        query = drawn(4, queries, seed=0)
        key = drawn(2, keys, seed=1)
        value = drawn(2, keys, seed=2)
        later = torch.full((queries, keys), float("-inf")).triu(1 + keys - queries)
        expected = attention_by_definition(query, key, value, later)               # (1, 4, queries, 8)
        mask = causal_mask(torch.arange(keys - queries, keys), keys)
        for given in (None, mask):
            words = f"the last {queries} of {keys} tokens, {'no' if given is None else 'causal_mask as'} mask given"
            kept, seen = compared(attention(query, key, value, given), expected, words)
            if not kept:
                return kept, seen
    return kept, seen


def rotation(pruner):
    """A query at position 9 with a key at 4 gives what they give at 5 and 0."""
    query = drawn(1, 1, seed=0)
    key = drawn(1, 1, seed=1)
    far = float((at(query, 9) * at(key, 4)).sum())
    near = float((at(query, 5) * at(key, 0)).sum())
    kept = abs(far - near) < TOLERANCE
    return kept, f"a query at 9 times a key at 4 is {far:.3f}, and at 5 and 0 it is {near:.3f}"


def drawn(heads, tokens, seed):
    """Random queries, keys or values, (1, heads, tokens, 8)."""
    return torch.randn(1, heads, tokens, 8, generator=torch.Generator().manual_seed(seed))


def at(x, position):
    """x (.., 1, 8) turned to a position."""
    return rotate(x, rope(torch.tensor([position]), 8, 10000.0, torch.float32))


def compared(ours, theirs, words):
    """Whether two tensors agree, and by how much they differ in words."""
    if ours.isnan().any() or theirs.isnan().any():
        return False, f"{words}: there is NaN"
    difference = float((ours - theirs).abs().max())
    return difference < TOLERANCE, f"{words}: the largest difference is {difference:.2g}"


def shown(ids):
    """shown([0, 1, 2, 5]) -> "0-2 5": position ids in order."""
    spans = []
    for number in ids:
        if spans and spans[-1][-1] == number - 1:
            spans[-1][-1] = number
        else:
            spans.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
