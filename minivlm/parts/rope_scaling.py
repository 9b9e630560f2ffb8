"""Rotary frequencies of models that were trained further, on longer texts: two ways to make them lower."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Linear:
    """Positions are divided by `factor`."""

    factor: float

    def scaled(self, frequency):
        """(Dh/2,) radians per position -> the same, lower"""
        return frequency / self.factor


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's: long waves are stretched by `factor`, short ones stay, and between the two it passes smoothly.

    A wave is short if the original context holds more than high_freq_factor of it, long if less than low_freq_factor.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def scaled(self, frequency):
        """(Dh/2,) radians per position -> the same, the low ones lower"""
        wavelength = 2 * math.pi / frequency                                       # (Dh/2,)  positions
        waves = self.original_max_position_embeddings / wavelength                 # (Dh/2,)  in the original context
        stays = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        stays = stays.clamp(0, 1)                                                  # (Dh/2,)  1: short, 0: long
        return torch.lerp(frequency / self.factor, frequency, stays)


KINDS = {"linear": Linear, "llama3": Llama3}       # by the rope_type of config.json; "default" is none
