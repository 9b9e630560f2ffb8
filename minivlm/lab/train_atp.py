"""Training of ATP (pruning/atp.py), 3.3.3: `run.py train atp`, alone or under torchrun.

Every prompt runs whole through the decoder, with soft masks in the softmax; AdamW lowers the full loss. The vision tower is
frozen, and with freeze_lm all but the thresholds. As in LLaVA-1.5: warm-up, then a cosine to zero; no weight decay; gradients
clipped to norm 1.

What a step sees follows from seed and step alone, and a checkpoint has the whole state, so that a run that was interrupted
and resumed gives the same bits. A step is the mean of `accumulate` batches on each of the processes: two processes do as one
with twice the accumulation. DIR gets state.safetensors, log.jsonl (a line a step) and atp.safetensors, and in the end, where
the language model was trained too, the whole checkpoint.
"""

import json
import math
import os
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minivlm.attention import Look, rope
from minivlm.lab import checkpoint, modules
from minivlm.lab.instruct import batch
from minivlm.llama import plan
from pruning.atp import Thresholds, budget_losses, full_loss
from pruning.base import Tokens, UserError

LOGGED = ("loss", "ntp", "atp", "target", "average")


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
    width: int = 256                               # of z in Eq. 6
    activation: str = "none"                       # of z
    dtype: str = "float32"                         # or "bfloat16": products in it, trained weights in float32
    template: str = "llava-hf"
    seed: int = 0


class Student(nn.Module):
    """The model with soft masks where ATP stands: a Batch -> what Eq. 14 adds up, and the tokens kept after each module."""

    def __init__(self, llava, atp, recipe):
        super().__init__()
        self.llava, self.atp, self.recipe, self.module = llava, atp, recipe, atp.module
        llava.requires_grad_(not recipe.freeze_lm).vision_tower.requires_grad_(False)
        self.module.requires_grad_(True)
        for name, other in (("linear_s", "redundant"), ("linear_r", "spatial")):
            for module in self.module:             # a head that counts for nothing
                getattr(module, name).requires_grad_(atp.strategy != other)

    def forward(self, b):
        """{name: number} of LOGGED, and kept (modules,)"""
        hidden, masks = self.hidden(b)
        ahead = b.answer[:, 1:]                    # the row before a token predicts it
        logits = self.llava.lm_head(hidden[:, :-1][ahead]).float()                 # (answers, V)
        ntp = F.cross_entropy(logits, b.ids[:, 1:][ahead], reduction="sum") / ahead.sum().clamp_min(1)
        depth = len(self.llava.language_model.layers)
        atp, target, average = budget_losses(masks, self.atp.layers, depth, self.recipe.target)
        unit = masks.shape[-1] if self.recipe.target_unit == "share" else 1
        loss = full_loss(ntp, atp, target / unit, self.recipe.lambda_atp, self.recipe.lambda_target)
        return dict(loss=loss, ntp=ntp, atp=atp, target=target, average=average, kept=masks.detach().sum(dim=-1).mean(dim=1))

    def hidden(self, b):
        """Normed hidden states (B, T, D), and the running masks after each module (modules, B, N)."""
        decoder, T = self.llava.language_model, b.ids.shape[1]
        hidden, cell = self.embedded(b)
        turn, row, masks = self.turn(hidden, b.visual, cell), torch.arange(T, device=hidden.device), []
        mask = torch.ones(b.visual.shape, device=hidden.device)                    # (B, N)
        for l, layer in enumerate(decoder.layers):
            if l in self.atp.layers:
                with torch.autocast(hidden.device.type, enabled=False):
                    mask = self.atp.soft_mask(len(masks), look.logits, look.attn, b.visual, b.is_text, cell, mask)
                masks.append(mask)
            look = None
            if masks:
                look = Look(mask=lambda logits, causal, mask=mask: self.atp.softmax_mask(causal, b.visual, mask))
            elif l + 1 in self.atp.layers:
                look = Look(row)
            hidden = layer(hidden, turn, look=look)
        return decoder.norm(hidden), torch.stack(masks)

    def embedded(self, b):
        """What enters layer 0, (B, T, D), and the cells (N, 3) of an image."""
        with torch.no_grad():
            features, cell, _ = self.llava.features(b.pixels)                      # (B*N, C), (B*N, 3)
        words = self.llava.language_model.embed_tokens(b.ids.clamp_max(self.llava.config.text.vocab_size - 1))
        image = torch.zeros_like(b.answer).scatter(1, b.visual, True)              # (B, T)
        features = self.llava.multi_modal_projector(features).to(words.dtype)
        return words.masked_scatter(image[..., None], features), cell[:b.visual.shape[1]]

    def turn(self, hidden, visual, cell):
        """cos and sin of all rows; of each prompt its own, (B, 1, T, Dh), where positions have two dimensions."""
        c, row = self.llava.config.text, torch.arange(hidden.shape[1], device=hidden.device)
        if self.atp.position_ids != "2d":
            return rope(row, c.head_dim, c.rope_theta, hidden.dtype)
        placed = [self.atp.placed(Tokens(h, row, v, cell, row[:len(v)], len(row))).position for h, v in zip(hidden, visual)]
        turns = [rope(position, c.head_dim, c.rope_theta, hidden.dtype) for position in placed]
        return tuple(torch.stack(part)[:, None] for part in zip(*turns))


def prepared(model, atp, recipe):
    """The ATP with new modules for this model. UserError where the two, or the recipe, do not go together."""
    depth, N = len(model.language_model.layers), model.visual_tokens(torch.empty(1))
    plan(atp, depth)
    least = N * atp.layers[0] / depth
    if not least <= recipe.target <= N:
        raise UserError(f"--target-tokens {recipe.target:g} is out of reach: {N} tokens enter each layer before {atp.layers[0]} of "
                        f"{depth}, so the average is {least:.4g} to {N}")
    if min(recipe.steps, recipe.batch, recipe.accumulate, recipe.width) < 1 or not min(recipe.lr, recipe.lr_module) >= 0:
        raise UserError("steps, batch, accumulate and width are at least 1, learning rates not below 0")
    torch.manual_seed(recipe.seed)
    made = [Thresholds(N, recipe.width, recipe.activation) for _ in atp.layers]
    return replace(atp, module=nn.ModuleList(made).to(model.device), depth=depth)


class Run:
    """A training run in a folder: its state, its steps, its checkpoints."""

    def __init__(self, model, atp, recipe, data, folder, rank=0, size=1):
        self.student, self.atp, self.recipe, self.data = Student(model, atp, recipe), atp, recipe, data
        self.folder, self.rank, self.size, self.at, self.log = Path(folder), rank, size, 0, []
        self.trained = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        ours = [p for name, p in self.trained.items() if name.startswith("module.")]
        theirs = [p for name, p in self.trained.items() if not name.startswith("module.")]
        groups = [dict(params=ours, base=recipe.lr_module), dict(params=theirs, base=recipe.lr)]
        self.adam = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
        self.parallel = DistributedDataParallel(self.student) if size > 1 else self.student

    def train(self, save_every=100, stop=None):
        """Take the steps that are left (or those before `stop`), with a checkpoint every so many."""
        r, model = self.recipe, self.student.llava
        a_step, last = r.accumulate * self.size, r.steps if stop is None else min(stop, r.steps)
        order = islice(self.data.order(r.seed), self.at * a_step * r.batch, None)
        bar = tqdm(total=r.steps, initial=self.at, desc="train", disable=self.rank > 0)
        while self.at < last:
            chosen = [[next(order) for _ in range(r.batch)] for _ in range(a_step)][self.rank::self.size]
            batches = (batch(model, [self.data[i] for i in indices], r.template) for indices in chosen)
            self.log.append(dict(step=self.at, **self.step(batches)))
            self.at += 1
            bar.set_postfix({k: f"{self.log[-1][k]:.3g}" for k in ("loss", "ntp", "average")}, refresh=False)
            bar.update()
            if self.rank == 0 and (self.at % save_every == 0 or self.at == last):
                self.save()
        bar.close()

    def step(self, batches):
        """One update by the mean over batches and processes; what LOGGED names, and the tokens kept."""
        r, total = self.recipe, 0
        for group in self.adam.param_groups:
            group["lr"] = group["base"] * self.rate()
        for n, b in enumerate(batches):
            last = n == r.accumulate - 1
            with nullcontext() if last or self.size == 1 else self.parallel.no_sync(), self.precision(b.ids.device):
                seen = self.parallel(b)
                (seen["loss"] / r.accumulate).backward()
            total = total + torch.cat([torch.stack([seen[k].detach() for k in LOGGED]), seen["kept"]])
        total = total / (r.accumulate * self.size)
        if self.size > 1:
            dist.all_reduce(total)
        if not total.isfinite().all():
            raise UserError(f"the loss is not finite at step {self.at}: lower --lr, or train in float32; the last checkpoint stands")
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        *numbers, = total.tolist()
        return dict(zip(LOGGED, numbers), kept=numbers[len(LOGGED):])

    def rate(self):
        """The share of the learning rate at this step: up to 1 in the warm-up, then a half cosine to 0."""
        warmup = math.ceil(self.recipe.warmup * self.recipe.steps)
        if self.at < warmup:
            return (self.at + 1) / warmup
        return (1 + math.cos(math.pi * (self.at - warmup) / max(1, self.recipe.steps - warmup))) / 2

    def precision(self, device):
        """Where products run in bfloat16; a frozen model is stored in it, and needs no help."""
        mixed = self.recipe.dtype == "bfloat16" and not self.recipe.freeze_lm
        return torch.autocast(device.type, torch.bfloat16, enabled=mixed)

    def told(self):
        """What a checkpoint must agree in with the run that goes on from it."""
        options = {name: x for name, x in vars(self.atp).items() if name != "module"}
        return json.dumps(dict(recipe=asdict(self.recipe), atp=options, samples=len(self.data)))

    def save(self):
        """The whole state, written beside the old file and then put in its place; the log; the modules."""
        state = self.adam.state_dict()["state"]
        tensors = {f"adam.{name}.{key}": x for name, i in self.indices().items() for key, x in state.get(i, {}).items()}
        tensors |= {f"weight.{name}": p.detach() for name, p in self.trained.items()}
        tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
        told = dict(told=self.told(), step=str(self.at), log=json.dumps(self.log))
        save_file(tensors, self.folder / ".state.safetensors", metadata=told)
        (self.folder / ".state.safetensors").replace(self.folder / "state.safetensors")
        (self.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.log))
        modules.save(self.atp, self.folder)

    def indices(self):
        """{name of a trained parameter: its number in the optimiser}"""
        order = [p for group in self.adam.param_groups for p in group["params"]]
        numbers = {id(p): i for i, p in enumerate(order)}
        return {name: numbers[id(p)] for name, p in self.trained.items()}

    @torch.no_grad()
    def resume(self):
        """Go on from the folder's state. UserError where there is none, or one of another run."""
        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                told, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: there is no state to resume ({error}): start without --resume") from None
        self._same(path, json.loads(told["told"]), json.loads(self.told()))
        self.at, self.log, state = int(told["step"]), json.loads(told["log"]), {}
        for name, i in self.indices().items():
            self.trained[name].copy_(tensors[f"weight.{name}"])
            state[i] = {key: tensors[f"adam.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.adam.load_state_dict(self.adam.state_dict() | dict(state=state))

    @staticmethod
    def _same(path, theirs, ours):
        for part in ours:
            pairs = ours[part].items() if isinstance(ours[part], dict) else [(part, ours[part])]
            for name, x in pairs:
                was = theirs[part][name] if isinstance(ours[part], dict) else theirs[part]
                if was != x:
                    raise UserError(f"{path} is of a run with {name} {was}, not {x}: resume with the same options, or name another --out")


def train(model, atp, recipe, data, folder, save_every=100, resume=False, rank=0, size=1):
    """Train to the end, or go on with it; the log. The folder then has the modules, and the whole model if it was trained."""
    folder = Path(folder)
    if not resume and (folder / "state.safetensors").exists():
        raise UserError(f"{folder} holds a run already: go on with --resume, or name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(model, prepared(model, atp, recipe), recipe, data, folder, rank, size)
    if resume:
        run.resume()
    run.train(save_every)
    if rank == 0 and not recipe.freeze_lm:
        checkpoint.save(model, folder)
    return run.log


@contextmanager
def processes(device):
    """(rank, number of processes, this one's device), as torchrun says; alone without it."""
    if "LOCAL_RANK" not in os.environ:
        yield 0, 1, device
        return
    cuda = str(device).startswith("cuda")
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size(), device
    finally:
        dist.destroy_process_group()
