"""A benchmark as text: the table of times and ratios, and for each contestant the sentence that says what bounds it."""

from minivlm.lab.cli.output import size
from minivlm.lab.speed.machine import shares

STAGES = {"encode": 11, "method": 11, "prefill": 16, "decode": 13, "total": 11}        # columns and their widths


def lines(table):
    """The head, the table, the sentences."""
    rows = table["rows"]
    first = rows[0]
    width = max(len(row["method"]) for row in rows)
    yield _head(table)
    yield (f"milliseconds, medians of {table['repeat']} rounds in turn, +- half the distance of the quartiles; "
           f"end to end: {table['steps']} tokens")
    yield ""
    yield (f"{'':{width}}       encode       method           prefill        a token   end to end        peak   "
           "prefill  FLOPs say  of that")
    for row in rows:
        yield f"{row['method']:{width}}  {_cells(row, first)}".rstrip()
    yield ""
    yield ("peak: memory above the weights. prefill: how much faster, the method's own time in; FLOPs say: by the "
           "counted FLOPs, decoder and head")
    yield ""
    yield from wall(rows, table, width)
    yield ""
    for row in rows:
        yield f"{row['method']:{width}}  {sentence(row, first, table)}"


def _head(table):
    """What was measured, and on what."""
    processes = f", {table['processes']} processes at once" if table["processes"] > 1 else ""
    return (f"{table['shape']}: {table['layers']} decoder layers, {table['image_tokens']} image and "
            f"{table['text_tokens']} text tokens, {table['dtype']}, {table['device']}, {table['threads']} threads, "
            f"torch {table['torch']}{processes}")


def _cells(row, first):
    """The columns of one contestant."""
    cells = []
    for stage, width in STAGES.items():
        time = f"{row['median'][stage] * 1e3:.1f}+-{row['spread'][stage] * 1e3:.1f}"
        cells.append(f"{time:>{width}}")
    peak = "?" if row["peak"] is None else size(row["peak"])
    return "  ".join([*cells, f"{peak:>10}", _ratios(row, first)])


def _ratios(row, first):
    """How much faster the prefill is, measured and by the FLOPs."""
    measured = speedup(row, first)
    expected = predicted(row, first)
    if expected is None:
        return f"{measured:5.2f} x"
    return f"{measured:5.2f} x  {expected:7.2f} x  {measured / expected:7.2f}"


def wall(rows, table, width):
    """Each phase as a share of what this machine can do at most."""
    machine = table["machine"]
    yield (f"this machine: {machine['flops_per_second'] / 1e9:.0f} GFLOP/s in products, reads "
           f"{machine['bytes_per_second'] / 1e9:.1f} GB/s; {table['kernels']}. Share of that limit, 1.00 is the wall:")
    for row in rows:
        if "kv_bytes" not in row:
            continue
        reached = shares(row, machine, _bytes_read(row, table))
        cells = [f"{phase} {reached[phase]:.2f}" for phase in ("encode", "prefill", "decode") if phase in reached]
        yield f"{row['method']:{width}}  {', '.join(cells)}"


def speedup(row, first):
    """Of the prefill with the method's own time, measured."""
    return first["median"]["prefill"] / (row["median"]["prefill"] + row["median"]["method"])


def predicted(row, first):
    """Of the prefill, by counted FLOPs; None if they are not known beforehand."""
    return first["flops"]["prefill"] / row["flops"]["prefill"] if "flops" in row else None


def sentence(row, first, table):
    """What bounds this contestant: one sentence."""
    if row is first:
        return _of_unpruned(row, table)
    if row["method"].startswith("transformers"):
        return _of_transformers(row, first)
    if "flops" not in row:
        return "its FLOPs are not known before the prompt is"
    time = row["median"]
    reached = speedup(row, first) / predicted(row, first)
    why = f": {_why(time)}" if reached < .92 else ""
    encode = time["encode"] / (time["encode"] + time["method"] + time["prefill"])
    decode = first["median"]["decode"] / time["decode"]
    bytes_allow = _bytes_read(first, table) / _bytes_read(row, table)
    return (f"the prefill gets {reached:.0%} of what its FLOPs allow{why}; encoding, which it does not shorten, is now "
            f"{encode:.0%} of the time to the first token; decoding is {decode:.2f} x as fast, where the bytes read "
            f"allow {bytes_allow:.2f} x")


def _why(time):
    """What FLOPs do not say: a token takes about as long as reading the weights once, which a prefill does too."""
    if time["method"] > .05 * time["prefill"]:
        return f"its own time is {time['method'] / (time['method'] + time['prefill']):.0%} of it"
    if time["decode"] > .1 * time["prefill"]:
        reading = time["decode"] / time["prefill"]
        return f"for so few tokens the weights count, and to read them for one alone takes {reading:.0%} as long"
    return "the rest is not matrix products"


def _of_unpruned(row, table):
    time = row["median"]
    total = time["total"]
    decode = time["decode"] * table["steps"]
    cached = row["kv_bytes"] / _bytes_read(row, table)
    hope = "decoding will not speed up"
    if cached >= .1:
        hope = f"decoding can get {1 / (1 - cached):.2f} x as fast at most"
    return (f"encoding is {time['encode'] / total:.0%} of the time, the prefill {time['prefill'] / total:.0%}, "
            f"{table['steps']} tokens {decode / total:.0%}; {hope}: a token reads {size(table['read_a_token'])} of "
            f"weights, and the cache is {cached:.1%} of the bytes")


def _of_transformers(row, first):
    ratios = []
    for stage in ("encode", "prefill", "decode"):
        ratios.append(f"{stage} {first['median'][stage] / row['median'][stage]:.2f}")
    return f"ours takes of its time: {', '.join(ratios)}"


def _bytes_read(row, table):
    """Bytes that the first generated token reads: weights and cache."""
    return table["read_a_token"] + row["kv_bytes"]
