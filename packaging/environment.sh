#!/bin/bash
# Makes meshbox's own Python environment: packaging/environment.sh DIRECTORY
#
# DIRECTORY is where it will be used, since its paths are written into it. It holds what requirements.lock pins and
# meshbox itself, its hot modules compiled, without pip, tests and debug symbols. pip's own settings (PIP_INDEX_URL, …)
# say where it all comes from; nothing of them is kept. MESHBOX_COMMIT: what `meshbox --version` names; default: the checkout's.
set -euo pipefail
cd "$(dirname "$0")/.."

target="$1"
python="${PYTHON:-/usr/bin/python3}"
commit="${MESHBOX_COMMIT-$(git rev-parse --short HEAD 2>/dev/null || true)}"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1

say() { echo "meshbox: $*" >&2; }

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

say "fetching what builds it"
# What builds stays apart from what is built.
"$python" -m venv "$scratch/tools"
pip="$scratch/tools/bin/pip"
"$pip" install --require-hashes --requirement packaging/requirements-build.lock
mkdir "$scratch/source"
cp -r appliance nft pyproject.toml README.md LICENSE "$scratch/source"
if [ -n "$commit" ]; then
    printf '%s\n' "$commit" >"$scratch/source/appliance/COMMIT"
fi
say "building meshbox"
"$pip" wheel --no-deps --no-build-isolation --wheel-dir "$scratch" "$scratch/source"

say "installing the locked libraries"
"$python" -m venv --without-pip "$target"
into=("$pip" --python "$target/bin/python" install --no-compile --no-deps)
"${into[@]}" --require-hashes --requirement packaging/requirements.lock
"${into[@]}" "$scratch"/meshbox-*.whl
packages="$(echo "$target"/lib/python3.*/site-packages)"
"$scratch/tools/bin/python" packaging/compile_dataplane.py --libraries "$target/bin/python" "$packages"

# Not used at run time: activation scripts, headers, the libraries' own tests, and what some of them drop in wrong places.
rm -rf "$target"/bin/[aA]ctivate* "$target/include" "$target/lib64" "$packages/__init__.py"
sed -i '/^command = /d' "$target/pyvenv.cfg"
find "$packages" -depth -type d \( -name tests -o -name _tests -o -name __pycache__ \) -exec rm -rf {} +
find "$packages" -name '*.py' -exec sed -i '1{/^#!/d}' {} +  # nobody executes them
find "$packages" -name direct_url.json -delete  # says where the wheel was built
find "$target" -maxdepth 1 -type f ! -name pyvenv.cfg -delete
find "$target/bin" -type f ! -name meshbox -delete
if command -v strip >/dev/null; then
    find "$packages" -name '*.so' -exec strip --strip-unneeded {} +
fi
