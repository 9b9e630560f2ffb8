"""The READMEs tell the truth: the front page is short, tables are the registry's and the recorded results, links lead
somewhere, and Python prints what is written next to it.
"""

import json
import re
import subprocess
from pathlib import Path
from statistics import fmean

import pytest

from minivlm.lab.check.hf import TESTED
from minivlm.lab.claims import claims
from minivlm.lab.studies.ablation.rows import COMPARISONS, ROWS as STUDIED
from minivlm.lab.studies.ablation.verdicts import claim_sentence, conclusion
from minivlm.lab.tasks.tasks import TASKS
from pages import FRONT, PAGES, ROOT, TOY, blocks_of, check_block, table
from pruning import METHODS, READINGS


def test_front_page_is_short():
    """It fits on a few screens."""
    assert FRONT.count("\n") <= 160
    assert len(FRONT.split()) <= 1600
    assert FRONT.count("![") == 1
    assert len(blocks_of(FRONT)) == 2


def test_top_level_is_fixed():
    """Whoever opens the repository sees these, and nothing else."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git repository, so nothing says which files belong to it")
    names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    shown = {name for name in names if not name.startswith(".")}
    assert shown == {"README.md", "LICENSE", "requirements.txt", "minivlm", "pruning", "weights.py", "run.py", "tests"}


ROWS = re.findall(r"^\| `([^`]+)` \| \[([^\]]+)\]\(([^)]+)\) \| (\w+) \|", FRONT, re.M)
CONTROLS = [name for name, method in METHODS.items() if method.__module__ == "pruning.controls"]


def test_table_is_the_registry():
    """Every method of a paper has a row; the controls have one sentence, which counts them."""
    assert sorted([name for name, *_ in ROWS] + CONTROLS) == sorted(METHODS)
    assert len(CONTROLS) == 12 and "Twelve controls" in FRONT


@pytest.mark.parametrize("name, file, link, site", ROWS)
def test_row_names_the_file_and_the_site(name, file, link, site):
    assert file == link == METHODS[name].__module__.replace(".", "/") + ".py"
    assert site == METHODS[name].site


def test_range_of_transformers_is_the_one_tested():
    lowest, highest = (version.rpartition(".")[0] for version in TESTED)
    assert f"transformers ({lowest} to {highest};" in FRONT


def layout():
    """The files and folders that the layout names. A line begins with a folder, and continues with what is in it."""
    block = FRONT.partition("\n## Layout\n\n")[2].partition("\n\n")[0]
    places = []
    home = Path()
    for line in block.splitlines():
        named = [Path(name) for name in re.findall(r"[\w/]+\.py|\w+/", line)]
        if re.match(r" {4}\w+/", line):
            home = named.pop(0)
        elif re.match(r" {6}\w+/", line):
            home = Path("minivlm") / named.pop(0)
        places += [home, *(home / name for name in named)]
    return places


def test_layout_names_what_exists():
    places = layout()
    assert len(places) > 50
    for place in places:
        assert (ROOT / place).exists(), place


@pytest.mark.parametrize("topic, file", [
    ("rotary", "minivlm/attention.py"),
    ("causal mask", "minivlm/attention.py"),
    ("drops", "pruning/apply.py"),
    ("order of tiles", "pruning/tile_grid.py"),
    ("newlines", "minivlm/families/llava_next.py"),
    ("FLOPs", "minivlm/lab/cost/flops.py"),
    ("prompts", "minivlm/io/text/formats.py"),
    ("safetensors", "minivlm/io/tensors.py"),
    ("questions", "minivlm/toy/questions.py"),
    ("resum", "minivlm/io/resume.py"),
])
def test_where_is_it(topic, file):
    """A fresh reader who looks for it finds topic and file on one line of the front page."""
    name = Path(file).stem
    assert (ROOT / file).exists()
    assert any(topic in line and re.search(rf"\b{name}\b", line) for line in FRONT.splitlines())



# --- every page ------------------------------------------------------------------------------------------------------


def anchors(text):
    """The headings of a page as GitHub names them: "Write your own" is #write-your-own."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """To a file, or to a heading of a page."""
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page])
    assert len(links) > 5
    for link in links:
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES)
def test_files_in_code_type_exist(page):
    """From the page's folder or from the root; some are the reader's own, or those of benchmarks."""
    for name in re.findall(r"`([\w/]+\.(?:py|json|safetensors))`", PAGES[page]):
        places = [(ROOT / page).parent / name, ROOT / name]
        is_own = name in ("pruning/unusual.py", "mine.py", "hw/fastv.py")
        is_result = is_own or name in ("atp.safetensors", "expected.json", "scores.json")
        is_official = any(name in task.file for task in TASKS.values())
        assert is_result or is_official or any(place.exists() for place in places), name


FRONT_BLOCKS = blocks_of(FRONT)


@pytest.mark.parametrize("block", FRONT_BLOCKS, ids=range(len(FRONT_BLOCKS)))
def test_front_block_prints_what_it_says(block, capsys, tmp_path):
    check_block(block, capsys, tmp_path)


# --- the shipped model's tables --------------------------------------------------------------------------------------

RESULTS = json.loads((ROOT / "minivlm" / "toy" / "model" / "results.json").read_text())
FAMILIES = ("exist", "color", "shape", "count", "relpos", "read", "scene", "abspos")


def average(by_family):
    """Mean of the eight families, one decimal."""
    return f"{fmean(by_family[family] for family in FAMILIES):.1f}"


def test_seeds():
    rows = table(TOY, "| seed |")
    assert [seed for seed, *_ in rows] == list(RESULTS["seeds"])
    for seed, *cells in rows:
        result = RESULTS["seeds"][seed]
        validation, heldout, worst, pairs, *pruned, loss = cells
        assert validation == f"{result['validation']['mean']:.1f}"
        assert heldout == average(result["heldout"])
        assert worst == f"{min(result['heldout'].values())}"
        assert pairs == average(result["pairs"])
        contestants = ("fastv before layer 2", "random before layer 2", "fastv before layer 3", "random before layer 3")
        assert pruned == [f"{result['validation_pruned'][name]}" for name in contestants]
        counting = result["validation_counting"]
        assert loss == f"{counting['all'] - counting['things first']:.1f}"


def test_accuracy():
    """Of the shipped seed; 100.0 is written 100."""
    shipped = RESULTS["seeds"][RESULTS["shipped"]]
    rows = table(TOY, "| | exist |")
    assert [name for name, *_ in rows] == ["held out", "unseen pairs"]
    for (_, *cells), name in zip(rows, ("heldout", "pairs")):
        numbers = [f"{shipped[name][family]:.1f}".replace("100.0", "100") for family in FAMILIES]
        assert cells == [*numbers, average(shipped[name])]


def test_fewer_tokens():
    """The controls at the place and share of each row, and the method that acts there."""
    results = RESULTS["hiding"]["blocks"]
    rows = table(TOY, "| dropped before |")
    assert len(rows) == 4
    for place, share, *cells, method in rows:
        keep = int(share.split()[0]) / 100
        at = " embed" if place == "layer 0" else ""
        controls = [f"{name}{at} {keep}" for name in ("random", "uniform", "things", "background")]
        assert cells == [average(results[control]) for control in controls]
        name, number = method.split()
        assert number == average(results[f"{name.lower()} {keep}"])


def test_hiding():
    rows = table(TOY, "| hidden in training |")
    assert [name for name, *_ in rows] == ["nothing yet", "single patches", "blocks"]
    for (_, *cells), name in zip(rows, ("before", "patches", "blocks")):
        whole = RESULTS["hiding"][name]["none"]
        things = RESULTS["hiding"][name]["things embed 0.5"]
        assert cells == [f"{whole['count']:.0f}", f"{things['count']}", average(whole), average(things)]


# --- ATP's study ------------------------------------------------------------------------------------------------------

ATP = RESULTS["atp"]
ROW_OF = {row.name: row for row in STUDIED}


def between(interval):
    """(-1.3, 1.9) -> "-1.3 to +1.9" """
    low, high = interval
    return f"{low:+.1f} to {high:+.1f}"


def printed(row):
    """The paper's figure of a row: the mean of four benchmarks, or Table 1's percentage."""
    if row.paper:
        return f"{row.mean + 1e-9:.2f}"
    return f"{row.percent} %" if row.percent else ""


def test_rows_of_the_study():
    """Names, words, tables and the paper's figures are the code's; the measured ones those of results.json."""
    rows = table(TOY, "| row |")
    assert [name for name, *_ in rows] == [name for name in ROW_OF if name in ATP["rows"]] == list(ATP["rows"])
    for name, tables, what, tokens, entering, right, interval, paper in rows:
        row = ROW_OF[name]
        measured = ATP["rows"][name]
        assert (tables, what, paper) == (row.tables, row.what, printed(row))
        low, high = measured["interval"]
        assert (tokens, right, interval) == (f"{measured['tokens']}", f"{measured['right']}", f"{low}-{high}")
        assert entering == " ".join(f"{n:.0f}" for n in measured["entering"])


def test_comparisons_of_the_study():
    """Each comparison of two rows that were run, what it changes, and the verdict that follows from its interval."""
    rows = table(TOY, "| compared |")
    ran = [c for c in COMPARISONS if c.row in ATP["rows"] and c.control in ATP["rows"]]
    assert len(rows) == len(ran) == len(ATP["comparisons"])
    for cells, comparison, measured in zip(rows, ran, ATP["comparisons"]):
        compared, changes, where, tokens, difference, interval, others, paper, said = cells
        assert (measured["row"], measured["control"]) == (comparison.row, comparison.control)
        assert compared == f"{comparison.row} against {comparison.control}"
        assert (changes, where) == (comparison.changes, comparison.table)
        assert (difference, interval) == (f"{measured['difference']:+.1f}", between(measured["interval"]))
        assert tokens == f"{measured['share']:.0%}"
        assert others == "; ".join(between(other) for other in measured["others"])
        row = ROW_OF[comparison.row]
        control = ROW_OF[comparison.control]
        expected = None
        unit = ""
        if comparison.table and row.paper and control.paper:
            expected = row.mean - control.mean
        elif comparison.table:
            expected = row.percent - control.percent
            unit = " %"
        assert paper == ("" if expected is None else f"{expected + 1e-9:+.2f}{unit}")
        share = measured["share"] if comparison.same_tokens else 1
        assert said == conclusion([measured["interval"], *measured["others"]], expected, share)


def test_adaptivity_of_the_study():
    """The rows of the table, and what their intervals say."""
    rows = table(TOY, "| adaptivity |")
    assert len(rows) > 3
    for name, *cells in rows:
        spread = ATP["rows"][name]["spread"]
        assert cells == [f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in spread.values()]


def test_claims_of_the_study():
    """What the trainings say of the figures, in the sentences of the command, with the verdict that follows."""
    assert len(ATP["claims"]) == 2
    for measured in ATP["claims"]:
        intervals = [training["interval"] for training in measured["trainings"]]
        assert measured["verdict"] == conclusion(intervals, 1, 1)
        assert f"\n- {claim_sentence(measured)}.\n" in TOY


def test_candidates_for_the_shipped_module():
    """The shipped one has the most right answers, and each has about the same number of tokens."""
    rows = table(TOY, "| candidate |")
    candidates = RESULTS["atp_candidates"]["rows"]
    assert [name for name, *_ in rows] == list(candidates)
    for name, tokens, right, interval, *spreads in rows:
        measured = candidates[name]
        low, high = measured["interval"]
        assert (tokens, right, interval) == (f"{measured['tokens']}", f"{measured['right']}", f"{low}-{high}")
        assert spreads == ["{:.2f} ({:.2f} to {:.2f})".format(*measured[spread]) for spread in ("deviation", "crowded")]
        assert measured["right"] <= candidates["shipped"]["right"]
        assert measured["tokens"] == pytest.approx(candidates["shipped"]["tokens"], abs=.6)


def points(numbers):
    """[14.4, 9.2, 19.2] -> "+14.4 (+9.2 to +19.2)\""""
    value, low, high = numbers
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def test_all_methods_are_those_of_the_results():
    """Each row of the page's table at a quarter and a tenth, and each method of the registry that has a row."""
    rows = RESULTS["methods"]["rows"]
    names = dict.fromkeys(re.sub(r" 0\.(25|1)$", "", label) for label in rows)
    for name in names:
        cells = []
        for label in (f"{name} 0.25", f"{name} 0.1", name):
            if label in rows:
                row = rows[label]
                random = points(row["random"]) if "random" in row else ""
                cells += [f"{row['tokens']:.1f}", f"{row['right']:.1f}", random]
        cells += [""] * (6 - len(cells))
        assert f"| {name} | {' | '.join(cells)} |" in TOY
    papers = {name for name, method in METHODS.items() if method.__module__ != "pruning.controls"}
    assert papers <= set(names)


def test_readings_that_differ_are_those_of_the_results():
    rows = RESULTS["readings"]["rows"]
    for name, row in rows.items():
        low, high = row["interval"]
        difference = points([row["difference"], low, high])
        line = f"| {name} | {row['method']} | {row['changed']} % | {row['right']:.1f} | {difference} |"
        assert (line in TOY) == (not low <= 0 <= high), name
    of_32_layers = {name for name in READINGS if name.startswith("atp_fixed_ratio")}
    assert {name.removesuffix(" 0.1") for name in rows} == set(READINGS) - of_32_layers


def test_claims_are_those_of_the_results():
    """The counts of verdicts, and the sentences of six papers with their differences."""
    papers = RESULTS["claims"]["papers"]
    kinds = ("holds", "does not hold", "cannot be told", "differs", "cannot be tested here")
    for paper, title in zip(papers, ("ASAP", "AdaptPrune", "ATP-LLaVA", "six others")):
        verdicts = [claim["verdict"] for claim in papers[paper]]
        counts = [str(verdicts.count(kind)) for kind in kinds]
        assert f"| {title} | {' | '.join(counts)} |" in TOY
        assert [claim["says"] for claim in papers[paper]] == [claim.says for claim in claims.PAPERS[paper]]
    for claim in papers["others"]:
        cells = [points([value, *interval]) for _, value, interval in claim["measured"]]
        name, _, _ = claim["where"].partition(" (")
        assert f"| {name} | {claim['says']} | {' | '.join(cells)} | {claim['verdict']} |" in TOY
