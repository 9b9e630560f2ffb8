"""LLaVA: vision tower, projector, decoder, and the three sites at which a method may reduce the visual tokens.

    pixels -> ViT -[vision]-> projector -> splice into the prompt -[embed]-> layer 0 .. -[decoder]-> .. -> next token

An image is its pixels (1, 3, size, size), or, in LLaVA-NeXT, Tiles: their patches then make two grids, the base tile's and
the map's, whose rows each end with a newline token, `image_newline`. A method of the vision site sees all tiles, also what
shows nothing of the picture; no newline is put between what it leaves.
"""

from dataclasses import replace

import torch
from torch import nn

from minivlm.cache import Cache
from minivlm.clip import ACTIVATIONS, ClipVision
from minivlm.llama import Decoder
from minivlm.tiles import Tiles
from minivlm.trace import Trace
from minivlm.views import tower_view
from pruning.apply import checked
from pruning.base import Tokens, UserError
from pruning.mosaic import Mosaic


class Projector(nn.Module):
    """linear_2(act(linear_1(x))): from the width of the vision tower to that of the decoder."""

    def __init__(self, c):
        super().__init__()
        features = 1 if isinstance(c.vision_feature_layer, int) else len(c.vision_feature_layer)
        width, bias = c.text.hidden_size, c.multimodal_projector_bias
        self.linear_1 = nn.Linear(c.vision.hidden_size * features, width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)
        self.act = ACTIVATIONS[c.projector_hidden_act]

    def forward(self, x):
        """(.., C) -> (.., D)"""
        return self.linear_2(self.act(self.linear_1(x)))


class Llava(nn.Module):
    """The whole model. `weights.load` makes one from a checkpoint folder and adds tokenizer, processor and eos."""

    tower, projector = ClipVision, Projector       # another family has others
    lacks = {}                                     # which PRECONDITIONS of methods it does not meet, and why

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_tower = self.tower(config.vision)
        self.multi_modal_projector = self.projector(config)
        self.language_model = Decoder(config.text)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if config.text.tie_word_embeddings:
            self.lm_head.weight = self.language_model.embed_tokens.weight
        if config.image_grid_pinpoints:
            self.image_newline = nn.Parameter(torch.zeros(config.text.hidden_size))

    @property
    def device(self):
        """Where the weights are."""
        return self.lm_head.weight.device

    def features(self, pixels, pruner=None, trace=None, mosaic=None):
        """One image, (tiles, 3, size, size) -> features (n, C), cell (n, 3) and origin (n,), after the vision site.

        With a mosaic, what a method leaves stands as that method's `assemble` says; without a method, tile after tile.
        """
        pruner = pruner and pruner.at("vision")
        skip = self._skip(pruner)
        layers = self._feature_layers()
        states = self.vision_tower(pixels, max(layers))
        hidden = torch.cat([states[l] for l in layers], dim=-1)                    # (tiles, 1+P, C)
        grid = _grid(*hidden.shape[:2], hidden.device)[:, skip:].flatten(0, 1)     # (n, 3)
        if not pruner:
            return hidden[:, skip:].flatten(0, 1), grid, torch.arange(len(grid), device=grid.device)
        tokens = self._vision_tokens(hidden, grid, states, max(layers), skip)
        r = checked(pruner, tokens)
        if mosaic:
            order = pruner.output_order(tokens.grid[r.keep], mosaic)
            r = replace(r, keep=r.keep[order], merge=None if r.merge is None else r.merge[order])
        if trace is not None:
            trace.reduce("vision", tokens.layer, replace(tokens, source=tokens.source + trace.N), r)
        tokens = _only_visual(tokens).reduced(r)
        return tokens.hidden[tokens.visual], tokens.grid, tokens.source

    def _feature_layers(self):
        """Which hidden states of the tower the projector reads, counted from 0."""
        layers = self.config.vision_feature_layer
        count = len(self.vision_tower.layers) + 1
        return [l % count for l in ([layers] if isinstance(layers, int) else layers)]

    def _vision_tokens(self, hidden, grid, states, depth, skip):
        """All tiles of one image as one sequence, in front of block `depth`."""
        tiles, rows, _ = hidden.shape
        index = torch.arange(tiles * rows, device=hidden.device)
        visual = index.view(tiles, rows)[:, skip:].flatten()
        tokens = replace(Tokens.start(hidden.flatten(0, 1), visual, grid), layer=depth)
        before = tower_view(self.vision_tower, depth - 1, states, tokens)
        here = tower_view(self.vision_tower, depth, states, tokens)
        return replace(tokens, before=before, here=here)

    def visual_tokens(self, image):
        """How many visual tokens an image becomes, unpruned."""
        if isinstance(image, Tiles):
            return len(self.mosaic(image).lines()[0])
        return len(image) * (self.vision_tower.embeddings.position_embedding.num_embeddings - self._skip(None))

    def parts(self, images):
        """{"tile": (how many, patches of each), "image": (how many, patches of each, on average)}"""
        tiles, patches = sum(map(len, images)), self.vision_tower.embeddings.position_embedding.num_embeddings - 1
        return {"tile": (tiles, patches), "image": (len(images), tiles * patches // len(images))}

    def mosaic(self, image):
        """How the patches of an image's Tiles lie; None for one without."""
        c = self.config
        side, digits = c.vision.image_size // c.vision.patch_size, None if c.original else 7
        return Mosaic(side, image.grid, image.size, digits) if isinstance(image, Tiles) else None

    def _skip(self, pruner):
        """Rows of each tile that are no visual tokens: the class token, unless model or method takes it for one."""
        pruner = pruner and pruner.at("vision")
        return 0 if self.config.vision_feature_select_strategy == "full" or pruner and pruner.cls else 1

    def embed(self, ids, images=(), pruner=None, trace=None):
        """ids (T,) with one image mark an image, and each image's pixels or Tiles -> Tokens that enter the decoder.

        Raises UserError if marks and images do not match.
        """
        ids = torch.as_tensor(ids, dtype=torch.long, device=self.device)       # of no ids, too
        self._check_rows([id for id in ids.tolist() if id != self.config.image_token_index])
        marks = (ids == self.config.image_token_index).nonzero().squeeze(1).tolist()
        if len(marks) != len(images):
            raise UserError(f"the prompt has {len(marks)} <image> marks for {len(images)} images: write one mark an image")
        trace = Trace() if trace is None else trace
        trace.cells, trace.unpruned = torch.empty(0, 3, dtype=torch.long), sum(map(self.visual_tokens, images))
        parts, start, tile = [], 0, 0
        for mark, image in zip(marks, images):
            read = self._tiles if isinstance(image, Tiles) else self._image
            parts += [(self.language_model.embed_tokens(ids[start:mark]),), read(image, tile, pruner, trace)]
            start, tile = mark + 1, tile + (2 if isinstance(image, Tiles) else len(image))
        parts.append((self.language_model.embed_tokens(ids[start:]),))
        tokens = _spliced(parts)
        if tokens.n and pruner and pruner.at("embed"):
            r = checked(pruner.at("embed"), tokens)
            trace.reduce("embed", 0, tokens, r)
            tokens = tokens.reduced(r, "renumber")     # the decoder never saw the dropped tokens
        return tokens

    def _check_rows(self, ids):
        """Raises UserError for an id without a row in the embedding: a token that was added to the tokenizer, not to the model."""
        rows = self.language_model.embed_tokens.num_embeddings
        lost = next((id for id in map(int, ids) if not 0 <= id < rows), None)
        if lost is not None:
            tokenizer = getattr(self, "tokenizer", None)
            piece = f" {tokenizer.pieces([lost])[0]}" if tokenizer and lost >= 0 else ""
            raise UserError(f"the token{piece} has the id {lost}, and the model's embedding has {rows} rows: leave it out of the text, "
                            "or fetch the tokenizer's files that belong to these weights")

    def _image(self, pixels, tile, pruner, trace):
        """One image's embeddings (k, D), cell and origin; tiles and tokens counted over all images of the prompt."""
        features, cell, origin = self.features(pixels.to(self.device), pruner, trace)
        shift, first = torch.tensor([tile, 0, 0]), trace.N
        trace.image(self._every(len(pixels), pruner) + shift)
        return self.multi_modal_projector(features), cell + shift.to(cell.device), origin + first

    def _tiles(self, tiles, tile, pruner, trace):
        """The same of one image's Tiles, whose base tile and map count as two tiles."""
        mosaic, shift, first = self.mosaic(tiles), torch.tensor([tile, 0, 0]), trace.N
        features, cell, origin = self.features(tiles.pixels.to(self.device), pruner, trace, mosaic)
        if pruner and pruner.at("vision"):
            trace.image(mosaic.on_map(self._every(len(tiles), pruner)) + shift, (0, 0))
            return self.multi_modal_projector(features), mosaic.on_map(cell) + shift.to(cell.device), origin + first
        order, cell = (x.to(self.device) for x in mosaic.lines())
        hidden = self.image_newline.repeat(len(order), 1)                          # (n, D)
        hidden[order >= 0] = self.multi_modal_projector(features[order[order >= 0]])
        trace.image(cell.cpu() + shift, mosaic.padding)
        return hidden, cell + shift.to(cell.device), torch.arange(first, trace.N, device=cell.device)

    def _every(self, tiles, pruner):
        """(N, 3) cells of all visual tokens that the tower can give of so many tiles."""
        rows = self.vision_tower.embeddings.position_embedding.num_embeddings
        return _grid(tiles, rows, "cpu")[:, self._skip(pruner):].flatten(0, 1)

    def prefill(self, tokens, pruner=None, trace=None):
        """Tokens of the whole prompt -> logits of the next token (V,) and the cache. UserError if it is too long."""
        longest = self.config.text.max_position_embeddings
        if len(tokens.hidden) > longest:
            raise UserError(f"the prompt has {len(tokens.hidden)} tokens and the model's context is {longest}: shorten it")
        if not len(tokens.hidden):
            raise UserError("no token of the prompt is left, so nothing can follow it: give it text, or a method that keeps some of the image")
        cache = Cache.empty(len(self.language_model.layers))
        hidden = self.language_model.prefill(tokens, cache, pruner and pruner.at("decoder"), trace)
        return self.lm_head(hidden[-1]), cache

    def step(self, ids, cache, pruner=None):
        """Run m more ids after what the cache holds -> logits of the next token (V,)."""
        self._check_rows(ids)
        hidden = self.language_model.embed_tokens(torch.as_tensor(ids, device=self.device))
        return self.lm_head(self.language_model.step(hidden, cache, pruner and pruner.at("decoder"))[-1])


def _grid(tiles, rows, device):
    """(tiles, 1+P, 3): tile, row, column of each patch of a square grid, row by row; the class token is on no grid."""
    side = round((rows - 1) ** 0.5)
    grid = torch.full((tiles, rows, 3), -1, device=device)
    grid[:, :, 0] = torch.arange(tiles, device=device)[:, None]
    grid[:, 1:, 1] = torch.arange(rows - 1, device=device) // side
    grid[:, 1:, 2] = torch.arange(rows - 1, device=device) % side
    return grid


def _only_visual(tokens):
    """The visual tokens without the class tokens between them, which would keep each tile's together."""
    rows = tokens.visual
    return replace(tokens, hidden=tokens.hidden[rows], position=tokens.position[rows], visual=tokens.source)


def _spliced(parts):
    """Text (embeddings,) and images (embeddings, grid, source) in turn -> Tokens."""
    hidden = torch.cat([part[0] for part in parts])                                # (T, D)
    device = hidden.device
    lengths = torch.tensor([len(part[0]) for part in parts], device=device)
    is_image = torch.tensor([len(part) > 1 for part in parts], device=device)
    visual = torch.repeat_interleave(is_image, lengths).nonzero().squeeze(1)       # (n,)
    images = [part for part in parts if len(part) > 1]
    grid = torch.cat([part[1] for part in images]) if images else torch.empty(0, 3, dtype=torch.long, device=device)
    tokens = Tokens.start(hidden, visual, grid)
    return replace(tokens, source=torch.cat([part[2] for part in images])) if images else tokens
