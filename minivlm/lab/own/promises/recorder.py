"""What a method reads, found by watching it read: Tokens whose views note each call, and the notes in words."""

import sys
from dataclasses import dataclass, field, fields

from torch import Tensor

from minivlm.lab.named.file import RAISED
from pruning.base import LayerView, Tokens

PUBLIC = {name for name in vars(LayerView) if not name.startswith("_")}
SILENT = {"tokens", "on", "of"}        # reading these shows nothing of the layer
FIELDS = {
    "hidden": "the hidden states",
    "grid": "the places on the grid",
    "position": "the position ids",
    "source": "the original numbers of the tokens",
    "prompt": "the prompt as it entered layer 0",
}
OF_ROWS = {
    "attention": "attention",
    "mean_attention": "attention (mean over heads)",
    "each_head": "attention (head by head)",
    "logits": "attention logits",
    "mean_logits": "attention logits (mean over heads)",
    "each_head_logits": "attention logits (head by head)",
    "summed_logits": "summed attention logits",
    "query": "queries",
}
OF_ALL = {
    "key": "keys",
    "projected_key": "keys before RoPE",
    "final_normed": "the stream after the decoder's final norm",
    "modules": "what attention and MLP read and add",
    "mask": "the mask",
    "rotated": "the rotary embedding",
    "cls_rows": "which rows are class tokens",
    "cls_attention": "attention from the class token",
    "received": "attention that patches receive from patches",
}
ROWS = {"last": "the last row", "text": "the text after the image", "visual": "the visual rows", "all": "all rows"}
INSIDE = {"pruning.base", "pruning.apply", "pruning.altered", "dataclasses"}   # these read for others


@dataclass(frozen=True)
class Read:
    """One call of a view's function, or a field of Tokens (then view is "")."""

    view: str                          # "before", "here", "watched 2"
    layer: int | None
    name: str
    rows: str = ""                     # in words
    is_allowed: bool = True

    @property
    def is_attention(self):
        """Whether it shows attention, or its logits, in a decoder layer."""
        return self.name in OF_ROWS and self.name != "query"

    def __str__(self):
        if not self.view:
            return FIELDS[self.name]
        what = OF_ROWS.get(self.name) or OF_ALL.get(self.name, self.name)
        of_rows = f" of {self.rows}" if self.rows else ""
        where = f" in layer {self.layer}" if self.layer is not None else ""
        return f"{what}{of_rows}{where} (tokens.{self.view})"


@dataclass
class Log:
    """The reads of one call of a method, each once, in their order."""

    reads: list = field(default_factory=list)

    def add(self, read):
        """Note it."""
        if read not in self.reads:
            self.reads.append(read)

    @property
    def forbidden(self):
        """Those of what no method may read."""
        return [read for read in self.reads if not read.is_allowed]

    def attention_of(self, view):
        """Whether attention is read of this view."""
        return any(read.view == view and read.is_attention for read in self.reads)


class NotedView:
    """A view that notes what is read of it; in all else it is the other view."""

    def __init__(self, view, name, layer, log):
        self.noted = view
        self.name = name
        self.layer_number = layer
        self.log = log

    def __getattr__(self, name):
        if name not in PUBLIC:
            self.log.add(Read(self.name, self.layer_number, name, is_allowed=False))
        value = getattr(self.noted, name)
        if name in SILENT or not callable(value):
            return value
        return self.noting(name, value)

    def noting(self, name, function):
        """The function of the other view, with a note for each call."""
        def call(*args, **options):
            if name == "block":
                block, = args
                return NotedView(function(block), f"{self.name}.block({block})", block, self.log)
            rows = self.rows(name, args, options)
            self.log.add(Read(self.name, self.layer_number, name, rows))
            return function(*args, **options)
        return call

    def rows(self, name, args, options):
        """Which query rows are asked for, in words."""
        if name not in OF_ROWS:
            return ""
        rows = args[0] if args else options.get("rows", "all")
        if not isinstance(rows, Tensor):
            return ROWS.get(rows, str(rows))
        tokens = self.noted.tokens
        for which, words in ROWS.items():
            if tokens.rows(which).equal(rows):
                return words
        return f"{len(rows)} chosen rows"


class NotedTokens(Tokens):
    """Tokens that note which of their fields are read, but for what these functions read themselves."""

    def __getattribute__(self, name):
        log = object.__getattribute__(self, "__dict__").get("log")
        if log is not None and name in FIELDS:
            reader = sys._getframe(1).f_globals.get("__name__")
            if reader not in INSIDE:
                log.add(Read("", None, name))
        return object.__getattribute__(self, name)


def noted(tokens, log):
    """The tokens, noting in `log` what is read of them."""
    values = {f.name: getattr(tokens, f.name) for f in fields(tokens)}
    layer = tokens.layer
    views = dict(values)
    views["before"] = NotedView(tokens.before, "before", layer - 1, log)
    views["here"] = NotedView(tokens.here, "here", layer, log)
    watched = [NotedView(view, f"watched[{i}]", None, log) for i, view in enumerate(tokens.watched)]
    views["watched"] = tuple(watched)
    result = NotedTokens(**views)
    object.__setattr__(result, "log", log)
    return result


def read_by(case, function="reduce"):
    """The Log of one call on a Case's tokens; what it noted before it failed, if it fails. function: or "mask"."""
    log = Log()
    try:
        getattr(case.pruner, function)(noted(case.tokens, log))
    except RAISED:                     # the promise `runs` says so
        pass
    return log
