"""The pipeline from messages to events: prompts, stop texts, turns, what is kept and what is refused."""

import json
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import FakeEngine
from tiny_gguf import write_tiny

from qwen3omni_wgpu import (
    Done,
    GenerationConfig,
    InvalidRequest,
    ModelNotFound,
    Omni,
    OutOfDeviceMemory,
    Progress,
    Reply,
    TextDelta,
    UnsupportedModel,
)
from qwen3omni_wgpu.convert.parts import ModelParts
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.inputs.detokenize import TextStream
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.resident import Resident


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("omni") / "tiny.gguf", arch="llama")


@pytest.fixture
def make(tiny_llama):
    """An Omni over a scripted engine: make(answers as texts, ...) ; every answer ends with the end token unless cut."""
    file = read_gguf(tiny_llama)
    tokenizer = Tokenizer.from_gguf(file.metadata)

    def build(*answers: str, ended: bool = True, **settings) -> Omni:
        eos = [min(tokenizer.eos_ids)] if ended else []
        engine = FakeEngine([tokenizer.encode(text) + eos for text in answers], **settings)
        device = SimpleNamespace(info=SimpleNamespace(name="fake", software=True), close=lambda: None)
        parts = ModelParts(file.path, {"thinker": lambda: file})
        return Omni(Resident(device, parts, lambda runner: engine), tokenizer, load_s=1.5)

    return build


def texts(events) -> list[str]:
    return [event.text for event in events if isinstance(event, TextDelta)]


# One answer -------------------------------------------------------------------------------------------------------


def test_a_reply_carries_everything(make):
    omni = make("hello world")
    reply = omni.generate("hi", config=GenerationConfig(logprobs=2))
    assert isinstance(reply, Reply)
    assert not omni.engine.closed_early
    assert (reply.text, reply.finish_reason) == ("hello world", "stop")
    assert reply.token_ids[-1] in omni.tokenizer.eos_ids
    assert omni.tokenizer.decode(reply.token_ids) == "hello world"
    assert omni.tokenizer.decode(reply.prompt_token_ids, skip_special=False) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(reply.logprobs) == len(reply.token_ids)
    first = reply.logprobs[0]
    assert (first.id, first.logprob, len(first.top_logprobs)) == (reply.token_ids[0], -0.5, 2)
    assert first.token
    assert "hello".startswith(first.token)
    assert (reply.audio, reply.codes, reply.sampling_rate) == (None, None, 24000)
    times = reply.timings
    assert times["load_s"] == 1.5
    assert times["prompt_n"] == len(reply.prompt_token_ids)
    assert times["prompt_per_second"] == times["prompt_n"] / 0.5
    assert times["predicted_n"] == len(reply.token_ids)
    assert times["predicted_per_second"] == pytest.approx(4.0)


def test_a_stream_is_the_reply_in_pieces(make):
    events = list(make("hello world").stream("hi"))
    assert isinstance(events[-1], Done)
    assert sum(isinstance(event, Done) for event in events) == 1
    assert "".join(texts(events)) == events[-1].reply.text == "hello world"
    assert len(texts(events)) > 1


def test_no_event_holds_half_a_character(make):
    events = list(make("héllo 🙂 wörld", ended=False).stream("hi"))
    assert "".join(texts(events)) == "héllo 🙂 wörld"
    assert not any("\ufffd" in text for text in texts(events))


def test_max_tokens_ends_with_length(make):
    reply = make("hello world").generate("hi", config=GenerationConfig(max_tokens=1))
    assert (reply.finish_reason, len(reply.token_ids)) == ("length", 1)
    nothing = make("hello world").generate("hi", config=GenerationConfig(max_tokens=0))
    assert (nothing.text, nothing.finish_reason, nothing.token_ids) == ("", "length", [])


def test_a_stop_text_ends_the_answer_and_is_not_shown(make):
    omni = make("hello STOP world")
    events = list(omni.stream("hi", config=GenerationConfig(stop=("STOP",))))
    assert "".join(texts(events)) == events[-1].reply.text == "hello "
    assert events[-1].reply.finish_reason == "stop"
    assert omni.engine.closed_early  # the engine must not go on behind the stop text


def test_the_start_of_a_stop_text_is_shown_when_it_stays_one(make):
    reply = make("hello ST").generate("hi", config=GenerationConfig(stop=("STOP",)))
    assert (reply.text, reply.finish_reason) == ("hello ST", "stop")


def test_ignore_eos_goes_on(make, tiny_llama):
    omni = make("hello", "hello")
    omni.engine.script[0] += omni.tokenizer.encode(" world")
    reply = omni.generate("hi", config=GenerationConfig(ignore_eos=True))
    assert (reply.text, reply.finish_reason) == ("hello world", "length")


def test_an_end_token_is_no_text_even_if_it_could_be_shown(make):
    omni = make("hello world", ended=False)
    last = omni.engine.script[0][-1]
    omni.tokenizer.eos_ids = frozenset({last})
    reply = omni.generate("hi")
    assert (reply.text, reply.token_ids[-1], reply.finish_reason) == ("hello ", last, "stop")


def test_a_raw_prompt_is_gone_on_with(make, monkeypatch):
    """Only then may the answer's first space be the text's own."""
    seen = []

    class Stream(TextStream):
        def __init__(self, tokenizer, stop, continues):
            seen.append(continues)
            super().__init__(tokenizer, stop, continues)

    monkeypatch.setattr("qwen3omni_wgpu.answer.TextStream", Stream)
    omni = make("hello", "hello")
    omni.generate("hi")
    omni.generate("hi", config=GenerationConfig(raw=True))
    assert seen == [False, True]


# Prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_of_every_kind(make):
    omni = make()
    from_text = omni.tokenize("hi")
    assert omni.tokenize([{"role": "user", "content": "hi"}]) == from_text
    assert omni.tokenize([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]) == from_text
    assert omni.tokenize(from_text) == omni.tokenize(np.array(from_text)) == from_text
    assert omni.tokenizer.decode(omni.tokenize("hi", raw=True)) == "hi"


@pytest.mark.parametrize(("prompt", "message"), [
    ([{"role": "user"}], "content"),
    ([{"content": "hi"}], "role"),
    ([{"role": "user", "content": 3}], "content"),
    (["hi"], "chat message"),
    ([5, 320], "320"),
    ([-1], "-1"),
    ([], "empty"),
])  # fmt: skip
def test_bad_prompts_are_refused_at_once(make, prompt, message):
    with pytest.raises(InvalidRequest, match=message):
        make().stream(prompt)


def test_raw_takes_no_messages(make):
    with pytest.raises(InvalidRequest, match="template"):
        make().stream([{"role": "user", "content": "hi"}], config=GenerationConfig(raw=True))
    with pytest.raises(InvalidRequest, match="empty"):
        make().stream("", config=GenerationConfig(raw=True))


def test_a_prompt_longer_than_the_context(make):
    with pytest.raises(InvalidRequest, match="context holds 16"):
        make(ctx_size=16).stream("hello " * 20)


@pytest.mark.parametrize("media", ["images", "audio", "video"])
def test_a_model_of_text_alone_refuses_media(make, media):
    with pytest.raises(UnsupportedModel, match=r"tiny\.gguf is a model of text alone"):
        make().generate("hi", **{media: ["x"]})


def test_speech_is_refused_plainly(make):
    with pytest.raises(UnsupportedModel, match="a model of text alone: for speech use Qwen3-Omni"):
        make().generate("hi", speech=True)


def test_a_long_prompt_reports_progress_and_is_run_once(make):
    omni = make("hello", "world")
    omni.engine.buckets = (1, 10)
    prompt = list(range(35))
    events = list(omni.stream(prompt))
    assert [event for event in events if isinstance(event, Progress)] == [
        Progress("prefill", done, 35) for done in (10, 20, 30)
    ]
    assert omni.engine.log == [("reset", 0), ("prefill", 10), ("prefill", 10), ("prefill", 10), ("generate", 5)]
    assert events[-1].reply.timings["prompt_n"] == 35
    assert events[-1].reply.timings["prompt_s"] > 0.5  # the engine's last chunk, and those before it
    # The same prompt again needs its last token only.
    omni.engine.log.clear()
    again = omni.generate(prompt)
    assert omni.engine.log == [("generate", 1)]
    assert (again.timings["cached_n"], again.timings["prompt_n"]) == (34, 1)


# Life -------------------------------------------------------------------------------------------------------------


def test_closing_a_stream_frees_the_model_for_the_next(make):
    omni = make("hello world", "hello")
    stream = omni.stream("hi")
    next(stream)
    with pytest.raises(InvalidRequest, match="still being written"):
        next(omni.stream("you"))
    stream.close()
    assert omni.engine.closed_early
    assert omni.generate("hi").text == "hello"


def test_a_closed_model_says_so(make):
    with make("hello") as omni:
        pass
    omni.close()
    with pytest.raises(InvalidRequest, match="closed"):
        omni.generate("hi")


@pytest.mark.parametrize(("argument", "value", "error", "message"), [
    ("mmproj", "x.gguf", ModelNotFound, "x.gguf"),
    ("talker", "x.gguf", ModelNotFound, "x.gguf"),
    ("config", "config.json", InvalidRequest, "has its own metadata"),
    ("type", "f16", InvalidRequest, "has its types already"),
    ("type", "q3_k", InvalidRequest, "q8_0, f16, bf16, f32"),
])  # fmt: skip
def test_arguments_that_do_not_fit_the_model(tiny_llama, argument, value, error, message):
    with pytest.raises(error, match=message):
        Omni.from_pretrained(tiny_llama, **{argument: value})


def test_a_thinker_is_no_mmproj(tiny_llama):
    with pytest.raises(UnsupportedModel, match=r"is no mmproj file: its architecture is 'llama', expected 'clip'"):
        Omni.from_pretrained(tiny_llama, mmproj=tiny_llama)


def test_bad_arguments_are_found_before_the_device_is_opened(tiny_llama, monkeypatch):
    monkeypatch.setattr("qwen3omni_wgpu.loading.Device", None)
    with pytest.raises(InvalidRequest, match="activations"):
        Omni.from_pretrained(tiny_llama, activations="int4")
    with pytest.raises(InvalidRequest, match="between 1 and 512"):
        Omni.from_pretrained(tiny_llama, ctx_size=513)
    with pytest.raises(InvalidRequest, match="between 1 and 512"):
        Omni.from_pretrained(tiny_llama, ctx_size=0)
    with pytest.raises(ModelNotFound):
        Omni.from_pretrained(tiny_llama.with_name("none.gguf"))


def test_a_failed_load_closes_the_device(tiny_llama, monkeypatch):
    closed = []
    device = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr("qwen3omni_wgpu.loading.Device", SimpleNamespace(open=lambda *_, **__: device))

    def load(*_args, **_options):
        raise OutOfDeviceMemory("too large", needed=2, free=1)

    monkeypatch.setattr("qwen3omni_wgpu.loading.TextModel", SimpleNamespace(load=load))
    with pytest.raises(OutOfDeviceMemory):
        Omni.from_pretrained(tiny_llama)
    assert closed == [True]


# Chats ------------------------------------------------------------------------------------------------------------


def test_a_chat_remembers_and_reuses_its_cache(make):
    omni = make("hello", "world")
    chat = omni.chat("be kind")
    chat.send("hi")
    omni.engine.log.clear()
    reply = chat.send("and you?")
    assert [(m["role"], m["content"]) for m in chat.messages] == [
        ("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "and you?"), ("assistant", "world"),
    ]  # fmt: skip
    rerun = dict(omni.engine.log)["generate"]
    assert rerun < len(reply.prompt_token_ids) / 2
    assert reply.timings["cached_n"] + rerun == len(reply.prompt_token_ids)


def test_an_answer_cut_short_stays_as_far_as_it_was_seen(make):
    chat = make("hello world and more", "world").chat()
    with closing(chat.stream("hi")) as events:
        shown = next(event.text for event in events if isinstance(event, TextDelta))
    assert chat.messages[-1] == {"role": "assistant", "content": shown}
    assert chat.send("go on").text == "world"


def test_a_refused_turn_is_not_kept(make):
    chat = make("hello", ctx_size=60).chat()
    with pytest.raises(InvalidRequest):
        chat.send("hello " * 100)
    assert chat.messages == []
    assert chat.send("hi").text == "hello"


def test_regenerate_answers_the_last_question_again(make):
    chat = make("hello", "world").chat("kind")
    chat.send("hi")
    list(chat.regenerate())
    assert [m["content"] for m in chat.messages] == ["kind", "hi", "world"]
    chat.clear()
    with pytest.raises(InvalidRequest, match="no question"):
        chat.regenerate()


def test_the_system_message_can_change(make):
    chat = make("hello").chat()
    assert chat.system is None
    chat.send("hi")
    chat.system = "be brief"
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "be brief"}]
    chat.system = None
    assert chat.messages == []


def test_save_and_load(make, tmp_path):
    path = tmp_path / "chat.json"
    chat = make("héllo").chat("kind")
    chat.send("hi")
    chat.save(path)
    assert "héllo" in path.read_text(encoding="utf-8")
    other = make("world").chat()
    other.load(path)
    assert other.messages == chat.messages
    assert other.send("you?").text == "world"


def test_a_saved_chat_names_its_media(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = make().chat()
    parts = [{"type": "image", "image": "a.png"}, {"type": "audio", "audio": tmp_path / "b.wav"}]
    parts += [{"type": "video", "video": "https://x/c.mp4", "sound": True}, {"type": "text", "text": "hi"}]
    chat.messages = [{"role": "user", "content": parts}]
    chat.save("x.json")
    monkeypatch.chdir("/")
    other = make().chat()
    other.load(tmp_path / "x.json")
    assert other.messages[0]["content"] == [
        {"type": "image", "image": str(tmp_path / "a.png")},
        {"type": "audio", "audio": str(tmp_path / "b.wav")},
        *parts[2:],
    ]
    chat.messages = [{"role": "user", "content": [{"type": "image", "image": np.zeros((2, 2, 3), np.uint8)}]}]
    with pytest.raises(InvalidRequest, match="image that came from memory"):
        chat.save(tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"messages": 3}', '{"messages": [3]}', '{"messages": [{"role": "user"}]}']
)
def test_a_file_that_is_no_chat(make, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    chat = make().chat("kind")
    with pytest.raises(InvalidRequest):
        chat.load(tmp_path / "x.json")
    with pytest.raises(InvalidRequest):
        chat.load(tmp_path / "none.json")
    with pytest.raises(InvalidRequest):
        chat.save(tmp_path / "no/such/folder.json")
    assert chat.messages == [{"role": "system", "content": "kind"}]
    assert json.dumps(chat.messages)
