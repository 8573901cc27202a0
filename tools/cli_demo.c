/* cli_demo.c - `xguide demo`: what guidance changes, in under a minute.
 *
 * Scenes show an object, whose shape is the label, and a coloured disc, the decoy. In training its
 * colour gives the label away every time; in the test it lies every time. The same small network is
 * trained plain and guided, from the same weights on the same batches: guided, it is also told that
 * what speaks for its answer should lie on the object. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char usage[] =
    "xguide demo [options]\n"
    "Trains a small network plain and guided on drawn scenes and shows what guidance changed.";
static const char examples[] = "  xguide demo\n  xguide demo --seeds 1 --out /tmp/demo";

enum { MAX_SEEDS = 16, PICTURES = 6, KINDS = 2 };
static const char *const kind_name[KINDS] = { "plain", "guided" };

/* One training, and what came of it. */
typedef struct trial {
    cli_run    run;
    xg_error   error;
    bool       done;
    double     seconds, step;      /* in all; the median of a step                                */
    cli_scores usual, shifted;     /* held-out scenes like those of training; decoys that lie     */
} trial;

typedef struct demo {
    trial          *trial;         /* [seeds][KINDS]                                              */
    int             seeds, threads, epochs, count;
    uint64_t        seed;
    const char     *out;
    kit_progress    progress;
    int64_t         steps;         /* done by all; under the lock, as is the progress line        */
    pthread_mutex_t lock;
} demo;

static cli_options options_of(const demo *d, int kind, int number)
{
    cli_options o;
    cli_options_default(&o);
    o.data = "decoy";
    o.count = d->count;
    o.epochs = d->epochs;
    o.lr = 0.004;
    o.loss = kind == 0 ? CLI_NONE : CLI_ENERGY;
    o.lambda = 3;
    o.mean = true;
    o.threads = 1;
    o.seed = d->seed + (uint64_t)number;
    return o;
}

/* Held-out scenes drawn like those of training take the place of the validation split. */
static bool draw_usual(trial *t, xg_error *error)
{
    kit_decoy_options scene;
    memset(&scene, 0, sizeof scene);
    scene.rule = KIT_DECOY_TELLS;
    xg_rng rng = xg_rng_seed(t->run.o.seed ^ 0x05a1u);
    kit_set *set = &t->run.data.set[KIT_VAL];
    int count = set->count;
    kit_set_free(set);
    return kit_draw_decoy(set, count, &scene, &rng, error);
}

static void count_step(demo *d)
{
    pthread_mutex_lock(&d->lock);
    d->steps++;
    kit_progress_step(&d->progress, d->steps, NULL);
    pthread_mutex_unlock(&d->lock);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* All steps of a training. What a step takes is the median, which other programs disturb least. */
static bool train_all(demo *d, trial *t)
{
    cli_sums sums;
    double *took = (double *)calloc((size_t)t->run.steps + 1, sizeof *took);
    memset(&sums, 0, sizeof sums);
    if (took == NULL) return kit_fail(&t->error, XG_ERR_MEMORY, "out of memory for times");
    double started = kit_seconds();
    bool fine = true;
    while (fine && t->run.step < t->run.steps) {
        double before = kit_seconds();
        fine = !kit_interrupted() && cli_step(&t->run, &sums, &t->error);
        if (fine) took[t->run.step - 1] = kit_seconds() - before;
        if (fine) count_step(d);
    }
    t->seconds = kit_seconds() - started;
    qsort(took, (size_t)t->run.steps, sizeof *took, by_size);
    t->step = took[t->run.steps / 2];
    free(took);
    return fine;
}

/* One training from beginning to end, on one thread. Guided ones come first: they take longer. */
static void run_trial(void *context, int task, int worker)
{
    demo *d = (demo *)context;
    int kind = task < d->seeds ? 1 : 0, number = task % d->seeds;
    trial *t = &d->trial[number * KINDS + kind];
    cli_options o = options_of(d, kind, number);
    (void)worker;
    if (!cli_run_open(&t->run, &o, NULL, &t->error) || !draw_usual(t, &t->error)) return;
    if (!train_all(d, t)) return;
    t->done = cli_measure(&t->run, KIT_VAL, 0, true, &t->usual, &t->error)
           && cli_measure(&t->run, KIT_TEST, 0, true, &t->shifted, &t->error);
}

/* ---- the table ------------------------------------------------------------------------------- */

/* The numbers of one trial, in the order of the table's columns. */
enum { USUAL, SHIFTED, EPG, SECONDS, PER_STEP, NUMBERS };

static double number_of(const trial *t, int which)
{
    switch (which) {
    case USUAL:   return 100 * xg_groups_overall(&t->usual.groups);
    case SHIFTED: return 100 * xg_groups_overall(&t->shifted.groups);
    case EPG:     return 100 * t->shifted.epg_input;
    case SECONDS: return t->seconds;
    default:      return 1000 * t->step;
    }
}

/* Mean over the seeds and the standard deviation of a sample. */
static void mean_of(const demo *d, int kind, int which, double *mean, double *spread)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < d->seeds; i++) sum += number_of(&d->trial[i * KINDS + kind], which);
    *mean = sum / d->seeds;
    for (int i = 0; i < d->seeds; i++) {
        double off = number_of(&d->trial[i * KINDS + kind], which) - *mean;
        squares += off * off;
    }
    *spread = d->seeds > 1 ? sqrt(squares / (d->seeds - 1)) : 0;
}

static bool print_table(const demo *d)
{
    static const char *const heads[] = {
        "", "usual scenes, %", "decoy lies, %", "EPG, %", "seconds", "ms a step", "cost"
    };
    kit_table table;
    double plain = 1, mean, spread;
    memset(&table, 0, sizeof table);
    for (int i = 0; i < 7; i++) kit_table_cell(&table, "%s", heads[i]);
    kit_table_end_row(&table);
    for (int kind = 0; kind < KINDS; kind++) {
        kit_table_cell(&table, "%s", kind_name[kind]);
        for (int which = 0; which < NUMBERS; which++) {
            mean_of(d, kind, which, &mean, &spread);
            kit_table_cell(&table, "%.1f +- %.1f", mean, spread);
        }
        if (kind == 0) plain = mean;         /* the last number is the time of a step             */
        kit_table_cell(&table, "x %.2f", mean / plain);
        kit_table_end_row(&table);
    }
    printf("\nMean over %d seeds +- standard deviation; accuracy on held-out scenes, EPG where "
           "the decoy lies:\n\n", d->seeds);
    bool fine = kit_table_print(&table, stdout, false);
    kit_table_free(&table);
    return fine;
}

/* ---- the picture ----------------------------------------------------------------------------- */

typedef struct gallery {
    kit_picture   picture[PICTURES];
    kit_sheet_row row[PICTURES];
    kit_map       map[PICTURES][KINDS];
    xg_real      *value[KINDS];    /* [PICTURES][h][w]                                            */
    int           said[KINDS][PICTURES];
    char          title[PICTURES][64], caption[PICTURES][KINDS][48];
} gallery;

/* What one trained network says of the first pictures of the test, and where it looks. */
static bool look(cli_run *run, int kind, gallery *g, xg_error *error)
{
    const kit_batch *b = &run->batch;
    if (!cli_data_batch(&run->data, &run->batch, KIT_TEST, run->data.item[KIT_TEST], PICTURES,
                        false, NULL, error)) {
        return false;
    }
    xg_mark mark = xg_tape_mark(run->tape);
    xg_scope scope = xg_scope_new(run->tape, run->params, &run->rng, false);
    scope.user = &run->net;
    xg_tensor *x = xg_leaf_borrow(run->tape, xg_shape4(PICTURES, b->channels, b->h, b->w), b->pixels);
    xg_tensor *logits = cli_net_run(&scope, x);
    const xg_real *best = xg_data(xg_argmax(logits));
    bool fine = !xg_failed(run->tape);
    for (int i = 0; i < PICTURES && fine; i++) g->said[kind][i] = (int)best[i];
    xg_tensor *map = cli_map(run->o.attribution, run->o.score, logits, g->said[kind], "input");
    size_t size = xg_size(map);
    g->value[kind] = (xg_real *)malloc(size * sizeof *g->value[kind]);
    if (g->value[kind] != NULL) xg_read(map, g->value[kind], size);
    fine = fine && g->value[kind] != NULL && !xg_failed(run->tape);
    if (!fine) cli_tape_fail(run->tape, error);
    xg_tape_release(run->tape, mark);
    return fine;
}

static bool fill_row(gallery *g, const cli_run *run, int i, xg_error *error)
{
    const kit_set *set = &run->data.set[KIT_TEST];
    size_t plane = (size_t)set->h * (size_t)set->w;
    int label = set->label[i], decoy = set->group[i] % set->classes;
    if (!kit_picture_from(&g->picture[i], set->pixels + 3 * plane * (size_t)i, 3, set->h, set->w,
                          KIT_NORM_UNIT, error)) {
        return false;
    }
    snprintf(g->title[i], sizeof g->title[i], "object: %s\ndecoy: %s", kit_decoy_class(label),
             kit_decoy_class(decoy));
    for (int kind = 0; kind < KINDS; kind++) {
        int said = g->said[kind][i];
        snprintf(g->caption[i][kind], sizeof g->caption[i][kind], "says %s: %s",
                 kit_decoy_class(said), said == label ? "right" : "wrong");
        kit_map map = { g->value[kind] + plane * (size_t)i, set->h, set->w, g->caption[i][kind] };
        g->map[i][kind] = map;
    }
    kit_sheet_row row = { g->title[i], &g->picture[i], NULL, &set->box[i], 1, g->map[i] };
    g->row[i] = row;
    return true;
}

static bool draw(const demo *d, gallery *g, const char *path, xg_error *error)
{
    char title[160], note[200];
    double plain, guided, spread;
    mean_of(d, 0, SHIFTED, &plain, &spread);
    mean_of(d, 1, SHIFTED, &guided, &spread);
    for (int kind = 0; kind < KINDS; kind++) {
        if (!look(&d->trial[kind].run, kind, g, error)) return false;
    }
    for (int i = 0; i < PICTURES; i++) {
        if (!fill_row(g, &d->trial[0].run, i, error)) return false;
    }
    snprintf(title, sizeof title, "Right when the decoy lies: plain %.0f %%, guided %.0f %%", plain,
             guided);
    snprintf(note, sizeof note, "What speaks for each answer (red), in the first %d test scenes. "
             "The label is the shape; the coloured disc told it in training.", PICTURES);
    static const char *const columns[KINDS] = { "plain training", "guided by explanations" };
    kit_sheet sheet;
    memset(&sheet, 0, sizeof sheet);
    sheet.title = title;
    sheet.note = note;
    sheet.column = columns;
    sheet.columns = KINDS;
    sheet.row = g->row;
    sheet.rows = PICTURES;
    return kit_sheet_save(&sheet, path, error);
}

static bool save_picture(const demo *d, xg_error *error)
{
    char path[1024];
    gallery *g = (gallery *)calloc(1, sizeof *g);
    if (g == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for the picture");
    bool fine = kit_make_folder(d->out, error)
             && kit_join(path, sizeof path, d->out, "demo.png", error) && draw(d, g, path, error);
    for (int i = 0; i < PICTURES; i++) kit_picture_free(&g->picture[i]);
    for (int kind = 0; kind < KINDS; kind++) free(g->value[kind]);
    free(g);
    if (fine) printf("\npicture: %s\n", path);
    return fine;
}

/* ---- the command ----------------------------------------------------------------------------- */

/* The first error of the trials, if there is one. */
static bool all_done(const demo *d, xg_error *error)
{
    for (int i = 0; i < d->seeds * KINDS; i++) {
        if (d->trial[i].done) continue;
        *error = d->trial[i].error;
        if (kit_interrupted()) {
            return kit_fail(error, XG_ERR_ARGUMENT, "stopped before the end; nothing was written");
        }
        return false;
    }
    return true;
}

static int run_demo(demo *d)
{
    xg_error error = { XG_ERR_OK, "" };
    kit_pool *pool = kit_pool_new(d->threads, &error);
    d->trial = (trial *)calloc((size_t)d->seeds * KINDS, sizeof *d->trial);
    if (pool == NULL || d->trial == NULL) {
        kit_pool_free(pool);
        free(d->trial);
        return cli_complain(CLI_FAILED, &error);
    }
    printf("Scenes with an object, whose shape is the label, and a coloured decoy that gives\n"
           "the label away every time in training, and lies every time in the test.\n"
           "%d networks, plain and guided in pairs, on %s with %d threads:\n", d->seeds * KINDS,
           xg_simd_best(), kit_pool_threads(pool));
    fflush(stdout);
    pthread_mutex_init(&d->lock, NULL);
    int64_t total = (int64_t)d->seeds * KINDS * d->epochs * ((d->count + 31) / 32);
    kit_progress_start(&d->progress, NULL, "training", 0, total);
    double started = kit_seconds();
    kit_pool_run(pool, d->seeds * KINDS, run_trial, d);
    kit_progress_end(&d->progress, d->steps, NULL);
    int code = CLI_FAILED;
    if (all_done(d, &error) && print_table(d) && save_picture(d, &error)) {
        char taken[32];
        printf("%s in all\n", kit_human_time(kit_seconds() - started, taken));
        code = CLI_OK;
    } else {
        cli_complain(CLI_FAILED, &error);
    }
    for (int i = 0; i < d->seeds * KINDS; i++) cli_run_close(&d->trial[i].run);
    free(d->trial);
    pthread_mutex_destroy(&d->lock);
    kit_pool_free(pool);
    return code;
}

int cli_demo(int argc, char **argv)
{
    demo d;
    bool quick = false;
    memset(&d, 0, sizeof d);
    d.seeds = 3;
    d.out = "build";
    kit_arg table[] = {
        { "out", 0, KIT_ARG_TEXT, &d.out, "FOLDER", "where demo.png is written" },
        { "seeds", 0, KIT_ARG_INT, &d.seeds, "N", "pairs of networks, 1 to 16" },
        { "seed", 0, KIT_ARG_SEED, &d.seed, "N", "the first of them" },
        { "threads", 0, KIT_ARG_INT, &d.threads, "N", "trainings at a time; 0: one a processor" },
        { "quick", 0, KIT_ARG_FLAG, &quick, NULL, "seconds instead of a minute, and little learnt" }
    };
    xg_error error = { XG_ERR_OK, "" };
    kit_args_result read = cli_args_read(argc, argv, table, 5, usage, examples, NULL, 0, NULL,
                                         &error);
    if (read == KIT_ARGS_HELP) return CLI_OK;
    if (read == KIT_ARGS_OK && (d.seeds < 1 || d.seeds > MAX_SEEDS)) {
        kit_fail(&error, XG_ERR_ARGUMENT, "--seeds must be between 1 and %d", MAX_SEEDS);
    }
    if (error.code != XG_ERR_OK) return cli_complain(CLI_USAGE, &error);
    d.epochs = quick ? 1 : 6;
    d.count = quick ? 320 : 2000;
    kit_catch_interrupt();
    return run_demo(&d);
}
