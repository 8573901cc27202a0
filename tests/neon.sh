#!/bin/sh
# Test programs for 64-bit ARM, run under an emulator:
#     sh tests/neon.sh --build         compiles the library
#     sh tests/neon.sh test_ops        builds and runs one test program, in its short mode
BUILD=${BUILD:-build}/neon
arm="aarch64-linux-gnu-gcc -O2 -std=c99 -D_POSIX_C_SOURCE=200809L -I. -Itests"
mkdir -p "$BUILD"
[ "$1" != --build ] || exec $arm -c tests/compile/implementation.c -o "$BUILD/library.o"
$arm -static "tests/$1.c" "$BUILD/library.o" -o "$BUILD/$1" -lm || exit 1
exec env XG_TEST_SHORT=1 qemu-aarch64 "$BUILD/$1"
