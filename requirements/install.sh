#!/usr/bin/env bash
# Installs one stack into a virtual environment.   usage: requirements/install.sh PYTHON VENV
# Environment variables, all optional:
#   TORCH=VERSION         torch to install instead of what choose_stack.py chooses; TORCH=auto chooses again
#   EXTRAS=NAME,NAME      also installs requirements/NAME.txt
#   MMCV_CUDA=1|0         compiles mmcv-full with or without its CUDA operators; the network needs none of them
#   TORCH_FIND_LINKS=DIR  folder with local torch wheels
# VENV/.installed remembers torch, extras and MMCV_CUDA, so a later run without variables keeps them. If
# that file is current the script does nothing, and a kept torch is not checked against the driver again:
# pass TORCH=auto after a driver update or on other nodes. Compiled mmcv-full wheels are kept in .cache/wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?which Python} venv=${2:?which folder}

fail() { echo "error: $*" >&2; exit 1; }
step() { printf '\n==> [%s] %s\n' "$1" "$2"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

stamp="$venv/.installed"
remembered() { [ ! -f "$stamp" ] || sed -n "s/^$1=//p" "$stamp"; }
stamp_of() {  # TORCH
  printf 'python=%s\ntorch=%s\nextras=%s\nmmcv_cuda=%s\nrequirements=%s\n' "$version" "$1" "$extras" "$mmcv_cuda" "$digest"
}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
digest=$(cat requirements.txt requirements/*.txt requirements/*.py setup.py | sha256sum | cut -d' ' -f1)
old_torch=$(remembered torch)
torch=${TORCH:-$old_torch}
extras=$(remembered extras),${EXTRAS:-}
extras=$(tr -s ', ' '\n' <<< "$extras" | sort -u | grep . | paste -sd, || true)
mmcv_cuda=${MMCV_CUDA:-$(remembered mmcv_cuda)}
mmcv_cuda=${mmcv_cuda:-0}
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(stamp_of "$torch")" ]; then exit 0; fi

# Check all inputs before installing anything.
known=$(basename -s .txt requirements/*.txt | grep -vxE 'build|torch|openmmlab|runtime' | paste -sd,)
for extra in ${extras//,/ }; do
  [[ ,$known, = *",$extra,"* ]] || fail "EXTRAS=$extra: there is no requirements/$extra.txt; use one or more of $known"
done
case "$mmcv_cuda" in
  0|1) ;;
  *) fail "MMCV_CUDA=$mmcv_cuda: use 1 (CUDA operators) or 0 (none)" ;;
esac
if [ -n "${TORCH_FIND_LINKS:-}" ] && [ ! -d "$TORCH_FIND_LINKS" ]; then
  fail "TORCH_FIND_LINKS=$TORCH_FIND_LINKS is not a folder"
fi
if [ -x "$venv/bin/python" ]; then
  existing=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ "$existing" = "$version" ] || fail "$venv has Python $existing, $python is $version: rm -rf $venv and run make setup again"
fi

# TORCH given: use it. Otherwise keep the remembered torch while it is supported.
choose=("$python" requirements/choose_stack.py --python "$version")
if [ "${TORCH:-auto}" != auto ]; then choose+=(--torch "$TORCH")
elif [ -z "${TORCH:-}" ] && [ -n "$old_torch" ]; then choose+=(--keep "$old_torch"); fi
chosen=$("${choose[@]}")
read -ra torch_arguments <<< "$chosen"  # its first line
torch=${torch_arguments[0]#torch==}
if [ -n "${TORCH_FIND_LINKS:-}" ]; then torch_arguments+=(--find-links "$TORCH_FIND_LINKS"); fi
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(stamp_of "$torch")" ]; then exit 0; fi  # TORCH=auto, same choice

# One folder per Python and torch build: a wheel name does not include the torch it was built against.
build="cp${version/./}-torch$torch"
if [ "$mmcv_cuda" = 1 ] && ! command -v nvcc > /dev/null && ! ls ".cache/wheels/$build"-cuda-*/mmcv_full-*.whl > /dev/null 2>&1; then
  fail "MMCV_CUDA=1 needs nvcc on PATH, of the CUDA version that torch was built with; MMCV_CUDA=0 compiles without CUDA"
fi

sed 1d <<< "$chosen"  # the reason
step 1/5 "virtual environment $venv (Python $version)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip install --quiet 'pip>=22'  # older ones do not know manylinux_2_28 wheels
digest=unfinished stamp_of "$torch" > "$stamp"  # after a failure the next run goes on with this choice

step 2/5 "torch $torch and build tools"
install_torch() { pip install --retries 2 -r requirements/build.txt "${torch_arguments[@]}" "$@"; }
if [[ $torch = *+cu113 ]]; then
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  if ! install_torch 2>&1 | tee "$log"; then
    # The second one is what pip says where a constraints file mentions torch.
    if grep -qE 'No matching distribution found for torch|Cannot install torch' "$log"; then
      "$python" requirements/choose_stack.py --python "$version" --explain-missing "$torch"
    fi
    exit 1
  fi
elif [[ $("$venv/bin/python" -m pip freeze) = *"torch==$torch+cu113"* ]]; then
  install_torch --force-reinstall  # pip would take the installed 1.10.0+cu113 for 1.10.0
else
  install_torch
fi

if [ "$mmcv_cuda" = 1 ]; then  # its kernels run on one architecture, so that is in the name as well
  architectures=${TORCH_CUDA_ARCH_LIST:-$("$venv/bin/python" -c '
import torch
for i in range(torch.cuda.device_count()):
    print("%d.%d" % torch.cuda.get_device_capability(i))')}
  architectures=$(tr -s '; \n' '\n' <<< "$architectures" | sort -u | grep . | paste -sd_ | tr -c 'A-Za-z0-9.+\n' _ || true)
  [ -n "$architectures" ] || fail "MMCV_CUDA=1: no card is visible, set TORCH_CUDA_ARCH_LIST to its compute capability, such as 8.0"
  build+="-cuda-$architectures"
fi
wheels=".cache/wheels/$build"
mkdir -p "$wheels"
if ls "$wheels"/mmcv_full-*.whl >/dev/null 2>&1; then
  step 3/5 "mmcv-full: reusing $(ls "$wheels"/mmcv_full-*.whl)"
else
  if [ "$mmcv_cuda" = 1 ]; then
    command -v nvcc > /dev/null || fail "MMCV_CUDA=1: there is no wheel in $wheels yet, and compiling it needs nvcc on PATH"
    cuda=$("$venv/bin/python" -c 'import torch; print(torch.version.cuda)')
    [[ $(nvcc --version) = *"release ${cuda%%.*}."* ]] || fail "MMCV_CUDA=1: torch $torch was built with CUDA $cuda, \
put an nvcc of CUDA ${cuda%%.*} on PATH or pass MMCV_CUDA=0; found $(nvcc --version | grep -o 'release [0-9.]*' || echo none)"
  fi
  step 3/5 "mmcv-full: compiling for $build, 5 to 10 minutes on two cores (far longer with CUDA)"
  grep '^mmcv-full' requirements/openmmlab.txt > "$wheels/mmcv.txt"
  if [ "$mmcv_cuda" = 0 ]; then export CUDA_VISIBLE_DEVICES=; fi
  FORCE_CUDA=$mmcv_cuda MMCV_WITH_OPS=1 CFLAGS="-g0 -O1" MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    pip wheel --progress-bar off --no-cache-dir --no-deps --no-build-isolation -w "$wheels" -r "$wheels/mmcv.txt" &
  job=$!
  seconds=0
  while kill -0 "$job" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    [ $((seconds % 30)) -ne 0 ] || echo "    compiling mmcv-full: $seconds s"
  done
  wait "$job"
fi
# --force-reinstall: pip would keep an mmcv-full of the same version built against another torch.
pip install --no-deps --force-reinstall "$wheels"/mmcv_full-*.whl

step 4/5 "mmdet, mmsegmentation, mmdet3d, nuscenes-devkit"
pip install --no-deps --no-build-isolation -r requirements/openmmlab.txt
"$venv/bin/python" requirements/relax_mmdet3d.py

step 5/5 "the libraries they import, and this project"
pip install -r requirements/runtime.txt
for extra in ${extras//,/ }; do pip install -r "requirements/$extra.txt"; done
pip install --no-deps --no-build-isolation -e .
"$venv/bin/python" -c 'import mmdet3d, projects.bevformer.plugin' \
  || fail "the stack in $venv does not import, see above: rm -rf $venv and run make setup again"
stamp_of "$torch" > "$stamp"
