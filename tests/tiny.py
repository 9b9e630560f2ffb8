"""A tiny random LLaVA, narrow but as deep as the real one, and methods whose choice a test gives."""

from dataclasses import fields, replace
from functools import lru_cache

import torch
from hypothesis import settings
from torch import nn

from minivlm.cache import Cache
from minivlm.families.internvl import InternVL
from minivlm.families.internvl_config import InternVLConfig, InternViTConfig
from minivlm.families.llava_next_image import Tiles, best_grid
from minivlm.families.registry import model_class
from minivlm.lab.cost.shapes import Shape
from minivlm.parts.config import LlavaConfig, TextConfig, VisionConfig
from minivlm.toy import student
from minivlm.trace import Trace
from pruning import EVERY, METHODS
from pruning.atp import Thresholds
from pruning.base import Pruner, Reduction, UserError
from pruning.readings import ATPPooled

GRIDS = (16, 32), (32, 16), (32, 32), (48, 16), (16, 48)       # of a tiny LLaVA-NeXT
DEEP = 1e-4                                    # tolerance for values near 1 after 32 layers of float32
MARK, EOS = 99, 2                              # ids of <image> and </s>; 3 .. 97 are words
EXAMPLES = settings.default.max_examples // 4                  # 12, with --slow 37: see conftest.py
SETTINGS = settings(max_examples=EXAMPLES, derandomize=True, database=None)


VISION = VisionConfig(hidden_size=6, intermediate_size=10, num_hidden_layers=3, num_attention_heads=2, image_size=12,
                      patch_size=3)
TEXT = TextConfig(vocab_size=50, hidden_size=8, intermediate_size=20, num_hidden_layers=4, num_attention_heads=4)
SHAPE = Shape("tiny", LlavaConfig(VISION, TEXT))                       # 16 visual tokens, whose cost is counted by hand


def toy_config(layers):
    """The shipped model's shape with a width of 16."""
    shape = student.config()
    vision = replace(shape.vision, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    text = replace(shape.text, hidden_size=16, intermediate_size=16, num_attention_heads=2,
                   num_key_value_heads=2, head_dim=8, num_hidden_layers=layers)
    return replace(shape, vision=vision, text=text)


@lru_cache(maxsize=8)
@torch.no_grad()
def llava(layers=32, kv_heads=2, blocks=24, grid=4, context=512, tied=False, window=None, **fields):
    """A Llava of width 32 with random weights; an image has grid x grid patches. Tests share it: none may change it."""
    vision = VisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=blocks, num_attention_heads=4,
                          image_size=4 * grid, patch_size=4)
    text = TextConfig(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
                      num_attention_heads=4, num_key_value_heads=kv_heads, max_position_embeddings=context,
                      tie_word_embeddings=tied, sliding_window=window)
    config = LlavaConfig(vision, text, image_token_index=MARK, **fields)
    return randomised(model_class(config)(config))


@lru_cache(maxsize=4)
@torch.no_grad()
def internvl(layers=32, kv_heads=2, grid=4):
    """An InternVL like it; a tile has grid x grid patches, of which pixel shuffle makes a quarter as many visual
    tokens."""
    vision = InternViTConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                             image_size=4 * grid, patch_size=4)
    text = TextConfig(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
                      num_attention_heads=4, num_key_value_heads=kv_heads, max_position_embeddings=512)
    return randomised(InternVL(InternVLConfig(vision, text, image_token_index=MARK)))


def randomised(model):
    """The model with random weights, always the same."""
    model = model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1 and name != "image_newline":
            p.copy_(noise * .1 + name.endswith("norm.weight"))
        elif "embed_tokens" in name or name == "image_newline":
            p.copy_(noise)
        else:                                  # sharp attention, and a stream that no single layer takes over
            gain = 2 if "q_proj" in name or "k_proj" in name else .5 if "o_proj" in name or "down_proj" in name else 1
            p.copy_(noise * gain * p[0].numel() ** -.5)
    model.lm_head.weight[MARK] = 0             # never the likeliest: no answer has a mark
    model.eos = (EOS,)
    return model


def ids(*parts, seed=0):
    """Words and marks: ids(3, MARK, 5) is three random words, an image and five words."""
    generator = torch.Generator().manual_seed(seed)
    words = [[part] if part == MARK else torch.randint(3, 98, (part,), generator=generator).tolist() for part in parts]
    return sum(words, [])


def picture(model, seed=0, tiles=1):
    """(tiles, 3, size, size) random pixels."""
    size = model.config.vision.image_size
    return torch.randn(tiles, 3, size, size, generator=torch.Generator().manual_seed(100 + seed))


def next_llava(**fields):
    """The same as LLaVA-NeXT, with tiles of 4 x 4 patches."""
    return llava(image_grid_pinpoints=GRIDS, **fields)


def tiled(model, height, width, seed=0):
    """Tiles of random pixels, as a picture of that many pixels gives them."""
    high, wide = best_grid(height, width, model.config.image_grid_pinpoints)
    side = model.config.vision.image_size
    grid = high // side, wide // side
    return Tiles(picture(model, seed, 1 + grid[0] * grid[1]), grid, (height, width))


def prefill(model, prompt, images=(), pruner=None, last=True):
    """Logits (V,) of the next token, or with last=False normed hidden states (T', D) of all tokens left; cache;
    trace."""
    trace = Trace()
    tokens = model.embed(prompt, images, pruner, trace)
    if last:
        return *model.prefill(tokens, pruner, trace), trace
    cache = Cache.empty(len(model.language_model.layers))
    return model.language_model.prefill(tokens, cache, pruner and pruner.at("decoder"), trace, last=False), cache, trace


@lru_cache
@torch.no_grad()
def thresholds(N=16, count=3, width=8, seed=0):
    """Modules of ATP with random weights, whose thresholds differ between layers and prompts. Tests share it."""
    modules = nn.ModuleList(Thresholds(N, width) for _ in range(count))
    generator = torch.Generator().manual_seed(seed)
    for p in modules.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (.3 if p.ndim == 1 else p.shape[1] ** -.5))
    return modules.eval().requires_grad_(False)


def has_keep(name):
    """Whether a method or reading has a `keep`: how many tokens it keeps."""
    return any(f.name == "keep" for f in fields(EVERY[name]))


def built(name, keep=.5):
    """A method or reading with its defaults, but for `keep`, whose default is meant for more tokens than ours, and for
    a trained module, in whose place is a random one that takes prompts of any length."""
    method = EVERY[name]
    if "training" in method().preconditions:
        pooled = ATPPooled if issubclass(ATPPooled, method) else type(method.__name__, (ATPPooled, method), {})
        return pooled(module=thresholds())
    return method(keep=keep) if has_keep(name) else method()


def reduces(name):
    """Whether a method or reading calls `reduce` on a decoder of 32 layers, or before it."""
    return EVERY[name].site != "decoder" or bool(built(name).reduce_at(32))


REDUCING = [name for name in METHODS if reduces(name)]


@lru_cache
def refusal(name):
    """What a method says where it takes no text between images, or None where it does."""
    try:
        prefill(llava(), ids(2, MARK, 1, MARK, 2), [picture(llava())] * 2, built(name))
    except UserError as error:
        return str(error)


class Chosen(Pruner):
    """Keeps what it is given: {layer: indices or Reduction}; at the vision and embed sites for whatever layer."""

    laws = frozenset()

    def __init__(self, kept, site="decoder", positions=None, look=None):
        self.kept, self.site, self.positions, self.look = kept, site, positions, look
        self.calls = []                        # the Tokens of each call
        self.views = []                        # what `look` made of them, while the layers were there to look at

    def reduce_at(self, layers):
        return tuple(self.kept)

    def reduce(self, tokens):
        self.calls.append(tokens)
        if self.look:
            self.views.append(self.look(tokens))
        keep = self.kept[tokens.layer] if self.site == "decoder" else self.kept
        return keep if isinstance(keep, Reduction) else Reduction(torch.tensor(keep, dtype=torch.long))


class Around(Pruner):
    """Another method with another `reduce`."""

    laws = frozenset()

    def __init__(self, pruner, reduce, **changed):
        self.pruner, self.reduce = pruner, reduce
        for name in ("site", "positions", "cls", "rerank_each_step", "output_order"):
            setattr(self, name, changed.get(name, getattr(pruner, name)))

    def reduce_at(self, layers):
        return self.pruner.reduce_at(layers)

    def mask_at(self, layers):
        return self.pruner.mask_at(layers)

    def watch_at(self, layers):
        return self.pruner.watch_at(layers)

    def mask(self, tokens):
        return self.pruner.mask(tokens)
