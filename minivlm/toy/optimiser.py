"""Muon (Jordan et al. 2024) for the matrices inside the network, Adam for all else.

Muon keeps a momentum of the gradients and moves a matrix by the nearest orthogonal one, so that every direction learns
as fast as the strongest. It is written out here, since its whole state must go into a safetensors file and back.
"""

import torch


class Optimiser:
    """Muon for the matrices inside, Adam for the rest; `state` is two tensors a parameter at most."""

    def __init__(self, student, recipe):
        self.params = dict(student.named_parameters())
        self.recipe = recipe
        self.state = {}
        inside = ("layers.", "multi_modal_projector.")
        self.matrices = [n for n, p in self.params.items() if p.ndim == 2 and any(part in n for part in inside)]

    def expected(self, stages):
        """{name: a tensor like it} of the state after no step, after steps of stage 1, of both stages."""
        first = ("llava.vision_tower.", "heads.")  # what stage 1 moves
        moved = [name for name in self.params if stages == 2 or stages == 1 and name.startswith(first)]
        kinds = {f"momentum.{name}": self.params[name] for name in moved}
        return kinds | {f"square.{name}": self.params[name] for name in moved if name not in self.matrices}

    @torch.no_grad()
    def step(self, grads, step, rate, joint, pool=None):
        """One update with these gradients {name: tensor}; `rate` is the schedule's share, 0 to 1; shapes go to the pool."""
        r, shapes = self.recipe, {}
        for name, grad in grads.items():
            share = rate * (r.tower_share if joint and "vision_tower" in name else 1)
            if name in self.matrices:
                shapes.setdefault(grad.shape, []).append((name, share))
            else:
                self._adam(name, grad, step, share * r.other_rate)
        largest = sorted(shapes.values(), key=len, reverse=True)
        list((pool.map if pool else map)(lambda names: self._muon(names, grads), largest))

    @torch.no_grad()                               # a thread of the pool has its own switch
    def _muon(self, names, grads):
        moved = []
        for name, _ in names:
            momentum = self.state.setdefault(f"momentum.{name}", torch.zeros_like(grads[name]))
            momentum.mul_(0.95).add_(grads[name])
            moved.append(grads[name] + 0.95 * momentum)
        for (name, share), way in zip(names, orthogonal(torch.stack(moved))):
            rate, p = share * self.recipe.matrix_rate, self.params[name]
            p.mul_(1 - 0.05 * rate).sub_(way * rate * max(1, p.shape[0] / p.shape[1]) ** 0.5)

    def _adam(self, name, grad, step, rate):
        mean = self.state.setdefault(f"momentum.{name}", torch.zeros_like(grad)).lerp_(grad, 0.1)
        square = self.state.setdefault(f"square.{name}", torch.zeros_like(grad)).lerp_(grad ** 2, 0.02)
        t = step + 1
        self.params[name].sub_(rate * (mean / (1 - 0.9 ** t)) / ((square / (1 - 0.98 ** t)).sqrt() + 1e-8))


def orthogonal(x):
    """Matrices (m, a, b) with their singular values moved near 1, by five Newton-Schulz steps of degree five."""
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x) / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
