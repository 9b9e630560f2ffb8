"""Two ways to the same result, in a tiny random model: pruned and masked, cached and uncached, once and once more.

Each check is a function of a Run, which says in words what is wrong with it: "" if nothing is, None if it is not asked.
Some are repeated with the image at other places, with several images, with tiles and in half precision.
"""

from copy import deepcopy
from dataclasses import replace

import torch

from minivlm.lab.named.file import RAISED
from minivlm.lab.own.in_model.runs import IN_HALF, OFFSETS, ONE, SEVERAL, TILES, Replay, Run
from minivlm.lab.own.in_model.tiny import MARK, all_rows, ids
from minivlm.lab.own.promises.contract import said
from minivlm.lab.own.promises.drawn import LAYERS, built
from minivlm.lab.own.promises.finding import BROKEN, SKIPPED, Finding
from pruning.base import UserError
from pruning.fields import annotations
from pruning.laws import LAWS

CLOSE = 1e-4                           # between float32 values near 1, after 32 layers
WORDS = ids(4, seed=1)                 # that are said after the prompt


def repeated(run):
    """The same prompt again."""
    logits, _, _ = run.of(run.pruner)
    return differs(run.result[0], logits, 0, "the same prompt again gives other logits")


def scheduled(run):
    """As many tokens enter each layer as `schedule` says, all text among them."""
    logits, _, trace = run.result
    if not logits.isfinite().all():
        return "the logits are not finite"
    text = len(run.prompt.ids) - run.prompt.parts.count(MARK)
    if run.pruner.drops and trace.tokens != [text + n for n in trace.visual]:
        return f"text is missing: {trace.tokens[-1]} tokens enter the last layer, {trace.visual[-1]} of them visual"
    if run.pruner.site != "decoder" or "budget" not in run.pruner.laws:
        return ""
    said_before = run.pruner.schedule(trace.unpruned, LAYERS)
    if said_before is None or list(said_before) == list(trace.visual):
        return ""
    l = next(i for i in range(LAYERS) if said_before[i] != trace.visual[i])
    return (f"{trace.visual[l]} visual tokens enter layer {l}, and schedule({trace.unpruned}, {LAYERS}) says "
            f"{said_before[l]}")


def masked(run):
    """Dropped before a layer, or masked in it and all later ones."""
    pruner = run.pruner
    only_drops = pruner.site == "decoder" and pruner.drops and not pruner.mask_at(LAYERS)
    if not only_drops or not run.selects or pruner.positions == "renumber" or changes_caches(pruner):
        return None
    logits, cache, trace = run.result
    other, other_cache, _ = run.of(Replay(run.pruner, trace, drop=False))
    model = run.prompt.model
    after = model.step(WORDS, deepcopy(cache))
    other_after = model.step(WORDS, other_cache)
    return (differs(logits, other, CLOSE, "dropping and masking the same tokens give other logits")
            or differs(after, other_after, CLOSE, "after four more words they differ"))


def changes_caches(pruner):
    """Whether it also drops from the caches of earlier layers, or ranks again at each token."""
    return pruner.prune_past_kv or pruner.rerank_each_step


def keeps_all(run):
    """With keep=1.0 it is the unpruned model, to the bit."""
    if "keep" not in annotations(type(run.pruner)) or run.merges_in_tower or run.pruner.mask_at(LAYERS):
        return None
    pruner = replace(run.pruner, keep=1.0)
    logits, _, trace = run.of(pruner)
    all_kept = all(len(step.reduction.keep) == len(step.source) for step in trace.steps)
    if not all_kept:
        return "with keep=1.0 it drops tokens" if "budget" in pruner.laws else None
    if not replace(run, pruner=pruner).selects or (run.prompt.sizes and pruner.site == "vision"):
        return None
    unpruned, _, _ = run.of(None)
    return differs(logits, unpruned, 0, "with keep=1.0 the logits are not those of the unpruned model")


def cached(run):
    """Words said after the prompt, from the cache, or as part of the prompt."""
    if changes_caches(run.pruner):
        return None
    _, cache, trace = run.result
    model = run.prompt.model
    held = deepcopy(cache)
    for words in (WORDS[:2], WORDS[2:]):
        stepped = model.step(words, held)
    again = run.pruner if run.merges_in_tower else Replay(run.pruner, trace)
    whole, _, _ = run.of(again, WORDS)
    return differs(stepped, whole, CLOSE, "four words from the cache and in the prompt give other logits")


def causal(run):
    """Another last word, or another image, changes no row before it."""
    prompt = run.prompt
    model = prompt.model
    before = prompt.parts[0]
    images = prompt.images()
    first = all_rows(model, prompt.ids, images, run.pruner)[:before]
    changed = [*prompt.ids[:-1], 3 + (prompt.ids[-1] - 3 + 7) % 95]
    of_word = all_rows(model, changed, images, run.pruner)[:before]
    of_image = all_rows(model, prompt.ids, prompt.images(50), run.pruner)[:before]
    return (differs(first, of_word, CLOSE, "another last word changes the text before the image")
            or differs(first, of_image, CLOSE, "another image changes the text before it"))


def differs(a, b, tolerance, words):
    """The words, and by how much two tensors differ; "" if they agree."""
    most = float((a.float() - b.float()).abs().max())
    return "" if most <= tolerance else f"{words}, by {most:.2g}"


CAUSES = {
    "repeated": "the method draws, or remembers something, between two prompts",
    "scheduled": "reduce_at, budget and schedule must say the same: schedule counts the tokens that enter each layer, "
                 "and they are dropped before layer K",
    "masked": "it changes states or positions of the tokens that it keeps: only choose, and leave the rest to apply.py",
    "keeps_all": "it changes tokens, or their order, although it keeps all of them",
    "cached": "it changes something that later words read: the cache, the states, or itself",
    "causal": "its mask lets text see what comes later: let mask only widen what visual rows see of their own image",
}
SENTENCES = {
    "causal": LAWS["causal"].sentence,
    "determinism": "the same prompt gives the same logits",
    "schedule": "as many tokens enter each layer as schedule says, and all text",
    "drop = mask": "dropping tokens equals masking their keys from there on",
    "keep all": "with keep=1.0 it is the unpruned model, to the bit",
    "cached": "an answer from the cache equals one without",
    "offset": "the image may be first, or after a long text",
    "several images": "it takes two images, side by side and apart",
    "tiles": "it takes a picture in tiles, with newlines that lie on no grid",
    "half precision": "it runs in bfloat16, and keeps as many tokens",
}
SINGLE = {"causal": causal, "determinism": repeated, "schedule": scheduled, "drop = mask": masked,
          "keep all": keeps_all, "cached": cached}
EVERY = (scheduled, masked, cached)    # asked of every other prompt, too
OTHERS = {"offset": OFFSETS, "several images": SEVERAL, "tiles": TILES}


@torch.no_grad()
def findings(kind):
    """[Finding] of the method in tiny models."""
    pruner = built(kind, 0.5)
    rows = []
    others = []                        # checks of other prompts: what breaks on every prompt is said once
    for name, check in SINGLE.items():
        row = asked_once(name, check, pruner)
        rows.append(row)
        if check in EVERY and row.status != BROKEN:
            others.append(check)
    for name, prompts in OTHERS.items():
        rows.append(asked_of(name, prompts, pruner, others))
    return [*rows, in_half(pruner)]


def asked_once(name, check, pruner):
    """The Finding of one check on one image."""
    try:
        seen = check(Run(pruner, ONE))
    except RAISED as error:
        return failed(name, ONE, error)
    if seen is None:
        return Finding(name, SENTENCES[name], SKIPPED, seen="no promise of this kind of method")
    return concluded(name, ONE, seen, check)


def asked_of(name, prompts, pruner, checks):
    """The Finding of these checks on other prompts."""
    for prompt in prompts:
        try:
            run = Run(pruner, prompt)
            for check in checks:
                seen = check(run)
                if seen:
                    return concluded(name, prompt, seen, check)
        except UserError as error:     # a method may refuse such a prompt, in words
            return Finding(name, SENTENCES[name], SKIPPED, seen=f"it refuses {prompt.words}: {said(error)}")
        except RAISED as error:
            return failed(name, prompt, error)
    return Finding(name, SENTENCES[name])


def in_half(pruner):
    """The Finding of half precision."""
    name = "half precision"
    try:
        logits, _, trace = Run(pruner, IN_HALF).result
        _, _, in_full = Run(pruner, ONE).result
    except RAISED as error:
        return failed(name, IN_HALF, error)
    if not logits.isfinite().all():
        return concluded(name, IN_HALF, "the logits are not finite", None)
    if "budget" in pruner.laws and trace.visual != in_full.visual:
        seen = f"it keeps {trace.visual[-1]} tokens, and {in_full.visual[-1]} in float32"
        return concluded(name, IN_HALF, seen, None)
    return Finding(name, SENTENCES[name])


def concluded(name, prompt, seen, check):
    """Kept if nothing was seen, else broken, with the usual cause."""
    if not seen:
        return Finding(name, SENTENCES[name])
    cause = CAUSES[check.__name__] if check else "compute scores in float32: x.float() before softmax, sums and means"
    return Finding(name, SENTENCES[name], BROKEN, prompt.words, seen, cause)


def failed(name, prompt, error):
    """Broken by an error."""
    return Finding(name, SENTENCES[name], BROKEN, prompt.words, f"it ends with an error: {said(error)}",
                   "read the line that is named: T, n and the dtype differ from prompt to prompt")
