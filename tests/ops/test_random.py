"""Every op with random shapes, values, padding and parts against its NumPy twin; ties and extreme values.

Each example carries the seed of its values; a failing one is printed whole and can be pasted as `@example`.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor, nbytes_of
from qwen3omni_wgpu.ops.cases import AFTER, BUILDERS, GROUPED, PAIRS, QUANTISED, TILES, TYPES, VARIANTS
from qwen3omni_wgpu.reference import attention as attention_twin
from qwen3omni_wgpu.reference import elementwise as elementwise_twin
from qwen3omni_wgpu.reference import moe as moe_twin
from qwen3omni_wgpu.reference import norm as norm_twin
from qwen3omni_wgpu.reference import sample as sample_twin

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")]

EXAMPLES = 12
# Shrinking compiles a kernel for every step, so it is left out: the shapes are small as they are.
few = settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
more = settings(few, max_examples=25)
seeds = st.integers(0, 2**32 - 1)


def some(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


def blocks(most: int) -> st.SearchStrategy[int]:
    """Widths of whole blocks of 32."""
    return some(1, most).map(lambda count: 32 * count)


def fours(most: int) -> st.SearchStrategy[int]:
    return some(1, most).map(lambda count: 4 * count)


@st.composite
def matmuls(draw: st.DrawFn) -> dict[str, Any]:
    act = draw(st.sampled_from(("f32", "q8")))
    # Eight rows and eight tokens a thread take seconds to compile; the op table has them.
    variant = draw(st.sampled_from((None, *VARIANTS[:1], *VARIANTS[2:])))
    kind = draw(st.sampled_from(QUANTISED if act == "q8" else TYPES))
    n = draw(some(1, 4) if variant is None else some(1, 19))
    d = draw(blocks(5) if kind in QUANTISED else fours(40))
    after = {"bias": draw(st.booleans()), "gelu": draw(st.sampled_from((None, "gelu", "gelu_tanh")))}
    around = {"norm": draw(st.booleans()), "residual": draw(st.booleans())}
    if variant is None and n <= 2 and any(around.values()):
        after = {}  # one dispatch
    f = draw(fours(22) if around["residual"] else some(1, 90))
    return {"type": kind, "n": n, "f": f, "d": d, "act": act, "variant": variant, **after, **around}


@st.composite
def moe_matmuls(draw: st.DrawFn) -> dict[str, Any]:
    e = draw(some(1, 9))
    k = draw(some(1, e))
    act = draw(st.sampled_from(("f32", "q8")))
    kind = draw(st.sampled_from(QUANTISED if act == "q8" else TYPES))
    shapes = {"n": draw(some(1, 5)), "k": k, "e": e, "f": draw(some(1, 40)), "d": draw(blocks(4))}
    variant = draw(st.sampled_from((None, *GROUPED)))
    return {"type": kind, **shapes, "shared": draw(st.booleans()), "act": act, "variant": variant}


@st.composite
def few_experts(draw: st.DrawFn) -> dict[str, Any]:
    """Few numbers of experts and types, for ops whose other sizes vary: each is a kernel of its own."""
    e, k = draw(st.sampled_from(((1, 1), (5, 3))))
    act = draw(st.sampled_from(("f32", "q8")))
    return {"type": draw(st.sampled_from(("q8_0", "q4_1"))), "n": draw(some(1, 4)), "k": k, "e": e, "act": act}


@st.composite
def moe_swiglus(draw: st.DrawFn) -> dict[str, Any]:
    # 128 rows of an expert: then the second half of a tensor starts at a byte where a binding may start (256 at most).
    return {**draw(few_experts()), "f": 128, "d": draw(st.sampled_from((32, 96))), "apart": draw(st.booleans())}


@st.composite
def moe_downs(draw: st.DrawFn) -> dict[str, Any]:
    shapes = {"f": draw(st.sampled_from((32, 96))), "d": draw(st.sampled_from((4, 76)))}
    return {**draw(few_experts()), **shapes, "residual": draw(st.booleans())}


@st.composite
def moe_routes(draw: st.DrawFn) -> dict[str, Any]:
    e, k = draw(st.sampled_from(((1, 1), (9, 9), (130, 6))))
    shapes = {"n": draw(st.sampled_from((1, 2, 4))), "e": e, "k": k, "d": draw(st.sampled_from((32, 160)))}
    norm = draw(st.booleans())
    flags = {"renormalise": draw(st.booleans()), "norm": norm, "always": 2 if norm else 0}
    return {"type": draw(st.sampled_from(("f32", "q8_0"))), **shapes, **flags}


@st.composite
def moe_route_swiglus(draw: st.DrawFn) -> dict[str, Any]:
    e, k = draw(st.sampled_from(((1, 1), (9, 9), (130, 6))))
    n, variant = draw(st.sampled_from(((1, None), (4, None), (1, PAIRS[0]), (2, PAIRS[1]))))
    shapes = {"n": n, "e": e, "k": k, "f": 64, "d": draw(st.sampled_from((64, 192)))}
    how = {"always": draw(st.sampled_from((0, 2))), "act": draw(st.sampled_from(("f32", "q8"))), "variant": variant}
    return {"type": draw(st.sampled_from(("q8_0", "q4_1"))), **shapes, "renormalise": draw(st.booleans()), **how}


@st.composite
def moe_sorts(draw: st.DrawFn) -> dict[str, Any]:
    # Each set of sizes is a kernel of its own, if a small one.
    e = draw(st.sampled_from((1, 5, 40, 300)))
    n = draw(some(1, 70))
    return {"n": n, "k": draw(some(1, min(e, 9))), "e": e, "tile": draw(some(1, 9)), "used": draw(some(1, n))}


@st.composite
def ropes(draw: st.DrawFn) -> dict[str, Any]:
    hd = 2 * draw(some(2, 48))
    pairs = draw(st.one_of(st.none(), some(1, hd // 2)))
    count = pairs or hd // 2
    sections = None
    if draw(st.booleans()):
        h, w = draw(some(0, count // 3)), draw(some(0, count // 3))
        sections = (count - h - w, h, w)
    elif count % 2 == 0 and draw(st.booleans()):
        sections = "halves"
    return {
        "n": draw(some(1, 5)),
        "heads": draw(some(1, 5)),
        "hd": hd,
        "style": draw(st.sampled_from(("neox", "interleaved"))),
        "pairs": pairs,
        "sections": sections,
        "qk_norm": draw(st.booleans()),
        "cache": draw(st.sampled_from((None, "f16", "f32"))),
        "start": draw(some(0, 32000)) if draw(st.booleans()) else draw(some(0, 40)),
    }


@st.composite
def rope_qkvs(draw: st.DrawFn) -> dict[str, Any]:
    shapes = draw(ropes())
    del shapes["heads"]
    cache = shapes.pop("cache") or "f32"
    return {**shapes, "heads": draw(some(1, 5)), "kv": draw(some(1, 3)), "cache": cache}


@st.composite
def rope_attentions(draw: st.DrawFn) -> dict[str, Any]:
    shapes = draw(rope_qkvs())
    kv = draw(some(1, 3))
    few = {"n": draw(some(1, 3)), "start": draw(some(0, 28)), "kv": kv, "heads": kv * draw(some(1, 4))}
    return {**shapes, **few, "hd": draw(st.sampled_from((4, 36))), "pairs": None, "sections": None}


@st.composite
def joined(draw: st.DrawFn) -> dict[str, Any]:
    count, act = draw(some(1, 3)), draw(st.sampled_from(("f32", "q8")))
    types = [draw(st.sampled_from(TYPES)) for _ in range(count)]
    sizes = [str(draw(some(1, 40))) for _ in range(count)]
    n, norm = draw(st.sampled_from((1, 2, 7, 12))), draw(st.booleans())
    return {"types": " ".join(types), "fs": " ".join(sizes), "n": n, "d": draw(blocks(6)), "act": act, "norm": norm}


@st.composite
def matmul_swiglus(draw: st.DrawFn) -> dict[str, Any]:
    act = draw(st.sampled_from(("f32", "q8")))
    kind = draw(st.sampled_from(QUANTISED if act == "q8" else TYPES))
    n, norm = draw(st.sampled_from((1, 2, 3, 20))), draw(st.booleans())
    return {"type": kind, "n": n, "f": draw(some(1, 70)), "d": draw(blocks(6)), "act": act, "norm": norm}


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    # Few shapes: each is a kernel of its own, or two.
    n, window = draw(st.sampled_from(((1, 0), (2, 0), (5, 0), (5, 40))))
    heads, kv = draw(st.sampled_from(((6, 2), (11, 1))))
    cache, hd = draw(st.sampled_from((("f16", 36), ("f16", 40), ("f32", 16), ("kv_q8", 64))))
    if cache == "kv_q8":
        window = 0
    return {"n": n, "heads": heads, "kv": kv, "hd": hd, "past": draw(some(0, 200)), "cache": cache, "window": window}


@st.composite
def conv1ds(draw: st.DrawFn) -> dict[str, Any]:
    # What comes after the sums and the tile make the kernel; the sizes are free.
    after, tile = draw(st.sampled_from(AFTER)), draw(st.sampled_from((None, TILES[0])))
    sizes = {"n": draw(some(1, 7)), "rate": draw(some(1, 9)), "f": draw(some(1, 70)), "c": draw(fours(20))}
    sizes |= {"taps": draw(some(1, 7)), "dilation": draw(some(1, 9)), "before": draw(some(0, 3))}
    if after.get("hidden"):
        after = after | {"hidden": draw(some(1, 40))}
    return {**sizes, **after, "tile": tile}


@st.composite
def carried(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(some(1, 9))
    sizes = {"n": n, "rate": draw(some(1, 9)), "c": draw(fours(20)), "lead": draw(some(1, 60))}
    return {**sizes, "used": draw(some(1, n))}


@st.composite
def shifts(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(some(1, 90))
    return {"count": count, "past": count + draw(some(0, 100)), "width": draw(fours(30))}


@st.composite
def window_attentions(draw: st.DrawFn) -> dict[str, Any]:
    n, s = draw(some(1, 150)), draw(some(1, 120))
    windows = draw(some(1, min(5, s)))
    # Three of the 32 lengths of heads: each is a kernel of its own, and takes a second to compile.
    hd = draw(st.sampled_from((4, 40, 72)))
    stored = draw(st.sampled_from(("f16", "f32")))
    return {"n": n, "s": s, "heads": draw(some(1, 3)), "hd": hd, "windows": windows, "stored": stored}


@st.composite
def gates(draw: st.DrawFn) -> dict[str, Any]:
    e = draw(some(1, 300))
    sizes = {"n": draw(some(1, 5)), "e": e, "k": draw(some(1, min(e, 16))), "always": draw(some(0, 3))}
    return {**sizes, "renormalise": draw(st.booleans())}


@st.composite
def top_ks(draw: st.DrawFn) -> dict[str, Any]:
    # Few sizes: each is two kernels of its own.
    v, k = draw(st.sampled_from(((1, 1), (130, 128), (333, 7), (2999, 41), (4097, 64), (9000, 128))))
    return {"v": v, "k": k, "ties": draw(st.booleans())}


@st.composite
def picks(draw: st.DrawFn) -> dict[str, Any]:
    # Few sizes: each is two kernels of its own.
    v, k = draw(st.sampled_from(((1, 1), (90, 40), (2000, 40), (5000, 128))))
    chain = draw(st.sampled_from((0.3, 1, 5))), draw(st.sampled_from((0, 1, k, k + 9))), draw(st.sampled_from((1, 0.6)))
    penalties = draw(st.sampled_from((None, "1.3 0 0", "0.7 0.5 -0.25")))
    floor = draw(st.sampled_from((-99, -1)))
    return {
        "v": v, "k": k, "chain": " ".join(map(str, (*chain, floor))), "penalties": penalties,
        "ties": draw(st.booleans()),
    }  # fmt: skip


@st.composite
def samples(draw: st.DrawFn) -> dict[str, Any]:
    # Few sizes: each is a kernel of its own.
    v = draw(st.sampled_from((1, 40, 333, 3072)))
    first = draw(some(0, v))
    top_k, top_p = draw(st.sampled_from((0, 1, 5, v // 2, v, v + 7))), draw(st.sampled_from(("1", "0.9", "0.3", "0")))
    settings = f"{draw(st.sampled_from((0, 0.3, 1, 5)))} {top_k} {top_p} {draw(st.sampled_from((1, 1.05, 2, 0.5)))}"
    return {
        "v": v,
        "settings": settings,
        "left_out": (first, draw(some(first, v))),
        "spared": draw(st.one_of(st.none(), some(0, v - 1))),
        **{name: draw(st.booleans()) for name in ("seen", "codes", "ties")},
    }


@st.composite
def binaries(draw: st.DrawFn) -> dict[str, Any]:
    per_token = draw(st.sampled_from((1, 1, 2, 8)))
    return {"n": draw(some(1, 7)), "f": draw(fours(100)), "per_token": per_token}


def rows(most: int, width: st.SearchStrategy[int], key: str = "d") -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"n": some(1, most), key: width})


def norms() -> st.SearchStrategy[dict[str, Any]]:
    width = st.one_of(some(1, 700), blocks(20))
    return st.fixed_dictionaries({"n": some(1, 9), "d": width, "act": st.sampled_from(("f32", "q8"))})


def with_used(most: int, width: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """n rows of which `used` count."""
    shapes = some(1, most).flatmap(lambda n: st.fixed_dictionaries({"n": st.just(n), "used": some(1, n)}))
    return shapes if width is None else st.builds(lambda shape, d: {**shape, "d": d}, shapes, width)


PARAMS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "matmul": matmuls(),
    "matmul_joined": joined(),
    "matmul_swiglu": matmul_swiglus(),
    "moe_matmul": moe_matmuls(),
    "moe_swiglu": moe_swiglus(),
    "moe_down": moe_downs(),
    "moe_route": moe_routes(),
    "moe_route_swiglu": moe_route_swiglus(),
    "moe_sort": moe_sorts(),
    "quantize_q8": rows(9, blocks(20)),
    "embed": st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES), "n": some(1, 9), "v": some(1, 70), "d": blocks(40)},
    ),
    "embed_code": st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES), "v": some(1, 70), "d": blocks(40), "before": st.booleans()},
    ),
    "embed_mean": st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES), "n": some(1, 9), "k": some(1, 5), "v": some(1, 70), "d": blocks(9)},
    ),
    "conv1d": conv1ds(),
    "conv1d_depthwise": st.fixed_dictionaries(
        {"n": some(1, 6), "rate": some(1, 6), "c": fours(80), "taps": st.sampled_from((1, 2, 7))}
    ),
    "carry_rows": carried(),
    "shift_rows": shifts(),
    "conv_columns": st.fixed_dictionaries(
        {"n": some(1, 4), "t": some(1, 9), "f": some(1, 9), "c": some(1, 12), "valid": some(1, 40), "scale": some(1, 4)}
    ),
    "add_rows": st.fixed_dictionaries({"n": some(1, 9), "v": some(1, 40), "d": fours(80), "k": some(1, 5)}),
    "rms_norm": norms(),
    "add_rms_norm": st.builds(lambda shape, scaled: {**shape, "scaled": scaled}, norms(), st.booleans()),
    "layer_norm": st.fixed_dictionaries({"n": some(1, 7), "d": some(1, 700), "per_token": some(1, 4)}),
    "add_layer_norm": rows(9, some(1, 700)),
    "rope": ropes(),
    "rope_qkv": rope_qkvs(),
    "rope_attention": rope_attentions(),
    "store_rows": st.fixed_dictionaries(
        {"n": some(1, 9), "width": fours(60), "cache": st.sampled_from(("f16", "f32")), "start": some(0, 70)}
    ),
    "load_rows": st.fixed_dictionaries({"n": some(1, 9), "d": fours(90), "start": some(0, 70)}),
    "attention": attentions(),
    "window_attention": window_attentions(),
    "swiglu": binaries(),
    "swiglu_joined": rows(7, fours(100), "f"),
    "add": rows(9, fours(300), "f"),
    "replace_rows": rows(9, fours(300)),
    "softmax": rows(9, some(1, 700)),
    "moe_gate": gates(),
    "moe_combine": st.fixed_dictionaries({"n": some(1, 6), "k": some(1, 9), "d": fours(80)}),
    "argmax": st.one_of(
        rows(4, some(1, 1500), "v"),
        st.fixed_dictionaries({"n": some(1, 4), "v": st.sampled_from((5, 333, 1400)), "parts": some(1, 5)}),
    ),
    "top_k": top_ks(),
    "pick": picks(),
    "penalize": st.fixed_dictionaries({"v": some(64, 500), "used": some(0, 64)}),
    "sample": samples(),
    "select_row": with_used(9, some(1, 300)),
}
# Ops that skip the rows of padding; the others have no rows a token, or no padding. (The twin of rope_qkv compares
# whole caches, so what must stay as it was is checked in every run.)
UNPADDED = ("argmax", "top_k", "pick", "penalize", "sample", "select_row", "rope_qkv", "rope_attention", "embed_code")
UNPADDED += ("carry_rows", "shift_rows", "moe_sort")  # as with rope_qkv
PADDED = tuple(op for op in PARAMS if op not in UNPADDED)


def build(device: Device, op: str, seed: int, params: dict[str, Any]) -> tuple[Plan, list[Tensor]]:
    plan = Plan(device, op)
    # A state of its own, which a test may change; builders whose op needs a past replace it.
    plan.state = Tensor.from_numpy(device, np.array([0, params.get("n", 1)], np.uint32), "state")
    outputs = BUILDERS[op](plan, np.random.default_rng(seed), **params)
    return plan, outputs


def test_every_op_has_a_strategy():
    assert set(PARAMS) == set(BUILDERS)


@pytest.mark.parametrize("op", PARAMS)
def test_random_shapes(op: str, device: Device) -> None:
    @few
    @given(params=PARAMS[op], seed=seeds)
    def check(params: dict[str, Any], seed: int) -> None:
        plan, outputs = build(device, op, seed, params)
        assert plan.finish(keep=outputs).run_debug(ops.values)
        plan.free()

    check()


@pytest.mark.parametrize("op", PADDED)
def test_padding_is_left_alone(op: str, device: Device) -> None:
    """With n_tokens below N the first rows are right, the others stay as they were: not written, not in the cache."""

    @few
    @given(params=PARAMS[op].filter(lambda params: params["n"] > 1), seed=seeds, part=st.floats(0, 1))
    def check(params: dict[str, Any], seed: int, part: float) -> None:
        plan, outputs = build(device, op, seed, params)
        n, past = params["n"], int(plan.state.numpy()[0])
        used = 1 + int(part * (n - 1.001))
        plan.state.write(np.array([past, used], np.uint32))
        plan.finish(keep=outputs)
        before = outputs[0].numpy()
        plan.run_debug(ops.values)
        for tensor in plan.steps[-1].check.outputs:  # type: ignore[union-attr]
            found = tensor.numpy()
            if params.get("cache") and op != "attention":
                same = np.ones(len(found), bool)
                same[past : past + used] = False
                np.testing.assert_array_equal(found[same], before[same])
            else:
                each = tensor.shape[0] // n
                assert (found[used * each :].view(np.uint32) == 0xFFFFFFFF).all()
        plan.free()

    check()


@pytest.mark.parametrize("op", ["matmul", "embed", "moe_matmul"])
def test_weights_in_parts(op: str, device: Device) -> None:
    """Weights that exceed a binding are bound part by part, with the same result, bit for bit."""

    @few
    @given(params=PARAMS[op], seed=seeds, fit=some(1, 70), past_half=st.booleans())
    def check(params: dict[str, Any], seed: int, fit: int, past_half: bool) -> None:
        whole, outputs = build(device, op, seed, params)
        whole.finish(keep=outputs).run()
        expected = outputs[0].numpy()
        count, lines = {"matmul": ("f", 1), "embed": ("v", 1), "moe_matmul": ("e", params.get("f"))}[op]
        count = params[count]
        fit = 1 + fit % max(1, count - 1)  # fewer than all, unless there is only one
        row = nbytes_of((lines, params["d"]), params["type"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(device.limits, "max-storage-buffer-binding-size", fit * row + (row // 2 if past_half else 0))
            plan, outputs = build(device, op, seed, params)
        assert sum(step.op == op for step in plan.steps) >= -(-count // fit)
        plan.finish(keep=outputs)
        plan.run_debug(ops.values)
        np.testing.assert_array_equal(outputs[0].numpy(), expected)
        whole.free()
        plan.free()

    check()


# Ties and extreme values ---------------------------------------------------------------------------------------------

EXTREMES = (0.0, -0.0, 1.0, -1.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38, 1e-30, -1e-30, 1e-42, -1e-42)


def put(plan: Plan, array: np.ndarray, name: str = "x") -> Tensor:
    return Tensor.from_numpy(plan.device, np.ascontiguousarray(array, np.float32), name)


def run(plan: Plan, *outputs: Tensor) -> list[np.ndarray]:
    """Judged by the twin, too."""
    plan.finish(keep=outputs).run_debug(ops.values)
    found = [tensor.numpy() for tensor in outputs]
    plan.free()
    return found


def row_of(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Few different values, so that ties are everywhere; or all the same."""
    if kind == "equal":
        return np.full(size, rng.choice((0.0, -7.5, 1e4, -1e30)), np.float32)
    if kind == "whole":
        return np.round(rng.standard_normal(size) * 2).astype(np.float32)
    if kind == "huge":
        return (rng.standard_normal(size) * 1e4).astype(np.float32)
    return rng.choice(EXTREMES, size).astype(np.float32)


KINDS = ("equal", "whole", "huge", "extreme")
SIZES = (1, 7, 256, 300, 4097)


@pytest.mark.parametrize("parts", [1, 9])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_argmax_of_ties(device, kind, size, parts):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    logits = np.stack([row_of(kind, size, np.random.default_rng(seed + i)) for i in range(4)])
    plan = Plan(device)
    ids = ops.argmax(plan, put(plan, logits, "logits"), parts=parts)
    (found,) = run(plan, ids)
    # Exact: of 1e-42, 0.0 and -0.0 the first is the largest and the other two are equal, whatever the driver does.
    np.testing.assert_array_equal(found, logits.argmax(axis=1), err_msg=f"seed {seed}")


def test_argmax_of_minus_infinity(device):
    logits = np.full((3, 300), -np.inf, np.float32)
    logits[1, 299] = -3.3e38
    logits[2, 270:] = -1e38
    plan = Plan(device)
    (found,) = run(plan, ops.argmax(plan, put(plan, logits, "logits")))
    np.testing.assert_array_equal(found, [0, 299, 270])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("v", "k"), [(1, 1), (7, 3), (300, 128), (4097, 40), (128, 128)])
def test_top_k_of_ties(device, kind, v, k):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    logits = row_of(kind, v, np.random.default_rng(seed))
    plan = Plan(device)
    outputs = ops.top_k(plan, put(plan, logits[None], "logits"), k)
    ids, values = run(plan, *outputs)
    logsumexp, values = values[k], values[:k]
    assert len(set(ids.tolist())) == k
    np.testing.assert_array_equal(logits[ids], values)
    expected_ids, expected, expected_logsumexp = sample_twin.top_k(logits, k)
    np.testing.assert_array_equal(np.sort(values)[::-1], expected)
    # Of equal ones the lowest, and 0.0 equals -0.0.
    np.testing.assert_array_equal(np.sort(ids), np.sort(expected_ids), err_msg=f"seed {seed}")
    assert logsumexp == pytest.approx(expected_logsumexp, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("kind", ["equal", "whole", "huge"])
@pytest.mark.parametrize(("e", "k"), [(1, 1), (8, 2), (128, 8), (300, 16), (16, 16)])
def test_gate_of_ties(device, e, k, kind, renormalise):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    logits = np.stack([row_of(kind, e, np.random.default_rng(seed + i)) for i in range(3)])
    plan = Plan(device)
    ids, weights = run(plan, *ops.moe_gate(plan, put(plan, logits, "router"), k, renormalise))
    expected_ids, expected = moe_twin.moe_gate(logits, k, renormalise)
    np.testing.assert_array_equal(ids, expected_ids, err_msg=f"seed {seed}")
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    if renormalise:
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_softmax_of_extremes(device, kind):
    x = np.stack([row_of(kind, 333, np.random.default_rng(i)) for i in range(3)])
    plan = Plan(device)
    (found,) = run(plan, ops.softmax(plan, put(plan, x)))
    np.testing.assert_allclose(found, elementwise_twin.softmax(x), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_swiglu_of_extremes(device):
    gate = np.array([[0, -0.0, 1e4, -1e4, 87, -87, 88.9, -88.9, 1e30, -1e30, 1e-30, -1e-42]], np.float32)
    up = np.array([[1e30, 3, 2, 2, 1, 1, 1, 1, -2, 1e30, 1e30, 1]], np.float32)
    plan = Plan(device)
    (found,) = run(plan, ops.swiglu(plan, put(plan, gate), put(plan, up)))
    np.testing.assert_allclose(found, elementwise_twin.swiglu(gate, up), rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_of_extremes(device, name):
    """Every size of argument through the epilogue of a matmul with one 1 a row: far out it is x or 0, never NaN."""
    far = np.array([0, -0.0, 1e-30, -1e-30, 9.9, -9.9, 40, -40, 1e4, -1e4, 1e30, -1e30], np.float32)
    x = np.concatenate([far, np.linspace(-7, 7, 500, dtype=np.float32)])
    rows = np.zeros((len(x), 4), np.float32)
    rows[:, 0] = x
    plan = Plan(device)
    w = put(plan, np.array([[1, 0, 0, 0], [-1, 0, 0, 0]]), "w")
    y = ops.matmul(plan, put(plan, rows), w, act=name)
    plan.finish(keep=[y]).run()
    found = y.numpy()
    plan.free()
    twin = getattr(elementwise_twin, name)
    # The fit is good to 2.5e-7, exp and the division to a few units in the last place of what they change.
    np.testing.assert_allclose(found, np.stack([twin(x), twin(-x)], axis=1), rtol=4e-7, atol=5e-7)


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-20, 1.0, 1e4, 1e15])
def test_norm_of_extremes(device, size):
    x = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32) * np.float32(size)
    weight = np.ones(100, np.float32)
    plan = Plan(device)
    (found,) = run(plan, ops.rms_norm(plan, put(plan, x), put(plan, weight, "weight"), 1e-6))
    np.testing.assert_allclose(found, norm_twin.rms_norm(x, weight, 1e-6), rtol=1e-5, atol=1e-36)


def test_layer_norm_far_from_zero(device):
    """The variance must not be a difference of two large means: values around 1000, a spread of 1."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((3, 200))).astype(np.float32)
    x[2] = 7.5  # no spread at all: the bias is left
    weight, bias = rng.standard_normal((2, 200)).astype(np.float32)
    plan = Plan(device)
    y = ops.layer_norm(plan, put(plan, x), put(plan, weight, "weight"), put(plan, bias, "bias"), 1e-6)
    plan.finish(keep=[y]).run()
    found = y.numpy()
    plan.free()
    wide = x.astype(np.float64)
    scale = 1 / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-6)
    expected = (wide - wide.mean(axis=1, keepdims=True)) * scale * weight + bias
    # The mean is rounded to 6e-5 at 1000 and summed with 200 such errors at worst; a one-pass variance is off by 0.1.
    np.testing.assert_allclose(found[:2], expected[:2], atol=5e-4)
    np.testing.assert_allclose(found[2], bias, atol=1e-5)


def test_quantising_extremes(device):
    rng = np.random.default_rng(0)
    x = np.zeros((6, 64), np.float32)
    x[1] = 1e30
    x[2, 5] = -3e4  # one outlier, the rest zero
    x[3] = rng.choice((-1, 1), 64) * 0.25
    x[4] = rng.standard_normal(64) * 1e-30
    x[5, :32] = rng.standard_normal(32) * 1e4  # and a block of zeros
    plan = Plan(device)
    quants, *_ = ops.quantize_q8(plan, put(plan, x))
    (found,) = run(plan, quants)
    signed = found.view(np.int8).reshape(6, 64)
    assert (signed[0] == 0).all()
    assert (signed[1] == 127).all()
    assert signed[2, 5] == -127
    assert np.count_nonzero(signed[2]) == 1
    np.testing.assert_array_equal(signed[3], 127 * np.sign(x[3]))
    assert (signed[5, 32:] == 0).all()
    assert signed.min() >= -127


@pytest.mark.parametrize("cache", ["f32", "f16"])
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (8, 1)])
def test_attention_of_extremes(device, heads, kv, cache):
    """Equal keys: the mean of the values. One key far ahead, even by 1e4 in the exponent: its value."""
    rng, hd, past = np.random.default_rng(0), 32, 130
    kind = np.float16 if cache == "f16" else np.float32
    values = rng.standard_normal((past + 1, kv * hd)).astype(kind)
    keys = np.zeros((past + 1, kv * hd), kind)
    q = np.full((1, heads * hd), 40, np.float32)
    for at in (None, 0, 63, 64, past):
        if at is not None:
            keys[:] = -8
            keys[at] = 8
        plan = Plan(device)
        plan.state = Tensor.from_numpy(device, np.array([past, 1], np.uint32), "state")
        cached = [Tensor.from_numpy(device, array, name) for array, name in ((keys, "k"), (values, "v"))]
        (found,) = run(plan, ops.attention(plan, put(plan, q, "q"), *cached, heads, kv, 1.0))
        wide = values.astype(np.float32).reshape(-1, kv, hd)
        expected = wide.mean(axis=0) if at is None else wide[at]
        np.testing.assert_allclose(found.reshape(heads, hd), np.repeat(expected, heads // kv, axis=0), atol=1e-5)


def test_attention_does_not_look_ahead(device):
    """Whatever lies behind a token's own key, even NaN, does not reach it."""
    rng, hd, n, past = np.random.default_rng(0), 64, 5, 70
    keys, values = (rng.standard_normal((past + n + 60, 2 * hd)).astype(np.float32) for _ in range(2))
    q = rng.standard_normal((n, 4 * hd)).astype(np.float32)
    results = []
    for behind in (0.0, np.nan):
        keys[past + n :] = values[past + n :] = behind
        plan = Plan(device)
        plan.state = Tensor.from_numpy(device, np.array([past, n], np.uint32), "state")
        cached = [Tensor.from_numpy(device, array, name) for array, name in ((keys, "k"), (values, "v"))]
        results += run(plan, ops.attention(plan, put(plan, q, "q"), *cached, 4, 2, 0.125))
    np.testing.assert_array_equal(*results)
    split = [array[: past + n].reshape(-1, 2, hd) for array in (keys, values)]
    expected = attention_twin.attention(q.reshape(n, 4, hd), *split, past, 0.125)
    np.testing.assert_allclose(results[0], expected.reshape(n, -1), atol=1e-5)


@st.composite
def penalties(draw: st.DrawFn) -> dict[str, Any]:
    v = draw(some(1, 200))
    ids = draw(st.lists(some(0, v - 1), unique=True, max_size=70))
    counts = [draw(some(1, 100)) for _ in ids]
    factor = st.floats(-2, 2, width=32)
    repeat = draw(st.floats(0.125, 4, width=32))
    return {"v": v, "ids": ids, "counts": counts, "options": (repeat, draw(factor), draw(factor))}


@more
@given(params=penalties(), seed=seeds, kind=st.sampled_from(("whole", "equal")))
def test_penalties(device: Device, params: dict[str, Any], seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    logits = row_of(kind, params["v"], rng)
    plan = Plan(device)
    pairs = np.zeros((len(params["ids"]) + 3, 2), np.uint32)
    pairs[: len(params["ids"])] = np.array([params["ids"], params["counts"]], np.uint32).T
    pairs[len(params["ids"]) :] = (0, 9)  # left over from before, and not in use
    tensor = put(plan, logits[None], "logits")
    options = put(plan, np.array([len(params["ids"]), *params["options"]]), "options")
    ops.penalize(plan, tensor, Tensor.from_numpy(device, pairs, "recent"), options)
    (found,) = run(plan, tensor)
    expected = sample_twin.penalize(logits, params["ids"], params["counts"], *params["options"])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-4)
    untouched = np.setdiff1d(np.arange(params["v"]), params["ids"])
    np.testing.assert_array_equal(found[0, untouched], logits[untouched])


def test_every_id_may_be_the_same(device):
    """All tokens and all their choices point at one row, one expert."""
    rng = np.random.default_rng(0)
    plan = Plan(device)
    table = Tensor.from_numpy(device, rng.standard_normal((5, 32), dtype=np.float32), "table")
    (found,) = run(plan, ops.embed(plan, table, Tensor.from_numpy(device, np.full(7, 4, np.uint32), "ids")))
    np.testing.assert_array_equal(found, np.tile(ops.values(table)[4], (7, 1)))
    plan = Plan(device)
    w = Tensor.from_numpy(device, rng.standard_normal((3, 8, 32), dtype=np.float32), "w")
    x = put(plan, rng.standard_normal((2, 32)))
    (found,) = run(plan, ops.moe_matmul(plan, x, w, Tensor.from_numpy(device, np.full((2, 4), 2, np.uint32), "ids")))
    np.testing.assert_allclose(found[:4], np.tile(found[0], (4, 1)))
