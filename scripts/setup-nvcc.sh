#!/usr/bin/env bash
# Installs the pinned CUDA compiler into .nvcc.venv at the root of the repository, where build.rs finds it, and prints
# its path. Needs Python 3 and g++; no GPU, no driver, no root. Does nothing when the pinned versions are there.
#
#     scripts/setup-nvcc.sh [--with-disassembler]    the latter for scripts/check-kernels
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.nvcc.venv
packages=$venv/lib/python3*/site-packages # a pattern, for compgen

fail() {
    printf 'setup-nvcc: %s\n' "$@" >&2
    exit 1
}

# A package is there when pip has recorded its files, which it does last.
installed() {
    local pin name
    while read -r pin _; do
        name=${pin%==*}
        compgen -G "$packages/${name//-/_}-${pin#*==}.dist-info/RECORD" >/dev/null || return 1
    done < <(grep -v '^#' "scripts/$1")
}

install() {
    # Where Python comes without the pip for new environments, as on Debian, a pip of the system can fill them.
    local pip=("$venv/bin/python" -m pip)
    "${pip[@]}" --version >/dev/null 2>&1 || pip=(python3 -m pip --python "$venv/bin/python")
    "${pip[@]}" --version >/dev/null 2>&1 ||
        fail "there is no pip to fill $venv" "on Debian and Ubuntu: apt-get install python3-venv, then again"
    "${pip[@]}" install --quiet --disable-pip-version-check --no-deps --requirement "scripts/$1" >&2 ||
        fail "pip could not install scripts/$1"
}

disassembler=
if [ "${1-}" = --with-disassembler ]; then
    disassembler=yes
    shift
fi
[ $# = 0 ] || fail "unknown option: $1" "usage: scripts/setup-nvcc.sh [--with-disassembler]"
echo '#include <cstdlib>' | gcc -x c++ -E - >/dev/null 2>&1 ||
    fail "nvcc needs gcc with C++ on PATH" "on Debian and Ubuntu: apt-get install g++"

if ! installed requirements-nvcc.txt; then
    python3 -c 'import venv' >/dev/null 2>&1 ||
        fail "python3 with the module venv is needed" "on Debian and Ubuntu: apt-get install python3-venv"
    echo "setup-nvcc: installing the CUDA compiler into $PWD/$venv (about 100 MB to load)" >&2
    python3 -m venv --clear $venv >/dev/null 2>&1 || python3 -m venv --clear --without-pip $venv >&2 ||
        fail "python3 cannot make $venv"
    install requirements-nvcc.txt
fi
if [ -n "$disassembler" ] && ! installed requirements-nvdisasm.txt; then
    install requirements-nvdisasm.txt
fi

nvcc=$(compgen -G "$packages/nvidia/cu13/bin/nvcc") || fail "no nvcc in $venv: remove that and start again"
echo "$PWD/$nvcc"
