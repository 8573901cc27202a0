#!/bin/sh
# One test program, built for 64-bit ARM and run under an emulator:  sh tests/neon.sh test_ops
BUILD=${BUILD:-build}/neon
mkdir -p "$BUILD"
aarch64-linux-gnu-gcc -O2 -std=c99 -D_POSIX_C_SOURCE=200809L -static -I. -Itests "tests/$1.c" \
    tests/compile/implementation.c -o "$BUILD/$1" -lm || exit 1
exec env XG_TEST_SHORT=1 qemu-aarch64 "$BUILD/$1"
