"""KV cache with a length per layer: after a reduction before layer l, layers l.. hold fewer tokens than layers ..l-1."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


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
            self.key, self.value, self.length = key, value, key.shape[2]
            return key, value
        start, self.length = self.length, self.length + key.shape[2]
        if self.length > self.key.shape[2]:
            self.key, self.value = (self._grown(x, start, self.length + max(reserve, start // 2)) for x in (self.key, self.value))
        self.key[:, :, start:self.length] = key
        self.value[:, :, start:self.length] = value
        return self.key[:, :, :self.length], self.value[:, :, :self.length]

    def select(self, rows):
        """Hold only these of the tokens, in this order."""
        self.key, self.value, self.length = self.key[:, :, rows], self.value[:, :, rows], len(rows)
        self.position = None if self.position is None else self.position[rows]

    @staticmethod
    def _grown(old, used, capacity):
        new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
        new[:, :, :used] = old[:, :, :used]
        return new

    def hidden_keys(self, new=0):
        """(length + new,) bool: keys that nobody may read, the `new` ones after them not among them; None if there are none."""
        if self.masked is None:
            return None
        later = self.masked.new_zeros(self.length + new - len(self.masked))
        return torch.cat([self.masked, later])


@dataclass
class Cache:
    """One LayerCache a layer, and the prefilled sequence as it entered layer 0 (for methods that rank again)."""

    layers: list = field(default_factory=list)
    tokens: object = None

    @classmethod
    def empty(cls, layers):
        """A cache for so many layers."""
        return cls([LayerCache() for _ in range(layers)])

    @property
    def lengths(self):
        """Tokens held by each layer."""
        return [layer.length for layer in self.layers]

    @property
    def bytes(self):
        """Bytes of the keys and values held (not of the reserve)."""
        return sum(2 * c.key[0, :, 0].numel() * c.key.element_size() * c.length for c in self.layers if c.key is not None)
