"""All that can be said of a method without measuring it: where it acts, what it reads, and every promise."""

from minivlm.lab.own import reading
from minivlm.lab.own.in_model import equivalence
from minivlm.lab.own.promises import contract, laws
from minivlm.lab.own.promises.contract import outcome
from minivlm.lab.own.promises.drawn import LAYERS, built, cases
from minivlm.lab.own.promises.finding import BROKEN, Finding, broken, skipped
from pruning.laws import LAWS

N = 576                                # visual tokens of an image
NEEDED = ("select", "ordered", "convex")           # without these apply.py refuses what the method returns


SENTENCES = {name: law.sentence for name, law in LAWS.items()}


def examined(kind, name):
    """{"method", "what", "acts", "reads", "laws", "promises"}: sentences, and the Findings in their order."""
    doc = kind.__doc__ or ""
    facts = dict(method=name, what=" ".join(doc.split()))
    nowhere = acts_nowhere(kind)
    if nowhere:
        return facts | dict(acts=[], reads=[], laws=[], promises=nowhere)
    return facts | reading.facts(kind) | dict(promises=findings(kind))


def acts_nowhere(kind):
    """The Finding of a method that is never called; [] of another."""
    pruner = built(kind)
    if kind.site != "decoder" or pruner.reduce_at(LAYERS) or pruner.mask_at(LAYERS):
        return []
    name = "acts"
    sentence = "it acts somewhere"
    if pruner.budget(N) == N:
        return skipped([name], {name: sentence}, "it keeps everything")
    return [Finding(
        name,
        sentence,
        BROKEN,
        case=f"a decoder of {LAYERS} layers",
        seen="its reduce is never called",
        cause='reduce_at is not written: return (self.layer,), or set site = "embed" or "vision"',
    )]


def findings(kind):
    """[Finding]: the contract; if it is kept the laws; if these let the model run, the equalities."""
    outcomes = [outcome(case) for case in cases(kind)]
    rows = contract.findings(outcomes)
    wrong = broken(rows)
    if wrong:
        pruner = built(kind)
        declared = [name for name in LAWS if name in pruner.laws]
        return rows + not_tried(declared, SENTENCES, wrong[0]) + in_model(kind, wrong)
    ran = [result.case for result in outcomes if result.error is None]
    rows += laws.findings(kind, ran)
    wrong = [row for row in broken(rows) if row.name in NEEDED]
    return rows + in_model(kind, wrong)


def in_model(kind, wrong):
    """[Finding] of the equalities, which are not tried if something that they need is wrong."""
    if wrong:
        return not_tried(equivalence.SENTENCES, equivalence.SENTENCES, wrong[0])
    return equivalence.findings(kind)


def not_tried(names, sentences, first):
    """[Finding] of promises that would only repeat the mistake that breaks the first one."""
    return skipped(names, sentences, f"not tried before {first.name} holds")
