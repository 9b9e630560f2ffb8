"""The attention that the image gets in each layer of one prompt, under the usual position ids and under others.

If rotary positions are the reason that late image tokens get more attention (ASAP, arXiv:2603.14549; AdaptPrune,
arXiv:2503.08019), other ids must change where it lies. A Case says which ids, and who reads them:

    usual       those that the model reads
    reversed    the ids of the image's tokens in reverse: the first token is now the nearest to the question
    equal       all image tokens have the id of the middle one
    unrotated   no rotation at all: the id 0 for image and text

If the "model" reads them, every layer does, so that the hidden states differ too. If a "layer" does, the model runs as
usual, and only the queries and keys whose attention is noted are rotated by the other ids, one layer at a time.
"""

from dataclasses import dataclass, replace

import torch

from minivlm.attention import rotate
from pruning.base import Pruner, Reduction, UserError
from pruning.views import for_each_head

IDS = ("usual", "reversed", "equal", "unrotated")
READERS = ("model", "layer")


@dataclass(frozen=True)
class Case:
    """Position ids, and who reads them."""

    ids: str = "usual"                 # of IDS
    reader: str = "model"              # of READERS

    @property
    def label(self):
        """Its name in tables: "reversed, layer"."""
        return self.ids if self.ids == "usual" else f"{self.ids}, {self.reader}"


def cases(names):
    """[Case]: the usual one first, then each other one of `names`, read by the model, and again by the layer only."""
    others = [ids for ids in IDS if ids in names and ids != "usual"]
    return [Case(), *(Case(ids, reader) for reader in READERS for ids in others)]


def changed(position, visual, ids):
    """The position ids (T,) of a prompt, those of its image, the rows `visual` (n,), being changed to `ids`. (T,)"""
    position = position.clone()
    own = position[visual]                                                         # (n,)
    if ids == "reversed":
        position[visual] = own.flip(0)
    if ids == "equal":
        position[visual] = own[len(own) // 2]
    if ids == "unrotated":
        position.zero_()
    return position


def rotated_logits(query, key, query_rope, key_rope):
    """(H, R, T) logits of queries (H, R, Dh) and keys (Hk, T, Dh), both rotated by their (cos, sin)"""
    query = rotate(query, query_rope)                                              # (H, R, Dh)
    key = for_each_head(rotate(key, key_rope), len(query))                         # (H, T, Dh)
    return query @ key.mT / query.shape[-1] ** 0.5


class Watch(Pruner):
    """Keeps all tokens, and notes in each layer the attention that the image gets from the rows `which`."""

    laws = frozenset()

    def __init__(self, decoder, cases, which="last"):
        """cases: those noted in one run. The model reads the ids of the first; the others are of the reader "layer"."""
        self.decoder = decoder
        self.cases = cases
        self.which = which
        self.noted = []                # of each layer: (cases, n)

    def reduce_at(self, layers):
        if layers < 2:
            raise UserError("a decoder of one layer has no layer before which its attention could be read: name "
                            "another --model")
        return range(1, layers)

    def with_positions(self, tokens):
        position = changed(tokens.position, tokens.visual, self.cases[0].ids)
        return replace(tokens, position=position)

    def reduce(self, tokens):
        if tokens.layer == 1:
            self.note(tokens, tokens.before)                                       # layer 0, which has no cut
        self.note(tokens, tokens.here)
        every = torch.arange(tokens.n, device=tokens.visual.device)
        return Reduction(every)

    def note(self, tokens, view):
        """Note a layer: the attention that the image's tokens get in each case, mean over rows and heads."""
        rows = tokens.rows(self.which)
        if not len(rows):
            raise UserError("there is no text after the image whose attention could be read: put the question last")
        attention = []
        for case in self.cases:
            if case.reader == "model":
                row = view.mean_attention(rows).mean(dim=0)                        # (T,)
            else:
                row = self.rerotated(tokens, view, rows, case.ids)                 # (T,)
            attention.append(row[tokens.visual].float().cpu())
        self.noted.append(torch.stack(attention))

    def rerotated(self, tokens, view, rows, ids):
        """(T,) the attention of these rows, mean over rows and heads, if the layer's queries and keys are rotated by
        other ids"""
        position = changed(tokens.position, tokens.visual, ids)
        cos, sin = self.decoder.rope(position, tokens.hidden.dtype)                # (T, Dh) each
        query = view.query(rows, rope=False)                                       # (H, R, Dh)
        key = view.key(rope=False)                                                 # (Hk, T, Dh)
        logits = rotated_logits(query, key, (cos[rows], sin[rows]), (cos, sin))    # (H, R, T)
        attention = (logits.float() + view.mask(rows)).softmax(dim=-1)             # (H, R, T)
        return attention.mean(dim=(0, 1))


def attention_of(model, tokens, cases, which="last"):
    """(cases, layers, n) the attention that each visual token of a prompt gets from the rows `which`.

    The model runs once for each case whose ids it reads. The first run also gives the cases of the reader "layer".
    """
    whole = [case for case in cases if case.reader == "model"]
    by_layer = [case for case in cases if case.reader == "layer"]
    noted = {}
    for i, case in enumerate(whole):
        run = [case, *by_layer] if i == 0 else [case]
        watch = Watch(model.language_model, run, which)
        model.prefill(tokens, watch)
        layers = torch.stack(watch.noted, dim=1)                                   # (run, L, n)
        noted |= dict(zip(run, layers))
    return torch.stack([noted[case] for case in cases])
