"""Models from the hub: which files are chosen, that they arrive whole, and what is said when they do not."""

import errno
import json
import os
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import Failure, HubServer, Repo

from qwen3omni_wgpu import hub
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, ModelNotFound, OmniError, UnsupportedModel
from qwen3omni_wgpu.hub import transfer
from qwen3omni_wgpu.hub.choice import choose

OMNI = [f"{prefix}big-{type}.gguf" for type in ("Q8_0", "F16") for prefix in ("", "mmproj-", "talker-")]


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use(monkeypatch, tmp_path)
        yield server


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "hub" / "models--u--m"


def contents(*names: str) -> dict[str, bytes]:
    """Random files of different sizes, so that no two could be taken for each other."""
    return {name: os.urandom(random.randint(1000, 3000) + 5000 * index) for index, name in enumerate(names)}


def scramble(text: str) -> str:
    return "".join(random.choice((letter.upper(), letter.lower())) for letter in text)


def chosen(names, quant="", parts=("thinker",), index=None) -> list[str]:
    names = random.sample(names, len(names))
    return list(choose("u/m", names, quant, parts, lambda: index or {}).files)


# What is a model of the hub, and which of its files are wanted


@pytest.mark.parametrize(("text", "answer"), [
    ("user/repo", True), ("user/repo:Q8_0", True), ("u.s-er/Qwen3-0.6B-GGUF:q4_k_m", True),
    ("user/repo:sub/file-Q8_0.gguf", True), ("smollm2", False), ("a/b/c", False), ("user/model.gguf", False),
    ("hf/model.safetensors", False), ("hf/config.json", False), ("./repo", False), ("../repo", False),
    ("/user/repo", False), ("user/", False), ("user/repo:", False), ("https://huggingface.co/user/repo", False),
    ("", False),
])  # fmt: skip
def test_the_form_of_a_hub_id(text, answer):
    assert hub.is_hub_id(text) is answer
    if answer:
        assert ":".join(filter(None, hub.split_id(text))) == text
    else:
        with pytest.raises(InvalidRequest, match="user/repo"):
            hub.split_id(text)


@pytest.mark.parametrize(("quant", "names", "expected"), [
    ("Q4_K_M", ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q4_K_L.gguf"], "m-Q4_K_M.gguf"),
    ("Q4_0", ["m.Q4_0.gguf", "m.IQ4_0.gguf", "m.Q4_0_4_8.gguf"], "m.Q4_0.gguf"),
    ("F16", ["m-F16.gguf", "m-BF16.gguf"], "m-F16.gguf"),
    ("F16", ["m-fp16.gguf", "m-q8_0.gguf"], "m-fp16.gguf"),
    ("BF16", ["m-F16.gguf", "m_bf16.gguf"], "m_bf16.gguf"),
    ("Q8_0", ["BF16/m-BF16.gguf", "Q8_0/m-Q8_0.gguf"], "Q8_0/m-Q8_0.gguf"),
    ("Q8_0", ["F16/model.gguf", "Q8_0/model.gguf"], "Q8_0/model.gguf"),
    ("Q8_0", ["m-Q8_0.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"], "m-Q8_0.gguf"),
    ("Q8_0", ["m-Q8_0.gguf", "mmproj-m-Q8_0.gguf", "talker-m-Q8_0.gguf", "m.mmproj-Q8_0.gguf"], "m-Q8_0.gguf"),
    ("a-Q8_0", ["a-Q8_0.gguf", "b-Q8_0.gguf"], "a-Q8_0.gguf"),
    ("a-Q8_0.gguf", ["a-Q8_0.gguf", "b-Q8_0.gguf"], "a-Q8_0.gguf"),
    ("", ["m-Q4_0.gguf", "m-BF16.gguf", "m-F16.gguf", "m-Q8_0.gguf"], "m-Q8_0.gguf"),
    ("", ["m-Q4_0.gguf", "m-BF16.gguf", "m-F16.gguf"], "m-F16.gguf"),
    ("", ["m-Q4_0.gguf", "m-BF16.gguf"], "m-BF16.gguf"),
    ("", ["m-Q4_0.gguf", "m.imatrix.gguf", "mmproj-m-F16.gguf"], "m-Q4_0.gguf"),
    ("", ["m.gguf"], "m.gguf"),
    ("", ["m-Q4_0.gguf", "m-F16-00001-of-00001.gguf"], "m-Q4_0.gguf"),
])  # fmt: skip
def test_the_type_chooses_the_thinker(quant, names, expected):
    assert chosen(names, scramble(quant)) == [expected]


@pytest.mark.parametrize(("quant", "names", "words"), [
    ("Q5_0", ["m-Q4_0.gguf", "m-Q8_0.gguf"], r"u/m has no Q5_0; it has: Q4_0, Q8_0; for example u/m:Q[48]_0"),
    ("K_M", ["m-Q4_K_M.gguf", "m-Q5_K_M.gguf"], r"several types: Q4_K_M, Q5_K_M; name one, for example u/m:Q4_K_M"),
    ("", ["m-Q4_0.gguf", "m-Q5_0.gguf"], "several types: Q4_0, Q5_0; name one, for example u/m:Q4_0"),
    ("", ["a-Q8_0.gguf", "b-Q8_0.gguf"], "several models: a-Q8_0.gguf, b-Q8_0.gguf; .* u/m:a-Q8_0.gguf"),
    ("q4_k_m", ["model.safetensors", "config.json"], "no GGUF of type q4_k_m; it can be loaded as u/m:q8_0"),
])  # fmt: skip
def test_an_open_choice_lists_what_there_is(quant, names, words):
    with pytest.raises(InvalidRequest, match=words):
        chosen(names, quant)


@pytest.mark.parametrize("quant", ["", "BF16"])
def test_pieces_are_to_be_joined_first(quant):
    names = [f"BF16/m-BF16-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with pytest.raises(UnsupportedModel, match=r"3 pieces.*hf download u/m --include 'BF16/m-BF16-\*.gguf'.*--merge"):
        chosen(names, quant)


@pytest.mark.parametrize(("model", "companions", "expected"), [
    ("big-Q8_0.gguf", ["mmproj-big-F16.gguf", "mmproj-big-Q8_0.gguf"], "mmproj-big-Q8_0.gguf"),
    ("big-F16.gguf", ["mmproj-big-F16.gguf", "mmproj-big-Q8_0.gguf"], "mmproj-big-F16.gguf"),
    ("big-Q4_K_M.gguf", ["mmproj-big-F32.gguf", "mmproj-big-F16.gguf", "mmproj-big-Q8_0.gguf"], "mmproj-big-Q8_0.gguf"),
    ("big-Q8_0.gguf", ["mmproj-other-Q8_0.gguf", "mmproj-big-F16.gguf"], "mmproj-big-F16.gguf"),
    ("big-Q8_0.gguf", ["mmproj-BF16.gguf", "mmproj-F16.gguf"], "mmproj-F16.gguf"),
    ("a/big-Q8_0.gguf", ["b/mmproj-big-Q8_0.gguf", "a/mmproj-F16.gguf"], "a/mmproj-F16.gguf"),
])  # fmt: skip
def test_the_companion_that_fits_best(model, companions, expected):
    assert chosen([model, *companions], parts=("thinker", "mmproj")) == [model, expected]
    assert chosen([model, *companions], parts=None) == [model, expected]
    assert chosen([model, *companions], parts=("mmproj",)) == [expected]
    with pytest.raises(InvalidRequest, match=r"no talker file; it has: .*mmproj"):
        chosen([model, *companions], parts=("thinker", "talker"))


def test_a_repository_without_a_model():
    with pytest.raises(UnsupportedModel, match=r"neither GGUF nor safetensors files \(pytorch_model.bin\)"):
        chosen(["pytorch_model.bin"])
    with pytest.raises(ModelNotFound, match=r"only mmproj-m-F16\.gguf"):
        chosen(["mmproj-m-F16.gguf"])


def test_a_row_of_shards_has_a_sane_end():
    files = chosen(["model-00002-of-99999.safetensors"])
    assert files[0] == "model-00001-of-99999.safetensors"
    assert len(files) < 10000


# GGUF


def test_a_text_user_gets_the_thinker_and_nothing_else(server, cache):
    files = contents(*OMNI, "README.md", "config.json")
    server.repos["u/m"] = repo = Repo(files)
    path = hub.fetch("u/m:" + scramble("f16"))
    assert path == cache / "snapshots" / repo.commit / "big-F16.gguf"
    assert path.read_bytes() == files["big-F16.gguf"]
    assert server.requested() == {"big-F16.gguf", "config.json"}
    assert server.bodies() == {name: len(files[name]) for name in server.requested()}


def test_all_parts_lie_side_by_side(server):
    server.repos["u/m"] = Repo(files := contents(*OMNI))
    path = hub.fetch("u/m", parts=None)
    assert path.name == "big-Q8_0.gguf"
    assert server.requested() == {"big-Q8_0.gguf", "mmproj-big-Q8_0.gguf", "talker-big-Q8_0.gguf"}
    assert all((path.parent / name).read_bytes() == files[name] for name in server.requested())


def test_a_part_comes_later_on_its_own(server):
    server.repos["u/m"] = Repo(files := contents(*OMNI))
    hub.fetch("u/m")
    server.log.clear()
    path = hub.fetch("u/m", parts=("thinker", "mmproj"))
    assert path.name == "big-Q8_0.gguf"
    assert server.bodies() == {"mmproj-big-Q8_0.gguf": len(files["mmproj-big-Q8_0.gguf"])}
    assert hub.fetch("u/m", parts=("talker",)).name == "talker-big-Q8_0.gguf"


def test_the_token_stays_on_the_hub(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.repos["u/m"] = Repo(contents("m-Q8_0.gguf"))
    hub.fetch("u/m")
    assert {request.token for request in server.log if not request.large} == {"Bearer hf_secret"}
    assert {request.token for request in server.log if request.large} == {None}


# Checkpoints

TENSORS = {
    "thinker.model.embed_tokens.weight": 1, "thinker.model.layers.0.mlp.gate.weight": 2, "thinker.lm_head.weight": 3,
    "thinker.visual.blocks.0.attn.qkv.bias": 3, "thinker.audio_tower.conv2d1.weight": 4,
    "talker.model.codec_embedding.weight": 5, "code2wav.code_embedding.weight": 6,
}  # fmt: skip
SIDE = ("config.json", "generation_config.json", "vocab.json", "merges.txt", "tokenizer_config.json",
        "preprocessor_config.json", "chat_template.json")  # fmt: skip


def shard(number: int, count: int = 6) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def checkpoint(tensors: dict[str, int]) -> dict[str, bytes]:
    index = {"metadata": {}, "weight_map": {name: shard(number) for name, number in tensors.items()}}
    numbers = sorted(set(tensors.values()))
    files = contents(*SIDE, *map(shard, numbers), "README.md", "original/model.safetensors")
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


@pytest.mark.parametrize(("parts", "numbers"), [
    (("thinker",), {1, 2, 3}), (("thinker", "mmproj"), {1, 2, 3, 4}), (("talker",), {5, 6}),
    (("mmproj",), {3, 4}), (None, {1, 2, 3, 4, 5, 6}),
])  # fmt: skip
def test_the_index_says_which_shards_hold_a_part(server, cache, parts, numbers):
    server.repos["u/m"] = repo = Repo(files := checkpoint(TENSORS))
    folder = hub.fetch("u/m:q8_0", parts=parts)
    assert folder == cache / "snapshots" / repo.commit
    wanted = {*map(shard, numbers), *SIDE, "model.safetensors.index.json"}
    assert {path.name for path in folder.iterdir()} == wanted == server.requested()
    assert all((folder / name).read_bytes() == files[name] for name in wanted)
    assert hub.fetch("u/m", parts=parts or hub.PARTS, offline=True) == folder


def test_a_plain_text_model_is_all_thinker(server):
    server.repos["u/m"] = Repo(checkpoint({"model.embed_tokens.weight": 1, "lm_head.weight": 2}))
    folder = hub.fetch("u/m")
    assert len(list(folder.glob("*.safetensors"))) == 2
    with pytest.raises(InvalidRequest, match="u/m has no talker; it has: thinker"):
        hub.fetch("u/m", parts=("thinker", "talker"))


@pytest.mark.parametrize("shards", [["model.safetensors"], [shard(i, 3) for i in (1, 2, 3)]])
def test_checkpoints_without_an_index_come_whole(server, shards):
    server.repos["u/m"] = Repo(contents("config.json", *shards))
    folder = hub.fetch("u/m")
    assert {path.name for path in folder.iterdir()} == {"config.json", *shards}


@pytest.mark.parametrize("index", [True, False])
def test_a_checkpoint_that_lacks_a_shard(server, index):
    files = checkpoint(TENSORS) if index else contents("config.json", *map(shard, (1, 2, 3, 4, 5, 6)))
    del files[shard(2)]
    server.repos["u/m"] = Repo(files)
    with pytest.raises(InvalidModelFile, match=r"u/m is incomplete: it lacks model-00002-of-00006\.safetensors"):
        hub.fetch("u/m")
    assert not any(name.endswith(".safetensors") for name in server.requested())


@pytest.mark.parametrize(("data", "words"), [
    (b"{", "is no JSON"), (b"\xff", "is no JSON"), (b"[]", "no weight_map"), (b'{"weight_map": []}', "no weight_map"),
    (b'{"weight_map": {"a": 1}}', "a is in 1, which is no safetensors file"),
    (b'{"weight_map": {"a": "../../x"}}', "a is in '../../x'"),
    (b'{"weight_map": {"a": "../../x.safetensors"}}', "it lacks ../../x.safetensors"),
])  # fmt: skip
def test_a_damaged_index(server, data, words):
    server.repos["u/m"] = Repo(checkpoint(TENSORS) | {"model.safetensors.index.json": data})
    with pytest.raises(InvalidModelFile, match=words):
        hub.fetch("u/m")


def test_both_kinds_in_one_repository(server):
    server.repos["u/m"] = Repo(contents("config.json", "model.safetensors", "m-Q4_0.gguf"))
    assert hub.fetch("u/m").name == "m-Q4_0.gguf"
    server.log.clear()
    folder = hub.fetch("u/m:safetensors")
    assert (folder / "model.safetensors").exists()
    assert set(server.bodies()) == {"model.safetensors"}


# Resuming


def test_a_dropped_line_is_taken_up_in_the_same_run(server):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    data = files["m-Q8_0.gguf"]
    server.cuts["m-Q8_0.gguf"] = [0, 0, 300, 0, 0, 500]  # tries that bring nothing are counted anew after one that does
    assert hub.fetch("u/m").read_bytes() == data
    ranges = [request.range for request in server.log if request.large and request.method == "GET"]
    end = len(data) - 1
    assert ranges == [None] * 3 + [f"bytes=300-{end}"] * 3 + [f"bytes=800-{end}"]


def test_a_second_run_asks_only_for_the_rest(server, cache):
    server.repos["u/m"] = repo = Repo(files := contents("config.json", "m-Q8_0.gguf"))
    data = files["m-Q8_0.gguf"]
    stop = random.randint(1, len(data) - 1)
    server.cuts["m-Q8_0.gguf"] = [stop, 0, 0, 0]
    with pytest.raises(OmniError, match=r"cannot reach http://127.0.0.1:\d+ .* what has come is kept"):
        hub.fetch("u/m")
    assert not (cache / "snapshots" / repo.commit / "m-Q8_0.gguf").exists()
    assert not (cache / "refs").exists()
    server.log.clear()
    seen = []
    path = hub.fetch("u/m", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == data
    assert [request.range for request in server.log if request.sent and request.large] == [
        f"bytes={stop}-{len(data) - 1}"
    ]
    assert server.bodies() == {"m-Q8_0.gguf": len(data) - stop}
    assert seen[0] == (stop, len(data))
    assert seen[-1] == (len(data), len(data))
    assert not list(cache.rglob("*.incomplete"))


def test_a_server_without_ranges_sends_all_again(server):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    server.cuts["m-Q8_0.gguf"] = [400]
    server.no_ranges = True
    seen = []
    path = hub.fetch("u/m", progress=lambda done, total: seen.append(done))
    assert path.read_bytes() == files["m-Q8_0.gguf"]
    assert 0 in seen
    assert seen[-1] == path.stat().st_size


def test_a_very_large_file_is_asked_for_in_spans(server, monkeypatch):
    monkeypatch.setattr(transfer, "_SPAN", 700)
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    assert hub.fetch("u/m").read_bytes() == files["m-Q8_0.gguf"]
    bodies = [request for request in server.log if request.large and request.sent]
    assert len(bodies) == -(-len(files["m-Q8_0.gguf"]) // 700)
    assert all(request.sent <= 700 for request in bodies)


def test_progress_never_passes_the_total(server):
    server.repos["u/m"] = Repo(files := contents(*OMNI))
    seen = []
    hub.fetch("u/m", parts=None, progress=lambda done, total: seen.append((done, total)))
    total = sum(len(files[name]) for name in files if "Q8_0" in name)
    assert all(done <= total == told for done, told in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == total


def test_a_passing_failure_of_the_server_is_waited_out(server):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    server.failures = [Failure(pattern, status, times=1) for pattern in ("HEAD", "GET .*gguf") for status in (503, 429)]
    assert hub.fetch("u/m").read_bytes() == files["m-Q8_0.gguf"]


def test_two_at_once_fetch_once(server):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(hub.fetch("u/m"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [path.read_bytes() for path in paths] == [files["m-Q8_0.gguf"]] * 2
    assert server.bodies() == {"m-Q8_0.gguf": len(files["m-Q8_0.gguf"])}


# Wrong bytes


def test_wrong_bytes_are_found_and_not_kept(server, cache):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    server.wrong = {"m-Q8_0.gguf"}
    with pytest.raises(InvalidModelFile, match=r"m-Q8_0.gguf of u/m arrived damaged \(other bytes .*pull it again"):
        hub.fetch("u/m")
    assert not list(cache.glob("blobs/*"))
    server.wrong = set()
    assert hub.fetch("u/m").read_bytes() == files["m-Q8_0.gguf"]


@pytest.mark.parametrize("extra", [0, 1])
def test_a_damaged_beginning_is_not_built_upon(server, cache, extra):
    """The unfinished file of an earlier run was changed: shorter than the file, or already longer."""
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    sha256 = hub.plan("u/m").files[0].sha256
    unfinished = cache / "blobs" / f"{sha256}.incomplete"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(os.urandom(len(files["m-Q8_0.gguf"]) * extra + 100))
    if not extra:
        with pytest.raises(InvalidModelFile, match="arrived damaged"):
            hub.fetch("u/m")
    assert hub.fetch("u/m").read_bytes() == files["m-Q8_0.gguf"]


def test_an_etag_is_no_way_out_of_the_cache(server, tmp_path):
    server.repos["u/m"] = Repo(contents("m-Q8_0.gguf"))
    headers = {"X-Repo-Commit": server.repos["u/m"].commit, "ETag": '"../../../evil"', "X-Linked-Size": "5"}
    server.failures = [Failure("HEAD .*gguf", 200, headers=headers)]
    with pytest.raises(InvalidModelFile, match="no usable ETag"):
        hub.fetch("u/m")
    assert not list(tmp_path.rglob("*evil*"))


# The cache


def test_what_is_here_needs_no_network(server):
    server.repos["u/m"] = Repo(contents("m-Q4_0.gguf", "m-Q8_0.gguf"))
    path = hub.fetch("u/m:Q4_0")
    server.log.clear()
    assert hub.fetch("u/m:Q4_0") == hub.fetch("u/m:q4_0", offline=True) == path
    assert hub.fetch("u/m", offline=True) == path  # the only one here
    assert server.log == []
    with pytest.raises(ModelNotFound, match=r"has no Q8_0; it has: Q4_0.*qwen3omni pull u/m:Q8_0. without --offline"):
        hub.fetch("u/m:Q8_0", offline=True)
    assert server.log == []
    assert hub.fetch("u/m:Q8_0").name == "m-Q8_0.gguf"


def test_offline_says_what_is_missing_and_how_to_get_it(server, monkeypatch):
    server.repos["u/m"] = Repo(checkpoint(TENSORS))
    with pytest.raises(
        ModelNotFound, match=r"u/m is not .* \(nothing of it is there\); get it with `qwen3omni pull u/m`"
    ):
        hub.fetch("u/m", offline=True)
    hub.fetch("u/m")
    with pytest.raises(ModelNotFound, match=r"\(2 of 10 files are missing, model-00005-of-00006.safetensors among"):
        hub.fetch("u/m", parts=("talker",), offline=True)
    server.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.fetch("u/m").is_dir()
    with pytest.raises(ModelNotFound, match=r"pull u/other --revision v2` without HF_HUB_OFFLINE"):
        hub.fetch("u/other", revision="v2")
    assert server.log == []


def test_a_deleted_blob_counts_as_missing(server):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    path = hub.fetch("u/m")
    path.resolve().unlink()
    with pytest.raises(ModelNotFound, match="not complete in the cache"):
        hub.fetch("u/m", offline=True)
    assert hub.fetch("u/m").read_bytes() == files["m-Q8_0.gguf"]


def test_a_new_commit_brings_only_what_changed(server):
    files = contents("config.json", "m-Q8_0.gguf", "mmproj-m-F16.gguf")
    server.repos["u/m"] = Repo(files)
    old = hub.fetch("u/m", parts=None)
    server.repos["u/m"] = Repo(files | contents("config.json"))
    server.log.clear()
    assert hub.fetch("u/m") == old
    assert server.log == []
    new = hub.download(hub.plan("u/m"))
    assert new != old
    assert set(server.bodies()) == {"config.json"}
    assert hub.fetch("u/m", offline=True) == new


def test_a_revision_by_its_commit(server):
    server.repos["u/m"] = repo = Repo(contents("m-Q8_0.gguf"))
    path = hub.fetch("u/m", revision=repo.commit)
    assert path == hub.fetch("u/m", revision=repo.commit, offline=True)
    with pytest.raises(ModelNotFound):
        hub.fetch("u/m", offline=True)
    with pytest.raises(InvalidRequest, match="is no revision"):
        hub.fetch("u/m", revision="../../x")
    with pytest.raises(InvalidRequest, match="no part 'vision'; the parts are thinker, mmproj, talker"):
        hub.fetch("u/m", parts=("vision",))


# What is said when it does not work


@pytest.mark.parametrize(("failure", "kind", "words"), [
    (Failure("", 401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}), OmniError,
     "does not accept the token.*HF_TOKEN"),
    (Failure("", 403, headers={"X-Error-Code": "GatedRepo"}), ModelNotFound, "accepted its terms at .*/u/m; .*hf auth"),
    (Failure("", 403), OmniError, "denies access to u/m .403."),
    (Failure("", 404, headers={"X-Error-Code": "RepoNotFound"}), ModelNotFound, "no model u/m at .*private"),
    (Failure("", 404), OmniError, "refuses a request for u/m .404"),
    (Failure("", 429), OmniError, "too many requests .*429.*in a few minutes"),
    (Failure("", 429, headers={"Retry-After": "77"}), OmniError, "try again in 77 s"),
    (Failure("", 500), OmniError, "out of order .500."),
    (Failure("", 503), OmniError, "out of order .503."),
    (Failure("/api/", 200, body=b"<html>please log in</html>"), OmniError, "does not answer as the hub does"),
    (Failure("/api/", 200, body=b"[1]"), OmniError, "does not answer as the hub does"),
    (Failure("/api/", 200, body=b'{"id": "u/m"}'), OmniError, "names no commit"),
    (Failure("GET .*gguf", 500), OmniError, "out of order .500."),
    (Failure("GET .*gguf", 403), OmniError, "denies access"),
    (Failure("HEAD .*gguf", 404, headers={"X-Error-Code": "EntryNotFound"}), ModelNotFound, "lists a file that cannot"),
    (Failure("HEAD .*gguf", 503), OmniError, "out of order .503."),
])  # fmt: skip
def test_failures_are_one_line_with_advice(server, failure, kind, words):
    server.repos["u/m"] = Repo(contents("m-Q8_0.gguf"))
    server.failures = [failure]
    with pytest.raises(kind, match=words) as caught:
        hub.fetch("u/m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "words"), [(None, "cannot reach"), (500, "is out of order .500.")])
def test_a_failure_of_the_last_step(server, monkeypatch, status, words):
    """huggingface_hub hides the reason behind an error about its cache when it only has to name a file."""
    from huggingface_hub import errors

    def fail(*args, **kwargs):
        response = SimpleNamespace(status_code=status, headers={}, request=None)
        reason = errors.HfHubHTTPError("down", response=response) if status else OSError("down")
        raise errors.LocalEntryNotFoundError("check your\nconnection") from reason

    server.repos["u/m"] = Repo(contents("m-Q8_0.gguf"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(OmniError, match=words) as caught:
        hub.fetch("u/m")
    assert "\n" not in str(caught.value)


def test_no_such_model_no_such_revision_no_such_name(server):
    server.repos["u/m"] = Repo(contents("m-Q8_0.gguf"))
    with pytest.raises(ModelNotFound, match=r"there is no model u/other at http.*private; check the name, or log in"):
        hub.fetch("u/other")
    with pytest.raises(ModelNotFound, match="u/m has no revision 'v9'"):
        hub.fetch("u/m", revision="v9")
    with pytest.raises(InvalidRequest, match="'u/a--b' cannot be the name of a repository"):
        hub.fetch("u/a--b")


def test_no_network(tmp_path, monkeypatch):
    server = HubServer()
    server.use(monkeypatch, tmp_path)
    with server:
        pass  # its port is closed again
    with pytest.raises(
        OmniError, match=r"cannot reach http://127.0.0.1:\d+ \(.*\); check the network.*--offline"
    ) as error:
        hub.fetch("u/m")
    assert "\n" not in str(error.value)


def test_a_disk_too_small_is_found_before_anything_comes(server, monkeypatch):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    free = len(files["m-Q8_0.gguf"]) - 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(
        OmniError, match=r"u/m needs [\d.]+ kB more on the disk of .* are free; make room, or set HF_HOME"
    ):
        hub.fetch("u/m")
    assert server.requested() == set()


def test_what_an_earlier_run_brought_needs_no_room(server, monkeypatch):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))
    server.cuts["m-Q8_0.gguf"] = [400, 0, 0, 0]
    with pytest.raises(OmniError, match="what has come is kept"):
        hub.fetch("u/m")
    free = len(files["m-Q8_0.gguf"]) - 400
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free - 1))
    with pytest.raises(OmniError, match="make room"):
        hub.fetch("u/m")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    assert hub.fetch("u/m").read_bytes() == files["m-Q8_0.gguf"]


@pytest.mark.parametrize(("number", "words"), [
    (errno.ENOSPC, "is full; what has come is kept"), (errno.EROFS, "no right to write"),
])  # fmt: skip
def test_a_disk_that_takes_no_more(server, monkeypatch, number, words):
    server.repos["u/m"] = Repo(files := contents("m-Q8_0.gguf"))

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OmniError, match=words):
            hub.fetch("u/m")
    server.log.clear()
    assert hub.fetch("u/m").read_bytes() == files["m-Q8_0.gguf"]
    assert server.bodies() == {}


def test_sizes_for_people():
    assert [hub.readable(n) for n in (0, 999, 1000, 4_250_000, 36_000_000_000)] == [
        "0 bytes", "999 bytes", "1.0 kB", "4.2 MB", "36.0 GB"
    ]  # fmt: skip
