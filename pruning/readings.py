"""Other readings of the papers, what released codes do differently, and weaker variants that a paper compares with.

A paper that leaves something open has several readings, of which the method's own file takes one. Here each other one
is a subclass that changes one step, with a name of its own, so that tables can compare them. `run.py methods
--readings` lists them.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from pruning.adaptprune import AdaptPrune
from pruning.asap import ASAP, FastVBiMask, by_anchors, masses
from pruning.atp import ATP
from pruning.base import Pruner, Reduction, UserError
from pruning.budget import staged, tokens_to_keep
from pruning.cdpruner import CDPruner, most_diverse
from pruning.controls import shares
from pruning.dart import DART
from pruning.fastv import FastV
from pruning.feather import FEATHER, unrotated_logits
from pruning.fields import Amount, Count, FromOne, NotNegative, Range, option
from pruning.fitprune import SingleFitPrune, received
from pruning.hired import HiRED
from pruning.holov import HoloV
from pruning.prumerge import PruMerge, PruMergePlus, full_width
from pruning.pyramiddrop import PyramidDrop
from pruning.ranked import descending, finite, top
from pruning.sparsevlm import SparseVLM, chosen_or_all, relevance
from pruning.visionzip import VisionZip
from pruning.vispruner import VisPruner
from pruning.vtw import VTW

Zero = Annotated[float, Range(0, 0)]
One = Annotated[float, Range(1, 1)]

# --- FastV ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class FastVAllRows(FastV):
    """The paper's text: the attention received from all rows, on average. Later tokens are seen by fewer rows."""

    def score(self, tokens):
        return tokens.before.mean_attention("all")[:, tokens.visual].mean(dim=0)


@dataclass(frozen=True)
class FastVMask(FastV):
    """The released token-mask variant: all tokens stay, and from layer K on the keys of the dropped ones are masked."""

    drops = False

    def reduce(self, tokens):
        return replace(super().reduce(tokens), drop=False)


@dataclass(frozen=True)
class FastVRerank(FastVMask):
    """The released token-mask variant with a cache: it ranks again at each generated token."""

    rerank_each_step = True


@dataclass(frozen=True)
class FastVUnrotated(FastV):
    """FEATHER's criterion only, as a variant in its repository: attention without RoPE, softmax over the image only."""

    laws = frozenset({"select", "ordered", "budget"})
    score = FEATHER.criterion


# --- ASAP: whose attention ranks, in which layers the mask acts, what is merged ---------------------------------------

class MaskInLastLayer:
    """The mask acts only in layer K-1. It does not change the last row there, so all rows from the image on rank."""

    def mask_at(self, layers):
        return tuple(l - 1 for l in self.reduce_at(layers))

    def score(self, tokens):
        rows = tokens.rows("all")                                                  # (T,)
        from_image_on = rows[rows >= tokens.visual[0]]                             # (R,)
        return tokens.before.mean_attention(from_image_on).mean(dim=0)[tokens.visual]


@dataclass(frozen=True)
class ASAPMaskLast(MaskInLastLayer, ASAP):
    """The mask acts only in layer K-1, and all rows rank."""


@dataclass(frozen=True)
class FastVBiMaskLast(MaskInLastLayer, FastVBiMask):
    """FastV with SG-BiMask only in layer K-1, and all rows rank. The same without the mask is fastv_all."""


@dataclass(frozen=True)
class ASAPSaliencyRank(ASAP):
    """Figure 3 has "top-k salient visual tokens": the attention mass s_j ranks."""

    @property
    def laws(self):
        return super().laws - {"needle"}

    def score(self, tokens):
        s, _ = masses(tokens, tokens.before)
        return s


@dataclass(frozen=True)
class ASAPUniformMask(ASAP):
    """What section 4.1 compares with: every later token is equally visible."""

    def discount(self, s_hat):
        return torch.full_like(s_hat, self.lambda_max)


@dataclass(frozen=True)
class ASAPMeanMerge(ASAP):
    """What section 4.2 compares with: redundant tokens are merged by their plain mean."""

    def consolidation(self, keep, absorbs, s_hat):
        return super().consolidation(keep, absorbs, torch.ones_like(s_hat))


@dataclass(frozen=True)
class ASAPSimilarRoute(ASAP):
    """A redundant token goes to the most similar of the anchors that can absorb it, not to the most salient."""

    def route(self, S, can_absorb):
        return S.masked_fill(~can_absorb, float("-inf")).argmax(dim=1)


@dataclass(frozen=True)
class ASAPMaskLastSimilar(ASAPMaskLast):
    """ASAPMaskLast and ASAPSimilarRoute together: the reading of the stored recordings."""

    route = ASAPSimilarRoute.route


@dataclass(frozen=True)
class ASAPDedup(ASAP):
    """A token is salvaged only if it is not redundant with an anchor, or with a token salvaged before it."""

    @property
    def laws(self):
        return super().laws - {"budget"}       # the pool may have too few such tokens

    def pruned_pool(self, tokens, s, kept, anchors):
        pool = super().pruned_pool(tokens, s, kept, anchors)                       # (n-k,)
        # the anchors first, so that they stay anchors
        S = self.similarity(tokens, torch.cat([anchors, pool]))                    # (m, m)
        is_similar = (S > self.threshold).tril(-1)                                 # [j, i]: j is like i, before it
        is_redundant = by_anchors(is_similar).any(dim=1)                           # (m,)
        of_pool = is_redundant[len(anchors):]                                      # (n-k,)
        return pool[~of_pool]


@dataclass(frozen=True)
class ASAPPrunePast(ASAP):
    """The caches of the layers before the cut lose the dropped tokens, too, as the storage in Table 4 suggests."""

    prune_past_kv = True


@dataclass(frozen=True)
class ASAPRenumbered(ASAP):
    """The remaining tokens get position ids 0, 1, ..; they do not keep theirs."""

    positions = "renumber"


# --- AdaptPrune -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class AdaptPruneNormedKeys(AdaptPrune):
    """The paper's "key vectors" as the layer's own keys: with its norm, before RoPE."""

    def keys(self, tokens):
        return tokens.here.projected_key(norm=True)


@dataclass(frozen=True)
class AdaptPruneKeepNewlines(AdaptPrune):
    """Several tiles: newline tokens are always kept."""

    laws = AdaptPrune.laws - {"needle"}

    def score(self, tokens):
        score = super().score(tokens)                                              # (n,)
        is_newline = tokens.grid[:, 1] < 0
        return score.masked_fill(is_newline, score.max() + 1)

    def reduce(self, tokens):
        true_score = super().score(tokens)
        return replace(super().reduce(tokens), score=true_score)                   # this is what pictures show


# --- ATP: what the paper leaves open, equation by equation ----------------------------------------------------------

@dataclass(frozen=True)
class ATPGiven(ATP):
    """Eq. 3 as the order of its arguments suggests: what a token gives to the others, not what it receives."""

    def between_visual(self, tokens):
        return super().between_visual(tokens).T


@dataclass(frozen=True)
class ATPProbs(ATP):
    """Eq. 3 with attention weights, as in Eq. 4, instead of logits: a token receives nothing from earlier ones."""

    def between_visual(self, tokens):
        return tokens.before.mean_attention("visual")[:, tokens.visual]


@dataclass(frozen=True)
class ATPRawScores(ATP):
    """Eq. 6 reads the scores of Eq. 3 and 4 as they are; only Eq. 9 compares normalised ones."""

    def read_by_linear(self, raw, normalised):
        return raw


@dataclass(frozen=True)
class ATPUnnormalised(ATP):
    """The paper to the letter: scores are averaged, and compared with thresholds in (0, 1), without normalisation."""

    def normalised(self, S, alive):
        return S


@dataclass(frozen=True)
class ATPSoftmaxScores(ATP):
    """Each score is a softmax over the tokens that are left."""

    def normalised(self, S, alive):
        return S.masked_fill(~self.is_left(alive), -torch.inf).softmax(dim=1)


@dataclass(frozen=True)
class ATPRankedScores(ATP):
    """Each score is its rank among the tokens that are left, from 1 down to 0."""

    def normalised(self, S, alive):
        is_left = self.is_left(alive)
        S = finite(S, "the attention scores")              # NaN would get a rank
        S = S.masked_fill(~is_left, -torch.inf)
        order = S.argsort(dim=1, descending=True, stable=True)                     # (2, n)
        rank = order.argsort(dim=1)                                                # (2, n)  from 0, the best
        return 1 - rank / (is_left.sum() - 1).clamp_min(1)


@dataclass(frozen=True)
class ATPPooled(ATP):
    """For prompts with another number of visual tokens: the scores of Eq. 6 are pooled to the module's length."""

    def at_length(self, S, N):
        return S if S.shape[1] == N else F.adaptive_avg_pool1d(S, N)


@dataclass(frozen=True)
class ATPDetached(ATP):
    """Training: no gradient goes through the scores that Eq. 6 reads, only through those that Eq. 9 compares."""

    def thresholds(self, i, S, tokens):
        return super().thresholds(i, S.detach(), tokens)


@dataclass(frozen=True)
class ATPMaskedSelf(ATP):
    """Training: the soft mask of a token weakens what it sees of itself, too."""

    sees_itself = False


@dataclass(frozen=True)
class ATPFixedRatio(ATP):
    """Table 2's pre-defined ratio: `counts` tokens are kept before each layer, without thresholds."""

    counts: tuple[FromOne, ...] = option((136, 68, 34), "one number per layer")

    preconditions = frozenset({"text"})

    def __post_init__(self):
        super().__post_init__()
        if len(self.counts) != len(self.layers):
            raise UserError("ATP: counts are numbers from 1, one per layer; "
                            f"got {self.counts} for layers {self.layers}")

    def schedule(self, n, layers):
        stages = [(layer, min(n, k)) for layer, k in zip(self.layers, self.counts)]
        return staged(stages, n, layers)

    def soft_masks(self, tokens, i, alive):
        S = self.normalised(self.scores(tokens, alive), alive)                     # (2, n)
        S_redundant = self.redundant_pruning_score(S)                              # (n,)
        alive_first = S_redundant.masked_fill(alive < 0.5, -torch.inf)             # (n,)
        best = descending(alive_first)[:self.counts[i]]                            # (k,)
        mask = torch.zeros_like(S_redundant).index_fill(0, best, 1)                # (n,)
        return S_redundant, mask[None]


@dataclass(frozen=True)
class ATPRenumbered(ATP):
    """Table 4 without PP: the remaining tokens get position ids 0, 1, ..; they do not keep theirs."""

    positions = "renumber"


@dataclass(frozen=True)
class ATP2D(ATP):
    """Table 4 with PP, the 2-D rotary embedding, which the paper does not define: rows and columns for the image.

    The patch in row r, column c of an image that starts at position p gets (p + r, p + c); text at p gets (p, p). The
    text after an image starts at p + its longer side. Half of the RoPE pairs rotate by the first, half by the second.
    """

    def with_positions(self, tokens):
        if not tokens.n:
            return tokens
        # the step to the next position: 1 after text, 0 inside an image, its longer side after its last token
        step = torch.ones_like(tokens.position).index_fill_(0, tokens.visual, 0)   # (T,)
        for tile in tokens.grid[:, 0].unique():
            in_tile = tokens.grid[:, 0] == tile
            last_row = tokens.visual[in_tile][-1]
            longer_side = tokens.grid[in_tile, 1:].max() + 1
            step[last_row] = longer_side
        start = step.cumsum(0) - step                                              # (T,)
        position = start[:, None].repeat(1, 2)                                     # (T, 2)
        position[tokens.visual] += tokens.grid[:, 1:].clamp_min(0)
        return replace(tokens, position=position, next_position=int(step.sum()))


# --- FEATHER, DART, CDPruner ------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class FEATHERRow(FEATHER):
    """The softmax is over the whole row, as in FastV: a head that looks at the text has a small vote."""

    def criterion(self, tokens):
        logits = unrotated_logits(tokens) + tokens.before.mask("last")             # (H, T)
        return logits.softmax(dim=1).mean(dim=0)[tokens.visual]


@dataclass(frozen=True)
class DARTReleased(DART):
    """The released code: each pivot adds floor(keep / pivots) tokens, and the image's pivots come on top, so that 132
    are left for 128. Pivots are visited in the order of a Python set of row numbers: a longer system prompt changes the
    choice."""

    laws = frozenset({"select", "ordered"})

    def visited(self, pivots):
        rows = set(pivots.tolist())
        return pivots.new_tensor(list(rows))

    def budget(self, n):
        """If as many text tokens as text_pivots follow the image."""
        pivots = self.image_pivots + self.text_pivots
        each = super().budget(n) // pivots
        return min(n, self.image_pivots + pivots * each)

    def additions(self, k, image_pivots, pivots):
        each = (k - image_pivots) // (self.image_pivots + self.text_pivots)
        return [each] * pivots


@dataclass(frozen=True)
class CDPrunerUnconditioned(CDPruner):
    """Section 3.2: diversity only, whatever is asked (Eq. 4 with the kernel of Eq. 3)."""

    preconditions = frozenset()

    def relevances(self, tokens, feature):
        return torch.ones_like(feature[:, 0])


@dataclass(frozen=True)
class CDPrunerTiles(CDPruner):
    """The released code: each tile by itself. Its share of the budget is that of its tokens."""

    def picks(self, tokens, feature, r):
        picked = []
        for tile, k in shares(tokens.grid, self.budget(tokens.n)):                 # (m,) indices of each tile's tokens
            picked.append(tile[most_diverse(feature[tile], r[tile], k)])
        return torch.cat(picked)


@dataclass(frozen=True)
class CDPrunerTheta(CDPruner):
    """A comment in the released code: how much relevance counts against diversity, exp(theta / (2 (1 - theta)) r)."""

    theta: Annotated[float, Range(0, 0.99)] = option(0.5, "how much relevance counts; 0: diversity only")

    def relevances(self, tokens, feature):
        r = super().relevances(tokens, feature)                                    # (n,)
        return torch.exp(self.theta / (2 * (1 - self.theta)) * r)


# --- VisPruner, HoloV -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class FasterVLM(VisPruner):
    """FasterVLM, as the first version of the paper (v1) calls its method: all T tokens are chosen by attention."""

    important: One = option(1.0, "r: all of T")

    laws = VisPruner.laws | {"needle"}


@dataclass(frozen=True)
class HoloVReleased(HoloV):
    """The released code: a crop's score has a term for the variance of its features, which cancels, and what a crop
    cannot hold is lost: rows of zeros, in the places of the first tokens not kept, make up the number."""

    crops: FromOne | None = option(16, "number of crops")

    laws = frozenset({"budget", "disjoint"})

    def crop_score(self, attention, feature):
        m = len(attention)
        if m == 1:
            return attention[0]
        # how much the similarities of each token to the others vary
        feature = feature.float()
        unit = feature / (feature.norm(dim=1, keepdim=True) + 1e-6)                # (m, C)
        similarity = (unit @ unit.T).fill_diagonal_(0)                             # (m, m)
        mean = similarity.sum(dim=1, keepdim=True) / (m - 1)                       # (m, 1)
        variance = (similarity - mean).square().sum(dim=1) / (m - 1)               # (m,)
        # both terms at the same scale
        attention = 1000 * attention                                               # (m,)
        scale = attention.abs().mean() / (variance.abs().mean() + 1e-6)
        return (attention + 0.09 * scale * variance).mean()

    def quotas(self, k, score, size):
        share = score / (score.sum() + 1e-6)                                       # (crops,)
        quota = (share * k).long()
        rest = k - int(quota.sum())
        quota[descending(share)[:rest]] += 1
        return quota

    def reduce(self, tokens):
        r = super().reduce(tokens)
        lost = self.budget(tokens.n) - len(r.keep)
        if lost == 0:
            return r
        one_hot = F.one_hot(r.keep, tokens.n).float()                              # (k-lost, n)
        is_left_out = one_hot.sum(dim=0) == 0                                      # (n,)
        place = is_left_out.nonzero().squeeze(1)[:lost]
        zeros = one_hot.new_zeros(lost, tokens.n)
        return replace(r, keep=torch.cat([r.keep, place]), merge=torch.cat([one_hot, zeros]))


# --- PruMerge, HiRED, PyramidDrop, FitPrune, VTW, VisionZip -----------------------------------------------------------

@dataclass(frozen=True)
class PruMergeAverage(PruMerge):
    """The paper's text: each row is an average weighted by attention, that of the kept token, too."""

    @property
    def laws(self):
        return super().laws | {"convex"}

    def attention_and_keys(self, tokens):
        attention, key = super().attention_and_keys(tokens)
        tiny = torch.finfo(attention.dtype).tiny           # so that no sum of weights is 0
        return attention.clamp_min(tiny), key

    def own_weight(self, attention):
        return attention

    def normalised(self, merge):
        return merge / merge.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class PruMergePaper(PruMergeAverage):
    """The paper's text throughout: weighted averages; attention of the block that makes the features, mean over heads;
    only pruned tokens are merged, and there is no pooled token."""

    merges_kept = False
    pooled = 0

    @property
    def laws(self):
        return super().laws | {"needle"}

    def attention_and_keys(self, tokens):
        attention = tokens.before.cls_attention().mean(dim=0)                      # (n,)
        tiny = torch.finfo(attention.dtype).tiny
        key = full_width(tokens.before.key())                                      # (T, C)
        return attention.clamp_min(tiny), key[tokens.visual]


@dataclass(frozen=True)
class PruMergePlusReleased(PruMergePlus):
    """The released fixed-ratio PruMerge+: a strong patch that is also sampled is kept twice, and for each of these the
    first patch of the rest is lost."""

    keep: Amount = option(0.25, "share, or number, of each tile's tokens left")

    laws = frozenset()

    def selected(self, attention):
        m = len(attention)
        half = (self.count(attention) + 1) // 2
        strong = descending(attention)[:half]
        step = m // max(1, len(strong))
        sample = torch.arange(step // 2, m - 1, step, device=attention.device)
        return torch.cat([strong, sample])

    def not_kept(self, attention, kept):
        rest = super().not_kept(attention, kept)
        kept_twice = len(kept) + len(rest) - len(attention)
        return rest[kept_twice:]


@dataclass(frozen=True)
class HiREDSum(HiRED):
    """The paper's text: the content of a part is the sum of its attention."""

    laws = HiRED.laws - {"scale"}      # rounding may turn a scaled sum into another budget

    def content(self, attention):
        return attention


@dataclass(frozen=True)
class HiREDGrid(HiREDSum):
    """The paper's text: a part is the tile's region of the picture. `grid` says how the tiles lie."""

    grid: tuple[FromOne, FromOne] = option((2, 2), "rows and columns of the tiles")

    def parts(self, place, tiles):
        rows, columns = self.grid
        if rows * columns != tiles:
            raise UserError(f"HiRED: grid {rows},{columns} does not fit the {tiles} tiles of this image")
        place = place.clamp_min(0)         # a class token counts as part of the first tile
        height, width = place[:, 1:].amax(dim=0) + 1
        row_of_tile = place[:, 1] * rows // height
        column_of_tile = place[:, 2] * columns // width
        return row_of_tile * columns + column_of_tile


@dataclass(frozen=True)
class PyramidDropKept(PyramidDrop):
    """The remaining tokens keep their position ids."""

    positions = "keep"


@dataclass(frozen=True)
class SingleFitPruneMean(SingleFitPrune):
    """Attention is the mean over heads, as in FastV, not the largest."""

    def score(self, tokens):
        cross, own = received(tokens, over_heads=mean_over_heads)
        return cross * own


def mean_over_heads(view, rows):
    """(R, T) attention of these rows, mean over heads"""
    return view.mean_attention(rows)


@dataclass(frozen=True)
class VTWRenumbered(VTW):
    """An option of the released code: after the withdrawal the text gets position ids 0, 1, ..."""

    positions = "renumber"


@dataclass(frozen=True)
class VTWRandom(VTW):
    """The released control: n positions are drawn from the whole prompt, and the visual tokens among them are dropped.

    The code also drops the text among them. The choice depends on the length of the text.
    """

    seed: int = option(0, "of the draw")

    laws = frozenset({"select", "ordered", "scale"})

    def budget(self, n):
        return None                    # the draw decides

    def with_average(self, average, n, layers):
        return Pruner.with_average(self, average, n, layers)

    def reduce(self, tokens):
        T = len(tokens.hidden)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(T, generator=generator)[:tokens.n]                  # (n,)  rows
        is_drawn = torch.isin(tokens.visual.cpu(), drawn)                          # (n,)
        return Reduction((~is_drawn).nonzero().squeeze(1).to(tokens.visual.device))


@dataclass(frozen=True)
class VisionZipAverage(VisionZip):
    """The paper's text: a contextual token is the average of the target and its members."""

    laws = VisionZip.laws | {"convex"}

    def weights(self, members, target):
        members = members.scatter(1, target[:, None], 1.0)
        return members / members.sum(dim=1, keepdim=True)


# --- without a class token --------------------------------------------------------------------------------------------

class ByReceived:
    """Importance without a class token, as in InternVL and SigLIP: the attention received from the patches of the tile,
    on average. It ranks in place of the class token's attention."""

    preconditions = frozenset()

    def importance(self, view):
        return view.received()


@dataclass(frozen=True)
class VisPrunerReceived(ByReceived, VisPruner):
    """Without a class token: patches rank by the attention they receive from all patches of their tile."""


@dataclass(frozen=True)
class VisionZipReceived(ByReceived, VisionZip):
    """Without a class token: patches rank by the attention they receive from all patches of their tile."""

    cls: bool = option(False, "the class token, if there is one, is a visual token, and the first dominant one")

    @property
    def preconditions(self):
        return frozenset({"cls"} if self.cls else ())


@dataclass(frozen=True)
class HiREDReceived(ByReceived, HiRED):
    """Without a class token: patches rank by the attention they receive from all patches of their tile."""

    base: Literal["first", "last"] = option("last", "the tile that shows the whole picture; last: InternVL's thumbnail")

    def tiles(self, grid):
        tiles = super().tiles(grid)
        return tiles if self.base == "first" else [tiles[-1], *tiles[:-1]]

    def reduce(self, tokens):
        r = super().reduce(tokens)
        return replace(r, keep=r.keep.sort().values)       # in sequence order, whichever tile comes first


@dataclass(frozen=True)
class HoloVReceived(ByReceived, HoloV):
    """Without a class token: patches rank by the attention they receive from all patches of their tile."""


class PruMergeByReceived:
    """Attention and keys of a PruMerge without a class token."""

    preconditions = frozenset()

    def attention_and_keys(self, tokens):
        key = full_width(tokens.before.key())                                      # (T, C)
        return tokens.before.received(), key[tokens.visual]


@dataclass(frozen=True)
class PruMergeReceived(PruMergeByReceived, PruMerge):
    """Without a class token: the attention that patches receive from all patches of their tile, and keys, both of the
    block that makes the features."""


@dataclass(frozen=True)
class PruMergePlusReceived(PruMergeByReceived, PruMergePlus):
    """Without a class token: the attention that patches receive from all patches of their tile, and keys, both of the
    block that makes the features."""


# --- SparseVLM --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class SparseVLMRank(SparseVLM):
    """v1.0: four cuts, and scale * rank + bias tokens are kept, by the rank of the raters' attention matrix."""

    layers: tuple[Count, ...] = option((2, 6, 15, 19), "cut after each of these layers")
    table: tuple[NotNegative, ...] = option((), "instead of keep: scale and bias")

    TABLE = {
        0: (0, 0),
        64: (.8, 0),
        128: (9, 6),
        192: (13.5, 0),
        576: (0, 576),
    }
    table_length = 2

    def schedule(self, n, layers):
        return None                    # the rank decides

    def level(self, n, N, cut, P=None):
        if not self.table and tokens_to_keep(self.keep, N) == N:
            return n
        rank = rank_of(P)
        if rank == n:
            return n
        scale, bias = self.table or self.row_of_table(N)
        k = int(scale * rank + bias)
        k = min(k, n - 1)              # at least one is dropped
        return max(1, k)


@dataclass(frozen=True)
class SparseVLMPaper(SparseVLMRank):
    """The paper's text: lam * (n - rank) tokens are dropped, raters are at or above the mean, a cluster is a sum."""

    lam: NotNegative = option(1.0, "lambda")

    laws = frozenset({"scale", "needle", "disjoint"})
    extra = 0

    def __post_init__(self):
        super().__post_init__()
        if self.table:
            raise UserError("SparseVLMPaper: lam says how many tokens are dropped, not a table")

    def level(self, n, N, cut, P=None):
        dropped = int(self.lam * (n - rank_of(P)))
        return max(1, n - dropped)

    def relevant_text(self, visual, text):
        votes = relevance(visual, text)
        return chosen_or_all(votes >= votes.mean())

    def cluster_weights(self, members):
        return members


def rank_of(P):
    """The rank of the raters' attention matrix (r, n)."""
    return int(torch.linalg.matrix_rank(P.nan_to_num()))


@dataclass(frozen=True)
class SparseVLMPlus(SparseVLM):
    """v2.0: nothing is recycled, and position ids are kept. Attention is divided by its value for distance alone, and
    only the heads with the most attention to the image count."""

    heads: FromOne = option(14, "heads that count")
    recycle: Zero = option(0.0, "tau")

    laws = frozenset({"select", "ordered", "scale"})       # not needle: gravity may be negative
    positions = "keep"
    TABLE = {
        0: (0, 0, 0),
        64: (66, 34, 20),
        96: (246, 54, 28),
        128: (238, 108, 60),
        192: (300, 200, 118),
        576: (576, 576, 576),
    }

    def rating(self, tokens, raters):
        attention = tokens.before.attention(raters)[:, :, tokens.visual]           # (H, r, n)
        attention = attention / self.gravity(tokens, raters)
        looks_most = top(attention.sum(dim=(1, 2)), self.heads)                    # (14,)
        return attention[looks_most].mean(dim=0)                                   # (r, n)

    def gravity(self, tokens, raters):
        """(r, n) logit of two rotated vectors of ones: the value for distance alone. It may be small or negative."""
        Dh = tokens.before.key().shape[-1]
        ones = torch.ones(len(tokens.hidden), Dh, device=tokens.visual.device)
        ones = tokens.before.rotated(ones)                                         # (T, Dh)
        return ones[raters] @ ones[tokens.visual].T / Dh ** 0.5


READINGS = {
    "fastv_all": FastVAllRows,
    "fastv_mask": FastVMask,
    "fastv_rerank": FastVRerank,
    "fastv_bimask_last": FastVBiMaskLast,
    "fastv_unrotated": FastVUnrotated,
    "asap_mask_last": ASAPMaskLast,
    "asap_mask_last_similar": ASAPMaskLastSimilar,
    "asap_saliency_rank": ASAPSaliencyRank,
    "asap_uniform_mask": ASAPUniformMask,
    "asap_mean_merge": ASAPMeanMerge,
    "asap_similar_route": ASAPSimilarRoute,
    "asap_dedup": ASAPDedup,
    "asap_prune_past": ASAPPrunePast,
    "asap_renumbered": ASAPRenumbered,
    "adaptprune_normed_keys": AdaptPruneNormedKeys,
    "adaptprune_newlines": AdaptPruneKeepNewlines,
    "atp_given": ATPGiven,
    "atp_probs": ATPProbs,
    "atp_raw_scores": ATPRawScores,
    "atp_unnormalised": ATPUnnormalised,
    "atp_softmax_scores": ATPSoftmaxScores,
    "atp_ranked_scores": ATPRankedScores,
    "atp_pooled": ATPPooled,
    "atp_detached": ATPDetached,
    "atp_masked_self": ATPMaskedSelf,
    "atp_fixed_ratio": ATPFixedRatio,
    "atp_renumbered": ATPRenumbered,
    "atp_2d": ATP2D,
    "feather_row": FEATHERRow,
    "dart_released": DARTReleased,
    "cdpruner_unconditioned": CDPrunerUnconditioned,
    "cdpruner_tiles": CDPrunerTiles,
    "cdpruner_theta": CDPrunerTheta,
    "fastervlm": FasterVLM,
    "holov_released": HoloVReleased,
    "prumerge_average": PruMergeAverage,
    "prumerge_paper": PruMergePaper,
    "prumerge_plus_released": PruMergePlusReleased,
    "hired_sum": HiREDSum,
    "hired_grid": HiREDGrid,
    "pyramiddrop_kept": PyramidDropKept,
    "fitprune_single_mean": SingleFitPruneMean,
    "vtw_renumbered": VTWRenumbered,
    "vtw_random": VTWRandom,
    "visionzip_average": VisionZipAverage,
    "vispruner_received": VisPrunerReceived,
    "visionzip_received": VisionZipReceived,
    "hired_received": HiREDReceived,
    "holov_received": HoloVReceived,
    "prumerge_received": PruMergeReceived,
    "prumerge_plus_received": PruMergePlusReceived,
    "sparsevlm_rank": SparseVLMRank,
    "sparsevlm_paper": SparseVLMPaper,
    "sparsevlm_plus": SparseVLMPlus,
}
