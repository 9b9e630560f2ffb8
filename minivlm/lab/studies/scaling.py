"""How time and memory grow: with the tokens of a prompt, with the tokens decoded after it, and with one prompt after another.

Attention grows with the square of the tokens and all else with the tokens. So attention is timed once more by itself, on
tensors laid out as the model's, and each part is held against its own law.
"""

from statistics import median

import torch
from tqdm import tqdm

from minivlm.kernels import attention
from minivlm.lab.compare.report import size
from minivlm.lab.speed.clock import Clock, Memory

WARM = 5                               # prompts after which all is held that is held for good


@torch.inference_mode()
def measure(model, lengths, decode=1000, prompts=50, repeat=3):
    """Prompts of so many tokens each; `decode` tokens after one of them; `prompts` prompts in a row -> plain data, see `lines`."""
    clock = Clock(model.device)
    rows = [_row(model, T, repeat, clock) for T in tqdm(lengths, desc="prompts", leave=False)]
    return dict(rows=rows, decode=_decoded(model, lengths[0], decode, clock), held=_held(model, lengths[0], prompts), prompts=prompts)


def _row(model, T, repeat, clock):
    """Medians for one length; the first round is not counted."""
    rounds = [_round(model, T, clock) for _ in range(repeat + 1)][1:]
    return dict(tokens=T, **{name: None if rounds[0][name] is None else median(told[name] for told in rounds) for name in rounds[0]})


def _round(model, T, clock):
    """Seconds of a prefill, of its attention alone, and of the token after it; most bytes above what was held."""
    query, key, value = (_heads(model, T, count) for count in _counts(model))
    tokens, memory = model.embed([1] * T), Memory(clock.device)
    start = clock.mark()
    cache = model.prefill(tokens)[1]
    filled, peak = clock.mark(), memory.peak()
    model.step([1], cache)
    stepped = clock.mark()
    for _ in model.language_model.layers[1:]:
        attention(query, key, value)
    attention(query[:, :, -1:], key, value)            # in the last layer the last token alone asks
    end = clock.mark()
    return dict(prefill=clock.seconds(start, filled), attention=clock.seconds(stepped, end), token=clock.seconds(filled, stepped), peak=peak)


def _counts(model):
    c = model.config.text
    return c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads


def _heads(model, T, count):
    """(1, count, T, Dh), as the model's projections leave it."""
    like = model.lm_head.weight
    return torch.randn(1, T, count, model.config.text.head_dim, dtype=like.dtype, device=like.device).transpose(1, 2)


def _decoded(model, T, count, clock):
    """Seconds a token and bytes read, over the first and over the last tenth of `count` tokens after a prompt of T.

    The two tenths are decoded in turn, in two caches: a machine that slows down meanwhile slows both.
    """
    caches, tenth, seen = [model.prefill(model.embed([1] * T))[1] for _ in range(2)], max(1, count // 10), ([], [])
    for _ in tqdm(range(count - tenth), desc="tokens", leave=False):
        model.step([1], caches[1])
    for _ in range(tenth):
        for cache, told in zip(caches, seen):
            start = clock.mark()
            model.step([1], cache)
            told.append((start, clock.mark(), _weights(model) + cache.bytes))
    return [dict(first=start + 1, last=start + tenth, seconds=median(clock.seconds(begun, ended) for begun, ended, _ in told),
                 bytes=median(read for *_, read in told)) for start, told in zip((0, count - tenth), seen)]


def _weights(model):
    """Bytes of the weights that a token reads: the layers and the head."""
    return sum(p.numel() * p.element_size() for part in (model.language_model.layers, model.lm_head) for p in part.parameters())


def _held(model, T, prompts):
    """Bytes held more after `prompts` prompts than after the first WARM; None where the system does not tell.

    The prompts have WARM lengths in turn: for each new length torch may compile its products anew (oneDNN does so in bfloat16)
    and keeps them for the next prompt of that length.
    """
    held = []
    for n in tqdm(range(prompts), desc="prompts in a row", leave=False):
        cache = model.prefill(model.embed([1] * (T + n % WARM)))[1]
        model.step([1], cache)
        del cache
        if n + 1 in (min(WARM, prompts), prompts):
            held.append(Memory(model.device).before)
    return None if held[0] is None else held[-1] - held[0]


def facts(shape, model, dtype, repeat):
    """What it is measured on."""
    return dict(shape=shape.name, layers=shape.layers, dtype=dtype, device=str(model.device), threads=torch.get_num_threads(),
                torch=torch.__version__, repeat=repeat)


def lines(told):
    """A table of the prompts, each part divided by its law; then the tokens decoded, then the prompts in a row."""
    first = told["rows"][0]
    yield (f"{told['shape']}: {told['layers']} decoder layers, {told['dtype']}, {told['device']}, {told['threads']} threads, torch {told['torch']}; "
           f"medians of {told['repeat']} rounds")
    yield "x: as a multiple of the first row, over the tokens or over their square"
    yield ""
    yield "tokens     prefill   attention  x, squared    the rest  x, tokens        peak  x, tokens     a token"
    for row in told["rows"]:
        rest = row["prefill"] - row["attention"]
        peak = "?          ?" if row["peak"] is None else f"{size(row['peak'])} {_law(row['peak'], first['peak'], row, first, 1):>10}"
        yield (f"{row['tokens']:6}  {_ms(row['prefill'])}  {_ms(row['attention'])}  {_law(row['attention'], first['attention'], row, first, 2):>10}  {_ms(rest)}"
               f"  {_law(rest, first['prefill'] - first['attention'], row, first, 1):>9}  {peak:>21}  {_ms(row['token'])}")
    early, late = told["decode"]
    yield ""
    yield (f"decoding: tokens {early['first']} to {early['last']} take {early['seconds'] * 1e3:.2f} ms each, {late['first']} to {late['last']} "
           f"{late['seconds'] * 1e3:.2f} ms: {late['seconds'] / early['seconds']:.2f} x, and the bytes read grow {late['bytes'] / early['bytes']:.2f} x")
    held = "this system does not tell" if told["held"] is None else f"{told['held'] / 1e6:+.1f} MB"
    yield f"memory held after {told['prompts']} prompts, against that after {min(WARM, told['prompts'])}: {held}"


def _ms(seconds):
    return f"{seconds * 1e3:8.1f}ms"


def _law(value, base, row, first, power):
    """`value` over tokens ** power, as a multiple of that of the first row."""
    return f"{value / base / (row['tokens'] / first['tokens']) ** power:.2f}" if base else "?"
