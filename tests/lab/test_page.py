"""The page of `compare --html`: it loads nothing, escapes what the user wrote, and says what the trace says.

The last tests press keys in a headless Chromium; without one they are skipped.
"""

import base64
import contextlib
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

import run
from browser import Browser
from command import done
from minivlm import prune, shipped
from minivlm.lab.compare import compare, side_by_side
from minivlm.lab.page.cards import card_html, cards_of
from minivlm.lab.page.data import merged, ranks
from minivlm.lab.page.equations import html_of
from minivlm.lab.page.page import HERE
from minivlm.trace import Trace
from paths import MODEL, PARITY, PICTURE, ROOT
from pruning import METHODS, FastV
from pruning.base import Reduction

SAMPLE = ROOT / "minivlm" / "toy" / "samples" / "00003.png"
QUESTION = "what shape is the red object ?"
BUDGETS = "0.5,0.25,0.1,0.05,0.02"
HOSTILE = '</script><script>document.title = "bad"</script><img src=x onerror="document.title = 1"> & <b>?'


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text inside each script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.inside = []
        self.is_inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.is_inside = tag in ("script", "style")
        if self.is_inside:
            self.inside.append("")

    def handle_endtag(self, tag):
        self.is_inside = False

    def handle_data(self, data):
        if self.is_inside:
            self.inside[-1] += data

    def of(self, tag):
        """The attributes of each tag of that kind."""
        return [attributes for kind, attributes in self.tags if kind == tag]


def written(capsys, path, *words):
    """The page that `compare` writes, as text."""
    status, out, err = done(capsys, "compare", *words, "--html", path)
    assert status == 0 and f"wrote {path}" in out, err
    return path.read_text()


def data_of(text):
    """What is in the page's block of JSON."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text)[1])


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A page of four methods at two budgets: a merging one, one with a class token, one without scores."""
    folder = tmp_path_factory.mktemp("page")
    words = ["compare", SAMPLE, QUESTION, "--method", "none,fastv,asap,visionzip,divprune", "--keep", "0.25,0.1"]
    with contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        assert run.main([*map(str, words), "--html", str(folder / "a.html")]) == 0
    return folder / "a.html"


# --- the file --------------------------------------------------------------------------------------------------------

def test_page_loads_nothing(several):
    """No address but data: and, in a link to follow, https. The policy says the same to the browser, and allows only
    the script and the style that are there."""
    text = several.read_text()
    page = Tags(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object", "embed", "base", "form", "img"})
    assert not [1 for _, attributes in page.tags if "src" in attributes or "style" in attributes]
    assert all(re.match("#|https://arxiv.org/abs/", link["href"]) for link in page.of("a"))
    assert all(uri.startswith("data:image/png;base64,") for uri in data_of(text)["photos"])
    style, _, script = page.inside
    assert not re.search(r"url\(|@import", style) and not re.search(r"fetch|XMLHttp|import\(|innerHTML|eval", script)
    policy = page.of("meta")[1]["content"]
    for kind, block in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy


@pytest.fixture
def hostile(capsys, monkeypatch, tmp_path):
    """A page of a question, and of answers, that would end the script and begin one of their own."""
    def answered_so(*args):
        return [replace(answered, answer=HOSTILE) for answered in compare.compare(*args)]

    monkeypatch.setattr(side_by_side, "compare", answered_so)
    words = [PICTURE, HOSTILE, "--model", MODEL, "--max-new-tokens", "2", "--method", "last", "--keep", "4"]
    written(capsys, tmp_path / "a.html", *words)
    return tmp_path / "a.html"


def test_words_of_the_user_are_only_words(hostile):
    """They are text, in the heading, the table and the data."""
    text = hostile.read_text()
    page = Tags(text)
    assert len(page.of("script")) == 2 and not page.of("img") and not page.of("b")
    assert HOSTILE not in text and "&lt;/script&gt;" in text
    assert [run["answer"] for run in data_of(text)["runs"]] == [HOSTILE] * 2


def test_all_methods_at_five_budgets_are_small(capsys, tmp_path):
    """With a row for each run and a card for each method. Four times as many tokens need below 1.5 MB, then."""
    words = [SAMPLE, QUESTION, "--method", "all", "--keep", BUDGETS, "--max-new-tokens", "1"]
    text = written(capsys, tmp_path / "a.html", *words)
    assert len(text.encode()) < 500_000
    data = data_of(text)
    assert data["budgets"] == BUDGETS.split(",") and {run["method"] for run in data["runs"]} == set(METHODS)
    assert all(data["cards"].values())
    labels = [row["data-run"] for row in Tags(text).of("tr") if "data-run" in row]
    assert labels == [run["label"] for run in data["runs"]]


def test_page_with_sheet_and_table(capsys, tmp_path):
    """All three are written, of a picture in tiles too: its photograph twice, and line breaks on no patch."""
    words = [PICTURE, "What?", "--model", PARITY / "next_vicuna", "--max-new-tokens", "1", "--method", "last,vispruner"]
    text = written(capsys, tmp_path / "a.html", *words, "--keep", "20", "--out", tmp_path / "a.png",
                   "--json", tmp_path / "a.json")
    assert (tmp_path / "a.png").exists() and (tmp_path / "a.json").exists()
    layouts = data_of(text)["layouts"]
    assert [[grid["name"] for grid in layout["grids"]] for layout in layouts] == [["base tile", "map"]] * 2
    assert len(data_of(text)["lists"][layouts[0]["cells"]]) == 3 * 70
    # a method of the tower has the row of padding above the map, too
    assert [layout["grids"][1]["offset"] for layout in layouts] == [[1, 0], [0, 0]]


@pytest.mark.parametrize("name, message", [
    ("a.png", "name it *.html"),
    ("no/a.html", "cannot be written"),
    ("", "empty"),
])
def test_bad_names(capsys, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = done(capsys, "compare", SAMPLE, QUESTION, "--html", name)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out
    assert not list(tmp_path.iterdir())


# --- what it says ----------------------------------------------------------------------------------------------------

def test_data_is_the_trace(several):
    """FastV's 14 best of 144: kept, scored and ranked as in the trace; the evidence is questions.jsonl's."""
    data = data_of(several.read_text())
    run = next(run for run in data["runs"] if run["label"] == "fastv 0.1")
    step, = run["steps"]
    trace = prune(shipped(), str(SAMPLE), QUESTION, FastV(keep=0.1)).trace
    kept = trace.kept.tolist()
    assert data["lists"][step["kept"]] == kept and step["layer"] == 2 and step["where"] == "before layer 2"
    score = trace.steps[0].reduction.score
    assert data["lists"][step["score"]] == pytest.approx(score.tolist(), rel=6e-3)
    assert all(float(f"{value:.3g}") == value for value in data["lists"][step["score"]])
    rank = data["lists"][step["rank"]]
    assert sorted(rank[token] for token in kept) == list(range(1, 15))
    assert data["layouts"][run["layout"]]["evidence"] == [57, 69, 70, 80, 81, 82]


def test_equal_scores_have_equal_ranks():
    assert ranks(torch.tensor([.1, .3, .3, -.5])).tolist() == [3, 1, 1, 4]


def test_merges_add_up():
    """Four tokens: 1 joins 0 with half the weight; then 3 joins 0 with a quarter: 0 is .375 .375 . .25, 2 itself."""
    trace = Trace(torch.tensor([[0, 0, i] for i in range(4)]), [range(4)])
    first = Reduction(torch.tensor([0, 2, 3]), torch.tensor([[.5, .5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    second = Reduction(torch.tensor([0, 1]), torch.tensor([[.75, 0, .25], [0, 1, 0]]))
    trace.reduce("embed", 0, SimpleNamespace(source=torch.arange(4)), first)
    trace.reduce("decoder", 2, SimpleNamespace(source=torch.tensor([0, 2, 3])), second)
    assert merged(trace, trace.steps[0]) == [[0, [0, 1], .5]]
    assert merged(trace, trace.steps[1]) == [[0, [0, 1, 3], [.38, .38, .25]]]


def test_equations():
    """An index is lowered; the equals sign keeps its column; what follows a wide gap is a note."""
    lines = html_of("s_hat_j  = x^2 * eps    Eq. 2\nM        = a <= b").splitlines()
    assert lines[0] == ('<span class="line"><span>s\u0302<sub>j</sub>       = x<sup>2</sup> · ε</span>'
                        '<span class="note">Eq. 2</span></span>')
    assert lines[1] == '<span class="line"><span>M        = a ≤ b</span></span>'
    plain = re.sub("<.+?>|\u0302", "", lines[0])
    assert plain.index("=") == re.sub("<.+?>", "", lines[1]).index("=")


def test_card():
    """Headings, tables, blocks and links; a link into the repository is only its text, and nothing else is HTML."""
    text = ("### A: `a`\n\n[a.py](a.py), [1234.5](https://arxiv.org/abs/1234.5) <b> **R** *s*\n\n"
            "```text\nx_j = y\n```\n\n| o | m |\n|---|---|\n| `k` | 1 < 2 |\n\n    python run.py\n")
    assert card_html(text).splitlines() == [
        "<h3>A: <code>a</code></h3>",
        '<p>a.py, <a href="https://arxiv.org/abs/1234.5" rel="noreferrer">1234.5</a> &lt;b&gt; <strong>R</strong> '
        "<em>s</em></p>",
        '<div class="equations"><span class="line"><span>x<sub>j</sub>  = y</span></span></div>',
        '<div class="wide" tabindex="0"><table><thead><tr><th scope="col">o</th><th scope="col">m</th></tr></thead>'
        "<tbody>"
        '<tr><th scope="row"><code>k</code></th><td>1 &lt; 2</td></tr></tbody></table></div>',
        '<pre tabindex="0">python run.py</pre>',
    ]


def test_every_method_has_its_card(tmp_path):
    """A reading has that of its method, A+B has both, a method of one's own its docstring, what `fit` wrote none; no
    Markdown is left over."""
    own = f"{tmp_path / 'mine.py'}:score"
    (tmp_path / "mine.py").write_text('def score(tokens):\n    """Twice x_j < 3."""\n')
    chosen, cards = cards_of([*METHODS, "asap_dedup", "vispruner+fastv@layer=3", own, "fitted.json"])
    assert all(chosen[method] for method in METHODS)
    assert chosen["asap_dedup"] == ["asap"] and chosen["vispruner+fastv@layer=3"] == ["vispruner", "fastv"]
    assert chosen["fitted.json"] == [] and cards[own].endswith("<p>Twice x_j &lt; 3.</p>")
    for card in cards.values():
        assert not re.search(r"```|\*\*|^\||\]\(", re.sub("<code>.*?</code>", "", card), re.M)
        assert 'class="equations"' in card or "Controls" in card or own in card


def luminance(color):
    """WCAG's relative luminance of #rrggbb."""
    parts = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= .04045 else ((part + .055) / 1.055) ** 2.4 for part in parts]
    return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2]


def test_contrast():
    """Text on its grounds has 4.5 to 1, in light and in dark; what shows the focus 3 to 1."""
    style = (HERE / "page.css").read_text()
    light, dark = re.findall(r":root \{.*?\}", style, re.S)
    for block in (light, dark):
        colors = dict(re.findall(r"--(\w+): (#\w{6});", block))
        for text in ("ink", "quiet", "link", "focus"):
            for ground in ("paper", "panel", "shown"):
                low, high = sorted((luminance(colors[text]), luminance(colors[ground])))
                least = 3 if text == "focus" else 4.5
                assert (high + .05) / (low + .05) >= least, (text, ground)


# --- in a browser ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


def tab_to(browser, condition, most=40):
    """Press Tab until the focused element `it` meets a condition; how often."""
    for times in range(1, most + 1):
        browser.press("Tab")
        if browser.value(f"(it => Boolean({condition}))(document.activeElement)"):
            return times
    raise AssertionError(f"Tab does not reach {condition}")


def kept_in(browser, method):
    """How many patches of a method's picture are in the sequence, as the classes and as the labels say."""
    cells = f"[...panels.get('{method}').element.querySelectorAll('.patch')]"
    labelled = browser.value(f"{cells}.filter(it => it.ariaLabel.endsWith('in the sequence')).length")
    assert labelled == browser.value(f"{cells}.filter(it => it.classList.contains('kept')).length")
    return labelled


def test_page_by_keyboard(browser, several):
    """From the top: the sliders, a picture, patch by patch, its layer and budget, the card, the table. No mouse."""
    browser.open(several)
    tab_to(browser, "it.id === 'layer'")
    assert kept_in(browser, "fastv") == 36
    browser.press("ArrowLeft", times=5)                    # from layer 7 to layer 2, before which FastV acts
    assert kept_in(browser, "fastv") == 36
    browser.press("ArrowLeft")
    assert browser.value("document.getElementById('layer-value').textContent") == "before layer 1 (0 to 7)"
    assert kept_in(browser, "fastv") == 144 and kept_in(browser, "divprune") == 36
    browser.press("Home")
    assert kept_in(browser, "divprune") == 144             # in the vision tower
    browser.press("ArrowRight")
    assert kept_in(browser, "divprune") == 36              # before layer 0
    browser.press("End")
    tab_to(browser, "it.id === 'budget'")
    browser.press("ArrowRight")
    assert kept_in(browser, "fastv") == 14
    assert browser.value("document.querySelectorAll('tr.shown[data-run]').length") == 5
    # one method less
    tab_to(browser, "it.tagName === 'SUMMARY'")
    browser.press("Space")
    tab_to(browser, "it.value === 'none'")
    browser.press("Space")
    assert browser.value("document.querySelectorAll('#pictures article').length") == 4
    # the grid of FastV: row 6, column 10 is a piece of evidence, token 82
    tab_to(browser, "it.matches('.patch') && it.closest('.grid').ariaLabel.startsWith('fastv')")
    browser.press("ArrowDown", times=6)
    browser.press("ArrowRight", times=10)
    sentence = "document.getElementById('sentence').textContent"
    assert browser.value("document.activeElement.dataset.token") == "82"
    browser.press("Tab")
    browser.press("Tab", shift=True)                       # back to the same patch
    assert browser.value("document.activeElement.dataset.token") == "82"
    said = browser.value(sentence)
    assert said.startswith("fastv 0.1, row 6, column 10: ") and "before layer 2 its score is 0.0" in said
    assert "of 144" in said and "it is evidence" in said
    assert browser.value("document.querySelectorAll('.peer').length") == 3
    assert browser.value("document.querySelectorAll('#comparison tr').length") == 4
    browser.press("PageUp", times=8)
    assert "no step has ranked it yet" in browser.value(sentence)
    browser.press("PageDown", times=8)
    browser.press("-")
    assert browser.value(sentence).startswith("fastv 0.25, row 6")
    browser.press("Home")
    assert browser.value(sentence).startswith("fastv 0.25, row 6, column 0")
    # the card beside it, then the table
    assert browser.value("[...document.querySelectorAll('[data-card]')].filter(it => !it.hidden).length") == 1
    assert browser.value("document.querySelector('[data-card=fastv]').hidden") is False
    tab_to(browser, "it.closest('#table')")
    assert browser.complaints == []


def test_merges_are_outlined(browser, several):
    """On a token of VisionZip into which others were merged, as many are outlined as the sentence names. Then the mouse
    points at a token that was merged into another."""
    browser.open(several)
    browser.value("panels.get('visionzip').cells[[...panels.get('visionzip').situation.sources.keys()].at(-1)].focus()")
    said = browser.value("document.getElementById('sentence').textContent")
    assert "merged into it, with weights: row" in said
    assert browser.value("document.querySelectorAll('#pictures .source').length") == said.count("column") - 1, said
    browser.point_at(".patch.into")
    assert ": merged into row" in browser.value("document.getElementById('sentence').textContent")


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_a_phone(browser, several, dark):
    """Nothing is wider than the window, what is told of a patch is at its lower edge, and the paper is the scheme's."""
    browser.open(several, width=390, height=844, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= 390
    browser.point_at(".patch.dropped")
    box = "document.getElementById('detail').getBoundingClientRect()"
    top, bottom = browser.value(f"[{box}.top, {box}.bottom]")
    assert 500 < top and bottom <= 844
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark
    assert browser.complaints == []


def test_hostile_words_do_nothing(browser, hostile):
    """They are the heading and what is below a picture, letter by letter, and the title is the page's own."""
    browser.open(hostile)
    assert browser.value("document.querySelector('h1').textContent") == HOSTILE
    assert browser.value("document.querySelector('.caption strong').textContent") == HOSTILE
    assert browser.value("document.title").startswith("</script>") and browser.complaints == []
