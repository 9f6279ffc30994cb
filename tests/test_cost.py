"""The cost model: plans on paper are the engine's, costs follow from them, and lines go through what was measured."""

import json
from dataclasses import replace

import numpy as np
import pytest
from reference.gpu_engine import open_engine
from tiny_gguf import write_tiny

from qwen3omni_wgpu import cost
from qwen3omni_wgpu.cost.calibrate import Line, _near, calibrate, fitted, key_of, others
from qwen3omni_wgpu.cost.profile import FOLDER, STATUS
from qwen3omni_wgpu.cost.work import FAMILIES
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.formats.tensors import BLOCKS
from qwen3omni_wgpu.models.config import kv_bytes_per_token, tensor_shapes

PROFILES = ("h200", "strix-halo", "strix-halo-reached")


@pytest.fixture(scope="module")
def paper():
    """The 30B thinker on the Radeon's paper."""
    profile = cost.load("strix-halo")
    return profile, cost.paper_model(cost.Sketch.shipped(), cost.PaperDevice.described(profile.device))


def work(**given) -> cost.Work:
    facts = {
        "op": "matmul", "family": "matvec", "arithmetic": "packed", "weight": "q8_0", "row": 2048, "tokens": 1,
        "nbytes": 10_000_000, "flops": 2e7, "groups": 4096, "threads": 1 << 18,
    }  # fmt: skip
    return cost.Work(**facts | given)


# Plans on paper -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("arch", "tied"), [("llama", True), ("qwen3", False), ("qwen3moe", False)])
def test_a_plan_on_paper_is_the_engines(arch, tied, tmp_path, device):
    """The same kernels over the same grids at the same costs, so that the model cannot fall behind the engine."""
    file = read_gguf(write_tiny(tmp_path / "x.gguf", arch=arch, tied=tied, type="q8_0"))
    engine = open_engine(file, device, ctx_size=96, kv_type="f16")
    engine.prefill([1, 2, 3])
    model = cost.paper_model(cost.Sketch.of_file(file), cost.PaperDevice.like(device), "f32")
    for bucket in (1, 8):
        real = engine._forward_plan(bucket, "last").steps
        steps = cost.record(model, bucket, 96, "f16", head=True).plan.steps
        if bucket == 1:
            assert steps.pop().op == "argmax"
        wanted = [(step.op, step.kernel, step.grid, step.nbytes, step.flops, step.immediates) for step in real]
        assert [(s.op, s.kernel, s.grid, s.nbytes, s.flops, s.immediates) for s in steps] == wanted
    engine.free()
    engine.model.free()


def test_the_shipped_model_is_the_release(paper):
    sketch = cost.Sketch.shipped()
    with open("tests/data/config_30b.json", encoding="utf-8") as file:
        text = json.load(file)["thinker_config"]["text_config"]
    c = sketch.config
    pairs = {
        "hidden_size": c.dim, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "num_experts": c.n_experts,
        "num_experts_per_tok": c.n_experts_used, "moe_intermediate_size": c.expert_dim, "vocab_size": c.vocab_size,
        "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_theta, "max_position_embeddings": c.context_length,
        "norm_topk_prob": c.norm_topk, "tie_word_embeddings": c.tied_head,
    }  # fmt: skip
    assert {key: text[key] for key in pairs} == pairs
    assert tuple(text["rope_scaling"]["mrope_section"]) == c.mrope_sections
    assert sketch.parameters == 30_532_646_912
    with pytest.raises(InvalidRequest, match="--type q9 is not one of"):
        cost.Sketch.shipped(type="q9")


def test_a_decoded_token_reads_what_it_must(paper):
    """Weights of the used experts, the keys and values of its depth, and little beside them."""
    profile, model = paper
    c = model.config
    size = BLOCKS["q8_0"][1] / BLOCKS["q8_0"][0]
    heads = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim * c.dim + c.dim * c.n_heads * c.head_dim
    layer = size * (heads + 3 * c.n_experts_used * c.expert_dim * c.dim) + 4 * c.n_experts * c.dim
    for depth in (0, 4096, 32768):
        found = cost.predict_decode(profile, model, 64, depth, 65536, "f16")
        needed = c.n_layers * layer + size * c.vocab_size * c.dim + kv_bytes_per_token(c, "f16") * (depth + 32)
        assert needed < found.nbytes / 64 < 1.03 * needed
        assert found.tokens == 64
        assert found.rate == pytest.approx(64 / found.seconds)
    assert found.dispatches / 64 <= 400


def test_attention_counts_the_keys_that_are_there(paper):
    """Its cost grows by the same for every key more, whatever the cache could hold."""
    _, model = paper

    def attention(depth, context):
        steps = cost.works(cost.decode_plan(model, depth, context), model, 1)
        return sum(w.nbytes for w in steps if w.family == "attention")

    at = [attention(depth, 65536) for depth in (8191, 16383, 32767)]
    per_key = kv_bytes_per_token(model.config, "f16")
    assert at[1] - at[0] == pytest.approx(8192 * per_key, rel=0.01)
    assert at[2] - at[1] == pytest.approx(16384 * per_key, rel=0.01)
    assert attention(8191, 65536) == attention(8191, 9000)


def test_a_prompt_costs_its_tokens_flops(paper):
    """Twice the active weights a token, and four times the keys that a token sees on average."""
    profile, model = paper
    c = model.config
    heads = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim * c.dim + c.dim * c.n_heads * c.head_dim
    layer = heads + 3 * c.n_experts_used * c.expert_dim * c.dim + c.n_experts * c.dim
    for n, depth in ((512, 0), (700, 8192), (100, 0)):
        found = cost.predict_prefill(profile, model, n, depth, 65536, "f16")
        keys = 4 * c.n_heads * c.head_dim * (depth + n / 2)
        # Short prompts see the fewest rows that a plan is recorded for; norms and rotation come on top.
        assert found.flops == pytest.approx(n * c.n_layers * (2 * layer + keys), rel=0.03)
    assert cost.steps_of(model.device, 1100) == [(512, 512), (512, 512), (128, 76)]


def test_every_family_is_there_and_nothing_else(paper):
    _, model = paper
    one = {w.family for w in cost.works(cost.decode_plan(model, 100, 4096), model, 1)}
    many = {w.family for w in cost.works(cost.prefill_plan(model, 100, 512, 4096), model, 512)}
    assert one == {"matvec", "expert matvec", "attention", "rows"}
    assert many == {"matmul", "expert matmul", "attention", "rows"}
    assert one | many == set(FAMILIES)
    embed = cost.works(cost.decode_plan(model, 100, 4096), model, 1)[0]
    assert (embed.op, embed.family, embed.weight) == ("embed", "rows", "")  # one row of it, not the whole table


# Profiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_every_figure_says_where_it_is_from(name):
    profile = cost.load(name)
    assert profile.name == name
    for key, figure in profile.figures.items():
        assert figure.source, key
        assert figure.status in STATUS
        assert figure.unit in ("B/s", "FLOP/s", "s", "groups")
    assert profile.peak >= max(
        f.value for key, f in profile.figures.items() if key.startswith("bytes") and key != "bytes a thread"
    )
    for family in FAMILIES:
        for arithmetic in ("float", "packed", "matrix"):
            assert 0 < profile.seconds(work(family=family, arithmetic=arithmetic)) < 1


def test_all_profiles_are_listed():
    assert tuple(cost.names()) == PROFILES
    assert (FOLDER / "models" / "qwen3-omni-30b-a3b.json").is_file()


def test_the_slower_of_bytes_and_flops_decides(paper):
    profile, _ = paper
    own = profile.figure("dispatch")
    rate = profile.figure("bytes matvec")
    assert profile.seconds(work()) == pytest.approx(own + 1e7 / rate)
    assert profile.seconds(work(nbytes=2e7)) == pytest.approx(own + 2e7 / rate)
    flops = profile.figure("flops matmul packed", "flops packed")
    assert profile.seconds(work(family="matmul", flops=1e12)) == pytest.approx(own + 1e12 / flops)


def test_few_threads_and_few_groups_are_slow(paper):
    """One workgroup cannot keep a memory busy, and half the groups fill half the units."""
    profile, _ = paper
    own = profile.figure("dispatch")
    assert profile.seconds(work(threads=256)) == pytest.approx(own + 1e7 / (256 * profile.figure("bytes a thread")))
    full = profile.seconds(work(flops=1e12)) - own
    half = profile.seconds(work(flops=1e12, groups=int(profile.figure("units")) // 2)) - own
    assert half == pytest.approx(2 * full)


def test_the_host_is_hidden_behind_the_device(paper):
    profile, model = paper
    slow = replace(profile, figures=profile.figures | {"host step": cost.Figure(1.0, "s", "estimated", "a test")})
    found = cost.predict_decode(slow, model, 4, 0, 4096, "f16")
    assert found.seconds == pytest.approx(found.host_s)
    apart = cost.predict_decode(replace(slow, overlap=False), model, 4, 0, 4096, "f16")
    assert apart.seconds == pytest.approx(apart.host_s + apart.device_s)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts: facts.pop("figures"), "is no profile"),
        (lambda facts: facts["figures"]["dispatch"].pop("source"), "is no profile"),
        (lambda facts: facts["figures"]["dispatch"].update(status="hoped"), "'dispatch' must be positive"),
        (lambda facts: facts["figures"]["dispatch"].update(value=0), "'dispatch' must be positive"),
    ],
)
def test_a_damaged_profile(change, words, tmp_path):
    facts = json.loads((FOLDER / "strix-halo.json").read_text(encoding="utf-8"))
    change(facts)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(InvalidRequest, match=words) as caught:
        cost.load(str(path))
    assert "\n" not in str(caught.value)


def test_a_figure_that_is_missing(paper):
    profile, model = paper
    bare = replace(profile, figures={key: f for key, f in profile.figures.items() if key != "dispatch"})
    with pytest.raises(InvalidRequest, match=r"no figure 'dispatch'; add it to strix-halo\.json"):
        cost.predict_decode(bare, model, 1, 0, 64, "f16")


# Measured on the spot -----------------------------------------------------------------------------------------------


def test_lines_through_points():
    rng = np.random.default_rng()
    fixed, per = rng.uniform(1e-5, 1e-3), rng.uniform(1e-10, 1e-8)
    amounts = rng.uniform(1e4, 1e7, 6)
    line = fitted([(x, fixed + per * x) for x in amounts])
    assert (line.fixed, line.per) == (pytest.approx(fixed, rel=1e-6), pytest.approx(per, rel=1e-6))
    assert line(2e7) == pytest.approx(fixed + per * 2e7)
    assert fitted([(5.0, 1e-3), (5.0, 3e-3), (5.0, 2e-3)]) == Line(2e-3, 0.0)  # one size: what it took
    steep, falling = fitted([(1.0, 1e-6), (10.0, 1e-3)]), fitted([(1.0, 2e-3), (10.0, 1e-3)])
    assert steep.fixed == 0
    assert steep.per > 0
    assert falling.per == 0
    assert 1e-3 < falling.fixed < 2e-3


def test_what_is_timed_is_not_what_is_predicted():
    """Other widths, fewer layers and tokens; rows as long and as aligned, the same heads and types."""
    dense = _dense()
    types = {name: "q8_0" if len(shape) > 1 else "f32" for name, shape in tensor_shapes(dense).items()}
    for sketch in (cost.Sketch.shipped(), cost.Sketch(dense, types, "dense")):
        c = sketch.config
        for other in others(sketch):
            o = other.config
            assert (o.dim, o.n_heads, o.n_kv_heads, o.head_dim) == (c.dim, c.n_heads, c.n_kv_heads, c.head_dim)
            assert o.n_layers < c.n_layers
            assert o.vocab_size < c.vocab_size
            for ours, theirs in ((o.ffn_dim, c.ffn_dim), (o.expert_dim, c.expert_dim)):
                assert (ours == 0) == (theirs == 0)
                assert ours != theirs or ours == 0
                assert ours & -ours == theirs & -theirs


def test_a_length_near_another():
    """Never the same; the same power of two."""
    for length in (64, 96, 128, 768, 1536, 2816, 11008):
        for factor in (0.5, 2.0):
            near = _near(length, factor)
            assert near != length
            assert near & -near == length & -length
            assert near < 5 * length
    assert _near(0, 2.0) == 0


@pytest.mark.parametrize("head", [False, True])
def test_logits_only_where_they_are_wanted(head, paper):
    """The engine computes them after the last chunk of a prompt alone."""
    _, model = paper
    ops = [step.op for step in cost.prefill_plan(model, 0, 512, 4096, head=head).steps]
    assert ops.count("select_row") == head


def _dense():
    config = cost.Sketch.shipped().config
    return replace(config, ffn_dim=1536, n_experts=0, n_experts_used=0, expert_dim=0)


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ["qwen3", "qwen3moe"])
def test_a_device_is_measured(arch, tmp_path, device):
    """Every kind of dispatch of the model has its line; and what the model needs is the sum of them."""
    sizes = {"n_layers": 3, "dim": 64, "vocab": 512, "type": "q8_0", "context_length": 1024}
    sketch = cost.Sketch.of_file(read_gguf(write_tiny(tmp_path / "x.gguf", arch=arch, **sizes)))
    device.wait()  # makes its fence
    allocated, asked = device.allocated, dict(device.asked)
    measured = calibrate(device, sketch, "f32", "f16", [1, 8], repeat=1)
    assert device.allocated == allocated
    model = cost.paper_model(sketch, cost.PaperDevice.like(device))
    steps = cost.works(cost.decode_plan(model, 40, 128), model, 1)
    assert {key_of(step) for step in steps} <= set(measured.lines)
    found = cost.predict_decode(measured, model, 8, 36, 128, "f16")
    assert found.seconds == pytest.approx(8 * (measured.host_step + sum(measured.seconds(step) for step in steps)))
    assert cost.predict_prefill(measured, model, 8, 0, 128, "f16").seconds > measured.host_step
    assert measured.overlap != device.info.software
    assert asked.items() <= device.asked.items()
    odd = replace(steps[1], tokens=3)  # measured with other numbers of tokens only
    assert measured.seconds(odd) > 0
    with pytest.raises(InvalidRequest, match="not measured"):
        measured.seconds(replace(steps[1], op="unheard_of"))
