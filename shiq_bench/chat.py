"""Messages to token ids and back, through one tokenizer and its chat template.

A dialogue is a stream of ids: a prompt, an answer exactly as it was sampled, the ids between that
answer and the next one, and so on. What was sampled is never turned into text and tokenised
again, so a transcript is what the model saw. The ids between two answers come from rendering the
template around a placeholder answer and keeping the text behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from shiq_bench.records import UserError

#: Template of our own tiny models: ``<|role|>content<|end|>``, answers begin behind ``<|assistant|>``.
TINY_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] not in ('system', 'user', 'assistant', 'tool') %}"
    "{{ raise_exception('unknown role ' + m['role']) }}"
    "{% endif %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

#: Template given to a tokenizer that has none: a heading a turn, in plain text, and the
#: end-of-sequence token behind every answer.
PLAIN_TEMPLATE = (
    "{{ bos_token if plain_bos else '' }}"
    "{% for m in messages %}"
    "{{ '### ' + m['role'] + '\n' + m['content'] + (eos_token if m['role'] == 'assistant' else '') + '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)

# Letters and digits alone: nothing that a template trims, splits or escapes.
_ANSWER = "AnswerPlaceholder7f3c"
_OTHER = "OtherPlaceholder9b1e"

# Some templates print today's date. Prompts, and with them every cache and run, would change overnight.
_TODAY = datetime(2024, 7, 26)


class ChatCodec:
    """The codec of any tokenizer with a chat template (and of one without: :data:`PLAIN_TEMPLATE`).

    Roles are ``system``, ``user``, ``assistant`` and ``tool``. A template that refuses tool or
    system messages, or silently drops them, gets them as user messages; one that refuses two user
    messages in a row gets them joined by an empty line.

    Content is rendered as the template would render it: a special token spelt out in a message
    becomes that token.

    Attributes:
        end_ids: ids that end an answer; the first is the one :meth:`answer` appends.
        plain_template: the tokenizer had no template and was given the plain one.
        tiny: the model behind it is one of our own tiny ones.
    """

    end_ids: tuple[int, ...]

    def __init__(
        self,
        tokenizer: Any,
        *,
        tiny: bool = False,
        end_ids: Iterable[int] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Learn from a few renderings what the template accepts and how it ends a turn.

        Args:
            tokenizer: a transformers tokenizer; one without a template is given the plain one.
            tiny: see the attribute.
            end_ids: further ids that end an answer, such as those of a generation config.
            template_options: variables for the template, such as ``enable_thinking``.

        Raises:
            UserError: the template cannot render a question and an answer, or nothing ends a turn.
        """
        self.tokenizer = tokenizer
        self.tiny = tiny
        self.plain_template = tokenizer.chat_template is None
        self._options = {"strftime_now": _TODAY.strftime, **(template_options or {})}
        if self.plain_template:
            if tokenizer.eos_token is None:
                raise UserError(
                    "the tokenizer has neither a chat template nor an end-of-sequence token: add one of them"
                )
            tokenizer.chat_template = PLAIN_TEMPLATE
        if tokenizer.chat_template == PLAIN_TEMPLATE:
            begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
            self._options["plain_bos"] = begins and tokenizer.bos_token is not None

        question = {"role": "user", "content": "hello"}
        answer = {"role": "assistant", "content": _ANSWER}
        self._around = [question, answer]
        self._keeps_tool = self._shows([question, answer, {"role": "tool", "content": _OTHER}])
        self._keeps_system = self._shows([{"role": "system", "content": _OTHER}, question])
        self._keeps_neighbours = self._shows([question, {"role": "user", "content": _OTHER}])

        # An answer is closed as the template closes the last one of a dialogue. Inside a dialogue
        # it may be closed by another token (one template writes "return" last and "end" before) or
        # by none; a token that opens a turn must not be taken for one that closes it.
        self._specials = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        last = self._first_special(self._behind([], generation=False))
        after = self._behind([{"role": "user", "content": _OTHER}])
        inside = self._first_special(after)
        closes_users = self._first_special(after.partition(_OTHER)[2])
        if inside is not None and inside != last:
            opening = self._encode(self._generation_prompt())
            if last is None or inside in opening or inside != closes_users:
                inside = None
        self._inside = inside
        end = last if last is not None else tokenizer.eos_token_id
        if end is None:
            raise UserError(
                "nothing ends an answer: the chat template shows no end-of-turn token and eos_token is not set"
            )
        self.end_ids = tuple(dict.fromkeys(i for i in (end, tokenizer.eos_token_id, *end_ids) if i is not None))

    # --- the four calls of a codec

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of the messages and of the heading behind which an answer begins, one BOS at most.

        Raises:
            UserError: the template refuses the messages.
        """
        ids = self._encode(self._render(messages))
        bos = self.tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def reply(self, messages: Sequence[Mapping[str, str]], ended: bool) -> list[int]:
        """Ids between an answer and the next one.

        The end-of-turn token comes first unless the policy emitted it (``ended``); here it is
        forced, and no action.

        Raises:
            UserError: the template refuses the messages.
        """
        ids = self._encode(self._behind(messages))
        at = self._special_at(ids)
        if at is not None and ids[at] == self._inside:
            ids = ids[at + 1 :]
        forced = self.end_ids[0] if self._inside is None else self._inside
        return ids if ended else [forced, *ids]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer and its end-of-turn token."""
        return [*self._encode(text), self.end_ids[0]]

    def text(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without the token that ended it and without special tokens."""
        ids = list(token_ids)
        # The end-of-turn token of some vocabularies is not marked special: decoding would show it.
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    # --- rendering

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _apply(self, messages: Sequence[Mapping[str, str]], generation: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation, **self._options
        )
        return text

    def _shows(self, messages: Sequence[Mapping[str, str]]) -> bool:
        """Whether the template takes the messages and prints the second placeholder."""
        try:
            return _OTHER in self._apply(messages, generation=True)
        except Exception:  # a template is code that came with a model, and raises what it likes
            return False

    def _render(self, messages: Sequence[Mapping[str, str]], generation: bool = True) -> str:
        try:
            return self._apply(self._acceptable(messages), generation)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the chat template refuses roles {', '.join(m['role'] for m in messages)}: {reason}"
            ) from error

    def _acceptable(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        out: list[dict[str, str]] = []
        for message in messages:
            role = message["role"]
            if (role == "tool" and not self._keeps_tool) or (role == "system" and not self._keeps_system):
                role = "user"
            if role == "user" and out and out[-1]["role"] == "user" and not self._keeps_neighbours:
                out[-1]["content"] += "\n\n" + message["content"]
            else:
                out.append({**message, "role": role})
        return out

    def _behind(self, messages: Sequence[Mapping[str, str]], generation: bool = True) -> str:
        """What the template prints behind an answer that ``messages`` follow."""
        _, found, suffix = self._render([*self._around, *messages], generation).partition(_ANSWER)
        if not found:
            raise UserError("the chat template drops the assistant's answers: give the model another template")
        return suffix

    def _generation_prompt(self) -> str:
        """What the template prints to open an answer."""
        plain, opened = self._render(self._around[:1], generation=False), self._render(self._around[:1])
        return opened.removeprefix(plain)

    def _special_at(self, ids: Sequence[int]) -> int | None:
        """Index of a special token that only white space precedes."""
        for n, i in enumerate(ids):
            if i in self._specials:
                return n
            if self.tokenizer.decode([i]).strip():
                return None
        return None

    def _first_special(self, text: str) -> int | None:
        ids = self._encode(text)
        at = self._special_at(ids)
        return None if at is None else ids[at]
