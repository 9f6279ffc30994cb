"""Write tests/data/tokenizer_*.json: token ids and chat prompts as transformers makes them.

    pip install -e '.[oracle]'
    python tools/make_tokenizer_goldens.py --model SmolLM2-135M-Instruct.Q4_1.gguf

tokenizer_smollm2.json  texts, ids, decoded texts and chat prompts for the real SmolLM2 vocabulary.
tokenizer_small.json    the same for small vocabularies trained here, put into GGUF metadata: one for each tokenizer
                        class of transformers that has its own word rule.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

DATA = Path(__file__).parents[1] / "tests" / "data"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

TEXTS = [
    "Hello, world!",
    " leading and  double   spaces   ",
    "It's what they've said; we'll see. I'M DON'T you'D 'tis",
    "1 12 123 1234 12345 3.14159 1,000,000 ½ Ⅷ ٣٤٥ x² 2nd",
    "one\ntwo\n\nthree\r\nfour\r\n\r\n\tfive \n six\n",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case HTMLParser",
    'for (int i = 0; i < 10; ++i) { printf("%d\\n", a[i]); }  // done!!!',
    "Grüße aus Köln, être ou ne pas être, señor, Łódź, İstanbul",
    "Cafe\u0301 nai\u0308ve re\u0301sume\u0301 e\u0301",
    "日本語のテキストと中文字符，还有标点。한국어 문장입니다！",
    "Быстрая коричневая лиса, الثعلب البني السريع, שועל חום, हिन्दी में नमस्ते, ภาษาไทย",
    "🙂 🦙.cpp 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️",
    "tabs\t\tand\u00a0no-break\u2003em space\u3000wide\u200bzero",
    "''' \"\"\" --- ... ??? !!! ### @user #tag $5 50% a/b//c C:\\dir",
    "x" * 60 + " " * 33 + "=" * 21,
    "",
    " ",
    "\n",
    "ſ 'ſ K Å ﬁ Ａ１ \u0000 \u0007 \ufeff \U0010ffff",
]
SPECIAL_TEXTS = [
    "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|><|im_end|> b <|endoftext|>",
    "<|im_start <|im_end|",
]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is gravity?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi  \n"}],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Drei & <drei> \"drei\" 'drei'"},
    ],
]
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and they've said it's what we'll see again.",
    "for (int i = 0; i < 100; ++i) { total += values[i]; }  // sum\n\n\treturn total;\n",
    "In 1999 there were 12345 people; in 2024 there are 67890 of them. The 100th has 2000 more.",
    "Die Grüße kamen aus Köln, señor; être ou ne pas être; café naïve résumé Łódź.",
    "日本語のテキストと中文字符，还有标点。한국어 문장입니다！ Быстрая коричневая лиса. हिन्दी में नमस्ते",
    "user assistant system hello world hi there hello hello world world. 🙂🙂 🦙🦙 one two three four",
] * 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tokenizer goldens of the tests.")
    parser.add_argument("--model", type=Path, required=True, help="the SmolLM2-135M-Instruct GGUF")
    model = parser.parse_args().model
    write("smollm2", smollm2(model))
    write("small", {"tokenizers": [qwen2(), qwen35(), gpt2(), llama()]})


def write(name: str, content: dict[str, Any]) -> None:
    path = DATA / f"tokenizer_{name}.json"
    note = f"made by tools/make_tokenizer_goldens.py with transformers {transformers.__version__}"
    DATA.mkdir(exist_ok=True)
    path.write_text(json.dumps({"note": note, **content}, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    print(path, path.stat().st_size, "bytes")


def smollm2(path: Path) -> dict[str, Any]:
    """transformers reads vocabulary and template; the word rule is that of the published SmolLM2 tokenizer.json."""
    reference = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    chats = [
        {
            "messages": chat,
            "prompt": reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
            "ids": reference.apply_chat_template(chat, add_generation_prompt=True)["input_ids"],
        }
        for chat in CHATS
    ]
    return {"cases": cases(reference, TEXTS + SPECIAL_TEXTS), "chats": chats}


def cases(reference: PreTrainedTokenizerBase, texts: list[str]) -> list[dict[str, Any]]:
    """Ids of each text, and what these ids decode to with special tokens left out."""
    found = []
    for text in texts:
        ids = reference.encode(text, add_special_tokens=False)
        decoded = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found.append({"text": text, "ids": ids, "decoded": decoded})
    return found


def qwen2() -> dict[str, Any]:
    return byte_level("qwen2", Qwen2Tokenizer)


def qwen35() -> dict[str, Any]:
    return byte_level("qwen35", Qwen3_5Tokenizer)


def gpt2() -> dict[str, Any]:
    return byte_level("gpt-2", GPT2Tokenizer)


def byte_level(pre: str, kind: Any) -> dict[str, Any]:
    """Trains with the word rule of the transformers class itself."""
    backend = kind().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = backend.pre_tokenizer
    if backend.normalizer is not None:
        trained.normalizer = backend.normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=560, initial_alphabet=alphabet, show_progress=False)
    )
    vocab, merges = parts(trained)
    vocab |= {text: len(vocab) + i for i, text in enumerate(SPECIALS)}
    reference = kind(vocab=vocab, merges=merges, eos_token=SPECIALS[0], additional_special_tokens=SPECIALS[1:])
    tokens = sorted(vocab, key=vocab.__getitem__)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if text in SPECIALS else 1 for text in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.eos_token_id": vocab["<|im_end|>"],
        "tokenizer.ggml.bos_token_id": vocab["<|endoftext|>"],
    }
    return {"metadata": metadata, "cases": cases(reference, TEXTS + SPECIAL_TEXTS)}


def llama() -> dict[str, Any]:
    """SentencePiece: the file holds scores, transformers gets the trained merges themselves."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learned, merges = parts(trained)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = first + sorted(learned, key=learned.__getitem__)
    # As SentencePiece numbers them: the earlier a piece was learned, the higher its score.
    scores = [0.0] * len(first) + [-float(i) for i in range(len(learned))]
    vocab = {text: i for i, text in enumerate(tokens)}
    reference = LlamaTokenizer(vocab=vocab, merges=merges, legacy=True)
    # The form of the published Llama 2 tokenizer.json.
    reference.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    reference.backend_tokenizer.pre_tokenizer = None
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(learned),
    }
    texts = [*TEXTS, "<s>Hello</s><s>world", "a</s> b"]
    return {"metadata": metadata, "cases": cases(reference, texts)}


def parts(trained: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


if __name__ == "__main__":
    main()
