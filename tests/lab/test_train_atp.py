"""Training ATP on a tiny checkpoint: what is learnt from, what one step computes, that it resumes, spreads over
processes, and ends as a folder that the command line reads."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from atp_runs import PICTURES, atp_command, write_instructions
from build import close
from command import done
from minivlm.cache import Cache
from minivlm.io.text.template import Jinja
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import modules
from minivlm.lab.train import instruct
from minivlm.lab.train.atp_student import Student, prepared
from minivlm.lab.train.instruct import Instructions, batch, tokenised
from minivlm.lab.train.train_atp import Recipe, Run
from minivlm.trace import Trace
from paths import IMAGES, MODEL, PARITY, ROOT
from pruning.atp import ATP
from pruning.base import UserError
from pruning.readings import (ATP2D, ATPDetached, ATPFixedRatio, ATPMaskedSelf, ATPProbs, ATPRawScores,
                              ATPRenumbered)
from weights import load

RECIPE = Recipe(8., steps=6, batch=2, lr=1e-3, lr_module=1e-2, width=4)


@pytest.fixture
def data(tmp_path):
    return Instructions(write_instructions(tmp_path), IMAGES)


def model(**options):
    return load(MODEL, "float32", **options)


def atp(kind=ATP, **options):
    return kind(layers=(1, 2), **options)


@torch.enable_grad()
def trained(data, folder, recipe=RECIPE, method=None, stop=None, resume=False, save_every=100):
    """A Run of a fresh model in `folder`, after its steps."""
    folder.mkdir(exist_ok=True)
    llava = model()
    run = Run(llava, prepared(llava, method or atp(), recipe), recipe, data, folder)
    if resume:
        run.resume()
    run.train(save_every, stop)
    return run


# --- what is learnt from ----------------------------------------------------------------------------------------------

def test_instructions(data):
    """Twelve of thirteen have a picture; marks are taken out of the questions; each epoch has all, in another order."""
    turns = [("What is the lake?", "lake"), ("And which color?", "white and bright")]
    assert len(data) == 12 and data.rows[1] == (PICTURES[1], turns)
    order = data.order(3)
    first, second = [next(order) for _ in range(12)], [next(order) for _ in range(12)]
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    assert first == [i for i, _ in zip(data.order(3), range(12))] != [i for i, _ in zip(data.order(4), range(12))]


def test_answers_are_found(data):
    """The marked ids spell the answers, each with its </s>; what is not marked spells the questions."""
    tokenizer = model().tokenizer
    ids, answer = tokenised(tokenizer, data.rows[1][1], "llava-hf")
    learnt = [i for i, a in zip(ids, answer) if a]
    assert [tokenizer.decode(part).strip() for part in split(learnt, tokenizer.eos)] == ["lake", "white and bright"]
    assert learnt.count(tokenizer.eos) == 2 and ids.index(tokenizer.image) < answer.index(True)
    asked = tokenizer.decode([i for i, a in zip(ids, answer) if not a])
    assert asked.count("USER:") == asked.count("ASSISTANT:") == 2 and "white" not in asked


def test_answers_end_where_a_template_does_not_say_so(data):
    """Of a checkpoint's own templates: llava's writes no </s>, which is learnt all the same; the others' end stays."""
    tokenizer = model().tokenizer
    llava = ("{% for m in messages %}{{ m['role'].upper() + ': ' }}"
             "{% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}"
             "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")
    turns = data.rows[1][1]
    assert tokenised(tokenizer, turns, Jinja(llava, "llava")) == tokenised(tokenizer, turns, "llava-hf")
    end = "{{ '</s>' if m['role'] == 'assistant' }}"
    closed = llava.replace("{% endfor %}{% endfor %}", "{% endfor %}" + end + "{% endfor %}")
    assert tokenised(tokenizer, turns, Jinja(closed, "closed"))[0].count(tokenizer.eos) == 2


def split(ids, mark):
    parts = [[]]
    for i in ids:
        parts[-1].append(i)
        if i == mark:
            parts.append([])
    return parts[:-1]


def test_batch(data):
    """Two conversations of different lengths: the picture's rows, the text after it, the answers, and no more."""
    llava = model()
    b = batch(llava, [data[0], data[1]], "llava-hf")
    T = [len(tokenised(llava.tokenizer, data.rows[i][1], "llava-hf")[0]) - 1 + 16 for i in (0, 1)]
    assert b.ids.shape == b.answer.shape == b.is_text.shape == (2, max(T)) and b.pixels.shape[0] == 2
    for i in range(2):
        assert (b.ids[i, b.visual[i]] == llava.config.image_token_index).all() and len(b.visual[i]) == 16
        start, answer = int(b.visual[i][-1]) + 1, b.answer[i].nonzero()
        assert b.is_text[i].nonzero().squeeze(1).tolist() == list(range(start, int(answer[0])))
        assert start < answer[0] and answer[-1] == T[i] - 1


def test_what_does_not_fit_is_cut(data):
    """A context of 26: both end there, before their answers, so nothing is learnt. Of 12: not even the picture fits."""
    llava = model()
    llava.config.text.max_position_embeddings = 26
    b = batch(llava, [data[0], data[1]], "llava-hf")
    assert b.ids.shape == (2, 26) and not b.answer.any() and b.is_text[0, b.visual[0, -1] + 1:].all()
    result = Student(llava, prepared(llava, atp(), RECIPE), RECIPE)(b)
    assert result["ntp"] == 0
    assert result["loss"].isfinite()
    llava.config.text.max_position_embeddings = 12
    with pytest.raises(UserError, match="do not fit"):
        batch(llava, [data[0]], "llava-hf")


# --- what a step computes ---------------------------------------------------------------------------------------------

def student(method, recipe=RECIPE, seed=0):
    """A student whose thresholds differ between prompts."""
    llava = model()
    method = prepared(llava, method, recipe)
    generator = torch.Generator().manual_seed(seed)
    for p in method.module.parameters() if method.module else ():
        p.copy_(torch.randn(p.shape, generator=generator) * .5)
    return Student(llava, method, recipe)


@pytest.mark.parametrize("kind, options", [
    (ATP, {}), (ATP2D, {}), (ATPFixedRatio, dict(counts=(9, 4))), (ATP, dict(strategy="redundant")), (ATPProbs, {}),
    (ATPMaskedSelf, dict(score="cross"))])
def test_at_a_high_temperature_it_is_what_inference_does(data, kind, options):
    """Rows of the question: as in a prefill that drops what the same thresholds say, though answers follow."""
    learner = student(atp(kind, temperature=1e8, **options))
    llava = learner.llava
    b = batch(llava, [data[1], data[0]], "llava-hf")
    hidden, masks = learner.hidden(b)
    for i, n in ((0, 1), (1, 0)):
        picture, turns = data[n][0], data.rows[n][1][:1]
        ids = llava.tokenizer.encode(prompt([(turns[0][0], None)], 1))
        trace = Trace()
        tokens = llava.embed(ids, [llava.processor.pixels(picture)], trace=trace)
        pruned = llava.language_model.prefill(tokens, Cache.empty(3), learner.atp, trace, last=False)
        kept = [step.kept.tolist() for step in trace.steps]
        assert [m.nonzero().squeeze(1).tolist() for m in masks[:, i].round()] == kept and len(kept[-1]) < 16
        text, start = len(tokens.hidden) - 1 - int(tokens.visual[-1]), int(b.visual[i][-1]) + 1
        close(hidden[i, start:start + text], pruned[-text:], 1e-4)


def test_prompts_side_by_side_are_prompts_alone(data):
    """What another prompt of the batch is, and how long, does not matter."""
    learner = student(atp(temperature=10.))
    both = learner.hidden(batch(learner.llava, [data[0], data[1]], "llava-hf"))
    for i in range(2):
        b = batch(learner.llava, [data[i]], "llava-hf")
        hidden, masks = learner.hidden(b)
        close(both[0][i, :hidden.shape[1]], hidden[0], 1e-4)
        close(both[1][:, i], masks[:, 0])


def test_answers_decide_nothing(data):
    """Another answer, first or second, changes no mask and no row before it."""
    learner = student(atp(temperature=10.))
    b = batch(learner.llava, [data[1]], "llava-hf")
    hidden, masks = learner.hidden(b)
    for at in b.answer[0].nonzero().squeeze(1)[[0, -2]]:
        ids = b.ids.clone()
        ids[0, at] = (ids[0, at] + 7) % 400
        other, now = learner.hidden(replace(b, ids=ids))
        assert now.equal(masks) and other[0, :at].equal(hidden[0, :at]) and not other[0, at:].equal(hidden[0, at:])


def test_the_loss_is_of_the_answers_alone(data):
    """With thresholds that keep all it is the unpruned model's mean cross entropy of the answers' ids."""
    learner = student(atp(strategy="spatial", strides=(1,), lambda_sample=.5))     # every place has the score 1/2
    for module in learner.module:
        module.linear_s.weight.zero_()
        module.linear_s.bias.fill_(-20.)
    llava = learner.llava
    b = batch(llava, [data[1]], "llava-hf")
    result = learner(b)
    ids, answer = tokenised(llava.tokenizer, data.rows[1][1], "llava-hf")
    tokens = llava.embed(ids, [llava.processor.pixels(data[1][0])])
    logp = llava.lm_head(llava.language_model.prefill(tokens, Cache.empty(3), last=False)).log_softmax(dim=-1)
    ahead = [(t + 15 - 1, ids[t]) for t, a in enumerate(answer) if a]              # the mark became 16 rows
    expected = -sum(logp[row, i] for row, i in ahead) / len(ahead)
    assert result["ntp"].item() == pytest.approx(expected.item(), abs=1e-4)
    assert result["kept"].tolist() == pytest.approx([16, 16], abs=.01)
    assert result["average"].item() == pytest.approx(16, abs=.01)
    assert result["atp"].item() == pytest.approx(3, abs=.01)                       # (16 * 1 + 16 * 2) / 16
    assert result["target"].item() == pytest.approx(8, abs=.01)                    # from 8 tokens
    total = result["ntp"] + .05 * result["atp"] + .2 * result["target"]
    assert result["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    learner.recipe = replace(RECIPE, target_unit="share")
    assert learner(b)["loss"].item() == pytest.approx(total.item() - .2 * 8 * 15 / 16, abs=.01)


@pytest.mark.parametrize("factor", [1., 1e-4])
@torch.enable_grad()
def test_a_step_takes_the_mean_gradient_clipped_to_norm_1(data, tmp_path, factor):
    """Of two batches. The loss times 1e-4 has a gradient that is short enough as it is."""
    llava, recipe = model(), replace(RECIPE, accumulate=2)
    run = Run(llava, prepared(llava, atp(temperature=10.), recipe), recipe, data, tmp_path)
    forward = run.student.forward
    run.student.forward = lambda b: {k: x * factor for k, x in forward(b).items()}
    batches = [batch(llava, [data[i], data[i + 1]], "llava-hf") for i in (0, 2)]
    grads = torch.autograd.grad(sum(run.student(b)["loss"] for b in batches) / 2, list(run.trained.values()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    taken = []
    run.adam.step = lambda: taken.extend(p.grad.clone() for p in run.trained.values())
    run.step(batches)
    assert (norm > 2) == (factor == 1) and (norm < .5) == (factor < 1)
    for actual, expected in zip(taken, grads):
        close(actual, expected / norm.clamp_min(1), 1e-6, 1e-3)


# --- training ---------------------------------------------------------------------------------------------------------

def test_the_loss_falls_and_the_budget_is_met(data, tmp_path):
    log = trained(data, tmp_path / "a", replace(RECIPE, steps=60, lr=3e-3, lr_module=3e-2)).log
    early, late = ({k: sum(line[k] for line in part) / 10 for k in ("ntp", "target")} for part in (log[:10], log[-10:]))
    assert late["ntp"] < .7 * early["ntp"]
    assert late["target"] < early["target"] / 3


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_trained(data, tmp_path, frozen):
    """The tower never; the rest of the model unless it is frozen; thresholds always. The file read stays as it was."""
    before, stored = model().state_dict(), (MODEL / "model.safetensors").read_bytes()
    fresh = prepared(model(), atp(), RECIPE).module.state_dict()
    run = trained(data, tmp_path / "a", replace(RECIPE, freeze_lm=frozen), atp(temperature=10.))
    moved = {name for name, x in run.student.llava.state_dict().items() if not x.equal(before[name])}
    assert not any("vision_tower" in name for name in moved) and bool(moved) != frozen
    assert frozen or {name.split(".")[0] for name in moved} == {"language_model", "lm_head", "multi_modal_projector"}
    assert all(not x.equal(fresh[name]) for name, x in run.atp.module.state_dict().items())
    assert (MODEL / "model.safetensors").read_bytes() == stored


@pytest.mark.parametrize("strategy, idle", [("redundant", "linear_s"), ("spatial", "linear_r")])
def test_a_threshold_that_does_not_count_is_not_trained(data, tmp_path, strategy, idle):
    run = trained(data, tmp_path / "a", replace(RECIPE, steps=2), atp(strategy=strategy))
    parts = {name.split(".")[2] for name in run.trained if name.startswith("module.")}
    assert parts == {"linear", "linear_r", "linear_s"} - {idle}


@pytest.mark.parametrize("kind, name", [(ATPRawScores, "atp_raw_scores"), (ATPDetached, "atp_detached"),
                                        (ATPRenumbered, "atp_renumbered")])
def test_any_reading_is_trained(data, tmp_path, capsys, kind, name):
    """The thresholds move, and the folder is that of the reading: it is not gone on with as another."""
    out = tmp_path / "out"
    assert done(capsys, *atp_command(tmp_path, out, "--method", name, "--freeze-lm", "--set", "temperature=10"))[0] == 0
    trained_method = modules.read(out)
    assert type(trained_method) is kind
    fresh = prepared(model(), atp(kind), RECIPE).module.state_dict()
    assert all(not x.equal(fresh[name]) for name, x in trained_method.module.state_dict().items())
    status, _, err = done(capsys, *atp_command(tmp_path, out, "--freeze-lm", "--set", "temperature=10", "--resume"))
    assert status == 2
    assert f"a run with method {name!r}, not 'atp'" in err


def test_a_pre_defined_ratio(data, tmp_path, capsys):
    """Table 2: as many are left as counts says, the model learns, and the folder says how it was trained."""
    out = tmp_path / "out"
    fixed = ["--method", "atp_fixed_ratio"]
    assert done(capsys, *atp_command(tmp_path, out, *fixed, "--set", "counts=6,3"))[0] == 0
    assert [json.loads(line)["kept"] for line in (out / "log.jsonl").read_text().splitlines()] == [[6, 3]] * 3
    ask = ["ask", IMAGES / PICTURES[0], "What?", "--max-new-tokens", "2", "--model", out, *fixed]
    assert "layer 2: 12 tokens, 3 of them visual" in done(capsys, *ask)[1]


@pytest.mark.parametrize("frozen", [True, False])
def test_resumed_is_uninterrupted(data, tmp_path, frozen):
    """Six steps, or four with checkpoints every two and then the rest: the same weights, state and log, to the bit."""
    recipe = replace(RECIPE, freeze_lm=frozen, accumulate=2)
    whole = trained(data, tmp_path / "a", recipe)
    trained(data, tmp_path / "b", recipe, stop=5, save_every=2)
    state = tmp_path / "b" / "state.safetensors"
    rest = trained(data, tmp_path / "b", recipe, resume=True)
    assert len(rest.log) == 6 and rest.log == whole.log
    assert (tmp_path / "b" / "log.jsonl").read_text() == (tmp_path / "a" / "log.jsonl").read_text()
    resumed, uninterrupted = load_file(state), load_file(tmp_path / "a" / "state.safetensors")
    assert resumed.keys() == uninterrupted.keys() and all(x.equal(uninterrupted[name]) for name, x in resumed.items())


def test_interrupted_between_checkpoints(data, tmp_path, monkeypatch):
    """Stopped in the fourth step, it goes on from the checkpoint after the second."""
    whole, step = trained(data, tmp_path / "a"), Run.step

    def interrupted(self, batches):
        if self.at == 3:
            raise KeyboardInterrupt
        return step(self, batches)
    monkeypatch.setattr(Run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path / "b", save_every=2)
    monkeypatch.setattr(Run, "step", step)
    rest = trained(data, tmp_path / "b", resume=True)
    assert rest.log == whole.log and all(p.equal(whole.trained[name]) for name, p in rest.trained.items())


def test_warmup_and_cosine(data, tmp_path):
    """10 steps, 2 of warm-up: 1/2, 1, then (1 + cos(pi k / 8)) / 2."""
    llava = model()
    run = Run(llava, prepared(llava, atp(), RECIPE), replace(RECIPE, steps=10, warmup=.2), data, tmp_path)
    rates = []
    for run.at in range(10):
        rates.append(run.rate())
    assert rates[:3] == [.5, 1, 1] and rates[6] == pytest.approx(.5) and rates[9] == pytest.approx(.0381, abs=1e-4)


def test_bfloat16(data, tmp_path):
    """Products in bfloat16, weights in float32: near the same loss."""
    exact, rough = (trained(data, tmp_path / d, replace(RECIPE, steps=3, dtype=d)) for d in ("float32", "bfloat16"))
    assert all(p.dtype == torch.float32 for p in rough.trained.values())
    assert [line["loss"] for line in rough.log] == pytest.approx([line["loss"] for line in exact.log], rel=.05)
    assert [line["loss"] for line in rough.log] != [line["loss"] for line in exact.log]


# --- the command line -------------------------------------------------------------------------------------------------

def torchrun(*argv):
    """Standard output of run.py in two processes."""
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "run.py"]
    env = os.environ | dict(OMP_NUM_THREADS="1")
    ended = subprocess.run([*two, *argv], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_two_processes_are_twice_the_accumulation(data, tmp_path, capsys):
    """torchrun with two processes on gloo: losses and weights of one process that accumulates two batches a step. One
    of the two writes: each file once."""
    status, printed_by_one, _ = done(capsys, *atp_command(tmp_path, tmp_path / "one", "--accumulate", "4"))
    printed_by_two = torchrun(*atp_command(tmp_path, tmp_path / "two", "--accumulate", "2"))
    assert status == 0 and printed_by_two.count("wrote ") == printed_by_one.count("wrote ") > 0
    logs = [(tmp_path / out / "log.jsonl").read_text().splitlines() for out in ("one", "two")]
    one, two = ([json.loads(line) for line in log] for log in logs)
    assert len(one) == len(two) == 3
    for a, b in zip(one, two):
        assert a["kept"] == pytest.approx(b["kept"], rel=1e-5) and a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys()
    for name, x in one.items():
        close(x, two[name])


def test_the_folder_is_read_by_load_and_by_the_method(data, tmp_path, capsys):
    """Without --freeze-lm the folder is a whole checkpoint, and --method atp finds its module in it."""
    status, out, err = done(capsys, *atp_command(tmp_path, tmp_path / "out"))
    assert status == 0 and "step 3: loss" in out, err
    state = load_file(tmp_path / "out" / "state.safetensors")
    after = load(tmp_path / "out").state_dict()
    name = "language_model.layers.0.self_attn.q_proj.weight"
    assert after[name].equal(state[f"weight.llava.{name}"]) and not after[name].equal(model().state_dict()[name])
    ask = ["ask", IMAGES / PICTURES[0], "What is the sign?", "--max-new-tokens", "2", "--model"]
    status, inside, err = done(capsys, *ask, tmp_path / "out", "--method", "atp", "--json", tmp_path / "report.json")
    assert status == 0 and json.loads((tmp_path / "report.json").read_text())["reductions"][0]["before_layer"] == 1, err
    status, named, _ = done(capsys, *ask, tmp_path / "out", "--method", "atp", "--set", f"module={tmp_path / 'out'}")
    assert status == 0 and named.splitlines()[0] == inside.splitlines()[0]


def test_frozen_leaves_the_module_alone(data, tmp_path, capsys):
    assert done(capsys, *atp_command(tmp_path, tmp_path / "out", "--freeze-lm", "--set", "temperature=50"))[0] == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["atp.safetensors", "log.jsonl", "state.safetensors"]
    status, _, err = done(capsys, "ask", IMAGES / PICTURES[0], "What?", "--max-new-tokens", "2", "--model", MODEL,
                          "--method", "atp", "--set", f"module={tmp_path / 'out'}")
    assert status == 0, err


@pytest.mark.parametrize("layout", ["llava15_original", "tower elsewhere", "llava15_layers"])
def test_other_layouts_are_saved_whole(data, tmp_path, capsys, layout):
    """The original one, its tower in the file or in a folder of its own, one in three files: what is saved loads."""
    folder = parted(tmp_path / "in") if layout == "tower elsewhere" else PARITY / layout
    argv = atp_command(tmp_path, tmp_path / "out", steps=1)
    argv[argv.index("--model") + 1], argv[argv.index("--layers") + 1] = str(folder), "1"
    status, _, err = done(capsys, *argv)
    assert status == 0, err
    before = load(folder, "float32").state_dict()
    if layout == "tower elsewhere":
        shutil.rmtree(folder)
    after = load(tmp_path / "out").state_dict()
    assert after.keys() == before.keys()
    assert all(x.equal(after[name]) for name, x in before.items() if "vision_tower" in name)


def parted(folder):
    """The original checkpoint with the weights of its tower in the tower's folder."""
    shutil.copytree(PARITY / "llava15_original", folder)
    tensors = load_file(folder / "model.safetensors")
    inside = "model.vision_tower.vision_tower."
    tower = {key.removeprefix(inside): x for key, x in tensors.items() if inside in key}
    save_file({key: x for key, x in tensors.items() if inside not in key}, folder / "model.safetensors")
    save_file(tower, folder / "clip" / "model.safetensors")
    return folder


@pytest.mark.parametrize("changed, words", [
    (["--target-tokens", "20"], "out of reach"), (["--target-tokens", "3"], "out of reach"),
    (["--layers", "1,3"], "layer 3"), (["--method", "fastv"], "invalid choice"),
    (["--layers", "2,1"], "layers must rise"), (["--data", "none.json"], "none.json"), (["--steps", "0"], "at least 1"),
    (["--set", "nothing=1"], "no option 'nothing'"), (["--resume"], "no state to resume"),
    (["--save-every", "0"], "save-every"), (["--theta-r", "1"], "thresholds lie"),
    (["--freeze-lm", "--method", "atp_fixed_ratio", "--set", "counts=4,2"], "nothing else is trained"),
    (["--activation", "tanh"], "activation"), (["--images", "nowhere"], "nowhere"),
    (["--model", "nowhere"], "nowhere")])
def test_bad_input_is_one_line(data, tmp_path, capsys, changed, words):
    status, _, err = done(capsys, *atp_command(tmp_path, tmp_path / "out"), *changed)
    lines = [line for line in err.splitlines() if "run.py: " in line]
    assert status == 2 and len(lines) == 1 and words in lines[0], err


@pytest.mark.parametrize("content, words", [
    ("{", "no instructions"), ("{}", "no"), ("[1]", "no instructions"), ('[{"image": "a.png"}]', "conversations"),
    ('[{"image": "a.png", "conversations": [{"from": "gpt", "value": "x"}]}]', "human, gpt"),
    ('[{"conversations": []}]', "none of its 1 conversations has an image")])
def test_bad_data_is_one_line(tmp_path, content, words):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        Instructions(tmp_path / "d.json")
    assert "\n" not in str(error.value)


def test_another_run_in_the_folder(data, tmp_path, capsys):
    """A finished run is not written over, nor resumed with other options."""
    assert done(capsys, *atp_command(tmp_path, tmp_path / "out"))[0] == 0
    assert "holds a run already" in done(capsys, *atp_command(tmp_path, tmp_path / "out"))[2]
    status, _, err = done(capsys, *atp_command(tmp_path, tmp_path / "out", "--resume", "--lambda-atp", "0.1"))
    assert status == 2 and "lambda_atp 0.05, not 0.1" in err
    argv = atp_command(tmp_path, tmp_path / "out", "--resume")
    write_instructions(tmp_path, count=13)
    assert "samples 12, not 13" in done(capsys, *argv)[2]
    write_instructions(tmp_path)
    assert "layers" in done(capsys, *atp_command(tmp_path, tmp_path / "out", "--resume", "--layers", "1"))[2]
    assert done(capsys, *atp_command(tmp_path, tmp_path / "out", "--resume"))[0] == 0


@pytest.mark.parametrize("folder", ["next_vicuna", "internvl_qwen2"])
def test_a_model_that_cuts_pictures_into_tiles(data, tmp_path, capsys, folder):
    argv = atp_command(tmp_path, tmp_path / "out")
    argv[argv.index("--model") + 1] = str(PARITY / folder)
    status, _, err = done(capsys, *argv)
    assert status == 2 and "into tiles" in err


def test_a_loss_that_is_not_finite(data, tmp_path):
    with pytest.raises(UserError, match="not finite at step"):
        trained(data, tmp_path / "a", replace(RECIPE, steps=30, lr=1e30, warmup=0.))


def test_the_drawn_world(monkeypatch):
    """Rows with pictures, for a model of 96 x 96 pixels."""
    pytest.importorskip("minivlm.toy.benchmark")
    rows = instruct.drawn(2)
    assert len(rows) == 16 and all(picture.size == (96, 96) and len(turns) == 1 for picture, turns in rows)


@pytest.mark.slow
def test_of_two_processes_one_writes(data, tmp_path):
    """Under torchrun, and gone on with: the files of one process, whole, with the log of all steps."""
    words = atp_command(tmp_path, tmp_path / "out", "--freeze-lm", steps=2)
    for more in ([], ["--resume"]):
        assert torchrun(*words, *more).count("wrote ") == 1
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["atp.safetensors", "log.jsonl", "state.safetensors"]
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 2
