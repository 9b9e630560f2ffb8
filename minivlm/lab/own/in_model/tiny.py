"""Tiny models with random weights, as deep as the real ones, on which two ways to the same result can be compared."""

from functools import lru_cache

import torch

from minivlm.cache import Cache
from minivlm.families.llava_next_image import Tiles, best_grid
from minivlm.families.registry import model_class
from minivlm.parts.config import LlavaConfig, TextConfig, VisionConfig
from minivlm.trace import Trace

MARK = 99                              # the id of <image>; 3 .. 97 are words
EOS = 2
GRIDS = ((16, 32), (32, 16), (32, 32), (48, 16), (16, 48))     # of a LLaVA-NeXT with tiles of 16 pixels
SIDE = 16                              # pixels of a tile
PATCH = 4


@lru_cache(maxsize=4)
@torch.no_grad()
def llava(layers=32, tiles=False, dtype=torch.float32):
    """A Llava, or LLaVA-NeXT, of width 32; an image, or a tile, has 4 x 4 patches. It is shared: nobody may change it.
    """
    vision = VisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=24, num_attention_heads=4,
                          image_size=SIDE, patch_size=PATCH)
    text = TextConfig(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
    grids = GRIDS if tiles else None
    config = LlavaConfig(vision, text, image_token_index=MARK, image_grid_pinpoints=grids)
    model = model_class(config)(config)
    randomise(model)
    model.eos = (EOS,)
    return model.to(dtype)


def randomise(model):
    """Weights with which attention is sharp and no single layer takes over the stream."""
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1 and name != "image_newline":
            p.copy_(noise * 0.1 + name.endswith("norm.weight"))
        elif "embed_tokens" in name or name == "image_newline":
            p.copy_(noise)
        else:
            p.copy_(noise * gain(name) * p[0].numel() ** -0.5)
    model.lm_head.weight[MARK] = 0     # never the likeliest


def gain(name):
    """How large the weights of a matrix are."""
    if "q_proj" in name or "k_proj" in name:
        return 2.0
    return 0.5 if "o_proj" in name or "down_proj" in name else 1.0


def ids(*parts, seed=0):
    """Words and images: ids(3, MARK, 5) is three random words, an image and five words."""
    generator = torch.Generator().manual_seed(seed)
    every = []
    for part in parts:
        is_image = part == MARK
        every += [MARK] if is_image else torch.randint(3, 98, (part,), generator=generator).tolist()
    return every


def picture(seed=0, tiles=1):
    """(tiles, 3, SIDE, SIDE) random pixels."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(tiles, 3, SIDE, SIDE, generator=generator)


def tiled(height, width, seed=0):
    """The tiles of random pixels that a picture of so many pixels becomes."""
    high, wide = best_grid(height, width, GRIDS)
    grid = high // SIDE, wide // SIDE
    return Tiles(picture(seed, 1 + grid[0] * grid[1]), grid, (height, width))


@torch.no_grad()
def prefill(model, prompt, images, pruner=None):
    """Logits (V,) of the next token, the cache, the trace."""
    trace = Trace()
    tokens = model.embed(prompt, images, pruner, trace)
    logits, cache = model.prefill(tokens, pruner, trace)
    return logits, cache, trace


@torch.no_grad()
def all_rows(model, prompt, images, pruner):
    """Normed hidden states (T', D) of all tokens that are left."""
    trace = Trace()
    tokens = model.embed(prompt, images, pruner, trace)
    decoder = model.language_model
    cache = Cache.empty(len(decoder.layers))
    return decoder.prefill(tokens, cache, pruner.at("decoder"), trace, last=False)
