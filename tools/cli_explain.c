/* cli_explain.c - `xguide explain`: what a trained network sees in pictures, by every
 * attribution. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char usage[] =
    "xguide explain PICTURE-OR-FOLDER ... --weights FILE [options]\n"
    "Explains the class that the network says (or --class) by every attribution, on one\n"
    "sheet. Prints the three best classes and, where a boxes.csv lies beside a picture, the\n"
    "energy inside the box (EPG).";
static const char examples[] =
    "  xguide explain cat.png --weights squeezenet1_1.safetensors\n"
    "  xguide explain photos --net mobilenet_v2 --weights mobilenet_v2.safetensors --out cats.png\n"
    "  XG_DATA=/data xguide explain cat.png --class 281 --weights squeezenet1_1.safetensors";

enum { MAX_PICTURES = 64, COLUMNS = 5, BEST = 3 };

static const char *const column_names[COLUMNS] = {
    "gradient", "input x gradient", "guided backprop", "integrated gradients", "Grad-CAM"
};

/* What was asked for. */
typedef struct request {
    const char *net, *weights, *out, *classes_file;
    int         size, class_index, steps, threads, cell;
    const char *word[MAX_PICTURES];
    int         words;
} request;

/* One picture and what was found in it. */
typedef struct finding {
    char       *path;
    kit_picture picture;
    xg_real    *map[COLUMNS];      /* [size][size]; shown, smoothed                               */
    double      epg[COLUMNS];
    int         best[BEST];
    double      chance[BEST];
    int         explained;
    xg_box      box;               /* in pixels of the picture                                    */
    bool        boxed;
    char        title[256], caption[COLUMNS][32];
    kit_map     cell[COLUMNS];
} finding;

typedef struct session {
    request   r;
    cli_run   run;                 /* engine and network only                                     */
    kit_names classes;
    finding  *found;
    int       count;
} session;

/* ---- names of classes, pictures, boxes ------------------------------------------------------- */

/* One class a line: "0 n01440764 tench" or just "tench". No file is no error: numbers do. */
static bool read_classes(session *s, xg_error *error)
{
    char path[1024];
    const char *folder = getenv("XG_DATA");
    unsigned char *bytes = NULL;
    size_t count = 0;
    if (s->r.classes_file[0] != 0) snprintf(path, sizeof path, "%s", s->r.classes_file);
    else if (folder == NULL) return true;
    else if (!kit_join(path, sizeof path, folder, "imagenet-samples/classes.txt", error)) {
        return false;
    }
    if (s->r.classes_file[0] == 0 && !kit_is_file(path)) return true;
    if (!kit_read_file(path, 1u << 20, &bytes, &count, error)) return false;
    s->classes.name = (char **)calloc(4096, sizeof *s->classes.name);
    char *line = s->classes.name ? strtok((char *)bytes, "\r\n") : NULL;
    for (; line && s->classes.count < 4096; line = strtok(NULL, "\r\n")) {
        char *name = line + strspn(line, "0123456789\t ");
        if (name[0] == 'n' && strspn(name + 1, "0123456789") == 8) name += 9;
        name += strspn(name, "\t ,:_");
        for (char *c = name; *c; c++) *c = *c == '_' ? ' ' : *c;
        s->classes.name[s->classes.count] = kit_copy_text(name);
        if (s->classes.name[s->classes.count] != NULL) s->classes.count++;
    }
    free(bytes);
    return s->classes.name != NULL || kit_fail(error, XG_ERR_MEMORY, "out of memory for names");
}

static const char *class_name(const session *s, int index, char out[48])
{
    if (index >= 0 && index < s->classes.count) snprintf(out, 48, "%.40s", s->classes.name[index]);
    else snprintf(out, 48, "class %d", index);
    return out;
}

static bool is_picture(const char *name)
{
    static const char *const ends[] = { ".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".PNG", ".JPG" };
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot != NULL && i < sizeof ends / sizeof ends[0]; i++) {
        if (strcmp(dot, ends[i]) == 0) return true;
    }
    return false;
}

static bool add_picture(session *s, const char *path, xg_error *error)
{
    if (s->count == MAX_PICTURES) {
        return kit_fail(error, XG_ERR_ARGUMENT, "a sheet holds %d pictures; give fewer",
                        MAX_PICTURES);
    }
    finding *f = &s->found[s->count];
    f->path = kit_copy_text(path);
    if (f->path == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a path");
    s->count++;
    return kit_picture_load(&f->picture, path, error);
}

static bool add_word(session *s, const char *word, xg_error *error)
{
    kit_names names;
    char path[1024];
    if (!kit_is_folder(word)) return add_picture(s, word, error);
    if (!kit_list_folder(word, false, &names, error)) return false;
    bool fine = true;
    for (int i = 0; i < names.count && fine; i++) {
        if (!is_picture(names.name[i])) continue;
        fine = kit_join(path, sizeof path, word, names.name[i], error)
            && add_picture(s, path, error);
    }
    kit_names_free(&names);
    return fine;
}

/* The first box of the picture in the boxes.csv beside it, if there is one. */
static bool find_box(finding *f, xg_error *error)
{
    char folder[1024], path[1024];
    const char *slash = strrchr(f->path, '/'), *name = slash ? slash + 1 : f->path;
    int length = slash ? (int)(slash - f->path) : 1;
    snprintf(folder, sizeof folder, "%.*s", length, slash ? f->path : ".");
    kit_csv csv;
    if (!kit_join(path, sizeof path, folder, "boxes.csv", error)) return false;
    if (!kit_is_file(path)) return true;
    if (!kit_csv_read(&csv, path, ',', true, error)) return false;
    static const char *const edges[4] = { "x0", "y0", "x1", "y1" };
    int image = kit_csv_column(&csv, "image", error), column[4];
    bool fine = image >= 0;
    for (int i = 0; i < 4 && fine; i++) {
        column[i] = kit_csv_column(&csv, edges[i], error);
        fine = column[i] >= 0;
    }
    for (int row = csv.header ? 1 : 0; row < csv.rows && fine && !f->boxed; row++) {
        if (strcmp(kit_csv_text(&csv, row, image), name) != 0) continue;
        double *edge[4] = { &f->box.x0, &f->box.y0, &f->box.x1, &f->box.y1 };
        for (int i = 0; i < 4 && fine; i++) {
            fine = kit_csv_number(&csv, row, column[i], edge[i], error);
        }
        f->boxed = fine;
    }
    kit_csv_free(&csv);
    return fine;
}

/* ---- explaining ------------------------------------------------------------------------------ */

/* The three best classes, by probability. */
static void rank(const session *s, xg_tensor *logits, finding *f)
{
    xg_tensor *chances = xg_softmax(logits);
    const xg_real *p = xg_data(chances);
    int count = xg_shape_of(logits).c;
    for (int i = 0; i < BEST && !xg_failed(s->run.tape); i++) {
        int best = -1;
        for (int j = 0; j < count; j++) {
            bool taken = false;
            for (int k = 0; k < i; k++) taken = taken || f->best[k] == j - s->run.net.shift;
            if (!taken && (best < 0 || p[j] > p[best])) best = j;
        }
        f->best[i] = best - s->run.net.shift;
        f->chance[i] = best >= 0 ? (double)p[best] : 0;
    }
}

/* All maps at the size of the input: [1,1,size,size]. */
static void make_maps(session *s, xg_scope *scope, xg_tensor *x, xg_tensor *logits, int label,
                      xg_tensor *maps[COLUMNS])
{
    int size = xg_shape_of(x).h;
    xg_tensor *score = xg_pick(logits, &label);
    xg_tensor *features = xg_find(s->run.tape, "features");
    xg_path_options path = { .steps = s->r.steps };
    maps[0] = xg_gradient(score, x);
    maps[1] = xg_input_x_gradient(score, x);
    maps[2] = xg_guided_backprop(score, x);
    maps[3] = xg_integrated_gradients(scope, cli_net_run, x, &label, &path);
    maps[4] = xg_upsample(xg_grad_cam(score, features, NULL), size, size);
}

/* Maps at the input flicker from pixel to pixel: what is shown is a mean over 7x7 of them. EPG
 * is taken from the map as it is. */
static bool keep_maps(session *s, finding *f, xg_tensor *maps[COLUMNS], xg_error *error)
{
    int size = s->r.size;
    size_t plane = (size_t)size * (size_t)size;
    xg_window smooth = { 7, 7, 1, 3, 1, 1 };
    xg_real *mask = (xg_real *)calloc(plane, sizeof *mask);
    if (mask == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a mask");
    if (f->boxed) xg_mask_box(mask, size, size, f->box, f->picture.w, f->picture.h, 0);
    for (int i = 0; i < COLUMNS; i++) {
        const xg_real *value = xg_data(maps[i]);
        if (xg_failed(s->run.tape)) break;
        f->epg[i] = f->boxed ? xg_epg(value, mask, plane) : (double)NAN;
        if (i + 1 < COLUMNS) value = xg_data(xg_avgpool(maps[i], smooth));
        f->map[i] = (xg_real *)malloc(plane * sizeof *f->map[i]);
        if (f->map[i] == NULL || xg_failed(s->run.tape)) break;
        memcpy(f->map[i], value, plane * sizeof *f->map[i]);
    }
    free(mask);
    if (xg_failed(s->run.tape)) return cli_tape_fail(s->run.tape, error);
    return f->map[COLUMNS - 1] != NULL || kit_fail(error, XG_ERR_MEMORY, "out of memory for a map");
}

static bool explain(session *s, finding *f, xg_error *error)
{
    int size = s->r.size;
    kit_picture small;
    if (!kit_picture_resize(&f->picture, size, size, &small, error)) return false;
    xg_tape *tape = s->run.tape;
    xg_mark mark = xg_tape_mark(tape);
    xg_scope scope = xg_scope_new(tape, s->run.params, &s->run.rng, false);
    scope.user = &s->run.net;
    xg_tensor *x = xg_leaf(tape, xg_shape4(1, 3, size, size), NULL);
    xg_real *planes = xg_leaf_data(x);
    bool fine = planes != NULL;
    if (fine) kit_picture_normalise(small.rgb, size, size, s->run.net.norm, planes);
    kit_picture_free(&small);
    xg_tensor *logits = fine ? cli_net_run(&scope, x) : NULL;
    if (fine) rank(s, logits, f);
    fine = fine && !xg_failed(tape);
    if (fine) {
        xg_tensor *maps[COLUMNS];
        f->explained = s->r.class_index >= 0 ? s->r.class_index : f->best[0];
        make_maps(s, &scope, x, logits, f->explained + s->run.net.shift, maps);
        fine = keep_maps(s, f, maps, error);
    } else {
        fine = cli_tape_fail(tape, error);
    }
    xg_tape_release(tape, mark);
    return fine;
}

/* ---- telling --------------------------------------------------------------------------------- */

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool print_findings(const session *s)
{
    kit_table table;
    memset(&table, 0, sizeof table);
    static const char *const heads[] = { "picture", "best classes", "EPG:" };
    for (int i = 0; i < 2; i++) kit_table_cell(&table, "%s", heads[i]);
    for (int i = 0; i < COLUMNS; i++) kit_table_cell(&table, "%s", column_names[i]);
    kit_table_end_row(&table);
    for (int i = 0; i < s->count; i++) {
        const finding *f = &s->found[i];
        char line[256] = "", name[48];
        for (int k = 0; k < BEST; k++) {
            size_t used = strlen(line);
            snprintf(line + used, sizeof line - used, "%s%s %.0f %%", k ? ", " : "",
                     class_name(s, f->best[k], name), 100 * f->chance[k]);
        }
        kit_table_cell(&table, "%s", file_name(f->path));
        kit_table_cell(&table, "%s", line);
        for (int k = 0; k < COLUMNS; k++) {
            if (f->boxed) kit_table_cell(&table, "%.1f %%", 100 * f->epg[k]);
            else kit_table_cell(&table, "-");
        }
        kit_table_end_row(&table);
    }
    printf("energy inside the box (EPG), by attribution:\n");
    bool fine = kit_table_print(&table, stdout, false);
    kit_table_free(&table);
    return fine;
}

static void fill_row(const session *s, finding *f, kit_sheet_row *row)
{
    char first[48], second[48], third[48], about[48];
    snprintf(f->title, sizeof f->title, "%s\n%.20s %.0f %%\n%.20s %.0f %%\n%.20s %.0f %%%s%.24s",
             file_name(f->path), class_name(s, f->best[0], first), 100 * f->chance[0],
             class_name(s, f->best[1], second), 100 * f->chance[1],
             class_name(s, f->best[2], third), 100 * f->chance[2],
             s->r.class_index >= 0 ? "\nfor: " : "",
             s->r.class_index >= 0 ? class_name(s, f->explained, about) : "");
    for (int i = 0; i < COLUMNS; i++) {
        if (f->boxed) snprintf(f->caption[i], sizeof f->caption[i], "EPG %.0f %%", 100 * f->epg[i]);
        kit_map cell = { f->map[i], s->r.size, s->r.size, f->boxed ? f->caption[i] : NULL };
        f->cell[i] = cell;
    }
    kit_sheet_row made = { f->title, &f->picture, NULL, f->boxed ? &f->box : NULL, f->boxed ? 1 : 0,
                           f->cell };
    *row = made;
}

static bool draw_sheet(session *s, xg_error *error)
{
    kit_sheet_row *rows = (kit_sheet_row *)calloc((size_t)s->count, sizeof *rows);
    if (rows == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a sheet");
    for (int i = 0; i < s->count; i++) fill_row(s, &s->found[i], &rows[i]);
    char title[128];
    snprintf(title, sizeof title, "What %s sees", s->r.net);
    kit_sheet sheet;
    memset(&sheet, 0, sizeof sheet);
    sheet.title = title;
    sheet.note = "Red speaks for the class, blue against it. Maps of single pixels are shown as "
                 "means over 7x7; EPG is the share of red inside the box.";
    sheet.column = column_names;
    sheet.columns = COLUMNS;
    sheet.row = rows;
    sheet.rows = s->count;
    sheet.cell = s->r.cell;
    bool fine = kit_sheet_save(&sheet, s->r.out, error);
    free(rows);
    return fine;
}

/* ---- the command ----------------------------------------------------------------------------- */

/* The network's name from that of the weights: "squeezenet1_1_imagenet_fp16.safetensors". */
static const char *guess_net(const char *weights)
{
    static const char *const names[] = {
        "squeezenet", "mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet20", "resnet32",
        "resnet44", "resnet56"
    };
    const char *file = file_name(weights);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strstr(file, names[i]) != NULL) return names[i];
    }
    return "";
}

static bool open_session(session *s, char said[512], xg_error *error)
{
    request *r = &s->r;
    if (!cli_run_engine(&s->run, r->threads, error)
        || !cli_net_find(&s->run.net, r->net, error)) {
        return false;
    }
    if (r->size == 0) r->size = s->run.net.size > 0 ? s->run.net.size : 224;
    if (r->size < 32 || r->size > 1024 || r->steps < 1 || r->steps > 10000) {
        return kit_fail(error, XG_ERR_ARGUMENT, "--size must be between 32 and 1024, and --steps "
                        "between 1 and 10000");
    }
    s->found = (finding *)calloc(MAX_PICTURES, sizeof *s->found);
    if (s->found == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for pictures");
    for (int i = 0; i < r->words; i++) {
        if (!add_word(s, r->word[i], error)) return false;
    }
    if (s->count == 0) {
        return kit_fail(error, XG_ERR_IO, "there is no picture in %.100s", r->word[0]);
    }
    for (int i = 0; i < s->count; i++) {
        if (!find_box(&s->found[i], error)) return false;
    }
    xg_shape input = xg_shape4(1, 3, r->size, r->size);
    return read_classes(s, error)
        && cli_net_make(&s->run.net, s->run.tape, s->run.params, input, 1, r->weights, said, error);
}

static void close_session(session *s)
{
    for (int i = 0; i < s->count; i++) {
        free(s->found[i].path);
        kit_picture_free(&s->found[i].picture);
        for (int k = 0; k < COLUMNS; k++) free(s->found[i].map[k]);
    }
    free(s->found);
    kit_names_free(&s->classes);
    cli_run_close(&s->run);
}

static int run_session(session *s)
{
    xg_error error = { XG_ERR_OK, "" };
    char said[512] = "";
    bool fine = open_session(s, said, &error);
    if (fine) printf("%s: %s\n", s->r.weights, said);
    for (int i = 0; i < s->count && fine && !kit_interrupted(); i++) {
        fine = explain(s, &s->found[i], &error);
    }
    fine = fine && !kit_interrupted() && draw_sheet(s, &error);
    if (!fine) return cli_complain(CLI_FAILED, &error);
    print_findings(s);
    printf("sheet: %s\n", s->r.out);
    return CLI_OK;
}

int cli_explain(int argc, char **argv)
{
    session *s = (session *)calloc(1, sizeof *s);
    xg_error error = { XG_ERR_OK, "" };
    if (s == NULL) return CLI_FAILED;
    request defaults = { "", "", "explain.png", "", 0, -1, 32, 0, 200, { NULL }, 0 };
    s->r = defaults;
    request *r = &s->r;
    kit_arg table[] = {
        { "weights", 0, KIT_ARG_TEXT, &r->weights, "FILE", "safetensors" },
        { "net", 0, KIT_ARG_TEXT, &r->net, "NAME", "squeezenet, mobilenet_v2, resnet18 ...; "
          "default: as the file is called" },
        { "class", 0, KIT_ARG_INT, &r->class_index, "N", "explain this class, not the best" },
        { "classes", 0, KIT_ARG_TEXT, &r->classes_file, "FILE", "names, one a line; default "
          "XG_DATA/imagenet-samples/classes.txt" },
        { "size", 0, KIT_ARG_INT, &r->size, "PIXELS", "of the input; 0: as it was trained" },
        { "steps", 0, KIT_ARG_INT, &r->steps, "N", "of integrated gradients" },
        { "cell", 0, KIT_ARG_INT, &r->cell, "PIXELS", "of a picture on the sheet" },
        { "out", 0, KIT_ARG_TEXT, &r->out, "FILE", "the sheet, a PNG" },
        { "threads", 0, KIT_ARG_INT, &r->threads, "N", "0: one for each processor" }
    };
    int rows = (int)(sizeof table / sizeof table[0]), code = CLI_USAGE;
    kit_args_result read = cli_args_read(argc, argv, table, rows, usage, examples, r->word,
                                         MAX_PICTURES, &r->words, &error);
    if (r->net[0] == 0) r->net = guess_net(r->weights);
    if (read == KIT_ARGS_HELP) code = CLI_OK;
    else if (read == KIT_ARGS_BAD) code = cli_complain(CLI_USAGE, &error);
    else if (r->words == 0 || r->weights[0] == 0 || r->net[0] == 0) {
        kit_fail(&error, XG_ERR_ARGUMENT, "explain needs pictures, --weights FILE, and --net NAME "
                 "if the file is not called after its network; see xguide explain --help");
        code = cli_complain(CLI_USAGE, &error);
    } else {
        kit_catch_interrupt();
        code = run_session(s);
    }
    close_session(s);
    free(s);
    return code;
}
