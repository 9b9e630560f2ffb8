"""LLaVA: vision tower, projector, decoder, and the three sites at which a method may reduce the visual tokens.

    pixels -> ViT -[vision]-> projector -> splice into the prompt -[embed]-> layer 0 .. -[decoder]-> .. -> next token

LLaVA-NeXT, which cuts a picture into tiles, is in families/llava_next.py.
"""

import torch
from torch import nn

from minivlm.cache import Cache
from minivlm.clip import ClipVision
from minivlm.llama import Decoder
from minivlm.parts.activations import ACTIVATIONS
from minivlm.parts.checks import check_ids, check_length
from minivlm.parts.merging import tower_output
from minivlm.parts.sequence import Part, counted_from, only_visual, places_on_tiles, positioned, spliced, tower_tokens
from minivlm.trace import Trace, note
from pruning.apply import acting, checked
from pruning.base import UserError


class Projector(nn.Module):
    """linear_2(act(linear_1(x))): from the width of the vision tower to that of the decoder."""

    def __init__(self, c):
        super().__init__()
        layers_read = len(c.feature_layers)
        vision_width = layers_read * c.vision.hidden_size
        text_width = c.text.hidden_size
        self.linear_1 = nn.Linear(vision_width, text_width, bias=c.multimodal_projector_bias)
        self.linear_2 = nn.Linear(text_width, text_width, bias=c.multimodal_projector_bias)
        self.act = ACTIVATIONS[c.projector_hidden_act]

    def forward(self, x):
        """(.., C) -> (.., D)"""
        return self.linear_2(self.act(self.linear_1(x)))


class Llava(nn.Module):
    """The whole model. `weights.load` makes one from a checkpoint folder and adds tokenizer, processor and eos."""

    tower = ClipVision                             # a subclass for another family replaces these
    projector = Projector
    lacks = {}                                     # {precondition of some methods: why this model does not meet it}

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_tower = self.tower(config.vision)
        self.multi_modal_projector = self.projector(config)
        self.language_model = Decoder(config.text)
        text = config.text
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if text.tie_word_embeddings:
            self.lm_head.weight = self.language_model.embed_tokens.weight

    @property
    def device(self):
        """Where the weights are."""
        return self.lm_head.weight.device

    def features(self, pixels, pruner=None, trace=None):
        """One image, (tiles, 3, size, size) -> features (n, C), grid (n, 3) and source (n,) of the tokens it leaves."""
        method = acting(pruner, "image") or acting(pruner, "vision")
        tokens, r = tower_output(self, pixels, method)
        if r is not None:
            tokens = self.cut(tokens, r, method.site, trace)
        features = tokens.hidden[tokens.visual]                                    # (n, C)
        return features, tokens.grid, tokens.source

    def encode(self, pixels, pruner=None, side=None):
        """The Tokens that a method of the vision site is given: all tiles as one sequence, with views of the tower."""
        layers = self.config.feature_layers
        states = self.vision_tower(pixels, max(layers))
        hidden = torch.cat([states[l] for l in layers], dim=-1)                    # (tiles, 1+P, C)
        grid = self.visual_grid(len(pixels), pruner, side)                         # (n, 3)
        return tower_tokens(self.vision_tower, states, hidden, grid)

    def cut(self, tokens, r, site, trace=None):
        """The visual tokens that a method keeps before the projector."""
        note(trace, site, tokens, r)
        return only_visual(tokens).reduced(r)                      # without the class tokens that are not visual

    def visual_grid(self, tiles, pruner=None, side=None):
        """(N, 3) the grid, as in Tokens, of the visual tokens of this many tiles before any are dropped.

        They are the patches, and the class tokens if the model or the method uses them. side: of a smaller picture.
        """
        pruner = acting(pruner, "vision")
        model_uses_class = self.config.sends_class_token
        method_uses_class = pruner is not None and pruner.cls
        with_class = model_uses_class or method_uses_class
        side = side or self.config.grid_side
        return places_on_tiles(tiles, side, with_class)

    def visual_tokens(self, image):
        """How many visual tokens an image becomes, unpruned."""
        return len(self.visual_grid(len(image)))

    def parts(self, images):
        """{"tile": (how many, tokens of each), "image": (how many, tokens of each on average)}, for budgets."""
        tiles = sum(len(image) for image in images)
        tokens = self.config.grid_side ** 2
        per_image = tiles * tokens // len(images)
        return {"tile": (tiles, tokens), "image": (len(images), per_image)}

    def embed(self, ids, images=(), pruner=None, trace=None):
        """ids (T,) with one mark per image, and each image's pixels -> Tokens. UserError if marks and images differ."""
        ids = torch.as_tensor(ids, dtype=torch.long, device=self.device)
        is_mark = ids == self.config.image_token_index
        check_ids(self, ids[~is_mark].tolist())
        marks = is_mark.nonzero().squeeze(1).tolist()
        if len(marks) != len(images):
            raise UserError(f"the prompt has {len(marks)} <image> marks for {len(images)} images: "
                            "write one mark per image")
        trace = Trace() if trace is None else trace        # it also counts the tiles and visual tokens so far
        trace.unpruned = sum(self.visual_tokens(image) for image in images)
        # words and images in turn
        embed_tokens = self.language_model.embed_tokens
        parts = []
        start = 0
        for mark, image in zip(marks, images):
            parts.append(Part(embed_tokens(ids[start:mark])))
            parts.append(self.image_part(image, pruner, trace))
            start = mark + 1
        parts.append(Part(embed_tokens(ids[start:])))
        tokens = spliced(parts)
        # the embed site
        pruner = acting(pruner, "embed")
        if pruner and tokens.n:
            r = checked(pruner, tokens)
            trace.reduce("embed", 0, tokens, r)
            tokens = tokens.reduced(r, pruner.positions or "renumber")     # the decoder never saw the dropped tokens
        return tokens

    def image_part(self, pixels, pruner, trace):
        """The Part of one image, its tiles and sources numbered after those of the images before it."""
        first_tile = trace.tiles
        first_source = trace.N
        pixels = pixels.to(self.device)
        features, grid, source = self.features(pixels, pruner, trace)
        hidden = self.multi_modal_projector(features)                              # (k, D)
        unpruned_grid = self.visual_grid(len(pixels), pruner)                      # (N, 3)
        trace.image(counted_from(first_tile, unpruned_grid))
        part = Part(hidden, counted_from(first_tile, grid), source + first_source)
        return positioned(part, acting(pruner, "vision"), source, len(unpruned_grid))

    def prefill(self, tokens, pruner=None, trace=None):
        """Tokens of a prompt -> logits (V,) of the next token, and the cache. UserError if the prompt is too long."""
        c = self.config.text
        check_length(len(tokens.hidden), tokens.next_position, c.max_position_embeddings)
        cache = Cache.empty(c.num_hidden_layers)
        hidden = self.language_model.prefill(tokens, cache, pruner, trace)
        return self.lm_head(hidden[-1]), cache

    def step(self, ids, cache, pruner=None):
        """Run m more ids after the tokens in the cache -> logits (V,) of the next token."""
        check_ids(self, ids)
        ids = torch.as_tensor(ids, device=self.device)
        hidden = self.language_model.embed_tokens(ids)
        hidden = self.language_model.step(hidden, cache, pruner)
        return self.lm_head(hidden[-1])
