#!/usr/bin/env bash
# Installs one pinned stack into a virtual environment.   usage: requirements/install.sh PYTHON VENV
# Does nothing when VENV is up to date. mmcv-full is compiled without CUDA (the network needs none of
# its CUDA operators); the wheel is kept in .cache/wheels and reused for the same Python and torch only.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?which Python} venv=${2:?which folder}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case "$version" in
  3.8 | 3.9 | 3.10 | 3.11 | 3.12) ;;
  *) echo "Python $version ($python) is not supported: make setup PYTHON=/path/to/python3.8 ... python3.12" >&2; exit 1 ;;
esac

stamp="$venv/.installed"
wanted="$version $(cat requirements.txt requirements/*.txt setup.py | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

step() { printf '\n==> [%s] %s\n' "$1" "$2"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

step 1/5 "virtual environment $venv (Python $version)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

step 2/5 "torch and build tools"
pip install -r requirements/build.txt

# One folder a (Python, torch) pair: a wheel's own name does not say which torch it was built against.
pair=$("$venv/bin/python" -c 'import sys, torch; print("cp%d%d-torch%s" % (sys.version_info[0], sys.version_info[1], torch.__version__.split("+")[0]))')
wheels=".cache/wheels/$pair"
mkdir -p "$wheels"
if ls "$wheels"/mmcv_full-*.whl >/dev/null 2>&1; then
  step 3/5 "mmcv-full: reusing $(ls "$wheels"/mmcv_full-*.whl)"
else
  step 3/5 "mmcv-full: compiling for $pair, 5 to 10 minutes on two cores"
  grep '^mmcv-full' requirements/openmmlab.txt > "$wheels/mmcv.txt"
  CUDA_VISIBLE_DEVICES= FORCE_CUDA=0 MMCV_WITH_OPS=1 CFLAGS="-g0 -O1" MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    pip wheel --progress-bar off --no-cache-dir --no-deps --no-build-isolation -w "$wheels" -r "$wheels/mmcv.txt" &
  build=$!
  seconds=0
  while kill -0 "$build" 2>/dev/null; do
    sleep 5
    seconds=$((seconds + 5))
    [ $((seconds % 30)) -ne 0 ] || echo "    compiling mmcv-full: $seconds s"
  done
  wait "$build"
fi
pip install --no-deps "$wheels"/mmcv_full-*.whl

step 4/5 "mmdet, mmsegmentation, mmdet3d, nuscenes-devkit"
pip install --no-deps --no-build-isolation -r requirements/openmmlab.txt

step 5/5 "the libraries they import, and this project"
pip install -r requirements/runtime.txt
pip install --no-deps --no-build-isolation -e .
"$venv/bin/python" -c 'import projects.bevformer.models, projects.bevformer.datasets' \
  || { echo "the stack in $venv does not import: see the error above; rm -rf $venv and run make setup again" >&2; exit 1; }
echo "$wanted" > "$stamp"
