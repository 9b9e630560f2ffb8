"""TransPrune. Li et al., "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model", CVPR 2026,
arXiv:2507.20630.

How much the layers change a token says how important it is. Token Transition Variation (TTV) measures how much
attention and MLP change its representation, in length and in direction, accumulated over several layers.
Instruction-Guided Attention (IGA) is the attention that the text pays it. Tokens are pruned at several layers by
TTV + IGA, each divided by its sum over the tokens.

Paper and code: as the released code, but the softmax over the changes of direction is over the visual tokens here, not
over all (TransPruneReleased in readings/): a longer system prompt would change the choice. It counts layers from 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Reduction, UserError
from pruning.fields import Amount, AnyLayer, Count, option
from pruning.ranked import finite, top
from pruning.staged import Staged


@dataclass(frozen=True)
class TransPrune(Staged):
    """Keep the tokens that layers change most, and that the text attends to."""

    layers: tuple[AnyLayer, ...] = option((7, 9, 12), "the first layer of each stage")
    ratios: tuple[Amount, ...] = option((0.875, 0.625, 0.125), "share (or number) of the N tokens that enters it")
    since: Count = option(6, "the first layer whose transitions are accumulated")

    positions = "renumber"
    laws = frozenset({"select", "ordered", "scale"})
    preconditions = frozenset({"text"})

    def __post_init__(self):
        super().__post_init__()
        if self.since >= self.layers[0]:
            raise UserError(f"{type(self).__name__}: no layer from {self.since} on has run before layer "
                            f"{self.layers[0]}: give a smaller since")

    def watch_at(self, layers):
        return tuple(range(self.since, self.layers[-1]))

    def reduce(self, tokens):
        ttv = finite(self.ttv(tokens), "the token transitions")                    # (n,)
        score = as_shares(ttv) + as_shares(self.iga(tokens))                       # (n,)
        keep = top(score, self.left_at(tokens))                                    # (k,)
        return Reduction(keep, score=score)

    def ttv(self, tokens):
        """(n,) Token Transition Variation: the transitions of the watched layers that have run, accumulated"""
        if not tokens.watched:
            raise UserError("TransPrune reads how layers change the tokens: give their views, Tokens.start(watched=..)")
        # a token's place in the sum is its index in the unpruned image, since later layers have fewer tokens
        last = tokens.watched[0].tokens.source.max()
        accumulated = torch.zeros(last + 1, device=last.device)                    # (N,)
        for view in tokens.watched:
            accumulated[view.tokens.source] += self.transition(view)
        return accumulated[tokens.source]

    def transition(self, view):
        """(n,) how much one layer changes each visual token: attention and MLP, summed"""
        attention, mlp = view.modules()
        return self.variation(*attention, view.tokens.visual) + self.variation(*mlp, view.tokens.visual)

    def variation(self, x, out, visual):
        """(n,) how much a module that reads x (T, D) and adds out (T, D) to the stream changes each visual token"""
        x = x.float()
        out = out.float()
        magnitude = out.norm(dim=1) / x.norm(dim=1)                                # (T,)
        turn = 1 - F.cosine_similarity(x, out, dim=1)                              # (T,)
        return magnitude[visual] * self.direction(turn, visual)

    def direction(self, turn, visual):
        """(n,) each visual token's share of all changes of direction. turn: (T,)"""
        return turn[visual].softmax(dim=0)

    def iga(self, tokens):
        """(n,) Instruction-Guided Attention, from the text after the image in layer K, mean over heads and rows"""
        if not len(tokens.text()):
            raise UserError("TransPrune: no text follows the image: put the question after <image>")
        attention = tokens.here.mean_attention("text")                             # (m, T)
        return attention[:, tokens.visual].mean(dim=0)


def as_shares(x):
    """x (n,) divided by its sum; zeros stay zeros"""
    tiny = torch.finfo(x.dtype).tiny
    return x / x.sum().clamp_min(tiny)
