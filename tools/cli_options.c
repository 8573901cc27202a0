/* cli_options.c - the options of a run as one table. The command line, the notes in a
 * checkpoint, and the comparison of the two all read it, so an option is named in one place. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* Rows after this heading change nothing that is computed, and are not kept in checkpoints. */
static const char free_heading[] = "output and speed (may change between runs)";

void cli_options_default(cli_options *o)
{
    memset(o, 0, sizeof *o);
    o->data = "";
    o->count = 2000;
    o->val = 0.1;
    o->test = 0.2;
    o->annotated = 1;
    o->net = "cnn";
    o->weights = "";
    o->width = 16;
    o->train_from = "";
    o->layer = "input";
    o->lambda = 1;
    o->steps_ig = 8;
    o->epochs = 10;
    o->batch = 32;
    o->lr = 0.001;
    o->optimiser = 1;
    o->momentum = 0.9;
    o->out = "out";
    o->threads = 0;
    o->save_every = 50;
    o->log_every = 20;
}

/* One row of the table. */
typedef struct row { kit_arg *table; int count; } row;

static void put(row *to, const char *name, kit_arg_kind kind, void *value, const char *argument,
                const char *help)
{
    kit_arg arg = { name, 0, kind, value, argument, help };
    if (to->count < CLI_MAX_ARGS) to->table[to->count++] = arg;
}

static void put_heading(row *to, const char *text)
{
    put(to, NULL, KIT_ARG_HEADING, NULL, NULL, text);
}

static void put_data(row *to, cli_options *o)
{
    put_heading(to, "data");
    put(to, "data", KIT_ARG_TEXT, &o->data, "FOLDER",
        "Waterbirds, a folder a class, or decoy, triangle, foxcat");
    put(to, "size", KIT_ARG_INT, &o->size, "PIXELS",
        "side of the pictures; 0: 128, scenes 32 or 64");
    put(to, "count", KIT_ARG_INT, &o->count, "N", "scenes to train on");
    put(to, "broken", KIT_ARG_NUMBER, &o->broken, "FRACTION",
        "decoy scenes: part of the training scenes whose decoy tells nothing");
    put(to, "val", KIT_ARG_NUMBER, &o->val, "FRACTION", "class folders: part kept for validation");
    put(to, "test", KIT_ARG_NUMBER, &o->test, "FRACTION", "class folders: part kept for the test");
    put(to, "flip", KIT_ARG_FLAG, &o->flip, NULL, "mirror half of the training photographs");
    put(to, "annotated", KIT_ARG_NUMBER, &o->annotated, "FRACTION",
        "part of the training pictures whose boxes are known");
    put(to, "dilation", KIT_ARG_NUMBER, &o->dilation, "FRACTION",
        "grow boxes by this on every side");
}

static void put_network(row *to, cli_options *o)
{
    put_heading(to, "network");
    put(to, "net", KIT_ARG_TEXT, &o->net, "NAME",
        "cnn, mlp, resnet18 (34, 50, 20, 32, 44, 56), bcos-resnet18, x-resnet18, ...");
    put(to, "weights", KIT_ARG_TEXT, &o->weights, "FILE", "safetensors to start from");
    put(to, "stages", KIT_ARG_INT, &o->stages, "N", "cut a resnet after so many stages; 0: all");
    put(to, "folded", KIT_ARG_FLAG, &o->folded, NULL, "batch norm is folded into the convolutions");
    put(to, "width", KIT_ARG_INT, &o->width, "N", "cnn: channels of its first layer");
    put(to, "batch-norm", KIT_ARG_FLAG, &o->batch_norm, NULL, "cnn: normalise after convolutions");
    put(to, "small-input", KIT_ARG_FLAG, &o->small_input, NULL,
        "resnet: a stem for 32x32 pictures");
    put(to, "frozen-norm", KIT_ARG_FLAG, &o->frozen_norm, NULL,
        "resnet: norms use the statistics they were loaded with");
    put(to, "norm", KIT_ARG_CHOICE, &o->norm, "auto|unit|imagenet|caffe|signed",
        "how pixels become numbers");
    put(to, "train-from", KIT_ARG_TEXT, &o->train_from, "LAYER",
        "leave the weights before this layer as they are");
    put(to, "head-first", KIT_ARG_INT, &o->head_first, "STEPS", "train the classifier alone first");
}

static void put_guidance(row *to, cli_options *o)
{
    put_heading(to, "guidance");
    put(to, "loss", KIT_ARG_CHOICE, &o->loss, "none|energy|l1|ppce|rrr", "loss on explanations");
    put(to, "attribution", KIT_ARG_CHOICE, &o->attribution, "ixg|gradient|gradcam|bcos|ig",
        "how explanations are made");
    put(to, "score", KIT_ARG_CHOICE, &o->score, "contrast|logit",
        "explain the logit less the others' mean, or as it is");
    put(to, "layer", KIT_ARG_TEXT, &o->layer, "NAME", "where: input, layer1 .. layer4, features");
    put(to, "lambda", KIT_ARG_NUMBER, &o->lambda, "X", "weight of the loss on explanations");
    put(to, "against", KIT_ARG_FLAG, &o->against, NULL,
        "what speaks against the label should lie in the box as well");
    put(to, "mean", KIT_ARG_FLAG, &o->mean, NULL,
        "average it over the guided pictures of a batch, not add up");
    put(to, "extra", KIT_ARG_INT, &o->extra, "N",
        "add N annotated pictures to each batch, for guidance only; 0: as they come");
    put(to, "ig-steps", KIT_ARG_INT, &o->steps_ig, "N", "steps of integrated gradients");
}

static void put_training(row *to, cli_options *o)
{
    put_heading(to, "training");
    put(to, "objective", KIT_ARG_CHOICE, &o->objective, "cross-entropy|bce", "loss on labels");
    put(to, "balance", KIT_ARG_FLAG, &o->balance, NULL,
        "cross-entropy in which rare classes count as much as common ones");
    put(to, "epochs", KIT_ARG_INT, &o->epochs, "N", "passes over the training pictures");
    put(to, "limit", KIT_ARG_INT, &o->limit, "STEPS",
        "end after so many steps; 0: after the epochs");
    put(to, "batch", KIT_ARG_INT, &o->batch, "N", "pictures a step");
    put(to, "optimiser", KIT_ARG_CHOICE, &o->optimiser, "sgd|adam|adamw", "kind of step");
    put(to, "lr", KIT_ARG_NUMBER, &o->lr, "X", "learning rate");
    put(to, "momentum", KIT_ARG_NUMBER, &o->momentum, "X", "of sgd");
    put(to, "decay", KIT_ARG_NUMBER, &o->decay, "X", "weight decay");
    put(to, "clip", KIT_ARG_NUMBER, &o->clip, "X", "largest norm of the gradient; 0: any");
    put(to, "schedule", KIT_ARG_CHOICE, &o->schedule, "constant|cosine", "of the learning rate");
    put(to, "warmup", KIT_ARG_INT, &o->warmup, "STEPS", "of rising learning rate");
    put(to, "seed", KIT_ARG_SEED, &o->seed, "N", "of everything drawn at random");
}

int cli_options_table(cli_options *o, kit_arg table[CLI_MAX_ARGS])
{
    row to = { table, 0 };
    put_data(&to, o);
    put_network(&to, o);
    put_guidance(&to, o);
    put_training(&to, o);
    put_heading(&to, free_heading);
    put(&to, "out", KIT_ARG_TEXT, &o->out, "FOLDER", "where everything is written");
    put(&to, "threads", KIT_ARG_INT, &o->threads, "N", "0: one for each processor");
    put(&to, "save-every", KIT_ARG_INT, &o->save_every, "STEPS", "between checkpoints");
    put(&to, "log-every", KIT_ARG_INT, &o->log_every, "STEPS", "between rows of the log");
    put(&to, "val-limit", KIT_ARG_INT, &o->val_limit, "N",
        "look at N validation pictures between epochs; 0: all");
    put(&to, "no-test", KIT_ARG_FLAG, &o->no_test, NULL,
        "leave the test pictures alone while options are being chosen");
    put(&to, "fresh", KIT_ARG_FLAG, &o->fresh, NULL, "begin anew, whatever is in the folder");
    put(&to, "quiet", KIT_ARG_FLAG, &o->quiet, NULL, "no progress line");
    return to.count;
}

static bool in_range(xg_error *error, const char *name, double value, double low, double high)
{
    if (value >= low && value <= high) return true;
    return kit_fail(error, XG_ERR_ARGUMENT, "--%s must be between %g and %g, not %g", name, low,
                    high, value);
}

bool cli_options_check(cli_options *o, xg_error *error)
{
    if (o->data[0] == 0) {
        return kit_fail(error, XG_ERR_ARGUMENT, "there is no data: give --data FOLDER, or --data "
                        "decoy for scenes drawn by rule");
    }
    if (o->balance && o->objective == CLI_BCE) {
        return kit_fail(error, XG_ERR_ARGUMENT, "--balance is for cross-entropy, not for bce");
    }
    return in_range(error, "size", o->size, 0, 1024) && in_range(error, "count", o->count, 1, 1e6)
        && in_range(error, "val", o->val, 0, 0.9) && in_range(error, "test", o->test, 0, 0.9)
        && in_range(error, "val plus --test", o->val + o->test, 0, 0.95)
        && in_range(error, "broken", o->broken, 0, 1)
        && in_range(error, "annotated", o->annotated, 0, 1)
        && in_range(error, "dilation", o->dilation, 0, 10)
        && in_range(error, "stages", o->stages, 0, 4) && in_range(error, "width", o->width, 1, 512)
        && in_range(error, "lambda", o->lambda, 0, 1e9)
        && in_range(error, "extra", o->extra, 0, 4096)
        && in_range(error, "ig-steps", o->steps_ig, 1, 1000)
        && in_range(error, "epochs", o->epochs, 1, 1e6)
        && in_range(error, "limit", o->limit, 0, 1e9)
        && in_range(error, "batch", o->batch, 1, 4096) && in_range(error, "lr", o->lr, 1e-12, 1e6)
        && in_range(error, "momentum", o->momentum, 0, 0.9999)
        && in_range(error, "decay", o->decay, 0, 1e6) && in_range(error, "clip", o->clip, 0, 1e12)
        && in_range(error, "warmup", o->warmup, 0, 1e9)
        && in_range(error, "head-first", o->head_first, 0, 1e9)
        && in_range(error, "threads", o->threads, 0, 256)
        && in_range(error, "save-every", o->save_every, 1, 1e9)
        && in_range(error, "log-every", o->log_every, 1, 1e9)
        && in_range(error, "val-limit", o->val_limit, 0, 1e9);
}

/* ---- options as notes ------------------------------------------------------------------------ */

const char *cli_note(const xg_note *notes, int count, const char *key)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(notes[i].key, key) == 0) return notes[i].value;
    }
    return NULL;
}

bool cli_note_add(xg_note *notes, int *count, int max, const char *key, const char *format, ...)
{
    if (*count >= max) return false;
    xg_note *note = &notes[*count];
    memset(note, 0, sizeof *note);
    va_list arguments;
    va_start(arguments, format);
    int wrote = vsnprintf(note->value, sizeof note->value, format, arguments);
    va_end(arguments);
    int named = snprintf(note->key, sizeof note->key, "%s", key);
    if (wrote < 0 || (size_t)wrote >= sizeof note->value) return false;
    if (named < 0 || (size_t)named >= sizeof note->key) return false;
    ++*count;
    return true;
}

/* The value of a row as text, exact. */
static void value_text(const kit_arg *arg, char *out, size_t size)
{
    switch (arg->kind) {
    case KIT_ARG_FLAG:   snprintf(out, size, "%d", *(bool *)arg->value); break;
    case KIT_ARG_INT:
    case KIT_ARG_CHOICE: snprintf(out, size, "%d", *(int *)arg->value); break;
    case KIT_ARG_NUMBER: snprintf(out, size, "%.17g", *(double *)arg->value); break;
    case KIT_ARG_TEXT:   snprintf(out, size, "%s", *(const char **)arg->value); break;
    case KIT_ARG_SEED:
        snprintf(out, size, "%llu", (unsigned long long)*(uint64_t *)arg->value);
        break;
    case KIT_ARG_HEADING: out[0] = 0; break;
    }
}

/* Reads such a text back. False when it is none. */
static bool value_parse(const kit_arg *arg, const char *text)
{
    char *end = NULL;
    if (arg->kind == KIT_ARG_TEXT) {
        *(const char **)arg->value = text;
        return true;
    }
    if (text[0] == 0) return false;
    switch (arg->kind) {
    case KIT_ARG_FLAG:   *(bool *)arg->value = strtol(text, &end, 10) != 0; break;
    case KIT_ARG_INT:
    case KIT_ARG_CHOICE: *(int *)arg->value = (int)strtol(text, &end, 10); break;
    case KIT_ARG_NUMBER: *(double *)arg->value = strtod(text, &end); break;
    case KIT_ARG_SEED:   *(uint64_t *)arg->value = strtoull(text, &end, 10); break;
    case KIT_ARG_TEXT:
    case KIT_ARG_HEADING: break;
    }
    return end != NULL && *end == 0;
}

/* Walks the rows that decide numbers: *at moves on; false at their end. */
static bool next_row(const kit_arg *table, int count, int *at)
{
    for (++*at; *at < count; ++*at) {
        if (table[*at].kind != KIT_ARG_HEADING) return true;
        if (table[*at].help == free_heading) return false;
    }
    return false;
}

int cli_options_save(const cli_options *o, xg_note *notes, int max)
{
    cli_options copy = *o;
    kit_arg table[CLI_MAX_ARGS];
    int rows = cli_options_table(&copy, table), count = 0;
    for (int i = -1; next_row(table, rows, &i);) {
        char key[48], text[1024];
        snprintf(key, sizeof key, "o.%s", table[i].name);
        value_text(&table[i], text, sizeof text);
        /* A path too long for a note is kept by its end, which tells paths apart. */
        size_t length = strlen(text), most = sizeof notes->value - 1;
        const char *tail = length > most ? text + (length - most) : text;
        if (!cli_note_add(notes, &count, max, key, "%s", tail)) break;
    }
    return count;
}

bool cli_options_restore(cli_options *o, const xg_note *notes, int count, xg_error *error)
{
    kit_arg table[CLI_MAX_ARGS];
    int rows = cli_options_table(o, table);
    for (int i = -1; next_row(table, rows, &i);) {
        char key[48];
        snprintf(key, sizeof key, "o.%s", table[i].name);
        const char *text = cli_note(notes, count, key);
        if (text == NULL) {
            return kit_fail(error, XG_ERR_FORMAT, "the checkpoint does not say its --%s: it was "
                            "made by another version or another program", table[i].name);
        }
        if (!value_parse(&table[i], text)) {
            return kit_fail(error, XG_ERR_FORMAT, "the checkpoint's --%s is not understood: "
                            "'%.80s'", table[i].name, text);
        }
    }
    return true;
}

bool cli_options_same(const cli_options *o, const xg_note *notes, int count, xg_error *error)
{
    xg_note mine[CLI_MAX_ARGS];
    int rows = cli_options_save(o, mine, CLI_MAX_ARGS);
    for (int i = 0; i < rows; i++) {
        const char *old = cli_note(notes, count, mine[i].key);
        if (old != NULL && strcmp(old, mine[i].value) == 0) continue;
        return kit_fail(error, XG_ERR_ARGUMENT, "the run in %.60s was made with --%s %.40s, not "
                        "%.40s; give that, another --out, or --fresh to begin anew",
                        o->out, mine[i].key + 2, old != NULL ? old : "(unknown)", mine[i].value);
    }
    return true;
}

/* ---- near misses ----------------------------------------------------------------------------- */

static int smaller(int a, int b) { return a < b ? a : b; }

/* How many letters must be changed, added or dropped to make b out of a. */
static int distance(const char *a, const char *b)
{
    int row_now[64], n = (int)strlen(b);
    if (n > 62) return 99;
    for (int j = 0; j <= n; j++) row_now[j] = j;
    for (int i = 0; a[i] != 0; i++) {
        int corner = row_now[0];
        row_now[0] = i + 1;
        for (int j = 0; j < n; j++) {
            int change = corner + (a[i] != b[j]);
            corner = row_now[j + 1];
            row_now[j + 1] = smaller(change, smaller(row_now[j], row_now[j + 1]) + 1);
        }
    }
    return row_now[n];
}

const char *cli_nearest(const char *typed, const char *const *words, int count)
{
    const char *best = NULL;
    int least = 1 + (int)strlen(typed) / 2;
    for (int i = 0; i < count; i++) {
        int far = distance(typed, words[i]);
        if (far < least) {
            least = far;
            best = words[i];
        }
    }
    return best;
}

/* The row that an option on the command line names, or -1; "--name=value" names it too. */
static int named_row(const char *word, const kit_arg *args, int count)
{
    size_t length = strcspn(word, "=");
    for (int i = 0; i < count; i++) {
        const char *name = args[i].name;
        if (args[i].kind == KIT_ARG_HEADING || name == NULL) continue;
        if (strlen(name) == length && strncmp(name, word, length) == 0) return i;
    }
    return -1;
}

kit_args_result cli_args_read(int argc, char **argv, const kit_arg *args, int count,
                              const char *usage, const char *examples, const char **words, int max,
                              int *words_count, xg_error *error)
{
    const char *names[CLI_MAX_ARGS + 8];
    int known = 0;
    kit_args_result result = kit_args_read(argc, argv, args, count, usage, examples, words, max,
                                           words_count, error);
    for (int i = 0; i < count && known < CLI_MAX_ARGS + 8; i++) {
        if (args[i].kind != KIT_ARG_HEADING) names[known++] = args[i].name;
    }
    for (int i = 1; i < argc && result == KIT_ARGS_BAD; i++) {
        const char *word = argv[i] + 2;
        if (strcmp(argv[i], "--") == 0) break;
        if (strncmp(argv[i], "--", 2) != 0 || strcmp(word, "help") == 0) continue;
        if (named_row(word, args, count) >= 0) continue;
        const char *near = cli_nearest(word, names, known);
        error->code = XG_ERR_OK;             /* this sentence takes the place of the other        */
        kit_fail(error, XG_ERR_NAME, "there is no option --%.40s%s%s; `--help` lists them all",
                 word, near ? "; did you mean --" : "", near ? near : "");
        break;
    }
    return result;
}
