"""Every figure of cost in three papers' tables, recomputed from its own formula and set beside what is printed.

A printed figure reproduces where rounding, or cutting off digits, gives it; the table says which. `fits` names the other
single cuts that print the same, so that one can see how little a figure says about its schedule.
"""

from dataclasses import dataclass, replace

from minivlm.lab import published
from minivlm.lab.flops import Formula, agrees, average, fits, kv_bytes, one_cut
from pruning.base import UserError

ASAP, ATP = Formula(ffn=3), Formula(ffn=2)         # Eq. 7 of ASAP; Eq. 15 of ATP-LLaVA
PAPERS = ("asap", "atp", "adaptprune")


@dataclass(frozen=True)
class Entry:
    """One printed figure and what its formula gives."""

    table: str
    row: str
    unit: str                          # "T FLOPs", "% of the FLOPs", "% fewer FLOPs", "tokens", "MiB", "MB", "% fewer MB"
    printed: str
    value: float                       # recomputed
    schedule: str
    formula: str
    remark: str = ""
    others: tuple = ()                 # other schedules (layer, keep) that print the same

    @property
    def verdict(self):
        """"rounded" or "truncated" where the value prints like that, else ""."""
        return agrees(self.printed, self.value)


def entries(papers=(), **variant):
    """[Entry] of these papers (none: all), table by table; `variant` (ffn=2, text=40, cut="after") changes each one's formula.

    UserError for a paper not known.
    """
    unknown = [paper for paper in papers if paper not in PAPERS]
    if unknown:
        raise UserError(f"no paper {unknown[0]!r}: the papers are {', '.join(PAPERS)}")
    if variant.get("text", 0) < 0:
        raise UserError(f"--text {variant['text']}: a number of tokens is not negative")
    made = {"asap": [*_asap(replace(ASAP, **variant)), *_averages("ASAP"), *_storage()],
            "atp": [*_averages("ATP"), *_atp(replace(ATP, **variant))], "adaptprune": _adaptprune(variant)}
    return [entry for paper in papers or PAPERS for entry in sorted(made[paper], key=lambda e: e.table)]


def parse(schedule):
    """parse("2x576 30x167") -> [576, 576, 167, ..]"""
    return [int(n) for part in schedule.split() for n in [part.split("x")[1]] * int(part.split("x")[0])]


def _asap(formula):
    for table, row, shape, schedule, tera, ratio, remark in published.ASAP_FLOPS:
        value = lambda entering: formula.flops(entering, shape.width, shape.intermediate)
        whole, place, told = value([shape.tokens] * shape.layers), ("ASAP " + table, row), (schedule, str(formula), remark)
        if tera:
            pruned = schedule != f"{shape.layers}x{shape.tokens}"
            others = fits(tera, shape.tokens, shape.layers, lambda e: value(e) / 1e12) if pruned else ()
            yield Entry(*place, "T FLOPs", tera, value(parse(schedule)) / 1e12, *told, _but(others, schedule))
        if ratio:
            yield Entry(*place, "% of the FLOPs", ratio, 100 * value(parse(schedule)) / whole, *told)


def _but(found, schedule):
    """The single cuts found, without the one that `schedule` is."""
    entering = parse(schedule)
    return tuple((l, k) for l, k in found if one_cut(entering[0], len(entering), l, k) != entering and (l or k != entering[0]))


def _averages(paper):
    for table, row, schedule, printed, remark in published.AVERAGES:
        if table.startswith(paper):
            yield Entry(table, row, "tokens", printed, average(parse(schedule)), schedule, "tokens entering a layer, averaged", remark)


def _storage():
    for row, schedule, printed, remark in published.ASAP_STORAGE:
        held = kv_bytes([n + published.ASAP_TEXT for n in parse(schedule)], 32, 128) / 2 ** 20
        yield Entry("ASAP Table 4", row, "MiB", printed, held, schedule, f"float16 keys and values, {published.ASAP_TEXT} text tokens", remark)


def _atp(formula):
    seven, table = published.SEVEN, "ATP Table 6"
    whole = formula.flops([seven.tokens] * seven.layers, seven.width, seven.intermediate)
    for row, schedule, tera, fewer, stored, less, remark in published.ATP_TABLE_6:
        flops, tokens = formula.flops(parse(schedule), seven.width, seven.intermediate), int(row.split()[-1]) if fewer else 576
        told = (schedule, str(formula), remark)
        yield Entry(table, row, "T FLOPs", tera, flops / 1e12, *told)
        if fewer:
            yield Entry(table, row, "% fewer FLOPs", fewer, 100 - 100 * flops / whole, *told)
            yield Entry(table, row, "% fewer FLOPs", fewer, 100 - 100 * float(tera) / 9.6, "", "from the two printed T FLOPs")
        yield Entry(table, row, "MB", stored, tokens * .525, f"32x{tokens}", "0.525 MB a token (it is 0.524288), image tokens alone")
        if less:
            yield Entry(table, row, "% fewer MB", less, 100 - 100 * tokens / 576, f"32x{tokens}", "image tokens alone")


def _adaptprune(variant):
    for shape, printed, table in published.ADAPTPRUNE:
        for layer, text, remark in published.READINGS:
            reading = replace(Formula(text=text), **variant)
            value = lambda entering: reading.flops(entering, shape.width, shape.intermediate)
            entering = one_cut(shape.tokens, shape.layers, layer, shape.tokens // 10)
            schedule = f"{layer}x{shape.tokens} {shape.layers - layer}x{shape.tokens // 10}"
            fewer = 100 - 100 * value(entering) / value([shape.tokens] * shape.layers)
            yield Entry("AdaptPrune " + table, f"{shape.name}, {shape.tokens}", "% fewer FLOPs", printed, fewer, schedule, str(reading), remark)


def lines(told):
    """The entries as text, a table's under its name, what is to be said about one below it."""
    table, said = None, None
    for e in told:
        if e.table != table:
            table = e.table
            yield f"\n{table}"
        verdict = f"reproduces ({e.verdict})" if e.verdict else "does not reproduce"
        yield f"  {e.row:34.34} {e.printed:>7} {e.unit:15} {e.value:9.4f}  {verdict:23} {e.schedule:27} {e.formula}"
        remarks = [*([e.remark] if e.remark and e.remark != said else []), *_others(e)]
        said = e.remark
        if remarks:
            yield f"{'':37}{'; '.join(remarks)}"
    yield f"\n{sum(bool(e.verdict) for e in told)} of {len(told)} figures reproduce."


def _others(e):
    """What there is to say of other schedules, in a list."""
    also = ", ".join(f"{keep} tokens from layer {layer} on" for layer, keep in e.others)
    if also:
        return [("so do " if e.verdict else "these do: ") + also]
    sought = e.unit == "T FLOPs" and e.table.startswith("ASAP") and len(e.schedule.split()) > 1
    return ["no whole number of tokens after one cut does, wherever it is"] if sought and not e.verdict else []


def facts(told):
    """The same as plain data."""
    return [dict(vars(e), verdict=e.verdict or "does not reproduce") for e in told]
