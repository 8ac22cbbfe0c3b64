#!/usr/bin/env bash
# Builds the chunk kernels for this machine and, with a cross compiler and qemu-user, for aarch64, runs
# kernel_bits under each instruction set and compares every bit with the baseline's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
flags="-std=c++17 -O3 -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-psabi"
sources="tests/kernel_bits/kernel_bits.cpp csrc/cpu/dispatch.cpp"

build_x86() {
  g++ $flags -c csrc/cpu/kernels_baseline.cpp -o "$out/baseline.o"
  g++ $flags -mavx2 -mfma -mf16c -c csrc/cpu/kernels_avx2.cpp -o "$out/avx2.o"
  g++ $flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c \
    -c csrc/cpu/kernels_avx512.cpp -o "$out/avx512.o"
  g++ $flags -static $sources "$out"/*.o -o "$out/x86"
}

build_aarch64() {
  aarch64-linux-gnu-g++ $flags -static $sources csrc/cpu/kernels_baseline.cpp -o "$out/aarch64"
}

build_x86
"$out/x86" baseline > "$out/expected" 2> /dev/null
for name in avx2 avx512; do
  status=0
  "$out/x86" $name > "$out/got" 2> /dev/null || status=$?
  if [ $status = 2 ]; then
    echo "$name: this CPU cannot run it"
  elif [ $status = 0 ]; then
    cmp "$out/expected" "$out/got"
    echo "$name: $(wc -l < "$out/got") lines, the same bits as baseline"
  else
    echo "$name: ended with status $status" >&2
    exit 1
  fi
done

if [ "${1:-}" = aarch64 ]; then
  build_aarch64
  qemu-aarch64 "$out/aarch64" > "$out/got" 2> /dev/null
  cmp "$out/expected" "$out/got"
  echo "aarch64 under qemu-user: $(wc -l < "$out/got") lines, the same bits as x86-64's baseline"
fi
[ -z "${KEEP:-}" ] || cp "$out/x86" "$out/expected" "$KEEP/"
