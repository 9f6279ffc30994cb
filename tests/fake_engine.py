"""An engine that answers from a script, for tests about texts, turns and commands rather than numbers."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np

from qwen3omni_wgpu.inputs.prompt import Prompt


class FakeEngine:
    """Keeps a KV cache of token ids as the real engine does, and answers with `script`, one list of ids an answer.

    `log` records what was asked: ("reset", keep), ("prefill", n) and ("generate", tokens that had to be run).
    """

    def __init__(self, script: Sequence[Sequence[int]] = (), ctx_size: int = 512, vocabulary: int = 320):
        self.script = [list(ids) for ids in script]
        self.ctx_size = ctx_size
        self.tokens: list[int] = []
        self.log: list[tuple[str, int]] = []
        self.timings = SimpleNamespace(prompt_n=0, prompt_s=0.0, predicted_n=0, predicted_s=0.0)
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=vocabulary), activations="f32")
        self.buckets = (1, 8, 128)
        self.kv_type = "f16"
        self.device = SimpleNamespace(wait=lambda: None)
        self.closed_early = False

    def reset(self, keep: int = 0) -> None:
        self.log.append(("reset", keep))
        del self.tokens[keep:]

    def prefill(self, ids, progress=None) -> None:
        self.log.append(("prefill", len(ids)))
        self.tokens += ids

    def cached(self, prompt) -> int:
        ids = prompt.ids[:-1]
        pairs = zip(self.tokens, ids, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(ids)))

    def begin(self, prompt) -> int:
        self.reset(keep=self.cached(prompt))
        return len(self.tokens)

    def feed(self, prompt, stop) -> None:
        self.prefill(prompt.ids[len(self.tokens) : stop])

    def logits(self, prompt) -> np.ndarray:
        """Bigram logits that depend on the token alone, so every test can say what they are."""
        steps = np.arange(self.model.config.vocab_size)
        return np.stack([np.sin(steps * (token + 1)) * 3 for token in _prompt(prompt).ids]).astype(np.float32)

    def generate(self, prompt, config, eos_ids) -> Iterator[SimpleNamespace]:
        prompt = _prompt(prompt)
        ids = prompt.ids
        del self.tokens[self.cached(prompt) :]
        run = ids[len(self.tokens) :]
        self.log.append(("generate", len(run)))
        self.tokens += run
        self.timings = SimpleNamespace(prompt_n=len(run), prompt_s=0.5, predicted_n=0, predicted_s=0.0)
        limit = config.max_tokens if config.max_tokens is not None else self.ctx_size
        answer = self.script.pop(0)[:limit]
        try:
            for index, token in enumerate(answer):
                finish = "stop" if token in eos_ids else "length" if index + 1 == len(answer) else None
                self.timings.predicted_n, self.timings.predicted_s = index, 0.25 * index
                top = [(token, -0.5), (token + 1, -1.5)][: config.logprobs]
                logprob = -0.5 if config.logprobs else None
                yield SimpleNamespace(id=token, logprob=logprob, top=top, finish=finish)
                self.tokens.append(token)
                if finish:
                    return
        except GeneratorExit:
            self.closed_early = True
            raise


def _prompt(prompt: Sequence[int] | Prompt) -> Prompt:
    return prompt if isinstance(prompt, Prompt) else Prompt.text(prompt)
