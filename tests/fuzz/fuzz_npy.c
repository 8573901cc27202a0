/* fuzz_npy.c - any bytes as an npy file. It must be refused with an error, or become a leaf of as
 * many numbers as the bytes can hold; never crash, hang or read a byte too many. fuzz.h tells how to
 * run it. */
#include "fuzz.h"

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
