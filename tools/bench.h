/* bench.h - what the files of build/bench share.
 *
 *   bench.c            the command line, the table, bench.csv; runs each workload in a process of its own
 *   bench_machine.c    what the machine can do: multiply-adds, memory; the median of several blocks
 *   bench_kernels.c    rows for single kernels
 *   bench_works.c      rows for whole workloads: training, guidance, explanations
 *   bench_run.c        one workload in this process: measured once, or served to tools/peers.py
 *
 * peers_kann.c, which is no part of it, does bench_works.c's perceptron with another library. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stdio.h>

#include "kit.h"
#include "xguide.h"

/* ---- the machine: bench_machine.c -------------------------------------------------------------- */

/* GF/s of fused multiply-adds on registers, all workers of the pool together. simd as xg_tape_simd. */
double bench_peak(const char *simd, kit_pool *pool);
/* GB/s of all workers of the pool, each on an array of its own; a copy counts what it reads and writes. */
double bench_read(kit_pool *pool);
double bench_copy(kit_pool *pool);

/* How long to measure. A block repeats its turns until it lasts `block` seconds; blocks follow each other
 * until `total` seconds have passed, but at least `least` of them. */
typedef struct bench_pace { double block, total; int least; } bench_pace;
extern const bench_pace bench_kernel_pace, bench_work_pace, bench_quick_pace;

/* Median seconds of a turn. The caller has taken one already: first touches of memory do not count. */
double bench_median(void (*turn)(void *context), void *context, bench_pace pace);

/* ---- workloads: bench_works.c ------------------------------------------------------------------ */

typedef struct bench_work bench_work;

/* A workload with everything it needs: made by bench_open. */
typedef struct bench_run {
    const bench_work *work;
    int        batch;
    kit_pool  *pool;
    xg_tape   *tape;
    xg_params *params;
    xg_optim   optim;
    xg_rng     rng;
    xg_real   *x, *mask;         /* pictures; a box in the middle of each, 1 inside                   */
    xg_real   *extra;            /* LIME: which cells to keep. Insertion and deletion: rank of a pixel */
    int       *label;
    bool       probe;            /* note the gradient of the first weight in `norm`                   */
    double     norm;
} bench_run;

/* What a workload trains or explains. */
typedef struct bench_model { xg_net net; int channels, side, classes; } bench_model;

struct bench_work {
    const char        *name;
    const bench_model *model;
    double           (*turn)(bench_run *r);   /* one step, or one explanation; returns its loss       */
    int                batch[2];              /* the batches of the table; 0: no second one           */
    const char        *plain;                 /* what it is compared with: the step without guidance  */
    double             gf;                    /* its arithmetic for one picture, about: for the ETA   */
};

extern const bench_work bench_works[];
extern const int bench_work_count;
const bench_work *bench_find(const char *name);          /* NULL: no such workload                    */

bool bench_open(bench_run *r, const char *name, int batch, int threads, xg_error *error);
void bench_close(bench_run *r);

enum { BENCH_LIME = 1000, BENCH_CELLS = 8 };             /* LIME: pictures, cells along a side        */
size_t bench_extra_count(const bench_run *r);            /* numbers in r->extra                       */

/* ---- rows -------------------------------------------------------------------------------------- */

typedef struct bench_row {
    char   work[64];
    int    batch, threads;
    double ms, gflops, peak_share, rss_mb;
} bench_row;

void bench_print_row(FILE *csv, const bench_row *row);   /* one line of the CSV                         */

/* One workload in this process. `busy` starts a process that competes for the last core; `twins` runs the
 * workload in two threads at once, with a tape each. */
typedef enum bench_company { BENCH_ALONE, BENCH_BUSY, BENCH_TWINS } bench_company;
bool bench_one(const char *name, int batch, int threads, bench_company company, bool quick,
               bench_row *row, xg_error *error);
/* Answers lines on stdin for tools/peers.py until they end: "check" with the loss and the norm of the first
 * weight's gradient, which step() writes to check[0] and check[1], "go" with the milliseconds of a turn, in
 * which check is NULL. False as soon as step() is. */
bool bench_answer(const char *version, bool (*step)(void *context, double *check), void *context);
/* Writes inputs and first weights to a file, then answers. */
bool bench_serve(const char *name, int batch, int threads, const char *path, xg_error *error);

/* The rows of kernels whose name contains `filter` (NULL: all), until Ctrl-C. Returns how many. */
int bench_kernels(const char *filter, int threads, bool quick, FILE *csv);

#endif
