"""Pictures, sound and video on the command line: in the order in which they stand there, as parts of a message."""

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from qwen3omni_wgpu.errors import InvalidRequest

Part = dict[str, Any]

WORDS = {"image": "picture", "audio": "sound", "video": "video"}
_WEB = re.compile(r"https?:", re.IGNORECASE)
_ADDRESS = re.compile(r"(https?|file|data):", re.IGNORECASE)
_ORDER = "qwen3omni_wgpu.order"


class InOrder(TyperCommand):
    """A command that also keeps in which order its options were given, which their values do not tell."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_ORDER] = [parameter.name for parameter in given]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class MediaOptions:
    """How media are read, for every command that takes some."""

    video_fps: Annotated[
        float | None, typer.Option("--video-fps", metavar="F", help="frames to take of a second of video (default 2)")
    ] = None
    video_sound: Annotated[bool, typer.Option("--video-sound", help="listen to the sound track of videos, too")] = False
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="media may be http and https addresses")] = False

    def check(self) -> None:
        """InvalidRequest when a value cannot be right."""
        if self.video_fps is not None and not 0 < self.video_fps <= 1000:
            raise InvalidRequest(f"--video-fps {self.video_fps:g} is not possible; give frames a second, such as 2")

    def part(self, kind: str, source: str) -> Part:
        """A part of a message: kind is "image", "audio" or "video", source a file name, a file: or data: URI, or a URL.

        InvalidRequest when there is no such file, or it may not be read.
        """
        from qwen3omni_wgpu.inputs.sources import Access, open_source

        source = source if _ADDRESS.match(source) else os.path.expanduser(source)
        if not (self.allow_urls and _WEB.match(source)):  # that is fetched when the model is ready to read it
            open_source(source, WORDS[kind], Access(data_uris=self.allow_urls))
        part: Part = {"type": kind, kind: source}
        if kind == "video":
            part |= {"fps": self.video_fps} if self.video_fps is not None else {}
            part |= {"sound": True} if self.video_sound else {}
        return part

    def loading(self) -> dict[str, Any]:
        """What of this Omni.from_pretrained has to know."""
        return {"allow_urls": True} if self.allow_urls else {}


@dataclass(frozen=True)
class MediaFiles:
    """Media for one message; they stand before its text."""

    image: Annotated[
        list[str] | None, typer.Option("--image", metavar="FILE", help="a picture; media are repeatable, in any order")
    ] = None
    audio: Annotated[list[str] | None, typer.Option("--audio", metavar="FILE", help="sound")] = None
    video: Annotated[list[str] | None, typer.Option("--video", metavar="FILE", help="a video")] = None

    def parts(self, context: typer.Context, options: MediaOptions) -> list[Part]:
        """The parts of the message, in the order of the command line; the command must be of the kind InOrder."""
        options.check()
        waiting = {kind: iter(getattr(self, kind) or ()) for kind in WORDS}
        found = [options.part(kind, next(waiting[kind])) for kind in context.meta[_ORDER] if kind in waiting]
        if (options.video_fps is not None or options.video_sound) and not self.video:
            raise InvalidRequest("--video-fps and --video-sound say how a video is read; name one with --video FILE")
        return found


def content(parts: list[Part], text: str) -> str | list[Part]:
    """What a message says: media, then the text; without media the text alone."""
    return [*parts, *([{"type": "text", "text": text}] if text else [])] if parts else text
