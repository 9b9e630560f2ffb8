"""SparseVLM. Zhang et al., ICML 2025, arXiv:2410.04417; released as v1.0, v1.5 (this file) and v2.0 (SparseVLM+).

The text tokens most relevant to the image (the raters) rate the visual tokens by their attention to them. After a few
layers the best rated are kept; a table says how many. The better rated of the others are recycled: clustered by
DPC-kNN, one token per cluster, placed after the kept tokens.

Paper and code: the paper derives the numbers from the rank of the raters' attention, as v1.0 does (SparseVLMRank in
readings/); v2.0 recycles nothing and corrects for distance (SparseVLMPlus). The code recycles one token more, and
makes one cluster more, than tau and theta say. It averages a cluster; the paper sums it. At each cut it drops at least
one token; here the very last token is never dropped. It adds random noise to the densities so that none are equal;
here, of equal ones, the better rated row counts as denser.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Count, NotNegative, Share, option
from pruning.grid import over_all
from pruning.ranked import descending, top


@dataclass(frozen=True)
class SparseVLM(Pruner):
    """Keep the visual tokens that the relevant text attends to, and recycle some of the others."""

    keep: Amount = option(1 / 3, "share, or number, left on average over the layers; TABLE says how many at a cut")
    layers: tuple[Count, ...] = option((2, 6, 15), "cut after each of these layers")
    table: tuple[NotNegative, ...] = option((), "instead of keep: the tokens kept at each cut")
    recycle: Share = option(0.3, "tau, share of the dropped tokens that is recycled; 0: none")
    clusters: Share = option(0.1, "theta, clusters as a share of the recycled")

    laws = frozenset({"scale", "needle", "convex", "disjoint"})
    preconditions = frozenset({"text"})            # after the image
    positions = "renumber"             # each layer counts the generated tokens from its own length
    extra = 1                          # added to the number of recycled tokens, and of clusters
    neighbours = None                  # k of kNN, counting the row itself; None: as many as clusters
    TABLE = {                          # {average of 576 tokens over 32 layers: kept at each cut, without clusters}
        0: (0, 0, 0),
        64: (66, 30, 17),
        96: (238, 48, 26),
        128: (303, 110, 36),
        192: (300, 200, 110),
        576: (576, 576, 576),
    }

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if list(self.layers) != sorted(set(self.layers)):
            raise UserError(f"{name}: layers must rise from 0; got {self.layers}")
        table = self.table or self.TABLE[0]
        if len(table) != self.table_length:
            raise UserError(f"{name}: table has {self.table_length} numbers; got {len(table)}")

    @property
    def table_length(self):
        """Numbers in a table: one per cut."""
        return len(self.layers)

    def reduce_at(self, layers):
        return tuple(l + 1 for l in self.layers)

    def schedule(self, n, layers):
        now = n
        entering = [n] * layers
        for cut, layer in enumerate(self.reduce_at(layers)):
            k = self.level(now, n, cut)
            _, clusters = self.recycling(now - k)
            now = k + clusters
            entering[layer:] = [now] * (layers - layer)
        return entering

    def reduce(self, tokens):
        # relevant text selection: which text tokens rate
        visual, text = prompt_rows(tokens)                                         # (N, D), (m, D)
        raters = self.relevant_text(visual, text)                                  # (r,)
        # significance of each visual token: the attention that it gets from them
        P = self.rating(tokens, tokens.text()[raters])                             # (r, n)
        score = P.mean(dim=0)                                                      # (n,)
        # sparsification level: how many are kept
        cut = self.layers.index(tokens.layer - 1)
        k = self.level(tokens.n, tokens.N, cut, P)
        keep = top(score, k)                                                       # (k,)
        # token recycling: cluster the best rated of the others
        recycled, clusters = self.recycling(tokens.n - k)
        if not recycled:
            return Reduction(keep, score=score)
        order = descending(score)                                                  # (n,)
        lost = order[k:k + recycled]                                               # (q,)  best first
        hidden = tokens.hidden[tokens.visual[lost]]                                # (q, D)
        members, centre = self.clustered(hidden, clusters)                         # (c, q), (c,)
        weights = self.cluster_weights(members)                                    # (c, q)
        # the clusters come after the kept tokens
        rows = torch.cat([keep, lost[centre]])                                     # (k+c,)
        selection = F.one_hot(keep, tokens.n)                                      # (k, n)
        merge = torch.cat([selection, over_all(weights, lost, tokens.n)])          # (k+c, n)
        is_cluster = torch.arange(len(rows), device=rows.device) >= k              # (k+c,)
        reason = is_cluster.long()
        return Reduction(rows, merge, score, reason=reason, reasons=("kept", "recycled"))

    def relevant_text(self, visual, text):
        """(r,) the raters: text tokens with more than the mean of the visual tokens' votes"""
        votes = relevance(visual, text)                                            # (m,)
        return chosen_or_all(votes > votes.mean())

    def rating(self, tokens, raters):
        """(r, n) attention of these rows to the visual tokens, mean over heads: P of the paper"""
        return tokens.before.mean_attention(raters)[:, tokens.visual]

    def level(self, n, N, cut, P=None):
        """How many of the n present tokens to keep at this cut; N: tokens at first; P (r, n): the raters' attention."""
        keeps_all = not self.table and tokens_to_keep(self.keep, N) == N
        if keeps_all:
            return n
        table = self.table or self.row_of_table(N)
        k = round(table[cut])
        k = min(k, n - 1)              # at least one is dropped
        return max(1, k)

    def row_of_table(self, N):
        """The tokens to keep of N at each cut: interpolated between the two rows of TABLE next to `keep`."""
        average = 576 * self.keep
        if isinstance(self.keep, int):
            average = average / N
        below = max(row for row in self.TABLE if row <= average)
        above = min(row for row in self.TABLE if row >= average)
        fraction = (average - below) / max(above - below, 1)       # 0: at `below`, 1: at `above`
        pairs = zip(self.TABLE[below], self.TABLE[above])
        row = []
        for low, high in pairs:
            of_576 = low + fraction * (high - low)
            row.append(of_576 * N / 576)
        return row

    def recycling(self, dropped):
        """How many of the `dropped` tokens are recycled, and into how many clusters."""
        if not self.recycle:
            return 0, 0
        recycled = int(self.recycle * dropped) + self.extra
        recycled = min(recycled, dropped)
        clusters = int(self.clusters * recycled) + self.extra
        clusters = max(1, clusters)
        return recycled, min(clusters, recycled)

    def clustered(self, x, count):
        """Rows (q, D), best first -> members (c, q) of each cluster, 0 or 1, and centres (c,)"""
        return dpc_knn(x, count, self.neighbours)

    def cluster_weights(self, members):
        """Weights of the members (c, q) in each cluster: their mean. (c, q)"""
        return members / members.sum(dim=1, keepdim=True)


def prompt_rows(tokens):
    """Visual rows (N, D) and rows of the text after the image (m, D), as they entered layer 0."""
    m = len(tokens.text())             # text is never dropped: in the prompt it has as many rows
    if not m:
        raise UserError("SparseVLM: no text follows the image, so nothing can rate it: put the question after <image>")
    prompt = tokens.prompt or tokens
    text = prompt.hidden[~prompt.is_visual()]
    return prompt.hidden[prompt.visual], text[-m:]


def relevance(visual, text):
    """Each visual token (N, D) divides one vote among the text (m, D); the mean over visual tokens. (m,)"""
    alike = visual.float() @ text.float().T                                        # (N, m)
    return alike.softmax(dim=1).mean(dim=0)


def chosen_or_all(chosen):
    """Indices of the chosen; of all if none is, as when all votes are equal. (m,) bool -> (r,)"""
    none_chosen = ~chosen.any()
    return (chosen | none_chosen).nonzero().squeeze(1)


def dpc_knn(x, count, neighbours=None):
    """Rows x (q, D), best first -> members (c, q) of each cluster, 0 or 1, and centres (c,), the best first.

    A centre is a dense row (its `neighbours` nearest rows are near) that is far from any denser one. Of equally dense
    rows the first counts as the densest.
    """
    distance = distances(x)                                                        # (q, q)
    density = densities(distance, neighbours or count)                             # (q,)
    rank = density.argsort(descending=True, stable=True).argsort()                 # (q,)  0: the densest
    is_denser = rank[None, :] < rank[:, None]                                      # (q, q)  column than row
    return clusters_around_peaks(distance, density, is_denser, count)


def distances(x):
    """Euclidean distances, divided by the root of the width. (q, D) -> (q, q)"""
    x = x.float()
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / x.shape[1] ** 0.5


def densities(distance, neighbours):
    """exp(-mean squared distance to the nearest rows, of which the row itself is one). (q, q) -> (q,)"""
    k = min(neighbours, len(distance))
    nearest = distance.topk(k, dim=1, largest=False).values                        # (q, k)
    spread = nearest.square().mean(dim=1)                                          # (q,)
    return (-spread).exp()


def clusters_around_peaks(distance, density, is_denser, count):
    """Centres are the rows with the largest density * distance to a denser row; each row joins the nearest centre."""
    farthest = distance.max()          # stands in for the densest row, which has no denser one
    to_denser = distance.masked_fill(~is_denser, farthest).min(dim=1).values       # (q,)
    peak = density * to_denser                                                     # (q,)
    centre = descending(peak)[:count]                                              # (c,)
    owner = distance[:, centre].argmin(dim=1)                                      # (q,)
    # equal rows: a centre belongs to its own cluster
    owner[centre] = torch.arange(count, device=owner.device)
    return F.one_hot(owner, count).T.float(), centre
