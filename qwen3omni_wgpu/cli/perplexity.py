"""`qwen3omni perplexity`: how well a model predicts a text, and how far its predictions are from stored ones.

The text is cut into chunks of --ctx-size tokens; the second half of each is scored, as llama.cpp does, so that every
scored token has at least half a chunk before it. Stored logits are one .npy file of records, one a scored position:
chunk (int32), position (int32), token (int32, the one that follows) and logits (float32 [V]).
"""

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from qwen3omni_wgpu.cli.session import Interrupt, note, opened, print_json, read_text
from qwen3omni_wgpu.cli.verbs import Common, verb
from qwen3omni_wgpu.errors import InvalidRequest

if TYPE_CHECKING:
    from qwen3omni_wgpu.omni import Omni

DEFAULT_CHUNK = 512  # llama.cpp's


@verb("perplexity")
def perplexity(
    common: Common,
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="the text; - = stdin")],
    chunks: Annotated[int, typer.Option("--chunks", metavar="N", help="stop after N chunks; 0 = all")] = 0,
    save_logits: Annotated[
        Path | None, typer.Option("--save-logits", metavar="FILE.npy", help="store the logits to compare with later")
    ] = None,
    kl_base: Annotated[
        Path | None, typer.Option("--kl-base", metavar="FILE.npy", help="compare with stored logits of the same text")
    ] = None,
) -> int:
    """Perplexity of a text with its error, and KL divergence and top-1 agreement against stored logits."""
    text = read_text(file, "the text")
    common = replace(common, ctx_size=common.ctx_size or DEFAULT_CHUNK)
    base = _load_base(kl_base) if kl_base else None
    with opened(common) as omni:
        pieces = _chunks(omni, text, chunks)
        sink = _Sink(save_logits, pieces, omni) if save_logits else None
        with Interrupt() as interrupt:
            score = _run(omni, pieces, base, sink, common, interrupt)
        if sink is not None:
            sink.flush()
        if score is None:
            return 130
        report = score.report() | {"chunks": len(pieces), "ctx_size": common.ctx_size, "device": omni.device.info.name}
    if common.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _chunks(omni: "Omni", text: str, limit: int) -> list[list[int]]:
    """The text's tokens in pieces of the context size; the last one may be shorter, but not below 4."""
    ids, size = omni.tokenize(text, raw=True), omni.ctx_size
    if len(ids) < 4 or size < 4:
        raise InvalidRequest(f"the text has {len(ids)} tokens and a chunk {size}; at least 4 are needed")
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    if len(pieces) > 1 and len(pieces[-1]) < size:
        pieces.pop()  # tokens with less context than the others would make the figure worse
    return pieces[:limit] if limit > 0 else pieces


def _scored(piece: list[int]) -> range:
    """Positions whose next token is scored: the second half."""
    return range(len(piece) // 2, len(piece) - 1)


def _run(
    omni: "Omni", pieces: list[list[int]], base: Any, sink: "_Sink | None", common: Common, interrupt: Interrupt
) -> "_Score | None":
    score = _Score()
    row = 0
    for index, piece in enumerate(pieces):
        logits = omni.logits(piece)
        for position in _scored(piece):
            token = piece[position + 1]
            expected = _base_row(base, row, index, position, token, logits.shape[1]) if base is not None else None
            score.add(logits[position], token, expected)
            if sink is not None:
                sink.put(row, index, position, token, logits[position])
            row += 1
        if interrupt.pressed:
            return None
        if sys.stderr.isatty() or common.verbose:
            note(f"[{index + 1}/{len(pieces)}] {score.perplexity:.4f}", common)
    if base is not None and row != len(base):
        note(f"the stored logits have {len(base)} positions, of which {row} were compared", common)
    return score


@dataclass
class _Score:
    """Collects negative log-likelihoods, and what differs from stored logits."""

    nll: list[float] = field(default_factory=list)
    base_nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    same_top: int = 0

    def add(self, logits: np.ndarray, token: int, base: np.ndarray | None) -> None:
        mine = _log_softmax(logits)
        self.nll.append(-float(mine[token]))
        if base is not None:
            theirs = _log_softmax(base)
            self.base_nll.append(-float(theirs[token]))
            self.kl.append(float(np.sum(np.exp(theirs) * (theirs - mine))))
            self.same_top += int(np.argmax(logits) == np.argmax(base))

    @property
    def perplexity(self) -> float:
        return math.exp(float(np.mean(self.nll)))

    def report(self) -> dict[str, Any]:
        """Means with their standard errors. The perplexity's follows from that of the mean log-likelihood."""
        mean, error = _mean(self.nll)
        report = {
            "perplexity": math.exp(mean),
            "perplexity_error": math.exp(mean) * error,
            "nll": mean,
            "nll_error": error,
            "tokens": len(self.nll),
        }
        if self.kl:
            divergence, divergence_error = _mean(self.kl)
            share = self.same_top / len(self.kl)
            report |= {
                "base_perplexity": math.exp(float(np.mean(self.base_nll))),
                "kl_divergence": divergence,
                "kl_divergence_error": divergence_error,
                "kl_divergence_max": max(self.kl),
                "top1_agreement": share,
                "top1_agreement_error": math.sqrt(share * (1 - share) / len(self.kl)),
            }
        return report


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for a single value)."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), error


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - math.log(float(np.sum(np.exp(shifted))))


# Stored logits ---------------------------------------------------------------------------------------------------


def _record(vocabulary: int) -> np.dtype:
    return np.dtype([("chunk", "<i4"), ("position", "<i4"), ("token", "<i4"), ("logits", "<f4", (vocabulary,))])


class _Sink:
    """Writes logits position by position into a memory-mapped .npy file, which never has to fit into memory."""

    def __init__(self, path: Path, pieces: list[list[int]], omni: "Omni"):
        rows = sum(len(_scored(piece)) for piece in pieces)
        record = _record(omni.engine.model.config.vocab_size)
        try:
            self._rows = np.lib.format.open_memmap(path, mode="w+", dtype=record, shape=(rows,))
        except OSError as error:
            raise InvalidRequest(f"could not write {str(path)!r}: {error.strerror}") from error

    def put(self, row: int, chunk: int, position: int, token: int, logits: np.ndarray) -> None:
        self._rows[row] = (chunk, position, token, logits)

    def flush(self) -> None:
        self._rows.flush()


def _load_base(path: Path) -> Any:
    try:
        base = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InvalidRequest(f"could not read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise InvalidRequest(f"{str(path)!r} holds no stored logits: {error}") from error
    if base.dtype.names != ("chunk", "position", "token", "logits"):
        raise InvalidRequest(f"{str(path)!r} holds no stored logits; make some with --save-logits")
    return base


def _base_row(base: Any, row: int, chunk: int, position: int, token: int, vocabulary: int) -> np.ndarray:
    if row >= len(base):
        raise InvalidRequest(f"the stored logits end after {len(base)} positions; use the --chunks they were made with")
    stored = base[row]
    same = (int(stored["chunk"]), int(stored["position"]), int(stored["token"])) == (chunk, position, token)
    if not same or len(stored["logits"]) != vocabulary:
        raise InvalidRequest(
            "the stored logits belong to another text, vocabulary or --ctx-size (they differ at chunk "
            f"{chunk}, position {position})"
        )
    return np.asarray(stored["logits"])


def _print(report: dict[str, Any]) -> None:
    print(f"perplexity      {report['perplexity']:.4f} ± {report['perplexity_error']:.4f}  ({report['tokens']} tokens)")
    if "kl_divergence" in report:
        print(f"base perplexity {report['base_perplexity']:.4f}")
        print(f"KL divergence   {report['kl_divergence']:.3e} ± {report['kl_divergence_error']:.1e}", end="")
        print(f"  (max {report['kl_divergence_max']:.3e})")
        print(f"same top token  {100 * report['top1_agreement']:.2f} ± {100 * report['top1_agreement_error']:.2f} %")
