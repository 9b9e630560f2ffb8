"""A benchmark as text: the table of times and ratios, and for each contestant the sentence that says what bounds it."""

from minivlm.lab.compare.report import size
from minivlm.lab.speed.machine import shares


def lines(told):
    """The head, the table, the sentences."""
    rows, first = told["rows"], told["rows"][0]
    wide = max(len(row["method"]) for row in rows)
    yield (f"{told['shape']}: {told['layers']} decoder layers, {told['image_tokens']} image and {told['text_tokens']} text tokens, {told['dtype']}, "
           f"{told['device']}, {told['threads']} threads, torch {told['torch']}" + (f", {told['processes']} processes at once" if told["processes"] > 1 else ""))
    yield f"milliseconds, medians of {told['repeat']} rounds in turn, +- half the distance of the quartiles; end to end: {told['steps']} tokens"
    yield ""
    yield f"{'':{wide}}       encode       method           prefill        a token   end to end        peak   prefill  FLOPs say  of that"
    for row in rows:
        cells = [_cell(row, stage) for stage in ("encode", "method", "prefill", "decode", "total")]
        peak = "?" if row["peak"] is None else size(row["peak"])
        yield (f"{row['method']:{wide}}  {cells[0]:>11}  {cells[1]:>11}  {cells[2]:>16}  {cells[3]:>13}  {cells[4]:>11}  {peak:>10}  {_ratios(row, first)}").rstrip()
    yield ""
    yield "peak: memory above the weights. prefill: how much faster, the method's own time in; FLOPs say: by the counted FLOPs, decoder and head"
    yield ""
    yield from wall(rows, told, wide)
    yield ""
    for row in rows:
        yield f"{row['method']:{wide}}  {sentence(row, first, told)}"


def wall(rows, told, wide):
    """Each phase as a share of what this machine can do at most."""
    machine = told["machine"]
    yield (f"this machine: {machine['flops_per_second'] / 1e9:.0f} GFLOP/s in products, reads {machine['bytes_per_second'] / 1e9:.1f} GB/s; "
           f"{told['kernels']}. Share of that limit, 1.00 is the wall:")
    for row in rows:
        reached = shares(row, machine, _read(row, told)) if "kv_bytes" in row else {}
        cells = [f"{phase} {reached[phase]:.2f}" for phase in ("encode", "prefill", "decode") if phase in reached]
        if cells:
            yield f"{row['method']:{wide}}  {', '.join(cells)}"


def _cell(row, stage):
    return f"{row['median'][stage] * 1e3:.1f}+-{row['spread'][stage] * 1e3:.1f}"


def speedup(row, first):
    """Of the prefill with the method's own time, measured."""
    return first["median"]["prefill"] / (row["median"]["prefill"] + row["median"]["method"])


def predicted(row, first):
    """Of the prefill, by counted FLOPs; None where they are not known beforehand."""
    return first["flops"]["prefill"] / row["flops"]["prefill"] if "flops" in row else None


def _ratios(row, first):
    expected, measured = predicted(row, first), speedup(row, first)
    return f"{measured:5.2f} x" + ("" if expected is None else f"  {expected:7.2f} x  {measured / expected:7.2f}")


def sentence(row, first, told):
    """What bounds this one: one sentence."""
    if row is first:
        return _unpruned(row, told)
    if "flops" not in row:
        return _other(row, first)
    time, expected = row["median"], predicted(row, first)
    part = (time["encode"] / (time["encode"] + time["method"] + time["prefill"]))
    reached = speedup(row, first) / expected
    prefill = f"the prefill gets {reached:.0%} of what its FLOPs allow" + (f": {_why(time)}" if reached < .92 else "")
    decode, bytes_allow = first["median"]["decode"] / time["decode"], _read(first, told) / _read(row, told)
    return (f"{prefill}; encoding, which it does not shorten, is now {part:.0%} of the time to the first token; decoding is {decode:.2f} x as fast, "
            f"where the bytes read allow {bytes_allow:.2f} x")


def _why(time):
    """What FLOPs do not tell. A decoded token takes about as long as it takes to read the weights once, which a prefill does too."""
    if time["method"] > .05 * time["prefill"]:
        return f"its own time is {time['method'] / (time['method'] + time['prefill']):.0%} of it"
    if time["decode"] > .1 * time["prefill"]:
        return f"for so few tokens the weights count, and to read them for one alone takes {time['decode'] / time['prefill']:.0%} as long"
    return "the rest is not matrix products"


def _unpruned(row, told):
    time, total = row["median"], row["median"]["total"]
    decode, cached = time["decode"] * told["steps"], row["kv_bytes"] / _read(row, told)
    hope = "decoding will not speed up" if cached < .1 else f"decoding can get {1 / (1 - cached):.2f} x as fast at most"
    return (f"encoding is {time['encode'] / total:.0%} of the time, the prefill {time['prefill'] / total:.0%}, {told['steps']} tokens {decode / total:.0%}; "
            f"{hope}: a token reads {size(told['read_a_token'])} of weights, and the cache is {cached:.1%} of the bytes")


def _read(row, told):
    """Bytes that the first generated token reads: weights and cache."""
    return told["read_a_token"] + row["kv_bytes"]


def _other(row, first):
    share = {stage: first["median"][stage] / row["median"][stage] for stage in ("encode", "prefill", "decode")}
    told = ", ".join(f"{name} {value:.2f}" for name, value in share.items())
    return f"ours takes of its time: {told}" if row["method"].startswith("transformers") else "its FLOPs are not known before the prompt is"
