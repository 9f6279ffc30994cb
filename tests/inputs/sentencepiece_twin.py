"""SentencePiece's merging, plainly: join the neighbours whose result has the best score, the leftmost of equals."""


def encode(text: str, score_of: dict[str, float]) -> list[str]:
    """Pieces of a text whose spaces are already U+2581; characters without a piece stay single."""
    pieces = list(text)
    while True:
        joined = [(pieces[i] + pieces[i + 1], i) for i in range(len(pieces) - 1)]
        known = [(-score_of[both], i) for both, i in joined if both in score_of]
        if not known:
            return pieces
        _, at = min(known)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
