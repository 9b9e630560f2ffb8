"""What the page shows, as plain data: where the patches lie, and what each method kept, ranked by and merged.

    {"layers": 8, "budgets": ["0.5", "0.1"],
     "photos": [data URI],                         each picture once
     "layouts": [{"grids": [{"photo": 0, ..}], "cells": 5, ..}],   where the tokens lie; a class token makes another
     "lists": [[..], ..],                          lists of numbers, each once: "cells": 5 means lists[5]
     "runs": [{"label": "fastv 0.1", "layout": 0, "steps": [{"layer": 2, "kept": 7, "score": 8, ..}], ..}]}

Tokens are original indices. Scores have three digits; ranks come from the exact scores, the highest being 1.
"""

import base64
import io
import json
import math

import torch

from minivlm.lab.draw import draw
from minivlm.lab.draw.view import GAP, ON_JOINED_TILES, ON_TILES, View
from minivlm.toy.benchmark import on_patches

SCORE_DIGITS = 3
WEIGHT_DIGITS = 2
QUALITY = 88                           # of a JPEG
NAMES = {                              # of the grids of a picture, by how View counts their patches
    ON_TILES: ("base tile", "map"),
    ON_JOINED_TILES: ("tiles", "thumbnail"),
}


class Pool:
    """Values that are stored once each: `add` gives the number of a value."""

    def __init__(self):
        self.values = []
        self._numbers = {}

    def add(self, value):
        """The number of the value, a new one for a new value."""
        key = json.dumps(value)
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


class PageData:
    """Collects what the page shows of one picture; `plain` is all of it, ready for JSON."""

    def __init__(self, image, box, evidence=()):
        self.image = image
        self.box = box
        self.evidence = evidence       # patches that hold the answer, as in questions.jsonl
        self.photos = Pool()
        self.layouts = Pool()
        self.lists = Pool()
        self.views = {}                # {where the tokens lie: (number of the layout, its View)}

    def plain(self, runs):
        """The data of these runs of `compare`."""
        described = [self.run(run) for run in runs]
        budgets = dict.fromkeys(run.budget for run in runs if run.budget)
        layers = max(len(run["visual"]) for run in described)
        return {
            "layers": layers,
            "budgets": list(budgets),
            "photos": self.photos.values,
            "layouts": self.layouts.values,
            "lists": self.lists.values,
            "runs": described,
        }

    def run(self, run):
        """One method at one budget."""
        names = {"label": run.label, "method": run.method, "budget": run.budget}
        if run.why_not:
            return {**names, "why_not": run.why_not, "visual": [], "steps": []}
        layout, view = self.layout(run.trace)
        steps = [self.step(run.trace, step, view) for step in run.trace.steps]
        return {**names, "answer": run.answer, "layout": layout, "visual": run.trace.visual, "steps": steps}

    def layout(self, trace):
        """(number of the layout, its View). Most methods have the same one."""
        key = json.dumps([trace.grid.tolist(), trace.padding])
        if key not in self.views:
            view = View(self.image, self.box, trace)
            number = self.layouts.add(self.described(view, trace))
            self.views[key] = (number, view)
        return self.views[key]

    def described(self, view, trace):
        """The grids of patches, and the grid, row and column of each token."""
        cells = view.cells.clone()                         # (N, 3)
        for number, grid in enumerate(view.grids):
            on_grid = grid.of(view.cells)
            cells[on_grid, 0] = number
        return {
            "grids": self.grids(view, trace),
            "cells": self.lists.add(cells.flatten().tolist()),
            "evidence": on_patches(trace.grid, self.evidence).tolist(),
        }

    def grids(self, view, trace):
        """Of each grid its photo, and where its patches lie on it, in pixels."""
        # the rows and columns of padding before the map's first: methods of the tower have these patches, others not
        offsets = [(0, 0), trace.padding[0] or (0, 0)]
        described = []
        photo_left = 0                                     # where the grid's photo begins on the panel
        for grid, name, offset in zip(view.grids, NAMES[view.counted], offsets):
            rows, columns = grid.shape
            described.append({
                "name": name,
                "photo": self.photos.add(data_uri(grid.photo)),
                "size": list(grid.photo.size),
                "left": grid.square.left - photo_left,
                "top": grid.square.top,
                "patch": list(grid.patch),
                "rows": rows,
                "columns": columns,
                "offset": list(offset),
            })
            photo_left += grid.photo.width + GAP
        return described

    def step(self, trace, step, view):
        """One reduction: which tokens it was given, which it kept, and why."""
        r = step.reduction
        is_before = step.site != "decoder"                 # before the decoder, whatever layer of the tower it was
        return {
            "layer": 0 if is_before else step.layer,
            "where": draw.where(view, step),
            "masked": not r.drop,
            "source": self.lists.add(step.source.tolist()),
            "kept": self.lists.add(step.kept.tolist()),
            **self.score(r.score),
            **self.reason(r),
            "merged": self.lists.add(merged(trace, step)),
        }

    def score(self, score):
        """The score of each token that the step was given, and its rank."""
        if score is None:
            return {"score": None, "rank": None}
        score = score.float()                              # (n,)
        values = [rounded(value, SCORE_DIGITS) for value in score.tolist()]
        return {"score": self.lists.add(values), "rank": self.lists.add(ranks(score).tolist())}

    def reason(self, r):
        """Why each token was kept, and the names of the reasons."""
        if r.reason is None:
            return {"reason": None, "reasons": []}
        return {"reason": self.lists.add(r.reason.tolist()), "reasons": list(r.reasons)}


def merged(trace, step):
    """[[i, tokens, weights], ..]: the original tokens in kept token i, if they are more or others than itself."""
    until = draw.until(trace, step)
    if all(done.reduction.merge is None for done in until.steps):
        return []
    every = []
    weights = draw.made_of(trace, step)                    # (k, N)
    for i, (token, row) in enumerate(zip(step.kept.tolist(), weights)):
        sources = row.nonzero().flatten()
        weight = [rounded(value, WEIGHT_DIGITS) for value in row[sources].tolist()]
        if sources.tolist() != [token] or weight != [1]:
            every.append([i, sources.tolist(), shortened(weight)])
    return every


def shortened(weight):
    """One number in place of many equal ones."""
    return weight[0] if len(set(weight)) == 1 else weight


def rounded(value, digits):
    """rounded(0.012345, 3) -> 0.0123; None for infinity, which JSON does not have."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def ranks(score):
    """ranks([.1, .3, .3]) -> [3, 1, 1]: one more than the number of higher scores. (n,) -> (n,)"""
    ascending = score.sort().values
    not_higher = torch.searchsorted(ascending, score, right=True)
    return len(score) - not_higher + 1


def data_uri(picture):
    """The picture inside an address: as PNG, or as JPEG if that is smaller, as it is of a photograph."""
    png = encoded(picture, "PNG", optimize=True)
    jpeg = encoded(picture, "JPEG", quality=QUALITY)
    kind, smaller = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    text = base64.b64encode(smaller).decode()
    return f"data:image/{kind};base64,{text}"


def encoded(picture, kind, **options):
    """The bytes of a file of that kind."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
