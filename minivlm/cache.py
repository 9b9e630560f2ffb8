"""KV cache with a length per layer: after a reduction before layer l, layers l.. hold fewer tokens than the others."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pruning.apply import checked, order


@dataclass
class LayerCache:
    """Keys (after RoPE) and values of one layer, in buffers that may be longer than what is in use."""

    key: Tensor | None = None          # (1, Hk, capacity, Dh)
    value: Tensor | None = None        # (1, Hk, capacity, Dh)
    length: int = 0                    # tokens held
    next_position: int = 0             # position id of the next token in this layer
    masked: Tensor | None = None       # (length at prefill,) keys hidden from every later query
    position: Tensor | None = None     # (length,) position ids, kept up to date if the decoder has a sliding window

    def start(self, tokens):
        """Note what the prompt's Tokens say of later ones, before their keys are appended."""
        self.next_position = tokens.next_position
        self.masked = tokens.masked
        self.position = tokens.position

    def append(self, key, value, reserve=256):
        """Add m tokens (1, Hk, m, Dh) each; return all keys and values held, as views.

        The prefill is kept as it came; the first later token moves it to a buffer with room for `reserve` more.
        """
        if self.key is None:
            self.key = key
            self.value = value
            self.length = key.shape[2]
            return key, value
        start = self.length
        end = start + key.shape[2]
        if end > self.key.shape[2]:
            # at least half as much again, so that a long answer moves it seldom
            capacity = end + max(reserve, start // 2)
            self.key = grown(self.key, start, capacity)
            self.value = grown(self.value, start, capacity)
        self.key[:, :, start:end] = key
        self.value[:, :, start:end] = value
        self.length = end
        return self.key[:, :, :end], self.value[:, :, :end]

    def select(self, rows):
        """Hold only these of the tokens, in this order."""
        self.key = self.key[:, :, rows]
        self.value = self.value[:, :, rows]
        self.length = len(rows)
        if self.position is not None:
            self.position = self.position[rows]

    def hidden_keys(self, new=0):
        """(length + new,) bool: keys that nobody may read, but none of the `new` ones. None: all may be read."""
        if self.masked is None:
            return None
        later_keys = self.length + new - len(self.masked)
        later = self.masked.new_zeros(later_keys)
        return torch.cat([self.masked, later])


def grown(buffer, used, capacity):
    """A buffer (1, Hk, capacity, Dh) with the `used` tokens of this one."""
    batch, heads, _, width = buffer.shape
    larger = buffer.new_empty(batch, heads, capacity, width)
    larger[:, :, :used] = buffer[:, :, :used]
    return larger


@dataclass
class Cache:
    """One LayerCache per layer, and the prefilled sequence as it entered layer 0 (for methods that rank again)."""

    layers: list = field(default_factory=list)
    tokens: object = None

    @classmethod
    def empty(cls, layers):
        """A cache for a decoder of so many layers."""
        return cls([LayerCache() for _ in range(layers)])

    def prune_past(self, tokens, keep):
        """The layers that have run forget the visual tokens that are not kept, too."""
        rows, _ = order(tokens, keep)
        for held in self.layers[:tokens.layer]:
            held.select(rows)

    def rerank(self, pruner, l, view):
        """Choose again, among all visual tokens, those that the layers l.. can see; view: of layer l-1."""
        tokens = replace(self.tokens, layer=l, before=view)
        r = checked(pruner, tokens)
        masked = tokens.reduced(r).masked                                          # (T,)
        for held in self.layers[l:]:
            held.masked = masked

    @property
    def lengths(self):
        """Tokens held by each layer."""
        return [held.length for held in self.layers]

    @property
    def bytes(self):
        """Bytes of the keys and values held (not of the reserve)."""
        total = 0
        for held in self.layers:
            if held.key is not None:
                _, heads, _, width = held.key.shape
                numbers = heads * width * held.length
                total += 2 * numbers * held.key.element_size()
        return total
