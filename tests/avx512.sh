#!/bin/sh
# Test programs on the AVX-512 level, on x86 machines with only AVX2: a copy of the header calls the
# functions of avx512.h for its instructions, and takes any processor for one that has them.
#     sh tests/avx512.sh --build         compiles the library
#     sh tests/avx512.sh test_ops        builds and runs one test program, in its short mode
BUILD=${BUILD:-build}/avx512
like="gcc -O1 -std=c99 -D_POSIX_C_SOURCE=200809L -Wno-psabi -DXG_NO_AVX2 -I$BUILD -I. -Itests"
mkdir -p "$BUILD"
if [ "$1" = --build ]; then
    sed -e 's/_mm512_/like_/g' -e 's/,avx512f,avx512bw,avx512dq,avx512vl"/"/' \
        -e 's/__builtin_cpu_supports("avx512[a-z]*")/true/g' xguide.h >"$BUILD/xguide.h"
    exec $like -include tests/avx512.h -c tests/compile/implementation.c -o "$BUILD/library.o"
fi
$like "tests/$1.c" "$BUILD/library.o" -o "$BUILD/$1" -lm || exit 1
# The level is asked for by name: were it not there, nothing would run.
exec env XG_TEST_SHORT=1 XG_SIMD=avx512 "$BUILD/$1"
