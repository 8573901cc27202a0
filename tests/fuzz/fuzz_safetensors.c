/* fuzz_safetensors.c - any bytes as a safetensors file, loaded in every mode. It must be refused
 * with an error that leaves the store alone, or be loaded; never crash, hang or read too far.
 * fuzz.h tells how to run it. */
#include "fuzz.h"

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
