"""Which template a checkpoint is asked in: its own, else that of its family; else there is none, and --template
chooses one.

A released folder has its template, in the language of jinja, in one of four files. Original LLaVA and InternVL folders
mostly have none: their formats are known by name (formats.py, chatml.py).

TRAP: some templates contradict the model's card. That of llava-v1.6-34b-hf breaks the line after <|im_end|>, its card
does not; that of bakLlava-v1-hf writes a literal <\\s> after an answer. The file is followed.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from minivlm.io.files import read_bytes, read_json
from minivlm.io.text.chatml import CHATML, CONTEXT, QWEN
from minivlm.io.text.formats import FORMATS, IMAGE, Template, marked
from minivlm.io.text.render import LONGEST_TEMPLATE, render
from pruning.base import UserError

TEMPLATES = {**FORMATS, **CHATML, **QWEN}
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")         # tokens that a template may write by these names
CHOOSE = "choose one with --template, by its name (`ask --help` lists them) or as a jinja file"


@dataclass(frozen=True)
class Jinja(Template):
    """A template in the language of jinja: a program that writes messages, each with a role and its content."""

    source: str = field(repr=False)
    name: str                                      # where it comes from
    special: dict = field(default_factory=dict, compare=False)         # {name in SPECIAL: the tokenizer's token}
    system: str | None = None

    def text(self, turns, images=1):
        """The text of the turns. Raises UserError if the template cannot write them."""
        marked([question for question, _ in turns], images)    # raises where marks and pictures do not match
        text = self._written(turns, images, self.parts)
        if text.count(IMAGE) != images + sum((answer or "").count(IMAGE) for _, answer in turns):
            raise UserError(f"{self.name} does not write one {IMAGE} mark per picture: {CHOOSE}")
        return text

    @cached_property
    def parts(self):
        """Whether content is a list of pictures and texts, as llava-hf's templates read it, or one string with
        marks in it."""
        for parts in (True, False):
            try:
                text = self._written([("Why?", None)], 1, parts)
            except UserError as error:
                refused = error
            else:
                refused = None
                if "Why?" in text and text.count(IMAGE) == 1:
                    return parts
        raise refused or UserError(f"{self.name} does not write a question and its picture: {CHOOSE}")

    def with_system(self, system):
        """The same template with a system message, if it writes one."""
        other = replace(self, system=system, name=f"{self.name} with the system message {system!r}")
        try:
            text = other.text([("Why?", None)], 0)
        except UserError:                          # what templates without a place for it do on purpose
            text = ""
        return other if system.strip() in text else super().with_system(system)

    def _written(self, turns, images, parts):
        """The template's text of the turns; the pictures come before the first question, unless the questions place
        them."""
        content = _parts if parts else _string
        placed = any(IMAGE in question for question, _ in turns)
        messages = [] if self.system is None else [dict(role="system", content=content(self.system))]
        for turn, (question, answer) in enumerate(turns):
            messages.append(dict(role="user", content=content(question, 0 if turn or placed else images)))
            if answer is not None:
                messages.append(dict(role="assistant", content=content(answer)))
        variables = dict(self.special, messages=messages, add_generation_prompt=turns[-1][1] is None)
        text = render(self.source, variables, self.name)
        if CONTEXT in self.source:                 # InternVL's own mark: <image> is short for it
            text = text.replace(f"<img>{CONTEXT}</img>", IMAGE).replace(CONTEXT, IMAGE)
        return text

    def __str__(self):
        return f"{self.name} (sha256 {hashlib.sha256(self.source.encode('utf-8', 'replace')).hexdigest()[:12]})"


def _parts(text, images=0):
    return [dict(type="image")] * images + [dict(type="text", text=text)]


def _string(text, images=0):
    return f"{IMAGE}\n" * images + text


@dataclass(frozen=True)
class Raw(Template):
    """No template: the texts are taken as they are."""

    name: str = "--raw"

    def text(self, turns, images=1):
        """The turns' texts, one after the other. Raises UserError unless they have one mark a picture."""
        text = "".join(question + (answer or "") for question, answer in turns)
        if text.count(IMAGE) != images:
            raise UserError(f"the text has {text.count(IMAGE)} {IMAGE} marks for {images} pictures: with --raw write "
                            f"one mark a picture")
        return text


@dataclass(frozen=True)
class Missing(Template):
    """In place of a template that cannot be used: whoever uses it gets the sentence."""

    name: str                                      # the sentence

    def text(self, turns, images=1):
        """Raises UserError."""
        raise UserError(self.name)

    def with_system(self, system):
        """Raises UserError."""
        raise UserError(self.name)


def template_of(folder, config, tokenizer=None):
    """The template of a checkpoint: a name of TEMPLATES or a Template.

    It never raises: one that is missing does when it is used.
    """
    if config.original and config.template in CHATML:
        return config.template                     # InternVL's own; the tokenizer's file has the decoder's
    try:
        return own_template(Path(folder), tokenizer) or _family(Path(folder), config, tokenizer)
    except UserError as error:
        return Missing(str(error))


def own_template(folder, tokenizer=None):
    """The Jinja of a folder's own chat template; None if it has none.

    In transformers' order: the first one counts.
    """
    for name in ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json"):
        path = folder / name
        source = _source(path) if path.is_file() else None
        if source is not None:
            return Jinja(source, str(path), special_tokens(folder, tokenizer))
    return None


def _source(path):
    """The template in a file, in jinja or in JSON under "chat_template"; None if it has none."""
    if path.suffix != ".json":
        try:
            return read_bytes(path, 4 * LONGEST_TEMPLATE).decode("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a chat template ({error}): fetch it again, or "
                            f"{CHOOSE}") from None
    source = read_json(path).get("chat_template")
    if isinstance(source, dict):                   # several, by name
        source = source.get("default")
    elif isinstance(source, list):
        source = next((t.get("template") for t in source if isinstance(t, dict) and t.get("name") == "default"), source)
    if source is not None and not isinstance(source, str):
        raise UserError(f"{path}: chat_template holds no template named default: {CHOOSE}")
    return source


def special_tokens(folder, tokenizer=None):
    """{"bos_token": "<s>", ..}: what a template may write by name, of the tokens that the tokenizer's files name."""
    names = {}
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        names |= read_json(path) if path.is_file() else {}
    if tokenizer is not None:                      # tokens that go without saying
        said = dict(bos_token=tokenizer.bos, eos_token=tokenizer.eos)
        names = {key: tokenizer.fast.id_to_token(id) for key, id in said.items() if id is not None} | names
    tokens = {key: names.get(key) for key in SPECIAL}
    tokens = {key: token.get("content") if isinstance(token, dict) else token for key, token in tokens.items()}
    return {key: token for key, token in tokens.items() if isinstance(token, str)}


def _family(folder, config, tokenizer):
    """The name of a format, by what the tokenizer has and by the text model.

    Raises UserError for one that is not known.
    """
    if tokenizer is None or config.template in CHATML:     # InternVL
        return config.template
    telling = ("<|start_header_id|>", "<|im_start|>", "<|user|>", "</s>")
    has = {token for token in telling if tokenizer.fast.token_to_id(token) is not None}
    kind = _kind(read_json(folder / "config.json"))
    if tokenizer.fast.token_to_id("<end_of_utterance>") is not None:
        raise UserError(f"{folder} has no chat template, by which alone SmolVLM is asked: fetch its chat_template.json")
    if "<|start_header_id|>" in has:
        return "llava_llama_3" if config.original else "llama-3"
    if "<|im_start|>" in has:
        if not config.original:
            return "chatml"
        return "qwen_1_5" if kind == "qwen2" else "chatml_direct"
    if "<|user|>" in has:
        return "phi-3"
    if kind == "mistral":
        return "mistral_instruct" if config.original else "mistral"
    if kind == "llama" and "</s>" in has:
        return config.template                     # Vicuna
    raise UserError(f"{folder} has no chat template, and its tokenizer is of no family that is known: {CHOOSE}")


def _kind(raw):
    """The text model: "llama", "mistral", "qwen2", .."""
    section = raw.get("text_config") or raw
    kind = section.get("model_type", "llama") if isinstance(section, dict) else "llama"
    kind = str(kind).removeprefix("llava_")
    return "llama" if kind == "llava" else kind


def chosen(name, folder, tokenizer=None):
    """The template that --template names: a name of TEMPLATES, or the path of a jinja file.

    Raises UserError for another.
    """
    if name in TEMPLATES:
        return name
    path = Path(name)
    try:
        source = _source(path) if path.is_file() else None
    except (OSError, ValueError):                  # no name of a file
        source = None
    if source is None:
        raise UserError(f"template {name!r} is not known: use one of {', '.join(TEMPLATES)}, or the path of a jinja "
                        f"file")
    return Jinja(source, str(path), special_tokens(Path(folder), tokenizer))
