"""ViP-LLaVA: LLaVA whose projector reads five layers of the tower side by side, and norms them first."""

from dataclasses import dataclass, field

from torch import nn

from minivlm import llava
from minivlm.parts.config import LlavaConfig

LAYERS = (-2, -5, -8, -11, 6)


@dataclass
class VipLlavaConfig(LlavaConfig):
    """The whole model, and what a checkpoint says about its files."""

    vision_feature_layer: list[int] = field(default_factory=lambda: list(LAYERS))
    projector_layernorm_eps: float = 1e-5


class Projector(llava.Projector):
    """linear_2(act(linear_1(norm x)))"""

    def __init__(self, c):
        super().__init__(c)
        width = len(c.feature_layers) * c.vision.hidden_size
        self.projector_layernorm = nn.LayerNorm(width, eps=c.projector_layernorm_eps)

    def forward(self, x):
        """(.., 5C) -> (.., D)"""
        return super().forward(self.projector_layernorm(x))


class VipLlava(llava.Llava):
    """LLaVA with that projector."""

    projector = Projector
