"""Write tests/goldens/mel.npz: log-mel features of random sounds as transformers' WhisperFeatureExtractor makes them.

    pip install -e '.[oracle]'
    python tools/make_mel_goldens.py

NAME is the sound (int16, to be divided by 32768) and NAME_mel its features, [128, T]; `filters` is the mel filter bank.
"""

import sys
from pathlib import Path

import numpy as np
from transformers import WhisperFeatureExtractor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reference.goldens import FOLDER  # noqa: E402
from sounds import signals  # noqa: E402

# The shortest sound, one that is no whole number of hops, one of whole hops, and one of more than a second.
LENGTHS = {"voice": (201, 777, 16_123), "noise": (1600,), "tone": (2417,), "silence": (480,), "click": (5000,)}
SEED = 16


def main() -> None:
    rng = np.random.default_rng(SEED)
    extractor = WhisperFeatureExtractor(feature_size=128, sampling_rate=16000, hop_length=160, n_fft=400)
    arrays = {"filters": extractor.mel_filters.astype(np.float32)}
    for name, lengths in LENGTHS.items():
        for n in lengths:
            sound = np.round(signals(rng, n)[name] * 32767).astype(np.int16)
            mel = extractor(
                sound / np.float32(32768), sampling_rate=16000, padding=False, truncation=False, return_tensors="np"
            )
            arrays |= {f"{name}_{n}": sound, f"{name}_{n}_mel": mel["input_features"][0]}
    np.savez_compressed(FOLDER / "mel.npz", **arrays)


if __name__ == "__main__":
    main()
