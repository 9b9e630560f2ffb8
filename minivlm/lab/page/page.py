"""The page of `compare --html`: one file that loads nothing, for a browser without a network.

template.html, page.css and the scripts are the page; jinja fills in the words, and escapes them. The policy in its head
allows no address and no script but this one, so that words of the user's cannot become either.
"""

import base64
import hashlib
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from minivlm.lab.cli.output import size
from minivlm.lab.page.cards import cards_of
from minivlm.lab.page.data import PageData
from minivlm.trace import runs as equal_runs

HERE = Path(__file__).parent
SCRIPTS = ("state.js", "panel.js", "page.js")
FIRST = 6                              # methods that are shown at first
HEADS = ("method", "average", "FLOPs", "KV cache")
MORE_HEADS = ("agreement", "visual tokens entering the layers", "answer")


def page(runs, rows, image, box, question, answer="", evidence=(), legend=()):
    """The page as text.

    runs: those of `compare`, the unpruned one first; rows: its table as data; image, box: the picture, and the part of
    it that the model sees; answer: the right one, if it is known; evidence: the patches that hold it; legend: how to
    read the table.
    """
    data = PageData(image, box, evidence).plain(runs)
    methods = list(dict.fromkeys(run.method for run in runs))
    chosen, cards = cards_of(methods)
    data["cards"] = chosen
    style = text_of("page.css")
    script = "".join(map(text_of, SCRIPTS))
    has_evidence = "evidence" in rows[0]
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    to_json = environment.filters["tojson"]
    return environment.get_template("template.html").render(
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        question=question,
        answer=answer,
        unpruned=runs[0].answer,
        layers=data["layers"],
        budgets=data["budgets"],
        methods=methods,
        first=FIRST,
        has_evidence=has_evidence,
        cards={name: Markup(html) for name, html in cards.items()},
        heads=heads(has_evidence),
        blocks=blocks(rows),
        legend=legend,
        data=to_json(data),
    )


def text_of(name):
    """A file of this folder."""
    return (HERE / name).read_text(encoding="utf-8")


def policy(style, script):
    """Nothing is loaded; only this style and this script count, known by their hashes."""
    rules = ("default-src 'none'", "img-src data:", f"style-src {hash_of(style)}", f"script-src {hash_of(script)}",
             "base-uri 'none'", "form-action 'none'")
    return "; ".join(rules)


def hash_of(text):
    """As a Content-Security-Policy writes it."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def heads(has_evidence):
    """The heads of the table."""
    return [*HEADS, *(["evidence"] if has_evidence else []), *MORE_HEADS]


def blocks(rows):
    """The rows of the table as words, those of a budget together."""
    return [[row_of(row) for row in block] for _, block in groupby(rows, lambda row: row["budget"])]


def row_of(row):
    """One method's row: its label, and its cells or why it does not run."""
    if "why_not" in row:
        return {"label": row["contestant"], "why_not": row["why_not"]}
    cells = [f"{row['average']:.1f}", f"{row['flops_share']:.1%}", size(row["kv_bytes"])]
    if "evidence_share" in row:
        cells.append(f"{row['evidence_share']:.0%}")
    cells += [row["agreement"], equal_runs(row["visual"]), row["answer"]]
    return {"label": row["contestant"], "cells": cells}
