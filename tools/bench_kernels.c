/* bench_kernels.c - rates of the matrix product and of the convolutions, shape by shape. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

/* A convolution of n x c x h x h with o filters of k x k; or, with k = 0, the product of x [n, h] with the
 * transpose of a weight w [c, h], as in a dense layer. */
typedef struct shape_row { const char *name; int n, c, h, o, k, stride, groups; } shape_row;

static const shape_row rows[] = {
    { "gemm 256", 256, 256, 256, 0, 0, 0, 0 },
    { "gemm 512", 512, 512, 512, 0, 0, 0, 0 },
    { "gemm 1024", 1024, 1024, 1024, 0, 0, 0, 0 },
    { "mlp 256x512x784", 256, 512, 784, 0, 0, 0, 0 },
    { "mlp 32x512x784", 32, 512, 784, 0, 0, 0, 0 },
    { "mlp 256x10x512", 256, 10, 512, 0, 0, 0, 0 },
    { "r50 conv1 7x7/2 3-64 @224", 8, 3, 224, 64, 7, 2, 1 },
    { "r50 1x1 64-64 @56", 8, 64, 56, 64, 1, 1, 1 },
    { "r18/50 3x3 64-64 @56", 8, 64, 56, 64, 3, 1, 1 },
    { "r50 1x1 64-256 @56", 8, 64, 56, 256, 1, 1, 1 },
    { "r50 1x1 256-64 @56", 8, 256, 56, 64, 1, 1, 1 },
    { "r50 1x1 256-128 @56", 8, 256, 56, 128, 1, 1, 1 },
    { "r50 3x3/2 128-128 @56", 8, 128, 56, 128, 3, 2, 1 },
    { "r18 3x3/2 64-128 @56", 8, 64, 56, 128, 3, 2, 1 },
    { "r18/50 3x3 128-128 @28", 8, 128, 28, 128, 3, 1, 1 },
    { "r50 1x1 128-512 @28", 8, 128, 28, 512, 1, 1, 1 },
    { "r50 1x1 512-128 @28", 8, 512, 28, 128, 1, 1, 1 },
    { "r50 1x1/2 256-512 @56", 8, 256, 56, 512, 1, 2, 1 },
    { "r18/50 3x3 256-256 @14", 8, 256, 14, 256, 3, 1, 1 },
    { "r50 1x1 256-1024 @14", 8, 256, 14, 1024, 1, 1, 1 },
    { "r50 1x1 1024-256 @14", 8, 1024, 14, 256, 1, 1, 1 },
    { "r18/50 3x3 512-512 @7", 8, 512, 7, 512, 3, 1, 1 },
    { "r50 1x1 512-2048 @7", 8, 512, 7, 2048, 1, 1, 1 },
    { "r50 1x1 2048-512 @7", 8, 2048, 7, 512, 1, 1, 1 },
    { "r50 3x3 64-64 @56", 1, 64, 56, 64, 3, 1, 1 },
    { "r50 3x3 128-128 @28", 1, 128, 28, 128, 3, 1, 1 },
    { "r50 3x3 512-512 @7", 1, 512, 7, 512, 3, 1, 1 },
    { "r50 1x1 512-2048 @7", 1, 512, 7, 2048, 1, 1, 1 },
    { "r18s 3x3 64-64 @32", 64, 64, 32, 64, 3, 1, 1 },
    { "r18s 3x3 128-128 @16", 64, 128, 16, 128, 3, 1, 1 },
    { "r18s 3x3 256-256 @8", 64, 256, 8, 256, 3, 1, 1 },
    { "r18s 3x3 512-512 @4", 64, 512, 4, 512, 3, 1, 1 },
    { "small 3x3 3-16 @64", 50, 3, 64, 16, 3, 1, 1 },
    { "small 3x3 16-32 @32", 50, 16, 32, 32, 3, 1, 1 },
    { "small 3x3 32-64 @16", 50, 32, 16, 64, 3, 1, 1 },
    { "depthwise 3x3 96 @56", 8, 96, 56, 96, 3, 1, 96 },
};

typedef enum pass { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, PASSES } pass;
static const char *const pass_names[PASSES] = { "forward", "input gradient", "weight gradient" };

typedef struct kernel {
    xg_tape *tape;
    const shape_row *row;
    pass what;
    xg_tensor *x, *w, *g;
} kernel;

static xg_tensor *compute(const kernel *k)
{
    xg_window window = { 0, 0, k->row->stride, k->row->k / 2, 1, k->row->groups };
    bool dense = k->row->k == 0;
    switch (k->what) {
    case FORWARD: return dense ? xg_matmul(k->x, k->w, false, true) : xg_conv2d(k->x, k->w, window);
    case INPUT_GRADIENT:
        return dense ? xg_matmul(k->g, k->w, false, false)
                     : xg_conv2d_dx(k->w, k->g, window, xg_shape_of(k->x));
    default:
        return dense ? xg_matmul(k->g, k->x, true, false)
                     : xg_conv2d_dw(k->x, k->g, window, xg_shape_of(k->w));
    }
}

static void turn(void *context)
{
    kernel *k = context;
    xg_mark mark = xg_tape_mark(k->tape);
    xg_data(compute(k));
    xg_tape_release(k->tape, mark);
}

static void make_operands(kernel *k)
{
    const shape_row *r = k->row;
    xg_rng rng = xg_rng_seed(1);
    if (r->k == 0) {
        k->x = xg_randn(k->tape, xg_shape4(1, 1, r->n, r->h), &rng);
        k->w = xg_randn(k->tape, xg_shape4(1, 1, r->c, r->h), &rng);
        k->g = xg_randn(k->tape, xg_shape4(1, 1, r->n, r->c), &rng);
        return;
    }
    int out = (r->h + 2 * (r->k / 2) - r->k) / r->stride + 1;
    k->x = xg_randn(k->tape, xg_shape4(r->n, r->c, r->h, r->h), &rng);
    k->w = xg_randn(k->tape, xg_shape4(r->o, r->c / r->groups, r->k, r->k), &rng);
    k->g = xg_randn(k->tape, xg_shape4(r->n, r->o, out, out), &rng);
}

/* Measures one pass; its share of the peak is not known yet. */
static bench_row measure(kernel *k, int threads, bool quick)
{
    double before = xg_tape_stats(k->tape).flops;
    turn(k);
    double flops = xg_tape_stats(k->tape).flops - before;
    double seconds = bench_median(turn, k, quick ? bench_quick_pace : bench_kernel_pace);
    if (xg_failed(k->tape)) {
        fprintf(stderr, "bench: %s\n", xg_tape_error(k->tape)->text);
        exit(1);
    }
    bench_row row;
    memset(&row, 0, sizeof row);
    snprintf(row.work, sizeof row.work, "%s %s", k->row->name, pass_names[k->what]);
    row.batch = k->row->n;
    row.threads = threads;
    row.ms = 1e3 * seconds;
    row.gflops = flops / seconds / 1e9;
    return row;
}

/* One line of the table: every pass, between two measurements of the peak. */
static void measure_row(kernel *k, kit_pool *pool, bool quick, FILE *csv)
{
    bench_row row[PASSES];
    const char *simd = xg_tape_simd(k->tape);
    xg_mark mark = xg_tape_mark(k->tape);
    make_operands(k);
    double peak = bench_peak(simd, pool);
    for (k->what = FORWARD; k->what < PASSES; k->what++) {
        row[k->what] = measure(k, kit_pool_threads(pool), quick);
    }
    xg_tape_release(k->tape, mark);
    double again = bench_peak(simd, pool);
    if (again > peak) peak = again;
    printf("%-26s %5d %5.0f", k->row->name, k->row->n, peak);
    for (pass p = FORWARD; p < PASSES; p++) {
        row[p].peak_share = row[p].gflops / peak;
        printf("%10.3f ms%6.0f%4.0f%%", row[p].ms, row[p].gflops, 100 * row[p].peak_share);
        bench_print_row(csv, &row[p]);
    }
    printf("\n");
    fflush(stdout);
}

static void print_head(int threads, const char *simd)
{
    printf("\nkernels, %d thread%s, %s: milliseconds, GF/s, share of the peak beside\n%-26s %5s %5s", threads,
           threads > 1 ? "s" : "", simd, "", "batch", "peak");
    for (pass p = FORWARD; p < PASSES; p++) printf("%23s", pass_names[p]);
    printf("\n");
}

int bench_kernels(const char *filter, int threads, bool quick, FILE *csv)
{
    int count = (int)(sizeof rows / sizeof *rows), shown = 0;
    kit_pool *pool = kit_pool_new(threads, NULL);
    xg_config config;
    memset(&config, 0, sizeof config);
    kit_pool_config(pool, &config);
    kit_memory_config(&config);
    kernel k = { xg_tape_new(&config), NULL, FORWARD, NULL, NULL, NULL };
    for (int i = 0; k.tape && i < count && !kit_interrupted(); i++) {
        k.row = &rows[i];
        if (filter && !strstr(k.row->name, filter)) continue;
        if (shown++ == 0) print_head(threads, xg_tape_simd(k.tape));
        measure_row(&k, pool, quick, csv);
    }
    xg_tape_free(k.tape);
    kit_pool_free(pool);
    return shown;
}
