"""Training of the shipped model, from nothing, on drawn scenes: a vision stage, then the whole network.

Stage 1, vision. Only the tower. From the features that LLaVA reads (output of layer 3 of 4) linear heads predict, of
each patch, what it shows (none, a shape, a sign), its colour (a sign's too), its glyph, and where on the grid it is;
from the CLS row at the top, as in CLIP, which objects and which scene the picture has. Without the target for the
place, features learn none, and no decoder learns left from right.

Stage 2, joint. Tower, projector and decoder answer questions. One picture carries 16 of them: each question sees only
the picture and itself, at the positions it would have if it were the only question, so a packed row equals a single
question. Loss: cross entropy of the answer, 0.1 times that of </s>, 0.3 times the patch targets of stage 1.

Hiding. In the last part of stage 2, in `hide` of the steps, patches are dropped before the decoder, a random number of
them, in blocks of neighbours (see packing.py) that fall anywhere, and the answers are those of the patches that stay
(see questions.visible). These keep their positions or are closed up, by turns, as methods in the decoder and before it
do. So neither the number of tokens nor how many of them show things gives the answer away, and no kind of method is
favoured: where blocks fall has nothing to do with what the picture shows. `hidden` has two rivals of it: patches one by
one, and nothing.

Optimiser. Muon (Jordan et al. 2024) for matrices inside the network: momentum 0.95, orthogonal by five Newton-Schulz
steps. Adam (0.9, 0.98) for embeddings, norms, biases and heads. In each stage a warm-up, then a line to zero.

All randomness comes from (seed, step), every batch is computed in two halves on two threads and summed in that order,
and a checkpoint has the whole state: a run that was interrupted and resumed gives the same bits as one that was not.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minivlm.io import resume as training
from minivlm.io.atomic import filled, write_text
from minivlm.io.resume import FINITE, check_bounds
from minivlm.toy import scenes
from minivlm.toy.optimiser import Optimiser
from minivlm.toy.packing import pack, score
from minivlm.toy.questions import FAMILIES, ID
from minivlm.toy.student import PATCHES, Student, config, pixels
from pruning.base import UserError
from pruning.fields import shown


STUDENT = "student."                               # in a state, before the names of the network and its heads
HIDING = ("blocks", "patches", "nothing")
DTYPES = ("float32", "bfloat16")
BOUNDS = {
    "seed": (0, 2 ** 63 - 1),
    "vision_steps": (0, 10 ** 7),
    "vision_batch": (2, 4096),
    "joint_steps": (1, 10 ** 7),
    "joint_batch": (2, 4096),
    "whole": (0.0, 1.0),
    "hide": (0.0, 1.0),
    "warmup": (1, 10 ** 7),
    "matrix_rate": (0.0, FINITE),
    "other_rate": (0.0, FINITE),
    "tower_share": (0.0, FINITE),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, but the precision of the machine."""

    seed: int = 0
    vision_steps: int = 500
    vision_batch: int = 64
    joint_steps: int = 3000
    joint_batch: int = 24
    whole: float = 0.6                             # first share of stage 2, in which all patches are shown
    hide: float = 0.7                              # share of the steps after it with hidden patches
    hidden: str = "blocks"                         # of HIDING: blocks of neighbours, patches one by one, or nothing
    warmup: int = 60                               # steps to the full rate, in each stage
    matrix_rate: float = 0.02                      # Muon's learning rate
    other_rate: float = 0.002                      # Adam's
    tower_share: float = 0.3                       # of both, for the tower in stage 2

    def __post_init__(self):
        check_bounds(self, BOUNDS)
        if self.hidden not in HIDING:
            raise UserError(f"hidden {self.hidden}: use one of {', '.join(HIDING)}")


def joint_loss(student, rng, worlds, hidden, closed=False, blocks=False):
    """Loss of stage 2 on a few pictures, and right and asked answers of each family (2, 8)."""
    packed = pack(rng, worlds, hidden, blocks=blocks)
    text, labels, patches = [part.to(student.llava.device) for part in packed]
    vision, features = student.vision_loss(worlds, content=False)
    logits = student.answers(features, text, patches, closed).float()
    is_answer = _is_answer(labels)
    is_end = labels == ID["</s>"]
    answers = F.cross_entropy(logits[is_answer], labels[is_answer])
    ends = F.cross_entropy(logits[is_end], labels[is_end])
    loss = answers + 0.1 * ends + 0.3 * vision
    return loss, score(logits, labels, is_answer)


def _is_answer(labels):
    """(B, T) bool: where the next token is the word of an answer."""
    return (labels >= 0) & (labels != ID["</s>"])


class Half(NamedTuple):
    """What one half of a batch gives."""

    grads: dict                                    # {name: tensor}
    loss: float
    counts: Tensor | None                          # right and asked answers of each family (2, 8), in stage 2


class Run:
    """One training run in a folder: its state, its steps, its checkpoints."""

    def __init__(self, folder, recipe=Recipe(), device="cpu", dtype=None):
        torch.manual_seed(recipe.seed)
        self.folder = Path(folder)
        self.recipe = recipe
        self.device = torch.device(device)
        self.dtype = dtype or fast_dtype(self.device)
        self.student = Student(config()).to(self.device)
        self.optimiser = Optimiser(self.student, recipe)
        self.at = 0
        self.best = -1.0                           # accuracy on the validation set: below any
        self.log = []
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def total(self):
        """Steps of both stages."""
        return self.recipe.vision_steps + self.recipe.joint_steps

    def step(self, pool=None):
        """One update of the stage that it is in -> loss, right and asked (2, 8) or None."""
        recipe = self.recipe
        at = self.at
        joint = at >= recipe.vision_steps
        first = recipe.vision_steps if joint else 0
        last = self.total if joint else recipe.vision_steps
        done = (at - first) / (last - first)
        rate = min((at - first + 1) / recipe.warmup, 1 - done)
        each = pool.map if pool else map
        left, right = each(lambda half: self._half(at, half, joint), (0, 1))
        grads = {}
        for name, grad in left.grads.items():
            total = grad + right.grads[name]
            grads[name] = total / 2
        self.optimiser.step(grads, at - first, rate, joint, pool)
        self.at += 1
        counts = left.counts + right.counts if joint else None
        return (left.loss + right.loss) / 2, counts

    def _half(self, at, half, joint):
        """The Half of a batch. Both halves hide the same number of patches."""
        recipe = self.recipe
        hidden, closed = self._hiding(at)
        batch = recipe.joint_batch if joint else recipe.vision_batch
        worlds = scenes.worlds("train", recipe.seed, 2 * at + half, batch // 2)
        counts = None
        with self._precision():
            if joint:
                rng = np.random.default_rng((recipe.seed, 78 + half, at))
                loss, counts = joint_loss(self.student, rng, worlds, hidden, closed, recipe.hidden == "blocks")
            else:
                loss, _ = self.student.vision_loss(worlds)
        params = self.optimiser.params
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        named = zip(params, grads)
        grads = {name: grad for name, grad in named if grad is not None}
        return Half(grads, loss.item(), counts)

    def _hiding(self, at):
        """How many patches this step hides, and whether the others are closed up."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, 77, at))
        first = recipe.vision_steps + recipe.whole * recipe.joint_steps
        can_hide = at >= first and recipe.hidden != "nothing"
        if not can_hide or rng.random() >= recipe.hide:
            return 0, False
        hidden = int(rng.integers(10, PATCHES - 10))
        closed = bool(rng.random() < 0.5)
        return hidden, closed

    def _precision(self):
        """Where operations run in the run's dtype; the weights are float32 in any case."""
        is_half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=is_half)

    def save(self, name="state"):
        """The whole state; and the log, if it is the state to go on from."""
        tensors = self._weights() | self.optimiser.state
        dtype = str(self.dtype).removeprefix("torch.")
        facts = dict(at=self.at, best=self.best)
        facts["recipe"] = repr(self.recipe)
        facts["dtype"] = dtype
        facts["log"] = self.log
        training.save_state(self.folder / f"{name}.safetensors", tensors, facts)
        if name == "state":
            lines = [line + "\n" for line in self.log]
            write_text(self.folder / "log.txt", "".join(lines))

    def _weights(self):
        """{name in a state: tensor} of the network and its heads."""
        return {STUDENT + key: tensor for key, tensor in self.student.state_dict().items()}

    def resume(self, name="state"):
        """Go on from a saved state. UserError, before any change, if it is missing, another recipe's, or damaged."""
        facts, tensors = self.read_state(self.folder / f"{name}.safetensors")
        self.at = facts["at"]
        self.best = facts["best"]
        self.dtype = getattr(torch, facts["dtype"])
        self.log = facts["log"]
        weights = {}
        self.optimiser.state = {}
        for key, tensor in tensors.items():
            if key.startswith(STUDENT):
                weights[key.removeprefix(STUDENT)] = tensor.to(self.device)
            else:
                self.optimiser.state[key] = tensor.to(self.device)
        self.student.load_state_dict(weights)

    def read_state(self, path):
        """The facts and the tensors of a state."""
        if not path.is_file():
            raise UserError(f"{path}: no run to resume: start one without --resume, in a new folder")
        facts = training.read_facts(path)
        if facts.get("recipe") != repr(self.recipe):
            recipe = shown(facts.get("recipe"), 200)
            raise UserError(f"{path}: a run with {recipe}: resume it with the same options")
        at = training.check_number(path, facts, "at", 0, self.total)
        training.check_number(path, facts, "best", -1.0, 1.0)
        if facts.get("dtype") not in DTYPES:
            dtype = shown(facts.get("dtype"))
            raise training.damaged(path, f"its dtype is {dtype}, and should be one of {', '.join(DTYPES)}")
        if not _is_log(facts.get("log"), at):
            raise training.damaged(path, "its log is no list of lines, at most one per step")
        tensors = training.read_tensors(path, self.expected(at))
        return facts, tensors

    def expected(self, at):
        """{name: (shape, dtype)} of the tensors of a state after `at` steps."""
        stages = 2
        if at <= self.recipe.vision_steps:
            stages = 1
        if at == 0:
            stages = 0
        kinds = self._weights() | self.optimiser.expected(stages)
        return {key: (tensor.shape, tensor.dtype) for key, tensor in kinds.items()}

    def check(self, name="validation", batches=4, pool=None):
        """(8,) share of right answers of each family on that set, all patches shown."""
        each = pool.map if pool else map
        counts = each(lambda batch: self._counts(name, batch), range(batches))
        right, asked = sum(counts)
        return right / asked

    def _counts(self, name, batch):
        """(2, 8) right and asked answers of a batch of a set."""
        seed = self.recipe.seed
        worlds = scenes.worlds(name, seed, batch, 32)
        rng = np.random.default_rng((seed, 80, batch))
        with torch.no_grad(), self._precision():
            text, labels, patches = [part.to(self.device) for part in pack(rng, worlds, 0)]
            states = self.student.llava.vision_tower(pixels(worlds).to(self.device), 3)
            features = states[-1][:, 1:]
            logits = self.student.answers(features, text, patches)
        return score(logits, labels, _is_answer(labels))


def _is_log(lines, most):
    """Whether these are lines of text, at most so many."""
    if not isinstance(lines, list) or len(lines) > most:
        return False
    return all(isinstance(line, str) and line.isprintable() for line in lines)


def fast_dtype(device):
    """bfloat16 if the processor multiplies it in hardware, else float32."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.is_file() else ""
    has_bfloat16 = any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))
    if device.type == "cuda" or has_bfloat16:
        return torch.bfloat16
    return torch.float32


def train(folder, recipe=Recipe(), device="cpu", resume=False, minutes=None, every=100):
    """Train to the end, or for some minutes, with a progress bar -> the Run. Checkpoints lie in `folder`.

    `state.safetensors` is the newest, every `every` steps and at the end; `whole.safetensors` the last before patches
    are hidden; `best.safetensors` the joint state with the best mean on the validation set; `log.txt` has a line per
    checkpoint.
    """
    if minutes is not None and not 0 <= minutes < math.inf:
        raise UserError(f"--minutes {minutes}: give a finite number from 0 on, or leave it out to train to the end")
    started = monotonic()
    with filled(folder):
        run = Run(folder, recipe, device)
        if resume:
            run.resume()
        dtype = str(run.dtype).removeprefix("torch.")
        print(f"training on {run.device} in {dtype}: {run.total} steps, now at {run.at}")
        torch.set_num_threads(1)                   # two halves on two threads: steadier than two threads an operation
        end = math.inf if minutes is None else started + 60 * minutes
        _steps(run, every, lambda: monotonic() < end)
        run.save()
    return run


def _steps(run, every, time_left):
    """Take the steps that are left while there is time."""
    recent = torch.zeros(2, len(FAMILIES))
    with ThreadPoolExecutor(2) as pool, tqdm(total=run.total, initial=run.at, mininterval=5) as bar:
        while run.at < run.total and time_left():
            loss, counts = run.step(pool)
            if not math.isfinite(loss):
                raise UserError(f"the loss is not finite at step {run.at}: go on from the last state with --resume, "
                                "or train anew")
            if counts is not None:
                recent = 0.95 * recent + counts.cpu()
            bar.update()
            right, asked = recent
            bar.set_postfix_str(f"loss {loss:.2f} {_line(right / asked)}", refresh=False)
            if run.at % every == 0 or run.at == run.total:
                _checkpoint(run, loss, pool)


def _line(accuracy):
    parts = []
    for name, share in zip(FAMILIES, accuracy.tolist()):
        if not math.isnan(share):
            parts.append(f"{name} {100 * share:.0f}")
    return " ".join(parts)


def _checkpoint(run, loss, pool):
    """Save the state; score it on the validation set; keep it if it is the best so far, or the last before patches are
    hidden."""
    line = f"step {run.at} loss {loss:.3f}"
    if run.at > run.recipe.vision_steps:
        accuracy = run.check(pool=pool).cpu()
        line += f" validation {100 * accuracy.mean():.2f}: {_line(accuracy)}"
        if accuracy.mean() > run.best:
            run.best = float(accuracy.mean())
            run.save("best")
    recipe = run.recipe
    if run.at == recipe.vision_steps + recipe.whole * recipe.joint_steps:
        run.save("whole")
    run.log.append(line)
    run.save()
