/* bench.c - rates of the kernels against the peak of this machine, measured in the same run.
 *
 *     make bench                         the whole table, one thread and two
 *     build/bench conv 1                 rows whose name contains "conv", on one thread
 *
 * Peak is what fused multiply-adds on registers reach. Every figure is the median of several blocks, and
 * the peak is measured anew beside each row, since the clock of a shared machine drifts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"
#include "xguide.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define X86 1
#else
#define X86 0
#endif

enum { BLOCKS = 9, CHAINS = 12, TURNS = 20000 };

/* ---- the peak ---------------------------------------------------------------------------------- */

/* Each runs TURNS rounds of CHAINS independent fused multiply-adds and returns something that depends on
 * all of them, so that nothing can be left out. */
#if X86
__attribute__((target("avx512f"))) static float spin_avx512(void)
{
    __m512 a[CHAINS], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
    for (int i = 0; i < CHAINS; i++) a[i] = _mm512_set1_ps((float)i);
    for (int turn = 0; turn < TURNS; turn++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) a[i] = _mm512_fmadd_ps(a[i], x, y);
    }
    for (int i = 1; i < CHAINS; i++) a[0] = _mm512_add_ps(a[0], a[i]);
    return _mm512_cvtss_f32(a[0]);
}

__attribute__((target("avx2,fma"))) static float spin_avx2(void)
{
    __m256 a[CHAINS], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
    for (int i = 0; i < CHAINS; i++) a[i] = _mm256_set1_ps((float)i);
    for (int turn = 0; turn < TURNS; turn++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) a[i] = _mm256_fmadd_ps(a[i], x, y);
    }
    for (int i = 1; i < CHAINS; i++) a[0] = _mm256_add_ps(a[0], a[i]);
    return _mm256_cvtss_f32(a[0]);
}
#endif

static float spin_scalar(void)
{
    float a[CHAINS];
    for (int i = 0; i < CHAINS; i++) a[i] = (float)i;
    for (int turn = 0; turn < TURNS; turn++) {
        for (int i = 0; i < CHAINS; i++) a[i] = fmaf(a[i], 0.999f, 1e-3f);
    }
    for (int i = 1; i < CHAINS; i++) a[0] += a[i];
    return a[0];
}

typedef struct machine { const char *simd; int lanes; float (*spin)(void); } machine;

static machine machine_of(const char *simd)
{
    machine m = { simd, 1, spin_scalar };
#if X86
    if (!strcmp(simd, "avx512")) { m.lanes = 16; m.spin = spin_avx512; }
    if (!strcmp(simd, "avx2")) { m.lanes = 8; m.spin = spin_avx2; }
#endif
    return m;
}

typedef struct peak_job { const machine *m; volatile float sink[64]; } peak_job;

static void peak_task(void *context, int task, int worker)
{
    peak_job *job = context;
    (void)task;
    for (int i = 0; i < 20; i++) job->sink[worker % 64] = job->m->spin();
}

/* GF/s of all workers together. */
static double measure_peak(const machine *m, const xg_config *config)
{
    peak_job job = { m, { 0 } };
    int workers = config->workers > 0 ? config->workers : 1;
    double best = 0;
    for (int round = 0; round < 5; round++) {
        double start = kit_seconds();
        if (config->parallel_for) config->parallel_for(config->parallel_user, workers, peak_task, &job);
        else peak_task(&job, 0, 0);
        double rate = 2.0 * 20 * TURNS * CHAINS * m->lanes * workers / (kit_seconds() - start) / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}

/* ---- rows -------------------------------------------------------------------------------------- */

typedef struct row { const char *name; int n, c, h, o, k, stride; } row;   /* conv; gemm: n x c x h */

static const row rows[] = {
    { "gemm 256", 256, 256, 256, 0, 0, 0 },
    { "gemm 512", 512, 512, 512, 0, 0, 0 },
    { "gemm 1024", 1024, 1024, 1024, 0, 0, 0 },
    { "r50 conv1 7x7/2 3-64 @224", 8, 3, 224, 64, 7, 2 },
    { "r50 1x1 64-64 @56", 8, 64, 56, 64, 1, 1 },
    { "r18/50 3x3 64-64 @56", 8, 64, 56, 64, 3, 1 },
    { "r50 1x1 64-256 @56", 8, 64, 56, 256, 1, 1 },
    { "r50 1x1 256-64 @56", 8, 256, 56, 64, 1, 1 },
    { "r50 1x1 256-128 @56", 8, 256, 56, 128, 1, 1 },
    { "r50 3x3/2 128-128 @56", 8, 128, 56, 128, 3, 2 },
    { "r18 3x3/2 64-128 @56", 8, 64, 56, 128, 3, 2 },
    { "r18/50 3x3 128-128 @28", 8, 128, 28, 128, 3, 1 },
    { "r50 1x1 128-512 @28", 8, 128, 28, 512, 1, 1 },
    { "r50 1x1 512-128 @28", 8, 512, 28, 128, 1, 1 },
    { "r50 1x1/2 256-512 @56", 8, 256, 56, 512, 1, 2 },
    { "r18/50 3x3 256-256 @14", 8, 256, 14, 256, 3, 1 },
    { "r50 1x1 256-1024 @14", 8, 256, 14, 1024, 1, 1 },
    { "r50 1x1 1024-256 @14", 8, 1024, 14, 256, 1, 1 },
    { "r18/50 3x3 512-512 @7", 8, 512, 7, 512, 3, 1 },
    { "r50 1x1 512-2048 @7", 8, 512, 7, 2048, 1, 1 },
    { "r50 1x1 2048-512 @7", 8, 2048, 7, 512, 1, 1 },
    { "batch 1: 3x3 64-64 @56", 1, 64, 56, 64, 3, 1 },
    { "batch 1: 3x3 128-128 @28", 1, 128, 28, 128, 3, 1 },
    { "batch 1: 3x3 512-512 @7", 1, 512, 7, 512, 3, 1 },
    { "batch 1: 1x1 512-2048 @7", 1, 512, 7, 2048, 1, 1 },
};

typedef enum kind { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT } kind;

static xg_tensor *run_row(const row *r, kind what, xg_tensor *x, xg_tensor *w, xg_tensor *g)
{
    xg_window k = { 0, 0, r->stride, r->k / 2, 1, 1 };
    if (!r->k) return xg_matmul(x, w, false, false);
    if (what == FORWARD) return xg_conv2d(x, w, k);
    if (what == INPUT_GRADIENT) return xg_conv2d_dx(w, g, k, xg_shape_of(x));
    return xg_conv2d_dw(x, g, k, xg_shape_of(w));
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Median GF/s of one kernel; blocks are long enough for the clock. */
static double measure_row(xg_tape *tape, const row *r, kind what)
{
    xg_rng rng = xg_rng_seed(1);
    xg_mark start = xg_tape_mark(tape);
    int out = r->k ? (r->h + 2 * (r->k / 2) - r->k) / r->stride + 1 : 0;
    xg_tensor *x, *w, *g = NULL;
    if (r->k) {
        x = xg_randn(tape, xg_shape4(r->n, r->c, r->h, r->h), &rng);
        w = xg_randn(tape, xg_shape4(r->o, r->c, r->k, r->k), &rng);
        g = xg_randn(tape, xg_shape4(r->n, r->o, out, out), &rng);
    } else {
        x = xg_randn(tape, xg_shape4(1, 1, r->n, r->h), &rng);
        w = xg_randn(tape, xg_shape4(1, 1, r->h, r->c), &rng);
    }
    double rate[BLOCKS];
    int turns = 1;
    for (int block = -2; block < BLOCKS; block++) {
        double flops = xg_tape_stats(tape).flops, began = kit_seconds();
        for (int i = 0; i < turns; i++) {
            xg_mark mark = xg_tape_mark(tape);
            run_row(r, what, x, w, g);
            xg_tape_release(tape, mark);
        }
        double seconds = kit_seconds() - began;
        if (block == -1) turns = (int)(0.02 / seconds) + 1;
        if (block >= 0) rate[block] = (xg_tape_stats(tape).flops - flops) / seconds / 1e9;
    }
    xg_tape_release(tape, start);
    if (xg_failed(tape)) {
        fprintf(stderr, "bench: %s\n", xg_tape_error(tape)->text);
        exit(1);
    }
    qsort(rate, BLOCKS, sizeof *rate, ascending);
    return rate[BLOCKS / 2];
}

static void table(const char *filter, int threads, FILE *csv)
{
    static const char *const names[] = { "forward", "input gradient", "weight gradient" };
    xg_config config;
    memset(&config, 0, sizeof config);
    kit_pool *pool = kit_pool_new(threads, NULL);
    kit_pool_config(pool, &config);
    xg_tape *tape = xg_tape_new(&config);
    if (!tape) { fprintf(stderr, "bench: XG_SIMD names a level that cannot run here\n"); exit(1); }
    machine m = machine_of(xg_tape_simd(tape));
    printf("\n%d thread%s, %s\n%-28s %10s   %-18s %-18s %-18s\n", threads, threads > 1 ? "s" : "", m.simd,
           "", "peak GF/s", names[0], names[1], names[2]);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (filter && !strstr(rows[i].name, filter)) continue;
        double peak = measure_peak(&m, &config);
        printf("%-28s %10.0f", rows[i].name, peak);
        for (kind what = FORWARD; what <= (rows[i].k ? WEIGHT_GRADIENT : FORWARD); what++) {
            double rate = measure_row(tape, &rows[i], what);
            printf("   %5.0f GF/s  %3.0f %%", rate, 100 * rate / peak);
            if (csv) fprintf(csv, "%s,%s,%d,%d,%.1f,%.3f\n", rows[i].name, names[what], rows[i].n, threads,
                             rate, rate / peak);
            fflush(stdout);
        }
        printf("\n");
    }
    xg_tape_free(tape);
    kit_pool_free(pool);
}

int main(int argc, char **argv)
{
    const char *filter = argc > 1 ? argv[1] : NULL;
    int only = argc > 2 ? atoi(argv[2]) : 0, cpus = kit_cpus();
    FILE *csv = filter ? NULL : fopen("build/bench.csv", "w");
    if (csv) fprintf(csv, "work,pass,batch,threads,gflops,peak_share\n");
    if (only != 2) table(filter, 1, csv);
    if (only != 1 && cpus > 1) table(filter, 2, csv);
    if (csv) {
        fclose(csv);
        printf("\nwritten to build/bench.csv\n");
    }
    return 0;
}
