"""The page of `compare --html`: one file that loads nothing, for a browser without a network.

template.html, page.css and the scripts are the page; jinja fills in the words, and escapes them. The policy in its head
allows no address and no script but this one, so that words of the user's cannot become either.
"""

import base64
import hashlib
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

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
    data["cards"], cards = cards_of(methods)
    words = {
        "question": question,
        "answer": answer,
        "unpruned": runs[0].answer,
        "methods": methods,
        "first": FIRST,
    }
    return template().render(data=data, cards=cards, table=table(rows, legend), **files(), **words)


def template():
    """template.html, which escapes what is not marked as safe, also in JSON."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("template.html")


def files():
    """The style, the script, and the policy that allows them."""
    style = text_of("page.css")
    script = "".join(map(text_of, SCRIPTS))
    return {"style": style, "script": script, "policy": policy(style, script)}


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


def table(rows, legend):
    """The table as words, the rows of a budget together, and how to read it."""
    evidence = ["evidence"] if "evidence" in rows[0] else []
    blocks = [[row_of(row) for row in block] for _, block in groupby(rows, lambda row: row["budget"])]
    return {"heads": [*HEADS, *evidence, *MORE_HEADS], "blocks": blocks, "legend": legend}


def row_of(row):
    """One method's row: its label, and its cells or why it does not run."""
    if "why_not" in row:
        return {"label": row["contestant"], "why_not": row["why_not"]}
    cells = [f"{row['average']:.1f}", f"{row['flops_share']:.1%}", size(row["kv_bytes"])]
    if "evidence_share" in row:
        cells.append(f"{row['evidence_share']:.0%}")
    cells += [row["agreement"], equal_runs(row["visual"]), row["answer"]]
    return {"label": row["contestant"], "cells": cells}
