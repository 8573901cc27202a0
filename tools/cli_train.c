/* cli_train.c - `xguide train`: one run from the first step to the test, or on from where it
 * stopped. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char usage[] =
    "xguide train --data FOLDER [options]\n"
    "Trains a classifier, with a loss on its explanations if --loss is given. Writes\n"
    "checkpoint, log, curves, maps and result.json to --out. The same command goes on after\n"
    "Ctrl-C, kill or a crash, and ends with the same bits as if nothing had happened.";
static const char examples[] =
    "  xguide train --data decoy --loss energy --lambda 0.1 --out out/decoy\n"
    "  xguide train --data waterbirds --net resnet18 --stages 3 --folded --train-from layer3\n"
    "               --weights resnet18.safetensors --loss energy --layer layer2 --out out/birds\n"
    "  xguide train --data pets --net resnet20 --epochs 30      (pets/cat/*.jpg, pets/dog/*.jpg)";

static const char *const columns[] = {
    "step", "epoch", "rate", "loss", "class_loss", "guide_loss", "train_accuracy", "train_epg",
    "val_accuracy", "val_worst", "val_epg_layer", "val_epg_input", "seconds"
};
enum { COLUMNS = (int)(sizeof columns / sizeof columns[0]) };

/* What the loop carries. */
typedef struct loop {
    cli_run     *run;
    kit_log      log;
    kit_progress progress;
    cli_sums     sums;         /* since the log's last row                                        */
    cli_scores   val;          /* of the last epoch                                               */
    double       started;
} loop;

static double part(double sum, int64_t count)
{
    return count > 0 ? sum / (double)count : (double)NAN;
}

/* A row of the log from what was summed up; val NULL within an epoch. */
static bool log_row(loop *l, const cli_scores *val, xg_error *error)
{
    const cli_run *run = l->run;
    const cli_sums *s = &l->sums;
    kit_log_number(&l->log, "step", (double)run->step);
    kit_log_number(&l->log, "epoch", (double)run->step / (double)run->steps_per_epoch);
    kit_log_number(&l->log, "rate", xg_optim_lr(&run->optim, run->step > 0 ? run->step - 1 : 0));
    kit_log_number(&l->log, "loss", part(s->loss, s->steps));
    kit_log_number(&l->log, "class_loss", part(s->class_loss, s->steps));
    kit_log_number(&l->log, "guide_loss", part(s->guide_loss, s->steps));
    kit_log_number(&l->log, "train_accuracy", part((double)s->right, s->seen));
    kit_log_number(&l->log, "train_epg", part(s->epg, s->guided));
    if (val != NULL) {
        kit_log_number(&l->log, "val_accuracy", xg_groups_overall(&val->groups));
        kit_log_number(&l->log, "val_worst", xg_groups_worst(&val->groups));
        kit_log_number(&l->log, "val_epg_layer", val->epg_layer);
        kit_log_number(&l->log, "val_epg_input", val->epg_input);
    }
    kit_log_number(&l->log, "seconds", kit_seconds() - l->started);
    memset(&l->sums, 0, sizeof l->sums);
    return kit_log_row(&l->log, error);
}

static void show(loop *l, bool last)
{
    const cli_sums *s = &l->sums;
    char epg[32] = "";
    if (s->guided > 0) snprintf(epg, sizeof epg, ", EPG %.1f %%", 100 * part(s->epg, s->guided));
    if (l->run->o.quiet) return;
    if (last) kit_progress_end(&l->progress, l->run->step, NULL);
    else kit_progress_step(&l->progress, l->run->step, "loss %.3f, accuracy %.1f %%%s",
                           part(s->loss, s->steps), 100 * part((double)s->right, s->seen), epg);
}

static bool epoch_ends(const cli_run *run)
{
    return run->step > 0 && (run->step % run->steps_per_epoch == 0 || run->step == run->steps);
}

/* Validation, its row, a line for people. Run again after a resume at an epoch's end: it changes
 * nothing but the log, whose row of this step is then written anew. */
static bool end_epoch(loop *l, xg_error *error)
{
    cli_run *run = l->run;
    cli_scores *val = &l->val;
    memset(val, 0, sizeof *val);
    bool have = run->data.count[KIT_VAL] > 0;
    if (have && !cli_measure(run, KIT_VAL, run->o.val_limit, true, val, error)) return false;
    double loss = part(l->sums.loss, l->sums.steps);
    double accuracy = part((double)l->sums.right, l->sums.seen);
    if (!log_row(l, have ? val : NULL, error)) return false;
    if (l->progress.width > 0) fprintf(stderr, "\n");
    l->progress.width = 0;
    printf("epoch %lld: loss %.4f, accuracy %.1f %%",
           (long long)((run->step + run->steps_per_epoch - 1) / run->steps_per_epoch), loss,
           100 * accuracy);
    if (have) {
        printf("; validation: accuracy %.1f %%, worst group %.1f %%",
               100 * xg_groups_overall(&val->groups), 100 * xg_groups_worst(&val->groups));
        if (isfinite(val->epg_layer)) {
            printf(", EPG %.1f %% at %s", 100 * val->epg_layer, run->o.layer);
            bool other = strcmp(run->o.layer, "input") != 0;
            if (other) printf(", %.1f %% at input", 100 * val->epg_input);
        }
        printf(" (%.0f s)", val->seconds);
    }
    printf("\n");
    fflush(stdout);
    return true;
}

/* One step and what may be due after it. The checkpoint at an epoch's end comes before validation,
 * the row of the log after it: whatever is lost is made again. */
static bool advance(loop *l, xg_error *error)
{
    cli_run *run = l->run;
    if (!cli_step(run, &l->sums, error)) return false;
    show(l, false);
    bool ends = epoch_ends(run);
    if (!ends && run->step % run->o.log_every == 0 && !log_row(l, NULL, error)) return false;
    bool due = ends || run->step % run->o.save_every == 0 || kit_interrupted();
    if (due && !cli_state_save(run, &l->sums, error)) return false;
    return !ends || end_epoch(l, error);
}

static int stopped(const cli_run *run)
{
    char rest[32];
    kit_human_count((double)(run->steps - run->step), rest);
    fprintf(stderr, "\nxguide: stopped after step %lld, which is saved in %s; the same command "
            "goes on from there (%s steps to go)\n", (long long)run->step, run->o.out, rest);
    return CLI_FAILED;
}

static int finish(loop *l, xg_error *error)
{
    cli_run *run = l->run;
    cli_scores test;
    show(l, true);
    if (!kit_log_close(&l->log, error)) return cli_complain(CLI_FAILED, error);
    bool have = run->data.count[KIT_TEST] > 0 && !run->o.no_test;
    memset(&test, 0, sizeof test);
    if (have && !cli_measure(run, KIT_TEST, 0, true, &test, error)) {
        return kit_interrupted() ? stopped(run) : cli_complain(CLI_FAILED, error);
    }
    if (have) cli_report_scores(run, &test, KIT_TEST, stdout);
    if (!cli_report_maps(run, error) || !cli_report_curves(run, error)
        || !cli_report_result(run, &l->val, have ? &test : NULL, error)) {
        return cli_complain(CLI_FAILED, error);
    }
    printf("written to %s: checkpoint.safetensors, log.csv, log.jsonl, curves.png, maps.png, "
           "result.json\n", run->o.out);
    return CLI_OK;
}

static bool begin(loop *l, xg_error *error)
{
    cli_run *run = l->run;
    bool found = false;
    if (run->data.count[KIT_TRAIN] == 0) {
        return kit_fail(error, XG_ERR_ARGUMENT, "%.100s has no pictures to train on", run->o.data);
    }
    if (run->o.schedule == 1 && run->o.warmup >= run->steps) {
        return kit_fail(error, XG_ERR_ARGUMENT, "--warmup %d leaves none of the %lld steps for the "
                        "schedule", run->o.warmup, (long long)run->steps);
    }
    if (!kit_make_folder(run->o.out, error)) return false;
    if (!cli_state_resume(run, &l->sums, &found, error)) return false;
    /* At an epoch's end the row of that step is written again by end_epoch. */
    double keep = found ? (double)run->step - (epoch_ends(run) ? 0.5 : 0) : -1;
    if (!kit_log_open(&l->log, run->o.out, "log", columns, COLUMNS, keep, error)) return false;
    if (!run->o.quiet) kit_progress_start(&l->progress, NULL, "training", run->step, run->steps);
    if (found) printf("going on from step %lld of %lld in %s\n", (long long)run->step,
                      (long long)run->steps, run->o.out);
    else printf("%lld steps, a checkpoint every %d steps in %s\n", (long long)run->steps,
                run->o.save_every, run->o.out);
    fflush(stdout);
    return !found || !epoch_ends(run) || end_epoch(l, error);
}

static int train(cli_run *run)
{
    xg_error error = { XG_ERR_OK, "" };
    loop l;
    memset(&l, 0, sizeof l);
    l.run = run;
    l.started = kit_seconds();
    bool fine = begin(&l, &error);
    while (fine && run->step < run->steps && !kit_interrupted()) fine = advance(&l, &error);
    int code = fine && run->step == run->steps && !kit_interrupted() ? finish(&l, &error)
             : kit_interrupted() && error.code == XG_ERR_OK ? stopped(run)
             : cli_complain(CLI_FAILED, &error);
    xg_error ignored = { XG_ERR_OK, "" };
    kit_log_close(&l.log, &ignored);
    return code;
}

static void introduce(const cli_run *run, const char *said)
{
    char trained[32];
    const cli_data *d = &run->data;
    kit_human_count((double)xg_params_size(run->params), trained);
    printf("%s: %d pictures to train on (%d annotated), %d validation, %d test, "
           "%d classes, %d pixels wide\n", run->o.data, d->count[0], run->extra.count,
           d->count[1], d->count[2], d->classes, d->size);
    if (said[0] != 0) printf("%s: %s\n", run->o.weights, said);
    printf("%s: %s weights are trained, on %s with %d threads\n", run->o.net, trained,
           xg_tape_simd(run->tape), kit_pool_threads(run->pool));
}

int cli_train(int argc, char **argv)
{
    cli_options o;
    kit_arg table[CLI_MAX_ARGS];
    xg_error error = { XG_ERR_OK, "" };
    char said[512] = "";
    cli_options_default(&o);
    int rows = cli_options_table(&o, table);
    kit_args_result read = cli_args_read(argc, argv, table, rows, usage, examples, NULL, 0, NULL,
                                         &error);
    if (read == KIT_ARGS_HELP) return CLI_OK;
    if (read == KIT_ARGS_BAD || !cli_options_check(&o, &error)) {
        return cli_complain(CLI_USAGE, &error);
    }
    cli_run run;
    kit_catch_interrupt();
    int code = CLI_FAILED;
    if (cli_run_open(&run, &o, said, &error)) {
        introduce(&run, said);
        code = train(&run);
    } else {
        bool asked = error.code == XG_ERR_ARGUMENT || error.code == XG_ERR_NAME;
        code = cli_complain(asked ? CLI_USAGE : CLI_FAILED, &error);
    }
    cli_run_close(&run);
    return code;
}
