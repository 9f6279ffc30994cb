"""Codes and speech: the talker with its code predictor, and the vocoder."""
