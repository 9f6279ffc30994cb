"""The driver that compiles: RADV of a fixed Mesa out of Debian's archive, else the system's; and the stand-in loader.

The fixed one knows the Radeon 8060S (gfx1151) and gives the same figures everywhere, so they can be compared with the
baseline. It is only unpacked into the cache, not installed.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from qwen3omni_wgpu.errors import OmniError

SHIM = Path(__file__).resolve().parent.parent / "radv_null_shim.c"
PACKAGE = "mesa-vulkan-drivers_25.0.7-2~bpo12+1_amd64.deb"
SHA256 = "3899f1800424c60a05df5d6913076a526ca8fdbabec43672cd397563d1ca3263"
# The archive keeps a package until a newer one takes its place; the snapshots keep all of them.
SOURCES = (
    f"http://deb.debian.org/debian/pool/main/m/mesa/{PACKAGE}",
    f"https://snapshot.debian.org/archive/debian/20250701T000000Z/pool/main/m/mesa/{PACKAGE}",
)
LIBRARY = "libvulkan_radeon.so"
# Chips to ask a driver for, the target first; its nearest kin where an older Mesa does not know it.
CHIPS = ("gfx1151", "gfx1100")


class NoDriver(OmniError):
    """Nothing here can compile for RDNA 3; the message says what to install."""


@dataclass(frozen=True)
class Driver:
    """icd: a driver's description for the Vulkan loader. shim: folder of the stand-in. pinned: the fixed Mesa."""

    icd: Path
    shim: Path
    chip: str
    pinned: bool

    def environment(self) -> dict[str, str]:
        """What a process needs in which wgpu shall open the null device and the driver shall print what it compiles."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VK_", "RADV_", "MESA_"))}
        libraries = ":".join(filter(None, [str(self.shim), os.environ.get("LD_LIBRARY_PATH", "")]))
        return kept | {
            "LD_LIBRARY_PATH": libraries,
            "VK_ICD_FILENAMES": str(self.icd),
            "VK_DRIVER_FILES": str(self.icd),
            "RADV_FORCE_FAMILY": self.chip,
            # `cs,nir,asm` are a newer Mesa's words for what an older one prints with `shaders` only.
            "RADV_DEBUG": "cs,nir,asm,shaderstats,nocache" if self.pinned else "shaders,shaderstats,nocache",
            "NODEVICE_SELECT": "1",
            "QWEN3OMNI_DEVICE": "",
            "QWEN3OMNI_CHECKED": "",
        }


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen3omni_wgpu"


def find_driver(fetch: bool = True) -> Driver:
    """The fixed Mesa's driver, fetched if need be, else the system's. NoDriver says what is missing."""
    shim = _shim()
    if pinned := _pinned(fetch):
        return Driver(pinned, shim, CHIPS[0], True)
    for place in ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"):
        for icd in sorted(glob.glob(f"{place}/radeon_icd*.json")):
            return Driver(Path(icd), shim, _chip(Path(icd)), False)
    raise NoDriver(f"no RADV here, and {PACKAGE} could not be had; apt-get install mesa-vulkan-drivers")


def _pinned(fetch: bool) -> Path | None:
    """Description of the fixed Mesa's driver; None where it cannot be had or its libraries are not here."""
    folder = cache_folder() / "radv-25.0.7"
    if platform.machine() != "x86_64":
        return None
    if not (folder / LIBRARY).exists() and (not fetch or not _unpack(folder)):
        return None
    try:
        ctypes.CDLL(str(folder / LIBRARY))
    except OSError:
        return None  # it wants libraries of another release, LLVM 15 first of all
    icd = folder / "radeon_icd.json"
    _write(icd, json.dumps({"file_format_version": "1.0.0", "ICD": {
        "library_path": str(folder / LIBRARY), "api_version": "1.4.305"}}))  # fmt: skip
    return icd


def _chip(icd: Path) -> str:
    """The first of CHIPS that the driver's library names."""
    library = Path(json.loads(icd.read_text())["ICD"]["library_path"])
    known = library.read_bytes() if library.is_absolute() and library.exists() else b""
    return next((chip for chip in CHIPS if chip.encode() in known), CHIPS[-1])


def _unpack(folder: Path) -> bool:
    """Fetch the package and keep its one library. False without a network or dpkg-deb."""
    if not shutil.which("dpkg-deb"):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = Path(scratch) / PACKAGE
        for source in SOURCES:
            try:
                with urllib.request.urlopen(source, timeout=60) as answer:
                    package.write_bytes(answer.read())
            except (OSError, HTTPException):
                continue
            if hashlib.sha256(package.read_bytes()).hexdigest() == SHA256:
                break
        else:
            return False
        subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
        found = next(Path(scratch).rglob(LIBRARY))
        os.replace(found, folder / LIBRARY)
    return True


def _shim() -> Path:
    """Folder of the stand-in loader, compiled once for each state of its source."""
    real = _loader()
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    mark = hashlib.sha256(SHIM.read_bytes() + real.encode()).hexdigest()[:16]
    folder = cache_folder() / f"radv-shim-{mark}"
    target = folder / "libvulkan.so.1"
    if not target.exists():
        if compiler is None:
            raise NoDriver("no C compiler to build tools/radv_null_shim.c with; apt-get install gcc libvulkan-dev")
        folder.mkdir(parents=True, exist_ok=True)
        built = folder / f"libvulkan.so.1.{os.getpid()}"
        command = [compiler, "-shared", "-fPIC", "-O1", f'-DREAL="{real}"', str(SHIM), "-o", str(built), "-ldl"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise NoDriver(
                f"tools/radv_null_shim.c does not compile ({result.stderr.strip().splitlines()[0]}); "
                "apt-get install gcc libc6-dev libvulkan-dev"
            )
        os.replace(built, target)
    return folder


def _loader() -> str:
    """Path of the real Vulkan loader."""
    # Debian's users have no sbin in their PATH.
    ldconfig = shutil.which("ldconfig", path=os.pathsep.join([os.environ.get("PATH", ""), "/sbin", "/usr/sbin"]))
    listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True).stdout if ldconfig else ""
    paths = [line.rpartition("=> ")[2] for line in listed.split("\n") if "libvulkan.so.1 " in line]
    matching = [path for path in paths if platform.machine() in path or "lib32" not in path]
    if not matching:
        raise NoDriver("no Vulkan loader here; apt-get install libvulkan1")
    return matching[0]


def _write(path: Path, text: str) -> None:
    """Replace a file at once: another run may be reading it."""
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(text)
    os.replace(scratch, path)
