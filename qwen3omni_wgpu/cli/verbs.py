"""How a verb becomes a command: options that several verbs share are dataclasses, written down once."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand

from qwen3omni_wgpu import __version__

app = typer.Typer(
    name="qwen3omni",
    add_completion=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qwen3omni {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Language models on the GPU through WebGPU. The answer goes to stdout, everything else to stderr."""


F = TypeVar("F", bound=Callable[..., Any])


def verb(name: str, group: typer.Typer = app, cls: type[TyperCommand] | None = None) -> Callable[[F], F]:
    """Register a function as a command. A parameter whose type is a dataclass takes its fields as options.

    cls: the command's class, where it is not typer's own.
    """

    def register(function: F) -> F:
        groups: dict[str, type] = {}
        flat: list[inspect.Parameter] = []
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation):
                groups[parameter.name] = parameter.annotation
                flat += _options(parameter.annotation)
            else:
                flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        def command(**given: Any) -> Any:
            built = {
                key: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
                for key, kind in groups.items()
            }
            return function(**built, **given)

        command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
        command.__annotations__ = {}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        group.command(name, cls=cls)(command)
        return function

    return register


def _options(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name]
        )
        for field in fields(kind)
    ]


def _default(field: "Field[Any]") -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


@dataclass(frozen=True)
class Common:
    """Options that every verb knows."""

    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            "--weight-path",
            metavar="MODEL",
            help="GGUF file, folder with one, Hugging Face folder, hub id user/repo[:quant], or smollm2",
        ),
    ] = None
    ctx_size: Annotated[
        int | None, typer.Option("-c", "--ctx-size", metavar="N", help="tokens of prompt and answer that must fit")
    ] = None
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME|INDEX", help="adapter: part of its name, or its index")
    ] = None
    cpu: Annotated[bool, typer.Option("--cpu", help="use a software adapter on purpose")] = False
    tokenizer_file: Annotated[
        Path | None,
        typer.Option("--tokenizer-file", metavar="FILE", help="a tokenizer.json instead of the model's own"),
    ] = None
    mmproj: Annotated[
        str | None, typer.Option("--mmproj", metavar="FILE", help="audio and vision towers, when not beside the model")
    ] = None
    talker: Annotated[
        str | None, typer.Option("--talker", metavar="FILE", help="speech part, when not beside the model")
    ] = None
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="config.json, when not beside the weights")
    ] = None
    type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="weights made from a checkpoint: q8_0 (default), f16, bf16, f32"),
    ] = None
    kv_type: Annotated[
        str | None, typer.Option("--kv-type", metavar="TYPE", help="keys and values cached as f16 (default), f32, q8_0")
    ] = None
    no_tune: Annotated[
        bool, typer.Option("--no-tune", help="kernels by fixed rules, not by what was measured on this device")
    ] = False
    offline: Annotated[bool, typer.Option("--offline", help="take hub ids from the local cache only")] = False
    json: Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")] = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="nothing on stderr but errors")] = False
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="more on stderr")] = False
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and debug messages")] = False
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="write a Chrome trace: host and every GPU dispatch")
    ] = None
    tracing: Annotated[bool, typer.Option("--tracing", help="the same into trace-TIMESTAMP.json")] = False


@dataclass(frozen=True)
class Sampling:
    """Options of everything that writes an answer. None = the model's own default."""

    max_tokens: Annotated[
        int | None,
        typer.Option("-n", "--max-tokens", "--sample-len", metavar="N", help="length of the answer; -1 = no limit"),
    ] = None
    temp: Annotated[float | None, typer.Option("--temp", "--temperature", metavar="T", help="0 = greedy")] = None
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="K", help="0 = off")] = None
    top_p: Annotated[float | None, typer.Option("--top-p", metavar="P", help="1 = off")] = None
    min_p: Annotated[float | None, typer.Option("--min-p", metavar="P", help="0 = off")] = None
    repeat_penalty: Annotated[float | None, typer.Option("--repeat-penalty", metavar="X", help="1 = off")] = None
    repeat_last_n: Annotated[
        int | None, typer.Option("--repeat-last-n", metavar="N", help="tokens that penalties look back at; -1 = all")
    ] = None
    presence_penalty: Annotated[float | None, typer.Option("--presence-penalty", metavar="X", help="0 = off")] = None
    frequency_penalty: Annotated[float | None, typer.Option("--frequency-penalty", metavar="X", help="0 = off")] = None
    seed: Annotated[int | None, typer.Option("-s", "--seed", metavar="N", help="the same seed repeats an answer")] = (
        None
    )
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="a text that ends the answer; repeatable")
    ] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on after the model's end token")] = False
