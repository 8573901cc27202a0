/* bench_machine.c - what the machine can do: fused multiply-adds on registers, memory bandwidth. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define X86 1
#else
#define X86 0
#endif
#ifdef __aarch64__
#include <arm_neon.h>
#endif

/* Independent sums: as many as units hold at once, and as registers hold. */
enum { CHAINS = X86 ? 12 : 24, TURNS = 20000, PEAK_CALLS = 200, MOST_BLOCKS = 25, MOST_WORKERS = 64 };

/* ---- multiply-adds ----------------------------------------------------------------------------- */

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

#ifdef __aarch64__
static float spin_neon(void)
{
    float32x4_t a[CHAINS], x = vdupq_n_f32(0.999f), y = vdupq_n_f32(1e-3f);
    for (int i = 0; i < CHAINS; i++) a[i] = vdupq_n_f32((float)i);
    for (int turn = 0; turn < TURNS; turn++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) a[i] = vfmaq_f32(a[i], x, y);
    }
    for (int i = 1; i < CHAINS; i++) a[0] = vaddq_f32(a[0], a[i]);
    return vgetq_lane_f32(a[0], 0);
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

typedef struct peak_job { float (*spin)(void); volatile float sink[MOST_WORKERS]; } peak_job;

static void peak_task(void *context, int task, int worker)
{
    peak_job *job = context;
    (void)task;
    for (int i = 0; i < PEAK_CALLS; i++) job->sink[worker % MOST_WORKERS] = job->spin();
}

double bench_peak(const char *simd, kit_pool *pool)
{
    peak_job job = { spin_scalar, { 0 } };
    int lanes = 1, workers = kit_pool_threads(pool);
#if X86
    if (!strcmp(simd, "avx512")) { lanes = 16; job.spin = spin_avx512; }
    if (!strcmp(simd, "avx2")) { lanes = 8; job.spin = spin_avx2; }
#endif
#ifdef __aarch64__
    if (!strcmp(simd, "neon")) { lanes = 4; job.spin = spin_neon; }
#endif
    double best = 0;
    for (int round = 0; round < 5; round++) {
        double start = kit_seconds();
        kit_pool_run(pool, workers, peak_task, &job);
        double rate = 2.0 * PEAK_CALLS * TURNS * CHAINS * lanes * workers / (kit_seconds() - start) / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}

/* ---- memory ------------------------------------------------------------------------------------ */

enum { SWEEP = 1 << 24 };          /* numbers in an array: 64 MiB, more than a cache holds */

typedef struct sweep_job { float *from[MOST_WORKERS], *to[MOST_WORKERS]; volatile float sink; } sweep_job;

static void fill_task(void *context, int task, int worker)
{
    sweep_job *job = context;
    (void)worker;
    for (int i = 0; i < SWEEP; i++) job->from[task][i] = job->to[task][i] = (float)(i & 7);
}

static void read_task(void *context, int task, int worker)
{
    const float *at = ((sweep_job *)context)->from[task];
    float sum[32] = { 0 };         /* as many as two vectors of two units need */
    (void)worker;
    for (int i = 0; i < SWEEP; i += 32) {
        for (int j = 0; j < 32; j++) sum[j] += at[i + j];
    }
    for (int j = 1; j < 32; j++) sum[0] += sum[j];
    ((sweep_job *)context)->sink = sum[0];
}

static void copy_task(void *context, int task, int worker)
{
    sweep_job *job = context;
    (void)worker;
    memcpy(job->to[task], job->from[task], SWEEP * sizeof(float));
}

/* GB/s of the task; 0 when there is no memory for the arrays. */
static double sweep(kit_pool *pool, void (*task)(void *, int, int), double bytes)
{
    sweep_job job;
    memset(&job, 0, sizeof job);
    int workers = kit_pool_threads(pool) < MOST_WORKERS ? kit_pool_threads(pool) : MOST_WORKERS;
    double best = 0;
    bool ready = true;
    for (int i = 0; i < workers; i++) {
        job.from[i] = malloc(SWEEP * sizeof(float));
        job.to[i] = malloc(SWEEP * sizeof(float));
        ready = ready && job.from[i] && job.to[i];
    }
    if (ready) kit_pool_run(pool, workers, fill_task, &job);
    for (int round = 0; ready && round < 7; round++) {
        double start = kit_seconds();
        kit_pool_run(pool, workers, task, &job);
        double rate = bytes * SWEEP * workers / (kit_seconds() - start) / 1e9;
        if (rate > best) best = rate;
    }
    for (int i = 0; i < workers; i++) {
        free(job.from[i]);
        free(job.to[i]);
    }
    return best;
}

double bench_read(kit_pool *pool) { return sweep(pool, read_task, sizeof(float)); }
double bench_copy(kit_pool *pool) { return sweep(pool, copy_task, 2 * sizeof(float)); }

/* ---- the median of several blocks --------------------------------------------------------------- */

const bench_pace bench_kernel_pace = { 0.02, 0.3, 9 };
const bench_pace bench_work_pace = { 0.1, 3, 3 };
const bench_pace bench_quick_pace = { 0.01, 0.05, 1 };

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Seconds of one turn, from a block of them. */
static double time_block(void (*turn)(void *context), void *context, int turns)
{
    double start = kit_seconds();
    for (int i = 0; i < turns; i++) turn(context);
    return (kit_seconds() - start) / turns;
}

double bench_median(void (*turn)(void *context), void *context, bench_pace pace)
{
    double seconds[MOST_BLOCKS], start;
    int count = 0, turns;
    start = kit_seconds();
    seconds[count] = time_block(turn, context, 1);
    turns = (int)(pace.block / (seconds[0] + 1e-9)) + 1;
    if (turns == 1) count = 1;                 /* long enough to count */
    while (count < MOST_BLOCKS && (count < pace.least || kit_seconds() - start < pace.total)) {
        seconds[count++] = time_block(turn, context, turns);
    }
    qsort(seconds, (size_t)count, sizeof *seconds, ascending);
    return seconds[count / 2];
}
