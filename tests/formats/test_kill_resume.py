"""kill -9 while a file is written: nothing wrong ever loads, and --resume completes to identical bytes. No GPU.

The runs that are killed are children that a helper process forks, which has imported everything already.
"""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3omni_wgpu.errors import InvalidModelFile, OmniError
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.formats.gguf_writer import write_gguf
from qwen3omni_wgpu.formats.tensors import Derived, TensorInfo

# A line of JSON in -> one run in a child; lines "at DONE TOTAL" while it writes and "ended STATUS" out.
HELPER = """
import json, os, pickle, signal, sys, time
from concurrent.futures import Future
from qwen3omni_wgpu.formats import gguf_writer, part_file

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(module, name, counter, at, kinds):
    # The calls that change the disk: before each (which is after the one before) and, for data, in the middle of it.
    real = getattr(module, name)
    def call(*arguments, **options):
        for kind in kinds:
            counter[0] += 1
            if counter[0] == at:
                if kind == "middle":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                die()
        return real(*arguments, **options)
    setattr(module, name, call)

class Inline:
    # Instead of a pool of threads: the calls come in the same order in every run.
    def __init__(self, *_):
        pass
    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future
    def shutdown(self, **_):
        pass
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass

def run(path, file, stop_at=None, hold=False, call=None, **options):
    part_file._FLUSH_SECONDS, part_file._FLUSH_BYTES = 0.01, 4 << 20
    first = []
    def progress(done, total):
        first.append(done)
        say("at", done, total)
        if stop_at is not None and hold and done >= first[0] + stop_at * (total - first[0]):
            time.sleep(600)
    if call is not None:
        part_file._FLUSH_SECONDS = 0
        gguf_writer.ThreadPoolExecutor = part_file.ThreadPoolExecutor = Inline
        counter = [0]
        for name in ("fdatasync", "fsync", "replace", "ftruncate", "unlink"):
            dying(os, name, counter, call, ["before"])
        dying(os, "pwrite", counter, call, ["before", "middle"])
    gguf_writer.write_gguf(path, file, progress=progress, **options)

with open(sys.argv[1], "rb") as opened:
    files = pickle.load(opened)
while line := sys.stdin.readline():
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            run(order.pop("path"), files[order.pop("file")], **order)
        except BaseException as error:
            say("error", repr(error))
            os._exit(1)
        os._exit(0)
    say("child", child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    say("over")
    sys.stdin.readline()  # until then the number stays the child's, and killing it harmless
    say("ended", os.waitpid(child, 0)[1])
"""


class Helper:
    def __init__(self, folder: Path, files: dict[str, GGUFFile]) -> None:
        (folder / "files.pickle").write_bytes(pickle.dumps(files))
        command = [sys.executable, "-c", HELPER, str(folder / "files.pickle")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, path: Path, file: str, **order: Any) -> Iterator[list[str]]:
        """Start a run; its lines as words, the last one is ["ended", STATUS]."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"path": str(path), "file": file, **order}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line == "over\n":
                self.process.stdin.write("\n")
                self.process.stdin.flush()
                continue
            yield line.split()
            if line.startswith("ended"):
                return
        raise AssertionError("the helper ended")

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # also a child that a failed test has left
        self.process.communicate()


@pytest.fixture
def workplace(tmp_path):
    """(folder, helper, {"large": about 100 MB, "small": a few blocks}): virtual files of random weights."""
    block = np.random.default_rng().standard_normal(1 << 22, np.float32).view(np.uint16)[1::2]
    (tmp_path / "source.bin").write_bytes(block.tobytes())
    files = {}
    for name, values, tensors in (("large", 1 << 22, 18), ("small", 1 << 10, 3)):
        stored = TensorInfo("w", (values // 64, 64), "bf16", tmp_path / "source.bin", 0, values * 2)
        made = [Derived(f"blk.{i}.w", stored.shape, "f16" if i % 6 == 0 else "q8_0", (stored,)) for i in range(tensors)]
        files[name] = GGUFFile(tmp_path, {"general.architecture": "toy"}, {info.name: info for info in made})
    helper = Helper(tmp_path, files)
    yield tmp_path, helper, files
    helper.close()


def check_nothing_wrong_loads(path: Path, whole: bytes) -> None:
    """Neither the target nor the .part may load, unless it is complete."""
    for candidate in (path, path.with_name(path.name + ".part")):
        if not candidate.exists():
            continue
        try:
            read_gguf(candidate)
        except InvalidModelFile:
            assert candidate != path, "the target exists and does not load"
        else:
            assert candidate.read_bytes() == whole, f"{candidate.name} loads and is wrong"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith("out.gguf")}


def test_twenty_kills_at_random_moments(workplace):
    """Half of them while the writing thread stands still at a random place, so that they surely land inside a run."""
    folder, helper, files = workplace
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    write_gguf(folder / "whole.gguf", files["large"])
    whole = (folder / "whole.gguf").read_bytes()
    path = folder / "out.gguf"
    killed = completed = 0
    for turn in range(20):
        held, stop_at = turn % 2 == 0, rng.random() ** 2
        words = helper.run(path, "large", resume=True, stop_at=stop_at, hold=held, threads=rng.randint(1, 4))
        child, first, done, status = 0, None, 0, ""
        for kind, *rest in words:
            assert kind != "error", rest
            if kind == "child":
                child = int(rest[0])
            elif kind == "at":
                done, total = map(int, rest)
                first = done if first is None else first
                if child and done >= first + stop_at * (total - first):
                    time.sleep(rng.random() * 0.02)
                    os.kill(child, signal.SIGKILL)
                    child = 0
            elif kind == "ended":
                status = rest[0]
        killed += status == str(int(signal.SIGKILL))
        assert not held or status == str(int(signal.SIGKILL))
        check_nothing_wrong_loads(path, whole)
        if path.exists() or rng.random() < 0.2 or turn == 19:  # otherwise the next run goes on, and is killed as well
            write_gguf(path, files["large"], resume=True)
            assert path.read_bytes() == whole
            assert names(folder) == {"out.gguf"}
            path.unlink()
            completed += 1
    assert killed >= 10
    assert completed


@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_a_kill_at_every_change_to_the_disk(workplace, mode):
    """Between all calls that change the disk, those around the renames included, and in the middle of data."""
    folder, helper, files = workplace
    write_gguf(folder / "whole.gguf", files["small"], threads=1)
    whole = (folder / "whole.gguf").read_bytes()
    path = folder / "out.gguf"
    options = {} if mode == "new" else {mode: True}
    call, states = 0, set()
    while True:
        call += 1
        for name in names(folder):
            (folder / name).unlink()
        if mode == "overwrite":
            path.write_bytes(b"the file that was there before")
        if mode == "resume":  # continues what a kill in the middle has left
            list(helper.run(path, "small", call=12, threads=1))
            assert names(folder) == {"out.gguf.part", "out.gguf.part.json"}
        *_, (_, status) = helper.run(path, "small", call=call, threads=1, **options)
        if int(status) == 0:
            break
        assert int(status) == signal.SIGKILL, status
        if mode != "overwrite" or path.read_bytes() != b"the file that was there before":
            check_nothing_wrong_loads(path, whole)
        states.add(frozenset(names(folder)))
        # Killed before it had noted that it may replace: then only --overwrite does.
        again = {"resume": True} if path.with_name("out.gguf.part.json").exists() or mode != "overwrite" else options
        try:
            write_gguf(path, files["small"], **again)
        except OmniError as error:
            raise AssertionError(f"after a kill at call {call}: {error}") from error
        assert path.read_bytes() == whole, f"after a kill at call {call}"
        assert names(folder) == {"out.gguf"}, f"after a kill at call {call}"
    assert call > 20, "too few calls were seen"
    assert {"out.gguf", "out.gguf.part.json"} in states, "no kill fell between the rename and the end"
