/* cli_info.c - `xguide info`: what this build is and how fast this machine runs it. */
#include <string.h>

#include "cli.h"

static const char usage[] =
    "xguide info [options]\n"
    "Version, instruction sets, threads, and the rate of a matrix product and of a convolution.";
static const char examples[] = "  xguide info\n  XG_SIMD=avx2 xguide info --threads 1";

/* Runs `work` until half a second has passed; returns multiply-adds times two a second. */
static double rate(xg_tape *tape, xg_tensor *(*work)(xg_tensor *, xg_tensor *), xg_shape a,
                   xg_shape b)
{
    xg_mark mark = xg_tape_mark(tape);
    xg_rng rng = xg_rng_seed(1);
    xg_tensor *x = xg_randn(tape, a, &rng), *y = xg_randn(tape, b, &rng);
    double best = 0, until = kit_seconds() + 0.5;
    do {
        xg_mark inner = xg_tape_mark(tape);
        double before = xg_tape_stats(tape).flops, started = kit_seconds();
        xg_data(work(x, y));
        double taken = kit_seconds() - started, done = xg_tape_stats(tape).flops - before;
        if (taken > 0 && done / taken > best) best = done / taken;
        xg_tape_release(tape, inner);
    } while (kit_seconds() < until && !xg_failed(tape));
    xg_tape_release(tape, mark);
    return best;
}

static xg_tensor *product(xg_tensor *a, xg_tensor *b) { return xg_matmul(a, b, false, false); }

static xg_tensor *convolution(xg_tensor *x, xg_tensor *w)
{
    xg_window k = { 3, 3, 1, 1, 1, 1 };
    return xg_conv2d(x, w, k);
}

static void print_build(const kit_pool *pool)
{
    printf("xguide      %s, numbers are %s\n", xg_version(),
           sizeof(xg_real) == sizeof(float) ? "float" : "double");
#if defined(__clang__)
    printf("compiler    clang %d.%d\n", __clang_major__, __clang_minor__);
#elif defined(__GNUC__)
    printf("compiler    gcc %d.%d\n", __GNUC__, __GNUC_MINOR__);
#endif
#if defined(_OPENMP)
    printf("threads     %d of %d processors, the tool's pool; OpenMP is compiled in\n",
           kit_pool_threads(pool), kit_cpus());
#else
    printf("threads     %d of %d processors, the tool's pool\n", kit_pool_threads(pool),
           kit_cpus());
#endif
    printf("levels     ");
    for (int i = 0; i < xg_simd_count(); i++) printf(" %s", xg_simd_name(i));
    printf(" (best: %s)\n", xg_simd_best());
}

int cli_info(int argc, char **argv)
{
    int threads = 0;
    bool brief = false;
    kit_arg table[] = {
        { "threads", 0, KIT_ARG_INT, &threads, "N", "0: one for each processor" },
        { "brief", 0, KIT_ARG_FLAG, &brief, NULL, "measure nothing" }
    };
    xg_error error = { XG_ERR_OK, "" };
    kit_args_result read = cli_args_read(argc, argv, table, 2, usage, examples, NULL, 0, NULL,
                                         &error);
    if (read == KIT_ARGS_HELP) return CLI_OK;
    if (read == KIT_ARGS_BAD) return cli_complain(CLI_USAGE, &error);
    cli_run run;
    int code = CLI_OK;
    if (cli_run_engine(&run, threads, &error)) {
        print_build(run.pool);
        printf("level used  %s\n", xg_tape_simd(run.tape));
        if (!brief) {
            xg_shape square = xg_shape4(1, 1, 512, 512), planes = xg_shape4(8, 64, 56, 56);
            double gemm = rate(run.tape, product, square, square);
            double conv = rate(run.tape, convolution, planes, xg_shape4(64, 64, 3, 3));
            printf("measured    matrix product 512x512x512: %.1f GFLOP/s\n"
                   "            3x3 convolution, 64 to 64 channels of 56x56: %.1f GFLOP/s\n",
                   gemm * 1e-9, conv * 1e-9);
        }
    } else {
        code = cli_complain(CLI_FAILED, &error);
    }
    cli_run_close(&run);
    return code;
}
