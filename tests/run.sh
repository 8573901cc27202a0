#!/bin/sh
# Runs every test that this machine can run, each in its own process, and adds up. Called by make test
# from the top folder. What a machine lacks (clang, an emulator, the data sets) is counted as skipped,
# by name. The last line is "N passed, N failed, N skipped".
#     sh tests/run.sh [part of a name]
# With FULL=1 in the environment also what takes long: the second compiler, emulated machines, doubles
# under the sanitizers, and what compilers do that are not told a standard.
#
# Jobs are written to a list first and then run a few at a time; each leaves its counts in a file.
BUILD=${BUILD:-build}
CC=${CC:-cc}
export BUILD CC
log=$BUILD/log

# ---- one job: sh tests/run.sh --job KIND NAME COMMAND... -------------------------------------------

report() { echo "$2 $3 $4" >"$log/$1.count"; }     # report NAME PASSED FAILED SKIPPED

# await NAME: a job WHERE-... needs what WHERE-build makes, if there is such a job. Builds stand first in
# the list, so that one that is waited for has begun.
await() {
    case $1 in *-build) return ;; esac
    where=${1%-*}
    grep -q "^check $where-build " "$log/jobs" || return
    while [ ! -e "$log/$where-build.count" ]; do sleep 1; done
}

# A check passes when its command exits 0.
run_check() {
    name=$1
    shift
    if "$@" >"$log/$name.txt" 2>&1; then
        report "$name" 1 0 0
        echo "ok       $name"
    else
        report "$name" 0 1 0
        { echo "FAILED   $name"; tail -n 25 "$log/$name.txt" | sed 's/^/    /'; }
    fi
}

# A suite is a test program: its last line tells how many tests it holds, and how they went.
run_suite() {
    name=$1
    shift
    "$@" >"$log/$name.txt" 2>&1
    code=$?
    counts=$(sed -n 's/.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' \
        "$log/$name.txt" | tail -n 1)
    [ -n "$counts" ] || counts="0 1 0"
    set -- $counts
    if [ $code -ne 0 ] && [ "$2" = 0 ]; then set -- "$1" 1 "$3"; fi
    report "$name" "$1" "$2" "$3"
    if [ "$2" -ne 0 ]; then
        { echo "FAILED   $name: $2 of $(($1 + $2 + $3)), exit code $code"
          grep -v '^  skipped' "$log/$name.txt" | tail -n 40 | sed 's/^/    /'; }
    elif [ "$3" -ne 0 ]; then
        { echo "ok       $name: $1 passed, $3 skipped"; grep '^  skipped' "$log/$name.txt" | sort -u; }
    else
        echo "ok       $name: $1 passed"
    fi
}

if [ "$1" = --job ]; then
    kind=$2
    shift 2
    await "$1"
    run_"$kind" "$@"
    exit 0
fi

# ---- the list --------------------------------------------------------------------------------------

only=$1
rm -rf "$log"
mkdir -p "$log"
list=$log/jobs
: >"$list"
have() { command -v "$1" >/dev/null 2>&1; }
job() { case "$2" in *"$only"*) echo "$*" >>"$list" ;; esac; }
check() { job check "$@"; }
suite() { job suite "$@"; }
skip() { case "$1" in *"$only"*) report "$1" 0 0 1; echo "skipped  $1: $2" ;; esac; }

# long NAME: whether to run what takes long; if not, it is skipped by name.
long() { [ -n "$FULL" ] || { skip "$1" "takes long; make test FULL=1 runs it"; return 1; }; }

jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
warn="-Wall -Wextra -Wconversion -Wsign-conversion -Wshadow -Wpedantic -Werror"
posix="-D_POSIX_C_SOURCE=200809L -D_XOPEN_SOURCE=700"

tests= doubles=
for file in tests/test_*.c; do
    name=$(basename "$file" .c)
    tests="$tests $name"
    # The kit and what is built on it work in float only.
    grep -q 'kit.h\|scratch.h' "$file" || doubles="$doubles double_${name#test_}"
done

# hello.c compiles the whole library once more: optimised only for FULL=1.
hello=$BUILD
[ -n "$FULL" ] || hello=$BUILD/unoptimised

echo "building"
targets=
for file in examples/*.c; do
    name=$(basename "$file" .c)
    if [ -n "$FULL" ] || [ "$name" != hello ]; then targets="$targets $BUILD/example_$name"; fi
done
for name in $tests $doubles xguide check bench; do targets="$targets $BUILD/$name"; done
if ! make -s -j"$jobs" $targets >"$log/build.txt" 2>&1; then
    cat "$log/build.txt"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
echo "kernels: $("$BUILD/xguide" info --brief | sed -n 's/^level used *//p' | head -n 1)"

for name in $tests $doubles; do suite "$name" "$BUILD/$name"; done

# That build is optimised: no warning in it either.
grep 'warning:' "$log/build.txt" | grep -v '^make' | tee "$log/warnings"
check warnings test ! -s "$log/warnings"

# The header compiles everywhere without a word.
for pair in "gcc g++" "clang clang++"; do
    set -- $pair
    if ! have "$1" || ! have "$2"; then skip "compile-$1" "$1 or $2 is not installed"; continue; fi
    if [ "$1" = clang ] && ! long compile-clang; then continue; fi
    # Some warnings come only with optimisation: always for the whole library, else for FULL=1. Whether
    # something is defined twice, the parser tells.
    variant=-O0 twice=-fsyntax-only
    if [ -n "$FULL" ]; then variant=-O1 twice=-O1; fi
    for file in tests/compile/*.c; do
        name=$(basename "$file" .c)
        case $name in implementation) level=-O1 ;; after) level=$twice ;; *) level=$variant ;; esac
        check "compile-$1-$name" "$1" -std=c99 $level $warn -I. -c "$file" -o /dev/null
        check "compile-$2-$name" "$2" -std=c++17 $level $warn -I. -x c++ -c "$file" -o /dev/null
    done
    file=tests/compile/implementation.c
    check "compile-$1-double" "$1" -std=c17 $variant -DXG_DOUBLE $warn -I. -c $file -o /dev/null
    check "compile-$2-double" "$2" -std=c++17 $variant -DXG_DOUBLE $warn -I. -x c++ -c $file -o /dev/null
    # And some come only without: the full matrix, too, compiles the library once that way.
    check "compile-$1-unoptimised" "$1" -std=c99 -O0 $warn -I. -c $file -o /dev/null
done

# With OpenMP its threads are the default.
if echo 'int main(void){return 0;}' | "$CC" -fopenmp -x c - -o "$log/probe" 2>/dev/null; then
    suite openmp-test_core sh tests/openmp.sh test_core
else
    skip openmp "$CC has no OpenMP here"
fi

check lint "$BUILD/check" xguide.h tests examples
check symbols sh tests/symbols.sh "$BUILD/library.o"
check readme sh tests/readme.sh "$BUILD"
check bench sh tests/bench.sh "$BUILD"
if [ -z "$FULL" ]; then check example-build make -s BUILD="$hello" CFLAGS=-O0 "$hello/example_hello"; fi
for file in examples/*.c; do
    name=$(basename "$file" .c) folder=$BUILD
    if [ "$name" = hello ]; then folder=$hello; fi
    check "example-$name" env -C "$folder" "./example_$name" --quick
done
for file in tests/cli_*.sh; do
    if [ -e "$file" ]; then check "$(basename "$file" .sh)" sh "$file" "$BUILD/xguide"; fi
done

# Sanitizers: a build of their own.
if echo 'int main(void){return 0;}' | "$CC" -fsanitize=address,undefined -x c - -o "$log/probe" 2>/dev/null
then
    programs=$tests
    if long sanitized-double; then programs="$tests double_core double_ops double_golden"; fi
    check sanitized-build sh tests/sanitized.sh $programs
    for name in $programs; do
        suite "sanitized-$name" sh tests/sanitized.sh --run "$name"
    done
else
    skip sanitized "$CC has no sanitizers here"
fi

# elsewhere NAME SCRIPT TEST..: a library of its own and test programs with it, both by the script.
elsewhere() {
    long "$1" || return 0
    where=$1 script=$2
    shift 2
    check "$where-build" sh $script --build
    for name in "$@"; do suite "$where-$name" sh $script "$name"; done
}

# Kernels and operations on NEON.
if have aarch64-linux-gnu-gcc && have qemu-aarch64; then
    elsewhere neon tests/neon.sh test_kernels test_winograd test_small test_finish test_ops test_core
else
    skip neon "aarch64-linux-gnu-gcc or qemu-aarch64 is not installed"
fi

# And on AVX-512, which few machines have, made of the AVX2 of those that have that.
if have gcc && grep -qs avx2 /proc/cpuinfo; then
    elsewhere avx512 tests/avx512.sh test_kernels test_winograd test_small test_finish test_ops test_core
else
    skip avx512 "gcc or AVX2 is not there"
fi

# WebAssembly with SIMD, run by node.
if have clang && have wasm-ld && have node && [ -e /usr/include/wasm32-wasi ]; then
    elsewhere wasm tests/wasm.sh test_kernels test_winograd test_small test_ops
else
    skip wasm "clang, wasm-ld, node or wasi-libc is not installed"
fi

# As those compile it who ask for no standard, and those who want the best of their machine.
for cc in gcc clang; do
    if ! have $cc; then skip "contract-$cc" "$cc is not installed"; continue; fi
    # Kernels take long; what a machine's best changes in them is nothing but the yardstick.
    elsewhere contract-$cc "tests/contract.sh $cc" test_finish test_core test_kernels
    elsewhere contract-gnu17-$cc "tests/contract.sh gnu17-$cc" test_finish test_core
done

# ---- run, and add up -------------------------------------------------------------------------------

# Builds come first: other jobs wait for them. Then the compiler, which waits for nothing, and then what
# takes longest, so that nothing ends alone.
while read -r kind name command; do
    case $name in
    *-build) rank=1 ;;
    compile-* | openmp-* | readme) rank=2 ;;
    *-*_core | *-*_finish | *-*_kernels | *-*_models | *-*_small | *-*_winograd) rank=3 ;;
    *_core | *_finish | *_kernels | *_models | *_small | *_winograd) rank=4 ;;
    *) rank=5 ;;
    esac
    echo "$rank $kind $name $command"
done <"$list" | sort -s -n -k 1,1 | cut -d ' ' -f 2- | xargs -r -P "$jobs" -L 1 sh tests/run.sh --job
cat "$log"/*.count | awk '{ p += $1; f += $2; s += $3 }
    END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f != 0 || p == 0 }'
