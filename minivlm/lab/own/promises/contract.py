"""What every method owes, declared or not: it runs, reads what there is to read, and is a pure function to a matrix."""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minivlm.lab.named.file import RAISED, own_fault
from minivlm.lab.own.promises import causes
from minivlm.lab.own.promises.drawn import LAYERS
from minivlm.lab.own.promises.finding import BROKEN, Finding
from minivlm.lab.own.promises.recorder import Log, noted
from minivlm.lab.own.promises.words import in_words, kept, numbers
from pruning.apply import problem_of
from pruning.base import Reduction, UserError

SENTENCES = {
    "runs": "it gives a result for every prompt",
    "reads": "it reads only what there is at its site",
    "matrix": "it returns indices of visual tokens, 0 to n-1, or a matrix over them",
    "pure": "it changes nothing that it is given",
    "repeats": "the same tokens give the same result",
    "layer": "it acts before layer K, the first that runs on the kept tokens",
}
VIEWS = ("views.py", "by_hand.py", "noise.py")     # files whose errors say what a view does not have


@dataclass
class Outcome:
    """What a method did on a case."""

    case: object
    log: Log
    reduction: Reduction | None = None
    error: Exception | None = None
    changed: str = ""                  # which tensor it changed
    again: Reduction | None = None     # of a second call

    @property
    def is_refused(self):
        """Whether the method refuses the prompt in words of its own, which it may if the prompt is special."""
        is_own_word = isinstance(self.error, UserError) and not self.is_of_view and "NaN" not in str(self.error)
        return is_own_word and not self.case.is_plain

    @property
    def is_of_view(self):
        """Whether the error comes from a view, which does not have what was asked for."""
        return isinstance(self.error, UserError) and raised_in(self.error).endswith(VIEWS)


def outcome(case):
    """The Outcome of two calls on a case."""
    log = Log()
    before = copies(case.tokens)
    result = Outcome(case, log)
    seed_all(0)
    try:
        result.reduction = case.pruner.reduce(noted(case.tokens, log))
        result.changed = difference(before, copies(case.tokens))
        seed_all(1)
        result.again = case.pruner.reduce(case.tokens)
    except RAISED as error:
        result.error = error
    return result


def seed_all(seed):
    """Every generator that a method may have in mind."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def copies(tokens):
    """{name: copy} of every tensor that a method is given."""
    owners = {"tokens": tokens, "tokens.before": tokens.before, "tokens.here": tokens.here}
    found = {}
    for owner, x in owners.items():
        values = vars(x) | vars(x).get("given", {})
        for name, value in values.items():
            if isinstance(value, Tensor):
                found[f"{owner}.{name}"] = value.clone()
    return found


def difference(before, after):
    """The first tensor that is not as it was; "" if all are."""
    return next((name for name in before if not same(before[name], after[name])), "")


def same(a, b):
    """Whether two tensors are equal, NaN included."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)


def raised_in(error):
    """The file in which an error was raised."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename


def said(error):
    """An error in a line: the reader's file and line, if it passed there."""
    own = own_fault(error)
    if own:
        return str(own)
    message = str(error).strip().splitlines()
    kind = "" if isinstance(error, UserError) else type(error).__name__
    return ": ".join(filter(None, [kind, *message[:1]]))


def place(error):
    """The reader's file and line that an error passed, in brackets; "" if there is none."""
    own = own_fault(error) if error else None
    where = str(own).split(": ")[0] if own else ""
    return f" ({where})" if ":" in where else ""


# --- what is wrong with an Outcome; "" if nothing is ------------------------------------------------------------------

def runs(outcome):
    """An error that is no view's and no refusal."""
    if outcome.error is None or outcome.is_refused or reads(outcome):
        return ""
    return f"it ends with an error: {said(outcome.error)}"


def reads(outcome):
    """What it reads and may not, or what is not there."""
    for read in outcome.log.forbidden:
        return f"it reads tokens.{read.view}.{read.name}{place(outcome.error)}"
    if not outcome.is_of_view:
        return ""
    views = [read for read in outcome.log.reads if read.view]
    if not views:
        return f"it asks for what is not there: {said(outcome.error)}"
    return f"it reads tokens.{views[-1].view}.{views[-1].name}, which is not there{place(outcome.error)}"


def matrix(outcome):
    """Why the result is no matrix over the visual tokens. The order of `keep` and the sums of `merge` are laws."""
    r = outcome.reduction
    if outcome.error is not None:
        return ""
    n = outcome.case.tokens.n
    if not isinstance(getattr(r, "keep", None), Tensor) or r.keep.dtype != torch.long or r.keep.ndim != 1:
        return problem_of(r, n, outcome.case.pruner)
    if ((r.keep < 0) | (r.keep >= n)).any():
        known = "the only visual token is 0" if n == 1 else f"there are {n} visual tokens, 0 to {n - 1}"
        return f"{kept(r)}, and {known}"
    if r.merge is None:
        return ""
    if r.merge.shape != (len(r.keep), n):
        return problem_of(r, n, outcome.case.pruner)
    return "" if r.merge.isfinite().all() else "its merge weights hold NaN or infinity"


def pure(outcome):
    """What it changed."""
    return f"after the call {outcome.changed} is another than before" if outcome.changed else ""


def repeats(outcome):
    """How a second call differs."""
    if outcome.again is None or matrix(outcome):
        return ""
    first = outcome.reduction
    second = outcome.again
    if not first.keep.equal(second.keep):
        return f"it keeps {numbers(first.keep.tolist())} and, called again, {numbers(second.keep.tolist())}"
    if first.merge is not None and not same(first.merge, second.merge):
        return "it merges with other weights when it is called again"
    return ""


ASKED = {"runs": runs, "reads": reads, "matrix": matrix, "pure": pure, "repeats": repeats}


def findings(outcomes):
    """[Finding] of the contract."""
    rows = [finding(name, outcomes) for name in ASKED]
    acts = layer_finding(outcomes[0].case.kind)
    return [*rows, acts] if acts else rows


def finding(name, outcomes):
    """The Finding of one promise: broken on the first outcome that breaks it."""
    for result in outcomes:
        seen = ASKED[name](result)
        if seen:
            cause = causes.of_contract(name, result)
            return Finding(name, SENTENCES[name], BROKEN, in_words(result.case), seen, cause)
    return Finding(name, SENTENCES[name])


def layer_finding(kind):
    """Whether it acts where its option `layer` says; None for a method of another kind."""
    pruner = kind()
    layer = getattr(pruner, "layer", None)
    if kind.site != "decoder" or not isinstance(layer, int) or pruner.site != "decoder":
        return None
    name = "layer"
    acts = []
    for K in (layer, layer + 3):
        cuts = tuple(replace(pruner, layer=K).reduce_at(LAYERS))
        acts.append((K, cuts))
    for K, cuts in acts:
        if cuts and K not in cuts:
            seen = f"with layer={K} it acts before layer {numbers(list(cuts))}"
            return Finding(name, SENTENCES[name], BROKEN, f"a decoder of {LAYERS} layers", seen,
                           causes.of_layer(K, cuts))
    return Finding(name, SENTENCES[name])
