"""Bipartite soft matching, by which ToMe (tome.py) finds the tokens that it merges.

The tokens are divided by turns into A and B. Each token of A has an edge to the token of B with the most similar key,
and the r best edges join: many pairs at once, without a loop, and no token is joined by way of another.
"""

import torch
import torch.nn.functional as F

from pruning.ranked import descending


def merged(metric, size, k, has_class=True):
    """Weights (k, m) by which m tokens with keys (m, Dh) and sizes (m,) are merged into k means.

    One matching merges at most half of the tokens; if k is less, the means are matched again.
    """
    weights = torch.eye(len(metric), device=metric.device)                         # (m, m)
    while len(weights) > k:
        r = len(weights) - k
        owner = bipartite_soft_matching(metric, r, has_class)
        # the mean of all that go into a row, each weighted by its size
        members = F.one_hot(owner).T * size                                        # (m', m)
        size = members.sum(dim=1)                                                  # (m',)
        mean = members / size[:, None]
        metric = mean @ metric
        weights = mean @ weights
    return weights


def bipartite_soft_matching(metric, r, has_class=True):
    """The new row of each of m tokens (m,), after r of them, at most half, have joined the one most like them.

    has_class: a class token stands before the m tokens. So it is the first of A, but it is never merged.
    """
    m = len(metric)
    r = min(r, m // 2)
    # divide the tokens by turns into A and B
    first = 1 if has_class else 0
    index = torch.arange(m, device=metric.device)
    A = index[first::2]
    B = index[1 - first::2]
    # draw an edge from each token of A to the most similar token of B
    unit = F.normalize(metric, dim=1)                                              # (m, Dh)
    similarity = unit[A] @ unit[B].T                                               # (a, b)
    best, partner = similarity.max(dim=1)                                          # (a,) twice
    # keep the r edges between the most similar tokens
    order = descending(best)
    joins = order[:r]
    stays = order[r:]
    if has_class:
        stays = stays.sort().values                        # as in the released code: the class token comes first
    # the rows are now what stays of A, then B
    owner = torch.empty_like(index)
    owner[A[stays]] = index[:len(stays)]
    owner[B] = index[len(stays):m - r]
    destination = B[partner[joins]]                                                # (r,)
    owner[A[joins]] = owner[destination]
    return owner
