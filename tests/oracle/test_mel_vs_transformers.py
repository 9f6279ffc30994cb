"""Live: log-mel features against transformers' WhisperFeatureExtractor. Run with `pytest -m oracle`."""

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from sounds import signals  # noqa: E402

from qwen3omni_wgpu.inputs.audio import AudioFrontEnd, mel_filters, mel_spectrogram  # noqa: E402

pytestmark = pytest.mark.oracle

FRONT = AudioFrontEnd()
# Measured against its float32 STFT in torch: 2e-5 (ours is float64); against its float64 path in NumPy: 3e-7.
FLOAT32, FLOAT64 = 1e-4, 2e-6


@pytest.fixture(scope="module")
def extractor():
    return transformers.WhisperFeatureExtractor(feature_size=128, sampling_rate=16000, hop_length=160, n_fft=400)


def test_filters(extractor):
    np.testing.assert_allclose(mel_filters(FRONT), extractor.mel_filters, rtol=0, atol=1e-8)


@pytest.mark.parametrize("samples", [201, 319, 320, 16_000, 100_001, 31 * 16_000])
def test_features(extractor, samples):
    for name, sound in signals(np.random.default_rng(), samples).items():
        mel = mel_spectrogram(sound, FRONT)
        options = {"sampling_rate": 16000, "padding": False, "truncation": False, "return_tensors": "np"}
        expected = extractor(sound, **options)["input_features"][0]
        assert mel.shape == expected.shape, name
        assert mel.dtype == np.float32
        np.testing.assert_allclose(mel, expected, rtol=0, atol=FLOAT32, err_msg=name)
        exact = extractor._np_extract_fbank_features(sound[None], "cpu")[0]
        np.testing.assert_allclose(mel, exact, rtol=0, atol=FLOAT64, err_msg=name)
