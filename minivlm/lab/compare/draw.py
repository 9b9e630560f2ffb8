"""Pictures of what a method did, from the photograph, the processor's box and the trace: a panel for each reduction.

Three kinds: what was kept (the rest is dark), what the method ranked by, and which patches the merged tokens are made of.
Nothing here writes a file: the caller saves.

    page = sheet(rows(picture, processor.box(*picture.size), talk.trace), header="What is on the table?")
"""

from dataclasses import replace

import torch
from PIL import Image

from minivlm.lab.compare.sheet import BLACK, GREY, captioned, sheet, stack, words  # noqa: F401 (sheet is for the caller)
from minivlm.lab.compare.view import View
from minivlm.trace import Step
from pruning.base import Reduction

WHERE = {"vision": "vision tower, before layer {}", "embed": "before the decoder", "decoder": "before layer {}",
         "none": "nothing dropped"}
LINE, EVIDENCE = (255, 255, 255), (255, 0, 200)
HEAT = torch.tensor([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])   # low .. high: ever lighter
GROUPS = torch.tensor([(230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 165, 0), (145, 30, 180), (70, 240, 240),
                       (240, 50, 230), (190, 240, 40), (250, 190, 212), (0, 128, 128), (170, 110, 40), (255, 225, 25)])
REASONS = {"orange": (255, 150, 0), "blue": (0, 170, 255), "green": (60, 220, 60), "violet": (190, 90, 255)}
SMALLER = torch.tensor([[225, 225, 225]])          # the colour of all groups after the largest
NOBODY = torch.empty(0, dtype=torch.long)


def rows(picture, box, trace, image=0, title="", evidence=()):
    """All there is to see of one image, as rows for `sheet`: its panels, score maps and merge maps."""
    every = [f(picture, box, trace, image, title, evidence) for f in (panels, score_maps, merge_maps)]
    return [row for row in every if any(row)]


def panels(picture, box, trace, image=0, title="", evidence=()):
    """One panel a reduction, what was kept lit and the rest dark; one lit panel where nothing was reduced.

    picture: the upright RGB photograph; box: `processor.box` of its size; image: which of the prompt's images it is;
    evidence: original indices of visual tokens, whose patches are outlined. Of an image of tiles a panel has the photograph
    twice: with the base tile's patches, and with those of the map.
    """
    view = View(picture, box, trace, image)
    return [_finished(view, _kept(view, step), title, _counts(view, step, evidence), evidence) for step in _steps(view, trace)]


def score_maps(picture, box, trace, image=0, title="", evidence=()):
    """For each panel the score that the method ranked by, as colour, what was kept outlined; None where there is no score."""
    view = View(picture, box, trace, image)
    return [None if step.reduction.score is None else _score_map(view, step, title, evidence) for step in _steps(view, trace)]


def merge_maps(picture, box, trace, image=0, title="", evidence=()):
    """For each panel the patches that each token is made of, in one colour; None where the reduction only selects.

    A patch has the colour of the token in which it weighs most.
    """
    view = View(picture, box, trace, image)
    return [None if step.reduction.merge is None else _merge_map(view, step, _made_of(trace, step), title, evidence)
            for step in _steps(view, trace)]


def _steps(view, trace):
    """The reductions that concern this image: at the vision site each is of one image alone."""
    n, tokens = len(view.tokens), torch.tensor(view.tokens)
    steps = [s for s in trace.steps if s.site != "vision" or view.has(s.source).any()]
    return steps or [Step("none", 0, tokens, Reduction(torch.arange(n)))]


def _finished(view, panel, title, text, evidence, legend=None):
    outlined = view.outlined(panel, view.own(torch.tensor(sorted(evidence))), EVIDENCE, inside=1) if evidence else panel
    return captioned(outlined if legend is None else stack([outlined, legend]), title, text)


def _where(view, step):
    return view.name + WHERE[step.site].format(step.layer)


def _kept(view, step):
    kept = view.own(step.kept)
    panel = view.outlined(view.lit(kept), kept, LINE)
    for _, color, which in _by_reason(view, step):
        panel = view.boxed(panel, kept[which], REASONS[color])
    return panel


def _by_reason(view, step):
    """(reason, colour, which tokens of this image it kept), for a method that keeps for several reasons."""
    reason = step.reduction.reason
    if reason is not None:
        for i, (name, color) in enumerate(zip(step.reduction.reasons, REASONS)):
            yield name, color, reason[view.has(step.kept)] == i


def _counts(view, step, evidence):
    """before layer 2: 64 of 576 tokens; ..."""
    kept, before, N = view.own(step.kept), view.own(step.source), len(view.tokens)
    told = [f"{_where(view, step)}: {len(kept)} of {N} tokens"]
    told += [f"{len(before)} until then"] if len(before) < N else []
    told += ["the rest masked"] if not step.reduction.drop else []
    told += [view.counted.format(*view.per_grid(kept))] if len(view.grids) > 1 else []
    told += [f"{int(which.sum())} {name} ({color})" for name, color, which in _by_reason(view, step) if which.any()]
    off = view.off_grid(kept)
    told += [f"{off} of them on no patch"] if off else []
    wanted = view.own(torch.tensor(sorted(evidence))) if evidence else ()
    told += [f"evidence {int(torch.isin(wanted, kept).sum())} of {len(wanted)}"] if evidence else []
    return "; ".join(told)


def _score_map(view, step, title, evidence):
    """Every token that was there in the colour of its rank: scores are so uneven that their values would show little."""
    rank = step.reduction.score.unique(return_inverse=True)[1]                     # (n,)  equal scores: equal ranks
    share = (rank / rank.max().clamp(min=1))[view.has(step.source)]                # (m,)  0 .. 1
    panel = view.tinted(view.lit(NOBODY), view.own(step.source), _heat(share))
    panel = view.outlined(panel, view.own(step.kept), LINE)
    text = f"{_where(view, step)}: rank of {len(share)} tokens by score; outlined: the {len(view.own(step.kept))} kept"
    return _finished(view, panel, title, text, evidence, _scale(panel.width))


def _made_of(trace, step):
    """(k, N) of which original tokens each one is made that this step left."""
    if step.site == "vision":                              # the first reduction of its image, and of no other
        merge = step.reduction.merge.float()
        return merge.new_zeros(len(merge), trace.N).index_copy(1, step.source, merge)
    last = next(i for i, s in enumerate(trace.steps) if s is step)
    return replace(trace, steps=trace.steps[:last + 1]).sources()


def _merge_map(view, step, sources, title, evidence):
    """`sources` (k, N): of which original tokens, with which weights, each token is made."""
    kept = view.own(step.kept)                                                     # (k,)  of this image
    weight = sources[view.has(step.kept)][:, view.tokens.start:view.tokens.stop]   # (k, n)
    used = (weight > 0).any(dim=0).nonzero().squeeze(1)                            # (m,) the patches that went into them
    owner = weight[:, used].argmax(dim=0) if len(kept) else used                   # (m,)
    color = _group_colors(owner.bincount(minlength=len(kept)))                     # (k, 3)
    panel = view.tinted(view.lit(NOBODY), used, color[owner])
    panel = view.boxed(panel, kept, BLACK)
    text = (f"{_where(view, step)}: {len(kept)} tokens made of {len(used)} patches, a colour each (pale grey: the smallest), "
            "boxed where they stand")
    return _finished(view, panel, title, text, evidence)


def _group_colors(size):
    """A colour for each group (k,) -> (k, 3): the largest have their own, the others share one."""
    color = SMALLER.repeat(len(size), 1)
    largest = size.argsort(descending=True, stable=True)[:len(GROUPS)]
    largest = largest[size[largest] > 1]
    color[largest] = GROUPS[:len(largest)]
    return color


def _heat(share):
    """0 .. 1 -> the colour between its two neighbours in HEAT. (m,) -> (m, 3)"""
    place = share.float() * (len(HEAT) - 1)
    low = place.long().clamp(max=len(HEAT) - 2)
    return torch.lerp(HEAT[low].float(), HEAT[low + 1].float(), (place - low)[:, None]).round().long()


def _scale(width):
    """The colours from low to high, with words at both ends."""
    low, high = words("lowest", 60, color=GREY), words("highest", 60, color=GREY)
    page = Image.new("RGB", (width, low.height), "white")
    bar = _heat(torch.linspace(0, 1, max(1, width - 130)))[None].to(torch.uint8).expand(10, -1, -1)
    page.paste(Image.fromarray(bar.contiguous().numpy()), (65, low.height // 2 - 5))
    page.paste(low, (0, 0))
    page.paste(high, (width - 60, 0))
    return page
