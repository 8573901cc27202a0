#!/bin/sh
# Test programs compiled as most people do it: without -std=c99, so that the compiler may fuse products
# and sums on its own, and for the machine at hand, where plain C has an instruction for that. The
# header has to forbid it: all levels, and all machines, have the same bits.
#     sh tests/contract.sh gcc --build              compiles the library; or gnu17-gcc, clang, ..
#     sh tests/contract.sh gnu17-gcc test_finish    builds and runs one test program, in its short mode
mode=$1
BUILD=${BUILD:-build}/contract-$mode
like="${mode#gnu17-} -D_POSIX_C_SOURCE=200809L -I. -Itests"
[ "$mode" = "${mode#gnu17-}" ] || like="$like -std=gnu17 -march=native"
# Kernels that this machine cannot run are only time for the compiler.
grep -qs avx512f /proc/cpuinfo || like="$like -DXG_NO_AVX512"
mkdir -p "$BUILD"
# Not below -O2: gcc does not fuse there.
[ "$2" != --build ] || exec $like -O2 -c tests/compile/implementation.c -o "$BUILD/library.o"
$like -O1 "tests/$2.c" "$BUILD/library.o" -o "$BUILD/$2" -lm || exit 1
exec env XG_TEST_SHORT=1 "$BUILD/$2"
