"""From conversations to texts with the model's chat template, and where the answers in them stand.

Training must see what the engine will be asked. So the prompt of an answer is what the template
makes of the messages before it, with the generation prompt; the answer is what the template adds
when the answer is there too; and it ends with what the template writes after an answer's content,
without the newline that often follows.

Answers share one text as long as the template only ever appends. Where it rewrites what came before
(Qwen3 removes earlier thoughts), the next answer begins another text, so each answer is trained
exactly once, after its exact prompt.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import jinja2
from jinja2 import nodes
from transformers import PreTrainedTokenizerBase

from otr.data.conversations import THOUGHTS, Conversation, Message, Rejected

_SENTINEL = "xANSWERx"
_THINK, _END_THINK = "<think>", "</think>"
_NO_THOUGHT = f"\n{_END_THINK}\n\n"  # what an answer without a thought begins with after _THINK

NO_STOP = "records whose answers end without a token at which an engine could stop"
THOUGHT_EMPTY = (
    "records whose answers have no thought, though the prompt opens <think>: it is empty"
)
THOUGHT_LEFT_OUT = "records whose thoughts the chat template leaves out"
CONTENT_LEFT_OUT = "records with {} messages of which the chat template leaves out text"
CALL_LEFT_OUT = "records with tool calls that the chat template leaves out"
GREETING = "records that begin with an answer, which is not trained: there is no prompt for it"
UNANSWERED = "records that do not end with an answer: what follows the last one is not used"
FLAGS_IGNORED = "records with answers that are not to be learned, which train_on all trains too"


@dataclass(frozen=True)
class Rendered:
    """A text with its answers."""

    text: str
    answers: list[tuple[int, int]]
    """Start and end (exclusive) of each trained answer, in characters, in order."""
    remarks: tuple[str, ...] = ()
    """What the owner of a corpus should know of this text."""
    enclosed: bool = False
    """Whether the tokenizer's own special tokens begin and end the text; a template writes them."""

    @property
    def learned(self) -> str:
        """The text up to the end of its last answer."""
        return self.text[: self.answers[-1][1]]


@dataclass(frozen=True)
class TurnEnd:
    """The end of an answer as a chat template writes it, and how much of it is trained."""

    written: str
    """The whole of it, if nothing follows the answer."""
    trained: str
    """Its beginning, up to the tokens that end the turn; without such tokens all but the white
    space at its end."""
    is_token: bool
    """Whether a token ends the turn, so that an engine can stop at it."""
    next_role: str
    """In templates of GLM's kind, which write nothing after an answer: the mark of a user's
    message, which then ends the answer. Else empty."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        contents = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        ordered = sorted(filter(str.strip, contents), key=len, reverse=True)
        self._tokens = re.compile(f"(?:{'|'.join(map(re.escape, ordered)) or r'(?!)'})+")

    def render(self, conversation: Conversation) -> list[Rendered]:
        """Return texts that hold each trained answer once, after the prompt of inference.

        Raises:
            Rejected: "template" if the template fails or its answer does not follow its prompt;
                "untrained" if there is no answer to learn.
        """
        messages = conversation.messages
        roles = dict.fromkeys(message["role"] for message in messages)
        numbers = [number for number, learn in enumerate(conversation.trained) if learn]
        if not numbers:
            named = "" if "assistant" in roles else f" (the roles are {', '.join(roles)})"
            raise Rejected("untrained", f"no answer of the assistant that is to be learned{named}")
        texts: list[Rendered] = []
        remarks = set() if messages[-1]["role"] == "assistant" else {UNANSWERED}
        looked_at = 0
        for number in numbers:
            try:
                answered = self._answered(conversation, number)
            except Rejected:
                if _has_question(messages[:number]):
                    raise
                remarks.add(GREETING)
                continue
            [(start, _)] = answered.answers
            remarks |= _left_out(messages[looked_at:number], answered.text[:start])
            remarks |= _left_out(messages[number : number + 1], answered.text[start:])
            looked_at = number + 1
            if texts and answered.text[:start].startswith(texts[-1].learned):
                before = texts.pop()
                answered = replace(
                    answered,
                    answers=before.answers + answered.answers,
                    remarks=before.remarks + answered.remarks,
                )
            texts.append(answered)
        if not texts:
            raise Rejected("untrained", "its answers have no question before them")
        if remarks:
            texts[0] = replace(texts[0], remarks=(*texts[0].remarks, *remarks))
        return texts

    def whole(self, conversation: Conversation) -> Rendered:
        """Return the text of a whole conversation, all of it to be trained.

        Raises:
            Rejected: "template".
        """
        messages = conversation.messages
        text = self._text(conversation, messages, generate=False)
        remarks = _left_out(messages, text)
        answers = [message for message in messages if message["role"] == "assistant"]
        if len(answers) > sum(conversation.trained):
            remarks.add(FLAGS_IGNORED)
        if self._reads_thoughts and any(_thought(answer) not in text for answer in answers):
            remarks.add(THOUGHT_LEFT_OUT)
        if messages[-1]["role"] == "assistant":
            if self.end.next_role:
                text += self._next_role(conversation, messages, text)
            if not (self.end.is_token or self._ends_with_token(text.rstrip())):
                remarks.add(NO_STOP)
        return Rendered(text, [(0, len(text))], (*remarks,))

    def unused(self, conversation: Conversation) -> list[str]:
        """Return what the conversation holds and the template never mentions."""
        known = self._names | {"role", "content"}
        found = []
        if conversation.tools and "tools" not in known:
            found.append("tools")
        found += [f"{n} (template argument)" for n in conversation.template_args if n not in known]
        if self._reads_thoughts:  # transformers gives a thought all its names
            known |= THOUGHTS
        for message in conversation.messages:
            found += [f"{name} of {message['role']} messages" for name in {*message} - known]
        return [*dict.fromkeys(found)]

    @cached_property
    def end(self) -> TurnEnd:
        """Return how the template ends an answer after its content."""
        asked = {"role": "user", "content": "Q"}
        answer = {"role": "assistant", "content": _SENTINEL}
        try:
            written = self._text(_PLAIN, [asked, answer], generate=False).rpartition(_SENTINEL)[2]
        except Rejected:  # reported for the conversations that it also fails for
            return TurnEnd("", "", False, "")
        within = written
        with suppress(Rejected):
            longer = self._text(_PLAIN, [asked, answer, asked], generate=False)
            within = longer.rpartition(_SENTINEL)[2]
        if tokens := self._tokens.search(written):
            # Phi-4-mini's template ends the whole text too, with another token after the turn's.
            starts = [written[:end] for end in range(tokens.end(), 0, -1)]
            in_both = (s for s in starts if within.startswith(s) and self._ends_with_token(s))
            return TurnEnd(written, next(in_both, starts[0]), True, "")
        if mark := self._tokens.match(within, len(written)):
            return TurnEnd(written, written, True, mark.group())
        return TurnEnd(written, written.rstrip(), False, "")

    @cached_property
    def _names(self) -> frozenset[str]:
        """Names of variables, fields and keys that the template mentions."""
        template = self.tokenizer.chat_template
        templates = template.values() if isinstance(template, dict) else [template]
        return frozenset().union(*map(mentioned_names, templates))

    @cached_property
    def _opens_thought(self) -> bool:
        """Whether the generation prompt opens a thought."""
        with suppress(Rejected):
            prompt = self._text(_PLAIN, [{"role": "user", "content": "Q"}], generate=True)
            return _THINK in prompt
        return False

    @cached_property
    def _reads_thoughts(self) -> bool:
        """Whether thoughts are part of answers; else they are among `unused`."""
        return self._opens_thought or bool(self._names & THOUGHTS)

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether contents must be lists of parts, as some templates of vision models want it."""
        for content in (_SENTINEL, [{"type": "text", "text": _SENTINEL}]):
            turn = {"role": "user", "content": content}
            with suppress(Exception):  # any error of a template that can't take this content
                if _SENTINEL in self._apply([turn], None, {}, generate=True):
                    return isinstance(content, list)
        return False

    def _answered(self, conversation: Conversation, number: int) -> Rendered:
        """Return the text up to answer `number`, whose beginning is the prompt of inference."""
        messages = conversation.messages[: number + 1]
        prompt = self._text(conversation, messages[:-1], generate=True)
        text = self._text(conversation, messages, generate=False)
        remarks: tuple[str, ...] = ()
        if not text.startswith(prompt):
            text, remarks = self._after_rewritten(conversation, prompt, text, messages[-1])
        end = self._answer_end(text, len(prompt))
        answer = text[len(prompt) : end].removesuffix(self.end.trained)
        if not answer.removeprefix(_NO_THOUGHT).strip():
            raise Rejected(
                "template",
                f"the chat template writes nothing of message {number}, which has "
                f"{', '.join(name for name, value in messages[-1].items() if value)}",
            )
        if self._reads_thoughts and _thought(messages[-1]) not in answer:
            remarks += (THOUGHT_LEFT_OUT,)
        if self.end.next_role:
            text += self._next_role(conversation, messages, text)
            end = len(text)
        if not (self.end.is_token or self._ends_with_token(text[:end])):
            remarks += (NO_STOP,)
        return Rendered(text, [(len(prompt), end)], remarks)

    def _after_rewritten(
        self, conversation: Conversation, prompt: str, text: str, message: Message
    ) -> tuple[str, tuple[str, ...]]:
        """Return the text of an answer for which the template changes what it wrote of its prompt.

        Raises:
            Rejected: "template", if it can't be told what the answer is.
        """
        try:
            return _after_thought(prompt, text, message)
        except Rejected:
            # gpt-oss leaves out a call's thought as soon as the final answer is there. The answer
            # is what the template writes of the message after any question.
            asked = [{"role": "user", "content": "Q"}]
            with suppress(Rejected):
                before = self._text(conversation, asked, generate=True)
                alone = self._text(conversation, [*asked, message], generate=False)
                answer = alone.removeprefix(before)
                if alone.startswith(before) and answer and text.endswith(answer):
                    return prompt + answer, ()
            raise

    def _next_role(self, conversation: Conversation, messages: Sequence[Message], text: str) -> str:
        """Return the mark of the role that speaks after the last message, whose text is given."""
        if messages[-1].get("tool_calls"):
            result = {"role": "tool", "content": "Q"}
            with suppress(Rejected):
                longer = self._text(conversation, [*messages, result], generate=False)
                if longer.startswith(text) and (mark := self._tokens.match(longer, len(text))):
                    return mark.group()
        return self.end.next_role

    def _answer_end(self, text: str, start: int) -> int:
        """Return where the trained part of the answer from `start` to the text's end ends."""
        end = self.end
        if len(text) - len(end.written) >= start and text.endswith(end.written):
            return len(text) - len(end.written) + len(end.trained)
        return max(start, len(text.rstrip()))  # a tool call, say, may end with another token

    def _ends_with_token(self, text: str) -> bool:
        return any(match.end() == len(text) for match in self._tokens.finditer(text))

    def _text(
        self, conversation: Conversation, messages: Sequence[Message], *, generate: bool
    ) -> str:
        if self._wants_parts:
            messages = [
                {**message, "content": [{"type": "text", "text": message["content"]}]}
                for message in messages
            ]
        tools, arguments = conversation.tools, conversation.template_args
        render = partial(self._apply, tools=tools, template_args=arguments, generate=generate)
        try:
            return render(messages)
        except Exception as error:  # jinja's own errors, raised by the template's author
            with suppress(Exception):  # DeepSeek's templates take arguments as JSON text
                if any(message.get("tool_calls") for message in messages):
                    return render(list(map(_with_told_arguments, messages)))
            raise Rejected("template", " ".join(str(error).split())) from None

    def _apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[Any] | None,
        template_args: Mapping[str, Any],
        generate: bool,
    ) -> str:
        apply: Any = self.tokenizer.apply_chat_template
        return apply(
            list(messages),
            tools=tools,
            tokenize=False,
            add_generation_prompt=generate,
            **template_args,
        )


_PLAIN = Conversation([], [])


def _has_question(messages: Sequence[Message]) -> bool:
    """Return whether any message is neither an instruction nor an answer."""
    return any(m["role"] not in ("system", "developer", "assistant") for m in messages)


def _left_out(messages: Sequence[Message], text: str) -> set[str]:
    """Return a remark for each role of which a text lacks words, and if it lacks a tool call."""
    found = set()
    for message in messages:
        called = (call["function"]["name"] for call in message.get("tool_calls") or ())
        if any(name not in text for name in called):
            found.add(CALL_LEFT_OUT)
        said = message["content"].strip()
        if message["role"] == "assistant":  # thoughts are looked at apart
            said = _parted(said)[1].removeprefix(_THINK).strip()
        # Templates may trim a content, or write it as JSON.
        if said not in text and any(w not in text for w in re.findall(r"\w+", said)):
            found.add(CONTENT_LEFT_OUT.format(message["role"]))
    return found


def _after_thought(prompt: str, text: str, message: Message) -> tuple[str, tuple[str, ...]]:
    """Return the text of an answer whose prompt writes <think> and whose template leaves it out.

    Templates of the DeepSeek-R1 kind open <think> in the generation prompt, and write answers
    without their thoughts. The model then has to write the thought, </think> and the answer.

    Raises:
        Rejected: "template", if the prompt has another tail that the answer lacks.
    """
    before, opened, tail = prompt.rpartition(_THINK)
    in_prompt = opened and tail.strip() in ("", _END_THINK)  # else a message has it
    if not (in_prompt and text.startswith(before)):
        at = next((n for n, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), 0)
        raise Rejected(
            "template",
            f"the prompt of the answer goes on with {prompt[at : at + 40]!r} where the answered "
            f"conversation has {text[at : at + 40]!r}: give a template whose answer follows its "
            "generation prompt (--chat-template)",
        )
    answer = text[len(before) :]
    if _END_THINK in tail:  # the prompt closes the thought too
        _, closed, rest = answer.partition(_END_THINK)
        if not (answer.startswith(_THINK) and closed):
            return prompt + answer.lstrip("\n"), ()
        return prompt + rest.lstrip("\n"), ()
    if answer.startswith(_THINK):  # only the white space differs
        return prompt + answer[len(_THINK) :].lstrip("\n"), ()
    answer = answer.lstrip("\n")
    thought = _thought(message)
    remarks = () if thought else (THOUGHT_EMPTY,)
    return f"{prompt}{thought}{_NO_THOUGHT}{answer}", remarks


def _thought(message: Message) -> str:
    """Return the thought that a message has in a field of its own or in its content."""
    found = next((message[name] for name in THOUGHTS if message.get(name)), "")
    return str(found or _parted(message["content"])[0]).strip()


def _parted(content: str) -> tuple[str, str]:
    """Return the thought that a content begins with, "" if it has none, and what follows."""
    before, closed, after = content.partition(_END_THINK)
    lead, _, thought = before.rpartition(_THINK)
    # An answer may also speak of the tags.
    return (thought, after) if closed and not lead.strip() else ("", content)


def _with_told_arguments(message: Message) -> Message:
    """Return a message whose tool calls have their arguments as JSON text."""

    def told(call: Any) -> Any:
        function = call.get("function", call)
        text = json.dumps(function.get("arguments"), ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    calls = message.get("tool_calls")
    return {**message, "tool_calls": list(map(told, calls))} if calls else message


@lru_cache(maxsize=64)
def mentioned_names(template: str) -> frozenset[str]:
    """Return the names of variables, fields and keys that a chat template mentions."""
    # `generation` marks what is trained for transformers; plain jinja does not know it.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(plain)
    except jinja2.TemplateError:  # of an extension that is not known here: call all names used
        return frozenset(re.findall(r"\w+", template))
    names = {node.name for node in tree.find_all(nodes.Name)}
    names |= {node.attr for node in tree.find_all(nodes.Getattr)}
    constants = (node.value for node in tree.find_all(nodes.Const))
    return frozenset(names | {value for value in constants if isinstance(value, str)})
