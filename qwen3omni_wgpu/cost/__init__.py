"""The cost model: what a step asks of a device by its own recorded plan, and how long a device takes for that."""

from .calibrate import Calibrated, calibrate
from .paper import PaperDevice, Sketch, buckets, decode_plan, paper_model, prefill_plan, record
from .predict import Prediction, predict_decode, predict_prefill, steps_of
from .profile import Costs, Figure, Profile, load, names
from .work import FAMILIES, Work, works

__all__ = [
    "FAMILIES",
    "Calibrated",
    "Costs",
    "Figure",
    "PaperDevice",
    "Prediction",
    "Profile",
    "Sketch",
    "Work",
    "buckets",
    "calibrate",
    "decode_plan",
    "load",
    "names",
    "paper_model",
    "predict_decode",
    "predict_prefill",
    "prefill_plan",
    "record",
    "steps_of",
    "works",
]
