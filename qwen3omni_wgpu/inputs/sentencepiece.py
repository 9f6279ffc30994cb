"""SentencePiece BPE (`tokenizer.ggml.model` = llama) expressed as the ranked merges that `tokenizers` works with."""

from collections.abc import Mapping, Sequence

from qwen3omni_wgpu.inputs.vocabulary import Kind

_MERGEABLE = frozenset((Kind.NORMAL, Kind.UNUSED))


def ranked_merges(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, best score of the result first.

    SentencePiece always joins the neighbours whose result has the highest score. Ranked merges do the same; where one
    result can be had from several pairs, the order below is the one Hugging Face's converter uses.
    """
    score_of: Mapping[str, float] = {t: s for t, k, s in zip(tokens, kinds, scores, strict=True) if k in _MERGEABLE}
    order = {text: i for i, text in enumerate(tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for text, score in score_of.items():
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        merges += [
            (-score, order[left], order[right], left, right)
            for left, right in pairs
            if left in score_of and right in score_of
        ]
    merges.sort()
    return [(left, right) for *_, left, right in merges]
