"""Activations by the names that config.json gives them."""

import torch
import torch.nn.functional as F


def quick_gelu(x):
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x):
    """The approximation of GELU by tanh."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "silu": F.silu,
    "relu": F.relu,
}
