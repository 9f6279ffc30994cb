"""How byte-level BPE vocabularies cut text into words before merging, by the name in `tokenizer.ggml.pre`.

A wrong rule would give wrong token ids without any visible error, so names that are not here are refused. The rules are
those of the models' published tokenizer.json; that phi-2, olmo, falcon3, llama-v3, dbrx, smaug-bpe, llama4 and
deepseek-r1-qwen share the rule of a relative, and what `default` means, is taken from llama.cpp, which names the rules.
"""

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from qwen3omni_wgpu.errors import UnsupportedModel

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS}|{_BREAKS}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SYMBOLS}|{_BREAKS}"
# Qwen 3.5 keeps combining marks with their letters.
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BREAKS}"
)

# Words with at most one change from upper to lower case, as in GPT-4o and Mistral's tekken.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}|{_BREAKS}"
_GPT4O = (
    rf"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}|{_SLASHED}|{_BREAKS}"
)

# DeepSeek's first models list the cased letters of their day instead of naming a Unicode class.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-\u3002]+",  # as published: `:-~` also takes the ASCII letters
    r"\s+$",
    _EAST_ASIAN,
    r"\p{N}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _BREAKS,
)
# llama.cpp's rule for files that name none: punctuation runs, GPT-2 words, digits in threes.
_DEFAULT = (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


@dataclass(frozen=True)
class PreTokenizerRule:
    """`splits`: regexes applied one after the other, each cutting every piece into matches and what lies between.

    `nfc`: the text is brought to Unicode NFC first. `ignore_merges`: a word that is itself a token is taken whole.
    `add_bos`: what `tokenizer.ggml.add_bos_token` means when the file does not say.
    """

    splits: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The rule as a pre-tokenizer that ends in GPT-2's byte alphabet."""
        steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Split(Regex(s), "isolated") for s in self.splits]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> normalizers.Normalizer | None:
        """NFC, or None where the text is taken as it is."""
        return normalizers.NFC() if self.nfc else None


class _FalconRule(PreTokenizerRule):
    """Falcon cuts digits after the mapping to the byte alphabet, where some bytes of other scripts look like digits."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )


_SINGLE_DIGITS = PreTokenizerRule((r"\p{N}", _GPT2))
_LLAMA3_RULE = PreTokenizerRule((_LLAMA3,), ignore_merges=True, add_bos=True)
_GPT2_RULE = PreTokenizerRule((_GPT2,))
_GPT2_NFC = PreTokenizerRule((_GPT2,), nfc=True)

RULES: dict[str, PreTokenizerRule] = {
    "default": PreTokenizerRule(_DEFAULT),
    "gpt-2": _GPT2_RULE,
    "phi-2": _GPT2_RULE,
    "mpt": _GPT2_NFC,
    "olmo": _GPT2_NFC,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": PreTokenizerRule((r"\p{N}", _GPT2), nfc=True),
    "falcon": _FalconRule(()),
    "llama-bpe": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "falcon3": _LLAMA3_RULE,
    "smaug-bpe": PreTokenizerRule((_LLAMA3,)),
    "dbrx": PreTokenizerRule((_LLAMA3,)),
    "qwen2": PreTokenizerRule((_QWEN2,), nfc=True),
    "deepseek-r1-qwen": PreTokenizerRule((_QWEN2,)),
    "qwen35": PreTokenizerRule((_QWEN35,), nfc=True),
    "deepseek-llm": PreTokenizerRule(_DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizerRule(_DEEPSEEK_CODER),
    "deepseek-v3": PreTokenizerRule(_DEEPSEEK_V3),
    "tekken": PreTokenizerRule((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizerRule((_GPT4O,)),
    "llama4": PreTokenizerRule((_GPT4O,)),
}


def rule_for(name: str) -> PreTokenizerRule:
    """The rule of that name; UnsupportedModel, listing the known names, when there is none."""
    rule = RULES.get(name)
    if rule is None:
        raise UnsupportedModel(
            f"tokenizer.ggml.pre is {name[:80]!r}, a pre-tokenizer this version does not know; known are "
            f"{', '.join(sorted(RULES))}. Give the model's own tokenizer.json with --tokenizer-file"
        )
    return rule
