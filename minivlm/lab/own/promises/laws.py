"""The laws that a method declares (pruning/laws.py), and those that every method keeps, on drawn prompts."""

from dataclasses import replace

from minivlm.lab.named.file import RAISED
from minivlm.lab.own.promises import causes
from minivlm.lab.own.promises.contract import said
from minivlm.lab.own.promises.drawn import needles
from minivlm.lab.own.promises.finding import BROKEN, Finding
from minivlm.lab.own.promises.recorder import read_by
from minivlm.lab.own.promises.words import in_words, kept, numbers
from pruning.altered import ScaledView, shifted
from pruning.laws import LAWS
from pruning.ranked import Ranked

TOWER = ("image", "vision")            # sites without text


def findings(kind, cases):
    """[Finding] of each law that the method promises, causal left out: that one needs a model."""
    rows = []
    for name, law in LAWS.items():
        if law.holds is None:
            continue
        tried = needles(kind, aim(cases[-1])) if name == "needle" else cases
        tried = [case for case in tried if promises(case, name)]
        if tried:
            rows.append(finding(name, tried))
    return rows


def promises(case, name):
    """Whether the method owes this law on this case."""
    pruner = case.pruner
    if name in pruner.laws:
        return True
    if name == "shift":
        return pruner.site not in TOWER
    if name == "ordered":              # apply.py asks it of every selection before or in the decoder
        return pruner.site not in TOWER and pruner.reduce(case.tokens).merge is None
    return False


def aim(case):
    """The views in which a needle lies. Ranked acts before layer K, and its needle lies in layer K-1.

    Both views, for methods that say themselves where they act: PyramidDrop reads layer K.
    """
    return ("before",) if issubclass(case.kind, Ranked) else ("before", "here")


def finding(name, cases):
    """The Finding of one law, broken on the first case that breaks it."""
    law = LAWS[name]
    for case in cases:
        seen = broken_on(name, case)
        if seen:
            log = read_by(case)
            side = "here" if log.attention_of("here") and not log.attention_of("before") else "before"
            if name == "needle":
                side = "before"
            cause = causes.of_law(name, case, log)
            return Finding(name, law.sentence, BROKEN, in_words(case, side), seen, cause)
    return Finding(name, law.sentence)


def broken_on(name, case):
    """What is seen where the law breaks on a case; "" if it holds."""
    try:
        if LAWS[name].holds(case.pruner, case.tokens):
            return ""
        return SEEN[name](case)
    except RAISED as error:
        return f"it ends with an error: {said(error)}"


# --- what is seen -----------------------------------------------------------------------------------------------------

def result(case):
    """The Reduction of the case."""
    return case.pruner.reduce(case.tokens)


def seen_select(case):
    """What was merged, or that a token is there twice."""
    r = result(case)
    if r.merge is not None:
        return f"it merges {r.merge.shape[1]} tokens into {r.merge.shape[0]}"
    return f"{kept(r)}: the same token twice"


def seen_convex(case):
    """The first negative weight, or the row whose sum is farthest from 1."""
    merge = result(case).merge.double()
    if (merge < 0).any():
        i, j = (merge < 0).nonzero()[0].tolist()
        return f"row {i} takes {merge[i, j]:.3f} of token {j}"
    total = merge.sum(dim=1)                                                       # (k,)
    i = int((total - 1).abs().argmax())
    return f"the weights of row {i} sum to {total[i]:.3f}"


def seen_disjoint(case):
    """The token with the most rows."""
    merge = result(case).merge
    twice = int((merge != 0).sum(dim=0).argmax())
    rows = (merge[:, twice] != 0).nonzero().squeeze(1)
    return f"token {twice} goes into rows {numbers(rows.tolist())}"


def seen_kept(case):
    """What is kept."""
    return kept(result(case))


def seen_budget(case):
    """How many are left, and how many budget(n) says."""
    k = len(result(case).keep)
    n = case.tokens.n
    tiles = len(case.tokens.grid[:, 0].unique()) if case.pruner.per == "tile" else 1
    said_before = case.pruner.budget(n // tiles)
    of_tiles = f" for each of {tiles} tiles" if tiles > 1 else ""
    return f"it leaves {k} of {n} tokens, and budget({n // tiles}) is {said_before}{of_tiles}"


def seen_scale(case):
    """What is kept, and what with larger attention."""
    tokens = case.tokens
    scaled = replace(tokens, before=ScaledView(tokens.before, 1024.0), here=ScaledView(tokens.here, 1024.0))
    return f"{kept(result(case))}; with its attention times 1024 {kept(case.pruner.reduce(scaled))}"


def seen_needle(case):
    """Which token gets the attention, and what is kept."""
    needle = case.needle
    where = "the class token's attention" if case.pruner.site == "vision" else "the attention of the last row"
    return f"token {needle} gets 99 % of {where}, and {kept(result(case))}"


def seen_shift(case):
    """What is kept, and what after text was put before."""
    after = case.pruner.reduce(shifted(case.tokens, 3))
    return f"{kept(result(case))}; with 3 rows of text put before everything {kept(after)}"


SEEN = {
    "select": seen_select,
    "convex": seen_convex,
    "disjoint": seen_disjoint,
    "budget": seen_budget,
    "ordered": seen_kept,
    "scale": seen_scale,
    "needle": seen_needle,
    "shift": seen_shift,
}
