"""FLOPs counted, not computed by a formula: torch's counter over the model on the meta device, without values.

The counter adds up every matrix product and convolution that runs, two operations for each multiplication with its
addition; attention counts whole, as if the causal half were not skipped. What a method computes for itself, views
included, is not counted: without values it cannot choose. `ByNumber` takes its place and keeps as many tokens as its
schedule says.
"""

from dataclasses import dataclass
from math import isqrt

import torch
from torch.utils.flop_counter import FlopCounterMode

from minivlm.cache import Cache
from minivlm.lab.cli.options import check
from minivlm.lab.cost import shapes
from minivlm.trace import Trace
from pruning.base import Pruner, Reduction, UserError
import weights


class PromptDecides(UserError):
    """How many tokens a method leaves is not known before the prompt is."""


@dataclass(frozen=True)
class ByNumber(Pruner):
    """In place of `method`: keeps the first tokens, as many as enter each layer."""

    method: Pruner
    entering: tuple

    positions = property(lambda self: self.method.positions)
    prune_past_kv = property(lambda self: self.method.prune_past_kv)

    def reduce_at(self, layers):
        return self.method.reduce_at(layers)

    def mask_at(self, layers):
        return self.method.mask_at(layers)

    def mask(self, tokens):
        return tokens.here.mask()

    def reduce(self, tokens):
        keep = torch.arange(min(tokens.n, self.entering[tokens.layer]))
        return Reduction(keep, drop=self.method.drops)


@dataclass(frozen=True)
class Count:
    """Counted FLOPs of each part for one prompt, the tokens that enter each layer, and what must be held."""

    tower: int
    projector: int
    decoder: int                       # the prefill
    head: int                          # of one next token
    tokens: tuple                      # entering each decoder layer, text and image
    visual: tuple                      # image tokens among them; masked ones are not, though they are computed
    kv_bytes: int

    @property
    def encode(self):
        """Before the decoder."""
        return self.tower + self.projector

    @property
    def prefill(self):
        """From the embeddings to the first token."""
        return self.decoder + self.head

    @property
    def total(self):
        """To the first token."""
        return self.encode + self.prefill


def on_meta(shape, dtype=torch.float16):
    """The model of that shape without any storage."""
    model = weights.on_meta(shape.config).to(dtype).eval()
    model.folder = shape.folder
    return model


def able(shape, pruners, counted=True):
    """Of {label: pruner, or the UserError that forbids it} those that run, and {label: why not} of the others.

    counted: only those whose tokens can be counted before they run.
    """
    model = on_meta(shape)
    running = {}
    why_not = {}
    for label, pruner in pruners.items():
        try:
            if isinstance(pruner, UserError):
                raise pruner
            pruner = check(pruner, model)
            if counted:
                _entering(shape, pruner)
            running[label] = pruner
        except UserError as error:
            why_not[label] = str(error)
    return running, why_not


@torch.no_grad()
def count(shape, pruner=None, text=64, dtype=torch.float16, last=True):
    """The Count of one prompt with `text` text tokens.

    last=False: the last layer computes every token. The model computes only the last token there: no other is read.
    Raises PromptDecides if only the prompt decides how many tokens are left.
    """
    model = on_meta(shape, dtype)
    pruner = check(pruner, model)
    entering = _entering(shape, pruner)
    return Count(*_encode(model, shape, pruner), *_prefill(model, shape, pruner, text, entering, last))


def _entering(shape, pruner):
    """Image tokens that enter each layer. PromptDecides if they are not known."""
    entering = shapes.entering(pruner, shape)
    if entering is None:
        raise PromptDecides(f"{type(pruner).__name__}: the prompt decides how many tokens are left, "
                            "so they cannot be counted beforehand")
    return entering


@torch.no_grad()
def least(shape, pruner, text=64, dtype=torch.float16):
    """FLOPs of the prefill if the method kept no image token from its first reduction on."""
    cut = 0
    if not any(pruner.at(site) for site in ("image", "vision", "embed")):
        cut = min(pruner.at("decoder").reduce_at(shape.layers), default=shape.layers)
    entering = [shape.n] * cut + [0] * (shape.layers - cut)
    return sum(_prefill(on_meta(shape, dtype), shape, pruner, text, entering)[:2])


def _prefill(model, shape, pruner, text, entering, last=True):
    """FLOPs of the decoder and of the head, all tokens and image tokens entering each layer, bytes of the cache."""
    width = shape.config.text.hidden_size
    hidden = torch.empty(text + shape.n, width, dtype=model.lm_head.weight.dtype, device="meta")       # (T, D)
    tokens = shapes.prompt(shape, text, hidden)
    tokens = tokens.reduced(Reduction(torch.arange(entering[0])), "renumber")      # what an earlier site has dropped
    method = pruner and pruner.at("decoder")
    if method:
        method = ByNumber(method, tuple(entering))
    cache = Cache.empty(shape.layers)
    trace = Trace()
    decoder, hidden = _counted(lambda: model.language_model.prefill(tokens, cache, method, trace, last))
    head, _ = _counted(lambda: model.lm_head(hidden[-1]))
    return decoder, head, tuple(trace.tokens), tuple(trace.visual), cache.bytes


def _encode(model, shape, pruner):
    """FLOPs of the tower, on a smaller picture if a method makes it so, and of the projector on what is left then."""
    vision = shape.config.vision
    layers = shape.config.vision_feature_layer
    if isinstance(layers, int):
        layers = [layers]
    depth = max(layer % (vision.num_hidden_layers + 1) for layer in layers)
    first = pruner and (pruner.at("image") or pruner.at("vision"))
    n = shapes.entering(first, shape)[0]
    side = vision.image_size
    if pruner and pruner.at("image"):
        tokens_on_side = isqrt(n // shape.tiles)
        side = side * tokens_on_side // shape.grid
    pixels = torch.empty(shape.tiles, vision.num_channels, side, side, device="meta")
    tower, states = _counted(lambda: _tower(model, shape, pixels, depth, pruner))
    width = model.multi_modal_projector.linear_1.in_features
    features = torch.empty(n, width, dtype=states[0].dtype, device="meta")         # (n, C)
    projector, _ = _counted(lambda: model.multi_modal_projector(features))
    return tower, projector


def _tower(model, shape, pixels, depth, pruner):
    """The states of the tower. A method that merges inside it leaves fewer tokens to each MLP and to the next block."""
    method = pruner and pruner.at("vision")
    counts = method and method.tower_schedule(shape.n // shape.tiles, depth)
    if not counts:
        return model.vision_tower(pixels, depth)
    states = model.vision_tower(pixels, 0)
    x = states[0]                                                                  # (tiles, 1+P, C)
    for block, k in zip(model.vision_tower.layers, counts):
        x = x + block.self_attn(block.layer_norm1(x))
        x = x[:, :1 + k]                                                           # (tiles, 1+k, C)
        x = x + block.mlp(block.layer_norm2(x))
    return states


def _counted(run):
    """FLOPs, and what run() returns."""
    # TRAP: in inference mode the counter of torch 2.4 sees nothing, so the callers use no_grad
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def weight_bytes(shape, dtype=torch.float16):
    """{part: bytes}: vision tower, projector, embedding, decoder, head. A head that is the embedding counts as head."""
    model = on_meta(shape, dtype)
    decoder = model.language_model
    parts = dict(tower=model.vision_tower, projector=model.multi_modal_projector, embedding=decoder.embed_tokens,
                 decoder=decoder.layers, head=model.lm_head)
    weights = {name: bytes_of(part) for name, part in parts.items()}
    if shape.config.text.tie_word_embeddings:
        weights["embedding"] = 0
    return weights


def bytes_of(module):
    """Bytes of all its parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())
