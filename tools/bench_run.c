/* bench_run.c - one workload in this process: measured once, or served block by block.
 *
 * A process holds one workload only, so that its peak memory is that workload's. */
#define _GNU_SOURCE                      /* processors that a process may use: Linux */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

#include "bench.h"

/* One turn; check, if it is not NULL, gets its loss and the norm of the first weight's gradient. */
static bool checked_turn(void *context, double *check)
{
    bench_run *r = context;
    xg_mark mark = xg_tape_mark(r->tape);
    r->probe = check != NULL;
    double loss = r->work->turn(r);
    xg_tape_release(r->tape, mark);
    if (check) {
        check[0] = loss;
        check[1] = r->norm;
    }
    return !xg_failed(r->tape);
}

static void turn(void *context) { checked_turn(context, NULL); }

/* The most memory this process ever held. */
static double peak_rss_mb(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return (double)usage.ru_maxrss / 1e6;
#else
    return (double)usage.ru_maxrss * 1024 / 1e6;
#endif
}

/* ---- company ----------------------------------------------------------------------------------- */

/* Keeps the last processor that this process may use busy, until it is killed. */
static pid_t start_competitor(void)
{
    pid_t parent = getpid(), child = fork();
    if (child != 0) return child;
#ifdef __linux__
    cpu_set_t allowed, last;
    CPU_ZERO(&last);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        for (int i = CPU_SETSIZE - 1; i >= 0 && CPU_COUNT(&last) == 0; i--) {
            if (CPU_ISSET((size_t)i, &allowed)) CPU_SET((size_t)i, &last);
        }
        sched_setaffinity(0, sizeof last, &last);
    }
#endif
    while (getppid() == parent) for (volatile int i = 0; i < 1000000; i++) { }
    _exit(0);
}

typedef struct twin { bench_run *run; bench_pace pace; double seconds; } twin;

static void *twin_main(void *argument)
{
    twin *t = argument;
    turn(t->run);
    t->seconds = bench_median(turn, t->run, t->pace);
    return NULL;
}

/* Two runs at once in two threads, a tape each; seconds for a turn of both. */
static double time_twins(bench_run *a, const char *name, bench_pace pace, xg_error *error)
{
    bench_run b;
    if (!bench_open(&b, name, a->batch, 1, error)) return 0;
    twin first = { a, pace, 0 }, second = { &b, pace, 0 };
    pthread_t thread;
    if (pthread_create(&thread, NULL, twin_main, &second) != 0) {
        kit_fail(error, XG_ERR_UNSUPPORTED, "a second thread could not be started");
    } else {
        twin_main(&first);
        pthread_join(thread, NULL);
    }
    bench_close(&b);
    return first.seconds > second.seconds ? first.seconds : second.seconds;
}

/* ---- measured once ----------------------------------------------------------------------------- */

bool bench_one(const char *name, int batch, int threads, bench_company company, bool quick,
               bench_row *row, xg_error *error)
{
    static const char *const suffix[] = { "", " +busy", " x2" };
    bench_pace pace = quick ? bench_quick_pace : bench_work_pace;
    bool twins = company == BENCH_TWINS;
    bench_run r;
    if (!bench_open(&r, name, batch, twins ? 1 : threads, error)) return false;
    kit_pool *all = kit_pool_new(threads, NULL);
    double before = bench_peak(xg_tape_simd(r.tape), all);
    pid_t competitor = company == BENCH_BUSY ? start_competitor() : 0;
    double flops = xg_tape_stats(r.tape).flops;
    turn(&r);
    flops = (xg_tape_stats(r.tape).flops - flops) * (twins ? 2 : 1);
    double seconds = twins ? time_twins(&r, name, pace, error) : bench_median(turn, &r, pace);
    if (competitor > 0) {
        kill(competitor, SIGKILL);
        waitpid(competitor, NULL, 0);
    }
    double after = bench_peak(xg_tape_simd(r.tape), all);
    kit_pool_free(all);
    memset(row, 0, sizeof *row);
    snprintf(row->work, sizeof row->work, "%s%s", name, suffix[company]);
    row->batch = batch;
    row->threads = threads;
    row->ms = 1e3 * seconds;
    row->gflops = seconds > 0 ? flops / seconds / 1e9 : 0;
    row->peak_share = row->gflops / (before > after ? before : after);
    row->rss_mb = peak_rss_mb();
    bool good = !xg_failed(r.tape) && seconds > 0;
    if (xg_failed(r.tape)) kit_fail(error, xg_tape_error(r.tape)->code, "%s", xg_tape_error(r.tape)->text);
    bench_close(&r);
    return good;
}

/* ---- served ------------------------------------------------------------------------------------ */

/* Puts what a peer needs beside the weights and writes both. */
static bool write_inputs(bench_run *r, const char *path, xg_error *error)
{
    const bench_model *m = r->work->model;
    size_t pixels = (size_t)(r->batch * m->channels * m->side * m->side);
    size_t plane = (size_t)(r->batch * m->side * m->side), extra = bench_extra_count(r);
    xg_params *file = xg_params_clone(r->params);
    if (!file) return kit_fail(error, XG_ERR_MEMORY, "no memory for the file of inputs");
    int x = xg_params_add(file, "input.x", xg_shape4(r->batch, m->channels, m->side, m->side), false);
    int mask = xg_params_add(file, "input.mask", xg_shape4(r->batch, 1, m->side, m->side), false);
    int label = xg_params_add(file, "input.label", xg_shape4(r->batch, 1, 1, 1), false);
    int more = xg_params_add(file, "input.extra", xg_shape4((int)extra + 1, 1, 1, 1), false);
    bool good = x >= 0 && mask >= 0 && label >= 0 && more >= 0;
    if (good) {
        memcpy(xg_params_data(file, x), r->x, pixels * sizeof *r->x);
        memcpy(xg_params_data(file, mask), r->mask, plane * sizeof *r->mask);
        memcpy(xg_params_data(file, more), r->extra, extra * sizeof *r->extra);
        for (int i = 0; i < r->batch; i++) xg_params_data(file, label)[i] = (xg_real)r->label[i];
        good = xg_params_save(file, path, error) == XG_ERR_OK;
    } else {
        kit_fail(error, XG_ERR_MEMORY, "no memory for the file of inputs");
    }
    xg_params_free(file);
    return good;
}

/* Turns in a block, after the first one. */
static int turns_for(double seconds) { return (int)(0.2 / (seconds + 1e-9)) + 1; }

bool bench_answer(const char *version, bool (*step)(void *context, double *check), void *context)
{
    char line[64];
    int turns = 0;
    bool good = true;
    double check[2];
    printf("ready %s\n", version);
    fflush(stdout);
    while (good && fgets(line, sizeof line, stdin)) {
        double start = kit_seconds();
        if (!strncmp(line, "check", 5)) {
            good = step(context, check);
            if (good) printf("%.9g %.9g\n", check[0], check[1]);
        } else {
            if (turns == 0) {
                good = step(context, NULL);            /* the first block warms up */
                turns = turns_for(kit_seconds() - start);
                start = kit_seconds();
            }
            for (int i = 0; i < turns && good; i++) good = step(context, NULL);
            if (good) printf("%.6f\n", 1e3 * (kit_seconds() - start) / turns);
        }
        fflush(stdout);
    }
    return good;
}

bool bench_serve(const char *name, int batch, int threads, const char *path, xg_error *error)
{
    bench_run r;
    if (!bench_open(&r, name, batch, threads, error)) return false;
    bool good = write_inputs(&r, path, error) && bench_answer(xg_version(), checked_turn, &r);
    if (xg_failed(r.tape)) kit_fail(error, xg_tape_error(r.tape)->code, "%s", xg_tape_error(r.tape)->text);
    bench_close(&r);
    return good;
}
