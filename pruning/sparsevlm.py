"""SparseVLM. Zhang et al., ICML 2025, arXiv:2410.04417; released as v1.0, v1.5 and v2.0 (SparseVLM+).

The text tokens that the image relates to most rate the visual tokens, by their attention to them. After a few layers
the best rated stay, as many as the rank of the raters' attention says (v1.0) or a table (v1.5, v2.0); the better rated of
the others are recycled: clustered by DPC-kNN, one token a cluster, which stand after those kept.

Paper and code: the paper drops lam * (n - rank) tokens; v1.0 keeps scale * rank + bias (the default there, lam=None);
v1.5 and v2.0 have no rank. The paper takes raters at or above the mean relevance, the code those above it (raters=">").
The paper sums a cluster, the code averages it (merge="mean"). The code recycles one token and makes one cluster more
than the shares say (extra=1), and its kNN has as many neighbours as there will be clusters (neighbours=None). It adds
random noise of 1e-6 to the densities: without it the two nearest tokens, equally dense, are both centres whenever two
clusters are asked for. Here the better rated of equals is the denser one (ties="first"); "noise" is the code, "none" the
code without noise. Where no text is above the mean (one text token) the code's scores are NaN; here all text rates.
v1.x numbers what stays 0.. after each cut, so that every layer counts the generated tokens from its own length; v2.0
keeps position ids, recycles nothing, divides the attention by what distance alone would give, and listens only to the
heads that look most. The budgets 192, 128, .. are averages over 32 layers that count the layers 2, 6 and 15 as already
cut: 192 is 206.5 tokens entering a layer. The code drops a token at every cut; here the last one stays, and keep = n
drops nothing.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError, tokens_to_keep, top
from pruning.fields import Amount, AnyLayer, Count, FromOne, NotNegative

LAYERS = {"v1.0": (2, 6, 15, 19), "v1.5": (2, 6, 15), "v2.0": (2, 6, 15)}
TABLES = {      # average of 576 tokens: v1.0 scale and bias; the others the tokens kept after each of LAYERS, without clusters
    "v1.0": {0: (0, 0), 64: (.8, 0), 128: (9, 6), 192: (13.5, 0), 576: (0, 576)},
    "v1.5": {0: (0, 0, 0), 64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110), 576: (576, 576, 576)},
    "v2.0": {0: (0, 0, 0), 64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118), 576: (576, 576, 576)}}


@dataclass(frozen=True)
class SparseVLM(Pruner):
    """Keep the visual tokens that the relevant text attends to; in v1.x recycle some of the others."""

    version: Literal["v1.0", "v1.5", "v2.0"] = "v1.5"  # "v1.0" rank and four cuts, "v1.5" table, "v2.0" table, no recycling
    keep: Amount = 1 / 3               # share, or number, left on average over the layers: a row of the table, or between two
    layers: tuple[AnyLayer, ...] = ()  # cut what leaves these layers (from 0); (): those of LAYERS
    table: tuple[float, ...] = ()      # in place of keep: the tokens kept at each cut; v1.0: scale and bias
    lam: NotNegative | None = None     # v1.0, in place of keep: lambda of the paper's rule
    raters: Literal[">", ">="] = ">"   # text ">" (code) or ">=" (paper) the mean relevance
    recycle: float = 0.3               # tau, share of the dropped tokens that is recycled; 0: none
    clusters: float = 0.1              # theta, clusters as a share of the recycled
    extra: Count = 1                   # one more of both (code), or 0 (paper)
    neighbours: FromOne | None = None  # k of kNN, itself one of them; None: the number of clusters (code)
    merge: Literal["mean", "sum"] = "mean"  # a cluster is the "mean" (code) or "sum" (paper) of its tokens
    ties: Literal["first", "noise", "none"] = "first"  # of equal densities: the "first" is denser, "noise" decides (code), "none" is
    seed: int = 0                      # of the noise
    heads: FromOne = 14                # v2.0: heads that rate

    needs = frozenset({"attn", "prompt"})
    rows = "text"
    preconditions = frozenset({"text"})            # after the image

    def __post_init__(self):
        super().__post_init__()
        if any(a >= b for a, b in zip((-1, *self.cuts), self.cuts)):
            raise UserError(f"SparseVLM: layers must rise from 0 upwards; got {self.layers}")
        wanted = 2 if self.version == "v1.0" else len(self.cuts)
        if len(self.table or TABLES[self.version][0]) != wanted or min(self.table, default=0) < 0:
            what = "scale and bias" if self.version == "v1.0" else f"{wanted} numbers, one a cut"
            raise UserError(f"SparseVLM: table is {what}, none negative; got {self.table or 'none'}")
        if self.lam is not None and (self.version != "v1.0" or self.table):
            raise UserError('SparseVLM: lam is in place of table, and goes with version="v1.0", which has a rank')
        if not (0 <= self.recycle <= 1 and 0 <= self.clusters <= 1):
            raise UserError(f"SparseVLM: recycle and clusters are shares from 0 to 1; got {self.recycle} and {self.clusters}")

    @property
    def cuts(self):
        """The layers whose output is cut."""
        return tuple(self.layers) or LAYERS[self.version]

    @property
    def laws(self):
        if self.version == "v2.0":     # its gravity may be negative, and turn a needle into the worst of all
            return frozenset({"select", "ordered", "scale"})
        return frozenset({"scale", "needle"} | ({"convex"} if self.merge == "mean" else set()))

    @property
    def positions(self):
        return "keep" if self.version == "v2.0" else "renumber"

    def reduce_at(self, layers):
        return tuple(l + 1 for l in self.cuts)

    def schedule(self, n, layers):
        if self.version == "v1.0":
            return None                            # the rank decides
        entering = [n] * layers
        for layer in self.reduce_at(layers):
            k = self._level(entering[-1], n, layer)
            entering[layer:] = [k + self._counts(entering[-1] - k)[1]] * (layers - layer)
        return entering

    def reduce(self, tokens):
        visual, text = _prompt(tokens)
        raters = relevant_text(visual, text, self.raters)                          # (r,)
        attn = tokens.attn[:, raters][:, :, tokens.visual]                         # (H, r, n)
        if self.version == "v2.0":
            attn = attn / self._gravity(tokens, raters)
            attn = attn[top(attn.sum(dim=(1, 2)), self.heads)]                     # (14, r, n)
        attn = attn.mean(dim=0)                                                    # (r, n)    P of the paper
        score = attn.mean(dim=0)                                                   # (n,)
        rank = int(torch.linalg.matrix_rank(attn.nan_to_num())) if self.version == "v1.0" else None
        k = self._level(tokens.n, len(visual), tokens.layer, rank)
        return self._recycled(tokens.hidden[tokens.visual], top(score, k), score)  # top names a NaN

    def _level(self, n, N, layer, rank=None):
        """Sparsification level: how many to keep of n, of N at first, before `layer`; v1.0: under this rank."""
        if not self.table and self.lam is None and tokens_to_keep(self.keep, N) == N:
            return n
        if self.lam is not None or rank == n:
            return max(1, n - int((self.lam or 0) * (n - rank)))
        table = self.table or _table(self.version, self.keep, N)
        k = round(table[self.cuts.index(layer - 1)]) if rank is None else int(table[0] * rank + table[1])
        return max(1, min(k, n - 1))

    def _counts(self, dropped):
        """q, c: so many of the `dropped` tokens are recycled, into so many clusters."""
        if not self.recycle or self.version == "v2.0":
            return 0, 0
        q = min(dropped, int(self.recycle * dropped) + self.extra)
        return q, min(q, max(1, int(self.clusters * q) + self.extra))

    def _recycled(self, hidden, keep, score):
        """Token recycling: the kept tokens, and after them the clusters of the best rated of the others."""
        n, k = len(score), len(keep)
        q, c = self._counts(n - k)
        if not q:
            return Reduction(keep, score=score)
        lost = score.argsort(descending=True, stable=True)[k:k + q]                # (q,)      best first
        drawn = torch.rand(q, generator=torch.Generator().manual_seed(self.seed))
        noise = {"first": None, "noise": drawn, "none": 0 * drawn}[self.ties]      # (q,)
        weight, centre = clustered(hidden[lost], c, self.neighbours, noise)        # (c, q), (c,)
        if self.merge == "mean":
            weight = weight / weight.sum(dim=1, keepdim=True)
        merge = F.one_hot(keep, n).to(weight)                                      # (k, n)
        merge = torch.cat([merge, merge.new_zeros(c, n).index_copy_(1, lost, weight)])       # (k+c, n)
        return Reduction(torch.cat([keep, lost[centre]]), merge, score)

    def _gravity(self, tokens, raters):
        """(r, n) the logit of two vectors of ones, rotated: what distance alone gives. It may be small or negative."""
        angle = tokens.position[:, None] * tokens.frequency                        # (T, Dh/2)
        ones = torch.cat([angle.cos() - angle.sin(), angle.cos() + angle.sin()], dim=1)      # (T, Dh)
        return ones[tokens.text()[raters]] @ ones[tokens.visual].T * ones.shape[1] ** -0.5


def relevant_text(visual, text, raters=">"):
    """(r,) text that rates: each visual token (N, D) shares one vote among the text (m, D); these get more than average."""
    votes = (visual.float() @ text.float().T).softmax(dim=1).mean(dim=0)           # (m,)
    chosen = votes > votes.mean() if raters == ">" else votes >= votes.mean()
    return (chosen | ~chosen.any()).nonzero().squeeze(1)                           # all alike: all rate


def clustered(x, c, neighbours=None, noise=None):
    """DPC-kNN: rows x (q, D), best first -> members (c, q) of each cluster, 0 or 1, and centres (c,), the best first.

    A centre is dense (near to its `neighbours` nearest) and far from any denser row. `noise` (q,) in [0, 1) is added
    to the densities in millionths; without it the first of equals counts as the denser one.
    """
    far = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist") * x.shape[1] ** -0.5    # (q, q)
    near = far.topk(min(len(x), neighbours or c), dim=1, largest=False).values     # (q, k)  itself one of them
    rho = (-near.square().mean(dim=1)).exp()                                       # (q,)    density
    if noise is not None:
        rho = rho + 1e-6 * noise.to(rho)
        denser = rho > rho[:, None]                                                # (q, q)  column than row
    else:
        place = rho.argsort(descending=True, stable=True).argsort()                # (q,)    0: the densest
        denser = place < place[:, None]
    delta = far.masked_fill(~denser, far.max()).min(dim=1).values                  # (q,)    to the nearest denser one
    centre = (rho * delta).argsort(descending=True, stable=True)[:c]               # (c,)
    owner = far[:, centre].argmin(dim=1)                                           # (q,)
    owner[centre] = torch.arange(c, device=x.device)       # equal rows: a centre stays in its own cluster
    return F.one_hot(owner, c).T.float(), centre


def _table(version, keep, N):
    """The row of the table for an average of `keep` of N: between two rows in proportion, as the average is."""
    rows, average = TABLES[version], 576 * keep if isinstance(keep, float) else 576 * keep / N
    low, high = max(b for b in rows if b <= average), min(b for b in rows if b >= average)
    share = (average - low) / (high - low) if high > low else 0
    return [(a + share * (b - a)) * N / 576 for a, b in zip(rows[low], rows[high])]


def _prompt(tokens):
    """Visual rows (N, D) and the text rows after the image (m, D), as they entered layer 0."""
    m = len(tokens.text())             # text is never dropped: these were its last m rows
    if not m:
        raise UserError("SparseVLM: no text follows the image, so nothing can rate it: put the question after <image>")
    is_text = torch.ones(len(tokens.prompt), dtype=torch.bool, device=tokens.visual.device)
    is_text[tokens.prompt_visual] = False
    return tokens.prompt[tokens.prompt_visual], tokens.prompt[is_text][-m:]
