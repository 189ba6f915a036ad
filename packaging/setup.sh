#!/bin/bash
# Installs what meshbox needs on a Debian 12 machine and makes the virtual environment. Run it as often as you like:
# what is there is used as it is, and when nothing is missing it ends at once.
#
#   packaging/setup.sh            system packages, .venv
#   packaging/setup.sh --tests    also what the tests of image and package need
#   packaging/setup.sh --deb      only what building the package needs
#   PYTHON=python3.11 …           the interpreter for a new .venv (3.11 or later); without it Debian's own, as in the
#                                 package and the image: it is built with optimizations that others on PATH often lack
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Fills `missing` with the Debian packages that bring the commands which are not there.
find_missing() {
    missing=()
    local command package
    if [ "$1" = --deb ]; then
        find_missing_compiler
        find_missing_python
        return
    fi
    while read -r command package; do
        if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null; then
            missing+=("$package")
        fi
    done <<-'LIST'
	dockerd docker.io
	docker docker.io
	iptables iptables
	nft nftables
	nsenter util-linux
	ip iproute2
	conntrack conntrack
	LIST
    if [ "$1" = --tests ]; then
        PATH="$PATH:/usr/sbin" command -v debootstrap >/dev/null || missing+=(debootstrap)
        command -v lintian >/dev/null || missing+=(lintian)
        find_missing_compiler
    fi
    find_missing_python
}

# What packaging/compile_dataplane.py needs.
find_missing_compiler() {
    command -v gcc >/dev/null || missing+=(gcc)
    if ! "$python" -c 'import sysconfig; open(sysconfig.get_config_var("INCLUDEPY") + "/Python.h").close()' 2>/dev/null; then
        missing+=(python3-dev)
    fi
}

find_missing_python() {
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        missing+=(python3-venv)
    fi
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sed '/^$/d' | sort -u)
}

install_packages() {
    [ "$(id -u)" -eq 0 ] || die "needs root to install: ${missing[*]}"
    command -v apt-get >/dev/null || die "no apt-get here; install these by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    mkdir -p build
    printf '%s\n' "${missing[@]}" >>build/installed-packages # `make clean` names them
}

make_environment() {
    local wanted
    export PIP_NO_CACHE_DIR=1 # its cache would stay after `make clean`
    wanted="$(cat packaging/requirements-dev.lock pyproject.toml | sha256sum | cut -d' ' -f1) $PWD"
    if [ -x .venv/bin/python ] && [ "$(cat .venv/meshbox-setup 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if ! .venv/bin/python -c '' 2>/dev/null; then
        say "making the virtual environment .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    say "installing the locked Python packages"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r packaging/requirements-dev.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
    printf '%s\n' "$wanted" >.venv/meshbox-setup
}

python="${PYTHON:-}"
if [ -z "$python" ]; then
    python=/usr/bin/python3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=python3
fi
find_missing "${1:-}"
if [ "${#missing[@]}" -gt 0 ]; then
    install_packages
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$("$python" --version) is too old; name Python 3.11 or later with PYTHON=…"
if [ "${1:-}" != --deb ]; then
    make_environment
fi
