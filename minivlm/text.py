"""Text in and out: a checkpoint's tokenizer, and Vicuna's and Mistral's prompts with their <image> marks.

LLaMA's tokenizer is byte-pair encoding without any cutting into words. A space is written "▁", and every run of text
gets one before it. Marks (<s>, </s>, <image>) cut the text first, so the runs on both sides of a mark get their own
"▁". A character without a piece of its own is spelled as UTF-8 bytes, one id each.
"""

import re
from functools import partial
from pathlib import Path

from tokenizers import AddedToken, Tokenizer as FastTokenizer

from minivlm.chatml import CHATML, END
from minivlm.files import read_json
from minivlm.sentencepiece import from_sentencepiece
from pruning.base import UserError

IMAGE = "<image>"
CONTEXT = "<IMG_CONTEXT>"                          # InternVL's mark, which stands between <img> and </img>
HUMAN = ("A chat between a curious human and an artificial intelligence assistant. "
         "The assistant gives helpful, detailed, and polite answers to the human's questions. ")
VICUNA = "USER: {} ASSISTANT:", " {}</s>"
TEMPLATES = {                                      # the system sentence, a question, the answer after it
    "llava-hf": ("", *VICUNA),                     # chat template of the llava-1.5-*-hf checkpoints
    "llava_v1": (HUMAN, *VICUNA),                  # LLaVA's own chat, and the llava-v1.6-vicuna-*-hf checkpoints
    "vicuna_v1": (HUMAN.replace("human", "user"), *VICUNA),        # its evaluations
    "mistral": ("", "[INST] {} [/INST]", " {} </s>"),              # llava-v1.6-mistral-7b
    **CHATML}


def prompt(turns, images=1, template="llava-hf"):
    """The text of a conversation: turns are (question, answer), the last answer None where the model shall give it.

    prompt([("What?", "A cat."), ("Old?", None)])
        -> "USER: <image>\\nWhat? ASSISTANT: A cat.</s>USER: Old? ASSISTANT:"
    Marks of `images` pictures stand before the first question, each on its own line, unless the questions hold them.
    Raises UserError where marks and pictures do not match.
    """
    if template not in TEMPLATES:
        raise UserError(f"template {template!r} is not known: use one of {', '.join(TEMPLATES)}")
    system, asked, answered = TEMPLATES[template]
    questions = _marked([question for question, _ in turns], images)
    answers = ["" if answer is None else answered.format(answer) for _, answer in turns]
    return system + "".join(asked.format(q) + a for q, a in zip(questions, answers))


def next_turn(question, ended=False, images=0, template="llava-hf"):
    """The text that goes on after an answer of the model. `ended`: the answer's </s> (or <|im_end|>) has been read already.

    Encode it with bos=False: next_turn("Old?") -> "</s>USER: Old? ASSISTANT:"
    """
    system, _, answered = TEMPLATES[template]
    close = answered.partition("{}")[2].strip(" ")
    if ended:
        close = close.removeprefix("</s>").removeprefix(END)
    return close + prompt([(question, None)], images, template).removeprefix(system)


def _marked(questions, images):
    marks = sum(question.count(IMAGE) for question in questions)
    if images and not marks:
        return [f"{IMAGE}\n" * images + questions[0], *questions[1:]]
    if marks != images:
        raise UserError(f"the text has {marks} {IMAGE} marks for {images} pictures: write one mark a picture, or none")
    return questions


class Tokenizer:
    """Text <-> ids, from a folder's tokenizer.json, or else from its tokenizer.model. Raises UserError without either.

    bos, eos, image: the ids of <s> (None: texts start without), </s> and <image>. The last is `image_token_index` where
    that is given, whatever id the file has for the mark: the original LLaVA's files have none. In InternVL it is that of
    <IMG_CONTEXT>, <image> is short for <img><IMG_CONTEXT></img>, and eos is <|im_end|>, which closes a turn.
    """

    def __init__(self, folder, image_token_index=None):
        settings = Path(folder) / "tokenizer_config.json"
        told = read_json(settings) if settings.is_file() else {}
        self.fast = _fast(Path(folder), told.get("added_tokens_decoder") or {})
        self.bos = self._start(told)
        context = image_token_index is not None and self.fast.token_to_id(CONTEXT) == image_token_index
        if image_token_index is not None and not context and self.fast.token_to_id(IMAGE) is None:
            self.fast.add_special_tokens([AddedToken(IMAGE, normalized=False)])
        self.eos = self.fast.token_to_id(END) if context else self._named(told, "eos_token", "</s>")
        self._written = f"<img>{CONTEXT}</img>" if context else IMAGE
        self._mark = self.fast.token_to_id(CONTEXT if context else IMAGE)
        self.image = self._mark if image_token_index is None else image_token_index
        self._special = {i for i, token in self.fast.get_added_tokens_decoder().items() if token.special}

    def _named(self, told, key, default):
        name = told.get(key, default)
        name = name["content"] if isinstance(name, dict) else name
        return self.fast.token_to_id(name) if name else None

    def _start(self, told):
        bos, wanted = self._named(told, "bos_token", "<s>"), told.get("add_bos_token")
        if wanted is None:                         # then the file tells by doing; LLaMA's class adds it in any case
            wanted = bos in self.fast.encode("").ids or any(
                name in (told.get("tokenizer_class") or "Llama") for name in ("Llama", "InternLM2"))
        return bos if wanted else None

    def encode(self, text, bos=True):
        """Ids of the text, one a mark; <s> first, once. bos=False: for text that goes on after ids read before."""
        try:
            ids = self.fast.encode(text.replace(IMAGE, self._written), add_special_tokens=False).ids
        except TypeError as error:                 # a shell's bytes that are not UTF-8
            raise UserError(f"the text {text!r} is not valid Unicode: write it in UTF-8") from error
        ids = [self.image if i == self._mark else i for i in ids]
        return ids if not bos or self.bos in (None, *ids[:1]) else [self.bos, *ids]

    def decode(self, ids):
        """Text of the ids, without marks and without ids that the tokenizer does not know (a padded vocabulary)."""
        return self.fast.decode([i for i in map(int, ids) if self.shows(i)])

    def shows(self, id):
        """Whether `decode` reads this id."""
        return id not in self._special and id >= 0 and self.fast.id_to_token(id) is not None

    def stream(self):
        """A `Stream`: text while the ids arrive."""
        return Stream(self)

    def pieces(self, ids):
        """The piece of each id as the vocabulary writes it ("▁cat", "<0x0A>"), for display."""
        return [IMAGE if i == self.image else self.fast.id_to_token(i) or f"<{i}>" for i in map(int, ids)]


class Stream:
    """Text of ids that arrive one by one. What `push` gives is final: all pushes and `finish` joined equal `decode`.

    Only the ids since the last text are decoded again, after one id of context: where the first one's "▁" is dropped,
    that of the others is a space. Bytes wait for the next piece, since one wrong byte spoils the run of bytes it is in.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.sent = tokenizer, [], 0         # sent: characters of ids[0] that are out already

    def push(self, id):
        """The text that is certain now that this id came; "" where it is not yet."""
        id = int(id)
        if not self.tokenizer.shows(id):
            return ""
        self.ids.append(id)
        text = self.tokenizer.decode(self.ids)
        if re.fullmatch("<0x..>", self.tokenizer.fast.id_to_token(id)) or text.endswith("\ufffd"):
            return ""
        text, self.ids = text[self.sent:], [id]
        self.sent = len(self.tokenizer.decode([id]))
        return text

    def finish(self):
        """The rest of the text; then the stream is as new."""
        text = self.tokenizer.decode(self.ids)[self.sent:]
        self.ids, self.sent = [], 0
        return text


def _fast(folder, added):
    """`added`: {id: token} as tokenizer_config.json names those that are not, or otherwise, in tokenizer.model."""
    for name, read in (("tokenizer.json", FastTokenizer.from_buffer), ("tokenizer.model", partial(from_sentencepiece, added=added))):
        if (folder / name).exists():
            try:
                fast = read((folder / name).read_bytes())
            except Exception as error:             # the tokenizers library raises plain exceptions
                told = (str(error) or type(error).__name__).splitlines()[0]
                raise UserError(f"{folder / name} cannot be read as a tokenizer ({told}): fetch it again") from error
            fast.no_truncation()
            fast.no_padding()
            return fast
    raise UserError(f"{folder} has no tokenizer.json and no tokenizer.model: copy one of them from the checkpoint")
