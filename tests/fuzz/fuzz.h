/* fuzz.h - what both fuzzers share: the implementation, a check, and a main that replays files.
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
