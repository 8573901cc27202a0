#!/bin/sh
# The C program in README.md compiles as it stands, as C and as C++, runs, and is as short as promised:
#     sh tests/readme.sh BUILD_FOLDER
build=$1
here=$(pwd)
awk '/^```c$/ { on = 1; next } /^```$/ { on = 0 } on' README.md >"$build/readme.c"
[ -s "$build/readme.c" ] || { echo "README.md has no C program"; exit 1; }
lines=$(awk '/int main/ { on = 1 } on' "$build/readme.c" | grep -c .)
[ "$lines" -le 32 ] || { echo "main has $lines lines"; exit 1; }
# Compiled in full it is as slow as the library: optimised only for FULL=1, and as C++ only parsed.
level=-O0
[ -z "$FULL" ] || level=-O2
${CC:-cc} $level -Wall -Werror -I. "$build/readme.c" -o "$build/readme" -lm || exit 1
if command -v g++ >/dev/null 2>&1; then
    how=-fsyntax-only
    [ -z "$FULL" ] || how="-O1 -c -o /dev/null"
    g++ -x c++ -std=c++17 $how -Wall -I. "$build/readme.c" || exit 1
fi
cd "$build" && ./readme && [ -s model.safetensors ] && rm model.safetensors
cd "$here" || exit 1
