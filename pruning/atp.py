"""ATP-LLaVA. Ye et al., "Adaptive Token Pruning for Large Vision Language Models", CVPR 2025, arXiv:2412.00447.

How many tokens a layer needs depends on picture and question. In front of some layers a small module reads the attention of
the layer before and predicts two thresholds: one for the attention that a visual token receives (redundant pruning), one for
a score of its place that favours uniform samples of the grid (spatial pruning). What passes either is kept. In training
nothing is dropped: soft masks inside the softmax let gradients reach the thresholds, and two losses ask for few tokens.

Paper and code: no code is public and the paper leaves much open. What is chosen here, and the options that change it:
    Eq. 3-4  A(v_n, v_m) is what v_n receives from v_m, as the prose says (self_rows). Means are over heads too; logits are
             those of Eq. 1, after the rotary embedding and before the causal mask (self_source); t_m is the text after the
             image, in training the first question, which has seen no answer. Logits and probabilities have no common scale
             and theta is in (0, 1): each score is brought to [0, 1] over the tokens that are left (score_norm).
    Eq. 5    The sampling rates are not given: nested strides, R = 1/stride^2 of the original grid, for good. "Higher rates
             are given higher scores" contradicts the equation, which is followed.
    Eq. 6    Linear needs a fixed length: 2N of the unpruned image, 0 in the place of what is gone (fit). The width of z and
             its activation are not given ("MLP"), nor how the thresholds start: see Thresholds, one for each module.
    Eq. 9    T is "sufficiently large" (temperature). At inference the rule is hard: Mask >= 1/2; min_keep tokens are left.
    Softmax  "We followed [41]", whose tokens see themselves whatever their mask (own_key). Masks act in all layers from
             theirs on, multiplied: what is pruned stays pruned.
    Eq. 12   Sum(Mask) is that of this product. Eq. 13 averages over all layers, those before the first module with 576.
    2-D      rotary embedding is named, not defined (position_ids="2d", see placed). Frozen decoders keep 1-D ids.
"the i_k-th layer" counts from one: Table 2 counts from 0 "prior to input", and its averages hold only so, as `layers` here.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pruning.base import Pruner, Reduction, UserError, staged, top
from pruning.fields import AnyLayer, Count, FromOne, NotNegative, Positive

ACTIVATIONS = {"none": lambda z: z, "relu": F.relu, "gelu": F.gelu}


class Thresholds(nn.Module):
    """3.3.2 The learnable part of one ATP module: the scores of N visual tokens -> theta_r, theta_s."""

    def __init__(self, N=576, width=256, activation="none", theta_r=0.3, theta_s=0.5):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"ATP: activation is one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        self.N, self.activation = N, activation
        self.linear, self.linear_r, self.linear_s = nn.Linear(2 * N, width), nn.Linear(width, 1), nn.Linear(width, 1)
        for head, theta in ((self.linear_r, theta_r), (self.linear_s, theta_s)):   # at first the same for all instances
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, math.log(theta / (1 - theta)))

    def forward(self, S_self, S_cross):
        """(.., N) twice -> (.., 1) twice, in (0, 1)"""
        z = ACTIVATIONS[self.activation](self.linear(torch.cat([S_self, S_cross], dim=-1)))        # Eq. 6
        theta_r = self.linear_r(z).float().sigmoid()                               # Eq. 7
        theta_s = self.linear_s(z).float().sigmoid()                               # Eq. 8
        return theta_r, theta_s


@dataclass(frozen=True)
class ATP(Pruner):
    """Adaptive Token Pruning: what passes one of two thresholds, predicted for each prompt and layer, is kept."""

    module: nn.ModuleList | None = None  # the trained Thresholds, one a layer; on the command line a folder with them
    layers: tuple[AnyLayer, ...] = (4, 14, 24)  # I: the modules stand before these; the paper's other choice is 1, 13, 25
    strategy: Literal["both", "redundant", "spatial"] = "both"  # Table 4: "both" thresholds, "redundant" or "spatial" alone
    score: Literal["both", "self", "cross"] = "both"  # Table 5: rank by "both" modalities, "self" or "cross"
    self_rows: Literal["received", "given"] = "received"  # Eq. 3: mean of what a token "received", or has "given"
    self_source: Literal["logits", "probs"] = "logits"  # Eq. 3: of the "logits", or of the "probs"
    score_norm: Literal["minmax", "none", "softmax", "rank"] = "minmax"  # before thresholds: "minmax", "softmax", "rank" over what is left, or "none"
    eps: Positive = 1e-6               # of "minmax"
    strides: tuple[FromOne, ...] = (2, 4, 8)  # Eq. 5: every so many rows and columns are a sample
    lambda_sample: NotNegative = 3.0   # Eq. 5
    temperature: Positive = 100.0      # T of Eq. 9 and 10
    fit: Literal["exact", "pool"] = "exact"  # prompts of another length than the module's: refused, or "pool" the scores to it
    detach_scores: bool = False        # training: no gradient through the scores that Linear reads
    own_key: bool = True               # training: the softmax mask leaves the diagonal alone
    position_ids: Literal["keep", "renumber", "2d"] = "keep"  # of survivors: "keep", "renumber", or "2d": kept, and rows and columns for the image
    min_keep: Count = 1                # so many are left at least: the best by S_redundant
    counts: tuple[FromOne, ...] = ()   # Table 2's pre-defined ratio: so many are left after each layer, without thresholds
    depth: FromOne | None = None       # decoder layers of the model that the module was trained for

    needs = frozenset({"attn", "logits"})
    rows = "all"
    across_heads = "mean"
    laws = frozenset({"select", "ordered"})
    preconditions = property(lambda self: frozenset({"text"} | (set() if self.counts else {"training"})))
    positions = property(lambda self: "renumber" if self.position_ids == "renumber" else "keep")

    def __post_init__(self):
        super().__post_init__()
        if not self.layers or self.layers[0] < 1 or any(a >= b for a, b in zip(self.layers, self.layers[1:])):
            raise UserError(f"ATP: layers rise from 1 on, as before layer 0 there is no attention to read; got {self.layers}")
        if not self.strides or min(self.strides) ** 2 <= self.lambda_sample:
            raise UserError(f"ATP: 1 - lambda_sample / stride^2 must be in (0, 1]; got lambda_sample {self.lambda_sample} and "
                            f"strides {self.strides}")
        if self.counts and len(self.counts) != len(self.layers):
            raise UserError(f"ATP: counts are numbers from 1 on, one a layer; got {self.counts} for layers {self.layers}")
        if self.module is not None and len(self.module) != len(self.layers):
            raise UserError(f"ATP: {len(self.layers)} layers {self.layers} need as many modules, and {len(self.module)} were "
                            "trained")

    def reduce_at(self, layers):
        return tuple(self.layers)

    def schedule(self, n, layers):
        return staged(zip(self.layers, (min(n, k) for k in self.counts)), n, layers) if self.counts else None

    @torch.no_grad()
    def reduce(self, tokens):
        is_text = torch.zeros(len(tokens.hidden), device=tokens.visual.device).index_fill_(0, tokens.text(), 1)
        if not is_text.any():
            raise UserError("ATP: no text follows the image, so no row looks at it: put the question after <image>")
        alive, i = torch.ones(tokens.n, device=tokens.visual.device), self.layers.index(tokens.layer)
        S_self, S_cross, S_redundant = self.redundant_pruning_score(tokens.logits, tokens.attn, tokens.visual, is_text, alive)
        if self.counts:
            return Reduction(top(S_redundant, self.counts[i]), score=S_redundant)
        S_spatial = self.spatial_pruning_score(tokens.cell)
        theta_r, theta_s = self.thresholds(i, S_self, S_cross, tokens.origin, tokens.entered)
        if (theta_r + theta_s).isnan():    # nothing would pass them
            raise UserError("ATP: the attention or the module contains NaN: the model overflowed; load it in float32 or bfloat16")
        passes = torch.stack(self.above(S_redundant, S_spatial, theta_r, theta_s)) >= 0            # (1 or 2, n)
        k = max(int(passes.any(dim=0).sum()), min(self.min_keep, tokens.n))
        keep = top(S_redundant.masked_fill(passes.any(dim=0), torch.inf), k)       # (k,)
        rule = None if self.strategy != "both" else torch.where(passes[1], 1 + passes[0].long(), 0)[keep]
        return Reduction(keep, score=S_redundant, rule=rule, rules=("redundant", "spatial", "both"))

    def redundant_pruning_score(self, logits, attn, visual, is_text, alive):
        """3.3.1 Normalised S_self and S_cross, and S_redundant, of visual rows (.., n): (.., n) each.

        logits, attn (.., H, T, T); is_text (.., T) 1 where a row asks; alive (.., n) the mask so far, 1s at inference.
        """
        A_logits, A = (x.mean(dim=-3, dtype=torch.float32) for x in (logits, attn))                # (.., T, T)
        to_visual = A.take_along_dim(visual[..., None, :], dim=-1)                 # (.., T, n)
        source = A_logits if self.self_source == "logits" else A
        within = source.take_along_dim(visual[..., None, :], dim=-1).take_along_dim(visual[..., None], dim=-2)  # (.., n, n)
        S_self = _mean(within if self.self_rows == "received" else within.mT, alive)               # Eq. 3
        S_cross = _mean(to_visual, is_text)                                        # Eq. 4
        S_self, S_cross = self._normalised(S_self, alive), self._normalised(S_cross, alive)
        return S_self, S_cross, dict(both=(S_self + S_cross) / 2, self=S_self, cross=S_cross)[self.score]

    def _normalised(self, S, alive):
        left = (alive >= 0.5) | (alive == alive.amax(dim=-1, keepdim=True))        # (.., n)  in the order of the hard rule
        if self.score_norm == "minmax":
            low = S.masked_fill(~left, torch.inf).amin(dim=-1, keepdim=True)
            span = S.masked_fill(~left, -torch.inf).amax(dim=-1, keepdim=True) - low
            return (S - low) / (span + self.eps)                                   # all equal: all 0
        if self.score_norm == "softmax":
            return S.masked_fill(~left, -torch.inf).softmax(dim=-1)
        if self.score_norm == "rank":
            order = S.masked_fill(~left, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
            return 1 - order / (left.sum(dim=-1, keepdim=True) - 1).clamp_min(1)
        return S

    def spatial_pruning_score(self, cell):
        """3.3.1 S_spatial (.., n) of the cells (.., n, 3): of the rarest sample that a token is in; 0 in none."""
        tile, row, column = cell.unbind(dim=-1)
        S_spatial = torch.zeros(row.shape, device=cell.device)
        for stride in sorted(self.strides):
            R = 1 / stride ** 2
            sampled = (row % stride == 0) & (column % stride == 0) & (row >= 0)
            S_spatial = torch.where(sampled, 1 - R * self.lambda_sample, S_spatial)                # Eq. 5
        return S_spatial

    def thresholds(self, k, S_self, S_cross, origin, N):
        """theta_r, theta_s (.., 1) of module k: its scores (.., n) in their places `origin` among N, 0 elsewhere."""
        if self.module is None:
            raise UserError("ATP needs a module trained for the model: make one with `python run.py train atp`, then give its "
                            "folder as --set module=DIR")
        module = self.module[k]
        if N != module.N and self.fit == "exact":
            raise UserError(f"ATP: this module was trained on {module.N} visual tokens and the prompt has {N}: train one for "
                            "it, or set fit=pool")
        S = [x.new_zeros(*x.shape[:-1], N).index_copy(-1, origin, x) for x in (S_self, S_cross)]
        S = [F.adaptive_avg_pool1d(x.view(-1, 1, N), module.N).view(*x.shape[:-1], -1) for x in S] if N != module.N else S
        return module(*(x.detach() if self.detach_scores else x for x in S))

    def above(self, S_redundant, S_spatial, theta_r, theta_s):
        """How far each token lies above each threshold that counts: (.., n) once or twice."""
        both = dict(redundant=S_redundant - theta_r, spatial=S_spatial - theta_s)
        return list(both.values()) if self.strategy == "both" else [both[self.strategy]]

    # --- training: nothing is dropped ------------------------------------------------------------------------------------

    def soft_mask(self, k, logits, attn, visual, is_text, cell, mask):
        """The running mask (.., N) after module k, from that before it: differentiable, and close to what `reduce` keeps."""
        S_self, S_cross, S_redundant = self.redundant_pruning_score(logits, attn, visual, is_text, mask)
        N = mask.shape[-1]
        if self.counts:
            best = S_redundant.masked_fill(mask < 0.5, -torch.inf).argsort(dim=-1, descending=True, stable=True)
            return mask * torch.zeros_like(mask).scatter(-1, best[..., :self.counts[k]], 1)
        theta_r, theta_s = self.thresholds(k, S_self * mask, S_cross * mask, torch.arange(N, device=mask.device), N)
        above = self.above(S_redundant, self.spatial_pruning_score(cell), theta_r, theta_s)
        masks = [(x * self.temperature).sigmoid() for x in above]                  # Eq. 9, Eq. 10
        return mask * torch.stack(masks).amax(dim=0)                               # Eq. 11

    def softmax_mask(self, causal, visual, mask):
        """The additive mask (.., 1, T, T) for the columns of the visual rows (.., N): exp(logit) times mask, before the sum."""
        column = mask.new_ones(*mask.shape[:-1], causal.shape[-1]).scatter(-1, visual.expand_as(mask), mask)       # (.., T)
        log = column.clamp_min(torch.finfo(column.dtype).tiny).log()[..., None, None, :]           # (.., 1, 1, T)
        own = torch.eye(len(causal), device=causal.device) if self.own_key else 0
        return causal + log * (1 - own)

    def placed(self, tokens):
        """The prompt with the position ids that the decoder shall give it.

        "2d": the patch in row r, column c of an image that starts at p is (p + r, p + c), the text after it goes on at
        p + the longer side, and text is (p, p). Half of the rotary embedding's frequencies turn by the first, half by the second.
        """
        if self.position_ids != "2d" or not tokens.n:
            return tokens
        length = torch.ones_like(tokens.position).index_fill_(0, tokens.visual, 0)             # (T,) ids that a row uses up
        for tile in tokens.cell[:, 0].unique():
            own = tokens.cell[:, 0] == tile
            length[tokens.visual[own][-1]] = tokens.cell[own, 1:].max() + 1
        position = (length.cumsum(0) - length)[:, None].repeat(1, 2)               # (T, 2)
        position[tokens.visual] += tokens.cell[:, 1:].clamp_min(0)
        return replace(tokens, position=position, next=int(length.sum()))


def budget_losses(masks, layers, depth, target):
    """3.3.3 L_ATP, L_target and the average N of tokens in a layer, of a batch: masks (modules, B, N) after each layer of I.

    Kept 126, 88, 20 of 576 before layers 4, 14, 24 of 32, target 144 -> 3.847, 0.125, 143.875.
    """
    remaining, N = masks.sum(dim=-1), masks.shape[-1]                              # (modules, B)
    i = masks.new_tensor(layers)                                                   # (modules,)
    L_ATP = (remaining / N * i[:, None]).sum(dim=0).mean()                         # Eq. 12
    lengths = torch.cat([i[1:], i.new_tensor([depth])]) - i                        # layers that run on each mask
    N_bar = (N * i[0] + (remaining * lengths[:, None]).sum(dim=0)).mean() / depth
    L_target = (N_bar - target).abs()                                              # Eq. 13
    return L_ATP, L_target, N_bar


def full_loss(L_ntp, L_ATP, L_target, lambda_ATP=0.05, lambda_target=0.2):
    """3.3.3 What training minimises."""
    return L_ntp + L_ATP * lambda_ATP + L_target * lambda_target                   # Eq. 14


def _mean(x, weight):
    """Mean of the rows of x (.., m, n) by weights (.., m)."""
    return (x * weight[..., None]).sum(dim=-2) / weight.sum(dim=-1, keepdim=True)
