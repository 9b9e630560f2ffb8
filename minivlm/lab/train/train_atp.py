"""Training of ATP (pruning/atp.py), 3.3.3: `run.py train atp`, alone or under torchrun.

Every prompt runs whole through the decoder, with soft masks in the softmax; AdamW lowers the loss. The vision tower
is frozen, and with freeze_lm all but the thresholds. As in LLaVA-1.5: warm-up, then a cosine to zero; no weight decay;
gradients clipped to norm 1.

What a step sees follows from seed and step alone, and a checkpoint has the whole state, so that a run that was
interrupted and resumed gives the same bits. A step is the mean of `accumulate` batches on each of the processes: two
processes do as one with twice the accumulation. DIR gets state.safetensors, log.jsonl (one line per step) and
atp.safetensors, and in the end the whole checkpoint, if the language model was trained too.
"""

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minivlm.io import resume as training
from minivlm.io.atomic import filled, write_text
from minivlm.io.resume import FINITE, check_bounds
from minivlm.lab.cli import modules
from minivlm.lab.score.answers import checksum
from minivlm.lab.train import save_checkpoint
from minivlm.lab.train.atp_student import LOGGED, Student, prepared
from minivlm.lab.train.instruct import batch
from pruning.base import UserError


STATE = "state.safetensors"
ADAM = ("step", "exp_avg", "exp_avg_sq")           # of each parameter
BOUNDS = dict(target=(0.0, FINITE), steps=(1, 10 ** 7), batch=(1, 4096), accumulate=(1, 4096), lr=(0.0, FINITE),
              lr_module=(0.0, FINITE), lambda_atp=(0.0, FINITE), lambda_target=(0.0, FINITE), warmup=(0.0, 1.0),
              width=(1, 2 ** 14), seed=(0, 2 ** 32 - 1))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, but model, data and ATP's own options."""

    target: float                                  # N_target of Eq. 13, tokens in a layer on average
    steps: int = 1000
    batch: int = 8                                 # prompts at once
    accumulate: int = 1                            # batches a step, of each process
    lr: float = 2e-5                               # of the language model and projector
    lr_module: float = 1e-4
    lambda_atp: float = 0.05                       # the paper: from 0.01 to 0.1
    lambda_target: float = 0.2
    target_unit: str = "tokens"                    # Eq. 13 in "tokens", or as a "share" of N
    warmup: float = 0.03                           # share of the steps
    freeze_lm: bool = False
    theta_r: float = 0.3                           # thresholds at first, in (0, 1)
    theta_s: float = 0.5
    width: int = 256                               # of z in Eq. 6
    activation: str = "none"                       # of z
    dtype: str = "float32"                         # or "bfloat16": products in it, trained weights in float32
    template: str = "llava-hf"
    seed: int = 0

    def __post_init__(self):
        check_bounds(self, BOUNDS)


class Run:
    """A training run in a folder: its state, its steps, its checkpoints."""

    def __init__(self, model, atp, recipe, data, folder, rank=0, size=1):
        self.student = Student(model, atp, recipe)
        self.atp = atp
        self.recipe = recipe
        self.data = data
        self.folder = Path(folder)
        self.rank = rank
        self.size = size
        self.at = 0                    # steps taken
        self.log = []
        self.base = checksum(model.state_dict().values())          # of the weights before training
        self.trained = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        in_module = [p for name, p in self.trained.items() if name.startswith("module.")]
        in_model = [p for name, p in self.trained.items() if not name.startswith("module.")]
        groups = [dict(params=in_module, base=recipe.lr_module), dict(params=in_model, base=recipe.lr)]
        self.adam = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
        self.parallel = DistributedDataParallel(self.student) if size > 1 else self.student

    def train(self, save_every=100, stop=None):
        """Take the remaining steps (or those before `stop`), with a checkpoint every `save_every` steps."""
        r = self.recipe
        last = r.steps if stop is None else min(stop, r.steps)
        a_step = r.accumulate * self.size          # batches
        order = islice(self.data.order(r.seed), self.at * a_step * r.batch, None)
        with tqdm(total=r.steps, initial=self.at, desc="train", disable=self.rank > 0) as bar:
            while self.at < last:
                indices = [list(islice(order, r.batch)) for _ in range(a_step)]
                own = indices[self.rank::self.size]
                self.log.append(dict(step=self.at, **self.step(map(self.batch, own))))
                self.at += 1
                numbers = {name: f"{self.log[-1][name]:.3g}" for name in ("loss", "ntp", "average")}
                bar.set_postfix(numbers, refresh=False)
                bar.update()
                is_due = self.at % save_every == 0 or self.at == last
                if is_due and self.rank == 0:
                    self.save()

    def batch(self, indices):
        """The Batch of these samples."""
        return batch(self.student.llava, [self.data[i] for i in indices], self.recipe.template)

    def step(self, batches):
        """One update by the mean over batches and processes; what LOGGED names, and the tokens kept."""
        r = self.recipe
        for group in self.adam.param_groups:
            group["lr"] = group["base"] * self.rate()
        total = 0
        for n, b in enumerate(batches):
            last = n == r.accumulate - 1
            with nullcontext() if last or self.size == 1 else self.parallel.no_sync(), self.precision(b.ids.device):
                result = self.parallel(b)
                (result["loss"] / r.accumulate).backward()             # the last one averages over the processes
            logged = torch.stack([result[name].detach() for name in LOGGED])
            total = total + torch.cat([logged, result["kept"]])
        total = total / (r.accumulate * self.size)
        if self.size > 1:
            dist.all_reduce(total)
        if not total.isfinite().all():
            raise UserError(f"the loss is not finite at step {self.at}: lower --lr, or train in float32; "
                            "the last checkpoint stands")
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        numbers = total.tolist()
        return dict(zip(LOGGED, numbers), kept=numbers[len(LOGGED):])

    def rate(self):
        """The share of the learning rate at this step: up to 1 in the warm-up, then a half cosine to 0."""
        warmup = math.ceil(self.recipe.warmup * self.recipe.steps)
        if self.at < warmup:
            return (self.at + 1) / warmup
        return (1 + math.cos(math.pi * (self.at - warmup) / max(1, self.recipe.steps - warmup))) / 2

    def precision(self, device):
        """In which products run in bfloat16; a frozen model is stored in it, and needs no help."""
        mixed = self.recipe.dtype == "bfloat16" and not self.recipe.freeze_lm
        return torch.autocast(device.type, torch.bfloat16, enabled=mixed)

    def options(self):
        """What a state must agree in with the run that goes on from it."""
        method = dict(method=modules.name_of(type(self.atp)), **modules.options_of(self.atp))
        model = asdict(self.student.llava.config.text) | dict(weights=self.base)
        data = dict(samples=len(self.data), conversations=self.data.checksum(), processes=self.size)
        options = dict(recipe=asdict(self.recipe), atp=method, model=model, data=data)
        return json.loads(json.dumps(options))                     # as it reads from a file: lists for tuples

    def save(self):
        """The whole state, and the results that follow from it."""
        state = self.adam.state_dict()["state"]
        tensors = {f"weight.{name}": p for name, p in self.trained.items()}
        for name, i in self.indices().items():
            tensors |= {f"adam.{name}.{key}": x for key, x in state.get(i, {}).items()}
        rows = [[*(line[name] for name in LOGGED), *line["kept"]] for line in self.log]
        tensors["log"] = torch.tensor(rows, dtype=torch.float64)   # (at, columns): a header holds 100 MB at most
        training.save_state(self.folder / STATE, tensors, dict(self.options(), at=self.at))
        self.save_results()

    def save_results(self):
        """The log and the modules, as the state has them."""
        write_text(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in self.log))
        modules.save(self.atp, self.folder)

    def indices(self):
        """{name of a trained parameter: its number in the optimiser}"""
        order = [p for group in self.adam.param_groups for p in group["params"]]
        numbers = {id(p): i for i, p in enumerate(order)}
        return {name: numbers[id(p)] for name, p in self.trained.items()}

    @torch.no_grad()
    def resume(self):
        """Go on from the folder's state. UserError, before any change, if it is missing, another run's, or damaged."""
        at, tensors = self.read_state(self.folder / STATE)
        state = {}
        for name, i in self.indices().items():
            self.trained[name].copy_(tensors[f"weight.{name}"])
            state[i] = {key: tensors[f"adam.{name}.{key}"] for key in ADAM}
        self.adam.load_state_dict(self.adam.state_dict() | dict(state=state))
        self.at = at
        self.log = [_line(step, row) for step, row in enumerate(tensors["log"].tolist())]
        if self.rank == 0:             # a run that was killed may have left the results of the state before
            self.save_results()

    def read_state(self, path):
        """The step and the tensors of a state."""
        if not path.is_file():
            raise UserError(f"{path}: there is no state to resume: start without --resume")
        facts = training.read_facts(path)
        training.check_same(path, facts, self.options())
        at = training.check_number(path, facts, "at", 1, self.recipe.steps)
        tensors = training.read_tensors(path, self.expected(at))
        for name in self.trained:
            if not 1 <= tensors[f"adam.{name}.step"] <= at:
                raise training.damaged(path, f"adam.{name}.step is not from 1 to {at}")
            if (tensors[f"adam.{name}.exp_avg_sq"] < 0).any():
                raise training.damaged(path, f"adam.{name}.exp_avg_sq has numbers below 0")
        return at, tensors

    def expected(self, at):
        """{name: (shape, dtype)} of the tensors of a state after `at` steps."""
        expected = dict(log=((at, len(LOGGED) + len(self.atp.layers)), torch.float64))
        for name, p in self.trained.items():
            expected[f"weight.{name}"] = (p.shape, p.dtype)
            expected[f"adam.{name}.step"] = ((), torch.float32)
            expected[f"adam.{name}.exp_avg"] = (p.shape, p.dtype)
            expected[f"adam.{name}.exp_avg_sq"] = (p.shape, p.dtype)
        return expected


def _line(step, row):
    """A line of the log from its row of numbers."""
    return dict(step=step, **dict(zip(LOGGED, row)), kept=row[len(LOGGED):])


def train(model, atp, recipe, data, folder, save_every=100, resume=False, rank=0, size=1):
    """Train to the end, or go on with it; the log. The folder then has the modules, and the model if it was trained.

    Of several processes only the one of rank 0 writes.
    """
    folder = Path(folder)
    if not resume and (folder / STATE).exists():
        raise UserError(f"{folder} holds a run already: go on with --resume, or name another --out")
    if not recipe.freeze_lm and folder.resolve() == model.folder.resolve():
        raise UserError(f"{folder} is the model's own folder, and the trained one would replace it: name another --out")
    method = prepared(model, atp, recipe)
    with filled(folder) if rank == 0 else nullcontext():
        run = Run(model, method, recipe, data, folder, rank, size)
        if resume:
            run.resume()
        run.train(save_every)
        if rank == 0 and not recipe.freeze_lm:
            save_checkpoint.save(model, folder)
    return run.log
