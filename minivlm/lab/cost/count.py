"""FLOPs counted, not computed by a formula: torch's counter over the model itself, on the meta device, where nothing has values.

The counter adds up every matrix product and convolution that runs, two operations for each multiplication with its
addition; attention counts whole, as if the causal half were not skipped. What a method computes for itself, views
included, is not counted: without values it cannot choose. `ByNumber` takes its place and keeps as many tokens as its
schedule says.
"""

from dataclasses import dataclass

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
    """Of {label: pruner, or the UserError that forbids it} those that run on the shape, and {label: why not} of the others.

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
    """The Count of one prompt of so many text tokens.

    last=False: the last layer computes every token, where the model computes the last token alone, which is all that is read.
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
    decoder, early = pruner.at("decoder"), pruner.at("vision") or pruner.at("embed")
    cut = 0 if early else min(decoder.reduce_at(shape.layers), default=shape.layers)
    entering = [shape.n] * cut + [0] * (shape.layers - cut)
    return sum(_prefill(on_meta(shape, dtype), shape, pruner, text, entering)[:2])


def _prefill(model, shape, pruner, text, entering, last=True):
    """FLOPs of the decoder and of the head, all tokens and image tokens entering each layer, bytes of the cache."""
    hidden = torch.empty(text + shape.n, shape.config.text.hidden_size, dtype=model.lm_head.weight.dtype, device="meta")
    tokens, cache, trace = shapes.prompt(shape, text, hidden), Cache.empty(shape.layers), Trace()
    tokens = tokens.reduced(Reduction(torch.arange(entering[0])), "renumber")      # what an earlier site has dropped
    acts = pruner and pruner.at("decoder")
    acts = acts and ByNumber(acts, tuple(entering))
    decoder, hidden = _counted(lambda: model.language_model.prefill(tokens, cache, acts, trace, last))
    head = _counted(lambda: model.lm_head(hidden[-1]))[0]
    return decoder, head, tuple(trace.tokens), tuple(trace.visual), cache.bytes


def _encode(model, shape, pruner):
    """FLOPs of the tower, and of the projector on what a method at the vision site leaves."""
    c, layers = shape.config, shape.config.vision_feature_layer
    wanted = [l % (c.vision.num_hidden_layers + 1) for l in ([layers] if isinstance(layers, int) else layers)]
    pixels = torch.empty(shape.tiles, c.vision.num_channels, c.vision.image_size, c.vision.image_size, device="meta")
    looks = pruner and pruner.at("vision")
    tower, states = _counted(lambda: model.vision_tower(pixels, max(wanted)))
    rows = shapes.entering(looks, shape)[0]
    features = torch.empty(rows, model.multi_modal_projector.linear_1.in_features, dtype=states[0].dtype, device="meta")
    return tower, _counted(lambda: model.multi_modal_projector(features))[0]


def _counted(run):
    """FLOPs, and what was run gives. TRAP: in inference mode the counter of torch 2.4 sees nothing, so the callers leave it at no_grad."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def weight_bytes(shape, dtype=torch.float16):
    """{part: bytes}: vision tower, projector, embedding, decoder, head."""
    model = on_meta(shape, dtype)
    parts = dict(tower=model.vision_tower, projector=model.multi_modal_projector, embedding=model.language_model.embed_tokens,
                 decoder=model.language_model.layers, head=model.lm_head)
    return {name: sum(p.numel() * p.element_size() for p in part.parameters()) for name, part in parts.items()}
