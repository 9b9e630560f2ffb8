"""Questions and answers: sampling, streaming, and a conversation that goes on from the pruned cache."""

from dataclasses import dataclass, field

import torch

from minivlm.trace import Trace
from pruning.base import UserError


@dataclass
class Sampling:
    """How the next token is chosen: greedy at temperature 0, else from the smallest set of probability top_p."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise UserError(f"temperature is at least 0 and top-p in (0, 1]; got {self.temperature} and {self.top_p}")
        self.generator = torch.Generator().manual_seed(self.seed)          # on the CPU: the same draw on every device

    def choose(self, logits, unused=None):
        """(V,) -> id

        unused() gives (V,) bool, the ids that are no token: rows that fill up a vocabulary may hold anything, and what
        overflows there is not chosen. Elsewhere NaN or infinity is a UserError: of two infinite logits no one knows
        which is larger.
        """
        best = int(logits.argmax())                        # the id of a NaN, if there is one
        if unused is not None and not logits[best].isfinite():
            overflowed = unused() & ~logits.isfinite()
            logits = logits.masked_fill(overflowed, -torch.inf)
            best = int(logits.argmax())
        if not logits[best].isfinite():
            raise UserError("the logits contain NaN or infinity: the model overflowed; load it in float32 or bfloat16")
        if self.temperature == 0:
            return best
        logits = logits.double().cpu()
        logits = logits - logits.max()                     # so that a low temperature cannot overflow
        p = (logits / self.temperature).softmax(dim=-1)
        # of the likeliest ids the first that reach top_p together
        p, token = p.sort(descending=True)
        before = p.cumsum(dim=-1) - p                      # (V,)  probability of the likelier ids
        p[before >= self.top_p] = 0
        drawn = torch.multinomial(p, 1, generator=self.generator)
        return int(token[drawn])


class Conversation:
    """A prompt with its images, and the turns that follow it.

    The method reduces the visual tokens once, in the first turn. What it dropped stays dropped: later turns read the
    same cache, so their answers rest on the tokens that the first question kept.
    """

    def __init__(self, model, pruner=None):
        self.model = model
        self.pruner = pruner
        self.cache = None
        self.trace = Trace()
        self.ids = []                                  # every id that the cache holds
        self.logits = None                             # after the last of them
        self.pending = []                              # the newest generated id, until it is run
        self._unknown = None                           # see _unused

    @torch.inference_mode()
    def read(self, ids, images=(), trace=None):
        """Take in the first prompt (ids with one image mark per image; pixels of each), or more text later.

        trace: in place of a plain Trace of the first prompt.
        """
        if self.cache is None:
            trace = trace or Trace()                       # a prompt that fails leaves nothing: another may follow
            tokens = self.model.embed(ids, images, self.pruner, trace)
            self.logits, self.cache = self.model.prefill(tokens, self.pruner, trace)
            self.ids = list(ids)
            self.trace = trace
        elif len(images):
            raise UserError("an image can only be given in the first turn: start a new conversation for another one")
        else:
            self._run([*self.pending, *ids])

    def _unused(self):
        """(V,) bool: the ids that the tokenizer does not know."""
        if self._unknown is None:
            V = len(self.logits)
            tokenizer = getattr(self.model, "tokenizer", None)
            unknown = [False] * V
            if tokenizer is not None:
                unknown = [tokenizer.fast.id_to_token(id) is None for id in range(V)]
            self._unknown = torch.tensor(unknown, device=self.logits.device)
        return self._unknown

    @property
    def _left(self):
        """Tokens that the model's context has room for."""
        context = self.model.config.text.max_position_embeddings
        return context - self.cache.layers[0].next_position

    def _run(self, ids):
        if len(ids) > self._left:
            raise UserError(f"{len(ids)} more tokens do not fit: {self._left} are left of the model's context; start "
                            "anew")
        self.logits = self.model.step(ids, self.cache, self.pruner)
        self.pending = []
        self.ids += ids

    @torch.inference_mode()
    def generate(self, max_new_tokens=512, sampling=None, eos=None):
        """Yield ids one by one until an end token (which is yielded too), `max_new_tokens` or the end of the
        context."""
        sampling = sampling or Sampling()
        eos = self.model.eos if eos is None else eos
        if self.pending:
            self._run(list(self.pending))                  # an answer that continues after its last token
        most = min(max_new_tokens, self._left + 1)
        for number in range(1, most + 1):
            token = sampling.choose(self.logits, self._unused)
            self.pending = [token]
            yield token
            if token in eos or number == most:
                return                                 # the last token is not run, unless the conversation goes on
            self._run([token])
