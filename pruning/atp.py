"""ATP-LLaVA. Ye et al., "Adaptive Token Pruning for Large Vision Language Models", CVPR 2025, arXiv:2412.00447.

How many tokens a layer needs depends on picture and question. In front of some layers a small module reads the attention of
the layer before and predicts two thresholds: one for the attention that a visual token receives (redundant pruning), one for
a score of its place that favours uniform samples of the grid (spatial pruning). What passes either is kept. In training nothing
is dropped: soft masks inside the softmax let gradients reach the thresholds, and two losses push towards few tokens.

Paper and code: no code is public. Logits and probabilities have no common scale and the thresholds are in (0, 1), so each score
is brought to [0, 1] first; positions are 1-D by default, since a pretrained LLaVA has no others. The other choices are in the
card (README.md) and in readings.py.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pruning.base import Pruner, Reduction, UserError
from pruning.fields import AnyLayer, FromOne, NotNegative, Positive
from pruning.ranked import finite, top

ACTIVATIONS = {"none": lambda z: z, "relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class ATP(Pruner):
    """Adaptive Token Pruning: keep what passes one of two thresholds, predicted for each prompt and layer."""

    layers: tuple[AnyLayer, ...] = (4, 14, 24)         # I: the modules act before these, counted from 0; the paper's other choice is 1, 13, 25
    strategy: Literal["both", "redundant", "spatial"] = "both"         # Table 4: which thresholds count
    score: Literal["both", "self", "cross"] = "both"                   # Table 5: whose attention makes S_redundant
    strides: tuple[FromOne, ...] = (2, 4, 8)           # Eq. 5: every so many rows and columns are a sample
    lambda_sample: NotNegative = 3.0   # Eq. 5
    temperature: Positive = 100.0      # T of Eq. 9 and 10: "sufficiently large"
    position_ids: Literal["keep", "renumber", "2d"] = "keep"           # of survivors; "2d": rows and columns for the image
    module: nn.ModuleList | None = None    # the trained Thresholds, one per layer; on the command line a folder with them
    depth: FromOne | None = None       # decoder layers of the model that the module was trained for

    laws = frozenset({"select", "ordered"})
    preconditions = frozenset({"text", "training"})
    counts = ()                        # of ATPFixedRatio in readings.py
    min_keep = 1                       # at least so many are kept: the best by S_redundant
    eps = 1e-6                         # of the normalisation

    @property
    def positions(self):
        return "renumber" if self.position_ids == "renumber" else "keep"

    def __post_init__(self):
        super().__post_init__()
        if not self.layers or self.layers[0] < 1 or list(self.layers) != sorted(set(self.layers)):
            raise UserError(f"ATP: layers must rise from 1, as before layer 0 there is no attention to read; got {self.layers}")
        if not self.strides or min(self.strides) ** 2 <= self.lambda_sample:
            raise UserError(f"ATP: 1 - lambda_sample / stride^2 must be in (0, 1]; got lambda_sample {self.lambda_sample} and "
                            f"strides {self.strides}")
        if self.module is not None and len(self.module) != len(self.layers):
            raise UserError(f"ATP: {len(self.layers)} layers {self.layers} need as many modules, and {len(self.module)} were trained")

    def reduce_at(self, layers):
        return tuple(self.layers)

    @torch.no_grad()
    def reduce(self, tokens):
        nothing_masked = torch.ones(tokens.n, device=tokens.visual.device)
        S_redundant, masks = self.soft_masks(tokens, self.layers.index(tokens.layer), nothing_masked)
        passes = finite(masks, "the attention or the module") >= 0.5               # (rules, n)  the hard rule
        passes_any = passes.any(dim=0)                                             # (n,)
        k = max(int(passes_any.sum()), min(self.min_keep, tokens.n))
        keep = top(S_redundant.masked_fill(passes_any, torch.inf), k)              # (k,)
        if len(passes) == 1:
            return Reduction(keep, score=S_redundant)
        redundant, spatial = passes.long()
        return Reduction(keep, score=S_redundant, reason=(2 * redundant + spatial)[keep],
                         reasons=("at least one", "spatial", "redundant", "both"))

    # --- 3.3.1 Spatial Augmented Pruning: the scores ---------------------------------------------------------------------

    def scores(self, tokens, alive):
        """Raw S_self and S_cross of the visual tokens, (n,) twice. alive (n,): the product of the masks so far."""
        if not len(tokens.text()):
            raise UserError("ATP: no text follows the image, so no row looks at it: put the question after <image>")
        logits = tokens.before.mean_logits("visual")[:, tokens.visual]             # (n, n)  row m: what v_m asks of v_n
        attention = tokens.before.mean_attention("text")[:, tokens.visual]         # (m, n)
        S_self = self.over_visual(logits, alive)                                   # (n,)    Eq. 3
        S_cross = attention.mean(dim=0)                                            # (n,)    Eq. 4
        return S_self, S_cross

    def over_visual(self, logits, alive):
        """What each token receives: the mean over the rows that are left. (n, n) -> (n,)"""
        return (logits * alive[:, None]).sum(dim=0) / alive.sum()

    def redundant_pruning_score(self, S_self, S_cross):
        """3.3.1 S_redundant, of normalised scores. (n,)"""
        return {"both": (S_self + S_cross) / 2, "self": S_self, "cross": S_cross}[self.score]

    def normalised(self, S, alive):
        """Min-max to [0, 1] over the tokens that are left; all equal: all 0. (n,) -> (n,)"""
        left = self.left(alive)
        low = S.masked_fill(~left, torch.inf).min()
        high = S.masked_fill(~left, -torch.inf).max()
        return (S - low) / (high - low + self.eps)

    def left(self, alive):
        """(n,) bool: what the hard rule has left so far; in training, at least the token with the largest mask"""
        return (alive >= 0.5) | (alive == alive.max())

    def spatial_pruning_score(self, grid):
        """3.3.1 S_spatial of the tokens' places (n, 3): of the rarest sample that a token is in; 0 in none. (n,)"""
        row, column = grid[:, 1], grid[:, 2]
        S_spatial = torch.zeros(len(grid), device=grid.device)
        for stride in sorted(self.strides):
            is_sampled = (row % stride == 0) & (column % stride == 0) & (row >= 0)
            R = 1 / stride ** 2                                                    # sampling rate
            S_spatial = torch.where(is_sampled, 1 - R * self.lambda_sample, S_spatial)             # Eq. 5
        return S_spatial

    # --- 3.3.2 Adaptive pruning with learnable thresholds ----------------------------------------------------------------

    def thresholds(self, i, S_self, S_cross, tokens):
        """theta_r, theta_s of module i, (1,) each; Linear reads each score at its place among the N tokens, 0 elsewhere."""
        if self.module is None:
            raise UserError("ATP needs a module trained for the model: make one with `python run.py train atp`, then give its "
                            "folder as --set module=DIR")
        S_self = S_self.new_zeros(tokens.N).index_copy(0, tokens.source, S_self)   # (N,)
        S_cross = S_cross.new_zeros(tokens.N).index_copy(0, tokens.source, S_cross)                # (N,)
        length = self.module[i].N
        return self.module[i](self.at_length(S_self, length), self.at_length(S_cross, length))

    def at_length(self, S, N):
        """The scores as Linear reads them: (N,)"""
        if len(S) != N:
            raise UserError(f"ATP: this module was trained on {N} visual tokens and the prompt has {len(S)}: train one for it, "
                            "or use the method atp_pooled")
        return S

    def soft_masks(self, tokens, i, alive):
        """S_redundant (n,) and the soft mask of each rule that counts, (1 or 2, n), before layer I[i]. For training, too."""
        raw_self, raw_cross = self.scores(tokens, alive)
        S_self = self.normalised(raw_self, alive)                                  # (n,)
        S_cross = self.normalised(raw_cross, alive)                                # (n,)
        S_redundant = self.redundant_pruning_score(S_self, S_cross)                # (n,)
        S_spatial = self.spatial_pruning_score(tokens.grid)                        # (n,)
        read_self, read_cross = self.read_by_linear((raw_self, raw_cross), (S_self, S_cross))
        theta_r, theta_s = self.thresholds(i, read_self * alive, read_cross * alive, tokens)
        masks = {"redundant": ((S_redundant - theta_r) * self.temperature).sigmoid(),              # Eq. 9
                 "spatial": ((S_spatial - theta_s) * self.temperature).sigmoid()}                  # Eq. 10
        chosen = masks if self.strategy == "both" else {self.strategy: masks[self.strategy]}
        return S_redundant, torch.stack(list(chosen.values()))

    def read_by_linear(self, raw, normalised):
        """Which scores, (S_self, S_cross), Eq. 6 reads"""
        return normalised

    # --- training: nothing is dropped ------------------------------------------------------------------------------------

    def running_mask(self, tokens, i, alive):
        """(N,) the product of all masks up to module i: what is pruned stays pruned."""
        _, masks = self.soft_masks(tokens, i, alive)
        return alive * masks.amax(dim=0)                                           # Eq. 11

    def softmax_mask(self, causal, visual, mask):
        """`causal` (T, T) and the mask (N,) of the visual columns: exp(logit) times mask, but a token always sees itself."""
        column = mask.new_ones(len(causal)).index_copy(0, visual, mask)            # (T,)
        log = column.clamp_min(torch.finfo(column.dtype).tiny).log()               # (T,)
        not_itself = 1 - torch.eye(len(causal), device=causal.device)              # (T, T)
        return causal + log * not_itself

    def with_positions(self, tokens):
        """Position ids for "2d": the patch in row r, column c of an image that starts at p gets (p + r, p + c), the text after
        it goes on at p + the longer side, and text gets (p, p). Half of the RoPE pairs turn by the first, half by the second."""
        if self.position_ids != "2d" or not tokens.n:
            return tokens
        length = torch.ones_like(tokens.position).index_fill_(0, tokens.visual, 0)                 # (T,) ids that a row uses up
        for tile in tokens.grid[:, 0].unique():
            in_tile = tokens.grid[:, 0] == tile
            length[tokens.visual[in_tile][-1]] = tokens.grid[in_tile, 1:].max() + 1
        position = (length.cumsum(0) - length)[:, None].repeat(1, 2)               # (T, 2)
        position[tokens.visual] += tokens.grid[:, 1:].clamp_min(0)
        return replace(tokens, position=position, next_position=int(length.sum()))


class Thresholds(nn.Module):
    """The learnable part of one ATP module: the scores of N visual tokens -> theta_r, theta_s."""

    def __init__(self, N=576, width=256, activation="none", theta_r=0.3, theta_s=0.5):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"ATP: activation is one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        self.N = N
        self.activation = activation
        self.linear = nn.Linear(2 * N, width)
        self.linear_r = nn.Linear(width, 1)
        self.linear_s = nn.Linear(width, 1)
        for head, theta in ((self.linear_r, theta_r), (self.linear_s, theta_s)):   # at first the same for all prompts
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, math.log(theta / (1 - theta)))

    def forward(self, S_self, S_cross):
        """(N,) twice -> (1,) twice, in (0, 1)"""
        z = ACTIVATIONS[self.activation](self.linear(torch.cat([S_self, S_cross], dim=-1)))        # Eq. 6
        theta_r = self.linear_r(z).float().sigmoid()                               # Eq. 7
        theta_s = self.linear_s(z).float().sigmoid()                               # Eq. 8
        return theta_r, theta_s


# --- 3.3.3 Budget-constrained training -----------------------------------------------------------------------------------

def budget_losses(masks, layers, depth, target):
    """L_ATP, L_target and the average N_bar of tokens in a layer, of a batch: masks (modules, B, N) after each layer of I.

    Kept 126, 88, 20 of 576 before layers 4, 14, 24 of 32, target 144 -> 3.847, 0.125, 143.875.
    """
    remaining = masks.sum(dim=-1)                                                  # (modules, B)
    N = masks.shape[-1]
    i = masks.new_tensor(layers)                                                   # (modules,)
    L_ATP = (remaining / N * i[:, None]).sum(dim=0).mean()                         # Eq. 12
    lengths = torch.cat([i[1:], i.new_tensor([depth])]) - i                        # layers that run on each mask
    N_bar = (N * i[0] + (remaining * lengths[:, None]).sum(dim=0)).mean() / depth
    L_target = (N_bar - target).abs()                                              # Eq. 13
    return L_ATP, L_target, N_bar


def full_loss(L_ntp, L_ATP, L_target, lambda_ATP=0.05, lambda_target=0.2):
    """What training minimises."""
    return L_ntp + L_ATP * lambda_ATP + L_target * lambda_target                   # Eq. 14
