#!/bin/sh
# One test program for WebAssembly with SIMD, run by node:  sh tests/wasm.sh test_kernels
BUILD=${BUILD:-build}/wasm
mkdir -p "$BUILD"
clang --target=wasm32-wasi -msimd128 -O2 -std=c99 -I. -Itests "tests/$1.c" \
    tests/compile/implementation.c -Wl,-z,stack-size=1048576 -o "$BUILD/$1.wasm" || exit 1
cat >"$BUILD/run.mjs" <<'JS'
import { readFile } from 'node:fs/promises';
import { WASI } from 'node:wasi';
const wasi = new WASI({ version: 'preview1', args: ['test'], env: { XG_TEST_SHORT: '1' }, returnOnExit: true });
const module = await WebAssembly.compile(await readFile(process.argv[2]));
const instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: wasi.wasiImport });
process.exit(wasi.start(instance));
JS
exec node --no-warnings "$BUILD/run.mjs" "$BUILD/$1.wasm"
