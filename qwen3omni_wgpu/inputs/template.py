"""Chat messages to one prompt text, by the model's own jinja2 template in the environment transformers gives it."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

Message = Mapping[str, Any]

# For models that know ChatML's two tokens but bring no template.
CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{{ part.text }}{% endfor %}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""

# What running somebody else's template can raise; all of it means that it does not fit these messages.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_PROBE = "a9c1probe"


class ChatTemplate:
    """A model's chat template. `source` is its jinja2 text, or None when the model has none (then `render` says so)."""

    def __init__(self, source: str | None, tokenizer: Tokenizer):
        self.source = source
        self._specials = _special_texts(tokenizer)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> "ChatTemplate":
        """The file's `tokenizer.chat_template`; ChatML when there is none but the vocabulary has ChatML's tokens."""
        source = metadata.get("tokenizer.chat_template")
        if source is not None and not isinstance(source, str):
            raise InvalidModelFile(f"tokenizer.chat_template is {type(source).__name__}, expected a string")
        chatml = tokenizer.token_id("<|im_start|>") is not None and tokenizer.token_id("<|im_end|>") is not None
        if not source:
            source = CHATML if chatml else None
        return cls(source, tokenizer)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **kwargs: Any) -> str:
        """The prompt text for messages like {"role": "user", "content": "hi"}.

        Content is a string or a list of parts ({"type": "text", "text": "..."}, {"type": "image"}, ...); it is brought
        to the form the template takes. kwargs (tools, enable_thinking, ...) become variables of the template.
        InvalidRequest when the messages do not fit, or the model has no template.
        """
        _check(messages)
        ready = [self._adapt(message) for message in messages]
        try:
            return self._run(ready, add_generation_prompt, kwargs)
        except _TEMPLATE_FAILURES as error:
            reason = str(error).strip().splitlines()
            raise InvalidRequest(
                f"the model's chat template cannot take these messages: {reason[0] if reason else type(error).__name__}"
            ) from error

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool, kwargs: Mapping[str, Any]) -> str:
        variables = {"tools": None, "documents": None, **self._specials, **kwargs}
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)

    @cached_property
    def _template(self) -> jinja2.Template:
        if self.source is None:
            raise InvalidRequest("the model has no chat template; give the prompt as it is with --raw")
        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidModelFile(
                f"the model's chat template is not valid jinja2 (line {error.lineno}: {error.message}); "
                "give the prompt as it is with --raw"
            ) from error
        except RecursionError as error:
            raise InvalidModelFile("the model's chat template is nested too deeply; use --raw") from error

    def _adapt(self, message: Message) -> Message:
        """Parts or string, whichever the template understands."""
        content = message.get("content")
        if isinstance(content, str) and not self._takes_strings and self._takes_parts:
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, Sequence) and not isinstance(content, str) and not self._takes_parts:
            return {**message, "content": _joined(content)}
        return message

    @cached_property
    def _takes_strings(self) -> bool:
        return _PROBE in self._try(_PROBE)

    @cached_property
    def _takes_parts(self) -> bool:
        text = self._try([{"type": "text", "text": _PROBE}])
        printed_as_python_or_json = f"'{_PROBE}'" in text or f'"{_PROBE}"' in text
        return _PROBE in text and not printed_as_python_or_json

    def _try(self, content: Any) -> str:
        try:
            return self._run([{"role": "user", "content": content}], True, {})
        except _TEMPLATE_FAILURES:
            return ""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the model's own words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as prompts want it: jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _special_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """bos_token, eos_token, ... for those the model has."""
    vocabulary = tokenizer.vocabulary
    ids = {
        "bos_token": vocabulary.bos_id,
        "eos_token": vocabulary.eos_id,
        "unk_token": vocabulary.unk_id,
        "pad_token": vocabulary.pad_id,
    }
    return {name: tokenizer.token_text(i) for name, i in ids.items() if i is not None}


def _check(messages: Sequence[Message]) -> None:
    if isinstance(messages, (str, Mapping)) or not messages:
        raise InvalidRequest('messages must be a list like [{"role": "user", "content": "hello"}], with one at least')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f'message {i} must be a mapping with a "role" such as "user"')
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
            raise InvalidRequest(f'the "content" of message {i} must be a string or a list of parts with a "type"')


def _joined(parts: Sequence[Mapping[str, Any]]) -> str:
    """The text of parts, for a template that takes only strings."""
    for part in parts:
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"the model's chat template has no place for {part.get('type', 'such a part')!r}; it takes text only"
            )
    return "".join(part["text"] for part in parts)
