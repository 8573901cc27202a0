#!/bin/sh
# Test programs for WebAssembly with SIMD, run by node:
#     sh tests/wasm.sh --build           compiles the library
#     sh tests/wasm.sh test_kernels      builds and runs one test program, in its short mode
BUILD=${BUILD:-build}/wasm
wasm="clang --target=wasm32-wasi -msimd128 -O2 -std=c99 -I. -Itests"
mkdir -p "$BUILD"
[ "$1" != --build ] || exec $wasm -c tests/compile/implementation.c -o "$BUILD/library.o"
$wasm "tests/$1.c" "$BUILD/library.o" -Wl,-z,stack-size=1048576 -o "$BUILD/$1.wasm" || exit 1
cat >"$BUILD/$1.mjs" <<'JS'
import { readFile } from 'node:fs/promises';
import { WASI } from 'node:wasi';
const wasi = new WASI({ version: 'preview1', args: ['test'], env: { XG_TEST_SHORT: '1' }, returnOnExit: true });
const module = await WebAssembly.compile(await readFile(process.argv[2]));
const instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: wasi.wasiImport });
process.exit(wasi.start(instance));
JS
exec node --no-warnings "$BUILD/$1.mjs" "$BUILD/$1.wasm"
