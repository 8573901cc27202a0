/* test.h - the smallest harness that tells what failed, where, and with which numbers.
 *
 * A test file is a program:
 *
 *     #include "test.h"
 *     static void test_addition(void) { CHECK(1 + 1 == 2); CHECK_NEAR(0.1 + 0.2, 0.3, 1e-12); }
 *     TEST_MAIN(TEST(test_addition))
 *
 * Run it with part of a name to run only the tests that contain it. It prints one line a failure and,
 * last, "FILE: N passed, N failed, N skipped", and exits 1 if anything failed. A test that calls SKIP
 * stops there and counts as skipped. */
#ifndef TEST_H
#define TEST_H

#include "xguide.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __wasm__          /* nothing to jump with there: a test that is left early ends the program */
typedef int jmp_buf;
#define setjmp(where) ((void)(where), 0)
#define longjmp(where, how) exit(how)
#else
#include <setjmp.h>
#endif

/* C++ and C99 both: one state object a program, so no extern and no header-only tricks. */
typedef struct test_state {
    const char *filter;
    int passed, failed, skipped, failures_here;
    jmp_buf leave;
} test_state;
static test_state test_now;

/* Tolerances differ between the float library and the double one. */
#define IS_DOUBLE (sizeof(xg_real) == sizeof(double))
#define TOL(in_float, in_double) (IS_DOUBLE ? (in_double) : (in_float))

/* Where tests are slow, under sanitizers and emulators, some try fewer cases. */
static inline bool in_short_mode(void) { return getenv("XG_TEST_SHORT") != NULL; }

static inline void test_fail_(const char *file, int line, const char *what)
{
    test_now.failures_here++;
    printf("  %s:%d: %s\n", file, line, what);
    fflush(stdout);
}

static inline void test_near_(const char *file, int line, const char *what, double a, double b,
                              double tolerance)
{
    double scale = fabs(b) > 1.0 ? fabs(b) : 1.0;
    if (fabs(a - b) <= tolerance * scale) return;   /* false for NaN: a NaN fails */
    test_fail_(file, line, what);
    printf("      got %.17g, expected %.17g, difference %.3g\n", a, b, a - b);
}

#define CHECK(condition)                                                                            \
    do { if (!(condition)) test_fail_(__FILE__, __LINE__, #condition); } while (0)
/* |a - b| <= tolerance * max(1, |b|) */
#define CHECK_NEAR(a, b, tolerance)                                                                 \
    test_near_(__FILE__, __LINE__, #a " = " #b, (double)(a), (double)(b), (double)(tolerance))
/* CHECK, and leave the test when it fails: for what the rest depends on. */
#define REQUIRE(condition)                                                                          \
    do { if (!(condition)) { test_fail_(__FILE__, __LINE__, #condition);                            \
                             longjmp(test_now.leave, 1); } } while (0)
/* The tape is fine; otherwise shows its sentence. */
#define CHECK_OK(tape)                                                                              \
    do { if (xg_failed(tape)) test_fail_(__FILE__, __LINE__, xg_tape_error(tape)->text); } while (0)
/* The tape (or any const xg_error *) holds this code, and has a sentence. */
#define CHECK_ERROR(error, expected)                                                                \
    do { const xg_error *e_ = (error);                                                              \
         if (e_->code != (expected) || ((expected) != XG_ERR_OK && e_->text[0] == 0)) {             \
             test_fail_(__FILE__, __LINE__, #error " is " #expected);                               \
             printf("      got %s: %s\n", xg_code_name(e_->code), e_->text); } } while (0)
#define SKIP(reason)                                                                                \
    do { printf("  skipped: %s\n", reason); longjmp(test_now.leave, 2); } while (0)

static inline void test_run_(const char *name, void (*body)(void))
{
    if (test_now.filter && !strstr(name, test_now.filter)) return;
    test_now.failures_here = 0;
    int how = setjmp(test_now.leave);
    if (how == 0) body();
    if (test_now.failures_here) {
        test_now.failed++;
        printf("FAILED %s\n", name);
    } else if (how == 2) {
        test_now.skipped++;
    } else {
        test_now.passed++;
    }
}

#define TEST(function) test_run_(#function, function);
#define TEST_MAIN(tests)                                                                            \
    int main(int argc, char **argv)                                                                 \
    {                                                                                               \
        test_now.filter = argc > 1 ? argv[1] : NULL;                                                \
        tests                                                                                       \
        printf("%s: %d passed, %d failed, %d skipped\n", __FILE__, test_now.passed,                 \
               test_now.failed, test_now.skipped);                                                  \
        return test_now.failed != 0;                                                                \
    }

/* Zeros and ones. */
static inline xg_tensor *random_mask(xg_tape *t, xg_shape s, xg_rng *rng)
{
    xg_tensor *x = xg_leaf(t, s, NULL);
    xg_real *data = xg_leaf_data(x);
    for (size_t i = 0; data && i < xg_size(x); i++) data[i] = (xg_real)xg_rng_below(rng, 2);
    return x;
}

/* Where the real data sets are; a test skips when what it wants is not there. */
static inline const char *test_data(void)
{
    const char *folder = getenv("XG_DATA");
    return folder ? folder : "../shared/data";
}

#endif
