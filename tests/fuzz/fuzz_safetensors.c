/* fuzz_safetensors.c - any bytes as a safetensors file, loaded in every mode. It must be refused
 * with an error that leaves the store alone, or be loaded; never crash, hang or read too far.
 *
 * With libFuzzer, from the top folder (a folder of small real files makes a good start):
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. \
 *         tests/fuzz/fuzz_safetensors.c -o build/fuzz_safetensors -lm
 *     build/fuzz_safetensors -max_len=4096 [FOLDER]
 * To replay what it found, with any compiler:
 *     cc -g -DFUZZ_MAIN -I. tests/fuzz/fuzz_safetensors.c -o build/replay -lm
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
    bool strictly = false;                    /* was it loaded in the strict mode before? */
    for (int mode = 0; mode < 8; mode++) {
        const xg_load_options o = { (mode & 1) != 0, (mode & 2) != 0, mode & 4 ? "b" : NULL };
        xg_load_report report;
        xg_params *store = xg_params_new(NULL);
        if (!store) return 0;
        const int a = xg_params_add(store, "a", xg_shape4(2, 2, 1, 1), true);
        must(a == 0);
        xg_params_data(store, a)[3] = 7;
        const xg_code code = xg_params_parse(store, bytes, count, &o, &report);
        must(code == xg_params_error(store)->code);
        if (code != XG_ERR_OK) {
            must(xg_params_count(store) == 1 && xg_params_data(store, a)[3] == (xg_real)7);
            must(report.loaded == 0);
        } else {
            must(report.loaded >= xg_params_count(store) - 1);
        }
        if (o.lenient) must(code == XG_ERR_OK || !strictly);
        else strictly = code == XG_ERR_OK;
        /* The store still finds all that it holds, new entries and old. */
        for (int i = 0; i < xg_params_count(store); i++) {
            must(xg_params_find(store, xg_params_name(store, i)) == i);
        }
        xg_params_free(store);
    }
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
