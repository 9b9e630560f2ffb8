"""LLaVA: vision tower, projector, decoder, and the three sites at which a method may reduce the visual tokens.

    pixels -> ViT -[vision]-> projector -> splice into the prompt -[embed]-> layer 0 .. -[decoder]-> .. -> next token

An image is its pixels (1, 3, size, size), or, in LLaVA-NeXT, Tiles: their patches then make two grids, the base tile's
and the map's, whose rows each end with a newline token, `image_newline`. A method of the vision site sees all tiles,
also what shows nothing of the picture; no newline is put between what it leaves.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minivlm.cache import Cache
from minivlm.clip import ACTIVATIONS, ClipVision
from minivlm.llama import Decoder
from minivlm.tiles import Tiles
from minivlm.trace import Trace
from minivlm.views import tower_view
from pruning.apply import checked
from pruning.base import Tokens, UserError, whole_grid
from pruning.mosaic import Mosaic


class Part(NamedTuple):
    """A piece of the prompt: words, or an image."""

    hidden: Tensor                     # (m, D)
    grid: Tensor | None = None         # (m, 3)    of an image
    source: Tensor | None = None       # (m,)


class Projector(nn.Module):
    """linear_2(act(linear_1(x))): from the width of the vision tower to that of the decoder."""

    def __init__(self, c):
        super().__init__()
        layers = c.vision_feature_layer
        layers_read = 1 if isinstance(layers, int) else len(layers)
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

    tower = ClipVision                             # another family has another one
    projector = Projector                          # and here, too
    lacks = {}                                     # which PRECONDITIONS of methods it does not meet, and why

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
        if config.image_grid_pinpoints:
            self.image_newline = nn.Parameter(torch.zeros(text.hidden_size))

    @property
    def device(self):
        """Where the weights are."""
        return self.lm_head.weight.device

    def features(self, pixels, pruner=None, trace=None, mosaic=None):
        """One image, (tiles, 3, size, size) -> features (n, C), their grid (n, 3) and source (n,), after the vision
        site.

        With a mosaic, what a method keeps is sent on in its `output_order`. Without a method: tile after tile.
        """
        pruner = pruner and pruner.at("vision")
        layers = self._feature_layers()
        depth = max(layers)
        states = self.vision_tower(pixels, depth)
        hidden = torch.cat([states[l] for l in layers], dim=-1)                    # (tiles, 1+P, C)
        tokens = self._tower_tokens(hidden, depth, pruner)
        if not pruner:
            return tokens.hidden[tokens.visual], tokens.grid, tokens.source
        # the method looks at the block before the features, and at the one after them
        before = tower_view(self.vision_tower, depth - 1, states, tokens)
        here = tower_view(self.vision_tower, depth, states, tokens)
        tokens = replace(tokens, before=before, here=here)
        r = checked(pruner, tokens)
        if mosaic:
            order = pruner.output_order(tokens.grid[r.keep], mosaic)
            r = _reordered(r, order)
        if trace is not None:
            in_prompt = replace(tokens, source=tokens.source + trace.N)
            trace.reduce("vision", depth, in_prompt, r)
        tokens = _only_visual(tokens).reduced(r)
        return tokens.hidden[tokens.visual], tokens.grid, tokens.source

    def _feature_layers(self):
        """Which hidden states of the tower the projector reads, counted from 0."""
        layers = self.config.vision_feature_layer
        if isinstance(layers, int):
            layers = [layers]
        states = len(self.vision_tower.layers) + 1
        return [l % states for l in layers]

    def _tower_tokens(self, hidden, depth, pruner):
        """All tiles of one image, (tiles, 1+P, C), as one sequence in front of block `depth`."""
        tiles, rows, _ = hidden.shape
        skipped = self._skipped(pruner)
        index = torch.arange(tiles * rows).view(tiles, rows)
        visual = index[:, skipped:].flatten()                                      # (n,)
        grid = self._whole_grid(tiles, pruner)                                     # (n, 3)
        return Tokens.start(hidden.flatten(0, 1), visual, grid, layer=depth)

    def _skipped(self, pruner=None):
        """Rows of each tile that are no visual tokens: the class token, unless model or method takes it for one."""
        if self.config.vision_feature_select_strategy == "full":
            return 0
        pruner = pruner and pruner.at("vision")
        if pruner and pruner.cls:
            return 0
        return 1

    def visual_tokens(self, image):
        """How many visual tokens an image becomes, unpruned."""
        if isinstance(image, Tiles):
            patches, _ = self.mosaic(image).lines()
            return len(patches)
        return len(self._whole_grid(len(image)))

    def _whole_grid(self, tiles, pruner=None):
        """(N, 3) places of all visual tokens that the tower can give of so many tiles."""
        rows = self.vision_tower.embeddings.position_embedding.num_embeddings
        grid = tile_grid(tiles, rows)                                              # (tiles, 1+P, 3)
        return grid[:, self._skipped(pruner):].flatten(0, 1)

    def parts(self, images):
        """{"tile": (how many, patches of each), "image": (how many, patches of each, on average)}"""
        tiles = sum(len(image) for image in images)
        patches = self.vision_tower.embeddings.position_embedding.num_embeddings - 1
        return {
            "tile": (tiles, patches),
            "image": (len(images), tiles * patches // len(images)),
        }

    def mosaic(self, image):
        """How the patches of an image's Tiles lie."""
        c = self.config
        side = c.vision.image_size // c.vision.patch_size
        digits = None if c.original else 7                 # of transformers' rounding
        return Mosaic(side, image.grid, image.size, digits)

    def embed(self, ids, images=(), pruner=None, trace=None):
        """ids (T,) with one image mark an image, and each image's pixels or Tiles -> Tokens that enter the decoder.

        Raises UserError if marks and images do not match.
        """
        ids = torch.as_tensor(ids, dtype=torch.long, device=self.device)           # of no ids, too
        is_mark = ids == self.config.image_token_index
        self._check_rows(ids[~is_mark].tolist())
        marks = is_mark.nonzero().squeeze(1).tolist()
        if len(marks) != len(images):
            raise UserError(f"the prompt has {len(marks)} <image> marks for {len(images)} images: "
                            "write one mark an image")
        trace = Trace() if trace is None else trace
        trace.grid = torch.empty(0, 3, dtype=torch.long)
        trace.unpruned = sum(self.visual_tokens(image) for image in images)
        # words and images in turn
        embed_tokens = self.language_model.embed_tokens
        parts = []
        start = 0
        tile = 0                                           # tiles are counted over all images
        for mark, image in zip(marks, images):
            parts.append(Part(embed_tokens(ids[start:mark])))
            start = mark + 1
            if isinstance(image, Tiles):
                parts.append(self._mosaic_part(image, tile, pruner, trace))
                tile += 2                                  # the base tile and the map
            else:
                parts.append(self._image_part(image, tile, pruner, trace))
                tile += len(image)
        parts.append(Part(embed_tokens(ids[start:])))
        tokens = spliced(parts)
        # the embed site
        pruner = pruner and pruner.at("embed")
        if pruner and tokens.n:
            r = checked(pruner, tokens)
            trace.reduce("embed", 0, tokens, r)
            tokens = tokens.reduced(r, "renumber")         # the decoder never saw the dropped tokens
        return tokens

    def _check_rows(self, ids):
        """Raises UserError for an id without a row in the embedding: the tokenizer knows it, the model does not."""
        rows = self.language_model.embed_tokens.num_embeddings
        lost = [int(id) for id in ids if int(id) not in range(rows)]
        if not lost:
            return
        id = lost[0]
        tokenizer = getattr(self, "tokenizer", None)
        piece = f" {tokenizer.pieces([id])[0]}" if tokenizer and id >= 0 else ""
        raise UserError(f"the token{piece} has the id {id}, and the model's embedding has {rows} rows: "
                        "leave it out of the text, or fetch the tokenizer's files that belong to these weights")

    def _image_part(self, pixels, tile, pruner, trace):
        """The Part of one image. Its tiles are counted from `tile`, its tokens from those of the images before it."""
        features, grid, source = self.features(pixels.to(self.device), pruner, trace)
        hidden = self.multi_modal_projector(features)                              # (k, D)
        first = trace.N
        whole = self._whole_grid(len(pixels), pruner)                              # (N, 3)
        trace.image(_counted_from(tile, whole))
        grid = _counted_from(tile, grid)
        return Part(hidden, grid, source + first)

    def _mosaic_part(self, tiles, tile, pruner, trace):
        """The same of one image's Tiles, whose base tile and map count as two tiles."""
        mosaic = self.mosaic(tiles)
        pixels = tiles.pixels.to(self.device)
        features, grid, source = self.features(pixels, pruner, trace, mosaic)
        first = trace.N
        if pruner and pruner.at("vision"):
            # what the method keeps, without newlines
            hidden = self.multi_modal_projector(features)                          # (k, D)
            whole = self._whole_grid(len(tiles), pruner)                           # (N, 3)
            whole = _counted_from(tile, mosaic.on_map(whole))
            trace.image(whole, (0, 0))
            grid = _counted_from(tile, mosaic.on_map(grid))
            return Part(hidden, grid, source + first)
        # what shows something of the picture, a newline after each row of the map
        patch, grid = mosaic.lines()                                               # (n,), (n, 3)
        is_patch = patch >= 0
        shown = features[patch[is_patch]]
        hidden = self.image_newline.repeat(len(patch), 1)                          # (n, D)
        hidden[is_patch] = self.multi_modal_projector(shown)
        grid = _counted_from(tile, grid)
        trace.image(grid, mosaic.padding)
        source = torch.arange(first, trace.N, device=self.device)
        return Part(hidden, grid.to(self.device), source)

    def prefill(self, tokens, pruner=None, trace=None):
        """Tokens of the whole prompt -> logits of the next token (V,) and the cache. UserError if it is too long."""
        longest = self.config.text.max_position_embeddings
        if len(tokens.hidden) > longest:
            raise UserError(f"the prompt has {len(tokens.hidden)} tokens and the model's context is {longest}: "
                            "shorten it")
        if not len(tokens.hidden):
            raise UserError("no token of the prompt is left, so nothing can follow it: give it text, or a method that "
                            "keeps some of the image")
        cache = Cache.empty(len(self.language_model.layers))
        hidden = self.language_model.prefill(tokens, cache, pruner, trace)
        return self.lm_head(hidden[-1]), cache

    def step(self, ids, cache, pruner=None):
        """Run m more ids after what the cache holds -> logits of the next token (V,)."""
        self._check_rows(ids)
        ids = torch.as_tensor(ids, device=self.device)
        hidden = self.language_model.embed_tokens(ids)
        hidden = self.language_model.step(hidden, cache, pruner)
        return self.lm_head(hidden[-1])


def tile_grid(tiles, rows):
    """(tiles, 1+P, 3) places: of each tile the class token, on no grid, and the patches of a square grid, row by
    row."""
    side = math.isqrt(rows - 1)
    class_token = torch.tensor([[0, -1, -1]])
    one_tile = torch.cat([class_token, whole_grid(side, side)])                    # (1+P, 3)
    grid = one_tile.repeat(tiles, 1, 1)                                            # (tiles, 1+P, 3)
    grid[:, :, 0] = torch.arange(tiles)[:, None]
    return grid


def _counted_from(tile, grid):
    """The places (n, 3) with their tiles counted from `tile`."""
    return grid + torch.tensor([tile, 0, 0], device=grid.device)


def _reordered(r, order):
    """The Reduction with these of its rows (k',), in this order."""
    keep = r.keep[order]
    merge = None if r.merge is None else r.merge[order]
    return replace(r, keep=keep, merge=merge)


def _only_visual(tokens):
    """The visual tokens without the class tokens between them, which would keep each tile's together."""
    rows = tokens.visual
    hidden = tokens.hidden[rows]
    position = tokens.position[rows]
    return replace(tokens, hidden=hidden, position=position, visual=tokens.source)


def spliced(parts):
    """The words and images of a prompt, in turn -> Tokens."""
    hidden = torch.cat([part.hidden for part in parts])                            # (T, D)
    # the rows of the images
    length = torch.tensor([len(part.hidden) for part in parts])
    is_image = torch.tensor([part.grid is not None for part in parts])
    is_visual = is_image.repeat_interleave(length)                                 # (T,)
    visual = is_visual.nonzero().squeeze(1)                                        # (n,)
    images = [part for part in parts if part.grid is not None]
    if not images:
        return Tokens.start(hidden, visual, torch.empty(0, 3, dtype=torch.long))
    grid = torch.cat([part.grid for part in images])                               # (n, 3)
    source = torch.cat([part.source for part in images])                           # (n,)
    return replace(Tokens.start(hidden, visual, grid), source=source)
