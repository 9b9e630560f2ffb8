"""The usual cause of a broken promise: the method is looked at more closely, and the likeliest mistake is named."""

import random

import numpy as np
import torch

from minivlm.lab.named.file import RAISED
from minivlm.lab.own.promises.drawn import Case
from minivlm.lab.own.promises.recorder import PUBLIC
from pruning.altered import shifted

LEAVE_OUT = "or leave {} out of `laws` if the method is not meant to keep it"


# --- the contract -----------------------------------------------------------------------------------------------------

def of_contract(name, outcome):
    """The cause of what `contract` found on an Outcome."""
    return CONTRACT[name](outcome)


def of_runs(outcome):
    """By the kind of error."""
    error = outcome.error
    message = str(error)
    if "NaN" in message:
        return "a division by zero, as of flat attention by max - min: add a small number to what divides"
    if isinstance(error, (IndexError, RuntimeError)):
        return "a shape or an index that fits some prompts only: T, n and k differ from prompt to prompt"
    if isinstance(error, AttributeError) and "cannot assign" in message:
        return "a method is frozen and stores nothing on itself: keep what it computes in a variable"
    return "read the line that is named; a method must take one visual token as well as many"


def of_reads(outcome):
    """What is no function of a view, or what its site has."""
    for read in outcome.log.forbidden:
        known = ", ".join(sorted(PUBLIC - {"on", "of", "tokens"}))
        return (f"{read.name} is no function of a LayerView: the weights, the cache and what comes later are not for a "
                f"method; it may read {known}")
    return of_site(outcome.case.pruner.site)


def of_site(site):
    """What can be read at a site."""
    if site == "embed":
        return ("no layer has run at the embed site: only tokens.hidden and tokens.grid can be read; for attention act "
                'in the decoder, site = "decoder"')
    if site == "vision":
        return ("at the vision site a layer is a block of the tower: read cls_attention(), received() or key(); there "
                "is no text and no last row yet")
    return ("in the decoder read attention, logits, queries and keys of tokens.before, which has run, or tokens.here; "
            'class tokens are read at the vision site, site = "vision"')


def of_matrix(outcome):
    """Rows of the sequence, all rows, or another shape."""
    r = outcome.reduction
    tokens = outcome.case.tokens
    keep = getattr(r, "keep", None)
    if not isinstance(keep, torch.Tensor) or keep.dtype != torch.long:
        return "return Reduction(keep), keep an int64 tensor of indices among the visual tokens"
    if returns_rows(outcome.case):
        return ("these are rows of the sequence, as tokens.visual holds them: keep counts among the visual tokens; "
                "return i, not tokens.visual[i]")
    if (keep >= tokens.n).any():
        return ("it chooses among all rows of the sequence, text too: rank score[tokens.visual], which has n values, "
                "and return indices among these")
    return "merge has a row for each kept token and a column for each visual token: (k, n)"


def returns_rows(case):
    """Whether what it keeps are the rows of the visual tokens, on a prompt in which these are few among many."""
    larger = Case(case.kind, (12, 2, 12), keep=1.0)
    rows = set(larger.tokens.visual.tolist())
    try:
        keep = larger.pruner.reduce(larger.tokens).keep.tolist()
    except RAISED:                     # another mistake
        return False
    return set(keep) <= rows


def of_pure(outcome):
    """It is always an operation in place."""
    return ("an operation in place, such as x -= y, x[i] = y or x.add_(y), on what is shared with the model: "
            "take x = x.clone() first, or write x = x - y")


def of_repeats(outcome):
    """Which generator it draws from: seeded before each call, that one repeats its draws."""
    first, second = [reduced_after(outcome.case, seed_torch) for _ in range(2)]
    if first == second:
        return ("it draws from torch's global generator: give the method an option seed, and draw with "
                "torch.Generator().manual_seed(self.seed)")
    first, second = [reduced_after(outcome.case, seed_others) for _ in range(2)]
    if first == second:
        return ("it draws from the global generator of numpy or random: give the method an option seed, and draw with "
                "torch.Generator().manual_seed(self.seed)")
    return "it draws without a seed, or remembers something between calls: a method is a pure function of its tokens"


def seed_torch():
    """torch's global generator."""
    torch.default_generator.manual_seed(0)


def seed_others():
    """Those of numpy and of random."""
    random.seed(0)
    np.random.seed(0)


def reduced_after(case, seed):
    """What is kept, as a list, after a generator has been seeded."""
    seed()
    return case.pruner.reduce(case.tokens).keep.tolist()


def of_layer(K, cuts):
    """The cause of acting elsewhere than before layer K."""
    if cuts == (K - 1,):
        return (f"layer {K - 1} is the one whose attention is read, not the one before which tokens are dropped: "
                f"return (self.layer,), and read tokens.before, which is layer {K - 1} then")
    return "let reduce_at return (self.layer,)"


CONTRACT = {"runs": of_runs, "reads": of_reads, "matrix": of_matrix, "pure": of_pure, "repeats": of_repeats}


# --- the laws ---------------------------------------------------------------------------------------------------------

def of_law(name, case, log):
    """The cause of a law broken on a Case. log: what the method reads there."""
    return LAW[name](case, log)


def of_select(case, log):
    """Two rules that choose, or a merge that is not declared."""
    r = case.pruner.reduce(case.tokens)
    if r.merge is None:
        return "a token is chosen by two rules: take out what is kept already before the second rule chooses"
    larger = Case(case.kind, (2, 12, 3), keep=0.5)
    merge = larger.pruner.reduce(larger.tokens).merge
    sums = merge.double().sum(dim=1)                                               # (k,)
    declare = ('it merges, and `laws` says that it only selects, as that of Pruner does: declare '
               'laws = frozenset({"convex", "disjoint"}), or those of the two that it keeps')
    if (sums - 1).abs().max() > 1e-3:
        declare += f"; its weights sum to {sums.max():.2f}, too, not to 1: divide each row of merge by its sum"
    return declare


def of_convex(case, log):
    """Negative weights, or sums."""
    merge = case.pruner.reduce(case.tokens).merge
    if (merge < 0).any():
        return "similarities may be negative: take their softmax, or clamp them at 0, before they become weights"
    return "the kept token and what is added to it are not divided by their number: divide each row of merge by its sum"


def of_disjoint(case, log):
    """A kept token that is merged as well, or several targets."""
    r = case.pruner.reduce(case.tokens)
    twice = int((r.merge != 0).sum(dim=0).argmax())
    if twice in r.keep.tolist():
        return (f"token {twice} is kept and merged into another as well: leave the kept tokens out of what is merged")
    return (f"a source is given to every target that passes, not to the best one: take argmax over the targets, so "
            f"that token {twice} has one destination")


def of_ordered(case, log):
    """By rank, or twice."""
    keep = case.pruner.reduce(case.tokens).keep
    if len(keep.unique()) < len(keep):
        return "the same token is kept twice: take out what is kept already before another rule chooses"
    return "they come by rank, as topk and argsort give them: sort keep, as top does (keep.sort().values)"


def of_budget(case, log):
    """One off, or of another rule."""
    k = len(case.pruner.reduce(case.tokens).keep)
    wanted = case.pruner.budget(case.tokens.n)
    if wanted is None:
        return "budget(n) is not written: return how many of n tokens are left, or leave budget out of `laws`"
    if abs(k - wanted) == 1:
        more = "one too many" if k > wanted else "one too few"
        return (f"it is {more}: a comparison with the k-th score (>= for >, or ties), a range that ends one off, or a "
                "share rounded otherwise than in budget(n); take k = self.budget(tokens.n) and top(score, k)")
    return "count what is left, merged tokens too, and let budget(n) say the same number"


def of_scale(case, log):
    """A fixed number."""
    return ("a score is compared with a fixed number, or added to something of another size: compare scores with each "
            f"other, as by their rank, {LEAVE_OUT.format('scale')}")


def of_needle(case, log):
    """Layer K in place of K-1, the first n rows, no attention, or the least of it."""
    tokens = case.tokens
    keep = case.pruner.reduce(tokens).keep.tolist()
    here, before = log.attention_of("here"), log.attention_of("before")
    if here and not before:
        return at_layer(tokens.layer)
    if reads_text_before(case):
        return "it reads the first n rows in place of the visual ones: read score[tokens.visual]"
    if not before and not log.attention_of("watched") and case.pruner.site == "decoder":
        return f"it reads no attention of tokens.before: read it, {LEAVE_OUT.format('needle')}"
    if case.needle not in keep and tokens.n == 2:
        return "it keeps what gets the least: the highest score must be the best"
    return f"the attention of the last row does not decide: {LEAVE_OUT.format('needle').removeprefix('or ')}"


def at_layer(K):
    """What to tell of a method that reads layer K where K-1 is expected."""
    return (f"it acts before layer {K} and reads the attention of layer {K}, which is about to run: that is layer K in "
            f"place of K-1; read tokens.before, which has run, {LEAVE_OUT.format('needle')}")


def of_shift(case, log):
    """The first n rows, or row numbers."""
    if reads_text_before(case):
        return ("the text before the image has a say: the first n rows are read in place of the visual ones; index "
                "with tokens.visual, as in score[tokens.visual]")
    return ("all rows have a part in it, the text before the image too, as in a softmax or a mean over the whole "
            "sequence, or row numbers decide (tokens.visual, tokens.position): take the visual rows first")


def reads_text_before(case):
    """Whether it reads the first n rows: it keeps the first of equals if these are rows of text that nobody looks at.
    """
    larger = Case(case.kind, (2, 40, 3), keep=0.5)
    try:
        keep = larger.pruner.reduce(larger.tokens).keep
        moved = larger.pruner.reduce(shifted(larger.tokens, larger.tokens.n)).keep
    except RAISED:                     # it fails elsewhere: another promise says so
        return False
    first = torch.arange(len(moved))
    return not keep.equal(moved) and moved.equal(first)


LAW = {
    "select": of_select,
    "convex": of_convex,
    "disjoint": of_disjoint,
    "ordered": of_ordered,
    "budget": of_budget,
    "scale": of_scale,
    "needle": of_needle,
    "shift": of_shift,
}
