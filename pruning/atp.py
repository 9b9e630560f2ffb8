"""ATP-LLaVA. Ye et al., "Adaptive Token Pruning for Large Vision Language Models", CVPR 2025, arXiv:2412.00447.

How many tokens a layer needs depends on picture and question. Before some layers a small module reads the attention of
the previous layer and predicts two thresholds: one for the attention that a visual token receives (redundant pruning),
one for a score of its place, which is high on regular samples of the grid (spatial pruning). A token above either
threshold is kept. In training nothing is dropped: soft masks inside the softmax let gradients reach the thresholds, and
two losses push towards few tokens.

Paper and code: no code is public. Logits and probabilities have no common scale and the thresholds are in (0, 1), so
each score is first brought to [0, 1]. Positions are 1-D, since a pretrained LLaVA has no others. The other choices are
in the card (README.md) and in readings/.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pruning.base import Pruner, Reduction, UserError
from pruning.fields import AnyLayer, FromOne, NotNegative, Positive, option
from pruning.ranked import finite, top

ACTIVATIONS = {"none": nn.Identity(), "relu": F.relu, "gelu": F.gelu}
UNTRAINED = ("ATP needs a module trained for the model: make one with `python run.py train atp`, then give its folder "
             "as --set module=DIR")


@dataclass(frozen=True)
class ATP(Pruner):
    """Adaptive Token Pruning: keep the tokens above one of two thresholds, predicted for each prompt and layer."""

    layers: tuple[AnyLayer, ...] = option((4, 14, 24), "I: modules act before these, from 0; or 1, 13, 25")
    strategy: Literal["both", "redundant", "spatial"] = option("both", "Table 4: which thresholds count")
    score: Literal["both", "self", "cross"] = option("both", "Table 5: whose attention makes S_redundant")
    strides: tuple[FromOne, ...] = option((2, 4, 8), "Eq. 5: a sample is every 2nd, 4th, 8th row and column")
    lambda_sample: NotNegative = option(3.0, "Eq. 5")
    temperature: Positive = option(100.0, "T of Eq. 9 and 10: 'sufficiently large'")
    module: nn.ModuleList | None = option(None, "trained Thresholds, one per layer; in commands a folder")
    depth: FromOne | None = option(None, "decoder layers of the model that it was trained for")

    laws = frozenset({"select", "ordered"})
    preconditions = frozenset({"text", "training"})
    min_keep = 1                       # if fewer pass, this many are kept, the best by S_redundant
    eps = 1e-6                         # of the normalisation
    sees_itself = True                 # training: the mask does not change what a token sees of itself

    def __post_init__(self):
        super().__post_init__()
        layers = list(self.layers)
        is_rising = layers == sorted(set(layers))
        if not layers or not is_rising or layers[0] < 1:
            raise UserError("ATP: layers must rise from 1, as before layer 0 there is no attention to read; "
                            f"got {self.layers}")
        if not self.strides or min(self.strides) ** 2 <= self.lambda_sample:
            raise UserError("ATP: 1 - lambda_sample / stride^2 must be in (0, 1]; "
                            f"got lambda_sample {self.lambda_sample} and strides {self.strides}")
        if self.module is not None and len(self.module) != len(self.layers):
            raise UserError(f"ATP: {len(self.layers)} layers {self.layers} need as many modules, "
                            f"and {len(self.module)} were trained")

    def reduce_at(self, layers):
        return tuple(self.layers)

    # --- 3.3.1 Spatial Augmented Pruning: the scores ------------------------------------------------------------------

    def scores(self, tokens, alive):
        """S_self and S_cross of the visual tokens, (2, n). alive (n,): their soft mask so far; at inference, ones"""
        if not len(tokens.text()):
            raise UserError("ATP: no text follows the image, so no row looks at it: put the question after <image>")
        from_visual = self.between_visual(tokens)                                  # (n, n)
        from_text = tokens.before.mean_attention("text")[:, tokens.visual]         # (m, n)
        received = (from_visual * alive[:, None]).sum(dim=0)                       # (n,)
        S_self = received / alive.sum()                                            # (n,)    Eq. 3
        S_cross = from_text.mean(dim=0)                                            # (n,)    Eq. 4
        return torch.stack([S_self, S_cross])

    def between_visual(self, tokens):
        """(n, n) attention logits from visual (row) to visual token (column), before the mask, mean over heads"""
        return tokens.before.mean_logits("visual")[:, tokens.visual]

    def normalised(self, S, alive):
        """Each score brought to [0, 1] over the tokens that are left; 0 if all are equal. (2, n) -> (2, n)"""
        is_left = self.is_left(alive)
        low = S.masked_fill(~is_left, torch.inf).amin(dim=1, keepdim=True)         # (2, 1)
        high = S.masked_fill(~is_left, -torch.inf).amax(dim=1, keepdim=True)       # (2, 1)
        return (S - low) / (high - low + self.eps)

    def is_left(self, alive):
        """(n,) bool: tokens that inference would have kept so far; always the one with the largest mask"""
        return (alive >= 0.5) | (alive == alive.max())

    def redundant_pruning_score(self, S):
        """S_redundant, of the normalised scores. (2, n) -> (n,)"""
        S_self, S_cross = S
        choices = {
            "both": (S_self + S_cross) / 2,
            "self": S_self,
            "cross": S_cross,
        }
        return choices[self.score]

    def used(self, S):
        """Zeros in place of a score that does not count (Table 5). (2, n) -> (2, n)"""
        counts = {
            "both": [1, 1],
            "self": [1, 0],
            "cross": [0, 1],
        }
        return S * S.new_tensor(counts[self.score])[:, None]

    def samples(self):
        """The strides (of rows, of columns) of each uniform sample, the rarest sample last"""
        return [(stride, stride) for stride in sorted(self.strides)]

    def offset(self, stride):
        """The first row, or column, of a sample with this stride"""
        return 0

    def spatial_pruning_score(self, grid):
        """S_spatial by the tokens' places (n, 3): that of the rarest sample with this token, 0 if none has it. (n,)"""
        row = grid[:, 1]
        column = grid[:, 2]
        S_spatial = torch.zeros(len(grid), device=grid.device)                     # (n,)
        for of_rows, of_columns in self.samples():
            in_row = row % of_rows == self.offset(of_rows)
            in_column = column % of_columns == self.offset(of_columns)
            is_sampled = in_row & in_column & (row >= 0)                           # (n,)    row -1: not a patch
            R = 1 / (of_rows * of_columns)                                         # sampling rate
            S_sampled = 1 - R * self.lambda_sample                                 # Eq. 5
            S_spatial = S_spatial.masked_fill(is_sampled, S_sampled)
        return S_spatial

    # --- 3.3.2 Adaptive pruning with learnable thresholds -------------------------------------------------------------

    def thresholds(self, i, S, tokens):
        """The thresholds theta_r and theta_s before layer I[i], (1,) each, from the scores (2, n)."""
        if self.module is None:
            raise UserError(UNTRAINED)
        module = self.module[i]
        # Linear reads the scores of all N tokens of the unpruned image: 0 for dropped ones
        zeros = S.new_zeros(2, tokens.N)
        of_all = zeros.index_copy(1, tokens.source, S)                             # (2, N)
        read = self.at_length(of_all, module.N).flatten()                          # (2N,)   [S_self; S_cross]
        z = ACTIVATIONS[module.activation](module.linear(read))                    # (width,) Eq. 6
        theta_r = module.linear_r(z).float().sigmoid()                             # (1,)    Eq. 7
        theta_s = module.linear_s(z).float().sigmoid()                             # (1,)    Eq. 8
        return theta_r, theta_s

    def at_length(self, S, N):
        """The scores with as many columns as Linear reads. (2, ..) -> (2, N)"""
        if S.shape[1] != N:
            raise UserError(f"ATP: this module was trained on {N} visual tokens, and here are {S.shape[1]}: train one "
                            "for them, or use the method atp_pooled")
        return S

    def read_by_linear(self, raw, normalised):
        """Which scores Eq. 6 reads. (2, n)"""
        return normalised

    def soft_masks(self, tokens, i, alive):
        """S_redundant (n,), and a soft mask for each threshold in use, (1 or 2, n), before layer I[i]."""
        raw = self.scores(tokens, alive)                                           # (2, n)
        S = self.normalised(raw, alive)                                            # (2, n)
        S_redundant = self.redundant_pruning_score(S)                              # (n,)
        S_spatial = self.spatial_pruning_score(tokens.grid)                        # (n,)
        read = self.used(self.read_by_linear(raw, S)) * alive                      # (2, n)
        theta_r, theta_s = self.thresholds(i, read, tokens)
        above_r = S_redundant - theta_r                                            # (n,)
        above_s = S_spatial - theta_s                                              # (n,)
        Mask_r = (above_r * self.temperature).sigmoid()                            # (n,)    Eq. 9
        Mask_s = (above_s * self.temperature).sigmoid()                            # (n,)    Eq. 10
        choices = {
            "both": [Mask_r, Mask_s],
            "redundant": [Mask_r],
            "spatial": [Mask_s],
        }
        return S_redundant, torch.stack(choices[self.strategy])

    # training: nothing is dropped

    def running_mask(self, tokens, i, alive):
        """The mask so far (N,) times that of layer I[i]: a pruned token stays pruned."""
        _, masks = self.soft_masks(tokens, i, alive)
        return alive * masks.amax(dim=0)                                           # Eq. 11

    def softmax_mask(self, causal, visual, mask):
        """What a layer adds to its logits: it multiplies exp(logit) of the visual columns by their mask (N,). (T, T)"""
        T = len(causal)
        tiny = torch.finfo(mask.dtype).tiny                # log(0) would have no gradient
        log_mask = mask.clamp_min(tiny).log()                                      # (N,)
        of_columns = log_mask.new_zeros(T).index_copy(0, visual, log_mask)         # (T,)
        added = of_columns.expand(T, T)
        if self.sees_itself:
            not_itself = 1 - torch.eye(T, device=causal.device)                    # (T, T)
            added = added * not_itself
        return causal + added

    # inference: the hard rule

    @torch.no_grad()
    def reduce(self, tokens):
        i = self.layers.index(tokens.layer)
        nothing_masked = torch.ones(tokens.n, device=tokens.visual.device)
        S_redundant, masks = self.soft_masks(tokens, i, nothing_masked)
        passes = finite(masks, "the attention or the module") >= 0.5               # (1 or 2, n)
        passes_any = passes.any(dim=0)                                             # (n,)    Eq. 11
        # keep the tokens that pass, and if these are too few, the best by S_redundant
        least = min(self.min_keep, tokens.n)
        k = max(int(passes_any.sum()), least)
        passing_first = S_redundant.masked_fill(passes_any, torch.inf)             # (n,)
        keep = top(passing_first, k)                                               # (k,)
        if len(passes) == 1:
            return Reduction(keep, score=S_redundant)
        # for pictures: which threshold each token passes
        redundant, spatial = passes.long()                                         # (n,) twice
        reason = (2 * redundant + spatial)[keep]                                   # 0 .. 3
        reasons = ("at least one", "spatial", "redundant", "both")
        return Reduction(keep, score=S_redundant, reason=reason, reasons=reasons)


class Thresholds(nn.Module):
    """The weights of Eq. 6 to 8 before one layer, for N visual tokens. Untrained, it predicts the given thresholds."""

    def __init__(self, N=576, width=256, activation="none", theta_r=0.3, theta_s=0.5):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"ATP: activation is one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        self.N = N
        self.activation = activation
        self.linear = nn.Linear(2 * N, width)
        self.linear_r = nn.Linear(width, 1)
        self.linear_s = nn.Linear(width, 1)
        set_threshold(self.linear_r, theta_r)
        set_threshold(self.linear_s, theta_s)


def set_threshold(head, theta):
    """Set a linear layer so that its sigmoid is theta for any input."""
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, math.log(theta / (1 - theta)))


# --- 3.3.3 Budget-constrained training --------------------------------------------------------------------------------

def budget_losses(masks, layers, depth, target):
    """L_ATP, L_target and N_bar, the average number of tokens in a layer, of a batch with masks (modules, B, N).

    126, 88 and 20 of 576 kept before layers 4, 14 and 24 of 32, target 144 -> 3.847, 0.125, 143.875.
    """
    N = masks.shape[-1]
    i = masks.new_tensor(layers)[:, None]                                          # (modules, 1)
    remaining = masks.sum(dim=-1)                                                  # (modules, B)
    weighted = remaining / N * i                                                   # (modules, B)
    L_ATP = weighted.sum(dim=0).mean()                                             # Eq. 12
    # layers before I[0] run on all N tokens; layers I[0] .. I[1] - 1 on the first mask, the next on the second, ..
    end = torch.cat([i[1:], i.new_tensor([[depth]])])                              # (modules, 1)
    after = remaining * (end - i)                                                  # (modules, B)
    in_all_layers = N * i[0] + after.sum(dim=0)                                    # (B,)
    N_bar = in_all_layers.mean() / depth
    L_target = (N_bar - target).abs()                                              # Eq. 13
    return L_ATP, L_target, N_bar


def full_loss(L_ntp, L_ATP, L_target, lambda_ATP=0.05, lambda_target=0.2):
    """What training minimises."""
    return L_ntp + L_ATP * lambda_ATP + L_target * lambda_target                   # Eq. 14
