"""The network in training: its sizes, its targets, and the forward pass over many questions of one picture.

The layers are those of minivlm, run for a batch; a mask in place of the causal one keeps the questions apart.

Letters: B pictures, k patches shown of N = 144, T tokens of packed text, C and D widths, V vocabulary.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minivlm.attention import additive
from minivlm.io.config_json import LlavaConfig, TextConfig, VisionConfig
from minivlm.io.image import MEAN, STD
from minivlm.llava import Llava
from minivlm.toy import scenes
from minivlm.toy.packing import PREFIX, layout
from minivlm.toy.questions import ID
from minivlm.toy.scenes import COLORS, GLYPHS, GRID, OBJECTS, SCENES, SHAPES

PATCHES, ROWS = GRID ** 2, 96                      # ROWS of the embedding: the words, and some that no word uses


def config():
    """2.6 million parameters: a 4-layer tower and an 8-layer decoder of width 128, 144 visual tokens."""
    return LlavaConfig(
        VisionConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
                     image_size=scenes.SIDE, patch_size=scenes.PATCH),
        TextConfig(vocab_size=ROWS, hidden_size=128, intermediate_size=384, num_hidden_layers=8, num_attention_heads=4,
                   rms_norm_eps=1e-5), image_token_index=ID["<image>"], pad_token_id=ID["<pad>"], dtype="float16")


class Student(nn.Module):
    """The network, and the heads of the vision targets, which are not shipped."""

    def __init__(self, config):
        super().__init__()
        self.llava, width = Llava(config), config.vision.hidden_size
        sizes = dict(kind=len(SHAPES) + 2, color=len(COLORS) + 2, glyph=len(GLYPHS), place=2,
                     content=len(SHAPES) * len(COLORS) + len(SCENES))
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})
        self._start(config)

    @torch.no_grad()
    def _start(self, config):
        """Small embeddings; positions of the tower start as waves over rows and columns."""
        tower, decoder = self.llava.vision_tower.embeddings, self.llava.language_model
        decoder.embed_tokens.weight.normal_(0, 0.3)
        self.llava.lm_head.weight.normal_(0, 0.02)
        tower.class_embedding.normal_(0, 0.3)
        at, width = torch.arange(PATCHES), config.vision.hidden_size
        rate = torch.logspace(0, -1.2, width // 4) * math.pi / 2
        waves = [f(axis[:, None] * rate) for axis in (at // GRID, at % GRID) for f in (torch.sin, torch.cos)]
        tower.position_embedding.weight[1:] = 0.3 * torch.cat(waves, dim=1)
        tower.position_embedding.weight[0] = 0

    def vision_loss(self, worlds, content=True):
        """The targets of stage 1 -> loss, and the features (B, 144, C)."""
        tower, device = self.llava.vision_tower, self.llava.device
        top = tower.config.num_hidden_layers
        states = tower(pixels(worlds).to(device), top if content else top - 1)
        features, target = states[top - 1][:, 1:], {k: v.to(device) for k, v in patch_targets(worlds).items()}
        told = {name: self.heads[name](features).float() for name in ("kind", "color", "glyph", "place")}
        loss = F.mse_loss(told["place"], target["place"]) * 5
        for name in ("color", "glyph"):
            each = F.cross_entropy(told[name].flatten(0, 1), target[name].flatten(), ignore_index=-1, reduction="sum")
            loss = loss + each / (target[name] >= 0).sum().clamp(min=1)
        each = F.cross_entropy(told["kind"].flatten(0, 1), target["kind"].flatten(), reduction="none")
        none = target["kind"].flatten() == 0       # five of six patches: they weigh as much as the others together
        loss = loss + each[none].mean() + each[~none].mean()
        if content:
            cls = self.heads["content"](tower.post_layernorm(states[top][:, 0])).float()
            loss = loss + 5 * F.binary_cross_entropy_with_logits(cls, target["content"])
        return loss, features

    def answers(self, features, text, shown, closed=False):
        """Logits (B, T, V) of the packed text (B, T), when each picture shows its patches `shown` (B, k).

        They keep their positions, as after a cut in the decoder, or are `closed` up, as when the decoder never saw the others.
        """
        decoder, (B, k), T = self.llava.language_model, shown.shape, text.shape[1]
        left = features.gather(1, shown[..., None].expand(-1, -1, features.shape[2]))                # (B, k, C)
        visual = self.llava.multi_modal_projector(left)
        words = decoder.embed_tokens(torch.cat([text.new_tensor(PREFIX).expand(B, -1), text], dim=1))
        hidden = torch.cat([words[:, :3], visual, words[:, 3:]], dim=1)            # (B, 3+k+T, D)
        block, offset = layout(text.device)
        place, end = (torch.arange(k, device=text.device).expand(B, -1), k) if closed else (shown, PATCHES)
        position = torch.cat([torch.arange(3, device=text.device).expand(B, -1), 3 + place, (3 + end + offset).expand(B, -1)],
                             dim=1)                                                # (B, 3+k+T)
        kind = text.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        rope = [x.unflatten(0, (B, 1, -1)) for x in decoder.rope(position.flatten(), dtype)]       # (B, 1, 3+k+T, Dh)
        block = torch.cat([block.new_zeros(3 + k), block])
        may = ((block[:, None] == block) | (block == 0)).tril()
        mask = additive(may, torch.float32)
        for layer in decoder.layers:
            hidden = layer(hidden, rope, mask=mask)
        return self.llava.lm_head(decoder.norm(hidden[:, 3 + k:]))


def pixels(worlds):
    """(B, 3, 96, 96) as the image processor makes them of a picture of that size."""
    x = (worlds.pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def patch_targets(worlds):
    """Of each patch: kind (0 none, 1.. a shape, 7 a sign), color (7 white, 8 black: of the sign), glyph, place; -1 has none.

    And the content of the picture.
    """
    B = len(worlds.scene)
    slot, shows = worlds.area.argmax(axis=1), worlds.area.max(axis=1) >= 8         # (B, N)
    sign, each = slot >= OBJECTS, np.arange(B)[:, None]
    thing, plate = np.minimum(slot, OBJECTS - 1), np.maximum(slot - OBJECTS, 0)
    kind = np.where(shows, np.where(sign, len(SHAPES) + 1, 1 + worlds.shape[each, thing]), 0)
    content = np.zeros((B, len(SHAPES) * len(COLORS) + len(SCENES)), np.float32)
    b, s = worlds.present[:, :OBJECTS].nonzero()
    content[b, worlds.shape[b, s] * len(COLORS) + worlds.color[b, s]] = 1
    content[np.arange(B), len(SHAPES) * len(COLORS) + worlds.scene] = 1
    place = np.stack(np.divmod(np.arange(PATCHES), GRID), axis=1) / np.float32(GRID - 1)
    found = dict(kind=kind, color=np.where(shows, np.where(sign, len(COLORS) + plate, worlds.color[each, thing]), -1),
                 glyph=np.where(shows & sign, worlds.glyph[each, plate], -1),
                 place=np.broadcast_to(place, (B, PATCHES, 2)).astype(np.float32), content=content)
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in found.items()}
