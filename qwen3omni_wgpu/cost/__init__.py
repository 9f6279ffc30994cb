"""The cost model: what a step asks of a device by its own recorded plan, and how long a device takes for that."""

from .paper import PaperDevice, Sketch, buckets, decode_plan, paper_model, prefill_plan
from .predict import Prediction, predict_decode, predict_prefill
from .profile import Costs, Figure, Profile, load, names
from .work import FAMILIES, Work, works

__all__ = [
    "FAMILIES",
    "Costs",
    "Figure",
    "PaperDevice",
    "Prediction",
    "Profile",
    "Sketch",
    "Work",
    "buckets",
    "decode_plan",
    "load",
    "names",
    "paper_model",
    "predict_decode",
    "predict_prefill",
    "prefill_plan",
    "works",
]
