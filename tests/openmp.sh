#!/bin/sh
# One test program with OpenMP's threads as the default:  sh tests/openmp.sh test_core
BUILD=${BUILD:-build}
# Kernels that this machine cannot run are only time for the compiler.
flags=
grep -qs avx512f /proc/cpuinfo || flags=-DXG_NO_AVX512
${CC:-cc} $flags -O1 -std=c99 -D_POSIX_C_SOURCE=200809L -fopenmp -Wall -Werror -I. -Itests "tests/$1.c" \
    tests/compile/implementation.c -o "$BUILD/openmp_$1" -lm || exit 1
exec env XG_TEST_SHORT=1 "$BUILD/openmp_$1"
