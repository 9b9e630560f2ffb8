"""SparseVLM. Zhang et al., ICML 2025, arXiv:2410.04417; released as v1.0, v1.5 (this file) and v2.0 (SparseVLM+).

The text tokens that the image relates to most rate the visual tokens, by their attention to them. After a few layers
the best rated are kept, as many as a table says, and the better rated of the others are recycled: clustered by DPC-kNN,
one token per cluster, which come after those kept.

Paper and code: the paper's numbers follow from the rank of the raters' attention, as in v1.0 (SparseVLMRank in
readings.py); v2.0 recycles nothing and corrects for distance (SparseVLMPlus). The code recycles one token and makes one
cluster more than the shares say, and averages a cluster where the paper sums it. It drops a token at every cut; here
the last one is kept. It adds random noise to the densities, so that none are equal; here the better rated row is
denser.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Count, NotNegative, Share, option
from pruning.ranked import descending, top


@dataclass(frozen=True)
class SparseVLM(Pruner):
    """Keep the visual tokens that the relevant text attends to, and recycle some of the others."""

    keep: Amount = option(1 / 3, "share, or number, left on average over the layers: a row of TABLE or in between")
    layers: tuple[Count, ...] = option((2, 6, 15), "the layers, from 0, whose output is cut")
    table: tuple[NotNegative, ...] = option((), "in place of keep: the tokens kept at each cut")
    recycle: Share = option(0.3, "tau, share of the dropped tokens that is recycled; 0: none")
    clusters: Share = option(0.1, "theta, clusters as a share of the recycled")

    laws = frozenset({"scale", "needle", "convex", "disjoint"})
    preconditions = frozenset({"text"})            # after the image
    positions = "renumber"             # each layer counts the generated tokens from its own length
    extra = 1                          # recycled tokens, and clusters, more than the shares say
    neighbours = None                  # k of kNN, each row itself one of them; None: the number of clusters
    TABLE = {                          # average of 576 tokens over 32 layers -> kept at each cut, without clusters
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
        # token recycling: the best rated of the others, clustered
        recycled, clusters = self.recycling(tokens.n - k)
        if not recycled:
            return Reduction(keep, score=score)
        lost = descending(score)[k:k + recycled]                                   # (q,)  best first
        hidden = tokens.hidden[tokens.visual[lost]]                                # (q, D)
        members, centre = self.clustered(hidden, clusters)                         # (c, q), (c,)
        of_lost = self.cluster_weights(members)                                    # (c, q)
        of_all = of_lost.new_zeros(clusters, tokens.n).index_copy(1, lost, of_lost)                # (c, n)
        selection = F.one_hot(keep, tokens.n)                                      # (k, n)
        # the clusters come after the tokens kept
        rows = torch.cat([keep, lost[centre]])                                     # (k+c,)
        merge = torch.cat([selection, of_all])                                     # (k+c, n)
        is_cluster = torch.arange(len(rows), device=rows.device) >= k              # (k+c,)
        reason = is_cluster.long()
        return Reduction(rows, merge, score, reason=reason, reasons=("kept", "recycled"))

    def relevant_text(self, visual, text):
        """(r,) the text that gets more than the mean of the visual tokens' votes"""
        votes = relevance(visual, text)                                            # (m,)
        return chosen_or_all(votes > votes.mean())

    def rating(self, tokens, raters):
        """(r, n) attention of these rows to the visual tokens, mean over heads: P of the paper"""
        return tokens.before.mean_attention(raters)[:, tokens.visual]

    def level(self, n, N, cut, P=None):
        """How many to keep of n tokens, of N at first, at this cut."""
        keeps_all = not self.table and tokens_to_keep(self.keep, N) == N
        if keeps_all:
            return n
        table = self.table or self.row_of_table(N)
        k = round(table[cut])
        k = min(k, n - 1)              # one at least is dropped
        return max(1, k)

    def row_of_table(self, N):
        """The row of TABLE for an average of `keep` of N: between two rows in proportion, as the average is."""
        average = 576 * self.keep
        if isinstance(self.keep, int):
            average = average / N
        below = max(row for row in self.TABLE if row <= average)
        above = min(row for row in self.TABLE if row >= average)
        way = (average - below) / max(above - below, 1)    # 0: at `below`, 1: at `above`
        pairs = zip(self.TABLE[below], self.TABLE[above])
        row = []
        for low, high in pairs:
            of_576 = low + way * (high - low)
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
        """A cluster is the mean of its members (c, q). (c, q)"""
        return members / members.sum(dim=1, keepdim=True)


def prompt_rows(tokens):
    """Visual rows (N, D) and the text rows after the image (m, D), as they entered layer 0."""
    m = len(tokens.text())             # text is never dropped: these were its last m rows
    if not m:
        raise UserError("SparseVLM: no text follows the image, so nothing can rate it: put the question after <image>")
    prompt = tokens.prompt or tokens
    text = prompt.hidden[~prompt.is_visual()]
    return prompt.hidden[prompt.visual], text[-m:]


def relevance(visual, text):
    """Each visual token (N, D) shares one vote among the text (m, D): the mean of the votes. (m,)"""
    alike = visual.float() @ text.float().T                                        # (N, m)
    return alike.softmax(dim=1).mean(dim=0)


def chosen_or_all(chosen):
    """Indices of the chosen, or of all if none is: where the votes are equal, all text rates. (m,) bool -> (r,)"""
    return (chosen | ~chosen.any()).nonzero().squeeze(1)


def dpc_knn(x, count, neighbours=None):
    """Rows x (q, D), best first -> members (c, q) of each cluster, 0 or 1, and centres (c,), the best first.

    A centre is dense (near to its `neighbours` nearest) and far from any denser row. Of equal densities the first
    counts as the denser one.
    """
    distance = distances(x)                                                        # (q, q)
    density = densities(distance, neighbours or count)                             # (q,)
    rank = density.argsort(descending=True, stable=True).argsort()                 # (q,)  0: the densest
    is_denser = rank[None, :] < rank[:, None]                                      # (q, q)  column than row
    return clusters_around_peaks(distance, density, is_denser, count)


def distances(x):
    """Euclidean, over the root of the width. (q, D) -> (q, q)"""
    x = x.float()
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / x.shape[1] ** 0.5


def densities(distance, neighbours):
    """exp(-mean of the squares of the distances to the nearest), itself one of them. (q, q) -> (q,)"""
    k = min(neighbours, len(distance))
    nearest = distance.topk(k, dim=1, largest=False).values                        # (q, k)
    spread = nearest.square().mean(dim=1)                                          # (q,)
    return (-spread).exp()


def clusters_around_peaks(distance, density, is_denser, count):
    """The rows with the largest density * distance to a denser row are centres; each row joins the nearest."""
    farthest = distance.max()          # of a row that none is denser than
    to_denser = distance.masked_fill(~is_denser, farthest).min(dim=1).values       # (q,)
    peak = density * to_denser                                                     # (q,)
    centre = descending(peak)[:count]                                              # (c,)
    owner = distance[:, centre].argmin(dim=1)                                      # (q,)
    # equal rows: a centre belongs to its own cluster
    owner[centre] = torch.arange(count, device=owner.device)
    return F.one_hot(owner, count).T.float(), centre
