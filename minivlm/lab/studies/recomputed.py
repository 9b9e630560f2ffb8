"""Every figure of cost, and every average of accuracies, in three papers, recomputed and compared with what is printed.

A printed figure reproduces if rounding, or cutting off digits, gives it; the table says which. `fits` names the other
single cuts that print the same, so that one can see how little a figure says about its schedule.
"""

from dataclasses import dataclass, replace
from statistics import fmean

from minivlm.lab.cost.flops import Formula, agrees, asap_omega, average, fits, kv_bytes, one_cut
from minivlm.lab.studies import published, scores
from pruning.base import UserError

ASAP = Formula(ffn=3)                  # its Eq. 7
ATP = Formula(ffn=2)                   # its Eq. 15
PAPERS = ("asap", "atp", "adaptprune")


@dataclass(frozen=True)
class Entry:
    """One printed figure and what its formula gives."""

    table: str
    row: str
    unit: str                          # "T FLOPs", "% of the FLOPs", "tokens", "MiB", "% of the scores", "points", ..
    printed: str
    value: float                       # recomputed
    schedule: str                      # "" of what no schedule gives
    formula: str
    remark: str = ""
    others: tuple = ()                 # other schedules (layer, keep) that print the same

    @property
    def verdict(self):
        """"rounded" or "truncated" if the value prints like that, else ""."""
        return agrees(self.printed, self.value)


def entries(papers=(), **variant):
    """[Entry] of these papers (none: all), table by table.

    `variant` (ffn=2, text=40, cut="after") changes each one's formula. UserError for a paper not known.
    """
    unknown = [paper for paper in papers if paper not in PAPERS]
    if unknown:
        raise UserError(f"no paper {unknown[0]!r}: the papers are {', '.join(PAPERS)}")
    if variant.get("text", 0) < 0:
        raise UserError(f"--text {variant['text']}: a number of tokens is not negative")
    asap = replace(ASAP, **variant)
    atp = replace(ATP, **variant)
    recomputed = {
        "asap": [*_asap(asap), *_with_ceiling(), *_averages("ASAP"), *_storage(), *_asap_scores()],
        "atp": [*_averages("ATP"), *_atp(atp), *_atp_scores(), *_atp_differences()],
        "adaptprune": [*_adaptprune(variant), *_latency()],
    }
    chosen = []
    for paper in papers or PAPERS:
        chosen += sorted(recomputed[paper], key=lambda entry: entry.table)
    return chosen


def fewer_percent(part, whole):
    """fewer_percent(1, 4) -> 75.0"""
    return 100 - 100 * part / whole


def parse(schedule):
    """parse("2x576 30x167") -> [576, 576, 167, ..]"""
    entering = []
    for part in schedule.split():
        layers, tokens = part.split("x")
        entering += [int(tokens)] * int(layers)
    return entering


def _asap(formula):
    for table, row, shape, schedule, tera, ratio, remark in published.ASAP_FLOPS:
        def price(entering):
            return formula.flops(entering, shape.width, shape.intermediate)

        def tera_flops(entering):
            return price(entering) / 1e12

        place = ("ASAP " + table, row)
        source = (schedule, str(formula), remark)
        entering = parse(schedule)
        if tera:
            is_pruned = schedule != f"{shape.layers}x{shape.tokens}"
            others = fits(tera, shape.tokens, shape.layers, tera_flops) if is_pruned else ()
            others = _but(others, entering)
            yield Entry(*place, "T FLOPs", tera, tera_flops(entering), *source, others)
        if ratio:
            whole = price([shape.tokens] * shape.layers)
            percent = 100 * price(entering) / whole
            yield Entry(*place, "% of the FLOPs", ratio, percent, *source)


def _but(cuts, entering):
    """The single cuts (layer, keep) that give another schedule, and cut something."""
    n = entering[0]
    layers = len(entering)
    others = []
    for layer, keep in cuts:
        is_cut = layer > 0 or keep != n
        if is_cut and one_cut(n, layers, layer, keep) != entering:
            others.append((layer, keep))
    return tuple(others)


def _averages(paper):
    formula = "tokens entering a layer, averaged"
    for table, row, schedule, printed, remark in published.AVERAGES:
        if table.startswith(paper):
            yield Entry(table, row, "tokens", printed, average(parse(schedule)), schedule, formula, remark)


def _storage():
    text = published.ASAP_TEXT
    formula = f"float16 keys and values, {text} text tokens"
    for row, schedule, printed, remark in published.ASAP_STORAGE:
        entering = [n + text for n in parse(schedule)]
        held = kv_bytes(entering, 32, 128) / 2 ** 20
        yield Entry("ASAP Table 4", row, "MiB", printed, held, schedule, formula, remark)


def _atp(formula):
    seven = published.SEVEN
    table = "ATP Table 6"
    unpruned = [seven.tokens] * seven.layers
    whole = formula.flops(unpruned, seven.width, seven.intermediate)
    for row, schedule, tera, fewer, stored, less, remark in published.ATP_TABLE_6:
        flops = formula.flops(parse(schedule), seven.width, seven.intermediate)
        source = (schedule, str(formula), remark)
        yield Entry(table, row, "T FLOPs", tera, flops / 1e12, *source)
        tokens = seven.tokens
        if fewer:
            tokens = int(row.split()[-1])                  # the average, by which a row is named
            of_printed = fewer_percent(float(tera), 9.6)
            yield Entry(table, row, "% fewer FLOPs", fewer, fewer_percent(flops, whole), *source)
            yield Entry(table, row, "% fewer FLOPs", fewer, of_printed, "", "from the two printed T FLOPs")
        every_layer = f"32x{tokens}"
        formula_of_storage = "0.525 MB a token (it is 0.524288), image tokens alone"
        yield Entry(table, row, "MB", stored, tokens * .525, every_layer, formula_of_storage)
        if less:
            value = fewer_percent(tokens, seven.tokens)
            yield Entry(table, row, "% fewer MB", less, value, every_layer, "image tokens alone")


def _adaptprune(variant):
    for shape, printed, table in published.ADAPTPRUNE:
        n = shape.tokens
        kept = n // 10
        row = f"{shape.name}, {n}"
        for layer, text, remark in published.READINGS:
            formula = replace(Formula(text=text), **variant)
            unpruned = [n] * shape.layers
            whole = formula.flops(unpruned, shape.width, shape.intermediate)
            entering = one_cut(n, shape.layers, layer, kept)
            pruned = formula.flops(entering, shape.width, shape.intermediate)
            schedule = f"{layer}x{n} {shape.layers - layer}x{kept}"
            fewer = fewer_percent(pruned, whole)
            yield Entry("AdaptPrune " + table, row, "% fewer FLOPs", printed, fewer, schedule, str(formula), remark)


def _with_ceiling():
    """FastV's figures of ASAP's Table 1 by Eq. 7 as it is printed."""
    seven = published.SEVEN
    for row, kept, tera, remark in published.WITH_CEILING:
        omega = asap_omega([(2, 1), (30, kept)], seven.tokens, seven.width, seven.intermediate)
        formula = f"Eq. 7, v_n = ceil({kept} x 576) in 30 layers"
        yield Entry("ASAP Table 1", row, "T FLOPs", tera, omega / 1e12, "", formula, remark)


def _asap_scores():
    for table, (unpruned, rows) in scores.ASAP_SCORES.items():
        whole = numbers(unpruned)
        formula = f"mean of score / unpruned score, {len(whole)} benchmarks"
        for row, printed, mean in rows:
            percents = [100 * score / full for score, full in zip(numbers(printed), whole)]
            yield Entry(table, row, "% of the scores", mean, fmean(percents), "", formula)


def _atp_scores():
    """Each percentage of Table 1, and the average of each row."""
    for row, row_scores, percents, mean in scores.ATP_SCORES:
        columns = (scores.ATP_BENCHMARKS, row_scores, scores.ATP_UNPRUNED, percents)
        cells = [cell for cell in zip(*map(str.split, columns)) if "-" not in cell]
        recomputed = []
        for benchmark, score, full, percent in cells:
            recomputed.append(100 * float(score) / float(full))
            place = ("ATP Table 1", f"{row}, {benchmark}")
            yield Entry(*place, "% of the score", percent, recomputed[-1], "", f"{score} of {full}")
        of_scores = fmean(recomputed)
        of_percents = fmean(float(percent) for *_, percent in cells)
        remark = "" if agrees(mean, of_scores) else f"the mean of the percentages by the scores is {of_scores:.2f}"
        formula = "mean of the printed percentages"
        yield Entry("ATP Table 1", row, "% of the scores", mean, of_percents, "", formula, remark)


def _atp_differences():
    for table, row, points, first, second, remark in scores.ATP_DIFFERENCES:
        difference = fmean(numbers(first)) - fmean(numbers(second))
        formula = f"mean of {first}, less mean of {second}" if " " in first else f"{first} - {second}"
        yield Entry("ATP " + table, row, "points", points, difference, "", formula, remark)


def _latency():
    for row, time, seconds in scores.ADAPTPRUNE_LATENCY:
        minutes, rest = time.split(":")
        value = (60 * int(minutes) + int(rest)) / scores.POPE
        formula = f"{time} for POPE's {scores.POPE} questions"
        yield Entry("AdaptPrune Table 3", row, "s a question", seconds, value, "", formula)


def numbers(text):
    """numbers("80.0 63.25") -> [80.0, 63.25]"""
    return [float(word) for word in text.split()]


def lines(entries):
    """The entries as text, those of a table under its name, remarks below their entry."""
    table = None
    remark = None
    for e in entries:
        if e.table != table:
            table = e.table
            yield f"\n{table}"
        verdict = f"reproduces ({e.verdict})" if e.verdict else "does not reproduce"
        printed = f"{e.row:34.34} {e.printed:>7} {e.unit:15}"
        source = f"{e.schedule:27} {e.formula}"
        yield f"  {printed} {e.value:9.4f}  {verdict:23} {source}"
        remarks = _others(e)
        if e.remark and e.remark != remark:                # the same one is not repeated
            remarks = [e.remark, *remarks]
        remark = e.remark
        if remarks:
            yield f"{'':37}{'; '.join(remarks)}"
    reproduced = [e for e in entries if e.verdict]
    yield f"\n{len(reproduced)} of {len(entries)} figures reproduce."


def _others(e):
    """What there is to say of other schedules, in a list."""
    also = ", ".join(f"{keep} tokens from layer {layer} on" for layer, keep in e.others)
    if also:
        return [("so do " if e.verdict else "these do: ") + also]
    is_searched = e.unit == "T FLOPs" and e.table.startswith("ASAP")
    is_pruned = len(e.schedule.split()) > 1
    if is_searched and is_pruned and not e.verdict:
        return ["no whole number of tokens after one cut does, wherever it is"]
    return []


def facts(entries):
    """The same as plain data."""
    return [dict(vars(e), verdict=e.verdict or "does not reproduce") for e in entries]
