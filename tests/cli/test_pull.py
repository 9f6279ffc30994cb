"""`qwen3omni pull` and hub ids in place of a path, against a stand-in for the hub on loopback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import Failure, HubServer, Repo

from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.locate import locate

ROOT = Path(__file__).parent.parent.parent
NAMES = ("m-Q8_0.gguf", "mmproj-m-Q8_0.gguf", "talker-m-Q8_0.gguf", "m-F16.gguf", "config.json")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use(monkeypatch, tmp_path)
        server.repos["u/m"] = Repo({name: os.urandom(1500 + 100 * i) for i, name in enumerate(NAMES)})
        yield server


def snapshot(server: HubServer, home: Path) -> Path:
    return home / "hub" / "models--u--m" / "snapshots" / server.repos["u/m"].commit


def test_the_path_is_the_answer(server, command, tmp_path):
    done = command("pull", "u/m")
    assert done.status == 0
    assert done.out == f"{snapshot(server, tmp_path) / 'm-Q8_0.gguf'}\n"
    assert done.err.splitlines() == [
        "fetching 4 files, 6.7 kB (m-Q8_0.gguf, mmproj-m-Q8_0.gguf, talker-m-Q8_0.gguf) of u/m"
    ]
    again = command("pull", "u/m", "-q")
    assert (again.status, again.out, again.err) == (0, done.out, "")


@pytest.mark.parametrize(("options", "wanted"), [
    (["--text-only"], {"m-Q8_0.gguf"}),
    (["--parts", "thinker,mmproj"], {"m-Q8_0.gguf", "mmproj-m-Q8_0.gguf"}),
    (["--parts", "talker"], {"talker-m-Q8_0.gguf"}),
])  # fmt: skip
def test_only_the_parts_asked_for_are_touched(server, command, options, wanted):
    assert command("pull", "-m", "u/m", *options).status == 0
    assert server.requested() == wanted | {"config.json"}


def test_json_is_one_document(server, command, tmp_path):
    files = server.repos["u/m"].files
    done = command("pull", "u/m:f16", "--text-only", "--json")
    document = json.loads(done.out)
    size = len(files["m-F16.gguf"]) + len(files["config.json"])
    assert document["path"] == str(snapshot(server, tmp_path) / "m-F16.gguf")
    assert (document["bytes"], document["fetched_bytes"]) == (size, size)
    assert [(file["name"], file["part"], file["bytes"]) for file in document["files"]] == [
        ("config.json", "shared", len(files["config.json"])),
        ("m-F16.gguf", "thinker", len(files["m-F16.gguf"])),
    ]
    assert document["commit"] == server.repos["u/m"].commit
    again = json.loads(command("pull", "u/m:f16", "--text-only", "--json", "--offline").out)
    assert (again["path"], again["bytes"], again["fetched_bytes"]) == (document["path"], size, 0)


def test_a_dry_run_lists_and_fetches_nothing(server, command, tmp_path):
    command("pull", "u/m", "--parts", "mmproj")
    server.log.clear()
    done = command("pull", "u/m", "--dry-run")
    assert done.status == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[:4] == [
        ["1.9", "kB", "shared", "config.json", "(here)"],
        ["1.5", "kB", "thinker", "m-Q8_0.gguf"],
        ["1.6", "kB", "mmproj", "mmproj-m-Q8_0.gguf", "(here)"],
        ["1.7", "kB", "talker", "talker-m-Q8_0.gguf"],
    ]
    assert rows[4] == ["6.7", "kB", "in", "all,", "3.2", "kB", "to", "fetch", "into",
                       str(snapshot(server, tmp_path) / "m-Q8_0.gguf")]  # fmt: skip
    document = json.loads(command("pull", "u/m", "--dry-run", "--json").out)
    assert (document["dry_run"], document["bytes"]) == (True, 6700)
    assert server.requested() == set()


def test_the_rest_of_a_list_is_not_wrapped_in_a_sentence(server, command):
    server.repos["u/m"] = Repo({f"model-{i:05}-of-00006.safetensors": b"x" * 10 for i in range(1, 7)})
    assert "fetching 6 files, 60 bytes (model-00001-of-00006.safetensors," in command("pull", "u/m").err


@pytest.mark.parametrize(("arguments", "words"), [
    (["pull"], ["name a model of the hub"]),
    (["pull", "smollm2"], ["'smollm2' is no model of the hub", "user/repo"]),
    (["pull", "u/m", "-m", "u/m"], ["once"]),
    (["pull", "u/m", "--parts", "vision"], ["no part 'vision'", "thinker, mmproj, talker"]),
    (["pull", "u/m", "--parts", ""], ["no part ''"]),
    (["pull", "u/m", "--parts", "talker", "--text-only"], ["--text-only means --parts thinker"]),
    (["pull", "u/m:Q4_0"], ["u/m has no Q4_0; it has: F16, Q8_0"]),
    (["pull", "u/m", "--revision", "v2"], ["u/m has no revision 'v2'"]),
    (["pull", "u/none"], ["there is no model u/none"]),
    (["pull", "u/m", "--offline"], ["not complete in the cache", "without --offline"]),
    (["inspect", "u/none"], ["there is no model u/none"]),
    (["inspect", "u/m", "--offline"], ["not complete in the cache", "qwen3omni pull u/m"]),
])  # fmt: skip
def test_mistakes_are_one_line(server, command, arguments, words):
    command(*arguments).failed_with(*words)


def test_a_failure_keeps_what_has_come(server, command):
    server.failures = [Failure("GET .*talker", 500)]
    done = command("pull", "u/m")
    assert (done.status, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("qwen3omni: error: ")
    server.failures = []
    server.log.clear()
    assert command("pull", "u/m").status == 0
    assert set(server.bodies()) == {"talker-m-Q8_0.gguf"}


def test_a_hub_id_stands_for_the_model(server, command, tiny):
    server.repos["u/tiny"] = Repo({"tiny-F32.gguf": tiny.read_bytes(), "talker-tiny-F32.gguf": b"x"})
    path = locate("u/tiny:f32")
    assert read_gguf(path).tensors.keys() == read_gguf(tiny).tensors.keys()
    assert server.requested() == {"tiny-F32.gguf"}
    server.log.clear()
    assert locate("u/tiny") == locate("u/tiny:Tiny-F32", offline=True) == path
    assert command("pull", "u/tiny", "--text-only", "--offline").out == f"{path}\n"
    assert server.log == []


def test_ctrl_c_says_that_nothing_is_lost(server, command, monkeypatch):
    def interrupted(plan, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen3omni_wgpu.hub.download", interrupted)
    done = command("pull", "u/m")
    assert (done.status, done.out) == (130, "")
    assert "the same command goes on" in done.err


# In a process of its own: the environment counts, and a kill is a kill.


def test_the_environment_is_honoured(server, process, tmp_path):
    variables = server.environment(tmp_path / "home") | {"HF_TOKEN": "hf_secret"}
    done = process("pull", "u/m:F16", "--text-only", **variables)
    assert (done.status, done.out) == (0, f"{snapshot(server, tmp_path / 'home') / 'm-F16.gguf'}\n"), done.err
    assert len(done.err.splitlines()) == 1  # no bars, no warnings
    assert {request.token for request in server.log if not request.large} == {"Bearer hf_secret"}
    server.log.clear()
    offline = process("pull", "u/m:F16", "--text-only", **variables | {"HF_HUB_OFFLINE": "1"})
    assert (offline.status, offline.out) == (0, done.out)
    process("pull", "u/m:Q8_0", **variables | {"HF_HUB_OFFLINE": "1"}).failed_with("HF_HUB_OFFLINE")
    assert server.log == []


def test_a_killed_pull_goes_on_where_it_stopped(server, process, tmp_path):
    server.repos["u/m"] = Repo({"m-Q8_0.gguf": (data := os.urandom(300_000))})
    variables = server.environment(tmp_path / "home")
    released = threading.Event()
    server.stalls["m-Q8_0.gguf"] = (200_000, released)
    running = subprocess.Popen(
        [sys.executable, "-m", "qwen3omni_wgpu", "pull", "u/m"],
        cwd=ROOT, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    blobs = tmp_path / "home" / "hub" / "models--u--m" / "blobs"
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in blobs.glob("*.incomplete")):
        assert running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    released.set()
    (unfinished,) = blobs.iterdir()
    have = unfinished.stat().st_size
    assert 0 < have <= 200_000
    process("pull", "u/m", "--offline", **variables).failed_with("not complete in the cache")
    server.log.clear()
    done = process("pull", "u/m", **variables)
    assert Path(done.out.strip()).read_bytes() == data
    assert server.bodies() == {"m-Q8_0.gguf": len(data) - have}
