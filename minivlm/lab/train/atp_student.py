"""The network that ATP is trained in: the model with soft masks where its modules act, 3.3.2, and the loss of 3.3.3.

Letters: B prompts in a batch, T rows, N visual tokens, D width, Dh head width, V words.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from minivlm.attention import causal_mask, rope
from minivlm.lab.cli.modules import cuts_tiles
from minivlm.llama import plan
from minivlm.parts.sliding_window import hidden_keys
from minivlm.parts.views import DecoderView
from pruning.atp import Thresholds, budget_losses, full_loss
from pruning.base import Tokens, UserError

LOGGED = ("loss", "ntp", "atp", "target", "average")
IDLE = {"redundant": "linear_s", "spatial": "linear_r", "both": None}      # the head that a strategy does not use


class Student(nn.Module):
    """The model with soft masks where ATP acts: a Batch -> the terms of Eq. 14, and what each module keeps."""

    def __init__(self, llava, atp, recipe):
        super().__init__()
        self.llava = llava
        self.atp = atp
        self.recipe = recipe
        self.module = atp.module or nn.ModuleList()
        llava.requires_grad_(not recipe.freeze_lm)
        llava.vision_tower.requires_grad_(False)
        self.module.requires_grad_(True)
        idle = IDLE[atp.strategy]
        for module in self.module:
            if idle:
                getattr(module, idle).requires_grad_(False)

    def forward(self, b):
        """{name: number} of LOGGED, and kept (modules,)"""
        hidden, masks = self.hidden(b)
        # next-token prediction: the row before each word of an answer predicts it
        recipe = self.recipe
        ahead = b.answer[:, 1:]                                                    # (B, T-1)
        before = hidden[:, :-1]                                                    # (B, T-1, D)
        after = b.ids[:, 1:]                                                       # (B, T-1)
        logits = self.llava.lm_head(before[ahead]).float()                         # (answers, V)
        ntp = F.cross_entropy(logits, after[ahead], reduction="sum")
        ntp = ntp / ahead.sum().clamp_min(1)
        # few tokens, and the target on average
        depth = len(self.llava.language_model.layers)
        atp, target, average = budget_losses(masks, self.atp.layers, depth, recipe.target)
        unit = 1
        if recipe.target_unit == "share":
            unit = masks.shape[-1]
        loss = full_loss(ntp, atp, target / unit, recipe.lambda_atp, recipe.lambda_target)
        kept = masks.detach().sum(dim=-1)                                          # (modules, B)
        return dict(
            loss=loss,
            ntp=ntp,
            atp=atp,
            target=target,
            average=average,
            kept=kept.mean(dim=1),
        )

    def hidden(self, b):
        """Normed hidden states (B, T, D), and the running masks after each module (modules, B, N)."""
        decoder = self.llava.language_model
        hidden, grid = self.embedded(b)                                            # (B, T, D), (N, 3)
        T = hidden.shape[1]
        rope = self.rope(hidden, b.visual, grid)
        row = torch.arange(T, device=hidden.device)
        too_far = hidden_keys(None, row, row, decoder.config.sliding_window)       # (T, T) or None
        causal = causal_mask(row, T, too_far)                                      # (T, T)
        layer_mask = causal.expand(len(hidden), 1, T, T)                           # (B, 1, T, T)
        mask = torch.ones(b.visual.shape, device=hidden.device)                    # (B, N)
        masks = []
        entered = hidden
        for l, layer in enumerate(decoder.layers):
            if l in self.atp.layers:
                # the attention of the layer before decides the mask, which is inside the softmax from here on
                with torch.autocast(hidden.device.type, enabled=False):
                    prompts = self.prompts(b, l, hidden, entered, grid, rope, layer_mask)
                    mask = self.running_masks(prompts, len(masks), mask)           # (B, N)
                masks.append(mask)
                layer_mask = self.softmax_masks(causal, b.visual, mask)            # (B, 1, T, T)
            entered = hidden
            hidden = layer(hidden, rope, mask=layer_mask)
        return decoder.norm(hidden), torch.stack(masks)

    def running_masks(self, prompts, i, mask):
        """The masks (B, N) so far times those of module i, one prompt after the other."""
        masks = []
        for tokens, own in zip(prompts, mask):
            masks.append(self.atp.running_mask(tokens, i, own))
        return torch.stack(masks)

    def softmax_masks(self, causal, visual, mask):
        """(B, 1, T, T) the causal mask of each prompt with its mask (B, N) inside the softmax."""
        masks = []
        for own_visual, own in zip(visual, mask):
            masks.append(self.atp.softmax_mask(causal, own_visual, own))
        return torch.stack(masks)[:, None]

    def prompts(self, b, l, hidden, entered, grid, rope, layer_mask):
        """Tokens of each prompt in front of layer l, up to its first answer, which no threshold may have seen.

        hidden (B, T, D) enters layer l; entered, rope and layer_mask are those of layer l - 1, which is to be viewed.
        """
        layer = self.llava.language_model.layers[l - 1]
        for i, visual in enumerate(b.visual):
            text_after = int(b.is_text[i].sum())
            end = int(visual[-1]) + 1 + text_after
            tokens = Tokens.start(hidden[i, :end], visual, grid, layer=l)
            entering = replace(tokens, hidden=entered[i, :end])
            own_rope = [part[i, 0, :end] for part in rope]                         # (end, Dh) twice
            own_mask = layer_mask[i, 0, :end, :end]                                # (end, end)
            view = DecoderView(layer, entering, own_rope, own_mask)
            yield replace(tokens, before=view)

    def embedded(self, b):
        """What enters layer 0, (B, T, D), and the grid (N, 3) of an image."""
        with torch.no_grad():
            features, grid, _ = self.llava.features(b.pixels)                      # (B*N, C), (B*N, 3)
        last = self.llava.config.text.vocab_size - 1
        ids = b.ids.clamp_max(last)                        # the marks of visual tokens have no row
        words = self.llava.language_model.embed_tokens(ids)                        # (B, T, D)
        is_visual = torch.zeros_like(b.answer)
        is_visual = is_visual.scatter(1, b.visual, True)                           # (B, T)
        features = self.llava.multi_modal_projector(features)                      # (B*N, D)
        features = features.to(words.dtype)
        hidden = words.masked_scatter(is_visual[..., None], features)
        N = b.visual.shape[1]
        return hidden, grid[:N]

    def rope(self, hidden, visual, grid):
        """cos and sin of each prompt's rows, (B, 1, T, Dh) twice: a method may place its prompts."""
        c = self.llava.config.text
        cos = []
        sin = []
        for own_hidden, own_visual in zip(hidden, visual):
            tokens = Tokens.start(own_hidden, own_visual, grid)
            tokens = self.atp.with_positions(tokens)
            own_cos, own_sin = rope(tokens.position, c.head_dim, c.rope_theta, hidden.dtype, c.rope_scaling)
            cos.append(own_cos)
            sin.append(own_sin)
        return torch.stack(cos)[:, None], torch.stack(sin)[:, None]


def prepared(model, atp, recipe):
    """The ATP with new modules for this model. UserError if the two, or the recipe, do not go together."""
    depth = len(model.language_model.layers)
    N = model.visual_tokens(torch.empty(1))
    if cuts_tiles(model):
        raise UserError(
            "ATP is trained where every picture has as many visual tokens, as in LLaVA-1.5: "
            "this model cuts pictures into tiles"
        )
    plan(atp, depth)
    least = N * atp.layers[0] / depth
    if not least <= recipe.target <= N:
        raise UserError(
            f"--target-tokens {recipe.target:g} is out of reach: "
            f"{N} tokens enter each layer before {atp.layers[0]} of {depth}, "
            f"so the average is {least:.4g} to {N}"
        )
    if not all(0 < theta < 1 for theta in (recipe.theta_r, recipe.theta_s)):
        raise UserError(f"thresholds lie in (0, 1); got {recipe.theta_r} and {recipe.theta_s}")
    needs_training = "training" in atp.preconditions
    if not needs_training and recipe.freeze_lm:
        raise UserError(
            "a fixed ratio has no thresholds, and with --freeze-lm nothing else is trained: "
            "leave out one of them"
        )
    if not needs_training:
        return replace(atp, depth=depth)
    torch.manual_seed(recipe.seed)
    modules = nn.ModuleList()
    for _ in atp.layers:
        thresholds = Thresholds(N, recipe.width, recipe.activation, recipe.theta_r, recipe.theta_s)
        modules.append(thresholds)
    return replace(atp, module=modules.to(model.device), depth=depth)
