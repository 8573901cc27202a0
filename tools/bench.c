/* bench.c - what this machine can do, and how much of it the library uses.
 *
 * Three tables: the machine, single kernels, whole workloads; each on one thread and on two. Rates are
 * set against the peak of fused multiply-adds measured beside each row, since the clock of a shared
 * machine drifts. Every figure is a median. Workloads run in processes of their own. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static const char usage[] =
    "usage: bench [options] [filter]\n"
    "\n"
    "Prints the rates of this machine, of kernels and of workloads, and writes build/bench.csv.\n"
    "A filter keeps the rows whose name contains it.\n"
    "\n"
    "  --quick              one short block for each row; leaves out what takes long\n"
    "  --threads N          only on N threads (default: on one and on two)\n"
    "  --csv FILE           write there instead\n"
    "  --list               names of the workloads\n"
    "  --one WORK BATCH THREADS       measure one workload here, print its line of the CSV\n"
    "  --busy, --twins      with --one: beside a busy process; twice at once, in two threads\n"
    "  --serve WORK BATCH THREADS FILE    for tools/peers.py\n"
    "\n"
    "examples:\n"
    "  bench                everything, some twenty minutes\n"
    "  bench --quick mlp    the multilayer perceptron, a few seconds\n"
    "  bench --threads 1 guided\n"
    "  bench --one r18.guided 64 2\n";

typedef struct request {
    const char *filter, *csv;
    int threads;
    bool quick, list, one, serve;
    bench_company company;
    const char *word[4];           /* of --one and --serve */
} request;

void bench_print_row(FILE *csv, const bench_row *row)
{
    if (!csv) return;
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

static void machine(int threads, FILE *csv)
{
    kit_pool *pool = kit_pool_new(threads, NULL);
    machine_row(csv, "multiply-adds", "GF/s", threads, bench_peak(xg_simd_best(), pool));
    machine_row(csv, "memory read", "GB/s", threads, bench_read(pool));
    machine_row(csv, "memory copy", "GB/s", threads, bench_copy(pool));
    kit_pool_free(pool);
}

/* ---- workloads --------------------------------------------------------------------------------- */

typedef struct job { const bench_work *work; int batch, threads; bench_company company; double cost; } job;

/* What is to be measured, in the order of the table. Returns how many. */
static int plan(const request *q, job *jobs, int max)
{
    int count = 0, most = kit_cpus() > 1 ? 2 : 1;
    for (int i = 0; i < bench_work_count; i++) {
        const bench_work *w = &bench_works[i];
        bool together = !strcmp(w->name, "r18.guided") || !strcmp(w->name, "small.gradreg");
        for (int b = 0; b < 2 && w->batch[b] > 0; b++) {
            double gf = w->gf * w->batch[b];
            if (q->filter && !strstr(w->name, q->filter)) continue;
            if (q->quick && gf > (q->filter ? 200 : 50)) continue;
            for (int threads = 1; threads <= most; threads++) {
                if (q->threads && q->threads != threads) continue;
                bench_company last = together && b == 0 && threads == 2 ? BENCH_TWINS : BENCH_ALONE;
                for (bench_company c = BENCH_ALONE; c <= last && count < max; c++) {
                    jobs[count++] = (job){ w, w->batch[b], threads, c, 2 + 0.05 * gf / threads };
                }
            }
        }
    }
    return count;
}

/* Runs a job in a process of its own; false if that failed (it has said why). */
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

static bool workloads(const request *q, const char *self, FILE *csv)
{
    enum { MAX = 160 };
    job jobs[MAX];
    bench_row rows[MAX];
    int count = plan(q, jobs, MAX), good = 0;
    double total = 0, done = 0;
    kit_progress progress;
    memset(rows, 0, sizeof rows);
    for (int i = 0; i < count; i++) total += jobs[i].cost;
    if (count > 0) {
        printf("\n%-22s %5s %7s %11s %8s %8s %9s    %s\n", "workload", "batch", "threads", "ms", "GF/s",
               "of peak", "peak MB", "to plain");
    }
    kit_progress_start(&progress, NULL, "seconds, about", 0, (int64_t)total);
    for (int i = 0; i < count; i++) {
        if (progress.live) progress.shown = 0;           /* the line names what runs now */
        kit_progress_step(&progress, (int64_t)done, "%s", jobs[i].work->name);
        bool ran = run_job(self, &jobs[i], q->quick, &rows[good]);
        if (progress.live) fprintf(stderr, "\r%*s\r", progress.width, "");
        if (ran) {
            double base = base_ms(rows, good, &jobs[i]);
            show_row(&rows[good], base);
            bench_print_row(csv, &rows[good++]);
        }
        done += jobs[i].cost;
    }
    return good == count;
}

/* ---- the command line -------------------------------------------------------------------------- */

static bool read_line(int argc, char **argv, request *q)
{
    int words = 0;
    memset(q, 0, sizeof *q);
    q->csv = "build/bench.csv";
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        bool more = i + 1 < argc;
        if (!strcmp(a, "--quick")) q->quick = true;
        else if (!strcmp(a, "--list")) q->list = true;
        else if (!strcmp(a, "--busy")) q->company = BENCH_BUSY;
        else if (!strcmp(a, "--twins")) q->company = BENCH_TWINS;
        else if (!strcmp(a, "--one")) q->one = true;
        else if (!strcmp(a, "--serve")) q->serve = true;
        else if (!strcmp(a, "--threads") && more) q->threads = atoi(argv[++i]);
        else if (!strcmp(a, "--csv") && more) q->csv = argv[++i];
        else if (a[0] == '-' || words == 4) return false;
        else q->word[words++] = a;
    }
    if (!q->one && !q->serve) q->filter = q->word[0];
    return words == (q->one ? 3 : q->serve ? 4 : q->filter ? 1 : 0) && q->threads >= 0;
}

static int fail(const xg_error *error)
{
    fprintf(stderr, "bench: %s\n", error->text);
    return 1;
}

static int tables(const request *q, const char *self)
{
    FILE *csv = fopen(q->csv, "w");
    if (!csv) {
        fprintf(stderr, "bench: %s cannot be written; does its folder exist? --csv names another\n", q->csv);
        return 1;
    }
    fprintf(csv, "work,batch,threads,ms,gflops,peak_share,rss_mb\n");
    for (int threads = 1; threads <= (kit_cpus() > 1 ? 2 : 1); threads++) {
        if (q->threads && q->threads != threads) continue;
        if (!q->filter || strstr("machine", q->filter)) machine(threads, csv);
    }
    for (int threads = 1; threads <= (kit_cpus() > 1 ? 2 : 1); threads++) {
        if (q->threads && q->threads != threads) continue;
        bench_kernels(q->filter, threads, q->quick, csv);
    }
    bool good = workloads(q, self, csv);
    fclose(csv);
    printf("\nwritten to %s\n", q->csv);
    return good ? 0 : 1;
}

int main(int argc, char **argv)
{
    request q;
    xg_error error = { XG_ERR_OK, "" };
    if (!read_line(argc, argv, &q)) {
        bool asked = argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"));
        fputs(usage, asked ? stdout : stderr);
        return asked ? 0 : 2;
    }
    if (q.list) {
        for (int i = 0; i < bench_work_count; i++) printf("%s\n", bench_works[i].name);
        return 0;
    }
    if (q.serve) {
        bool good = bench_serve(q.word[0], atoi(q.word[1]), atoi(q.word[2]), q.word[3], &error);
        return good ? 0 : fail(&error);
    }
    if (q.one) {
        bench_row row;
        if (!bench_one(q.word[0], atoi(q.word[1]), atoi(q.word[2]), q.company, q.quick, &row, &error)) {
            return fail(&error);
        }
        bench_print_row(stdout, &row);
        return 0;
    }
    return tables(&q, argv[0]);
}
