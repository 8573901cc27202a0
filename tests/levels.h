/* levels.h - compares what an instruction set makes, with any number of workers, with what the scalar
 * level makes alone: every bit must be the same. */
#ifndef LEVELS_H
#define LEVELS_H

#include "test.h"

typedef xg_tensor *(*build)(xg_tape *t, int which);

/* Runs tasks in another order for every number of workers. */
static inline void scrambled_for(void *user, int tasks, void (*run)(void *, int, int), void *context)
{
    int workers = *(int *)user;
    for (int w = workers - 1; w >= 0; w--) {
        for (int i = w; i < tasks; i += workers) run(context, i, w);
    }
}

/* A level (NULL: the best), with pretended workers whose number outlives the tape. */
static inline xg_config level_config(const char *simd, int *workers)
{
    xg_config config;
    memset(&config, 0, sizeof config);
    config.simd = simd;
    config.workers = *workers;
    if (*workers == 1) return config;
    config.parallel_user = workers;
    config.parallel_for = scrambled_for;
    return config;
}

/* A tape of that kind; workers NULL: one. */
static inline xg_tape *level_tape(xg_winograd wish, const char *simd, int *workers)
{
    int alone = 1;
    xg_config config = level_config(simd, workers ? workers : &alone);
    config.winograd = wish;
    return xg_tape_new(&config);
}

/* What xg_randn makes, which takes as long as the kernels do: every level begins with the same generator,
 * so the numbers of the last few calls are kept. */
static inline xg_tensor *randn(xg_tape *t, xg_shape s, xg_rng *rng)
{
    enum { KEPT = 8 };
    static struct { xg_rng from, to; size_t size; xg_real *numbers; } kept[KEPT];
    static int next;
    size_t size = xg_shape_size(s);
    int i = 0;
    while (i < KEPT && (kept[i].size != size || kept[i].from.state != rng->state)) i++;
    if (i == KEPT) {
        i = next++ % KEPT;
        kept[i].from = *rng;
        kept[i].size = size;
        kept[i].numbers = (xg_real *)realloc(kept[i].numbers, size * sizeof(xg_real));
        for (size_t j = 0; j < size; j++) kept[i].numbers[j] = (xg_real)xg_rng_normal(rng);
        kept[i].to = *rng;
    }
    *rng = kept[i].to;
    return xg_leaf(t, s, kept[i].numbers);
}

static inline bool same_number(xg_real a, xg_real b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

/* What f makes on a level with some workers, to be freed; NULL on failure. */
static inline xg_real *values(build f, int which, const char *simd, int workers, size_t *count)
{
    xg_tape *t = level_tape(XG_WINOGRAD_AUTO, simd, &workers);
    xg_tensor *y = f(t, which);
    *count = xg_size(y);
    xg_real *out = (xg_real *)malloc(*count * sizeof *out);
    xg_read(y, out, *count);
    if (xg_failed(t)) {
        test_fail_(__FILE__, __LINE__, xg_tape_error(t)->text);
        free(out);
        out = NULL;
    }
    xg_tape_free(t);
    return out;
}

/* Whether a level with some workers is to be compared with the scalar level alone: not itself. */
static inline bool compared(const char *simd, int workers)
{
    return strcmp(simd, "scalar") != 0 || workers > 1;
}

static inline void check_levels(const char *what, build f, int which)
{
    size_t expected_count, count;
    xg_real *expected = values(f, which, "scalar", 1, &expected_count);
    for (int level = 0; expected && level < xg_simd_count(); level++) {
        for (int workers = 1; workers <= 4; workers++) {
            if (!compared(xg_simd_name(level), workers)) continue;
            xg_real *got = values(f, which, xg_simd_name(level), workers, &count);
            size_t bad = 0;
            while (got && bad < count && same_number(got[bad], expected[bad])) bad++;
            if (!got || bad < count || count != expected_count) {
                test_fail_(__FILE__, __LINE__, "levels differ");
                printf("      %s %d: %s with %d workers, number %d: %.9g, scalar %.9g\n", what, which,
                       xg_simd_name(level), workers, (int)bad, got ? (double)got[bad] : 0,
                       (double)expected[bad]);
            }
            free(got);
        }
    }
    free(expected);
}

static const double special[] = {
    0.0, -0.0, 1, -1, 0.5, 2, 1e-3, -1e-3, 88, -88, 89, -104, 1e-38, -1e-38, 1e-40, 1e-45, 3e38, -3e38,
    HUGE_VAL, -HUGE_VAL, 16777216, 0.99999994, 1.0000001, 3.1415927, -7.25, 100, 709
};
enum { SPECIALS = (int)(sizeof special / sizeof *special) };

/* Specials, a NaN, and noise of all magnitudes; odd extents so that every tail occurs. */
static inline xg_tensor *numbers(xg_tape *t, uint64_t seed, int n, int c, int h, int w)
{
    xg_rng rng = xg_rng_seed(seed);
    xg_tensor *x = xg_leaf(t, xg_shape4(n, c, h, w), NULL);
    xg_real *v = xg_leaf_data(x);
    for (size_t i = 0; i < xg_size(x); i++) {
        double value = xg_rng_normal(&rng) * exp(6 * xg_rng_normal(&rng));
        size_t pick = (size_t)xg_rng_below(&rng, 4 * SPECIALS);
        v[i] = (xg_real)(pick < SPECIALS ? special[pick] : value);
        if (pick == SPECIALS) v[i] = (xg_real)NAN;
    }
    return x;
}

#endif
