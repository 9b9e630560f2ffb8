"""SparseVLM. Zhang et al., ICML 2025, arXiv:2410.04417; released as v1.0, v1.5 (this file) and v2.0 (SparseVLM+).

The text tokens that the image relates to most rate the visual tokens, by their attention to them. After a few layers the best
rated are kept, as many as a table says, and the better rated of the others are recycled: clustered by DPC-kNN, one token per
cluster, which come after those kept.

Paper and code: the paper's numbers follow from the rank of the raters' attention, as in v1.0 (SparseVLMRank in readings.py);
v2.0 recycles nothing and corrects for distance (SparseVLMPlus). The code recycles one token and makes one cluster more than the
shares say, and averages a cluster where the paper sums it. It drops a token at every cut; here the last one is kept.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Count, Share
from pruning.ranked import top


@dataclass(frozen=True)
class SparseVLM(Pruner):
    """Keep the visual tokens that the relevant text attends to, and recycle some of the others."""

    keep: float | int = 1 / 3          # share, or number, left on average over the layers: a row of TABLE, or between two
    layers: tuple[Count, ...] = (2, 6, 15)  # the layers, from 0, whose output is cut
    table: tuple[float, ...] = ()      # in place of keep: the tokens kept at each cut
    recycle: Share = 0.3               # tau, share of the dropped tokens that is recycled; 0: none
    clusters: Share = 0.1              # theta, clusters as a share of the recycled

    laws = frozenset({"scale", "needle", "convex", "disjoint"})
    preconditions = frozenset({"text"})            # after the image
    positions = "renumber"             # each layer counts the generated tokens from its own length
    extra = 1                          # recycled tokens, and clusters, more than the shares say
    neighbours = None                  # k of kNN, itself one of them; None: the number of clusters
    # average of 576 tokens over 32 layers -> the tokens kept after each of `layers`, without clusters
    TABLE = {0: (0, 0, 0), 64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110), 576: (576, 576, 576)}

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if any(before >= after for before, after in zip((-1, *self.layers), self.layers)):
            raise UserError(f"{name}: layers must rise from 0; got {self.layers}")
        if self.table and (len(self.table) != self.table_length or min(self.table) < 0):
            raise UserError(f"{name}: table has {self.table_length} numbers, none negative; got {self.table}")

    @property
    def table_length(self):
        """Numbers in a table: one per cut."""
        return len(self.layers)

    def reduce_at(self, layers):
        return tuple(l + 1 for l in self.layers)

    def schedule(self, n, layers):
        entering = [n] * layers
        for cut, layer in enumerate(self.reduce_at(layers)):
            before = entering[-1]
            kept = self.level(before, n, cut)
            _, clusters = self.recycling(before - kept)
            entering[layer:] = [kept + clusters] * (layers - layer)
        return entering

    def reduce(self, tokens):
        # the relevant text: it rates
        visual, text = prompt_rows(tokens)                                         # (N, D), (m, D)
        raters = self.relevant_text(visual, text)                                  # (r,)
        # its attention to the visual tokens
        attention = self.rating(tokens, tokens.text()[raters])                     # (r, n)  P of the paper
        score = attention.mean(dim=0)                                              # (n,)
        # sparsification level: how many are kept
        cut = self.reduce_at(None).index(tokens.layer)
        k = self.level(tokens.n, tokens.N, cut, attention)
        keep = top(score, k)
        # token recycling: the best rated of the others, clustered
        recycled, clusters = self.recycling(tokens.n - k)
        if not recycled:
            return Reduction(keep, score=score)
        return self.with_clusters(tokens.hidden[tokens.visual], keep, score, recycled, clusters)

    def relevant_text(self, visual, text):
        """(r,) the text that gets more than the mean of the visual tokens' votes"""
        votes = relevance(visual, text)                                            # (m,)
        return chosen_or_all(votes > votes.mean())

    def rating(self, tokens, raters):
        """(r, n) attention of these rows to the visual tokens, mean over heads"""
        return tokens.before.mean_attention(raters)[:, tokens.visual]

    def level(self, n, N, cut, attention=None):
        """How many to keep of n tokens, of N at first, at this cut."""
        if not self.table and tokens_to_keep(self.keep, N) == N:
            return n
        table = self.table or self.row_of_table(N)
        return max(1, min(round(table[cut]), n - 1))

    def row_of_table(self, N):
        """The row of TABLE for an average of `keep` of N: between two rows in proportion, as the average is."""
        average = 576 * keep_share(self.keep, N)
        low = max(row for row in self.TABLE if row <= average)
        high = min(row for row in self.TABLE if row >= average)
        share = (average - low) / (high - low) if high > low else 0
        return [(a + share * (b - a)) * N / 576 for a, b in zip(self.TABLE[low], self.TABLE[high])]

    def recycling(self, dropped):
        """How many of the `dropped` tokens are recycled, and into how many clusters."""
        if not self.recycle:
            return 0, 0
        recycled = min(dropped, int(self.recycle * dropped) + self.extra)
        clusters = min(recycled, max(1, int(self.clusters * recycled) + self.extra))
        return recycled, clusters

    def with_clusters(self, hidden, keep, score, recycled, clusters):
        """The kept tokens, and after them the clusters of the best rated of the others."""
        n, k = len(score), len(keep)
        lost = score.argsort(descending=True, stable=True)[k:k + recycled]         # (q,)    best first
        members, centre = self.clustered(hidden[lost], clusters)                   # (c, q), (c,)
        kept = F.one_hot(keep, n).to(members)                                      # (k, n)
        merged = members.new_zeros(clusters, n).index_copy_(1, lost, self.merge_weights(members))  # (c, n)
        reason = torch.arange(k + clusters, device=keep.device) >= k
        return Reduction(torch.cat([keep, lost[centre]]), torch.cat([kept, merged]), score, reason=reason.long(),
                         reasons=("kept", "recycled"))

    def clustered(self, x, count):
        """DPC-kNN; of equal densities the better rated token is the denser one."""
        return dpc_knn(x, count, self.neighbours)

    def merge_weights(self, members):
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
    return (visual.float() @ text.float().T).softmax(dim=1).mean(dim=0)


def chosen_or_all(chosen):
    """Indices of the chosen, or of all if none is: where the votes are equal, all text rates. (m,) bool -> (r,)"""
    return (chosen | ~chosen.any()).nonzero().squeeze(1)


def keep_share(keep, N):
    """`keep` as a share of N."""
    return keep if isinstance(keep, float) else keep / N


def dpc_knn(x, count, neighbours=None, noise=None):
    """Rows x (q, D), best first -> members (c, q) of each cluster, 0 or 1, and centres (c,), the best first.

    A centre is dense (near to its `neighbours` nearest) and far from any denser row. `noise` (q,) in [0, 1) is added to the
    densities in millionths; without it the first of equals counts as the denser one.
    """
    distance = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5   # (q, q)
    nearest = distance.topk(min(len(x), neighbours or count), dim=1, largest=False).values         # (q, k)  itself one of them
    density = (-nearest.square().mean(dim=1)).exp()                                # (q,)
    if noise is None:
        place = density.argsort(descending=True, stable=True).argsort()            # (q,)    0: the densest
        is_denser = place < place[:, None]                                         # (q, q)  column than row
    else:
        density = density + 1e-6 * noise.to(density)
        is_denser = density > density[:, None]
    to_denser = distance.masked_fill(~is_denser, distance.max()).min(dim=1).values                 # (q,)  to the nearest denser row
    centre = (density * to_denser).argsort(descending=True, stable=True)[:count]   # (c,)
    owner = distance[:, centre].argmin(dim=1)                                      # (q,)
    owner[centre] = torch.arange(count, device=x.device)   # equal rows: a centre belongs to its own cluster
    return F.one_hot(owner, count).T.float(), centre
