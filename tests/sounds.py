"""Sounds made up for tests: fresh ones for every run from the caller's generator, float32 [n] between -1 and 1."""

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


def voice(rng: np.random.Generator, n: int, rate: int = 16000) -> Samples:
    """Like speech in what matters here: a gliding pitch with overtones, syllables, hiss, and pauses between words."""
    t = np.arange(n) / rate
    pitch = rng.uniform(90, 220) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.3, 1.5) * t + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(k * phase) / k ** rng.uniform(0.5, 1.5) for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * t + rng.uniform(0, 6)) + 0.3, 0, None)
    words = np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * t + rng.uniform(0, 6)) > -0.6
    sound = (tone + 0.3 * rng.standard_normal(n)) * syllables * words + 1e-3 * rng.standard_normal(n)
    return (0.8 * sound / np.abs(sound).max()).astype(np.float32)


def signals(rng: np.random.Generator, n: int) -> dict[str, Samples]:
    """Sounds with extreme spectra beside plain ones."""
    t = np.arange(n) / 16000
    made = {
        "voice": voice(rng, n),
        "noise": 0.1 * rng.standard_normal(n),
        "tone": np.sin(2 * np.pi * rng.uniform(100, 7000) * t),  # most places are 8 powers of ten below it
        "silence": np.zeros(n),
        "whisper": 1e-5 * rng.standard_normal(n),
        "offset": np.full(n, 0.5),
        "click": (np.arange(n) == n // 2).astype(float),
    }
    return {name: sound.astype(np.float32) for name, sound in made.items()}


def chord(n: int, rate: int) -> Samples:
    """Three tones below 2 kHz, fading in and out: what every codec and every resampler keeps."""
    t = np.arange(n) / rate
    tones = sum(np.sin(2 * np.pi * hz * t) for hz in (330.0, 770.0, 1610.0))
    return (0.2 * tones * np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2).astype(np.float32)
