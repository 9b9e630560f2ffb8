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
from minivlm.io.image import MEAN, STD
from minivlm.llava import Llava
from minivlm.parts.config import LlavaConfig, TextConfig, VisionConfig
from minivlm.toy import scenes
from minivlm.toy.packing import PATCHES, PREFIX, layout
from minivlm.toy.questions import ID
from minivlm.toy.scenes import COLORS, GLYPHS, GRID, OBJECTS, SCENES, SHAPES

ROWS = 96                                          # of the embedding: the words, and some that no word uses
FIRST = len(PREFIX)                                # position of the first visual token
NO_THING = 8                                       # a patch that shows fewer pixels of a thing shows none


def config():
    """2.6 million parameters: a 4-layer tower and an 8-layer decoder of width 128, 144 visual tokens."""
    vision = VisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=scenes.SIDE,
        patch_size=scenes.PATCH,
    )
    text = TextConfig(
        vocab_size=ROWS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        rms_norm_eps=1e-5,
    )
    return LlavaConfig(
        vision,
        text,
        image_token_index=ID["<image>"],
        pad_token_id=ID["<pad>"],
        dtype="float16",
    )


class Student(nn.Module):
    """The network, and the heads of the vision targets, which are not shipped."""

    def __init__(self, config):
        super().__init__()
        self.llava = Llava(config)
        width = config.vision.hidden_size
        sizes = dict(
            kind=len(SHAPES) + 2,
            color=len(COLORS) + 2,
            glyph=len(GLYPHS),
            place=2,
        )
        sizes["content"] = len(SHAPES) * len(COLORS) + len(SCENES)
        self.heads = nn.ModuleDict()
        for name, size in sizes.items():
            self.heads[name] = nn.Linear(width, size)
        self._start(config)

    @torch.no_grad()
    def _start(self, config):
        """Small embeddings; positions of the tower start as waves over rows and columns."""
        tower = self.llava.vision_tower.embeddings
        self.llava.language_model.embed_tokens.weight.normal_(0, 0.3)
        self.llava.lm_head.weight.normal_(0, 0.02)
        tower.class_embedding.normal_(0, 0.3)
        # waves
        at = torch.arange(PATCHES)
        row = at // GRID
        column = at % GRID
        width = config.vision.hidden_size
        rate = torch.logspace(0, -1.2, width // 4)
        rate = rate * math.pi / 2
        waves = []
        for axis in (row, column):
            angle = axis[:, None] * rate                                           # (N, C/4)
            waves.append(torch.sin(angle))
            waves.append(torch.cos(angle))
        position = tower.position_embedding.weight
        position[1:] = 0.3 * torch.cat(waves, dim=1)
        position[0] = 0

    def vision_loss(self, worlds, content=True):
        """The targets of stage 1 -> loss, and the features (B, 144, C)."""
        tower = self.llava.vision_tower
        device = self.llava.device
        top = tower.config.num_hidden_layers
        last = top if content else top - 1
        images = pixels(worlds).to(device)
        states = tower(images, last)
        features = states[top - 1][:, 1:]
        target = {}
        for name, values in patch_targets(worlds).items():
            target[name] = values.to(device)
        logits = {}
        for name in ("kind", "color", "glyph", "place"):
            logits[name] = self.heads[name](features).float()                      # (B, N, classes)
        # where each patch is
        loss = F.mse_loss(logits["place"], target["place"])
        loss = loss * 5
        # the colour and the glyph of what it shows, if it has one
        for name in ("color", "glyph"):
            wanted = target[name].flatten()                                        # (B * N,)
            total = F.cross_entropy(
                logits[name].flatten(0, 1),
                wanted,
                ignore_index=-1,
                reduction="sum",
            )
            count = (wanted >= 0).sum()
            loss = loss + total / count.clamp(min=1)
        # whether it shows a thing, and of which shape
        kind = target["kind"].flatten()
        losses = F.cross_entropy(
            logits["kind"].flatten(0, 1),
            kind,
            reduction="none",
        )
        is_none = kind == 0                        # five of six patches: they weigh as much as the others together
        loss = loss + losses[is_none].mean()
        loss = loss + losses[~is_none].mean()
        # what the whole picture shows
        if content:
            cls = states[top][:, 0]
            cls = tower.post_layernorm(cls)
            cls = self.heads["content"](cls)
            cls = cls.float()
            total = F.binary_cross_entropy_with_logits(cls, target["content"])
            loss = loss + 5 * total
        return loss, features

    def answers(self, features, text, shown, closed=False):
        """Logits (B, T, V) of the packed text (B, T), when each picture shows its patches `shown` (B, k).

        They keep their positions, as after a cut in the decoder, or are `closed` up, as when the decoder never saw the
        others.
        """
        decoder = self.llava.language_model
        B, k = shown.shape
        device = text.device
        # the prompt, the patches shown, the questions
        width = features.shape[2]
        index = shown[..., None].expand(-1, -1, width)
        left = features.gather(1, index)                                           # (B, k, C)
        visual = self.llava.multi_modal_projector(left)                            # (B, k, D)
        prefix = text.new_tensor(PREFIX)
        prefix = prefix.expand(B, -1)
        ids = torch.cat([prefix, text], dim=1)
        words = decoder.embed_tokens(ids)                                          # (B, 3+T, D)
        before = words[:, :FIRST]
        after = words[:, FIRST:]
        hidden = torch.cat([before, visual, after], dim=1)                         # (B, 3+k+T, D)
        # their positions: each block begins behind the picture
        block, offset = layout(device)
        place = shown
        end = PATCHES
        if closed:
            place = torch.arange(k, device=device).expand(B, -1)
            end = k
        first = torch.arange(FIRST, device=device)
        first = first.expand(B, -1)
        later = FIRST + end + offset
        later = later.expand(B, -1)
        position = torch.cat([first, FIRST + place, later], dim=1)                 # (B, 3+k+T)
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        rope = decoder.rope(position.flatten(), dtype)
        rope = [part.unflatten(0, (B, 1, -1)) for part in rope]                    # (B, 1, 3+k+T, Dh) twice
        # each block sees the picture and itself, block 0 is prompt and picture
        block = torch.cat([block.new_zeros(FIRST + k), block])
        is_same = block[:, None] == block
        allowed = (is_same | (block == 0)).tril()
        mask = additive(allowed, torch.float32)
        for layer in decoder.layers:
            hidden = layer(hidden, rope, mask=mask)
        hidden = decoder.norm(hidden[:, FIRST + k:])
        return self.llava.lm_head(hidden)


def pixels(worlds):
    """(B, 3, 96, 96) as the image processor makes them of a picture of that size."""
    x = worlds.pixels.astype(np.float32)
    x = x / 255
    x = x - np.float32(MEAN)
    x = x / np.float32(STD)
    x = x.transpose(0, 3, 1, 2).copy()
    return torch.from_numpy(x)


def patch_targets(worlds):
    """Of each patch: kind (0 none, 1.. a shape, 7 a sign), color (7 white, 8 black: of the sign), glyph, place; -1 has
    none.

    And the content of the picture.
    """
    B = len(worlds.scene)
    rows = np.arange(B)[:, None]
    # the thing that each patch shows most of
    slot = worlds.area.argmax(axis=1)                                              # (B, N)
    shows = worlds.area.max(axis=1) >= NO_THING
    is_sign = slot >= OBJECTS
    thing = np.minimum(slot, OBJECTS - 1)
    sign = np.maximum(slot - OBJECTS, 0)
    shape = worlds.shape[rows, thing]
    kind = np.where(is_sign, len(SHAPES) + 1, 1 + shape)
    color = worlds.color[rows, thing]
    color = np.where(is_sign, len(COLORS) + sign, color)
    glyph = worlds.glyph[rows, sign]
    # row and column, 0 to 1
    row, column = np.divmod(np.arange(PATCHES), GRID)
    place = np.stack([row, column], axis=1)                                        # (N, 2)
    place = place / np.float32(GRID - 1)
    place = np.broadcast_to(place, (B, PATCHES, 2))
    targets = dict(content=_content(worlds))
    targets["kind"] = np.where(shows, kind, 0)
    targets["color"] = np.where(shows, color, -1)
    targets["glyph"] = np.where(shows & is_sign, glyph, -1)
    targets["place"] = place.astype(np.float32)
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in targets.items()}


def _content(worlds):
    """(B, 48) 1 for each pair of shape and colour that the picture has, and for its scene."""
    B = len(worlds.scene)
    kinds = len(SHAPES) * len(COLORS)
    content = np.zeros((B, kinds + len(SCENES)), np.float32)
    picture, slot = worlds.present[:, :OBJECTS].nonzero()
    shape = worlds.shape[picture, slot]
    color = worlds.color[picture, slot]
    pair = shape * len(COLORS) + color
    content[picture, pair] = 1
    rows = np.arange(B)
    content[rows, kinds + worlds.scene] = 1
    return content
