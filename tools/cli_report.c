/* cli_report.c - what is left of a run for people: a table, result.json, curves, maps. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

bool cli_report_scores(const cli_run *run, const cli_scores *scores, kit_split split, FILE *out)
{
    static const char *const names[3] = { "train", "validation", "test" };
    const xg_groups *g = &scores->groups;
    kit_table table;
    memset(&table, 0, sizeof table);
    int64_t seen = 0;
    for (int i = 0; i < g->count; i++) seen += g->seen[i];
    kit_table_cell(&table, "%s", names[split]);
    kit_table_cell(&table, "value");
    kit_table_end_row(&table);
    kit_table_cell(&table, "pictures");
    kit_table_cell(&table, "%lld", (long long)seen);
    kit_table_end_row(&table);
    kit_table_cell(&table, "accuracy, %%");
    kit_table_cell(&table, "%.2f", 100 * xg_groups_overall(g));
    kit_table_end_row(&table);
    kit_table_cell(&table, "worst group, %%");
    kit_table_cell(&table, "%.2f", 100 * xg_groups_worst(g));
    kit_table_end_row(&table);
    for (int i = 0; i < g->count; i++) {
        char name[48];
        if (g->seen[i] == 0 || g->count == 1) continue;
        kit_table_cell(&table, "  %s (%lld)", cli_data_group(&run->data, i, name),
                       (long long)g->seen[i]);
        kit_table_cell(&table, "%.2f", 100 * xg_groups_accuracy(g, i));
        kit_table_end_row(&table);
    }
    if (isfinite(scores->epg_layer)) {
        kit_table_cell(&table, "EPG at %s, %%", run->o.layer);
        kit_table_cell(&table, "%.2f", 100 * scores->epg_layer);
        kit_table_end_row(&table);
    }
    if (isfinite(scores->epg_input) && strcmp(run->o.layer, "input") != 0) {
        kit_table_cell(&table, "EPG at the input, %%");
        kit_table_cell(&table, "%.2f", 100 * scores->epg_input);
        kit_table_end_row(&table);
    }
    bool fine = kit_table_print(&table, out, false);
    kit_table_free(&table);
    return fine;
}

/* ---- result.json ----------------------------------------------------------------------------- */

/* A text that grows; short on memory, it stays what it was and says so. */
typedef struct text { char *at; size_t used, room; bool failed; } text;

static void KIT_PRINTF(2, 3) say(text *t, const char *format, ...)
{
    char piece[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(piece, sizeof piece, format, arguments);
    va_end(arguments);
    size_t need = t->used + (size_t)(length > 0 ? length : 0) + 1;
    if (length < 0 || (size_t)length >= sizeof piece) t->failed = true;
    if (need > t->room && !t->failed) {
        char *more = (char *)realloc(t->at, 2 * need);
        if (more == NULL) t->failed = true;
        else { t->at = more; t->room = 2 * need; }
    }
    if (t->failed) return;
    memcpy(t->at + t->used, piece, (size_t)length + 1);
    t->used += (size_t)length;
}

static void say_quoted(text *t, const char *words)
{
    say(t, "\"");
    for (; *words; words++) {
        unsigned char c = (unsigned char)*words;
        if (c == '"' || c == '\\') say(t, "\\%c", c);
        else if (c < 32) say(t, "\\u%04x", c);
        else say(t, "%c", c);
    }
    say(t, "\"");
}

/* JSON has no NaN. */
static void say_number(text *t, const char *name, double value)
{
    if (isfinite(value)) say(t, "\"%s\": %.10g", name, value);
    else say(t, "\"%s\": null", name);
}

static void say_scores(text *t, const cli_run *run, const char *name, const cli_scores *s)
{
    say(t, ",\n  \"%s\": {\n    ", name);
    say_number(t, "accuracy", xg_groups_overall(&s->groups));
    say(t, ", ");
    say_number(t, "worst_group", xg_groups_worst(&s->groups));
    say(t, ", ");
    say_number(t, "epg_layer", s->epg_layer);
    say(t, ", ");
    say_number(t, "epg_input", s->epg_input);
    say(t, ",\n    \"groups\": [");
    for (int i = 0, some = 0; i < s->groups.count; i++) {
        char group[48];
        if (s->groups.seen[i] == 0 || s->groups.count == 1) continue;
        say(t, "%s\n      {\"name\": ", some++ ? "," : "");
        say_quoted(t, cli_data_group(&run->data, i, group));
        say(t, ", \"pictures\": %lld, ", (long long)s->groups.seen[i]);
        say_number(t, "accuracy", xg_groups_accuracy(&s->groups, i));
        say(t, "}");
    }
    say(t, "\n    ]\n  }");
}

bool cli_report_result(const cli_run *run, const cli_scores *val, const cli_scores *test,
                       xg_error *error)
{
    static const char *const attributions[] = { "ixg", "gradient", "gradcam", "bcos", "ig" };
    static const char *const losses[] = { "none", "energy", "l1", "ppce", "rrr" };
    text t = { NULL, 0, 0, false };
    char path[1024];
    const cli_options *o = &run->o;
    say(&t, "{\n  \"version\": \"%s\",\n  \"data\": ", xg_version());
    say_quoted(&t, o->data);
    say(&t, ",\n  \"net\": \"%s\", \"attribution\": \"%s\", \"layer\": \"%s\", \"loss\": \"%s\",\n "
            " ",
        o->net, attributions[o->attribution], o->layer, losses[o->loss]);
    say_number(&t, "lambda", o->lambda);
    say(&t, ", ");
    say_number(&t, "annotated", o->annotated);
    say(&t, ", \"guided_pictures\": %d,\n  \"seed\": %llu, \"epochs\": %d, \"steps\": %lld",
        o->loss == CLI_NONE ? 0 : run->extra.count, (unsigned long long)o->seed, o->epochs,
        (long long)run->step);
    if (run->data.count[KIT_VAL] > 0) say_scores(&t, run, "validation", val);
    if (test != NULL) say_scores(&t, run, "test", test);
    say(&t, "\n}\n");
    bool fine = t.failed ? kit_fail(error, XG_ERR_MEMORY, "out of memory for result.json")
              : kit_join(path, sizeof path, o->out, "result.json", error)
             && kit_write_file(path, t.at, t.used, error);
    free(t.at);
    return fine;
}

/* ---- curves ---------------------------------------------------------------------------------- */

/* One column of the log as a line; rows without a number in it are left out. */
typedef struct curve { double *x, *y; int count; } curve;

static bool curve_read(curve *c, const kit_csv *csv, const char *column, xg_error *error)
{
    int at = kit_csv_column(csv, column, error), epoch = kit_csv_column(csv, "epoch", error);
    memset(c, 0, sizeof *c);
    if (at < 0 || epoch < 0) return false;
    c->x = (double *)calloc(2 * (size_t)csv->rows + 2, sizeof *c->x);
    if (c->x == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a curve");
    c->y = c->x + csv->rows + 1;
    for (int row = 0; row < csv->rows; row++) {
        if ((csv->header && row == 0) || kit_csv_text(csv, row, at)[0] == 0) continue;
        if (!kit_csv_number(csv, row, epoch, &c->x[c->count], error)
            || !kit_csv_number(csv, row, at, &c->y[c->count], error)) {
            return false;
        }
        c->count++;
    }
    return true;
}

/* What is drawn: column, panel, colour. Colours mean the same in every panel. */
static const struct { const char *column; int panel, colour; } drawn[] = {
    { "class_loss", 0, 0 },     { "guide_loss", 0, 3 },   { "train_accuracy", 1, 0 },
    { "val_accuracy", 1, 1 },   { "val_worst", 1, 2 },    { "train_epg", 2, 0 },
    { "val_epg_layer", 2, 1 },  { "val_epg_input", 2, 2 }
};
static const char *const colour_name[] = {
    "training", "validation", "its worst group; EPG at its input", "loss on explanations"
};
enum { COLOURS = 4 };
enum { CURVES = (int)(sizeof drawn / sizeof drawn[0]) };

bool cli_report_curves(const cli_run *run, xg_error *error)
{
    char log[1024], path[1024];
    curve curves[CURVES];
    kit_line line[COLOURS + CURVES];         /* lines without points first: the legend           */
    kit_panel panel[3];
    kit_csv csv;
    memset(curves, 0, sizeof curves);
    memset(line, 0, sizeof line);
    memset(panel, 0, sizeof panel);
    if (!kit_join(log, sizeof log, run->o.out, "log.csv", error)
        || !kit_join(path, sizeof path, run->o.out, "curves.png", error)
        || !kit_csv_read(&csv, log, ',', true, error)) {
        return false;
    }
    bool fine = true;
    for (int i = 0; i < COLOURS; i++) {
        line[i].name = colour_name[i];
        line[i].colour = i;
    }
    panel[0].line = line;
    panel[0].lines = COLOURS;
    for (int i = 0; i < CURVES && fine; i++) {
        kit_panel *p = &panel[drawn[i].panel];
        fine = curve_read(&curves[i], &csv, drawn[i].column, error);
        if (curves[i].count == 0) continue;
        kit_line one = { NULL, curves[i].x, curves[i].y, NULL, curves[i].count,
                         drawn[i].colour, false };
        line[COLOURS + i] = one;
        if (p->lines++ == 0) p->line = &line[COLOURS + i];
    }
    static const char *const titles[3] = { "loss", "accuracy", "energy inside the boxes (EPG)" };
    int panels = 0;
    for (int i = 0; i < 3; i++) {
        if (panel[i].lines == 0) continue;   /* no boxes, no EPG                                  */
        panel[i].title = titles[i];
        panel[i].x_label = "epoch";
        panel[i].percent = i > 0;
        if (i > 0) panel[i].y_max = 1;
        panel[panels++] = panel[i];
    }
    fine = fine && kit_chart_save(run->o.out, panel, panels, path, error);
    for (int i = 0; i < CURVES; i++) free(curves[i].x);
    kit_csv_free(&csv);
    return fine;
}

/* ---- maps ------------------------------------------------------------------------------------ */

enum { MAP_ROWS = 6 };

/* The rows of the sheet while it is being made. */
typedef struct sheet_parts {
    kit_picture   picture[MAP_ROWS];
    kit_sheet_row row[MAP_ROWS];
    kit_map       map[MAP_ROWS][2];
    xg_box        box[MAP_ROWS];
    char          title[MAP_ROWS][96], caption[MAP_ROWS][2][32];
} sheet_parts;

static bool make_row(cli_run *run, sheet_parts *s, int i, const xg_real *said, xg_tensor *layer,
                     xg_tensor *input, xg_error *error)
{
    const kit_batch *b = &run->batch;
    size_t plane = (size_t)b->h * (size_t)b->w, pixels = plane * (size_t)b->channels;
    if (!kit_picture_from(&s->picture[i], b->pixels + (size_t)i * pixels, b->channels, b->h, b->w,
                          run->data.view.norm, error)) {
        return false;
    }
    const xg_real *mask = b->masks + (size_t)i * plane;
    xg_tensor *maps[2] = { layer, input };
    for (int j = 0; j < 2; j++) {
        const xg_real *value = xg_data(maps[j]) + (size_t)i * plane;
        snprintf(s->caption[i][j], sizeof s->caption[i][j], "EPG %.0f %%",
                 100 * xg_epg(value, mask, plane));
        kit_map map = { value, b->h, b->w, s->caption[i][j] };
        s->map[i][j] = map;
    }
    bool right = (int)said[i] == b->label[i];
    snprintf(s->title[i], sizeof s->title[i], "%.24s\nsaid %.24s\n%s",
             cli_data_class(&run->data, b->label[i]), cli_data_class(&run->data, (int)said[i]),
             right ? "right" : "wrong");
    s->box[i] = kit_mask_bounds(mask, b->h, b->w);
    kit_sheet_row row = { s->title[i], &s->picture[i], NULL, &s->box[i], 1, s->map[i] };
    s->row[i] = row;
    return true;
}

/* Maps of a batch that was filled, at the layer and at the input, drawn and written. */
static bool draw_maps(cli_run *run, int count, sheet_parts *s, const char *path, xg_error *error)
{
    const kit_batch *b = &run->batch;
    const cli_options *o = &run->o;
    xg_scope scope = xg_scope_new(run->tape, run->params, &run->rng, false);
    scope.user = &run->net;
    xg_tensor *x = xg_leaf_borrow(run->tape, xg_shape4(count, b->channels, b->h, b->w), b->pixels);
    xg_tensor *logits = cli_net_run(&scope, x);
    int at_input = o->attribution == CLI_GRADCAM ? CLI_IXG : o->attribution;
    xg_tensor *layer = cli_map_any(&scope, o, o->attribution, x, logits, b->label, o->layer);
    xg_tensor *input = cli_map_any(&scope, o, at_input, x, logits, b->label, "input");
    layer = xg_upsample(layer, b->h, b->w);
    const xg_real *said = xg_data(xg_argmax(logits));
    xg_data(layer);
    xg_data(input);
    if (xg_failed(run->tape)) return cli_tape_fail(run->tape, error);
    for (int i = 0; i < count; i++) {
        if (!make_row(run, s, i, said, layer, input, error)) return false;
    }
    char at_layer[64];
    snprintf(at_layer, sizeof at_layer, "at %s", o->layer);
    const char *columns[2] = { at_layer, "at the input" };
    kit_sheet sheet;
    memset(&sheet, 0, sizeof sheet);
    sheet.title = o->out;
    sheet.note = "What speaks for the true class (red) and against it (blue); the box is where the "
                 "object is.";
    sheet.column = columns;
    sheet.columns = strcmp(o->layer, "input") == 0 && at_input == o->attribution ? 1 : 2;
    sheet.row = s->row;
    sheet.rows = count;
    return kit_sheet_save(&sheet, path, error);
}

bool cli_report_maps(cli_run *run, xg_error *error)
{
    kit_split split = run->data.count[KIT_TEST] > 0 ? KIT_TEST : KIT_TRAIN;
    int all = run->data.count[split], count = all < MAP_ROWS ? all : MAP_ROWS;
    int most = run->batch.capacity;
    if (count > most) count = most;
    for (int i = 0; i < count; i++) {
        run->picked[i] = run->data.item[split][(int64_t)(2 * i + 1) * all / (2 * count)];
    }
    char path[1024];
    if (!kit_join(path, sizeof path, run->o.out, "maps.png", error)
        || !cli_data_batch(&run->data, &run->batch, split, run->picked, count, false, run->pool,
                           error)) {
        return false;
    }
    sheet_parts *s = (sheet_parts *)calloc(1, sizeof *s);
    if (s == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a sheet");
    xg_mark mark = xg_tape_mark(run->tape);
    bool fine = draw_maps(run, count, s, path, error);
    xg_tape_release(run->tape, mark);
    for (int i = 0; i < MAP_ROWS; i++) kit_picture_free(&s->picture[i]);
    free(s);
    return fine;
}
