"""Pictures of what a method did, from the photograph, the processor's box and the trace: a panel for each reduction.

Three kinds: what was kept (the rest is dark), what the method ranked by, and which patches were merged into a token.
Nothing is written to a file: the caller saves.

    page = sheet(rows(picture, processor.box(*picture.size), talk.trace), header="What is on the table?")
"""

from dataclasses import replace

import torch
from PIL import Image

from minivlm.lab.draw.evidence import carried
from minivlm.lab.draw.sheet import BLACK, GREY, captioned, stack, words
from minivlm.lab.draw.view import View
from minivlm.trace import Step
from pruning.base import Reduction

WHERE = {
    "image": "before the vision tower",
    "vision": "vision tower, before layer {}",
    "embed": "before the decoder",
    "decoder": "before layer {}",
    "none": "nothing dropped",
}
OF_ONE_IMAGE = ("image", "vision")     # sites at which a reduction is of a single image
LINE = (255, 255, 255)
EVIDENCE = (255, 0, 200)
# low .. high: ever lighter
HEAT = (
    (68, 1, 84),
    (59, 82, 139),
    (33, 145, 140),
    (94, 201, 98),
    (253, 231, 37),
)
# of the largest groups of merged patches, and of all others
GROUPS = (
    (230, 25, 75),
    (60, 180, 75),
    (0, 130, 200),
    (255, 165, 0),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (190, 240, 40),
    (250, 190, 212),
    (0, 128, 128),
    (170, 110, 40),
    (255, 225, 25),
)
SMALLER = (225, 225, 225)
REASONS = {
    "orange": (255, 150, 0),
    "blue": (0, 170, 255),
    "green": (60, 220, 60),
    "violet": (190, 90, 255),
}
NO_TOKENS = torch.empty(0, dtype=torch.long)


def legend(evidence=()):
    """How to read the panels, in a line."""
    outline = "outlined in pink: evidence; " if evidence else ""
    return f"lit: kept; dark: dropped; {outline}pale and hatched: never seen by the model"


def rows(picture, box, trace, image=0, title="", evidence=()):
    """All there is to see of one image, as rows for `sheet`: its panels, score maps and merge maps."""
    every = []
    for kind in (panels, score_maps, merge_maps):
        row = kind(picture, box, trace, image, title, evidence)
        if any(row):
            every.append(row)
    return every


def panels(picture, box, trace, image=0, title="", evidence=()):
    """One panel per reduction, what was kept lit and the rest dark; one lit panel if nothing was reduced.

    picture: the upright RGB photograph; box: `processor.box` of its size; image: which of the prompt's images it is;
    evidence: original indices of visual tokens, whose patches are outlined. A panel of an image of tiles has the
    photograph twice: with the base tile's patches, and with those of the map.
    """
    view = View(picture, box, trace, image)
    drawn = []
    for step in steps(view, trace):
        text = counts(view, trace, step, evidence)
        drawn.append(finished(view, lit_panel(view, step), title, text, evidence))
    return drawn


def score_maps(picture, box, trace, image=0, title="", evidence=()):
    """For each panel the score that the method ranked by, as colour, what was kept outlined; None without a score."""
    view = View(picture, box, trace, image)
    maps = []
    for step in steps(view, trace):
        has_score = step.reduction.score is not None
        maps.append(score_map(view, step, title, evidence) if has_score else None)
    return maps


def merge_maps(picture, box, trace, image=0, title="", evidence=()):
    """For each panel the patches that went into each token, in one colour; None if the reduction only selects.

    A patch has the colour of the token in which it weighs most.
    """
    view = View(picture, box, trace, image)
    maps = []
    for step in steps(view, trace):
        merges = step.reduction.merge is not None
        maps.append(merge_map(view, step, made_of(trace, step), title, evidence) if merges else None)
    return maps


def steps(view, trace):
    """The reductions that concern this image: before the prompt is there each is of a single image."""
    own = [step for step in trace.steps if step.site not in OF_ONE_IMAGE or view.has(step.source).any()]
    if own:
        return own
    tokens = torch.tensor(view.tokens)
    every = torch.arange(len(tokens))
    return [Step("none", 0, tokens, Reduction(every))]


def finished(view, panel, title, text, evidence, scale=None):
    """The panel with the evidence outlined, a scale if there is one, and the words below."""
    if evidence:
        panel = view.outlined(panel, own_evidence(view, evidence), EVIDENCE, inside=1)
    if scale is not None:
        panel = stack([panel, scale])
    return captioned(panel, title, text)


def own_evidence(view, evidence):
    """(m,) the evidence that is of this image, counted from its first token."""
    tokens = torch.tensor(sorted(evidence), dtype=torch.long)
    return view.own(tokens)


def where(view, step):
    """image 2, before layer 8"""
    return view.name + WHERE[step.site].format(step.layer)


# --- what was kept ----------------------------------------------------------------------------------------------------

def lit_panel(view, step):
    """What was kept lit, with a line around; each patch in a box whose colour is the reason, if there are several."""
    kept = view.own(step.kept)                             # (k,)
    panel = view.lit(kept)
    panel = view.outlined(panel, kept, LINE)
    for _, color, which in by_reason(view, step):
        panel = view.boxed(panel, kept[which], REASONS[color])
    return panel


def by_reason(view, step):
    """(reason, colour, which tokens of this image it kept), for a method that keeps for several reasons."""
    r = step.reduction
    if r.reason is None:
        return
    reason = r.reason[view.has(step.kept)]                 # (k,)
    for i, (name, color) in enumerate(zip(r.reasons, REASONS)):
        yield name, color, reason == i


def counts(view, trace, step, evidence):
    """before layer 2: 64 of 576 tokens; .."""
    kept = view.own(step.kept)                             # (k,)
    before = view.own(step.source)                         # (n,)
    N = len(view.tokens)
    parts = [f"{where(view, step)}: {len(kept)} of {N} tokens"]
    if len(before) < N:
        parts.append(f"{len(before)} until then")
    if not step.reduction.drop:
        parts.append("the rest masked")
    if len(view.grids) > 1:
        parts.append(view.counted.format(*view.per_grid(kept)))
    for name, color, which in by_reason(view, step):
        if which.any():
            parts.append(f"{int(which.sum())} {name} ({color})")
    off = view.off_grid(kept)
    if off:
        parts.append(f"{off} of them on no patch")
    if evidence:
        parts.append(evidence_left(view, trace, step, evidence))
    return "; ".join(parts)


def evidence_left(view, trace, step, evidence):
    """evidence 3 of 8, 2 more merged into others"""
    wanted = own_evidence(view, evidence)                  # (E,)
    kept = view.own(step.kept)                             # (k,)
    is_kept = torch.isin(wanted, kept)                     # (E,)
    left = carried(until(trace, step), wanted + view.tokens.start)                 # (E,)
    is_merged = left & ~is_kept
    text = f"evidence {int(is_kept.sum())} of {len(wanted)}"
    if is_merged.any():
        text += f", {int(is_merged.sum())} more merged into others"
    return text


def until(trace, step):
    """The trace up to this step; without steps for that of an unpruned prompt."""
    done = []
    if step.site != "none":
        last = [other is step for other in trace.steps].index(True)
        done = trace.steps[:last + 1]
    return replace(trace, steps=done)


# --- what the method ranked by ----------------------------------------------------------------------------------------

def score_map(view, step, title, evidence):
    """Every token that was left in the colour of its rank: scores are so uneven that their values would show little."""
    # equal scores have equal ranks
    score = step.reduction.score                           # (n,)
    _, rank = score.unique(return_inverse=True)            # (n,)
    last = rank.max().clamp(min=1)
    share = rank / last                                    # (n,)  0 .. 1
    is_own = view.has(step.source)
    share = share[is_own]                                  # (m,)
    # the ranked tokens in colour, the others dark
    ranked = view.own(step.source)                         # (m,)
    kept = view.own(step.kept)                             # (k,)
    panel = view.lit(NO_TOKENS)
    panel = view.tinted(panel, ranked, heat(share))
    panel = view.outlined(panel, kept, LINE)
    text = f"{where(view, step)}: rank of {len(share)} tokens by score; outlined: the {len(kept)} kept"
    return finished(view, panel, title, text, evidence, heat_scale(panel.width))


def heat(share):
    """0 .. 1 -> the colour between its two neighbours in HEAT. (m,) -> (m, 3)"""
    last = len(HEAT) - 1
    place = share.float() * last                           # (m,)
    below = place.long().clamp(max=last - 1)               # (m,)
    part = (place - below)[:, None]                        # (m, 1)
    colors = torch.tensor(HEAT).float()                    # (5, 3)
    lower = colors[below]                                  # (m, 3)
    upper = colors[below + 1]                              # (m, 3)
    color = lower.lerp(upper, part)
    return color.round().long()


def heat_scale(width):
    """The colours from low to high, with words at both ends."""
    low = words("lowest", 60, color=GREY)
    high = words("highest", 60, color=GREY)
    # a bar 10 pixels high
    length = max(1, width - 130)
    share = torch.linspace(0, 1, length)
    color = heat(share).to(torch.uint8)                    # (m, 3)
    bar = color.expand(10, -1, -1)                         # (10, m, 3)
    bar = Image.fromarray(bar.contiguous().numpy())
    # between the words
    page = Image.new("RGB", (width, low.height), "white")
    page.paste(bar, (65, low.height // 2 - 5))
    page.paste(low, (0, 0))
    page.paste(high, (width - 60, 0))
    return page


# --- what was merged --------------------------------------------------------------------------------------------------

def made_of(trace, step):
    """(k, N) weights of the original tokens in each token that this step left."""
    if step.site not in OF_ONE_IMAGE:
        return until(trace, step).sources()
    # the first reduction of its image, and of no other
    merge = step.reduction.merge.float()                   # (k, n)
    weights = merge.new_zeros(len(merge), trace.N)
    return weights.index_copy(1, step.source, merge)


def merge_map(view, step, sources, title, evidence):
    """`sources` (k, N): the weights of the original tokens in each token."""
    kept = view.own(step.kept)                             # (k,)  of this image
    is_own = view.has(step.kept)
    weight = sources[is_own, view.tokens.start:view.tokens.stop]                   # (k, n)
    # the patches that went into them, and for each the token in which it weighs most
    is_used = (weight > 0).any(dim=0)                      # (n,)
    used = is_used.nonzero().squeeze(1)                    # (m,)
    owner = used                                           # (m,)  none, if nothing is kept
    if len(kept):
        owner = weight[:, used].argmax(dim=0)
    size = owner.bincount(minlength=len(kept))             # (k,)
    color = group_colors(size)                             # (k, 3)
    panel = view.lit(NO_TOKENS)
    panel = view.tinted(panel, used, color[owner])
    panel = view.boxed(panel, kept, BLACK)
    text = (f"{where(view, step)}: {len(kept)} tokens made of {len(used)} patches, a colour each (pale grey: the "
            "smallest), boxed where they are")
    return finished(view, panel, title, text, evidence)


def group_colors(size):
    """A colour for each group (k,) -> (k, 3): the largest have their own, the others share one."""
    order = size.argsort(descending=True, stable=True)
    largest = order[:len(GROUPS)]
    has_company = size[largest] > 1
    largest = largest[has_company]
    color = torch.tensor(SMALLER).repeat(len(size), 1)
    color[largest] = torch.tensor(GROUPS)[:len(largest)]
    return color
