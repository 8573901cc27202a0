/* fuzz_npy.c - any bytes as an npy file. It must be refused with an error, or become a leaf of as
 * many numbers as the bytes can hold; never crash, hang or read a byte too many.
 *
 * With libFuzzer, from the top folder (a folder of small real files makes a good start):
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. \
 *         tests/fuzz/fuzz_npy.c -o build/fuzz_npy -lm
 *     build/fuzz_npy -max_len=4096 [FOLDER]
 * To replay what it found, with any compiler:
 *     cc -g -DFUZZ_MAIN -I. tests/fuzz/fuzz_npy.c -o build/replay -lm
 *     build/replay FILE...
 */
#define XG_IMPLEMENTATION
#include "xguide.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static void must(bool condition)
{
    if (!condition) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    xg_tape *tape = xg_tape_new(NULL);
    if (!tape) return 0;
    xg_tensor *x = xg_npy_parse(tape, bytes, count);
    must(x != NULL);
    if (xg_failed(tape)) {
        const xg_code code = xg_tape_error(tape)->code;
        must(code == XG_ERR_FORMAT || code == XG_ERR_UNSUPPORTED);
    } else {
        must(xg_size(x) >= 1 && xg_size(x) < count);
        volatile xg_real touched = 0;         /* every number can be read */
        for (size_t i = 0; i < xg_size(x); i++) touched = xg_data(x)[i];
        (void)touched;
    }
    xg_tape_free(tape);
    return 0;
}

#ifdef FUZZ_MAIN
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) return 1;
        fseek(file, 0, SEEK_END);
        const size_t count = (size_t)ftell(file);
        rewind(file);
        uint8_t *bytes = (uint8_t *)malloc(count ? count : 1);
        must(bytes && fread(bytes, 1, count, file) == count);
        fclose(file);
        LLVMFuzzerTestOneInput(bytes, count);
        free(bytes);
        printf("%s: fine\n", argv[i]);
    }
    return 0;
}
#endif
