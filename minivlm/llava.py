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
from minivlm.linear import Linear
from minivlm.llama import Decoder
from minivlm.tiles import Tiles
from minivlm.trace import Trace
from pruning.base import Tokens, UserError
from pruning.mosaic import Mosaic


class Projector(nn.Module):
    """linear_2(act(linear_1(x))): from the width of the vision tower to that of the decoder."""

    def __init__(self, c):
        super().__init__()
        features = 1 if isinstance(c.vision_feature_layer, int) else len(c.vision_feature_layer)
        width, bias = c.text.hidden_size, c.multimodal_projector_bias
        self.linear_1 = Linear(c.vision.hidden_size * features, width, bias=bias)
        self.linear_2 = Linear(width, width, bias=bias)
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
        self.lm_head = Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
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
        pruner, skip = pruner and pruner.at("vision"), self._skip(pruner)
        layers, count = self.config.vision_feature_layer, len(self.vision_tower.layers) + 1
        wanted = [l % count for l in ([layers] if isinstance(layers, int) else layers)]
        states, seen = self.vision_tower(pixels, wanted, pruner.needs if pruner else frozenset())
        hidden = torch.cat(states, dim=-1)                                         # (tiles, 1+P, C)
        cell = _cells(*hidden.shape[:2], hidden.device)                            # (tiles, 1+P, 3)
        if not pruner:
            cell = cell[:, skip:].flatten(0, 1)                                    # (n, 3)
            return hidden[:, skip:].flatten(0, 1), cell, torch.arange(len(cell), device=cell.device)
        tokens = _vision_tokens(hidden, cell, seen, max(wanted), skip)
        r = pruner.reduce(tokens)
        if mosaic:
            order = pruner.assemble(tokens.cell[r.keep], mosaic)
            r = replace(r, keep=r.keep[order], merge=None if r.merge is None else r.merge[order])
        if trace is not None:
            trace.reduce("vision", tokens.layer, replace(tokens, origin=tokens.origin + trace.N), r)
        tokens = _alone(tokens).reduced(r)
        return tokens.hidden[tokens.visual], tokens.cell, tokens.origin

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
            r = pruner.at("embed").reduce(tokens)
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
        return _cells(tiles, rows, "cpu")[:, self._skip(pruner):].flatten(0, 1)

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


def _cells(tiles, rows, device):
    """(tiles, 1+P, 3): tile, row, column of each patch of a square grid, row by row; the CLS row is on no grid."""
    side = round((rows - 1) ** 0.5)
    cell = torch.full((tiles, rows, 3), -1, device=device)
    cell[:, :, 0] = torch.arange(tiles, device=device)[:, None]
    cell[:, 1:, 1] = torch.arange(rows - 1, device=device) // side
    cell[:, 1:, 2] = torch.arange(rows - 1, device=device) % side
    return cell


def _vision_tokens(hidden, cell, seen, layer, skip):
    """All tiles of one image as one sequence; see Tokens for what `attn` is then."""
    tiles, rows, _ = hidden.shape
    index = torch.arange(tiles * rows, device=hidden.device).view(tiles, rows)
    visual = index[:, skip:].flatten()
    flat = {name: x.flatten(0, 1) for name, x in seen.items() if name in ("query", "key", "past_key")}
    for name in {"attn", "first_attn"} & set(seen):
        own = torch.eye(tiles, device=hidden.device)[:, :, None]                   # (tiles, tiles, 1)
        weights = own * seen[name].squeeze(2).transpose(0, 1)[:, :, None]          # (H, tiles, tiles, 1+P)
        flat[name] = weights.flatten(2)                                            # (H, tiles, tiles*(1+P))
    return Tokens(hidden.flatten(0, 1), index.flatten(), visual, cell[:, skip:].flatten(0, 1),
                  torch.arange(len(visual), device=hidden.device), 0, layer=layer, rows=index[:, 0], **flat)


def _alone(tokens):
    """The visual tokens without the class tokens between them, which would keep each tile's together."""
    rows = tokens.visual
    return replace(tokens, hidden=tokens.hidden[rows], position=tokens.position[rows], visual=tokens.origin)


def _spliced(parts):
    """Text (embeddings,) and images (embeddings, cell, origin) in turn -> Tokens."""
    hidden = torch.cat([part[0] for part in parts])                                # (T, D)
    lengths, device = [len(part[0]) for part in parts], hidden.device
    is_visual = torch.repeat_interleave(torch.tensor([len(p) > 1 for p in parts], device=device),
                                        torch.tensor(lengths, device=device))
    images = [p for p in parts if len(p) > 1]
    cell = torch.cat([p[1] for p in images]) if images else torch.empty(0, 3, dtype=torch.long, device=device)
    origin = torch.cat([p[2] for p in images]) if images else torch.empty(0, dtype=torch.long, device=device)
    return Tokens(hidden, torch.arange(len(hidden), device=device), is_visual.nonzero().squeeze(1), cell, origin, len(hidden))
