"""The network that ATP is trained in: the model with soft masks where its modules stand, 3.3.2, and the loss of 3.3.3."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from minivlm.attention import causal_mask, rope
from minivlm.lab.modules import cuts_tiles
from minivlm.llama import plan
from minivlm.views import DecoderView
from pruning.atp import Thresholds, budget_losses, full_loss
from pruning.base import Tokens, UserError

LOGGED = ("loss", "ntp", "atp", "target", "average")


class Student(nn.Module):
    """The model with soft masks where ATP stands: a Batch -> what Eq. 14 adds up, and the tokens kept after each module."""

    def __init__(self, llava, atp, recipe):
        super().__init__()
        self.llava, self.atp, self.recipe, self.module = llava, atp, recipe, atp.module or nn.ModuleList()
        llava.requires_grad_(not recipe.freeze_lm).vision_tower.requires_grad_(False)
        self.module.requires_grad_(True)
        for name, other in (("linear_s", "redundant"), ("linear_r", "spatial")):
            for module in self.module:             # a head that counts for nothing
                getattr(module, name).requires_grad_(atp.strategy != other)

    def forward(self, b):
        """{name: number} of LOGGED, and kept (modules,)"""
        hidden, masks = self.hidden(b)
        ahead = b.answer[:, 1:]                    # the row before a token predicts it
        logits = self.llava.lm_head(hidden[:, :-1][ahead]).float()                 # (answers, V)
        ntp = F.cross_entropy(logits, b.ids[:, 1:][ahead], reduction="sum") / ahead.sum().clamp_min(1)
        depth = len(self.llava.language_model.layers)
        atp, target, average = budget_losses(masks, self.atp.layers, depth, self.recipe.target)
        unit = masks.shape[-1] if self.recipe.target_unit == "share" else 1
        loss = full_loss(ntp, atp, target / unit, self.recipe.lambda_atp, self.recipe.lambda_target)
        return dict(loss=loss, ntp=ntp, atp=atp, target=target, average=average, kept=masks.detach().sum(dim=-1).mean(dim=1))

    def hidden(self, b):
        """Normed hidden states (B, T, D), and the running masks after each module (modules, B, N)."""
        decoder = self.llava.language_model
        hidden, grid = self.embedded(b)                                            # (B, T, D), (N, 3)
        rope = self.rope(hidden, b.visual, grid)
        row = torch.arange(hidden.shape[1], device=hidden.device)
        causal = causal_mask(row, len(row), decoder.hidden_keys(None, row, row))   # (T, T)
        layer_mask = causal.expand(len(hidden), 1, -1, -1)                         # (B, 1, T, T)
        mask = torch.ones(b.visual.shape, device=hidden.device)                    # (B, N)
        masks = []
        entered = hidden
        for l, layer in enumerate(decoder.layers):
            if l in self.atp.layers:
                # what the layer before has shown decides the mask; from here on it is inside the softmax
                with torch.autocast(hidden.device.type, enabled=False):
                    prompts = self.prompts(b, l, hidden, entered, grid, rope, layer_mask)
                    mask = torch.stack([self.atp.running_mask(p, len(masks), alive) for p, alive in zip(prompts, mask)])
                masks.append(mask)
                layer_mask = torch.stack([self.atp.softmax_mask(causal, v, m) for v, m in zip(b.visual, mask)])[:, None]
            entered = hidden
            hidden = layer(hidden, rope, mask=layer_mask)
        return decoder.norm(hidden), torch.stack(masks)

    def prompts(self, b, l, hidden, entered, grid, rope, layer_mask):
        """Tokens of each prompt in front of layer l, up to its first answer, which no threshold may have seen."""
        layer = self.llava.language_model.layers[l - 1]
        for i, visual in enumerate(b.visual):
            end = int(visual[-1]) + 1 + int(b.is_text[i].sum())
            tokens = Tokens.start(hidden[i, :end], visual, grid, layer=l)
            own_rope = tuple(part[i, 0, :end] if part.ndim == 4 else part[:end] for part in rope)
            view = DecoderView(layer, replace(tokens, hidden=entered[i, :end]), own_rope, layer_mask[i, 0, :end, :end])
            yield replace(tokens, before=view)

    def embedded(self, b):
        """What enters layer 0, (B, T, D), and the grid (N, 3) of an image."""
        with torch.no_grad():
            features, grid, _ = self.llava.features(b.pixels)                      # (B*N, C), (B*N, 3)
        words = self.llava.language_model.embed_tokens(b.ids.clamp_max(self.llava.config.text.vocab_size - 1))
        image = torch.zeros_like(b.answer).scatter(1, b.visual, True)              # (B, T)
        features = self.llava.multi_modal_projector(features).to(words.dtype)
        return words.masked_scatter(image[..., None], features), grid[:b.visual.shape[1]]

    def rope(self, hidden, visual, grid):
        """cos and sin of all rows; of each prompt its own, (B, 1, T, Dh), if positions have two dimensions."""
        c = self.llava.config.text
        if self.atp.position_ids != "2d":
            position = torch.arange(hidden.shape[1], device=hidden.device)
            return rope(position, c.head_dim, c.rope_theta, hidden.dtype)
        placed = [self.atp.with_positions(Tokens.start(h, v, grid)).position for h, v in zip(hidden, visual)]
        ropes = [rope(position, c.head_dim, c.rope_theta, hidden.dtype) for position in placed]
        return tuple(torch.stack(part)[:, None] for part in zip(*ropes))


def prepared(model, atp, recipe):
    """The ATP with new modules for this model. UserError where the two, or the recipe, do not go together."""
    depth, N = len(model.language_model.layers), model.visual_tokens(torch.empty(1))
    if cuts_tiles(model):
        raise UserError("ATP is trained where every picture has as many visual tokens, as in LLaVA-1.5: this model cuts pictures "
                        "into tiles")
    plan(atp, depth)
    least = N * atp.layers[0] / depth
    if not least <= recipe.target <= N:
        raise UserError(f"--target-tokens {recipe.target:g} is out of reach: {N} tokens enter each layer before {atp.layers[0]} "
                        f"of {depth}, so the average is {least:.4g} to {N}")
    if not all(0 < theta < 1 for theta in (recipe.theta_r, recipe.theta_s)):
        raise UserError(f"thresholds lie in (0, 1); got {recipe.theta_r} and {recipe.theta_s}")
    if atp.counts and recipe.freeze_lm:
        raise UserError("with counts there are no thresholds, and with --freeze-lm nothing else is trained: leave out one of them")
    if atp.counts:
        return replace(atp, depth=depth)
    torch.manual_seed(recipe.seed)
    made = [Thresholds(N, recipe.width, recipe.activation, recipe.theta_r, recipe.theta_s) for _ in atp.layers]
    return replace(atp, module=nn.ModuleList(made).to(model.device), depth=depth)
