"""Questions and answers: the choice of a token, where an answer ends, and turns that go on from the pruned cache."""

from collections import Counter
from itertools import islice

import pytest
import torch

from build import close
from minivlm.generate import Conversation, Sampling
from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt as written
from pruning.apply import with_last
from pruning.base import Reduction, Tokens, UserError
from pruning.controls import Blind
from pruning.fastv import FastV
from pruning.readings import FastVAllRows, FastVMask
from pruning.vtw import VTW
from paths import MODEL
import weights
from tiny import DEEP, MARK, REDUCING, Around, built, ids, llava, picture, prefill

PROMPT = ids(5, MARK, 7)                       # 5 + 16 + 7 = 28 tokens
LOGITS = torch.tensor([.15, .5, .05, .3]).log()


def talk(pruner=None, prompt=PROMPT, **fields):
    """A conversation that has read the prompt."""
    conversation = Conversation(llava(**fields), pruner)
    conversation.read(prompt, [picture(llava())] * prompt.count(MARK))
    return conversation


def answer(conversation, count=6, sampling=None, eos=()):
    return list(conversation.generate(count, sampling, eos))


def uncached(ids, pruner=None, trace=None):
    """Next token's logits after all these ids in one go; with the decisions of `trace`, where it is given."""
    steps = iter(trace.steps if trace else ())
    method = pruner and Around(pruner, lambda tokens: next(steps).reduction)
    return prefill(llava(), ids, [picture(llava())], method)[0]


# --- the choice of a token --------------------------------------------------------------------------------------------

def drawn(count=4000, **options):
    """Share of each id among so many draws."""
    sampling = Sampling(**options)
    counts = Counter(sampling.choose(LOGITS) for _ in range(count))
    return [round(counts[id] / count, 2) for id in range(4)]


def test_greedy_takes_the_likeliest():
    assert Sampling().choose(LOGITS) == 1 and drawn(10) == [0, 1, 0, 0]


def test_temperature():
    """At 1 the probabilities, .15 .5 .05 .3; at 1/2 their squares, .0225 .25 .0025 .09 of .365, at 1/1000 the
    likeliest."""
    assert drawn(temperature=1) == pytest.approx([.15, .5, .05, .3], abs=.03)
    assert drawn(temperature=.5) == pytest.approx([.06, .685, .007, .247], abs=.03)
    assert drawn(100, temperature=.001) == [0, 1, 0, 0]


@pytest.mark.parametrize("top_p, expected", [(.6, [0, 5 / 8, 0, 3 / 8]), (.8, [0, 5 / 8, 0, 3 / 8]),
                                             (.81, [3 / 19, 10 / 19, 0, 6 / 19])])
def test_top_p(top_p, expected):
    """The smallest set that reaches it: .5 + .3, then .5 + .3 + .15, each set's own shares of 1."""
    assert drawn(temperature=1, top_p=top_p) == pytest.approx(expected, abs=.03)


@pytest.mark.parametrize("top_p", [.4, .5])
def test_top_p_that_the_likeliest_reaches(top_p):
    """A set of one: it is drawn each time."""
    assert drawn(200, temperature=1, top_p=top_p) == [0, 1, 0, 0]


def test_top_p_that_is_reached_exactly():
    """Of four equal ids two have one half together: no third is let in."""
    sampling = Sampling(temperature=1, top_p=.5)
    assert len({sampling.choose(torch.zeros(4)) for _ in range(100)}) == 2


def test_a_seed_repeats_its_answer():
    """Whatever else is drawn in the meantime; another seed gives another."""
    def hot(seed):
        return answer(talk(), 12, Sampling(temperature=3, top_p=.95, seed=seed))
    first = hot(1)
    torch.manual_seed(5)
    assert hot(1) == first != hot(2)


@pytest.mark.parametrize("options", [dict(temperature=-.1), dict(top_p=0), dict(top_p=1.1), dict(top_p=float("nan")),
                                     dict(temperature=float("nan"))])
def test_what_cannot_be_sampled(options):
    with pytest.raises(UserError, match="temperature is at least 0 and top-p in"):
        Sampling(**options)


@pytest.mark.parametrize("temperature", [0, 1e-3, 1e-40])
def test_a_low_temperature_is_no_overflow(temperature):
    assert Sampling(temperature).choose(torch.tensor([-300., 900., 100.])) == 1


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_overflowed(temperature):
    with pytest.raises(UserError, match="NaN.*float32"):
        Sampling(temperature).choose(torch.tensor([1., torch.nan]))


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("logits", [[1., torch.inf], [torch.inf, torch.inf], [-torch.inf, -torch.inf]])
def test_logits_that_are_infinite(temperature, logits):
    """Of two that overflowed no one knows which is larger; one that is -inf alone is only never chosen."""
    with pytest.raises(UserError, match="infinity.*float32"):
        Sampling(temperature).choose(torch.tensor(logits))
    assert Sampling(temperature).choose(torch.tensor([-torch.inf, 2., -torch.inf])) == 1


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("padding", [torch.nan, torch.inf])
def test_what_fills_up_the_vocabulary_may_hold_anything(temperature, padding):
    """Ids that are no token are not chosen for their NaN; a token's NaN is an overflow, beside them too."""
    unused = lambda: torch.tensor([False, False, True])
    assert Sampling(temperature).choose(torch.tensor([-40., 40., padding]), unused) == 1
    with pytest.raises(UserError, match="NaN"):
        Sampling(temperature).choose(torch.tensor([torch.nan, 40., padding]), unused)


def test_rows_that_the_tokenizer_does_not_know():
    """The checkpoint's head has more rows than the tokenizer has tokens: with NaN in these it answers as before."""
    model = weights.load(MODEL)
    rows, known = model.config.text.vocab_size, max(model.tokenizer.fast.get_vocab(with_added_tokens=True).values()) + 1
    assert known < rows
    answers = []
    for value in (None, torch.nan):
        if value is not None:
            with torch.no_grad():
                model.lm_head.weight[known:] = value
        conversation = Conversation(model)
        conversation.read(model.tokenizer.encode("Why?"))
        answers.append(list(conversation.generate(4)))
    assert answers[0] == answers[1]
    with torch.no_grad():
        model.lm_head.weight[known - 1] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        list(conversation.generate(1))


# --- where an answer ends ---------------------------------------------------------------------------------------------

def test_greedy_answers_as_the_uncached_model():
    so_far = list(PROMPT)
    for token in answer(talk()):
        assert token == int(uncached(so_far).argmax())
        so_far.append(token)


def test_it_ends_with_any_of_the_end_tokens():
    """The end token is part of the answer; the model's own end tokens count unless others are given."""
    whole = answer(talk())
    second = whole.index(next(id for id in whole if id != whole[0]))
    assert answer(talk(), eos=(whole[second], 98)) == answer(talk(), eos=(98, whole[second])) == whole[:second + 1]
    assert answer(talk(), eos=(whole[0], whole[second])) == whole[:1]
    conversation = talk()
    conversation.model = type("Ending", (), dict(eos=(whole[second],), config=llava().config, step=llava().step))
    assert answer(conversation, eos=None) == whole[:second + 1]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_max_new_tokens(count):
    assert answer(talk(), count) == answer(talk(), 6)[:count]


@pytest.mark.parametrize("context, count", [(28, 1), (31, 4), (33, 6)])
def test_it_ends_with_the_context(context, count):
    """28 tokens in a context of 31: three more are run, and the fourth, which they lead to, is not."""
    model, conversation = llava(context=context), talk(context=context)
    assert answer(conversation, 100) == answer(talk(), count)
    assert conversation.cache.layers[0].next_position == context == model.config.text.max_position_embeddings
    with pytest.raises(UserError, match="2 more tokens do not fit: 0 are left"):
        conversation.read([7])


def test_what_a_method_drops_makes_no_room():
    """Positions are those of the unpruned prompt: with 4 of 16 tokens left the context ends where it did; dropped
    before the decoder, they leave 12 more places."""
    assert len(answer(talk(FastV(keep=4), context=31), 100)) == 4


# --- turns ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pruner", [None, FastV(keep=4), FastVMask(keep=4), FastVAllRows(layer=31, keep=.5)])
def test_turns_equal_one_uncached_run(pruner):
    """Three turns from one pruned cache; each time the logits are those of all the ids so far in one go, pruned
    alike."""
    conversation, ran = talk(pruner), list(PROMPT)
    for seed in (1, 2):
        ran += answer(conversation, 3)
        more = ids(4, seed=seed)
        conversation.read(more)
        ran += more
        assert conversation.ids == ran and conversation.pending == []
        close(conversation.logits, uncached(ran, pruner, conversation.trace), DEEP)
    assert len(conversation.trace.steps) == (pruner is not None)
    assert conversation.cache.lengths[0] == len(ran) + 15


def test_the_last_token_of_an_answer_is_run_with_the_next_turn():
    """It waits in `pending`, so that an answer costs one step less; the ids are those that the cache holds."""
    conversation = talk()
    *run, last = answer(conversation, 3)
    assert conversation.pending == [last] and conversation.ids == PROMPT + run
    conversation.read([7, 8])
    assert conversation.pending == [] and conversation.ids == PROMPT + run + [last, 7, 8]
    close(conversation.logits, uncached(conversation.ids), DEEP)


def test_an_answer_that_is_not_read_to_its_end():
    """What was yielded is part of the conversation, what was not is not."""
    conversation = talk()
    part = list(islice(conversation.generate(6, eos=()), 2))
    conversation.read([7])
    assert conversation.ids == PROMPT + part + [7]
    close(conversation.logits, uncached(conversation.ids), DEEP)


def test_an_answer_that_goes_on():
    """generate after generate continues: no token twice."""
    conversation = talk()
    assert answer(conversation, 2) + answer(conversation, 1) + answer(conversation, 3) == answer(talk(), 6)


def test_an_image_in_a_later_turn_is_refused():
    conversation = talk()
    before = list(conversation.ids)
    with pytest.raises(UserError, match="an image can only be given in the first turn"):
        conversation.read([MARK, 5], [picture(llava())])
    assert conversation.ids == before and answer(conversation) == answer(talk())


def test_a_turn_that_does_not_fit_changes_nothing():
    """28 and 2 of 40 are run: 10 are left, for the token that waits and 9 more."""
    conversation, more = talk(context=40), ids(10)
    ran = answer(conversation, 3)
    with pytest.raises(UserError, match="11 more tokens do not fit: 10 are left"):
        conversation.read(more)
    conversation.read(more[:9])
    assert conversation.ids == PROMPT + ran + more[:9] and conversation.cache.lengths[0] == 40


def test_text_alone():
    conversation = talk(FastV(), prompt=ids(9))
    assert answer(conversation) == answer(talk(None, prompt=ids(9))) and not conversation.trace.steps


def test_streamed_pieces_are_the_whole_answer():
    """From a checkpoint with its tokenizer: the pieces, one a token, add up to the answer decoded at once."""
    model = weights.load(MODEL)
    image = open_image(MODEL.parent / "images" / "land_500x333.png")
    conversation, stream, tokens = Conversation(model, FastV(layer=1, keep=4)), model.tokenizer.stream(), []
    prompt_ids = model.tokenizer.encode(written([("What is shown?", None)], 1, "llava-hf"))
    conversation.read(prompt_ids, [model.processor.pixels(image)])
    pieces = []
    for token in conversation.generate(24, Sampling(temperature=2, seed=3)):
        tokens.append(token)
        pieces.append(stream.push(token))
    pieces.append(stream.finish())
    assert len(pieces) == len(tokens) + 1 and sum(map(bool, pieces)) > 5
    assert "".join(pieces).strip() == model.tokenizer.decode(tokens).strip()


# --- what is left of a prompt -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("prompt, pruner", [([], None), ([MARK], Blind()), ([], VTW(1))])
def test_a_prompt_of_which_nothing_is_left(prompt, pruner):
    with pytest.raises(UserError, match="no token of the prompt is left.*give it text"):
        talk(pruner, prompt)


def test_a_prompt_that_fails_leaves_nothing_behind():
    """Too long, or with a mark too many; then one that can be read, as if it were the first."""
    conversation = Conversation(llava(), FastV(keep=4))
    for prompt, message in ((ids(3, MARK, 600), "context"), (ids(3, MARK, 2, MARK, 4), "2 <image> marks for 1 images")):
        with pytest.raises(UserError, match=message):
            conversation.read(prompt, [picture(llava())])
    conversation.read(PROMPT, [picture(llava())])
    fresh = talk(FastV(keep=4))
    assert answer(conversation) == answer(fresh)
    assert conversation.trace.visual == fresh.trace.visual
    assert conversation.trace.N == 16
    assert len(conversation.trace.images) == len(conversation.trace.steps) == 1


@pytest.mark.parametrize("name", REDUCING)
def test_the_last_token_of_an_image_that_ends_the_prompt(name):
    """It predicts, so no method of the decoder drops it; those before the decoder decide what the image is; some ask
    for text."""
    pruner = built(name)
    try:
        logits, cache, trace = prefill(llava(), ids(3, MARK), [picture(llava())], pruner)
    except UserError as error:
        assert "text" in pruner.preconditions and "after" in str(error)
        return
    last = trace.steps[-1].kept.tolist()
    if pruner.site == "decoder":
        assert last[-1] == 15 and last.count(15) == 1
        layers = pruner.reduce_at(32)
        assert trace.visual[layers[0]] <= 16 and len(last) == trace.visual[-1]


def test_the_token_that_predicts_is_added():
    """Of 16 tokens FastV is to keep the first three, and the last: its logits are those of a run that kept these
    four."""
    added, chosen = (
        Around(FastV(keep=3), lambda tokens, keep=keep: Reduction(torch.tensor(keep)))
        for keep in ([0, 1, 2], [0, 1, 2, 15])
    )
    result, expected = (prefill(llava(), ids(3, MARK), [picture(llava())], pruner) for pruner in (added, chosen))
    close(result[0], expected[0], DEEP)
    assert result[2].visual == expected[2].visual == [16] * 2 + [4] * 30


def test_what_stands_for_the_last_token_goes_to_the_end():
    """Merged ones too: of keep 3, 1 the row of 3 moves behind that of 1; what is not kept comes with weight 1."""
    tokens = Tokens.start(torch.zeros(6, 2), [2, 3, 4, 5])
    merge = torch.tensor([[.5, 0, 0, .5], [0, 1, 0, 0]])
    moved = with_last(Reduction(torch.tensor([3, 1]), merge, reason=torch.tensor([0, 1])), tokens)
    assert moved.keep.tolist() == [1, 3]
    assert moved.merge.tolist() == [[0, 1, 0, 0], [.5, 0, 0, .5]]
    assert moved.reason.tolist() == [1, 0]
    added = with_last(Reduction(torch.tensor([1]), torch.tensor([[0, .5, .5, 0]])), tokens)
    assert added.keep.tolist() == [1, 3] and added.merge.tolist() == [[0, .5, .5, 0], [0, 0, 0, 1]]
    text = Tokens.start(torch.zeros(7, 2), [2, 3, 4, 5])
    assert with_last(Reduction(torch.tensor([1])), text).keep.tolist() == [1]
