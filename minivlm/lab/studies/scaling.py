"""How time and memory grow: with the tokens of a prompt, with the tokens decoded, and with one prompt after another.

Attention grows with the square of the tokens and all else with the tokens. So attention is timed once more on tensors
laid out as the model's, and each part is compared with its own law.
"""

from statistics import median

import torch
from tqdm import tqdm

from minivlm.kernels import attention
from minivlm.lab.cli.output import size
from minivlm.lab.cost.count import bytes_of
from minivlm.lab.speed.clock import Clock, Memory

WARM = 5                               # prompts after which all is held that is held for good


@torch.inference_mode()
def measure(model, lengths, decode=1000, prompts=50, repeat=3):
    """Prompts of these lengths, `decode` tokens after the first, `prompts` prompts in a row -> data, see `lines`."""
    clock = Clock(model.device)
    rows = [_row(model, T, repeat, clock) for T in tqdm(lengths, desc="prompts", leave=False)]
    decoded = _decoded(model, lengths[0], decode, clock)
    return dict(
        rows=rows,
        decode=decoded,
        held=_held(model, lengths[0], prompts),
        prompts=prompts,
    )


def _row(model, T, repeat, clock):
    """Medians for one length; the first round is not counted."""
    _, *rounds = [_round(model, T, clock) for _ in range(repeat + 1)]
    row = dict(tokens=T)
    for name in rounds[0]:
        values = [result[name] for result in rounds]
        row[name] = None if None in values else median(values)
    return row


def _round(model, T, clock):
    """Seconds of a prefill, of its attention only, and of the token after it; most bytes above what was held."""
    c = model.config.text
    query = _heads(model, T, c.num_attention_heads)            # (1, H, T, Dh)
    key = _heads(model, T, c.num_key_value_heads)              # (1, Hk, T, Dh)
    value = _heads(model, T, c.num_key_value_heads)            # (1, Hk, T, Dh)
    tokens = model.embed([1] * T)
    memory = Memory(clock.device)
    start = clock.mark()
    _, cache = model.prefill(tokens)
    filled = clock.mark()
    peak = memory.peak()
    model.step([1], cache)
    stepped = clock.mark()
    for _ in model.language_model.layers[1:]:
        attention(query, key, value)
    attention(query[:, :, -1:], key, value)                    # the last layer computes only the last row
    end = clock.mark()
    return dict(
        prefill=clock.seconds(start, filled),
        attention=clock.seconds(stepped, end),
        token=clock.seconds(filled, stepped),
        peak=peak,
    )


def _heads(model, T, count):
    """(1, count, T, Dh), as the model's projections leave it."""
    weight = model.lm_head.weight
    x = torch.randn(1, T, count, model.config.text.head_dim, dtype=weight.dtype, device=weight.device)
    return x.transpose(1, 2)


def _decoded(model, T, count, clock):
    """Seconds and bytes read per token, over the first and over the last tenth of `count` tokens after a prompt of T.

    The two tenths are decoded in turn, in two caches: a machine that slows down meanwhile slows both.
    """
    weights = bytes_of(model.language_model.layers) + bytes_of(model.lm_head)
    tokens = model.embed([1] * T)
    _, early = model.prefill(tokens)
    _, late = model.prefill(tokens)
    tenth = max(1, count // 10)
    before = count - tenth                                     # tokens that only the late cache gets
    for _ in tqdm(range(before), desc="tokens", leave=False):
        model.step([1], late)
    early_marks = []                                           # (start, end, bytes read)
    late_marks = []
    for _ in range(tenth):
        for cache, marks in ((early, early_marks), (late, late_marks)):
            start = clock.mark()
            model.step([1], cache)
            marks.append((start, clock.mark(), weights + cache.bytes))
    return [
        _part(0, tenth, early_marks, clock),
        _part(before, tenth, late_marks, clock),
    ]


def _part(first, count, marks, clock):
    """Medians over `count` tokens after the first `first`."""
    seconds = median(clock.seconds(start, end) for start, end, _ in marks)
    read = median(read for _, _, read in marks)
    return dict(first=first + 1, last=first + count, seconds=seconds, bytes=read)


def _held(model, T, prompts):
    """Bytes held more after `prompts` prompts than after the first WARM; None if the system does not say.

    The prompts have WARM lengths in turn: for each new length torch may compile its products anew (oneDNN does so in
    bfloat16) and keeps them for the next prompt of that length.
    """
    held = []
    warm = min(WARM, prompts)
    for n in tqdm(range(prompts), desc="prompts in a row", leave=False):
        length = T + n % WARM
        tokens = model.embed([1] * length)
        _, cache = model.prefill(tokens)
        model.step([1], cache)
        del cache, tokens
        if n + 1 in (warm, prompts):
            held.append(Memory(model.device).before)
    if held[0] is None:
        return None
    return held[-1] - held[0]


def facts(shape, model, dtype, repeat):
    """What it is measured on."""
    return dict(
        shape=shape.name,
        layers=shape.layers,
        dtype=dtype,
        device=str(model.device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        repeat=repeat,
    )


def lines(table):
    """A table of the prompts, each part divided by its law; then the tokens decoded, then the prompts in a row."""
    first = table["rows"][0]
    yield (
        f"{table['shape']}: {table['layers']} decoder layers, {table['dtype']}, {table['device']}, "
        f"{table['threads']} threads, torch {table['torch']}; "
        f"medians of {table['repeat']} rounds"
    )
    yield "x: as a multiple of the first row, over the tokens or over their square"
    yield ""
    yield "tokens     prefill   attention  x, squared    the rest  x, tokens        peak  x, tokens     a token"
    for row in table["rows"]:
        yield _line(row, first)
    yield ""
    yield _decoding(*table["decode"])
    prompts = table["prompts"]
    held = "this system does not say"
    if table["held"] is not None:
        held = f"{table['held'] / 1e6:+.1f} MB"
    yield f"memory held after {prompts} prompts, against that after {min(WARM, prompts)}: {held}"


def _decoding(early, late):
    """The sentence on the first and the last tenth of the tokens."""
    slower = late["seconds"] / early["seconds"]
    more = late["bytes"] / early["bytes"]
    return (
        f"decoding: tokens {early['first']} to {early['last']} take {early['seconds'] * 1e3:.2f} ms each, "
        f"{late['first']} to {late['last']} {late['seconds'] * 1e3:.2f} ms: {slower:.2f} x, "
        f"and the bytes read grow {more:.2f} x"
    )


def _line(row, first):
    """The row of one length."""
    rest = row["prefill"] - row["attention"]
    base = first["prefill"] - first["attention"]
    growth = row["tokens"] / first["tokens"]
    squared = _ratio(row["attention"], first["attention"] * growth ** 2)
    linear = _ratio(rest, base * growth)
    peak = "?          ?"
    if row["peak"] is not None:
        peak = f"{size(row['peak'])} {_ratio(row['peak'], first['peak'] * growth):>10}"
    return (
        f"{row['tokens']:6}  {_ms(row['prefill'])}  "
        f"{_ms(row['attention'])}  {squared:>10}  "
        f"{_ms(rest)}  {linear:>9}  "
        f"{peak:>21}  {_ms(row['token'])}"
    )


def _ms(seconds):
    return f"{seconds * 1e3:8.1f}ms"


def _ratio(value, expected):
    """How many times what the law expects; "?" if that is nothing."""
    return f"{value / expected:.2f}" if expected else "?"
