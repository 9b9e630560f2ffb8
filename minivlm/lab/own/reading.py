"""Where a method acts and what it reads, found by running it on a drawn prompt and writing down what it asks for."""

from minivlm.lab.own.promises.drawn import LAYERS, Case, built
from minivlm.lab.own.promises.recorder import read_by
from minivlm.lab.own.promises.words import numbers
from pruning.fields import annotations
from pruning.laws import LAWS, OF_ALL, PER

N = 576                                # visual tokens of an image of LLaVA-1.5
SITES = {
    "image": "before the vision tower, which is given a smaller picture",
    "vision": "on what the vision tower gives, before the projector: no text, and no decoder layer has run",
    "embed": "on the prompt before layer 0: no decoder layer has run",
}


def facts(kind):
    """{"acts", "reads", "laws"}, sentences of each."""
    pruner = built(kind)
    log = read_by(typical(kind))
    return dict(acts=acts(pruner), reads=reads(pruner, log), laws=promised(pruner))


def typical(kind):
    """A Case of one image."""
    if kind.site in ("image", "vision"):
        return Case(kind, (1, 3), keep=0.5)
    return Case(kind, (2, 12, 3), keep=0.5)


def acts(pruner):
    """Sentences on where it acts, and how many tokens it leaves."""
    site = pruner.site
    cuts = pruner.reduce_at(LAYERS) if site == "decoder" else ()
    where = SITES.get(site, "nowhere: reduce_at names no layer")
    if cuts:
        where = f"in the decoder before layer {cuts[0]}: layer {cuts[0]} is the first on the tokens that are left"
    if len(cuts) > 1:
        where = f"in the decoder before layers {numbers(list(cuts))}"
    lines = [f"it acts {where}"]
    masks = pruner.mask_at(LAYERS)
    if masks:
        lines.append(f"it changes the mask of layer {numbers(list(masks))}")
    return lines + leaves(pruner)


def leaves(pruner):
    """How many tokens it leaves, and their position ids."""
    k = pruner.budget(N)
    many = "a number of tokens that the prompt decides" if k is None else f"{k} of {N} tokens"
    lines = [f"it leaves {many}"]
    if "keep" in annotations(type(pruner)):
        lines[0] += f" (keep={pruner.keep}, which counts {PER[pruner.per].split(';')[0]})"
    keeps = pruner.positions == "keep" or (pruner.positions is None and pruner.site == "decoder")
    positions = "keep their position ids" if keeps else "get position ids 0, 1, .. anew"
    return [*lines, f"the tokens that are left {positions}"]


def reads(pruner, log):
    """Sentences on what it reads, and one if that is the layer that is about to run."""
    lines = [f"it reads {read}" for read in log.reads if read.is_allowed]
    if not log.reads:
        lines = ["it reads nothing but which tokens are visual"]
    cuts = pruner.reduce_at(LAYERS) if pruner.site == "decoder" else ()
    if log.attention_of("here") and not log.attention_of("before"):
        lines.append(f"look: layer {cuts[0]} is about to run when it acts; is layer K meant, or K-1, which has run "
                     "(tokens.before)?")
    if len(cuts) > 1:
        lines.append(f"(the numbers are those of its first cut; later ones before layers {numbers(list(cuts[1:]))})")
    return lines


def promised(pruner):
    """Which laws it declares, and which are asked of every method."""
    declared = [name for name in LAWS if name in pruner.laws]
    return [f"its laws: {', '.join(declared) or 'none'}; asked of every method: {', '.join(OF_ALL)}"]
