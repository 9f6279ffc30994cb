"""Chat prompts: transformers' goldens, what templates may use, what they may not, and errors people can act on."""

import datetime
from typing import Any

import pytest
from vocabularies import goldens, plain

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.inputs.template import ChatTemplate
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

USER = [{"role": "user", "content": "hi"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
LISTS_ONLY = """
{%- for m in messages %}{% for p in m.content -%}
{% if p.type == 'text' %}[{{ p.text }}]{% else %}IMG{% endif %}{% endfor %}{% endfor -%}
"""


def template(source: str | None, **fields: Any) -> ChatTemplate:
    metadata = plain(**fields)
    if source is not None:
        metadata["tokenizer.chat_template"] = source
    return ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))


@pytest.mark.model
def test_smollm2_prompts_are_those_of_transformers(smollm2_path: Any) -> None:
    metadata = read_gguf(smollm2_path).metadata
    tokenizer = Tokenizer.from_gguf(metadata)
    chats = goldens("smollm2")["chats"]
    assert len(chats) == 3
    for chat in chats:
        prompt = ChatTemplate.from_gguf(metadata, tokenizer).render(chat["messages"])
        assert prompt == chat["prompt"]
        assert tokenizer.encode(prompt) == chat["ids"]


def test_chatml_where_the_file_has_no_template() -> None:
    chatml = template(None)
    messages = [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "  hi "},
        {"role": "assistant", "content": "yes"},
    ]
    assert chatml.render(messages) == (
        "<|im_start|>system\nBe brief.\n<|im_end|>\n<|im_start|>user\n  hi <|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chatml.render(USER, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"
    assert chatml.render(PARTS, add_generation_prompt=False) == "<|im_start|>user\nab<|im_end|>\n"


def test_no_template_at_all() -> None:
    chat = template(None, specials=["<|endoftext|>"])
    assert chat.source is None
    with pytest.raises(InvalidRequest, match=r"no chat template.*--raw"):
        chat.render(USER)


def test_blocks_are_trimmed() -> None:
    chat = template(
        "  {% for m in messages %}\n    {% if true %}\nx{{ m.content }}\n    {% endif %}\n{% endfor %}\nend"
    )
    assert chat.render(USER) == "xhi\nend"


def test_loop_controls() -> None:
    source = (
        "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
        "{% if loop.index == 4 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    )
    assert template(source).render([{"role": "user", "content": str(i)} for i in range(9)]) == "02"


def test_generation_blocks() -> None:
    source = "{% for m in messages %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endfor %}"
    assert template(source).render(USER) == "<hi>"


def test_tojson_keeps_characters() -> None:
    source = "{{ x | tojson }} {{ x | tojson(indent=1) }} {{ y | tojson(separators=(',', ':'), sort_keys=true) }}"
    assert template(source).render(USER, x=["é<&'"], y={"b": 1, "a": 2}) == '["é<&\'"] [\n "é<&\'"\n] {"a":2,"b":1}'


def test_date() -> None:
    assert template("{{ strftime_now('%Y') }}").render(USER) == str(datetime.datetime.now().year)


def test_special_tokens_and_variables() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}|{{ tools is none }}"
    source += "{{ documents is none }}|{{ enable_thinking }}"
    chat = template(source, bos_token_id=256, eos_token_id=258, padding_token_id=257)
    assert chat.render(USER, enable_thinking=False) == "<|endoftext|><|im_end|><|im_start|>|TrueTrue|False"
    assert chat.render(USER, tools=[1]).endswith("|FalseTrue|")


def test_raise_exception_is_the_users_error() -> None:
    with pytest.raises(InvalidRequest, match="cannot take these messages: roles must alternate"):
        template("{{ raise_exception('roles must alternate\nsecond line') }}").render(USER)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[5].content }}",
        "{{ nothing.there }}",
        "{{ 1 / 0 }}",
        "{{ messages + 3 }}",
        "{{ 'x' | tojson(indent='y', separators=3) }}",
        "{% include 'other' %}",
        "{{ 'abc'.index('z') }}",
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_templates_that_fail_or_reach_too_far(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template") as caught:
        template(source).render(USER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["{% if %}", "{{ x ", "{% nosuchtag %}", "{{ messages | nosuchfilter }}"])
def test_templates_that_are_no_jinja(source: str) -> None:
    chat = template(source)  # a broken template does not keep --raw from working
    with pytest.raises(InvalidModelFile, match=r"not valid jinja2.*--raw"):
        chat.render(USER)


def test_template_of_another_type() -> None:
    with pytest.raises(InvalidModelFile, match="expected a string"):
        template(5)  # pyright: ignore[reportArgumentType]


def test_parts_become_a_string_where_the_template_wants_one() -> None:
    source = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    assert template(source).render(PARTS) == "user: ab"
    printed = "{% for m in messages %}{{ m.content }}{% endfor %}"  # would print Python's form of the list
    assert template(printed).render(PARTS) == "ab"
    as_json = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    assert template(as_json).render(PARTS) == '"ab"'


def test_strings_become_parts_where_the_template_wants_them() -> None:
    assert template(LISTS_ONLY).render(USER) == "[hi]"
    assert template(LISTS_ONLY).render(PARTS) == "[a][b]"
    mixed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "t"}]}]
    assert template(LISTS_ONLY).render(mixed) == "IMG[t]"


def test_an_image_in_a_text_template() -> None:
    mixed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "t"}]}]
    with pytest.raises(InvalidRequest, match="no place for 'image'"):
        template("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}").render(mixed)


def test_other_fields_reach_the_template() -> None:
    source = "{% for m in messages %}{{ m.content is none }}{{ m.tool_calls[0].name }}{% endfor %}"
    assert template(source).render([{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]) == "Truef"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "one at least"),
        ("hi", "must be a list"),
        ({"role": "user"}, "must be a list"),
        ([5], "message 0 must be a mapping"),
        ([{"content": "x"}], 'with a "role"'),
        ([*USER, {"role": "user", "content": 5}], '"content" of message 1'),
        ([{"role": "user", "content": ["x"]}], '"content" of message 0'),
    ],
)
def test_messages_of_the_wrong_form(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        template(None).render(messages)


def test_the_callers_messages_stay_as_they_are() -> None:
    template(LISTS_ONLY).render(USER)
    assert USER == [{"role": "user", "content": "hi"}]
