"""Token ids to text while they arrive."""

import codecs
from collections.abc import Sequence

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text that is safe to show at once.

    Only whole characters come out, and nothing that may still turn out to be the start of a stop string. Special tokens
    are not shown. All pieces together are the text `Tokenizer.decode` gives for the same ids, up to the stop string.

    stop: texts that end the answer; the one that is complete first counts, and neither it nor what follows is shown.
    continues: the text goes on from a prompt that was not a chat, so a leading space is kept where decode drops it.
    stopped: the stop string that was found, or None.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), continues: bool = False):
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in stops:
            raise InvalidRequest("a stop string is empty; leave it out instead")
        # Among stops that end at the same character the longest wins: it began first.
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = not continues
        self._held = ""
        self.stopped: str | None = None

    def push(self, token_id: int) -> str:
        """Takes the next token; returns what can be shown now, perhaps nothing."""
        if self.stopped is not None or token_id in self._tokenizer.special_ids:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._at_start and data:
            data = self._tokenizer.strip_prefix(data)
            self._at_start = False
        return self._release(self._decoder.decode(data), final=False)

    def finish(self) -> str:
        """The rest, when no more tokens come: what was held back, unless a stop string cuts it."""
        if self.stopped is not None:
            return ""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, new: str, final: bool) -> str:
        text = self._held + new
        if (cut := self._first_stop(text, len(self._held))) is not None:
            self._held = ""
            return text[:cut]
        keep = 0 if final else self._open_end(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first_stop(self, text: str, already: int) -> int | None:
        """Where the stop string that is complete first begins; the first `already` characters hold none."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            begin = text.find(stop, max(0, already - len(stop) + 1))
            if begin >= 0 and (best is None or begin + len(stop) < best[0]):
                best = (begin + len(stop), begin)
                self.stopped = stop
        return None if best is None else best[1]

    def _open_end(self, text: str) -> int:
        """How many characters at the end could be the start of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
