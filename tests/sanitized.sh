#!/bin/sh
# The tests under the address and undefined-behaviour sanitizers, in a build of their own:
#     sh tests/sanitized.sh NAME...          builds the test programs NAME
#     sh tests/sanitized.sh --run NAME       runs one of them, in its short mode
BUILD=${BUILD:-build}/sanitized
if [ "$1" = --run ]; then
    exec env XG_TEST_SHORT=1 "$BUILD/$2"
fi
targets=
for name in "$@"; do targets="$targets $BUILD/$name"; done
mkdir -p "$BUILD"
flags="-Og -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
# Kernels that this machine cannot run are only time for the compiler.
grep -qs avx512f /proc/cpuinfo || flags="$flags -DXG_NO_AVX512"
exec make -s -j"$(getconf _NPROCESSORS_ONLN)" BUILD="$BUILD" CFLAGS="$flags" $targets
