"""Muon (Jordan et al. 2024) for the matrices inside the network, Adam for all else.

Muon keeps a momentum of the gradients and moves a matrix by the nearest orthogonal one, so that every direction learns
as fast as the strongest. It is written out here, since its whole state must go into a safetensors file and back.
"""

import torch

FIRST_STAGE = ("llava.vision_tower.", "heads.")    # what stage 1 moves


class Optimiser:
    """Muon for the matrices inside, Adam for the rest; `state` is at most two tensors per parameter."""

    def __init__(self, student, recipe):
        self.params = dict(student.named_parameters())
        self.recipe = recipe
        self.state = {}
        inside = ("layers.", "multi_modal_projector.")
        self.matrices = []
        for name, p in self.params.items():
            is_inside = any(part in name for part in inside)
            if is_inside and p.ndim == 2:
                self.matrices.append(name)

    def expected(self, stages):
        """{name: a tensor like it} of the state after no step, after steps of stage 1, of both stages."""
        moved = []
        if stages == 1:
            moved = [name for name in self.params if name.startswith(FIRST_STAGE)]
        if stages == 2:
            moved = list(self.params)
        kinds = {}
        for name in moved:
            kinds[f"momentum.{name}"] = self.params[name]
        for name in moved:
            if name not in self.matrices:
                kinds[f"square.{name}"] = self.params[name]
        return kinds

    @torch.no_grad()
    def step(self, grads, step, rate, joint, pool=None):
        """One update with these gradients {name: tensor}; `rate` is the schedule's share, 0 to 1; shapes go to the
        pool."""
        recipe = self.recipe
        same_shape = {}
        for name, grad in grads.items():
            share = rate
            if joint and "vision_tower" in name:
                share = rate * recipe.tower_share
            if name in self.matrices:
                names = same_shape.setdefault(grad.shape, [])
                names.append((name, share))
            else:
                self._adam(name, grad, step, share * recipe.other_rate)
        largest_first = sorted(same_shape.values(), key=len, reverse=True)
        each = pool.map if pool else map
        list(each(lambda names: self._muon(names, grads), largest_first))

    @torch.no_grad()                               # a thread of the pool has its own switch
    def _muon(self, names, grads):
        """Move matrices of one shape: [(name, share of the rate)]."""
        moved = []
        for name, _ in names:
            grad = grads[name]
            momentum = self._state("momentum", name, grad)
            momentum.mul_(0.95).add_(grad)
            moved.append(grad + 0.95 * momentum)
        ways = orthogonal(torch.stack(moved))
        for (name, share), way in zip(names, ways):
            p = self.params[name]
            rate = share * self.recipe.matrix_rate
            rows, columns = p.shape
            larger = max(1, rows / columns) ** 0.5
            p.mul_(1 - 0.05 * rate)
            p.sub_(way * rate * larger)

    def _state(self, kind, name, grad):
        """The tensor of that kind of a parameter; zeros before its first step."""
        key = f"{kind}.{name}"
        if key not in self.state:
            self.state[key] = torch.zeros_like(grad)
        return self.state[key]

    def _adam(self, name, grad, step, rate):
        """Move a tensor by Adam."""
        mean = self._state("momentum", name, grad)
        square = self._state("square", name, grad)
        mean.lerp_(grad, 0.1)
        square.lerp_(grad ** 2, 0.02)
        t = step + 1
        mean = mean / (1 - 0.9 ** t)
        square = square / (1 - 0.98 ** t)
        scale = square.sqrt() + 1e-8
        self.params[name].sub_(rate * mean / scale)


def orthogonal(x):
    """Matrices (m, a, b) with their singular values moved near 1, by five Newton-Schulz steps of degree five."""
    is_tall = x.shape[1] > x.shape[2]
    norm = x.norm(dim=(1, 2), keepdim=True) + 1e-7
    if is_tall:
        x = x.mT
    x = x / norm
    for _ in range(5):
        gram = x @ x.mT
        square = 2.0315 * gram @ gram
        higher = -4.7750 * gram + square
        x = 3.4445 * x + higher @ x
    return x.mT if is_tall else x
