"""Word rules against cuts worked out by hand from the published regular expressions."""

import pytest
from tokenizers import pre_tokenizers

from qwen3omni_wgpu.errors import UnsupportedModel
from qwen3omni_wgpu.inputs.pretokenizers import RULES, rule_for
from qwen3omni_wgpu.inputs.vocabulary import byte_alphabet

GPT2 = [
    "Hello| world",
    "I|'ll| don|'t| we|'ve",
    "I|'|LL",  # GPT-2's contractions are lower case only
    "abc|123| 45| 6789",
    "a| | b",
    "a|   ",
    "a|\n|\n|b",
    "a| \n| b",
    "x|!!!| ?",
    "日本語|123",
    "中文|，|标点|。",
    "hi| 🙂🙂",
    "e|\u0301|a",
    "\t|abc",
    "½|x",
]
SINGLE_DIGITS = ["abc| |1|2|3", "1|2|a", "x|½", "I|'ll| go", "a| | b", "v|1|.|0", "日本語|1", "٣|٤|٥"]
LLAMA3 = [
    "123|45",
    " |12",
    "I|'LL| go",
    "don|'t|'t",
    "(abc|)",
    "a|\n\n|b",
    "hi|!\n\n|x",
    "hi| ?!\r\n|x",
    "a| | b",
    "a| \n| b",
    "a|   ",
    "\tabc",
    "e|\u0301a",
    "🙂abc| 🙂🙂",
    "日本語|123|４５",
    "नमस|्त|े",
    "snake|_case",
]
QWEN2 = [
    "1|2|3|4|5",
    " |1|2",
    "I|'LL| go",
    "(abc|)",
    "a|\n\n|b",
    "hi|!\n\n|x",
    "a| | b",
    "a|   ",
    "e|\u0301a",
    "नमस|्त|े",
]
QWEN35 = ["1|2|3", "e\u0301a", "नमस्ते| दुनिया", "I|'LL| go", "a|\n\n|b", "!\n|\u0301a", "x|!?|a", "x|!a"]
TEKKEN = ["Hello|World", "camel|Case", "HTMLParser", "ABC| DEF", "don|'t", "1|2|3", "a|//\n/", "e\u0301|A|\n|b"]
GPT4O = ["don't| I'LL", "Camel|Case's", "123|4", "a|//\n/", "HTMLParser", "日本語|123"]
FALCON = ["abc|,| |123|456", "12|!?|x", "I|'|ll", "a| | b", "123|4"]
# The third rule takes ASCII letters and punctuation, so words with other letters fall apart.
DEEPSEEK_LLM = [
    "a|\n|b",
    "hi| there|,| |1|2",
    "中文|abc",
    "日本語テキスト",
    "ab|  ",
    "K|ö|ln| ист",
    "x| (|y|)",
    "中|，|。|文|、",
    "中|。|\u3000|文",
]
DEEPSEEK_CODER = ["x| = |1|2|;", "a|\n|\n|b", "中文|，|abc", "foo|(|bar|)", "a| b", "Köln| ист"]
DEEPSEEK_V3 = ["123|45", "中文|abc", "a|_b", "hi|,| you", "a|\n\n|b", "e\u0301a", "x| (|y|)\n|z"]
DEFAULT = ["a|,| |123|4", "hi| there|!!", "a| | b", "12|+|34"]

TABLE = {
    "gpt-2": GPT2,
    "phi-2": GPT2,
    "mpt": GPT2,
    "olmo": GPT2,
    "smollm": SINGLE_DIGITS,
    "starcoder": SINGLE_DIGITS,
    "refact": SINGLE_DIGITS,
    "command-r": SINGLE_DIGITS,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon3": LLAMA3,
    "smaug-bpe": LLAMA3,
    "dbrx": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "qwen35": QWEN35,
    "tekken": TEKKEN,
    "gpt-4o": GPT4O,
    "llama4": GPT4O,
    "falcon": FALCON,
    "deepseek-llm": DEEPSEEK_LLM,
    "deepseek-coder": DEEPSEEK_CODER,
    "deepseek-v3": DEEPSEEK_V3,
    "default": DEFAULT,
}


def words(name: str, text: str) -> list[str]:
    byte_of = byte_alphabet()
    pieces = RULES[name].build().pre_tokenize_str(text)
    return [bytes(byte_of[c] for c in piece).decode("utf-8", "replace") for piece, _ in pieces]


@pytest.mark.parametrize(("name", "cut"), [(name, cut) for name, cuts in TABLE.items() for cut in cuts])
def test_cuts(name: str, cut: str) -> None:
    assert words(name, cut.replace("|", "")) == cut.split("|")


def test_every_rule_has_cuts() -> None:
    assert set(TABLE) == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_lost(name: str) -> None:
    text = "A 1\r\n\r\n  b'S ٣²½ é\u0301 ⅷ\t\u00a0🙂\u200d🙂 中。，\u3000 ~`$+<=>^| µм \n\n "
    byte_of = byte_alphabet()
    pieces = RULES[name].build().pre_tokenize_str(text)
    assert bytes(byte_of[c] for piece, _ in pieces for c in piece).decode() == text


def test_byte_alphabet() -> None:
    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["Ġ"] == 0x20
    assert alphabet["Ċ"] == 0x0A
    assert alphabet["a"] == 0x61


def test_normalisation() -> None:
    assert {name for name, rule in RULES.items() if rule.nfc} == {"qwen2", "qwen35", "command-r", "mpt", "olmo"}
    normalizer = rule_for("qwen2").normalizer()
    assert normalizer is not None
    assert normalizer.normalize_str("e\u0301") == "é"
    assert rule_for("smollm").normalizer() is None


def test_unknown_rule_lists_the_known() -> None:
    with pytest.raises(UnsupportedModel, match=r"'superbpe'.*llama-bpe.*qwen2.*--tokenizer-file"):
        rule_for("superbpe")
