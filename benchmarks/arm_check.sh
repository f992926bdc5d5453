#!/bin/sh
# The same bundle on emulated arm64 (onnxruntime 1.23.2, the newest that runs under qemu-user) and
# here: the same greedy tokens, or exit 1. Speed under emulation means nothing.
#   benchmarks/arm_check.sh BUNDLE [STEPS]
# Needs: qemu-aarch64-static, debootstrap (Debian: apt install qemu-user-static debootstrap).
set -eu
export ORT_DISABLE_TELEMETRY=1
bundle=$1
steps=${2:-12}
python=${PYTHON:-python3}
root=${COSTEER_ARM_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/costeer-edge/arm64}
for tool in qemu-aarch64-static debootstrap dpkg; do
    command -v "$tool" >/dev/null || { echo "arm-check: $tool is not installed." >&2; exit 3; }
done
if [ ! -e "$root/done" ]; then
    rm -rf "$root"
    mkdir -p "$root/site"
    # Only unpacked: nothing of it is run as a system, so no second stage is needed.
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3 \
        bookworm "$root/debian" ${DEBIAN_MIRROR:-} >"$root/log" 2>&1
    for package in "$root"/debian/var/cache/apt/archives/*.deb; do
        dpkg -x "$package" "$root/debian" 2>>"$root/log"
    done
    "$python" -m pip download -q -d "$root/wheels" --python-version 3.11 --only-binary :all: \
        --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_28_aarch64 onnxruntime==1.23.2 'numpy<2.3'
    for wheel in "$root"/wheels/*.whl; do
        "$python" -m zipfile -e "$wheel" "$root/site"
    done
    touch "$root/done"
fi
here=$(dirname "$0")
ours=$("$python" "$here/greedy_tokens.py" "$bundle" "$steps")
theirs=$(PYTHONPATH="$root/site" qemu-aarch64-static -L "$root/debian" \
    "$root/debian/usr/bin/python3.11" "$here/greedy_tokens.py" "$bundle" "$steps" 2>"$root/log") || {
    echo "arm-check: the emulated run failed; $root/log says why (got exit $?)." >&2
    exit 3
}
echo "$ours"
echo "$theirs"
tokens() { printf '%s' "$1" | sed 's/.*"tokens": \(\[[^]]*\]\).*/\1/'; }
if [ "$(tokens "$ours")" = "$(tokens "$theirs")" ]; then
    echo "arm-check: the same $steps tokens."
else
    echo "arm-check: the tokens differ." >&2
    exit 1
fi
