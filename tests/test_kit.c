/* test_kit.c - the kit: scenes, readers, batches, pictures, logs, threads, command line. */
#define _POSIX_C_SOURCE 200809L
#include "test.h"

#include <pthread.h>
#include <time.h>

#include "kit.h"

/* -------------------------------------------------------------------------------------- scratch -- */

/* A folder for files of this run, removed at the end of main by remove_scratch. */
static char scratch[64];

static const char *in_scratch(const char *name, char out[256])
{
    if (scratch[0] == '\0') {
        strcpy(scratch, "/tmp/test_kit_XXXXXX");
        if (mkdtemp(scratch) == NULL) {
            printf("  cannot make a folder in /tmp\n");
            exit(1);
        }
    }
    snprintf(out, 256, "%s/%s", scratch, name);
    return out;
}

static void write_text(const char *name, const char *text)
{
    char path[256], folder[256];
    in_scratch(name, path);
    strcpy(folder, path);
    *strrchr(folder, '/') = '\0';
    REQUIRE(kit_make_folder(folder, NULL));
    REQUIRE(kit_write_file(path, text, strlen(text), NULL));
}

static void remove_tree(const char *path)
{
    kit_names names;
    char inner[512];
    for (int folders = 0; folders < 2; folders++) {
        if (!kit_list_folder(path, folders == 1, &names, NULL)) return;
        for (int i = 0; i < names.count; i++) {
            snprintf(inner, sizeof inner, "%s/%s", path, names.name[i]);
            if (folders == 1) remove_tree(inner);
            else remove(inner);
        }
        kit_names_free(&names);
    }
    remove(path);
}

/* A picture of one colour, as a PNG in the scratch folder. */
static void write_picture(const char *name, int w, int h, unsigned colour)
{
    char path[256];
    kit_picture p;
    write_text(name, "");
    REQUIRE(kit_picture_new(&p, w, h, colour, NULL));
    CHECK(kit_picture_save(&p, in_scratch(name, path), NULL));
    kit_picture_free(&p);
}

/* The error holds this code, and its sentence this piece of text. */
#define CHECK_SAYS(error, expected, piece)                                                          \
    do { CHECK_ERROR(&(error), expected);                                                           \
         if (strstr((error).text, piece) == NULL) {                                                 \
             test_fail_(__FILE__, __LINE__, "the sentence holds " #piece);                          \
             printf("      it is: %s\n", (error).text); } } while (0)

static xg_error no_error(void)
{
    xg_error error;
    memset(&error, 0, sizeof error);
    return error;
}

/* ----------------------------------------------------------------------------------------- base -- */

static void test_errors_keep_the_first(void)
{
    xg_error error = no_error();
    CHECK(!kit_fail(&error, XG_ERR_IO, "first %d", 1));
    CHECK(!kit_fail(&error, XG_ERR_SHAPE, "second"));
    CHECK(error.code == XG_ERR_IO && strcmp(error.text, "first 1") == 0);
    CHECK(!kit_fail(NULL, XG_ERR_IO, "nobody listens"));
}

static void test_files(void)
{
    char path[256], joined[16];
    unsigned char *bytes = NULL;
    size_t count = 0;
    xg_error error = no_error();
    write_text("deep/er/file.txt", "hello");
    CHECK(kit_is_file(in_scratch("deep/er/file.txt", path)));
    CHECK(!kit_is_file(in_scratch("deep/er", path)) && kit_is_folder(path));
    REQUIRE(kit_read_file(in_scratch("deep/er/file.txt", path), 100, &bytes, &count, &error));
    CHECK(count == 5 && strcmp((char *)bytes, "hello") == 0);
    free(bytes);
    CHECK(!kit_read_file(path, 4, &bytes, &count, &error));
    CHECK_SAYS(error, XG_ERR_UNSUPPORTED, "limit of 4");
    error = no_error();
    CHECK(!kit_read_file(in_scratch("missing", path), 4, &bytes, &count, &error));
    CHECK_SAYS(error, XG_ERR_IO, "missing");
    error = no_error();
    CHECK(!kit_write_file(in_scratch("deep/no/such/x", path), "a", 1, &error));
    CHECK_ERROR(&error, XG_ERR_IO);
    error = no_error();
    CHECK(!kit_make_folder(in_scratch("deep/er/file.txt/below", path), &error));
    CHECK_ERROR(&error, XG_ERR_IO);
    CHECK(kit_join(joined, sizeof joined, "a", "b", NULL) && strcmp(joined, "a/b") == 0);
    CHECK(kit_join(joined, sizeof joined, "a/", "b", NULL) && strcmp(joined, "a/b") == 0);
    CHECK(kit_join(joined, sizeof joined, "a", "/b", NULL) && strcmp(joined, "/b") == 0);
    CHECK(!kit_join(joined, sizeof joined, "0123456789", "012345", NULL));
}

static void test_human_numbers(void)
{
    char out[32];
    CHECK(strcmp(kit_human_time(0.42, out), "0.4 s") == 0);
    CHECK(strcmp(kit_human_time(59.97, out), "1 min 00 s") == 0);
    CHECK(strcmp(kit_human_time(200, out), "3 min 20 s") == 0);
    CHECK(strcmp(kit_human_time(7500, out), "2 h 05 min") == 0);
    CHECK(strcmp(kit_human_time(-1, out), "?") == 0);
    CHECK(strcmp(kit_human_count(950, out), "950") == 0);
    CHECK(strcmp(kit_human_count(11170, out), "11.2 k") == 0);
    CHECK(strcmp(kit_human_count(999999, out), "1.00 M") == 0);
    CHECK(strcmp(kit_human_bytes(512, out), "512 B") == 0);
    CHECK(strcmp(kit_human_bytes(3.25 * 1024 * 1024, out), "3.25 MiB") == 0);
}

/* ------------------------------------------------------------------------------------------ csv -- */

static void test_csv_dialects(void)
{
    char path[256];
    kit_csv csv;
    xg_error error = no_error();
    int n = 0;
    double x = 0;
    write_text("a.csv", "\xEF\xBB\xBFname,\"num,ber\",text\r\n"
               "a,1,\"say \"\"hi\"\", twice\"\r\n\r\n\"two\nlines\",2.5,\r\nlast,3,x");
    REQUIRE(kit_csv_read(&csv, in_scratch("a.csv", path), ',', true, &error));
    CHECK(csv.rows == 4 && csv.columns == 3);
    CHECK(kit_csv_column(&csv, "name", NULL) == 0);
    CHECK(kit_csv_column(&csv, "num,ber", NULL) == 1);
    CHECK(strcmp(kit_csv_text(&csv, 1, 2), "say \"hi\", twice") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 2, 0), "two\nlines") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 2, 2), "") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 3, 2), "x") == 0);
    CHECK(csv.line[1] == 2 && csv.line[2] == 4 && csv.line[3] == 6);
    CHECK(kit_csv_int(&csv, 1, 1, 0, 9, &n, NULL) && n == 1);
    CHECK(kit_csv_number(&csv, 2, 1, &x, NULL) && x > 2.49 && x < 2.51);
    CHECK(!kit_csv_int(&csv, 2, 1, 0, 9, &n, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "a.csv line 4: column 'num,ber' should be a whole number");
    error = no_error();
    CHECK(!kit_csv_int(&csv, 3, 1, 0, 2, &n, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "from 0 to 2, not '3'");
    error = no_error();
    CHECK(!kit_csv_number(&csv, 2, 2, &x, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "line 4");
    error = no_error();
    CHECK(kit_csv_column(&csv, "label", &error) == -1);
    CHECK_SAYS(error, XG_ERR_FORMAT, "no column 'label'; there are: name, num,ber, text");
    kit_csv_free(&csv);
}

static void test_csv_blanks_separate(void)
{
    char path[256];
    kit_csv csv;
    write_text("b.txt", "1 2.5   3 \n 4  5 6\r\n7 8 9");
    REQUIRE(kit_csv_read(&csv, in_scratch("b.txt", path), ' ', false, NULL));
    CHECK(csv.rows == 3 && csv.columns == 3);
    CHECK(strcmp(kit_csv_text(&csv, 0, 2), "3") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 1, 0), "4") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 2, 2), "9") == 0);
    kit_csv_free(&csv);
}

static void test_csv_errors(void)
{
    static const struct { const char *text, *says; } bad[] = {
        { "a,b\n1,2\n3\n",        "line 3: 1 cells where the first line has 2" },
        { "a,b\n1,2,3\n",         "line 2: 3 cells" },
        { "a,b\n\"1,2\n3,4\n",    "line 2: a quoted cell is never closed" },
        { "a,b\n\"1\"x,2\n",      "line 2: text follows a closing quote" },
        { "",                     "empty" },
        { "\n\n",                 "empty" },
    };
    char path[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kit_csv csv;
        xg_error error = no_error();
        write_text("bad.csv", bad[i].text);
        CHECK(!kit_csv_read(&csv, in_scratch("bad.csv", path), ',', true, &error));
        CHECK_SAYS(error, XG_ERR_FORMAT, bad[i].says);
        CHECK(strstr(error.text, "bad.csv") != NULL);
        CHECK(csv.text == NULL);
    }
}

/* --------------------------------------------------------------------------------------- scenes -- */

/* Every mask is 0 or 1, not empty, inside its box, and the box is tight. */
static void check_masks(const kit_set *set)
{
    int wrong = 0;
    for (int i = 0; i < set->count; i++) {
        const xg_real *mask = set->masks + (size_t)i * (size_t)(set->h * set->w);
        int inside = 0, edge[4] = { 0, 0, 0, 0 };
        xg_box b = set->box[i];
        for (int y = 0; y < set->h; y++) {
            for (int x = 0; x < set->w; x++) {
                double m = (double)mask[y * set->w + x];
                bool in_box = x >= b.x0 && x < b.x1 && y >= b.y0 && y < b.y1;
                if (m != 0 && m != 1) wrong++;
                if (m > 0 && !in_box) wrong++;
                if (!(m > 0)) continue;
                inside++;
                edge[0] += x < b.x0 + 1;
                edge[1] += y < b.y0 + 1;
                edge[2] += x >= b.x1 - 1;
                edge[3] += y >= b.y1 - 1;
            }
        }
        if (inside == 0 || !edge[0] || !edge[1] || !edge[2] || !edge[3]) wrong++;
        if (b.x0 < 0 || b.y0 < 0 || b.x1 > set->w || b.y1 > set->h) wrong++;
    }
    CHECK(wrong == 0);
}

static void test_shapes_have_masks_and_balance(void)
{
    for (int kind = 0; kind < 4; kind++) {
        for (int variant = 0; variant < 4; variant++) {
            kit_shape_options o;
            kit_set set;
            xg_rng rng = xg_rng_seed((uint64_t)(kind + 10 * variant));
            memset(&o, 0, sizeof o);
            o.kind = (kit_shapes)kind;
            o.rotation = variant == 1 ? 40 : 0;
            o.outline = variant == 2 ? 2 : 0;
            o.positive = variant == 3 ? 0.1 : 0.5;
            REQUIRE(kit_draw_shapes(&set, 60, &o, &rng, NULL));
            int positive = 0;
            for (int i = 0; i < 60; i++) positive += set.label[i];
            CHECK(positive == (variant == 3 ? 6 : 30));
            CHECK(set.classes == 2 && set.channels == 1 && set.h == 64 && set.annotated[0]);
            check_masks(&set);
            kit_set_free(&set);
        }
    }
}

/* The pentagon is part of its triangle, the head part of its fox or cat, and the masks are the same. */
static void test_test_shapes_are_parts(void)
{
    for (int kind = 0; kind < 4; kind += 2) {
        kit_shape_options o;
        kit_set whole, part;
        memset(&o, 0, sizeof o);
        xg_rng a = xg_rng_seed(5), b = xg_rng_seed(5);
        o.kind = (kit_shapes)kind;
        REQUIRE(kit_draw_shapes(&whole, 40, &o, &a, NULL));
        o.kind = (kit_shapes)(kind + 1);
        REQUIRE(kit_draw_shapes(&part, 40, &o, &b, NULL));
        size_t count = 40 * 64 * 64, bright = 0, shared = 0, beyond = 0;
        for (size_t i = 0; i < count; i++) {
            bright += whole.pixels[i] > 0;
            shared += part.pixels[i] > 0 && whole.pixels[i] > 0;
            beyond += part.pixels[i] > 0 && !(whole.pixels[i] > 0);
        }
        CHECK(beyond == 0 && shared > 0 && shared < bright);
        CHECK(memcmp(whole.label, part.label, 40 * sizeof(int)) == 0);
        CHECK(memcmp(whole.masks, part.masks, count * sizeof(xg_real)) == 0);
        CHECK(a.state == b.state);
        kit_set_free(&whole);
        kit_set_free(&part);
    }
}

/* Up and down: the mean height of bright pixels lies below the middle of the box for class 1. */
static void test_triangles_point_where_labels_say(void)
{
    kit_set set;
    xg_rng rng = xg_rng_seed(2);
    REQUIRE(kit_draw_shapes(&set, 50, NULL, &rng, NULL));
    int right = 0;
    for (int i = 0; i < 50; i++) {
        double sum = 0, count = 0;
        for (int y = 0; y < 64; y++) {
            for (int x = 0; x < 64; x++) {
                if (!(set.pixels[(i * 64 + y) * 64 + x] > 0)) continue;
                sum += y + 0.5;
                count++;
            }
        }
        double middle = 0.5 * (set.box[i].y0 + set.box[i].y1);
        right += (sum / count > middle) == (set.label[i] == 1);
    }
    CHECK(right == 50);
    kit_set_free(&set);
}

/* Every placement of the spurious square, read back from the pictures. */
static void test_spurious_squares(void)
{
    for (int kind = 0; kind < 4; kind += 2) {
        for (int spurious = 0; spurious < 3; spurious++) {
            kit_shape_options o;
            kit_set set;
            xg_rng rng = xg_rng_seed(3);
            memset(&o, 0, sizeof o);
            o.kind = (kit_shapes)kind;
            o.spurious = (kit_spurious)spurious;
            REQUIRE(kit_draw_shapes(&set, 40, &o, &rng, NULL));
            int wrong = 0;
            for (int i = 0; i < 40; i++) {
                int grey = 0, left = 64, top = 64;
                for (int y = 0; y < 64; y++) {
                    for (int x = 0; x < 64; x++) {
                        if (fabs((double)set.pixels[(i * 64 + y) * 64 + x] - 0.5) > 0.01) continue;
                        grey++;
                        if (x < left) left = x;
                        if (y < top) top = y;
                    }
                }
                bool one = set.label[i] == 1;
                if (spurious == 0) wrong += grey != 0;
                else if (kind == KIT_FOX_CAT) wrong += left != (one ? 0 : 60) || top != 0;
                else if (spurious == 1) wrong += left != (one ? 0 : 60);
                else wrong += left != 0 || top != (one ? 60 : 0);
                if (spurious != 0 && grey != 16) wrong++;
            }
            CHECK(wrong == 0);
            kit_set_free(&set);
        }
    }
}

static void test_shape_errors(void)
{
    kit_shape_options o;
    kit_set set;
    xg_rng rng = xg_rng_seed(1);
    xg_error error = no_error();
    memset(&o, 0, sizeof o);
    o.half_max = 40;
    CHECK(!kit_draw_shapes(&set, 10, &o, &rng, &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "do not fit");
    CHECK(set.pixels == NULL);
    error = no_error();
    memset(&o, 0, sizeof o);
    o.positive = 1.5;
    CHECK(!kit_draw_shapes(&set, 10, &o, &rng, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    error = no_error();
    CHECK(!kit_draw_shapes(&set, 0, NULL, &rng, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
}

/* Share of samples whose decoy has the label's colour. */
static double agreement(const kit_set *set)
{
    int same = 0;
    for (int i = 0; i < set->count; i++) {
        same += set->group[i] == set->label[i] * set->classes + set->label[i];
    }
    return (double)same / set->count;
}

static void test_decoy_rules(void)
{
    static const double expected[3] = { 1, 0.25, 0 };
    kit_set set[4];
    for (int rule = 0; rule < 4; rule++) {
        kit_decoy_options o;
        xg_rng rng = xg_rng_seed(7);
        memset(&o, 0, sizeof o);
        o.rule = (kit_decoy_rule)rule;
        REQUIRE(kit_draw_decoy(&set[rule], 800, &o, &rng, NULL));
        int seen[4] = { 0, 0, 0, 0 };
        for (int i = 0; i < 800; i++) seen[set[rule].label[i]]++;
        CHECK(seen[0] == 200 && seen[1] == 200 && seen[2] == 200 && seen[3] == 200);
        check_masks(&set[rule]);
    }
    for (int rule = 0; rule < 3; rule++) {
        CHECK_NEAR(agreement(&set[rule]), expected[rule], rule == 1 ? 0.06 : 1e-12);
    }
    /* The same generator draws the same objects whatever the rule. */
    size_t plane = 32 * 32;
    CHECK(memcmp(set[0].masks, set[1].masks, 800 * plane * sizeof(xg_real)) == 0);
    CHECK(memcmp(set[0].label, set[2].label, 800 * sizeof(int)) == 0);
    /* Where a scene has a decoy and its twin has none, they differ outside the object only. */
    size_t inside = 0, outside = 0;
    for (size_t i = 0; i < 800; i++) {
        for (size_t k = 0; k < plane; k++) {
            bool differs = false;
            for (size_t c = 0; c < 3; c++) {
                size_t at = (3 * i + c) * plane + k;
                differs = differs || set[0].pixels[at] < set[3].pixels[at]
                       || set[0].pixels[at] > set[3].pixels[at];
            }
            if (differs && set[0].masks[i * plane + k] > 0) inside++;
            else if (differs) outside++;
        }
    }
    CHECK(inside == 0 && outside > 800 * 20);
    for (int rule = 0; rule < 4; rule++) kit_set_free(&set[rule]);
}

static void test_decoy_options(void)
{
    kit_decoy_options o;
    kit_set set;
    xg_rng rng = xg_rng_seed(7);
    xg_error error = no_error();
    memset(&o, 0, sizeof o);
    o.broken = 0.4;
    o.classes = 6;
    o.size = 48;
    REQUIRE(kit_draw_decoy(&set, 1200, &o, &rng, NULL));
    CHECK(set.h == 48 && set.classes == 6 && set.groups == 36);
    CHECK_NEAR(agreement(&set), 0.6 + 0.4 / 6, 0.05);
    int low = 0;
    for (size_t i = 0; i < 1200 * 3 * 48 * 48; i++) {
        low += !(set.pixels[i] >= 0 && set.pixels[i] <= 1);
    }
    CHECK(low == 0);
    kit_set_free(&set);
    o.classes = 7;
    CHECK(!kit_draw_decoy(&set, 10, &o, &rng, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    error = no_error();
    o.classes = 4;
    o.decoy_radius = 0.3;
    CHECK(!kit_draw_decoy(&set, 10, &o, &rng, &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "radii");
    CHECK(strcmp(kit_decoy_class(3), "cross") == 0 && strcmp(kit_decoy_class(9), "?") == 0);
}

static void test_annotated_fraction(void)
{
    static bool a[4795], b[4795], c[4795];
    int in_a = 0, same = 0, in_both = 0;
    kit_annotate(a, 4795, 0.01, 0);
    kit_annotate(b, 4795, 0.01, 0);
    kit_annotate(c, 4795, 0.01, 1);
    for (int i = 0; i < 4795; i++) {
        in_a += a[i];
        same += a[i] == b[i];
        in_both += a[i] && c[i];
    }
    CHECK(in_a == 47);                      /* int(0.01 * 4795) */
    CHECK(same == 4795);
    CHECK(in_both < 10);                    /* half a one is expected of chance */
    kit_annotate(a, 10, 1.0, 3);
    for (int i = 0; i < 10; i++) CHECK(a[i]);
    kit_annotate(a, 10, 0.0, 3);
    for (int i = 0; i < 10; i++) CHECK(!a[i]);
}

/* ---------------------------------------------------------------------------------------- order -- */

static void test_order_is_a_permutation_and_repeats(void)
{
    kit_order a, b;
    int out[8], seen[20], first[20], epoch_two[20], n, at = 0, sizes = 0;
    memset(seen, 0, sizeof seen);
    REQUIRE(kit_order_new(&a, NULL, 20, true, xg_rng_seed(4), NULL));
    REQUIRE(kit_order_new(&b, NULL, 20, true, xg_rng_seed(4), NULL));
    while ((n = kit_order_next(&a, 8, out)) > 0) {
        sizes = sizes * 10 + n;
        for (int i = 0; i < n; i++) {
            seen[out[i]]++;
            first[at++] = out[i];
        }
    }
    CHECK(sizes == 884 && at == 20 && a.epoch == 1);
    for (int i = 0; i < 20; i++) CHECK(seen[i] == 1);
    for (at = 0; (n = kit_order_next(&a, 8, epoch_two + at)) > 0; at += n) continue;
    CHECK(at == 20 && memcmp(first, epoch_two, sizeof first) != 0);
    for (int i = 0; i < 20; i++) CHECK(kit_order_next(&b, 1, out) == 1 && out[0] == first[i]);
    kit_order_free(&a);
    kit_order_free(&b);
    REQUIRE(kit_order_new(&a, NULL, 3, false, xg_rng_seed(4), NULL));
    CHECK(kit_order_next(&a, 8, out) == 3 && out[0] == 0 && out[1] == 1 && out[2] == 2);
    kit_order_free(&a);
}

static void test_order_resumes(void)
{
    static const int items[7] = { 3, 1, 4, 15, 9, 2, 6 };
    kit_order a, b;
    char text[96];
    int x[3], y[3];
    xg_error error = no_error();
    REQUIRE(kit_order_new(&a, items, 7, true, xg_rng_seed(8), NULL));
    for (int i = 0; i < 10; i++) kit_order_next(&a, 2, x);      /* into the third epoch */
    kit_order_save(&a, text);
    REQUIRE(kit_order_new(&b, items, 7, true, xg_rng_seed(0), NULL));
    REQUIRE(kit_order_restore(&b, text, NULL));
    for (int i = 0; i < 30; i++) {
        int n = kit_order_next(&a, 3, x), m = kit_order_next(&b, 3, y);
        CHECK(n == m && memcmp(x, y, (size_t)n * sizeof *x) == 0 && a.epoch == b.epoch);
    }
    kit_order_free(&b);
    CHECK(!kit_order_restore(&a, "nonsense", &error));
    CHECK_ERROR(&error, XG_ERR_FORMAT);
    error = no_error();
    CHECK(!kit_order_restore(&a, "8 samples, epoch 0, at 0, state 1", &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "7 now");
    kit_order_free(&a);
}

static void test_batch_from_set(void)
{
    kit_set set;
    kit_batch batch;
    xg_rng rng = xg_rng_seed(1);
    xg_error error = no_error();
    const int index[3] = { 5, 0, 5 }, beyond[1] = { 12 };
    REQUIRE(kit_draw_decoy(&set, 12, NULL, &rng, NULL));
    REQUIRE(kit_batch_new(&batch, 3, 3, 32, 32, NULL));
    set.annotated[0] = false;
    CHECK(kit_batch_from_set(&batch, &set, index, 3, NULL) && batch.count == 3);
    size_t size = 3 * 32 * 32;
    CHECK(memcmp(batch.pixels, set.pixels + 5 * size, size * sizeof(xg_real)) == 0);
    CHECK(memcmp(batch.pixels + size, set.pixels, size * sizeof(xg_real)) == 0);
    CHECK(memcmp(batch.masks + 2048, set.masks + 5 * 1024, 1024 * sizeof(xg_real)) == 0);
    CHECK(batch.label[0] == set.label[5] && batch.group[1] == set.group[0]);
    CHECK(batch.weight[0] > 0 && !(batch.weight[1] > 0) && batch.index[2] == 5);
    CHECK(!kit_batch_from_set(&batch, &set, beyond, 1, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    CHECK(!kit_batch_from_set(&batch, &set, index, 4, NULL));
    kit_batch_free(&batch);
    REQUIRE(kit_batch_new(&batch, 3, 1, 32, 32, NULL));
    CHECK(!kit_batch_from_set(&batch, &set, index, 3, NULL));
    kit_batch_free(&batch);
    kit_set_free(&set);
}

/* -------------------------------------------------------------------------------------- readers -- */

static void test_class_folders(void)
{
    char path[256], name[64];
    kit_photos photos;
    kit_photos_options o;
    xg_error error = no_error();
    memset(&o, 0, sizeof o);
    for (int i = 0; i < 10; i++) {
        snprintf(name, sizeof name, "classes/%s/%d.png", i % 2 ? "cat" : "ant", i);
        write_picture(name, 8, 4, i % 2 ? 0xff0000u : 0x0000ffu);
    }
    write_text("classes/cat/readme.txt", "not a picture");
    write_text("classes/boxes.csv", "image,what,x0,y0,x1,y1\ncat/1.png,a,0,0,4,4\n"
               "ant/0.png,b,1,1,2,2\ncat/1.png,c,4,2,8,4\n");
    o.size = 16;
    o.val = 0.2;
    o.test = 0.4;
    REQUIRE(kit_photos_open(&photos, in_scratch("classes", path), &o, &error));
    CHECK(photos.count == 10 && photos.classes == 2);
    CHECK(strcmp(photos.class_name[0], "ant") == 0 && strcmp(photos.class_name[1], "cat") == 0);
    CHECK(kit_photos_split(&photos, KIT_VAL, NULL) == 2);
    CHECK(kit_photos_split(&photos, KIT_TEST, NULL) == 4);
    CHECK(kit_photos_split(&photos, KIT_TRAIN, NULL) == 4);
    CHECK(photos.boxes == 3);
    for (int i = 0; i < 10; i++) {
        const kit_photo *p = &photos.photo[i];
        bool first_cat = strcmp(p->name, "cat/1.png") == 0;
        CHECK(p->label == (strncmp(p->name, "cat", 3) == 0));
        CHECK(p->boxes == (first_cat ? 2 : strcmp(p->name, "ant/0.png") == 0 ? 1 : 0));
        if (first_cat) CHECK(strcmp(photos.box_name[p->first_box + 1], "c") == 0);
    }
    kit_photos again;
    REQUIRE(kit_photos_open(&again, path, &o, NULL));
    for (int i = 0; i < 10; i++) CHECK(photos.photo[i].split == again.photo[i].split);
    kit_photos_free(&again);
    kit_photos_free(&photos);
    write_text("classes/boxes.csv", "image,what,x0,y0,x1,y1\ndog/1.png,a,0,0,4,4\n");
    CHECK(!kit_photos_open(&photos, path, &o, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "boxes.csv line 2: there is no picture 'dog/1.png'");
    error = no_error();
    write_text("classes/boxes.csv", "image,what,x0,y0,x1,y1\ncat/1.png,a,0,0,0,4\n");
    CHECK(!kit_photos_open(&photos, path, &o, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "is empty");
    error = no_error();
    CHECK(!kit_photos_open(&photos, in_scratch("nowhere", path), NULL, &error));
    CHECK_SAYS(error, XG_ERR_IO, "nowhere");
}

static void test_split_folders(void)
{
    char path[256];
    kit_photos photos;
    xg_error error = no_error();
    write_picture("splits/train/a/1.png", 4, 4, 0);
    write_picture("splits/train/b/1.png", 4, 4, 0);
    write_picture("splits/test/b/7.png", 4, 4, 0);
    REQUIRE(kit_photos_open(&photos, in_scratch("splits", path), NULL, &error));
    CHECK(photos.count == 3 && photos.photo[2].split == KIT_TEST && photos.photo[2].label == 1);
    kit_photos_free(&photos);
    write_picture("splits/test/c/7.png", 4, 4, 0);
    CHECK(!kit_photos_open(&photos, path, NULL, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "test/c");
}

static const char bird_list[] = "img_id,img_filename,y,split,place,place_filename\r\n"
    "2,x/a.png,1,0,1,\r\n7,x/b.png,0,0,0,\r\n9,x/c.png,1,2,0,\r\n";

static void write_birds(const char *list, const char *boxes)
{
    write_picture("birds/x/a.png", 20, 10, 0x102030u);
    write_picture("birds/x/b.png", 20, 10, 0xffffffu);
    write_picture("birds/x/c.png", 20, 10, 0x000000u);
    write_text("birds/metadata.csv", list);
    write_text("birds/bounding_boxes.txt", boxes);
}

static void test_waterbirds_layout(void)
{
    char path[256];
    kit_photos photos;
    kit_photos_options o;
    memset(&o, 0, sizeof o);
    write_birds(bird_list, "1 0 0 5 5\n9 10.0 5.0 10.0 5.0\n2 0.0 0.0 10.0 10.0\n");
    REQUIRE(kit_photos_open(&photos, in_scratch("birds", path), NULL, NULL));
    CHECK(photos.count == 3 && photos.groups == 4 && photos.classes == 2 && photos.boxes == 2);
    CHECK(photos.photo[0].label == 1 && photos.photo[0].place == 1 && photos.photo[0].group == 3);
    CHECK(photos.photo[2].label == 1 && photos.photo[2].group == 2);
    CHECK(photos.photo[2].split == KIT_TEST && photos.photo[1].boxes == 0);
    CHECK_NEAR(photos.box[photos.photo[2].first_box].x1, 20, 1e-12);
    CHECK(strcmp(photos.class_name[1], "waterbird") == 0);
    kit_photos_free(&photos);
    o.place_task = true;
    REQUIRE(kit_photos_open(&photos, path, &o, NULL));
    CHECK(photos.photo[2].label == 0 && photos.photo[2].group == 2);
    CHECK(strcmp(photos.class_name[1], "water") == 0);
    kit_photos_free(&photos);
}

static void test_waterbirds_errors(void)
{
    static const struct { const char *list, *boxes, *says; } bad[] = {
        { "img_id,img_filename,y,split\n2,x/a.png,1,0\n", "", "no column 'place'" },
        { "img_id,img_filename,y,split,place\n2,x/a.png,2,0,1\n", "",
          "metadata.csv line 2: column 'y' should be a whole number from 0 to 1, not '2'" },
        { "img_id,img_filename,y,split,place\n2,x/z.png,1,0,1\n", "", "line 2: there is no picture" },
        { bird_list, "2 0.0 0.0 ten 10.0\n", "bounding_boxes.txt line 1: column 4" },
        { bird_list, "2 0.0 0.0 10.0\n", "five columns" },
        { "img_id,img_filename,y,split,place\n", "", "holds no pictures" },
    };
    char path[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kit_photos photos;
        xg_error error = no_error();
        write_birds(bad[i].list, bad[i].boxes);
        CHECK(!kit_photos_open(&photos, in_scratch("birds", path), NULL, &error));
        CHECK(error.code != XG_ERR_OK && strstr(error.text, bad[i].says) != NULL);
        if (strstr(error.text, bad[i].says) == NULL) printf("      it is: %s\n", error.text);
        CHECK(photos.photo == NULL);
    }
}

/* Left half of the mask is the mirror of the right: a box in one corner, flipped or not. */
static void test_batch_from_photos(void)
{
    char path[256];
    kit_photos photos;
    kit_photos_options o;
    kit_view view;
    kit_batch batch;
    const int index[3] = { 0, 1, 2 };
    memset(&o, 0, sizeof o);
    memset(&view, 0, sizeof view);
    write_birds(bird_list, "2 0.0 0.0 10.0 5.0\n9 10 5 10 5\n");
    o.size = 16;
    REQUIRE(kit_photos_open(&photos, in_scratch("birds", path), &o, NULL));
    REQUIRE(kit_batch_new(&batch, 4, 3, 16, 16, NULL));
    REQUIRE(kit_photos_annotate(&photos, 0.5, 0, NULL));        /* one of the two of training */
    kit_pool *pool = kit_pool_new(2, NULL);
    REQUIRE(kit_batch_from_photos(&batch, &photos, index, 3, &view, NULL, pool, NULL));
    CHECK_NEAR((double)batch.pixels[0] * 255, 0x10, 1e-4);
    CHECK_NEAR((double)batch.pixels[512] * 255, 0x30, 1e-4);
    CHECK_NEAR((double)batch.pixels[768] * 255, 255, 1e-4);
    double sum[3] = { 0, 0, 0 };
    for (int i = 0; i < 768; i++) sum[i / 256] += (double)batch.masks[i];
    CHECK_NEAR(sum[0], 64, 1e-9);           /* 20 x 10 to 16 x 16: columns 0..7, rows 0..7 */
    CHECK(batch.masks[0] > 0 && !(batch.masks[8] > 0) && !(batch.masks[8 * 16] > 0));
    CHECK_NEAR(sum[1], 0, 1e-9);
    CHECK_NEAR(sum[2], 49, 1e-9);           /* columns and rows 8..14: the last is never inside */
    CHECK(!(batch.weight[1] > 0) && batch.weight[2] > 0);       /* no box; a box of the test */
    CHECK(photos.photo[0].w == 20 && photos.photo[0].pixels != NULL);
    view.outside = true;
    view.all_boxes = true;
    REQUIRE(kit_batch_from_photos(&batch, &photos, index, 3, &view, NULL, pool, NULL));
    CHECK(!(batch.masks[0] > 0) && batch.masks[8] > 0 && batch.weight[0] > 0);
    kit_pool_free(pool);
    kit_batch_free(&batch);
    kit_photos_free(&photos);
}

/* A picture whose left half is red, with a box round that half: whatever the view cuts and mirrors,
 * the mask stays on the red (to one pixel, where the half ends). */
static void test_views_move_masks_with_pictures(void)
{
    char path[256];
    kit_picture p;
    kit_photos photos;
    kit_photos_options o;
    kit_view view;
    kit_batch batch, twin;
    const int index[1] = { 0 };
    memset(&o, 0, sizeof o);
    memset(&view, 0, sizeof view);
    write_text("flat/half.png", "");
    REQUIRE(kit_picture_new(&p, 40, 20, KIT_BLACK, NULL));
    kit_draw_rect(&p, 0, 0, 20, 20, 0xff0000u, 1);
    REQUIRE(kit_picture_save(&p, in_scratch("flat/half.png", path), NULL));
    kit_picture_free(&p);
    write_text("flat/boxes.csv", "image,what,x0,y0,x1,y1\nhalf.png,red,0,0,20,20\n");
    o.size = 32;
    REQUIRE(kit_photos_open(&photos, in_scratch("flat", path), &o, NULL));
    CHECK(photos.photo[0].label == -1 && photos.photo[0].split == KIT_TEST);
    REQUIRE(kit_batch_new(&batch, 1, 3, 32, 32, NULL));
    REQUIRE(kit_batch_new(&twin, 1, 3, 32, 32, NULL));
    view.flip = true;
    view.crop = 0.4;
    int mirrored = 0, wrong = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        xg_rng a = xg_rng_seed(seed), b = xg_rng_seed(seed);
        REQUIRE(kit_batch_from_photos(&batch, &photos, index, 1, &view, &a, NULL, NULL));
        REQUIRE(kit_batch_from_photos(&twin, &photos, index, 1, &view, &b, NULL, NULL));
        CHECK(memcmp(batch.pixels, twin.pixels, 3 * 1024 * sizeof(xg_real)) == 0);
        for (int y = 0; y < 30; y++) {
            for (int x = 1; x < 30; x++) {
                const xg_real *red = batch.pixels + y * 32 + x;
                bool all_red = red[-1] > 0.99 && red[0] > 0.99 && red[1] > 0.99;
                bool no_red = red[-1] < 0.01 && red[0] < 0.01 && red[1] < 0.01;
                bool inside = batch.masks[y * 32 + x] > 0;
                wrong += (all_red && !inside) || (no_red && inside);
            }
        }
        mirrored += batch.pixels[31] > batch.pixels[0];
    }
    CHECK(wrong == 0);
    CHECK(mirrored > 5 && mirrored < 35);
    kit_batch_free(&batch);
    kit_batch_free(&twin);
    kit_photos_free(&photos);
}

static void test_damaged_photograph_is_named(void)
{
    char path[256];
    kit_photos photos;
    kit_batch batch;
    const int index[2] = { 0, 1 };
    xg_error error = no_error();
    write_picture("damaged/good.png", 128, 128, 0);
    write_text("damaged/bad.png", "this is no picture");
    REQUIRE(kit_photos_open(&photos, in_scratch("damaged", path), NULL, NULL));
    REQUIRE(kit_batch_new(&batch, 2, 3, 128, 128, NULL));
    CHECK(!kit_batch_from_photos(&batch, &photos, index, 2, NULL, NULL, NULL, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "bad.png");
    CHECK(batch.count == 0);
    kit_batch_free(&batch);
    kit_photos_free(&photos);
}

/* ------------------------------------------------------------------------------------- pictures -- */

static void test_png_round_trip(void)
{
    char path[256];
    kit_picture a, b;
    xg_rng rng = xg_rng_seed(3);
    write_text("round.png", "");
    REQUIRE(kit_picture_new(&a, 37, 23, KIT_WHITE, NULL));
    for (int i = 0; i < 37 * 23 * 3; i++) a.rgb[i] = (unsigned char)xg_rng_below(&rng, 256);
    REQUIRE(kit_picture_save(&a, in_scratch("round.png", path), NULL));
    REQUIRE(kit_picture_load(&b, path, NULL));
    CHECK(b.w == 37 && b.h == 23 && memcmp(a.rgb, b.rgb, 37 * 23 * 3) == 0);
    kit_picture_free(&b);
    kit_picture_free(&a);
}

/* Normalising and back is the identity on bytes, in every rule. */
static void test_normalisation_round_trip(void)
{
    static const char *const name[] = { "unit", "imagenet", "caffe", "signed" };
    unsigned char rgb[256 * 3];
    xg_real planes[256 * 3];
    kit_norm norm;
    xg_error error = no_error();
    for (int i = 0; i < 256 * 3; i++) rgb[i] = (unsigned char)(i * 7 % 256);
    for (int k = 0; k < 4; k++) {
        kit_picture back;
        REQUIRE(kit_norm_find(name[k], &norm, NULL));
        kit_picture_normalise(rgb, 16, 16, norm, planes);
        REQUIRE(kit_picture_from(&back, planes, 3, 16, 16, norm, NULL));
        CHECK(memcmp(back.rgb, rgb, sizeof rgb) == 0);
        kit_picture_free(&back);
    }
    kit_picture_normalise(rgb, 16, 16, KIT_NORM_CAFFE, planes);
    CHECK_NEAR(planes[0], rgb[2] - 104, 1e-4);                  /* blue comes first */
    kit_picture_normalise(rgb, 16, 16, KIT_NORM_IMAGENET, planes);
    CHECK_NEAR(planes[256], (rgb[1] / 255.0 - 0.456) / 0.224, 1e-5);
    CHECK(!kit_norm_find("none", &norm, &error));
    CHECK_SAYS(error, XG_ERR_NAME, "imagenet");
}

static void test_resize_keeps_the_mean(void)
{
    kit_picture a, b;
    xg_error error = no_error();
    REQUIRE(kit_picture_new(&a, 64, 64, KIT_BLACK, NULL));
    for (int y = 0; y < 64; y++) {
        for (int x = 0; x < 64; x++) if ((x + y) % 2) kit_draw_pixel(&a, x, y, KIT_WHITE, 1);
    }
    REQUIRE(kit_picture_resize(&a, 16, 8, &b, &error));
    CHECK(b.w == 16 && b.h == 8);
    int wrong = 0;                          /* a fine chequerboard becomes even grey, not black */
    for (int i = 0; i < 16 * 8 * 3; i++) wrong += b.rgb[i] < 120 || b.rgb[i] > 135;
    CHECK(wrong == 0);
    kit_picture_free(&b);
    CHECK(!kit_picture_resize(&a, 0, 8, &b, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    kit_picture_free(&a);
}

static void test_hostile_pictures(void)
{
    /* A PNG head that promises 30000 x 30000 pixels. */
    static const unsigned char huge[] = {
        0x89, 'P', 'N', 'G', 13, 10, 26, 10, 0, 0, 0, 13, 'I', 'H', 'D', 'R', 0, 0, 0x75, 0x30,
        0, 0, 0x75, 0x30, 8, 2, 0, 0, 0, 0, 0, 0, 0
    };
    static const struct { const void *bytes; size_t count; } bad[] = {
        { "", 0 }, { "GIF89a\1\0\1\0\0\0\0", 13 }, { "BM and more of it", 17 }, { huge, sizeof huge },
        { huge, 20 }, { "P6 4 4 255\nabc", 14 }, { "\xff\xd8\xff\xe0 broken", 11 }
    };
    char path[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kit_picture p;
        xg_error error = no_error();
        in_scratch("hostile", path);
        REQUIRE(kit_write_file(path, bad[i].bytes, bad[i].count, NULL));
        CHECK(!kit_picture_load(&p, path, &error));
        CHECK_SAYS(error, error.code, "hostile");
        CHECK(error.code == XG_ERR_FORMAT || error.code == XG_ERR_UNSUPPORTED);
        CHECK(p.rgb == NULL);
    }
}

static void test_drawing_is_clipped(void)
{
    kit_picture p, stamp;
    REQUIRE(kit_picture_new(&p, 20, 10, KIT_WHITE, NULL));
    REQUIRE(kit_picture_new(&stamp, 30, 30, KIT_BLACK, NULL));
    kit_draw_line(&p, -50, -50, 90, 90, 3, KIT_BLACK);
    kit_draw_text(&p, -10, -3, 9, KIT_LEFT, KIT_INK, "clipped \xc3\xa4 text that is too long");
    kit_draw_rect(&p, -5, -5, 2, 2, 0xff0000u, 1);
    kit_draw_rect(&p, 5, 5, 1000, 1000, 0x00ff00u, 1);
    kit_draw_disc(&p, 1e7, 1e7, 3, KIT_INK);
    CHECK(p.rgb[0] > 200 && p.rgb[(9 * 20 + 19) * 3 + 1] > 200);
    kit_draw_picture(&p, &stamp, -25, -25);
    CHECK(p.rgb[(4 * 20 + 4) * 3] == 0 && p.rgb[(5 * 20 + 19) * 3 + 1] == 255);
    kit_draw_picture(&p, &stamp, 15, 8);
    kit_draw_picture(&p, &stamp, 400, 8);
    CHECK(p.rgb[(9 * 20 + 19) * 3 + 1] == 0);
    CHECK(kit_text_width("iii", 9) < kit_text_width("mmm", 9));
    CHECK(!(kit_text_width("", 9) > 0));
    kit_picture_free(&stamp);
    kit_picture_free(&p);
}

/* How much more red than blue a cell of a picture is, summed. */
static double redness(const kit_picture *p, int x0, int y0, int x1, int y1)
{
    double sum = 0;
    for (int y = y0; y < y1; y++) {
        for (int x = x0; x < x1; x++) {
            const unsigned char *rgb = p->rgb + 3 * (y * p->w + x);
            sum += rgb[0] - rgb[2];
        }
    }
    return sum;
}

/* A map that is positive on its left and negative on its right shows red left and blue right. */
static void test_sheet(void)
{
    static const char *const column[] = { "a map" };
    const xg_real value[4] = { 1, -1, 1, (xg_real)-0.9 };
    kit_picture in, page;
    kit_map map = { value, 2, 2, "EPG 0.5" };
    xg_box box = { 2, 2, 6, 6 };
    kit_sheet_row row = { "row", NULL, "input", &box, 1, &map };
    kit_sheet sheet = { "title", "note", column, 1, &row, 1, 160, 0 };
    xg_error error = no_error();
    CHECK(!kit_sheet_draw(&sheet, &page, &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "no picture");
    REQUIRE(kit_picture_new(&in, 8, 8, 0x808080u, NULL));
    row.picture = &in;
    REQUIRE(kit_sheet_draw(&sheet, &page, NULL));
    CHECK(page.w > 2 * 160 && page.h > 160);
    int left = page.w, right = 0;           /* of the coloured cell, found by its colours */
    for (int x = 0; x < page.w; x++) {
        double r = redness(&page, x, 100, x + 1, 240);
        if (r > 3000 && x < left) left = x;
        if (r < -3000) right = x;
    }
    CHECK(right - left > 140 && right - left <= 160);
    kit_picture_free(&page);
    kit_picture_free(&in);
    CHECK(kit_diverging(0) == 0xf7f7f7u && kit_diverging(5) == kit_diverging(1));
    CHECK((kit_diverging(1) >> 16) > (kit_diverging(1) & 255));
    CHECK((kit_diverging(-1) >> 16) < (kit_diverging(-1) & 255));
    CHECK(kit_diverging((double)NAN) == 0xf7f7f7u);
}

static void test_chart(void)
{
    double y[3] = { 0.1, 0.5, (double)NAN }, bars[4] = { 1, 2, 3, 4 };
    static const char *const names[2] = { "one", "two" };
    kit_line line = { "run", NULL, y, NULL, 3, 0, true };
    kit_panel panel[2];
    kit_picture page;
    xg_error error = no_error();
    memset(panel, 0, sizeof panel);
    panel[0].line = &line;
    panel[0].lines = 1;
    panel[1].label = panel[1].series = names;
    panel[1].bar = bars;
    panel[1].groups = panel[1].bars = 2;
    REQUIRE(kit_chart_draw("title", panel, 2, 0, 0, &page, NULL));
    int blue = 0, orange = 0;
    for (int i = 0; i < page.w * page.h; i++) {
        blue += page.rgb[3 * i] < 80 && page.rgb[3 * i + 2] > 150;
        orange += page.rgb[3 * i] > 200 && page.rgb[3 * i + 2] < 60;
    }
    CHECK(blue > 3000 && orange > 5000);
    kit_picture_free(&page);
    CHECK(!kit_chart_draw("title", panel, 0, 0, 0, &page, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
}

/* ------------------------------------------------------------------------------- log and tables -- */

static void read_back(const char *name, char *out, size_t size)
{
    char path[256];
    unsigned char *bytes = NULL;
    size_t count = 0;
    out[0] = '\0';
    REQUIRE(kit_read_file(in_scratch(name, path), 100000, &bytes, &count, NULL));
    snprintf(out, size, "%s", (char *)bytes);
    free(bytes);
}

static void log_epoch(kit_log *log, double epoch, double loss, const char *note)
{
    kit_log_number(log, "epoch", epoch);
    kit_log_number(log, "loss", loss);
    if (note != NULL) kit_log_text(log, "note", note);
    CHECK(kit_log_row(log, NULL));
}

static void test_log_resumes_without_half_lines(void)
{
    static const char *const column[] = { "epoch", "loss", "note" };
    char folder[256], text[1000], path[256];
    kit_log log;
    xg_error error = no_error();
    in_scratch("log/run", folder);
    REQUIRE(kit_log_open(&log, folder, "train", column, 3, -1, &error));
    log_epoch(&log, 1, 0.5, "a \"b\", c\nd");
    log_epoch(&log, 2, (double)NAN, NULL);
    log_epoch(&log, 3, 0.25, "late");
    CHECK(kit_log_close(&log, NULL));
    read_back("log/run/train.csv", text, sizeof text);
    CHECK(strcmp(text, "epoch,loss,note\n1,0.5,\"a \"\"b\"\", c d\"\n2,,\n3,0.25,late\n") == 0);
    read_back("log/run/train.jsonl", text, sizeof text);
    CHECK(strcmp(text, "{\"epoch\": 1, \"loss\": 0.5, \"note\": \"a \\\"b\\\", c d\"}\n"
                       "{\"epoch\": 2, \"loss\": null}\n"
                       "{\"epoch\": 3, \"loss\": 0.25, \"note\": \"late\"}\n") == 0);
    /* Killed while it wrote a line of epoch 4; the checkpoint is of epoch 2. */
    FILE *half = fopen(in_scratch("log/run/train.csv", path), "ab");
    REQUIRE(half != NULL);
    fputs("4,0.1", half);
    fclose(half);
    REQUIRE(kit_log_open(&log, folder, "train", column, 3, 2, &error));
    log_epoch(&log, 3, 0.125, NULL);
    CHECK(kit_log_close(&log, NULL));
    read_back("log/run/train.csv", text, sizeof text);
    CHECK(strcmp(text, "epoch,loss,note\n1,0.5,\"a \"\"b\"\", c d\"\n2,,\n3,0.125,\n") == 0);
    read_back("log/run/train.jsonl", text, sizeof text);
    CHECK(strstr(text, "\"loss\": 0.125}\n") != NULL && strstr(text, "late") == NULL);
    CHECK(!kit_log_open(&log, folder, "train", column, 2, 3, &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "other columns");
    error = no_error();
    REQUIRE(kit_log_open(&log, folder, "train", column, 3, 3, NULL));
    kit_log_number(&log, "speed", 1);
    CHECK(!kit_log_row(&log, &error));
    CHECK_ERROR(&error, XG_ERR_NAME);
    CHECK(kit_log_close(&log, NULL));
}

static void test_table(void)
{
    kit_table table;
    char path[256], text[400];
    memset(&table, 0, sizeof table);
    kit_table_cell(&table, "run");
    kit_table_cell(&table, "accuracy");
    kit_table_end_row(&table);
    kit_table_cell(&table, "plain");
    kit_table_cell(&table, "%.1f", 8.25);
    kit_table_end_row(&table);
    write_text("table.txt", "");
    FILE *out = fopen(in_scratch("table.txt", path), "w");
    REQUIRE(out != NULL);
    CHECK(kit_table_print(&table, out, false));
    CHECK(kit_table_print(&table, out, true));
    kit_table_cell(&table, "short");
    kit_table_end_row(&table);
    CHECK(!kit_table_print(&table, out, false));
    fclose(out);
    read_back("table.txt", text, sizeof text);
    CHECK(strcmp(text, "run    accuracy\n-----  --------\nplain       8.2\n"
                       "| run   | accuracy |\n|-------|---------:|\n| plain |      8.2 |\n") == 0);
    kit_table_free(&table);
}

static void test_progress(void)
{
    char path[256], text[600];
    kit_progress p;
    write_text("progress.txt", "");
    FILE *out = fopen(in_scratch("progress.txt", path), "w");
    REQUIRE(out != NULL);
    kit_progress_start(&p, out, "train", 10, 40);
    CHECK(!p.live);                         /* a file is no terminal */
    kit_progress_step(&p, 11, "too early to be shown");
    p.every = 0;
    kit_progress_step(&p, 20, "loss %.2f", 0.5);
    kit_progress_end(&p, 40, NULL);
    fclose(out);
    read_back("progress.txt", text, sizeof text);
    CHECK(strstr(text, "train [##########..........] 20/40  50 %") == text);
    CHECK(strstr(text, "loss 0.50\n") != NULL && strstr(text, "early") == NULL);
    CHECK(strstr(text, "40/40 100 %") != NULL && strstr(text, "in all\n") != NULL);
}

/* -------------------------------------------------------------------------------------- threads -- */

typedef struct count_job {
    kit_pool *pool;
    int       seen[500];           /* how often each task ran                                      */
    int       busy[8];             /* is this worker in a task?                                    */
    int       clashes;             /* two tasks with one worker number at the same time            */
    int       inner;
} count_job;

static void count_inner(void *context, int task, int worker)
{
    count_job *job = (count_job *)context;
    (void)task;
    (void)worker;
    __atomic_add_fetch(&job->inner, 1, __ATOMIC_SEQ_CST);
}

static void count_task(void *context, int task, int worker)
{
    count_job *job = (count_job *)context;
    if (worker < 0 || worker >= 8 || __atomic_exchange_n(&job->busy[worker], 1, __ATOMIC_SEQ_CST)) {
        __atomic_add_fetch(&job->clashes, 1, __ATOMIC_SEQ_CST);
        return;
    }
    __atomic_add_fetch(&job->seen[task], 1, __ATOMIC_SEQ_CST);
    if (task % 50 == 0) kit_pool_run(job->pool, 3, count_inner, job);    /* nested: serial */
    __atomic_store_n(&job->busy[worker], 0, __ATOMIC_SEQ_CST);
}

static void test_pool_runs_every_task_once(void)
{
    const struct timespec nap = { 0, 2000000 };
    for (int threads = 1; threads <= 5; threads++) {
        kit_pool *pool = kit_pool_new(threads, NULL);
        REQUIRE(pool != NULL && kit_pool_threads(pool) == threads);
        int wrong = 0;
        for (int round = 0; round < 300; round++) {
            count_job job;
            int tasks = round * 7 % 500;
            memset(&job, 0, sizeof job);
            job.pool = pool;
            kit_pool_run(pool, tasks, count_task, &job);
            for (int i = 0; i < 500; i++) wrong += job.seen[i] != (i < tasks ? 1 : 0);
            wrong += job.clashes + (job.inner != 3 * ((tasks + 49) / 50));
            if (round % 100 == 0) nanosleep(&nap, NULL);    /* let the workers fall asleep */
        }
        CHECK(wrong == 0);
        kit_pool_free(pool);
    }
    kit_pool_free(NULL);
    CHECK(kit_pool_threads(NULL) == 1);
    xg_error error = no_error();
    CHECK(kit_pool_new(-1, &error) == NULL);
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
}

static void *run_rounds(void *argument)
{
    kit_pool *pool = (kit_pool *)argument;
    size_t wrong = 0;
    for (int round = 0; round < 200; round++) {
        count_job job;
        memset(&job, 0, sizeof job);
        job.pool = pool;
        kit_pool_run(pool, 40, count_task, &job);
        for (int i = 0; i < 40; i++) wrong += job.seen[i] != 1;
        wrong += (size_t)job.clashes;
    }
    return (char *)argument + wrong;        /* where it was asked to, if nothing went wrong */
}

/* Two threads may use one pool at the same time: one of them then works alone. */
static void test_pool_is_shared(void)
{
    kit_pool *pool = kit_pool_new(3, NULL);
    pthread_t other;
    void *result = NULL;
    REQUIRE(pool != NULL);
    REQUIRE(pthread_create(&other, NULL, run_rounds, pool) == 0);
    CHECK(run_rounds(pool) == (void *)pool);
    pthread_join(other, &result);
    CHECK(result == (void *)pool);
    kit_pool_free(pool);
}

/* The library computes the same bits on one thread and on the pool. */
static void test_pool_serves_the_library(void)
{
    xg_real one[64], many[64];
    for (int pass = 0; pass < 2; pass++) {
        xg_config config;
        kit_pool *pool = pass == 1 ? kit_pool_new(3, NULL) : NULL;
        memset(&config, 0, sizeof config);
        kit_pool_config(pool, &config);
        CHECK(pass == 0 || config.workers == 3);
        xg_tape *tape = xg_tape_new(&config);
        REQUIRE(tape != NULL);
        xg_rng rng = xg_rng_seed(6);
        xg_window window;
        memset(&window, 0, sizeof window);
        window.pad = 1;
        xg_tensor *x = xg_randn(tape, xg_shape4(4, 8, 20, 20), &rng);
        xg_tensor *w = xg_randn(tape, xg_shape4(16, 8, 3, 3), &rng);
        xg_tensor *y = xg_global_avgpool(xg_relu(xg_conv2d(x, w, window)));
        CHECK_OK(tape);
        CHECK(xg_read(y, pass == 0 ? one : many, 64) == 64);
        xg_tape_free(tape);
        kit_pool_free(pool);
    }
    CHECK(memcmp(one, many, sizeof one) == 0);
}

/* --------------------------------------------------------------------------------- command line -- */

typedef struct options { int epochs, loss; double rate; const char *data; bool quick; uint64_t seed; }
    options;

static kit_args_result parse(options *o, int argc, const char *const *words_in, int *count,
                             const char **words, xg_error *error)
{
    kit_arg args[] = {
        { "epochs", 'e', KIT_ARG_INT,    NULL, "N", "passes over the data" },
        { "rate",   0,   KIT_ARG_NUMBER, NULL, "X", "learning rate" },
        { NULL,     0,   KIT_ARG_HEADING, NULL, NULL, "Data" },
        { "data",   'd', KIT_ARG_TEXT,   NULL, "FOLDER", "where the pictures are" },
        { "loss",   0,   KIT_ARG_CHOICE, NULL, "energy|l1|ppce", "guidance" },
        { "quick",  'q', KIT_ARG_FLAG,   NULL, NULL, "seconds, not minutes" },
        { "seed",   0,   KIT_ARG_SEED,   NULL, "N", "of every random choice" },
    };
    char *argv[16];
    args[0].value = &o->epochs;
    args[1].value = &o->rate;
    args[3].value = &o->data;
    args[4].value = &o->loss;
    args[5].value = &o->quick;
    args[6].value = &o->seed;
    for (int i = 0; i < argc; i++) argv[i] = kit_copy_text(words_in[i]);
    argv[argc] = NULL;
    kit_args_result result = kit_args_read(argc, argv, args, 7, "usage", NULL, words, 2, count, error);
    if (o->data != NULL) CHECK(strcmp(o->data, "x") == 0);
    o->data = NULL;
    if (*count > 0) CHECK(strcmp(words[0], "file") == 0);
    for (int i = 0; i < argc; i++) free(argv[i]);
    return result;
}

static void test_args(void)
{
    static const char *const good[] = { "t", "-e", "12", "file", "--rate=0.5", "--data", "x", "-q",
                                        "--loss", "ppce", "--seed", "18446744073709551615" };
    static const struct { const char *words[3]; int count; const char *says; } bad[] = {
        { { "t", "--epochs", "many" }, 3, "--epochs takes a whole number, not 'many'" },
        { { "t", "--rate=nan" },       2, "--rate takes a number" },
        { { "t", "--epoch_s", "1" },   3, "--epoch_s" },
        { { "t", "--epochs" },         2, "--epochs needs a value" },
        { { "t", "--loss", "l2" },     3, "one of energy|l1|ppce, not 'l2'" },
        { { "t", "--seed", "-1" },     3, "--seed takes a whole number" },
        { { "t", "-x" },               2, "-x" },
    };
    options o;
    const char *words[2];
    int count = 0;
    xg_error error = no_error();
    memset(&o, 0, sizeof o);
    CHECK(parse(&o, 12, good, &count, words, &error) == KIT_ARGS_OK);
    CHECK(o.epochs == 12 && o.quick && o.loss == 2 && count == 1 && o.seed == UINT64_MAX);
    CHECK_NEAR(o.rate, 0.5, 1e-12);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        error = no_error();
        count = 0;
        CHECK(parse(&o, bad[i].count, bad[i].words, &count, words, &error) == KIT_ARGS_BAD);
        CHECK_SAYS(error, XG_ERR_ARGUMENT, bad[i].says);
    }
}

/* ------------------------------------------------------------------------------------ real data -- */

static void test_real_waterbirds(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s/waterbirds100", test_data());
    if (!kit_is_folder(path)) SKIP("waterbirds100 is not there (set XG_DATA)");
    kit_photos photos;
    kit_view view;
    kit_batch batch;
    xg_error error = no_error();
    REQUIRE(kit_photos_open(&photos, path, NULL, &error));
    CHECK(kit_photos_split(&photos, KIT_TRAIN, NULL) == 4795);
    CHECK(kit_photos_split(&photos, KIT_VAL, NULL) == 1199);
    CHECK(kit_photos_split(&photos, KIT_TEST, NULL) == 1000);
    int in_train[4] = { 0, 0, 0, 0 }, in_test[4] = { 0, 0, 0, 0 }, boxed = 0;
    for (int i = 0; i < photos.count; i++) {
        if (photos.photo[i].split == KIT_TRAIN) in_train[photos.photo[i].group]++;
        if (photos.photo[i].split == KIT_TEST) in_test[photos.photo[i].group]++;
        boxed += photos.photo[i].boxes == 1;
    }
    CHECK(in_train[0] == 3694 && in_train[1] == 0 && in_train[2] == 0 && in_train[3] == 1101);
    CHECK(in_test[0] == 242 && in_test[1] == 258 && in_test[2] == 266 && in_test[3] == 234);
    CHECK(boxed == photos.count);
    REQUIRE(kit_photos_annotate(&photos, 0.01, 0, NULL));
    int annotated = 0;
    for (int i = 0; i < photos.count; i++) {
        annotated += photos.photo[i].split == KIT_TRAIN && photos.photo[i].annotated;
    }
    CHECK(annotated == 47);
    memset(&view, 0, sizeof view);
    view.norm = KIT_NORM_IMAGENET;
    view.all_boxes = true;
    int index[32];
    for (int i = 0; i < 32; i++) index[i] = 200 * i;
    REQUIRE(kit_batch_new(&batch, 32, 3, 128, 128, NULL));
    kit_pool *pool = kit_pool_new(2, NULL);
    REQUIRE(kit_batch_from_photos(&batch, &photos, index, 32, &view, NULL, pool, &error));
    double share = 0;
    for (size_t i = 0; i < 32 * 128 * 128; i++) share += (double)batch.masks[i] / (32 * 128 * 128);
    CHECK(share > 0.2 && share < 0.5);      /* the median box covers 32 % */
    CHECK(photos.kept_bytes == 32 * 3 * 128 * 128);
    kit_pool_free(pool);
    kit_batch_free(&batch);
    kit_photos_free(&photos);
}

static void test_real_demo_images(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s/demo-images", test_data());
    if (!kit_is_folder(path)) SKIP("demo-images is not there (set XG_DATA)");
    kit_photos photos;
    kit_batch batch;
    int index[9];
    xg_error error = no_error();
    REQUIRE(kit_photos_open(&photos, path, NULL, &error));
    CHECK(photos.count == 9 && photos.boxes == 7);
    REQUIRE(kit_batch_new(&batch, 9, 3, 128, 128, NULL));
    for (int i = 0; i < 9; i++) index[i] = i;
    CHECK(kit_batch_from_photos(&batch, &photos, index, 9, NULL, NULL, NULL, &error));
    for (int i = 0; i < 9; i++) {
        const kit_photo *p = &photos.photo[i];
        if (strcmp(p->name, "chelsea.png") != 0) continue;
        CHECK(p->w == 451 && p->h == 300 && p->boxes == 1);
        CHECK(strcmp(photos.box_name[p->first_box], "cat head") == 0);
    }
    kit_batch_free(&batch);
    kit_photos_free(&photos);
}

#define TESTS                                                                                       \
    TEST(test_errors_keep_the_first) TEST(test_files) TEST(test_human_numbers)                      \
    TEST(test_csv_dialects) TEST(test_csv_blanks_separate) TEST(test_csv_errors)                    \
    TEST(test_shapes_have_masks_and_balance) TEST(test_test_shapes_are_parts)                       \
    TEST(test_triangles_point_where_labels_say) TEST(test_spurious_squares)                         \
    TEST(test_shape_errors) TEST(test_decoy_rules) TEST(test_decoy_options)                         \
    TEST(test_annotated_fraction) TEST(test_order_is_a_permutation_and_repeats)                     \
    TEST(test_order_resumes) TEST(test_batch_from_set) TEST(test_class_folders)                     \
    TEST(test_split_folders) TEST(test_waterbirds_layout) TEST(test_waterbirds_errors)              \
    TEST(test_batch_from_photos) TEST(test_views_move_masks_with_pictures)                          \
    TEST(test_damaged_photograph_is_named) TEST(test_png_round_trip)                                \
    TEST(test_normalisation_round_trip) TEST(test_resize_keeps_the_mean)                            \
    TEST(test_hostile_pictures) TEST(test_drawing_is_clipped) TEST(test_sheet) TEST(test_chart)     \
    TEST(test_log_resumes_without_half_lines) TEST(test_table) TEST(test_progress)                  \
    TEST(test_pool_runs_every_task_once) TEST(test_pool_is_shared)                                  \
    TEST(test_pool_serves_the_library) TEST(test_args) TEST(test_real_waterbirds)                   \
    TEST(test_real_demo_images)                                                                     \
    if (scratch[0] != '\0') remove_tree(scratch);

TEST_MAIN(TESTS)
