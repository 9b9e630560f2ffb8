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
        ahead = b.answer[:, 1:]                                                    # (B, T-1)
        logits = self.llava.lm_head(hidden[:, :-1][ahead]).float()                 # (answers, V)
        ntp = F.cross_entropy(logits, b.ids[:, 1:][ahead], reduction="sum") / ahead.sum().clamp_min(1)
        # few tokens, and the target on average
        depth = len(self.llava.language_model.layers)
        atp, target, average = budget_losses(masks, self.atp.layers, depth, self.recipe.target)
        unit = masks.shape[-1] if self.recipe.target_unit == "share" else 1
        loss = full_loss(ntp, atp, target / unit, self.recipe.lambda_atp, self.recipe.lambda_target)
        kept = masks.detach().sum(dim=-1).mean(dim=1)                              # (modules,)
        return dict(loss=loss, ntp=ntp, atp=atp, target=target, average=average, kept=kept)

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
                pairs = zip(b.visual, mask)
                layer_mask = torch.stack([self.atp.softmax_mask(causal, v, m) for v, m in pairs])[:, None]
            entered = hidden
            hidden = layer(hidden, rope, mask=layer_mask)
        return decoder.norm(hidden), torch.stack(masks)

    def running_masks(self, prompts, i, mask):
        """The masks (B, N) so far times those of module i, one prompt after the other."""
        return torch.stack([self.atp.running_mask(tokens, i, alive) for tokens, alive in zip(prompts, mask)])

    def prompts(self, b, l, hidden, entered, grid, rope, layer_mask):
        """Tokens of each prompt in front of layer l, up to its first answer, which no threshold may have seen.

        hidden (B, T, D) enters layer l; entered, rope and layer_mask are those of layer l - 1, which is to be viewed.
        """
        layer = self.llava.language_model.layers[l - 1]
        for i, visual in enumerate(b.visual):
            end = int(visual[-1]) + 1 + int(b.is_text[i].sum())
            tokens = Tokens.start(hidden[i, :end], visual, grid, layer=l)
            entering = replace(tokens, hidden=entered[i, :end])
            own_rope = [part[i, 0, :end] for part in rope]                         # (end, Dh) twice
            view = DecoderView(layer, entering, own_rope, layer_mask[i, 0, :end, :end])
            yield replace(tokens, before=view)

    def embedded(self, b):
        """What enters layer 0, (B, T, D), and the grid (N, 3) of an image."""
        with torch.no_grad():
            features, grid, _ = self.llava.features(b.pixels)                      # (B*N, C), (B*N, 3)
        words = self.llava.language_model.embed_tokens(b.ids.clamp_max(self.llava.config.text.vocab_size - 1))
        is_visual = torch.zeros_like(b.answer).scatter(1, b.visual, True)          # (B, T)
        features = self.llava.multi_modal_projector(features).to(words.dtype)      # (B*N, D)
        return words.masked_scatter(is_visual[..., None], features), grid[:b.visual.shape[1]]

    def rope(self, hidden, visual, grid):
        """cos and sin of each prompt's rows, (B, 1, T, Dh) twice: a method may place its prompts."""
        c = self.llava.config.text
        prompts = [Tokens.start(h, v, grid) for h, v in zip(hidden, visual)]
        positions = [self.atp.with_positions(tokens).position for tokens in prompts]
        ropes = [rope(position, c.head_dim, c.rope_theta, hidden.dtype) for position in positions]
        cos, sin = zip(*ropes)
        return torch.stack(cos)[:, None], torch.stack(sin)[:, None]


def prepared(model, atp, recipe):
    """The ATP with new modules for this model. UserError if the two, or the recipe, do not go together."""
    depth = len(model.language_model.layers)
    N = model.visual_tokens(torch.empty(1))
    if cuts_tiles(model):
        raise UserError("ATP is trained where every picture has as many visual tokens, as in LLaVA-1.5: "
                        "this model cuts pictures into tiles")
    plan(atp, depth)
    least = N * atp.layers[0] / depth
    if not least <= recipe.target <= N:
        raise UserError(f"--target-tokens {recipe.target:g} is out of reach: {N} tokens enter each layer before "
                        f"{atp.layers[0]} of {depth}, so the average is {least:.4g} to {N}")
    if not all(0 < theta < 1 for theta in (recipe.theta_r, recipe.theta_s)):
        raise UserError(f"thresholds lie in (0, 1); got {recipe.theta_r} and {recipe.theta_s}")
    needs_training = "training" in atp.preconditions
    if not needs_training and recipe.freeze_lm:
        raise UserError("a fixed ratio has no thresholds, and with --freeze-lm nothing else is trained: "
                        "leave out one of them")
    if not needs_training:
        return replace(atp, depth=depth)
    torch.manual_seed(recipe.seed)
    modules = [Thresholds(N, recipe.width, recipe.activation, recipe.theta_r, recipe.theta_s) for _ in atp.layers]
    return replace(atp, module=nn.ModuleList(modules).to(model.device), depth=depth)
