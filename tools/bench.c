/* bench.c - what this machine can do, and how much of it the library uses.
 *
 * Three tables: the machine, single kernels, whole workloads; each on one thread and on two. Rates are
 * set against the peak of fused multiply-adds measured beside each row, since the clock of a shared
 * machine drifts. Times are medians; the machine's rates are the best of several. Workloads run in
 * processes of their own. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static const char usage[] =
    "bench [options] [filter]\n"
    "bench --one [options] WORK BATCH THREADS\n"
    "\n"
    "Prints the rates of this machine, of kernels and of workloads, and writes them to a table. Ctrl-C ends\n"
    "it with what was measured. A filter keeps the rows whose name contains it.\n";

static const char examples[] =
    "examples:\n"
    "  bench                everything, some twenty minutes\n"
    "  bench --quick mlp    the multilayer perceptron, a few seconds\n"
    "  bench --threads 1 guided\n"
    "  bench --one r18.guided 64 2";

typedef struct request {
    const char *filter, *csv;
    int threads, first, last;      /* of the options; from and to how many threads */
    bool quick, list, one, busy, twins, serve;
    const char *word[4];           /* of --one and --serve */
} request;

void bench_print_row(FILE *csv, const bench_row *row)
{
    fprintf(csv, "%s,%d,%d,%.4f,%.2f,%.4f,%.1f\n", row->work, row->batch, row->threads, row->ms, row->gflops,
            row->peak_share, row->rss_mb);
    fflush(csv);
}

/* ---- the machine ------------------------------------------------------------------------------- */

static void machine_row(FILE *csv, const char *what, const char *unit, int threads, double rate)
{
    bench_row row;
    memset(&row, 0, sizeof row);
    snprintf(row.work, sizeof row.work, "machine %s %s", what, unit);
    row.threads = threads;
    row.gflops = rate;
    row.peak_share = strcmp(what, "multiply-adds") ? 0 : 1;
    printf("%-26s %5d %8.1f %s\n", what, threads, rate, unit);
    fflush(stdout);
    bench_print_row(csv, &row);
}

static int machine(int threads, FILE *csv)
{
    kit_pool *pool = kit_pool_new(threads, NULL);
    machine_row(csv, "multiply-adds", "GF/s", threads, bench_peak(xg_simd_best(), pool));
    machine_row(csv, "memory read", "GB/s", threads, bench_read(pool));
    machine_row(csv, "memory copy", "GB/s", threads, bench_copy(pool));
    kit_pool_free(pool);
    return 3;
}

/* ---- workloads --------------------------------------------------------------------------------- */

typedef struct job { const bench_work *work; int batch, threads; bench_company company; double cost; } job;

/* What is to be measured, in the order of the table. Returns how many. */
static int plan(const request *q, job *jobs, int max)
{
    int count = 0;
    for (int i = 0; i < bench_work_count; i++) {
        const bench_work *w = &bench_works[i];
        bool together = !strcmp(w->name, "r18.guided") || !strcmp(w->name, "small.gradreg");
        for (int b = 0; b < 2 && w->batch[b] > 0; b++) {
            double gf = w->gf * w->batch[b];
            if (q->filter && !strstr(w->name, q->filter)) continue;
            if (q->quick && gf > (q->filter ? 200 : 50)) continue;
            for (int threads = q->first; threads <= q->last; threads++) {
                bench_company last = together && b == 0 && threads == 2 ? BENCH_TWINS : BENCH_ALONE;
                for (bench_company c = BENCH_ALONE; c <= last && count < max; c++) {
                    jobs[count++] = (job){ w, w->batch[b], threads, c, 2 + 0.05 * gf / threads };
                }
            }
        }
    }
    return count;
}

/* Runs a job in a process of its own; false if that failed. */
static bool run_job(const char *self, const job *j, bool quick, bench_row *row)
{
    static const char *const company[] = { "", " --busy", " --twins" };
    char command[600], line[200] = "";
    snprintf(command, sizeof command, "'%s'%s%s --one %s %d %d", self, quick ? " --quick" : "",
             company[j->company], j->work->name, j->batch, j->threads);
    FILE *child = popen(command, "r");
    if (!child) return false;
    bool got = fgets(line, sizeof line, child) != NULL;
    if (pclose(child) != 0 || !got) return false;
    return sscanf(line, "%63[^,],%d,%d,%lf,%lf,%lf,%lf", row->work, &row->batch, &row->threads, &row->ms,
                  &row->gflops, &row->peak_share, &row->rss_mb) == 7;
}

/* Milliseconds of the row that this one is compared with, if it was measured; else 0. */
static double base_ms(const bench_row *rows, int count, const job *j)
{
    const char *base = j->company == BENCH_ALONE ? j->work->plain : j->work->name;
    for (int i = 0; base && i < count; i++) {
        if (!strcmp(rows[i].work, base) && rows[i].batch == j->batch && rows[i].threads == j->threads) {
            return rows[i].ms;
        }
    }
    return 0;
}

static void show_row(const bench_row *row, double base)
{
    printf("%-22s %5d %7d %11.3f %8.1f %6.1f %% %9.0f", row->work, row->batch, row->threads, row->ms,
           row->gflops, 100 * row->peak_share, row->rss_mb);
    if (base > 0) printf("    x %.2f", row->ms / base);
    printf("\n");
    fflush(stdout);
}

static int fail(const char *what, const char *why)
{
    fprintf(stderr, "bench: %s%s\n", what, why);
    return 1;
}

/* Returns how many rows were measured, or -1 if one failed. */
static int workloads(const request *q, const char *self, FILE *csv)
{
    enum { MAX = 160 };
    job jobs[MAX];
    bench_row rows[MAX];
    int count = plan(q, jobs, MAX), good = 0;
    bool failed = false;
    double total = 0, done = 0;
    kit_progress progress;
    memset(rows, 0, sizeof rows);
    for (int i = 0; i < count; i++) total += jobs[i].cost;
    if (count > 0) {
        printf("\n%-22s %5s %7s %11s %8s %8s %9s    %s\n", "workload", "batch", "threads", "ms", "GF/s",
               "of peak", "peak MB", "to plain");
    }
    kit_progress_start(&progress, NULL, "seconds, about", 0, (int64_t)total);
    for (int i = 0; i < count && !kit_interrupted(); i++) {
        if (progress.live) progress.shown = 0;           /* the line names what runs now */
        kit_progress_step(&progress, (int64_t)done, "%s", jobs[i].work->name);
        bool ran = run_job(self, &jobs[i], q->quick, &rows[good]);
        if (progress.live) fprintf(stderr, "\r%*s\r", progress.width, "");
        if (ran) {
            double base = base_ms(rows, good, &jobs[i]);
            show_row(&rows[good], base);
            bench_print_row(csv, &rows[good++]);
        } else if (!kit_interrupted()) {
            failed = fail(jobs[i].work->name, " was not measured");
        }
        done += jobs[i].cost;
    }
    return failed ? -1 : good;
}

/* ---- the command line -------------------------------------------------------------------------- */

/* False: *code is what to exit with. */
static bool read_line(int argc, char **argv, request *q, int *code)
{
    xg_error error = { XG_ERR_OK, "" };
    int words = 0;
    memset(q, 0, sizeof *q);
    q->csv = "build/bench.csv";
    const kit_arg args[] = {
        { "quick", 0, KIT_ARG_FLAG, &q->quick, NULL,
          "one short block for each row; leaves out what takes long" },
        { "threads", 0, KIT_ARG_INT, &q->threads, "N", "only on N threads; 0: on one and on two" },
        { "csv", 0, KIT_ARG_TEXT, &q->csv, "FILE", "the table" },
        { "list", 0, KIT_ARG_FLAG, &q->list, NULL, "the workloads: name, GF for one picture, batches" },
        { "one", 0, KIT_ARG_FLAG, &q->one, NULL, "measure one workload here, print its line of the table" },
        { "busy", 0, KIT_ARG_FLAG, &q->busy, NULL, "with --one: beside a busy process" },
        { "twins", 0, KIT_ARG_FLAG, &q->twins, NULL, "with --one: twice at once, in two threads" },
        { "serve", 0, KIT_ARG_FLAG, &q->serve, NULL, "for tools/peers.py: WORK BATCH THREADS FILE" },
    };
    kit_args_result result = kit_args_read(argc, argv, args, (int)(sizeof args / sizeof *args), usage,
                                           examples, q->word, 4, &words, &error);
    *code = result == KIT_ARGS_HELP ? 0 : 2;
    if (result == KIT_ARGS_HELP) return false;
    if (result == KIT_ARGS_OK && (q->threads < 0 || q->threads > 64)) {
        kit_fail(&error, XG_ERR_ARGUMENT, "--threads takes 1 to 64, not %d", q->threads);
    }
    if (result == KIT_ARGS_OK && (q->one ? words != 3 : q->serve ? words != 4 : words > 1)) {
        kit_fail(&error, XG_ERR_ARGUMENT, "%s; see --help", q->one ? "--one takes WORK BATCH THREADS" :
                 q->serve ? "--serve takes WORK BATCH THREADS FILE" : "there can be only one filter");
    }
    q->filter = q->word[0];
    q->first = q->threads ? q->threads : 1;
    q->last = q->threads ? q->threads : kit_cpus() > 1 ? 2 : 1;
    if (error.code != XG_ERR_OK) fail(error.text, "");
    return error.code == XG_ERR_OK;
}

static void list_works(void)
{
    for (int i = 0; i < bench_work_count; i++) {
        const bench_work *w = &bench_works[i];
        printf("%s %g %d", w->name, w->gf, w->batch[0]);
        if (w->batch[1] > 0) printf(" %d", w->batch[1]);
        printf("\n");
    }
}

static int tables(const request *q, const char *self)
{
    FILE *csv = fopen(q->csv, "w");
    if (!csv) return fail(q->csv, " cannot be written; does its folder exist? --csv names another");
    fprintf(csv, "work,batch,threads,ms,gflops,peak_share,rss_mb\n");
    kit_catch_interrupt();
    int rows = 0;
    for (int threads = q->first; threads <= q->last; threads++) {
        if (!q->filter || strstr("machine", q->filter)) rows += machine(threads, csv);
    }
    for (int threads = q->first; threads <= q->last; threads++) {
        rows += bench_kernels(q->filter, threads, q->quick, csv);
    }
    int more = workloads(q, self, csv);
    fclose(csv);
    printf("\nwritten to %s\n", q->csv);
    if (kit_interrupted()) return fail("stopped; the table has what was measured", "");
    if (rows == 0 && more == 0) {
        return fail("no row's name contains this, or --quick leaves it out: ", q->filter);
    }
    return more < 0;
}

int main(int argc, char **argv)
{
    request q;
    int code;
    xg_error error = { XG_ERR_OK, "" };
    if (!read_line(argc, argv, &q, &code)) return code;
    if (q.list) {
        list_works();
        return 0;
    }
    if (q.serve) {
        bool good = bench_serve(q.word[0], atoi(q.word[1]), atoi(q.word[2]), q.word[3], &error);
        return good ? 0 : fail(error.text, "");
    }
    if (q.one) {
        bench_company company = q.twins ? BENCH_TWINS : q.busy ? BENCH_BUSY : BENCH_ALONE;
        bench_row row;
        if (!bench_one(q.word[0], atoi(q.word[1]), atoi(q.word[2]), company, q.quick, &row, &error)) {
            return fail(error.text, "");
        }
        bench_print_row(stdout, &row);
        return 0;
    }
    return tables(&q, argv[0]);
}
