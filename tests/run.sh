#!/bin/sh
# Runs every test that this machine can run, each in its own process, and adds up. Called by make test
# from the top folder. What a machine lacks (clang, an emulator, the data sets) is counted as skipped,
# by name. The last line is "N passed, N failed, N skipped".
#     sh tests/run.sh [part of a name]
BUILD=${BUILD:-build}
CC=${CC:-cc}
CXX=${CXX:-c++}
only=$1
passed=0 failed=0 skipped=0
mkdir -p "$BUILD/log"

WARN="-Wall -Wextra -Wconversion -Wsign-conversion -Wshadow -Wpedantic -Werror"
POSIX="-D_POSIX_C_SOURCE=200809L -D_XOPEN_SOURCE=700"

wanted() { case "$1" in *"$only"*) return 0 ;; esac; return 1; }
have() { command -v "$1" >/dev/null 2>&1; }

skip() { wanted "$1" || return 0; skipped=$((skipped + 1)); echo "skipped  $1: $2"; }

# check NAME COMMAND...: passes when the command exits 0 and prints nothing wrong.
check() {
    name=$1
    shift
    wanted "$name" || return 0
    if "$@" >"$BUILD/log/$name.txt" 2>&1; then
        passed=$((passed + 1))
        echo "ok       $name"
    else
        failed=$((failed + 1))
        echo "FAILED   $name"
        tail -n 25 "$BUILD/log/$name.txt" | sed 's/^/    /'
    fi
}

# suite NAME COMMAND...: a test program; its last line tells how many tests it holds.
suite() {
    name=$1
    shift
    wanted "$name" || return 0
    log=$BUILD/log/$name.txt
    "$@" >"$log" 2>&1
    code=$?
    counts=$(sed -n 's/.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$log" | tail -n 1)
    if [ -z "$counts" ] || { [ $code -ne 0 ] && [ "$(echo "$counts" | cut -d' ' -f2)" = 0 ]; }; then
        failed=$((failed + 1))
        echo "FAILED   $name (exit code $code)"
        tail -n 25 "$log" | sed 's/^/    /'
        return 0
    fi
    set -- $counts
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    if [ "$2" -ne 0 ]; then
        echo "FAILED   $name: $2 of $(($1 + $2 + $3))"
        grep -v '^  skipped' "$log" | head -n 40 | sed 's/^/    /'
    else
        echo "ok       $name: $1 passed$([ "$3" -ne 0 ] && echo ", $3 skipped")"
        grep '^  skipped' "$log"
    fi
}

# ---- build ---------------------------------------------------------------------------------------

jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
programs= doubles=
for file in tests/test_*.c; do
    name=$(basename "$file" .c)
    programs="$programs $BUILD/$name"
    # The kit, the command line and the data sets work in float only.
    case $name in test_kit | test_cli | test_data) ;; *) doubles="$doubles $BUILD/double_${name#test_}" ;; esac
done
if ! make -s -j"$jobs" CC="$CC" BUILD="$BUILD" all $programs $doubles >"$BUILD/log/build.txt" 2>&1; then
    cat "$BUILD/log/build.txt"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
echo "kernels: $("$BUILD/xguide" info --short)"

# ---- the header compiles everywhere without a word -----------------------------------------------

compile() {     # compile NAME COMPILER FLAGS...
    name=$1
    compiler=$2
    shift 2
    check "compile-$name" $compiler "$@" $WARN -I. -c -o /dev/null
}
for pair in "gcc g++" "clang clang++"; do
    set -- $pair
    if ! have "$1" || ! have "$2"; then
        skip "compile-$1" "$1 or $2 is not installed"
        continue
    fi
    compile "$1-c99" "$1" -std=c99 -O2 tests/compile/implementation.c
    compile "$1-c99-O0" "$1" -std=c99 -O0 tests/compile/implementation.c
    compile "$1-c17-double" "$1" -std=c17 -O1 -DXG_DOUBLE tests/compile/implementation.c
    compile "$2-c++17" "$2" -std=c++17 -O1 -x c++ tests/compile/implementation.c
    compile "$2-c++17-double" "$2" -std=c++17 -O1 -DXG_DOUBLE -x c++ tests/compile/implementation.c
    for trap in tests/compile/*.c; do
        base=$(basename "$trap" .c)
        [ "$base" = implementation ] && continue
        compile "$1-$base" "$1" -std=c99 -O1 "$trap"
        compile "$2-$base" "$2" -std=c++17 -O1 -x c++ "$trap"
    done
done

# ---- lint and symbols ----------------------------------------------------------------------------

check lint "$BUILD/check" xguide.h tests examples
check symbols sh tests/symbols.sh "$BUILD/xguide.o"

# ---- tests ---------------------------------------------------------------------------------------

for program in $programs $doubles; do suite "$(basename "$program")" "$program"; done

# ---- examples and the tool, in their seconds-long mode ---------------------------------------------

for example in $(ls examples/*.c); do
    name=$(basename "$example" .c)
    check "example-$name" "$BUILD/example_$name" --quick
done

# ---- sanitizers ----------------------------------------------------------------------------------

sanitized() {
    flags="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    make -s -j"$jobs" CC="$CC" BUILD="$BUILD/sanitized" CFLAGS="$flags" \
        $(echo $programs | sed "s#$BUILD/#$BUILD/sanitized/#g") >"$BUILD/log/sanitized.txt" 2>&1 ||
        { cat "$BUILD/log/sanitized.txt"; return 1; }
}
if echo 'int main(void){return 0;}' | "$CC" -fsanitize=address,undefined -x c - -o "$BUILD/probe" 2>/dev/null; then
    mkdir -p "$BUILD/sanitized"
    if wanted sanitized; then
        check sanitized-build sanitized
        for program in $programs; do
            name=$(basename "$program")
            suite "sanitized-$name" env XG_TEST_SHORT=1 "$BUILD/sanitized/$name"
        done
    fi
else
    skip sanitized "$CC has no sanitizers here"
fi

# ---- other machines, emulated --------------------------------------------------------------------

emulated() {    # the kernel and operation tests for aarch64
    for name in test_kernels test_ops test_core; do
        aarch64-linux-gnu-gcc -O2 -std=c99 $POSIX -static -I. -Itests tests/$name.c \
            tests/compile/implementation.c -o "$BUILD/neon_$name" -lm || return 1
    done
}
if have aarch64-linux-gnu-gcc && have qemu-aarch64; then
    check neon-build emulated
    for name in test_kernels test_ops test_core; do
        suite "neon-$name" env XG_TEST_SHORT=1 qemu-aarch64 "$BUILD/neon_$name"
    done
else
    skip neon "aarch64-linux-gnu-gcc or qemu-aarch64 is not installed"
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
