"""VTW, visual tokens withdrawal. Lin et al., AAAI 2025, arXiv:2405.05803.

In deep layers the text no longer reads the image: what it needs has moved into the text tokens. So all visual tokens
are withdrawn before layer K, and layers K.. run on the text only. No score is needed. K is the first layer at which the
withdrawal leaves the next-token distribution almost as it was, measured once on a few prompts (`search`).

Paper and code: the released code has K = 15 in its class, and 16 (7B) or 20 in its command lines. If no layer
qualifies, its search stops with an error; here nothing is withdrawn then. Its option to renumber the remaining text is
VTWRenumbered in readings/, and its mode "random" is VTWRandom.
"""

from dataclasses import dataclass, replace

import torch

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import solve
from pruning.fields import Layer, option


@dataclass(frozen=True)
class VTW(Pruner):
    """Drop all visual tokens before layer K."""

    layer: Layer = option(15, "K: the first layer without an image; the number of layers: never withdrawn")

    laws = frozenset({"select", "ordered", "scale", "budget"})

    def reduce_at(self, layers):
        return () if self.layer == layers else (self.layer,)

    def budget(self, n):
        return 0

    def with_average(self, average, n, layers):
        """The K that gives the average: before K all tokens are there, from K on none."""
        def withdrawn_before(K):
            return replace(self, layer=K)

        return solve(withdrawn_before, range(1, layers + 1), average, n, layers)

    def reduce(self, tokens):
        return Reduction(tokens.visual.new_empty(0))


def search(logits, prompts, layers, eta=0.003, first=5):
    """The VTW whose K is the first layer, of `layers`, at which the divergence averaged over `prompts` is at most eta.

    `logits(prompt, pruner)` returns the next token's logits (V,) under a method; pruner None is the full model. For a
    minivlm model and prompts (ids, images): lambda prompt, pruner: model.prefill(model.embed(*prompt), pruner)[0].
    Released values of eta: 0.003; 0.0005 for 13B models; 0.0001 for LLaVA-NeXT with Vicuna 7B. UserError if there is no
    prompt.
    """
    if not prompts:
        raise UserError("VTW: the search for K needs at least one prompt with an image")
    full = torch.stack([logits(prompt, None) for prompt in prompts])               # (prompts, V)
    for K in range(first, layers):
        withdrawn = torch.stack([logits(prompt, VTW(K)) for prompt in prompts])    # (prompts, V)
        if divergence(withdrawn, full).mean() <= eta:
            return VTW(K)
    return VTW(layers)


def divergence(withdrawn, full):
    """KL(withdrawn || full) of the next token's distributions, from logits (.., V) each -> (..)"""
    log_p = withdrawn.float().log_softmax(dim=-1)          # (.., V)
    log_q = full.float().log_softmax(dim=-1)               # (.., V)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
